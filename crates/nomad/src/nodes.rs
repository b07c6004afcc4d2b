//! Nodes, as far as stops, drains and warnings need them.

use std::collections::BTreeMap;

use std::time::Duration;

use curfew_core::drain::DrainMeta;
use curfew_core::spec::JobSpec;
use curfew_core::{Allocation, NodeId, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::client::{Call, Nomad, found};
use crate::error::Error;
use crate::route::Route;
use crate::wire::{self, AllocationWire};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeStatus {
    Initializing,
    Ready,
    Down,
    Disconnected,
    Other(String),
}

impl NodeStatus {
    pub fn as_str(&self) -> &str {
        match self {
            NodeStatus::Initializing => "initializing",
            NodeStatus::Ready => "ready",
            NodeStatus::Down => "down",
            NodeStatus::Disconnected => "disconnected",
            NodeStatus::Other(word) => word,
        }
    }
}

/// What a list and an event show of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStub {
    pub id: NodeId,
    pub name: String,
    pub datacenter: String,
    pub pool: String,
    pub class: String,
    pub status: NodeStatus,
    pub eligible: bool,
    pub draining: bool,
    /// Drivers that were found and are healthy.
    pub drivers: Vec<String>,
    /// Every driver that its agent knows, found or not.
    pub known_drivers: Vec<String>,
    /// Of its agent, as in `1.10.5`.
    pub version: String,
    /// The drain that is under way, else the last one.
    pub last_drain: Option<LastDrain>,
    pub modify_index: u64,
}

/// What Nomad keeps of a node's drain, also after it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastDrain {
    pub started_at: Option<Timestamp>,
    /// Somebody ended it before it was complete.
    pub cancelled: bool,
    /// When Curfew made it.
    pub curfew: Option<DrainMeta>,
    pub meta: BTreeMap<String, String>,
}

/// How Nomad is to drain a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainDeadline {
    /// Everything is told at once (design fact 18).
    Now,
    /// What is left is told then.
    After(Duration),
    /// What does not leave in its turn stays.
    Never,
}

