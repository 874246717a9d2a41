//! The messages that a client may send on a WebSocket, and the handling of all others.

use serde_json::{Value, json};
use tungstenite::Message;

use crate::support::daemon::Daemon;
use crate::support::producer::Producer;
use crate::support::raw::{Raw, TEXT, masked};
use crate::support::redis::RedisServer;
use crate::support::transcript::Ending;
use crate::support::viewer::{Kind, Viewer};
use crate::support::websocket::{Incoming, WebSocketClient};

fn refused(frame: &Value) {
    assert_eq!(frame["type"], "refused", "{frame}");
    for member in ["code", "message"] {
        assert!(frame[member].as_str().is_some_and(|text| !text.is_empty()), "{member} in {frame}");
    }
}

#[test]
fn a_ping_is_answered() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").delta("hello");
    for target in ["/v1/streams/s1/m?after=$", "/v1/ws"] {
        let mut client = WebSocketClient::connect(daemon.public, target);
        if target != "/v1/ws" {
            assert_eq!(client.receive_json()["type"], "open");
        }
        client.send(&json!({"type": "ping"}));
        assert_eq!(client.receive_json(), json!({"type": "pong"}), "{target}");
        for nonce in [json!("a \"nonce\" é"), json!(17), json!({"a": [1]}), json!("x".repeat(60_000))] {
            client.send(&json!({"type": "ping", "nonce": nonce}));
            assert_eq!(client.receive_json(), json!({"type": "pong", "nonce": nonce}), "{target}");
        }
        client.send_message(Message::Ping(b"protocol".to_vec().into()));
        assert_eq!(client.receive(), Incoming::Pong(b"protocol".to_vec()), "{target}");
    }
}

/// A client's messages before the stream was read are answered only after `open`.
#[test]
fn open_comes_before_any_answer() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").delta("hello");
    let input =
        [r#"{"type":"ping","nonce":1}"#, r#"{"type":"cancel"}"#, "nonsense", r#"{"type":"ping","nonce":2}"#];
    let input: Vec<u8> = input.iter().flat_map(|text| masked(TEXT, text.as_bytes())).collect();
    for (round, name) in (0..20).zip(["s1/m", "s1/none"].into_iter().cycle()) {
        let mut raw =
            Raw::upgrade_and_say(daemon.public, &format!("/v1/streams/{name}?wait=60&after=$"), &input);
        let mut kinds = Vec::new();
        while !(kinds.len() >= 5 && kinds.iter().any(|kind| kind == "cancel_requested")) {
            let frame = raw.json();
            kinds.push(frame["type"].as_str().unwrap().to_owned());
        }
        assert_eq!(kinds[0], "open", "round {round} {name}: {kinds:?}");
        assert_eq!(kinds.iter().filter(|kind| *kind == "pong").count(), 2, "{kinds:?}");
        assert_eq!(kinds.iter().filter(|kind| *kind == "refused").count(), 1, "{kinds:?}");
    }
}

#[test]
fn on_a_connection_for_many_open_comes_before_answers_about_its_stream() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").delta("hello");
    let input = [
        r#"{"type":"subscribe","stream":"s1/m","after":"$"}"#,
        r#"{"type":"cancel","stream":"s1/m"}"#,
        r#"{"type":"ack","stream":"s1/m","id":"nonsense"}"#,
        r#"{"type":"ping"}"#,
    ];
    let input: Vec<u8> = input.iter().flat_map(|text| masked(TEXT, text.as_bytes())).collect();
    for round in 0..20 {
        let mut raw = Raw::upgrade_and_say(daemon.public, "/v1/ws", &input);
        let mut about = Vec::new();
        let mut is_alive = false;
        while about.len() < 3 || !is_alive {
            let frame = raw.json();
            match frame["type"].as_str().unwrap() {
                "pong" => is_alive = true,
                kind => about.push(kind.to_owned()),
            }
        }
        assert_eq!(about[0], "open", "round {round}: {about:?}");
        about.sort();
        assert_eq!(about, ["cancel_requested", "open", "refused"]);
    }
}

#[test]
fn the_subprotocol_is_chosen_if_offered() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").delta("hello");
    for target in ["/v1/streams/s1/m", "/v1/ws"] {
        for offered in ["llm-bridge.v1", "other, llm-bridge.v1", "llm-bridge.v1, bearer.x"] {
            let headers = [("Sec-WebSocket-Protocol", offered)];
            let client = WebSocketClient::connect_with(daemon.public, target, &headers);
            assert_eq!(client.subprotocol.as_deref(), Some("llm-bridge.v1"), "{target} {offered}");
        }
        assert_eq!(WebSocketClient::connect(daemon.public, target).subprotocol, None, "{target}");
    }
}

#[test]
fn unknown_messages_are_refused_and_end_nothing() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("one");
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    viewer.read_to(&producer.ids[0]);
    for text in ["no json", "[]", "{}", r#"{"type":1}"#, r#"{"type":"unknown"}"#, r#"{"type":"ack","id":5}"#]
    {
        viewer.websocket().send_text(text);
        let frame = viewer.read_until("refused", |frame| frame.kind() == "refused");
        refused(&frame.value);
    }
    producer.delta("two");
    let end = producer.end();
    let transcript = viewer.read_all();
    assert_eq!(transcript.text(), "onetwo");
    transcript.expect_finished(&end);
}

#[test]
fn a_binary_message_is_refused_and_ends_nothing() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut client = WebSocketClient::connect(daemon.public, "/v1/ws");
    client.send_message(Message::binary(b"\x00\x01".to_vec()));
    refused(&client.receive_json());
    client.send(&json!({"type": "ping"}));
    assert_eq!(client.receive_json()["type"], "pong");
}

#[test]
fn ten_malformed_messages_end_it() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut client = WebSocketClient::connect(daemon.public, "/v1/ws");
    for _ in 0..9 {
        client.send_text("nonsense");
        refused(&client.receive_json());
    }
    client.send(&json!({"type": "ping"}));
    assert_eq!(client.receive_json()["type"], "pong");
    // The tenth is the last one that is accepted, or the first that is not.
    for _ in 0..2 {
        client.try_send_text("nonsense");
    }
    let (messages, code) = client.receive_to_close();
    messages.iter().for_each(refused);
    assert!(messages.len() <= 1, "{messages:?}");
    assert_eq!(code, 1008);
}

#[test]
fn a_message_may_be_64_kib_and_no_more() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    for (size, is_accepted) in [(64 * 1024, true), (64 * 1024 + 1, false)] {
        let mut client = WebSocketClient::connect(daemon.public, "/v1/ws");
        let empty = r#"{"type":"ping","ignored":""}"#.len();
        client.send(&json!({"type": "ping", "ignored": "x".repeat(size - empty)}));
        if is_accepted {
            assert_eq!(client.receive_json()["type"], "pong");
        } else {
            assert_eq!(client.receive(), Incoming::Closed(1009));
        }
    }
}

#[test]
fn a_client_may_close() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").delta("hello");
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    viewer.expect_open("live");
    viewer.websocket().send_message(Message::Close(None));
    let ending = viewer.read_all().ending;
    assert!(matches!(ending, Some(Ending::Closed(1000 | 1005))), "{ending:?}");
}
