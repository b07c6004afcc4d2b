//! The Rust client of Curfew's RPC.
//!
//! ```no_run
//! # async fn example() -> Result<(), curfew_client::Error> {
//! use curfew_client::{Client, StopRequest};
//! let curfew = Client::new("http://127.0.0.1:4690")?;
//! let op = curfew.stop("game-7", &StopRequest::default(), None).await?;
//! let op = curfew.wait(op.id, std::time::Duration::from_secs(60)).await?;
//! println!("{}", op.state.as_str());
//! # Ok(()) }
//! ```
//!
//! A request that changes something carries an idempotency key, made anew unless the caller gives one, and is repeated under
//! the same key while the controller cannot be reached or restarts: it is done once.

use std::time::Duration;

use curfew_core::OpId;
pub use curfew_core::api::{
    AllocPlan, DrainPlan, DrainRequest, ExtendRequest, Gets, HeldView, InterveneRequest, KindView, NodePlan, OperationView,
    PauseKindRequest, PlanView, Problem, QueueCountView, QueueView, RevertRequest, SpecText, StatusView, SteerRequest,
    StopRequest, SubmitRequest, UndrainRequest, Who,
};
use curfew_core::audit::AuditRow;
pub use curfew_core::drain::{MaxParallel, Selection, Strategy};
pub use curfew_core::operation::{Kind, Target};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("CURFEW_ADDR \"{addr}\" is not an address: {why}; write it as http://127.0.0.1:4690")]
    BadAddress { addr: String, why: String },
    /// Nobody listens there, or the name does not resolve.
    #[error("no controller answers at {addr}; start one with `curfew serve`, or name the right one with --addr or CURFEW_ADDR")]
    Unreachable {
        addr: String,
        #[source]
        source: reqwest::Error,
    },
    #[error(
        "the controller at {addr} did not answer in time; what was asked may have been done: look, or ask again with the same idempotency key"
    )]
    NoAnswer {
        addr: String,
        #[source]
        source: reqwest::Error,
    },
    /// Something else than a controller listens there.
    #[error("{addr} answers, but not as a Curfew controller does ({what}); check --addr or CURFEW_ADDR")]
    NotCurfew { addr: String, what: String },
    /// The controller said no. The sentence is meant for people.
    #[error("{}", .0.detail)]
    Refused(Problem),
}

impl Error {
    /// Whether asking again may help without anything being changed.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::NoAnswer { .. } => true,
            Error::Refused(p) => p.status == 503,
            Error::BadAddress { .. } | Error::NotCurfew { .. } => false,
        }
    }
}

/// Everything but what a path segment may hold as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A request that changes something is tried this often while the controller cannot be reached.
const TRIES: u32 = 4;

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    addr: String,
}

