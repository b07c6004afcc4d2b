//! Who calls, and what they may: the proof of who they are, the scope that each route needs, and what a caller of one namespace sees.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use curfew_core::access::{Grant, Proof, Scope, Token};
use curfew_core::api::Who;
use curfew_core::operation::{By, Kind, Operation};
use curfew_core::{Namespace, Timestamp};

use super::Rpc;
use super::limits::Why;
use super::problem::Refusal;

/// The names in the certificate that the connection was made with.
#[derive(Clone, Debug, Default)]
pub struct CertificateNames(pub Arc<[String]>);

/// Whoever asks, and what they may.
#[derive(Clone, Debug)]
pub struct Caller {
    /// `None`: nobody was asked who they are.
    name: Option<String>,
    grant: Grant,
    /// What proved them holds no longer.
    until: Option<Timestamp>,
    peer: IpAddr,
}

impl FromRequestParts<Rpc> for Caller {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, _: &Rpc) -> Result<Self, Refusal> {
        // The guard put it there. A route without it has none, and lets nobody in.
        parts.extensions.get::<Caller>().cloned().ok_or_else(|| Refusal::unauthenticated("nobody looked who you are".into()))
    }
}

/// What people say about themselves beside what was proved.
const LONGEST_WORD: usize = 200;

impl Caller {
    /// Whom the trail names. What the body says comes after what was proved.
    pub fn actor(&self, who: &Who) -> String {
        let said = who.actor.as_deref().map(str::trim).filter(|a| !a.is_empty()).map(|a| {
            let plain = a.chars().map(|c| if c.is_control() { ' ' } else { c });
            plain.take(LONGEST_WORD).collect::<String>()
        });
        match (&self.name, said) {
            (None, Some(said)) => said,
            (None, None) => format!("rpc from {}", self.peer),
            (Some(name), None) => name.clone(),
            (Some(name), Some(said)) => format!("{name}, for {said}"),
        }
    }

    pub fn by(&self, who: Who, at: Timestamp) -> By {
        By { actor: self.actor(&who), reason: who.reason.filter(|r| !r.is_empty()), at }
    }

    pub fn needs(&self, scope: Scope) -> Result<(), Refusal> {
        if self.grant.allows(scope) {
            return Ok(());
        }
        let has: Vec<&str> = self.grant.scopes.iter().map(|s| s.as_str()).collect();
        Err(Refusal::forbidden(format!("this needs the scope {scope}; {} has {}", self.shown(), has.join(", "))))
    }

    pub fn reaches(&self, namespace: &Namespace) -> Result<(), Refusal> {
        match self.grant.reaches(namespace) {
            true => Ok(()),
            false => Err(Refusal::forbidden(format!("{} is not for namespace \"{namespace}\"", self.shown()))),
        }
    }

    /// For what is about the cluster, not about a job.
    pub fn everywhere(&self) -> Result<(), Refusal> {
        match self.grant.is_everywhere() {
            true => Ok(()),
            false => Err(Refusal::forbidden(format!("this is about every namespace; {} is for some only", self.shown()))),
        }
    }

    pub fn is_everywhere(&self) -> bool {
        self.grant.is_everywhere()
    }

    pub fn sees_namespace(&self, namespace: &Namespace) -> bool {
        self.grant.reaches(namespace)
    }

    /// Those that it reaches, by name; none when that is every one.
    pub fn namespaces(&self) -> Vec<Namespace> {
        self.grant.namespaces.iter().cloned().collect()
    }

    /// An operation on a job elsewhere does not exist for a caller of some namespaces, nor does one on nodes.
    pub fn sees(&self, op: &Operation) -> bool {
        self.grant.is_everywhere() || op.request.target().job().is_some_and(|key| self.grant.reaches(&key.namespace))
    }

    /// Steps into this operation.
    pub fn may_touch(&self, kind: Kind) -> Result<(), Refusal> {
        self.needs(Scope::of(kind))
    }

    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|at| at <= now)
    }

    fn shown(&self) -> &str {
        self.name.as_deref().unwrap_or("this caller")
    }

    /// Whose share of requests this is.
    pub fn share(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.peer.to_string())
    }
}

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: it says nothing that anybody may not know.
    Nothing,
    Scope(Scope),
    /// The scope of the operation's kind: the handler asks.
    OfKind,
}

/// The one table. What it does not name is for `admin`.
pub fn need(method: &str, path: &str) -> Need {
    match (method, path) {
        (_, "/healthz" | "/readyz" | "/openapi.json") => Need::Nothing,
        ("GET", "/v1/tokens") => Need::Scope(Scope::Admin),
        ("GET" | "HEAD", _) => Need::Scope(Scope::Read),
        ("POST", "/v1/jobs" | "/v1/jobs/plan" | "/v1/jobs/{job}/promote" | "/v1/jobs/{job}/fail" | "/v1/jobs/{job}/revert") => {
            Need::Scope(Scope::Submit)
        }
        ("POST", "/v1/jobs/{job}/stop") => Need::Scope(Scope::Stop),
        ("POST", "/v1/nodes/drain" | "/v1/nodes/undrain") => Need::Scope(Scope::Drain),
        ("POST", "/v1/operations/{id}/{intervention}" | "/v1/operations/{id}/extend") => Need::OfKind,
        ("POST", "/v1/gc") => Need::Scope(Scope::Gc),
        _ => Need::Scope(Scope::Admin),
    }
}

