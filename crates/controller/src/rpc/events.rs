//! An operation as it goes, by server-sent events: each row of its trail, with its `seq` as the event's id, and the operation itself
//! when it has finished.
#![expect(unused_qualifications, reason = "the macro that describes a route qualifies the types of its query")]

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use curfew_core::OpId;
use curfew_core::audit::AuditRow;
use curfew_store::{AuditFilter, Change};
use futures::stream;
use serde::Deserialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use utoipa::IntoParams;

use super::access::Caller;
use super::problem::Refusal;
use super::{Asked, Named, Rpc};

/// A stream ends after this long, and its client comes back with `Last-Event-ID`: who may no longer read does not read for ever.
const LONGEST: Duration = Duration::from_secs(600);
/// A change that is waited for may get lost: look again.
const LOOK: Duration = Duration::from_secs(5);
/// Rows read at once.
const PAGE: usize = 500;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Only rows after this `seq`; the header `Last-Event-ID` counts before it.
    #[serde(default)]
    after: u64,
}

/// In the head of a request that goes on where another one ended.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "for the description; the handler reads the header itself")]
pub struct LastEventId {
    /// The `id` of the last event that was received.
    #[param(rename = "Last-Event-ID", required = false)]
    last_event_id: u64,
}

/// An operation as it goes: server-sent events.
#[utoipa::path(
    get, path = "/v1/operations/{id}/events", tag = "operations",
    params(("id" = OpId, Path, description = "The operation's id."), EventsQuery, LastEventId),
    responses((status = 200, description = "Each row of its trail as an event of the action's name, with `seq` as its id; at the end an event `operation`.",
        content_type = "text/event-stream", body = String))
)]
pub async fn events(
    State(rpc): State<Rpc>,
    caller: Caller,
    Named(id): Named<String>,
    Asked(query): Asked<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let id = super::operation_id(&id)?;
    let after = match headers.get("last-event-id") {
        None => query.after,
        Some(last) => {
            let last = last.to_str().ok().and_then(|v| v.parse().ok());
            last.ok_or_else(|| Refusal::bad_request("Last-Event-ID is not the id of an event of this stream (a number)"))?
        }
    };
    // Before the first read, so that nothing falls between.
    let changes = rpc.store.changes();
    rpc.visible(&caller, id).await?;
    let place = rpc.stream(&caller)?;
    let feed =
        Feed { rpc, caller, id, after, changes, pending: vec![].into_iter(), until: Instant::now() + LONGEST, over: false };
    let events = stream::unfold((feed, place), |(mut feed, place)| async move {
        let event = feed.next().await?;
        Some((Ok::<_, Infallible>(event), (feed, place)))
    });
    let beat = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(Sse::new(events).keep_alive(beat).into_response())
}

struct Feed {
    rpc: Rpc,
    caller: Caller,
    id: OpId,
    after: u64,
    changes: broadcast::Receiver<Change>,
    pending: std::vec::IntoIter<AuditRow>,
    until: Instant,
    /// The last event was given.
    over: bool,
}

impl Feed {
    /// `None` ends the stream: the operation has finished, the controller stops, or whoever reads comes back.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(row) = self.pending.next() {
                self.after = row.seq;
                return Event::default().id(row.seq.to_string()).event(row.entry.action.as_str()).json_data(&row).ok();
            }
            if self.over || self.rpc.stop.is_cancelled() || self.caller.is_over(self.rpc.clock.now()) {
                return None;
            }
            // A database that is away ends it; the client comes back for the rest. The row is read before its trail: what finished it
            // is in the trail then.
            let op = self.rpc.store.operation(self.id).await.ok()??;
            let filter = AuditFilter { operation: Some(self.id), after_seq: self.after, limit: PAGE, ..AuditFilter::default() };
            let rows = self.rpc.store.audit(filter).await.ok()?;
            if !rows.is_empty() {
                self.pending = rows.into_iter();
                continue;
            }
            if op.state.is_finished() {
                self.over = true;
                return Event::default().event("operation").json_data(self.rpc.view(op).await).ok();
            }
            if Instant::now() >= self.until {
                return None;
            }
            self.changed().await;
        }
    }

    /// Until something happened to it, or it is time to look.
    async fn changed(&mut self) {
        let look = (Instant::now() + LOOK).min(self.until);
        loop {
            tokio::select! {
                change = self.changes.recv() => match change {
                    Ok(Change::Kinds) => {}
                    Ok(Change::Operation { id, .. }) if id != self.id => {}
                    Ok(_) | Err(RecvError::Lagged(_) | RecvError::Closed) => return,
                },
                () = tokio::time::sleep_until(look) => return,
                () = self.rpc.stop.cancelled() => return,
            }
        }
    }
}
