//! Verdicts on jobs: orphans, children without a parent, jobs without a place, dead jobs.

use std::time::Duration;

use crate::{Allocation, ClientStatus, JobId, JobKey, OpId, Task, TaskState, Timestamp};

use super::Settings;
use super::sightings::Sighting;
use crate::spec::JobType;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobStatus {
    Pending,
    Running,
    /// Nothing of it is wanted any more. Its tasks may live all the same (design fact 7).
    Dead,
}

/// A job as Nomad's list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStub {
    pub key: JobKey,
    pub parent: Option<JobId>,
    pub job_type: JobType,
    pub status: JobStatus,
    pub stopped: bool,
    /// Periodic or parameterized: its children run, not it.
    pub has_children: bool,
    pub submitted_at: Option<Timestamp>,
    pub job_modify_index: u64,
    /// `curfew_managed` of its meta.
    pub managed: bool,
    /// `curfew_operation` of its meta.
    pub operation: Option<String>,
    /// Allocations that wait for a place.
    pub queued: u64,
    /// Allocations that Nomad counts in any other way.
    pub placed: u64,
    /// Children that Nomad does not call dead.
    pub live_children: u64,
}

impl JobStub {
    pub fn parent_key(&self) -> Option<JobKey> {
        self.parent.clone().map(|job| JobKey { namespace: self.key.namespace.clone(), job })
    }

    /// Whether a gc may do anything about it at all.
    pub fn is_ours(&self, settings: &Settings) -> bool {
        self.managed && settings.covers(&self.key.namespace)
    }

    /// Whether Nomad wants something of it to run.
    fn wanted(&self) -> bool {
        !self.stopped && self.status != JobStatus::Dead
    }
}

/// What the meta of a job says about the operation that submitted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Its operation must be in the database; when it is not, the job is an orphan.
    Ask(OpId),
    /// It names none: somebody else's mark. Never acted on.
    Nameless,
    /// Not judged: nothing of it is wanted, or it is older than what the database remembers.
    NotJudged,
}

