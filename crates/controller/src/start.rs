//! Puts the parts together.

use std::sync::Arc;
use std::time::Duration;

use curfew_core::audit::{Action, AuditEntry};
use curfew_core::config::Config;
use curfew_core::{Clock, OpId};
use curfew_nomad::Nomad;
use curfew_store::{Store, StoreError};
use futures::future::BoxFuture;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::deployments::Deployments;
use crate::dispatch::{Dispatcher, Ends};
use crate::duty::{Duty, Watch};
use crate::error::chain;
use crate::keeper::{self, Keeper};
use crate::lifecycle::{self, Controller, Ending, Life, Phase};
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::observer::{Observer, Sight};
use crate::pulse::Pulse;
use crate::retention;
use crate::rpc::{self, Front, Limits, Reaper, Server, Tls, TlsError};
use crate::shutdown::{Running, WRITE_DOWN};
use crate::steps::{Random, Tools};

/// Gives the store. What takes its time before (a look at Nomad, a migration) happens while the RPC says "starting".
pub type Opening = BoxFuture<'static, Result<Arc<dyn Store>, Box<dyn std::error::Error + Send + Sync>>>;

/// What a controller is made of.
pub struct Parts {
    pub nomad: Nomad,
    pub store: Opening,
    pub clock: Arc<dyn Clock>,
    pub config: Config,
    pub random: Random,
    /// `host:pid`: who holds the leases.
    pub holder: String,
    /// Where the RPC listens; without one there is none.
    pub listener: Option<TcpListener>,
    /// Its own: what another controller of this process counts is the other's.
    pub metrics: Metrics,
    /// What does a pass of the gc on request.
    pub gc: Option<Reaper>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Opening(Box<dyn std::error::Error + Send + Sync>),
    #[error("the database could not be read")]
    Store(#[from] StoreError),
    #[error("the RPC's socket has no address")]
    Listener(#[source] std::io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Starts a controller and returns its handle at once. What was under way before goes on: each clock at its instant, each
/// operation from its last step. The RPC answers from the first moment; until the controller runs it says "starting".
pub fn start(parts: Parts) -> Result<Controller, StartError> {
    let addr = parts.listener.as_ref().map(TcpListener::local_addr).transpose().map_err(StartError::Listener)?;
    let life = Arc::new(Life::new(parts.nomad.config().timeout));
    let config = Arc::new(parts.config.clone());
    let tls = if parts.listener.is_some() { Tls::new(&config, life.stop.clone())? } else { None };
    let controller = Controller { life: life.clone(), addr };
    tokio::spawn(async move {
        let lived = tokio::spawn(live(parts, config, tls, life.clone())).await;
        // A panic in the life itself ends it; nobody waits for ever.
        life.advance(Phase::Stopped(lived.unwrap_or(Ending::Aborted)));
    });
    Ok(controller)
}

async fn live(parts: Parts, config: Arc<Config>, tls: Option<Tls>, life: Arc<Life>) -> Ending {
    let Parts { nomad, store, clock, config: _, random, holder, listener, metrics, gc } = parts;
    let limits = Limits::new(&config, metrics.clone());
    let asks = !config.auth.is_empty();
    let front = Front::new(life.clone(), holder.clone(), clock.clone(), nomad.clone(), metrics.clone(), asks);
    let addr = listener.as_ref().and_then(|l| l.local_addr().ok());
    let server = listener.map(|l| Server::start(l, front.clone(), tls, limits.clone()));
    let base = Base { nomad, clock, config, random, holder, metrics, limits, gc };
    let begun = begin(base, store, &life, &front).await;
    match begun {
        Ok(Some(running)) => {
            life.advance(Phase::Running);
            if let Some(addr) = addr {
                tracing::info!(%addr, "the RPC listens");
            }
            life.stop.cancelled().await;
            life.advance(Phase::ShuttingDown);
            running.shut_down(&life, server).await
        }
        nothing_began => {
            let ending = match nothing_began {
                Err(e) => {
                    tracing::debug!(error = %chain(&e), "the controller cannot start");
                    // Before the phase: whoever waits for the start looks here after it.
                    let _ = life.failure.set(e);
                    Ending::Failed
                }
                Ok(_) => {
                    life.advance(Phase::ShuttingDown);
                    Ending::Clean
                }
            };
            if let Some(server) = server {
                server.end(Duration::ZERO).await;
            }
            ending
        }
    }
}

/// What everything is built on.
struct Base {
    nomad: Nomad,
    clock: Arc<dyn Clock>,
    config: Arc<Config>,
    random: Random,
    holder: String,
    metrics: Metrics,
    limits: Limits,
    gc: Option<Reaper>,
}

/// Opens the store, takes up what was under way, starts the parts. Nothing when it was stopped meanwhile.
async fn begin(base: Base, store: Opening, life: &Life, front: &Front) -> Result<Option<Running>, StartError> {
    let store = tokio::select! {
        biased;
        () = life.stop.cancelled() => return Ok(None),
        store = store => base.metrics.measure(store.map_err(StartError::Opening)?),
    };
    let announced = tokio::select! {
        biased;
        () = life.stop.cancelled() => Ok(None),
        announced = announce(&base, &*store) => announced.map(Some),
    };
    let begun = match announced {
        Ok(Some(())) => {
            let clocks = Clocks::start(&base, &store);
            // What was under way is taken up before anything is leased.
            let taken = tokio::select! {
                biased;
                () = life.stop.cancelled() => Ok(None),
                taken = clocks.watch.take() => taken.map(Some),
            };
            match taken {
                Ok(Some(here)) => {
                    if !here {
                        let keeper = clocks.duty.seen().borrow().holder.holder.clone();
                        tracing::info!(keeper, "standing by: another controller keeps the clocks");
                    }
                    return Ok(Some(assemble(base, store, clocks, life, front)));
                }
                other => {
                    clocks.end().await;
                    other.map(drop)
                }
            }
        }
        other => other.map(drop),
    };
    match tokio::time::timeout(WRITE_DOWN, store.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::error!(error = %chain(&e), "the database could not be closed"),
        Err(_) => tracing::error!("the database does not answer; it is left to itself"),
    }
    begun.map(|()| None).map_err(StartError::Store)
}

/// Writes down that it is here; a database that cannot be written is none.
async fn announce(base: &Base, store: &dyn Store) -> Result<(), StoreError> {
    let row = AuditEntry {
        at: base.clock.now(),
        operation: None,
        actor: base.holder.clone(),
        action: Action::ControllerStarted,
        alloc: None,
        task: None,
        detail: json!({ "version": env!("CARGO_PKG_VERSION"), "nomad": base.nomad.address() }),
    };
    store.append_audit(vec![row]).await
}

/// The keeper, and who looks after its duty.
struct Clocks {
    duty: Duty,
    watch: Arc<Watch>,
    keeper: Keeper,
    task: JoinHandle<()>,
    keeping: CancellationToken,
    nudges: mpsc::Receiver<OpId>,
    pulse: Arc<Pulse>,
}

impl Clocks {
    fn start(base: &Base, store: &Arc<dyn Store>) -> Self {
        let (nudges_tx, nudges) = mpsc::channel(65_536);
        let duty = Duty::new(store.clone(), base.clock.clone());
        let pulse = Arc::new(Pulse::new());
        let parts = keeper::Parts {
            nomad: base.nomad.clone(),
            store: store.clone(),
            clock: base.clock.clone(),
            config: base.config.clone(),
            actor: base.holder.clone(),
            nudges: nudges_tx,
            pulse: pulse.clone(),
            duty: duty.clone(),
            metrics: base.metrics.clone(),
        };
        let keeping = CancellationToken::new();
        let (keeper, task) = Keeper::start(parts, keeping.clone());
        let watch = Arc::new(Watch {
            duty: duty.clone(),
            keeper: keeper.clone(),
            holder: base.holder.clone(),
            lease: base.config.keeper_lease,
            resync: Arc::default(),
        });
        Self { duty, watch, keeper, task, keeping, nudges, pulse }
    }

    async fn end(self) {
        self.keeping.cancel();
        // It has nothing to tell.
        let _ = self.task.await;
        self.watch.give_up().await;
    }
}

fn assemble(base: Base, store: Arc<dyn Store>, clocks: Clocks, life: &Life, front: &Front) -> Running {
    let Base { nomad, clock, config, random, holder, metrics, limits, gc } = base;
    let Clocks { duty, watch, keeper, task: keeper_task, keeping, nudges, pulse } = clocks;
    let (sight, sight_rx) = watch::channel(Sight::Starting);
    let looking_after = tokio::spawn({
        let (watch, keeping) = (watch.clone(), keeping.clone());
        async move { watch.run(keeping).await }
    });
    let observing = CancellationToken::new();
    let crashes = crate::crashes::Crashes::default();
    let observer = Observer {
        nomad: nomad.clone(),
        keeper: keeper.clone(),
        clock: clock.clone(),
        resync_interval: config.resync_interval,
        resync: watch.resync.clone(),
        sight,
        pulse: pulse.clone(),
        crashes: crashes.clone(),
        metrics: metrics.clone(),
    };
    let deployments = Deployments {
        nomad: nomad.clone(),
        store: store.clone(),
        keeper: keeper.clone(),
        duty: duty.clone(),
        clock: clock.clone(),
        interval: config.resync_interval,
        actor: holder.clone(),
    };
    tokio::spawn(retention::run(store.clone(), clock.clone(), config.clone(), life.stop.clone()));
    let (abort, cut) = (CancellationToken::new(), CancellationToken::new());
    let tools = Tools {
        nomad: nomad.clone(),
        store: store.clone(),
        keeper: keeper.clone(),
        clock: clock.clone(),
        config: config.clone(),
        sight: sight_rx.clone(),
        actor: holder.clone(),
        told_to_stop: abort.clone(),
        random,
    };
    let steps = TaskTracker::new();
    let dispatcher = Dispatcher {
        store: store.clone(),
        tools,
        duty: duty.clone(),
        nudges,
        ends: Ends { stop: life.stop.clone(), abort: abort.clone(), hurry: life.hurry.clone(), cut: cut.clone() },
        steps: steps.clone(),
        pulse: pulse.clone(),
        metrics: metrics.clone(),
    };
    front.open(rpc::Rpc {
        nomad: nomad.clone(),
        store: store.clone(),
        clock: clock.clone(),
        config: config.clone(),
        keeper: keeper.clone(),
        duty,
        nodes: Nodes::new(nomad, clock.clone()),
        sight: sight_rx,
        stop: life.stop.clone(),
        metrics,
        limits,
        workloads: Arc::default(),
        gc,
        turns: Arc::default(),
        crashes,
    });
    let _ = life.running.set(lifecycle::Parts { keeper, steps: steps.clone(), pulse });
    Running {
        dispatcher: tokio::spawn(dispatcher.run()),
        steps,
        abort,
        cut,
        observer: tokio::spawn(observer.run(observing.clone())),
        observing,
        // It finishes the call under way and begins no other from the first moment of a stop.
        deployments: tokio::spawn(deployments.run(life.stop.clone())),
        keeper: keeper_task,
        keeping,
        watch,
        looking_after,
        store,
        clock,
        holder,
        shutdown_timeout: config.shutdown_timeout,
    }
}

/// The system's random numbers.
pub fn random() -> Random {
    Arc::new(fastrand::f64)
}

/// This machine's name, for `host:pid`.
pub fn hostname() -> String {
    let from_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = from_kernel.trim();
    if name.is_empty() { "localhost".into() } else { name.into() }
}
