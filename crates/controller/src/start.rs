//! Puts the parts together, and takes them apart again in the right order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use curfew_core::Clock;
use curfew_core::audit::{Action, AuditEntry};
use curfew_core::config::Config;
use curfew_core::operation::Kind;
use curfew_nomad::Nomad;
use curfew_store::{Store, StoreError};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::deployments::Deployments;
use crate::dispatch::Dispatcher;
use crate::error::chain;
use crate::keeper::{self, Keeper};
use crate::lifecycle::{Ending, Phase};
use crate::nodes::Nodes;
use crate::observer::{Observer, Sight};
use crate::steps::Tools;
use crate::{retention, rpc};

/// What a controller is made of.
pub struct Parts {
    pub nomad: Nomad,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub config: Config,
    /// `host:pid`: who holds the leases.
    pub holder: String,
    /// Where the RPC listens; without one there is none.
    pub listener: Option<TcpListener>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the database could not be read")]
    Store(#[from] StoreError),
    #[error("the RPC's socket has no address")]
    Listener(#[source] std::io::Error),
}

/// A running controller. Dropping it does not stop it.
#[derive(Clone)]
pub struct Controller {
    phase: watch::Sender<Phase>,
    stop: CancellationToken,
    hurry: CancellationToken,
    addr: Option<SocketAddr>,
}

impl Controller {
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }

    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Stops it: nothing new is leased, steps in flight finish. With `wait` returns when it is stopped, else at once. Calling it
    /// again changes nothing.
    pub async fn stop(&self, wait: bool) {
        self.stop.cancel();
        if wait {
            self.stopped().await;
        }
    }

    /// Does not wait for steps in flight any longer.
    pub fn hurry(&self) {
        self.stop.cancel();
        self.hurry.cancel();
    }

    /// Returns when it is stopped, with how it ended.
    pub async fn stopped(&self) -> Ending {
        let mut phase = self.phase.subscribe();
        let stopped = phase.wait_for(|p| matches!(p, Phase::Stopped(_))).await;
        match stopped.as_deref() {
            Ok(Phase::Stopped(ending)) => *ending,
            _ => Ending::Aborted,
        }
    }
}

/// How long a cut-off step may take to write down that it was.
const CLEAN_UP: Duration = Duration::from_secs(3);

/// Starts a controller. What was under way before goes on: each clock at its instant, each operation from its last step.
pub async fn start(parts: Parts) -> Result<Controller, StartError> {
    let Parts { nomad, store, clock, config, holder, listener } = parts;
    let config = Arc::new(config);
    let (phase, _) = watch::channel(Phase::Starting);
    let stop = CancellationToken::new();
    let hurry = CancellationToken::new();
    let addr = listener.as_ref().map(TcpListener::local_addr).transpose().map_err(StartError::Listener)?;

    let records = store.clocks().await?;
    let stops = store.live(Kind::Stop).await?;
    let started = clock.now();
    store
        .append_audit(vec![AuditEntry {
            at: started,
            operation: None,
            actor: holder.clone(),
            action: Action::ControllerStarted,
            alloc: None,
            task: None,
            detail: json!({ "version": env!("CARGO_PKG_VERSION"), "clocks": records.len(), "stops": stops.len(), "nomad": nomad.address() }),
        }])
        .await?;
    tracing::info!(clocks = records.len(), stops = stops.len(), holder, "taking up what was under way");

    let (nudges_tx, nudges) = mpsc::channel(65_536);
    let (changed, _) = broadcast::channel(4096);
    let (sight, sight_rx) = watch::channel(Sight::Starting);
    // The keeper and the observer outlive the steps that ask them.
    let watching = CancellationToken::new();
    let keeper_parts = keeper::Parts {
        nomad: nomad.clone(),
        store: store.clone(),
        clock: clock.clone(),
        config: config.clone(),
        actor: holder.clone(),
        nudges: nudges_tx.clone(),
    };
    let keeping = CancellationToken::new();
    let (keeper, keeper_task) = Keeper::start(keeper_parts, records, stops, keeping.clone());
    let observer = Observer {
        nomad: nomad.clone(),
        keeper: keeper.clone(),
        clock: clock.clone(),
        resync_interval: config.resync_interval,
        sight,
    };
    let observer_task = tokio::spawn(observer.run(watching.clone()));
    let deployments = Deployments {
        nomad: nomad.clone(),
        store: store.clone(),
        keeper: keeper.clone(),
        clock: clock.clone(),
        interval: config.resync_interval,
        actor: holder.clone(),
    };
    let deployments_task = tokio::spawn(deployments.run(watching.clone()));

    tokio::spawn(retention::run(store.clone(), clock.clone(), config.clone(), stop.clone()));

    let tools = Tools {
        nomad: nomad.clone(),
        keeper: keeper.clone(),
        clock: clock.clone(),
        config: config.clone(),
        actor: holder.clone(),
    };
    let abort = CancellationToken::new();
    let steps = TaskTracker::new();
    let dispatcher =
        Dispatcher { store: store.clone(), tools, nudges, changed: changed.clone(), abort: abort.clone(), steps: steps.clone() };
    let dispatcher_task = tokio::spawn(dispatcher.run(stop.clone()));

    let server = listener.map(|listener| {
        let state = rpc::Rpc {
            nomad: nomad.clone(),
            store: store.clone(),
            clock: clock.clone(),
            config: config.clone(),
            keeper,
            nudges: nudges_tx,
            changed,
            nodes: Nodes::new(nomad, clock.clone()),
            phase: phase.subscribe(),
            sight: sight_rx,
            holder: holder.clone(),
            started,
            stop: stop.clone(),
        };
        tokio::spawn(rpc::serve(listener, state))
    });
    phase.send_replace(Phase::Running);

    let controller = Controller { phase: phase.clone(), stop: stop.clone(), hurry: hurry.clone(), addr };
    tokio::spawn(async move {
        stop.cancelled().await;
        phase.send_replace(Phase::ShuttingDown);
        tracing::info!("stopping: nothing new is leased, steps in flight finish");
        // It has already stopped leasing; its end says so.
        let _ = dispatcher_task.await;
        steps.close();
        let mut ending = Ending::Clean;
        tokio::select! {
            () = steps.wait() => {}
            () = async { tokio::select! { () = tokio::time::sleep(config.shutdown_timeout) => {}, () = hurry.cancelled() => {} } } => {
                ending = Ending::Aborted;
                tracing::warn!(steps = steps.len(), "steps in flight are cut off; their rows go back to the queue");
                abort.cancel();
                if tokio::time::timeout(CLEAN_UP, steps.wait()).await.is_err() {
                    tracing::error!(steps = steps.len(), "steps did not clean up in time; their leases run out by themselves");
                }
            }
        }
        watching.cancel();
        let _ = observer_task.await;
        let _ = deployments_task.await;
        keeping.cancel();
        let _ = keeper_task.await;
        if let Some(server) = server {
            // Long polls end on the same token; a connection that does not is not waited for.
            let _ = tokio::time::timeout(CLEAN_UP, server).await;
        }
        let row = AuditEntry {
            at: clock.now(),
            operation: None,
            actor: holder,
            action: Action::ControllerStopped,
            alloc: None,
            task: None,
            detail: json!({ "clean": ending == Ending::Clean }),
        };
        if let Err(e) = store.append_audit(vec![row]).await {
            tracing::error!(error = %chain(&e), "the stop could not be written down");
        }
        if let Err(e) = store.close().await {
            tracing::error!(error = %chain(&e), "the database could not be closed");
        }
        tracing::info!(?ending, "stopped");
        phase.send_replace(Phase::Stopped(ending));
    });
    Ok(controller)
}

/// This machine's name, for `host:pid`.
pub fn hostname() -> String {
    let from_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = from_kernel.trim();
    if name.is_empty() { "localhost".into() } else { name.into() }
}
