//! The deployment watcher: health counts, deadlines, promotion, failure and rollback.

use std::sync::Arc;

use super::jobs;
use crate::job::JobKey;
use crate::state::{Alloc, Deployment, DeploymentStatus, Desired, EvalStatus, State, Timer};

/// Counts a health that a client reported, inside the running transaction.
pub(crate) fn count_health(s: &mut State, a: &Alloc, was: Option<bool>, healthy: bool, at: i64) {
    let Some(d) = s.deployments.get(&a.deployment_id) else { return };
    let mut d = Deployment::clone(d);
    let Some(g) = d.groups.get_mut(&a.spec().name) else { return };
    match was {
        Some(true) => g.healthy = g.healthy.saturating_sub(1),
        Some(false) => g.unhealthy = g.unhealthy.saturating_sub(1),
        None => {}
    }
    if healthy {
        g.healthy += 1;
        if g.progress_deadline > 0 {
            g.require_progress_by = at.saturating_add(g.progress_deadline);
            let due = s.clock.instant_of(g.require_progress_by);
            s.timers.insert((due, Timer::Progress(d.id.clone())));
        }
    } else {
        g.unhealthy += 1;
    }
    s.put_deployment(d);
}

/// Decides what a deployment does next; runs after each change that concerns it.
pub(crate) fn look(s: &mut State, id: &str) {
    let Some(d) = s.deployments.get(id).cloned() else { return };
    if d.status != DeploymentStatus::Running {
        return;
    }
    // Without rescheduling an unhealthy allocation stays what it is: there is nothing to wait for.
    let job = s.job(&d.job);
    let final_one = |name: &str| {
        job.as_ref()
            .and_then(|j| j.spec.groups.iter().find(|g| g.name == name))
            .is_some_and(|g| !g.reschedule.unlimited && g.reschedule.attempts == 0)
    };
    let unhealthy_fails = d.groups.iter().any(|(name, g)| g.unhealthy > 0 && (g.progress_deadline == 0 || final_one(name)));
    if unhealthy_fails {
        fail(s, &d, "Failed due to unhealthy allocations");
        return;
    }
    let auto = d.requires_promotion()
        && d.groups.values().all(|g| g.desired_canaries == 0 || (g.auto_promote && g.healthy >= g.desired_canaries));
    if auto {
        promote(s, id, None);
        return;
    }
    let complete = d.groups.values().all(|g| g.healthy >= g.desired_total && (g.desired_canaries == 0 || g.promoted));
    s.begin("EvaluationUpdated");
    // Its success is the scheduler's to find: the plan of the next look at the job says so.
    if !complete && d.groups.values().any(|g| g.unhealthy > 0) {
        // What failed may be rescheduled while the deadline allows it.
        let failed: Vec<Arc<Alloc>> = s
            .allocs_of(&d.job)
            .into_iter()
            .filter(|a| a.deployment_id == d.id && a.health.as_ref().and_then(|h| h.healthy) == Some(false))
            .filter(|a| a.transition.reschedule.is_none() && a.client == crate::state::ClientStatus::Failed)
            .collect();
        for a in failed {
            let mut a = Alloc::clone(&a);
            a.transition.reschedule = Some(true);
            s.put_alloc(a);
        }
    }
    // Nomad's watcher waits a moment and finds the work done when something else had the job looked at.
    let due = s.evals_of_iter(&d.job).any(|e| e.status == EvalStatus::Pending && e.wait_until == 0);
    if !due {
        evaluate(s, &d);
    }
    s.commit();
}

fn evaluate(s: &mut State, d: &Deployment) -> (String, u64) {
    let Some(job) = s.job(&d.job) else { return (String::new(), 0) };
    let mut e = s.new_eval(&job, "deployment-watcher");
    e.deployment_id = d.id.clone();
    let e = s.put_eval(e);
    (e.id.clone(), e.create_index)
}

pub(crate) fn deadline(s: &mut State, id: &str) {
    let Some(d) = s.deployments.get(id).cloned() else { return };
    let now = s.now();
    let late = |g: &crate::state::GroupRollout| {
        let waiting_for_people = g.desired_canaries > 0 && !g.promoted && g.healthy >= g.desired_canaries;
        g.require_progress_by > 0 && g.require_progress_by <= now && g.healthy < g.desired_total && !waiting_for_people
    };
    if d.status == DeploymentStatus::Running && d.groups.values().any(late) {
        fail(s, &d, "Failed due to progress deadline");
    }
}

