//! `curfew serve`: the controller.

use std::path::Path;
use std::sync::Arc;

use curfew_controller::{Controller, Ending, Parts, SystemClock, hostname};
use curfew_core::config::Config;
use curfew_nomad::{Nomad, NomadConfig};
use curfew_store::{SqliteStore, Store};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Serve;
use crate::config;
use crate::exit::{Exit, Usage};
use crate::output::note;

pub async fn run(args: Serve) -> anyhow::Result<Exit> {
    let config = config::load(&args)?;
    let nomad = nomad(&config, |name| std::env::var(name).ok())?;
    let controller = start(config, nomad).await?;
    if let Some(addr) = controller.addr() {
        tracing::info!(%addr, "the RPC listens");
    }
    until_stopped(&controller).await
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

pub async fn start(config: Config, nomad: Nomad) -> anyhow::Result<Controller> {
    let listener = TcpListener::bind(&config.listen).await.map_err(|e| cannot_listen(&config.listen, &e))?;
    look(&nomad).await?;
    let store = store(&config.database)?;
    let holder = format!("{}:{}", hostname(), std::process::id());
    let parts = Parts { nomad, store, clock: Arc::new(SystemClock), config, holder, listener: Some(listener) };
    Ok(curfew_controller::start(parts).await?)
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

fn store(url: &str) -> anyhow::Result<Arc<dyn Store>> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => Ok(SqliteStore::open(Path::new(path))?),
        _ => Err(Usage(format!(
            "the database \"{url}\" is not one Curfew knows; write sqlite:PATH, as in sqlite:/var/lib/curfew/curfew.db"
        ))
        .into()),
    }
}

/// A controller that cannot see Nomad at its start says so and ends, rather than accept what it cannot do. Later it rides out
/// what comes; a cluster that is just electing its leader is no reason either.
async fn look(nomad: &Nomad) -> anyhow::Result<()> {
    match nomad.told_to_end().next().await {
        Ok(_) => Ok(()),
        Err(e @ curfew_nomad::Error::NoLeader { .. }) => {
            tracing::warn!(error = %curfew_controller::error::chain(&e), "starting all the same");
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

/// SIGTERM and SIGINT stop it, a second one at once.
pub async fn until_stopped(controller: &Controller) -> anyhow::Result<Exit> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut asked = false;
    loop {
        tokio::select! {
            ending = controller.stopped() => return Ok(match ending {
                Ending::Clean => Exit::Done,
                Ending::Aborted => Exit::Failed,
            }),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if std::mem::replace(&mut asked, true) {
            note("not waiting for steps in flight");
            controller.hurry();
        } else {
            controller.stop(false).await;
        }
    }
}
