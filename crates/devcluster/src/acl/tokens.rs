//! The policies and tokens of a cluster, and what the secret of a request amounts to.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Acl;
use super::rules::Rules;
use crate::clock::rfc3339;
use crate::ids::is_uuid;

/// The policy of requests without a token, where somebody wrote one.
const ANONYMOUS: &str = "anonymous";

#[derive(Debug)]
pub(crate) struct Policy {
    pub name: String,
    pub description: String,
    pub text: String,
    pub rules: Rules,
    pub create_index: u64,
    pub modify_index: u64,
}

impl Policy {
    pub(crate) fn stub(&self) -> Value {
        json!({
            "CreateIndex": self.create_index, "Description": self.description, "Hash": hash(&[&self.name, &self.description, &self.text]),
            "JobACL": null, "ModifyIndex": self.modify_index, "Name": self.name,
        })
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut v = self.stub();
        v["Rules"] = json!(self.text);
        v
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub accessor: String,
    pub secret: String,
    pub name: String,
    pub management: bool,
    pub policies: Vec<String>,
    pub global: bool,
    pub created: i64,
    /// Nanoseconds; zero for a token that does not expire.
    pub ttl: i64,
    pub create_index: u64,
    pub modify_index: u64,
}

impl Token {
    /// Unix nanoseconds; zero: never.
    pub(crate) fn expires(&self) -> i64 {
        if self.ttl == 0 { 0 } else { self.created.saturating_add(self.ttl) }
    }

    pub(crate) fn stub(&self) -> Value {
        let kind = if self.management { "management" } else { "client" };
        let policies = if self.policies.is_empty() { Value::Null } else { json!(self.policies) };
        json!({
            "AccessorID": self.accessor, "CreateIndex": self.create_index, "CreateTime": rfc3339(self.created),
            "ExpirationTime": rfc3339(self.expires()), "Global": self.global,
            "Hash": hash(&[&self.name, kind, &self.policies.join("\n"), if self.global { "global" } else { "local" }]),
            "ModifyIndex": self.modify_index, "Name": self.name, "Policies": policies, "Roles": null, "Type": kind,
        })
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut v = self.stub();
        v["SecretID"] = json!(self.secret);
        v["ExpirationTTL"] = json!(if self.ttl == 0 { String::new() } else { crate::duration::go(self.ttl) });
        v
    }

    fn anonymous() -> Value {
        json!({
            "AccessorID": ANONYMOUS, "CreateIndex": 0, "CreateTime": "0001-01-01T00:00:00Z", "ExpirationTTL": "",
            "ExpirationTime": null, "Global": false, "Hash": null, "ModifyIndex": 0, "Name": "Anonymous Token",
            "Policies": [ANONYMOUS], "Roles": null, "SecretID": "", "Type": "client",
        })
    }
}

/// As Nomad's in form, and equal for what is equal; Nomad's own is a BLAKE2b sum.
fn hash(parts: &[&str]) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let word = |salt: u8| {
        let mut h = DefaultHasher::new();
        (salt, parts).hash(&mut h);
        h.finish().to_be_bytes()
    };
    crate::base64::encode(&(0..4).flat_map(word).collect::<Vec<u8>>())
}

/// Why a secret is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    Unknown,
    Expired,
    /// Neither an id nor the signed identity of a task, for which Nomad then takes it.
    NoUuid,
}

impl Bad {
    /// What Nomad says where it does not just say `Permission denied`.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Unknown => "Permission denied",
            Self::Expired => "ACL token expired",
            Self::NoUuid => "failed to parse signed token: go-jose/go-jose: compact JWS format must have three parts",
        }
    }
}

/// The secret of a request, looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Known<'a> {
    Nobody,
    Token(&'a Token),
}

#[derive(Debug, Default)]
pub(crate) struct Tokens {
    pub policies: BTreeMap<String, Policy>,
    /// By accessor.
    pub tokens: BTreeMap<String, Token>,
    /// The index of the bootstrap; zero before it.
    pub bootstrapped: u64,
}

impl Tokens {
    pub(crate) fn find(&self, secret: &str, now: i64) -> Result<Known<'_>, Bad> {
        if secret.is_empty() {
            return Ok(Known::Nobody);
        }
        if !is_uuid(secret) {
            return Err(Bad::NoUuid);
        }
        let token = self.tokens.values().find(|t| t.secret == secret).ok_or(Bad::Unknown)?;
        if token.ttl != 0 && token.expires() < now { Err(Bad::Expired) } else { Ok(Known::Token(token)) }
    }

    /// What the bearer may do.
    pub(crate) fn acl(&self, known: Known) -> Acl {
        if let Known::Token(t) = known
            && t.management
        {
            return Acl::everything();
        }
        // A policy that does not exist (any more) grants nothing.
        Acl::of(known.policies().iter().filter_map(|name| self.policies.get(name)).map(|p| &p.rules))
    }
}

impl Known<'_> {
    pub(crate) fn policies(&self) -> Vec<String> {
        match self {
            Self::Nobody => vec![ANONYMOUS.to_owned()],
            Self::Token(t) => t.policies.clone(),
        }
    }

    /// The token and the index it is of.
    pub(crate) fn to_json(self) -> (Value, u64) {
        match self {
            Self::Nobody => (Token::anonymous(), 0),
            Self::Token(t) => (t.to_json(), t.modify_index),
        }
    }
}
