//! Which tool call a piece belongs to, and what is emitted of it.
//!
//! The number that a provider writes is only a hint. A piece belongs to the call with its index, or else to the call
//! with its id, or else to the call that is in progress:
//!
//! - a new id under the index of another call begins another call, and later pieces with that index belong to the
//!   call that took it last;
//! - an id that was seen continues its call. This also holds under another index if the piece has no name, repeats
//!   the arguments, or the call has no arguments yet: some servers move a call from index to index. Otherwise it is
//!   another call, of a server that gives all its calls the same id;
//! - a piece without index and id that names another tool begins another call.
//!
//! Frames number the calls of a choice in the order in which they begin. Choices from `CHOICES_MAX` on are not
//! followed: their calls keep the provider's numbers.

use std::sync::Arc;

use super::draft::{Draft, meant};
use crate::model::{Choice, Event, PARTS_BYTES_MAX, Part, TextDigest, Waiting, name_of};

/// The kinds of names that a provider gives a call.
const INDEX: u8 = 1;
const ID: u8 = 2;
const ITEM: u8 = 3;
const LEGACY: u8 = 4;
/// Domain tags of the hashes of a call's own id and name.
const OWN_ID: u8 = 5;
const OWN_NAME: u8 = 6;

/// The kind of a [`Part`] that is a tool call.
pub(super) const CALL: u8 = 0;

/// The sorts of names of a part.
pub(super) const BY_PLACE: usize = 0;
pub(super) const BY_ID: usize = 1;
pub(super) const BY_FURTHER: usize = 2;

/// The most bytes of a call's announcement that may wait; a longer one is emitted at once.
const WAITING_BYTES_MAX: usize = PARTS_BYTES_MAX / 8;

/// The piece of a tool call in one event. All strings are *escaped*.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Piece<'a> {
    pub(super) id: Option<&'a str>,
    pub(super) name: Option<&'a str>,
    pub(super) arguments: &'a str,
}

impl Piece<'_> {
    const fn is_empty(&self) -> bool {
        self.id.is_none() && self.name.is_none() && self.arguments.is_empty()
    }
}

/// The choice and index that a provider gives for the call of a piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hint {
    pub(super) choice: u64,
    pub(super) index: Option<u64>,
    /// Whether the piece cannot belong to the call in progress; decides if neither index nor id does.
    pub(super) begins: bool,
}

/// A call that is followed, with its slot, or one that is not, with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Followed(u64),
    Numbered(u64),
}

pub(super) fn index_name(choice: u64, index: u64) -> u64 {
    name_of(INDEX, [choice, index], "")
}

pub(super) fn item_name(item: &str) -> u64 {
    name_of(ITEM, [0, 0], &meant(item))
}

fn id_name(choice: u64, id: &str) -> u64 {
    name_of(ID, [choice, 0], &meant(id))
}

fn hash_of(kind: u8, text: Option<&str>) -> u64 {
    text.map_or(0, |text| name_of(kind, [0, 0], &meant(text)))
}

impl<'a> Draft<'a> {
    fn part(&self, slot: u64) -> Option<&Part> {
        self.progress().parts.get(slot)
    }

    fn find(&self, name: u64) -> Option<u64> {
        self.progress().parts.find(name)
    }

    /// The call that a piece begins or continues. If a piece repeats a call under another index, its arguments are
    /// removed.
    pub(super) fn call_of(&mut self, hint: Hint, piece: &mut Piece<'_>) -> Call {
        let Hint { choice, index, begins } = hint;
        let Some(Choice { current, .. }) = self.progress().parts.choice(choice) else {
            return Call::Numbered(index.unwrap_or(0));
        };
        let current = current.filter(|slot| self.part(*slot).is_some());
        let by_index = index.and_then(|index| self.find(index_name(choice, index)));
        let by_id = piece.id.and_then(|id| self.find(id_name(choice, id)));
        let known = match (index, by_index) {
            (_, Some(owner)) if !self.has_other_id(owner, piece.id) => Some(owner),
            (Some(_), Some(_)) => by_id,
            (Some(_), None) => by_id.filter(|slot| self.is_moved(*slot, *piece)).or_else(|| {
                let is_bare = piece.id.is_none() && piece.name.is_none() && !begins;
                current
                    .filter(|slot| is_bare && self.part(*slot).is_some_and(|part| part.named(BY_PLACE) == 0))
            }),
            (None, _) if piece.id.is_some() => by_id,
            (None, _) => current.filter(|slot| !begins && !self.has_other_name(*slot, piece.name)),
        };
        let slot = known.unwrap_or_else(|| self.begin_call(choice));
        if by_index.is_none() && known.is_some_and(|slot| self.is_repeated(slot, *piece)) {
            piece.arguments = "";
        }
        if let Some(index) = index {
            self.name_part(slot, BY_PLACE, index_name(choice, index));
        }
        self.go_on_with(choice, slot);
        Call::Followed(slot)
    }

