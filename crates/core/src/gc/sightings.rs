//! What was seen before, by earlier passes: one pass alone proves little.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::job::spans;
use super::{JobStub, Verdict};
use crate::Timestamp;

/// So many passes must have seen it.
pub const SIGHTINGS: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    pub first: Timestamp,
    pub last: Timestamp,
    pub count: u32,
}

impl Sighting {
    /// Seen often enough, over at least `grace`.
    pub fn is_enough(&self, grace: Duration) -> bool {
        self.count >= SIGHTINGS && spans(self.first, self.last, grace)
    }
}

/// Sightings by verdict, job and registration: a job that was registered again is seen for the first time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sightings(BTreeMap<String, Sighting>);

impl Sightings {
    /// Counts one pass's sighting at `now`, and says what is known then.
    pub fn see(&mut self, verdict: Verdict, job: &JobStub, now: Timestamp) -> Sighting {
        let seen = self.0.entry(key(verdict, job)).or_insert(Sighting { first: now, last: now, count: 0 });
        if seen.count == 0 || seen.last < now {
            seen.count = seen.count.saturating_add(1);
            seen.last = now;
        }
        *seen
    }

    /// Since when a job is seen dead, without counting this as a sighting.
    pub fn recall_dead(&self, job: &JobStub) -> Option<Sighting> {
        // A purge's own stop counts the index up; it does not make the job any younger.
        let mine = format!("{} {} {} ", Verdict::Purge.as_str(), job.key.namespace, job.key.job);
        self.0.iter().find(|(key, _)| key.strip_prefix(&mine).is_some_and(|rest| rest.parse::<u64>().is_ok())).map(|(_, s)| *s)
    }

    /// What a pass that began at `since` did not see is forgotten: it is no longer so.
    pub fn forget_before(&mut self, since: Timestamp) {
        self.0.retain(|_, s| s.last >= since);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn key(verdict: Verdict, job: &JobStub) -> String {
    format!("{} {} {} {}", verdict.as_str(), job.key.namespace, job.key.job, job.job_modify_index)
}
