//! The embedded cluster, as the command starts it.

use std::fs::OpenOptions;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use super::Shape;
use crate::api::{Access, Api};
use crate::certificates::Certificates;
use crate::process::{self, Proc};
use crate::{command, free_port};

pub struct Dev {
    dir: TempDir,
    child: Child,
}

impl Dev {
    /// The cluster and its API.
    pub async fn start(shape: &Shape, certificates: Option<Arc<Certificates>>) -> (Self, Api) {
        let dir = TempDir::with_prefix("curfew-test-dev-").unwrap();
        let max = shape.max_kill_timeout.unwrap_or(Duration::from_secs(30)).as_secs();
        let text = |s: &str| s.to_owned();
        let mut args = vec![
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
        if shape.acl {
            args.push(text("--acl"));
        }
        if let Some(c) = &certificates {
            for (flag, file) in [("--tls-cert", "server"), ("--tls-key", "server-key"), ("--tls-ca", "ca")] {
                args.extend([text(flag), c.path(file).display().to_string()]);
            }
        }
        let log = OpenOptions::new().create(true).append(true).open(dir.path().join("dev.log")).unwrap();
        let mut command = command::clean(&args, &[(text(MARK), mark(&dir))]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true).process_group(0);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut dev = Self { dir, child };
        let mut export = async |name: &str| {
            let told = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
            let Ok(Ok(Some(line))) = told else { panic!("the embedded cluster did not start: {told:?}\n{}", dev.log()) };
            line.strip_prefix(&format!("export {name}=")).unwrap_or_else(|| panic!("not {name}: {line}")).to_owned()
        };
        let addr = export("NOMAD_ADDR").await;
        let token = if shape.acl { Some(export("NOMAD_TOKEN").await) } else { None };
        // The certificate is not for the address.
        let addr = if shape.tls { addr.replace("127.0.0.1", "localhost") } else { addr };
        // It must never block on a pipe that nobody reads.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        assert!(dev.child.try_wait().unwrap().is_none(), "{}", dev.log());
        (dev, Api::with(addr, Access { token, certificates }))
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
