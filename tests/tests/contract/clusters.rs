//! The clusters that cases share, each started when it is first asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as Plain};
use std::time::Duration;

use curfew_tests::cluster::{Cluster, Kind, Shape};
use curfew_tests::process;
use curfew_tests::wait::eventually;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    /// Jobs of all cases side by side; its nodes are left alone.
    Shared,
    /// Every node belongs to one case at a time, which drains it or takes it down.
    Nodes,
    /// One node with Nomad's own `max_kill_timeout`.
    Plain,
    /// One node; every call needs a token.
    Guarded,
    /// One node; HTTPS, and a client certificate is demanded.
    Tls,
}

impl Which {
    fn shape(self) -> Shape {
        match self {
            Which::Shared => Shape { nodes: 2, ..Shape::default() },
            Which::Nodes => Shape { nodes: 4, ..Shape::default() },
            Which::Guarded => Shape { nodes: 1, acl: true, ..Shape::default() },
            Which::Tls => Shape { nodes: 1, tls: true, ..Shape::default() },
            Which::Plain => Shape { nodes: 1, max_kill_timeout: None, ..Shape::default() },
        }
    }
}

pub struct Held {
    pub cluster: Arc<Cluster>,
    free: Plain<Vec<String>>,
    permits: Arc<Semaphore>,
}

type Slot = Arc<OnceCell<Arc<Held>>>;

#[derive(Default)]
pub struct Clusters(Plain<HashMap<(bool, Which), Slot>>);

impl Clusters {
    pub async fn get(&self, kind: Kind, which: Which) -> Arc<Held> {
        let slot = self.0.lock().unwrap().entry((kind == Kind::Real, which)).or_default().clone();
        let start = async || {
            let cluster = Arc::new(Cluster::start(kind, &which.shape()).await);
            let free = cluster.nodes().to_vec();
            Arc::new(Held { cluster, permits: Arc::new(Semaphore::new(free.len())), free: Plain::new(free) })
        };
        slot.get_or_init(start).await.clone()
    }

    pub fn take_down(&self) {
        self.0.lock().unwrap().clear();
    }
}

/// A node that is one case's own, well and empty when it is handed out.
pub struct Lease {
    pub name: String,
    pub id: String,
    held: Arc<Held>,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    pub async fn of(held: &Arc<Held>) -> Self {
        let permit = held.permits.clone().acquire_owned().await.unwrap();
        let name = held.free.lock().unwrap().remove(0);
        let mut lease = Self { name, id: String::new(), held: held.clone(), _permit: permit };
        lease.heal().await;
        lease
    }

    async fn stub(&self) -> Result<Value, String> {
        let nodes = self.held.cluster.api.try_get("/v1/nodes").await?;
        let mine = nodes.as_array().and_then(|l| l.iter().rev().find(|n| n["Name"] == self.name.as_str()));
        mine.cloned().ok_or_else(|| format!("no {} in {nodes}", self.name))
    }

    /// Whatever the last case left behind.
    async fn heal(&mut self) {
        let api = &self.held.cluster.api;
        let stub = self.stub().await.unwrap();
        self.id = stub["ID"].as_str().unwrap().to_owned();
        if stub["Status"] != "ready" {
            self.held.cluster.node_down(&self.name).await;
            self.held.cluster.node_up(&self.name).await;
        }
        for alloc in api.get(&format!("/v1/node/{}/allocations", self.id)).await.as_array().into_iter().flatten() {
            let text = |key: &str| alloc[key].as_str().unwrap_or_default();
            let its = [format!("NOMAD_ALLOC_ID={}", text("ID")), format!("NOMAD_JOB_ID={}", text("JobID"))];
            process::with_environment(&its).iter().for_each(|p| p.signal(Signal::KILL));
        }
        if stub["SchedulingEligibility"] != "eligible" || stub["Drain"] == true {
            let body = json!({ "NodeID": self.id, "DrainSpec": null, "MarkEligible": true });
            api.put(&format!("/v1/node/{}/drain", self.id), &body).await;
        }
        eventually(Duration::from_secs(60), "the node to be well", async || {
            let stub = self.stub().await?;
            let well = stub["Status"] == "ready" && stub["SchedulingEligibility"] == "eligible" && stub["Drain"] == false;
            if well { Ok(()) } else { Err(stub.to_string()) }
        })
        .await;
    }

    pub async fn node(&self) -> Result<Value, String> {
        self.held.cluster.api.try_get(&format!("/v1/node/{}", self.id)).await
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.held.free.lock().unwrap().push(std::mem::take(&mut self.name));
    }
}