    /// The only call of servers that support one call.
    pub(super) fn legacy_call(&mut self, choice: u64) -> Call {
        if self.progress().parts.choice(choice).is_none() {
            return Call::Numbered(0);
        }
        let name = name_of(LEGACY, [choice, 0], "");
        let slot = self.find(name).unwrap_or_else(|| self.begin_call(choice));
        self.name_part(slot, BY_PLACE, name);
        self.go_on_with(choice, slot);
        Call::Followed(slot)
    }

    /// Whether a piece's id shows that it belongs to another call.
    pub(super) fn has_other_id(&self, slot: u64, id: Option<&str>) -> bool {
        let own = self.part(slot).map_or(0, |part| part.id);
        own != 0 && id.is_some() && own != hash_of(OWN_ID, id)
    }

    fn has_other_name(&self, slot: u64, name: Option<&str>) -> bool {
        let own = self.part(slot).map_or(0, |part| part.name);
        own != 0 && name.is_some() && own != hash_of(OWN_NAME, name)
    }

    /// Whether a piece belongs to the call that has its id but not its index.
    fn is_moved(&self, slot: u64, piece: Piece<'_>) -> bool {
        let Some(part) = self.part(slot) else { return false };
        part.named(BY_PLACE) == 0
            || piece.name.is_none()
            || part.emitted == TextDigest::NONE
            || part.emitted == TextDigest::of(&meant(piece.arguments))
    }

    /// Whether a piece repeats the whole call that was emitted.
    fn is_repeated(&self, slot: u64, piece: Piece<'_>) -> bool {
        let is_whole = piece.id.is_some() && piece.name.is_some() && !piece.arguments.is_empty();
        let emitted = self.part(slot).filter(|part| part.named(BY_PLACE) != 0).map(|part| part.emitted);
        is_whole && emitted == Some(TextDigest::of(&meant(piece.arguments)))
    }

    /// Begins a call, which gets the next number of its choice.
    pub(super) fn begin_call(&mut self, choice: u64) -> u64 {
        let progress = self.change();
        progress.calls = progress.calls.saturating_add(1);
        let parts = &mut progress.parts;
        let calls = parts.choice(choice).unwrap_or_default();
        let slot = parts.insert(Part { kind: CALL, choice, call: calls.next, ..Part::default() });
        parts.set_choice(choice, Choice { next: calls.next.saturating_add(1), current: Some(slot) });
        slot
    }

    fn go_on_with(&mut self, choice: u64, slot: u64) {
        let calls = self.progress().parts.choice(choice).unwrap_or_default();
        if calls.current != Some(slot) {
            self.change().parts.set_choice(choice, Choice { current: Some(slot), ..calls });
        }
    }

    pub(super) fn name_part(&mut self, slot: u64, sort: usize, name: u64) {
        if self.find(name) != Some(slot) || self.part(slot).is_some_and(|part| part.named(sort) != name) {
            self.change().parts.take_name(slot, sort, name);
        }
    }

    /// The number of a call in frames, within its choice.
    pub(super) fn number_of(&self, call: Call) -> u64 {
        match call {
            Call::Numbered(number) => number,
            Call::Followed(slot) => self.part(slot).map_or(0, |part| part.call),
        }
    }

    /// Emits a piece of a call.
    pub(super) fn emit_call(&mut self, choice: u64, call: Call, piece: Piece<'a>) -> Option<()> {
        match call {
            Call::Followed(slot) => self.emit_piece(slot, piece),
            Call::Numbered(_) if piece.is_empty() => Some(()),
            Call::Numbered(call) => {
                let Piece { id, name, arguments } = piece;
                self.emit(Event::ToolCall { index: choice, call, id, name, arguments })
            }
        }
    }

