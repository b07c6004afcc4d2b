//! What happened to an allocation, from its tasks' events. A task keeps ten of them, so what was seen is kept.

use std::collections::HashMap;

use crate::alloc::Placed;
use crate::clock::{Graces, own_stop_timeout};
use crate::restarts::{Restart, count, shown};
use crate::spec::JobSpec;
use crate::{EventKind, Task, TaskEvent, TaskName, Timestamp};

use super::{GroupView, Happening, Seen, What};

/// In one group at most; the oldest go.
const MOST: usize = 400;

/// What an allocation shows now. Of one that is `old` only its end belongs into the story.
pub(super) fn told(
    p: &Placed,
    old: bool,
    seen: &Seen,
    spec: Option<&JobSpec>,
    graces: &Graces,
    known: &[Happening],
) -> Vec<Happening> {
    let mut all = vec![];
    let mut say = |at: Timestamp, task: Option<&TaskName>, what: What| {
        let (alloc, node, version) = (p.alloc.id.clone(), p.alloc.node_name.clone(), p.alloc.job_version);
        all.push(Happening { at, alloc, node, version, task: task.cloned(), what });
    };
    let received = p.alloc.tasks.values().filter_map(|t| t.last_at(EventKind::Received)).min();
    let placed_at = p.created_at.or(received);
    let kept = p.alloc.create_index <= seen.registered;
    if let Some(at) = placed_at.filter(|_| !old && !kept) {
        say(at, None, What::Placed { canary: p.canary });
    }
    for (name, task) in &p.alloc.tasks {
        if !old {
            life(task, |at, what| say(at, Some(name), what));
            let since = received.or(placed_at).unwrap_or_default();
            for (at, what) in restarts(p, name, task, spec, since, known) {
                say(at, Some(name), what);
            }
        }
        end(p, name, task, spec, graces, |at, what| say(at, Some(name), what));
    }
    if let (Some(healthy), Some(at), false) = (p.healthy, p.health_at, old) {
        let why = p.alloc.tasks.values().find_map(|t| t.last(EventKind::Unhealthy)?.text.as_deref());
        say(at, None, if healthy { What::Healthy } else { What::Unhealthy { why: why.map(str::to_owned) } });
    }
    // One that was there before came into this story with the registration.
    all.retain(|h| !kept || h.at >= seen.began);
    all
}

fn why(e: &TaskEvent) -> String {
    e.text.as_deref().unwrap_or_default().to_owned()
}

fn life(task: &Task, mut say: impl FnMut(Timestamp, What)) {
    let told = task.last_at(EventKind::Killing);
    for e in &task.events {
        match e.kind {
            EventKind::Started => say(e.at, What::Started),
            EventKind::Terminated if told.is_none_or(|t| e.at < t) => {
                say(e.at, What::Exited { exit_code: e.exit_code, signal: e.signal });
            }
            EventKind::StartFailed => say(e.at, What::StartFailed { why: why(e) }),
            EventKind::NotRestarting => say(e.at, What::GaveUp { why: why(e) }),
            _ => {}
        }
    }
}

/// Those that are known and those that show now, numbered together.
fn restarts(
    p: &Placed,
    name: &TaskName,
    task: &Task,
    spec: Option<&JobSpec>,
    since: Timestamp,
    known: &[Happening],
) -> Vec<(Timestamp, What)> {
    let Some(policy) = spec.and_then(|s| s.task(&p.alloc.group, name)).map(|t| t.restart) else { return vec![] };
    let earlier = known.iter().filter(|h| h.alloc == p.alloc.id && h.task.as_ref() == Some(name)).filter_map(|h| match &h.what {
        What::Restarting { next_at, .. } => Some(Restart { at: h.at, delay: next_at.since(h.at), exit: None }),
        _ => None,
    });
    let mut all: Vec<Restart> = earlier.chain(shown(task)).collect();
    all.sort_by_key(|r| r.at);
    all.dedup_by_key(|r| r.at);
    let (of, within) = (policy.attempts, policy.interval);
    let counted = count(policy, since, task.restarts, &all);
    counted
        .into_iter()
        .map(|c| (c.restart.at, What::Restarting { number: c.number, of, within, next_at: c.restart.next() }))
        .collect()
}

/// From its SIGTERM on.
fn end(p: &Placed, name: &TaskName, task: &Task, spec: Option<&JobSpec>, graces: &Graces, mut say: impl FnMut(Timestamp, What)) {
    let Some(told) = task.last_at(EventKind::Killing).filter(|t| task.running_since().is_some_and(|since| *t >= since)) else {
        return;
    };
    let kill_at = spec.and_then(|spec| {
        let task_spec = spec.task(&p.alloc.group, name)?;
        let waits = task.last_at(EventKind::WaitingForShutdownDelay).is_some_and(|at| at >= told);
        let delay = if waits { task_spec.shutdown_delay } else { std::time::Duration::ZERO };
        Some(told + delay + own_stop_timeout(spec, task_spec, graces))
    });
    say(told, What::ToldToEnd { kill_at });
    let ended = task.last(EventKind::Terminated).filter(|e| e.at >= told);
    if let Some(at) = task.last_at(EventKind::Signaling).filter(|at| *at >= told && ended.is_none_or(|e| *at <= e.at)) {
        say(at, What::Sigkill);
    }
    if let Some(e) = ended {
        say(e.at, What::Ended { exit_code: e.exit_code, signal: e.signal });
    }
}

/// Takes in what was seen; a thing that was known already is as it is now.
pub(super) fn merge(group: &mut GroupView, new: Vec<Happening>) {
    let key = |h: &Happening| (h.at, h.alloc.clone(), h.task.clone(), h.what.kind());
    let mut place: HashMap<_, usize> = group.timeline.iter().enumerate().map(|(i, h)| (key(h), i)).collect();
    // What was left out is not news again.
    let from = group.timeline.first().filter(|_| group.left_out > 0).map(|h| h.at);
    for h in new.into_iter().filter(|h| from.is_none_or(|from| h.at >= from)) {
        match place.get(&key(&h)).and_then(|i| group.timeline.get_mut(*i)) {
            Some(known) => *known = h,
            None => {
                place.insert(key(&h), group.timeline.len());
                group.timeline.push(h);
            }
        }
    }
    group.timeline.sort_by_key(|h| h.at);
    let too_many = group.timeline.len().saturating_sub(MOST);
    group.timeline.drain(..too_many);
    group.left_out += u64::try_from(too_many).unwrap_or(u64::MAX);
}
