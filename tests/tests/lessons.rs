//! Each failure of the system before this one, by its number in the project's list of lessons.

use std::time::Duration;

use curfew_core::operation::State;
use curfew_tests::api::segment;
use curfew_tests::jobs::{IMPOLITE, POLITE, batch, group, nanos, service, task, with};
use curfew_tests::lab::{Lab, PATIENCE, assert_killed, short, task_of, unique};
use curfew_tests::proxy::{Refuse, Seen};
use curfew_tests::run::Given;
use curfew_tests::wait::{always, eventually};
use rustix::process::Signal;
use serde_json::json;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn signals(lab: &Lab) -> Vec<Seen> {
    let mut all = lab.proxy().seen("PUT", "/signal");
    all.extend(lab.proxy().seen("POST", "/signal"));
    all
}

/// Every stop leaked for eight weeks: the region stood where the namespace belonged, and a 404 was swallowed.
pub async fn lesson_1_the_namespace_is_named_and_a_404_is_no_success(given: Given) {
    let lab = given.own().await;
    lab.cluster.api.put("/v1/namespace/games", &json!({ "Name": "games" })).await;
    let id = unique("spaced");
    lab.submit(&with(service(&id, vec![task("t", IMPOLITE)]), json!({ "Namespace": "games" }))).await;
    let alloc = eventually(PATIENCE, "the allocation in games", async || {
        let all = lab.cluster.api.allocations_in("games", &id).await?;
        lab.processes(&id, all.first().ok_or("none")?)
    })
    .await;
    // In the wrong namespace there is no such job, and nothing else happens.
    lab.stop(&id, &[]).await.code(1).says(&["no job", &id]);
    lab.stop(&id, &["--namespace", "global"]).await.code(1);
    assert!(lab.proxy().seen("DELETE", "/v1/job/").is_empty());
    let proc = alloc.task("t");
    assert!(proc.lives());
    let (ran, death) =
        tokio::join!(lab.stop(&id, &["--namespace", "games", "--stop-timeout", "2s"]), proc.death(PATIENCE, "the task"));
    let op = ran.code(0).operation();
    assert_eq!(op.target.job().unwrap().namespace.as_str(), "games");
    assert_killed(task_of(&op, None, "t"), s(2), death);
    let deletes = lab.proxy().seen("DELETE", "/v1/job/");
    assert_eq!(deletes.len(), 1, "{deletes:?}");
    assert!(deletes[0].path.contains("namespace=games") && !deletes[0].path.contains("purge=true"), "{deletes:?}");
    assert!(!deletes[0].path.contains("region=games"), "{deletes:?}");
}

/// SIGKILL never worked: it went to a path that does not exist.
pub async fn lesson_2_the_signal_goes_to_the_client_by_task(given: Given) {
    let lab = given.own().await;
    let id = unique("wire");
    let running = lab.start(&service(&id, vec![task("one", IMPOLITE), task("two", IMPOLITE)])).await;
    let op = lab.stop(&id, &["--stop-timeout", "1s"]).await.code(0).operation();
    assert_eq!(op.outcome.as_ref().map(|o| o.killed), Some(2), "{op:?}");
    let sent = signals(&lab);
    let mut tasks = vec![];
    for seen in &sent {
        let path = format!("/v1/client/allocation/{}/signal", running.alloc);
        assert!(seen.path.starts_with(&path), "{seen:?}");
        assert_eq!(seen.body["Signal"], "SIGKILL", "{seen:?}");
        tasks.push(seen.body["Task"].as_str().unwrap_or_default().to_owned());
    }
    tasks.sort();
    // Never the empty name, which means every task; one signal a live task.
    assert_eq!(tasks, ["one", "two"], "{sent:?}");
}

