//! Output in formats other than the native one, to the byte: live, resumed, finished, over SSE and over WebSocket; if
//! there is nothing to send; and that cuts, slowness, gaps and further generations change nothing.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::patience::wait_until;
use crate::support::producer::{Producer, tokens};
use crate::support::redis::RedisServer;
use crate::support::sse::{SseClient, SseEvent};
use crate::support::viewer::target;
use crate::support::websocket::{Incoming, WebSocketClient};

const ANSWER: [&str; 5] = [
    r#"{"type":"start","generation":"g1"}"#,
    r#"{"type":"delta","text":"h\u00e4"}"#,
    r#"{"type":"tool_call","id":"c1","name":"f","arguments":"{\"a\":"}"#,
    r#"{"type":"tool_call","arguments":"1}"}"#,
    r#"{"type":"end","finish_reason":"tool_calls","usage":{"input_tokens":1,"output_tokens":2}}"#,
];

/// Writes the answer under the ids 1001-0, 2001-0, …
fn write_answer(producer: &mut Producer) {
    for (place, data) in (1..).zip(ANSWER) {
        producer.write_fields(&format!("{place}001-0"), &[("data", data.as_bytes())]);
    }
}

/// A chunk of the answer.
fn chunk(created: u64, choices: &str, rest: &str) -> String {
    format!(
        r#"{{"id":"chatcmpl-g1","object":"chat.completion.chunk","created":{created},"model":"m","choices":[{choices}]{rest}}}"#
    )
}

