//! What people do to operations and kinds, and what is said of it.

use std::time::Duration;

use curfew_core::api::OperationView;
use curfew_core::operation::State;
use curfew_core::{OpId, Timestamp};
use curfew_tests::jobs::{IMPOLITE, POLITE, service, task};
use curfew_tests::lab::{Lab, PATIENCE, late, unique};
use curfew_tests::now;
use curfew_tests::process::Proc;
use curfew_tests::run::Given;
use curfew_tests::wait::{always, clock_passes, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);

/// An impolite task whose stop was asked for, and whose clock is known.
async fn stopping(lab: &Lab, timeout: &str) -> (Proc, OperationView, Timestamp) {
    let id = unique("queue");
    let proc = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await.task("t");
    let op = lab.stop_detached(&id, &["--stop-timeout", timeout]).await;
    let clock = clock_besides(lab, op.id, None).await;
    (proc, op, clock)
}

/// The instant of the only task's clock, when it is another one than before.
async fn clock_besides(lab: &Lab, id: OpId, before: Option<Timestamp>) -> Timestamp {
    eventually(PATIENCE, "the clock", async || {
        let op = lab.curfew.operation(id).await;
        let task = op.outcome.iter().flat_map(|o| &o.allocations).flat_map(|a| &a.tasks).next();
        let known = task.filter(|t| t.term_at.is_some()).and_then(|t| t.kill_at);
        known.filter(|k| Some(*k) != before).ok_or_else(|| format!("{op:?}"))
    })
    .await
}

/// Each row of the operation's trail with this action says who and why.
async fn told(lab: &Lab, id: OpId, action: &str, reason: &str) {
    let trail = lab.run(&["audit", "--op", &id.to_string(), "--json"]).run().await.code(0).json();
    let rows: Vec<&Value> = trail.as_array().unwrap().iter().filter(|r| r["action"] == action).collect();
    assert_eq!(rows.len(), 1, "{action}: {trail}");
    let actor = rows[0]["actor"].as_str().unwrap();
    assert!(actor.contains('@') && rows[0]["detail"]["reason"] == reason, "{action}: {}", rows[0]);
}

fn assert_dead_at(death: Timestamp, clock: Timestamp) {
    assert!(death >= clock, "dead at {death}, before its clock {clock}");
    assert!(death.since(clock) <= late(), "dead at {death}, {:?} after its clock", death.since(clock));
}

pub async fn an_extended_stop_kills_later_and_a_new_request_sooner_again(given: Given) {
    let lab = given.shared().await;
    let (proc, op, clock) = stopping(&lab, "4s").await;
    let id = op.id.to_string();
    let ran = lab.run(&["op", "extend", &id, "--by", "5s", "--reason", "a match runs"]).run().await.code(0);
    assert!(ran.stdout.contains("extended") && ran.stdout.contains("deadline"), "{ran}");
    let later = clock_besides(&lab, op.id, Some(clock)).await;
    assert!(later.since(clock) >= 4 * S && later.since(clock) <= 6 * S, "{clock} {later}");
    told(&lab, op.id, "extended", "a match runs").await;
    clock_passes(clock + S / 2, "the first clock").await;
    assert!(proc.lives(), "killed by the clock that was extended");
    assert_dead_at(proc.death(PATIENCE, "the task").await, later);
    let ended = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!((ended.state, ended.outcome.unwrap().killed), (State::Succeeded, 1));

    let (proc, op, clock) = stopping(&lab, "3s").await;
    let until = now() + 60 * S;
    lab.run(&["op", "extend", &op.id.to_string(), "--until", &until.to_string()]).run().await.code(0);
    assert_eq!(clock_besides(&lab, op.id, Some(clock)).await, until);
    let job = op.target.name().to_owned();
    let again = lab.stop_detached(&job, &["--stop-timeout", "1s"]).await;
    assert_eq!(again.id, op.id, "it joins");
    let sooner = clock_besides(&lab, op.id, Some(until)).await;
    assert_dead_at(proc.death(PATIENCE, "the task").await, sooner);
}