/// The SIGKILL timer was a detached task that slept. (crash::* has the rest.)
pub async fn lesson_4_the_clock_survives_two_restarts(given: Given) {
    let mut lab = given.own().await;
    let id = unique("twice");
    let proc = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await.task("t");
    let op = lab.stop_detached(&id, &["--stop-timeout", "7s"]).await;
    eventually(PATIENCE, "the DELETE", async || {
        if lab.proxy().seen("DELETE", &id).is_empty() { Err("none yet".to_owned()) } else { Ok(()) }
    })
    .await;
    lab.own().kill().await;
    lab.own().restart().await;
    lab.own().kill().await;
    lab.own().restart().await;
    let death = proc.death(PATIENCE, "the task").await;
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_killed(task_of(&op, None, "t"), s(7), death);
}

/// A stop before the allocation was known: only one recorded allocation was ever signalled.
pub async fn lesson_5_stopped_before_anything_runs(given: Given) {
    let lab = given.shared().await;
    let id = unique("hasty");
    lab.submit(&group(service(&id, vec![task("t", IMPOLITE)]), json!({ "Count": 3 }))).await;
    let op = lab.stop(&id, &["--stop-timeout", "1s"]).await.code(0).operation();
    assert_eq!(op.state, State::Succeeded);
    let all = lab.cluster.api.allocations(&id).await.unwrap();
    let ids: Vec<String> = all.iter().filter_map(|a| a["ID"].as_str().map(str::to_owned)).collect();
    // Nothing lives, and nothing comes to life later.
    always(s(3), "silence after the stop", async || {
        for alloc in &ids {
            let left = curfew_tests::process::of_task(&id, alloc, "t");
            if !left.is_empty() {
                return Err(format!("{left:?} in {alloc}"));
            }
        }
        Ok(())
    })
    .await;
    let all = lab.cluster.api.allocations(&id).await.unwrap();
    assert!(all.iter().all(|a| a["DesiredStatus"] != "run"), "{}", short(&all));
}

/// A crash between the request and the registration: the row stands first, the job is registered once.
pub async fn lesson_6_a_submit_survives_a_crash_and_happens_once(given: Given) {
    let mut lab = given.own().await;
    let id = unique("once");
    let job = service(&id, vec![task("t", POLITE)]);
    let args = ["job", "run", "-", "--detach", "--json"];
    let op = lab.run(&args).stdin(job.to_string()).run().await.code(0).operation();
    lab.own().kill().await;
    lab.own().restart().await;
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!(op.state, State::Succeeded, "{op:?}");
    let versions = lab.cluster.api.get(&format!("/v1/job/{}/versions", segment(&id))).await;
    assert_eq!(versions["Versions"].as_array().map(Vec::len), Some(1), "{versions}");
    lab.running(&id).await;
    assert_eq!(lab.cluster.api.allocations(&id).await.unwrap().len(), 1);
    lab.stop(&id, &["--stop-timeout", "5s"]).await.code(0);
}

/// Failed stops stayed for ever: a SIGKILL that was refused is sent again until the task is dead.
pub async fn lesson_10_a_refused_sigkill_is_sent_again(given: Given) {
    let lab = given.own().await;
    let id = unique("refused");
    let proc = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await.task("t");
    lab.proxy().refuse(Some(Refuse { method: "PUT", path: "/signal", status: 500, body: "rpc error: not today" }));
    let op = lab.stop_detached(&id, &["--stop-timeout", "1s"]).await;
    eventually(PATIENCE, "two attempts", async || {
        let sent = signals(&lab).len();
        if sent >= 2 { Ok(()) } else { Err(format!("{sent} attempts; {:?}", lab.curfew.operation(op.id).await)) }
    })
    .await;
    let now = lab.curfew.operation(op.id).await;
    assert!(!now.state.is_finished() && proc.lives(), "{now:?}");
    lab.proxy().refuse(None);
    proc.death(PATIENCE, "the task").await;
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!((op.state, op.outcome.as_ref().map(|o| o.killed)), (State::Succeeded, Some(1)), "{op:?}");
    let trail = lab.curfew.trail(op.id).await;
    let count = |action: &str| trail.iter().filter(|r| r["action"] == action).count();
    assert!(count("sigkill_failed") >= 2 && count("sigkill_sent") >= 1, "{trail:?}");
}

