//! Turns entries into frames: one assembler follows one stream and merges adjacent entries.
//!
//! Its buffers are bounded by what is pushed between two calls of [`Assembler::take`], which is one batch.

use std::sync::Arc;

use super::entry::{DecodeContext, plain};
use super::expand::{Concluded, EntryEvents, is_over_before, last_frame};
use super::flaw::Flaw;
use super::order::{DropReason, Verdict, judge, shows_skipped};
use crate::model::Cursor;
use crate::model::{
    Content, Decoded, Entry, Event, FRAME_TEXT_BYTES_MAX, Frame, Head, Position, Progress, StreamName,
    StreamState, TextMark, ToolPiece, piece_continues,
};
use crate::provider::Margin;

/// The result of pushing an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// The entry is in a frame, or will be.
    Accepted,
    /// The entry is not delivered.
    Dropped(DropReason),
    /// The entry could not be decoded: it becomes a dead letter, and a `skipped` frame unless it follows a terminal
    /// entry.
    Undecodable {
        /// Why.
        flaw: Flaw,
    },
    /// The entry lies at or below the position, and was ignored.
    Old,
}

/// Turns the entries of one stream into shared frames.
#[derive(Debug)]
pub struct Assembler {
    stream: StreamName,
    /// After the last pushed entry.
    position: Position,
    state: StreamState,
    /// Where the last frame, pending included, ended, and the state there.
    framed: Cursor,
    /// The text frame that the next entry may continue. It is boxed to keep it off the cold memory between two
    /// batches of a stream.
    pending: Option<Box<Pending>>,
    /// Complete frames, in order.
    made: Vec<Arc<Frame>>,
    /// The last channel name, so that it is not allocated for every frame.
    channel: Option<Arc<str>>,
    /// Whether frames record where they can be divided.
    marks: bool,
    /// The state before the current entry, if that is in a provider's form.
    before: Option<Box<StreamState>>,
    context: DecodeContext,
    grace_ms: u64,
}

/// A text frame under construction.
#[derive(Debug)]
struct Pending {
    /// The head of the frame, as of the last entry in it.
    head: Head,
    body: PendingBody,
    text: Vec<u8>,
    marks: Vec<TextMark>,
}

#[derive(Debug)]
enum PendingBody {
    Delta { channel: Option<Arc<str>>, index: u64 },
    ToolCall(ToolPiece),
}

impl Pending {
    fn has_room(&self, bytes: usize) -> bool {
        self.text.len() + bytes <= FRAME_TEXT_BYTES_MAX
    }
}

/// The current entry, besides its content.
#[derive(Clone, Copy)]
struct At {
    id: Position,
    seq: Option<u64>,
    ts_us: Option<u64>,
    read_us: u64,
}

/// The initial capacity for a frame's text, in bytes.
const TEXT_BYTES_MIN: usize = 64;

impl Assembler {
    /// An assembler that continues after `position`, where the stream's state is `state`.
    #[must_use]
    pub fn new(stream: StreamName, position: Position, state: StreamState) -> Self {
        let mut framed = Cursor { position, state: state.clone() };
        framed.position = framed.before_end();
        let (pending, channel, before) = (None, None, None);
        let (made, marks, context, grace_ms) = (Vec::new(), false, DecodeContext::default(), 0);
        Self { stream, position, state, framed, pending, made, channel, marks, before, context, grace_ms }
    }

    /// An assembler whose frames can be divided between any two entries ([`Frame::rest_after`]).
    #[must_use]
    pub const fn marking(mut self) -> Self {
        self.marks = true;
        self
    }

    /// Sets after how many ms of silence a finishing generation is over; 0 (the default): never.
    #[must_use]
    pub const fn with_grace(mut self, grace_ms: u64) -> Self {
        self.grace_ms = grace_ms;
        self
    }

    /// Sets the context for decoding.
    #[must_use]
    pub fn with_context(mut self, context: DecodeContext) -> Self {
        self.context = context;
        self
    }

    /// The position after the last pushed entry. It may be ahead of the last frame's, if entries followed that are
    /// not delivered.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// The end of the last frame that was returned or is pending.
    #[must_use]
    pub fn framed(&self) -> Position {
        self.pending.as_ref().map_or(self.framed.position, |pending| pending.head.last)
    }

    /// The stream's state after the last pushed entry.
    #[must_use]
    pub const fn state(&self) -> &StreamState {
        &self.state
    }

