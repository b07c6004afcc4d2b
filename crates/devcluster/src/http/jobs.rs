//! `/v1/jobs` and what belongs to jobs in general: register, parse, validate, search.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::Response;
use serde_json::{Map, Value, json};

use super::access::Call;
use super::query::page;
use super::reply;
use crate::job::{Job, JobKey, canonical, validate};
use crate::server::jobs as server;
use crate::state::{ClientStatus, Desired, State, Table};

pub(crate) async fn list(call: Call) -> Result<Response, Response> {
    let q = &call.query;
    q.wait(&call.core, |s| s.table(Table::Jobs).max(s.table(Table::Allocs))).await?;
    let filter = q.filter()?;
    let prefix = q.get("prefix").to_owned();
    let with_meta = q.flag("meta", false);
    call.core.read(|s| {
        let jobs = s
            .jobs
            .values()
            .map(|e| e.current.clone())
            .filter(|j| call.shows(&j.spec.namespace, "list-jobs") && j.spec.id.starts_with(&prefix));
        let token_of = |j: &Arc<Job>| format!("{}.{}", j.spec.namespace, j.spec.id);
        let page = page(
            q,
            jobs,
            token_of,
            // As text, like Nomad: so "games-eu.a" seems to come before "games.a", which the order of the list puts first.
            |j, token| token_of(j).as_str() < token,
            |j| filter.as_ref().map_or(Ok(true), |f| f.accepts(j.as_ref())),
        )?;
        let rows: Vec<Value> = page.items.iter().map(|j| stub(s, j, with_meta)).collect();
        Ok(reply::read_page(&rows, s.table(Table::Jobs).max(s.table(Table::Allocs)), &page.next))
    })
}

fn stub(s: &State, j: &Job, with_meta: bool) -> Value {
    let mut row = json!({
        "CreateIndex": j.create_index, "Datacenters": j.spec.datacenters, "ID": j.spec.id, "JobModifyIndex": j.job_modify_index,
        "JobSummary": summary(s, j), "ModifyIndex": j.modify_index, "Multiregion": null, "Name": j.spec.name,
        "Namespace": j.spec.namespace, "NodePool": j.spec.node_pool, "ParameterizedJob": j.spec.parameterized,
        "ParentID": j.spec.parent_id, "Periodic": j.spec.periodic, "Priority": j.spec.priority, "Status": j.status,
        "StatusDescription": "", "Stop": j.stop, "SubmitTime": j.submit_time, "Type": j.spec.kind.as_str(),
    });
    if with_meta && let Some(m) = row.as_object_mut() {
        m.insert("Meta".into(), if j.spec.meta.is_empty() { Value::Null } else { json!(j.spec.meta) });
    }
    row
}

/// Allocations by client status and group, children by status.
pub(crate) fn summary(s: &State, j: &Job) -> Value {
    let key = j.key();
    let mut groups: BTreeMap<&str, [usize; 7]> = j.spec.groups.iter().map(|g| (g.name.as_str(), [0; 7])).collect();
    let mut modify = j.create_index;
    for a in s.allocs_of_iter(&key) {
        modify = modify.max(a.modify_index);
        let at = match a.client {
            ClientStatus::Complete => 0,
            ClientStatus::Failed => 1,
            ClientStatus::Lost => 2,
            ClientStatus::Running => 4,
            ClientStatus::Pending => 5,
            ClientStatus::Unknown => 6,
        };
        if let Some(g) = groups.get_mut(a.spec().name.as_str()) {
            g[at] += 1;
        }
    }
    if let Some(queued) = s.evals_of(&key).iter().rev().find_map(|e| e.queued.clone()) {
        for (name, n) in &queued {
            if let Some(g) = groups.get_mut(name.as_str()) {
                g[3] = *n;
            }
        }
    }
    let rows: Map<String, Value> = groups
        .into_iter()
        .map(|(name, g)| {
            let row = json!({
                "Complete": g[0], "Failed": g[1], "Lost": g[2], "Queued": g[3], "Running": g[4], "Starting": g[5], "Unknown": g[6],
            });
            (name.to_owned(), row)
        })
        .collect();
    let mut children = [0; 3];
    if j.spec.periodic || j.spec.parameterized {
        let below = format!("{}/", j.spec.id);
        let range = s.jobs.range((key.0.clone(), below.clone())..).take_while(|(k, _)| k.0 == key.0 && k.1.starts_with(&below));
        for (_, e) in range.filter(|(_, e)| e.current.spec.parent_id == j.spec.id) {
            match e.current.status {
                "dead" => children[0] += 1,
                "pending" => children[1] += 1,
                _ => children[2] += 1,
            }
        }
    }
    json!({
        "Children": {"Dead": children[0], "Pending": children[1], "Running": children[2]}, "CreateIndex": j.create_index,
        "JobID": j.spec.id, "ModifyIndex": modify, "Namespace": j.spec.namespace, "Summary": rows,
    })
}

