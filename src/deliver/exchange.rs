//! A delivery loop's messages from other threads, and the sending of those to them.

use std::time::Instant;

use super::delivery::Delivery;
use super::jobs::is_wanted;
use super::socket::Socket;
use crate::error_limited;
use crate::message::{LiveFrames, ToDelivery};

/// Messages taken from the inbox in one round.
const MESSAGES_PER_ROUND: usize = 256;
/// Clients that are written to at most between two rounds, by the thread that brings the frames.
const WRITES_BETWEEN_ROUNDS_MAX: usize = 64;

impl Delivery {
    /// Live frames, delivered at once on the thread that brings them, between two rounds of the loop. Refused where
    /// the inbox has something, which comes first, and where there are too many clients to write to.
    pub(super) fn deliver_between_rounds(&mut self, news: &[LiveFrames], now: Instant) -> bool {
        let hubs = news.iter().filter_map(|news| self.streams.hub(news.hub.slot));
        if !self.inbound.inbox.is_empty()
            || hubs.map(|hub| hub.viewers.len()).sum::<usize>() > WRITES_BETWEEN_ROUNDS_MAX
        {
            return false;
        }
        for news in news {
            self.live(news, now);
        }
        self.flush_dirty(now);
        self.send_fresh_jobs(now);
        self.send_held();
        if self.next_round_at(now) < self.sleeps_until
            && let Err(error) = self.inbound.waker.wake()
        {
            error_limited!(%error, "a delivery thread could not be woken");
        }
        true
    }

    /// Takes what the inbox has, and one history read: what it brings for a crowd of viewers takes the time of many
    /// live frames.
    pub(super) fn receive(&mut self, now: Instant) {
        for _ in 0..MESSAGES_PER_ROUND {
            let Some(message) = self.inbound.inbox.try_recv() else { break };
            self.heed(message, now);
        }
        if let Some(message) = self.inbound.history.try_recv() {
            self.heed(message, now);
        }
    }

    fn heed(&mut self, message: ToDelivery, now: Instant) {
        match message {
            ToDelivery::Live { news, .. } => {
                for news in news {
                    self.live(&news, now);
                }
            }
            ToDelivery::Attached { hub, cursor, stalled, watermark } => {
                self.attached(hub, &cursor, (stalled, watermark), now);
            }
            ToDelivery::Broken { hub } => self.broken(hub),
            ToDelivery::Stalled { hub, stalled } => self.stalled(hub, stalled, now),
            ToDelivery::Replay(job, outcome) => self.conclude_job(job.slot, outcome, now),
            ToDelivery::Appeared(stream) => self.appear(&stream),
            ToDelivery::CancelAnswered(asker, outcome) => self.cancel_answered(asker, outcome, now),
            ToDelivery::AckAnswered(asker, id, outcome) => self.ack_answered(asker, id, outcome, now),
            ToDelivery::Connection(socket, address) => self.welcome(Socket::Plain(socket), address, now),
        }
    }

    /// Asks those jobs again whose time has come.
    pub(super) fn retry_jobs(&mut self, now: Instant) {
        while let Some(job) = self.reads.pop_retry(now) {
            self.send_job(job, None);
        }
    }

    /// Sends other threads what there is for them, as far as they have room.
    pub(super) fn send_held(&mut self) {
        let (reads, streams) = (&self.reads, &self.streams);
        for job in self.outbound.send(|job| is_wanted(reads, streams, job)) {
            self.reads.remove(job);
        }
    }
}
