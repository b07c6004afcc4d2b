//! `curfew serve`: the controller.

use std::sync::Arc;
use std::time::Duration;

use curfew_controller::systemd::Notify;
use curfew_controller::{Controller, Ending, Metrics, Parts, StartError, SystemClock, hostname, random};
use curfew_core::config::{Config, listens_on_loopback};
use curfew_nomad::{Nomad, NomadConfig};
use curfew_store::Database;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::Serve;
use crate::config;
use crate::exit::{Exit, Usage};
use crate::gc;
use crate::output::note;

pub async fn run(args: Serve) -> anyhow::Result<Exit> {
    // Before anything that takes its time: a signal ends a controller that is still starting as well.
    let mut signals = Signals::listen()?;
    let config = config::load(&args)?;
    let nomad = nomad(&config, |name| std::env::var(name).ok())?;
    let controller = tokio::select! {
        controller = start(config, nomad) => controller?,
        () = signals.next() => return Ok(Exit::Done),
    };
    let telling = Notify::from_env().map(|notify| tokio::spawn(notify.follow(controller.clone())));
    let exit = until_stopped(&controller, &mut signals).await;
    if let Some(telling) = telling {
        // Nobody may be listening any more.
        let _ = tokio::time::timeout(Duration::from_millis(200), telling).await;
    }
    exit
}

/// SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on they do not end the process by themselves.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A Nomad client as the environment and the configuration have it.
pub fn nomad(config: &Config, env: impl Fn(&str) -> Option<String>) -> anyhow::Result<Nomad> {
    let from_env = NomadConfig::from_env(env).map_err(|e| Usage(curfew_controller::error::chain(&e)))?;
    let nomad = NomadConfig {
        timeout: config.nomad_timeout,
        max_body: config.max_body_bytes,
        max_in_flight: config.nomad_connections,
        max_idle: config.nomad_connections,
        ..from_env
    };
    Nomad::new(nomad).map_err(|e| Usage(curfew_controller::error::chain(&e)).into())
}

/// Binds the address and returns; what may take its time happens while the RPC says "starting".
pub async fn start(config: Config, nomad: Nomad) -> anyhow::Result<Controller> {
    let listener = TcpListener::bind(&config.listen).await.map_err(|e| cannot_listen(&config.listen, &e))?;
    let database = Database::parse(config.database.expose()).map_err(|e| Usage(e.to_string()))?;
    let seen = nomad.clone();
    // The gc beside the controller has the same database, once it is open.
    let (tell, opened) = tokio::sync::oneshot::channel();
    let store = async move {
        look(&seen).await?;
        let opened = database.open().await?;
        // Nobody listens when the gc has ended.
        let _ = tell.send(opened.clone());
        Ok(opened)
    };
    let metrics = Metrics::new();
    let (gc, reaper) = gc::Periodic::new(&config, &nomad, &metrics)?;
    if config.tls_cert.is_empty() && !listens_on_loopback(&config.listen) {
        let listen = &config.listen;
        tracing::warn!(listen, "without TLS (tls_cert, tls_key) tokens travel in the clear; only behind something that encrypts");
    }
    let clock = Arc::new(SystemClock);
    let (store, listener) = (Box::pin(store), Some(listener));
    let parts = Parts { nomad, store, clock, random: random(), config, holder: who(), listener, metrics, gc: Some(reaper) };
    let controller = curfew_controller::start(parts).map_err(|e| match e {
        StartError::Tls(e) => Usage(curfew_controller::error::chain(&e)).into(),
        e => anyhow::Error::from(e),
    })?;
    tokio::spawn(gc.beside(controller.clone(), opened));
    Ok(controller)
}

/// `host:pid`, this process.
pub fn who() -> String {
    format!("{}:{}", hostname(), std::process::id())
}

fn cannot_listen(listen: &str, e: &std::io::Error) -> anyhow::Error {
    match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow::anyhow!("cannot listen on {listen}: is another controller running there? --listen names another address: {e}")
        }
        std::io::ErrorKind::InvalidInput => {
            Usage(format!("cannot listen on \"{listen}\": {e}; write --listen HOST:PORT, as in 127.0.0.1:4690")).into()
        }
        _ => anyhow::anyhow!("cannot listen on {listen}; --listen names another address: {e}"),
    }
}

/// A controller that cannot see Nomad at its start says so and ends, rather than accept what it cannot do. Later it rides out
/// what comes; a cluster that is just electing its leader is no reason either.
async fn look(nomad: &Nomad) -> Result<(), curfew_nomad::Error> {
    match nomad.told_to_end().next().await {
        Ok(_) => Ok(()),
        Err(e @ curfew_nomad::Error::NoLeader { .. }) => {
            tracing::warn!(error = %curfew_controller::error::chain(&e), "starting all the same");
            Ok(())
        }
        Err(e) => Err(e),
    }
}

/// A signal stops it, a second one at once.
pub async fn until_stopped(controller: &Controller, signals: &mut Signals) -> anyhow::Result<Exit> {
    let mut asked = false;
    loop {
        tokio::select! {
            ending = controller.stopped() => return match ending {
                Ending::Clean => Ok(Exit::Done),
                Ending::Aborted => Ok(Exit::Failed),
                Ending::Failed => Err(cannot_start(controller).await),
            },
            () = signals.next() => {}
        }
        if std::mem::replace(&mut asked, true) {
            note("not waiting for steps in flight");
            controller.hurry();
        } else {
            controller.stop(false).await;
        }
    }
}

async fn cannot_start(controller: &Controller) -> anyhow::Error {
    match controller.started().await {
        Err(e) => anyhow::anyhow!(curfew_controller::error::chain(e)),
        Ok(()) => anyhow::anyhow!("the controller could not start"),
    }
}
