//! Events of Anthropic's Messages API.
//!
//! Blocks of text and thinking need no state: each delta contains its type. Of a tool's block, the call that it
//! belongs to is kept. The tools that Anthropic runs itself, their results, citations, signatures and redacted
//! thinking have no native form: their events become `custom`. So do the members of other events that are not
//! understood.

use std::collections::BTreeMap;

use super::calls::{BY_PLACE, CALL, Piece, index_name};
use super::draft::Draft;
use super::end;
use super::failure::error;
use super::value::{call_id, counts, id, number, quoted, text, tool_name, word};
use crate::json;
use crate::model::{Event, Parts, Progress, USAGE_BYTES_MAX, name_of};

/// Members of a message that viewers do not need, or that are read here.
const BLOCK_FRAMING: [&str; 1] = ["index"];
const STOP: [&str; 4] = ["stop_reason", "stop_sequence", "stop_details", "type"];

pub(super) fn read<'a>(event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let event = event.trim_matches(json::BLANKS);
    let [kind, index, failure] = json::members(event, ["type", "index", "error"])?;
    let failure = failure.filter(|failure| json::has_value(failure));
    let Some(kind) = kind else {
        let event = error(failure?, event, draft);
        return draft.emit(event);
    };
    match &*json::unescape(json::string(kind)?)? {
        "message_start" => begin_message(event, draft)?,
        "content_block_start" => begin_block(event, number(index)?, draft)?,
        "content_block_delta" => read_delta(event, number(index)?, draft)?,
        "content_block_stop" => {
            if let Some(slot) = draft.progress().parts.find(index_name(0, number(index)?)) {
                draft.emit_waiting_of(slot)?;
                draft.change().parts.remove(slot);
            }
        }
        "message_delta" => read_message_delta(event, draft)?,
        "message_stop" if failure.is_none() => draft.emit(end(draft.before))?,
        "message_stop" | "ping" => {}
        "error" => {
            let event = match failure {
                Some(failure) => error(failure, event, draft),
                None => error(event, "", draft),
            };
            return draft.emit(event);
        }
        _ if failure.is_some() => {}
        _ => draft.emit(Event::Custom { data: event })?,
    }
    let Some(failure) = failure else { return Some(()) };
    let event = error(failure, event, draft);
    draft.emit(event)
}

/// Begins a message. The same message may begin twice, for example behind a proxy that retries; a different one
/// starts over. Content that the message already has is emitted.
fn begin_message<'a>(event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let [message] = json::members(event, ["message"])?;
    let [name, usage, content] =
        message.map_or(Some([None; 3]), |message| json::members(message, ["id", "usage", "content"]))?;
    let message = id(name)?.map_or(0, |name| name_of(0, [0, 0], name));
    if message != 0 && message == draft.before.message {
        return Some(());
    }
    draft.emit_waiting()?;
    let usage = counts(usage).filter(|usage| usage.len() <= USAGE_BYTES_MAX).map(Into::into);
    let follows_end = draft.follows_end;
    let progress = draft.change();
    let (mut parts, calls) = (std::mem::replace(&mut progress.parts, Parts::NONE), progress.calls);
    parts.forget();
    *progress = match follows_end {
        true => Progress { message, usage, ..Progress::NONE },
        false => Progress { message, usage, parts, calls, ..Progress::NONE },
    };
    let blocks =
        content.filter(|content| content.starts_with('[')).map_or(Some(Vec::new()), json::elements)?;
    for (_, block) in blocks {
        if !read_block(block, None, draft)? {
            draft.emit(Event::Custom { data: block })?;
        }
    }
    Some(())
}

fn begin_block<'a>(event: &'a str, index: u64, draft: &mut Draft<'a>) -> Option<()> {
    let [block] = json::members(event, ["content_block"])?;
    if !read_block(block?, Some(index), draft)? {
        draft.emit(Event::Custom { data: event })?;
    }
    Some(())
}

