//! Rollouts through Curfew: `kill_timeout` is 24 hours in Nomad, and each ends as its author wrote it.

use std::time::Duration;

use curfew_core::Timestamp;
use curfew_core::api::{CrashView, JobStatusView, OperationView};
use curfew_core::operation::{Kind as OpKind, State};
use curfew_core::rollout::{End, FailedBy, Happening, RolloutView, What};
use curfew_tests::cluster::Kind;
use curfew_tests::command::Ran;
use curfew_tests::jobs::{IMPOLITE, POLITE, batch, group, nanos, service, task, with};
use curfew_tests::lab::{Lab, PATIENCE, late, short, unique};
use curfew_tests::run::Given;
use curfew_tests::wait::{always, eventually};
use serde_json::{Value, json};

/// Runs for so long, then gives up.
const FLAKY: &str = "trap 'exit 0' TERM; sleep 2 & wait; exit 1";

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// A service of `count` that rolls one by one, healthy after a second, back to the last stable version when it fails.
fn rolling(id: &str, version: &str, script: &str, count: u64) -> Value {
    let update = json!({ "MaxParallel": 1, "MinHealthyTime": nanos(secs(1)), "HealthyDeadline": nanos(secs(20)),
        "ProgressDeadline": nanos(secs(60)), "AutoRevert": true, "HealthCheck": "task_states" });
    let t = with(task("t", script), json!({ "Env": { "VERSION": version }, "KillTimeout": nanos(secs(5)) }));
    group(service(id, vec![t]), json!({ "Count": count, "Update": update }))
}

/// With fields of its `update` block replaced.
fn updating(mut job: Value, fields: Value) -> Value {
    let update = job["TaskGroups"][0]["Update"].take();
    job["TaskGroups"][0]["Update"] = with(update, fields);
    job
}

/// One that keeps running after it has crashed some times.
fn restarting(job: Value, attempts: u64) -> Value {
    let policy = json!({ "Attempts": attempts, "Mode": "fail", "Interval": nanos(secs(60)), "Delay": nanos(secs(1)) });
    group(job, json!({ "RestartPolicy": policy }))
}

async fn watch(lab: &Lab, job: &Value, more: &[&str]) -> Ran {
    let args: Vec<&str> = ["job", "run", "-", "--watch"].iter().chain(more).copied().collect();
    lab.run(&args).stdin(job.to_string()).within(PATIENCE * 2).run().await
}

async fn detached(lab: &Lab, job: &Value) -> OperationView {
    watch(lab, job, &["--detach", "--json"]).await.code(0).operation()
}

/// The objects of one that was followed with `--json`: one a line, the last is its end.
#[track_caller]
fn last(ran: &Ran) -> OperationView {
    let line = ran.stdout.lines().last().unwrap_or_else(|| panic!("nothing: {ran}"));
    serde_json::from_str(line).unwrap_or_else(|e| panic!("not an operation a line ({e}): {ran}"))
}

#[track_caller]
fn rollout(op: &OperationView) -> &RolloutView {
    op.outcome.as_ref().and_then(|o| o.rollout.as_ref()).unwrap_or_else(|| panic!("no rollout: {op:?}"))
}

#[track_caller]
fn ended(op: &OperationView, end: End) -> &RolloutView {
    let view = rollout(op);
    assert_eq!((op.kind, view.end), (OpKind::Rollout, Some(end)), "{op:?}");
    assert_eq!(op.state, if end == End::Deployed { State::Succeeded } else { State::Failed }, "{op:?}");
    view
}

fn story(view: &RolloutView) -> &[Happening] {
    &view.groups["g"].timeline
}

/// Follows an operation until its view satisfies.
async fn until(lab: &Lab, op: &OperationView, what: &str, enough: impl Fn(&OperationView) -> bool) -> OperationView {
    eventually(PATIENCE, what, async || {
        let now = lab.curfew.operation(op.id).await;
        if enough(&now) { Ok(now) } else { Err(format!("{now:?}")) }
    })
    .await
}

/// What Nomad wants of a job, by the version that it runs.
async fn versions_that_run(lab: &Lab, job: &str) -> Vec<u64> {
    let all = lab.cluster.api.allocations(job).await.unwrap();
    let runs = all.iter().filter(|a| a["DesiredStatus"] == "run" && a["ClientStatus"] == "running");
    runs.filter_map(|a| a["JobVersion"].as_u64()).collect()
}

