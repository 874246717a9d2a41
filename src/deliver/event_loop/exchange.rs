//! Handles messages from other threads, and sends them requests.

use std::time::Instant;

use super::delivery::Delivery;
use crate::deliver::socket::Socket;
use crate::error_limited;
use crate::message::{LiveFrames, ToDelivery};

/// Messages received from the inbox in one round, at most.
const MESSAGES_PER_ROUND: usize = 256;
/// Clients that the thread that has live frames may write to between two rounds, at most.
const WRITES_BETWEEN_ROUNDS_MAX: usize = 64;

impl Delivery {
    /// Delivers live frames between two rounds of the loop, on the thread that has them. Returns `false` if they must
    /// go through the inbox instead: it holds earlier messages, or there are too many clients to write to.
    pub(super) fn deliver_between_rounds(&mut self, news: &[LiveFrames], now: Instant) -> bool {
        if !self.inbound.inbox.is_empty() || self.views.audience(news) > WRITES_BETWEEN_ROUNDS_MAX {
            return false;
        }
        self.deliver_live(news, now);
        self.flush_dirty(now);
        self.send_requests(now);
        if self.next_round_at(now) < self.sleeps_until
            && let Err(error) = self.inbound.waker.wake()
        {
            error_limited!(%error, "a delivery thread could not be woken");
        }
        true
    }

    /// Handles the messages in the inbox, and at most one result of a history read, because passing one result to many
    /// viewers takes as long as many live frames.
    pub(super) fn receive_messages(&mut self, now: Instant) {
        for _ in 0..MESSAGES_PER_ROUND {
            let Some(message) = self.inbound.inbox.try_recv() else { break };
            self.dispatch(message, now);
        }
        if let Some(message) = self.inbound.history.try_recv() {
            self.dispatch(message, now);
        }
    }

    fn dispatch(&mut self, message: ToDelivery, now: Instant) {
        match message {
            ToDelivery::Live { news, .. } => self.deliver_live(&news, now),
            ToDelivery::Attached { hub, cursor, stalled, watermark } => {
                self.with_views(now, |views, cx| views.attached(hub, &cursor, (stalled, watermark), cx));
            }
            ToDelivery::Broken { hub } => self.with_views(now, |views, cx| views.broken(hub, cx)),
            ToDelivery::Stalled { hub, stalled } => {
                self.with_views(now, |views, cx| views.stalled(hub, stalled, cx));
            }
            ToDelivery::Replay(job, outcome) => {
                self.with_views(now, |views, cx| views.complete_job(job.slot, outcome, cx));
            }
            ToDelivery::Appeared(stream) => self.with_views(now, |views, cx| views.appeared(&stream, cx)),
            ToDelivery::CancelAnswered(asker, outcome) => self.cancel_answered(asker, outcome, now),
            ToDelivery::AckAnswered(asker, id, outcome) => self.ack_answered(asker, id, outcome, now),
            ToDelivery::Connection(socket, address) => {
                self.admit_connection(Socket::Plain(socket), address, now)
            }
        }
    }

    fn deliver_live(&mut self, news: &[LiveFrames], now: Instant) {
        // Effects are carried out between the calls: a viewer that ends with the first frames of its stream must not
        // get those that follow them.
        for news in news {
            self.with_views(now, |views, cx| views.live(news, cx));
        }
    }

    /// Recovers from messages that did not fit into the inbox: sends hubs back to history, and requests history reads
    /// again.
    pub(super) fn recover_missed(&mut self, now: Instant) {
        let missed = std::mem::take(&mut *self.inbound.missed.lock());
        self.with_views(now, |views, cx| {
            for hub in missed.hubs {
                views.broken(hub, cx);
            }
            for (job, step) in missed.jobs {
                views.send_job(job, step, cx);
            }
        });
    }

    /// Sends requests to the threads that have room for them, and drops history reads that no viewer wants any more.
    pub(super) fn send_requests(&mut self, now: Instant) {
        self.with_views(now, |views, cx| {
            views.send_fresh_jobs(cx);
            for job in cx.outbound.send(|job| views.is_wanted(job)) {
                views.remove_job(job);
            }
        });
    }
}
