use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::model::{Content, Head, StreamState, ToolPiece, merge};

fn at(ms: u64) -> Position {
    Position::whole(EntryId::new(ms, 0))
}

/// The frame of entry `ms`.
fn frame(ms: u64, content: Content<'_>) -> Arc<Frame> {
    let gap = matches!(content, Content::Gap { .. });
    let head = Head {
        stream: StreamName::new("s", "m").unwrap(),
        after: at(ms - 1),
        last: at(if gap { ms - 1 } else { ms }),
        state: StreamState::default(),
        seq: None,
        count: 1,
        ts_us: None,
        read_us: 0,
        encoded_us: 0,
    };
    Arc::new(Frame::encode(head, content))
}

fn delta(ms: u64, (channel, index): (&str, u64), text: &str) -> Arc<Frame> {
    let channel = (channel != "content").then(|| channel.into());
    frame(ms, Content::Delta { channel, index, text: text.as_bytes() })
}

fn tool(ms: u64, (index, call): (u64, u64), named: bool, arguments: &str) -> Arc<Frame> {
    let (id, name) = (named.then(|| format!("id{index}{call}").into()), named.then(|| "f".into()));
    let tool = ToolPiece { index, call, id, name };
    frame(ms, Content::ToolCall { tool, arguments: arguments.as_bytes() })
}

fn end(ms: u64, usage: Option<&str>) -> Arc<Frame> {
    frame(ms, Content::End { finish_reason: Some("stop"), usage })
}

fn translator(format: Format, transport: Transport) -> Translator {
    Translator::new(format, transport, StreamName::new("s", "m").unwrap(), false)
}

/// The bytes sent to a viewer for these frames and at the end.
fn output(translator: &mut Translator, frames: &[Arc<Frame>]) -> String {
    let mut bytes = Vec::new();
    for frame in frames {
        let translated = translator.translate(frame);
        bytes.extend(translated.own);
        if translated.shares {
            bytes.extend_from_slice(&frame.rendering(translator.form()).unwrap().bytes);
        }
    }
    bytes.extend(translator.done());
    String::from_utf8(bytes).unwrap()
}

/// The outline that history finds after these frames.
fn outline(frames: &[Arc<Frame>]) -> Outline {
    let mut outline = Outline::default();
    for frame in frames {
        outline.pass_frame(frame, frame.text().map_or(0, <[u8]>::len));
    }
    outline
}

/// The events of an SSE text: ids as a client keeps them, and data.
fn events(text: &str) -> Vec<(String, String)> {
    let mut id = String::new();
    let mut events = Vec::new();
    for event in text.split("\n\n").filter(|event| !event.is_empty()) {
        let mut data = Vec::new();
        for line in event.lines() {
            match line.split_once(": ").unwrap() {
                ("id", new) => id = new.to_owned(),
                ("data", line) => data.push(line),
                _ => panic!("{line}"),
            }
        }
        events.push((id.clone(), data.join("\n")));
    }
    events
}

const HEAD: &str =
    r#"{"id":"chatcmpl-s/m@0-0","object":"chat.completion.chunk","created":0,"model":"m","choices":["#;

