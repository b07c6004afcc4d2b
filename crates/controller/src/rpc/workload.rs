//! Nomad's workload identities: a JWT that Nomad signed for a task, checked against the keys that Nomad publishes.

use std::time::Duration;

use curfew_core::Timestamp;
use curfew_core::access::{Grant, Workloads as Rules};
use curfew_nomad::Nomad;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::problem::Refusal;

/// Nomad signs with RS256, with EdDSA before 1.7; nothing else is taken, least of all what the token itself asks for.
const ALGORITHMS: [Algorithm; 2] = [Algorithm::RS256, Algorithm::EdDSA];
/// Keys are asked for anew after this long, so that one that Nomad gave up is given up here.
const FRESH: Duration = Duration::from_secs(600);
/// A key that is not known, or a Nomad that did not answer, is asked at most this often.
const AGAIN: Duration = Duration::from_secs(10);
/// How far the clocks may be apart.
const LEEWAY: Duration = Duration::from_secs(5);

pub struct Proved {
    /// `job` or `job in NAMESPACE`, and the task.
    pub name: String,
    pub grant: Grant,
    pub until: Timestamp,
}

/// The keys as Nomad last said them.
#[derive(Default)]
pub struct Workloads {
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    said: Option<(Instant, JwkSet)>,
    /// When Nomad was last asked in vain, and why. Who comes soon after does not wait for the same again.
    failed: Option<(Instant, Refusal)>,
}

impl Workloads {
    /// `Err` inside: why it proves nothing.
    pub async fn prove(
        &self,
        text: &str,
        nomad: &Nomad,
        rules: &Rules,
        now: Timestamp,
    ) -> Result<Result<Proved, String>, Refusal> {
        let Ok(header) = decode_header(text) else { return Ok(Err("this is neither a token nor a workload identity".into())) };
        if !ALGORITHMS.contains(&header.alg) {
            return Ok(Err(format!("Nomad signs no workload identity with {:?}", header.alg)));
        }
        let Some(kid) = header.kid else { return Ok(Err("the workload identity names no key".into())) };
        let Some(key) = self.key(&kid, nomad).await? else {
            return Ok(Err(format!("Nomad at {} knows no key {kid:?}", nomad.address())));
        };
        Ok(check(text, header.alg, &key, rules, now))
    }

    async fn key(&self, kid: &str, nomad: &Nomad) -> Result<Option<DecodingKey>, Refusal> {
        let mut keys = self.keys.lock().await;
        let age = keys.said.as_ref().map(|(at, _)| at.elapsed());
        let known = keys.said.as_ref().is_some_and(|(_, set)| set.find(kid).is_some());
        let stale = age.is_none_or(|age| age >= FRESH || (!known && age >= AGAIN));
        if stale && keys.failed.as_ref().is_none_or(|(at, _)| at.elapsed() >= AGAIN) {
            match nomad.workload_keys().await {
                Ok(json) => *keys = Keys { said: Some((Instant::now(), read(json))), failed: None },
                Err(e) => {
                    tracing::warn!(error = %crate::error::chain(&e), "Nomad's signing keys could not be read");
                    keys.failed = Some((Instant::now(), e.into()));
                }
            }
        }
        match (keys.said.as_ref().and_then(|(_, set)| set.find(kid)), &keys.failed) {
            // What was said before holds while Nomad is away.
            (Some(jwk), _) => Ok(DecodingKey::from_jwk(jwk).ok()),
            (None, Some((_, why))) => Err(why.clone()),
            (None, None) => Ok(None),
        }
    }
}

/// One key that cannot be read is no reason to know none.
fn read(json: Value) -> JwkSet {
    let keys = json["keys"].as_array().cloned().unwrap_or_default();
    JwkSet { keys: keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect() }
}

fn check(text: &str, algorithm: Algorithm, key: &DecodingKey, rules: &Rules, now: Timestamp) -> Result<Proved, String> {
    let mut validation = Validation::new(algorithm);
    validation.set_audience(&[&rules.audience]);
    if !rules.issuer.is_empty() {
        validation.set_issuer(&[&rules.issuer]);
    }
    validation.set_required_spec_claims(&["exp", "aud"]);
    // By the controller's clock, below.
    (validation.validate_exp, validation.validate_nbf) = (false, false);
    let claims = decode::<Map<String, Value>>(text, key, &validation).map_err(|e| match e.kind() {
        ErrorKind::InvalidSignature => "the workload identity was not signed by this Nomad".to_owned(),
        ErrorKind::InvalidAudience => format!("the workload identity is not for \"{}\" (its aud)", rules.audience),
        ErrorKind::InvalidIssuer => format!("the workload identity is not from \"{}\" (its iss)", rules.issuer),
        ErrorKind::MissingRequiredClaim(claim) => format!("the workload identity has no {claim}"),
        _ => "the workload identity cannot be read".to_owned(),
    })?;
    let claims = claims.claims;
    let instant = |name: &str| claims.get(name).and_then(Value::as_i64).map(|s| Timestamp::from_millis(s.saturating_mul(1000)));
    let until = instant("exp").ok_or("the workload identity has no exp")?;
    if until + LEEWAY <= now {
        return Err(format!("the workload identity expired at {until}"));
    }
    if let Some(from) = instant("nbf").filter(|from| now + LEEWAY < *from) {
        return Err(format!("the workload identity begins at {from}"));
    }
    let named = |claim: &str| claims.get(claim).and_then(Value::as_str);
    let job = named("nomad_job_id").unwrap_or("?");
    let name = match (named("nomad_namespace"), named("nomad_task")) {
        (None | Some("default"), None) => job.to_owned(),
        (None | Some("default"), Some(task)) => format!("{job}/{task}"),
        (Some(ns), None) => format!("{job} in {ns}"),
        (Some(ns), Some(task)) => format!("{job}/{task} in {ns}"),
    };
    match rules.grant(&claims) {
        Some(grant) => Ok(Proved { name, grant, until }),
        None => Err(format!("no rule of [workloads] is for {name}")),
    }
}

#[cfg(test)]
mod tests;
