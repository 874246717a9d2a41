//! An entry that cannot be decoded is skipped with a frame that reports it, stored as one dead letter however many
//! readers read it, and acknowledged.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::patience::wait_until;
use crate::support::producer::Producer;
use crate::support::raw::Raw;
use crate::support::redis::{Redis, RedisServer, parsed_id};
use crate::support::transcript::Transcript;
use crate::support::viewer::{KINDS, Kind, Viewer, view};
use crate::support::websocket::WebSocketClient;

const LETTERS: &str = "llm:dlq:llm-bridge";

type Letter = HashMap<String, Vec<u8>>;

fn letters(redis: &mut Redis) -> Vec<Letter> {
    redis.entries(LETTERS).into_iter().map(|(_, fields)| fields).collect()
}

fn wait_letters(redis: &mut Redis, count: usize) -> Vec<Letter> {
    wait_until("the dead letters", || letters(redis).len() >= count);
    let letters = letters(redis);
    assert_eq!(letters.len(), count, "{letters:?}");
    letters
}

fn text<'a>(letter: &'a Letter, field: &str) -> &'a str {
    let value = letter.get(field).unwrap_or_else(|| panic!("no {field} in {letter:?}"));
    std::str::from_utf8(value).unwrap()
}

/// Checks everything except the copied fields of a letter.
fn expect_letter(letter: &Letter, id: &str) {
    let stored = (text(letter, "stream"), text(letter, "id"), text(letter, "processor"));
    assert_eq!(stored, ("s1/m", id, "deliver"));
    assert!(!text(letter, "reason").is_empty(), "{letter:?}");
    assert!(text(letter, "attempts").parse::<u64>().is_ok_and(|attempts| attempts > 0), "{letter:?}");
}

/// Checks that the transcript reports these entries as skipped, and no others.
fn expect_skipped(transcript: &Transcript, ids: &[&str]) {
    let skipped: Vec<&Value> = transcript.of_kind("skipped").collect();
    assert_eq!(skipped.iter().map(|frame| frame["id"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    let has = |frame: &Value, member: &str| frame[member].as_str().is_some_and(|text| !text.is_empty());
    assert!(skipped.iter().all(|frame| has(frame, "reason") && has(frame, "message")), "{skipped:?}");
}

#[test]
fn a_malformed_entry_is_kept_as_a_letter() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("service.instance=i1").start();
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.start("g1");
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    viewers.iter_mut().for_each(|viewer| viewer.read_to(&first));
    let no_json = producer.write_fields("*", &[("data", b"{no json"), ("note", "é".as_bytes())]);
    let no_field = producer.write_fields("*", &[("txt", b"hello"), ("other", b"")]);
    let no_text = producer.write_text(r#"{"type":"delta"}"#);
    producer.delta("goes on");
    for viewer in &mut viewers {
        viewer.read_to(producer.ids.last().unwrap());
        expect_skipped(&viewer.transcript, &[&no_json, &no_field, &no_text]);
        assert_eq!(viewer.transcript.text(), "goes on");
    }
    let letters = wait_letters(&mut connection, 3);
    let copies = [
        json!({"data": "{no json", "note": "é"}),
        json!({"txt": "hello", "other": ""}),
        json!({"data": r#"{"type":"delta"}"#}),
    ];
    for ((letter, id), copy) in letters.iter().zip([&no_json, &no_field, &no_text]).zip(copies) {
        expect_letter(letter, id);
        assert_eq!(serde_json::from_str::<Value>(text(letter, "fields")).unwrap(), copy);
        assert!(!letter.contains_key("fields_b64"), "{letter:?}");
    }
    let newest = parsed_id(producer.ids.last().unwrap());
    wait_until("the acknowledgement", || connection.positions(&producer.key) == [newest]);
}

#[test]
fn fields_that_are_no_text_are_kept_byte_for_byte() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    let value: Vec<u8> = (0..=255).collect();
    let id = producer.write_fields("*", &[("data", &value), ("é", b"plain")]);
    let end = producer.end();
    for kind in KINDS {
        let all = view(daemon.public, kind, "s1/m", "");
        expect_skipped(&all, &[&id]);
        all.expect_finished(&end);
    }
    let letter = wait_letters(&mut connection, 1).remove(0);
    expect_letter(&letter, &id);
    assert!(!letter.contains_key("fields"), "{letter:?}");
    let copy: Value = serde_json::from_str(text(&letter, "fields_b64")).unwrap();
    let encoded = |bytes: &[u8]| BASE64.encode(bytes);
    assert_eq!(copy, json!({encoded(b"data"): encoded(&value), encoded("é".as_bytes()): encoded(b"plain")}));
}

#[test]
fn undecodable_entries_after_the_end_are_stored_and_not_shown() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("one");
    let end = producer.end();
    let mut live = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "follow=1"));
    live.iter_mut().for_each(|viewer| viewer.read_to(&end));
    let late = producer.write_text("no json");
    let next = producer.start("g2");
    for viewer in &mut live {
        viewer.read_to(&next);
        expect_skipped(&viewer.transcript, &[]);
    }
    expect_letter(&wait_letters(&mut connection, 1)[0], &late);
}

#[test]
fn however_many_meet_an_entry_there_is_one_letter() {
    let redis = RedisServer::start();
    let daemons =
        ["i1", "i2"].map(|id| Daemon::options(&redis).set(&format!("service.instance={id}")).start());
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.start("g1");
    let mut viewers = Vec::new();
    for daemon in daemons.iter().chain(&daemons) {
        viewers.extend(KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "")));
    }
    viewers.iter_mut().for_each(|viewer| viewer.read_to(&first));
    let bad: Vec<String> = (0..5).map(|number| producer.write_text(&format!("bad {number}"))).collect();
    let bad: Vec<&str> = bad.iter().map(String::as_str).collect();
    let newest = producer.delta("goes on");
    for viewer in &mut viewers {
        viewer.read_to(&newest);
        expect_skipped(&viewer.transcript, &bad);
    }
    // And again from history, from every entry on.
    for daemon in &daemons {
        for position in 0..producer.ids.len() - 1 {
            let query = format!("after={}", producer.ids[position]);
            let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", &query);
            viewer.read_to(&newest);
            expect_skipped(&viewer.transcript, &bad[position.min(bad.len())..]);
        }
    }
    // A letter of each instance comes after everything that they have written before.
    for (daemon, session) in daemons.iter().zip(["s8", "s9"]) {
        let mut mark = Producer::new(&redis, session, "m");
        mark.write_text("mark");
        let end = mark.end();
        view(daemon.public, Kind::Sse, &mark.stream, "").expect_finished(&end);
        wait_until("the mark's letter", || {
            letters(&mut connection).iter().any(|letter| text(letter, "stream") == mark.stream)
        });
    }
    let kept = letters(&mut connection);
    let mut ids: Vec<&str> = kept
        .iter()
        .filter(|letter| text(letter, "stream") == "s1/m")
        .map(|letter| text(letter, "id"))
        .collect();
    ids.sort_unstable();
    let mut expected = bad.clone();
    expected.sort_unstable();
    assert_eq!(ids, expected, "one letter for each entry");
}

