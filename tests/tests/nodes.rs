//! Nodes and servers that cannot be reached, or that do not let the raised kill_timeout stand.

use std::time::Duration;

use curfew_core::OpId;
use curfew_core::Timestamp;
use curfew_core::operation::State;
use curfew_tests::cluster::{Cluster, Kind, Shape};
use curfew_tests::controller::Controller;
use curfew_tests::jobs::{IMPOLITE, POLITE, nanos, on, service, task, with};
use curfew_tests::lab::{Lab, PATIENCE, assert_killed, assert_late, late, task_of, unique};
use curfew_tests::now;
use curfew_tests::proxy::Refuse;
use curfew_tests::run::Given;
use curfew_tests::wait::{clock_passes, eventually};
use serde_json::{Value, json};

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The clock of the operation's only task, as soon as SIGTERM was seen.
async fn clock_of(lab: &Lab, op: OpId) -> Timestamp {
    eventually(PATIENCE, "SIGTERM to be known", async || {
        let now = lab.curfew.operation(op).await;
        let tasks = now.outcome.iter().flat_map(|o| &o.allocations).flat_map(|a| &a.tasks);
        let clock = tasks.filter(|t| t.term_at.is_some()).find_map(|t| t.kill_at);
        clock.ok_or_else(|| format!("{now:?}"))
    })
    .await
}

/// The task's own event of its SIGTERM: before a node goes away it must have been told.
async fn told(lab: &Lab, alloc: &str) {
    eventually(PATIENCE, "the Killing event", async || {
        let alloc = lab.cluster.api.allocation(alloc).await?;
        let events = alloc["TaskStates"]["t"]["Events"].as_array().cloned().unwrap_or_default();
        if events.iter().any(|e| e["Type"] == "Killing") { Ok(()) } else { Err(curfew_tests::lab::short(&[alloc])) }
    })
    .await;
}

/// 404 `No path to node` at the clock: the operation says so, and ends when the node is back.
pub async fn unreachable_at_the_clock(given: Given) {
    let lab = given.own().await;
    let node = lab.cluster.nodes()[1].clone();
    let id = unique("unreachable");
    let running = lab.start(&on(service(&id, vec![task("t", IMPOLITE)]), &node)).await;
    let proc = running.task("t");
    let op = lab.stop_detached(&id, &["--stop-timeout", "4s"]).await;
    told(&lab, &running.alloc).await;
    let clock = clock_of(&lab, op.id).await;
    lab.cluster.node_down(&node).await;
    let waiting = eventually(PATIENCE, "the operation to name the node", async || {
        let now = lab.curfew.operation(op.id).await;
        let named = now.waiting_for.as_ref().is_some_and(|w| w.contains(&node) && w.contains("No path to node"));
        if named && curfew_tests::now() > clock { Ok(now) } else { Err(format!("{now:?}")) }
    })
    .await;
    assert!(!waiting.state.is_finished() && proc.lives(), "{waiting:?}");
    // Long enough for Nomad to give the node up as down.
    clock_passes(clock + s(8), "the node to be given up").await;
    let still = lab.curfew.operation(op.id).await;
    assert!(!still.state.is_finished() && proc.lives(), "{still:?}");
    lab.cluster.node_up(&node).await;
    let back = now();
    let death = proc.death(PATIENCE, "the task").await;
    assert!(death >= clock);
    assert!(death.since(back) < s(30), "{:?} after its node was back", death.since(back));
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!(op.state, State::Succeeded, "{op:?}");
    let task = task_of(&op, Some(&running.alloc), "t");
    assert!(task.signalled_at >= task.kill_at && task.signalled_at.is_some(), "{op:?}");
}

