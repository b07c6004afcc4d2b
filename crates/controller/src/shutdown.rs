//! Takes the parts apart in the right order, each with a bound: whatever hangs, the end comes.

use std::sync::Arc;
use std::time::Duration;

use curfew_core::Clock;
use curfew_core::audit::{Action, AuditEntry};
use curfew_store::Store;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::duty::Watch;
use crate::error::chain;
use crate::lifecycle::{Ending, Life};
use crate::rpc::Server;

/// What steps in flight have, after `shutdown_timeout`, to finish their call and to be written down.
pub const CLEAN_UP: Duration = Duration::from_secs(3);
/// Of which the last part is for writing; also all that a second signal leaves.
pub(crate) const WRITE_DOWN: Duration = Duration::from_secs(1);
/// Requests that are under way when the last step has ended.
const REQUESTS: Duration = Duration::from_millis(500);
/// The keeper's last writes, and the database's close.
const LAST_WRITES: Duration = Duration::from_secs(1);
/// The longest that a stop takes beyond `shutdown_timeout`.
pub const LONGEST_END: Duration =
    Duration::from_millis((CLEAN_UP.as_millis() + REQUESTS.as_millis() + LAST_WRITES.as_millis()) as u64);

/// Everything that runs.
pub(crate) struct Running {
    pub dispatcher: JoinHandle<()>,
    pub steps: TaskTracker,
    /// Steps in flight have had their time.
    pub abort: CancellationToken,
    /// Whatever of them is left is dropped.
    pub cut: CancellationToken,
    pub observer: JoinHandle<()>,
    pub observing: CancellationToken,
    pub deployments: JoinHandle<()>,
    pub keeper: JoinHandle<()>,
    pub keeping: CancellationToken,
    pub watch: Arc<Watch>,
    pub looking_after: JoinHandle<()>,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub holder: String,
    pub shutdown_timeout: Duration,
}

impl Running {
    pub async fn shut_down(mut self, life: &Life, server: Option<Server>) -> Ending {
        tracing::info!("nothing new is leased, steps in flight finish");
        let mut ending = self.end_steps(life).await;
        let requests = async {
            if let Some(server) = server {
                server.end(if ending == Ending::Clean { REQUESTS } else { Duration::ZERO }).await;
            }
        };
        // The keeper and the observer outlive the steps that ask them.
        self.observing.cancel();
        let (observer, deployments) = (self.observer.abort_handle(), self.deployments.abort_handle());
        let watchers = timeout(REQUESTS, async { tokio::join!(self.observer, self.deployments) });
        let ((), watched) = tokio::join!(requests, watchers);
        if watched.is_err() {
            tracing::warn!("a call to Nomad about a deployment was not waited for; the next start looks at it anew");
            observer.abort();
            deployments.abort();
        }
        self.keeping.cancel();
        let last = async {
            let kept = self.keeper.await.is_ok();
            let looked_after = self.looking_after.await.is_ok();
            // The next one need not wait for it to run out.
            self.watch.give_up().await;
            let row = AuditEntry {
                at: self.clock.now(),
                operation: None,
                actor: self.holder,
                action: Action::ControllerStopped,
                alloc: None,
                task: None,
                detail: json!({ "clean": ending == Ending::Clean }),
            };
            if let Err(e) = self.store.append_audit(vec![row]).await {
                tracing::error!(error = %chain(&e), "the stop could not be written down");
            }
            let closed = self.store.close().await;
            if let Err(e) = &closed {
                tracing::error!(error = %chain(e), "the database could not be closed");
            }
            kept && looked_after && closed.is_ok()
        };
        match timeout(LAST_WRITES, last).await {
            Ok(true) => {}
            Ok(false) => ending = Ending::Aborted,
            Err(_) => {
                tracing::error!("the last writes did not come to an end; the next start finds out what they tell");
                ending = Ending::Aborted;
            }
        }
        ending
    }

    /// Lets the dispatcher and its steps end; when their time is over, makes them.
    async fn end_steps(&mut self, life: &Life) -> Ending {
        let steps = self.steps.clone();
        let working = async {
            // It ends when it leases nothing more; steps it began go on by themselves.
            let _ = (&mut self.dispatcher).await;
            steps.close();
            steps.wait().await;
        };
        tokio::pin!(working);
        tokio::select! {
            () = &mut working => return Ending::Clean,
            () = sleep(self.shutdown_timeout) => {}
            () = life.hurry.cancelled() => {}
        }
        tracing::warn!(steps = steps.len(), "steps in flight are told to stop; their rows go back to the queue");
        self.abort.cancel();
        let hurried = async {
            life.hurry.cancelled().await;
            sleep(WRITE_DOWN).await;
        };
        tokio::select! {
            () = &mut working => return Ending::Aborted,
            () = sleep(CLEAN_UP) => {}
            () = hurried => {}
        }
        tracing::error!(
            steps = steps.len(),
            "steps did not clean up in time; the next start takes their rows over and reads before it repeats"
        );
        self.cut.cancel();
        // They are dropped where they wait; one that blocks its thread is left behind.
        let _ = timeout(Duration::from_millis(100), working).await;
        Ending::Aborted
    }
}
