//! What a node's drain asks of Nomad now, and when it looks again. Pure: the same situation gives the same answer.
//!
//! ```text
//!  migrate   Pace until T ───────────▶ at T: Force, for what was not told
//!  evacuate  Force without system ──▶ Pace until T for system jobs ──▶ alone on the node, or at T: Force
//!                       T = deadline - the longest that what lives there needs after it was told
//! ```
//!
//! Nomad has T too, so that it tells what is left even when every controller is dead.

use std::time::Duration;

use super::{Ask, Asked, DrainOptions, Strategy};
use crate::Timestamp;

/// An allocation that is to leave and did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub system: bool,
    /// Nomad wants it stopped.
    pub told: bool,
    /// Its shutdown delays and its longest stop timeout.
    pub needs: Duration,
}

pub struct Situation<'a> {
    pub options: &'a DrainOptions,
    pub started_at: Timestamp,
    pub deadline: Option<Timestamp>,
    pub left: &'a [Left],
    pub asked: Option<Asked>,
    pub now: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    pub ask: Option<Ask>,
    /// Sooner than anything else wakes it.
    pub look_at: Option<Timestamp>,
}

/// What Nomad takes to tell what it was asked to: it gathers for a second.
const NOMAD_TELLS: Duration = Duration::from_millis(1500);
/// A forced drain that told nothing is asked for again.
const AGAIN: Duration = Duration::from_secs(3);

