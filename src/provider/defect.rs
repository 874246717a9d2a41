//! The reason why an entry is malformed, in words for its author. It is looked for only after the entry was found to be
//! malformed.
//!
//! The words say where, never what: they hold names of known members and places in lists, but no values.

use serde_json::value::RawValue;

use super::{EVENTS_PER_ENTRY_MAX, Form};
use crate::json;
use crate::model::LABEL_BYTES_MAX;

/// How deep known members are looked into, and how many elements of each list.
const DEPTH_MAX: usize = 6;
const ELEMENTS_MAX: usize = 64;
/// How lines of an event stream begin.
const LINES: [&str; 4] = ["data:", "event:", "id:", ":"];

/// Members that are texts, if they are there.
const TEXTS: [&str; 12] = [
    "type",
    "text",
    "refusal",
    "reasoning",
    "reasoning_content",
    "thinking",
    "partial_json",
    "finish_reason",
    "stop_reason",
    "name",
    "call_id",
    "item_id",
];
/// Members that are texts or lists of parts; pieces, which are texts or objects.
const CONTENT: &str = "content";
const PIECES: [&str; 2] = ["delta", "arguments"];
/// Members that are unsigned numbers.
const NUMBERS: [&str; 4] = ["index", "output_index", "content_index", "summary_index"];
/// Members that are repeated in many frames.
const SHORT: [&str; 3] = ["id", "name", "call_id"];
/// Members that are looked into.
const CONTAINERS: [&str; 13] = [
    "choices",
    "delta",
    "message",
    "content",
    "content_block",
    "tool_calls",
    "function",
    "function_call",
    "item",
    "part",
    "summary",
    "response",
    "output",
];

/// Says what is wrong with an entry that could not be read.
#[must_use]
pub fn defect(form: Form, bytes: &[u8]) -> String {
    let field = form.field();
    let Ok(text) = std::str::from_utf8(bytes) else { return format!("{field} is not UTF-8") };
    let text = text.trim_matches(json::BLANKS);
    if text.is_empty() {
        return format!("{field} is empty");
    }
    if LINES.iter().any(|line| text.starts_with(line)) {
        return format!("{field} is a line of an event stream; what follows `data: ` belongs there alone");
    }
    let without_nan = json::without_nan(text);
    let text = without_nan.as_deref().unwrap_or(text);
    if let Err(error) = serde_json::from_str::<&RawValue>(text) {
        return format!("{field} is not JSON ({error})");
    }
    if !text.starts_with('{') {
        return format!("{field} is {}, not an object", kind(text));
    }
    match in_object(text, form) {
        Some(defect) => format!("{field} is not what such a server sends: {defect}"),
        None => format!(
            "{field} is not what such a server sends: it says more than {EVENTS_PER_ENTRY_MAX} things, or a member is of \
             another kind than is known"
        ),
    }
}

/// The forms of a field, for those who wrote something else.
#[must_use]
pub const fn known_forms(form: Form) -> &'static str {
    match form {
        Form::OpenAi => "choices, a type of the Responses API, error, or [DONE]",
        Form::Anthropic => "a type of the Messages API, or error",
    }
}

fn kind(raw: &str) -> &'static str {
    match raw.as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b'"') => "a text",
        Some(b't' | b'f') => "a truth value",
        Some(b'n') => "null",
        _ => "a number",
    }
}

fn in_object(object: &str, form: Form) -> Option<String> {
    let [kind_of_event, choices, failure] = json::members(object, ["type", "choices", "error"])?;
    if form == Form::Anthropic && kind_of_event.is_none() && failure.is_none() {
        return Some("type is missing".to_owned());
    }
    if form == Form::OpenAi
        && let Some(choices) = choices.filter(|choices| !choices.starts_with('['))
    {
        return Some(format!("choices is {}, not a list", kind(choices)));
    }
    let mut path = String::new();
    in_members(object, &mut path, 0)
}

/// The first member of an object, or of what is in it, that is not as it should be; `path` is where the object is.
fn in_members(object: &str, path: &mut String, depth: usize) -> Option<String> {
    let mut found = None;
    json::each_member(object, |name, raw| {
        if found.is_none() && raw != "null" {
            let len = path.len();
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
            found = in_member(name, raw, path, depth);
            path.truncate(len);
        }
    });
    found
}

