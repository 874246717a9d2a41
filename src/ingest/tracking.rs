//! Decides whether a reader lets Redis push which of its streams have news, or blocks on all of them. Pure.
//!
//! With `CLIENT TRACKING ON BCAST`, Redis pushes the names of all changed keys under the streams' prefix, once per
//! turn of its event loop. The cost of blocking grows with the number of streams that are read, the cost of tracking
//! with the number of writes, and tracking takes one more round trip. So a reader with few streams blocks, and a
//! reader with many tracks.
//!
//! A push is only a hint: a sweep over the silent streams finds news that was not pushed, and dead connections.
//! Redis also pushes the names of other instances' streams. If they outnumber the reader's own by far, the reader
//! blocks for a while instead.

use std::time::{Duration, Instant};

/// The number of streams from which a reader tracks; with half as many it blocks again.
const TRACKED_STREAMS_MIN: usize = 16;
/// How often a share of the silent streams is checked.
const SWEEP_INTERVAL: Duration = Duration::from_millis(200);
/// A sweep checks one stream in this many: all of them within two seconds, and never many at once.
pub(super) const SWEEPS_PER_ROUND: usize = 10;
/// A sweep skips a stream that was read within this time: a push or a later sweep will find its news.
pub(super) const SWEPT_SILENCE: Duration = Duration::from_secs(2);
/// How often the share of foreign names is judged.
const JUDGED_INTERVAL: Duration = Duration::from_secs(2);
/// The number of foreign names per own name that is too high,
const FOREIGN_PER_OWN_MAX: u64 = 64;
/// provided that there were this many between two judgements.
const FOREIGN_MIN: u64 = 10_000;
/// How long a reader blocks after it received too many foreign names, or after Redis refused tracking.
const REST: Duration = Duration::from_secs(60);

/// The connection on which a reader tracks, and how many own and foreign names were pushed.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    /// The connection on which tracking is on.
    connection: Option<u64>,
    rest_until: Option<Instant>,
    swept_at: Option<Instant>,
    judged_at: Option<Instant>,
    own: u64,
    foreign: u64,
}

impl Tracking {
    /// Whether tracking is on for this connection.
    pub(super) fn is_on(&self, connection: u64) -> bool {
        self.connection == Some(connection)
    }

    /// Whether it should be on, with this many streams.
    pub(super) fn is_wanted(&self, connection: u64, streams: usize, now: Instant) -> bool {
        let enough = if self.is_on(connection) { TRACKED_STREAMS_MIN / 2 } else { TRACKED_STREAMS_MIN };
        streams >= enough && self.may_be(now)
    }

    /// Whether it may be on, however few streams there are.
    pub(super) fn may_be(&self, now: Instant) -> bool {
        self.rest_until.is_none_or(|until| until <= now)
    }

    /// Tracking is on from now on; earlier changes were not pushed.
    pub(super) fn begin(&mut self, connection: u64) {
        *self = Self { connection: Some(connection), ..Self::default() };
    }

    /// Tracking is off.
    pub(super) fn end(&mut self) {
        self.connection = None;
    }

    /// Turns tracking off for a while: Redis refuses it, or pushes too many foreign names.
    pub(super) fn rest(&mut self, now: Instant) {
        self.rest_until = Some(now + REST);
    }

    /// Counts a name that was pushed.
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

    /// Judges the names that were pushed since the last judgement.
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
    fn many_streams_are_tracked_and_few_are_blocked_on() {
        let (mut tracking, now) = (Tracking::default(), Instant::now());
        assert!(!tracking.is_wanted(1, TRACKED_STREAMS_MIN - 1, now));
        assert!(tracking.is_wanted(1, TRACKED_STREAMS_MIN, now));
        tracking.begin(1);
        assert!(tracking.is_on(1) && !tracking.is_on(2), "another connection is not tracked");
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
