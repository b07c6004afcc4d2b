//! The HTTP API. One handler takes every path apart itself: ids may hold encoded slashes, and unknown paths, wrong methods
//! and errors have to read as Nomad's do.

#![expect(clippy::result_large_err, reason = "an early answer is an answer like any other: it is moved once and sent")]

mod agent;
mod allocs;
mod deployments;
mod dev;
mod evals;
mod fs;
mod job;
mod jobs;
mod nodes;
mod query;
mod reply;
mod stream;
mod vars;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::response::Response;
use bytes::Bytes;
use percent_encoding::percent_decode_str;

use crate::core::Core;
use crate::faults::FaultKind;
use query::Query;

/// Requests bigger than this are refused: no jobspec is.
const MAX_BODY: usize = 64 * 1024 * 1024;

pub(crate) fn router(core: Arc<Core>) -> Router {
    Router::new().fallback(handle).with_state(core)
}

/// A request taken apart.
pub(crate) struct Call {
    pub core: Arc<Core>,
    pub method: Method,
    /// Decoded, without the leading `v1`.
    pub path: Vec<String>,
    pub query: Query,
    pub body: Bytes,
}

impl Call {
    pub(crate) fn is(&self, methods: &[Method]) -> bool {
        methods.contains(&self.method)
    }

    pub(crate) fn writes(&self) -> bool {
        self.method == Method::PUT || self.method == Method::POST
    }

    pub(crate) fn json(&self) -> Result<serde_json::Value, Response> {
        if self.body.is_empty() {
            return Err(reply::text(400, "Request body is empty"));
        }
        serde_json::from_slice(&self.body).map_err(|e| reply::text(400, &reply::go_json_error(&self.body, &e)))
    }

    /// As `json`, but an empty body is an empty object.
    pub(crate) fn json_or_empty(&self) -> Result<serde_json::Value, Response> {
        if self.body.is_empty() { Ok(serde_json::json!({})) } else { self.json() }
    }
}

pub(crate) async fn handle(State(core): State<Arc<Core>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let raw = parts.uri.path().to_owned();
    let decoded: String = percent_decode_str(&raw).decode_utf8_lossy().into_owned();
    let segments: Vec<String> = raw.split('/').skip(1).map(|s| percent_decode_str(s).decode_utf8_lossy().into_owned()).collect();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    if segments.first().map(String::as_str) == Some("dev") {
        let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else { return reply::text(413, "body too large") };
        let call = Call { core, method: parts.method, path: segments[1..].to_vec(), query, body };
        return dev::route(call).await;
    }
    let fault = core.faults.hit(parts.method.as_str(), &decoded);
    let mut late = None;
    match fault {
        None => {}
        Some(FaultKind::Fail { status, body }) => return reply::text(status, &body),
        Some(FaultKind::DropRequest) => return reply::broken(),
        Some(FaultKind::Delay(d)) => tokio::time::sleep(d).await,
        Some(FaultKind::DelayAnswer(d)) => late = Some(Some(d)),
        Some(FaultKind::DropAnswer) => late = Some(None),
    }
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else { return reply::text(413, "http: request body too large") };
    let response = match segments.split_first() {
        Some((v1, rest)) if v1 == "v1" => route(Call { core, method: parts.method, path: rest.to_vec(), query, body }).await,
        Some((ui, _)) if ui.is_empty() || ui == "ui" => reply::text(200, "curfew dev cluster: the API is below /v1\n"),
        _ => reply::not_found(),
    };
    match late {
        None => response,
        Some(None) => reply::broken(),
        Some(Some(d)) => {
            tokio::time::sleep(d).await;
            response
        }
    }
}

async fn route(call: Call) -> Response {
    let owned: Vec<String> = call.path.clone();
    let path: Vec<&str> = owned.iter().map(String::as_str).collect();
    if !call.core.has_leader() && !matches!(path.first(), Some(&("agent" | "status"))) {
        return reply::text(500, "No cluster leader");
    }
    match path.as_slice() {
        ["jobs"] => jobs::collection(call).await,
        ["jobs", "parse"] => jobs::parse(&call),
        ["jobs", "statuses"] => jobs::statuses(call).await,
        ["validate", "job"] => jobs::validate(&call),
        ["search", ..] => jobs::search(&call),
        ["job", rest @ ..] if !rest.is_empty() => {
            let rest: Vec<String> = rest.iter().map(|s| (*s).to_owned()).collect();
            job::route(call, &rest).await
        }
        ["allocations"] => allocs::list(&call).await.unwrap_or_else(|r| r),
        ["allocation", id] => allocs::get(call, id).await,
        ["allocation", id, "stop"] => allocs::stop(&call, id),
        ["allocation", _, "services" | "checks"] => reply::read(&serde_json::json!([]), 1),
        ["client", "allocation", id, action] => allocs::client(call, id, action).await,
        ["client", "fs", action, id] => fs::route(call, action, id).await,
        ["client", "metadata"] => nodes::metadata(&call),
        ["client", "stats"] => agent::client_stats(&call),
        ["client", "gc"] => reply::written(&serde_json::json!({}), 0),
        ["nodes"] => nodes::list(&call).await.unwrap_or_else(|r| r),
        ["node", "pools"] | ["node", "pool", ..] => nodes::pools(&call, &path[1..]),
        ["node", id] => nodes::get(call, id).await,
        ["node", id, "allocations"] => nodes::allocations(call, id).await,
        ["node", id, "drain"] => nodes::drain(&call, id),
        ["node", id, "eligibility"] => nodes::eligibility(&call, id),
        ["node", id, "evaluate"] => nodes::evaluate(&call, id),
        ["evaluations"] => evals::list(&call).await.unwrap_or_else(|r| r),
        ["evaluations", "count"] => evals::count(&call),
        ["evaluation", id] => evals::get(call, id).await,
        ["evaluation", id, "allocations"] => evals::allocations(call, id).await,
        ["deployments"] => deployments::list(&call).await.unwrap_or_else(|r| r),
        ["deployment", rest @ ..] => deployments::route(call, rest).await,
        ["event", "stream"] => stream::open(&call),
        ["status", what @ ("leader" | "peers")] => agent::status(&call, what),
        ["agent", rest @ ..] => agent::route(&call, rest),
        ["regions"] => agent::regions(&call),
        ["namespaces"] => agent::namespaces(&call),
        ["namespace", name] => agent::namespace(&call, name),
        ["namespace"] => agent::namespace(&call, ""),
        ["system", "gc" | "reconcile", ..] => agent::gc(&call, path.get(1) == Some(&"gc")),
        ["operator", rest @ ..] => agent::operator(&call, rest),
        ["acl", rest @ ..] => agent::acl(&call, rest),
        ["vars"] => vars::list(call).await,
        ["var", rest @ ..] if !rest.is_empty() => vars::one(call, &rest.join("/")).await,
        ["volumes" | "plugins" | "services" | "scaling", ..] => reply::read(&serde_json::json!([]), 1),
        ["metrics"] => reply::plain_json(&serde_json::json!({"Counters": [], "Gauges": [], "Points": [], "Samples": []})),
        _ => reply::not_found(),
    }
}
