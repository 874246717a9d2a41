//! Requests to stop: an accepted one is on the control stream, reliably; one that cannot be written is refused and
//! not written later; and nobody can fill Redis with them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::http::{self, Response};
use crate::support::patience::wait_until;
use crate::support::producer::Producer;
use crate::support::raw::Raw;
use crate::support::redis::{Redis, RedisServer};
use crate::support::websocket::WebSocketClient;

const CONTROL: &str = "llm:control:s1:m";

fn post(daemon: &Daemon, stream: &str, body: &str) -> Response {
    let request = format!(
        "POST /v1/streams/{stream}/cancel HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        daemon.public,
        body.len()
    );
    http::Exchange::raw(daemon.public, request.as_bytes()).unwrap().whole().unwrap()
}

/// The code of an error that says when to try again.
fn refused(response: &Response, status: u16) -> String {
    let code = response.expect_error(status);
    let seconds = response.header("retry-after").map(str::parse::<u32>);
    assert!(matches!(seconds, Some(Ok(1..=3600))), "Retry-After: {seconds:?}");
    code
}

fn length(redis: &mut Redis, key: &str) -> usize {
    redis.run(&["XLEN", key])
}

fn receive(client: &mut WebSocketClient) -> Value {
    loop {
        let frame = client.receive_json();
        if !matches!(frame["type"].as_str(), Some("status" | "delta" | "open")) {
            return frame;
        }
    }
}

#[test]
fn a_request_to_stop_reaches_the_producer() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let micros = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros();
    let began = micros();
    let mut many = WebSocketClient::connect(daemon.public, "/v1/ws");
    // One per generation.
    producer.start("g1");
    assert_eq!(post(&daemon, "s1/m", "").status, 202);
    producer.end();
    producer.start("g2");
    assert_eq!(post(&daemon, "s1/m", r#"{"reason":"enough \"é\""}"#).status, 202);
    producer.end();
    producer.start("g3");
    let mut viewer = WebSocketClient::connect(daemon.public, "/v1/streams/s1/m?after=$");
    viewer.send(&json!({"type": "cancel", "reason": "over WebSocket"}));
    assert_eq!(receive(&mut viewer), json!({"type": "cancel_requested"}));
    producer.end();
    producer.start("g4");
    // The client need not be subscribed to the stream.
    many.send(&json!({"type": "cancel", "stream": "s1/m"}));
    assert_eq!(receive(&mut many), json!({"type": "cancel_requested", "stream": "s1/m"}));

    let mut connection = redis.connect();
    let entries: Vec<(String, BTreeMap<String, String>)> = connection.run(&["XRANGE", CONTROL, "-", "+"]);
    let reasons: Vec<&str> = entries.iter().map(|(_, entry)| entry["reason"].as_str()).collect();
    assert_eq!(reasons, ["", "enough \"é\"", "over WebSocket", ""]);
    for (_, entry) in &entries {
        assert_eq!(entry["type"], "cancel");
        assert!(entry["by"].contains("127.0.0.1"), "{entry:?}");
        let at: u128 = entry["at"].parse().unwrap();
        assert!((began..=micros()).contains(&at), "{at} is not between {began} and now");
    }
    assert!(connection.run::<i64>(&["PTTL", CONTROL]) > 60_000, "it expires");
    assert_eq!((daemon.counter("cancels_requested"), daemon.counter("cancels_written")), (4, 4));
    // Only the producer writes to the stream itself.
    assert_eq!(length(&mut connection, "llm:stream:s1:m"), 7);
}

#[test]
fn an_accepted_request_is_on_the_control_stream() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut connection = redis.connect();
    let mut client = WebSocketClient::connect(daemon.public, "/v1/ws");
    for n in 0..150 {
        Producer::new(&redis, &format!("s{n}"), "m").delta("x");
        let stream = format!("s{n}/m");
        if n % 2 == 0 {
            assert_eq!(post(&daemon, &stream, "").status, 202);
        } else {
            client.send(&json!({"type": "cancel", "stream": stream}));
            assert_eq!(receive(&mut client)["type"], "cancel_requested");
        }
        assert_eq!(length(&mut connection, &format!("llm:control:s{n}:m")), 1, "{n}");
    }
}

