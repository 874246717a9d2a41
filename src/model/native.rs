//! Decoded entries: a producer's events, in one vocabulary for all formats.
//!
//! Text is kept *escaped*: the characters between the quotes of a JSON string, validated but not unescaped. Frames
//! contain the same characters, so text is never unescaped and escaped again, and concatenating escaped pieces gives
//! the escaped concatenation.

/// The longest id of a generation or a call, and the longest name of a tool, in bytes: many frames repeat them.
pub const LABEL_BYTES_MAX: usize = 1024;

/// One event of a producer. String slices marked *escaped* are the content of a JSON string without its quotes;
/// slices marked *JSON* are whole JSON values, byte for byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A generation began.
    Start {
        /// The producer's id of the generation, escaped.
        generation: Option<&'a str>,
        /// Any object, JSON.
        metadata: Option<&'a str>,
    },
    /// More text on a channel.
    Delta {
        /// The text, escaped.
        text: &'a str,
        /// The channel's name, escaped; `content` if the producer gave none.
        channel: &'a str,
        /// The choice.
        index: u64,
    },
    /// More of a tool call.
    ToolCall {
        /// The choice.
        index: u64,
        /// The number of the call within the choice.
        call: u64,
        /// The provider's id of the call, escaped.
        id: Option<&'a str>,
        /// The tool's name, escaped.
        name: Option<&'a str>,
        /// A piece of the arguments' JSON text, escaped.
        arguments: &'a str,
    },
    /// The generation is complete.
    End {
        /// Why it ended, escaped.
        finish_reason: Option<&'a str>,
        /// Token counts, JSON.
        usage: Option<&'a str>,
    },
    /// The generation failed.
    Error {
        /// A short code, escaped.
        code: &'a str,
        /// A sentence for people, escaped.
        message: Option<&'a str>,
    },
    /// The producer is alive; not delivered.
    Heartbeat,
    /// An event of another type: the whole object, JSON.
    Custom {
        /// The object byte for byte.
        data: &'a str,
    },
}

impl Event<'_> {
    /// Whether the event ends its generation.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        matches!(self, Self::End { .. } | Self::Error { .. })
    }

    /// Whether the event begins the next generation if it follows a terminal event.
    #[must_use]
    pub const fn begins(&self) -> bool {
        matches!(self, Self::Start { .. } | Self::Delta { .. } | Self::ToolCall { .. } | Self::Custom { .. })
    }
}

/// An event with the members that every type may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The event.
    pub event: Event<'a>,
    /// The producer's number of the entry within its generation.
    pub seq: Option<u64>,
    /// The producer's clock, µs since 1970.
    pub ts_us: Option<u64>,
}
