//! What the service manager is told, by the protocol of sd_notify(3): READY, STATUS, WATCHDOG, STOPPING.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::UnixDatagram;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::lifecycle::{Controller, Counts, Phase};

/// How often the counts are looked at; they are told when they changed.
const STATUS_EVERY: Duration = Duration::from_secs(3);
/// A manager that does not take a message for so long does not get it.
const TAKEN: Duration = Duration::from_secs(1);

pub struct Notify {
    socket: UnixDatagram,
    /// Within which it wants to hear that the loops turn.
    watchdog: Option<Duration>,
    /// What was told last.
    status: String,
    trouble: bool,
}

impl Notify {
    /// Nothing without a NOTIFY_SOCKET. One that cannot be reached is said and left.
    pub fn from_env() -> Option<Self> {
        let path = std::env::var_os("NOTIFY_SOCKET").filter(|p| !p.is_empty())?;
        match Self::to(&path, sd_notify::watchdog_enabled()) {
            Ok(notify) => Some(notify),
            Err(e) => {
                tracing::warn!(error = %e, socket = %path.display(), "the service manager cannot be told anything");
                None
            }
        }
    }

    /// To the socket at a path, or to an abstract one behind an `@`. Needs a tokio runtime.
    pub fn to(path: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let watchdog = watchdog.filter(|w| !w.is_zero());
        Ok(Self { socket: connect(path)?, watchdog, status: String::new(), trouble: false })
    }

    /// Tells until the controller is stopped.
    pub async fn follow(mut self, controller: Controller) {
        let mut phases = controller.phase();
        let mut pet = every(self.watchdog.map_or(Duration::from_secs(3600), |w| w / 3));
        let mut look = every(STATUS_EVERY);
        let mut told = None;
        loop {
            let phase = *phases.borrow_and_update();
            if told != Some(phase) {
                self.entered(phase, told, &controller).await;
                told = Some(phase);
            }
            if matches!(phase, Phase::Stopped(_)) {
                return;
            }
            tokio::select! {
                changed = phases.changed() => if changed.is_err() { return },
                _ = pet.tick(), if self.watchdog.is_some() => self.pet(phase, &controller).await,
                _ = look.tick() => self.status(status(phase, controller.counts().await)).await,
            }
        }
    }

    /// Quick stops go through a phase unseen; the manager hears of each all the same.
    async fn entered(&mut self, phase: Phase, before: Option<Phase>, controller: &Controller) {
        let text = status(phase, controller.counts().await);
        match phase {
            Phase::Running => self.send(&[NotifyState::Ready, NotifyState::Status(&text)]).await,
            Phase::ShuttingDown | Phase::Stopped(_) if before < Some(Phase::ShuttingDown) => {
                self.send(&[NotifyState::Stopping, NotifyState::Status(&text)]).await;
            }
            Phase::Starting | Phase::ShuttingDown | Phase::Stopped(_) => self.send(&[NotifyState::Status(&text)]).await,
        }
        self.status = text;
    }

    /// Only while the loops turn: a hanging controller is to be started again.
    async fn pet(&mut self, phase: Phase, controller: &Controller) {
        let Some(within) = self.watchdog else { return };
        match controller.stuck(within) {
            None if phase <= Phase::Running => self.send(&[NotifyState::Watchdog]).await,
            // Its end has a bound of its own.
            None => {}
            Some((which, age)) => {
                let still = age.as_secs();
                tracing::error!(still, "the {} does not turn; the watchdog is not told otherwise", which.as_str());
                self.status(format!("the {} has not turned for {still}s", which.as_str())).await;
            }
        }
    }

    async fn status(&mut self, text: String) {
        if text != self.status {
            self.send(&[NotifyState::Status(&text)]).await;
            self.status = text;
        }
    }

    async fn send(&mut self, states: &[NotifyState<'_>]) {
        let message: String = states.iter().map(|s| format!("{s}\n")).collect();
        let sent = tokio::time::timeout(TAKEN, self.socket.send(message.as_bytes())).await;
        let sent = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match sent {
            Ok(_) => self.trouble = false,
            Err(e) if !std::mem::replace(&mut self.trouble, true) => {
                tracing::warn!(error = %e, "the service manager could not be told");
            }
            Err(_) => {}
        }
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset_at(Instant::now() + period);
    ticks
}

fn status(phase: Phase, counts: Option<Counts>) -> String {
    match counts {
        Some(c) if phase < Phase::ShuttingDown => {
            format!("{phase}: {} stops under way, {} clocks armed, {} steps in flight", c.stops, c.clocks, c.steps)
        }
        Some(c) if phase == Phase::ShuttingDown => format!("{phase}: {} steps in flight", c.steps),
        _ => phase.to_string(),
    }
}

fn connect(path: &OsStr) -> io::Result<UnixDatagram> {
    let socket = StdDatagram::unbound()?;
    match path.as_bytes().split_first() {
        Some((b'@', name)) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(path)?,
    }
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}
