//! Which viewers can share a history read, and what each is given of its result. Pure.
//!
//! Clients that were cut off at once come back at once, each with another last id. The read that finds where a viewer
//! begins reads the stream from its beginning, or from a checkpoint, up to its end, because the state at the viewer's
//! start is the sum of what comes before. A read for each client would read nearly the same entries many times. Each of
//! these notions is necessary:
//!
//! - **Cover**: a read also serves viewers that begin a little later than it does ([`JobKind::covers`]). Each is given the
//!   frames behind its own position, the first one divided where necessary ([`begun_at`]).
//! - **On time and late**: a viewer may join a read that is under way. As Redis may have answered it before the viewer
//!   came, such a viewer is given a stretch of the stream and no statement about its end ([`stretch`]).
//! - **Look back**: a read begins a little before the position of the viewer for which it is made
//!   ([`JobKind::widened`]), so that it also covers those who come later and have less.
//! - **Exact**: a viewer that a shared read does not serve (its place is trimmed or lies within a frame that cannot be
//!   divided) has exactly its own position read ([`JobKind::Open`]). Such reads are shared by equality alone: if they
//!   were merged, the viewers of one would be served one after another, a round trip for each.
//! - **Outline**: a viewer in another format needs the outline of its generation at its start, and gets that of the
//!   read's start, moved along the frames that it has already ([`outline_at`]).
//!
//! How often each missed entry was read, and the p99 of the time until the clients were live again, in the scenario
//! `storm` of `benches/end_to_end` (1,000 clients of 100 streams come back; medians of three alternating runs on two
//! cores that others loaded, so that the times say less than the counts):
//!
//! | | read, times | live again, s |
//! | --- | --- | --- |
//! | as it is | 1.01 | 0.8 |
//! | without looking back | 1.02 | 0.8 |
//! | a read covers equal positions only | 9.4 | 5.9 |
//! | viewers join no read that is under way | 10.7 | 5.7 |
//! | none of the three: single flight by position | 11.0 | 7.3 |
//!
//! Looking back is for a crowd that comes in the worst order, the client with the most text first: 15 clients whose reads
//! wait for Redis read a stream once, and 15 times without it (`resume::a_crowd_that_comes_back_at_once_shares_one_read`).
//!
//! Results are not kept for viewers that come when the read is over. Keeping frames for 250 ms, continued by live text,
//! changed neither figure of `storm`; of 1,000 clients of one stream, which come while several reads pass, it read 1 time
//! instead of 2 to 4. But it takes memory, and a viewer would be given text of a stream that was deleted meanwhile
//! (`crowd::nothing_is_given_of_a_stream_that_was_deleted`).

use std::sync::Arc;

use crate::message::{Cursor, Opened, ReplayOutcome, Shown};
use crate::model::{After, EntryId, Frame, FrameBody, Outline, Position};

/// How much later one viewer's start may be than the entry from which the stream is read for another, in ms: a crowd
/// that was cut off at once did not have quite the same, because networks differ.
const SAME_MOMENT_MS: u64 = 5_000;
/// How much earlier than wanted a read begins, in ms, for viewers that come next and have a little less.
const LOOK_BACK_MS: u64 = 250;

/// The read that a job makes; enough to ask again from the beginning.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum JobKind {
    /// The beginning of an answer, exactly where viewers want it.
    Open(After),
    /// The beginnings of several viewers' answers: from a position on that none of them named, and that lies before
    /// theirs.
    Around(Position),
    /// What follows a known cursor, up to an entry or to the stream's end.
    Read { from: Cursor, until: Option<EntryId> },
    /// The JSON state.
    State,
    /// Whether the stream exists.
    Probe,
}

impl JobKind {
    /// Whether this read, which is under way, is likely to have all that a viewer wants: it reads the same, or everything
    /// from an entry shortly before.
    pub(super) fn covers(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Around(from), Self::Open(After::At(wanted))) => {
                from <= wanted && wanted.id.ms - from.id.ms <= SAME_MOMENT_MS
            }
            (Self::Open(After::At(_)) | Self::Read { .. }, wanted) => self == wanted,
            // `last` and `$` mean another entry each time they are asked.
            _ => false,
        }
    }

    /// The read that is made for a viewer that wants this one: it begins a little earlier, so that it serves others
    /// too.
    pub(super) fn widened(&self) -> Self {
        match self {
            Self::Open(After::At(wanted)) => {
                let ms = wanted.id.ms.saturating_sub(LOOK_BACK_MS);
                Self::Around(if ms == 0 { Position::ZERO } else { EntryId::new(ms, 0).into() })
            }
            kind => kind.clone(),
        }
    }

    /// The read that does for both, if one does.
    pub(super) fn merged(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Around(one), Self::Around(other)) => {
                (one.id.ms.abs_diff(other.id.ms) <= SAME_MOMENT_MS).then(|| Self::Around(*one.min(other)))
            }
            (one, other) => (one == other).then(|| one.clone()),
        }
    }
}