    /// Takes the next entry, which was read from Redis at `read_us` (µs since 1970 by this host's clock).
    pub fn push(&mut self, entry: &Entry, read_us: u64) -> Pushed {
        let id = Position::whole(entry.id);
        if id <= self.position {
            return Pushed::Old;
        }
        let (is_simple, margin) = (self.state.progress.is_none(), Margin::default());
        let decoded = if is_simple { plain(entry, &self.context, &margin) } else { None };
        let Some(decoded) = decoded else { return self.push_expanded(entry, read_us) };
        self.position = id;
        self.state.pass();
        let at = At { id, seq: decoded.seq, ts_us: decoded.ts_us, read_us };
        match judge(&mut self.state, entry.id, &decoded) {
            Verdict::Drop(reason) => Pushed::Dropped(reason),
            Verdict::Gap { lost, reason } => {
                self.emit_gap(at, lost);
                Pushed::Dropped(reason)
            }
            Verdict::Deliver { lost, begins } => {
                if begins {
                    self.cut();
                }
                if let Some(lost) = lost {
                    self.emit_gap(at, lost);
                }
                self.accept(at, &decoded);
                Pushed::Accepted
            }
        }
    }

    /// Takes an entry that has several events or depends on earlier entries.
    fn push_expanded(&mut self, entry: &Entry, read_us: u64) -> Pushed {
        if is_over_before(&self.state, entry, &self.context, self.grace_ms) {
            self.emit_end(read_us);
        }
        let received = std::mem::replace(&mut self.position, Position::whole(entry.id));
        self.before = Some(Box::new(self.state.clone()));
        self.state.pass();
        let (progress, margin) = (self.state.progress.clone(), Margin::default());
        let before = Progress::known(progress.as_deref());
        let context = self.context.clone();
        let pushed = match EntryEvents::new(entry, &context, (before, &margin), &self.state) {
            Ok(events) => self.push_events(events, received, read_us),
            Err(flaw) => {
                let id = last_frame(entry.id, 1, &self.state);
                if shows_skipped(&self.state) && id > received {
                    let (reason, message) = (flaw.reason(), flaw.message(&entry.fields, &context.names));
                    let at = At { id, seq: None, ts_us: None, read_us };
                    self.emit(at, Content::Skipped { reason, message: &message });
                }
                self.state.note_newest(entry.id);
                Pushed::Undecodable { flaw }
            }
        };
        self.before = None;
        pushed
    }

    /// Takes an entry's events, and emits those that were not `received` before.
    fn push_events(&mut self, mut events: EntryEvents<'_>, received: Position, read_us: u64) -> Pushed {
        let mut pushed = Pushed::Dropped(DropReason::Framing);
        while let Some((decoded, verdict, id)) = events.judge(&mut self.state) {
            let at = At { id, seq: decoded.seq, ts_us: decoded.ts_us, read_us };
            let is_new = id > received;
            let (lost, is_delivered) = match verdict {
                Verdict::Drop(reason) => {
                    pushed = Pushed::Dropped(reason);
                    continue;
                }
                Verdict::Gap { lost, reason } => {
                    pushed = Pushed::Dropped(reason);
                    (Some(lost), false)
                }
                Verdict::Deliver { lost, begins } => {
                    if begins {
                        self.cut();
                    }
                    pushed = Pushed::Accepted;
                    (lost, true)
                }
            };
            if let Some(lost) = lost.filter(|_| is_new) {
                self.emit_gap(at, lost);
            }
            if is_delivered && is_new {
                self.accept(at, &decoded);
            }
        }
        pushed
    }

    /// Ends a finishing generation for which no end can be written. Returns whether there was one.
    pub fn conclude(&mut self, read_us: u64) -> bool {
        let is_finishing = self.state.finishing().is_some();
        self.emit_end(read_us);
        is_finishing
    }

    /// Emits an end that has no entry, with the id of the generation's newest entry.
    fn emit_end(&mut self, read_us: u64) {
        let Some(concluded) = Concluded::of(&mut self.state) else { return };
        self.cut();
        let Event::End { finish_reason, usage } = concluded.end().event else { return };
        let last = Position::whole(concluded.id);
        let mut head = self.head(At { id: last, seq: None, ts_us: None, read_us }, 1);
        head.after = Position::but_end(concluded.id);
        head.state.ordinal = concluded.ordinal;
        self.framed.move_to(last, &head.state);
        self.made.push(Arc::new(Frame::encode(head, Content::End { finish_reason, usage })));
    }

    /// Ends the pending frame here.
    pub fn cut(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        let Pending { head, body, text, marks } = *pending;
        let text = &text[..];
        let content = match body {
            PendingBody::Delta { channel, index } => Content::Delta { channel, index, text },
            PendingBody::ToolCall(tool) => Content::ToolCall { tool, arguments: text },
        };
        self.framed.move_to(head.last, &head.state);
        let frame = Frame { marks: marks.into(), ..Frame::encode(head, content) };
        self.made.push(Arc::new(frame));
    }

    /// Cuts, and returns all frames that were created since the last call, with `now_us` as the time of encoding (µs
    /// since 1970 by this host's clock).
    pub fn take(&mut self, now_us: u64) -> Vec<Arc<Frame>> {
        self.cut();
        for frame in self.made.iter_mut().filter_map(Arc::get_mut) {
            frame.encoded_us = now_us;
        }
        std::mem::take(&mut self.made)
    }

