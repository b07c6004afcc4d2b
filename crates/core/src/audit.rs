//! The audit trail: append-only, in the order of `seq`, written in the same transaction as the change it tells of.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{AllocId, OpId, TaskName, Timestamp};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Requested,
    Joined,
    Leased,
    /// A step ended and the operation waits.
    Waiting,
    /// A step failed and will be tried again.
    Retrying,
    /// A step was cut off by the controller's stop; the operation is queued again.
    Aborted,
    JobRegistered,
    JobDeleted,
    /// A rollout came to its end, and which.
    RolloutEnded,
    /// A deployment's canaries were promoted because somebody asked for it.
    DeploymentPromoted,
    ClockArmed,
    ClockMoved,
    /// About to send SIGKILL; the answer is unknown until a later row tells it.
    SigkillSending,
    SigkillSent,
    SigkillFailed,
    /// The clock ended without (another) SIGKILL: the task is gone or was not told to end after all.
    ClockEnded,
    /// A node was made ineligible, or eligible again.
    NodeIneligible,
    NodeEligible,
    /// Nomad took a drain of a node, or a change of one.
    DrainAsked,
    /// A deployment was failed: its author's progress deadline passed, or somebody asked for it.
    DeploymentFailed,
    /// The gc removed a dead job.
    JobPurged,
    Succeeded,
    Failed,
    Cancelled,
    /// Somebody wants it cancelled; its next step carries that out.
    CancelAsked,
    Extended,
    KillNow,
    Retried,
    Released,
    Paused,
    Resumed,
    KindPaused,
    KindResumed,
    /// A controller keeps the clocks from here on, under this epoch.
    DutyTaken,
    DutyGivenUp,
    ControllerStarted,
    ControllerStopped,
    TokenCreated,
    TokenRevoked,
    /// Somebody asked for a pass of the gc.
    GcAsked,
}

impl Action {
    /// The name it is stored and shown by: the serde name.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Requested => "requested",
            Action::Joined => "joined",
            Action::Leased => "leased",
            Action::Waiting => "waiting",
            Action::Retrying => "retrying",
            Action::Aborted => "aborted",
            Action::JobRegistered => "job_registered",
            Action::JobDeleted => "job_deleted",
            Action::ClockArmed => "clock_armed",
            Action::ClockMoved => "clock_moved",
            Action::SigkillSending => "sigkill_sending",
            Action::SigkillSent => "sigkill_sent",
            Action::SigkillFailed => "sigkill_failed",
            Action::ClockEnded => "clock_ended",
            Action::RolloutEnded => "rollout_ended",
            Action::DeploymentPromoted => "deployment_promoted",
            Action::DeploymentFailed => "deployment_failed",
            Action::JobPurged => "job_purged",
            Action::Succeeded => "succeeded",
            Action::Failed => "failed",
            Action::Cancelled => "cancelled",
            Action::CancelAsked => "cancel_asked",
            Action::Extended => "extended",
            Action::KillNow => "kill_now",
            Action::Retried => "retried",
            Action::Released => "released",
            Action::Paused => "paused",
            Action::Resumed => "resumed",
            Action::KindPaused => "kind_paused",
            Action::KindResumed => "kind_resumed",
            Action::DutyTaken => "duty_taken",
            Action::DutyGivenUp => "duty_given_up",
            Action::ControllerStarted => "controller_started",
            Action::NodeIneligible => "node_ineligible",
            Action::NodeEligible => "node_eligible",
            Action::DrainAsked => "drain_asked",
            Action::ControllerStopped => "controller_stopped",
            Action::TokenCreated => "token_created",
            Action::TokenRevoked => "token_revoked",
            Action::GcAsked => "gc_asked",
        }
    }
}

/// One row to be written. `seq` is given by the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    pub at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OpId>,
    /// Who: the requester, or `host:pid` of the controller.
    pub actor: String,
    pub action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alloc: Option<AllocId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskName>,
    /// Anything else worth keeping; an object, or null.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

/// One row as read back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditRow {
    pub seq: u64,
    #[serde(flatten)]
    pub entry: AuditEntry,
}
