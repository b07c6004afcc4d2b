//! `/v1/search`: by prefix, which the official command line asks before it reads anything by a short id.

use axum::response::Response;
use serde_json::{Map, Value, json};

use super::access::Call;
use super::reply;

/// What can be searched here.
const CONTEXTS: [&str; 5] = ["jobs", "allocs", "nodes", "evals", "deployment"];

pub(crate) fn prefix(call: &Call) -> Result<Response, Response> {
    let body = call.json()?;
    let (prefix, context) = (crate::job::spec::text(&body, "Prefix"), crate::job::spec::text(&body, "Context"));
    let namespace = call.query.namespace();
    let may = |context: &str| match context {
        "nodes" => call.acl().node_read(),
        _ => call.acl().may(namespace, &["read-job"]),
    };
    if CONTEXTS.contains(&context.as_str()) && !may(&context) {
        return Err(reply::denied());
    }
    Ok(call.core.read(|s| {
        let mut matches = Map::new();
        for name in CONTEXTS.iter().filter(|c| (context == "all" || context.is_empty() || context == **c) && may(c)) {
            let mine = |namespace: &str, id: &str| id.starts_with(&prefix) && call.shows(namespace, "read-job");
            let ids: Vec<&String> = match *name {
                "jobs" => s.jobs.keys().filter(|k| mine(&k.0, &k.1)).map(|k| &k.1).take(20).collect(),
                "allocs" => s.allocs.iter().filter(|(id, a)| mine(&a.job.spec.namespace, id)).map(|(id, _)| id).take(20).collect(),
                "nodes" => s.nodes.keys().filter(|k| k.starts_with(&prefix)).take(20).collect(),
                "evals" => s.evals.iter().filter(|(id, e)| mine(&e.job.0, id)).map(|(id, _)| id).take(20).collect(),
                _ => s.deployments.iter().filter(|(id, d)| mine(&d.job.0, id)).map(|(id, _)| id).take(20).collect(),
            };
            matches.insert((*name).to_owned(), json!(ids));
        }
        let truncated: Map<String, Value> = matches.keys().map(|k| (k.clone(), json!(false))).collect();
        reply::read(
            &json!({"Matches": matches, "Truncations": truncated, "Index": s.index, "KnownLeader": true, "LastContact": 0, "NextToken": ""}),
            s.index,
        )
    }))
}
