//! `/v1/deployments` and `/v1/deployment/…`.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};

use super::access::{Asked, Call, Need, READ_JOB};
use super::query::{numbered_before, opened, page};
use super::reply;
use crate::ids::is_uuid;
use crate::server::deployments as server;
use crate::state::{Alloc, Deployment, Health, State, Table};

pub(crate) async fn list(call: &Call) -> Result<Response, Response> {
    let q = &call.query;
    let filter = opened(call, Table::Deployments).await?;
    let prefix = q.get("prefix");
    call.core.read(|s| {
        let all = s.deployment_order.iter().filter_map(|(_, id)| s.deployments.get(id));
        let page = page(
            q,
            all.filter(|d| d.id.starts_with(prefix) && call.shows(&d.job.0, "read-job")),
            |d| format!("{}.{}", d.create_index, d.id),
            |d, token| numbered_before(d.create_index, &d.id, token),
            |d| filter.as_ref().map_or(Ok(true), |f| f.accepts(&d.to_json())),
        )?;
        let rows: Vec<Value> = page.items.iter().map(|d| d.to_json()).collect();
        Ok(reply::read_page(&rows, s.table(Table::Deployments), &page.next))
    })
}

pub(crate) async fn route(r: Asked, path: &[&str]) -> Result<Response, Response> {
    match path {
        ["allocations", id] => allocations(&r.get(READ_JOB)?, id).await,
        ["fail", id] => Ok(fail(&changer(r, id, "fail-deployment")?, id)),
        ["pause", id] => Ok(pause(&named(r, id, "pause-deployment")?, id)),
        ["promote", id] => Ok(promote(&named(r, id, "promote-deployment")?, id)),
        ["allocation-health", id] => Ok(health(&named(r, id, "set-alloc-health-deployment")?, id)),
        ["unblock", id] => {
            changer(r, id, "unblock-deployment")?;
            Err(reply::text(500, "can't unblock deployment that isn't blocked"))
        }
        [id] => Ok(get(&r.get(READ_JOB)?, id).await),
        _ => Err(reply::not_found()),
    }
}

/// Nomad looks for the deployment before it asks what its namespace allows.
fn changer(r: Asked, id: &str, capability: &str) -> Result<Call, Response> {
    allowed(r.put(Need::Token)?, id, capability)
}

/// As `changer`, where the body has to name the deployment too.
fn named(r: Asked, id: &str, capability: &str) -> Result<(Call, Value), Response> {
    let call = r.put(Need::Token)?;
    let body = call.json()?;
    match body.get("DeploymentID").and_then(Value::as_str).unwrap_or_default() {
        "" => Err(reply::text(400, "DeploymentID must be specified")),
        other if other != id => Err(reply::text(400, "Deployment ID does not match")),
        _ => Ok((allowed(call, id, capability)?, body)),
    }
}

fn allowed(call: Call, id: &str, capability: &str) -> Result<Call, Response> {
    let unknown = || reply::text(500, "deployment not found");
    let namespace = call.core.read(|s| s.deployments.get(id).map(|d| d.job.0.clone())).ok_or_else(unknown)?;
    call.demand(&namespace, &["submit-job", capability])?;
    Ok(call)
}

async fn get(call: &Call, id: &str) -> Response {
    if !is_uuid(id) {
        return reply::text(500, "deployment lookup failed: index error: UUID must be 36 characters");
    }
    let index_of = |s: &State| s.deployments.get(id).map_or_else(|| s.table(Table::Deployments), |d| d.modify_index);
    if let Err(r) = call.query.wait(&call.core, index_of).await {
        return r;
    }
    call.core.read(|s| match s.deployments.get(id) {
        Some(d) if call.acl().may(&d.job.0, &["read-job"]) => reply::read(&d.to_json(), d.modify_index),
        _ => reply::missing("deployment not found", s.table(Table::Deployments)),
    })
}

async fn allocations(call: &Call, id: &str) -> Result<Response, Response> {
    call.query.wait(&call.core, |s| s.table(Table::Allocs)).await?;
    call.core.read(|s| {
        let mut allocs = Vec::new();
        if let Some(d) = s.deployments.get(id) {
            call.demand(&d.job.0, &["read-job"])?;
            allocs = s.allocs_of(&d.job);
        }
        let rows: Vec<_> = allocs.iter().filter(|a| a.deployment_id == id).map(|a| a.stub(true, false)).collect();
        Ok(reply::read(&rows, s.table(Table::Allocs)))
    })
}

