//! How a reader acknowledges what is written: it sets the position of a stream's group to the newest entry that is on
//! all sockets, or handed to history.
//!
//! Every read of a stream does that on the way, for what was written by then ([`reading`](super::reading)). For the
//! streams that are not read again soon the acknowledgements are gathered, and go out spread over a third of the time
//! in which they are gathered. They travel with reads that block; other reads would be answered later for them, so they
//! follow these in a trip of their own.

use std::time::{Duration, Instant};

use super::reader::Reader;
use crate::model::EntryId;
use crate::redis::{Keys, Pipeline, RedisError, Reply};

/// Acknowledgements are gathered this long.
const ACK_INTERVAL: Duration = Duration::from_millis(600);
/// They go out within so long, by and by.
const ACK_SPREAD: Duration = Duration::from_millis(200);
/// Streams that are acknowledged in one trip while others are read.
const STREAMS_PER_TRIP: usize = 32;
/// Streams that are acknowledged in one trip while nothing is read.
const STREAMS_ALONE: usize = 128;

impl Reader {
    /// Begins a trip that blocks, with its share of what is to be acknowledged: nobody waits for what it will read.
    pub(super) fn begin_blocking(&mut self) {
        let now = Instant::now();
        self.begin_trip(self.share(now).min(STREAMS_PER_TRIP), now);
    }

    /// Sends acknowledgements that no read took along, once reads are passed on, a good number at once.
    pub(super) fn acknowledge_after_reading(&mut self) -> Result<(), RedisError> {
        let now = Instant::now();
        let elapsed = now.duration_since(self.acked_at);
        let share = self.share(now);
        let is_due = share >= STREAMS_PER_TRIP || (share > 0 && elapsed >= ACK_SPREAD);
        let is_convenient = !self.subscriptions.has_news() || self.is_acknowledgement_late();
        if elapsed < ACK_INTERVAL && !(is_due && is_convenient) {
            return Ok(());
        }
        self.begin_trip(share.min(STREAMS_PER_TRIP), now);
        self.make_acknowledging_trip()
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
        let Self { parts, pipeline, subscriptions, acknowledging, .. } = self;
        pipeline.clear();
        if now.duration_since(self.acked_at) >= ACK_INTERVAL {
            self.acked_at = now;
            self.to_acknowledge = subscriptions.begin_acknowledging();
        }
        acknowledging.clear();
        while acknowledging.len() < streams_max
            && let Some((place, position)) = subscriptions.next_acknowledgement(parts.delivery.ack)
        {
            let Some(found) = subscriptions.get(place) else { continue };
            set_position(pipeline, &parts.keys, &found.key, position);
            acknowledging.push((place, position));
        }
    }

    /// Makes a trip that only acknowledges.
    fn make_acknowledging_trip(&mut self) -> Result<(), RedisError> {
        let replies = self.make_trip()?;
        self.note_acknowledged(&replies);
        Ok(())
    }

    /// Notes which groups stand where they were set to. A full Redis refuses that: it is tried again with the next
    /// round.
    pub(super) fn note_acknowledged(&mut self, replies: &[Reply]) {
        for (&(place, position), reply) in self.acknowledging.iter().zip(replies) {
            if reply.error().is_none() && self.subscriptions.acknowledged(place, position) {
                self.parts.registry.counters().acks_sent.inc();
            }
        }
    }

    /// Whether no read has taken along for long what was to be acknowledged.
    pub(super) fn is_acknowledgement_late(&self) -> bool {
        self.acked_at.elapsed() >= ACK_INTERVAL + ACK_SPREAD
    }

    /// Acknowledges without reading, while there is nothing to read.
    pub(super) fn acknowledge_alone(&mut self) -> Result<(), RedisError> {
        loop {
            self.begin_trip(STREAMS_ALONE, Instant::now());
            self.make_acknowledging_trip()?;
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

/// Sets the position of the group of one stream. Fails where the stream was begun anew, without a group.
pub(super) fn set_position(pipeline: &mut Pipeline, keys: &Keys, key: &[u8], position: EntryId) {
    pipeline.command("XGROUP", 4).arg("SETID").arg(key).arg(keys.group()).id(position);
}
