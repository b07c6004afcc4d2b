//! What answers from the first moment to the last: health, readiness, status. The rest of the RPC is behind it once there is one.

use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use curfew_core::api::StatusView;
use curfew_core::{Clock, Timestamp};
use curfew_nomad::Nomad;
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::Refusal;
use super::{Rpc, router};
use crate::error::chain;
use crate::keeper::Census;
use crate::lifecycle::{Life, Phase};
use crate::metrics::{self, InDatabase, Metrics, Now};
use crate::observer::Sight;

/// A loop that has not turned for this long hangs.
const STUCK: Duration = Duration::from_secs(30);
/// A database that takes longer to write one row is not one to accept requests on.
const DATABASE: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub struct Front {
    life: Arc<Life>,
    behind: Arc<OnceLock<(Rpc, Router)>>,
    holder: String,
    started: Timestamp,
    clock: Arc<dyn Clock>,
    nomad: Nomad,
    metrics: Metrics,
    /// Callers are asked who they are.
    asks: bool,
}

impl Front {
    pub(crate) fn new(
        life: Arc<Life>,
        holder: String,
        clock: Arc<dyn Clock>,
        nomad: Nomad,
        metrics: Metrics,
        asks: bool,
    ) -> Self {
        Self { life, behind: Arc::default(), holder, started: clock.now(), clock, nomad, metrics, asks }
    }

    /// From now on requests are taken.
    pub(crate) fn open(&self, rpc: Rpc) {
        // It is opened once; a second time would change nothing.
        let _ = self.behind.set((rpc.clone(), router(rpc)));
    }

    fn rpc(&self) -> Option<&Rpc> {
        self.behind.get().map(|(rpc, _)| rpc)
    }

    fn phase(&self) -> Phase {
        *self.life.phase.borrow()
    }

    pub(super) fn router(self) -> Router {
        let (router, _) = routes().split_for_parts();
        let measure = axum::middleware::from_fn_with_state(self.metrics.clone(), metrics::measure);
        router.route_layer(measure).fallback(pass).with_state(self)
    }
}

pub(super) fn routes() -> OpenApiRouter<Front> {
    OpenApiRouter::new()
        .routes(routes!(status))
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(metrics))
        .routes(routes!(description))
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "controller", responses((status = 200, description = "OpenAPI 3.1.", body = Value)))]
async fn description() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(super::description::text);
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}

async fn pass(State(front): State<Front>, request: Request) -> Response {
    match front.behind.get() {
        Some((_, router)) => match router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        None if front.phase() == Phase::Starting => Refusal::starting().into_response(),
        None => Refusal::stopping().into_response(),
    }
}

/// Whether the process does its work.
#[utoipa::path(
    get, path = "/healthz", tag = "controller",
    responses((status = 200, description = "The phase.", body = String), (status = 500, description = "Which loop hangs.", body = String))
)]
async fn healthz(State(front): State<Front>) -> (StatusCode, String) {
    match front.life.stuck(STUCK) {
        None => (StatusCode::OK, format!("{}\n", front.phase())),
        Some((which, age)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("the {} has not turned for {}s\n", which.as_str(), age.as_secs()))
        }
    }
}

