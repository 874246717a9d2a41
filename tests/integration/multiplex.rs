//! One WebSocket for many streams: each frame names its stream, subscriptions begin and end, and the connection
//! stays.

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::producer::{Producer, token, tokens};
use crate::support::redis::RedisServer;
use crate::support::transcript::{Frame, Transcript};
use crate::support::websocket::WebSocketClient;

/// A client of `/v1/ws`.
struct Multiplex(WebSocketClient);

impl Multiplex {
    fn connect(daemon: &Daemon) -> Self {
        Self(WebSocketClient::connect(daemon.public, "/v1/ws"))
    }

    fn subscribe(&mut self, stream: &str, options: Value) {
        let mut message = json!({"type": "subscribe", "stream": stream});
        message.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        self.0.send(&message);
    }

    fn unsubscribe(&mut self, stream: &str) {
        self.0.send(&json!({"type": "unsubscribe", "stream": stream}));
    }

    /// Reads until `unsubscribed` for this stream, whose reason is checked. All frames must be about it.
    fn read_subscription(&mut self, stream: &str, reason: &str) -> Transcript {
        let mut transcript = Transcript::default();
        loop {
            let frame = Frame::new(self.0.receive_json().to_string());
            assert_eq!(frame.value["stream"], stream, "{}", frame.raw);
            if frame.kind() == "unsubscribed" {
                assert_eq!(frame.value, json!({"type": "unsubscribed", "stream": stream, "reason": reason}));
                return transcript;
            }
            transcript.push(frame, None);
        }
    }

    fn read_frame(&mut self, stream: &str, kind: &str) -> Value {
        let frame = self.0.receive_json();
        assert_eq!((&frame["stream"], &frame["type"]), (&json!(stream), &json!(kind)), "{frame}");
        frame
    }

    fn expect_refused(&mut self) {
        let frame = self.0.receive_json();
        assert_eq!(frame["type"], "refused", "{frame}");
        assert!(frame["code"].is_string() && frame["message"].is_string(), "{frame}");
    }

    fn expect_quiet(&mut self) {
        self.0.send(&json!({"type": "ping", "nonce": "quiet"}));
        assert_eq!(self.0.receive_json(), json!({"type": "pong", "nonce": "quiet"}));
    }
}

#[test]
fn a_subscription_ends_and_the_connection_stays() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "a/b");
    producer.start("g1");
    producer.tokens(0..5);
    producer.end();
    let mut client = Multiplex::connect(&daemon);
    for (options, first) in [
        (json!({}), 0),
        (json!({"after": "0", "wait": 5, "batch_ms": 1}), 0),
        (json!({"after": "last", "follow": false}), 0),
        (json!({"after": producer.ids[3]}), 3),
    ] {
        client.subscribe("s1/a/b", options.clone());
        let transcript = client.read_subscription("s1/a/b", "ended");
        assert_eq!(transcript.text(), tokens(first..5), "{options}");
        assert_eq!(transcript.frames.last().unwrap().id(), producer.ids.last().map(String::as_str));
    }
    // At its end the stored terminal frame is sent again.
    client.subscribe("s1/a/b", json!({"after": "$"}));
    assert_eq!(client.read_subscription("s1/a/b", "ended").outline(), ["end stop"]);
    client.expect_quiet();
}

#[test]
fn many_streams_share_a_connection() {
    const STREAMS: usize = 20;
    const TOKENS: usize = 50;
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut client = Multiplex::connect(&daemon);
    let mut producers: Vec<Producer> =
        (0..STREAMS).map(|number| Producer::new(&redis, &format!("s{number}"), "m")).collect();
    for producer in &mut producers {
        producer.start("g1");
        client.subscribe(&producer.stream, json!({}));
    }
    for number in 0..TOKENS {
        for producer in &mut producers {
            producer.delta(&format!("{}:{}", producer.stream.clone(), token(number)));
        }
    }
    for producer in &mut producers {
        producer.end();
    }
    let mut transcripts = vec![Transcript::default(); STREAMS];
    let mut ended = 0;
    while ended < STREAMS {
        let frame = Frame::new(client.0.receive_json().to_string());
        let stream = frame.value["stream"].as_str().unwrap().to_owned();
        let position = producers.iter().position(|producer| producer.stream == stream).unwrap();
        if frame.kind() == "unsubscribed" {
            assert_eq!(frame.value["reason"], "ended");
            ended += 1;
        } else {
            transcripts[position].push(frame, None);
        }
    }
    for (transcript, producer) in transcripts.iter().zip(&producers) {
        let expected: String =
            (0..TOKENS).map(|number| format!("{}:{}", producer.stream, token(number))).collect();
        assert_eq!(transcript.text(), expected);
        assert_eq!(transcript.entries(), TOKENS + 2);
        assert_eq!(transcript.last_id(), producer.ids.last().map(String::as_str));
    }
}

