//! Converts the body of a model server's answer into raw entries. Pure.
//!
//! The bytes are parsed as Server-Sent Events. Each event's data is passed on byte for byte, with its meaning for the
//! generation. An event of the type `error` is a failure whatever its data is; if the data alone does not show that,
//! it is reported as [`ProviderEvent::Failed`]. If a body has no event, [`ProviderEvents::foreign`] describes what it
//! is instead.

use std::time::Instant;

use super::preamble::Preamble;
use super::raw::{self, Meaning, Story};
use super::sse::{SseError, SseEvent, SseParser};
use super::words::{one_line, own_words};
use super::{Failure, Form, Record};

/// The expected form of the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedForm {
    /// This form, as configured.
    Fixed(Form),
    /// The form of the first event; this one if that event fits both.
    FirstEvent(Form),
}

impl ExpectedForm {
    /// The form that is assumed until an event arrives.
    #[must_use]
    pub const fn likely(self) -> Form {
        match self {
            Self::Fixed(form) | Self::FirstEvent(form) => form,
        }
    }
}

/// The result of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderEvent {
    /// An entry, and its meaning for the generation.
    Raw(Record, Meaning),
    /// The server failed; its message is not in the form of an entry.
    Failed(Failure),
}

/// Reads one body in pieces.
#[derive(Debug)]
pub struct ProviderEvents {
    parser: SseParser,
    preamble: Preamble,
    expected: ExpectedForm,
    story: Story,
    /// The number of events with data so far.
    count: u64,
}

impl ProviderEvents {
    /// A body of which nothing has arrived.
    #[must_use]
    pub fn new(expected: ExpectedForm) -> Self {
        let story = Story::new(expected.likely());
        Self { parser: SseParser::default(), preamble: Preamble::default(), expected, story, count: 0 }
    }

    /// Takes the next bytes; [`ProviderEvents::next`] returns the events that they complete.
    ///
    /// # Errors
    /// If a line or an event is too long. The events that were complete before can still be read.
    pub fn push(&mut self, bytes: &[u8], now: Instant) -> Result<(), SseError> {
        if self.count == 0 {
            self.preamble.push(bytes, now);
            if self.preamble.has_foreign() {
                return Ok(());
            }
        }
        self.parser.push(bytes)
    }

    /// The result of the next complete event; `None` until more bytes arrive.
    #[allow(clippy::should_implement_trait, reason = "after None more may come with the next bytes")]
    pub fn next(&mut self) -> Option<ProviderEvent> {
        loop {
            let event = self.parser.next()?;
            if let Some(after) = self.interpret(&event) {
                return Some(after);
            }
        }
    }

    /// The result of an event that the end of the body cut off, if its data is complete.
    ///
    /// # Errors
    /// If it is too long.
    pub fn finish(&mut self) -> Result<Option<ProviderEvent>, SseError> {
        if self.preamble.has_foreign() {
            return Ok(None);
        }
        let cut = self.parser.finish()?;
        Ok(cut
            .filter(|event| raw::is_whole(&event.data) || is_error(event))
            .and_then(|event| self.interpret(&event)))
    }

    /// Describes the body once it is certain that it is not an event stream.
    #[must_use]
    pub fn foreign(&self, now: Instant) -> Option<String> {
        (self.count == 0 && self.preamble.is_foreign(now)).then(|| self.preamble.describe())
    }

    /// Describes a body that ended without an event; `None` if there was one.
    #[must_use]
    pub fn came_instead(&self) -> Option<String> {
        (self.count == 0).then(|| self.preamble.describe())
    }

    /// Whether the body has content that is not an event stream.
    #[must_use]
    pub const fn has_foreign(&self) -> bool {
        self.preamble.has_foreign()
    }

    /// The number of events with data.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The state of the answer after the events so far.
    #[must_use]
    pub const fn story(&self) -> &Story {
        &self.story
    }

    fn interpret(&mut self, event: &SseEvent) -> Option<ProviderEvent> {
        // White space around an object has no meaning, and around `[DONE]` it would make it a different text.
        let payload = event.data.trim();
        // An event without data keeps a connection alive.
        if payload.is_empty() {
            return None;
        }
        if self.count == 0
            && let ExpectedForm::FirstEvent(_) = self.expected
            && let Some(form) = raw::form_of(payload)
        {
            self.story = Story::new(form);
        }
        self.count += 1;
        let follows_end = self.story.follows_end();
        if !is_error(event) {
            return Some(self.raw(payload));
        }
        let mut after = self.story.clone();
        match after.read(payload) {
            Meaning::Terminal if after.failure().is_some() => Some(self.raw(payload)),
            // A second report of a failure, or a late one: it belongs to the answer that has ended.
            _ if follows_end => None,
            _ => {
                self.story.end();
                Some(ProviderEvent::Failed(failure(payload)))
            }
        }
    }

    fn raw(&mut self, payload: &str) -> ProviderEvent {
        let meaning = self.story.read(payload);
        ProviderEvent::Raw(Record { form: self.story.form(), json: payload.to_owned() }, meaning)
    }
}

fn is_error(event: &SseEvent) -> bool {
    event.event == "error" && !event.data.trim().is_empty()
}