/// A Redis that is out of memory accepts no letters: they wait, within a limit, and none is lost.
#[test]
fn letters_are_written_once_redis_has_memory_again() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    // More than the queue holds, each in a reply with large neighbours.
    let large = "x".repeat(200_000);
    for _ in 0..120 {
        connection.add_entry(&producer.key, "*", &[("data", b"{"), ("other", large.as_bytes())]);
        producer.delta("text");
    }
    let end = producer.end();
    connection.run::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    wait_until("the stream to wait for its letters", || daemon.counter("dead_letters_deferred") > 0);
    viewer.read_to_status("degraded");
    assert!(letters(&mut connection).is_empty());
    connection.run::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    let transcript = viewer.read_all();
    transcript.expect_finished(&end);
    assert_eq!(transcript.of_kind("skipped").count(), 120);
    wait_letters(&mut connection, 120);
    assert_eq!((daemon.counter("dead_letters_written"), daemon.counter("dead_letters_failed")), (120, 0));
}

/// A flood of requests to stop prevents no letter and no receipt.
#[test]
fn a_flood_of_cancels_loses_no_letter() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("stream.receipts=true").set("stream.receipts_after=1s").start();
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "follow=1");
    viewer.expect_open("live");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (stop, address) = (&stop, daemon.public);
            scope.spawn(move || {
                let request =
                    format!("POST /v1/streams/victim{n}/m/cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut connection = Raw::begin(address, request.repeat(20).as_bytes());
                    connection.head();
                }
            });
        }
        for _ in 0..200 {
            connection.add_entry(&producer.key, "*", &[("data", b"{")]);
        }
        let ends: Vec<String> = (0..10)
            .map(|n| {
                let end = producer.end();
                producer.start(&format!("g{n}"));
                end
            })
            .collect();
        viewer.read_to(&ends[9]);
        wait_letters(&mut connection, 200);
        wait_until("the receipts", || connection.run::<usize>(&["XLEN", "llm:receipts:llm-bridge"]) == 10);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!((daemon.counter("dead_letters_failed"), daemon.counter("receipts_failed")), (0, 0));
}

#[test]
fn the_letters_are_capped_by_bytes() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("redis.dlq_max_bytes=4MiB").start();
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    let large = "x".repeat(1 << 20);
    for _ in 0..30 {
        connection.add_entry(&producer.key, "*", &[("data", b"{"), ("other", large.as_bytes())]);
    }
    let end = producer.end();
    view(daemon.public, Kind::Sse, "s1/m", "").expect_finished(&end);
    wait_until("the letters", || daemon.counter("dead_letters_written") == 30);
    let usage = |connection: &mut Redis| connection.run::<u64>(&["MEMORY", "USAGE", LETTERS, "SAMPLES", "0"]);
    wait_until("the oldest to go", || usage(&mut connection) <= 4 << 20);
    assert!(!letters(&mut connection).is_empty(), "the newest stay");
}

