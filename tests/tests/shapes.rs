//! Jobs of every shape: delays, several tasks, poststop, process trees, dispatched children, odd ids.

use std::time::Duration;

use curfew_core::Timestamp;
use curfew_core::operation::State;
use curfew_tests::api::segment;
use curfew_tests::jobs::{IMPOLITE, POLITE, TREE, batch, group, nanos, service, task, with};
use curfew_tests::lab::{PATIENCE, POSTSTOP, assert_killed, assert_polite, late, task_of, unique};
use curfew_tests::process;
use curfew_tests::run::Given;
use curfew_tests::wait::eventually;
use serde_json::{Value, json};

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn delayed(id: &str) -> Value {
    service(id, vec![with(task("t", IMPOLITE), json!({ "ShutdownDelay": nanos(s(3)) }))])
}

/// The grace counts from SIGTERM, and SIGTERM comes after the delay.
pub async fn shutdown_delay(given: Given) {
    let lab = given.shared().await;
    let id = unique("delay");
    let proc = lab.start(&delayed(&id)).await.task("t");
    let (ran, death) = tokio::join!(lab.stop(&id, &["--stop-timeout", "2s"]), proc.death(PATIENCE, "the task"));
    let op = ran.code(0).operation();
    let task = task_of(&op, None, "t");
    assert!(task.term_at.unwrap() >= op.requested_at + s(3), "{op:?}");
    assert_killed(task, s(2), death);
}

pub async fn no_shutdown_delay_skips_it(given: Given) {
    let lab = given.shared().await;
    let id = unique("no-delay");
    let proc = lab.start(&delayed(&id)).await.task("t");
    let (ran, death) =
        tokio::join!(lab.stop(&id, &["--stop-timeout", "2s", "--no-shutdown-delay"]), proc.death(PATIENCE, "the task"));
    let op = ran.code(0).operation();
    let task = task_of(&op, None, "t");
    assert!(task.term_at.unwrap().since(op.requested_at) < s(2), "{op:?}");
    assert_killed(task, s(2), death);
}

/// The delay of a group is waited for like a task's.
pub async fn shutdown_delay_of_a_group(given: Given) {
    let lab = given.shared().await;
    let id = unique("group-delay");
    let job = group(service(&id, vec![task("t", IMPOLITE)]), json!({ "ShutdownDelay": nanos(s(3)) }));
    let proc = lab.start(&job).await.task("t");
    let (ran, death) = tokio::join!(lab.stop(&id, &["--stop-timeout", "2s"]), proc.death(PATIENCE, "the task"));
    let op = ran.code(0).operation();
    assert!(death >= op.requested_at + s(5), "dead {:?} after the request: {op:?}", death.since(op.requested_at));
    assert_killed(task_of(&op, None, "t"), s(2), death);
}

pub async fn two_tasks_of_which_one_is_polite(given: Given) {
    let lab = given.shared().await;
    let id = unique("two");
    let running = lab.start(&service(&id, vec![task("good", POLITE), task("bad", IMPOLITE)])).await;
    let bad = running.task("bad");
    let (ran, death) = tokio::join!(lab.stop(&id, &["--stop-timeout", "3s"]), bad.death(PATIENCE, "bad"));
    let op = ran.code(0).operation();
    assert_eq!(op.outcome.as_ref().map(|o| (o.exited, o.killed)), Some((1, 1)), "{op:?}");
    assert_killed(task_of(&op, None, "bad"), s(3), death);
    let good = task_of(&op, None, "good");
    assert_polite(good);
    assert!(good.ended_at < task_of(&op, None, "bad").kill_at, "{op:?}");
    assert!(!running.task("good").lives());
}

fn poststop(id: &str, script: &str) -> Value {
    let after = with(task("after", script), json!({ "Lifecycle": { "Hook": "poststop" } }));
    service(id, vec![task("t", IMPOLITE), after])
}

/// It has a clock of its own and runs to its end, longer than the stop timeout.
pub async fn lesson_27_a_poststop_task_runs_to_its_end(given: Given) {
    let lab = given.shared().await;
    let id = unique("poststop");
    let running = lab.start(&poststop(&id, "sleep 4; exit 0")).await;
    let (ran, death) = tokio::join!(lab.stop(&id, &["--stop-timeout", "1s"]), running.task("t").death(PATIENCE, "t"));
    let op = ran.code(0).operation();
    assert_killed(task_of(&op, None, "t"), s(1), death);
    let after = task_of(&op, None, "after");
    assert_eq!((after.exit_code, after.signalled_at), (Some(0), None), "{op:?}");
    assert!(after.ended_at.unwrap() >= task_of(&op, None, "t").kill_at.unwrap() + s(4), "{op:?}");
    assert!(op.finished_at.unwrap() >= after.ended_at.unwrap(), "{op:?}");
}

