//! A pass of the gc on request. This crate knows none: whoever starts the controller hands one in.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use curfew_core::api::GcRequest;
use curfew_core::audit::{Action, AuditEntry};
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::access::Caller;
use super::problem::Refusal;
use super::{Body, Rpc};

/// One pass, `true` for a dry run; its report. A pass goes on when nobody waits for it any more.
pub type Reaper = Arc<dyn Fn(bool) -> BoxFuture<'static, Result<Value, String>> + Send + Sync>;

/// A pass over a large cluster takes its time.
const LONGEST: Duration = Duration::from_secs(300);

/// A pass of the gc, as the controller's own passes are; or what it would do. The answer is its report.
#[utoipa::path(
    post, path = "/v1/gc", tag = "controller", request_body = GcRequest,
    responses((status = 200, description = "The pass is over: its report, as `curfew gc --json` prints it.", body = Value))
)]
pub async fn pass(State(rpc): State<Rpc>, caller: Caller, Body(request): Body<GcRequest>) -> Result<Json<Value>, Refusal> {
    rpc.accepting()?;
    caller.everywhere()?;
    let Some(gc) = &rpc.gc else { return Err(Refusal::refused("this controller was started without a gc".into())) };
    let by = caller.by(request.who, rpc.clock.now());
    if !request.dry_run {
        let detail = by.reason.map_or(Value::Null, |reason| json!({ "reason": reason }));
        let row =
            AuditEntry { at: by.at, operation: None, actor: by.actor, action: Action::GcAsked, alloc: None, task: None, detail };
        rpc.store.append_audit(vec![row]).await?;
    }
    let report = tokio::select! {
        report = tokio::time::timeout(LONGEST, gc(request.dry_run)) => report,
        () = rpc.stop.cancelled() => return Err(Refusal::stopping()),
    };
    match report {
        Ok(Ok(report)) => Ok(Json(report)),
        Ok(Err(why)) => Err(Refusal::gc(why)),
        Err(_) => {
            Err(Refusal::gc(format!("the pass takes longer than {}s; it goes on, and its end is in the log", LONGEST.as_secs())))
        }
    }
}
