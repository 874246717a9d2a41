//! Chat completion chunks, as OpenAI, vLLM, llama.cpp, Ollama, Groq, Mistral, DeepSeek, OpenRouter and others send them.
//!
//! `content` may be a list of typed parts, as Mistral's; text and thinking are text, parts of other types become
//! `custom`. Reasoning comes as `reasoning_content` or `reasoning`; who sends both says the same twice. Token counts and
//! errors may be in a choice (Moonshot, OpenRouter) or under `x_groq`. An `error` with nothing in it is none.

use super::{Draft, error, id, number, text, word};
use crate::event::{Block, BlockKey, Event};
use crate::json;

/// Members of a delta that say nothing to a viewer, or are read here.
const KNOWN: [&str; 10] = [
    "role",
    "content",
    "refusal",
    "reasoning_content",
    "reasoning",
    "tool_calls",
    "function_call",
    "channel",
    "name",
    "logprobs",
];

pub(super) fn read<'a>(
    chunk: &'a str,
    draft: &mut Draft<'a>,
    (choices, usage, failure): (&'a str, Option<&'a str>, Option<&'a str>),
) -> Option<()> {
    let (mut has_more, mut failure) = (false, failure.filter(|failure| is_told(failure)));
    for choice in json::elements(choices)? {
        let (has_more_here, failure_here) = read_choice(choice, draft)?;
        has_more |= has_more_here;
        failure = failure.or_else(|| failure_here.filter(|failure| is_told(failure)));
    }
    draft.keep_usage(usage);
    if has_more && draft.said.is_empty() {
        draft.say(Event::Custom { data: chunk })?;
    }
    match failure {
        Some(failure) => draft.say(error(failure)?),
        None => Some(()),
    }
}

/// Whether there is anything in a member that some servers always write.
fn is_told(raw: &str) -> bool {
    !matches!(raw, "\"\"" | "[]" | "{}" | "false")
}

/// Whether the choice has more to it than was said, and the error that it came to.
fn read_choice<'a>(choice: &'a str, draft: &mut Draft<'a>) -> Option<(bool, Option<&'a str>)> {
    let names = ["index", "delta", "finish_reason", "message", "text", "usage", "error"];
    let [index, delta, finish_reason, message, whole, usage, failure] = json::members(choice, names)?;
    let index = number(index)?;
    let said = draft.said.len();
    let has_more = match delta {
        // An empty object, as PHP writes it.
        Some("[]") => false,
        Some(delta) => read_delta(delta, index, draft)?,
        // Not a chunk, but a whole answer or one of another interface.
        None => message.is_some() || whole.is_some(),
    };
    let bit = 1_u64.checked_shl(u32::try_from(index).unwrap_or(u32::MAX)).unwrap_or(0);
    // The first entry of the next generation may come while the former's progress is gone already.
    if draft.said.len() > said && draft.progress().begun & bit == 0 && bit != 0 {
        draft.change().begun |= bit;
    }
    if let Some(reason) = word(finish_reason)?
        && (!draft.follows_end || !draft.said.is_empty())
    {
        let progress = draft.change();
        progress.finished |= bit;
        progress.finish(index, reason)?;
    }
    draft.keep_usage(usage);
    Some((has_more, failure))
}

fn read_delta<'a>(delta: &'a str, index: u64, draft: &mut Draft<'a>) -> Option<bool> {
    let names = ["content", "refusal", "reasoning_content", "reasoning", "tool_calls", "function_call"];
    let [content, refusal, reasoning_content, reasoning, tool_calls, function_call] =
        json::members(delta, names)?;
    let (reasoning, also) = (text(reasoning_content)?, text(reasoning)?);
    draft.say_text("reasoning", index, reasoning)?;
    draft.say_text("reasoning", index, also.filter(|_| also != reasoning))?;
    match content {
        Some(list) if list.starts_with('[') => read_parts(list, "content", index, draft)?,
        content => draft.say_text("content", index, text(content)?)?,
    }
    draft.say_text("refusal", index, text(refusal)?)?;
    for (place, call) in tool_calls.map_or(Some(Vec::new()), json::elements)?.into_iter().enumerate() {
        read_call(call, (index, place), draft)?;
    }
    if let Some(function) = function_call {
        say_function(function, (index, 0, None), draft)?;
    }
    let mut has_more = false;
    json::each_member(delta, |name, value| {
        has_more |= !KNOWN.contains(&name) && value != "null" && is_told(value);
    })?;
    Some(has_more)
}

/// Typed parts of content: text, thinking, which has parts itself, and others.
fn read_parts<'a>(list: &'a str, channel: &'a str, index: u64, draft: &mut Draft<'a>) -> Option<()> {
    for part in json::elements(list)? {
        let [kind, plain, thinking] = json::members(part, ["type", "text", "thinking"])?;
        match kind.and_then(json::string) {
            Some("text") => draft.say_text(channel, index, text(plain)?)?,
            Some("thinking") if channel == "content" => match thinking {
                Some(list) if list.starts_with('[') => read_parts(list, "reasoning", index, draft)?,
                thinking => draft.say_text("reasoning", index, text(thinking)?)?,
            },
            _ => draft.say(Event::Custom { data: part })?,
        }
    }
    Some(())
}

fn read_call<'a>(call: &'a str, (choice, place): (u64, usize), draft: &mut Draft<'a>) -> Option<()> {
    let [number, name, function] = json::members(call, ["index", "id", "function"])?;
    let id = id(name)?;
    let number = match number {
        Some(number) => json::unsigned(number)?,
        None => unnumbered(choice, id.is_some() || place > 0, draft)?,
    };
    match function {
        Some(function) => say_function(function, (choice, number, id), draft),
        None if id.is_some() => {
            draft.say(Event::ToolCall { index: choice, call: number, id, name: None, arguments: "" })
        }
        None => Some(()),
    }
}

fn say_function<'a>(
    function: &'a str,
    (index, call, id): (u64, u64, Option<&'a str>),
    draft: &mut Draft<'a>,
) -> Option<()> {
    let [name, arguments] = json::members(function, ["name", "arguments"])?;
    let (name, arguments) = (word(name)?, draft.arguments(arguments)?.unwrap_or_default());
    if id.is_none() && name.is_none() && arguments.is_empty() {
        return Some(());
    }
    draft.say(Event::ToolCall { index, call, id, name, arguments })
}

/// The number of a call that has none: the last one's of its choice, or the next where another begins.
fn unnumbered(choice: u64, begins: bool, draft: &mut Draft<'_>) -> Option<u64> {
    let key = BlockKey::Place(choice);
    Some(match draft.progress().blocks.iter().position(|block| block.key == key) {
        Some(place) if begins => {
            let block = &mut draft.change().blocks[place];
            block.call = block.call.saturating_add(1);
            block.call
        }
        Some(place) => draft.progress().blocks[place].call,
        None => {
            draft.change().open(Block { key, call: 0, introduction: None })?;
            0
        }
    })
}
