//! System and sysbatch jobs: one allocation a group on every node that may run it.

use std::collections::HashMap;
use std::sync::Arc;

use super::feasible::Placer;
use super::plan::{LOST, NODE_TAINTED, NOT_NEEDED, Place, Plan, Stop, UPDATING};
use crate::job::{Job, JobKind};
use crate::state::{Alloc, ClientStatus, Desired, GroupUpdates, NodeStatus, State};

pub(super) fn plan(s: &State, job: &Arc<Job>) -> Plan {
    let mut plan = Plan { job: Some(job.clone()), ..Plan::default() };
    let allocs = s.allocs_of(&job.key());
    let mut taken = HashMap::new();
    for a in allocs.iter().filter(|a| a.desired == Desired::Run && (job.stop || job.spec.group_index(&a.spec().name).is_none())) {
        if !a.client.is_terminal() {
            plan.updates.entry(a.spec().name.clone()).or_default().stop += 1;
            let gone = s.nodes.get(&a.node_id).is_none_or(|n| n.status == NodeStatus::Down);
            plan.stops.push(Stop { alloc: a.clone(), description: NOT_NEEDED, client: gone.then_some(ClientStatus::Lost) });
        }
    }
    if job.stop {
        return plan;
    }
    for (index, group) in job.spec.groups.iter().enumerate() {
        let mut updates = GroupUpdates::default();
        let mut placer = Placer::new(s, &job.spec, group, HashMap::new(), std::mem::take(&mut taken));
        let feasible: Vec<_> = placer.feasible().iter().map(|n| Arc::clone(n)).collect();
        let mut have: HashMap<String, Vec<Arc<Alloc>>> = HashMap::new();
        for a in allocs.iter().filter(|a| a.desired == Desired::Run && a.spec().name == group.name) {
            have.entry(a.node_id.clone()).or_default().push(a.clone());
        }
        let mut mine: Vec<&Arc<Alloc>> = have.values().flatten().collect();
        mine.sort_by(|a, b| a.id.cmp(&b.id));
        for a in mine {
            let node = s.nodes.get(&a.node_id);
            match node.map(|n| n.status) {
                None | Some(NodeStatus::Down | NodeStatus::Disconnected) if !a.client.is_terminal() => {
                    updates.stop += 1;
                    plan.stops.push(Stop { alloc: a.clone(), description: LOST, client: Some(ClientStatus::Lost) });
                }
                _ if a.transition.migrate == Some(true) && !a.client.is_terminal() => {
                    updates.stop += 1;
                    plan.stops.push(Stop { alloc: a.clone(), description: NODE_TAINTED, client: None });
                }
                _ => {}
            }
        }
        let mut missing = 0;
        let mut failure = None;
        for node in feasible {
            let old: Vec<&Arc<Alloc>> =
                have.get(&node.id).into_iter().flatten().filter(|a| a.transition.migrate != Some(true)).collect();
            let current = |a: &Alloc| a.job.version == job.version && a.job.create_index == job.create_index;
            let ended = |a: &Alloc| match job.spec.kind {
                // What completed on this version is done; what failed for good stays failed.
                JobKind::SysBatch => a.client.is_terminal() && !current(a),
                _ => a.client == ClientStatus::Complete || a.client == ClientStatus::Lost,
            };
            // What is stopped in this look is replaced in the next, whenever that comes.
            let leaving = |a: &&Arc<Alloc>| a.transition.migrate == Some(true) && !a.client.is_terminal();
            if have.get(&node.id).is_some_and(|list| list.iter().any(|a| leaving(&a))) {
                continue;
            }
            let live: Vec<&Arc<Alloc>> = old.into_iter().filter(|a| !ended(a)).collect();
            let mut previous = None;
            if let Some(a) = live.first() {
                if a.job.job_modify_index == job.job_modify_index || a.client.is_terminal() {
                    updates.ignore += 1;
                    continue;
                }
                if a.spec().fingerprint == group.fingerprint {
                    updates.in_place += 1;
                    plan.in_place.push(Arc::clone(a));
                    continue;
                }
                updates.destructive += 1;
                plan.stops.push(Stop { alloc: Arc::clone(a), description: UPDATING, client: None });
                previous = Some(Arc::clone(a));
            }
            if group.count == 0 {
                continue;
            }
            if let Some(dimension) = placer.fits(&node) {
                missing += 1;
                let f = failure.get_or_insert_with(|| placer.failure.clone());
                f.exhausted += 1;
                *f.dimension_exhausted.entry(dimension.into()).or_default() += 1;
                continue;
            }
            if previous.is_none() {
                updates.place += 1;
            }
            placer.take(&node);
            plan.places.push(Place {
                group: index,
                slot: 0,
                node,
                previous,
                reschedules: Vec::new(),
                canary: false,
                in_deployment: false,
                nodes_in_dc: placer.nodes_in_dc(),
            });
        }
        if let Some(f) = failure {
            plan.failures.insert(group.name.clone(), f);
        }
        plan.queued.insert(group.name.clone(), missing);
        plan.updates.insert(group.name.clone(), updates);
        taken = placer.into_taken();
    }
    plan
}
