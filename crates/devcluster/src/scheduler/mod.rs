//! The scheduler: evaluations, one after the other, each looked at right after it was created.

pub(crate) mod feasible;
mod plan;
mod reconcile;
mod system;

use std::sync::Arc;

pub(crate) use plan::Plan;
pub(crate) use reconcile::may_reschedule;

use crate::core::Core;
use crate::job::Job;
use crate::state::{
    Alloc, ClientStatus, Deployment, DeploymentStatus, Desired, Eval, EvalStatus, Health, NodeStatus, State, Timer, Transition,
};

/// Works the queue until the cluster stops.
pub(crate) async fn run(core: Arc<Core>) {
    loop {
        let next = core.write(|s| s.queue.pop_front());
        match next {
            Some(id) => {
                core.write(|s| process(s, &id));
                tokio::task::yield_now().await;
            }
            None => {
                tokio::select! {
                    biased;
                    () = core.cancel.cancelled() => return,
                    () = core.schedule.notified() => {}
                }
            }
        }
    }
}

fn process(s: &mut State, id: &str) {
    let Some(eval) = s.evals.get(id).cloned() else { return };
    if eval.status != EvalStatus::Pending {
        return;
    }
    let job = s.job(&eval.job);
    let snapshot = s.index;
    let plan = make_plan(s, job.as_ref(), &eval.job, &eval);
    let mut done = Eval::clone(&eval);
    done.snapshot_index = snapshot;
    done.updates = Some(plan.updates.clone());
    if job.is_some() {
        done.queued = Some(plan.queued.clone());
    }
    done.failures = plan.failures.clone();
    if !plan.is_empty() {
        s.begin("PlanResult");
        s.put_eval(Eval::clone(&eval));
        if let Some(deployment) = apply(s, plan, &eval) {
            done.deployment_id = deployment;
        }
        s.commit();
    }
    if done.deployment_id.is_empty()
        && let Some(d) = s.latest_deployment(&eval.job)
    {
        done.deployment_id = d.id.clone();
    }
    s.begin("EvaluationUpdated");
    let stopped = job.as_ref().is_none_or(|j| j.stop);
    if done.failures.is_empty() || stopped {
        cancel_blocked(s, &eval, "", &format!("evaluation {:?} successful", eval.id));
    } else if let Some(job) = &job {
        let mut blocked = s.new_eval(job, "queued-allocs");
        blocked.status = EvalStatus::Blocked;
        blocked.status_description = "created to place remaining allocations".into();
        blocked.previous = eval.id.clone();
        blocked.failures = done.failures.clone();
        blocked.snapshot_index = snapshot;
        blocked.job_modify_index = job.job_modify_index;
        done.blocked = blocked.id.clone();
        cancel_blocked(s, &eval, &blocked.id.clone(), "canceled after more recent eval was processed");
        s.put_eval(blocked);
    }
    done.status = EvalStatus::Complete;
    s.put_eval(done);
    s.commit();
}

/// One blocked evaluation a job is enough.
fn cancel_blocked(s: &mut State, eval: &Eval, keep: &str, why: &str) {
    let old: Vec<Arc<Eval>> = s
        .blocked
        .iter()
        .filter(|id| *id != keep)
        .filter_map(|id| s.evals.get(id))
        .filter(|e| e.job == eval.job)
        .cloned()
        .collect();
    for e in old {
        let mut e = Eval::clone(&e);
        e.status = EvalStatus::Cancelled;
        e.status_description = why.into();
        s.put_eval(e);
    }
}

/// Plans without changing anything but the source of identifiers; `plan` endpoints use it too.
pub(crate) fn make_plan(s: &mut State, job: Option<&Arc<Job>>, key: &crate::job::JobKey, eval: &Eval) -> Plan {
    let active = job.filter(|j| !j.spec.periodic && !j.spec.parameterized);
    let mut plan = match active {
        Some(job) if job.spec.kind.is_system() => system::plan(s, job),
        _ => reconcile::plan(s, active, key, eval),
    };
    // What was stopped already and is on a node that is gone will not be heard of.
    for a in s.allocs_of(key) {
        let gone = s.nodes.get(&a.node_id).is_none_or(|n| n.status == NodeStatus::Down);
        if gone && a.desired == Desired::Stop && matches!(a.client, ClientStatus::Running | ClientStatus::Pending) {
            plan.stops.push(plan::Stop { alloc: a, description: plan::LOST, client: Some(ClientStatus::Lost) });
        }
    }
    plan
}

