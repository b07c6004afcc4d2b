//! The kill clock: the instant at which Curfew sends SIGKILL to a task that was told to end and still lives.
//!
//! The way to a SIGKILL is one of types: only [`derive()`] makes a [`KillClock`], and it makes one only for a live task that
//! Nomad shows as told to end; only a [`KillClock`] whose instant has come gives a [`KillOrder`]; and the one call that sends
//! SIGKILL takes a [`KillOrder`]. What is persisted ([`ClockRecord`]) is memory, never authority.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::operation::Demand;
use crate::spec::{GroupSpec, JobSpec, JobType, Role, TaskSpec};
use crate::{AllocId, Allocation, ClientStatus, Desired, EventKind, JobKey, NodeId, OpId, Task, TaskName, TaskState, Timestamp};

/// By what a task was told to end. The grace differs (see the table in docs/ARCHITECTURE.md), the proof differs too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
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

impl Cause {
    pub const ALL: [Cause; 5] = [Cause::Stopped, Cause::Killing, Cause::Restart, Cause::SiblingEnded, Cause::Poststop];

    /// Whether the task may yet live on in health: a restart makes a new, wanted incarnation, and an ended sibling may be
    /// started again after all. Nothing makes Nomad want a stopped allocation again, nor a task it is killing.
    pub fn may_pass(self) -> bool {
        matches!(self, Cause::Restart | Cause::SiblingEnded)
    }

    /// The name it is stored and shown by: the serde name.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Stopped => "stopped",
            Cause::Killing => "killing",
            Cause::Restart => "restart",
            Cause::SiblingEnded => "sibling_ended",
            Cause::Poststop => "poststop",
        }
    }
}

/// On what a clock's start rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// An event of the task, by the client's clock.
    Event,
    /// No event shows yet: the moment Curfew first saw it.
    Seen,
}

/// One task in one incarnation: a task that was restarted has another clock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct ClockKey {
    pub alloc: AllocId,
    pub task: TaskName,
    pub incarnation: Timestamp,
}

/// A clock as it is persisted: what cannot be read from Nomad again (when it was first seen, what was tried), and the rest for
/// people. It is memory, never authority: a SIGKILL needs a fresh read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
    /// When Nomad first took our SIGKILL for it.
    pub signalled_at: Option<Timestamp>,
    /// When Curfew saw that the task lives no more. Kept while the operation that asked for it is not finished.
    pub ended_at: Option<Timestamp>,
}

/// How long each cause leaves, where neither the request nor the task says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graces {
    /// `JOB_STOP_TIMEOUT`.
    pub job_stop_timeout: Duration,
    /// `POSTSTOP_TIMEOUT`.
    pub poststop_timeout: Duration,
    /// How long a task must stay ended before that counts as for good: a restart shows within a client's report interval.
    pub settle: Duration,
}

/// The Curfew drain of an allocation's node: a live one, or the one that its meta in Nomad tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeDrain {
    /// Without one nothing is killed because of the drain.
    pub deadline: Option<Timestamp>,
    /// What was told before was told by somebody else.
    pub started_at: Timestamp,
    pub only_managed: bool,
    pub ignore_system: bool,
}

impl NodeDrain {
    /// A client's clock may be behind: what it told just before the drain started was told by the drain.
    const SKEW: Duration = Duration::from_secs(5);

    /// Whether this job's allocations are to leave.
    pub fn covers(&self, job: &JobSpec) -> bool {
        (job.managed || !self.only_managed) && !(self.ignore_system && job.job_type == JobType::System)
    }

    /// Whether it was this drain that told the allocation, and not somebody else before.
    fn told(&self, alloc: &Allocation, at: Timestamp) -> bool {
        alloc.migrate && at + Self::SKEW >= self.started_at
    }
}

/// What [`derive()`] needs beside the allocation.
pub struct Context<'a> {
    /// The job as it was when the allocation was placed.
    pub spec: &'a JobSpec,
    /// The demands of a live stop that covers this allocation; empty when there is none.
    pub demands: &'a [Demand],
    /// How much later than asked for the stop reached Nomad (the controller was down, Nomad was). What was accepted is due by
    /// its request, not by when Curfew got round to it.
    pub late: Duration,
    /// The Curfew drain of its node.
    pub drain: Option<NodeDrain>,
    pub graces: &'a Graces,
    /// What was written down about this allocation's tasks before.
    pub memory: &'a [ClockRecord],
    pub now: Timestamp,
}

