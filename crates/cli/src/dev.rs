//! `curfew dev`: an embedded cluster, and a controller beside it.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use curfew_core::duration;
use curfew_devcluster::{Cluster, ClusterConfig, NodeConfig, TlsConfig};
use tempfile::TempDir;

use crate::args::{Dev, DevTls, Serve};
use crate::config;
use crate::exit::Exit;
use crate::output::{line, note};
use crate::serve::{self, Signals};

pub async fn run(args: Dev) -> anyhow::Result<Exit> {
    let (dir, _temporary) = folder(args.data_dir.clone())?;
    let nodes = (0..args.nodes).map(|i| {
        let datacenter = args.datacenters.get(usize::from(i) % args.datacenters.len().max(1)).map_or("dc1", String::as_str);
        // As deployed clients should: an agent tells its own max_kill_timeout only to those who can reach it.
        let meta = [("max_kill_timeout".to_owned(), duration::format(args.max_kill_timeout))].into();
        NodeConfig { max_kill_timeout: args.max_kill_timeout, meta, ..NodeConfig::new(format!("dev{}", i + 1), datacenter) }
    });
    let cluster =
        start(ClusterConfig { acl: args.acl, tls: tls(&args.tls), ..config(args.port, nodes.collect(), dir.join("cluster")) })
            .await?;
    let token = if args.acl { Some(cluster.bootstrap_acl()?) } else { None };
    let stopped = serve_beside(&args, &cluster, token, &dir).await;
    cluster.shutdown().await;
    stopped
}

pub async fn cluster(port: u16, nodes: Vec<NodeConfig>, data_dir: PathBuf) -> anyhow::Result<Cluster> {
    start(config(port, nodes, data_dir)).await
}

fn config(port: u16, nodes: Vec<NodeConfig>, data_dir: PathBuf) -> ClusterConfig {
    let listen = Some(SocketAddr::from(([127, 0, 0, 1], port)));
    ClusterConfig { listen, listen_next_free: true, nodes, data_dir, ..ClusterConfig::default() }
}

async fn start(config: ClusterConfig) -> anyhow::Result<Cluster> {
    Cluster::start(config).await.context("the embedded cluster could not be started")
}

/// A certificate never comes without its key: the arguments require each other.
fn tls(args: &DevTls) -> Option<TlsConfig> {
    let (cert, key) = (args.tls_cert.clone()?, args.tls_key.clone()?);
    Some(TlsConfig { cert, key, client_ca: args.tls_ca.clone() })
}

/// The folder that was named, or a temporary one that goes with its guard.
pub fn folder(named: Option<PathBuf>) -> anyhow::Result<(PathBuf, Option<TempDir>)> {
    match named {
        Some(dir) => {
            std::fs::create_dir_all(&dir).with_context(|| format!("the folder {} cannot be made", dir.display()))?;
            Ok((dir, None))
        }
        None => {
            let dir = TempDir::with_prefix("curfew-").context("no temporary folder could be made; --data-dir names another")?;
            Ok((dir.path().to_owned(), Some(dir)))
        }
    }
}

async fn serve_beside(args: &Dev, cluster: &Cluster, token: Option<String>, dir: &std::path::Path) -> anyhow::Result<Exit> {
    let nomad_addr = cluster.base_url();
    let exports = || {
        line(&format!("export NOMAD_ADDR={nomad_addr}"));
        if let Some(token) = &token {
            line(&format!("export NOMAD_TOKEN={token}"));
        }
    };
    if args.cluster_only {
        exports();
        note(&faults(&nomad_addr));
        note("the cluster runs until Ctrl-C");
        Signals::listen()?.next().await;
        return Ok(Exit::Done);
    }
    let database = args.serve.database.clone().unwrap_or_else(|| format!("sqlite:{}", dir.join("curfew.db").display()));
    let config = config::load(&Serve { database: Some(database), ..args.serve.clone() })?;
    // Nothing of the environment's Nomad, for this controller is for the embedded one; but how to speak TLS with it.
    let env = |name: &str| match name {
        "NOMAD_ADDR" => Some(nomad_addr.clone()),
        "NOMAD_TOKEN" => token.clone(),
        "NOMAD_CACERT" | "NOMAD_CLIENT_CERT" | "NOMAD_CLIENT_KEY" | "NOMAD_TLS_SERVER_NAME" if args.tls.tls_cert.is_some() => {
            std::env::var(name).ok()
        }
        _ => None,
    };
    let nomad = serve::nomad(&config, env)?;
    let mut signals = Signals::listen()?;
    let controller = serve::start(config, nomad).await?;
    tokio::select! {
        started = controller.started() => if started.is_err() {
            return serve::until_stopped(&controller, &mut signals).await;
        },
        () = signals.next() => controller.stop(false).await,
    }
    exports();
    if let Some(addr) = controller.addr() {
        line(&format!("export CURFEW_ADDR=http://{addr}"));
    }
    note(&faults(&nomad_addr));
    note("the cluster and the controller run until Ctrl-C");
    serve::until_stopped(&controller, &mut signals).await
}

fn faults(nomad_addr: &str) -> String {
    format!("faults on request: {nomad_addr}/dev/v1/status, and docs/dev-cluster.md")
}
