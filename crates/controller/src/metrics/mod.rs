//! What the controller counts, for Prometheus. Every name is in docs/metrics.md, which a test compares.
//!
//! One [`Metrics`] belongs to one controller; there is no global registry. Counters and histograms are kept here; what has a value at
//! any moment (how many operations, which phase) is not kept but read at each scrape ([`Now`]), so that nothing is out of date.
//! Labels come from closed sets, never a node, a job or an operation, and whatever is known beforehand exists with 0 from the start.

mod gc;
mod now;
mod rpc;
mod store;

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use curfew_core::clock::Cause;
use curfew_core::operation::{Kind, Operation, State};
use curfew_core::rollout::End;
use curfew_nomad::Nomad;
use curfew_store::{Created, Store};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::keeper::Answer;
pub use gc::{GcPass, GcVerdict};
pub(crate) use now::{InDatabase, Now};
pub(crate) use rpc::{Why, measure};

/// What a scrape is answered with.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Cheap to clone; every clone counts into the same.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    accepted: Family<ByResult, Counter>,
    finished: Family<ByResult, Counter>,
    operations: Family<ByKind, Histogram>,
    tasks: Family<ByEnd, Counter>,
    rollouts: Family<Ended, Counter>,
    steps: Family<ByKind, Histogram>,
    leases_lost: Family<Noticed, Counter>,
    lateness: Histogram,
    sigkills: Family<ByAnswer, Counter>,
    resyncs: Histogram,
    out_of_sight: Family<Noticed, Counter>,
    store: store::Calls,
    rpc: rpc::Requests,
    gc: gc::Passes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByEnd {
    kind: &'static str,
    end: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    result: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAnswer {
    cause: &'static str,
    answer: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Noticed {
    at: &'static str,
}

/// Steps are a call or two; one that waits for a Nomad that hangs has its timeout.
const STEP: [f64; 9] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 60.0];
/// From a stop that is over in a second to a drain of a day.
const OPERATION: [f64; 12] = [0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0];
/// Late by milliseconds in health; by hours when a node was away.
const LATENESS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0];
const RESYNC: [f64; 8] = [0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0];

impl Default for Inner {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("curfew");
        let r = &mut registry;
        let all = Self {
            accepted: Family::default(),
            finished: Family::default(),
            operations: Family::new_with_constructor(|| Histogram::new(OPERATION)),
            tasks: Family::default(),
            rollouts: Family::default(),
            steps: Family::new_with_constructor(|| Histogram::new(STEP)),
            leases_lost: Family::default(),
            lateness: Histogram::new(LATENESS),
            sigkills: Family::default(),
            resyncs: Histogram::new(RESYNC),
            out_of_sight: Family::default(),
            store: store::Calls::register(r),
            rpc: rpc::Requests::register(r),
            gc: gc::Passes::register(r),
            registry: Registry::default(),
        };
        r.register(
            "operations_accepted",
            "Requests that were written down, by kind and what became of them",
            all.accepted.clone(),
        );
        r.register("operations_finished", "Operations that ended, by kind and how", all.finished.clone());
        let help = "From the request to the end of operations, by kind";
        r.register_with_unit("operation_duration", help, Unit::Seconds, all.operations.clone());
        let help = "Tasks that operations ended, by themselves after SIGTERM or by SIGKILL";
        r.register("operation_tasks", help, all.tasks.clone());
        r.register("rollouts", "Rollouts that were followed to their end, by what it was", all.rollouts.clone());
        r.register_with_unit("step_duration", "How long steps of operations took, by kind", Unit::Seconds, all.steps.clone());
        let help = "Leases that were gone when their holder renewed them or wrote what its step did";
        r.register("leases_lost", help, all.leases_lost.clone());
        let help = "From a kill clock's instant to the first SIGKILL that Nomad took";
        r.register_with_unit("clock_lateness", help, Unit::Seconds, all.lateness.clone());
        r.register("sigkills", "SIGKILLs by the cause of their clock and Nomad's answer", all.sigkills.clone());
        let help = "How long the lists of everything that was told to end took";
        r.register_with_unit("resync_duration", help, Unit::Seconds, all.resyncs.clone());
        let help = "How often Nomad went out of sight, and the event stream was opened anew, by what failed";
        r.register("nomad_sight_lost", help, all.out_of_sight.clone());
        all.begin();
        Self { registry, ..all }
    }
}

