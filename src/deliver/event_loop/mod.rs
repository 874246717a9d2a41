//! The event loop of a delivery thread: the only code that knows all parts of a [`Delivery`]. Each file of this module
//! handles one source of events. One round runs these steps in this order:
//!
//! 1. Applies settings that were replaced, and records which sockets are ready. Reads nothing yet.
//! 2. Handles messages from other threads (`exchange`): live frames, results of history reads, answers of the
//!    recorder. The resulting bytes are appended to outboxes; requests to other threads are kept until step 8.
//! 3. Begins to drain, if that was requested and no message from another thread is left (`deadlines`).
//! 4. Writes the new bytes to the sockets (`sending`). Connections with much to send wait until step 8, so that live
//!    text goes first.
//! 5. Accepts connections (`accepting`).
//! 6. Reads from clients in turns (`reading`, [`backlog`](crate::deliver::backlog)), and handles their requests and
//!    messages.
//! 7. Retries history reads whose pause is over, and handles the deadlines that have passed.
//! 8. Writes the answers to the sockets, then part of the bytes of connections with much to send. Sends history reads
//!    and other requests to the threads that have room for them.
//! 9. Removes the connections that have ended. They are kept until here, so that no index is reused within one batch
//!    of events.
//! 10. Every 100 ms: reports positions and acknowledgements, and publishes measurements.
//!
//! Between two rounds, the thread that has live frames may run steps 2, 4 and 8 for them (`deliver_between_rounds`).
//!
//! The time and the sources that are ready are arguments of a round, so tests run the loop without a clock or a poll.
//!
//! INVARIANT: the loop never waits for room in a queue. [`crate::deliver::outbound`] holds the messages for which
//! another thread has no room.

mod accepting;
mod cancels;
mod conversation;
mod deadlines;
pub mod delivery;
mod endings;
mod exchange;
mod reading;
mod receipts;
mod refusals;
mod requests;
mod sending;
pub mod serve;
#[cfg(test)]
pub(crate) mod stepped;

use std::time::{Duration, Instant};

use self::delivery::Delivery;
use crate::deliver::connection::Peer;
use crate::message::Slot;
use crate::observe::{RoundTimer, Stage};

/// How often acknowledgements are reported and measurements published.
const TICK: Duration = Duration::from_millis(100);
/// How long the loop sleeps, at most, while it holds a message for which another thread has no room.
const HELD_RETRY: Duration = Duration::from_millis(2);
/// Deadlines handled in one round, at most: keep-alives for many connections at once must not delay live text.
const TIMERS_PER_ROUND: usize = 64;

/// A source of events that is ready.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ready {
    /// Connections wait to be accepted.
    Listener,
    /// The socket of the connection at this index can be read or written, or its client closes it.
    Socket { index: usize, is_readable: bool, peer: Option<Peer> },
}

impl Delivery {
    /// Returns how long to sleep before the next round, or `None` when the thread must end: the daemon stops, or
    /// everything is drained.
    pub(super) fn time_to_sleep(&mut self, now: Instant) -> Option<Duration> {
        if self.stop.requested() || self.is_drained() {
            return None;
        }
        self.sleeps_until = self.next_round_at(now);
        Some(self.sleeps_until.saturating_duration_since(now))
    }

    /// Ends every connection, and tells the other threads.
    pub(super) fn shut_down(mut self, now: Instant) {
        for slot in self.connections.slots() {
            self.remove_connection(slot, now);
        }
        self.send_requests(now);
        self.recorder.publish();
    }

    /// Runs one round. `ready` are the sources of events that the poll reported.
    pub(super) fn round(&mut self, ready: impl IntoIterator<Item = Ready>, now: Instant) {
        let mut timer = RoundTimer::begin(Instant::now());
        self.admission.refresh();
        for source in ready {
            match source {
                Ready::Listener => self.acceptor.schedule(now),
                Ready::Socket { index, is_readable, peer } => {
                    if let Some(slot) = self.connections.at(index) {
                        self.record_readiness(slot, is_readable, peer);
                    }
                }
            }
        }
        // Live frames come first.
        self.receive_messages(now);
        if self.drain_requested.requested() && !self.is_draining && !self.has_messages() {
            // All frames received before are in the outboxes of their clients now.
            self.drain(now);
        }
        self.recover_missed(now);
        timer.step_over("taking messages", Instant::now());
        self.flush_dirty(now);
        timer.step_over("writing to sockets", Instant::now());
        if self.acceptor.next().is_some_and(|at| at <= now) {
            self.accept(now);
        }
        self.read_clients(now);
        timer.step_over("reading from clients", Instant::now());
        self.with_views(now, |views, cx| views.retry_jobs(cx));
        self.handle_deadlines(now);
        self.flush_dirty(now);
        self.flush_bulky(now);
        self.send_requests(now);
        self.remove_ended(now);
        if now.duration_since(self.ticked_at) >= TICK {
            self.ticked_at = now;
            self.with_views(now, |views, cx| views.tick(cx));
            let states = i64::try_from(self.answers.used()).unwrap_or(i64::MAX);
            self.registry.gauges().state_bytes.set(states);
            self.recorder.publish();
        }
        let round = timer.end("deadlines and bulk", Instant::now());
        let lasted_us = u64::try_from(round.lasted.as_micros()).unwrap_or(u64::MAX);
        self.recorder.record(Stage::DeliveryRound, lasted_us);
        self.registry.note_round(round);
    }

    /// When the next round is due if no event comes before.
    pub(super) fn next_round_at(&mut self, now: Instant) -> Instant {
        if self.connections.has_work() || self.views.has_fresh_jobs() || self.has_messages() {
            return now;
        }
        let held = !self.outbound.is_empty();
        let deadlines = [
            self.connections.next_deadline(),
            self.views.next_retry(),
            self.acceptor.next(),
            held.then(|| now + HELD_RETRY),
        ];
        deadlines.into_iter().flatten().fold(self.ticked_at + TICK, Instant::min)
    }

    // ----- sockets -----

    /// Records what a socket is ready for.
    fn record_readiness(&mut self, slot: Slot, is_readable: bool, peer: Option<Peer>) {
        if is_readable {
            self.connections.note_readable(slot, peer);
        }
        if self.connections.get(slot).is_some_and(|connection| !connection.outbox.is_empty()) {
            self.connections.touch(slot);
        }
    }

    // ----- timers -----

    /// Handles at most [`TIMERS_PER_ROUND`] deadlines that have passed. The others wait for the next round, which
    /// reads new input first.
    fn handle_deadlines(&mut self, now: Instant) {
        for _ in 0..TIMERS_PER_ROUND {
            let Some(due) = self.connections.pop_due(now) else { return };
            let Some(slot) = due else { continue };
            if let Some(next) = self.check_deadlines(slot, now) {
                self.connections.arm(slot, next.max(now + Duration::from_millis(1)));
            }
        }
    }

    fn has_messages(&self) -> bool {
        !(self.inbound.inbox.is_empty() && self.inbound.history.is_empty())
    }

    fn is_drained(&self) -> bool {
        self.is_draining && self.connections.is_empty()
    }
}
