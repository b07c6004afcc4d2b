//! Facts 4, 18 and 20: drains, whose end kills nothing.

use std::time::Duration;

use curfew_tests::jobs::{nanos, on as pinned, with};
use curfew_tests::wait::{always, eventually};
use serde_json::{Value, json};

use crate::clusters::Lease;
use crate::kit::{IMPOLITE, POLITE, batch, group, service, system, task, unique};
use crate::on::{Answer, On, SOON, brief, id, last_event, proc, s};

async fn drain(on: &On, node: &Lease, deadline: i64, ignore_system: bool) -> Answer {
    let spec = json!({ "Deadline": deadline, "IgnoreSystemJobs": ignore_system });
    let body = json!({ "NodeID": node.id, "DrainSpec": spec, "MarkEligible": false, "Meta": { "by": "the contract" } });
    on.put(&format!("/v1/node/{}/drain", node.id), &body).await
}

fn seconds(n: u64) -> i64 {
    i64::try_from(nanos(s(n))).unwrap()
}

async fn node_is(node: &Lease, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(SOON, what, async || {
        let n = node.node().await?;
        let short = format!("{} {} {}", n["DrainStrategy"], n["SchedulingEligibility"], n["LastDrain"]);
        if wanted(&n) { Ok(n) } else { Err(short) }
    })
    .await
}

async fn drained(node: &Lease) -> Value {
    node_is(node, "the drain to be complete", |n| n["DrainStrategy"].is_null()).await
}

/// At its deadline Nomad tells what remains to end, calls the drain complete, and it lives.
pub async fn the_deadline_kills_nothing(on: On) {
    let node = on.node().await;
    let alloc = on.start(&pinned(service(&unique("drain"), vec![task("t", IMPOLITE)]), &node.name)).await;
    let proc = proc(&alloc, "t");
    drain(&on, &node, seconds(2), false).await.ok();
    let after = drained(&node).await;
    assert_eq!(
        (&after["SchedulingEligibility"], &after["LastDrain"]["Status"]),
        (&json!("ineligible"), &json!("complete")),
        "{}",
        after["LastDrain"]
    );
    let told = on.event(id(&alloc), "t", "Killing").await;
    assert_eq!(told["KillTimeout"], nanos(crate::kit::DAY), "{told}");
    let seen = on.alloc(id(&alloc)).await.unwrap();
    assert_eq!(
        (&seen["DesiredTransition"]["Migrate"], &seen["DesiredStatus"]),
        (&json!(true), &json!("stop")),
        "{}",
        brief(std::slice::from_ref(&seen))
    );
    always(s(2), "that it lives", async || if proc.lives() { Ok(()) } else { Err("it is dead".into()) }).await;
    on.signal(id(&alloc), "SIGKILL", "t").await.ok();
    on.until(id(&alloc), "complete", |a| a["ClientStatus"] == "complete").await;
}

/// All of a node's allocations, each with its job, also those that have ended.
pub async fn what_runs_on_a_node_comes_with_its_jobs(on: On) {
    let node = on.node().await;
    let lives = on.start(&pinned(service(&unique("on-node"), vec![task("t", POLITE)]), &node.name)).await;
    let ended = on.start(&pinned(batch(&unique("on-node-b"), vec![task("t", POLITE)]), &node.name)).await;
    on.signal(id(&ended), "SIGTERM", "t").await.ok();
    on.until(id(&ended), "complete", |a| a["ClientStatus"] == "complete").await;
    let all = on.get(&format!("/v1/node/{}/allocations", node.id)).await.ok();
    for alloc in [&lives, &ended] {
        let found = all.body.as_array().unwrap().iter().find(|a| a["ID"] == alloc["ID"]).unwrap();
        assert_eq!(
            (&found["Job"]["ID"], &found["NodeID"]),
            (&alloc["JobID"], &json!(node.id)),
            "{}",
            brief(std::slice::from_ref(found))
        );
        assert!(found["TaskStates"]["t"]["State"].is_string() && found["Job"]["TaskGroups"][0]["Tasks"].is_array());
    }
    let nobody = on.get("/v1/node/00000000-0000-0000-0000-000000000000/allocations").await.ok();
    assert_eq!(nobody.text.trim(), "[]", "an unknown node has none");
}

