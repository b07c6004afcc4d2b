//! The controller dies and comes back: a clock neither starts anew nor is forgotten.

use std::time::Duration;

use curfew_core::OpId;
use curfew_core::operation::State;
use curfew_tests::cluster::Kind;
use curfew_tests::jobs::{IMPOLITE, POLITE, service, task};
use curfew_tests::lab::{Lab, PATIENCE, assert_killed, assert_late, late, task_of, unique};
use curfew_tests::now;
use curfew_tests::proxy::Refuse;
use curfew_tests::run::Given;
use curfew_tests::wait::{clock_passes, eventually};
use futures::future::join_all;
use rustix::process::Signal;
use serde_json::json;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A SIGKILL of the controller right after it accepted; back long after the clock's instant.
pub async fn killed_and_back_after_the_clock(given: Given) {
    let mut lab = given.own().await;
    let id = unique("crash-late");
    let running = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await;
    let proc = running.task("t");
    let op = lab.stop_detached(&id, &["--stop-timeout", "5s", "--reason", "the match is over"]).await;
    deleted(&lab, &id).await;
    lab.own().kill().await;
    clock_passes(op.requested_at + s(10), "ten seconds without a controller").await;
    assert!(proc.lives(), "nobody but the controller was to kill it");
    let back = now();
    let (_, death) = tokio::join!(lab.own().restart(), proc.death(PATIENCE, "the task"));
    assert!(
        death.since(back) <= late() + s(1),
        "{:?} after the restart\n{:#?}",
        death.since(back),
        lab.curfew.trail(op.id).await
    );
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!((op.state, op.reason.as_deref()), (State::Succeeded, Some("the match is over")));
    let told = task_of(&op, Some(&running.alloc), "t");
    assert!(told.signalled_at.is_some_and(|at| at >= back), "{told:?}");
    assert_eq!((told.exit_code, told.signal), (Some(137), Some(9)), "{told:?}");
    tells_the_story(&lab, op.id).await;
    let starts = lab.curfew.api().get("/v1/audit").await;
    let starts = starts.as_array().unwrap().iter().filter(|r| r["action"] == "controller_started").count();
    assert_eq!(starts, 2);
}

/// The DELETE was seen on the wire. Between the answer to the request and it lie some milliseconds.
async fn deleted(lab: &Lab, id: &str) {
    eventually(PATIENCE, "the DELETE", async || {
        if lab.proxy().seen("DELETE", id).is_empty() { Err("none yet".to_owned()) } else { Ok(()) }
    })
    .await;
}

/// Killed between the answer and the DELETE: the task hears SIGTERM only after the restart. What was promised with the answer
/// holds all the same: the clock is that of the request, and it has passed.
pub async fn killed_before_nomad_was_told(given: Given) {
    let mut lab = given.own().await;
    let id = unique("crash-untold");
    let proc = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await.task("t");
    lab.proxy().refuse(Some(Refuse { method: "DELETE", path: "/v1/job/", status: 500, body: "not now" }));
    let op = lab.stop_detached(&id, &["--stop-timeout", "3s"]).await;
    lab.own().kill().await;
    lab.proxy().refuse(None);
    clock_passes(op.requested_at + s(6), "six seconds without a controller").await;
    assert!(proc.lives());
    let back = now();
    lab.own().restart().await;
    let death = proc.death(PATIENCE, "the task").await;
    assert!(death.since(back) <= late() + s(1), "{:?} after the restart", death.since(back));
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_late(task_of(&op, None, "t"), op.requested_at + s(3));
    assert!(task_of(&op, None, "t").term_at.unwrap() >= back, "{op:?}");
    assert_eq!(lab.cluster.api.get(&format!("/v1/job/{id}")).await["Stop"], true);
}