pub async fn kill_now_kills_now(given: Given) {
    let lab = given.shared().await;
    let (proc, op, clock) = stopping(&lab, "10m").await;
    let asked = now();
    assert!(clock.since(asked) > 500 * S);
    let ran = lab.run(&["op", "kill-now", &op.id.to_string(), "--reason", "it is broken"]).run();
    let (ran, death) = tokio::join!(ran, proc.death(PATIENCE, "the task"));
    ran.code(0);
    assert_dead_at(death, asked);
    let ended = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!((ended.state, ended.outcome.unwrap().killed), (State::Succeeded, 1));
    told(&lab, op.id, "kill_now", "it is broken").await;
    let refused = lab.run(&["op", "kill-now", &op.id.to_string()]).run().await.code(1);
    refused.says(&["succeeded already", "nothing left to kill"]);
    let path = format!("/v1/operations/{}/extend", op.id);
    let (status, problem) = lab.curfew.api().call(Method::POST, &path, Some(&json!({ "by": "1m" }))).await.unwrap();
    assert_eq!((status, problem["type"].as_str()), (409, Some("urn:curfew:problem:refused")), "{problem}");
    for body in [json!({}), json!({ "by": "1m", "until": now() }), json!({ "by": "0s" })] {
        let (status, problem) = lab.curfew.api().call(Method::POST, &path, Some(&body)).await.unwrap();
        assert_eq!(status, 400, "{body}: {problem}");
    }
    let (status, problem) =
        lab.curfew.api().call(Method::POST, &path.replace("extend", "explode"), Some(&json!({}))).await.unwrap();
    assert_eq!((status, problem["detail"].as_str().unwrap().contains("kill-now")), (404, true), "{problem}");
}

pub async fn cancelled_after_its_delete_it_says_what_cannot_be_taken_back(given: Given) {
    let lab = given.shared().await;
    let (proc, op, _) = stopping(&lab, "10m").await;
    let id = op.id.to_string();
    let ran = lab.run(&["op", "cancel", &id, "--reason", "the wrong one"]).run().await.code(0);
    assert!(ran.stdout.contains("its next step cancels it"), "{ran}");
    let ended = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!(ended.state, State::Cancelled);
    assert!(ended.warnings.iter().any(|w| w.contains("Nomad was told") && w.contains("Register the job again")), "{ended:?}");
    told(&lab, op.id, "cancel_asked", "the wrong one").await;
    lab.run(&["op", "watch", &id]).run().await.code(4);
    assert!(proc.lives(), "its own stop timeout is longer than this");
    // Tried again, it goes on where it was; Nomad is read first.
    lab.run(&["op", "retry", &id, "--reason", "it was right"]).run().await.code(0);
    told(&lab, op.id, "retried", "it was right").await;
    clock_besides(&lab, op.id, None).await;
    lab.run(&["op", "kill-now", &id]).run().await.code(0);
    proc.death(PATIENCE, "the task").await;
    assert_eq!(lab.curfew.finished(op.id, PATIENCE).await.state, State::Succeeded);
}

