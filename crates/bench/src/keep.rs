//! A controller as a process of its own (this program again), so that what is measured of it is its alone.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, bail};
use curfew_controller::{Controller, Metrics, Parts, SystemClock, random};
use curfew_core::config::Config;
use curfew_nomad::{Nomad, NomadConfig};
use futures::FutureExt;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

#[derive(clap::Args)]
pub struct Keep {
    #[arg(long)]
    nomad: String,
    #[arg(long)]
    database: String,
    #[arg(long)]
    listen: SocketAddr,
}

/// Runs until its standard input ends; then it prints how often it asked Nomad what.
pub async fn keep(args: Keep) -> anyhow::Result<()> {
    let nomad = nomad(&args.nomad)?;
    let parts = Parts {
        nomad: nomad.clone(),
        store: async move { curfew_store::open(&args.database).await }.map(|s| s.map_err(Into::into)).boxed(),
        clock: Arc::new(SystemClock),
        random: random(),
        config: Config::default(),
        holder: format!("bench:{}", std::process::id()),
        listener: Some(TcpListener::bind(args.listen).await?),
        metrics: Metrics::new(),
        gc: None,
    };
    let controller: Controller = curfew_controller::start(parts)?;
    let end = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    tokio::select! {
        ending = controller.stopped() => bail!("the controller ended: {ending:?}"),
        end = end => end??,
    };
    crate::report::line(&serde_json::to_string(&nomad.requests())?);
    controller.stop(true).await;
    Ok(())
}

pub fn nomad(addr: &str) -> anyhow::Result<Nomad> {
    Ok(Nomad::new(NomadConfig::from_env(|name| (name == "NOMAD_ADDR").then(|| addr.to_owned()))?)?)
}

/// Where such a process is, each time that it is launched.
pub struct Kept {
    nomad: String,
    database: String,
    addr: String,
}

impl Kept {
    pub async fn new(nomad: &str, database: &Path) -> anyhow::Result<Self> {
        let addr = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.to_string();
        Ok(Self { nomad: nomad.to_owned(), database: format!("sqlite:{}", database.display()), addr })
    }

    pub fn addr(&self) -> &str {
        &self.addr
    }

    pub fn launch(&self) -> anyhow::Result<Child> {
        let mut child = Command::new(std::env::current_exe()?);
        child.args(["keep", "--nomad", &self.nomad, "--database", &self.database, "--listen", &self.addr]);
        Ok(child.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?)
    }
}

/// Ends it, and reads how often it asked Nomad what.
pub async fn asked(mut controller: Child) -> anyhow::Result<Vec<(String, u64)>> {
    drop(controller.stdin.take());
    let out = controller.wait_with_output().await?;
    serde_json::from_slice(&out.stdout).context("what the controller said at its end")
}

/// `VmRSS` now, or `VmHWM`, the most that it ever had.
pub fn memory_mib(controller: &Child, which: &str) -> anyhow::Result<f64> {
    let status = proc_file(controller, "status")?;
    let kib = status.lines().find_map(|l| l.strip_prefix(which)?.strip_prefix(':')).and_then(|l| l.split_whitespace().next());
    Ok(kib.with_context(|| format!("no {which}"))?.parse::<f64>()? / 1024.0)
}

pub fn proc_file(controller: &Child, name: &str) -> anyhow::Result<String> {
    let pid = controller.id().context("the controller has ended")?;
    let path = format!("/proc/{pid}/{name}");
    std::fs::read_to_string(&path).context(path)
}
