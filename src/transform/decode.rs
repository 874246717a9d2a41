//! From an entry to what its producer said, where that needs nothing of what came before.
//!
//! [`Form`] decides in which form an entry is, once. The native form is read here, the names of flat entries in `flat`,
//! what providers send in [`provider`](crate::provider), by way of `hear`.
//! Of a member that occurs twice the last one counts, as in nearly every JSON parser. Members of
//! a custom object that every type may carry (`seq`, `ts`) count where they have the right kind, and are
//! the producer's own affair where not.
//!
//! The depth of nesting needs no limit: values are skipped without recursion.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::flat;
use super::flaw::Flaw;
use crate::config;
use crate::event::{Decoded, Entry, Event, Fields};
use crate::json;
use crate::provider::{self, Margin};

/// The settings that decoding needs beside the entry. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct DecodeContext {
    pub(super) names: Arc<config::Fields>,
}

impl DecodeContext {
    /// A context with the names of flat entries' fields.
    #[must_use]
    pub fn new(names: config::Fields) -> Self {
        Self { names: Arc::new(names) }
    }
}

/// In which form an entry is, with its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form<'a> {
    /// The field `data`: an object, native or read by the names of flat entries.
    Data(&'a [u8]),
    /// A field that is named after a provider.
    Raw(provider::Form, &'a [u8]),
    /// The field `enc`.
    Encrypted,
    /// None of these: its fields are its members.
    Flat,
    /// Larger than any entry that is read.
    TooLarge,
}

impl<'a> Form<'a> {
    /// Decides it from the fields' names.
    pub(super) fn of(fields: &'a Fields) -> Self {
        if fields.is_too_large() {
            return Self::TooLarge;
        }
        let (mut openai, mut anthropic, mut is_encrypted) = (None, None, false);
        for (field, value) in fields.iter() {
            match field {
                b"data" => return Self::Data(value),
                b"openai" => openai = openai.or(Some(value)),
                b"anthropic" => anthropic = anthropic.or(Some(value)),
                b"enc" => is_encrypted = true,
                _ => {}
            }
        }
        match (openai, anthropic) {
            (Some(value), _) => Self::Raw(provider::Form::OpenAi, value),
            (None, Some(value)) => Self::Raw(provider::Form::Anthropic, value),
            (None, None) if is_encrypted => Self::Encrypted,
            (None, None) => Self::Flat,
        }
    }
}

/// The events of one entry that is in none of the providers' forms: one event, or text and the end after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told<'a> {
    pub(super) first: Decoded<'a>,
    /// The event that ends the generation after `first`.
    pub(super) end: Option<Event<'a>>,
}

impl<'a> Told<'a> {
    pub(super) const fn one(first: Decoded<'a>) -> Self {
        Self { first, end: None }
    }
}

/// Decodes an entry that is one event and builds on nothing, as nearly all native and flat ones are. `None` where it
/// is more, is in a provider's form or cannot be understood: [`told`] finds out which. `margin` is that of [`told`].
#[must_use]
pub fn plain<'a>(entry: &'a Entry, context: &DecodeContext, margin: &'a Margin) -> Option<Decoded<'a>> {
    let told = match Form::of(&entry.fields) {
        Form::Data(data) => return native(data).ok().flatten(),
        Form::Flat => flat::read_fields(&entry.fields, &context.names, margin).ok()?,
        Form::Raw(..) | Form::Encrypted | Form::TooLarge => return None,
    };
    told.end.is_none().then_some(told.first)
}

/// Decodes an entry that is in none of the providers' forms. `margin` stores texts that are not a slice of the entry.
///
/// # Errors
/// When it cannot be understood.
pub(super) fn told<'a>(
    form: Form<'a>,
    entry: &'a Entry,
    context: &DecodeContext,
    margin: &'a Margin,
) -> Result<Told<'a>, Flaw> {
    match form {
        Form::Data(data) => match of_data(data, context, margin) {
            // Numbers that are none make an object none, unless nobody reads them.
            Err(Flaw::NotAnObject) => match std::str::from_utf8(data).ok().and_then(json::without_nan) {
                Some(object) => of_data(margin.keep(object.into()).as_bytes(), context, margin),
                None => Err(Flaw::NotAnObject),
            },
            told => told,
        },
        Form::Flat => flat::read_fields(&entry.fields, &context.names, margin),
        Form::Raw(form, _) => Err(Flaw::Provider(form)),
        Form::Encrypted => Err(Flaw::Encrypted),
        Form::TooLarge => Err(Flaw::TooLarge),
    }
}

