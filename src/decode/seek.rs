//! Finds the state that a resume needs in the history before it: a scan from the stream's beginning or from a known
//! state. It decodes and judges entries, but creates no frame except the newest terminal one.
//!
//! The scan's state at an entry ([`Scan`]) can be stored, and another scan, for any position, can continue from it.

use std::sync::Arc;

use super::entry::{DecodeContext, plain};
use super::expand::{Concluded, EntryEvents, is_over_before};
use super::order::{PRODUCER_LOST, Verdict, judge};
use crate::model::Cursor;
use crate::model::{
    After, Content, Decoded, Entry, EntryId, Event, Frame, Head, Outline, Phase, Position, Progress,
    StreamName, StreamState,
};
use crate::provider::Margin;

/// The distance between two checkpoints, in entries: at most this many are decoded twice. An entry counts once more
/// for each KiB.
pub const CHECKPOINT_SPACING: u64 = 1024;

/// The state of a scan: everything that depends only on the entries up to there, so that another scan can continue
/// from it as if it had scanned them itself.
#[derive(Clone, Debug)]
pub struct Scan {
    tip: EntryId,
    state: StreamState,
    /// The position right before the newest generation's first entry, and the state there.
    newest: (Position, StreamState),
    /// The id of the end before that.
    newest_mark: EntryId,
    /// The position of the last delivered entry.
    delivered: Position,
    terminal: Option<Arc<Frame>>,
    activity: Option<EntryId>,
    /// The outline of the newest generation so far.
    outline: Outline,
    /// The id of the newest end.
    ended: EntryId,
    /// How much was scanned, in entries and KiB.
    cost: u64,
}

impl Scan {
    fn new(beginning: StreamState) -> Self {
        Self {
            tip: EntryId::ZERO,
            newest: (Position::ZERO, beginning.clone()),
            newest_mark: EntryId::ZERO,
            state: beginning,
            delivered: Position::ZERO,
            terminal: None,
            activity: None,
            outline: Outline::default(),
            ended: EntryId::ZERO,
            cost: 0,
        }
    }

    /// Its approximate size in memory, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let of = |state: &StreamState| {
            let generation = state.generation.as_ref().map_or(0, |name| name.len());
            generation + state.progress.as_ref().map_or(0, |progress| progress.len_bytes())
        };
        let terminal = self.terminal.as_ref().map_or(0, |frame| size_of::<Frame>() + frame.json().len());
        size_of::<Self>() + of(&self.state) + of(&self.newest.1) + terminal + self.outline.len_bytes()
    }

    /// How much was scanned, in entries and KiB.
    #[must_use]
    pub const fn cost(&self) -> u64 {
        self.cost
    }
}

/// A scan in progress, with its target. Entries are pushed in order, over as many batches as needed.
#[derive(Debug)]
pub struct Seek {
    stream: StreamName,
    after: After,
    context: DecodeContext,
    grace_ms: u64,
    /// Whether the outline of the generation up to the wanted position is needed.
    outlined: bool,
    scan: Scan,
    /// The state at the wanted position, once the scan has passed it.
    passed: Option<StreamState>,
    /// The outline there.
    outline_passed: Option<Outline>,
    /// The position behind which entries were removed before they were read, and the number of entries before it: the
    /// read that goes on from there finds by that number that some are missing.
    hole: Option<(Position, Option<u64>)>,
    /// The position up to which checkpoints were made, by [`Scan::cost`]; `None`: the scan has not read everything,
    /// so it makes none.
    checked: Option<u64>,
}

/// The result of a scan.
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
    /// The stored terminal frame of the newest generation, if that is finished. Its `read_us` and `encoded_us` are 0:
    /// it is not timed.
    pub terminal: Option<Arc<Frame>>,
    /// The newest entry that the producer wrote: any entry except a `producer_lost`.
    pub newest_activity: Option<EntryId>,
    /// The outline of the generation up to `from`, if it was requested.
    pub outline: Option<Outline>,
}

