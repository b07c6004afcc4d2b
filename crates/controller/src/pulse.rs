//! Whether the loops turn. Each says so whenever it goes around, the idle ones too; a pure function judges.
//!
//! No loop awaits what has no deadline of its own (the database has none), so one that stays still hangs in itself: it is
//! blocked, or dead. A restart helps against that and against nothing else, which is why only this stops the watchdog's petting.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    Observer,
    Keeper,
    Dispatcher,
}

impl Loop {
    const ALL: [Loop; 3] = [Loop::Observer, Loop::Keeper, Loop::Dispatcher];

    pub fn as_str(self) -> &'static str {
        match self {
            Loop::Observer => "observer",
            Loop::Keeper => "keeper of clocks",
            Loop::Dispatcher => "dispatcher",
        }
    }

    /// In one word, as metrics name it.
    pub fn label(self) -> &'static str {
        match self {
            Loop::Observer => "observer",
            Loop::Keeper => "keeper",
            Loop::Dispatcher => "dispatcher",
        }
    }
}

/// No loop rests longer than this when nothing happens.
pub const IDLE: Duration = Duration::from_secs(5);

/// When each loop turned last.
pub struct Pulse {
    origin: Instant,
    /// Milliseconds after the origin.
    turned: [AtomicU64; Loop::ALL.len()],
}

impl Pulse {
    /// As if each had just turned.
    pub fn new() -> Self {
        Self { origin: Instant::now(), turned: Default::default() }
    }

    pub fn turn(&self, which: Loop) {
        let at = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.turned[which as usize].store(at, Ordering::Relaxed);
    }

    /// How long ago each turned.
    pub fn ages(&self) -> [(Loop, Duration); Loop::ALL.len()] {
        let now = self.origin.elapsed();
        Loop::ALL.map(|l| (l, now.saturating_sub(Duration::from_millis(self.turned[l as usize].load(Ordering::Relaxed)))))
    }
}

/// The loop that has not turned for the longest time, when that is longer than `within`.
pub fn stuck(ages: &[(Loop, Duration)], within: Duration) -> Option<(Loop, Duration)> {
    ages.iter().filter(|(_, age)| *age > within).max_by_key(|(_, age)| *age).copied()
}

/// How long a loop may stay still: the observer waits for one answer of Nomad's at a time, which is not being stuck.
pub fn patience(within: Duration, nomad_timeout: Duration) -> Duration {
    within.max(nomad_timeout + 2 * IDLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_stillest_loop_is_named_and_only_when_it_is_too_still() {
        let ages = [(Loop::Observer, s(31)), (Loop::Keeper, s(40)), (Loop::Dispatcher, s(1))];
        assert_eq!(stuck(&ages, s(30)), Some((Loop::Keeper, s(40))));
        assert_eq!(stuck(&ages, s(40)), None);
        assert_eq!(stuck(&[], s(0)), None);
    }

    #[test]
    fn a_slow_nomad_is_no_stuck_loop() {
        assert_eq!(patience(s(30), s(10)), s(30));
        assert_eq!(patience(s(30), s(60)), s(70));
    }

    #[tokio::test(start_paused = true)]
    async fn turning_starts_the_count_anew() {
        let pulse = Pulse::new();
        tokio::time::advance(s(10)).await;
        pulse.turn(Loop::Keeper);
        tokio::time::advance(s(5)).await;
        assert_eq!(pulse.ages(), [(Loop::Observer, s(15)), (Loop::Keeper, s(5)), (Loop::Dispatcher, s(15))]);
    }
}
