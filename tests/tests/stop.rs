//! Stops: SIGTERM now, SIGKILL when its time is over.

use std::time::Duration;

use curfew_core::operation::State;
use curfew_tests::jobs::{IMPOLITE, POLITE, group, nanos, service, task, with};
use curfew_tests::lab::{PATIENCE, assert_killed, assert_polite, late, task_of, unique};
use curfew_tests::run::Given;
use serde_json::json;

pub async fn impolite(given: Given) {
    let lab = given.shared().await;
    let id = unique("impolite");
    let running = lab.start(&group(service(&id, vec![task("t", IMPOLITE)]), json!({ "Count": 1 }))).await;
    let proc = running.task("t");
    let what = format!("the task of {id}");
    let (ran, death) = tokio::join!(lab.stop(&id, &["--stop-timeout", "3s", "--reason", "enough"]), proc.death(PATIENCE, &what));
    let ran = ran.code(0);
    let op = ran.operation();
    assert_eq!((op.state, op.reason.as_deref()), (State::Succeeded, Some("enough")), "{ran}");
    assert_eq!(op.outcome.as_ref().map(|o| (o.exited, o.killed)), Some((0, 1)), "{ran}");
    assert_killed(task_of(&op, Some(&running.alloc), "t"), Duration::from_secs(3), death);
    // From the request to SIGTERM lies only what Nomad takes to tell it.
    let term = task_of(&op, None, "t").term_at.unwrap();
    assert!(term >= op.requested_at && term.since(op.requested_at) <= late(), "{ran}");
    assert!(op.finished_at.is_some_and(|f| f >= death), "{ran}");
    // What scripts rely on, by its names on the wire.
    let json = ran.json();
    for field in ["id", "kind", "state", "target", "actor", "reason", "requested_at", "deadline", "finished_at", "waiting_for"] {
        assert!(json.get(field).is_some(), "no {field}: {json}");
    }
    let instant = json["outcome"]["allocations"][0]["tasks"][0]["kill_at"].as_str().unwrap().to_owned();
    assert!(instant.ends_with('Z') && instant.split('.').nth(1).is_some_and(|f| f.len() >= 4), "{instant}");
}

pub async fn fail_on_kill(given: Given) {
    let lab = given.shared().await;
    let id = unique("fail-on-kill");
    lab.start(&service(&id, vec![task("t", IMPOLITE)])).await;
    let op = lab.stop(&id, &["--stop-timeout", "1s", "--fail-on-kill"]).await.code(3).operation();
    assert_eq!(op.state, State::Succeeded);
    let id = unique("fail-on-kill-polite");
    lab.start(&service(&id, vec![task("t", POLITE)])).await;
    lab.stop(&id, &["--stop-timeout", "10s", "--fail-on-kill"]).await.code(0);
}

pub async fn polite(given: Given) {
    let lab = given.shared().await;
    let id = unique("polite");
    let running = lab.start(&service(&id, vec![task("t", POLITE)])).await;
    let ran = lab.stop(&id, &["--stop-timeout", "20s"]).await.code(0);
    let op = ran.operation();
    assert_eq!(op.outcome.as_ref().map(|o| (o.exited, o.killed)), Some((1, 0)), "{ran}");
    assert_polite(task_of(&op, Some(&running.alloc), "t"));
    assert!(!running.task("t").lives());
    // Nobody waits for a clock that is not needed.
    assert!(ran.ended.since(ran.began) < Duration::from_secs(15), "{ran}");
}

/// Without `--stop-timeout` the author's `kill_timeout` is the grace, although Nomad was told 24 hours.
pub async fn the_authors_kill_timeout_is_the_grace(given: Given) {
    let lab = given.shared().await;
    let id = unique("own-timeout");
    let own = Duration::from_secs(2);
    let job = service(&id, vec![with(task("t", IMPOLITE), json!({ "KillTimeout": nanos(own) }))]);
    let proc = lab.start(&job).await.task("t");
    let (ran, death) = tokio::join!(lab.stop(&id, &[]), proc.death(PATIENCE, "the task"));
    assert_killed(task_of(&ran.code(0).operation(), None, "t"), own, death);
}

