//! The progress of a generation that comes in a provider's own form: facts that are kept from one entry to the next.
//!
//! A copy is made for every entry that changes it, so all that can grow is shared between the copies.

use std::sync::Arc;

use super::parts::name_of;
use super::{EntryId, Parts, TextDigest, Trie};

/// The most bytes that are kept of one generation's parts, by [`Parts::len_bytes`]. Beyond it the oldest parts are
/// emitted and forgotten.
pub(crate) const PARTS_BYTES_MAX: usize = 256 * 1024;
/// The most bytes that are kept of one generation, by [`Progress::len_bytes`].
pub const PROGRESS_BYTES_MAX: usize = PARTS_BYTES_MAX
    + USAGE_BYTES_MAX
    + REASONS_MAX * (KEPT_BYTES + REASON_BYTES_MAX)
    + MEMBERS_MAX * KEPT_BYTES;
/// The longest token counts that are kept.
pub(crate) const USAGE_BYTES_MAX: usize = 8 * 1024;
/// The longest finish reason that is kept.
const REASON_BYTES_MAX: usize = 1024;
/// The most finish reasons that are kept: more choices are not followed.
const REASONS_MAX: usize = 64;
/// The most hashes of further members that are kept.
const MEMBERS_MAX: usize = 1024;
/// The counted size of one of these beside its strings, in bytes.
const KEPT_BYTES: usize = 64;

/// The facts from a generation's entries on which later entries build. Strings are *escaped*, as in
/// [`Event`](super::Event).
///
/// Part of the state that crosses the seam, and shared by all who stand at the same place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Why the choices ended, in the provider's word.
    pub finish_reasons: Trie<Arc<str>>,
    /// The choice that was the first to say so.
    pub(crate) first_finished: u64,
    /// Token counts, JSON.
    pub usage: Option<Arc<str>>,
    /// The choices that have said something, as bits; those above 63 are not followed.
    pub begun: u64,
    /// The choices that have ended, as bits.
    pub finished: u64,
    /// The hash of the id of the message or response, 0 while nobody has said one.
    pub message: u64,
    /// Its tool calls and texts.
    pub parts: Parts,
    /// How many tool calls have begun, in all choices.
    pub calls: u64,
    /// How much was emitted on each channel whose text may be repeated as a whole.
    pub totals: [TextDigest; TOTALS],
    /// The hashes of further members that were emitted, so that those that are repeated are not.
    pub(crate) emitted_members: Trie<()>,
    /// The newest entry that belongs to the generation, and how the stream stood there; kept once nothing more needs
    /// to come.
    pub newest: Newest,
}

/// An entry under whose id a generation may come to its end, and the stream's state there. Heartbeats that follow it
/// then come after the end, and are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// The entry.
    pub id: EntryId,
    /// The stream's ordinal.
    pub ordinal: Option<u64>,
    /// The highest number of the generation.
    pub seq: Option<u64>,
    /// Whether the next number is taken as it comes.
    pub blind: bool,
}

/// How many kinds of text may be repeated as a whole.
pub(crate) const TOTALS: usize = 4;

impl Progress {
    /// Nothing said yet.
    pub const NONE: Self = Self {
        finish_reasons: Trie::new(),
        first_finished: 0,
        usage: None,
        begun: 0,
        finished: 0,
        message: 0,
        parts: Parts::NONE,
        calls: 0,
        totals: [TextDigest::NONE; TOTALS],
        emitted_members: Trie::new(),
        newest: Newest { id: EntryId::ZERO, ordinal: None, seq: None, blind: false },
    };

    /// The progress that was kept, else that of a generation that has said nothing.
    #[must_use]
    pub fn known(kept: Option<&Self>) -> &Self {
        static NOTHING: Progress = Progress::NONE;
        kept.unwrap_or(&NOTHING)
    }

    /// Its counted size, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let reasons = self.finish_reasons.iter().map(|(_, reason)| KEPT_BYTES + reason.len()).sum::<usize>();
        let usage = self.usage.as_deref().map_or(0, str::len);
        reasons + usage + self.emitted_members.len() * KEPT_BYTES + self.parts.len_bytes()
    }

    /// Why the generation ended: the first choice's word, else that of the one that said so first.
    #[must_use]
    pub fn finish_reason(&self) -> Option<&str> {
        let reason = self.finish_reasons.get(0).or_else(|| self.finish_reasons.get(self.first_finished));
        reason.map(|reason| &**reason)
    }

    /// A choice has said why it ended. Of more choices than can be kept that is not known; `None` where the reason is
    /// longer than any word.
    pub fn finish(&mut self, index: u64, reason: &str) -> Option<()> {
        if reason.len() > REASON_BYTES_MAX {
            return None;
        }
        match self.finish_reasons.get(index) {
            Some(known) if **known == *reason => return Some(()),
            Some(_) => {}
            None if self.finish_reasons.len() >= REASONS_MAX => return Some(()),
            None if self.finish_reasons.is_empty() => self.first_finished = index,
            None => {}
        }
        self.finish_reasons.insert(index, reason.into());
        Some(())
    }

    /// Notes a further member that is about to be emitted; false where it was emitted before.
    pub(crate) fn note_member(&mut self, json: &str) -> bool {
        let hash = Self::member_hash(json);
        if self.emitted_members.get(hash).is_some() {
            return false;
        }
        if self.emitted_members.len() < MEMBERS_MAX {
            self.emitted_members.insert(hash, ());
        }
        true
    }

    /// Whether a further member was emitted before.
    pub(crate) fn has_emitted(&self, json: &str) -> bool {
        self.emitted_members.get(Self::member_hash(json)).is_some()
    }

    fn member_hash(json: &str) -> u64 {
        name_of(0, [0, 0], json)
    }

    /// Whether every choice that has said something has said why it ended: nothing more needs to come.
    #[must_use]
    pub const fn is_finishing(&self) -> bool {
        !self.finish_reasons.is_empty() && self.begun & !self.finished == 0
    }
}
