//! What the watcher does for the other threads.

use std::sync::Arc;

use super::{Entry, EntryId, Position, StreamName};

/// What the watcher is asked to do on its own connection.
#[derive(Debug)]
pub enum Errand {
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
    /// An entry that could not be processed.
    DeadLetter {
        /// Its stream.
        stream: StreamName,
        /// The entry.
        entry: Entry,
        /// Why, in a word.
        reason: &'static str,
        /// What was wrong, and which fields were there.
        message: Box<str>,
    },
    /// A producer that has been silent too long is given up, if `newest` is still the newest entry.
    GiveUp {
        /// The stream.
        stream: StreamName,
        /// Its newest entry.
        newest: EntryId,
    },
    /// Whether anything follows a finishing generation's newest entry.
    IsOver {
        /// The stream.
        stream: StreamName,
        /// Its newest entry.
        newest: EntryId,
        /// The transform thread to be told.
        transform: usize,
    },
    /// A client wants the generation to stop.
    Cancel {
        /// The stream.
        stream: StreamName,
        /// The client's words.
        reason: Option<String>,
        /// Who asks.
        by: String,
    },
    /// A client has everything of a stream up to here.
    Acked {
        /// The stream.
        stream: StreamName,
        /// What it has.
        id: Position,
        /// The id of the generation to which that belongs, escaped, where it has one.
        generation: Option<Arc<String>>,
        /// Who says so.
        by: String,
        /// When, µs since 1970 by this host's clock.
        at_us: u64,
    },
    /// A generation that this instance watched is over.
    Ended {
        /// The stream.
        stream: StreamName,
        /// The terminal entry.
        id: EntryId,
        /// The generation's id, escaped, where it has one.
        generation: Option<Arc<String>>,
        /// When that was, µs since 1970 by Redis' clock.
        at_redis_us: u64,
    },
}