pub async fn detach_prints_the_id_and_watch_follows_it(given: Given) {
    let lab = given.shared().await;
    let id = unique("detach");
    lab.start(&service(&id, vec![task("t", IMPOLITE)])).await;
    let ran = lab.run(&["job", "stop", &id, "--stop-timeout", "2s", "--detach"]).run().await.code(0);
    let op = ran.stdout.trim().to_owned();
    assert!(op.len() == 36 && op.matches('-').count() == 4, "{ran}");
    // Gives up, and says that nothing was cancelled.
    let gave_up = lab.run(&["op", "watch", &op, "--timeout", "200ms"]).run().await.code(5);
    gave_up.says(&["gave up waiting", "goes on", &op]);
    let ended = lab.run(&["op", "watch", &op, "--json", "--fail-on-kill"]).run().await.code(3).operation();
    assert_eq!((ended.id.to_string(), ended.state), (op.clone(), State::Succeeded));
    let shown = lab.run(&["op", "show", &op]).run().await.code(0);
    assert!(shown.stdout.contains("succeeded") && shown.stdout.contains(&id), "{shown}");
    let listed = lab.run(&["op", "list", "--job", &id, "--kind", "stop", "--json"]).run().await.code(0).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    let trail = lab.run(&["audit", "--op", &op]).run().await.code(0);
    for action in ["requested", "job_deleted", "clock_armed", "sigkill_sent", "succeeded"] {
        assert!(trail.stdout.contains(action), "no {action}: {trail}");
    }
}

pub async fn a_second_stop_joins_and_the_earlier_deadline_wins(given: Given) {
    let lab = given.shared().await;
    let id = unique("join");
    let proc = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await.task("t");
    let first = lab.stop_detached(&id, &["--stop-timeout", "1h"]).await;
    let (second, death) = tokio::join!(lab.stop(&id, &["--stop-timeout", "2s"]), proc.death(PATIENCE, "the task"));
    let second = second.code(0);
    let op = second.operation();
    assert_eq!(op.id, first.id, "{second}");
    let task = task_of(&op, None, "t");
    let (kill, sent) = (task.kill_at.unwrap(), task.signalled_at.unwrap());
    // The second request's own two seconds count from the second request.
    assert!(kill >= second.began + Duration::from_secs(2) && sent >= kill && death >= kill, "{second}");
    assert!(kill.since(second.ended) == Duration::ZERO && death.since(kill) <= late(), "{second}");
    let joined = lab.curfew.trail(op.id).await.iter().filter(|r| r["action"] == "joined").count();
    assert_eq!(joined, 1, "{:?}", lab.curfew.trail(op.id).await);
    // A later and longer one changes nothing any more.
    let third = lab.stop(&id, &["--stop-timeout", "1h"]).await.code(0);
    assert_ne!(third.operation().id, first.id, "the first has ended");
}

pub async fn unknown_job(given: Given) {
    let lab = given.shared().await;
    let ran = lab.stop("no-such-job", &[]).await.code(1).says(&["no job", "no-such-job"]);
    assert_eq!(ran.stderr.lines().count(), 1, "{ran}");
    assert_eq!(ran.stdout, "", "{ran}");
}

pub async fn stopped_already(given: Given) {
    let lab = given.shared().await;
    let id = unique("stopped-already");
    lab.start(&service(&id, vec![task("t", POLITE)])).await;
    let first = lab.stop(&id, &["--stop-timeout", "20s"]).await.code(0).operation();
    let again = lab.stop(&id, &["--stop-timeout", "20s"]).await.code(0);
    let op = again.operation();
    assert_ne!(op.id, first.id);
    assert_eq!(op.outcome.as_ref().map(|o| (o.exited, o.killed)), Some((0, 0)), "{again}");
    assert!(again.ended.since(again.began) < Duration::from_secs(10), "{again}");
}

/// Several groups, several allocations, on several nodes: all of them, each with a clock of its own.
pub async fn every_allocation_of_every_group(given: Given) {
    let lab = given.shared().await;
    let id = unique("groups");
    let mut job = group(service(&id, vec![task("t", IMPOLITE)]), json!({ "Count": 2 }));
    let mut second = job["TaskGroups"][0].clone();
    second["Name"] = json!("h");
    second["Count"] = json!(1);
    second["Tasks"] = json!([task("t", POLITE)]);
    job["TaskGroups"].as_array_mut().unwrap().push(second);
    lab.submit(&job).await;
    let all = curfew_tests::wait::eventually(PATIENCE, "three allocations", async || {
        let all = lab.cluster.api.allocations(&id).await?;
        let running: Vec<_> = all.iter().filter_map(|a| lab.processes(&id, a).ok()).collect();
        if running.len() == 3 { Ok(running) } else { Err(curfew_tests::lab::short(&all)) }
    })
    .await;
    let op = lab.stop(&id, &["--stop-timeout", "2s"]).await.code(0).operation();
    assert_eq!(op.outcome.as_ref().map(|o| (o.exited, o.killed, o.allocations.len())), Some((1, 2, 3)), "{op:?}");
    assert!(all.iter().all(|r| !r.task("t").lives()), "{all:?}");
}
