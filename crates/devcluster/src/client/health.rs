//! Whether an allocation of a deployment or a migration is healthy: running long enough before its deadline, or failed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::runner::AllocRunner;
use crate::duration;
use crate::job::spec::nanos;
use crate::job::{Hook, JobKind};
use crate::state::{Phase, TaskEvent};

pub(crate) async fn watch(ar: &Arc<AllocRunner>) {
    let mut updates = ar.updates();
    let mut watched: Option<String> = None;
    loop {
        let alloc = updates.borrow_and_update().clone();
        let migrating = alloc.job.spec.kind == JobKind::Service;
        let wants = !alloc.deployment_id.is_empty() || migrating;
        if wants && watched.as_deref() != Some(alloc.deployment_id.as_str()) && !alloc.is_terminal() {
            if watched.is_some() {
                ar.clear_health();
            }
            watched = Some(alloc.deployment_id.clone());
            tokio::select! {
                biased;
                healthy = judge(ar) => if let Some(healthy) = healthy { ar.set_health(healthy) },
                () = over(ar) => return,
                () = moved_on(ar, &alloc.deployment_id) => {}
            }
            continue;
        }
        tokio::select! {
            biased;
            () = over(ar) => return,
            changed = updates.changed() => if changed.is_err() { return },
        }
    }
}

async fn over(ar: &AllocRunner) {
    for t in &ar.tasks {
        t.done().cancelled().await;
    }
}

/// Another deployment has taken the allocation over.
async fn moved_on(ar: &AllocRunner, deployment: &str) {
    let mut updates = ar.updates();
    let _ = updates.wait_for(|a| a.deployment_id != deployment).await;
}

async fn judge(ar: &AllocRunner) -> Option<bool> {
    let group = ar.group();
    let (min_healthy, deadline) = match &group.update {
        Some(u) if !ar.alloc().deployment_id.is_empty() => (u.min_healthy_time, u.healthy_deadline),
        _ => (group.migrate.min_healthy_time, group.migrate.healthy_deadline),
    };
    let give_up = Instant::now() + nanos(deadline);
    let mut states = ar.broadcast.subscribe();
    loop {
        let mut running_since = Some(0_i64);
        let mut failed = false;
        {
            let now = states.borrow_and_update();
            for t in &ar.tasks {
                let short = t.spec().hook != Hook::Main && !t.spec().sidecar;
                let Some(s) = now.get(t.name()) else {
                    running_since = None;
                    continue;
                };
                failed |= s.failed || (!short && s.phase == Phase::Dead);
                match (short, s.phase) {
                    (true, Phase::Dead) => {}
                    (true, _) if t.spec().hook == Hook::Poststop => {}
                    (_, Phase::Running) => running_since = running_since.map(|r| r.max(s.started_at)),
                    _ => running_since = None,
                }
            }
        }
        if failed {
            return Some(false);
        }
        let healthy_at = running_since.filter(|t| *t > 0).map(|t| ar.clock.instant_of(t.saturating_add(min_healthy)));
        let until = healthy_at.map_or(give_up, |h| h.min(give_up));
        tokio::select! {
            biased;
            changed = states.changed() => if changed.is_err() { return None },
            () = tokio::time::sleep_until(until) => {
                ar.node.alive().await;
                if healthy_at.is_some_and(|h| h <= Instant::now()) {
                    return Some(true);
                }
                if Instant::now() + Duration::from_millis(1) > give_up {
                    let text = format!(
                        "Task not running for min_healthy_time of {} by healthy_deadline of {}",
                        duration::go(min_healthy),
                        duration::go(deadline)
                    );
                    for t in ar.tasks.iter().filter(|t| t.spec().hook == Hook::Main) {
                        t.emit(ar, TaskEvent::unhealthy(ar.now(), text.clone()));
                    }
                    return Some(false);
                }
            }
        }
    }
}
