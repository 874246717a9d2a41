//! From the payloads of LLM providers to native events: chat completion chunks and Responses events of OpenAI and of
//! compatible servers, and Anthropic's Messages events.
//!
//! Pure: the inputs are bytes and the generation's [`Progress`], the outputs are events and the new progress. Text is
//! passed on escaped. Servers differ in what they add and omit, so unknown members and events become `custom`; but if
//! text would be lost, because its member has the wrong type, the whole entry is [`Malformed`] and changes nothing.
//!
//! No output of a model is dropped: content without a native form follows as `custom`, and a call that was only
//! announced is emitted before the end at the latest. A server's notes on its own work are not output: names, times
//! and fingerprints of the chunk, padding (`obfuscation`), `service_tier`, token ids, `logprobs`, verdicts of
//! filters, a sampler's `seed` and stop reasons beside `finish_reason`. Each form lists them in its `…FRAMING`.
//!
//! Decisions that the contract leaves open:
//!
//! - `finish_reason` is the provider's word: `stop`, `length`, `tool_calls`, …; Anthropic's `stop_reason`; the status
//!   of a Responses object, or why it is incomplete. Of several choices, the first one's counts.
//! - Tool calls are numbered in the order in which they begin, regardless of the provider's numbers: see `calls`.
//! - A tool call's id and name come with its first piece of arguments, even an empty one, or before a later call. If
//!   there is no piece, they come at the end of the block. Arguments in the announcement count only if no piece has
//!   any.
//! - Arguments that are an object, as some servers write them, are emitted as the object's text.
//! - An id may be a number: it is emitted as it is written.
//! - `NaN` and `Infinity`, which are not JSON, are read as `null`.
//! - After the end of a generation, an entry that does not begin the next one is kept for it only if it cannot belong
//!   to anything else (`message_start`, `response.created`, the beginnings of blocks); a late usage or finish chunk
//!   is not.
//!
//! Bounds: [`PROGRESS_BYTES_MAX`](crate::model::PROGRESS_BYTES_MAX) for the state of a generation: beyond it the
//! oldest parts are emitted and dropped, so that a later piece of one begins another call, and a complete text that
//! repeats one is `custom`. [`EVENTS_PER_ENTRY_MAX`] for the events of one entry; entries beyond it are malformed,
//! and counted as such.

mod anthropic;
mod calls;
mod chat;
mod defect;
mod draft;
mod failure;
mod identity;
mod items;
mod openai;
mod responses;
mod value;
mod whole;

use std::cell::OnceCell;
use std::sync::Arc;

pub use defect::{defect, known_forms};
use draft::Draft;
pub(crate) use failure::PROVIDER_ERROR;

use crate::json;
use crate::model::{Event, Fields, Progress};

/// The most events of one entry. Each becomes a frame of some hundred bytes, however few bytes it takes in the entry.
pub const EVENTS_PER_ENTRY_MAX: usize = 4096;

/// The provider whose form an entry has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The field `openai`: a chat completion chunk, a Responses event, an error object or `[DONE]`.
    OpenAi,
    /// The field `anthropic`: a Messages event.
    Anthropic,
}

impl Form {
    /// The field of the form.
    #[must_use]
    pub const fn field(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
        }
    }

    /// The form and the bytes of an entry that is not native.
    #[must_use]
    pub fn of(fields: &Fields) -> Option<(Self, &[u8])> {
        let openai = fields.get("openai").map(|bytes| (Self::OpenAi, bytes));
        openai.or_else(|| fields.get("anthropic").map(|bytes| (Self::Anthropic, bytes)))
    }
}

/// Why an entry cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is not in its form, in a way that would lose content.
    #[error("not what a provider sends")]
    Form,
    /// It has more than [`EVENTS_PER_ENTRY_MAX`] events.
    #[error("more than {EVENTS_PER_ENTRY_MAX} events in one entry")]
    TooMuch,
}

