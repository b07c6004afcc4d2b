//! The RPC's types: what goes over the wire between the controller and everybody else.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::access::{Grant, Scope, Token};
use crate::clock::ClockRecord;
use crate::deployment::DeploymentStatus;
use crate::drain::{DrainOptions, MaxParallel, Selection, Strategy};
use crate::operation::{By, Kind, Lease, Operation, Outcome, State, Target};
use crate::rollout::End;
use crate::spec::JobType;
use crate::submit::Change;
use crate::{
    AllocId, ClientStatus, Datacenter, Desired, JobId, JobKey, Namespace, NodeId, OpId, TaskName, TaskState, Timestamp, duration,
};

/// `POST /v1/jobs` and `POST /v1/jobs/plan`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitRequest {
    pub spec: SpecText,
    /// For a specification that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// Not done with the registration: the operation is a `rollout` and ends with what comes of it. A plan does not mind.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub watch: bool,
    /// Only when this is the job's `JobModifyIndex` in Nomad; zero: only when there is no such job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_index: Option<u64>,
    #[serde(flatten)]
    pub who: Who,
}

/// A job's specification as its author wrote it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpecText {
    /// Parsed by Nomad.
    Hcl(String),
    /// Nomad's API JSON, with or without the `{"Job": …}` around it.
    Json(Value),
}

/// Who asks, and why; both end in the audit trail.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Who {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `POST /v1/jobs/{job}/promote` and `…/fail`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SteerRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    #[serde(flatten)]
    pub who: Who,
}

/// `POST /v1/jobs/{job}/revert`: registers that version's specification again, and follows what comes of it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevertRequest {
    pub version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    #[serde(flatten)]
    pub who: Who,
}

/// `POST /v1/jobs/{job}/stop`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// Between a task's SIGTERM and its SIGKILL; the task's own, else `JOB_STOP_TIMEOUT`, when absent.
    #[serde(default, with = "duration::text_opt", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<duration::Text>)]
    pub stop_timeout: Option<Duration>,
    #[serde(default)]
    pub no_shutdown_delay: bool,
    /// And purge the job when nothing of it may live any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub purge_when_dead: bool,
    #[serde(flatten)]
    pub who: Who,
}

/// `POST /v1/nodes/drain`. Of what is absent: `strategy` is `migrate` for nodes that are named and `evacuate` for a selection,
/// `drain_timeout` the configuration's for the node's datacenter, `max_parallel` all at once.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    pub selection: Selection,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    #[serde(default, with = "duration::text_opt", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<duration::Text>)]
    pub drain_timeout: Option<Duration>,
    /// Instead of a drain timeout: nothing is killed because of the drain.
    #[serde(default)]
    pub no_deadline: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<MaxParallel>,
    #[serde(default)]
    pub ignore_system: bool,
    #[serde(default)]
    pub only_managed: bool,
    /// Only say what it would do: the answer is a [`DrainPlan`] with status 200, and nothing is written down.
    #[serde(default)]
    pub dry_run: bool,
    #[serde(flatten)]
    pub who: Who,
}

/// `POST /v1/nodes/undrain`: drains of these nodes are cancelled, and what a Curfew drain made ineligible is eligible again.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UndrainRequest {
    pub selection: Selection,
    /// Also nodes that somebody else drained or made ineligible.
    #[serde(default)]
    pub all: bool,
    #[serde(flatten)]
    pub who: Who,
}

/// What a drain would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DrainPlan {
    pub target: Target,
    pub options: DrainOptions,
    pub nodes: Vec<NodePlan>,
    /// Of the whole; a node's problems are with the node.
    pub warnings: Vec<String>,
    /// Why the drain itself would be refused now, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// What a drain would do to one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodePlan {
    pub id: NodeId,
    pub name: String,
    pub datacenter: Datacenter,
    pub node_pool: String,
    /// `ready`, `down`, …
    pub status: String,
    /// Whether it takes allocations now; if not, it will not after an undrain either.
    pub eligible: bool,
    /// Absent: no deadline.
    #[serde(default, with = "duration::text_opt", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<duration::Text>)]
    pub drain_timeout: Option<Duration>,
    pub allocations: Vec<AllocPlan>,
    /// What stands in the way of its promise, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// What an allocation would get.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AllocPlan {
    pub id: AllocId,
    #[serde(flatten)]
    pub job: JobKey,
    pub group: String,
    pub job_type: JobType,
    pub managed: bool,
    pub gets: Gets,
    /// The longest stop timeout of its tasks.
    #[serde(with = "duration::text")]
    #[schema(value_type = duration::Text)]
    pub stop_timeout: Duration,
    /// Why nothing takes its place elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_replaced: Option<String>,
}

