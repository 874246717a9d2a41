//! The pause of a writer that Redis refuses, and its log lines: one at once, then rarely.

use std::time::{Duration, Instant};

use crate::redis::{Backoff, Phase, RedisError, ServerError};
use crate::{error_limited, info_limited};

/// The shortest and the longest pause between two attempts.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// When a writer may try again, and the error that prevents writing.
#[derive(Debug)]
pub(super) struct Pause {
    what: &'static str,
    backoff: Backoff,
    until: Option<Instant>,
    trouble: Option<String>,
}

impl Pause {
    /// `what` names the things that the writer writes, for the log.
    pub(super) const fn new(what: &'static str) -> Self {
        Self { what, backoff: Backoff::new(PAUSE_MIN, PAUSE_MAX, 1), until: None, trouble: None }
    }

    /// Whether the writer may write now.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    /// When the writer may write at the earliest.
    pub(super) fn next(&self, now: Instant) -> Instant {
        self.until.map_or(now, |until| until.max(now))
    }

    /// Records that Redis refuses to write to `key`.
    pub(super) fn refused(&mut self, key: &str, error: ServerError, now: Instant) {
        self.until = Some(now + self.backoff.next());
        let trouble = format!("{key}: {error}");
        let error = RedisError::Server(error);
        let fix = error.trouble(Phase::Connected).fix;
        error_limited!(key: trouble; key, %error, fix, "Redis refuses {}: they wait, and are tried again", self.what);
        self.trouble = Some(trouble);
    }

    /// Records that Redis accepts writes.
    pub(super) fn works(&mut self) {
        if self.until.take().is_some() {
            self.backoff.reset();
            self.trouble = None;
            info_limited!("Redis accepts {} again", self.what);
        }
    }

    /// Why Redis refuses its writes, if it does.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.as_ref().map(|trouble| format!("{} wait: {trouble}", self.what))
    }
}
