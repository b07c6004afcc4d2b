//! Nodes that Curfew drains: what that means for the clocks, and how far each has come.
//!
//! A drain is known by its live operation, or by the meta that it left in Nomad. Whether a node has such a meta is asked once, when
//! something that a drain moves shows up there, and kept while the event stream is whole: it tells every change of a node.

use std::collections::{HashMap, HashSet};

use curfew_core::clock::NodeDrain;
use curfew_core::drain::{AllocLeft, Strategy, Waits};
use curfew_core::operation::{AllocOutcome, By, Operation, Request};
use curfew_core::spec::{JobSpec, JobType, Role};
use curfew_core::{Allocation, Desired, NodeId, OpId, Timestamp, outcome};
use curfew_nomad::{NodeStatus, NodeStub};

use super::book::{Book, Effect};
use super::shelf::{Tracked, View};

/// The drain of a node by an operation that has not finished.
pub(super) struct Live {
    pub(super) op: OpId,
    pub(super) drain: NodeDrain,
    strategy: Strategy,
    /// Of the row that the drain is from: who read it earlier may come later.
    revision: u64,
    /// How many allocations were left when it was last looked: of system jobs, and others.
    left: Option<(usize, usize)>,
}

#[derive(Default)]
pub(super) struct Drains {
    live: HashMap<NodeId, Live>,
    /// By a node's meta: what it tells, also that there is nothing.
    told_of: HashMap<NodeId, Option<NodeDrain>>,
    asked: HashSet<NodeId>,
    down: HashMap<NodeId, String>,
}

/// Whether it is known if a drain covers an allocation.
pub(super) enum Known {
    Is(Option<NodeDrain>),
    Not,
}

impl Drains {
    pub(super) fn live(&self, node: &NodeId) -> Option<&Live> {
        self.live.get(node)
    }

    /// How many nodes drain, and how many allocations have not left them.
    pub(super) fn left(&self) -> (usize, usize) {
        let left = self.live.values().filter_map(|l| l.left).map(|(system, others)| system + others).sum();
        (self.live.len(), left)
    }

    pub(super) fn of(&self, alloc: &Allocation) -> Known {
        if alloc.desired == Desired::Run {
            return Known::Is(None);
        }
        match (self.live.get(&alloc.node), self.told_of.get(&alloc.node)) {
            (Some(live), _) => Known::Is(Some(live.drain)),
            // Nomad keeps the meta when the drain is long over: of a task that it did not move it says nothing.
            (None, _) if !alloc.migrate => Known::Is(None),
            (None, Some(told_of)) => Known::Is(*told_of),
            (None, None) => Known::Not,
        }
    }

    /// Whether nobody asks yet.
    pub(super) fn ask(&mut self, node: &NodeId) -> bool {
        self.asked.insert(node.clone())
    }

    /// Changes of nodes may have been missed.
    pub(super) fn forget_told_of(&mut self) {
        self.told_of.clear();
    }
}

/// What the drain of a node can say about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DrainReport {
    /// Absent: it did not start, or is not live here.
    pub drain: Option<NodeDrain>,
    pub waiting_for: Option<String>,
    /// The last clock's instant.
    pub deadline: Option<Timestamp>,
    pub allocations: Vec<AllocOutcome>,
    /// Covered allocations that have not left.
    pub left: Vec<AllocLeft>,
}

impl Book {
    /// The drain of a node started, its deadline was moved, or it was found again after a restart.
    pub fn drain_opened(&mut self, op: &Operation, now: Timestamp, fx: &mut Vec<Effect>) {
        let (Request::DrainNode { node, options, .. }, Some(drain)) = (&op.request, op.node_drain()) else { return };
        match self.drains.live.get_mut(&node.id) {
            Some(live) if live.op == op.id && (op.revision < live.revision || live.drain == drain) => return,
            Some(live) => (live.op, live.drain, live.strategy, live.revision) = (op.id, drain, options.strategy, op.revision),
            None => {
                self.drains.live.insert(
                    node.id.clone(),
                    Live { op: op.id, drain, strategy: options.strategy, revision: op.revision, left: None },
                );
            }
        }
        self.settle_node(&node.id, now, fx);
    }

    /// It has finished. What was told by it and lives keeps its deadline.
    pub fn drain_closed(&mut self, op: OpId, node: &NodeId, now: Timestamp, fx: &mut Vec<Effect>) {
        if self.drains.live.get(node).is_none_or(|l| l.op != op) {
            return;
        }
        if let Some(live) = self.drains.live.remove(node) {
            self.drains.told_of.insert(node.clone(), Some(live.drain));
        }
        self.settle_node(node, now, fx);
    }

