//! Events of OpenAI's Responses API.
//!
//! Items are identified by their place in the output, or by their id if an event has no place: some servers change
//! the ids from event to event. Complete texts, calls and items are repeated in up to four events; only what was not
//! emitted before is emitted: see [`whole`](super::whole). Items other than messages, reasoning and function calls
//! become `custom`, and so do the members of items and parts that are not understood.

use super::calls::{BY_FURTHER, BY_PLACE, Call, Hint, Piece, index_name, item_name};
use super::draft::Draft;
use super::failure::error;
use super::items::{Item, PartOf, emit_output, emit_part};
use super::value::{counts, id, number, place, text, tool_name, word};
use super::whole::{Level, Spot, Voice};
use crate::json;
use crate::model::{Event, Progress, name_of};

/// Members of events about text that viewers do not need.
const FRAMING: [&str; 21] = [
    "type",
    "sequence_number",
    "item_id",
    "output_index",
    "content_index",
    "summary_index",
    "logprobs",
    "obfuscation",
    "event_id",
    "response_id",
    "status",
    "id",
    "object",
    "model",
    "created",
    "created_at",
    "provider",
    "request_id",
    "trace_id",
    "metadata",
    "error",
];

pub(super) fn read<'a>(kind: &str, event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    if let Some(kind) = kind.strip_prefix("response.")
        && let Some((voice, step)) = voice_of(kind)
    {
        return match step {
            "delta" => read_delta(voice, event, draft),
            _ => read_done(voice, event, draft),
        };
    }
    match kind {
        "response.function_call_arguments.delta" => read_arguments(event, draft),
        "response.function_call_arguments.done" => read_whole_arguments(event, draft),
        "response.output_item.added" => read_item(event, Level::Added, draft),
        "response.output_item.done" => read_item(event, Level::Item, draft),
        "response.content_part.added" | "response.reasoning_summary_part.added" => {
            read_part(event, Level::Added, draft)
        }
        "response.content_part.done" | "response.reasoning_summary_part.done" => {
            read_part(event, Level::Part, draft)
        }
        "response.output_text.annotation.added" => {
            let [annotation] = json::members(event, ["annotation"])?;
            if let Some(annotation) = annotation {
                draft.change().note_member(annotation);
            }
            draft.emit(Event::Custom { data: event })
        }
        "response.created" => begin(event, draft),
        // Events that only keep a connection open have no content either.
        "keepalive" | "ping" | "response.queued" | "response.in_progress" => Some(()),
        "response.completed" | "response.incomplete" | "response.failed" => read_end(kind, event, draft),
        "response.error" | "error" => {
            let event = error("true", event, draft);
            draft.emit(event)
        }
        _ => draft.emit(Event::Custom { data: event }),
    }
}

/// The kind of text of an event, and the member with the piece or the whole text.
fn voice_of(kind: &str) -> Option<(Voice, &str)> {
    let (about, step) = kind.split_once('.')?;
    let voice = match about {
        "output_text" => Voice::Text,
        "refusal" => Voice::Refusal,
        "reasoning_text" => Voice::Reasoning,
        "reasoning_summary_text" => Voice::Summary,
        _ => return None,
    };
    matches!(step, "delta" | "done").then_some((voice, step))
}

/// The part of the output that an event belongs to.
fn spot(voice: Voice, event: &str) -> Option<Spot<'_>> {
    let [output, item, content, summary] =
        json::members(event, ["output_index", "item_id", "content_index", "summary_index"])?;
    let sub = if voice == Voice::Summary { summary } else { content };
    Some(Spot { place: place(output)?, item: id(item)?, sub: number(sub)? })
}

fn read_delta<'a>(voice: Voice, event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let ([delta], has_rest) = json::members_and_rest(event, ["delta"], &FRAMING)?;
    let delta = text(delta)??;
    draft.emit_spot(voice, spot(voice, event)?, delta)?;
    emit_rest_of_event(event, "delta", has_rest, draft)
}

