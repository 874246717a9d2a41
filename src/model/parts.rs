//! The parts of a generation in a provider's own form: its tool calls and texts, the names by which later events
//! refer to them, and how much of each was emitted.
//!
//! A part is found by its names: hashes of a provider's identifiers for it (an index, an id, a place in the output).
//! A name belongs to the part that took it last. The cost of all operations is independent of the number of parts.
//!
//! Of a text, only its length and hash are kept. That is enough to decide whether a complete text repeats what was
//! emitted, continues it, or is a different one.

use std::hash::Hasher;
use std::sync::Arc;

use super::Trie;
use super::shard::Fnv;

/// The counted size of a part besides its strings, in bytes: the part itself, its names, and its share of the trie
/// nodes above them.
const PART_BYTES: usize = 256;
/// The counted size of a choice, in bytes.
const CHOICE_BYTES: usize = 64;
/// The calls of choices with a number below this are followed.
pub(crate) const CHOICES_MAX: u64 = 1024;

/// The length and hash of the emitted part of a text, *unescaped*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TextDigest {
    /// The length in bytes.
    pub len: usize,
    hash: u64,
}

impl TextDigest {
    /// Nothing was emitted.
    pub const NONE: Self = Self { len: 0, hash: 0xcbf2_9ce4_8422_2325 };

    /// The digest of a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut emitted = Self::NONE;
        emitted.push(text);
        emitted
    }

    /// Adds text that was emitted.
    pub fn push(&mut self, text: &str) {
        let mut hash = Fnv::from(self.hash);
        hash.write(text.as_bytes());
        self.hash = hash.finish();
        self.len = self.len.saturating_add(text.len());
    }
}

impl Default for TextDigest {
    fn default() -> Self {
        Self::NONE
    }
}

/// The hash of a provider's name for a part: a kind of name, numbers, and an id. Never 0.
#[must_use]
pub(crate) fn name_of(kind: u8, numbers: [u64; 2], id: &str) -> u64 {
    let mut hash = Fnv::default();
    hash.write(&[kind]);
    numbers.iter().for_each(|number| hash.write(&number.to_le_bytes()));
    hash.write(id.as_bytes());
    // The low bits of FNV are its weaker ones, and the trie uses them.
    let mixed = (hash.finish() ^ (hash.finish() >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).max(1)
}

/// A tool call, or a part of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The kind of part, a number whose meaning depends on the provider's form.
    pub kind: u8,
    /// The choice of the part.
    pub choice: u64,
    /// The number of the call within its choice.
    pub call: u64,
    /// The hash of the call's id; 0 until an event has one.
    pub id: u64,
    /// The hash of the tool's name; 0 until an event has one.
    pub name: u64,
    /// Whether anything of the call was emitted.
    pub is_begun: bool,
    /// How much of its text or arguments was emitted.
    pub emitted: TextDigest,
    /// The ways in which its complete text has been received, as bits.
    pub confirmed: u8,
    /// The hash of the id of its item; 0 until an event has one. If the ids change, the first one.
    pub item: u64,
    /// The observations about the item's ids.
    pub ids: Ids,
    /// The announcement of a call, if it was not emitted yet.
    pub waiting: Option<Arc<Waiting>>,
    /// The names by which it can be found: by place, by id, by another one; 0: none.
    pub(crate) names: [u64; NAMES],
}

/// The number of names that a part can have.
const NAMES: usize = 3;

impl Part {
    /// The name of that sort (by place, by id, another one); 0: none.
    #[must_use]
    pub const fn named(&self, sort: usize) -> u64 {
        self.names[sort]
    }

    fn len_bytes(&self) -> usize {
        PART_BYTES + self.waiting.as_ref().map_or(0, |waiting| waiting.len_bytes())
    }
}

/// The observations about the ids of a part's item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ids {
    /// At most one event had an id.
    #[default]
    One,
    /// Several events had an id, always the same one.
    Steady,
    /// Events had different ids.
    Changing,
}

/// The announcement of a tool call before any piece of its arguments. Strings are *escaped*.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The provider's id of the call.
    pub id: Option<Box<str>>,
    /// The tool's name.
    pub name: Option<Box<str>>,
    /// Arguments in the announcement itself. They count only if no piece has any.
    pub arguments: Box<str>,
}

impl Waiting {
    /// The bytes of its strings.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let of = |text: &Option<Box<str>>| text.as_deref().map_or(0, str::len);
        of(&self.id) + of(&self.name) + self.arguments.len()
    }
}

/// The calls of a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The number that the next call gets.
    pub next: u64,
    /// The call that pieces without a name continue.
    pub current: Option<u64>,
}

/// The parts of a generation, each in a *slot*: a number that is never reused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    slots: Trie<Part>,
    /// Maps names to slots.
    names: Trie<u64>,
    choices: Trie<Choice>,
    next: u64,
    /// No slot below this one is in use.
    oldest: u64,
    /// Whether parts had to be dropped for lack of room.
    pub has_forgotten: bool,
    /// How many parts have an announcement waiting.
    waiting: usize,
    bytes: usize,
}

impl Parts {
    /// No parts.
    pub const NONE: Self = Self {
        slots: Trie::new(),
        names: Trie::new(),
        choices: Trie::new(),
        next: 0,
        oldest: 0,
        has_forgotten: false,
        waiting: 0,
        bytes: 0,
    };

