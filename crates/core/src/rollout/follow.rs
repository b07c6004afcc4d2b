//! One look at a rollout: what Nomad shows, and whether that is its end.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::alloc::Placed;
use crate::clock::Graces;
use crate::deployment::{Deployment, DeploymentStatus, author_deadline, group_deadline};
use crate::spec::JobSpec;
use crate::{ClientStatus, Desired, Timestamp, duration};

use super::{DeploymentView, End, FailedBy, GroupView, RolloutView, Unplaced, What, count, timeline};

/// A version of a job that Nomad still knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub spec: JobSpec,
    /// Nomad goes back to it when a later one fails.
    pub stable: bool,
    /// As Nomad writes it, in nanoseconds: to tell versions apart.
    pub submitted: i64,
}

impl Version {
    pub fn from_json(job: &Value) -> Self {
        Self { spec: JobSpec::from_json(job), stable: job["Stable"] == true, submitted: job["SubmitTime"].as_i64().unwrap_or(0) }
    }
}

/// What Nomad shows of a job. Read in this order, so that what is read later is newer, never older: evaluations, deployments,
/// versions, allocations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// When it was asked for.
    pub began: Timestamp,
    /// The registration's `JobModifyIndex`.
    pub registered: u64,
    /// The job's before it; zero when there was none.
    pub base: u64,
    /// An evaluation of the job is not carried out yet.
    pub evaluating: bool,
    /// By group, from the evaluation that waits for room.
    pub unplaced: BTreeMap<String, Unplaced>,
    pub deployments: Vec<Deployment>,
    /// Newest first. Empty: the job is gone.
    pub versions: Vec<Version>,
    pub allocations: Vec<Placed>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// In a sentence, for what. `deadline`: by when the deployment fails.
    Wait { waiting_for: String, deadline: Option<Timestamp> },
    /// And in a sentence why; empty for what was deployed.
    End(End, String),
}

impl Seen {
    fn version(&self, number: u64) -> Option<&Version> {
        self.versions.iter().find(|v| v.spec.version == number)
    }

    /// The newest deployment of a version.
    fn deployment(&self, version: u64) -> Option<&Deployment> {
        self.deployments.iter().filter(|d| d.job_version == version).max_by_key(|d| d.create_index)
    }

    /// The version that Nomad made to go back when this one's deployment failed, and the one that it went back to: it takes that one as
    /// it was submitted, while whatever somebody registers is submitted anew.
    fn rollback(&self, failed: u64) -> Option<(&Version, u64)> {
        let next = self.versions.iter().filter(|v| v.spec.version > failed).min_by_key(|v| v.spec.version)?;
        let same = |v: &&Version| v.spec.version < failed && v.submitted == next.submitted;
        Some((next, self.versions.iter().filter(same).map(|v| v.spec.version).max()?))
    }
}

/// What is followed now.
struct Course<'a> {
    seen: &'a Seen,
    version: u64,
    deployment: Option<&'a Deployment>,
    /// The registration's own, when the rollback's is followed.
    failed: Option<&'a Deployment>,
}

impl<'a> Course<'a> {
    fn of(mine: u64, seen: &'a Seen) -> Self {
        let own = seen.deployment(mine);
        let failed = own.filter(|d| d.status == DeploymentStatus::Failed);
        match failed.and_then(|_| seen.rollback(mine)) {
            Some((back, _)) => Self { seen, version: back.spec.version, deployment: seen.deployment(back.spec.version), failed },
            None => Self { seen, version: mine, deployment: own, failed: None },
        }
    }

