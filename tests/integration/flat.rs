//! Streams that already exist elsewhere: entries whose members are separate fields, under keys with another pattern.
//! They are read like native entries, in every format, from every position.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::support::command::{llm_bridge, run};
use crate::support::daemon::Daemon;
use crate::support::documents::{README, block};
use crate::support::http;
use crate::support::patience::wait_until;
use crate::support::producer::Producer;
use crate::support::redis::{Redis, RedisServer};
use crate::support::sse::SseClient;
use crate::support::viewer::{KINDS, Kind, Viewer, target, view};
use crate::support::websocket::WebSocketClient;

/// Writes the fields that `entry` lists, `name=value` with `|` between them.
fn add(redis: &mut Redis, key: &str, entry: &str) -> String {
    let fields: Vec<(&str, &[u8])> = entry
        .split('|')
        .map(|field| field.split_once('=').unwrap())
        .map(|(name, value)| (name, value.as_bytes()))
        .collect();
    redis.add_entry(key, "*", &fields)
}

/// An answer, most of it flat, and its frames without their `id`.
fn answer() -> [(&'static str, Vec<Value>); 9] {
    [
        (
            "type=start|generation=g1|metadata={\"a\": 1}|seq=0",
            vec![json!({"type": "start", "seq": 0, "generation": "g1", "metadata": {"a": 1}})],
        ),
        (
            "event=token|token=Think|channel=reasoning|seq=1|ts=5",
            vec![json!({"type": "delta", "seq": 1, "channel": "reasoning", "text": "Think"})],
        ),
        (
            "type=chunk|content=Hi \"you\"\n|seq=2",
            vec![json!({"type": "delta", "seq": 2, "text": "Hi \"you\"\n"})],
        ),
        ("type=chunk|content=twice|seq=2|done=1", vec![]),
        ("type=heartbeat|seq=3", vec![]),
        (
            "type=tool_call|id=c|name=f|arguments={\"q\":1}|seq=4",
            vec![json!({"type": "tool_call", "seq": 4, "index": 0, "call": 0, "call_id": "c", "name": "f",
                   "arguments": "{\"q\":1}"})],
        ),
        (
            "type=note|about=x|seq=5",
            vec![json!({"type": "custom", "seq": 5, "data": {"type": "note", "about": "x", "seq": "5"}})],
        ),
        (
            "data={\"token\":\"there\",\"metadata\":{},\"seq\":6}|x=y",
            vec![json!({"type": "delta", "seq": 6, "text": "there"})],
        ),
        (
            "content=.|done=true|finish_reason=stop|usage={\"total_tokens\": 9}|seq=8",
            vec![
                json!({"type": "gap", "lost": 1, "reason": "producer"}),
                json!({"type": "delta", "seq": 8, "text": "."}),
                json!({"type": "end", "seq": 8, "finish_reason": "stop", "usage": {"total_tokens": 9}}),
            ],
        ),
    ]
}

/// The frames about entries, without their positions.
fn bare(frames: &[crate::support::transcript::Frame]) -> Vec<Value> {
    let frames = frames.iter().filter(|frame| !["open", "status"].contains(&frame.kind()));
    let bare = frames.map(|frame| {
        let mut value = frame.value.clone();
        for member in ["id", "after", "next"] {
            value.as_object_mut().unwrap().remove(member);
        }
        value
    });
    bare.collect()
}

#[test]
fn flat_entries_are_delivered_like_native_ones_live_and_later_from_every_position() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut connection = redis.connect();
    let answer = answer();
    let expected: Vec<Value> = answer.iter().flat_map(|(_, frames)| frames.clone()).collect();
    let mut live = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    wait_until("the viewers", || daemon.gauge("subscriptions_open") == 2);
    for (entry, frames) in &answer {
        let id = add(&mut connection, "llm:stream:s1:m", entry);
        if !frames.is_empty() {
            live.iter_mut().for_each(|viewer| viewer.read_to(&id));
        }
    }
    let live = live.map(Viewer::read_all);
    for transcript in &live {
        assert_eq!(bare(&transcript.frames), expected);
    }
    for kind in KINDS {
        let delivered = view(daemon.public, kind, "s1/m", "");
        assert_eq!(bare(&delivered.frames), expected, "{kind:?}");
        let ids: Vec<&str> = delivered.frames.iter().filter_map(|frame| frame.id()).collect();
        assert!(ids[ids.len() - 2].ends_with(".1") && !ids[ids.len() - 1].contains('.'), "{ids:?}");
        for id in &ids[..ids.len() - 1] {
            let rest = view(daemon.public, kind, "s1/m", &format!("after={id}"));
            let place = delivered.frames.iter().position(|frame| frame.id() == Some(*id)).unwrap();
            assert_eq!(bare(&rest.frames), bare(&delivered.frames[place + 1..]), "{kind:?} after {id}");
        }
    }
    let state = http::get(daemon.public, "/v1/streams/s1/m").json();
    assert_eq!(state["content"], "Hi \"you\"\nthere.");
    assert_eq!((&state["reasoning"], &state["entries"]), (&json!("Think"), &json!(7)));
    assert_eq!((&state["finish_reason"], &state["state"]), (&json!("stop"), &json!("ended")));
    assert_eq!(state["usage"], json!({"total_tokens": 9}));
    assert_eq!(state["tool_calls"][0]["function"], json!({"name": "f", "arguments": "{\"q\":1}"}));
    assert_eq!(daemon.counter("entries_undecodable"), 0);
    assert_eq!(connection.run::<usize>(&["EXISTS", "llm:dlq:llm-bridge"]), 0);
}