/// Before every route: who is it, may they, and not too often.
pub async fn guard(State(rpc): State<Rpc>, mut request: Request, next: Next) -> Response {
    // What no route matched is answered the same to everybody.
    let Some(path) = request.extensions().get::<MatchedPath>().cloned() else { return next.run(request).await };
    match rpc.admit(request.method(), path.as_str(), request.headers(), request.extensions()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

impl Rpc {
    pub async fn admit(&self, method: &Method, path: &str, headers: &HeaderMap, with: &Extensions) -> Result<Caller, Refusal> {
        let peer = with.get::<ConnectInfo<SocketAddr>>().map_or(IpAddr::from([0, 0, 0, 0]), |c| c.0.ip());
        let certificate = with.get::<CertificateNames>().cloned().unwrap_or_default();
        let caller = match self.caller(peer, headers, &certificate).await {
            Ok(caller) => caller,
            Err(refusal) => {
                if refusal.is_unauthenticated() {
                    self.limits.refused(Why::Unauthenticated);
                    tracing::warn!(%peer, %method, path, why = refusal.detail(), "a caller was not let in");
                }
                return Err(refusal);
            }
        };
        if let Need::Scope(scope) = need(method.as_str(), path) {
            caller.needs(scope).inspect_err(|refusal| {
                self.limits.refused(Why::Forbidden);
                tracing::warn!(%peer, %method, path, why = refusal.detail(), "a caller was refused");
            })?;
        }
        if !self.limits.request(caller.share()) {
            self.limits.refused(Why::Rate);
            return Err(Refusal::too_many(format!("more than {} requests a second", self.config.rpc_rate)));
        }
        Ok(caller)
    }

    async fn caller(&self, peer: IpAddr, headers: &HeaderMap, certificate: &CertificateNames) -> Result<Caller, Refusal> {
        let proofs = &self.config.auth;
        let known = |name: String, grant, until| Caller { name: Some(name), grant, until, peer };
        if proofs.is_empty() {
            return Ok(Caller { name: None, grant: Grant::everything(), until: None, peer });
        }
        if !self.limits.may_fail(peer) {
            return Err(Refusal::too_many("too many wrong credentials from this address; wait a few seconds".into()));
        }
        let failed = |why: &str| {
            self.limits.failed(peer);
            Refusal::unauthenticated(why.to_owned())
        };
        let Some(text) = bearer(headers).map_err(failed)? else {
            if proofs.contains(&Proof::Certificates) {
                let found = certificate.0.iter().find_map(|name| Some((name, self.config.certificates.get(name)?)));
                if let Some((name, grant)) = found {
                    return Ok(known(format!("certificate {name}"), grant.clone(), None));
                }
                if !certificate.0.is_empty() {
                    return Err(failed(&format!("no [certificates] of the configuration is for {}", certificate.0.join(", "))));
                }
            }
            return Err(failed("say who you are: Authorization: Bearer TOKEN (CURFEW_TOKEN)"));
        };
        let now = self.clock.now();
        if let Some(id) = Token::id_in(text).filter(|_| proofs.contains(&Proof::Tokens)) {
            // Whether there is one by that id is not told to somebody who does not have it.
            let token = self.store.token(id).await?.filter(|t| t.is(text));
            let token = token.ok_or_else(|| failed("this token is not known"))?;
            if !token.is_valid(now) {
                let how = if token.revoked.is_some() { "was revoked" } else { "has expired" };
                return Err(failed(&format!("the token {} ({}) {how}; ask for another one", token.name, token.id)));
            }
            return Ok(known(format!("token {}", token.name), token.grant, token.expires_at));
        }
        if proofs.contains(&Proof::Workloads) {
            let proved = self.workloads.prove(text, &self.nomad, &self.config.workloads, now).await?;
            let proved = proved.map_err(|why| failed(&why))?;
            return Ok(known(format!("workload {}", proved.name), proved.grant, Some(proved.until)));
        }
        Err(failed("this is not one of Curfew's tokens"))
    }
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let text = value.to_str().ok().and_then(|v| v.split_once(' ')).filter(|(how, _)| how.eq_ignore_ascii_case("bearer"));
    text.map(|(_, token)| Some(token.trim())).ok_or("the Authorization header is not \"Bearer TOKEN\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: Option<&str>) -> Caller {
        Caller { name: name.map(str::to_owned), grant: Grant::everything(), until: None, peer: IpAddr::from([127, 0, 0, 1]) }
    }

    #[test]
    fn what_was_proved_comes_before_what_was_said() {
        let who = |actor: &str| Who { actor: Some(actor.into()), reason: None };
        assert_eq!(caller(Some("token ci")).actor(&who("alice")), "token ci, for alice");
        assert_eq!(caller(Some("token ci")).actor(&who(" ")), "token ci");
        assert_eq!(caller(None).actor(&who("alice\nroot")), "alice root");
        assert_eq!(caller(None).actor(&Who::default()), "rpc from 127.0.0.1");
        assert!(caller(None).actor(&who(&"x".repeat(5000))).len() <= LONGEST_WORD);
    }

    #[test]
    fn a_header_that_is_no_bearer_is_refused() {
        let of = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        assert_eq!(bearer(&HeaderMap::new()), Ok(None));
        assert_eq!(bearer(&of("bearer abc")), Ok(Some("abc")));
        assert!(bearer(&of("Basic abc")).is_err() && bearer(&of("abc")).is_err());
    }

    #[test]
    fn reading_changes_nothing_and_what_nobody_thought_of_is_for_admins() {
        assert_eq!(need("GET", "/v1/operations"), Need::Scope(Scope::Read));
        assert_eq!(need("POST", "/v1/whatever/comes"), Need::Scope(Scope::Admin));
        assert_eq!(need("POST", "/v1/kinds/{kind}/pause"), Need::Scope(Scope::Admin));
        assert_eq!(need("GET", "/v1/tokens"), Need::Scope(Scope::Admin));
    }
}