/// Decodes an object in `data`: a native one, or else a flat one.
fn of_data<'a>(data: &'a [u8], context: &DecodeContext, margin: &'a Margin) -> Result<Told<'a>, Flaw> {
    match native(data)? {
        Some(decoded) => Ok(Told::one(decoded)),
        None => flat::read_object(data, &context.names, margin),
    }
}

/// Decodes a native object; `Ok(None)` where it is to be read by the names of flat entries.
pub(super) fn native(data: &[u8]) -> Result<Option<Decoded<'_>>, Flaw> {
    let text = std::str::from_utf8(data).map_err(|_| Flaw::NotText("data"))?;
    let members = Members::parse(text).ok_or(Flaw::NotAnObject)?;
    let Some(kind) = members.get(Member::Type) else { return Ok(None) };
    let kind = json::string(kind).ok_or(Flaw::Kind(Member::Type))?;
    let event = match json::unescape(kind).as_deref() {
        Some("delta") => members.delta()?,
        Some("tool_call") => members.tool_call()?,
        Some("start") => {
            Event::Start { generation: members.name(Member::Generation)?, metadata: members.metadata()? }
        }
        Some("end") => Event::End {
            finish_reason: members.string(Member::FinishReason)?,
            usage: members.object(Member::Usage)?,
        },
        Some("error") => {
            let code = members.string(Member::Code)?.ok_or(Flaw::Missing(Member::Code))?;
            Event::Error { code, message: members.string(Member::Message)? }
        }
        Some("heartbeat") => Event::Heartbeat,
        Some(kind) if flat::is_alias(kind) => return Ok(None),
        _ => return Ok(Some(custom(text, members.get(Member::Seq), members.get(Member::Ts)))),
    };
    let ts_us = members.get(Member::Ts).and_then(json::unsigned);
    Ok(Some(Decoded { event, seq: members.number(Member::Seq)?, ts_us }))
}

/// An object of a type of the producer's own.
pub(super) fn custom<'a>(object: &'a str, seq: Option<&str>, ts: Option<&str>) -> Decoded<'a> {
    let event = Event::Custom { data: object.trim_matches(json::BLANKS) };
    Decoded { event, seq: seq.and_then(json::unsigned), ts_us: ts.and_then(json::unsigned) }
}

/// The longest id of a generation or a call, and the longest name of a tool.
pub(super) const NAME_BYTES_MAX: usize = 1024;
/// The largest `metadata` of a `start`.
pub(super) const METADATA_BYTES_MAX: usize = 64 * 1024;

/// A string that is kept for as long as its generation is, in which the producer has no call to write much.
pub(super) fn short(escaped: &str, member: Member) -> Result<&str, Flaw> {
    let is_short = || json::unescape(escaped).is_some_and(|text| text.len() <= NAME_BYTES_MAX);
    if escaped.len() <= NAME_BYTES_MAX || is_short() { Ok(escaped) } else { Err(Flaw::TooLong(member)) }
}

/// The members that some native type has.
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
    const COUNT: usize = Self::Message as usize + 1;

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

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

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

/// The known members of an object as raw JSON values; a member that is `null` is absent.
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

    fn string(&self, member: Member) -> Result<Option<&'a str>, Flaw> {
        self.get(member).map(|raw| string(raw, member)).transpose()
    }

    fn name(&self, member: Member) -> Result<Option<&'a str>, Flaw> {
        self.string(member)?.map(|escaped| short(escaped, member)).transpose()
    }

    fn object(&self, member: Member) -> Result<Option<&'a str>, Flaw> {
        self.get(member).map(|raw| object(raw, member)).transpose()
    }

    fn metadata(&self) -> Result<Option<&'a str>, Flaw> {
        self.object(Member::Metadata)?.map(metadata).transpose()
    }

    fn number(&self, member: Member) -> Result<Option<u64>, Flaw> {
        self.get(member).map(|raw| json::unsigned(raw).ok_or(Flaw::Kind(member))).transpose()
    }

    fn delta(&self) -> Result<Event<'a>, Flaw> {
        let channel = self.string(Member::Channel)?.unwrap_or(CONTENT);
        Ok(Event::Delta {
            text: self.string(Member::Text)?.ok_or(Flaw::Missing(Member::Text))?,
            channel: plain_channel(channel),
            index: self.number(Member::Index)?.unwrap_or(0),
        })
    }

    fn tool_call(&self) -> Result<Event<'a>, Flaw> {
        Ok(Event::ToolCall {
            index: self.number(Member::Index)?.unwrap_or(0),
            call: self.number(Member::Call)?.unwrap_or(0),
            id: self.name(Member::Id)?,
            name: self.name(Member::Name)?,
            arguments: self.string(Member::Arguments)?.ok_or(Flaw::Missing(Member::Arguments))?,
        })
    }
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

/// A well-known channel's name without escapes, so that it is recognised however it was written.
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
