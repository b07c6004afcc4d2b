//! The keeper of kill clocks: one task that owns the [`Book`] and carries out what it says.
//!
//! ```text
//!  event stream ─┐                        ┌─▶ read the allocation anew ──▶ fresh ─┐
//!  resync ───────┼─▶ Book: derive, arm ───┤                                       ▼
//!  operations ───┘    (timer: the next    └─◀ answered ◀── SIGKILL at the instant ┘
//!                      clock)                  (the one place)
//! ```

mod book;
mod drains;
mod index;
mod reader;
mod shelf;
mod specs;
mod stops;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use curfew_core::audit::AuditEntry;
use curfew_core::clock::{Cause, ClockKey, ClockRecord};
use curfew_core::config::Config;
use curfew_core::operation::Operation;
use curfew_core::spec::JobSpec;
use curfew_core::{AllocId, Allocation, Clock, EvalId, JobKey, NodeId, OpId, Timestamp};
use curfew_nomad::{NodeStatus, NodeStub, Nomad, SignalOutcome};
use curfew_store::Store;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use tracing::field::Empty;

use crate::metrics::Metrics;
use crate::pulse::{Loop, Pulse};
pub use book::{Answer, Census, Whose, earliest};
use book::{Book, Effect, Leave, Shot};
pub use drains::DrainReport;
pub use stops::StopReport;

use crate::duty::Duty;
use crate::trace;

enum Msg {
    Observed(Vec<Allocation>),
    Registered {
        key: JobKey,
        spec: Box<JobSpec>,
    },
    Purged(JobKey),
    Resynced {
        began: Timestamp,
    },
    Gap,
    NodeSeen(Box<NodeStub>),
    NodeRead(NodeId, Result<Option<NodeStub>, ()>),
    OnNode(Vec<(Allocation, JobSpec)>),
    DrainReport {
        op: OpId,
        node: NodeId,
        reply: oneshot::Sender<Option<DrainReport>>,
    },
    EvalDone(EvalId),
    Fresh(AllocId, Result<Option<(Allocation, Option<JobSpec>)>, ()>),
    Answered(AllocId, Vec<(ClockKey, Timestamp, Answer)>),
    Told(Box<Operation>),
    StopDeleted {
        op: OpId,
        key: JobKey,
        index: u64,
        eval: Option<EvalId>,
        reply: oneshot::Sender<()>,
    },
    Changed {
        op: Box<Operation>,
        reply: oneshot::Sender<()>,
    },
    Restore {
        clocks: Vec<ClockRecord>,
        reply: oneshot::Sender<()>,
    },
    Reopen {
        live: Vec<Operation>,
        reply: oneshot::Sender<()>,
    },
    TakeUp {
        epoch: u64,
        reply: oneshot::Sender<()>,
    },
    StandBy,
    Report {
        op: OpId,
        key: JobKey,
        reply: oneshot::Sender<Option<StopReport>>,
    },
    Newest {
        key: JobKey,
        reply: oneshot::Sender<Option<JobSpec>>,
    },
    Census(oneshot::Sender<Census>),
    /// The clocks that are armed; `None` where none are kept.
    Clocks {
        whose: Arc<Whose>,
        most: usize,
        reply: oneshot::Sender<Option<(Vec<ClockRecord>, usize)>>,
    },
    Flushed,
}

impl Msg {
    /// Of no use to a keeper that stands by. What came of its last signals is, for the trail.
    fn is_about_clocks(&self) -> bool {
        !matches!(
            self,
            Msg::Registered { .. }
                | Msg::Purged(_)
                | Msg::Gap
                | Msg::Answered(..)
                | Msg::Restore { .. }
                | Msg::Reopen { .. }
                | Msg::TakeUp { .. }
                | Msg::StandBy
                | Msg::Newest { .. }
                | Msg::Census(_)
                | Msg::Clocks { .. }
                | Msg::Flushed
        )
    }
}