/// SIGKILL on any repeated event: what was healthy died of it.
pub async fn lesson_14_repeated_events_kill_nobody(given: Given) {
    let lab = given.own().await;
    let id = unique("repeated");
    let healthy = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await;
    // The same allocation again and again: new evaluations, a new look after each broken stream.
    for _ in 0..3 {
        lab.cluster.api.put(&format!("/v1/job/{id}/evaluate"), &json!({ "JobID": id })).await;
        lab.proxy().cut(true);
        lab.proxy().cut(false);
        eventually(PATIENCE, "Nomad to be in sight again", async || lab.curfew.api().try_get("/readyz").await.map(drop)).await;
    }
    always(s(3), "the healthy task's life", async || if healthy.task("t").lives() { Ok(()) } else { Err("dead".into()) }).await;
    assert!(signals(&lab).is_empty(), "{:?}", signals(&lab));
}

/// A task that restarts within its policy is nobody's to kill.
pub async fn lesson_14_an_ordinary_restart_is_left_alone(given: Given) {
    let lab = given.own().await;
    let id = unique("ordinary");
    let policy = json!({ "RestartPolicy": { "Attempts": 5, "Mode": "delay", "Interval": nanos(s(600)), "Delay": nanos(s(1)) } });
    let job = group(service(&id, vec![task("t", IMPOLITE), task("crashes", POLITE)]), policy);
    let running = lab.start(&job).await;
    running.task("crashes").signal(Signal::KILL);
    let again = eventually(PATIENCE, "the restart", async || {
        let now = lab.running(&id).await;
        if now.task("crashes") == running.task("crashes") { Err(format!("{now:?}")) } else { Ok(now) }
    })
    .await;
    assert_eq!(again.task("t"), running.task("t"));
    always(s(4), "the sibling's life", async || if running.task("t").lives() { Ok(()) } else { Err("dead".into()) }).await;
    assert!(signals(&lab).is_empty(), "{:?}", signals(&lab));
}

/// All errors of the API were swallowed: an error is told, and only gone is gone.
pub async fn lesson_22_a_failing_delete_is_told_and_repeated(given: Given) {
    let lab = given.own().await;
    let id = unique("failing");
    let proc = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await.task("t");
    lab.proxy().refuse(Some(Refuse { method: "DELETE", path: "/v1/job/", status: 403, body: "Permission denied" }));
    let op = lab.stop_detached(&id, &["--stop-timeout", "2s"]).await;
    let told = eventually(PATIENCE, "the operation to tell", async || {
        let now = lab.curfew.operation(op.id).await;
        let said = now.waiting_for.as_ref().is_some_and(|w| w.contains("Permission denied"));
        if said { Ok(now) } else { Err(format!("{now:?}")) }
    })
    .await;
    assert!(!told.state.is_finished() && proc.lives(), "{told:?}");
    lab.proxy().refuse(None);
    let death = proc.death(PATIENCE, "the task").await;
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!(op.state, State::Succeeded, "{op:?}");
    assert!(death >= op.requested_at + s(2), "{op:?}");
    assert!(task_of(&op, None, "t").signalled_at >= task_of(&op, None, "t").kill_at, "{op:?}");
}

