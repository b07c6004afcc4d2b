//! Allocations as the server keeps them.

use std::borrow::Cow;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeStruct, Serializer};
use serde_json::{Map, Value, json};

use super::task::{TaskState, TaskStates};
use crate::clock::rfc3339;
use crate::job::{GroupSpec, Job, JobKey, JobKind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Desired {
    Run,
    Stop,
}

impl Desired {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Stop => "stop",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientStatus {
    Pending,
    Running,
    Complete,
    Failed,
    Lost,
    Unknown,
}

impl ClientStatus {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }

    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Self::Complete | Self::Failed | Self::Lost)
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Transition {
    pub migrate: Option<bool>,
    pub reschedule: Option<bool>,
    pub force_reschedule: Option<bool>,
    pub no_shutdown_delay: Option<bool>,
    pub migrate_disable_placement: Option<bool>,
}

impl Transition {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn to_json(&self) -> Value {
        json!({
            "ForceReschedule": self.force_reschedule, "Migrate": self.migrate,
            "MigrateDisablePlacement": self.migrate_disable_placement, "NoShutdownDelay": self.no_shutdown_delay,
            "Reschedule": self.reschedule,
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Health {
    pub healthy: Option<bool>,
    pub at: i64,
    pub canary: bool,
    pub modify_index: u64,
}

impl Health {
    fn to_json(&self) -> Value {
        json!({
            "Healthy": self.healthy, "Canary": self.canary, "ModifyIndex": self.modify_index,
            "Timestamp": rfc3339(self.at).unwrap_or_else(|| "0001-01-01T00:00:00Z".into()),
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reschedule {
    pub at: i64,
    pub prev_alloc: String,
    pub prev_node: String,
    pub delay: i64,
}

#[derive(Debug, Clone)]
pub(crate) struct Alloc {
    pub id: String,
    pub eval_id: String,
    /// The index in brackets of the name.
    pub slot: usize,
    pub node_id: String,
    pub node_name: Arc<str>,
    pub job: Arc<Job>,
    pub group: usize,
    pub desired: Desired,
    pub desired_description: &'static str,
    pub client: ClientStatus,
    pub client_description: Cow<'static, str>,
    pub transition: Transition,
    pub tasks: Arc<TaskStates>,
    pub deployment_id: String,
    pub health: Option<Health>,
    pub followup_eval: String,
    pub next_alloc: String,
    pub prev_alloc: String,
    pub reschedules: Vec<Reschedule>,
    pub create_index: u64,
    pub modify_index: u64,
    pub alloc_modify_index: u64,
    pub create_time: i64,
    pub modify_time: i64,
    pub has_network: bool,
    /// When it became unknown, Unix nanoseconds.
    pub unknown_at: i64,
    pub nodes_in_dc: usize,
}

impl Alloc {
    pub(crate) fn spec(&self) -> &GroupSpec {
        // A placed allocation's group exists in the job it was placed with, and in-place updates keep it.
        &self.job.spec.groups[self.group]
    }

    pub(crate) fn job_key(&self) -> JobKey {
        self.job.key()
    }

    pub(crate) fn name(&self) -> String {
        format!("{}.{}[{}]", self.job.spec.id, self.spec().name, self.slot)
    }

    /// Nomad's "terminal": nothing is wanted of it any more, or its client says it is over.
    pub(crate) fn is_terminal(&self) -> bool {
        self.desired == Desired::Stop || self.client.is_terminal()
    }

    /// When its last task ended, as rescheduling counts it.
    pub(crate) fn last_event_time(&self) -> i64 {
        match self.tasks.values().map(|t| t.finished_at).max() {
            Some(at) if at > 0 => at,
            _ => self.modify_time,
        }
    }

    /// The list's row; `task_states=false` leaves the states out.
    pub(crate) fn stub(&self, task_states: bool, resources: bool) -> Stub<'_> {
        Stub { alloc: self, task_states, resources }
    }

    /// The whole allocation; events carry it without its job.
    pub(crate) fn to_json(&self, with_job: bool) -> Value {
        let mut m = Map::new();
        let mut put = |key: &str, value: Value| {
            m.insert(key.to_owned(), value);
        };
        put("ID", json!(self.id));
        put("Namespace", json!(self.job.spec.namespace));
        put("EvalID", json!(self.eval_id));
        put("Name", json!(self.name()));
        put("NodeID", json!(self.node_id));
        put("NodeName", json!(self.node_name));
        put("JobID", json!(self.job.spec.id));
        put("TaskGroup", json!(self.spec().name));
        if with_job {
            put("Job", self.job.to_json());
        }
        let group = self.spec();
        put("Resources", resources(group.cpu, group.memory_mb, group.disk_mb, group.memory_mb));
        put("SharedResources", resources(0, 0, group.disk_mb, 0));
        put(
            "TaskResources",
            Value::Object(group.tasks.iter().map(|t| (t.name.clone(), resources(t.cpu, t.memory_mb, 0, 0))).collect()),
        );
        put("AllocatedResources", self.allocated());
        put("Metrics", self.metrics());
        put("DesiredStatus", json!(self.desired.as_str()));
        if !self.desired_description.is_empty() {
            put("DesiredDescription", json!(self.desired_description));
        }
        if !self.transition.is_empty() {
            put("DesiredTransition", self.transition.to_json());
        }
        put("ClientStatus", json!(self.client.as_str()));
        if !self.client_description.is_empty() {
            put("ClientDescription", json!(self.client_description));
        }
        if !self.tasks.is_empty() {
            put("TaskStates", serde_json::to_value(self.tasks.as_ref()).unwrap_or(Value::Null));
        }
        for (key, value) in [
            ("DeploymentID", &self.deployment_id),
            ("FollowupEvalID", &self.followup_eval),
            ("NextAllocation", &self.next_alloc),
            ("PreviousAllocation", &self.prev_alloc),
        ] {
            if !value.is_empty() {
                put(key, json!(value));
            }
        }
        if let Some(h) = &self.health {
            put("DeploymentStatus", h.to_json());
        }
        if !self.reschedules.is_empty() {
            put("RescheduleTracker", self.tracker());
        }
        if self.has_network {
            put("NetworkStatus", json!({"Address": "", "AddressIPv6": "", "DNS": null, "InterfaceName": ""}));
        }
        put("SigningKeyID", json!("00000000-0000-0000-0000-000000000000"));
        put("CreateIndex", json!(self.create_index));
        put("ModifyIndex", json!(self.modify_index));
        put("AllocModifyIndex", json!(self.alloc_modify_index));
        put("CreateTime", json!(self.create_time));
        put("ModifyTime", json!(self.modify_time));
        Value::Object(m)
    }

    fn tracker(&self) -> Value {
        let events: Vec<Value> = self
            .reschedules
            .iter()
            .map(|r| json!({"Delay": r.delay, "PrevAllocID": r.prev_alloc, "PrevNodeID": r.prev_node, "RescheduleTime": r.at}))
            .collect();
        json!({"Events": events, "LastReschedule": "ok"})
    }

    fn allocated(&self) -> Value {
        let group = self.spec();
        let tasks: Map<String, Value> = group
            .tasks
            .iter()
            .map(|t| {
                let one = json!({
                    "Cpu": {"CpuShares": t.cpu, "ReservedCores": null}, "Devices": null,
                    "Memory": {"MemoryMB": t.memory_mb, "MemoryMaxMB": 0}, "Networks": null,
                });
                (t.name.clone(), one)
            })
            .collect();
        let lifecycles: Map<String, Value> = group
            .tasks
            .iter()
            .map(|t| {
                let hook = match t.hook {
                    crate::job::Hook::Main => Value::Null,
                    crate::job::Hook::Prestart => json!({"Hook": "prestart", "Sidecar": t.sidecar}),
                    crate::job::Hook::Poststart => json!({"Hook": "poststart", "Sidecar": t.sidecar}),
                    crate::job::Hook::Poststop => json!({"Hook": "poststop", "Sidecar": t.sidecar}),
                };
                (t.name.clone(), hook)
            })
            .collect();
        json!({
            "Shared": {"DiskMB": group.disk_mb, "Networks": null, "Ports": null},
            "TaskLifecycles": lifecycles, "Tasks": tasks,
        })
    }

    fn metrics(&self) -> Value {
        let dc = self.job.spec.datacenters.first().cloned().unwrap_or_default();
        // The system scheduler asks only whether it fits.
        let scores = match self.job.spec.kind {
            JobKind::Service | JobKind::Batch => {
                json!({"binpack": 0.01, "job-anti-affinity": 0, "node-affinity": 0, "node-reschedule-penalty": 0})
            }
            JobKind::System | JobKind::SysBatch => json!({"binpack": 0.01}),
        };
        json!({
            "AllocationTime": 50_000, "ClassExhausted": null, "ClassFiltered": null, "CoalescedFailures": 0,
            "ConstraintFiltered": null, "DimensionExhausted": null, "NodePool": self.job.spec.node_pool,
            "NodesAvailable": {dc: self.nodes_in_dc}, "NodesEvaluated": 1, "NodesExhausted": 0, "NodesFiltered": 0,
            "NodesInPool": self.nodes_in_dc, "QuotaExhausted": null, "ResourcesExhausted": null,
            "ScoreMetaData": [{"NodeID": self.node_id, "NormScore": 0.01, "Scores": scores}], "Scores": null,
        })
    }
}

pub(crate) fn resources(cpu: i64, memory: i64, disk: i64, memory_max: i64) -> Value {
    json!({
        "CPU": cpu, "Cores": 0, "Devices": null, "DiskMB": disk, "IOPS": 0, "MemoryMB": memory, "MemoryMaxMB": memory_max,
        "NUMA": null, "Networks": null, "SecretsMB": 0,
    })
}

pub(crate) struct Stub<'a> {
    alloc: &'a Alloc,
    task_states: bool,
    resources: bool,
}

impl Serialize for Stub<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let a = self.alloc;
        let mut m = s.serialize_struct("AllocListStub", 28)?;
        m.serialize_field("ID", &a.id)?;
        m.serialize_field("EvalID", &a.eval_id)?;
        m.serialize_field("Name", &a.name())?;
        m.serialize_field("Namespace", &a.job.spec.namespace)?;
        m.serialize_field("NodeID", &a.node_id)?;
        m.serialize_field("NodeName", a.node_name.as_ref())?;
        m.serialize_field("JobID", &a.job.spec.id)?;
        m.serialize_field("JobType", a.job.spec.kind.as_str())?;
        m.serialize_field("JobVersion", &a.job.version)?;
        m.serialize_field("TaskGroup", &a.spec().name)?;
        m.serialize_field("AllocatedResources", &self.resources.then(|| a.allocated()))?;
        m.serialize_field("DesiredStatus", a.desired.as_str())?;
        m.serialize_field("DesiredDescription", a.desired_description)?;
        m.serialize_field("ClientStatus", a.client.as_str())?;
        m.serialize_field("ClientDescription", a.client_description.as_ref())?;
        m.serialize_field("DesiredTransition", &a.transition.to_json())?;
        m.serialize_field("TaskStates", &States(self.task_states.then_some(a.tasks.as_ref()).filter(|t| !t.is_empty())))?;
        m.serialize_field("DeploymentStatus", &a.health.as_ref().map(Health::to_json))?;
        m.serialize_field("FollowupEvalID", &a.followup_eval)?;
        m.serialize_field("NextAllocation", &a.next_alloc)?;
        m.serialize_field("RescheduleTracker", &(!a.reschedules.is_empty()).then(|| a.tracker()))?;
        m.serialize_field("PreemptedAllocations", &None::<()>)?;
        m.serialize_field("PreemptedByAllocation", "")?;
        m.serialize_field("CreateIndex", &a.create_index)?;
        m.serialize_field("ModifyIndex", &a.modify_index)?;
        m.serialize_field("CreateTime", &a.create_time)?;
        m.serialize_field("ModifyTime", &a.modify_time)?;
        m.end()
    }
}

struct States<'a>(Option<&'a TaskStates>);

impl Serialize for States<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            None => s.serialize_none(),
            Some(states) => s.collect_map(states.iter().map(|(k, v): (&String, &TaskState)| (k, v))),
        }
    }
}
