//! Tests of `feed`: inputs of every kind, and the entries that they produce.

use std::io::Write as _;
use std::os::fd::RawFd;

use super::*;
use crate::produce::testing::Memory;
use crate::produce::{CancelRequest, NoCancels};

/// The entries of a stream after `input` was fed, as `type[:text or code]`, and the result.
fn fed(from: From, rate: Option<u32>, input: &[u8]) -> (Vec<String>, Result<(), CliError>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let memory = Memory::default();
    let producer = Producer::new(memory.clone());
    let mut feed = Feed::new(producer, from, NoCancels, Arc::default()).at_rate(rate);
    let done = feed.run(file);
    let entries = memory.entries();
    let seen = entries.iter().enumerate().map(|(at, json)| {
        let Ok(value) = serde_json::from_str::<serde_json::Value>(json) else { return json.clone() };
        let is_raw = matches!(from, From::Openai | From::Anthropic);
        assert_eq!(value["seq"], if is_raw { serde_json::Value::Null } else { at.into() }, "{json}");
        let detail = value["text"].as_str().or_else(|| value["code"].as_str());
        let kind = value["type"].as_str().unwrap_or("raw");
        detail.map_or_else(|| kind.to_owned(), |detail| format!("{kind}:{detail}"))
    });
    (seen.collect(), done)
}

#[test]
fn text_becomes_a_generation() {
    let (entries, done) = fed(From::Text, None, "Grüße\n".as_bytes());
    assert_eq!(entries, ["start", "delta:Grüße\n", "end"]);
    done.unwrap();
    let (entries, _) = fed(From::Text, Some(1_000_000), "a b\n\nc".as_bytes());
    assert_eq!(entries, ["start", "delta:a", "delta: b", "delta:\n\nc", "end"]);
    let (entries, _) = fed(From::Text, None, b"");
    assert_eq!(entries, ["start", "end"]);
}

#[test]
fn lines_become_entries_and_a_bad_one_is_named() {
    let input = b"{\"type\":\"delta\",\"text\":\"x\"}\n\n{\"type\":\"delta\",\"text\":\"y\"}";
    let (entries, done) = fed(From::Jsonl, None, input);
    assert_eq!(entries, ["start", "delta:x", "delta:y", "end"]);
    done.unwrap();
    let (entries, _) =
        fed(From::Jsonl, None, b"{\"type\":\"delta\",\"text\":\"x\"}\n{\"type\":\"error\",\"code\":\"c\"}\n");
    assert_eq!(entries, ["start", "delta:x", "error:c"]);
    let (entries, done) = fed(From::Jsonl, None, b"{\"type\":\"delta\",\"text\":\"x\"}\n\noops\n");
    assert_eq!(entries, ["start", "delta:x", "error:producer_failed"]);
    assert!(done.unwrap_err().to_string().starts_with("line 3: not a JSON object"));
    // Viewers may wait for an answer of which not even the first line can be parsed.
    let (entries, done) = fed(From::Jsonl, None, b"{bad\n");
    assert_eq!(entries, ["start", "error:producer_failed"]);
    assert_eq!(done.unwrap_err().to_string(), "line 1: not a JSON object: key must be a string at column 2");
    let (entries, done) =
        fed(From::Jsonl, None, b"{\"type\":\"delta\",\"text\":\"x\"}\n{\"type\":\"delta\"}\n");
    assert_eq!(entries, ["start", "delta:x", "error:producer_failed"]);
    assert_eq!(done.unwrap_err().to_string(), "line 2: text is missing");
    for nothing in ["", "\n \n"] {
        let (entries, done) = fed(From::Jsonl, None, nothing.as_bytes());
        assert_eq!(entries, ["start", "error:upstream_malformed"]);
        assert_eq!(done.unwrap_err().to_string(), "stdin has no object: nothing came");
    }
}

#[test]
fn an_endless_line_is_refused_before_it_fills_the_memory() {
    let mut input = b"{\"type\":\"delta\",\"text\":\"".to_vec();
    input.resize(jsonl::LINE_BYTES_MAX + 2 * READ_BYTES, b'x');
    let (entries, done) = fed(From::Jsonl, None, &input);
    assert_eq!(entries, ["start", "error:producer_failed"]);
    assert_eq!(done.unwrap_err().to_string(), "line 1: longer than 8 MiB");
}

#[test]
fn a_stop_ends_the_generation_with_an_error() {
    let memory = Memory::default();
    let (producer, stopping) = (Producer::new(memory.clone()), Arc::new(AtomicBool::new(true)));
    let mut feed = Feed::new(producer, From::Text, NoCancels, stopping);
    assert!(feed.run(File::open("/dev/zero").unwrap()).is_err());
    assert!(memory.entries().last().unwrap().contains("producer_failed"));
}