/// Nothing is said to it in the first seconds; at the deadline it is.
async fn quiet_until_the_deadline(on: &On, node: &Lease, job: Value) {
    let alloc = on.start(&pinned(job, &node.name)).await;
    drain(on, node, seconds(5), false).await.ok();
    always(Duration::from_millis(3500), "that it was told nothing", async || {
        let now = on.alloc(id(&alloc)).await?;
        let quiet = now["DesiredStatus"] == "run"
            && now["DesiredTransition"]["Migrate"] != true
            && last_event(&now, "t", "Killing").is_none();
        if quiet { Ok(()) } else { Err(brief(&[now])) }
    })
    .await;
    on.event(id(&alloc), "t", "Killing").await;
}

pub async fn batch_hears_nothing_before_the_deadline(on: On) {
    let node = on.node().await;
    quiet_until_the_deadline(&on, &node, batch(&unique("drain-b"), vec![task("t", IMPOLITE)])).await;
}

pub async fn an_unhealthy_service_hears_nothing_before_the_deadline(on: On) {
    let node = on.node().await;
    let late = json!({ "Update": { "ProgressDeadline": 0, "HealthCheck": "task_states", "MinHealthyTime": nanos(s(60)), "HealthyDeadline": nanos(s(300)) } });
    quiet_until_the_deadline(&on, &node, with(service(&unique("drain-u"), vec![task("t", IMPOLITE)]), late)).await;
}

