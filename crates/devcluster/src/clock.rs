//! The cluster's one clock: wall time is a base captured once plus tokio's elapsed time, so that it stands still
//! under paused tokio time and never runs backwards.

use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug, Clone)]
pub(crate) struct Clock {
    wall_base: i64,
    base: Instant,
}

impl Clock {
    /// `wall_base` is the Unix time in nanoseconds to start at; `None` takes the machine's.
    pub(crate) fn new(wall_base: Option<Duration>) -> Self {
        let wall = wall_base.unwrap_or_else(machine_time);
        Self { wall_base: i64::try_from(wall.as_nanos()).unwrap_or(i64::MAX / 2), base: Instant::now() }
    }

    /// Unix time in nanoseconds, as Nomad writes it into events and modify times.
    pub(crate) fn now_ns(&self) -> i64 {
        let elapsed = i64::try_from(self.base.elapsed().as_nanos()).unwrap_or(i64::MAX / 2);
        self.wall_base.saturating_add(elapsed)
    }

    /// The tokio instant of a wall time of this clock.
    pub(crate) fn instant_of(&self, unix_ns: i64) -> Instant {
        let delta = unix_ns.saturating_sub(self.wall_base);
        self.base + Duration::from_nanos(u64::try_from(delta).unwrap_or(0))
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
fn machine_time() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// A seed that no earlier run had: identifiers of one run must not come back in the next.
pub(crate) fn fresh_seed() -> u64 {
    let now = machine_time();
    now.as_secs().rotate_left(32) ^ u64::from(now.subsec_nanos()) ^ u64::from(std::process::id()).rotate_left(48)
}

/// RFC 3339 with nanoseconds, as Go prints a UTC time; zero is Go's "no time", which Nomad's API shows as null.
pub(crate) fn rfc3339(unix_ns: i64) -> Option<String> {
    if unix_ns == 0 {
        return None;
    }
    jiff::Timestamp::from_nanosecond(i128::from(unix_ns)).ok().map(|t| t.to_string())
}
