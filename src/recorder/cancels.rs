//! Requests to the producers to stop.

use std::time::{Duration, Instant};

use crate::event::record::CancelRequest;
use crate::queue::Receiver;
use crate::redis::{Command, Link, RedisError, Reply};

use super::pause::Pause;
use super::{Desk, can_be_later, millis};

/// Requests written in one round trip.
const CANCELS_PER_TRIP: usize = 64;
/// Requests to a producer that are kept.
const CONTROL_ENTRIES_MAX: u32 = 100;
/// How long they are kept.
const CONTROL_KEPT: Duration = Duration::from_secs(3600);

/// The desk.
pub(super) struct Cancels {
    queue: Receiver<CancelRequest>,
    hand: Vec<CancelRequest>,
    pause: Pause,
}

impl Cancels {
    pub(super) const fn new(queue: Receiver<CancelRequest>) -> Self {
        Self { queue, hand: Vec::new(), pause: Pause::new("requests to cancel") }
    }

    /// What Redis refuses and why, if it does.
    pub(super) fn trouble(&self) -> Option<String> {
        self.pause.trouble()
    }

    /// When there is something to write.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        (!(self.hand.is_empty() && self.queue.is_empty())).then(|| self.pause.next(now))
    }

    /// Writes some.
    ///
    /// # Errors
    /// When Redis could not be asked.
    pub(super) fn tend(&mut self, link: &mut Link, desk: Desk<'_>) -> Result<(), RedisError> {
        if !self.pause.is_over(desk.now) {
            return Ok(());
        }
        let room = CANCELS_PER_TRIP - self.hand.len();
        self.hand.extend(std::iter::from_fn(|| self.queue.try_recv()).take(room));
        if self.hand.is_empty() {
            return Ok(());
        }
        let at_us = desk.clock.at(desk.now_us);
        let mut commands = Vec::new();
        for CancelRequest { stream, reason, by } in &self.hand {
            let key = desk.keys.control(stream);
            let add =
                Command::new("XADD").arg(&key).args(["MAXLEN", "~"]).number(CONTROL_ENTRIES_MAX).arg("*");
            let reason = reason.as_deref().unwrap_or_default();
            commands.push(add.args(["type", "cancel", "reason", reason, "by", by, "at"]).number(at_us));
            commands.push(Command::new("PEXPIRE").arg(&key).number(millis(CONTROL_KEPT)));
        }
        let replies = link.call_all(&commands)?;
        for (request, replies) in std::mem::take(&mut self.hand).into_iter().zip(replies.chunks(2)) {
            match replies.iter().find_map(Reply::error) {
                None => self.pause.works(),
                Some(error) => {
                    self.pause.refused(&desk.keys.control(&request.stream), &error, desk.now);
                    if can_be_later(&error) {
                        self.hand.push(request);
                    }
                }
            }
        }
        Ok(())
    }
}