    fn spec(&self) -> Option<&'a JobSpec> {
        self.seen.version(self.version).map(|v| &v.spec)
    }

    fn mine(&self) -> impl Iterator<Item = &'a Placed> {
        self.seen.allocations.iter().filter(|p| p.alloc.job_version == Some(self.version))
    }

    /// Told to end, and alive as far as anybody can see: a node that is away is not waited for.
    fn leaving(&self) -> impl Iterator<Item = &'a Placed> {
        let reachable = |p: &&Placed| !matches!(p.alloc.client_status, ClientStatus::Lost | ClientStatus::Unknown);
        self.seen.allocations.iter().filter(|p| p.alloc.desired != Desired::Run && p.alloc.any_task_lives()).filter(reachable)
    }

    fn unstarted(&self) -> u64 {
        let waits = |p: &&Placed| {
            p.alloc.desired == Desired::Run
                && p.alloc.client_status == ClientStatus::Pending
                && p.alloc.tasks.values().all(|t| t.started_at.is_none())
        };
        len(self.mine().filter(waits))
    }
}

fn len<T>(all: impl Iterator<Item = T>) -> u64 {
    u64::try_from(all.count()).unwrap_or(u64::MAX)
}

/// `before` is the view of the last look; the first one begins with an empty one.
pub fn follow(before: &RolloutView, seen: &Seen, graces: &Graces, now: Timestamp) -> (RolloutView, Verdict) {
    let mut view = before.clone();
    let verdict = look(&mut view, before, seen, graces, now);
    if let Verdict::End(end, _) = &verdict {
        view.end = Some(*end);
    }
    (view, verdict)
}

fn look(view: &mut RolloutView, before: &RolloutView, seen: &Seen, graces: &Graces, now: Timestamp) -> Verdict {
    let Some(newest) = seen.versions.first() else {
        return Verdict::End(End::Superseded, "the job was purged".into());
    };
    let registered = seen.versions.iter().find(|v| v.spec.job_modify_index == seen.registered);
    let mine = match (before.version, registered) {
        (Some(mine), _) => mine,
        (None, Some(v)) => {
            view.unchanged = seen.registered == seen.base;
            v.spec.version
        }
        // Of a job that it has already Nomad answers with another index of it, and makes no version.
        (None, None) if newest.spec.job_modify_index < seen.registered => {
            view.unchanged = true;
            newest.spec.version
        }
        (None, None) => {
            let why =
                format!("version {} of the job was registered since, and Nomad has forgotten this one", newest.spec.version);
            return Verdict::End(End::Superseded, why);
        }
    };
    view.version = Some(mine);
    let course = Course::of(mine, seen);
    if course.failed.is_some() {
        view.reverted_to = seen.rollback(mine).map(|(_, to)| to);
    }
    for d in course.failed.into_iter().chain(course.deployment) {
        deployment_seen(view, d, course.failed.is_some() && d.job_version != mine, now);
    }
    if let Some(d) = seen.deployment(mine).filter(|d| d.status == DeploymentStatus::Failed) {
        view.failed_by = view.failed_by.or(Some(failed_by(d, before, now)));
    }
    groups(view, &course, seen, graces);
    match course.deployment {
        None => without_deployment(view, &course, newest),
        Some(d) => with_deployment(view, &course, d, newest, now),
    }
}

fn wait(waiting_for: impl Into<String>) -> Verdict {
    Verdict::Wait { waiting_for: waiting_for.into(), deadline: None }
}

fn deployment_seen(view: &mut RolloutView, d: &Deployment, rollback: bool, now: Timestamp) {
    let ended_at = d.status.is_over().then(|| d.modified_at.unwrap_or(now));
    match view.deployments.iter_mut().find(|v| v.id == d.id) {
        Some(known) => {
            (known.status, known.ended_at) = (d.status, known.ended_at.or(ended_at));
            known.description.clone_from(&d.description);
        }
        None => view.deployments.push(DeploymentView {
            id: d.id.clone(),
            version: d.job_version,
            status: d.status,
            description: d.description.clone(),
            rollback,
            seen_at: now,
            ended_at,
        }),
    }
}

/// Whoever fails a deployment through the API leaves the same words in Nomad; Curfew does it at the deadline.
fn failed_by(d: &Deployment, before: &RolloutView, now: Timestamp) -> FailedBy {
    let at = d.modified_at.unwrap_or(now);
    let passed = before.groups.values().filter_map(|g| g.deadline).any(|deadline| deadline <= at);
    if d.description.contains("unhealthy allocations") {
        FailedBy::Unhealthy
    } else if passed || d.description.contains("progress deadline") {
        FailedBy::ProgressDeadline
    } else {
        FailedBy::Hand
    }
}

