//! The restart policy of one task.

use super::driver::Exit;
use crate::duration;
use crate::job::RestartPolicy;

#[derive(Debug)]
pub(crate) enum Verdict {
    /// It was killed on purpose.
    Killed,
    /// It ended and that is fine.
    Terminated,
    /// It will not be started again, and that fails it.
    NotRestarting(String),
    Restart {
        delay: i64,
        reason: &'static str,
    },
}

#[derive(Debug)]
pub(crate) struct Restarts {
    policy: RestartPolicy,
    on_success: bool,
    count: i64,
    interval_start: i64,
    killed: bool,
    triggered: bool,
    salt: u64,
}

impl Restarts {
    pub(crate) fn new(policy: RestartPolicy, on_success: bool, now: i64, salt: u64) -> Self {
        Self { policy, on_success, count: 0, interval_start: now, killed: false, triggered: false, salt }
    }

    pub(crate) fn set_killed(&mut self) {
        self.killed = true;
    }

    pub(crate) fn set_triggered(&mut self) {
        self.triggered = true;
    }

    /// `exit` is none when the task did not even start.
    pub(crate) fn verdict(&mut self, exit: Option<Exit>, now: i64) -> Verdict {
        let (killed, triggered) = (std::mem::take(&mut self.killed), std::mem::take(&mut self.triggered));
        if killed {
            return Verdict::Killed;
        }
        if triggered {
            return Verdict::Restart { delay: 0, reason: "" };
        }
        let fine = exit.is_some_and(Exit::successful) && !self.on_success;
        if self.policy.attempts == 0 {
            return if fine { Verdict::Terminated } else { Verdict::NotRestarting("Policy allows no restarts".into()) };
        }
        if now > self.interval_start.saturating_add(self.policy.interval) {
            self.count = 0;
            self.interval_start = now;
        }
        self.count += 1;
        if fine {
            return Verdict::Terminated;
        }
        if self.count > self.policy.attempts {
            if self.policy.mode_fail {
                return Verdict::NotRestarting(format!(
                    "Exceeded allowed attempts {} in interval {} and mode is \"fail\"",
                    self.policy.attempts,
                    duration::go(self.policy.interval)
                ));
            }
            let delay = (self.interval_start + self.policy.interval - now).max(0);
            return Verdict::Restart { delay, reason: "Exceeded allowed attempts, applying a delay" };
        }
        Verdict::Restart { delay: self.jitter(), reason: "Restart within policy" }
    }

    /// Nomad adds up to a quarter; here the quarter comes from the task's own salt, so that runs repeat.
    fn jitter(&mut self) -> i64 {
        self.salt = self.salt.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let quarter = u64::try_from(self.policy.delay / 4).unwrap_or(0);
        let extra = if quarter == 0 { 0 } else { (self.salt >> 11) % quarter };
        self.policy.delay.saturating_add(i64::try_from(extra).unwrap_or(0))
    }
}
