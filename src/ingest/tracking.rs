//! Whether a reader is told which of its streams have news, or blocks on all of them. Pure.
//!
//! Redis itself tells (`CLIENT TRACKING ON BCAST`): the names of all changed keys under the streams' prefix,
//! once for each turn of its event loop. Blocking costs Redis by the streams that are read, being told by those
//! that are written; it takes one more round trip. So a reader with few streams blocks and one with many is told.
//!
//! A notification is only a hint: a sweep over the silent streams finds news that were not told, and dead connections.
//! Other instances' streams are told too. Where those outweigh the reader's own by far, it goes back to
//! blocking for a while.

use std::time::{Duration, Instant};

/// From so many streams on a reader is told; with half as many it blocks again.
const TRACKED_STREAMS_MIN: usize = 16;
/// How often some streams are looked at of which nothing was told.
const SWEEP_INTERVAL: Duration = Duration::from_millis(200);
/// A sweep looks at one stream in so many: at all of them within two seconds, and never at many at once.
pub(super) const SWEEPS_PER_ROUND: usize = 10;
/// A stream that was read so lately is passed over: whatever comes will be told, or found by a later sweep.
pub(super) const SWEPT_SILENCE: Duration = Duration::from_secs(2);
/// How often what was told is judged.
const JUDGED_INTERVAL: Duration = Duration::from_secs(2);
/// Foreign names for each own one that are too many,
const FOREIGN_PER_OWN_MAX: u64 = 64;
/// where they are at least so many between two judgements.
const FOREIGN_MIN: u64 = 10_000;
/// How long a reader blocks that was told too much, or was refused to be told.
const REST: Duration = Duration::from_secs(60);

/// On which connection a reader is told, and how many own and foreign names it was told.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    /// The connection on which it is told.
    connection: Option<u64>,
    rest_until: Option<Instant>,
    swept_at: Option<Instant>,
    judged_at: Option<Instant>,
    own: u64,
    foreign: u64,
}

impl Tracking {
    /// Whether the reader is told on this connection.
    pub(super) fn is_on(&self, connection: u64) -> bool {
        self.connection == Some(connection)
    }

    /// Whether it should be, with so many streams.
    pub(super) fn is_wanted(&self, connection: u64, streams: usize, now: Instant) -> bool {
        let enough = if self.is_on(connection) { TRACKED_STREAMS_MIN / 2 } else { TRACKED_STREAMS_MIN };
        streams >= enough && self.may_be(now)
    }

    /// Whether it may be, however few its streams are.
    pub(super) fn may_be(&self, now: Instant) -> bool {
        self.rest_until.is_none_or(|until| until <= now)
    }

    /// It is told from now on, but not of earlier changes.
    pub(super) fn begin(&mut self, connection: u64) {
        *self = Self { connection: Some(connection), ..Self::default() };
    }

    /// It is told no more.
    pub(super) fn end(&mut self) {
        self.connection = None;
    }

    /// It cannot be told, or is told too much.
    pub(super) fn rest(&mut self, now: Instant) {
        self.rest_until = Some(now + REST);
    }

    /// A name was told.
    pub(super) fn count(&mut self, is_own: bool) {
        let counter = if is_own { &mut self.own } else { &mut self.foreign };
        *counter += 1;
    }

    /// Whether it is time to sweep.
    pub(super) fn sweeps(&mut self, now: Instant) -> bool {
        self.judge(now);
        let is_due = self.swept_at.is_none_or(|at| now.duration_since(at) >= SWEEP_INTERVAL);
        if is_due {
            self.swept_at = Some(now);
        }
        is_due
    }

    /// Judges what was told since the last time.
    fn judge(&mut self, now: Instant) {
        if now.duration_since(*self.judged_at.get_or_insert(now)) < JUDGED_INTERVAL {
            return;
        }
        self.judged_at = Some(now);
        if self.foreign >= FOREIGN_MIN && self.foreign / FOREIGN_PER_OWN_MAX > self.own {
            self.rest(now);
        }
        (self.own, self.foreign) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_streams_are_told_of_and_few_are_blocked_on() {
        let (mut tracking, now) = (Tracking::default(), Instant::now());
        assert!(!tracking.is_wanted(1, TRACKED_STREAMS_MIN - 1, now));
        assert!(tracking.is_wanted(1, TRACKED_STREAMS_MIN, now));
        tracking.begin(1);
        assert!(tracking.is_on(1) && !tracking.is_on(2), "another connection is not told");
        assert!(tracking.is_wanted(1, TRACKED_STREAMS_MIN / 2, now));
        assert!(!tracking.is_wanted(1, TRACKED_STREAMS_MIN / 2 - 1, now));
        tracking.rest(now);
        assert!(!tracking.is_wanted(1, 1000, now));
        assert!(tracking.is_wanted(1, 1000, now + REST));
    }

    #[test]
    fn sweeps_come_at_once_and_then_in_turn() {
        let (mut tracking, now) = (Tracking::default(), Instant::now());
        tracking.begin(1);
        assert!(tracking.sweeps(now));
        assert!(!tracking.sweeps(now + SWEEP_INTERVAL / 2));
        assert!(tracking.sweeps(now + SWEEP_INTERVAL));
    }

    #[test]
    fn too_many_foreign_names_end_it() {
        let (mut tracking, mut now) = (Tracking::default(), Instant::now());
        tracking.begin(1);
        assert!(tracking.sweeps(now));
        for (own, foreign, wanted) in
            [(0, FOREIGN_MIN - 1, true), (1_000, 60_000, true), (1_000, 70_000, false)]
        {
            (0..own).for_each(|_| tracking.count(true));
            (0..foreign).for_each(|_| tracking.count(false));
            now += JUDGED_INTERVAL;
            assert!(tracking.sweeps(now));
            assert_eq!(tracking.is_wanted(1, 100, now), wanted, "{own} of {foreign}");
        }
    }
}
