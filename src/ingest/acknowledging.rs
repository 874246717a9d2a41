//! How a reader acknowledges what is written.
//!
//! Acknowledgements are gathered, and go out spread over a third of the time in which they are gathered: Redis looks
//! every id up, and producers wait meanwhile. They travel with reads that block and with large ones; a small read
//! would be answered later for them, so they follow it in a trip of their own.

use std::time::{Duration, Instant};

use super::reader::Reader;
use super::reading::ENTRIES_PER_TRIP;
use crate::event::EntryId;
use crate::redis::{Keys, Pipeline, RedisError};

/// Acknowledgements are gathered this long.
const ACK_INTERVAL: Duration = Duration::from_millis(600);
/// They go out within so long, by and by.
const ACK_SPREAD: Duration = Duration::from_millis(200);
/// A trip that reads few streams acknowledges at most so many, others as many as they read.
const STREAMS_PER_TRIP_MIN: usize = 32;
/// Streams that are acknowledged in one trip while nothing is read.
const STREAMS_ALONE: usize = 128;

/// A read of so many streams takes its share of acknowledgements along; what it reads waits little longer for them.
const STREAMS_WITH_ACKS_MIN: usize = 128;

impl Reader {
    /// Begins a trip that blocks, with its share of what is to be acknowledged: nobody waits for what it will read.
    pub(super) fn begin_blocking(&mut self, streams: usize) {
        self.begin_share(streams);
    }

    /// Begins a trip that reads streams with news.
    pub(super) fn begin_reading(&mut self, streams: usize) {
        if streams >= STREAMS_WITH_ACKS_MIN {
            self.begin_share(streams);
        } else {
            self.pipeline.clear();
        }
    }

    /// What reads of few streams did not take along goes out by itself once these are passed on, a good number at once.
    pub(super) fn acknowledge_after_reading(&mut self) -> Result<(), RedisError> {
        let now = Instant::now();
        let elapsed = now.duration_since(self.acked_at);
        let share = self.share(now);
        let is_due = share >= STREAMS_PER_TRIP_MIN || (share > 0 && elapsed >= ACK_SPREAD);
        let is_convenient = !self.subscriptions.has_news() || self.is_acknowledgement_late();
        if elapsed < ACK_INTERVAL && !(is_due && is_convenient) {
            return Ok(());
        }
        self.begin_trip(share.min(STREAMS_PER_TRIP_MIN), now);
        self.make_trip().map(drop)
    }

    /// Begins a trip with the share of what is to be acknowledged that is due by now.
    fn begin_share(&mut self, streams: usize) {
        let now = Instant::now();
        self.begin_trip(self.share(now).min(streams.max(STREAMS_PER_TRIP_MIN)), now);
    }

    /// How many streams should have been acknowledged by now and were not.
    fn share(&self, now: Instant) -> usize {
        let elapsed = now.duration_since(self.acked_at).min(ACK_SPREAD).as_micros();
        let due = self.to_acknowledge as u128 * elapsed / ACK_SPREAD.as_micros();
        let looked_at = self.to_acknowledge.saturating_sub(self.subscriptions.acknowledgements_left());
        usize::try_from(due).unwrap_or(usize::MAX).saturating_sub(looked_at)
    }

    /// Begins a trip that acknowledges at most so many streams.
    fn begin_trip(&mut self, streams_max: usize, now: Instant) {
        let Self { parts, pipeline, subscriptions, .. } = self;
        pipeline.clear();
        if now.duration_since(self.acked_at) >= ACK_INTERVAL {
            self.acked_at = now;
            self.to_acknowledge = subscriptions.begin_acknowledging();
        }
        let mut acked = 0;
        while acked < ENTRIES_PER_TRIP
            && pipeline.len() < streams_max
            && let Some((key, ids)) = subscriptions.next_acknowledgement()
        {
            acked += ids.len();
            xack(pipeline, &parts.keys, key, &ids);
        }
        parts.registry.counters().acks_sent.add(acked as u64);
    }

    /// Whether no read has taken along for long what was to be acknowledged.
    pub(super) fn is_acknowledgement_late(&self) -> bool {
        self.acked_at.elapsed() >= ACK_INTERVAL + ACK_SPREAD
    }

    /// Acknowledges without reading, while there is nothing to read.
    pub(super) fn acknowledge_alone(&mut self) -> Result<(), RedisError> {
        loop {
            self.begin_trip(STREAMS_ALONE, Instant::now());
            self.make_trip()?;
            if !self.subscriptions.is_acknowledging() {
                return Ok(());
            }
        }
    }

    pub(super) fn acknowledge_last(&mut self) -> Result<(), RedisError> {
        // The connection was closed where it was waiting for news.
        if self.parts.connector.link(Instant::now()).is_none() {
            return Err(RedisError::Closed);
        }
        self.acked_at = Instant::now().checked_sub(ACK_INTERVAL).unwrap_or(self.acked_at);
        self.acknowledge_alone()
    }
}

/// Acknowledges entries of one stream, at most [`IDS_PER_ACK_MAX`](super::acks::IDS_PER_ACK_MAX).
pub(super) fn xack(pipeline: &mut Pipeline, keys: &Keys, key: &[u8], ids: &[EntryId]) {
    let mut command = pipeline.command("XACK", 2 + ids.len());
    command.arg(key).arg(keys.group());
    for &id in ids {
        command.id(id);
    }
}
