//! The RPC: writes what is wanted down and answers; never changes anything in Nomad itself.

mod drains;
mod interventions;
mod jobs;
mod operations;
mod probes;
mod problem;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Request};
use axum::routing::{get, post};
use axum::{Json, Router};
use curfew_core::Clock;
use curfew_core::api::Who;
use curfew_core::config::Config;
use curfew_nomad::Nomad;
use curfew_store::Store;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::duty::Duty;
use crate::keeper::Keeper;
use crate::nodes::Nodes;
use crate::observer::Sight;
pub use probes::Front;
use problem::Refusal;
pub use server::Server;

/// What the handlers share.
#[derive(Clone)]
pub struct Rpc {
    pub nomad: Nomad,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub config: Arc<Config>,
    pub keeper: Keeper,
    pub duty: Duty,
    pub nodes: Nodes,
    pub sight: watch::Receiver<Sight>,
    pub stop: CancellationToken,
}

/// Everything but what answers while the controller is still starting.
fn router(rpc: Rpc) -> Router {
    let body = DefaultBodyLimit::max(rpc.config.max_body_bytes / 16);
    Router::new()
        .route("/v1/jobs", post(jobs::submit))
        .route("/v1/jobs/plan", post(jobs::plan))
        .route("/v1/jobs/{job}/stop", post(jobs::stop))
        .route("/v1/nodes/drain", post(drains::drain))
        .route("/v1/nodes/undrain", post(drains::undrain))
        .route("/v1/operations", get(operations::list))
        .route("/v1/operations/{id}", get(operations::show))
        .route("/v1/operations/{id}/extend", post(interventions::extend))
        .route("/v1/operations/{id}/{intervention}", post(interventions::intervene))
        .route("/v1/kinds", get(interventions::kinds))
        .route("/v1/kinds/{kind}/pause", post(interventions::pause_kind))
        .route("/v1/kinds/{kind}/resume", post(interventions::resume_kind))
        .route("/v1/queue", get(operations::queue))
        .route("/v1/audit", get(operations::audit))
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
