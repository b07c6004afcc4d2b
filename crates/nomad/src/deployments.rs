//! Deployments: those that run, those of a job, one anew, and the calls that promote or fail one.

use std::collections::BTreeMap;
use std::time::Duration;

use curfew_core::JobKey;
use curfew_core::deployment::{Deployment, DeploymentStatus, GroupProgress};
use serde::Deserialize;
use serde_json::json;

use crate::client::{Call, Nomad, found};
use crate::error::Error;
use crate::route::Route;
use crate::wire;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeploymentWire {
    #[serde(rename = "ID")]
    id: String,
    namespace: String,
    #[serde(rename = "JobID")]
    job_id: String,
    #[serde(default)]
    job_version: u64,
    status: String,
    #[serde(default)]
    status_description: String,
    #[serde(default)]
    create_index: u64,
    #[serde(default)]
    modify_index: u64,
    /// Nanoseconds; older servers send none.
    #[serde(default)]
    modify_time: i64,
    task_groups: Option<BTreeMap<String, GroupWire>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct GroupWire {
    /// Nanoseconds.
    progress_deadline: u64,
    require_progress_by: Option<String>,
    promoted: bool,
    auto_promote: bool,
    desired_canaries: u64,
    desired_total: u64,
    placed_allocs: u64,
    healthy_allocs: u64,
    unhealthy_allocs: u64,
}

impl From<DeploymentWire> for Deployment {
    fn from(w: DeploymentWire) -> Self {
        let group = |g: GroupWire| GroupProgress {
            progress_deadline: Duration::from_nanos(g.progress_deadline),
            // An instant that cannot be read is no reason to fail anything.
            require_progress_by: wire::instant(g.require_progress_by.as_deref()).unwrap_or_default(),
            desired: g.desired_total,
            placed: g.placed_allocs,
            healthy: g.healthy_allocs,
            unhealthy: g.unhealthy_allocs,
            canaries: g.desired_canaries,
            promoted: g.promoted,
            auto_promote: g.auto_promote,
        };
        Self {
            id: w.id,
            key: JobKey::new(w.namespace, w.job_id),
            job_version: w.job_version,
            status: match w.status.as_str() {
                "running" => DeploymentStatus::Running,
                "paused" => DeploymentStatus::Paused,
                "successful" => DeploymentStatus::Successful,
                "failed" => DeploymentStatus::Failed,
                "cancelled" => DeploymentStatus::Cancelled,
                _ => DeploymentStatus::Other,
            },
            description: w.status_description,
            create_index: w.create_index,
            modify_index: w.modify_index,
            modified_at: wire::moment(w.modify_time),
            groups: w.task_groups.unwrap_or_default().into_iter().map(|(name, g)| (name, group(g))).collect(),
        }
    }
}

impl Nomad {
    /// Those that run, in all namespaces.
    pub async fn running_deployments(&self) -> Result<Vec<Deployment>, Error> {
        let call = Call::new(Route::Deployments, &[]).query("namespace", "*").query("filter", "Status == \"running\"");
        let all: Option<Vec<DeploymentWire>> = self.send(call).await?.json()?;
        Ok(all.unwrap_or_default().into_iter().map(Deployment::from).collect())
    }

    pub async fn deployment(&self, id: &str) -> Result<Option<Deployment>, Error> {
        let call = Call::new(Route::Deployment, &[id]);
        let Some(answer) = found(self.send(call).await, &["deployment not found"])? else { return Ok(None) };
        Ok(answer.json::<Option<DeploymentWire>>()?.map(Deployment::from))
    }

    /// Fails a deployment; Nomad rolls it back like one that failed by itself (design fact 17). One that has ended already is
    /// refused in Nomad's words.
    pub async fn fail_deployment(&self, id: &str) -> Result<(), Error> {
        self.send(Call::new(Route::FailDeployment, &[id])).await.map(|_| ())
    }

    /// Those of the job as it was created last, in no order. An unknown job has none.
    pub async fn job_deployments(&self, key: &JobKey) -> Result<Vec<Deployment>, Error> {
        let call = Call::new(Route::JobDeployments, &[key.job.as_str()]).namespace(&key.namespace);
        let all: Option<Vec<DeploymentWire>> = self.send(call).await?.json()?;
        Ok(all.unwrap_or_default().into_iter().map(Deployment::from).collect())
    }

    /// Promotes the canaries of every group. Nomad refuses it while one of them is not healthy.
    pub async fn promote_deployment(&self, id: &str) -> Result<(), Error> {
        let body = json!({ "DeploymentID": id, "All": true });
        self.send(Call::new(Route::PromoteDeployment, &[id]).json(&body)).await.map(|_| ())
    }
}
