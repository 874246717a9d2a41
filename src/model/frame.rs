//! Frames: what clients receive, built once and shared by reference.

use std::sync::{Arc, OnceLock};

use super::{Held, Position, StreamName, StreamState};

/// The longest header of an unmasked WebSocket frame, in bytes: the room before a frame's JSON text.
pub(crate) const HEADER_BYTES_MAX: usize = 10;

/// The status of a stream in `open` and `status` frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamStatus {
    /// The name has not been written yet.
    Waiting,
    /// Tokens may come at any moment.
    Live,
    /// The producer has been silent for `stream.stall_after`.
    Stalled,
    /// The newest generation ended.
    Ended,
    /// The newest generation failed.
    Failed,
    /// Redis cannot be reached.
    Degraded,
    /// This instance is going down.
    Draining,
}

impl StreamStatus {
    /// The word on the wire.
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

/// The place of a text in a frame's bytes.
pub type Span = std::ops::Range<usize>;

/// Where an entry ends within the text of a merged frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextMark {
    /// The viewer's position after the entry.
    pub last: Position,
    /// The bytes of the frame's text, escaped, up to its end.
    pub bytes: usize,
}

/// The kind of a frame, with the data that later merging needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameBody {
    /// Text; `text` is escaped JSON string content.
    Delta {
        /// The channel's name, escaped; `None` for `content`.
        channel: Option<Arc<str>>,
        /// The choice.
        index: u64,
        /// Where the text lies in the frame's bytes, escaped.
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
        /// Where the piece of the arguments' JSON text lies in the frame's bytes, escaped.
        arguments: Span,
    },
    /// A terminal frame: `end` or `error`.
    Terminal,
    /// A producer's gap. It precedes the entry that revealed it and moves nobody's position.
    Gap,
    /// `start`, `custom`, `skipped`.
    Other,
}

/// One frame about one stream. Shared between all its viewers; each wire form is encoded at most once.
#[derive(Debug)]
pub struct Frame {
    /// The stream that it is about.
    pub stream: StreamName,
    /// Its kind, with the data that merging needs.
    pub body: FrameBody,
    /// The viewer's position before it: the `last` of the frame before, or where reading began. Entries in
    /// between that are not covered were not to be delivered.
    pub after: Position,
    /// The viewer's position once it has been delivered: the frame's `id` (for a [`FrameBody::Gap`] the
    /// same as `after`).
    pub last: Position,
    /// The stream's state at `last`.
    pub state: StreamState,
    /// The last covered entry's `seq`.
    pub seq: Option<u64>,
    /// How many entries it covers.
    pub count: u32,
    /// The producer's clock of the first covered entry that carried one, µs since 1970.
    pub ts_us: Option<u64>,
    /// When the newest covered entry was read from Redis, µs since 1970 by this host's clock.
    pub read_us: u64,
    /// When it was encoded, µs since 1970 by this host's clock.
    pub encoded_us: u64,
    /// Where its text can be divided; nothing where nobody will want to.
    pub marks: Box<[TextMark]>,
    /// Room, and a WebSocket text frame with the JSON in it.
    pub(crate) bytes: Vec<u8>,
    /// Where the WebSocket frame begins in `bytes`.
    pub(crate) start: usize,
    /// An SSE event, encoded when the first viewer needs it.
    pub(crate) sse: OnceLock<Box<[u8]>>,
    /// A WebSocket frame whose JSON carries `"stream"`, encoded when the first viewer needs it.
    pub(crate) multiplexed: OnceLock<Box<[u8]>>,
    /// Its renderings in other formats, each made when the first viewer needs it.
    pub(crate) renderings: OnceLock<Box<[OnceLock<Rendering>; RENDERINGS]>>,
    /// Its entry in the sum of what is held, where it comes from history.
    pub(crate) held: OnceLock<Held>,
}

/// In how many further forms a frame can be kept.
pub(crate) const RENDERINGS: usize = 4;

/// A frame in another format, wire form included.
#[derive(Debug)]
pub struct Rendering {
    /// The facts beside the frame that the bytes depend on. They are the same for nearly all viewers.
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

    /// The word of its `type`.
    #[must_use]
    pub fn kind(&self) -> &str {
        let word = self.json().strip_prefix(b"{\"type\":\"").unwrap_or_default();
        let end = word.iter().position(|&b| b == b'"').unwrap_or_default();
        std::str::from_utf8(&word[..end]).unwrap_or_default()
    }

    /// The rendering in the form `form`, if one is kept.
    #[must_use]
    pub fn rendering(&self, form: u8) -> Option<&Rendering> {
        self.renderings.get()?.get(usize::from(form))?.get()
    }

    /// The rendering in the form `form`. If none is kept yet, `render` makes it.
    pub(crate) fn render(&self, form: u8, render: impl FnOnce() -> Rendering) -> &Rendering {
        self.renderings.get_or_init(Box::default)[usize::from(form)].get_or_init(render)
    }

    /// Counts it among what was read and is not sent, until the last hold of it is let go.
    pub(crate) fn hold(&self, held: impl FnOnce(usize) -> Held) {
        self.held.get_or_init(|| held(self.json().len()));
    }

    /// Whether the frame ends its generation.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        matches!(self.body, FrameBody::Terminal)
    }
}
