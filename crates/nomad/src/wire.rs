//! What Nomad sends of an allocation, and its mapping to [`curfew_core::Allocation`].
//!
//! List stubs, full allocations and event payloads share these fields; a payload has no `JobVersion`, a full allocation has its
//! job. One allocation that cannot be read is one bad allocation, never a failed list.

use std::collections::BTreeMap;
use std::time::Duration;

use curfew_core::alloc::Placed;
use curfew_core::spec::JobSpec;
use curfew_core::{AllocId, Allocation, ClientStatus, Desired, EventKind, Task, TaskEvent, TaskName, TaskState, Timestamp};
use litemap::LiteMap;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// An allocation that could not be read, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadAllocation {
    /// Empty when not even the id could be read.
    pub id: AllocId,
    pub why: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct AllocationWire {
    #[serde(rename = "ID")]
    id: String,
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(rename = "NodeID", default)]
    node_id: String,
    #[serde(default)]
    node_name: String,
    #[serde(rename = "JobID")]
    job_id: String,
    job_version: Option<u64>,
    task_group: String,
    desired_status: String,
    client_status: String,
    desired_transition: Option<Transition>,
    task_states: Option<BTreeMap<String, Option<TaskWire>>>,
    #[serde(default)]
    create_index: u64,
    #[serde(default)]
    modify_index: u64,
    #[serde(default)]
    modify_time: i64,
    #[serde(default)]
    create_time: i64,
    deployment_status: Option<HealthWire>,
    #[serde(default)]
    next_allocation: String,
    #[serde(rename = "FollowupEvalID", default)]
    followup_eval_id: String,
    job: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct HealthWire {
    healthy: Option<bool>,
    timestamp: Option<String>,
    canary: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Transition {
    migrate: Option<bool>,
    no_shutdown_delay: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TaskWire {
    state: String,
    #[serde(default)]
    failed: bool,
    #[serde(default)]
    restarts: u64,
    started_at: Option<String>,
    finished_at: Option<String>,
    events: Option<Vec<EventWire>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EventWire {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(default)]
    time: i64,
    #[serde(default)]
    exit_code: i64,
    #[serde(default)]
    signal: i64,
    #[serde(default)]
    kill_timeout: i64,
    #[serde(default)]
    start_delay: i64,
    #[serde(default)]
    display_message: String,
}

/// Reads a list. The whole of it in one pass; element by element only when that fails.
pub(crate) fn allocations(body: &[u8]) -> Result<(Vec<Allocation>, Vec<BadAllocation>), String> {
    let mut good = Vec::new();
    let mut bad = Vec::new();
    let mut keep = |id: String, mapped: Result<Allocation, String>| match mapped {
        Ok(a) => good.push(a),
        Err(why) => bad.push(BadAllocation { id: id.into(), why }),
    };
    if let Ok(list) = serde_json::from_slice::<Option<Vec<AllocationWire>>>(body) {
        for wire in list.unwrap_or_default() {
            keep(wire.id.clone(), allocation(wire).map(|(a, _)| a));
        }
        return Ok((good, bad));
    }
    let list: Vec<&RawValue> = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    for raw in list {
        match serde_json::from_str::<AllocationWire>(raw.get()) {
            Ok(wire) => keep(wire.id.clone(), allocation(wire).map(|(a, _)| a)),
            Err(e) => {
                let id = serde_json::from_str::<Value>(raw.get()).ok().and_then(|v| v["ID"].as_str().map(str::to_owned));
                keep(id.unwrap_or_default(), Err(e.to_string()));
            }
        }
    }
    Ok((good, bad))
}

/// A list, with what a rollout needs. One that cannot be read fails it: nothing follows from half of a rollout.
pub(crate) fn placed(body: &[u8]) -> Result<Vec<Placed>, String> {
    let list: Option<Vec<AllocationWire>> = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let one = |mut wire: AllocationWire| {
        let health = wire.deployment_status.take().unwrap_or_default();
        let created_at = moment(wire.create_time);
        let rescheduled = !wire.next_allocation.is_empty() || !wire.followup_eval_id.is_empty();
        let health_at = instant(health.timestamp.as_deref())?;
        let (alloc, _) = allocation(wire)?;
        Ok(Placed { alloc, created_at, healthy: health.healthy, health_at, canary: health.canary, rescheduled })
    };
    list.unwrap_or_default().into_iter().map(one).collect()
}

/// Maps one allocation, and its job when it came with it.
pub(crate) fn allocation(wire: AllocationWire) -> Result<(Allocation, Option<JobSpec>), String> {
    let desired = match wire.desired_status.as_str() {
        "run" => Desired::Run,
        "stop" => Desired::Stop,
        "evict" => Desired::Evict,
        other => return Err(format!("DesiredStatus \"{other}\" is not known")),
    };
    let client_status = match wire.client_status.as_str() {
        "pending" => ClientStatus::Pending,
        "running" => ClientStatus::Running,
        "complete" => ClientStatus::Complete,
        "failed" => ClientStatus::Failed,
        "lost" => ClientStatus::Lost,
        "unknown" => ClientStatus::Unknown,
        other => return Err(format!("ClientStatus \"{other}\" is not known")),
    };
    let states = wire.task_states.unwrap_or_default();
    let mut tasks = LiteMap::with_capacity(states.len());
    for (name, state) in states {
        if let Some(state) = state {
            let mapped = task(state).map_err(|why| format!("task \"{name}\": {why}"))?;
            tasks.insert(TaskName::from(name), mapped);
        }
    }
    let job = wire.job.filter(Value::is_object).map(|j| JobSpec::from_json(&j));
    let transition = wire.desired_transition.unwrap_or_default();
    let allocation = Allocation {
        id: wire.id.into(),
        namespace: wire.namespace.into(),
        job: wire.job_id.into(),
        job_version: wire.job_version.or(job.as_ref().map(|j| j.version)),
        group: wire.task_group,
        name: wire.name,
        node: wire.node_id.into(),
        node_name: wire.node_name,
        desired,
        client_status,
        migrate: transition.migrate.unwrap_or(false),
        no_shutdown_delay: transition.no_shutdown_delay.unwrap_or(false),
        create_index: wire.create_index,
        modify_index: wire.modify_index,
        modified_at: moment(wire.modify_time),
        tasks,
    };
    Ok((allocation, job))
}

fn task(wire: TaskWire) -> Result<Task, String> {
    let state = match wire.state.as_str() {
        // Nomad's own code treats the empty state as "not started yet".
        "pending" | "" => TaskState::Pending,
        "running" => TaskState::Running,
        "dead" => TaskState::Dead,
        other => return Err(format!("State \"{other}\" is not known")),
    };
    let mut events: Vec<_> = wire.events.unwrap_or_default().into_iter().map(event).collect();
    // It was collected in place: the room of the larger wire events is still there.
    events.shrink_to_fit();
    Ok(Task {
        state,
        failed: wire.failed,
        restarts: wire.restarts,
        started_at: instant(wire.started_at.as_deref())?,
        finished_at: instant(wire.finished_at.as_deref())?,
        events,
    })
}

fn event(wire: EventWire) -> TaskEvent {
    let kind = match wire.kind.as_str() {
        "Started" => EventKind::Started,
        "Terminated" => EventKind::Terminated,
        "Killing" => EventKind::Killing,
        "Killed" => EventKind::Killed,
        "Restarting" => EventKind::Restarting,
        "Not Restarting" => EventKind::NotRestarting,
        "Restart Signaled" => EventKind::RestartSignaled,
        "Signaling" => EventKind::Signaling,
        "Waiting for shutdown delay" => EventKind::WaitingForShutdownDelay,
        "Received" => EventKind::Received,
        "Driver Failure" | "Setup Failure" | "Failed Artifact Download" | "Failed Validation" => EventKind::StartFailed,
        "Alloc Unhealthy" => EventKind::Unhealthy,
        _ => EventKind::Other,
    };
    let kill_timeout = (kind == EventKind::Killing).then(|| u64::try_from(wire.kill_timeout).ok()).flatten().filter(|ns| *ns > 0);
    let delay = (kind == EventKind::Restarting).then(|| u64::try_from(wire.start_delay).ok()).flatten();
    let says_why = matches!(kind, EventKind::NotRestarting | EventKind::StartFailed | EventKind::Unhealthy);
    TaskEvent {
        delay: delay.map(Duration::from_nanos),
        text: says_why.then(|| wire.display_message.into()),
        kind,
        at: micros(wire.time),
        exit_code: wire.exit_code,
        signal: wire.signal,
        kill_timeout: kill_timeout.map(Duration::from_nanos),
    }
}

fn micros(nanos: i64) -> Timestamp {
    Timestamp::from_micros(nanos.div_euclid(1000))
}

/// Nanoseconds since the epoch; zero is "never".
pub(crate) fn moment(nanos: i64) -> Option<Timestamp> {
    (nanos > 0).then(|| micros(nanos))
}

/// RFC 3339; Go's zero time (`0001-01-01T00:00:00Z`) and the empty string are "never".
pub(crate) fn instant(text: Option<&str>) -> Result<Option<Timestamp>, String> {
    match text {
        None | Some("") => Ok(None),
        Some(t) if t.starts_with("0001-01-01") => Ok(None),
        Some(t) => t.parse().map(Some).map_err(|e| format!("\"{t}\" is not an instant: {e}")),
    }
}
