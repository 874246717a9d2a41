//! The readers' observations: latencies, and counts of received, lost, repeated and reordered tokens.

use std::ops::Range;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::judge::Came;
use crate::load::{LATENESS_US_MAX, Shared};
use crate::token::Token;

/// Surprises that are kept in words.
const SURPRISES_MAX: usize = 5;

/// The observations of all clients of a load together.
pub(crate) struct Seen {
    /// From the producer's write to the client's read, µs, of the tokens that count.
    pub(crate) latency_us: Histogram<u64>,
    /// The same while the load was alone.
    pub(crate) alone_us: Histogram<u64>,
    /// From the moment when clients may come back until one has all that has been written by then, µs.
    pub(crate) back_us: Histogram<u64>,
    /// Tokens received.
    pub(crate) received: u64,
    /// Tokens that the streams hold and a client never got.
    pub(crate) lost: u64,
    /// Tokens that came twice.
    pub(crate) repeated: u64,
    /// Tokens that came after a later one.
    pub(crate) reordered: u64,
    /// Whether tokens were still coming when they had to be there.
    pub(crate) behind: bool,
    /// Frames with text in them.
    pub(crate) frames: u64,
    /// The first few things received that a healthy server never sends, in words.
    pub(crate) surprises: Vec<String>,
    /// Processor time of the clients' thread within the measured time.
    pub(crate) cpu: Duration,
    measured: Range<u64>,
    alone: Range<u64>,
}

impl Seen {
    /// Of clients that have seen nothing yet.
    pub(crate) fn new() -> Result<Self, hdrhistogram::CreationError> {
        let histogram = Histogram::new_with_max(LATENESS_US_MAX, 3)?;
        Ok(Self {
            latency_us: histogram.clone(),
            alone_us: histogram.clone(),
            back_us: histogram,
            received: 0,
            lost: 0,
            repeated: 0,
            reordered: 0,
            behind: false,
            frames: 0,
            surprises: Vec::new(),
            cpu: Duration::ZERO,
            measured: 0..0,
            alone: 0..0,
        })
    }

    /// Takes note of which times count; called often.
    pub(crate) fn look(&mut self, shared: &Shared) {
        (self.measured, self.alone) = (shared.measured.us(), shared.alone.us());
    }

    /// Counts a token as its judge saw it.
    pub(crate) fn take(&mut self, came: Came, token: Token, now: u64) {
        match came {
            Came::InOrder | Came::Early(_) => {}
            Came::Late => self.reordered += 1,
            Came::Again => {
                self.repeated += 1;
                return;
            }
            Came::Astray => return self.surprise(format!("{token:?} for a client of another stream")),
        }
        self.received += 1;
        let age = now.saturating_sub(token.at_us);
        if self.measured.contains(&token.at_us) {
            self.latency_us.saturating_record(age);
        }
        if self.alone.contains(&token.at_us) {
            self.alone_us.saturating_record(age);
        }
    }

    /// Records something received that a healthy server never sends.
    pub(crate) fn surprise(&mut self, what: impl Into<String>) {
        if self.surprises.len() < SURPRISES_MAX {
            self.surprises.push(what.into());
        }
    }
}
