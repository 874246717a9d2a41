//! A model's server, or the input of `produce`, that sends something other than an event stream: it is reported at
//! once, the server is not asked again, and viewers get an `error` with the server's message.

use std::io::Write as _;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use crate::support::command::{Background, Outcome, llm_bridge, run};
use crate::support::patience::wait_until;
use crate::support::redis::RedisServer;
use crate::support::upstream::{FakeUpstream, Script, Step, chat, event, finish, head, refusal, token};

const KEY: &str = "llm:stream:s1:m";
const REQUEST: &[u8] = br#"{"model":"gpt","messages":[]}"#;
const NO_KEY: &str = r#"{"error":{"message":"Incorrect API key","code":"invalid_api_key"}}"#;

fn produce(redis: &RedisServer, more: &[&str]) -> Command {
    let setting = format!("redis.url={}", redis.url());
    let arguments = ["produce", "--session", "s1", "--model", "m", "--set", &setting];
    llm_bridge(&[&arguments, more].concat())
}

/// The payloads of the stream, whatever their field.
fn payloads(redis: &RedisServer) -> Vec<String> {
    let payload = |fields: std::collections::HashMap<String, Vec<u8>>| {
        String::from_utf8(fields.into_values().next().unwrap()).unwrap()
    };
    redis.connect().entries(KEY).into_iter().map(|(_, fields)| payload(fields)).collect()
}

/// Code and message of the `error` entry that is the only one after a `start`.
fn only_error(redis: &RedisServer) -> (String, String) {
    let entries: Vec<Value> =
        payloads(redis).iter().map(|payload| serde_json::from_str(payload).unwrap()).collect();
    let [start, error] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!((&start["type"], &error["type"]), (&"start".into(), &"error".into()), "{entries:?}");
    let text = |name: &str| error[name].as_str().unwrap().to_owned();
    (text("code"), text("message"))
}

fn answer(headers: &str, body: &[u8], end: Option<Step>) -> Script {
    let head = format!("HTTP/1.1 200 OK\r\n{headers}Connection: close\r\n\r\n");
    let sent = vec![Step::Send(head.into_bytes()), Step::Send(body.to_vec())];
    sent.into_iter().chain(end).collect()
}

fn ask(redis: &RedisServer, upstream: &FakeUpstream, more: &[&str]) -> Outcome {
    let url = upstream.chat_url();
    run(produce(redis, &[&["--url", &url, "--request", "-"], more].concat()), REQUEST)
}

