//! Writes the answer to one request into a stream, from `start` to a terminal entry.
//!
//! Waits for the upstream, and pauses before another attempt, are divided into slices of [`SLICE`]. Between two
//! slices the thread checks whether a stop was requested, whether a heartbeat is due, and whether a timeout has
//! passed. Only a wait for Redis has no such checks (except for `stop`); the upstream is not read meanwhile.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::http::{Call, CutCall, Head, Piece, Refusal};
use super::retry::{RETRY_AFTER_MAX, Retries, retry_after};
use super::{Request, Upstream};
use crate::produce::events::{ProviderEvent, ProviderEvents};
use crate::produce::raw::Meaning;
use crate::produce::words::own_words;
use crate::produce::{Cancels, Failure, Generation, ProduceError, Producer, Wires, now_us};
use crate::{info_limited, visible, warn_limited};

/// The longest time between two checks, which bounds the delay of a request to stop.
const SLICE: Duration = Duration::from_millis(20);
/// How long to try to write the last entry.
const FAREWELL: Duration = Duration::from_secs(5);
/// How an answer ended.
#[derive(Debug)]
pub enum Outcome {
    /// With the upstream's own end.
    Ended,
    /// With `finish_reason` `cancelled`.
    Cancelled,
    /// With an `error` entry, or an error event of the upstream.
    Failed(Failure),
    /// The caller asked to stop: the answer has no terminal entry yet.
    Stopped {
        /// Whether viewers have seen any of it.
        token_came: bool,
    },
    /// Redis accepts no entries: the answer may have no terminal entry.
    Unwritable(ProduceError),
}

/// Why one attempt failed.
enum Broken {
    Cancelled,
    Stopped,
    Unwritable(ProduceError),
    /// Before the first token: another attempt may help.
    Again {
        failure: Failure,
        retry_after: Option<Duration>,
    },
    /// No other attempt will help.
    Failed(Failure),
    /// The upstream reported its failure itself: the stream has its message.
    Reported(Failure),
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
    Failure { code: code.into(), message: message.into() }
}

/// One attempt at an answer.
struct Attempt {
    head: Head,
    events: ProviderEvents,
    /// When something last arrived.
    received_at: Instant,
}

impl Attempt {
    fn new(upstream: &Upstream) -> Self {
        let events = ProviderEvents::new(upstream.form());
        Self { head: Head::default(), events, received_at: Instant::now() }
    }

    /// The error for a body that is not an event stream; `came` describes what it is instead.
    fn malformed(&self, came: &str) -> Broken {
        let kind = self.head.kind.as_deref().unwrap_or("none");
        let kind = visible::line(kind.get(..100).unwrap_or(kind));
        let message = format!("the upstream sent no event stream (Content-Type: {kind}): {came}");
        Broken::Failed(failure("upstream_malformed", message))
    }
}

/// Writes an answer into a stream.
pub struct Answer<'a, W: Wires, C: Cancels> {
    upstream: &'a Upstream,
    producer: &'a mut Producer<W>,
    cancels: &'a mut C,
    stop: &'a dyn Fn() -> bool,
    token_came: bool,
    written_at: Instant,
    /// When the upstream last sent an event.
    event_at: Instant,
    /// Threads of cancelled requests that may not have ended yet.
    cut: Vec<CutCall>,
}

impl<'a, W: Wires, C: Cancels> Answer<'a, W, C> {
    /// An answer without a request so far. `stop` is checked all the time.
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

    /// Sends the request, and returns when the answer has its terminal entry or a stop was requested.
    pub fn run(mut self, request: &Request) -> Outcome {
        let outcome = self.ask(request);
        // Joined only now, so that nobody waits for a connection that is still being opened.
        self.cut.into_iter().for_each(CutCall::join);
        outcome
    }

