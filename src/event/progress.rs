//! What has to be kept of a generation that comes in a provider's own form, from one entry to the next.

use super::EntryId;

/// The most bytes that is kept of one generation, by [`Progress::len_bytes`]. An entry that would make it more is
/// undecodable: no real server comes near it.
pub const PROGRESS_BYTES_MAX: usize = 64 * 1024;

/// What a block counts beside its strings.
const BLOCK_BYTES: usize = 64;
/// More parts or reasons than have room, so that one entry cannot make many of them either: each is looked for among all.
const PARTS_MAX: usize = PROGRESS_BYTES_MAX / BLOCK_BYTES;

/// What the entries of a generation have said that later ones build on. Strings are *escaped*, as in
/// [`Event`](super::Event).
///
/// Part of the state that crosses the seam, and shared by all who stand at the same place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Why the choices ended, in the provider's word; in the order in which they said so.
    pub finish_reasons: Vec<(u64, Box<str>)>,
    /// Token counts, JSON.
    pub usage: Option<Box<str>>,
    /// The choices that have said something, as bits; those above 63 are not followed.
    pub begun: u64,
    /// The choices that have ended, as bits.
    pub finished: u64,
    /// The id of Anthropic's message.
    pub message: Option<Box<str>>,
    /// The parts of the answer that are going on.
    pub blocks: Vec<Block>,
    /// The number of the next tool call that has none of its own.
    pub calls: u64,
    /// The newest entry that belongs to the generation, and the stream's ordinal there; kept once nothing more needs
    /// to come.
    pub newest: (EntryId, Option<u64>),
}

/// A tool call in a part of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The part.
    pub key: BlockKey,
    /// The number of the call.
    pub call: u64,
    /// What the first piece has to say, until it has.
    pub introduction: Option<Introduction>,
}

/// How a provider names a part of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockKey {
    /// By its place.
    Place(u64),
    /// By an id.
    Id(Box<str>),
}

/// What is said of a tool call before its arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Introduction {
    /// The provider's id of the call.
    pub id: Option<Box<str>>,
    /// The tool's name.
    pub name: Option<Box<str>>,
    /// Arguments that were given at once.
    pub arguments: Box<str>,
}

impl Progress {
    /// Nothing said yet.
    pub const NONE: Self = Self {
        finish_reasons: Vec::new(),
        usage: None,
        begun: 0,
        finished: 0,
        message: None,
        blocks: Vec::new(),
        calls: 0,
        newest: (EntryId::ZERO, None),
    };

    /// What is known, also where nothing was kept.
    #[must_use]
    pub fn known(kept: Option<&Self>) -> &Self {
        static NOTHING: Progress = Progress::NONE;
        kept.unwrap_or(&NOTHING)
    }

    /// What it takes, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let of = |text: &Option<Box<str>>| text.as_deref().map_or(0, str::len);
        let blocks = self.blocks.iter().map(|block| {
            let key = match &block.key {
                BlockKey::Place(_) => 0,
                BlockKey::Id(id) => id.len(),
            };
            let introduced = block.introduction.as_ref().map_or(0, |introduction| {
                of(&introduction.id) + of(&introduction.name) + introduction.arguments.len()
            });
            BLOCK_BYTES + key + introduced
        });
        let reasons = self.finish_reasons.iter().map(|(_, reason)| BLOCK_BYTES + reason.len()).sum::<usize>();
        reasons + of(&self.usage) + of(&self.message) + blocks.sum::<usize>()
    }

    /// Why the generation ended: the first choice's word, else that of the one that said so first.
    #[must_use]
    pub fn finish_reason(&self) -> Option<&str> {
        let of_first = self.finish_reasons.iter().find(|(index, _)| *index == 0);
        of_first.or_else(|| self.finish_reasons.first()).map(|(_, reason)| &**reason)
    }

    /// A choice has said why it ended; `None` where too many have.
    pub fn finish(&mut self, index: u64, reason: &str) -> Option<()> {
        if let Some((_, known)) = self.finish_reasons.iter_mut().find(|(known, _)| *known == index) {
            *known = reason.into();
            return Some(());
        }
        (self.finish_reasons.len() < PARTS_MAX).then(|| self.finish_reasons.push((index, reason.into())))
    }

    /// A part goes on; `None` where too many do.
    pub fn open(&mut self, block: Block) -> Option<()> {
        (self.blocks.len() < PARTS_MAX).then(|| self.blocks.push(block))
    }

    /// Whether every choice that has said something has said why it ended: nothing more needs to come.
    #[must_use]
    pub const fn is_finishing(&self) -> bool {
        !self.finish_reasons.is_empty() && self.begun & !self.finished == 0
    }
}
