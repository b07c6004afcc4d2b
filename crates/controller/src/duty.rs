//! The keeper's duty: one controller keeps the clocks and sends SIGKILL, the others stand by.
//!
//! ```text
//!             taken: clocks and live operations are read from the database
//!  standing by ────────────────────────────────▶ held ──▶ renewed each fifth of `keeper_lease`
//!       ▲                                         │ │
//!       │   somebody took it, or it was given up  │ └─ not renewed in time: run out, nothing is sent until it is
//!       └─────────────────────────────────────────┘
//! ```
//!
//! Its lease counts from before the renewal was asked for, by this process's own clocks, so it runs out here before anybody else can
//! take it. A process that was stopped for a while finds that out at its next look, which comes before each signal.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use curfew_core::operation::{By, Kind, Lease, Operation};
use curfew_core::{Clock, OpId, Timestamp};
use curfew_store::{Change, PAGE, Store, StoreError};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, Notify, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::chain;
use crate::keeper::Keeper;

/// What this controller knows about the duty. Cheap to clone.
#[derive(Clone)]
pub struct Duty {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    seen: Arc<watch::Sender<Seen>>,
    /// Reads of the kinds come one after the other, so that an older one never hides a newer.
    reading: Arc<Mutex<()>>,
}

#[derive(Clone, Default)]
pub struct Seen {
    held: Option<Held>,
    /// As the database had it: who keeps the clocks.
    pub holder: Lease,
    /// Who paused `kill`.
    pub paused: Option<Arc<By>>,
}

#[derive(Clone, Copy)]
struct Held {
    epoch: u64,
    /// By both clocks: a machine that slept does not count that in the first, and the second may be set. `None`: for good.
    until: Option<(Instant, Timestamp)>,
}

/// Why no SIGKILL may be sent now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withheld {
    StandingBy,
    RunOut,
    Paused(Arc<By>),
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Withheld::StandingBy => f.write_str("another controller keeps the clocks"),
            Withheld::RunOut => f.write_str("the keeper's duty was not renewed in time"),
            Withheld::Paused(by) => write!(f, "kill is paused by {}", by.actor),
        }
    }
}

impl Duty {
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        let (seen, _) = watch::channel(Seen::default());
        Self { store, clock, seen: Arc::new(seen), reading: Arc::default() }
    }

    /// The epoch under which this controller has the duty, also when its lease has run out.
    pub fn held(&self) -> Option<u64> {
        self.seen.borrow().held.map(|h| h.epoch)
    }

    /// The same, and it has not run out.
    pub fn valid(&self) -> Option<u64> {
        let held = self.seen.borrow().held?;
        held.until.is_none_or(|(by, at)| Instant::now() < by && self.clock.now() < at).then_some(held.epoch)
    }

    /// Leave to send SIGKILL at this moment, and its epoch.
    pub fn may_kill(&self) -> Result<u64, Withheld> {
        let Some(epoch) = self.valid() else {
            return Err(if self.held().is_some() { Withheld::RunOut } else { Withheld::StandingBy });
        };
        match &self.seen.borrow().paused {
            Some(by) => Err(Withheld::Paused(by.clone())),
            None => Ok(epoch),
        }
    }

    /// Who paused `kill`.
    pub fn paused(&self) -> Option<Arc<By>> {
        self.seen.borrow().paused.clone()
    }

    /// As it was seen last, and whenever that changes.
    pub fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// Reads who paused what and who has the duty.
    pub async fn look(&self) -> Result<(), StoreError> {
        let _one = self.reading.lock().await;
        let rows = self.store.kinds().await?;
        let Some(row) = rows.into_iter().find(|r| r.kind == Kind::Kill) else { return Ok(()) };
        self.seen.send_modify(|s| {
            s.holder = row.duty;
            s.paused = row.pause.map(Arc::new);
        });
        Ok(())
    }

    fn hold(&self, held: Option<Held>) {
        self.seen.send_modify(|s| s.held = held);
    }
}

/// Takes the duty whenever it is free, and keeps it.
pub struct Watch {
    pub duty: Duty,
    pub keeper: Keeper,
    /// `host:pid`.
    pub holder: String,
    pub lease: Duration,
    /// Told after the duty was taken: everything is to be listed anew.
    pub resync: Arc<Notify>,
}

/// What has not finished of the kinds that the clocks go by, a page at a time: there may be a hundred thousand.
pub struct Live<'a> {
    store: &'a dyn Store,
    kinds: Vec<Kind>,
    after: OpId,
}

impl<'a> Live<'a> {
    pub fn of(store: &'a dyn Store) -> Self {
        Self { store, kinds: Kind::OPERATIONS.into_iter().filter(|k| k.reports_clocks()).collect(), after: OpId::MIN }
    }

    /// `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Vec<Operation>>, StoreError> {
        while let Some(kind) = self.kinds.last() {
            let page = self.store.live_after(*kind, self.after, PAGE).await?;
            if let Some(last) = page.last() {
                self.after = last.id;
                return Ok(Some(page));
            }
            self.kinds.pop();
            self.after = OpId::MIN;
        }
        Ok(None)
    }

    /// Tells the keeper of all of them.
    pub async fn tell(mut self, keeper: &Keeper) -> Result<(), StoreError> {
        while let Some(page) = self.next().await? {
            for op in page {
                keeper.changed(op).await;
            }
        }
        Ok(())
    }
}

/// How often the log says that nobody is killed.
const REMIND: Duration = Duration::from_secs(60);

