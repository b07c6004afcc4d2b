//! A real Nomad: a server and clients as separate processes on loopback, on ports of their own.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use super::Shape;
use crate::api::{Access, Api};
use crate::certificates::Certificates;
use crate::process;
use crate::{free_port, wait};

pub const SERVER: &str = "server";
/// Inherited by executors and by the tasks they start.
const MARK: &str = "CURFEW_TEST_CLUSTER";

/// The binary of a real Nomad, when there is one to test on.
pub fn nomad_binary() -> Option<PathBuf> {
    std::env::var_os("CURFEW_TEST_NOMAD").filter(|v| !v.is_empty()).map(PathBuf::from)
}

pub struct Real {
    dir: TempDir,
    agents: Mutex<BTreeMap<String, Option<Child>>>,
    /// Of each client's configuration, what is the same for all.
    client: String,
}

struct Ports {
    http: u16,
    rpc: u16,
    serf: u16,
}

impl Ports {
    fn free() -> Self {
        Self { http: free_port(), rpc: free_port(), serf: free_port() }
    }
}

impl Real {
    /// The cluster and its server's API; the clients may still be on their way.
    pub async fn start(shape: &Shape, certificates: Option<Arc<Certificates>>) -> (Self, Api) {
        let dir = TempDir::with_prefix("curfew-test-nomad-").unwrap();
        let server = Ports::free();
        let mut real = Self { dir, agents: Mutex::default(), client: String::new() };
        let every = format!("{}{}", if shape.acl { ACL } else { "" }, certificates.as_deref().map(tls).unwrap_or_default());
        let config = if shape.leaderless { SERVER_CONFIG.replace("= 1\n", "= 3\n") } else { SERVER_CONFIG.to_owned() };
        real.write(SERVER, &server, "dc1", &format!("{every}{config}"));
        real.start_agent(SERVER);
        let addr = match shape.tls {
            // The certificate is not for the address.
            true => format!("https://localhost:{}", server.http),
            false => format!("http://127.0.0.1:{}", server.http),
        };
        let api = Api::with(addr, Access { certificates, ..Access::default() });
        wait::eventually(Duration::from_secs(60), "the server", async || match api.try_get("/v1/status/leader").await {
            Err(e) if shape.leaderless && e.contains("No cluster leader") => Ok(()),
            other => other.map(drop).map_err(|e| format!("{e}\n{}", real.log())),
        })
        .await;
        let max = shape.max_kill_timeout.map_or(String::new(), |d| format!(" max_kill_timeout = \"{}s\"\n", d.as_secs()));
        real.client = format!(
            "client {{\n enabled = true\n servers = [\"127.0.0.1:{}\"]\n network_interface = \"lo\"\n{max}{CLIENT_OPTIONS}}}\n{RAW_EXEC}{every}",
            server.rpc
        );
        for i in 1..=shape.nodes {
            real.add_client(&format!("c{i}"), if i % 2 == 1 { "dc1" } else { "dc2" });
        }
        (real, api)
    }

    pub fn add_client(&self, name: &str, datacenter: &str) {
        self.write(name, &Ports::free(), datacenter, &self.client);
        self.start_agent(name);
    }

    fn write(&self, name: &str, ports: &Ports, datacenter: &str, role: &str) {
        let data = self.dir.path().join(name);
        std::fs::create_dir_all(&data).unwrap();
        let text = format!(
            "data_dir = \"{}\"\nname = \"{name}\"\ndatacenter = \"{datacenter}\"\nports {{\n http = {}\n rpc = {}\n serf = {}\n}}\n{COMMON}{role}",
            data.display(),
            ports.http,
            ports.rpc,
            ports.serf
        );
        std::fs::write(self.file(name, "hcl"), text).unwrap();
    }

    fn file(&self, name: &str, ext: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.{ext}"))
    }

    pub fn start_agent(&self, name: &str) {
        let binary = nomad_binary().unwrap_or_else(|| panic!("CURFEW_TEST_NOMAD names no binary"));
        let log = OpenOptions::new().create(true).append(true).open(self.file(name, "log")).unwrap();
        let mut agent = Command::new(binary);
        agent.args(["agent", "-config"]).arg(self.file(name, "hcl"));
        for (variable, _) in std::env::vars_os().filter(|(k, _)| k.to_string_lossy().starts_with("NOMAD_")) {
            agent.env_remove(variable);
        }
        agent.env(MARK, self.mark()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let child = agent.spawn().unwrap_or_else(|e| panic!("the Nomad binary could not be run: {e}"));
        self.agents.lock().unwrap().insert(name.into(), Some(child));
    }

    /// SIGKILL: executors and tasks live on.
    pub fn kill_agent(&self, name: &str) {
        let child = self.agents.lock().unwrap().insert(name.into(), None).flatten();
        if let Some(mut child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn start_missing(&self) {
        let missing: Vec<String> =
            self.agents.lock().unwrap().iter().filter(|(_, c)| c.is_none()).map(|(n, _)| n.clone()).collect();
        missing.iter().for_each(|n| self.start_agent(n));
    }

    fn mark(&self) -> String {
        self.dir.path().display().to_string()
    }

    pub fn log(&self) -> String {
        let tail = |name: &String| {
            let text = std::fs::read_to_string(self.file(name, "log")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        self.agents.lock().unwrap().keys().map(tail).collect()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let names: Vec<String> = self.agents.lock().unwrap().keys().cloned().collect();
        names.iter().for_each(|n| self.kill_agent(n));
        process::end_marked(&format!("{MARK}={}", self.mark()));
        process::end_below(self.dir.path());
        // A client mounts a small file system for each task's secrets.
        let below = format!("{}/", self.dir.path().display());
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        for place in mounts.lines().filter_map(|l| l.split(' ').nth(1)).filter(|p| p.starts_with(&below)) {
            let _ = Command::new("umount").arg("-l").arg(place).status();
        }
    }
}

const ACL: &str = "acl {\n enabled = true\n}\n";

fn tls(c: &Certificates) -> String {
    format!(
        "tls {{\n http = true\n verify_https_client = true\n ca_file = {:?}\n cert_file = {:?}\n key_file = {:?}\n}}\n",
        c.path("ca"),
        c.path("server"),
        c.path("server-key")
    )
}

const COMMON: &str = r#"
bind_addr = "127.0.0.1"
log_level = "WARN"
disable_update_check = true
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
limits {
  http_max_conns_per_client = 0
  rpc_max_conns_per_client  = 0
}
"#;

const SERVER_CONFIG: &str = r#"
server {
  enabled                = true
  bootstrap_expect       = 1
  heartbeat_grace        = "4s"
  min_heartbeat_ttl      = "3s"
  max_heartbeats_per_second = 50
}
"#;

const CLIENT_OPTIONS: &str = r#"
  options = { "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean,consul,vault" }
"#;

const RAW_EXEC: &str = r#"
plugin "raw_exec" {
  config {
    enabled = true
  }
}
"#;
