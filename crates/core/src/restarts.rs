//! A task's restarts as its client counts them: so many within an interval, and a new interval begins with the first failure after
//! the old one's end.

use std::time::Duration;

use crate::spec::RestartPolicy;
use crate::{EventKind, Task, Timestamp};

/// A restart that its policy allowed, and after how long it starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    pub at: Timestamp,
    pub delay: Duration,
    /// Exit code and signal of the end before it, where the events still tell.
    pub exit: Option<(i64, i64)>,
}

impl Restart {
    pub fn next(self) -> Timestamp {
        self.at + self.delay
    }
}

/// A restart with its place in its interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    pub restart: Restart,
    /// More than the policy's attempts: they are used up, and it waits for the interval's end (`mode = "delay"`).
    pub number: u64,
    /// When the interval ends that it counts in.
    pub until: Timestamp,
}

/// The restarts that its last events show, oldest first. One that somebody asked for has no delay and does not count.
pub fn shown(task: &Task) -> impl Iterator<Item = Restart> {
    let mut exit = None;
    task.events.iter().filter_map(move |e| match e.kind {
        EventKind::Terminated => {
            exit = Some((e.exit_code, e.signal));
            None
        }
        EventKind::Restarting => {
            let exit = exit.take();
            Some(Restart { at: e.at, delay: e.delay.filter(|d| !d.is_zero())?, exit })
        }
        _ => None,
    })
}

/// Numbers restarts, oldest first. The first interval began at `since`. `total` is how many the client knows of: those that were
/// not seen came before the first of these, and count where they must lie in the same interval.
pub fn count(policy: RestartPolicy, since: Timestamp, total: u64, seen: &[Restart]) -> Vec<Counted> {
    let unseen = total.saturating_sub(u64::try_from(seen.len()).unwrap_or(u64::MAX));
    let (mut start, mut number) = (since, unseen);
    let one = |restart: &Restart| {
        if restart.at > start + policy.interval {
            (start, number) = (restart.at, 0);
        }
        number += 1;
        Counted { restart: *restart, number, until: start + policy.interval }
    };
    seen.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1000)
    }

    fn every(seconds: &[i64]) -> Vec<Restart> {
        seconds.iter().map(|s| Restart { at: at(*s), delay: Duration::from_secs(10), exit: None }).collect()
    }

    fn numbers(total: u64, seconds: &[i64]) -> Vec<u64> {
        let policy = RestartPolicy { attempts: 3, fail: false, interval: Duration::from_secs(60) };
        count(policy, at(0), total, &every(seconds)).iter().map(|c| c.number).collect()
    }

    #[test]
    fn they_are_numbered_within_the_interval_and_a_new_one_begins_with_the_first_failure_after_it() {
        assert_eq!(numbers(3, &[15, 40, 60]), [1, 2, 3]);
        // The second interval begins at 75 and not at 60.
        assert_eq!(numbers(5, &[15, 40, 75, 130, 136]), [1, 2, 1, 2, 1]);
        assert_eq!(numbers(4, &[10, 20, 30, 40]), [1, 2, 3, 4], "the fourth waits for the interval's end");
    }

    #[test]
    fn what_was_not_seen_counts_only_where_it_must_lie_in_the_same_interval() {
        assert_eq!(numbers(5, &[40, 50]), [4, 5]);
        assert_eq!(numbers(5, &[100, 110]), [1, 2]);
    }
}
