//! Operations: every request that changes something is one, written down before it is answered.
//!
//! ```text
//!            create                lease                    step says
//!  request ─────────▶ queued ───────────────▶ running ──▶ waiting(run_at) ─┐
//!                        ▲                      │  ▲                       │ run_at, or a nudge
//!                        └── retry, lease gone ─┘  └───────────────────────┘
//!                                               └──▶ succeeded | failed | cancelled
//! ```
//!
//! People intervene ([`Intervention`]): `paused` is entered from every state that is not finished and left for `queued`, one that
//! never began is `cancelled` at once, and one that failed or was cancelled is `queued` again.
//!
//! A step takes no input but the row: it reads Nomad anew, acts in a way that is safe to repeat, and writes what it saw under
//! the lease's epoch. The same step run twice, or cut in the middle and run again, ends the same.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::clock::NodeDrain;
use crate::drain::{DrainOptions, Moved, NodeOutcome, NodeProgress, NodeRef, Selection, SetProgress};
use crate::rollout::RolloutView;
use crate::{AllocId, ClientStatus, Datacenter, EvalId, JobKey, NodeId, OpId, TaskName, Timestamp, duration};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Submit,
    Stop,
    /// Empty one node.
    DrainNode,
    /// Empty a set of nodes: a datacenter, or several that were named. Its children drain one node each.
    DrainDatacenter,
    /// Let nodes take allocations again.
    Undrain,
    /// Register a job and follow what becomes of it.
    Rollout,
    /// Promote or fail a deployment.
    Deployment,
    /// The kill clocks. No operation is of this kind: it can be paused, and its lease is the keeper's duty.
    Kill,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Submit,
        Kind::Stop,
        Kind::DrainNode,
        Kind::DrainDatacenter,
        Kind::Undrain,
        Kind::Rollout,
        Kind::Deployment,
        Kind::Kill,
    ];
    /// Those that operations are of.
    pub const OPERATIONS: [Kind; 7] =
        [Kind::Submit, Kind::Stop, Kind::DrainNode, Kind::DrainDatacenter, Kind::Undrain, Kind::Rollout, Kind::Deployment];
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Submit => "submit",
            Kind::Stop => "stop",
            Kind::DrainNode => "drain_node",
            Kind::DrainDatacenter => "drain_datacenter",
            Kind::Undrain => "undrain",
            Kind::Rollout => "rollout",
            Kind::Deployment => "deployment",
            Kind::Kill => "kill",
        }
    }
    /// Whether a target has one live operation of this kind at most: a second request joins it.
    pub fn joins(self) -> bool {
        matches!(self, Kind::Stop)
    }
    /// Whether its steps report what the kill clocks did: they run where those are kept.
    pub fn reports_clocks(self) -> bool {
        matches!(self, Kind::Stop | Kind::DrainNode)
    }
    pub fn parse(s: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.as_str() == s)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Queued,
    Running,
    Waiting,
    Paused,
    Succeeded,
    Failed,
    Cancelled,
}

impl State {
    pub const ALL: [State; 7] =
        [State::Queued, State::Running, State::Waiting, State::Paused, State::Succeeded, State::Failed, State::Cancelled];
    /// Holds nothing, and is due at its `run_at` or by a nudge.
    pub fn sleeps(self) -> bool {
        matches!(self, State::Queued | State::Waiting)
    }
    pub fn is_finished(self) -> bool {
        matches!(self, State::Succeeded | State::Failed | State::Cancelled)
    }
    pub fn as_str(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Waiting => "waiting",
            State::Paused => "paused",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        }
    }
    pub fn parse(s: &str) -> Option<State> {
        State::ALL.into_iter().find(|k| k.as_str() == s)
    }
}

/// What an operation is about. As JSON `{"job", "namespace"}`, `{"node", "name"}`, `{"datacenter"}` or `{"nodes"}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Target {
    Job(JobKey),
    Node {
        node: NodeId,
        name: String,
    },
    Datacenter {
        datacenter: Datacenter,
    },
    /// Any other set of nodes, in the words that name it.
    Nodes {
        nodes: String,
    },
}

