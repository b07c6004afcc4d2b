//! The drain of one node: Nomad tells what runs there to leave, the clocks end what does not, this watches until nothing is left.
//!
//! ```text
//!  queued ─▶ read the node ─▶ ask Nomad (core::drain::course) ─▶ waiting ─┬─▶ nothing left, read anew ─▶ succeeded
//!               │                        ▲                                │
//!               │                        └── its turn has come, ──────────┘
//!               │                            the deadline moved
//!               ├─▶ gone from Nomad ─▶ succeeded, with a warning
//!               ├─▶ somebody else drains it, or ended this drain ─▶ failed; theirs stays
//!               └─▶ cancelled: the drain is ended, the node is eligible again if it was
//! ```
//!
//! Every step reads the node and what runs there. The drain's meta names this operation, so what an earlier step did is found there.

use std::time::Duration;

use curfew_core::audit::Action;
use curfew_core::clock::is_over;
use curfew_core::drain::course::{Left, Situation};
use curfew_core::drain::{
    Ask, Asked, Deadline, DrainMeta, DrainOptions, NodeOutcome, NodeProgress, NodeRef, NodeState, Slow, plan,
};
use curfew_core::operation::{AllocOutcome, By, Operation, Outcome, Progress, State};
use curfew_core::spec::{JobSpec, JobType};
use curfew_core::{Allocation, Desired, Timestamp, outcome};
use curfew_nomad::{DrainDeadline, NodeStatus, NodeStub};
use curfew_store::StepResult;
use serde_json::json;

use super::{Done, Stopping, Tools};
use crate::error::chain;
use crate::keeper::DrainReport;

/// How often a waiting drain looks by itself when nothing wakes it.
const LOOK: Duration = Duration::from_secs(30);
/// How soon it looks again whether the token sees what lives on a node.
const UNSURE: Duration = Duration::from_secs(3);
/// Tasks in a report's list of the slowest.
const SLOWEST: usize = 5;