    /// Emits a piece of a followed call, together with its waiting announcement.
    pub(super) fn emit_piece(&mut self, slot: u64, piece: Piece<'a>) -> Option<()> {
        let part = self.part(slot)?;
        let (choice, call) = (part.choice, part.call);
        let (mut emitted, mut rest) = (piece, None);
        if let Some(waiting) = self.waiting_of(slot) {
            emitted.id = emitted.id.or(waiting.id);
            emitted.name = emitted.name.or(waiting.name);
            // Arguments in the announcement keep waiting if this piece has none.
            if piece.arguments.is_empty() && !waiting.arguments.is_empty() {
                let arguments = waiting.arguments.into();
                rest = Some(Arc::new(Waiting { arguments, ..Waiting::default() }));
            }
        }
        if emitted.is_empty() {
            return Some(());
        }
        if !part.is_begun {
            self.introduce_before(slot, choice)?;
        }
        let (id, name) = (hash_of(OWN_ID, emitted.id), hash_of(OWN_NAME, emitted.name));
        let id_name = emitted.id.map(|id| id_name(choice, id));
        self.change().parts.change(slot, |part| {
            part.emitted.push(&meant(piece.arguments));
            part.waiting = rest;
            part.is_begun = true;
            part.id = if part.id == 0 { id } else { part.id };
            part.name = if part.name == 0 { name } else { part.name };
        });
        if let Some(name) = id_name {
            self.name_part(slot, BY_ID, name);
        }
        let Piece { id, name, arguments } = emitted;
        self.emit(Event::ToolCall { index: choice, call, id, name, arguments })
    }

    /// Emits the ids and names of calls that were announced before the one about to be emitted. Calls are emitted in
    /// the order of their numbers, because many clients assemble them by these.
    fn introduce_before(&mut self, slot: u64, choice: u64) -> Option<()> {
        let is_earlier = |earlier: &u64| {
            *earlier < slot && self.part(*earlier).is_some_and(|part| part.choice == choice && !part.is_begun)
        };
        let earlier: Vec<u64> = self.progress().parts.waiting().into_iter().filter(is_earlier).collect();
        for earlier in earlier {
            self.change().parts.change(earlier, |part| part.is_begun = true);
            self.emit_piece(earlier, Piece::default())?;
        }
        Some(())
    }

    /// Records the announcement of a call. It is emitted with the first piece of arguments, or when nothing more can
    /// follow, or at once if it cannot wait.
    pub(super) fn announce(&mut self, slot: u64, piece: Piece<'a>) -> Option<()> {
        let Piece { id, name, arguments } = piece;
        let owned = |text: Option<&str>| text.map(Box::from);
        let waiting = Waiting { id: owned(id), name: owned(name), arguments: arguments.into() };
        if self.progress().is_finishing() || waiting.len_bytes() > WAITING_BYTES_MAX {
            return self.emit_piece(slot, piece);
        }
        let choice = self.part(slot)?.choice;
        self.change().parts.change(slot, |part| {
            part.id = hash_of(OWN_ID, id);
            part.name = hash_of(OWN_NAME, name);
            part.waiting = Some(Arc::new(waiting));
        });
        if let Some(id) = id {
            self.name_part(slot, BY_ID, id_name(choice, id));
        }
        Some(())
    }

    /// The waiting announcement of a part. Its strings are borrowed from the progress before the entry, so they live
    /// as long as the events.
    fn waiting_of(&self, slot: u64) -> Option<Piece<'a>> {
        let now = self.part(slot)?.waiting.as_ref()?;
        let found = self.before.parts.get(slot)?.waiting.as_deref()?;
        Some(Piece {
            id: found.id.as_deref().filter(|_| now.id.is_some()),
            name: found.name.as_deref().filter(|_| now.name.is_some()),
            arguments: &found.arguments,
        })
    }

    /// Emits the waiting announcement of a part.
    pub(super) fn emit_waiting_of(&mut self, slot: u64) -> Option<()> {
        let Some(waiting) = self.waiting_of(slot) else { return Some(()) };
        self.emit_piece(slot, Piece { id: None, name: None, ..waiting })?;
        self.change().parts.change(slot, |part| part.waiting = None);
        Some(())
    }

    /// Emits all waiting announcements.
    pub(super) fn emit_waiting(&mut self) -> Option<()> {
        for slot in self.progress().parts.waiting() {
            self.emit_waiting_of(slot)?;
        }
        Some(())
    }
}
