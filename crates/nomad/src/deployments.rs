//! Deployments: those that run, one anew, and the call that fails one.

use std::collections::BTreeMap;
use std::time::Duration;

use curfew_core::JobKey;
use curfew_core::deployment::{Deployment, GroupProgress};
use serde::Deserialize;

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
    desired_canaries: u64,
    desired_total: u64,
    healthy_allocs: u64,
}

impl From<DeploymentWire> for Deployment {
    fn from(w: DeploymentWire) -> Self {
        let group = |g: GroupWire| GroupProgress {
            progress_deadline: Duration::from_nanos(g.progress_deadline),
            // An instant that cannot be read is no reason to fail anything.
            require_progress_by: wire::instant(g.require_progress_by.as_deref()).unwrap_or_default(),
            desired: g.desired_total,
            healthy: g.healthy_allocs,
            canaries: g.desired_canaries,
            promoted: g.promoted,
        };
        Self {
            id: w.id,
            key: JobKey::new(w.namespace, w.job_id),
            job_version: w.job_version,
            running: w.status == "running",
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
}
