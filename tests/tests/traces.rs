//! Traces, as a collector gets them, and the ids in the log.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use curfew_tests::cluster::{Cluster, Kind, Shape};
use curfew_tests::command::curfew;
use curfew_tests::controller::Controller;
use curfew_tests::jobs::{IMPOLITE, service, task};
use curfew_tests::lab::unique;
use curfew_tests::run::Given;
use rustix::process::Signal;
use tokio::net::TcpListener;

type Got = Arc<Mutex<Vec<(String, String, Bytes)>>>;

async fn take(State(got): State<Got>, uri: Uri, headers: HeaderMap, body: Bytes) {
    let kind = headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    got.lock().unwrap().push((uri.path().to_owned(), kind, body));
}

fn has(body: &[u8], what: &[u8]) -> bool {
    body.windows(what.len()).any(|w| w == what)
}

/// One trace for a stop: the request links to it, its steps, calls and SIGKILL are in it; its id is the operation's.
pub async fn one_for_each_operation(_: Given) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let got = Got::default();
    let app = Router::new().fallback(take).with_state(got.clone());
    let collector = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let cluster = Cluster::start(Kind::Dev, &Shape { nodes: 1, ..Shape::default() }).await;
    let env = [("CURFEW_OTLP_ENDPOINT", endpoint.as_str()), ("CURFEW_LOG_FORMAT", "json"), ("CURFEW_LOG", "info")];
    let mut controller = Controller::start(cluster.addr(), &env).await;
    let id = unique("deaf");
    controller.curfew(["job", "run", "-"]).stdin(service(&id, vec![task("t", IMPOLITE)]).to_string()).run().await.code(0);
    let op = controller.curfew(["job", "stop", &id, "--stop-timeout", "1s", "--json"]).run().await.code(0).operation();
    // It sends what it has before it ends.
    assert!(controller.end(Signal::TERM, Duration::from_secs(20)).await.success());
    let got = got.lock().unwrap();
    assert!(!got.is_empty(), "{}", controller.log());
    assert!(got.iter().all(|(path, kind, _)| path == "/v1/traces" && kind == "application/x-protobuf"), "{got:?}");
    let all: Vec<u8> = got.iter().flat_map(|(_, _, body)| body.to_vec()).collect();
    let trace = op.id.uuid().into_bytes();
    // In a step, a call, the SIGKILL, the request's link: as the field before the span's own id.
    let times = all.windows(18).filter(|w| w[..2] == [0x0a, 16] && w[2..] == trace).count();
    assert!(times >= 5, "the trace {} was told {times} times", op.id);
    for name in
        ["step", "nomad", "kill", "request", "DELETE /v1/job/:job", "/v1/jobs/{job}/stop", "service.instance.id", "curfew"]
    {
        assert!(has(&all, name.as_bytes()), "no {name} in {} bytes", all.len());
    }
    let alloc = &op.outcome.unwrap().allocations[0].id;
    assert!(has(&all, alloc.as_str().as_bytes()), "the SIGKILL's span names its allocation");
    // The log has the same ids.
    let log = controller.log();
    let lines: Vec<serde_json::Value> = log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let killed = lines.iter().find(|l| l["fields"]["message"] == "SIGKILL sent").unwrap_or_else(|| panic!("{log}"));
    assert_eq!(killed["span"]["operation"], op.id.to_string(), "{killed}");
    assert_eq!(killed["fields"]["alloc"], alloc.as_str(), "{killed}");
    collector.abort();
}

/// A collector that is not there holds up nobody, and an address that is none is refused.
pub async fn without_a_collector(_: Given) {
    let cluster = Cluster::start(Kind::Dev, &Shape { nodes: 1, ..Shape::default() }).await;
    let nowhere = format!("http://127.0.0.1:{}", curfew_tests::free_port());
    let mut controller = Controller::start(cluster.addr(), &[("CURFEW_OTLP_ENDPOINT", nowhere.as_str())]).await;
    controller.curfew(["status"]).run().await.code(0);
    assert!(controller.end(Signal::TERM, Duration::from_secs(10)).await.success());
    let bad = curfew(["config", "check"]).env("CURFEW_OTLP_ENDPOINT", "collector:4318");
    bad.run().await.code(2).says(&["otlp_endpoint", "http://127.0.0.1:4318"]);
}
