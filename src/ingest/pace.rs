//! How many entries a history read asks for. Pure.
//!
//! The goal is a number of bytes, but XRANGE counts entries, and the size of a stream's entries is known only after
//! some were read. So the first read of a stream is small, and later reads grow with what is learned about the stream
//! and about all streams of the thread, up to the goal in bytes.
//!
//! Redis may cut the connection within a reply (`client-output-buffer-limit`), or a reply may stall. That does not
//! show which of several reads was the cause, so each read is retried alone. A read that fails alone is retried with
//! half as many entries, down to one; then with a shorter description of the stream in the reply; then with nothing
//! else in the reply. A manner that works is kept for a while. If none works, reads from this position of the stream
//! are refused for a while; other viewers of the stream are not affected.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::model::{ENTRY_BYTES_MAX, StreamName};

/// The byte goal of one read.
pub(super) const READ_BYTES_GOAL: usize = 1 << 20;
/// The byte goal of all reads in a round trip.
pub(super) const TRIP_BYTES_GOAL: usize = 4 << 20;
/// The byte limit of all reads in a round trip. An entry of the largest allowed size fits if it is read alone.
pub(super) const TRIP_BYTES_MAX: usize = ENTRY_BYTES_MAX + (64 << 10);
/// The most requests that share a round trip.
const REQUESTS_PER_TRIP_MAX: usize = 16;
/// The goal for the number of entries found in a round trip. Redis serves nobody else while it executes a pipeline,
/// and this many entries take it a quarter of a millisecond.
const TRIP_ENTRIES_GOAL: usize = 500;

/// The byte goal of the first read of a stream, based on the entry size of other streams.
const START_BYTES_GOAL: usize = 64 << 10;
/// The number of entries that the first read of a stream requests.
const START_COUNT: std::ops::RangeInclusive<usize> = 4..=32;
/// Assumed size of an entry before any was read, in bytes.
const ENTRY_BYTES_GUESS: usize = 16 << 10;
/// The factor by which a read may be larger than a read before it that came back full.
const GROWTH: usize = 8;
/// How long a read size or manner that failed is avoided.
const CAUTION_FOR: Duration = Duration::from_secs(60);
/// How long a read that fails in every manner is refused, initially and at most.
const REFUSED_FOR: Duration = Duration::from_secs(1);
const REFUSED_FOR_MAX: Duration = Duration::from_secs(30);
/// The most streams that are remembered.
const STREAMS_MAX: usize = 8192;
/// How long a stream is remembered at least, while there is room.
const REMEMBERED_FOR: Duration = Duration::from_secs(30);

/// How a read is sent. Each manner costs the daemon more than the one before and makes the reply smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Manner {
    /// In one round trip with others.
    Together,
    /// In a round trip of its own.
    Alone,
    /// With a description of the stream that contains one entry less.
    Lean,
    /// With nothing but the entries in the reply; the stream is described before and after.
    Apart,
}

impl Manner {
    const fn next(self) -> Option<Self> {
        match self {
            Self::Together => Some(Self::Alone),
            Self::Alone => Some(Self::Lean),
            Self::Lean => Some(Self::Apart),
            Self::Apart => None,
        }
    }
}

/// A planned read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The most entries to request.
    pub(super) count: usize,
    /// How the read is sent.
    pub(super) manner: Manner,
    /// The expected size of the result in bytes.
    pub(super) expected_bytes: usize,
}

/// The size of a read's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Entries requested.
    pub(super) asked: usize,
    /// Entries in the reply.
    pub(super) found: usize,
    /// Entries that fit into the budget.
    pub(super) kept: usize,
    /// Bytes that the reply's entries took.
    pub(super) bytes: u64,
}

/// The size of a stream's entries, and how they can be read.
#[derive(Clone, Debug)]
struct Known {
    /// Expected size of an entry, in bytes: a guess until entries were read. After that a larger size applies at
    /// once, a smaller one gradually.
    entry_bytes: usize,
    /// Whether entries of the stream were read.
    is_read: bool,
    /// The most entries that the next read may request.
    count_max: usize,
    manner: Manner,
    ceiling: Option<Ceiling>,
    refused: Option<Refused>,
    used_at: Instant,
}

/// A number of entries that was too large.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    count: usize,
    until: Instant,
}

/// A position from which a stream cannot be read.
#[derive(Clone, Debug)]
struct Refused {
    start: String,
    until: Instant,
    pause: Duration,
}

/// The facts that a replay thread has learned from its reads.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    streams: HashMap<StreamName, Known>,
    /// The recent size of an entry of any stream, in bytes.
    entry_bytes: Option<usize>,
    /// The recent number of entries per read.
    entries: usize,
}

/// A smoothed value: a larger one applies at once, a smaller one gradually.
fn smoothed(before: usize, seen: usize) -> usize {
    seen.max((before * 7 + seen) / 8)
}

impl Pace {
    /// How many requests to put into one round trip.
    pub(super) fn requests_per_trip(&self) -> usize {
        (TRIP_ENTRIES_GOAL / self.entries.max(1)).clamp(1, REQUESTS_PER_TRIP_MAX)
    }

