//! Recordings of real providers, if there are any: every viewer gets exactly the recorded text, with the recorded
//! cuts and escapes, whether a producer writes it in the native form or passes it on unchanged.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::producer::Producer;
use crate::support::redis::RedisServer;
use crate::support::transcript::Transcript;
use crate::support::viewer::{KINDS, Kind, Viewer, view};

/// A piece of text, as the provider escaped it.
#[derive(Debug)]
struct Piece {
    channel: &'static str,
    index: u64,
    /// A JSON string with its quotes and escapes.
    literal: String,
}

impl Piece {
    fn text(&self) -> String {
        serde_json::from_str(&self.literal).unwrap()
    }
}

/// The directory of the recordings, if there is one.
pub(crate) fn directory() -> Option<PathBuf> {
    let directory = env::var_os("LLM_BRIDGE_FIXTURES")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures"), PathBuf::from);
    directory.is_dir().then_some(directory)
}

/// All recordings below a directory.
pub(crate) fn recordings(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        if entry.is_dir() {
            found.extend(recordings(&entry));
        } else if name.ends_with(".chunks.txt") || name.ends_with(".sse") {
            found.push(entry);
        }
    }
    found.sort();
    found
}

/// A member of a JSON object as it is written; `None` if it is absent or null.
fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let members: BTreeMap<Cow<str>, &RawValue> = serde_json::from_str(object).ok()?;
    members.get(name).map(|value| value.get()).filter(|value| *value != "null")
}

fn elements(array: &str) -> Vec<&RawValue> {
    serde_json::from_str(array).unwrap()
}

/// The pieces of text in one payload of OpenAI's chat, of OpenAI's responses, or of Anthropic.
fn pieces_of(payload: &str) -> Vec<Piece> {
    let piece = |channel, index, literal: Option<&str>| {
        let literal = literal.filter(|literal| literal.starts_with('"') && *literal != "\"\"")?;
        Some(Piece { channel, index, literal: literal.to_owned() })
    };
    let single = |channel, literal| piece(channel, 0, literal).into_iter().collect();
    let kind = member(payload, "type").unwrap_or_default();
    let delta = member(payload, "delta").unwrap_or_default();
    match (kind, member(delta, "type").unwrap_or_default()) {
        ("\"content_block_delta\"", "\"text_delta\"") => single("content", member(delta, "text")),
        ("\"content_block_delta\"", "\"thinking_delta\"") => single("reasoning", member(delta, "thinking")),
        ("\"response.output_text.delta\"", _) => single("content", Some(delta)),
        _ => {
            let mut found = Vec::new();
            for choice in member(payload, "choices").map_or_else(Vec::new, elements) {
                let index = member(choice.get(), "index").map_or(0, |index| index.parse().unwrap());
                let delta = member(choice.get(), "delta").unwrap_or_default();
                let names =
                    [("reasoning", "reasoning"), ("reasoning_content", "reasoning"), ("content", "content")];
                let find = |(name, channel)| piece(channel, index, member(delta, name));
                found.extend(names.into_iter().filter_map(find));
            }
            found
        }
    }
}

fn pieces(recording: &Path) -> Vec<Piece> {
    let content = fs::read_to_string(recording).unwrap();
    let is_sse = recording.extension().is_some_and(|extension| extension == "sse");
    let payload = |line| if is_sse { str::strip_prefix(line, "data:").map(str::trim) } else { Some(line) };
    content.lines().filter_map(payload).flat_map(pieces_of).collect()
}

fn text_on(pieces: &[Piece], channel: &str) -> String {
    let belongs = |piece: &&Piece| piece.channel == channel && piece.index == 0;
    pieces.iter().filter(belongs).map(Piece::text).collect()
}

fn expect_recorded(transcript: &Transcript, pieces: &[Piece], end: &str) {
    for channel in ["content", "reasoning"] {
        assert_eq!(transcript.text_of(channel), text_on(pieces, channel), "{channel}");
    }
    assert_eq!(transcript.entries(), pieces.len() + 1);
    transcript.expect_finished(end);
}

