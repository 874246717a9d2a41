//! The event loop of a delivery thread: the only code that knows all parts of a [`Delivery`]. The files of this module
//! are the sources of its events. One round calls them in this order:
//!
//! 1. Takes settings that were exchanged, and notes which sockets are ready. Nothing is read yet.
//! 2. Takes messages of other threads (`exchange`): live frames, results of history reads, answers of the recorder. The
//!    bytes that follow are added to outboxes; requests to other threads are kept for step 8.
//! 3. Sends everybody that the instance drains, once no entry is left that was read before (`deadlines`).
//! 4. Offers sockets the bytes that were added, live text before anything else (`sending`).
//! 5. Accepts connections (`accepting`).
//! 6. Reads from clients in turns (`reading`, [`backlog`](crate::deliver::backlog)), and handles their requests and
//!    messages.
//! 7. Retries history reads whose pause is over, and handles deadlines.
//! 8. Offers sockets the answers, then a share of the bytes that wait in bulk; sends history reads and other requests to
//!    the threads that have room.
//! 9. Removes the connections that are over, so that no index is reused within one batch of events.
//! 10. Every 100 ms: reports positions and acknowledgements, publishes measurements.
//!
//! Between two rounds, the thread that brings live frames may do steps 2, 4 and 8 with them (`deliver_between_rounds`).
//!
//! The time of a round and the sources that are ready are arguments, so the loop runs without a clock or a poll.
//!
//! INVARIANT: the loop never waits for a queue. A message for which another thread has no room is held in
//! [`crate::deliver::outbound`].

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
/// How long the loop sleeps while another thread has no room for something.
const HELD_RETRY: Duration = Duration::from_millis(2);
/// Deadlines that are attended to in one round: a keep-alive sent to many at once must not keep live text waiting.
const TIMERS_PER_ROUND: usize = 64;

/// A source that is ready, with its news.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ready {
    /// Connections wait to be accepted.
    Listener,
    /// The socket of the connection at this index takes bytes again, or has some, or its client is going.
    Socket { index: usize, is_readable: bool, peer: Option<Peer> },
}

impl Delivery {
    /// How long to sleep before the next round; `None` when the daemon stops, or everything is drained.
    pub(super) fn rest(&mut self, now: Instant) -> Option<Duration> {
        if self.stop.requested() || self.is_drained() {
            return None;
        }
        self.sleeps_until = self.next_round_at(now);
        Some(self.sleeps_until.saturating_duration_since(now))
    }

    /// Ends every connection.
    pub(super) fn shut(mut self, now: Instant) {
        for slot in self.connections.slots() {
            self.remove_connection(slot, now);
        }
        self.recorder.publish();
    }

    /// Does what the sockets and the inbox ask for.
    pub(super) fn round(&mut self, ready: impl IntoIterator<Item = Ready>, now: Instant) {
        let mut timer = RoundTimer::begin(Instant::now());
        self.admission.refresh();
        for source in ready {
            match source {
                Ready::Listener => self.acceptor.schedule(now),
                Ready::Socket { index, is_readable, peer } => {
                    if let Some(slot) = self.connections.at(index) {
                        self.attend(slot, is_readable, peer);
                    }
                }
            }
        }
        // Live frames come first.
        self.receive(now);
        if self.drain_requested.requested() && !self.is_draining && !self.has_mail() {
            // The frames of all entries read before are in the clients' outboxes now.
            self.drain(now);
        }
        self.catch_up(now);
        timer.step_over("taking messages", Instant::now());
        self.flush_dirty(now);
        timer.step_over("writing to sockets", Instant::now());
        if self.acceptor.next().is_some_and(|at| at <= now) {
            self.accept(now);
        }
        self.read_clients(now);
        timer.step_over("hearing clients", Instant::now());
        self.with_views(now, |views, cx| views.retry_jobs(cx));
        self.expire(now);
        self.flush_dirty(now);
        self.flush_bulky(now);
        self.send_requests(now);
        self.reap(now);
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

    /// When there is something to do even if nothing happens.
    pub(super) fn next_round_at(&mut self, now: Instant) -> Instant {
        if self.connections.has_work() || self.views.has_fresh_jobs() || self.has_mail() {
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

    /// Notes what a socket is ready for.
    fn attend(&mut self, slot: Slot, is_readable: bool, peer: Option<Peer>) {
        if is_readable {
            self.connections.notice(slot, peer);
        }
        if self.connections.get(slot).is_some_and(|connection| !connection.outbox.is_empty()) {
            self.connections.touch(slot);
        }
    }

    // ----- timers -----

    /// Attends to some of the deadlines that are due: the rest have their turn after the input that has come meanwhile.
    fn expire(&mut self, now: Instant) {
        for _ in 0..TIMERS_PER_ROUND {
            let Some(due) = self.connections.pop_due(now) else { return };
            let Some(slot) = due else { continue };
            if let Some(next) = self.check_deadlines(slot, now) {
                self.connections.arm(slot, next.max(now + Duration::from_millis(1)));
            }
        }
    }

    fn has_mail(&self) -> bool {
        !(self.inbound.inbox.is_empty() && self.inbound.history.is_empty())
    }

    fn is_drained(&self) -> bool {
        self.is_draining && self.connections.is_empty()
    }
}
