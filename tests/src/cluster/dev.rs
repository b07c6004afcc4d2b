//! The embedded cluster, as the command starts it.

use std::fs::OpenOptions;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use super::Shape;
use crate::process::{self, Proc};
use crate::{command, free_port};

pub struct Dev {
    dir: TempDir,
    child: Child,
}

impl Dev {
    /// The cluster and its address.
    pub async fn start(shape: &Shape) -> (Self, String) {
        let dir = TempDir::with_prefix("curfew-test-dev-").unwrap();
        let max = shape.max_kill_timeout.unwrap_or(Duration::from_secs(30)).as_secs();
        let text = |s: &str| s.to_owned();
        let args = [
            text("dev"),
            text("--cluster-only"),
            text("--port"),
            free_port().to_string(),
            text("--nodes"),
            shape.nodes.to_string(),
            text("--max-kill-timeout"),
            format!("{max}s"),
            text("--data-dir"),
            dir.path().display().to_string(),
        ];
        let log = OpenOptions::new().create(true).append(true).open(dir.path().join("dev.log")).unwrap();
        let mut command = command::clean(&args, &[(text(MARK), mark(&dir))]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true).process_group(0);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut dev = Self { dir, child };
        let told = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
        let Ok(Ok(Some(line))) = told else { panic!("the embedded cluster did not start: {told:?}\n{}", dev.log()) };
        let addr = line.strip_prefix("export NOMAD_ADDR=").unwrap_or_else(|| panic!("not an address: {line}"));
        // It must never block on a pipe that nobody reads.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        assert!(dev.child.try_wait().unwrap().is_none(), "{}", dev.log());
        (dev, addr.to_owned())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("dev.log")).unwrap_or_default()
    }
}

const MARK: &str = "CURFEW_TEST_CLUSTER";

fn mark(dir: &TempDir) -> String {
    dir.path().display().to_string()
}

impl Drop for Dev {
    fn drop(&mut self) {
        if let Some(p) = self.child.id().and_then(|id| Proc::of(i32::try_from(id).ok()?)) {
            p.signal(Signal::KILL);
        }
        // Its tasks have the mark when they inherit it, and the folder of their allocation in any case.
        process::end_marked(&format!("{MARK}={}", mark(&self.dir)));
        process::end_below(self.dir.path());
    }
}
