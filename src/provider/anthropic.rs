//! Events of Anthropic's Messages API.
//!
//! Blocks of text and thinking need no memory: their deltas say what they are. Of a tool's block is kept which call
//! it is. The tools that Anthropic runs itself, their results, citations, signatures and redacted thinking have no
//! native form: their events become `custom`.

use std::collections::BTreeMap;

use super::{Draft, counts, end, error, id, number, quoted, text, word};
use crate::event::{BlockKey, Event, Introduction, Progress};
use crate::json;

pub(super) fn read<'a>(event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let event = event.trim_matches(json::BLANKS);
    let [kind, index] = json::members(event, ["type", "index"])?;
    match &*json::unescape(json::string(kind?)?)? {
        "message_start" => begin_message(event, draft),
        "content_block_start" => begin_block(event, number(index)?, draft),
        "content_block_delta" => read_delta(event, number(index)?, draft),
        "content_block_stop" => {
            let key = BlockKey::Place(number(index)?);
            draft.end_block(&key, None)?;
            draft.close_block(&key);
            Some(())
        }
        "message_delta" => read_message_delta(event, draft),
        "message_stop" => draft.say(end(draft.before)),
        "ping" => Some(()),
        "error" => {
            let [failure] = json::members(event, ["error"])?;
            draft.say(error(failure.unwrap_or(event))?)
        }
        _ => draft.say(Event::Custom { data: event }),
    }
}

/// The same message may be begun twice, as proxies that try again do; another one begins anew.
fn begin_message(event: &str, draft: &mut Draft<'_>) -> Option<()> {
    let [message] = json::members(event, ["message"])?;
    let [name, usage] = message.map_or(Some([None; 2]), |message| json::members(message, ["id", "usage"]))?;
    let name = id(name)?;
    if name.is_some() && name == draft.before.message.as_deref() {
        return Some(());
    }
    let calls = if draft.follows_end { 0 } else { draft.before.calls };
    let usage = counts(usage).map(Box::from);
    *draft.change() = Progress { message: name.map(Box::from), usage, calls, ..Progress::NONE };
    Some(())
}

fn begin_block<'a>(event: &'a str, index: u64, draft: &mut Draft<'a>) -> Option<()> {
    let [block] = json::members(event, ["content_block"])?;
    let names = ["type", "text", "thinking", "id", "name", "input"];
    let [kind, plain, thinking, call_id, name, input] = json::members(block?, names)?;
    let key = BlockKey::Place(index);
    match kind.and_then(json::string) {
        Some("tool_use") => {
            let owned = |text: Option<&str>| text.map(Box::from);
            let arguments = input.map(quoted).unwrap_or_default();
            let introduction = Introduction { id: owned(id(call_id)?), name: owned(word(name)?), arguments };
            draft.open_block(key, Some(introduction))?;
            return Some(());
        }
        Some("text") => draft.say_text("content", 0, text(plain)?)?,
        Some("thinking") => draft.say_text("reasoning", 0, text(thinking)?)?,
        _ => draft.say(Event::Custom { data: event })?,
    }
    draft.close_block(&key);
    Some(())
}

fn read_delta<'a>(event: &'a str, index: u64, draft: &mut Draft<'a>) -> Option<()> {
    let [delta] = json::members(event, ["delta"])?;
    let [kind, plain, thinking, piece] = json::members(delta?, ["type", "text", "thinking", "partial_json"])?;
    match kind.and_then(json::string) {
        Some("text_delta") => draft.say_text("content", 0, Some(text(plain)??)),
        Some("thinking_delta") => draft.say_text("reasoning", 0, Some(text(thinking)??)),
        Some("input_json_delta") => match draft.place(&BlockKey::Place(index)) {
            Some(place) => draft.say_piece(place, text(piece)??),
            None => draft.say(Event::Custom { data: event }),
        },
        _ => draft.say(Event::Custom { data: event }),
    }
}

fn read_message_delta(event: &str, draft: &mut Draft<'_>) -> Option<()> {
    let [delta, usage] = json::members(event, ["delta", "usage"])?;
    let [reason] = delta.map_or(Some([None]), |delta| json::members(delta, ["stop_reason"]))?;
    let reason = word(reason)?;
    if draft.follows_end {
        return Some(());
    }
    if let Some(usage) = counts(usage) {
        let merged = match draft.before.usage.as_deref() {
            Some(former) => merged(former, usage)?,
            None => usage.to_owned(),
        };
        draft.keep_usage(Some(&merged));
    }
    if let Some(reason) = reason {
        draft.change().finish(0, reason)?;
    }
    Some(())
}

/// One object with the members of both; what the later one says counts, unless that is nothing.
fn merged(former: &str, later: &str) -> Option<String> {
    let mut members: Vec<(String, &str)> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for object in [former, later] {
        json::each_member(object, |name, value| match places.get(name) {
            Some(&place) if value != "null" => members[place].1 = value,
            Some(_) => {}
            None => {
                places.insert(name.to_owned(), members.len());
                members.push((quoted(name).into(), value));
            }
        })?;
    }
    let members: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    Some(format!("{{{}}}", members.join(",")))
}
