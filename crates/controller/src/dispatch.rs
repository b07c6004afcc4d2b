//! Leases operations that are due, runs one step of each, writes what came of it. Waiting rows hold nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use curfew_core::OpId;
use curfew_core::operation::{Kind, Operation, Request, State};
use curfew_store::{StepResult, Store, StoreError, Wanted};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::chain;
use crate::steps::{Done, Tools};

pub struct Dispatcher {
    pub store: Arc<dyn Store>,
    pub tools: Tools,
    pub nudges: mpsc::Receiver<OpId>,
    /// Every operation that changed, for those who wait for one.
    pub changed: broadcast::Sender<OpId>,
    /// Cancelled when steps in flight have had their time.
    pub abort: CancellationToken,
    pub steps: TaskTracker,
}

/// Without a timer nearer than this, the database is asked again: another process may have written to it.
const LOOK: Duration = Duration::from_secs(5);

impl Dispatcher {
    /// Runs until `stop`; steps in flight go on in `steps`.
    pub async fn run(mut self, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(self.tools.config.workers));
        let (ended_tx, mut ended) = mpsc::channel::<OpId>(self.tools.config.workers);
        let mut nudged: HashSet<OpId> = HashSet::new();
        let mut running: HashSet<OpId> = HashSet::new();
        let mut buffer = Vec::new();
        let mut next = self.tools.clock.now();
        loop {
            // A row that another process wrote is found by looking.
            next = next.min(self.tools.clock.now() + LOOK);
            let wait = next.since(self.tools.clock.now());
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(id) = ended.recv() => {
                    running.remove(&id);
                    while let Ok(id) = ended.try_recv() {
                        running.remove(&id);
                    }
                    // Its row has a new instant, which was not known when the next one was asked for.
                    next = self.tools.clock.now();
                }
                n = self.nudges.recv_many(&mut buffer, 1024) => {
                    if n == 0 {
                        return;
                    }
                    nudged.extend(buffer.drain(..));
                }
                () = tokio::time::sleep(wait) => {}
            }
            let free = slots.available_permits();
            if free == 0 {
                // A step that ends wakes the loop.
                next = self.tools.clock.now() + LOOK;
                continue;
            }
            // One that runs now is looked at again when its step has ended.
            let ids: Vec<OpId> = nudged.iter().filter(|id| !running.contains(id)).copied().take(free).collect();
            let now = self.tools.clock.now();
            let due = next <= now;
            if ids.is_empty() && !due {
                continue;
            }
            let wanted = Kind::OPERATIONS.map(|kind| {
                let limits = self.tools.config.kind(kind);
                Wanted { kind, lease_for: limits.lease_timeout, limit: limits.concurrency }
            });
            let leased = self.store.lease(&self.tools.actor, &wanted, &ids, free, now).await;
            let leased = match leased {
                Ok(l) => l,
                Err(e) => {
                    tracing::error!(error = %chain(&e), "operations could not be leased; trying again");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_millis(500)) => continue,
                    }
                }
            };
            for id in ids {
                nudged.remove(&id);
            }
            for op in leased {
                running.insert(op.id);
                nudged.remove(&op.id);
                let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                let (worker, ended) = (self.worker(), ended_tx.clone());
                self.steps.spawn(async move {
                    let id = op.id;
                    worker.work(op).await;
                    drop(slot);
                    // The loop is gone only when the controller is stopping.
                    let _ = ended.send(id).await;
                });
            }
            next = match self.store.next_due(&Kind::OPERATIONS, now).await {
                Ok(at) => at.unwrap_or(now + LOOK).max(now + Duration::from_millis(1)),
                Err(_) => now + Duration::from_millis(500),
            };
        }
    }

    fn worker(&self) -> Worker {
        Worker { store: self.store.clone(), tools: self.tools.clone(), changed: self.changed.clone(), abort: self.abort.clone() }
    }
}

struct Worker {
    store: Arc<dyn Store>,
    tools: Tools,
    changed: broadcast::Sender<OpId>,
    abort: CancellationToken,
}

impl Worker {
    async fn work(self, op: Operation) {
        let done = tokio::select! {
            done = self.tools.step(&op) => done,
            () = self.keep_lease(&op) => return,
            () = self.abort.cancelled() => self.aborted(&op),
        };
        let finished = done.result.state.is_finished();
        let mut wait = Duration::from_millis(50);
        loop {
            match self.store.finish_step(&op, done.result.clone(), done.audit.clone(), self.tools.clock.now()).await {
                Ok(after) => {
                    if let (Request::Stop { target, .. }, true) = (&op.request, finished && after.state.is_finished()) {
                        self.tools.keeper.stop_closed(op.id, target.clone()).await;
                    }
                    // Nobody waits for one when nobody listens.
                    let _ = self.changed.send(op.id);
                    return;
                }
                Err(StoreError::Fenced { .. }) => {
                    tracing::warn!(operation = %op.id, epoch = op.lease.epoch, "the lease is gone; what this step did is left to its new holder");
                    return;
                }
                // What the step did is safe to repeat; what it learned is worth some tries.
                Err(e) => {
                    tracing::error!(operation = %op.id, error = %chain(&e), "what a step did could not be written down; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.abort.cancelled() => return,
                    }
                    wait = (wait * 2).min(Duration::from_secs(5));
                }
            }
        }
    }

    /// Renews while the step works; returns when the lease is lost.
    async fn keep_lease(&self, op: &Operation) {
        let lease = self.tools.config.kind(op.kind()).lease_timeout;
        loop {
            tokio::time::sleep(lease / 3).await;
            match self.store.renew(op.id, op.lease.epoch, lease, self.tools.clock.now()).await {
                Ok(()) => {}
                Err(StoreError::Fenced { .. }) => {
                    tracing::warn!(operation = %op.id, "the lease is gone in the middle of a step; it stops here");
                    return;
                }
                Err(e) => tracing::error!(operation = %op.id, error = %chain(&e), "a lease could not be renewed"),
            }
        }
    }

    /// Cut off in the middle: what was asked of Nomad last may have been done.
    fn aborted(&self, op: &Operation) -> Done {
        let mut progress = op.progress.clone();
        progress.unknown = true;
        let result = StepResult {
            state: State::Queued,
            run_at: self.tools.clock.now(),
            waiting_for: Some("aborted for retry: the controller was stopped in the middle of a step".into()),
            progress,
            deadline: op.deadline,
            outcome: op.outcome.clone(),
            error: None,
            warnings: op.warnings.clone(),
            attempts: op.attempts,
        };
        Done { result, audit: vec![] }
    }
}
