//! The controller's configuration: its shape, its defaults, and what must hold between the values.
//!
//! docs/timeouts.md explains each timeout; a test compares the two.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Graces;
use crate::duration::text;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `sqlite:PATH`.
    pub database: String,
    /// Where the RPC listens.
    pub listen: String,
    /// What Nomad's `kill_timeout` is raised to, out of the way of the kill clocks.
    #[serde(with = "text")]
    pub kill_timeout: Duration,
    /// Between SIGTERM and SIGKILL where neither the request nor the task says.
    #[serde(with = "text")]
    pub job_stop_timeout: Duration,
    /// For a poststop task of an allocation that is wanted stopped, from its own start.
    #[serde(with = "text")]
    pub poststop_timeout: Duration,
    /// How long a task must stay ended before its siblings count as told to end.
    #[serde(with = "text")]
    pub settle_time: Duration,
    /// How often Nomad is asked for everything that was told to end, in case events were lost.
    #[serde(with = "text")]
    pub resync_interval: Duration,
    /// How long before a clock's instant the last read is asked for.
    #[serde(with = "text")]
    pub read_lead: Duration,
    /// A worker that has not renewed its lease for this long has lost it.
    #[serde(with = "text")]
    pub lease_timeout: Duration,
    /// How long steps in flight may take to finish when the controller is stopped.
    #[serde(with = "text")]
    pub shutdown_timeout: Duration,
    /// Every call to Nomad has this deadline (long polls and the event stream have their own).
    #[serde(with = "text")]
    pub nomad_timeout: Duration,
    /// Operations worked on at the same time.
    pub workers: usize,
    /// Calls to Nomad at the same time.
    pub nomad_connections: usize,
    /// The largest answer accepted from Nomad, and the largest request body accepted by the RPC is a sixteenth of it.
    pub max_body_bytes: usize,
    /// Job specifications kept in memory.
    pub spec_cache: usize,
    /// Drivers that take no signals: their tasks keep the author's `kill_timeout`, which Nomad enforces.
    pub signalless_drivers: Vec<String>,
}

const fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            database: "sqlite:curfew.db".into(),
            listen: "127.0.0.1:4690".into(),
            kill_timeout: secs(24 * 3600),
            job_stop_timeout: secs(30),
            poststop_timeout: secs(300),
            settle_time: Duration::from_millis(1500),
            resync_interval: secs(10),
            read_lead: Duration::from_millis(25),
            lease_timeout: secs(300),
            shutdown_timeout: secs(25),
            nomad_timeout: secs(10),
            workers: 64,
            nomad_connections: 64,
            max_body_bytes: 64 << 20,
            spec_cache: 20_000,
            signalless_drivers: vec!["qemu".into()],
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BadConfig(pub String);

impl Config {
    pub fn graces(&self) -> Graces {
        Graces { job_stop_timeout: self.job_stop_timeout, poststop_timeout: self.poststop_timeout, settle: self.settle_time }
    }

    /// What must hold between the values, whichever file, variable or flag they came from.
    pub fn check(&self) -> Result<(), BadConfig> {
        let bad = |s: String| Err(BadConfig(s));
        let show = crate::duration::format;
        if self.job_stop_timeout >= self.kill_timeout {
            return bad(format!(
                "job_stop_timeout ({}) must be shorter than kill_timeout ({}): Nomad would send SIGKILL before Curfew's clock",
                show(self.job_stop_timeout),
                show(self.kill_timeout)
            ));
        }
        for (name, value) in [
            ("kill_timeout", self.kill_timeout),
            ("job_stop_timeout", self.job_stop_timeout),
            ("poststop_timeout", self.poststop_timeout),
            ("settle_time", self.settle_time),
            ("resync_interval", self.resync_interval),
            ("lease_timeout", self.lease_timeout),
            ("nomad_timeout", self.nomad_timeout),
        ] {
            if value.is_zero() {
                return bad(format!("{name} must be longer than zero"));
            }
        }
        if self.lease_timeout <= self.nomad_timeout {
            return bad(format!(
                "lease_timeout ({}) must be longer than nomad_timeout ({}): a step waits for at least one answer",
                show(self.lease_timeout),
                show(self.nomad_timeout)
            ));
        }
        if self.read_lead >= secs(1) {
            return bad(format!(
                "read_lead ({}) must be under 1s: the read before a SIGKILL would be stale",
                show(self.read_lead)
            ));
        }
        for (name, value) in
            [("workers", self.workers), ("nomad_connections", self.nomad_connections), ("spec_cache", self.spec_cache)]
        {
            if value == 0 {
                return bad(format!("{name} must be at least 1"));
            }
        }
        if self.max_body_bytes < 1 << 20 {
            return bad("max_body_bytes must be at least 1048576 (1 MiB)".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold_and_a_short_kill_timeout_is_refused_with_both_values() {
        Config::default().check().unwrap();
        let c = Config { kill_timeout: secs(20), ..Config::default() };
        let e = c.check().unwrap_err().to_string();
        assert!(e.contains("30s") && e.contains("20s"), "{e}");
    }
}
