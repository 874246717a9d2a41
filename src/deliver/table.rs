//! A slab whose entries are named by index and generation, so that a name never means a successor.

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
    /// Adds a value.
    pub fn insert(&mut self, value: T) -> Slot {
        self.generation += 1;
        let index = self.slab.insert((self.generation, value));
        Slot { index, generation: self.generation }
    }

    /// The value that was added as `slot`, unless it is gone.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&T> {
        self.slab.get(slot.index).filter(|entry| entry.0 == slot.generation).map(|entry| &entry.1)
    }

    /// As [`Table::get`], to be changed.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        self.slab.get_mut(slot.index).filter(|entry| entry.0 == slot.generation).map(|entry| &mut entry.1)
    }

    /// The name of what is at `index` now.
    #[must_use]
    pub fn at(&self, index: usize) -> Option<Slot> {
        self.slab.get(index).map(|entry| Slot { index, generation: entry.0 })
    }

    /// Takes the value out.
    pub fn remove(&mut self, slot: Slot) -> Option<T> {
        self.get(slot)?;
        let (_, value) = self.slab.remove(slot.index);
        if self.slab.is_empty() && self.slab.capacity() > 1024 {
            self.slab = Slab::new();
        }
        Some(value)
    }

    /// All names.
    #[must_use]
    pub fn slots(&self) -> Vec<Slot> {
        self.slab.iter().map(|(index, entry)| Slot { index, generation: entry.0 }).collect()
    }

    /// All values with their names.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut T)> {
        self.slab.iter_mut().map(|(index, entry)| (Slot { index, generation: entry.0 }, &mut entry.1))
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_means_a_successor() {
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