#[test]
fn a_body_other_than_an_event_stream_is_reported_at_once_and_not_retried() {
    let events = "Content-Type: text/event-stream\r\n";
    let json = "Content-Type: application/json\r\n";
    let bodies: [(&str, &[u8], &str); 8] = [
        (events, NO_KEY.as_bytes(), "Incorrect API key (invalid_api_key)"),
        (json, NO_KEY.as_bytes(), "(Content-Type: application/json): Incorrect API key"),
        (json, b"{\n  \"error\": {\n    \"message\": \"pretty\"\n  }\n}\n", "pretty"),
        (
            "Content-Type: application/x-ndjson\r\n",
            b"{\"response\":\"a\"}\n{\"response\":\"b\"}\n",
            r#"{"response":"a"}"#,
        ),
        (
            "Content-Type: text/html\r\n",
            b"<html><title>502 Bad\x1b[2JGateway</title>",
            "502 Bad\u{241b}[2JGateway",
        ),
        ("", b"upstream connect error\n", "(Content-Type: none): upstream connect error"),
        (
            "Content-Type: text/event-stream\r\nContent-Encoding: br\r\n",
            b"\x0b\x02\x80",
            "Content-Encoding: br",
        ),
        (events, b"\x1f\x8b\x08\x00", "gzip"),
    ];
    for (headers, body, words) in bodies {
        // Also if the connection stays open: nothing else would come.
        for end in [None, Some(Step::Hang)] {
            let redis = RedisServer::start();
            let upstream = FakeUpstream::start([answer(headers, body, end.clone())]);
            let outcome = ask(&redis, &upstream, &[]);
            let (code, message) = only_error(&redis);
            assert_eq!((outcome.code, code.as_str()), (Some(1), "upstream_malformed"), "{outcome:?}");
            assert!(message.contains(words), "{message}");
            assert!(outcome.stderr.contains(&format!("upstream_malformed: {message}\n")), "{outcome:?}");
            assert!(!outcome.stderr.contains('\x1b'), "{outcome:?}");
            assert_eq!(upstream.seen().len(), 1, "{message}");
        }
    }
    // An orderly end without any event.
    for (body, words) in
        [(&b""[..], "nothing came"), (b": ping\n\n", "no event came"), (b"Error: no\n", "Error: no")]
    {
        let redis = RedisServer::start();
        let upstream = FakeUpstream::start([answer(events, body, None)]);
        let outcome = ask(&redis, &upstream, &[]);
        let (code, message) = only_error(&redis);
        assert_eq!((outcome.code, code.as_str(), upstream.seen().len()), (Some(1), "upstream_malformed", 1));
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn a_connection_that_breaks_before_the_first_event_is_another_matter() {
    let redis = RedisServer::start();
    let broken = answer("Content-Length: 900\r\nContent-Type: text/event-stream\r\n", b": ping\n\n", None);
    let upstream = FakeUpstream::start([broken, chat(&["a"])]);
    let outcome = ask(&redis, &upstream, &[]);
    assert_eq!((outcome.code, upstream.seen().len()), (Some(0), 2), "{outcome:?}");
    // An error body that is cut off is still an error.
    let redis = RedisServer::start();
    let broken =
        answer("Content-Length: 900\r\nContent-Type: application/json\r\n", b"{\"error\":\"bu", None);
    let upstream = FakeUpstream::start([broken, chat(&["a"])]);
    ask(&redis, &upstream, &[]);
    assert_eq!((only_error(&redis).0.as_str(), upstream.seen().len()), ("upstream_malformed", 1));
}

/// An answer in one gzip body, each event of which can be read as soon as it has arrived.
fn compressed(events: &[String], encoding: &str) -> Vec<Step> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: {encoding}\r\nConnection: close\r\n\r\n"
    );
    let (mut encoder, mut steps) =
        (GzEncoder::new(Vec::new(), Compression::default()), vec![Step::Send(head.into())]);
    for event in events {
        write!(encoder, "data: {event}\n\n").unwrap();
        encoder.flush().unwrap();
        steps.push(Step::Send(std::mem::take(encoder.get_mut())));
    }
    steps.push(Step::Send(encoder.finish().unwrap()));
    steps
}

#[test]
fn a_compressed_answer_is_read_as_it_comes() {
    let redis = RedisServer::start();
    let events = [token("a"), finish(), "[DONE]".into()];
    let mut script = compressed(&events, "gzip");
    script.insert(2, Step::Gate);
    let upstream = FakeUpstream::start([script]);
    let url = upstream.chat_url();
    let mut asking = Background::start(produce(&redis, &["--url", &url, "--request", "-"]));
    asking.take_stdin().write_all(REQUEST).unwrap();
    wait_until("the first token", || payloads(&redis).len() == 2);
    upstream.open_gate();
    let outcome = asking.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(payloads(&redis)[1..], events);
    assert_eq!(upstream.seen().len(), 1);
    assert!(upstream.seen()[0].head.contains("accept-encoding: identity"));
    // A body that does not match its headers.
    let redis = RedisServer::start();
    let lying = answer(
        "Content-Encoding: gzip\r\nContent-Type: text/event-stream\r\n",
        b"data: {}\n\ndata: [DONE]\n\n",
        None,
    );
    let upstream = FakeUpstream::start([lying]);
    ask(&redis, &upstream, &[]);
    let (code, message) = only_error(&redis);
    assert_eq!((code.as_str(), upstream.seen().len()), ("upstream_malformed", 1), "{message}");
    assert!(message.contains("gzip"), "{message}");
    // Reasons of refusals can be compressed too.
    let redis = RedisServer::start();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(NO_KEY.as_bytes()).unwrap();
    let head = "HTTP/1.1 401 Unauthorized\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n";
    let script = vec![Step::Send(head.into()), Step::Send(encoder.finish().unwrap())];
    ask(&redis, &FakeUpstream::start([script]), &[]);
    assert!(only_error(&redis).1.contains("401: Incorrect API key"));
}

