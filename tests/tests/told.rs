//! Managed jobs whose tasks are told to end while nobody stops anything. Each author wrote `kill_timeout = "2s"`; Nomad was
//! given 24 hours, so without Curfew each of these would hang for a day.

use std::time::Duration;

use curfew_core::Timestamp;
use curfew_tests::jobs::{IMPOLITE, POLITE, batch, group, nanos, service, task, with};
use curfew_tests::lab::{Lab, PATIENCE, Running, late, short, unique};
use curfew_tests::now;
use curfew_tests::process::Proc;
use curfew_tests::run::Given;
use curfew_tests::wait::eventually;
use rustix::process::Signal;
use serde_json::{Value, json};

const OWN: Duration = Duration::from_secs(2);
/// Between a process's end and the client's event of it, and between an event and its report.
const REPORT: Duration = Duration::from_millis(1200);

fn own(task: Value) -> Value {
    with(task, json!({ "KillTimeout": nanos(OWN) }))
}

fn impolite(name: &str) -> Value {
    own(task(name, IMPOLITE))
}

fn polite(name: &str) -> Value {
    own(task(name, POLITE))
}

/// Dead two seconds after it was told at `told`, not before.
async fn dies_by_its_clock(proc: Proc, told: Timestamp, what: &str) {
    let death = proc.death(PATIENCE, what).await;
    assert!(death >= told + OWN, "{what}: dead {:?} after it was told", death.since(told));
    assert!(death.since(told + OWN) <= late() + REPORT, "{what}: dead {:?} after it was told", death.since(told));
}

async fn ends_as(lab: &Lab, running: &Running, status: &str) {
    eventually(PATIENCE, &format!("the allocation of {} to be {status}", running.job), async || {
        let alloc = lab.cluster.api.allocation(&running.alloc).await?;
        if alloc["ClientStatus"] == status { Ok(()) } else { Err(short(&[alloc])) }
    })
    .await;
}

/// A neighbour lives through it with the same process.
struct Neighbour(String, Proc);

impl Neighbour {
    async fn of(lab: &Lab) -> Self {
        let (id, proc) = lab.neighbour().await;
        Self(id, proc)
    }

    async fn unharmed(self, lab: &Lab) {
        assert_eq!(lab.running(&self.0).await.task("t"), self.1, "the neighbour was touched");
        lab.discard(&self.0).await;
    }
}

pub async fn a_sibling_fails(given: Given) {
    let lab = given.shared().await;
    let neighbour = Neighbour::of(&lab).await;
    let id = unique("sibling-fails");
    // Nomad goes on: it replaces what failed.
    let again =
        json!({ "ReschedulePolicy": { "Unlimited": true, "Delay": nanos(Duration::from_secs(5)), "DelayFunction": "constant" } });
    let job = group(service(&id, vec![impolite("bad"), polite("fails")]), again);
    let running = lab.start(&job).await;
    let told = now();
    running.task("fails").signal(Signal::KILL);
    dies_by_its_clock(running.task("bad"), told, "the failed task's sibling").await;
    ends_as(&lab, &running, "failed").await;
    let next = lab.running_besides(&id, &running.alloc).await;
    assert!(next.task("bad").lives());
    neighbour.unharmed(&lab).await;
    lab.stop(&id, &["--stop-timeout", "1s"]).await.code(0);
}

pub async fn a_sibling_fails_in_a_batch(given: Given) {
    let lab = given.shared().await;
    let id = unique("sibling-fails-batch");
    let running = lab.start(&batch(&id, vec![impolite("bad"), polite("fails")])).await;
    let told = now();
    running.task("fails").signal(Signal::KILL);
    dies_by_its_clock(running.task("bad"), told, "the failed task's sibling").await;
    ends_as(&lab, &running, "failed").await;
    lab.discard(&id).await;
}

