//! How providers say that an answer failed: an object, a sentence, a number, a list, `true`, with the words in it or
//! beside it. Any `error` that is not absent, empty or `false` is a failure, and some text is better than none.

use super::Draft;
use super::value::{id, quoted, text, word};
use crate::json;
use crate::model::Event;

/// The code of an error to which the provider gave none.
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
/// The members of an error that are no reason to emit it as JSON.
const FRAMING: [&str; 6] = ["code", "type", "param", "status", "event_id", "request_id"];
/// How deep a sentence is looked for.
const DEPTH_MAX: usize = 8;
/// The longest text that is taken for a code where a sentence stands beside it.
const CODE_BYTES_MAX: usize = 64;

/// The failure that the value of an `error` member tells of; `beside` is the object that has the member, or is
/// empty.
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

/// The failure that an object tells of.
fn of_object<'a>(
    object: &'a str,
    (code_beside, sentence_beside): (Option<&'a str>, Option<&'a str>),
    draft: &mut Draft<'a>,
) -> Event<'a> {
    let code = first_of(object, ["code", "type", "status", "error_code"], |raw| id(Some(raw)).flatten());
    let message = sentence(object, &SENTENCES, DEPTH_MAX).or(sentence_beside);
    let message = message.or_else(|| {
        let says_more = json::rest(object, &[&FRAMING]).is_some_and(|rest| !rest.is_empty());
        says_more.then(|| draft.keep(quoted(object)))
    });
    Event::Error { code: code.or(code_beside).unwrap_or(PROVIDER_ERROR), message }
}

/// Whether a text is rather a word for programs than a sentence for people.
fn is_code(text: &str) -> bool {
    text.len() <= CODE_BYTES_MAX && !text.contains([' ', '\\'])
}

/// The first of the named members that is as wanted.
fn first_of<'a, const N: usize>(
    object: &'a str,
    names: [&str; N],
    wanted: impl Fn(&'a str) -> Option<&'a str>,
) -> Option<&'a str> {
    json::members(object, names)?.into_iter().flatten().find_map(wanted)
}

/// A sentence in a value, however deep: a text, that of the first element that has one, or of the first of the named
/// members.
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