/// What a drain does to an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Gets {
    /// SIGTERM when the drain starts.
    ToldAtOnce,
    /// SIGTERM at the pace of its job's `migrate` block, or before the deadline.
    ToldInTurn,
    /// SIGTERM a stop timeout before the deadline; without a deadline it is waited for.
    ToldLate,
    /// SIGTERM when everything else has left, or before the deadline.
    ToldLast,
    /// A system job that stays.
    Stays,
    /// Told to leave by Nomad, but not managed and so without a clock.
    Unclocked,
}

impl Gets {
    pub fn as_str(self) -> &'static str {
        match self {
            Gets::ToldAtOnce => "SIGTERM at once",
            Gets::ToldInTurn => "SIGTERM in turn",
            Gets::ToldLate => "SIGTERM before the deadline",
            Gets::ToldLast => "SIGTERM last",
            Gets::Stays => "stays",
            Gets::Unclocked => "no clock",
        }
    }
}

/// `POST /v1/operations/{id}/extend`: one of the two.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendRequest {
    /// So much later than its deadline, or than now when that has passed.
    #[serde(default, with = "duration::text_opt", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<duration::Text>)]
    pub by: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    #[serde(flatten)]
    pub who: Who,
}

/// The body of every other intervention: `cancel`, `kill-now`, `release`, `retry`, `pause`, `resume`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InterveneRequest {
    #[serde(flatten)]
    pub who: Who,
}

/// `POST /v1/kinds/{kind}/pause`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseKindRequest {
    /// Needed for `kill`: while it is paused nobody is killed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub yes_really: bool,
    #[serde(flatten)]
    pub who: Who,
}

/// `GET /v1/kinds`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KindView {
    pub kind: Kind,
    /// Who paused it.
    pub pause: Option<By>,
    /// `kill` only: which controller keeps the clocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duty: Option<Lease>,
}

/// `GET /v1/queue`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueView {
    /// Operations that have not finished; by kind, then state.
    pub counts: Vec<QueueCountView>,
    /// Those that a controller works on; the lease that runs out first comes first.
    pub running: Vec<HeldView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueCountView {
    pub kind: Kind,
    pub state: State,
    pub count: u64,
    pub oldest_requested_at: Timestamp,
    /// When the first of them is due.
    pub oldest_run_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldView {
    pub id: OpId,
    pub kind: Kind,
    #[serde(flatten)]
    pub lease: Lease,
}

/// What a submit would change.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    pub job: JobId,
    pub namespace: Namespace,
    pub changes: Vec<Change>,
    pub warnings: Vec<String>,
    /// Nomad's own plan of the transformed job.
    pub nomad: Value,
    /// The job as Nomad would get it.
    pub spec: Value,
}

/// An operation as callers see it. While it is not finished, `outcome` shows what is known so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationView {
    pub id: OpId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<OpId>,
    pub kind: Kind,
    pub state: State,
    pub target: Target,
    pub actor: String,
    pub reason: Option<String>,
    pub requested_at: Timestamp,
    pub deadline: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub waiting_for: Option<String>,
    pub error: Option<String>,
    pub warnings: Vec<String>,
    pub attempts: u32,
    /// `host:pid` of the controller that works on it now.
    pub leased_by: Option<String>,
    /// Who wants it cancelled; its next step carries that out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<By>,
    /// Who paused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<By>,
    pub outcome: Option<Outcome>,
}

impl From<Operation> for OperationView {
    fn from(op: Operation) -> Self {
        Self {
            id: op.id,
            parent: op.parent,
            kind: op.kind(),
            state: op.state,
            target: op.request.target(),
            actor: op.actor,
            reason: op.reason,
            requested_at: op.requested_at,
            deadline: op.deadline,
            finished_at: op.finished_at,
            waiting_for: op.waiting_for,
            error: op.error,
            warnings: op.warnings,
            attempts: op.attempts,
            leased_by: op.lease.holder,
            cancel: op.cancel,
            pause: op.pause,
            outcome: op.outcome,
        }
    }
}

