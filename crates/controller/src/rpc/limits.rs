//! What one caller, and all of them together, may take: requests a second, wrong credentials, streams; and how often somebody was
//! refused, by why.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use curfew_core::config::Config;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::metrics::Metrics;
pub(crate) use crate::metrics::Why;

/// Wrong credentials that one address may send at once, and how long each counts.
const FAILURES: u32 = 20;
const FAILURE: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Limits(Arc<Inner>);

struct Inner {
    metrics: Metrics,
    requests: Option<Rate<String>>,
    failures: Rate<IpAddr>,
    streams: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Limits {
    pub fn new(config: &Config, metrics: Metrics) -> Self {
        let requests = (config.rpc_rate > 0).then(|| {
            let per_second = u32::try_from(config.rpc_rate).unwrap_or(u32::MAX);
            Rate::new(Duration::from_secs(1) / per_second, per_second)
        });
        Self(Arc::new(Inner {
            metrics,
            requests,
            failures: Rate::new(FAILURE, FAILURES),
            streams: Arc::new(Semaphore::new(config.rpc_streams)),
            connections: Arc::new(Semaphore::new(config.rpc_connections)),
        }))
    }

    pub fn refused(&self, why: Why) {
        self.0.metrics.refused(why);
    }

    /// Whether this caller may ask once more now.
    pub fn request(&self, caller: String) -> bool {
        self.0.requests.as_ref().is_none_or(|rate| rate.take(caller, Instant::now()))
    }

    pub fn may_fail(&self, peer: IpAddr) -> bool {
        self.0.failures.has_room(&peer, Instant::now())
    }

    pub fn failed(&self, peer: IpAddr) {
        self.0.failures.take(peer, Instant::now());
    }

    /// A place among the streams and long polls, for as long as it is held.
    pub fn stream(&self) -> Option<OwnedSemaphorePermit> {
        self.0.streams.clone().try_acquire_owned().ok()
    }

    pub fn connection(&self) -> Option<OwnedSemaphorePermit> {
        self.0.connections.clone().try_acquire_owned().ok()
    }
}

/// So many at once, and then one each interval: for each key the instant at which all that it took is used up.
struct Rate<K> {
    each: Duration,
    burst: Duration,
    used: Mutex<HashMap<K, Instant>>,
}

/// Keys remembered; those that owe nothing are forgotten then.
const KEYS: usize = 10_000;

impl<K: Hash + Eq> Rate<K> {
    fn new(each: Duration, burst: u32) -> Self {
        Self { each, burst: each * burst.max(1), used: Mutex::default() }
    }

    fn take(&self, key: K, now: Instant) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= KEYS {
            used.retain(|_, until| *until > now);
            if used.len() >= KEYS {
                used.clear();
            }
        }
        let until = used.entry(key).or_insert(now);
        let next = (*until).max(now) + self.each;
        if next > now + self.burst {
            return false;
        }
        *until = next;
        true
    }

    fn has_room(&self, key: &K, now: Instant) -> bool {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.get(key).is_none_or(|until| *until + self.each <= now + self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_then_one_each_interval() {
        let (rate, now) = (Rate::new(Duration::from_millis(100), 3), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        let taken: Vec<bool> = [0, 0, 0, 0, 99, 100, 150, 200].map(|ms| rate.take("a", at(ms))).into();
        assert_eq!(taken, [true, true, true, false, false, true, false, true]);
        assert!(
            rate.take("b", at(0)) && !rate.has_room(&"a", at(200)) && rate.has_room(&"a", at(300)) && rate.has_room(&"c", at(0))
        );
        assert!([10_000; 3].iter().all(|ms| rate.take("a", at(*ms))) && !rate.take("a", at(10_000)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (rate, now) = (Rate::new(Duration::from_secs(60), 2), Instant::now());
        for key in 0..3 * KEYS {
            assert!(rate.take(key, now));
        }
        assert!(rate.used.lock().unwrap().len() <= KEYS);
    }
}
