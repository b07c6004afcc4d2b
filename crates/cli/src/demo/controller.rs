//! The demo's controller: a process of its own, so that it can really be killed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use curfew_client::Client;
use tokio::process::{Child, Command};
use tokio::time::Instant;

pub struct Controller {
    child: Child,
    nomad_addr: String,
    dir: PathBuf,
    listen: String,
}

const READY_IN: Duration = Duration::from_secs(20);

impl Controller {
    pub async fn start(nomad_addr: &str, dir: &Path) -> anyhow::Result<Self> {
        // A port that is free now; the controller takes it a moment later.
        let listen = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).context("no free port")?.to_string();
        let child = spawn(nomad_addr, dir, &listen)?;
        let mut it = Self { child, nomad_addr: nomad_addr.to_owned(), dir: dir.to_owned(), listen };
        it.until_ready().await?;
        Ok(it)
    }

    pub fn addr(&self) -> &str {
        &self.listen
    }

    pub fn pid(&self) -> String {
        self.child.id().map_or("gone".into(), |id| format!("process {id}"))
    }

    pub async fn kill_9(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("the controller could not be killed")
    }

    /// Killed, and its database removed.
    pub async fn lose(&mut self) -> anyhow::Result<()> {
        self.kill_9().await?;
        for suffix in ["", "-wal", "-shm", "-lock"] {
            // Not each of them is there.
            let _ = std::fs::remove_file(self.dir.join(format!("curfew.db{suffix}")));
        }
        Ok(())
    }

    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.child = spawn(&self.nomad_addr, &self.dir, &self.listen)?;
        self.until_ready().await
    }

    /// SIGTERM in the middle of its work: the phases that its status showed until it was gone, and whether it exited with 0.
    pub async fn told_to_stop(&mut self) -> anyhow::Result<(Vec<String>, bool)> {
        self.terminate()?;
        let phases = self.phases(|c| matches!(c.try_wait(), Ok(None))).await?;
        Ok((phases, self.child.wait().await?.success()))
    }

    /// Started again: the phases that its status showed until it ran.
    pub async fn starts_again(&mut self) -> anyhow::Result<Vec<String>> {
        self.child = spawn(&self.nomad_addr, &self.dir, &self.listen)?;
        let mut phases = vec![];
        let give_up = Instant::now() + READY_IN;
        while phases.last().is_none_or(|p| p != "running") && Instant::now() < give_up {
            phases.extend(self.phases(|_| false).await?);
            phases.dedup();
        }
        self.until_ready().await?;
        Ok(phases)
    }

    /// What its status says, asked at least once and as long as `again`; each phase once.
    async fn phases(&mut self, again: impl Fn(&mut Child) -> bool) -> anyhow::Result<Vec<String>> {
        let client = Client::new(&self.listen)?;
        let mut phases: Vec<String> = vec![];
        loop {
            if let Ok(status) = client.status().await
                && phases.last() != Some(&status.phase)
            {
                phases.push(status.phase);
            }
            if !again(&mut self.child) {
                return Ok(phases);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn terminate(&self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("the controller could not be stopped")?;
        }
        Ok(())
    }

    /// SIGTERM; a controller with nothing in flight exits 0.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.terminate()?;
        let status = self.child.wait().await?;
        if !status.success() {
            bail!("the controller ended with {status}; its log:\n{}", self.log());
        }
        Ok(())
    }

    async fn until_ready(&mut self) -> anyhow::Result<()> {
        let client = Client::new(&self.listen)?;
        let give_up = Instant::now() + READY_IN;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the controller ended with {status}; its log:\n{}", self.log());
            }
            if client.status().await.is_ok_and(|s| s.nomad == "in sight") {
                return Ok(());
            }
            if Instant::now() > give_up {
                bail!("the controller is not ready after {}s; its log:\n{}", READY_IN.as_secs(), self.log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("controller.log")).unwrap_or_default()
    }
}

fn spawn(nomad_addr: &str, dir: &Path, listen: &str) -> anyhow::Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("controller.log")).context("no log file")?;
    let mut command = Command::new(std::env::current_exe().context("this program cannot be found")?);
    // No setting of the surroundings but Nomad's own: the demo is the same everywhere.
    let curfews = std::env::vars_os().map(|(k, _)| k).filter(|k| k.to_string_lossy().starts_with("CURFEW_"));
    curfews.for_each(|k| {
        command.env_remove(k);
    });
    command
        .args(["serve", "--listen", listen, "--database"])
        .arg(format!("sqlite:{}", dir.join("curfew.db").display()))
        .env("NOMAD_ADDR", nomad_addr)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        // Ctrl-C is for the demo, which ends its controller itself.
        .process_group(0);
    command.spawn().context("the controller could not be started")
}