#[test]
fn other_formats_are_made_of_flat_entries_too() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut connection = redis.connect();
    for (entry, _) in answer() {
        add(&mut connection, "llm:stream:s1:m", entry);
    }
    let events = |query: &str| {
        let mut client = SseClient::open(daemon.public, &target("s1/m", query), &[]);
        assert_eq!(client.status().unwrap(), 200);
        let mut events = Vec::new();
        while let Ok(Some(event)) = client.event() {
            events.push(event.data);
        }
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{query}");
        events.iter().map(|data| serde_json::from_str(data).unwrap()).collect::<Vec<Value>>()
    };
    let chunks = events("format=openai");
    let text = |member: &str| -> String {
        let deltas =
            chunks.iter().map(|chunk| chunk["choices"][0]["delta"][member].as_str().unwrap_or_default());
        deltas.collect()
    };
    assert_eq!(
        (text("content").as_str(), text("reasoning_content").as_str()),
        ("Hi \"you\"\nthere.", "Think")
    );
    assert!(chunks.iter().any(|chunk| chunk["choices"][0]["finish_reason"] == "stop"), "{chunks:?}");
    let parts = events("format=ai-sdk&after=0");
    let text: String = parts
        .iter()
        .filter(|part| part["type"] == "text-delta")
        .map(|part| part["delta"].as_str().unwrap())
        .collect();
    assert_eq!(text, "Hi \"you\"\nthere.");
    assert_eq!(parts.last().unwrap()["type"], "finish");
}

#[test]
fn errors_and_what_follows_an_end_hold_for_flat_entries() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut connection = redis.connect();
    for entry in [
        "content=a",
        "status=failed|error=quota",
        // Belongs to the finished generation, so nothing of it is shown.
        "type=done",
        "done=1",
        "nobody=knows",
        "text=\u{1}|seq=x",
        "content=b",
        "text=[DONE]",
    ] {
        add(&mut connection, "llm:stream:s1:m", entry);
    }
    for kind in KINDS {
        let delivered = view(daemon.public, kind, "s1/m", "");
        assert_eq!(
            bare(&delivered.frames),
            [
                json!({"type": "delta", "text": "a"}),
                json!({"type": "error", "code": "error", "message": "quota"}),
                json!({"type": "delta", "text": "b"}),
                json!({"type": "end"}),
            ],
            "{kind:?}"
        );
    }
    wait_until("the dead letters", || connection.run::<usize>(&["XLEN", "llm:dlq:llm-bridge"]) == 2);
}

