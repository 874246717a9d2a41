//! Writes waiting bytes to the sockets of clients. Connections with little to send, such as live text, go first; those
//! with much to send take turns.

use std::time::Instant;

use super::deadlines::PROGRESS_CHECKS;
use super::delivery::Delivery;
use crate::deliver::connections::{Connections, Flushed};
use crate::deliver::viewer::Mark;
use crate::message::{Slot, now_us};
use crate::observe::Stage;

/// Bytes after which no further connection with much to send is written to in the same round.
const BULK_BYTES_PER_ROUND: usize = 128 * 1024;

impl Delivery {
    /// Writes to the sockets with new bytes whose turn it is in this round.
    pub(super) fn flush_dirty(&mut self, now: Instant) {
        for turn in 0..Connections::TURNS_PER_ROUND {
            let Some(next) = self.connections.next_to_flush(turn) else { break };
            if let Some(slot) = next {
                self.flush(slot, now);
            }
        }
    }

    /// Writes to connections with much to send, in turns.
    pub(super) fn flush_bulky(&mut self, now: Instant) {
        let mut written = 0;
        while written < BULK_BYTES_PER_ROUND
            && let Some(slot) = self.connections.next_bulky()
        {
            written += self.flush(slot, now);
        }
    }

    /// Writes the bytes that wait for one socket. Returns how many of them the socket accepted.
    fn flush(&mut self, slot: Slot, now: Instant) -> usize {
        let mut marks = std::mem::take(&mut self.marks);
        let Flushed { written, is_behind } = self.connections.flush(slot, &mut marks, now);
        if is_behind {
            self.connections.arm(slot, now + self.config.client.slow_timeout / PROGRESS_CHECKS);
        }
        let now_us = now_us();
        for mark in marks.drain(..) {
            self.record_latency(&mark, now_us);
            self.views.written(&mark);
        }
        self.marks = marks;
        self.with_views(now, |views, cx| views.resume_paused(slot, cx));
        if written > 0 {
            self.connections.read_further(slot);
        }
        written
    }

    fn record_latency(&mut self, mark: &Mark, now_us: u64) {
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
