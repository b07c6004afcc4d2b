//! Fact 9: the ways in which a task is told to end while its allocation is wanted running.

use curfew_tests::jobs::{nanos, with};
use curfew_tests::process::Proc;
use curfew_tests::wait::{always, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::kit::{IMPOLITE, POLITE, batch, group, lifecycle, restarts, service, task, unique};
use crate::on::{On, SOON, brief, id, kinds, last_event, proc, procs, s};

/// Another process than `old` in the same allocation.
async fn starts_again(on: &On, alloc: &Value, name: &str, old: Proc) {
    eventually(SOON, "the task to be started again", async || {
        let now = on.alloc(id(alloc)).await?;
        let new = procs(alloc, name).first().is_some_and(|p| *p != old);
        if new && now["TaskStates"][name]["State"] == "running" { Ok(()) } else { Err(brief(&[now])) }
    })
    .await;
}

/// For a while it is wanted running and lives, whatever it says.
async fn hangs(on: &On, alloc: &Value, name: &str) -> Value {
    let proc = proc(alloc, name);
    always(s(2), "that the other one lives", async || if proc.lives() { Ok(()) } else { Err("it is dead".into()) }).await;
    on.alloc(id(alloc)).await.unwrap()
}

pub async fn an_untold_kill_is_answered_by_the_restart_policy(on: On) {
    let job = restarts(service(&unique("untold"), vec![task("t", IMPOLITE)]), 3);
    let alloc = on.start(&job).await;
    let old = proc(&alloc, "t");
    on.signal(id(&alloc), "SIGKILL", "t").await.ok();
    old.death(s(5), "it").await;
    starts_again(&on, &alloc, "t", old).await;
    let alloc = on.alloc(id(&alloc)).await.unwrap();
    assert_eq!((&alloc["DesiredStatus"], &alloc["TaskStates"]["t"]["Restarts"]), (&json!("run"), &json!(1)));
    let expected = ["Received", "Task Setup", "Started", "Signaling", "Terminated", "Restarting", "Started"];
    assert_eq!(kinds(&alloc, "t"), expected, "{}", brief(std::slice::from_ref(&alloc)));
}

/// The ended task's last event is `Terminated` while the allocation hangs behind the other.
async fn sibling(on: &On, job: Value) {
    let alloc = on.start(&job).await;
    let other = proc(&alloc, "other");
    proc(&alloc, "main").signal(Signal::KILL);
    let seen = on.until(id(&alloc), "its sibling's end", |a| last_event(a, "main", "Terminated").is_some()).await;
    assert_eq!(seen["DesiredStatus"], "run", "{}", brief(std::slice::from_ref(&seen)));
    let seen = hangs(on, &alloc, "other").await;
    assert_eq!(seen["TaskStates"]["other"]["State"], "running", "{}", brief(std::slice::from_ref(&seen)));
    on.signal(id(&alloc), "SIGKILL", "other").await.ok();
    other.death(s(5), "the other one").await;
    let over = on.until(id(&alloc), "failed", |a| a["ClientStatus"] == "failed").await;
    let over =
        on.until(id(&over), "both dead", |a| ["main", "other"].iter().all(|t| a["TaskStates"][t]["State"] == "dead")).await;
    assert_eq!(
        last_event(&over, "other", "Sibling Task Failed").unwrap()["FailedSibling"],
        "main",
        "{}",
        brief(std::slice::from_ref(&over))
    );
    assert_eq!((&over["TaskStates"]["main"]["Failed"], &over["TaskStates"]["other"]["Failed"]), (&json!(true), &json!(false)));
}

pub async fn a_sibling_failed(on: On) {
    sibling(&on, service(&unique("sibling"), vec![task("main", "trap '' TERM; exec sleep 3600"), task("other", IMPOLITE)])).await;
}

pub async fn a_sibling_failed_in_a_batch(on: On) {
    sibling(&on, batch(&unique("sibling-b"), vec![task("main", "trap '' TERM; exec sleep 3600"), task("other", IMPOLITE)])).await;
}

/// One ends well, the other is told to end and hangs; nothing is wanted stopped.
async fn ends_and_hangs(on: &On, job: Value, ends: &str, hangs_on: &str) {
    on.register(&job).await.ok();
    let alloc = eventually(SOON, "both tasks", async || {
        let all = on.allocs(job["ID"].as_str().unwrap()).await?;
        let up = |t: &str| all.first().is_some_and(|a| procs(a, t).first().is_some_and(|p| p.minds_sigterm()));
        if up(ends) && up(hangs_on) { Ok(all[0].clone()) } else { Err(brief(&all)) }
    })
    .await;
    let other = proc(&alloc, hangs_on);
    proc(&alloc, ends).signal(Signal::TERM);
    on.until(id(&alloc), "the end of the first", |a| last_event(a, ends, "Terminated").is_some()).await;
    let seen = hangs(on, &alloc, hangs_on).await;
    assert_eq!(
        (&seen["DesiredStatus"], &seen["ClientStatus"]),
        (&json!("run"), &json!("running")),
        "{}",
        brief(std::slice::from_ref(&seen))
    );
    on.signal(id(&alloc), "SIGKILL", hangs_on).await.ok();
    other.death(s(5), "the other one").await;
    let over = on.until(id(&alloc), "complete", |a| a["ClientStatus"] == "complete").await;
    assert!(last_event(&over, hangs_on, "Killing").is_some(), "{}", brief(std::slice::from_ref(&over)));
}

pub async fn the_leader_ended(on: On) {
    let leader = with(task("main", POLITE), json!({ "Leader": true }));
    ends_and_hangs(&on, batch(&unique("leader"), vec![leader, task("other", IMPOLITE)]), "main", "other").await;
}

pub async fn all_main_tasks_ended(on: On) {
    let side = lifecycle(task("side", IMPOLITE), "prestart", true);
    ends_and_hangs(&on, batch(&unique("sidecar"), vec![task("main", POLITE), side]), "main", "side").await;
}

/// Complete, says the client, and it lives.
pub async fn max_run_duration(on: On) {
    if !on.cluster.is_at_least((2, 0, 2)) {
        return on.skip(&format!("Nomad {} has no max_run_duration", on.cluster.version()));
    }
    let job = group(batch(&unique("max-run"), vec![task("t", IMPOLITE)]), json!({ "MaxRunDuration": nanos(s(3)) }));
    let alloc = on.start(&job).await;
    let seen = on.until(id(&alloc), "complete", |a| a["ClientStatus"] == "complete").await;
    assert!(proc(&alloc, "t").lives());
    assert_eq!(seen["DesiredStatus"], "run");
    on.event(id(&alloc), "t", "Killing").await;
    on.signal(id(&alloc), "SIGKILL", "t").await.ok();
    on.until(id(&alloc), "dead", |a| a["TaskStates"]["t"]["State"] == "dead").await;
}

/// `Restart Signaled`, then nothing until it is killed; the call answers when the task is down.
pub async fn restarted_through_the_api(on: On) {
    let alloc = on.start(&service(&unique("restart"), vec![task("t", IMPOLITE)])).await;
    let old = proc(&alloc, "t");
    let path = format!("/v1/client/allocation/{}/restart", id(&alloc));
    let body = json!({ "TaskName": "t" });
    let answered = on.put(&path, &body);
    let kill = async {
        on.event(id(&alloc), "t", "Restart Signaled").await;
        let seen = hangs(&on, &alloc, "t").await;
        assert_eq!(
            kinds(&seen, "t").last().map(String::as_str),
            Some("Restart Signaled"),
            "{}",
            brief(std::slice::from_ref(&seen))
        );
        assert_eq!((&seen["DesiredStatus"], &seen["ClientStatus"]), (&json!("run"), &json!("running")));
        on.signal(id(&alloc), "SIGKILL", "t").await.ok();
    };
    let (answer, ()) = tokio::join!(answered, kill);
    answer.ok();
    starts_again(&on, &alloc, "t", old).await;
}

pub async fn restarted_by_a_template(on: On) {
    let job = unique("template");
    let path = format!("/v1/var/nomad/jobs/{job}");
    let value = |v: &str| json!({ "Path": format!("nomad/jobs/{job}"), "Items": { "v": v } });
    on.put(&path, &value("one")).await.ok();
    let text = format!("{{{{ with nomadVar \"nomad/jobs/{job}\" }}}}{{{{ .v }}}}{{{{ end }}}}\n");
    let template = json!([{ "EmbeddedTmpl": text, "DestPath": "local/v", "ChangeMode": "restart", "Splay": 0 }]);
    let alloc = on.start(&service(&job, vec![with(task("t", IMPOLITE), json!({ "Templates": template }))])).await;
    let old = proc(&alloc, "t");
    on.put(&path, &value("two")).await.ok();
    on.event(id(&alloc), "t", "Restart Signaled").await;
    let seen = hangs(&on, &alloc, "t").await;
    assert!(!kinds(&seen, "t").contains(&"Killing".to_owned()), "{}", brief(std::slice::from_ref(&seen)));
    on.signal(id(&alloc), "SIGKILL", "t").await.ok();
    starts_again(&on, &alloc, "t", old).await;
}
