//! The order in which connections with new bytes are written to. Pure.
//!
//! A round writes to a limited number of connections, so that new input is read in between: first to some that were
//! queued last, so that a crowd of viewers of one stream does not delay the viewers of others, then to those that have
//! waited longest. The latter are most, so that under a load that fills the queue all wait about equally long.
//! Measured with 10,000 streams of 10 tokens a second on two cores, which is more than they carry: if most turns go to
//! the newest, the p50 is 85 ms and the p99 600 ms; if most go to the oldest, 112 and 327 ms.

use std::collections::VecDeque;

use crate::message::Slot;

/// How many connections a round writes to of those that were queued last.
const NEWEST_PER_ROUND: usize = 64;
/// How many it writes to, afterwards, of those that have waited longest.
const OLDEST_PER_ROUND: usize = 256;

/// Connections to be written to. The owner ensures that each is in it at most once.
#[derive(Debug, Default)]
pub(super) struct WriteQueue(VecDeque<Slot>);

impl WriteQueue {
    /// How many turns a round has.
    pub(super) const TURNS_PER_ROUND: usize = NEWEST_PER_ROUND + OLDEST_PER_ROUND;

    /// Adds a connection that has new bytes.
    pub(super) fn push(&mut self, slot: Slot) {
        self.0.push_back(slot);
    }

    /// Removes the connection whose turn it is in this turn of a round.
    pub(super) fn next(&mut self, turn: usize) -> Option<Slot> {
        if turn < NEWEST_PER_ROUND { self.0.pop_back() } else { self.0.pop_front() }
    }

    /// The number of connections that wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no connection waits.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(queue: &mut WriteQueue) -> Vec<usize> {
        (0..WriteQueue::TURNS_PER_ROUND).map_while(|turn| queue.next(turn)).map(|slot| slot.index).collect()
    }

    fn add(queue: &mut WriteQueue, indices: std::ops::Range<usize>) {
        indices.for_each(|index| queue.push(Slot { index, generation: 1 }));
    }

    #[test]
    fn a_crowd_does_not_delay_the_one_that_comes_last() {
        let mut queue = WriteQueue::default();
        add(&mut queue, 0..10_000);
        round(&mut queue);
        add(&mut queue, 10_000..10_001);
        assert_eq!(round(&mut queue)[0], 10_000);
    }

    #[test]
    fn nobody_waits_for_ever_under_a_load_that_fills_the_queue() {
        let mut queue = WriteQueue::default();
        add(&mut queue, 0..10_000);
        let mut last = 10_000;
        let mut left: std::collections::HashSet<usize> = (0..10_000).collect();
        let rounds = 10_000_usize.div_ceil(OLDEST_PER_ROUND);
        for _ in 0..rounds {
            // As many come as are written to.
            add(&mut queue, last..last + WriteQueue::TURNS_PER_ROUND);
            last += WriteQueue::TURNS_PER_ROUND;
            for index in round(&mut queue) {
                left.remove(&index);
            }
        }
        assert!(left.is_empty(), "{} wait longer than {rounds} rounds", left.len());
        assert_eq!((queue.len(), queue.is_empty()), (10_000, false));
    }
}
