//! From what LLM providers send to native events: chat completion chunks and Responses events of OpenAI and of the many
//! that speak as it does, and Anthropic's Messages events.
//!
//! Pure: bytes and the generation's [`Progress`] come in, events and what the progress has become come out. Text is
//! passed on as it is escaped. Servers differ in what they add and leave out, so unknown members pass over
//! and unknown events become `custom`; but where text would be lost, because a member that carries it is of the
//! wrong kind, the whole entry is [`Malformed`] and changes nothing.
//!
//! What the contract leaves to us:
//!
//! - `finish_reason` is the provider's word: `stop`, `length`, `tool_calls`, …; Anthropic's `stop_reason`; the
//!   status of a Responses object, or why it is incomplete. Of several choices the first one's counts.
//! - Tool calls without a number are numbered in the order in which they begin.
//! - A tool call's id and name come with its first piece of arguments, if only an empty one. Where there is none, the
//!   end of its block brings them. Arguments that were given at once count where no piece has any.
//! - Arguments that are an object, as some servers write them, are told as its text.
//! - An id may be a number: it is told as it is written.
//! - What follows the end of a generation and begins nothing is kept for the next one only where it can be nothing else
//!   (`message_start`, `response.created`, the beginnings of blocks); a late usage or finish chunk is not.
//!
//! Bounds: [`PROGRESS_BYTES_MAX`] for what is kept of a generation, [`EVENTS_PER_ENTRY_MAX`] for what one entry says;
//! entries beyond are malformed, and counted as such.

mod anthropic;
mod chat;
mod openai;
mod responses;

use std::cell::OnceCell;

use crate::event::{Block, BlockKey, Event, Fields, Introduction, PROGRESS_BYTES_MAX, Progress};
use crate::json;

/// The most events of one entry. Each becomes a frame of some hundred bytes, however few bytes it took in the entry.
pub const EVENTS_PER_ENTRY_MAX: usize = 4096;

/// The code of an error to which the provider gave none.
pub(crate) const PROVIDER_ERROR: &str = "provider_error";

/// Whose form an entry is in.
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

/// An entry that breaks its form in a way that would lose what it says, or goes beyond a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not what a provider sends")]
pub struct Malformed;

/// What an entry says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said<'a> {
    first: Option<Event<'a>>,
    rest: Vec<Event<'a>>,
    progress: Option<Progress>,
}

impl<'a> Said<'a> {
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

    /// What the generation's progress has become; `None` where it is what it was.
    pub const fn take_progress(&mut self) -> Option<Progress> {
        self.progress.take()
    }
}

/// Room for what an entry says in other characters than its own. It lives as long as what is said.
#[derive(Debug, Default)]
pub struct Margin {
    text: OnceCell<Box<str>>,
    next: OnceCell<Box<Self>>,
}

impl Margin {
    /// Keeps a text behind those that it keeps already.
    pub(crate) fn keep(&self, text: Box<str>) -> &str {
        let mut free = self;
        while free.text.get().is_some() {
            free = free.next.get_or_init(Box::default);
        }
        free.text.get_or_init(|| text)
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

/// What an entry says, where the generation has come to `before`. `follows_end`: the newest generation is over.
///
/// # Errors
/// When the entry is [`Malformed`].
pub fn read<'a>(
    (form, bytes): (Form, &'a [u8]),
    before: &'a Progress,
    follows_end: bool,
    margin: &'a Margin,
) -> Result<Said<'a>, Malformed> {
    let mut draft = Draft { before, follows_end, margin, said: Said::default() };
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed)?;
    let understood = match form {
        Form::OpenAi => openai::read(text, &mut draft),
        Form::Anthropic => anthropic::read(text, &mut draft),
    };
    understood.and_then(|()| draft.finish()).ok_or(Malformed)
}

/// The `end` that a generation comes to with what it has said so far.
#[must_use]
pub fn end(progress: &Progress) -> Event<'_> {
    Event::End { finish_reason: progress.finish_reason(), usage: progress.usage.as_deref() }
}

/// What an entry says, in the making. Nothing of it counts before the entry is understood to its end.
struct Draft<'a> {
    before: &'a Progress,
    follows_end: bool,
    /// Where the next text is kept that the entry does not have.
    margin: &'a Margin,
    said: Said<'a>,
}

impl<'a> Draft<'a> {
    fn say(&mut self, event: Event<'a>) -> Option<()> {
        let said = &mut self.said;
        if said.first.is_none() {
            said.first = Some(event);
            return Some(());
        }
        (said.len() < EVENTS_PER_ENTRY_MAX).then(|| said.rest.push(event))
    }

