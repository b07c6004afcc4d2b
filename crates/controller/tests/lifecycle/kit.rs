//! A controller on a Nomad that is a function, with a database in a file that outlives it.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use curfew_controller::{Controller, Metrics, Opening, Parts};
use curfew_core::audit::Action;
use curfew_core::config::Config;
use curfew_core::operation::{Demand, Operation, Request};
use curfew_core::{Clock, JobKey, OpId, Timestamp};
use curfew_nomad::{Body, Nomad, NomadConfig, TransportError};
use curfew_store::{AuditFilter, NewOperation, SqliteStore, Store};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The Unix time at which every test begins.
pub const START: Duration = Duration::from_secs(1_800_000_000);

/// Wall time that goes with tokio's, paused or not.
pub struct Tokio(Instant);

impl Clock for Tokio {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(START.as_millis().try_into().unwrap()) + self.0.elapsed()
    }
}

/// What Nomad does with the calls that a test is about; the rest is answered as by an empty cluster.
pub type Script = Box<dyn Fn(&str) -> Option<BoxFuture<'static, String>> + Send + Sync>;

pub const DELETED: &str = r#"{"EvalID":"","EvalCreateIndex":0,"JobModifyIndex":12}"#;

pub struct Lab {
    pub dir: TempDir,
    pub clock: Arc<Tokio>,
    pub config: Config,
    pub nomad: Nomad,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Lab {
    pub fn new(script: Script) -> Self {
        // A call is never given up by itself here: what ends it is the end of the controller.
        Self::with_timeout(Duration::from_secs(3600), script)
    }

    pub fn with_timeout(timeout: Duration, script: Script) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let transport = move |request: http::Request<Bytes>| {
            let line = format!("{} {}", request.method(), request.uri().path());
            seen.lock().unwrap().push(line.clone());
            let answer = script(&line);
            async move {
                let body: Body = match answer {
                    Some(text) => stream::iter([Ok(Bytes::from(text.await))]).boxed(),
                    None if line.ends_with("/v1/event/stream") => {
                        stream::iter([Ok(Bytes::from_static(b"{}\n"))]).chain(stream::pending()).boxed()
                    }
                    None => stream::iter([Ok(Bytes::from_static(b"[]"))]).boxed(),
                };
                Ok::<_, TransportError>(http::Response::builder().header("X-Nomad-Index", "9").body(body).unwrap())
            }
        };
        let config = NomadConfig { addr: "http://nomad.test:4646".into(), timeout, ..NomadConfig::default() };
        Self { asked, ..Self::on(Nomad::with_transport(config, transport).unwrap()) }
    }

    pub fn on(nomad: Nomad) -> Self {
        let dir = TempDir::with_prefix("curfew-lifecycle-").unwrap();
        Self { dir, clock: Arc::new(Tokio(Instant::now())), config: Config::default(), nomad, asked: Arc::default() }
    }

    pub fn store(&self) -> Arc<SqliteStore> {
        SqliteStore::open(&self.dir.path().join("curfew.db")).unwrap()
    }

    pub fn parts(&self, store: Opening, listener: Option<TcpListener>) -> Parts {
        let (nomad, clock, config) = (self.nomad.clone(), self.clock.clone(), self.config.clone());
        let (random, holder, metrics) = (curfew_controller::random(), "test:1".into(), Metrics::new());
        Parts { nomad, store, clock, config, random, holder, listener, metrics, gc: None }
    }

    pub fn start(&self, store: Arc<dyn Store>) -> Controller {
        curfew_controller::start(self.parts(std::future::ready(Ok(store)).boxed(), None)).unwrap()
    }

    pub async fn ask(&self, store: &dyn Store, job: &str) -> OpId {
        stop(store, job, self.clock.now()).await
    }

    /// How often Nomad was asked this.
    pub fn asked(&self, what: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|l| l.contains(what)).count()
    }

    /// Waits for Nomad to have been asked.
    pub async fn until_asked(&self, what: &str, times: usize) {
        until(&format!("{what} to be asked {times} times"), async || self.asked(what) >= times).await;
    }

    /// The row and the actions of its trail, read after the controller gave the file up.
    pub async fn left(&self, id: OpId) -> (Operation, Vec<Action>) {
        let store = self.store();
        let op = store.operation(id).await.unwrap().unwrap();
        let rows = store.audit(AuditFilter { operation: Some(id), ..AuditFilter::default() }).await.unwrap();
        store.close().await.unwrap();
        (op, rows.into_iter().map(|r| r.entry.action).collect())
    }
}

/// Never answers.
pub fn hangs() -> BoxFuture<'static, String> {
    std::future::pending().boxed()
}

/// Answers once the token is cancelled.
pub fn when(token: &CancellationToken, answer: &'static str) -> BoxFuture<'static, String> {
    let token = token.clone();
    async move {
        token.cancelled().await;
        answer.to_owned()
    }
    .boxed()
}

pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(30);
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    while !holds().await {
        assert!(Instant::now() < give_up, "waited for {what}");
        pace.tick().await;
    }
}

/// That it does not end while time passes.
pub async fn stays<F: Future + Unpin>(future: &mut F, span: Duration, what: &str) {
    assert!(tokio::time::timeout(span, future).await.is_err(), "{what} ended too soon");
}

/// A stop of a job, as it was asked for then.
pub async fn stop(store: &dyn Store, job: &str, at: Timestamp) -> OpId {
    stop_of(store, JobKey::new("default", job), at).await
}

pub async fn stop_of(store: &dyn Store, target: JobKey, at: Timestamp) -> OpId {
    let demands = vec![Demand { at, stop_timeout: None, until: None, no_shutdown_delay: false, purge: false, job_index: 0 }];
    let request = Request::Stop { target, demands };
    let id = OpId::new(at);
    let new = NewOperation {
        parent: None,
        id,
        request,
        actor: "somebody".into(),
        reason: None,
        at,
        deadline: None,
        warnings: vec![],
        idempotency: None,
    };
    store.create(new).await.unwrap().operation().id
}
