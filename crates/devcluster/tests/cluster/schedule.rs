//! Where allocations go: system jobs, datacenters, constraints, room, nodes that go away.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Api, SECOND, events, id, impolite, job, last_event, nodes, polite};

#[tokio::test(start_paused = true)]
async fn a_system_job_runs_everywhere_it_may() {
    let api = Api::start(3).await;
    api.register(&job("s", "system", &[polite()])).await;
    let all = api.running("s", 3).await;
    let mut names: Vec<&str> = all.iter().map(|a| a["NodeName"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["n1", "n2", "n3"]);
    let mut one = job("one", "system", &[polite()]);
    one["Datacenters"] = json!(["dc2"]);
    api.register(&one).await;
    assert_eq!(api.running("one", 1).await[0]["NodeName"], "n3");
}

#[tokio::test(start_paused = true)]
async fn constraints_and_datacenters() {
    let mut n = nodes(3);
    n[1].meta.insert("rack".into(), "r2".into());
    let api = Api::with(n, |_| {}).await;
    for (name, left, operand, right, node) in [
        ("a", "${meta.rack}", "=", "r2", "n2"),
        ("b", "${node.unique.name}", "regexp", "^n3$", "n3"),
        ("c", "${node.datacenter}", "!=", "dc1", "n3"),
        ("d", "${attr.unique.hostname}", "=", "n1", "n1"),
        ("e", "${meta.rack}", "is_set", "", "n2"),
    ] {
        let mut j = job(name, "service", &[polite()]);
        j["Constraints"] = json!([{"LTarget": left, "Operand": operand, "RTarget": right}]);
        api.register(&j).await;
        assert_eq!(api.running(name, 1).await[0]["NodeName"], node, "{left} {operand} {right}");
    }
}

/// Room is no news to what no node fits.
#[tokio::test(start_paused = true)]
async fn what_no_node_fits_is_not_looked_at_again_for_room() {
    let api = Api::start(1).await;
    api.register(&job("a", "service", &[polite()])).await;
    api.running("a", 1).await;
    let mut nowhere = job("nowhere", "service", &[polite()]);
    nowhere["Constraints"] = json!([{"LTarget": "${node.class}", "Operand": "=", "RTarget": "nope"}]);
    let eval = api.register(&nowhere).await["EvalID"].as_str().unwrap().to_owned();
    api.pass(Duration::from_secs(1)).await;
    let blocked = api.get(&format!("/v1/evaluation/{eval}")).await["BlockedEval"].as_str().unwrap().to_owned();
    api.delete("a").await;
    api.pass(Duration::from_secs(60)).await;
    assert_eq!(api.get(&format!("/v1/evaluation/{blocked}")).await["Status"], "blocked");
    api.cluster.node_down("n1").unwrap();
    api.pass(Duration::from_secs(60)).await;
    api.cluster.node_up("n1").unwrap();
    api.pass(Duration::from_secs(60)).await;
    assert_eq!(api.get(&format!("/v1/evaluation/{blocked}")).await["Status"], "complete", "a node is news");
}

#[tokio::test(start_paused = true)]
async fn what_finds_no_room_waits_for_it() {
    let mut n = nodes(1);
    n[0].cpu = 100;
    let api = Api::with(n, |_| {}).await;
    let mut big = polite();
    big["Resources"]["CPU"] = json!(80);
    api.register(&job("a", "service", &[big.clone()])).await;
    api.running("a", 1).await;
    let r = api.register(&job("b", "service", &[big])).await;
    let eval =
        api.until(&format!("/v1/evaluation/{}", r["EvalID"].as_str().unwrap()), "done", |e| e["Status"] == "complete").await;
    assert_eq!(eval["FailedTGAllocs"]["g"]["DimensionExhausted"], json!({"cpu": 1}));
    let blocked = api.get(&format!("/v1/evaluation/{}", eval["BlockedEval"].as_str().unwrap())).await;
    assert_eq!((&blocked["Status"], &blocked["TriggeredBy"]), (&json!("blocked"), &json!("queued-allocs")));
    assert_eq!(api.get("/v1/job/b").await["Status"], "running", "it has a deployment");
    api.delete("a").await;
    api.running("b", 1).await;
    let mut nowhere = job("c", "service", &[polite()]);
    nowhere["TaskGroups"][0]["Tasks"][0]["Driver"] = json!("nosuch");
    let r = api.register(&nowhere).await;
    let eval =
        api.until(&format!("/v1/evaluation/{}", r["EvalID"].as_str().unwrap()), "done", |e| e["Status"] == "complete").await;
    assert_eq!(eval["FailedTGAllocs"]["g"]["ConstraintFiltered"], json!({"missing drivers": 1}));
}

#[tokio::test(start_paused = true)]
async fn a_lost_client_and_its_return() {
    let api = Api::start(2).await;
    api.register(&job("j", "service", &[impolite()])).await;
    let a = api.running("j", 1).await[0].clone();
    let node = a["NodeName"].as_str().unwrap().to_owned();
    let a = id(&a);
    api.cluster.node_down(&node).unwrap();
    let r = api.signal(&a, "t", "SIGKILL").await;
    assert_eq!((r.status, r.text.as_str()), (404, "No path to node"));
    let lost = api.alloc_until(&a, "lost", |a| a["ClientStatus"] == "lost").await;
    assert_eq!(
        (&lost["DesiredStatus"], &lost["DesiredDescription"]),
        (&json!("stop"), &json!("alloc is lost since its node is down"))
    );
    assert_eq!(lost["TaskStates"]["t"]["State"], "running");
    api.running("j", 1).await;
    let n = api.get(&format!("/v1/node/{}", lost["NodeID"].as_str().unwrap())).await;
    assert_eq!(n["Status"], "down");
    assert_eq!(n["Events"].as_array().unwrap().last().unwrap()["Message"], "Node heartbeat missed");
    // Back again it runs, and is told to end with all its time.
    api.cluster.node_up(&node).unwrap();
    let back =
        api.alloc_until(&a, "running again", |a| a["ClientStatus"] == "running" && last_event(a, "t")["Type"] == "Killing").await;
    assert_eq!(back["DesiredStatus"], "stop");
    api.signal(&a, "t", "SIGKILL").await;
    api.alloc_until(&a, "complete", |a| a["ClientStatus"] == "complete").await;
}

#[tokio::test(start_paused = true)]
async fn stopped_while_its_client_is_away() {
    let api = Api::start(1).await;
    api.register(&job("j", "service", &[impolite()])).await;
    let a = id(&api.running("j", 1).await[0]);
    api.cluster.node_down("n1").unwrap();
    api.delete("j").await;
    let now = api.alloc_until(&a, "stopped", |a| a["DesiredStatus"] == "stop").await;
    assert_eq!(now["ClientStatus"], "running");
    api.alloc_until(&a, "lost", |a| a["ClientStatus"] == "lost").await;
    api.pass(Duration::from_secs(60)).await;
    assert_eq!(events(&api.alloc(&a).await, "t"), ["Received", "Task Setup", "Started"]);
    api.cluster.node_up("n1").unwrap();
    api.alloc_until(&a, "killing", |a| a["ClientStatus"] == "running" && last_event(a, "t")["Type"] == "Killing").await;
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_block_makes_it_unknown() {
    let api = Api::start(2).await;
    let mut j = job("j", "service", &[impolite()]);
    j["TaskGroups"][0]["Disconnect"] = json!({"LostAfter": 3600 * SECOND, "Replace": false});
    api.register(&j).await;
    let a = api.running("j", 1).await[0].clone();
    let (node, a) = (a["NodeName"].as_str().unwrap().to_owned(), id(&a));
    api.cluster.node_cut(&node).unwrap();
    let unknown = api.alloc_until(&a, "unknown", |a| a["ClientStatus"] == "unknown").await;
    assert_eq!(unknown["DesiredStatus"], "run");
    assert_eq!(api.allocs("j").await.len(), 1);
    api.cluster.node_up(&node).unwrap();
    api.alloc_until(&a, "running again", |a| a["ClientStatus"] == "running").await;
    assert_eq!(api.allocs("j").await.len(), 1);
}
