//! Drains and eligibility.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Api, SECOND, id, impolite, job, last_event, mock, polite};

async fn drain(api: &Api, node: &str, deadline: i64, ignore_system: bool) -> Value {
    let spec = json!({"Deadline": deadline, "IgnoreSystemJobs": ignore_system});
    api.put(
        &format!("/v1/node/{node}/drain"),
        json!({"NodeID": node, "DrainSpec": spec, "MarkEligible": false, "Meta": {"by": "test"}}),
    )
    .await
}

async fn complete(api: &Api, node: &str) -> Value {
    api.until(&format!("/v1/node/{node}"), "drain complete", |n| {
        n["DrainStrategy"].is_null() && n["LastDrain"]["Status"] == "complete"
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn the_deadline_kills_nothing() {
    let api = Api::start(1).await;
    let n = api.cluster.node_id("n1").unwrap();
    api.register(&job("b", "batch", &[impolite()])).await;
    let a = id(&api.running("b", 1).await[0]);
    drain(&api, &n, 4 * SECOND, false).await;
    api.pass(Duration::from_secs(3)).await;
    // A batch allocation hears nothing until the deadline.
    assert_eq!(last_event(&api.alloc(&a).await, "t")["Type"], "Started");
    let node = complete(&api, &n).await;
    assert_eq!((&node["SchedulingEligibility"], &node["Drain"]), (&json!("ineligible"), &json!(false)));
    assert_eq!(node["LastDrain"]["Meta"], json!({"by": "test"}));
    let last = node["Events"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["Message"], &last["Details"]), (&json!("Node drain complete"), &json!({"deadline_reached": "true"})));
    let now = api.alloc_until(&a, "killing", |a| last_event(a, "t")["Type"] == "Killing").await;
    assert_eq!((&now["DesiredStatus"], &now["ClientStatus"]), (&json!("stop"), &json!("running")));
    assert_eq!(
        (&now["DesiredDescription"], &now["DesiredTransition"]["Migrate"]),
        (&json!("alloc is being migrated"), &json!(true))
    );
    api.pass(Duration::from_secs(600)).await;
    assert_eq!(api.alloc(&a).await["ClientStatus"], "running");
}

#[tokio::test(start_paused = true)]
async fn a_service_moves_at_the_pace_of_its_migrate_block() {
    let api = Api::start(2).await;
    let mut j = job("j", "service", &[polite()]);
    j["TaskGroups"][0]["Count"] = json!(2);
    api.register(&j).await;
    let all = api.running("j", 2).await;
    let n = all.iter().find(|a| a["NodeName"] == "n1").unwrap()["NodeID"].as_str().unwrap().to_owned();
    // Not healthy yet: nothing moves.
    drain(&api, &n, 3600 * SECOND, false).await;
    api.pass(Duration::from_secs(2)).await;
    assert!(api.allocs("j").await.iter().all(|a| a["DesiredStatus"] == "run"));
    complete(&api, &n).await;
    api.until("/v1/job/j/allocations", "moved", |v| {
        v.as_array()
            .unwrap()
            .iter()
            .filter(|a| a["DesiredStatus"] == "run" && a["ClientStatus"] == "running" && a["NodeName"] == "n2")
            .count()
            == 2
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_negative_deadline_tells_everything_at_once() {
    let api = Api::start(1).await;
    let n = api.cluster.node_id("n1").unwrap();
    let mut told = Vec::new();
    for kind in ["service", "batch", "system"] {
        api.register(&job(kind, kind, &[impolite()])).await;
        told.push(id(&api.running(kind, 1).await[0]));
    }
    drain(&api, &n, -1, false).await;
    complete(&api, &n).await;
    for a in told {
        let a = api.alloc_until(&a, "killing", |a| last_event(a, "t")["Type"] == "Killing").await;
        assert_eq!((&a["DesiredStatus"], &a["ClientStatus"]), (&json!("stop"), &json!("running")));
    }
}

#[tokio::test(start_paused = true)]
async fn system_jobs_go_last_or_stay() {
    let api = Api::start(1).await;
    let n = api.cluster.node_id("n1").unwrap();
    api.register(&job("s", "system", &[polite()])).await;
    let a = id(&api.running("s", 1).await[0]);
    drain(&api, &n, 60 * SECOND, true).await;
    complete(&api, &n).await;
    assert_eq!(api.alloc(&a).await["DesiredStatus"], "run");
    drain(&api, &n, 60 * SECOND, false).await;
    let gone = api.alloc_until(&a, "gone", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(gone["DesiredDescription"], "alloc not needed as node is tainted");
}

#[tokio::test(start_paused = true)]
async fn cancel_change_and_eligibility() {
    let api = Api::start(1).await;
    let n = api.cluster.node_id("n1").unwrap();
    api.register(&job("b", "batch", &[mock("t", json!({}))])).await;
    let a = id(&api.running("b", 1).await[0]);
    drain(&api, &n, 60 * SECOND, false).await;
    let r = api.put(&format!("/v1/node/{n}/drain"), json!({"DrainSpec": null, "MarkEligible": true})).await;
    assert_eq!(r["EvalIDs"].as_array().map(Vec::len), Some(1));
    let node = api.get(&format!("/v1/node/{n}")).await;
    assert_eq!((&node["LastDrain"]["Status"], &node["SchedulingEligibility"]), (&json!("canceled"), &json!("eligible")));
    drain(&api, &n, 60 * SECOND, false).await;
    drain(&api, &n, 30 * SECOND, false).await;
    let node = api.get(&format!("/v1/node/{n}")).await;
    assert_eq!(node["DrainStrategy"]["Deadline"], json!(30 * SECOND));
    assert_eq!(node["Events"].as_array().unwrap().last().unwrap()["Message"], "Node drain strategy updated");
    api.put(&format!("/v1/node/{n}/drain"), json!({"DrainSpec": null, "MarkEligible": false})).await;
    let r = api.put(&format!("/v1/node/{n}/eligibility"), json!({"Eligibility": "eligible"})).await;
    assert_eq!(r["NodeModifyIndex"], 0);
    let r = api.call("PUT", &format!("/v1/node/{n}/eligibility"), Some(&json!({"Eligibility": "nope"}))).await;
    assert_eq!((r.status, r.text.as_str()), (500, "invalid scheduling eligibility \"nope\""));
    let r = api
        .call("PUT", "/v1/node/00000000-0000-0000-0000-000000000000/drain", Some(&json!({"DrainSpec": {"Deadline": 1}})))
        .await;
    assert_eq!((r.status, r.text.as_str()), (500, "node not found"));
    assert_eq!(api.alloc(&a).await["DesiredStatus"], "run");
}
