//! Chat completion chunks, as OpenAI, vLLM, llama.cpp, Ollama, Groq, Mistral, DeepSeek, OpenRouter and others send
//! them.
//!
//! `content` may be a list of typed parts (Mistral): text and thinking become text, other parts become `custom`.
//! Reasoning is in `reasoning_content` or `reasoning`; servers that send both repeat the same text. Token counts and
//! errors may be in a choice (Moonshot, OpenRouter) or under `x_groq`.
//!
//! Members that are not understood follow the text as one `custom` event, a chunk with what is left: `choices` with
//! the members of deltas, calls and choices that have no native form. A call in it has the number that its frames
//! have. A chunk with nothing else is passed on unchanged.

use super::calls::{Hint, Piece};
use super::draft::Draft;
use super::failure::error;
use super::value::{call_id, number, place, text, tool_name, word};
use crate::json;
use crate::model::Event;

/// Members of a delta that are read here.
const DELTA: [&str; 6] =
    ["content", "refusal", "reasoning_content", "reasoning", "tool_calls", "function_call"];
/// Members of a delta that viewers do not need.
const DELTA_FRAMING: [&str; 6] = ["role", "channel", "name", "logprobs", "token_id", "token_ids"];
/// Members of a choice that are read here.
const CHOICE: [&str; 7] = ["index", "delta", "finish_reason", "message", "text", "usage", "error"];
/// Members of a choice about tokens, filters and samplers: the server's records, not the model's output.
const CHOICE_FRAMING: [&str; 12] = [
    "logprobs",
    "content_filter_results",
    "content_filter_result",
    "content_filter_offsets",
    "native_finish_reason",
    "finish_details",
    "stop_reason",
    "matched_stop",
    "token_ids",
    "prompt_token_ids",
    "prompt_logprobs",
    "seed",
];
/// Members of a chunk that are read.
const CHUNK: [&str; 4] = ["choices", "usage", "error", "x_groq"];
/// Members of a chunk that only frame it: names, times, padding.
pub(super) const CHUNK_FRAMING: [&str; 22] = [
    "id",
    "object",
    "type",
    "created",
    "model",
    "system_fingerprint",
    "service_tier",
    "obfuscation",
    "provider",
    "timings",
    "time_info",
    "prompt_filter_results",
    "prompt_token_ids",
    "prompt_logprobs",
    "kv_transfer_params",
    "nvext",
    "stats",
    "request_id",
    "session_id",
    "trace_id",
    "timestamp",
    "metadata",
];
/// Members of a tool call, and of its function, that are read here.
const CALL: [&str; 4] = ["index", "id", "type", "function"];
const FUNCTION: [&str; 2] = ["name", "arguments"];

/// The results of reading one choice, besides its events.
#[derive(Default)]
struct Choice<'a> {
    /// The members that were not understood, as a choice in JSON.
    rest: Option<String>,
    failure: Option<&'a str>,
}

/// Reads a chunk with these `choices`, or without. `usage` and `failure` are the chunk's own; `has_rest`: it has
/// other members with content.
pub(super) fn read<'a>(
    chunk: &'a str,
    draft: &mut Draft<'a>,
    (choices, usage, failure): (Option<&'a str>, Option<&'a str>, Option<&'a str>),
    has_rest: bool,
) -> Option<()> {
    let (mut rests, mut failed) = (Vec::new(), failure.map(|failure| (failure, chunk)));
    for (_, choice) in choices.map_or(Some(Vec::new()), json::elements)? {
        let read = read_choice(choice, draft)?;
        rests.extend(read.rest);
        failed = failed.or_else(|| read.failure.map(|failure| (failure, choice)));
    }
    emit_rest((chunk, has_rest), &rests, draft)?;
    draft.keep_usage(usage);
    match failed {
        Some((failure, beside)) => {
            let event = error(failure, beside, draft);
            draft.emit(event)
        }
        None => Some(()),
    }
}