#[test]
fn event_streams_are_passed_on_and_ended_where_they_do_not_end() {
    let token = r#"data: {"choices":[{"delta":{"content":"a"}}]}"#;
    let finish = r#"data: {"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
    let whole = format!(": hi\r\n\r\n{token}\r\n\r\ndata:\r\n\r\n{finish}\r\n\r\ndata: [DONE]\r\n\r\n");
    let (entries, done) = fed(From::Openai, None, whole.repeat(2).as_bytes());
    assert_eq!(entries, ["start", "raw", "raw", "[DONE]", "start", "raw", "raw", "[DONE]"]);
    done.unwrap();
    let (entries, done) = fed(From::Openai, None, format!("{token}\n\ndata: [DONE]").as_bytes());
    assert_eq!(entries, ["start", "raw", "[DONE]"]);
    done.unwrap();
    let (entries, done) = fed(From::Openai, None, format!("{token}\n\n{finish}\n\n").as_bytes());
    assert_eq!(entries, ["start", "raw", "raw", "end"]);
    done.unwrap();
    let cut = &token[..token.len() - 3];
    let (entries, done) = fed(From::Openai, None, format!("{token}\n\n{cut}").as_bytes());
    assert_eq!(entries, ["start", "raw", "error:upstream_broke_off"]);
    assert!(done.unwrap_err().to_string().contains("in the middle of an answer"));
    let message = "event: message_start\ndata: {\"type\":\"message_start\"}\n\nevent: message_stop\ndata: \
                   {\"type\":\"message_stop\"}\n\n";
    let (entries, done) = fed(From::Anthropic, Some(1_000_000), message.as_bytes());
    assert_eq!(entries, ["start", "message_start", "message_stop"]);
    done.unwrap();
}

#[test]
fn an_input_without_an_event_is_a_failure_that_viewers_get() {
    for (input, words) in [
        ("", "nothing came"),
        (": ping\n\n", "no event came, only: : ping"),
        (
            r#"{"error":{"message":"Incorrect API key","code":"invalid_api_key"}}"#,
            "Incorrect API key (invalid_api_key)",
        ),
        ("{\"response\":\"a\"}\n{\"response\":\"b\"}\n", r#"{"response":"a"} {"response":"b"}"#),
        ("<html><title>502 Bad Gateway</title></html>", "502 Bad Gateway"),
        ("Unauthorized\n", "Unauthorized"),
    ] {
        for from in [From::Openai, From::Anthropic] {
            let (entries, done) = fed(from, None, input.as_bytes());
            assert_eq!(entries, ["start", "error:upstream_malformed"], "{input}");
            let message = done.unwrap_err().to_string();
            assert!(
                message.starts_with("stdin is not an event stream: ") && message.ends_with(words),
                "{message}"
            );
        }
    }
}

#[test]
fn an_error_in_the_input_is_passed_on_and_a_failure() {
    let token = r#"data: {"choices":[{"delta":{"content":"a"}}]}"#;
    let input =
        format!("{token}\n\ndata: {{\"error\":{{\"message\":\"m\"}}}}\n\n{token}\n\ndata: [DONE]\n\n");
    let (entries, done) = fed(From::Openai, None, input.as_bytes());
    assert_eq!(entries, ["start", "raw", "raw", "start", "raw", "[DONE]"]);
    assert_eq!(done.unwrap_err().to_string(), "provider_error: m");
    for begun in [format!("{token}\n\n"), String::new()] {
        let (entries, done) =
            fed(From::Openai, None, format!("{begun}event: error\ndata: no room\n\n").as_bytes());
        assert_eq!(
            (entries[0].as_str(), entries.last().unwrap().as_str()),
            ("start", "error:provider_error")
        );
        assert_eq!(done.unwrap_err().to_string(), "provider_error: no room");
    }
}

/// Asks to stop at the second check.
struct Impatient(u32);

impl Cancels for Impatient {
    fn requested(&mut self, _: Instant) -> Option<CancelRequest> {
        self.0 += 1;
        (self.0 == 2).then(CancelRequest::default)
    }

    fn raw_fd(&self) -> Option<RawFd> {
        None
    }
}

#[test]
fn a_cancelled_generation_ends_as_such() {
    let memory = Memory::default();
    let mut feed = Feed::new(Producer::new(memory.clone()), From::Text, Impatient(0), Arc::default());
    feed.run(File::open("/dev/zero").unwrap()).unwrap();
    assert!(memory.entries().last().unwrap().contains(r#""finish_reason":"cancelled""#));
}

#[test]
fn a_request_before_the_first_answer_is_for_that() {
    let line = b"{\"type\":\"delta\",\"text\":\"x\"}\n".repeat(READ_BYTES);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&line).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let memory = Memory::default();
    // At the first check nothing was read yet.
    let mut feed = Feed::new(Producer::new(memory.clone()), From::Jsonl, Impatient(1), Arc::default());
    feed.run(file).unwrap();
    assert!(memory.entries().last().unwrap().contains(r#""finish_reason":"cancelled""#));
}

/// A signal that arrives after the last check, right before the input is read.
struct Signalled(Arc<AtomicBool>);

impl Cancels for Signalled {
    fn requested(&mut self, _: Instant) -> Option<CancelRequest> {
        None
    }

    fn raw_fd(&self) -> Option<RawFd> {
        self.0.store(true, Ordering::Relaxed);
        None
    }
}

/// As if Ctrl-C ended a whole pipeline.
#[test]
fn an_input_that_ends_with_a_signal_is_not_complete() {
    let memory = Memory::default();
    let stopping = Arc::new(AtomicBool::new(false));
    let producer = Producer::new(memory.clone());
    let mut feed = Feed::new(producer, From::Text, Signalled(Arc::clone(&stopping)), stopping);
    assert!(feed.run(File::open("/dev/null").unwrap()).is_err());
    assert!(memory.entries().last().unwrap().contains("producer_failed"));
}
