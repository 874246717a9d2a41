//! A producer that runs beside its program: every call goes into a bounded queue, and a thread writes the entries in
//! batches.
//!
//! | bound | value | behaviour there |
//! | --- | --- | --- |
//! | a batch's time | [`Batching::linger`] after its first entry | it is written |
//! | a batch's size | 256 entries, 1 MiB | it is written, without waiting for its time |
//! | the queue | [`Batching::queue_entries`], [`Batching::queue_bytes`] | the caller waits for room |
//! | that wait | [`Batching::room_wait`] | [`WriterError::Full`]: the call had no effect, the caller may repeat it |
//! | Redis away | | the batch is repeated after pauses from 50 ms to 5 s; the queue fills up meanwhile |
//! | Redis refuses | | [`WriterError::Failed`], now and ever after: another try cannot help |
//! | silence | 10 s within a generation | a heartbeat |
//!
//! Every accepted entry is written at least once, in order, and every reader sees it once, because a repetition has
//! the same `seq`. An entry is lost only if the program dies, or if [`Writer::finish`] gets less time than Redis
//! needs. The queue's gauge counts every refusal ([`Writer::gauge`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::{Cancels, Generation, ProduceError, Producer, Wires};
use crate::queue::{self, Gauge, GaugeReader, Receiver, SendError, Sender, Weight};
use crate::thread::{self, Ended, Handle};

/// Silence after which a heartbeat is written.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
/// The longest time between two checks for requests to cancel.
const SLICE: Duration = Duration::from_millis(20);

/// How a writer collects entries into batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// How long the first entry of a batch waits for others. Zero: a batch takes only entries that are in the queue
    /// already.
    pub linger: Duration,
    /// The most entries that wait to be written.
    pub queue_entries: usize,
    /// The most bytes that wait to be written.
    pub queue_bytes: usize,
    /// How long a caller waits for room.
    pub room_wait: Duration,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            linger: Duration::from_millis(5),
            queue_entries: 4_096,
            queue_bytes: 4 * 1024 * 1024,
            room_wait: Duration::from_secs(30),
        }
    }
}

/// Why a call was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriterError {
    /// There was no room for too long: Redis is down, or too slow.
    #[error("the queue towards Redis stayed full; Redis is down or too slow")]
    Full,
    /// A viewer asked to stop: the generation has ended. The next one may begin.
    #[error("a viewer asked to stop")]
    Cancelled,
    /// Redis refused earlier entries, or the writer has ended.
    #[error("{0}")]
    Failed(String),
}

/// A call, as it is queued for the thread.
enum Word {
    Begin(Option<String>),
    Text { channel: String, text: String },
    End { finish_reason: String, usage: Option<Map<String, Value>> },
    Error { code: String, message: String },
}

impl Word {
    fn len(&self) -> usize {
        match self {
            Self::Begin(id) => id.as_ref().map_or(0, String::len),
            Self::Text { text, .. } => text.len(),
            Self::End { finish_reason, .. } => finish_reason.len(),
            Self::Error { message, .. } => message.len(),
        }
    }
}

/// The state that caller and thread share.
#[derive(Default)]
struct Shared {
    is_cancelled: AtomicBool,
    /// No more entries will be added.
    is_over: AtomicBool,
    /// The thread has to end without waiting.
    give_up: AtomicBool,
    failure: Mutex<Option<String>>,
}

/// Writes generations to one stream.
pub struct Writer {
    words: Option<Sender<Word>>,
    gauge: GaugeReader,
    room_wait: Duration,
    shared: Arc<Shared>,
    thread: Option<Handle>,
    _ended: Receiver<Ended>,
}

