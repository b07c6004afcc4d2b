//! Exit codes. Documented in docs/cli.md; they do not change.

use std::process::ExitCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed, with a sentence on standard error.
    Failed = 1,
    /// The command line, the configuration or the environment cannot be used as they are.
    Usage = 2,
    /// Done, but SIGKILL was needed (only with `--fail-on-kill`).
    Killed = 3,
    /// The operation was cancelled.
    Cancelled = 4,
    /// Gave up waiting; the operation goes on.
    StillRunning = 5,
    /// A rollout failed, and the job went back to an older version, which runs.
    Reverted = 6,
    /// A rollout that cannot go on by itself, and that no deadline ends.
    Stalled = 7,
    /// A newer version of the job, or its stop, came before the rollout's end.
    Superseded = 8,
}

impl Exit {
    /// `gc`: something is left over.
    pub const LEFT_OVER: Exit = Exit::Killed;
    /// `gc`: more candidates than the cap, none of them touched.
    pub const CAPPED: Exit = Exit::Cancelled;
}

impl From<Exit> for ExitCode {
    fn from(e: Exit) -> ExitCode {
        ExitCode::from(e as u8)
    }
}

/// An error that the caller can mend by writing something else.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The exit code of an error.
pub fn of(e: &anyhow::Error) -> Exit {
    // anyhow's own downcast sees what was added as a context.
    let usage = e.downcast_ref::<Usage>().is_some()
        || e.chain().any(|c| {
            c.is::<Usage>()
                || c.is::<curfew_core::config::BadConfig>()
                || matches!(c.downcast_ref(), Some(curfew_client::Error::BadAddress { .. }))
        });
    if usage { Exit::Usage } else { Exit::Failed }
}
