//! Why an entry is malformed, as a message for its author. Runs only after the entry was found to be malformed.
//!
//! The message says where the defect is, never what is there: it contains names of known members and indexes, but no
//! values.

use serde_json::value::RawValue;

use super::{EVENTS_PER_ENTRY_MAX, Form, Malformed};
use crate::json;
use crate::model::LABEL_BYTES_MAX;

/// The most elements of each list that are checked.
const ELEMENTS_MAX: usize = 64;
/// How lines of an event stream begin.
const LINES: [&str; 4] = ["data:", "event:", "id:", ":"];

/// The types that a member may have. Each of them may be `null`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    /// A text of at most [`LABEL_BYTES_MAX`].
    Label,
    /// A text or a number.
    Id,
    /// A text or a number of at most [`LABEL_BYTES_MAX`].
    CallId,
    Number,
    Object,
    /// An object, or an empty list, as PHP writes it.
    Delta,
    List,
    TextOrList,
    TextOrObject,
}

/// Known members of one kind of event, by path, with the types without which the event cannot be read.
type Known = &'static [(&'static str, Kind)];

const CHAT: Known = &[
    ("choices", Kind::List),
    ("choices[]", Kind::Object),
    ("choices[].index", Kind::Number),
    ("choices[].finish_reason", Kind::Text),
    ("choices[].delta", Kind::Delta),
    ("choices[].delta.content", Kind::TextOrList),
    ("choices[].delta.content[]", Kind::Object),
    ("choices[].delta.content[].text", Kind::Text),
    ("choices[].delta.content[].thinking", Kind::TextOrList),
    ("choices[].delta.content[].thinking[]", Kind::Object),
    ("choices[].delta.content[].thinking[].text", Kind::Text),
    ("choices[].delta.reasoning_content", Kind::Text),
    ("choices[].delta.reasoning", Kind::Text),
    ("choices[].delta.refusal", Kind::Text),
    ("choices[].delta.tool_calls", Kind::List),
    ("choices[].delta.tool_calls[]", Kind::Object),
    ("choices[].delta.tool_calls[].index", Kind::Number),
    ("choices[].delta.tool_calls[].id", Kind::CallId),
    ("choices[].delta.tool_calls[].function", Kind::Object),
    ("choices[].delta.tool_calls[].function.name", Kind::Label),
    ("choices[].delta.tool_calls[].function.arguments", Kind::TextOrObject),
    ("choices[].delta.function_call", Kind::Object),
    ("choices[].delta.function_call.name", Kind::Label),
    ("choices[].delta.function_call.arguments", Kind::TextOrObject),
];
const RESPONSES: Known = &[
    ("type", Kind::Text),
    ("delta", Kind::Text),
    ("text", Kind::Text),
    ("refusal", Kind::Text),
    ("name", Kind::Label),
    ("arguments", Kind::TextOrObject),
    ("output_index", Kind::Number),
    ("content_index", Kind::Number),
    ("summary_index", Kind::Number),
    ("item_id", Kind::Id),
    ("item", Kind::Object),
    ("item.call_id", Kind::CallId),
    ("item.name", Kind::Label),
    ("item.arguments", Kind::TextOrObject),
    ("response", Kind::Object),
    ("response.id", Kind::Id),
    ("response.status", Kind::Text),
    ("response.incomplete_details.reason", Kind::Text),
];
const MESSAGES: Known = &[
    ("type", Kind::Text),
    ("index", Kind::Number),
    ("message", Kind::Object),
    ("message.id", Kind::Id),
    ("message.content[]", Kind::Object),
    ("message.content[].text", Kind::Text),
    ("message.content[].thinking", Kind::Text),
    ("message.content[].id", Kind::CallId),
    ("message.content[].name", Kind::Label),
    ("content_block", Kind::Object),
    ("content_block.text", Kind::Text),
    ("content_block.thinking", Kind::Text),
    ("content_block.id", Kind::CallId),
    ("content_block.name", Kind::Label),
    ("delta", Kind::Object),
    ("delta.text", Kind::Text),
    ("delta.thinking", Kind::Text),
    ("delta.partial_json", Kind::Text),
    ("delta.stop_reason", Kind::Text),
];

/// Members that an event of a type requires. For an Anthropic delta, by the delta's own type.
const REQUIRED: [(&str, &str); 9] = [
    ("response.output_text.delta", "delta"),
    ("response.refusal.delta", "delta"),
    ("response.reasoning_text.delta", "delta"),
    ("response.reasoning_summary_text.delta", "delta"),
    ("response.function_call_arguments.delta", "delta"),
    ("response.output_item.added", "item"),
    ("response.output_item.done", "item"),
    ("content_block_start", "content_block"),
    ("content_block_delta", "delta"),
];
const REQUIRED_OF_DELTA: [(&str, &str); 3] =
    [("text_delta", "text"), ("thinking_delta", "thinking"), ("input_json_delta", "partial_json")];

