//! Targets: entries of producers, and names and ids from anywhere.

use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::Value;

use crate::decode::{Assembler, Seek};
use crate::deliver::format::{Format, Translator, Transport};
use crate::json;
use crate::model::{
    After, Entry, EntryId, Event, Fields, Frame, FrameBody, KeyPattern, PROGRESS_BYTES_MAX, Position,
    Progress, StreamName, StreamState, websocket_text,
};
use crate::produce::sse::SseParser;
use crate::provider::{self, EVENTS_PER_ENTRY_MAX, Form, Margin};

/// The byte between two entries of an input. No JSON text contains it.
const SEPARATOR: u8 = 1;
/// The most entries of an input, because each is compared with those that follow.
const ENTRIES_MAX: usize = 16;
/// The grace of a finishing generation.
const GRACE_MS: u64 = 2_000;
/// The longest text of which every offset is checked.
const PLACES_BYTES_MAX: usize = 200;

/// Entries of every form: each frame is valid in every wire form, ids increase, batches do not change the text, and a
/// viewer that resumes at any frame, by its state or by a search, gets exactly the rest.
pub(super) fn entries(data: &[u8]) {
    let entries = read_entries(data);
    let until_ms =
        entries.last().map_or(0, |last| last.id.ms) + if data.len().is_multiple_of(2) { 0 } else { GRACE_MS };
    let all = frames(assembler(Position::ZERO, beginning()), &entries, until_ms);
    let output = shown(&all);
    let mut before = Position::ZERO;
    for (place, frame) in all.iter().enumerate() {
        expect_wire(frame);
        if frame.body == FrameBody::Gap {
            continue;
        }
        assert!(frame.last > before && frame.after < frame.last && frame.after >= before, "{output:#?}");
        before = frame.last;
        let rest = &output[place + 1..];
        let by_cursor = frames(assembler(frame.last, frame.state.clone()), &entries, until_ms);
        assert_eq!(shown(&by_cursor), rest, "from the cursor at {}", frame.last);
        let mut seek = Seek::new(stream(), After::At(frame.last), beginning()).with_grace(GRACE_MS);
        entries.iter().for_each(|entry| seek.push(entry));
        if is_over(seek.state(), until_ms) {
            seek.conclude();
        }
        let sought = seek.finish(EntryId::ZERO);
        let by_search = frames(assembler(sought.from, sought.state_at_from), &entries, until_ms);
        assert_eq!(shown(&by_search), rest, "by a search for {}", frame.last);
    }
    let mut batched = assembler(Position::ZERO, beginning());
    for entry in &entries {
        batched.push(entry, 0);
    }
    if is_over(batched.state(), until_ms) {
        batched.conclude(0);
    }
    let text =
        |frames: &[Arc<Frame>]| frames.iter().filter_map(|frame| frame.text()).collect::<Vec<_>>().concat();
    assert_eq!(text(&batched.take(0)), text(&all), "batches do not change the text");
    for format in [Format::OpenAi, Format::AiSdk] {
        translate(format, &all);
    }
}

/// Parses entries from an input: the first byte of each is its form; upper case means that it came late.
fn read_entries(data: &[u8]) -> Vec<Entry> {
    let mut ms = 0;
    let records = data.split(|&byte| byte == SEPARATOR).take(ENTRIES_MAX);
    let read = records.filter_map(|record| {
        let (&kind, value) = record.split_first()?;
        ms += if kind.is_ascii_uppercase() { GRACE_MS } else { 1 };
        let fields = match kind.to_ascii_lowercase() {
            b'o' => Fields::from_pairs(&[(b"openai", value)]),
            b'a' => Fields::from_pairs(&[(b"anthropic", value)]),
            b'f' => {
                let pairs = value.split(|&byte| byte == b'|');
                let pairs = pairs.map(|pair| match pair.iter().position(|&byte| byte == b'=') {
                    Some(at) => (&pair[..at], &pair[at + 1..]),
                    None => (pair, &b""[..]),
                });
                Fields::from_pairs(&pairs.collect::<Vec<_>>())
            }
            _ => Fields::from_pairs(&[(b"data", value)]),
        };
        Some(Entry { id: EntryId::new(ms, 0), fields })
    });
    read.collect()
}

fn stream() -> StreamName {
    StreamName::new("s", "m").expect("it is a name")
}

/// The state before the first entry of a stream that was never trimmed.
fn beginning() -> StreamState {
    StreamState { ordinal: Some(0), ..StreamState::default() }
}

fn assembler(position: Position, state: StreamState) -> Assembler {
    Assembler::new(stream(), position, state).with_grace(GRACE_MS)
}

/// Whether a finishing generation is over if nothing follows up to `until_ms`.
pub(crate) fn is_over(state: &StreamState, until_ms: u64) -> bool {
    state.finishing().is_some_and(|newest| until_ms.saturating_sub(newest.ms) >= GRACE_MS)
}