async fn deployed(lab: &Lab, job: &Value) -> OperationView {
    let ran = watch(lab, job, &["--json"]).await.code(0);
    let op = last(&ran);
    ended(&op, End::Deployed);
    op
}

pub async fn a_new_version_rolls_in_one_by_one(given: Given) {
    let lab = given.shared().await;
    let id = unique("roll");
    let first = deployed(&lab, &rolling(&id, "0.1", POLITE, 2)).await;
    assert_eq!(rollout(&first).version, Some(0));
    let ran = watch(&lab, &rolling(&id, "0.2", POLITE, 2), &[]).await.code(0);
    for words in [
        "rollout accepted",
        "deployment",
        "of version 1",
        "placed",
        "started",
        "healthy",
        "told to end, SIGKILL in 5.0s",
        "ended, exit code 0",
        "Deployment completed successfully",
        &format!("{id}: version 1 deployed in "),
    ] {
        assert!(ran.stdout.contains(words), "no {words:?}: {ran}");
    }
    let listed = lab.run(&["op", "list", "--job", &id, "--kind", "rollout", "--json"]).run().await.code(0).json();
    let op: OperationView = serde_json::from_value(listed[0].clone()).unwrap();
    let view = ended(&op, End::Deployed);
    assert_eq!((view.version, view.deployments.len(), view.groups["g"].healthy), (Some(1), 1, 2), "{view:?}");
    assert_ne!(view.deployments[0].id, rollout(&first).deployments[0].id, "the older deployment was followed");
    // One by one: the second of the old ones is told when the first of the new ones is healthy.
    let times =
        |what: fn(&What) -> bool| -> Vec<Timestamp> { story(view).iter().filter(|h| what(&h.what)).map(|h| h.at).collect() };
    let (told, healthy) = (times(|w| matches!(w, What::ToldToEnd { .. })), times(|w| *w == What::Healthy));
    assert_eq!((told.len(), healthy.len()), (2, 2), "{view:?}");
    assert!(told[1] >= healthy[0], "{view:?}");
    assert!(story(view).iter().all(|h| !matches!(h.what, What::Exited { .. } | What::Sigkill)), "{view:?}");
    assert_eq!(versions_that_run(&lab, &id).await, [1, 1]);
    lab.discard(&id).await;
}

/// The old version ignores SIGTERM. Nomad's `kill_timeout` is 24 h: alone it would wait that long for each replacement.
pub async fn an_impolite_old_version_is_killed_by_its_clock(given: Given) {
    let lab = given.shared().await;
    let (id, alone) = (unique("impolite-roll"), unique("nomad-alone"));
    let day = |version: &str| {
        let job = updating(rolling(&alone, version, IMPOLITE, 1), json!({ "ProgressDeadline": 0 }));
        let t = with(
            job["TaskGroups"][0]["Tasks"][0].clone(),
            json!({ "KillTimeout": nanos(secs(86_400)), "KillSignal": "SIGTERM" }),
        );
        group(job, json!({ "Tasks": [t] }))
    };
    lab.cluster.api.put("/v1/jobs", &json!({ "Job": day("0.1") })).await;
    let old = lab.running(&alone).await;
    deployed(&lab, &rolling(&id, "0.1", IMPOLITE, 2)).await;
    lab.cluster.api.put("/v1/jobs", &json!({ "Job": day("0.2") })).await;
    let op = last(&watch(&lab, &rolling(&id, "0.2", IMPOLITE, 2), &["--json"]).await.code(0));
    let view = ended(&op, End::Deployed);
    let told: Vec<&Happening> = story(view).iter().filter(|h| matches!(h.what, What::ToldToEnd { .. })).collect();
    assert_eq!(told.len(), 2, "{view:?}");
    for told in told {
        let of_it = |what: fn(&What) -> bool| story(view).iter().find(|h| h.alloc == told.alloc && what(&h.what)).cloned();
        let What::ToldToEnd { kill_at: Some(kill_at) } = told.what else { panic!("{told:?}") };
        assert_eq!(kill_at.since(told.at), secs(5), "{told:?}");
        let killed = of_it(|w| *w == What::Sigkill).unwrap_or_else(|| panic!("no SIGKILL: {view:?}"));
        let ended = of_it(|w| matches!(w, What::Ended { .. })).unwrap_or_else(|| panic!("no end: {view:?}"));
        assert!(killed.at >= kill_at && ended.at >= kill_at, "before its clock: {view:?}");
        let next = story(view).iter().find(|h| h.what == What::Started && h.at >= ended.at);
        let next = next.unwrap_or_else(|| panic!("no replacement after {ended:?}: {view:?}"));
        let took = next.at.since(kill_at);
        assert!(took <= secs(1).max(late()), "its replacement started {took:?} after the clock: {view:?}");
    }
    let waits = async || {
        let all = lab.cluster.api.allocations(&alone).await?;
        let pending = all.iter().any(|a| a["JobVersion"] == 1 && a["ClientStatus"] == "pending");
        if pending && old.task("t").lives() { Ok(()) } else { Err(short(&all)) }
    };
    always(secs(2), "that Nomad alone waits for the old version", waits).await;
    lab.stop(&alone, &["--stop-timeout", "1s"]).await.code(0);
    lab.stop(&id, &["--stop-timeout", "1s"]).await.code(0);
}

