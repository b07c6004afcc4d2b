//! An embedded stand-in for a Nomad cluster: the same HTTP API, real processes and real signals, for tests and demos.
//!
//! One server and any number of clients live in one process. Jobs are registered, scheduled and run as Nomad does it, with
//! its texts, statuses and timing, as far as stopping, draining and rolling out depend on them. What a real Nomad answers
//! was recorded; where this crate and a recording differ, the recording is right.
//!
//! ```no_run
//! # async fn run() -> Result<(), curfew_devcluster::Error> {
//! use curfew_devcluster::{Cluster, ClusterConfig};
//! let cluster = Cluster::start(ClusterConfig::default()).await?;
//! let nomad_addr = cluster.base_url();
//! // … talk to it …
//! cluster.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! # Drivers
//!
//! `raw_exec` (and `exec`, the same here) runs real processes. `mock_driver` and `mock` run none: `run_for` (for ever when
//! absent), `exit_code`, `exit_signal`, `start_error`, `start_block_for`, `ignore_sigterm`, `kill_after` and
//! `term_exit_code` say how a task behaves. `nosignal` is a mock whose signal call is refused.
//!
//! # Tokens and certificates
//!
//! With [`ClusterConfig::acl`] every call needs a token, as Nomad's do: `/v1/acl/bootstrap` (or [`Cluster::bootstrap_acl`]),
//! `/v1/acl/policies`, `/v1/acl/policy/:name`, `/v1/acl/tokens`, `/v1/acl/token…`. There are no roles, auth methods or workload
//! identities, no ACL events in the stream, and a policy's `RulesJSON` is not shown. [`ClusterConfig::tls`] makes it HTTPS.
//!
//! # Faults on request
//!
//! What [`Cluster`] offers as methods is there over HTTP as well, below `/dev/v1`, where no Nomad has anything, and without a
//! token. It is told in docs/dev-cluster.md.

mod acl;
mod base64;
mod client;
mod clock;
mod config;
mod core;
mod duration;
mod error;
mod faults;
mod filter;
mod http;
mod ids;
mod job;
mod scheduler;
mod server;
mod state;
mod tls;

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response};
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::time::Instant;

pub use config::{ClusterConfig, NodeConfig};
pub use error::Error;
pub use faults::{Fault, FaultKind};
pub use tls::TlsConfig;

use client::{Agent, NodeClient};
use core::Core;

/// A running cluster. Dropping it ends its processes; [`Cluster::shutdown`] also waits for them.
#[derive(Debug)]
pub struct Cluster {
    core: Arc<Core>,
    addr: Option<SocketAddr>,
}

impl Cluster {
    /// Starts server and clients; with `listen` set the API answers when this returns.
    pub async fn start(config: ClusterConfig) -> Result<Self, Error> {
        let mut names = std::collections::BTreeSet::new();
        if let Some(n) = config.nodes.iter().find(|n| !names.insert(n.name.clone())) {
            return Err(Error::DuplicateNode(n.name.clone()));
        }
        std::fs::create_dir_all(&config.data_dir).map_err(|source| Error::DataDir { path: config.data_dir.clone(), source })?;
        let tls = config.tls.as_ref().map(TlsConfig::server).transpose()?;
        let listener = match config.listen {
            Some(addr) => Some(listen(addr, config.listen_next_free).await?),
            None => None,
        };
        let addr = listener.as_ref().and_then(|l| l.local_addr().ok());
        let core = Arc::new(Core::new(config));
        register_nodes(&core, addr);
        core.tracker.spawn(scheduler::run(core.clone()));
        core.tracker.spawn(server::run_timers(core.clone()));
        if let Some(listener) = listener {
            let router = http::router(core.clone());
            let cancel = core.cancel.clone();
            core.tracker.spawn(async move {
                let served = match tls {
                    None => axum::serve(listener, router).with_graceful_shutdown(cancel.cancelled_owned()).await,
                    Some(tls) => serve_tls(listener, tls, router, cancel).await,
                };
                if let Err(error) = served {
                    tracing::error!(%error, "the dev cluster's API ended");
                }
            });
        }
        Ok(Self { core, addr })
    }

