//! `/v1/job/:id` and below. An id may hold slashes, encoded or not: the action is what the path ends with.

use axum::http::Method;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::access::{Asked, Call, Need, READ_JOB};
use super::jobs::{register, summary};
use super::reply;
use crate::job::{JobKey, diff};
use crate::server::{jobs as server, periodic};
use crate::state::{State, Table};

const ACTIONS: [&str; 15] = [
    "allocations",
    "evaluations",
    "deployments",
    "deployment",
    "summary",
    "versions",
    "plan",
    "evaluate",
    "dispatch",
    "scale",
    "revert",
    "stable",
    "submission",
    "services",
    "actions",
];

pub(crate) async fn route(r: Asked, rest: &[String]) -> Result<Response, Response> {
    let (id, action): (String, &str) = match rest {
        [id @ .., periodic, force] if periodic == "periodic" && force == "force" && !id.is_empty() => {
            (id.join("/"), "periodic/force")
        }
        [id @ .., last] if !id.is_empty() && ACTIONS.contains(&last.as_str()) => (id.join("/"), last.as_str()),
        all => (all.join("/"), ""),
    };
    let key: JobKey = (r.query.namespace().to_owned(), id);
    match (action, &r.method) {
        ("", &Method::GET) => get(&r.any(READ_JOB)?, &key).await,
        ("", &Method::PUT | &Method::POST) => register(&r.any(Need::Token)?, Some(&key.1)),
        ("", &Method::DELETE) => {
            let need: &[&str] = if r.query.flag("purge", false) {
                &["submit-job", "purge-job"]
            } else {
                &["submit-job", "purge-job", "deregister-job"]
            };
            Ok(delete(&r.any(Need::Any(need))?, &key))
        }
        ("", _) => Err(reply::wrong_method()),
        ("allocations", _) => allocations(&r.get(READ_JOB)?, &key).await,
        ("evaluations", _) => evaluations(&r.get(READ_JOB)?, &key).await,
        ("deployments" | "deployment", _) => deployments(&r.get(READ_JOB)?, &key, action == "deployments").await,
        ("summary", _) => get_summary(&r.get(READ_JOB)?, &key).await,
        ("versions", _) => versions(&r.get(READ_JOB)?, &key).await,
        ("submission", _) => {
            let call = r.get(READ_JOB)?;
            Ok(reply::missing("job source not found", call.core.read(|s| s.table(Table::Jobs))))
        }
        ("services" | "actions", _) => {
            r.get(READ_JOB)?;
            Ok(reply::read(&json!([]), 1))
        }
        ("scale", &Method::GET) => scale_status(&r.any(Need::Any(&["read-job", "read-job-scaling"]))?, &key).await,
        ("scale", _) => scale(&r.put(Need::Any(&["scale-job", "submit-job"]))?, &key),
        ("plan", _) => plan(&r.put(Need::Token)?, &key),
        ("evaluate", _) => evaluate(&r.put(Need::Any(&["submit-job", "evaluate-job"]))?, &key),
        ("dispatch", _) => dispatch(&r.put(Need::Any(&["dispatch-job"]))?, &key),
        ("periodic/force", _) => force(&r.put(Need::Any(&["dispatch-job", "submit-job", "force-periodic-job"]))?, &key),
        ("revert", _) => revert(&r.put(Need::Any(&["submit-job", "revert-job"]))?, &key),
        ("stable", _) => stable(&r.put(Need::Any(&["submit-job", "stable-job"]))?, &key),
        _ => Err(reply::wrong_method()),
    }
}

fn job_index(s: &State, key: &JobKey) -> u64 {
    s.jobs.get(key).map_or_else(|| s.table(Table::Jobs), |e| e.current.modify_index)
}

async fn get(call: &Call, key: &JobKey) -> Result<Response, Response> {
    call.query.wait(&call.core, |s| job_index(s, key)).await?;
    call.core.read(|s| match s.job(key) {
        Some(j) => Ok(reply::read(&j.to_json(), j.modify_index)),
        None => Err(reply::missing("job not found", s.table(Table::Jobs))),
    })
}

