//! Entries as LLM providers send them: their content arrives as native frames, live and from history, and an answer
//! can be resumed at every frame, also in the middle of an entry with several.

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::producer::Producer;
use crate::support::redis::RedisServer;
use crate::support::transcript::{Ending, Frame, Transcript, right_after};
use crate::support::viewer::{KINDS, Kind, Viewer, view};

/// A payload, and the suffixes of its frames' ids after the entry's id.
type Payload = (&'static str, &'static [&'static str]);

const CHAT: [Payload; 9] = [
    (
        r#"{"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
        &[],
    ),
    (
        r#"{"choices":[{"index":0,"delta":{"reasoning_content":"hm\u2026","content":"H\u00e4"}},{"index":1,"delta":{"content":"Yo"}}]}"#,
        &[".1", ".2", ""],
    ),
    (r#"{"choices":[{"index":0,"delta":{"content":" 😀"}}]}"#, &[""]),
    (
        r#"{"choices":[{"index":0,"delta":{"content":"!","tool_calls":[{"index":0,"id":"c1","function":{"name":"f","arguments":"{\"a\":"}},{"index":1,"id":"c2","function":{"name":"g","arguments":"{}"}}]}}]}"#,
        &[".1", ".2", ""],
    ),
    (
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}}]}"#,
        &[""],
    ),
    (
        r#"{"choices":[{"index":1,"delta":{"refusal":"no","content":"."},"finish_reason":"stop"}]}"#,
        &[".1", ""],
    ),
    (r#"{"choices":[{"index":0,"delta":{"content":"Bye"},"finish_reason":"tool_calls"}]}"#, &[".1"]),
    (r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}}"#, &[]),
    ("[DONE]", &[""]),
];

