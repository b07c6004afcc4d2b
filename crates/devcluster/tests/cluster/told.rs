//! Every way a task is told to end, as the recordings have it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Api, DAY, SECOND, events, id, impolite, job, last_event, mock, no_restarts, polite};

const WHILE: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn a_polite_task_leaves_when_its_job_is_deleted() {
    let api = Api::start(1).await;
    let r = api.register(&job("j", "service", &[polite()])).await;
    assert_eq!(r["Warnings"], "");
    let a = id(&api.running("j", 1).await[0]);
    let d = api.delete("j").await;
    assert_ne!(d["EvalID"], "");
    let a = api.alloc_until(&a, "complete", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(a["DesiredStatus"], "stop");
    assert_eq!(a["DesiredDescription"], "alloc not needed due to job update");
    assert_eq!(events(&a, "t"), ["Received", "Task Setup", "Started", "Killing", "Terminated", "Killed"]);
    assert_eq!(a["TaskStates"]["t"]["Events"][3]["DisplayMessage"], "Sent interrupt. Waiting 24h0m0s before force killing");
    let j = api.get("/v1/job/j").await;
    assert_eq!((&j["Status"], &j["Stop"], &j["Version"]), (&json!("dead"), &json!(true), &json!(1)));
    // A second deletion is a new evaluation; of an unknown job it is nothing.
    assert_ne!(api.delete("j").await["EvalID"], "");
    assert_eq!(api.delete("unknown").await["EvalID"], "");
}

#[tokio::test(start_paused = true)]
async fn an_impolite_task_lives_until_sigkill() {
    let api = Api::start(1).await;
    api.register(&job("j", "service", &[impolite()])).await;
    let a = id(&api.running("j", 1).await[0]);
    api.delete("j").await;
    api.pass(Duration::from_secs(3600)).await;
    let now = api.alloc(&a).await;
    assert_eq!((&now["DesiredStatus"], &now["ClientStatus"]), (&json!("stop"), &json!("running")));
    assert_eq!(last_event(&now, "t")["Type"], "Killing");
    assert_eq!(api.signal(&a, "t", "SIGKILL").await.text, r#"{"Index":0}"#);
    let end = api.alloc_until(&a, "complete", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(events(&end, "t")[3..], ["Killing", "Signaling", "Terminated", "Killed"]);
    assert_eq!(end["TaskStates"]["t"]["Events"][5]["DisplayMessage"], "Exit Code: 137, Signal: 9");
    let again = api.signal(&a, "t", "SIGKILL").await;
    assert_eq!((again.status, again.text.as_str()), (500, "Task not running"));
}

#[tokio::test(start_paused = true)]
async fn nomad_kills_at_kill_timeout_cut_by_the_client() {
    let mut nodes = crate::harness::nodes(1);
    nodes[0].max_kill_timeout = Duration::from_secs(30);
    let api = Api::with(nodes, |_| {}).await;
    api.register(&job("j", "service", &[impolite()])).await;
    let a = id(&api.running("j", 1).await[0]);
    api.delete("j").await;
    let now = api.alloc_until(&a, "killing", |a| last_event(a, "t")["Type"] == "Killing").await;
    assert_eq!(last_event(&now, "t")["KillTimeout"], json!(30 * SECOND));
    api.pass(Duration::from_secs(31)).await;
    api.alloc_until(&a, "complete", |a| a["ClientStatus"] == "complete").await;
}

#[tokio::test(start_paused = true)]
async fn signals_answer_as_recorded() {
    let api = Api::start(1).await;
    api.register(&job("j", "service", &[impolite()])).await;
    let a = id(&api.running("j", 1).await[0]);
    for (task, signal, status, text) in [
        ("t", "SIGNOPE", 200, r#"{"Index":0}"#),
        ("nope", "SIGUSR1", 500, "Task not found"),
        ("t", "", 200, r#"{"Index":0}"#),
        ("", "SIGUSR1", 200, r#"{"Index":0}"#),
    ] {
        let r = api.signal(&a, task, signal).await;
        assert_eq!((r.status, r.text.as_str()), (status, text), "{task} {signal}");
    }
    let r = api.signal("00000000-0000-0000-0000-000000000000", "t", "SIGKILL").await;
    assert_eq!((r.status, r.text.as_str()), (404, "Unknown allocation \"00000000-0000-0000-0000-000000000000\""));
    let r = api.signal("nonsense", "t", "SIGKILL").await;
    assert_eq!((r.status, r.text.as_str()), (500, "alloc lookup failed: index error: UUID must be 36 characters"));
    // Nothing was stopped: the restart policy answers a SIGKILL.
    api.signal(&a, "t", "SIGKILL").await;
    let back = api.alloc_until(&a, "restarted", |a| events(a, "t").ends_with(&["Restarting".into(), "Started".into()])).await;
    assert_eq!((&back["ClientStatus"], &back["TaskStates"]["t"]["Restarts"]), (&json!("running"), &json!(1)));
}

#[tokio::test(start_paused = true)]
async fn a_driver_without_signals_says_so() {
    let api = Api::start(1).await;
    let mut task = impolite();
    task["Driver"] = json!("nosignal");
    api.register(&job("j", "service", &[task])).await;
    let a = id(&api.running("j", 1).await[0]);
    let r = api.signal(&a, "t", "SIGKILL").await;
    assert_eq!((r.status, r.text.as_str()), (500, "SignalTask is not supported by this driver"));
}

#[tokio::test(start_paused = true)]
async fn two_tasks_and_an_empty_task_name() {
    let api = Api::start(1).await;
    api.register(&job("j", "service", &[impolite(), mock("u", json!({}))])).await;
    let a = id(&api.running("j", 1).await[0]);
    api.delete("j").await;
    api.alloc_until(&a, "u dead", |a| a["TaskStates"]["u"]["State"] == "dead" && a["TaskStates"]["t"]["State"] == "running")
        .await;
    let r = api.signal(&a, "", "SIGKILL").await;
    assert_eq!(r.status, 500);
    assert_eq!(r.text, "1 error occurred:\n\t* Failed to signal task: u, err: Task not running\n\n");
    api.alloc_until(&a, "complete", |a| a["ClientStatus"] == "complete").await;
}

#[tokio::test(start_paused = true)]
async fn inside_a_shutdown_delay_everything_is_pending() {
    let api = Api::start(1).await;
    let mut task = polite();
    task["ShutdownDelay"] = json!(60 * SECOND);
    api.register(&job("j", "service", &[task.clone()])).await;
    let a = id(&api.running("j", 1).await[0]);
    api.delete("j").await;
    let now = api.alloc_until(&a, "pending", |a| a["ClientStatus"] == "pending").await;
    assert_eq!(now["TaskStates"]["t"]["State"], "pending");
    assert_eq!(last_event(&now, "t")["DisplayMessage"], "Waiting for shutdown_delay of 1m0s before killing the task.");
    api.signal(&a, "t", "SIGKILL").await;
    let end = api.alloc_until(&a, "complete", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(events(&end, "t")[3..], ["Killing", "Waiting for shutdown delay", "Signaling", "Terminated", "Restarting"]);

    task["Name"] = json!("t");
    api.register(&job("k", "service", &[task])).await;
    let b = id(&api.running("k", 1).await[0]);
    api.delete("k?no_shutdown_delay=true").await;
    let end = api.alloc_until(&b, "complete", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(events(&end, "t")[3..], ["Killing", "Skipping shutdown delay", "Terminated", "Killed"]);
}

#[tokio::test(start_paused = true)]
async fn a_poststop_task_runs_to_its_end() {
    let api = Api::start(1).await;
    let mut cleanup = mock("cleanup", json!({"run_for": "3s"}));
    cleanup["Lifecycle"] = json!({"Hook": "poststop"});
    api.register(&job("j", "batch", &[impolite(), cleanup])).await;
    let a = id(&api.running("j", 1).await[0]);
    api.delete("j").await;
    api.pass(WHILE).await;
    api.signal(&a, "t", "SIGKILL").await;
    let now = api.alloc_until(&a, "cleanup runs", |a| a["TaskStates"]["cleanup"]["State"] == "running").await;
    assert_eq!((&now["ClientStatus"], &now["TaskStates"]["t"]["State"]), (&json!("running"), &json!("dead")));
    let end = api.alloc_until(&a, "complete", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(events(&end, "cleanup"), ["Received", "Task Setup", "Started", "Terminated"]);
}

/// The client is busy ending the others and reports nothing more.
async fn silent_until_killed(api: &Api, alloc: &str, dead: &str, other: &str, why: &str, end_status: &str) {
    let now = api.alloc_until(alloc, "terminated seen", |a| last_event(a, dead)["Type"] == "Terminated").await;
    assert_eq!(now["TaskStates"][dead]["State"], "running");
    api.pass(Duration::from_secs(120)).await;
    let still = api.alloc(alloc).await;
    assert_eq!(still["ModifyIndex"], now["ModifyIndex"], "something was reported");
    assert_eq!(still["ClientStatus"], "running");
    assert_eq!(api.signal(alloc, other, "SIGKILL").await.status, 200);
    let end = api.alloc_until(alloc, "over", |a| a["ClientStatus"] == end_status).await;
    let seen = events(&end, other);
    assert!(
        seen.ends_with(&[why.into(), "Killing".into(), "Signaling".into(), "Terminated".into(), "Killed".into()]),
        "{seen:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_sibling() {
    let api = Api::start(1).await;
    let mut j = no_restarts(job(
        "j",
        "batch",
        &[mock("main", json!({"run_for": "3s", "exit_code": 1})), mock("other", json!({"ignore_sigterm": true}))],
    ));
    j["TaskGroups"][0]["ReschedulePolicy"] = json!({"Attempts": 0, "Unlimited": false});
    api.register(&j).await;
    let a = id(&api.running("j", 1).await[0]);
    silent_until_killed(&api, &a, "main", "other", "Sibling Task Failed", "failed").await;
    let end = api.alloc(&a).await;
    assert_eq!(last_event(&end, "main")["DisplayMessage"], "Policy allows no restarts");
    assert_eq!(end["TaskStates"]["main"]["Failed"], true);
}

/// Health, found on states from before the failure, shows what is going on; the replacement waits for the sibling's end.
#[tokio::test(start_paused = true)]
async fn a_failed_sibling_of_a_service() {
    let api = Api::start(1).await;
    let mut j = no_restarts(job(
        "j",
        "service",
        &[mock("main", json!({"run_for": "3s", "exit_code": 1})), mock("other", json!({"ignore_sigterm": true}))],
    ));
    j["TaskGroups"][0]["ReschedulePolicy"] =
        json!({"Attempts": 0, "Unlimited": true, "Delay": 5 * SECOND, "DelayFunction": "constant", "MaxDelay": 0, "Interval": 0});
    api.register(&j).await;
    let a = id(&api.running("j", 1).await[0]);
    let now = api.alloc_until(&a, "failed", |a| a["ClientStatus"] == "failed").await;
    assert_eq!((&now["DesiredStatus"], &now["DeploymentStatus"]["Healthy"]), (&json!("run"), &json!(true)));
    assert_eq!(last_event(&now, "other")["Type"], "Killing");
    api.pass(Duration::from_secs(60)).await;
    assert_eq!(api.allocs("j").await.len(), 1);
    api.signal(&a, "other", "SIGKILL").await;
    let old = api.alloc_until(&a, "replaced", |a| a["NextAllocation"].is_string()).await;
    assert_eq!(old["TaskStates"]["other"]["State"], "dead");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_ends() {
    let api = Api::start(1).await;
    let mut leader = mock("main", json!({"run_for": "3s"}));
    leader["Leader"] = json!(true);
    api.register(&job("j", "batch", &[leader, mock("other", json!({"ignore_sigterm": true}))])).await;
    let a = id(&api.running("j", 1).await[0]);
    silent_until_killed(&api, &a, "main", "other", "Leader Task Dead", "complete").await;
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_outlives_its_main_task() {
    let api = Api::start(1).await;
    let mut side = mock("side", json!({"ignore_sigterm": true}));
    side["Lifecycle"] = json!({"Hook": "prestart", "Sidecar": true});
    api.register(&job("j", "batch", &[mock("main", json!({"run_for": "3s"})), side])).await;
    let a = id(&api.running("j", 1).await[0]);
    silent_until_killed(&api, &a, "main", "side", "Main Tasks Dead", "complete").await;
}

#[tokio::test(start_paused = true)]
async fn max_run_duration_is_complete_with_a_live_task() {
    let api = Api::start(1).await;
    let mut j = job("j", "batch", &[impolite()]);
    j["TaskGroups"][0]["MaxRunDuration"] = json!(4 * SECOND);
    api.register(&j).await;
    let a = id(&api.running("j", 1).await[0]);
    let now = api.alloc_until(&a, "complete", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(now["TaskStates"]["t"]["State"], "running");
    assert_eq!(now["DesiredStatus"], "run");
    assert_eq!(last_event(&now, "t")["DisplayMessage"], "allocation exceeded max_run_duration");
    assert_eq!(last_event(&now, "t")["KillTimeout"], json!(DAY));
    api.signal(&a, "t", "SIGKILL").await;
    api.alloc_until(&a, "dead", |a| a["TaskStates"]["t"]["State"] == "dead").await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_by_api_waits_for_the_old_process() {
    let api = Api::start(1).await;
    api.register(&job("j", "service", &[impolite()])).await;
    let a = id(&api.running("j", 1).await[0]);
    let path = format!("/v1/client/allocation/{a}/restart");
    let body = json!({"TaskName": ""});
    let restart = api.call("PUT", &path, Some(&body));
    tokio::pin!(restart);
    let waiting = tokio::time::timeout(Duration::from_secs(60), &mut restart).await;
    assert!(waiting.is_err(), "the restart answered although the old process lives");
    let now = api.alloc(&a).await;
    assert_eq!(last_event(&now, "t")["Type"], "Restart Signaled");
    assert_eq!(last_event(&now, "t")["DisplayMessage"], "User requested running tasks to restart");
    api.signal(&a, "t", "SIGKILL").await;
    assert_eq!(restart.await.status, 200);
    let back = api.alloc_until(&a, "started again", |a| last_event(a, "t")["Type"] == "Started").await;
    assert_eq!(events(&back, "t")[3..], ["Restart Signaled", "Signaling", "Terminated", "Restarting", "Started"]);
    assert_eq!(back["TaskStates"]["t"]["Events"][6]["DisplayMessage"], "Task restarting in 0s");
}

#[tokio::test(start_paused = true)]
async fn a_failed_service_is_rescheduled_after_its_delay() {
    let api = Api::start(1).await;
    let mut j = no_restarts(job("j", "service", &[mock("t", json!({"run_for": "20s", "exit_code": 1}))]));
    j["TaskGroups"][0]["ReschedulePolicy"] =
        json!({"Attempts": 0, "Unlimited": true, "Delay": 5 * SECOND, "DelayFunction": "constant", "MaxDelay": 0, "Interval": 0});
    api.register(&j).await;
    let a = id(&api.running("j", 1).await[0]);
    let failed = api.alloc_until(&a, "failed", |a| a["ClientStatus"] == "failed").await;
    assert_eq!(failed["DesiredStatus"], "run");
    let old = api.alloc_until(&a, "replaced", |a| a["NextAllocation"].is_string()).await;
    assert_eq!(old["DesiredStatus"], "stop");
    let new = api.alloc(old["NextAllocation"].as_str().unwrap()).await;
    assert_eq!(new["PreviousAllocation"], json!(a));
    assert_eq!(new["RescheduleTracker"]["Events"].as_array().map(Vec::len), Some(1));
    let events: &Value = &new["RescheduleTracker"]["Events"];
    assert_eq!(events[0]["PrevAllocID"], json!(a));
}
