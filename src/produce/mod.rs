//! Writing a stream: what `llm-bridge produce` and programs of this crate use to be good producers.
//!
//! A [`Producer`] is blocking and small: what it is told becomes entries, entries are written in
//! batches, each batch in one round trip and whole or not at all. When Redis goes away it comes back
//! with growing pauses and repeats the batch that was not confirmed; `seq` makes the repetition
//! invisible to readers. While it waits it takes nothing new, so its memory is bounded by one batch.
//!
//! Left out: provider formats, and reading the control stream for cancel requests.

pub mod chunk;
mod generation;
pub mod jsonl;
#[cfg(test)]
pub(crate) mod testing;
mod wire;

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use generation::Generation;
pub use wire::{RedisWire, RedisWires};

use crate::redis::Backoff;

/// Entries after which a batch is written even if more is at hand.
const BATCH_ENTRIES_MAX: usize = 256;
/// Bytes after which a batch is written even if more is at hand.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// The first pause after a lost connection.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often a waiting producer looks whether it should stop.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// Why a batch could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection or the server is not well; the same batch may succeed later.
    #[error("Redis cannot be reached: {0}")]
    Lost(String),
    /// The server will not take it, now or later.
    #[error("Redis refuses to write the stream: {0}")]
    Refused(String),
}

/// Why a producer gave up.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    /// The server will not take the entries.
    #[error(transparent)]
    Refused(#[from] WireError),
    /// The caller asked to stop before everything was written.
    #[error("stopped before everything was written")]
    Stopped,
}

/// A connection that appends entries to the producer's stream.
pub trait Wire {
    /// Appends all `entries` in order, or none of them.
    ///
    /// # Errors
    /// When it is not confirmed that they were appended.
    fn append(&mut self, entries: &[String]) -> Result<(), WireError>;
}

/// Where connections come from.
pub trait Wires {
    /// What they give.
    type Wire: Wire;

    /// A new connection.
    ///
    /// # Errors
    /// When there is none now, or never will be.
    fn connect(&mut self) -> Result<Self::Wire, WireError>;
}

/// Writes one stream.
#[derive(Debug)]
pub struct Producer<W: Wires> {
    wires: W,
    wire: Option<W::Wire>,
    backoff: Backoff,
    /// Entries that are not confirmed yet; at most a batch and what one call adds to it.
    pending: Vec<String>,
    pending_bytes: usize,
    /// Where in `pending` generations begin, but for the first entry. A batch ends there: repeated as a whole
    /// behind the beginning of the next generation, the end of the former one would pass for that one's.
    begins: VecDeque<usize>,
    generation: Generation,
}

impl<W: Wires> Producer<W> {
    /// A producer over `wires`; it connects when it has something to write.
    pub fn new(wires: W) -> Self {
        Self {
            wires,
            wire: None,
            backoff: Backoff::new(PAUSE_MIN, PAUSE_MAX, now_us()),
            pending: Vec::new(),
            pending_bytes: 0,
            begins: VecDeque::new(),
            generation: Generation::new(format!("{:x}-{:x}", now_us(), std::process::id())),
        }
    }

    /// The generations that were written, for a look at their state.
    pub const fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Adds an entry that `compose` makes of the generation and the time (µs since 1970).
    pub fn say(&mut self, compose: impl FnOnce(&mut Generation, u64) -> String) {
        let begun = self.generation.begun();
        let entry = compose(&mut self.generation, now_us());
        self.add([entry], begun);
    }

    /// Adds a native object from elsewhere.
    pub fn pass_on(&mut self, object: &jsonl::Object<'_>) {
        let begun = self.generation.begun();
        let entries = self.generation.object(object, now_us());
        self.add(entries, begun);
    }

    /// Whether a batch is full, so that [`Producer::flush`] should come before more is added.
    pub const fn is_full(&self) -> bool {
        self.pending.len() >= BATCH_ENTRIES_MAX || self.pending_bytes >= BATCH_BYTES_MAX
    }

