//! What people do to operations and kinds; each is in the audit trail with who and why.

use axum::Json;
use axum::extract::State;
use curfew_core::api::{ExtendRequest, InterveneRequest, KindView, OperationView, PauseKindRequest, Who};
use curfew_core::operation::{Intervention, Kind};
use curfew_core::{OpId, duration};
use curfew_store::KindRow;
use utoipa::ToSchema;

use super::problem::Refusal;
use super::{Body, Caller, Named, Rpc};

impl Rpc {
    async fn intervene(&self, caller: &Caller, id: &str, what: Intervention, who: Who) -> Result<Json<OperationView>, Refusal> {
        self.accepting()?;
        let id = operation_id(id)?;
        let kind = self.visible(caller, id).await?.kind();
        caller.may_touch(kind)?;
        let op = self.store.intervene(id, what, caller.by(who, self.clock.now())).await?;
        // Before the answer: a clock that was moved is not the old one any more when the caller hears of it. Where another
        // controller keeps the clocks it hears of the change through the database.
        self.keeper.changed(op.clone()).await;
        Ok(Json(self.view(op).await))
    }
}

pub(super) fn operation_id(id: &str) -> Result<OpId, Refusal> {
    id.parse().map_err(|_| Refusal::bad_request(format!("\"{id}\" is not an operation's id (a UUID)")))
}

/// What can be done to an operation, beside `extend`.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
#[expect(dead_code, reason = "for the description; the handler reads the word itself, to answer 404 to another")]
enum Word {
    Cancel,
    KillNow,
    Release,
    Retry,
    Pause,
    Resume,
}

/// Step in. Doing again what is done already changes nothing.
#[utoipa::path(
    post, path = "/v1/operations/{id}/{intervention}", tag = "operations",
    params(("id" = OpId, Path, description = "The operation's id."), ("intervention" = inline(Word), Path, description = "What to do.")),
    request_body = InterveneRequest,
    responses((status = 200, description = "The operation as it is then.", body = OperationView))
)]
pub async fn intervene(
    State(rpc): State<Rpc>,
    caller: Caller,
    Named((id, what)): Named<(String, String)>,
    Body(request): Body<InterveneRequest>,
) -> Result<Json<OperationView>, Refusal> {
    let what = match what.as_str() {
        "cancel" => Intervention::Cancel,
        "kill-now" => Intervention::KillNow,
        "release" => Intervention::Release,
        "retry" => Intervention::Retry,
        "pause" => Intervention::Pause,
        "resume" => Intervention::Resume,
        other => {
            let detail = format!(
                "nothing can be done to an operation by the name \"{other}\"; there are cancel, extend, kill-now, release, retry, pause, resume"
            );
            return Err(Refusal::not_found(detail));
        }
    };
    rpc.intervene(&caller, &id, what, request.who).await
}

/// Move an operation's deadline. One of `by` and `until`.
#[utoipa::path(
    post, path = "/v1/operations/{id}/extend", tag = "operations", params(("id" = OpId, Path, description = "The operation's id.")),
    request_body = ExtendRequest,
    responses((status = 200, description = "The operation as it is then.", body = OperationView))
)]
pub async fn extend(
    State(rpc): State<Rpc>,
    caller: Caller,
    Named(id): Named<String>,
    Body(request): Body<ExtendRequest>,
) -> Result<Json<OperationView>, Refusal> {
    let what = match (request.by, request.until) {
        (Some(by), None) if !by.is_zero() => Intervention::ExtendBy(by),
        (None, Some(until)) => Intervention::ExtendUntil(until),
        _ => {
            let detail =
                "say how far: either \"by\" (a duration longer than zero, as in \"10m\") or \"until\" (an instant in RFC 3339)";
            return Err(Refusal::bad_request(detail));
        }
    };
    let Json(mut view) = rpc.intervene(&caller, &id, what, request.who).await?;
    // Nomad's own clock runs as well.
    if let (Some(job), Some(deadline)) = (view.target.job(), view.deadline)
        && let Some(spec) = rpc.keeper.newest(job.clone()).await
        && let Some(nomads) = super::jobs::nomads_own(&spec)
        && deadline.since(view.requested_at) > nomads
    {
        view.warnings.push(format!(
            "Nomad itself sends SIGKILL {} after each task's SIGTERM (the job's kill_timeout), whatever is asked for here",
            duration::format(nomads)
        ));
    }
    Ok(Json(view))
}

/// Every kind of operation: who paused it, and who keeps the clocks.
#[utoipa::path(get, path = "/v1/kinds", tag = "kinds", responses((status = 200, description = "All of them.", body = Vec<KindView>)))]
pub async fn kinds(State(rpc): State<Rpc>) -> Result<Json<Vec<KindView>>, Refusal> {
    Ok(Json(rpc.store.kinds().await?.into_iter().map(view).collect()))
}

pub(super) fn view(row: KindRow) -> KindView {
    let duty = (row.kind == Kind::Kill).then_some(row.duty);
    KindView { kind: row.kind, pause: row.pause, duty }
}

fn kind_named(name: &str) -> Result<Kind, Refusal> {
    Kind::parse(name).ok_or_else(|| {
        let known = Kind::ALL.map(Kind::as_str).join(", ");
        Refusal::not_found(format!("there is no kind \"{name}\"; there are {known}"))
    })
}

/// Begin nothing of a kind, on any controller, until it is resumed.
#[utoipa::path(
    post, path = "/v1/kinds/{kind}/pause", tag = "kinds", params(("kind" = Kind, Path, description = "Which kind.")), request_body = PauseKindRequest,
    responses((status = 200, description = "The kind as it is then.", body = KindView))
)]
pub async fn pause_kind(
    State(rpc): State<Rpc>,
    caller: Caller,
    Named(kind): Named<String>,
    Body(request): Body<PauseKindRequest>,
) -> Result<Json<KindView>, Refusal> {
    rpc.accepting()?;
    let kind = kind_named(&kind)?;
    if kind == Kind::Kill && !request.yes_really {
        let detail = "while kill is paused no task is killed, however late it is; say \"yes_really\": true (curfew kind pause kill --yes-really) if that is what you want";
        return Err(Refusal::unsure(detail.into()));
    }
    let row = rpc.store.pause_kind(kind, caller.by(request.who, rpc.clock.now())).await?;
    // Before the answer, so that nothing is sent after it.
    rpc.duty.look().await?;
    Ok(Json(view(row)))
}

/// Begin operations of a kind again.
#[utoipa::path(
    post, path = "/v1/kinds/{kind}/resume", tag = "kinds", params(("kind" = Kind, Path, description = "Which kind.")), request_body = InterveneRequest,
    responses((status = 200, description = "The kind as it is then.", body = KindView))
)]
pub async fn resume_kind(
    State(rpc): State<Rpc>,
    caller: Caller,
    Named(kind): Named<String>,
    Body(request): Body<InterveneRequest>,
) -> Result<Json<KindView>, Refusal> {
    rpc.accepting()?;
    let row = rpc.store.resume_kind(kind_named(&kind)?, caller.by(request.who, rpc.clock.now())).await?;
    rpc.duty.look().await?;
    Ok(Json(view(row)))
}