impl Tools {
    pub(super) async fn drain_node(
        &self,
        op: &Operation,
        node: &NodeRef,
        options: &DrainOptions,
        was_eligible: Option<bool>,
    ) -> Result<Done, Stopping> {
        let seen = match self.read(self.nomad.node(&node.id)).await? {
            Ok(Some(n)) => n.stub,
            Ok(None) => return Ok(self.node_is_gone(op, node).await),
            Err(e) => return Ok(self.retry(op, chain(&e), false)),
        };
        let mut mine = op.progress.node.clone().unwrap_or_default();
        let theirs = seen.last_drain.as_ref().and_then(|d| d.curfew.as_ref()).filter(|m| m.operation == op.id);
        if let Some(meta) = theirs.filter(|_| mine.started_at.is_none()) {
            // An earlier step got that far and could not write it down. The meta may have a deadline that was moved since.
            (mine.was_eligible, mine.started_at, mine.deadline) = (Some(meta.was_eligible), meta.started_at, meta.deadline.at());
        }
        if let Some(by) = &op.cancel {
            return self.cancel_drain(op, node, &seen, &mine, was_eligible, by).await;
        }
        if let Some(why) = interferes(op, node, &seen, &mine, theirs.is_some()) {
            return Ok(self.drain_failed(op, node, why).await);
        }
        let now = self.clock.now();
        mine.was_eligible.get_or_insert(was_eligible.unwrap_or(seen.eligible));
        if mine.started_at.is_none() {
            mine.started_at = Some(now);
            let timeout = options.drain_timeout.unwrap_or_else(|| self.config.drain_timeout(&seen.datacenter));
            mine.deadline = (!options.no_deadline).then(|| now + timeout);
        }
        let op = &Operation { progress: Progress { node: Some(mine.clone()), ..op.progress.clone() }, ..op.clone() };
        let Some(drain) = op.node_drain() else {
            return Ok(self.failed(op, "the drain has no start; this is a bug in curfew".into()));
        };
        // The clocks must know the deadline before the first task hears of it.
        self.keeper.tell(op.clone()).await;
        let all = match self.read(self.nomad.node_allocations(&node.id)).await? {
            Ok(all) => all,
            Err(e) => return Ok(self.retry(op, chain(&e), false)),
        };
        let left = self.left(&all, |spec| drain.covers(spec), now);
        self.keeper.on_node(all).await;
        let situation =
            Situation { options, started_at: drain.started_at, deadline: drain.deadline, left: &left, asked: mine.asked, now };
        let course = situation.course();
        let mut audit = vec![];
        let meta = DrainMeta {
            operation: op.id,
            deadline: drain.deadline.map_or(Deadline::Never, Deadline::At),
            started_at: mine.started_at,
            only_managed: options.only_managed,
            ignore_system: options.ignore_system,
            was_eligible: mine.was_eligible.unwrap_or(true),
        };
        if let Some(ask) = course.ask {
            if let Err(e) = self.change(self.ask(op, node, ask, &meta, now)).await? {
                let unknown = e.outcome_unknown();
                return Ok(self.retry(op, chain(&e), unknown));
            }
            mine.asked = Some(Asked { at: now, what: ask, deadline: drain.deadline });
            audit.push(self.entry(
                op,
                Action::DrainAsked,
                json!({ "node": node.name, "asked": ask, "deadline": drain.deadline }),
            ));
        }
        let op = &Operation { progress: Progress { node: Some(mine), unknown: false, ..op.progress.clone() }, ..op.clone() };
        let Some(report) = self.keeper.drain_report(op.id, node.id.clone()).await else {
            return Ok(Done { audit, ..self.elsewhere(op) });
        };
        if left.is_empty() {
            if let Some(why) = self.sight.borrow().unsure(now) {
                let why = format!("proof that the token sees everything on node {}: {why}", node.name);
                return Ok(Done { result: self.waiting(op, now + UNSURE, why), audit });
            }
            return self.drained(op, node, &seen, &meta, report, audit).await;
        }
        let after_the_clocks = drain.deadline.map(|d| d.max(now) + Duration::from_secs(2));
        let run_at = course.look_at.into_iter().chain(after_the_clocks).chain([now + LOOK]).min().unwrap_or(now + LOOK);
        let why = match seen.status {
            NodeStatus::Ready => report.waiting_for.unwrap_or_else(|| "Nomad to tell its allocations".into()),
            status => {
                format!("node {} to come back: it is {}; {} allocations may live there", node.name, status.as_str(), left.len())
            }
        };
        let result = StepResult { deadline: drain.deadline, ..self.waiting(op, run_at, why) };
        Ok(Done { result, audit })
    }

    /// What is to leave and did not.
    fn left(&self, all: &[(Allocation, JobSpec)], covers: impl Fn(&JobSpec) -> bool, now: Timestamp) -> Vec<Left> {
        let graces = self.config.graces();
        all.iter()
            .filter(|(alloc, spec)| covers(spec) && !is_over(alloc, spec.groups.get(&alloc.group), now, &graces))
            .map(|(alloc, spec)| Left {
                system: spec.job_type == JobType::System,
                told: alloc.desired != Desired::Run,
                needs: plan::needs(alloc, spec, &graces),
            })
            .collect()
    }

    async fn ask(
        &self,
        op: &Operation,
        node: &NodeRef,
        ask: Ask,
        meta: &DrainMeta,
        now: Timestamp,
    ) -> Result<(), curfew_nomad::Error> {
        let meta = meta.write(&op.actor, op.reason.as_deref());
        let (deadline, ignore_system) = match ask {
            Ask::Force { ignore_system } => (DrainDeadline::Now, ignore_system),
            Ask::Pace { until: Some(until), ignore_system } => (DrainDeadline::After(until.since(now)), ignore_system),
            Ask::Pace { until: None, ignore_system } => (DrainDeadline::Never, ignore_system),
        };
        self.nomad.drain_node(&node.id, deadline, ignore_system, &meta).await
    }

