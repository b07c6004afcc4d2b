//! The one table of kinds: what an operation of each may take, and what `[kinds.NAME]` in the configuration changes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::duration::text_opt;
use crate::operation::Kind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A worker that has not renewed its lease for this long has lost it.
    pub lease_timeout: Duration,
    /// How many steps may fail in a row; `None`: as many as it takes.
    pub attempts: Option<u32>,
    pub backoff: Backoff,
    /// How many run at the same time in one controller.
    pub concurrency: usize,
}

impl Limits {
    /// What was accepted is tried until it is done: a kind that gives up has to say so here.
    pub(crate) fn of(kind: Kind, lease_timeout: Duration, concurrency: usize) -> Self {
        let attempts = match kind {
            Kind::Submit
            | Kind::Stop
            | Kind::DrainNode
            | Kind::DrainDatacenter
            | Kind::Undrain
            | Kind::Rollout
            | Kind::Deployment
            | Kind::Kill => None,
        };
        let backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(15) };
        Self { lease_timeout, attempts, backoff, concurrency }
    }
}

/// How long to wait after a step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub longest: Duration,
}

impl Backoff {
    /// After so many failures in a row: `first`, doubled each time, `longest` at most. `jitter`, from 0 to 1, leaves between the
    /// half and the whole of it, so that many that failed together do not come back together.
    pub fn wait(&self, failures: u32, jitter: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(30)).min(self.longest);
        doubled.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

/// `[kinds.NAME]`; what is absent is as for every kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    #[serde(with = "text_opt", skip_serializing_if = "Option::is_none")]
    pub lease_timeout: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    #[serde(with = "text_opt", skip_serializing_if = "Option::is_none")]
    pub backoff_first: Option<Duration>,
    #[serde(with = "text_opt", skip_serializing_if = "Option::is_none")]
    pub backoff_longest: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
}

impl Overrides {
    pub(crate) fn over(self, all: Limits) -> Limits {
        Limits {
            lease_timeout: self.lease_timeout.unwrap_or(all.lease_timeout),
            attempts: self.attempts.or(all.attempts),
            backoff: Backoff {
                first: self.backoff_first.unwrap_or(all.backoff.first),
                longest: self.backoff_longest.unwrap_or(all.backoff.longest),
            },
            concurrency: self.concurrency.unwrap_or(all.concurrency),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_doubles_up_to_the_longest_and_jitter_takes_half_at_most() {
        let backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(15) };
        let seconds = |n, jitter| backoff.wait(n, jitter).as_secs_f64();
        assert_eq!([1, 2, 3, 5, 6, 99, u32::MAX].map(|n| seconds(n, 1.0)), [0.5, 1.0, 2.0, 8.0, 15.0, 15.0, 15.0]);
        assert_eq!([0.0, 0.5, 1.0, 7.0].map(|j| seconds(2, j)), [0.5, 0.75, 1.0, 1.0]);
    }
}
