//! The state so far as one JSON object, for requests without WebSocket and events.

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::patience::wait_until;
use crate::support::producer::Producer;
use crate::support::redis::RedisServer;

/// Writes entries and asserts the state; its `stream` and `last_id` are added here.
fn check(entries: &[Value], mut state: Value) {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.write_all(entries);
    state["stream"] = json!("s1/m");
    state["last_id"] = json!(producer.ids.last().unwrap());
    let response = http::get(daemon.public, "/v1/streams/s1/m");
    assert_eq!(response.status, 200);
    assert!(response.header("content-type").unwrap().starts_with("application/json"));
    assert_eq!(response.json(), state);

    let head = http::request(daemon.public, "HEAD", "/v1/streams/s1/m", &[]);
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[test]
fn a_finished_answer() {
    check(
        &[
            json!({"type": "start", "generation": "g1", "seq": 0, "metadata": {"a": 1}}),
            json!({"type": "delta", "channel": "reasoning", "text": "Let me "}),
            json!({"type": "heartbeat"}),
            json!({"type": "delta", "channel": "reasoning", "text": "think."}),
            json!({"type": "delta", "text": "Hello, ", "seq": 1}),
            json!({"type": "delta", "text": "Hello, ", "seq": 1}),
            json!({"type": "delta", "text": 5}),
            json!({"type": "delta", "text": "wörld.", "seq": 2}),
            json!({"type": "end", "finish_reason": "stop", "usage": {"total_tokens": 12}}),
            json!({"type": "heartbeat"}),
        ],
        json!({
            "state": "ended", "generation": "g1", "entries": 6, "content": "Hello, wörld.",
            "reasoning": "Let me think.", "finish_reason": "stop", "usage": {"total_tokens": 12},
        }),
    );
}

#[test]
fn a_live_answer() {
    check(
        &[json!({"type": "delta", "text": "so "}), json!({"type": "delta", "text": "far"})],
        json!({"state": "live", "entries": 2, "content": "so far"}),
    );
}

#[test]
fn a_failed_answer() {
    check(
        &[
            json!({"type": "delta", "text": "half"}),
            json!({"type": "error", "code": "upstream_timeout", "message": "it took too long"}),
        ],
        json!({
            "state": "failed", "entries": 2, "content": "half",
            "error": {"code": "upstream_timeout", "message": "it took too long"},
        }),
    );
}

#[test]
fn only_the_newest_generation_counts() {
    check(
        &[
            json!({"type": "start", "generation": "g1"}),
            json!({"type": "delta", "text": "old"}),
            json!({"type": "end", "finish_reason": "length", "usage": {"a": 1}}),
            json!({"type": "start", "generation": "g2"}),
            json!({"type": "delta", "text": "new"}),
        ],
        json!({"state": "live", "generation": "g2", "entries": 2, "content": "new"}),
    );
}

#[test]
fn tool_calls_have_the_shape_of_openai() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.write_all(&[
        json!({"type": "tool_call", "id": "call_1", "name": "search", "arguments": "{\"q\":"}),
        json!({"type": "tool_call", "call": 1, "id": "call_2", "name": "time", "arguments": "{}"}),
        json!({"type": "tool_call", "arguments": "\"x\"}"}),
        json!({"type": "end", "finish_reason": "tool_calls"}),
    ]);
    let state = http::get(daemon.public, "/v1/streams/s1/m").json();
    let calls = state["tool_calls"].as_array().unwrap();
    let expected = [("call_1", "search", "{\"q\":\"x\"}"), ("call_2", "time", "{}")];
    assert_eq!(calls.len(), expected.len(), "{state}");
    for (call, (id, name, arguments)) in calls.iter().zip(expected) {
        assert_eq!((&call["id"], &call["type"]), (&json!(id), &json!("function")), "{state}");
        assert_eq!(call["function"], json!({"name": name, "arguments": arguments}));
    }
    assert_eq!((&state["finish_reason"], &state["content"]), (&json!("tool_calls"), &json!("")), "{state}");
}

#[test]
fn several_choices_are_listed() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.write_all(&[
        json!({"type": "delta", "text": "first ", "index": 0}),
        json!({"type": "delta", "text": "second ", "index": 1}),
        json!({"type": "delta", "text": "hm", "index": 1, "channel": "reasoning"}),
        json!({"type": "delta", "text": "choice", "index": 0}),
        json!({"type": "delta", "text": "choice", "index": 1}),
    ]);
    let state = http::get(daemon.public, "/v1/streams/s1/m").json();
    assert_eq!(state["content"], "first choice");
    let choices = state["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2, "{state}");
    for (choice, (index, content)) in choices.iter().zip([(0, "first choice"), (1, "second choice")]) {
        assert_eq!((&choice["index"], &choice["content"]), (&json!(index), &json!(content)), "{state}");
    }
    assert_eq!(choices[1]["reasoning"], "hm");
}

#[test]
fn a_silent_producer_makes_it_stalled() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("stream.stall_after=200ms").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("so far");
    wait_until("stalled", || http::get(daemon.public, "/v1/streams/s1/m").json()["state"] == "stalled");
    producer.end();
    assert_eq!(http::get(daemon.public, "/v1/streams/s1/m").json()["state"], "ended");
}

#[test]
fn a_name_that_does_not_exist_is_not_found_and_not_created() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    assert_eq!(http::get(daemon.public, "/v1/streams/s1/none").expect_error(404), "not_found");
    let head = http::request(daemon.public, "HEAD", "/v1/streams/s1/none", &[]);
    assert_eq!((head.status, head.body.len()), (404, 0));
    assert_eq!(redis.connect().keys("llm:stream:*"), Vec::<String>::new());
}

#[test]
fn it_is_waited_for_as_long_as_asked() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut exchange = http::Exchange::begin(daemon.public, "GET", "/v1/streams/s1/m?wait=60", &[]).unwrap();
    // Another request on the same loop is answered first: this one waits.
    assert_eq!(http::get(daemon.public, "/v1/streams/s1/other").status, 404);
    producer.delta("here");
    assert_eq!(exchange.head().unwrap(), 200);
    assert_eq!(exchange.whole().unwrap().json()["content"], "here");
}