/// With the client's default of 30s a submit says which node will not wait.
pub async fn max_kill_timeout_of_30s_warns_by_name(given: Given) {
    let shape = Shape { nodes: 1, max_kill_timeout: None, ..Shape::default() };
    let cluster = Cluster::start(given.kind, &shape).await;
    let curfew = Controller::start(cluster.addr(), &[]).await;
    let id = unique("short-node");
    let job = service(&id, vec![task("t", POLITE)]).to_string();
    let ran = curfew.curfew(["job", "run", "-"]).stdin(job.clone()).run().await.code(0);
    ran.says(&["warning", &cluster.nodes()[0], "max_kill_timeout", "30s"]);
    let op = curfew.curfew(["job", "run", "-", "--json"]).stdin(job.clone()).run().await.code(0).operation();
    let node = &cluster.nodes()[0];
    assert!(op.warnings.iter().any(|w| w.contains(node) && w.contains("30s")), "{op:?}");
    let plan = curfew.curfew(["job", "plan", "-"]).stdin(job).run().await.code(0);
    plan.says(&["warning", node, "30s"]);
}

/// A node that takes the raised value is no reason to warn.
pub async fn a_raised_max_kill_timeout_does_not_warn(given: Given) {
    let lab = given.shared().await;
    let id = unique("long-node");
    let job = service(&id, vec![task("t", POLITE)]).to_string();
    let ran = lab.run(&["job", "run", "-"]).stdin(job).run().await.code(0);
    assert!(!ran.stderr.contains("warning"), "{ran}");
    lab.discard(&id).await;
}

/// Nomad's server goes away in the middle of a stop and comes back after the clock.
pub async fn the_server_restarts_in_the_middle_of_a_stop(given: Given) {
    let lab = given.own().await;
    let id = unique("server-away");
    let running = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await;
    let proc = running.task("t");
    let op = lab.stop_detached(&id, &["--stop-timeout", "4s"]).await;
    told(&lab, &running.alloc).await;
    let clock = clock_of(&lab, op.id).await;
    lab.cluster.server_down().await;
    clock_passes(clock + s(2), "the clock, without a server").await;
    assert!(proc.lives());
    let away = lab.curfew.operation(op.id).await;
    assert!(!away.state.is_finished(), "{away:?}");
    // Not ready, and it says why.
    let (status, why) = lab.curfew.api().call(reqwest::Method::GET, "/readyz", None).await.unwrap();
    assert_eq!(status, 503, "{why}");
    lab.cluster.server_up().await;
    proc.death(PATIENCE, "the task").await;
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!(op.state, State::Succeeded, "{op:?}");
}

/// The cable between controller and Nomad is cut before the DELETE could be sent; the stop was accepted and is not lost.
pub async fn cut_off_right_after_the_request(given: Given) {
    let lab = given.own().await;
    let id = unique("cable");
    let proc = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await.task("t");
    // The request is taken while Nomad is in sight, its DELETE does not get through.
    lab.proxy().refuse(Some(Refuse { method: "DELETE", path: "/v1/job/", status: 500, body: "not now" }));
    let op = lab.stop_detached(&id, &["--stop-timeout", "2s"]).await;
    lab.proxy().cut(true);
    clock_passes(op.requested_at + s(4), "four seconds without Nomad").await;
    assert!(proc.lives());
    let away = lab.curfew.operation(op.id).await;
    assert!(!away.state.is_finished() && away.waiting_for.is_some(), "{away:?}");
    lab.proxy().refuse(None);
    lab.proxy().cut(false);
    let back = now();
    let death = proc.death(PATIENCE, "the task").await;
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!(op.state, State::Succeeded, "{op:?}");
    // SIGTERM could not be sent before the cable was mended, and the promised instant has passed by then.
    assert_late(task_of(&op, None, "t"), op.requested_at + s(2));
    assert!(death.since(back) < s(20), "{:?} after the cable was mended", death.since(back));
}

