//! What real providers have sent, where recordings of it are at hand: every viewer gets exactly the
//! recorded text, with the recorded cuts and escapes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use serde_json::value::RawValue;

use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::producer::Producer;
use crate::support::redis::RedisServer;
use crate::support::transcript::Transcript;
use crate::support::viewer::{KINDS, Viewer, view};

/// A piece of text, as the provider spelled it.
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

/// Where the recordings are, if they are.
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

/// A member of a JSON object as it is written; `None` where it is absent or null.
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

/// Writes a recording while viewers watch it, and shows it to more of them afterwards.
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
    // The heartbeat has the first id, the piece n the one after.
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
        // Names the culprit if what follows fails.
        println!("{}", recording.display());
        let pieces = pieces(recording);
        with_text += usize::from(!pieces.is_empty());
        replay(&redis, &daemon, number, &pieces);
    }
    // Some are nothing but an error or a tool call.
    assert!(with_text * 2 > recordings.len(), "{with_text} of {} have any text", recordings.len());
}