/// Version 2 crashes again and again; nothing becomes healthy before its author's progress deadline.
fn flaky(id: &str) -> Value {
    let later = json!({ "Unlimited": true, "Delay": nanos(secs(30)), "DelayFunction": "constant" });
    let job = group(restarting(rolling(id, "0.3", FLAKY, 1), 20), json!({ "ReschedulePolicy": later }));
    updating(
        job,
        json!({ "MinHealthyTime": nanos(secs(5)), "HealthyDeadline": nanos(secs(8)), "ProgressDeadline": nanos(secs(10)) }),
    )
}

async fn two_versions(lab: &Lab, id: &str) {
    deployed(lab, &rolling(id, "0.1", POLITE, 1)).await;
    deployed(lab, &rolling(id, "0.2", POLITE, 1)).await;
}

fn reverted_by_the_deadline(op: &OperationView) {
    let view = ended(op, End::Reverted);
    assert_eq!((view.version, view.reverted_to, view.failed_by), (Some(2), Some(1), Some(FailedBy::ProgressDeadline)), "{op:?}");
    assert_eq!(view.deployments.iter().map(|d| (d.version, d.rollback)).collect::<Vec<_>>(), [(2, false), (3, true)], "{op:?}");
    let error = op.error.as_deref().unwrap_or_default();
    for words in ["version 2 failed", "progress deadline", "exited with 1", "restart", "of 20 in 1m", "version 1 runs again"] {
        assert!(error.contains(words), "no {words:?}: {error}");
    }
    let of_2: Vec<&Happening> = story(view).iter().filter(|h| h.version == Some(2)).collect();
    let first = of_2.iter().find(|h| matches!(h.what, What::Restarting { number: 1, of: 20, .. }));
    assert!(first.is_some() && of_2.iter().any(|h| matches!(h.what, What::Exited { exit_code: 1, .. })), "{view:?}");
    let (placed, failed) = (of_2.iter().find(|h| matches!(h.what, What::Placed { .. })), view.deployments[0].ended_at);
    let after = failed.unwrap().since(placed.unwrap().at);
    assert!(after >= secs(9) && after <= secs(10) + secs(2).max(late()), "failed {after:?} after it was placed: {view:?}");
}

pub async fn a_flaky_version_is_reverted_by_the_deadline(given: Given) {
    let lab = given.shared().await;
    let id = unique("flaky");
    two_versions(&lab, &id).await;
    let ran = watch(&lab, &flaky(&id), &["--json"]).await.code(6);
    reverted_by_the_deadline(&last(&ran));
    assert_eq!(versions_that_run(&lab, &id).await, [3]);
    let now = lab.cluster.api.get(&format!("/v1/job/{id}")).await;
    assert_eq!(now["TaskGroups"][0]["Tasks"][0]["Env"]["VERSION"], "0.2", "{now}");
    // Where people read it.
    let ran = watch(&lab, &flaky(&id), &["--timeout", "90s"]).await.code(6);
    ran.says(&["reverted to version", "progress deadline"]);
    lab.discard(&id).await;
}