#[test]
fn an_undecodable_entry_names_the_fields_found_and_those_expected() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set(r#"fields.text=["tok"]"#).start();
    let mut connection = redis.connect();
    add(&mut connection, "llm:stream:s1:m", "tok=a");
    let id = add(&mut connection, "llm:stream:s1:m", "content=secret|bad\u{1b}[31m=x");
    add(&mut connection, "llm:stream:s1:m", "type=end");
    let delivered = view(daemon.public, Kind::WebSocket, "s1/m", "");
    let skipped = delivered.of_kind("skipped").next().unwrap();
    assert_eq!((&skipped["id"], &skipped["reason"]), (&json!(id), &json!("no_payload")));
    let message = skipped["message"].as_str().unwrap();
    for part in ["fields: content, bad␛[31m;", "a text in tok;", "[fields]", "data, openai, anthropic"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    wait_until("the dead letter", || connection.run::<usize>(&["XLEN", "llm:dlq:llm-bridge"]) == 1);
    let (_, letter) = connection.entries("llm:dlq:llm-bridge").pop().unwrap();
    assert_eq!(String::from_utf8_lossy(&letter["message"]), message);
    wait_until("the log", || daemon.log().contains("fields: content, bad␛[31m;"));
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("fields: content")).unwrap();
    assert!(line.contains("stream=s1/m") && !log.contains("secret"), "{log}");
    // However many follow in this stream, one log line per minute names them.
    for _ in 0..50 {
        add(&mut connection, "llm:stream:s1:m", "x=y");
    }
    view(daemon.public, Kind::WebSocket, "s1/m", "");
    wait_until("all dead letters", || connection.run::<usize>(&["XLEN", "llm:dlq:llm-bridge"]) == 51);
    assert_eq!(daemon.log().matches("an entry cannot be read").count(), 1);
}

/// A daemon whose streams have these keys.
fn daemon_with(redis: &RedisServer, pattern: &str) -> Daemon {
    Daemon::options(redis).set(&format!("redis.stream_key={pattern}")).start()
}

#[test]
fn without_a_model_in_the_key_streams_are_asked_for_by_session() {
    let redis = RedisServer::start();
    let daemon = daemon_with(&redis, "llm:stream:{session}");
    let mut connection = redis.connect();
    // Waited for, and pushed by Redis.
    let mut live = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1", ""));
    wait_until("the viewers", || daemon.gauge("subscriptions_open") == 2);
    let mut many = WebSocketClient::connect(daemon.public, "/v1/ws");
    many.send(&json!({"type": "subscribe", "stream": "s1"}));
    add(&mut connection, "llm:stream:s1", "type=chunk|content=Hi");
    let end = add(&mut connection, "llm:stream:s1", "type=chunk|content= there|done=1");
    for viewer in &mut live {
        viewer.read_to(&end);
        assert_eq!(viewer.transcript.open()["stream"], "s1/default");
        assert_eq!(viewer.transcript.text(), "Hi there");
    }
    let end = std::iter::repeat_with(|| many.receive_json()).find(|frame| frame["type"] == "end");
    assert_eq!(end.unwrap()["stream"], "s1/default");
    for name in ["s1", "s1/default"] {
        assert_eq!(view(daemon.public, Kind::Sse, name, "").text(), "Hi there");
        assert_eq!(http::get(daemon.public, &target(name, "")).json()["content"], "Hi there");
    }
    let cancel = http::request(daemon.public, "POST", "/v1/streams/s1/cancel", &[("Content-Length", "0")]);
    assert_eq!(cancel.status, 202);
    wait_until("the request", || connection.run::<usize>(&["XLEN", "llm:control:s1:default"]) == 1);
    let message = http::get(daemon.public, "/v1/streams/s1/gpt-4o").expect_error(404);
    assert_eq!(message, "not_found");
}

#[test]
fn without_a_model_in_the_key_a_producer_need_not_name_one() {
    let redis = RedisServer::start();
    let url = format!("redis.url={}", redis.url());
    let setting = "redis.stream_key=llm:stream:{session}";
    let produce = ["produce", "--session", "s1", "--set", &url];
    let outcome = run(llm_bridge(&[&produce[..], &["--set", setting]].concat()), b"some words");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("/v1/streams/s1/default"), "{outcome:?}");
    let daemon = daemon_with(&redis, "llm:stream:{session}");
    for kind in KINDS {
        assert_eq!(view(daemon.public, kind, "s1", "").text(), "some words");
    }
    // A model that would not be in the key is refused, and nothing is written into another stream.
    let other = ["--session", "s2", "--model", "m", "--set", setting];
    let outcome = run(llm_bridge(&[&produce[..1], &other[..], &["--set", &url]].concat()), b"some words");
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains("redis.stream_key has no {model}"), "{outcome:?}");
    assert_eq!(redis.connect().run::<usize>(&["EXISTS", "llm:stream:s2"]), 0);
    // With `{model}` in the key the model is required, and the message says so.
    let outcome = run(llm_bridge(&produce), b"some words");
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains("--model") && outcome.stderr.contains("redis.stream_key"), "{outcome:?}");
}

