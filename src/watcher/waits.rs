//! The streams that do not exist yet and for which viewers wait. Pure.
//!
//! The number of waits is bounded: each delivery thread waits for a name at most once, however many of its viewers
//! do.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::model::StreamName;

/// How many names one round trip checks.
pub(super) const CHECKS_PER_TRIP_MAX: usize = 256;

/// All names are checked at least this often if Redis pushes new keys, as a fallback.
const SWEEP_TRACKED: Duration = Duration::from_secs(1);
/// How often all names are checked if it does not: this bounds how late a new stream is detected.
const SWEEP_UNTRACKED: Duration = Duration::from_millis(50);
/// The share of its time that Redis may spend on these checks: 1 in this many.
const DUTY: u32 = 5;

/// The delivery threads that wait for each name, and the names to be checked.
#[derive(Debug)]
pub(super) struct Waits {
    by_stream: HashMap<StreamName, Vec<usize>>,
    /// Names to be checked, in this order.
    due: VecDeque<StreamName>,
    swept_at: Instant,
    /// No check before this time, so that many names do not overload Redis.
    rest_until: Instant,
}

impl Waits {
    pub(super) fn new(now: Instant) -> Self {
        Self { by_stream: HashMap::new(), due: VecDeque::new(), swept_at: now, rest_until: now }
    }

    /// A delivery thread waits for a name. The stream may have appeared just before, so it is checked.
    pub(super) fn wait(&mut self, stream: StreamName, delivery: usize) {
        let waiting = self.by_stream.entry(stream.clone()).or_default();
        if !waiting.contains(&delivery) {
            waiting.push(delivery);
        }
        self.due.push_front(stream);
    }

    /// A delivery thread does not wait for a name any more.
    pub(super) fn forget(&mut self, stream: &StreamName, delivery: usize) {
        if let Some(waiting) = self.by_stream.get_mut(stream) {
            waiting.retain(|&who| who != delivery);
            if waiting.is_empty() {
                self.by_stream.remove(stream);
            }
        }
    }

    /// The stream exists. Removes and returns the delivery threads that waited for it.
    pub(super) fn found(&mut self, stream: &StreamName) -> Vec<usize> {
        self.by_stream.remove(stream).unwrap_or_default()
    }

    pub(super) fn is_waited(&self, stream: &StreamName) -> bool {
        self.by_stream.contains_key(stream)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_stream.is_empty()
    }

    /// Schedules a check of every name now: news may have missed something.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.swept_at = now;
        self.due = self.by_stream.keys().cloned().collect();
    }

    /// When the next check is due; `None` if nobody waits.
    pub(super) fn next_look(&self, is_tracking: bool) -> Option<Instant> {
        if self.is_empty() {
            return None;
        }
        let sweep_at = self.swept_at + if is_tracking { SWEEP_TRACKED } else { SWEEP_UNTRACKED };
        let wanted = if self.due.is_empty() { sweep_at } else { self.swept_at };
        Some(wanted.max(self.rest_until))
    }

    /// The names to check in the next round trip; none before the check is due.
    pub(super) fn take_due(&mut self, is_tracking: bool, now: Instant) -> Vec<StreamName> {
        if self.next_look(is_tracking).is_none_or(|at| at > now) {
            return Vec::new();
        }
        if self.due.is_empty() {
            self.sweep(now);
        }
        let mut names = Vec::new();
        while names.len() < CHECKS_PER_TRIP_MAX
            && let Some(stream) = self.due.pop_front()
        {
            if self.is_waited(&stream) {
                names.push(stream);
            }
        }
        names
    }

    /// Records that a round trip of checks took `cost`.
    pub(super) fn looked(&mut self, cost: Duration, now: Instant) {
        self.rest_until = now + cost * (DUTY - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> StreamName {
        format!("s{n}/m").parse().unwrap()
    }

    #[test]
    fn a_new_name_is_looked_for_at_once_and_then_now_and_again() {
        let start = Instant::now();
        let mut waits = Waits::new(start);
        assert_eq!(waits.next_look(true), None);
        waits.wait(name(1), 0);
        waits.wait(name(1), 1);
        assert_eq!(waits.take_due(true, start), [name(1), name(1)]);
        assert_eq!(waits.next_look(true), Some(start + SWEEP_TRACKED));
        assert_eq!(waits.next_look(false), Some(start + SWEEP_UNTRACKED));
        assert!(waits.take_due(true, start).is_empty());
        assert_eq!(waits.take_due(true, start + SWEEP_TRACKED), [name(1)]);
        assert_eq!(waits.found(&name(1)), [0, 1]);
        assert!(waits.found(&name(1)).is_empty() && waits.is_empty());
    }

    #[test]
    fn a_delivery_thread_that_stopped_waiting_is_not_notified() {
        let mut waits = Waits::new(Instant::now());
        waits.wait(name(1), 0);
        waits.wait(name(1), 3);
        waits.forget(&name(1), 0);
        waits.forget(&name(2), 0);
        assert!(waits.is_waited(&name(1)));
        waits.forget(&name(1), 3);
        assert!(waits.is_empty() && waits.take_due(true, Instant::now()).is_empty());
    }

    #[test]
    fn many_names_are_looked_for_in_turns_with_pauses() {
        let start = Instant::now();
        let mut waits = Waits::new(start);
        (0..CHECKS_PER_TRIP_MAX + 10).for_each(|n| waits.wait(name(n), 0));
        assert_eq!(waits.take_due(false, start).len(), CHECKS_PER_TRIP_MAX);
        let cost = Duration::from_millis(2);
        waits.looked(cost, start);
        assert_eq!(waits.next_look(false), Some(start + cost * (DUTY - 1)));
        assert!(waits.take_due(false, start + cost).is_empty());
        assert_eq!(waits.take_due(false, start + cost * (DUTY - 1)).len(), 10);
        waits.sweep(start);
        assert_eq!(waits.due.len(), CHECKS_PER_TRIP_MAX + 10);
    }
}
