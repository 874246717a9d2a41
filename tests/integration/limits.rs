//! The limits, their values, and the daemon's answers: for connections, rates, subscriptions, the state, silence.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::http::{self, Response};
use crate::support::patience::wait_until;
use crate::support::producer::Producer;
use crate::support::raw::{PING, PONG, Raw, TEXT, masked};
use crate::support::redis::RedisServer;
use crate::support::sse::{SseClient, SseItem};
use crate::support::viewer::{KINDS, Kind, Viewer, target, view};
use crate::support::websocket::WebSocketClient;

const SSE: (&str, &str) = ("Accept", "text/event-stream");
const NO_BODY: (&str, &str) = ("Content-Length", "0");
const CANCEL: &str = "/v1/streams/s1/m/cancel";

/// Checks an error that says when to try again.
fn expect_come_back(response: &Response, status: u16) {
    response.expect_error(status);
    let seconds = response.header("retry-after").map(str::parse::<u32>);
    assert!(matches!(seconds, Some(Ok(1..=3600))), "Retry-After: {seconds:?}");
    let message = response.text();
    let names_key = ["limits.", "client."].iter().any(|section| message.contains(section));
    assert!(names_key, "which key of the configuration is it? {message}");
}

/// Checks that a rate per second is kept: a burst of twice as many passes, a flood does not, and after a while
/// requests pass again.
fn expect_rate(per_second: usize, mut try_once: impl FnMut() -> bool) {
    let began = Instant::now();
    let mut accepted = 0;
    while try_once() {
        accepted += 1;
        let most = 2 * per_second + per_second * usize::try_from(began.elapsed().as_secs() + 1).unwrap();
        assert!(accepted <= most, "{accepted} went through in {:?}", began.elapsed());
    }
    assert!(accepted >= 2 * per_second, "only {accepted} of a burst");
    wait_until("it to be allowed again", &mut try_once);
}

fn post_cancel(daemon: &Daemon, body: &str) -> Response {
    let request = format!(
        "POST {CANCEL} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        daemon.public,
        body.len()
    );
    http::Exchange::raw(daemon.public, request.as_bytes()).unwrap().whole().unwrap()
}

/// A connection for many streams that watches `s1/m`, and has nothing to read.
fn subscribed(daemon: &Daemon) -> WebSocketClient {
    let mut client = WebSocketClient::connect(daemon.public, "/v1/ws");
    client.send(&json!({"type": "subscribe", "stream": "s1/m", "after": "$"}));
    assert_eq!(client.receive_json()["type"], "open");
    client
}

fn refused(frame: &Value) -> bool {
    frame["type"] == "refused" && frame["code"].is_string() && frame["message"].is_string()
}

#[test]
fn more_connections_than_configured_are_told_to_retry() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("client.max_connections=3").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("x");
    let mut viewers = vec![
        Viewer::open(daemon.public, Kind::WebSocket, "s1/m", ""),
        Viewer::open(daemon.public, Kind::Sse, "s1/m", ""),
    ];
    for viewer in &mut viewers {
        viewer.expect_open("live");
    }
    let silent = Raw::connect(daemon.public);
    wait_until("three connections", || daemon.gauge("connections_open") == 3);
    for _ in 0..10 {
        expect_come_back(&http::get(daemon.public, "/v1/streams/s1/m"), 503);
        expect_come_back(&http::request(daemon.public, "GET", "/v1/streams/s1/m", &[SSE]), 503);
        expect_come_back(&http::upgrade(daemon.public, "/v1/ws", &[]), 503);
    }
    assert!(daemon.counter("connections_refused_full") >= 30);
    drop(silent);
    wait_until("a place", || http::get(daemon.public, "/v1/streams/s1/m").status == 200);
    let end = producer.end();
    viewers.into_iter().for_each(|viewer| viewer.read_all().expect_finished(&end));
}