fn groups(view: &mut RolloutView, course: &Course, seen: &Seen, graces: &Graces) {
    let spec = course.spec();
    for (name, g) in spec.into_iter().flat_map(|s| &s.groups) {
        let group = view.groups.entry(name.clone()).or_default();
        let mine = || course.mine().filter(|p| p.alloc.group == *name);
        let progress = course.deployment.and_then(|d| d.groups.get(name));
        let system = spec.is_some_and(|s| s.job_type.on_every_node());
        let (desired, placed, healthy, unhealthy, canaries, promoted) = match progress {
            Some(p) => (p.desired, p.placed, p.healthy, p.unhealthy, p.canaries, p.promoted),
            None => {
                let wanted = || mine().filter(|p| p.alloc.desired == Desired::Run);
                let failed = wanted().filter(|p| p.alloc.client_status == ClientStatus::Failed);
                (if system { len(wanted()) } else { g.count }, len(wanted()), 0, len(failed), 0, false)
            }
        };
        *group = GroupView {
            desired,
            placed,
            healthy,
            unhealthy,
            canaries,
            promoted,
            leaving: len(course.leaving().filter(|p| p.alloc.group == *name)),
            deadline: course.deployment.and_then(|d| group_deadline(d, name, spec)),
            unplaced: seen.unplaced.get(name).cloned(),
            timeline: std::mem::take(&mut group.timeline),
            left_out: group.left_out,
        };
    }
    let mine = view.version.unwrap_or(0);
    for p in &seen.allocations {
        let version = p.alloc.job_version.unwrap_or(0);
        let old = version < mine;
        // What had ended before the registration is another story.
        if old && p.alloc.modify_index < seen.registered && !p.alloc.any_task_lives() {
            continue;
        }
        let group = view.groups.entry(p.alloc.group.clone()).or_default();
        let spec = seen.version(version).map(|v| &v.spec);
        let new = timeline::told(p, old, seen, spec, graces, &group.timeline);
        timeline::merge(group, new);
    }
}

fn with_deployment(view: &RolloutView, course: &Course, d: &Deployment, newest: &Version, now: Timestamp) -> Verdict {
    let what = if course.failed.is_some() { "the rollback's deployment" } else { "the deployment" };
    match d.status {
        DeploymentStatus::Successful => settled(view, course),
        DeploymentStatus::Cancelled => superseded(newest, course),
        DeploymentStatus::Failed if course.failed.is_some() => {
            let to = version(view.reverted_to);
            Verdict::End(End::Failed, format!("{}; going back to {to} failed as well: {}", failure(view), d.description))
        }
        DeploymentStatus::Failed => Verdict::End(End::Failed, failure(view)),
        DeploymentStatus::Paused => wait(format!("somebody to resume {what} {}: it is paused in Nomad", short(&d.id))),
        DeploymentStatus::Other => wait(format!("{what} {} to go on: {}", short(&d.id), d.description)),
        DeploymentStatus::Running => {
            let deadline = course.spec().and_then(|s| author_deadline(d, s)).or_else(|| earliest(view));
            if deadline.is_some() || course.seen.unplaced.is_empty() || moves(course) {
                return Verdict::Wait { waiting_for: progress(view, d), deadline };
            }
            // Nomad's deadline begins with the first allocation that is placed.
            let patience = room_by(course, d);
            if hopeless(course) || patience.is_some_and(|by| by <= now) {
                return Verdict::End(End::Stalled, unplaced(view));
            }
            Verdict::Wait { waiting_for: progress(view, d), deadline: patience }
        }
    }
}

/// No node could take them, however much room it had.
fn hopeless(course: &Course) -> bool {
    course.seen.unplaced.values().any(|u| u.exhausted == 0)
}