async fn tells_the_story(lab: &Lab, op: OpId) {
    let trail = lab.curfew.trail(op).await;
    let actions: Vec<&str> = trail.iter().filter_map(|r| r["action"].as_str()).collect();
    assert_eq!((actions.first(), actions.last()), (Some(&"requested"), Some(&"succeeded")), "{actions:?}");
    // The keeper and the step write their own rows. A controller that dies between the DELETE and its row leaves it to the next one,
    // after a SIGKILL perhaps; it is never left out, and never there twice.
    assert_eq!(actions.iter().filter(|a| **a == "job_deleted").count(), 1, "{actions:?}");
    assert!(actions.contains(&"sigkill_sent"), "{actions:?}");
    let seqs: Vec<u64> = trail.iter().filter_map(|r| r["seq"].as_u64()).collect();
    assert!(seqs.len() == trail.len() && seqs.is_sorted(), "{seqs:?}");
}

/// Back before the clock's instant: dead at that instant, as if nothing had happened.
pub async fn killed_and_back_before_the_clock(given: Given) {
    let mut lab = given.own().await;
    let id = unique("crash-early");
    let proc = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await.task("t");
    let op = lab.stop_detached(&id, &["--stop-timeout", "8s"]).await;
    // Written down, told, and then gone.
    eventually(PATIENCE, "SIGTERM to be known", async || {
        let now = lab.curfew.operation(op.id).await;
        let known =
            now.outcome.as_ref().is_some_and(|o| o.allocations.iter().flat_map(|a| &a.tasks).any(|t| t.term_at.is_some()));
        if known { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    lab.own().kill().await;
    lab.own().restart().await;
    let death = proc.death(PATIENCE, "the task").await;
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_killed(task_of(&op, None, "t"), s(8), death);
    assert!(op.deadline.unwrap().since(op.requested_at) < s(8) + late(), "{op:?}");
}

/// Dozens of stops under way, and the controller is replaced in an orderly way: SIGTERM, exit 0, the next one.
pub async fn a_restart_with_many_stops_in_flight(given: Given) {
    let mut lab = given.own().await;
    // A real Nomad runs two processes of its own for each task.
    let many = if given.kind == Kind::Dev { 50 } else { 12 };
    let ids: Vec<String> = (0..many).map(|_| unique("flight")).collect();
    let api = lab.curfew.api().clone();
    let requests = ids.iter().map(|id| {
        let body = json!({ "spec": { "json": service(id, vec![task("t", IMPOLITE)]) } });
        let api = api.clone();
        async move { api.call(reqwest::Method::POST, "/v1/jobs", Some(&body)).await }
    });
    for answer in join_all(requests).await {
        assert!(matches!(answer, Ok((202, _))), "{answer:?}");
    }
    let procs = join_all(ids.iter().map(|id| lab.running(id))).await;
    let stops = ids.iter().map(|id| {
        let (api, body) = (api.clone(), json!({ "stop_timeout": "10s" }));
        let path = format!("/v1/jobs/{id}/stop");
        async move { api.call(reqwest::Method::POST, &path, Some(&body)).await.unwrap() }
    });
    let ops: Vec<OpId> = join_all(stops).await.iter().map(|(_, op)| op["id"].as_str().unwrap().parse().unwrap()).collect();
    let asked = now();
    let status = lab.own().end(Signal::TERM, s(10)).await;
    assert_eq!(status.code(), Some(0), "{}", lab.curfew.log());
    assert!(now().since(asked) < s(1) + late(), "it took {:?} to stop", now().since(asked));
    assert!(procs.iter().all(|r| r.task("t").lives()), "a controller that stops kills nobody");
    lab.own().restart().await;
    let deaths = join_all(procs.iter().map(|r| r.task("t").death(PATIENCE, &r.job))).await;
    for (op, death) in ops.into_iter().zip(deaths) {
        let op = lab.curfew.finished(op, PATIENCE).await;
        assert_eq!(op.state, State::Succeeded, "{op:?}");
        assert_killed(task_of(&op, None, "t"), s(10), death);
    }
}

pub async fn sigterm_ends_it_quickly_with_0(given: Given) {
    let mut lab = given.own().await;
    let id = unique("quick");
    lab.start(&service(&id, vec![task("t", IMPOLITE)])).await;
    lab.stop_detached(&id, &["--stop-timeout", "1h"]).await;
    let asked = now();
    let status = lab.own().end(Signal::TERM, s(10)).await;
    assert_eq!(status.code(), Some(0), "{}", lab.curfew.log());
    assert!(now().since(asked) < s(4), "it took {:?}", now().since(asked));
    let log = lab.curfew.log();
    assert!(!log.contains("panicked"), "{log}");
    lab.own().restart().await;
    lab.stop(&id, &["--stop-timeout", "1s"]).await.code(0);
}

/// A command that waits for a stop rides out the controller's restart.
pub async fn a_waiting_command_survives_the_restart(given: Given) {
    let mut lab = given.own().await;
    let id = unique("riding");
    lab.start(&service(&id, vec![task("t", IMPOLITE)])).await;
    let watching = lab.run(&["job", "stop", &id, "--stop-timeout", "6s", "--json"]).run();
    let restart = async {
        let api = lab.curfew.api().clone();
        eventually(PATIENCE, "the stop to be accepted", async || {
            let ops = api.get(&format!("/v1/operations?job={id}&kind=stop")).await;
            if ops.as_array().is_some_and(|l| !l.is_empty()) { Ok(()) } else { Err(ops.to_string()) }
        })
        .await;
        lab.own().kill().await;
        lab.own().restart().await;
    };
    let (ran, ()) = tokio::join!(watching, restart);
    assert_eq!(ran.code(0).operation().state, State::Succeeded);
}

/// The same job registered again one second after its stop: the new allocation lives, the old one dies by its clock.
pub async fn registered_again_after_its_stop(given: Given) {
    let lab = given.shared().await;
    let id = unique("again");
    let job = service(&id, vec![task("t", IMPOLITE)]);
    let old = lab.start(&job).await;
    let op = lab.stop_detached(&id, &["--stop-timeout", "5s"]).await;
    clock_passes(op.requested_at + s(1), "a second after the stop").await;
    lab.submit(&job).await;
    let new = lab.running_besides(&id, &old.alloc).await;
    let death = old.task("t").death(PATIENCE, "the old allocation's task").await;
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!(op.state, State::Succeeded, "{op:?}");
    assert_killed(task_of(&op, Some(&old.alloc), "t"), s(5), death);
    assert_eq!(op.outcome.as_ref().unwrap().allocations.len(), 1, "the new one is not this stop's: {op:?}");
    curfew_tests::wait::always(s(3), "the new allocation's life", async || {
        if new.task("t").lives() { Ok(()) } else { Err("dead".into()) }
    })
    .await;
    assert_eq!(lab.running(&id).await.task("t"), new.task("t"));
    lab.stop(&id, &["--stop-timeout", "1s"]).await.code(0);
}

/// A controller on an empty database keeps the clocks of managed jobs all the same: they are derived from what Nomad shows.
pub async fn a_lost_database_loses_no_clock(given: Given) {
    let mut lab = given.own().await;
    let id = unique("lost-db");
    let polite = unique("lost-db-polite");
    let job = service(&id, vec![curfew_tests::jobs::with(task("t", IMPOLITE), json!({ "KillTimeout": 4_000_000_000_u64 }))]);
    let proc = lab.start(&job).await.task("t");
    let healthy = lab.start(&service(&polite, vec![task("t", POLITE)])).await.task("t");
    let op = lab.stop_detached(&id, &["--stop-timeout", "4s"]).await;
    deleted(&lab, &id).await;
    lab.own().kill().await;
    for suffix in ["", "-wal", "-shm", "-lock"] {
        // Not each of them is there.
        let _ = std::fs::remove_file(format!("{}{suffix}", lab.curfew.database().display()));
    }
    lab.own().restart().await;
    let death = proc.death(PATIENCE, "the task").await;
    assert!(death >= op.requested_at + s(4), "{:?} after the request", death.since(op.requested_at));
    assert!(healthy.lives());
}