    async fn drained(
        &self,
        op: &Operation,
        node: &NodeRef,
        seen: &NodeStub,
        meta: &DrainMeta,
        report: DrainReport,
        mut audit: Vec<curfew_core::audit::AuditEntry>,
    ) -> Result<Done, Stopping> {
        let mine = op.progress.node.as_ref();
        let paced = mine.and_then(|m| m.asked).is_some_and(|a| matches!(a.what, Ask::Pace { .. }));
        if seen.draining && paced {
            // For Nomad it is not complete before its own deadline when the last allocation was told by an earlier drain.
            let complete = Ask::Force { ignore_system: meta.ignore_system };
            if let Err(e) = self.change(self.ask(op, node, complete, meta, self.clock.now())).await? {
                return Ok(self.retry(op, chain(&e), false));
            }
        }
        let outcome = self.node_outcome(op, node, report, NodeState::Drained);
        audit.push(self.entry(op, Action::Succeeded, json!({ "exited": outcome.exited, "killed": outcome.killed })));
        Ok(Done { result: StepResult { outcome: Some(outcome), ..self.result(op, State::Succeeded) }, audit })
    }

    async fn node_is_gone(&self, op: &Operation, node: &NodeRef) -> Done {
        let why = format!("node {} is no longer in Nomad: whether anything still lives there cannot be seen", node.name);
        let report = self.keeper.drain_report(op.id, node.id.clone()).await.unwrap_or_default();
        let outcome = self.node_outcome(op, node, report, NodeState::Gone);
        let mut result = StepResult { outcome: Some(outcome), ..self.result(op, State::Succeeded) };
        result.warnings.push(why.clone());
        Done { result, audit: vec![self.entry(op, Action::Succeeded, json!({ "warning": why }))] }
    }

    async fn drain_failed(&self, op: &Operation, node: &NodeRef, why: String) -> Done {
        let report = self.keeper.drain_report(op.id, node.id.clone()).await.unwrap_or_default();
        let outcome = self.node_outcome(op, node, report, NodeState::Failed);
        let mut done = self.failed(op, why);
        done.result.outcome = Some(outcome);
        done
    }

    /// What was told to leave leaves, by its clock at the latest; the rest stays.
    async fn cancel_drain(
        &self,
        op: &Operation,
        node: &NodeRef,
        seen: &NodeStub,
        mine: &NodeProgress,
        by_parent: Option<bool>,
        by: &By,
    ) -> Result<Done, Stopping> {
        let was_eligible = mine.was_eligible.or(by_parent);
        let foreign = interferes(
            op,
            node,
            seen,
            mine,
            seen.last_drain.as_ref().and_then(|d| d.curfew.as_ref()).is_some_and(|m| m.operation == op.id),
        );
        // Without a start nothing was done to it; what somebody else made of it since is theirs.
        if let Some(was_eligible) = was_eligible.filter(|_| foreign.is_none())
            && (seen.draining || (was_eligible && !seen.eligible))
            && let Err(e) = self.change(self.nomad.undrain_node(&node.id, was_eligible)).await?
        {
            let unknown = e.outcome_unknown();
            return Ok(self.retry(op, chain(&e), unknown));
        }
        let report = self.keeper.drain_report(op.id, node.id.clone()).await.unwrap_or_default();
        let told = report.left.iter().filter(|l| l.kill_at.is_some()).count();
        let at = report.deadline;
        let outcome = self.node_outcome(op, node, report, NodeState::Cancelled);
        let mut result = StepResult { outcome: Some(outcome), ..self.result(op, State::Cancelled) };
        result.warnings.extend(foreign);
        if told > 0 {
            let at = at.map_or(String::new(), |d| format!(" by {d}"));
            result.warnings.push(format!(
                "node {}: {told} of its allocations were told to leave already, which cannot be taken back: they end{at}, and Nomad places their jobs elsewhere",
                node.name
            ));
        }
        if was_eligible == Some(false) {
            result.warnings.push(format!("node {} took no allocations before the drain and takes none now", node.name));
        }
        let detail = json!({ "by": by.actor, "reason": by.reason, "told": told, "eligible": was_eligible });
        Ok(Done { result, audit: vec![self.entry(op, Action::Cancelled, detail)] })
    }

