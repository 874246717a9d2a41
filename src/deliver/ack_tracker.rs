//! Tracks how much of a stream a viewer was sent, and how much of that its client has acknowledged. Pure.
//!
//! Acknowledgements are merged: of those of one viewer within [`INTERVAL`], only the highest is passed on. One that
//! reaches the end of a generation is passed on at once, because other programs wait for it.
//!
//! An acknowledged id is a position, like `after`: it covers everything up to it. An id above what the viewer was sent
//! is refused. A lower id need not be the id of an entry. Frames are merged, so a client may know ids within them from
//! another connection; the tracker does not store every id, and Redis cannot distinguish an entry that was trimmed
//! from one that never existed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::message::Cursor;
use crate::model::{EntryId, Position};

/// At most one acknowledgement of a viewer is passed on in this time, not counting ends of generations.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// How many acknowledgements of one viewer may wait for an answer. Beyond that, the oldest one is dropped: the answer
/// to a later one covers it.
const UNANSWERED_MAX: usize = 256;
/// How long the recorder may take to answer before its answer counts as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How many ends of generations are remembered. They show to which generation an acknowledged entry belongs, and
/// whether it is an end. A client acknowledges each end as it arrives, but a busy thread processes its input later. So
/// as many are kept as acknowledgements may wait for an answer.
const ENDS_MAX: usize = UNANSWERED_MAX;

/// The escaped id of a generation, if it has one.
pub(super) type Generation = Option<Arc<String>>;

/// The state of one viewer's acknowledgements.
#[derive(Debug, Default)]
pub(super) struct AckTracker {
    /// The position at which the viewer began.
    from: Position,
    /// The position up to which the client had everything before this viewer was added, even if the stream was
    /// recreated since.
    received: Position,
    /// The ends of generations that the viewer was sent, oldest first.
    ends: VecDeque<(EntryId, Generation)>,
    /// The acknowledgement that was last passed on, and when.
    passed: Position,
    passed_at: Option<Instant>,
    /// The acknowledgement that is held to be passed on later, and when the client sent it, in µs since 1970 by this
    /// host's clock.
    held: Option<(Position, u64)>,
    /// The highest acknowledgement that the recorder has written.
    written: Position,
    /// Acknowledgements that are not answered yet, and since when the next answer is awaited.
    unanswered: VecDeque<Position>,
    unanswered_since: Option<Instant>,
}

/// The decision on an acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Pass it on to the recorder, for this generation.
    PassOn(Generation),
    /// Hold it, to pass it on later.
    Hold,
    /// Ignore it: the client has already acknowledged that much.
    Ignore,
    /// Refuse it: the viewer was not sent that much.
    Refuse,
}

impl AckTracker {
    /// Notes that the viewer begins at this position.
    pub(super) fn begin(&mut self, from: Position) {
        self.from = self.from.max(from);
    }

    /// Notes that the client had everything up to this position before this viewer was added.
    pub(super) const fn note_received(&mut self, received: Position) {
        self.received = received;
    }

    /// Notes that the viewer is sent the end of a generation.
    pub(super) fn note_end(&mut self, id: EntryId, generation: &Generation) {
        if self.ends.back().is_some_and(|(newest, _)| *newest >= id) {
            return;
        }
        self.ends.push_back((id, generation.clone()));
        if self.ends.len() > ENDS_MAX {
            self.ends.pop_front();
        }
    }

    /// Decides on the acknowledgement `id` from the client of a viewer that was sent everything up to `anchor`.
    pub(super) fn judge(&self, id: Position, anchor: &Cursor, now: Instant) -> Advice {
        if id > self.given(anchor) {
            return Advice::Refuse;
        }
        if id <= self.acknowledged() {
            return Advice::Ignore;
        }
        let reaches = |end: EntryId| self.passed < Position::whole(end) && Position::whole(end) <= id;
        let ends = self.ends.iter().map(|(end, _)| *end).chain(anchor.state.phase.terminal());
        let rests = self.passed_at.is_some_and(|at| now.duration_since(at) < INTERVAL);
        if rests && !ends.into_iter().any(reaches) {
            return Advice::Hold;
        }
        Advice::PassOn(self.generation(id, anchor))
    }

    /// Whether a repeated acknowledgement of `id` gets no second receipt: `id` reaches the end of a generation, or the
    /// client had that much before this viewer was added.
    pub(super) fn is_once(&self, id: Position, anchor: &Cursor) -> bool {
        let reaches = |end: EntryId| self.passed < Position::whole(end) && Position::whole(end) <= id;
        let ends = self.ends.iter().map(|(end, _)| *end).chain(anchor.state.phase.terminal());
        id <= self.received || ends.into_iter().any(reaches)
    }

