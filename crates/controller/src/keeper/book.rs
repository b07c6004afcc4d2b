//! The picture of everything that was told to end: what was last seen, which clocks run, what is to be done about it now.
//!
//! No I/O and no waiting: every method takes what happened and gives back [`Effect`]s. The same input twice changes nothing the
//! second time, so an event may come late, double, or only through the next resync.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use curfew_core::audit::{Action, AuditEntry};
use curfew_core::clock::{Basis, Cause, ClockKey, ClockRecord, Context, Derived, Graces, KillClock, derive, is_over};
use curfew_core::operation::{By, Demand};
use curfew_core::spec::JobSpec;
use curfew_core::{AllocId, Allocation, Desired, EvalId, EventKind, JobKey, Namespace, NodeId, OpId, Timestamp};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::drains::{Drains, Known};
use super::index::Index;
use super::shelf::{Shelf, Tracked};
use super::specs::Specs;
use super::stops::Stop;

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
        clocks: Vec<Shot>,
    },
    /// Read this node and hand it to [`Book::node_read`].
    ReadNode(NodeId),
    /// Something changed that this operation waits for.
    Nudge(OpId),
    /// The first SIGKILL of a clock was taken so long after its instant.
    Late(Duration),
}

/// A SIGKILL to be sent at its clock's instant, unless it is called off before: somebody moved the clock.
#[derive(Debug)]
pub struct Shot {
    pub clock: KillClock,
    /// Whose clock it is, where an operation asked for it.
    pub operation: Option<OpId>,
    pub off: CancellationToken,
}

/// What the keeper may do now.
#[derive(Clone, Debug, Default)]
pub struct Leave {
    /// SIGKILL may be sent, under this epoch of the duty.
    pub epoch: Option<u64>,
    /// Who paused `kill`.
    pub paused: Option<Arc<By>>,
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
    /// Not sent: the clock was moved, or the leave to kill was gone at the last moment.
    Withheld(String),
    /// Anything else, to be tried again.
    Failed(String),
}

impl Answer {
    pub const NAMES: [&str; 8] = ["sent", "unreachable", "not_running", "gone", "unsupported", "stale", "withheld", "failed"];

    /// In a word, as metrics name it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Answer::Sent => "sent",
            Answer::Unreachable(_) => "unreachable",
            Answer::NotRunning(_) => "not_running",
            Answer::Gone(_) => "gone",
            Answer::Unsupported(_) => "unsupported",
            Answer::Stale => "stale",
            Answer::Withheld(_) => "withheld",
            Answer::Failed(_) => "failed",
        }
    }
}

/// Whose clocks somebody wants to see.
pub enum Whose {
    Job(JobKey),
    Each(Box<dyn Fn(&JobKey) -> bool + Send + Sync>),
}

impl Whose {
    pub fn has(&self, job: &JobKey) -> bool {
        match self {
            Whose::Job(key) => key == job,
            Whose::Each(wanted) => wanted(job),
        }
    }
}

/// How much of what there is at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Clocks that run, with those whose tasks have not been seen dead yet.
    pub clocks: usize,
    /// Of them those whose instant has come.
    pub overdue: usize,
    pub most_overdue: Duration,
    /// Nodes out of reach that hold clocks, or tasks that were not told.
    pub nodes_away: usize,
    /// Stops that have not finished.
    pub stops: usize,
    /// Nodes whose drain has started.
    pub draining_nodes: usize,
    /// Covered allocations that have not left them.
    pub drain_left: usize,
}

pub struct Book {
    pub(super) graces: Graces,
    read_lead: Duration,
    pub(super) kill_timeout: Duration,
    actor: String,
    pub specs: Specs,
    pub(super) allocs: Shelf,
    /// Each with its live stop.
    pub(super) jobs: Index<JobKey, Stop>,
    pub(super) by_node: Index<NodeId>,
    /// One of each, for all keys of jobs.
    namespaces: HashSet<Namespace>,
    pub(super) drains: Drains,
    pub(super) evals: HashMap<EvalId, JobKey>,
    /// Evaluations that were complete before their DELETE's answer was handled; the newest of them.
    pub(super) early_evals: VecDeque<EvalId>,
    wakes: BTreeSet<(Timestamp, AllocId)>,
    pub(super) leave: Leave,
    /// Due, while there is no leave to kill.
    parked: HashSet<AllocId>,
    warned_nodes: HashSet<NodeId>,
}

