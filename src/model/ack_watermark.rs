//! How far a live stream is written to the sockets, shared by the threads that it concerns.

use parking_lot::Mutex;

use super::EntryId;

/// How far each delivery thread has written a live stream. The reader acknowledges the entries that all of them have.
///
/// Shared by one reader, one transform and the delivery threads of a stream instead of messages, so
/// that it needs no queue and no bound: there is one entry for each attached delivery thread.
#[derive(Debug, Default)]
pub struct AckWatermark(Mutex<Vec<(usize, EntryId)>>);

impl AckWatermark {
    /// A delivery thread joins at `id`.
    pub fn attach(&self, delivery: usize, id: EntryId) {
        let mut watermark = self.0.lock();
        match watermark.iter_mut().find(|(who, _)| *who == delivery) {
            Some(entry) => entry.1 = id,
            None => watermark.push((delivery, id)),
        }
    }

    /// A delivery thread leaves; what it had not written counts as handed to history.
    pub fn detach(&self, delivery: usize) {
        self.0.lock().retain(|(who, _)| *who != delivery);
    }

    /// A delivery thread has everything up to `id` on its sockets or handed to history.
    pub fn written(&self, delivery: usize, id: EntryId) {
        if let Some(entry) = self.0.lock().iter_mut().find(|(who, _)| *who == delivery)
            && entry.1 < id
        {
            entry.1 = id;
        }
    }

    /// Up to where everybody has written; `None` when nobody is attached.
    #[must_use]
    pub fn everybody(&self) -> Option<EntryId> {
        self.0.lock().iter().map(|&(_, id)| id).min()
    }
}