impl Writer {
    /// A writer over `wires`; `cancels` reports requests of viewers to stop.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start<W, C>(wires: W, cancels: C, batching: Batching) -> std::io::Result<Self>
    where
        W: Wires + Send + 'static,
        C: Cancels + Send + 'static,
    {
        let weight = Weight { bytes_max: batching.queue_bytes, weigh: Word::len };
        let (words, inbox) = queue::weighed("writer", batching.queue_entries, weight, None);
        let (ended, reports) = queue::bounded("writer-ended", 1);
        let shared = Arc::<Shared>::default();
        let ours = Arc::clone(&shared);
        let gauge = words.gauge();
        let thread = thread::spawn("writer", &ended, move || {
            let producer = Producer::new(wires);
            let (linger, written_at) = (batching.linger, Instant::now());
            let mut pen = Pen { producer, cancels, inbox, linger, written_at, shared: ours };
            if let Err(error) = pen.run() {
                tracing::error!(%error, "a stream cannot be written");
                *pen.shared.failure.lock() = Some(error.to_string());
            }
        })?;
        let (words, thread) = (Some(words), Some(thread));
        Ok(Self { words, gauge, room_wait: batching.room_wait, shared, thread, _ended: reports })
    }

    /// Begins a generation, with an id of the caller's choice or of the writer's.
    ///
    /// # Errors
    /// [`WriterError::Full`] or [`WriterError::Failed`].
    pub fn begin(&self, generation: Option<&str>) -> Result<(), WriterError> {
        self.send(Word::Begin(generation.map(ToOwned::to_owned)))
    }

    /// Adds text on the `content` channel.
    ///
    /// # Errors
    /// [`WriterError`].
    pub fn text(&self, text: impl Into<String>) -> Result<(), WriterError> {
        self.text_on("content", text)
    }

    /// Adds text on a channel, such as `reasoning`.
    ///
    /// # Errors
    /// [`WriterError`].
    pub fn text_on(&self, channel: &str, text: impl Into<String>) -> Result<(), WriterError> {
        self.go_on()?;
        self.send(Word::Text { channel: channel.to_owned(), text: text.into() })
    }

    /// Ends the generation.
    ///
    /// # Errors
    /// [`WriterError`].
    pub fn end(&self, finish_reason: &str, usage: Option<Map<String, Value>>) -> Result<(), WriterError> {
        self.go_on()?;
        self.send(Word::End { finish_reason: finish_reason.to_owned(), usage })
    }

    /// Ends the generation with an error.
    ///
    /// # Errors
    /// [`WriterError`].
    pub fn error(&self, code: &str, message: &str) -> Result<(), WriterError> {
        self.go_on()?;
        self.send(Word::Error { code: code.to_owned(), message: message.to_owned() })
    }

    /// Whether a viewer asked to stop the newest generation.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.shared.is_cancelled.load(Ordering::Acquire)
    }

    /// The state of the queue.
    #[must_use]
    pub fn gauge(&self) -> Gauge {
        self.gauge.read()
    }

    /// Waits until everything is written, for at most `patience`.
    ///
    /// # Errors
    /// [`WriterError::Failed`] if it is not.
    pub fn finish(mut self, patience: Duration) -> Result<(), WriterError> {
        self.shared.is_over.store(true, Ordering::Release);
        self.words = None;
        let until = Instant::now() + patience;
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.leave();
        self.failure().map_or(Ok(()), Err)
    }

    fn leave(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.shared.give_up.store(true, Ordering::Release);
        self.words = None;
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }

    fn go_on(&self) -> Result<(), WriterError> {
        if self.is_cancelled() { Err(WriterError::Cancelled) } else { Ok(()) }
    }

    fn send(&self, word: Word) -> Result<(), WriterError> {
        let closed = || WriterError::Failed("the writer has ended".to_owned());
        let words = self.words.as_ref().ok_or_else(closed)?;
        match words.send_timeout(word, self.room_wait) {
            Ok(()) => Ok(()),
            Err(SendError::Full(_)) => Err(self.failure().unwrap_or(WriterError::Full)),
            Err(SendError::Closed(_)) => Err(self.failure().unwrap_or_else(closed)),
        }
    }

    fn failure(&self) -> Option<WriterError> {
        self.shared.failure.lock().clone().map(WriterError::Failed)
    }
}

