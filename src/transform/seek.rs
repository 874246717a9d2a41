//! What a resume needs to know of the history before it: a scan from the stream's beginning, or from a
//! known state, that decodes and judges, and makes no frames but the newest terminal one.

use std::sync::Arc;

use super::decode::{DecodeContext, plain};
use super::hear::{Concluded, Heard, is_over_before};
use super::order::{PRODUCER_LOST, Verdict, judge};
use crate::event::message::Cursor;
use crate::event::{
    After, Content, Decoded, Entry, EntryId, Event, Frame, Head, Outline, Position, Progress, StreamName,
    StreamState,
};
use crate::provider::Margin;

/// A scan in progress. Entries are pushed in their order, over as many batches as it takes.
#[derive(Debug)]
pub struct Seek {
    stream: StreamName,
    after: After,
    tip: EntryId,
    state: StreamState,
    /// The state at the wanted position, from the moment at which the scan has passed it.
    passed: Option<StreamState>,
    /// Right before the newest generation's first entry.
    newest: (Position, StreamState),
    /// Where the last delivered entry is.
    delivered: Position,
    terminal: Option<Arc<Frame>>,
    activity: Option<EntryId>,
    context: DecodeContext,
    grace_ms: u64,
    /// What the generation at the wanted position had said up to there, if that is wanted.
    outline: Option<Outline>,
    /// The newest end.
    ended: EntryId,
}

/// What a scan found.
#[derive(Clone, Debug)]
pub struct Sought {
    /// Where reading begins.
    pub from: Position,
    /// The stream's state there.
    pub state_at_from: StreamState,
    /// The newest entry seen, or `0-0`.
    pub tip: EntryId,
    /// The stream's state there.
    pub state_at_tip: StreamState,
    /// The stored terminal frame of the newest generation, if that is finished. Its `read_us` and
    /// `encoded_us` are 0: it is not timed.
    pub terminal: Option<Arc<Frame>>,
    /// The newest entry that is a producer's sign of life: any but a `producer_lost`.
    pub newest_activity: Option<EntryId>,
    /// What the generation had said up to `from`, where that was wanted.
    pub outline: Option<Outline>,
}

impl Seek {
    /// A scan from the stream's beginning, where its state is `beginning`, for where `after` is.
    #[must_use]
    pub fn new(stream: StreamName, after: After, beginning: StreamState) -> Self {
        Self {
            stream,
            after,
            tip: EntryId::ZERO,
            newest: (Position::ZERO, beginning.clone()),
            state: beginning,
            passed: None,
            delivered: Position::ZERO,
            terminal: None,
            activity: None,
            context: DecodeContext::default(),
            grace_ms: 0,
            outline: None,
            ended: EntryId::ZERO,
        }
    }

    /// With the time after which a finishing generation is over, in ms; 0 (as without this): never.
    #[must_use]
    pub const fn with_grace(mut self, grace_ms: u64) -> Self {
        self.grace_ms = grace_ms;
        self
    }

    /// With what decoding depends on beside the entries.
    #[must_use]
    pub fn with_context(mut self, context: DecodeContext) -> Self {
        self.context = context;
        self
    }

    /// With the outline of what the generation at the wanted position had said, or without (as without this).
    #[must_use]
    pub fn with_outline(mut self, outlined: bool) -> Self {
        self.outline = outlined.then(Outline::default);
        self
    }

    /// The last entry scanned, or `0-0`.
    #[must_use]
    pub const fn position(&self) -> EntryId {
        self.tip
    }

    /// The state after the last entry scanned.
    #[must_use]
    pub const fn state(&self) -> &StreamState {
        &self.state
    }

    /// The wanted position with its state, once the scan has passed it.
    #[must_use]
    pub fn passed(&self) -> Option<Cursor> {
        let After::At(position) = self.after else { return None };
        self.passed.clone().map(|state| Cursor { position, state })
    }

    /// Entries behind [`Seek::position`] were removed unseen: the scan goes on at `first`, where nothing but
    /// `state` is known.
    pub fn skip_to(&mut self, first: Option<EntryId>, state: StreamState) {
        if let After::At(wanted) = self.after
            && self.passed.is_none()
            && first.is_none_or(|first| wanted < Position::whole(first))
        {
            self.passed = Some(StreamState { ordinal: None, ..state.clone() });
        }
        self.newest = (Position::whole(self.tip), state.clone());
        self.terminal = None;
        self.state = state;
        self.outline = self.outline.take().map(|_| Outline::default());
    }

    /// Notes what was delivered in the outline, as far as that goes.
    fn outline_event(&mut self, at: Position, event: &Event<'_>, begins: bool) {
        let Some(outline) = &mut self.outline else { return };
        match self.after {
            After::At(wanted) if at > wanted => {}
            After::At(_) | After::Tail => outline.pass_event(at.id, event, begins),
            After::Last if begins => *outline = Outline::after_end(self.ended),
            After::Last => {}
        }
        if event.is_terminal() {
            self.ended = at.id;
        }
    }

    /// Takes the next entry. One at or below [`Seek::position`] is ignored.
    pub fn push(&mut self, entry: &Entry) {
        if entry.id <= self.tip {
            return;
        }
        if is_over_before(&self.state, entry, &self.context, self.grace_ms) {
            self.end_finishing();
        }
        if let After::At(wanted) = self.after
            && self.passed.is_none()
            && Position::whole(entry.id) > wanted
        {
            self.passed = Some(self.state_at(wanted));
        }
        let decoded = if self.state.progress.is_none() { plain(entry) } else { None };
        match decoded {
            Some(decoded) => self.follow(entry.id, &decoded),
            None => self.follow_heard(entry),
        }
        self.tip = entry.id;
    }

