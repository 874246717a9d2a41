//! Entries with conventional member names: flat entries, whose fields are the members, and objects in `data` without
//! a native type.
//!
//! Both are collected as [`Loose`] members and read by one set of rules. A flat field is text, so its content
//! determines whether it is a number, a boolean or JSON; an empty field is present. In an object, `null` is absent.

use super::flaw::Flaw;
use super::member::Member;
use super::members::{CONTENT, custom, metadata, object, plain_channel, short, string};
use crate::config::{self, FIELD_NAMES_MAX};
use crate::json;
use crate::model::{Decoded, Event, Fields};
use crate::provider::Margin;

/// The events of one entry that is not in a provider's format: a single event, or text followed by the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlainEvents<'a> {
    pub(super) first: Decoded<'a>,
    /// The event that ends the generation after `first`.
    pub(super) end: Option<Event<'a>>,
}

impl<'a> PlainEvents<'a> {
    pub(super) const fn one(first: Decoded<'a>) -> Self {
        Self { first, end: None }
    }
}

/// The text of an entry that only ends its generation, as in OpenAI's streams.
const DONE: &str = "[DONE]";
/// The code of an error without one.
const ERROR_CODE: &str = "error";

/// Whether an object with this `type` is read by the names of flat entries.
pub(super) fn is_alias(kind: &str) -> bool {
    matches!(kind, "chunk" | "token") || is_end(kind)
}

/// Whether a type other than the native `end` ends the generation.
fn is_end(kind: &str) -> bool {
    matches!(kind, "done" | "complete" | "completed" | "finish" | "finished" | "stop")
}

/// Reads a flat entry.
///
/// # Errors
/// If it cannot be decoded.
pub(super) fn read_fields<'a>(
    fields: &'a Fields,
    names: &config::Fields,
    margin: &'a Margin,
) -> Result<PlainEvents<'a>, Flaw> {
    let mut loose = Loose::default();
    for (name, value) in fields.iter() {
        loose.for_each_slot(name, names, |place| *place = place.or(Some(Piece::Field(value))));
    }
    let kind = loose.kind()?;
    match loose.read(kind, margin)? {
        Some(own) => Ok(own),
        None if kind == Kind::Missing => Err(Flaw::Nothing),
        None if kind == Kind::Delta => Err(Flaw::Missing(Member::Text)),
        None => {
            let data = margin.keep(fields.to_json().map_err(|_| Flaw::FieldsNotText)?.into());
            let number = |piece: Option<Piece<'_>>| piece.and_then(Piece::unsigned);
            let event = Event::Custom { data };
            Ok(PlainEvents::one(Decoded { event, seq: number(loose.seq), ts_us: number(loose.ts) }))
        }
    }
}

/// Reads an object that has no `type`, or one that [`is_alias`].
///
/// # Errors
/// If it cannot be decoded.
pub(super) fn read_object<'a>(
    data: &'a [u8],
    names: &config::Fields,
    margin: &'a Margin,
) -> Result<PlainEvents<'a>, Flaw> {
    let text = std::str::from_utf8(data).map_err(|_| Flaw::NotText("data"))?;
    let (mut loose, mut own) = (Loose::default(), None);
    json::each_member(text, |name, value| {
        let piece = (value != "null").then_some(Piece::Json(value));
        if name == "type" {
            own = piece;
        }
        loose.for_each_slot(name.as_bytes(), names, |place| *place = piece);
    })
    .ok_or(Flaw::NotAnObject)?;
    if own.is_some() {
        loose.kind = [own; FIELD_NAMES_MAX];
    }
    let kind = loose.kind()?;
    // A JSON object with a `type` of its own counts as a delta only if it has a text.
    let is_own = own.is_some() && kind == Kind::Delta && loose.text().is_none();
    let own = if is_own { None } else { loose.read(kind, margin)? };
    match own {
        Some(own) => Ok(own),
        None if kind == Kind::Missing => Err(Flaw::NothingInObject),
        None if kind == Kind::Delta && !is_own => Err(Flaw::Missing(Member::Text)),
        None => {
            let number = |piece: Option<Piece<'a>>| match piece {
                Some(Piece::Json(raw)) => Some(raw),
                Some(Piece::Field(_)) | None => None,
            };
            Ok(PlainEvents::one(custom(text, number(loose.seq), number(loose.ts))))
        }
    }
}