    /// Writes everything that was added, however often Redis has to be reconnected for it.
    ///
    /// # Errors
    /// When Redis refuses for good, or `stop` says so first. What was not confirmed is kept.
    pub fn flush(&mut self, mut stop: impl FnMut() -> bool) -> Result<(), ProduceError> {
        while !self.pending.is_empty() {
            match self.write() {
                Ok(()) => {
                    self.backoff.reset();
                    self.confirm();
                }
                Err(refused @ WireError::Refused(_)) => return Err(refused.into()),
                Err(WireError::Lost(reason)) => {
                    self.wire = None;
                    let pause = self.backoff.next();
                    tracing::warn!(reason, ?pause, "writing again after a pause");
                    if !sleep_unless(pause, &mut stop) {
                        return Err(ProduceError::Stopped);
                    }
                }
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), WireError> {
        let wire = match &mut self.wire {
            Some(wire) => wire,
            none => none.insert(self.wires.connect()?),
        };
        let end = self.begins.front().copied().unwrap_or(self.pending.len());
        wire.append(&self.pending[..end])
    }

    /// The batch that [`Producer::write`] wrote is there.
    fn confirm(&mut self) {
        let end = self.begins.pop_front().unwrap_or(self.pending.len());
        self.pending_bytes -= self.pending.drain(..end).map(|entry| entry.len()).sum::<usize>();
        self.begins.iter_mut().for_each(|begin| *begin -= end);
    }

    /// Adds entries, before which `begun` generations were begun.
    fn add(&mut self, entries: impl IntoIterator<Item = String>, begun: u32) {
        if self.generation.begun() != begun && !self.pending.is_empty() {
            self.begins.push_back(self.pending.len());
        }
        for entry in entries {
            self.pending_bytes += entry.len();
            self.pending.push(entry);
        }
    }
}

/// Sleeps for `pause`; false when `stop` ended it.
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

    /// What a scripted append does.
    enum Step {
        Confirm,
        /// The entries are there, the confirmation is not.
        WriteAndLose,
        Lose,
        Refuse,
    }

    #[derive(Default)]
    struct Script {
        steps: VecDeque<Step>,
        stream: Vec<String>,
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
        fn append(&mut self, entries: &[String]) -> Result<(), WireError> {
            let mut script = self.0.borrow_mut();
            let step = script.steps.pop_front().unwrap_or(Step::Confirm);
            if matches!(step, Step::Confirm | Step::WriteAndLose) {
                script.stream.extend_from_slice(entries);
            }
            match step {
                Step::Confirm => Ok(()),
                Step::Refuse => Err(WireError::Refused("WRONGTYPE".into())),
                Step::Lose | Step::WriteAndLose => Err(WireError::Lost("gone".into())),
            }
        }
    }

    fn seqs(script: &Script) -> Vec<u64> {
        let seq = |text: &String| serde_json::from_str::<serde_json::Value>(text).unwrap()["seq"].as_u64();
        script.stream.iter().map(|text| seq(text).unwrap()).collect()
    }

    #[test]
    fn what_was_not_confirmed_is_repeated_with_its_numbers() {
        let wires = Scripted::default();
        wires.0.borrow_mut().steps = [Step::Confirm, Step::WriteAndLose, Step::Lose].into();
        let mut producer = Producer::new(wires.clone());
        producer.say(Generation::start);
        producer.flush(|| false).unwrap();
        producer.say(|generation, ts| generation.text("a", ts));
        producer.say(|generation, ts| generation.text("b", ts));
        producer.flush(|| false).unwrap();
        producer.say(|generation, ts| generation.end("stop", ts));
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
            producer.say(Generation::start);
            producer.say(|generation, ts| generation.text("a", ts));
            producer.say(|generation, ts| generation.end("stop", ts));
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
        producer.say(Generation::start);
        assert!(matches!(producer.flush(|| true), Err(ProduceError::Stopped)));
        assert!(matches!(producer.flush(|| false), Err(ProduceError::Refused(_))));
        producer.flush(|| false).unwrap();
        assert_eq!(seqs(&wires.0.borrow()), [0]);
    }

    #[test]
    fn a_batch_is_bounded_by_count_and_bytes() {
        let mut producer = Producer::new(Scripted::default());
        producer.say(|generation, ts| generation.text(&"x".repeat(BATCH_BYTES_MAX), ts));
        assert!(producer.is_full());
        producer.flush(|| false).unwrap();
        assert!(!producer.is_full());
        for _ in 0..BATCH_ENTRIES_MAX {
            producer.say(Generation::heartbeat);
        }
        assert!(producer.is_full());
    }
}
