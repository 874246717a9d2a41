//! Writes a stream: the library behind `llm-bridge produce`, and for other programs that write tokens.
//!
//! Most programs use a [`Writer`]: it accepts tokens as they arrive, writes them in batches on a thread of its own,
//! and reports when a viewer wants to stop. Its module documentation lists its bounds.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use llm_bridge::config;
//! use llm_bridge::model::StreamName;
//! use llm_bridge::produce::{Batching, CancelWatch, RedisWires, Writer, WriterError};
//!
//! # fn model() -> impl Iterator<Item = String> { ["Hello, ", "world."].into_iter().map(String::from) }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = config::load(None, config::environment(), &[])?;
//! let name = StreamName::new("s1", "gpt-4o")?;
//! let mut cancels = CancelWatch::new(&config.redis, &name)?;
//! cancels.begin();
//! let writer = Writer::start(RedisWires::new(&config.redis, &name)?, cancels, Batching::default())?;
//! writer.begin(None)?;
//! for token in model() {
//!     match writer.text(token) {
//!         Ok(()) => {}
//!         Err(WriterError::Cancelled) => break,        // the stream says so already
//!         Err(error) => return Err(error.into()),
//!     }
//! }
//! if !writer.is_cancelled() {
//!     writer.end("stop", None)?;
//! }
//! writer.finish(Duration::from_secs(30))?;
//! # Ok(())
//! # }
//! ```
//!
//! A [`Producer`] does the same without a thread: each call adds entries, and [`Producer::flush`] writes them in
//! batches and does not return before they are confirmed. Each batch takes one round trip and is written completely
//! or not at all. If the connection is lost, the unconfirmed batch is repeated after growing pauses; `seq` hides the
//! repetition from readers. A producer that waits accepts nothing new, so its memory is bounded by one batch: check
//! [`Producer::is_full`] before adding more.
//!
//! The pause protects Redis like a circuit breaker: after a failure no call contacts Redis before the pause is over
//! (50 ms, doubling to 5 s); then one attempt decides whether the next pause is longer or none follows.
//!
//! Raw events of providers ([`Producer::push_raw`]) have no place for a `seq`. Before they are repeated, the stream
//! is searched for them, so that readers do not see a repetition either. An [`upstream`] sends requests to a model's
//! server itself.

mod cancel;
pub mod chunk;
pub mod events;
mod generation;
pub mod jsonl;
mod preamble;
pub mod raw;
mod record;
pub mod sse;
#[cfg(test)]
pub(crate) mod testing;
pub mod upstream;
mod wire;
mod words;
mod writer;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use cancel::{CancelRequest, CancelWatch, Cancels, NoCancels};
pub use generation::Generation;
pub use record::{Batch, Form, Record};
pub use wire::{RedisWire, RedisWires};
pub use writer::{Batching, Writer, WriterError};

use crate::model::EntryId;
use crate::redis::Backoff;
use crate::visible;
use crate::warn_limited;

/// The number of entries after which a batch is written even if more is available.
const BATCH_ENTRIES_MAX: usize = 256;
/// The number of bytes after which a batch is written even if more is available.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// The first pause after a lost connection.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often a waiting producer checks whether it has to stop.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// Why an answer failed, as in its `error` entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The entry's code.
    pub code: Cow<'static, str>,
    /// The entry's message.
    pub message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", visible::line(&self.code), visible::line(&self.message))
    }
}

/// Why a batch could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection or the server has a problem; the same batch may succeed later.
    #[error("{0}")]
    Lost(String),
    /// The server refuses the batch, now and later.
    #[error("the stream cannot be written: {0}")]
    Refused(String),
}

/// Why a producer gave up.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    /// The server refuses the entries.
    #[error(transparent)]
    Refused(#[from] WireError),
    /// The caller asked to stop before everything was written.
    #[error("stopped before everything was written")]
    Stopped,
}

