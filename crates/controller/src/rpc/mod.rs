//! The RPC: writes what is wanted down and answers; never changes anything in Nomad itself.

mod description;
mod drains;
mod extract;
mod interventions;
mod jobs;
mod operations;
mod probes;
mod problem;
mod rollouts;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request};
use curfew_core::Clock;
use curfew_core::api::Who;
use curfew_core::config::Config;
use curfew_nomad::Nomad;
use curfew_store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::duty::Duty;
use crate::keeper::Keeper;
use crate::metrics::{self, Metrics};
use crate::nodes::Nodes;
use crate::observer::Sight;
pub use description::text as description;
use extract::{Asked, Body, Named};
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
    pub metrics: Metrics,
}

/// Everything but what answers while the controller is still starting. Only by `routes!`: then a route is in the description too.
fn routes() -> OpenApiRouter<Rpc> {
    OpenApiRouter::new()
        .routes(routes!(jobs::submit))
        .routes(routes!(jobs::plan))
        .routes(routes!(jobs::stop))
        .routes(routes!(rollouts::promote))
        .routes(routes!(rollouts::fail))
        .routes(routes!(rollouts::revert))
        .routes(routes!(drains::drain))
        .routes(routes!(drains::undrain))
        .routes(routes!(operations::list))
        .routes(routes!(operations::show))
        .routes(routes!(interventions::extend))
        .routes(routes!(interventions::intervene))
        .routes(routes!(interventions::kinds))
        .routes(routes!(interventions::pause_kind))
        .routes(routes!(interventions::resume_kind))
        .routes(routes!(operations::queue))
        .routes(routes!(operations::audit))
}

fn router(rpc: Rpc) -> Router {
    let body = DefaultBodyLimit::max(rpc.config.max_body_bytes / 16);
    let measure = axum::middleware::from_fn_with_state(rpc.metrics.clone(), metrics::measure);
    let (router, _) = routes().split_for_parts();
    router
        .fallback(|request: Request| async move {
            Refusal::not_found(format!("there is nothing at {}; docs/rpc.md lists what there is", request.uri().path()))
        })
        .method_not_allowed_fallback(|request: Request| async move {
            Refusal::method(format!(
                "{} is not what {} takes; docs/rpc.md lists what there is",
                request.method(),
                request.uri().path()
            ))
        })
        .layer(body)
        .layer(measure)
        .with_state(rpc)
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
