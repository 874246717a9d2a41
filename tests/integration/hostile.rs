//! Clients that violate the rules, on purpose or not: whatever they send, others are served exactly, and nothing of
//! it stays behind.

use std::time::Instant;

use serde_json::json;

use crate::support::daemon::{Daemon, DaemonOptions};
use crate::support::descriptors::allow_descriptors;
use crate::support::patience::{PATIENCE, wait_until};
use crate::support::producer::{Producer, tokens};
use crate::support::raw::{self, Raw, TEXT, masked};
use crate::support::redis::RedisServer;
use crate::support::viewer::{KINDS, Viewer, view};

/// A daemon with its Redis under attack.
struct Scene {
    redis: RedisServer,
    daemon: Daemon,
    attacks: usize,
}

impl Scene {
    fn start(settings: &[&str]) -> Self {
        let redis = RedisServer::start();
        let set = |options: DaemonOptions, setting: &&str| options.set(setting);
        // No keep-alives: a client that reads only after the attack answers no pings during it.
        let options = Daemon::options(&redis).set("client.keepalive=10m");
        let daemon = settings.iter().fold(options, set).start();
        Self { redis, daemon, attacks: 0 }
    }

    /// Checks that clients that read during the attack and those that connect after it get everything exactly.
    fn survives<T>(&mut self, attack: impl FnOnce(&Daemon) -> T) -> T {
        self.attacks += 1;
        let mut producer = Producer::new(&self.redis, &format!("healthy{}", self.attacks), "m");
        producer.start("g1");
        producer.tokens(0..20);
        let mut viewers = KINDS.map(|kind| Viewer::open(self.daemon.public, kind, &producer.stream, ""));
        for viewer in &mut viewers {
            viewer.read_to(producer.ids.last().unwrap());
        }
        let outcome = attack(&self.daemon);
        producer.tokens(20..40);
        let end = producer.end();
        let later = KINDS.map(|kind| view(self.daemon.public, kind, &producer.stream, ""));
        for transcript in viewers.map(Viewer::read_all).into_iter().chain(later) {
            assert_eq!(transcript.text(), tokens(0..40));
            assert_eq!(transcript.entries(), 42);
            transcript.expect_finished(&end);
        }
        outcome
    }
}

/// The status lines of the responses to these bytes, once the server has closed the connection.
fn statuses(daemon: &Daemon, bytes: &[u8]) -> Vec<u16> {
    let mut raw = Raw::connect(daemon.public);
    raw.send(bytes);
    let answer = raw.rest();
    let text = String::from_utf8_lossy(&answer);
    // Bodies may contain HTTP/1.1 too, but no number follows.
    text.split("HTTP/1.1 ").filter_map(|part| part.get(..3)?.parse().ok()).collect()
}

/// Checks that the only answer to the bytes is a client error or a close.
fn expect_refused(daemon: &Daemon, what: &str, bytes: &[u8]) {
    let statuses = statuses(daemon, bytes);
    assert!(statuses.len() <= 1, "{what}: {statuses:?}");
    // 505 is the right answer to an HTTP version that is not supported.
    let is_refusal = |status: &u16| matches!(status, 400..=499 | 505);
    assert!(statuses.iter().all(is_refusal), "{what}: {statuses:?}");
}

const GARBAGE: [&[u8]; 14] = [
    b"\x00\x01\x02\xff\xfe\r\n\r\n",
    // A TLS handshake and the HTTP/2 preface: clients of the wrong port.
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\r\n\r\n\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /v1/ws\r\n\r\n",
    b"GET /v1/ws HTTP/3.7\r\nHost: localhost\r\n\r\n",
    b"GET /v1/ws HTTP/1.1\r\nHo st: x\r\n\r\n",
    b"GET /v1/ws HTTP/1.1\r\n: x\r\n\r\n",
    b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\n folded: y\r\n\r\n",
    b"GET /v1/ws HTTP/1.1\r\nHost: \x00\x01\r\n\r\n",
    b"G\x00T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http:// HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
];