/// The frames of entries, pushed one by one, without those before the assembler's position.
pub(crate) fn frames(mut assembler: Assembler, entries: &[Entry], until_ms: u64) -> Vec<Arc<Frame>> {
    let mut frames = Vec::new();
    for entry in entries {
        assembler.push(entry, 0);
        frames.extend(assembler.take(0));
    }
    if is_over(assembler.state(), until_ms) {
        assembler.conclude(0);
    }
    frames.extend(assembler.take(0));
    frames
}

pub(crate) fn shown(frames: &[Arc<Frame>]) -> Vec<String> {
    frames.iter().map(|frame| String::from_utf8_lossy(frame.json()).into_owned()).collect()
}

fn expect_wire(frame: &Frame) {
    let output = std::str::from_utf8(frame.json()).expect("a frame is text");
    let id = (frame.body != FrameBody::Gap).then(|| frame.last.to_string());
    let [frame_id] =
        json::members(output, ["id"]).unwrap_or_else(|| panic!("a frame is a JSON object: {output}"));
    assert_eq!(frame_id.and_then(json::string), id.as_deref(), "{output}");
    assert_eq!(frame.websocket(), websocket_text(frame.json()));
    let events = sse(frame.sse());
    let [(event_id, data)] = &events[..] else { panic!("one event a frame: {events:?}") };
    assert!(id.is_none_or(|id| id == *event_id), "{event_id}: {output}");
    // Line ends between tokens may differ.
    let on_one_line = |text: &str| text.replace(['\r', '\n'], "");
    assert_eq!(on_one_line(data), on_one_line(output), "over server-sent events");
}

/// The ids and the data of events.
fn sse(bytes: &[u8]) -> Vec<(String, String)> {
    let mut parser = SseParser::default();
    parser.push(bytes).expect("events are bounded");
    let events = std::iter::from_fn(|| parser.next()).map(|event| (event.id, event.data)).collect();
    assert_eq!(parser.finish(), Ok(None), "events are whole");
    events
}

/// Other formats produce valid JSON too.
fn translate(format: Format, frames: &[Arc<Frame>]) {
    let mut translator = Translator::new(format, Transport::Events, stream(), false);
    for frame in frames {
        let translated = translator.translate(frame);
        let shared = frame
            .rendering(translator.form())
            .filter(|_| translated.shares)
            .map(|rendering| &rendering.bytes[..]);
        assert!(shared.is_some() || !translated.shares, "what is shared is there");
        for (_, data) in sse(&translated.own).into_iter().chain(sse(shared.unwrap_or_default())) {
            let is_json = serde_json::from_str::<IgnoredAny>(&data).is_ok();
            assert!(is_json || data == "[DONE]", "{format:?}: {data}");
        }
    }
    sse(&translator.done());
}

/// Payloads of providers, one after another, each after the letter of its form.
pub(super) fn provider(data: &[u8]) {
    let mut dialogue = Dialogue::default();
    for record in data.split(|&byte| byte == SEPARATOR) {
        let Some((&kind, payload)) = record.split_first() else { continue };
        let form = if kind.eq_ignore_ascii_case(&b'a') { Form::Anthropic } else { Form::OpenAi };
        dialogue.read(form, payload);
    }
}

/// One provider's payloads, read one after another.
#[derive(Default)]
pub(crate) struct Dialogue {
    progress: Progress,
    follows_end: bool,
}

impl Dialogue {
    /// Reads a payload, and asserts that its events are valid, that nothing follows an end, and that the progress is
    /// bounded. Returns whether the payload was understood.
    pub(crate) fn read(&mut self, form: Form, payload: &[u8]) -> bool {
        let before = std::mem::take(&mut self.progress);
        let margin = Margin::default();
        let Ok(mut translated) = provider::read((form, payload), &before, self.follows_end, &margin) else {
            self.progress = before;
            return false;
        };
        assert!(translated.len() <= EVENTS_PER_ENTRY_MAX);
        let events: Vec<_> = translated.events().collect();
        events.iter().for_each(expect_valid);
        let ends = events.iter().position(Event::is_terminal);
        assert!(ends.is_none_or(|place| place + 1 == events.len()), "nothing follows an end");
        self.progress = translated.take_progress().map_or_else(|| before.clone(), Arc::unwrap_or_clone);
        assert!(self.progress.len_bytes() <= PROGRESS_BYTES_MAX);
        if ends.is_some() {
            (self.progress, self.follows_end) = (Progress::NONE, true);
        } else if !events.is_empty() {
            self.follows_end = false;
        }
        true
    }
}

/// Asserts that a provider's event consists of valid strings and objects.
fn expect_valid(event: &Event<'_>) {
    let string = |escaped: &str| {
        serde_json::from_str::<String>(&format!("\"{escaped}\""))
            .unwrap_or_else(|error| panic!("{error}: {escaped}"));
    };
    let object = |json: &str| {
        serde_json::from_str::<IgnoredAny>(json).unwrap_or_else(|error| panic!("{error}: {json}"));
        assert!(json.starts_with('{'), "{json}");
    };
    match *event {
        Event::Delta { text, channel, .. } => [text, channel].into_iter().for_each(string),
        Event::ToolCall { id, name, arguments, .. } => {
            [id, name, Some(arguments)].into_iter().flatten().for_each(string);
        }
        Event::End { finish_reason, usage } => {
            finish_reason.into_iter().for_each(string);
            usage.into_iter().for_each(object);
        }
        Event::Error { code, message } => [Some(code), message].into_iter().flatten().for_each(string),
        Event::Custom { data } => object(data),
        Event::Start { .. } | Event::Heartbeat => panic!("no provider says that"),
    }
}