/// Writes a recording while viewers watch it, and lets more viewers read it afterwards.
fn replay(redis: &RedisServer, daemon: &Daemon, number: usize, pieces: &[Piece]) {
    let mut producer = Producer::new(redis, &format!("recording{number}"), "m");
    producer.write(&json!({"type": "heartbeat"}));
    let mut live = KINDS.map(|kind| Viewer::open(daemon.public, kind, &producer.stream, ""));
    live.iter_mut().for_each(|viewer| viewer.expect_open("live"));
    for (seq, piece) in pieces.iter().enumerate() {
        let Piece { channel, index, literal } = piece;
        producer.write_text(&format!(
            r#"{{"type":"delta","seq":{seq},"channel":"{channel}","index":{index},"text":{literal}}}"#
        ));
    }
    let end = producer.write(&json!({"type": "end", "seq": pieces.len()}));
    let history = KINDS.map(|kind| view(daemon.public, kind, &producer.stream, ""));
    for transcript in live.map(Viewer::read_all).into_iter().chain(history) {
        expect_recorded(&transcript, pieces, &end);
    }
    // The heartbeat has the first id, piece n the one after.
    let middle = pieces.len() / 2;
    let query = format!("after={}", producer.ids[middle]);
    for kind in KINDS {
        let transcript = view(daemon.public, kind, &producer.stream, &query);
        expect_recorded(&transcript, &pieces[middle..], &end);
    }
    let state = http::get(daemon.public, &format!("/v1/streams/{}", producer.stream)).json();
    assert_eq!(state["content"], text_on(pieces, "content"));
}

#[test]
fn recorded_answers_arrive_as_they_were_sent() {
    let Some(directory) = directory() else {
        eprintln!("no recordings here: LLM_BRIDGE_FIXTURES can name their directory");
        return;
    };
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let (recordings, mut with_text) = (recordings(&directory), 0);
    for (number, recording) in recordings.iter().enumerate() {
        // Names the recording if the following fails.
        println!("{}", recording.display());
        let pieces = pieces(recording);
        with_text += usize::from(!pieces.is_empty());
        replay(&redis, &daemon, number, &pieces);
    }
    // Some contain only an error or a tool call.
    assert!(with_text * 2 > recordings.len(), "{with_text} of {} have any text", recordings.len());
}

/// The payloads of a recording, one per entry, and their field.
fn payloads(recording: &Path) -> (&'static str, Vec<String>) {
    let content = fs::read_to_string(recording).unwrap();
    let is_sse = recording.extension().is_some_and(|extension| extension == "sse");
    let payload = |line| if is_sse { str::strip_prefix(line, "data:").map(str::trim) } else { Some(line) };
    let payloads: Vec<String> =
        content.lines().filter_map(payload).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    let is_anthropic = payloads.iter().any(|payload| payload.contains("\"message_start\""));
    (if is_anthropic { "anthropic" } else { "openai" }, payloads)
}

/// A recording's content, read without the daemon's code: text by channel, arguments by call.
#[derive(Debug, Default, PartialEq)]
struct Reading {
    content: String,
    reasoning: String,
    calls: BTreeMap<u64, String>,
    /// How it ends, if it does: the reason, or the code of an error.
    end: Option<String>,
    /// The output tokens.
    output: Option<u64>,
}

fn add(text: &mut String, value: &Value) {
    text.push_str(value.as_str().unwrap_or_default());
}

impl Reading {
    fn of(payloads: &[String]) -> Self {
        let mut reading = Self::default();
        // Anthropic's calls, by block.
        let mut blocks: BTreeMap<u64, u64> = BTreeMap::new();
        for payload in payloads.iter().filter(|payload| *payload != "[DONE]") {
            let value: Value = serde_json::from_str(payload).unwrap();
            let (kind, delta) = (value["type"].as_str().unwrap_or_default(), &value["delta"]);
            let block = value["index"].as_u64().unwrap_or_default();
            match kind {
                "response.output_text.delta" => add(&mut reading.content, delta),
                "content_block_start" if value["content_block"]["type"] == "tool_use" => {
                    blocks.insert(block, blocks.len() as u64);
                }
                "content_block_delta" => {
                    add(&mut reading.content, &delta["text"]);
                    add(&mut reading.reasoning, &delta["thinking"]);
                    if let Some(call) = blocks.get(&block) {
                        add(reading.calls.entry(*call).or_default(), &delta["partial_json"]);
                    }
                }
                "message_delta" => reading.end = delta["stop_reason"].as_str().map(str::to_owned),
                "response.completed" => reading.end = Some("completed".into()),
                _ => reading.add_chunk(&value),
            }
            let usages = [&value["usage"], &value["response"]["usage"]];
            for name in ["completion_tokens", "output_tokens"] {
                reading.output = usages.iter().find_map(|usage| usage[name].as_u64()).or(reading.output);
            }
        }
        reading
    }

