//! The controller's own life: `starting → running → shutting_down → stopped`.

use std::fmt;

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
    /// Every step in flight finished.
    Clean,
    /// Steps were cut off; their rows are back in the queue.
    Aborted,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::ShuttingDown => "shutting_down",
            Phase::Stopped(_) => "stopped",
        })
    }
}
