//! Deadlines of thousands of connections in one loop: at most one per key, cheap to move.
//!
//! Most deadlines are postponed again and again (the next keep-alive, the slow-client limit). So postponing a deadline
//! only records the new time; the heap is updated when the old time comes. A dead entry of the heap is dropped when
//! its time comes, and all of them at once when they outnumber the others, so that the heap's size follows the number
//! of armed keys.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// How many more dead entries than armed keys the heap may hold.
const DEAD_MAX: usize = 64;

/// A key's deadline, and its entry in the heap. The entry's time is never after the deadline.
#[derive(Clone, Copy, Debug)]
struct Armed {
    generation: u64,
    at: Instant,
    entry: Entry,
}

/// An entry of the heap; the serial number distinguishes it from older ones of the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    at: Instant,
    serial: u64,
    key: usize,
}

/// The deadlines of one loop. Keys are small numbers, such as those of a slab; a key's generation is returned with
/// its deadline, so that the owner can detect a reused key.
#[derive(Debug, Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<Entry>>,
    /// By key.
    armed: Vec<Option<Armed>>,
    armed_count: usize,
    serial: u64,
}

impl Timers {
    /// Creates an empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of armed keys.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.armed_count
    }

    /// Whether no key is armed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.armed_count == 0
    }

    /// Sets the deadline of `key`, replacing an earlier one.
    pub fn arm(&mut self, key: usize, generation: u64, at: Instant) {
        if key >= self.armed.len() {
            self.armed.resize(key + 1, None);
        }
        let entry = match self.armed[key] {
            Some(armed) if armed.entry.at <= at => armed.entry,
            before => {
                self.armed_count += usize::from(before.is_none());
                self.push_entry(key, at)
            }
        };
        self.armed[key] = Some(Armed { generation, at, entry });
        self.compact();
    }

    /// Removes the deadline of `key`, if it has one.
    pub fn disarm(&mut self, key: usize) {
        if let Some(armed) = self.armed.get_mut(key)
            && armed.take().is_some()
        {
            self.armed_count -= 1;
            self.compact();
        }
    }

    /// The earliest deadline.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        self.settle_top().map(|armed| armed.at)
    }

    /// Removes and returns one deadline that is not after `now`, the earliest first, as key and generation.
    pub fn pop_due(&mut self, now: Instant) -> Option<(usize, u64)> {
        let Armed { generation, at, entry } = self.settle_top()?;
        if at > now {
            return None;
        }
        self.heap.pop();
        self.armed[entry.key] = None;
        self.armed_count -= 1;
        Some((entry.key, generation))
    }

    /// Moves the earliest deadline to the top of the heap, and returns it.
    fn settle_top(&mut self) -> Option<Armed> {
        loop {
            let Reverse(top) = *self.heap.peek()?;
            match self.armed[top.key] {
                Some(armed) if armed.entry != top => {}
                Some(armed) if armed.at == top.at => return Some(armed),
                Some(armed) => {
                    self.heap.pop();
                    let entry = self.push_entry(top.key, armed.at);
                    self.armed[top.key] = Some(Armed { entry, ..armed });
                    continue;
                }
                None => {}
            }
            self.heap.pop();
        }
    }

    fn push_entry(&mut self, key: usize, at: Instant) -> Entry {
        self.serial += 1;
        let entry = Entry { at, serial: self.serial, key };
        self.heap.push(Reverse(entry));
        entry
    }

    /// INVARIANT: the heap holds one entry for every armed key, and a bounded number of dead ones.
    fn compact(&mut self) {
        if self.heap.len() > 2 * self.armed_count + DEAD_MAX {
            let armed = &self.armed;
            self.heap.retain(|Reverse(entry)| armed[entry.key].is_some_and(|armed| armed.entry == *entry));
            self.heap.shrink_to(2 * self.armed_count + DEAD_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Arm { key: usize, in_ms: u64 },
        Disarm { key: usize },
        Sleep { ms: u64 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..10_usize, 0..100_u64).prop_map(|(key, in_ms)| Step::Arm { key, in_ms }),
            1 => (0..12_usize).prop_map(|key| Step::Disarm { key }),
            2 => (0..40_u64).prop_map(|ms| Step::Sleep { ms }),
        ];
        prop::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn timers_behave_like_a_plain_map(steps in steps()) {
            let mut now = Instant::now();
            let mut timers = Timers::new();
            let mut model = BTreeMap::new();
            for (generation, step) in (0_u64..).zip(steps) {
                match step {
                    Step::Arm { key, in_ms } => {
                        let at = now + Duration::from_millis(in_ms);
                        timers.arm(key, generation, at);
                        model.insert(key, (at, generation));
                    }
                    Step::Disarm { key } => {
                        timers.disarm(key);
                        model.remove(&key);
                    }
                    Step::Sleep { ms } => now += Duration::from_millis(ms),
                }
                prop_assert_eq!(timers.next_deadline(), model.values().map(|&(at, _)| at).min());
                let mut last = None;
                while let Some((key, generation)) = timers.pop_due(now) {
                    let (at, armed_generation) = model.remove(&key).expect("only what is armed comes due");
                    prop_assert_eq!(generation, armed_generation);
                    prop_assert!(at <= now && last <= Some(at));
                    last = Some(at);
                }
                prop_assert!(model.values().all(|&(at, _)| at > now));
                prop_assert_eq!(timers.len(), model.len());
                prop_assert!(timers.heap.len() <= 2 * timers.len() + DEAD_MAX);
            }
        }
    }

    #[test]
    fn moving_a_deadline_does_not_grow_the_heap() {
        let start = Instant::now();
        let mut timers = Timers::new();
        for step in 0..10_000 {
            timers.arm(3, step, start + Duration::from_millis(step));
        }
        assert_eq!(timers.heap.len(), 1);
        for step in (0..10_000).rev() {
            timers.arm(3, step, start + Duration::from_millis(step));
        }
        assert!(timers.heap.len() <= 2 + DEAD_MAX);
        assert_eq!(timers.pop_due(start), Some((3, 0)));
        assert!(timers.is_empty() && timers.next_deadline().is_none());
    }
}
