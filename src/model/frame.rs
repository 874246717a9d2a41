//! Frames: what clients receive. A frame is built once and shared by reference.

use std::sync::{Arc, OnceLock};

use super::{Held, Position, StreamName, StreamState};

/// The longest header of an unmasked WebSocket frame, in bytes: the room before a frame's JSON text.
pub(crate) const HEADER_BYTES_MAX: usize = 10;

/// The status of a stream in `open` and `status` frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamStatus {
    /// The stream does not exist yet.
    Waiting,
    /// A generation is open or may begin at any time.
    Live,
    /// The producer has been silent for `stream.stall_after`.
    Stalled,
    /// The newest generation ended.
    Ended,
    /// The newest generation failed.
    Failed,
    /// Redis cannot be reached.
    Degraded,
    /// This instance is shutting down.
    Draining,
}

impl StreamStatus {
    /// The value on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Live => "live",
            Self::Stalled => "stalled",
            Self::Ended => "ended",
            Self::Failed => "failed",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
        }
    }
}

/// The range of a text in a frame's bytes.
pub type Span = std::ops::Range<usize>;

/// The end of an entry within the text of a merged frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextMark {
    /// The viewer's position after the entry.
    pub last: Position,
    /// The length of the frame's escaped text up to the end of the entry, in bytes.
    pub bytes: usize,
}

/// The kind of a frame, with the data that merging needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameBody {
    /// Text; `text` is escaped JSON string content.
    Delta {
        /// The channel's name, escaped; `None` for `content`.
        channel: Option<Arc<str>>,
        /// The choice.
        index: u64,
        /// The range of the escaped text in the frame's bytes.
        text: Span,
    },
    /// A piece of a tool call.
    ToolCall {
        /// The choice.
        index: u64,
        /// The number of the call within the choice.
        call: u64,
        /// The provider's id of the call, escaped.
        id: Option<Arc<str>>,
        /// The tool's name, escaped.
        name: Option<Arc<str>>,
        /// The range of the escaped piece of the arguments' JSON text in the frame's bytes.
        arguments: Span,
    },
    /// A terminal frame: `end` or `error`.
    Terminal,
    /// A gap in a producer's numbers. It precedes the entry that revealed it and moves no position.
    Gap,
    /// `start`, `custom`, `skipped`.
    Other,
}

/// One frame of a stream. All viewers of the stream share it; each wire form is encoded at most once.
#[derive(Debug)]
pub struct Frame {
    /// The stream of the frame.
    pub stream: StreamName,
    /// Its kind, with the data that merging needs.
    pub body: FrameBody,
    /// The viewer's position before the frame: the `last` of the previous frame, or where reading began. Entries in
    /// between that the frame does not cover are not delivered.
    pub after: Position,
    /// The viewer's position after the frame: the frame's `id` (for a [`FrameBody::Gap`] equal to `after`).
    pub last: Position,
    /// The stream's state at `last`.
    pub state: StreamState,
    /// The last covered entry's `seq`.
    pub seq: Option<u64>,
    /// How many entries the frame covers.
    pub count: u32,
    /// The producer's timestamp of the first covered entry that has one, µs since 1970.
    pub ts_us: Option<u64>,
    /// When the newest covered entry was read from Redis, µs since 1970 by this host's clock.
    pub read_us: u64,
    /// When the frame was encoded, µs since 1970 by this host's clock.
    pub encoded_us: u64,
    /// Where the text can be divided; empty if nobody will need that.
    pub marks: Box<[TextMark]>,
    /// Free room, followed by a WebSocket text frame with the JSON.
    pub(crate) bytes: Vec<u8>,
    /// Where the WebSocket frame begins in `bytes`.
    pub(crate) start: usize,
    /// The frame as an SSE event, encoded when the first viewer needs it.
    pub(crate) sse: OnceLock<Box<[u8]>>,
    /// The frame as a WebSocket frame whose JSON has `"stream"`, encoded when the first viewer needs it.
    pub(crate) multiplexed: OnceLock<Box<[u8]>>,
    /// The frame's renderings in other formats, each created when the first viewer needs it.
    pub(crate) renderings: OnceLock<Box<[OnceLock<Rendering>; RENDERINGS]>>,
    /// Counts the frame's bytes on the ledger, if the frame comes from history.
    pub(crate) held: OnceLock<Held>,
}

/// How many renderings a frame can have.
pub(crate) const RENDERINGS: usize = 4;

/// A frame in another format, wire form included.
#[derive(Debug)]
pub struct Rendering {
    /// The input of the bytes besides the frame. It is the same for nearly all viewers.
    pub key: Box<str>,
    /// The bytes.
    pub bytes: Box<[u8]>,
}

impl Frame {
    /// The frame's JSON text.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES_MAX..]
    }

    /// The frame as a WebSocket text frame, header included.
    #[must_use]
    pub fn websocket(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// The escaped text of a delta, or of a piece of a tool call's arguments.
    #[must_use]
    pub fn text(&self) -> Option<&[u8]> {
        match &self.body {
            FrameBody::Delta { text, .. } => Some(&self.bytes[text.clone()]),
            FrameBody::ToolCall { arguments, .. } => Some(&self.bytes[arguments.clone()]),
            FrameBody::Terminal | FrameBody::Gap | FrameBody::Other => None,
        }
    }

    /// The frame's `type`.
    #[must_use]
    pub fn kind(&self) -> &str {
        let word = self.json().strip_prefix(b"{\"type\":\"").unwrap_or_default();
        let end = word.iter().position(|&b| b == b'"').unwrap_or_default();
        std::str::from_utf8(&word[..end]).unwrap_or_default()
    }

    /// The rendering in `form`, if there is one.
    #[must_use]
    pub fn rendering(&self, form: u8) -> Option<&Rendering> {
        self.renderings.get()?.get(usize::from(form))?.get()
    }

    /// The rendering in `form`. `render` creates it if there is none.
    pub(crate) fn render(&self, form: u8, render: impl FnOnce() -> Rendering) -> &Rendering {
        self.renderings.get_or_init(Box::default)[usize::from(form)].get_or_init(render)
    }

    /// Counts the frame on the ledger until its last reference is dropped.
    pub(crate) fn hold(&self, held: impl FnOnce(usize) -> Held) {
        self.held.get_or_init(|| held(self.json().len()));
    }

    /// Whether the frame ends its generation.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        matches!(self.body, FrameBody::Terminal)
    }
}