#[test]
fn an_address_has_so_many_connections() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("limits.per_client=2").start();
    Producer::new(&redis, "s1", "m").delta("x");
    let first = WebSocketClient::connect(daemon.public, "/v1/ws");
    let mut second = WebSocketClient::connect(daemon.public, "/v1/ws");
    for _ in 0..10 {
        expect_come_back(&http::get(daemon.public, "/v1/streams/s1/m"), 429);
        assert_eq!(Raw::websocket(daemon.public, "/v1/ws").close_code(), Some(4429));
    }
    drop(first);
    wait_until("a place", || http::get(daemon.public, "/v1/streams/s1/m").status == 200);
    second.send(&json!({"type": "ping"}));
    assert_eq!(second.receive_json()["type"], "pong");
}

#[test]
fn refused_connections_are_counted() {
    let redis = RedisServer::start();
    for setting in ["limits.per_client=1", "limits.connects_per_second=1"] {
        let daemon = Daemon::options(&redis).set(setting).start();
        let _held = WebSocketClient::connect(daemon.public, "/v1/ws");
        let is_refused = || http::get(daemon.public, "/v1/streams/s1/m").status == 429;
        let refusals = (0..20).filter(|_| is_refused()).count() as u64;
        assert!(refusals > 0, "{setting}");
        assert_eq!(daemon.counter("connections_refused_rate"), refusals, "{setting}");
    }
}

/// A connection that was refused when it was accepted is told so in answer to its first request, so that a page can
/// read it.
#[test]
fn pages_get_the_refusal_for_too_many_connections() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis)
        .set("limits.connects_per_second=1")
        .set(r#"listen.origins=["https://chat.example"]"#)
        .start();
    let chat = ("Origin", "https://chat.example");
    let is_refused = || {
        let response = http::request(daemon.public, "GET", "/v1/streams/s1/m", &[chat]);
        assert_eq!(response.header("access-control-allow-origin"), Some("https://chat.example"));
        if response.status == 429 {
            expect_come_back(&response, 429);
        }
        response.status == 429
    };
    wait_until("a refusal", is_refused);
    wait_until("a WebSocket to be refused", || {
        let mut raw = Raw::websocket(daemon.public, "/v1/ws");
        raw.send(&masked(0x88, b""));
        raw.close_code() == Some(4429)
    });
    // A client without a request is told after a while.
    wait_until("a silent connection to be refused", || {
        let mut raw = Raw::connect(daemon.public);
        raw.send(b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        raw.rest().starts_with(b"HTTP/1.1 429 ")
    });
}

#[test]
fn an_address_connects_so_often() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("limits.connects_per_second=2").start();
    Producer::new(&redis, "s1", "m").end();
    expect_rate(2, || {
        let response = http::get(daemon.public, "/v1/streams/s1/m");
        if response.status != 200 {
            expect_come_back(&response, 429);
        }
        response.status == 200
    });
}

#[test]
fn an_address_subscribes_so_often() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("limits.subscribes_per_second=2").start();
    Producer::new(&redis, "s1", "m").end();
    expect_rate(2, || {
        let response = http::request(daemon.public, "GET", "/v1/streams/s1/m", &[SSE]);
        if response.status != 200 {
            expect_come_back(&response, 429);
        }
        response.status == 200
    });
    // The same on an open WebSocket: refused, however often, and nothing ends.
    let mut client = WebSocketClient::connect(daemon.public, "/v1/ws");
    let mut subscribe = || {
        client.send(&json!({"type": "subscribe", "stream": "s1/m"}));
        let frame = client.receive_json();
        if refused(&frame) {
            return false;
        }
        assert_eq!(frame["type"], "open", "{frame}");
        while client.receive_json()["type"] != "unsubscribed" {}
        true
    };
    wait_until("a subscription", &mut subscribe);
    let mut refusals = 0;
    while refusals < 30 {
        refusals += usize::from(!subscribe());
    }
    wait_until("a subscription", &mut subscribe);
}