pub async fn the_leader_ends(given: Given) {
    let lab = given.shared().await;
    let neighbour = Neighbour::of(&lab).await;
    let id = unique("leader-ends");
    let job = batch(&id, vec![impolite("bad"), with(polite("leader"), json!({ "Leader": true }))]);
    let running = lab.start(&job).await;
    let told = now();
    running.task("leader").signal(Signal::TERM);
    dies_by_its_clock(running.task("bad"), told, "the leader's follower").await;
    eventually(PATIENCE, "the allocation to be over", async || {
        let alloc = lab.cluster.api.allocation(&running.alloc).await?;
        let over = alloc["ClientStatus"] == "complete" || alloc["ClientStatus"] == "failed";
        if over { Ok(()) } else { Err(short(&[alloc])) }
    })
    .await;
    neighbour.unharmed(&lab).await;
    lab.discard(&id).await;
}

pub async fn the_main_task_ends_beside_a_sidecar(given: Given) {
    let lab = given.shared().await;
    let id = unique("sidecar");
    let sidecar = with(impolite("sidecar"), json!({ "Lifecycle": { "Hook": "prestart", "Sidecar": true } }));
    let running = lab.start(&batch(&id, vec![polite("main"), sidecar])).await;
    let (main, sidecar) = eventually(PATIENCE, "both tasks", async || {
        let running = lab.running(&id).await;
        if running.tasks.len() == 2 { Ok((running.task("main"), running.task("sidecar"))) } else { Err(format!("{running:?}")) }
    })
    .await;
    let told = now();
    main.signal(Signal::TERM);
    dies_by_its_clock(sidecar, told, "the sidecar").await;
    ends_as(&lab, &running, "complete").await;
    lab.discard(&id).await;
}

pub async fn max_run_duration(given: Given) {
    let lab = given.shared().await;
    if !lab.cluster.is_at_least((2, 0, 2)) {
        return given.skip(&format!("Nomad {} has no max_run_duration", lab.cluster.version()));
    }
    let neighbour = Neighbour::of(&lab).await;
    let id = unique("max-run");
    let span = Duration::from_secs(4);
    let job = group(batch(&id, vec![impolite("bad")]), json!({ "MaxRunDuration": nanos(span) }));
    let running = lab.start(&job).await;
    let proc = running.task("bad");
    let death = proc.death(PATIENCE, "the task").await;
    let told = event(&lab, &running.alloc, "bad", "Killing").await;
    assert!(death >= told + OWN && death.since(told + OWN) <= late() + REPORT, "told at {told}, dead at {death}");
    neighbour.unharmed(&lab).await;
    lab.discard(&id).await;
}

/// When the task's last event of a kind was.
async fn event(lab: &Lab, alloc: &str, task: &str, kind: &str) -> Timestamp {
    eventually(PATIENCE, &format!("an event {kind} of {task}"), async || {
        let alloc = lab.cluster.api.allocation(alloc).await?;
        let events = alloc["TaskStates"][task]["Events"].as_array().cloned().unwrap_or_default();
        let found = events.iter().rev().find(|e| e["Type"] == kind).and_then(|e| e["Time"].as_i64());
        found.map(|nanos| Timestamp::from_micros(nanos / 1000)).ok_or_else(|| short(&[alloc]))
    })
    .await
}