/// RFC 9457. `type` is stable; `detail` is a sentence with the way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusView {
    /// Which service answers; a client that finds anything else is talking to something else.
    pub service: String,
    pub version: String,
    /// `host:pid`.
    pub controller: String,
    pub phase: String,
    pub started_at: Timestamp,
    pub nomad_address: String,
    /// Whether the event stream is up, else since when and why not.
    pub nomad: String,
    pub clocks_armed: usize,
    pub operations_live: u64,
    /// `host:pid` of the controller that keeps the clocks and sends SIGKILL; clocks are counted there.
    pub keeper: Option<String>,
    /// Kinds that are paused. With `kill` among them nobody is killed.
    pub paused: Vec<KindView>,
}

/// `POST /v1/tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Who is to have it: letters, digits, dots, dashes and underscores.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    pub name: String,
    #[schema(min_items = 1)]
    pub scopes: Vec<Scope>,
    /// Empty: in every namespace. `drain`, `gc` and `admin` reach all of them and take none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Namespace>,
    /// Absent: until it is revoked.
    #[serde(default, with = "duration::text_opt", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<duration::Text>)]
    pub expires_in: Option<Duration>,
    #[serde(flatten)]
    pub who: Who,
}

/// A token without its secret, which nobody keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    pub id: String,
    pub name: String,
    pub scopes: Vec<Scope>,
    /// Empty: in every namespace.
    pub namespaces: Vec<Namespace>,
    pub created_at: Timestamp,
    pub created_by: String,
    pub expires_at: Option<Timestamp>,
    /// By whom, when and why.
    pub revoked: Option<By>,
}

impl From<Token> for TokenView {
    fn from(t: Token) -> Self {
        let Grant { scopes, namespaces } = t.grant;
        Self {
            id: t.id,
            name: t.name,
            scopes: scopes.into_iter().collect(),
            namespaces: namespaces.into_iter().collect(),
            created_at: t.created_at,
            created_by: t.created_by,
            expires_at: t.expires_at,
            revoked: t.revoked,
        }
    }
}

/// A new token. Its text is told once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    #[serde(flatten)]
    pub view: TokenView,
    /// What stands in `Authorization: Bearer …`.
    #[serde(serialize_with = "tell")]
    #[schema(value_type = String)]
    pub token: SecretString,
}

fn tell<S: serde::Serializer>(secret: &SecretString, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(secret.expose_secret())
}

/// `POST /v1/gc`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// Only say what it would do.
    #[serde(default)]
    pub dry_run: bool,
    #[serde(flatten)]
    pub who: Who,
}

/// `GET /v1/jobs`: a job as Nomad's list has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobRow {
    #[serde(flatten)]
    pub key: JobKey,
    #[serde(rename = "type")]
    pub job_type: JobType,
    /// `pending`, `running` or `dead`.
    pub status: String,
    /// Nomad wants it to end.
    pub stopped: bool,
    /// Submitted through Curfew.
    pub managed: bool,
    /// The operation that submitted it first.
    pub operation: Option<String>,
    /// The periodic or parameterized job that launched it.
    pub parent: Option<JobId>,
    pub submitted_at: Option<Timestamp>,
}

