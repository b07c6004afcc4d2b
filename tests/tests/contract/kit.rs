//! Jobs as the contract's cases need them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use curfew_tests::jobs::{self, nanos, with};
use serde_json::{Value, json};

pub use curfew_tests::jobs::{IMPOLITE, POLITE, group};

/// Ends with 1 after a moment.
pub const FLAKY: &str = "sleep 1; exit 1";
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// A job id that no other case has, in no other run on this machine.
pub fn unique(name: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    format!("fact-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A task as Curfew submits it: SIGTERM, and a day of `kill_timeout`.
pub fn task(name: &str, script: &str) -> Value {
    with(jobs::task(name, script), json!({ "KillTimeout": nanos(DAY), "KillSignal": "SIGTERM" }))
}

/// A service that Nomad takes with a day of `kill_timeout`.
pub fn service(id: &str, tasks: Vec<Value>) -> Value {
    with(jobs::service(id, tasks), json!({ "Update": { "ProgressDeadline": 0, "HealthCheck": "task_states" } }))
}

pub fn batch(id: &str, tasks: Vec<Value>) -> Value {
    jobs::batch(id, tasks)
}

/// On every node that the constraint lets it.
pub fn system(id: &str, tasks: Vec<Value>) -> Value {
    let mut job = with(jobs::batch(id, tasks), json!({ "Type": "system" }));
    job["TaskGroups"][0].as_object_mut().unwrap().remove("ReschedulePolicy");
    job
}

/// A rolling update: one at a time, healthy after 3 s, reverted when it fails.
pub fn rolling(job: Value, progress: Duration) -> Value {
    let s = |n| nanos(Duration::from_secs(n));
    let update = json!({ "MaxParallel": 1, "MinHealthyTime": s(3), "HealthyDeadline": s(15), "ProgressDeadline": nanos(progress),
        "AutoRevert": true, "HealthCheck": "task_states" });
    let restart = json!({ "Attempts": 10, "Interval": s(600), "Delay": s(1), "Mode": "delay" });
    group(with(job, json!({ "Update": update })), json!({ "RestartPolicy": restart }))
}

pub fn lifecycle(task: Value, hook: &str, sidecar: bool) -> Value {
    with(task, json!({ "Lifecycle": { "Hook": hook, "Sidecar": sidecar } }))
}

pub fn restarts(job: Value, attempts: u32) -> Value {
    let s = |n| nanos(Duration::from_secs(n));
    group(job, json!({ "RestartPolicy": { "Attempts": attempts, "Interval": s(600), "Delay": s(1), "Mode": "fail" } }))
}
