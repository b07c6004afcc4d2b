//! Facts 1, 3, 6, 7, 10 and 11: what a stop does, and what it does not.

use curfew_tests::jobs::{nanos, with};
use curfew_tests::wait::always;
use reqwest::Method;
use serde_json::{Value, json};

use crate::kit::{IMPOLITE, POLITE, lifecycle, service, task, unique};
use crate::on::{On, SOON, brief, id, kinds, last_event, proc, procs, s};

const TELLS: &str = "trap 'exit 3' INT; trap 'exit 4' TERM; sleep 3600 & wait";

/// How its only task ended, after a stop.
async fn stopped(on: &On, job: &Value) -> Value {
    let alloc = on.start(job).await;
    on.delete(job["ID"].as_str().unwrap()).await.ok();
    let alloc = on.until(id(&alloc), "its end", |a| a["ClientStatus"] == "complete").await;
    last_event(&alloc, "t", "Terminated").unwrap_or_else(|| panic!("{}", brief(std::slice::from_ref(&alloc))))
}

pub async fn without_a_kill_signal_a_stop_is_sigint(on: On) {
    let end = stopped(&on, &service(&unique("sigint"), vec![with(task("t", TELLS), json!({ "KillSignal": "" }))])).await;
    assert_eq!(end["ExitCode"], 3, "{end}");
}

pub async fn with_sigterm_as_kill_signal_a_stop_is_sigterm(on: On) {
    let end = stopped(&on, &service(&unique("sigterm"), vec![task("t", TELLS)])).await;
    assert_eq!(end["ExitCode"], 4, "{end}");
}

/// The job keeps what was asked for; only the event tells.
pub async fn the_client_cuts_the_kill_timeout_silently(on: On) {
    let job = unique("cut");
    let alloc = on.start(&service(&job, vec![task("t", IMPOLITE)])).await;
    let kept = on.get(&format!("/v1/job/{job}")).await.ok().body;
    assert_eq!(kept["TaskGroups"][0]["Tasks"][0]["KillTimeout"], nanos(crate::kit::DAY));
    on.delete(&job).await.ok();
    let killing = on.event(id(&alloc), "t", "Killing").await;
    assert_eq!(killing["KillTimeout"], nanos(s(30)), "{killing}");
}

/// It is gone from every list, its process lives, and no signal reaches it.
pub async fn a_purge_hides_a_living_process(on: On) {
    let job = unique("purged");
    let alloc = on.start(&service(&job, vec![task("t", IMPOLITE)])).await;
    let proc = proc(&alloc, "t");
    on.call(Method::DELETE, &format!("/v1/job/{job}?purge=true"), None).await.ok();
    let gone = async || {
        let answer = on.try_call(Method::GET, &format!("/v1/allocation/{}", id(&alloc)), None).await?;
        if answer.says() == (404, "alloc not found") { Ok(()) } else { Err(format!("{answer:?}")) }
    };
    curfew_tests::wait::eventually(SOON, "the allocation to be gone", gone).await;
    assert_eq!(on.allocs(&job).await, Ok(vec![]));
    assert_eq!(on.get(&format!("/v1/jobs?prefix={job}")).await.ok().body, json!([]));
    let signal = on.signal(id(&alloc), "SIGKILL", "t").await;
    assert_eq!(signal.says(), (404, &*format!("Unknown allocation \"{}\"", id(&alloc))));
    assert!(proc.lives(), "the process of a purged job ended by itself");
}

pub async fn system_gc_leaves_what_lives(on: On) {
    let job = unique("gc");
    let alloc = on.start(&service(&job, vec![task("t", IMPOLITE)])).await;
    on.delete(&job).await.ok();
    on.event(id(&alloc), "t", "Killing").await;
    on.put("/v1/system/gc", &Value::Null).await.ok();
    always(s(2), "that it is there still", async || {
        let there = on.alloc(id(&alloc)).await?;
        if there["DesiredStatus"] == "stop" && there["ClientStatus"] == "running" { Ok(()) } else { Err(brief(&[there])) }
    })
    .await;
    assert!(proc(&alloc, "t").lives());
    assert_eq!(on.get(&format!("/v1/job/{job}")).await.ok().body["Stop"], true);
    on.signal(id(&alloc), "SIGKILL", "t").await.ok();
}

