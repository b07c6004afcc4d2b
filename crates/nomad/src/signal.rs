//! The one call that sends a signal to a task.

use curfew_core::clock::KillOrder;
use curfew_core::{AllocId, TaskName};
use serde_json::json;

use crate::client::{Call, Nomad};
use crate::error::{Error, forwarding_broke};
use crate::route::Route;

/// What came of a SIGKILL. Only a read of the allocation says whether the task is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignalOutcome {
    /// The client handed the signal to the driver.
    Sent,
    /// The node or its client cannot be reached: try again when it is back. Nomad's words.
    Unreachable(String),
    /// Nomad, or the client, does not know the allocation (a client that restarts may say so for a moment).
    Gone(String),
    /// The task had no process at that moment: it is dead, between two starts, or not started. Read it again.
    NotRunning(String),
    /// The driver takes no signals (design fact 19): it cannot be killed through the API at all.
    Unsupported(String),
    /// Not sent: the caller's leave was gone when its turn had come.
    Withheld,
}

impl Nomad {
    /// Sends SIGKILL to the one task that the order names. Safe to repeat. Whoever calls this has read the allocation just before.
    /// `may` is asked when its turn among the calls under way has come, right before it is sent.
    pub async fn sigkill(&self, order: &KillOrder, may: impl Fn() -> bool + Sync) -> Result<SignalOutcome, Error> {
        self.signal(order.alloc(), order.task(), &may).await
    }

    /// Always one task by name: without one Nomad signals every task, a running poststop task too (design fact 8).
    async fn signal(&self, alloc: &AllocId, task: &TaskName, may: &(dyn Fn() -> bool + Sync)) -> Result<SignalOutcome, Error> {
        let call = Call::new(Route::Signal, &[alloc.as_str()]);
        if task.as_str().is_empty() {
            let why = format!("the order to kill a task of allocation {alloc} names no task");
            return Err(Error::Unaskable { asked: self.asked(&call), why });
        }
        let body = json!({ "Signal": "SIGKILL", "Task": task.as_str() });
        match self.send_if(call.json(&body).timeout(self.config().signal_timeout), may).await {
            Ok(Some(_)) => Ok(SignalOutcome::Sent),
            Ok(None) => Ok(SignalOutcome::Withheld),
            Err(e) => outcome(e),
        }
    }
}

/// Texts as Nomad 1.8 to 2.0 and its drivers write them. They arrive wrapped ("rpc error: …", "1 error occurred: …"), so each is
/// looked for anywhere in the answer.
fn outcome(e: Error) -> Result<SignalOutcome, Error> {
    const UNREACHABLE: &[&str] = &["No path to node", "Unknown node", "Node does not support RPC"];
    const UNSUPPORTED: &[&str] = &["SignalTask is not supported by this driver", "QEMU driver can't signal commands"];
    const NOT_RUNNING: &[&str] = &[
        "Task not running",
        "Task not yet run",
        "process already finished",
        "no such process",
        // The driver or its executor no longer knows the task.
        "task not found for given id",
        // Docker.
        "is not running",
        "No such container",
        "Container already stopped",
    ];
    let Some(text) = e.body().map(str::to_owned) else { return Err(e) };
    let has = |texts: &[&str]| texts.iter().any(|t| text.contains(t));
    let status = e.status();
    match e {
        Error::NotFound { .. } | Error::Refused { .. } | Error::Interrupted { status: Some(_), .. } => {
            if has(UNREACHABLE) || forwarding_broke(&text) {
                Ok(SignalOutcome::Unreachable(text))
            // With any other status Nomad hides what the token may not see: it may well live.
            } else if status == Some(404) && text.contains("Unknown allocation") {
                Ok(SignalOutcome::Gone(text))
            } else if has(NOT_RUNNING) {
                Ok(SignalOutcome::NotRunning(text))
            } else if has(UNSUPPORTED) {
                Ok(SignalOutcome::Unsupported(text))
            } else {
                Err(e)
            }
        }
        e => Err(e),
    }
}
