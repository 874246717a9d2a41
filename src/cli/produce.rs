//! `llm-bridge produce`: stdin into a stream.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::stop::stop_flag;
use super::{CliError, Shared};
use crate::event::StreamName;
use crate::observe;
use crate::produce::chunk::{Utf8Chunks, tokens};
use crate::produce::{Generation, ProduceError, Producer, RedisWires, Wires, jsonl, sleep_unless};

/// The most that is read from stdin at once, in bytes.
const READ_BYTES: usize = 16 * 1024;
/// Silence of stdin after which a heartbeat is written.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
/// The longest wait for stdin before signals are looked at again.
const WAIT_MAX: Duration = Duration::from_millis(200);
/// How long a stopping producer tries to write its last entry.
const FAREWELL: Duration = Duration::from_secs(5);

/// Write stdin into a stream
#[derive(Debug, Args)]
pub(crate) struct Produce {
    /// The session id
    #[arg(long)]
    session: String,
    /// The model id
    #[arg(long)]
    model: String,
    /// What stdin is: text as it comes, or one native object a line
    #[arg(long, value_enum, default_value_t = From::Text)]
    from: From,
    /// Write at most so many tokens (words, lines) a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    #[command(flatten)]
    shared: Shared,
}

/// What the input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum From {
    /// Text as it comes.
    Text,
    /// One native object a line.
    Jsonl,
}

/// Runs `produce` until the input ends.
pub(crate) fn run(args: &Produce) -> Result<(), CliError> {
    let config = args.shared.load()?;
    let name =
        StreamName::new(&args.session, &args.model).map_err(|error| CliError::Usage(error.to_string()))?;
    observe::logging::init(&config.log).map_err(|error| CliError::Failed(error.to_string()))?;
    let stopping = stop_flag()?;
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let input = File::from(stdin.map_err(|error| CliError::Failed(format!("stdin: {error}")))?);
    let wires = RedisWires::new(&config.redis, &name).map_err(|error| CliError::Failed(error.to_string()))?;
    let mut feed = Feed {
        producer: Producer::new(wires),
        from: args.from,
        pace: args.rate.map(Pace::new),
        text: Utf8Chunks::default(),
        lines: Lines::default(),
        stopping,
    };
    feed.run(input)
}