pub async fn killed_in_the_middle_it_comes_to_the_same_end(given: Given) {
    let mut lab = given.own().await;
    let (id, good) = (unique("flaky-crash"), unique("roll-crash"));
    two_versions(&lab, &id).await;
    deployed(&lab, &rolling(&good, "0.1", IMPOLITE, 2)).await;
    let (bad, rolls) = (detached(&lab, &flaky(&id)).await, detached(&lab, &rolling(&good, "0.2", IMPOLITE, 2)).await);
    until(&lab, &bad, "a restart", |op| {
        op.outcome
            .as_ref()
            .and_then(|o| o.rollout.as_ref())
            .is_some_and(|v| v.groups.values().flat_map(|g| &g.timeline).any(|h| matches!(h.what, What::Restarting { .. })))
    })
    .await;
    lab.own().kill().await;
    lab.own().restart().await;
    let bad = lab.curfew.finished(bad.id, PATIENCE).await;
    reverted_by_the_deadline(&bad);
    let rolls = lab.curfew.finished(rolls.id, PATIENCE).await;
    let view = ended(&rolls, End::Deployed);
    let count = |what: fn(&What) -> bool| story(view).iter().filter(|h| what(&h.what)).count();
    assert_eq!((count(|w| *w == What::Sigkill), count(|w| *w == What::Healthy)), (2, 2), "{view:?}");
    for id in [&id, &good] {
        lab.stop(id, &["--stop-timeout", "1s"]).await.code(0);
    }
}

pub async fn canaries_wait_for_their_promotion(given: Given) {
    let lab = given.shared().await;
    let id = unique("canary");
    deployed(&lab, &rolling(&id, "0.1", POLITE, 2)).await;
    let canary = |version: &str| updating(rolling(&id, version, POLITE, 2), json!({ "Canary": 1 }));
    let op = detached(&lab, &canary("0.2")).await;
    let waits = |op: &OperationView| op.waiting_for.as_ref().is_some_and(|w| w.contains("to be promoted"));
    let shown = until(&lab, &op, "canaries that wait", waits).await;
    assert_eq!((rollout(&shown).groups["g"].canaries, rollout(&shown).groups["g"].promoted), (1, false));
    assert!(story(rollout(&shown)).iter().any(|h| h.what == What::Placed { canary: true }), "{shown:?}");
    lab.run(&["job", "promote", &id, "--reason", "looks good"]).run().await.code(0);
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert!(ended(&op, End::Deployed).groups["g"].promoted, "{op:?}");
    lab.run(&["job", "promote", &id]).run().await.code(1).says(&["successful already", "nothing to promote"]);

    // And one that somebody fails: back to what ran before.
    let op = detached(&lab, &canary("0.3")).await;
    until(&lab, &op, "canaries that wait", waits).await;
    let failing = lab.run(&["job", "fail", &id, "--json"]).run().await.code(0).operation();
    assert_eq!((failing.kind, failing.state), (OpKind::Deployment, State::Succeeded));
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    let view = ended(&op, End::Reverted);
    assert_eq!((view.reverted_to, view.failed_by), (Some(1), Some(FailedBy::Hand)), "{op:?}");
    let trail = lab.curfew.trail(failing.id).await;
    assert!(trail.iter().any(|r| r["action"] == "deployment_failed"), "{trail:?}");

    // Back by hand to the very first one.
    lab.run(&["job", "revert", &id, "77"]).run().await.code(1).says(&["no version 77", "it has 3, 2, 1, 0"]);
    let ran = lab.run(&["job", "revert", &id, "0", "--json"]).within(PATIENCE).run().await.code(0);
    assert_eq!(ended(&last(&ran), End::Deployed).version, Some(4), "{ran}");
    let now = lab.cluster.api.get(&format!("/v1/job/{id}")).await;
    assert_eq!(now["TaskGroups"][0]["Tasks"][0]["Env"]["VERSION"], "0.1", "{now}");
    lab.discard(&id).await;
}