/// Ready means: requests are taken, written durably, and Nomad is in sight.
#[utoipa::path(
    get, path = "/readyz", tag = "controller",
    responses((status = 200, description = "It is.", body = String), (status = 503, description = "Why not.", body = String))
)]
async fn readyz(State(front): State<Front>) -> (StatusCode, String) {
    match front.readiness().await {
        Ok(ready) => (StatusCode::OK, ready),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

impl Front {
    /// Whether this caller may read here.
    async fn admit(&self, path: &str, request: &Parts) -> Result<(), Refusal> {
        match self.rpc() {
            Some(rpc) => rpc.admit(&request.method, path, &request.headers, &request.extensions).await.map(drop),
            // Nobody can be asked yet who they are.
            None if self.asks => Err(Refusal::starting()),
            None => Ok(()),
        }
    }

    /// What a ready controller says, else why it is not.
    async fn readiness(&self) -> Result<String, String> {
        let phase = self.phase();
        let Some(rpc) = self.rpc().filter(|_| phase == Phase::Running) else { return Err(phase.to_string()) };
        if let Some((which, age)) = self.life.stuck(STUCK) {
            return Err(format!("the {} has not turned for {}s", which.as_str(), age.as_secs()));
        }
        let sight = rpc.sight.borrow().clone();
        match sight {
            Sight::Clear => {}
            Sight::Starting => return Err("Nomad was not seen yet".into()),
            Sight::Lost { since, why, .. } => return Err(format!("Nomad is out of sight since {since}: {why}")),
        }
        match tokio::time::timeout(DATABASE, rpc.store.check()).await {
            Ok(Ok(())) => Ok(rpc.ready()),
            Ok(Err(e)) => Err(chain(&e)),
            Err(_) => Err(format!("the database has not written a row for {}s", DATABASE.as_secs())),
        }
    }

    /// Everything that has a value at any moment. What does not answer in time is left out.
    async fn now(&self) -> Now {
        let database = async {
            let rpc = self.rpc()?;
            let read =
                async { Some(InDatabase { queue: rpc.store.queue_status().await.ok()?, kinds: rpc.store.kinds().await.ok()? }) };
            tokio::time::timeout(DATABASE, read).await.ok()?
        };
        let census = async {
            match self.rpc() {
                Some(rpc) => tokio::time::timeout(DATABASE, rpc.keeper.census()).await.unwrap_or_default(),
                None => Census::default(),
            }
        };
        let (ready, database, census) = tokio::join!(self.readiness(), database, census);
        let duty = self.rpc().map(|rpc| &rpc.duty);
        let at = self.clock.now();
        Now {
            at,
            started: self.started,
            phase: self.phase(),
            ready: ready.is_ok(),
            nomad_in_sight: self.rpc().is_some_and(|rpc| *rpc.sight.borrow() == Sight::Clear),
            loops: self.life.ages(),
            census,
            crashing: self.rpc().map_or(0, |rpc| rpc.crashes.looping(at)),
            duty_held: duty.is_some_and(|d| d.valid().is_some()),
            duty_epoch: duty.map_or(0, |d| d.held().unwrap_or(d.seen().borrow().holder.epoch)),
            database,
        }
    }
}

/// For Prometheus; docs/metrics.md has every name.
#[utoipa::path(
    get, path = "/metrics", tag = "controller",
    responses((status = 200, description = "OpenMetrics text.", content_type = "application/openmetrics-text", body = String))
)]
async fn metrics(State(front): State<Front>, request: Parts) -> Response {
    if let Err(refusal) = front.admit("/metrics", &request).await {
        return refusal.into_response();
    }
    match front.metrics.text(&front.now().await, &front.nomad) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        // Writing into a string does not fail.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The controller that answers.
#[utoipa::path(get, path = "/v1/status", tag = "controller", responses((status = 200, description = "How it is.", body = StatusView)))]
async fn status(State(front): State<Front>, request: Parts) -> Result<Json<StatusView>, Refusal> {
    front.admit("/v1/status", &request).await?;
    let mut view = StatusView {
        service: "curfew".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        controller: front.holder.clone(),
        phase: front.phase().to_string(),
        started_at: front.started,
        nomad_address: front.nomad.address().to_owned(),
        nomad: "not seen yet".into(),
        clocks_armed: 0,
        operations_live: 0,
        keeper: None,
        paused: vec![],
    };
    if let Some(rpc) = front.rpc() {
        view.operations_live = rpc.store.queue_status().await?.counts.iter().map(|c| c.count).sum();
        rpc.tell_kinds(&mut view).await?;
        view.clocks_armed = rpc.keeper.census().await.clocks;
        match &*rpc.sight.borrow() {
            Sight::Starting => {}
            Sight::Clear => view.nomad = "in sight".into(),
            Sight::Lost { since, why, .. } => view.nomad = format!("out of sight since {since}: {why}"),
        }
    }
    Ok(Json(view))
}
