//! Service and batch jobs: which allocations go on, which end, which are replaced, and how fast a new version rolls in.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::cancelled;
use super::feasible::{Placer, count_by_node, may_stay};
use super::plan::{LOST, MIGRATING, NOT_NEEDED, Place, Plan, RESCHEDULED, Stop, UPDATING};
use crate::job::{GroupSpec, Job, JobKey, JobKind};
use crate::state::{
    Alloc, ClientStatus, Deployment, DeploymentStatus, Desired, Eval, GroupRollout, GroupUpdates, NodeStatus, Reschedule, State,
    Usage,
};

/// An allocation still to be placed.
struct Want {
    slot: usize,
    previous: Option<Arc<Alloc>>,
    reschedules: Vec<Reschedule>,
    avoid: String,
    canary: bool,
    in_deployment: bool,
}

/// What a group's allocations come to before counts are looked at.
#[derive(Default)]
struct Sorted {
    kept: Vec<Arc<Alloc>>,
    replace: Vec<(Arc<Alloc>, Vec<Reschedule>)>,
}

pub(super) fn plan(s: &mut State, job: Option<&Arc<Job>>, key: &JobKey, eval: &Eval) -> Plan {
    let mut plan = Plan { job: job.cloned(), ..Plan::default() };
    let allocs = s.allocs_of(key);
    let latest = s.latest_deployment(key);
    let Some(job) = job.filter(|j| !j.stop) else {
        if let Some(d) = latest.filter(|d| d.status.is_active()) {
            plan.deployment_changes.push(cancelled(&d, "Cancelled because job is stopped"));
        }
        for a in allocs.into_iter().filter(|a| a.desired == Desired::Run) {
            let entry = plan.updates.entry(a.spec().name.clone()).or_default();
            // What already ended is left as it is.
            if a.client.is_terminal() {
                entry.ignore += 1;
                continue;
            }
            entry.stop += 1;
            stop(s, &mut plan.stops, a, NOT_NEEDED);
        }
        return plan;
    };
    let mut current = latest.filter(|d| d.status.is_active() || d.job_version == job.version);
    if let Some(d) = current.clone()
        && (d.job_version != job.version || d.job_create_index != job.create_index)
    {
        plan.deployment_changes.push(cancelled(&d, "Cancelled due to newer version of job"));
        current = None;
    }
    let mut deployment = current.map(|d| Deployment::clone(&d));
    let mut changed = false;
    let mut taken: HashMap<String, Usage> = HashMap::new();
    for (index, group) in job.spec.groups.iter().enumerate() {
        let mine: Vec<Arc<Alloc>> = allocs.iter().filter(|a| a.spec().name == group.name).cloned().collect();
        let mut updates = GroupUpdates::default();
        let wants = plan_group(s, &mut plan, &mut deployment, &mut changed, job, index, group, mine, &mut updates, eval);
        place(s, &mut plan, job, index, group, wants, &allocs, &mut taken, &mut updates);
        plan.updates.insert(group.name.clone(), updates);
    }
    for a in allocs.iter().filter(|a| a.desired == Desired::Run && job.spec.group_index(&a.spec().name).is_none()) {
        plan.updates.entry(a.spec().name.clone()).or_default().stop += 1;
        stop(s, &mut plan.stops, a.clone(), NOT_NEEDED);
    }
    if let Some(d) = deployment.as_mut().filter(|d| d.status == DeploymentStatus::Running && d.create_index > 0) {
        let done = |g: &GroupRollout| g.healthy >= g.desired_total && (g.desired_canaries == 0 || g.promoted);
        if plan.places.is_empty() && plan.in_place.is_empty() && d.groups.values().all(done) {
            d.status = DeploymentStatus::Successful;
            d.description = "Deployment completed successfully".into();
            changed = true;
        }
    }
    if let Some(d) = deployment.as_mut().filter(|d| d.create_index == 0) {
        d.description = d.running_description().into();
    }
    if changed || plan.places.iter().any(|p| p.in_deployment) || deployment.as_ref().is_some_and(|d| d.create_index == 0) {
        plan.deployment = deployment;
    }
    plan
}

/// A stop; on a node that is gone the server says itself what became of it.
fn stop(s: &State, stops: &mut Vec<Stop>, alloc: Arc<Alloc>, description: &'static str) {
    let gone = s.nodes.get(&alloc.node_id).is_none_or(|n| n.status == NodeStatus::Down);
    let client = (gone && !alloc.client.is_terminal()).then_some(ClientStatus::Lost);
    stops.push(Stop { alloc, description, client });
}

