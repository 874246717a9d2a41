//! How long a stream's newest entry has been the newest. Pure.
//!
//! Redis derives ids from its clock, so Redis' time minus an id is the age of an entry, even for a viewer that comes
//! days later. An id is not a usable clock if the producer chose it, after Redis' clock was set back (`XADD *` then
//! continues from the newest id), or after a failover to a server whose clock lags. So the age from the id counts
//! only if it is possible: not if the id lies ahead of the clock, nor if it exceeds the time since this daemon saw
//! the entry arrive. In all other cases the daemon's own observation counts.

use std::collections::{HashMap, VecDeque};

use crate::model::{EntryId, StreamName};

/// Ids below this cannot come from a clock: 2001-09-09, years before the first Redis.
const CLOCK_MS_MIN: u64 = 1_000_000_000_000;
/// How many streams without live viewers are remembered.
const REMEMBERED_MAX: usize = 4096;
/// How soon a request is repeated, in case the answer was lost.
const ASK_AGAIN_US: u64 = 1_000_000;

/// How long this daemon has known an entry to be the newest, µs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The entry was read live this long ago.
    Arrived(u64),
    /// The entry was found in history this long ago, and may be much older.
    Found(u64),
}

/// How long `newest` has been the newest entry at `redis_us` by Redis' clock, µs.
#[must_use]
pub const fn silence_us(newest: EntryId, redis_us: u64, seen: Seen) -> u64 {
    match (seen, age_us(newest, redis_us)) {
        (Seen::Arrived(observed), Some(age)) if observed < age => observed,
        (_, Some(age)) => age,
        (Seen::Arrived(observed) | Seen::Found(observed), None) => observed,
    }
}

/// How long ago an entry was written, µs; `None` if its id is not a usable clock.
#[must_use]
pub const fn age_us(id: EntryId, redis_us: u64) -> Option<u64> {
    if id.ms < CLOCK_MS_MIN {
        return None;
    }
    match id.ms.checked_mul(1000) {
        Some(written_us) => redis_us.checked_sub(written_us),
        None => None,
    }
}

/// The knowledge of a stream's newest entry beyond what Redis reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The entry.
    pub newest: EntryId,
    /// For how long it has been known.
    pub seen: Seen,
    /// Whether the end of its generation was sent to viewers although no entry contains it, because none could be
    /// written.
    pub is_end_sent: bool,
}

impl Seen {
    /// For how long the entry has been known, µs, and whether it was read live.
    #[must_use]
    pub const fn parts(self) -> (u64, bool) {
        match self {
            Self::Arrived(observed_us) => (observed_us, true),
            Self::Found(observed_us) => (observed_us, false),
        }
    }

