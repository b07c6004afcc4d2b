//! `/dev/v1`: the controls no Nomad has. Documented in the crate's own documentation.

use std::time::Duration;

use axum::http::Method;
use axum::response::Response;
use serde_json::{Value, json};

use super::{Call, reply};
use crate::client::Agent;
use crate::duration;
use crate::faults::{Fault, FaultKind};

pub(crate) async fn route(call: Call) -> Response {
    let owned = call.path.clone();
    let path: Vec<&str> = owned.iter().map(String::as_str).collect();
    match (path.as_slice(), &call.method) {
        (["v1"] | ["v1", "status"], &Method::GET) => status(&call),
        (["v1", "node", name, action @ ("down" | "up" | "cut" | "heal")], &Method::PUT | &Method::POST) => {
            node(&call, name, action)
        }
        (["v1", "faults"], &Method::GET) => reply::plain_json(&call.core.faults.all().iter().map(show).collect::<Vec<_>>()),
        (["v1", "faults"], &Method::PUT | &Method::POST) => add(&call),
        (["v1", "faults"], &Method::DELETE) => {
            call.core.faults.clear();
            reply::done(0)
        }
        (["v1", "events", "close"], &Method::PUT | &Method::POST) => {
            call.core.faults.streams.send_modify(|n| *n += 1);
            reply::done(0)
        }
        (["v1", "events", what @ ("lose" | "deliver")], &Method::PUT | &Method::POST) => {
            call.core.faults.mute.send_replace(*what == "lose");
            reply::done(0)
        }
        (["v1", "leader", what @ ("lose" | "elect")], &Method::PUT | &Method::POST) => {
            call.core.leaderless.store(*what == "lose", std::sync::atomic::Ordering::Relaxed);
            reply::done(0)
        }
        _ => reply::not_found(),
    }
}

fn status(call: &Call) -> Response {
    let nodes: Vec<Value> = call.core.read(|s| {
        let row = |n: &std::sync::Arc<crate::state::Node>| {
            json!({"Datacenter": n.config.datacenter, "ID": n.id, "Name": n.name, "Status": n.status.as_str()})
        };
        s.nodes.values().map(row).collect()
    });
    reply::plain_json(&json!({
        "Faults": call.core.faults.all().len(), "Index": call.core.read(|s| s.index), "Nodes": nodes,
        "Processes": call.core.processes.len(), "Version": call.core.config.version,
    }))
}

fn node(call: &Call, name: &str, action: &str) -> Response {
    let agent = match action {
        "down" => Agent::Dead,
        "cut" => Agent::Cut,
        _ => Agent::Up,
    };
    if crate::set_agent(&call.core, name, agent) {
        reply::done(0)
    } else {
        reply::text(404, &format!("no node is called {name}"))
    }
}

fn show(f: &Fault) -> Value {
    let (kind, detail) = match &f.kind {
        FaultKind::Fail { status, body } => ("fail", json!({"Status": status, "Body": body})),
        FaultKind::DropAnswer => ("drop-answer", Value::Null),
        FaultKind::DropRequest => ("drop-request", Value::Null),
        FaultKind::Delay(d) => ("delay", json!(duration::go(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)))),
        FaultKind::DelayAnswer(d) => ("delay-answer", json!(duration::go(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)))),
    };
    json!({"Detail": detail, "Kind": kind, "Method": f.method, "Path": f.path, "Times": f.times})
}

fn add(call: &Call) -> Response {
    let body = match call.json() {
        Ok(b) => b,
        Err(r) => return r,
    };
    let field = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let wait = duration::parse(&field("Delay")).map_or(Duration::ZERO, crate::job::spec::nanos);
    let kind = match field("Kind").as_str() {
        "fail" => FaultKind::Fail {
            status: body.get("Status").and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok()).unwrap_or(500),
            body: field("Body"),
        },
        "drop-answer" => FaultKind::DropAnswer,
        "drop-request" => FaultKind::DropRequest,
        "delay" => FaultKind::Delay(wait),
        "delay-answer" => FaultKind::DelayAnswer(wait),
        other => return reply::text(400, &format!("unknown kind of fault {other:?}")),
    };
    let method = Some(field("Method")).filter(|m| !m.is_empty()).unwrap_or_else(|| "*".into());
    let path = Some(field("Path")).filter(|p| !p.is_empty()).unwrap_or_else(|| "/v1/*".into());
    let times = body.get("Times").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    call.core.faults.add(Fault { method, path, kind, times });
    reply::done(0)
}
