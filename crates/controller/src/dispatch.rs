//! Leases operations that are due, runs one step of each, writes what came of it. Waiting rows hold nothing.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use curfew_core::operation::{Kind, Operation, State};
use curfew_core::{OpId, Timestamp};
use curfew_store::{Change, StepResult, Store, StoreError, Wanted};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::agenda::Agenda;
use crate::duty::{Duty, Live};
use crate::error::chain;
use crate::metrics::Metrics;
use crate::pulse::{IDLE, Loop, Pulse};
use crate::shutdown::{CLEAN_UP, WRITE_DOWN};
use crate::steps::{Done, Tools};
use crate::trace;

pub struct Dispatcher {
    pub store: Arc<dyn Store>,
    pub tools: Tools,
    pub duty: Duty,
    /// Operations that the keeper has news for.
    pub nudges: mpsc::Receiver<OpId>,
    pub ends: Ends,
    pub steps: TaskTracker,
    pub pulse: Arc<Pulse>,
    pub metrics: Metrics,
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

/// What the database gave. Nothing when it could not.
type Leased = Option<Given>;

struct Given {
    leased: Vec<Operation>,
    /// When it was asked: from here on the leases count.
    at: Instant,
    /// When to ask again.
    next: Timestamp,
}

impl Dispatcher {
    /// Runs until `stop`; steps in flight go on in `steps`.
    pub async fn run(mut self) {
        let slots = Arc::new(Semaphore::new(self.tools.config.workers));
        let (ended_tx, mut ended) = mpsc::channel::<OpId>(self.tools.config.workers);
        let mut agenda = Agenda::default();
        let mut changes = self.store.changes();
        let mut duty = self.duty.seen();
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
                    agenda.ended(id);
                    while let Ok(id) = ended.try_recv() {
                        agenda.ended(id);
                    }
                    // Its row has a new instant, which was not known when the next one was asked for.
                    next = self.tools.clock.now();
                }
                n = self.nudges.recv_many(&mut buffer, 1024) => {
                    if n == 0 {
                        break;
                    }
                    buffer.drain(..).for_each(|id| agenda.nudge(id));
                }
                change = changes.recv() => {
                    let mut all = self.changed(change, &mut agenda);
                    while let Ok(change) = changes.try_recv() {
                        all |= self.changed(Ok(change), &mut agenda);
                    }
                    if all {
                        next = self.tools.clock.now();
                    }
                }
                // Its sender lives as long as this.
                _ = duty.changed() => {}
                leased = answer => {
                    let asked = asking.take().map(|(ids, _)| ids).unwrap_or_default();
                    match leased {
                        None => asked.into_iter().for_each(|id| agenda.nudge(id)),
                        Some(given) => {
                            next = next.min(given.next);
                            let got = |id: &OpId| given.leased.iter().any(|op| op.id == *id);
                            let left: Vec<OpId> = asked.into_iter().filter(|id| !got(id)).collect();
                            for op in given.leased {
                                let look = agenda.began(&op);
                                let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                                self.begin(op, given.at, look, slot, ended_tx.clone());
                            }
                            if agenda.is_full(&self.tools.config) || slots.available_permits() == 0 {
                                left.into_iter().for_each(|id| agenda.nudge(id));
                            } else {
                                self.tell(left);
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
            let keeps = self.duty.valid().is_some();
            if std::mem::replace(&mut agenda.keeps_clocks, keeps) != keeps {
                next = self.tools.clock.now();
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
            let now = self.tools.clock.now();
            if !agenda.has_nudged() && next > now {
                continue;
            }
            let wanted = agenda.wanted(&self.tools.config);
            // A nudge that comes from here on is for after this lease.
            let ids = agenda.take(free);
            next = now + LOOK;
            asking = Some((ids.clone(), self.lease(wanted, ids, free, now).boxed()));
        }
        if let Some((_, asked)) = asking {
            self.give_back(asked).await;
        }
    }

    fn lease(
        &self,
        wanted: Vec<Wanted>,
        ids: Vec<OpId>,
        free: usize,
        now: Timestamp,
    ) -> impl Future<Output = Leased> + Send + use<> {
        let (store, actor) = (self.store.clone(), self.tools.actor.clone());
        async move {
            let at = Instant::now();
            match store.lease(&actor, &wanted, &ids, free, now).await {
                Ok(leased) => {
                    // A kind that is full now is asked for when one of its steps has ended.
                    let room = wanted.iter().filter(|w| leased.iter().filter(|op| op.kind() == w.kind).count() < w.limit);
                    let kinds: Vec<Kind> = room.map(|w| w.kind).collect();
                    let next = match store.next_due(&kinds, now).await {
                        Ok(at) => at.unwrap_or(now + LOOK).max(now + Duration::from_millis(1)),
                        Err(_) => now + Duration::from_millis(500),
                    };
                    Some(Given { leased, at, next })
                }
                Err(e) => {
                    tracing::error!(error = %chain(&e), "operations could not be leased; trying again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    None
                }
            }
        }
    }

    fn begin(&self, op: Operation, at: Instant, look: Arc<Notify>, slot: OwnedSemaphorePermit, ended: mpsc::Sender<OpId>) {
        let worker = self.worker(&op, at, look);
        let metrics = self.metrics.clone();
        self.steps.spawn(async move {
            let (id, kind, began) = (op.id, op.kind(), Instant::now());
            let span = tracing::info_span!("step", operation = %id, kind = kind.as_str(), epoch = op.lease.epoch);
            worker.work(op).instrument(trace::of(id, span)).await;
            metrics.step(kind, began.elapsed());
            drop(slot);
            // The loop is gone only when the controller is stopping.
            let _ = ended.send(id).await;
        });
    }

    /// Whether everything is to be looked at.
    fn changed(&self, change: Result<Change, RecvError>, agenda: &mut Agenda) -> bool {
        match change {
            Ok(Change::Operation { id, due: true }) => {
                agenda.changed(id);
                false
            }
            Ok(Change::Operation { .. }) | Err(RecvError::Closed) => false,
            Ok(Change::Kinds) => true,
            Ok(Change::Missed) | Err(RecvError::Lagged(_)) => {
                agenda.missed();
                self.tell_all();
                true
            }
        }
    }

    /// Those that were nudged and are not to be leased (paused, of a paused kind, finished): the clocks go by their rows all the
    /// same.
    fn tell(&self, ids: Vec<OpId>) {
        if ids.is_empty() || self.duty.held().is_none() {
            return;
        }
        let (store, keeper) = (self.store.clone(), self.tools.keeper.clone());
        self.steps.spawn(async move {
            for id in ids {
                match store.operation(id).await {
                    Ok(Some(op)) => keeper.changed(op).await,
                    Ok(None) => {}
                    Err(e) => tracing::error!(operation = %id, error = %chain(&e), "a changed operation could not be read"),
                }
            }
        });
    }

    fn tell_all(&self) {
        if self.duty.held().is_none() {
            return;
        }
        let (store, keeper) = (self.store.clone(), self.tools.keeper.clone());
        self.steps.spawn(async move {
            if let Err(e) = Live::of(&*store).tell(&keeper).await {
                tracing::error!(error = %chain(&e), "the live operations could not be read");
            }
        });
    }

    /// The stop came while the database was asked: what it gives now goes back as it was. A lease is not dropped midway, since
    /// the row would stay with nobody.
    async fn give_back(&self, asked: BoxFuture<'static, Leased>) {
        let leased = tokio::select! {
            leased = asked => leased,
            () = self.ends.cut.cancelled() => return,
        };
        let Some(Given { leased, at, .. }) = leased else { return };
        for op in leased {
            let worker = self.worker(&op, at, Arc::default());
            let result =
                StepResult { run_at: op.run_at, ..worker.tools.queued(&op, op.waiting_for.clone(), op.progress.unknown) };
            self.steps.spawn(async move { worker.write(op, Done { result, audit: vec![] }).await });
        }
    }

    fn worker(&self, op: &Operation, leased_at: Instant, look: Arc<Notify>) -> Worker {
        let lease = self.tools.config.kind(op.kind()).lease_timeout;
        let until = Mutex::new(leased_at + lease);
        Worker { store: self.store.clone(), tools: self.tools.clone(), ends: self.ends.clone(), lease, until, look }
    }
}

struct Worker {
    store: Arc<dyn Store>,
    tools: Tools,
    ends: Ends,
    lease: Duration,
    /// When the lease runs out, counted from before it was asked for.
    until: Mutex<Instant>,
    /// Somebody changed the row.
    look: Arc<Notify>,
}

impl Worker {
    async fn work(self, op: Operation) {
        let done = tokio::select! {
            biased;
            () = self.keep_lease(&op) => return,
            // Dropped in the middle of a call: what was asked of Nomad last may have been done.
            () = self.time_is_up() => self.tools.aborted(&op, true),
            done = self.while_held(self.tools.step(&op)) => done,
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
                    if finished && after.state.is_finished() && after.kind().reports_clocks() {
                        self.tools.keeper.tell(after).await;
                    }
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

    fn until(&self) -> Instant {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The step stands still while its lease has run out here: a process that was stopped for a while wakes up in the middle of
    /// one, and [`Worker::keep_lease`] has to find out first whether it may go on.
    async fn while_held<T>(&self, step: impl Future<Output = T>) -> T {
        let mut step = pin!(step);
        std::future::poll_fn(|cx| match Instant::now() < self.until() {
            true => step.as_mut().poll(cx),
            // Woken by the renewal, which is of the same task.
            false => Poll::Pending,
        })
        .await
    }

    /// Renews while the step works, and looks when somebody changed the row; returns when the lease is lost.
    async fn keep_lease(&self, op: &Operation) {
        let mut wait = self.lease / 3;
        loop {
            let held = tokio::select! {
                () = tokio::time::sleep(wait) => self.renew(op).await,
                () = self.look.notified() => self.look_again(op).await,
            };
            match held {
                Ok(()) => wait = self.lease / 3,
                Err(StoreError::Fenced { .. }) => {
                    tracing::warn!(operation = %op.id, epoch = op.lease.epoch, "the lease is gone in the middle of a step; it stops here");
                    return;
                }
                Err(e) => {
                    tracing::error!(operation = %op.id, error = %chain(&e), "a lease could not be renewed");
                    wait = (self.lease / 30).min(Duration::from_secs(1));
                }
            }
        }
    }

    async fn renew(&self, op: &Operation) -> Result<(), StoreError> {
        let began = Instant::now();
        self.store.renew(op.id, op.lease.epoch, self.lease, self.tools.clock.now()).await?;
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = began + self.lease;
        Ok(())
    }

    async fn look_again(&self, op: &Operation) -> Result<(), StoreError> {
        let row = self.store.operation(op.id).await?;
        let Some(row) = row.filter(|r| r.state == State::Running && r.lease.epoch == op.lease.epoch) else {
            return Err(StoreError::Fenced { id: op.id, epoch: op.lease.epoch });
        };
        // Somebody moved its deadline elsewhere: its clocks need not wait for this step.
        self.tools.keeper.changed(row).await;
        Ok(())
    }
}
