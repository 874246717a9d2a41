//! `produce` and the answers of models' servers: payloads are passed on byte for byte, and the generation gets one
//! terminal entry, however the server behaves.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::SockRef;
use tempfile::TempDir;

use crate::fixtures;
use crate::support::authority::Authority;
use crate::support::command::{Background, Outcome, llm_bridge, run};
use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::patience::{wait_for, wait_until};
use crate::support::redis::RedisServer;
use crate::support::upstream::{
    FakeUpstream, Script, Step, chat, chunk, chunked_head, event, finish, head, refusal, token,
};
use crate::support::viewer::{KINDS, Kind, Viewer};

const KEY: &str = "llm:stream:s1:m";
const REQUEST: &str = r#"{"model":"gpt","messages":[]}"#;

/// `produce` into `s1/m`.
fn produce(redis: &RedisServer, more: &[&str]) -> Command {
    let setting = format!("redis.url={}", redis.url());
    let arguments = ["produce", "--session", "s1", "--model", "m", "--set", &setting];
    llm_bridge(&[&arguments, more].concat())
}

/// `produce --url` with the request on its standard input.
fn ask(redis: &RedisServer, upstream: &FakeUpstream, more: &[&str]) -> Outcome {
    let url = upstream.chat_url();
    let arguments = ["--url", &url, "--request", "-"];
    run(produce(redis, &[&arguments, more].concat()), REQUEST.as_bytes())
}

/// The stream's entries: `start`, `heartbeat`, `end stop`, `error CODE`, or the field and payload of a raw one.
fn entries(redis: &RedisServer) -> Vec<String> {
    let line = |(_, fields): (String, std::collections::HashMap<String, Vec<u8>>)| {
        let (form, payload) = fields.into_iter().next().unwrap();
        let payload = String::from_utf8(payload).unwrap();
        if form != "data" {
            return format!("{form} {payload}");
        }
        let object: Value = serde_json::from_str(&payload).unwrap();
        assert_eq!(object.get("seq"), None, "raw entries have no numbers: {object}");
        let detail = object.get("code").or_else(|| object.get("finish_reason")).and_then(Value::as_str);
        let kind = object["type"].as_str().unwrap();
        detail.map_or_else(|| kind.to_owned(), |detail| format!("{kind} {detail}"))
    };
    // A server that was restarted replies LOADING for a while.
    let entries: Vec<(String, std::collections::HashMap<String, Vec<u8>>)> =
        wait_for("the entries", || redis.connect().try_run(&["XRANGE", KEY, "-", "+"]).ok());
    entries.into_iter().map(line).collect()
}

/// `start`, then raw entries of these payloads.
fn started(payloads: &[&str]) -> Vec<String> {
    let raw = payloads.iter().map(|payload| format!("openai {payload}"));
    std::iter::once("start".to_owned()).chain(raw).collect()
}

/// Sends requests to a server with these scripts; returns the output of `produce`, the entries, and the number of
/// requests.
fn asked(scripts: Vec<Script>, more: &[&str]) -> (Outcome, Vec<String>, usize) {
    let redis = RedisServer::start();
    let upstream = FakeUpstream::start(scripts);
    let outcome = ask(&redis, &upstream, more);
    (outcome, entries(&redis), upstream.seen().len())
}

#[test]
fn an_answer_is_passed_on_byte_for_byte() {
    let redis = RedisServer::start();
    let upstream = FakeUpstream::start([chat(&["Grüße ", "\u{1F9ED}"])]);
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    fs::write(&key, "secret\n").unwrap();
    let more = ["--key-file", key.to_str().unwrap(), "--header", "X-Team: a"];
    let outcome = ask(&redis, &upstream, &more);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let expected = [token("Grüße "), token("\u{1F9ED}"), finish(), "[DONE]".into()];
    assert_eq!(entries(&redis), started(&expected.each_ref().map(String::as_str)));
    let seen = &upstream.seen()[0];
    assert_eq!(seen.body["stream"], true);
    assert_eq!(seen.body["stream_options"]["include_usage"], true);
    assert_eq!(seen.body["model"], "gpt");
    let expected = [
        "authorization: bearer secret",
        "x-team: a",
        "accept: text/event-stream",
        "accept-encoding: identity",
    ];
    for header in expected {
        assert!(seen.head.contains(header), "{}", seen.head);
    }
    assert!(!outcome.stderr.contains("secret"));
    let announced: Vec<(String, std::collections::HashMap<String, String>)> =
        redis.connect().run(&["XRANGE", "llm:announce", "-", "+"]);
    assert_eq!(announced[0].1["stream"], KEY);
}