    /// Returns `true` if `id` is already written, so that it can be answered at once. Otherwise notes that the
    /// recorder's answer is awaited.
    pub(super) fn await_answer(&mut self, id: Position, now: Instant) -> bool {
        if id <= self.written {
            return true;
        }
        if self.unanswered.len() >= UNANSWERED_MAX {
            self.unanswered.pop_front();
        }
        self.unanswered.push_back(id);
        self.unanswered_since.get_or_insert(now);
        false
    }

    /// Whether an answer of the recorder is awaited and is not lost yet.
    pub(super) fn awaits_answer(&self, now: Instant) -> bool {
        self.unanswered_since.is_some_and(|since| now.duration_since(since) < ANSWER_TIMEOUT)
    }

    /// Handles the recorder's answer: everything up to `id` is written, or could not be written in time. Returns the
    /// acknowledgements to be answered.
    pub(super) fn answered(&mut self, id: Position, is_written: bool, now: Instant) -> Vec<Position> {
        if is_written {
            self.written = self.written.max(id);
        } else {
            // A repeated acknowledgement is then passed on again.
            self.passed = self.written;
        }
        let (mut answered, kept): (Vec<_>, Vec<_>) = self.unanswered.drain(..).partition(|ack| *ack <= id);
        self.unanswered = kept.into();
        if !answered.contains(&id) {
            // It was passed on for a viewer of this client that has left since.
            answered.push(id);
        }
        self.unanswered_since = (!self.unanswered.is_empty()).then_some(now);
        answered
    }

    /// The generation to which an entry belongs, if it is known.
    fn generation(&self, id: Position, anchor: &Cursor) -> Generation {
        // An entry that the client had before may belong to an earlier generation than those that came since.
        if id <= self.received && self.received < anchor.position {
            return None;
        }
        let ended = self.ends.iter().find(|(end, _)| id <= Position::whole(*end));
        ended.map_or_else(|| anchor.state.generation.clone(), |(_, generation)| generation.clone())
    }

    /// The highest position that the client can have received.
    fn given(&self, anchor: &Cursor) -> Position {
        let end = self.ends.back().map_or(Position::ZERO, |(end, _)| Position::whole(*end));
        self.from.max(anchor.position).max(end)
    }

    fn acknowledged(&self) -> Position {
        self.held.map_or(self.passed, |(id, _)| id.max(self.passed))
    }

    /// Whether the client has acknowledged everything that it was sent.
    pub(super) fn is_complete(&self, anchor: &Cursor) -> bool {
        self.acknowledged() >= self.given(anchor)
    }

    /// Holds an acknowledgement for later. Returns `true` if none was held before.
    pub(super) fn hold(&mut self, id: Position, at_us: u64) -> bool {
        self.held.replace((id, at_us)).is_none()
    }

    /// Notes that an acknowledgement was passed on. Returns `true` if it replaces one that was held.
    pub(super) fn pass(&mut self, id: Position, now: Instant) -> bool {
        (self.passed, self.passed_at) = (id.max(self.passed), Some(now));
        self.held.take().is_some()
    }

