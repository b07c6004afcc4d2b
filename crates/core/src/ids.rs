//! Names of things in Nomad and in Curfew. Separate types, so that a region can never stand where a namespace belongs.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl From<String> for $name {
            fn from(s: String) -> Self {
                Self(s.into())
            }
        }
        impl From<&str> for $name {
            fn from(s: &str) -> Self {
                Self(s.into())
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                serialize(&self.0, s)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                deserialize(d).map(Self)
            }
        }
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                Object::builder().schema_type(Type::String).min_length(Some(1)).into()
            }
        }
        impl ToSchema for $name {}
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

/// In a format that people do not read, a UUID takes its sixteen bytes: memory holds a hundred thousand of them.
#[derive(Serialize, Deserialize)]
enum Terse<'a> {
    Uuid(#[serde(with = "uuid::serde::compact")] Uuid),
    Text(#[serde(borrow)] Cow<'a, str>),
}

fn serialize<S: Serializer>(id: &str, s: S) -> Result<S::Ok, S::Error> {
    if s.is_human_readable() {
        return s.serialize_str(id);
    }
    // Only one that is written just so comes back as it was.
    let uuid = Uuid::try_parse(id).ok().filter(|u| *u.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *id);
    uuid.map_or_else(|| Terse::Text(id.into()), Terse::Uuid).serialize(s)
}

fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Arc<str>, D::Error> {
    if d.is_human_readable() {
        return String::deserialize(d).map(Into::into);
    }
    Ok(match Terse::deserialize(d)? {
        Terse::Uuid(uuid) => Arc::from(&*uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer())),
        Terse::Text(text) => text.into(),
    })
}

text_id!(
    /// A job's id. Child ids hold slashes; unicode is allowed; a space is not (Nomad refuses it).
    JobId
);
text_id!(
    /// A Nomad namespace.
    Namespace
);
text_id!(
    /// An allocation's UUID as Nomad writes it.
    AllocId
);
text_id!(
    /// A node's UUID as Nomad writes it.
    NodeId
);
text_id!(
    /// A datacenter's name.
    Datacenter
);
text_id!(
    /// A task's name, unique within its group.
    TaskName
);
text_id!(
    /// An evaluation's UUID.
    EvalId
);

impl AllocId {
    /// The first eight characters, as Nomad's own commands print it.
    pub fn short(&self) -> &str {
        self.0.get(..8).unwrap_or(&self.0)
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::from("default")
    }
}

/// A job within its namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct JobKey {
    pub namespace: Namespace,
    pub job: JobId,
}

impl JobKey {
    pub fn new(namespace: impl Into<Namespace>, job: impl Into<JobId>) -> Self {
        Self { namespace: namespace.into(), job: job.into() }
    }
}

/// `job`, or `job` in namespace `ns` when that is not the default one.
impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.job)?;
        if self.namespace.as_str() != "default" {
            write!(f, " in namespace \"{}\"", self.namespace)?;
        }
        Ok(())
    }
}

/// An operation's id: a UUID of version 7, so that ids sort by the time of the request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OpId(Uuid);

impl OpId {
    pub const MIN: Self = Self(Uuid::nil());
    pub const MAX: Self = Self(Uuid::max());
    pub fn new(at: crate::Timestamp) -> Self {
        let micros = at.as_micros().max(0).unsigned_abs();
        let ts = uuid::Timestamp::from_unix(uuid::NoContext, micros / 1_000_000, ((micros % 1_000_000) * 1000) as u32);
        Self(Uuid::new_v7(ts))
    }
    pub fn uuid(&self) -> Uuid {
        self.0
    }
    /// When it was made, for an id that tells (version 7).
    pub fn at(&self) -> Option<crate::Timestamp> {
        let (secs, nanos) = self.0.get_timestamp()?.to_unix();
        let micros = i64::try_from(secs).ok()?.checked_mul(1_000_000)?.checked_add(i64::from(nanos / 1000))?;
        (self.0.get_version_num() == 7).then(|| crate::Timestamp::from_micros(micros))
    }
}
impl PartialSchema for OpId {
    fn schema() -> RefOr<Schema> {
        Object::builder().schema_type(Type::String).format(Some(SchemaFormat::Custom("uuid".into()))).into()
    }
}
impl ToSchema for OpId {}
impl From<Uuid> for OpId {
    fn from(u: Uuid) -> Self {
        Self(u)
    }
}
impl std::str::FromStr for OpId {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<Self, uuid::Error> {
        s.parse().map(Self)
    }
}
impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Debug for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
