//! What has a value at any moment, as a scrape finds it.

use std::time::Duration;

use curfew_core::Timestamp;
use curfew_core::operation::{Kind, State};
use curfew_store::{KindRow, QueueStatus};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::keeper::Census;
use crate::lifecycle::Phase;
use crate::metrics::ByKind;
use crate::pulse::Loop;

pub struct Now {
    pub at: Timestamp,
    pub started: Timestamp,
    pub phase: Phase,
    pub ready: bool,
    pub nomad_in_sight: bool,
    /// How long ago each loop turned.
    pub loops: Vec<(Loop, Duration)>,
    pub census: Census,
    /// Tasks that crash again and again.
    pub crashing: usize,
    pub duty_held: bool,
    /// Of the duty that is held, or was last seen at another controller.
    pub duty_epoch: u64,
    /// Nothing when it could not be read.
    pub database: Option<InDatabase>,
}

pub struct InDatabase {
    pub queue: QueueStatus,
    pub kinds: Vec<KindRow>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Version {
    version: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLoop {
    r#loop: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    kind: &'static str,
    state: &'static str,
}

type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

impl Now {
    pub fn register(&self, registry: &mut Registry) {
        let r = registry;
        r.register("build", "Which Curfew this is", Info::new(Version { version: env!("CARGO_PKG_VERSION") }));
        let phases = Family::<InPhase, Gauge>::default();
        for phase in Phase::NAMES {
            phases.get_or_create(&InPhase { phase }).set((phase == self.phase.as_str()).into());
        }
        r.register("phase", "1 for the phase of the controller's life that it is in", phases);
        gauge(r, "ready", "Whether requests are taken, written durably, and Nomad is in sight", self.ready.into());
        gauge(r, "nomad_in_sight", "Whether Nomad is listed and its event stream is open", self.nomad_in_sight.into());
        gauge(r, "store_readable", "Whether this scrape could read the database", self.database.is_some().into());
        seconds(r, "start_timestamp", "When the controller started, as a Unix time", unix(self.started));
        let loops = Family::<OfLoop, Seconds>::default();
        for (which, age) in &self.loops {
            loops.get_or_create(&OfLoop { r#loop: which.label() }).set(age.as_secs_f64());
        }
        r.register_with_unit("loop_age", "How long ago each loop turned last", Unit::Seconds, loops);
        gauge(r, "tasks_crashing", "Tasks of any job that crash again and again", count(self.crashing));
        self.clocks(r);
        if let Some(database) = &self.database {
            self.queue(r, database);
        }
    }

    fn clocks(&self, r: &mut Registry) {
        let c = &self.census;
        gauge(
            r,
            "clocks_armed",
            "Kill clocks of tasks that were not seen dead yet; only where the clocks are kept",
            count(c.clocks),
        );
        gauge(r, "clocks_overdue", "Of those, clocks whose instant has come", count(c.overdue));
        let help = "How long ago the instant of the most overdue clock was";
        seconds(r, "clock_overdue_max", help, c.most_overdue.as_secs_f64());
        let help = "Nodes out of reach on which a task is to be killed, or was to be told to end";
        gauge(r, "clock_unreachable_nodes", help, count(c.nodes_away));
        gauge(r, "draining_nodes", "Nodes whose drain by Curfew has started and not ended", count(c.draining_nodes));
        gauge(r, "drain_allocations_left", "Allocations that have not left the nodes that drain", count(c.drain_left));
        gauge(r, "keeper_duty_held", "Whether this controller keeps the clocks", self.duty_held.into());
        let epoch = i64::try_from(self.duty_epoch).unwrap_or(i64::MAX);
        gauge(r, "keeper_duty_epoch", "How often the duty of keeping the clocks changed hands, as last seen", epoch);
    }

    fn queue(&self, r: &mut Registry, database: &InDatabase) {
        let (operations, oldest) = (Family::<InState, Gauge>::default(), Family::<ByKind, Seconds>::default());
        for kind in Kind::OPERATIONS {
            let of = || database.queue.counts.iter().filter(move |c| c.kind == kind);
            for state in State::ALL.into_iter().filter(|s| !s.is_finished()) {
                let n = of().filter(|c| c.state == state).map(|c| c.count).sum::<u64>();
                let labels = InState { kind: kind.as_str(), state: state.as_str() };
                operations.get_or_create(&labels).set(i64::try_from(n).unwrap_or(i64::MAX));
            }
            let waits = of().filter(|c| c.state.sleeps()).map(|c| self.at.since(c.oldest_run_at).as_secs_f64());
            oldest.get_or_create(&ByKind { kind: kind.as_str() }).set(waits.fold(0.0, f64::max));
        }
        r.register("operations", "Operations that have not finished, by kind and state", operations);
        let help = "How long ago the operation that is overdue the longest was due, by kind; 0 when none is";
        r.register_with_unit("queue_oldest_age", help, Unit::Seconds, oldest);
        let paused = Family::<ByKind, Gauge>::default();
        for row in &database.kinds {
            paused.get_or_create(&ByKind { kind: row.kind.as_str() }).set(row.pause.is_some().into());
        }
        r.register("kind_paused", "Whether somebody paused a kind; while kill is paused no SIGKILL is sent", paused);
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn unix(at: Timestamp) -> f64 {
    at.seconds_after(Timestamp::from_millis(0))
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: i64) {
    registry.register(name, help, ConstGauge::new(value));
}

fn seconds(registry: &mut Registry, name: &str, help: &str, value: f64) {
    registry.register_with_unit(name, help, Unit::Seconds, ConstGauge::new(value));
}