impl Book {
    pub fn new(config: &curfew_core::config::Config, actor: String) -> Self {
        Self {
            graces: config.graces(),
            read_lead: config.read_lead,
            kill_timeout: config.kill_timeout,
            actor,
            specs: Specs::new(config.spec_cache),
            allocs: Shelf::default(),
            jobs: Index::default(),
            by_node: Index::default(),
            namespaces: HashSet::new(),
            drains: Drains::default(),
            evals: HashMap::new(),
            early_evals: VecDeque::new(),
            wakes: BTreeSet::new(),
            leave: Leave::default(),
            parked: HashSet::new(),
            warned_nodes: HashSet::new(),
        }
    }

    /// The next one takes over. The job specifications are all that one controller knows when it takes up the duty.
    pub fn give_way(&mut self, next: Self) {
        let specs = std::mem::replace(&mut self.specs, Specs::new(0));
        *self = Self { specs, ..next };
    }

    /// Whether SIGKILL may be sent from here on. What came due without leave goes out, each after a fresh read.
    pub fn set_leave(&mut self, leave: Leave, now: Timestamp) {
        self.leave = leave;
        if self.leave.epoch.is_some() {
            for id in std::mem::take(&mut self.parked) {
                self.set_wake(&id, Some(now));
            }
        }
    }

    /// The earliest instant at which [`Book::tick`] has something to do.
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// Counts what there is.
    pub fn census(&self, now: Timestamp) -> Census {
        let (nodes, left) = self.drains.left();
        let mut census =
            Census { stops: self.jobs.values().count(), draining_nodes: nodes, drain_left: left, ..Census::default() };
        let mut away = HashSet::new();
        for (id, glance) in self.allocs.glances() {
            census.clocks += glance.armed as usize;
            let overdue = glance.due <= now;
            let Some(t) = self.allocs.get(id).filter(|_| overdue || glance.away) else { continue };
            for r in t.armed().filter(|r| r.due <= now) {
                census.overdue += 1;
                census.most_overdue = census.most_overdue.max(now.since(r.due));
            }
            away.extend(t.node_away().cloned());
        }
        census.nodes_away = away.len();
        census
    }

    /// The earliest clocks that are armed, at most so many, and how many there are. Only these are
    /// unpacked: a hundred thousand would hold up the loop that keeps them.
    pub fn clocks(&self, whose: &Whose, most: usize) -> (Vec<ClockRecord>, usize) {
        let mut armed = 0;
        let mut found: Vec<(Timestamp, &AllocId)> = vec![];
        let ids: &mut dyn Iterator<Item = &AllocId> = match whose {
            Whose::Job(key) => &mut self.jobs.of(key),
            Whose::Each(wanted) => &mut self.jobs.iter().filter(|(key, _)| wanted(key)).map(|(_, id)| id),
        };
        for id in ids {
            let Some(glance) = self.allocs.glance(id) else { continue };
            // The clock of a task that was never told, its node being away, is in no glance.
            let away = glance.away.then(|| self.allocs.get(id)).flatten();
            let (count, due) = match away.as_ref().map(|t| (t.open_records().count(), t.open_records().map(|r| r.due).min())) {
                Some((count, due)) => (count, due.unwrap_or(Timestamp::LATEST)),
                None => (glance.armed as usize, glance.due),
            };
            if count > 0 {
                armed += count;
                found.push((due, id));
            }
        }
        found.sort_unstable();
        found.truncate(most);
        let views = found.into_iter().filter_map(|(_, id)| self.allocs.get(id));
        let clocks = views.flat_map(|t| t.open_records().cloned().collect::<Vec<_>>()).collect();
        (earliest(clocks, most), armed)
    }