    /// What runs on a node that drains, with its jobs.
    pub fn on_node(&mut self, all: Vec<(Allocation, JobSpec)>, now: Timestamp, fx: &mut Vec<Effect>) {
        for (alloc, spec) in all {
            self.specs.insert(&alloc.job_key(), &spec);
            self.observe(alloc, now, fx);
        }
    }

    /// The answer to [`Effect::ReadNode`]; `Err`: it could not be read, and is asked for again soon.
    pub fn node_read(&mut self, id: &NodeId, read: Result<Option<NodeStub>, ()>, now: Timestamp, fx: &mut Vec<Effect>) {
        if !self.drains.asked.remove(id) {
            // Asked for by another duty: what it says may be of long ago.
            return;
        }
        match read {
            Ok(node) => {
                let drain = node.and_then(|n| n.last_drain).and_then(|d| d.curfew).map(|meta| meta.clock());
                self.drains.told_of.insert(id.clone(), drain);
                self.settle_node(id, now, fx);
            }
            Err(()) => {
                for alloc in self.by_node.of(id).cloned().collect::<Vec<_>>() {
                    self.set_wake(&alloc, Some(now + std::time::Duration::from_millis(500)));
                }
            }
        }
    }

    /// An event of a node.
    pub fn node_seen(&mut self, node: &NodeStub, now: Timestamp, fx: &mut Vec<Effect>) {
        let ready = node.status == NodeStatus::Ready;
        let before = match ready {
            true => self.drains.down.remove(&node.id),
            false => self.drains.down.insert(node.id.clone(), node.status.as_str().to_owned()),
        };
        if ready {
            self.node_ready(&node.id, now);
        }
        if let Some(live) = self.drains.live.get(&node.id) {
            let foreign =
                node.last_drain.as_ref().is_some_and(|d| d.cancelled || d.curfew.as_ref().is_none_or(|m| m.operation != live.op));
            // It came, it went, or somebody interferes.
            if before.is_some() == ready || node.eligible || foreign {
                fx.push(Effect::Nudge(live.op));
            }
            return;
        }
        let drain = node.last_drain.as_ref().and_then(|d| d.curfew.as_ref()).map(|meta| meta.clock());
        let known = self.drains.told_of.get(&node.id);
        if known.is_some_and(|k| *k != drain) || (known.is_none() && drain.is_some()) {
            self.drains.told_of.insert(node.id.clone(), drain);
            self.settle_node(&node.id, now, fx);
        }
    }

    pub fn drain_report(&self, op: OpId, node: &NodeId, now: Timestamp) -> Option<DrainReport> {
        let live = self.drains.live.get(node).filter(|l| l.op == op)?;
        let mut report = DrainReport { drain: Some(live.drain), ..DrainReport::default() };
        for t in self.covered_on(node, live) {
            let (Some(alloc), Some(spec)) = (&t.alloc, &t.spec) else { continue };
            let records: Vec<_> =
                t.records.iter().filter(|r| r.ended_at.is_none_or(|e| e >= live.drain.started_at)).cloned().collect();
            let due = records.iter().filter(|r| r.ended_at.is_none()).map(|r| r.due).max();
            report.deadline = report.deadline.max(due);
            if !self.over(&t, now) {
                let (waits, why) = self.waits(&t, alloc, spec, live, due);
                let (id, job) = (alloc.id.clone(), alloc.job_key());
                report.left.push(AllocLeft { id, job, waits, kill_at: due, waiting_for: why });
            }
            report.allocations.push(outcome::of_allocation(alloc, Some(spec), &[], Some(live.drain), &records, &self.graces));
        }
        report.allocations.sort_by(|a, b| a.id.cmp(&b.id));
        report.left.sort_by(|a, b| (a.kill_at, &a.id).cmp(&(b.kill_at, &b.id)));
        report.waiting_for = waits_for(&report, self.leave.paused.as_deref());
        Some(report)
    }

    /// Those whose allocation and specification are known.
    fn covered_on<'a>(&'a self, node: &NodeId, live: &'a Live) -> impl Iterator<Item = View<'a>> {
        self.by_node.of(node).filter_map(|id| self.allocs.get(id)).filter(|t| {
            let (Some(alloc), Some(spec)) = (&t.alloc, &t.spec) else { return false };
            // One that ended by itself before anybody told it has no part in the drain.
            live.drain.covers(spec) && (alloc.desired != Desired::Run || alloc.any_task_lives() || alloc.may_still_start())
        })
    }

