//! From a raw entry to what its producer said.
//!
//! Only the native form (`data`) is read here; what providers send is read in [`provider`](crate::provider), by way of
//! `hear`. Encrypted entries are undecodable as `unsupported`.
//! Of a member that occurs twice the last one counts, as in nearly every JSON parser. Members of
//! a custom object that every type may carry (`seq`, `ts`) count where they have the right kind, and are
//! the producer's own affair where not.
//!
//! The depth of nesting needs no limit: values are skipped without recursion.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::{Decoded, Entry, Event};
use crate::json;

/// An entry that says nothing that could be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("undecodable entry: {reason}")]
pub struct Undecodable {
    /// `malformed`, `unsupported` (a form that is not read) or `no_payload` (no form at all): the word
    /// of the `skipped` frame and the dead letter.
    pub reason: &'static str,
}

pub(super) const MALFORMED: Undecodable = Undecodable { reason: "malformed" };
const UNSUPPORTED: Undecodable = Undecodable { reason: "unsupported" };
const NO_PAYLOAD: Undecodable = Undecodable { reason: "no_payload" };

/// What a native entry says.
///
/// # Errors
/// When it has no payload, one that is not supported, or one that breaks the contract.
pub fn decode(entry: &Entry) -> Result<Decoded<'_>, Undecodable> {
    if let Some(data) = entry.fields.get("data") {
        return native(data).ok_or(MALFORMED);
    }
    let others = ["openai", "anthropic", "enc"];
    Err(if others.iter().any(|form| entry.fields.get(form).is_some()) { UNSUPPORTED } else { NO_PAYLOAD })
}

/// Decodes a native object; `None` when it breaks the contract.
#[must_use]
pub fn native(data: &[u8]) -> Option<Decoded<'_>> {
    let text = std::str::from_utf8(data).ok()?;
    let members = Members::parse(text)?;
    let kind = json::string(members.get(Member::Type)?)?;
    let event = match json::unescape(kind).as_deref() {
        Some("delta") => members.delta()?,
        Some("tool_call") => members.tool_call()?,
        Some("start") => Event::Start {
            generation: members.string(Member::Generation)?,
            metadata: members.object(Member::Metadata)?,
        },
        Some("end") => Event::End {
            finish_reason: members.string(Member::FinishReason)?,
            usage: members.object(Member::Usage)?,
        },
        Some("error") => {
            Event::Error { code: members.string(Member::Code)??, message: members.string(Member::Message)? }
        }
        Some("heartbeat") => Event::Heartbeat,
        _ => {
            let common = |member| members.get(member).and_then(json::unsigned);
            let event = Event::Custom { data: text.trim_matches(json::BLANKS) };
            return Some(Decoded { event, seq: common(Member::Seq), ts_us: common(Member::Ts) });
        }
    };
    Some(Decoded { event, seq: members.number(Member::Seq)?, ts_us: members.number(Member::Ts)? })
}

/// The members that some native type has.
#[derive(Clone, Copy)]
enum Member {
    Type,
    Seq,
    Ts,
    Text,
    Channel,
    Index,
    Call,
    Id,
    Name,
    Arguments,
    Generation,
    Metadata,
    FinishReason,
    Usage,
    Code,
    Message,
}

impl Member {
    const COUNT: usize = Self::Message as usize + 1;

    /// The member that a JSON string (with its quotes) names.
    fn of_key(raw: &str) -> Option<Self> {
        Some(match &*json::unescape(json::string(raw)?)? {
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

/// The known members of an object as raw JSON values. The methods return `None` where a member is of
/// the wrong kind, `Some(None)` where it is absent or `null`.
#[derive(Default)]
struct Members<'a>([Option<&'a str>; Member::COUNT]);

impl<'a> Members<'a> {
    /// The members of a text that is one JSON object.
    fn parse(text: &'a str) -> Option<Self> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let members = deserializer.deserialize_map(MembersVisitor).ok()?;
        deserializer.end().ok()?;
        Some(members)
    }

    fn get(&self, member: Member) -> Option<&'a str> {
        self.0[member as usize]
    }

    fn string(&self, member: Member) -> Option<Option<&'a str>> {
        let Some(raw) = self.get(member) else { return Some(None) };
        json::string(raw).filter(|text| json::surrogates_are_paired(text)).map(Some)
    }

    fn object(&self, member: Member) -> Option<Option<&'a str>> {
        let Some(raw) = self.get(member) else { return Some(None) };
        (raw.starts_with('{') && json::surrogates_are_paired(raw)).then_some(Some(raw))
    }

    fn number(&self, member: Member) -> Option<Option<u64>> {
        let Some(raw) = self.get(member) else { return Some(None) };
        json::unsigned(raw).map(Some)
    }

    fn delta(&self) -> Option<Event<'a>> {
        let channel = self.string(Member::Channel)?.unwrap_or(CONTENT);
        Some(Event::Delta {
            text: self.string(Member::Text)??,
            channel: plain_channel(channel),
            index: self.number(Member::Index)?.unwrap_or(0),
        })
    }

    fn tool_call(&self) -> Option<Event<'a>> {
        Some(Event::ToolCall {
            index: self.number(Member::Index)?.unwrap_or(0),
            call: self.number(Member::Call)?.unwrap_or(0),
            id: self.string(Member::Id)?,
            name: self.string(Member::Name)?,
            arguments: self.string(Member::Arguments)??,
        })
    }
}

/// The channel of a delta that names none.
const CONTENT: &str = "content";

/// A well-known channel's name without escapes, so that it is recognised however it was written.
fn plain_channel(escaped: &str) -> &str {
    if !escaped.contains('\\') {
        return escaped;
    }
    let known = [CONTENT, "reasoning", "refusal"];
    known.into_iter().find(|channel| json::same(channel, escaped)).unwrap_or(escaped)
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Members::default();
        while let Some(key) = map.next_key::<&'de RawValue>()? {
            let value = map.next_value::<&'de RawValue>()?.get();
            if let Some(member) = Member::of_key(key.get()) {
                members.0[member as usize] = (value != "null").then_some(value);
            }
        }
        Ok(members)
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
