//! Requests to the watcher from the other threads.

use crate::model::StreamName;

/// A request to look for a stream, which the watcher does on its own connection. It writes nothing for others: that is
/// the recorder's work ([`record`](super::record)).
#[derive(Debug)]
pub enum WatcherRequest {
    /// Tell a delivery thread when the stream exists.
    Wait {
        /// The stream.
        stream: StreamName,
        /// The delivery thread.
        delivery: usize,
    },
    /// Nobody of that delivery thread waits for it any more.
    Forget {
        /// The stream.
        stream: StreamName,
        /// The delivery thread.
        delivery: usize,
    },
}