/// Abandons the entries that are not written yet, without waiting.
impl Drop for Writer {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The thread's side.
struct Pen<W: Wires, C: Cancels> {
    producer: Producer<W>,
    cancels: C,
    inbox: Receiver<Word>,
    linger: Duration,
    written_at: Instant,
    shared: Arc<Shared>,
}

impl<W: Wires, C: Cancels> Pen<W, C> {
    fn run(&mut self) -> Result<(), ProduceError> {
        loop {
            let word = self.inbox.recv_timeout(SLICE);
            self.look_for_cancel()?;
            match word {
                Some(word) => self.gather(word)?,
                None if self.shared.is_over.load(Ordering::Acquire) && self.inbox.is_empty() => return Ok(()),
                None => self.beat()?,
            }
        }
    }

    /// Collects a batch that begins with `word`, and writes it.
    fn gather(&mut self, word: Word) -> Result<(), ProduceError> {
        let until = Instant::now() + self.linger;
        self.push(word);
        while !self.producer.is_full() {
            let left = until.saturating_duration_since(Instant::now());
            let is_over = self.shared.is_over.load(Ordering::Acquire);
            let word =
                if left.is_zero() || is_over { self.inbox.try_recv() } else { self.inbox.recv_timeout(left) };
            let Some(word) = word else { break };
            self.push(word);
        }
        self.flush()
    }

    fn push(&mut self, word: Word) {
        let is_cancelled = self.shared.is_cancelled.load(Ordering::Acquire);
        match word {
            Word::Begin(id) => {
                self.shared.is_cancelled.store(false, Ordering::Release);
                if let Some(id) = id {
                    self.producer.name_next(id);
                }
                self.producer.push(Generation::start);
            }
            // Queued before the caller could know of the cancellation.
            _ if is_cancelled => {}
            Word::Text { channel, text } => {
                self.producer.push(|generation, ts| generation.text_on(&channel, &text, ts));
            }
            Word::End { finish_reason, usage } => {
                self.producer.push(|generation, ts| generation.end_with(&finish_reason, usage.as_ref(), ts));
            }
            Word::Error { code, message } => {
                self.producer.push(|generation, ts| generation.error(&code, &message, ts));
            }
        }
    }

    fn look_for_cancel(&mut self) -> Result<(), ProduceError> {
        let request = self.cancels.requested(Instant::now());
        if request.is_none() || !self.producer.generation().is_open() {
            return Ok(());
        }
        self.shared.is_cancelled.store(true, Ordering::Release);
        self.producer.push(|generation, ts| generation.end("cancelled", ts));
        self.flush()
    }

