//! Submit, plan, stop.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use curfew_core::api::{OperationView, PlanView, SpecText, StopRequest, SubmitRequest};
use curfew_core::operation::{Demand, Registering, Request, nominal_deadline};
use curfew_core::spec::{JobSpec, META_MANAGED, META_OPERATION};
use curfew_core::submit::{Submission, SubmitPolicy, transform, unwrap_spec};
use curfew_core::{JobKey, Namespace, OpId, duration};
use curfew_store::{Created, NewOperation};
use serde::Serialize;
use serde_json::Value;

use super::description::Key;
use super::problem::Refusal;
use super::{Body, Caller, Named, Rpc};

pub(super) struct Prepared {
    id: OpId,
    submission: Submission,
    /// The job's `JobModifyIndex` in Nomad now; zero when there is none.
    base_index: u64,
}

impl Rpc {
    /// The namespace that was asked for, else the controller's. `*` is every namespace in lists and none for a job.
    pub(super) fn namespace(&self, asked: Option<Namespace>) -> Result<Namespace, Refusal> {
        let namespace = asked.unwrap_or_else(|| self.nomad.config().namespace.clone());
        match namespace.as_str() {
            "" | "*" => Err(Refusal::bad_request(format!("\"{namespace}\" is not one namespace; name the job's"))),
            _ => Ok(namespace),
        }
    }

    /// Submitting is running code: only where, and by what, the configuration says.
    fn allowed(&self, submission: &Submission) -> Result<(), Refusal> {
        let (namespaces, drivers) = (&self.config.submit_namespaces, &self.config.submit_drivers);
        let namespace = submission.key.namespace.as_str();
        if !namespaces.is_empty() && !namespaces.iter().any(|n| n == namespace) {
            let list = namespaces.join(", ");
            return Err(Refusal::forbidden(format!(
                "jobs may be submitted to {list} only (submit_namespaces), not to {namespace}"
            )));
        }
        let tasks = submission.job["TaskGroups"].as_array().into_iter().flatten();
        let tasks = tasks.flat_map(|g| g["Tasks"].as_array().into_iter().flatten());
        for task in tasks.filter(|_| !drivers.is_empty()) {
            let driver = task["Driver"].as_str().unwrap_or_default();
            if !drivers.iter().any(|d| d == driver) {
                let (name, list) = (task["Name"].as_str().unwrap_or_default(), drivers.join(", "));
                return Err(Refusal::forbidden(format!(
                    "task \"{name}\" has driver \"{driver}\"; jobs may be submitted with {list} only (submit_drivers)"
                )));
            }
        }
        Ok(())
    }

    async fn prepare(&self, caller: &Caller, spec: SpecText, namespace: Option<Namespace>) -> Result<Prepared, Refusal> {
        let job = match spec {
            SpecText::Hcl(text) => self.nomad.parse_hcl(&text).await?,
            SpecText::Json(json) => json,
        };
        self.prepare_json(caller, unwrap_spec(job)?, namespace).await
    }

    pub(super) async fn prepare_json(
        &self,
        caller: &Caller,
        job: Value,
        namespace: Option<Namespace>,
    ) -> Result<Prepared, Refusal> {
        let id = OpId::new(self.clock.now());
        let namespace = self.namespace(namespace)?;
        let policy = SubmitPolicy::from(&*self.config);
        let mut submission = transform(job.clone(), &policy, id, &namespace)?;
        caller.reaches(&submission.key.namespace)?;
        self.allowed(&submission)?;
        let mut base_index = 0;
        if let Some(current) = self.nomad.job(&submission.key).await? {
            base_index = current["JobModifyIndex"].as_u64().unwrap_or(0);
            let first = current["Meta"][META_OPERATION].as_str().and_then(|s| s.parse::<OpId>().ok());
            if let Some(first) = first.filter(|_| current["Meta"][META_MANAGED] == "true" && current["Stop"] != true) {
                submission = transform(job, &policy, first, &namespace)?;
            }
        }
        submission.warnings.extend(self.nodes.check(&submission.job).await?);
        Ok(Prepared { id, submission, base_index })
    }

    pub(super) async fn create(&self, new: NewOperation) -> Result<Response, Refusal> {
        let created = self.store.create(new).await?;
        let op = created.operation().clone();
        // The dispatcher hears of it from the database, whichever controller it is.
        if !matches!(created, Created::Replayed(_)) && !op.request.demands().is_empty() {
            self.keeper.tell(op.clone()).await;
        }
        let location = format!("/v1/operations/{}", op.id);
        Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(OperationView::from(op))).into_response())
    }
}

/// Submit a job.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs", params(Key), request_body = SubmitRequest,
    responses((status = 202, description = "It is written down as this operation.", body = OperationView, headers(("Location" = String, description = "The operation's path."))))
)]
pub async fn submit(
    State(rpc): State<Rpc>,
    caller: Caller,
    headers: HeaderMap,
    Body(request): Body<SubmitRequest>,
) -> Result<Response, Refusal> {
    rpc.accepting()?;
    let idempotency = idempotency(&headers, "submit", &request)?;
    let who = request.who;
    let prepared = rpc.prepare(&caller, request.spec, request.namespace).await?;
    let base = prepared.base_index;
    if let Some(index) = request.check_index.filter(|i| *i != base) {
        let key = &prepared.submission.key;
        return Err(Refusal::changed(match base {
            0 => format!("there is no job {key} in Nomad; --check-index {index} wants one, 0 wants none"),
            _ => format!(
                "job {key} has the index {base} in Nomad, not {index}: somebody changed it. Look at it (curfew job plan), then use that index"
            ),
        }));
    }
    let only_onto_base = request.check_index.is_some();
    rpc.registering(prepared, request.watch, only_onto_base, caller.actor(&who), who.reason, idempotency).await
}

