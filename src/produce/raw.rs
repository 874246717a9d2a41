//! Derives the state of a generation from a provider's raw events: whether viewers have seen anything, whether it has
//! ended, and its finish reason and usage if the provider sends no end. Pure.
//!
//! The events themselves are passed on byte for byte. They are decoded here as in the transform threads, so that a
//! producer and its viewers agree on what viewers have seen. An event that cannot be decoded is passed on too:
//! viewers get a `skipped` frame, and the answer continues.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::words::one_line;
use super::{Failure, Form};
use crate::json;
use crate::model::{Event, Progress};
pub(super) use crate::provider::PROVIDER_ERROR;
use crate::provider::{self, Margin};

/// The meaning of one event for its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It frames others and is not shown, so an answer that fails after it can be started over without anyone
    /// noticing.
    Framing,
    /// It frames others too, and can only belong to the next answer.
    Opening,
    /// Viewers see something of it, now or later.
    Content,
    /// It ends the generation.
    Terminal,
}

/// Reads the events of one answer after another.
#[derive(Clone, Debug, PartialEq)]
pub struct Story {
    form: Form,
    progress: Arc<Progress>,
    /// Whether an answer has ended and no other has begun.
    follows_end: bool,
    /// The error that ended the last answer.
    failure: Option<Failure>,
}

impl Story {
    /// The reader for answers in this form.
    #[must_use]
    pub fn new(form: Form) -> Self {
        Self { form, progress: Arc::default(), follows_end: false, failure: None }
    }

    /// The form of the answers.
    #[must_use]
    pub const fn form(&self) -> Form {
        self.form
    }

    /// Why the answer ended, once only its final event is missing.
    #[must_use]
    pub fn finish_reason(&self) -> Option<String> {
        let reason = self.progress.finish_reason().filter(|_| self.progress.is_finishing())?;
        json::unescape(reason).map(Into::into)
    }

    /// The token counts so far.
    #[must_use]
    pub fn usage(&self) -> Option<Map<String, Value>> {
        serde_json::from_str(self.progress.usage.as_deref()?).ok()
    }

    /// Whether an answer has ended and no other has begun.
    #[must_use]
    pub const fn follows_end(&self) -> bool {
        self.follows_end
    }

    /// The error that ended the last answer, until the next one begins.
    #[must_use]
    pub const fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Ends the answer without an event.
    pub fn end(&mut self) {
        *self = Self { follows_end: true, ..Self::new(self.form) };
    }

    /// Reads an event and returns its meaning. After a terminal one the next answer begins.
    pub fn read(&mut self, payload: &str) -> Meaning {
        let form = match self.form {
            Form::Anthropic => provider::Form::Anthropic,
            Form::OpenAi | Form::Native => provider::Form::OpenAi,
        };
        let margin = Margin::default();
        let raw = (form, payload.as_bytes());
        let Ok(mut decoded) = provider::read(raw, &self.progress, self.follows_end, &margin) else {
            return Meaning::Framing;
        };
        let (is_terminal, has_events) =
            (decoded.events().any(|event| event.is_terminal()), !decoded.is_empty());
        let failure = decoded.events().find_map(|event| failure_of(&event));
        let changed = decoded.take_progress();
        // A tool call that has begun has its number, whether anything of it was emitted yet or not.
        let begins_call = changed.as_ref().is_some_and(|changed| changed.calls > self.progress.calls);
        let meaning = match (&changed, self.follows_end) {
            _ if is_terminal => Meaning::Terminal,
            _ if has_events || begins_call => Meaning::Content,
            (Some(_), true) => Meaning::Opening,
            _ => Meaning::Framing,
        };
        if let Some(changed) = changed {
            self.progress = changed;
        }
        match meaning {
            Meaning::Terminal => {
                self.end();
                self.failure = failure;
            }
            Meaning::Opening | Meaning::Content => {
                self.follows_end = false;
                self.failure = None;
            }
            Meaning::Framing => {}
        }
        meaning
    }
}