impl Situation<'_> {
    /// When what is left has to be told: as long before the deadline as it needs, though not in the first half.
    fn tell_at(&self, of: impl Fn(&Left) -> bool) -> Option<Timestamp> {
        let deadline = self.deadline?;
        let needs = self.left.iter().filter(|l| of(l)).map(|l| l.needs).max().unwrap_or_default().max(Duration::from_secs(1));
        let half = deadline.since(self.started_at) / 2;
        Some(deadline - (needs + NOMAD_TELLS).min(half))
    }

    pub fn course(&self) -> Course {
        let ignore_system = self.options.ignore_system;
        let force = Ask::Force { ignore_system };
        let untold = |l: &Left| !l.told;
        let pace = |until| Ask::Pace { until, ignore_system };
        let (wanted, tell_at) = match self.options.strategy {
            // With nothing to tell it only leaves the meta.
            Strategy::Evacuate
                if self.left.iter().any(|l| untold(l) && !l.system) || !self.left.iter().any(untold) && self.asked.is_none() =>
            {
                // System jobs leave last, unless they are alone.
                let later = self.left.iter().any(|l| untold(l) && l.system) && self.left.iter().any(|l| !l.system);
                (Some(Ask::Force { ignore_system: ignore_system || later }), None)
            }
            _ if self.asked.is_some() && !self.left.iter().any(untold) => (None, None),
            Strategy::Evacuate => {
                let tell_at = self.tell_at(|l| l.system);
                let alone = self.left.iter().all(|l| l.system);
                (Some(if alone { force } else { pace(tell_at) }), tell_at)
            }
            Strategy::Migrate => {
                let tell_at = self.tell_at(untold);
                (Some(pace(tell_at)), tell_at)
            }
        };
        let due = tell_at.or(self.deadline).is_some_and(|at| self.now >= at);
        let wanted = match wanted {
            Some(_) if due => Some(force),
            // Everything was told: only the deadline that the meta tells may be another one.
            None if self.asked.is_none_or(|a| a.deadline != self.deadline) && !self.left.is_empty() => {
                Some(if due { force } else { pace(self.deadline) })
            }
            wanted => wanted,
        };
        let ask = wanted.filter(|w| !self.stands(*w));
        let again = match (ask, wanted, self.asked) {
            (Some(Ask::Force { .. }), ..) => Some(self.now + AGAIN),
            (None, Some(Ask::Force { .. }), Some(asked)) => Some(asked.at + AGAIN),
            _ => None,
        };
        let ahead = tell_at.or(self.deadline).filter(|at| *at > self.now && !self.left.is_empty());
        Course { ask, look_at: again.into_iter().chain(ahead).min() }
    }

    /// Whether that was asked for already. A force is asked for again when it told nothing for a while.
    fn stands(&self, wanted: Ask) -> bool {
        let Some(asked) = self.asked.filter(|a| a.deadline == self.deadline) else { return false };
        match (wanted, asked.what) {
            (Ask::Force { .. }, Ask::Force { .. }) => wanted == asked.what && self.now < asked.at + AGAIN,
            // Its instant moves with what is left; Nomad's may stay as it was asked for first.
            (Ask::Pace { ignore_system: a, .. }, Ask::Pace { ignore_system: b, .. }) => a == b,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn at(s: u64) -> Timestamp {
        Timestamp::from_millis(1_790_000_000_000) + Duration::from_secs(s)
    }
    fn options(strategy: Strategy) -> DrainOptions {
        DrainOptions {
            strategy,
            drain_timeout: Some(Duration::from_secs(60)),
            no_deadline: false,
            max_parallel: None,
            ignore_system: false,
            only_managed: false,
        }
    }
    fn left(system: bool, told: bool, needs: u64) -> Left {
        Left { system, told, needs: Duration::from_secs(needs) }
    }
    fn asked(what: Ask, s: u64) -> Option<Asked> {
        Some(Asked { at: at(s), what, deadline: Some(at(60)) })
    }
    fn course(strategy: Strategy, left: &[Left], asked: Option<Asked>, now: u64) -> Course {
        let options = options(strategy);
        Situation { options: &options, started_at: at(0), deadline: Some(at(60)), left, asked, now: at(now) }.course()
    }

    #[test]
    fn migrate_is_paced_and_what_is_left_is_told_in_time() {
        let both = [left(false, false, 10), left(true, false, 5)];
        let tell_at = at(60) - Duration::from_millis(11_500);
        let pace = Ask::Pace { until: Some(tell_at), ignore_system: false };
        assert_eq!(course(Strategy::Migrate, &both, None, 0), Course { ask: Some(pace), look_at: Some(tell_at) });
        assert_eq!(course(Strategy::Migrate, &both, asked(pace, 0), 20), Course { ask: None, look_at: Some(tell_at) });
        let force = Ask::Force { ignore_system: false };
        assert_eq!(course(Strategy::Migrate, &both, asked(pace, 0), 50).ask, Some(force));
        assert_eq!(course(Strategy::Migrate, &both, asked(force, 50), 51).ask, None, "Nomad takes a moment");
        assert_eq!(course(Strategy::Migrate, &both, asked(force, 50), 54).ask, Some(force));
        // A day's stop timeout leaves the first half alone all the same.
        assert_eq!(course(Strategy::Migrate, &[left(false, false, 86_400)], None, 0).look_at, Some(at(30)));
        let told = [left(false, true, 10)];
        assert_eq!(course(Strategy::Migrate, &told, asked(pace, 0), 59), Course { ask: None, look_at: Some(at(60)) });
        assert!(course(Strategy::Migrate, &[], None, 0).ask.is_some(), "an empty node's meta says who drained it");
    }

    #[test]
    fn evacuate_tells_everything_at_once_but_system_jobs_when_they_are_alone() {
        let all = [left(false, false, 10), left(true, false, 5)];
        let force = |ignore_system| Ask::Force { ignore_system };
        assert_eq!(course(Strategy::Evacuate, &all, None, 0).ask, Some(force(true)));
        let told = [left(false, true, 10), left(true, false, 5)];
        let tell_at = at(60) - Duration::from_millis(6500);
        let net = Ask::Pace { until: Some(tell_at), ignore_system: false };
        assert_eq!(
            course(Strategy::Evacuate, &told, asked(force(true), 0), 2),
            Course { ask: Some(net), look_at: Some(tell_at) }
        );
        assert_eq!(course(Strategy::Evacuate, &told, asked(net, 2), 5).ask, None);
        assert_eq!(course(Strategy::Evacuate, &told[1..], asked(net, 2), 5).ask, Some(force(false)), "alone");
        assert_eq!(course(Strategy::Evacuate, &told, asked(net, 2), 54).ask, Some(force(false)), "it is time");
        assert_eq!(course(Strategy::Evacuate, &all[..1], None, 0).ask, Some(force(false)));
        assert_eq!(course(Strategy::Evacuate, &told, None, 2).ask, Some(net), "somebody else told the rest before");
    }

    #[test]
    fn a_moved_deadline_is_told_to_nomad() {
        let told = [left(false, true, 10)];
        let before = Some(Asked { deadline: Some(at(90)), ..asked(Ask::Force { ignore_system: false }, 0).unwrap() });
        let pace = Ask::Pace { until: Some(at(60)), ignore_system: false };
        assert_eq!(course(Strategy::Evacuate, &told, before, 10).ask, Some(pace));
        assert_eq!(course(Strategy::Evacuate, &told, before, 61).ask, Some(Ask::Force { ignore_system: false }));
    }

    #[test]
    fn without_a_deadline_nomads_pace_is_all_there_is() {
        let options = DrainOptions { no_deadline: true, drain_timeout: None, ..options(Strategy::Migrate) };
        let left = [left(false, false, 10)];
        let s = Situation { options: &options, started_at: at(0), deadline: None, left: &left, asked: None, now: at(1) };
        assert_eq!(s.course(), Course { ask: Some(Ask::Pace { until: None, ignore_system: false }), look_at: None });
    }

    proptest! {
        /// From the deadline on everything that was not told is told, and what was asked for is not asked for again at once.
        #[test]
        fn nothing_is_left_untold_at_the_deadline(
            evacuate: bool, ignore_system: bool, all in prop::collection::vec((any::<bool>(), any::<bool>(), 0..100u64), 0..6),
            first in prop::option::of((any::<bool>(), 0..60u64)), now in 0..120u64,
        ) {
            let strategy = if evacuate { Strategy::Evacuate } else { Strategy::Migrate };
            let options = DrainOptions { ignore_system, ..options(strategy) };
            let all: Vec<Left> = all.into_iter().map(|(system, told, needs)| left(system && !ignore_system, told, needs)).collect();
            let what = |force| if force { Ask::Force { ignore_system } } else { Ask::Pace { until: Some(at(50)), ignore_system } };
            let before = first.filter(|(_, s)| *s <= now).and_then(|(force, s)| asked(what(force), s));
            let situation = |asked, now| Situation { options: &options, started_at: at(0), deadline: Some(at(60)), left: &all, asked, now };
            let course = situation(before, at(now)).course();
            if now >= 60 && all.iter().any(|l| !l.told) {
                let forced = before.is_some_and(|a| a.what == what(true) && at(now) < a.at + AGAIN);
                prop_assert!(course.ask.is_some_and(|a| matches!(a, Ask::Force { .. })) || forced, "{course:?}");
            }
            if let Some(what) = course.ask {
                let after = Some(Asked { at: at(now), what, deadline: Some(at(60)) });
                prop_assert_eq!(situation(after, at(now)).course().ask, None);
            }
        }
    }
}
