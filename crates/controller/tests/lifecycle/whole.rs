//! The whole of it in one process under paused time: controller, SQLite, gateway, and a cluster without sockets. Hours pass at once.

use std::time::Duration;

use bytes::Bytes;
use curfew_controller::Ending;
use curfew_core::operation::{Operation, State};
use curfew_core::{Clock, OpId};
use curfew_devcluster::{Cluster, ClusterConfig, Fault, FaultKind, NodeConfig};
use curfew_nomad::{Body, Nomad, NomadConfig, TransportError};
use curfew_store::Store;
use futures::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::kit::{Lab, START};

const HOUR: Duration = Duration::from_secs(3600);
/// Nomad's batches of events, a call there and back.
const BOUND: Duration = Duration::from_secs(2);

struct Whole {
    lab: Lab,
    cluster: std::sync::Arc<Cluster>,
    _dir: TempDir,
}

impl Whole {
    async fn start() -> Self {
        let dir = TempDir::with_prefix("curfew-whole-").unwrap();
        let nodes = (1..=2).map(|i| NodeConfig::new(format!("n{i}"), "dc1")).collect();
        let config = ClusterConfig { wall_base: Some(START), ..ClusterConfig::in_process(nodes, dir.path()) };
        let cluster = std::sync::Arc::new(Cluster::start(config).await.unwrap());
        let its = cluster.clone();
        let transport = move |request: http::Request<Bytes>| {
            let answer = its.call(request);
            async move {
                let (parts, body) = answer.await.into_parts();
                let body: Body = body.into_data_stream().map(|chunk| chunk.map_err(Into::into)).boxed();
                Ok::<_, TransportError>(http::Response::from_parts(parts, body))
            }
        };
        let config = NomadConfig { addr: "http://nomad.test:4646".into(), ..NomadConfig::default() };
        let lab = Lab::on(Nomad::with_transport(config, transport).unwrap());
        Self { lab, cluster, _dir: dir }
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let answer = self.cluster.call(http::Request::builder().method(method).uri(path).body(body).unwrap()).await;
        let (parts, body) = answer.into_parts();
        let chunks: Vec<Bytes> = body.into_data_stream().map(Result::unwrap).collect().await;
        assert_eq!(parts.status, 200, "{method} {path}: {chunks:?}");
        serde_json::from_slice(&chunks.concat()).unwrap()
    }

    /// A managed job of one task that hears SIGTERM or does not; its author gave it an hour.
    async fn runs(&self, id: &str, deaf: bool) {
        let task = json!({
            "Name": "t", "Driver": "mock", "Config": {"ignore_sigterm": deaf}, "Meta": {"curfew_stop_timeout": "1h"},
            "KillTimeout": 24 * i64::try_from(HOUR.as_nanos()).unwrap(), "KillSignal": "SIGTERM",
        });
        let job = json!({
            "ID": id, "Name": id, "Type": "batch", "Datacenters": ["dc1"], "Meta": {"curfew_managed": "true"},
            "TaskGroups": [{"Name": "g", "Count": 1, "Tasks": [task]}],
        });
        self.ask("PUT", "/v1/jobs", &json!({ "Job": job })).await;
        let path = format!("/v1/job/{id}/allocations");
        let up = async |all: Value| all[0]["ClientStatus"] == "running";
        self.within(Duration::from_secs(60), &format!("{id} to run"), async || {
            up(self.ask("GET", &path, &Value::Null).await).await
        })
        .await;
    }

    async fn within(&self, span: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let give_up = Instant::now() + span;
        let mut pace = tokio::time::interval(Duration::from_millis(500));
        while !holds().await {
            assert!(Instant::now() < give_up, "waited for {what}");
            pace.tick().await;
        }
    }

    async fn ended(&self, store: &dyn Store, id: OpId, within: Duration) -> Operation {
        let row = async || store.operation(id).await.unwrap().unwrap();
        self.within(within, &format!("the end of {id}"), async || row().await.state.is_finished()).await;
        row().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_at_its_clock() {
    let whole = Whole::start().await;
    whole.runs("polite", false).await;
    whole.runs("deaf", true).await;
    whole.runs("left-alone", true).await;
    let store = whole.lab.store();
    let controller = whole.lab.start(store.clone());
    let asked = whole.lab.clock.now();
    let (polite, deaf) = (whole.lab.ask(&*store, "polite").await, whole.lab.ask(&*store, "deaf").await);

    let polite = whole.ended(&*store, polite, BOUND + Duration::from_secs(3)).await;
    let outcome = polite.outcome.unwrap();
    assert_eq!((polite.state, outcome.exited, outcome.killed), (State::Succeeded, 1, 0), "{outcome:?}");
    let deaf = whole.ended(&*store, deaf, HOUR + 5 * BOUND).await;
    let outcome = deaf.outcome.unwrap();
    assert_eq!((deaf.state, outcome.exited, outcome.killed), (State::Succeeded, 0, 1), "{outcome:?}");
    let task = &outcome.allocations[0].tasks[0];
    let (term, killed, ended) = (task.term_at.unwrap(), task.signalled_at.unwrap(), task.ended_at.unwrap());
    assert!(term >= asked && term < asked + BOUND, "{task:?}");
    assert!(killed >= term + HOUR && killed < term + HOUR + BOUND, "{task:?}");
    assert!(ended >= killed && ended < killed + BOUND, "{task:?}");
    assert_eq!((task.exit_code, task.signal), (Some(137), Some(9)), "{task:?}");
    let other = whole.ask("GET", "/v1/job/left-alone/allocations", &Value::Null).await;
    assert_eq!((&other[0]["ClientStatus"], &other[0]["DesiredStatus"]), (&json!("running"), &json!("run")), "{other}");
    controller.stop(true).await;
    assert_eq!(controller.stopped().await, Ending::Clean);
}

#[tokio::test(start_paused = true)]
async fn lost_answers_and_lost_events_move_no_clock() {
    let whole = Whole::start().await;
    whole.runs("deaf", true).await;
    whole.cluster.lose_events(true);
    for (method, path) in [("DELETE", "/v1/job/*"), ("PUT", "/v1/client/allocation/*/signal")] {
        whole.cluster.fault(Fault { method: method.into(), path: path.into(), kind: FaultKind::DropAnswer, times: Some(1) });
    }
    let store = whole.lab.store();
    let controller = whole.lab.start(store.clone());
    let op = whole.lab.ask(&*store, "deaf").await;
    let op = whole.ended(&*store, op, HOUR + Duration::from_secs(60)).await;
    let outcome = op.outcome.unwrap();
    assert_eq!((op.state, outcome.killed), (State::Succeeded, 1), "{outcome:?}");
    let task = &outcome.allocations[0].tasks[0];
    let (term, ended) = (task.term_at.unwrap(), task.ended_at.unwrap());
    assert!(ended >= term + HOUR && ended < term + HOUR + BOUND, "{task:?}");
    controller.stop(true).await;
    assert_eq!(controller.stopped().await, Ending::Clean);
}
