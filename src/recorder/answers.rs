//! Answers to clients, on their way to the delivery threads. Those for which there is no room are held: never more than were
//! asked for.

use std::collections::VecDeque;

use crate::event::message::ToDelivery;
use crate::queue::{SendError, Sender};

/// What is told to the delivery threads.
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

    /// Tells what is held, as far as there is room.
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
