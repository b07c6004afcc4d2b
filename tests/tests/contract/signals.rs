//! Facts 8, 11, 19 and 20: the signal call's answers.

use serde_json::json;

use crate::kit::{IMPOLITE, POLITE, batch, lifecycle, service, task, unique};
use crate::on::{On, brief, id, kinds, last_event, proc, s};

const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

pub async fn a_signal_answers_200(on: On) {
    let job = unique("usr1");
    let alloc =
        on.start(&service(&job, vec![task("t", "trap 'exit 7' USR1; trap 'exit 0' TERM; while :; do sleep 0.1; done")])).await;
    let answer = on.signal(id(&alloc), "SIGUSR1", "t").await.ok();
    assert_eq!(answer.body, json!({ "Index": 0 }));
    let alloc = on.until(id(&alloc), "its end", |a| last_event(a, "t", "Terminated").is_some()).await;
    assert_eq!(last_event(&alloc, "t", "Terminated").unwrap()["ExitCode"], 7);
    let signaling = last_event(&alloc, "t", "Signaling").unwrap();
    assert_eq!(signaling["Details"]["signal"], "SIGUSR1", "{signaling}");
}

pub async fn an_unknown_allocation(on: On) {
    let answer = on.signal(NOBODY, "SIGKILL", "t").await;
    assert_eq!(answer.says(), (404, &*format!("Unknown allocation \"{NOBODY}\"")));
    assert!(answer.header("content-type").starts_with("text/plain"), "{answer:?}");
    assert_eq!(
        on.signal("short", "SIGKILL", "t").await.says(),
        (500, "alloc lookup failed: index error: UUID must be 36 characters")
    );
}

pub async fn an_unknown_task(on: On) {
    let alloc = on.start(&service(&unique("task"), vec![task("t", POLITE)])).await;
    assert_eq!(on.signal(id(&alloc), "SIGUSR1", "nope").await.says(), (500, "Task not found"));
}

pub async fn a_dead_task(on: On) {
    let job = unique("dead");
    let alloc = on.start(&service(&job, vec![task("t", POLITE)])).await;
    on.delete(&job).await.ok();
    on.until(id(&alloc), "its end", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(on.signal(id(&alloc), "SIGKILL", "t").await.says(), (500, "Task not running"));
}

pub async fn killing_it_twice(on: On) {
    let job = unique("twice");
    let alloc = on.start(&service(&job, vec![task("t", IMPOLITE)])).await;
    on.delete(&job).await.ok();
    on.event(id(&alloc), "t", "Killing").await;
    on.signal(id(&alloc), "SIGKILL", "t").await.ok();
    on.until(id(&alloc), "its end", |a| a["ClientStatus"] == "complete").await;
    let again = on.signal(id(&alloc), "SIGKILL", "t").await;
    assert_eq!(again.status, 500, "{again:?}");
    let end = on.alloc(id(&alloc)).await.unwrap();
    assert_eq!(
        (&end["ClientStatus"], &end["TaskStates"]["t"]["Failed"]),
        (&json!("complete"), &json!(false)),
        "{}",
        brief(std::slice::from_ref(&end))
    );
}

pub async fn an_empty_task_is_every_task(on: On) {
    let job = unique("every");
    let alloc = on.start(&service(&job, vec![task("a", IMPOLITE), task("b", IMPOLITE)])).await;
    let (a, b) = (proc(&alloc, "a"), proc(&alloc, "b"));
    on.delete(&job).await.ok();
    on.event(id(&alloc), "a", "Killing").await;
    on.event(id(&alloc), "b", "Killing").await;
    on.signal(id(&alloc), "SIGKILL", "").await.ok();
    a.death(s(5), "a").await;
    b.death(s(5), "b").await;
}

/// The others are killed all the same.
pub async fn an_empty_task_answers_500_when_one_was_dead(on: On) {
    let job = unique("one-dead");
    let alloc = on.start(&service(&job, vec![task("bad", IMPOLITE), task("good", POLITE)])).await;
    let bad = proc(&alloc, "bad");
    on.delete(&job).await.ok();
    on.until(id(&alloc), "the polite one's end", |a| a["TaskStates"]["good"]["State"] == "dead").await;
    let answer = on.signal(id(&alloc), "SIGKILL", "").await;
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(answer.text.contains("Task not running"), "{answer:?}");
    bad.death(s(5), "the other one").await;
}

pub async fn an_empty_task_hits_a_running_poststop_task(on: On) {
    let job = unique("post");
    let after = lifecycle(task("after", IMPOLITE), "poststop", false);
    let alloc = on.start(&service(&job, vec![task("t", POLITE), after])).await;
    on.delete(&job).await.ok();
    let alloc = on.until(id(&alloc), "the poststop task", |a| a["TaskStates"]["after"]["State"] == "running").await;
    let proc = proc(&alloc, "after");
    assert_eq!(on.signal(id(&alloc), "SIGKILL", "").await.status, 500);
    proc.death(s(5), "the poststop task").await;
}

/// Our own `Signaling` pushes the older ones out.
pub async fn a_task_keeps_its_last_ten_events(on: On) {
    let alloc = on.start(&service(&unique("ten"), vec![task("t", "trap '' USR1 TERM; exec sleep 3600")])).await;
    assert_eq!(kinds(&alloc, "t"), ["Received", "Task Setup", "Started"]);
    for _ in 0..12 {
        on.signal(id(&alloc), "SIGUSR1", "t").await.ok();
    }
    let alloc = on.until(id(&alloc), "twelve signals", |a| kinds(a, "t").iter().all(|k| k == "Signaling")).await;
    assert_eq!(kinds(&alloc, "t").len(), 10, "{}", brief(&[alloc]));
}

pub async fn unknown_signal_names_are_sigint(on: On) {
    for name in ["", "SIGNOPE"] {
        let job = unique("names");
        let ends = task("t", "trap 'exit 3' INT; trap 'exit 4' TERM; while :; do sleep 0.1; done");
        let alloc = on.start(&batch(&job, vec![ends])).await;
        on.signal(id(&alloc), name, "t").await.ok();
        let alloc = on.until(id(&alloc), "its end", |a| last_event(a, "t", "Terminated").is_some()).await;
        assert_eq!(last_event(&alloc, "t", "Terminated").unwrap()["ExitCode"], 3, "after {name:?}: {}", brief(&[alloc]));
    }
}