/// serde_json finds exactly the members that a simple object has.
fn expect_simple_members(text: &str) {
    let (mut simple, mut all) = (Vec::new(), Vec::new());
    if json::each_simple_member(text, |name, value| simple.push((name.to_owned(), value))).is_some() {
        let is_object = json::each_member(text, |name, value| all.push((name.to_owned(), value)));
        assert!(is_object.is_some() && simple == all, "{text}");
    }
}

/// The readers of members agree with serde_json.
pub(super) fn json(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    expect_simple_members(text);
    let is_valid = |text: &str| serde_json::from_str::<IgnoredAny>(text).is_ok();
    let begins_with = |c| text.trim_start_matches(json::BLANKS).starts_with(c);
    let members = json::members(text, ["a", "type", ""]);
    assert_eq!(members.is_some(), is_valid(text) && begins_with('{'));
    let values = members.into_iter().flatten().flatten();
    values.for_each(|value| assert!(is_valid(value) && text.contains(value), "{value}"));
    if let (Some(members), Ok(Value::Object(object))) = (members, serde_json::from_str(text)) {
        for (name, raw) in ["a", "type", ""].into_iter().zip(members) {
            let value = raw.map(|raw| serde_json::from_str::<Value>(raw).expect("a part of what is valid"));
            assert_eq!(value.as_ref(), object.get(name).filter(|value| !value.is_null()), "{name:?}");
        }
    }
    if let Some(rest) = json::rest(text, &[&["a"]]) {
        assert!(is_valid(&format!("{{{rest}}}")), "{rest}");
        assert!(
            json::members_and_rest(text, ["a"], &[]).is_some_and(|(_, has_rest)| has_rest != rest.is_empty())
        );
    }
    let elements = json::elements(text);
    assert_eq!(elements.is_some(), is_valid(text) && begins_with('['));
    elements.into_iter().flatten().for_each(|(_, element)| {
        assert!(is_valid(element) && element != "null", "{element}");
    });
    assert!(json::without_nan(text).is_none() || !is_valid(text), "nothing is changed in what is valid");
    strings(text);
}

/// Escaped strings: pairs of surrogates, meaning, offsets.
fn strings(text: &str) {
    let escaped = json::escape(text);
    assert_eq!(json::unescape(escaped.as_deref().unwrap_or(text)).as_deref(), Some(text));
    let quoted = format!("\"{text}\"");
    if serde_json::from_str::<IgnoredAny>(&quoted).is_err() {
        return;
    }
    let meaning = serde_json::from_str::<String>(&quoted).ok();
    assert_eq!(json::unescape(text).as_deref(), meaning.as_deref());
    assert_eq!(json::surrogates_are_paired(text), meaning.is_some());
    let Some(meaning) = meaning.filter(|meaning| meaning.len() <= PLACES_BYTES_MAX) else { return };
    assert_eq!(json::place_after(text, meaning.len()), Some(text.len()));
    assert_eq!(json::place_after(text, meaning.len() + 1), None);
    for len in 0..meaning.len() {
        let place = json::place_after(text, len);
        assert_eq!(place.is_some(), meaning.is_char_boundary(len), "{len}");
        let front = place.and_then(|place| json::unescape(&text[..place]));
        assert!(front.is_none_or(|front| front.len() == len), "{len}");
    }
}

/// Patterns of keys, keys, names and ids: parsing and formatting round-trip, and names and keys map one to one.
pub(super) fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default();
    let (pattern, prefix, key, session, model, id) = (line(), line(), line(), line(), line(), line());
    if let Ok(name) = format!("{session}/{model}").parse::<StreamName>() {
        assert_eq!(StreamName::new(name.session(), name.model()), Ok(name.clone()));
        assert_eq!(name.as_str(), format!("{session}/{model}"));
    }
    if let Ok(position) = id.parse::<Position>() {
        assert_eq!(position.to_string().parse(), Ok(position));
        assert_eq!(EntryId::from_ascii(position.id.to_string().as_bytes()), Some(position.id));
    }
    let Ok(pattern) = KeyPattern::parse(pattern, prefix) else { return };
    assert_eq!(KeyPattern::parse(&pattern.to_string(), prefix).as_ref(), Ok(&pattern));
    if let Some(name) = pattern.name(key.as_bytes()) {
        assert_eq!(pattern.key(&name), key, "the key of {name}");
    }
    if let Ok(name) = pattern.stream(session, pattern.has_model().then_some(model)) {
        let key = pattern.key(&name);
        assert_eq!(pattern.name(key.as_bytes()), Some(name), "the name of {key}");
        assert!(key.starts_with(pattern.beginning()));
        let own = key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(':'));
        assert!(own.is_none_or(|own| {
            !["announce", "dlq", "control"].contains(&own.split(':').next().unwrap_or(own))
        }));
    }
}
