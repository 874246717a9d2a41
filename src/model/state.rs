//! The state that a reader of a stream needs besides its position to continue correctly.

use std::sync::Arc;

use super::{EntryId, Newest, Progress};

/// The phase of the newest generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// No generation has begun.
    #[default]
    Idle,
    /// A generation is open.
    Open,
    /// It ended with the `end` entry with this id.
    Ended(EntryId),
    /// It ended with the producer's `error` entry with this id.
    Failed(EntryId),
    /// Its producer was given up: the daemon wrote the `producer_lost` entry with this id.
    Lost(EntryId),
}

impl Phase {
    /// The id of the terminal entry, if there is one.
    #[must_use]
    pub const fn terminal(self) -> Option<EntryId> {
        match self {
            Self::Idle | Self::Open => None,
            Self::Ended(id) | Self::Failed(id) | Self::Lost(id) => Some(id),
        }
    }
}

/// The state of a stream right after some entry. Two readers that have read the same entries have equal states; the
/// state crosses the seam between history and live together with the id. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// The phase of the newest generation.
    pub phase: Phase,
    /// The newest generation's escaped id, if its `start` gave one.
    pub generation: Option<Arc<String>>,
    /// The highest `seq` of the newest generation.
    pub seq: Option<u64>,
    /// Whether entries before this point were removed unread: the next `seq` is then accepted as it is instead of
    /// being compared with the last one.
    pub blind: bool,
    /// How many entries were ever added to the stream up to this point, if that is known: with it a later reader can
    /// tell whether anything in between was trimmed.
    pub ordinal: Option<u64>,
    /// The progress of a generation in a provider's own form. Once the generation has ended: the progress of its
    /// successor, from entries that precede the successor's beginning.
    pub progress: Option<Arc<Progress>>,
}

impl StreamState {
    /// Begins another generation; what is known of the stream as a whole remains.
    pub fn begin(&mut self, phase: Phase, generation: Option<Arc<String>>) {
        *self = Self { phase, generation, ordinal: self.ordinal, ..Self::default() };
    }

    /// Copies `other`. If both share the generation's name, its reference count, which lies elsewhere in memory, is
    /// not touched.
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

    /// The newest entry of a generation that lacks only the provider's final event: the generation is over if nothing
    /// more follows for a while.
    #[must_use]
    pub fn finishing(&self) -> Option<EntryId> {
        let progress = self.progress.as_deref()?;
        (progress.is_finishing() && self.phase.terminal().is_none()).then_some(progress.newest.id)
    }

    /// Records the entry that was just passed as the newest of the generation, if that is finishing.
    pub fn note_newest(&mut self, id: EntryId) {
        if self.finishing().is_some()
            && let Some(progress) = &mut self.progress
        {
            Arc::make_mut(progress).newest =
                Newest { id, ordinal: self.ordinal, seq: self.seq, blind: self.blind };
        }
    }

    /// Counts one more passed entry, of whatever kind.
    pub fn pass(&mut self) {
        self.ordinal = self.ordinal.map(|ordinal| ordinal.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state is copied for every frame.
    #[test]
    fn a_state_stays_small() {
        assert!(size_of::<StreamState>() <= 80, "{} bytes", size_of::<StreamState>());
    }
}
