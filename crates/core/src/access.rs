//! Who may do what: scopes, what a caller was granted, and the tokens that prove it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use utoipa::ToSchema;

use crate::operation::{By, Kind};
use crate::{Namespace, Timestamp};

/// One thing that a caller may do. None includes another, but for `admin`, which includes all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Look at jobs, operations, clocks, nodes and the audit trail.
    Read,
    /// Submit jobs: running code on the cluster.
    Submit,
    Stop,
    /// Drain and undrain nodes.
    Drain,
    /// Run the gc.
    Gc,
    /// Everything, with tokens and the pausing of kinds.
    Admin,
}

impl Scope {
    pub const ALL: [Scope; 6] = [Scope::Read, Scope::Submit, Scope::Stop, Scope::Drain, Scope::Gc, Scope::Admin];
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Submit => "submit",
            Scope::Stop => "stop",
            Scope::Drain => "drain",
            Scope::Gc => "gc",
            Scope::Admin => "admin",
        }
    }
    pub fn parse(text: &str) -> Option<Scope> {
        Scope::ALL.into_iter().find(|s| s.as_str() == text)
    }
    /// What whoever steps into an operation of this kind needs.
    pub fn of(kind: Kind) -> Scope {
        match kind {
            Kind::Submit | Kind::Rollout | Kind::Deployment => Scope::Submit,
            Kind::Stop => Scope::Stop,
            Kind::DrainNode | Kind::DrainDatacenter | Kind::Undrain => Scope::Drain,
            Kind::Kill => Scope::Admin,
        }
    }
    /// What reaches beyond any one namespace.
    fn is_wide(self) -> bool {
        matches!(self, Scope::Drain | Scope::Gc | Scope::Admin)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a caller may do, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    pub scopes: BTreeSet<Scope>,
    /// Empty: in every namespace.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub namespaces: BTreeSet<Namespace>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadGrant {
    #[error("it has no scope; there are read, submit, stop, drain, gc, admin")]
    NoScope,
    #[error("scope {0} reaches every namespace: leave the namespaces out, or the scope")]
    Wide(Scope),
}

impl Grant {
    pub fn everything() -> Self {
        Self { scopes: Scope::ALL.into(), namespaces: BTreeSet::new() }
    }
    pub fn allows(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
    pub fn reaches(&self, namespace: &Namespace) -> bool {
        self.is_everywhere() || self.namespaces.contains(namespace)
    }
    pub fn is_everywhere(&self) -> bool {
        self.namespaces.is_empty()
    }
    pub fn check(&self) -> Result<(), BadGrant> {
        if self.scopes.is_empty() {
            return Err(BadGrant::NoScope);
        }
        match self.scopes.iter().find(|s| s.is_wide() && !self.is_everywhere()) {
            Some(wide) => Err(BadGrant::Wide(*wide)),
            None => Ok(()),
        }
    }
}

/// A token as it is kept: not the secret, only its digest. The secret has 256 random bits, so one round of a fast digest is enough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Public: it stands in the token's text, in lists and in the trail.
    pub id: String,
    /// Who has it, for people and for the trail.
    pub name: String,
    digest: String,
    pub grant: Grant,
    pub created_at: Timestamp,
    pub created_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<By>,
}