/// The form of a payload, if it fits only one.
#[must_use]
pub fn form_of(payload: &str) -> Option<Form> {
    if is_done(payload) {
        return Some(Form::OpenAi);
    }
    let [kind, choices, object, error] = json::members(payload, ["type", "choices", "object", "error"])?;
    if choices.is_some() || object.is_some() || (kind.is_none() && error.is_some()) {
        return Some(Form::OpenAi);
    }
    let kind = json::unescape(json::string(kind?)?)?;
    match &*kind {
        "ping" | "message_start" | "message_delta" | "message_stop" => Some(Form::Anthropic),
        kind if kind.starts_with("content_block_") => Some(Form::Anthropic),
        kind if kind.starts_with("response.") => Some(Form::OpenAi),
        _ => None,
    }
}

/// The error in a payload of an OpenAI-compatible server.
pub(super) fn failure_in(payload: &str) -> Option<Failure> {
    let mut story = Story::new(Form::OpenAi);
    story.read(payload);
    story.failure
}

fn failure_of(event: &Event<'_>) -> Option<Failure> {
    let Event::Error { code, message } = event else { return None };
    // For our own messages; the stream has the original text.
    let text = |escaped| one_line(&json::unescape(escaped).unwrap_or_default());
    Some(Failure { code: text(code).into(), message: message.map(text).unwrap_or_default() })
}

/// Whether a payload is complete: an object, or the literal end of a chat.
#[must_use]
pub fn is_whole(payload: &str) -> bool {
    let payload = payload.trim();
    is_done(payload) || serde_json::from_str::<Map<String, Value>>(payload).is_ok()
}

fn is_done(payload: &str) -> bool {
    payload == "[DONE]"
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
                r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c"}]}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"reasoning_details":[{"data":"x"}]}}]}"#,
                r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
                r#"{"choices":[],"usage":{"total_tokens":3}}"#,
                "not JSON",
            ],
        );
        assert_eq!(seen, [Framing, Content, Content, Content, Framing, Framing, Framing]);
        assert_eq!(story.finish_reason().as_deref(), Some("length"));
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
                r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}"#,
                r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9}}"#,
                "[DONE]",
            ],
        );
        assert_eq!(seen, [Framing, Framing, Framing, Content, Framing, Framing]);
        assert_eq!(story.finish_reason().as_deref(), Some("end_turn"));
        let usage = story.usage().unwrap();
        assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&5.into(), &9.into()));
        assert_eq!(story.read(r#"{"type":"message_stop"}"#), Terminal);
        assert_eq!(story.read(r#"{"type":"error","error":{}}"#), Terminal);
    }

    #[test]
    fn an_answer_has_finished_when_all_its_choices_have() {
        let choice = |index: u32, rest: &str| format!(r#"{{"choices":[{{"index":{index},{rest}}}]}}"#);
        let mut story = Story::new(Form::OpenAi);
        story.read(&choice(0, r#""delta":{"content":"a"}"#));
        story.read(&choice(1, r#""delta":{"content":"b"}"#));
        story.read(&choice(0, r#""delta":{},"finish_reason":"stop""#));
        assert_eq!(story.finish_reason(), None);
        story.read(&choice(1, r#""delta":{},"finish_reason":"len\u0067th""#));
        assert_eq!(story.finish_reason().as_deref(), Some("stop"));
        story.read(&choice(0, r#""delta":{},"finish_reason":"len\u0067th""#));
        assert_eq!(story.finish_reason().as_deref(), Some("length"));
    }

    #[test]
    fn openings_of_the_next_answer_are_distinguished_from_late_events() {
        use Meaning::{Content, Framing, Opening, Terminal};
        let (_, seen) = meanings(
            Form::Anthropic,
            &[
                r#"{"type":"message_stop"}"#,
                r#"{"type":"message_delta","delta":{"stop_reason":"late"},"usage":{"output_tokens":1}}"#,
                r#"{"type":"message_start","message":{"usage":{"input_tokens":5}}}"#,
                r#"{"type":"content_block_start","content_block":{"type":"tool_use","id":"c"}}"#,
            ],
        );
        assert_eq!(seen, [Terminal, Framing, Opening, Content]);
    }

    #[test]
    fn a_cut_payload_is_distinguished_from_a_whole_one() {
        assert!(is_whole("[DONE]") && is_whole(r#"{"a":1}"#));
        assert!(!is_whole(r#"{"a":1"#) && !is_whole("[DON") && !is_whole("7"));
    }
}