/// A connection that appends entries to the producer's stream.
pub trait Wire {
    /// Appends all entries of the batch in order, or none of them, and returns the id of the last one.
    ///
    /// # Errors
    /// If it is not confirmed that they were appended.
    fn append(&mut self, batch: &Batch<'_>) -> Result<EntryId, WireError>;
}

/// Opens connections for a producer.
pub trait Wires {
    /// The type of the connections.
    type Wire: Wire;

    /// Opens a connection.
    ///
    /// # Errors
    /// If none can be opened now, or ever.
    fn connect(&mut self) -> Result<Self::Wire, WireError>;
}

/// Writes one stream.
#[derive(Debug)]
pub struct Producer<W: Wires> {
    wires: W,
    wire: Option<W::Wire>,
    backoff: Backoff,
    /// No call contacts Redis after a failure before this time.
    retry_at: Option<Instant>,
    /// Unconfirmed entries: at most a batch and the entries that one call adds.
    pending: Vec<Record>,
    pending_bytes: usize,
    /// How many of them were sent and not confirmed: these are sent again unchanged.
    sent: Option<usize>,
    /// The newest confirmed entry.
    last: Option<EntryId>,
    /// Where batches end in `pending`. A batch ends where a generation begins: if the end of one generation were
    /// repeated after the beginning of the next, readers would take it for the end of that one. A batch also ends
    /// after the `start` of raw entries, so that the id of an entry is known after which to search for them.
    cuts: VecDeque<usize>,
    generation: Generation,
}

impl<W: Wires> Producer<W> {
    /// A producer over `wires`; it connects when there is something to write.
    pub fn new(wires: W) -> Self {
        Self {
            wires,
            wire: None,
            backoff: Backoff::new(PAUSE_MIN, PAUSE_MAX, now_us()),
            retry_at: None,
            pending: Vec::new(),
            pending_bytes: 0,
            sent: None,
            last: None,
            cuts: VecDeque::new(),
            generation: Generation::new(format!("{:x}-{:x}", now_us(), std::process::id())),
        }
    }

    /// The state of the generations written.
    pub const fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Sets the id of the next generation.
    pub fn name_next(&mut self, id: impl Into<String>) {
        self.generation.name_next(id);
    }

    /// Adds an entry that `compose` creates from the generation and the time (µs since 1970).
    pub fn push(&mut self, compose: impl FnOnce(&mut Generation, u64) -> String) {
        let begun = self.generation.begun();
        let entry = compose(&mut self.generation, now_us());
        self.add([Record::native(entry)], begun);
    }

    /// Adds a native object from elsewhere.
    pub fn push_object(&mut self, object: &jsonl::Object<'_>) {
        let begun = self.generation.begun();
        let entries = self.generation.object(object, now_us());
        self.add(entries.into_iter().map(Record::native), begun);
    }

    /// Adds a provider's raw event, with the meaning that [`raw::Story`] returned.
    pub fn push_raw(&mut self, record: Record, meaning: raw::Meaning) {
        let begun = self.generation.begun();
        let start = self.generation.raw(meaning, now_us());
        let begins = start.is_some();
        self.add(start.map(Record::native), begun);
        if begins {
            self.cuts.push_back(self.pending.len());
        }
        self.add([record], self.generation.begun());
    }

    /// Whether a batch is full, so that [`Producer::flush`] should be called before more is added.
    pub const fn is_full(&self) -> bool {
        self.pending.len() >= BATCH_ENTRIES_MAX || self.pending_bytes >= BATCH_BYTES_MAX
    }

    /// Whether nothing waits to be written.
    pub const fn is_flushed(&self) -> bool {
        self.pending.is_empty()
    }

