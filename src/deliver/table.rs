//! A slab whose keys have an index and a generation, so that the key of a removed value never refers to a later one.

use slab::Slab;

use crate::message::Slot;

/// Values by [`Slot`].
#[derive(Debug)]
pub struct Table<T> {
    slab: Slab<(u64, T)>,
    generation: u64,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { slab: Slab::new(), generation: 0 }
    }
}

impl<T> Table<T> {
    /// Adds a value and returns its slot.
    pub fn insert(&mut self, value: T) -> Slot {
        self.generation += 1;
        let index = self.slab.insert((self.generation, value));
        Slot { index, generation: self.generation }
    }

    /// The value with this slot, if it still exists.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&T> {
        self.slab.get(slot.index).filter(|entry| entry.0 == slot.generation).map(|entry| &entry.1)
    }

    /// Mutable access: see [`Table::get`].
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        self.slab.get_mut(slot.index).filter(|entry| entry.0 == slot.generation).map(|entry| &mut entry.1)
    }

    /// The slot of the value at `index`, if there is one.
    #[must_use]
    pub fn at(&self, index: usize) -> Option<Slot> {
        self.slab.get(index).map(|entry| Slot { index, generation: entry.0 })
    }

    /// Removes and returns the value with this slot, if it still exists.
    pub fn remove(&mut self, slot: Slot) -> Option<T> {
        self.get(slot)?;
        let (_, value) = self.slab.remove(slot.index);
        if self.slab.is_empty() && self.slab.capacity() > 1024 {
            self.slab = Slab::new();
        }
        Some(value)
    }

    /// All slots.
    #[must_use]
    pub fn slots(&self) -> Vec<Slot> {
        self.slab.iter().map(|(index, entry)| Slot { index, generation: entry.0 }).collect()
    }

    /// All values with their slots.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut T)> {
        self.slab.iter_mut().map(|(index, entry)| (Slot { index, generation: entry.0 }, &mut entry.1))
    }

    /// The number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_never_refers_to_a_later_value() {
        let mut table = Table::default();
        let first = table.insert('a');
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert('b');
        assert_eq!(first.index, second.index);
        assert_eq!((table.get(first), table.get(second)), (None, Some(&'b')));
        assert_eq!(table.remove(first), None);
        assert_eq!(table.at(second.index), Some(second));
    }
}