impl Client {
    /// `addr` as in `CURFEW_ADDR`: `http://127.0.0.1:4690`, or `127.0.0.1:4690`.
    pub fn new(addr: &str) -> Result<Self, Error> {
        let bad = |why: String| Error::BadAddress { addr: addr.to_owned(), why };
        let full = if addr.contains("://") { addr.to_owned() } else { format!("http://{addr}") };
        let url = reqwest::Url::parse(&full).map_err(|e| bad(e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(bad("it needs a scheme and a host".into()));
        }
        // Answers twice: another part of the process may have installed the same one before.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).no_proxy();
        let http = http.build().map_err(|e| bad(e.to_string()))?;
        Ok(Self { http, addr: full.trim_end_matches('/').to_owned() })
    }

    pub fn addr(&self) -> &str {
        &self.addr
    }

    pub async fn submit(&self, request: &SubmitRequest, idempotency_key: Option<&str>) -> Result<OperationView, Error> {
        self.change("/v1/jobs", request, idempotency_key).await
    }

    pub async fn plan(&self, request: &SubmitRequest) -> Result<PlanView, Error> {
        self.call(Method::POST, "/v1/jobs/plan", Some(&to_value(request)), None, ANSWER).await
    }

    pub async fn stop(&self, job: &str, request: &StopRequest, idempotency_key: Option<&str>) -> Result<OperationView, Error> {
        self.change(&format!("/v1/jobs/{}/stop", utf8_percent_encode(job, SEGMENT)), request, idempotency_key).await
    }

    /// Drains the nodes of a selection; `dry_run` is for [`Client::drain_plan`].
    pub async fn drain(&self, request: &DrainRequest, idempotency_key: Option<&str>) -> Result<OperationView, Error> {
        self.change("/v1/nodes/drain", &DrainRequest { dry_run: false, ..request.clone() }, idempotency_key).await
    }

    /// What that drain would do.
    pub async fn drain_plan(&self, request: &DrainRequest) -> Result<DrainPlan, Error> {
        let request = DrainRequest { dry_run: true, ..request.clone() };
        self.call(Method::POST, "/v1/nodes/drain", Some(&to_value(&request)), None, CHANGE).await
    }

    pub async fn undrain(&self, request: &UndrainRequest, idempotency_key: Option<&str>) -> Result<OperationView, Error> {
        self.change("/v1/nodes/undrain", request, idempotency_key).await
    }

    /// Promotes the canaries of the deployment that runs.
    pub async fn promote(
        &self,
        job: &str,
        request: &SteerRequest,
        idempotency_key: Option<&str>,
    ) -> Result<OperationView, Error> {
        self.change(&format!("/v1/jobs/{}/promote", utf8_percent_encode(job, SEGMENT)), request, idempotency_key).await
    }

    /// Fails the deployment that runs; Nomad goes back where the job says `auto_revert`.
    pub async fn fail(&self, job: &str, request: &SteerRequest, idempotency_key: Option<&str>) -> Result<OperationView, Error> {
        self.change(&format!("/v1/jobs/{}/fail", utf8_percent_encode(job, SEGMENT)), request, idempotency_key).await
    }

    /// Registers an older version again: a rollout.
    pub async fn revert(
        &self,
        job: &str,
        request: &RevertRequest,
        idempotency_key: Option<&str>,
    ) -> Result<OperationView, Error> {
        self.change(&format!("/v1/jobs/{}/revert", utf8_percent_encode(job, SEGMENT)), request, idempotency_key).await
    }

    pub async fn operation(&self, id: OpId) -> Result<OperationView, Error> {
        self.call(Method::GET, &format!("/v1/operations/{id}"), None, None, ANSWER).await
    }

    /// The operation when it has finished, or as it is after `wait` (at most five minutes).
    pub async fn wait(&self, id: OpId, wait: Duration) -> Result<OperationView, Error> {
        let path = format!("/v1/operations/{id}?wait={}ms", wait.as_millis());
        self.call(Method::GET, &path, None, None, wait + ANSWER).await
    }

    /// Newest first. `query` as the RPC has it: `kind`, `state`, `job`, `namespace`, `parent`, `before`, `limit`.
    pub async fn operations(&self, query: &[(&str, String)]) -> Result<Vec<OperationView>, Error> {
        self.call(Method::GET, &with_query("/v1/operations", query), None, None, ANSWER).await
    }

    /// Oldest first. `query` as the RPC has it: `operation`, `since`, `after`, `limit`.
    pub async fn audit(&self, query: &[(&str, String)]) -> Result<Vec<AuditRow>, Error> {
        self.call(Method::GET, &with_query("/v1/audit", query), None, None, ANSWER).await
    }

    /// Cancels it: at once when it never began, else its next step undoes what can be undone and ends it.
    pub async fn cancel(&self, id: OpId, who: Who) -> Result<OperationView, Error> {
        self.intervene(id, "cancel", who).await
    }

    /// Moves its deadline, by so much or to an instant.
    pub async fn extend(&self, id: OpId, request: &ExtendRequest) -> Result<OperationView, Error> {
        self.act(&format!("/v1/operations/{id}/extend"), request).await
    }

    /// Its tasks get SIGKILL now.
    pub async fn kill_now(&self, id: OpId, who: Who) -> Result<OperationView, Error> {
        self.intervene(id, "kill-now", who).await
    }

    /// Whoever works on it loses it; it is due now.
    pub async fn release(&self, id: OpId, who: Who) -> Result<OperationView, Error> {
        self.intervene(id, "release", who).await
    }

    /// One that failed or was cancelled goes back to the queue.
    pub async fn retry(&self, id: OpId, who: Who) -> Result<OperationView, Error> {
        self.intervene(id, "retry", who).await
    }

    pub async fn pause(&self, id: OpId, who: Who) -> Result<OperationView, Error> {
        self.intervene(id, "pause", who).await
    }

    pub async fn resume(&self, id: OpId, who: Who) -> Result<OperationView, Error> {
        self.intervene(id, "resume", who).await
    }

    async fn intervene(&self, id: OpId, what: &str, who: Who) -> Result<OperationView, Error> {
        self.act(&format!("/v1/operations/{id}/{what}"), &InterveneRequest { who }).await
    }

    pub async fn kinds(&self) -> Result<Vec<KindView>, Error> {
        self.call(Method::GET, "/v1/kinds", None, None, ANSWER).await
    }

    /// Nothing of the kind is begun by any controller until it is resumed. `kill` needs `yes_really`.
    pub async fn pause_kind(&self, kind: Kind, request: &PauseKindRequest) -> Result<KindView, Error> {
        self.act(&format!("/v1/kinds/{}/pause", kind.as_str()), request).await
    }

    pub async fn resume_kind(&self, kind: Kind, who: Who) -> Result<KindView, Error> {
        self.act(&format!("/v1/kinds/{}/resume", kind.as_str()), &InterveneRequest { who }).await
    }

    /// What waits and what runs.
    pub async fn queue(&self) -> Result<QueueView, Error> {
        self.call(Method::GET, "/v1/queue", None, None, ANSWER).await
    }

    pub async fn status(&self) -> Result<StatusView, Error> {
        self.call(Method::GET, "/v1/status", None, None, ANSWER).await
    }

    async fn change(&self, path: &str, body: &impl serde::Serialize, key: Option<&str>) -> Result<OperationView, Error> {
        let key = key.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
        let body = to_value(body);
        let mut wait = Duration::from_millis(200);
        let mut tried = 1;
        loop {
            match self.call(Method::POST, path, Some(&body), Some(&key), CHANGE).await {
                // Refused at once means nobody is there: one more try for a controller that restarts, then say so.
                Err(e) if e.is_transient() && tried < TRIES => {
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                    tried += 1;
                }
                done => return done,
            }
        }
    }

    /// What a person does has no idempotency key: it is asked once, and again only while it certainly was not heard.
    async fn act<T: DeserializeOwned>(&self, path: &str, body: &impl serde::Serialize) -> Result<T, Error> {
        let body = to_value(body);
        let mut tried = 1;
        loop {
            match self.call(Method::POST, path, Some(&body), None, ANSWER).await {
                Err(Error::Unreachable { .. }) if tried < TRIES => {
                    tokio::time::sleep(Duration::from_millis(100 << tried)).await;
                    tried += 1;
                }
                done => return done,
            }
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
        timeout: Duration,
    ) -> Result<T, Error> {
        let mut request = self.http.request(method, format!("{}{path}", self.addr)).timeout(timeout);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let failed = |source: reqwest::Error| {
            let addr = self.addr.clone();
            if source.is_connect() { Error::Unreachable { addr, source } } else { Error::NoAnswer { addr, source } }
        };
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(failed)?;
        let not_curfew = |what: String| Error::NotCurfew { addr: self.addr.clone(), what };
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|e| not_curfew(e.to_string()));
        }
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(p) if p.status == status.as_u16() => Err(Error::Refused(p)),
            _ => Err(not_curfew(format!("status {status}"))),
        }
    }
}

