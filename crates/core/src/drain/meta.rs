//! The meta of a node's drain, which Nomad keeps in `LastDrain` when the drain is over. So a lost database, another controller
//! and a gc keep the same deadline for what was already told to leave.

use std::collections::BTreeMap;

use crate::clock::NodeDrain;
use crate::{OpId, Timestamp};

/// The operation that drains the node.
const OPERATION: &str = "curfew_operation";
/// RFC 3339, or `none`.
const DEADLINE: &str = "curfew_deadline";
/// RFC 3339: what was told before that was told by somebody else.
const STARTED_AT: &str = "curfew_started_at";
/// `true` when only managed jobs have clocks by it.
const ONLY_MANAGED: &str = "curfew_only_managed";
/// `true` when system jobs stay.
const IGNORE_SYSTEM: &str = "curfew_ignore_system";
/// `false` when the node took no allocations before the drain.
const WAS_ELIGIBLE: &str = "curfew_was_eligible";
const ACTOR: &str = "curfew_actor";
const REASON: &str = "curfew_reason";

/// The deadline of a Curfew drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    At(Timestamp),
    /// Without one nothing is killed because of the drain.
    Never,
    /// The meta names one that cannot be read: no reason to kill anything.
    Unreadable,
}

impl Deadline {
    pub fn at(self) -> Option<Timestamp> {
        match self {
            Deadline::At(at) => Some(at),
            Deadline::Never | Deadline::Unreadable => None,
        }
    }
}

/// A node's last drain, when Curfew made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainMeta {
    pub operation: OpId,
    pub deadline: Deadline,
    pub started_at: Option<Timestamp>,
    pub only_managed: bool,
    pub ignore_system: bool,
    pub was_eligible: bool,
}

impl DrainMeta {
    /// `None` when it names no operation of Curfew's: somebody else's drain.
    pub fn read(meta: &BTreeMap<String, String>) -> Option<Self> {
        let operation = meta.get(OPERATION)?.parse().ok()?;
        let deadline = match meta.get(DEADLINE).map(String::as_str) {
            Some("none") => Deadline::Never,
            Some(at) => at.parse().map_or(Deadline::Unreadable, Deadline::At),
            None => Deadline::Unreadable,
        };
        let is = |key: &str, word: &str| meta.get(key).is_some_and(|v| v == word);
        Some(Self {
            operation,
            deadline,
            started_at: meta.get(STARTED_AT).and_then(|at| at.parse().ok()),
            only_managed: is(ONLY_MANAGED, "true"),
            ignore_system: is(IGNORE_SYSTEM, "true"),
            was_eligible: !is(WAS_ELIGIBLE, "false"),
        })
    }

    /// As Nomad keeps it, with who asked and why for people.
    pub fn write(&self, actor: &str, reason: Option<&str>) -> BTreeMap<String, String> {
        let deadline = self.deadline.at().map_or("none".to_owned(), |at| at.to_string());
        let mut meta = BTreeMap::from([
            (OPERATION.to_owned(), self.operation.to_string()),
            (DEADLINE.to_owned(), deadline),
            (ONLY_MANAGED.to_owned(), self.only_managed.to_string()),
            (IGNORE_SYSTEM.to_owned(), self.ignore_system.to_string()),
            (WAS_ELIGIBLE.to_owned(), self.was_eligible.to_string()),
            (ACTOR.to_owned(), actor.to_owned()),
        ]);
        meta.extend(self.started_at.map(|at| (STARTED_AT.to_owned(), at.to_string())));
        meta.extend(reason.map(|r| (REASON.to_owned(), r.to_owned())));
        meta
    }

    /// What it means for the clocks of the node's allocations.
    pub fn clock(&self) -> NodeDrain {
        NodeDrain {
            deadline: self.deadline.at(),
            started_at: self.started_at.unwrap_or_default(),
            only_managed: self.only_managed,
            ignore_system: self.ignore_system,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_is_an_instant_or_a_word_and_nonsense_kills_nothing() {
        let op = OpId::new(Timestamp::from_millis(1_790_000_000_000));
        let read = |deadline: Option<&str>| {
            let meta = [(OPERATION, op.to_string())].into_iter().chain(deadline.map(|d| (DEADLINE, d.to_owned())));
            DrainMeta::read(&meta.map(|(k, v)| (k.to_owned(), v)).collect()).unwrap().deadline
        };
        let at = Timestamp::from_millis(1_790_000_060_000);
        assert_eq!(read(Some(&at.to_string())), Deadline::At(at));
        assert_eq!(read(Some("none")), Deadline::Never);
        assert_eq!((read(Some("soon")), read(None)), (Deadline::Unreadable, Deadline::Unreadable));
        let others = BTreeMap::from([("owner".to_owned(), "ops".to_owned())]);
        assert_eq!(DrainMeta::read(&others), None);
    }

    #[test]
    fn what_was_written_is_read_again() {
        let at = |s: i64| Timestamp::from_millis(1_790_000_000_000 + s * 1000);
        for (deadline, only_managed, was_eligible) in [(Deadline::At(at(9)), true, false), (Deadline::Never, false, true)] {
            let ignore_system = only_managed;
            let meta = DrainMeta {
                operation: OpId::new(at(0)),
                deadline,
                started_at: Some(at(1)),
                only_managed,
                ignore_system,
                was_eligible,
            };
            assert_eq!(DrainMeta::read(&meta.write("ops", Some("kernel"))), Some(meta));
        }
    }
}
