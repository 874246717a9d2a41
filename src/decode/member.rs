//! The members of native entries, and the limits of those that are kept.

use crate::json;

/// The largest `metadata` of a `start`.
pub(super) const METADATA_BYTES_MAX: usize = 64 * 1024;

/// The members of the native types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// `type`
    Type,
    /// `seq`
    Seq,
    /// `ts`
    Ts,
    /// `text`
    Text,
    /// `channel`
    Channel,
    /// `index`
    Index,
    /// `call`
    Call,
    /// `id`
    Id,
    /// `name`
    Name,
    /// `arguments`
    Arguments,
    /// `generation`
    Generation,
    /// `metadata`
    Metadata,
    /// `finish_reason`
    FinishReason,
    /// `usage`
    Usage,
    /// `code`
    Code,
    /// `message`
    Message,
}

impl Member {
    pub(super) const COUNT: usize = Self::Message as usize + 1;

    const NAMES: [&str; Self::COUNT] = [
        "type",
        "seq",
        "ts",
        "text",
        "channel",
        "index",
        "call",
        "id",
        "name",
        "arguments",
        "generation",
        "metadata",
        "finish_reason",
        "usage",
        "code",
        "message",
    ];

    /// The member's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The member with this name; `raw` is a JSON string with its quotes.
    pub(super) fn of_key(raw: &str) -> Option<Self> {
        Self::of_name(&json::unescape(json::string(raw)?)?)
    }

    /// The member with this name, in which nothing is escaped.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "type" => Self::Type,
            "seq" => Self::Seq,
            "ts" => Self::Ts,
            "text" => Self::Text,
            "channel" => Self::Channel,
            "index" => Self::Index,
            "call" => Self::Call,
            "id" => Self::Id,
            "name" => Self::Name,
            "arguments" => Self::Arguments,
            "generation" => Self::Generation,
            "metadata" => Self::Metadata,
            "finish_reason" => Self::FinishReason,
            "usage" => Self::Usage,
            "code" => Self::Code,
            "message" => Self::Message,
            _ => return None,
        })
    }
}
