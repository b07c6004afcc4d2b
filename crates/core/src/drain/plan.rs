//! What a drain would do to an allocation.

use std::time::Duration;

use super::{DrainOptions, Strategy};
use crate::Allocation;
use crate::api::{AllocPlan, Gets};
use crate::clock::{Graces, own_stop_timeout};
use crate::spec::{JobSpec, JobType, Role};

/// `elsewhere`: whether a node that takes allocations and stays may have it.
pub fn of_allocation(alloc: &Allocation, spec: &JobSpec, options: &DrainOptions, elsewhere: bool, graces: &Graces) -> AllocPlan {
    let gets = match (spec.job_type, options.strategy) {
        (JobType::System, _) if options.ignore_system => Gets::Stays,
        _ if options.only_managed && !spec.managed => Gets::Unclocked,
        (JobType::System, _) => Gets::ToldLast,
        (_, Strategy::Evacuate) => Gets::ToldAtOnce,
        (JobType::Service, Strategy::Migrate) => Gets::ToldInTurn,
        (JobType::Batch | JobType::SysBatch, Strategy::Migrate) => Gets::ToldLate,
    };
    let not_replaced = match spec.job_type {
        _ if gets == Gets::Stays => None,
        JobType::System | JobType::SysBatch => Some("a system job has an allocation on each node and none instead of this one"),
        JobType::Batch => Some("Nomad does not place a batch allocation again that a drain stopped"),
        JobType::Service if !elsewhere => Some(
            "no other node that takes allocations fits its datacenters, its node pool and the node that its constraints name",
        ),
        JobType::Service => None,
    };
    AllocPlan {
        id: alloc.id.clone(),
        job: alloc.job_key(),
        group: alloc.group.clone(),
        job_type: spec.job_type,
        managed: spec.managed,
        gets,
        stop_timeout: longest(alloc, spec, |own, _| own, graces),
        not_replaced: not_replaced.map(str::to_owned),
    }
}

/// How long an allocation may take after it was told: its shutdown delays, and its longest stop timeout.
pub fn needs(alloc: &Allocation, spec: &JobSpec, graces: &Graces) -> Duration {
    let group = spec.groups.get(&alloc.group).map_or(Duration::ZERO, |g| g.shutdown_delay);
    group + longest(alloc, spec, |own, delay| own + delay, graces)
}

fn longest(alloc: &Allocation, spec: &JobSpec, of: impl Fn(Duration, Duration) -> Duration, graces: &Graces) -> Duration {
    let tasks = spec.groups.get(&alloc.group).into_iter().flat_map(|g| g.tasks.values()).filter(|t| t.role != Role::Poststop);
    tasks.map(|t| of(own_stop_timeout(spec, t, graces), t.shutdown_delay)).max().unwrap_or_default()
}
