//! What Nomad shows of an allocation, reduced to what a decision needs.

use std::time::Duration;

use litemap::LiteMap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{AllocId, JobId, JobKey, Namespace, NodeId, TaskName, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    Run,
    Stop,
    Evict,
}

/// The client's summary of an allocation. It proves nothing: with a live process it can be any of these (design fact 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientStatus {
    Pending,
    Running,
    Complete,
    Failed,
    Lost,
    Unknown,
}

impl ClientStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    Pending,
    Running,
    Dead,
}

/// The task events that mean something here; every other type is `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    Started,
    Terminated,
    Killing,
    Killed,
    Restarting,
    NotRestarting,
    RestartSignaled,
    Signaling,
    WaitingForShutdownDelay,
    Received,
    /// Its driver, or something before it, could not start it.
    StartFailed,
    /// Its health check by Nomad's client ended badly.
    Unhealthy,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskEvent {
    pub kind: EventKind,
    pub at: Timestamp,
    pub exit_code: i64,
    pub signal: i64,
    /// `Killing` only: the `kill_timeout` in force on that client, after its `max_kill_timeout` cut it (design fact 3).
    pub kill_timeout: Option<Duration>,
    /// `Restarting` only: how long until it is started again.
    pub delay: Option<Duration>,
    /// In Nomad's words; kept where they say why.
    pub text: Option<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub state: TaskState,
    pub failed: bool,
    pub restarts: u64,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// At most the last ten; oldest first.
    pub events: Vec<TaskEvent>,
}

impl Task {
    /// A task lives when it has started and its state is not `dead`, whatever the allocation's client status says.
    /// A task between two starts (`Terminated` seen, `Started` not yet) has no process, but it is about to.
    pub fn lives(&self) -> bool {
        self.started_at.is_some() && self.state != TaskState::Dead
    }

    pub fn last(&self, kind: EventKind) -> Option<&TaskEvent> {
        self.events.iter().rev().find(|e| e.kind == kind)
    }

    pub fn last_at(&self, kind: EventKind) -> Option<Timestamp> {
        self.last(kind).map(|e| e.at)
    }

    /// Which start of the task this is. `StartedAt` is set anew by every start; an agent's restart leaves it.
    pub fn incarnation(&self) -> Option<Timestamp> {
        self.started_at.or_else(|| self.last_at(EventKind::Started))
    }

    /// Only what happened after this concerns the present incarnation.
    pub fn running_since(&self) -> Option<Timestamp> {
        self.started_at.max(self.last_at(EventKind::Started))
    }
}

/// One allocation as last read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    pub id: AllocId,
    pub namespace: Namespace,
    pub job: JobId,
    /// Absent in the event stream's payload.
    pub job_version: Option<u64>,
    pub group: String,
    /// `job.group[index]`.
    pub name: String,
    pub node: NodeId,
    pub node_name: String,
    pub desired: Desired,
    pub client_status: ClientStatus,
    /// `DesiredTransition.Migrate`: a drain moves it.
    pub migrate: bool,
    /// `DesiredTransition.NoShutdownDelay`.
    pub no_shutdown_delay: bool,
    pub create_index: u64,
    pub modify_index: u64,
    /// When Nomad's servers last wrote it, by their clock.
    pub modified_at: Option<Timestamp>,
    /// Sorted, and no larger than what is in it: a hundred thousand of these are kept at a time.
    pub tasks: LiteMap<TaskName, Task>,
}

impl Allocation {
    pub fn job_key(&self) -> JobKey {
        JobKey { namespace: self.namespace.clone(), job: self.job.clone() }
    }
    pub fn any_task_lives(&self) -> bool {
        self.tasks.values().any(Task::lives)
    }
    /// Nothing was started yet and Nomad still wants it, so it may start at any moment.
    pub fn may_still_start(&self) -> bool {
        self.client_status == ClientStatus::Pending
            && !self.tasks.values().any(|t| t.started_at.is_some() || t.state == TaskState::Dead)
    }
}

/// An allocation with what a rollout needs beside its tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub alloc: Allocation,
    pub created_at: Option<Timestamp>,
    /// What its deployment, when it is of one, says of its health, and since when.
    pub healthy: Option<bool>,
    pub health_at: Option<Timestamp>,
    pub canary: bool,
    /// Nomad placed another one for it, or will.
    pub rescheduled: bool,
}
