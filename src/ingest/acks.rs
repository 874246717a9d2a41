//! Which entries of one stream have been read and not yet acknowledged. Pure.
//!
//! XACK takes ids one by one, so a reader has to remember what it has read until it is on the sockets
//! or handed to history. The memory is bounded by what lies between the reader and the sockets: the
//! queues behind it and the send budgets of the clients, which fall back to history beyond them.

use std::collections::VecDeque;

use crate::event::EntryId;

/// The ids that one acknowledgement carries at most, so that no command grows without bound.
pub const IDS_PER_ACK_MAX: usize = 1024;

/// The entries of one stream on their way.
#[derive(Debug, Default)]
pub struct Unacked(VecDeque<EntryId>);

impl Unacked {
    /// Entries were read; ids rise.
    pub fn read(&mut self, ids: impl Iterator<Item = EntryId>) {
        self.0.extend(ids);
        debug_assert!(self.0.iter().zip(self.0.iter().skip(1)).all(|(a, b)| a < b), "ids rise");
    }

    /// Takes out what is written when everybody has written up to `upto`, at most [`IDS_PER_ACK_MAX`] ids.
    pub fn take(&mut self, upto: EntryId) -> Vec<EntryId> {
        let written = self.0.iter().take(IDS_PER_ACK_MAX).take_while(|&&id| id <= upto).count();
        let ids = self.0.drain(..written).collect();
        if self.0.is_empty() && self.0.capacity() > IDS_PER_ACK_MAX {
            self.0 = VecDeque::new();
        }
        ids
    }

    /// How many entries are on their way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether everything is acknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ms: u64) -> EntryId {
        EntryId::new(ms, 0)
    }

    #[test]
    fn only_what_is_written_is_acknowledged_and_only_once() {
        let mut unacked = Unacked::default();
        unacked.read([id(1), id(2), id(5)].into_iter());
        assert!(unacked.take(id(0)).is_empty());
        assert_eq!(unacked.take(id(3)), [id(1), id(2)]);
        assert!(unacked.take(id(3)).is_empty());
        assert_eq!(unacked.take(EntryId::MAX), [id(5)]);
        assert!(unacked.is_empty());
    }

    #[test]
    fn an_acknowledgement_is_bounded() {
        let mut unacked = Unacked::default();
        unacked.read((1..=3_000).map(id));
        assert_eq!(unacked.take(EntryId::MAX).len(), IDS_PER_ACK_MAX);
        assert_eq!(unacked.len(), 3_000 - IDS_PER_ACK_MAX);
    }
}