#[test]
fn every_kind_of_pattern_is_written_and_read() {
    for (pattern, key) in [
        ("chat:{session}:{model}", "chat:s1:m"),
        ("t[1]*/{model}/of/{session}{}", "t[1]*/m/of/s1{}"),
        // A brace alone is literal text.
        ("{{session}}:{model}", "{s1}:m"),
        ("llm:stream:{session}", "llm:stream:s1"),
    ] {
        let redis = RedisServer::start();
        let setting = format!("redis.stream_key={pattern}");
        let url = format!("redis.url={}", redis.url());
        let model = if pattern.contains("{model}") { "m" } else { "default" };
        let produce = ["produce", "--session", "s1", "--model", model, "--set", &url, "--set", &setting];
        let outcome = run(llm_bridge(&produce), b"some words");
        assert_eq!(outcome.code, Some(0), "{pattern}: {}", outcome.stderr);
        assert_eq!(redis.connect().run::<usize>(&["EXISTS", key]), 1, "{pattern}");
        let daemon = daemon_with(&redis, pattern);
        let name = if pattern.contains("{model}") { "s1/m" } else { "s1" };
        for kind in KINDS {
            assert_eq!(view(daemon.public, kind, name, "").text(), "some words", "{pattern} {kind:?}");
        }
    }
}

#[test]
fn a_pattern_that_would_not_do_is_refused_and_check_explains_one_that_does() {
    let redis = RedisServer::start();
    let url = format!("redis.url={}", redis.url());
    for (pattern, why) in [
        ("llm:{session}", "begin it with a word of its own"),
        ("{session}", "it begins with literal text"),
        ("x:{session}{model}", "a character that no session has"),
        ("x:{model}", "{session} once"),
    ] {
        let setting = format!("redis.stream_key={pattern}");
        for command in ["serve", "check"] {
            let outcome = run(llm_bridge(&[command, "--set", &url, "--set", &setting]), b"");
            assert_eq!(outcome.code, Some(78), "{command} {pattern}: {outcome:?}");
            let printed = format!("{}{}", outcome.stdout, outcome.stderr);
            assert!(
                printed.contains("redis.stream_key") && printed.contains(pattern) && printed.contains(why),
                "{printed}"
            );
        }
    }
    let setting = "redis.stream_key=chat?{session}:t";
    let outcome = run(llm_bridge(&["check", "--set", &url, "--set", setting]), b"");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    for part in ["~llm:* ~chat\\?*:t", "streams are the keys chat?{session}:t", "begins with chat?"] {
        assert!(outcome.stdout.contains(part), "{part} in {}", outcome.stdout);
    }
    // The rights that it names suffice, and those of the prefix alone do not.
    let mut connection = redis.connect();
    let mut user = |name: &str, keys: &str| {
        let rule = format!("ACL SETUSER {name} on >secret +@all {keys}");
        connection.run::<()>(&rule.split(' ').collect::<Vec<_>>());
        let url = format!("redis.url=redis://{name}:secret@127.0.0.1:{}", redis.port());
        run(llm_bridge(&["check", "--set", &url, "--set", setting]), b"").code
    };
    assert_eq!(user("enough", "~llm:* ~chat\\?*:t"), Some(0));
    assert_eq!(user("less", "~llm:*"), Some(78));
}

#[test]
fn the_manuals_recipe_for_existing_streams_works() {
    let redis = RedisServer::start();
    let mut file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    for line in block(README, "**I have streams already**", "diff").lines() {
        writeln!(file, "{}", &line[1..]).unwrap();
    }
    let daemon = Daemon::options(&redis).config(file.path()).start();
    let shell = block(README, "**I have streams already**", "sh")
        .replace("redis-cli ", &format!("redis-cli -p {} ", redis.port()));
    let outcome = std::process::Command::new("sh").args(["-ec", &shell]).output().unwrap();
    assert!(outcome.status.success(), "{outcome:?}");
    for kind in KINDS {
        let delivered = view(daemon.public, kind, "s1", "");
        assert_eq!(delivered.text(), "Hi there");
        assert_eq!(delivered.frames.last().unwrap().value["finish_reason"], "stop");
    }
    // The other name that it gives the text.
    let mut producer = Producer::new(&redis, "s2", "m");
    producer.key = "llm:stream:s2".to_owned();
    producer.write_fields("*", &[("tok", b"x"), ("done", b"1")]);
    assert_eq!(view(daemon.public, Kind::Sse, "s2", "").text(), "x");
}
