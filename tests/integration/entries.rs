//! Producers that write invalid entries, or far too many: a readable entry arrives exactly, an unreadable one is
//! reported and stored, and nothing else is lost.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::patience::wait_until;
use crate::support::producer::{Producer, token, tokens};
use crate::support::redis::RedisServer;
use crate::support::transcript::Transcript;
use crate::support::viewer::{KINDS, Viewer, view};

/// An entry's fields.
type Fields = Vec<(&'static str, Vec<u8>)>;

fn data(text: &str) -> Fields {
    vec![("data", text.into())]
}

/// Entries of every kind that cannot be read.
fn undecodable() -> Vec<Fields> {
    let mut entries: Vec<Fields> = [
        "",
        " ",
        "no json",
        "null",
        "5",
        "\"text\"",
        "[]",
        "[{\"type\":\"delta\",\"text\":\"x\"}]",
        "{",
        "{}",
        "{\"type\":\"delta\",\"text\":\"cut",
        "{\"type\":\"delta\",\"text\":\"x\"} behind",
        "{\"type\":\"delta\",\"text\":\"x\"}{}",
        "{'type':'delta','text':'x'}",
        "{\"type\":\"delta\",\"text\":\"line\nbreak\"}",
        "{\"type\":\"delta\",\"text\":\"\\x41\"}",
        "{\"type\":\"delta\",\"text\":\"\\ud83d\"}",
        "{\"type\":\"delta\",\"text\":\"\\udc00\\ud800\"}",
        "{\"type\":null,\"txt\":\"x\"}",
        "{\"type\":7,\"text\":\"x\"}",
        "{\"type\":[\"delta\"],\"text\":\"x\"}",
        "{\"txt\":\"x\"}",
        "{\"type\":\"delta\"}",
        "{\"type\":\"delta\",\"text\":null}",
        "{\"type\":\"delta\",\"text\":5}",
        "{\"type\":\"delta\",\"text\":[\"x\"]}",
        "{\"type\":\"delta\",\"text\":\"x\",\"channel\":5}",
        "{\"type\":\"delta\",\"text\":\"x\",\"index\":-1}",
        "{\"type\":\"delta\",\"text\":\"x\",\"index\":\"0\"}",
        "{\"type\":\"delta\",\"text\":\"x\",\"index\":0.5}",
        "{\"type\":\"delta\",\"text\":\"x\",\"seq\":-1}",
        "{\"type\":\"delta\",\"text\":\"x\",\"seq\":\"1\"}",
        "{\"type\":\"delta\",\"text\":\"x\",\"seq\":99999999999999999999999999}",
        "{\"type\":\"tool_call\",\"index\":0}",
        "{\"type\":\"tool_call\",\"arguments\":{}}",
        "{\"type\":\"tool_call\",\"arguments\":\"\",\"call\":-1}",
        "{\"type\":\"error\",\"message\":\"without a code\"}",
        "{\"type\":\"error\",\"code\":500,\"message\":\"x\"}",
        "[DONE]",
    ]
    .into_iter()
    .map(data)
    .collect();
    entries.push(data(&"[".repeat(100_000)));
    entries.push(data(&format!(r#"{{"type":"delta","text":{}"#, r#"{"a":"#.repeat(100_000))));
    entries.push(vec![("data", (0..=255).collect())]);
    entries.push(vec![("data", b"{\"type\":\"delta\",\"text\":\"\xff\xfe\"}".to_vec())]);
    entries.push(vec![("data", b"{\"type\":\"delta\",\"text\":\"\xed\xa0\x80\"}".to_vec())]);
    entries.push(vec![("data", b"\xef\xbb\xbf{\"type\":\"delta\",\"text\":\"x\"}".to_vec())]);
    entries.push(vec![("data", vec![0; 1024 * 1024])]);
    entries.push(vec![("txt", b"under a name that nobody looks for".to_vec())]);
    entries.push(vec![("text", b"\xff\xfe".to_vec())]);
    entries.push(vec![("type", b"chunk".to_vec()), ("contents", b"x".to_vec())]);
    entries.push(vec![("text", b"x".to_vec()), ("seq", b"one".to_vec())]);
    entries.push(vec![("", vec![])]);
    entries.push(vec![("DATA", b"{\"type\":\"delta\",\"text\":\"x\"}".to_vec())]);
    entries
}

fn write(producer: &mut Producer, fields: &Fields) -> String {
    let fields: Vec<(&str, &[u8])> = fields.iter().map(|(name, value)| (*name, value.as_slice())).collect();
    producer.write_fields("*", &fields)
}

fn expect_each_named(transcript: &Transcript, bad: &[String]) {
    assert_eq!(transcript.text(), tokens(0..bad.len() + 1));
    let skipped: Vec<&str> =
        transcript.of_kind("skipped").map(|frame| frame["id"].as_str().unwrap()).collect();
    assert_eq!(skipped, bad);
    for frame in transcript.of_kind("skipped") {
        assert!(["malformed", "no_payload"].contains(&frame["reason"].as_str().unwrap()), "{frame}");
        assert!(frame["message"].as_str().is_some_and(|message| message.contains("; fields: ")), "{frame}");
    }
    assert_eq!(transcript.entries(), 2 * bad.len() + 2);
}

/// The fields stored in a dead letter, decoded.
fn kept_fields(letter: &BTreeMap<String, String>) -> Value {
    let fields = letter.get("fields").or_else(|| letter.get("fields_b64"));
    serde_json::from_str(fields.unwrap_or_else(|| panic!("{letter:?}"))).unwrap()
}

#[test]
fn every_unreadable_entry_is_named_and_kept_and_no_other_is_lost() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let entries = undecodable();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.write(&json!({"type": "delta", "text": token(0)}));
    let mut live = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    for viewer in &mut live {
        viewer.read_to(&first);
    }
    let mut bad = Vec::new();
    for (number, fields) in entries.iter().enumerate() {
        bad.push(write(&mut producer, fields));
        producer.write(&json!({"type": "delta", "text": token(number + 1)}));
    }
    let end = producer.write(&json!({"type": "end"}));
    let history = KINDS.map(|kind| view(daemon.public, kind, "s1/m", ""));
    for transcript in live.map(Viewer::read_all).into_iter().chain(history) {
        expect_each_named(&transcript, &bad);
        transcript.expect_finished(&end);
    }
    let state = http::get(daemon.public, "/v1/streams/s1/m").json();
    assert_eq!(state["content"], tokens(0..bad.len() + 1));

    let mut connection = redis.connect();
    wait_until("all dead letters", || connection.run::<usize>(&["XLEN", "llm:dlq:llm-bridge"]) >= bad.len());
    type Letters = Vec<(String, BTreeMap<String, String>)>;
    let letters: Letters = connection.run(&["XRANGE", "llm:dlq:llm-bridge", "-", "+"]);
    let ids: Vec<&str> = letters.iter().map(|(_, letter)| letter["id"].as_str()).collect();
    assert_eq!(ids, bad, "one letter for each, however many read it");
    for ((_, letter), fields) in letters.iter().zip(&entries) {
        assert_eq!((letter["stream"].as_str(), letter["processor"].as_str()), ("s1/m", "deliver"));
        assert!(!letter["reason"].is_empty() && letter["message"].contains("; fields: "), "{letter:?}");
        let is_text = fields.iter().all(|(_, value)| str::from_utf8(value).is_ok());
        assert_eq!(letter.contains_key("fields"), is_text, "{letter:?}");
        let kept = kept_fields(letter);
        for (name, value) in fields {
            if is_text {
                assert_eq!(kept[*name], str::from_utf8(value).unwrap(), "{name}");
            } else {
                assert_eq!(kept[&base64(name.as_bytes())], base64(value), "{name}");
            }
        }
    }
}

/// How `fields_b64` encodes names and values if one of them is not text. Implemented here, so that the check does not
/// depend on the daemon's code.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = [chunk[0], *chunk.get(1).unwrap_or(&0), *chunk.get(2).unwrap_or(&0)];
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 0x3F;
            text.push(if digit <= chunk.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}

#[test]
fn duplicate_members_and_odd_spelling_are_no_reason_to_lose_anything() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    for text in [
        "  \r\n\t{ \"type\" : \"delta\" , \"text\" : \"a\" }  \n",
        r#"{"text":"b","type":"delta"}"#,
        r#"{"\u0074ype":"\u0064elta","te\u0078t":"\u0063"}"#,
        r#"{"type":"delta","text":"d","seq":null,"ts":null,"index":null,"channel":null}"#,
        r#"{"type":"delta","text":"e","unknown":{"deep":[[[[[[]]]]]]},"":0}"#,
        r#"{"type":"delta","text":"\u0000\u001f\u007f\u2028\ud83e\udded\/"}"#,
        r#"{"type":"delta","text":""}"#,
        r#"{"type":"delta","text":"f","ts":1}"#,
    ] {
        producer.write_text(text);
    }
    // `data` takes precedence over other fields, of which there may be any number.
    let many: Vec<String> = (0..1_000).map(|number| format!("field{number}")).collect();
    let mut fields: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b"value"[..])).collect();
    fields.insert(500, ("data", br#"{"type":"delta","text":"g"}"#));
    fields.push(("openai", b"[DONE]"));
    fields.push(("é", b"\xff\x00"));
    producer.write_fields("*", &fields);
    let end = producer.write(&json!({"type": "end"}));
    for kind in KINDS {
        let transcript = view(daemon.public, kind, "s1/m", "");
        assert_eq!(transcript.text(), "abcde\0\u{1f}\u{7f}\u{2028}\u{1f9ed}/fg");
        assert_eq!(transcript.entries(), 10);
        transcript.expect_finished(&end);
    }
}

#[test]
fn an_entry_may_have_eight_mebibytes_and_not_a_byte_more() {
    const BYTES: usize = 8 << 20;
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.delta("small ");
    let mut live = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    for viewer in &mut live {
        viewer.read_to(&first);
    }
    // Half of it has to be escaped, and no character may be cut.
    let mut large = "\"→\\\n\u{1F9ED}".repeat(BYTES / 10);
    large.push_str(&"x".repeat(BYTES - large.len()));
    producer.write_fields("*", &[("content", large.as_bytes())]);
    let larger = producer.write_fields("*", &[("content", large.as_bytes()), ("x", b"y")]);
    producer.delta(" small");
    let end = producer.end();
    let history = KINDS.map(|kind| view(daemon.public, kind, "s1/m", ""));
    for transcript in live.map(Viewer::read_all).into_iter().chain(history) {
        assert!(transcript.text() == format!("small {large} small"), "{} bytes", transcript.text().len());
        let skipped: Vec<&Value> = transcript.of_kind("skipped").collect();
        assert_eq!(skipped.len(), 1);
        assert_eq!((&skipped[0]["id"], &skipped[0]["reason"]), (&json!(larger), &json!("too_large")));
        transcript.expect_finished(&end);
    }
}

#[test]
fn ten_thousand_tiny_entries_arrive_one_by_one() {
    const ENTRIES: usize = 10_000;
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.start("g1");
    let mut live = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    for viewer in &mut live {
        viewer.read_to(&first);
    }
    producer.tokens(0..ENTRIES);
    let end = producer.end();
    let history = KINDS.map(|kind| view(daemon.public, kind, "s1/m", ""));
    for transcript in live.map(Viewer::read_all).into_iter().chain(history) {
        assert!(transcript.text() == tokens(0..ENTRIES));
        assert_eq!(transcript.entries(), ENTRIES + 2);
        transcript.expect_finished(&end);
    }
    // As many entries that cannot be decoded, each of which is reported.
    let nonsense: Vec<Value> = (0..ENTRIES).map(|_| json!(7)).collect();
    let mut producer = Producer::new(&redis, "s2", "m");
    let bad = producer.write_all(&nonsense);
    producer.delta("the only one");
    let end = producer.end();
    for kind in KINDS {
        let transcript = view(daemon.public, kind, "s2/m", "");
        assert_eq!(transcript.text(), "the only one");
        assert_eq!(transcript.of_kind("skipped").count(), bad.len());
        transcript.expect_finished(&end);
    }
}
