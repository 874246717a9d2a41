//! Answers to clients, on their way to the delivery threads. Answers for which a thread's queue has no room are held;
//! there are never more than requests.

use std::collections::VecDeque;

use crate::message::ToDelivery;
use crate::queue::{SendError, Sender};

/// The answers to the delivery threads that are not sent yet.
pub(super) struct Answers {
    deliveries: Vec<Sender<ToDelivery>>,
    untold: VecDeque<(usize, ToDelivery)>,
}

impl Answers {
    pub(super) const fn new(deliveries: Vec<Sender<ToDelivery>>) -> Self {
        Self { deliveries, untold: VecDeque::new() }
    }

    /// How many are held.
    pub(super) fn held(&self) -> usize {
        self.untold.len()
    }

    pub(super) fn tell(&mut self, delivery: usize, answer: ToDelivery) {
        self.untold.push_back((delivery, answer));
        self.tell_again();
    }

    /// Sends held answers, as far as there is room.
    pub(super) fn tell_again(&mut self) {
        while let Some((delivery, answer)) = self.untold.pop_front() {
            // A delivery thread that is gone has no clients left.
            if let Err(SendError::Full(answer)) = self.deliveries[delivery].try_send(answer) {
                self.untold.push_front((delivery, answer));
                return;
            }
        }
    }
}
