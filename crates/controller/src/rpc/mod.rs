//! The RPC: writes what is wanted down and answers; never changes anything in Nomad itself.

mod jobs;
mod operations;
mod problem;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Request, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use curfew_core::api::{StatusView, Who};
use curfew_core::config::Config;
use curfew_core::{Clock, OpId, Timestamp};
use curfew_nomad::Nomad;
use curfew_store::Store;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::error::chain;
use crate::keeper::Keeper;
use crate::lifecycle::Phase;
use crate::nodes::Nodes;
use crate::observer::Sight;
use problem::Refusal;

/// What the handlers share.
#[derive(Clone)]
pub struct Rpc {
    pub nomad: Nomad,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub config: Arc<Config>,
    pub keeper: Keeper,
    pub nudges: mpsc::Sender<OpId>,
    pub changed: broadcast::Sender<OpId>,
    pub nodes: Nodes,
    pub phase: watch::Receiver<Phase>,
    pub sight: watch::Receiver<Sight>,
    pub holder: String,
    pub started: Timestamp,
    pub stop: CancellationToken,
}

pub async fn serve(listener: TcpListener, rpc: Rpc) {
    let stop = rpc.stop.clone();
    let app = router(rpc).into_make_service_with_connect_info::<SocketAddr>();
    if let Err(e) = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!(error = %e, "the RPC ended");
    }
}

fn router(rpc: Rpc) -> Router {
    let body = DefaultBodyLimit::max(rpc.config.max_body_bytes / 16);
    Router::new()
        .route("/v1/jobs", post(jobs::submit))
        .route("/v1/jobs/plan", post(jobs::plan))
        .route("/v1/jobs/{job}/stop", post(jobs::stop))
        .route("/v1/operations", get(operations::list))
        .route("/v1/operations/{id}", get(operations::show))
        .route("/v1/audit", get(operations::audit))
        .route("/v1/status", get(status))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(|request: Request| async move {
            Refusal::not_found(format!("there is nothing at {}; docs/rpc.md lists what there is", request.uri().path()))
        })
        .layer(body)
        .with_state(rpc)
}

/// A JSON body; what is wrong with one is said as a problem.
struct Body<T>(T);

impl<T: DeserializeOwned> FromRequest<Rpc> for Body<T> {
    type Rejection = Refusal;
    async fn from_request(req: Request, rpc: &Rpc) -> Result<Self, Refusal> {
        match Json::<T>::from_request(req, rpc).await {
            Ok(Json(v)) => Ok(Self(v)),
            Err(e) => Err(Refusal::unreadable(e.status(), e.body_text())),
        }
    }
}

impl Rpc {
    /// A new request after the stop would be written down by a process that is closing its database.
    fn accepting(&self) -> Result<(), Refusal> {
        if self.stop.is_cancelled() { Err(Refusal::stopping()) } else { Ok(()) }
    }
}

fn actor(who: &Who, peer: SocketAddr) -> String {
    who.actor.clone().filter(|a| !a.is_empty()).unwrap_or_else(|| format!("rpc from {}", peer.ip()))
}

type Peer = ConnectInfo<SocketAddr>;

async fn healthz(State(rpc): State<Rpc>) -> (StatusCode, String) {
    (StatusCode::OK, format!("{}\n", *rpc.phase.borrow()))
}

/// Ready means: requests are taken, written durably, and Nomad is in sight.
async fn readyz(State(rpc): State<Rpc>) -> (StatusCode, String) {
    let not = |why: String| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    let phase = *rpc.phase.borrow();
    if phase != Phase::Running {
        return not(phase.to_string());
    }
    let sight = rpc.sight.borrow().clone();
    match sight {
        Sight::Clear => {}
        Sight::Starting => return not("Nomad was not seen yet".into()),
        Sight::Lost(since, why) => return not(format!("Nomad is out of sight since {since}: {why}")),
    }
    match rpc.store.check().await {
        Ok(()) => (StatusCode::OK, "ready\n".into()),
        Err(e) => not(chain(&e)),
    }
}

async fn status(State(rpc): State<Rpc>) -> Result<Json<StatusView>, Refusal> {
    let live: u64 = rpc.store.queue_status().await?.counts.iter().map(|c| c.count).sum();
    let nomad = match &*rpc.sight.borrow() {
        Sight::Starting => "not seen yet".to_owned(),
        Sight::Clear => "in sight".to_owned(),
        Sight::Lost(since, why) => format!("out of sight since {since}: {why}"),
    };
    let phase = rpc.phase.borrow().to_string();
    Ok(Json(StatusView {
        service: "curfew".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        controller: rpc.holder.clone(),
        phase,
        started_at: rpc.started,
        nomad_address: rpc.nomad.address().to_owned(),
        nomad,
        clocks_armed: rpc.keeper.armed().await,
        operations_live: live,
    }))
}
