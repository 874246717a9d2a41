//! Which viewers can share a history read, and which part of its result each of them gets. Pure.
//!
//! Clients that lose their connections at the same moment reconnect at the same moment, each with another last id. The
//! read that finds a viewer's start reads the stream from its beginning, or from a checkpoint, up to its end, because
//! the state at the viewer's start is the sum of everything before it. With a read for each client, nearly the same
//! entries would be read many times. Each of these mechanisms is necessary:
//!
//! - **Cover**: a read also serves viewers that start a little later than it does ([`JobKind::covers`]). Each of them
//!   gets the frames after its own position; the first frame is divided where necessary ([`opened_at`]).
//! - **On time and late**: a viewer may join a read that is under way. Redis may have answered that read before the
//!   viewer joined. So a late viewer gets the frames, but no statement about the stream's end ([`for_late_viewers`]).
//! - **Look back**: a read begins a little before the position of the viewer for which it is created
//!   ([`JobKind::widened`]), so that it also covers viewers that come later and have received less.
//! - **Exact**: if a shared read does not serve a viewer (entries at its position were trimmed, or the position lies
//!   within a frame that cannot be divided), exactly its own position is read ([`JobKind::Open`]). Such reads are
//!   shared only for equal positions. If they were merged, the viewers of one read would be served one after another,
//!   with a round trip for each.
//! - **Outline**: a viewer in another format needs the outline of its generation at its start. It gets the outline at
//!   the read's start, advanced over the frames that it already has ([`outline_at`]).
//!
//! The table shows how often each missed entry was read, and the p99 of the time until the clients were live again, in
//! the scenario `storm` of `benches/end_to_end`: 1,000 clients of 100 streams reconnect. The figures are medians of
//! three alternating runs on two cores with other load, so the counts are more reliable than the times.
//!
//! | | read, times | live again, s |
//! | --- | --- | --- |
//! | this code | 1.01 | 0.8 |
//! | without look back | 1.02 | 0.8 |
//! | a read covers equal positions only | 9.4 | 5.9 |
//! | no viewer joins a read under way | 10.7 | 5.7 |
//! | none of the three: single flight by position | 11.0 | 7.3 |
//!
//! Look back helps when clients reconnect in the worst order, the client with the most text first. If 15 such clients
//! wait for Redis, the stream is read once with it and 15 times without it
//! (`resume::a_crowd_that_comes_back_at_once_shares_one_read`).
//!
//! Results are not cached for viewers that come when the read is over. A cache of frames for 250 ms, extended by live
//! text, changed neither figure of `storm`. For 1,000 clients of one stream, which arrive during several reads, it
//! read each entry once instead of 2 to 4 times. But it takes memory, and a viewer could be sent text of a stream that
//! was deleted meanwhile (`crowd::nothing_is_given_of_a_stream_that_was_deleted`).

use std::sync::Arc;

use crate::message::{Cursor, Opened, ReplayOutcome, Shown};
use crate::model::{After, EntryId, Frame, FrameBody, Outline, Position};

/// How much later than a read's start the start of a viewer may be, in ms, if the viewer shares the read. Clients that
/// lose their connections at the same moment have not received exactly the same, because networks differ.
const SAME_MOMENT_MS: u64 = 5_000;
/// How much earlier than requested a read begins, in ms, to serve viewers that come next and have received a little
/// less.
const LOOK_BACK_MS: u64 = 250;

/// The read of a job, with everything that a retry needs.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum JobKind {
    /// Opens the stream at exactly the position that its viewers requested.
    Open(After),
    /// Opens the stream for several viewers at a position shortly before theirs, which none of them requested.
    Around(Position),
    /// Continues from a known cursor, up to an entry or to the stream's end.
    Read { from: Cursor, until: Option<EntryId> },
    /// Assembles the JSON state.
    State,
    /// Finds out whether the stream exists.
    Probe,
}