pub async fn a_newer_version_and_a_stop_supersede(given: Given) {
    let lab = given.shared().await;
    let id = unique("superseded");
    deployed(&lab, &rolling(&id, "0.1", POLITE, 1)).await;
    let slow = |version: &str| updating(rolling(&id, version, POLITE, 1), json!({ "MinHealthyTime": nanos(secs(15)) }));
    let first = detached(&lab, &slow("0.2")).await;
    until(&lab, &first, "its deployment", |op| {
        op.outcome.as_ref().is_some_and(|o| o.rollout.as_ref().is_some_and(|r| !r.deployments.is_empty()))
    })
    .await;
    let second = detached(&lab, &slow("0.3")).await;
    let first = lab.curfew.finished(first.id, PATIENCE).await;
    ended(&first, End::Superseded);
    assert!(first.error.as_ref().is_some_and(|e| e.contains("version 2 of the job was registered")), "{first:?}");
    until(&lab, &second, "its deployment", |op| {
        op.outcome.as_ref().is_some_and(|o| o.rollout.as_ref().is_some_and(|r| !r.deployments.is_empty()))
    })
    .await;
    let (watched, _) =
        tokio::join!(lab.run(&["op", "watch", &second.id.to_string()]).run(), lab.stop(&id, &["--stop-timeout", "5s"]));
    watched.code(8).says(&["superseded", "the job was stopped"]);
}

pub async fn what_has_no_place_says_which_constraint(given: Given) {
    let lab = given.shared().await;
    let id = unique("nowhere");
    let windows = json!({ "Constraints": [{ "LTarget": "${attr.kernel.name}", "RTarget": "windows", "Operand": "=" }] });
    let nodes = lab.cluster.nodes().len();
    let sentence =
        [format!("no place on {nodes} nodes"), "${attr.kernel.name} = windows".into(), format!("rules out {nodes} nodes")];
    // A batch job has no deployment, and so no deadline.
    let ran = watch(&lab, &with(batch(&id, vec![task("t", POLITE)]), windows.clone()), &["--json"]).await.code(7);
    let op = last(&ran);
    let view = ended(&op, End::Stalled);
    assert_eq!(view.groups["g"].unplaced.as_ref().map(|u| (u.nodes, u.filtered)), Some((nodes as u64, nodes as u64)), "{op:?}");
    sentence.iter().for_each(|w| assert!(op.error.as_ref().is_some_and(|e| e.contains(w)), "no {w}: {op:?}"));
    // Nomad's deadline for a service begins with the first allocation that is placed.
    let (other, large) = (unique("nowhere"), unique("large"));
    let op = last(&watch(&lab, &with(rolling(&other, "0.1", POLITE, 1), windows), &["--json"]).await.code(7));
    sentence.iter().for_each(|w| assert!(op.error.as_ref().is_some_and(|e| e.contains(w)), "no {w}: {op:?}"));
    // Room is waited for, as long as the author grants for progress, and the waiting says why.
    let short = json!({ "HealthyDeadline": nanos(secs(3)), "ProgressDeadline": nanos(secs(6)) });
    let t = with(task("t", POLITE), json!({ "Resources": { "CPU": 10, "MemoryMB": 90_000_000 } }));
    let op = detached(&lab, &group(updating(rolling(&large, "0.1", POLITE, 1), short), json!({ "Tasks": [t] }))).await;
    until(&lab, &op, "what it waits for", |op| op.waiting_for.as_ref().is_some_and(|w| w.contains("too little memory"))).await;
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    ended(&op, End::Stalled);
    assert!(op.finished_at.unwrap().since(op.requested_at) >= secs(6), "{op:?}");
    for id in [id, other, large] {
        lab.discard(&id).await;
    }
}

pub async fn without_a_deployment(given: Given) {
    let lab = given.shared().await;
    let (b, s, plain, parent) = (unique("b"), unique("s"), unique("plain"), unique("parent"));
    let op = deployed(&lab, &batch(&b, vec![task("t", "exit 0")])).await;
    assert!(rollout(&op).deployments.is_empty(), "{op:?}");
    // Restarted here or elsewhere no more: it failed for good.
    let failing = unique("b");
    let ran = watch(&lab, &batch(&failing, vec![task("t", "exit 3")]), &["--json"]).await;
    let view = rollout(&last(&ran)).clone();
    // It may be looked at before it ended: started is all that is asked for.
    assert!(matches!((ran.code, view.end), (Some(0), Some(End::Deployed)) | (Some(1), Some(End::Failed))), "{ran}");
    let mut system = with(service(&s, vec![task("t", POLITE)]), json!({ "Type": "system" }));
    system["TaskGroups"][0].as_object_mut().unwrap().remove("ReschedulePolicy");
    let op = deployed(&lab, &system).await;
    assert_eq!(rollout(&op).groups["g"].placed, lab.cluster.nodes().len() as u64, "{op:?}");
    // No update block that says anything: `max_parallel = 0` switches deployments off.
    let no_deployment = |version: &str| updating(rolling(&plain, version, IMPOLITE, 1), json!({ "MaxParallel": 0 }));
    deployed(&lab, &no_deployment("0.1")).await;
    let op = deployed(&lab, &no_deployment("0.2")).await;
    assert!(rollout(&op).deployments.is_empty() && story(rollout(&op)).iter().any(|h| h.what == What::Sigkill), "{op:?}");
    let job = with(batch(&parent, vec![task("t", POLITE)]), json!({ "ParameterizedJob": {} }));
    deployed(&lab, &job).await;
    for id in [b, failing, s, plain, parent] {
        lab.stop(&id, &["--stop-timeout", "1s"]).await.code(0);
    }
}

