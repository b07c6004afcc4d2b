//! What a cluster is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::tls::TlsConfig;

/// A whole cluster: one server and its clients. Every duration is a wait in tokio time.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Where the HTTP API listens; `None` opens no socket and leaves [`crate::Cluster::call`].
    pub listen: Option<SocketAddr>,
    /// Take the next free port (at most 100 further) when the wanted one is taken.
    pub listen_next_free: bool,
    pub nodes: Vec<NodeConfig>,
    /// Allocation directories and logs. Created when missing, never removed.
    pub data_dir: PathBuf,
    /// How long after its client went away a node is marked `down`.
    pub heartbeat_grace: Duration,
    /// Clients report changes in batches of this period; what is not urgent only every fifth time, as Nomad's do.
    pub client_batch: Duration,
    /// Period of the `{}` frames of an idle event stream.
    pub event_heartbeat: Duration,
    /// How many indexes of events the server keeps for replay.
    pub event_buffer: usize,
    /// Where identifiers and jitter come from: another one each time by default, 1 for [`ClusterConfig::in_process`].
    pub seed: u64,
    /// Unix time to start at; `None` takes the machine's. With a seed and paused tokio time it makes a run repeatable.
    pub wall_base: Option<Duration>,
    /// The Nomad version to claim.
    pub version: String,
    /// Namespaces besides `default`.
    pub namespaces: Vec<String>,
    pub region: String,
    /// HTTPS instead of HTTP.
    pub tls: Option<TlsConfig>,
    /// Whether calls need a token. [`crate::Cluster::bootstrap_acl`] makes the first one.
    pub acl: bool,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4646)),
            listen_next_free: true,
            nodes: vec![NodeConfig::new("dev1", "dc1"), NodeConfig::new("dev2", "dc1"), NodeConfig::new("dev3", "dc2")],
            data_dir: std::env::temp_dir().join("curfew-dev"),
            heartbeat_grace: Duration::from_secs(4),
            client_batch: Duration::from_millis(200),
            event_heartbeat: Duration::from_secs(30),
            event_buffer: 1_000,
            seed: crate::clock::fresh_seed(),
            wall_base: None,
            version: "2.0.5".into(),
            namespaces: Vec::new(),
            region: "global".into(),
            tls: None,
            acl: false,
        }
    }
}

impl ClusterConfig {
    /// No sockets and a fixed seed: what an in-process test wants. Under paused time use the mock drivers only.
    pub fn in_process(nodes: Vec<NodeConfig>, data_dir: impl Into<PathBuf>) -> Self {
        Self { listen: None, nodes, data_dir: data_dir.into(), seed: 1, ..Self::default() }
    }
}

/// One client node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub name: String,
    pub datacenter: String,
    pub node_class: String,
    pub node_pool: String,
    pub meta: BTreeMap<String, String>,
    /// Cuts every task's `kill_timeout` silently, as fact 3 has it. Nomad's default is 30 s; the dev cluster's is a year.
    pub max_kill_timeout: Duration,
    /// Drivers it offers: `raw_exec`, `exec` (the same here), `mock_driver`, `mock`, and `nosignal` (mock tasks whose
    /// signal call is refused).
    pub drivers: BTreeSet<String>,
    /// MHz and MiB to schedule on.
    pub cpu: i64,
    pub memory_mb: i64,
}

impl NodeConfig {
    pub fn new(name: impl Into<String>, datacenter: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            datacenter: datacenter.into(),
            node_class: String::new(),
            node_pool: "default".into(),
            meta: BTreeMap::new(),
            max_kill_timeout: Duration::from_secs(365 * 24 * 3600),
            drivers: ["raw_exec", "exec", "mock_driver", "mock", "nosignal"].map(String::from).into(),
            cpu: 100_000,
            memory_mb: 256 * 1024,
        }
    }
}