    /// Text, unless it is empty.
    fn say_text(&mut self, channel: &'a str, index: u64, text: Option<&'a str>) -> Option<()> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Some(()) };
        self.say(Event::Delta { text, channel, index })
    }

    /// What the generation has come to with this entry so far.
    fn progress(&self) -> &Progress {
        self.said.progress.as_ref().unwrap_or(self.before)
    }

    fn change(&mut self) -> &mut Progress {
        self.said.progress.get_or_insert_with(|| self.before.clone())
    }

    /// Keeps token counts, unless there are none or they are a former generation's.
    fn keep_usage(&mut self, usage: Option<&str>) {
        let Some(usage) = counts(usage) else { return };
        let is_ours = !self.follows_end || !self.said.is_empty();
        if is_ours && self.progress().usage.as_deref() != Some(usage) {
            self.change().usage = Some(usage.into());
        }
    }

    fn keep(&mut self, text: Box<str>) -> &'a str {
        let here = self.margin;
        self.margin = here.next.get_or_init(Box::default);
        here.text.get_or_init(|| text)
    }

    /// The arguments of a tool call: text, or an object; `Some(None)` where there are none.
    fn arguments(&mut self, raw: Option<&'a str>) -> Option<Option<&'a str>> {
        match raw {
            Some(object) if object.starts_with('{') => Some(Some(self.keep(quoted(object)))),
            raw => text(raw),
        }
    }

    // ----- tool calls in parts of the answer -----

    /// The place of a part in the progress that the entry found, which what is said may borrow from.
    fn place(&self, key: &BlockKey) -> Option<usize> {
        self.before.blocks.iter().position(|block| block.key == *key)
    }

    fn open_block(&mut self, key: BlockKey, introduction: Option<Introduction>) -> Option<u64> {
        self.close_block(&key);
        let progress = self.change();
        let call = progress.calls;
        progress.calls = call.saturating_add(1);
        progress.open(Block { key, call, introduction })?;
        Some(call)
    }

    fn close_block(&mut self, key: &BlockKey) {
        if self.progress().blocks.iter().any(|block| block.key == *key) {
            self.change().blocks.retain(|block| block.key != *key);
        }
    }

    /// A piece of arguments for a part that is going on.
    fn say_piece(&mut self, place: usize, arguments: &'a str) -> Option<()> {
        let before = self.before;
        let Block { call, introduction, .. } = &before.blocks[place];
        let (mut id, mut name) = (None, None);
        if let Some(introduction) = introduction {
            (id, name) = (introduction.id.as_deref(), introduction.name.as_deref());
            // What was given at once waits on where this piece has nothing.
            let given = introduction.arguments.clone();
            let rest =
                arguments.is_empty().then(|| Introduction { arguments: given, ..Introduction::default() });
            if rest.as_ref() != Some(introduction) {
                self.change().blocks[place].introduction = rest;
            }
        }
        if id.is_none() && name.is_none() && arguments.is_empty() {
            return Some(());
        }
        self.say(Event::ToolCall { index: 0, call: *call, id, name, arguments })
    }

    /// A part is over. Where no piece has introduced its call or brought arguments, its end does.
    fn end_block(&mut self, key: &BlockKey, arguments: Option<&'a str>) -> Option<()> {
        let Some(place) = self.place(key) else { return Some(()) };
        let before = self.before;
        let Some(introduction) = &before.blocks[place].introduction else { return Some(()) };
        self.say_piece(place, arguments.unwrap_or(&introduction.arguments))?;
        self.change().blocks[place].introduction = None;
        Some(())
    }

    fn finish(self) -> Option<Said<'a>> {
        let kept = self.said.progress.as_ref().is_none_or(|after| after.len_bytes() <= PROGRESS_BYTES_MAX);
        kept.then_some(self.said)
    }
}

/// A string member, escaped: `Some(None)` where it is absent, `None` where it is something else or no text.
fn text(raw: Option<&str>) -> Option<Option<&str>> {
    let Some(raw) = raw else { return Some(None) };
    json::string(raw).filter(|text| json::surrogates_are_paired(text)).map(Some)
}

/// A string member that says nothing where it is empty, as some servers write what they leave out.
fn word(raw: Option<&str>) -> Option<Option<&str>> {
    Some(text(raw)?.filter(|text| !text.is_empty()))
}

/// An id: a word, or a number as it is written.
fn id(raw: Option<&str>) -> Option<Option<&str>> {
    match raw {
        Some(raw) if raw.starts_with(|first: char| first == '-' || first.is_ascii_digit()) => Some(Some(raw)),
        raw => word(raw),
    }
}

/// Token counts, if that is what it is.
fn counts(raw: Option<&str>) -> Option<&str> {
    raw.filter(|raw| raw.starts_with('{') && json::surrogates_are_paired(raw))
}

/// A text as the inside of a JSON string.
fn quoted(text: &str) -> Box<str> {
    let quoted = serde_json::to_string(text).unwrap_or_default();
    json::string(&quoted).unwrap_or_default().into()
}

/// An unsigned member, 0 where it is absent.
fn number(raw: Option<&str>) -> Option<u64> {
    raw.map_or(Some(0), json::unsigned)
}

/// The error that a provider tells of: an object or a sentence.
fn error(raw: &str) -> Option<Event<'_>> {
    if raw.starts_with('"') {
        return Some(Event::Error { code: PROVIDER_ERROR, message: text(Some(raw))? });
    }
    let [code, kind, message] = json::members(raw, ["code", "type", "message"])?;
    let code = id(code).flatten().or_else(|| id(kind).flatten()).unwrap_or(PROVIDER_ERROR);
    Some(Event::Error { code, message: text(message).flatten() })
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;
