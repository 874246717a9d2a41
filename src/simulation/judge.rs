//! Judges the frames of one viewer against the entries that were written. Each piece after the start of the viewer
//! must arrive once and in order, or have been removed and be covered by a gap; and the frames must end for the right
//! reason.

use std::time::Duration;

use serde_json::Value;

use super::streams::{Content, Piece, Stream, Written};
use crate::model::{After, EntryId, Position};

/// How old the information in `open`, and the end of a stream that a viewer is sent, may be: a viewer may share a read
/// that was made before it connected.
const SHARED_FOR: Duration = Duration::from_secs(5);

/// A viewer's request.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The index of the stream.
    pub(super) stream: usize,
    pub(super) after: After,
    pub(super) follow: bool,
    pub(super) wait: Duration,
    pub(super) batch_ms: usize,
    /// When the viewer requested it.
    pub(super) at: Duration,
    /// The newest entry and the newest generation of the stream at that time.
    pub(super) tip: EntryId,
    pub(super) generation: usize,
}

/// Why a viewer's frames have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The stream is over.
    Over,
    /// The stream does not exist.
    NotFound,
    /// Its client has left or was too slow, or the instance drains.
    Gone,
}

/// The judge of a viewer, with the frames so far.
#[derive(Clone, Debug)]
pub(super) struct Judge {
    pub(super) wanted: Wanted,
    /// The position up to which the client has everything; `None` before `open`.
    pub(super) position: Option<Position>,
    /// The `after` of the last gap, until a frame follows it.
    gap_after: Option<Position>,
    /// Whether a frame has come since `open`.
    has_begun: bool,
    pub(super) ended: Option<Ended>,
    /// The state of the stream that the viewer was sent last.
    pub(super) status: String,
}

/// The newest generation in a log.
pub(super) fn newest_generation(stream: &Stream) -> usize {
    stream.log.iter().rev().find(|written| !written.pieces.is_empty()).map_or(0, |written| written.generation)
}

impl Judge {
    pub(super) const fn new(wanted: Wanted) -> Self {
        Self { wanted, position: None, gap_after: None, has_begun: false, ended: None, status: String::new() }
    }

    /// Judges a frame.
    pub(super) fn take(&mut self, frame: &Value, stream: &Stream, now: Duration) {
        assert!(self.ended.is_none(), "a frame after the end: {frame}");
        let kind = frame["type"].as_str().expect("a frame has a type");
        if kind == "open" {
            return self.open(frame, stream, now);
        }
        // Without Redis, the start of a viewer that named no position is unknown, and `degraded` may come before
        // `open`.
        let is_unknown = !matches!(self.wanted.after, After::At(_)) && frame["state"] == "degraded";
        assert!(self.position.is_some() || is_unknown, "`open` comes first: {frame}");
        match kind {
            "status" => frame["state"].as_str().expect("a state").clone_into(&mut self.status),
            "gap" => self.gap(frame, stream),
            "refused" | "acked" | "pong" | "cancel_requested" => {}
            _ => self.advance(kind, frame, stream, now),
        }
    }

    fn open(&mut self, frame: &Value, stream: &Stream, now: Duration) {
        assert!(self.position.is_none(), "`open` comes once");
        let after = position(&frame["after"]);
        match self.wanted.after {
            After::At(wanted) => assert_eq!(after, wanted),
            // A stream that does not exist yet is sent from its beginning.
            _ if after == Position::ZERO => assert!(
                self.wanted.tip == EntryId::ZERO
                    || stream.was_missing(self.wanted.at, now)
                    || self.wanted.after == After::Last,
                "it starts at the beginning"
            ),
            After::Tail => assert!(after >= Position::whole(self.wanted.tip), "{after} is not the end"),
            After::Last => {
                let mut next = stream.log.iter().filter(|written| Position::whole(written.entry.id) > after);
                let next = next.find(|written| !written.pieces.is_empty() && !written.is_removed);
                let begins = next.map_or(usize::MAX, |written| written.generation);
                assert!(begins >= self.wanted.generation, "{after} is before the newest generation");
            }
        }
        let state = frame["state"].as_str().expect("a state");
        let (over, open) = stream.was_over(self.wanted.at.saturating_sub(SHARED_FOR), now);
        match state {
            "ended" | "failed" => assert!(over, "{state}, but it was never over: {self:?}"),
            "live" | "stalled" => {
                let is_unknown = stream.log.iter().any(|written| written.is_removed);
                assert!(open || is_unknown, "{state}, but it was over all the time: {self:?}");
            }
            _ => {}
        }
        state.clone_into(&mut self.status);
        self.position = Some(after);
    }

    fn gap(&mut self, frame: &Value, stream: &Stream) {
        let had = self.position.unwrap_or_default();
        let sent_after = position(&frame["after"]);
        // A gap does not change the last id of the client. If more is removed before the next frame, a second gap with
        // the same `after` extends the first.
        let is_longer = self.gap_after.replace(sent_after) == Some(sent_after);
        let after = if is_longer { had } else { sent_after };
        let next = frame["next"].as_str().map(|id| id.parse::<EntryId>().expect("an id"));
        let next = next.expect("every gap has a next id here");
        let passed: Vec<&Piece> =
            pieces(stream).filter(|piece| piece.at > had && piece.at <= after).collect();
        assert!(after >= had && passed.is_empty(), "a gap after {after} for a viewer at {had}");
        let is_missing =
            |written: &&Written| Position::whole(written.entry.id) > after && written.entry.id < next;
        let is_all = frame["id"].is_string();
        let missing: Vec<&Written> = stream.log.iter().filter(is_missing).collect();
        for written in &missing {
            assert!(written.is_removed, "{} still exists: {frame}", written.entry.id);
        }
        let is_nothing = missing.is_empty() && !is_all;
        assert!(!is_nothing || frame["lost"].is_null() && !is_longer, "nothing is missing: {frame}");
        let last = stream.log.iter().find(|written| written.entry.id == next).expect("a known id");
        assert!(!is_all || last.is_removed, "{frame}");
        match frame["reason"].as_str() {
            Some("trimmed") => {
                if let Some(lost) = frame["lost"].as_u64() {
                    assert_eq!(lost, (missing.len() + usize::from(is_all)) as u64, "{frame}");
                }
            }
            Some("recreated") => assert!(last.life > 1, "{frame}"),
            reason => panic!("a gap for no reason: {reason:?}"),
        }
        self.has_begun = true;
        let beyond = if is_all { Position::whole(next) } else { before(stream, next) };
        self.position = Some(after.max(beyond));
    }