/// Takes the job out of a request; `id` is what the path says.
fn job_of(call: &Call, id: Option<&str>) -> Result<(Value, Value), Response> {
    let body = call.json()?;
    let Some(mut job) = body.get("Job").filter(|j| j.is_object()).cloned() else {
        return Err(reply::text(400, "Job must be specified"));
    };
    let job_id = job.get("ID").and_then(Value::as_str).unwrap_or_default().to_owned();
    if job.get("ID").is_none_or(Value::is_null) {
        return Err(reply::text(400, "Job ID hasn't been provided"));
    }
    if id.is_some_and(|id| id != job_id) {
        return Err(reply::text(400, "Job ID does not match name"));
    }
    let namespace = call.query.get("namespace");
    if let Some(m) = job.as_object_mut() {
        let own = m.get("Namespace").and_then(Value::as_str).unwrap_or_default();
        if own.is_empty() {
            m.insert("Namespace".into(), json!(if namespace.is_empty() { "default" } else { namespace }));
        }
        for key in ["VaultToken", "ConsulToken"] {
            m.remove(key);
        }
    }
    Ok((body, job))
}

pub(crate) fn check(s: &State, raw: &Value) -> (Value, validate::Errors) {
    let mut job = raw.clone();
    canonical::server(&mut job);
    let namespaces: Vec<String> = s.namespaces.iter().cloned().collect();
    let mut pools: Vec<String> = s.nodes.values().map(|n| n.config.node_pool.clone()).collect();
    pools.push("default".into());
    let errors = validate::job(&job, raw, &namespaces, &pools);
    (job, errors)
}

/// What Nomad takes, but not without a word.
fn warnings(job: &Value) -> String {
    let cron = job.get("Periodic").and_then(|p| p.get("Spec")).and_then(Value::as_str).unwrap_or_default();
    if cron.is_empty() {
        return String::new();
    }
    "1 warning:\n\n* cron is deprecated and may be removed in a future release. Use crons instead".into()
}

pub(crate) fn register(call: &Call, id: Option<&str>) -> Result<Response, Response> {
    let (body, raw) = job_of(call, id)?;
    call.demand(&text(&raw, "Namespace"), &["submit-job", "register-job"])?;
    call.core.write(|s| {
        let (job, errors) = check(s, &raw);
        if !errors.is_empty() {
            return Err(reply::text(500, &errors.print()));
        }
        if body.get("EnforceIndex").and_then(Value::as_bool) == Some(true) {
            let wanted = body.get("JobModifyIndex").and_then(Value::as_u64).unwrap_or(0);
            let key: JobKey = (text(&job, "Namespace"), text(&job, "ID"));
            let refusal = match (s.job(&key), wanted) {
                (Some(_), 0) => Some("job already exists".to_owned()),
                (None, 0) => None,
                (None, _) => Some("job does not exist".to_owned()),
                (Some(j), n) if j.job_modify_index != n => {
                    Some(format!("job exists with conflicting job modify index: {}", j.job_modify_index))
                }
                _ => None,
            };
            if let Some(why) = refusal {
                return Err(reply::text(500, &format!("Enforcing job modify index {wanted}: {why}")));
            }
        }
        let warnings = warnings(&job);
        let r = server::register(s, job, "job-register");
        Ok(reply::written(
            &json!({
                "EvalCreateIndex": r.eval_index, "EvalID": r.eval_id, "Index": r.index, "JobModifyIndex": r.job_modify_index,
                "KnownLeader": false, "LastContact": 0, "NextToken": "", "Warnings": warnings,
            }),
            r.index,
        ))
    })
}

