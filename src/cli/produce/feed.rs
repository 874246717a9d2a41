//! Reads stdin into a producer: text, native lines, or a provider's event stream.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::input::{Lines, Pace, wait_readable};
use crate::cli::CliError;
use crate::produce::chunk::{Utf8Chunks, tokens};
use crate::produce::events::{ExpectedForm, ProviderEvent, ProviderEvents};
use crate::produce::raw::{Meaning, Story};
use crate::produce::sse::SseError;
use crate::produce::{
    CancelRequest, Cancels, Failure, Form, Generation, ProduceError, Producer, Wires, jsonl, sleep_unless,
};

/// The most bytes read from stdin at once.
const READ_BYTES: usize = 16 * 1024;
/// After how much silence a heartbeat is written, by default.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
/// The longest wait for stdin before signals are checked again.
const WAIT_MAX: Duration = Duration::from_millis(200);
/// How long after the end of a pipe to wait for the signal that may have ended its writer.
const LAST_LOOK: Duration = Duration::from_millis(50);
/// How long a stopping producer tries to write its last entry.
const FAREWELL: Duration = Duration::from_secs(5);

/// The form of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum From {
    /// Text as it comes.
    Text,
    /// One native object a line.
    Jsonl,
    /// Server-Sent Events of an OpenAI-compatible server, as `curl -N` prints them.
    Openai,
    /// Server-Sent Events of Anthropic's Messages.
    Anthropic,
}

impl From {
    /// The form of a server's events.
    ///
    /// # Errors
    /// When it is none that a server sends.
    pub(super) fn form(self) -> Result<Form, CliError> {
        match self {
            Self::Openai => Ok(Form::OpenAi),
            Self::Anthropic => Ok(Form::Anthropic),
            Self::Text | Self::Jsonl => {
                Err(CliError::Usage("with --url, --from is `openai` or `anthropic`".to_owned()))
            }
        }
    }
}

/// Why the input was not read to its end.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error("stdin broke: {0}")]
    Input(#[from] std::io::Error),
    #[error("line {number}: {error}")]
    Line { number: u64, error: jsonl::LineError },
    #[error("after {events} events: {error}")]
    Sse { events: u64, error: SseError },
    #[error("stdin is not an event stream: {0}")]
    NoEvents(String),
    #[error("stdin has no object: nothing came")]
    NoObjects,
    #[error("the input ended in the middle of an answer")]
    CutOff,
    #[error("a viewer asked to stop")]
    Cancelled,
    #[error("the producer was interrupted")]
    Interrupted,
    #[error(transparent)]
    Produce(#[from] ProduceError),
}

impl FeedError {
    /// The code of the `error` entry that viewers get.
    const fn code(&self) -> &'static str {
        match self {
            Self::CutOff => "upstream_broke_off",
            Self::Sse { .. } | Self::NoEvents(_) | Self::NoObjects => "upstream_malformed",
            _ => "producer_failed",
        }
    }

    /// Whether viewers get the error even if no generation has begun: they may wait for a requested answer.
    const fn is_answer(&self) -> bool {
        matches!(self, Self::NoEvents(_) | Self::NoObjects | Self::Sse { events: 0, .. } | Self::Line { .. })
    }
}

/// The parser of the input.
enum Format {
    Text(Utf8Chunks),
    Jsonl(Lines),
    Raw(Box<ProviderEvents>),
}

/// Reads an input into a producer.
pub(super) struct Feed<W: Wires, C: Cancels> {
    producer: Producer<W>,
    format: Format,
    pace: Option<Pace>,
    cancels: C,
    stopping: Arc<AtomicBool>,
    /// Whether an answer has begun.
    has_begun: bool,
    /// A request to stop that came before the first answer.
    early: Option<CancelRequest>,
    heartbeat_every: Duration,
    written_at: Instant,
    /// The newest failure that the input itself reported.
    failed: Option<Failure>,
}

impl<W: Wires, C: Cancels> Feed<W, C> {
    /// A feed for an input of this kind, before anything was read.
    pub(super) fn new(producer: Producer<W>, from: From, cancels: C, stopping: Arc<AtomicBool>) -> Self {
        let raw = |form| Format::Raw(Box::new(ProviderEvents::new(ExpectedForm::Fixed(form))));
        let format = match from {
            From::Text => Format::Text(Utf8Chunks::default()),
            From::Jsonl => Format::Jsonl(Lines::default()),
            From::Openai => raw(Form::OpenAi),
            From::Anthropic => raw(Form::Anthropic),
        };
        let (heartbeat_every, written_at) = (HEARTBEAT_EVERY, Instant::now());
        Self {
            producer,
            format,
            pace: None,
            cancels,
            stopping,
            heartbeat_every,
            written_at,
            failed: None,
            has_begun: false,
            early: None,
        }
    }

    /// Sets after how much silence a heartbeat is written.
    pub(super) const fn beating_every(mut self, time: Duration) -> Self {
        self.heartbeat_every = time;
        self
    }

