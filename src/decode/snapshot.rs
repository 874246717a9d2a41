//! The state so far: the newest generation as one JSON object.
//!
//! Text is collected and written as the producer escaped it. The bytes held are bounded; a generation that exceeds
//! the bound is refused, and its text is freed at once.

use std::collections::BTreeMap;
use std::io::Write;

use crate::model::{Decoded, EntryId, Event, Progress, StreamName, StreamStatus};

/// The generation is larger than the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state of the stream is larger than {bytes_max} bytes")]
pub struct TooLarge {
    /// The bound.
    pub bytes_max: usize,
}

/// The newest generation as collected so far, over as many batches as needed.
#[derive(Clone, Debug)]
pub struct Snapshot {
    stream: StreamName,
    bytes_max: usize,
    /// The collected bytes, plus [`PART_BYTES`] for each choice, channel and tool call.
    bytes: usize,
    newest: Generation,
}

/// The counted size of a choice, a channel or a tool call besides its text, in bytes.
const PART_BYTES: usize = 128;

#[derive(Clone, Debug, Default)]
struct Generation {
    id: Option<String>,
    entries: u64,
    choices: BTreeMap<u64, Choice>,
    finish_reason: Option<String>,
    usage: Option<String>,
    error: Option<(String, Option<String>)>,
}

/// One choice; all strings are escaped.
#[derive(Clone, Debug, Default)]
struct Choice {
    content: String,
    /// The texts of the other channels by name.
    channels: BTreeMap<String, String>,
    calls: Vec<Call>,
    /// The index in `calls` of the newest call with each number.
    places: BTreeMap<u64, usize>,
    /// Why it ended, if reasons were given for single choices.
    finish_reason: Option<String>,
}

#[derive(Clone, Debug)]
struct Call {
    number: u64,
    id: Option<String>,
    name: Option<String>,
    arguments: String,
}

impl Snapshot {
    /// An empty state that may grow to about `bytes_max`.
    #[must_use]
    pub fn new(stream: StreamName, bytes_max: usize) -> Self {
        Self { stream, bytes_max, bytes: 0, newest: Generation::default() }
    }

    /// The approximate number of collected bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a delivered event; `begins` is its verdict.
    pub fn push(&mut self, decoded: &Decoded<'_>, begins: bool) {
        if begins {
            self.newest = Generation::default();
            self.bytes = 0;
        }
        if matches!(decoded.event, Event::Heartbeat) {
            return;
        }
        self.newest.entries += 1;
        self.push_further(decoded);
    }

    /// Takes a further event of the same entry.
    pub fn push_further(&mut self, decoded: &Decoded<'_>) {
        if self.is_too_large() {
            return;
        }
        self.bytes = self.bytes.saturating_add(self.newest.gather(&decoded.event));
        if self.is_too_large() {
            let entries = self.newest.entries;
            self.newest = Generation { entries, ..Generation::default() };
        }
    }

    /// Records why the single choices ended, when their generation ends.
    pub fn finish_choices(&mut self, progress: &Progress) {
        for (index, reason) in progress.finish_reasons.iter() {
            if let Some(choice) = self.newest.choices.get_mut(&index) {
                choice.finish_reason = Some(reason.to_string());
                self.bytes = self.bytes.saturating_add(reason.len());
            }
        }
    }

