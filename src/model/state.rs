//! The state that a reader of a stream needs beside its position to read on correctly.

use std::sync::Arc;

use super::{EntryId, Newest, Progress};

/// Where the newest generation stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing has been said yet.
    #[default]
    Idle,
    /// A generation is going on.
    Open,
    /// It ended with an `end` entry, whose id this is.
    Ended(EntryId),
    /// It ended with an `error` entry of the producer's, whose id this is.
    Failed(EntryId),
    /// Its producer was given up: the daemon wrote the `producer_lost` entry with this id.
    Lost(EntryId),
}

impl Phase {
    /// The id of the terminal entry, once there is one.
    #[must_use]
    pub const fn terminal(self) -> Option<EntryId> {
        match self {
            Self::Idle | Self::Open => None,
            Self::Ended(id) | Self::Failed(id) | Self::Lost(id) => Some(id),
        }
    }
}

/// The state of a stream right after some entry. Two readers that have read the same entries hold
/// equal states; it crosses the seam between history and live together with the id. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// Where the newest generation stands.
    pub phase: Phase,
    /// The newest generation's id, escaped, where its `start` gave one.
    pub generation: Option<Arc<String>>,
    /// The highest `seq` of the newest generation.
    pub seq: Option<u64>,
    /// Whether entries before this point were removed unseen: the next `seq` is then taken as it comes
    /// instead of being held against the last one.
    pub blind: bool,
    /// How many entries were ever added to the stream up to this point, where that can be known: with it
    /// a later reader can tell whether anything in between was trimmed.
    pub ordinal: Option<u64>,
    /// The progress of a generation that comes in a provider's own form. Once it has ended: the progress of its
    /// successor, from entries that come before the successor begins.
    pub progress: Option<Arc<Progress>>,
}

impl StreamState {
    /// Another generation begins; what is known of the stream as a whole stays.
    pub fn begin(&mut self, phase: Phase, generation: Option<Arc<String>>) {
        *self = Self { phase, generation, ordinal: self.ordinal, ..Self::default() };
    }

    /// Becomes what `other` is. The counter of a generation's name that both share, which lies elsewhere in memory,
    /// is not touched.
    pub fn assign(&mut self, other: &Self) {
        let Self { phase, generation, seq, blind, ordinal, progress } = other;
        if self.generation.as_ref().map(Arc::as_ptr) != generation.as_ref().map(Arc::as_ptr) {
            self.generation.clone_from(generation);
        }
        if self.progress.as_ref().map(Arc::as_ptr) != progress.as_ref().map(Arc::as_ptr) {
            self.progress.clone_from(progress);
        }
        (self.phase, self.seq, self.blind, self.ordinal) = (*phase, *seq, *blind, *ordinal);
    }

    /// The newest entry of a generation to whose end nothing but the provider's last word is missing: it is over where
    /// nothing more comes for a while.
    #[must_use]
    pub fn finishing(&self) -> Option<EntryId> {
        let progress = self.progress.as_deref()?;
        (progress.is_finishing() && self.phase.terminal().is_none()).then_some(progress.newest.id)
    }

    /// The entry that was just passed belongs to the generation, if that is finishing.
    pub fn note_newest(&mut self, id: EntryId) {
        if self.finishing().is_some()
            && let Some(progress) = &mut self.progress
        {
            Arc::make_mut(progress).newest =
                Newest { id, ordinal: self.ordinal, seq: self.seq, blind: self.blind };
        }
    }

    /// One more entry was passed, whatever it was.
    pub fn pass(&mut self) {
        self.ordinal = self.ordinal.map(|ordinal| ordinal.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is copied for every frame.
    #[test]
    fn a_state_stays_small() {
        assert!(size_of::<StreamState>() <= 80, "{} bytes", size_of::<StreamState>());
    }
}