    /// Where the API listens; `None` without sockets.
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }

    /// `http://127.0.0.1:4646`, or `https://…` with TLS, as `NOMAD_ADDR` wants it. Without sockets an address that nothing answers.
    pub fn base_url(&self) -> String {
        let scheme = if self.core.config.tls.is_some() { "https" } else { "http" };
        self.addr.map_or_else(|| "http://dev-cluster.invalid".to_owned(), |a| format!("{scheme}://{a}"))
    }

    /// One call of the same API without sockets. A request's path and query count, not its host.
    pub fn call(&self, request: Request<Bytes>) -> impl Future<Output = Response<Body>> + Send + use<> {
        http::handle(State(self.core.clone()), request.map(Body::from))
    }

    /// A node's id by its name.
    pub fn node_id(&self, name: &str) -> Option<String> {
        self.core.client_by_name(name).map(|c| c.id().to_owned())
    }

    /// The client agent of a node dies: its processes live on and nothing watches them. Signals answer 404 `No path to
    /// node`; after `heartbeat_grace` the node is down and its allocations lost or unknown.
    pub fn node_down(&self, name: &str) -> Result<(), Error> {
        self.agent(name, Agent::Dead)
    }

    /// The client agent runs on, but server and client do not hear each other.
    pub fn node_cut(&self, name: &str) -> Result<(), Error> {
        self.agent(name, Agent::Cut)
    }

    /// A node that was taken down or cut off is back.
    pub fn node_up(&self, name: &str) -> Result<(), Error> {
        self.agent(name, Agent::Up)
    }

    fn agent(&self, name: &str, agent: Agent) -> Result<(), Error> {
        if set_agent(&self.core, name, agent) { Ok(()) } else { Err(Error::UnknownNode(name.to_owned())) }
    }

    /// The first management token of a cluster with ACLs: its secret.
    pub fn bootstrap_acl(&self) -> Result<String, Error> {
        self.core.write(|s| http::bootstrap(s, None)).map(|t| t.secret).map_err(|_| Error::Bootstrapped)
    }

    /// Adds a fault; the first that matches a call concerns it.
    pub fn fault(&self, fault: Fault) {
        self.core.faults.add(fault);
    }

    pub fn clear_faults(&self) {
        self.core.faults.clear();
    }

    /// Ends every open event stream.
    pub fn close_event_streams(&self) {
        self.core.faults.close_streams();
    }

    /// Streams stay open but show nothing, not even heartbeats, until this is taken back; what happened meanwhile is lost.
    pub fn lose_events(&self, lose: bool) {
        self.core.faults.lose_events(lose);
    }

    /// Without a leader every call but the agent's answers 500 `No cluster leader`.
    pub fn set_leader(&self, present: bool) {
        self.core.set_leader(present);
    }

    /// Takes every fault back: nodes up, a leader, events delivered, answers as they are.
    pub fn heal(&self) {
        heal(&self.core);
    }

    /// Real processes the cluster started that still live.
    pub fn processes(&self) -> usize {
        self.core.processes.len()
    }

    /// Ends the API, the clients and every process they started, by process id.
    pub async fn shutdown(self) {
        self.core.cancel.cancel();
        self.core.processes.kill_all();
        self.core.tracker.close();
        // A connection that does not end must not hold up the end of a program.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.core.tracker.wait()).await;
        self.core.processes.kill_all();
        self.core.clients.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.core.cancel.cancel();
        self.core.processes.kill_all();
    }
}

pub(crate) fn heal(core: &Arc<Core>) {
    core.faults.clear();
    core.faults.lose_events(false);
    core.set_leader(true);
    let all: Vec<String> = core.clients.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
    for id in all {
        set_agent(core, &id, Agent::Up);
    }
}

/// Changes what becomes of a node's agent; false when there is no such node.
pub(crate) fn set_agent(core: &Arc<Core>, name: &str, agent: Agent) -> bool {
    let Some(client) = core.client_by_name(name) else { return false };
    let before = client.agent();
    if before == agent {
        return true;
    }
    client.set_agent(agent);
    let id = client.id().to_owned();
    if agent == Agent::Up {
        core.write(|s| server::heartbeat(s, &id));
        client.resync(before == Agent::Cut);
    } else if before == Agent::Up {
        let at = Instant::now() + core.config.heartbeat_grace;
        core.write(|s| server::expect_heartbeat(s, &id, at));
    }
    true
}