/// A handle on the keeper. Cheap to clone; calls after the keeper ended do nothing.
#[derive(Clone)]
pub struct Keeper {
    tx: mpsc::Sender<Msg>,
    jobs: mpsc::Sender<reader::ReadJob>,
}

/// What it works with.
pub struct Parts {
    pub nomad: Nomad,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub config: Arc<Config>,
    /// `host:pid`, for the audit trail.
    pub actor: String,
    /// Operations that something happened for.
    pub nudges: mpsc::Sender<OpId>,
    pub pulse: Arc<Pulse>,
    pub duty: Duty,
    pub metrics: Metrics,
}

/// How many messages may wait for the keeper before the senders wait.
const QUEUE: usize = 4096;

impl Keeper {
    /// Starts the keeper, standing by. It ends when `stop` is cancelled, after its last writes; await the handle for that.
    pub fn start(parts: Parts, stop: CancellationToken) -> (Keeper, tokio::task::JoinHandle<()>) {
        let (tx, rx) = mpsc::channel(QUEUE);
        let (jobs_tx, jobs_rx) = mpsc::channel(QUEUE);
        let keeper = Keeper { tx, jobs: jobs_tx };
        let mut readers = JoinSet::new();
        let lists = reader::Lists::default();
        readers.spawn(reader::read_jobs(parts.nomad.clone(), lists.clone(), jobs_rx));
        let (reads_tx, reads_rx) = mpsc::channel(QUEUE);
        readers.spawn(reader::read_allocations(parts.nomad.clone(), keeper.clone(), lists, reads_rx));
        let actor = Actor {
            book: Book::new(&parts.config, parts.actor.clone()),
            keeps: None,
            next: None,
            parts,
            keeper: keeper.clone(),
            reads: reads_tx,
            overflow: Vec::new(),
            unheard: HashSet::new(),
            pending: Pending::default(),
            flushing: false,
            lanes: HashMap::new(),
            under_way: JoinSet::new(),
            _readers: readers,
        };
        let handle = tokio::spawn(actor.run(rx, stop));
        (keeper, handle)
    }

