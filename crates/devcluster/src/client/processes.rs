//! The `raw_exec` driver: real processes, each in a group of its own, ended with everything they started.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::watch;

use super::driver::Exit;
use super::{lock, tree};

/// The variable that marks a task's processes, wherever they go.
const MARK: &str = "CURFEW_DEV_TASK";

#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    mark: String,
    exit: watch::Receiver<Option<Exit>>,
}

/// Every process the cluster started and has not seen the end of.
#[derive(Debug, Default)]
pub(crate) struct Processes(Mutex<HashMap<i32, Arc<Process>>>);

pub(crate) struct Start<'a> {
    pub command: &'a str,
    pub args: &'a [String],
    pub env: &'a BTreeMap<String, String>,
    pub dir: &'a Path,
    pub stdout: PathBuf,
    pub stderr: PathBuf,
    /// Unique among tasks and their restarts.
    pub mark: &'a str,
}

impl Process {
    pub(crate) async fn wait(&self) -> Exit {
        let mut rx = self.exit.clone();
        match rx.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit { code: -1, signal: 0 }),
            // The waiter was dropped with the runtime.
            Err(_) => Exit { code: -1, signal: 0 },
        }
    }

    /// Reaches the main process only, as Nomad's executor does.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), String> {
        if self.exit.borrow().is_some() {
            return Err("process already finished".into());
        }
        tree::send(self.pid, signal).map_err(|_| "process already finished".to_owned())
    }

    pub(crate) fn kill_tree(&self) {
        tree::kill(self.pid, &self.mark);
    }
}

impl Processes {
    pub(crate) fn spawn(&self, core: &Arc<crate::core::Core>, start: &Start<'_>) -> Result<Arc<Process>, String> {
        let open = |path: &Path| -> Result<File, String> {
            OpenOptions::new().create(true).append(true).open(path).map_err(|e| format!("cannot open {}: {e}", path.display()))
        };
        let mut command = Command::new(start.command);
        command
            .args(start.args)
            .envs(start.env)
            .env(MARK, start.mark)
            .current_dir(start.dir)
            .stdin(Stdio::null())
            .stdout(open(&start.stdout)?)
            .stderr(open(&start.stderr)?)
            .process_group(0);
        let mut child = command.spawn().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => format!(
                "failed to launch command with executor: rpc error: code = Unknown desc = file {} not found in PATH or task dir",
                start.command
            ),
            _ => format!("failed to launch command with executor: rpc error: code = Unknown desc = {e}"),
        })?;
        let Some(pid) = child.id().and_then(|p| i32::try_from(p).ok()) else {
            return Err("the process ended before it was seen".into());
        };
        let (tx, rx) = watch::channel(None);
        let process = Arc::new(Process { pid, mark: format!("{MARK}={}", start.mark), exit: rx });
        lock(&self.0).insert(pid, process.clone());
        let core = core.clone();
        let watched = process.clone();
        core.clone().tracker.spawn(async move {
            let exit = match child.wait().await {
                Ok(status) => match status.signal() {
                    Some(sig) => Exit { code: 128 + i64::from(sig), signal: i64::from(sig) },
                    None => Exit { code: i64::from(status.code().unwrap_or(-1)), signal: 0 },
                },
                Err(_) => Exit { code: -1, signal: 0 },
            };
            // Nothing of a task outlives its main process.
            watched.kill_tree();
            lock(&core.processes.0).remove(&pid);
            let _ = tx.send(Some(exit));
        });
        Ok(process)
    }

    /// Ends everything that is left.
    pub(crate) fn kill_all(&self) {
        let all: Vec<Arc<Process>> = lock(&self.0).values().cloned().collect();
        for p in all {
            p.kill_tree();
        }
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.kill_all();
    }
}
