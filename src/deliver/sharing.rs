//! Sharing the answer to one viewer with others that were cut off at nearly the same moment and come back at once.
//! Pure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::message::{Cursor, Opened, ReplayOutcome, Shown, Slot};
use crate::model::{After, EntryId, Frame, FrameBody, Outline, Position};

/// How much later one viewer's start may be than the entry from which the stream is read for another, in ms: a crowd
/// that was cut off at once did not have quite the same, because networks differ.
const SAME_MOMENT_MS: u64 = 5_000;
/// How much earlier than wanted a read begins, in ms, for viewers that come next and have a little less.
const LOOK_BACK_MS: u64 = 250;
/// How long the beginning of one viewer's answer is given to others that want the same.
const RECENT_FOR: Duration = Duration::from_millis(250);
/// Bytes of frames, and number of answers, that are kept for that.
const RECENT_BYTES_MAX: usize = 16 << 20;
const RECENT_ANSWERS_MAX: usize = 1024;

/// The read that a job makes; enough to ask again from the beginning.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum JobKind {
    Open(After),
    Read { from: Cursor, until: Option<EntryId> },
    State,
    Probe,
}

impl JobKind {
    /// Whether this job's read is likely to have all that the other one wants: it reads the same, or everything from an
    /// entry shortly before.
    pub(super) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Open(After::At(from)), Self::Open(After::At(wanted))) => {
                from <= wanted && wanted.id.ms - from.id.ms <= SAME_MOMENT_MS
            }
            (Self::Open(After::At(_)) | Self::Read { .. }, other) => self == other,
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
                Self::Open(After::At(if ms == 0 { Position::ZERO } else { EntryId::new(ms, 0).into() }))
            }
            kind => kind.clone(),
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

/// The beginning of an answer that was read a moment ago, with the live text that has come since.
#[derive(Debug)]
struct Recent {
    read_at: Instant,
    opened: Box<Opened>,
    bytes: usize,
}

impl Recent {
    /// Adds live frames, if they follow what is there without a hole.
    fn extend(&mut self, frames: &[Arc<Frame>]) -> usize {
        let shown = &mut self.opened.shown;
        let mut bytes = 0;
        for frame in frames {
            let end = shown.frames.last().map_or(self.opened.from, |last| last.last);
            if !shown.exhausted || frame.after != end {
                break;
            }
            shown.frames.push(Arc::clone(frame));
            shown.cursor.move_to(frame.last, &frame.state);
            shown.exhausted = !shown.cursor.is_terminal();
            bytes += frame.json().len();
        }
        self.bytes += bytes;
        bytes
    }
}

/// Answers of a moment ago, by hub.
#[derive(Debug, Default)]
pub(super) struct Recents {
    answers: HashMap<Slot, VecDeque<Recent>>,
    /// The hub of each answer, the oldest answer first.
    order: VecDeque<Slot>,
    bytes: usize,
}

impl Recents {
    /// Keeps the beginning of an answer, as far as it holds for others, unless there is nothing in it whose reading
    /// would be spared.
    pub(super) fn add(&mut self, hub: Slot, opened: Box<Opened>, read_at: Instant) {
        let frames: usize = opened.shown.frames.iter().map(|frame| frame.json().len()).sum();
        if frames > 0 {
            let bytes = frames + opened.outline.as_ref().map_or(0, |outline| outline.len_bytes());
            self.bytes += bytes;
            self.order.push_back(hub);
            self.answers.entry(hub).or_default().push_back(Recent { read_at, opened, bytes });
        }
        self.forget(read_at);
    }

    /// A beginning from one of a hub's answers, for a viewer that has everything up to `after` and room for so many
    /// bytes, and may need the outline.
    pub(super) fn find(&self, hub: Slot, after: Position, (room, outlined): (usize, bool)) -> Option<Opened> {
        let fits = |recent: &&Recent| recent.bytes <= room && (recent.opened.outline.is_some() || !outlined);
        let mut answers = self.answers.get(&hub)?.iter().rev().filter(fits);
        answers.find_map(|recent| begun_at(&recent.opened, after))
    }

    /// Adds live text of a hub to its answers, for viewers that come next.
    pub(super) fn extend(&mut self, hub: Slot, frames: &[Arc<Frame>]) {
        if self.order.is_empty() {
            return;
        }
        let answers = self.answers.get_mut(&hub).into_iter().flatten();
        self.bytes += answers.map(|recent| recent.extend(frames)).sum::<usize>();
    }