fn choice(delta: &str, reason: &str) -> String {
    format!(r#"{{"index":0,"delta":{{{delta}}},"finish_reason":{reason}}}"#)
}

/// The answer as chunks, each with its id.
fn chunks() -> Vec<(&'static str, String)> {
    let opening =
        r#""tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":""}}]"#;
    let piece = r#""tool_calls":[{"index":0,"function":{"arguments":"{\"a\":1}"}}]"#;
    let start = r#","llm_bridge":{"type":"start","id":"1001-0","generation":"g1"}"#;
    let usage = r#","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}"#;
    vec![
        ("1001-0", chunk(1, "", start)),
        ("1001-0", chunk(1, &choice(r#""role":"assistant","content":"""#, "null"), "")),
        ("2001-0", chunk(2, &choice(r#""content":"h\u00e4""#, "null"), "")),
        ("2001-0", chunk(2, &choice(opening, "null"), "")),
        ("4001-0", chunk(4, &choice(piece, "null"), "")),
        ("4001-0", chunk(5, &choice("", r#""tool_calls""#), "")),
        ("5001-0", chunk(5, "", usage)),
        ("5001-0", "[DONE]".to_owned()),
    ]
}

fn as_events(events: &[(&str, String)]) -> String {
    events.iter().map(|(id, data)| format!("id: {id}\ndata: {data}\n\n")).collect()
}

fn get(daemon: &Daemon, query: &str) -> http::Response {
    http::get(daemon.public, &target("s1/m", query))
}

#[test]
fn chunks_are_sent_to_the_letter() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    write_answer(&mut Producer::new(&redis, "s1", "m"));
    let whole = get(&daemon, "format=openai");
    assert_eq!(whole.header("content-type"), Some("text/event-stream"));
    assert_eq!(whole.header("x-vercel-ai-ui-message-stream"), None);
    assert_eq!(whole.text(), as_events(&chunks()));

    // In the middle of the call: the choice and the call are opened again.
    let mut resumed = vec![
        ("3001-0", chunk(3, &choice(r#""role":"assistant","content":"""#, "null"), "")),
        ("3001-0", chunks()[3].1.replace(r#""created":2"#, r#""created":3"#)),
    ];
    let piece = r#""tool_calls":[{"index":0,"function":{"arguments":"1}"}}]"#;
    resumed.push(("4001-0", chunk(4, &choice(piece, "null"), "")));
    resumed.extend(chunks().split_off(5));
    assert_eq!(get(&daemon, "format=openai&after=3001-0").text(), as_events(&resumed));
    assert_eq!(get(&daemon, "format=openai&after=5001-0").status, 204);
}

#[test]
fn ui_messages_are_sent_to_the_letter() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    write_answer(&mut Producer::new(&redis, "s1", "m"));
    let whole = get(&daemon, "format=ai-sdk&after=0");
    assert_eq!(whole.header("x-vercel-ai-ui-message-stream"), Some("v1"));
    let expected = concat!(
        "id: 1001-0\ndata: {\"type\":\"start\",\"messageId\":\"g1\"}\n\n",
        "data: {\"type\":\"text-start\",\"id\":\"content\"}\n\n",
        "id: 2001-0\ndata: {\"type\":\"text-delta\",\"id\":\"content\",\"delta\":\"h\\u00e4\"}\n\n",
        "data: {\"type\":\"text-end\",\"id\":\"content\"}\n\n",
        "data: {\"type\":\"tool-input-start\",\"toolCallId\":\"c1\",\"toolName\":\"f\"}\n\n",
        "id: 4001-0\ndata: {\"type\":\"tool-input-delta\",\"toolCallId\":\"c1\",\"inputTextDelta\":\"{\\\"a\\\":1}\"}\n\n",
        "data: {\"type\":\"tool-input-available\",\"toolCallId\":\"c1\",\"toolName\":\"f\",\"input\":{\"a\":1}}\n\n",
        "id: 5001-0\ndata: {\"type\":\"finish\",\"finishReason\":\"tool-calls\",",
        "\"messageMetadata\":{\"usage\":{\"input_tokens\":1,\"output_tokens\":2}}}\n\n",
        "data: [DONE]\n\n",
    );
    assert_eq!(whole.text(), expected);
    let resumed = get(&daemon, "format=ai-sdk&after=3001-0").text();
    let opened = concat!(
        "data: {\"type\":\"start\",\"messageId\":\"g1\"}\n\n",
        "data: {\"type\":\"tool-input-start\",\"toolCallId\":\"c1\",\"toolName\":\"f\"}\n\n",
        "data: {\"type\":\"tool-input-delta\",\"toolCallId\":\"c1\",\"inputTextDelta\":\"{\\\"a\\\":\"}\n\n",
        "id: 4001-0\ndata: {\"type\":\"tool-input-delta\",\"toolCallId\":\"c1\",\"inputTextDelta\":\"1}\"}\n\n",
    );
    let rest = expected.find("data: {\"type\":\"tool-input-available\"").unwrap();
    assert_eq!(resumed, format!("{opened}{}", &expected[rest..]));
}

/// The ids by which the events name their messages, without repetitions.
fn message_ids(events: &str, member: &str) -> Vec<String> {
    let data = events.lines().filter_map(|line| line.strip_prefix("data: {"));
    let begin = format!(r#""{member}":""#);
    let ids = data.filter_map(|data| Some(data.split_once(&begin)?.1.split_once('"')?.0));
    let mut ids: Vec<String> = ids.map(str::to_owned).collect();
    ids.dedup();
    ids
}

#[test]
fn a_generation_without_a_start_has_one_id_from_its_first_frame_on() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    producer.delta("a");
    let end = producer.end();
    // One entry that gives two frames.
    let first = r#"{"choices":[{"index":0,"delta":{"content":"A","reasoning_content":"R"}}]}"#;
    let first = producer.write_fields("*", &[("openai", first.as_bytes())]);
    let more = r#"{"choices":[{"index":0,"delta":{"content":"B"}}]}"#;
    producer.write_fields("*", &[("openai", more.as_bytes())]);
    producer.write_fields("*", &[("openai", b"[DONE]")]);

    let next = format!("s1/m@{end}");
    let chunks = get(&daemon, "format=openai&after=0").text();
    let reasoning = chunks.lines().find(|line| line.contains(r#""R""#)).unwrap();
    assert_eq!(message_ids(reasoning, "id"), [format!("chatcmpl-{next}")]);
    let ids = message_ids(&chunks, "id");
    assert_eq!(ids, ["chatcmpl-g1".to_owned(), format!("chatcmpl-{next}")]);
    let ids = message_ids(&get(&daemon, "format=ai-sdk&after=0").text(), "messageId");
    assert_eq!(ids, ["g1".to_owned(), next.clone()]);
    for after in [format!("{first}.1"), first] {
        let rest = get(&daemon, &format!("format=openai&after={after}")).text();
        assert_eq!(message_ids(&rest, "id"), [format!("chatcmpl-{next}")], "{after}");
    }
}

/// Everything that arrives over WebSocket, and the close code.
fn messages(mut client: WebSocketClient) -> (Vec<String>, u16) {
    let mut messages = Vec::new();
    loop {
        match client.receive() {
            Incoming::Text(text) => messages.push(text),
            Incoming::Closed(code) => return (messages, code),
            other => panic!("{other:?} after {messages:?}"),
        }
    }
}

/// The same if the connection stays open for a moment for the acknowledgement of the end.
#[test]
fn over_websocket_a_message_is_an_event() {
    let redis = RedisServer::start();
    write_answer(&mut Producer::new(&redis, "s1", "m"));
    for receipts in ["stream.receipts=false", "stream.receipts=true"] {
        let daemon = Daemon::options(&redis).set(receipts).start();
        let listen = |query: &str| messages(WebSocketClient::connect(daemon.public, &target("s1/m", query)));
        let with_id = |(id, text): (&str, String)| match text.strip_suffix('}') {
            Some(text) if !text.contains("llm_bridge") => {
                format!(r#"{text},"llm_bridge":{{"id":"{id}"}}}}"#)
            }
            _ => text,
        };
        let expected: Vec<_> = chunks().into_iter().map(with_id).collect();
        assert_eq!(listen("format=openai"), (expected.clone(), 1000), "{receipts}");
        let last = [expected[5].clone(), expected[6].clone(), expected[7].clone()];
        let (again, code) = listen("format=openai&after=5001-0");
        // The role is sent again: earlier chunks of a choice are unknown if only its end is sent again.
        assert!(again[0].contains(r#""role":"assistant""#) && code == 1000, "{receipts}: {again:?}");
        assert_eq!(again.last(), last.last(), "{receipts}");

        let sse = get(&daemon, "format=ai-sdk&after=0").text();
        let data: Vec<_> = sse.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let (delivered, code) = listen("format=ai-sdk&after=0");
        let delivered: Vec<_> = delivered.iter().map(String::as_str).collect();
        assert_eq!((delivered, code), (data, 1000), "{receipts}");
    }
}

#[test]
fn a_viewer_beyond_an_older_end_gets_the_end_of_a_finished_stream() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    write_answer(&mut Producer::new(&redis, "s1", "m"));
    for (format, finish) in [("openai", r#""finish_reason":"tool_calls""#), ("ai-sdk", r#"{"type":"finish""#)]
    {
        let query = format!("format={format}&after=9000-0");
        let events = get(&daemon, &query).text();
        let delivered: Vec<String> =
            events.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect();
        let (first, last) = (&delivered[0], &delivered[delivered.len() - 1]);
        assert!(first.contains(r#""reason":"failover""#) && last == "[DONE]", "{format}: {delivered:?}");
        assert_eq!(
            delivered.iter().filter(|event| event.contains(finish)).count(),
            1,
            "{format}: {delivered:?}"
        );
        let (messages, code) = messages(WebSocketClient::connect(daemon.public, &target("s1/m", &query)));
        assert_eq!((messages.len(), code), (delivered.len(), 1000), "{format}: {messages:?}");
        assert!(messages.iter().any(|message| message.contains(finish)), "{format}: {messages:?}");
    }
}

#[test]
fn answers_to_messages_are_in_the_format_too() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").start("g1");
    for (format, place) in [("openai", "llm_bridge"), ("ai-sdk", "data")] {
        let query = target("s1/m", &format!("format={format}"));
        let mut client = WebSocketClient::connect(daemon.public, &query);
        client.receive_json();
        client.send(&json!({"type": "ping", "nonce": 7}));
        assert_eq!(client.receive_json()[place], json!({"type": "pong", "nonce": 7}));
        client.send(&json!({"type": "surprise"}));
        assert_eq!(client.receive_json()[place]["type"], "refused");
        client.send(&json!({"type": "cancel"}));
        assert_eq!(client.receive_json()[place], json!({"type": "cancel_requested"}));
    }
}

#[test]
fn nothing_that_goes_on_is_an_answer_of_its_own() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let status = |query: &str| get(&daemon, query).status;
    let code = |query: &str| messages(WebSocketClient::connect(daemon.public, &target("s1/m", query))).1;
    // A stream that does not exist.
    assert_eq!((status("format=ai-sdk"), code("format=ai-sdk")), (204, 4404));
    assert_eq!((status("format=ai-sdk&wait=0.05"), code("format=ai-sdk&wait=0.05")), (204, 4404));
    for query in ["format=ai-sdk&after=0", "format=ai-sdk&follow=1", "format=openai&wait=0"] {
        assert_eq!((status(query), code(query)), (404, 4404), "{query}");
    }
    let last_event_id = [("Last-Event-ID", "5-0")];
    let known = http::request(daemon.public, "GET", &target("s1/m", "format=ai-sdk"), &last_event_id);
    assert_eq!(known.status, 404);

    // A finished generation.
    let mut producer = Producer::new(&redis, "s1", "m");
    write_answer(&mut producer);
    for query in ["format=ai-sdk", "format=ai-sdk&after=5001-0", "format=ai-sdk&after=$"] {
        assert_eq!((status(query), code(query)), (204, 4404), "{query}");
    }
    for query in ["format=ai-sdk&after=last", "format=ai-sdk&after=3001-0", "format=openai"] {
        assert_eq!((status(query), code(query)), (200, 1000), "{query}");
    }
    let known =
        http::request(daemon.public, "GET", &target("s1/m", "format=ai-sdk"), &[("Last-Event-ID", "3001-0")]);
    assert_eq!(known.status, 200);

    // The next one continues: from its beginning.
    producer.write(&json!({"type": "delta", "text": "next"}));
    let mut live = SseClient::open(daemon.public, &target("s1/m", "format=ai-sdk"), &[]);
    let start = live.event().unwrap().unwrap().data;
    assert_eq!(start, r#"{"type":"start","messageId":"s1/m@5001-0"}"#);

    // A client that waits for a stream gets the answer, even if all of it came at once.
    let mut waiting = SseClient::open(daemon.public, &target("s2/m", "format=ai-sdk&wait=60"), &[]);
    wait_until("the wait", || daemon.gauge("streams_waited") == 1);
    let mut other = Producer::new(&redis, "s2", "m");
    other.write_all(&[json!({"type": "delta", "text": "a"}), json!({"type": "end"})]);
    let texts: Vec<_> = read_all(&mut waiting).into_iter().map(|event| event.data).collect();
    assert_eq!(texts.last().map(String::as_str), Some("[DONE]"));
    assert!(texts.iter().any(|text| text.contains("\"delta\":\"a\"")), "{texts:?}");
}

fn read_all(client: &mut SseClient) -> Vec<SseEvent> {
    std::iter::from_fn(|| client.event().unwrap()).collect()
}

#[test]
fn followers_get_no_ended_status_between_generations() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g0");
    let mut end = producer.end();
    for format in ["openai", "ai-sdk"] {
        let query = target("s1/m", &format!("format={format}&follow=1"));
        let mut client = SseClient::open(daemon.public, &query, &[]);
        while client.event().unwrap().unwrap().id.as_deref() != Some(&end) {}
        for number in 1..3 {
            let generation = &format!("{format}-{number}");
            producer.start(generation);
            producer.delta("text");
            end = producer.end();
            let mut seen = Vec::new();
            loop {
                let event = client.event().unwrap().unwrap();
                seen.push(event.data);
                if event.id.as_deref() == Some(&end) {
                    break;
                }
            }
            assert!(seen.iter().any(|data| data.contains(generation.as_str())), "{seen:?}");
            assert!(!seen.iter().any(|data| data == "[DONE]"), "{seen:?}");
        }
    }
    // Without following, the end is that of the last one.
    for format in ["openai", "ai-sdk"] {
        let text = get(&daemon, &format!("format={format}&after=0")).text();
        assert!(text.matches("[DONE]").count() == 1 && text.ends_with("data: [DONE]\n\n"), "{text}");
    }
}

/// The text of all chunks, by member of the delta and choice.
fn output(events: &[SseEvent]) -> BTreeMap<String, String> {
    let mut output: BTreeMap<String, String> = BTreeMap::new();
    for event in events.iter().filter(|event| event.data != "[DONE]") {
        let chunk: Value = serde_json::from_str(&event.data).unwrap();
        for choice in chunk["choices"].as_array().unwrap() {
            let mut add = |member: &str, text: &Value| {
                let key = format!("{} {member}", choice["index"]);
                output.entry(key).or_default().push_str(text.as_str().unwrap_or_default());
            };
            for member in ["content", "reasoning_content", "refusal"] {
                add(member, &choice["delta"][member]);
            }
            for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                add(&format!("call {}", call["index"]), &call["function"]["arguments"]);
            }
        }
    }
    output
}

#[test]
fn a_providers_entries_resume_at_every_frame() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    // One entry with several frames, another one, and a last one.
    let first = json!({"choices": [
        {"index": 0, "delta": {"content": "a", "reasoning_content": "r", "tool_calls": [
            {"index": 0, "id": "c0", "function": {"name": "f", "arguments": "{"}},
            {"index": 1, "id": "c1", "function": {"name": "g", "arguments": "["}}]}},
        {"index": 1, "delta": {"content": "other"}}]});
    let second = json!({"choices": [{"index": 0, "delta": {"tool_calls": [
        {"index": 1, "function": {"arguments": "]"}}, {"index": 0, "function": {"arguments": "}"}}]}}]});
    let last = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]});
    for entry in [first, second, last] {
        producer.write_fields("*", &[("openai", entry.to_string().as_bytes())]);
    }
    producer.write_fields("*", &[("openai", b"[DONE]")]);
    let openai = target("s1/m", "format=openai");
    let whole = read_all(&mut SseClient::open(daemon.public, &openai, &[]));
    let expected = output(&whole);
    assert_eq!((&expected["0 call 0"], &expected["0 call 1"]), (&"{}".to_owned(), &"[]".to_owned()));
    for cut in 1..whole.len() {
        let id = whole[cut - 1].id.as_deref().unwrap();
        let mut client = SseClient::open(daemon.public, &openai, &[("Last-Event-ID", id)]);
        if client.status().unwrap() == 204 {
            assert!(cut >= whole.len() - 1, "cut at {cut}");
            continue;
        }
        let had: Vec<_> = whole[..cut]
            .iter()
            .map(|event| SseEvent { data: event.data.clone(), ..SseEvent::default() })
            .collect();
        let both: Vec<_> = had.into_iter().chain(read_all(&mut client)).collect();
        assert_eq!(output(&both), expected, "cut at {cut}, {id}");
    }

    let ai_sdk = target("s1/m", "format=ai-sdk&after=0");
    let whole = read_all(&mut SseClient::open(daemon.public, &ai_sdk, &[]));
    let inputs = |events: &[SseEvent]| -> Vec<String> {
        events
            .iter()
            .filter(|event| event.data.contains("tool-input-available"))
            .map(|event| event.data.clone())
            .collect()
    };
    assert_eq!(inputs(&whole).len(), 2);
    let ids: Vec<_> = whole.iter().filter_map(|event| event.id.as_deref()).collect();
    for id in &ids[..ids.len() - 1] {
        let rest = read_all(&mut SseClient::open(daemon.public, &ai_sdk, &[("Last-Event-ID", id)]));
        assert_eq!(inputs(&rest), inputs(&whole), "after {id}");
    }
}

#[test]
fn a_slow_client_gets_the_rest_from_history() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("client.send_budget=16384").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let mut clients: Vec<_> = ["format=openai", "format=ai-sdk"]
        .iter()
        .map(|query| SseClient::open(daemon.public, &target("s1/m", query), &[]))
        .collect();
    for client in &mut clients {
        client.event().unwrap();
    }
    let big = "0123456789abcdef".repeat(4096);
    let mut text = String::new();
    let mut number = 0;
    // Until both have fallen behind, and some more.
    while daemon.counter("clients_fell_back") < 2 {
        let piece = format!("{number}:{big}");
        producer.delta(&piece);
        text.push_str(&piece);
        number += 1;
        assert!(number < 4000, "nobody falls behind");
    }
    producer.tokens(0..300);
    text.push_str(&tokens(0..300));
    producer.end();
    for mut client in clients {
        let mut got = String::new();
        for event in read_all(&mut client).iter().filter(|event| event.data != "[DONE]") {
            let chunk: Value = serde_json::from_str(&event.data).unwrap();
            let content = chunk["choices"][0]["delta"]["content"].as_str();
            let delta = chunk["delta"].as_str().filter(|_| chunk["type"] == "text-delta");
            got.push_str(content.or(delta).unwrap_or_default());
        }
        assert!(got == text, "{} bytes instead of {}", got.len(), text.len());
    }
}

#[test]
fn a_crowd_of_both_kinds_that_comes_back_gets_the_rest() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    producer.write(&json!({"type": "tool_call", "id": "c", "name": "f", "arguments": "[0"}));
    let ids: Vec<_> = (1..30)
        .map(|number| producer.write(&json!({"type": "tool_call", "arguments": format!(",{number}")})))
        .collect();
    let clients: Vec<_> = ids
        .iter()
        .flat_map(|id| ["native", "openai", "ai-sdk"].map(|format| (id, format)))
        .map(|(id, format)| {
            let query = target("s1/m", &format!("format={format}&after={id}"));
            (format, SseClient::open(daemon.public, &query, &[]))
        })
        .collect();
    producer.write(&json!({"type": "tool_call", "arguments": "]"}));
    producer.end();
    let input = json!((0..30).collect::<Vec<_>>());
    for (format, mut client) in clients {
        let events = read_all(&mut client);
        let all: Vec<Value> =
            events.iter().filter_map(|event| serde_json::from_str(&event.data).ok()).collect();
        match format {
            "ai-sdk" => {
                let found = all.iter().find(|event| event["type"] == "tool-input-available");
                assert_eq!(found.unwrap()["input"], input);
            }
            "openai" => {
                let opened = all.iter().find(|chunk| chunk["choices"][0]["delta"]["tool_calls"].is_array());
                assert_eq!(opened.unwrap()["choices"][0]["delta"]["tool_calls"][0]["id"], "c");
            }
            _ => assert_eq!(all[0]["type"], "open"),
        }
    }
}

#[test]
fn gaps_are_sent_in_the_format() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.tokens(0..9);
    producer.end();
    redis.connect().run::<u64>(&["XTRIM", &producer.key, "MAXLEN", "4"]);
    for (format, place) in [("openai", "llm_bridge"), ("ai-sdk", "data")] {
        let query = target("s1/m", &format!("format={format}&after=0"));
        let events = read_all(&mut SseClient::open(daemon.public, &query, &[]));
        let gap: Value = serde_json::from_str(&events[0].data).unwrap();
        assert_eq!((&gap[place]["type"], &gap[place]["reason"]), (&json!("gap"), &json!("trimmed")));
        assert_eq!(events.last().unwrap().data, "[DONE]");
    }
}
