//! A run is made of its seed: the same one, the same identifiers and the same order of everything.

use std::time::Duration;

use axum::http::Request;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::harness::{Api, impolite, job, mock, nodes, of_status};

/// What the event stream has to tell from the first index on.
async fn log(api: &Api) -> Vec<String> {
    let request = Request::get("/v1/event/stream?index=0&namespace=*").body(Bytes::new()).unwrap();
    let mut body = api.cluster.call(request).await.into_body().into_data_stream();
    let mut lines = Vec::new();
    while let Ok(Some(chunk)) = tokio::time::timeout(Duration::from_secs(1), body.next()).await {
        lines.push(String::from_utf8(chunk.unwrap().to_vec()).unwrap());
    }
    lines
}

/// Failing tasks with jitter in their restarts, a node that dies and returns, a drain, a rollout, a fault.
async fn story(seed: u64) -> (Vec<String>, Value) {
    let api = Api::with(nodes(4), |c| {
        c.seed = seed;
        c.event_buffer = 100_000;
    })
    .await;
    for i in 0..5 {
        let mut j = job(&format!("j{i}"), "service", &[mock("t", json!({"run_for": "25s", "exit_code": 1}))]);
        j["TaskGroups"][0]["Count"] = json!(3);
        api.register(&j).await;
    }
    api.register(&job("s", "system", &[impolite()])).await;
    api.pass(Duration::from_secs(20)).await;
    api.cluster.node_down("n2").unwrap();
    let n1 = api.cluster.node_id("n1").unwrap();
    api.put(&format!("/v1/node/{n1}/drain"), json!({"DrainSpec": {"Deadline": 5_000_000_000_i64}})).await;
    api.pass(Duration::from_secs(15)).await;
    api.put("/dev/v1/faults", json!({"Path": "/v1/jobs", "Kind": "fail", "Times": 1})).await;
    assert_eq!(api.call("GET", "/v1/jobs", None).await.status, 500);
    api.cluster.heal();
    let mut next = job("j0", "service", &[impolite()]);
    next["TaskGroups"][0]["Count"] = json!(2);
    api.register(&next).await;
    api.delete("j1").await;
    api.pass(Duration::from_secs(300)).await;
    let all = api.get("/v1/allocations").await;
    assert!(of_status(&all, "running").len() > 1 && of_status(&all, "complete").len() > 1, "{all}");
    (log(&api).await, all)
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_tells_the_same_story() {
    let (one, again, other) = (story(7).await, story(7).await, story(8).await);
    assert!(one.0.len() > 50, "{}", one.0.len());
    for (n, (a, b)) in one.0.iter().zip(&again.0).enumerate() {
        assert_eq!(a, b, "frame {n}");
    }
    assert_eq!(one, again);
    assert_ne!(one.0[1], other.0[1]);
}