#[expect(clippy::too_many_arguments, reason = "one group's share of a job-wide plan")]
fn plan_group(
    s: &mut State,
    plan: &mut Plan,
    deployment: &mut Option<Deployment>,
    changed: &mut bool,
    job: &Arc<Job>,
    index: usize,
    group: &Arc<GroupSpec>,
    allocs: Vec<Arc<Alloc>>,
    updates: &mut GroupUpdates,
    _eval: &Eval,
) -> Vec<Want> {
    let had_running = allocs.iter().any(|a| a.job.version == job.version && a.job.create_index == job.create_index);
    let sorted = sort(s, plan, deployment.as_ref(), job, group, allocs, updates);
    let mut kept = sorted.kept;

    // One allocation a slot; a canary may stand beside the one it tries to replace.
    // A promoted canary is no canary any more and takes the slot from the version before.
    kept.sort_by_key(|a| (a.slot, is_canary(a), !was_promoted(deployment.as_ref(), a), a.create_index));
    let mut seen = BTreeSet::new();
    let promoted =
        deployment.as_ref().and_then(|d| d.groups.get(&group.name)).is_none_or(|g| g.promoted || g.desired_canaries == 0);
    let mut survivors: Vec<Arc<Alloc>> = Vec::new();
    let replaced: BTreeSet<usize> = if promoted {
        kept.iter().filter(|a| is_canary(a) && same_version(a, job)).map(|a| a.slot).collect()
    } else {
        BTreeSet::new()
    };
    for a in kept {
        let canary = is_canary(&a) && same_version(&a, job);
        let failed = deployment.as_ref().is_some_and(|d| d.status == DeploymentStatus::Failed && d.id == a.deployment_id);
        if is_canary(&a) && (failed || !same_version(&a, job)) && !canary_promoted(s, &a) {
            updates.stop += 1;
            stop(s, &mut plan.stops, a, NOT_NEEDED);
            continue;
        }
        let crowded = !canary && replaced.contains(&a.slot);
        // A canary that waits for promotion stands beside the holder of its slot.
        let beside = canary && !promoted;
        let taken = !beside && !seen.insert(a.slot);
        if crowded || taken || (a.slot >= group.count && !canary) {
            updates.stop += 1;
            stop(s, &mut plan.stops, a, NOT_NEEDED);
        } else {
            survivors.push(a);
        }
    }

    // Old versions: in place where only bookkeeping changed, else one after the other.
    let mut destructive: Vec<Arc<Alloc>> = Vec::new();
    let mut in_place: Vec<Arc<Alloc>> = Vec::new();
    for a in &survivors {
        let old = &a.job;
        let current = old.job_modify_index == job.job_modify_index && old.create_index == job.create_index;
        if current || a.client.is_terminal() {
            updates.ignore += 1;
        } else if a.spec().fingerprint == group.fingerprint
            && old.spec.meta == job.spec.meta
            && s.nodes.get(&a.node_id).is_some_and(|n| may_stay(n, &job.spec, group))
        {
            in_place.push(a.clone());
        } else {
            destructive.push(a.clone());
        }
    }

    let rolls = group.update.is_some() && job.spec.kind == JobKind::Service;
    let update = group.update.as_ref().filter(|_| rolls);
    let missing =
        group.count.saturating_sub(survivors.iter().filter(|a| !is_canary(a) || promoted).count() + sorted.replace.len());
    let wants_change = !destructive.is_empty() || !in_place.is_empty();
    if let Some(u) = update
        && group.count > 0
        && deployment.as_ref().is_none_or(|d| !d.groups.contains_key(&group.name))
        && (wants_change || (!had_running && missing > 0))
    {
        let d = deployment.get_or_insert_with(|| new_deployment(s, job));
        let canaries = if destructive.is_empty() { 0 } else { u.canary.min(destructive.len()) };
        d.groups.insert(
            group.name.clone(),
            GroupRollout {
                auto_revert: u.auto_revert,
                auto_promote: u.auto_promote,
                progress_deadline: u.progress_deadline,
                require_progress_by: 0,
                promoted: false,
                placed_canaries: Vec::new(),
                desired_canaries: canaries,
                desired_total: group.count,
                placed: 0,
                healthy: 0,
                unhealthy: 0,
            },
        );
        *changed = true;
    }
    let rollout = deployment.as_ref().filter(|d| d.status.is_active()).and_then(|d| d.groups.get(&group.name)).cloned();
    let failed = deployment.as_ref().is_some_and(|d| d.status == DeploymentStatus::Failed);
    let paused = deployment.as_ref().is_some_and(|d| d.status == DeploymentStatus::Paused);
    let in_deployment = rollout.is_some();
    if !in_place.is_empty() && !paused {
        updates.in_place += in_place.len();
        plan.in_place.extend(in_place);
    }

    let mut wants: Vec<Want> = Vec::new();
    let wait_for_promotion = rollout.as_ref().is_some_and(|r| r.desired_canaries > 0 && !r.promoted);
    if wait_for_promotion && !failed && !paused {
        let have = survivors.iter().filter(|a| is_canary(a)).count();
        let want = rollout.as_ref().map_or(0, |r| r.desired_canaries);
        let slots: BTreeSet<usize> = survivors.iter().filter(|a| is_canary(a)).map(|a| a.slot).collect();
        for slot in (0..group.count.max(want)).filter(|i| !slots.contains(i)).take(want.saturating_sub(have)) {
            updates.canary += 1;
            wants.push(Want { slot, previous: None, reschedules: vec![], avoid: String::new(), canary: true, in_deployment });
        }
        updates.ignore += destructive.len();
        destructive.clear();
    }
    let limit = match (update, &rollout) {
        (_, _) if failed || paused => 0,
        (Some(u), Some(_)) => {
            let fresh = survivors.iter().filter(|a| same_version(a, job) && !a.client.is_terminal());
            let mut open = 0;
            let mut sick = false;
            for a in fresh {
                match a.health.as_ref().and_then(|h| h.healthy) {
                    Some(true) => {}
                    Some(false) => sick = true,
                    None => open += 1,
                }
            }
            if sick { 0 } else { u.max_parallel.saturating_sub(open) }
        }
        _ => usize::MAX,
    };
    let later = destructive.len().saturating_sub(limit);
    updates.ignore += later;
    for a in destructive.into_iter().take(limit) {
        updates.destructive += 1;
        stop(s, &mut plan.stops, a.clone(), UPDATING);
        wants.push(Want {
            slot: a.slot,
            avoid: String::new(),
            previous: Some(a),
            reschedules: vec![],
            canary: false,
            in_deployment,
        });
    }

    // Replacements of what was lost, migrated or failed, then slots nobody holds.
    let mut used: BTreeSet<usize> = survivors.iter().filter(|a| !is_canary(a) || promoted).map(|a| a.slot).collect();
    used.extend(wants.iter().filter(|w| !w.canary).map(|w| w.slot));
    for (a, reschedules) in sorted.replace {
        if a.slot >= group.count || !used.insert(a.slot) {
            continue;
        }
        let own = in_deployment && deployment.as_ref().is_some_and(|d| d.id == a.deployment_id || a.deployment_id.is_empty());
        wants.push(Want {
            slot: a.slot,
            avoid: a.node_id.clone(),
            previous: Some(a),
            reschedules,
            canary: false,
            in_deployment: own || in_deployment,
        });
    }
    for slot in (0..group.count).filter(|i| !used.contains(i)) {
        wants.push(Want { slot, previous: None, reschedules: vec![], avoid: String::new(), canary: false, in_deployment });
    }
    let _ = index;
    wants
}