impl Target {
    /// One word for each target, to look it up by. A namespace holds no slash.
    pub fn key(&self) -> String {
        match self {
            Target::Job(JobKey { namespace, job }) => format!("job:{namespace}/{job}"),
            Target::Node { node, .. } => format!("node:{node}"),
            Target::Datacenter { datacenter } => format!("datacenter:{datacenter}"),
            Target::Nodes { nodes } => format!("nodes:{nodes}"),
        }
    }
    /// What people call it, without its namespace.
    pub fn name(&self) -> &str {
        match self {
            Target::Job(key) => key.job.as_str(),
            Target::Node { name, .. } => name,
            Target::Datacenter { datacenter } => datacenter.as_str(),
            Target::Nodes { nodes } => nodes,
        }
    }
    pub fn job(&self) -> Option<&JobKey> {
        match self {
            Target::Job(key) => Some(key),
            _ => None,
        }
    }
}

impl From<JobKey> for Target {
    fn from(key: JobKey) -> Self {
        Target::Job(key)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Job(key) => write!(f, "job {key}"),
            Target::Node { name, .. } => write!(f, "node \"{name}\""),
            Target::Datacenter { datacenter } => write!(f, "datacenter \"{datacenter}\""),
            Target::Nodes { nodes } => write!(f, "nodes \"{nodes}\""),
        }
    }
}

/// Who did something, when and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct By {
    pub actor: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub at: Timestamp,
}

/// What a person may do to an operation; `curfew_store` has the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intervention {
    /// At once when it never began; else its next step undoes what can be undone and ends it.
    Cancel,
    /// So much later than its deadline, or than now when that has passed.
    ExtendBy(Duration),
    ExtendUntil(Timestamp),
    KillNow,
    /// One that failed or was cancelled goes back to the queue.
    Retry,
    /// Whoever holds it loses it; what waits is due now.
    Release,
    Pause,
    Resume,
}

/// One wish that a job's tasks be gone: made at `at`, leaving each task `stop_timeout` after its SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    pub at: Timestamp,
    /// Absent: the task's own stop timeout, else `JOB_STOP_TIMEOUT`.
    #[serde(default, with = "duration::text_opt", skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<Duration>,
    /// Due at this instant instead, though never before the task's SIGTERM: somebody extended the stop, or cut it short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_shutdown_delay: bool,
    /// And purge the job when nothing of it may live.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub purge: bool,
    /// The job's `JobModifyIndex` when this was asked for. A DELETE whose answer was lost is repeated only while the job is still
    /// that one: registered again since, it is somebody's healthy work.
    #[serde(default)]
    pub job_index: u64,
}

/// What is to be registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registering {
    /// A Nomad job in API JSON, the submit transform already applied.
    pub spec: Box<Value>,
    /// The job's `JobModifyIndex` when this was asked for, zero when there was none.
    #[serde(default)]
    pub base_index: u64,
    /// Only onto that one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_onto_base: bool,
}

/// What a person does to a deployment that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Steer {
    /// Its canaries are good.
    Promote,
    /// Nomad goes back to the last stable version where the job says `auto_revert`.
    Fail,
}

/// What was asked for. Written once; only a joining stop adds a demand to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Request {
    /// Register a job.
    Submit {
        target: JobKey,
        #[serde(flatten)]
        registration: Registering,
    },
    /// Register it, and follow the deployment that comes of it.
    Rollout {
        target: JobKey,
        #[serde(flatten)]
        registration: Registering,
    },
    /// Stop a job. Several requests for the same job join into one operation; the earlier deadline wins.
    Stop {
        target: JobKey,
        demands: Vec<Demand>,
    },
    /// `was_eligible` is what the drain of its set found before it made the node ineligible.
    DrainNode {
        #[serde(flatten)]
        node: NodeRef,
        options: DrainOptions,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        was_eligible: Option<bool>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        moved: Option<Moved>,
    },
    /// `nodes` are those that the selection had when this was asked for.
    DrainDatacenter {
        target: Target,
        selection: Selection,
        nodes: Vec<NodeRef>,
        options: DrainOptions,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        moved: Option<Moved>,
    },
    /// `all`: also nodes that somebody else made ineligible.
    Undrain {
        target: Target,
        nodes: Vec<NodeRef>,
        all: bool,
    },
    Deployment {
        target: JobKey,
        deployment: String,
        steer: Steer,
    },
}