fn delete(call: &Call, key: &JobKey) -> Response {
    let (purge, skip) = (call.query.flag("purge", false), call.query.flag("no_shutdown_delay", false));
    let done = call.core.write(|s| server::deregister(s, key, purge, skip));
    let (id, index) = done.map_or((String::new(), 0), |d| (d.eval_id, d.index));
    reply::written(
        &json!({
            "EvalCreateIndex": index, "EvalID": id, "Index": index, "JobModifyIndex": index, "KnownLeader": false, "LastContact": 0,
            "NextToken": "", "VolumeEvalID": "", "VolumeEvalIndex": 0,
        }),
        index,
    )
}

async fn allocations(call: &Call, key: &JobKey) -> Result<Response, Response> {
    let index_of = |s: &State| s.allocs_of(key).iter().map(|a| a.modify_index).max().unwrap_or_else(|| s.table(Table::Allocs));
    call.query.wait(&call.core, index_of).await?;
    let (mut allocs, index) = call.core.read(|s| (s.allocs_of(key), index_of(s)));
    allocs.sort_by(|a, b| a.id.cmp(&b.id));
    let all = call.query.flag("all", false);
    let create = call.core.read(|s| s.job(key).map(|j| j.create_index));
    let rows: Vec<_> =
        allocs.iter().filter(|a| all || create.is_none_or(|c| a.job.create_index == c)).map(|a| a.stub(true, false)).collect();
    Ok(reply::read(&rows, index))
}

async fn evaluations(call: &Call, key: &JobKey) -> Result<Response, Response> {
    let index_of = |s: &State| s.evals_of(key).iter().map(|e| e.modify_index).max().unwrap_or_else(|| s.table(Table::Evals));
    call.query.wait(&call.core, index_of).await?;
    call.core.read(|s| {
        let mut list = s.evals_of(key);
        list.sort_by(|a, b| a.id.cmp(&b.id));
        let rows: Vec<Value> = list.iter().map(|e| e.to_json()).collect();
        Ok(reply::read(&rows, index_of(s)))
    })
}

async fn deployments(call: &Call, key: &JobKey, all: bool) -> Result<Response, Response> {
    let index_of =
        |s: &State| s.deployments_of(key).iter().map(|d| d.modify_index).max().unwrap_or_else(|| s.table(Table::Deployments));
    call.query.wait(&call.core, index_of).await?;
    call.core.read(|s| {
        let list = s.deployments_of(key);
        Ok(if all {
            let mut list = list;
            list.sort_by(|a, b| a.id.cmp(&b.id));
            let rows: Vec<Value> = list.iter().map(|d| d.to_json()).collect();
            reply::read(&rows, index_of(s))
        } else {
            reply::read(&list.first().map(|d| d.to_json()), index_of(s))
        })
    })
}

async fn get_summary(call: &Call, key: &JobKey) -> Result<Response, Response> {
    let index_of = |s: &State| s.allocs_of(key).iter().map(|a| a.modify_index).max().unwrap_or_else(|| job_index(s, key));
    call.query.wait(&call.core, index_of).await?;
    call.core.read(|s| match s.job(key) {
        Some(j) => Ok(reply::read(&summary(s, &j), index_of(s))),
        None => Err(reply::missing("job not found", s.table(Table::Jobs))),
    })
}

async fn versions(call: &Call, key: &JobKey) -> Result<Response, Response> {
    call.query.wait(&call.core, |s| job_index(s, key)).await?;
    call.core.read(|s| {
        let Some(entry) = s.jobs.get(key) else { return Err(reply::missing("job versions not found", s.table(Table::Jobs))) };
        let list: Vec<Value> = entry.versions.iter().map(|v| v.to_json()).collect();
        let diffs = if call.query.flag("diffs", false) {
            let diffs: Vec<Value> =
                entry.versions.windows(2).map(|w| diff::jobs(Some(&w[1].value), &w[0].value, &Map::new())).collect();
            json!(diffs)
        } else {
            Value::Null
        };
        let index = entry.current.modify_index;
        Ok(reply::read(
            &json!({"Diffs": diffs, "Index": index, "KnownLeader": true, "LastContact": 0, "NextToken": "", "Versions": list}),
            index,
        ))
    })
}

