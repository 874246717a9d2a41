//! Other formats than the native one: the events for one viewer, so that a strict client of that format accepts them.
//! Pure.
//!
//! A frame becomes two things. Events that concern one viewer alone (a part is opened, the end of everything that was
//! opened) are made for it; those that are the same for all, nearly every frame's text, are made once a format and kept
//! with the frame ([`Frame::rendering`]). A viewer that comes in the middle is told which parts were opened before: its
//! translator carries the [`Outline`] of the generation from history on.
//!
//! Over server-sent events the id comes with the last event that a frame gives, or with the last that says something
//! new: a client that is cut off between two of them has the frame told again, from its openings on.
//!
//! Bounds: an outline takes at most [`OUTLINE_BYTES_MAX`](crate::model::OUTLINE_BYTES_MAX). A choice or call beyond it
//! is told as any frame that the format has no word for; arguments beyond it are passed on, but not put together at the
//! end.

mod ai_sdk;
mod openai;

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::model::{
    EntryId, Frame, FrameBody, Outline, Position, Rendering, StreamName, sse_event, websocket_text,
};

/// A format other than the native one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Chat completion chunks, as OpenAI's clients read them.
    OpenAi,
    /// The AI SDK's UI message stream.
    AiSdk,
}

/// The transport of the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Server-sent events, with ids.
    Events,
    /// WebSocket messages.
    WebSocket,
}

/// A frame's events for one viewer.
#[derive(Debug, PartialEq, Eq)]
pub struct Translated {
    /// For this viewer alone, and first.
    pub own: Vec<u8>,
    /// Whether the frame's rendering in [`Translator::form`] follows.
    pub shares: bool,
}

/// Translates frames for one viewer, with the state of what it has been told, as far as later frames depend on it.
#[derive(Clone, Debug)]
pub struct Translator {
    format: Format,
    transport: Transport,
    stream: StreamName,
    /// Whether a stream whose newest generation is finished is of no use to the viewer.
    only_unfinished: bool,
    /// The generation so far, whether the viewer was told of it on this connection or before.
    outline: Outline,
    opened: Opened,
    /// The id that the viewer has.
    position: Position,
    /// The generation's name, escaped; and by what it was made.
    key: Box<str>,
    named_by: (Option<Arc<String>>, EntryId),
}

/// The message, roles, text and calls that were opened on this connection.
#[derive(Clone, Debug, Default)]
struct Opened {
    /// Whether the message was begun.
    started: bool,
    /// The choices whose role was told.
    roles: Vec<u64>,
    /// The part whose text goes on.
    text: Option<ai_sdk::Part>,
    /// By place: whether the call was opened, and then whether with its name.
    calls: Vec<Option<bool>>,
}

impl Opened {
    /// Whether the call of a place was opened, and then whether with its name.
    fn call(&self, place: usize) -> Option<bool> {
        self.calls.get(place).copied().flatten()
    }

    /// Opens the call of a place, with its name or without.
    fn open_call(&mut self, place: usize, is_named: bool) {
        if self.calls.len() <= place {
            self.calls.resize(place + 1, None);
        }
        self.calls[place] = Some(is_named);
    }
}

impl Translator {
    /// For a viewer that has been told nothing yet. `only_unfinished`: it has no use for a generation that is over, nor
    /// for a name that nobody has written.
    #[must_use]
    pub fn new(format: Format, transport: Transport, stream: StreamName, only_unfinished: bool) -> Self {
        let named_by = (None, EntryId::ZERO);
        let key = key_of(&stream, (None, EntryId::ZERO));
        let (outline, opened, position) = (Outline::default(), Opened::default(), Position::ZERO);
        Self { format, transport, stream, only_unfinished, outline, opened, position, key, named_by }
    }

    /// The format.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Whether the viewer has no use for what is over.
    #[must_use]
    pub const fn only_unfinished(&self) -> bool {
        self.only_unfinished
    }

    /// The viewer has waited for the stream, or was told a part of it: what it comes to is told, finished or not.
    pub const fn take_finished(&mut self) {
        self.only_unfinished = false;
    }

    /// In which of a frame's forms the shared renderings are kept.
    #[must_use]
    pub const fn form(&self) -> u8 {
        match (self.format, self.transport) {
            (Format::OpenAi, Transport::Events) => 0,
            (Format::OpenAi, Transport::WebSocket) => 1,
            (Format::AiSdk, Transport::Events) => 2,
            (Format::AiSdk, Transport::WebSocket) => 3,
        }
    }

    /// The viewer has everything up to `after`, where its generation had said what `outline` tells.
    pub fn begin(&mut self, after: Position, outline: Option<&Outline>) {
        self.position = after;
        if let Some(outline) = outline {
            self.outline.clone_from(outline);
        }
    }

    /// The stream was begun anew; what the viewer has is no part of it.
    pub fn restart(&mut self) -> Vec<u8> {
        let mut out = Out::new(self.transport);
        self.close(&mut out);
        self.outline = Outline::default();
        out.bytes
    }