/// Carries a plan out inside the running transaction; answers with the deployment it belongs to.
fn apply(s: &mut State, plan: Plan, eval: &Eval) -> Option<String> {
    let index = s.index;
    let now = s.now();
    for d in plan.deployment_changes {
        s.put_deployment(d);
    }
    let mut deployment = plan.deployment;
    let deployment_id = deployment.as_ref().map(|d| d.id.clone());
    for stop in plan.stops {
        let Some(a) = s.allocs.get(&stop.alloc.id) else { continue };
        let mut a = Alloc::clone(a);
        a.desired = Desired::Stop;
        // What failed and was replaced keeps its description; every recording leaves the reason out.
        if stop.description != plan::RESCHEDULED {
            a.desired_description = stop.description;
        }
        if let Some(client) = stop.client {
            a.client = client;
        }
        // A stop may say that shutdown delays are to be skipped; the job's deregistration noted it on the allocation.
        s.put_alloc(a);
    }
    for (alloc, followup) in plan.unknown {
        let Some(a) = s.allocs.get(&alloc.id) else { continue };
        let mut a = Alloc::clone(a);
        a.client = ClientStatus::Unknown;
        a.client_description = plan::UNKNOWN.into();
        a.unknown_at = now;
        a.followup_eval = followup;
        s.put_alloc(a);
    }
    for (alloc, followup) in plan.waiting {
        let Some(a) = s.allocs.get(&alloc.id) else { continue };
        let mut a = Alloc::clone(a);
        a.followup_eval = followup;
        s.put_alloc(a);
    }
    for f in plan.followups {
        s.put_eval(f);
    }
    if let Some(job) = plan.job {
        for alloc in plan.in_place {
            let Some(a) = s.allocs.get(&alloc.id) else { continue };
            let Some(group) = job.spec.group_index(&alloc.spec().name) else { continue };
            let mut a = Alloc::clone(a);
            a.job = job.clone();
            a.group = group;
            a.eval_id = eval.id.clone();
            if let Some(d) = &mut deployment
                && let Some(g) = d.groups.get_mut(&job.spec.groups[group].name)
            {
                a.deployment_id = d.id.clone();
                a.health = None;
                g.placed += 1;
            }
            s.put_alloc(a);
        }
        for p in plan.places {
            let id = s.ids.uuid();
            let group = job.spec.groups[p.group].clone();
            let mut alloc = Alloc {
                id: id.clone(),
                eval_id: eval.id.clone(),
                slot: p.slot,
                node_id: p.node.id.clone(),
                node_name: p.node.name.clone(),
                job: job.clone(),
                group: p.group,
                desired: Desired::Run,
                desired_description: "",
                client: ClientStatus::Pending,
                client_description: "".into(),
                transition: Transition::default(),
                tasks: Arc::default(),
                deployment_id: String::new(),
                health: p.canary.then_some(Health { healthy: None, at: 0, canary: true, modify_index: index }),
                followup_eval: String::new(),
                next_alloc: String::new(),
                prev_alloc: String::new(),
                reschedules: p.reschedules,
                create_index: index,
                modify_index: index,
                alloc_modify_index: index,
                create_time: now,
                modify_time: now,
                has_network: false,
                unknown_at: 0,
                nodes_in_dc: p.nodes_in_dc,
            };
            if p.in_deployment
                && let Some(d) = &mut deployment
                && let Some(g) = d.groups.get_mut(&group.name)
            {
                alloc.deployment_id = d.id.clone();
                g.placed += 1;
                if p.canary {
                    g.placed_canaries.push(id.clone());
                }
                if g.require_progress_by == 0 && g.progress_deadline > 0 {
                    g.require_progress_by = now + g.progress_deadline;
                    let at = s.clock.instant_of(g.require_progress_by);
                    s.timers.insert((at, Timer::Progress(d.id.clone())));
                }
            }
            if let Some(prev) = &p.previous {
                alloc.prev_alloc = prev.id.clone();
                if let Some(old) = s.allocs.get(&prev.id) {
                    let mut old = Alloc::clone(old);
                    old.next_alloc = id.clone();
                    s.put_alloc(old);
                }
            }
            s.put_alloc(alloc);
        }
    }
    if let Some(d) = deployment {
        let d = s.put_deployment(d);
        if d.status == DeploymentStatus::Successful {
            s.mark_stable(&d.job, d.job_version, true);
        }
    }
    deployment_id
}

/// Ends an active deployment of another version, or of a job that is wanted no more.
fn cancelled(d: &Deployment, why: &str) -> Deployment {
    let mut d = d.clone();
    d.status = DeploymentStatus::Cancelled;
    d.description = why.into();
    d
}
