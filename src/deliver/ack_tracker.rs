//! How far a viewer was given a stream, and how far its client has acknowledged it. Pure.
//!
//! Acknowledgements are merged: of those of one viewer within [`INTERVAL`] the highest counts. One that reaches the end
//! of a generation goes out at once, because others wait for it.
//!
//! An acknowledged id is a position, as `after` is: it covers everything up to it. One above what the viewer was given
//! is refused. One below need not be an entry's: frames are merged, so a client may know ids within them from another
//! connection, and nobody remembers every id, nor can Redis tell one that was trimmed from one that never was.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::message::Cursor;
use crate::model::{EntryId, Position};

/// The time in which one acknowledgement of a viewer is passed on.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// Acknowledgements of one viewer that wait for an answer each. Of more, the lower ones are answered by the higher
/// ones.
const UNANSWERED_MAX: usize = 256;
/// How long the recorder may take to answer, at most, before its answer counts as lost.
const ANSWER_PATIENCE: Duration = Duration::from_secs(15);
/// Ends of generations that are remembered, to know to which one an acknowledged entry belongs, and that it is one. A
/// client acknowledges each as it comes, and is heard later where much is going on: as many as may wait for an answer.
const ENDS_MAX: usize = UNANSWERED_MAX;

/// A generation's id, escaped, where it has one.
pub(super) type Generation = Option<Arc<String>>;

/// The state of one viewer's acknowledgements.
#[derive(Debug, Default)]
pub(super) struct AckTracker {
    /// Where the viewer began: the position up to which it had everything before.
    from: Position,
    /// The position up to which the client had everything before this viewer came, also if the stream was created anew
    /// since.
    had: Position,
    /// The generations whose end the viewer was given, the oldest first.
    ends: VecDeque<(EntryId, Generation)>,
    /// The acknowledgement that was passed on last, and when.
    passed: Position,
    passed_at: Option<Instant>,
    /// The acknowledgement to be passed on later, and when the client sent it, in µs since 1970 by this host's clock.
    held: Option<(Position, u64)>,
    /// The highest acknowledgement that is written.
    written: Position,
    /// Acknowledgements that are not answered yet, and since when the next answer is awaited.
    unanswered: VecDeque<Position>,
    unanswered_since: Option<Instant>,
}

/// How an acknowledgement is to be treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Pass it on.
    PassOn(Generation),
    /// Hold it.
    Hold,
    /// Ignore it: it says nothing new.
    Ignore,
    /// Refuse it: the viewer was not given that much.
    Refuse,
}

impl AckTracker {
    /// The viewer has everything up to here already.
    pub(super) fn begin(&mut self, from: Position) {
        self.from = self.from.max(from);
    }

    /// The client had everything up to here before this viewer came.
    pub(super) const fn note_had(&mut self, had: Position) {
        self.had = had;
    }

    /// The viewer is given the end of a generation.
    pub(super) fn note_end(&mut self, id: EntryId, generation: &Generation) {
        if self.ends.back().is_some_and(|(newest, _)| *newest >= id) {
            return;
        }
        self.ends.push_back((id, generation.clone()));
        if self.ends.len() > ENDS_MAX {
            self.ends.pop_front();
        }
    }

    /// Judges the acknowledgement `id` of a client whose viewer stands at `anchor`.
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

    /// Whether a repetition of it is to get no second receipt: it reaches the end of a generation, or the client had
    /// that much before this viewer came.
    pub(super) fn is_once(&self, id: Position, anchor: &Cursor) -> bool {
        let reaches = |end: EntryId| self.passed < Position::whole(end) && Position::whole(end) <= id;
        let ends = self.ends.iter().map(|(end, _)| *end).chain(anchor.state.phase.terminal());
        id <= self.had || ends.into_iter().any(reaches)
    }

    /// Whether it is written already, so that it can be answered at once; else the recorder's answer is awaited.
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

    /// Whether an answer is awaited; one that was awaited for too long is lost.
    pub(super) fn awaits_answer(&self, now: Instant) -> bool {
        self.unanswered_since.is_some_and(|since| now.duration_since(since) < ANSWER_PATIENCE)
    }

    /// The acknowledgements to be answered, now that everything up to `id` is written, or will not be in time.
    pub(super) fn answered(&mut self, id: Position, is_written: bool, now: Instant) -> Vec<Position> {
        if is_written {
            self.written = self.written.max(id);
        } else {
            // A repetition is passed on again.
            self.passed = self.written;
        }
        let (mut told, kept): (Vec<_>, Vec<_>) = self.unanswered.drain(..).partition(|said| *said <= id);
        self.unanswered = kept.into();
        if !told.contains(&id) {
            // A viewer that has left meanwhile had passed it on.
            told.push(id);
        }
        self.unanswered_since = (!self.unanswered.is_empty()).then_some(now);
        told
    }