impl Rpc {
    pub(super) async fn registering(
        &self,
        prepared: Prepared,
        watch: bool,
        only_onto_base: bool,
        actor: String,
        reason: Option<String>,
        idempotency: Option<(String, String)>,
    ) -> Result<Response, Refusal> {
        let Submission { job, key: target, warnings, .. } = prepared.submission;
        let registration = Registering { spec: Box::new(job), base_index: prepared.base_index, only_onto_base };
        let request = if watch { Request::Rollout { target, registration } } else { Request::Submit { target, registration } };
        let (id, at) = (prepared.id, self.clock.now());
        self.create(NewOperation { id, parent: None, request, actor, reason, at, deadline: None, warnings, idempotency }).await
    }
}

/// What a submit would change, and Nomad's own plan of it. Nothing is written down.
#[utoipa::path(
    post, path = "/v1/jobs/plan", tag = "jobs", request_body = SubmitRequest,
    responses((status = 200, description = "The plan.", body = PlanView))
)]
pub async fn plan(State(rpc): State<Rpc>, caller: Caller, Body(request): Body<SubmitRequest>) -> Result<Json<PlanView>, Refusal> {
    let Prepared { submission, .. } = rpc.prepare(&caller, request.spec, request.namespace).await?;
    let nomad = rpc.nomad.plan_job(&submission.key, &submission.job, true).await?;
    Ok(Json(PlanView {
        job: submission.key.job,
        namespace: submission.key.namespace,
        changes: submission.changes,
        warnings: submission.warnings,
        nomad,
        spec: submission.job,
    }))
}

/// Stop a job: SIGTERM now, SIGKILL when its time is over. A stop of a job that has a live stop joins it.
#[utoipa::path(
    post, path = "/v1/jobs/{job}/stop", tag = "jobs", params(("job" = String, Path, description = "The job's id, percent-encoded."), Key),
    request_body = StopRequest,
    responses((status = 202, description = "It is written down as this operation.", body = OperationView, headers(("Location" = String, description = "The operation's path."))))
)]
pub async fn stop(
    State(rpc): State<Rpc>,
    caller: Caller,
    Named(job): Named<String>,
    headers: HeaderMap,
    Body(request): Body<StopRequest>,
) -> Result<Response, Refusal> {
    rpc.accepting()?;
    let idempotency = idempotency(&headers, &job, &request)?;
    let namespace = rpc.namespace(request.namespace)?;
    caller.reaches(&namespace)?;
    let key = JobKey { namespace, job: job.as_str().into() };
    let spec = match rpc.keeper.newest(key.clone()).await {
        Some(spec) => spec,
        None => match rpc.nomad.job(&key).await? {
            Some(json) => {
                let spec = JobSpec::from_json(&json);
                rpc.keeper.registered(key.clone(), Box::new(spec.clone())).await;
                spec
            }
            None => return Err(Refusal::no_such_job(format!("there is no job {key} in Nomad at {}", rpc.nomad.address()))),
        },
    };
    let mut warnings: Vec<String> = request.stop_timeout.and_then(|t| outrun(&spec, t)).into_iter().collect();
    if spec.parent {
        warnings.push(format!(
            "{key} launches other jobs and has no tasks of its own; those that it launched go on: stop them by their own ids"
        ));
    }
    let now = rpc.clock.now();
    let demand = Demand {
        at: now,
        stop_timeout: request.stop_timeout,
        until: None,
        no_shutdown_delay: request.no_shutdown_delay,
        purge: request.purge_when_dead,
        job_index: spec.job_modify_index,
    };
    rpc.create(NewOperation {
        id: OpId::new(now),
        parent: None,
        deadline: nominal_deadline(&[demand], rpc.config.job_stop_timeout),
        request: Request::Stop { target: key, demands: vec![demand] },
        actor: caller.actor(&request.who),
        reason: request.who.reason,
        at: now,
        warnings,
        idempotency,
    })
    .await
}

/// After which Nomad itself kills the first of a job's tasks.
pub(super) fn nomads_own(spec: &JobSpec) -> Option<Duration> {
    spec.groups.values().flat_map(|g| g.tasks.values()).map(|t| t.kill_timeout).min()
}

/// Nomad's own clock runs as well: a stop timeout beyond it is not kept.
fn outrun(spec: &JobSpec, stop_timeout: Duration) -> Option<String> {
    let shortest = nomads_own(spec)?;
    (stop_timeout > shortest).then(|| {
        let (asked, nomads) = (duration::format(stop_timeout), duration::format(shortest));
        format!("the stop timeout of {asked} is longer than the job's kill_timeout of {nomads}, after which Nomad itself sends SIGKILL")
    })
}

/// The caller's key, with what it asked for: the same key for something else is refused.
pub(super) fn idempotency(
    headers: &HeaderMap,
    target: &str,
    request: &impl Serialize,
) -> Result<Option<(String, String)>, Refusal> {
    const LONGEST: usize = 255;
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.to_str().ok().filter(|k| !k.is_empty() && k.len() <= LONGEST);
    let key = key.ok_or_else(|| Refusal::bad_request("Idempotency-Key must be 1 to 255 printable ASCII characters"))?;
    let asked = serde_json::json!([target, serde_json::to_value(request).unwrap_or(Value::Null)]);
    Ok(Some((key.to_owned(), asked.to_string())))
}