    /// What was written down before a restart. Each clock keeps its instant.
    pub fn restore(&mut self, records: Vec<ClockRecord>, now: Timestamp) {
        for r in records {
            let id = self.track(&r.key.alloc, &r.job, &r.node);
            let Some(t) = self.allocs.get_mut(&id) else { continue };
            let mut wake = t.wake;
            if r.ended_at.is_none() {
                let at = r.last_attempt_at.map_or(r.due, |l| r.due.max(l + retry_after(r.attempts)));
                let at = at - lead_of(self.read_lead, r.cause);
                wake = Some(wake.map_or(at, |w| w.min(at)));
            }
            t.shared = !r.cause.may_pass();
            t.records.push(r);
            self.set_wake(&id, wake);
            self.allocs.rest(&id, now);
        }
    }

    /// Begins to track it, when it is not yet. Returns its id as it is kept.
    fn track(&mut self, id: &AllocId, job: &JobKey, node: &NodeId) -> AllocId {
        self.allocs.add(id);
        let id = self.allocs.id(id).unwrap_or(id).clone();
        let job = self.kept(job);
        self.jobs.insert(&job, &id);
        self.by_node.insert(node, &id);
        id
    }

    /// The key of a job as it is kept: one of each name, wherever that is.
    pub(super) fn kept(&mut self, job: &JobKey) -> JobKey {
        if let Some(kept) = self.jobs.key(job) {
            return kept.clone();
        }
        let namespace = self.namespaces.get(&job.namespace).unwrap_or(&job.namespace).clone();
        self.namespaces.insert(namespace.clone());
        JobKey { namespace, job: job.job.clone() }
    }