/// The frame, the dead letter and the log give the same reason for a provider's invalid entry.
#[test]
fn the_defect_of_a_provider_s_entry_is_reported_everywhere() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut connection = redis.connect();
    let cases: [(&str, &str, &[&str]); 4] = [
        ("openai", "torn", &["openai is not JSON", "fields: openai, model"]),
        ("openai", "[\"hidden\"]", &["openai is a list, not an object"]),
        ("openai", "data: {\"choices\":[]}", &["a line of an event stream", "`data: `"]),
        (
            "anthropic",
            "{\"delta\":{\"text\":\"hidden\"},\"a\\u001bb\":1}",
            &[
                "type is missing",
                "members of anthropic: delta, a\u{241b}b",
                "looked for: a type of the Messages API",
            ],
        ),
    ];
    for (n, (field, payload, expected)) in cases.into_iter().enumerate() {
        let key = format!("llm:stream:s{n}:m");
        connection.add_entry(&key, "*", &[(field, payload.as_bytes()), ("model", b"m")]);
        connection.add_entry(&key, "*", &[("data", br#"{"type":"end"}"#)]);
        let transcript = view(daemon.public, Kind::WebSocket, &format!("s{n}/m"), "");
        let skipped = transcript.of_kind("skipped").next().expect("it is skipped");
        let message = skipped["message"].as_str().unwrap();
        let letters = wait_letters(&mut connection, n + 1);
        assert_eq!(text(&letters[n], "message"), message);
        for words in expected {
            assert!(message.contains(words), "{words} in {message}");
        }
        assert!(!message.contains("hidden"), "{message}");
        // The log escapes quotation marks and the like in its own way.
        let begins = expected[0].split('`').next().unwrap();
        wait_until("the log to say it", || daemon.log().contains(begins));
    }
}

/// A key of another type affects only its own users, is named, and is not accessed all the time.
#[test]
fn keys_of_another_type_stop_only_what_needs_them() {
    let redis = RedisServer::start();
    let mut connection = redis.connect();
    for key in ["llm:announce", LETTERS, "llm:receipts:llm-bridge"] {
        connection.run::<()>(&["SET", key, "no stream"]);
    }
    let daemon = Daemon::options(&redis).set("stream.receipts=true").start();
    // Announcements are read while a viewer waits for a name.
    let _waiting = WebSocketClient::connect(daemon.public, "/v1/streams/none/m?wait=60");
    let mut waiting = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "wait=30&follow=1");
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    connection.add_entry(&producer.key, "*", &[("data", b"{")]);
    let id = producer.delta("text");
    waiting.read_to(&id);
    waiting.websocket().send(&json!({"type": "ack", "id": id}));
    let refused = waiting.read_until("a refusal", |frame| frame.kind() == "refused");
    assert_eq!(refused.value["code"], "wrong_type", "{}", refused.raw);
    wait_until("the log to name the keys", || {
        let log = daemon.log();
        ["llm:announce", LETTERS, "llm:receipts:llm-bridge"].iter().all(|key| log.contains(key))
    });
    let connects = daemon.counter("redis_connects");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(daemon.counter("redis_connects") < connects + 5, "no connection is given up for it");
    assert_eq!(crate::support::http::get(daemon.admin, "/readyz").status, 200);
    for key in ["llm:announce", LETTERS, "llm:receipts:llm-bridge"] {
        connection.run::<()>(&["DEL", key]);
    }
    wait_letters(&mut connection, 1);
    wait_until("the receipt", || connection.run::<usize>(&["XLEN", "llm:receipts:llm-bridge"]) == 1);
}

#[test]
fn a_lease_of_another_type_is_named_and_history_is_served() {
    let redis = RedisServer::start();
    let mut connection = redis.connect();
    let lease = "llm:instance:llm-bridge:i1";
    connection.run::<()>(&["XADD", lease, "*", "a", "1"]);
    let mut producer = Producer::new(&redis, "s1", "m");
    let end = producer.end();
    let mut daemon = Daemon::options(&redis).set("service.instance=i1").start_alive();
    wait_until("the log to name the key", || daemon.log().contains(lease));
    let ready = crate::support::http::get(daemon.admin, "/readyz");
    assert!(
        ready.status == 503 && ready.text().contains(lease) && ready.text().contains("delete it"),
        "{}",
        ready.text()
    );
    view(daemon.public, Kind::Sse, "s1/m", "").expect_finished(&end);
    let connects = daemon.counter("redis_connects");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(daemon.counter("redis_connects") < connects + 5, "no connection is given up for it");
    connection.run::<()>(&["DEL", lease]);
    daemon.wait_ready();
}
