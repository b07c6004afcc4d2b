//! Node drains as Nomad does them: service allocations at the pace of their `migrate` block, everything else at the
//! deadline, system jobs last; "complete" says nothing about processes (fact 4).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::job::{JobKey, JobKind};
use crate::state::{Alloc, Drain, LastDrain, Node, State, Timer};

/// Nomad collects deadlines that are close together; a single one is this late.
const COALESCE: Duration = Duration::from_secs(1);

pub(crate) struct Drained {
    pub index: u64,
    pub eval_ids: Vec<String>,
    pub eval_index: u64,
}

/// Sets, changes or takes away a node's drain.
pub(crate) fn set(s: &mut State, id: &str, wanted: Option<(i64, bool)>, mark_eligible: bool, meta: &Value) -> Option<Drained> {
    let old = s.nodes.get(id)?.clone();
    let index = s.begin("NodeDrain");
    let now = s.now();
    let mut n = Node::clone(&old);
    let was_eligible = n.eligible;
    s.timers.retain(|(_, t)| !matches!(t, Timer::Drain(x) if x == id));
    match wanted {
        Some((deadline, ignore_system)) => {
            // A change of a running drain keeps its start.
            let started_at = old.drain.as_ref().map_or(now, |d| d.started_at);
            let force_at = if deadline > 0 { now + deadline } else { 0 };
            n.eligible = false;
            let message = if old.drain.is_some() { "Node drain strategy updated" } else { "Node drain strategy set" };
            n.push_event("Drain", message, Value::Null, now, index);
            n.last_drain = Some(LastDrain { started_at, updated_at: now, status: "draining", meta: meta.clone() });
            n.drain = Some(Drain { deadline, ignore_system, started_at, force_at });
            if deadline != 0 {
                let due = s.clock.instant_of(if deadline < 0 { now } else { force_at }) + COALESCE;
                s.timers.insert((due, Timer::Drain(id.to_owned())));
            }
        }
        None => {
            if n.drain.is_some() {
                n.push_event("Drain", "Node drain disabled", Value::Null, now, index);
                if let Some(last) = &mut n.last_drain {
                    last.status = "canceled";
                    last.updated_at = now;
                    if !meta.is_null() {
                        last.meta = meta.clone();
                    }
                }
            }
            n.drain = None;
            if mark_eligible {
                n.eligible = true;
            }
        }
    }
    let regained = !was_eligible && n.eligible;
    s.put_node(n);
    let mut out = Drained { index, eval_ids: Vec::new(), eval_index: 0 };
    if regained {
        s.unblock();
    }
    s.commit();
    if regained {
        out.eval_index = s.begin("EvaluationUpdated");
        out.eval_ids = super::node_evals(s, id);
        s.commit();
    }
    look(s, id);
    Some(out)
}

pub(crate) fn set_eligible(s: &mut State, id: &str, eligible: bool) -> Option<Drained> {
    let old = s.nodes.get(id)?.clone();
    let index = s.begin("NodeEligibility");
    let now = s.now();
    let mut n = Node::clone(&old);
    n.eligible = eligible;
    if old.eligible != eligible {
        let message =
            if eligible { "Node marked as eligible for scheduling" } else { "Node marked as ineligible for scheduling" };
        n.push_event("Cluster", message, Value::Null, now, index);
    }
    s.put_node(n);
    let regained = eligible && !old.eligible;
    if regained {
        s.unblock();
    }
    s.commit();
    let mut out = Drained { index, eval_ids: Vec::new(), eval_index: 0 };
    if regained {
        out.eval_index = s.begin("EvaluationUpdated");
        out.eval_ids = super::node_evals(s, id);
        s.commit();
    }
    Some(out)
}

/// A client has reported: the jobs it spoke of may have more on the move, and its own node may be empty.
pub(crate) fn reported(s: &mut State, node: &str, jobs: &BTreeSet<JobKey>) {
    if s.draining.is_empty() {
        return;
    }
    let chosen = jobs.iter().flat_map(|key| pace(s, key)).filter(|a| a.job.spec.kind == JobKind::Service).collect();
    migrate(s, chosen);
    look(s, node);
}

