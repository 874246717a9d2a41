//! What the field `openai` may hold: which of the forms it is.

use super::{Draft, chat, end, error, responses};
use crate::event::Event;
use crate::json;

/// The last word of chat completions.
const DONE: &str = "[DONE]";

pub(super) fn read<'a>(text: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    if text == DONE {
        return draft.say(end(draft.before));
    }
    let text = text.trim_matches(json::BLANKS);
    let [kind, object, choices, failure, usage, groq] =
        json::members(text, ["type", "object", "choices", "error", "usage", "x_groq"])?;
    if let Some(choices) = choices {
        let groq = groq.and_then(|groq| json::members(groq, ["usage", "error"]));
        let [their_usage, their_failure] = groq.unwrap_or_default();
        return chat::read(text, draft, (choices, usage.or(their_usage), failure.or(their_failure)));
    }
    let object = object.and_then(json::string);
    if object == Some("error") && failure.is_none() {
        return draft.say(error(text)?);
    }
    if let Some(kind) = kind.filter(|kind| failure.is_none() || kind.starts_with("\"response.")) {
        return responses::read(&json::unescape(json::string(kind)?)?, text, draft);
    }
    if let Some(failure) = failure {
        return draft.say(error(failure)?);
    }
    match object {
        // One that has nothing to say but, perhaps, what the answer took.
        Some("chat.completion.chunk") => {
            draft.keep_usage(usage);
            Some(())
        }
        _ => draft.say(Event::Custom { data: text }),
    }
}
