//! Answers to clients on their way to the delivery threads. Answers for which a thread's queue has no room are held
//! here; there are never more than requests.

use std::collections::VecDeque;

use crate::message::ToDelivery;
use crate::queue::{SendError, Sender};

/// The answers to the delivery threads that are not sent yet.
pub(super) struct Answers {
    deliveries: Vec<Sender<ToDelivery>>,
    unsent: VecDeque<(usize, ToDelivery)>,
}

impl Answers {
    pub(super) const fn new(deliveries: Vec<Sender<ToDelivery>>) -> Self {
        Self { deliveries, unsent: VecDeque::new() }
    }

    /// How many answers are held.
    pub(super) fn held(&self) -> usize {
        self.unsent.len()
    }

    pub(super) fn send(&mut self, delivery: usize, answer: ToDelivery) {
        self.unsent.push_back((delivery, answer));
        self.retry();
    }

    /// Sends held answers as far as there is room.
    pub(super) fn retry(&mut self) {
        while let Some((delivery, answer)) = self.unsent.pop_front() {
            // A delivery thread that has ended has no clients left.
            if let Err(SendError::Full(answer)) = self.deliveries[delivery].try_send(answer) {
                self.unsent.push_front((delivery, answer));
                return;
            }
        }
    }
}