/// A node in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub stub: NodeStub,
    /// Host and port of its agent's HTTP API; empty when it has none.
    pub http_addr: String,
    pub tls: bool,
    pub meta: BTreeMap<String, String>,
    pub attributes: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NodeWire {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    datacenter: String,
    #[serde(default)]
    node_pool: String,
    status: String,
    #[serde(default)]
    scheduling_eligibility: String,
    #[serde(default)]
    drain: bool,
    #[serde(default)]
    node_class: String,
    drivers: Option<BTreeMap<String, Option<DriverWire>>>,
    last_drain: Option<LastDrainWire>,
    #[serde(rename = "HTTPAddr", default)]
    http_addr: String,
    #[serde(rename = "TLSEnabled", default)]
    tls: bool,
    meta: Option<BTreeMap<String, String>>,
    attributes: Option<BTreeMap<String, String>>,
    /// In lists and events; a node in full has it among its attributes.
    #[serde(default)]
    version: String,
    #[serde(default)]
    modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LastDrainWire {
    started_at: Option<String>,
    #[serde(default)]
    status: String,
    meta: Option<BTreeMap<String, String>>,
}

impl From<LastDrainWire> for LastDrain {
    fn from(w: LastDrainWire) -> Self {
        let meta = w.meta.unwrap_or_default();
        Self {
            // For people only.
            started_at: wire::instant(w.started_at.as_deref()).ok().flatten(),
            cancelled: w.status == "canceled",
            curfew: DrainMeta::read(&meta),
            meta,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DriverWire {
    #[serde(default)]
    detected: bool,
    #[serde(default)]
    healthy: bool,
}

impl From<NodeWire> for Node {
    fn from(w: NodeWire) -> Self {
        let status = match w.status.as_str() {
            "initializing" => NodeStatus::Initializing,
            "ready" => NodeStatus::Ready,
            "down" => NodeStatus::Down,
            "disconnected" => NodeStatus::Disconnected,
            _ => NodeStatus::Other(w.status),
        };
        let usable = |d: &Option<DriverWire>| d.as_ref().is_some_and(|d| d.detected && d.healthy);
        let known = w.drivers.unwrap_or_default();
        let attributes = w.attributes.unwrap_or_default();
        let version = if w.version.is_empty() { attributes.get("nomad.version").cloned().unwrap_or_default() } else { w.version };
        let drivers = known.iter().filter(|(_, d)| usable(d)).map(|(name, _)| name.clone()).collect();
        Self {
            stub: NodeStub {
                id: w.id.into(),
                name: w.name,
                datacenter: w.datacenter,
                pool: w.node_pool,
                class: w.node_class,
                status,
                eligible: w.scheduling_eligibility != "ineligible",
                draining: w.drain,
                drivers,
                known_drivers: known.into_keys().collect(),
                version,
                last_drain: w.last_drain.map(LastDrain::from),
                modify_index: w.modify_index,
            },
            http_addr: w.http_addr,
            tls: w.tls,
            meta: w.meta.unwrap_or_default(),
            attributes,
        }
    }
}

impl Nomad {
    /// All nodes, or those of a filter in Nomad's filter language.
    pub async fn nodes(&self, filter: Option<&str>) -> Result<Vec<NodeStub>, Error> {
        let mut call = Call::new(Route::Nodes, &[]);
        if let Some(filter) = filter {
            call = call.query("filter", filter);
        }
        let nodes: Option<Vec<NodeWire>> = self.send(call).await?.json()?;
        Ok(nodes.unwrap_or_default().into_iter().map(|w| Node::from(w).stub).collect())
    }

    pub async fn node(&self, id: &NodeId) -> Result<Option<Node>, Error> {
        let call = Call::new(Route::Node, &[id.as_str()]);
        let Some(answer) = found(self.send(call).await, &["node not found"])? else { return Ok(None) };
        Ok(Some(answer.json::<NodeWire>()?.into()))
    }

    /// When this node's client last took its own measure, by its clock; it does so every second unless its
    /// `telemetry.collection_interval` says otherwise. Nomad forwards the question as it forwards a signal, and it has the deadline
    /// of one. `None` from a client that has only just started.
    pub async fn client_clock(&self, id: &NodeId) -> Result<Option<Timestamp>, Error> {
        let call = Call::new(Route::ClientStats, &[]).query("node_id", id.as_str()).timeout(self.config().signal_timeout);
        let stats: Value = self.send(call).await?.json()?;
        Ok(stats["Timestamp"].as_i64().map(|ns| Timestamp::from_micros(ns.div_euclid(1000))))
    }

    /// Every allocation of a node with the job that it runs. Not knowing is not "nothing": one that cannot be read, that comes
    /// without its job, or that is left out because the token may not see it, as far as that shows, is an error.
    pub async fn node_allocations(&self, id: &NodeId) -> Result<Vec<(Allocation, JobSpec)>, Error> {
        let answer = self.send(Call::new(Route::NodeAllocations, &[id.as_str()])).await?;
        let list: Option<Vec<&RawValue>> =
            serde_json::from_slice(&answer.body).map_err(|e| answer.unlike_nomad(&e.to_string()))?;
        let read = |raw: &RawValue| {
            let (alloc, job) = wire::allocation(serde_json::from_str::<AllocationWire>(raw.get()).map_err(|e| e.to_string())?)?;
            let job = job.ok_or_else(|| format!("allocation {} has no job", alloc.id))?;
            Ok((alloc, job))
        };
        let all: Result<Vec<_>, String> = list.unwrap_or_default().into_iter().map(read).collect();
        let all = all.map_err(|why| answer.unlike_nomad(&why))?;
        // The index is of the newest allocation there, shown or not. An empty list's may be the whole table's, which says nothing.
        if all.iter().map(|(alloc, _)| alloc.modify_index).max().is_some_and(|newest| answer.index() > newest) {
            return Err(self.hidden(answer.asked, Route::NodeAllocations, "some of its allocations are hidden from this token"));
        }
        Ok(all)
    }

    /// Drains a node, or changes the drain that is under way. The node takes no allocations from then on. Safe to repeat.
    pub async fn drain_node(
        &self,
        id: &NodeId,
        deadline: DrainDeadline,
        ignore_system: bool,
        meta: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let nanos: i64 = match deadline {
            DrainDeadline::Now => -1,
            DrainDeadline::Never => 0,
            // Zero would mean never.
            DrainDeadline::After(d) => i64::try_from(d.as_nanos()).unwrap_or(i64::MAX).max(1),
        };
        let body = json!({
            "NodeID": id, "DrainSpec": { "Deadline": nanos, "IgnoreSystemJobs": ignore_system }, "MarkEligible": false, "Meta": meta,
        });
        self.send(Call::new(Route::NodeDrain, &[id.as_str()]).json(&body)).await.map(|_| ())
    }

    /// Ends whatever drain is under way; the node takes allocations again when `eligible`. Safe to repeat.
    pub async fn undrain_node(&self, id: &NodeId, eligible: bool) -> Result<(), Error> {
        let body = json!({ "NodeID": id, "DrainSpec": Value::Null, "MarkEligible": eligible });
        self.send(Call::new(Route::NodeDrain, &[id.as_str()]).json(&body)).await.map(|_| ())
    }

    /// Whether a node takes allocations. Nomad refuses to make one eligible that drains.
    pub async fn set_eligibility(&self, id: &NodeId, eligible: bool) -> Result<(), Error> {
        let word = if eligible { "eligible" } else { "ineligible" };
        let body = json!({ "NodeID": id, "Eligibility": word });
        self.send(Call::new(Route::NodeEligibility, &[id.as_str()]).json(&body)).await.map(|_| ())
    }
}