fn read_done<'a>(voice: Voice, event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let member = if voice == Voice::Refusal { "refusal" } else { "text" };
    let ([whole], has_rest) = json::members_and_rest(event, [member], &FRAMING)?;
    let whole = text(whole)?.unwrap_or_default();
    if draft.claim(voice, spot(voice, event)?, whole, Level::Text)?.is_contradiction() {
        return draft.emit(Event::Custom { data: event });
    }
    emit_rest_of_event(event, member, has_rest, draft)
}

/// Emits the members of an event that were not understood, as an event of the same type.
fn emit_rest_of_event<'a>(event: &'a str, read: &str, has_rest: bool, draft: &mut Draft<'a>) -> Option<()> {
    if !has_rest {
        return Some(());
    }
    let [kind] = json::members(event, ["type"])?;
    let (kind, rest) = (kind?, json::rest(event, &[&FRAMING, &[read]])?);
    // Members that repeat from event to event apply to the whole answer: they are emitted once.
    if !draft.change().note_member(&rest) {
        return Some(());
    }
    draft.emit_rest(format!(r#"{{"type":{kind},{rest}}}"#))
}

/// Reads a part of the content or of a summary, empty when it begins or complete when it ends.
fn read_part<'a>(event: &'a str, level: Level, draft: &mut Draft<'a>) -> Option<()> {
    let [output, item, content, summary, part] =
        json::members(event, ["output_index", "item_id", "content_index", "summary_index", "part"])?;
    let Some(part) = part else { return Some(()) };
    let sub = number(content.or(summary))?;
    let spot = Spot { place: place(output)?, item: id(item)?, sub };
    emit_part(PartOf { part, voice: None, spot, event: Some(event) }, level, draft)
}

/// The place of an event without a call's id in the output, and the item that it names.
fn item_at(event: &str) -> Option<(Option<u64>, Option<&str>)> {
    let [output, item] = json::members(event, ["output_index", "item_id"])?;
    Some((place(output)?, id(item)?))
}

/// The call at this place.
fn call_at((output, item): (Option<u64>, Option<&str>), draft: &Draft<'_>) -> Option<u64> {
    if output.is_some() || item.is_some() {
        return draft.find_part(output.map(|output| index_name(0, output)), item.map(item_name));
    }
    let current = draft.progress().parts.choice(0).and_then(|calls| calls.current);
    current.filter(|slot| draft.progress().parts.get(*slot).is_some())
}

fn read_arguments<'a>(event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let [delta] = json::members(event, ["delta"])?;
    let arguments = text(delta)??;
    let at = item_at(event)?;
    // No event follows the complete call: further ones belong to another call in its place.
    let goes_on = |slot: &u64| draft.known(*slot).confirmed == 0 && !draft.is_piece_of_other(*slot, at.1);
    let slot = match call_at(at, draft).filter(goes_on) {
        Some(slot) => {
            draft.note_item(slot, at.1);
            slot
        }
        None => draft.begin_call_of_item(at),
    };
    draft.emit_piece(slot, Piece { arguments, ..Piece::default() })
}

fn read_whole_arguments<'a>(event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let [name, arguments] = json::members(event, ["name", "arguments"])?;
    let piece = Piece {
        id: None,
        name: tool_name(name)?,
        arguments: draft.arguments(arguments)?.unwrap_or_default(),
    };
    let at = item_at(event)?;
    let is_meant = |slot: &u64| !draft.is_call_of_other(*slot, at.1, &piece, Level::Text);
    let slot = match call_at(at, draft).filter(is_meant) {
        Some(slot) => {
            draft.note_item(slot, at.1);
            slot
        }
        None if piece.name.is_none() && piece.arguments.is_empty() => return Some(()),
        None => draft.begin_call_of_item(at),
    };
    if draft.claim_call(slot, piece, Level::Text)?.is_contradiction() {
        return draft.emit(Event::Custom { data: event });
    }
    Some(())
}