#[test]
fn every_framing_of_a_body_is_read() {
    let events = format!(": hello\r\n\r\ndata: {}\r\n\r\ndata: [DONE]\r\n\r\n", token("a"));
    let bytes = events.as_bytes();
    let in_chunks: Script =
        std::iter::once(chunked_head()).chain(bytes.chunks(7).map(chunk)).chain([chunk(b"")]).collect();
    let to_the_close = vec![head(), Step::Send(bytes.to_vec())];
    let length = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {}\r\n\r\n",
        bytes.len()
    );
    let with_length = vec![Step::Send(length.into_bytes()), Step::Send(bytes.to_vec())];
    // Nothing after the final event, not even a line feed.
    let cut = vec![head(), event(&token("a")), Step::Send(b"data: [DONE]".to_vec())];
    for script in [in_chunks, to_the_close, with_length, cut] {
        let (outcome, entries, _) = asked(vec![script.clone()], &[]);
        assert_eq!((outcome.code, entries), (Some(0), started(&[&token("a"), "[DONE]"])), "{script:?}");
    }
}

#[test]
fn an_end_that_is_left_unsaid_is_written() {
    let (outcome, entries, _) = asked(vec![vec![head(), event(&token("a")), event(&finish())]], &[]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(entries.last().unwrap(), "end stop");
    // Also if the connection stays open.
    let (outcome, entries, _) =
        asked(vec![vec![head(), event(&token("a")), event(&finish()), Step::Hang]], &[]);
    assert_eq!((outcome.code, entries.last().unwrap().as_str()), (Some(0), "end stop"));
}

#[test]
fn refusals_are_tried_again_before_the_first_token() {
    let busy = refusal("429 Too Many Requests", "Retry-After: 1\r\n", r#"{"error":{"message":"busy"}}"#);
    let broken = refusal("500 Internal Server Error", "", "oops");
    let began = Instant::now();
    let (outcome, entries, requests) = asked(vec![busy.clone(), broken.clone(), chat(&["a"])], &[]);
    assert_eq!((outcome.code, requests), (Some(0), 3), "{outcome:?}");
    assert!(began.elapsed() >= Duration::from_secs(1), "Retry-After is obeyed");
    assert_eq!(entries, started(&[&token("a"), &finish(), "[DONE]"]));
    // Attempts are limited, and errors that a repetition does not fix are not tried again.
    let (outcome, entries, requests) = asked(vec![broken], &["--retries", "1"]);
    assert_eq!((outcome.code, requests), (Some(1), 2));
    assert_eq!(entries, ["start", "error upstream_refused"]);
    let unknown = refusal("404 Not Found", "", r#"{"error":{"message":"no such model"}}"#);
    let (outcome, entries, requests) = asked(vec![unknown], &[]);
    assert_eq!((requests, entries), (1, vec!["start".into(), "error upstream_refused".into()]));
    assert!(outcome.stderr.contains("no such model"), "{outcome:?}");
    let patient = refusal("503 Service Unavailable", "Retry-After: 7200\r\n", "");
    let (_, entries, requests) = asked(vec![patient], &[]);
    assert_eq!((requests, entries), (1, vec!["start".into(), "error upstream_refused".into()]));
}

#[test]
fn later_failures_end_the_answer() {
    let broke_off = vec![head(), event(&token("a")), Step::Send(b"data: {\"cho".to_vec())];
    let mid_chunk = vec![
        chunked_head(),
        chunk(format!("data: {}\n\n", token("a")).as_bytes()),
        Step::Send(b"40\r\nda".to_vec()),
    ];
    for script in [broke_off, mid_chunk] {
        let (outcome, entries, requests) = asked(vec![script], &[]);
        assert_eq!((outcome.code, requests), (Some(1), 1), "{outcome:?}");
        assert_eq!(entries, [started(&[&token("a")]), vec!["error upstream_broke_off".into()]].concat());
    }
    let silent = vec![head(), event(&token("a")), Step::Hang];
    let (_, entries, _) = asked(vec![silent], &["--silence-timeout", "200ms"]);
    assert_eq!(entries.last().unwrap(), "error upstream_timeout");
    let (_, entries, _) = asked(vec![vec![Step::Hang]], &["--first-timeout", "200ms"]);
    assert_eq!(entries, ["start", "error upstream_timeout"]);
    let no_stream = refusal("200 OK", "", r#"{"choices":[]}"#);
    let (_, entries, _) = asked(vec![no_stream], &[]);
    assert_eq!(entries, ["start", "error upstream_malformed"]);
    let error = r#"{"error":{"message":"overloaded"}}"#;
    let (outcome, entries, _) = asked(vec![vec![head(), event(&token("a")), event(error)]], &[]);
    // The stream has the server's message about the failure, and the exit status shows it too.
    assert_eq!((outcome.code, entries), (Some(1), started(&[&token("a"), error])));
    assert!(outcome.stderr.contains("provider_error: overloaded"), "{outcome:?}");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let redis = RedisServer::start();
    let upstream = FakeUpstream::start([]);
    let url = upstream.chat_url();
    drop(upstream);
    let arguments = ["--url", &url, "--request", "-", "--retries", "1"];
    let outcome = run(produce(&redis, &arguments), REQUEST.as_bytes());
    assert_eq!(
        (outcome.code, entries(&redis)),
        (Some(1), vec!["start".into(), "error upstream_unreachable".into()])
    );
    assert!(outcome.stderr.contains("upstream_unreachable"), "{outcome:?}");
}

/// How a server treats the first connection, once a request's head, or the beginning of something else, has arrived.
#[derive(Debug, Clone, Copy)]
enum Treats {
    Answers(&'static str),
    Closes,
    Resets,
}

/// Runs `produce` while this listener treats its first connection like this. Returns what arrived, and the outcome.
fn meet(server: &TcpListener, treats: Treats, command: Command) -> (String, Outcome) {
    std::thread::scope(|scope| {
        let heard = scope.spawn(|| {
            let mut socket = server.accept().unwrap().0;
            let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
            // A head may arrive in several pieces.
            let is_head = |heard: &[u8]| heard.is_empty() || heard[0].is_ascii_uppercase();
            while is_head(&heard) && !heard.ends_with(b"\r\n\r\n") && !heard.ends_with(b"}") {
                let len = socket.read(&mut piece).unwrap();
                assert!(len > 0, "the client left after {heard:?}");
                heard.extend_from_slice(&piece[..len]);
            }
            match treats {
                Treats::Answers(answer) => socket.write_all(answer.as_bytes()).unwrap(),
                Treats::Closes => (),
                Treats::Resets => SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap(),
            }
            String::from_utf8_lossy(&heard).into_owned()
        });
        let outcome = run(command, REQUEST.as_bytes());
        // So that nobody waits for a connection that never came.
        drop(TcpStream::connect(server.local_addr().unwrap()));
        (heard.join().unwrap(), outcome)
    })
}

#[test]
fn a_proxy_that_the_environment_names_is_asked() {
    let answers = ["502 Bad Gateway", "200 Connection established", "nonsense"]
        .map(|status| format!("HTTP/1.1 {status}\r\n\r\n").leak() as &str);
    for treats in answers.map(Treats::Answers).into_iter().chain([Treats::Closes, Treats::Resets]) {
        let redis = RedisServer::start();
        let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = "https://model.example/v1/chat/completions";
        let mut command = produce(&redis, &["--url", url, "--request", "-", "--retries", "0"]);
        command.env("HTTPS_PROXY", format!("http://{}", proxy.local_addr().unwrap()));
        let (heard, outcome) = meet(&proxy, treats, command);
        assert!(heard.starts_with("CONNECT model.example:443 "), "{treats:?}: {heard:?}, {outcome:?}");
        assert_eq!(entries(&redis), ["start", "error upstream_unreachable"], "{treats:?}: {outcome:?}");
    }
}

#[test]
fn a_server_counts_as_connected_to_after_its_handshake() {
    for (scheme, treats, code) in [
        ("https", Treats::Closes, "upstream_unreachable"),
        ("https", Treats::Resets, "upstream_unreachable"),
        ("https", Treats::Answers("no TLS\n"), "upstream_unreachable"),
        ("http", Treats::Closes, "upstream_broke_off"),
        ("http", Treats::Resets, "upstream_broke_off"),
    ] {
        let redis = RedisServer::start();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{scheme}://{}/v1/chat/completions", server.local_addr().unwrap());
        let command = produce(&redis, &["--url", &url, "--request", "-", "--retries", "0"]);
        let (_, outcome) = meet(&server, treats, command);
        let came = entries(&redis);
        assert_eq!(came, ["start", &format!("error {code}")], "{scheme} {treats:?}: {outcome:?}");
    }
}

#[test]
fn wrong_usage_is_named_before_anything_is_written() {
    let redis = RedisServer::start();
    let url = "http://127.0.0.1:9/v1/chat/completions";
    for (arguments, input) in [
        (vec!["--url", url], REQUEST),
        (vec!["--url", "nowhere", "--request", "-"], REQUEST),
        (vec!["--url", url, "--request", "-"], "[1]"),
        (vec!["--url", url, "--request", "/nonexistent"], ""),
        (vec!["--url", url, "--request", "-", "--key-env", "NOT_SET"], REQUEST),
        (vec!["--url", url, "--request", "-", "--header", "nonsense"], REQUEST),
        (vec!["--url", url, "--request", "-", "--silence-timeout", "0"], REQUEST),
        (vec!["--url", url, "--request", "-", "--from", "text"], REQUEST),
        (vec!["--url", url, "--request", "-", "--from", "jsonl"], REQUEST),
    ] {
        let outcome = run(produce(&redis, &arguments), input.as_bytes());
        assert_eq!(outcome.code, Some(2), "{arguments:?}: {outcome:?}");
    }
    assert!(entries(&redis).is_empty());
}

/// How a viewer asks to stop.
#[derive(Debug, Clone, Copy)]
enum By {
    Post,
    WebSocket,
}

#[test]
fn a_cancelled_answer_ends_for_all_viewers_and_the_upstream_is_dropped() {
    for by in [By::Post, By::WebSocket] {
        let redis = RedisServer::start();
        let daemon = Daemon::start(&redis);
        let upstream = FakeUpstream::start([vec![head(), event(&token("a")), Step::Hang]]);
        let url = upstream.chat_url();
        let dir = tempfile::tempdir().unwrap();
        let process = Background::start(produce(&redis, &["--url", &url, "--request", &request_file(&dir)]));
        let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "wait=60"));
        for viewer in &mut viewers {
            viewer.read_until("the start", |frame| frame.kind() == "start");
        }
        wait_until("the token", || entries(&redis).len() == 2);
        // A client that disconnects cancels nothing.
        drop(Viewer::open(daemon.public, Kind::WebSocket, "s1/m", ""));
        assert_eq!(upstream.left(), 0);
        match by {
            By::Post => {
                let answer = http::request(daemon.public, "POST", "/v1/streams/s1/m/cancel", &[]);
                assert_eq!(answer.status, 202);
            }
            By::WebSocket => viewers[0].websocket().send(&json!({"type": "cancel", "reason": "enough"})),
        }
        let outcome = process.finish();
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        wait_until("the upstream to be let go", || upstream.left() == 1);
        assert_eq!(entries(&redis), [started(&[&token("a")]), vec!["end cancelled".into()]].concat());
        let id = redis.connect().entries(KEY).last().unwrap().0.clone();
        for viewer in viewers {
            let transcript = viewer.read_all();
            transcript.expect_finished(&id);
            assert_eq!(transcript.frames.last().unwrap().value["finish_reason"], "cancelled", "{by:?}");
        }
    }
}

#[test]
fn a_cancelled_input_ends_too_and_an_earlier_request_stops_nothing() {
    let redis = RedisServer::start();
    let cancel = ["XADD", "llm:control:s1:m", "*", "type", "cancel", "reason", "", "by", "me", "at", "1"];
    // It was meant for the answer that exists already.
    let earlier = r#"{"type":"error","code":"earlier"}"#;
    redis.connect().run::<String>(&["XADD", "llm:stream:s1:m", "*", "data", earlier]);
    redis.connect().run::<String>(&cancel);
    let mut process = Background::start(produce(&redis, &["--from", "openai"]));
    let _stdin = process.take_stdin();
    let mut stdin = &_stdin;
    std::io::Write::write_all(&mut stdin, format!("data: {}\n\n", token("a")).as_bytes()).unwrap();
    wait_until("the token", || entries(&redis).len() == 3);
    assert!(process.is_running());
    redis.connect().run::<String>(&cancel);
    let outcome = process.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(entries(&redis).last().unwrap(), "end cancelled");
}

#[test]
fn an_interrupted_answer_says_so() {
    let redis = RedisServer::start();
    let upstream = FakeUpstream::start([vec![head(), event(&token("a")), Step::Hang]]);
    let dir = tempfile::tempdir().unwrap();
    let url = upstream.chat_url();
    let process = Background::start(produce(&redis, &["--url", &url, "--request", &request_file(&dir)]));
    wait_until("the token", || entries(&redis).len() == 2);
    process.signal(libc::SIGTERM);
    assert_eq!(process.finish().code, Some(1));
    assert_eq!(entries(&redis).last().unwrap(), "error producer_failed");
}

#[test]
fn raw_entries_survive_an_outage_once_each() {
    let mut redis = RedisServer::start_durable();
    let texts: Vec<String> = (0..40).map(|number| format!("{number} ")).collect();
    let mut script = vec![head()];
    for (number, text) in texts.iter().enumerate() {
        script.push(event(&token(text)));
        script.push(if number == 10 { Step::Gate } else { Step::Pause(Duration::from_millis(5)) });
    }
    script.extend([event(&finish()), event("[DONE]")]);
    let upstream = FakeUpstream::start([script]);
    let dir = tempfile::tempdir().unwrap();
    let url = upstream.chat_url();
    let process = Background::start(produce(&redis, &["--url", &url, "--request", &request_file(&dir)]));
    wait_until("some tokens", || entries(&redis).len() == 12);
    upstream.open_gate();
    redis.kill();
    std::thread::sleep(Duration::from_millis(100));
    redis.restart();
    let outcome = process.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let payloads: Vec<String> =
        texts.iter().map(|text| token(text)).chain([finish(), "[DONE]".into()]).collect();
    assert_eq!(entries(&redis), started(&payloads.iter().map(String::as_str).collect::<Vec<_>>()));
}

#[test]
fn a_server_behind_a_private_authority_is_asked_over_tls() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (ca, other_ca) = (ours.ca_file(), theirs.ca_file());
    let upstream = FakeUpstream::start_tls([chat(&["a", "b"])], ours.server_config());
    let delivered = started(&[&token("a"), &token("b"), &finish(), "[DONE]"]);
    for (more, expected) in [
        (vec!["--ca-file", &ca], delivered),
        (vec!["--ca-file", &other_ca], vec!["start".into(), "error upstream_unreachable".into()]),
        (vec![], vec!["start".into(), "error upstream_unreachable".into()]),
    ] {
        let redis = RedisServer::start();
        let outcome = ask(&redis, &upstream, &[&more[..], &["--retries", "0"]].concat());
        assert_eq!(entries(&redis), expected, "{more:?}: {outcome:?}");
        assert!(outcome.code == Some(0) || outcome.stderr.contains("certificate"), "{outcome:?}");
    }
    // An untrusted server is sent nothing, not even the key.
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn a_cancelled_answer_over_tls_lets_the_upstream_go() {
    let authority = Authority::new();
    let script = vec![head(), event(&token("a")), Step::Hang];
    let upstream = FakeUpstream::start_tls([script], authority.server_config());
    let (redis, dir) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let (url, request, ca) = (upstream.chat_url(), request_file(&dir), authority.ca_file());
    let process =
        Background::start(produce(&redis, &["--url", &url, "--request", &request, "--ca-file", &ca]));
    wait_until("the token", || entries(&redis).len() == 2);
    redis.connect().run::<String>(&["XADD", "llm:control:s1:m", "*", "type", "cancel"]);
    assert_eq!(process.finish().code, Some(0));
    wait_until("the upstream to be let go", || upstream.left() == 1);
    assert_eq!(entries(&redis), [started(&[&token("a")]), vec!["end cancelled".into()]].concat());
}

#[test]
fn heartbeats_are_written_while_only_comments_come() {
    let (redis, dir) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let script = vec![head(), Step::CommentedGate, event(&token("a")), event("[DONE]")];
    let upstream = FakeUpstream::start([script]);
    let (url, request) = (upstream.chat_url(), request_file(&dir));
    let arguments = ["--url", &url, "--request", &request, "--heartbeat-every", "50ms"];
    let asking = Background::start(produce(&redis, &arguments));
    let beats = || entries(&redis).iter().filter(|entry| *entry == "heartbeat").count();
    wait_until("heartbeats", || beats() >= 3);
    upstream.open_gate();
    assert_eq!(asking.finish().code, Some(0));
    let delivered = |entries: Vec<String>| -> Vec<String> {
        entries.into_iter().filter(|entry| entry != "heartbeat").collect()
    };
    assert_eq!(delivered(entries(&redis)), started(&[&token("a"), "[DONE]"]));

    let before = beats();
    let mut reading = Background::start(produce(&redis, &["--from", "openai", "--heartbeat-every", "50ms"]));
    let mut stdin = reading.take_stdin();
    let mut say = |text: String| std::io::Write::write_all(&mut stdin, text.as_bytes()).unwrap();
    say(format!("data: {}\n\n", token("b")));
    wait_until("more heartbeats", || {
        say(": PROCESSING\n\n".to_owned());
        beats() >= before + 3
    });
    say("data: [DONE]\n\n".to_owned());
    drop(stdin);
    assert_eq!(reading.finish().code, Some(0));
    let both = [started(&[&token("a"), "[DONE]"]), started(&[&token("b"), "[DONE]"])].concat();
    assert_eq!(delivered(entries(&redis)), both);
}

#[test]
fn an_answer_without_a_last_word_is_over_when_readers_say_so() {
    let script = vec![head(), event(&token("a")), event(&finish()), Step::Hang];
    let grace = ["--set", "stream.finish_grace=100ms", "--silence-timeout", "1s"];
    let (_, entries, _) = asked(vec![script.clone()], &grace);
    assert_eq!(entries.last().unwrap(), "end stop");
    let never = ["--set", "stream.finish_grace=0", "--silence-timeout", "3s"];
    let (_, entries, _) = asked(vec![script], &never);
    assert_eq!(entries.last().unwrap(), "error upstream_timeout");
}

fn request_file(dir: &TempDir) -> String {
    let path: PathBuf = dir.path().join("request.json");
    fs::write(&path, REQUEST).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn recorded_answers_are_passed_on_as_they_were_sent() {
    let Some(directory) = fixtures::directory() else {
        eprintln!("no recordings here: LLM_BRIDGE_FIXTURES can name their directory");
        return;
    };
    for recording in fixtures::recordings(&directory) {
        println!("{}", recording.display());
        let text = fs::read_to_string(&recording).unwrap();
        let is_sse = recording.extension().is_some_and(|extension| extension == "sse");
        let payload =
            |line| if is_sse { str::strip_prefix(line, "data:").map(str::trim) } else { Some(line) };
        let payloads: Vec<&str> = text.lines().filter_map(payload).filter(|line| !line.is_empty()).collect();
        let body = if is_sse {
            text.clone()
        } else {
            payloads.iter().map(|payload| format!("data: {payload}\n\n")).collect()
        };
        // In pieces independent of lines or characters.
        let script: Script = std::iter::once(chunked_head())
            .chain(body.as_bytes().chunks(1009).map(chunk))
            .chain([chunk(b"")])
            .collect();
        let redis = RedisServer::start();
        let upstream = FakeUpstream::start([script]);
        let is_anthropic =
            recording.to_string_lossy().contains("anthropic") || text.contains("\"message_start\"");
        let path = if is_anthropic { "messages" } else { "chat/completions" };
        let url = format!("http://{}/v1/{path}", upstream.address);
        let outcome = run(produce(&redis, &["--url", &url, "--request", "-"]), REQUEST.as_bytes());
        let form = if is_anthropic { "anthropic" } else { "openai" };
        let seen = entries(&redis);
        let raw: Vec<&str> =
            seen.iter().filter_map(|entry| entry.strip_prefix(&format!("{form} "))).collect();
        // Payloads after the end belong to no answer: they are not even read.
        assert_eq!(raw, payloads[..raw.len()], "{outcome:?}");
        let is_late = |payload: &&str| *payload == "[DONE]" || payload.contains("response.failed");
        assert!(
            payloads[raw.len()..].iter().all(is_late),
            "{} of {}: {outcome:?}",
            raw.len(),
            payloads.len()
        );
        let terminals = seen.iter().filter(|entry| entry.starts_with("end") || entry.starts_with("error"));
        assert!(terminals.count() <= 1, "{seen:?}");
    }
}
