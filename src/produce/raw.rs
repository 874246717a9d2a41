//! What a provider's raw events mean for the life of a generation: whether a token came, whether it is over,
//! and what its end has to say where the provider leaves it unsaid. Pure.
//!
//! The events themselves are passed on byte for byte; decoding them is the transform's business. What cannot be
//! understood here is passed on too: readers are told of it by a `skipped` frame, and the answer goes on.

use serde_json::{Map, Value};

use super::Form;

/// What one event means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It frames others: nobody sees it, and an answer that failed behind it can be begun anew unnoticed.
    Framing,
    /// Viewers see something of it.
    Content,
    /// It ends the generation.
    Terminal,
}

/// The names under which chat chunks carry something to see.
const CHAT_CONTENT: [&str; 6] =
    ["content", "reasoning", "reasoning_content", "refusal", "tool_calls", "function_call"];

/// Reads the events of one answer after another.
#[derive(Clone, Debug, PartialEq)]
pub struct Story {
    form: Form,
    finish_reason: Option<String>,
    usage: Option<Map<String, Value>>,
}

impl Story {
    /// The story of answers in this form.
    #[must_use]
    pub const fn new(form: Form) -> Self {
        Self { form, finish_reason: None, usage: None }
    }

    /// The form of the answers.
    #[must_use]
    pub const fn form(&self) -> Form {
        self.form
    }

    /// Why the answer came to its end, as far as it said so.
    #[must_use]
    pub fn finish_reason(&self) -> Option<&str> {
        self.finish_reason.as_deref()
    }

    /// The token counts, as far as they came.
    #[must_use]
    pub const fn usage(&self) -> Option<&Map<String, Value>> {
        self.usage.as_ref()
    }

    /// What the event means. After a terminal one the next answer begins.
    pub fn read(&mut self, payload: &str) -> Meaning {
        let meaning = match serde_json::from_str(payload) {
            Ok(Value::Object(event)) if self.form == Form::Anthropic => self.anthropic(&event),
            Ok(Value::Object(event)) => self.openai(&event),
            _ if self.form == Form::OpenAi && is_done(payload) => Meaning::Terminal,
            _ => Meaning::Framing,
        };
        if meaning == Meaning::Terminal {
            *self = Self::new(self.form);
        }
        meaning
    }

    fn openai(&mut self, event: &Map<String, Value>) -> Meaning {
        if event.get("error").is_some_and(|error| !error.is_null()) {
            return Meaning::Terminal;
        }
        self.add_usage(event.get("usage"));
        match event.get("type").and_then(Value::as_str) {
            Some("error" | "response.completed" | "response.incomplete" | "response.failed") => {
                Meaning::Terminal
            }
            Some("response.created" | "response.queued" | "response.in_progress") => Meaning::Framing,
            Some(_) => Meaning::Content,
            None => self.chat(event.get("choices").and_then(Value::as_array)),
        }
    }

    fn chat(&mut self, choices: Option<&Vec<Value>>) -> Meaning {
        let mut meaning = Meaning::Framing;
        for choice in choices.into_iter().flatten() {
            if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
                self.finish_reason = Some(reason.to_owned());
            }
            let is_said =
                |name: &str| choice.get("delta").and_then(|delta| delta.get(name)).is_some_and(says);
            if CHAT_CONTENT.iter().any(|name| is_said(name)) || choice.get("text").is_some_and(says) {
                meaning = Meaning::Content;
            }
        }
        meaning
    }

    fn anthropic(&mut self, event: &Map<String, Value>) -> Meaning {
        match event.get("type").and_then(Value::as_str) {
            Some("message_stop" | "error") => Meaning::Terminal,
            Some("ping") => Meaning::Framing,
            Some("message_start") => {
                self.add_usage(event.get("message").and_then(|message| message.get("usage")));
                Meaning::Framing
            }
            Some("message_delta") => {
                let reason = event.get("delta").and_then(|delta| delta.get("stop_reason"));
                if let Some(reason) = reason.and_then(Value::as_str) {
                    self.finish_reason = Some(reason.to_owned());
                }
                self.add_usage(event.get("usage"));
                Meaning::Framing
            }
            _ => Meaning::Content,
        }
    }

    fn add_usage(&mut self, usage: Option<&Value>) {
        if let Some(Value::Object(counts)) = usage {
            self.usage.get_or_insert_default().extend(counts.clone());
        }
    }
}

/// Whether a payload is whole: an object, or the literal end of a chat.
#[must_use]
pub fn is_whole(payload: &str) -> bool {
    let payload = payload.trim();
    is_done(payload) || serde_json::from_str::<Map<String, Value>>(payload).is_ok()
}

fn is_done(payload: &str) -> bool {
    payload == "[DONE]"
}

/// Whether there is something to see in a member of a delta.
fn says(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meanings(form: Form, payloads: &[&str]) -> (Story, Vec<Meaning>) {
        let mut story = Story::new(form);
        let meanings = payloads.iter().map(|payload| story.read(payload)).collect();
        (story, meanings)
    }

    #[test]
    fn chats_begin_with_a_token_and_end_when_they_say_so() {
        use Meaning::{Content, Framing, Terminal};
        let (story, seen) = meanings(
            Form::OpenAi,
            &[
                r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0}]}}]}"#,
                r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
                r#"{"choices":[],"usage":{"total_tokens":3}}"#,
                "not JSON",
            ],
        );
        assert_eq!(seen, [Framing, Content, Content, Framing, Framing, Framing]);
        assert_eq!(story.finish_reason(), Some("length"));
        assert_eq!(story.usage().unwrap()["total_tokens"], 3);
        for end in ["[DONE]", r#"{"error":{"message":"m"}}"#, r#"{"type":"response.failed"}"#] {
            let mut ended = story.clone();
            assert_eq!(ended.read(end), Terminal, "{end}");
            assert_eq!((ended.finish_reason(), ended.usage()), (None, None));
        }
        let (_, seen) = meanings(
            Form::OpenAi,
            &[
                r#"{"type":"response.created","response":{"error":null}}"#,
                r#"{"type":"response.output_text.delta","delta":"x"}"#,
                r#"{"type":"response.completed","response":{}}"#,
            ],
        );
        assert_eq!(seen, [Framing, Content, Terminal]);
    }

    #[test]
    fn messages_end_when_they_say_so() {
        use Meaning::{Content, Framing, Terminal};
        let (mut story, seen) = meanings(
            Form::Anthropic,
            &[
                r#"{"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":1}}}"#,
                r#"{"type":"ping"}"#,
                r#"{"type":"content_block_start","content_block":{"type":"text"}}"#,
                r#"{"type":"content_block_delta"}"#,
                r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9}}"#,
                "[DONE]",
            ],
        );
        assert_eq!(seen, [Framing, Framing, Content, Content, Framing, Framing]);
        assert_eq!(story.finish_reason(), Some("end_turn"));
        let usage = story.usage().unwrap();
        assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&5.into(), &9.into()));
        assert_eq!(story.read(r#"{"type":"message_stop"}"#), Terminal);
        assert_eq!(story.read(r#"{"type":"error","error":{}}"#), Terminal);
    }

    #[test]
    fn a_cut_payload_is_told_from_a_whole_one() {
        assert!(is_whole("[DONE]") && is_whole(r#"{"a":1}"#));
        assert!(!is_whole(r#"{"a":1"#) && !is_whole("[DON") && !is_whole("7"));
    }
}