const ANSWER: Duration = Duration::from_secs(15);
/// A submit asks Nomad (parse, read, nodes) before it is written down.
const CHANGE: Duration = Duration::from_secs(60);

fn to_value(v: &impl serde::Serialize) -> Value {
    serde_json::to_value(v).unwrap_or(Value::Null)
}

fn with_query(path: &str, query: &[(&str, String)]) -> String {
    let pairs: Vec<String> = query.iter().map(|(k, v)| format!("{k}={}", utf8_percent_encode(v, SEGMENT))).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_scheme_is_taken_and_nonsense_is_refused_with_the_way_out() {
        assert_eq!(Client::new("127.0.0.1:4690").unwrap().addr(), "http://127.0.0.1:4690");
        for bad in ["", "http://", "ftp://x", "http://a b"] {
            let e = Client::new(bad).err().unwrap().to_string();
            assert!(e.contains("http://127.0.0.1:4690"), "{e}");
        }
    }

    #[tokio::test]
    async fn nobody_there_and_somebody_else_there_are_told_apart() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let app = axum::Router::new().fallback(|| async { "hello" });
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let e = Client::new(&addr.to_string()).unwrap().status().await.unwrap_err();
        assert!(matches!(e, Error::NotCurfew { .. }), "{e}");
        server.abort();
        let _ = server.await;
        let e = Client::new(&addr.to_string()).unwrap().status().await.unwrap_err();
        assert!(matches!(e, Error::Unreachable { .. }), "{e}");
        assert!(e.to_string().contains("curfew serve"), "{e}");
    }
}