fn active(s: &State, id: &str, verb: &str) -> Result<Arc<Deployment>, Response> {
    let Some(d) = s.deployments.get(id) else { return Err(reply::text(500, "deployment not found")) };
    if !d.status.is_active() {
        return Err(reply::text(500, &format!("can't {verb} terminal deployment")));
    }
    Ok(d.clone())
}

fn written(eval: &str, eval_index: u64, reverted: Option<u64>, index: u64) -> Response {
    reply::written(
        &json!({
            "DeploymentModifyIndex": index, "EvalCreateIndex": eval_index, "EvalID": eval, "Index": index,
            "RevertedJobVersion": reverted,
        }),
        index,
    )
}

fn fail(call: &Call, id: &str) -> Response {
    call.core.write(|s| match active(s, id, "fail") {
        Ok(d) => {
            let f = server::fail(s, &d, "Deployment marked as failed");
            written(&f.eval_id, f.eval_index, f.reverted, f.index)
        }
        Err(r) => r,
    })
}

fn pause((call, body): &(Call, Value), id: &str) -> Response {
    let pause = crate::job::spec::flag(body, "Pause");
    call.core.write(|s| {
        let verb = if pause { "pause" } else { "resume" };
        if let Err(r) = active(s, id, verb) {
            return r;
        }
        match server::pause(s, id, pause) {
            Some((eval, eval_index, index)) => written(&eval, eval_index, None, index),
            None => reply::text(500, "deployment not found"),
        }
    })
}

fn promote((call, body): &(Call, Value), id: &str) -> Response {
    // Neither all nor any named: nothing is promoted, and that is no error.
    let groups: Option<Vec<String>> = (!crate::job::spec::flag(body, "All")).then(|| {
        body.get("Groups").and_then(Value::as_array).into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    });
    call.core.write(|s| {
        let d = match active(s, id, "promote") {
            Ok(d) => d,
            Err(r) => return r,
        };
        let unhealthy: Vec<String> = d
            .groups
            .iter()
            .filter(|(n, g)| {
                groups.as_ref().is_none_or(|w| w.contains(n)) && g.desired_canaries > 0 && g.healthy < g.desired_canaries
            })
            .map(|(n, g)| format!("Task group {n:?} has {}/{} healthy allocations", g.healthy, g.desired_canaries))
            .collect();
        if !unhealthy.is_empty() {
            let body: String = unhealthy.iter().map(|u| format!("\n\t* {u}")).collect();
            let head = if unhealthy.len() == 1 {
                "1 error occurred:".to_owned()
            } else {
                format!("{} errors occurred:", unhealthy.len())
            };
            return reply::text(500, &format!("{head}{body}\n\n"));
        }
        match server::promote(s, id, groups.as_deref()) {
            Some((eval, eval_index, index)) => written(&eval, eval_index, None, index),
            None => reply::text(500, "deployment not found"),
        }
    })
}

/// Health set by hand, for `health_check = "manual"`.
fn health((call, body): &(Call, Value), id: &str) -> Response {
    let ids = |key: &str| -> Vec<String> {
        body.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let (healthy, unhealthy) = (ids("HealthyAllocationIDs"), ids("UnhealthyAllocationIDs"));
    if healthy.is_empty() && unhealthy.is_empty() {
        return reply::text(500, "must specify at least one healthy/unhealthy allocation ID");
    }
    call.core.write(|s| {
        if let Err(r) = active(s, id, "set health of allocations for a") {
            return r;
        }
        let index = s.begin("DeploymentAllocHealth");
        let now = s.now();
        for (list, value) in [(healthy, true), (unhealthy, false)] {
            for alloc in list {
                let Some(a) = s.allocs.get(&alloc).cloned() else { continue };
                let was = a.health.as_ref().and_then(|h| h.healthy);
                let mut a = Alloc::clone(&a);
                let canary = a.health.as_ref().is_some_and(|h| h.canary);
                a.health = Some(Health { healthy: Some(value), at: now, canary, modify_index: index });
                if was != Some(value) {
                    server::count_health(s, &a, was, value, now);
                }
                s.put_client_alloc(a);
            }
        }
        s.commit();
        server::look(s, id);
        written("", 0, None, index)
    })
}