/// Node by node: before Nomad 1.11 by the author's `stagger`, from then on by a deployment and its `min_healthy_time`. The embedded
/// cluster replaces all at once. The clock is the author's on all of them.
pub async fn a_system_job_rolls_node_by_node(given: Given) {
    let lab = given.own().await;
    let (id, nodes) = (unique("system"), lab.cluster.nodes().len());
    let job = |version: &str| {
        let paced = json!({ "MinHealthyTime": nanos(secs(3)), "Stagger": nanos(secs(3)), "AutoRevert": false });
        let mut job = updating(rolling(&id, version, IMPOLITE, 1), paced);
        // Stagger counts as the job's.
        job["Update"] = job["TaskGroups"][0]["Update"].clone();
        job["Type"] = json!("system");
        job["TaskGroups"][0].as_object_mut().unwrap().remove("ReschedulePolicy");
        job["TaskGroups"][0]["Tasks"][0]["KillTimeout"] = json!(nanos(secs(2)));
        job
    };
    deployed(&lab, &job("0.1")).await;
    let op = deployed(&lab, &job("0.2")).await;
    let mut told: Vec<(Timestamp, Timestamp)> = story(rollout(&op))
        .iter()
        .filter_map(|h| if let What::ToldToEnd { kill_at } = h.what { Some((h.at, kill_at?)) } else { None })
        .collect();
    told.sort();
    assert_eq!(told.len(), nodes, "{op:?}");
    assert!(told.iter().all(|(at, kill)| kill.since(*at) <= secs(2)), "{told:?}");
    assert_eq!(story(rollout(&op)).iter().filter(|h| h.what == What::Sigkill).count(), nodes, "{op:?}");
    assert_eq!(versions_that_run(&lab, &id).await, vec![1; nodes], "{op:?}");
    if given.kind == Kind::Real {
        assert!(told.windows(2).all(|w| w[1].0.since(w[0].0) >= secs(2)), "{told:?}");
        assert_eq!(rollout(&op).deployments.is_empty(), !lab.cluster.is_at_least((1, 11, 0)), "{op:?}");
    }
    lab.stop(&id, &["--stop-timeout", "1s"]).await.code(0);
}

pub async fn a_count_change_the_same_again_and_an_index(given: Given) {
    let lab = given.shared().await;
    let id = unique("count");
    let job = |count| rolling(&id, "0.1", POLITE, count);
    let none = watch(&lab, &job(1), &["--check-index", "7"]).await.code(1);
    none.says(&["there is no job", "--check-index 7"]);
    deployed(&lab, &job(1)).await;
    let before = lab.cluster.api.allocations(&id).await.unwrap();
    let again = watch(&lab, &job(1), &[]).await.code(0);
    assert!(again.stdout.contains("nothing to do") && again.stdout.contains("version 0 runs"), "{again}");
    let op = deployed(&lab, &job(3)).await;
    assert_eq!((rollout(&op).version, rollout(&op).groups["g"].desired), (Some(1), 3), "{op:?}");
    assert!(story(rollout(&op)).iter().all(|h| !matches!(h.what, What::ToldToEnd { .. })), "{op:?}");
    let kept = lab.cluster.api.allocations(&id).await.unwrap();
    assert!(kept.iter().any(|a| a["ID"] == before[0]["ID"] && a["ClientStatus"] == "running"), "{}", short(&kept));
    // Fewer: two are told to end, and waited for.
    let op = deployed(&lab, &job(1)).await;
    assert_eq!(story(rollout(&op)).iter().filter(|h| matches!(h.what, What::Ended { .. })).count(), 2, "{op:?}");
    let index = lab.cluster.api.get(&format!("/v1/job/{id}")).await["JobModifyIndex"].as_u64().unwrap();
    let stale = watch(&lab, &job(2), &["--check-index", &(index - 1).to_string()]).await.code(1);
    stale.says(&[&format!("has the index {index}"), "somebody changed it"]);
    watch(&lab, &job(2), &["--check-index", &index.to_string(), "--json"]).await.code(0);
    lab.discard(&id).await;
}