#[test]
fn an_address_cancels_so_often() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("limits.cancels_per_second=2").start();
    Producer::new(&redis, "s1", "m").delta("x");
    let mut accepted = 0;
    expect_rate(2, || {
        let response = post_cancel(&daemon, "");
        if response.status != 202 {
            expect_come_back(&response, 429);
        }
        accepted += u64::from(response.status == 202);
        response.status == 202
    });
    let mut client = subscribed(&daemon);
    let mut cancel = || {
        client.send(&json!({"type": "cancel", "stream": "s1/m"}));
        let frame = client.receive_json();
        assert!(refused(&frame) || frame["type"] == "cancel_requested", "{frame}");
        let is_accepted = !refused(&frame);
        accepted += u64::from(is_accepted);
        is_accepted
    };
    wait_until("a cancel", &mut cancel);
    let mut refusals = 0;
    while refusals < 30 {
        refusals += usize::from(!cancel());
    }
    wait_until("a cancel", &mut cancel);
    assert_eq!((daemon.counter("cancels_requested"), daemon.counter("cancels_written")), (accepted, 1));
}

#[test]
fn a_subscription_that_has_ended_makes_room() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("client.max_subscriptions=1").start();
    let mut finished = Producer::new(&redis, "s1", "m");
    finished.end();
    Producer::new(&redis, "s2", "m").delta("x");
    let mut client = WebSocketClient::connect(daemon.public, "/v1/ws");
    for _ in 0..20 {
        client.send(&json!({"type": "subscribe", "stream": "s1/m"}));
        for kind in ["open", "end", "unsubscribed"] {
            assert_eq!(client.receive_json()["type"], kind);
        }
    }
    client.send(&json!({"type": "subscribe", "stream": "s2/m"}));
    assert_eq!(client.receive_json()["type"], "open");
    assert_eq!(client.receive_json()["type"], "delta");
    client.send(&json!({"type": "subscribe", "stream": "s1/m"}));
    assert!(refused(&client.receive_json()));
}

#[test]
fn a_state_that_is_too_large_is_refused_and_streamed_nevertheless() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("client.max_state=64KiB").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let text = "0123456789".repeat(400);
    for _ in 0..10 {
        producer.delta(&text);
    }
    let state = || http::get(daemon.public, "/v1/streams/s1/m");
    assert_eq!(state().json()["content"], text.repeat(10));
    for _ in 0..10 {
        producer.delta(&text);
    }
    let end = producer.end();
    // Waiting does not make it smaller: another representation has to be requested, over the same connection.
    let refusal = state();
    assert_eq!(refusal.expect_error(406), "state_too_large");
    assert!(refusal.text().contains("Accept: text/event-stream"), "{}", refusal.text());
    assert_eq!(refusal.header("retry-after"), None);
    let head = "/v1/streams/s1/m HTTP/1.1\r\nHost: localhost\r\n";
    let requests = format!("GET {head}\r\nHEAD {head}Connection: close\r\n\r\n");
    let answers = String::from_utf8(Raw::begin(daemon.public, requests.as_bytes()).rest()).unwrap();
    assert!(answers.starts_with("HTTP/1.1 406 Not Acceptable\r\n"), "{answers}");
    assert!(answers.contains("HTTP/1.1 200 OK\r\n"), "{answers}");
    assert_eq!(http::request(daemon.public, "HEAD", "/v1/streams/s1/m", &[]).status, 200);
    for kind in KINDS {
        let transcript = view(daemon.public, kind, "s1/m", "");
        assert_eq!(transcript.text(), text.repeat(20));
        transcript.expect_finished(&end);
    }
}

