//! The encoding of shared frames: JSON and WebSocket header in one buffer, written once.
//!
//! The JSON is composed of parts that are valid already (escaped text, whole JSON values); only the message of a
//! `skipped` frame is escaped here. Members are in the order of the wire contract.

use std::sync::{Arc, OnceLock};

use super::frame::HEADER_BYTES_MAX;
use super::wire::{push_number, push_position, put_header};
use super::{EntryId, Frame, FrameBody, Position, Span, StreamName, StreamState};
use crate::json;

/// The content of a frame, borrowed from its entry. Strings are escaped, except the message of `Skipped`; `metadata`,
/// `usage` and `data` are JSON.
#[derive(Clone, Debug)]
pub(crate) enum Content<'a> {
    Start { generation: Option<&'a str>, metadata: Option<&'a str> },
    Delta { channel: Option<Arc<str>>, index: u64, text: &'a [u8] },
    ToolCall { tool: ToolPiece, arguments: &'a [u8] },
    End { finish_reason: Option<&'a str>, usage: Option<&'a str> },
    Error { code: &'a str, message: Option<&'a str> },
    Custom { data: &'a str },
    Skipped { reason: &'a str, message: &'a str },
    Gap { next: EntryId, lost: u64 },
}

/// The tool call that a piece belongs to, and the id and name that the piece carries.
#[derive(Clone, Debug)]
pub(crate) struct ToolPiece {
    pub(crate) index: u64,
    pub(crate) call: u64,
    pub(crate) id: Option<Arc<str>>,
    pub(crate) name: Option<Arc<str>>,
}

/// The data of a frame besides its content: the members of [`Frame`] with the same names.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) stream: StreamName,
    pub(crate) after: Position,
    pub(crate) last: Position,
    pub(crate) state: StreamState,
    pub(crate) seq: Option<u64>,
    pub(crate) count: u32,
    pub(crate) ts_us: Option<u64>,
    pub(crate) read_us: u64,
    pub(crate) encoded_us: u64,
}

/// More bytes than all member names, ids and numbers of a frame take together.
const FRAMING_BYTES: usize = 192;

impl Frame {
    /// Encodes a frame.
    pub(crate) fn encode(head: Head, content: Content<'_>) -> Self {
        let mut json = Json::new(HEADER_BYTES_MAX + FRAMING_BYTES + content.len_bytes());
        let body = match content {
            Content::Delta { channel, index, text } => {
                let text = json.delta(&head, channel.as_deref(), index, text);
                FrameBody::Delta { channel, index, text }
            }
            Content::ToolCall { tool, arguments } => {
                let arguments = json.tool_call(&head, &tool, arguments);
                let ToolPiece { index, call, id, name } = tool;
                FrameBody::ToolCall { index, call, id, name, arguments }
            }
            content => {
                json.other(&head, &content);
                match content {
                    Content::End { .. } | Content::Error { .. } => FrameBody::Terminal,
                    Content::Gap { .. } => FrameBody::Gap,
                    _ => FrameBody::Other,
                }
            }
        };
        let (bytes, start) = json.finish();
        let Head { stream, after, last, state, seq, count, ts_us, read_us, encoded_us } = head;
        Self {
            stream,
            body,
            after,
            last,
            state,
            seq,
            count,
            ts_us,
            read_us,
            encoded_us,
            marks: Box::default(),
            bytes,
            start,
            sse: OnceLock::new(),
            multiplexed: OnceLock::new(),
            renderings: OnceLock::new(),
            held: OnceLock::new(),
        }
    }
}

impl Content<'_> {
    /// The bytes of its parts of variable length.
    fn len_bytes(&self) -> usize {
        let of = |part: Option<&str>| part.map_or(0, str::len);
        match self {
            Self::Start { generation, metadata } => of(*generation) + of(*metadata),
            Self::Delta { channel, text, .. } => of(channel.as_deref()) + text.len(),
            Self::ToolCall { tool, arguments } => {
                of(tool.id.as_deref()) + of(tool.name.as_deref()) + arguments.len()
            }
            Self::End { finish_reason, usage } => of(*finish_reason) + of(*usage),
            Self::Error { code, message } => code.len() + of(*message),
            Self::Custom { data } => data.len(),
            Self::Skipped { reason, message } => reason.len() + message.len(),
            Self::Gap { .. } => 0,
        }
    }
}

