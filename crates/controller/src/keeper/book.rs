//! The picture of everything that was told to end: what was last seen, which clocks run, what is to be done about it now.
//!
//! No I/O and no waiting: every method takes what happened and gives back [`Effect`]s. The same input twice changes nothing the
//! second time, so an event may come late, double, or only through the next resync.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use curfew_core::audit::{Action, AuditEntry};
use curfew_core::clock::{Basis, Cause, ClockKey, ClockRecord, Context, Derived, Graces, KillClock, derive, is_over};
use curfew_core::operation::{AllocOutcome, Demand, Operation, Request};
use curfew_core::spec::JobSpec;
use curfew_core::{AllocId, Allocation, Desired, EvalId, EventKind, JobKey, NodeId, OpId, TaskName, Timestamp, outcome};
use serde_json::json;

use super::drains::{Drains, Known};
use super::specs::Specs;

/// Evaluations of anybody's that may be complete between a DELETE and its answer.
const EARLY_EVALS: usize = 512;

/// What is to be done, by those who can.
#[derive(Debug)]
pub enum Effect {
    Persist(ClockRecord),
    Forget(ClockKey),
    Audit(AuditEntry),
    /// Read this allocation anew and hand it to [`Book::fresh`]. `full`: with its job.
    Read {
        id: AllocId,
        full: bool,
    },
    /// Send SIGKILL at each clock's instant and hand the answers to [`Book::answered`].
    Kill {
        alloc: AllocId,
        node: NodeId,
        clocks: Vec<KillClock>,
    },
    /// Read this node and hand it to [`Book::node_read`].
    ReadNode(NodeId),
    /// Something changed that this operation waits for.
    Nudge(OpId),
}

/// What Nomad answered to a SIGKILL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Sent,
    /// The client cannot be reached: it may come back.
    Unreachable(String),
    /// The task had no process at that moment: it ended by itself, or is between two starts.
    NotRunning(String),
    /// Nomad knows no such allocation.
    Gone(String),
    /// The driver takes no signals; Nomad's own `kill_timeout` ends the task.
    Unsupported(String),
    /// Not sent: its turn came so late that the read before it says nothing any more. Read again soon.
    Stale,
    /// Anything else, to be tried again.
    Failed(String),
}

/// A live stop operation.
struct Stop {
    op: OpId,
    demands: Vec<Demand>,
    /// See `Context::late`.
    late: Duration,
    delete_index: Option<u64>,
    eval: Option<EvalId>,
    /// Nomad has told every allocation: the evaluation of the DELETE is complete.
    eval_done: bool,
    /// Events may have been lost since it was opened.
    gap: bool,
    ready: bool,
}

impl Stop {
    /// Whether an allocation placed by this specification is this stop's: registered before the DELETE.
    fn covers(&self, spec: &JobSpec) -> bool {
        self.delete_index.is_none_or(|i| spec.job_modify_index < i)
    }
}

#[derive(Default)]
pub(super) struct Tracked {
    /// Absent after a restart until it is read.
    pub(super) alloc: Option<Allocation>,
    pub(super) spec: Option<Arc<JobSpec>>,
    pub(super) records: Vec<ClockRecord>,
    pub(super) unreachable: Vec<TaskName>,
    /// A read or a signal is under way.
    busy: bool,
    wake: Option<Timestamp>,
    next_try: Option<Timestamp>,
    unsupported: HashSet<ClockKey>,
    /// None of its clocks may pass: its read can be made with others', some time ahead.
    shared: bool,
    seen: Timestamp,
}

pub struct Book {
    pub(super) graces: Graces,
    read_lead: Duration,
    kill_timeout: Duration,
    actor: String,
    pub specs: Specs,
    pub(super) allocs: HashMap<AllocId, Tracked>,
    by_job: HashMap<JobKey, HashSet<AllocId>>,
    pub(super) by_node: HashMap<NodeId, HashSet<AllocId>>,
    pub(super) drains: Drains,
    stops: HashMap<JobKey, Stop>,
    evals: HashMap<EvalId, JobKey>,
    /// Evaluations that were complete before their DELETE's answer was handled; the newest of them.
    early_evals: VecDeque<EvalId>,
    wakes: BTreeSet<(Timestamp, AllocId)>,
    warned_nodes: HashSet<NodeId>,
}

