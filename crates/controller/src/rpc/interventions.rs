//! What people do to operations and kinds; each is in the audit trail with who and why.

use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use curfew_core::api::{ExtendRequest, InterveneRequest, KindView, OperationView, PauseKindRequest, Who};
use curfew_core::operation::{By, Intervention, Kind};
use curfew_core::{OpId, duration};
use curfew_store::KindRow;

use super::problem::Refusal;
use super::{Body, Peer, Rpc, actor};

impl Rpc {
    fn by(&self, who: Who, peer: std::net::SocketAddr) -> By {
        By { actor: actor(&who, peer), reason: who.reason.filter(|r| !r.is_empty()), at: self.clock.now() }
    }

    async fn intervene(&self, id: &str, what: Intervention, by: By) -> Result<Json<OperationView>, Refusal> {
        self.accepting()?;
        let op = self.store.intervene(operation_id(id)?, what, by).await?;
        // Before the answer: a clock that was moved is not the old one any more when the caller hears of it. Where another
        // controller keeps the clocks it hears of the change through the database.
        self.keeper.changed(op.clone()).await;
        Ok(Json(self.view(op).await))
    }
}

pub(super) fn operation_id(id: &str) -> Result<OpId, Refusal> {
    id.parse().map_err(|_| Refusal::bad_request(format!("\"{id}\" is not an operation's id (a UUID)")))
}

pub async fn intervene(
    State(rpc): State<Rpc>,
    ConnectInfo(peer): Peer,
    Path((id, what)): Path<(String, String)>,
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
    rpc.intervene(&id, what, rpc.by(request.who, peer)).await
}

pub async fn extend(
    State(rpc): State<Rpc>,
    ConnectInfo(peer): Peer,
    Path(id): Path<String>,
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
    let Json(mut view) = rpc.intervene(&id, what, rpc.by(request.who, peer)).await?;
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

pub async fn pause_kind(
    State(rpc): State<Rpc>,
    ConnectInfo(peer): Peer,
    Path(kind): Path<String>,
    Body(request): Body<PauseKindRequest>,
) -> Result<Json<KindView>, Refusal> {
    rpc.accepting()?;
    let kind = kind_named(&kind)?;
    if kind == Kind::Kill && !request.yes_really {
        let detail = "while kill is paused no task is killed, however late it is; say \"yes_really\": true (curfew kind pause kill --yes-really) if that is what you want";
        return Err(Refusal::unsure(detail.into()));
    }
    let row = rpc.store.pause_kind(kind, rpc.by(request.who, peer)).await?;
    // Before the answer, so that nothing is sent after it.
    rpc.duty.look().await?;
    Ok(Json(view(row)))
}

pub async fn resume_kind(
    State(rpc): State<Rpc>,
    ConnectInfo(peer): Peer,
    Path(kind): Path<String>,
    Body(request): Body<InterveneRequest>,
) -> Result<Json<KindView>, Refusal> {
    rpc.accepting()?;
    let row = rpc.store.resume_kind(kind_named(&kind)?, rpc.by(request.who, peer)).await?;
    rpc.duty.look().await?;
    Ok(Json(view(row)))
}