/// Describes the defect of an entry that could not be read.
#[must_use]
pub fn defect(form: Form, bytes: &[u8], malformed: Malformed) -> String {
    let field = form.field();
    if malformed == Malformed::TooMuch {
        return format!("{field} has more than {EVENTS_PER_ENTRY_MAX} events");
    }
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
    let defect = in_object(text, form);
    let defect = defect.as_deref().unwrap_or("a member has an unexpected type");
    format!("{field} is not what such a server sends: {defect}")
}

/// The forms of a field, for authors who wrote something else.
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
    let [kind_of_event, choices, failure, delta] =
        json::members(object, ["type", "choices", "error", "delta"])?;
    if form == Form::Anthropic && kind_of_event.is_none() && failure.is_none() {
        return Some("type is missing".to_owned());
    }
    let known = match form {
        Form::OpenAi if choices.is_some() => CHAT,
        Form::OpenAi => RESPONSES,
        Form::Anthropic => MESSAGES,
    };
    let found = Search { known, path: String::new(), shape: String::new() }.in_members(object);
    let of_event = || missing(object, kind_of_event, &REQUIRED).map(|member| format!("{member} is missing"));
    let of_delta = || {
        let delta = delta.filter(|_| form == Form::Anthropic)?;
        let [kind_of_delta] = json::members(delta, ["type"])?;
        missing(delta, kind_of_delta, &REQUIRED_OF_DELTA).map(|member| format!("delta.{member} is missing"))
    };
    found.or_else(of_event).or_else(of_delta)
}

