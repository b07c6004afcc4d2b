//! The RPC: writes what is wanted down and answers; never changes anything in Nomad itself.

mod access;
mod description;
mod drains;
mod events;
mod extract;
mod gc;
mod history;
mod interventions;
mod jobs;
mod limits;
mod look;
mod operations;
mod probes;
mod problem;
mod rollouts;
mod server;
mod tls;
pub mod tokens;
mod workload;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use curfew_core::config::Config;
use curfew_core::operation::Operation;
use curfew_core::{Clock, OpId};
use curfew_nomad::Nomad;
use curfew_store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::crashes::Crashes;
use crate::duty::Duty;
use crate::keeper::Keeper;
use crate::metrics::{self, Metrics};
use crate::nodes::Nodes;
use crate::observer::Sight;
pub use access::Caller;
pub use description::text as description;
use extract::{Asked, Body, Named};
pub use gc::Reaper;
use interventions::operation_id;
pub use limits::Limits;
use limits::{Place, Why};
pub use probes::Front;
use problem::Refusal;
pub use server::Server;
pub use tls::{Tls, TlsError};
pub use workload::Workloads;

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
    pub limits: Limits,
    pub workloads: Arc<Workloads>,
    pub gc: Option<Reaper>,
    pub turns: Arc<Turns>,
    pub crashes: Crashes,
}

/// What is done for one caller at a time.
#[derive(Default)]
pub struct Turns {
    doctor: tokio::sync::Mutex<()>,
}

/// Everything but what answers while the controller is still starting. Only by `routes!`: then a route is in the description too.
fn routes() -> OpenApiRouter<Rpc> {
    OpenApiRouter::new()
        .routes(routes!(jobs::submit, look::jobs))
        .routes(routes!(jobs::plan))
        .routes(routes!(look::job))
        .routes(routes!(history::history))
        .routes(routes!(jobs::stop))
        .routes(routes!(look::nodes))
        .routes(routes!(rollouts::promote))
        .routes(routes!(rollouts::fail))
        .routes(routes!(rollouts::revert))
        .routes(routes!(drains::drain))
        .routes(routes!(drains::undrain))
        .routes(routes!(operations::list))
        .routes(routes!(operations::show))
        .routes(routes!(events::events))
        .routes(routes!(interventions::extend))
        .routes(routes!(interventions::intervene))
        .routes(routes!(interventions::kinds))
        .routes(routes!(interventions::pause_kind))
        .routes(routes!(interventions::resume_kind))
        .routes(routes!(operations::queue))
        .routes(routes!(look::clocks))
        .routes(routes!(operations::audit))
        .routes(routes!(look::examine))
        .routes(routes!(gc::pass))
        .routes(routes!(tokens::list, tokens::make))
        .routes(routes!(tokens::end))
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
        .layer(axum::middleware::from_fn_with_state(rpc.clone(), access::guard))
        .layer(body)
        .layer(measure)
        .with_state(rpc)
}

impl Rpc {
    /// A new request after the stop would be written down by a process that is closing its database.
    fn accepting(&self) -> Result<(), Refusal> {
        if self.stop.is_cancelled() { Err(Refusal::stopping()) } else { Ok(()) }
    }

    /// A place among the streams and long polls.
    fn stream(&self, caller: &Caller) -> Result<Place, Refusal> {
        let peer = caller.peer();
        self.limits.stream(peer).map_err(|full| {
            let refusal = Refusal::too_many_streams(self.config.rpc_streams, full);
            if let Some(refused) = self.limits.refused_often(full.why(Why::Streams)) {
                tracing::warn!(%peer, refused, why = refusal.detail(), "an event stream or a long poll was refused; so many since this was said last");
            }
            refusal
        })
    }

    /// The operation, where this caller may know of it.
    async fn visible(&self, caller: &Caller, id: OpId) -> Result<Operation, Refusal> {
        let found = self.store.operation(id).await?.filter(|op| caller.sees(op));
        found.ok_or_else(|| Refusal::no_such_operation(format!("there is no operation {id}")))
    }
}
