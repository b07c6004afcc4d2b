//! What came of an allocation that was stopped, for the report.

use std::time::Duration;

use crate::clock::{Basis, ClockRecord, Graces, NodeDrain, own_stop_timeout};
use crate::operation::{AllocOutcome, Demand, Outcome, TaskOutcome};
use crate::spec::JobSpec;
use crate::{Allocation, EventKind, Task, Timestamp};

/// One allocation with what was written down about its clocks.
pub fn of_allocation(
    alloc: &Allocation,
    spec: Option<&JobSpec>,
    demands: &[Demand],
    drain: Option<NodeDrain>,
    records: &[ClockRecord],
    graces: &Graces,
) -> AllocOutcome {
    let asked_at = demands.iter().map(|d| d.at).chain(drain.map(|d| d.started_at)).min();
    let tasks = alloc.tasks.iter().filter_map(|(name, task)| {
        let record = records.iter().filter(|r| r.key.alloc == alloc.id && r.key.task == *name).max_by_key(|r| r.key.incarnation);
        // A task that had ended before anybody asked (a prestart task, say) has no part in the stop.
        if record.is_none() && !task.lives() && asked_at.is_some_and(|t| ended_at(task).is_none_or(|e| e < t)) {
            return None;
        }
        task.started_at?;
        let event = task.events.iter().find(|e| e.kind == EventKind::Killing && Some(e.at) >= task.running_since());
        // A clock that rests on a first sight alone moves to its event when that shows: until then it is not told.
        let told = record.filter(|r| r.basis == Basis::Event || r.signalled_at.is_some());
        let term_at = told.map(|r| r.start).or(event.map(|e| e.at));
        let kill_at = told.map(|r| r.due).or_else(|| {
            let own = own_stop_timeout(spec?, spec?.task(&alloc.group, name)?, graces);
            let term_at = term_at?;
            let by_drain = drain.and_then(|d| d.deadline).map(|d| d.max(term_at));
            demands.iter().map(|d| d.due(term_at, Duration::ZERO, own)).chain(by_drain).min()
        });
        let end = (!task.lives()).then(|| task.last(EventKind::Terminated)).flatten();
        Some(TaskOutcome {
            name: name.clone(),
            term_at,
            kill_at,
            signalled_at: record.and_then(|r| r.signalled_at.or_else(|| sent_unseen(r, end.is_some_and(|e| e.signal == 9)))),
            ended_at: if task.lives() { None } else { ended_at(task) },
            exit_code: end.map(|e| e.exit_code),
            signal: end.map(|e| e.signal),
        })
    });
    AllocOutcome {
        id: alloc.id.clone(),
        job: alloc.job.clone(),
        node: alloc.node_name.clone(),
        client_status: alloc.client_status,
        tasks: tasks.collect(),
    }
}

/// A SIGKILL whose answer was lost with the controller: it was about to be sent, and the task ended by one.
fn sent_unseen(r: &ClockRecord, killed: bool) -> Option<Timestamp> {
    r.last_attempt_at.filter(|_| killed).map(|at| at.max(r.due))
}

fn ended_at(task: &Task) -> Option<Timestamp> {
    task.last_at(EventKind::Terminated).or(task.finished_at)
}

/// Counts over all of them. A task was killed when our SIGKILL went out before its end and the end shows it: signal 9, or
/// the executor's error that Nomad reports seldom instead (exit code -1; design fact 11).
pub fn total(allocations: Vec<AllocOutcome>) -> Outcome {
    let (mut exited, mut killed) = (0, 0);
    for t in allocations.iter().flat_map(|a| &a.tasks).filter(|t| t.ended_at.is_some()) {
        let by_us = t.signalled_at.is_some() && (t.signal == Some(9) || matches!(t.exit_code, Some(137 | -1) | None));
        if by_us { killed += 1 } else { exited += 1 }
    }
    Outcome { exited, killed, allocations, ..Outcome::default() }
}
