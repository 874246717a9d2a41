//! From what LLM providers send to native events: chat completion chunks and Responses events of OpenAI and of the many
//! that speak as it does, and Anthropic's Messages events.
//!
//! Pure: bytes and the generation's [`Progress`] come in, events and what the progress has become come out. Text is
//! passed on as it is escaped. Servers differ in what they add and leave out, so unknown members and events become
//! `custom`; but where text would be lost, because a member that carries it is of the
//! wrong kind, the whole entry is [`Malformed`] and changes nothing.
//!
//! No output of a model is dropped: content without a native form of its own follows as `custom`, and a call that was
//! only announced is emitted before the end at the latest. A server's notes on its own work are no output: names, times
//! and fingerprints of the chunk, padding (`obfuscation`), `service_tier`, token ids, `logprobs`, verdicts of filters,
//! a sampler's `seed` and stop reasons beside `finish_reason`. Each form lists them in its `…FRAMING`.
//!
//! Decisions that the contract leaves to us:
//!
//! - `finish_reason` is the provider's word: `stop`, `length`, `tool_calls`, …; Anthropic's `stop_reason`; the
//!   status of a Responses object, or why it is incomplete. Of several choices the first one's counts.
//! - Tool calls are numbered in the order in which they begin, whatever number the provider gives them: see `calls`.
//! - A tool call's id and name come with its first piece of arguments, if only an empty one, or before a later call.
//!   Where there is none, the end of its block brings them. Arguments that were given at once count where no piece has
//!   any.
//! - Arguments that are an object, as some servers write them, are emitted as its text.
//! - An id may be a number: it is emitted as it is written.
//! - `NaN` and `Infinity`, which are no JSON, are `null`.
//! - After the end of a generation, an entry that does not begin the next one is kept for it only where it can belong
//!   to nothing else (`message_start`, `response.created`, the beginnings of blocks); a late usage or finish chunk is
//!   not.
//!
//! Bounds: [`PROGRESS_BYTES_MAX`](crate::model::PROGRESS_BYTES_MAX) for what is kept of a generation: beyond it the
//! parts that began first are emitted and forgotten, so that a later piece of one begins another call, and a whole that
//! repeats one is `custom`. [`EVENTS_PER_ENTRY_MAX`] for what one entry says; entries beyond are malformed, and counted
//! as such.

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

/// The most events of one entry. Each becomes a frame of some hundred bytes, however few bytes it took in the entry.
pub const EVENTS_PER_ENTRY_MAX: usize = 4096;

/// The provider in whose form an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The field `openai`: a chat completion chunk, a Responses event, an error object or `[DONE]`.
    OpenAi,
    /// The field `anthropic`: a Messages event.
    Anthropic,
}

impl Form {
    /// The field that the form is named by.
    #[must_use]
    pub const fn field(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
        }
    }

    /// The form of an entry that is not native, and its bytes.
    #[must_use]
    pub fn of(fields: &Fields) -> Option<(Self, &[u8])> {
        let openai = fields.get("openai").map(|bytes| (Self::OpenAi, bytes));
        openai.or_else(|| fields.get("anthropic").map(|bytes| (Self::Anthropic, bytes)))
    }
}

/// Why an entry is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It breaks its form in a way that would lose what it says.
    #[error("not what a provider sends")]
    Form,
    /// It says more than [`EVENTS_PER_ENTRY_MAX`] things.
    #[error("more than {EVENTS_PER_ENTRY_MAX} things in one entry")]
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
    /// How many events it is; none where the entry only frames others.
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

    /// The event of that place.
    #[must_use]
    pub fn event(&self, place: usize) -> Option<Event<'a>> {
        match place.checked_sub(1) {
            None => self.first,
            Some(place) => self.rest.get(place).copied(),
        }
    }

    /// The generation's progress after the entry; `None` where the entry did not change it.
    pub const fn take_progress(&mut self) -> Option<Arc<Progress>> {
        self.progress.take()
    }
}

/// Storage for texts of events that are not a slice of the entry. It lives as long as the events.
#[derive(Debug, Default)]
pub struct Margin {
    text: OnceCell<Box<str>>,
    next: OnceCell<Box<Self>>,
}

impl Margin {
    /// Keeps a text behind those that it keeps already.
    pub(crate) fn keep(&self, text: Box<str>) -> &str {
        self.free().text.get_or_init(|| text)
    }

    /// The first one in which nothing is kept.
    fn free(&self) -> &Self {
        let mut free = self;
        while free.text.get().is_some() {
            free = free.next.get_or_init(Box::default);
        }
        free
    }
}

/// One after another: a long chain that dropped itself link in link would need a deep stack.
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
/// When the entry is [`Malformed`].
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
        // A margin of its own: the texts of the first attempt are in the other one.
        let margin = margin.free();
        read_text(margin.text.get_or_init(|| text.into()), margin.next.get_or_init(Box::default))
    })
}

/// The calls that were announced in a generation and are not emitted yet. They have to be emitted where it ends without
/// another word from its provider.
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

/// The `end` that a generation comes to with what it has said so far.
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
