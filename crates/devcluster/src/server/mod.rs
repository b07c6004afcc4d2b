//! What the server does with what it hears: client reports, node status, deployments, drains, timers, collection.

pub(crate) mod deployments;
pub(crate) mod drain;
pub(crate) mod jobs;
pub(crate) mod periodic;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use crate::client::ClientUpdate;
use crate::core::Core;
use crate::job::JobKey;
use crate::scheduler;
use crate::state::{Alloc, ClientStatus, Desired, Health, Node, NodeStatus, State, Timer};

/// One batch of a client.
pub(crate) fn client_report(s: &mut State, node: &str, updates: BTreeMap<String, ClientUpdate>) {
    let known: Vec<(Arc<Alloc>, ClientUpdate)> =
        updates.into_iter().filter_map(|(id, u)| s.allocs.get(&id).cloned().map(|a| (a, u))).collect();
    if known.is_empty() {
        return;
    }
    let index = s.begin("AllocationUpdated");
    let now = s.now();
    let mut evals: BTreeMap<JobKey, &'static str> = BTreeMap::new();
    let mut deployments: BTreeSet<String> = BTreeSet::new();
    let mut room = false;
    let mut jobs: BTreeSet<JobKey> = BTreeSet::new();
    for (old, u) in known {
        jobs.insert(old.job_key());
        let mut a = Alloc::clone(&old);
        a.tasks = u.tasks;
        a.client = u.client;
        a.client_description = u.description.into();
        a.modify_time = now;
        a.has_network = true;
        if let Some((healthy, at)) = u.health {
            let was = a.health.as_ref().and_then(|h| h.healthy);
            let canary = a.health.as_ref().is_some_and(|h| h.canary);
            if was != Some(healthy) {
                a.health = Some(Health { healthy: Some(healthy), at, canary, modify_index: index });
                let running = s.deployments.get(&a.deployment_id).is_some_and(|d| d.status.is_active());
                // What was stopped on purpose says nothing about the version that rolls in.
                let counts = a.desired == Desired::Run || !running;
                if counts && !a.deployment_id.is_empty() {
                    deployments::count_health(s, &a, was, healthy, at);
                    deployments.insert(a.deployment_id.clone());
                }
            }
        }
        if a.client.is_terminal() && !old.client.is_terminal() {
            room = true;
        }
        // Every report of a failed allocation asks again, not only the first: what a deployment left alone is found then.
        if a.client == ClientStatus::Failed && a.followup_eval.is_empty() && scheduler::may_reschedule(&a) {
            evals.insert(a.job_key(), "alloc-failure");
        }
        if old.client == ClientStatus::Unknown && a.client == ClientStatus::Running && a.desired == Desired::Run {
            evals.insert(a.job_key(), "reconnect");
        }
        s.put_client_alloc(a);
    }
    s.note_node_report(node);
    for (key, trigger) in evals {
        if let Some(job) = s.job(&key) {
            let e = s.new_eval(&job, trigger);
            s.put_eval(e);
        }
    }
    if room {
        s.unblock_for_room();
    }
    s.commit();
    for id in deployments {
        deployments::look(s, &id);
    }
    drain::reported(s, node, &jobs);
}

/// New evaluations for every job that has to do with a node, system jobs included.
pub(crate) fn node_evals(s: &mut State, node: &str) -> Vec<String> {
    let mut keys: BTreeSet<JobKey> = s.allocs_on(node).iter().filter(|a| !a.client.is_terminal()).map(|a| a.job_key()).collect();
    keys.extend(s.jobs.values().filter(|j| j.current.spec.kind.is_system() && !j.current.stop).map(|j| j.current.key()));
    let mut ids = Vec::new();
    for key in keys {
        if let Some(job) = s.job(&key) {
            let mut e = s.new_eval(&job, "node-update");
            e.node_id = node.to_owned();
            ids.push(e.id.clone());
            s.put_eval(e);
        }
    }
    ids
}

/// The server has not heard of a client for too long.
fn heartbeat_missed(s: &mut State, node: &str) {
    let Some(old) = s.nodes.get(node).cloned() else { return };
    if old.status != NodeStatus::Ready {
        return;
    }
    let disconnects = s.allocs_on(node).iter().any(|a| !a.is_terminal() && a.spec().lost_after.is_some());
    let index = s.begin("NodeRegistration");
    let now = s.now();
    let mut n = Node::clone(&old);
    n.status = if disconnects { NodeStatus::Disconnected } else { NodeStatus::Down };
    n.status_updated_at = now;
    n.last_missed_heartbeat = index;
    n.push_event("Cluster", "Node heartbeat missed", Value::Null, now, index);
    s.put_node(n);
    s.commit();
    s.begin("EvaluationUpdated");
    node_evals(s, node);
    s.commit();
}