fn plan(call: &Call, key: &JobKey) -> Result<Response, Response> {
    let body = call.json()?;
    let Some(raw) = body.get("Job").filter(|j| j.is_object()).cloned() else {
        return Err(reply::text(400, "Job must be specified"));
    };
    let mut raw = raw;
    if let Some(m) = raw.as_object_mut()
        && m.get("Namespace").and_then(Value::as_str).is_none_or(str::is_empty)
    {
        m.insert("Namespace".into(), json!(key.0));
    }
    if raw.get("ID").and_then(Value::as_str) != Some(key.1.as_str()) {
        return Err(reply::text(400, "Job ID does not match"));
    }
    call.demand(&crate::job::spec::text(&raw, "Namespace"), &["submit-job", "plan-job"])?;
    call.core.write(|s| {
        let (job, errors) = super::jobs::check(s, &raw);
        if !errors.is_empty() {
            return Err(reply::text(500, &errors.print()));
        }
        let old = s.job(key);
        Ok(reply::written(&diff::dry_run(s, job, old.as_ref(), body.get("Diff").and_then(Value::as_bool) == Some(true)), 0))
    })
}

/// The job that a body names has to be the path's.
fn same_job(body: &Value, key: &JobKey, missing: &str, other: &str) -> Result<(), Response> {
    match body.get("JobID").and_then(Value::as_str).unwrap_or_default() {
        "" if !missing.is_empty() => Err(reply::text(400, missing)),
        id if !id.is_empty() && id != key.1 => Err(reply::text(400, other)),
        _ => Ok(()),
    }
}

fn evaluate(call: &Call, key: &JobKey) -> Result<Response, Response> {
    let body = call.json()?;
    same_job(&body, key, "Job ID must be specified", "JobID not same as job name")?;
    let force = body.get("EvalOptions").and_then(|o| o.get("ForceReschedule")).and_then(Value::as_bool) == Some(true);
    let done = call.core.write(|s| match s.job(key) {
        Some(j) if j.spec.periodic => Err(reply::text(500, "can't evaluate periodic job")),
        Some(j) if j.spec.parameterized => Err(reply::text(500, "can't evaluate parameterized job")),
        _ => server::force_evaluate(s, key, force).ok_or_else(|| reply::text(500, "job not found")),
    });
    let (id, index, job_index) = done?;
    Ok(reply::written(
        &json!({"EvalCreateIndex": index, "EvalID": id, "Index": index, "JobModifyIndex": job_index, "Warnings": ""}),
        index,
    ))
}

fn dispatch(call: &Call, key: &JobKey) -> Result<Response, Response> {
    let body = call.json()?;
    same_job(&body, key, "", "Job ID does not match")?;
    let payload = crate::job::spec::text(&body, "Payload");
    if let Some(at) = crate::base64::bad(&payload) {
        return Err(reply::text(400, &format!("illegal base64 data at input byte {at}")));
    }
    let meta = body.get("Meta").and_then(Value::as_object).cloned().unwrap_or_default();
    let prefix = crate::job::spec::text(&body, "IdPrefixTemplate");
    let token = call.query.get("idempotency_token");
    match call.core.write(|s| server::dispatch(s, key, &payload, &meta, token, &prefix)) {
        Ok(d) => Ok(reply::written(
            &json!({
                "DispatchedJobID": d.id, "EvalCreateIndex": d.eval_index, "EvalID": d.eval_id, "Index": d.index,
                "JobCreateIndex": d.create_index,
            }),
            d.index,
        )),
        Err(server::Refused(status, text)) => Err(reply::text(status, &text)),
    }
}

fn force(call: &Call, key: &JobKey) -> Result<Response, Response> {
    call.core.write(|s| {
        let Some(job) = s.job(key) else { return Err(reply::text(500, "job not found")) };
        if !job.spec.periodic {
            return Err(reply::text(500, "can't force launch non-periodic job"));
        }
        if job.stop {
            let why = format!("can't force run non-tracked job {:?} ({})", key.1, key.0);
            return Err(reply::text(500, &format!("force launch for job {:?} failed: {why}", key.1)));
        }
        let r = periodic::launch(s, &job);
        Ok(reply::written(&json!({"EvalCreateIndex": r.eval_index, "EvalID": r.eval_id, "Index": r.index}), r.index))
    })
}

