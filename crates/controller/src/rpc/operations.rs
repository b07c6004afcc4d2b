//! Operations and the audit trail, to look at.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use curfew_core::api::OperationView;
use curfew_core::audit::AuditRow;
use curfew_core::operation::{Kind, Operation, Request, State as OpState};
use curfew_core::{JobKey, OpId, Timestamp, duration, outcome};
use curfew_store::{AuditFilter, OperationFilter};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;

use super::Rpc;
use super::problem::Refusal;

/// The longest a caller may wait in one request.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Another controller may finish it: look again.
const LOOK: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShowQuery {
    /// Answer when it has finished, or after this long.
    #[serde(default, with = "duration::text_opt")]
    wait: Option<Duration>,
}

pub async fn show(
    State(rpc): State<Rpc>,
    Path(id): Path<String>,
    query: Result<Query<ShowQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<OperationView>, Refusal> {
    let Query(query) = query.map_err(|e| Refusal::bad_request(e.body_text()))?;
    let id: OpId = id.parse().map_err(|_| Refusal::bad_request(format!("\"{id}\" is not an operation's id (a UUID)")))?;
    let mut changed = rpc.changed.subscribe();
    let until = tokio::time::Instant::now() + query.wait.unwrap_or_default().min(LONGEST_WAIT);
    loop {
        let Some(op) = rpc.store.operation(id).await? else {
            return Err(Refusal::no_such_operation(format!("there is no operation {id}")));
        };
        let over = op.state.is_finished() || tokio::time::Instant::now() >= until || rpc.stop.is_cancelled();
        if over {
            return Ok(Json(rpc.view(op).await));
        }
        let look = (tokio::time::Instant::now() + LOOK).min(until);
        loop {
            tokio::select! {
                change = changed.recv() => match change {
                    Ok(other) if other != id => {}
                    // Fell behind: what it missed may have been this one.
                    Ok(_) | Err(RecvError::Lagged(_) | RecvError::Closed) => break,
                },
                () = tokio::time::sleep_until(look) => break,
                () = rpc.stop.cancelled() => break,
            }
        }
    }
}

impl Rpc {
    /// With what is known so far, while it is not finished.
    async fn view(&self, op: Operation) -> OperationView {
        let live = match &op.request {
            Request::Stop { target, .. } if !op.state.is_finished() => self.keeper.report(op.id, target.clone()).await,
            _ => None,
        };
        match &op.request {
            Request::DrainNode { node, .. } if !op.state.is_finished() => {
                let node = node.clone();
                return self.node_view(op, &node).await;
            }
            Request::DrainDatacenter { .. } if !op.state.is_finished() => return self.set_view(op).await,
            _ => {}
        }
        // What the last step failed with is what it waits for, whatever else could be said.
        let failing = op.attempts > 0;
        let mut view = OperationView::from(op);
        if let Some(report) = live {
            view.deadline = report.deadline.or(view.deadline);
            if !failing {
                view.waiting_for = report.waiting_for.or(view.waiting_for);
            }
            view.outcome = Some(outcome::total(report.allocations));
        }
        view
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    kind: Option<Kind>,
    state: Option<OpState>,
    job: Option<String>,
    namespace: Option<String>,
    /// The next page starts after this operation.
    before: Option<OpId>,
    limit: Option<usize>,
}

pub async fn list(
    State(rpc): State<Rpc>,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Vec<OperationView>>, Refusal> {
    let Query(q) = query.map_err(|e| Refusal::bad_request(e.body_text()))?;
    let namespace = q.namespace.map_or_else(|| rpc.nomad.config().namespace.clone(), Into::into);
    let filter = OperationFilter {
        kinds: q.kind.into_iter().collect(),
        states: q.state.into_iter().collect(),
        target: q.job.map(|job| JobKey { namespace, job: job.into() }.into()),
        parent: None,
        before: q.before,
        limit: q.limit.unwrap_or(100).clamp(1, 1000),
    };
    Ok(Json(rpc.store.operations(filter).await?.into_iter().map(OperationView::from).collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    operation: Option<OpId>,
    since: Option<Timestamp>,
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

pub async fn audit(
    State(rpc): State<Rpc>,
    query: Result<Query<AuditQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Vec<AuditRow>>, Refusal> {
    let Query(q) = query.map_err(|e| Refusal::bad_request(e.body_text()))?;
    let filter = AuditFilter {
        operation: q.operation,
        after_seq: q.after,
        since: q.since,
        limit: q.limit.unwrap_or(1000).clamp(1, 10_000),
    };
    Ok(Json(rpc.store.audit(filter).await?))
}