#[test]
fn silence_is_filled_with_comments_and_pings() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("client.keepalive=200ms").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("before ");
    let mut sse = SseClient::open(daemon.public, &target("s1/m", "after=$"), &[]);
    let mut websocket = Raw::websocket(daemon.public, "/v1/streams/s1/m?after=$");
    assert!(matches!(sse.item().unwrap(), Some(SseItem::Event(event)) if event.data.contains(r#""open""#)));
    assert_eq!(websocket.frame().map(|(first, _)| first), Some(TEXT));
    for _ in 0..5 {
        assert!(matches!(sse.item().unwrap(), Some(SseItem::Comment(_))));
        let (first, payload) = websocket.frame().expect("who answers pings is not closed");
        assert_eq!(first, PING);
        websocket.send(&masked(PONG, &payload));
    }
    producer.delta("after");
    let event = sse.event().unwrap().unwrap();
    assert!(event.data.contains(r#""after""#), "{event:?}");
    loop {
        match websocket.frame().unwrap() {
            (PING, payload) => assert!(websocket.send(&masked(PONG, &payload))),
            (first, payload) => {
                assert_eq!(first, TEXT);
                assert!(String::from_utf8(payload).unwrap().contains(r#""after""#));
                break;
            }
        }
    }
}

#[test]
fn clients_that_answer_no_ping_are_closed() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("client.keepalive=200ms").start();
    Producer::new(&redis, "s1", "m").delta("x");
    for target in ["/v1/ws", "/v1/streams/s1/m"] {
        let before = daemon.counter("clients_half_open_closed");
        Raw::websocket(daemon.public, target).close_code();
        assert_eq!(daemon.counter("clients_half_open_closed"), before + 1, "{target}");
    }
    wait_until("nobody to be left", || daemon.gauge("connections_open") == 0);
}

#[test]
fn a_connection_takes_one_request_after_another() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").delta("hello");
    let mut connection = Raw::connect(daemon.public);
    let requests = [
        ("GET /v1/streams/s1/m", "", 200),
        ("HEAD /v1/streams/s1/m", "", 200),
        ("GET /v1/streams/s1/none?wait=0", "", 404),
        ("HEAD /v1/streams/s1/none", "", 404),
        ("POST /v1/streams/s1/m/cancel", "Content-Length: 15\r\n\r\n{\"reason\":\"no\"}", 202),
        ("POST /v1/streams/s1/m/cancel", "Content-Length: 0\r\n\r\n", 202),
        ("GET /v1/streams/s1/m?after=last", "", 200),
    ];
    let bytes_of = |(line, rest, _): (&str, &str, u16)| {
        format!("{line} HTTP/1.1\r\nHost: localhost\r\n{}", if rest.is_empty() { "\r\n" } else { rest })
    };
    let read_answer = |connection: &mut Raw, (line, _, status): (&str, &str, u16)| {
        let head = connection.head().to_ascii_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{line}: {head}");
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        if !line.starts_with("HEAD") {
            let body = connection.body(length.unwrap().parse().unwrap());
            serde_json::from_slice::<Value>(&body).unwrap();
        }
    };
    for request in requests {
        assert!(connection.send(bytes_of(request).as_bytes()));
        read_answer(&mut connection, request);
    }
    // And all at once: the answers come in the order of the requests.
    let all: String = requests.map(bytes_of).concat();
    assert!(connection.send(all.as_bytes()));
    for request in requests {
        read_answer(&mut connection, request);
    }
    assert!(
        connection.send(b"GET /v1/streams/s1/m HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    );
    assert!(connection.head().starts_with("HTTP/1.1 200 "));
    connection.rest();
    assert_eq!(daemon.counter("connections_accepted"), 1);
    assert_eq!((daemon.counter("cancels_requested"), daemon.counter("cancels_written")), (4, 1));
}

#[test]
fn a_page_from_elsewhere_may_not_stop_anything() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set(r#"listen.origins=["https://chat.example"]"#).start();
    Producer::new(&redis, "s1", "m").delta("x");
    for origin in ["https://evil.example", "https://chat.example.evil.example", "null", "http://chat.example"]
    {
        let headers = [("Origin", origin), NO_BODY];
        http::request(daemon.public, "POST", CANCEL, &headers).expect_error(403);
    }
    assert!(redis.connect().keys("llm:control:*").is_empty());
    let chat = ("Origin", "https://chat.example");
    let response = http::request(daemon.public, "POST", CANCEL, &[chat, NO_BODY]);
    assert_eq!(response.status, 202);
    assert_eq!(response.header("access-control-allow-origin"), Some("https://chat.example"));
    let preflight = [chat, ("Access-Control-Request-Method", "POST")];
    let response = http::request(daemon.public, "OPTIONS", CANCEL, &preflight);
    assert!(matches!(response.status, 200 | 204), "{}", response.status);
    let methods = response.header("access-control-allow-methods").unwrap_or_default();
    assert!(methods.contains("POST"), "{methods:?}");
}
