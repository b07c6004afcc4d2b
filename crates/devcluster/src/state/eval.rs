//! Evaluations: the reason to look at a job again.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::job::JobKey;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EvalStatus {
    Pending,
    Blocked,
    Complete,
    Cancelled,
}

impl EvalStatus {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Blocked => "blocked",
            Self::Complete => "complete",
            Self::Cancelled => "canceled",
        }
    }

    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Self::Complete | Self::Cancelled)
    }
}

/// What a plan did to one group, as `PlanAnnotations` counts it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct GroupUpdates {
    pub place: usize,
    pub stop: usize,
    pub migrate: usize,
    pub ignore: usize,
    pub in_place: usize,
    pub destructive: usize,
    pub canary: usize,
    pub disconnect: usize,
    pub reconnect: usize,
    pub reschedule_now: usize,
    pub reschedule_later: usize,
}

impl GroupUpdates {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "Canary": self.canary, "DestructiveUpdate": self.destructive, "Disconnect": self.disconnect, "Ignore": self.ignore,
            "InPlaceUpdate": self.in_place, "Migrate": self.migrate, "Place": self.place, "Preemptions": 0,
            "Reconnect": self.reconnect, "RescheduleLater": self.reschedule_later, "RescheduleNow": self.reschedule_now,
            "Stop": self.stop,
        })
    }
}

/// Why a group could not be placed.
#[derive(Debug, Clone, Default)]
pub(crate) struct PlacementFailure {
    pub evaluated: usize,
    pub filtered: usize,
    pub exhausted: usize,
    pub available: BTreeMap<String, usize>,
    pub in_pool: usize,
    pub pool: String,
    pub constraint_filtered: BTreeMap<String, usize>,
    pub dimension_exhausted: BTreeMap<String, usize>,
    pub coalesced: usize,
    /// By task: MHz and MiB that were asked for in vain, by all that found no place.
    pub resources_exhausted: BTreeMap<String, (i64, i64)>,
}

impl PlacementFailure {
    /// An allocation that found no place for want of a dimension: what each of its tasks asked for.
    pub(crate) fn lacks(&mut self, dimension: &str, asked: &BTreeMap<String, (i64, i64)>) {
        for (task, (cpu, memory)) in asked {
            let sum = self.resources_exhausted.entry(task.clone()).or_default();
            match dimension {
                "cpu" => sum.0 = sum.0.saturating_add(*cpu),
                _ => sum.1 = sum.1.saturating_add(*memory),
            }
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let opt = |m: &BTreeMap<String, usize>| if m.is_empty() { Value::Null } else { json!(m) };
        let asked: Map<String, Value> = self
            .resources_exhausted
            .iter()
            .map(|(t, (cpu, memory))| (t.clone(), super::alloc::resources(*cpu, *memory, 0, 0)))
            .collect();
        let exhausted = if asked.is_empty() { Value::Null } else { Value::Object(asked) };
        json!({
            "AllocationTime": 20_000, "ClassExhausted": null, "ClassFiltered": null, "CoalescedFailures": self.coalesced,
            "ConstraintFiltered": opt(&self.constraint_filtered), "DimensionExhausted": opt(&self.dimension_exhausted),
            "NodePool": self.pool, "NodesAvailable": self.available, "NodesEvaluated": self.evaluated,
            "NodesExhausted": self.exhausted, "NodesFiltered": self.filtered, "NodesInPool": self.in_pool,
            "QuotaExhausted": null, "ResourcesExhausted": exhausted, "ScoreMetaData": null, "Scores": null,
        })
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Eval {
    pub id: String,
    pub job: JobKey,
    pub kind: &'static str,
    pub priority: i64,
    pub triggered_by: &'static str,
    pub job_modify_index: u64,
    pub node_id: String,
    pub deployment_id: String,
    pub status: EvalStatus,
    pub status_description: String,
    /// Unix nanoseconds; zero is "now".
    pub wait_until: i64,
    pub previous: String,
    pub next: String,
    pub blocked: String,
    pub updates: Option<BTreeMap<String, GroupUpdates>>,
    pub queued: Option<BTreeMap<String, usize>>,
    pub failures: BTreeMap<String, PlacementFailure>,
    pub snapshot_index: u64,
    pub create_index: u64,
    pub modify_index: u64,
    pub create_time: i64,
    pub modify_time: i64,
}

impl Eval {
    /// Whether a node fits some group as far as its constraints go: Nomad looks again only at what a class of nodes could take.
    pub(crate) fn waits_for_room(&self) -> bool {
        let fits = |f: &PlacementFailure| f.filtered < f.evaluated || f.constraint_filtered.contains_key("distinct_hosts");
        self.failures.is_empty() || self.failures.values().any(fits)
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut m = Map::new();
        let mut put = |key: &str, value: Value| {
            m.insert(key.to_owned(), value);
        };
        put("ID", json!(self.id));
        put("Namespace", json!(self.job.0));
        put("JobID", json!(self.job.1));
        put("Type", json!(self.kind));
        put("Priority", json!(self.priority));
        put("TriggeredBy", json!(self.triggered_by));
        put("Status", json!(self.status.as_str()));
        put("CreateIndex", json!(self.create_index));
        put("ModifyIndex", json!(self.modify_index));
        put("CreateTime", json!(self.create_time));
        put("ModifyTime", json!(self.modify_time));
        if self.job_modify_index > 0 {
            put("JobModifyIndex", json!(self.job_modify_index));
        }
        if self.snapshot_index > 0 {
            put("SnapshotIndex", json!(self.snapshot_index));
        }
        for (key, value) in [
            ("NodeID", &self.node_id),
            ("DeploymentID", &self.deployment_id),
            ("StatusDescription", &self.status_description),
            ("PreviousEval", &self.previous),
            ("NextEval", &self.next),
            ("BlockedEval", &self.blocked),
        ] {
            if !value.is_empty() {
                put(key, json!(value));
            }
        }
        if let Some(at) = crate::clock::rfc3339(self.wait_until) {
            put("WaitUntil", json!(at));
        }
        if let Some(updates) = &self.updates {
            let groups: Map<String, Value> = updates.iter().map(|(k, v)| (k.clone(), v.to_json())).collect();
            let groups = if groups.is_empty() { Value::Null } else { Value::Object(groups) };
            put("PlanAnnotations", json!({"DesiredTGUpdates": groups, "PreemptedAllocs": null}));
        }
        if let Some(queued) = self.queued.as_ref().filter(|q| !q.is_empty()) {
            put("QueuedAllocations", json!(queued));
        }
        if !self.failures.is_empty() {
            let failures: Map<String, Value> = self.failures.iter().map(|(k, v)| (k.clone(), v.to_json())).collect();
            put("FailedTGAllocs", Value::Object(failures));
        }
        Value::Object(m)
    }
}
