//! A whole cluster, embedded or real, behind one face.

mod dev;
mod real;

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Access, Api, segment};
use crate::certificates::Certificates;
use crate::wait;
pub use real::nomad_binary;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `curfew dev --cluster-only`.
    Dev,
    /// The binary that `CURFEW_TEST_NOMAD` names.
    Real,
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    pub nodes: usize,
    /// `None`: Nomad's default of 30 s.
    pub max_kill_timeout: Option<Duration>,
    /// Calls need a token.
    pub acl: bool,
    /// HTTPS, and a client certificate is demanded.
    pub tls: bool,
    /// A real server waits for peers that never come.
    pub leaderless: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { nodes: 2, max_kill_timeout: Some(Duration::from_secs(365 * 24 * 3600)), acl: false, tls: false, leaderless: false }
    }
}

pub struct Cluster {
    pub kind: Kind,
    pub api: Api,
    nodes: Vec<String>,
    version: String,
    inner: Inner,
}

enum Inner {
    Dev(dev::Dev),
    Real(real::Real),
}

impl Cluster {
    /// Up, with every node ready.
    pub async fn start(kind: Kind, shape: &Shape) -> Self {
        let certificates = shape.tls.then(|| Arc::new(Certificates::new()));
        let (inner, api) = match kind {
            Kind::Dev => {
                let (dev, api) = dev::Dev::start(shape, certificates).await;
                (Inner::Dev(dev), api)
            }
            Kind::Real => {
                let (real, api) = real::Real::start(shape, certificates).await;
                (Inner::Real(real), if shape.acl { bootstrap(api).await } else { api })
            }
        };
        let mut cluster = Self { kind, api, nodes: vec![], version: String::new(), inner };
        cluster.nodes_ready(shape.nodes).await;
        let nodes = cluster.api.get("/v1/nodes").await;
        cluster.nodes = nodes.as_array().unwrap().iter().filter_map(|n| n["Name"].as_str().map(str::to_owned)).collect();
        cluster.nodes.sort();
        let agent = cluster.api.get("/v1/agent/self").await;
        let version = &agent["config"]["Version"];
        cluster.version = version["Version"].as_str().or(version.as_str()).unwrap_or("unknown").to_owned();
        cluster
    }

    pub fn addr(&self) -> &str {
        &self.api.addr
    }

    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether its Nomad is `major.minor.patch` or later. What shows no version counts as new.
    pub fn is_at_least(&self, wanted: (u32, u32, u32)) -> bool {
        let mut parts = self.version.split(['.', '-', '+']).map(str::parse::<u32>);
        let mut next = || parts.next().and_then(Result::ok);
        match (next(), next(), next()) {
            (Some(a), Some(b), Some(c)) => (a, b, c) >= wanted,
            _ => true,
        }
    }

    pub async fn nodes_ready(&self, count: usize) {
        wait::eventually(Duration::from_secs(90), &format!("{count} ready nodes"), async || {
            let nodes = self.api.try_get("/v1/nodes").await?;
            let ready = |n: &&Value| n["Status"] == "ready" && n["Drivers"]["raw_exec"]["Healthy"] != false;
            let ready = nodes.as_array().map_or(0, |l| l.iter().filter(ready).count());
            if ready >= count { Ok(()) } else { Err(format!("{ready} ready in {nodes}; {}", self.log())) }
        })
        .await;
    }

    /// The client agent dies at once; its tasks live on.
    pub async fn node_down(&self, name: &str) {
        match &self.inner {
            Inner::Dev(_) => drop(self.api.put(&format!("/dev/v1/node/{name}/down"), &Value::Null).await),
            Inner::Real(real) => real.kill_agent(name),
        }
    }

    pub async fn node_up(&self, name: &str) {
        match &self.inner {
            Inner::Dev(_) => drop(self.api.put(&format!("/dev/v1/node/{name}/up"), &Value::Null).await),
            Inner::Real(real) => real.start_agent(name),
        }
    }

    /// One more node, ready.
    pub async fn node_joins(&self, name: &str, datacenter: &str) {
        match &self.inner {
            Inner::Dev(_) => {
                drop(self.api.put(&format!("/dev/v1/node/{name}/join"), &json!({ "Datacenter": datacenter })).await);
            }
            Inner::Real(real) => real.add_client(name, datacenter),
        }
        wait::eventually(Duration::from_secs(90), &format!("node {name} to be ready"), async || {
            let nodes = self.api.try_get("/v1/nodes").await?;
            let ready = nodes.as_array().is_some_and(|l| l.iter().any(|n| n["Name"] == name && n["Status"] == "ready"));
            if ready { Ok(()) } else { Err(nodes.to_string()) }
        })
        .await;
    }

