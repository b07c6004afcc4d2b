//! `/v1/nodes` and `/v1/node/:id`.

use std::sync::Arc;

use axum::http::Method;
use axum::response::Response;
use serde_json::{Value, json};

use super::access::{Asked, Call, Need};
use super::query::{opened, page};
use super::reply;
use crate::ids::is_uuid;
use crate::server::{self, drain};
use crate::state::{Node, State, Table};

pub(crate) async fn list(call: &Call) -> Result<Response, Response> {
    let q = &call.query;
    let filter = opened(call, Table::Nodes).await?;
    let prefix = q.get("prefix");
    if !prefix.is_empty() {
        super::allocs::check_prefix(prefix)?;
    }
    let (nodes, index): (Vec<Arc<Node>>, u64) = call.core.read(|s| {
        let all = s.nodes.iter().filter(|(id, _)| id.starts_with(prefix)).map(|(_, n)| n.clone());
        (all.collect(), s.table(Table::Nodes))
    });
    let page = page(
        q,
        nodes.into_iter(),
        |n| n.id.clone(),
        |n, token| n.id.as_str() < token,
        |n| filter.as_ref().map_or(Ok(true), |f| f.accepts(&n.to_json())),
    )?;
    let resources = q.flag("resources", false);
    let rows: Vec<Value> = page.items.iter().map(|n| n.stub(resources)).collect();
    Ok(reply::read_page(&rows, index, &page.next))
}

fn find(s: &State, id: &str) -> Result<Arc<Node>, Response> {
    if !is_uuid(id) {
        return Err(reply::text(500, "node lookup failed: index error: UUID must be 36 characters"));
    }
    s.nodes.get(id).cloned().ok_or_else(|| reply::missing("node not found", s.table(Table::Nodes)))
}

pub(crate) async fn get(call: Call, id: &str) -> Response {
    let index_of = |s: &State| s.nodes.get(id).map_or_else(|| s.table(Table::Nodes), |n| n.modify_index);
    if let Err(r) = call.query.wait(&call.core, index_of).await {
        return r;
    }
    match call.core.read(|s| find(s, id)) {
        Ok(n) => reply::read(&n.to_json(), n.modify_index),
        Err(r) => r,
    }
}

pub(crate) async fn allocations(call: Call, id: &str) -> Response {
    let index_of = |s: &State| s.allocs_on(id).iter().map(|a| a.modify_index).max().unwrap_or_else(|| s.table(Table::Allocs));
    if let Err(r) = call.query.wait(&call.core, index_of).await {
        return r;
    }
    if !is_uuid(id) {
        return reply::text(500, "index error: UUID must be 36 characters");
    }
    let (allocs, index) = call.core.read(|s| (s.allocs_on(id), index_of(s)));
    let mine = allocs.iter().filter(|a| call.acl().may(&a.job.spec.namespace, &["read-job"]));
    let rows: Vec<Value> = mine.map(|a| a.to_json(true)).collect();
    reply::read(&rows, index)
}

fn changed(d: &drain::Drained, node_index: u64) -> Response {
    let ids = if d.eval_ids.is_empty() { Value::Null } else { json!(d.eval_ids) };
    reply::written(
        &json!({"EvalCreateIndex": d.eval_index, "EvalIDs": ids, "Index": d.index, "NodeModifyIndex": node_index}),
        d.index,
    )
}

pub(crate) fn drain(call: &Call, id: &str) -> Response {
    let body = match call.json() {
        Ok(b) => b,
        Err(r) => return r,
    };
    let spec = body
        .get("DrainSpec")
        .filter(|s| s.is_object())
        .map(|s| (crate::job::spec::int(s, "Deadline").unwrap_or(0), crate::job::spec::flag(s, "IgnoreSystemJobs")));
    let mark = crate::job::spec::flag(&body, "MarkEligible");
    let meta = body.get("Meta").cloned().unwrap_or(Value::Null);
    match call.core.write(|s| drain::set(s, id, spec, mark, &meta)) {
        Some(d) => {
            let index = d.index;
            changed(&d, index)
        }
        None => reply::text(500, "node not found"),
    }
}

