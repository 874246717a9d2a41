//! The position of an instance's group is the newest entry on all sockets: it moves by itself, a client that does not
//! read holds it back only for a limited time, and a stream without viewers costs nothing.

use std::thread;

use serde_json::json;

use crate::support::daemon::{Daemon, DaemonOptions};
use crate::support::http;
use crate::support::patience::wait_until;
use crate::support::producer::{Producer, entry, tokens};
use crate::support::redis::{Redis, RedisServer, parsed_id};
use crate::support::viewer::{KINDS, Kind, Viewer};

const GROUP: &str = "llm:consumer:llm-bridge:i1";
const KEY: &str = "llm:stream:s1:m";
/// More than the kernel buffers of a connection hold.
const BIG_ENTRIES: usize = 240;
const BIG_TEXT_BYTES: usize = 128 * 1024;

fn options(redis: &RedisServer) -> DaemonOptions {
    Daemon::options(redis).set("service.instance=i1").set("threads.readers=1")
}

/// Waits until everything up to an id is acknowledged.
fn wait_acknowledged(redis: &mut Redis, key: &str, id: &str) {
    wait_until("the acknowledgement", || redis.positions(key) == [parsed_id(id)]);
    assert_eq!(redis.pending(key, GROUP), 0);
}

#[test]
fn written_entries_are_acknowledged_even_if_the_stream_becomes_silent() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.start("g1");
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    viewers.iter_mut().for_each(|viewer| viewer.read_to(&first));
    wait_until("the group", || connection.groups(KEY) == [GROUP]);
    let consumers: Vec<std::collections::HashMap<String, redis::Value>> =
        connection.run(&["XINFO", "CONSUMERS", KEY, GROUP]);
    let names = consumers.iter().map(|consumer| redis::from_redis_value_ref(&consumer["name"]).unwrap());
    assert_eq!(names.collect::<Vec<String>>(), ["reader-0"]);
    // One entry alone, then many: no later read could carry the acknowledgement.
    for count in [1, 500] {
        let newest = producer.tokens(0..count).pop().unwrap();
        viewers.iter_mut().for_each(|viewer| viewer.read_to(&newest));
        wait_acknowledged(&mut connection, KEY, &newest);
    }
}

#[test]
fn many_streams_are_acknowledged() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    let mut connection = redis.connect();
    let mut producers: Vec<Producer> =
        (0..40).map(|number| Producer::new(&redis, &format!("s{number}"), "m")).collect();
    let mut viewers = Vec::new();
    for producer in &mut producers {
        let first = producer.start("g1");
        let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, &producer.stream, "");
        viewer.read_to(&first);
        viewers.push(viewer);
    }
    let newest: Vec<String> =
        producers.iter_mut().map(|producer| producer.tokens(0..20).pop().unwrap()).collect();
    for ((viewer, producer), id) in viewers.iter_mut().zip(&producers).zip(&newest) {
        viewer.read_to(id);
        assert_eq!(viewer.transcript.text(), tokens(0..20));
        wait_acknowledged(&mut connection, &producer.key, id);
    }
}

/// Writes much more than a connection can hold unread; returns the newest id.
fn write_much(producer: &mut Producer) -> String {
    for number in 0..BIG_ENTRIES {
        let text = format!("{number}:{}", "x".repeat(BIG_TEXT_BYTES));
        producer.write(&entry("delta", number + 1, json!({"text": text})));
    }
    producer.ids.last().unwrap().clone()
}

fn expect_much(viewer: &mut Viewer, newest: &str) {
    viewer.read_to(newest);
    let text = viewer.transcript.text();
    let expected = |number: usize| format!("{number}:{}", "x".repeat(BIG_TEXT_BYTES));
    assert!(text == (0..BIG_ENTRIES).map(expected).collect::<String>(), "not everything, in order, once");
}

#[test]
fn a_client_that_does_not_read_holds_acknowledgements_back_until_it_leaves() {
    let redis = RedisServer::start();
    let daemon = options(&redis).set("client.send_budget=1GiB").start();
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut clock = Producer::new(&redis, "s2", "m");
    let first = producer.start("g1");
    let clock_first = clock.start("g1");
    let mut reading = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    let mut not_reading = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    let mut clock_viewer = Viewer::open(daemon.public, Kind::WebSocket, "s2/m", "");
    reading.read_to(&first);
    not_reading.read_to(&first);
    clock_viewer.read_to(&clock_first);
    let newest = write_much(&mut producer);
    expect_much(&mut reading, &newest);
    // Later entries of another stream are read and acknowledged meanwhile, several times.
    for _ in 0..3 {
        let id = clock.delta("tick");
        clock_viewer.read_to(&id);
        wait_acknowledged(&mut connection, &clock.key, &id);
        assert!(
            connection.positions(KEY)[0] < parsed_id(&newest),
            "acknowledged what is not on every socket"
        );
    }
    drop(not_reading);
    wait_acknowledged(&mut connection, KEY, &newest);
}

#[test]
fn a_client_that_falls_back_to_history_holds_nothing_back() {
    let redis = RedisServer::start();
    let daemon = options(&redis).set("client.send_budget=64KiB").start();
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.start("g1");
    let mut slow = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    let mut reading = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    slow.iter_mut().chain([&mut reading]).for_each(|viewer| viewer.read_to(&first));
    let newest = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let is_last = format!("{}:", BIG_ENTRIES - 1);
            reading.read_until("the last entry", |frame| {
                frame.value["text"].as_str().is_some_and(|text| text.contains(&is_last))
            });
        });
        let newest = write_much(&mut producer);
        reader.join().unwrap();
        newest
    });
    // Two do not read, and yet everything is acknowledged.
    wait_acknowledged(&mut connection, KEY, &newest);
    for viewer in &mut slow {
        expect_much(viewer, &newest);
    }
    let end = producer.write(&json!({"type": "end", "finish_reason": "stop"}));
    for viewer in slow.into_iter().chain([reading]) {
        viewer.read_all().expect_finished(&end);
    }
}