/// The event stream stays open and says nothing: the next list finds who was told to end.
pub async fn lesson_24_silent_events_cost_a_resync_and_no_kill(given: Given) {
    let lab = given.own().await;
    let id = unique("silent");
    let own = s(2);
    let job = service(&id, vec![with(task("t", IMPOLITE), json!({ "KillTimeout": nanos(own) }))]);
    let proc = lab.start(&job).await.task("t");
    lab.cluster.api.put("/dev/v1/events/lose", &Value::Null).await;
    let told = now();
    lab.discard(&id).await;
    let death = proc.death(PATIENCE, "the task").await;
    assert!(death >= told + own);
    // The controllers here list every five seconds.
    assert!(death.since(told) < s(5) + own + late(), "{:?} after its DELETE", death.since(told));
    // A stop through Curfew does not even wait for the list.
    lab.submit(&job).await;
    let again = lab.running(&id).await;
    let proc = again.task("t");
    let (ran, death) = tokio::join!(lab.stop(&id, &["--stop-timeout", "2s"]), proc.death(PATIENCE, "the task"));
    assert_killed(task_of(&ran.code(0).operation(), Some(&again.alloc), "t"), own, death);
    lab.cluster.api.put("/dev/v1/events/deliver", &Value::Null).await;
}

/// What waits for its clock is not listed again and again: while nothing changes a small question is enough.
pub async fn what_waits_is_not_listed_while_nothing_changes(given: Given) {
    let lab = given.own_with(&[("CURFEW_RESYNC_INTERVAL", "300ms")]).await;
    let id = unique("waiting");
    let proc = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await.task("t");
    let op = lab.stop_detached(&id, &["--stop-timeout", "10m"]).await;
    clock_of(&lab, op.id).await;
    eventually(PATIENCE, "its wait for the clock", async || match lab.curfew.operation(op.id).await.waiting_for {
        Some(why) if why.contains("SIGKILL at") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let named = lab.proxy().seen("GET", "/v1/allocations?").into_iter().filter(|s| s.path.contains("JobID")).collect::<Vec<_>>();
    assert!(named.is_empty(), "far from its clock a stop asks for no list of its own: {named:?}");
    let counts = || {
        let all = lab.proxy().seen("GET", "/v1/allocations?");
        let lists = all.iter().filter(|s| s.path.contains("filter=")).count();
        (lists, all.len() - lists)
    };
    let mut since = counts();
    eventually(PATIENCE, "three looks without a list", async || {
        let now = counts();
        if now.0 != since.0 {
            since = now;
        }
        if now.1 >= since.1 + 3 { Ok(()) } else { Err(format!("{now:?} since {since:?}")) }
    })
    .await;
    lab.run(&["op", "kill-now", &op.id.to_string()]).run().await.code(0);
    proc.death(PATIENCE, "the task").await;
    assert_eq!(lab.curfew.finished(op.id, PATIENCE).await.state, State::Succeeded);
}

/// Every event stream ends again and again: nothing is lost, nothing is done twice.
pub async fn event_streams_that_break(given: Given) {
    let lab = given.own().await;
    let (id, healthy) = (unique("breaking"), unique("breaking-healthy"));
    let other = lab.start(&service(&healthy, vec![task("t", POLITE)])).await;
    let running = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await;
    let op = lab.stop_detached(&id, &["--stop-timeout", "4s"]).await;
    let proc = running.task("t");
    eventually(PATIENCE, "the task's death while streams break", async || {
        if given.kind == Kind::Dev {
            lab.cluster.api.put("/dev/v1/events/close", &Value::Null).await;
        } else {
            lab.proxy().cut(true);
            lab.proxy().cut(false);
        }
        if proc.lives() { Err("it lives".to_owned()) } else { Ok(()) }
    })
    .await;
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    let task = task_of(&op, None, "t");
    assert!(task.signalled_at.unwrap() >= task.kill_at.unwrap(), "{op:?}");
    assert_eq!(lab.running(&healthy).await.task("t"), other.task("t"));
    let kills = lab.proxy().seen("PUT", "/signal").len() + lab.proxy().seen("POST", "/signal").len();
    assert!(kills <= 3, "{kills} signals for one task");
}