pub async fn inside_a_shutdown_delay_everything_says_pending(on: On) {
    let job = unique("delay");
    let patient = with(task("t", IMPOLITE), json!({ "ShutdownDelay": nanos(s(4)) }));
    let alloc = on.start(&service(&job, vec![patient])).await;
    on.delete(&job).await.ok();
    let seen = on.until(id(&alloc), "pending", |a| a["ClientStatus"] == "pending").await;
    assert_eq!(seen["TaskStates"]["t"]["State"], "pending", "{}", brief(std::slice::from_ref(&seen)));
    assert_eq!(kinds(&seen, "t").last().map(String::as_str), Some("Waiting for shutdown delay"));
    // It ignores SIGTERM: after the delay it lives and says pending still.
    on.event(id(&alloc), "t", "Killing").await;
    always(s(6), "that it lives, pending", async || {
        let now = on.alloc(id(&alloc)).await?;
        let as_was = now["ClientStatus"] == "pending" && now["TaskStates"]["t"]["State"] == "pending";
        if as_was && proc(&alloc, "t").lives() { Ok(()) } else { Err(brief(&[now])) }
    })
    .await;
    on.signal(id(&alloc), "SIGKILL", "t").await.ok();
    on.until(id(&alloc), "complete", |a| a["ClientStatus"] == "complete").await;
}

pub async fn deleting_an_unknown_job(on: On) {
    let answer = on.delete(&unique("nobody")).await.ok();
    assert_eq!((&answer.body["EvalID"], &answer.body["JobModifyIndex"]), (&json!(""), &json!(0)), "{answer:?}");
}

pub async fn deleting_it_again_is_another_evaluation(on: On) {
    let job = unique("again");
    on.start(&service(&job, vec![task("t", POLITE)])).await;
    let first = on.delete(&job).await.ok().body;
    let second = on.delete(&job).await.ok().body;
    assert!(first["EvalID"].as_str().unwrap().len() == 36 && second["EvalID"].as_str().unwrap().len() == 36, "{first} {second}");
    assert_ne!(first["EvalID"], second["EvalID"]);
}

pub async fn after_a_kill_it_is_complete_with_exit_code_137(on: On) {
    let job = unique("killed");
    let alloc = on.start(&service(&job, vec![task("t", IMPOLITE)])).await;
    let proc = proc(&alloc, "t");
    on.delete(&job).await.ok();
    let told = on.event(id(&alloc), "t", "Killing").await;
    assert_eq!(told["KillTimeout"], nanos(crate::kit::DAY), "{told}");
    assert!(proc.lives());
    on.signal(id(&alloc), "SIGKILL", "t").await.ok();
    proc.death(s(5), "a task that was sent SIGKILL").await;
    let alloc = on.until(id(&alloc), "complete", |a| a["ClientStatus"] == "complete").await;
    let end = last_event(&alloc, "t", "Terminated").unwrap();
    assert_eq!((&end["ExitCode"], &end["Signal"]), (&json!(137), &json!(9)), "{end}");
    assert_eq!((&alloc["TaskStates"]["t"]["State"], &alloc["TaskStates"]["t"]["Failed"]), (&json!("dead"), &json!(false)));
    assert_eq!(on.allocs(&job).await.unwrap().len(), 1);
}

pub async fn a_polite_one_is_complete_with_its_own_code(on: On) {
    let end = stopped(&on, &service(&unique("polite"), vec![task("t", POLITE)])).await;
    assert_eq!((&end["ExitCode"], &end["Signal"]), (&json!(0), &json!(0)), "{end}");
}

/// The allocation is over when its poststop task is, and that one was told nothing.
pub async fn a_poststop_task_runs_after_a_kill(on: On) {
    let job = unique("poststop");
    let after = lifecycle(task("after", "sleep 3; exit 0"), "poststop", false);
    let alloc = on.start(&service(&job, vec![task("t", IMPOLITE), after])).await;
    assert!(procs(&alloc, "after").is_empty(), "a poststop task runs beside the main task");
    on.delete(&job).await.ok();
    on.event(id(&alloc), "t", "Killing").await;
    on.signal(id(&alloc), "SIGKILL", "t").await.ok();
    let running = on.until(id(&alloc), "the poststop task", |a| a["TaskStates"]["after"]["State"] == "running").await;
    assert_eq!((&running["ClientStatus"], &running["TaskStates"]["t"]["State"]), (&json!("running"), &json!("dead")));
    let over = on.until(id(&alloc), "its end", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(last_event(&over, "after", "Terminated").unwrap()["ExitCode"], 0);
    assert!(!kinds(&over, "after").contains(&"Killing".to_owned()), "{}", brief(&[over]));
}