fn in_member(name: &str, raw: &str, path: &mut String, depth: usize) -> Option<String> {
    let is = |wanted: &str| Some(format!("{path} is {}, not {wanted}", kind(raw)));
    let (is_text, is_object) = (raw.starts_with('"'), raw.starts_with('{'));
    let is_list = raw.starts_with('[');
    if TEXTS.contains(&name) && !is_text {
        return is("a text");
    }
    if name == CONTENT && !is_text && !is_list {
        return is("a text or a list");
    }
    if PIECES.contains(&name) && !is_text && !is_object && raw != "[]" {
        return is("a text or an object");
    }
    if NUMBERS.contains(&name) && json::unsigned(raw).is_none() {
        return Some(format!("{path} is not an unsigned number"));
    }
    if let Some(text) = json::string(raw) {
        let is_known = TEXTS.contains(&name) || PIECES.contains(&name) || [CONTENT, "id"].contains(&name);
        if is_known && !json::surrogates_are_paired(text) {
            return Some(format!("{path} has a lone surrogate"));
        }
        if SHORT.contains(&name) && json::unescape(text).is_none_or(|text| text.len() > LABEL_BYTES_MAX) {
            return Some(format!("{path} is longer than {LABEL_BYTES_MAX} bytes"));
        }
    }
    if !CONTAINERS.contains(&name) || depth >= DEPTH_MAX {
        return None;
    }
    if is_object {
        return in_members(raw, path, depth + 1);
    }
    let elements = if is_list { json::elements(raw).unwrap_or_default() } else { Vec::new() };
    for (place, element) in elements.into_iter().enumerate().take(ELEMENTS_MAX) {
        let len = path.len();
        path.push_str(&format!("[{place}]"));
        let found = match element.starts_with('{') {
            true => in_members(element, path, depth + 1),
            false if name == CONTENT && element.starts_with('"') => None,
            false => Some(format!("{path} is {}, not an object", kind(element))),
        };
        path.truncate(len);
        if found.is_some() {
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::{Margin, read};
    use super::*;
    use crate::model::Progress;

    #[test]
    fn what_is_wrong_is_named_and_where() {
        let lone = r#"{"choices":[{"delta":{"content":"\ud800"}}]}"#;
        let long =
            format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{{"id":"{}"}}]}}}}]}}"#, "x".repeat(1025));
        let many = format!(r#"{{"choices":[{}]}}"#, vec![r#"{"delta":{"content":"x"}}"#; 4097].join(","));
        for (form, payload, expected) in [
            (Form::OpenAi, &b"\xff"[..], "openai is not UTF-8"),
            (Form::OpenAi, b" \n", "openai is empty"),
            (
                Form::OpenAi,
                br#"data: {"choices":[]}"#,
                "openai is a line of an event stream; what follows `data: ` belongs there alone",
            ),
            (Form::OpenAi, b"torn", "openai is not JSON (expected ident at line 1 column 2)"),
            (
                Form::OpenAi,
                br#"{"choices":["#,
                "openai is not JSON (EOF while parsing a list at line 1 column 12)",
            ),
            (Form::OpenAi, b"[1]", "openai is a list, not an object"),
            (Form::Anthropic, b"[DONE]", "anthropic is not JSON (expected value at line 1 column 2)"),
            (Form::Anthropic, b"\"x\"", "anthropic is a text, not an object"),
            (Form::Anthropic, b"{}", "anthropic is not what such a server sends: type is missing"),
            (
                Form::OpenAi,
                br#"{"choices":"x"}"#,
                "openai is not what such a server sends: choices is a text, not a list",
            ),
            (
                Form::OpenAi,
                br#"{"choices":[{"delta":{"content":"x"}},{"delta":{"reasoning":["secret"]}}],"a\"b":NaN}"#,
                "openai is not what such a server sends: choices[1].delta.reasoning is a list, not a text",
            ),
            (
                Form::OpenAi,
                lone.as_bytes(),
                "openai is not what such a server sends: choices[0].delta.content has a lone surrogate",
            ),
            (
                Form::OpenAi,
                long.as_bytes(),
                "openai is not what such a server sends: choices[0].delta.tool_calls[0].id is longer than 1024 bytes",
            ),
            (
                Form::OpenAi,
                br#"{"type":"response.output_text.delta","delta":"x","output_index":-1}"#,
                "openai is not what such a server sends: output_index is not an unsigned number",
            ),
            (
                Form::Anthropic,
                br#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":7}}"#,
                "anthropic is not what such a server sends: delta.text is a number, not a text",
            ),
            (
                Form::OpenAi,
                many.as_bytes(),
                "openai is not what such a server sends: it says more than 4096 things, or a member is of another kind than is \
                 known",
            ),
        ] {
            let (before, margin) = (Progress::NONE, Margin::default());
            let shown = String::from_utf8_lossy(payload);
            assert!(read((form, payload), &before, false, &margin).is_err(), "{shown:.200}");
            assert_eq!(defect(form, payload), expected, "{shown:.200}");
        }
    }
}