impl JobKind {
    /// Whether this read, which is under way, is likely to serve a viewer that wants `wanted`: it reads the same, or
    /// everything from an entry shortly before.
    pub(super) fn covers(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Around(from), Self::Open(After::At(wanted))) => {
                from <= wanted && wanted.id.ms - from.id.ms <= SAME_MOMENT_MS
            }
            (Self::Open(After::At(_)) | Self::Read { .. }, wanted) => self == wanted,
            // `last` and `$` may mean another entry each time they are resolved.
            _ => false,
        }
    }

    /// The read that is created for a viewer that wants this one. It begins a little earlier, so that it serves other
    /// viewers too.
    pub(super) fn widened(&self) -> Self {
        match self {
            Self::Open(After::At(wanted)) => {
                let ms = wanted.id.ms.saturating_sub(LOOK_BACK_MS);
                Self::Around(if ms == 0 { Position::ZERO } else { EntryId::new(ms, 0).into() })
            }
            kind => kind.clone(),
        }
    }

    /// One read that serves both, if there is one.
    pub(super) fn merged(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Around(one), Self::Around(other)) => {
                (one.id.ms.abs_diff(other.id.ms) <= SAME_MOMENT_MS).then(|| Self::Around(*one.min(other)))
            }
            (one, other) => (one == other).then(|| one.clone()),
        }
    }
}

