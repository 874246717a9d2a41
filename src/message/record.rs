//! Messages to the recorder, which writes to Redis for the other threads.
//!
//! Each kind has a queue of its own, bounded in bytes, so that a flood of one never displaces another. The recorder
//! processes them in the order of their importance: requests to cancel, ends of generations, dead letters, receipts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{Entry, EntryId, Position, Slot, StreamName};

/// The counted size of a message besides its texts and bytes, in bytes: the message itself, its slot in the queue,
/// and the allocations.
const MESSAGE_BYTES: usize = 256;

/// A client requests that the generation stops.
#[derive(Debug)]
pub struct CancelRequest {
    /// The stream.
    pub stream: StreamName,
    /// The reason that the client gave.
    pub reason: Option<String>,
    /// The client's address, as the producer sees it.
    pub by: String,
    /// The connection that gets the answer.
    pub asker: Asker,
    /// The time of the request.
    pub asked_at: Instant,
}

/// A client's connection that waits for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The delivery thread.
    pub delivery: usize,
    /// The connection there.
    pub connection: Slot,
    /// The stream to name in the answer, on a connection with many streams.
    pub about: Option<StreamName>,
}

/// Why something was not written, as a message for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// A short code for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
    /// When to ask again, if this client or all clients together have sent too many requests.
    pub too_many: Option<Duration>,
}

impl Refused {
    /// A refusal that Redis causes.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), too_many: None }
    }

    /// A refusal of too many requests; there is room again after `wait`.
    #[must_use]
    pub fn too_many(message: impl Into<String>, wait: Duration) -> Self {
        let mut refused = Self { code: "too_many", message: message.into(), too_many: Some(wait) };
        // A WebSocket frame has no other place for it.
        refused.message =
            format!("{}; try again in {} s", refused.message, refused.retry_after_s().unwrap_or(1));
        refused
    }

    /// When to ask again, in whole seconds, rounded up.
    #[must_use]
    pub fn retry_after_s(&self) -> Option<u32> {
        let seconds = |wait: Duration| wait.as_millis().div_ceil(1000).max(1);
        self.too_many.map(|wait| u32::try_from(seconds(wait)).unwrap_or(u32::MAX))
    }
}

impl CancelRequest {
    /// Its counted size, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let reason = self.reason.as_ref().map_or(0, String::len);
        MESSAGE_BYTES + self.stream.as_str().len() + reason + self.by.len()
    }
}

/// A request to end a generation by an entry right after `newest`, if that is still the stream's newest entry. Of all
/// instances that request it, exactly one succeeds.
///
/// The answer to the transform thread is [`Control::EndAnswered`](super::Control). It is lost if that thread's queue
/// is full: the thread then asks again, and learns that another entry has followed.
#[derive(Debug)]
pub struct EndGeneration {
    /// The stream.
    pub stream: StreamName,
    /// Its newest entry.
    pub newest: EntryId,
    /// The terminal entry: a native object in JSON, of the type `end` or `error`.
    pub data: String,
    /// Why the generation is ended.
    pub kind: EndKind,
    /// The transform thread that gets the answer.
    pub transform: usize,
}

impl EndGeneration {
    /// Its counted size, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        MESSAGE_BYTES + self.stream.as_str().len() + self.data.len()
    }
}

/// Why the daemon ends a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndKind {
    /// Its finish reason was read, and nothing has followed for `stream.finish_grace`.
    Grace,
    /// Its producer has been silent for `stream.abandon_after`.
    ProducerLost,
}

/// The outcome of an [`EndGeneration`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOutcome {
    /// The entry is in the stream, with this id.
    Written(EntryId),
    /// `newest` is not the newest entry any more, or the stream is gone: nothing was written.
    Followed,
    /// Redis is down, or refuses the write. If Redis did not reply, the entry may have been written.
    Unwritten,
}

/// An entry that could not be processed.
#[derive(Debug)]
pub struct DeadLetter {
    /// Its stream.
    pub stream: StreamName,
    /// The entry.
    pub entry: Entry,
    /// The reason as a code.
    pub reason: &'static str,
    /// The defect, and the names of the fields.
    pub message: Box<str>,
}

impl DeadLetter {
    /// Its counted size, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        MESSAGE_BYTES + self.stream.as_str().len() + self.message.len() + self.entry.fields.len_bytes()
    }
}

/// A message from which a receipt may follow.
#[derive(Debug)]
pub enum Receipt {
    /// A client has received everything of a stream up to a position.
    Acked(Acked),
    /// A generation that this instance delivered is over.
    Ended(Ended),
}

/// A client has received everything of a stream up to `id`.
#[derive(Clone, Debug)]
pub struct Acked {
    /// The stream.
    pub stream: StreamName,
    /// The position up to which the client has everything.
    pub id: Position,
    /// The escaped id of the generation at that position, if it has one.
    pub generation: Option<Arc<String>>,
    /// The client's address.
    pub by: String,
    /// The time, µs since 1970 by this host's clock.
    pub at_us: u64,
    /// Whether a repetition gets no second receipt: the acknowledgement covers the end of a generation, or a position
    /// that the client had before it connected.
    pub is_once: bool,
    /// The connection that gets the answer.
    pub asker: Asker,
    /// The time of the acknowledgement.
    pub asked_at: Instant,
}

/// A generation is over.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The stream.
    pub stream: StreamName,
    /// The terminal entry.
    pub id: EntryId,
    /// The escaped id of the generation, if it has one.
    pub generation: Option<Arc<String>>,
    /// The time of the end, µs since 1970 by Redis' clock.
    pub at_redis_us: u64,
}

impl Receipt {
    /// Its counted size, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Acked(acked) => acked.len_bytes(),
            Self::Ended(ended) => ended.len_bytes(),
        }
    }
}

impl Acked {
    /// Its counted size, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let generation = self.generation.as_ref().map_or(0, |generation| generation.len());
        MESSAGE_BYTES + self.stream.as_str().len() + generation + self.by.len()
    }
}

impl Ended {
    /// Its counted size, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let generation = self.generation.as_ref().map_or(0, |generation| generation.len());
        MESSAGE_BYTES + self.stream.as_str().len() + generation
    }
}