/// A live task that was told to end, and when its grace is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KillClock {
    key: ClockKey,
    cause: Cause,
    start: Timestamp,
    basis: Basis,
    seen_at: Timestamp,
    due: Timestamp,
}

impl KillClock {
    pub fn key(&self) -> &ClockKey {
        &self.key
    }
    pub fn cause(&self) -> Cause {
        self.cause
    }
    /// When it was told: its SIGTERM, as far as that shows.
    pub fn start(&self) -> Timestamp {
        self.start
    }
    pub fn basis(&self) -> Basis {
        self.basis
    }
    pub fn seen_at(&self) -> Timestamp {
        self.seen_at
    }
    pub fn due(&self) -> Timestamp {
        self.due
    }
    /// Consumed by the one call that sends SIGKILL; nothing before its instant.
    pub fn order(&self, now: Timestamp) -> Option<KillOrder> {
        (now >= self.due).then(|| KillOrder { key: self.key.clone() })
    }
}

/// Leave to send SIGKILL to one task, once.
#[derive(Debug, PartialEq, Eq)]
pub struct KillOrder {
    key: ClockKey,
}

impl KillOrder {
    pub fn alloc(&self) -> &AllocId {
        &self.key.alloc
    }
    pub fn task(&self) -> &TaskName {
        &self.key.task
    }
    /// Which start of the task it is about.
    pub fn incarnation(&self) -> Timestamp {
        self.key.incarnation
    }
}

/// What an allocation gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Derived {
    pub clocks: Vec<KillClock>,
    /// Told to end perhaps: look again then (a task ended and might yet be restarted).
    pub recheck_at: Option<Timestamp>,
    /// Wanted stopped, but on a node that is down or disconnected and was never told: its clock starts when it is back.
    pub unreachable: Vec<TaskName>,
    /// Live tasks that the job's specification does not know: nothing is decided about them.
    pub unknown: Vec<TaskName>,
}

/// The clocks of an allocation: one for each live task that was told to end.
///
/// Empty for a job that Curfew neither manages nor was asked to stop, unless it drains its node.
pub fn derive(alloc: &Allocation, cx: &Context<'_>) -> Derived {
    let mut out = Derived::default();
    let drain = cx.drain.filter(|d| alloc.desired != Desired::Run && d.covers(cx.spec));
    if !cx.spec.managed && cx.demands.is_empty() && drain.is_none() {
        return out;
    }
    let Some(group) = cx.spec.groups.get(&alloc.group) else {
        out.unknown = alloc.tasks.iter().filter(|(_, t)| t.lives()).map(|(n, _)| n.clone()).collect();
        return out;
    };
    let told_by_sibling = if alloc.desired == Desired::Run { sibling_ended(alloc, group, cx.spec.job_type) } else { None };
    for (name, task) in &alloc.tasks {
        // Between two starts there is no process to kill, and the next start makes another incarnation.
        if !task.lives() || ended_since_start(task) {
            continue;
        }
        let Some(spec) = group.tasks.get(name) else {
            out.unknown.push(name.clone());
            continue;
        };
        let (Some(incarnation), Some(running_since)) = (task.incarnation(), task.running_since()) else { continue };
        let key = ClockKey { alloc: alloc.id.clone(), task: name.clone(), incarnation };
        let memory = cx.memory.iter().find(|r| r.key == key);
        let subject = Subject { alloc, group, task, spec, running_since, memory, drain, cx };
        let seen_at = memory.map_or(cx.now, |m| m.seen_at);
        let mut earliest: Option<KillClock> = None;
        for told in subject.told(told_by_sibling.as_ref()) {
            match told {
                Told::Perhaps(at) => out.recheck_at = Some(out.recheck_at.map_or(at, |r| r.min(at))),
                Told::Unreachable => out.unreachable.push(name.clone()),
                Told::Yes { cause, start, basis } => {
                    // A drain without a deadline waits.
                    let Some(due) = subject.due(cause, start, basis) else { continue };
                    if earliest.as_ref().is_none_or(|e| due < e.due) {
                        earliest = Some(KillClock { key: key.clone(), cause, start, basis, seen_at, due });
                    }
                }
            }
        }
        out.clocks.extend(earliest);
    }
    out
}