/// A frame's JSON under construction, after room for the header.
struct Json(Vec<u8>);

impl Json {
    fn new(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.resize(HEADER_BYTES_MAX, 0);
        Self(bytes)
    }

    /// The buffer, and the index at which the header begins in it.
    fn finish(mut self) -> (Vec<u8>, usize) {
        self.raw("}");
        let header = put_header(&mut self.0);
        (self.0, HEADER_BYTES_MAX - header)
    }

    fn delta(&mut self, head: &Head, channel: Option<&str>, index: u64, text: &[u8]) -> Span {
        self.begin("delta", head);
        self.string("channel", channel);
        if index != 0 {
            self.number("index", index);
        }
        self.text("text", text, head)
    }

    fn tool_call(&mut self, head: &Head, tool: &ToolPiece, arguments: &[u8]) -> Span {
        self.begin("tool_call", head);
        self.number("index", tool.index);
        self.number("call", tool.call);
        self.string("call_id", tool.id.as_deref());
        self.string("name", tool.name.as_deref());
        self.text("arguments", arguments, head)
    }

    fn other(&mut self, head: &Head, content: &Content<'_>) {
        match content {
            Content::Start { generation, metadata } => {
                self.begin("start", head);
                self.string("generation", *generation);
                self.json("metadata", *metadata);
            }
            Content::End { finish_reason, usage } => {
                self.begin("end", head);
                self.string("finish_reason", *finish_reason);
                self.json("usage", *usage);
            }
            Content::Error { code, message } => {
                self.begin("error", head);
                self.string("code", Some(code));
                self.string("message", *message);
            }
            Content::Custom { data } => {
                self.begin("custom", head);
                self.json("data", Some(data));
            }
            Content::Skipped { reason, message } => {
                self.begin("skipped", head);
                self.string("reason", Some(reason));
                let escaped = json::escape(message);
                self.string("message", Some(escaped.as_deref().unwrap_or(message)));
            }
            Content::Gap { next, lost } => {
                self.raw("{\"type\":\"gap\",\"after\":\"");
                push_position(&mut self.0, head.after);
                self.raw("\",\"next\":\"");
                push_position(&mut self.0, Position::whole(*next));
                self.raw("\"");
                self.number("lost", *lost);
                self.string("reason", Some("producer"));
            }
            Content::Delta { .. } | Content::ToolCall { .. } => debug_assert!(false, "text has its own way"),
        }
    }

    fn begin(&mut self, kind: &str, head: &Head) {
        self.raw("{\"type\":\"");
        self.raw(kind);
        self.raw("\",\"id\":\"");
        push_position(&mut self.0, head.last);
        self.raw("\"");
        if let Some(seq) = head.seq {
            self.number("seq", seq);
        }
    }

    /// Writes the text that merging concatenates, and the count after it.
    fn text(&mut self, name: &str, text: &[u8], head: &Head) -> Span {
        self.name(name);
        self.raw("\"");
        let from = self.0.len();
        self.0.extend_from_slice(text);
        let to = self.0.len();
        self.raw("\"");
        if head.count != 1 {
            self.number("count", u64::from(head.count));
        }
        from..to
    }

    fn string(&mut self, name: &str, escaped: Option<&str>) {
        if let Some(escaped) = escaped {
            self.name(name);
            self.raw("\"");
            self.raw(escaped);
            self.raw("\"");
        }
    }

    fn json(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.name(name);
            self.raw(value);
        }
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        push_number(&mut self.0, value);
    }

    fn name(&mut self, name: &str) {
        self.raw(",\"");
        self.raw(name);
        self.raw("\":");
    }

    fn raw(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }
}