/// Why the input was not taken to its end.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error("stdin broke: {0}")]
    Input(#[from] std::io::Error),
    #[error("line {number}: {error}")]
    Line { number: u64, error: jsonl::LineError },
    #[error("the producer was interrupted")]
    Interrupted,
    #[error(transparent)]
    Produce(#[from] ProduceError),
}

/// From an input to a producer.
struct Feed<W: Wires> {
    producer: Producer<W>,
    from: From,
    pace: Option<Pace>,
    text: Utf8Chunks,
    lines: Lines,
    stopping: Arc<AtomicBool>,
}

impl<W: Wires> Feed<W> {
    fn run(&mut self, input: File) -> Result<(), CliError> {
        let failure = match self.feed(input) {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        let refused = matches!(failure, FeedError::Produce(ProduceError::Refused(_)));
        if self.producer.generation().is_open() && !refused {
            let message = failure.to_string();
            self.producer.say(|generation, ts| generation.error("producer_failed", &message, ts));
            let until = Instant::now() + FAREWELL;
            if let Err(error) = self.producer.flush(|| Instant::now() >= until) {
                tracing::warn!(%error, "the stream does not say that its producer failed");
            }
        }
        Err(CliError::Failed(failure.to_string()))
    }

    fn feed(&mut self, mut input: File) -> Result<(), FeedError> {
        let mut buffer = vec![0; READ_BYTES];
        if self.from == From::Text {
            self.producer.say(Generation::start);
            self.flush()?;
        }
        let mut heartbeat_due = Instant::now() + HEARTBEAT_EVERY;
        loop {
            if self.stopping.load(Ordering::Relaxed) {
                return Err(FeedError::Interrupted);
            }
            let wait = heartbeat_due.saturating_duration_since(Instant::now()).min(WAIT_MAX);
            if wait_readable(&input, wait)? {
                match input.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(len) => self.take(&buffer[..len])?,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
                heartbeat_due = Instant::now() + HEARTBEAT_EVERY;
            } else if Instant::now() >= heartbeat_due {
                if self.producer.generation().is_open() {
                    self.producer.say(Generation::heartbeat);
                    self.flush()?;
                }
                heartbeat_due = Instant::now() + HEARTBEAT_EVERY;
            }
        }
        self.finish()
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), FeedError> {
        match self.from {
            From::Text => {
                let text = self.text.push(bytes);
                self.say_text(&text)?;
            }
            From::Jsonl => {
                self.lines.push(bytes);
                self.say_lines(false)?;
            }
        }
        self.flush()
    }

    /// What the end of the input completes, and the `end` entry if the input had none.
    fn finish(&mut self) -> Result<(), FeedError> {
        let rest = self.text.finish();
        self.say_text(&rest)?;
        self.say_lines(true)?;
        let generation = self.producer.generation();
        if generation.is_open() {
            self.producer.say(|generation, ts| generation.end("stop", ts));
        }
        self.flush()
    }

    fn say_text(&mut self, text: &str) -> Result<(), FeedError> {
        if self.pace.is_none() {
            if !text.is_empty() {
                self.producer.say(|generation, ts| generation.text(text, ts));
            }
            return Ok(());
        }
        for token in tokens(text) {
            self.producer.say(|generation, ts| generation.text(token, ts));
            self.paced()?;
        }
        Ok(())
    }

    fn say_lines(&mut self, at_end: bool) -> Result<(), FeedError> {
        while let Some((number, line)) = self.lines.next(at_end) {
            let object = jsonl::parse(&line).map_err(|error| FeedError::Line { number, error })?;
            let Some(object) = object else { continue };
            self.producer.pass_on(&object);
            if self.producer.is_full() {
                self.flush()?;
            }
            self.paced()?;
        }
        if self.lines.is_too_long() {
            return Err(FeedError::Line { number: self.lines.number + 1, error: jsonl::LineError::TooLong });
        }
        Ok(())
    }

    /// Writes and waits for the next token's time, where there is a rate.
    fn paced(&mut self) -> Result<(), FeedError> {
        let Some(pace) = &mut self.pace else { return Ok(()) };
        let wait = pace.wait(Instant::now());
        if wait.is_zero() && !self.producer.is_full() {
            return Ok(());
        }
        self.flush()?;
        let stopping = &self.stopping;
        if sleep_unless(wait, || stopping.load(Ordering::Relaxed)) {
            Ok(())
        } else {
            Err(FeedError::Interrupted)
        }
    }

    fn flush(&mut self) -> Result<(), FeedError> {
        let stopping = &self.stopping;
        match self.producer.flush(|| stopping.load(Ordering::Relaxed)) {
            Err(ProduceError::Stopped) => Err(FeedError::Interrupted),
            done => Ok(done?),
        }
    }
}

/// Evenly spaced moments, so many a second.
#[derive(Debug)]
struct Pace {
    step: Duration,
    next: Option<Instant>,
}

impl Pace {
    fn new(per_second: u32) -> Self {
        Self { step: Duration::from_secs(1) / per_second, next: None }
    }

    /// How long to wait before the next token. Time lost to a slow input is not made up for.
    fn wait(&mut self, now: Instant) -> Duration {
        let next =
            self.next.map_or(now, |next| next.max(now.checked_sub(self.step).unwrap_or(now))) + self.step;
        self.next = Some(next);
        next.saturating_duration_since(now)
    }
}

/// Bytes → lines with their numbers. A line that is not over yet is held up to the longest allowed.
#[derive(Debug, Default)]
struct Lines {
    whole: VecDeque<Vec<u8>>,
    partial: Vec<u8>,
    /// Lines handed out so far.
    number: u64,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.whole.push_back(std::mem::take(&mut self.partial));
            }
        }
    }

    /// The next line; at the end of the input also one without its line feed.
    fn next(&mut self, at_end: bool) -> Option<(u64, Vec<u8>)> {
        let last = || at_end.then(|| std::mem::take(&mut self.partial)).filter(|line| !line.is_empty());
        let line = self.whole.pop_front().or_else(last)?;
        self.number += 1;
        Some((self.number, line))
    }

    fn is_too_long(&self) -> bool {
        self.partial.len() > jsonl::LINE_BYTES_MAX
    }
}

