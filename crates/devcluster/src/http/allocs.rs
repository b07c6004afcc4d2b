//! `/v1/allocations`, `/v1/allocation/:id` and the calls a client answers.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};

use super::access::{Asked, Call, Need};
use super::query::{numbered_before, opened, page};
use super::reply;
use crate::client::{AllocRunner, SignalError};
use crate::ids::is_uuid;
use crate::server::jobs;
use crate::state::{Alloc, Table};

pub(crate) async fn list(call: &Call) -> Result<Response, Response> {
    let q = &call.query;
    let filter = opened(call, Table::Allocs).await?;
    let prefix = q.get("prefix");
    if !prefix.is_empty() {
        check_prefix(prefix)?;
    }
    // Only pointers are copied under the lock; filters run outside of it.
    let (allocs, index): (Vec<Arc<Alloc>>, u64) = call.core.read(|s| {
        let all = s.alloc_order.values().filter(|a| a.id.starts_with(prefix));
        let mine = all.filter(|a| call.shows(&a.job.spec.namespace, "read-job"));
        (mine.cloned().collect(), s.table(Table::Allocs))
    });
    let (task_states, resources) = (q.flag("task_states", true), q.flag("resources", false));
    let reverse = q.flag("reverse", false);
    let items: Box<dyn Iterator<Item = Arc<Alloc>> + Send> =
        if reverse { Box::new(allocs.into_iter().rev()) } else { Box::new(allocs.into_iter()) };
    let page = page(
        q,
        items,
        |a| format!("{}.{}", a.create_index, a.id),
        |a, token| {
            let before = numbered_before(a.create_index, &a.id, token);
            let same = format!("{}.{}", a.create_index, a.id) == token;
            if reverse { !before && !same } else { before }
        },
        |a| filter.as_ref().map_or(Ok(true), |f| f.accepts(a.as_ref())),
    )?;
    let rows: Vec<_> = page.items.iter().map(|a| a.stub(task_states, resources)).collect();
    Ok(reply::read_page(&rows, index, &page.next))
}

/// An id prefix: hexadecimal digits and hyphens where a UUID has them.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), Response> {
    let hyphens = prefix.matches('-').count();
    if prefix.len() > 36 || hyphens > 4 || !prefix.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return Err(reply::text(500, &format!("Invalid UUID: encoding/hex: invalid byte in {prefix:?}")));
    }
    Ok(())
}

fn lookup_error() -> Response {
    reply::text(500, "alloc lookup failed: index error: UUID must be 36 characters")
}

pub(crate) async fn get(call: Call, id: &str) -> Response {
    if !is_uuid(id) {
        return lookup_error();
    }
    let wait = call.query.wait(&call.core, |s| s.allocs.get(id).map_or_else(|| s.table(Table::Allocs), |a| a.modify_index)).await;
    if let Err(r) = wait {
        return r;
    }
    let (found, table) = call.core.read(|s| (s.allocs.get(id).cloned(), s.table(Table::Allocs)));
    match found {
        // Nomad hides it, and forgets to say so with a 404.
        Some(a) if !call.acl().may(&a.job.spec.namespace, &["read-job"]) => {
            reply::text(500, &format!("Unknown allocation {id:?}"))
        }
        Some(a) => reply::read(&a.to_json(true), a.modify_index),
        None => reply::missing("alloc not found", table),
    }
}

pub(crate) fn stop(call: &Call, id: &str) -> Result<Response, Response> {
    if !is_uuid(id) {
        return Err(lookup_error());
    }
    let unknown = || reply::text(404, "allocation not found");
    let alloc = call.core.read(|s| s.allocs.get(id).cloned()).ok_or_else(unknown)?;
    call.demand(&alloc.job.spec.namespace, &["alloc-lifecycle"])?;
    let skip = call.query.flag("no_shutdown_delay", false);
    match call.core.write(|s| jobs::stop_alloc(s, id, skip)) {
        Some((eval, index)) => Ok(reply::written(&json!({"EvalID": eval, "Index": index}), index)),
        None => Err(unknown()),
    }
}