/// One that never ends is killed `POSTSTOP_TIMEOUT` after its own start.
pub async fn a_poststop_task_that_hangs_has_its_own_clock(given: Given) {
    let lab = given.shared().await;
    let id = unique("poststop-hangs");
    let running = lab.start(&poststop(&id, IMPOLITE)).await;
    let alloc = running.alloc.clone();
    let dies = async {
        let proc = eventually(PATIENCE, "the poststop task", async || {
            process::of_task(&id, &alloc, "after").first().copied().ok_or_else(|| "not started".to_owned())
        })
        .await;
        proc.death(PATIENCE, "the poststop task").await
    };
    let (ran, death) = tokio::join!(lab.stop(&id, &["--stop-timeout", "1s"]), dies);
    let op = ran.code(0).operation();
    let started = lab.alloc(&running.alloc).await["TaskStates"]["after"]["StartedAt"].as_str().unwrap().to_owned();
    let started: Timestamp = started.parse().unwrap();
    let after = task_of(&op, None, "after");
    assert!(after.kill_at.unwrap() >= started + POSTSTOP && after.kill_at.unwrap().since(started) <= POSTSTOP + s(1), "{op:?}");
    assert!(after.signalled_at >= after.kill_at && death >= started + POSTSTOP, "{op:?}");
    assert!(death.since(after.kill_at.unwrap()) <= late(), "{op:?}");
}

/// A child that ignores SIGTERM like its parent does not outlive it.
pub async fn a_process_tree(given: Given) {
    let lab = given.shared().await;
    let id = unique("tree");
    let mut running = lab.start(&service(&id, vec![task("t", TREE)])).await;
    eventually(PATIENCE, "the child", async || {
        running = lab.running(&id).await;
        if running.all("t").len() >= 2 { Ok(()) } else { Err(format!("{running:?}")) }
    })
    .await;
    let (ran, death) = tokio::join!(lab.stop(&id, &["--stop-timeout", "2s"]), running.task("t").death(PATIENCE, "t"));
    let op = ran.code(0).operation();
    assert_killed(task_of(&op, None, "t"), s(2), death);
    for (i, proc) in running.all("t").iter().enumerate() {
        proc.death(late(), &format!("process {i} of the tree")).await;
    }
}

/// The id of a dispatched child holds a slash.
pub async fn a_dispatched_child(given: Given) {
    let lab = given.shared().await;
    let id = unique("parent");
    let job = with(batch(&id, vec![task("t", IMPOLITE)]), json!({ "ParameterizedJob": { "Payload": "optional" } }));
    lab.submit(&job).await;
    let dispatched = lab.cluster.api.put(&format!("/v1/job/{id}/dispatch"), &json!({})).await;
    let child = dispatched["DispatchedJobID"].as_str().unwrap().to_owned();
    assert!(child.contains('/'), "{child}");
    let proc = lab.running(&child).await.task("t");
    let (ran, death) = tokio::join!(lab.stop(&child, &["--stop-timeout", "2s"]), proc.death(PATIENCE, "the child"));
    let op = ran.code(0).operation();
    assert_eq!(op.target.name(), child);
    assert_killed(task_of(&op, None, "t"), s(2), death);
    // Its parent is as it was.
    assert_ne!(lab.cluster.api.get(&format!("/v1/job/{id}")).await["Stop"], true);
    lab.stop(&id, &[]).await.code(0);
}

pub async fn an_id_with_a_dot_and_unicode(given: Given) {
    let lab = given.shared().await;
    let id = unique("spiel.größe-日本-?#%");
    let proc = lab.start(&service(&id, vec![task("t", IMPOLITE)])).await.task("t");
    let (ran, death) = tokio::join!(lab.stop(&id, &["--stop-timeout", "2s"]), proc.death(PATIENCE, "the task"));
    let op = ran.code(0).operation();
    assert_eq!((op.state, op.target.name()), (State::Succeeded, id.as_str()));
    assert_killed(task_of(&op, None, "t"), s(2), death);
    assert_eq!(lab.cluster.api.get(&format!("/v1/job/{}", segment(&id))).await["Stop"], true);
}

pub async fn an_id_with_a_space_is_refused_in_nomads_words(given: Given) {
    let lab = given.shared().await;
    let job = service("two words", vec![task("t", POLITE)]);
    let ran = lab.run(&["job", "run", "-"]).stdin(job.to_string()).run().await.code(1);
    ran.says(&["Job ID contains a space"]);
}