fn text(v: &Value, key: &str) -> String {
    crate::job::spec::text(v, key)
}

pub(crate) fn parse(call: &Call) -> Response {
    let body = match call.json() {
        Ok(b) => b,
        Err(r) => return r,
    };
    let hcl = text(&body, "JobHCL");
    if hcl.is_empty() {
        return reply::text(400, "Job spec is empty");
    }
    match crate::job::hcl::parse(&hcl, &text(&body, "Variables")) {
        Ok(mut job) => {
            if body.get("Canonicalize").and_then(Value::as_bool) == Some(true) {
                canonical::api(&mut job);
            }
            reply::plain_json(&job)
        }
        Err(e) => reply::text(400, &format!("Failed to parse job: {e}")),
    }
}

pub(crate) fn validate(call: &Call) -> Result<Response, Response> {
    let (_, raw) = job_of(call, None)?;
    call.demand(&text(&raw, "Namespace"), &["read-job"])?;
    let (_, errors) = call.core.read(|s| check(s, &raw));
    let (list, error) = if errors.is_empty() { (Value::Null, String::new()) } else { (json!(errors.messages()), errors.print()) };
    Ok(reply::plain_json(&json!({"DriverConfigValidated": true, "Error": error, "ValidationErrors": list, "Warnings": ""})))
}

/// What Nomad's web interface and `job status` read.
pub(crate) async fn statuses(call: Call) -> Response {
    if let Err(r) = call.query.wait(&call.core, |s| s.table(Table::Jobs)).await {
        return r;
    }
    call.core.read(|s| {
        let mut jobs: Vec<Arc<Job>> =
            s.jobs.values().map(|e| e.current.clone()).filter(|j| call.shows(&j.spec.namespace, "read-job")).collect();
        jobs.retain(|j| j.spec.parent_id.is_empty());
        jobs.sort_by_key(|j| std::cmp::Reverse(j.modify_index));
        let rows: Vec<Value> = jobs.iter().map(|j| status_row(s, j)).collect();
        reply::read(&rows, s.table(Table::Jobs))
    })
}

fn status_row(s: &State, j: &Job) -> Value {
    let key = j.key();
    let allocs: Vec<Value> = s
        .allocs_of(&key)
        .iter()
        .filter(|a| a.desired == Desired::Run || !a.client.is_terminal())
        .map(|a| {
            json!({
                "ClientStatus": a.client.as_str(),
                "DeploymentStatus": {
                    "Canary": a.health.as_ref().is_some_and(|h| h.canary), "Healthy": a.health.as_ref().and_then(|h| h.healthy),
                },
                "FollowupEvalID": a.followup_eval, "Group": a.spec().name, "HasPausedTask": false, "ID": a.id,
                "JobVersion": a.job.version, "NodeID": a.node_id,
            })
        })
        .collect();
    let deployment = s.latest_deployment(&key).map(|d| {
        json!({
            "AllAutoPromote": d.groups.values().all(|g| g.auto_promote || g.desired_canaries == 0), "ID": d.id,
            "IsActive": d.status.is_active(), "JobVersion": d.job_version, "RequiresPromotion": d.requires_promotion(),
            "Status": d.status.as_str(), "StatusDescription": d.description,
        })
    });
    json!({
        "Allocs": allocs, "ChildStatuses": null, "Datacenters": j.spec.datacenters,
        "GroupCountSum": j.spec.groups.iter().map(|g| g.count).sum::<usize>(), "ID": j.spec.id, "IsPack": false,
        "LatestDeployment": deployment, "ModifyIndex": j.modify_index, "Name": j.spec.name, "Namespace": j.spec.namespace,
        "NodePool": j.spec.node_pool, "ParentID": j.spec.parent_id, "Priority": j.spec.priority, "Status": j.status, "Stop": j.stop,
        "SubmitTime": j.submit_time, "Type": j.spec.kind.as_str(), "Version": j.version,
    })
}