    /// Forgets a hub's answers, because they may not hold any more.
    pub(super) fn forget_hub(&mut self, hub: Slot) {
        let answers = self.answers.remove(&hub).into_iter().flatten();
        self.bytes -= answers.map(|recent| recent.bytes).sum::<usize>();
    }

    /// Drops the answers that are too old or too many.
    pub(super) fn forget(&mut self, now: Instant) {
        while let Some(&hub) = self.order.front() {
            let answers = self.answers.get_mut(&hub);
            let oldest = answers.as_ref().and_then(|answers| answers.front());
            let is_kept = |recent: &Recent| now.duration_since(recent.read_at) <= RECENT_FOR;
            if self.bytes <= RECENT_BYTES_MAX
                && self.order.len() <= RECENT_ANSWERS_MAX
                && oldest.is_some_and(is_kept)
            {
                return;
            }
            self.order.pop_front();
            let Some(answers) = answers else { continue };
            self.bytes -= answers.pop_front().map_or(0, |recent| recent.bytes);
            if answers.is_empty() {
                self.answers.remove(&hub);
            }
        }
    }
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
        assert!(open(7).covers(&open(7)) && open(7).covers(&open(7 + SAME_MOMENT_MS)));
        assert!(!open(8).covers(&open(7)) && !open(7).covers(&open(8 + SAME_MOMENT_MS)));
        assert!(!JobKind::Open(After::Last).covers(&JobKind::Open(After::Last)));
        let read = |until| JobKind::Read { from: Cursor::default(), until };
        assert!(read(None).covers(&read(None)) && !read(None).covers(&read(Some(EntryId::MAX))));
        assert!(!JobKind::Probe.covers(&JobKind::Probe), "what exists may be gone");
        let early = open(1_000).widened();
        assert!(early.covers(&open(1_000)) && early.covers(&open(1_000 - LOOK_BACK_MS)));
        assert!(!early.covers(&open(999 - LOOK_BACK_MS)));
        assert_eq!(open(LOOK_BACK_MS).widened(), JobKind::Open(After::At(Position::ZERO)));
        assert_eq!(read(None).widened(), read(None));
    }

    #[test]
    fn recent_answers_grow_with_live_text_that_follows_without_a_hole() {
        let now = Instant::now();
        let hub = |index| Slot { index, generation: 1 };
        let mut recents = Recents::default();
        recents.add(hub(1), Box::new(opened(0, vec![text(0, 2)], true)), now);
        recents.add(hub(2), Box::new(opened(0, vec![text(0, 2)], false)), now);
        for hub in [hub(1), hub(2), hub(3)] {
            recents.extend(hub, &[text(2, 3), text(3, 4)]);
            recents.extend(hub, &[text(5, 6)]);
        }
        let found = recents.find(hub(1), at(1), (usize::MAX, false)).unwrap();
        assert_eq!((said(&found).as_str(), found.shown.cursor.position), ("c|d|e", at(4)));
        let cut = recents.find(hub(2), at(1), (usize::MAX, false)).unwrap();
        assert_eq!(said(&cut), "c", "live text does not follow what was left of it");
        assert!(recents.find(hub(1), at(1), (10, false)).is_none(), "there is no room");
        recents.forget_hub(hub(1));
        assert!(recents.find(hub(1), at(1), (usize::MAX, false)).is_none());
        recents.forget(now + RECENT_FOR * 2);
        assert!(recents.order.is_empty() && recents.answers.is_empty() && recents.bytes == 0);
    }

    #[test]
    fn what_is_kept_of_recent_answers_is_bounded() {
        let now = Instant::now();
        let hub = Slot { index: 1, generation: 1 };
        let mut recents = Recents::default();
        recents.add(hub, Box::new(opened(0, Vec::new(), true)), now);
        assert!(recents.order.is_empty(), "nothing is spared");
        for _ in 0..RECENT_ANSWERS_MAX + 9 {
            recents.add(hub, Box::new(opened(0, vec![text(0, 2)], true)), now);
        }
        assert_eq!(
            (recents.order.len(), recents.answers[&hub].len()),
            (RECENT_ANSWERS_MAX, RECENT_ANSWERS_MAX)
        );
        let large = text(0, 20);
        let bytes = large.json().len();
        let frames = vec![large; RECENT_BYTES_MAX / bytes / 4];
        for _ in 0..9 {
            recents.add(hub, Box::new(opened(0, frames.clone(), true)), now);
        }
        assert!(recents.bytes <= RECENT_BYTES_MAX && recents.order.len() >= 3);
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
