//! The events of an entry while it is read, and the generation's progress after them.
//!
//! INVARIANT: announced calls are emitted before the generation ends, and before it is *finishing*: every terminal
//! event goes through [`Draft::emit`], and every entry through [`Draft::finish`].

use std::sync::Arc;

use super::value::{counts, quoted, text};
use super::{EVENTS_PER_ENTRY_MAX, Malformed, Margin, PayloadEvents};
use crate::json;
use crate::model::{Event, PARTS_BYTES_MAX, Progress, USAGE_BYTES_MAX};

/// The events of an entry that is being read. None of them counts before the whole entry is understood.
pub(super) struct Draft<'a> {
    /// The generation's progress before the entry. Events may borrow from it.
    pub(super) before: &'a Progress,
    /// Whether the newest generation is over.
    pub(super) follows_end: bool,
    /// Where the next text is stored that is not a slice of the entry.
    margin: &'a Margin,
    events: PayloadEvents<'a>,
    is_too_much: bool,
}

impl<'a> Draft<'a> {
    pub(super) fn new(before: &'a Progress, follows_end: bool, margin: &'a Margin) -> Self {
        Self { before, follows_end, margin, events: PayloadEvents::default(), is_too_much: false }
    }

    /// The number of events so far.
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Whether an event has ended the generation.
    pub(super) fn is_over(&self) -> bool {
        let last = self.events.rest.last().or(self.events.first.as_ref());
        last.is_some_and(Event::is_terminal)
    }

    pub(super) fn emit(&mut self, event: Event<'a>) -> Option<()> {
        if event.is_terminal() {
            self.emit_waiting()?;
        }
        let events = &mut self.events;
        if events.first.is_none() {
            events.first = Some(event);
            return Some(());
        }
        self.is_too_much = events.len() >= EVENTS_PER_ENTRY_MAX;
        (!self.is_too_much).then(|| events.rest.push(event))
    }

    /// Emits text, unless it is empty.
    pub(super) fn emit_text(&mut self, channel: &'a str, index: u64, text: Option<&'a str>) -> Option<()> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Some(()) };
        self.emit(Event::Delta { text, channel, index })
    }

    /// Emits an object without a native form, assembled from what was left of the entry.
    pub(super) fn emit_rest(&mut self, object: String) -> Option<()> {
        // A member with a lone surrogate cannot be emitted as text; the object is passed on as it would be in an
        // entry.
        let data = self.keep(object.into());
        self.emit(Event::Custom { data })
    }

    /// The generation's progress after the events so far.
    pub(super) fn progress(&self) -> &Progress {
        self.events.progress.as_deref().unwrap_or(self.before)
    }

    pub(super) fn change(&mut self) -> &mut Progress {
        Arc::make_mut(self.events.progress.get_or_insert_with(|| Arc::new(self.before.clone())))
    }

    /// Whether the entry's members besides text belong to the open generation, or to one that the entry begins.
    pub(super) fn is_ours(&self) -> bool {
        !self.follows_end || !self.events.is_empty()
    }

    /// Keeps token counts, unless there are none or they belong to the previous generation.
    pub(super) fn keep_usage(&mut self, usage: Option<&str>) {
        let Some(usage) = counts(usage).filter(|usage| usage.len() <= USAGE_BYTES_MAX) else { return };
        if self.is_ours() && self.progress().usage.as_deref() != Some(usage) {
            self.change().usage = Some(usage.into());
        }
    }

    /// Stores a text as long as the events live.
    pub(super) fn keep(&mut self, text: Box<str>) -> &'a str {
        let here = self.margin;
        self.margin = here.next.get_or_init(Box::default);
        here.text.get_or_init(|| text)
    }

    /// The arguments of a tool call: text, or an object; `Some(None)` if there are none.
    pub(super) fn arguments(&mut self, raw: Option<&'a str>) -> Option<Option<&'a str>> {
        match raw {
            Some(object) if object.starts_with('{') => Some(Some(self.keep(quoted(object)))),
            raw => text(raw),
        }
    }

    /// The events of the entry, if all of it was `read`.
    pub(super) fn finish(mut self, read: Option<()>) -> Result<PayloadEvents<'a>, Malformed> {
        match read.and_then(|()| self.close()) {
            Some(()) => Ok(self.events),
            None if self.is_too_much => Err(Malformed::TooMuch),
            None => Err(Malformed::Form),
        }
    }

    /// Ends the entry. No announcement may wait if the generation may be over without another entry, and what exceeds
    /// the limit is emitted and dropped.
    fn close(&mut self) -> Option<()> {
        if self.progress().is_finishing() {
            self.emit_waiting()?;
        }
        if self.events.progress.as_ref().is_some_and(|after| after.parts.len_bytes() > PARTS_BYTES_MAX) {
            while let Some(slot) = self.change().parts.oldest_beyond(PARTS_BYTES_MAX) {
                self.emit_waiting_of(slot)?;
                let parts = &mut self.change().parts;
                parts.remove(slot);
                parts.has_forgotten = true;
            }
        }
        Some(())
    }
}

/// The unescaped text; empty if it is not valid.
pub(super) fn meant(escaped: &str) -> std::borrow::Cow<'_, str> {
    json::unescape(escaped).unwrap_or_default()
}