/// The value of a member.
#[derive(Clone, Copy, Debug)]
enum Piece<'a> {
    /// A field of a flat entry: its bytes are the text.
    Field(&'a [u8]),
    /// A member of an object: a JSON value.
    Json(&'a str),
}

/// The kind of an entry, by its `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// There is no `type`.
    Missing,
    Delta,
    Start,
    ToolCall,
    Heartbeat,
    Error,
    End,
    /// An end, if other members say so; otherwise nothing.
    Status,
    /// A type of the producer's own.
    Custom,
}

/// How an entry ends its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Complete,
    Failed,
}

/// The members with known names.
#[derive(Debug, Default)]
struct Loose<'a> {
    /// One for each configured name of the text, in the same order.
    text: [Option<Piece<'a>>; FIELD_NAMES_MAX],
    kind: [Option<Piece<'a>>; FIELD_NAMES_MAX],
    seq: Option<Piece<'a>>,
    ts: Option<Piece<'a>>,
    channel: Option<Piece<'a>>,
    index: Option<Piece<'a>>,
    call: Option<Piece<'a>>,
    id: Option<Piece<'a>>,
    name: Option<Piece<'a>>,
    arguments: Option<Piece<'a>>,
    generation: Option<Piece<'a>>,
    metadata: Option<Piece<'a>>,
    finish_reason: Option<Piece<'a>>,
    usage: Option<Piece<'a>>,
    code: Option<Piece<'a>>,
    message: Option<Piece<'a>>,
    error: Option<Piece<'a>>,
    status: Option<Piece<'a>>,
    /// `done`, `is_final`, `final` and `finished`.
    done: [Option<Piece<'a>>; 4],
}

impl<'a> Loose<'a> {
    /// Calls `put` with every slot in which a member with this name is stored.
    fn for_each_slot(&mut self, name: &[u8], names: &config::Fields, put: impl Fn(&mut Option<Piece<'a>>)) {
        let place = |names: &[String]| names.iter().position(|known| known.as_bytes() == name);
        if let Some(text) = place(&names.text) {
            put(&mut self.text[text]);
        }
        if let Some(kind) = place(&names.kind) {
            put(&mut self.kind[kind]);
        }
        put(match name {
            b"seq" => &mut self.seq,
            b"ts" => &mut self.ts,
            b"channel" => &mut self.channel,
            b"index" => &mut self.index,
            b"call" => &mut self.call,
            b"id" => &mut self.id,
            b"name" => &mut self.name,
            b"arguments" => &mut self.arguments,
            b"generation" => &mut self.generation,
            b"metadata" => &mut self.metadata,
            b"finish_reason" => &mut self.finish_reason,
            b"usage" => &mut self.usage,
            b"code" => &mut self.code,
            b"message" => &mut self.message,
            b"error" => &mut self.error,
            b"status" => &mut self.status,
            b"done" => &mut self.done[0],
            b"is_final" => &mut self.done[1],
            b"final" => &mut self.done[2],
            b"finished" => &mut self.done[3],
            _ => return,
        });
    }

    fn text(&self) -> Option<Piece<'a>> {
        self.text.iter().find_map(|piece| *piece)
    }

    fn kind(&self) -> Result<Kind, Flaw> {
        let Some(kind) = self.kind.iter().find_map(|piece| *piece) else { return Ok(Kind::Missing) };
        let word = match kind {
            Piece::Field(bytes) => {
                Some(std::str::from_utf8(bytes).map_err(|_| Flaw::Kind(Member::Type))?.into())
            }
            Piece::Json(raw) => json::unescape(json::string(raw).ok_or(Flaw::Kind(Member::Type))?),
        };
        Ok(match word.as_deref() {
            Some("delta" | "chunk" | "token" | "text" | "content" | "message") => Kind::Delta,
            Some("start") => Kind::Start,
            Some("tool_call") => Kind::ToolCall,
            Some("heartbeat") => Kind::Heartbeat,
            Some("error") => Kind::Error,
            Some("end") => Kind::End,
            Some("metadata" | "status") => Kind::Status,
            Some(kind) if is_end(kind) => Kind::End,
            _ => Kind::Custom,
        })
    }

    /// Converts the members to events; `None` if none of them is known.
    fn read(&self, kind: Kind, margin: &'a Margin) -> Result<Option<PlainEvents<'a>>, Flaw> {
        let event = match kind {
            Kind::Missing | Kind::Delta | Kind::Status => match (self.ending()?, self.text()) {
                (Some(ending), _) => return self.end(ending, margin).map(Some),
                (None, Some(text)) if kind != Kind::Status => {
                    self.delta(text.text(Member::Text, margin)?, margin)?
                }
                (None, _) => return Ok(None),
            },
            Kind::End => return self.end(Ending::Complete, margin).map(Some),
            Kind::Start => Event::Start {
                generation: self.name(self.generation, Member::Generation, margin)?,
                metadata: self.object(self.metadata, Member::Metadata, margin)?.map(metadata).transpose()?,
            },
            Kind::ToolCall => Event::ToolCall {
                index: number(self.index, Member::Index)?.unwrap_or(0),
                call: number(self.call, Member::Call)?.unwrap_or(0),
                id: self.name(self.id, Member::Id, margin)?,
                name: self.name(self.name, Member::Name, margin)?,
                arguments: match self.arguments {
                    Some(arguments) => arguments.text(Member::Arguments, margin)?,
                    None => return Err(Flaw::Missing(Member::Arguments)),
                },
            },
            Kind::Heartbeat => Event::Heartbeat,
            Kind::Error => self.error(margin)?.0,
            Kind::Custom => return Ok(None),
        };
        Ok(Some(PlainEvents::one(self.decoded(event)?)))
    }

    fn decoded(&self, event: Event<'a>) -> Result<Decoded<'a>, Flaw> {
        let ts_us = self.ts.and_then(Piece::unsigned);
        Ok(Decoded { event, seq: number(self.seq, Member::Seq)?, ts_us })
    }

    fn delta(&self, text: &'a str, margin: &'a Margin) -> Result<Event<'a>, Flaw> {
        let channel = self.channel.map(|channel| channel.text(Member::Channel, margin)).transpose()?;
        let index = number(self.index, Member::Index)?.unwrap_or(0);
        Ok(Event::Delta { text, channel: plain_channel(channel.unwrap_or(CONTENT)), index })
    }

    /// How the entry ends its generation, if its `type` does not determine that.
    fn ending(&self) -> Result<Option<Ending>, Flaw> {
        match self.status.and_then(Piece::word).as_deref() {
            Some("failed" | "error") => return Ok(Some(Ending::Failed)),
            Some("completed" | "complete" | "done" | "finished") => return Ok(Some(Ending::Complete)),
            _ => {}
        }
        let is_over = self.done.iter().flatten().any(|piece| piece.is_true())
            || self.finish_reason.map(Piece::reason).transpose()?.flatten().is_some()
            || self.text().is_some_and(Piece::is_done);
        Ok(is_over.then_some(Ending::Complete))
    }

    /// The end, after the text of the same entry.
    fn end(&self, ending: Ending, margin: &'a Margin) -> Result<PlainEvents<'a>, Flaw> {
        let (end, is_text_used) = match ending {
            Ending::Failed => self.error(margin)?,
            Ending::Complete => {
                let reason = self.finish_reason.map(Piece::reason).transpose()?.flatten();
                let finish_reason =
                    reason.map(|reason| reason.text(Member::FinishReason, margin)).transpose()?;
                (Event::End { finish_reason, usage: self.object(self.usage, Member::Usage, margin)? }, false)
            }
        };
        let text = self.text().filter(|text| !is_text_used && !text.is_done());
        let text = text.map(|text| text.text(Member::Text, margin)).transpose()?;
        match text.filter(|text| !text.is_empty()) {
            Some(text) => {
                let first = self.decoded(self.delta(text, margin)?)?;
                Ok(PlainEvents { first, end: Some(end) })
            }
            None => Ok(PlainEvents::one(self.decoded(end)?)),
        }
    }

    /// The error event, and whether the entry's text is used as its message.
    fn error(&self, margin: &'a Margin) -> Result<(Event<'a>, bool), Flaw> {
        let code = self.code.map(|code| code.text(Member::Code, margin)).transpose()?.unwrap_or(ERROR_CODE);
        let text = self.text().filter(|text| !text.is_done());
        let (message, is_text) = match (self.message, self.error, text) {
            (Some(message), ..) => (Some(message.text(Member::Message, margin)?), false),
            (None, Some(error), _) => (Some(error.any_text(margin)?), false),
            (None, None, Some(text)) => (Some(text.text(Member::Text, margin)?), true),
            (None, None, None) => (None, false),
        };
        Ok((Event::Error { code, message }, is_text))
    }

    fn name(
        &self,
        piece: Option<Piece<'a>>,
        member: Member,
        margin: &'a Margin,
    ) -> Result<Option<&'a str>, Flaw> {
        piece.map(|piece| short(piece.text(member, margin)?, member)).transpose()
    }

    fn object(
        &self,
        piece: Option<Piece<'a>>,
        member: Member,
        margin: &'a Margin,
    ) -> Result<Option<&'a str>, Flaw> {
        match piece {
            None => Ok(None),
            Some(Piece::Json(raw)) => object(raw, member).map(Some),
            Some(Piece::Field(bytes)) => {
                let text = std::str::from_utf8(bytes).map_err(|_| Flaw::Kind(member))?;
                let text = text.trim_matches(json::BLANKS);
                if text == "null" {
                    return Ok(None);
                }
                let is_object = |text: &str| json::each_member(text, |_, _| {}).is_some();
                if is_object(text) {
                    return object(text, member).map(Some);
                }
                let text =
                    json::without_nan(text).filter(|text| is_object(text)).ok_or(Flaw::Kind(member))?;
                object(margin.keep(text.into()), member).map(Some)
            }
        }
    }
}

impl<'a> Piece<'a> {
    /// The member's text, with JSON escapes.
    fn text(self, member: Member, margin: &'a Margin) -> Result<&'a str, Flaw> {
        match self {
            Self::Json(raw) => string(raw, member),
            Self::Field(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(match json::escape(text) {
                    Some(escaped) => margin.keep(escaped),
                    None => text,
                }),
                Err(_) => Err(Flaw::Kind(member)),
            },
        }
    }

    /// The member's text, with JSON escapes; if it is no text, the JSON value as it is.
    fn any_text(self, margin: &'a Margin) -> Result<&'a str, Flaw> {
        match self {
            Self::Json(raw) if json::string(raw).is_none() => {
                Ok(json::escape(raw).map_or(raw, |escaped| margin.keep(escaped)))
            }
            piece => piece.text(Member::Message, margin),
        }
    }

    /// The member's text without JSON escapes, for short words. `None` if it is not valid text.
    fn word(self) -> Option<std::borrow::Cow<'a, str>> {
        match self {
            Self::Field(bytes) => std::str::from_utf8(bytes).ok().map(Into::into),
            Self::Json(raw) => json::unescape(json::string(raw)?),
        }
    }

    fn unsigned(self) -> Option<u64> {
        match self {
            Self::Json(raw) => json::unsigned(raw),
            Self::Field(bytes) => {
                let digits = std::str::from_utf8(bytes).ok().filter(|text| !text.starts_with('+'));
                digits.and_then(|digits| digits.parse().ok())
            }
        }
    }

    fn is_true(self) -> bool {
        let is_truth = |text: &str| text == "1" || text.eq_ignore_ascii_case("true");
        match self {
            Self::Json(raw) => is_truth(json::string(raw).unwrap_or(raw)),
            Self::Field(bytes) => std::str::from_utf8(bytes).is_ok_and(is_truth),
        }
    }

    /// Whether the member is a text that ends the generation.
    fn is_done(self) -> bool {
        match self {
            Self::Field(bytes) => bytes == DONE.as_bytes(),
            Self::Json(raw) => json::string(raw).is_some_and(|escaped| json::same(escaped, DONE)),
        }
    }

    /// The reason for an end. `None` if it is empty, in any of the ways in which languages write that.
    fn reason(self) -> Result<Option<Self>, Flaw> {
        let is_empty = |text: &str| matches!(text, "" | "null" | "None");
        match self {
            Self::Json(raw) => {
                let escaped = json::string(raw).ok_or(Flaw::Kind(Member::FinishReason))?;
                Ok((!is_empty(escaped)).then_some(self))
            }
            Self::Field(bytes) => {
                let text = std::str::from_utf8(bytes).map_err(|_| Flaw::Kind(Member::FinishReason))?;
                Ok((!is_empty(text)).then_some(self))
            }
        }
    }
}

fn number(piece: Option<Piece<'_>>, member: Member) -> Result<Option<u64>, Flaw> {
    piece.map(|piece| piece.unsigned().ok_or(Flaw::Kind(member))).transpose()
}

#[cfg(test)]
#[path = "flat_tests.rs"]
mod tests;
