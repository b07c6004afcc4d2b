//! Which allocations are of something: of a job, mostly one; of a node, many.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use curfew_core::AllocId;

pub(super) struct Index<K>(HashMap<K, Ids>);

/// A set of its own for a single id would take several times the room.
#[expect(clippy::box_collection, reason = "most have one id, and the set itself is three times as large")]
enum Ids {
    One(AllocId),
    More(Box<HashSet<AllocId>>),
}

impl Ids {
    fn iter(&self) -> impl Iterator<Item = &AllocId> {
        let (one, more) = match self {
            Ids::One(id) => (Some(id), None),
            Ids::More(ids) => (None, Some(ids.iter())),
        };
        one.into_iter().chain(more.into_iter().flatten())
    }
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + Hash> Index<K> {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &AllocId)> {
        self.0.iter().flat_map(|(key, ids)| ids.iter().map(move |id| (key, id)))
    }

    pub(super) fn of(&self, key: &K) -> impl Iterator<Item = &AllocId> {
        self.0.get(key).into_iter().flat_map(Ids::iter)
    }

    /// The key as it is kept here: whoever keeps this one needs no room for another.
    pub(super) fn key(&self, key: &K) -> Option<&K> {
        self.0.get_key_value(key).map(|(key, _)| key)
    }

    pub(super) fn insert(&mut self, key: &K, id: &AllocId) {
        match self.0.get_mut(key) {
            None => drop(self.0.insert(key.clone(), Ids::One(id.clone()))),
            Some(Ids::One(one)) if one == id => {}
            Some(Ids::More(ids)) => drop(ids.insert(id.clone())),
            Some(ids) => *ids = Ids::More(Box::new(ids.iter().chain([id]).cloned().collect())),
        }
    }

    pub(super) fn remove(&mut self, key: &K, id: &AllocId) {
        let last = match self.0.get_mut(key) {
            None => false,
            Some(Ids::One(one)) => one == id,
            Some(Ids::More(ids)) => {
                ids.remove(id);
                ids.is_empty()
            }
        };
        if last {
            self.0.remove(key);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_one_and_many() {
        let mut index = Index::default();
        let of = |index: &Index<u8>| {
            let mut ids: Vec<String> = index.of(&1).map(ToString::to_string).collect();
            ids.sort();
            ids.concat()
        };
        let steps = [("", "a", "a"), ("", "a", "a"), ("b", "", "a"), ("", "b", "ab"), ("", "c", "abc"), ("", "b", "abc")];
        let back = [
            ("a", "", "bc"),
            ("a", "", "bc"),
            ("c", "", "b"),
            ("", "b", "b"),
            ("b", "", ""),
            ("b", "", ""),
            ("", "d", "d"),
            ("d", "", ""),
        ];
        for (out, into, after) in steps.into_iter().chain(back) {
            if !out.is_empty() {
                index.remove(&1, &out.into());
            }
            if !into.is_empty() {
                index.insert(&1, &into.into());
            }
            assert_eq!(of(&index), after, "without {out:?}, with {into:?}");
        }
        assert!(index.is_empty() && size_of::<Ids>() == size_of::<AllocId>());
    }
}
