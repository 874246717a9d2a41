//! The events of an entry in any form, and the positions of the frames of an entry with several events.
//!
//! Of the frames of one raw entry, all but the last carry `ms-n.k`, and their state is the one before the entry, so
//! that a resume there reads the entry again and skips its first k frames.
//!
//! A generation is *finishing* if its provider has given the reason for its end but has not sent its final event. It
//! is over if nothing but heartbeats follows for a while. The daemon then writes an `end` entry ([`end_entry`]). If
//! it cannot, the `end` frame has the id of the generation's newest entry. So every frame of an entry after which a
//! generation is finishing carries `ms-n.k`: `ms-n` is reserved for the end.

use std::sync::Arc;

use super::entry::{DecodeContext, Form, plain_events};
use super::flat::PlainEvents;
use super::flaw::Flaw;
use super::order::{Verdict, judge};
use crate::model::{Decoded, Entry, EntryId, Event, Newest, Phase, Position, Progress, StreamState};
use crate::provider::{self, Margin, PayloadEvents};

/// The events of one entry, to be judged one by one.
pub(super) struct EntryEvents<'a> {
    id: EntryId,
    events: Events<'a>,
    progress: Option<Arc<Progress>>,
    /// How many events were judged, and how many there are.
    judged: usize,
    count: usize,
}

enum Events<'a> {
    /// The events of an entry that is not in a provider's form. `waiting` holds announced events of a provider's form
    /// that have to be emitted before it.
    Plain {
        waiting: Vec<Event<'a>>,
        own: PlainEvents<'a>,
    },
    Raw(PayloadEvents<'a>),
}

impl<'a> EntryEvents<'a> {
    /// Reads an entry that follows `before`, its generation's progress so far.
    ///
    /// # Errors
    /// If it cannot be decoded.
    pub(super) fn new(
        entry: &'a Entry,
        context: &DecodeContext,
        (before, margin): (&'a Progress, &'a Margin),
        state: &StreamState,
    ) -> Result<Self, Flaw> {
        let id = entry.id;
        let (form, raw) = match Form::of(&entry.fields) {
            Form::Raw(form, raw) => (form, raw),
            form => {
                let own = plain_events(form, entry, context, margin)?;
                let waiting = waiting_before(&own, before, state, id);
                let count = waiting.len() + 1 + usize::from(own.end.is_some());
                let events = Events::Plain { waiting, own };
                return Ok(Self { id, events, progress: None, judged: 0, count });
            }
        };
        let follows_end = state.phase.terminal().is_some();
        let read = provider::read((form, raw), before, follows_end, margin);
        let mut payload = read.map_err(|malformed| Flaw::Provider(form, malformed))?;
        let (progress, count) = (payload.take_progress(), payload.len());
        Ok(Self { id, events: Events::Raw(payload), progress, judged: 0, count })
    }

    /// Judges the next event: the event, its verdict, and the position of its frame. `None` once all are judged;
    /// `state` is then the one after the entry.
    pub(super) fn judge(&mut self, state: &mut StreamState) -> Option<(Decoded<'a>, Verdict, Position)> {
        if let Some(progress) = self.progress.take() {
            state.progress = Some(progress);
        }
        let decoded = match &self.events {
            _ if self.judged == self.count => None,
            Events::Plain { waiting, own } => match self.judged.checked_sub(waiting.len()) {
                None => {
                    waiting.get(self.judged).map(|event| Decoded { event: *event, seq: None, ts_us: None })
                }
                Some(0) => Some(own.first),
                Some(_) => own.end.map(|event| Decoded { event, ..own.first }),
            },
            Events::Raw(payload) => {
                let event = payload.event(self.judged);
                event.map(|event| Decoded { event, seq: None, ts_us: None })
            }
        };
        let Some(decoded) = decoded else {
            if !self.is_heartbeat() {
                state.note_newest(self.id);
            }
            return None;
        };
        // The entry's number counts once, with its first event.
        let seq = decoded.seq.filter(|_| !self.is_end_already_emitted());
        let verdict = judge(state, self.id, &Decoded { seq, ..decoded });
        self.judged += 1;
        if matches!((&self.events, verdict), (Events::Plain { .. }, Verdict::Drop(_))) {
            // If an entry is a retry, or belongs to a finished generation, all of it does.
            self.count = self.judged;
        }
        let is_last = self.judged == self.count;
        let position = if is_last {
            last_frame(self.id, self.judged, state)
        } else {
            Position::part(self.id, self.judged)
        };
        Some((decoded, verdict, position))
    }

