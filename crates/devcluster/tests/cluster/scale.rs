//! Many mock allocations in memory.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Api, job, mock, nodes};

const N: usize = 2_000;

#[tokio::test(start_paused = true)]
async fn thousands_of_kills_within_seconds() {
    let api = Api::start(3).await;
    let mut j = job("many", "batch", &[mock("t", json!({"ignore_sigterm": true}))]);
    j["TaskGroups"][0]["Count"] = json!(N);
    j["TaskGroups"][0]["Tasks"][0]["Resources"] = json!({"CPU": 1, "MemoryMB": 1});
    api.register(&j).await;
    api.until("/v1/job/many/summary", "running", |s| s["Summary"]["g"]["Running"] == N).await;
    api.delete("many").await;
    api.until("/v1/job/many", "dead", |j| j["Status"] == "dead").await;
    api.pass(Duration::from_secs(2)).await;
    let all = api.get("/v1/allocations?task_states=false").await;
    for a in all.as_array().unwrap() {
        assert_eq!(api.signal(a["ID"].as_str().unwrap(), "t", "SIGKILL").await.status, 200);
    }
    api.until("/v1/job/many/summary", "complete", |s| s["Summary"]["g"]["Complete"] == N).await;
}

#[tokio::test(start_paused = true)]
async fn many_nodes() {
    let api = Api::with(nodes(500), |_| {}).await;
    api.register(&job("s", "system", &[mock("t", json!({}))])).await;
    api.until("/v1/job/s/summary", "everywhere", |s| s["Summary"]["g"]["Running"] == 500).await;
}

/// The measured figure is `curfew-bench placement`.
#[tokio::test(start_paused = true)]
async fn ten_thousand_on_a_thousand_nodes() {
    let api = Api::with(nodes(1_000), |_| {}).await;
    for i in 0..20 {
        let mut j = job(&format!("j{i}"), "service", &[mock("t", json!({}))]);
        j["TaskGroups"][0]["Count"] = json!(500);
        api.register(&j).await;
    }
    for i in 0..20 {
        api.until(&format!("/v1/job/j{i}/summary"), "running", |s| s["Summary"]["g"]["Running"] == 500).await;
    }
    let all = api.get("/v1/allocations?task_states=false").await;
    let mut per_node = std::collections::HashMap::<&str, usize>::new();
    for a in all.as_array().unwrap() {
        *per_node.entry(a["NodeID"].as_str().unwrap()).or_default() += 1;
    }
    assert_eq!(all.as_array().unwrap().len(), 10_000);
    assert!(
        per_node.len() > 900 && per_node.values().all(|n| *n < 40),
        "{} nodes, at most {:?}",
        per_node.len(),
        per_node.values().max()
    );
}