pub(crate) struct Failed {
    pub eval_id: String,
    pub eval_index: u64,
    pub reverted: Option<u64>,
    pub index: u64,
}

/// Fails a deployment and rolls the job back where that is wanted.
pub(crate) fn fail(s: &mut State, d: &Deployment, why: &str) -> Failed {
    let wants_revert = d.groups.values().any(|g| g.auto_revert);
    let stable = if wants_revert { stable_version(s, &d.job, d.job_version) } else { None };
    let same = stable.is_some_and(|v| same_specification(s, &d.job, v, d.job_version));
    let description = match (wants_revert, stable) {
        (true, Some(v)) if same => {
            format!("{why} - not rolling back to stable job version {v} as current job has same specification")
        }
        (true, Some(v)) => format!("{why} - rolling back to job version {v}"),
        (true, None) => format!("{why} - no stable job version to auto revert to"),
        (false, _) => why.to_owned(),
    };
    let index = s.begin("DeploymentStatusUpdate");
    let mut failed = Deployment::clone(d);
    failed.status = DeploymentStatus::Failed;
    failed.description = description;
    s.put_deployment(failed);
    let reverted = stable.filter(|_| !same);
    let (eval_id, eval_index) = match reverted.and_then(|version| jobs::roll_back(s, &d.job, version, index)) {
        Some(r) => (r.eval_id, r.eval_index),
        None => evaluate(s, d),
    };
    s.commit();
    Failed { eval_id, eval_index, reverted, index }
}

fn stable_version(s: &State, key: &JobKey, below: u64) -> Option<u64> {
    s.jobs.get(key)?.versions.iter().find(|v| v.stable && v.version < below).map(|v| v.version)
}

fn same_specification(s: &State, key: &JobKey, a: u64, b: u64) -> bool {
    let Some(entry) = s.jobs.get(key) else { return false };
    let of = |n| entry.versions.iter().find(|v| v.version == n).map(|v| &v.spec.groups);
    match (of(a), of(b)) {
        (Some(x), Some(y)) => {
            x.len() == y.len()
                && x.iter().zip(y).all(|(x, y)| x.fingerprint == y.fingerprint && x.count == y.count && x.name == y.name)
        }
        _ => false,
    }
}

/// Promotes the canaries of some groups, or of all.
pub(crate) fn promote(s: &mut State, id: &str, groups: Option<&[String]>) -> Option<(String, u64, u64)> {
    let d = s.deployments.get(id)?.clone();
    let index = s.begin("DeploymentPromotion");
    let mut d = Deployment::clone(&d);
    let now = s.now();
    for (_, g) in d.groups.iter_mut().filter(|(name, _)| groups.is_none_or(|list| list.contains(name))) {
        g.promoted = true;
        if g.progress_deadline > 0 && g.require_progress_by > 0 {
            g.require_progress_by = now.saturating_add(g.progress_deadline);
            let due = s.clock.instant_of(g.require_progress_by);
            s.timers.insert((due, Timer::Progress(id.to_owned())));
        }
        for canary in &g.placed_canaries {
            let Some(mut a) = s.allocs.get(canary).map(|a| Alloc::clone(a)) else { continue };
            let healthy = a.health.as_ref().is_some_and(|h| h.healthy == Some(true));
            if let Some(h) = a.health.as_mut().filter(|_| healthy && a.desired == Desired::Run) {
                h.canary = false;
                s.put_alloc(a);
            }
        }
    }
    d.description = d.running_description().into();
    s.put_deployment(d.clone());
    let (eval, eval_index) = evaluate(s, &d);
    s.commit();
    Some((eval, eval_index, index))
}

pub(crate) fn pause(s: &mut State, id: &str, pause: bool) -> Option<(String, u64, u64)> {
    let d = s.deployments.get(id)?.clone();
    let index = s.begin("DeploymentStatusUpdate");
    let mut d = Deployment::clone(&d);
    d.status = if pause { DeploymentStatus::Paused } else { DeploymentStatus::Running };
    d.description = if pause { "Deployment is paused" } else { "Deployment is running" }.into();
    s.put_deployment(d.clone());
    let (eval, eval_index) = if pause { (String::new(), 0) } else { evaluate(s, &d) };
    s.commit();
    Some((eval, eval_index, index))
}
