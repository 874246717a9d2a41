//! Reads and checks an object's members.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::flaw::Flaw;
use super::member::{METADATA_BYTES_MAX, Member};
use crate::json;
use crate::model::{Decoded, Event, LABEL_BYTES_MAX};

/// The known members of an object as raw JSON values; a member that is `null` is absent.
#[derive(Default)]
pub(super) struct Members<'a>([Option<&'a str>; Member::COUNT]);

impl<'a> Members<'a> {
    /// The members of a text that is one JSON object.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let mut members = Self::default();
        match json::each_simple_member(text, |name, value| members.set(Member::of_name(name), value)) {
            Some(()) => Some(members),
            None => Self::parse_any(text),
        }
    }

    fn parse_any(text: &'a str) -> Option<Self> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let members = deserializer.deserialize_map(MembersVisitor).ok()?;
        deserializer.end().ok()?;
        Some(members)
    }

    fn set(&mut self, member: Option<Member>, value: &'a str) {
        if let Some(member) = member {
            self.0[member as usize] = (value != "null").then_some(value);
        }
    }

    pub(super) fn get(&self, member: Member) -> Option<&'a str> {
        self.0[member as usize]
    }

    pub(super) fn string(&self, member: Member) -> Result<Option<&'a str>, Flaw> {
        self.get(member).map(|raw| string(raw, member)).transpose()
    }

    pub(super) fn name(&self, member: Member) -> Result<Option<&'a str>, Flaw> {
        self.string(member)?.map(|escaped| short(escaped, member)).transpose()
    }

    pub(super) fn object(&self, member: Member) -> Result<Option<&'a str>, Flaw> {
        self.get(member).map(|raw| object(raw, member)).transpose()
    }

    pub(super) fn metadata(&self) -> Result<Option<&'a str>, Flaw> {
        self.object(Member::Metadata)?.map(metadata).transpose()
    }

    pub(super) fn number(&self, member: Member) -> Result<Option<u64>, Flaw> {
        self.get(member).map(|raw| json::unsigned(raw).ok_or(Flaw::Kind(member))).transpose()
    }

    pub(super) fn delta(&self) -> Result<Event<'a>, Flaw> {
        let channel = self.string(Member::Channel)?.unwrap_or(CONTENT);
        Ok(Event::Delta {
            text: self.string(Member::Text)?.ok_or(Flaw::Missing(Member::Text))?,
            channel: plain_channel(channel),
            index: self.number(Member::Index)?.unwrap_or(0),
        })
    }

    pub(super) fn tool_call(&self) -> Result<Event<'a>, Flaw> {
        Ok(Event::ToolCall {
            index: self.number(Member::Index)?.unwrap_or(0),
            call: self.number(Member::Call)?.unwrap_or(0),
            id: self.name(Member::Id)?,
            name: self.name(Member::Name)?,
            arguments: self.string(Member::Arguments)?.ok_or(Flaw::Missing(Member::Arguments))?,
        })
    }
}

/// An object with a type of the producer's own.
pub(super) fn custom<'a>(object: &'a str, seq: Option<&str>, ts: Option<&str>) -> Decoded<'a> {
    let event = Event::Custom { data: object.trim_matches(json::BLANKS) };
    Decoded { event, seq: seq.and_then(json::unsigned), ts_us: ts.and_then(json::unsigned) }
}

/// A string that is kept as long as its generation is open, so it has to be short.
pub(super) fn short(escaped: &str, member: Member) -> Result<&str, Flaw> {
    let is_short = || json::unescape(escaped).is_some_and(|text| text.len() <= LABEL_BYTES_MAX);
    if escaped.len() <= LABEL_BYTES_MAX || is_short() { Ok(escaped) } else { Err(Flaw::TooLong(member)) }
}

/// A JSON string's escaped text.
pub(super) fn string(raw: &str, member: Member) -> Result<&str, Flaw> {
    json::string(raw).filter(|text| json::surrogates_are_paired(text)).ok_or(Flaw::Kind(member))
}

/// A JSON object.
pub(super) fn object(raw: &str, member: Member) -> Result<&str, Flaw> {
    if raw.starts_with('{') && json::surrogates_are_paired(raw) { Ok(raw) } else { Err(Flaw::Kind(member)) }
}

/// The `metadata` of a `start`.
pub(super) const fn metadata(object: &str) -> Result<&str, Flaw> {
    if object.len() <= METADATA_BYTES_MAX { Ok(object) } else { Err(Flaw::TooLong(Member::Metadata)) }
}

/// The channel of a delta that names none.
pub(super) const CONTENT: &str = "content";

/// A well-known channel's name without escapes, so that it is recognized however it was written.
pub(super) fn plain_channel(escaped: &str) -> &str {
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
            members.set(Member::of_key(key.get()), value);
        }
        Ok(members)
    }
}
