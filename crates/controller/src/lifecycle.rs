//! The controller's own life, and the handle on it.
//!
//! ```text
//!  starting ──▶ running ──▶ shutting_down ──▶ stopped(clean | aborted)
//!     │  └─ stop ─────────────────▲               ▲
//!     └─ the database or Nomad cannot be used ────┴─ stopped(failed)
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::keeper::Keeper;
use crate::pulse::{self, Loop, Pulse};
use crate::start::StartError;

/// Where the controller is in its life. It only moves forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Starting,
    Running,
    ShuttingDown,
    Stopped(Ending),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// Every step in flight finished, and everything was written down.
    Clean,
    /// Steps were cut off; their rows are back in the queue.
    Aborted,
    /// It never ran; [`Controller::started`] has the reason.
    Failed,
}

impl Phase {
    pub const NAMES: [&str; 4] = ["starting", "running", "shutting_down", "stopped"];

    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::ShuttingDown => "shutting_down",
            Phase::Stopped(_) => "stopped",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What it is doing, in numbers; from memory, so that a database that hangs does not hold it up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Stops that have not finished.
    pub stops: usize,
    pub clocks: usize,
    /// Steps in flight.
    pub steps: usize,
}

/// What the handles share with the controller.
pub(crate) struct Life {
    pub phase: watch::Sender<Phase>,
    pub stop: CancellationToken,
    pub hurry: CancellationToken,
    pub failure: OnceLock<StartError>,
    pub running: OnceLock<Parts>,
    pub nomad_timeout: Duration,
}

/// What there is to look at once it runs.
pub(crate) struct Parts {
    pub keeper: Keeper,
    pub steps: TaskTracker,
    pub pulse: Arc<Pulse>,
}

impl Life {
    pub fn new(nomad_timeout: Duration) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Starting),
            stop: CancellationToken::new(),
            hurry: CancellationToken::new(),
            failure: OnceLock::new(),
            running: OnceLock::new(),
            nomad_timeout,
        }
    }

    /// Moves on, never back.
    pub fn advance(&self, to: Phase) {
        let moved = self.phase.send_if_modified(|now| {
            let forwards = to > *now;
            if forwards {
                *now = to;
            }
            forwards
        });
        // Who started it is told why it failed, in one sentence.
        if moved && to != Phase::Stopped(Ending::Failed) {
            tracing::info!(phase = %to, "the controller is {to:?}");
        }
    }

    /// How long ago each loop turned, while it runs.
    pub fn ages(&self) -> Vec<(Loop, Duration)> {
        self.running.get().map(|parts| parts.pulse.ages().to_vec()).unwrap_or_default()
    }

    /// The loop that hangs, while it runs.
    pub fn stuck(&self, within: Duration) -> Option<(Loop, Duration)> {
        let parts = self.running.get().filter(|_| *self.phase.borrow() == Phase::Running)?;
        pulse::stuck(&parts.pulse.ages(), pulse::patience(within, self.nomad_timeout))
    }
}

/// A controller. Dropping the handle does not stop it.
#[derive(Clone)]
pub struct Controller {
    pub(crate) life: Arc<Life>,
    pub(crate) addr: Option<SocketAddr>,
}

impl Controller {
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }

    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.life.phase.subscribe()
    }

    /// Returns when it is past starting: it runs, or somebody stopped it first; else with the reason why it cannot run.
    pub async fn started(&self) -> Result<(), &StartError> {
        // The sender lives as long as this handle.
        let _ = self.phase().wait_for(|p| *p > Phase::Starting).await;
        match self.life.failure.get() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    /// Stops it: nothing new is leased, steps in flight finish. With `wait` returns when it is stopped, the last connection
    /// closed and the last row written; else at once. Calling it again changes nothing.
    pub async fn stop(&self, wait: bool) {
        self.life.stop.cancel();
        if wait {
            self.stopped().await;
        }
    }

    /// Does not wait for steps in flight any longer.
    pub fn hurry(&self) {
        self.life.stop.cancel();
        self.life.hurry.cancel();
    }

    /// Returns when it is stopped, with how it ended.
    pub async fn stopped(&self) -> Ending {
        let mut phase = self.phase();
        let stopped = phase.wait_for(|p| matches!(p, Phase::Stopped(_))).await;
        match stopped.as_deref() {
            Ok(Phase::Stopped(ending)) => *ending,
            _ => Ending::Aborted,
        }
    }

    /// Nothing before it runs, and when the keeper does not answer.
    pub async fn counts(&self) -> Option<Counts> {
        let parts = self.life.running.get()?;
        let census = tokio::time::timeout(Duration::from_secs(1), parts.keeper.census()).await.ok()?;
        Some(Counts { stops: census.stops, clocks: census.clocks, steps: parts.steps.len() })
    }

    /// The loop that has not turned for `within` (longer where it may wait for Nomad), and for how long. For a watchdog.
    pub fn stuck(&self, within: Duration) -> Option<(Loop, Duration)> {
        self.life.stuck(within)
    }
}