fn scale(call: &Call, key: &JobKey) -> Result<Response, Response> {
    let body = call.json()?;
    let target = |name: &str| body.get("Target").and_then(|t| t.get(name)).and_then(Value::as_str).unwrap_or_default();
    if !target("Job").is_empty() && target("Job") != key.1 {
        return Err(reply::text(400, "job ID in payload did not match URL"));
    }
    let wanted = server::Scaling {
        group: target("Group").to_owned(),
        count: body.get("Count").and_then(Value::as_i64),
        message: crate::job::spec::text(&body, "Message"),
        error: crate::job::spec::flag(&body, "Error"),
        meta: body.get("Meta").cloned().unwrap_or(Value::Null),
        job_modify_index: body.get("JobModifyIndex").and_then(Value::as_u64).unwrap_or(0),
    };
    match call.core.write(|s| server::scale(s, key, wanted)) {
        Ok(r) => Ok(reply::written(
            &json!({
                "EvalCreateIndex": r.eval_index, "EvalID": r.eval_id, "Index": r.index, "JobModifyIndex": r.job_modify_index,
                "KnownLeader": true, "LastContact": 0, "NextToken": "", "Warnings": "",
            }),
            r.index,
        )),
        Err(server::Refused(status, text)) => Err(reply::text(status, &text)),
    }
}

async fn scale_status(call: &Call, key: &JobKey) -> Result<Response, Response> {
    call.query.wait(&call.core, |s| job_index(s, key)).await?;
    call.core.read(|s| {
        let Some(j) = s.job(key) else { return Err(reply::missing("job not found", s.table(Table::Jobs))) };
        let allocs = s.allocs_of(key);
        let groups: Map<String, Value> = j
            .spec
            .groups
            .iter()
            .map(|g| {
                let mine: Vec<_> = allocs.iter().filter(|a| a.spec().name == g.name && !a.is_terminal()).collect();
                let running = mine.iter().filter(|a| a.client == crate::state::ClientStatus::Running).count();
                let health = |want| mine.iter().filter(|a| a.health.as_ref().and_then(|h| h.healthy) == Some(want)).count();
                let row = json!({
                    "Desired": g.count, "Events": s.scaling_of(key, &g.name), "Healthy": health(true), "Placed": mine.len(), "Running": running,
                    "Unhealthy": health(false),
                });
                (g.name.clone(), row)
            })
            .collect();
        Ok(reply::read(
            &json!({
                "JobCreateIndex": j.create_index, "JobID": j.spec.id, "JobModifyIndex": j.job_modify_index, "JobStopped": j.stop,
                "Namespace": j.spec.namespace, "TaskGroups": groups,
            }),
            j.modify_index,
        ))
    })
}

fn revert(call: &Call, key: &JobKey) -> Result<Response, Response> {
    let body = call.json()?;
    same_job(&body, key, "JobID must be specified", "Job ID does not match")?;
    let version = body.get("JobVersion").and_then(Value::as_u64).unwrap_or(0);
    let enforce = body.get("EnforcePriorVersion").and_then(Value::as_u64);
    call.core.write(|s| {
        let Some(j) = s.job(key) else { return Err(reply::text(500, &format!("job {:?} not found", key.1))) };
        if j.version == version {
            return Err(reply::text(500, "can't revert to current version"));
        }
        if let Some(prior) = enforce.filter(|p| *p != j.version) {
            return Err(reply::text(500, &format!("Current job has version {}; enforcing version {prior}", j.version)));
        }
        match server::revert(s, key, version, "job-register") {
            None => Err(no_version(key, version)),
            Some(r) => Ok(reply::written(
                &json!({
                    "EvalCreateIndex": r.eval_index, "EvalID": r.eval_id, "Index": r.index, "JobModifyIndex": r.job_modify_index,
                    "KnownLeader": false, "LastContact": 0, "NextToken": "", "Warnings": "",
                }),
                r.index,
            )),
        }
    })
}

fn no_version(key: &JobKey, version: u64) -> Response {
    reply::text(500, &format!("job {:?} in namespace {:?} at version {version} not found", key.1, key.0))
}

fn stable(call: &Call, key: &JobKey) -> Result<Response, Response> {
    let body = call.json()?;
    same_job(&body, key, "JobID must be specified", "Job ID does not match")?;
    let version = body.get("JobVersion").and_then(Value::as_u64).unwrap_or(0);
    let stable = body.get("Stable").and_then(Value::as_bool).unwrap_or(false);
    call.core.write(|s| {
        if s.jobs.get(key).is_none_or(|e| e.versions.iter().all(|v| v.version != version)) {
            return Err(no_version(key, version));
        }
        let index = s.begin("JobStability");
        s.mark_stable(key, version, stable);
        s.commit();
        Ok(reply::written(&json!({"Index": index}), index))
    })
}
