//! The clients' observations: latencies, and counts of received, lost, repeated and reordered tokens.

use std::ops::Range;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::judge::Came;
use crate::load::{LATENESS_US_MAX, Shared};
use crate::token::Token;

/// How many unexpected events are described.
const SURPRISES_MAX: usize = 5;

/// The combined observations of all clients of a load.
pub(crate) struct Seen {
    /// From the producer's write to the client's read, µs, of the tokens written in the measured time.
    pub(crate) latency_us: Histogram<u64>,
    /// The same, while the load ran alone.
    pub(crate) alone_us: Histogram<u64>,
    /// From the time when clients may connect or reconnect until one has everything written before that, µs.
    pub(crate) back_us: Histogram<u64>,
    /// Tokens received.
    pub(crate) received: u64,
    /// Tokens that the streams hold and that a client never received.
    pub(crate) lost: u64,
    /// Tokens that arrived twice.
    pub(crate) repeated: u64,
    /// Tokens that arrived after a later one.
    pub(crate) reordered: u64,
    /// Whether tokens were still arriving when the run ended.
    pub(crate) behind: bool,
    /// Frames that contain text.
    pub(crate) frames: u64,
    /// Descriptions of the first few things received that a healthy server never sends.
    pub(crate) surprises: Vec<String>,
    /// Processor time of the clients' thread within the measured time.
    pub(crate) cpu: Duration,
    /// The latencies of each part of the measured time.
    pub(crate) parts_us: Vec<Histogram<u64>>,
    /// The length of a part, µs; without one there are no parts.
    part_us: Option<u64>,
    measured: Range<u64>,
    alone: Range<u64>,
}

impl Seen {
    /// For clients that have received nothing yet.
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
            parts_us: Vec::new(),
            part_us: None,
            measured: 0..0,
            alone: 0..0,
        })
    }

    /// Keeps the latencies of parts of the measured time, of this length, apart.
    pub(crate) fn in_parts(self, of: Option<Duration>) -> Self {
        let part_us = of.and_then(|of| u64::try_from(of.as_micros()).ok()).filter(|us| *us > 0);
        Self { part_us, ..self }
    }

    /// Adds the observations of other clients.
    pub(crate) fn add(&mut self, other: &Self) {
        self.latency_us += &other.latency_us;
        self.received += other.received;
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.reordered += other.reordered;
        self.behind |= other.behind;
        self.frames += other.frames;
        self.cpu += other.cpu;
        for surprise in &other.surprises {
            self.surprise(surprise);
        }
    }

    /// Updates which times count. Called often.
    pub(crate) fn look(&mut self, shared: &Shared) {
        (self.measured, self.alone) = (shared.measured.us(), shared.alone.us());
    }

    /// Counts a token by the judge's result.
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
            self.record_part(token.at_us - self.measured.start, age);
        }
        if self.alone.contains(&token.at_us) {
            self.alone_us.saturating_record(age);
        }
    }

    fn record_part(&mut self, since_us: u64, age: u64) {
        let Some(part) = self.part_us.and_then(|us| usize::try_from(since_us / us).ok()) else { return };
        if self.parts_us.len() <= part {
            let mut empty = self.latency_us.clone();
            empty.reset();
            self.parts_us.resize(part + 1, empty);
        }
        self.parts_us[part].saturating_record(age);
    }

    /// Records something received that a healthy server never sends.
    pub(crate) fn surprise(&mut self, what: impl Into<String>) {
        if self.surprises.len() < SURPRISES_MAX {
            self.surprises.push(what.into());
        }
    }
}