    pub(crate) fn node_outcome(&self, op: &Operation, node: &NodeRef, report: DrainReport, state: NodeState) -> Outcome {
        let ended_at = state.is_over().then(|| self.clock.now());
        of_node(op, node, report, state, ended_at)
    }
}

/// What is known of a node's drain, for its operation.
pub(crate) fn of_node(
    op: &Operation,
    node: &NodeRef,
    report: DrainReport,
    state: NodeState,
    ended_at: Option<Timestamp>,
) -> Outcome {
    const SHOWN: usize = 100;
    let drain = report.drain.or(op.node_drain());
    let slowest = slowest(&report.allocations);
    let mut total = outcome::total(report.allocations);
    let (left, mut shown) = (report.left.len(), report.left);
    shown.truncate(SHOWN);
    total.nodes = vec![NodeOutcome {
        id: node.id.clone(),
        name: node.name.clone(),
        state,
        operation: None,
        started_at: drain.map(|d| d.started_at),
        ended_at,
        deadline: drain.and_then(|d| d.deadline),
        waiting_for: report.waiting_for,
        exited: total.exited,
        killed: total.killed,
        left: u32::try_from(left).unwrap_or(u32::MAX),
        allocations: shown,
        slowest,
    }];
    total
}

fn slowest(all: &[AllocOutcome]) -> Vec<Slow> {
    let tasks = all.iter().flat_map(|a| a.tasks.iter().map(move |t| (a, t)));
    let mut slow: Vec<Slow> = tasks
        .filter_map(|(a, t)| {
            let took = t.ended_at?.since(t.term_at?);
            let (job, killed) = (a.job.clone(), t.signalled_at.is_some());
            Some(Slow { alloc: a.id.clone(), job, task: t.name.clone(), took, killed })
        })
        .collect();
    slow.sort_by_key(|s| std::cmp::Reverse(s.took));
    slow.truncate(SLOWEST);
    slow
}

/// Why this drain cannot go on: the node is somebody else's.
fn interferes(op: &Operation, node: &NodeRef, seen: &NodeStub, mine: &NodeProgress, ours: bool) -> Option<String> {
    let name = &node.name;
    let last = seen.last_drain.as_ref();
    if mine.asked.is_none() {
        let theirs = last.filter(|d| seen.draining && !ours && d.curfew.is_none())?;
        return Some(others(name, &theirs.meta));
    }
    if seen.draining && !ours {
        return Some(format!("somebody else drains node {name} now; theirs was left alone"));
    }
    if last.is_some_and(|d| d.cancelled) && ours {
        let since = op.progress.node.as_ref().and_then(|n| n.started_at);
        let since = since.map_or(String::new(), |at| format!(" (it ran since {at})"));
        return Some(format!(
            "somebody ended the drain of node {name} in Nomad{since}; what was told to leave keeps its deadline. Drain it again if that is what you want"
        ));
    }
    seen.eligible.then(|| {
        format!("somebody made node {name} eligible again while it was drained; what was told to leave keeps its deadline")
    })
}

/// Names whoever drains a node, as far as the drain's meta tells.
pub(crate) fn others(name: &str, meta: &std::collections::BTreeMap<String, String>) -> String {
    let meta: Vec<_> = meta.iter().take(5).map(|(k, v)| format!("{k}={v}")).collect();
    let whose = if meta.is_empty() { String::new() } else { format!(" (its meta says {})", meta.join(", ")) };
    format!("node {name} is drained by somebody else{whose}; wait for that, or end it: nomad node drain -disable {name}")
}