/// What a new token is to be.
#[derive(Clone, Debug)]
pub struct NewToken {
    pub name: String,
    pub grant: Grant,
    pub by: String,
    pub at: Timestamp,
    pub expires_at: Option<Timestamp>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadToken {
    #[error("\"{0}\" is not a token's name: 1 to 64 letters, digits, dots, dashes and underscores")]
    Name(String),
    #[error(transparent)]
    Grant(#[from] BadGrant),
    #[error("it would have expired already: {0}")]
    Expired(Timestamp),
}

const MARK: &str = "curfew_";
/// Bytes of the id and of the secret; each is two characters of text.
const ID: usize = 8;
const SECRET: usize = 32;
/// Random bytes that a token is made of.
pub const RANDOM: usize = ID + SECRET;

impl Token {
    /// A new token and its text, which nobody can read again.
    pub fn mint(new: NewToken, random: &[u8; RANDOM]) -> Result<(Token, String), BadToken> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if !(1..=64).contains(&new.name.len()) || !new.name.chars().all(plain) {
            return Err(BadToken::Name(new.name));
        }
        new.grant.check()?;
        if let Some(at) = new.expires_at.filter(|at| *at <= new.at) {
            return Err(BadToken::Expired(at));
        }
        let (id, secret) = random.split_at(ID);
        let id = hex(id);
        let text = format!("{MARK}{id}_{}", hex(secret));
        let digest = digest(&text);
        let NewToken { name, grant, by, at, expires_at } = new;
        Ok((Token { id, name, digest, grant, created_at: at, created_by: by, expires_at, revoked: None }, text))
    }

    /// The id in a token's text; nothing where the text is no token.
    pub fn id_in(text: &str) -> Option<&str> {
        let (id, secret) = text.strip_prefix(MARK)?.split_once('_')?;
        let is_hex = |part: &str, bytes: usize| part.len() == 2 * bytes && part.bytes().all(|b| b.is_ascii_hexdigit());
        (is_hex(id, ID) && is_hex(secret, SECRET)).then_some(id)
    }

    /// Whether this is the token's text, in a time that tells nothing about it.
    pub fn is(&self, text: &str) -> bool {
        digest(text).as_bytes().ct_eq(self.digest.as_bytes()).into()
    }

    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && self.expires_at.is_none_or(|at| now < at)
    }
}

fn digest(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// How callers prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// Curfew's own bearer tokens.
    Tokens,
    /// Nomad's workload identities.
    Workloads,
    /// Client certificates.
    Certificates,
}

/// `[workloads]`: which of Nomad's workload identities are callers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workloads {
    /// Must be among the identity's `aud`.
    pub audience: String,
    /// Must be the identity's `iss`; empty: whatever it is. Nomad writes one only where it has an `oidc_issuer`.
    pub issuer: String,
    pub rules: Vec<WorkloadRule>,
}

impl Default for Workloads {
    fn default() -> Self {
        Self { audience: "curfew".into(), issuer: String::new(), rules: vec![] }
    }
}

/// `[[workloads.rules]]`: an identity for which every claim holds has the grant; one for which several rules hold has the first's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadRule {
    /// As in `nomad_job_id = "deployer"`.
    pub claims: BTreeMap<String, String>,
    pub scopes: BTreeSet<Scope>,
    #[serde(default)]
    pub namespaces: BTreeSet<Namespace>,
}

impl WorkloadRule {
    pub fn grant(&self) -> Grant {
        Grant { scopes: self.scopes.clone(), namespaces: self.namespaces.clone() }
    }
}