    async fn send(&self, msg: Msg) {
        // The keeper is gone only when the controller is.
        let _ = self.tx.send(msg).await;
    }
    async fn ask<T>(&self, msg: impl FnOnce(oneshot::Sender<T>) -> Msg) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.send(msg(reply)).await;
        answer.await.ok()
    }

    pub async fn observed(&self, allocs: Vec<Allocation>) {
        self.send(Msg::Observed(allocs)).await;
    }
    pub async fn registered(&self, key: JobKey, spec: Box<JobSpec>) {
        self.send(Msg::Registered { key, spec }).await;
    }
    pub async fn purged(&self, key: JobKey) {
        self.send(Msg::Purged(key)).await;
    }
    pub async fn resynced(&self, began: Timestamp) {
        self.send(Msg::Resynced { began }).await;
    }
    pub async fn gap(&self) {
        self.send(Msg::Gap).await;
    }
    pub async fn node_seen(&self, node: NodeStub) {
        self.send(Msg::NodeSeen(Box::new(node))).await;
    }
    /// Every allocation of a node that drains, as it was just read.
    pub async fn on_node(&self, all: Vec<(Allocation, JobSpec)>) {
        self.send(Msg::OnNode(all)).await;
    }
    /// What the live drain of a node can say about itself; nothing when it is not live here, or did not start.
    pub async fn drain_report(&self, op: OpId, node: NodeId) -> Option<DrainReport> {
        self.ask(|reply| Msg::DrainReport { op, node, reply }).await.flatten()
    }
    pub async fn eval_done(&self, eval: EvalId) {
        self.send(Msg::EvalDone(eval)).await;
    }
    /// An operation began, or ended.
    pub async fn tell(&self, op: Operation) {
        self.send(Msg::Told(Box::new(op))).await;
    }
    pub async fn stop_deleted(&self, op: OpId, key: JobKey, index: u64, eval: Option<EvalId>) {
        self.ask(|reply| Msg::StopDeleted { op, key, index, eval, reply }).await;
    }
    /// Somebody joined, intervened or ended it, here or elsewhere. Returns when the clocks go by it.
    pub async fn changed(&self, op: Operation) {
        self.ask(|reply| Msg::Changed { op: Box::new(op), reply }).await;
    }
    /// Clocks as they were written down, for [`Keeper::take_up`].
    pub async fn restore(&self, clocks: Vec<ClockRecord>) {
        self.ask(|reply| Msg::Restore { clocks, reply }).await;
    }
    /// Operations that have not finished, for [`Keeper::take_up`].
    pub async fn reopen(&self, live: Vec<Operation>) {
        self.ask(|reply| Msg::Reopen { live, reply }).await;
    }
    /// From here on this keeper keeps the clocks, by what was restored and reopened, under this epoch of the duty.
    pub async fn take_up(&self, epoch: u64) {
        self.ask(|reply| Msg::TakeUp { epoch, reply }).await;
    }
    /// Somebody else keeps the clocks.
    pub async fn stand_by(&self) {
        self.send(Msg::StandBy).await;
    }
    /// What a live stop can say about itself; nothing when it is not live here.
    pub async fn report(&self, op: OpId, key: JobKey) -> Option<StopReport> {
        self.ask(|reply| Msg::Report { op, key, reply }).await.flatten()
    }
    /// The newest registration of a job, when the event stream told it without a gap.
    pub async fn newest(&self, key: JobKey) -> Option<JobSpec> {
        self.ask(|reply| Msg::Newest { key, reply }).await.flatten()
    }
    /// All zero where the clocks are not kept.
    pub async fn census(&self) -> Census {
        self.ask(Msg::Census).await.unwrap_or_default()
    }
    /// The earliest clocks that are armed, at most so many, and how many there are; `None` where
    /// another controller keeps them.
    pub async fn clocks(&self, whose: Arc<Whose>, most: usize) -> Option<(Vec<ClockRecord>, usize)> {
        self.ask(|reply| Msg::Clocks { whose, most, reply }).await.flatten()
    }
    /// Which allocations of the job are not over, read now (together with other jobs that ask).
    pub async fn not_over(&self, key: JobKey) -> Result<Vec<Allocation>, String> {
        let (reply, answer) = oneshot::channel();
        let stopping = || "the controller is stopping".to_owned();
        self.jobs.send(reader::ReadJob { key, reply }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
    async fn fresh(&self, id: AllocId, read: Result<Option<(Allocation, Option<JobSpec>)>, ()>) {
        self.send(Msg::Fresh(id, read)).await;
    }
}

/// What waits to be written. Clocks fold by key; the trail is bounded.
#[derive(Default)]
struct Pending {
    clocks: HashMap<ClockKey, Option<ClockRecord>>,
    audit: Vec<AuditEntry>,
    /// Of the duty under which the clocks came about.
    epoch: Option<u64>,
}

/// Audit rows kept while the database cannot be written; a kill never waits for them.
const AUDIT_BACKLOG: usize = 100_000;

struct Actor {
    book: Book,
    /// The epoch under which this controller keeps the clocks. The others know the newest job specifications, and no clock.
    keeps: Option<u64>,
    /// What was read so far for a duty that is about to be taken up, and what it comes to. Nothing of it runs before all is read:
    /// a clock without the demands of its stop is another one.
    next: Option<Box<(Book, Vec<Effect>)>>,
    parts: Parts,
    keeper: Keeper,
    reads: mpsc::Sender<reader::ReadAlloc>,
    /// Reads that found the queue full.
    overflow: Vec<reader::ReadAlloc>,
    /// Nudges that found the queue full: a waiting stop may not look by itself for an hour.
    unheard: HashSet<OpId>,
    pending: Pending,
    flushing: bool,
    /// Signals under way by node: a client that hangs holds up its own and nobody else's.
    lanes: HashMap<NodeId, Arc<Semaphore>>,
    /// Signals and writes; none outlives the keeper.
    under_way: JoinSet<()>,
    /// What they read is for this keeper only.
    _readers: JoinSet<()>,
}

/// A read older than this says nothing about a task that may live on in health.
const STALE: Duration = Duration::from_millis(250);

/// What the keeper's end waits for answers to signals and for writes under way.
const ANSWERS: Duration = Duration::from_millis(400);

/// A quarter of the calls that may be under way at once.
const SIGNALS_PER_NODE: usize = 16;

impl Actor {
    async fn run(mut self, mut rx: mpsc::Receiver<Msg>, stop: CancellationToken) {
        let mut fx = Vec::new();
        let mut batch = Vec::new();
        let mut duty = self.parts.duty.seen();
        loop {
            self.parts.pulse.turn(Loop::Keeper);
            while self.under_way.try_join_next().is_some() {}
            self.carry_out(&mut fx);
            let wait = self.until_next_wake();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // Its sender lives in `parts`.
                _ = duty.changed() => {}
                () = tokio::time::sleep(wait) => {}
                n = rx.recv_many(&mut batch, 256) => if n == 0 { break },
            }
            duty.mark_unchanged();
            self.look_for_leave();
            // Clocks first: a burst of messages does not make one late.
            self.book.tick(self.parts.clock.now(), &mut fx);
            for msg in batch.drain(..) {
                self.handle(msg, &mut fx);
            }
        }
        self.carry_out(&mut fx);
        self.answers(&mut rx).await;
        self.last_flush(rx).await;
    }

    /// Signals that are on their way are waited for, a moment: their answers belong into the trail. No other is begun, and one
    /// that is dropped is in the trail as being sent.
    async fn answers(&mut self, rx: &mut mpsc::Receiver<Msg>) {
        let mut fx = Vec::new();
        let until = tokio::time::Instant::now() + ANSWERS;
        while !self.under_way.is_empty() {
            tokio::select! {
                biased;
                Some(msg) = rx.recv() => self.handle_last(msg, &mut fx),
                _ = self.under_way.join_next() => {}
                () = tokio::time::sleep_until(until) => break,
            }
        }
        self.under_way.shutdown().await;
        self.flushing = true;
        self.carry_out(&mut fx);
    }

    /// What the end of the keeper still wants to know.
    fn handle_last(&mut self, msg: Msg, fx: &mut Vec<Effect>) {
        // A fresh read is for a signal.
        if !matches!(msg, Msg::Fresh(..)) {
            self.handle(msg, fx);
        }
        // The next keeper derives its clocks anew.
        fx.retain(|e| !matches!(e, Effect::Kill { .. } | Effect::Read { .. } | Effect::ReadNode(_)));
    }

    fn look_for_leave(&mut self) {
        let duty = &self.parts.duty;
        let leave = Leave { epoch: duty.may_kill().ok(), paused: duty.paused() };
        self.book.set_leave(leave, self.parts.clock.now());
    }

    fn until_next_wake(&self) -> Duration {
        // Wall time may jump, so no sleep is longer than a second.
        const LONGEST: Duration = Duration::from_secs(1);
        if !self.overflow.is_empty() || !self.unheard.is_empty() {
            return Duration::from_millis(1);
        }
        self.book.next_wake().map_or(LONGEST, |at| at.since(self.parts.clock.now()).min(LONGEST))
    }

    fn handle(&mut self, msg: Msg, fx: &mut Vec<Effect>) {
        let now = self.parts.clock.now();
        if self.keeps.is_none() && msg.is_about_clocks() {
            return;
        }
        // It may order a SIGKILL, and this process may have slept since the turn began: nothing is ordered without leave.
        if matches!(msg, Msg::Fresh(..)) {
            self.look_for_leave();
        }
        let book = &mut self.book;
        match msg {
            Msg::Observed(allocs) => {
                for a in allocs {
                    book.observe(a, now, fx);
                }
            }
            Msg::Registered { key, spec } => {
                book.specs.insert(&key, &spec);
            }
            Msg::Purged(key) => book.specs.forget(&key),
            Msg::Resynced { began } => book.resynced(began, fx),
            Msg::Gap => book.gap(),
            Msg::NodeSeen(node) => book.node_seen(&node, now, fx),
            Msg::NodeRead(id, read) => book.node_read(&id, read, now, fx),
            Msg::OnNode(all) => book.on_node(all, now, fx),
            Msg::DrainReport { op, node, reply } => {
                let _ = reply.send(book.drain_report(op, &node, now));
            }
            Msg::EvalDone(eval) => book.eval_done(&eval, fx),
            Msg::Fresh(id, Ok(read)) => book.fresh(&id, read, now, fx),
            Msg::Fresh(id, Err(())) => book.unread(&id, now),
            Msg::Answered(id, answers) => book.answered(&id, answers, now, fx),
            Msg::Told(op) => book.changed(&op, now, fx),
            Msg::StopDeleted { op, key, index, eval, reply } => {
                book.stop_deleted(op, &key, index, eval, now, fx);
                let _ = reply.send(());
            }
            Msg::Changed { op, reply } => {
                book.changed(&op, now, fx);
                let _ = reply.send(());
            }
            Msg::Restore { clocks, reply } => {
                self.next().0.restore(clocks, now);
                let _ = reply.send(());
            }
            Msg::Reopen { live, reply } => {
                let (book, later) = self.next();
                for op in &live {
                    book.changed(op, now, later);
                }
                let _ = reply.send(());
            }
            Msg::TakeUp { epoch, reply } => {
                let (next, mut later) = *self.next.take().unwrap_or_else(|| self.blank());
                self.book.give_way(next);
                fx.append(&mut later);
                (self.keeps, self.pending.epoch) = (Some(epoch), Some(epoch));
                let _ = reply.send(());
            }
            Msg::StandBy => {
                self.keeps = None;
                self.next = None;
                // The next holder writes its own; what was done goes into the trail all the same.
                self.pending.clocks.clear();
                self.unheard.clear();
            }
            Msg::Report { op, key, reply } => {
                let _ = reply.send(book.stop_report(op, &key, now));
            }
            Msg::Newest { key, reply } => {
                let _ = reply.send(book.specs.newest(&key));
            }
            Msg::Census(reply) => {
                let _ = reply.send(book.census(now));
            }
            Msg::Clocks { whose, most, reply } => {
                let _ = reply.send(self.keeps.is_some().then(|| book.clocks(&whose, most)));
            }
            Msg::Flushed => {
                self.flushing = false;
                self.lanes.retain(|_, lane| lane.available_permits() < SIGNALS_PER_NODE);
            }
        }
    }

    fn blank(&self) -> Box<(Book, Vec<Effect>)> {
        Box::new((Book::new(&self.parts.config, self.parts.actor.clone()), vec![]))
    }

    fn next(&mut self) -> &mut (Book, Vec<Effect>) {
        let blank = self.next.take().unwrap_or_else(|| self.blank());
        self.next.insert(blank)
    }

    fn carry_out(&mut self, fx: &mut Vec<Effect>) {
        if self.keeps.is_none() {
            fx.retain(|effect| matches!(effect, Effect::Audit(_) | Effect::Late(_)));
        }
        let mut reads = std::mem::take(&mut self.overflow);
        for effect in fx.drain(..) {
            match effect {
                Effect::Persist(r) => {
                    self.pending.clocks.insert(r.key.clone(), Some(r));
                }
                Effect::Forget(key) => {
                    self.pending.clocks.insert(key, None);
                }
                Effect::Audit(entry) => self.pending.audit.push(entry),
                Effect::Read { id, full } => reads.push(reader::ReadAlloc { id, full }),
                Effect::ReadNode(id) => self.read_node(id),
                Effect::Kill { alloc, node, clocks } => self.kill(alloc, node, clocks),
                Effect::Nudge(op) => {
                    self.unheard.insert(op);
                }
                Effect::Late(by) => self.parts.metrics.late(by),
            }
        }
        let nudges = &self.parts.nudges;
        // Closed: nothing is leased any more, and nobody is to be told.
        self.unheard.retain(|op| matches!(nudges.try_send(*op), Err(mpsc::error::TrySendError::Full(_))));
        for r in reads {
            if let Err(mpsc::error::TrySendError::Full(r)) = self.reads.try_send(r) {
                self.overflow.push(r);
            }
        }
        let audit = &mut self.pending.audit;
        if audit.len() > AUDIT_BACKLOG {
            tracing::error!(
                lost = audit.len() - AUDIT_BACKLOG,
                "the database could not be written for so long that audit rows are lost"
            );
            audit.drain(..audit.len() - AUDIT_BACKLOG);
        }
        self.flush();
    }

    fn read_node(&self, id: NodeId) {
        let (nomad, keeper) = (self.parts.nomad.clone(), self.keeper.clone());
        tokio::spawn(async move {
            let read = nomad.node(&id).await.map(|n| n.map(|n| n.stub)).map_err(|e| {
                tracing::warn!(node = %id, error = %crate::error::chain(&e), "reading a node, for who drained it, failed");
            });
            keeper.send(Msg::NodeRead(id, read)).await;
        });
    }

    /// The one place that sends SIGKILL: at each clock's instant, on the strength of a read made just before it.
    fn kill(&mut self, alloc: AllocId, node: NodeId, clocks: Vec<Shot>) {
        let (nomad, clock, keeper) = (self.parts.nomad.clone(), self.parts.clock.clone(), self.keeper.clone());
        let (duty, metrics) = (self.parts.duty.clone(), self.parts.metrics.clone());
        let lane = self.lanes.entry(node.clone()).or_insert_with(|| Arc::new(Semaphore::new(SIGNALS_PER_NODE))).clone();
        self.under_way.spawn(async move {
            let shots = clocks.into_iter().map(async |shot| {
                let (cause, key) = (shot.clock.cause(), shot.clock.key());
                let span = tracing::info_span!("kill", alloc = %key.alloc, task = %key.task, operation = Empty);
                let span = match shot.operation {
                    Some(id) => {
                        span.record("operation", tracing::field::display(id));
                        trace::of(id, span)
                    }
                    None => span,
                };
                let answer = kill_one(&nomad, &*clock, &duty, &node, &lane, shot).instrument(span).await;
                metrics.sigkill(cause, &answer.2);
                answer
            });
            let answers = futures::future::join_all(shots).await;
            keeper.send(Msg::Answered(alloc, answers)).await;
        });
    }

    fn flush(&mut self) {
        if self.flushing || (self.pending.clocks.is_empty() && self.pending.audit.is_empty()) {
            return;
        }
        self.flushing = true;
        let next = Pending { epoch: self.keeps, ..Pending::default() };
        let pending = std::mem::replace(&mut self.pending, next);
        let (store, keeper) = (self.parts.store.clone(), self.keeper.clone());
        let duty = self.parts.duty.clone();
        self.under_way.spawn(async move {
            write(&*store, &duty, pending, u32::MAX).await;
            keeper.send(Msg::Flushed).await;
        });
    }

    async fn last_flush(mut self, mut rx: mpsc::Receiver<Msg>) {
        rx.close();
        let mut fx = Vec::new();
        // Handles may live on and hold a sender: only what has come already.
        while let Ok(msg) = rx.try_recv() {
            self.handle_last(msg, &mut fx);
        }
        self.flushing = true;
        self.carry_out(&mut fx);
        const TRIES: u32 = 3;
        write(&*self.parts.store, &self.parts.duty, self.pending, TRIES).await;
    }
}