/// Also: pause and resume of a whole kind, and of one operation; cancel of one that never began.
pub async fn a_paused_kind_keeps_its_rows_queued(given: Given) {
    let lab = given.own().await;
    let (id, other) = (unique("paused"), unique("paused"));
    for job in [&id, &other] {
        lab.start(&service(job, vec![task("t", POLITE)])).await;
    }
    let said = lab.run(&["kind", "pause", "stop", "--reason", "the database moves"]).run().await.code(0);
    assert!(said.stdout.contains("stop is paused by") && said.stdout.contains("the database moves"), "{said}");
    let (op, never) = (lab.stop_detached(&id, &[]).await, lab.stop_detached(&other, &[]).await);
    always(S, "the stops stay queued", async || {
        for id in [op.id, never.id] {
            let op = lab.curfew.operation(id).await;
            if op.state != State::Queued {
                return Err(format!("{op:?}"));
            }
        }
        Ok(())
    })
    .await;
    assert_eq!(lab.proxy().seen("DELETE", "/v1/job/").len(), 0);
    let why = "somebody to resume stop: ";
    assert!(lab.curfew.operation(op.id).await.waiting_for.is_some_and(|w| w.starts_with(why)));
    let list = lab.run(&["op", "list"]).run().await.code(0);
    assert_eq!(list.stdout.matches(why).count(), 2, "{list}");
    let queue = lab.run(&["queue", "status", "--json"]).run().await.code(0).json();
    assert_eq!((&queue["counts"][0]["kind"], &queue["counts"][0]["state"]), (&json!("stop"), &json!("queued")), "{queue}");
    assert_eq!(queue["counts"][0]["count"], 2, "{queue}");
    let text = lab.run(&["queue", "status"]).run().await.code(0);
    assert!(text.stdout.contains("stop is paused by") && text.stdout.contains("the database moves"), "{text}");
    let kinds = lab.run(&["kind", "list"]).run().await.code(0);
    assert!(kinds.stdout.contains("clocks kept by") && kinds.stdout.contains("the database moves"), "{kinds}");
    let status = lab.run(&["status"]).run().await.code(0);
    assert!(status.stdout.contains("paused        stop"), "{status}");

    let ran = lab.run(&["op", "cancel", &never.id.to_string(), "--reason", "not this one"]).run().await.code(0);
    assert!(ran.stdout.contains("cancelled"), "{ran}");
    assert_eq!(lab.curfew.operation(never.id).await.state, State::Cancelled, "at once, although its kind is paused");
    told(&lab, never.id, "cancelled", "not this one").await;
    lab.run(&["op", "pause", &op.id.to_string(), "--reason", "wait"]).run().await.code(0);
    lab.run(&["kind", "resume", "stop", "--reason", "it moved"]).run().await.code(0);
    always(S, "the one stays paused", async || match lab.curfew.operation(op.id).await {
        o if o.state == State::Paused => Ok(()),
        o => Err(format!("{o:?}")),
    })
    .await;
    lab.run(&["op", "resume", &op.id.to_string(), "--reason", "go"]).run().await.code(0);
    assert_eq!(lab.curfew.finished(op.id, PATIENCE).await.state, State::Succeeded);
    told(&lab, op.id, "paused", "wait").await;
    told(&lab, op.id, "resumed", "go").await;
    let trail = lab.run(&["audit", "--json"]).run().await.code(0).json();
    for (action, reason) in [("kind_paused", "the database moves"), ("kind_resumed", "it moved")] {
        let row = trail.as_array().unwrap().iter().find(|r| r["action"] == action).unwrap();
        assert!(row["detail"]["reason"] == reason && row["detail"]["kind"] == "stop", "{row}");
    }
    assert_eq!(lab.proxy().seen("DELETE", "/v1/job/").len(), 1, "the cancelled one never reached Nomad");
}

pub async fn while_kill_is_paused_nobody_dies_and_then_at_once(given: Given) {
    let lab = given.own().await;
    lab.run(&["kind", "pause", "kill"]).run().await.code(2).says(&["--yes-really", "no task is killed"]);
    let (status, problem) = lab.curfew.api().call(Method::POST, "/v1/kinds/kill/pause", Some(&json!({}))).await.unwrap();
    assert_eq!((status, problem["type"].as_str()), (409, Some("urn:curfew:problem:not-sure")), "{problem}");
    lab.run(&["kind", "pause", "kill", "--yes-really", "--reason", "an incident"])
        .run()
        .await
        .code(0)
        .says(&["no task is killed"]);
    let (proc, op, clock) = stopping(&lab, "1s").await;
    clock_passes(clock, "the clock").await;
    always(2 * S, "nobody dies", async || if proc.lives() { Ok(()) } else { Err("the task is dead".into()) }).await;
    assert_eq!(lab.proxy().seen("PUT", "/signal").len(), 0);
    let shown = lab.curfew.operation(op.id).await;
    assert!(shown.waiting_for.as_ref().is_some_and(|w| w.contains("resume kill")), "{shown:?}");
    let (code, ready) = lab.curfew.api().call(Method::GET, "/readyz", None).await.unwrap();
    assert!(code == 200 && ready.as_str().is_some_and(|r| r.contains("kill is paused by")), "{ready}");
    let status = lab.run(&["status"]).run().await.code(0);
    assert!(status.stdout.contains("no task is killed"), "{status}");
    assert!(lab.curfew.log().contains("kill is paused"), "{}", lab.curfew.log());
    let resumed = now();
    let ran = lab.run(&["kind", "resume", "kill"]).run();
    let (ran, death) = tokio::join!(ran, proc.death(PATIENCE, "the task"));
    ran.code(0);
    assert_dead_at(death, resumed);
    assert_eq!(lab.curfew.finished(op.id, PATIENCE).await.outcome.unwrap().killed, 1);
    let sending: Vec<Value> = lab.curfew.trail(op.id).await.into_iter().filter(|r| r["action"] == "sigkill_sending").collect();
    assert!(sending.len() == 1 && sending[0]["detail"]["duty"].as_u64().is_some(), "{sending:?}");
}