    /// Plans a read of a stream for a request of at most `count` entries and `bytes` bytes.
    pub(super) fn plan(&mut self, stream: &StreamName, (count, bytes): (usize, usize), now: Instant) -> Plan {
        let known = self.known(stream, now);
        if known.ceiling.is_some_and(|ceiling| ceiling.until <= now) {
            (known.ceiling, known.manner) = (None, Manner::Together);
        }
        let entry_bytes = known.entry_bytes.max(1);
        let fitting = (bytes.min(READ_BYTES_GOAL) / entry_bytes).max(1);
        let count = count.min(known.count_max).min(fitting).max(1);
        Plan { count, manner: known.manner, expected_bytes: count * entry_bytes }
    }

    fn known(&mut self, stream: &StreamName, now: Instant) -> &mut Known {
        if self.streams.len() >= STREAMS_MAX && !self.streams.contains_key(stream) {
            self.streams.retain(|_, known| now.duration_since(known.used_at) < REMEMBERED_FOR);
            if self.streams.len() >= STREAMS_MAX {
                self.streams.clear();
            }
        }
        let entry_bytes = self.entry_bytes.unwrap_or(ENTRY_BYTES_GUESS);
        let known = self.streams.entry(stream.clone()).or_insert_with(|| Known {
            entry_bytes,
            is_read: false,
            count_max: (START_BYTES_GOAL / entry_bytes.max(1))
                .clamp(*START_COUNT.start(), *START_COUNT.end()),
            manner: Manner::Together,
            ceiling: None,
            refused: None,
            used_at: now,
        });
        known.used_at = now;
        known
    }

    /// Records the result of a read.
    pub(super) fn found(&mut self, stream: &StreamName, seen: Seen, now: Instant) {
        let entry_bytes = usize::try_from(seen.bytes).unwrap_or(usize::MAX).checked_div(seen.found);
        let known = self.known(stream, now);
        known.refused = None;
        if let Some(entry_bytes) = entry_bytes {
            let was_read = std::mem::replace(&mut known.is_read, true);
            known.entry_bytes = if was_read { smoothed(known.entry_bytes, entry_bytes) } else { entry_bytes };
        }
        if seen.kept < seen.found {
            known.count_max = seen.kept.max(1);
        } else if seen.found >= known.count_max {
            let ceiling = known.ceiling.map_or(usize::MAX, |ceiling| ceiling.count - 1);
            known.count_max = known.count_max.saturating_mul(GROWTH).min(ceiling).max(1);
        }
        if known.manner == Manner::Alone && known.ceiling.is_none() {
            known.manner = Manner::Together;
        }
        self.entries = smoothed(self.entries, seen.found);
        if let Some(entry_bytes) = entry_bytes {
            self.entry_bytes =
                Some(self.entry_bytes.map_or(entry_bytes, |before| smoothed(before, entry_bytes)));
        }
    }

    /// Records that the connection was lost or stalled while up to `count` entries of the stream were awaited.
    /// Returns `false` if no other manner of reading is left.
    pub(super) fn failed(&mut self, stream: &StreamName, count: usize, now: Instant) -> bool {
        let known = self.known(stream, now);
        if known.manner == Manner::Together {
            known.manner = Manner::Alone;
            return true;
        }
        known.ceiling = Some(Ceiling { count: count.max(2), until: now + CAUTION_FOR });
        known.count_max = (count / 2).max(1);
        if count > 1 {
            return true;
        }
        match known.manner.next() {
            Some(next) => {
                known.manner = next;
                true
            }
            None => false,
        }
    }

    /// Records that other reads in the same round trip left no room for the stream's first entry.
    pub(super) fn starved(&mut self, stream: &StreamName, now: Instant) {
        let known = self.known(stream, now);
        known.manner = known.manner.max(Manner::Alone);
        known.count_max = 1;
    }

    /// Records that the stream cannot be read from `start` on in any manner.
    pub(super) fn refuse(&mut self, stream: &StreamName, start: &str, now: Instant) {
        let known = self.known(stream, now);
        let before = known.refused.take().filter(|refused| refused.start == start);
        let pause = before.map_or(REFUSED_FOR, |refused| (refused.pause * 2).min(REFUSED_FOR_MAX));
        known.refused = Some(Refused { start: start.to_owned(), until: now + pause, pause });
    }