/// A 404 of one signal does not end a stop while the process lives.
pub async fn lesson_22_a_404_of_the_signal_is_not_the_end(given: Given) {
    let lab = given.own().await;
    let id = unique("not-found");
    let proc = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await.task("t");
    lab.proxy().refuse(Some(Refuse { method: "PUT", path: "/signal", status: 404, body: "Unknown allocation" }));
    let op = lab.stop_detached(&id, &["--stop-timeout", "1s"]).await;
    eventually(PATIENCE, "an attempt", async || if signals(&lab).is_empty() { Err("none".to_owned()) } else { Ok(()) }).await;
    always(s(3), "an unfinished operation while the process lives", async || {
        let now = lab.curfew.operation(op.id).await;
        if proc.lives() && now.state.is_finished() { Err(format!("{now:?}")) } else { Ok(()) }
    })
    .await;
    lab.proxy().refuse(None);
    proc.death(PATIENCE, "the task").await;
    assert_eq!(lab.curfew.finished(op.id, PATIENCE).await.state, State::Succeeded);
}

/// Two products read each other's jobs by a shared prefix: an unmanaged job is not ours, whatever it is called.
pub async fn lesson_25_an_unmanaged_job_is_left_to_nomad(given: Given) {
    let lab = given.own().await;
    let id = unique("theirs");
    let ours = unique(&id);
    lab.start(&service(&ours, vec![task("t", POLITE)])).await;
    // Registered by somebody else, stopped by somebody else: Nomad's own clock of six seconds.
    let job = service(&id, vec![with(task("t", IMPOLITE), json!({ "KillTimeout": nanos(s(6)), "KillSignal": "SIGTERM" }))]);
    lab.cluster.api.put("/v1/jobs", &json!({ "Job": job })).await;
    let theirs = lab.running(&id).await;
    let told = curfew_tests::now();
    lab.discard(&id).await;
    let death = theirs.task("t").death(PATIENCE, "their task").await;
    assert!(death >= told + s(6), "{:?} after its DELETE", death.since(told));
    assert!(signals(&lab).is_empty(), "{:?}", signals(&lab));
    assert!(lab.running(&ours).await.task("t").lives());
}

/// An unmanaged job that Curfew is asked to stop is stopped like any other.
pub async fn lesson_25_an_unmanaged_job_stops_when_asked(given: Given) {
    let lab = given.own().await;
    let id = unique("adopted");
    let job = service(&id, vec![with(task("t", IMPOLITE), json!({ "KillTimeout": nanos(s(60)), "KillSignal": "SIGTERM" }))]);
    lab.cluster.api.put("/v1/jobs", &json!({ "Job": job })).await;
    let proc = lab.running(&id).await.task("t");
    let (ran, death) = tokio::join!(lab.stop(&id, &["--stop-timeout", "2s"]), proc.death(PATIENCE, "the task"));
    assert_killed(task_of(&ran.code(0).operation(), None, "t"), s(2), death);
}

/// Client status proves nothing: an allocation that Nomad calls complete or failed holds a live process.
pub async fn lesson_26_a_stop_waits_for_processes_not_for_a_status(given: Given) {
    let lab = given.own_with(&[("CURFEW_JOB_STOP_TIMEOUT", "1h")]).await;
    let id = unique("status");
    // Nobody wrote a kill_timeout: the sibling's own clock is an hour away.
    let running = lab.start(&batch(&id, vec![task("stays", IMPOLITE), task("fails", POLITE)])).await;
    running.task("fails").signal(Signal::KILL);
    eventually(PATIENCE, "the failure to show", async || {
        let alloc = lab.cluster.api.allocation(&running.alloc).await?;
        let events = alloc["TaskStates"]["fails"]["Events"].as_array().cloned().unwrap_or_default();
        if events.iter().any(|e| e["Type"] == "Terminated") { Ok(()) } else { Err(short(&[alloc])) }
    })
    .await;
    let proc = running.task("stays");
    assert!(proc.lives());
    let (ran, death) = tokio::join!(lab.stop(&id, &["--stop-timeout", "2s"]), proc.death(PATIENCE, "what stays"));
    let op = ran.code(0).operation();
    assert!(death >= op.requested_at + s(2) && op.finished_at.unwrap() >= death - s(1), "{op:?}");
    assert_eq!(op.outcome.as_ref().map(|o| o.killed), Some(1), "{op:?}");
}
