//! The gc that runs beside the controller: its passes.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use curfew_core::Timestamp;
use curfew_core::gc::Verdict;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{Metrics, from_zero};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByVerdict {
    verdict: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

pub(super) struct Passes {
    passes: Family<ByResult, Counter>,
    last: Gauge<f64, AtomicU64>,
    took: Gauge<f64, AtomicU64>,
    found: Family<ByVerdict, Gauge>,
    left: Family<ByVerdict, Gauge>,
    capped: Family<ByVerdict, Gauge>,
    acted: Family<ByVerdict, Counter>,
}

/// What a pass came to.
#[derive(Clone, Debug)]
pub struct GcPass {
    pub ended_at: Timestamp,
    pub took: Duration,
    /// As `curfew gc` would exit: 0 clean, 1 failed, 3 something left over, 4 capped.
    pub exit: u8,
    pub verdicts: Vec<GcVerdict>,
}

#[derive(Clone, Copy, Debug)]
pub struct GcVerdict {
    pub verdict: Verdict,
    pub found: usize,
    pub acted: usize,
    pub left: usize,
    pub capped: bool,
}

impl Passes {
    pub(super) fn register(r: &mut Registry) -> Self {
        let all = Self {
            passes: Family::default(),
            last: Gauge::default(),
            took: Gauge::default(),
            found: Family::default(),
            left: Family::default(),
            capped: Family::default(),
            acted: Family::default(),
        };
        r.register("gc_passes", "Passes of the gc beside this controller, by how they ended", all.passes.clone());
        let help = "When the last pass of the gc ended, as a Unix time; 0 before the first";
        r.register_with_unit("gc_last_pass_timestamp", help, Unit::Seconds, all.last.clone());
        r.register_with_unit("gc_last_pass_duration", "How long the last pass of the gc took", Unit::Seconds, all.took.clone());
        r.register("gc_candidates", "What the last pass of the gc found, by verdict", all.found.clone());
        r.register("gc_left", "What was left over after the last pass of the gc, by verdict", all.left.clone());
        r.register("gc_capped", "Whether the last pass found more than its cap and touched none of it", all.capped.clone());
        r.register("gc_acted", "What the gc did away with, by verdict", all.acted.clone());
        for result in ["clean", "failed", "left_over", "capped"] {
            from_zero(&all.passes, &ByResult { result });
        }
        for verdict in Verdict::ALL.map(Verdict::as_str) {
            let verdict = ByVerdict { verdict };
            from_zero(&all.found, &verdict);
            from_zero(&all.left, &verdict);
            from_zero(&all.capped, &verdict);
            from_zero(&all.acted, &verdict);
        }
        all
    }
}

impl Metrics {
    /// A pass of the gc that runs beside this controller has ended.
    pub fn gc_pass(&self, pass: &GcPass) {
        let all = &self.0.gc;
        let result = match pass.exit {
            0 => "clean",
            3 => "left_over",
            4 => "capped",
            _ => "failed",
        };
        all.passes.get_or_create(&ByResult { result }).inc();
        all.last.set(pass.ended_at.seconds_after(Timestamp::from_millis(0)));
        all.took.set(pass.took.as_secs_f64());
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for v in &pass.verdicts {
            let verdict = ByVerdict { verdict: v.verdict.as_str() };
            all.found.get_or_create(&verdict).set(gauge(v.found));
            all.left.get_or_create(&verdict).set(gauge(v.left));
            all.capped.get_or_create(&verdict).set(v.capped.into());
            all.acted.get_or_create(&verdict).inc_by(u64::try_from(v.acted).unwrap_or(u64::MAX));
        }
    }
}