    /// Whether the next event is an end after the text of the same entry.
    fn is_end_already_emitted(&self) -> bool {
        matches!(&self.events, Events::Plain { waiting, .. } if self.judged > waiting.len())
    }

    fn is_heartbeat(&self) -> bool {
        matches!(&self.events, Events::Plain { own, .. } if matches!(own.first.event, Event::Heartbeat))
    }
}

/// The events to be emitted before the entry's own: those that a provider has only announced, if the entry ends the
/// generation or begins the next one.
fn waiting_before<'a>(
    own: &PlainEvents<'_>,
    before: &'a Progress,
    state: &StreamState,
    id: EntryId,
) -> Vec<Event<'a>> {
    let event = &own.first.event;
    let takes_place = matches!(event, Event::Start { .. }) || event.is_terminal() || own.end.is_some();
    if !takes_place || !before.parts.has_waiting() {
        return Vec::new();
    }
    let waiting = provider::waiting(before);
    // A retry ends nothing and begins nothing.
    let mut after = state.clone();
    for event in &waiting {
        judge(&mut after, id, &Decoded { event: *event, seq: None, ts_us: None });
    }
    match judge(&mut after, id, &own.first) {
        Verdict::Deliver { .. } => waiting,
        Verdict::Gap { .. } | Verdict::Drop(_) => Vec::new(),
    }
}

/// The position of an entry's last frame, its `n`th; `state` is the one after the entry.
pub(super) fn last_frame(id: EntryId, n: usize, state: &StreamState) -> Position {
    match state.finishing() {
        Some(_) => Position::part(id, n),
        None => Position::whole(id),
    }
}

/// The end of a generation without an entry of its own.
pub(super) struct Concluded {
    /// The newest entry of the generation.
    pub(super) id: EntryId,
    /// The stream's ordinal there.
    pub(super) ordinal: Option<u64>,
    /// The generation's progress up to its end.
    pub(super) progress: Arc<Progress>,
}

impl Concluded {
    /// Ends the generation, if it is finishing.
    pub(super) fn of(state: &mut StreamState) -> Option<Self> {
        state.finishing()?;
        let progress = state.progress.take()?;
        let Newest { id, ordinal, seq, blind } = progress.newest;
        // A resume at the end reads the heartbeats behind it as entries after the end, so they do not count.
        (state.phase, state.seq, state.blind) = (Phase::Ended(id), seq, blind);
        Some(Self { id, ordinal, progress })
    }

    /// The end event, which no entry contains.
    pub(super) fn end(&self) -> Decoded<'_> {
        Decoded { event: provider::end(&self.progress), seq: None, ts_us: None }
    }
}

/// Whether the generation was over before the next entry, because that came too late. A `grace_ms` of 0 means never.
pub(super) fn is_over_before(
    state: &StreamState,
    entry: &Entry,
    context: &DecodeContext,
    grace_ms: u64,
) -> bool {
    let is_heartbeat = || {
        let margin = Margin::default();
        let own = plain_events(Form::of(&entry.fields), entry, context, &margin);
        matches!(own, Ok(PlainEvents { first: Decoded { event: Event::Heartbeat, .. }, .. }))
    };
    let finishing = state.finishing().filter(|_| grace_ms > 0);
    finishing.is_some_and(|newest| entry.id.ms.saturating_sub(newest.ms) >= grace_ms) && !is_heartbeat()
}

/// The entry that ends a finishing generation, as a native object, to be written if no entry of the producer ends it.
pub(crate) fn end_entry(state: &StreamState) -> Option<String> {
    state.finishing()?;
    let progress = state.progress.as_deref()?;
    let mut json = String::from(r#"{"type":"end""#);
    // The strings are kept escaped.
    if let Some(reason) = progress.finish_reason() {
        json.push_str(r#","finish_reason":""#);
        json.push_str(reason);
        json.push('"');
    }
    if let Some(usage) = &progress.usage {
        json.push_str(r#","usage":"#);
        json.push_str(usage);
    }
    json.push('}');
    Some(json)
}

#[cfg(test)]
#[path = "expand_tests.rs"]
mod tests;