/// The part of an outcome that is valid for viewers that joined late and may know of later entries; `None` if there is
/// none. Later entries are found when the viewer joins live text. After the end of a finished generation, which
/// another generation may follow, the viewer has to read on: the result does not count as exhausted.
pub(super) fn for_late_viewers(outcome: ReplayOutcome) -> Option<ReplayOutcome> {
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

/// The result of a read as if it had been requested for `after`. `None` if the result does not allow that; the viewer
/// then needs a read of its own.
pub(super) fn opened_at(opened: &Opened, after: Position) -> Option<Opened> {
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

/// The outline at `after`: `outline` advanced over the frames up to there.
fn outline_at(outline: &Arc<Outline>, frames: &[Arc<Frame>], after: Position) -> Arc<Outline> {
    let mut outline = Arc::clone(outline);
    for frame in frames.iter().take_while(|frame| frame.after < after) {
        let len = if frame.last <= after { frame.text().map(<[u8]>::len) } else { frame.text_until(after) };
        Arc::make_mut(&mut outline).pass_frame(frame, len.unwrap_or_default());
    }
    outline
}

/// The frames after the position `after`, if a frame ends there or can be divided there.
fn frames_after(frames: &[Arc<Frame>], after: Position) -> Option<Vec<Arc<Frame>>> {
    let passed = frames.partition_point(|frame| frame.last <= after);
    // A gap does not change a viewer's position. It is sent together with the frame after it.
    let last = frames[..passed].iter().rposition(|frame| frame.body != FrameBody::Gap);
    if let Some(last) = last.filter(|&last| frames[last].last == after) {
        return Some(frames[last + 1..].to_vec());
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

    /// A frame of the entries `after + 1 ..= last`. The text of entry `n` is the `n`th letter after `a`.
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

    fn texts(opened: &Opened) -> String {
        let texts = opened.shown.frames.iter().map(|frame| match frame.text() {
            Some(text) => std::str::from_utf8(text).unwrap().to_owned(),
            None => "!".to_owned(),
        });
        texts.collect::<Vec<_>>().join("|")
    }

    #[test]
    fn a_viewer_with_a_later_start_gets_exactly_the_rest() {
        let whole = opened(2, vec![text(2, 5), gap(5, 7), text(6, 9)], true);
        let rest = |after| opened_at(&whole, at(after)).map(|opened| texts(&opened));
        assert_eq!(rest(2).as_deref(), Some("def|!|hij"), "the same");
        assert_eq!(rest(3).as_deref(), Some("ef|!|hij"));
        assert_eq!(rest(5).as_deref(), Some("!|hij"), "the gap comes before the frame that revealed it");
        assert_eq!(rest(7).as_deref(), Some("ij"));
        let later = opened_at(&whole, at(4)).unwrap();
        assert_eq!((later.after, later.from, later.shown.cursor), (at(4), at(4), whole.shown.cursor.clone()));
        let first = &later.shown.frames[0];
        assert_eq!((first.after, first.last, first.count, first.seq), (at(4), at(5), 1, Some(5)));

        assert_eq!(rest(1), None, "the entry before the start was not read");
        assert_eq!(rest(6), None, "no frame ends there");
        assert_eq!(rest(9).as_deref(), Some(""));
        let part = opened(2, vec![text(2, 5)], false);
        assert!(opened_at(&part, at(5)).is_none(), "the entries that follow were not read");
        let mut over = opened(2, vec![text(2, 5)], true);
        over.shown.cursor.state.phase = Phase::Ended(EntryId::new(5, 0));
        assert!(
            opened_at(&over, at(5)).unwrap().nothing_left && !opened_at(&over, at(4)).unwrap().nothing_left
        );
        let mut moved = opened(2, vec![text(2, 5)], true);
        moved.from = at(3);
        assert!(opened_at(&moved, at(4)).is_none(), "entries are missing at the start");
    }

    #[test]
    fn a_read_covers_starts_at_most_a_few_seconds_later() {
        let open = |ms| JobKind::Open(After::At(at(ms)));
        let around = |ms| JobKind::Around(at(ms));
        assert!(around(7).covers(&open(7)) && around(7).covers(&open(7 + SAME_MOMENT_MS)));
        assert!(!around(8).covers(&open(7)) && !around(7).covers(&open(8 + SAME_MOMENT_MS)));
        assert!(
            open(7).covers(&open(7)) && !open(7).covers(&open(8)),
            "an exact read covers its own position only"
        );
        assert!(!JobKind::Open(After::Last).covers(&JobKind::Open(After::Last)));
        let read = |until| JobKind::Read { from: Cursor::default(), until };
        assert!(read(None).covers(&read(None)) && !read(None).covers(&read(Some(EntryId::MAX))));
        assert!(!JobKind::Probe.covers(&JobKind::Probe), "the stream may be deleted meanwhile");
        let early = open(1_000).widened();
        assert!(early.covers(&open(1_000)) && early.covers(&open(1_000 - LOOK_BACK_MS)));
        assert!(!early.covers(&open(999 - LOOK_BACK_MS)));
        assert_eq!(open(LOOK_BACK_MS).widened(), JobKind::Around(Position::ZERO));
        assert_eq!(read(None).widened(), read(None));
    }

    #[test]
    fn reads_that_begin_at_nearly_the_same_time_are_merged() {
        let around = |ms| JobKind::Around(at(ms));
        for (one, other) in [(7, 9), (9, 7), (7, 7), (7, 7 + SAME_MOMENT_MS)] {
            assert_eq!(around(one).merged(&around(other)), Some(around(one.min(other))));
        }
        assert_eq!(around(7).merged(&around(8 + SAME_MOMENT_MS)), None);
        assert_eq!(around(7).merged(&JobKind::Open(After::At(at(7)))), None, "an exact read is not merged");
        let same = [JobKind::Open(After::Last), JobKind::State, JobKind::Probe];
        assert!(same.iter().all(|kind| kind.merged(kind).as_ref() == Some(kind)));
    }

    #[test]
    fn late_viewers_get_no_statement_about_the_end() {
        for (phase, exhausted) in [(Phase::Open, true), (Phase::Ended(EntryId::new(1, 0)), false)] {
            let mut over = opened(0, Vec::new(), true);
            over.shown.cursor.state.phase = phase;
            let Some(ReplayOutcome::Opened(late)) = for_late_viewers(ReplayOutcome::Opened(Box::new(over)))
            else {
                panic!("the frames are valid for late viewers")
            };
            assert_eq!(late.shown.exhausted, exhausted);
        }
        assert!(
            for_late_viewers(ReplayOutcome::Missing).is_none()
                && for_late_viewers(ReplayOutcome::NotAStream).is_none()
        );
    }
}
