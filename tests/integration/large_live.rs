//! Large entries that arrive while viewers are live: each arrives once and in order, alone if necessary, however many
//! Redis sends at once.

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::patience::wait_until;
use crate::support::producer::Producer;
use crate::support::redis::RedisServer;
use crate::support::viewer::{Kind, Viewer};

const MIB: usize = 1 << 20;

fn delta(number: usize, bytes: usize) -> Value {
    json!({"type": "delta", "text": format!("{number:08}{}", "x".repeat(bytes - 8))})
}

/// A live viewer of a new stream.
fn live(redis: &RedisServer, daemon: &Daemon) -> (Producer, Viewer) {
    let mut producer = Producer::new(redis, "s1", "m");
    let first = producer.write(&json!({"type": "start", "generation": "g1"}));
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    viewer.read_to(&first);
    wait_until("the group", || !redis.connect().groups(&producer.key).is_empty());
    (producer, viewer)
}

#[test]
fn entries_come_live_where_redis_sends_no_more_at_once() {
    const BYTES: usize = 400_000;
    let redis = RedisServer::start();
    redis.connect().run::<()>(&["CONFIG", "SET", "client-output-buffer-limit", "normal 1000000 0 0"]);
    let daemon = Daemon::start(&redis);
    let (mut producer, mut viewer) = live(&redis, &daemon);
    let mut number = 0;
    // One alone, then several at once.
    for together in [1, 4, 4] {
        let objects: Vec<Value> = (number..number + together).map(|number| delta(number, BYTES)).collect();
        let newest = producer.write_all(&objects).pop().unwrap();
        viewer.read_to(&newest);
        number += together;
    }
    let text = viewer.transcript.text();
    assert_eq!(text.len(), 9 * BYTES);
    for number in 0..9 {
        assert!(text[number * BYTES..].starts_with(&format!("{number:08}x")), "entry {number} is another");
    }
}

#[test]
fn the_largest_entry_comes_live_and_a_larger_one_is_named() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let (mut producer, mut viewer) = live(&redis, &daemon);
    let largest = 8 * MIB - r#"{"type":"delta","text":""}"#.len();
    let id = producer.write(&delta(0, largest));
    viewer.read_to(&id);
    assert_eq!(viewer.transcript.text().len(), largest);
    for bytes in [largest + 1, 40 * MIB] {
        let id = producer.write(&delta(1, bytes));
        viewer.read_to(&id);
        let frame = &viewer.transcript.frames.last().unwrap().value;
        assert_eq!(
            (&frame["type"], &frame["reason"]),
            (&json!("skipped"), &json!("too_large")),
            "{bytes} bytes"
        );
    }
    let id = producer.write(&delta(2, largest));
    viewer.read_to(&id);
    assert_eq!(viewer.transcript.text().len(), 2 * largest);
}
