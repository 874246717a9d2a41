//! The order in which clients' input is processed, and how much of it in each turn. Clients take turns, so that no
//! client, and no crowd of clients, delays live text. Pure.
//!
//! Turns alternate between connections whose sockets have new input and connections that have had a turn and have
//! more. So a flood delays neither newcomers nor itself forever.

use std::collections::VecDeque;

use crate::message::Slot;

/// How much input may be processed: requests or messages, and bytes from sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Requests and messages.
    pub requests: usize,
    /// Bytes read.
    pub bytes: usize,
}

impl Measure {
    /// One round of the loop: some hundreds of microseconds, after which live frames come first again.
    pub const ROUND: Self = Self { requests: 128, bytes: 256 * 1024 };
    /// One connection's turn.
    pub const TURN: Self = Self { requests: 16, bytes: 32 * 1024 };

    /// Whether no more input may be processed.
    #[must_use]
    pub const fn is_spent(&self) -> bool {
        self.requests == 0 || self.bytes == 0
    }

    /// Counts a request or message that was processed.
    pub const fn spend_request(&mut self) {
        self.requests = self.requests.saturating_sub(1);
    }

    /// Counts bytes that were read.
    pub const fn spend_bytes(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Takes the measure of one turn out of a round's: at most [`Measure::TURN`].
    #[must_use]
    pub fn take_turn(&mut self) -> Self {
        let turn = Self {
            requests: self.requests.min(Self::TURN.requests),
            bytes: self.bytes.min(Self::TURN.bytes),
        };
        self.requests -= turn.requests;
        self.bytes -= turn.bytes;
        turn
    }

    /// Gives back the unused part of a turn.
    pub const fn give_back(&mut self, turn: Self) {
        self.requests += turn.requests;
        self.bytes += turn.bytes;
    }
}

/// Connections that have input to process. INVARIANT: each is in it at most once; the owner ensures that.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Connections whose sockets have new input.
    fresh: VecDeque<Slot>,
    /// Connections that have had a turn and have more input.
    unfinished: VecDeque<Slot>,
    /// Whether the next turn goes to an unfinished connection, if there is one.
    is_unfinished_next: bool,
}

impl Backlog {
    /// Adds a connection whose socket has new input.
    pub fn add_fresh(&mut self, slot: Slot) {
        self.fresh.push_back(slot);
    }

    /// Adds a connection that has had a turn and has more input.
    pub fn add_unfinished(&mut self, slot: Slot) {
        self.unfinished.push_back(slot);
    }

    /// Takes the connection whose turn is next.
    pub fn take(&mut self) -> Option<Slot> {
        let is_unfinished_next = self.is_unfinished_next;
        self.is_unfinished_next = !is_unfinished_next;
        let (first, second) = if is_unfinished_next {
            (&mut self.unfinished, &mut self.fresh)
        } else {
            (&mut self.fresh, &mut self.unfinished)
        };
        first.pop_front().or_else(|| second.pop_front())
    }

    /// Whether no connection waits for a turn.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.unfinished.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(index: usize) -> Slot {
        Slot { index, generation: 1 }
    }

    /// Processes this many requests of each client. Returns the round in which each client was finished.
    fn rounds(wants: &[usize]) -> Vec<usize> {
        let mut left = wants.to_vec();
        let mut done = vec![0; wants.len()];
        let mut backlog = Backlog::default();
        (0..wants.len()).for_each(|index| backlog.add_fresh(slot(index)));
        for round in 1.. {
            let mut measure = Measure::ROUND;
            while !measure.is_spent()
                && let Some(next) = backlog.take()
            {
                let mut turn = measure.take_turn();
                while !turn.is_spent() && left[next.index] > 0 {
                    left[next.index] -= 1;
                    turn.spend_request();
                }
                measure.give_back(turn);
                match left[next.index] {
                    0 => done[next.index] = round,
                    _ => backlog.add_unfinished(next),
                }
            }
            if backlog.is_empty() {
                return done;
            }
        }
        done
    }

    #[test]
    fn a_flood_delays_neither_newcomers_nor_itself() {
        let mut wants = vec![10_000; 50];
        wants.extend([1, 1]);
        let done = rounds(&wants);
        // Each client before them has had one turn, with a turn of an unfinished client after each.
        let rounds = (2 * wants.len()).div_ceil(Measure::ROUND.requests / Measure::TURN.requests);
        assert!(done[50] <= rounds && done[51] <= rounds, "{:?} of {rounds}", &done[50..]);
        let requests: usize = wants.iter().sum();
        assert_eq!(done.iter().max(), Some(&requests.div_ceil(Measure::ROUND.requests)));
    }

    #[test]
    fn a_single_client_gets_the_whole_round() {
        assert_eq!(rounds(&[128]), [1]);
        assert_eq!(rounds(&[129]), [2]);
    }

    #[test]
    fn newcomers_do_not_delay_unfinished_clients() {
        let mut backlog = Backlog::default();
        backlog.add_unfinished(slot(0));
        for index in 1..100 {
            backlog.add_fresh(slot(index));
        }
        assert!((0..2).any(|_| backlog.take() == Some(slot(0))));
    }
}
