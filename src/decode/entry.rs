//! Decodes entries that do not depend on earlier entries.
//!
//! `Form` decides the form of an entry, once. This module reads the native form, `flat` the names of flat entries,
//! and [`provider`] the entries of providers, by way of `expand`. If a member occurs twice, the last one counts, as
//! in nearly every JSON parser. In a custom object, `seq` and `ts` count if they have the right type, and otherwise
//! belong to the producer.
//!
//! The nesting depth needs no limit: values are skipped without recursion.

use std::sync::Arc;

use super::flat::{self, PlainEvents};
use super::flaw::Flaw;
use super::member::Member;
use super::members::{Members, custom};
use crate::config;
use crate::json;
use crate::model::{Decoded, Entry, Event, Fields};
use crate::provider::{self, Malformed, Margin};

/// The settings that decoding needs besides the entry. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct DecodeContext {
    pub(crate) names: Arc<config::Fields>,
}

impl DecodeContext {
    /// A context with the names of flat entries' fields.
    #[must_use]
    pub fn new(names: config::Fields) -> Self {
        Self { names: Arc::new(names) }
    }
}

/// The form of an entry, with its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form<'a> {
    /// The field `data`: an object, native or with the names of flat entries.
    Data(&'a [u8]),
    /// A field that is named after a provider.
    Raw(provider::Form, &'a [u8]),
    /// The field `enc`.
    Encrypted,
    /// None of these: its fields are its members.
    Flat,
    /// Larger than the limit for entries.
    TooLarge,
}

impl<'a> Form<'a> {
    /// Decides the form from the fields' names.
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

/// Decodes an entry that is one event and depends on nothing, as nearly all native and flat ones are. `None` if it
/// has several events, is in a provider's form or cannot be decoded: `plain_events` finds out which, with the same
/// `margin`.
#[must_use]
pub fn plain<'a>(entry: &'a Entry, context: &DecodeContext, margin: &'a Margin) -> Option<Decoded<'a>> {
    let own = match Form::of(&entry.fields) {
        Form::Data(data) => return native(data).ok().flatten(),
        Form::Flat => flat::read_fields(&entry.fields, &context.names, margin).ok()?,
        Form::Raw(..) | Form::Encrypted | Form::TooLarge => return None,
    };
    own.end.is_none().then_some(own.first)
}

/// Decodes an entry that is not in a provider's form. `margin` stores texts that are not a slice of the entry.
///
/// # Errors
/// If it cannot be decoded.
pub(super) fn plain_events<'a>(
    form: Form<'a>,
    entry: &'a Entry,
    context: &DecodeContext,
    margin: &'a Margin,
) -> Result<PlainEvents<'a>, Flaw> {
    match form {
        Form::Data(data) => match of_data(data, context, margin) {
            // Invalid numbers make an object invalid, unless they are in members that nobody reads.
            Err(Flaw::NotAnObject) => match std::str::from_utf8(data).ok().and_then(json::without_nan) {
                Some(object) => of_data(margin.keep(object.into()).as_bytes(), context, margin),
                None => Err(Flaw::NotAnObject),
            },
            own => own,
        },
        Form::Flat => flat::read_fields(&entry.fields, &context.names, margin),
        Form::Raw(form, _) => Err(Flaw::Provider(form, Malformed::Form)),
        Form::Encrypted => Err(Flaw::Encrypted),
        Form::TooLarge => Err(Flaw::TooLarge),
    }
}

/// Decodes an object in `data`: a native one, or else a flat one.
fn of_data<'a>(data: &'a [u8], context: &DecodeContext, margin: &'a Margin) -> Result<PlainEvents<'a>, Flaw> {
    match native(data)? {
        Some(decoded) => Ok(PlainEvents::one(decoded)),
        None => flat::read_object(data, &context.names, margin),
    }
}

/// Decodes a native object; `Ok(None)` if it has to be read by the names of flat entries.
///
/// # Errors
/// If it is not an object, or not one that its type allows.
pub fn native(data: &[u8]) -> Result<Option<Decoded<'_>>, Flaw> {
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

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