/// Nobody knows the node any more; what ran there is lost.
pub(crate) fn purge_node(s: &mut State, node: &str) -> Option<drain::Drained> {
    s.nodes.get(node)?;
    s.timers.retain(|(_, t)| !matches!(t, Timer::Heartbeat(n) | Timer::Drain(n) if n == node));
    let index = s.begin("NodeDeregistration");
    s.remove_node(node);
    s.commit();
    let eval_index = s.begin("EvaluationUpdated");
    let eval_ids = node_evals(s, node);
    s.commit();
    Some(drain::Drained { index, eval_ids, eval_index })
}

/// A client is heard of again.
pub(crate) fn heartbeat(s: &mut State, node: &str) {
    s.timers.retain(|(_, t)| !matches!(t, Timer::Heartbeat(n) if n == node));
    let Some(old) = s.nodes.get(node).cloned() else { return };
    if old.status == NodeStatus::Ready {
        return;
    }
    let index = s.begin("NodeRegistration");
    let now = s.now();
    let mut n = Node::clone(&old);
    n.status = NodeStatus::Ready;
    n.status_updated_at = now;
    n.push_event("Cluster", "Node reregistered by heartbeat", Value::Null, now, index);
    s.put_node(n);
    s.unblock();
    s.commit();
    s.begin("EvaluationUpdated");
    node_evals(s, node);
    s.commit();
}

pub(crate) fn expect_heartbeat(s: &mut State, node: &str, at: Instant) {
    s.timers.insert((at, Timer::Heartbeat(node.to_owned())));
}

/// Fires what is due, for as long as the cluster runs.
pub(crate) async fn run_timers(core: Arc<Core>) {
    loop {
        let next = core.read(|s| s.timers.first().map(|(at, _)| *at));
        let wait = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = core.cancel.cancelled() => return,
            () = core.timers.notified() => continue,
            () = wait => {}
        }
        let now = Instant::now();
        core.write(|s| {
            while let Some((at, _)) = s.timers.first() {
                if *at > now {
                    break;
                }
                if let Some((_, timer)) = s.timers.pop_first() {
                    fire(s, timer);
                }
            }
        });
    }
}

fn fire(s: &mut State, timer: Timer) {
    match timer {
        Timer::Eval(id) => {
            if s.evals.get(&id).is_some_and(|e| !e.status.is_terminal()) {
                s.queue.push_back(id);
            }
        }
        Timer::Progress(id) => deployments::deadline(s, &id),
        Timer::Drain(node) => drain::look(s, &node),
        Timer::Heartbeat(node) => heartbeat_missed(s, &node),
        Timer::Periodic(key) => periodic::launch_due(s, &key),
    }
}

/// `PUT /v1/system/gc`: forgets dead jobs and what hangs on them, never what may still run.
pub(crate) fn collect_garbage(s: &mut State) {
    let dead: Vec<JobKey> = s
        .jobs
        .values()
        .filter(|j| j.current.status == "dead" && (j.current.stop || j.current.spec.kind.is_batch()))
        .map(|j| j.current.key())
        .filter(|key| s.allocs_of(key).iter().all(|a| a.client.is_terminal()))
        .filter(|key| s.evals_of(key).iter().all(|e| e.status.is_terminal()))
        .collect();
    s.begin("JobBatchDeregistered");
    for key in dead {
        s.purge_job(&key);
    }
    let over: Vec<String> = s
        .allocs
        .values()
        .filter(|a| a.desired == Desired::Stop && a.client.is_terminal())
        .filter(|a| a.client != ClientStatus::Lost && (a.next_alloc.is_empty() || s.allocs.contains_key(&a.next_alloc)))
        .map(|a| a.id.clone())
        .collect();
    for id in over {
        s.remove_alloc(&id);
    }
    let deployments: Vec<String> = s
        .deployments
        .values()
        .filter(|d| !d.status.is_active() && !s.allocs.values().any(|a| a.deployment_id == d.id))
        .map(|d| d.id.clone())
        .collect();
    for id in deployments {
        s.remove_deployment(&id);
    }
    let evals: Vec<String> = s
        .evals
        .values()
        .filter(|e| e.status.is_terminal() && !s.allocs.values().any(|a| a.eval_id == e.id))
        .map(|e| e.id.clone())
        .collect();
    for id in evals {
        s.remove_eval(&id);
    }
    s.commit();
}