const RESPONSES: [Payload; 9] = [
    (r#"{"type":"response.created","response":{"status":"in_progress"}}"#, &[]),
    (r#"{"type":"response.reasoning_summary_text.delta","output_index":0,"delta":"hm"}"#, &[""]),
    (r#"{"type":"response.output_text.delta","output_index":1,"delta":"Hi"}"#, &[""]),
    (
        r#"{"type":"response.output_item.added","output_index":2,"item":{"type":"function_call","id":"i","call_id":"c1","name":"f","arguments":""}}"#,
        &[],
    ),
    (
        r#"{"type":"response.function_call_arguments.delta","item_id":"i","output_index":2,"delta":"{\"a\":"}"#,
        &[""],
    ),
    (
        r#"{"type":"response.function_call_arguments.delta","item_id":"i","output_index":2,"delta":"1}"}"#,
        &[""],
    ),
    (
        r#"{"type":"response.output_item.done","output_index":2,"item":{"type":"function_call","arguments":"{\"a\":1}"}}"#,
        &[],
    ),
    (r#"{"type":"response.web_search_call.searching","output_index":3}"#, &[""]),
    (r#"{"type":"response.completed","response":{"status":"completed","usage":{"total_tokens":5}}}"#, &[""]),
];

const MESSAGES: [Payload; 13] = [
    (r#"{"type":"message_start","message":{"id":"m1","usage":{"input_tokens":5,"output_tokens":1}}}"#, &[]),
    (r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":""}}"#, &[]),
    (r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}"#, &[""]),
    (r#"{"type":"content_block_stop","index":0}"#, &[]),
    (r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}"#, &[]),
    (r#"{"type": "ping"}"#, &[]),
    (r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Hi"}}"#, &[""]),
    (r#"{"type":"content_block_stop","index":1}"#, &[]),
    (
        r#"{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"c1","name":"f","input":{}}}"#,
        &[],
    ),
    (
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"a\":1}"}}"#,
        &[""],
    ),
    (r#"{"type":"content_block_stop","index":2}"#, &[]),
    (r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":7}}"#, &[]),
    (r#"{"type":"message_stop"}"#, &[""]),
];

/// A frame's content, in pieces that do not depend on how frames were merged.
fn pieces(frame: &Frame) -> Vec<String> {
    let value = &frame.value;
    let text = |name: &str| value[name].as_str().unwrap_or_default().chars();
    match frame.kind() {
        "open" | "status" => Vec::new(),
        "delta" => {
            text("text").map(|char| format!("{} {} {char}", value["channel"], value["index"])).collect()
        }
        "tool_call" => {
            let place = format!("{}.{}", value["index"], value["call"]);
            let introduction = value.get("call_id").map(|id| format!("{place} {id} {}", value["name"]));
            let arguments = text("arguments").map(|char| format!("{place} {char}"));
            introduction.into_iter().chain(arguments).collect()
        }
        _ => vec![frame.raw.clone()],
    }
}

fn all_pieces(transcript: &Transcript) -> Vec<String> {
    transcript.frames.iter().flat_map(pieces).collect()
}

/// The next frame of the answer itself.
fn next_told(viewer: &mut Viewer) -> Frame {
    viewer.read_until("a frame", |frame| frame.id().is_some())
}

/// Writes payloads one by one while viewers watch. From each frame that they get, others resume while the answer
/// continues, and once it is complete. Returns the transcript and the state as JSON.
fn tell(name: &str, field: &str, payloads: &[Payload]) -> (Transcript, Value) {
    let redis = RedisServer::start();
    // The daemon waits for the final event, however slowly this test writes.
    let daemon = Daemon::options(&redis).set("stream.finish_grace=0").start();
    let mut producer = Producer::new(&redis, name, "m");
    let stream = producer.stream.clone();
    producer.write(&json!({"type": "heartbeat"}));
    let mut live = KINDS.map(|kind| Viewer::open(daemon.public, kind, &stream, ""));
    live.iter_mut().for_each(|viewer| viewer.expect_open("live"));
    let (mut frames, mut joined) = (Vec::new(), Vec::new());
    for (payload, suffixes) in payloads {
        let id = producer.write_fields("*", &[(field, payload.as_bytes())]);
        for suffix in *suffixes {
            let delivered = live.each_mut().map(next_told);
            assert_eq!(delivered[0].id(), Some(format!("{id}{suffix}").as_str()), "{payload}");
            assert_eq!(delivered[0].raw, delivered[1].raw);
            let after = delivered[0].id().unwrap().to_owned();
            if !delivered[0].is_terminal() {
                joined.push(Viewer::open(daemon.public, Kind::WebSocket, &stream, &format!("after={after}")));
            }
            frames.push((after, pieces(&delivered[0])));
        }
    }
    let end = producer.ids.last().unwrap();
    let [whole, other] = live.map(Viewer::read_all);
    whole.expect_finished(end);
    other.expect_finished(end);
    let rest =
        |place: usize| frames[place..].iter().flat_map(|(_, pieces)| pieces.clone()).collect::<Vec<_>>();
    for (place, viewer) in joined.into_iter().enumerate() {
        assert_eq!(all_pieces(&viewer.read_all()), rest(place + 1), "live after {}", frames[place].0);
    }
    for (place, (after, _)) in frames[..frames.len() - 1].iter().enumerate() {
        let query = format!("after={after}");
        for transcript in [
            view(daemon.public, Kind::WebSocket, &stream, &query),
            view(daemon.public, Kind::Sse, &stream, &query),
            Viewer::reconnect_sse(daemon.public, &stream, "after=0", after).read_all(),
            view(daemon.public, Kind::WebSocket, &stream, &format!("{query}&batch_ms=50")),
        ] {
            assert_eq!(transcript.open()["after"], after.as_str());
            assert_eq!(all_pieces(&transcript), rest(place + 1), "after {after}");
            transcript.expect_finished(end);
        }
    }
    for kind in KINDS {
        for query in ["", "after=last"] {
            assert_eq!(all_pieces(&view(daemon.public, kind, &stream, query)), rest(0));
        }
    }
    let state = http::get(daemon.public, &format!("/v1/streams/{stream}")).json();
    assert_eq!(daemon.counter("entries_undecodable"), 0);
    (whole, state)
}

#[test]
fn a_chat_is_delivered_as_it_was_streamed() {
    let (delivered, state) = tell("chat", "openai", &CHAT);
    let arguments = r#"{"a":1}"#;
    assert_eq!((delivered.text().as_str(), delivered.text_of("reasoning").as_str()), ("Hä 😀!Bye", "hm…"));
    assert_eq!(state["content"], "Hä 😀!Bye");
    assert_eq!(state["reasoning"], "hm…");
    assert_eq!(state["tool_calls"][0]["function"], json!({"name": "f", "arguments": arguments}));
    assert_eq!(
        state["tool_calls"][1],
        json!({"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}})
    );
    assert_eq!((&state["state"], &state["finish_reason"]), (&json!("ended"), &json!("tool_calls")));
    assert_eq!(state["usage"], json!({"prompt_tokens": 3, "completion_tokens": 9}));
    let second = &state["choices"][1];
    assert_eq!((&second["content"], &second["refusal"]), (&json!("Yo."), &json!("no")));
    let reasons = [&state["choices"][0]["finish_reason"], &second["finish_reason"]];
    assert_eq!(reasons, [&json!("tool_calls"), &json!("stop")]);
    assert_eq!(state["entries"], 7, "one for each entry that gives frames");
    // Escapes are the provider's.
    assert!(delivered.frames.iter().any(|frame| frame.raw.contains(r"H\u00e4")));
}

#[test]
fn a_response_is_delivered_as_it_was_streamed() {
    let (delivered, state) = tell("response", "openai", &RESPONSES);
    assert_eq!((delivered.text().as_str(), delivered.text_of("reasoning").as_str()), ("Hi", "hm"));
    assert_eq!(delivered.of_kind("custom").count(), 1);
    let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": r#"{"a":1}"#}});
    assert_eq!((&state["content"], &state["tool_calls"]), (&json!("Hi"), &json!([call])));
    assert_eq!(
        (&state["finish_reason"], &state["usage"]),
        (&json!("completed"), &json!({"total_tokens": 5}))
    );
}

#[test]
fn a_message_is_delivered_as_it_was_streamed() {
    let (delivered, state) = tell("message", "anthropic", &MESSAGES);
    assert_eq!((delivered.text().as_str(), delivered.text_of("reasoning").as_str()), ("Hi", "hm"));
    let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": r#"{"a":1}"#}});
    assert_eq!((&state["content"], &state["tool_calls"]), (&json!("Hi"), &json!([call])));
    let usage = json!({"input_tokens": 5, "output_tokens": 7});
    assert_eq!((&state["finish_reason"], &state["usage"]), (&json!("tool_use"), &usage));
}

#[test]
fn one_answer_follows_another_and_errors_end_them() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("stream.finish_grace=0").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let text = |text: &str| format!(r#"{{"choices":[{{"delta":{{"content":"{text}"}}}}]}}"#);
    for payload in [
        text("a").as_str(),
        "[DONE]",
        r#"{"choices":[],"usage":{"late":1}}"#,
        &text("b"),
        r#"{"error":{"message":"m","code":429}}"#,
        "[DONE]",
        &text("c"),
        "torn",
        "[DONE]",
        "torn",
    ] {
        producer.write_fields("*", &[("openai", payload.as_bytes())]);
    }
    for kind in KINDS {
        let delivered = view(daemon.public, kind, "s1/m", "");
        assert_eq!(
            delivered.outline(),
            ["delta a", "end", "delta b", "error 429", "delta c", "skipped", "end"]
        );
        let ends: Vec<&Value> = delivered.of_kind("end").collect();
        assert!(ends.iter().all(|end| end.get("usage").is_none()), "{ends:?}");
        assert_eq!(view(daemon.public, kind, "s1/m", "after=last").outline(), ["delta c", "skipped", "end"]);
    }
}

/// An id so many ms after Redis' time when the test began.
fn at(now_ms: u64, later_ms: u64) -> String {
    format!("{}-0", now_ms + later_ms)
}

const FINISH: &str = r#"{"choices":[{"delta":{"content":"b"},"finish_reason":"stop"}]}"#;
const USAGE: &str = r#"{"choices":[],"usage":{"n":1}}"#;

#[test]
fn an_answer_without_a_last_word_ends_for_all_alike() {
    let redis = RedisServer::start();
    let daemons =
        ["i1", "i2"].map(|id| Daemon::options(&redis).set(&format!("service.instance={id}")).start());
    let mut producer = Producer::new(&redis, "s1", "m");
    let now_ms = redis.connect().now_ms();
    producer.write_fields(&at(now_ms, 0), &[("openai", br#"{"choices":[{"delta":{"content":"a"}}]}"#)]);
    let mut viewers = Vec::new();
    for daemon in &daemons {
        for kind in KINDS {
            let mut viewer = Viewer::open(daemon.public, kind, "s1/m", "");
            next_told(&mut viewer);
            viewers.push(viewer);
        }
    }
    // The ids determine how far they are apart, however slow this test is.
    producer.write_fields(&at(now_ms, 1), &[("openai", FINISH.as_bytes())]);
    let newest = producer.write_fields(&at(now_ms, 2), &[("openai", USAGE.as_bytes())]);
    let heartbeat = producer.write_fields(&at(now_ms, 3), &[("data", br#"{"type":"heartbeat"}"#)]);
    let end = right_after(&heartbeat);
    // Some join meanwhile, from anywhere.
    for after in ["0", "$", "last", at(now_ms, 1).as_str(), newest.as_str(), at(now_ms, 3).as_str()] {
        viewers.push(Viewer::open(daemons[0].public, Kind::WebSocket, "s1/m", &format!("after={after}")));
    }
    let told_end = format!(r#"{{"type":"end","id":"{end}","finish_reason":"stop","usage":{{"n":1}}}}"#);
    for viewer in viewers {
        let delivered = viewer.read_all();
        delivered.expect_finished(&end);
        assert_eq!(delivered.frames.last().unwrap().raw, told_end);
    }
    let check = || {
        for daemon in &daemons {
            for kind in KINDS {
                let delivered = view(daemon.public, kind, "s1/m", "");
                assert_eq!(
                    (delivered.text().as_str(), delivered.outline().last().unwrap().as_str()),
                    ("ab", "end stop")
                );
                delivered.expect_finished(&end);
                assert_eq!(delivered.open()["state"], "ended");
            }
            let state = http::get(daemon.public, "/v1/streams/s1/m").json();
            assert_eq!(
                (&state["state"], &state["content"], &state["usage"]),
                (&json!("ended"), &json!("ab"), &json!({"n": 1}))
            );
            let query = format!("after={end}");
            assert_eq!(view(daemon.public, Kind::Sse, "s1/m", &query).ending, Some(Ending::Status(204)));
            assert_eq!(view(daemon.public, Kind::WebSocket, "s1/m", &query).frames[1].raw, told_end);
            // A client that has everything but the end gets only the end.
            let rest = view(daemon.public, Kind::WebSocket, "s1/m", &format!("after={}.1", at(now_ms, 1)));
            assert_eq!(rest.outline(), ["end stop"]);
        }
    };
    check();
    // A final event that comes too late changes nothing.
    producer.write_fields("*", &[("openai", b"[DONE]")]);
    check();
}

#[test]
fn entries_after_an_unwritten_end_are_the_next_answer() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let long_ago = redis.connect().now_ms() - 60_000;
    let text = br#"{"choices":[{"delta":{"content":"c"}}]}"#;
    producer.write_fields(&at(long_ago, 0), &[("openai", FINISH.as_bytes())]);
    producer.write_fields(&at(long_ago, 1_999), &[("openai", USAGE.as_bytes())]);
    producer.write_fields(&at(long_ago, 3_999), &[("openai", text)]);
    producer.write_fields(&at(long_ago, 4_000), &[("openai", FINISH.as_bytes())]);
    producer.write_fields(&at(long_ago, 5_999), &[("openai", b"[DONE]")]);
    for kind in KINDS {
        let delivered = view(daemon.public, kind, "s1/m", "");
        assert_eq!(delivered.outline(), ["delta b", "end stop", "delta cb", "end stop"]);
        let ids: Vec<&str> = delivered.of_kind("end").map(|end| end["id"].as_str().unwrap()).collect();
        assert_eq!(ids, [at(long_ago, 1_999), at(long_ago, 5_999)]);
    }
    // A client that stays gets the end while nothing follows, and then the next answer.
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "follow=1&after=$");
    viewer.expect_open("ended");
    let newest = producer.write_fields("*", &[("openai", FINISH.as_bytes())]);
    let end = viewer.read_until("the end", Frame::is_terminal);
    assert_eq!(end.id(), Some(right_after(&newest).as_str()));
    producer.write_fields("*", &[("openai", b"[DONE]")]);
    producer.write_fields("*", &[("openai", text)]);
    producer.write_fields("*", &[("openai", b"[DONE]")]);
    viewer.read_until("the next end", Frame::is_terminal);
    assert_eq!(viewer.transcript.outline(), ["delta b", "end stop", "delta c", "end"]);
}