    fn advance(&mut self, kind: &str, frame: &Value, stream: &Stream, now: Duration) {
        let had = self.position.unwrap_or_default();
        let id = position(&frame["id"]);
        if !self.has_begun && id <= had && matches!(kind, "end" | "error") {
            // A viewer that already has all of a finished answer is sent its end again.
            self.has_begun = true;
            return;
        }
        assert!(id > had, "{id} is repeated after {had}: {frame}");
        self.gap_after = None;
        // A viewer that has no frame yet need not get the entries of an earlier life of the key.
        let life = stream.life_at(id);
        let is_unseen = !self.has_begun && had == Position::ZERO;
        self.has_begun = true;
        let covered = stream.log.iter().filter(|written| !(is_unseen && written.life < life));
        let covered: Vec<(&Written, &Piece)> = covered
            .flat_map(|written| written.pieces.iter().map(move |piece| (written, piece)))
            .filter(|(_, piece)| piece.at > had && piece.at <= id)
            .collect();
        assert!(covered.last().is_some_and(|(_, piece)| piece.at == id), "{id} is no piece: {frame}");
        assert!(covered.iter().all(|(written, _)| written.at <= now));
        match &covered[0].1.content {
            Content::Whole(word) => {
                assert_eq!(covered.len(), 1, "{had}, then {frame}");
                assert_eq!(kind, *word, "{frame}");
            }
            Content::Text { channel, .. } => {
                assert_eq!(
                    (kind, frame["channel"].as_str().unwrap_or("content")),
                    ("delta", *channel),
                    "{had}, then {frame}"
                );
                let texts = covered.iter().map(|(_, piece)| match &piece.content {
                    Content::Text { channel: other, text } if other == channel => text.as_str(),
                    other => panic!("{had}, then {frame} in which {other:?} is missing"),
                });
                let text: String = texts.collect();
                assert_eq!(frame["text"].as_str(), Some(text.as_str()), "{had}, then {id}");
                assert_eq!(frame["count"].as_u64().unwrap_or(1), covered.len() as u64, "{frame}");
            }
        }
        self.position = Some(id);
    }

    /// Judges the end of the viewer's frames.
    pub(super) fn end(&mut self, ended: Ended, stream: &Stream, now: Duration) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(ended);
        match ended {
            Ended::Gone => {}
            Ended::NotFound => {
                assert!(stream.was_missing(self.wanted.at, now), "{} existed all the time", stream.name);
            }
            Ended::Over => {
                assert!(!self.wanted.follow, "a follower's stream is never over: {self:?}");
                let (over, _) = stream.was_over(self.wanted.at, now);
                let Some(had) = self.position else { return assert!(over, "it was never over") };
                let next = pieces_written(stream).find(|(_, piece)| piece.at > had);
                if let Some((written, _)) = next {
                    let is_later =
                        written.at >= self.wanted.at.saturating_sub(SHARED_FOR) || written.is_removed;
                    assert!(is_later, "{} existed when {had} was reported as the end", written.entry.id);
                }
                let newest = pieces_written(stream).take_while(|(_, piece)| piece.at <= had).last();
                assert!(newest.is_some_and(|(written, _)| written.is_end), "{had} is no end");
            }
        }
    }

    /// Judges the viewer when nothing is pending: it must have everything.
    pub(super) fn check_complete(&self, stream: &Stream) {
        let newest = stream.log.iter().rev().find(|written| !written.pieces.is_empty());
        let is_over = newest.is_some_and(|newest| newest.is_end && !newest.is_removed);
        assert!(
            self.ended.is_some() || self.wanted.follow || !is_over,
            "{} is over, and {self:?} was not ended",
            stream.name
        );
        if self.ended.is_some() {
            return;
        }
        assert!(stream.exists, "{} is gone, and {self:?} was not ended", stream.name);
        let had = self.position.unwrap_or_else(|| panic!("{self:?} got no frame of {}", stream.name));
        let left = pieces(stream).find(|piece| piece.at > had);
        assert!(left.is_none(), "{self:?} misses {left:?} of {}", stream.name);
        let is_current = matches!(self.status.as_str(), "live" | "stalled" | "ended" | "failed");
        assert!(is_current, "{self:?} of {}", stream.name);
    }
}

fn pieces_written(stream: &Stream) -> impl Iterator<Item = (&Written, &Piece)> {
    stream.log.iter().flat_map(|written| written.pieces.iter().map(move |piece| (written, piece)))
}

fn pieces(stream: &Stream) -> impl Iterator<Item = &Piece> {
    pieces_written(stream).map(|(_, piece)| piece)
}

/// The position of the entry before this one.
fn before(stream: &Stream, id: EntryId) -> Position {
    let passed = stream.log.iter().rev().find(|written| written.entry.id < id);
    passed.map_or(Position::ZERO, |written| Position::whole(written.entry.id))
}

fn position(value: &Value) -> Position {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no id"))
}