impl Inner {
    /// Whatever is known beforehand.
    fn begin(&self) {
        for kind in Kind::OPERATIONS.map(Kind::as_str) {
            for result in ["new", "joined", "replayed"] {
                from_zero(&self.accepted, &ByResult { kind, result });
            }
            for state in State::ALL.into_iter().filter(|s| s.is_finished()) {
                from_zero(&self.finished, &ByResult { kind, result: state.as_str() });
            }
            from_zero(&self.operations, &ByKind { kind });
            from_zero(&self.steps, &ByKind { kind });
        }
        for kind in [Kind::Stop, Kind::DrainNode].map(Kind::as_str) {
            for end in ["exited", "killed"] {
                from_zero(&self.tasks, &ByEnd { kind, end });
            }
        }
        for result in End::ALL.map(End::as_str) {
            from_zero(&self.rollouts, &Ended { result });
        }
        for cause in Cause::ALL.map(Cause::as_str) {
            for answer in Answer::NAMES {
                from_zero(&self.sigkills, &ByAnswer { cause, answer });
            }
        }
        for at in ["renewal", "write"] {
            from_zero(&self.leases_lost, &Noticed { at });
        }
        for at in ["list", "stream"] {
            from_zero(&self.out_of_sight, &Noticed { at });
        }
    }
}

/// What did not happen yet is 0, not absent: a rate over it works from the first time on.
fn from_zero<L: Clone + Eq + Hash, M>(family: &Family<L, M>, labels: &L)
where
    fn() -> M: MetricConstructor<M>,
{
    drop(family.get_or_create(labels));
}

impl Metrics {
    pub fn new() -> Self {
        Self::default()
    }

    /// The whole exposition.
    pub(crate) fn text(&self, now: &Now, nomad: &Nomad) -> Result<String, std::fmt::Error> {
        let mut text = String::with_capacity(64 * 1024);
        let mut momentary = Registry::with_prefix("curfew");
        now.register(&mut momentary);
        nomad.register_metrics(&mut momentary);
        encode_registry(&mut text, &momentary)?;
        encode_registry(&mut text, &self.0.registry)?;
        encode_eof(&mut text)?;
        Ok(text)
    }

    /// The same store, with every call measured, and what comes of requests and steps counted.
    pub(crate) fn measure(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(store::Measured { inner: store, metrics: self.clone() })
    }

    fn accepted(&self, created: &Created) {
        let result = match created {
            Created::New(_) => "new",
            Created::Joined(_) => "joined",
            Created::Replayed(_) => "replayed",
        };
        let kind = created.operation().kind().as_str();
        self.0.accepted.get_or_create(&ByResult { kind, result }).inc();
    }

    /// An operation that has just ended.
    fn finished(&self, op: &Operation) {
        let kind = op.kind().as_str();
        self.0.finished.get_or_create(&ByResult { kind, result: op.state.as_str() }).inc();
        if let Some(at) = op.finished_at {
            self.0.operations.get_or_create(&ByKind { kind }).observe(at.since(op.requested_at).as_secs_f64());
        }
        // The drain of a set has its children's sums.
        if let (Kind::Stop | Kind::DrainNode, Some(outcome)) = (op.kind(), &op.outcome) {
            for (end, tasks) in [("exited", outcome.exited), ("killed", outcome.killed)] {
                self.0.tasks.get_or_create(&ByEnd { kind, end }).inc_by(tasks.into());
            }
        }
        if let Some(end) = op.outcome.as_ref().and_then(|o| o.rollout.as_ref()?.end) {
            self.0.rollouts.get_or_create(&Ended { result: end.as_str() }).inc();
        }
    }

    fn lease_lost(&self, at: &'static str) {
        self.0.leases_lost.get_or_create(&Noticed { at }).inc();
    }

    pub(crate) fn step(&self, kind: Kind, took: Duration) {
        self.0.steps.get_or_create(&ByKind { kind: kind.as_str() }).observe(took.as_secs_f64());
    }

    /// The first SIGKILL of a clock, so long after its instant.
    pub(crate) fn late(&self, by: Duration) {
        self.0.lateness.observe(by.as_secs_f64());
    }

    pub(crate) fn sigkill(&self, cause: Cause, answer: &Answer) {
        self.0.sigkills.get_or_create(&ByAnswer { cause: cause.as_str(), answer: answer.as_str() }).inc();
    }

    pub(crate) fn resynced(&self, took: Duration) {
        self.0.resyncs.observe(took.as_secs_f64());
    }

    /// `at`: `list` or `stream`.
    pub(crate) fn out_of_sight(&self, at: &'static str) {
        self.0.out_of_sight.get_or_create(&Noticed { at }).inc();
    }
}