impl Seek {
    /// A scan for `after` from the stream's beginning, where the state is `beginning`.
    #[must_use]
    pub fn new(stream: StreamName, after: After, beginning: StreamState) -> Self {
        Self {
            stream,
            after,
            context: DecodeContext::default(),
            grace_ms: 0,
            outlined: false,
            scan: Scan::new(beginning),
            passed: None,
            outline_passed: None,
            hole: None,
            checked: Some(0),
        }
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

    /// Sets whether the outline of the generation up to the wanted position is needed (default: no).
    #[must_use]
    pub const fn with_outline(mut self, outlined: bool) -> Self {
        self.outlined = outlined;
        self
    }

    /// The last entry scanned, or `0-0`.
    #[must_use]
    pub const fn position(&self) -> EntryId {
        self.scan.tip
    }

    /// The state after the last entry scanned.
    #[must_use]
    pub const fn state(&self) -> &StreamState {
        &self.scan.state
    }

    /// The wanted position with its state, once the scan has passed it.
    #[must_use]
    pub fn passed(&self) -> Option<Cursor> {
        let After::At(position) = self.after else { return None };
        self.passed.clone().map(|state| Cursor { position, state })
    }

    /// The latest position of a checkpoint that the scan may use; `None`: it has to read every entry for now.
    #[must_use]
    pub fn target(&self) -> Option<Position> {
        const END: Position = Position::whole(EntryId::MAX);
        match (&self.passed, self.after) {
            (None, After::At(wanted)) => Some(wanted),
            (None, After::Last | After::Tail) => Some(END),
            // The next entry may show that the generation was over at the wanted position.
            (Some(passed), _) => {
                let newest = passed.finishing();
                (newest.is_none() || newest != self.scan.state.finishing()).then_some(END)
            }
        }
    }

    /// Sets another beginning before anything was scanned.
    pub fn begin(&mut self, beginning: StreamState) {
        if self.scan.tip == EntryId::ZERO {
            self.scan = Scan::new(beginning);
        }
    }

    /// Continues from a checkpoint at or before [`Seek::target`].
    pub fn adopt(&mut self, scan: &Scan) {
        if scan.tip > self.scan.tip {
            self.scan = scan.clone();
            self.checked = self.checked.map(|_| scan.cost);
        }
    }

    /// Whether the scan is so long that others should wait for its checkpoints.
    #[must_use]
    pub const fn is_long(&self) -> bool {
        self.scan.cost >= CHECKPOINT_SPACING
    }

    #[cfg(test)]
    pub(super) const fn scan(&self) -> &Scan {
        &self.scan
    }

    /// A checkpoint, if it is time for one.
    pub fn checkpoint(&mut self) -> Option<Scan> {
        let checked = self.checked?;
        if self.scan.cost < checked + CHECKPOINT_SPACING {
            return None;
        }
        self.checked = Some(self.scan.cost);
        Some(self.scan.clone())
    }

    /// Records that entries after [`Seek::position`] were removed unread: the scan continues at `first`, where only
    /// `state` is known.
    pub fn skip_to(&mut self, first: Option<EntryId>, state: StreamState) {
        if let After::At(wanted) = self.after
            && self.passed.is_none()
            && first.is_none_or(|first| wanted < Position::whole(first))
        {
            self.passed = Some(StreamState { ordinal: None, ..state.clone() });
        }
        self.checked = None;
        let scan = &mut self.scan;
        self.hole = Some((Position::whole(scan.tip), scan.state.ordinal));
        scan.newest =
            (Position::whole(scan.tip), StreamState { ordinal: scan.state.ordinal, ..state.clone() });
        scan.newest_mark = EntryId::ZERO;
        scan.terminal = None;
        scan.state = state;
        scan.outline = Outline::default();
        self.outline_passed = self.passed.is_some().then(Outline::default);
    }

    /// Records a delivered event in the outlines that cover it.
    fn outline_event(&mut self, at: Position, event: &Event<'_>, begins: bool) {
        let scan = &mut self.scan;
        if begins {
            scan.newest_mark = scan.ended;
        }
        scan.outline.pass_event(at.id, event, begins);
        if let (Some(outline), After::At(wanted)) = (&mut self.outline_passed, self.after)
            && at <= wanted
        {
            outline.pass_event(at.id, event, begins);
        }
        if event.is_terminal() {
            scan.ended = at.id;
        }
    }

    /// Takes the next entry. Ignores an entry at or below [`Seek::position`].
    pub fn push(&mut self, entry: &Entry) {
        if entry.id <= self.scan.tip {
            return;
        }
        if is_over_before(&self.scan.state, entry, &self.context, self.grace_ms) {
            self.end_finishing();
        }
        if let After::At(wanted) = self.after
            && self.passed.is_none()
            && Position::whole(entry.id) > wanted
        {
            self.passed = Some(self.state_at(wanted));
            self.outline_passed = Some(self.scan.outline.clone());
        }
        self.scan.cost += 1 + entry.fields.len_bytes() as u64 / 1024;
        let (is_simple, margin) = (self.scan.state.progress.is_none(), Margin::default());
        let decoded = if is_simple { plain(entry, &self.context, &margin) } else { None };
        match decoded {
            Some(decoded) => self.follow(entry.id, &decoded),
            None => self.follow_expanded(entry),
        }
        self.scan.tip = entry.id;
    }

    /// The result of the scan. `last_generated_id` is the stream's, which is above its newest entry if that was
    /// deleted.
    #[must_use]
    pub fn finish(self, last_generated_id: EntryId) -> Sought {
        let passed = match self.after {
            After::At(wanted) => Some(self.passed.clone().unwrap_or_else(|| self.state_at(wanted))),
            After::Last | After::Tail => None,
        };
        let Scan { tip, state: state_at_tip, newest, newest_mark, terminal, activity, outline, .. } =
            self.scan;
        let (from, state_at_from, outline) = match self.after {
            After::At(wanted) => (wanted, passed.unwrap_or_default(), self.outline_passed.unwrap_or(outline)),
            After::Last => (newest.0, newest.1, Outline::after_end(newest_mark)),
            After::Tail => (Position::whole(tip.max(last_generated_id)), state_at_tip.clone(), outline),
        };
        let outline = self.outlined.then_some(outline);
        Sought { from, state_at_from, tip, state_at_tip, terminal, newest_activity: activity, outline }
    }

    /// The state at the wanted position, which the scan is about to pass. If no entry is left at or before it, the
    /// number of entries before it is unknown: those that were removed may lie on either side.
    fn state_at(&self, wanted: Position) -> StreamState {
        let Scan { state, tip, .. } = &self.scan;
        let is_known = wanted == Position::ZERO || *tip != EntryId::ZERO;
        StreamState { ordinal: state.ordinal.filter(|_| is_known), ..state.clone() }
    }

    /// Ends a finishing generation, although no entry does.
    pub fn conclude(&mut self) {
        self.end_finishing();
    }

    fn end_finishing(&mut self) {
        let Some(concluded) = Concluded::of(&mut self.scan.state) else { return };
        // A wanted position at or behind the id of that end includes the end.
        if let After::At(wanted) = self.after
            && wanted >= Position::whole(concluded.id)
            && let Some(passed) = &mut self.passed
            && passed.finishing() == Some(concluded.id)
        {
            Concluded::of(passed);
        }
        let after = Position::but_end(concluded.id);
        self.scan.terminal = self.terminal_frame(concluded.id, after, &concluded.end()).map(Arc::new);
        self.outline_event(Position::whole(concluded.id), &concluded.end().event, false);
        self.scan.delivered = Position::whole(concluded.id);
    }

    /// Follows an entry that has several events or depends on earlier entries.
    fn follow_expanded(&mut self, entry: &Entry) {
        let before = self.scan.state.clone();
        let mut at = Position::whole(self.scan.tip);
        self.scan.state.pass();
        let (progress, margin) = (self.scan.state.progress.clone(), Margin::default());
        let known = Progress::known(progress.as_deref());
        let Ok(mut events) = EntryEvents::new(entry, &self.context, (known, &margin), &self.scan.state)
        else {
            self.scan.state.note_newest(entry.id);
            self.scan.activity = Some(entry.id);
            return;
        };
        let mut is_lost = false;
        while let Some((decoded, verdict, position)) = events.judge(&mut self.scan.state) {
            is_lost |= matches!(decoded.event, Event::Error { code: PRODUCER_LOST, .. });
            let Verdict::Deliver { begins, .. } = verdict else { continue };
            if begins {
                self.begin_generation(at, before.clone());
            }
            at = position;
            if decoded.event.is_terminal() {
                let terminal = self.terminal_frame(entry.id, self.scan.delivered, &decoded);
                self.scan.terminal = terminal.map(Arc::new);
            }
            self.scan.delivered = position;
            self.outline_event(position, &decoded.event, begins);
        }
        if !is_lost {
            self.scan.activity = Some(entry.id);
        }
    }

    fn follow(&mut self, id: EntryId, decoded: &Decoded<'_>) {
        if !matches!(decoded.event, Event::Error { code: PRODUCER_LOST, .. }) {
            self.scan.activity = Some(id);
        }
        // The state before the entry is needed only if a generation may begin with it.
        let may_begin = self.scan.state.phase != Phase::Open || matches!(decoded.event, Event::Start { .. });
        let before = may_begin.then(|| self.scan.state.clone());
        self.scan.state.pass();
        let Verdict::Deliver { begins, .. } = judge(&mut self.scan.state, id, decoded) else { return };
        if begins && let Some(before) = before {
            self.begin_generation(Position::whole(self.scan.tip), before);
        }
        if decoded.event.is_terminal() {
            let terminal = self.terminal_frame(id, self.scan.delivered, decoded);
            self.scan.terminal = terminal.map(Arc::new);
        }
        self.scan.delivered = Position::whole(id);
        self.outline_event(Position::whole(id), &decoded.event, begins);
    }

    /// Notes that a generation begins behind `after`, with the state there.
    fn begin_generation(&mut self, after: Position, mut state: StreamState) {
        if let Some((_, ordinal)) = self.hole.filter(|(hole, _)| *hole == after) {
            state.ordinal = ordinal;
        }
        self.scan.newest = (after, state);
        self.scan.terminal = None;
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
            state: self.scan.state.clone(),
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
