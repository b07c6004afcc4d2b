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

#[tokio::test(start_paused = true)]
async fn bad_input_is_told_what_is_wrong() {
    let api = Api::start(1).await;
    for (body, says) in [
        ("{", "EOF while parsing"),
        (r#"{"Path": "/v1/jobs"}"#, "missing field `Kind`"),
        (r#"{"Kind": "fail"}"#, "missing field `Path`"),
        (
            r#"{"Path": "/v1/jobs", "Kind": "explode"}"#,
            "expected one of `fail`, `drop-request`, `drop-answer`, `delay`, `delay-answer`",
        ),
        (r#"{"Path": "/v1/jobs", "Kind": "fail", "Tiems": 1}"#, "unknown field `Tiems`"),
        (r#"{"Path": "jobs", "Kind": "fail"}"#, "begins with neither /v1/ nor *"),
        (r#"{"Path": "/v1/jobs", "Kind": "delay"}"#, "needs a Delay such as 500ms or 2s"),
        (r#"{"Path": "/v1/jobs", "Kind": "delay", "Delay": "2"}"#, "\"2\" is no duration"),
        (r#"{"Path": "/v1/jobs", "Kind": "fail", "Delay": "2s"}"#, "Delay belongs to"),
        (r#"{"Path": "/v1/jobs", "Kind": "delay", "Delay": "2s", "Status": 500}"#, "Status and Body belong to"),
        (r#"{"Path": "/v1/jobs", "Kind": "fail", "Status": 99}"#, "Status 99"),
        (r#"{"Path": "/v1/jobs", "Kind": "fail", "Times": 0}"#, "Times is 0"),
        (r#"{"Path": "/v1/jobs", "Kind": "fail", "Method": "GRAB"}"#, "\"GRAB\" is none of"),
    ] {
        let r = api.raw("PUT", "/dev/v1/faults", body.into()).await;
        assert!(r.status == 400 && r.text.contains(says), "{body}: {} {}", r.status, r.text);
    }
    assert_eq!(api.get("/dev/v1/faults").await, json!([]));
    let nobody = api.call("PUT", "/dev/v1/node/nope/down", None).await;
    assert_eq!((nobody.status, nobody.text.trim()), (404, "no node is called \"nope\"; there are n1"));
    for (method, path) in
        [("GET", "/dev/v1/heal"), ("PUT", "/dev/v1/nodes/n1/down"), ("PUT", "/dev/v1/node/n1/explode"), ("GET", "/dev")]
    {
        let r = api.call(method, path, None).await;
        assert!(r.status == 404 && r.text.contains("these are:") && r.text.contains("/dev/v1/status"), "{path}: {}", r.text);
    }
}

#[tokio::test(start_paused = true)]
async fn everything_shows_and_is_healed_at_once() {
    let api = Api::start(2).await;
    let fault = json!({"Method": "PUT", "Path": "/v1/job*", "Kind": "delay-answer", "Delay": "1m30s", "Times": 2});
    api.put("/dev/v1/faults", fault.clone()).await;
    api.put("/dev/v1/faults", json!({"Path": "/v1/nodes", "Kind": "fail", "Status": 503, "Body": "later"})).await;
    api.put("/dev/v1/node/n1/cut", json!({})).await;
    api.put("/dev/v1/node/n2/down", json!({})).await;
    api.put("/dev/v1/events/lose", json!({})).await;
    api.put("/dev/v1/leader/lose", json!({})).await;
    let status = api.get("/dev/v1/status").await;
    let agents = |s: &serde_json::Value| {
        let mut all: Vec<String> =
            s["Nodes"].as_array().unwrap().iter().map(|n| format!("{} {}", n["Name"], n["Agent"])).collect();
        all.sort();
        all.join(", ").replace('"', "")
    };
    assert_eq!(agents(&status), "n1 cut, n2 down");
    assert_eq!((&status["Leader"], &status["Events"]), (&json!(false), &json!("lost")));
    assert_eq!(status["Faults"][0], fault);
    assert_eq!(
        status["Faults"][1],
        json!({"Method": "*", "Path": "/v1/nodes", "Kind": "fail", "Status": 503, "Body": "later", "Times": null})
    );
    api.put("/dev/v1/heal", json!({})).await;
    let status = api.get("/dev/v1/status").await;
    assert_eq!(agents(&status), "n1 up, n2 up");
    assert_eq!((&status["Leader"], &status["Events"], &status["Faults"]), (&json!(true), &json!("delivered"), &json!([])));
    api.get("/v1/nodes").await;
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
