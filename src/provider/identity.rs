//! Decides to which item a part belongs if a server gives several items the same place, or one item several ids.
//!
//! Some servers do not count places: all their items are at place 0, each with its own id. Others change the ids from
//! event to event. So an id that a part has not had means another item only if there is evidence:
//!
//! - an id that was announced (`output_item.added`) belongs to an item of its own;
//! - a piece with another id belongs to another item if the part's own id came with every event, and more than once;
//! - a complete text that contradicts what was emitted belongs to another item, unless the part's ids are known to
//!   change.

use super::draft::{Draft, meant};
use super::whole::Level;
use crate::model::{Ids, Part, name_of};

/// The kind of a [`Part`] that only records the announcement of an item. The kinds of calls and texts are lower.
const ITEM: u8 = 8;
/// Domain tags of the hashes of an item's id, and of its announcement.
const OWN_ITEM: u8 = 7;
const ANNOUNCED: u8 = 8;

fn hash_of(item: &str) -> u64 {
    name_of(OWN_ITEM, [0, 0], &meant(item))
}

fn announced(item: &str) -> u64 {
    name_of(ANNOUNCED, [0, 0], &meant(item))
}

impl Draft<'_> {
    fn whose(&self, slot: u64) -> (u64, Ids) {
        self.progress().parts.get(slot).map_or((0, Ids::One), |part| (part.item, part.ids))
    }

    fn has_other(&self, slot: u64, item: Option<&str>) -> bool {
        let (own, _) = self.whose(slot);
        own != 0 && item.is_some_and(|item| own != hash_of(item))
    }

    /// Records that an item begins.
    pub(super) fn announce_item(&mut self, item: &str) {
        let name = announced(item);
        if self.progress().parts.find(name).is_none() {
            let parts = &mut self.change().parts;
            let slot = parts.insert(Part { kind: ITEM, ..Part::default() });
            parts.take_name(slot, 0, name);
        }
    }

    /// Records that an event of a part names its item.
    pub(super) fn note_item(&mut self, slot: u64, item: Option<&str>) {
        let Some(item) = item else { return };
        let (own, ids) = self.whose(slot);
        let item = hash_of(item);
        let now = match ids {
            _ if own == 0 => Ids::One,
            Ids::Changing => Ids::Changing,
            Ids::One | Ids::Steady if own == item => Ids::Steady,
            Ids::One | Ids::Steady => Ids::Changing,
        };
        if own == 0 || now != ids {
            self.change().parts.change(slot, |part| {
                part.ids = now;
                part.item = if own == 0 { item } else { own };
            });
        }
    }

    /// Whether an event that names this item does not belong to the part, although the part has its place.
    pub(super) fn is_announced_beside(&self, slot: u64, item: Option<&str>) -> bool {
        self.has_other(slot, item)
            && item.is_some_and(|item| self.progress().parts.find(announced(item)).is_some())
    }

    /// Whether a piece that names this item belongs to another part.
    pub(super) fn is_piece_of_other(&self, slot: u64, item: Option<&str>) -> bool {
        self.whose(slot).1 == Ids::Steady && self.has_other(slot, item)
    }

    /// Whether a complete text that names this item, and contradicts what was emitted, belongs to another part.
    pub(super) fn is_whole_of_other(&self, slot: u64, item: Option<&str>) -> bool {
        self.whose(slot).1 != Ids::Changing && self.has_other(slot, item)
    }

    /// Whether a complete text that contradicts what was emitted belongs to another part in the same place, because
    /// the part was complete in this way before.
    pub(super) fn is_after_whole(&self, slot: u64, level: Level) -> bool {
        let part = self.progress().parts.get(slot);
        part.is_some_and(|part| part.ids != Ids::Changing && part.confirmed & level.bit() == level.bit())
    }
}
