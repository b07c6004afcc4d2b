//! Leases operations that are due, runs one step of each, writes what came of it. Waiting rows hold nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use curfew_core::operation::{Kind, Operation, Request};
use curfew_core::{OpId, Timestamp};
use curfew_store::{StepResult, Store, StoreError, Wanted};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::chain;
use crate::pulse::{IDLE, Loop, Pulse};
use crate::shutdown::{CLEAN_UP, WRITE_DOWN};
use crate::steps::{Done, Tools};

pub struct Dispatcher {
    pub store: Arc<dyn Store>,
    pub tools: Tools,
    pub nudges: mpsc::Receiver<OpId>,
    /// Every operation that changed, for those who wait for one.
    pub changed: broadcast::Sender<OpId>,
    pub ends: Ends,
    pub steps: TaskTracker,
    pub pulse: Arc<Pulse>,
}

/// How leasing and steps come to an end, one after the other.
#[derive(Clone)]
pub struct Ends {
    /// Nothing more is leased.
    pub stop: CancellationToken,
    /// Steps in flight have had their time: they finish the call under way and begin no other.
    pub abort: CancellationToken,
    /// Not even that.
    pub hurry: CancellationToken,
    /// Whatever is left is dropped.
    pub cut: CancellationToken,
}

/// Without a timer nearer than this, the database is asked again: another process may have written to it.
const LOOK: Duration = IDLE;

/// What the database gave: rows to work on, and when to ask again. Nothing when it could not.
type Leased = Option<(Vec<Operation>, Timestamp)>;

