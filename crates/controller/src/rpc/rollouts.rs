//! What people do to a deployment: promote it, fail it, go back to an older version.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use curfew_core::api::{OperationView, RevertRequest, SteerRequest};
use curfew_core::deployment::DeploymentStatus;
use curfew_core::operation::{Request, Steer};
use curfew_core::{JobKey, OpId};
use curfew_store::NewOperation;

use super::description::Key;
use super::jobs::idempotency;
use super::problem::Refusal;
use super::{Body, Caller, Named, Rpc};

/// Promote the canaries of the job's deployment that runs now.
#[utoipa::path(
    post, path = "/v1/jobs/{job}/promote", tag = "jobs", params(("job" = String, Path, description = "The job's id, percent-encoded."), Key),
    request_body = SteerRequest,
    responses((status = 202, description = "It is written down as this operation.", body = OperationView, headers(("Location" = String, description = "The operation's path."))))
)]
pub async fn promote(
    State(rpc): State<Rpc>,
    caller: Caller,
    Named(job): Named<String>,
    headers: HeaderMap,
    Body(request): Body<SteerRequest>,
) -> Result<Response, Refusal> {
    rpc.steer(&caller, &job, &headers, request, Steer::Promote).await
}

/// Fail the job's deployment that runs now: Nomad goes back to the last stable version where the job says `auto_revert`.
#[utoipa::path(
    post, path = "/v1/jobs/{job}/fail", tag = "jobs", params(("job" = String, Path, description = "The job's id, percent-encoded."), Key),
    request_body = SteerRequest,
    responses((status = 202, description = "It is written down as this operation.", body = OperationView, headers(("Location" = String, description = "The operation's path."))))
)]
pub async fn fail(
    State(rpc): State<Rpc>,
    caller: Caller,
    Named(job): Named<String>,
    headers: HeaderMap,
    Body(request): Body<SteerRequest>,
) -> Result<Response, Refusal> {
    rpc.steer(&caller, &job, &headers, request, Steer::Fail).await
}

impl Rpc {
    /// The deployment is the one that runs now: what is asked for later is never done to a newer one.
    async fn steer(
        &self,
        caller: &Caller,
        job: &str,
        headers: &HeaderMap,
        request: SteerRequest,
        steer: Steer,
    ) -> Result<Response, Refusal> {
        self.accepting()?;
        let verb = if steer == Steer::Promote { "promote" } else { "fail" };
        let idempotency = idempotency(headers, &format!("{verb} {job}"), &request)?;
        let target = JobKey { namespace: self.namespace(request.namespace)?, job: job.into() };
        caller.reaches(&target.namespace)?;
        if self.nomad.job(&target).await?.is_none() {
            return Err(Refusal::no_such_job(format!("there is no job {target} in Nomad at {}", self.nomad.address())));
        }
        let all = self.nomad.job_deployments(&target).await?;
        let newest = all.into_iter().max_by_key(|d| d.create_index);
        let deployment = match newest {
            Some(d) if matches!(d.status, DeploymentStatus::Running | DeploymentStatus::Paused) => d,
            Some(d) => {
                let status = d.status.as_str();
                return Err(Refusal::no_deployment(format!(
                    "the newest deployment of {target} is {status} already: nothing to {verb}"
                )));
            }
            None => return Err(Refusal::no_deployment(format!("{target} has no deployment to {verb}"))),
        };
        if steer == Steer::Promote && deployment.groups.values().all(|g| g.canaries == 0 || g.promoted) {
            return Err(Refusal::no_deployment(format!("the deployment of {target} has no canaries that wait for a promotion")));
        }
        let now = self.clock.now();
        self.create(NewOperation {
            id: OpId::new(now),
            parent: None,
            request: Request::Deployment { target, deployment: deployment.id, steer },
            actor: caller.actor(&request.who),
            reason: request.who.reason,
            at: now,
            deadline: None,
            warnings: vec![],
            idempotency,
        })
        .await
    }
}

/// Register an older version of a job again, as a rollout.
#[utoipa::path(
    post, path = "/v1/jobs/{job}/revert", tag = "jobs", params(("job" = String, Path, description = "The job's id, percent-encoded."), Key),
    request_body = RevertRequest,
    responses((status = 202, description = "It is written down as this operation.", body = OperationView, headers(("Location" = String, description = "The operation's path."))))
)]
pub async fn revert(
    State(rpc): State<Rpc>,
    caller: Caller,
    Named(job): Named<String>,
    headers: HeaderMap,
    Body(request): Body<RevertRequest>,
) -> Result<Response, Refusal> {
    rpc.accepting()?;
    let idempotency = idempotency(&headers, &format!("revert {job}"), &request)?;
    let key = JobKey { namespace: rpc.namespace(request.namespace)?, job: job.as_str().into() };
    caller.reaches(&key.namespace)?;
    let versions = rpc.nomad.job_versions(&key).await?.unwrap_or_default();
    let number = |v: &serde_json::Value| v["Version"].as_u64();
    let Some(newest) = versions.first() else {
        return Err(Refusal::no_such_job(format!("there is no job {key} in Nomad at {}", rpc.nomad.address())));
    };
    let Some(wanted) = versions.iter().find(|v| number(v) == Some(request.version)) else {
        let known: Vec<String> = versions.iter().filter_map(number).map(|n| n.to_string()).collect();
        let detail = format!("Nomad has no version {} of {key}; it has {}", request.version, known.join(", "));
        return Err(Refusal::no_such_version(detail));
    };
    if number(newest) == Some(request.version) && newest["Stop"] != true {
        return Err(Refusal::no_such_version(format!("version {} of {key} is the one that is registered now", request.version)));
    }
    let mut spec = wanted.clone();
    spec["Stop"] = false.into();
    let prepared = rpc.prepare_json(&caller, spec, Some(key.namespace)).await?;
    rpc.registering(prepared, true, true, caller.actor(&request.who), request.who.reason, idempotency).await
}