#[test]
fn nothing_comes_after_an_unsubscription() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut other = Producer::new(&redis, "s2", "m");
    producer.delta("one");
    other.delta("first");
    let mut client = Multiplex::connect(&daemon);
    client.subscribe("s1/m", json!({}));
    assert_eq!(client.read_frame("s1/m", "open")["state"], "live");
    assert_eq!(client.read_frame("s1/m", "delta")["id"], json!(producer.ids[0]));
    client.unsubscribe("s1/m");
    assert_eq!(client.read_subscription("s1/m", "requested").frames.len(), 0);
    producer.delta("two");
    client.subscribe("s2/m", json!({"after": "$"}));
    client.read_frame("s2/m", "open");
    other.delta("second");
    assert_eq!(client.read_frame("s2/m", "delta")["text"], "second");
    // It may be subscribed again, from where it stopped.
    client.subscribe("s1/m", json!({"after": producer.ids[0]}));
    client.read_frame("s1/m", "open");
    assert_eq!(client.read_frame("s1/m", "delta")["text"], "two");
    client.expect_quiet();
}

#[test]
fn a_name_that_does_not_exist_is_not_found() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut client = Multiplex::connect(&daemon);
    client.subscribe("s1/none", json!({"wait": 0}));
    let transcript = client.read_subscription("s1/none", "not_found");
    assert!(transcript.frames.iter().all(|frame| frame.kind() == "open"), "{transcript:?}");
    client.expect_quiet();
    assert!(redis.connect().keys("llm:stream:*").is_empty());
}

#[test]
fn a_name_that_does_not_exist_is_waited_for() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut client = Multiplex::connect(&daemon);
    client.subscribe("s1/m", json!({"after": "$"}));
    assert_eq!(client.read_frame("s1/m", "open")["state"], "waiting");
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("here");
    producer.end();
    assert_eq!(client.read_frame("s1/m", "status")["state"], "live");
    client.read_frame("s1/m", "delta");
    client.read_frame("s1/m", "end");
    client.read_frame("s1/m", "unsubscribed");
}

#[test]
fn refused_subscriptions_end_nothing() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("one");
    for message in [
        json!({"type": "subscribe"}),
        json!({"type": "subscribe", "stream": 5}),
        json!({"type": "subscribe", "stream": "s1"}),
        json!({"type": "subscribe", "stream": "s 1/m"}),
        json!({"type": "subscribe", "stream": "s1/../m"}),
        json!({"type": "subscribe", "stream": "s1/m", "after": "x"}),
        json!({"type": "subscribe", "stream": "s1/m", "after": {}}),
        json!({"type": "subscribe", "stream": "s1/m", "follow": "maybe"}),
        json!({"type": "subscribe", "stream": "s1/m", "wait": -1}),
        json!({"type": "subscribe", "stream": "s1/m", "batch_ms": "x"}),
        json!({"type": "unsubscribe"}),
        json!({"type": "unsubscribe", "stream": "s1/m"}),
    ] {
        let mut client = Multiplex::connect(&daemon);
        client.0.send(&message);
        client.expect_refused();
        client.subscribe("s1/m", json!({}));
        client.read_frame("s1/m", "open");
        client.read_frame("s1/m", "delta");
        client.subscribe("s1/m", json!({"after": "0"}));
        client.expect_refused();
        client.expect_quiet();
    }
}

#[test]
fn followers_are_not_unsubscribed_at_an_end() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("one");
    let end = producer.end();
    let mut client = Multiplex::connect(&daemon);
    client.subscribe("s1/m", json!({"follow": true, "after": end}));
    client.read_frame("s1/m", "open");
    producer.start("g2");
    assert_eq!(client.read_frame("s1/m", "start")["generation"], "g2");
    producer.end();
    client.read_frame("s1/m", "end");
    client.unsubscribe("s1/m");
    client.read_subscription("s1/m", "requested");
}

#[test]
fn subscriptions_are_limited() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("client.max_subscriptions=2").start();
    for session in ["s1", "s2", "s3"] {
        Producer::new(&redis, session, "m").delta("x");
    }
    let mut client = Multiplex::connect(&daemon);
    for stream in ["s1/m", "s2/m"] {
        client.subscribe(stream, json!({}));
        client.read_frame(stream, "open");
        client.read_frame(stream, "delta");
    }
    client.subscribe("s3/m", json!({}));
    client.expect_refused();
    client.unsubscribe("s1/m");
    client.read_frame("s1/m", "unsubscribed");
    client.subscribe("s3/m", json!({}));
    client.read_frame("s3/m", "open");
}
