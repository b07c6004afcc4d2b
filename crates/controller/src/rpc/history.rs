//! A job's versions, and what came of each.

use axum::Json;
use axum::extract::State;
use curfew_core::api::{DeploymentStateView, VersionView};
use curfew_core::deployment::Deployment;
use curfew_core::operation::Kind;
use curfew_core::rollout::Version;
use curfew_core::{JobKey, Timestamp};
use curfew_store::OperationFilter;
use serde_json::Value;

use super::access::Caller;
use super::look::JobQuery;
use super::problem::Refusal;
use super::{Asked, Named, Rpc};

/// A job's versions, as many as Nomad keeps, with what came of each and who asked for it.
#[utoipa::path(
    get, path = "/v1/jobs/{job}/history", tag = "jobs",
    params(("job" = String, Path, description = "The job's id, percent-encoded."), JobQuery),
    responses((status = 200, description = "Newest first.", body = [VersionView]))
)]
pub async fn history(
    State(rpc): State<Rpc>,
    caller: Caller,
    Named(job): Named<String>,
    Asked(q): Asked<JobQuery>,
) -> Result<Json<Vec<VersionView>>, Refusal> {
    let namespace = rpc.namespace(q.namespace)?;
    caller.reaches(&namespace)?;
    let key = JobKey { namespace, job: job.as_str().into() };
    let versions = rpc.versions(&key).await?;
    let deployments = rpc.nomad.job_deployments(&key).await?;
    let kinds = vec![Kind::Submit, Kind::Rollout];
    let filter = OperationFilter { target: Some(key.into()), kinds, limit: 100, ..OperationFilter::default() };
    let operations = rpc.store.operations(filter).await?;
    let one = |json: &Value| {
        let Version { spec, stable, submitted } = Version::from_json(json);
        let registered = |o: &&curfew_core::operation::Operation| {
            o.outcome.as_ref().and_then(|o| o.registered.as_ref()).is_some_and(|r| r.job_modify_index == spec.job_modify_index)
        };
        let by = operations.iter().find(registered);
        VersionView {
            version: spec.version,
            job_modify_index: spec.job_modify_index,
            submitted_at: (submitted > 0).then(|| Timestamp::from_micros(submitted / 1000)),
            stable,
            stopped: spec.stopped,
            deployment: deployments
                .iter()
                .filter(|d| d.job_version == spec.version)
                .max_by_key(|d| d.create_index)
                .map(deployment),
            operation: by.map(|o| o.id),
            actor: by.map(|o| o.actor.clone()),
            reason: by.and_then(|o| o.reason.clone()),
            end: by.and_then(|o| o.outcome.as_ref()?.rollout.as_ref()?.end),
        }
    };
    Ok(Json(versions.iter().map(one).collect()))
}

pub(super) fn deployment(d: &Deployment) -> DeploymentStateView {
    let sum = |of: fn(&curfew_core::deployment::GroupProgress) -> u64| d.groups.values().map(of).sum();
    DeploymentStateView {
        id: d.id.clone(),
        version: d.job_version,
        status: d.status,
        description: d.description.clone(),
        desired: sum(|g| g.desired),
        healthy: sum(|g| g.healthy),
        unhealthy: sum(|g| g.unhealthy),
    }
}

impl Rpc {
    /// Newest first.
    async fn versions(&self, key: &JobKey) -> Result<Vec<Value>, Refusal> {
        let versions = self.nomad.job_versions(key).await?.filter(|v| !v.is_empty());
        versions.ok_or_else(|| Refusal::no_such_job(format!("there is no job {key} in Nomad at {}", self.nomad.address())))
    }
}
