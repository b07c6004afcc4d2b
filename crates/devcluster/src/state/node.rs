//! Nodes as the server keeps them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::clock::rfc3339;
use crate::config::NodeConfig;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeStatus {
    Ready,
    Down,
    Disconnected,
}

impl NodeStatus {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Down => "down",
            Self::Disconnected => "disconnected",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Drain {
    /// Nanoseconds; negative forces, zero waits without end.
    pub deadline: i64,
    pub ignore_system: bool,
    pub started_at: i64,
    /// Zero when there is none.
    pub force_at: i64,
}

impl Drain {
    fn to_json(&self) -> Value {
        let zero = || "0001-01-01T00:00:00Z".to_owned();
        json!({
            "Deadline": self.deadline, "IgnoreSystemJobs": self.ignore_system,
            "ForceDeadline": rfc3339(self.force_at).unwrap_or_else(zero),
            "StartedAt": rfc3339(self.started_at).unwrap_or_else(zero),
        })
    }
}

#[derive(Debug, Clone)]
pub(crate) struct LastDrain {
    pub started_at: i64,
    pub updated_at: i64,
    pub status: &'static str,
    pub meta: Value,
}

#[derive(Debug, Clone)]
pub(crate) struct NodeEvent {
    pub subsystem: &'static str,
    pub message: &'static str,
    pub details: Value,
    pub at: i64,
    pub create_index: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub id: String,
    pub name: Arc<str>,
    pub config: Arc<NodeConfig>,
    pub attributes: Arc<BTreeMap<String, String>>,
    pub status: NodeStatus,
    pub eligible: bool,
    pub drain: Option<Drain>,
    pub last_drain: Option<LastDrain>,
    pub events: Vec<NodeEvent>,
    pub create_index: u64,
    pub modify_index: u64,
    pub last_alloc_update: u64,
    pub last_missed_heartbeat: u64,
    pub status_updated_at: i64,
    pub registered_at: i64,
    pub version: Arc<str>,
    pub http_addr: Arc<str>,
}

/// Signals Nomad's Linux fingerprint lists.
const SIGNALS: &str = "SIGABRT,SIGALRM,SIGBUS,SIGCONT,SIGFPE,SIGHUP,SIGILL,SIGINT,SIGIO,SIGIOT,SIGKILL,SIGNULL,SIGPIPE,SIGPROF,SIGQUIT,\
                       SIGSEGV,SIGSTOP,SIGSYS,SIGTERM,SIGTRAP,SIGTSTP,SIGTTIN,SIGTTOU,SIGUSR1,SIGUSR2,SIGWINCH,SIGXCPU,SIGXFSZ";

pub(crate) fn attributes(config: &NodeConfig, version: &str) -> BTreeMap<String, String> {
    let mut a: BTreeMap<String, String> = [
        ("cpu.arch", std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64")),
        ("cpu.numcores", "2".into()),
        ("cpu.totalcompute", config.cpu.to_string()),
        ("kernel.name", std::env::consts::OS.into()),
        ("memory.totalbytes", (config.memory_mb * 1024 * 1024).to_string()),
        ("nomad.version", version.into()),
        ("nomad.revision", String::new()),
        ("os.name", std::env::consts::OS.into()),
        ("os.signals", SIGNALS.into()),
        ("unique.hostname", config.name.clone()),
        ("unique.network.ip-address", "127.0.0.1".into()),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into();
    for driver in &config.drivers {
        a.insert(format!("driver.{driver}"), "1".into());
    }
    a
}

impl Node {
    pub(crate) fn is_ready(&self) -> bool {
        self.status == NodeStatus::Ready && self.eligible && self.drain.is_none()
    }

    pub(crate) fn push_event(&mut self, subsystem: &'static str, message: &'static str, details: Value, at: i64, index: u64) {
        if self.events.len() >= 10 {
            self.events.remove(0);
        }
        self.events.push(NodeEvent { subsystem, message, details, at, create_index: index });
    }

    fn drivers(&self) -> Value {
        let at = rfc3339(self.registered_at);
        let map: Map<String, Value> = self
            .config
            .drivers
            .iter()
            .map(|d| {
                let one = json!({
                    "Attributes": {format!("driver.{d}"): "true"}, "Detected": true, "HealthDescription": "Healthy",
                    "Healthy": true, "UpdateTime": at,
                });
                (d.clone(), one)
            })
            .collect();
        Value::Object(map)
    }

    fn node_resources(&self) -> Value {
        json!({
            "Cpu": {"CpuShares": self.config.cpu, "ReservableCpuCores": [0, 1], "TotalCpuCores": 2}, "Devices": null,
            "Disk": {"DiskMB": 1_000_000}, "MaxDynamicPort": 32000, "Memory": {"MemoryMB": self.config.memory_mb},
            "MinDynamicPort": 20000,
            "Networks": [{"Mode": "host", "Device": "lo", "CIDR": "127.0.0.1/32", "IP": "127.0.0.1", "MBits": 1000}],
            "NodeNetworks": [{
                "Addresses": [{"Address": "127.0.0.1", "Alias": "default", "Family": "ipv4", "Gateway": "", "ReservedPorts": ""}],
                "Device": "lo", "MacAddress": "", "Mode": "host", "Speed": 1000,
            }],
            "Processors": {"Topology": {
                "Cores": [{"BaseSpeed": 2000, "Disable": false, "Grade": true, "GuessSpeed": 0, "ID": 0, "MaxSpeed": 0, "NodeID": 0, "SocketID": 0}],
                "Distances": null, "Nodes": [0], "OverrideTotalCompute": 0, "OverrideWitholdCompute": 0,
            }},
        })
    }

    fn last_drain_json(&self) -> Value {
        self.last_drain.as_ref().map_or(Value::Null, |d| {
            json!({
                "AccessorID": "token:acls-disabled", "Meta": d.meta, "StartedAt": rfc3339(d.started_at), "Status": d.status,
                "UpdatedAt": rfc3339(d.updated_at),
            })
        })
    }

    fn eligibility(&self) -> &'static str {
        if self.eligible { "eligible" } else { "ineligible" }
    }

    pub(crate) fn stub(&self, resources: bool) -> Value {
        let mut v = json!({
            "Address": "127.0.0.1", "CreateIndex": self.create_index, "Datacenter": self.config.datacenter,
            "Drain": self.drain.is_some(), "Drivers": self.drivers(), "HostVolumes": {}, "ID": self.id,
            "LastDrain": self.last_drain_json(), "ModifyIndex": self.modify_index, "Name": self.name,
            "NodeClass": self.config.node_class, "NodePool": self.config.node_pool,
            "SchedulingEligibility": self.eligibility(), "Status": self.status.as_str(), "StatusDescription": "",
            "Version": self.version,
        });
        if resources && let Some(m) = v.as_object_mut() {
            m.insert("NodeResources".into(), self.node_resources());
            m.insert("ReservedResources".into(), reserved());
        }
        v
    }

    pub(crate) fn to_json(&self) -> Value {
        let events: Vec<Value> = self
            .events
            .iter()
            .map(|e| {
                json!({
                    "CreateIndex": e.create_index, "Details": e.details, "Message": e.message, "Subsystem": e.subsystem,
                    "Timestamp": rfc3339(e.at),
                })
            })
            .collect();
        json!({
            "Attributes": self.attributes.as_ref(), "CSIControllerPlugins": {}, "CSINodePlugins": {}, "CgroupParent": "nomad.slice",
            "ComputedClass": "v1:1", "CreateIndex": self.create_index, "Datacenter": self.config.datacenter,
            "Drain": self.drain.is_some(), "DrainStrategy": self.drain.as_ref().map(Drain::to_json), "Drivers": self.drivers(),
            "Events": events, "GCVolumesOnNodeGC": false, "HTTPAddr": self.http_addr, "HostNetworks": null, "HostVolumes": {},
            "ID": self.id, "IdentitySigningKeyID": "00000000-0000-0000-0000-000000000000",
            "LastAllocUpdateIndex": self.last_alloc_update, "LastDrain": self.last_drain_json(),
            "LastMissedHeartbeatIndex": self.last_missed_heartbeat, "Links": {}, "Meta": self.config.meta,
            "ModifyIndex": self.modify_index, "Name": self.name, "NodeClass": self.config.node_class, "NodeMaxAllocs": 0,
            "NodePool": self.config.node_pool, "NodeResources": self.node_resources(), "ReservedResources": reserved(),
            "SchedulingEligibility": self.eligibility(), "SecretID": "", "Status": self.status.as_str(),
            "StatusDescription": "", "StatusUpdatedAt": self.status_updated_at / 1_000_000_000, "TLSEnabled": false,
        })
    }
}

fn reserved() -> Value {
    json!({
        "Cpu": {"CpuShares": 0, "ReservedCpuCores": null}, "Disk": {"DiskMB": 0}, "Memory": {"MemoryMB": 0},
        "Networks": {"ReservedHostPorts": ""},
    })
}