/// The runner behind an allocation, or the answer why there is none within reach.
pub(crate) fn runner(call: &Call, id: &str, any_of: &[&str]) -> Result<Arc<AllocRunner>, Response> {
    if !is_uuid(id) {
        return Err(lookup_error());
    }
    let unknown = || reply::text(404, &format!("Unknown allocation {id:?}"));
    let alloc = call.core.read(|s| s.allocs.get(id).cloned()).ok_or_else(unknown)?;
    call.demand(&alloc.job.spec.namespace, any_of)?;
    let client = call.core.client(&alloc.node_id).ok_or_else(|| reply::text(404, "No path to node"))?;
    if !client.reachable() {
        return Err(reply::text(404, "No path to node"));
    }
    client.runner(id).ok_or_else(unknown)
}

pub(crate) async fn client(r: Asked, id: &str, action: &str) -> Result<Response, Response> {
    match action {
        "signal" => signal(&r.put(Need::Token)?, id),
        "restart" => restart(&r.put(Need::Token)?, id).await,
        "stats" => stats(&r.get(Need::Token)?, id),
        "checks" => {
            runner(&r.get(Need::Token)?, id, &["read-job"])?;
            Ok(reply::plain_json(&json!({})))
        }
        "gc" => {
            runner(&r.any(Need::Token)?, id, &["submit-job", "gc-allocation"])?;
            Ok(reply::written(&json!({}), 0))
        }
        _ => Err(reply::not_found()),
    }
}

fn signal(call: &Call, id: &str) -> Result<Response, Response> {
    let body = call.json_or_empty()?;
    let field = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let runner = runner(call, id, &["alloc-lifecycle"])?;
    match runner.signal(&field("Task"), &field("Signal")) {
        Ok(()) => Ok(reply::plain_json(&json!({"Index": 0}))),
        Err(SignalError::TaskNotFound) => Err(reply::text(500, "Task not found")),
        Err(SignalError::Failed(text)) => Err(reply::text(500, &text)),
    }
}

async fn restart(call: &Call, id: &str) -> Result<Response, Response> {
    let body = call.json_or_empty()?;
    let task = body.get("TaskName").and_then(Value::as_str).unwrap_or_default();
    let all = body.get("AllTasks").and_then(Value::as_bool).unwrap_or(false);
    if all && !task.is_empty() {
        return Err(reply::text(500, "task name cannot be set when restarting all tasks"));
    }
    let runner = runner(call, id, &["alloc-lifecycle"])?;
    match runner.restart(task, all).await {
        Ok(()) => Ok(reply::plain_json(&json!({"Index": 0}))),
        Err(text) => Err(reply::text(500, &text)),
    }
}

fn stats(call: &Call, id: &str) -> Result<Response, Response> {
    let runner = runner(call, id, &["read-job"])?;
    let now = call.core.clock.now_ns();
    let usage = json!({
        "CpuStats": {"Measured": ["Percent"], "Percent": 0.0, "SystemMode": 0.0, "ThrottledPeriods": 0, "ThrottledTime": 0, "TotalTicks": 0.0, "UserMode": 0.0},
        "DeviceStats": null,
        "MemoryStats": {"Cache": 0, "KernelMaxUsage": 0, "KernelUsage": 0, "MappedFile": 0, "MaxUsage": 0, "Measured": ["RSS"], "RSS": 0, "Swap": 0, "Usage": 0},
    });
    let tasks: serde_json::Map<String, Value> = runner
        .tasks
        .iter()
        .map(|t| (t.name().to_owned(), json!({"Pids": null, "ResourceUsage": usage, "Timestamp": now})))
        .collect();
    let up = runner.started_at().map_or(0, |t| t.elapsed().as_secs());
    Ok(reply::plain_json(&json!({"ResourceUsage": usage, "Tasks": tasks, "Timestamp": now, "Uptime": up})))
}