/// An allocation is over when none of its tasks lives and no poststop task is still to start (design fact 7).
pub fn is_over(alloc: &Allocation, group: Option<&GroupSpec>, now: Timestamp, graces: &Graces) -> bool {
    if alloc.any_task_lives() || (alloc.desired == Desired::Run && alloc.may_still_start()) {
        return false;
    }
    // Wanted stopped before anything was started: the client may have been about to. It reports an end of its own.
    if alloc.may_still_start() {
        return false;
    }
    let Some(group) = group else { return true };
    let main_started = alloc.tasks.iter().any(|(n, t)| t.started_at.is_some() && role(group, n) != Role::Poststop);
    let poststop_to_start = alloc
        .tasks
        .iter()
        .any(|(n, t)| role(group, n) == Role::Poststop && t.state == TaskState::Pending && t.started_at.is_none());
    if !main_started || !poststop_to_start || alloc.client_status == ClientStatus::Complete {
        return true;
    }
    // A client that was going to start it has done so long before this.
    let last_end = alloc.tasks.values().filter_map(|t| t.finished_at.max(t.last_at(EventKind::Terminated))).max();
    last_end.is_some_and(|t| now.since(t) > graces.poststop_timeout)
}

fn role(group: &GroupSpec, task: &TaskName) -> Role {
    group.tasks.get(task).map_or(Role::Main, |t| t.role)
}

fn ended_since_start(task: &Task) -> bool {
    match (task.last_at(EventKind::Terminated), task.last_at(EventKind::Started)) {
        (Some(t), Some(s)) => t >= s,
        (Some(t), None) => task.started_at.is_none_or(|s| t >= s),
        _ => false,
    }
}

/// Which tasks an ended sibling tells to end.
struct SiblingEnded {
    at: Timestamp,
    only_sidecars: bool,
}

/// The client ends the others of a group when the leader, every main task, or any task by failure ended for good. It may be
/// stuck in that and report nothing more: then the ended task's last event is `Terminated` while its state stays `running`
/// (recordings leader_ends, sidecar_outlives_main, sibling_failed*). So "for good" is computed from the restart policy, as the
/// client does; what the policy would restart never counts.
fn sibling_ended(alloc: &Allocation, group: &GroupSpec, job_type: JobType) -> Option<SiblingEnded> {
    let mut all: Option<Timestamp> = None;
    let (mut mains_ended, mut last_main): (bool, Option<Timestamp>) = (true, None);
    for (name, task) in &alloc.tasks {
        let Some(spec) = group.tasks.get(name) else { continue };
        if spec.role == Role::Poststop {
            continue;
        }
        let end = ended_for_good(task, spec, job_type);
        match end {
            Some(End { at, failed }) if failed || spec.leader => all = Some(all.map_or(at, |a| a.min(at))),
            _ => {}
        }
        if spec.role != Role::Sidecar {
            mains_ended &= end.is_some();
            last_main = last_main.max(end.map(|e| e.at));
        }
    }
    match (all, last_main) {
        (Some(at), _) => Some(SiblingEnded { at, only_sidecars: false }),
        (None, Some(at)) if mains_ended => Some(SiblingEnded { at, only_sidecars: true }),
        _ => None,
    }
}

#[derive(Clone, Copy)]
struct End {
    at: Timestamp,
    failed: bool,
}

fn ended_for_good(task: &Task, spec: &TaskSpec, job_type: JobType) -> Option<End> {
    let last = task.events.last();
    if task.state == TaskState::Dead {
        let at = task.last_at(EventKind::Terminated).max(task.finished_at)?;
        return Some(End { at, failed: task.failed });
    }
    // Its end shows, nothing after it does.
    let end = last.filter(|e| e.kind == EventKind::Terminated && ended_since_start(task))?;
    let success = end.exit_code == 0 && end.signal == 0;
    let restarts_on_success = match spec.role {
        Role::Prestart | Role::Poststart | Role::Poststop => false,
        Role::Sidecar => true,
        Role::Main => !matches!(job_type, JobType::Batch | JobType::SysBatch),
    };
    if success && !restarts_on_success {
        return Some(End { at: end.at, failed: false });
    }
    // With attempts left, or with mode "delay", the client starts it again. `Restarts` counts over all intervals, so fewer than
    // the attempts is proof of one left; as many is not proof of none, which is what the settle time is for.
    let exhausted = spec.restart.attempts == 0 || (spec.restart.fail && task.restarts >= spec.restart.attempts);
    exhausted.then_some(End { at: end.at, failed: true })
}

enum Told {
    Perhaps(Timestamp),
    Unreachable,
    Yes { cause: Cause, start: Timestamp, basis: Basis },
}