#[test]
fn garbage_is_refused() {
    let mut scene = Scene::start(&["client.handshake_timeout=1s"]);
    scene.survives(|daemon| {
        for bytes in GARBAGE {
            expect_refused(daemon, &String::from_utf8_lossy(bytes), bytes);
        }
    });
    wait_until("nobody to be left", || scene.daemon.gauge("connections_open") == 0);
}

#[test]
fn a_head_may_be_16_kib_and_no_more() {
    let mut scene = Scene::start(&[]);
    let head = |size: usize| {
        let begin = "GET /v1/streams/none/m HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: ";
        format!("{begin}{}\r\n\r\n", "x".repeat(size - begin.len() - 4))
    };
    scene.survives(|daemon| {
        assert_eq!(statuses(daemon, head(16 * 1024 - 64).as_bytes()), [404]);
        for size in [16 * 1024 + 64, 20 * 1024, 64 * 1024] {
            let status = statuses(daemon, head(size).as_bytes());
            assert!(matches!(status[..], [400..=499]), "{size}: {status:?}");
        }
        // A head that never ends is not read endlessly.
        let mut endless = Raw::begin(daemon.public, b"GET / HTTP/1.1\r\nX: ");
        flood_until_closed(&mut endless, &[b'x'; 4096]);
        let mut endless = Raw::begin(daemon.public, b"GET / HTTP/1.1\r\n");
        flood_until_closed(&mut endless, b"X: x\r\n");
        let mut endless = Raw::begin(daemon.public, b"GET /");
        flood_until_closed(&mut endless, &[b'x'; 4096]);
    });
}

#[test]
fn too_many_headers_are_refused() {
    let mut scene = Scene::start(&[]);
    scene.survives(|daemon| {
        for (count, line) in [(200, "X: x\r\n"), (1_000, "X: x\r\n"), (3_000, "a:\r\n"), (50_000, "a:\r\n")] {
            let head = format!("GET /v1/ws HTTP/1.1\r\nHost: localhost\r\n{}\r\n", line.repeat(count));
            expect_refused(daemon, &format!("{count} headers"), head.as_bytes());
        }
    });
}

/// The length of a request's body is determined in one way only; what could be read in two ways is refused, and
/// nothing after it is taken for a request.
#[test]
fn no_request_is_smuggled() {
    let mut scene = Scene::start(&["client.handshake_timeout=1s"]);
    let hidden = "POST /v1/streams/s1/hidden/cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    let (length, chunks) = (hidden.len(), "Transfer-Encoding: chunked\r\n");
    scene.survives(|daemon| {
        for headers in [
            format!("Content-Length: 0\r\nContent-Length: {length}\r\n"),
            format!("Content-Length: {length}\r\nContent-Length: 0\r\n"),
            format!("Content-Length: 0, {length}\r\n"),
            format!("{chunks}Content-Length: {length}\r\n"),
            format!("Content-Length: {length}\r\n{chunks}"),
            "Transfer-Encoding: xchunked\r\nContent-Length: 0\r\n".into(),
            "Transfer-Encoding: chunked, identity\r\n".into(),
            "Transfer-Encoding: gzip\r\n".into(),
            "Transfer-Encoding : chunked\r\nContent-Length: 0\r\n".into(),
            "Content-Length : 0\r\n".into(),
            "Content-Length: +0\r\n".into(),
            "Content-Length: -1\r\n".into(),
            "Content-Length: 0x0\r\n".into(),
            "Content-Length: \r\n".into(),
            "Content-Length: 99999999999999999999999\r\n".into(),
            "Content-Length: 1000000000000\r\n".into(),
        ] {
            let outer = "POST /v1/streams/s1/m/cancel HTTP/1.1\r\nHost: localhost\r\n";
            let request = format!("{outer}{headers}\r\n0\r\n\r\n{hidden}");
            expect_refused(daemon, &headers, request.as_bytes());
        }
        // Chunks with invalid sizes, or that never arrive.
        for body in ["x\r\n\r\n", "-1\r\n\r\n", "ffffffffffffffffffff\r\nx", "1;\r\nxx\r\n0\r\n\r\n", "\r\n"]
        {
            let request =
                format!("POST /v1/streams/s1/m/cancel HTTP/1.1\r\nHost: localhost\r\n{chunks}\r\n{body}");
            expect_refused(daemon, body, request.as_bytes());
        }
    });
    assert!(scene.redis.connect().keys("llm:control:*").is_empty(), "something was taken for a request");
}

