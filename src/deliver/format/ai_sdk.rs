//! The AI SDK's UI message stream.
//!
//! A generation is one message, from `start` to `finish`. It consists of its first choice's content, reasoning and
//! refusal as parts in their order, one open at a time, and its tool calls. Everything else, including other choices,
//! is a transient data part, which messages do not keep.
//!
//! A tool call's input is available at the generation's end, because only then it is known that no piece follows.
//! Arguments that are not JSON, or too long to be assembled here, become a `tool-input-error`. For a viewer that
//! joins in the middle of a call, the call is opened again with the arguments so far, because a client begins a call
//! empty.

use serde_json::value::RawValue;

use super::{Format, Members, Out, Reason, Translator};
use crate::model::{Call, Frame, FrameBody, Piece};

/// A part with text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Content,
    Reasoning,
    Refusal,
}

impl Part {
    fn of(channel: Option<&str>) -> Option<Self> {
        match channel {
            None => Some(Self::Content),
            Some("reasoning") => Some(Self::Reasoning),
            Some("refusal") => Some(Self::Refusal),
            Some(_) => None,
        }
    }

    /// The prefix of its events' types.
    const fn kind(self) -> &'static str {
        match self {
            Self::Content | Self::Refusal => "text",
            Self::Reasoning => "reasoning",
        }
    }

    const fn id(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::Reasoning => "reasoning",
            Self::Refusal => "refusal",
        }
    }
}

