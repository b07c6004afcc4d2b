//! The author's `progress_deadline`: Nomad's own was set above the raised `kill_timeout`, so Curfew fails the deployment when the
//! author's passes without progress. Nomad then does what it does with a failed deployment, auto-revert included.

use std::sync::Arc;
use std::time::Duration;

use curfew_core::audit::{Action, AuditEntry};
use curfew_core::deployment::{Deployment, author_deadline};
use curfew_core::spec::JobSpec;
use curfew_core::{Clock, Timestamp};
use curfew_nomad::{Error, Nomad};
use curfew_store::Store;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::duty::Duty;
use crate::error::chain;
use crate::keeper::Keeper;

pub struct Deployments {
    pub nomad: Nomad,
    pub store: Arc<dyn Store>,
    pub keeper: Keeper,
    /// One controller fails deployments: the one that keeps the clocks.
    pub duty: Duty,
    pub clock: Arc<dyn Clock>,
    /// How often the running deployments are listed.
    pub interval: Duration,
    /// `host:pid`, for the audit trail.
    pub actor: String,
}

impl Deployments {
    /// Runs until `stop`; a call that is under way then is finished, no other is begun.
    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let wait = match self.look(&stop).await {
                Ok(next) => next.map_or(self.interval, |at| at.since(self.clock.now()).min(self.interval)),
                Err(e) => {
                    // The observer says that Nomad is out of sight.
                    tracing::debug!(error = %chain(&e), "the deployments could not be looked at");
                    self.interval
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Fails what is due; returns when the next one is.
    async fn look(&self, stop: &CancellationToken) -> Result<Option<Timestamp>, Error> {
        let mut next: Option<Timestamp> = None;
        if self.duty.valid().is_none() {
            return Ok(None);
        }
        for d in self.nomad.running_deployments().await? {
            if stop.is_cancelled() {
                break;
            }
            let Some(spec) = self.spec(&d).await? else { continue };
            match author_deadline(&d, &spec) {
                Some(at) if at <= self.clock.now() => self.fail(&d, &spec).await?,
                Some(at) => next = Some(next.map_or(at, |n| n.min(at))),
                None => {}
            }
        }
        Ok(next)
    }

    /// The job as the deployment rolls it out.
    async fn spec(&self, d: &Deployment) -> Result<Option<JobSpec>, Error> {
        if let Some(newest) = self.keeper.newest(d.key.clone()).await
            && newest.version == d.job_version
        {
            return Ok(Some(newest));
        }
        let versions = self.nomad.job_versions(&d.key).await?.unwrap_or_default();
        let specs = versions.iter().map(JobSpec::from_json);
        let mut mine = None;
        for spec in specs {
            let wanted = spec.version == d.job_version;
            if wanted {
                mine = Some(spec.clone());
            }
            self.keeper.registered(d.key.clone(), Box::new(spec)).await;
        }
        Ok(mine)
    }

    async fn fail(&self, listed: &Deployment, spec: &JobSpec) -> Result<(), Error> {
        // It may have made progress since the list.
        let Some(d) = self.nomad.deployment(&listed.id).await? else { return Ok(()) };
        let Some(deadline) = author_deadline(&d, spec).filter(|at| *at <= self.clock.now()) else { return Ok(()) };
        self.nomad.fail_deployment(&d.id).await?;
        tracing::warn!(job = %d.key.job, deployment = d.id, %deadline, "deployment failed: its author's progress deadline passed without progress");
        let row = AuditEntry {
            at: self.clock.now(),
            operation: None,
            actor: self.actor.clone(),
            action: Action::DeploymentFailed,
            alloc: None,
            task: None,
            detail: json!({ "deployment": d.id, "job": d.key.job, "namespace": d.key.namespace, "progress_deadline": deadline }),
        };
        if let Err(e) = self.store.append_audit(vec![row]).await {
            tracing::error!(error = %chain(&e), "a failed deployment could not be written down");
        }
        Ok(())
    }
}