/// Waits until there is something to read (or the end of it); false after `wait`, or for a signal.
fn wait_readable(input: &impl AsFd, wait: Duration) -> std::io::Result<bool> {
    let mut poll = libc::pollfd { fd: input.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // Rounded up, so that a wait of less than a millisecond does not spin.
    let wait_ms = i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: `poll` is one valid pollfd, and lives for the whole call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, wait_ms) };
    if ready >= 0 {
        return Ok(ready > 0);
    }
    let error = std::io::Error::last_os_error();
    if error.kind() == std::io::ErrorKind::Interrupted { Ok(false) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::produce::testing::Memory;

    /// What a stream holds after `input` was fed, as `type[:text or code]`, and how it went.
    fn fed(from: From, rate: Option<u32>, input: &[u8]) -> (Vec<String>, Result<(), CliError>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(input).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let memory = Memory::default();
        let mut feed = Feed {
            producer: Producer::new(memory.clone()),
            from,
            pace: rate.map(Pace::new),
            text: Utf8Chunks::default(),
            lines: Lines::default(),
            stopping: Arc::default(),
        };
        let done = feed.run(file);
        let entries = memory.entries();
        let seen = entries.iter().enumerate().map(|(at, json)| {
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(value["seq"], at, "{json}");
            let detail = value["text"].as_str().or_else(|| value["code"].as_str());
            let kind = value["type"].as_str().unwrap();
            detail.map_or_else(|| kind.to_owned(), |detail| format!("{kind}:{detail}"))
        });
        (seen.collect(), done)
    }

    #[test]
    fn text_becomes_a_generation() {
        let (entries, done) = fed(From::Text, None, "Grüße\n".as_bytes());
        assert_eq!(entries, ["start", "delta:Grüße\n", "end"]);
        done.unwrap();
        let (entries, _) = fed(From::Text, Some(1_000_000), "a b\n\nc".as_bytes());
        assert_eq!(entries, ["start", "delta:a", "delta: b", "delta:\n\nc", "end"]);
        let (entries, _) = fed(From::Text, None, b"");
        assert_eq!(entries, ["start", "end"]);
    }

    #[test]
    fn lines_become_entries_and_a_bad_one_is_named() {
        let input = b"{\"type\":\"delta\",\"text\":\"x\"}\n\n{\"type\":\"delta\",\"text\":\"y\"}";
        let (entries, done) = fed(From::Jsonl, None, input);
        assert_eq!(entries, ["start", "delta:x", "delta:y", "end"]);
        done.unwrap();
        let (entries, _) = fed(
            From::Jsonl,
            None,
            b"{\"type\":\"delta\",\"text\":\"x\"}\n{\"type\":\"error\",\"code\":\"c\"}\n",
        );
        assert_eq!(entries, ["start", "delta:x", "error:c"]);
        let (entries, done) = fed(From::Jsonl, None, b"{\"type\":\"delta\",\"text\":\"x\"}\n\noops\n");
        assert_eq!(entries, ["start", "delta:x", "error:producer_failed"]);
        assert!(done.unwrap_err().to_string().starts_with("line 3: not a JSON object"));
        let (entries, done) = fed(From::Jsonl, None, b"[]\n");
        assert!(entries.is_empty() && done.is_err());
        let (entries, done) = fed(From::Jsonl, None, b"");
        assert!(entries.is_empty() && done.is_ok());
    }

    #[test]
    fn an_endless_line_is_refused_before_it_fills_the_memory() {
        let mut input = b"{\"type\":\"delta\",\"text\":\"".to_vec();
        input.resize(jsonl::LINE_BYTES_MAX + 2 * READ_BYTES, b'x');
        let (entries, done) = fed(From::Jsonl, None, &input);
        assert!(entries.is_empty());
        assert_eq!(done.unwrap_err().to_string(), "line 1: longer than 8 MiB");
    }

    #[test]
    fn a_pace_spaces_evenly_and_makes_up_for_nothing() {
        let mut pace = Pace::new(10);
        let start = Instant::now();
        let step = Duration::from_millis(100);
        assert_eq!(pace.wait(start), step);
        assert_eq!(pace.wait(start + step), step);
        assert_eq!(pace.wait(start + step * 2 + step / 4), step - step / 4);
        assert_eq!(pace.wait(start + step * 60), Duration::ZERO);
        assert_eq!(pace.wait(start + step * 60), step);
    }

    #[test]
    fn a_stop_ends_the_generation_with_an_error() {
        let memory = Memory::default();
        let mut feed = Feed {
            producer: Producer::new(memory.clone()),
            from: From::Text,
            pace: None,
            text: Utf8Chunks::default(),
            lines: Lines::default(),
            stopping: Arc::new(AtomicBool::new(true)),
        };
        assert!(feed.run(File::open("/dev/zero").unwrap()).is_err());
        assert!(memory.entries().last().unwrap().contains("producer_failed"));
    }
}