    fn accept(&mut self, at: At, decoded: &Decoded<'_>) {
        match decoded.event {
            Event::Delta { text, channel, index } => self.accept_delta(at, (channel, index), text),
            Event::ToolCall { index, call, id, name, arguments } => {
                if !self.continues_tool(index, call, [id, name], arguments.len()) {
                    let (id, name) = (id.map(Arc::from), name.map(Arc::from));
                    self.begin(
                        at,
                        PendingBody::ToolCall(ToolPiece { index, call, id, name }),
                        arguments.len(),
                    );
                }
                self.append(at, arguments);
            }
            Event::Start { generation, metadata } => self.emit(at, Content::Start { generation, metadata }),
            Event::End { finish_reason, usage } => self.emit(at, Content::End { finish_reason, usage }),
            Event::Error { code, message } => self.emit(at, Content::Error { code, message }),
            Event::Custom { data } => self.emit(at, Content::Custom { data }),
            Event::Heartbeat => debug_assert!(false, "heartbeats are never delivered"),
        }
    }

    fn accept_delta(&mut self, at: At, (channel, index): (&str, u64), text: &str) {
        let named = (channel != "content").then_some(channel);
        let continued = self.pending.as_deref().is_some_and(|pending| {
            let is_same = matches!(
                &pending.body,
                PendingBody::Delta { channel: c, index: i } if c.as_deref() == named && *i == index
            );
            is_same && pending.has_room(text.len())
        });
        if !continued {
            let channel = named.map(|name| self.channel_name(name));
            self.begin(at, PendingBody::Delta { channel, index }, text.len());
        }
        self.append(at, text);
    }

    fn continues_tool(&self, index: u64, call: u64, later: [Option<&str>; 2], bytes: usize) -> bool {
        let Some(pending) = self.pending.as_deref() else { return false };
        let PendingBody::ToolCall(first) = &pending.body else { return false };
        pending.has_room(bytes)
            && (first.index, first.call) == (index, call)
            && piece_continues([first.id.as_deref(), first.name.as_deref()], later)
    }

    /// Begins a text frame with the current entry, which has `bytes` bytes of text.
    fn begin(&mut self, at: At, body: PendingBody, bytes: usize) {
        self.cut();
        let head = self.head(at, 0);
        let text = Vec::with_capacity(bytes.max(TEXT_BYTES_MIN));
        self.pending = Some(Box::new(Pending { head, body, text, marks: Vec::new() }));
    }

    /// Adds the current entry to the pending text frame. Within a frame only the counts of the state change: an entry
    /// that changes more gets a frame of its own.
    fn append(&mut self, at: At, text: &str) {
        let Some(pending) = self.pending.as_deref_mut() else { return };
        let head = &mut pending.head;
        pending.text.extend_from_slice(text.as_bytes());
        if self.marks {
            pending.marks.push(TextMark { last: at.id, bytes: pending.text.len() });
        }
        head.last = at.id;
        head.seq = at.seq;
        head.count += 1;
        head.ts_us = head.ts_us.or(at.ts_us);
        head.read_us = at.read_us;
        match &self.before {
            None => {
                head.state.seq = self.state.seq;
                head.state.blind = self.state.blind;
                head.state.ordinal = self.state.ordinal;
            }
            Some(before) => head.state.assign(if at.id.is_whole() { &self.state } else { before }),
        }
    }

    /// Makes a frame of the current entry alone.
    fn emit(&mut self, at: At, content: Content<'_>) {
        self.cut();
        let head = self.head(at, 1);
        self.framed.move_to(head.last, &head.state);
        self.made.push(Arc::new(Frame::encode(head, content)));
    }

    /// Reports that numbers are missing before the current entry. The frame moves no position.
    fn emit_gap(&mut self, at: At, lost: u64) {
        self.cut();
        let Cursor { position, state } = self.framed.clone();
        let head = Head { last: position, state, seq: None, ts_us: None, ..self.head(at, 0) };
        self.made.push(Arc::new(Frame::encode(head, Content::Gap { next: at.id.id, lost })));
    }

    fn head(&self, at: At, count: u32) -> Head {
        let At { id: last, seq, ts_us, read_us } = at;
        let state = match &self.before {
            Some(before) if !last.is_whole() => (**before).clone(),
            _ => self.state.clone(),
        };
        let (stream, after) = (self.stream.clone(), self.framed.position);
        Head { stream, after, last, state, seq, count, ts_us, read_us, encoded_us: 0 }
    }

    fn channel_name(&mut self, name: &str) -> Arc<str> {
        match &self.channel {
            Some(channel) if **channel == *name => Arc::clone(channel),
            _ => {
                let channel: Arc<str> = name.into();
                self.channel = Some(Arc::clone(&channel));
                channel
            }
        }
    }
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