    /// Whether reads of the stream from `start` on are refused at present.
    pub(super) fn is_refused(&self, stream: &StreamName, start: &str, now: Instant) -> bool {
        let refused = self.streams.get(stream).and_then(|known| known.refused.as_ref());
        refused.is_some_and(|refused| refused.start == start && refused.until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: (usize, usize) = (250, READ_BYTES_GOAL);

    fn name(n: usize) -> StreamName {
        StreamName::new(&format!("s{n}"), "m").unwrap()
    }

    const fn seen(asked: usize, entry_bytes: u64) -> Seen {
        Seen { asked, found: asked, kept: asked, bytes: asked as u64 * entry_bytes }
    }

    /// Reads a stream of such entries a few times and returns how many entries each read requested.
    fn reads(pace: &mut Pace, stream: &StreamName, entry_bytes: u64, now: Instant) -> Vec<usize> {
        let read = |_| {
            let plan = pace.plan(stream, WANTED, now);
            pace.found(stream, seen(plan.count, entry_bytes), now);
            plan.count
        };
        (0..4).map(read).collect()
    }

    #[test]
    fn reads_begin_small_and_grow_up_to_what_the_bytes_allow() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(reads(&mut pace, &name(0), 100, now), [4, 32, 250, 250]);
        assert_eq!(reads(&mut pace, &name(1), 100, now), [32, 250, 250, 250], "like those of others");
        assert_eq!(reads(&mut pace, &name(2), 1 << 20, now), [32, 1, 1, 1]);
        assert_eq!(reads(&mut pace, &name(3), 1 << 20, now), [1, 1, 1, 1], "learnt by the thread");
        assert_eq!(reads(&mut pace, &name(4), 10 << 10, now)[3], 102);
        assert_eq!(
            pace.plan(&name(4), (250, 20 << 10), now).count,
            2,
            "no more than the viewer has room for"
        );
    }

    #[test]
    fn entries_that_did_not_fit_are_requested_in_smaller_reads() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        reads(&mut pace, &name(0), 100, now);
        pace.found(&name(0), Seen { asked: 250, found: 250, kept: 8, bytes: 250 << 20 }, now);
        assert_eq!(pace.plan(&name(0), WANTED, now).count, 1);
        let huge = Seen { asked: 1, found: 1, kept: 0, bytes: 100 << 20 };
        pace.found(&name(0), huge, now);
        assert_eq!(pace.plan(&name(0), WANTED, now).count, 1);
    }

    #[test]
    fn a_read_that_fails_is_asked_alone_then_smaller_then_leaner() {
        let (mut pace, now, stream) = (Pace::default(), Instant::now(), name(0));
        reads(&mut pace, &stream, 100, now);
        let mut tried = Vec::new();
        let next = |pace: &mut Pace, now| {
            let plan = pace.plan(&stream, WANTED, now);
            (plan.count, plan.manner)
        };
        let mut count = next(&mut pace, now).0;
        while pace.failed(&stream, count, now) {
            tried.push(next(&mut pace, now));
            count = next(&mut pace, now).0;
        }
        let manners =
            |manner| tried.iter().filter(|tried| tried.1 == manner).map(|tried| tried.0).collect::<Vec<_>>();
        assert_eq!(manners(Manner::Alone), [250, 125, 62, 31, 15, 7, 3, 1]);
        assert_eq!((manners(Manner::Lean), manners(Manner::Apart)), (vec![1], vec![1]));
        // A manner that works is kept for a while.
        pace.found(&stream, seen(1, 100), now);
        assert_eq!(next(&mut pace, now), (1, Manner::Apart));
        assert_eq!(next(&mut pace, now + CAUTION_FOR).1, Manner::Together);
    }

    #[test]
    fn an_innocent_one_is_together_with_others_again_at_once() {
        let (mut pace, now, stream) = (Pace::default(), Instant::now(), name(0));
        reads(&mut pace, &stream, 100, now);
        assert!(pace.failed(&stream, 250, now));
        assert_eq!(pace.plan(&stream, WANTED, now).manner, Manner::Alone);
        pace.found(&stream, seen(250, 100), now);
        assert_eq!(
            pace.plan(&stream, WANTED, now),
            Plan { count: 250, manner: Manner::Together, expected_bytes: 25_000 }
        );
    }

    #[test]
    fn only_the_place_that_cannot_be_read_is_refused_and_ever_longer() {
        let (mut pace, now, stream) = (Pace::default(), Instant::now(), name(0));
        pace.refuse(&stream, "(5-0", now);
        assert!(pace.is_refused(&stream, "(5-0", now) && !pace.is_refused(&stream, "(6-0", now));
        assert!(!pace.is_refused(&name(1), "(5-0", now));
        let later = now + REFUSED_FOR;
        assert!(!pace.is_refused(&stream, "(5-0", later));
        pace.refuse(&stream, "(5-0", later);
        assert!(pace.is_refused(&stream, "(5-0", later + REFUSED_FOR), "twice as long");
        pace.found(&stream, seen(1, 1), later);
        assert!(!pace.is_refused(&stream, "(5-0", later));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for n in 0..STREAMS_MAX + 9 {
            pace.plan(&name(n), WANTED, now);
        }
        assert!(pace.streams.len() <= STREAMS_MAX);
    }

    #[test]
    fn round_trips_are_small_while_much_is_found() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.requests_per_trip(), REQUESTS_PER_TRIP_MAX);
        pace.found(&name(0), seen(250, 100), now);
        assert_eq!(pace.requests_per_trip(), 2);
        pace.found(&name(0), seen(9_000, 100), now);
        assert_eq!(pace.requests_per_trip(), 1);
        for _ in 0..100 {
            pace.found(&name(0), seen(0, 0), now);
        }
        assert_eq!(pace.requests_per_trip(), REQUESTS_PER_TRIP_MAX);
    }
}