fn register_nodes(core: &Arc<Core>, addr: Option<SocketAddr>) {
    let http_addr: Arc<str> = addr.map_or_else(|| "127.0.0.1:4646".to_owned(), |a| a.to_string()).into();
    for config in &core.config.nodes {
        register(core, config.clone(), &http_addr);
    }
}

fn register(core: &Arc<Core>, config: NodeConfig, http_addr: &Arc<str>) {
    let version: Arc<str> = core.config.version.as_str().into();
    let config = Arc::new(config);
    let id = core.write(|s| {
        let index = s.begin("NodeRegistration");
        let now = s.now();
        let id = s.ids.uuid();
        let mut node = state::Node {
            id: id.clone(),
            name: config.name.as_str().into(),
            attributes: Arc::new(state::node::attributes(&config, &version)),
            config: config.clone(),
            status: state::NodeStatus::Ready,
            eligible: true,
            drain: None,
            last_drain: None,
            events: Vec::new(),
            create_index: index,
            modify_index: index,
            last_alloc_update: 0,
            last_missed_heartbeat: 0,
            status_updated_at: now,
            registered_at: now,
            version: version.clone(),
            http_addr: http_addr.clone(),
        };
        node.push_event("Cluster", "Node registered", serde_json::Value::Null, now, 0);
        s.put_node(node);
        s.commit();
        id
    });
    let client = NodeClient::start(core, id.clone(), config);
    core.clients.write().unwrap_or_else(PoisonError::into_inner).insert(id, client);
}

/// One more node, in the first node's likeness; false when there is one of that name.
pub(crate) fn join(core: &Arc<Core>, name: &str, datacenter: Option<&str>) -> bool {
    let like = core.config.nodes.first().cloned();
    if name.is_empty() || core.client_by_name(name).is_some() {
        return false;
    }
    let http_addr: Option<Arc<str>> = core.read(|s| s.nodes.values().next().map(|n| n.http_addr.clone()));
    let like = like.unwrap_or_else(|| NodeConfig::new(name, "dc1"));
    let datacenter = datacenter.unwrap_or(&like.datacenter).to_owned();
    register(core, NodeConfig { name: name.into(), datacenter, ..like }, &http_addr.unwrap_or_else(|| "127.0.0.1:4646".into()));
    let id = core.client_by_name(name).map(|c| c.id().to_owned()).unwrap_or_default();
    core.write(|s| {
        s.begin("EvaluationUpdated");
        s.unblock();
        server::node_evals(s, &id);
        s.commit();
    });
    true
}

/// `PUT /v1/node/:id/purge`: the server forgets a node. Its agent, when it runs, ends with it here: it does not register again.
pub(crate) fn purge(core: &Arc<Core>, id: &str) -> Option<server::drain::Drained> {
    let drained = core.write(|s| server::purge_node(s, id))?;
    let client = core.clients.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    if let Some(client) = client {
        client.set_agent(Agent::Dead);
    }
    Some(drained)
}

async fn serve_tls(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: axum::Router,
    cancel: tokio_util::sync::CancellationToken,
) -> std::io::Result<()> {
    let handle = axum_server::Handle::new();
    let serving = handle.clone();
    let server = axum_server::from_tcp_rustls(listener.into_std()?, axum_server::tls_rustls::RustlsConfig::from_config(tls))?;
    let served = server.handle(serving).serve(router.into_make_service());
    tokio::pin!(served);
    tokio::select! {
        end = &mut served => end,
        () = cancel.cancelled() => {
            handle.graceful_shutdown(None);
            served.await
        }
    }
}

async fn listen(first: SocketAddr, next_free: bool) -> Result<TcpListener, Error> {
    let mut addr = first;
    for _ in 0..=100 {
        match TcpListener::bind(addr).await {
            Ok(l) => return Ok(l),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && next_free => match addr.port().checked_add(1) {
                Some(port) => addr.set_port(port),
                None => break,
            },
            Err(source) => return Err(Error::Listen { addr, source }),
        }
    }
    Err(Error::NoFreePort { first })
}
