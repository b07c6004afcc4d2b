//! Faults on request, by methods and over HTTP.

use std::time::Duration;

use curfew_devcluster::{Fault, FaultKind};
use serde_json::json;

use crate::harness::{Api, id, impolite, job};

#[tokio::test(start_paused = true)]
async fn answers_fail_come_late_or_never() {
    let api = Api::start(1).await;
    api.register(&job("j", "service", &[impolite()])).await;
    let a = id(&api.running("j", 1).await[0]);
    api.cluster.fault(Fault {
        method: "PUT".into(),
        path: "/v1/client/allocation/*/signal".into(),
        kind: FaultKind::Fail { status: 500, body: "rpc error".into() },
        times: Some(1),
    });
    let r = api.signal(&a, "t", "SIGKILL").await;
    assert_eq!((r.status, r.text.as_str()), (500, "rpc error"));
    assert_eq!(api.signal(&a, "t", "SIGUSR1").await.status, 200);
    let spec = json!({"Method": "GET", "Path": "/v1/jobs", "Kind": "delay", "Delay": "5s"});
    api.put("/dev/v1/faults", spec).await;
    let before = tokio::time::Instant::now();
    api.get("/v1/jobs").await;
    assert_eq!(before.elapsed().as_secs(), 5);
    assert_eq!(api.get("/dev/v1/faults").await.as_array().unwrap().len(), 1);
    api.call("DELETE", "/dev/v1/faults", None).await;
    api.get("/v1/jobs").await;
    assert_eq!(before.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn nodes_go_and_come_over_http() {
    let api = Api::start(2).await;
    assert_eq!(api.call("PUT", "/dev/v1/node/nope/down", None).await.status, 404);
    api.put("/dev/v1/node/n1/down", json!({})).await;
    let n = api.cluster.node_id("n1").unwrap();
    let path = format!("/v1/node/{n}");
    api.until(&path, "down", |n| n["Status"] == "down").await;
    api.put("/dev/v1/node/n1/up", json!({})).await;
    api.until(&path, "ready", |n| n["Status"] == "ready").await;
    api.put("/dev/v1/leader/lose", json!({})).await;
    let r = api.call("GET", "/v1/jobs", None).await;
    assert_eq!((r.status, r.text.as_str()), (500, "No cluster leader"));
    api.put("/dev/v1/leader/elect", json!({})).await;
    api.get("/v1/jobs").await;
}

#[tokio::test]
async fn a_dropped_answer_is_an_error_of_the_connection() {
    let api = Api::with(crate::harness::nodes(1), |c| {
        c.listen = Some("127.0.0.1:0".parse().unwrap());
    })
    .await;
    api.cluster.fault(Fault { method: "*".into(), path: "/v1/jobs".into(), kind: FaultKind::DropAnswer, times: Some(1) });
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
    let url = format!("{}/v1/jobs", api.cluster.base_url());
    let answer = async { client.get(&url).send().await?.bytes().await };
    assert!(answer.await.is_err());
    assert_eq!(client.get(&url).send().await.unwrap().status(), 200);
}