impl Request {
    pub fn kind(&self) -> Kind {
        match self {
            Request::Submit { .. } => Kind::Submit,
            Request::Stop { .. } => Kind::Stop,
            Request::DrainNode { .. } => Kind::DrainNode,
            Request::DrainDatacenter { .. } => Kind::DrainDatacenter,
            Request::Undrain { .. } => Kind::Undrain,
            Request::Rollout { .. } => Kind::Rollout,
            Request::Deployment { .. } => Kind::Deployment,
        }
    }
    pub fn target(&self) -> Target {
        match self {
            Request::Submit { target, .. }
            | Request::Rollout { target, .. }
            | Request::Deployment { target, .. }
            | Request::Stop { target, .. } => target.clone().into(),
            Request::DrainNode { node, .. } => Target::Node { node: node.id.clone(), name: node.name.clone() },
            Request::DrainDatacenter { target, .. } | Request::Undrain { target, .. } => target.clone(),
        }
    }
    /// A drain's deadline, where somebody moved it.
    pub fn moved(&self) -> Option<Moved> {
        match self {
            Request::DrainNode { moved, .. } | Request::DrainDatacenter { moved, .. } => *moved,
            _ => None,
        }
    }
    pub fn demands(&self) -> &[Demand] {
        match self {
            Request::Stop { demands, .. } => demands,
            _ => &[],
        }
    }
}

/// How far an operation has come, a stop unless it says otherwise. Everything in it can be found again in Nomad; it saves reading it again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How many of the request's demands have had their DELETE (a demand that joins later wants another one).
    #[serde(default)]
    pub demands_sent: usize,
    /// When Nomad took the first DELETE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
    /// The index at which Nomad took the (last) DELETE: allocations created before it are this stop's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_index: Option<u64>,
    /// The evaluation that the DELETE made; until it is complete Nomad has not yet told every allocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalId>,
    /// A call that changes Nomad was started and its answer never seen: read before repeating.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unknown: bool,
    /// Of the drain of a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeProgress>,
    /// Of the drain of a set, and of an undrain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetProgress>,
}

/// What came of a task: SIGTERM, the clock, SIGKILL, the end. Absent means it did not happen or Nomad no longer shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskOutcome {
    pub name: TaskName,
    pub term_at: Option<Timestamp>,
    pub kill_at: Option<Timestamp>,
    pub signalled_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub exit_code: Option<i64>,
    pub signal: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AllocOutcome {
    pub id: AllocId,
    pub job: crate::JobId,
    pub node: String,
    pub client_status: ClientStatus,
    pub tasks: Vec<TaskOutcome>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    /// Tasks that ended by themselves after SIGTERM.
    pub exited: u32,
    /// Tasks that Curfew's SIGKILL ended.
    pub killed: u32,
    #[serde(default)]
    pub allocations: Vec<AllocOutcome>,
    /// `submit` and `rollout`: what Nomad answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<Registered>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutView>,
    /// Drains and undrains: by node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeOutcome>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Registered {
    pub eval: Option<EvalId>,
    pub job_modify_index: u64,
    /// Nomad's own warnings.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub warnings: String,
}

/// Who holds a row, and until when. The epoch goes up with every lease; a write names the epoch it was leased under.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// `host:pid`.
    pub holder: Option<String>,
    pub expires_at: Option<Timestamp>,
    pub epoch: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    pub id: OpId,
    /// The operation that asked for this one.
    pub parent: Option<OpId>,
    pub state: State,
    pub request: Request,
    pub actor: String,
    pub reason: Option<String>,
    pub requested_at: Timestamp,
    /// When the last of its tasks gets SIGKILL, as far as is known.
    pub deadline: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// In a sentence, what it waits for.
    pub waiting_for: Option<String>,
    pub progress: Progress,
    pub outcome: Option<Outcome>,
    /// In a sentence, why it failed.
    pub error: Option<String>,
    /// Things the requester should know although the request went through.
    pub warnings: Vec<String>,
    /// Steps that failed in a row.
    pub attempts: u32,
    pub run_at: Timestamp,
    pub lease: Lease,
    /// Goes up whenever somebody other than the holder changes the row, so that the holder's write cannot lose the change.
    pub revision: u64,
    /// Somebody wants it cancelled; the next step carries that out.
    pub cancel: Option<By>,
    /// Somebody paused it; while a step runs, that comes into force at its end.
    pub pause: Option<By>,
}

impl Operation {
    /// How much later than asked for the first DELETE reached Nomad; what a healthy controller takes is none.
    pub fn late(&self) -> Duration {
        const HEALTHY: Duration = Duration::from_secs(5);
        let asked = self.request.demands().iter().map(|d| d.at).min();
        let late = self.progress.sent_at.zip(asked).map_or(Duration::ZERO, |(sent, asked)| sent.since(asked));
        if late > HEALTHY { late } else { Duration::ZERO }
    }

