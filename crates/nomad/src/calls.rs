//! Calls as metrics: how many by route and outcome, and how long each took.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use crate::client::Nomad;
use crate::error::Error;
use crate::route::Route;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    route: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    route: &'static str,
}

#[derive(Clone)]
pub(crate) struct Calls {
    ended: Family<ByOutcome, Counter>,
    seconds: Family<ByRoute, Histogram>,
}

/// Nomad answers in milliseconds, and a call is given up after `nomad_timeout` (10s).
const SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0];

impl Default for Calls {
    fn default() -> Self {
        Self { ended: Family::default(), seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)) }
    }
}

impl Calls {
    /// A call that is sent now. Dropped without an outcome, it was given up midway by whoever made it.
    pub(crate) fn begin(&self, route: Route) -> Timed<'_> {
        Timed { calls: self, route: route.label(), began: Instant::now(), outcome: "dropped" }
    }

    /// One that never had its turn.
    pub(crate) fn never_sent(&self, route: Route, outcome: &'static str) {
        self.ended.get_or_create(&ByOutcome { route: route.label(), outcome }).inc();
    }
}

pub(crate) struct Timed<'a> {
    calls: &'a Calls,
    route: &'static str,
    began: Instant,
    outcome: &'static str,
}

impl Timed<'_> {
    pub(crate) fn end<T>(mut self, answer: &Result<T, Error>) {
        self.outcome = answer.as_ref().err().map_or("ok", Error::class);
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        let Self { calls, route, began, outcome } = *self;
        calls.ended.get_or_create(&ByOutcome { route, outcome }).inc();
        calls.seconds.get_or_create(&ByRoute { route }).observe(began.elapsed().as_secs_f64());
    }
}

impl Nomad {
    /// Makes the calls of this client and its clones part of `registry`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let Calls { ended, seconds } = self.calls().clone();
        registry.register("nomad_requests", "Calls to Nomad that ended, by route and outcome", ended);
        let help = "How long calls to Nomad took, from their turn to the last byte; of the event stream to its head";
        registry.register_with_unit("nomad_request_duration", help, Unit::Seconds, seconds);
    }
}
