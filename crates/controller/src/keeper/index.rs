//! Which allocations are of something: of a job, mostly one; of a node, many. And what else is kept of it, in the same place: a table
//! of its own for that would need the keys again.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use curfew_core::AllocId;

pub(super) struct Index<K, V = ()>(HashMap<K, Entry<V>>);

struct Entry<V> {
    ids: Ids,
    of_it: Option<Box<V>>,
}

/// A set of its own for a single id would take several times the room.
#[expect(clippy::box_collection, reason = "most have one id, and the set itself is three times as large")]
enum Ids {
    One(AllocId),
    More(Box<HashSet<AllocId>>),
}

impl Default for Ids {
    fn default() -> Self {
        Ids::More(Box::default())
    }
}

impl Ids {
    fn is_empty(&self) -> bool {
        matches!(self, Ids::More(ids) if ids.is_empty())
    }

    fn iter(&self) -> impl Iterator<Item = &AllocId> {
        let (one, more) = match self {
            Ids::One(id) => (Some(id), None),
            Ids::More(ids) => (None, Some(ids.iter())),
        };
        one.into_iter().chain(more.into_iter().flatten())
    }
}

impl<K, V> Default for Index<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + Hash, V> Index<K, V> {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &AllocId)> {
        self.0.iter().flat_map(|(key, entry)| entry.ids.iter().map(move |id| (key, id)))
    }

    pub(super) fn of(&self, key: &K) -> impl Iterator<Item = &AllocId> {
        self.0.get(key).into_iter().flat_map(|entry| entry.ids.iter())
    }

    /// The key as it is kept here: whoever keeps this one needs no room for another.
    pub(super) fn key(&self, key: &K) -> Option<&K> {
        self.0.get_key_value(key).map(|(key, _)| key)
    }

    pub(super) fn insert(&mut self, key: &K, id: &AllocId) {
        let ids = &mut self.entry(key).ids;
        match ids {
            ids if ids.is_empty() => *ids = Ids::One(id.clone()),
            Ids::One(one) if one == id => {}
            Ids::One(one) => *ids = Ids::More(Box::new([one.clone(), id.clone()].into())),
            Ids::More(more) => drop(more.insert(id.clone())),
        }
    }

    fn entry(&mut self, key: &K) -> &mut Entry<V> {
        self.0.entry(key.clone()).or_insert_with(|| Entry { ids: Ids::default(), of_it: None })
    }

    pub(super) fn remove(&mut self, key: &K, id: &AllocId) {
        let Some(entry) = self.0.get_mut(key) else { return };
        match &mut entry.ids {
            Ids::One(one) if one == id => entry.ids = Ids::default(),
            Ids::One(_) => {}
            Ids::More(more) => drop(more.remove(id)),
        }
        self.tidy(key);
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key)?.of_it.as_deref()
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.0.get_mut(key)?.of_it.as_deref_mut()
    }

    pub(super) fn put(&mut self, key: &K, value: V) {
        self.entry(key).of_it = Some(Box::new(value));
    }

    pub(super) fn take(&mut self, key: &K) -> Option<V> {
        let taken = self.0.get_mut(key)?.of_it.take();
        self.tidy(key);
        taken.map(|value| *value)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.values().filter_map(|entry| entry.of_it.as_deref())
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.values_mut().filter_map(|entry| entry.of_it.as_deref_mut())
    }

    fn tidy(&mut self, key: &K) {
        if self.0.get(key).is_some_and(|entry| entry.ids.is_empty() && entry.of_it.is_none()) {
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
        let mut index: Index<u8> = Index::default();
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

    #[test]
    fn a_key_is_kept_for_its_allocations_or_for_what_is_of_it() {
        let mut index: Index<u8, &str> = Index::default();
        index.put(&1, "stop");
        assert_eq!((index.get(&1), index.of(&1).count(), index.key(&1)), (Some(&"stop"), 0, Some(&1)));
        index.insert(&1, &"a".into());
        index.insert(&2, &"b".into());
        assert_eq!((index.get(&1), index.get(&2), index.values().count()), (Some(&"stop"), None, 1));
        assert_eq!((index.take(&1), index.take(&1), index.take(&2)), (Some("stop"), None, None));
        assert_eq!(index.iter().count(), 2, "their allocations are tracked all the same");
        index.put(&1, "another");
        index.remove(&1, &"a".into());
        index.remove(&2, &"b".into());
        assert_eq!((index.get(&1), index.key(&2)), (Some(&"another"), None));
        *index.get_mut(&1).unwrap() = "changed";
        assert_eq!(index.take(&1), Some("changed"));
        assert!(index.is_empty());
    }
}
