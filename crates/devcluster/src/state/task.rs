//! Task states and their events, with Nomad's texts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};

use crate::clock::rfc3339;
use crate::duration;

/// A task keeps its last ten events.
pub(crate) const MAX_EVENTS: usize = 10;

pub(crate) type TaskStates = BTreeMap<String, TaskState>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Pending,
    Running,
    Dead,
}

impl Phase {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Dead => "dead",
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct TaskState {
    pub phase: Phase,
    pub failed: bool,
    pub restarts: u64,
    pub last_restart: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub events: Vec<Arc<TaskEvent>>,
}

impl TaskState {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Pending,
            failed: false,
            restarts: 0,
            last_restart: 0,
            started_at: 0,
            finished_at: 0,
            events: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, event: TaskEvent) {
        self.failed |= event.fails_task;
        if event.kind == "Restarting" {
            self.restarts += 1;
            self.last_restart = event.time;
        }
        if self.events.len() >= MAX_EVENTS {
            self.events.remove(0);
        }
        self.events.push(Arc::new(event));
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct TaskEvent {
    pub kind: &'static str,
    pub time: i64,
    pub display: Cow<'static, str>,
    pub message: Cow<'static, str>,
    pub fails_task: bool,
    pub restart_reason: Cow<'static, str>,
    pub driver_error: String,
    pub exit_code: i64,
    pub signal: i64,
    pub kill_timeout: i64,
    pub start_delay: i64,
    pub failed_sibling: String,
    pub details: Vec<(&'static str, String)>,
}

impl TaskEvent {
    fn new(kind: &'static str, time: i64, display: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, time, display: display.into(), ..Self::default() }
    }

    pub(crate) fn received(time: i64) -> Self {
        Self::new("Received", time, "Task received by client")
    }

    pub(crate) fn setup(time: i64, message: &'static str) -> Self {
        Self { message: message.into(), details: vec![("message", message.into())], ..Self::new("Task Setup", time, message) }
    }

    pub(crate) fn started(time: i64) -> Self {
        Self::new("Started", time, "Task started by client")
    }

    pub(crate) fn driver_failure(time: i64, error: String) -> Self {
        Self {
            details: vec![("driver_error", error.clone())],
            driver_error: error.clone(),
            ..Self::new("Driver Failure", time, error)
        }
    }

    pub(crate) fn terminated(time: i64, exit_code: i64, signal: i64) -> Self {
        let display =
            if signal == 0 { format!("Exit Code: {exit_code}") } else { format!("Exit Code: {exit_code}, Signal: {signal}") };
        Self {
            exit_code,
            signal,
            details: vec![("exit_code", exit_code.to_string()), ("oom_killed", "false".into()), ("signal", signal.to_string())],
            ..Self::new("Terminated", time, display)
        }
    }

    pub(crate) fn killing(time: i64, timeout: i64) -> Self {
        Self {
            kill_timeout: timeout,
            details: vec![("kill_timeout", duration::go(timeout))],
            ..Self::new("Killing", time, format!("Sent interrupt. Waiting {} before force killing", duration::go(timeout)))
        }
    }

    pub(crate) fn killing_over_time(time: i64, timeout: i64) -> Self {
        Self { display: "allocation exceeded max_run_duration".into(), ..Self::killing(time, timeout) }
    }

    pub(crate) fn killed(time: i64) -> Self {
        Self::new("Killed", time, "Task successfully killed")
    }

    pub(crate) fn waiting_for_delay(time: i64, delay: i64) -> Self {
        let text = format!("Waiting for shutdown_delay of {} before killing the task.", duration::go(delay));
        Self::new("Waiting for shutdown delay", time, text)
    }

    pub(crate) fn skipping_delay(time: i64, delay: i64) -> Self {
        let text = format!("Skipping shutdown_delay of {} before killing the task.", duration::go(delay));
        Self::new("Skipping shutdown delay", time, text)
    }

    pub(crate) fn restarting(time: i64, delay: i64, reason: &'static str) -> Self {
        let within = format!("Task restarting in {}", duration::go(delay));
        let display =
            if reason.is_empty() || reason == "Restart within policy" { within } else { format!("{reason} - {within}") };
        Self {
            start_delay: delay,
            restart_reason: reason.into(),
            details: vec![("restart_reason", reason.into()), ("start_delay", delay.to_string())],
            ..Self::new("Restarting", time, display)
        }
    }

    pub(crate) fn not_restarting(time: i64, reason: String) -> Self {
        Self {
            fails_task: true,
            details: vec![("fails_task", "true".into()), ("restart_reason", reason.clone())],
            restart_reason: reason.clone().into(),
            ..Self::new("Not Restarting", time, reason)
        }
    }

    pub(crate) fn signaling(time: i64, signal: &str) -> Self {
        Self { details: vec![("signal", signal.into())], ..Self::new("Signaling", time, "Task being sent a signal") }
    }

    pub(crate) fn restart_signaled(time: i64, reason: &'static str) -> Self {
        Self {
            restart_reason: reason.into(),
            details: vec![("restart_reason", reason.into())],
            ..Self::new("Restart Signaled", time, reason)
        }
    }

    /// A template's restart carries no reason, only a text.
    pub(crate) fn template_restart(time: i64) -> Self {
        Self::new("Restart Signaled", time, "Template with change_mode restart re-rendered")
    }

    pub(crate) fn template_signal(time: i64, signal: &str) -> Self {
        Self { details: vec![("signal", signal.into())], ..Self::new("Signaling", time, "Template re-rendered") }
    }

    pub(crate) fn sibling_failed(time: i64, sibling: &str) -> Self {
        Self {
            failed_sibling: sibling.into(),
            details: vec![("failed_sibling", sibling.into())],
            ..Self::new("Sibling Task Failed", time, format!("Task's sibling {sibling:?} failed"))
        }
    }

    pub(crate) fn leader_dead(time: i64) -> Self {
        Self::new("Leader Task Dead", time, "Leader Task in Group dead")
    }

    pub(crate) fn main_dead(time: i64) -> Self {
        Self::new("Main Tasks Dead", time, "Main tasks in the group died")
    }

    pub(crate) fn unhealthy(time: i64, message: String) -> Self {
        Self {
            details: vec![("message", message.clone())],
            message: message.clone().into(),
            ..Self::new("Alloc Unhealthy", time, message)
        }
    }

    pub(crate) fn reconnected(time: i64) -> Self {
        Self::new("Reconnected", time, "Client reconnected")
    }
}

struct Details<'a>(&'a [(&'static str, String)]);

impl Serialize for Details<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl Serialize for TaskEvent {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut e = s.serialize_struct("TaskEvent", 23)?;
        e.serialize_field("Type", self.kind)?;
        e.serialize_field("Time", &self.time)?;
        e.serialize_field("Message", &self.message)?;
        e.serialize_field("DisplayMessage", &self.display)?;
        e.serialize_field("Details", &Details(&self.details))?;
        e.serialize_field("FailsTask", &self.fails_task)?;
        e.serialize_field("RestartReason", &self.restart_reason)?;
        e.serialize_field("SetupError", "")?;
        e.serialize_field("DriverError", &self.driver_error)?;
        e.serialize_field("ExitCode", &self.exit_code)?;
        e.serialize_field("Signal", &self.signal)?;
        e.serialize_field("KillTimeout", &self.kill_timeout)?;
        e.serialize_field("KillError", "")?;
        e.serialize_field("KillReason", "")?;
        e.serialize_field("StartDelay", &self.start_delay)?;
        e.serialize_field("DownloadError", "")?;
        e.serialize_field("ValidationError", "")?;
        e.serialize_field("DiskLimit", &0)?;
        e.serialize_field("FailedSibling", &self.failed_sibling)?;
        e.serialize_field("VaultError", "")?;
        e.serialize_field("TaskSignalReason", "")?;
        e.serialize_field("TaskSignal", "")?;
        e.serialize_field("DriverMessage", "")?;
        e.serialize_field("GenericSource", "")?;
        e.end()
    }
}

impl Serialize for TaskState {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut t = s.serialize_struct("TaskState", 8)?;
        t.serialize_field("State", self.phase.as_str())?;
        t.serialize_field("Failed", &self.failed)?;
        t.serialize_field("Restarts", &self.restarts)?;
        t.serialize_field("LastRestart", &rfc3339(self.last_restart))?;
        t.serialize_field("StartedAt", &rfc3339(self.started_at))?;
        t.serialize_field("FinishedAt", &rfc3339(self.finished_at))?;
        t.serialize_field("Events", &Events(&self.events))?;
        t.serialize_field("Paused", "")?;
        t.end()
    }
}

struct Events<'a>(&'a [Arc<TaskEvent>]);

impl Serialize for Events<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.0.iter().map(AsRef::as_ref))
    }
}