pub async fn a_healthy_service_migrates_before_the_deadline(on: On) {
    let (node, other) = (on.node().await, on.node().await);
    let two = format!("{}|{}", node.name, other.name);
    let only = json!([{ "LTarget": "${node.unique.name}", "RTarget": two, "Operand": "regexp" }]);
    let quick = json!({ "ProgressDeadline": 0, "HealthCheck": "task_states", "MinHealthyTime": nanos(s(1)) });
    let job = with(service(&unique("drain-h"), vec![task("t", POLITE)]), json!({ "Constraints": only, "Update": quick }));
    let alloc = on.start(&job).await;
    on.until(id(&alloc), "healthy", |a| a["DeploymentStatus"]["Healthy"] == true).await;
    let home = if alloc["NodeName"] == node.name.as_str() { &node } else { &other };
    drain(&on, home, seconds(600), false).await.ok();
    let gone = on.until(id(&alloc), "its end", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(
        (&gone["DesiredTransition"]["Migrate"], &gone["DesiredStatus"]),
        (&json!(true), &json!("stop")),
        "{}",
        brief(std::slice::from_ref(&gone))
    );
    let next = on.running(job["ID"].as_str().unwrap(), 1).await.remove(0);
    assert_ne!(next["NodeName"], alloc["NodeName"]);
    drained(home).await;
}

pub async fn without_a_deadline_batch_is_left_alone(on: On) {
    let node = on.node().await;
    let alloc = on.start(&pinned(batch(&unique("drain-n"), vec![task("t", POLITE)]), &node.name)).await;
    drain(&on, &node, 0, false).await.ok();
    always(s(4), "that it runs and the node drains", async || {
        let (now, node) = (on.alloc(id(&alloc)).await?, node.node().await?);
        let quiet = now["DesiredStatus"] == "run" && now["ClientStatus"] == "running" && node["DrainStrategy"].is_object();
        if quiet { Ok(()) } else { Err(format!("{} {}", brief(&[now]), node["DrainStrategy"])) }
    })
    .await;
    let n = node.node().await.unwrap();
    assert_eq!(n["DrainStrategy"]["Deadline"], 0, "{}", n["DrainStrategy"]);
}

pub async fn system_jobs_are_ignored_on_request(on: On) {
    let node = on.node().await;
    let alloc = on.start(&pinned(system(&unique("drain-s"), vec![task("t", POLITE)]), &node.name)).await;
    drain(&on, &node, seconds(2), true).await.ok();
    drained(&node).await;
    always(s(2), "that it runs", async || {
        let now = on.alloc(id(&alloc)).await?;
        if now["DesiredStatus"] == "run" && now["ClientStatus"] == "running" { Ok(()) } else { Err(brief(&[now])) }
    })
    .await;
}

pub async fn cancelled_it_gives_the_node_back(on: On) {
    let node = on.node().await;
    let alloc = on.start(&pinned(batch(&unique("drain-c"), vec![task("t", POLITE)]), &node.name)).await;
    drain(&on, &node, seconds(600), false).await.ok();
    node_is(&node, "draining", |n| n["DrainStrategy"].is_object() && n["SchedulingEligibility"] == "ineligible").await;
    let body = json!({ "NodeID": node.id, "DrainSpec": null, "MarkEligible": true });
    on.put(&format!("/v1/node/{}/drain", node.id), &body).await.ok();
    let n = node_is(&node, "given back", |n| n["DrainStrategy"].is_null() && n["SchedulingEligibility"] == "eligible").await;
    assert_eq!(n["LastDrain"]["Status"], "canceled", "{}", n["LastDrain"]);
    assert_eq!(on.alloc(id(&alloc)).await.unwrap()["ClientStatus"], "running");
}

/// The last one counts.
pub async fn again_with_another_deadline(on: On) {
    let node = on.node().await;
    let alloc = on.start(&pinned(batch(&unique("drain-a"), vec![task("t", IMPOLITE)]), &node.name)).await;
    drain(&on, &node, seconds(600), false).await.ok();
    let first = node.node().await.unwrap();
    drain(&on, &node, seconds(2), false).await.ok();
    let second = node.node().await.unwrap();
    assert!(
        second["DrainStrategy"].is_null() || second["DrainStrategy"]["ForceDeadline"] != first["DrainStrategy"]["ForceDeadline"]
    );
    drained(&node).await;
    on.event(id(&alloc), "t", "Killing").await;
}

pub async fn meta_is_kept_in_last_drain(on: On) {
    let node = on.node().await;
    on.start(&pinned(batch(&unique("drain-m"), vec![task("t", POLITE)]), &node.name)).await;
    drain(&on, &node, seconds(3), false).await.ok();
    let n = node_is(&node, "draining", |n| n["DrainStrategy"].is_object()).await;
    assert_eq!((&n["LastDrain"]["Status"], &n["LastDrain"]["Meta"]), (&json!("draining"), &json!({ "by": "the contract" })));
    let n = drained(&node).await;
    assert_eq!((&n["LastDrain"]["Status"], &n["LastDrain"]["Meta"]), (&json!("complete"), &json!({ "by": "the contract" })));
}

pub async fn a_negative_deadline_tells_everything_at_once(on: On) {
    let node = on.node().await;
    let patient = |job: Value| pinned(group(job, json!({})), &node.name);
    let mut allocs = vec![];
    for job in [
        service(&unique("force-s"), vec![task("t", IMPOLITE)]),
        batch(&unique("force-b"), vec![task("t", IMPOLITE)]),
        system(&unique("force-y"), vec![task("t", IMPOLITE)]),
    ] {
        allocs.push(on.start(&patient(job)).await);
    }
    drain(&on, &node, -1, false).await.ok();
    for alloc in &allocs {
        on.event(id(alloc), "t", "Killing").await;
    }
    drained(&node).await;
    allocs.iter().for_each(|a| assert!(proc(a, "t").lives()));
}

pub async fn eligibility_twice_and_nonsense(on: On) {
    let node = on.node().await;
    let path = format!("/v1/node/{}/eligibility", node.id);
    let set = |what: &str| json!({ "NodeID": node.id, "Eligibility": what });
    for what in ["ineligible", "ineligible", "eligible", "eligible"] {
        on.put(&path, &set(what)).await.ok();
        assert_eq!(node.node().await.unwrap()["SchedulingEligibility"], what);
    }
    assert_eq!(on.put(&path, &set("nope")).await.says(), (500, "invalid scheduling eligibility \"nope\""));
    let nobody = on.put("/v1/node/00000000-0000-0000-0000-000000000000/drain", &json!({ "DrainSpec": { "Deadline": 1 } })).await;
    assert_eq!(nobody.says(), (500, "node not found"));
}