#[test]
fn the_first_event_determines_the_provider() {
    let messages = [
        r#"{"type":"message_start","message":{"usage":{"input_tokens":1}}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}"#,
        r#"{"type":"message_stop"}"#,
    ];
    let script: Script = std::iter::once(head()).chain(messages.map(event)).collect();
    let fields = |redis: &RedisServer| -> Vec<String> {
        redis
            .connect()
            .entries(KEY)
            .into_iter()
            .map(|(_, fields)| fields.into_keys().next().unwrap())
            .collect()
    };
    for (more, field) in
        [(&[][..], "anthropic"), (&["--from", "anthropic"], "anthropic"), (&["--from", "openai"], "openai")]
    {
        let redis = RedisServer::start();
        let upstream = FakeUpstream::start([script.clone()]);
        let outcome = ask(&redis, &upstream, more);
        assert_eq!(fields(&redis)[1..4], [field; 3], "{more:?}: {outcome:?}");
        let is_anthropic = upstream.seen()[0].head.contains("anthropic-version");
        assert_eq!(is_anthropic, more == ["--from", "anthropic"]);
    }
}

#[test]
fn an_error_event_ends_the_answer_whatever_its_content() {
    for (data, code, words) in [
        ("no room", "provider_error", "no room"),
        (r#"{"message":"boom","code":"overloaded"}"#, "overloaded", "boom"),
    ] {
        let redis = RedisServer::start();
        let error = Step::Send(format!("event: error\ndata: {data}\n\n").into_bytes());
        let upstream = FakeUpstream::start([vec![head(), event(&token("a")), error, Step::Hang]]);
        let outcome = ask(&redis, &upstream, &[]);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains(&format!("{code}: {words}")), "{outcome:?}");
        let last: Value = serde_json::from_str(payloads(&redis).last().unwrap()).unwrap();
        assert_eq!(
            (&last["type"], &last["code"], &last["message"]),
            (&"error".into(), &code.into(), &words.into())
        );
    }
}

#[test]
fn piped_input_without_events_is_a_failure_too() {
    for from in ["openai", "anthropic"] {
        for (input, words) in [
            (NO_KEY, "Incorrect API key (invalid_api_key)"),
            ("", "nothing came"),
            ("<html><title>401</title></html>", "401"),
            ("curl: (6) Could not resolve host\n", "Could not resolve host"),
        ] {
            let redis = RedisServer::start();
            let outcome = run(produce(&redis, &["--from", from]), input.as_bytes());
            let (code, message) = only_error(&redis);
            assert_eq!((outcome.code, code.as_str()), (Some(1), "upstream_malformed"), "{outcome:?}");
            assert!(message.ends_with(words), "{message}");
            assert!(outcome.stderr.contains(&message), "{outcome:?}");
        }
    }
    // At once, while the pipe stays open.
    let redis = RedisServer::start();
    let mut reading = Background::start(produce(&redis, &["--from", "openai"]));
    let mut stdin = reading.take_stdin();
    stdin.write_all(NO_KEY.as_bytes()).unwrap();
    let outcome = reading.finish();
    drop(stdin);
    assert_eq!((outcome.code, only_error(&redis).0.as_str()), (Some(1), "upstream_malformed"), "{outcome:?}");
}

#[test]
fn a_relay_reports_it_too() {
    let redis = RedisServer::start();
    let upstream = FakeUpstream::start([refusal("200 OK", "", NO_KEY)]);
    let (setting, url) = (format!("redis.url={}", redis.url()), upstream.chat_url());
    let worker = Background::start(llm_bridge(&["relay", "--url", &url, "--set", &setting]));
    let request = String::from_utf8_lossy(REQUEST);
    redis.connect().run::<String>(&[
        "XADD",
        "llm:requests",
        "*",
        "session",
        "s1",
        "model",
        "m",
        "request",
        &request,
    ]);
    wait_until("the answer", || payloads(&redis).len() == 2);
    let (code, message) = only_error(&redis);
    assert_eq!((code.as_str(), upstream.seen().len()), ("upstream_malformed", 1));
    assert!(message.contains("Incorrect API key"), "{message}");
    drop(worker);
}