fn is_canary(a: &Alloc) -> bool {
    a.health.as_ref().is_some_and(|h| h.canary)
}

fn was_promoted(d: Option<&Deployment>, a: &Alloc) -> bool {
    !is_canary(a) && d.and_then(|d| d.groups.get(&a.spec().name)).is_some_and(|g| g.placed_canaries.contains(&a.id))
}

fn canary_promoted(s: &State, a: &Alloc) -> bool {
    s.deployments.get(&a.deployment_id).and_then(|d| d.groups.get(&a.spec().name)).is_none_or(|g| g.promoted)
}

fn same_version(a: &Alloc, job: &Job) -> bool {
    a.job.version == job.version && a.job.create_index == job.create_index
}

fn new_deployment(s: &mut State, job: &Job) -> Deployment {
    Deployment {
        id: s.ids.uuid(),
        job: job.key(),
        job_version: job.version,
        job_modify_index: job.job_modify_index,
        job_spec_modify_index: job.job_modify_index,
        job_create_index: job.create_index,
        groups: BTreeMap::new(),
        status: DeploymentStatus::Running,
        description: "Deployment is running".into(),
        priority: job.spec.priority,
        create_index: 0,
        modify_index: 0,
        create_time: 0,
        modify_time: 0,
    }
}

/// Separates what goes on from what has to be replaced.
fn sort(
    s: &mut State,
    plan: &mut Plan,
    deployment: Option<&Deployment>,
    job: &Arc<Job>,
    group: &Arc<GroupSpec>,
    allocs: Vec<Arc<Alloc>>,
    updates: &mut GroupUpdates,
) -> Sorted {
    let batch = job.spec.kind.is_batch();
    let now = s.now();
    let mut out = Sorted::default();
    let mut followups: BTreeMap<i64, String> = BTreeMap::new();
    for a in allocs.into_iter().filter(|a| a.desired == Desired::Run) {
        let status = s.nodes.get(&a.node_id).map_or(NodeStatus::Down, |n| n.status);
        if a.client.is_terminal() && batch && (a.job.version < job.version || a.job.create_index < job.create_index) {
            // A batch job that was registered anew runs anew.
            continue;
        }
        match a.client {
            ClientStatus::Complete if batch => out.kept.push(a),
            ClientStatus::Complete => {}
            ClientStatus::Lost => {}
            ClientStatus::Failed => {
                if !a.next_alloc.is_empty() {
                    continue;
                }
                match reschedule(&a, group, deployment, now) {
                    When::Never => out.kept.push(a),
                    When::Now(delay) => {
                        updates.reschedule_now += 1;
                        let reschedules = track(&a, now, delay);
                        plan.stops.push(Stop { alloc: a.clone(), description: RESCHEDULED, client: None });
                        out.replace.push((a, reschedules));
                    }
                    When::Later(at) => {
                        updates.reschedule_later += 1;
                        if a.followup_eval.is_empty() {
                            let id = followups.entry(at).or_insert_with(|| {
                                let mut e = s.new_eval(job, "failed-follow-up");
                                e.wait_until = at;
                                e.status_description = "created for delayed rescheduling".into();
                                plan.followups.push(e.clone());
                                e.id
                            });
                            plan.waiting.push((a.clone(), id.clone()));
                        }
                        out.kept.push(a);
                    }
                }
            }
            ClientStatus::Unknown => {
                let patience = group.lost_after.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX));
                if now >= a.unknown_at.saturating_add(patience) {
                    updates.stop += 1;
                    plan.stops.push(Stop { alloc: a.clone(), description: LOST, client: Some(ClientStatus::Lost) });
                    if a.next_alloc.is_empty() {
                        out.replace.push((a, vec![]));
                    }
                } else if !replacement_lives(s, &a) {
                    // Its replacement, if it has one, holds the slot meanwhile.
                    out.kept.push(a);
                }
            }
            ClientStatus::Pending | ClientStatus::Running => match status {
                NodeStatus::Down => {
                    updates.stop += 1;
                    plan.stops.push(Stop { alloc: a.clone(), description: LOST, client: Some(ClientStatus::Lost) });
                    if !group.prevent_reschedule_on_lost {
                        out.replace.push((a, vec![]));
                    }
                }
                NodeStatus::Disconnected => match group.lost_after {
                    Some(patience) => {
                        updates.disconnect += 1;
                        let mut e = s.new_eval(job, "max-disconnect-timeout");
                        e.wait_until = now.saturating_add(i64::try_from(patience.as_nanos()).unwrap_or(i64::MAX));
                        plan.unknown.push((a.clone(), e.id.clone()));
                        plan.followups.push(e);
                        if group.replace_disconnected {
                            out.replace.push((a, vec![]));
                        } else {
                            out.kept.push(a);
                        }
                    }
                    None => {
                        updates.stop += 1;
                        plan.stops.push(Stop { alloc: a.clone(), description: LOST, client: Some(ClientStatus::Lost) });
                        out.replace.push((a, vec![]));
                    }
                },
                NodeStatus::Ready if a.transition.migrate == Some(true) => {
                    updates.migrate += 1;
                    plan.stops.push(Stop { alloc: a.clone(), description: MIGRATING, client: None });
                    if a.transition.migrate_disable_placement != Some(true) {
                        out.replace.push((a, vec![]));
                    }
                }
                NodeStatus::Ready => out.kept.push(a),
            },
        }
    }
    out
}