pub(crate) fn eligibility(call: &Call, id: &str) -> Response {
    let body = match call.json() {
        Ok(b) => b,
        Err(r) => return r,
    };
    let eligible = match body.get("Eligibility").and_then(Value::as_str).unwrap_or_default() {
        "eligible" => true,
        "ineligible" => false,
        other => return reply::text(500, &format!("invalid scheduling eligibility {other:?}")),
    };
    let draining = call.core.read(|s| s.nodes.get(id).is_some_and(|n| n.drain.is_some()));
    if draining && eligible {
        return reply::text(500, "can not set node's scheduling eligibility to eligible while it is draining");
    }
    match call.core.write(|s| drain::set_eligible(s, id, eligible)) {
        // Nomad leaves the node's own index at zero here.
        Some(d) => changed(&d, 0),
        None => reply::text(500, "node not found"),
    }
}

pub(crate) fn evaluate(call: &Call, id: &str) -> Response {
    let exists = call.core.read(|s| s.nodes.contains_key(id));
    if !exists {
        return reply::text(500, "node not found");
    }
    let d = call.core.write(|s| {
        let index = s.begin("EvaluationUpdated");
        let eval_ids = server::node_evals(s, id);
        s.commit();
        drain::Drained { index, eval_ids, eval_index: index }
    });
    changed(&d, 0)
}

pub(crate) fn purge(call: &Call, id: &str) -> Response {
    match crate::purge(&call.core, id) {
        Some(d) => {
            let index = d.index;
            changed(&d, index)
        }
        None => reply::text(500, "node not found"),
    }
}

/// `nomad node meta read`: what the node was started with; nothing changes it here.
pub(crate) fn metadata(r: Asked) -> Result<Response, Response> {
    if r.method != Method::GET {
        r.put(Need::NodeWrite)?;
        return Err(reply::text(400, "the dev cluster's node metadata is that of its configuration"));
    }
    let call = r.get(Need::NodeRead)?;
    let wanted = call.query.get("node_id");
    let n = call.core.read(|s| match wanted {
        "" => s.nodes.values().next().cloned().ok_or_else(reply::not_found),
        id => find(s, id),
    })?;
    Ok(reply::plain_json(&json!({"Dynamic": {}, "Meta": n.config.meta, "Static": n.config.meta})))
}

pub(crate) fn pools(call: &Call, path: &[&str]) -> Result<Response, Response> {
    let readable = |name: &str| call.acl().pool(name, "read");
    if let ["pool", name, ..] = path
        && !readable(name)
    {
        return Err(reply::denied());
    }
    Ok(call.core.read(|s| {
        let mut names: Vec<&str> = s.nodes.values().map(|n| n.config.node_pool.as_str()).chain(["all", "default"]).collect();
        names.sort_unstable();
        names.dedup();
        let row = |name: &str| json!({"CreateIndex": 1, "Description": "", "Meta": {}, "ModifyIndex": 1, "Name": name, "SchedulerConfiguration": null});
        match path {
            ["pools"] => reply::read(&names.iter().filter(|n| readable(n)).map(|n| row(n)).collect::<Vec<_>>(), 1),
            ["pool", name] if names.contains(name) => reply::read(&row(name), 1),
            ["pool", _, "nodes"] if !call.acl().node_read() => reply::denied(),
            ["pool", name, "nodes"] => {
                let nodes: Vec<Value> =
                    s.nodes.values().filter(|n| *name == "all" || n.config.node_pool == *name).map(|n| n.stub(false)).collect();
                reply::read(&nodes, s.table(Table::Nodes))
            }
            ["pool", name, "jobs"] => {
                let mine = s.jobs.values().filter(|e| {
                    e.current.spec.node_pool == *name && call.acl().may(&e.current.spec.namespace, &["list-jobs"])
                });
                let jobs: Vec<Value> = mine.map(|e| json!({"ID": e.current.spec.id, "Status": e.current.status})).collect();
                reply::read(&jobs, s.table(Table::Jobs))
            }
            _ => reply::missing("node pool not found", 1),
        }
    }))
}
