//! Large entries: reads are bounded by bytes, not by counts. Up to 8 MiB they are delivered, alone if necessary;
//! above that they are reported and skipped; and what Redis refuses to send affects nobody else.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::patience::wait_until;
use crate::support::producer::Producer;
use crate::support::redis::RedisServer;
use crate::support::viewer::{KINDS, Kind, Viewer, target, view};
use crate::support::websocket::{Incoming, WebSocketClient};

const MIB: usize = 1 << 20;
const LETTERS: &str = "llm:dlq:llm-bridge";

/// The text of an entry: its number, then padding.
fn text(number: usize, bytes: usize) -> String {
    format!("{number:08}{}", "x".repeat(bytes - 8))
}

/// Reads a stream to its end. Returns how many entries with `bytes` bytes of text there were, and the other frames.
fn read(daemon: &Daemon, stream: &str, bytes: usize) -> (usize, Vec<Value>) {
    let mut client = WebSocketClient::connect(daemon.public, &target(stream, ""));
    let (mut buffered, mut others) = (String::new(), Vec::new());
    let mut entries = 0;
    loop {
        match client.receive() {
            Incoming::Text(json) => {
                let frame: Value = serde_json::from_str(&json).unwrap();
                match frame["text"].as_str() {
                    Some(text) => buffered.push_str(text),
                    None => others.push(frame),
                }
                while buffered.len() >= bytes {
                    assert!(buffered.starts_with(&text(entries, bytes)), "entry {entries} is another");
                    buffered.drain(..bytes);
                    entries += 1;
                }
            }
            Incoming::Pong(_) => {}
            ending => {
                assert_eq!(ending, Incoming::Closed(1000));
                assert!(buffered.is_empty(), "half an entry");
                return (entries, others);
            }
        }
    }
}

#[test]
fn history_of_large_entries_is_read_in_pieces_that_fit() {
    const ENTRIES: usize = 64;
    let redis = RedisServer::start();
    let mut producer = Producer::new(&redis, "s1", "m");
    for number in 0..ENTRIES {
        producer.delta(&text(number, MIB));
    }
    producer.end();
    let daemon = Daemon::start(&redis);
    let idle = daemon.resident_bytes_max();
    assert_eq!(read(&daemon, "s1/m", MIB).0, ENTRIES);
    let grown = daemon.resident_bytes_max() - idle;
    assert!(grown <= 48 * MIB as u64, "{grown} bytes more for one viewer");
}

/// However small the other entries of the daemon's streams are, the first read of a stream is limited in bytes.
#[test]
fn a_stream_of_large_entries_among_small_ones_costs_no_more() {
    const ENTRIES: usize = 24;
    let redis = RedisServer::start();
    for stream in 0..40 {
        let mut producer = Producer::new(&redis, &format!("small{stream}"), "m");
        producer.tokens(0..300);
        producer.end();
    }
    let mut producer = Producer::new(&redis, "s1", "m");
    for number in 0..ENTRIES {
        producer.delta(&text(number, 2 * MIB));
    }
    producer.end();
    let daemon = Daemon::start(&redis);
    for stream in 0..40 {
        view(daemon.public, Kind::WebSocket, &format!("small{stream}/m"), "");
    }
    let idle = daemon.resident_bytes_max();
    assert_eq!(read(&daemon, "s1/m", 2 * MIB).0, ENTRIES);
    let grown = daemon.resident_bytes_max() - idle;
    assert!(grown <= 64 * MIB as u64, "{grown} bytes more for one viewer");
}

