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
//! Several addresses in one (`http://a:4690,http://b:4690`) are controllers on one database: when the one that is used cannot be reached
//! or stops, the next one is asked.
//!
//! A request that changes something carries an idempotency key, made anew unless the caller gives one, and is repeated under
//! the same key while the controller cannot be reached or restarts: it is done once.

mod events;
mod remote;

use std::path::PathBuf;
use std::time::Duration;

use curfew_core::OpId;
pub use curfew_core::access::Scope;
pub use curfew_core::api::{
    AllocPlan, AllocView, ClocksView, CreatedToken, DrainPlan, DrainRequest, ExtendRequest, GcRequest, Gets, HeldView,
    InterveneRequest, JobRow, JobStatusView, KindView, NodePlan, NodeView, OperationView, PauseKindRequest, PlanView, Problem,
    QueueCountView, QueueView, RevertRequest, SpecText, StatusView, SteerRequest, StopRequest, SubmitRequest, TaskView,
    TokenRequest, TokenView, UndrainRequest, VersionView, Who,
};
use curfew_core::audit::AuditRow;
pub use curfew_core::doctor::Report as DoctorReport;
pub use curfew_core::drain::{MaxParallel, Selection, Strategy};
pub use curfew_core::operation::{Kind, Target};
pub use events::{Event, Events};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
pub use remote::Options;
use remote::Remote;
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
    #[error("the controller at {addr} says nothing")]
    Silent { addr: String },
    #[error("{} cannot be read", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("TLS: {0}")]
    Tls(String),
    #[error("the token holds a character that cannot be sent")]
    BadToken,
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
            Error::Unreachable { .. } | Error::NoAnswer { .. } | Error::Silent { .. } => true,
            Error::Refused(p) => matches!(p.status, 429 | 503),
            _ => false,
        }
    }

    fn of(addr: String, source: reqwest::Error) -> Self {
        // Without the URL: the sentence has the address.
        let source = source.without_url();
        if source.is_connect() { Error::Unreachable { addr, source } } else { Error::NoAnswer { addr, source } }
    }
}

/// Everything but what a path segment may hold as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A request that changes something is tried this often while the controller cannot be reached.
const TRIES: u32 = 4;

#[derive(Clone)]
pub struct Client {
    remote: Remote,
}

impl Client {
    /// `addr` as in `CURFEW_ADDR`: `http://127.0.0.1:4690`, or `127.0.0.1:4690`; several with commas between them.
    pub fn new(addr: &str) -> Result<Self, Error> {
        Self::with(Options { addr: addr.to_owned(), ..Options::default() })
    }

    /// With credentials, or a CA of one's own.
    pub fn with(options: Options) -> Result<Self, Error> {
        Ok(Self { remote: Remote::new(options)? })
    }

    /// The controller that is asked now.
    pub fn addr(&self) -> &str {
        self.remote.addr()
    }