    pub fn kind(&self) -> Kind {
        self.request.kind()
    }

    /// What the drain of a node, once it started, means for the clocks of what runs there.
    pub fn node_drain(&self) -> Option<NodeDrain> {
        let Request::DrainNode { options, moved, .. } = &self.request else { return None };
        let progress = self.progress.node.as_ref()?;
        Some(NodeDrain {
            deadline: moved.map(|m| m.until).or(progress.deadline),
            started_at: progress.started_at?,
            only_managed: options.only_managed,
            ignore_system: options.ignore_system,
        })
    }

    /// The nodes that are nobody else's while this drain is not over. A child's are its parent's.
    pub fn claims(&self) -> Vec<NodeId> {
        match &self.request {
            Request::DrainNode { node, .. } if self.parent.is_none() => vec![node.id.clone()],
            Request::DrainDatacenter { nodes, .. } => {
                let joined = self.progress.set.iter().flat_map(|s| &s.nodes).map(|n| &n.node);
                let mut all: Vec<NodeId> = nodes.iter().chain(joined).map(|n| n.id.clone()).collect();
                all.sort();
                all.dedup();
                all
            }
            _ => vec![],
        }
    }
}

/// The latest instant that the demands leave, before any SIGTERM has been seen: each counts from its own request, the
/// earliest wins.
pub fn nominal_deadline(demands: &[Demand], own: Duration) -> Option<Timestamp> {
    demands.iter().map(|d| d.due(d.at, Duration::ZERO, own)).min()
}

/// Adds a demand to those of a live stop. The newest always stays, last: it wants a DELETE, since the job may have been
/// registered again. Of the others those go that another one outruns whenever SIGTERM comes.
pub fn join(demands: &mut Vec<Demand>, new: Demand) {
    // Whoever wants it purged gets that, whose clock ever wins.
    let new = Demand { purge: new.purge || demands.iter().any(|d| d.purge), ..new };
    demands.retain(|old| !new.outruns(old));
    if !demands.iter().any(|old| old.outruns(&new)) {
        // Those that are left are few; a bound all the same, and the last deadline is what it costs.
        const KEEP: usize = 64;
        if demands.len() >= KEEP
            && let Some(i) =
                (0..demands.len()).max_by_key(|i| demands.get(*i).map(|d| d.until.or(d.stop_timeout.map(|t| d.at + t))))
        {
            demands.remove(i);
        }
        demands.push(new);
        return;
    }
    // Outrun, but its DELETE is still to be sent: it stands last for that, and the next one takes its place.
    if demands.last().is_some_and(|last| demands.iter().rev().skip(1).any(|d| d.outruns(last))) {
        demands.pop();
    }
    demands.push(new);
}

/// What was demanded before gives way to one demand that is due at `until`. It is as old as the oldest of them and means the
/// newest one's registration, so it needs no DELETE beyond theirs.
pub fn replace_until(demands: &mut Vec<Demand>, until: Timestamp) {
    let Some(last) = demands.last().copied() else { return };
    let at = demands.iter().map(|d| d.at).min().unwrap_or(last.at);
    let no_shutdown_delay = demands.iter().any(|d| d.no_shutdown_delay);
    let purge = demands.iter().any(|d| d.purge);
    *demands = vec![Demand { at, stop_timeout: None, until: Some(until), no_shutdown_delay, purge, job_index: last.job_index }];
}

impl Demand {
    /// When its grace is over for a task that heard SIGTERM at `term`. `late`: how much sooner than `term` it should have;
    /// `own`: the task's own stop timeout.
    pub fn due(&self, term: Timestamp, late: Duration, own: Duration) -> Timestamp {
        let due = self.until.unwrap_or_else(|| self.at.max(term - late) + self.stop_timeout.unwrap_or(own));
        due.max(term)
    }