/// How long room is waited for: as long as the author grants for progress, from the registration on.
fn room_by(course: &Course, d: &Deployment) -> Option<Timestamp> {
    let of_group = |name: &String| {
        let author = course.spec().and_then(|s| s.groups.get(name)?.progress_deadline);
        author.or_else(|| Some(d.groups.get(name)?.progress_deadline)).filter(|d| !d.is_zero())
    };
    course.seen.unplaced.keys().filter_map(of_group).max().map(|patience| course.seen.began + patience)
}

fn earliest(view: &RolloutView) -> Option<Timestamp> {
    view.groups.values().filter_map(|g| g.deadline).min()
}

/// Whether something of a deployment is still under way.
fn moves(course: &Course) -> bool {
    let undecided = |p: &Placed| p.alloc.desired == Desired::Run && p.healthy.is_none();
    let promotion = course.deployment.is_some_and(|d| d.groups.values().any(|g| g.waits_for_promotion()));
    course.seen.evaluating || promotion || course.mine().any(undecided) || course.leaving().next().is_some()
}

/// The deployment is done; what was told to end may live on by its clock.
fn settled(view: &RolloutView, course: &Course) -> Verdict {
    let leaving = len(course.leaving());
    if leaving > 0 && !view.unchanged {
        return wait(leave(view, leaving));
    }
    match view.reverted_to {
        Some(to) if course.failed.is_some() => Verdict::End(End::Reverted, format!("{}; version {to} runs again", failure(view))),
        _ => Verdict::End(End::Deployed, String::new()),
    }
}

fn leave(view: &RolloutView, leaving: u64) -> String {
    let last = view.groups.values().flat_map(|g| &g.timeline).filter_map(|h| match h.what {
        What::ToldToEnd { kill_at } => kill_at,
        _ => None,
    });
    let at = last.max().map_or(String::new(), |at| format!(", SIGKILL at {at}"));
    format!("{} of another version to end{at}", count(leaving, "allocation"))
}

fn without_deployment(view: &RolloutView, course: &Course, newest: &Version) -> Verdict {
    let spec = course.spec();
    if spec.is_some_and(|s| s.parent) || (view.unchanged && newest.spec.version == course.version) {
        return Verdict::End(End::Deployed, String::new());
    }
    if newest.spec.version != course.version {
        return superseded(newest, course);
    }
    if course.seen.evaluating {
        return wait("Nomad to place its allocations");
    }
    let unstarted = course.unstarted();
    if unstarted > 0 {
        return wait(format!("{} to start", count(unstarted, "allocation")));
    }
    let leaving = len(course.leaving());
    if leaving > 0 {
        return wait(leave(view, leaving));
    }
    if hopeless(course) {
        return Verdict::End(End::Stalled, unplaced(view));
    }
    if !course.seen.unplaced.is_empty() {
        return wait(format!("room: {}", unplaced(view)));
    }
    let failed = |p: &&Placed| p.alloc.desired == Desired::Run && p.alloc.client_status == ClientStatus::Failed && !p.rescheduled;
    match course.mine().find(failed) {
        Some(p) => {
            let trouble = trouble(view).map_or(String::new(), |t| format!(": {t}"));
            Verdict::End(End::Failed, format!("allocation {} failed, and nothing takes its place{trouble}", p.alloc.id.short()))
        }
        None => settled(view, course),
    }
}

fn superseded(newest: &Version, course: &Course) -> Verdict {
    let why = match (newest.spec.stopped, newest.spec.version > course.version) {
        (true, _) => "the job was stopped".to_owned(),
        (_, true) => format!("version {} of the job was registered", newest.spec.version),
        (_, false) => "its deployment was cancelled".to_owned(),
    };
    Verdict::End(End::Superseded, why)
}

fn version(number: Option<u64>) -> String {
    number.map_or("an older version".into(), |n| format!("version {n}"))
}

fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// Why the registered version's own deployment failed.
fn failure(view: &RolloutView) -> String {
    let own = view.deployments.iter().find(|d| !d.rollback);
    let how = match view.failed_by {
        Some(FailedBy::ProgressDeadline) => "its progress deadline passed without progress".to_owned(),
        Some(FailedBy::Unhealthy) => "an allocation is unhealthy".to_owned(),
        Some(FailedBy::Hand) => "somebody failed its deployment".to_owned(),
        None => own.map_or(String::new(), |d| d.description.clone()),
    };
    let nothing = own.filter(|d| view.reverted_to.is_none() && d.description.contains("no stable job version"));
    let nothing = if nothing.is_some() { "; there is no stable version to go back to" } else { "" };
    let trouble = trouble(view).map_or(String::new(), |t| format!(" ({t})"));
    format!("{} failed: {how}{trouble}{nothing}", version(view.version))
}

/// What went wrong last in the registered version, in words.
fn trouble(view: &RolloutView) -> Option<String> {
    let lost = view.groups.iter().find_map(|(name, g)| Some(format!("group {name}: {}", g.unplaced.as_ref()?)));
    let all = view.groups.values().flat_map(|g| &g.timeline).filter(|h| h.version == view.version);
    let told = all.filter_map(|h| {
        let task = h.task.as_ref().map_or(String::new(), |t| format!("task {t} "));
        let restarts = |h: &super::Happening| {
            let mut of_task = view.groups.values().flat_map(|g| &g.timeline).filter(|r| r.alloc == h.alloc && r.task == h.task);
            let last = of_task.rfind(|r| matches!(r.what, What::Restarting { .. }))?;
            let What::Restarting { number, of, within, .. } = last.what else { return None };
            Some(format!(", restart {number} of {of} in {}", duration::human(within)))
        };
        let text = match &h.what {
            What::Exited { exit_code, signal } => {
                let signal = if *signal == 0 { String::new() } else { format!(", signal {signal}") };
                format!("{task}exited with {exit_code}{signal}{}", restarts(h).unwrap_or_default())
            }
            What::StartFailed { why } | What::GaveUp { why } => format!("{task}{why}"),
            What::Unhealthy { why: Some(why) } => why.clone(),
            _ => return None,
        };
        Some((h.at, text))
    });
    told.max_by_key(|(at, _)| *at).map(|(_, text)| text).or(lost)
}

fn unplaced(view: &RolloutView) -> String {
    let all = view.groups.iter().filter_map(|(name, g)| Some(format!("group {name}: {}", g.unplaced.as_ref()?)));
    all.collect::<Vec<_>>().join("; ")
}

/// What a running deployment waits for.
fn progress(view: &RolloutView, d: &Deployment) -> String {
    let mut parts = vec![];
    for (name, p) in &d.groups {
        let group = view.groups.get(name);
        if p.waits_for_promotion() {
            parts.push(format!(
                "group {name}: {} of {} canaries healthy, to be promoted: curfew job promote {}",
                p.healthy, p.canaries, d.key.job
            ));
            continue;
        }
        if p.healthy >= p.desired && (p.canaries == 0 || p.promoted) {
            continue;
        }
        let mut text = match (p.canaries > 0 && !p.promoted, p.healthy) {
            (true, healthy) => format!("group {name}: {healthy} of {} canaries healthy", p.canaries),
            (false, healthy) => format!("group {name}: {healthy} of {} healthy", p.desired),
        };
        if let Some(u) = group.and_then(|g| g.unplaced.as_ref()) {
            text.push_str(&format!(", {u}"));
        }
        if let Some(leaving) = group.map(|g| g.leaving).filter(|n| *n > 0) {
            text.push_str(&format!(", {} of another version to end", count(leaving, "allocation")));
        }
        parts.push(text);
    }
    match (parts.is_empty(), trouble(view).filter(|_| view.groups.values().all(|g| g.unplaced.is_none()))) {
        (true, _) => "Nomad to call the deployment successful".into(),
        (false, None) => parts.join("; "),
        (false, Some(trouble)) => format!("{}; last trouble: {trouble}", parts.join("; ")),
    }
}