/// What a waiting stop operation can say about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StopReport {
    /// Nomad has told every allocation, as far as is known.
    pub eval_done: bool,
    /// Events may have been lost since the stop was opened.
    pub gap: bool,
    pub waiting_for: Option<String>,
    /// The last clock's instant.
    pub deadline: Option<Timestamp>,
    pub allocations: Vec<AllocOutcome>,
    /// Covered allocations that are not known to be over.
    pub open: Vec<AllocId>,
    pub warnings: Vec<String>,
}

impl Book {
    pub fn new(config: &curfew_core::config::Config, actor: String) -> Self {
        Self {
            graces: config.graces(),
            read_lead: config.read_lead,
            kill_timeout: config.kill_timeout,
            actor,
            specs: Specs::new(config.spec_cache),
            allocs: HashMap::new(),
            by_job: HashMap::new(),
            by_node: HashMap::new(),
            drains: Drains::default(),
            stops: HashMap::new(),
            evals: HashMap::new(),
            early_evals: VecDeque::new(),
            wakes: BTreeSet::new(),
            warned_nodes: HashSet::new(),
        }
    }

    /// The earliest instant at which [`Book::tick`] has something to do.
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.wakes.first().map(|(at, _)| *at)
    }

    pub fn armed(&self) -> usize {
        self.allocs.values().map(|t| t.records.iter().filter(|r| r.ended_at.is_none()).count()).sum()
    }

    /// Stops that have not finished.
    pub fn stops(&self) -> usize {
        self.stops.len()
    }

    /// What was written down before a restart. Each clock keeps its instant.
    pub fn restore(&mut self, records: Vec<ClockRecord>) {
        for r in records {
            let id = r.key.alloc.clone();
            self.by_job.entry(r.job.clone()).or_default().insert(id.clone());
            self.by_node.entry(r.node.clone()).or_default().insert(id.clone());
            let t = self.allocs.entry(id.clone()).or_default();
            let mut wake = t.wake;
            if r.ended_at.is_none() {
                let at = r.last_attempt_at.map_or(r.due, |l| r.due.max(l + retry_after(r.attempts)));
                let at = at - lead_of(self.read_lead, r.cause);
                wake = Some(wake.map_or(at, |w| w.min(at)));
            }
            t.shared = !r.cause.may_pass();
            t.records.push(r);
            self.set_wake(&id, wake);
        }
    }

    /// An allocation as Nomad shows it.
    pub fn observe(&mut self, alloc: Allocation, now: Timestamp, fx: &mut Vec<Effect>) {
        let key = alloc.job_key();
        match self.allocs.get(&alloc.id) {
            Some(t) => {
                // Events and lists come by different ways; the newer one has been here already.
                if t.alloc.as_ref().is_some_and(|a| a.modify_index > alloc.modify_index) {
                    return;
                }
            }
            None => {
                let stopped = alloc.desired != Desired::Run;
                let worth = if alloc.any_task_lives() || alloc.may_still_start() {
                    stopped || has_sign(&alloc) || self.drains.live(&alloc.node).is_some()
                } else {
                    // Over before it was ever seen told: part of a stop's report.
                    stopped && self.stops.get(&key).is_some_and(|s| s.delete_index.is_none_or(|i| alloc.create_index < i))
                };
                if !worth {
                    return;
                }
            }
        }
        self.warn_of_cut_kill_timeout(&alloc);
        let id = alloc.id.clone();
        self.by_job.entry(key).or_default().insert(id.clone());
        self.by_node.entry(alloc.node.clone()).or_default().insert(id.clone());
        let t = self.allocs.entry(id.clone()).or_default();
        t.seen = now;
        if let Some(spec) = self.specs.of(&alloc) {
            t.spec = Some(spec);
        }
        t.alloc = Some(alloc);
        self.settle(&id, now, fx);
    }

    /// The answer to [`Effect::Read`]: the allocation read anew (with its job, when the read was full), or nothing when
    /// Nomad knows it no more.
    pub fn fresh(&mut self, id: &AllocId, read: Option<(Allocation, Option<JobSpec>)>, now: Timestamp, fx: &mut Vec<Effect>) {
        let Some(t) = self.allocs.get_mut(id) else { return };
        t.busy = false;
        let Some((alloc, spec)) = read else {
            self.gone(id, "Nomad knows the allocation no more", now, fx);
            return;
        };
        if let Some(spec) = spec {
            let spec = self.specs.insert(&alloc.job_key(), spec);
            t.spec = Some(spec);
        }
        self.observe(alloc, now, fx);
        // An event may have brought something newer than this read; the clocks are looked at in any case.
        self.settle(id, now, fx);
        self.fire(id, now, fx);
    }

    /// A read that could not be made: tried again soon.
    pub fn unread(&mut self, id: &AllocId, now: Timestamp) {
        if let Some(t) = self.allocs.get_mut(id) {
            t.busy = false;
            let at = now + Duration::from_millis(500);
            t.next_try = Some(at);
            self.set_wake(id, Some(at));
        }
    }

    /// Every clock whose time for the last read has come.
    pub fn tick(&mut self, now: Timestamp, fx: &mut Vec<Effect>) {
        if self.next_wake().is_none_or(|at| at > now) {
            return;
        }
        // Those that follow closely share the read.
        let until = now + self.gather(true);
        let shared = |id: &AllocId| self.allocs.get(id).is_some_and(|t| t.shared);
        let turn: Vec<_> =
            self.wakes.iter().take_while(|(at, _)| *at <= until).filter(|(at, id)| *at <= now || shared(id)).cloned().collect();
        for wake in turn {
            self.wakes.remove(&wake);
            let id = wake.1;
            let near = |r: &ClockRecord| r.ended_at.is_none() && r.due <= self.reach(r.cause, now);
            let Some(t) = self.allocs.get(&id) else { continue };
            let read = t.alloc.is_none() || t.spec.is_none() || t.records.iter().any(near);
            let Some(t) = self.allocs.get_mut(&id) else { continue };
            t.wake = None;
            if t.busy {
                continue;
            }
            if read {
                t.busy = true;
                fx.push(Effect::Read { full: t.spec.is_none(), id });
            } else {
                self.settle(&id, now, fx);
            }
        }
    }

    /// Clocks up to here are served by a read made now.
    fn reach(&self, cause: Cause, now: Timestamp) -> Timestamp {
        now + lead_of(self.read_lead, cause) + self.gather(!cause.may_pass())
    }

    /// How far ahead of its own moment a read is made with others.
    fn gather(&self, shared: bool) -> Duration {
        if shared { self.read_lead * 5 } else { Duration::ZERO }
    }

    /// Nomad's answers to the signals of one [`Effect::Kill`].
    pub fn answered(&mut self, id: &AllocId, answers: Vec<(ClockKey, Timestamp, Answer)>, now: Timestamp, fx: &mut Vec<Effect>) {
        let Some(t) = self.allocs.get_mut(id) else { return };
        t.busy = false;
        let mut gone = None;
        for (key, sent_at, answer) in answers {
            let Some(r) = t.records.iter_mut().find(|r| r.key == key) else { continue };
            let (action, error) = match &answer {
                Answer::Stale => {
                    // Paced: where Nomad or a client is slow, reading on and on would make it slower.
                    t.next_try = Some(now + Duration::from_millis(250));
                    continue;
                }
                Answer::Sent => {
                    r.signalled_at.get_or_insert(sent_at);
                    (Action::SigkillSent, None)
                }
                Answer::Unreachable(e) => {
                    r.unreachable_at = Some(now);
                    (Action::SigkillFailed, Some(e))
                }
                Answer::Unsupported(e) => {
                    t.unsupported.insert(key.clone());
                    (Action::SigkillFailed, Some(e))
                }
                Answer::Gone(e) => {
                    gone = Some(e.clone());
                    (Action::SigkillFailed, Some(e))
                }
                Answer::NotRunning(e) | Answer::Failed(e) => (Action::SigkillFailed, Some(e)),
            };
            r.last_error = error.cloned();
            let wait = match answer {
                Answer::NotRunning(_) => Duration::from_millis(250) * r.attempts.min(20),
                Answer::Unreachable(_) => retry_after(r.attempts).min(Duration::from_secs(5)),
                _ => retry_after(r.attempts),
            };
            let at = now + wait;
            t.next_try = Some(t.next_try.filter(|t| *t > now).map_or(at, |t| t.min(at)));
            let detail = match error {
                Some(e) => json!({ "attempt": r.attempts, "error": e }),
                None => json!({ "attempt": r.attempts, "late_seconds": sent_at.seconds_after(r.due) }),
            };
            fx.push(Effect::Persist(r.clone()));
            fx.push(Effect::Audit(entry(&self.actor, now, r, action, detail)));
        }
        if gone.is_some() {
            // Absence counts only after it was read.
            t.busy = true;
            fx.push(Effect::Read { id: id.clone(), full: true });
            return;
        }
        self.settle(id, now, fx);
    }

    /// A node can be reached again: what failed for that is tried now.
    pub fn node_ready(&mut self, node: &NodeId, now: Timestamp) {
        let waiting =
            |t: &Tracked| t.records.iter().any(|r| r.node == *node && r.ended_at.is_none() && r.unreachable_at.is_some());
        let ids: Vec<AllocId> = self.allocs.iter().filter(|(_, t)| !t.busy && waiting(t)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            if let Some(t) = self.allocs.get_mut(&id) {
                t.next_try = None;
                let due = t.records.iter().filter(|r| r.ended_at.is_none()).map(|r| r.due).min();
                self.set_wake(&id, due.map(|d| d.max(now)));
            }
        }
    }

    /// A resync that began at `began` has listed everything that was told to end. What it did not name ended unseen.
    pub fn resynced(&mut self, began: Timestamp, fx: &mut Vec<Effect>) {
        for (id, t) in &mut self.allocs {
            // What only waits for its turn on a node that drains is in no such list; the drain itself looks.
            let told = |a: &Allocation| a.desired != Desired::Run || has_sign(a);
            let open = |a: &Allocation| told(a) && (a.any_task_lives() || a.may_still_start());
            let unseen = t.seen < began && !t.busy && t.alloc.as_ref().is_some_and(open);
            if unseen {
                t.busy = true;
                fx.push(Effect::Read { id: id.clone(), full: t.spec.is_none() });
            }
        }
    }

    /// Events were lost.
    pub fn gap(&mut self) {
        self.specs.clear();
        self.drains.forget_told_of();
        for s in self.stops.values_mut() {
            s.gap = true;
        }
    }

    /// An operation that the clocks must know of was accepted, changed, or found again after a restart.
    pub fn opened(&mut self, op: &Operation, now: Timestamp, fx: &mut Vec<Effect>) {
        self.stop_opened(op, now, fx);
        self.drain_opened(op, now, fx);
    }

    /// A stop was accepted, joined, or found again after a restart.
    pub fn stop_opened(&mut self, op: &Operation, now: Timestamp, fx: &mut Vec<Effect>) {
        let Request::Stop { target, demands } = &op.request else { return };
        let (key, demands) = (target.clone(), demands.clone());
        match self.stops.get_mut(&key) {
            Some(s) if s.op == op.id => (s.demands, s.late) = (demands, op.late()),
            _ => {
                let delete_index = op.progress.delete_index;
                // Found again after a restart: whatever happened in between was not seen.
                let gap = op.progress.demands_sent > 0;
                let eval = op.progress.eval.clone();
                if let Some(eval) = &eval {
                    self.evals.insert(eval.clone(), key.clone());
                }
                let stop = Stop { op: op.id, demands, late: op.late(), delete_index, eval, eval_done: false, gap, ready: false };
                self.stops.insert(key.clone(), stop);
            }
        }
        self.settle_job(&key, now, fx);
    }

    /// Nomad took the DELETE.
    pub fn stop_deleted(
        &mut self,
        op: OpId,
        key: &JobKey,
        index: u64,
        eval: Option<EvalId>,
        now: Timestamp,
        fx: &mut Vec<Effect>,
    ) {
        let Some(s) = self.stops.get_mut(key).filter(|s| s.op == op) else { return };
        if let Some(old) = s.eval.take() {
            self.evals.remove(&old);
        }
        s.delete_index = Some(index);
        s.ready = false;
        s.eval_done = eval.as_ref().is_none_or(|e| self.early_evals.contains(e));
        s.eval = eval.clone();
        if let Some(eval) = eval.filter(|_| !s.eval_done) {
            self.evals.insert(eval, key.clone());
        }
        self.settle_job(key, now, fx);
    }

    /// An evaluation is complete: if it was a stop's, every allocation has been told.
    pub fn eval_done(&mut self, eval: &EvalId, fx: &mut Vec<Effect>) {
        let Some(key) = self.evals.remove(eval) else {
            // Nomad is often done before its answer to the DELETE has been handled here.
            if self.early_evals.len() >= EARLY_EVALS {
                self.early_evals.pop_front();
            }
            self.early_evals.push_back(eval.clone());
            return;
        };
        if let Some(s) = self.stops.get_mut(&key).filter(|s| s.eval.as_ref() == Some(eval)) {
            s.eval_done = true;
        }
        self.check_ready(&key, fx);
    }

    /// The operation is finished; what was kept for its report can go.
    pub fn stop_closed(&mut self, op: OpId, key: &JobKey, now: Timestamp, fx: &mut Vec<Effect>) {
        if self.stops.get(key).is_none_or(|s| s.op != op) {
            return;
        }
        if let Some(eval) = self.stops.remove(key).and_then(|s| s.eval) {
            self.evals.remove(&eval);
        }
        self.settle_job(key, now, fx);
    }

    pub fn stop_report(&self, op: OpId, key: &JobKey, now: Timestamp) -> Option<StopReport> {
        let stop = self.stops.get(key).filter(|s| s.op == op)?;
        let mut report = StopReport { eval_done: stop.eval_done, gap: stop.gap, ..StopReport::default() };
        let (mut live, mut nodes) = (0usize, BTreeSet::new());
        for id in self.by_job.get(key).into_iter().flatten() {
            let Some(t) = self.allocs.get(id).filter(|t| self.covered(stop, t)) else { continue };
            let Some(alloc) = &t.alloc else {
                report.open.push(id.clone());
                continue;
            };
            if !self.over(t, now) {
                report.open.push(id.clone());
            }
            live += alloc.tasks.values().filter(|t| t.lives()).count();
            let failing = t.records.iter().filter(|r| r.ended_at.is_none());
            for r in failing {
                report.deadline = report.deadline.max(Some(r.due));
                if let Some(e) = &r.last_error {
                    nodes.insert(format!("node {} ({e})", r.node_name));
                }
            }
            if !t.unreachable.is_empty() {
                nodes.insert(format!(
                    "node {} to come back (allocation {} is {})",
                    alloc.node_name,
                    id.short(),
                    alloc.client_status.as_str()
                ));
            }
            // What an earlier cause had ended is not this stop's doing.
            let records: Vec<_> = t.records.iter().filter(|r| r.operation == Some(stop.op)).cloned().collect();
            report.allocations.push(outcome::of_allocation(
                alloc,
                t.spec.as_deref(),
                &stop.demands,
                None,
                &records,
                &self.graces,
            ));
            if let Some((cut, node)) = self.cut_kill_timeout(alloc) {
                report.warnings.push(format!(
                    "node {node} cut kill_timeout to {}: its max_kill_timeout is lower than {}, so Nomad itself sends SIGKILL then",
                    curfew_core::duration::format(cut),
                    curfew_core::duration::format(self.kill_timeout)
                ));
            }
        }
        report.allocations.sort_by(|a, b| a.id.cmp(&b.id));
        report.warnings.sort();
        report.warnings.dedup();
        let tasks = |n: usize| if n == 1 { "1 task".to_owned() } else { format!("{n} tasks") };
        report.waiting_for = if !nodes.is_empty() {
            let nodes: Vec<_> = nodes.into_iter().take(5).collect();
            Some(format!("{}; {} may live there", nodes.join(", "), tasks(live)))
        } else if live > 0 {
            let left = report.deadline.map_or(String::new(), |d| format!(", SIGKILL at {d}"));
            Some(format!("{} to end{left}", tasks(live)))
        } else if !report.open.is_empty() {
            Some("Nomad to report the end of its allocations".into())
        } else if !stop.eval_done {
            Some("Nomad to tell the job's allocations".into())
        } else {
            None
        };
        Some(report)
    }

    fn covered(&self, stop: &Stop, t: &Tracked) -> bool {
        match (&t.spec, &t.alloc) {
            (Some(spec), _) => stop.covers(spec),
            (None, Some(alloc)) => stop.delete_index.is_none_or(|i| alloc.create_index < i),
            (None, None) => t.records.iter().any(|r| r.operation == Some(stop.op)),
        }
    }

    pub(super) fn over(&self, t: &Tracked, now: Timestamp) -> bool {
        let Some(alloc) = &t.alloc else { return false };
        is_over(alloc, t.spec.as_ref().and_then(|s| s.groups.get(&alloc.group)), now, &self.graces)
    }

    fn settle_job(&mut self, key: &JobKey, now: Timestamp, fx: &mut Vec<Effect>) {
        let ids: Vec<AllocId> = self.by_job.get(key).into_iter().flatten().cloned().collect();
        for id in ids {
            self.settle(&id, now, fx);
        }
        self.check_ready(key, fx);
    }

    /// Derives one allocation's clocks anew, writes down what changed, and sets the next look.
    pub(super) fn settle(&mut self, id: &AllocId, now: Timestamp, fx: &mut Vec<Effect>) {
        let Some(t) = self.allocs.get_mut(id) else { return };
        let Some(alloc) = &t.alloc else { return };
        let key = alloc.job_key();
        let Some(spec) = t.spec.clone() else {
            if !t.busy {
                t.busy = true;
                fx.push(Effect::Read { id: id.clone(), full: true });
            }
            return;
        };
        let stop = self.stops.get(&key).filter(|s| s.covers(&spec));
        let (demands, late): (&[Demand], _) = stop.map_or((&[], Duration::ZERO), |s| (&s.demands, s.late));
        let node = alloc.node.clone();
        let drain = match self.drains.of(alloc) {
            Known::Is(drain) => drain,
            Known::Not => {
                if self.drains.ask(&node) {
                    fx.push(Effect::ReadNode(node));
                }
                return;
            }
        };
        let derived =
            derive(alloc, &Context { spec: &spec, demands, late, drain, graces: &self.graces, memory: &t.records, now });
        let by_drain = self.drains.live(&node).filter(|d| d.drain.covers(&spec));
        let op = stop.map(|s| s.op).or(by_drain.map(|d| d.op));
        note_clocks(&self.actor, alloc, &key, op, t.records.as_mut(), &derived, now, fx);
        if op.is_none() {
            t.records.retain(|r| {
                if r.ended_at.is_some() {
                    fx.push(Effect::Forget(r.key.clone()));
                }
                r.ended_at.is_none()
            });
        }
        t.unreachable = derived.unreachable;
        let next_try = t.next_try.unwrap_or_default();
        t.shared = derived.clocks.iter().all(|c| !c.cause().may_pass());
        let open = derived.clocks.iter().filter(|c| !t.unsupported.contains(c.key()));
        let due = open.map(|c| (c.due() - lead_of(self.read_lead, c.cause())).max(next_try)).min();
        let wake = [due, derived.recheck_at].into_iter().flatten().min();
        let over = is_over(alloc, spec.groups.get(&alloc.group), now, &self.graces);
        // An allocation that a client will end without a clock of ours (not started, poststop to come) is still followed for its stop.
        let idle = derived.clocks.is_empty() && derived.recheck_at.is_none() && t.unreachable.is_empty() && t.records.is_empty();
        if (over || idle) && op.is_none() && !t.busy {
            self.untrack(id, &key);
            return;
        }
        self.set_wake(id, wake);
        self.check_ready(&key, fx);
        self.check_node(&node, now, fx);
    }

    /// Gives out the order for clocks that are due within the lead of a read just made.
    fn fire(&mut self, id: &AllocId, now: Timestamp, fx: &mut Vec<Effect>) {
        let Some(t) = self.allocs.get(id) else { return };
        let (Some(alloc), Some(spec)) = (&t.alloc, &t.spec) else { return };
        if t.busy || t.next_try.is_some_and(|at| at > now + self.gather(t.shared)) {
            return;
        }
        let stop = self.stops.get(&alloc.job_key()).filter(|s| s.covers(spec));
        let (demands, late): (&[Demand], _) = stop.map_or((&[], Duration::ZERO), |s| (&s.demands, s.late));
        let Known::Is(drain) = self.drains.of(alloc) else { return };
        let derived = derive(alloc, &Context { spec, demands, late, drain, graces: &self.graces, memory: &t.records, now });
        let due: Vec<KillClock> = derived.clocks.into_iter().filter(|c| c.due() <= self.reach(c.cause(), now)).collect();
        let Some(t) = self.allocs.get_mut(id) else { return };
        let clocks: Vec<KillClock> = due.into_iter().filter(|c| !t.unsupported.contains(c.key())).collect();
        let Some(alloc) = t.alloc.as_ref().filter(|_| !clocks.is_empty()) else { return };
        for c in &clocks {
            let Some(r) = t.records.iter_mut().find(|r| r.key == *c.key()) else { continue };
            r.attempts += 1;
            r.last_attempt_at = Some(now);
            let detail = json!({
                "attempt": r.attempts, "cause": r.cause, "told_at": r.start, "clock": r.due, "job": r.job.job, "node": r.node_name,
            });
            fx.push(Effect::Persist(r.clone()));
            fx.push(Effect::Audit(entry(&self.actor, now, r, Action::SigkillSending, detail)));
        }
        t.busy = true;
        fx.push(Effect::Kill { alloc: id.clone(), node: alloc.node.clone(), clocks });
    }

    fn gone(&mut self, id: &AllocId, why: &str, now: Timestamp, fx: &mut Vec<Effect>) {
        let Some(t) = self.allocs.remove(id) else { return };
        if let Some(at) = t.wake {
            self.wakes.remove(&(at, id.clone()));
        }
        let mut keys: HashSet<JobKey> = t.alloc.iter().map(|a| a.job_key()).collect();
        let nodes: HashSet<NodeId> = t.alloc.iter().map(|a| &a.node).chain(t.records.iter().map(|r| &r.node)).cloned().collect();
        for r in t.records {
            fx.push(Effect::Audit(entry(&self.actor, now, &r, Action::ClockEnded, json!({ "why": why }))));
            fx.push(Effect::Forget(r.key));
            keys.insert(r.job);
        }
        for key in keys {
            self.unlink(id, &key);
            self.check_ready(&key, fx);
        }
        for node in nodes {
            self.unlink_node(id, &node);
            self.check_node(&node, now, fx);
        }
    }

    fn untrack(&mut self, id: &AllocId, key: &JobKey) {
        let Some(t) = self.allocs.remove(id) else { return };
        if let Some(at) = t.wake {
            self.wakes.remove(&(at, id.clone()));
        }
        self.unlink(id, key);
        if let Some(alloc) = t.alloc {
            self.unlink_node(id, &alloc.node);
        }
    }

    fn unlink_node(&mut self, id: &AllocId, node: &NodeId) {
        if let Some(ids) = self.by_node.get_mut(node) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_node.remove(node);
            }
        }
    }

    fn unlink(&mut self, id: &AllocId, key: &JobKey) {
        if let Some(ids) = self.by_job.get_mut(key) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_job.remove(key);
            }
        }
    }

    pub(super) fn set_wake(&mut self, id: &AllocId, wake: Option<Timestamp>) {
        let Some(t) = self.allocs.get_mut(id) else { return };
        if t.wake == wake {
            return;
        }
        if let Some(old) = std::mem::replace(&mut t.wake, wake) {
            self.wakes.remove(&(old, id.clone()));
        }
        if let Some(at) = wake {
            self.wakes.insert((at, id.clone()));
        }
    }

    fn check_ready(&mut self, key: &JobKey, fx: &mut Vec<Effect>) {
        let Some(stop) = self.stops.get(key) else { return };
        let open = |id: &AllocId| {
            self.allocs.get(id).is_some_and(|t| self.covered(stop, t) && t.alloc.as_ref().is_none_or(|_| !self.over(t, t.seen)))
        };
        let ready = stop.eval_done && stop.delete_index.is_some() && !self.by_job.get(key).into_iter().flatten().any(open);
        if ready && !stop.ready {
            fx.push(Effect::Nudge(stop.op));
        }
        if let Some(stop) = self.stops.get_mut(key) {
            stop.ready = ready;
        }
    }

    fn cut_kill_timeout(&self, alloc: &Allocation) -> Option<(Duration, String)> {
        let spec = self.allocs.get(&alloc.id)?.spec.as_ref().filter(|s| s.managed)?;
        alloc.tasks.iter().find_map(|(name, task)| {
            let in_force = task.last(EventKind::Killing)?.kill_timeout?;
            let asked = spec.task(&alloc.group, name)?.kill_timeout;
            (in_force < asked).then(|| (in_force, alloc.node_name.clone()))
        })
    }

    fn warn_of_cut_kill_timeout(&mut self, alloc: &Allocation) {
        if let Some((cut, node)) = self.cut_kill_timeout(alloc)
            && self.warned_nodes.insert(alloc.node.clone())
        {
            tracing::warn!(node, in_force = %curfew_core::duration::format(cut), "this node cut kill_timeout: raise max_kill_timeout in its client configuration");
        }
    }
}

