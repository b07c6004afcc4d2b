//! Tasks that were told to end and live past their clock: the same derivation as the controller's, without its memory.

use std::time::Duration;

use crate::clock::{Basis, Cause, ClockKey, ClockRecord, Context, KillClock, KillOrder, derive};
use crate::drain::DrainMeta;
use crate::operation::Demand;
use crate::spec::JobSpec;
use crate::{Allocation, Desired, EventKind, OpId, Task, TaskEvent, TaskName, TaskState, Timestamp};

use super::Settings;

/// Where the operations are known the controller goes first: its own keeper needs this long at most.
pub const KNOWN_SLACK: Duration = Duration::from_secs(60);

/// What is known of requests that cover an allocation.
#[derive(Clone, Debug, PartialEq)]
pub enum Knowledge {
    /// Nobody to ask: a request may have left more time than Nomad shows.
    Nothing,
    /// No live operation covers it.
    Uncovered,
    Stop(LiveStop),
}

/// A stop that has not finished.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveStop {
    pub operation: OpId,
    /// Empty when only its deadline could be learned.
    pub demands: Vec<Demand>,
    /// See [`Context::late`].
    pub late: Duration,
    /// Only what was registered before it is this stop's.
    pub delete_index: Option<u64>,
    pub deadline: Option<Timestamp>,
}

/// A task past its clock and the gc's slack.
#[derive(Debug, PartialEq, Eq)]
pub struct PastClock {
    clock: KillClock,
    /// The clock, with what the gc adds to it.
    pub due: Timestamp,
    /// Whom it is left to until `due`.
    pub operation: Option<OpId>,
}

impl PastClock {
    pub fn task(&self) -> &TaskName {
        &self.clock.key().task
    }
    pub fn key(&self) -> &ClockKey {
        self.clock.key()
    }
    pub fn cause(&self) -> Cause {
        self.clock.cause()
    }
    pub fn start(&self) -> Timestamp {
        self.clock.start()
    }
    pub fn clock(&self) -> Timestamp {
        self.clock.due()
    }
    pub fn order(&self, now: Timestamp) -> Option<KillOrder> {
        if now < self.due { None } else { self.clock.order(now) }
    }
}

/// Whether an allocation shows any sign of an end by which a live task of it could have a clock. Most of those that Nomad's filter
/// lets through do not: a restart of long ago shows, too.
pub fn may_be_told(alloc: &Allocation) -> bool {
    let own = |t: &Task| {
        let since = t.running_since();
        let sign = |e: &TaskEvent| matches!(e.kind, EventKind::Killing | EventKind::RestartSignaled);
        t.events.iter().any(|e| sign(e) && since.is_some_and(|s| e.at >= s))
    };
    let ended = |t: &Task| t.state == TaskState::Dead || t.events.last().is_some_and(|e| e.kind == EventKind::Terminated);
    let live = || alloc.tasks.values().filter(|t| t.lives());
    live().next().is_some() && (alloc.desired != Desired::Run || live().any(own) || alloc.tasks.values().any(ended))
}

/// The live tasks of an allocation that were told to end and are past their clock, with the gc's slack, at `now`.
///
/// `node_heard` is whether the allocation's node is `ready`: an ended sibling is concluded from what a client does not say.
pub fn past_clock(
    alloc: &Allocation,
    spec: &JobSpec,
    known: &Knowledge,
    drain: Option<&DrainMeta>,
    node_heard: bool,
    settings: &Settings,
    now: Timestamp,
) -> Vec<PastClock> {
    if !spec.managed || !settings.covers(&alloc.namespace) {
        return vec![];
    }
    let stop = match known {
        Knowledge::Stop(s) if s.delete_index.is_none_or(|i| spec.job_modify_index < i) => Some(s),
        _ => None,
    };
    let slack = match (known, stop) {
        (Knowledge::Uncovered | Knowledge::Stop(_), None) => KNOWN_SLACK.min(settings.grace),
        _ => settings.grace,
    };
    // What a drain of Curfew's moves has the drain's deadline, by whichever controller; without one nothing is killed.
    let drain = drain.filter(|_| alloc.migrate);
    if drain.is_some_and(|d| d.deadline.at().is_none()) {
        return vec![];
    }
    let memory = memory(alloc);
    let cx = Context {
        spec,
        demands: stop.map_or(&[], |s| &s.demands),
        late: stop.map_or(Duration::ZERO, |s| s.late),
        drain: drain.map(DrainMeta::clock),
        graces: &settings.graces,
        memory: &memory,
        now,
    };
    let floor = stop.and_then(|s| s.deadline);
    let told = derive(alloc, &cx).clocks.into_iter().filter(|c| node_heard || c.cause() != Cause::SiblingEnded);
    told.map(|clock| {
        let due = floor.map_or(clock.due(), |f| f.max(clock.due())) + slack;
        PastClock { clock, due, operation: stop.map(|s| s.operation) }
    })
    .filter(|past| now >= past.due)
    .collect()
}

/// Stands in for what a controller would remember of an allocation that is wanted stopped and shows no event of it: only a
/// server's write wants it so, and the last write was then. Without that time there is no record, and no clock runs out.
fn memory(alloc: &Allocation) -> Vec<ClockRecord> {
    let Some(seen_at) = alloc.modified_at else { return vec![] };
    let silent = alloc.tasks.iter().filter(|(_, t)| t.lives() && !shows_killing(t));
    silent
        .filter_map(|(name, task)| {
            let key = ClockKey { alloc: alloc.id.clone(), task: name.clone(), incarnation: task.incarnation()? };
            Some(ClockRecord {
                key,
                job: alloc.job_key(),
                node: alloc.node.clone(),
                node_name: alloc.node_name.clone(),
                operation: None,
                cause: Cause::Stopped,
                start: seen_at,
                basis: Basis::Seen,
                seen_at,
                unreachable_at: None,
                due: seen_at,
                attempts: 0,
                last_attempt_at: None,
                last_error: None,
                signalled_at: None,
                ended_at: None,
            })
        })
        .collect()
}

fn shows_killing(task: &Task) -> bool {
    let since = task.running_since();
    task.events.iter().any(|e| e.kind == EventKind::Killing && since.is_some_and(|s| e.at >= s))
}