    fn add_chunk(&mut self, chunk: &Value) {
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            let delta = &choice["delta"];
            add(&mut self.content, &delta["content"]);
            for name in ["reasoning", "reasoning_content"] {
                add(&mut self.reasoning, &delta[name]);
            }
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let number = call["index"].as_u64().unwrap();
                add(self.calls.entry(number).or_default(), &call["function"]["arguments"]);
            }
            self.end = choice["finish_reason"].as_str().map(str::to_owned).or_else(|| self.end.take());
        }
        if let Some(code) = chunk["error"]["code"].as_str() {
            self.end.get_or_insert_with(|| code.to_owned());
        }
    }

    fn of_told(transcript: &Transcript) -> Self {
        let mut calls: BTreeMap<u64, String> = BTreeMap::new();
        for piece in transcript.of_kind("tool_call") {
            add(calls.entry(piece["call"].as_u64().unwrap()).or_default(), &piece["arguments"]);
        }
        let last = &transcript.frames.last().unwrap().value;
        let end = last["finish_reason"].as_str().or_else(|| last["code"].as_str()).map(str::to_owned);
        let output = ["completion_tokens", "output_tokens"].map(|name| last["usage"][name].as_u64());
        Self {
            content: transcript.text(),
            reasoning: transcript.text_of("reasoning"),
            calls,
            end,
            output: output[0].or(output[1]),
        }
    }
}

/// Recordings passed on unchanged. All are written before any is waited for: those without a final event end by
/// themselves.
#[test]
fn recorded_answers_are_understood_as_they_were_sent() {
    let Some(directory) = directory() else {
        eprintln!("no recordings here: LLM_BRIDGE_FIXTURES can name their directory");
        return;
    };
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut live = Vec::new();
    for (number, recording) in recordings(&directory).iter().enumerate() {
        let (field, payloads) = payloads(recording);
        let reading = Reading::of(&payloads);
        assert!(reading.end.is_some(), "{}", recording.display());
        let mut producer = Producer::new(&redis, &format!("raw{number}"), "m");
        producer.write(&json!({"type": "heartbeat"}));
        let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, &producer.stream, ""));
        viewers.iter_mut().for_each(|viewer| viewer.expect_open("live"));
        // At once, so that no pause of this test looks like the end of the answer.
        let key = format!("llm:stream:{}", producer.stream.replace('/', ":"));
        let add = |payload: &String| ["XADD", key.as_str(), "*", field, payload].map(str::to_owned).to_vec();
        let commands: Vec<Vec<String>> = payloads.iter().map(add).collect();
        let _: Vec<String> = redis.connect().run_at_once(&commands);
        live.push((recording.clone(), reading, producer, viewers));
    }
    for (recording, mut reading, producer, viewers) in live {
        println!("{}", recording.display());
        let [delivered, other] = viewers.map(Viewer::read_all);
        assert!(delivered.frames.last().unwrap().is_terminal());
        if delivered.of_kind("error").count() == 1 {
            // Usage is sent only for answers that end successfully.
            reading.output = None;
        }
        assert_eq!(Reading::of_told(&delivered), reading);
        assert_eq!(Reading::of_told(&other), reading);
        assert_eq!(delivered.of_kind("skipped").count(), 0);
        let middle = delivered.frames[delivered.frames.len() / 2].id().unwrap_or("0").to_owned();
        for kind in KINDS {
            assert_eq!(Reading::of_told(&view(daemon.public, kind, &producer.stream, "")), reading);
        }
        let rest = view(daemon.public, Kind::WebSocket, &producer.stream, &format!("after={middle}"));
        assert!(
            reading.content.ends_with(&rest.text())
                && reading.reasoning.ends_with(&rest.text_of("reasoning"))
        );
        let state = http::get(daemon.public, &format!("/v1/streams/{}", producer.stream)).json();
        assert_eq!(state["content"], reading.content.as_str());
        for (place, arguments) in reading.calls.values().enumerate() {
            assert_eq!(state["tool_calls"][place]["function"]["arguments"], arguments.as_str());
        }
    }
}