fn replacement_lives(s: &State, a: &Alloc) -> bool {
    s.allocs.get(&a.next_alloc).is_some_and(|n| !n.is_terminal())
}

enum When {
    Never,
    Now(i64),
    Later(i64),
}

/// Whether the policy leaves an attempt, whenever that would be.
pub(crate) fn may_reschedule(a: &Alloc) -> bool {
    let policy = &a.spec().reschedule;
    if policy.unlimited {
        return true;
    }
    let since = a.last_event_time() - policy.interval;
    let tried = a.reschedules.iter().filter(|r| r.at > since).count();
    !a.job.spec.kind.is_system() && i64::try_from(tried).unwrap_or(i64::MAX) < policy.attempts
}

fn reschedule(a: &Alloc, group: &GroupSpec, deployment: Option<&Deployment>, now: i64) -> When {
    if a.transition.force_reschedule == Some(true) {
        return When::Now(0);
    }
    if !may_reschedule(a) {
        return When::Never;
    }
    // A running deployment decides itself what becomes of its own failures.
    if deployment.is_some_and(|d| d.status.is_active() && d.id == a.deployment_id) && a.transition.reschedule != Some(true) {
        return When::Never;
    }
    let delay = next_delay(a, group);
    let at = a.last_event_time().saturating_add(delay);
    // Nomad takes what is due within five seconds along at once when it looks anyway.
    if now >= at { When::Now(delay) } else { When::Later(at) }
}

