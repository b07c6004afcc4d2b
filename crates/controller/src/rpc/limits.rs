//! What one caller, one address, and all of them together may take: requests a second, wrong credentials, connections, streams; and
//! how often somebody was refused, by why.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use curfew_core::config::Config;
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
    streams: Arc<Places>,
    connections: Arc<Places>,
    told: Mutex<HashMap<&'static str, Told>>,
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
            streams: Arc::new(Places::new(config.rpc_streams, config.rpc_address_share)),
            connections: Arc::new(Places::new(config.rpc_connections, config.rpc_address_share)),
            told: Mutex::default(),
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

    /// Counts it. `Some` when the log may hear of it, at most once a minute: how many there were since the last time.
    pub fn refused_often(&self, why: Why) -> Option<u64> {
        self.refused(why);
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.entry(why.as_str()).or_default().once_more(Instant::now())
    }

    /// A place among the streams and long polls, for as long as it is held.
    pub fn stream(&self, peer: IpAddr) -> Result<Place, Full> {
        Places::take(&self.0.streams, peer)
    }

    pub fn connection(&self, peer: IpAddr) -> Result<Place, Full> {
        Places::take(&self.0.connections, peer)
    }
}

/// What is said at most once a minute.
#[derive(Default)]
struct Told {
    last: Option<Instant>,
    since: u64,
}

impl Told {
    fn once_more(&mut self, now: Instant) -> Option<u64> {
        self.since += 1;
        if self.last.is_some_and(|last| now < last + Duration::from_secs(60)) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

/// So many for all together, and of them so many for one address.
struct Places {
    all: usize,
    each: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    All,
    /// This address has as many as one may have.
    Address {
        most: usize,
    },
}

impl Full {
    pub fn why(self, all: Why) -> Why {
        match self {
            Full::All => all,
            Full::Address { .. } => Why::Address,
        }
    }
}

/// Given back when it is dropped.
pub struct Place {
    of: Arc<Places>,
    peer: IpAddr,
}

impl Places {
    fn new(all: usize, percent: usize) -> Self {
        Self { all, each: (all.saturating_mul(percent) / 100).max(1), taken: Mutex::default() }
    }

    fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Place, Full> {
        let peer = network(peer);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= self.all {
            return Err(Full::All);
        }
        let its = taken.entry(peer).or_default();
        if *its >= self.each {
            return Err(Full::Address { most: self.each });
        }
        *its += 1;
        Ok(Place { of: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(its) = taken.get_mut(&self.peer) {
            *its -= 1;
            if *its == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

/// Whoever has one IPv6 address has the whole /64.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
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
    fn an_address_has_its_share_and_gives_back_what_it_had() {
        let places = Arc::new(Places::new(4, 75));
        let take = |peer: &str| places.take(peer.parse().unwrap());
        let its: Vec<Place> = (0..3).map(|_| take("10.0.0.1").unwrap()).collect();
        assert_eq!(take("10.0.0.1").err(), Some(Full::Address { most: 3 }));
        assert_eq!(take("::ffff:10.0.0.1").err(), Some(Full::Address { most: 3 }), "the same, as IPv6 writes it");
        let other = take("2001:db8::1").unwrap();
        assert_eq!(take("10.0.0.3").err(), Some(Full::All));
        drop(its);
        let net: Vec<Place> = ["2001:db8::2", "2001:db8:0:0:ffff::"].map(|p| take(p).unwrap()).into();
        assert_eq!(take("2001:db8::3").err(), Some(Full::Address { most: 3 }), "a /64 is one");
        drop((other, net));
        assert!(places.taken.lock().unwrap().is_empty());
        assert_eq!(Places::new(1, 1).each, 1);
    }

    #[test]
    fn what_happens_often_is_told_once_a_minute_with_how_often() {
        let (mut told, now) = (Told::default(), Instant::now());
        let said: Vec<_> = [0, 1, 59, 60, 61, 200].map(|s| told.once_more(now + Duration::from_secs(s))).into();
        assert_eq!(said, [Some(1), None, None, Some(3), None, Some(2)]);
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