struct Subject<'a> {
    alloc: &'a Allocation,
    group: &'a GroupSpec,
    task: &'a Task,
    spec: &'a TaskSpec,
    running_since: Timestamp,
    memory: Option<&'a ClockRecord>,
    /// When it covers this allocation and Nomad wants that stopped.
    drain: Option<NodeDrain>,
    cx: &'a Context<'a>,
}

impl Subject<'_> {
    /// Every way in which it was told; the earliest clock wins.
    fn told(&self, sibling: Option<&SiblingEnded>) -> Vec<Told> {
        let stopped = self.alloc.desired != Desired::Run;
        if self.spec.role == Role::Poststop {
            // One that runs after a natural end was told nothing.
            return if stopped { vec![self.by_event(Cause::Poststop, self.running_since, Duration::ZERO)] } else { vec![] };
        }
        let mut told = Vec::new();
        let killing = self.first_since_start(EventKind::Killing);
        if stopped {
            told.push(match killing.or_else(|| self.remembered(Cause::Stopped)) {
                Some(at) => self.by_event(Cause::Stopped, at, self.waited_delay()),
                None => self.stopped_without_event(),
            });
            if self.only_stopped(&told) {
                return told;
            }
        } else if let Some(at) = killing.or_else(|| self.remembered(Cause::Killing)) {
            told.push(self.by_event(Cause::Killing, at, self.waited_delay()));
        }
        if let Some(at) = self.first_since_start(EventKind::RestartSignaled).or_else(|| self.remembered(Cause::Restart)) {
            told.push(self.by_event(Cause::Restart, at, Duration::ZERO));
        }
        match sibling {
            Some(s) if told.is_empty() && (!s.only_sidecars || self.spec.role == Role::Sidecar) => {
                told.push(self.by_sibling(s.at))
            }
            _ => {}
        }
        told
    }

    /// The first such event of this incarnation: a client that came back sends SIGTERM, and says so, a second time.
    fn first_since_start(&self, kind: EventKind) -> Option<Timestamp> {
        self.task.events.iter().find(|e| e.kind == kind && e.at >= self.running_since).map(|e| e.at)
    }

    /// An event that was seen before and has been pushed out of the last ten since; the incarnation is the same. Only for what
    /// Nomad cannot take back.
    fn remembered(&self, cause: Cause) -> Option<Timestamp> {
        const EVENTS_KEPT: usize = 10;
        let m = self.memory.filter(|m| m.cause == cause && m.basis == Basis::Event)?;
        // `start` already contains the shutdown delay that was waited for; take it out again, the caller adds it.
        (self.task.events.len() >= EVENTS_KEPT).then(|| m.start - self.waited_delay())
    }

    fn by_event(&self, cause: Cause, at: Timestamp, delay: Duration) -> Told {
        // A client whose clock runs ahead of ours: it cannot have happened later than it was seen.
        let event = at.min(self.cx.now) + delay;
        let start = match self.memory {
            Some(m) if m.basis == Basis::Event && m.cause == cause => m.start.min(event),
            _ => event,
        };
        Told::Yes { cause, start, basis: Basis::Event }
    }

    /// No `Killing` shows yet. A node that is down or was not reached since cannot have told the task.
    fn stopped_without_event(&self) -> Told {
        if matches!(self.alloc.client_status, ClientStatus::Lost | ClientStatus::Unknown) {
            return Told::Unreachable;
        }
        Told::Yes { cause: Cause::Stopped, start: self.seen_told(), basis: Basis::Seen }
    }

    /// Its SIGTERM as far as Curfew could tell without the event: when it was first seen wanted stopped, or last out of reach,
    /// and the shutdown delays that may be under way.
    fn seen_told(&self) -> Timestamp {
        let seen = self.memory.map_or(self.cx.now, |m| m.seen_at.max(m.unreachable_at.unwrap_or(m.seen_at)));
        let skipped = self.alloc.no_shutdown_delay || self.cx.demands.iter().any(|d| d.no_shutdown_delay);
        if skipped { seen } else { seen + self.group.shutdown_delay + self.spec.shutdown_delay }
    }

    fn by_sibling(&self, at: Timestamp) -> Told {
        let heard = self.memory.and_then(|m| m.unreachable_at).map_or(at, |u| u.max(at));
        let settled = heard.min(self.cx.now) + self.cx.graces.settle;
        if self.cx.now < settled {
            return Told::Perhaps(settled);
        }
        self.by_event(Cause::SiblingEnded, at, Duration::ZERO)
    }

    /// The shutdown delay counts only when the client says that it waits for it.
    fn waited_delay(&self) -> Duration {
        match self.first_since_start(EventKind::WaitingForShutdownDelay) {
            Some(_) => self.spec.shutdown_delay,
            None => Duration::ZERO,
        }
    }

    /// Nothing but Nomad's wish counts: a drain moves it, which has the drain's deadline and nothing shorter, or it is nobody's
    /// but the drain's.
    fn only_stopped(&self, told: &[Told]) -> bool {
        let Some(drain) = self.drain else { return false };
        let at = told
            .iter()
            .find_map(|t| if let Told::Yes { start, basis, .. } = t { Some(self.ordered(*start, *basis)) } else { None });
        self.foreign() || at.is_none_or(|at| drain.told(self.alloc, at))
    }

    /// Neither managed nor asked to stop.
    fn foreign(&self) -> bool {
        !self.cx.spec.managed && self.cx.demands.is_empty()
    }

    /// When the client was told, before any shutdown delay.
    fn ordered(&self, start: Timestamp, basis: Basis) -> Timestamp {
        match basis {
            Basis::Event => start - self.waited_delay(),
            Basis::Seen => self.memory.map_or(self.cx.now, |m| m.seen_at),
        }
    }

    fn due(&self, cause: Cause, start: Timestamp, basis: Basis) -> Option<Timestamp> {
        if cause != Cause::Stopped {
            return Some(self.start_and_grace(cause, start));
        }
        let Some(drain) = self.drain else { return Some(self.stop_due(start, basis)) };
        let ordered = self.ordered(start, basis);
        // The deadline is an instant: a shutdown delay that the client waits for does not move it. Where the client is not known
        // to have told it, a SIGKILL might be answered by a restart.
        let by_drain = drain.deadline.map(|d| match basis {
            Basis::Event => d.max(ordered),
            Basis::Seen => d.max(start + self.cx.graces.settle),
        });
        let moved = drain.told(self.alloc, ordered);
        let otherwise = match (self.foreign(), moved, self.cx.demands.is_empty()) {
            (true, ..) | (_, true, true) => None,
            _ => Some(self.stop_due(start, basis)),
        };
        by_drain.into_iter().chain(otherwise).min()
    }

    /// When a stop's grace is over.
    fn stop_due(&self, start: Timestamp, basis: Basis) -> Timestamp {
        let cause = Cause::Stopped;
        let due = self.start_and_grace(cause, start);
        let settle = self.cx.graces.settle;
        match basis {
            // The SIGTERM follows what was seen, and its event follows that. A task whose turn it is hears of it within a report;
            // one that comes after others may not hear of it in time at all, and is due with them.
            Basis::Seen if self.told_after_others() => due.max(start + settle),
            Basis::Seen => due + settle,
            // Nomad tells the tasks of a group one after the other: a leader first, sidecars last. A stop is due as a whole, so what
            // was told late has little more than the first had; unless it was late because its node was away.
            Basis::Event if self.memory.is_some_and(|m| m.unreachable_at.is_some()) => due,
            Basis::Event => due.min(self.start_and_grace(cause, self.seen_told()) + settle),
        }
    }

    /// Whether Nomad tells others of the group before it: a leader first, sidecars last.
    fn told_after_others(&self) -> bool {
        self.spec.role == Role::Sidecar || (!self.spec.leader && self.group.tasks.values().any(|t| t.leader))
    }

    fn start_and_grace(&self, cause: Cause, start: Timestamp) -> Timestamp {
        if cause == Cause::Poststop {
            return start + self.cx.graces.poststop_timeout;
        }
        let own = own_stop_timeout(self.cx.spec, self.spec, self.cx.graces);
        match self.cx.demands.iter().map(|d| d.due(start, self.cx.late, own)).min() {
            // The job's own stop replaces the task's timeout: it may leave more time than the task asks for.
            Some(due) if cause == Cause::Stopped => due,
            Some(due) => due.min(start + own),
            None => start + own,
        }
    }
}

/// What the task's author allowed between SIGTERM and SIGKILL, else `JOB_STOP_TIMEOUT`; an unmanaged job has Nomad's own
/// `KillTimeout`.
pub fn own_stop_timeout(job: &JobSpec, task: &TaskSpec, graces: &Graces) -> Duration {
    match (task.stop_timeout, job.managed) {
        (Some(own), _) => own,
        (None, true) => graces.job_stop_timeout,
        (None, false) => task.kill_timeout,
    }
}

#[cfg(test)]
mod tests;