/// `remembers_since` is the oldest thing that the database still knows. What it cannot know it cannot miss: a new database
/// makes nobody's job an orphan.
pub fn owner(job: &JobStub, settings: &Settings, remembers_since: Timestamp) -> Owner {
    if !job.is_ours(settings) || !job.wanted() {
        return Owner::NotJudged;
    }
    let Some(id) = job.operation.as_deref().and_then(|text| text.parse::<OpId>().ok()) else { return Owner::Nameless };
    match id.at() {
        Some(at) if at > remembers_since => Owner::Ask(id),
        Some(_) => Owner::NotJudged,
        None => Owner::Nameless,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentState {
    Wanted,
    Stopped,
    Gone,
}

/// A dispatched or periodic child that is wanted although its parent is not: stopping a parent stops none of its children
/// (design fact 14).
pub fn abandoned_child(job: &JobStub, settings: &Settings, parent: ParentState) -> bool {
    job.is_ours(settings) && job.wanted() && job.parent.is_some() && parent != ParentState::Wanted
}

/// Nothing of it was ever placed, for longer than the limit. Tells what waits; `placed` comes from its allocations when they
/// were read.
pub fn never_placed(job: &JobStub, settings: &Settings, now: Timestamp) -> bool {
    job.is_ours(settings)
        && job.status == JobStatus::Pending
        && !job.stopped
        && !job.has_children
        && matches!(job.job_type, JobType::Service | JobType::Batch)
        && job.queued > 0
        && job.placed == 0
        && job.submitted_at.is_some_and(|at| now >= at + settings.never_placed)
}

/// Leave to purge one job, once. Made only from complete evidence; the one call that purges takes it.
#[derive(Debug, PartialEq, Eq)]
pub struct PurgeOrder {
    key: JobKey,
    job_modify_index: u64,
}

impl PurgeOrder {
    pub fn key(&self) -> &JobKey {
        &self.key
    }
    /// The registration that was judged; with another one the order is void.
    pub fn job_modify_index(&self) -> u64 {
        self.job_modify_index
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Purge {
    /// Not dead, not ours, or kept a while longer.
    Keep,
    /// Old enough, but it cannot be purged yet, and why.
    NotYet(String),
    /// Dead, but Nomad could still place it again: it is stopped first, then judged again.
    StopFirst,
    Now(PurgeOrder),
}

/// Whether a job can be purged: stopped, older than its retention, and every allocation over by its task states. A purge while
/// anything lives makes it unreachable for every API while its process lives on (design fact 6).
///
/// `allocations` are all that Nomad knows of the job, `unreadable` how many of them could not be read. `seen_dead` is since when
/// somebody has seen it dead, where that is remembered.
pub fn purge(
    job: &JobStub,
    allocations: &[Allocation],
    unreadable: usize,
    seen_dead: Option<Sighting>,
    settings: &Settings,
    now: Timestamp,
) -> Purge {
    if !job.is_ours(settings) || job.status != JobStatus::Dead {
        return Purge::Keep;
    }
    let old_enough = |at: Timestamp| now >= at + settings.retention;
    if !job.submitted_at.is_some_and(old_enough) {
        return Purge::Keep;
    }
    if let Some(why) = may_anything_live(job, allocations, unreadable) {
        return Purge::NotYet(why);
    }
    match allocations.iter().map(last_change).collect::<Option<Vec<_>>>() {
        None => return Purge::NotYet("nothing tells when its last allocation changed".into()),
        Some(changes) => match changes.into_iter().max() {
            Some(last) if !old_enough(last) => return Purge::Keep,
            Some(_) => {}
            // Stopped yesterday or last year: only somebody who has seen it since can tell.
            None if seen_dead.is_some_and(|s| old_enough(s.first)) => {}
            None if seen_dead.is_some() => return Purge::Keep,
            None => return Purge::NotYet("no allocation tells since when it is dead, and nobody remembers (--state)".into()),
        },
    }
    if job.stopped {
        Purge::Now(PurgeOrder { key: job.key.clone(), job_modify_index: job.job_modify_index })
    } else {
        Purge::StopFirst
    }
}

/// Whether a job that somebody wants purged as soon as it is dead can be: the same evidence, whatever its age and whoever submitted it.
///
/// The job is read before its allocations and `after` them: whatever starts an allocation changes the job first.
pub fn purge_when_dead(job: &JobStub, allocations: &[Allocation], unreadable: usize, after: &JobStub) -> Purge {
    if !after.stopped {
        return Purge::Keep;
    }
    if after != job {
        return Purge::NotYet("the job changed while its allocations were read".into());
    }
    if job.status != JobStatus::Dead {
        return Purge::NotYet("Nomad does not call it dead".into());
    }
    match may_anything_live(job, allocations, unreadable) {
        Some(why) => Purge::NotYet(why),
        None => Purge::Now(PurgeOrder { key: job.key.clone(), job_modify_index: job.job_modify_index }),
    }
}

/// Why something of a job may still live, or not all of it is known.
fn may_anything_live(job: &JobStub, allocations: &[Allocation], unreadable: usize) -> Option<String> {
    if unreadable > 0 {
        return Some(format!("{unreadable} of its allocations could not be read"));
    }
    if allocations.iter().any(|a| a.job_key() != job.key) {
        return Some("Nomad's answer holds allocations of another job".into());
    }
    let lives = allocations.iter().find_map(may_live);
    lives.or_else(|| (job.live_children > 0).then(|| format!("{} of its children are not dead", job.live_children)))
}

/// Why an allocation may still have a process, or get one. Stricter than a stop's own end: what a purge hides is hidden for good.
fn may_live(a: &Allocation) -> Option<String> {
    let of = |task: &str, why: &str| Some(format!("allocation {} on {}: task {task} {why}", a.id.short(), a.node_name));
    // The client itself said so; a status that a server wrote for a silent one is no proof.
    let client_ended = matches!(a.client_status, ClientStatus::Complete | ClientStatus::Failed);
    for (name, task) in &a.tasks {
        match task {
            Task { state: TaskState::Dead, .. } => {}
            t if t.lives() => return of(name.as_str(), "lives"),
            _ if !client_ended => return of(name.as_str(), "may still start"),
            _ => {}
        }
    }
    if a.tasks.is_empty() && !client_ended {
        let status = a.client_status.as_str();
        return Some(format!("allocation {} on {} is {status} and tells nothing of its tasks", a.id.short(), a.node_name));
    }
    None
}

fn last_change(a: &Allocation) -> Option<Timestamp> {
    let ends = a.tasks.values().filter_map(|t| t.finished_at).max();
    a.modified_at.max(ends)
}

/// How long something must have been seen before it is acted on.
pub(super) fn spans(first: Timestamp, now: Timestamp, grace: Duration) -> bool {
    now >= first + grace
}