#[test]
fn without_acknowledgements_the_group_stands_where_was_read() {
    let redis = RedisServer::start();
    let daemon = options(&redis).set("delivery.ack=none").start();
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.start("g1");
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    viewers.iter_mut().for_each(|viewer| viewer.read_to(&first));
    wait_until("the group", || connection.groups(KEY) == [GROUP]);
    for round in 0..50 {
        let newest = producer.tokens(round..round + 1).pop().unwrap();
        wait_acknowledged(&mut connection, KEY, &newest);
        viewers.iter_mut().for_each(|viewer| viewer.read_to(&newest));
    }
    let end = producer.end();
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.text(), tokens(0..50));
        transcript.expect_finished(&end);
    }
}

#[test]
fn the_group_of_a_stream_that_nobody_watches_is_removed() {
    let redis = RedisServer::start();
    let daemon = options(&redis).set("stream.linger=200ms").start();
    let mut connection = redis.connect();
    let mut watched = Producer::new(&redis, "s2", "m");
    let watched_first = watched.start("g1");
    let mut watching = Viewer::open(daemon.public, Kind::WebSocket, "s2/m", "");
    watching.read_to(&watched_first);
    let mut producer = Producer::new(&redis, "s1", "m");
    for round in 0..2 {
        let newest = producer.delta("one");
        let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "after=0"));
        viewers.iter_mut().for_each(|viewer| viewer.read_to(&newest));
        wait_until("the group", || connection.groups(KEY) == [GROUP]);
        drop(viewers);
        wait_until("its removal", || connection.groups(KEY).is_empty());
        assert_eq!(connection.groups("llm:stream:s2:m"), [GROUP], "round {round}: the other one is watched");
    }
    let registered = || redis.connect().run::<Vec<String>>(&["SMEMBERS", "llm:groups:llm-bridge:i1"]);
    wait_until("the register to forget it", || {
        let names = registered();
        names.len() == 1 && names[0].contains("s2")
    });
    let end = watched.end();
    watching.read_to(&end);
}

#[test]
fn a_finished_stream_keeps_no_group() {
    let redis = RedisServer::start();
    let daemon = options(&redis).set("stream.linger=0").start();
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.start("g1");
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    viewers.iter_mut().for_each(|viewer| viewer.read_to(&first));
    wait_until("the group", || connection.groups(KEY) == [GROUP]);
    let end = producer.end();
    for viewer in viewers {
        viewer.read_all().expect_finished(&end);
    }
    wait_until("its removal", || connection.groups(KEY).is_empty());
}

#[test]
fn reading_and_waiting_create_no_keys() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("one");
    // All of the daemon's own keys exist once the first stream has been watched and read.
    let mut watching = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    wait_until("the group", || connection.groups(KEY) == [GROUP]);
    let id = producer.delta("two");
    watching.read_to(&id);
    let owned = |key: &String| {
        let of_instance = ["llm:instance:", "llm:groups:", "llm:wake:"];
        key == "llm:instances:llm-bridge"
            || of_instance.iter().any(|prefix| key.starts_with(&format!("{prefix}llm-bridge:i1")))
    };
    let foreign_keys = |redis: &mut Redis| -> Vec<String> {
        redis.keys("*").into_iter().filter(|key| !owned(key)).collect()
    };
    assert_eq!(foreign_keys(&mut connection), [KEY]);
    let mut waiting = Vec::new();
    for number in 0..30 {
        let stream = format!("nobody{number}/m");
        let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, &stream, "");
        viewer.expect_open("waiting");
        waiting.push(viewer);
        assert_eq!(http::get(daemon.public, &format!("/v1/streams/{stream}")).status, 404);
    }
    assert_eq!(foreign_keys(&mut connection), [KEY]);
    // The daemon's own keys do not name the streams, nor grow with them.
    let own: Vec<String> = connection.keys("*").into_iter().filter(owned).collect();
    assert!(own.iter().all(|key| !key.contains("nobody")) && own.len() <= 5, "{own:?}");
    let registered: Vec<String> = connection.run(&["SMEMBERS", "llm:groups:llm-bridge:i1"]);
    assert!(registered.iter().all(|name| !name.contains("nobody")), "{registered:?}");
}

#[test]
fn an_acknowledgement_that_a_full_redis_refuses_is_made_when_it_has_room() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    let mut connection = redis.connect();
    let mut producers: Vec<Producer> =
        (0..20).map(|number| Producer::new(&redis, &format!("s{number}"), "m")).collect();
    let firsts: Vec<String> = producers.iter_mut().map(|producer| producer.start("g1")).collect();
    let mut viewers: Vec<Viewer> = Vec::new();
    for (producer, first) in producers.iter().zip(&firsts) {
        let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, &producer.stream, "");
        viewer.read_to(first);
        viewers.push(viewer);
    }
    let newest: Vec<String> = producers.iter_mut().map(|producer| producer.delta("last")).collect();
    connection.run::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    for (viewer, id) in viewers.iter_mut().zip(&newest) {
        viewer.read_to(id);
    }
    let refused = connection.errors("OOM");
    wait_until("Redis to refuse acknowledgements", || connection.errors("OOM") > refused + 20);
    connection.run::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    // Nothing more is written that could carry the acknowledgements.
    for (producer, id) in producers.iter().zip(&newest) {
        wait_acknowledged(&mut connection, &producer.key, id);
    }
}
