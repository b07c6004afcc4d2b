//! Deployments: the way from one job version to the next.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::clock::rfc3339;
use crate::job::JobKey;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeploymentStatus {
    Running,
    Paused,
    Failed,
    Successful,
    Cancelled,
}

impl DeploymentStatus {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Failed => "failed",
            Self::Successful => "successful",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) fn is_active(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GroupRollout {
    pub auto_revert: bool,
    pub auto_promote: bool,
    pub progress_deadline: i64,
    /// Unix nanoseconds, zero when there is none.
    pub require_progress_by: i64,
    pub promoted: bool,
    pub placed_canaries: Vec<String>,
    pub desired_canaries: usize,
    pub desired_total: usize,
    pub placed: usize,
    pub healthy: usize,
    pub unhealthy: usize,
}

#[derive(Debug, Clone)]
pub(crate) struct Deployment {
    pub id: String,
    pub job: JobKey,
    pub job_version: u64,
    pub job_modify_index: u64,
    pub job_spec_modify_index: u64,
    pub job_create_index: u64,
    pub groups: BTreeMap<String, GroupRollout>,
    pub status: DeploymentStatus,
    pub description: String,
    pub priority: i64,
    pub create_index: u64,
    pub modify_index: u64,
    pub create_time: i64,
    pub modify_time: i64,
}

impl Deployment {
    pub(crate) fn requires_promotion(&self) -> bool {
        self.status.is_active() && self.groups.values().any(|g| g.desired_canaries > 0 && !g.promoted)
    }

    pub(crate) fn running_description(&self) -> &'static str {
        let waiting = || self.groups.values().filter(|g| g.desired_canaries > 0 && !g.promoted);
        match waiting().next() {
            None => "Deployment is running",
            Some(_) if waiting().all(|g| g.auto_promote) => "Deployment is running pending automatic promotion",
            Some(_) => "Deployment is running but requires manual promotion",
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let groups: Map<String, Value> = self
            .groups
            .iter()
            .map(|(name, g)| {
                let canaries = if g.placed_canaries.is_empty() { Value::Null } else { json!(g.placed_canaries) };
                let one = json!({
                    "AutoPromote": g.auto_promote, "AutoRevert": g.auto_revert, "DesiredCanaries": g.desired_canaries,
                    "DesiredTotal": g.desired_total, "HealthyAllocs": g.healthy, "PlacedAllocs": g.placed,
                    "PlacedCanaries": canaries, "ProgressDeadline": g.progress_deadline, "Promoted": g.promoted,
                    "RequireProgressBy": rfc3339(g.require_progress_by), "UnhealthyAllocs": g.unhealthy,
                });
                (name.clone(), one)
            })
            .collect();
        json!({
            "CreateIndex": self.create_index, "CreateTime": self.create_time, "EvalPriority": self.priority, "ID": self.id,
            "IsMultiregion": false, "JobCreateIndex": self.job_create_index, "JobID": self.job.1,
            "JobModifyIndex": self.job_modify_index, "JobSpecModifyIndex": self.job_spec_modify_index,
            "JobVersion": self.job_version, "ModifyIndex": self.modify_index, "ModifyTime": self.modify_time,
            "Namespace": self.job.0, "Status": self.status.as_str(), "StatusDescription": self.description,
            "TaskGroups": groups,
        })
    }
}