/// Reads a block that begins, and returns whether it was understood. A block without an index is complete.
fn read_block<'a>(block: &'a str, index: Option<u64>, draft: &mut Draft<'a>) -> Option<bool> {
    let names = ["type", "text", "thinking", "id", "name", "input"];
    let ([kind, plain, thinking, call, name, input], has_rest) =
        json::members_and_rest(block, names, &BLOCK_FRAMING)?;
    let kind_word = kind.and_then(json::string);
    let former = index.and_then(|index| draft.progress().parts.find(index_name(0, index)));
    if kind_word == Some("tool_use") {
        let arguments = input.map(|input| draft.keep(quoted(input))).unwrap_or_default();
        begin_tool(Piece { id: call_id(call)?, name: tool_name(name)?, arguments }, index, draft)?;
    } else {
        // A block that was not ended is over when another one takes its index.
        if let Some(slot) = former {
            draft.emit_waiting_of(slot)?;
            draft.change().parts.remove(slot);
        }
        match kind_word {
            Some("text") => draft.emit_text("content", 0, text(plain)?)?,
            Some("thinking") => draft.emit_text("reasoning", 0, text(thinking)?)?,
            _ => return Some(false),
        }
    }
    if has_rest {
        let known: &[&str] = match kind_word {
            Some("tool_use") => &["type", "id", "name", "input"],
            _ => &["type", "text", "thinking"],
        };
        let (kind, mut rest) = (kind.unwrap_or_default(), json::rest(block, &[known, &BLOCK_FRAMING])?);
        if let Some(call) = call.filter(|_| kind_word == Some("tool_use")) {
            rest = format!(r#""id":{call},{rest}"#);
        }
        let index = index.unwrap_or(0);
        draft.emit_rest(format!(
            r#"{{"type":"content_block_start","index":{index},"content_block":{{"type":{kind},{rest}}}}}"#
        ))?;
    }
    Some(true)
}

/// Begins a tool's block. If the block at this index has the same id, it is that block.
fn begin_tool<'a>(piece: Piece<'a>, index: Option<u64>, draft: &mut Draft<'a>) -> Option<()> {
    let place = index.map(|index| index_name(0, index));
    let former = place.and_then(|place| draft.progress().parts.find(place));
    let again = former.filter(|slot| piece.id.is_some() && !draft.has_other_id(*slot, piece.id));
    if let Some(slot) = again {
        let is_waiting = draft.progress().parts.get(slot).is_some_and(|part| part.waiting.is_some());
        return if is_waiting { draft.announce(slot, piece) } else { Some(()) };
    }
    if let Some(slot) = former {
        draft.emit_waiting_of(slot)?;
        draft.change().parts.remove(slot);
    }
    let slot = draft.begin_call(0);
    let Some(place) = place else { return draft.emit_piece(slot, piece) };
    draft.name_part(slot, BY_PLACE, place);
    draft.announce(slot, piece)
}

fn read_delta<'a>(event: &'a str, index: u64, draft: &mut Draft<'a>) -> Option<()> {
    let [delta] = json::members(event, ["delta"])?;
    let delta = delta?;
    let ([kind, plain, thinking, piece], has_rest) =
        json::members_and_rest(delta, ["type", "text", "thinking", "partial_json"], &[])?;
    match kind.and_then(json::string) {
        Some("text_delta") => draft.emit_text("content", 0, Some(text(plain)??))?,
        Some("thinking_delta") => draft.emit_text("reasoning", 0, Some(text(thinking)??))?,
        Some("input_json_delta") => {
            let slot = draft.progress().parts.find(index_name(0, index));
            let slot =
                slot.filter(|slot| draft.progress().parts.get(*slot).is_some_and(|part| part.kind == CALL));
            let Some(slot) = slot else { return draft.emit(Event::Custom { data: event }) };
            draft.emit_piece(slot, Piece { arguments: text(piece)??, ..Piece::default() })?;
        }
        _ => return draft.emit(Event::Custom { data: event }),
    }
    if has_rest {
        let rest = json::rest(delta, &[&["type", "text", "thinking", "partial_json"]])?;
        let kind = kind.unwrap_or_default();
        draft.emit_rest(format!(
            r#"{{"type":"content_block_delta","index":{index},"delta":{{"type":{kind},{rest}}}}}"#
        ))?;
    }
    Some(())
}

fn read_message_delta<'a>(event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let [delta, usage] = json::members(event, ["delta", "usage"])?;
    let (reason, has_rest) = match delta {
        Some(delta) => {
            let ([reason], has_rest) = json::members_and_rest(delta, ["stop_reason"], &STOP)?;
            (word(reason)?, has_rest)
        }
        None => (None, false),
    };
    if draft.follows_end {
        return Some(());
    }
    if let Some(usage) = counts(usage).filter(|usage| usage.len() <= USAGE_BYTES_MAX) {
        let merged = match draft.before.usage.as_deref() {
            Some(former) => merged(former, usage)?,
            None => usage.to_owned(),
        };
        draft.keep_usage(Some(&merged));
    }
    if let Some(reason) = reason {
        draft.change().finish(0, reason)?;
        draft.emit_waiting()?;
    }
    if let (true, Some(delta)) = (has_rest, delta) {
        let rest = json::rest(delta, &[&STOP])?;
        draft.emit_rest(format!(r#"{{"type":"message_delta","delta":{{{rest}}}}}"#))?;
    }
    Some(())
}

/// One object with the members of both; the later one's values win, unless they are empty.
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