/// Healthy in time, crashes later: its rollout succeeded, and `job status` counts the restarts.
pub async fn a_success_that_crashes_later_shows_in_its_status(given: Given) {
    let lab = given.shared().await;
    let id = unique("crashes");
    let policy = json!({ "Attempts": 3, "Mode": "delay", "Interval": nanos(secs(40)), "Delay": nanos(secs(1)) });
    deployed(&lab, &group(rolling(&id, "0.1", FLAKY, 1), json!({ "RestartPolicy": policy }))).await;
    let crash = async |enough: fn(&CrashView) -> bool| {
        eventually(PATIENCE, "a crash in its status", async || {
            let ran = lab.run(&["job", "status", &id, "--json"]).run().await.code(0);
            let job: JobStatusView = serde_json::from_value(ran.json()).map_err(|e| e.to_string())?;
            let crash = job.allocations.iter().flat_map(|a| &a.tasks).find_map(|t| t.crashes.clone());
            crash.filter(enough).ok_or_else(|| ran.to_string())
        })
        .await
    };
    let first = crash(|c| c.next_at.is_some()).await;
    assert_eq!((first.of, first.within, first.exit_code, first.used_up), (3, secs(40), Some(1), false), "{first:?}");
    let last = crash(|c| c.used_up).await;
    assert_eq!((last.restarts, last.next_at.is_some_and(|at| at >= last.until - secs(2))), (3, true), "{last:?}");
    let shown = lab.run(&["job", "status", &id]).run().await.code(0);
    for words in ["crashes: exit code 1, 3 of 3 restarts in 40s", "all used up, the next attempt in"] {
        assert!(shown.stdout.contains(words), "no {words:?}: {shown}");
    }
    lab.stop(&id, &["--stop-timeout", "1s", "--purge-when-dead"]).await.code(0);
    assert!(lab.cluster.api.try_get(&format!("/v1/job/{id}")).await.is_err(), "it is still there");
}

/// `for JOB in …; do nomad job stop -purge …`, without leaving processes.
pub async fn stop_all_by_prefix_and_purge_when_dead(given: Given) {
    let lab = given.shared().await;
    let prefix = unique("sweep");
    let (polite, impolite, other) = (format!("{prefix}-p"), format!("{prefix}-i"), unique("stays"));
    let of = |id: &str, script: &str| service(id, vec![with(task("t", script), json!({ "KillTimeout": nanos(secs(2)) }))]);
    let first = lab.start(&of(&polite, POLITE)).await;
    let second = lab.start(&of(&impolite, IMPOLITE)).await;
    let third = lab.start(&of(&other, POLITE)).await;
    let listed = lab.run(&["job", "list", &prefix]).run().await.code(0);
    assert!(listed.stdout.contains(&polite) && listed.stdout.contains(&impolite) && !listed.stdout.contains(&other), "{listed}");
    let all = ["job", "stop", "--all", "--prefix", &prefix, "--purge-when-dead"];
    lab.run(&all).run().await.code(2).says(&["stops and purges 2 jobs", "no terminal", "--yes"]);
    let ran = lab.run(&[&all[..], &["--yes"]].concat()).run().await.code(0);
    assert!(ran.stdout.contains("2 of 2 jobs stopped: 1 tasks ended by themselves, 1 needed SIGKILL"), "{ran}");
    assert!(!first.task("t").lives() && !second.task("t").lives() && third.task("t").lives(), "{ran}");
    for id in [&polite, &impolite] {
        assert!(lab.cluster.api.try_get(&format!("/v1/job/{id}")).await.is_err(), "{id} is still there");
    }
    let history = lab.run(&["job", "history", &other]).run().await.code(0);
    assert!(history.stdout.contains("VERSION") && history.stdout.lines().count() == 2, "{history}");
    lab.run(&["job", "history", &polite]).run().await.code(1).says(&["there is no job"]);
    lab.discard(&other).await;
}