/// Reads the failure from the data of an `error` event.
fn failure(payload: &str) -> Failure {
    let object = payload.starts_with('{').then(|| raw::failure_in(&format!(r#"{{"error":{payload}}}"#)));
    let (code, words) =
        object.flatten().map_or((None, None), |failure| (Some(failure.code), Some(failure.message)));
    let message = words.filter(|words| !words.is_empty()).unwrap_or_else(|| own_words(payload));
    Failure { code: code.unwrap_or_else(|| raw::PROVIDER_ERROR.into()), message: one_line(&message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interpreted(expected: ExpectedForm, body: &str) -> (Vec<ProviderEvent>, ProviderEvents) {
        let mut events = ProviderEvents::new(expected);
        events.push(body.as_bytes(), Instant::now()).unwrap();
        let mut results: Vec<ProviderEvent> = std::iter::from_fn(|| events.next()).collect();
        results.extend(events.finish().unwrap());
        (results, events)
    }

    fn failed(code: &'static str, message: &str) -> ProviderEvent {
        ProviderEvent::Failed(Failure { code: code.into(), message: message.into() })
    }

    const EITHER: ExpectedForm = ExpectedForm::FirstEvent(Form::OpenAi);

    #[test]
    fn an_error_event_is_a_failure_whatever_its_data_is() {
        for (data, expected) in [
            ("quota exceeded", failed("provider_error", "quota exceeded")),
            (r#"{"message":"boom","code":"overloaded"}"#, failed("overloaded", "boom")),
            (r#"{"detail":"boom"}"#, failed("provider_error", "boom")),
            ("[1]", failed("provider_error", "[1]")),
            ("[DONE]", failed("provider_error", "[DONE]")),
            (
                r#"{"choices":[{"delta":{"content":"a"}}]}"#,
                failed("provider_error", r#"{"choices":[{"delta":{"content":"a"}}]}"#),
            ),
        ] {
            for end in ["\n\n", ""] {
                let (results, events) = interpreted(EITHER, &format!("event: error\ndata: {data}{end}"));
                assert_eq!(results, std::slice::from_ref(&expected), "{data}");
                assert_eq!(events.count(), 1);
            }
        }
        // If the data shows the failure itself, it is passed on unchanged.
        for data in [r#"{"error":{"message":"m"}}"#, r#"{"type":"error","error":{"type":"t","message":"m"}}"#]
        {
            let (results, events) = interpreted(EITHER, &format!("event: error\ndata: {data}\n\n"));
            let ProviderEvent::Raw(record, Meaning::Terminal) = &results[0] else { panic!("{results:?}") };
            assert_eq!(record.json, data);
            assert_eq!(events.story().failure().unwrap().message, "m");
        }
        let (_, events) =
            interpreted(EITHER, &format!("data: {{\"error\":\"{}\\u001b\\n\"}}\n\n", "long ".repeat(9_000)));
        let words = &events.story().failure().unwrap().message;
        assert!(words.len() < 2_000 && !words.contains(crate::visible::is_control), "{words}");
        // An error event after the end belongs to the answer that has ended.
        let (results, _) =
            interpreted(EITHER, "data: [DONE]\n\nevent: error\ndata: late\n\nevent: error\ndata:\n\n");
        assert_eq!(results.len(), 1);
    }

    #[test]
    fn the_first_event_determines_the_form() {
        let form = |expected, data: &str| {
            let (results, _) = interpreted(expected, &format!(": hi\n\ndata: {data}\n\ndata: {data}\n\n"));
            let ProviderEvent::Raw(record, _) = &results[1] else { panic!("{results:?}") };
            record.form
        };
        let messages = r#"{"type":"message_start","message":{}}"#;
        let chat = r#"{"choices":[{"delta":{"content":"a"}}]}"#;
        assert_eq!(form(EITHER, messages), Form::Anthropic);
        assert_eq!(form(ExpectedForm::FirstEvent(Form::Anthropic), chat), Form::OpenAi);
        assert_eq!(form(ExpectedForm::FirstEvent(Form::Anthropic), r#"{"type":"x"}"#), Form::Anthropic);
        assert_eq!(form(EITHER, r#"{"type":"response.created","response":{}}"#), Form::OpenAi);
        assert_eq!(
            form(ExpectedForm::FirstEvent(Form::Anthropic), r#"{"error":{"message":"m"}}"#),
            Form::OpenAi
        );
        assert_eq!(form(ExpectedForm::Fixed(Form::OpenAi), messages), Form::OpenAi);
        assert_eq!(form(ExpectedForm::Fixed(Form::Anthropic), chat), Form::Anthropic);
    }

    #[test]
    fn a_body_without_events_is_described() {
        let (results, events) = interpreted(EITHER, r#"{"error":{"message":"no key"}}"#);
        assert!(results.is_empty());
        assert_eq!(events.foreign(Instant::now()).as_deref(), Some("no key"));
        let (_, events) = interpreted(EITHER, ": hi\n\n");
        assert_eq!((events.foreign(Instant::now()), events.has_foreign()), (None, false));
        assert!(events.came_instead().unwrap().contains("only: : hi"));
        let (_, events) = interpreted(EITHER, "data: [DONE]\n\n{\n");
        assert_eq!((events.foreign(Instant::now()), events.came_instead()), (None, None));
    }
}