    /// Its agent dies, and nobody knows it any more; its tasks live on.
    pub async fn node_leaves(&self, name: &str) {
        self.node_down(name).await;
        let nodes = self.api.get("/v1/nodes").await;
        let node = nodes.as_array().unwrap().iter().find(|n| n["Name"] == name);
        let id = node.and_then(|n| n["ID"].as_str()).unwrap_or_else(|| panic!("no node {name}"));
        self.api.put(&format!("/v1/node/{id}/purge"), &Value::Null).await;
    }

    /// The server stops answering: a real one is killed, the embedded one loses its leader.
    pub async fn server_down(&self) {
        match &self.inner {
            Inner::Dev(_) => drop(self.api.put("/dev/v1/leader/lose", &Value::Null).await),
            Inner::Real(real) => real.kill_agent(real::SERVER),
        }
    }

    pub async fn server_up(&self) {
        match &self.inner {
            Inner::Dev(_) => drop(self.api.put("/dev/v1/leader/elect", &Value::Null).await),
            Inner::Real(real) => real.start_agent(real::SERVER),
        }
        self.nodes_ready(self.nodes.len()).await;
    }

    /// Everything up again, whatever a scenario left behind.
    pub async fn heal(&self) {
        match &self.inner {
            Inner::Dev(_) => drop(self.api.put("/dev/v1/heal", &Value::Null).await),
            Inner::Real(real) => real.start_missing(),
        }
        self.nodes_ready(self.nodes.len()).await;
        self.end_all().await;
        let nodes = self.api.get("/v1/nodes").await;
        for n in nodes.as_array().unwrap().iter().filter(|n| n["SchedulingEligibility"] != "eligible") {
            let path = format!("/v1/node/{}/drain", n["ID"].as_str().unwrap());
            self.api.put(&path, &json!({ "DrainSpec": null, "MarkEligible": true })).await;
        }
    }

    /// What earlier scenarios left running would be drained and counted by later ones.
    async fn end_all(&self) {
        let jobs = self.api.get("/v1/jobs?namespace=*").await;
        for job in jobs.as_array().unwrap().iter().filter(|j| j["Stop"] == false) {
            let (id, space) = (job["ID"].as_str().unwrap(), job["Namespace"].as_str().unwrap());
            self.api.delete(&format!("/v1/job/{}?namespace={space}", segment(id))).await;
        }
        wait::eventually(Duration::from_secs(60), "what earlier scenarios left to end", async || {
            let all = self.api.try_get("/v1/allocations?namespace=*&task_states=false").await?;
            let open = |a: &&Value| a["ClientStatus"] == "running" || a["ClientStatus"] == "pending";
            let open: Vec<&Value> = all.as_array().into_iter().flatten().filter(open).collect();
            for a in &open {
                let path = format!("/v1/client/allocation/{}/signal", a["ID"].as_str().unwrap_or_default());
                // Not each of them has a task that runs.
                let _ = self.api.call(Method::PUT, &path, Some(&json!({ "Signal": "SIGKILL" }))).await;
            }
            if open.is_empty() { Ok(()) } else { Err(format!("{} live", open.len())) }
        })
        .await;
    }

    /// The end of its logs, for a failure's message.
    pub fn log(&self) -> String {
        match &self.inner {
            Inner::Dev(dev) => dev.log(),
            Inner::Real(real) => real.log(),
        }
    }
}

/// A server without a leader.
pub async fn leaderless(kind: Kind) -> (Leaderless, String) {
    match kind {
        Kind::Dev => {
            let cluster = Cluster::start(kind, &Shape { nodes: 1, ..Shape::default() }).await;
            cluster.server_down().await;
            let addr = cluster.addr().to_owned();
            (Leaderless { _inner: cluster.inner }, addr)
        }
        Kind::Real => {
            let shape = Shape { nodes: 0, leaderless: true, ..Shape::default() };
            let (real, api) = real::Real::start(&shape, None).await;
            (Leaderless { _inner: Inner::Real(real) }, api.addr)
        }
    }
}

pub struct Leaderless {
    _inner: Inner,
}

async fn leader(api: &Api) {
    wait::eventually(Duration::from_secs(60), "a leader", async || {
        api.try_get("/v1/status/leader").await.and_then(|l| if l == "" { Err("none".into()) } else { Ok(()) })
    })
    .await;
}

/// The same API with the first management token.
async fn bootstrap(api: Api) -> Api {
    leader(&api).await;
    let token = api.put("/v1/acl/bootstrap", &Value::Null).await["SecretID"].as_str().map(str::to_owned);
    Api::with(api.addr.clone(), Access { token, ..api.access })
}