    /// Limits the rate of tokens (words, lines, events) per second.
    pub(super) fn at_rate(mut self, per_second: Option<u32>) -> Self {
        self.pace = per_second.map(Pace::new);
        self
    }

    /// Reads the input to its end.
    pub(super) fn run(&mut self, input: File) -> Result<(), CliError> {
        let failure = match (self.feed(input), self.failed.take()) {
            (Ok(()), None) => return Ok(()),
            (Ok(()), Some(failure)) => return Err(CliError::Failed(failure.to_string())),
            (Err(failure), _) => failure,
        };
        let refused = matches!(failure, FeedError::Produce(ProduceError::Refused(_)));
        let is_cancelled = matches!(failure, FeedError::Cancelled);
        if failure.is_answer() && !self.producer.generation().is_open() {
            // Events of providers have no numbers, so the entries around them have none either.
            let is_raw = matches!(self.format, Format::Raw(_));
            self.producer.push(if is_raw { Generation::start_unnumbered } else { Generation::start });
        }
        if self.producer.generation().is_open() && !refused {
            if is_cancelled {
                let usage = self.story().and_then(Story::usage);
                self.producer.push(|generation, ts| generation.end_with("cancelled", usage.as_ref(), ts));
            } else {
                let (code, message) = (failure.code(), failure.to_string());
                self.producer.push(|generation, ts| generation.error(code, &message, ts));
            }
            let until = Instant::now() + FAREWELL;
            if let Err(error) = self.producer.flush(|| Instant::now() >= until) {
                tracing::warn!(%error, "the end could not be written to the stream");
                return Err(CliError::Failed(failure.to_string()));
            }
        }
        if is_cancelled { Ok(()) } else { Err(CliError::Failed(failure.to_string())) }
    }

    fn story(&self) -> Option<&Story> {
        match &self.format {
            Format::Raw(events) => Some(events.story()),
            Format::Text(_) | Format::Jsonl(_) => None,
        }
    }