/// `GET /v1/jobs/{job}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobStatusView {
    #[serde(flatten)]
    pub row: JobRow,
    pub version: u64,
    pub job_modify_index: u64,
    /// Its newest.
    pub deployment: Option<DeploymentStateView>,
    /// The newest first; at most 100.
    pub allocations: Vec<AllocView>,
    /// Operations on it that have not finished.
    pub operations: Vec<OperationView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AllocView {
    pub id: AllocId,
    pub group: String,
    pub node: String,
    pub version: Option<u64>,
    pub desired: Desired,
    /// The client's summary. It proves nothing: see `tasks`.
    pub client_status: ClientStatus,
    pub tasks: Vec<TaskView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskView {
    pub name: TaskName,
    pub state: TaskState,
    /// It has started and is not dead.
    pub lives: bool,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// Its clock, when it was told to end: when it gets SIGKILL.
    pub kill_at: Option<Timestamp>,
    /// In all its life.
    pub restarts: u64,
    /// While it crashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crashes: Option<CrashView>,
}

/// A task that was restarted in the interval of its restart policy that goes on now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CrashView {
    /// In this interval, as far as its client showed them to this controller.
    pub restarts: u64,
    pub of: u64,
    #[serde(with = "duration::text")]
    #[schema(value_type = duration::Text)]
    pub within: Duration,
    /// When the interval ends.
    pub until: Timestamp,
    /// It has had all of them, and waits for the end of the interval.
    pub used_up: bool,
    /// When the next attempt comes, while it waits for it.
    pub next_at: Option<Timestamp>,
    /// How it ended last.
    pub exit_code: Option<i64>,
    pub signal: Option<i64>,
}

/// A deployment, its groups summed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeploymentStateView {
    pub id: String,
    pub version: u64,
    pub status: DeploymentStatus,
    /// In Nomad's words.
    pub description: String,
    pub desired: u64,
    pub healthy: u64,
    pub unhealthy: u64,
}

/// A version of a job in `GET /v1/jobs/{job}/history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    pub version: u64,
    pub job_modify_index: u64,
    pub submitted_at: Option<Timestamp>,
    /// Nomad goes back to it when a later one fails.
    pub stable: bool,
    /// Made by a stop.
    pub stopped: bool,
    pub deployment: Option<DeploymentStateView>,
    /// Who registered it through Curfew, and how that rollout ended when it was one.
    pub operation: Option<OpId>,
    pub actor: Option<String>,
    pub reason: Option<String>,
    pub end: Option<End>,
}

/// `GET /v1/nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    pub id: NodeId,
    pub name: String,
    pub datacenter: Datacenter,
    pub node_pool: String,
    pub node_class: String,
    pub version: String,
    /// `ready`, `down`, …
    pub status: String,
    pub eligible: bool,
    /// Nomad drains it.
    pub draining: bool,
    /// The drain that is under way, else the last one, when Curfew made it.
    pub drain: Option<NodeDrainView>,
    /// The live operation that has it.
    pub operation: Option<OpId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeDrainView {
    pub operation: OpId,
    pub started_at: Option<Timestamp>,
    /// Absent: none.
    pub deadline: Option<Timestamp>,
    pub cancelled: bool,
}

/// `GET /v1/clocks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClocksView {
    /// From the memory of the controller that keeps them; else as they were written down last.
    pub live: bool,
    /// Those of tasks that live, by when they are due; as many as were asked for.
    pub clocks: Vec<ClockRecord>,
    /// How many there are.
    pub armed: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_field_is_refused_and_not_taken_for_the_default() {
        let stop = |json: &str| serde_json::from_str::<StopRequest>(json).map_err(|e| e.to_string());
        assert!(stop(r#"{"stop_timout":"2s"}"#).unwrap_err().contains("stop_timout"));
        let fine = stop(r#"{"stop_timeout":"2s","actor":"a","reason":"r"}"#).unwrap();
        assert_eq!((fine.stop_timeout, fine.who.actor.as_deref()), (Some(Duration::from_secs(2)), Some("a")));
        let submit = serde_json::from_str::<SubmitRequest>(r#"{"spec":{"hcl":""},"actr":"a"}"#).map_err(|e| e.to_string());
        assert!(submit.unwrap_err().contains("actr"));
        let drain = |json: &str| serde_json::from_str::<DrainRequest>(json).map_err(|e| e.to_string());
        assert!(drain(r#"{"selection":{"datacenter":"dc1"},"drain_timout":"2s"}"#).unwrap_err().contains("drain_timout"));
        assert!(drain(r#"{"selection":{"datacenter":"dc1"},"max_parallel":"0"}"#).unwrap_err().contains("20%"));
        let fine = drain(r#"{"selection":{"datacenter":"dc1"},"max_parallel":"10%","reason":"r"}"#).unwrap();
        assert_eq!((fine.max_parallel, fine.who.reason.as_deref()), (Some(MaxParallel::Percent(10)), Some("r")));
    }
}