    pub(crate) fn remote(&self) -> &Remote {
        &self.remote
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

    /// The newest, at most `most`. `query` as the RPC has it: `kind`, `state`, `job`, `namespace`, `parent`.
    pub async fn operations(&self, query: &[(&str, String)], most: usize) -> Result<Vec<OperationView>, Error> {
        self.pages("/v1/operations", query, most, "before", |op: &OperationView| op.id.to_string()).await
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

    /// The operation when it has finished, however long that takes and whatever controllers come and go; `None` when `within` is over.
    pub async fn finished(&self, id: OpId, within: Option<Duration>) -> Result<Option<OperationView>, Error> {
        const LOOK: Duration = Duration::from_secs(30);
        let until = within.map(|d| tokio::time::Instant::now() + d);
        loop {
            let left = until.map(|at| at.saturating_duration_since(tokio::time::Instant::now()));
            match self.wait(id, left.unwrap_or(LOOK).min(LOOK)).await {
                Ok(op) if op.state.is_finished() => return Ok(Some(op)),
                Ok(_) => {}
                // It is written down; somebody will carry it out.
                Err(e) if e.is_transient() => tokio::time::sleep(Duration::from_millis(250)).await,
                Err(e) => return Err(e),
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
        }
    }

    /// What happens to it from the row after `after` of its trail on (zero: from its beginning).
    pub fn events(&self, id: OpId, after: u64) -> Events {
        Events::new(self.clone(), id, after)
    }

    /// Jobs as Nomad lists them, by namespace and id, at most `most`. `query` as the RPC has it: `namespace`, `prefix`, `managed`.
    pub async fn jobs(&self, query: &[(&str, String)], most: usize) -> Result<Vec<JobRow>, Error> {
        let after = |job: &JobRow| format!("{}/{}", job.key.namespace, job.key.job);
        self.pages("/v1/jobs", query, most, "after", after).await
    }

    /// One job: its allocations, the clocks of its tasks, and what is under way for it.
    pub async fn job(&self, job: &str, namespace: Option<&str>) -> Result<JobStatusView, Error> {
        let path = format!("/v1/jobs/{}", utf8_percent_encode(job, SEGMENT));
        let query: Vec<(&str, String)> = namespace.map(|n| ("namespace", n.to_owned())).into_iter().collect();
        self.call(Method::GET, &with_query(&path, &query), None, None, CHANGE).await
    }

    /// The versions of a job that Nomad keeps, newest first.
    pub async fn job_history(&self, job: &str, namespace: Option<&str>) -> Result<Vec<VersionView>, Error> {
        let path = format!("/v1/jobs/{}/history", utf8_percent_encode(job, SEGMENT));
        let query: Vec<(&str, String)> = namespace.map(|n| ("namespace", n.to_owned())).into_iter().collect();
        self.call(Method::GET, &with_query(&path, &query), None, None, ANSWER).await
    }

    /// Every node with the state of its drain.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, Error> {
        self.pages("/v1/nodes", &[], usize::MAX, "after", |node: &NodeView| format!("{}/{}", node.name, node.id)).await
    }

    /// Page after page of a list. `cursor` is what its next page is asked for by, `after` what that is of a page's last row.
    async fn pages<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        most: usize,
        cursor: &str,
        after: impl Fn(&T) -> String,
    ) -> Result<Vec<T>, Error> {
        const PAGE: usize = 1000;
        let mut all: Vec<T> = Vec::new();
        while all.len() < most {
            let limit = PAGE.min(most - all.len());
            let mut query = query.to_vec();
            query.push(("limit", limit.to_string()));
            query.extend(all.last().map(|row| (cursor, after(row))));
            let page: Vec<T> = self.call(Method::GET, &with_query(path, &query), None, None, CHANGE).await?;
            let over = page.len() < limit;
            all.extend(page);
            if over {
                break;
            }
        }
        Ok(all)
    }

    /// The kill clocks that are armed. `query` as the RPC has it: `job`, `namespace`, `limit`.
    pub async fn clocks(&self, query: &[(&str, String)]) -> Result<ClocksView, Error> {
        self.call(Method::GET, &with_query("/v1/clocks", query), None, None, ANSWER).await
    }

    /// Whether Curfew can keep its promises, as the controller sees it.
    pub async fn doctor(&self) -> Result<DoctorReport, Error> {
        self.call(Method::GET, "/v1/doctor", None, None, PASS).await
    }

    /// A pass of the gc beside the controller, or what it would do; its report.
    pub async fn gc(&self, request: &GcRequest) -> Result<Value, Error> {
        self.call(Method::POST, "/v1/gc", Some(&to_value(request)), None, PASS).await
    }

    pub async fn tokens(&self) -> Result<Vec<TokenView>, Error> {
        self.call(Method::GET, "/v1/tokens", None, None, ANSWER).await
    }

    /// Its text is in the answer and nowhere else.
    pub async fn create_token(&self, request: &TokenRequest) -> Result<CreatedToken, Error> {
        self.act("/v1/tokens", request).await
    }

    pub async fn revoke_token(&self, id: &str, who: Who) -> Result<TokenView, Error> {
        self.act(&format!("/v1/tokens/{}/revoke", utf8_percent_encode(id, SEGMENT)), &InterveneRequest { who }).await
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

    /// Once; where nothing was heard of it, at each of the other addresses as well.
    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
        timeout: Duration,
    ) -> Result<T, Error> {
        let mut left = self.remote.count();
        loop {
            let addr = self.remote.addr().to_owned();
            let done = self.call_at(&addr, method.clone(), path, body, key, timeout).await;
            left -= 1;
            let elsewhere = match &done {
                // What a reader did not hear, or what has a key, can be asked of another one.
                Err(Error::NoAnswer { .. }) => method == Method::GET || key.is_some(),
                Err(Error::Unreachable { .. }) => true,
                Err(Error::Refused(p)) => matches!(p.kind.rsplit(':').next(), Some("stopping" | "starting")),
                _ => false,
            };
            if elsewhere {
                self.remote.leave(&addr);
            }
            if !elsewhere || left == 0 {
                return done;
            }
        }
    }

    async fn call_at<T: DeserializeOwned>(
        &self,
        addr: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
        timeout: Duration,
    ) -> Result<T, Error> {
        let mut request = self.remote.request(addr, method, path)?.timeout(timeout);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let failed = |source: reqwest::Error| Error::of(addr.to_owned(), source);
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(failed)?;
        let not_curfew = |what: String| Error::NotCurfew { addr: addr.to_owned(), what };
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|e| not_curfew(e.to_string()));
        }
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(p) if p.status == status.as_u16() => Err(Error::Refused(p)),
            _ => Err(not_curfew(format!("status {status}"))),
        }
    }
}

/// It asks every node, or looks at everything there is.
const PASS: Duration = Duration::from_secs(330);
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