/// The part of an outcome that holds for viewers that may know of later entries. Joining live text finds any entries
/// behind it. Only the end of a finished generation, after which another may have begun, is to be looked at again.
pub(super) fn stretch(outcome: ReplayOutcome) -> Option<ReplayOutcome> {
    match outcome {
        ReplayOutcome::Opened(mut opened) if !opened.nothing_left => {
            opened.shown.exhausted &= !opened.shown.cursor.is_terminal();
            Some(ReplayOutcome::Opened(opened))
        }
        ReplayOutcome::Shown(mut shown) => {
            shown.exhausted &= !shown.cursor.is_terminal();
            Some(ReplayOutcome::Shown(shown))
        }
        _ => None,
    }
}

/// The beginning for a viewer that wants it from the same entry on, or from a later one; `None` where it does not tell,
/// so that the viewer has to ask itself.
pub(super) fn begun_at(opened: &Opened, after: Position) -> Option<Opened> {
    if after == opened.after {
        return Some(opened.clone());
    }
    let shown = &opened.shown;
    if shown.gap.is_some() || opened.from != opened.after || after <= opened.after {
        return None;
    }
    let frames = frames_after(&shown.frames, after).filter(|frames| !frames.is_empty() || shown.exhausted)?;
    let outline = opened.outline.as_ref().map(|outline| outline_at(outline, &shown.frames, after));
    let cursor = shown.cursor.clone();
    let nothing_left = frames.is_empty() && cursor.is_terminal();
    Some(Opened {
        after,
        status: opened.status,
        tip: opened.tip,
        nothing_left,
        terminal: opened.terminal.clone(),
        outline,
        from: after,
        shown: Shown { gap: None, frames, cursor, ..*shown },
    })
}

/// The outline at `after`, some frames further on.
fn outline_at(outline: &Arc<Outline>, frames: &[Arc<Frame>], after: Position) -> Arc<Outline> {
    let mut outline = Arc::clone(outline);
    for frame in frames.iter().take_while(|frame| frame.after < after) {
        let len = if frame.last <= after { frame.text().map(<[u8]>::len) } else { frame.text_until(after) };
        Arc::make_mut(&mut outline).pass_frame(frame, len.unwrap_or_default());
    }
    outline
}

