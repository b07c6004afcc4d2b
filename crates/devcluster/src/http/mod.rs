//! The HTTP API. One handler takes every path apart itself: ids may hold encoded slashes, and unknown paths, wrong methods
//! and errors have to read as Nomad's do.

#![expect(clippy::result_large_err, reason = "an early answer is an answer like any other: it is moved once and sent")]

mod access;
mod acl;
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
mod search;
mod stream;
mod vars;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use percent_encoding::percent_decode_str;

use crate::core::Core;
use crate::faults::FaultKind;
use access::{Asked, Need, READ_JOB};
use query::Query;

/// Requests bigger than this are refused: no jobspec is.
const MAX_BODY: usize = 64 * 1024 * 1024;

pub(crate) use acl::bootstrap;

pub(crate) fn router(core: Arc<Core>) -> Router {
    Router::new().fallback(handle).with_state(core)
}

pub(crate) async fn handle(State(core): State<Arc<Core>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let raw = parts.uri.path().to_owned();
    let decoded: String = percent_decode_str(&raw).decode_utf8_lossy().into_owned();
    let segments: Vec<String> = raw.split('/').skip(1).map(|s| percent_decode_str(s).decode_utf8_lossy().into_owned()).collect();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    if segments.first().map(String::as_str) == Some("dev") {
        let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else { return reply::text(413, "body too large") };
        let path = segments[1..].to_vec();
        let asked = Asked { core, method: parts.method, path, query, body, secret: String::new(), says: None };
        return match asked.any(Need::Open) {
            Ok(call) => dev::route(call).await,
            Err(refused) => refused,
        };
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
        Some((v1, rest)) if v1 == "v1" => {
            let (secret, path) = (secret(&parts.headers), rest.to_vec());
            let asked = Asked { core, method: parts.method, path, query, body, secret, says: None };
            route(asked).await.unwrap_or_else(|refused| refused)
        }
        Some((known, rest)) if known == ".well-known" && rest == ["jwks.json"] => match parts.method {
            // It signs no identities, and so has no keys.
            Method::GET => reply::plain_json(&serde_json::json!({ "keys": [] })),
            _ => reply::wrong_method(),
        },
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

/// The token, in either of the headers that Nomad reads.
fn secret(headers: &HeaderMap) -> String {
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match header("x-nomad-token") {
        "" => header("authorization").strip_prefix("Bearer ").unwrap_or_default(),
        token => token,
    }
    .trim()
    .to_owned()
}

/// An agent that resolves a token itself says this before what is wrong with it.
const AGENT_SAYS: &str = "ACL token not found or invalid workload identity: ";

async fn route(r: Asked) -> Result<Response, Response> {
    let owned: Vec<String> = r.path.clone();
    let path: Vec<&str> = owned.iter().map(String::as_str).collect();
    if !r.core.has_leader() && !matches!(path.first(), Some(&("agent" | "status"))) {
        return Err(reply::text(500, "No cluster leader"));
    }
    Ok(match path.as_slice() {
        ["jobs"] if r.method == Method::GET => jobs::list(r.get(Need::Any(&["list-jobs"]))?).await?,
        ["jobs"] => jobs::register(&r.put(Need::Token)?, None)?,
        ["jobs", "parse"] => jobs::parse(&r.saying(AGENT_SAYS).put(Need::Any(&["parse-job", "submit-job"]))?),
        ["jobs", "statuses"] if matches!(r.method, Method::GET | Method::POST) => jobs::statuses(r.any(READ_JOB)?).await,
        ["jobs", "statuses"] => reply::wrong_method(),
        ["validate", "job"] => jobs::validate(&r.put(Need::Token)?)?,
        ["search", ..] => search::prefix(&r.put(Need::Token)?)?,
        ["job", rest @ ..] if !rest.is_empty() => {
            let rest: Vec<String> = rest.iter().map(|s| (*s).to_owned()).collect();
            job::route(r, &rest).await?
        }
        ["allocations"] => allocs::list(&r.get(READ_JOB)?).await?,
        ["allocation", id] => allocs::get(r.get(Need::Token)?, id).await,
        ["allocation", id, "stop"] => allocs::stop(&r.put(Need::Token)?, id)?,
        ["allocation", _, "services" | "checks"] => {
            r.get(READ_JOB)?;
            reply::read(&serde_json::json!([]), 1)
        }
        ["client", "allocation", id, action] => allocs::client(r, id, action).await?,
        ["client", "fs", action, id] => fs::route(r.get(Need::Token)?, action, id).await?,
        ["client", "metadata"] => nodes::metadata(r)?,
        ["client", "stats"] => agent::client_stats(&r.get(Need::NodeRead)?),
        ["client", "gc"] => {
            r.any(Need::NodeWrite)?;
            reply::written(&serde_json::json!({}), 0)
        }
        ["nodes"] => nodes::list(&r.get(Need::NodeRead)?).await?,
        ["node", "pools"] | ["node", "pool", ..] => nodes::pools(&r.get(Need::Token)?, &path[1..])?,
        ["node", id] => nodes::get(r.get(Need::NodeRead)?, id).await,
        ["node", id, "allocations"] => nodes::allocations(r.get(Need::NodeRead)?, id).await,
        ["node", id, "drain"] => nodes::drain(&r.put(Need::NodeWrite)?, id),
        ["node", id, "eligibility"] => nodes::eligibility(&r.put(Need::NodeWrite)?, id),
        ["node", id, "purge"] => nodes::purge(&r.put(Need::NodeWrite)?, id),
        ["node", id, "evaluate"] => nodes::evaluate(&r.put(Need::NodeWrite)?, id),
        ["evaluations"] => evals::list(&r.get(READ_JOB)?).await?,
        ["evaluations", "count"] => evals::count(&r.get(READ_JOB)?),
        ["evaluation", id] => evals::get(r.get(READ_JOB)?, id).await?,
        ["evaluation", id, "allocations"] => evals::allocations(r.get(READ_JOB)?, id).await?,
        ["deployments"] => deployments::list(&r.get(READ_JOB)?).await?,
        ["deployment", rest @ ..] => deployments::route(r, rest).await?,
        ["event", "stream"] => stream::open(&r.get(Need::Open)?),
        ["status", what @ ("leader" | "peers")] => agent::status(&r.get(Need::Open)?, what),
        ["agent", rest @ ..] => agent::route(r, rest)?,
        ["regions"] => agent::regions(&r.get(Need::Open)?),
        ["namespaces"] => agent::namespaces(&r.get(Need::Token)?),
        ["namespace", name] => agent::namespace(r, name)?,
        ["namespace"] => agent::namespace(r, "")?,
        ["system", "gc" | "reconcile", ..] => agent::gc(&r.put(Need::Management)?, path.get(1) == Some(&"gc")),
        ["operator", rest @ ..] => agent::operator(r, rest)?,
        ["acl", rest @ ..] => acl::route(r, rest)?,
        ["vars"] => vars::list(r.get(Need::Token)?).await?,
        ["var", rest @ ..] if !rest.is_empty() => vars::one(r.any(Need::Token)?, &rest.join("/")).await?,
        ["volumes", ..] => {
            r.get(Need::Any(&["csi-list-volume", "csi-read-volume", "csi-mount-volume", "list-jobs"]))?;
            reply::read(&serde_json::json!([]), 1)
        }
        ["plugins", ..] => {
            r.get(Need::PluginList)?;
            reply::read(&serde_json::json!([]), 1)
        }
        ["services", ..] => {
            r.get(READ_JOB)?;
            reply::read(&serde_json::json!([]), 1)
        }
        ["scaling", ..] => {
            let call = r.get(Need::Token)?;
            let namespace = call.query.namespace();
            if !call.acl().may(namespace, &["list-scaling-policies"]) {
                call.demand(namespace, &["list-jobs"])?;
                call.demand(namespace, &["read-job"])?;
            }
            reply::read(&serde_json::json!([]), 1)
        }
        ["metrics"] => {
            r.get(Need::Open)?;
            reply::plain_json(&serde_json::json!({"Counters": [], "Gauges": [], "Points": [], "Samples": []}))
        }
        _ => reply::not_found(),
    })
}