    /// Whether this one's clock runs out no later than the other's, whenever SIGTERM comes.
    fn outruns(&self, other: &Demand) -> bool {
        if let Some(until) = self.until {
            let theirs = other.until.unwrap_or(other.at + other.stop_timeout.unwrap_or_default());
            return until <= theirs && (!other.no_shutdown_delay || self.no_shutdown_delay);
        }
        if other.until.is_some() {
            return false;
        }
        match (self.stop_timeout, other.stop_timeout) {
            (Some(a), Some(b)) => a <= b && self.at + a <= other.at + b && (!other.no_shutdown_delay || self.no_shutdown_delay),
            (None, None) => self.at <= other.at && (!other.no_shutdown_delay || self.no_shutdown_delay),
            // What the task's own timeout is, is not known here.
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(at: i64, timeout: Option<u64>) -> Demand {
        Demand {
            at: Timestamp::from_millis(at * 1000),
            stop_timeout: timeout.map(Duration::from_secs),
            until: None,
            no_shutdown_delay: false,
            purge: false,
            job_index: 0,
        }
    }

    /// Whatever joins, the earliest clock is never lost, the newest demand stands last, and the list stays short.
    #[test]
    fn joining_keeps_the_earliest_clock_and_the_newest_demand() {
        for own in [10, 200] {
            let own = Duration::from_secs(own);
            let mut all = vec![];
            let mut folded: Vec<Demand> = vec![];
            for i in 0..200i64 {
                let timeout =
                    [Some(30), None, Some(300), Some(u64::try_from(500 - i).unwrap()), Some(7)][usize::try_from(i % 5).unwrap()];
                let new = demand(i, timeout);
                all.push(new);
                join(&mut folded, new);
                assert_eq!(folded.last(), Some(&new));
                agree(&folded, &all, own, i);
                if i % 60 == 59 {
                    // An extension, or a kill-now, takes the place of everything before it.
                    let until = Timestamp::from_millis((i + [400, 0, 3][usize::try_from(i / 60).unwrap()]) * 1000);
                    replace_until(&mut folded, until);
                    assert_eq!((folded.len(), folded[0].until), (1, Some(until)));
                    all.clone_from(&folded);
                }
            }
            assert!(folded.len() < 10, "{}", folded.len());
        }
    }

    fn agree(folded: &[Demand], all: &[Demand], own: Duration, i: i64) {
        for term in [0, i / 2, i, i + 50, i + 500] {
            let term = Timestamp::from_millis(term * 1000);
            let due = |ds: &[Demand]| ds.iter().map(|d| d.due(term, Duration::ZERO, own)).min();
            assert_eq!(due(folded), due(all), "after {i}, SIGTERM at {term}");
        }
    }

    #[test]
    fn an_extended_demand_is_as_old_as_the_first_and_means_the_newest_registration() {
        let mut demands = vec![
            Demand { purge: true, ..demand(5, Some(300)) },
            Demand { job_index: 7, no_shutdown_delay: true, ..demand(9, Some(400)) },
        ];
        let until = demand(60, None).at;
        replace_until(&mut demands, until);
        let expected = Demand {
            at: demand(5, None).at,
            stop_timeout: None,
            until: Some(until),
            no_shutdown_delay: true,
            purge: true,
            job_index: 7,
        };
        assert_eq!(demands, [expected]);
        assert_eq!(expected.due(demand(10, None).at, Duration::from_secs(99), Duration::from_secs(1)), until);
        assert_eq!(expected.due(demand(70, None).at, Duration::ZERO, Duration::ZERO), demand(70, None).at, "not before SIGTERM");
        // A later request may shorten it again, and a longer one changes nothing.
        join(&mut demands, demand(20, Some(5)));
        assert_eq!(nominal_deadline(&demands, Duration::from_secs(30)), Some(demand(25, None).at));
        join(&mut demands, demand(21, Some(500)));
        assert_eq!(nominal_deadline(&demands, Duration::from_secs(30)), Some(demand(25, None).at));
        assert_eq!(demands.last(), Some(&Demand { purge: true, ..demand(21, Some(500)) }), "but it wants its DELETE");
    }

    #[test]
    fn targets_are_json_as_the_rpc_has_them() {
        let as_json = |t: &Target| serde_json::to_value(t).unwrap();
        let job = Target::Job(JobKey::new("games", "a/ü"));
        let node = Target::Node { node: "5355e9cc".into(), name: "alpha".into() };
        let datacenter = Target::Datacenter { datacenter: "dc1".into() };
        assert_eq!(as_json(&job), serde_json::json!({ "job": "a/ü", "namespace": "games" }));
        assert_eq!(as_json(&node), serde_json::json!({ "node": "5355e9cc", "name": "alpha" }));
        assert_eq!(as_json(&datacenter), serde_json::json!({ "datacenter": "dc1" }));
        for t in [job, node, datacenter] {
            assert_eq!(serde_json::from_value::<Target>(as_json(&t)).unwrap(), t);
        }
    }
}