fn read_item<'a>(event: &'a str, level: Level, draft: &mut Draft<'a>) -> Option<()> {
    let [output, item] = json::members(event, ["output_index", "item"])?;
    let item = Item::read(item?, place(output)?, draft)?;
    item.emit(level, event, draft)
}

impl<'a> Draft<'a> {
    /// The call of an item; it may begin here.
    pub(super) fn call_of_item(
        &mut self,
        (output, item): (Option<u64>, Option<&str>),
        piece: &mut Piece<'_>,
        level: Level,
    ) -> Option<u64> {
        let whole = *piece;
        let by_item = item.and_then(|item| self.find_part(None, Some(item_name(item))));
        let by_item = by_item.filter(|slot| !self.has_other_id(*slot, piece.id));
        let slot = match by_item {
            Some(slot) => slot,
            None => {
                let hint = Hint { choice: 0, index: output, begins: piece.id.is_none() && output.is_none() };
                let Call::Followed(slot) = self.call_of(hint, piece) else { return None };
                slot
            }
        };
        if level != Level::Added && self.is_call_of_other(slot, item, &whole, level) {
            return Some(self.begin_call_of_item((output, item)));
        }
        self.name_call(slot, (output, item));
        Some(slot)
    }

    /// Begins a call of which nothing was emitted before.
    fn begin_call_of_item(&mut self, at: (Option<u64>, Option<&str>)) -> u64 {
        let slot = self.begin_call(0);
        self.name_call(slot, at);
        slot
    }

    fn name_call(&mut self, slot: u64, (output, item): (Option<u64>, Option<&str>)) {
        if let Some(output) = output {
            self.name_part(slot, BY_PLACE, index_name(0, output));
        }
        if let Some(item) = item {
            self.name_part(slot, BY_FURTHER, item_name(item));
        }
        self.note_item(slot, item);
    }
}

/// Begins a response. A different response starts over.
fn begin<'a>(event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let [response] = json::members(event, ["response"])?;
    let [name] = response.map_or(Some([None]), |response| json::members(response, ["id"]))?;
    let message = id(name)?.map_or(0, |name| name_of(0, [0, 0], name));
    let former = draft.before.message;
    if draft.follows_end {
        if *draft.before != Progress::NONE {
            draft.emit_waiting()?;
            *draft.change() = Progress { message, ..Progress::NONE };
        }
    } else if former != 0 && message != 0 && former != message {
        draft.emit_waiting()?;
        let progress = draft.change();
        progress.parts.forget();
        progress.totals = Progress::NONE.totals;
    }
    if message != 0 && draft.progress().message != message {
        draft.change().message = message;
    }
    Some(())
}

fn read_end<'a>(kind: &str, event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
    let [response] = json::members(event, ["response"])?;
    let names = ["status", "incomplete_details", "usage", "error", "output", "output_text"];
    let [status, details, usage, failure, output, text] =
        response.map_or(Some([None; 6]), |response| json::members(response, names))?;
    emit_output(output, text, draft)?;
    let failure = failure.filter(|failure| json::has_value(failure));
    if let Some(failure) = failure {
        let event = error(failure, response.unwrap_or_default(), draft);
        return draft.emit(event);
    }
    if kind == "response.failed" {
        let event = error("true", event, draft);
        return draft.emit(event);
    }
    let [reason] = match details {
        Some(details) if details.starts_with('{') => json::members(details, ["reason"])?,
        _ => [None],
    };
    let otherwise = if kind == "response.completed" { "completed" } else { "incomplete" };
    let finish_reason = word(reason)?.or(word(status)?).unwrap_or(otherwise);
    let usage = counts(usage).or(draft.before.usage.as_deref());
    draft.emit(Event::End { finish_reason: Some(finish_reason), usage })
}
