//! How far a live stream has been written to the sockets, shared by the threads concerned.

use parking_lot::Mutex;

use super::EntryId;

/// How far each delivery thread has written a live stream. The reader acknowledges the entries that all of them have
/// written.
///
/// One reader, one transform thread and the delivery threads of a stream share it instead of sending messages, so it
/// needs no queue and no bound: it has one entry per attached delivery thread.
#[derive(Debug, Default)]
pub struct AckWatermark(Mutex<Vec<(usize, EntryId)>>);

impl AckWatermark {
    /// Attaches a delivery thread at `id`.
    pub fn attach(&self, delivery: usize, id: EntryId) {
        let mut watermark = self.0.lock();
        match watermark.iter_mut().find(|(who, _)| *who == delivery) {
            Some(entry) => entry.1 = id,
            None => watermark.push((delivery, id)),
        }
    }

    /// Detaches a delivery thread; what it had not written counts as handed over to history.
    pub fn detach(&self, delivery: usize) {
        self.0.lock().retain(|(who, _)| *who != delivery);
    }

    /// Records that a delivery thread has written everything up to `id` to its sockets or handed it over to history.
    pub fn written(&self, delivery: usize, id: EntryId) {
        if let Some(entry) = self.0.lock().iter_mut().find(|(who, _)| *who == delivery)
            && entry.1 < id
        {
            entry.1 = id;
        }
    }

    /// The position up to which all delivery threads have written; `None` if none is attached.
    #[must_use]
    pub fn everybody(&self) -> Option<EntryId> {
        self.0.lock().iter().map(|&(_, id)| id).min()
    }
}
