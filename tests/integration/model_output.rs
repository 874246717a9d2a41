//! A model's output is never dropped, whatever the shape in which its server sent it: every format has the same text,
//! the same calls with the same numbers, the parts without a native form, and the end; also for a client that joins
//! midway.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::producer::Producer;
use crate::support::redis::RedisServer;
use crate::support::viewer::{KINDS, Kind, Viewer, target, view};

/// A tool call: its number, id, name and arguments.
type Call = (u64, String, String, String);

/// The complete answer of a client.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    text: String,
    calls: Vec<Call>,
    customs: Vec<Value>,
    /// `end`, or an error's message.
    end: String,
}

fn call(number: u64, id: &str, name: &str, arguments: &str) -> Call {
    (number, id.to_owned(), name.to_owned(), arguments.to_owned())
}

/// A chunk with one choice.
fn chunk(delta: &str, finish_reason: &str) -> String {
    format!(r#"{{"choices":[{{"index":0,"delta":{{{delta}}},"finish_reason":{finish_reason}}}]}}"#)
}

fn add(calls: &mut BTreeMap<u64, Call>, number: u64, piece: [&Value; 3]) {
    let [id, name, arguments] = piece.map(|value| value.as_str().unwrap_or_default());
    let call = calls.entry(number).or_insert_with(|| call(number, "", "", ""));
    for (known, delivered) in [(&mut call.1, id), (&mut call.2, name)] {
        if known.is_empty() {
            known.push_str(delivered);
        }
    }
    call.3.push_str(arguments);
}

fn native(frames: impl Iterator<Item = Value>) -> Answer {
    let (mut answer, mut calls) = (Answer::default(), BTreeMap::new());
    for frame in frames {
        match frame["type"].as_str().unwrap() {
            "delta" => answer.text += frame["text"].as_str().unwrap(),
            "tool_call" => {
                let number = frame["call"].as_u64().unwrap();
                add(&mut calls, number, [&frame["call_id"], &frame["name"], &frame["arguments"]]);
            }
            "custom" => answer.customs.push(frame["data"].clone()),
            "end" => answer.end = "end".to_owned(),
            "error" => answer.end = frame["message"].as_str().unwrap_or_default().to_owned(),
            "skipped" => panic!("{frame}"),
            _ => {}
        }
    }
    Answer { calls: calls.into_values().collect(), ..answer }
}

fn openai(events: &[Value]) -> Answer {
    let (mut answer, mut calls) = (Answer::default(), BTreeMap::new());
    for event in events {
        if let Some(error) = event.get("error") {
            answer.end = error["message"].as_str().unwrap_or_default().to_owned();
            continue;
        }
        if event["llm_bridge"]["type"] == "custom" {
            answer.customs.push(event["llm_bridge"]["data"].clone());
        }
        for choice in event["choices"].as_array().unwrap() {
            answer.text += choice["delta"]["content"].as_str().unwrap_or_default();
            for piece in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                let function = &piece["function"];
                let number = piece["index"].as_u64().unwrap();
                add(&mut calls, number, [&piece["id"], &function["name"], &function["arguments"]]);
            }
            if choice["finish_reason"].is_string() {
                answer.end = "end".to_owned();
            }
        }
    }
    Answer { calls: calls.into_values().collect(), ..answer }
}

fn ai_sdk(events: &[Value]) -> Answer {
    let (mut answer, mut calls, mut inputs) = (Answer::default(), Vec::<Call>::new(), Vec::new());
    for event in events {
        let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        match event["type"].as_str().unwrap() {
            "text-delta" => answer.text += &text("delta"),
            "tool-input-start" => {
                calls.push((calls.len() as u64, text("toolCallId"), text("toolName"), String::new()));
            }
            "tool-input-delta" => {
                let id = text("toolCallId");
                let call = calls.iter_mut().find(|(_, known, ..)| *known == id);
                call.expect("a call that was opened").3 += &text("inputTextDelta");
            }
            "tool-input-available" => inputs.push((text("toolCallId"), event["input"].clone())),
            "tool-input-error" => panic!("{event}"),
            "data-llm-bridge" if event["data"]["type"] == "custom" => {
                answer.customs.push(event["data"]["data"].clone());
            }
            "error" => answer.end = text("errorText"),
            "finish" => answer.end = "end".to_owned(),
            _ => {}
        }
    }
    if answer.end == "end" {
        let expected =
            calls.iter().map(|(_, id, _, input)| (id.clone(), serde_json::from_str(input).unwrap()));
        assert_eq!(inputs, expected.collect::<Vec<(String, Value)>>());
    }
    Answer { calls, ..answer }
}