    /// The generation to which an entry belongs, as far as it is known.
    fn generation(&self, id: Position, anchor: &Cursor) -> Generation {
        // An entry that the client had before may be of an earlier generation than those that came since.
        if id <= self.had && self.had < anchor.position {
            return None;
        }
        let ended = self.ends.iter().find(|(end, _)| id <= Position::whole(*end));
        ended.map_or_else(|| anchor.state.generation.clone(), |(_, generation)| generation.clone())
    }

    /// The highest position that the client can have.
    fn given(&self, anchor: &Cursor) -> Position {
        let end = self.ends.back().map_or(Position::ZERO, |(end, _)| Position::whole(*end));
        self.from.max(anchor.position).max(end)
    }

    fn acknowledged(&self) -> Position {
        self.held.map_or(self.passed, |(id, _)| id.max(self.passed))
    }

    /// Whether the client has said that it has all that it was given.
    pub(super) fn is_complete(&self, anchor: &Cursor) -> bool {
        self.acknowledged() >= self.given(anchor)
    }

    /// Holds an acknowledgement for later; whether none was held before.
    pub(super) fn hold(&mut self, id: Position, at_us: u64) -> bool {
        self.held.replace((id, at_us)).is_none()
    }

    /// An acknowledgement was passed on. Returns whether one was held, which this one replaces.
    pub(super) fn pass(&mut self, id: Position, now: Instant) -> bool {
        (self.passed, self.passed_at) = (id.max(self.passed), Some(now));
        self.held.take().is_some()
    }

    /// Whether an acknowledgement is held.
    pub(super) const fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// The held acknowledgement with its time and generation, if it is due, or `at_once`.
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
    fn an_end_is_reached_at_once_and_entries_belong_to_their_generation() {
        let start = Instant::now();
        let mut acks = AckTracker::default();
        acks.pass(at(1), start);
        acks.note_end(EntryId::new(4, 0), &named("g1"));
        acks.note_end(EntryId::new(4, 0), &named("again"));
        let anchor = anchor(7, "g2");
        assert_eq!(acks.judge(at(3), &anchor, start), Advice::Hold);
        assert_eq!(acks.judge(at(4), &anchor, start), Advice::PassOn(named("g1")));
        assert_eq!(acks.judge(at(5), &anchor, start), Advice::PassOn(named("g2")), "it has the first too");
        acks.pass(at(5), start);
        assert_eq!(acks.judge(at(6), &anchor, start), Advice::Hold);
    }

    #[test]
    fn who_is_heard_late_has_acknowledged_each_end_all_the_same() {
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
    fn nobody_has_what_was_not_given() {
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
    fn what_is_remembered_is_bounded() {
        let mut acks = AckTracker::default();
        (1..1000).for_each(|n| acks.note_end(EntryId::new(n, 0), &None));
        assert_eq!(acks.ends.len(), ENDS_MAX);
        assert_eq!(acks.judge(at(999), &Cursor::default(), Instant::now()), Advice::PassOn(None));
    }

    #[test]
    fn everything_that_is_said_is_answered_once_it_is_written() {
        let (start, anchor) = (Instant::now(), anchor(9, "g"));
        let mut acks = AckTracker::default();
        for n in [3, 5, 4] {
            assert!(!acks.await_answer(at(n), start));
        }
        assert!(acks.awaits_answer(start) && !acks.awaits_answer(start + ANSWER_PATIENCE));
        assert_eq!(acks.answered(at(4), true, start), [at(3), at(4)]);
        assert_eq!(acks.answered(at(5), true, start), [at(5)]);
        assert!(acks.await_answer(at(4), start) && !acks.awaits_answer(start), "it is written");
        acks.pass(at(7), start);
        assert!(!acks.await_answer(at(7), start));
        assert_eq!(acks.judge(at(7), &anchor, start), Advice::Ignore);
        assert_eq!(acks.answered(at(7), false, start), [at(7)]);
        assert_ne!(acks.judge(at(7), &anchor, start), Advice::Ignore, "it may be said again");
        assert!((0..1000).all(|n| !acks.await_answer(at(100 + n), start)));
        assert_eq!(acks.unanswered.len(), UNANSWERED_MAX);
    }
}