#[test]
fn one_request_is_pending_however_many_ask_wherever() {
    let redis = RedisServer::start();
    let daemons =
        ["i1", "i2"].map(|id| Daemon::options(&redis).set(&format!("service.instance={id}")).start());
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    for generation in 1..=3 {
        producer.start(&format!("g{generation}"));
        std::thread::scope(|scope| {
            for daemon in daemons.iter().cycle().take(6) {
                scope.spawn(|| {
                    for _ in 0..20 {
                        assert_eq!(post(daemon, "s1/m", "").status, 202);
                    }
                });
            }
        });
        producer.delta("it goes on");
        assert_eq!(post(&daemons[0], "s1/m", "").status, 202);
        assert_eq!(length(&mut connection, CONTROL), generation);
        producer.end();
    }
}

#[test]
fn a_name_that_nobody_has_written_can_be_cancelled_for_a_minute() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    for _ in 0..10 {
        assert_eq!(post(&daemon, "s1/m", "").status, 202);
    }
    let mut connection = redis.connect();
    assert_eq!(length(&mut connection, CONTROL), 1);
    assert!((1..=60_000).contains(&connection.run::<i64>(&["PTTL", CONTROL])));
    assert!(!connection.run::<bool>(&["EXISTS", "llm:stream:s1:m"]));
    wait_until("it to be counted", || daemon.gauge("cancels_unwritten") == 1);
}

#[test]
fn cancels_that_redis_refuses_are_never_written() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut connection = redis.connect();
    Producer::new(&redis, "s1", "m").delta("x");
    let mut client = WebSocketClient::connect(daemon.public, "/v1/streams/s1/m");
    assert_eq!(client.receive_json()["type"], "open");
    let set = |name: &str, value: &str| redis.connect().run::<()>(&["CONFIG", "SET", name, value]);
    for (name, on, off) in [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")] {
        set(name, on);
        assert_eq!(refused(&post(&daemon, "s1/m", ""), 503), "redis_refuses");
        client.send(&json!({"type": "cancel"}));
        let frame = receive(&mut client);
        assert_eq!((&frame["type"], &frame["code"]), (&json!("refused"), &json!("redis_refuses")), "{frame}");
        set(name, off);
    }
    connection.run::<()>(&["SET", CONTROL, "no stream"]);
    let answer = post(&daemon, "s1/m", "");
    assert_eq!(refused(&answer, 503), "wrong_type");
    assert!(answer.text().contains(CONTROL), "{}", answer.text());
    connection.run::<()>(&["DEL", CONTROL]);
    // A request that is written afterwards is the only one.
    assert_eq!(post(&daemon, "s1/m", r#"{"reason":"the last"}"#).status, 202);
    let entries = connection.entries(CONTROL);
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0].1["reason"], b"the last");
    // Refusals that the client did not cause end nothing.
    for _ in 0..20 {
        connection.run::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    }
    for _ in 0..20 {
        client.send(&json!({"type": "cancel"}));
        assert_eq!(receive(&mut client)["type"], "refused");
    }
    connection.run::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    client.send(&json!({"type": "ping"}));
    assert_eq!(receive(&mut client)["type"], "pong");
}

/// An answer of 202 can be relied on even if Redis goes down; every other client is told to try again.
#[test]
fn a_request_to_stop_without_redis_is_refused() {
    let mut redis = RedisServer::start_durable();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").delta("x");
    let mut client = WebSocketClient::connect(daemon.public, "/v1/streams/s1/m");
    assert_eq!(client.receive_json()["type"], "open");
    redis.kill();
    for _ in 0..5 {
        refused(&post(&daemon, "s1/m", ""), 503);
    }
    client.send(&json!({"type": "cancel"}));
    assert_eq!(receive(&mut client)["type"], "refused");
    redis.restart();
    wait_until("a cancel with Redis", || post(&daemon, "s1/m", r#"{"reason":"the last one"}"#).status == 202);
    let entries = redis.connect().entries(CONTROL);
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0].1["reason"], b"the last one");
}

#[test]
fn a_redis_that_does_not_answer_is_not_waited_for_for_long() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("redis.response_timeout=1s").start();
    Producer::new(&redis, "s1", "m").delta("x");
    redis.suspend();
    let refusals: Vec<String> = (0..3).map(|_| refused(&post(&daemon, "s1/m", ""), 503)).collect();
    redis.resume();
    assert!(refusals.iter().all(|code| code.starts_with("redis_")), "{refusals:?}");
    wait_until("a cancel with Redis", || post(&daemon, "s1/m", "").status == 202);
}