    fn waits(&self, t: &Tracked, alloc: &Allocation, spec: &JobSpec, drain: &Live, due: Option<Timestamp>) -> (Waits, String) {
        let at = due.map_or(String::new(), |d| format!(", SIGKILL at {d}"));
        let away = self.drains.down.get(&alloc.node);
        let failing = t.records.iter().find(|r| r.ended_at.is_none() && r.unreachable_at.is_some() && r.last_error.is_some());
        if away.is_some() || !t.unreachable.is_empty() || failing.is_some() {
            let status = away.map_or("out of reach", String::as_str);
            return (Waits::Node, format!("node {} to come back: it is {status}", alloc.node_name));
        }
        if alloc.desired == Desired::Run {
            let (waits, why) = match (spec.job_type, drain.strategy) {
                (JobType::System, _) => (Waits::Last, "its turn: system jobs leave last"),
                (_, Strategy::Evacuate) => (Waits::Turn, "Nomad to tell it, as everything but system jobs at once"),
                (JobType::Service, Strategy::Migrate) => {
                    (Waits::Turn, "its turn: Nomad moves it when enough others of its job are healthy")
                }
                (JobType::Batch | JobType::SysBatch, Strategy::Migrate) => {
                    (Waits::Turn, "its end, or to be told shortly before the deadline")
                }
            };
            return (waits, why.into());
        }
        let live: Vec<_> = alloc.tasks.iter().filter(|(_, task)| task.lives()).map(|(name, _)| name).collect();
        let poststop = |name| spec.task(&alloc.group, name).is_some_and(|s| s.role == Role::Poststop);
        match live.len() {
            0 => (Waits::Report, "its client to report its end".into()),
            _ if live.iter().all(|name| poststop(name)) => {
                (Waits::Poststop, format!("its poststop task, which has a clock of its own{at}"))
            }
            1 => (Waits::Clock, format!("its task to end{at}")),
            n => (Waits::Clock, format!("its {n} tasks to end{at}")),
        }
    }

    fn settle_node(&mut self, node: &NodeId, now: Timestamp, fx: &mut Vec<Effect>) {
        for id in self.by_node.of(node).cloned().collect::<Vec<_>>() {
            self.settle(&id, now, fx);
        }
    }

    /// Tells the operation when only system jobs are left on its node, and when nothing is.
    pub(super) fn check_node(&mut self, node: &NodeId, now: Timestamp, fx: &mut Vec<Effect>) {
        let Some(live) = self.drains.live.get(node) else { return };
        let mut left = (0, 0);
        for t in self.covered_on(node, live) {
            match (self.over(&t, now), t.spec.as_ref().map(|s| s.job_type)) {
                (true, _) => {}
                (false, Some(JobType::System)) => left.0 += 1,
                (false, _) => left.1 += 1,
            }
        }
        let news = live.left.is_some_and(|before| before != left && left.1 == 0 && (before.1 > 0 || left.0 == 0));
        if news {
            fx.push(Effect::Nudge(live.op));
        }
        if let Some(live) = self.drains.live.get_mut(node) {
            live.left = Some(left);
        }
    }
}

fn allocations(n: usize) -> String {
    if n == 1 { "1 allocation".into() } else { format!("{n} allocations") }
}

/// In a sentence, what the node's drain waits for.
fn waits_for(report: &DrainReport, paused: Option<&By>) -> Option<String> {
    let first = report.left.first()?;
    if let Some(away) = report.left.iter().find(|l| l.waits == Waits::Node) {
        return Some(format!("{}; {} may live there", away.waiting_for, allocations(report.left.len())));
    }
    let told = report.left.iter().filter(|l| matches!(l.waits, Waits::Clock | Waits::Poststop | Waits::Report)).count();
    let untold = report.left.len() - told;
    if let (Some(by), 1..) = (paused, told) {
        let all = allocations(report.left.len());
        return Some(format!("{all} to end, and somebody to resume kill: {} paused it, no SIGKILL is sent", by.actor));
    }
    Some(match (told, untold, report.deadline) {
        (_, 0, Some(d)) => format!("{} to end, SIGKILL at {d}", allocations(told)),
        (_, 0, None) => format!("{} to end", allocations(told)),
        (0, 1, _) => format!("allocation {} ({}): {}", first.id.short(), first.job.job, first.waiting_for),
        (0, n, _) => format!("{} to have their turn", allocations(n)),
        (told, untold, _) => format!("{} to end, {untold} more to have their turn", allocations(told)),
    })
}