    /// A frame as the viewer is to be told it.
    pub fn translate(&mut self, frame: &Frame) -> Translated {
        let mut out = Out::new(self.transport);
        let starts = matches!(frame.body, FrameBody::Other) && frame.kind() == "start";
        if starts && self.outline.begun {
            self.close(&mut out);
        }
        if matches!(frame.body, FrameBody::Other) {
            self.outline.pass_frame(frame, 0);
        }
        self.name(frame);
        let shares = match self.format {
            Format::OpenAi => self.write_openai(frame, &mut out),
            Format::AiSdk => self.write_ai_sdk(frame, &mut out),
        };
        if frame.is_terminal() {
            self.outline = Outline::after_end(frame.last.id);
            self.opened = Opened::default();
        }
        if frame.body != FrameBody::Gap {
            self.position = frame.last;
        }
        Translated { own: out.bytes, shares }
    }

    /// A native frame that is for this viewer alone.
    pub fn translate_control(&mut self, id: Option<Position>, json: &[u8]) -> Vec<u8> {
        let mut out = Out::new(self.transport);
        out.event(id, self.other(id.unwrap_or(self.position), json).as_bytes());
        self.position = id.unwrap_or(self.position);
        out.bytes
    }

    /// The answer is over.
    #[must_use]
    pub fn done(&self) -> Vec<u8> {
        let mut out = Out::new(self.transport);
        out.event((self.format == Format::OpenAi).then_some(self.position), b"[DONE]");
        out.bytes
    }

    fn close(&mut self, out: &mut Out) {
        if self.format == Format::AiSdk {
            self.close_text(out);
        }
        self.opened = Opened::default();
    }

    fn name(&mut self, frame: &Frame) {
        let (name, mark) = (&frame.state.generation, self.outline.mark);
        let (known, known_mark) = &self.named_by;
        if known.as_ref().map(Arc::as_ptr) != name.as_ref().map(Arc::as_ptr) || *known_mark != mark {
            self.key = key_of(&self.stream, (name.as_deref(), mark));
            self.named_by = (name.clone(), mark);
        }
    }

    /// A frame for which the format has no word.
    fn other(&self, at: Position, native: &[u8]) -> String {
        // Frames are JSON and so UTF-8.
        let native = String::from_utf8_lossy(native);
        match self.format {
            Format::OpenAi => self.chunk(at, "", &format!(r#","llm_bridge":{native}"#)),
            Format::AiSdk => format!(r#"{{"type":"data-llm-bridge","data":{native},"transient":true}}"#),
        }
    }

    fn share_other(&self, frame: &Frame, out: &mut Out) -> bool {
        let key = if self.format == Format::OpenAi { &self.key } else { "" };
        self.share(frame, key, out, || self.other(frame.last, frame.json()))
    }

    /// Tells what is the same for all who know `key`: it follows, or, where others know another one, is the viewer's
    /// own.
    fn share(&self, frame: &Frame, key: &str, out: &mut Out, json: impl Fn() -> String) -> bool {
        let id = (frame.body != FrameBody::Gap).then_some(frame.last);
        let rendering = frame.render(self.form(), || {
            let mut shared = Out::new(self.transport);
            shared.event(id, json().as_bytes());
            Rendering { key: key.into(), bytes: shared.bytes.into() }
        });
        if *rendering.key != *key {
            out.event(id, json().as_bytes());
            return false;
        }
        true
    }
}

/// The name by which clients tell a generation from others, escaped: its producer's, else one that no other stream's
/// has.
fn key_of(stream: &StreamName, (name, mark): (Option<&String>, EntryId)) -> Box<str> {
    match name {
        Some(name) => name.as_str().into(),
        None => format!("{stream}@{mark}").into(),
    }
}

/// Events for one viewer.
struct Out {
    transport: Transport,
    bytes: Vec<u8>,
}

impl Out {
    const fn new(transport: Transport) -> Self {
        Self { transport, bytes: Vec::new() }
    }

    fn event(&mut self, id: Option<Position>, json: &[u8]) {
        let event = match self.transport {
            Transport::Events => sse_event(id, json),
            Transport::WebSocket => websocket_text(json),
        };
        if self.bytes.is_empty() {
            self.bytes = event;
        } else {
            self.bytes.extend_from_slice(&event);
        }
    }
}

/// A frame's members beside its text, as JSON that is passed on unchanged.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Members<'a> {
    #[serde(borrow)]
    finish_reason: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

impl<'a> Members<'a> {
    /// Frames are made here, so that they can be read here.
    fn of(frame: &'a Frame) -> Self {
        serde_json::from_slice(frame.json()).unwrap_or_default()
    }

    /// The text of a failure: the sentence for people, else the code.
    fn error_text(&self) -> &str {
        self.message.or(self.code).map_or("\"\"", RawValue::get)
    }

    /// Why the generation ended, as a word.
    fn reason(&self) -> Option<&str> {
        self.finish_reason.map(|reason| reason.get().trim_matches('"'))
    }
}

/// Why a generation ended, whichever provider's word was used for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Stop,
    Length,
    Tools,
    Filter,
    /// A word that nobody else knows.
    Other,
}

impl Reason {
    fn of(word: Option<&str>, has_calls: bool) -> Self {
        match word {
            Some("completed") | None if has_calls => Self::Tools,
            Some("stop" | "end_turn" | "stop_sequence" | "completed") | None => Self::Stop,
            Some(
                "length"
                | "max_tokens"
                | "max_output_tokens"
                | "incomplete"
                | "model_context_window_exceeded",
            ) => Self::Length,
            Some("tool_calls" | "tool_use" | "function_call") => Self::Tools,
            Some("content_filter" | "refusal") => Self::Filter,
            Some(_) => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests;