#[test]
fn a_cancel_request_with_a_bad_body_is_refused() {
    let mut scene = Scene::start(&[]);
    Producer::new(&scene.redis, "s1", "m").delta("x");
    scene.survives(|daemon| {
        let deep = "[".repeat(50_000);
        let large = format!(r#"{{"reason":"{}"}}"#, "x".repeat(1024 * 1024));
        for body in ["no json", "[]", "5", r#"{"reason":5}"#, r#"{"reason":"#, "\u{0}", &deep, &large] {
            let head = "POST /v1/streams/s1/m/cancel HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
            let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
            let statuses = statuses(daemon, request.as_bytes());
            let shown = &body[..body.len().min(20)];
            assert!(matches!(statuses[..], [400..=499]), "{shown}: {statuses:?}");
        }
    });
    assert!(scene.redis.connect().keys("llm:control:*").is_empty());
}

#[test]
fn clients_that_never_finish_a_request_are_closed() {
    let mut scene = Scene::start(&["client.handshake_timeout=300ms"]);
    let before = scene.daemon.counter("handshakes_timed_out");
    let post = "POST /v1/streams/s1/m/cancel HTTP/1.1\r\nHost: localhost\r\n";
    let body = &format!("{post}Content-Length: 10\r\n\r\n");
    let chunked = &format!("{post}Transfer-Encoding: chunked\r\n\r\n");
    scene.survives(|daemon| {
        let begun = [
            "",
            "G",
            "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\n",
            body,
            &format!("{body}{{\"rea"),
            chunked,
            &format!("{chunked}5\r\n{{\"rea\r\n"),
        ];
        let mut waiting = begun.map(|begin| Raw::begin(daemon.public, begin.as_bytes()));
        // A byte from time to time does not extend a request's time.
        let mut trickling = Raw::begin(daemon.public, b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nX: ");
        let began = Instant::now();
        while trickling.send(b"x") {
            assert!(began.elapsed().as_secs() < 30, "a byte every 20 ms keeps a handshake open");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        for (raw, begin) in waiting.iter_mut().zip(begun) {
            let answer = String::from_utf8(raw.rest()).unwrap();
            assert!(answer.starts_with("HTTP/1.1 408 "), "{begin:?}: {answer:?}");
            assert!(answer.contains(r#"{"error":{"code":"request_timeout""#), "{begin:?}: {answer:?}");
        }
    });
    wait_until("nobody to be left", || scene.daemon.gauge("connections_open") == 0);
    assert!(scene.daemon.counter("handshakes_timed_out") >= before + 7);
    assert!(scene.redis.connect().keys("llm:control:*").is_empty());
}

#[test]
fn frames_against_the_protocol_end_the_connection() {
    let mut scene = Scene::start(&[]);
    let text = br#"{"type":"ping"}"#;
    let mut frames: Vec<(String, Vec<u8>)> = vec![
        ("unmasked".into(), raw::unmasked(TEXT, text)),
        ("a fragmented ping".into(), masked(0x09, b"x")),
        ("a ping of 126 bytes".into(), masked(raw::PING, &[b'x'; 126])),
        ("a continuation of nothing".into(), masked(0x80, text)),
        ("text within text".into(), [masked(0x01, b"{"), masked(TEXT, text)].concat()),
        ("text that is not UTF-8".into(), masked(TEXT, b"\"\xff\xfe\"")),
        ("fragments that are not UTF-8".into(), [masked(0x01, b"\"\xc3"), masked(0x80, b"\"")].concat()),
        ("a close of one byte".into(), masked(raw::CLOSE, b"x")),
        ("a length of 2^63".into(), raw::announced(TEXT, 1 << 63)),
    ];
    for opcode in (0x3..=0x7).chain(0xB..=0xF) {
        frames.push((format!("opcode {opcode}"), masked(0x80 | opcode, text)));
    }
    for reserved in [0x40, 0x20, 0x10] {
        frames.push((format!("reserved bit {reserved:#x}"), masked(TEXT | reserved, text)));
    }
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 5000, 65535] {
        frames.push((format!("close code {code}"), masked(raw::CLOSE, &code.to_be_bytes())));
    }
    scene.survives(|daemon| {
        for (what, bytes) in &frames {
            let mut raw = Raw::websocket(daemon.public, "/v1/ws");
            raw.send(bytes);
            let code = raw.close_code();
            assert!(matches!(code, None | Some(1002 | 1007 | 1008 | 1009)), "{what}: {code:?}");
        }
    });
    wait_until("nobody to be left", || scene.daemon.gauge("connections_open") == 0);
}

#[test]
fn a_message_beyond_64_kib_is_too_large_however_it_comes() {
    let mut scene = Scene::start(&[]);
    let piece = [b'x'; 30 * 1024];
    let first = |payload: &[u8]| masked(0x01, payload);
    let next = |payload: &[u8]| masked(0x00, payload);
    let large = [
        ("announced", raw::announced(TEXT, 1 << 40)),
        ("announced binary", raw::announced(0x82, 65_537)),
        ("in three", [first(&piece), next(&piece), next(&piece)].concat()),
        ("last announced", [first(&piece), next(&piece), raw::announced(0x80, 30 * 1024)].concat()),
        ("in single bytes", [first(b"x"), next(b"x").repeat(65_536)].concat()),
    ];
    scene.survives(|daemon| {
        for (what, bytes) in &large {
            let mut raw = Raw::websocket(daemon.public, "/v1/ws");
            raw.send(bytes);
            assert_eq!(raw.close_code(), Some(1009), "{what}");
        }
        // In pieces that add up to less, it is a message like any other.
        let message = json!({"type": "ping", "ignored": "x".repeat(60_000), "nonce": 7}).to_string();
        let mut raw = Raw::websocket(daemon.public, "/v1/ws");
        let pieces: Vec<&[u8]> = message.as_bytes().chunks(1_000).collect();
        let (last, others) = pieces.split_last().unwrap();
        raw.send(&first(b""));
        for piece in others {
            raw.send(&next(piece));
            raw.send(&masked(raw::PONG, b"between"));
        }
        raw.send(&masked(0x80, last));
        assert_eq!(raw.frame(), Some((TEXT, br#"{"type":"pong","nonce":7}"#.to_vec())));
    });
}

#[test]
fn deeply_nested_messages_are_harmless() {
    let mut scene = Scene::start(&[]);
    Producer::new(&scene.redis, "s1", "m").delta("x");
    let (open, close) = ("[".repeat(30_000), "]".repeat(30_000));
    let objects = r#"{"a":"#.repeat(10_000);
    let messages = [
        format!("{open}{close}"),
        open.repeat(2),
        objects.clone(),
        format!(r#"{{"type":"ping","ignored":{open}{close}}}"#),
        format!(r#"{{"type":"ping","nonce":{open}{close}}}"#),
        format!(r#"{{"type":"subscribe","stream":{open}{close}}}"#),
        format!(r#"{{"type":"cancel","reason":{objects}1{}}}"#, "}".repeat(10_000)),
    ];
    scene.survives(|daemon| {
        for target in ["/v1/ws", "/v1/streams/s1/m?after=$"] {
            let mut raw = Raw::websocket(daemon.public, target);
            for message in &messages {
                raw.send(&masked(TEXT, message.as_bytes()));
            }
            raw.send(&masked(raw::PING, b"still there"));
            while raw.frame().expect("it is still there") != (raw::PONG, b"still there".to_vec()) {}
        }
    });
}

/// The most memory of the process while a single client floods it, in bytes: it holds no more than one read's bytes,
/// and answers up to the client's budget.
const MEMORY_UNDER_FLOOD: u64 = 64 << 20;

/// Sends the same bytes again and again until the server has closed, at most for a while after its close frame.
fn flood_until_closed(raw: &mut Raw, bytes: &[u8]) {
    let began = Instant::now();
    while raw.send(bytes) {
        assert!(began.elapsed() < PATIENCE, "a flood is borne for {PATIENCE:?}");
    }
}

#[test]
fn a_flood_of_bad_messages_is_cut_off() {
    let mut scene = Scene::start(&[]);
    let nonsense = masked(TEXT, b"nonsense").repeat(1_000);
    let foreign = masked(TEXT, br#"{"type":"subscribe","stream":"../.."}"#).repeat(1_000);
    scene.survives(|daemon| {
        for flood in [nonsense, foreign] {
            let mut raw = Raw::websocket(daemon.public, "/v1/ws");
            flood_until_closed(&mut raw, &flood);
            // The answers and the close are read if they survive the reset that unread bytes cause.
            let mut answers = 0;
            while let Some((first, payload)) = raw.frame() {
                match first {
                    raw::CLOSE => assert_eq!(payload[..2], 1008_u16.to_be_bytes()),
                    _ => answers += 1,
                }
            }
            assert!(answers <= 10, "{answers} answers");
        }
    });
    let most = scene.daemon.resident_bytes_max();
    assert!(most < MEMORY_UNDER_FLOOD, "{most} bytes");
}

#[test]
fn clients_that_flood_without_reading_are_closed() {
    let mut scene = Scene::start(&["client.slow_timeout=1s"]);
    Producer::new(&scene.redis, "s1", "m").delta(&"x".repeat(4_000));
    let ping = json!({"type": "ping", "nonce": "x".repeat(200)}).to_string();
    let subscribe = masked(TEXT, br#"{"type":"subscribe","stream":"s1/m"}"#);
    let unsubscribe = masked(TEXT, br#"{"type":"unsubscribe","stream":"s1/m"}"#);
    let floods = [
        ("pings", masked(TEXT, ping.as_bytes())),
        ("protocol pings", masked(raw::PING, &[b'x'; 125])),
        ("subscriptions", [subscribe, unsubscribe].concat()),
    ];
    for (what, message) in floods {
        scene.survives(|daemon| {
            let mut raw = Raw::websocket(daemon.public, "/v1/ws");
            flood_until_closed(&mut raw, &message.repeat(64 * 1024 / message.len()));
        });
        let most = scene.daemon.resident_bytes_max();
        assert!(most < MEMORY_UNDER_FLOOD, "{what}: {most} bytes");
        wait_until(what, || scene.daemon.gauge("connections_open") == 0);
    }
}

#[test]
fn fragments_without_end_are_harmless() {
    let mut scene = Scene::start(&[]);
    scene.survives(|daemon| {
        // Empty fragments never reach the size limit of a message, and cost nothing.
        let mut raw = Raw::websocket(daemon.public, "/v1/ws");
        let mut is_open = raw.send(&masked(0x01, b"{"));
        let batch = masked(0x00, b"").repeat(1_000);
        for _ in 0..500 {
            is_open = is_open && raw.send(&batch);
        }
        raw.finish_sending();
        raw.rest();
    });
    let most = scene.daemon.resident_bytes_max();
    assert!(most < MEMORY_UNDER_FLOOD, "{most} bytes");
    wait_until("nobody to be left", || scene.daemon.gauge("connections_open") == 0);
}

#[test]
fn half_a_frame_and_silence_is_closed() {
    let mut scene = Scene::start(&["client.keepalive=500ms"]);
    let daemon = &scene.daemon;
    let frame = masked(TEXT, br#"{"type":"ping"}"#);
    let mut halves = [1, 3, 8, frame.len() - 1].map(|length| {
        let mut raw = Raw::websocket(daemon.public, "/v1/ws");
        raw.send(&frame[..length]);
        raw
    });
    for raw in &mut halves {
        raw.close_code();
    }
    assert_eq!(daemon.counter("clients_half_open_closed"), 4);
    scene.survives(|_| ());
}

const LIVE: &str =
    "GET /v1/streams/live/m?after=0 HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
const WAITING: &str =
    "GET /v1/streams/none/m?wait=60 HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
const STATE: &str = "GET /v1/streams/live/m HTTP/1.1\r\nHost: localhost\r\n\r\n";
const BODY: &str =
    "POST /v1/streams/live/m/cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{";

/// A connection in the n-th of the possible states.
fn connect_in_state(daemon: &Daemon, number: usize) -> Raw {
    let (address, state) = (daemon.public, number % 11);
    match state {
        0 => Raw::connect(address),
        1 => Raw::begin(address, b"GET /v1/ws HTTP/1.1\r\nHost"),
        2 => Raw::begin(address, STATE.as_bytes()),
        3 => Raw::begin(address, BODY.as_bytes()),
        4 => Raw::begin(address, LIVE.as_bytes()),
        5 => Raw::begin(address, WAITING.as_bytes()),
        6 => Raw::websocket(address, "/v1/streams/live/m"),
        7 => Raw::websocket(address, "/v1/streams/none/m?wait=60"),
        8 => Raw::websocket(address, "/v1/ws"),
        9 => {
            let mut raw = Raw::websocket(address, "/v1/ws");
            raw.send(&masked(TEXT, br#"{"type":"subscribe","stream":"live/m"}"#));
            raw.send(&masked(TEXT, br#"{"type":"subscribe","stream":"none/m","wait":60}"#));
            raw
        }
        _ => {
            let mut raw = Raw::websocket(address, "/v1/streams/live/m");
            raw.send(&masked(TEXT, br#"{"type":"ping"}"#)[..5]);
            raw
        }
    }
}

#[test]
fn thousands_of_clients_that_leave_at_once_leave_nothing_behind() {
    const CONNECTIONS: usize = 2_002;
    const ROUNDS: usize = 3;
    const SLACK_BYTES: u64 = 8 << 20;
    allow_descriptors(CONNECTIONS as u64 + 500);
    let mut scene = Scene::start(&["client.handshake_timeout=10m"]);
    Producer::new(&scene.redis, "live", "m").delta(&"x".repeat(1_000));
    let round = |scene: &mut Scene| {
        scene.survives(|daemon| {
            let all: Vec<Raw> = (0..CONNECTIONS).map(|number| connect_in_state(daemon, number)).collect();
            for (number, raw) in all.into_iter().enumerate() {
                if number % 2 == 0 { raw.reset() } else { drop(raw) }
            }
            // The two healthy viewers stay.
            wait_until("all to be gone", || daemon.gauge("connections_open") == 2);
        });
        for gauge in ["connections_open", "subscriptions_open", "streams_waited", "outbox_bytes"] {
            wait_until(gauge, || scene.daemon.gauge(gauge) == 0);
        }
        (scene.daemon.open_descriptors(), scene.daemon.resident_bytes())
    };
    let (descriptors, memory) = round(&mut scene);
    for _ in 0..ROUNDS {
        let (_, memory_now) = round(&mut scene);
        wait_until("all descriptors to be closed", || scene.daemon.open_descriptors() <= descriptors);
        assert!(memory_now <= memory + SLACK_BYTES, "{memory_now} bytes after {memory} in the first round");
    }
}
