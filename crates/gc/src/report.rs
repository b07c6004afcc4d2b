//! What a pass says: counts by verdict, each candidate with its evidence and what came of it.

use std::collections::BTreeMap;
use std::time::Duration;

use curfew_core::Timestamp;
use curfew_core::gc::{Mode, Verdict};
use serde::Serialize;

use crate::candidate::{Candidate, Outcome};
use crate::look::Found;
use crate::{Gc, Known};

/// One verdict, summed up.
#[derive(Clone, Debug, Serialize)]
pub struct Tally {
    pub mode: Mode,
    pub found: usize,
    pub done: usize,
    /// Still there after this pass.
    pub left: usize,
    pub capped: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub service: &'static str,
    pub version: &'static str,
    pub nomad: String,
    /// Where operations were learned from: `nothing`, `database` or the controller's address.
    pub known: String,
    pub dry_run: bool,
    pub began: Timestamp,
    pub seconds: f64,
    /// As the process ends: 0 clean, 1 failed, 3 something left over, 4 capped.
    pub exit: u8,
    pub verdicts: BTreeMap<Verdict, Tally>,
    pub candidates: Vec<Candidate>,
    /// Questions without an answer.
    pub failures: Vec<String>,
    pub notes: Vec<String>,
    /// Calls to Nomad, by route.
    pub requests: BTreeMap<&'static str, u64>,
}

pub(crate) const CLEAN: u8 = 0;
pub(crate) const FAILED: u8 = 1;
pub(crate) const LEFT_OVER: u8 = 3;
pub(crate) const CAPPED: u8 = 4;

impl Report {
    /// Whether nothing is to be said.
    pub fn is_clean(&self) -> bool {
        self.exit == CLEAN
    }

    pub fn lasted(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

impl Gc {
    pub(crate) fn report(&self, found: Found, dry_run: bool) -> Report {
        let verdicts: BTreeMap<Verdict, Tally> = Verdict::ALL.into_iter().map(|v| (v, self.tally(&found, v))).collect();
        let failed = !found.failures.is_empty() || found.candidates.iter().any(|c| c.outcome == Outcome::Failed);
        let exit = if failed {
            FAILED
        } else if verdicts.values().any(|t| t.capped) {
            CAPPED
        } else if verdicts.values().any(|t| t.left > 0) {
            LEFT_OVER
        } else {
            CLEAN
        };
        let before = &found.requests_before;
        let asked = self.nomad.requests().into_iter();
        let requests = asked.map(|(route, n)| (route, n - before.get(route).copied().unwrap_or(0)));
        Report {
            service: "curfew-gc",
            version: env!("CARGO_PKG_VERSION"),
            nomad: self.nomad.address().to_owned(),
            known: match &self.known {
                Known::Nothing => "nothing".into(),
                Known::Database(_) => "database".into(),
                Known::Controller(c) => c.addr().to_owned(),
            },
            dry_run,
            began: found.began,
            seconds: self.clock.now().seconds_after(found.began),
            exit,
            verdicts,
            requests: requests.filter(|(_, n)| *n > 0).collect(),
            candidates: found.candidates,
            failures: found.failures.into_iter().map(|(_, why)| why).collect(),
            notes: found.notes,
        }
    }

    fn tally(&self, found: &Found, verdict: Verdict) -> Tally {
        let mine = || found.candidates.iter().filter(|c| c.verdict == verdict);
        let all = found.counts.get(&verdict).copied().unwrap_or(0);
        let gone = mine().filter(|c| matches!(c.outcome, Outcome::Done | Outcome::Changed)).count();
        Tally {
            mode: self.settings.modes.of(verdict),
            found: all,
            done: mine().filter(|c| c.outcome == Outcome::Done).count(),
            left: all - gone,
            capped: mine().any(|c| c.outcome == Outcome::Capped),
        }
    }
}