pub(crate) fn look(s: &mut State, id: &str) {
    let Some(node) = s.nodes.get(id).cloned() else { return };
    let Some(drain) = node.drain.clone() else { return };
    let live: Vec<Arc<Alloc>> = s.allocs_on(id).into_iter().filter(|a| !a.client.is_terminal()).collect();
    let system = |a: &Alloc| a.job.spec.kind.is_system();
    let due = match drain.deadline {
        0 => None,
        d if d < 0 => Some(s.clock.instant_of(drain.started_at) + COALESCE),
        _ => Some(s.clock.instant_of(drain.force_at) + COALESCE),
    };
    if due.is_some_and(|at| at <= Instant::now()) {
        let rest = live.into_iter().filter(|a| !(drain.ignore_system && system(a))).collect();
        migrate(s, rest);
        complete(s, &node, true);
        return;
    }
    if live.iter().all(|a| system(a)) {
        if !drain.ignore_system {
            migrate(s, live);
        }
        complete(s, &node, false);
        return;
    }
    let jobs: BTreeSet<JobKey> = live.iter().filter(|a| a.job.spec.kind == JobKind::Service).map(|a| a.job_key()).collect();
    let mut chosen = Vec::new();
    for key in jobs {
        chosen.extend(pace(s, &key));
    }
    migrate(s, chosen);
}

/// As many of a job's allocations as its `migrate` blocks allow to be away.
fn pace(s: &State, key: &JobKey) -> Vec<Arc<Alloc>> {
    let Some(job) = s.job(key) else { return Vec::new() };
    let allocs = s.allocs_of(key);
    let mut out = Vec::new();
    for g in &job.spec.groups {
        let mine: Vec<&Arc<Alloc>> = allocs.iter().filter(|a| a.spec().name == g.name).collect();
        let marked = |a: &Alloc| a.transition.migrate == Some(true);
        let healthy = mine
            .iter()
            .filter(|a| !a.is_terminal() && !marked(a) && a.health.as_ref().is_some_and(|h| h.healthy.is_some()))
            .count();
        let drainable: Vec<&&Arc<Alloc>> =
            mine.iter().filter(|a| !a.client.is_terminal() && !marked(a) && s.draining.contains(&a.node_id)).collect();
        let threshold = g.count.saturating_sub(g.migrate.max_parallel);
        let n = healthy.saturating_sub(threshold).min(drainable.len());
        out.extend(drainable.into_iter().take(n).map(|a| Arc::clone(a)));
    }
    out
}

/// Marks allocations for migration and has their jobs looked at.
fn migrate(s: &mut State, allocs: Vec<Arc<Alloc>>) {
    let fresh: Vec<Arc<Alloc>> = allocs.into_iter().filter(|a| a.transition.migrate != Some(true)).collect();
    if fresh.is_empty() {
        return;
    }
    s.begin("AllocationUpdateDesiredStatus");
    let mut keys: BTreeSet<JobKey> = BTreeSet::new();
    for a in fresh {
        let mut a = Alloc::clone(&a);
        a.transition.migrate = Some(true);
        a.transition.migrate_disable_placement = Some(false);
        keys.insert(a.job_key());
        s.put_alloc(a);
    }
    for key in keys {
        if let Some(job) = s.job(&key) {
            let e = s.new_eval(&job, "node-drain");
            s.put_eval(e);
        }
    }
    s.commit();
}

fn complete(s: &mut State, node: &Node, deadline: bool) {
    let index = s.begin("NodeDrain");
    let now = s.now();
    s.timers.retain(|(_, t)| !matches!(t, Timer::Drain(x) if *x == node.id));
    let mut n = Node::clone(node);
    n.drain = None;
    if let Some(last) = &mut n.last_drain {
        last.status = "complete";
        last.updated_at = now;
    }
    let details = if deadline { json!({"deadline_reached": "true"}) } else { Value::Null };
    n.push_event("Drain", "Node drain complete", details, now, index);
    s.put_node(n);
    s.commit();
}