pub async fn confirm_drained_names_who_holds_what(given: Given) {
    let lab = given.own_with(&[("CURFEW_NOMAD_TIMEOUT", "1m"), ("CURFEW_SHUTDOWN_TIMEOUT", "1s")]).await;
    lab.run(&["queue", "confirm-drained"]).run().await.code(0);
    let id = unique("held");
    lab.start(&service(&id, vec![task("t", POLITE)])).await;
    let fault = json!({ "Kind": "delay", "Method": "DELETE", "Path": "/v1/job/*", "Delay": "10m" });
    lab.cluster.api.call(Method::PUT, "/dev/v1/faults", Some(&fault)).await.unwrap();
    let op = lab.stop_detached(&id, &[]).await;
    eventually(PATIENCE, "its step to hang", async || match lab.proxy().seen("DELETE", "/v1/job/").len() {
        0 => Err("no DELETE yet".into()),
        _ => Ok(()),
    })
    .await;
    let ran = lab.run(&["queue", "confirm-drained"]).run().await.code(1);
    let holder = lab.curfew.api().get("/v1/status").await["controller"].as_str().unwrap().to_owned();
    assert!(ran.stdout.contains(&holder) && ran.stdout.contains(&op.id.to_string()), "{ran}");
    let held = lab.run(&["queue", "confirm-drained", "--json"]).run().await.code(1).json();
    assert_eq!((&held[0]["holder"], &held[0]["kind"]), (&json!(holder), &json!("stop")), "{held}");
    // Taken away from the step that hangs: that one ends, and another one begins with a look.
    lab.cluster.api.call(Method::DELETE, "/dev/v1/faults", None).await.unwrap();
    lab.run(&["op", "release", &op.id.to_string(), "--reason", "it hangs"]).run().await.code(0);
    assert_eq!(lab.curfew.finished(op.id, PATIENCE).await.state, State::Succeeded);
    told(&lab, op.id, "released", "it hangs").await;
    lab.run(&["queue", "confirm-drained"]).run().await.code(0);
}

/// A trail that is followed survives a restart, and Ctrl-C is its ordinary end.
pub async fn a_followed_trail_survives_a_restart(given: Given) {
    let mut lab = given.own().await;
    let mut follow = lab.curfew.curfew(["audit", "--follow", "--json"]).follow();
    let seen = follow.until("controller_started").await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    lab.own().kill().await;
    lab.own().restart().await;
    let id = unique("followed");
    lab.start(&service(&id, vec![task("t", POLITE)])).await;
    lab.stop(&id, &[]).await.code(0);
    let rows = follow.until("job_deleted").await;
    let seqs: Vec<u64> = rows.iter().map(|r| r["seq"].as_u64().unwrap()).collect();
    assert!(seqs.windows(2).all(|w| w[0] < w[1]), "each row once, in order: {seqs:?}");
    assert!(rows.iter().filter(|r| r["action"] == "controller_started").count() == 2, "{rows:?}");
    assert_eq!(follow.interrupt().await, Some(0));
}
