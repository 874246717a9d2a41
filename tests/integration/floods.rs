//! Dozens of clients that send requests and messages endlessly: their cost to others, and the memory held for them.
//! The benches measure how fast live text is meanwhile; here it only has to arrive.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::patience::wait_until;
use crate::support::producer::{Producer, tokens};
use crate::support::raw::{PING, PONG, Raw, TEXT, connect_narrow, masked};
use crate::support::redis::RedisServer;
use crate::support::sse::SseClient;
use crate::support::viewer::{Kind, Viewer, target};

/// How many clients flood at once, and how many threads they share.
const CLIENTS: usize = 50;
const THREADS: usize = 5;
/// The most memory of the daemon while clients flood it, in bytes: its own, and a little for each client.
const MEMORY_UNDER_FLOOD: u64 = 64 << 20;
const REQUEST: &[u8] = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn message(value: &Value) -> Vec<u8> {
    masked(TEXT, value.to_string().as_bytes())
}

/// Sends the same bytes again and again on each connection, as fast as they are accepted, and reads all answers.
fn flood(mut raws: Vec<Raw>, bytes: &[u8], is_over: &AtomicBool) {
    let mut offsets = vec![0; raws.len()];
    while !is_over.load(Ordering::Relaxed) {
        let mut sent = 0;
        for (raw, offset) in raws.iter_mut().zip(&mut offsets) {
            raw.discard();
            let count = raw.send_some(&bytes[*offset..]).unwrap_or(0);
            *offset = (*offset + count) % bytes.len();
            sent += count;
        }
        if sent == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn live_text_continues_during_floods() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("stream.receipts=true").start();
    Producer::new(&redis, "victim", "m").delta("x");
    let subscribe = message(&json!({"type": "subscribe", "stream": "victim/m"}));
    let unsubscribe = message(&json!({"type": "unsubscribe", "stream": "victim/m"}));
    let cancel = "POST /v1/streams/victim/m/cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    let floods: [(&str, Option<&str>, Vec<u8>); 6] = [
        ("requests", None, REQUEST.repeat(500)),
        ("cancels", None, cancel.repeat(100).into_bytes()),
        ("pings", Some("/v1/ws"), masked(PING, b"x").repeat(1_000)),
        ("messages", Some("/v1/ws"), message(&json!({"type": "ping"})).repeat(500)),
        ("subscriptions", Some("/v1/ws"), [subscribe, unsubscribe].concat().repeat(100)),
        ("acks", Some("/v1/streams/victim/m"), message(&json!({"type": "ack", "id": "1-0"})).repeat(500)),
    ];
    for (what, path, bytes) in floods {
        let mut producer = Producer::new(&redis, "good", what);
        producer.start("g");
        let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, &producer.stream, "");
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                let connect = |_| match path {
                    Some(path) => Raw::websocket(daemon.public, path),
                    None => Raw::connect(daemon.public),
                };
                let raws: Vec<Raw> = (0..CLIENTS / THREADS).map(connect).collect();
                scope.spawn(|| flood(raws, &bytes, &is_over));
            }
            for number in 0..30 {
                producer.tokens(number..number + 1);
                viewer.read_to(producer.ids.last().unwrap());
            }
            is_over.store(true, Ordering::Relaxed);
        });
        let end = producer.end();
        let transcript = viewer.read_all();
        assert_eq!(transcript.text(), tokens(0..30), "{what}");
        transcript.expect_finished(&end);
    }
}

