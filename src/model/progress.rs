//! The progress of a generation in a provider's own form: what is kept from one entry to the next.
//!
//! Every entry that changes it makes a copy, so the copies share everything that can grow.

use std::sync::Arc;

use super::parts::name_of;
use super::{EntryId, Parts, TextDigest, Trie};

/// The most bytes kept of one generation's parts, by [`Parts::len_bytes`]. Beyond it the oldest parts are emitted and
/// dropped.
pub(crate) const PARTS_BYTES_MAX: usize = 256 * 1024;
/// The most bytes kept of one generation, by [`Progress::len_bytes`].
pub const PROGRESS_BYTES_MAX: usize = PARTS_BYTES_MAX
    + USAGE_BYTES_MAX
    + REASONS_MAX * (KEPT_BYTES + REASON_BYTES_MAX)
    + MEMBERS_MAX * KEPT_BYTES;
/// The longest token counts that are kept, in bytes.
pub(crate) const USAGE_BYTES_MAX: usize = 8 * 1024;
/// The longest finish reason that is kept, in bytes.
const REASON_BYTES_MAX: usize = 1024;
/// The most finish reasons that are kept: further choices are not followed.
const REASONS_MAX: usize = 64;
/// The most hashes of additional members that are kept.
const MEMBERS_MAX: usize = 1024;
/// The counted size of one of these besides its strings, in bytes.
const KEPT_BYTES: usize = 64;

/// The facts on which later entries of a generation depend. Strings are *escaped*, as in [`Event`](super::Event).
///
/// Part of the state that crosses the seam, shared by all readers at the same position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Why the choices ended, in the provider's words.
    pub finish_reasons: Trie<Arc<str>>,
    /// The choice that ended first.
    pub(crate) first_finished: u64,
    /// Token counts, JSON.
    pub usage: Option<Arc<str>>,
    /// The choices that have begun, as bits; those above 63 are not followed.
    pub begun: u64,
    /// The choices that have ended, as bits.
    pub finished: u64,
    /// The hash of the id of the message or response; 0 until an event has one.
    pub message: u64,
    /// Its tool calls and texts.
    pub parts: Parts,
    /// How many tool calls have begun, in all choices.
    pub calls: u64,
    /// How much was emitted on each channel whose text may be repeated as a whole.
    pub totals: [TextDigest; TOTALS],
    /// The hashes of additional members that were emitted, so that repetitions are dropped.
    pub(crate) emitted_members: Trie<()>,
    /// The newest entry of the generation and the stream's counters there; kept once nothing more has to follow.
    pub newest: Newest,
}

/// The entry under whose id a generation may end without an entry of its own, and the stream's counters there.
/// Heartbeats after it then come after the end, and do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// The entry.
    pub id: EntryId,
    /// The stream's ordinal.
    pub ordinal: Option<u64>,
    /// The highest `seq` of the generation.
    pub seq: Option<u64>,
    /// Whether the next `seq` is accepted as it is.
    pub blind: bool,
}

/// How many kinds of text may be repeated as a whole.
pub(crate) const TOTALS: usize = 4;

impl Progress {
    /// The progress before the first event.
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

    /// The kept progress, or that of a generation before its first event.
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

    /// Why the generation ended: the reason of the first choice, or else that of the choice that ended first.
    #[must_use]
    pub fn finish_reason(&self) -> Option<&str> {
        let reason = self.finish_reasons.get(0).or_else(|| self.finish_reasons.get(self.first_finished));
        reason.map(|reason| &**reason)
    }

    /// Records why a choice ended, if there is room. `None` if the reason is longer than the limit.
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

    /// Records an additional member that is about to be emitted; false if it was emitted before.
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

    /// Whether an additional member was emitted before.
    pub(crate) fn has_emitted(&self, json: &str) -> bool {
        self.emitted_members.get(Self::member_hash(json)).is_some()
    }

    fn member_hash(json: &str) -> u64 {
        name_of(0, [0, 0], json)
    }

    /// Whether every choice that has begun has also ended, so that nothing more has to follow.
    #[must_use]
    pub const fn is_finishing(&self) -> bool {
        !self.finish_reasons.is_empty() && self.begun & !self.finished == 0
    }
}