async fn kill_one(
    nomad: &Nomad,
    clock: &dyn Clock,
    duty: &Duty,
    node: &NodeId,
    lane: &Semaphore,
    Shot { clock: kill, off, .. }: Shot,
) -> (ClockKey, Timestamp, Answer) {
    let key = kill.key().clone();
    let read_at = clock.now();
    if kill.cause() == Cause::SiblingEnded
        && let Err(why) = node_is_heard_from(nomad, node).await
    {
        return (key, clock.now(), Answer::Unreachable(why));
    }
    let order = loop {
        let now = clock.now();
        match kill.order(now) {
            Some(order) => break order,
            None => tokio::select! {
                () = off.cancelled() => return (key, now, Answer::Withheld("its clock was moved".into())),
                () = tokio::time::sleep(kill.due().since(now)) => {}
            },
        }
    };
    // Closed never.
    let _turn = lane.acquire().await;
    let sent_at = clock.now();
    if kill.cause().may_pass() && sent_at.since(read_at) > STALE {
        return (key, sent_at, Answer::Stale);
    }
    let answer = match nomad.sigkill(&order, || !off.is_cancelled() && duty.may_kill().is_ok()).await {
        Ok(SignalOutcome::Sent) => Answer::Sent,
        Ok(SignalOutcome::Withheld) => {
            Answer::Withheld(duty.may_kill().err().map_or("its clock was moved".into(), |why| why.to_string()))
        }
        Ok(SignalOutcome::Unreachable(e)) => Answer::Unreachable(e),
        Ok(SignalOutcome::Gone(e)) => Answer::Gone(e),
        Ok(SignalOutcome::NotRunning(e)) => Answer::NotRunning(e),
        Ok(SignalOutcome::Unsupported(e)) => Answer::Unsupported(e),
        Err(e) => Answer::Failed(crate::error::chain(&e)),
    };
    match &answer {
        Answer::Sent => {
            tracing::info!(alloc = %key.alloc, task = %key.task, cause = book::cause_name(kill.cause()), clock = %kill.due(), "SIGKILL sent")
        }
        other => {
            tracing::warn!(alloc = %key.alloc, task = %key.task, clock = %kill.due(), answer = ?other, "SIGKILL not delivered")
        }
    }
    (key, sent_at, answer)
}