impl Watch {
    /// Takes the duty when it is free, and what goes with it. Whether it has it then.
    pub async fn take(&self) -> Result<bool, StoreError> {
        let (store, now) = (&self.duty.store, self.duty.clock.now());
        let began = (Instant::now(), now);
        let changes = store.changes();
        let Some(taken) = store.take_duty(&self.holder, self.lease, now).await? else {
            self.duty.look().await?;
            return Ok(false);
        };
        // Held, and run out, until it is known what is to be kept.
        self.duty.hold(Some(Held { epoch: taken.epoch, until: Some(began) }));
        let taken_up = self.take_up(taken, changes).await;
        if taken_up.is_err() {
            self.duty.hold(None);
            self.keeper.stand_by().await;
            // Somebody else, or this one in a moment, may have more luck with the database.
            let _ = store.give_up_duty(taken.epoch, self.duty.clock.now()).await;
        }
        taken_up.map(|()| true)
    }

    async fn take_up(&self, taken: curfew_store::Duty, mut changes: broadcast::Receiver<Change>) -> Result<(), StoreError> {
        let store = &self.duty.store;
        let clocks = async {
            let (mut read, mut after) = (0, None);
            loop {
                let page = store.clocks_after(after, PAGE).await?;
                let Some(last) = page.last() else { return Ok::<_, StoreError>(read) };
                after = Some(last.key.clone());
                read += page.len();
                self.keeper.restore(page).await;
            }
        };
        let operations = async {
            let (mut read, mut live) = (0, Live::of(&**store));
            while let Some(page) = live.next().await? {
                read += page.len();
                self.keeper.reopen(page).await;
            }
            Ok(read)
        };
        let (clocks, operations) = tokio::try_join!(clocks, operations)?;
        self.duty.look().await?;
        tracing::info!(epoch = taken.epoch, clocks, operations, "this controller keeps the clocks");
        self.keeper.take_up(taken.epoch).await;
        self.catch_up(&mut changes).await?;
        let began = (Instant::now(), self.duty.clock.now());
        let renewed = store.renew_duty(taken.epoch, self.lease, began.1).await?;
        self.duty.hold(Some(self.held(renewed, began)));
        self.resync.notify_one();
        Ok(())
    }

    /// What changed between the read and the moment from which the keeper listens.
    async fn catch_up(&self, changes: &mut broadcast::Receiver<Change>) -> Result<(), StoreError> {
        use broadcast::error::TryRecvError;
        loop {
            match changes.try_recv() {
                Ok(Change::Operation { id, due: true }) => {
                    if let Some(op) = self.duty.store.operation(id).await? {
                        self.keeper.changed(op).await;
                    }
                }
                Ok(Change::Operation { .. } | Change::Kinds) => {}
                Ok(Change::Missed) | Err(TryRecvError::Lagged(_)) => {
                    Live::of(&*self.duty.store).tell(&self.keeper).await?;
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Ok(()),
            }
        }
    }

    fn held(&self, duty: curfew_store::Duty, began: (Instant, Timestamp)) -> Held {
        let until = duty.expires_at.map(|_| (began.0 + self.lease, began.1 + self.lease));
        Held { epoch: duty.epoch, until }
    }

    /// Runs until `stop`. Then the duty is still held, until [`Watch::give_up`].
    pub async fn run(&self, stop: CancellationToken) {
        let mut changes = self.duty.store.changes();
        let mut reminded: Option<Instant> = None;
        loop {
            self.remind(&mut reminded);
            tokio::select! {
                () = stop.cancelled() => return,
                change = changes.recv() => match change {
                    // Kinds were paused or resumed, or the duty changed hands: look at once.
                    Ok(Change::Kinds | Change::Missed) | Err(RecvError::Lagged(_)) => {}
                    Ok(Change::Operation { .. }) => continue,
                    Err(RecvError::Closed) => return,
                },
                () = tokio::time::sleep(self.lease / 5) => {}
            }
            let turn = tokio::select! {
                () = stop.cancelled() => return,
                turn = self.turn() => turn,
            };
            if let Err(e) = turn {
                tracing::error!(error = %chain(&e), "the keeper's duty could not be looked after");
            }
        }
    }

    async fn turn(&self) -> Result<(), StoreError> {
        let Some(epoch) = self.duty.held() else { return self.take().await.map(drop) };
        let began = (Instant::now(), self.duty.clock.now());
        match self.duty.store.renew_duty(epoch, self.lease, began.1).await {
            Ok(renewed) => {
                if self.duty.valid().is_none() {
                    tracing::warn!(epoch, "the keeper's duty had run out and is renewed: what is due goes out now");
                }
                self.duty.hold(Some(self.held(renewed, began)));
            }
            Err(StoreError::DutyLost { .. }) => {
                tracing::warn!(epoch, "another controller keeps the clocks now; this one stands by");
                self.duty.hold(None);
                self.keeper.stand_by().await;
            }
            Err(e) => return Err(e),
        }
        self.duty.look().await
    }

    fn remind(&self, reminded: &mut Option<Instant>) {
        let Err(Withheld::Paused(by)) = self.duty.may_kill() else {
            *reminded = None;
            return;
        };
        if reminded.is_none_or(|at| at.elapsed() >= REMIND) {
            *reminded = Some(Instant::now());
            let reason = by.reason.as_deref().unwrap_or("none given");
            tracing::warn!(by = by.actor, since = %by.at, reason, "kill is paused: no SIGKILL is sent; curfew kind resume kill");
        }
    }

    /// Makes it free for the next one, and sends nothing from here on.
    pub async fn give_up(&self) {
        let Some(epoch) = self.duty.held() else { return };
        self.duty.hold(None);
        if let Err(e) = self.duty.store.give_up_duty(epoch, self.duty.clock.now()).await {
            tracing::error!(error = %chain(&e), "the keeper's duty could not be given up; it runs out by itself");
        }
    }
}
