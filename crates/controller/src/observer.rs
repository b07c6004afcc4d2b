//! Looks at Nomad: a list of everything that was told to end, again and again, and the event stream to hear of it sooner.
//!
//! Losing every event costs a resync period, never a kill. A gap in the stream empties what rests on its being whole.

use std::sync::Arc;
use std::time::Duration;

use curfew_core::{Allocation, Clock, Timestamp};
use curfew_nomad::{EvalState, Event, Nomad, StreamEnd};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::crashes::Crashes;
use crate::error::chain;
use crate::keeper::Keeper;
use crate::metrics::Metrics;
use crate::pulse::{IDLE, Loop, Pulse};

/// How Nomad is seen now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Nothing was read yet.
    Starting,
    Clear,
    Lost {
        since: Timestamp,
        why: String,
        denied: bool,
    },
}

impl Sight {
    /// Why the token does not see everything: lists leave out what it may not see without a word, the event stream does not open.
    pub fn denied(&self) -> Option<&str> {
        match self {
            Self::Lost { why, denied: true, .. } => Some(why),
            _ => None,
        }
    }

    /// Why an empty list may not be empty: that the token sees everything has not shown yet, or it does not. A stream that just
    /// ended may have been ended because of that.
    pub fn unsure(&self, now: Timestamp) -> Option<&str> {
        match self {
            Self::Starting => Some("the event stream was not opened yet"),
            Self::Lost { why, since, denied } if *denied || now.since(*since) < TOLD => Some(why),
            _ => None,
        }
    }
}

pub struct Observer {
    pub nomad: Nomad,
    pub keeper: Keeper,
    pub clock: Arc<dyn Clock>,
    pub resync_interval: Duration,
    /// Asks for a list now.
    pub resync: Arc<Notify>,
    pub sight: watch::Sender<Sight>,
    pub pulse: Arc<Pulse>,
    pub crashes: Crashes,
    pub metrics: Metrics,
}

/// When a stream that was lost is opened again, Nomad has refused it by then if it is the token's fault.
const TOLD: Duration = Duration::from_secs(15);
const BACKOFF: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