    /// The counted size of all parts and choices, in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether an announcement is waiting.
    #[must_use]
    pub const fn has_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// The parts with an announcement waiting, in the order in which they began.
    #[must_use]
    pub fn waiting(&self) -> Vec<u64> {
        if self.waiting == 0 {
            return Vec::new();
        }
        let waiting = self.slots.iter().filter(|(_, part)| part.waiting.is_some());
        let mut slots: Vec<u64> = waiting.map(|(slot, _)| slot).collect();
        slots.sort_unstable();
        slots
    }

    /// The part in a slot.
    #[must_use]
    pub fn get(&self, slot: u64) -> Option<&Part> {
        self.slots.get(slot)
    }

    /// All parts, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Part)> {
        self.slots.iter()
    }

    /// The part with a name.
    #[must_use]
    pub fn find(&self, name: u64) -> Option<u64> {
        let slot = *self.names.get(name)?;
        self.slots.get(slot).map(|_| slot)
    }

    /// Adds a part and returns its slot.
    pub fn insert(&mut self, part: Part) -> u64 {
        let slot = self.next;
        self.next += 1;
        self.bytes += part.len_bytes();
        self.waiting += usize::from(part.waiting.is_some());
        self.slots.insert(slot, Part { names: [0; NAMES], ..part });
        slot
    }

    /// Changes a part.
    pub fn change(&mut self, slot: u64, change: impl FnOnce(&mut Part)) {
        let Some(mut part) = self.slots.get(slot).cloned() else { return };
        let (bytes, was_waiting) = (part.len_bytes(), part.waiting.is_some());
        change(&mut part);
        self.bytes = self.bytes - bytes + part.len_bytes();
        self.waiting = self.waiting - usize::from(was_waiting) + usize::from(part.waiting.is_some());
        self.slots.insert(slot, part);
    }

    /// Gives a part a name of that sort in place of the one that it had.
    pub fn take_name(&mut self, slot: u64, sort: usize, name: u64) {
        let Some(part) = self.slots.get(slot) else { return };
        let former = part.names[sort];
        if former == name && self.names.get(name) == Some(&slot) {
            return;
        }
        if former != name {
            self.let_go(slot, former);
            self.change(slot, |part| part.names[sort] = name);
        }
        self.names.insert(name, slot);
    }

    fn let_go(&mut self, slot: u64, name: u64) {
        if self.names.get(name) == Some(&slot) {
            self.names.remove(name);
        }
    }

    /// Removes a part about which no event will follow.
    pub fn remove(&mut self, slot: u64) {
        let Some(part) = self.slots.remove(slot) else { return };
        self.bytes -= part.len_bytes();
        self.waiting -= usize::from(part.waiting.is_some());
        part.names.iter().for_each(|name| self.let_go(slot, *name));
    }

    /// The oldest part, if the parts take more than `bytes_max`.
    pub fn oldest_beyond(&mut self, bytes_max: usize) -> Option<u64> {
        if self.bytes <= bytes_max || self.slots.is_empty() {
            return None;
        }
        // Each slot is skipped once in the life of a generation.
        while self.slots.get(self.oldest).is_none() {
            self.oldest += 1;
        }
        Some(self.oldest)
    }

    /// The calls of a choice, if they are followed.
    #[must_use]
    pub fn choice(&self, choice: u64) -> Option<Choice> {
        (choice < CHOICES_MAX).then(|| self.choices.get(choice).copied().unwrap_or_default())
    }

    /// Records the calls of a choice that is followed.
    pub fn set_choice(&mut self, choice: u64, calls: Choice) {
        if self.choices.get(choice).is_none() {
            self.bytes += CHOICE_BYTES;
        }
        self.choices.insert(choice, calls);
    }

    /// Removes the parts and their names, but continues to number the calls.
    pub fn forget(&mut self) {
        let mut choices = Trie::new();
        for (choice, calls) in self.choices.iter() {
            choices.insert(choice, Choice { current: None, ..*calls });
        }
        let bytes = choices.len() * CHOICE_BYTES;
        *self = Self { choices, next: self.next, oldest: self.next, bytes, ..Self::NONE };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_the_part_that_took_it_last() {
        let mut parts = Parts::default();
        let first = parts.insert(Part::default());
        parts.take_name(first, 0, 7);
        parts.take_name(first, 1, 8);
        let second = parts.insert(Part { call: 1, ..Part::default() });
        parts.take_name(second, 0, 7);
        assert_eq!((parts.find(7), parts.find(8)), (Some(second), Some(first)));
        parts.remove(first);
        assert_eq!((parts.find(7), parts.find(8)), (Some(second), None));
        parts.remove(second);
        assert_eq!((parts.find(7), parts.len_bytes()), (None, 0));
    }

    #[test]
    fn waiting_announcements_and_their_size_are_counted() {
        let mut parts = Parts::default();
        let waiting = Waiting { arguments: "{}".into(), ..Waiting::default() };
        let slots: Vec<u64> = (0..9)
            .map(|_| parts.insert(Part { waiting: Some(Arc::new(waiting.clone())), ..Part::default() }))
            .collect();
        assert_eq!(parts.waiting(), slots);
        parts.change(3, |part| part.waiting = None);
        parts.remove(0);
        assert_eq!(parts.waiting(), [1, 2, 4, 5, 6, 7, 8]);
        assert_eq!(parts.len_bytes(), 8 * PART_BYTES + 7 * 2);
        assert_eq!(parts.oldest_beyond(8 * PART_BYTES), Some(1));
        assert_eq!(parts.oldest_beyond(9 * PART_BYTES), None);
        parts.forget();
        assert!(!parts.has_waiting() && parts.len_bytes() == 0);
        assert_eq!(parts.insert(Part::default()), 9, "no slot is used again");
    }
}