/// The events of an entry, and the generation's progress after them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PayloadEvents<'a> {
    first: Option<Event<'a>>,
    rest: Vec<Event<'a>>,
    progress: Option<Arc<Progress>>,
}

impl<'a> PayloadEvents<'a> {
    /// The number of events; 0 if the entry only frames others.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    /// Whether the entry only frames others.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The events in order. Only the last one may end the generation.
    pub fn events(&self) -> impl Iterator<Item = Event<'a>> {
        self.first.iter().chain(&self.rest).copied()
    }

    /// The event with this index.
    #[must_use]
    pub fn event(&self, place: usize) -> Option<Event<'a>> {
        match place.checked_sub(1) {
            None => self.first,
            Some(place) => self.rest.get(place).copied(),
        }
    }

    /// The generation's progress after the entry; `None` if the entry did not change it.
    pub const fn take_progress(&mut self) -> Option<Arc<Progress>> {
        self.progress.take()
    }
}

/// Storage for texts of events that are not slices of the entry. It lives as long as the events.
#[derive(Debug, Default)]
pub struct Margin {
    text: OnceCell<Box<str>>,
    next: OnceCell<Box<Self>>,
}

impl Margin {
    /// Stores a text after those that it holds already.
    pub(crate) fn keep(&self, text: Box<str>) -> &str {
        self.free().text.get_or_init(|| text)
    }

    /// The first free margin of the chain.
    fn free(&self) -> &Self {
        let mut free = self;
        while free.text.get().is_some() {
            free = free.next.get_or_init(Box::default);
        }
        free
    }
}

/// Drops the chain link by link: a recursive drop of a long chain would need a deep stack.
impl Drop for Margin {
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(mut margin) = next {
            next = margin.next.take();
        }
    }
}

/// Reads the events of an entry. `before`: the generation's progress so far; `follows_end`: the newest generation is
/// over.
///
/// # Errors
/// If the entry is [`Malformed`].
pub fn read<'a>(
    (form, bytes): (Form, &'a [u8]),
    before: &'a Progress,
    follows_end: bool,
    margin: &'a Margin,
) -> Result<PayloadEvents<'a>, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed::Form)?;
    let read_text = |text: &'a str, margin: &'a Margin| {
        let mut draft = Draft::new(before, follows_end, margin);
        let read = match form {
            Form::OpenAi => openai::read(text, &mut draft),
            Form::Anthropic => anthropic::read(text, &mut draft),
        };
        draft.finish(read)
    };
    read_text(text, margin).or_else(|malformed| {
        let text = json::without_nan(text).ok_or(malformed)?;
        // The texts of the first attempt are in the first margin, so this attempt needs another one.
        let margin = margin.free();
        read_text(margin.text.get_or_init(|| text.into()), margin.next.get_or_init(Box::default))
    })
}

/// The calls of a generation that were announced and not emitted yet. They have to be emitted if the generation ends
/// without another event of its provider.
#[must_use]
pub fn waiting(progress: &Progress) -> Vec<Event<'_>> {
    let slots = progress.parts.waiting();
    let parts = slots.into_iter().filter_map(|slot| progress.parts.get(slot));
    let calls = parts.filter_map(|part| {
        let waiting = part.waiting.as_deref()?;
        let (id, name) = (waiting.id.as_deref(), waiting.name.as_deref());
        Some(Event::ToolCall { index: part.choice, call: part.call, id, name, arguments: &waiting.arguments })
    });
    calls.collect()
}

/// The `end` of a generation with this progress.
#[must_use]
pub fn end(progress: &Progress) -> Event<'_> {
    Event::End { finish_reason: progress.finish_reason(), usage: progress.usage.as_deref() }
}

#[cfg(test)]
mod anthropic_tests;
#[cfg(test)]
mod bound_tests;
#[cfg(test)]
mod call_tests;
#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod identity_tests;
#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod shape_tests;
#[cfg(test)]
mod tests;