/// Requests wait in the socket until earlier answers have been sent; then all of them are answered.
#[test]
fn answers_that_nobody_reads_are_bounded_and_not_lost() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let bytes = REQUEST.repeat(2_000);
    let mut raws: Vec<(Raw, usize)> =
        (0..CLIENTS).map(|_| (Raw::over(connect_narrow(daemon.public)), 0)).collect();
    // Until nothing was accepted for a while: the server has stopped reading.
    let mut idle = 0;
    while idle < 200 {
        let mut sent = 0;
        for (raw, total) in &mut raws {
            let count = raw.send_some(&bytes[*total % bytes.len()..]).expect("it is not closed");
            *total += count;
            sent += count;
        }
        idle = if sent == 0 { idle + 1 } else { 0 };
        thread::sleep(Duration::from_millis(5));
    }
    let held = daemon.gauge("outbox_bytes");
    assert!(held <= (CLIENTS as u64) * (64 << 10), "{held} bytes of answers");
    let most = daemon.resident_bytes_max();
    assert!(most < MEMORY_UNDER_FLOOD, "{most} bytes");
    let (mut raw, total) = raws.swap_remove(0);
    for _ in 0..(total / REQUEST.len()).min(2_000) {
        let head = raw.head();
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
        let length =
            head.split("Content-Length: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap();
        raw.body(length.parse().unwrap());
    }
    drop((raw, raws));
    wait_until("everything to be given back", || {
        daemon.gauge("outbox_bytes") == 0 && daemon.gauge("input_bytes") == 0
    });
}

#[test]
fn messages_whose_answers_nobody_reads_are_left_in_the_socket() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let bytes = message(&json!({"type": "ping", "nonce": "x".repeat(900)})).repeat(100);
    let mut raws: Vec<Raw> = (0..CLIENTS).map(|_| Raw::websocket_narrow(daemon.public, "/v1/ws")).collect();
    let (mut idle, mut offsets) = (0, [0; CLIENTS]);
    while idle < 200 {
        let mut sent = 0;
        for (raw, offset) in raws.iter_mut().zip(&mut offsets) {
            let count = raw.send_some(&bytes[*offset..]).expect("it is not closed");
            *offset = (*offset + count) % bytes.len();
            sent += count;
        }
        idle = if sent == 0 { idle + 1 } else { 0 };
        thread::sleep(Duration::from_millis(5));
    }
    let held = daemon.gauge("outbox_bytes") + daemon.gauge("input_bytes");
    assert!(held <= (CLIENTS as u64) * (128 << 10), "{held} bytes");
    let most = daemon.resident_bytes_max();
    assert!(most < MEMORY_UNDER_FLOOD, "{most} bytes");
    // A client that reads again is served again.
    let mut raw = raws.swap_remove(0);
    for _ in 0..100 {
        assert_eq!(raw.json()["type"], "pong");
    }
}

/// States that clients do not read are held within a budget, beyond which they are refused; small ones are not.
#[test]
fn large_states_share_a_budget() {
    const STATE: usize = 6 << 20;
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "large", "m");
    for _ in 0..12 {
        producer.delta(&"x".repeat(STATE / 12));
    }
    Producer::new(&redis, "small", "m").delta("hello");
    let request = |name: &str| format!("GET /v1/streams/{name}/m HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut raws = Vec::new();
    for _ in 0..40 {
        let mut raw = Raw::over(connect_narrow(daemon.public));
        assert!(raw.send(request("large").as_bytes()));
        raws.push(raw);
    }
    let statuses: Vec<bool> = raws.iter_mut().map(|raw| raw.head().starts_with("HTTP/1.1 200 ")).collect();
    assert!(statuses.iter().any(|is_given| *is_given), "nobody got one");
    let mut other = Raw::begin(daemon.public, request("small").as_bytes());
    assert!(other.head().starts_with("HTTP/1.1 200 "));
    let most = daemon.resident_bytes_max();
    assert!(most < 40 * STATE as u64, "{most} bytes");
    wait_until("them to be seen", || daemon.gauge("state_bytes") >= STATE as u64);
    drop(raws);
    wait_until("a large state", || {
        let mut raw = Raw::begin(daemon.public, request("large").as_bytes());
        raw.head().starts_with("HTTP/1.1 200 ") && raw.body(STATE).len() == STATE
    });
    wait_until("their bytes to be given back", || daemon.gauge("state_bytes") == 0);
}