    /// Whether an acknowledgement is held.
    pub(super) const fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// The held acknowledgement with its time and generation, if the interval is over or `at_once` is set.
    pub(super) fn due(
        &self,
        anchor: &Cursor,
        now: Instant,
        at_once: bool,
    ) -> Option<(Position, u64, Generation)> {
        let (id, at_us) = self.held?;
        let rests = self.passed_at.is_some_and(|at| now.duration_since(at) < INTERVAL);
        (at_once || !rests).then(|| (id, at_us, self.generation(id, anchor)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StreamState;

    fn at(n: u64) -> Position {
        Position::whole(EntryId::new(n, 0))
    }

    fn named(name: &str) -> Generation {
        Some(Arc::new(name.to_owned()))
    }

    fn anchor(n: u64, name: &str) -> Cursor {
        Cursor { position: at(n), state: StreamState { generation: named(name), ..StreamState::default() } }
    }

    #[test]
    fn the_highest_within_an_interval_counts() {
        let (start, anchor) = (Instant::now(), anchor(9, "g"));
        let mut acks = AckTracker::default();
        assert_eq!(acks.judge(at(3), &anchor, start), Advice::PassOn(named("g")));
        assert!(!acks.pass(at(3), start));
        assert_eq!(acks.judge(at(5), &anchor, start), Advice::Hold);
        assert!(acks.hold(at(5), 1));
        assert_eq!(acks.judge(at(4), &anchor, start), Advice::Ignore);
        assert_eq!(acks.judge(at(5), &anchor, start), Advice::Ignore);
        assert!(!acks.hold(at(6), 2));
        assert_eq!(acks.due(&anchor, start, false), None);
        assert_eq!(acks.due(&anchor, start, true), Some((at(6), 2, named("g"))));
        assert_eq!(acks.due(&anchor, start + INTERVAL, false), Some((at(6), 2, named("g"))));
        assert!(acks.pass(at(6), start + INTERVAL));
        assert_eq!(acks.due(&anchor, start + INTERVAL * 9, true), None);
        assert_eq!(acks.judge(at(7), &anchor, start + INTERVAL * 2), Advice::PassOn(named("g")));
    }

    #[test]
    fn an_end_is_passed_on_at_once_with_its_generation() {
        let start = Instant::now();
        let mut acks = AckTracker::default();
        acks.pass(at(1), start);
        acks.note_end(EntryId::new(4, 0), &named("g1"));
        acks.note_end(EntryId::new(4, 0), &named("again"));
        let anchor = anchor(7, "g2");
        assert_eq!(acks.judge(at(3), &anchor, start), Advice::Hold);
        assert_eq!(acks.judge(at(4), &anchor, start), Advice::PassOn(named("g1")));
        assert_eq!(
            acks.judge(at(5), &anchor, start),
            Advice::PassOn(named("g2")),
            "it covers the first end too"
        );
        acks.pass(at(5), start);
        assert_eq!(acks.judge(at(6), &anchor, start), Advice::Hold);
    }

    #[test]
    fn a_client_that_is_read_late_still_acknowledges_each_end() {
        let start = Instant::now();
        let mut acks = AckTracker::default();
        (1..=100).for_each(|n| acks.note_end(EntryId::new(n, 0), &named(&n.to_string())));
        for n in 1..=100 {
            assert_eq!(acks.judge(at(n), &Cursor::default(), start), Advice::PassOn(named(&n.to_string())));
            assert!(acks.is_once(at(n), &Cursor::default()));
            acks.pass(at(n), start);
        }
    }

    #[test]
    fn an_acknowledgement_above_what_was_sent_is_refused() {
        let start = Instant::now();
        let mut acks = AckTracker::default();
        assert_eq!(acks.judge(at(1), &Cursor::default(), start), Advice::Refuse);
        acks.begin(at(5));
        assert_eq!(acks.judge(at(5), &Cursor::default(), start), Advice::PassOn(None));
        assert_eq!(acks.judge(at(6), &Cursor::default(), start), Advice::Refuse);
        acks.note_end(EntryId::new(6, 0), &named("g"));
        assert!(!acks.is_complete(&Cursor::default()));
        assert_eq!(acks.judge(at(6), &Cursor::default(), start), Advice::PassOn(named("g")));
        acks.pass(at(6), start);
        assert!(acks.is_complete(&Cursor::default()));
        let part = Position { id: EntryId::new(6, 0), part: 1 };
        assert_eq!(acks.judge(part, &Cursor::default(), start), Advice::Ignore);
    }

    #[test]
    fn the_remembered_ends_are_bounded() {
        let mut acks = AckTracker::default();
        (1..1000).for_each(|n| acks.note_end(EntryId::new(n, 0), &None));
        assert_eq!(acks.ends.len(), ENDS_MAX);
        assert_eq!(acks.judge(at(999), &Cursor::default(), Instant::now()), Advice::PassOn(None));
    }

    #[test]
    fn every_acknowledgement_is_answered_once_it_is_written() {
        let (start, anchor) = (Instant::now(), anchor(9, "g"));
        let mut acks = AckTracker::default();
        for n in [3, 5, 4] {
            assert!(!acks.await_answer(at(n), start));
        }
        assert!(acks.awaits_answer(start) && !acks.awaits_answer(start + ANSWER_TIMEOUT));
        assert_eq!(acks.answered(at(4), true, start), [at(3), at(4)]);
        assert_eq!(acks.answered(at(5), true, start), [at(5)]);
        assert!(acks.await_answer(at(4), start) && !acks.awaits_answer(start), "it is written");
        acks.pass(at(7), start);
        assert!(!acks.await_answer(at(7), start));
        assert_eq!(acks.judge(at(7), &anchor, start), Advice::Ignore);
        assert_eq!(acks.answered(at(7), false, start), [at(7)]);
        assert_ne!(acks.judge(at(7), &anchor, start), Advice::Ignore, "it may be acknowledged again");
        assert!((0..1000).all(|n| !acks.await_answer(at(100 + n), start)));
        assert_eq!(acks.unanswered.len(), UNANSWERED_MAX);
    }
}
