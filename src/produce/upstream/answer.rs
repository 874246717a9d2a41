//! One request's answer into a stream, from `start` to a terminal entry.
//!
//! Everything is waited for in slices of [`SLICE`]: the upstream, the pause before another attempt. In between it is
//! looked whether somebody wants to stop, whether a heartbeat is due, and whether patience is over. Only Redis is
//! waited for without such looks (but for `stop`); the upstream then waits too.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::http::{Call, CutCall, Piece, Refusal};
use super::retry::{RETRY_AFTER_MAX, Retries, retry_after};
use super::{Request, Upstream};
use crate::produce::raw::{self, Meaning, Story};
use crate::produce::sse::{SseEvent, SseParser};
use crate::produce::{Cancels, Generation, ProduceError, Producer, Record, Wires, now_us};
use crate::{info_limited, warn_limited};

/// The longest time between two looks around: what a request to stop waits at most, beside its way.
const SLICE: Duration = Duration::from_millis(20);
/// How long the last entry is tried to be written.
const FAREWELL: Duration = Duration::from_secs(5);
/// The most of an upstream's own words that an entry repeats, in characters.
const MESSAGE_CHARACTERS_MAX: usize = 500;

/// Why an answer failed: the `error` entry that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The entry's code.
    pub code: &'static str,
    /// The entry's message.
    pub message: String,
}

/// How an answer ended.
#[derive(Debug)]
pub enum Outcome {
    /// With the upstream's own end.
    Ended,
    /// With `finish_reason` `cancelled`.
    Cancelled,
    /// With an `error` entry.
    Failed(Failure),
    /// The caller asked to stop: it has no terminal entry yet.
    Stopped {
        /// Whether viewers have seen something of it.
        token_came: bool,
    },
    /// Redis takes nothing: it may have no terminal entry.
    Unwritable(ProduceError),
}

/// Why one attempt came to nothing.
enum Broken {
    Cancelled,
    Stopped,
    Unwritable(ProduceError),
    /// Before the first token another attempt may help.
    Again {
        failure: Failure,
        retry_after: Option<Duration>,
    },
    /// Nothing will help.
    Failed(Failure),
}

impl From<ProduceError> for Broken {
    fn from(error: ProduceError) -> Self {
        match error {
            ProduceError::Stopped => Self::Stopped,
            refused @ ProduceError::Refused(_) => Self::Unwritable(refused),
        }
    }
}

fn failure(code: &'static str, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into() }
}

/// Brings an answer into a stream.
pub struct Answer<'a, W: Wires, C: Cancels> {
    upstream: &'a Upstream,
    producer: &'a mut Producer<W>,
    cancels: &'a mut C,
    stop: &'a dyn Fn() -> bool,
    token_came: bool,
    written_at: Instant,
    /// When the upstream last sent an event.
    event_at: Instant,
    /// Threads of requests that were cut and perhaps still have to notice it.
    cut: Vec<CutCall>,
}

impl<'a, W: Wires, C: Cancels> Answer<'a, W, C> {
    /// An answer that nobody has asked for yet. `stop` is looked at all the time.
    pub fn new(
        upstream: &'a Upstream,
        producer: &'a mut Producer<W>,
        cancels: &'a mut C,
        stop: &'a dyn Fn() -> bool,
    ) -> Self {
        let now = Instant::now();
        let (written_at, event_at, cut) = (now, now, Vec::new());
        Self { upstream, producer, cancels, stop, token_came: false, written_at, event_at, cut }
    }

    /// Asks, and does not return before the answer has its terminal entry, or somebody wants to stop.
    pub fn run(mut self, request: &Request) -> Outcome {
        let outcome = self.ask(request);
        // Only now: nobody waits for a connection that is still being made.
        self.cut.into_iter().for_each(CutCall::join);
        outcome
    }

    fn ask(&mut self, request: &Request) -> Outcome {
        let broken = match self.attempts(request) {
            Ok(()) => return Outcome::Ended,
            Err((broken, story)) => {
                if let Broken::Cancelled = broken {
                    let usage = story.as_ref().and_then(Story::usage);
                    self.producer.say(|generation, ts| generation.end_with("cancelled", usage.as_ref(), ts));
                }
                broken
            }
        };
        let outcome = match broken {
            Broken::Stopped => return Outcome::Stopped { token_came: self.token_came },
            Broken::Unwritable(error) => return Outcome::Unwritable(error),
            Broken::Cancelled => Outcome::Cancelled,
            Broken::Again { failure, .. } | Broken::Failed(failure) => {
                self.producer.say(|generation, ts| generation.error(failure.code, &failure.message, ts));
                Outcome::Failed(failure)
            }
        };
        let until = Instant::now() + FAREWELL;
        let stop = self.stop;
        match self.producer.flush(|| Instant::now() >= until && stop()) {
            Ok(()) => outcome,
            Err(error) => Outcome::Unwritable(error),
        }
    }