impl Translator {
    pub(super) fn write_ai_sdk(&mut self, frame: &Frame, out: &mut Out) -> bool {
        debug_assert_eq!(self.format, Format::AiSdk, "each format has its own words");
        match &frame.body {
            FrameBody::Delta { channel, index: 0, .. } => {
                let Some(part) = Part::of(channel.as_deref()) else { return self.share_other(frame, out) };
                self.outline.pass_frame(frame, 0);
                self.open_text(part, out);
                let (kind, id) = (part.kind(), part.id());
                self.share(frame, "", out, || {
                    let text = text_of(frame);
                    format!(r#"{{"type":"{kind}-delta","id":"{id}","delta":"{text}"}}"#)
                })
            }
            FrameBody::ToolCall { index: 0, .. } => match self.open_tool(frame, out) {
                Some(id) => self.share(frame, &id, out, || {
                    let text = text_of(frame);
                    format!(r#"{{"type":"tool-input-delta","toolCallId":"{id}","inputTextDelta":"{text}"}}"#)
                }),
                None => self.share_other(frame, out),
            },
            FrameBody::Terminal if frame.kind() == "end" => self.finish_message(frame, out),
            FrameBody::Terminal => {
                self.close_text(out);
                let json = format!(r#"{{"type":"error","errorText":{}}}"#, Members::of(frame).error_text());
                out.event(Some(frame.last), json.as_bytes());
                false
            }
            FrameBody::Other if frame.kind() == "start" => {
                let metadata = Members::of(frame).metadata;
                self.opened.started = true;
                let json = self.start(metadata);
                out.event(Some(frame.last), json.as_bytes());
                false
            }
            _ => self.share_other(frame, out),
        }
    }

    fn start(&self, metadata: Option<&RawValue>) -> String {
        let metadata = metadata.map(|value| format!(r#","messageMetadata":{value}"#)).unwrap_or_default();
        format!(r#"{{"type":"start","messageId":"{}"{metadata}}}"#, self.key)
    }

    fn ensure_started(&mut self, out: &mut Out) {
        if !std::mem::replace(&mut self.opened.started, true) {
            out.event(None, self.start(None).as_bytes());
        }
    }

    fn open_text(&mut self, part: Part, out: &mut Out) {
        self.ensure_started(out);
        if self.opened.text == Some(part) {
            return;
        }
        self.close_text(out);
        self.opened.text = Some(part);
        let marked = match part {
            Part::Refusal => r#","providerMetadata":{"llm-bridge":{"channel":"refusal"}}"#,
            Part::Content | Part::Reasoning => "",
        };
        let json = format!(r#"{{"type":"{}-start","id":"{}"{marked}}}"#, part.kind(), part.id());
        out.event(None, json.as_bytes());
    }

    pub(super) fn close_text(&mut self, out: &mut Out) {
        if let Some(part) = self.opened.text.take() {
            let json = format!(r#"{{"type":"{}-end","id":"{}"}}"#, part.kind(), part.id());
            out.event(None, json.as_bytes());
        }
    }

    /// Records a piece of a call, opens the call if necessary, and returns its id. `None` if there are too many
    /// calls, or as long as the tool's name is unknown.
    fn open_tool(&mut self, frame: &Frame, out: &mut Out) -> Option<Box<str>> {
        let FrameBody::ToolCall { index, call, id, name, .. } = &frame.body else { return None };
        let (id, name, text) = (id.as_deref(), name.as_deref(), text_of(frame));
        self.outline.begun = true;
        let piece = Piece { index: *index, call: *call, id, name, arguments: Some(text) };
        let place = self.outline.note_piece(piece)?;
        let known = &self.outline.calls[place];
        let id = id_of(known);
        known.name.as_deref()?;
        if self.opened.call(place).is_some() {
            return Some(id);
        }
        self.ensure_started(out);
        self.close_text(out);
        // In the order in which they began, so that the client has them in that order.
        for earlier in 0..=place {
            self.open_tool_at(earlier, if earlier == place { text } else { "" }, out);
        }
        Some(id)
    }

    /// Opens a call with the arguments so far, except for what `follows`.
    fn open_tool_at(&mut self, place: usize, follows: &str, out: &mut Out) {
        let call = &self.outline.calls[place];
        let Some(name) = call.name.as_deref() else { return };
        if call.index != 0 || self.opened.call(place).is_some() {
            return;
        }
        self.opened.open_call(place, true);
        let id = id_of(call);
        let json = format!(r#"{{"type":"tool-input-start","toolCallId":"{id}","toolName":"{name}"}}"#);
        out.event(None, json.as_bytes());
        let had = call.arguments.as_deref().and_then(|all| all.strip_suffix(follows)).unwrap_or_default();
        if !had.is_empty() {
            let json =
                format!(r#"{{"type":"tool-input-delta","toolCallId":"{id}","inputTextDelta":"{had}"}}"#);
            out.event(None, json.as_bytes());
        }
    }

    fn finish_message(&mut self, frame: &Frame, out: &mut Out) -> bool {
        let members = Members::of(frame);
        self.ensure_started(out);
        self.close_text(out);
        for call in self.outline.calls.iter().filter(|call| call.index == 0) {
            out.event(None, input_of(call).as_bytes());
        }
        let reason = match Reason::of(members.reason(), !self.outline.calls.is_empty()) {
            Reason::Stop => "stop",
            Reason::Length => "length",
            Reason::Tools => "tool-calls",
            Reason::Filter => "content-filter",
            Reason::Other => "other",
        };
        let usage = members.usage.map(|usage| format!(r#","messageMetadata":{{"usage":{usage}}}"#));
        let json = format!(r#"{{"type":"finish","finishReason":"{reason}"{}}}"#, usage.unwrap_or_default());
        out.event(Some(frame.last), json.as_bytes());
        false
    }
}

/// Text was validated when it was read.
fn text_of(frame: &Frame) -> &str {
    std::str::from_utf8(frame.text().unwrap_or_default()).unwrap_or_default()
}

fn id_of(call: &Call) -> Box<str> {
    call.id.clone().unwrap_or_else(|| format!("call-{}-{}", call.index, call.call).into())
}

/// The event with a call's whole input.
fn input_of(call: &Call) -> String {
    let (id, name) = (id_of(call), call.name.as_deref().unwrap_or("unknown"));
    let about = format!(r#""toolCallId":"{id}","toolName":"{name}""#);
    let failed = |input: &str, why: &str| {
        format!(r#"{{"type":"tool-input-error",{about},"input":{input},"errorText":"{why}"}}"#)
    };
    let Some(arguments) = &call.arguments else {
        return failed("null", "the arguments are too long to be assembled");
    };
    let quoted = format!("\"{arguments}\"");
    let text: String = serde_json::from_str(&quoted).unwrap_or_default();
    if text.trim().is_empty() {
        return format!(r#"{{"type":"tool-input-available",{about},"input":{{}}}}"#);
    }
    match serde_json::from_str::<&RawValue>(&text) {
        Ok(input) => format!(r#"{{"type":"tool-input-available",{about},"input":{input}}}"#),
        Err(_) => failed(&quoted, "the arguments are not JSON"),
    }
}