    /// The end of the scan. `last_generated_id` is the stream's, which is above its newest entry where
    /// that was deleted.
    #[must_use]
    pub fn finish(self, last_generated_id: EntryId) -> Sought {
        let passed = match self.after {
            After::At(wanted) => Some(self.passed.clone().unwrap_or_else(|| self.state_at(wanted))),
            After::Last | After::Tail => None,
        };
        let state_at_tip = self.state;
        let (from, state_at_from) = match self.after {
            After::At(wanted) => (wanted, passed.unwrap_or_default()),
            After::Last => self.newest,
            After::Tail => (Position::whole(self.tip.max(last_generated_id)), state_at_tip.clone()),
        };
        Sought {
            from,
            state_at_from,
            tip: self.tip,
            state_at_tip,
            terminal: self.terminal,
            newest_activity: self.activity,
            outline: self.outline,
        }
    }

    /// The state at the wanted position, which the scan is about to pass. Where nothing is left at or before
    /// it, nobody knows how many entries came before it: those that were removed may lie on either side.
    fn state_at(&self, wanted: Position) -> StreamState {
        let is_known = wanted == Position::ZERO || self.tip != EntryId::ZERO;
        StreamState { ordinal: self.state.ordinal.filter(|_| is_known), ..self.state.clone() }
    }

    /// A finishing generation has come to its end without an entry that says so.
    pub fn conclude(&mut self) {
        self.end_finishing();
    }

    fn end_finishing(&mut self) {
        let Some(concluded) = Concluded::of(&mut self.state) else { return };
        // Who has passed the id of its end has that.
        if let After::At(wanted) = self.after
            && wanted >= Position::whole(concluded.id)
            && let Some(passed) = &mut self.passed
            && passed.finishing() == Some(concluded.id)
        {
            Concluded::of(passed);
        }
        let after = Position::but_end(concluded.id);
        self.terminal = self.terminal_frame(concluded.id, after, &concluded.end()).map(Arc::new);
        self.outline_event(Position::whole(concluded.id), &concluded.end().event, false);
        self.delivered = Position::whole(concluded.id);
    }

    /// Follows an entry that is not in the native form or breaks it, or one after one in a provider's form.
    fn follow_heard(&mut self, entry: &Entry) {
        let before = (self.after == After::Last).then(|| self.state.clone());
        let mut at = Position::whole(self.tip);
        self.state.pass();
        let (progress, margin) = (self.state.progress.clone(), Margin::default());
        let known = Progress::known(progress.as_deref());
        let Ok(mut heard) = Heard::new(entry, &self.context, (known, &margin), &self.state) else {
            self.state.note_newest(entry.id);
            self.activity = Some(entry.id);
            return;
        };
        let mut is_lost = false;
        while let Some((decoded, verdict, position)) = heard.judge(&mut self.state) {
            is_lost |= matches!(decoded.event, Event::Error { code: PRODUCER_LOST, .. });
            let Verdict::Deliver { begins, .. } = verdict else { continue };
            if begins {
                if let Some(state) = &before {
                    self.newest = (at, state.clone());
                }
                self.terminal = None;
            }
            at = position;
            if decoded.event.is_terminal() {
                self.terminal = self.terminal_frame(entry.id, self.delivered, &decoded).map(Arc::new);
            }
            self.delivered = position;
            self.outline_event(position, &decoded.event, begins);
        }
        if !is_lost {
            self.activity = Some(entry.id);
        }
    }

    fn follow(&mut self, id: EntryId, decoded: &Decoded<'_>) {
        if !matches!(decoded.event, Event::Error { code: PRODUCER_LOST, .. }) {
            self.activity = Some(id);
        }
        // Only an entry that may begin a generation needs the state before it, and only `last` asks for it.
        let may_begin = decoded.event.begins() || decoded.event.is_terminal();
        let before = (self.after == After::Last && may_begin).then(|| self.state.clone());
        self.state.pass();
        let Verdict::Deliver { begins, .. } = judge(&mut self.state, id, decoded) else { return };
        if begins {
            if let Some(state) = before {
                self.newest = (Position::whole(self.tip), state);
            }
            self.terminal = None;
        }
        if decoded.event.is_terminal() {
            self.terminal = self.terminal_frame(id, self.delivered, decoded).map(Arc::new);
        }
        self.delivered = Position::whole(id);
        self.outline_event(Position::whole(id), &decoded.event, begins);
    }

    fn terminal_frame(&self, id: EntryId, after: Position, decoded: &Decoded<'_>) -> Option<Frame> {
        let content = match decoded.event {
            Event::End { finish_reason, usage } => Content::End { finish_reason, usage },
            Event::Error { code, message } => Content::Error { code, message },
            _ => return None,
        };
        let head = Head {
            stream: self.stream.clone(),
            after,
            last: Position::whole(id),
            state: self.state.clone(),
            seq: decoded.seq,
            count: 1,
            ts_us: decoded.ts_us,
            read_us: 0,
            encoded_us: 0,
        };
        Some(Frame::encode(head, content))
    }
}

#[cfg(test)]
#[path = "seek_tests.rs"]
mod tests;
