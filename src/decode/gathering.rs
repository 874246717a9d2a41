//! The JSON state of a stream, collected entry by entry over as many reads as needed.

use super::entry::{DecodeContext, plain};
use super::expand::{Concluded, EntryEvents, is_over_before};
use super::order::{Verdict, judge};
use super::snapshot::{Snapshot, TooLarge};
use crate::model::{Entry, EntryId, Progress, StreamName, StreamState, StreamStatus};
use crate::provider::Margin;

/// The JSON state under construction.
#[derive(Debug)]
pub struct Gathering {
    state: StreamState,
    snapshot: Snapshot,
    newest: EntryId,
    context: DecodeContext,
    grace_ms: u64,
}

impl Gathering {
    /// An empty state that may take `bytes_max` bytes, with the stream's state at its beginning.
    #[must_use]
    pub fn new(
        stream: StreamName,
        beginning: StreamState,
        max_bytes: usize,
        (context, grace_ms): (DecodeContext, u64),
    ) -> Self {
        let snapshot = Snapshot::new(stream, max_bytes);
        Self { state: beginning, snapshot, newest: EntryId::ZERO, context, grace_ms }
    }

    /// The stream's state after the newest entry.
    #[must_use]
    pub const fn state(&self) -> &StreamState {
        &self.state
    }

    /// The newest entry, or `0-0`.
    #[must_use]
    pub const fn newest(&self) -> EntryId {
        self.newest
    }

    /// The approximate size of the document so far, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.snapshot.len_bytes()
    }

    /// The document of a stream with this status and this newest id.
    ///
    /// # Errors
    /// If it exceeds its limit.
    pub fn render(self, status: StreamStatus, newest: EntryId) -> Result<Vec<u8>, TooLarge> {
        self.snapshot.render(status, newest)
    }

    /// Takes the next entry.
    pub fn push(&mut self, entry: &Entry) {
        self.newest = entry.id;
        if is_over_before(&self.state, entry, &self.context, self.grace_ms) {
            self.end_finishing();
        }
        let (is_simple, margin) = (self.state.progress.is_none(), Margin::default());
        let decoded = if is_simple { plain(entry, &self.context, &margin) } else { None };
        let Some(decoded) = decoded else { return self.push_expanded(entry) };
        if let Verdict::Deliver { begins, .. } = judge(&mut self.state, entry.id, &decoded) {
            self.snapshot.push(&decoded, begins);
        }
    }

    /// Takes an entry that has several events or depends on earlier entries.
    fn push_expanded(&mut self, entry: &Entry) {
        let (progress, margin) = (self.state.progress.clone(), Margin::default());
        let before = Progress::known(progress.as_deref());
        let Ok(mut events) = EntryEvents::new(entry, &self.context, (before, &margin), &self.state) else {
            return self.state.note_newest(entry.id);
        };
        let mut is_counted = false;
        while let Some((decoded, verdict, _)) = events.judge(&mut self.state) {
            let Verdict::Deliver { begins, .. } = verdict else { continue };
            if decoded.event.is_terminal() {
                self.snapshot.finish_choices(Progress::known(progress.as_deref()));
            }
            // An entry may end one generation and begin the next.
            match std::mem::replace(&mut is_counted, true) && !begins {
                false => self.snapshot.push(&decoded, begins),
                true => self.snapshot.push_further(&decoded),
            }
        }
    }

    /// Ends a finishing generation, although no entry does.
    pub fn end_finishing(&mut self) {
        if let Some(concluded) = Concluded::of(&mut self.state) {
            self.snapshot.finish_choices(&concluded.progress);
            self.snapshot.push_further(&concluded.end());
        }
    }
}