impl Workloads {
    /// What these claims are granted.
    pub fn grant(&self, claims: &serde_json::Map<String, serde_json::Value>) -> Option<Grant> {
        let holds = |rule: &&WorkloadRule| {
            rule.claims.iter().all(|(name, wanted)| claims.get(name).and_then(|v| v.as_str()) == Some(wanted.as_str()))
        };
        self.rules.iter().find(holds).map(WorkloadRule::grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str, scopes: &[Scope], namespaces: &[&str]) -> NewToken {
        let namespaces = namespaces.iter().map(|n| Namespace::from(*n)).collect();
        let grant = Grant { scopes: scopes.iter().copied().collect(), namespaces };
        NewToken { name: name.into(), grant, by: "op".into(), at: Timestamp::from_millis(1000), expires_at: None }
    }

    #[test]
    fn a_token_is_known_by_its_text_alone_and_what_is_kept_does_not_hold_it() {
        let (token, text) = Token::mint(new("ci", &[Scope::Read], &[]), &[7; RANDOM]).unwrap();
        let (_, other) = Token::mint(new("ci", &[Scope::Read], &[]), &[8; RANDOM]).unwrap();
        assert_eq!(Token::id_in(&text), Some(token.id.as_str()));
        assert!(token.is(&text) && !token.is(&other) && !token.is(""));
        let kept = format!("{token:?}{}", serde_json::to_string(&token).unwrap());
        assert!(!kept.contains(&text) && !kept.contains(text.rsplit('_').next().unwrap()), "{kept}");
        let back: Token = serde_json::from_str(&serde_json::to_string(&token).unwrap()).unwrap();
        assert!(back == token && back.is(&text));
        for none in ["", "curfew_", "curfew_07_07", &text[1..], &format!("{text}0"), "curfew_é"] {
            assert_eq!(Token::id_in(none), None, "{none}");
        }
    }

    #[test]
    fn a_token_ends_when_it_expires_or_is_revoked() {
        let at = Timestamp::from_millis;
        let (mut token, _) =
            Token::mint(NewToken { expires_at: Some(at(2000)), ..new("a", &[Scope::Stop], &[]) }, &[1; RANDOM]).unwrap();
        assert!(token.is_valid(at(1999)) && !token.is_valid(at(2000)));
        token.revoked = Some(By { actor: "op".into(), reason: None, at: at(1500) });
        assert!(!token.is_valid(at(1600)));
        let late = NewToken { expires_at: Some(at(1000)), ..new("a", &[Scope::Stop], &[]) };
        assert_eq!(Token::mint(late, &[1; RANDOM]).unwrap_err(), BadToken::Expired(at(1000)));
    }

    #[test]
    fn a_grant_says_what_and_where_and_what_reaches_everywhere_is_not_for_one_namespace() {
        let grant = new("a", &[Scope::Read, Scope::Stop], &["prod"]).grant;
        assert!(grant.check().is_ok() && grant.allows(Scope::Stop) && !grant.allows(Scope::Submit));
        assert!(grant.reaches(&"prod".into()) && !grant.reaches(&"default".into()));
        assert!(Grant::everything().reaches(&"any".into()));
        let admin = new("a", &[Scope::Admin], &[]).grant;
        assert!(Scope::ALL.iter().all(|s| admin.allows(*s)));
        assert_eq!(new("a", &[Scope::Read, Scope::Drain], &["prod"]).grant.check(), Err(BadGrant::Wide(Scope::Drain)));
        assert_eq!(new("a", &[], &[]).grant.check(), Err(BadGrant::NoScope));
        for bad in ["", "a b", "a, for b", &"x".repeat(65)] {
            assert!(Token::mint(new(bad, &[Scope::Read], &[]), &[0; RANDOM]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_rule_whose_claims_all_hold_counts() {
        let rule = |claims: &[(&str, &str)], scope| WorkloadRule {
            claims: claims.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            scopes: BTreeSet::from([scope]),
            namespaces: BTreeSet::new(),
        };
        let workloads = Workloads {
            rules: vec![
                rule(&[("nomad_namespace", "prod"), ("nomad_job_id", "ci")], Scope::Submit),
                rule(&[("nomad_namespace", "prod")], Scope::Read),
            ],
            ..Workloads::default()
        };
        let scopes = |json: serde_json::Value| workloads.grant(json.as_object().unwrap()).map(|g| g.scopes);
        let (ns, job) = ("nomad_namespace", "nomad_job_id");
        assert_eq!(scopes(serde_json::json!({ns: "prod", job: "ci"})), Some(BTreeSet::from([Scope::Submit])));
        assert_eq!(scopes(serde_json::json!({ns: "prod", job: "x"})), Some(BTreeSet::from([Scope::Read])));
        assert_eq!(scopes(serde_json::json!({ns: "dev", job: "ci"})), None);
        assert_eq!(scopes(serde_json::json!({ns: 1})), None);
    }
}
