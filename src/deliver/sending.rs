//! Writing waiting bytes to the clients' sockets: live text first, large amounts in their turn.

use std::time::Instant;

use super::delivery::Delivery;
use super::outbox::{Chunk, WriteOutcome};
use super::viewer::Mark;
use crate::event::message::{Slot, now_us};
use crate::observe::Stage;

/// Sockets that are offered something in one round: of those touched last, and of those that wait for longest.
const NEWEST_PER_ROUND: usize = 256;
const OLDEST_PER_ROUND: usize = 64;
/// Bytes waiting beyond which a connection has its turn after all others: history, or a client that is behind.
const BULK_BYTES: usize = 16 * 1024;
/// Bytes of such connections that are written in one round.
const BULK_BYTES_PER_ROUND: usize = 128 * 1024;
/// Bytes that one client is written at once.
const BULK_BYTES_PER_TURN: usize = 64 * 1024;

impl Delivery {
    /// Adds bytes to a connection's outbox.
    pub(super) fn send(&mut self, slot: Slot, chunk: impl Into<Chunk<Mark>>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.send(chunk);
        self.touch(slot);
    }

    /// The same for an answer to what the client has asked or said.
    pub(super) fn send_answer(&mut self, slot: Slot, chunk: impl Into<Chunk<Mark>>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.send_answer(chunk);
        self.touch(slot);
    }

    /// The connection is looked at before the loop sleeps.
    pub(super) fn touch(&mut self, slot: Slot) {
        if let Some(connection) = self.connections.get_mut(slot)
            && !std::mem::replace(&mut connection.dirty, true)
        {
            self.dirty.push_back(slot);
        }
    }

    /// Offers waiting bytes to sockets: to those that were touched last, and to some that wait for longest. The sockets
    /// beyond the round's measure have their turn in the next one, after the input that has come meanwhile.
    pub(super) fn flush_dirty(&mut self, now: Instant) {
        for turn in 0..NEWEST_PER_ROUND + OLDEST_PER_ROUND {
            let next = if turn < NEWEST_PER_ROUND { self.dirty.pop_back() } else { self.dirty.pop_front() };
            let Some(slot) = next else { break };
            if self.connections.get(slot).is_some_and(|found| found.outbox.len_bytes() > BULK_BYTES) {
                self.bulky.push_back(slot);
            } else {
                self.flush(slot, now);
            }
        }
    }

    /// The same for those that have much to send.
    pub(super) fn flush_bulky(&mut self, now: Instant) {
        let mut written = 0;
        while written < BULK_BYTES_PER_ROUND
            && let Some(slot) = self.bulky.pop_front()
        {
            written += self.flush(slot, now);
        }
    }

    /// Offers one socket the bytes that wait for it; how many of them it took.
    fn flush(&mut self, slot: Slot, now: Instant) -> usize {
        let Some(connection) = self.connections.get_mut(slot) else { return 0 };
        connection.dirty = false;
        let before = connection.outbox.len_bytes();
        let mut marks = std::mem::take(&mut self.marks);
        let result = connection.flush(BULK_BYTES_PER_TURN, now, |mark| marks.push(mark));
        let left = connection.outbox.len_bytes();
        let written = before.saturating_sub(left);
        self.registry.counters().bytes_written.add(written as u64);
        if left != connection.gauged_bytes {
            let gauged = std::mem::replace(&mut connection.gauged_bytes, left);
            self.registry.gauges().outbox_bytes.change(gauged, left);
        }
        match result {
            Ok(outcome) if left > 0 => {
                if outcome == WriteOutcome::Paused {
                    connection.dirty = true;
                    self.bulky.push_back(slot);
                }
                self.arm(slot, now + self.config.client.slow_timeout);
            }
            Ok(_) if connection.is_finished() => self.over.push(slot),
            Ok(_) => {
                if let Some(at) = connection.drained(now) {
                    self.arm(slot, at);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a client is gone");
                self.over.push(slot);
            }
        }
        let now_us = now_us();
        for mark in marks.drain(..) {
            self.measure(&mark, now_us);
            self.written(&mark);
        }
        self.marks = marks;
        self.resume_paused(slot);
        if written > 0 {
            self.hear_further(slot);
        }
        written
    }

    fn measure(&mut self, mark: &Mark, now_us: u64) {
        self.registry.counters().frames_written.inc();
        if !mark.live {
            return;
        }
        self.recorder.record(Stage::EncodedToWritten, now_us.saturating_sub(mark.frame.encoded_us));
        if let Some(ts_us) = mark.frame.ts_us {
            self.recorder.record(Stage::EndToEnd, now_us.saturating_sub(ts_us));
        }
    }
}