/// The member that an object of this type requires and does not have.
fn missing(object: &str, kind: Option<&str>, required: &[(&str, &'static str)]) -> Option<&'static str> {
    let kind = kind.and_then(json::string)?;
    let (_, member) = required.iter().find(|(needs, _)| json::same(needs, kind))?;
    let [found] = json::members(object, [*member])?;
    found.is_none().then_some(*member)
}

/// Searches for the first member with an unknown type.
struct Search {
    known: Known,
    /// The path of the current value: `choices[0].delta`.
    path: String,
    /// The path without indexes: `choices[].delta`.
    shape: String,
}

impl Search {
    fn in_members(&mut self, object: &str) -> Option<String> {
        let mut found = None;
        json::each_member(object, |name, raw| {
            if found.is_none() && raw != "null" {
                let dot = if self.path.is_empty() { "" } else { "." };
                let step = format!("{dot}{name}");
                found = self.at(&step, &step, raw);
            }
        });
        found
    }

    /// Checks a value one step deeper.
    fn at(&mut self, step: &str, shape_step: &str, raw: &str) -> Option<String> {
        let (path_len, shape_len) = (self.path.len(), self.shape.len());
        self.path.push_str(step);
        self.shape.push_str(shape_step);
        let found = self.in_value(raw);
        self.path.truncate(path_len);
        self.shape.truncate(shape_len);
        found
    }

    fn in_value(&mut self, raw: &str) -> Option<String> {
        let known = self.known.iter().find(|(shape, _)| *shape == self.shape);
        if let Some(flaw) = known.and_then(|(_, kind)| kind.flaw(raw)) {
            return Some(format!("{} {flaw}", self.path));
        }
        let rest = |shape: &&str| shape.strip_prefix(&*self.shape).and_then(|rest| rest.chars().next());
        let has_more =
            |mark| self.known.iter().filter_map(|(shape, _)| rest(shape)).any(|first| first == mark);
        match raw.as_bytes().first() {
            Some(b'{') if has_more('.') => self.in_members(raw),
            Some(b'[') if has_more('[') => {
                let elements = json::elements(raw).unwrap_or_default();
                let mut elements = elements.into_iter().take(ELEMENTS_MAX);
                elements.find_map(|(place, element)| self.at(&format!("[{place}]"), "[]", element))
            }
            _ => None,
        }
    }
}

impl Kind {
    /// The defect of a value, as text that follows its name.
    fn flaw(self, raw: &str) -> Option<String> {
        let first = raw.as_bytes().first().copied().unwrap_or_default();
        let is_number = first == b'-' || first.is_ascii_digit();
        let (fits, wanted) = match self {
            Self::Text | Self::Label => (first == b'"', "a text"),
            Self::Id | Self::CallId => (first == b'"' || is_number, "a text or a number"),
            Self::Number if is_number => {
                return json::unsigned(raw).is_none().then(|| "is not an unsigned number".to_owned());
            }
            Self::Number => (false, "an unsigned number"),
            Self::Object => (first == b'{', "an object"),
            Self::Delta => (first == b'{' || raw == "[]", "an object"),
            Self::List => (first == b'[', "a list"),
            Self::TextOrList => (first == b'"' || first == b'[', "a text or a list"),
            Self::TextOrObject => (first == b'"' || first == b'{', "a text or an object"),
        };
        if !fits {
            return Some(format!("is {}, not {wanted}", kind(raw)));
        }
        let is_short = |text: &str| json::unescape(text).is_some_and(|text| text.len() <= LABEL_BYTES_MAX);
        match json::string(raw) {
            Some(text) if !json::surrogates_are_paired(text) => Some("has a lone surrogate".to_owned()),
            None if self != Self::CallId => None,
            text if matches!(self, Self::Label | Self::CallId) && !is_short(text.unwrap_or(raw)) => {
                Some(format!("is longer than {LABEL_BYTES_MAX} bytes"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Margin, read};
    use super::*;
    use crate::model::Progress;

    #[test]
    fn the_defect_and_its_place_are_named() {
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
            (Form::OpenAi, many.as_bytes(), "openai has more than 4096 events"),
        ] {
            let (before, margin) = (Progress::NONE, Margin::default());
            let shown = String::from_utf8_lossy(payload);
            let malformed = read((form, payload), &before, false, &margin).unwrap_err();
            assert_eq!(defect(form, payload, malformed), expected, "{shown:.200}");
        }
    }

    /// Each payload is malformed, and the message says where.
    fn check(form: Form, cases: &[(&str, &str)]) {
        for (payload, expected) in cases {
            let (before, margin) = (Progress::NONE, Margin::default());
            let malformed = read((form, payload.as_bytes()), &before, false, &margin).unwrap_err();
            let message = defect(form, payload.as_bytes(), malformed);
            assert_eq!(message.split_once(": ").map(|(_, defect)| defect), Some(*expected), "{payload}");
        }
    }

    #[test]
    fn the_member_of_a_chat_that_is_of_another_kind_is_named() {
        check(
            Form::OpenAi,
            &[
                (r#"{"choices":[7]}"#, "choices[0] is a number, not an object"),
                (
                    r#"{"choices":[{"stop_reason":5,"delta":[1]}]}"#,
                    "choices[0].delta is a list, not an object",
                ),
                (
                    r#"{"choices":[{"delta":{"content":true}}]}"#,
                    "choices[0].delta.content is a truth value, not a text or a list",
                ),
                (
                    r#"{"choices":[{"delta":{"content":[null,"x"]}}]}"#,
                    "choices[0].delta.content[1] is a text, not an object",
                ),
                (
                    r#"{"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":1}]}]}}]}"#,
                    "choices[0].delta.content[0].thinking[0].text is a number, not a text",
                ),
                (
                    r#"{"choices":[{"delta":{"tool_calls":{}}}]}"#,
                    "choices[0].delta.tool_calls is an object, not a list",
                ),
                (
                    r#"{"choices":[{"delta":{"tool_calls":[{"index":"0"}]}}]}"#,
                    "choices[0].delta.tool_calls[0].index is a text, not an unsigned number",
                ),
                (
                    r#"{"choices":[{"delta":{"tool_calls":[{"id":{}}]}}]}"#,
                    "choices[0].delta.tool_calls[0].id is an object, not a text or a number",
                ),
                (
                    r#"{"choices":[{"delta":{"tool_calls":[{"function":"f"}]}}]}"#,
                    "choices[0].delta.tool_calls[0].function is a text, not an object",
                ),
                (
                    r#"{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":[]}}]}}]}"#,
                    "choices[0].delta.tool_calls[0].function.arguments is a list, not a text or an object",
                ),
                (
                    r#"{"choices":[{"delta":{},"finish_reason":1}]}"#,
                    "choices[0].finish_reason is a number, not a text",
                ),
            ],
        );
    }

    #[test]
    fn the_member_of_an_event_that_is_missing_or_of_another_kind_is_named() {
        check(
            Form::OpenAi,
            &[
                (r#"{"type":5}"#, "type is a number, not a text"),
                (r#"{"type":"response.output_text.delta"}"#, "delta is missing"),
                (r#"{"type":"response.output_text.delta","delta":{}}"#, "delta is an object, not a text"),
                (r#"{"type":"response.output_item.added","item":[]}"#, "item is a list, not an object"),
                (r#"{"type":"response.output_item.done"}"#, "item is missing"),
                (r#"{"type":"response.completed","response":"x"}"#, "response is a text, not an object"),
            ],
        );
        check(
            Form::Anthropic,
            &[
                (
                    r#"{"type":"message_start","message":{"content":[5]}}"#,
                    "message.content[0] is a number, not an object",
                ),
                (r#"{"type":"content_block_start","index":0}"#, "content_block is missing"),
                (r#"{"type":"content_block_delta","index":0}"#, "delta is missing"),
                (r#"{"type":"content_block_delta","delta":"x"}"#, "delta is a text, not an object"),
                (r#"{"type":"content_block_delta","delta":{"type":"text_delta"}}"#, "delta.text is missing"),
                (
                    r#"{"type":"message_delta","delta":{"stop_reason":1}}"#,
                    "delta.stop_reason is a number, not a text",
                ),
            ],
        );
    }
}