#[test]
fn openai_events_are_exact() {
    let frames = [
        delta(1, ("content", 0), "a\\n"),
        delta(2, ("reasoning", 0), "b"),
        delta(3, ("x", 0), "c"),
        tool(4, (0, 0), true, "{"),
        tool(5, (0, 0), false, "}"),
        end(6, Some(r#"{"input_tokens":3,"output_tokens":4}"#)),
    ];
    let text = output(&mut translator(Format::OpenAi, Transport::Events), &frames);
    let choice = |delta: &str| format!(r#"{HEAD}{{"index":0,"delta":{{{delta}}},"finish_reason":null}}]}}"#);
    let expected = [
        ("0-0", choice(r#""role":"assistant","content":"""#)),
        ("1-0", choice(r#""content":"a\n""#)),
        ("2-0", choice(r#""reasoning_content":"b""#)),
        ("3-0", format!(r#"{HEAD}],"llm_bridge":{{"type":"delta","id":"3-0","channel":"x","text":"c"}}}}"#)),
        (
            "3-0",
            choice(
                r#""tool_calls":[{"index":0,"id":"id00","type":"function","function":{"name":"f","arguments":""}}]"#,
            ),
        ),
        ("4-0", choice(r#""tool_calls":[{"index":0,"function":{"arguments":"{"}}]"#)),
        ("5-0", choice(r#""tool_calls":[{"index":0,"function":{"arguments":"}"}}]"#)),
        ("5-0", format!(r#"{HEAD}{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}"#)),
        ("6-0", format!(r#"{HEAD}],"usage":{{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}}}"#)),
        ("6-0", "[DONE]".to_owned()),
    ];
    assert_eq!(text.matches("id: ").count(), expected.len(), "each event has an id");
    assert_eq!(events(&text), expected.map(|(id, data)| (id.to_owned(), data)));
}

#[test]
fn openai_over_websocket_has_its_ids_within() {
    let frames = [delta(1, ("content", 2), "a"), end(2, None)];
    let mut translator = translator(Format::OpenAi, Transport::WebSocket);
    let translated = translator.translate(&frames[0]);
    let role = format!(
        r#"{HEAD}{{"index":2,"delta":{{"role":"assistant","content":""}},"finish_reason":null}}],"llm_bridge":{{"id":"0-0"}}}}"#
    );
    assert_eq!(translated.own, websocket_text(role.as_bytes()));
    let text = format!(
        r#"{HEAD}{{"index":2,"delta":{{"content":"a"}},"finish_reason":null}}],"llm_bridge":{{"id":"1-0"}}}}"#
    );
    assert_eq!(*frames[0].rendering(1).unwrap().bytes, websocket_text(text.as_bytes()));
    let finish =
        format!(r#"{HEAD}{{"index":2,"delta":{{}},"finish_reason":"stop"}}],"llm_bridge":{{"id":"2-0"}}}}"#);
    assert_eq!(
        translator.translate(&frames[1]),
        Translated { own: websocket_text(finish.as_bytes()), shares: false }
    );
    assert_eq!(translator.done(), websocket_text(b"[DONE]"));
    let failed = frame(3, Content::Error { code: "c", message: None });
    let error = r#"{"error":{"message":"c","type":"server_error","param":null,"code":"c"},"llm_bridge":{"id":"3-0"}}"#;
    assert_eq!(translator.translate(&failed).own, websocket_text(error.as_bytes()));
    let status = br#"{"type":"status","state":"live"}"#;
    let expected = r#"{"id":"chatcmpl-s/m@2-0","object":"chat.completion.chunk","created":0,"model":"m","choices":[],"llm_bridge":{"type":"status","state":"live"}}"#;
    assert_eq!(translator.translate_control(None, status), websocket_text(expected.as_bytes()));
}

#[test]
fn ai_sdk_events_are_exact() {
    let frames = [
        frame(1, Content::Start { generation: Some("g"), metadata: Some(r#"{"a":1}"#) }),
        delta(2, ("reasoning", 0), "r"),
        delta(3, ("content", 0), "a"),
        delta(4, ("content", 1), "other"),
        tool(5, (0, 0), true, "{\\\"q\\\":"),
        tool(6, (0, 0), false, "1}"),
        delta(7, ("content", 0), "b"),
        end(8, Some("{}")),
    ];
    let text = output(&mut translator(Format::AiSdk, Transport::Events), &frames);
    let expected = [
        ("1-0", r#"{"type":"start","messageId":"s/m@1-0","messageMetadata":{"a":1}}"#),
        ("1-0", r#"{"type":"reasoning-start","id":"reasoning"}"#),
        ("2-0", r#"{"type":"reasoning-delta","id":"reasoning","delta":"r"}"#),
        ("2-0", r#"{"type":"reasoning-end","id":"reasoning"}"#),
        ("2-0", r#"{"type":"text-start","id":"content"}"#),
        ("3-0", r#"{"type":"text-delta","id":"content","delta":"a"}"#),
        (
            "4-0",
            r#"{"type":"data-llm-bridge","data":{"type":"delta","id":"4-0","index":1,"text":"other"},"transient":true}"#,
        ),
        ("4-0", r#"{"type":"text-end","id":"content"}"#),
        ("4-0", r#"{"type":"tool-input-start","toolCallId":"id00","toolName":"f"}"#),
        ("5-0", r#"{"type":"tool-input-delta","toolCallId":"id00","inputTextDelta":"{\"q\":"}"#),
        ("6-0", r#"{"type":"tool-input-delta","toolCallId":"id00","inputTextDelta":"1}"}"#),
        ("6-0", r#"{"type":"text-start","id":"content"}"#),
        ("7-0", r#"{"type":"text-delta","id":"content","delta":"b"}"#),
        ("7-0", r#"{"type":"text-end","id":"content"}"#),
        ("7-0", r#"{"type":"tool-input-available","toolCallId":"id00","toolName":"f","input":{"q":1}}"#),
        ("8-0", r#"{"type":"finish","finishReason":"stop","messageMetadata":{"usage":{}}}"#),
        ("8-0", "[DONE]"),
    ];
    assert_eq!(events(&text), expected.map(|(id, data)| (id.to_owned(), data.to_owned())));

    // In the middle of the call: the earlier arguments are sent again, because a client begins a call empty.
    let mut late = translator(Format::AiSdk, Transport::Events);
    late.begin(at(5), Some(&outline(&frames[..5])));
    let text = output(&mut late, &frames[5..6]);
    let expected = [
        ("", r#"{"type":"start","messageId":"s/m@1-0"}"#),
        ("", r#"{"type":"tool-input-start","toolCallId":"id00","toolName":"f"}"#),
        ("", r#"{"type":"tool-input-delta","toolCallId":"id00","inputTextDelta":"{\"q\":"}"#),
        ("6-0", r#"{"type":"tool-input-delta","toolCallId":"id00","inputTextDelta":"1}"}"#),
        ("6-0", "[DONE]"),
    ];
    assert_eq!(events(&text), expected.map(|(id, data)| (id.to_owned(), data.to_owned())));
}

#[test]
fn invalid_inputs_are_reported_as_errors() {
    let input = |arguments: &str| {
        let frames = [tool(1, (0, 0), true, arguments), end(2, None)];
        let text = output(&mut translator(Format::AiSdk, Transport::Events), &frames);
        let events = events(&text);
        let (_, data) = events.iter().rev().nth(2).unwrap();
        serde_json::from_str::<Value>(data).unwrap()
    };
    assert_eq!(input("")["input"], serde_json::json!({}));
    assert_eq!(input("[1]")["input"], serde_json::json!([1]));
    let broken = input("{\\\"q");
    assert_eq!((&broken["type"], &broken["input"]), (&"tool-input-error".into(), &"{\"q".into()));
    let long = input(&"1".repeat(crate::model::OUTLINE_BYTES_MAX));
    assert_eq!((&long["type"], &long["input"]), (&"tool-input-error".into(), &Value::Null));
}

#[test]
fn a_name_that_comes_late_is_sent_then() {
    let unnamed = tool(1, (0, 0), false, "{");
    let named = tool(2, (0, 0), true, "}");
    let frames = [unnamed, named, end(3, None)];
    let text = output(&mut translator(Format::OpenAi, Transport::Events), &frames);
    let mut chat = Chat::default();
    chat.read(&text);
    assert_eq!(chat.calls[&(0, 0)], ("call-0-0".to_owned(), "f".to_owned(), "{}".to_owned()));
    let text = output(&mut translator(Format::AiSdk, Transport::Events), &frames);
    let mut message = Message::default();
    message.read(&text);
    assert_eq!(message.inputs["call-0-0"], serde_json::json!({}));
}

#[test]
fn generations_are_distinguished() {
    let frames = [
        delta(1, ("content", 0), "a"),
        end(2, None),
        delta(3, ("content", 0), "b"),
        frame(4, Content::Start { generation: None, metadata: None }),
        frame(5, Content::Error { code: "c", message: Some("m") }),
    ];
    let text = output(&mut translator(Format::AiSdk, Transport::Events), &frames);
    let kinds: Vec<Value> = events(&text)
        .iter()
        .filter_map(|(_, data)| serde_json::from_str::<Value>(data).ok())
        .map(|event| event.get("messageId").unwrap_or_else(|| &event["type"]).clone())
        .collect();
    let expected = [
        "s/m@0-0",
        "text-start",
        "text-delta",
        "text-end",
        "finish",
        "s/m@2-0",
        "text-start",
        "text-delta",
        "text-end",
        "s/m@4-0",
        "error",
    ];
    assert_eq!(kinds, expected);
    let text = output(&mut translator(Format::OpenAi, Transport::Events), &frames);
    for mark in ["0-0", "2-0", "4-0"] {
        assert!(text.contains(&format!("\"chatcmpl-s/m@{mark}\"")), "{mark}: {text}");
    }
}

#[test]
fn events_that_differ_between_viewers_are_not_shared() {
    let shared = delta(3, ("content", 0), "b");
    let mut one = translator(Format::OpenAi, Transport::Events);
    one.translate(&delta(1, ("content", 0), "a"));
    assert!(one.translate(&shared).shares);
    let mut other = translator(Format::OpenAi, Transport::Events);
    other.begin(at(2), Some(&Outline::after_end(EntryId::new(2, 0))));
    let translated = other.translate(&shared);
    assert!(!translated.shares && String::from_utf8(translated.own).unwrap().contains("chatcmpl-s/m@2-0"));
}

#[test]
fn words_of_all_providers_are_known() {
    for (word, has_calls, reason) in [
        (None, false, Reason::Stop),
        (None, true, Reason::Tools),
        (Some("stop"), true, Reason::Stop),
        (Some("end_turn"), false, Reason::Stop),
        (Some("completed"), true, Reason::Tools),
        (Some("max_tokens"), false, Reason::Length),
        (Some("tool_use"), true, Reason::Tools),
        (Some("refusal"), false, Reason::Filter),
        (Some("cancelled"), false, Reason::Other),
    ] {
        assert_eq!(Reason::of(word, has_calls), reason, "{word:?}");
    }
    let cancelled = frame(1, Content::End { finish_reason: Some("cancelled"), usage: None });
    let text = output(&mut translator(Format::OpenAi, Transport::Events), &[cancelled]);
    assert!(
        text.contains(r#""finish_reason":"stop"}],"llm_bridge":{"finish_reason":"cancelled"}"#),
        "{text}"
    );
}

/// A strict client of chat completions: assembles the chunks, over any number of connections.
#[derive(Default, Debug, PartialEq)]
struct Chat {
    texts: BTreeMap<(u64, String), String>,
    calls: BTreeMap<(u64, u64), (String, String, String)>,
    finished: BTreeMap<u64, String>,
}

impl Chat {
    fn read(&mut self, text: &str) -> String {
        let (mut roles, mut opened, mut last, mut done) = (Vec::new(), Vec::new(), String::new(), false);
        for (id, data) in events(text) {
            last = id;
            assert!(!done, "something follows the end");
            done = data == "[DONE]";
            let Ok(chunk) = serde_json::from_str::<Value>(&data) else { continue };
            for choice in chunk["choices"].as_array().unwrap() {
                let (index, delta) = (choice["index"].as_u64().unwrap(), &choice["delta"]);
                if delta.get("role").is_some() {
                    roles.push(index);
                }
                assert!(roles.contains(&index), "{data}");
                for member in ["content", "reasoning_content", "refusal"] {
                    let text = delta.get(member).and_then(Value::as_str).unwrap_or_default();
                    if !text.is_empty() {
                        self.texts.entry((index, member.to_owned())).or_default().push_str(text);
                    }
                }
                for call in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
                    let key = (index, call["index"].as_u64().unwrap());
                    let known = self.calls.entry(key).or_default();
                    if let Some(id) = call["id"].as_str() {
                        assert!(!opened.contains(&key) && call["type"] == "function");
                        opened.push(key);
                        known.0 = id.to_owned();
                    }
                    assert!(opened.contains(&key), "{data}");
                    if let Some(name) = call["function"]["name"].as_str() {
                        known.1 = name.to_owned();
                    }
                    known.2.push_str(call["function"]["arguments"].as_str().unwrap());
                }
                if let Some(reason) = choice["finish_reason"].as_str() {
                    self.finished.insert(index, reason.to_owned());
                }
            }
        }
        last
    }
}

/// A strict client of UI message streams: assembles the events, over any number of connections.
#[derive(Default, Debug, PartialEq)]
struct Message {
    texts: BTreeMap<String, String>,
    inputs: BTreeMap<String, Value>,
    finished: bool,
}

impl Message {
    fn read(&mut self, text: &str) -> String {
        let (mut open, mut partial, mut last) = (None, BTreeMap::<String, String>::new(), String::new());
        let (mut started, mut done) = (false, false);
        for (id, data) in events(text) {
            last = id;
            assert!(!done, "something follows the end");
            done = data == "[DONE]";
            let Ok(event) = serde_json::from_str::<Value>(&data) else { continue };
            let word = |name: &str| event[name].as_str().unwrap().to_owned();
            let kind = word("type");
            assert!(started || kind == "start" || kind == "data-llm-bridge", "{data}");
            match kind.as_str() {
                "start" => started = true,
                "text-start" | "reasoning-start" => assert_eq!(open.replace(word("id")), None, "{data}"),
                "text-delta" | "reasoning-delta" => {
                    assert_eq!(open, Some(word("id")), "{data}");
                    self.texts.entry(word("id")).or_default().push_str(&word("delta"));
                }
                "text-end" | "reasoning-end" => assert_eq!(open.take(), Some(word("id")), "{data}"),
                "tool-input-start" => {
                    partial.insert(word("toolCallId"), String::new());
                }
                "tool-input-delta" => {
                    partial.get_mut(&word("toolCallId")).expect(&data).push_str(&word("inputTextDelta"));
                }
                "tool-input-available" => {
                    let call = word("toolCallId");
                    if let Some(text) = partial.get(&call) {
                        let text = if text.is_empty() { "{}" } else { text };
                        assert_eq!(event["input"], serde_json::from_str::<Value>(text).unwrap());
                    }
                    self.inputs.insert(call, event["input"].clone());
                }
                "finish" => {
                    assert_eq!(open, None);
                    (self.finished, started) = (true, false);
                }
                "data-llm-bridge" => assert_eq!(event["transient"], true),
                _ => panic!("{data}"),
            }
        }
        last
    }
}

/// One generation, entry by entry: the pieces of each call amount to a JSON text.
fn any_generation() -> impl Strategy<Value = Vec<Arc<Frame>>> {
    let text = (0..4_usize, 0..2_u64, "[a-z]{0,3}");
    let step = prop_oneof![
        text.prop_map(|(channel, index, text)| {
            (Some((["content", "reasoning", "refusal", "x"][channel], index)), (0, 0), text)
        }),
        (0..2_u64, 0..3_u64, "[0-9]{1,3}").prop_map(|(index, call, digits)| (None, (index, call), digits)),
    ];
    prop::collection::vec(step, 0..20).prop_map(|steps| {
        let mut named = Vec::new();
        let mut frames: Vec<_> = (1..)
            .zip(steps)
            .map(|(ms, (translated, call, text))| match translated {
                Some(about) => delta(ms, about, &text),
                // Digits that do not begin with 0 are a number, however many follow.
                None if named.contains(&call) => tool(ms, call, false, &text),
                None => {
                    named.push(call);
                    tool(ms, call, true, &format!("1{text}"))
                }
            })
            .collect();
        frames.push(end(frames.len() as u64 + 1, None));
        frames
    })
}

proptest! {
    /// However frames are merged and wherever the connection is cut, a strict client accepts all events, and together
    /// they are complete.
    #[test]
    fn cut_anywhere_the_whole_is_the_same(frames in any_generation(), cut in 0..20_usize, merged in any::<bool>()) {
        let cut = cut.min(frames.len() - 1);
        let (before, after) = frames.split_at(cut);
        let rest = if merged { merge(after) } else { after.to_vec() };
        let (mut whole, mut parts) = (Chat::default(), Chat::default());
        whole.read(&output(&mut translator(Format::OpenAi, Transport::Events), &frames));
        let text = output(&mut translator(Format::OpenAi, Transport::Events), before);
        let had = parts.read(&text);
        prop_assert_eq!(had, at(cut as u64).to_string());
        let mut late = translator(Format::OpenAi, Transport::Events);
        late.begin(at(cut as u64), Some(&outline(before)));
        parts.read(&output(&mut late, &rest));
        prop_assert_eq!(whole, parts);

        let (mut whole, mut parts) = (Message::default(), Message::default());
        whole.read(&output(&mut translator(Format::AiSdk, Transport::Events), &frames));
        parts.read(&output(&mut translator(Format::AiSdk, Transport::Events), before));
        let mut late = translator(Format::AiSdk, Transport::Events);
        late.begin(at(cut as u64), Some(&outline(before)));
        parts.read(&output(&mut late, &rest));
        prop_assert!(whole.finished);
        prop_assert_eq!(whole, parts);
    }

    /// A client that is disconnected between any two events loses nothing and gets nothing twice.
    #[test]
    fn cut_between_events_nothing_is_lost(frames in any_generation(), cut in 0..60_usize) {
        for format in [Format::OpenAi, Format::AiSdk] {
            let text = output(&mut translator(format, Transport::Events), &frames);
            let pieces: Vec<_> = text.split_inclusive("\n\n").collect();
            let (had, _) = pieces.split_at(cut.min(pieces.len()));
            let had = had.concat();
            let id = events(&had).last().map_or_else(|| "0-0".to_owned(), |(id, _)| id.clone());
            let id: Position = if id.is_empty() { Position::ZERO } else { id.parse().unwrap() };
            let passed = frames.iter().take_while(|frame| frame.last <= id).count();
            let mut late = translator(format, Transport::Events);
            late.begin(id, Some(&outline(&frames[..passed])));
            let rest = if passed == frames.len() { String::new() } else { output(&mut late, &frames[passed..]) };
            if format == Format::OpenAi {
                let (mut whole, mut parts) = (Chat::default(), Chat::default());
                whole.read(&text);
                parts.read(&had);
                parts.read(&rest);
                prop_assert_eq!(whole, parts);
            } else {
                let (mut whole, mut parts) = (Message::default(), Message::default());
                whole.read(&text);
                parts.read(&had);
                parts.read(&rest);
                prop_assert_eq!(whole, parts);
            }
        }
    }
}