fn state(json: &Value) -> Answer {
    let calls = json["tool_calls"].as_array().into_iter().flatten().zip(0..).map(|(call, number)| {
        assert_eq!(call.get("index"), None, "its place is its number: {json}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let function = &call["function"];
        (number, text(&call["id"]), text(&function["name"]), text(&function["arguments"]))
    });
    let end = match json.get("error") {
        Some(error) => error["message"].as_str().unwrap_or_default().to_owned(),
        None if json["state"] == "ended" => "end".to_owned(),
        None => String::new(),
    };
    let text = json["content"].as_str().unwrap().to_owned();
    Answer { text, calls: calls.collect(), customs: Vec::new(), end }
}

/// Writes a generation while a viewer watches, and compares the complete answers of all clients.
fn check(daemon: &Daemon, redis: &RedisServer, name: &str, entries: &[(&str, String)], expected: &Answer) {
    let mut producer = Producer::new(redis, name, "m");
    let stream = producer.stream.clone();
    producer.write(&json!({"type": "heartbeat"}));
    let mut live = Viewer::open(daemon.public, Kind::WebSocket, &stream, "");
    live.expect_open("live");
    for (field, payload) in entries {
        producer.write_fields("*", &[(field, payload.as_bytes())]);
    }
    let live = live.read_all();
    assert_eq!(native(live.frames.iter().map(|frame| frame.value.clone())), *expected, "{name}, live");

    let whole = view(daemon.public, Kind::Sse, &stream, "");
    assert_eq!(native(whole.frames.iter().map(|frame| frame.value.clone())), *expected, "{name}");
    let events = |format: &str| -> Vec<Value> {
        let response = http::get(daemon.public, &target(&stream, &format!("format={format}&after=0")));
        let text = response.text();
        let data =
            text.lines().filter_map(|line| line.strip_prefix("data: ").filter(|data| *data != "[DONE]"));
        data.map(|data| serde_json::from_str(data).unwrap()).collect()
    };
    assert_eq!(openai(&events("openai")), *expected, "{name}, openai");
    assert_eq!(ai_sdk(&events("ai-sdk")), *expected, "{name}, ai-sdk");
    let json: Value = serde_json::from_str(&http::get(daemon.public, &target(&stream, "")).text()).unwrap();
    let without = Answer { customs: Vec::new(), text: expected.text.clone(), ..copy(expected) };
    assert_eq!(state(&json), without, "{name}, state");

    // A client that resumes after any frame has the same complete answer. Its frames may differ from those of the
    // live viewer: how pieces are merged depends on when they are read, and a merged frame has a repeated id once.
    let delivered: Vec<_> = live.frames.iter().filter(|frame| frame.id().is_some()).collect();
    for (place, frame) in delivered.iter().enumerate().filter(|(_, frame)| !frame.is_terminal()) {
        for kind in KINDS {
            let rest = view(daemon.public, kind, &stream, &format!("after={}", frame.id().unwrap()));
            let had = delivered[..=place].iter().map(|frame| frame.value.clone());
            let both = native(had.chain(rest.frames.iter().map(|frame| frame.value.clone())));
            assert_eq!(both, *expected, "{name} after {}", frame.raw);
        }
    }
}

fn copy(answer: &Answer) -> Answer {
    let Answer { text, calls, customs, end } = answer;
    Answer { text: text.clone(), calls: calls.clone(), customs: customs.clone(), end: end.clone() }
}

fn answer(text: &str, calls: &[Call], customs: &[Value], end: &str) -> Answer {
    Answer { text: text.to_owned(), calls: calls.to_vec(), customs: customs.to_vec(), end: end.to_owned() }
}

fn openai_entries(payloads: &[String]) -> Vec<(&'static str, String)> {
    payloads.iter().map(|payload| ("openai", payload.clone())).collect()
}

const DONE: &str = "[DONE]";

#[test]
fn calls_are_distinguished_whatever_their_number() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let piece = |rest: &str| chunk(&format!(r#""tool_calls":[{{{rest}}}]"#), "null");
    let finish = || chunk("", "\"tool_calls\"");
    let same_index = openai_entries(&[
        piece(
            r#""index":0,"id":"call_1","type":"function","function":{"name":"write","arguments":"{\"p\":\"a\"}"}"#,
        ),
        piece(
            r#""index":0,"id":"call_2","type":"function","function":{"name":"write","arguments":"{\"p\":\"b\"}"}"#,
        ),
        finish(),
        DONE.to_owned(),
    ]);
    let two = [call(0, "call_1", "write", r#"{"p":"a"}"#), call(1, "call_2", "write", r#"{"p":"b"}"#)];
    check(&daemon, &redis, "same-index", &same_index, &answer("", &two, &[], "end"));

    let without_index = openai_entries(&[
        piece(r#""id":"call_1","function":{"name":"a","arguments":"{\"p\""}"#),
        piece(r#""id":"call_1","function":{"name":null,"arguments":":1}"}"#),
        finish(),
        DONE.to_owned(),
    ]);
    let one = [call(0, "call_1", "a", r#"{"p":1}"#)];
    check(&daemon, &redis, "without-index", &without_index, &answer("", &one, &[], "end"));

    // Numbers that begin anywhere, and interleaved calls.
    let numbered = openai_entries(&[
        piece(r#""index":3,"id":"x","function":{"name":"a","arguments":"{"}"#),
        piece(r#""index":1,"id":"y","function":{"name":"b","arguments":"{\"q\""}"#),
        piece(r#""index":3,"function":{"arguments":"}"}"#),
        piece(r#""index":1,"function":{"arguments":":2}"}"#),
        finish(),
        DONE.to_owned(),
    ]);
    let two = [call(0, "x", "a", "{}"), call(1, "y", "b", r#"{"q":2}"#)];
    check(&daemon, &redis, "numbered", &numbered, &answer("", &two, &[], "end"));
}

#[test]
fn a_call_that_was_only_announced_is_delivered_however_it_ends() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let begin = |input: &str| {
        (
            "anthropic",
            format!(
                r#"{{"type":"content_block_start","index":0,"content_block":{{"type":"tool_use","id":"toolu_1","name":"now","input":{input}}}}}"#
            ),
        )
    };
    let start = || ("anthropic", r#"{"type":"message_start","message":{"id":"m"}}"#.to_owned());
    let stop_reason =
        ("anthropic", r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"}}"#.to_owned());
    for (name, input, last, end) in [
        ("stop", "{}", vec![stop_reason, ("anthropic", r#"{"type":"message_stop"}"#.to_owned())], "end"),
        (
            "grace",
            r#"{"a":1}"#,
            vec![("anthropic", r#"{"type":"message_delta","delta":{"stop_reason":"s"}}"#.to_owned())],
            "end",
        ),
        ("bare-stop", r#"{"a":1}"#, vec![("anthropic", r#"{"type":"message_stop"}"#.to_owned())], "end"),
        ("failed", "{}", vec![("anthropic", r#"{"type":"error","error":{"message":"m"}}"#.to_owned())], "m"),
        ("native-end", "{}", vec![("data", r#"{"type":"end"}"#.to_owned())], "end"),
        (
            "lost",
            "{}",
            vec![("data", r#"{"type":"error","code":"producer_lost","message":"gone"}"#.to_owned())],
            "gone",
        ),
    ] {
        let mut entries = vec![start(), begin(input)];
        entries.extend(last);
        let one = [call(0, "toolu_1", "now", input)];
        check(&daemon, &redis, name, &entries, &answer("", &one, &[], end));
    }
    let item = r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","id":"i","call_id":"c","name":"f","arguments":"{\"a\":1}"}}"#;
    let entries = openai_entries(&[item.to_owned(), r#"{"type":"response.completed"}"#.to_owned()]);
    let one = [call(0, "c", "f", r#"{"a":1}"#)];
    check(&daemon, &redis, "function", &entries, &answer("", &one, &[], "end"));
}

/// A tool call announced in one generation belongs to it even if only the next one's `start` ends it.
#[test]
fn nothing_is_pending_at_the_next_start() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let begin = r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}"#;
    producer.write_fields("1-0", &[("data", br#"{"type":"start","generation":"g1"}"#)]);
    producer.write_fields("2-0", &[("anthropic", begin.as_bytes())]);
    producer.write_fields("3-0", &[("data", br#"{"type":"start","generation":"g2"}"#)]);
    producer.write_fields("4-0", &[("data", br#"{"type":"delta","text":"x"}"#)]);
    producer.write_fields("5-0", &[("data", br#"{"type":"end"}"#)]);
    for kind in KINDS {
        let all = view(daemon.public, kind, "s1/m", "");
        let delivered: Vec<_> = all
            .frames
            .iter()
            .filter_map(|frame| Some((frame.id()?.to_owned(), frame.kind().to_owned())))
            .collect();
        let expected =
            [("1-0", "start"), ("3-0.1", "tool_call"), ("3-0", "start"), ("4-0", "delta"), ("5-0", "end")];
        assert_eq!(delivered, expected.map(|(id, kind)| (id.to_owned(), kind.to_owned())));
        let last = view(daemon.public, kind, "s1/m", "after=last");
        assert_eq!(last.frames[1].kind(), "start", "the newest generation begins behind it");
    }
    let json: Value = serde_json::from_str(&http::get(daemon.public, &target("s1/m", "")).text()).unwrap();
    assert_eq!(
        (&json["generation"], &json["content"], json.get("tool_calls")),
        (&json!("g2"), &json!("x"), None)
    );
}

#[test]
fn a_text_that_comes_only_as_a_whole_is_delivered_once() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let created = r#"{"type":"response.created","response":{"id":"r1","status":"in_progress"}}"#;
    let delta = r#"{"type":"response.output_text.delta","output_index":0,"content_index":0,"item_id":"m1","delta":"Whole"}"#;
    let done = r#"{"type":"response.output_text.done","output_index":0,"content_index":0,"item_id":"m1","text":"Whole answer"}"#;
    let part = r#"{"type":"response.content_part.done","output_index":0,"content_index":0,"item_id":"m1","part":{"type":"output_text","text":"Whole answer"}}"#;
    let item = r#"{"type":"response.output_item.done","output_index":0,"item":{"type":"message","id":"m1","content":[{"type":"output_text","text":"Whole answer"}]}}"#;
    let completed = r#"{"type":"response.completed","response":{"id":"r1","status":"completed"}}"#;
    let with_output = r#"{"type":"response.completed","response":{"id":"r1","status":"completed","output":[{"type":"message","id":"m1","content":[{"type":"output_text","text":"Whole answer"}]}]}}"#;
    let expected = answer("Whole answer", &[], &[], "end");
    for (name, payloads) in [
        ("done", vec![created, done, completed]),
        ("usual", vec![created, delta, done, part, item, with_output]),
        ("part", vec![part, completed]),
        ("item", vec![delta, item, completed]),
        ("output", vec![with_output]),
    ] {
        let payloads: Vec<String> = payloads.into_iter().map(ToOwned::to_owned).collect();
        check(&daemon, &redis, name, &openai_entries(&payloads), &expected);
    }
}

#[test]
fn any_error_is_a_failure() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    for (name, error, message) in [
        ("list", r#"{"error":["quota"]}"#, "quota"),
        ("number", r#"{"error":500,"message":"boom"}"#, "boom"),
        ("true", r#"{"error":true,"message":"boom"}"#, "boom"),
        ("nested", r#"{"error":{"code":"x","message":{"detail":"deep"}}}"#, "deep"),
    ] {
        let entries =
            openai_entries(&[chunk(r#""content":"hi""#, "null"), error.to_owned(), DONE.to_owned()]);
        check(&daemon, &redis, name, &entries, &answer("hi", &[], &[], message));
    }
}

#[test]
fn other_content_follows_the_text() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let images = r#"[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]"#;
    let signed = r#""tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":"{}"},"extra_content":{"google":{"thought_signature":"s"}}}]"#;
    let entries = openai_entries(&[
        chunk(&format!(r#""content":"Here it is:","images":{images}"#), "null"),
        chunk(signed, "null"),
        chunk("", "\"stop\""),
        DONE.to_owned(),
    ]);
    let rest =
        |delta: Value| json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]});
    let customs = [
        rest(json!({"images": serde_json::from_str::<Value>(images).unwrap()})),
        rest(
            json!({"tool_calls": [{"index": 0, "id": "c", "extra_content": {"google": {"thought_signature": "s"}}}]}),
        ),
    ];
    check(
        &daemon,
        &redis,
        "beside",
        &entries,
        &answer("Here it is:", &[call(0, "c", "f", "{}")], &customs, "end"),
    );
}

#[test]
fn invalid_numbers_lose_no_text() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut entries = openai_entries(&[
        r#"{"choices":[{"delta":{"content":"a"},"logprobs":{"content":[{"logprob":-Infinity}]}}]}"#
            .to_owned(),
        r#"{"choices":[{"delta":{"content":"NaN"},"score":NaN}]}"#.to_owned(),
    ]);
    entries.push(("data", r#"{"type":"delta","text":"b","score":NaN}"#.to_owned()));
    entries.push(("data", r#"{"token":"c","score":Infinity,"done":true}"#.to_owned()));
    check(&daemon, &redis, "nan", &entries, &answer("aNaNbc", &[], &[], "end"));
}

/// Far more blocks than there is room for, none of which is closed: each is emitted, and nothing is refused.
#[test]
fn thousands_of_blocks_are_delivered() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    for n in 0..3000 {
        let begin = format!(
            r#"{{"type":"content_block_start","index":{n},"content_block":{{"type":"tool_use","id":"t{n}","name":"f","input":{{}}}}}}"#
        );
        producer.write_fields("*", &[("anthropic", begin.as_bytes())]);
    }
    producer.write_fields("*", &[("anthropic", br#"{"type":"message_stop"}"#)]);
    let all = view(daemon.public, Kind::Sse, "s1/m", "");
    let all = native(all.frames.iter().map(|frame| frame.value.clone()));
    let expected: Vec<Call> = (0..3000).map(|n| call(n, &format!("t{n}"), "f", "{}")).collect();
    assert_eq!(all, answer("", &expected, &[], "end"));
}
