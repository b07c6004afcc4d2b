//! What a Curfew drain leaves in Nomad: the meta of a node's drain, which Nomad keeps in `LastDrain` when the drain is over.
//!
//! So a lost database, another controller and the gc keep the same deadline for what was already told to leave.

use std::collections::BTreeMap;

use crate::{OpId, Timestamp};

/// The operation that drains the node.
pub const META_OPERATION: &str = "curfew_operation";
/// RFC 3339, or `none`.
pub const META_DEADLINE: &str = "curfew_deadline";
/// `true` when only managed jobs have clocks by it.
pub const META_ONLY_MANAGED: &str = "curfew_only_managed";

/// The deadline of a Curfew drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    At(Timestamp),
    /// Without one nothing is killed because of the drain.
    Never,
    /// The meta names one that cannot be read: no reason to kill anything.
    Unreadable,
}

/// A node's last drain, when Curfew made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainMeta {
    pub operation: OpId,
    pub deadline: Deadline,
    pub only_managed: bool,
}

impl DrainMeta {
    /// `None` when it names no operation of Curfew's: somebody else's drain.
    pub fn read(meta: &BTreeMap<String, String>) -> Option<Self> {
        let operation = meta.get(META_OPERATION)?.parse().ok()?;
        let deadline = match meta.get(META_DEADLINE).map(String::as_str) {
            Some("none") => Deadline::Never,
            Some(at) => at.parse().map_or(Deadline::Unreadable, Deadline::At),
            None => Deadline::Unreadable,
        };
        Some(Self { operation, deadline, only_managed: meta.get(META_ONLY_MANAGED).is_some_and(|v| v == "true") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_is_an_instant_or_a_word_and_nonsense_kills_nothing() {
        let op = OpId::new(Timestamp::from_millis(1_790_000_000_000));
        let read = |deadline: Option<&str>| {
            let meta = [(META_OPERATION, op.to_string())].into_iter().chain(deadline.map(|d| (META_DEADLINE, d.to_owned())));
            DrainMeta::read(&meta.map(|(k, v)| (k.to_owned(), v)).collect()).unwrap().deadline
        };
        let at = Timestamp::from_millis(1_790_000_060_000);
        assert_eq!(read(Some(&at.to_string())), Deadline::At(at));
        assert_eq!(read(Some("none")), Deadline::Never);
        assert_eq!((read(Some("soon")), read(None)), (Deadline::Unreadable, Deadline::Unreadable));
        let others = BTreeMap::from([("owner".to_owned(), "ops".to_owned())]);
        assert_eq!(DrainMeta::read(&others), None);
    }
}
