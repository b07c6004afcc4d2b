//! Operations and the audit trail, to look at.
#![expect(unused_qualifications, reason = "the macro that describes a route qualifies the types of its query")]

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use curfew_core::api::{HeldView, KindView, OperationView, QueueCountView, QueueView, StatusView};
use curfew_core::audit::AuditRow;
use curfew_core::operation::{Kind, Operation, Request, State as OpState};
use curfew_core::{JobKey, OpId, Timestamp, duration, outcome};
use curfew_store::{AuditFilter, Change, Held, OperationFilter, QueueCount, QueueStatus};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

use super::interventions::{operation_id, view};
use super::problem::Refusal;
use super::{Asked, Caller, Named, Rpc};

/// The longest a caller may wait in one request.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// The change that is waited for may get lost: look again.
const LOOK: Duration = Duration::from_secs(5);

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ShowQuery {
    /// Answer when it has finished, or after this long; at most `5m`.
    #[serde(default, with = "duration::text_opt")]
    #[param(value_type = Option<duration::Text>)]
    wait: Option<Duration>,
}

/// One operation; with `?wait=` when it has finished.
#[utoipa::path(
    get, path = "/v1/operations/{id}", tag = "operations", params(("id" = OpId, Path, description = "The operation's id."), ShowQuery),
    responses((status = 200, description = "The operation as it is now.", body = OperationView))
)]
pub async fn show(
    State(rpc): State<Rpc>,
    caller: Caller,
    Named(id): Named<String>,
    Asked(query): Asked<ShowQuery>,
) -> Result<Json<OperationView>, Refusal> {
    let id = operation_id(&id)?;
    let mut changed = rpc.store.changes();
    let until = tokio::time::Instant::now() + query.wait.unwrap_or_default().min(LONGEST_WAIT);
    let mut place = None;
    loop {
        let op = rpc.visible(&caller, id).await?;
        let over = op.state.is_finished() || tokio::time::Instant::now() >= until || rpc.stop.is_cancelled();
        if over {
            return Ok(Json(rpc.view(op).await));
        }
        if place.is_none() {
            place = Some(rpc.stream(&caller)?);
        }
        let look = (tokio::time::Instant::now() + LOOK).min(until);
        loop {
            tokio::select! {
                change = changed.recv() => match change {
                    Ok(Change::Kinds) => {}
                    Ok(Change::Operation { id: other, .. }) if other != id => {}
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
    /// With what is known so far, while it is not finished, where the clocks are kept; elsewhere as it was written last.
    pub(super) async fn view(&self, op: Operation) -> OperationView {
        let mut view = self.view_of(op).await;
        // A database that is away by now leaves it unsaid.
        self.why_queued(std::slice::from_mut(&mut view)).await.unwrap_or_default();
        view
    }

    /// Nothing of a paused kind is leased; the row itself does not know.
    async fn why_queued(&self, views: &mut [OperationView]) -> Result<(), Refusal> {
        if !views.iter().any(|v| v.state == OpState::Queued) {
            return Ok(());
        }
        let kinds = self.store.kinds().await?;
        for view in views.iter_mut().filter(|v| v.state == OpState::Queued) {
            let Some(by) = kinds.iter().find(|k| k.kind == view.kind).and_then(|k| k.pause.as_ref()) else { continue };
            view.waiting_for = Some(format!("somebody to resume {}: {} paused it", view.kind.as_str(), by.actor));
        }
        Ok(())
    }

    async fn view_of(&self, op: Operation) -> OperationView {
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

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// Only of this kind.
    kind: Option<Kind>,
    /// Only in this state.
    state: Option<OpState>,
    /// Only of this job.
    job: Option<String>,
    /// The namespace of `job`.
    namespace: Option<String>,
    /// Only children of this operation.
    parent: Option<OpId>,
    /// The next page starts after this operation.
    before: Option<OpId>,
    /// 100 when absent; at most 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Operations, newest first, as they were last written down.
#[utoipa::path(
    get, path = "/v1/operations", tag = "operations", params(ListQuery),
    responses((status = 200, description = "A page of them.", body = Vec<OperationView>))
)]
pub async fn list(
    State(rpc): State<Rpc>,
    caller: Caller,
    Asked(q): Asked<ListQuery>,
) -> Result<Json<Vec<OperationView>>, Refusal> {
    let namespace = q.namespace.map_or_else(|| rpc.nomad.config().namespace.clone(), Into::into);
    let limit = q.limit.unwrap_or(100).clamp(1, 1000);
    let mut filter = OperationFilter {
        kinds: q.kind.into_iter().collect(),
        states: q.state.into_iter().collect(),
        target: q.job.map(|job| JobKey { namespace, job: job.into() }.into()),
        parent: q.parent,
        before: q.before,
        limit,
    };
    let mut rows = rpc.store.operations(filter.clone()).await?;
    if !caller.is_everywhere() {
        rows = rpc.seen(&caller, &mut filter, rows).await?;
    }
    rows.truncate(limit);
    let mut views: Vec<_> = rows.into_iter().map(OperationView::from).collect();
    rpc.why_queued(&mut views).await?;
    Ok(Json(views))
}

/// What waits and what runs.
#[utoipa::path(get, path = "/v1/queue", tag = "operations", responses((status = 200, description = "The queue.", body = QueueView)))]
pub async fn queue(State(rpc): State<Rpc>) -> Result<Json<QueueView>, Refusal> {
    let QueueStatus { counts, running } = rpc.store.queue_status().await?;
    let count = |c: QueueCount| QueueCountView {
        kind: c.kind,
        state: c.state,
        count: c.count,
        oldest_requested_at: c.oldest_requested_at,
        oldest_run_at: c.oldest_run_at,
    };
    let held = |h: Held| HeldView { id: h.id, kind: h.kind, lease: h.lease };
    Ok(Json(QueueView { counts: counts.into_iter().map(count).collect(), running: running.into_iter().map(held).collect() }))
}

impl Rpc {
    /// Of a page, and of those after it, what a caller of some namespaces may know of: as many as were asked for, or all there are. A
    /// page with fewer is the last, whoever asks.
    async fn seen(
        &self,
        caller: &Caller,
        filter: &mut OperationFilter,
        mut page: Vec<Operation>,
    ) -> Result<Vec<Operation>, Refusal> {
        let limit = std::mem::replace(&mut filter.limit, 1000);
        let mut found: Vec<Operation> = Vec::new();
        while let Some(last) = page.last().map(|op| op.id) {
            found.extend(page.into_iter().filter(|op| caller.sees(op)));
            if found.len() >= limit {
                break;
            }
            filter.before = Some(last);
            page = self.store.operations(filter.clone()).await?;
        }
        Ok(found)
    }

    /// Who keeps the clocks, and what is paused.
    pub(super) async fn tell_kinds(&self, status: &mut StatusView) -> Result<(), Refusal> {
        let rows: Vec<KindView> = self.store.kinds().await?.into_iter().map(view).collect();
        status.keeper = rows.iter().find_map(|r| r.duty.as_ref().and_then(|d| d.holder.clone()));
        status.paused = rows.into_iter().filter(|r| r.pause.is_some()).collect();
        Ok(())
    }

    /// What a ready controller says: somebody may have told it to kill nobody.
    pub(super) fn ready(&self) -> String {
        match &self.duty.seen().borrow().paused {
            None => "ready\n".into(),
            Some(by) => format!("ready; kill is paused by {}: no SIGKILL is sent\n", by.actor),
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Only of this operation.
    operation: Option<OpId>,
    /// Only rows from then on.
    since: Option<Timestamp>,
    /// Only rows after this `seq`: the next page.
    #[serde(default)]
    after: u64,
    /// 1000 when absent; at most 10000.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<usize>,
}

/// The audit trail, oldest first.
#[utoipa::path(
    get, path = "/v1/audit", tag = "operations", params(AuditQuery),
    responses((status = 200, description = "A page of it.", body = Vec<AuditRow>))
)]
pub async fn audit(State(rpc): State<Rpc>, caller: Caller, Asked(q): Asked<AuditQuery>) -> Result<Json<Vec<AuditRow>>, Refusal> {
    match q.operation {
        _ if caller.is_everywhere() => {}
        Some(id) => drop(rpc.visible(&caller, id).await?),
        None => caller.everywhere()?,
    }
    let filter = AuditFilter {
        operation: q.operation,
        after_seq: q.after,
        since: q.since,
        limit: q.limit.unwrap_or(1000).clamp(1, 10_000),
    };
    Ok(Json(rpc.store.audit(filter).await?))
}