/// That a sibling's end is for good is concluded from what its client does not say; a client that is gone says nothing either.
async fn node_is_heard_from(nomad: &Nomad, node: &NodeId) -> Result<(), String> {
    match nomad.node(node).await {
        Ok(Some(n)) if n.stub.status == NodeStatus::Ready => Ok(()),
        Ok(Some(n)) => Err(format!("its node is {:?}", n.stub.status).to_lowercase()),
        Ok(None) => Err("its node is gone from Nomad".into()),
        Err(e) => Err(crate::error::chain(&e)),
    }
}

/// Writes until it is written, or `tries` are used up. What gathers meanwhile is bounded by the number of clocks and by
/// [`AUDIT_BACKLOG`]. Clocks are the holder's to write: while its duty has run out they wait, and when it is lost they are
/// dropped. What was done stays done, so the trail is written in any case.
async fn write(store: &dyn Store, duty: &Duty, pending: Pending, tries: u32) {
    let (mut put, mut removed) = (Vec::new(), Vec::new());
    for (key, record) in pending.clocks {
        match record {
            Some(r) => put.push(r),
            None => removed.push(key),
        }
    }
    let Pending { mut audit, epoch, .. } = pending;
    let mut wait = Duration::from_millis(100);
    for _ in 0..tries {
        let held = duty.held() == epoch;
        if !held {
            (put, removed) = (vec![], vec![]);
        }
        let clocks = !put.is_empty() || !removed.is_empty();
        let written = async {
            if clocks && duty.valid().is_none() {
                return Ok(false);
            }
            if !put.is_empty() || !audit.is_empty() {
                store.put_clocks(put.clone(), audit.clone()).await?;
                (put, audit) = (vec![], vec![]);
            }
            if !removed.is_empty() {
                store.remove_clocks(removed.clone(), vec![]).await?;
            }
            curfew_store::Result::Ok(true)
        };
        match written.await {
            Ok(true) => return,
            Ok(false) => {}
            Err(e) => {
                tracing::error!(error = %crate::error::chain(&e), "clocks could not be written down; they run on from memory");
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(5));
    }
    tracing::error!("clocks were given up writing down; Nomad still shows what they rest on");
}
