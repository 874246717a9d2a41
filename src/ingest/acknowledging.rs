//! How a reader acknowledges entries: it sets the position of a stream's group to the newest entry that has been
//! written to every socket or handed over to history.
//!
//! A read that counts its stream carries the acknowledgement for what was written by then
//! ([`reading`](super::reading)). All others are collected for [`ACK_INTERVAL`] and sent over [`ACK_SPREAD`]. They
//! travel with blocking reads; they would delay the reply to any other read, so after such a read they get a round
//! trip of their own.

use std::time::{Duration, Instant};

use super::reader::Reader;
use crate::model::EntryId;
use crate::redis::{Keys, Pipeline, RedisError, Reply, ServerErrorKind};

/// How long acknowledgements are collected.
const ACK_INTERVAL: Duration = Duration::from_millis(600);
/// The time over which collected acknowledgements are spread.
const ACK_SPREAD: Duration = Duration::from_millis(200);
/// The most streams that one round trip acknowledges while others are read.
const STREAMS_PER_TRIP: usize = 32;
/// The most streams that one round trip acknowledges while nothing is read.
const STREAMS_ALONE: usize = 128;

impl Reader {
    /// Begins a round trip that blocks and adds this trip's share of the acknowledgements. They delay nobody, because
    /// the trip waits for new entries anyway.
    pub(super) fn begin_blocking(&mut self) {
        let now = Instant::now();
        self.begin_trip(self.share(now).min(STREAMS_PER_TRIP), now);
    }

    /// Sends the acknowledgements that no read has carried, after the entries read have been passed on.
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

    /// How many streams are overdue for their acknowledgement.
    fn share(&self, now: Instant) -> usize {
        let elapsed = now.duration_since(self.acked_at).min(ACK_SPREAD).as_micros();
        let due = self.to_acknowledge as u128 * elapsed / ACK_SPREAD.as_micros();
        let looked_at = self.to_acknowledge.saturating_sub(self.subscriptions.acknowledgements_left());
        usize::try_from(due).unwrap_or(usize::MAX).saturating_sub(looked_at)
    }

    /// Begins a round trip that acknowledges at most `streams_max` streams.
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

    /// Makes a round trip that only acknowledges.
    fn make_acknowledging_trip(&mut self) -> Result<(), RedisError> {
        let replies = self.make_trip()?;
        self.note_acknowledged(&replies);
        Ok(())
    }

    /// Records which groups have moved to the position that was set. A Redis that is out of memory refuses; the next
    /// round tries again. A group that is gone means that the stream was deleted: a read that counts it finds that.
    pub(super) fn note_acknowledged(&mut self, replies: &[Reply]) {
        for (&(place, position), reply) in self.acknowledging.iter().zip(replies) {
            match reply.error().map(|error| error.kind()) {
                None if self.subscriptions.acknowledged(place, position) => {
                    self.parts.registry.counters().acks_sent.inc();
                }
                Some(ServerErrorKind::NoGroup | ServerErrorKind::NoSuchKey | ServerErrorKind::WrongType) => {
                    self.subscriptions.count_next(place);
                }
                _ => {}
            }
        }
    }

    /// Whether acknowledgements have waited too long for a read to carry them.
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
        // A round trip that the stop has interrupted has closed the connection.
        if self.parts.connector.link(Instant::now()).is_none() {
            return Err(RedisError::Closed);
        }
        self.acked_at = Instant::now().checked_sub(ACK_INTERVAL).unwrap_or(self.acked_at);
        self.acknowledge_alone()
    }
}

/// Sets the position of one stream's group. This fails if the stream was recreated, because then it has no group.
pub(super) fn set_position(pipeline: &mut Pipeline, keys: &Keys, key: &[u8], position: EntryId) {
    pipeline.command("XGROUP", 4).arg("SETID").arg(key).arg(keys.group()).id(position);
}