    /// Writes everything that was added, and reconnects to Redis as often as necessary. After a failure there is a
    /// pause that grows from 50 ms to 5 s and also applies to later calls.
    ///
    /// # Errors
    /// If Redis refuses permanently, or `stop` returns true first. Unconfirmed entries are kept.
    pub fn flush(&mut self, mut stop: impl FnMut() -> bool) -> Result<(), ProduceError> {
        while !self.pending.is_empty() {
            let pause = self.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
            if pause.is_some_and(|pause| !sleep_unless(pause, &mut stop)) {
                return Err(ProduceError::Stopped);
            }
            match self.write() {
                Ok(last) => {
                    self.retry_at = None;
                    self.backoff.reset();
                    self.confirm(last);
                }
                Err(refused @ WireError::Refused(_)) => return Err(refused.into()),
                Err(WireError::Lost(reason)) => {
                    self.wire = None;
                    let pause = self.backoff.next();
                    self.retry_at = Some(Instant::now() + pause);
                    warn_limited!(reason, ?pause, "writing again after a pause");
                }
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<EntryId, WireError> {
        let wire = match &mut self.wire {
            Some(wire) => wire,
            none => none.insert(self.wires.connect()?),
        };
        let end = self.cuts.front().copied().unwrap_or(self.pending.len());
        let (end, repeats_after) = self.sent.map_or((end, None), |sent| (sent, self.last));
        self.sent = Some(end);
        wire.append(&Batch { records: &self.pending[..end], repeats_after })
    }

    /// Records that the batch of [`Producer::write`] was written.
    fn confirm(&mut self, last: EntryId) {
        let end = self.sent.take().unwrap_or(0);
        self.last = Some(last);
        self.pending_bytes -= self.pending.drain(..end).map(|record| record.json.len()).sum::<usize>();
        self.cuts.iter_mut().for_each(|cut| *cut -= end);
        if self.cuts.front() == Some(&0) {
            self.cuts.pop_front();
        }
    }

    /// Adds entries; `begun` generations had begun before.
    fn add(&mut self, records: impl IntoIterator<Item = Record>, begun: u32) {
        if self.generation.begun() != begun && !self.pending.is_empty() {
            self.cuts.push_back(self.pending.len());
        }
        for record in records {
            self.pending_bytes += record.json.len();
            self.pending.push(record);
        }
    }
}

/// Sleeps for `pause`; false if `stop` ended the sleep.
pub fn sleep_unless(pause: Duration, mut stop: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + pause;
    loop {
        if stop() {
            return false;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(STOP_CHECK));
    }
}

/// This host's clock, µs since 1970.
fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// The result of one scripted append.
    enum Step {
        Confirm,
        /// The entries are written, but the confirmation is lost.
        WriteAndLose,
        Lose,
        Refuse,
    }

    #[derive(Default)]
    struct Script {
        steps: VecDeque<Step>,
        stream: Vec<Record>,
        /// After which entry each batch was searched for.
        looks: Vec<Option<EntryId>>,
        connects: usize,
    }

    #[derive(Clone, Default)]
    struct Scripted(Rc<RefCell<Script>>);

    impl Wires for Scripted {
        type Wire = Self;

        fn connect(&mut self) -> Result<Self, WireError> {
            self.0.borrow_mut().connects += 1;
            Ok(self.clone())
        }
    }

    impl Wire for Scripted {
        fn append(&mut self, batch: &Batch<'_>) -> Result<EntryId, WireError> {
            let mut script = self.0.borrow_mut();
            let step = script.steps.pop_front().unwrap_or(Step::Confirm);
            script.looks.push(batch.look_after());
            if matches!(step, Step::Confirm | Step::WriteAndLose) {
                script.stream.extend_from_slice(batch.records);
            }
            match step {
                Step::Confirm => Ok(EntryId::new(script.stream.len() as u64, 0)),
                Step::Refuse => Err(WireError::Refused("WRONGTYPE".into())),
                Step::Lose | Step::WriteAndLose => Err(WireError::Lost("gone".into())),
            }
        }
    }

    fn seqs(script: &Script) -> Vec<u64> {
        let seq = |record: &Record| {
            serde_json::from_str::<serde_json::Value>(&record.json).unwrap()["seq"].as_u64()
        };
        script.stream.iter().map(|record| seq(record).unwrap()).collect()
    }

    #[test]
    fn unconfirmed_entries_are_repeated_with_their_numbers() {
        let wires = Scripted::default();
        wires.0.borrow_mut().steps = [Step::Confirm, Step::WriteAndLose, Step::Lose].into();
        let mut producer = Producer::new(wires.clone());
        producer.push(Generation::start);
        producer.flush(|| false).unwrap();
        producer.push(|generation, ts| generation.text("a", ts));
        producer.push(|generation, ts| generation.text("b", ts));
        producer.flush(|| false).unwrap();
        producer.push(|generation, ts| generation.end("stop", ts));
        producer.flush(|| false).unwrap();
        let script = wires.0.borrow();
        assert_eq!(seqs(&script), [0, 1, 2, 1, 2, 3]);
        assert_eq!(script.connects, 3);
    }

    #[test]
    fn a_repeated_batch_never_reaches_into_the_next_generation() {
        let wires = Scripted::default();
        wires.0.borrow_mut().steps = [Step::WriteAndLose, Step::Confirm, Step::WriteAndLose].into();
        let mut producer = Producer::new(wires.clone());
        for _ in 0..2 {
            producer.push(Generation::start);
            producer.push(|generation, ts| generation.text("a", ts));
            producer.push(|generation, ts| generation.end("stop", ts));
        }
        producer.flush(|| false).unwrap();
        assert_eq!(seqs(&wires.0.borrow()), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
        assert_eq!(producer.pending_bytes, 0);
    }

    #[test]
    fn a_refusal_ends_it_and_a_stop_keeps_what_is_pending() {
        let wires = Scripted::default();
        wires.0.borrow_mut().steps = [Step::Lose, Step::Refuse].into();
        let mut producer = Producer::new(wires.clone());
        producer.push(Generation::start);
        assert!(matches!(producer.flush(|| true), Err(ProduceError::Stopped)));
        assert!(matches!(producer.flush(|| false), Err(ProduceError::Refused(_))));
        producer.flush(|| false).unwrap();
        assert_eq!(seqs(&wires.0.borrow()), [0]);
    }

    #[test]
    fn raw_entries_are_looked_for_before_they_are_repeated() {
        let wires = Scripted::default();
        wires.0.borrow_mut().steps = [Step::Lose, Step::Confirm, Step::WriteAndLose].into();
        let mut producer = Producer::new(wires.clone());
        producer.name_next("mine");
        let raw = |json: &str| Record { form: Form::OpenAi, json: json.into() };
        producer.push_raw(raw("{}"), raw::Meaning::Content);
        producer.flush(|| false).unwrap();
        producer.push_raw(raw("[DONE]"), raw::Meaning::Terminal);
        assert!(!producer.generation().is_open());
        producer.flush(|| false).unwrap();
        let script = wires.0.borrow();
        // The start, lost and repeated; the entry, written twice because this wire does not search; the end.
        assert_eq!(script.looks, [None, None, None, Some(EntryId::new(1, 0)), None]);
        assert!(
            script.stream[0].json.contains(r#""generation":"mine""#)
                && !script.stream[0].json.contains("seq")
        );
        let forms: Vec<_> = script.stream.iter().map(|record| record.form).collect();
        assert_eq!(forms, [Form::Native, Form::OpenAi, Form::OpenAi, Form::OpenAi]);
    }

    #[test]
    fn a_batch_is_bounded_by_count_and_bytes() {
        let mut producer = Producer::new(Scripted::default());
        producer.push(|generation, ts| generation.text(&"x".repeat(BATCH_BYTES_MAX), ts));
        assert!(producer.is_full());
        producer.flush(|| false).unwrap();
        assert!(!producer.is_full());
        for _ in 0..BATCH_ENTRIES_MAX {
            producer.push(Generation::heartbeat);
        }
        assert!(producer.is_full());
    }
}