#[test]
fn bodies_come_in_chunks_and_reasons_are_bounded() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").delta("x");
    let head =
        "POST /v1/streams/s1/m/cancel HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut connection = Raw::connect(daemon.public);
    let chunks = "6\r\n{\"reas\r\nE;x=y\r\non\":\"in parts\"\r\n1\r\n}\r\n0\r\nx: y\r\n\r\n";
    // The bytes after the body are the next request, which is answered after this one.
    let next = "GET /v1/streams/s1/m HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert!(connection.send(format!("{head}{chunks}{head}0\r\n\r\n{next}").as_bytes()));
    for status in [202, 202, 200] {
        let head = connection.head().to_ascii_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        connection.body(length.unwrap().parse().unwrap());
    }
    let entries = redis.connect().entries(CONTROL);
    assert_eq!(entries[0].1["reason"], b"in parts");
    let reason = |bytes: usize| json!({"reason": "é".repeat(bytes / 2)}).to_string();
    assert_eq!(post(&daemon, "s1/m", &reason(1024)).status, 202);
    post(&daemon, "s1/m", &reason(1026)).expect_error(400);
    let mut client = WebSocketClient::connect(daemon.public, "/v1/ws");
    client.send(&json!({"type": "cancel", "stream": "s1/m", "reason": "é".repeat(513)}));
    assert_eq!(receive(&mut client)["code"], "bad_option");
}

#[test]
fn a_body_that_is_too_large_is_refused_in_the_same_way_however_it_comes() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let post = "POST /v1/streams/s1/m/cancel HTTP/1.1\r\nHost: localhost\r\n";
    for body in ["Content-Length: 65537\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n10001\r\n"] {
        let mut connection = Raw::begin(daemon.public, format!("{post}{body}").as_bytes());
        let answer = String::from_utf8(connection.rest()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 "), "{body:?}: {answer}");
        assert!(answer.contains(r#""code":"body_too_large""#), "{body:?}: {answer}");
        assert!(answer.contains("at most 65536 bytes"), "{body:?}: {answer}");
    }
}

#[test]
fn requests_after_one_to_stop_are_answered_in_order_and_a_client_may_leave() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").delta("x");
    let cancel = "POST /v1/streams/s1/m/cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    let get = "GET /v1/streams/s1/none HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut connection = Raw::connect(daemon.public);
    assert!(connection.send(format!("{cancel}{get}").repeat(20).as_bytes()));
    for status in [202, 404].into_iter().cycle().take(40) {
        let head = connection.head().to_ascii_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        connection.body(length.unwrap().parse().unwrap());
    }
    for _ in 0..50 {
        Raw::begin(daemon.public, cancel.as_bytes()).reset();
    }
    assert_eq!(post(&daemon, "s1/m", "").status, 202);
    wait_until("all to be gone", || daemon.gauge("connections_open") <= 1);
}

#[test]
fn a_request_of_another_life_of_the_stream_is_taken_for_none_of_this_one() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut connection = redis.connect();
    let mut requested = 0;
    let mut stop = |connection: &mut Redis, what: &str| {
        assert_eq!(post(&daemon, "s1/m", "").status, 202, "{what}");
        requested += 1;
        assert_eq!(length(connection, CONTROL), requested, "{what}");
    };
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    stop(&mut connection, "the first");
    // The chat is cleared and starts again.
    connection.run::<u64>(&["DEL", "llm:stream:s1:m"]);
    producer.start("g2");
    stop(&mut connection, "begun anew");
    producer.end();
    producer.start("g3");
    producer.tokens(0..9);
    stop(&mut connection, "another generation");
    // The end of g3 and the beginning of g4 are trimmed away.
    producer.end();
    producer.start("g4");
    producer.tokens(0..9);
    connection.run::<u64>(&["XTRIM", "llm:stream:s1:m", "MAXLEN", "3"]);
    stop(&mut connection, "trimmed");
    assert_eq!(post(&daemon, "s1/m", "").status, 202);
    assert_eq!(length(&mut connection, CONTROL), 4, "it is pending");
    connection.run::<u64>(&["DEL", CONTROL]);
    assert_eq!(post(&daemon, "s1/m", "").status, 202);
    assert_eq!(length(&mut connection, CONTROL), 1, "what nobody can read is not pending");
}