fn next_delay(a: &Alloc, group: &GroupSpec) -> i64 {
    let p = &group.reschedule;
    let n = u32::try_from(a.reschedules.len()).unwrap_or(u32::MAX).min(30);
    let delay = match p.function.as_str() {
        "exponential" => p.delay.saturating_mul(1_i64 << n),
        "fibonacci" => {
            let (mut x, mut y) = (p.delay, p.delay);
            for _ in 0..n {
                (x, y) = (y, x.saturating_add(y));
            }
            x
        }
        _ => p.delay,
    };
    if p.max_delay > 0 { delay.min(p.max_delay) } else { delay }
}

fn track(a: &Alloc, now: i64, delay: i64) -> Vec<Reschedule> {
    let mut list = a.reschedules.clone();
    if list.len() >= 5 {
        list.remove(0);
    }
    list.push(Reschedule { at: now, prev_alloc: a.id.clone(), prev_node: a.node_id.clone(), delay });
    list
}

#[expect(clippy::too_many_arguments, reason = "one group's share of a job-wide plan")]
fn place(
    s: &State,
    plan: &mut Plan,
    job: &Arc<Job>,
    index: usize,
    group: &Arc<GroupSpec>,
    wants: Vec<Want>,
    allocs: &[Arc<Alloc>],
    taken: &mut HashMap<String, Usage>,
    updates: &mut GroupUpdates,
) {
    if wants.is_empty() {
        plan.queued.insert(group.name.clone(), 0);
        return;
    }
    let same_job = count_by_node(allocs.iter().filter(|a| !a.is_terminal()).map(AsRef::as_ref));
    let mut placer = Placer::new(s, &job.spec, group, same_job, std::mem::take(taken));
    let updating: HashSet<String> = plan.stops.iter().filter(|x| x.description == UPDATING).map(|x| x.alloc.id.clone()).collect();
    // Nothing is ended for the sake of a replacement that finds no room.
    let mut spared: HashSet<String> = HashSet::new();
    let mut missing = 0;
    for w in wants {
        let fresh = w.previous.as_ref().is_none_or(|p| p.desired == Desired::Run && !updating.contains(&p.id));
        if !w.canary && fresh {
            updates.place += 1;
        }
        // A sticky or migrating disk would pin the place; without one only a lost or drained node is avoided.
        match placer.choose(&w.avoid) {
            Some(node) => {
                plan.places.push(Place {
                    group: index,
                    slot: w.slot,
                    node,
                    previous: w.previous,
                    reschedules: w.reschedules,
                    canary: w.canary,
                    in_deployment: w.in_deployment,
                    nodes_in_dc: placer.nodes_in_dc(),
                });
            }
            None => {
                missing += 1;
                spared.extend(w.previous.map(|p| p.id.clone()));
            }
        }
    }
    plan.stops.retain(|x| x.description != RESCHEDULED || !spared.contains(&x.alloc.id));
    if missing > 0 {
        let mut failure = placer.failure.clone();
        failure.coalesced = missing - 1;
        plan.failures.insert(group.name.clone(), failure);
    }
    plan.queued.insert(group.name.clone(), missing);
    *taken = placer.into_taken();
}
