//! A map whose copies share their common nodes: a copy costs a reference count, and a change copies the nodes on the
//! path to one key, however large the map is.
//!
//! The state of a stream is copied for every frame, and nearly every entry changes it, so recording the thousandth
//! part of a generation must cost the same as recording the first. Keys are distributed by their low bits, three per
//! level, which suits both counters and hashes. The order of [`Trie::iter`] depends on the keys alone.

use std::sync::Arc;

const BITS: u32 = 3;
const FANOUT: usize = 1 << BITS;

/// A map from numbers to values, cheap to copy.
#[derive(Clone, Debug)]
pub struct Trie<V> {
    root: Link<V>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Link<V> {
    Empty,
    Leaf(Arc<(u64, V)>),
    Branch(Arc<[Self; FANOUT]>),
}

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> Trie<V> {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self { root: Link::Empty, len: 0 }
    }

    /// The number of keys.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no keys.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: u64) -> Option<&V> {
        let (mut link, mut rest) = (&self.root, key);
        loop {
            match link {
                Link::Empty => return None,
                Link::Leaf(leaf) => return (leaf.0 == key).then_some(&leaf.1),
                Link::Branch(links) => link = &links[place(rest)],
            }
            rest >>= BITS;
        }
    }

    /// The keys with their values, in an order that depends on the keys alone.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        let mut ahead = vec![&self.root];
        std::iter::from_fn(move || {
            loop {
                match ahead.pop()? {
                    Link::Empty => {}
                    Link::Leaf(leaf) => return Some((leaf.0, &leaf.1)),
                    Link::Branch(links) => ahead.extend(links.iter().rev()),
                }
            }
        })
    }
}

impl<V: Clone> Trie<V> {
    /// Sets the value of a key.
    pub fn insert(&mut self, key: u64, value: V) {
        if self.get(key).is_none() {
            self.len += 1;
        }
        insert(&mut self.root, (key, 0), Arc::new((key, value)));
    }

    /// Removes a key and returns its value, if there was one.
    pub fn remove(&mut self, key: u64) -> Option<V> {
        let value = self.get(key).cloned()?;
        self.len -= 1;
        remove(&mut self.root, key);
        Some(value)
    }
}

/// The index of a key's remaining bits in a branch.
fn place(rest: u64) -> usize {
    usize::try_from(rest % FANOUT as u64).unwrap_or(0)
}

/// Inserts a leaf into a link that lies `depth` bits below the root.
fn insert<V: Clone>(link: &mut Link<V>, (key, depth): (u64, u32), leaf: Arc<(u64, V)>) {
    match link {
        Link::Branch(links) => {
            let links = Arc::make_mut(links);
            insert(&mut links[place(key >> depth)], (key, depth + BITS), leaf);
        }
        Link::Leaf(there) if there.0 != key => {
            let there = Arc::clone(there);
            let mut links = [const { Link::Empty }; FANOUT];
            let at = place(there.0 >> depth);
            links[at] = Link::Leaf(there);
            *link = Link::Branch(Arc::new(links));
            insert(link, (key, depth), leaf);
        }
        Link::Leaf(_) | Link::Empty => *link = Link::Leaf(leaf),
    }
}

/// Removes an existing key. A branch with one leaf left becomes that leaf, so that the shape depends on the keys
/// alone.
fn remove<V: Clone>(link: &mut Link<V>, rest: u64) {
    let Link::Branch(links) = link else {
        *link = Link::Empty;
        return;
    };
    let links = Arc::make_mut(links);
    remove(&mut links[place(rest)], rest >> BITS);
    let mut left = links.iter().filter(|link| !matches!(link, Link::Empty));
    if let (Some(Link::Leaf(leaf)), None) = (left.next(), left.next()) {
        *link = Link::Leaf(Arc::clone(leaf));
    }
}

impl<V: PartialEq> PartialEq for Trie<V> {
    fn eq(&self, other: &Self) -> bool {
        let is_shared = match (&self.root, &other.root) {
            (Link::Branch(own), Link::Branch(others)) => Arc::ptr_eq(own, others),
            _ => false,
        };
        is_shared || self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<V: Eq> Eq for Trie<V> {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The trie agrees with a map of the standard library, its copies do not change, and its shape depends on its
        /// keys alone.
        #[test]
        fn holds_what_a_map_holds(
            steps in prop::collection::vec((any::<bool>(), prop_oneof![0..20_u64, any::<u64>(), Just(1 << 63)], 0..9_u8), 0..80),
        ) {
            let (mut trie, mut map) = (Trie::new(), BTreeMap::new());
            let mut copies = Vec::new();
            for (is_insert, key, value) in steps {
                copies.push((trie.clone(), map.clone()));
                if is_insert {
                    trie.insert(key, value);
                    map.insert(key, value);
                } else {
                    prop_assert_eq!(trie.remove(key), map.remove(&key));
                }
                prop_assert_eq!(trie.get(key), map.get(&key));
            }
            copies.push((trie, map));
            for (trie, map) in copies {
                prop_assert_eq!((trie.len(), trie.is_empty()), (map.len(), map.is_empty()));
                let mut all: Vec<_> = trie.iter().map(|(key, value)| (key, *value)).collect();
                let mut anew = Trie::new();
                map.iter().for_each(|(key, value)| anew.insert(*key, *value));
                prop_assert!(trie == anew);
                prop_assert_eq!(&all, &anew.iter().map(|(key, value)| (key, *value)).collect::<Vec<_>>());
                all.sort_unstable();
                prop_assert_eq!(all, map.into_iter().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_change_copies_the_way_to_one_key() {
        let mut trie = Trie::new();
        (0..4096).for_each(|key| trie.insert(key, key));
        let copy = trie.clone();
        trie.insert(77, 0);
        let shared = |a: &Link<u64>, b: &Link<u64>| matches!((a, b), (Link::Branch(a), Link::Branch(b)) if Arc::ptr_eq(a, b));
        let (Link::Branch(own), Link::Branch(others)) = (&trie.root, &copy.root) else {
            panic!("two branches")
        };
        assert_eq!(own.iter().zip(others.iter()).filter(|(a, b)| shared(a, b)).count(), FANOUT - 1);
    }
}