    /// Checks whether to continue.
    fn look_around(&mut self) -> Result<(), FeedError> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(FeedError::Interrupted);
        }
        let request = self.cancels.requested(Instant::now());
        if self.producer.generation().is_open() {
            self.has_begun = true;
        } else if !self.has_begun {
            // A request before the first answer applies to that answer.
            self.early = request.or_else(|| self.early.take());
            return Ok(());
        }
        // A request between two answers applies to neither.
        let request = request.or_else(|| self.early.take());
        match request.filter(|_| self.producer.generation().is_open()) {
            Some(request) => {
                tracing::info!(by = request.by, reason = request.reason, "cancelled");
                Err(FeedError::Cancelled)
            }
            None => Ok(()),
        }
    }

    fn feed(&mut self, mut input: File) -> Result<(), FeedError> {
        let mut buffer = vec![0; READ_BYTES];
        if matches!(self.format, Format::Text(_)) {
            self.producer.push(Generation::start);
            self.flush()?;
        }
        loop {
            self.look_around()?;
            self.check_form()?;
            self.beat()?;
            let wait = self.heartbeat_every.saturating_sub(self.written_at.elapsed()).min(WAIT_MAX);
            if wait_readable(&input, self.cancels.raw_fd(), wait)? {
                match input.read(&mut buffer) {
                    Ok(0) => {
                        self.look_for_signal(&input)?;
                        break;
                    }
                    Ok(len) => self.take(&buffer[..len])?,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        self.look_for_signal(&input)?;
                        return Err(error.into());
                    }
                }
            }
        }
        self.finish()
    }

    /// A signal to a whole pipeline may end the program before this one first, and a terminal that is closed ends the
    /// input before its signal arrives: then the input is not complete.
    fn look_for_signal(&self, input: &File) -> Result<(), FeedError> {
        if !input.metadata().is_ok_and(|input| input.is_file()) {
            thread::sleep(LAST_LOOK);
        }
        if self.stopping.load(Ordering::Relaxed) { Err(FeedError::Interrupted) } else { Ok(()) }
    }

    /// Checks whether the input may still be an event stream, if it should be one.
    fn check_form(&self) -> Result<(), FeedError> {
        match &self.format {
            Format::Raw(events) => {
                events.foreign(Instant::now()).map_or(Ok(()), |came| Err(FeedError::NoEvents(came)))
            }
            Format::Text(_) | Format::Jsonl(_) => Ok(()),
        }
    }

    /// Writes a heartbeat if the stream has been silent for too long, whatever the input sends meanwhile.
    fn beat(&mut self) -> Result<(), FeedError> {
        if self.written_at.elapsed() < self.heartbeat_every {
            return Ok(());
        }
        if self.producer.generation().is_open() {
            self.producer.push(Generation::heartbeat);
        }
        self.written_at = Instant::now();
        self.flush()
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), FeedError> {
        match &mut self.format {
            Format::Text(chunks) => {
                let text = chunks.push(bytes);
                self.write_text(&text)?;
            }
            Format::Jsonl(lines) => {
                lines.push(bytes);
                self.write_lines(false)?;
            }
            Format::Raw(events) => {
                let pushed = events.push(bytes, Instant::now());
                // Events that were complete before the stream became invalid still count.
                self.write_events()?;
                pushed.map_err(|error| self.broken_by(error))?;
            }
        }
        self.flush()
    }

    /// Writes what the end of the input completes, and the `end` entry if the input had none.
    fn finish(&mut self) -> Result<(), FeedError> {
        match &mut self.format {
            Format::Text(chunks) => {
                let rest = chunks.finish();
                self.write_text(&rest)?;
            }
            Format::Jsonl(_) => {
                self.write_lines(true)?;
                if self.producer.generation().is_fresh() {
                    return Err(FeedError::NoObjects);
                }
            }
            Format::Raw(events) => {
                let cut = events.finish();
                if let Some(event) = cut.map_err(|error| self.broken_by(error))? {
                    self.push_event(event)?;
                }
            }
        }
        if let Format::Raw(events) = &self.format
            && let Some(came) = events.came_instead()
        {
            return Err(FeedError::NoEvents(came));
        }
        if self.producer.generation().is_open() {
            let (reason, usage) = match self.story() {
                None => ("stop".to_owned(), None),
                Some(story) => (story.finish_reason().ok_or(FeedError::CutOff)?, story.usage()),
            };
            self.producer.push(|generation, ts| generation.end_with(&reason, usage.as_ref(), ts));
        }
        self.flush()
    }

    fn broken_by(&self, error: SseError) -> FeedError {
        let events = if let Format::Raw(events) = &self.format { events.count() } else { 0 };
        FeedError::Sse { events, error }
    }

    fn write_events(&mut self) -> Result<(), FeedError> {
        while let Format::Raw(events) = &mut self.format
            && let Some(event) = events.next()
        {
            self.push_event(event)?;
        }
        Ok(())
    }

    fn push_event(&mut self, event: ProviderEvent) -> Result<(), FeedError> {
        let (record, meaning) = match event {
            ProviderEvent::Raw(record, meaning) => (record, meaning),
            ProviderEvent::Failed(failure) => {
                if !self.producer.generation().is_open() {
                    self.producer.push(Generation::start_unnumbered);
                }
                let (code, message) = (&*failure.code, &failure.message);
                self.producer.push(|generation, ts| generation.error(code, message, ts));
                self.failed = Some(failure);
                return Ok(());
            }
        };
        self.producer.push_raw(record, meaning);
        if self.producer.is_full() {
            self.flush()?;
        }
        match meaning {
            Meaning::Terminal => {
                // The answers that follow are written nevertheless.
                let failure = self.story().and_then(Story::failure).cloned();
                self.failed = failure.or_else(|| self.failed.take());
                Ok(())
            }
            Meaning::Content => self.paced(),
            Meaning::Framing | Meaning::Opening => Ok(()),
        }
    }

    fn write_text(&mut self, text: &str) -> Result<(), FeedError> {
        if self.pace.is_none() {
            if !text.is_empty() {
                self.producer.push(|generation, ts| generation.text(text, ts));
            }
            return Ok(());
        }
        for token in tokens(text) {
            self.producer.push(|generation, ts| generation.text(token, ts));
            self.paced()?;
        }
        Ok(())
    }

    fn write_lines(&mut self, at_end: bool) -> Result<(), FeedError> {
        while let Format::Jsonl(lines) = &mut self.format
            && let Some((number, line)) = lines.next(at_end)
        {
            let object = jsonl::parse(&line).map_err(|error| FeedError::Line { number, error })?;
            let Some(object) = object else { continue };
            self.producer.push_object(&object);
            if self.producer.is_full() {
                self.flush()?;
            }
            self.paced()?;
        }
        match &self.format {
            Format::Jsonl(lines) if lines.is_too_long() => {
                Err(FeedError::Line { number: lines.number + 1, error: jsonl::LineError::TooLong })
            }
            _ => Ok(()),
        }
    }

    /// Writes, and waits for the next token's time if there is a rate.
    fn paced(&mut self) -> Result<(), FeedError> {
        let Some(pace) = &mut self.pace else { return Ok(()) };
        let wait = pace.wait(Instant::now());
        if wait.is_zero() && !self.producer.is_full() {
            return Ok(());
        }
        self.flush()?;
        let mut ended = Ok(());
        sleep_unless(wait, || {
            ended = self.look_around();
            ended.is_err()
        });
        ended
    }

    fn flush(&mut self) -> Result<(), FeedError> {
        if self.producer.is_flushed() {
            return Ok(());
        }
        self.written_at = Instant::now();
        let stopping = &self.stopping;
        match self.producer.flush(|| stopping.load(Ordering::Relaxed)) {
            Err(ProduceError::Stopped) => Err(FeedError::Interrupted),
            done => Ok(done?),
        }
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