    /// The state as JSON. `last_id` is the stream's newest id.
    ///
    /// # Errors
    /// If the newest generation exceeds the bound.
    pub fn render(&self, state: StreamStatus, last_id: EntryId) -> Result<Vec<u8>, TooLarge> {
        if self.is_too_large() {
            return Err(TooLarge { bytes_max: self.bytes_max });
        }
        let mut out = Vec::with_capacity(self.bytes + 256);
        let (stream, newest) = (&self.stream, &self.newest);
        let state = state.as_str();
        // Writing into memory does not fail.
        write!(out, r#"{{"stream":"{stream}","state":"{state}","last_id":"{last_id}""#).ok();
        string(&mut out, "generation", newest.id.as_deref());
        write!(out, r#","entries":{}"#, newest.entries).ok();
        let finish_reason = newest.finish_reason.as_deref();
        match newest.choices.get(&0) {
            Some(choice) => choice.render(&mut out),
            None => Choice::default().render(&mut out),
        }
        if newest.choices.len() > 1 {
            let is_single = newest.choices.values().any(|choice| choice.finish_reason.is_some());
            let mut open = r#","choices":["#;
            for (index, choice) in &newest.choices {
                write!(out, r#"{open}{{"index":{index}"#).ok();
                choice.render(&mut out);
                let own = choice.finish_reason.as_deref();
                string(&mut out, "finish_reason", if is_single { own } else { finish_reason });
                out.push(b'}');
                open = ",";
            }
            out.push(b']');
        }
        string(&mut out, "finish_reason", finish_reason);
        if let Some(usage) = &newest.usage {
            write!(out, r#","usage":{usage}"#).ok();
        }
        if let Some((code, message)) = &newest.error {
            write!(out, r#","error":{{"code":"{code}""#).ok();
            string(&mut out, "message", message.as_deref());
            out.push(b'}');
        }
        out.push(b'}');
        Ok(out)
    }

    const fn is_too_large(&self) -> bool {
        self.bytes > self.bytes_max
    }
}

impl Generation {
    /// Adds an event, and returns how many bytes that takes.
    fn gather(&mut self, event: &Event<'_>) -> usize {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let len = |text: Option<&str>| text.map_or(0, str::len);
        match *event {
            Event::Start { generation, .. } => {
                self.id = owned(generation);
                len(generation)
            }
            Event::Delta { text, channel, index } => {
                let (choice, new) = self.choice(index);
                new + choice.add_text(channel, text)
            }
            Event::ToolCall { index, call: number, id, name, arguments } => {
                let (choice, new) = self.choice(index);
                new + choice.add_piece(number, [id, name], arguments)
            }
            Event::End { finish_reason, usage } => {
                self.finish_reason = owned(finish_reason);
                self.usage = owned(usage);
                len(finish_reason) + len(usage)
            }
            Event::Error { code, message } => {
                self.error = Some((code.to_owned(), owned(message)));
                code.len() + len(message)
            }
            Event::Custom { .. } | Event::Heartbeat => 0,
        }
    }

    /// The choice with that number, and its cost if it is new.
    fn choice(&mut self, index: u64) -> (&mut Choice, usize) {
        let mut new = 0;
        let choice = self.choices.entry(index).or_insert_with(|| {
            new = PART_BYTES;
            Choice::default()
        });
        (choice, new)
    }
}

impl Choice {
    fn add_text(&mut self, channel: &str, text: &str) -> usize {
        if channel == "content" {
            self.content.push_str(text);
            return text.len();
        }
        if let Some(gathered) = self.channels.get_mut(channel) {
            gathered.push_str(text);
            return text.len();
        }
        self.channels.insert(channel.to_owned(), text.to_owned());
        PART_BYTES + channel.len() + text.len()
    }

    /// A piece with another id than the call with its number begins a new call.
    fn add_piece(&mut self, number: u64, [id, name]: [Option<&str>; 2], arguments: &str) -> usize {
        let known = self.places.get(&number).and_then(|&place| self.calls.get_mut(place));
        let bytes = id.map_or(0, str::len) + name.map_or(0, str::len) + arguments.len();
        match known {
            Some(call) if id.is_none() || call.id.is_none() || call.id.as_deref() == id => {
                call.id = call.id.take().or_else(|| id.map(str::to_owned));
                call.name = call.name.take().or_else(|| name.map(str::to_owned));
                call.arguments.push_str(arguments);
                bytes
            }
            _ => {
                self.places.insert(number, self.calls.len());
                let (id, name) = (id.map(str::to_owned), name.map(str::to_owned));
                self.calls.push(Call { number, id, name, arguments: arguments.to_owned() });
                PART_BYTES + bytes
            }
        }
    }

    /// Writes the members with the model's output. Channels without a member of their own go into `channels`, so that
    /// no name can hide another member.
    fn render(&self, out: &mut Vec<u8>) {
        const OWN: [&str; 2] = ["reasoning", "refusal"];
        string(out, "content", Some(&self.content));
        for own in OWN {
            string(out, own, self.channels.get(own).map(String::as_str));
        }
        let mut open = r#","channels":{"#;
        for (name, text) in self.channels.iter().filter(|(name, _)| !OWN.contains(&name.as_str())) {
            write!(out, r#"{open}"{name}":"{text}""#).ok();
            open = ",";
        }
        if open == "," {
            out.push(b'}');
        }
        let mut open = r#","tool_calls":["#;
        for (place, call) in self.calls.iter().enumerate() {
            out.extend_from_slice(open.as_bytes());
            call.render(out, place);
            open = ",";
        }
        if open == "," {
            out.push(b']');
        }
    }
}

impl Call {
    /// Writes the call in the shape of OpenAI's messages, where its place is its number; `index` is written if the
    /// number differs.
    fn render(&self, out: &mut Vec<u8>, place: usize) {
        out.push(b'{');
        if self.number != place as u64 {
            write!(out, r#""index":{},"#, self.number).ok();
        }
        if let Some(id) = &self.id {
            write!(out, r#""id":"{id}","#).ok();
        }
        out.extend_from_slice(br#""type":"function","function":{"#);
        if let Some(name) = &self.name {
            write!(out, r#""name":"{name}","#).ok();
        }
        write!(out, r#""arguments":"{}"}}}}"#, self.arguments).ok();
    }
}

/// Writes an optional member.
fn string(out: &mut Vec<u8>, name: &str, escaped: Option<&str>) {
    if let Some(escaped) = escaped {
        write!(out, r#","{name}":"{escaped}""#).ok();
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
