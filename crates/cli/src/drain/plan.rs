//! What a drain would do, as people read it before they agree.

use std::collections::BTreeMap;

use curfew_client::{AllocPlan, DrainPlan, Gets, MaxParallel, NodePlan};
use curfew_core::spec::JobType;
use curfew_core::{JobKey, duration};

use super::progress::{count, job, the};
use crate::output::fitted;

/// A question is not asked below a page that nobody reads.
const NODES_SHOWN: usize = 20;
const JOBS_SHOWN: usize = 20;
const WARNINGS_SHOWN: usize = 20;

/// `3 nodes with 14 allocations`.
pub fn what(plan: &DrainPlan) -> String {
    let leave = plan.nodes.iter().flat_map(|n| &n.allocations).filter(|a| a.gets != Gets::Stays).count();
    format!("{} with {}", count(plan.nodes.len(), "node"), count(leave, "allocation"))
}

/// Everything, allocation by allocation.
pub fn whole(plan: &DrainPlan, width: Option<usize>) -> String {
    let rows = plan.nodes.iter().flat_map(|n| n.allocations.iter().map(move |a| (n, a))).map(|(n, a)| {
        [
            n.name.clone(),
            a.id.short().to_owned(),
            job(&a.job),
            a.group.clone(),
            kind(a),
            a.gets.as_str().to_owned(),
            duration::format(a.stop_timeout),
        ]
    });
    let rows: Vec<_> = rows.collect();
    let mut parts = vec![head(plan), nodes(plan.nodes.iter(), width)];
    if !rows.is_empty() {
        let header = ["NODE", "ALLOC", "JOB", "GROUP", "TYPE", "GETS", "STOP"];
        parts.push(fitted(width, header, rows));
    }
    parts.extend(not_replaced(plan, usize::MAX));
    parts.extend(said(plan, usize::MAX));
    parts.join("\n\n")
}

/// By job, and not more than fits before a question.
pub fn short(plan: &DrainPlan, width: Option<usize>) -> String {
    let mut listed = nodes(plan.nodes.iter().take(NODES_SHOWN), width);
    listed += &more(plan.nodes.len(), NODES_SHOWN, "node");
    let mut parts = vec![head(plan), listed];
    let mut jobs: BTreeMap<(&JobKey, &str, &str), (usize, &AllocPlan)> = BTreeMap::new();
    for a in plan.nodes.iter().flat_map(|n| &n.allocations) {
        jobs.entry((&a.job, a.group.as_str(), a.gets.as_str())).or_insert((0, a)).0 += 1;
    }
    if !jobs.is_empty() {
        let rows = jobs.iter().take(JOBS_SHOWN).map(|((key, group, gets), (n, a))| {
            let stop = duration::format(a.stop_timeout);
            [job(key), (*group).to_owned(), kind(a), n.to_string(), (*gets).to_owned(), stop]
        });
        let header = ["JOB", "GROUP", "TYPE", "ALLOCS", "GETS", "STOP"];
        let table = fitted(width, header, rows.collect());
        parts.push(table + &more(jobs.len(), JOBS_SHOWN, "group"));
    }
    parts.extend(not_replaced(plan, JOBS_SHOWN));
    parts.extend(said(plan, WARNINGS_SHOWN));
    parts.join("\n\n")
}

fn more(all: usize, shown: usize, what: &str) -> String {
    let rest = all.saturating_sub(shown);
    if rest == 0 {
        String::new()
    } else {
        format!("\n… and {}; --dry-run shows everything", count(rest, &format!("more {what}")))
    }
}

fn head(plan: &DrainPlan) -> String {
    let o = &plan.options;
    let mut how = vec![format!("strategy {}", o.strategy.as_str())];
    how.push(match (o.no_deadline, o.drain_timeout) {
        (true, _) => "NO DEADLINE: nothing is killed because of this drain, and it may never end".into(),
        (false, Some(d)) => format!("SIGKILL {} after a node's drain began", duration::format(d)),
        (false, None) => "SIGKILL when each node's drain timeout has passed".into(),
    });
    how.extend(o.max_parallel.map(|n| match n {
        MaxParallel::Nodes(1) => "one node at a time".into(),
        MaxParallel::Nodes(n) => format!("{n} nodes at a time"),
        MaxParallel::Percent(p) => format!("{p}% of the nodes at a time"),
    }));
    how.extend(o.ignore_system.then(|| "system jobs stay".into()));
    how.extend(o.only_managed.then(|| "only what was submitted through Curfew".into()));
    format!("Drain of {}: {}\n{}", the(&plan.target), what(plan), how.join("; "))
}

fn nodes<'a>(nodes: impl Iterator<Item = &'a NodePlan>, width: Option<usize>) -> String {
    let rows = nodes.map(|n| {
        let leave = n.allocations.iter().filter(|a| a.gets != Gets::Stays).count();
        let stay = n.allocations.len() - leave;
        [
            n.name.clone(),
            n.id.as_str().chars().take(8).collect(),
            n.datacenter.to_string(),
            n.node_pool.clone(),
            if n.eligible { n.status.clone() } else { format!("{}, ineligible", n.status) },
            if stay == 0 { leave.to_string() } else { format!("{leave} ({stay} stay)") },
            n.drain_timeout.map_or_else(|| "none".into(), duration::format),
        ]
    });
    fitted(width, ["NODE", "ID", "DATACENTER", "POOL", "STATUS", "ALLOCS", "TIMEOUT"], rows.collect())
}

fn kind(a: &AllocPlan) -> String {
    let kind = match a.job_type {
        JobType::Service => "service",
        JobType::Batch => "batch",
        JobType::System => "system",
        JobType::SysBatch => "sysbatch",
    };
    if a.managed { kind.into() } else { format!("{kind}, unmanaged") }
}

/// What nothing takes the place of, job by job.
fn not_replaced(plan: &DrainPlan, shown: usize) -> Option<String> {
    let mut lost: BTreeMap<(&JobKey, &str), usize> = BTreeMap::new();
    for a in plan.nodes.iter().flat_map(|n| &n.allocations) {
        if let Some(why) = &a.not_replaced {
            *lost.entry((&a.job, why)).or_default() += 1;
        }
    }
    let lines = lost.iter().take(shown).map(|((key, why), n)| format!("  {}, {}: {why}", job(key), count(*n, "allocation")));
    let lines: Vec<_> = lines.collect();
    (!lines.is_empty()).then(|| format!("Not replaced elsewhere:\n{}{}", lines.join("\n"), more(lost.len(), shown, "job")))
}

/// What stands in the way, the nodes of one problem together; then what else should be known.
fn said(plan: &DrainPlan, shown: usize) -> Option<String> {
    let mut problems: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for n in &plan.nodes {
        n.problems.iter().for_each(|p| problems.entry(p).or_default().push(&n.name));
    }
    let problems = problems.into_iter().map(|(p, nodes)| format!("warning: {}: {p}", nodes.join(", ")));
    let others = plan.warnings.iter().map(|w| format!("warning: {w}"));
    let all: Vec<_> = problems.chain(others).collect();
    (!all.is_empty()).then(|| all[..all.len().min(shown)].join("\n") + &more(all.len(), shown, "warning"))
}
