//! What a client asks of a running task, whichever driver runs it.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::mock::Mock;
use super::processes::Process;
use super::signals;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    pub code: i64,
    pub signal: i64,
}

impl Exit {
    pub(crate) fn successful(self) -> bool {
        self.code == 0 && self.signal == 0
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Handle {
    Process(Arc<Process>),
    Mock(Arc<Mock>),
}

impl Handle {
    pub(crate) async fn wait(&self) -> Exit {
        match self {
            Self::Process(p) => p.wait().await,
            Self::Mock(m) => m.wait().await,
        }
    }

    pub(crate) fn signal(&self, name: &str) -> Result<(), String> {
        match self {
            Self::Process(p) => p.signal(signals::lookup(name)),
            Self::Mock(m) => m.signal(signals::lookup(name)),
        }
    }

    /// Asks it to end, and makes it after `timeout`.
    pub(crate) async fn stop(&self, signal: &str, timeout: Duration) -> Exit {
        self.interrupt(signal);
        match tokio::time::timeout(timeout, self.wait()).await {
            Ok(exit) => exit,
            Err(_) => {
                self.kill();
                self.wait().await
            }
        }
    }

    pub(crate) fn interrupt(&self, signal: &str) {
        let sig = if signal.is_empty() { Signal::INT } else { signals::lookup(signal) };
        // It may have ended on its own in the meantime.
        let _ = match self {
            Self::Process(p) => p.signal(sig),
            Self::Mock(m) => m.interrupt(sig),
        };
    }

    pub(crate) fn kill(&self) {
        match self {
            Self::Process(p) => p.kill_tree(),
            Self::Mock(m) => {
                let _ = m.interrupt(Signal::KILL);
            }
        }
    }
}
