//! Distinguishes the forms that the field `openai` may hold.

use super::draft::Draft;
use super::failure::error;
use super::{chat, end, responses};
use crate::json;
use crate::model::Event;

/// The final payload of chat completions.
const DONE: &str = "[DONE]";

pub(super) fn read<'a>(text: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let text = text.trim_matches(json::BLANKS);
    if text == DONE {
        return draft.emit(end(draft.before));
    }
    let names = ["type", "object", "choices", "error", "usage", "x_groq"];
    let ([kind, object, choices, failure, usage, groq], has_rest) =
        json::members_and_rest(text, names, &chat::CHUNK_FRAMING)?;
    let failure = failure.filter(|failure| json::has_value(failure));
    if let Some(choices) = choices {
        let groq = groq.filter(|groq| groq.starts_with('{'));
        let groq = groq.and_then(|groq| json::members(groq, ["usage", "error"]));
        let [their_usage, their_failure] = groq.unwrap_or_default();
        let their_failure = their_failure.filter(|failure| json::has_value(failure));
        return chat::read(
            text,
            draft,
            (Some(choices), usage.or(their_usage), failure.or(their_failure)),
            has_rest,
        );
    }
    let object = object.and_then(json::string);
    if object == Some("error") && failure.is_none() {
        let event = error(text, "", draft);
        return draft.emit(event);
    }
    if let Some(kind) = kind.filter(|kind| failure.is_none() || kind.starts_with("\"response.")) {
        responses::read(&json::unescape(json::string(kind)?)?, text, draft)?;
        // The answer has both ended and failed.
        return match failure.filter(|_| !draft.is_over()) {
            Some(failure) => {
                let event = error(failure, text, draft);
                draft.emit(event)
            }
            None => Some(()),
        };
    }
    if let Some(failure) = failure {
        let event = error(failure, text, draft);
        return draft.emit(event);
    }
    match object {
        // A chunk without content, except perhaps token counts.
        Some("chat.completion.chunk") => chat::read(text, draft, (None, usage, None), has_rest),
        _ => draft.emit(Event::Custom { data: text }),
    }
}
