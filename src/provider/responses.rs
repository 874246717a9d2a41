//! Events of OpenAI's Responses API.
//!
//! Function calls are known by their place in the output, or by their item's id where an event has no place: some
//! servers change the ids from event to event.

use super::{Draft, PROVIDER_ERROR, counts, error, id, text, word};
use crate::event::{BlockKey, Event, Introduction};
use crate::json;

pub(super) fn read<'a>(kind: &str, event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    match kind {
        "response.output_text.delta" => say_delta("content", event, draft),
        "response.reasoning_text.delta" | "response.reasoning_summary_text.delta" => {
            say_delta("reasoning", event, draft)
        }
        "response.refusal.delta" => say_delta("refusal", event, draft),
        "response.function_call_arguments.delta" => {
            let [delta] = json::members(event, ["delta"])?;
            say_arguments(event, text(delta)??, draft)
        }
        "response.function_call_arguments.done" => {
            let [arguments] = json::members(event, ["arguments"])?;
            let arguments = draft.arguments(arguments)?;
            draft.end_block(&key(event, None)?, arguments)
        }
        "response.output_item.added" => begin_item(event, draft),
        "response.output_item.done" => end_item(event, draft),
        "response.created" => {
            if draft.follows_end && *draft.before != crate::event::Progress::NONE {
                *draft.change() = crate::event::Progress::NONE;
            }
            Some(())
        }
        // What servers send to keep a connection open says nothing either.
        "keepalive"
        | "ping"
        | "response.queued"
        | "response.in_progress"
        | "response.content_part.added"
        | "response.content_part.done"
        | "response.output_text.done"
        | "response.refusal.done"
        | "response.reasoning_text.done"
        | "response.reasoning_summary_text.done"
        | "response.reasoning_summary_part.added"
        | "response.reasoning_summary_part.done" => Some(()),
        "response.completed" | "response.incomplete" => say_end(kind, event, draft),
        "response.failed" => {
            let [response] = json::members(event, ["response"])?;
            let [failure] = response.map_or(Some([None]), |response| json::members(response, ["error"]))?;
            draft.say(match failure {
                Some(failure) => error(failure)?,
                None => Event::Error { code: PROVIDER_ERROR, message: None },
            })
        }
        "error" => {
            let [code, message] = json::members(event, ["code", "message"])?;
            let code = id(code).flatten().unwrap_or(PROVIDER_ERROR);
            draft.say(Event::Error { code, message: text(message).flatten() })
        }
        _ => draft.say(Event::Custom { data: event }),
    }
}

fn say_delta<'a>(channel: &'static str, event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let [delta] = json::members(event, ["delta"])?;
    draft.say_text(channel, 0, Some(text(delta)??))
}

/// A piece of a call of which nothing was told before is one without a name.
fn say_arguments<'a>(event: &'a str, arguments: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let key = key(event, None)?;
    if let Some(place) = draft.place(&key) {
        return draft.say_piece(place, arguments);
    }
    let call = draft.open_block(key, None)?;
    draft.say(Event::ToolCall { index: 0, call, id: None, name: None, arguments })
}

fn begin_item<'a>(event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let [item] = json::members(event, ["item"])?;
    let [kind, item_id, call_id, name, arguments] =
        json::members(item?, ["type", "id", "call_id", "name", "arguments"])?;
    match kind.and_then(json::string) {
        Some("function_call") => {
            let owned = |text: Option<&str>| text.map(Box::from);
            let introduction = Introduction {
                id: owned(id(call_id)?),
                name: owned(word(name)?),
                arguments: draft.arguments(arguments)?.unwrap_or_default().into(),
            };
            draft.open_block(key(event, item_id)?, Some(introduction))?;
            Some(())
        }
        Some("message" | "reasoning") => Some(()),
        _ => draft.say(Event::Custom { data: event }),
    }
}

/// A call that comes to its end without ever having begun is told as a whole.
fn end_item<'a>(event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let [item] = json::members(event, ["item"])?;
    let [kind, item_id, call_id, name, arguments] =
        json::members(item?, ["type", "id", "call_id", "name", "arguments"])?;
    match kind.and_then(json::string) {
        Some("function_call") => {
            let (key, arguments) = (key(event, item_id)?, draft.arguments(arguments)?);
            if draft.place(&key).is_some() {
                draft.end_block(&key, arguments)?;
            } else {
                let (id, name) = (id(call_id)?, word(name)?);
                let call = draft.open_block(key.clone(), None)?;
                let arguments = arguments.unwrap_or_default();
                draft.say(Event::ToolCall { index: 0, call, id, name, arguments })?;
            }
            draft.close_block(&key);
            Some(())
        }
        Some("message" | "reasoning") => Some(()),
        _ => draft.say(Event::Custom { data: event }),
    }
}

/// Which item an event is about.
fn key(event: &str, item_id: Option<&str>) -> Option<BlockKey> {
    let [place, item] = json::members(event, ["output_index", "item_id"])?;
    Some(match place {
        Some(place) => BlockKey::Place(json::unsigned(place)?),
        None => BlockKey::Id(id(item.or(item_id))?.unwrap_or_default().into()),
    })
}

fn say_end<'a>(kind: &str, event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let [response] = json::members(event, ["response"])?;
    let [status, details, usage] = response
        .map_or(Some([None; 3]), |text| json::members(text, ["status", "incomplete_details", "usage"]))?;
    let [reason] = details.map_or(Some([None]), |details| json::members(details, ["reason"]))?;
    let otherwise = if kind == "response.completed" { "completed" } else { "incomplete" };
    let finish_reason = word(reason)?.or(word(status)?).unwrap_or(otherwise);
    let usage = counts(usage).or(draft.before.usage.as_deref());
    draft.say(Event::End { finish_reason: Some(finish_reason), usage })
}
