//! One type for instants, one trait for the clock that gives them.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, Object, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

/// An instant of wall time in microseconds since the epoch. Deadlines are wall time, so that they survive a restart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The last one that RFC 3339 can say: the end of the year 9999.
    pub const LATEST: Self = Self(253_402_207_200_000_000);
    /// Where a format that people do not read counts from: for years to come an instant takes a byte less than from 1970.
    const TERSE: i64 = 1_767_225_600_000_000;

    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis * 1000)
    }
    pub const fn as_micros(self) -> i64 {
        self.0
    }
    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).max(0).unsigned_abs())
    }
    /// Signed seconds after `other`, for reports ("+0.012").
    pub fn seconds_after(self, other: Self) -> f64 {
        self.0.saturating_sub(other.0) as f64 / 1e6
    }
}

fn micros(d: Duration) -> i64 {
    i64::try_from(d.as_micros()).unwrap_or(i64::MAX)
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    /// At most [`Timestamp::LATEST`]: what is computed can be written down and read again.
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(micros(d))).min(Self::LATEST.max(self))
    }
}
impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(micros(d)))
    }
}

/// RFC 3339 in UTC with microseconds.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(t) => write!(f, "{t:.6}"),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}
impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = jiff::Error;
    fn from_str(s: &str) -> Result<Self, jiff::Error> {
        s.parse::<jiff::Timestamp>().map(|t| Self(t.as_microsecond()))
    }
}
impl PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        Object::builder().schema_type(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime))).into()
    }
}
impl ToSchema for Timestamp {}
impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(self) } else { s.serialize_i64(self.0.wrapping_sub(Self::TERSE)) }
    }
}
impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if !d.is_human_readable() {
            return i64::deserialize(d).map(|since| Self(since.wrapping_add(Self::TERSE)));
        }
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where "now" comes from. Everything that needs the time is handed one; nothing reads it from the system by itself.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Timestamp;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_much_is_added_it_can_be_written_down_and_read_again() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        for d in [Duration::from_secs(1 << 40), Duration::MAX] {
            let far = now + d;
            assert_eq!((far, far.to_string().parse().ok()), (Timestamp::LATEST, Some(far)));
        }
        assert!(Timestamp::LATEST + Duration::from_secs(1) == Timestamp::LATEST);
    }
}