    fn attempts(&mut self, request: &Request) -> Result<(), (Broken, Option<Story>)> {
        self.producer.say(Generation::start_unnumbered);
        self.flush().map_err(|broken| (broken, None))?;
        let mut retries = Retries::new(self.upstream.patience.retries, now_us());
        loop {
            let mut story = Story::new(self.upstream.form());
            let broken = match self.attempt(request, &mut story) {
                Ok(()) => return Ok(()),
                Err(broken) => broken,
            };
            let Broken::Again { failure, retry_after } = broken else { return Err((broken, Some(story))) };
            let pause = if self.token_came { None } else { retries.next(retry_after) };
            let Some(pause) = pause else {
                let failure = match retry_after {
                    Some(wait) if wait > RETRY_AFTER_MAX => asked_too_much(failure, wait),
                    _ => failure,
                };
                return Err((Broken::Failed(failure), Some(story)));
            };
            warn_limited!(
                code = failure.code,
                message = failure.message,
                ?pause,
                "asking the upstream again"
            );
            self.pause(pause).map_err(|broken| (broken, None))?;
        }
    }

    /// One request and its answer.
    fn attempt(&mut self, request: &Request, story: &mut Story) -> Result<(), Broken> {
        self.look_around()?;
        let call = Call::begin(self.upstream, request.body.clone())
            .map_err(|error| Broken::Failed(failure("producer_failed", format!("no thread: {error}"))))?;
        let done = self.follow(&call, story);
        self.cut.push(call.cut());
        done
    }

    /// Takes what comes, to the end.
    fn follow(&mut self, call: &Call, story: &mut Story) -> Result<(), Broken> {
        let mut parser = SseParser::default();
        let mut heard_at = Instant::now();
        let mut has_spoken = false;
        loop {
            self.look_around()?;
            let patience = self.upstream.patience;
            if !patience.finish.is_zero()
                && self.event_at.elapsed() >= patience.finish
                && let Some(reason) = story.finish_reason()
            {
                return self.end(&reason, story);
            }
            let Some(piece) = call.next(SLICE) else {
                let silence = heard_at.elapsed();
                let allowed = if has_spoken { patience.silence } else { patience.first };
                if silence >= allowed {
                    let message = format!("the upstream was silent for {allowed:?}");
                    return Err(Broken::Failed(failure("upstream_timeout", message)));
                }
                continue;
            };
            heard_at = Instant::now();
            has_spoken = true;
            let is_over = match piece {
                Piece::Body(bytes) => self.take(&bytes, &mut parser, story)?,
                other => return self.finish(other, &mut parser, story),
            };
            self.flush()?;
            if is_over {
                return Ok(());
            }
        }
    }

    /// The events that these bytes complete; whether the answer is over.
    fn take(&mut self, bytes: &[u8], parser: &mut SseParser, story: &mut Story) -> Result<bool, Broken> {
        let pushed = parser.push(bytes);
        while let Some(event) = parser.next() {
            if self.pass_on(&event, story)? {
                return Ok(true);
            }
        }
        pushed.map_err(|error| Broken::Failed(failure("upstream_malformed", error.to_string())))?;
        Ok(false)
    }

    /// Passes an event on; whether it was the last one.
    fn pass_on(&mut self, event: &SseEvent, story: &mut Story) -> Result<bool, Broken> {
        // White space around an object means nothing, and around `[DONE]` it would make it another word.
        let payload = event.data.trim();
        // An event without data keeps a connection alive.
        if payload.is_empty() {
            return Ok(false);
        }
        self.event_at = Instant::now();
        let meaning = story.read(payload);
        self.token_came |= matches!(meaning, Meaning::Content | Meaning::Terminal);
        self.producer.pass_raw(Record { form: story.form(), json: payload.to_owned() }, meaning);
        if self.producer.is_full() {
            self.flush()?;
        }
        Ok(meaning == Meaning::Terminal)
    }