/// Another process than `old`, in the same allocation.
async fn starts_again(lab: &Lab, running: &Running, task: &str, old: Proc) {
    eventually(PATIENCE, "the task to be started again", async || {
        let now = lab.processes(&running.job, &lab.cluster.api.allocation(&running.alloc).await?)?;
        if now.tasks.iter().any(|(n, p)| n == task && p[0] != old) { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
}

pub async fn restarted_through_the_api(given: Given) {
    let lab = given.shared().await;
    let neighbour = Neighbour::of(&lab).await;
    let id = unique("restart");
    let running = lab.start(&service(&id, vec![impolite("bad")])).await;
    let proc = running.task("bad");
    let told = now();
    let restart = format!("/v1/client/allocation/{}/restart", running.alloc);
    let body = json!({ "TaskName": "bad" });
    // Nomad answers when the task is down.
    let (_, ()) = tokio::join!(lab.cluster.api.put(&restart, &body), dies_by_its_clock(proc, told, "the restarted task"));
    starts_again(&lab, &running, "bad", proc).await;
    neighbour.unharmed(&lab).await;
    lab.stop(&id, &["--stop-timeout", "1s"]).await.code(0);
}

pub async fn restarted_by_a_template(given: Given) {
    let lab = given.shared().await;
    let id = unique("template");
    let variable = format!("/v1/var/nomad/jobs/{id}");
    let value = |v: &str| json!({ "Path": format!("nomad/jobs/{id}"), "Items": { "v": v } });
    lab.cluster.api.put(&variable, &value("one")).await;
    let text = format!("{{{{ with nomadVar \"nomad/jobs/{id}\" }}}}{{{{ .v }}}}{{{{ end }}}}\n");
    let template = json!([{ "EmbeddedTmpl": text, "DestPath": "local/v", "ChangeMode": "restart", "Splay": 0 }]);
    let running = lab.start(&service(&id, vec![with(impolite("bad"), json!({ "Templates": template }))])).await;
    let proc = running.task("bad");
    lab.cluster.api.put(&variable, &value("two")).await;
    let told = event(&lab, &running.alloc, "bad", "Restart Signaled").await;
    dies_by_its_clock(proc, told, "the task whose template changed").await;
    starts_again(&lab, &running, "bad", proc).await;
    lab.stop(&id, &["--stop-timeout", "1s"]).await.code(0);
}

/// A new version replaces an allocation that ignores SIGTERM: the rollout does not hang behind it.
pub async fn replaced_by_a_new_version(given: Given) {
    let lab = given.shared().await;
    let id = unique("replaced");
    let job = service(&id, vec![impolite("bad")]);
    let running = lab.start(&job).await;
    let next = with(
        job,
        json!({ "TaskGroups": [with(service(&id, vec![with(impolite("bad"), json!({ "Env": { "V": "2" } }))])["TaskGroups"][0].take(), json!({}))] }),
    );
    lab.submit(&next).await;
    let told = event(&lab, &running.alloc, "bad", "Killing").await;
    dies_by_its_clock(running.task("bad"), told, "the old version").await;
    assert!(lab.running_besides(&id, &running.alloc).await.task("bad").lives());
    lab.stop(&id, &["--stop-timeout", "1s"]).await.code(0);
}

/// One allocation of a running job is stopped alone, by a lower count.
pub async fn scaled_down(given: Given) {
    let lab = given.shared().await;
    let id = unique("scaled");
    let job = |count: u32| group(service(&id, vec![impolite("bad")]), json!({ "Count": count }));
    lab.submit(&job(2)).await;
    let both = eventually(PATIENCE, "two allocations", async || {
        let all = lab.cluster.api.allocations(&id).await?;
        let running: Vec<_> = all.iter().filter_map(|a| lab.processes(&id, a).ok()).collect();
        if running.len() == 2 { Ok(running) } else { Err(short(&all)) }
    })
    .await;
    lab.submit(&job(1)).await;
    let gone = eventually(PATIENCE, "one of them to be told", async || {
        let all = lab.cluster.api.allocations(&id).await?;
        let told = all.iter().find(|a| a["DesiredStatus"] == "stop").and_then(|a| a["ID"].as_str());
        told.map(str::to_owned).ok_or_else(|| short(&all))
    })
    .await;
    let told = event(&lab, &gone, "bad", "Killing").await;
    let (old, stays): (Vec<_>, Vec<_>) = both.into_iter().partition(|r| r.alloc == gone);
    dies_by_its_clock(old[0].task("bad"), told, "the one too many").await;
    assert!(stays[0].task("bad").lives());
    lab.stop(&id, &["--stop-timeout", "1s"]).await.code(0);
}