/// A message that has begun must be completed in time, whatever else its client sends meanwhile.
#[test]
fn a_message_that_does_not_end_ends_its_connection() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("client.handshake_timeout=300ms").start();
    let whole = masked(TEXT, format!(r#"{{"type":"ping","ignored":"{}"}}"#, "x".repeat(60_000)).as_bytes());
    let begun = [&whole[..1], &whole[..5], &whole[..40_000], &masked(0x01, b"{\"type\"")];
    let mut raws: Vec<Raw> = (0..40).map(|_| Raw::websocket(daemon.public, "/v1/ws")).collect();
    for (raw, bytes) in raws.iter_mut().zip(begun.into_iter().cycle()) {
        assert!(raw.send(bytes));
    }
    wait_until("what has begun to be seen", || {
        daemon.gauge("input_bytes") > 0 || daemon.counter("handshakes_timed_out") > 0
    });
    // Pings between the fragments do not extend the message's time.
    let mut trickling = Raw::websocket(daemon.public, "/v1/ws");
    assert!(trickling.send(&masked(0x01, b"{")));
    while trickling.send(&[masked(PONG, b""), masked(0x00, b"x")].concat()) {
        thread::sleep(Duration::from_millis(20));
    }
    for raw in &mut raws {
        assert_eq!(raw.close_code(), Some(4408));
    }
    wait_until("nobody to be left", || {
        daemon.gauge("connections_open") == 0 && daemon.gauge("input_bytes") == 0
    });
    // A client that sends whole messages stays connected.
    let mut slow = Raw::websocket(daemon.public, "/v1/ws");
    for _ in 0..4 {
        assert!(slow.send(&whole));
        assert_eq!(slow.json()["type"], "pong");
        thread::sleep(Duration::from_millis(150));
    }
}

/// A client that closes its sending side right after its request still gets the answer.
#[test]
fn clients_that_close_their_sending_side_get_the_answer() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("hello");
    let ask = |method: &str, path: &str, headers: &str| {
        let mut raw = Raw::connect(daemon.public);
        raw.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes());
        raw.finish_sending();
        raw
    };
    let state = "/v1/streams/s1/m";
    for (method, path, headers, status) in [
        ("GET", state, "", "200"),
        ("HEAD", state, "", "200"),
        ("GET", "/v1/streams/none/m", "", "404"),
        ("GET", "/llm-bridge.js", "", "200"),
        ("GET", "/nothing", "", "404"),
        ("POST", "/v1/streams/s1/m/cancel", "Content-Length: 0\r\n", "202"),
        // The stream may not exist: a name that may never appear is not waited for.
        ("GET", "/v1/streams/none/m?wait=60", "Accept: text/event-stream\r\n", "404"),
    ] {
        let mut raw = ask(method, path, headers);
        let head = raw.head();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {head}");
        raw.rest();
    }
    // Several requests before the end.
    let mut several = Raw::connect(daemon.public);
    several.send(&[REQUEST, format!("GET {state} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()].concat());
    several.finish_sending();
    let text = String::from_utf8(several.rest()).unwrap();
    assert!(
        text.contains("HTTP/1.1 404 ") && text.contains("HTTP/1.1 200 ") && text.contains("hello"),
        "{text}"
    );
    // An event stream continues to its end.
    let mut events = ask("GET", state, "Accept: text/event-stream\r\n");
    assert!(events.head().starts_with("HTTP/1.1 200 "));
    producer.delta(" and more");
    producer.end();
    let text = String::from_utf8(events.rest()).unwrap();
    assert!(
        text.contains("hello") && text.contains(" and more") && text.contains(r#""type":"end""#),
        "{text}"
    );
    wait_until("nobody to be left", || daemon.gauge("connections_open") == 0);
}

/// A client that is gone is detected although nothing is sent to it, and clients that have only finished sending are
/// kept.
#[test]
fn a_client_that_leaves_a_silent_event_stream_is_detected() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("client.keepalive=10m").start();
    Producer::new(&redis, "s1", "m").delta("hello");
    let mut client = SseClient::open(daemon.public, &target("s1/m", ""), &[]);
    for _ in 0..2 {
        client.event().unwrap().unwrap();
    }
    drop(client);
    wait_until("nobody to be left", || daemon.gauge("connections_open") == 0);
}