    fn beat(&mut self) -> Result<(), ProduceError> {
        if self.producer.generation().is_open() && self.written_at.elapsed() >= HEARTBEAT_EVERY {
            self.producer.push(Generation::heartbeat);
            return self.flush();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ProduceError> {
        let shared = Arc::clone(&self.shared);
        self.producer.flush(|| shared.give_up.load(Ordering::Acquire))?;
        self.written_at = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::super::{Batch, CancelRequest, NoCancels, Wire, WireError};
    use super::*;
    use crate::model::EntryId;

    /// A stream that several threads may read; it is down until a test changes that.
    #[derive(Clone, Default)]
    struct Stream {
        batches: Arc<Mutex<Vec<Vec<String>>>>,
        is_away: Arc<AtomicBool>,
        connects: Arc<AtomicUsize>,
    }

    impl Stream {
        fn away() -> Self {
            let stream = Self::default();
            stream.is_away.store(true, Ordering::Release);
            stream
        }

        fn kinds(&self) -> Vec<String> {
            let kind = |json: &String| {
                let object: Value = serde_json::from_str(json).unwrap();
                object["type"].as_str().unwrap().to_owned()
            };
            self.batches.lock().iter().flatten().map(kind).collect()
        }
    }

    impl Wires for Stream {
        type Wire = Self;

        fn connect(&mut self) -> Result<Self, WireError> {
            self.connects.fetch_add(1, Ordering::AcqRel);
            match self.is_away.load(Ordering::Acquire) {
                true => Err(WireError::Lost("away".into())),
                false => Ok(self.clone()),
            }
        }
    }

    impl Wire for Stream {
        fn append(&mut self, batch: &Batch<'_>) -> Result<EntryId, WireError> {
            let records = batch.records.iter().map(|record| record.json.clone()).collect();
            self.batches.lock().push(records);
            Ok(EntryId::new(1, 0))
        }
    }

    #[test]
    fn entries_within_the_linger_are_one_batch() {
        let stream = Stream::default();
        let batching = Batching { linger: Duration::from_secs(600), ..Batching::default() };
        let writer = Writer::start(stream.clone(), NoCancels, batching).unwrap();
        writer.begin(Some("g")).unwrap();
        for number in 0..100 {
            writer.text(number.to_string()).unwrap();
        }
        writer.end("stop", None).unwrap();
        // The end of the input ends the wait too.
        writer.finish(Duration::from_secs(60)).unwrap();
        assert_eq!((stream.kinds().len(), stream.batches.lock().len()), (102, 1));
    }

    #[test]
    fn at_the_limit_the_caller_waits_and_gets_an_error() {
        let stream = Stream::away();
        let batching =
            Batching { queue_entries: 4, room_wait: Duration::from_millis(1), ..Batching::default() };
        let writer = Writer::start(stream.clone(), NoCancels, batching).unwrap();
        writer.begin(None).unwrap();
        let (mut taken, mut refused) = (0, 0);
        // The thread may still take some entries into its first batch.
        while refused < 3 {
            match writer.text("x") {
                Ok(()) => taken += 1,
                Err(error) => {
                    assert_eq!(error, WriterError::Full);
                    refused += 1;
                }
            }
        }
        assert!(writer.gauge().refused >= 3);
        stream.is_away.store(false, Ordering::Release);
        // No accepted entry is lost.
        writer.finish(Duration::from_secs(60)).unwrap();
        assert_eq!(stream.kinds().len(), 1 + taken);
    }

    #[test]
    fn entries_that_cannot_be_written_in_time_are_an_error() {
        let writer = Writer::start(Stream::away(), NoCancels, Batching::default()).unwrap();
        writer.begin(None).unwrap();
        assert!(matches!(writer.finish(Duration::from_millis(20)), Err(WriterError::Failed(_))));
    }

    struct OnceSent(Arc<AtomicBool>);

    impl Cancels for OnceSent {
        fn requested(&mut self, _: Instant) -> Option<CancelRequest> {
            self.0.swap(false, Ordering::AcqRel).then(CancelRequest::default)
        }

        fn raw_fd(&self) -> Option<std::os::fd::RawFd> {
            None
        }
    }

    #[test]
    fn a_cancelled_generation_accepts_no_more_and_the_next_one_does() {
        let stream = Stream::default();
        let is_sent = Arc::new(AtomicBool::new(false));
        let writer =
            Writer::start(stream.clone(), OnceSent(Arc::clone(&is_sent)), Batching::default()).unwrap();
        writer.begin(None).unwrap();
        while stream.kinds().is_empty() {
            std::thread::yield_now();
        }
        is_sent.store(true, Ordering::Release);
        while !writer.is_cancelled() {
            std::thread::yield_now();
        }
        assert_eq!(writer.text("x"), Err(WriterError::Cancelled));
        writer.begin(None).unwrap();
        while writer.is_cancelled() {
            std::thread::yield_now();
        }
        writer.text("y").unwrap();
        writer.end("stop", None).unwrap();
        writer.finish(Duration::from_secs(60)).unwrap();
        assert_eq!(stream.kinds(), ["start", "end", "start", "delta", "end"]);
    }
}