/// The frames behind `after`, if a frame ends there or can be divided there.
fn frames_after(frames: &[Arc<Frame>], after: Position) -> Option<Vec<Arc<Frame>>> {
    let passed = frames.partition_point(|frame| frame.last <= after);
    // A gap moves nobody's position. It is told together with what follows it.
    let had = frames[..passed].iter().rposition(|frame| frame.body != FrameBody::Gap);
    if let Some(had) = had.filter(|&had| frames[had].last == after) {
        return Some(frames[had + 1..].to_vec());
    }
    let (divided, rest) = frames[passed..].split_first()?;
    let first = Arc::new(divided.rest_after(after)?);
    Some(std::iter::once(first).chain(rest.iter().cloned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Content, Head, Phase, StreamName, StreamState, StreamStatus, TextMark};

    fn at(n: u64) -> Position {
        Position::whole(EntryId::new(n, 0))
    }

    fn head(after: u64, last: u64) -> Head {
        let (stream, state) = (StreamName::new("s", "m").unwrap(), StreamState::default());
        let count = u32::try_from(last - after).unwrap();
        let (ts_us, read_us, encoded_us) = (None, 0, 0);
        let (after, last, seq) = (at(after), at(last), Some(last));
        Head { stream, after, last, state, seq, count, ts_us, read_us, encoded_us }
    }

    /// Entries `after + 1 ..= last` in one frame; each is the letter of its number.
    fn text(after: u64, last: u64) -> Arc<Frame> {
        let letters: Vec<u8> = (after + 1..=last).map(|n| b'a' + u8::try_from(n).unwrap()).collect();
        let content = Content::Delta { channel: None, index: 0, text: &letters };
        let marks = (1..).zip(after + 1..=last).map(|(bytes, n)| TextMark { last: at(n), bytes }).collect();
        Arc::new(Frame { marks, ..Frame::encode(head(after, last), content) })
    }

    fn gap(after: u64, next: u64) -> Arc<Frame> {
        let head = Head { last: at(after), ..head(after, after) };
        Arc::new(Frame::encode(head, Content::Gap { next: EntryId::new(next, 0), lost: 1 }))
    }

    fn opened(after: u64, frames: Vec<Arc<Frame>>, exhausted: bool) -> Opened {
        let position = frames.last().map_or_else(|| at(after), |frame| frame.last);
        let cursor = Cursor { position, ..Cursor::default() };
        let shown = Shown { gap: None, frames, cursor, exhausted, entries_bytes: 9, entries: 3 };
        let (status, nothing_left, terminal) = (StreamStatus::Live, false, None);
        let outline = None;
        let (after, tip) = (at(after), position.id);
        Opened { after, status, tip, nothing_left, terminal, outline, from: after, shown }
    }

    fn said(opened: &Opened) -> String {
        let texts = opened.shown.frames.iter().map(|frame| match frame.text() {
            Some(text) => std::str::from_utf8(text).unwrap().to_owned(),
            None => "!".to_owned(),
        });
        texts.collect::<Vec<_>>().join("|")
    }

    #[test]
    fn who_wants_it_from_a_later_entry_gets_exactly_the_rest() {
        let whole = opened(2, vec![text(2, 5), gap(5, 7), text(6, 9)], true);
        let rest = |after| begun_at(&whole, at(after)).map(|opened| said(&opened));
        assert_eq!(rest(2).as_deref(), Some("def|!|hij"), "the same");
        assert_eq!(rest(3).as_deref(), Some("ef|!|hij"));
        assert_eq!(rest(5).as_deref(), Some("!|hij"), "the gap is told before what revealed it");
        assert_eq!(rest(7).as_deref(), Some("ij"));
        let later = begun_at(&whole, at(4)).unwrap();
        assert_eq!((later.after, later.from, later.shown.cursor), (at(4), at(4), whole.shown.cursor.clone()));
        let first = &later.shown.frames[0];
        assert_eq!((first.after, first.last, first.count, first.seq), (at(4), at(5), 1, Some(5)));

        assert_eq!(rest(1), None, "what comes before was not read");
        assert_eq!(rest(6), None, "no frame ends there");
        assert_eq!(rest(9).as_deref(), Some(""));
        let part = opened(2, vec![text(2, 5)], false);
        assert!(begun_at(&part, at(5)).is_none(), "what follows was not read");
        let mut over = opened(2, vec![text(2, 5)], true);
        over.shown.cursor.state.phase = Phase::Ended(EntryId::new(5, 0));
        assert!(
            begun_at(&over, at(5)).unwrap().nothing_left && !begun_at(&over, at(4)).unwrap().nothing_left
        );
        let mut moved = opened(2, vec![text(2, 5)], true);
        moved.from = at(3);
        assert!(begun_at(&moved, at(4)).is_none(), "it does not begin where that was wanted");
    }

    #[test]
    fn only_what_was_wanted_at_nearly_the_same_moment_is_looked_for_in_a_read() {
        let open = |ms| JobKind::Open(After::At(at(ms)));
        let around = |ms| JobKind::Around(at(ms));
        assert!(around(7).covers(&open(7)) && around(7).covers(&open(7 + SAME_MOMENT_MS)));
        assert!(!around(8).covers(&open(7)) && !around(7).covers(&open(8 + SAME_MOMENT_MS)));
        assert!(open(7).covers(&open(7)) && !open(7).covers(&open(8)), "that is all that it was made for");
        assert!(!JobKind::Open(After::Last).covers(&JobKind::Open(After::Last)));
        let read = |until| JobKind::Read { from: Cursor::default(), until };
        assert!(read(None).covers(&read(None)) && !read(None).covers(&read(Some(EntryId::MAX))));
        assert!(!JobKind::Probe.covers(&JobKind::Probe), "what exists may be gone");
        let early = open(1_000).widened();
        assert!(early.covers(&open(1_000)) && early.covers(&open(1_000 - LOOK_BACK_MS)));
        assert!(!early.covers(&open(999 - LOOK_BACK_MS)));
        assert_eq!(open(LOOK_BACK_MS).widened(), JobKind::Around(Position::ZERO));
        assert_eq!(read(None).widened(), read(None));
    }

    #[test]
    fn one_read_does_for_those_that_begin_at_nearly_the_same_moment() {
        let around = |ms| JobKind::Around(at(ms));
        for (one, other) in [(7, 9), (9, 7), (7, 7), (7, 7 + SAME_MOMENT_MS)] {
            assert_eq!(around(one).merged(&around(other)), Some(around(one.min(other))));
        }
        assert_eq!(around(7).merged(&around(8 + SAME_MOMENT_MS)), None);
        assert_eq!(around(7).merged(&JobKind::Open(After::At(at(7)))), None, "it is to be read exactly");
        let same = [JobKind::Open(After::Last), JobKind::State, JobKind::Probe];
        assert!(same.iter().all(|kind| kind.merged(kind).as_ref() == Some(kind)));
    }

    #[test]
    fn late_viewers_hear_nothing_of_the_end() {
        for (phase, exhausted) in [(Phase::Open, true), (Phase::Ended(EntryId::new(1, 0)), false)] {
            let mut over = opened(0, Vec::new(), true);
            over.shown.cursor.state.phase = phase;
            let Some(ReplayOutcome::Opened(late)) = stretch(ReplayOutcome::Opened(Box::new(over))) else {
                panic!("frames are as good as before")
            };
            assert_eq!(late.shown.exhausted, exhausted);
        }
        assert!(stretch(ReplayOutcome::Missing).is_none() && stretch(ReplayOutcome::NotAStream).is_none());
    }
}
