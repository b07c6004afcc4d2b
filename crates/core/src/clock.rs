//! The kill clock: the instant at which Curfew sends SIGKILL to a task that was told to end and still lives.

use serde::{Deserialize, Serialize};

use crate::{AllocId, JobKey, NodeId, OpId, TaskName, Timestamp};

/// By what a task was told to end. The grace differs (see the table in docs/ARCHITECTURE.md), the proof differs too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Nomad wants the allocation stopped: its job was stopped, or it is replaced, scaled down, rescheduled, preempted, drained.
    Stopped,
    /// A `Killing` event newer than its last `Started`, while the allocation is wanted running (`max_run_duration`, a failed sibling).
    Killing,
    /// `Restart Signaled` by the API, a template or a check.
    Restart,
    /// The leader, the last main task or a failed sibling ended for good and the client is stuck ending this one.
    SiblingEnded,
    /// A poststop task of an allocation that is wanted stopped.
    Poststop,
}

/// On what a clock's start rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// An event of the task, by the client's clock.
    Event,
    /// No event shows yet: the moment Curfew first saw it.
    Seen,
}

/// One task in one incarnation: a task that was restarted has another clock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClockKey {
    pub alloc: AllocId,
    pub task: TaskName,
    pub incarnation: Timestamp,
}

/// A clock as it is persisted: what cannot be read from Nomad again (when it was first seen, what was tried), and the rest for
/// people. It is memory, never authority: a SIGKILL needs a fresh read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockRecord {
    #[serde(flatten)]
    pub key: ClockKey,
    #[serde(flatten)]
    pub job: JobKey,
    pub node: NodeId,
    pub node_name: String,
    pub operation: Option<OpId>,
    pub cause: Cause,
    pub start: Timestamp,
    pub basis: Basis,
    /// When Curfew first saw that the task was told to end.
    pub seen_at: Timestamp,
    /// The last time its node could not be reached.
    pub unreachable_at: Option<Timestamp>,
    pub due: Timestamp,
    pub attempts: u32,
    pub last_attempt_at: Option<Timestamp>,
    pub last_error: Option<String>,
}