    /// The knowledge of the newest entry of a stream that the daemon begins to read live, from what it `remembered`.
    /// The times are those of this host's clock and of Redis'; `appeared_us` is when the daemon saw the stream appear,
    /// if it did.
    #[must_use]
    pub fn at_start(
        newest: EntryId,
        remembered: Option<Known>,
        (now_us, redis_us): (u64, u64),
        appeared_us: Option<u64>,
    ) -> Self {
        match (remembered.filter(|known| known.newest == newest), appeared_us) {
            (Some(known), _) => known.seen,
            // No entry is older than its stream.
            (None, Some(at)) => {
                let age_us = silence_us(newest, redis_us, Self::Found(0));
                Self::Arrived(age_us.min(now_us.saturating_sub(at)))
            }
            (None, None) => Self::Found(0),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Note {
    newest: EntryId,
    /// Since when the entry is known.
    since_us: u64,
    /// Whether the entry was read live.
    has_arrived: bool,
    asked_us: u64,
    is_end_sent: bool,
}

/// Unfinished streams that are not read live, so that a second look shows how long they have been silent.
#[derive(Debug, Default)]
pub struct Remembered {
    notes: HashMap<StreamName, Note>,
    order: VecDeque<StreamName>,
}

impl Remembered {
    /// The knowledge of the stream at `now_us` by this host's clock.
    #[must_use]
    pub fn get(&self, stream: &StreamName, now_us: u64) -> Option<Known> {
        let note = self.notes.get(stream)?;
        let observed_us = now_us.saturating_sub(note.since_us);
        let seen = if note.has_arrived { Seen::Arrived(observed_us) } else { Seen::Found(observed_us) };
        Some(Known { newest: note.newest, seen, is_end_sent: note.is_end_sent })
    }

    /// Records that the stream's newest entry is `newest`.
    pub fn met(&mut self, stream: &StreamName, newest: EntryId, now_us: u64) {
        self.note(stream, newest, now_us);
    }

    /// Records what is known of a stream that is not read live any more.
    pub fn left(&mut self, stream: &StreamName, known: Known, now_us: u64) {
        let note = self.note(stream, known.newest, now_us);
        let (observed_us, has_arrived) = known.seen.parts();
        (note.since_us, note.has_arrived) = (now_us.saturating_sub(observed_us), has_arrived);
        note.is_end_sent |= known.is_end_sent;
    }

    /// Whether to request the end of the generation whose newest entry is `newest`; records the request.
    pub fn asks(&mut self, stream: &StreamName, newest: EntryId, now_us: u64) -> bool {
        let note = self.note(stream, newest, now_us);
        let is_due = now_us >= note.asked_us.saturating_add(ASK_AGAIN_US);
        if is_due {
            note.asked_us = now_us;
        }
        is_due
    }

    /// Records that the end after `newest` could not be written but was sent to viewers.
    pub fn end_sent(&mut self, stream: &StreamName, newest: EntryId, now_us: u64) {
        self.note(stream, newest, now_us).is_end_sent = true;
    }

    /// The note of the stream, replaced if it was about another entry. The oldest note is dropped when there is no
    /// room.
    fn note(&mut self, stream: &StreamName, newest: EntryId, now_us: u64) -> &mut Note {
        let fresh = Note { newest, since_us: now_us, has_arrived: false, asked_us: 0, is_end_sent: false };
        if !self.notes.contains_key(stream) {
            if self.order.len() >= REMEMBERED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.notes.remove(&oldest);
            }
            self.order.push_back(stream.clone());
        }
        let note = self.notes.entry(stream.clone()).or_insert(fresh);
        if note.newest != newest {
            *note = fresh;
        }
        note
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: u64 = 1_790_000_000_000_000;

    fn written(ago_ms: i64) -> EntryId {
        EntryId::new((NOW_US / 1000).checked_add_signed(-ago_ms).unwrap(), 0)
    }

    #[test]
    fn an_id_that_follows_the_clock_shows_its_age() {
        assert_eq!(silence_us(written(3_000), NOW_US, Seen::Found(0)), 3_000_000);
        assert_eq!(silence_us(written(3_000), NOW_US, Seen::Arrived(2_990_000)), 2_990_000);
        let days = 40 * 24 * 3600 * 1000;
        assert_eq!(silence_us(written(days), NOW_US, Seen::Found(7)), 1000 * days.unsigned_abs());
    }

    #[test]
    fn an_id_ahead_is_no_clock() {
        for ahead in [written(-1), written(-60_000), EntryId::MAX, EntryId::new(u64::MAX, 1)] {
            assert_eq!(silence_us(ahead, NOW_US, Seen::Found(5)), 5);
            assert_eq!(silence_us(ahead, NOW_US, Seen::Arrived(5)), 5);
        }
    }

    #[test]
    fn an_id_further_behind_than_its_arrival_is_no_clock() {
        assert_eq!(silence_us(written(60_000), NOW_US, Seen::Arrived(10)), 10);
        assert_eq!(silence_us(EntryId::new(7, 0), NOW_US, Seen::Found(10)), 10, "no Redis is that old");
    }

    #[test]
    fn unfinished_streams_are_remembered_until_an_entry_follows() {
        let (mut remembered, stream) = (Remembered::default(), StreamName::new("s", "m").unwrap());
        let newest = EntryId::new(7, 0);
        assert_eq!(remembered.get(&stream, 1), None);
        remembered.met(&stream, newest, 1_000_000);
        remembered.met(&stream, newest, 3_000_000);
        let known = Known { newest, seen: Seen::Found(2_000_000), is_end_sent: false };
        assert_eq!(remembered.get(&stream, 3_000_000), Some(known));
        assert!(remembered.asks(&stream, newest, 3_000_000));
        assert!(!remembered.asks(&stream, newest, 3_500_000), "it was asked just now");
        assert!(remembered.asks(&stream, newest, 4_000_000), "the answer may be lost");
        remembered.end_sent(&stream, newest, 4_100_000);
        assert!(remembered.get(&stream, 5_000_000).unwrap().is_end_sent);
        assert!(remembered.asks(&stream, newest, 9_000_000), "there may be room for it now");
        let next = EntryId::new(8, 0);
        remembered.met(&stream, next, 9_000_000);
        let known = Known { newest: next, seen: Seen::Found(0), is_end_sent: false };
        assert_eq!(remembered.get(&stream, 9_000_000), Some(known));
    }

    #[test]
    fn a_stream_that_is_read_live_again_is_as_silent_as_before() {
        let (mut remembered, stream) = (Remembered::default(), StreamName::new("s", "m").unwrap());
        let newest = written(9_000);
        let known = Known { newest, seen: Seen::Arrived(8_990_000), is_end_sent: false };
        remembered.left(&stream, known, NOW_US);
        let (later_us, again) = (NOW_US + 500_000, remembered.get(&stream, NOW_US + 500_000));
        let start =
            |newest, again, appeared_us| Seen::at_start(newest, again, (later_us, later_us), appeared_us);
        assert_eq!(start(newest, again, Some(NOW_US)), Seen::Arrived(9_490_000));
        assert_eq!(start(written(1_000), again, None), Seen::Found(0), "another entry has followed");
        assert_eq!(start(newest, None, Some(NOW_US - 60_000_000)), Seen::Arrived(9_500_000), "its age");
        assert_eq!(start(newest, None, Some(NOW_US)), Seen::Arrived(500_000), "as old as its stream");
        assert_eq!(start(EntryId::new(7, 0), None, Some(NOW_US)), Seen::Arrived(0), "its id is no clock");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut remembered = Remembered::default();
        let name = |n: usize| StreamName::new(&format!("s{n}"), "m").unwrap();
        for n in 0..REMEMBERED_MAX + 5 {
            remembered.met(&name(n), EntryId::new(1, 0), 1);
        }
        assert_eq!((remembered.notes.len(), remembered.order.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert!(remembered.get(&name(4), 1).is_none() && remembered.get(&name(5), 1).is_some());
    }
}
