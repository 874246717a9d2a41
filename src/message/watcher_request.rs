//! Requests to the watcher from the other threads.

use crate::model::StreamName;

/// A request to look for a stream, which the watcher does on its own connection. The watcher writes nothing for
/// others: the recorder does ([`record`](super::record)).
#[derive(Debug)]
pub enum WatcherRequest {
    /// Notify a delivery thread when the stream exists.
    Wait {
        /// The stream.
        stream: StreamName,
        /// The delivery thread.
        delivery: usize,
    },
    /// No viewer of that delivery thread waits for the stream any more.
    Forget {
        /// The stream.
        stream: StreamName,
        /// The delivery thread.
        delivery: usize,
    },
}