impl Dispatcher {
    /// Runs until `stop`; steps in flight go on in `steps`.
    pub async fn run(mut self) {
        let slots = Arc::new(Semaphore::new(self.tools.config.workers));
        let (ended_tx, mut ended) = mpsc::channel::<OpId>(self.tools.config.workers);
        let mut nudged: HashSet<OpId> = HashSet::new();
        let mut running: HashSet<OpId> = HashSet::new();
        let mut buffer = Vec::new();
        let mut next = self.tools.clock.now();
        // The database has no deadline, so the loop turns while it is asked.
        let mut asking: Option<(Vec<OpId>, BoxFuture<'static, Leased>)> = None;
        loop {
            self.pulse.turn(Loop::Dispatcher);
            // A row that another process wrote is found by looking.
            next = next.min(self.tools.clock.now() + LOOK);
            let wait = if asking.is_some() { LOOK } else { next.since(self.tools.clock.now()) };
            let answer = async {
                match &mut asking {
                    Some((_, asked)) => asked.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.ends.stop.cancelled() => break,
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
                        break;
                    }
                    nudged.extend(buffer.drain(..));
                }
                leased = answer => {
                    let wanted = asking.take().map(|(ids, _)| ids).unwrap_or_default();
                    match leased {
                        None => nudged.extend(wanted),
                        Some((leased, at)) => {
                            next = next.min(at);
                            for op in leased {
                                running.insert(op.id);
                                nudged.remove(&op.id);
                                let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                                self.begin(op, slot, ended_tx.clone());
                            }
                        }
                    }
                }
                () = tokio::time::sleep(wait) => {
                    if asking.is_some() {
                        tracing::warn!("the database does not answer; nothing is leased until it does");
                    }
                }
            }
            if asking.is_some() {
                continue;
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
            // A nudge that comes from here on is for after this lease.
            for id in &ids {
                nudged.remove(id);
            }
            next = now + LOOK;
            asking = Some((ids.clone(), self.lease(ids, free, now).boxed()));
        }
        if let Some((_, asked)) = asking {
            self.give_back(asked).await;
        }
    }

    fn lease(&self, ids: Vec<OpId>, free: usize, now: Timestamp) -> impl Future<Output = Leased> + Send + use<> {
        let (store, actor) = (self.store.clone(), self.tools.actor.clone());
        let wanted = Kind::OPERATIONS.map(|kind| {
            let limits = self.tools.config.kind(kind);
            Wanted { kind, lease_for: limits.lease_timeout, limit: limits.concurrency }
        });
        async move {
            match store.lease(&actor, &wanted, &ids, free, now).await {
                Ok(leased) => {
                    let next = match store.next_due(&Kind::OPERATIONS, now).await {
                        Ok(at) => at.unwrap_or(now + LOOK).max(now + Duration::from_millis(1)),
                        Err(_) => now + Duration::from_millis(500),
                    };
                    Some((leased, next))
                }
                Err(e) => {
                    tracing::error!(error = %chain(&e), "operations could not be leased; trying again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    None
                }
            }
        }
    }

    fn begin(&self, op: Operation, slot: OwnedSemaphorePermit, ended: mpsc::Sender<OpId>) {
        let worker = self.worker();
        self.steps.spawn(async move {
            let id = op.id;
            worker.work(op).await;
            drop(slot);
            // The loop is gone only when the controller is stopping.
            let _ = ended.send(id).await;
        });
    }

    /// The stop came while the database was asked: what it gives now goes back as it was. A lease is not dropped midway, since
    /// the row would stay with nobody.
    async fn give_back(&self, asked: BoxFuture<'static, Leased>) {
        let leased = tokio::select! {
            leased = asked => leased,
            () = self.ends.cut.cancelled() => return,
        };
        for op in leased.map(|(leased, _)| leased).unwrap_or_default() {
            let worker = self.worker();
            let result =
                StepResult { run_at: op.run_at, ..worker.tools.queued(&op, op.waiting_for.clone(), op.progress.unknown) };
            self.steps.spawn(async move { worker.write(op, Done { result, audit: vec![] }).await });
        }
    }

    fn worker(&self) -> Worker {
        Worker { store: self.store.clone(), tools: self.tools.clone(), changed: self.changed.clone(), ends: self.ends.clone() }
    }
}

struct Worker {
    store: Arc<dyn Store>,
    tools: Tools,
    changed: broadcast::Sender<OpId>,
    ends: Ends,
}

impl Worker {
    async fn work(self, op: Operation) {
        let done = tokio::select! {
            done = self.tools.step(&op) => done,
            () = self.keep_lease(&op) => return,
            // Dropped in the middle of a call: what was asked of Nomad last may have been done.
            () = self.time_is_up() => self.tools.aborted(&op, true),
        };
        self.write(op, done).await;
    }

    /// Steps that were told to stop end by themselves; this is for those that do not.
    async fn time_is_up(&self) {
        self.ends.abort.cancelled().await;
        tokio::select! {
            () = tokio::time::sleep(CLEAN_UP - WRITE_DOWN) => {}
            () = self.ends.hurry.cancelled() => {}
        }
    }

    /// Writes what a step did. A row that cannot be written stays leased, and whoever takes it over counts what its step did last
    /// as unknown.
    async fn write(&self, op: Operation, done: Done) {
        tokio::select! {
            biased;
            () = self.until_written(&op, done) => {}
            () = self.ends.cut.cancelled() => {
                tracing::error!(operation = %op.id, "what its step did was not written down; its next holder finds out");
            }
        }
    }

    async fn until_written(&self, op: &Operation, done: Done) {
        let finished = done.result.state.is_finished();
        let mut wait = Duration::from_millis(50);
        loop {
            match self.store.finish_step(op, done.result.clone(), done.audit.clone(), self.tools.clock.now()).await {
                Ok(after) => {
                    match &op.request {
                        _ if !finished || !after.state.is_finished() => {}
                        Request::Stop { target, .. } => self.tools.keeper.stop_closed(op.id, target.clone()).await,
                        Request::DrainNode { node, .. } => self.tools.keeper.drain_closed(op.id, node.id.clone()).await,
                        Request::Submit { .. } | Request::DrainDatacenter { .. } | Request::Undrain { .. } => {}
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
                    tokio::time::sleep(wait).await;
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
}