/// Anything that can be a sign of being told to end, beside Nomad wanting it stopped.
fn has_sign(alloc: &Allocation) -> bool {
    let sign = |k| matches!(k, EventKind::Killing | EventKind::RestartSignaled | EventKind::Terminated);
    alloc.tasks.values().any(|t| t.events.iter().any(|e| sign(e.kind)))
}

/// How long before a clock its last read is asked for. Where the task may yet live on in health, as late as the answer allows;
/// where it cannot, early enough that many clocks share one read.
fn lead_of(read_lead: Duration, cause: Cause) -> Duration {
    if cause.may_pass() { read_lead } else { read_lead * 10 }
}

fn retry_after(attempts: u32) -> Duration {
    Duration::from_secs(2 << attempts.clamp(1, 3)).min(Duration::from_secs(15))
}

fn entry(actor: &str, now: Timestamp, r: &ClockRecord, action: Action, detail: serde_json::Value) -> AuditEntry {
    let (alloc, task) = (Some(r.key.alloc.clone()), Some(r.key.task.clone()));
    AuditEntry { at: now, operation: r.operation, actor: actor.to_owned(), action, alloc, task, detail }
}

/// Brings the written records in line with the derived clocks.
#[expect(clippy::too_many_arguments, reason = "one allocation's whole context; a struct for one caller would say less")]
fn note_clocks(
    actor: &str,
    alloc: &Allocation,
    job: &JobKey,
    op: Option<OpId>,
    records: &mut Vec<ClockRecord>,
    derived: &Derived,
    now: Timestamp,
    fx: &mut Vec<Effect>,
) {
    for c in &derived.clocks {
        match records.iter_mut().find(|r| r.key == *c.key()) {
            None => {
                let r = ClockRecord {
                    key: c.key().clone(),
                    job: job.clone(),
                    node: alloc.node.clone(),
                    node_name: alloc.node_name.clone(),
                    operation: op,
                    cause: c.cause(),
                    start: c.start(),
                    basis: c.basis(),
                    seen_at: c.seen_at(),
                    unreachable_at: None,
                    due: c.due(),
                    attempts: 0,
                    last_attempt_at: None,
                    last_error: None,
                    signalled_at: None,
                    ended_at: None,
                };
                let detail = json!({
                    "cause": r.cause, "told_at": r.start, "basis": r.basis, "clock": r.due, "job": r.job.job, "node": r.node_name,
                });
                fx.push(Effect::Audit(entry(actor, now, &r, Action::ClockArmed, detail)));
                fx.push(Effect::Persist(r.clone()));
                records.push(r);
            }
            Some(r) => {
                // What was sent was sent by the clock as it was then.
                if r.signalled_at.is_some() && r.ended_at.is_none() && r.operation == op {
                    continue;
                }
                let moved = r.due != c.due();
                if !moved
                    && r.start == c.start()
                    && r.cause == c.cause()
                    && r.basis == c.basis()
                    && r.operation == op
                    && r.ended_at.is_none()
                {
                    continue;
                }
                // That the event shows a moment after the stop does not make news.
                let news = moved && !(r.basis == Basis::Seen && c.due().seconds_after(r.due).abs() < 2.0);
                if news {
                    let detail = json!({ "from": r.due, "to": c.due(), "cause": c.cause(), "basis": c.basis() });
                    fx.push(Effect::Audit(entry(actor, now, r, Action::ClockMoved, detail)));
                }
                (r.start, r.basis, r.cause, r.due, r.operation, r.ended_at) =
                    (c.start(), c.basis(), c.cause(), c.due(), op.or(r.operation), None);
                fx.push(Effect::Persist(r.clone()));
            }
        }
    }
    for r in records.iter_mut().filter(|r| r.ended_at.is_none() && !derived.clocks.iter().any(|c| *c.key() == r.key)) {
        if derived.unreachable.contains(&r.key.task) {
            // Its node went away before it was told: the clock starts when it is seen again.
            r.unreachable_at = Some(now);
            fx.push(Effect::Persist(r.clone()));
            continue;
        }
        r.ended_at = Some(now);
        let task = alloc.tasks.get(&r.key.task);
        let why = match task {
            Some(t) if t.incarnation() != Some(r.key.incarnation) => "restarted",
            Some(t) if t.lives() && t.last_at(EventKind::Terminated) < t.running_since() => "not told to end any more",
            _ => "ended",
        };
        let end = task.and_then(|t| t.last(EventKind::Terminated));
        let detail = json!({ "why": why, "ended_at": end.map(|e| e.at), "exit_code": end.map(|e| e.exit_code), "signal": end.map(|e| e.signal) });
        fx.push(Effect::Audit(entry(actor, now, r, Action::ClockEnded, detail)));
        fx.push(Effect::Persist(r.clone()));
    }
}

/// For the log: what a cause is called.
pub fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Stopped => "wanted stopped",
        Cause::Killing => "killing",
        Cause::Restart => "restart signaled",
        Cause::SiblingEnded => "a sibling ended for good",
        Cause::Poststop => "poststop of a stopped allocation",
    }
}

#[cfg(test)]
mod tests;