    fn ask(&mut self, request: &Request) -> Outcome {
        let broken = match self.attempts(request) {
            Ok(()) => return Outcome::Ended,
            Err((broken, usage)) => {
                if let Broken::Cancelled = broken {
                    self.producer.push(|generation, ts| generation.end_with("cancelled", usage.as_ref(), ts));
                }
                broken
            }
        };
        let outcome = match broken {
            Broken::Stopped => return Outcome::Stopped { token_came: self.token_came },
            Broken::Unwritable(error) => return Outcome::Unwritable(error),
            Broken::Reported(failure) => return Outcome::Failed(failure),
            Broken::Cancelled => Outcome::Cancelled,
            Broken::Again { failure, .. } | Broken::Failed(failure) => {
                self.producer.push(|generation, ts| generation.error(&failure.code, &failure.message, ts));
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

    /// Repeats the request as often as that may help. An error includes the token counts so far.
    fn attempts(&mut self, request: &Request) -> Result<(), (Broken, Option<Map<String, Value>>)> {
        self.producer.push(Generation::start_unnumbered);
        self.flush().map_err(|broken| (broken, None))?;
        let mut retries = Retries::new(self.upstream.patience.retries, now_us());
        loop {
            let mut attempt = Attempt::new(self.upstream);
            let broken = match self.attempt(request, &mut attempt) {
                Ok(()) => return Ok(()),
                Err(broken) => broken,
            };
            let usage = attempt.events.story().usage();
            let Broken::Again { failure, retry_after } = broken else { return Err((broken, usage)) };
            let pause = if self.token_came { None } else { retries.next(retry_after) };
            let Some(pause) = pause else {
                let failure = match retry_after {
                    Some(wait) if wait > RETRY_AFTER_MAX => asked_too_much(failure, wait),
                    _ => failure,
                };
                return Err((Broken::Failed(failure), usage));
            };
            warn_limited!(%failure, ?pause, "asking the upstream again");
            self.pause(pause).map_err(|broken| (broken, None))?;
        }
    }

    /// One request and its answer.
    fn attempt(&mut self, request: &Request, attempt: &mut Attempt) -> Result<(), Broken> {
        self.look_around()?;
        let call = Call::begin(self.upstream, request.body.clone())
            .map_err(|error| Broken::Failed(failure("producer_failed", format!("no thread: {error}"))))?;
        attempt.received_at = Instant::now();
        let done = self.follow(&call, attempt);
        self.cut.push(call.cut());
        done
    }

    /// Reads the pieces of the answer to its end.
    fn follow(&mut self, call: &Call, attempt: &mut Attempt) -> Result<(), Broken> {
        loop {
            self.look_around()?;
            let patience = self.upstream.patience;
            if !patience.finish.is_zero()
                && self.event_at.elapsed() >= patience.finish
                && let Some(reason) = attempt.events.story().finish_reason()
            {
                return self.end(&reason, attempt);
            }
            let piece = call.next(SLICE);
            if let Some(came) = attempt.events.foreign(Instant::now()) {
                return Err(attempt.malformed(&came));
            }
            let Some(piece) = piece else {
                self.check_patience(attempt)?;
                continue;
            };
            let is_over = match piece {
                Piece::Head(head) => {
                    attempt.head = head;
                    if let Some(encoding) = &attempt.head.encoding {
                        let encoding = visible::line(encoding.get(..100).unwrap_or(encoding));
                        return Err(attempt.malformed(&format!("Content-Encoding: {encoding}")));
                    }
                    false
                }
                Piece::Body(bytes) => {
                    attempt.received_at = Instant::now();
                    self.take(&bytes, attempt)?
                }
                other => return self.finish(other, attempt),
            };
            self.flush()?;
            if is_over {
                return Ok(());
            }
        }
    }

    /// Checks whether the upstream has been silent for too long.
    fn check_patience(&self, attempt: &Attempt) -> Result<(), Broken> {
        let patience = self.upstream.patience;
        let allowed = if attempt.events.count() > 0 { patience.silence } else { patience.first };
        if attempt.received_at.elapsed() < allowed {
            return Ok(());
        }
        Err(Broken::Failed(failure("upstream_timeout", format!("the upstream was silent for {allowed:?}"))))
    }

    /// Handles the events that these bytes complete; returns whether the answer has ended.
    fn take(&mut self, bytes: &[u8], attempt: &mut Attempt) -> Result<bool, Broken> {
        let pushed = attempt.events.push(bytes, Instant::now());
        while let Some(event) = attempt.events.next() {
            if self.push_event(event, attempt)? {
                return Ok(true);
            }
        }
        pushed.map_err(|error| Broken::Failed(failure("upstream_malformed", error.to_string())))?;
        Ok(false)
    }

    /// Passes on the result of an event; returns whether it was the last one.
    fn push_event(&mut self, event: ProviderEvent, attempt: &Attempt) -> Result<bool, Broken> {
        self.event_at = Instant::now();
        let (record, meaning) = match event {
            ProviderEvent::Failed(failure) => return Err(Broken::Failed(failure)),
            ProviderEvent::Raw(record, meaning) => (record, meaning),
        };
        self.token_came |= matches!(meaning, Meaning::Content | Meaning::Terminal);
        self.producer.push_raw(record, meaning);
        if self.producer.is_full() {
            self.flush()?;
        }
        match attempt.events.story().failure() {
            Some(failure) if meaning == Meaning::Terminal => {
                self.flush()?;
                Err(Broken::Reported(failure.clone()))
            }
            _ => Ok(meaning == Meaning::Terminal),
        }
    }

    /// Ends the attempt at its last piece: writes the end if the upstream has finished without one, or returns why
    /// the attempt failed.
    fn finish(&mut self, piece: Piece, attempt: &mut Attempt) -> Result<(), Broken> {
        let again =
            |code, message: String| Broken::Again { failure: failure(code, message), retry_after: None };
        let broken = match piece {
            Piece::Refused(refusal) => return Err(judge(&refusal)),
            Piece::Unreachable(reason) => return Err(again("upstream_unreachable", reason)),
            Piece::Malformed(reason) => return Err(attempt.malformed(&reason)),
            Piece::Broken(reason) => Some(reason),
            Piece::Head(_) | Piece::Body(_) | Piece::End => None,
        };
        if let Some(event) = attempt.events.finish().ok().flatten()
            && self.push_event(event, attempt)?
        {
            return self.flush();
        }
        if let Some(reason) = attempt.events.story().finish_reason() {
            return self.end(&reason, attempt);
        }
        match (attempt.events.came_instead(), broken) {
            // The body ended in order, so another attempt would have the same result.
            (Some(came), None) => Err(attempt.malformed(&came)),
            (Some(came), Some(_)) if attempt.events.has_foreign() => Err(attempt.malformed(&came)),
            (Some(_), Some(reason)) => Err(again(
                "upstream_broke_off",
                format!("the upstream broke off before its first event: {reason}"),
            )),
            (None, broken) => {
                let reason = broken.unwrap_or_else(|| "no end was sent".to_owned());
                Err(again("upstream_broke_off", format!("the upstream broke off in the middle: {reason}")))
            }
        }
    }

    /// Writes the end that the upstream did not send.
    fn end(&mut self, reason: &str, attempt: &Attempt) -> Result<(), Broken> {
        let usage = attempt.events.story().usage();
        self.producer.push(|generation, ts| generation.end_with(reason, usage.as_ref(), ts));
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

    /// Checks whether to continue; writes a heartbeat if one is due.
    fn look_around(&mut self) -> Result<(), Broken> {
        if (self.stop)() {
            return Err(Broken::Stopped);
        }
        if let Some(request) = self.cancels.requested(Instant::now()) {
            info_limited!(by = request.by, reason = request.reason, "cancelled");
            return Err(Broken::Cancelled);
        }
        if self.written_at.elapsed() >= self.upstream.patience.heartbeat {
            self.producer.push(Generation::heartbeat);
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Broken> {
        let stop = self.stop;
        // A stop may have been requested since the last check: then nothing more is written.
        if stop() {
            return Err(Broken::Stopped);
        }
        // The upstream's keep-alive comments write nothing, so they do not delay the stream's own heartbeat.
        if !self.producer.is_flushed() {
            self.producer.flush(stop)?;
            self.written_at = Instant::now();
        }
        Ok(())
    }
}

/// Whether another attempt may help after such an answer.
fn judge(refusal: &Refusal) -> Broken {
    let words = match own_words(&refusal.body) {
        words if words.is_empty() => "no reason given".to_owned(),
        words => words,
    };
    let status = refusal.status;
    let failure = failure("upstream_refused", format!("the upstream answered {status}: {words}"));
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
            assert_eq!((&*failure.code, retry_after), ("upstream_refused", Some(Duration::from_secs(2))));
        }
        for status in [301, 400, 401, 404, 422] {
            assert!(matches!(refused(status, "", None), Broken::Failed(_)), "{status}");
        }
        let body = r#"{"error":{"message":"no such model"}}"#;
        let Broken::Failed(failure) = refused(404, body, None) else { panic!("it will never pass") };
        assert!(failure.message.ends_with("404: no such model"), "{failure:?}");
        let Broken::Failed(failure) = refused(401, " ", None) else { panic!("it will never pass") };
        assert!(failure.message.ends_with("no reason given"), "{failure:?}");
    }
}
