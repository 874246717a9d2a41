//! How providers report that an answer failed: an object, a sentence, a number, a list, or `true`, with the message
//! in it or beside it. Any `error` that is not absent, empty or `false` is a failure, and some text is better than
//! none.

use super::Draft;
use super::value::{id, quoted, text, word};
use crate::json;
use crate::model::Event;

/// The code of an error without a code of the provider's.
pub(crate) const PROVIDER_ERROR: &str = "provider_error";

/// The members in which servers put a code beside an error.
const CODES: [&str; 4] = ["code", "error_code", "error_type", "status_code"];
/// The members in which servers put the sentence, the usual one first.
const SENTENCES: [&str; 9] = [
    "message",
    "detail",
    "details",
    "error",
    "msg",
    "error_message",
    "error_description",
    "description",
    "reason",
];
/// The members of an error that do not justify emitting it as JSON.
const FRAMING: [&str; 6] = ["code", "type", "param", "status", "event_id", "request_id"];
/// The depth up to which a sentence is searched.
const DEPTH_MAX: usize = 8;
/// The longest text that counts as a code if there is also a sentence.
const CODE_BYTES_MAX: usize = 64;

/// The failure that the value of an `error` member describes; `beside` is the object with that member, or empty.
pub(super) fn error<'a>(raw: &'a str, beside: &'a str, draft: &mut Draft<'a>) -> Event<'a> {
    let sentence_beside = sentence(beside, &SENTENCES[..3], DEPTH_MAX - 1);
    let code_beside = || first_of(beside, CODES, |raw| id(Some(raw)).flatten());
    match raw.as_bytes().first() {
        Some(b'{') => of_object(raw, (code_beside(), sentence_beside), draft),
        Some(b'"') => match (word(Some(raw)).flatten(), sentence_beside) {
            (Some(code), Some(message)) if is_code(code) => Event::Error { code, message: Some(message) },
            (message, other) => {
                Event::Error { code: code_beside().unwrap_or(PROVIDER_ERROR), message: message.or(other) }
            }
        },
        Some(b'-' | b'0'..=b'9') => Event::Error { code: raw, message: sentence_beside },
        _ => {
            let message = sentence_beside.or_else(|| sentence(raw, &SENTENCES, DEPTH_MAX));
            let message = message.or_else(|| raw.starts_with('[').then(|| draft.keep(quoted(raw))));
            Event::Error { code: code_beside().unwrap_or(PROVIDER_ERROR), message }
        }
    }
}

/// The failure that an object describes.
fn of_object<'a>(
    object: &'a str,
    (code_beside, sentence_beside): (Option<&'a str>, Option<&'a str>),
    draft: &mut Draft<'a>,
) -> Event<'a> {
    let code = first_of(object, ["code", "type", "status", "error_code"], |raw| id(Some(raw)).flatten());
    let message = sentence(object, &SENTENCES, DEPTH_MAX).or(sentence_beside);
    let message = message.or_else(|| {
        let has_more = json::rest(object, &[&FRAMING]).is_some_and(|rest| !rest.is_empty());
        has_more.then(|| draft.keep(quoted(object)))
    });
    Event::Error { code: code.or(code_beside).unwrap_or(PROVIDER_ERROR), message }
}

/// Whether a text is a code for programs rather than a sentence for people.
fn is_code(text: &str) -> bool {
    text.len() <= CODE_BYTES_MAX && !text.contains([' ', '\\'])
}

/// The first of the named members whose value `wanted` accepts.
fn first_of<'a, const N: usize>(
    object: &'a str,
    names: [&str; N],
    wanted: impl Fn(&'a str) -> Option<&'a str>,
) -> Option<&'a str> {
    json::members(object, names)?.into_iter().flatten().find_map(wanted)
}

/// A sentence within a value, at any depth: a text, the sentence of the first element with one, or that of the first
/// of the named members.
fn sentence<'a>(raw: &'a str, names: &[&str], depth: usize) -> Option<&'a str> {
    if depth == 0 {
        return None;
    }
    match raw.as_bytes().first()? {
        b'"' => text(Some(raw)).flatten().filter(|text| !text.is_empty()),
        b'[' => {
            json::elements(raw)?.into_iter().find_map(|(_, element)| sentence(element, &SENTENCES, depth - 1))
        }
        b'{' => {
            let mut found = vec![None; names.len()];
            json::each_member(raw, |key, value| {
                if let Some(place) = names.iter().position(|name| *name == key) {
                    found[place] = Some(value);
                }
            })?;
            found.into_iter().flatten().find_map(|value| sentence(value, &SENTENCES, depth - 1))
        }
        _ => None,
    }
}