/// Emits what is left of a chunk. The chunk's own members apply to the whole answer, so they are emitted once;
/// numbers and booleans among them are never emitted.
fn emit_rest((chunk, has_rest): (&str, bool), rests: &[String], draft: &mut Draft<'_>) -> Option<()> {
    let own = if has_rest { words(&json::rest(chunk, &[&CHUNK, &CHUNK_FRAMING])?)? } else { String::new() };
    let own = if own.is_empty() || draft.progress().has_emitted(&own) { String::new() } else { own };
    // Late members about an answer that is over do not begin a new one.
    let is_late = draft.follows_end && draft.is_empty();
    if rests.is_empty() && (own.is_empty() || is_late) {
        return Some(());
    }
    if !own.is_empty() {
        draft.change().note_member(&own);
    }
    if draft.is_empty() {
        return draft.emit_rest(chunk.to_owned());
    }
    let comma = if own.is_empty() { "" } else { "," };
    let choices = rests.join(",");
    draft.emit_rest(format!(r#"{{"object":"chat.completion.chunk","choices":[{choices}]{comma}{own}}}"#))
}

/// The members inside an object that are neither numbers nor booleans.
fn words(inside: &str) -> Option<String> {
    let (object, mut words) = (format!("{{{inside}}}"), String::new());
    json::each_member(&object, |name, value| {
        if value.starts_with(['"', '[', '{']) {
            json::push_member(&mut words, name, value);
        }
    })?;
    Some(words)
}

fn read_choice<'a>(choice: &'a str, draft: &mut Draft<'a>) -> Option<Choice<'a>> {
    let ([index, delta, finish_reason, message, whole, usage, failure], mut has_rest) =
        json::members_and_rest(choice, CHOICE, &CHOICE_FRAMING)?;
    let index = number(index)?;
    let emitted_before = draft.len();
    let delta_rest = match delta {
        // An empty object, as PHP writes it.
        None | Some("[]") => String::new(),
        Some(delta) => read_delta(delta, index, draft)?,
    };
    let has_emitted_any = draft.len() > emitted_before;
    let has_value = |raw: Option<&str>| raw.is_some_and(json::has_value);
    // A whole answer, or one of another interface; if a delta had content, `text` repeats it.
    has_rest |= has_value(message) || !has_emitted_any && has_value(whole);
    let bit = 1_u64.checked_shl(u32::try_from(index).unwrap_or(u32::MAX)).unwrap_or(0);
    // The first entry of the next generation may come after the previous progress was dropped.
    if has_emitted_any && draft.progress().begun & bit == 0 && bit != 0 {
        draft.change().begun |= bit;
    }
    let rest = (has_rest || !delta_rest.is_empty())
        .then(|| rest_of_choice(choice, (index, &delta_rest), !has_emitted_any))
        .flatten();
    if let Some(reason) = word(finish_reason)?
        && (draft.is_ours() || rest.is_some())
    {
        let progress = draft.change();
        progress.finished |= bit;
        progress.finish(index, reason)?;
    }
    draft.keep_usage(usage);
    Some(Choice { rest, failure: failure.filter(|failure| json::has_value(failure)) })
}

/// The members of a choice that were not understood, as a choice of its own; `None` if there are none. `with_text`:
/// `text` is one of them, because no delta has emitted it.
fn rest_of_choice(choice: &str, (index, delta): (u64, &str), with_text: bool) -> Option<String> {
    let read =
        ["index", "delta", "finish_reason", "usage", "error", if with_text { "index" } else { "text" }];
    let own = words(&json::rest(choice, &[&read, &CHOICE_FRAMING])?)?;
    if own.is_empty() && delta.is_empty() {
        return None;
    }
    let comma = if own.is_empty() { "" } else { "," };
    Some(format!(r#"{{"index":{index},"delta":{{{delta}}}{comma}{own}}}"#))
}

/// Reads a delta and returns what is left of it, as the inside of an object.
fn read_delta<'a>(delta: &'a str, index: u64, draft: &mut Draft<'a>) -> Option<String> {
    let ([content, refusal, reasoning_content, reasoning, tool_calls, function_call], has_rest) =
        json::members_and_rest(delta, DELTA, &DELTA_FRAMING)?;
    let (reasoning, also) = (text(reasoning_content)?, text(reasoning)?);
    draft.emit_text("reasoning", index, reasoning)?;
    draft.emit_text("reasoning", index, also.filter(|_| also != reasoning))?;
    match content {
        Some(list) if list.starts_with('[') => read_parts(list, "content", index, draft)?,
        content => draft.emit_text("content", index, text(content)?)?,
    }
    draft.emit_text("refusal", index, text(refusal)?)?;
    let mut rest = if has_rest { json::rest(delta, &[&DELTA, &DELTA_FRAMING])? } else { String::new() };
    let mut rests = Vec::new();
    let calls = tool_calls.map_or(Some(Vec::new()), json::elements)?;
    for (at, (_, call)) in calls.into_iter().enumerate() {
        rests.extend(read_call(call, (index, at), draft)?);
    }
    if !rests.is_empty() {
        json::push_member(&mut rest, "tool_calls", &format!("[{}]", rests.join(",")));
    }
    if let Some(function) = function_call {
        let [name, arguments] = json::members(function, FUNCTION)?;
        let (name, arguments) = (tool_name(name)?, draft.arguments(arguments)?.unwrap_or_default());
        if name.is_some() || !arguments.is_empty() {
            let call = draft.legacy_call(index);
            draft.emit_call(index, call, Piece { id: None, name, arguments })?;
        }
    }
    Some(rest)
}

/// Reads typed parts of content: text, thinking (which has parts itself), and others.
fn read_parts<'a>(list: &'a str, channel: &'a str, index: u64, draft: &mut Draft<'a>) -> Option<()> {
    for (_, part) in json::elements(list)? {
        let ([kind, plain, thinking], has_rest) =
            json::members_and_rest(part, ["type", "text", "thinking"], &["index", "closed"])?;
        match kind.and_then(json::string) {
            Some("text") => draft.emit_text(channel, index, text(plain)?)?,
            Some("thinking") if channel == "content" => match thinking {
                Some(list) if list.starts_with('[') => read_parts(list, "reasoning", index, draft)?,
                thinking => draft.emit_text("reasoning", index, text(thinking)?)?,
            },
            _ => {
                draft.emit(Event::Custom { data: part })?;
                continue;
            }
        }
        if has_rest {
            let (kind, rest) =
                (kind.unwrap_or_default(), json::rest(part, &[&["type", "text", "thinking"]])?);
            draft.emit_rest(format!(r#"{{"type":{kind},{rest}}}"#))?;
        }
    }
    Some(())
}

/// Reads a piece of a tool call, preceded by `at` others in its list; returns what is left of it, as a call of its
/// own.
fn read_call<'a>(call: &'a str, (choice, at): (u64, usize), draft: &mut Draft<'a>) -> Option<Option<String>> {
    let ([index, id, kind, function], mut has_rest) = json::members_and_rest(call, CALL, &[])?;
    let (index, id) = (place(index)?, call_id(id)?);
    let ([name, arguments], has_more) = function
        .map_or(Some(([None; 2], false)), |function| json::members_and_rest(function, FUNCTION, &[]))?;
    has_rest |= has_more;
    let (name, arguments) = (tool_name(name)?, draft.arguments(arguments)?.unwrap_or_default());
    let mut piece = Piece { id, name, arguments };
    if id.is_none() && name.is_none() && arguments.is_empty() && !has_rest {
        return Some(None);
    }
    let hint = Hint { choice, index, begins: at > 0 };
    let followed = draft.call_of(hint, &mut piece);
    draft.emit_call(choice, followed, piece)?;
    if !has_rest {
        return Some(None);
    }
    let mut rest = format!(r#""index":{}"#, draft.number_of(followed));
    if let Some(id) = id {
        json::push_member(&mut rest, "id", &format!("\"{id}\""));
    }
    if let Some(kind) = kind.filter(|kind| *kind != "\"function\"") {
        json::push_member(&mut rest, "type", kind);
    }
    let own = json::rest(call, &[&CALL])?;
    if !own.is_empty() {
        rest = format!("{rest},{own}");
    }
    let of_function = function.map_or(Some(String::new()), |function| json::rest(function, &[&FUNCTION]))?;
    if !of_function.is_empty() {
        json::push_member(&mut rest, "function", &format!("{{{of_function}}}"));
    }
    Some(Some(format!("{{{rest}}}")))
}
