//! A delivery loop's messages from other threads and its requests to them. A request for which they have no room is
//! held.

use std::time::{Duration, Instant};

use super::delivery::Delivery;
use crate::error_limited;
use crate::event::StreamName;
use crate::event::message::{
    Control, Errand, JobRef, LiveFrames, ReplayRequest, ReplayStep, Slot, ToDelivery, now_us, shard,
};
use crate::queue::SendError;

/// How long a history read waits after Redis could not be asked, for the first time and at most.
const UNAVAILABLE_RETRY: Duration = Duration::from_millis(100);
const UNAVAILABLE_RETRY_MAX: Duration = Duration::from_secs(2);
/// Messages taken from the inbox in one round.
const MESSAGES_PER_ROUND: usize = 256;
/// Clients that are written to at most between two rounds, by the thread that brings the frames.
const WRITES_BETWEEN_ROUNDS_MAX: usize = 64;

impl Delivery {
    /// Live frames, delivered at once on the thread that brings them, between two rounds of the loop. Refused where
    /// the inbox has something, which comes first, and where there are too many clients to write to.
    pub(super) fn deliver_between_rounds(&mut self, news: &[LiveFrames]) -> bool {
        let hubs = news.iter().filter_map(|news| self.hubs.get(news.hub.slot));
        if !self.inbox.is_empty()
            || hubs.map(|hub| hub.viewers.len()).sum::<usize>() > WRITES_BETWEEN_ROUNDS_MAX
        {
            return false;
        }
        let now = Instant::now();
        for news in news {
            self.live(news, now);
        }
        self.flush_dirty(now);
        self.send_fresh_jobs();
        self.send_held();
        if self.next_round_at(now) < self.sleeps_until
            && let Err(error) = self.waker.wake()
        {
            error_limited!(%error, "a delivery thread could not be woken");
        }
        true
    }

    /// Takes what the inbox has, and one history read: what it brings for a crowd of viewers takes the time of many
    /// live frames.
    pub(super) fn receive(&mut self, now: Instant) {
        for _ in 0..MESSAGES_PER_ROUND {
            let Some(message) = self.inbox.try_recv() else { break };
            self.heed(message, now);
        }
        if let Some(message) = self.history.try_recv() {
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
            ToDelivery::Attached { hub, cursor, stalled, board } => {
                self.attached(hub, &cursor, (stalled, board), now);
            }
            ToDelivery::Broken { hub } => self.broken(hub),
            ToDelivery::Stalled { hub, stalled } => self.stalled(hub, stalled, now),
            ToDelivery::Replay(job, outcome) => self.conclude_job(job.slot, outcome, now),
            ToDelivery::Appeared(stream) => self.appear(&stream),
            ToDelivery::CancelAnswered(asker, outcome) => self.cancel_answered(asker, outcome, now),
            ToDelivery::AckAnswered(asker, id, outcome) => self.ack_answered(asker, id, outcome, now),
            ToDelivery::Connection(socket, address) => self.welcome(socket, address, now),
        }
    }

    pub(super) fn request(
        &mut self,
        slot: Slot,
        stream: StreamName,
        step: ReplayStep,
        (count, budget_bytes): (usize, usize),
    ) {
        let job = JobRef { delivery: self.index, slot };
        self.held_requests.push_back(ReplayRequest {
            stream,
            job,
            step,
            count,
            budget_bytes,
            asked_us: now_us(),
            jump: None,
        });
    }

    pub(super) fn control(&mut self, control: Control) {
        let (Control::Attach { stream, .. }
        | Control::Detach { stream, .. }
        | Control::EndAnswered { stream, .. }) = &control;
        let transform = shard(stream, self.transforms.len());
        self.held_controls.push_back((transform, control));
    }

    pub(super) fn errand(&mut self, errand: Errand) {
        self.held_errands.push_back(errand);
    }

    /// A job is asked again after a pause that grows with its attempts and differs from job to job.
    pub(super) fn retry_later(&mut self, job: Slot, attempts: u32, now: Instant) {
        let pause = UNAVAILABLE_RETRY.saturating_mul(1 << attempts.clamp(1, 6)) / 2;
        let spread = u32::try_from(job.generation % 16).unwrap_or(0);
        let pause = pause.min(UNAVAILABLE_RETRY_MAX);
        self.retries.insert((now + pause - pause / 32 * spread, job));
    }

    pub(super) fn retry_jobs(&mut self, now: Instant) {
        while let Some(&(at, job)) = self.retries.first()
            && at <= now
        {
            self.retries.pop_first();
            self.send_job(job, None);
        }
    }

    pub(super) fn send_held(&mut self) {
        while let Some(request) = self.held_requests.pop_front() {
            if !self.is_wanted(request.job.slot) {
                self.remove_job(request.job.slot);
                continue;
            }
            if let Err(SendError::Full(request)) = self.replays.try_send(request) {
                self.held_requests.push_front(request);
                break;
            }
        }
        while let Some((transform, control)) = self.held_controls.pop_front() {
            if let Err(SendError::Full(control)) = self.transforms[transform].try_send(control) {
                self.held_controls.push_front((transform, control));
                break;
            }
        }
        while let Some(errand) = self.held_errands.pop_front() {
            if let Err(SendError::Full(errand)) = self.errands.try_send(errand) {
                self.held_errands.push_front(errand);
                break;
            }
        }
    }
}