    /// What comes of the last piece.
    fn finish(&mut self, piece: Piece, parser: &mut SseParser, story: &mut Story) -> Result<(), Broken> {
        let again =
            |code, message: String| Broken::Again { failure: failure(code, message), retry_after: None };
        match piece {
            Piece::Refused(refusal) => return Err(judge(&refusal)),
            Piece::Unreachable(reason) => return Err(again("upstream_unreachable", reason)),
            Piece::Body(_) | Piece::Broken(_) | Piece::End => {}
        }
        if let Some(event) = parser.finish().ok().flatten().filter(|event| raw::is_whole(&event.data))
            && self.pass_on(&event, story)?
        {
            return self.flush();
        }
        if let Some(reason) = story.finish_reason() {
            return self.end(&reason, story);
        }
        let reason = if let Piece::Broken(reason) = piece { reason } else { "no end was sent".to_owned() };
        Err(again("upstream_broke_off", format!("the upstream broke off in the middle: {reason}")))
    }

    /// Writes the end that the upstream left unsaid.
    fn end(&mut self, reason: &str, story: &Story) -> Result<(), Broken> {
        let usage = story.usage();
        self.producer.say(|generation, ts| generation.end_with(reason, usage.as_ref(), ts));
        self.flush()
    }

    /// Waits before another attempt.
    fn pause(&mut self, pause: Duration) -> Result<(), Broken> {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            self.look_around()?;
            std::thread::sleep(SLICE.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// Whether to go on; writes a heartbeat where one is due.
    fn look_around(&mut self) -> Result<(), Broken> {
        if (self.stop)() {
            return Err(Broken::Stopped);
        }
        if let Some(request) = self.cancels.requested(Instant::now()) {
            info_limited!(by = request.by, reason = request.reason, "cancelled");
            return Err(Broken::Cancelled);
        }
        if self.written_at.elapsed() >= self.upstream.patience.heartbeat {
            self.producer.say(Generation::heartbeat);
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Broken> {
        let stop = self.stop;
        // Whoever was stopped since the last look must not write what came meanwhile.
        if stop() {
            return Err(Broken::Stopped);
        }
        // What the upstream sends to keep its connection alive is no sign of life in the stream.
        if !self.producer.is_flushed() {
            self.producer.flush(stop)?;
            self.written_at = Instant::now();
        }
        Ok(())
    }
}

/// Whether another attempt may help after such an answer.
fn judge(refusal: &Refusal) -> Broken {
    let said = own_words(&refusal.body);
    let status = refusal.status;
    if (200..300).contains(&status) {
        let message = format!("the upstream answered with no event stream: {said}");
        return Broken::Failed(failure("upstream_malformed", message));
    }
    let failure = failure("upstream_refused", format!("the upstream answered {status}: {said}"));
    if matches!(status, 408 | 429 | 500..) {
        let now = Duration::from_micros(now_us());
        let retry_after = refusal.retry_after.as_deref().and_then(|value| retry_after(value, now));
        Broken::Again { failure, retry_after }
    } else {
        Broken::Failed(failure)
    }
}

fn asked_too_much(mut failure: Failure, wait: Duration) -> Failure {
    failure.message.push_str(&format!(" (it asks to wait for {} s, which is too long)", wait.as_secs()));
    failure
}

/// What a body says of an error: its message, or its beginning.
fn own_words(body: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(body).ok();
    let error = parsed.as_ref().and_then(|body| body.get("error"));
    let message = error.and_then(|error| error.get("message").unwrap_or(error).as_str());
    let words = message.unwrap_or(body).trim();
    let words: String = words.chars().take(MESSAGE_CHARACTERS_MAX).collect();
    if words.is_empty() { "no reason given".to_owned() } else { words }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &str, retry_after: Option<&str>) -> Broken {
        judge(&Refusal { status, body: body.into(), retry_after: retry_after.map(Into::into) })
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for status in [408, 429, 500, 502, 503, 529] {
            let Broken::Again { failure, retry_after } = refused(status, "", Some("2")) else {
                panic!("{status}")
            };
            assert_eq!((failure.code, retry_after), ("upstream_refused", Some(Duration::from_secs(2))));
        }
        for status in [301, 400, 401, 404, 422] {
            assert!(matches!(refused(status, "", None), Broken::Failed(_)), "{status}");
        }
        let body = r#"{"error":{"message":"no such model"}}"#;
        let Broken::Failed(failure) = refused(200, body, None) else { panic!("a stream was asked for") };
        assert_eq!(failure.code, "upstream_malformed");
        assert!(failure.message.ends_with(": no such model"), "{failure:?}");
    }

    #[test]
    fn an_upstreams_own_words_are_repeated_within_bounds() {
        assert_eq!(own_words(r#"{"error":"busy"}"#), "busy");
        assert_eq!(own_words("  plain "), "plain");
        assert_eq!(own_words(""), "no reason given");
        assert_eq!(own_words(&"ä".repeat(2000)).chars().count(), MESSAGE_CHARACTERS_MAX);
    }
}