impl Observer {
    pub async fn run(self, stop: CancellationToken) {
        let mut failures = 0usize;
        loop {
            self.pulse.turn(Loop::Observer);
            let lost = tokio::select! {
                () = stop.cancelled() => return,
                lost = self.watch(&mut failures) => lost,
            };
            self.metrics.out_of_sight(lost.at());
            let why = chain(&lost);
            self.keeper.gap().await;
            let before = match &*self.sight.borrow() {
                Sight::Lost { since, .. } => Some(*since),
                _ => None,
            };
            if before.is_none() {
                tracing::warn!(why, "lost sight of Nomad; looking again");
            }
            let since = before.unwrap_or_else(|| self.clock.now());
            self.sight.send_replace(Sight::Lost { since, why, denied: lost.is_denied() });
            let wait = BACKOFF.get(failures).or(BACKOFF.last()).copied().unwrap_or_default();
            failures += 1;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Lists, then follows the stream from there with a list at every interval; returns when either fails.
    async fn watch(&self, failures: &mut usize) -> Lost {
        let mut index = match self.resync().await {
            Ok(index) => index,
            Err(e) => return e,
        };
        // What was read of jobs before this index may be older than it, and the stream does not tell it again.
        self.keeper.gap().await;
        let mut stream = match self.nomad.events(Some(index)).await {
            Ok(s) => s,
            Err(e) => return Lost::Stream(e),
        };
        // Nomad may have started the stream later than asked: list again once it is open.
        let mut next = Box::pin(tokio::time::sleep(Duration::ZERO));
        let mut idle = tokio::time::interval(IDLE);
        loop {
            self.pulse.turn(Loop::Observer);
            // `next()` keeps its half-read line when it is dropped for the timer.
            tokio::select! {
                frame = stream.next() => match frame {
                    Ok(frame) => {
                        if *failures > 0 || *self.sight.borrow() != Sight::Clear {
                            *failures = 0;
                            tracing::info!("watching Nomad");
                            self.sight.send_replace(Sight::Clear);
                        }
                        self.handle(frame.events).await;
                    }
                    Err(e) => return Lost::Stream(e),
                },
                asked = async { tokio::select! { () = &mut next => false, () = self.resync.notified() => true } } => {
                    match self.resync_since(index, asked).await {
                        Ok(newer) => index = newer,
                        Err(e) => return e,
                    }
                    next.set(tokio::time::sleep(self.resync_interval));
                }
                _ = idle.tick() => {}
            }
        }
    }

    /// A list, unless no allocation has changed since the one that was as of `index`: then it would say the same again, and a hundred
    /// thousand that wait for their clocks are a long list. `asked`: what the last one said is not known to the keeper any more.
    async fn resync_since(&self, index: u64, asked: bool) -> Result<u64, Lost> {
        if !asked && index > 0 && self.nomad.allocations_index().await.map_err(Lost::List)? == index {
            return Ok(index);
        }
        self.resync().await
    }

    /// Everything with a live task and a sign of having been told to end. Returns the index it is as of.
    async fn resync(&self) -> Result<u64, Lost> {
        let (began, asked) = (self.clock.now(), Instant::now());
        let mut pages = self.nomad.told_to_end();
        let mut index = u64::MAX;
        while let Some(page) = pages.next().await.map_err(Lost::List)? {
            self.pulse.turn(Loop::Observer);
            index = index.min(page.index);
            for bad in &page.bad {
                tracing::warn!(?bad, "an allocation in Nomad's list could not be read");
            }
            if !page.allocations.is_empty() {
                self.crashes.observe(&page.allocations);
                self.keeper.observed(page.allocations).await;
            }
        }
        self.keeper.resynced(began).await;
        self.metrics.resynced(asked.elapsed());
        Ok(if index == u64::MAX { 0 } else { index })
    }

    async fn handle(&self, events: Vec<Event>) {
        let mut allocations = Vec::new();
        for event in events {
            if let Event::Allocation(a) = event {
                allocations.push(*a);
                continue;
            }
            // Evaluations are complete after their allocations were told: keep the order.
            if !allocations.is_empty() {
                self.allocations(std::mem::take(&mut allocations)).await;
            }
            match event {
                Event::Job { key, purged: true, .. } => self.keeper.purged(key).await,
                Event::Job { key, spec, .. } => self.keeper.registered(key, spec).await,
                Event::Evaluation(e) if finished(&e.state) => self.keeper.eval_done(e.id).await,
                Event::Node(n) => self.keeper.node_seen(n.stub).await,
                Event::Bad { topic, key, why } => tracing::warn!(topic, key, why, "one event could not be read"),
                Event::Evaluation(_) | Event::Heartbeat | Event::Allocation(_) => {}
            }
        }
        if !allocations.is_empty() {
            self.allocations(allocations).await;
        }
    }

    async fn allocations(&self, seen: Vec<Allocation>) {
        self.crashes.observe(&seen);
        self.keeper.observed(seen).await;
    }
}

/// An evaluation that will do nothing more.
pub(crate) fn finished(state: &EvalState) -> bool {
    matches!(state, EvalState::Complete | EvalState::Failed | EvalState::Canceled)
}

#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("listing what was told to end failed")]
    List(#[source] curfew_nomad::Error),
    #[error("no events")]
    Stream(#[source] StreamEnd),
}

impl Lost {
    fn is_denied(&self) -> bool {
        match self {
            Self::List(e) => matches!(e, curfew_nomad::Error::PermissionDenied { .. }),
            Self::Stream(end) => end.is_denied(),
        }
    }

    /// In a word, as metrics name it.
    fn at(&self) -> &'static str {
        match self {
            Lost::List(_) => "list",
            Lost::Stream(_) => "stream",
        }
    }
}
