//! Requests of the RPC, by route: counted, and a span of each.

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;
use tracing::Instrument;
use tracing::field::Empty;

use super::{Metrics, from_zero};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStatus {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    method: &'static str,
    route: String,
}

/// Why a request or a connection was refused or cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Unauthenticated,
    Forbidden,
    Rate,
    /// Too many streams and long polls.
    Streams,
    /// Too many connections.
    Connections,
    /// Too many connections, or streams and long polls, of one address.
    Address,
    /// No TLS, or no good client certificate.
    Handshake,
    /// The head or the body did not come in time.
    Slow,
    /// The body is too large.
    Body,
}

impl Why {
    pub const ALL: [Why; 9] = [
        Why::Unauthenticated,
        Why::Forbidden,
        Why::Rate,
        Why::Streams,
        Why::Connections,
        Why::Address,
        Why::Handshake,
        Why::Slow,
        Why::Body,
    ];
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Unauthenticated => "unauthenticated",
            Why::Forbidden => "forbidden",
            Why::Rate => "rate",
            Why::Streams => "streams",
            Why::Connections => "connections",
            Why::Address => "address",
            Why::Handshake => "handshake",
            Why::Slow => "slow",
            Why::Body => "body",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByWhy {
    why: &'static str,
}

pub(super) struct Requests {
    answered: Family<ByStatus, Counter>,
    seconds: Family<ByRoute, Histogram>,
    refused: Family<ByWhy, Counter>,
}

/// The longest is a long poll of five minutes.
const SECONDS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0];

impl Requests {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let all = Self {
            answered: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            refused: Family::default(),
        };
        let help = "Requests of the RPC that were answered, by method, route and status";
        registry.register("rpc_requests", help, all.answered.clone());
        let help = "How long requests of the RPC took to the head of their answer; some wait because they were asked to";
        registry.register_with_unit("rpc_request_duration", help, Unit::Seconds, all.seconds.clone());
        let help = "Requests and connections of the RPC that were refused or cut, by why";
        registry.register("rpc_refused", help, all.refused.clone());
        for why in Why::ALL {
            from_zero(&all.refused, &ByWhy { why: why.as_str() });
        }
        all
    }
}

impl Metrics {
    pub(crate) fn refused(&self, why: Why) {
        self.0.rpc.refused.get_or_create(&ByWhy { why: why.as_str() }).inc();
    }
}

/// Only methods that some route has: a caller may send any word.
fn word(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

/// A layer of the RPC's router. A path that matches no route is counted as `none`.
pub async fn measure(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = word(request.method());
    let began = Instant::now();
    let span = tracing::info_span!("request", method, route, operation = Empty, status = Empty, otel.kind = "server");
    let response = next.run(request).instrument(span.clone()).await;
    let requests = &metrics.0.rpc;
    let status = response.status().as_u16();
    span.record("status", status);
    requests.answered.get_or_create(&ByStatus { method, route: route.clone(), status }).inc();
    requests.seconds.get_or_create(&ByRoute { method, route }).observe(began.elapsed().as_secs_f64());
    response
}