#[test]
fn the_largest_entry_is_delivered_and_a_larger_one_is_named_and_passed_over() {
    let redis = RedisServer::start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let framing = r#"{"type":"delta","text":""}"#.len();
    let largest = 8 * MIB - framing;
    producer.write_text(&format!(r#"{{"type":"delta","text":"{}"}}"#, text(0, largest)));
    let too_large = producer.write_text(&format!(r#"{{"type":"delta","text":"{}"}}"#, text(0, largest + 1)));
    let huge = "x".repeat(40 * MIB);
    let huger = producer.write_fields("*", &[("openai", huge.as_bytes()), ("other", b"1")]);
    producer.write_text(&format!(r#"{{"type":"delta","text":"{}"}}"#, text(1, largest)));
    let end = producer.end();
    let daemon = Daemon::start(&redis);
    for _ in 0..2 {
        let (entries, others) = read(&daemon, "s1/m", largest);
        assert_eq!(entries, 2);
        let skipped: Vec<&Value> = others.iter().filter(|frame| frame["type"] == "skipped").collect();
        assert_eq!(skipped.len(), 2, "{others:?}");
        for (frame, id) in skipped.iter().zip([&too_large, &huger]) {
            assert_eq!((&frame["reason"], &frame["id"]), (&json!("too_large"), &json!(id)));
        }
        assert_eq!(others.last().unwrap()["id"], json!(end));
    }
    assert!(daemon.counter("replay_reads") < 60, "it is not read again and again");
}

/// More than the queue of dead letters has room for while Redis writes slowly: the stream waits for them, and its
/// viewers see no outage.
#[test]
fn large_ones_in_a_row_that_cannot_be_read_are_no_outage() {
    const ENTRIES: usize = 6;
    let redis = RedisServer::start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let malformed = "x".repeat(7 * MIB);
    for _ in 0..ENTRIES {
        producer.write_fields("*", &[("data", malformed.as_bytes())]);
    }
    let end = producer.end();
    let daemon = Daemon::start(&redis);
    let mut admin = redis.connect();
    admin.run::<()>(&["CLIENT", "PAUSE", "1000", "WRITE"]);
    for kind in KINDS {
        let transcript = view(daemon.public, kind, "s1/m", "");
        assert_eq!(transcript.of_kind("skipped").count(), ENTRIES, "{:?}", transcript.outline());
        assert_eq!(transcript.of_kind("status").count(), 0, "{kind:?}");
        transcript.expect_finished(&end);
    }
    assert!(daemon.counter("dead_letters_deferred") > 0, "the queue was never full");
    wait_until("the letters", || daemon.counter("dead_letters_written") == ENTRIES as u64);
}

/// Redis cuts the connection if a reply exceeds its limit: smaller replies are requested.
#[test]
fn entries_come_one_by_one_where_redis_sends_no_more_at_once() {
    const BYTES: usize = 400_000;
    let redis = RedisServer::start();
    redis.connect().run::<()>(&["CONFIG", "SET", "client-output-buffer-limit", "normal 1000000 0 0"]);
    let mut producer = Producer::new(&redis, "s1", "m");
    for number in 0..4 {
        producer.delta(&text(number, BYTES));
    }
    producer.end();
    let daemon = Daemon::start(&redis);
    let response = http::get(daemon.public, "/v1/streams/s1/m");
    assert_eq!(response.status, 200);
    assert_eq!(response.json()["content"].as_str().unwrap().len(), 4 * BYTES);
    let (entries, others) = read(&daemon, "s1/m", BYTES);
    assert_eq!(entries, 4);
    assert!(others.iter().all(|frame| frame["type"] != "status"), "nobody is told of an outage: {others:?}");
}

/// An entry that Redis never sends: its viewers are told and wait, others do not notice, and nothing is retried in a
/// loop.
#[test]
fn an_entry_that_redis_refuses_to_send_disturbs_nobody_else() {
    let redis = RedisServer::start();
    let mut admin = redis.connect();
    admin.run::<()>(&["CONFIG", "SET", "client-output-buffer-limit", "normal 300000 0 0"]);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta(&text(0, 400_000));
    let end = producer.end();
    let mut other = Producer::new(&redis, "s2", "m");
    other.tokens(0..50);
    let daemon = Daemon::start(&redis);
    let mut blocked = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    blocked.read_to_status("degraded");
    let before = daemon.counter("redis_connects");
    let since = Instant::now();
    let mut reads = 0;
    while since.elapsed() < Duration::from_secs(3) {
        let response = http::get(daemon.public, "/v1/streams/s2/m");
        assert_eq!(response.status, 200, "{}", response.text());
        reads += 1;
        assert_eq!(http::get(daemon.admin, "/readyz").status, 200);
        std::thread::sleep(Duration::from_millis(10));
    }
    let connects = daemon.counter("redis_connects") - before;
    assert!(connects < 20, "{connects} connections while others read {reads} times");
    assert_eq!(http::get(daemon.public, "/v1/streams/s1/m").status, 503);
    admin.run::<()>(&["CONFIG", "SET", "client-output-buffer-limit", "normal 0 0 0"]);
    blocked.read_to(&end);
}

/// The JSON state of a large stream is assembled in turns with others.
#[test]
fn the_state_of_a_large_stream_lets_others_through() {
    let redis = RedisServer::start();
    let mut producer = Producer::new(&redis, "s1", "m");
    for number in 0..60 {
        producer.delta(&text(number, 2 * MIB));
    }
    let mut small = Producer::new(&redis, "s2", "m");
    small.tokens(0..10);
    let daemon = Daemon::start(&redis);
    std::thread::scope(|scope| {
        let large = scope.spawn(|| http::get(daemon.public, "/v1/streams/s1/m").status);
        wait_until("it to be gathered", || daemon.counter("replay_reads") > 2);
        let reads = daemon.counter("replay_reads");
        assert_eq!(http::get(daemon.public, "/v1/streams/s2/m").status, 200);
        let meanwhile = daemon.counter("replay_reads") - reads;
        assert_eq!(large.join().unwrap(), 406, "the state is larger than allowed");
        assert!(meanwhile < 55, "the small one came after {meanwhile} reads");
    });
}

/// Many small undecodable entries among larger ones, several in each reply, while Redis is out of memory: what waits
/// to become a dead letter takes no more memory than its own size.
#[test]
fn letters_that_wait_keep_no_replies_while_redis_is_full() {
    const PAIRS: usize = 2400;
    const BYTES: usize = MIB / 32;
    let redis = RedisServer::start();
    let mut admin = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    for number in 0..PAIRS {
        producer.delta(&text(number, BYTES));
        producer.write_fields("*", &[("data", b"{\"type\":")]);
    }
    producer.end();
    let daemon = Daemon::start(&redis);
    let idle = daemon.resident_bytes_max();
    admin.run::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let (entries, others) = read(&daemon, "s1/m", BYTES);
    let skipped = others.iter().filter(|frame| frame["type"] == "skipped").count();
    assert_eq!((entries, skipped), (PAIRS, PAIRS));
    let grown = daemon.resident_bytes_max() - idle;
    assert!(grown <= 32 * MIB as u64, "{grown} bytes more for {PAIRS} letters of 8 bytes");
    assert_eq!(daemon.counter("dead_letters_written"), 0);
    admin.run::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_until("the letters", || daemon.counter("dead_letters_written") == PAIRS as u64);
    let kept: usize = admin.run(&["XLEN", LETTERS]);
    assert_eq!((kept, daemon.counter("dead_letters_failed")), (PAIRS, 0));
}

/// Whether the long form of a test is wanted: `LLM_BRIDGE_LONG=1`, as `tests/run.sh --long` sets it.
fn is_long() -> bool {
    std::env::var_os("LLM_BRIDGE_LONG").is_some_and(|value| value == "1")
}

/// Reads a stream's socket to the close without parsing the bytes. Returns their number.
fn drain(daemon: &Daemon, stream: &str) -> usize {
    let mut socket = Viewer::open(daemon.public, Kind::WebSocket, stream, "").socket();
    let (mut buffer, mut taken) = (vec![0; 256 << 10], 0);
    loop {
        match socket.read(&mut buffer) {
            Ok(0) | Err(_) => return taken,
            Ok(len) => taken += len,
        }
    }
}

/// Fifty viewers, of which one reads nothing, while entries of 1 MiB pass: 48 MiB, or 1 GiB with `LLM_BRIDGE_LONG=1`.
#[test]
fn fifty_viewers_of_large_entries_cost_little_memory() {
    const VIEWERS: usize = 50;
    let entries = if is_long() { 1024 } else { 48 };
    let redis = RedisServer::start();
    let mut producer = Producer::new(&redis, "s1", "m");
    for number in 0..8 {
        producer.delta(&text(number, MIB));
    }
    let daemon = Daemon::options(&redis).set("client.slow_timeout=24h").start();
    let idle = daemon.resident_bytes_max();
    let stuck: TcpStream = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "").socket();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&daemon, "s1/m", MIB).0);
        let others: Vec<_> = (2..VIEWERS).map(|_| scope.spawn(|| drain(&daemon, "s1/m"))).collect();
        wait_until("all to be there", || daemon.gauge("subscriptions_open") == VIEWERS as u64);
        for number in 8..entries {
            producer.delta(&text(number, MIB));
        }
        producer.end();
        assert_eq!(reader.join().unwrap(), entries);
        for other in others {
            // The close is not answered, so the daemon ends the connection after the last frame.
            assert!(other.join().unwrap() > entries * MIB);
        }
    });
    drop(stuck);
    let grown = daemon.resident_bytes_max() - idle;
    assert!(grown <= 64 * MIB as u64, "{grown} bytes more for {VIEWERS} viewers");
}
