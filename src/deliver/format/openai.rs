//! Chat completion chunks.
//!
//! A choice begins with a chunk that has its role, a tool call with one that has its id, type and name, as OpenAI's
//! own server sends them; later chunks contain only text and are the same for all viewers. Every event has an id:
//! those before a frame's last one have the id before the frame.
//!
//! Every choice of the generation gets the finish reason. A provider's word is translated to OpenAI's; if none has
//! that meaning it is `stop`, and the word is in `llm_bridge`. Usage is in a chunk of its own without choices, with
//! OpenAI's names.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::{Format, Members, Out, Reason, Translator, Transport};
use crate::model::{Call, Frame, FrameBody, Piece, Position};

/// The most choices that are introduced.
const CHOICES_MAX: usize = 1024;

impl Translator {
    pub(super) fn write_openai(&mut self, frame: &Frame, out: &mut Out) -> bool {
        debug_assert_eq!(self.format, Format::OpenAi, "each format has its own words");
        match &frame.body {
            FrameBody::Delta { channel, index, .. } => {
                self.outline.pass_frame(frame, 0);
                let member = match channel.as_deref() {
                    None => "content",
                    Some("reasoning") => "reasoning_content",
                    Some("refusal") => "refusal",
                    Some(_) => return self.share_other(frame, out),
                };
                if !self.introduce(*index, out) {
                    return self.share_other(frame, out);
                }
                self.share_delta(frame, *index, out, |text| format!(r#""{member}":"{text}""#))
            }
            FrameBody::ToolCall { index, call, .. } => {
                if !self.open_call(frame, out) {
                    return self.share_other(frame, out);
                }
                self.share_delta(frame, *index, out, |text| {
                    format!(r#""tool_calls":[{{"index":{call},"function":{{"arguments":"{text}"}}}}]"#)
                })
            }
            FrameBody::Terminal if frame.kind() == "end" => self.finish(frame, out),
            FrameBody::Terminal => self.fail(frame, out),
            FrameBody::Gap | FrameBody::Other => self.share_other(frame, out),
        }
    }

    fn share_delta(&self, frame: &Frame, index: u64, out: &mut Out, delta: impl Fn(&str) -> String) -> bool {
        self.share(frame, &self.key, out, || {
            // Text was validated when it was read.
            let text = String::from_utf8_lossy(frame.text().unwrap_or_default());
            self.chunk(frame.last, &choice(index, &delta(&text), "null"), &self.name_id(frame.last))
        })
    }

    /// Sends a choice's role, once; false if there are too many choices.
    fn introduce(&mut self, index: u64, out: &mut Out) -> bool {
        if self.opened.roles.contains(&index) {
            return true;
        }
        if self.opened.roles.len() >= CHOICES_MAX {
            return false;
        }
        self.opened.roles.push(index);
        let role = choice(index, r#""role":"assistant","content":"""#, "null");
        self.write_before(&role, out);
        true
    }

    /// Sends the id, type and name of a call, once, the name as soon as it is known; false if there are too many
    /// calls.
    fn open_call(&mut self, frame: &Frame, out: &mut Out) -> bool {
        let FrameBody::ToolCall { index, call, id, name, .. } = &frame.body else { return false };
        let (id, name) = (id.as_deref(), name.as_deref());
        self.outline.begun = true;
        let piece = Piece { index: *index, call: *call, id, name, arguments: None };
        let Some(place) = self.outline.note_piece(piece) else { return false };
        if !self.introduce(*index, out) {
            return false;
        }
        // A client's list of calls has no holes, so earlier calls are opened again too. A call that is open follows
        // those that began before it.
        let first = if self.opened.call(place).is_some() { place } else { 0 };
        for earlier in first..=place {
            if self.outline.calls[earlier].index == *index {
                self.open_call_at(earlier, out);
            }
        }
        true
    }

    fn open_call_at(&mut self, place: usize, out: &mut Out) {
        let Call { index, call, id, name, .. } = &self.outline.calls[place];
        let name = name.as_deref().map(|name| format!(r#""name":"{name}","#));
        let introduction = match self.opened.call(place) {
            Some(true) => return,
            Some(false) => {
                let Some(name) = name else { return };
                self.opened.open_call(place, true);
                format!(r#""function":{{{name}"arguments":""}}"#)
            }
            None => {
                self.opened.open_call(place, name.is_some());
                let id = id.as_deref().map_or_else(|| format!("call-{index}-{call}"), ToOwned::to_owned);
                let name = name.unwrap_or_default();
                format!(r#""id":"{id}","type":"function","function":{{{name}"arguments":""}}"#)
            }
        };
        let delta = format!(r#""tool_calls":[{{"index":{call},{introduction}}}]"#);
        self.write_before(&choice(*index, &delta, "null"), out);
    }

    fn finish(&mut self, frame: &Frame, out: &mut Out) -> bool {
        let members = Members::of(frame);
        if self.outline.choices.is_empty() {
            self.outline.choices.push(0);
        }
        let has_calls = !self.outline.calls.is_empty();
        let reason = Reason::of(members.reason(), has_calls);
        let word = match reason {
            Reason::Stop | Reason::Other => r#""stop""#,
            Reason::Length => r#""length""#,
            Reason::Tools => r#""tool_calls""#,
            Reason::Filter => r#""content_filter""#,
        };
        let indexes = self.outline.choices.clone();
        for &index in &indexes {
            self.introduce(index, out);
        }
        let choices: Vec<_> = indexes.iter().map(|&index| choice(index, "", word)).collect();
        let usage = members.usage.and_then(|usage| in_openai_names(usage.get()));
        let at = if usage.is_some() { self.position } else { frame.last };
        let own_word = members.finish_reason.filter(|_| reason == Reason::Other);
        let bridge = match (self.transport, own_word) {
            (Transport::Events, None) => String::new(),
            (Transport::Events, Some(word)) => format!(r#","llm_bridge":{{"finish_reason":{word}}}"#),
            (Transport::WebSocket, None) => self.name_id(at),
            (Transport::WebSocket, Some(word)) => {
                format!(r#","llm_bridge":{{"id":"{at}","finish_reason":{word}}}"#)
            }
        };
        out.event(Some(at), self.chunk(frame.last, &choices.join(","), &bridge).as_bytes());
        if let Some(usage) = usage {
            let rest = format!(r#","usage":{usage}{}"#, self.name_id(frame.last));
            out.event(Some(frame.last), self.chunk(frame.last, "", &rest).as_bytes());
        }
        false
    }

    fn fail(&self, frame: &Frame, out: &mut Out) -> bool {
        let members = Members::of(frame);
        let code = members.code.map_or("null", |code| code.get());
        let json = format!(
            r#"{{"error":{{"message":{},"type":"server_error","param":null,"code":{code}}}{}}}"#,
            members.error_text(),
            self.name_id(frame.last)
        );
        out.event(Some(frame.last), json.as_bytes());
        false
    }

    /// Writes an event of the frame that is not its last: a client that is disconnected after it gets the frame
    /// again.
    fn write_before(&self, choices: &str, out: &mut Out) {
        let at = self.position;
        out.event(Some(at), self.chunk(at, choices, &self.name_id(at)).as_bytes());
    }

    /// A message over WebSocket contains its id.
    fn name_id(&self, at: Position) -> String {
        match self.transport {
            Transport::Events => String::new(),
            Transport::WebSocket => format!(r#","llm_bridge":{{"id":"{at}"}}"#),
        }
    }

    /// A chunk with these choices and other members.
    pub(super) fn chunk(&self, at: Position, choices: &str, rest: &str) -> String {
        let (key, created, model) = (&self.key, at.id.ms / 1000, self.stream.model());
        format!(
            r#"{{"id":"chatcmpl-{key}","object":"chat.completion.chunk","created":{created},"model":"{model}","choices":[{choices}]{rest}}}"#
        )
    }
}

fn choice(index: u64, delta: &str, reason: &str) -> String {
    format!(r#"{{"index":{index},"delta":{{{delta}}},"finish_reason":{reason}}}"#)
}

/// Token counts with OpenAI's names, if they can be converted; omits what is not an object of counts.
fn in_openai_names(usage: &str) -> Option<String> {
    let counts: Map<String, Value> = serde_json::from_str(usage).ok()?;
    if counts.contains_key("prompt_tokens") || !counts.contains_key("output_tokens") {
        return Some(usage.to_owned());
    }
    let count = |name: &str| counts.get(name).and_then(Value::as_u64).unwrap_or(0);
    // Anthropic counts cached tokens separately from the input, OpenAI as part of it.
    let cached = count("cache_read_input_tokens");
    let prompt = [count("input_tokens"), cached, count("cache_creation_input_tokens")].iter().fold(0, sum);
    let completion = count("output_tokens");
    let total = match counts.get("total_tokens").and_then(Value::as_u64) {
        Some(total) => total,
        None => sum(prompt, &completion),
    };
    let mut named =
        format!(r#"{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{total}"#);
    let details = |name: &str| counts.get(name).filter(|details| details.is_object()).map(Value::to_string);
    let cached = (cached > 0).then(|| format!(r#"{{"cached_tokens":{cached}}}"#));
    for (name, value) in [
        ("prompt_tokens_details", details("input_tokens_details").or(cached)),
        ("completion_tokens_details", details("output_tokens_details")),
    ] {
        if let Some(value) = value {
            write!(named, r#","{name}":{value}"#).ok();
        }
    }
    named.push('}');
    Some(named)
}

const fn sum(one: u64, other: &u64) -> u64 {
    one.saturating_add(*other)
}
