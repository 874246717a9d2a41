//! Formats other than the native one: produces the events for one viewer, in a form that a strict client of that
//! format accepts. Pure.
//!
//! A frame has two kinds of events. Events for one viewer alone (a part is opened, everything open is ended) are
//! created for it; events that are the same for all viewers, which is nearly every frame's text, are created once per
//! format and stored with the frame ([`Frame::rendering`]). A viewer that joins in the middle has to know which parts
//! were opened before: its translator starts with the [`Outline`] of the generation, which history provides.
//!
//! Over server-sent events, the id comes with the last event of a frame, or with the last event that adds something:
//! a client that is disconnected between two of them gets the whole frame again.
//!
//! Bounds: an outline takes at most [`OUTLINE_BYTES_MAX`](crate::model::OUTLINE_BYTES_MAX). A choice or call beyond
//! it is sent like a frame that has no equivalent in the format; arguments beyond it are passed on, but not assembled
//! at the end.

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
    /// Chat completion chunks, for OpenAI's clients.
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
    /// Events for this viewer alone, which come first.
    pub own: Vec<u8>,
    /// Whether the frame's rendering in [`Translator::form`] follows.
    pub shares: bool,
}

/// Translates frames for one viewer. Its state is what the viewer has received, as far as later frames depend on it.
#[derive(Clone, Debug)]
pub struct Translator {
    format: Format,
    transport: Transport,
    stream: StreamName,
    /// Whether the viewer does not want a stream whose newest generation is finished.
    only_unfinished: bool,
    /// The generation so far, whether the viewer received it on this connection or before.
    outline: Outline,
    opened: Opened,
    /// The viewer's position.
    position: Position,
    /// The generation's name, escaped; and what it was derived from.
    key: Box<str>,
    named_by: (Option<Arc<String>>, EntryId),
}

/// The message, roles, text and calls that were opened on this connection.
#[derive(Clone, Debug, Default)]
struct Opened {
    /// Whether the message has begun.
    started: bool,
    /// The choices whose role was sent.
    roles: Vec<u64>,
    /// The open text part.
    text: Option<ai_sdk::Part>,
    /// By call: whether it was opened, and then whether with its name.
    calls: Vec<Option<bool>>,
}

impl Opened {
    /// Whether a call was opened, and then whether with its name.
    fn call(&self, place: usize) -> Option<bool> {
        self.calls.get(place).copied().flatten()
    }

    /// Records that a call was opened, with its name or without.
    fn open_call(&mut self, place: usize, is_named: bool) {
        if self.calls.len() <= place {
            self.calls.resize(place + 1, None);
        }
        self.calls[place] = Some(is_named);
    }
}

impl Translator {
    /// A translator for a viewer that has received nothing yet. `only_unfinished`: the viewer does not want a
    /// finished generation, nor a stream that does not exist.
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

    /// Whether the viewer does not want a finished generation.
    #[must_use]
    pub const fn only_unfinished(&self) -> bool {
        self.only_unfinished
    }

    /// Records that the viewer has waited for the stream, or received a part of it: it gets the generation even if
    /// that is finished.
    pub const fn take_finished(&mut self) {
        self.only_unfinished = false;
    }

    /// The form under which a frame keeps the shared renderings.
    #[must_use]
    pub const fn form(&self) -> u8 {
        match (self.format, self.transport) {
            (Format::OpenAi, Transport::Events) => 0,
            (Format::OpenAi, Transport::WebSocket) => 1,
            (Format::AiSdk, Transport::Events) => 2,
            (Format::AiSdk, Transport::WebSocket) => 3,
        }
    }

    /// Sets the position that the viewer has reached, and the outline of its generation up to there.
    pub fn begin(&mut self, after: Position, outline: Option<&Outline>) {
        self.position = after;
        if let Some(outline) = outline {
            self.outline.clone_from(outline);
        }
    }

    /// Closes what is open, because the stream was recreated and what the viewer has is not part of it.
    pub fn restart(&mut self) -> Vec<u8> {
        let mut out = Out::new(self.transport);
        self.close(&mut out);
        self.outline = Outline::default();
        out.bytes
    }

    /// Translates a frame for the viewer.
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

    /// Translates a native frame for this viewer alone.
    pub fn translate_control(&mut self, id: Option<Position>, json: &[u8]) -> Vec<u8> {
        let mut out = Out::new(self.transport);
        out.event(id, self.other(id.unwrap_or(self.position), json).as_bytes());
        self.position = id.unwrap_or(self.position);
        out.bytes
    }

    /// The event after the end of the answer.
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
        // The state of a frame that is not the last of its entry is the one before the entry: behind an end, that of
        // the generation before.
        let is_of_next = !frame.last.is_whole() && frame.state.phase.terminal().is_some();
        let name = if is_of_next { &None } else { &frame.state.generation };
        let mark = self.outline.mark;
        let (known, known_mark) = &self.named_by;
        if known.as_ref().map(Arc::as_ptr) != name.as_ref().map(Arc::as_ptr) || *known_mark != mark {
            self.key = key_of(&self.stream, (name.as_deref(), mark));
            self.named_by = (name.clone(), mark);
        }
    }

    /// A frame that has no equivalent in the format.
    fn other(&self, at: Position, native: &[u8]) -> String {
        // Frames are JSON and therefore UTF-8.
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

    /// Handles an event that is the same for all viewers with this `key`: it is shared, or, if the stored one has
    /// another key, created for this viewer.
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

/// The name by which clients identify a generation, escaped: its producer's, or else one that is unique to the
/// stream.
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

/// A frame's members besides its text, as JSON that is passed on unchanged.
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
    /// Frames are created by this crate, so they can be parsed.
    fn of(frame: &'a Frame) -> Self {
        serde_json::from_slice(frame.json()).unwrap_or_default()
    }

    /// The message of a failure, or else its code.
    fn error_text(&self) -> &str {
        self.message.or(self.code).map_or("\"\"", RawValue::get)
    }

    /// Why the generation ended.
    fn reason(&self) -> Option<&str> {
        self.finish_reason.map(|reason| reason.get().trim_matches('"'))
    }
}

/// Why a generation ended, independent of the provider's word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Stop,
    Length,
    Tools,
    Filter,
    /// A word without an equivalent.
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