    /// An allocation as Nomad shows it.
    pub fn observe(&mut self, alloc: Allocation, now: Timestamp, fx: &mut Vec<Effect>) {
        let key = alloc.job_key();
        match self.allocs.get_mut(&alloc.id) {
            Some(t) => {
                // Events and lists come by different ways; the newer one has been here already.
                if t.alloc.as_ref().is_some_and(|a| a.modify_index > alloc.modify_index) {
                    self.rest(&alloc.id, now);
                    return;
                }
            }
            None => {
                let stopped = alloc.desired != Desired::Run;
                let worth = if alloc.any_task_lives() || alloc.may_still_start() {
                    stopped || has_sign(&alloc) || self.drains.live(&alloc.node).is_some()
                } else {
                    // Over before it was ever seen told: part of a stop's report.
                    stopped && self.jobs.get(&key).is_some_and(|s| s.delete_index.is_none_or(|i| alloc.create_index < i))
                };
                if !worth {
                    return;
                }
            }
        }
        self.warn_of_cut_kill_timeout(&alloc);
        let id = self.track(&alloc.id, &key, &alloc.node);
        let Some(t) = self.allocs.get_mut(&id) else { return };
        t.seen = now;
        if let Some(spec) = self.specs.of(&alloc) {
            t.spec = Some(Arc::new(spec));
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
            self.specs.insert(&alloc.job_key(), &spec);
            t.spec = Some(Arc::new(spec));
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
            let unknown = t.alloc.is_none() || t.spec.is_none();
            let due = t.records.iter().any(near);
            let Some(t) = self.allocs.get_mut(&id) else { continue };
            t.wake = None;
            if t.busy {
                continue;
            }
            if due && !unknown && self.leave.epoch.is_none() {
                self.parked.insert(id);
                continue;
            }
            if unknown || due {
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
        t.shots.clear();
        let mut gone = None;
        for (key, sent_at, answer) in answers {
            let Some(r) = t.records.iter_mut().find(|r| r.key == key) else { continue };
            let (action, error) = match &answer {
                Answer::Stale => {
                    // Paced: where Nomad or a client is slow, reading on and on would make it slower.
                    t.next_try = Some(now + Duration::from_millis(250));
                    continue;
                }
                Answer::Withheld(why) => {
                    t.next_try = None;
                    let detail = json!({ "attempt": r.attempts, "error": format!("not sent: {why}") });
                    fx.push(Effect::Audit(entry(&self.actor, now, r, Action::SigkillFailed, detail)));
                    continue;
                }
                Answer::Sent => {
                    if r.signalled_at.is_none() {
                        fx.push(Effect::Late(sent_at.since(r.due)));
                    }
                    r.signalled_at.get_or_insert(sent_at);
                    (Action::SigkillSent, None)
                }
                Answer::Unreachable(e) => {
                    r.unreachable_at = Some(now);
                    (Action::SigkillFailed, Some(e))
                }
                Answer::Unsupported(e) => {
                    if !t.unsupported.contains(&key) {
                        t.unsupported.push(key.clone());
                    }
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
        let waiting = |t: &Tracked| {
            !t.busy && t.records.iter().any(|r| r.node == *node && r.ended_at.is_none() && r.unreachable_at.is_some())
        };
        let ids: Vec<AllocId> =
            self.by_node.of(node).filter(|id| self.allocs.get(id).is_some_and(|t| waiting(&t))).cloned().collect();
        for id in ids {
            if let Some(t) = self.allocs.get_mut(&id) {
                t.next_try = None;
                let due = t.records.iter().filter(|r| r.ended_at.is_none()).map(|r| r.due).min();
                self.set_wake(&id, due.map(|d| d.max(now)));
                self.rest(&id, now);
            }
        }
    }

    /// A resync that began at `began` has listed everything that was told to end. What it did not name ended unseen.
    pub fn resynced(&mut self, began: Timestamp, fx: &mut Vec<Effect>) {
        let unseen = self.allocs.glances().filter(|(_, g)| g.seen < began && !g.busy && g.open);
        let unseen: Vec<AllocId> = unseen.map(|(id, _)| id.clone()).collect();
        for id in unseen {
            if let Some(t) = self.allocs.get_mut(&id) {
                t.busy = true;
                fx.push(Effect::Read { full: t.spec.is_none(), id });
            }
        }
    }

    /// Events were lost.
    pub fn gap(&mut self) {
        self.specs.clear();
        self.drains.forget_told_of();
        for s in self.jobs.values_mut() {
            s.gap = true;
        }
    }

    pub(super) fn over(&self, t: &Tracked, now: Timestamp) -> bool {
        let Some(alloc) = &t.alloc else { return false };
        is_over(alloc, t.spec.as_ref().and_then(|s| s.groups.get(&alloc.group)), now, &self.graces)
    }

    pub(super) fn settle_job(&mut self, key: &JobKey, now: Timestamp, fx: &mut Vec<Effect>) {
        let ids: Vec<AllocId> = self.jobs.of(key).cloned().collect();
        for id in ids {
            self.settle(&id, now, fx);
        }
        self.check_ready(key, fx);
    }

    /// Derives one allocation's clocks anew, writes down what changed, and sets the next look.
    pub(super) fn settle(&mut self, id: &AllocId, now: Timestamp, fx: &mut Vec<Effect>) {
        if self.allocs.is_unread(id) {
            return;
        }
        let Some(t) = self.allocs.get_mut(id) else { return };
        let Some(alloc) = &t.alloc else {
            self.rest(id, now);
            return;
        };
        let key = alloc.job_key();
        let Some(spec) = t.spec.clone() else {
            if !t.busy {
                t.busy = true;
                fx.push(Effect::Read { id: id.clone(), full: true });
            }
            return;
        };
        let stop = self.jobs.get(&key).filter(|s| s.covers(&spec));
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
        for (key, due, off) in &t.shots {
            if derived.clocks.iter().find(|c| c.key() == key).is_none_or(|c| c.due() > *due) {
                off.cancel();
            }
        }
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
        self.rest(id, now);
    }

    /// It is looked at no more for now. What a live drain counts again and again stays at hand.
    fn rest(&mut self, id: &AllocId, now: Timestamp) {
        let drains = |a: &Allocation| self.drains.live(&a.node).is_some();
        if self.allocs.get(id).is_some_and(|t| !t.alloc.as_ref().is_some_and(drains)) {
            self.allocs.rest(id, now);
        }
    }

    /// Gives out the order for clocks that are due within the lead of a read just made.
    fn fire(&mut self, id: &AllocId, now: Timestamp, fx: &mut Vec<Effect>) {
        let Some(t) = self.allocs.get(id) else { return };
        let (Some(alloc), Some(spec)) = (&t.alloc, &t.spec) else { return };
        let Some(epoch) = self.leave.epoch else { return };
        if t.busy || t.next_try.is_some_and(|at| at > now + self.gather(t.shared)) {
            return;
        }
        let stop = self.jobs.get(&alloc.job_key()).filter(|s| s.covers(spec));
        let (demands, late): (&[Demand], _) = stop.map_or((&[], Duration::ZERO), |s| (&s.demands, s.late));
        let Known::Is(drain) = self.drains.of(alloc) else { return };
        let derived = derive(alloc, &Context { spec, demands, late, drain, graces: &self.graces, memory: &t.records, now });
        let due = |c: &KillClock| c.due() <= self.reach(c.cause(), now) && !t.unsupported.contains(c.key());
        let clocks: Vec<KillClock> = derived.clocks.into_iter().filter(due).collect();
        if clocks.is_empty() {
            return;
        }
        let node = alloc.node.clone();
        drop(t);
        let Some(t) = self.allocs.get_mut(id) else { return };
        for c in &clocks {
            let Some(r) = t.records.iter_mut().find(|r| r.key == *c.key()) else { continue };
            r.attempts += 1;
            r.last_attempt_at = Some(now);
            let detail = json!({
                "attempt": r.attempts, "cause": r.cause, "told_at": r.start, "clock": r.due, "job": r.job.job, "node": r.node_name,
                "duty": epoch,
            });
            fx.push(Effect::Persist(r.clone()));
            fx.push(Effect::Audit(entry(&self.actor, now, r, Action::SigkillSending, detail)));
        }
        t.busy = true;
        let whose = |key: &ClockKey| t.records.iter().find(|r| r.key == *key).and_then(|r| r.operation);
        let shot = |clock: KillClock| Shot { operation: whose(clock.key()), clock, off: CancellationToken::new() };
        let clocks: Vec<Shot> = clocks.into_iter().map(shot).collect();
        t.shots = clocks.iter().map(|s| (s.clock.key().clone(), s.clock.due(), s.off.clone())).collect();
        fx.push(Effect::Kill { alloc: id.clone(), node, clocks });
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
            self.jobs.remove(&key, id);
            self.check_ready(&key, fx);
        }
        for node in nodes {
            self.by_node.remove(&node, id);
            self.check_node(&node, now, fx);
        }
    }

    fn untrack(&mut self, id: &AllocId, key: &JobKey) {
        let Some(t) = self.allocs.remove(id) else { return };
        if let Some(at) = t.wake {
            self.wakes.remove(&(at, id.clone()));
        }
        self.jobs.remove(key, id);
        if let Some(alloc) = t.alloc {
            self.by_node.remove(&alloc.node, id);
        }
    }

    pub(super) fn set_wake(&mut self, id: &AllocId, wake: Option<Timestamp>) {
        let Some(t) = self.allocs.get_mut(id) else { return };
        if t.wake == wake {
            return;
        }
        let old = std::mem::replace(&mut t.wake, wake);
        let id = self.allocs.id(id).unwrap_or(id).clone();
        if let Some(at) = wake {
            self.wakes.insert((at, id.clone()));
        }
        if let Some(at) = old {
            self.wakes.remove(&(at, id));
        }
    }

    pub(super) fn cut_kill_timeout(&self, alloc: &Allocation) -> Option<(Duration, String)> {
        let t = self.allocs.get(&alloc.id)?;
        let spec = t.spec.as_ref().filter(|s| s.managed)?;
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

/// The next one first, at most so many.
pub fn earliest(mut clocks: Vec<ClockRecord>, most: usize) -> Vec<ClockRecord> {
    clocks.sort_by(|a, b| (a.due, &a.key).cmp(&(b.due, &b.key)));
    clocks.truncate(most);
    clocks
}

/// Anything that can be a sign of being told to end, beside Nomad wanting it stopped.
pub(super) fn has_sign(alloc: &Allocation) -> bool {
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
                // A Vec would make room for four of the first.
                records.reserve_exact(1);
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
