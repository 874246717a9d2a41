//! A client that stops reading costs the daemon no more than its budget and does not affect others: it gets the rest
//! from history when it continues, and is told to reconnect if it does not.

use std::borrow::Cow;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, DaemonOptions};
use crate::support::patience::{PATIENCE, wait_until};
use crate::support::producer::Producer;
use crate::support::raw::connect_narrow;
use crate::support::redis::RedisServer;
use crate::support::sse::SseClient;
use crate::support::viewer::{Kind, target, view};
use crate::support::websocket::{Incoming, WebSocketClient};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The text of an entry.
const ENTRY_BYTES: usize = 256 * KIB;

/// The daemon's settings here, from which the memory limit is computed.
const SEND_BUDGET: usize = 256 * KIB;
const READ_COUNT: usize = 4;
const QUEUE_BATCHES: usize = 2;

/// The program itself, its threads, its fixed tables, and what the allocator keeps.
const PROGRAM_BYTES: usize = 64 * MIB;

/// The most memory that the daemon may need with this many clients, however much passes through it:
///
/// - the largest batch between two threads is one read, `READ_COUNT` entries;
/// - batches are in three queues (live, history, delivery) of `QUEUE_BATCHES` each, and in four threads (reader,
///   history, transform, delivery), each of which may hold one twice, as input and as output (reply and entries,
///   entries and frames);
/// - a client holds its budget and, because a frame is never cut, one frame beyond it, of at most a batch.
///
/// Twice that, because a growing buffer is copied into one of double the size.
fn memory_bound(clients: usize) -> u64 {
    let batch = READ_COUNT * ENTRY_BYTES;
    let pipeline = (3 * QUEUE_BATCHES + 4 * 2) * batch;
    let held = clients * (SEND_BUDGET + batch);
    (PROGRAM_BYTES + 2 * (pipeline + held)) as u64
}

fn options(redis: &RedisServer, slow_timeout: &str) -> DaemonOptions {
    Daemon::options(redis)
        .set(&format!("client.send_budget={SEND_BUDGET}"))
        .set(&format!("client.slow_timeout={slow_timeout}"))
        .set(&format!("delivery.read_count={READ_COUNT}"))
        .set(&format!("delivery.replay_count={READ_COUNT}"))
        .set(&format!("delivery.queue_batches={QUEUE_BATCHES}"))
}

/// The text of the n-th entry: its number, then padding.
fn text_of(number: usize) -> String {
    let mut text = format!("{number:015}:");
    text.extend(std::iter::repeat_n("abcdefghijklmnop", ENTRY_BYTES / 16 - 1));
    text
}

/// Writes this many entries and the end; returns the end's id.
fn write_bulk(producer: &mut Producer, entries: usize) -> String {
    for number in 0..entries {
        producer.write_text(&format!(r#"{{"type":"delta","seq":{number},"text":"{}"}}"#, text_of(number)));
    }
    producer.write(&json!({"type": "end", "seq": entries, "finish_reason": "stop"}))
}

/// The members of a frame that matter here.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: Option<&'a str>,
    stream: Option<&'a str>,
    count: Option<usize>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
}

/// Checks the text of one stream as it arrives, without keeping it.
#[derive(Default)]
struct Check {
    /// How many bytes of text were correct so far.
    position: usize,
    /// In how many frames they came, and how many entries these cover.
    frames: usize,
    entries: usize,
    last_id: Option<String>,
    terminal_id: Option<String>,
}

impl Check {
    fn take(&mut self, frame: &Frame) {
        assert_eq!(self.terminal_id, None, "{} follows the end", frame.kind);
        match frame.kind {
            "open" | "status" => return,
            "end" => self.terminal_id = frame.id.map(str::to_owned),
            "delta" => self.take_text(frame.text.as_ref().unwrap()),
            other => panic!("unexpected {other}"),
        }
        self.frames += 1;
        self.entries += frame.count.unwrap_or(1);
        self.last_id = frame.id.map(str::to_owned);
    }

    fn take_text(&mut self, mut text: &str) {
        while !text.is_empty() {
            let expected = text_of(self.position / ENTRY_BYTES);
            let expected = &expected[self.position % ENTRY_BYTES..];
            let (piece, rest) = text.split_at(expected.len().min(text.len()));
            assert!(
                expected.starts_with(piece),
                "the text differs within {ENTRY_BYTES} of {}",
                self.position
            );
            self.position += piece.len();
            text = rest;
        }
    }

    /// Checks that all of these entries and the end arrived.
    fn expect_whole(&self, entries: usize, end: &str) {
        assert_eq!(self.position, entries * ENTRY_BYTES);
        assert_eq!(self.entries, entries + 1);
        assert_eq!(self.terminal_id.as_deref(), Some(end));
    }
}

/// Reads a WebSocket to its close; returns the code.
fn read_websocket(client: &mut WebSocketClient, check: &mut Check) -> Incoming {
    loop {
        match client.receive() {
            Incoming::Text(text) => check.take(&serde_json::from_str(&text).unwrap()),
            Incoming::Pong(_) => {}
            ending => return ending,
        }
    }
}

/// Reads events to the end of the response. Returns false if it was cut.
fn read_sse(client: &mut SseClient, check: &mut Check) -> bool {
    loop {
        match client.event() {
            Ok(Some(event)) => check.take(&serde_json::from_str(&event.data).unwrap()),
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

fn open_websocket(daemon: &Daemon, stream: &str) -> WebSocketClient {
    let connection = connect_narrow(daemon.public);
    let mut client = WebSocketClient::over(connection, daemon.public, &target(stream, ""), &[]);
    assert_eq!(client.receive_json()["type"], "open");
    client
}

fn open_sse(daemon: &Daemon, stream: &str) -> SseClient {
    let mut client = SseClient::open(daemon.public, &target(stream, ""), &[]);
    assert!(client.event().unwrap().unwrap().data.contains(r#""open""#));
    client
}

/// A client that reads correctly, to the end.
fn healthy<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    mut client: WebSocketClient,
    entries: usize,
) -> ScopedJoinHandle<'scope, Check> {
    scope.spawn(move || {
        let mut check = Check::default();
        assert_eq!(read_websocket(&mut client, &mut check), Incoming::Closed(1000));
        assert_eq!(check.entries, entries + 1);
        check
    })
}

/// Waits until no client reads history any more: one that lags from now on falls back from live.
fn wait_live(daemon: &Daemon) {
    wait_until("all to be live", || daemon.gauge("streams_live") > 0 && daemon.gauge("replay_jobs") == 0);
}

fn expect_memory(daemon: &Daemon, clients: usize) {
    let (most, bound) = (daemon.resident_bytes_max(), memory_bound(clients));
    assert!(most <= bound, "the daemon had {most} bytes, its limits add up to {bound}");
}

#[test]
fn two_hundred_megabytes_pass_a_client_that_does_not_read() {
    const ENTRIES: usize = 800;
    let redis = RedisServer::start();
    let daemon = options(&redis, "24h").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.write_text(r#"{"type":"heartbeat"}"#);
    let (mut slow_websocket, mut slow_sse) = (open_websocket(&daemon, "s1/m"), open_sse(&daemon, "s1/m"));
    let healthy_client = open_websocket(&daemon, "s1/m");
    wait_live(&daemon);
    let end = thread::scope(|scope| {
        let healthy = healthy(scope, healthy_client, ENTRIES);
        let end = write_bulk(&mut producer, ENTRIES);
        healthy.join().unwrap().expect_whole(ENTRIES, &end);
        end
    });
    wait_until("both to fall back", || daemon.counter("clients_fell_back") >= 2);
    assert_eq!(daemon.counter("clients_slow_closed"), 0);
    assert!(daemon.gauge("outbox_bytes") <= (2 * (SEND_BUDGET + READ_COUNT * ENTRY_BYTES)) as u64);
    expect_memory(&daemon, 3);

    let mut check = Check::default();
    assert_eq!(read_websocket(&mut slow_websocket, &mut check), Incoming::Closed(1000));
    check.expect_whole(ENTRIES, &end);
    let mut check = Check::default();
    assert!(read_sse(&mut slow_sse, &mut check));
    check.expect_whole(ENTRIES, &end);
    expect_memory(&daemon, 3);
}

#[test]
fn clients_that_read_nothing_are_closed_and_can_resume() {
    const ENTRIES: usize = 64;
    let redis = RedisServer::start();
    let daemon = options(&redis, "500ms").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.write_text(r#"{"type":"heartbeat"}"#);
    let (mut slow_websocket, mut slow_sse) = (open_websocket(&daemon, "s1/m"), open_sse(&daemon, "s1/m"));
    let healthy_client = open_websocket(&daemon, "s1/m");
    wait_live(&daemon);
    let wait_closed = || wait_until("both to be closed", || daemon.counter("clients_slow_closed") == 2);
    let (end, mut check, slow_sse) = thread::scope(|scope| {
        let healthy = healthy(scope, healthy_client, ENTRIES);
        // Frames under way still arrive, then the close; both have two seconds for that, whatever else goes on here.
        let websocket = scope.spawn(|| {
            wait_closed();
            let mut check = Check::default();
            assert_eq!(read_websocket(&mut slow_websocket, &mut check), Incoming::Closed(4408));
            check
        });
        let sse = scope.spawn(|| {
            wait_closed();
            let (mut check, mut events) = (Check::default(), 0);
            while let Ok(Some(event)) = slow_sse.event() {
                check.take(&serde_json::from_str(&event.data).unwrap());
                events += 1;
            }
            (check, events)
        });
        let end = write_bulk(&mut producer, ENTRIES);
        healthy.join().unwrap().expect_whole(ENTRIES, &end);
        (end, websocket.join().unwrap(), sse.join().unwrap())
    });
    assert!(daemon.counter("clients_fell_back") >= 2);

    // The rest comes after the last id.
    assert_eq!(check.terminal_id, None, "all had room on the way: the test is too small");
    let query = format!("after={}", check.last_id.as_deref().unwrap_or("0"));
    let mut resumed = WebSocketClient::connect(daemon.public, &target("s1/m", &query));
    assert_eq!(read_websocket(&mut resumed, &mut check), Incoming::Closed(1000));
    check.expect_whole(ENTRIES, &end);

    let (mut check, events) = slow_sse;
    assert_eq!(check.terminal_id, None, "all had room on the way: the test is too small");
    let last_id = check.last_id.clone().unwrap_or_else(|| panic!("no id in {events} events"));
    let mut resumed = SseClient::open(daemon.public, &target("s1/m", ""), &[("Last-Event-ID", &last_id)]);
    assert!(read_sse(&mut resumed, &mut check));
    check.expect_whole(ENTRIES, &end);
    wait_until("nobody to be left", || daemon.gauge("connections_open") == 0);
}

#[test]
fn a_client_that_reads_slowly_but_does_is_not_closed() {
    const ENTRIES: usize = 40;
    let redis = RedisServer::start();
    let daemon = options(&redis, "2s").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.write_text(r#"{"type":"heartbeat"}"#);
    let mut slow = open_websocket(&daemon, "s1/m");
    let end = write_bulk(&mut producer, ENTRIES);
    let mut check = Check::default();
    let ending = loop {
        match slow.receive() {
            Incoming::Text(text) => {
                check.take(&serde_json::from_str(&text).unwrap());
                // Slower than the stream was written, much faster than the limit.
                thread::sleep(Duration::from_millis(20));
            }
            Incoming::Pong(_) => {}
            ending => break ending,
        }
    };
    assert_eq!(ending, Incoming::Closed(1000));
    check.expect_whole(ENTRIES, &end);
    assert_eq!(daemon.counter("clients_slow_closed"), 0);
}

#[test]
fn many_slow_clients_each_hold_no_more_than_their_budget() {
    const ENTRIES: usize = 40;
    const CLIENTS: usize = 30;
    let redis = RedisServer::start();
    let daemon = options(&redis, "24h").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.write_text(r#"{"type":"heartbeat"}"#);
    let mut slow: Vec<WebSocketClient> = (0..CLIENTS).map(|_| open_websocket(&daemon, "s1/m")).collect();
    let healthy_client = open_websocket(&daemon, "s1/m");
    wait_live(&daemon);
    let end = thread::scope(|scope| {
        let healthy = healthy(scope, healthy_client, ENTRIES);
        let end = write_bulk(&mut producer, ENTRIES);
        healthy.join().unwrap().expect_whole(ENTRIES, &end);
        end
    });
    wait_until("all to fall back", || daemon.counter("clients_fell_back") >= CLIENTS as u64);
    expect_memory(&daemon, CLIENTS + 1);
    for client in &mut slow {
        let mut check = Check::default();
        assert_eq!(read_websocket(client, &mut check), Incoming::Closed(1000));
        check.expect_whole(ENTRIES, &end);
    }
    assert_eq!(daemon.counter("clients_slow_closed"), 0);
    expect_memory(&daemon, CLIENTS + 1);
}

/// Small entries, and nothing configured except the budget: history must not be merged into frames that exceed what a
/// client may hold.
#[test]
fn history_for_slow_clients_is_cut_to_their_budget() {
    const ENTRIES: usize = 4_000;
    const TEXT_BYTES: usize = 4 * KIB;
    const CLIENTS: usize = 60;
    let redis = RedisServer::start();
    let budget = format!("client.send_budget={SEND_BUDGET}");
    let daemon = Daemon::options(&redis).set(&budget).set("client.slow_timeout=24h").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.write_text(r#"{"type":"heartbeat"}"#);
    let mut slow: Vec<WebSocketClient> = (0..CLIENTS).map(|_| open_websocket(&daemon, "s1/m")).collect();
    wait_live(&daemon);
    let text = |number: usize| format!("{number:015}:{}", "x".repeat(TEXT_BYTES - 16));
    for number in 0..ENTRIES {
        producer.delta(&text(number));
    }
    let end = producer.end();
    view(daemon.public, Kind::WebSocket, "s1/m", "").expect_finished(&end);
    wait_until("all to fall back", || daemon.counter("clients_fell_back") >= CLIENTS as u64);

    // A frame may begin within the budget and end beyond it: by at most one budget, because frames are cut.
    let held = CLIENTS * 2 * SEND_BUDGET;
    let outbox = daemon.gauge("outbox_bytes");
    assert!(outbox <= held as u64, "{outbox} bytes are held for clients that may hold {held}");
    // The threads' queues hold at most the whole stream, as entries and as frames, each in a buffer of up to double
    // the size.
    let bound = (PROGRAM_BYTES + 4 * ENTRIES * TEXT_BYTES + held) as u64;
    let most = daemon.resident_bytes_max();
    assert!(most <= bound, "the daemon had {most} bytes, its limits add up to {bound}");

    let whole: String = (0..ENTRIES).map(text).collect();
    for client in slow.iter_mut().take(3) {
        let mut got = String::new();
        let ending = loop {
            match client.receive() {
                Incoming::Text(text) => {
                    let frame: Frame = serde_json::from_str(&text).unwrap();
                    got.push_str(&frame.text.unwrap_or_default());
                }
                Incoming::Pong(_) => {}
                ending => break ending,
            }
        };
        assert_eq!(ending, Incoming::Closed(1000));
        assert!(got == whole, "{} bytes instead of {}, or others", got.len(), whole.len());
    }
}

#[test]
fn a_slow_connection_with_many_streams_is_closed_as_a_whole() {
    const STREAMS: usize = 8;
    const ENTRIES: usize = 8;
    let redis = RedisServer::start();
    let daemon = options(&redis, "500ms").start();
    let mut client = WebSocketClient::over(connect_narrow(daemon.public), daemon.public, "/v1/ws", &[]);
    let mut producers: Vec<Producer> =
        (0..STREAMS).map(|number| Producer::new(&redis, &format!("s{number}"), "m")).collect();
    for producer in &mut producers {
        producer.write_text(r#"{"type":"heartbeat"}"#);
        client.send(&json!({"type": "subscribe", "stream": producer.stream}));
        let open: Value = client.receive_json();
        assert_eq!((&open["type"], &open["stream"]), (&json!("open"), &json!(producer.stream)));
    }
    let healthy_client = open_websocket(&daemon, "s0/m");
    wait_live(&daemon);
    let names: Vec<String> = producers.iter().map(|producer| producer.stream.clone()).collect();
    let mut checks: Vec<Check> = (0..STREAMS).map(|_| Check::default()).collect();
    // It has two seconds for what is under way and the close, whatever else goes on here.
    let read_to_close = || {
        wait_until("it to be closed", || daemon.counter("clients_slow_closed") == 1);
        loop {
            match client.receive() {
                Incoming::Text(text) => {
                    let frame: Frame = serde_json::from_str(&text).unwrap();
                    let number = names.iter().position(|name| Some(name.as_str()) == frame.stream).unwrap();
                    match frame.kind {
                        "unsubscribed" => assert!(checks[number].terminal_id.is_some(), "{text}"),
                        _ => checks[number].take(&frame),
                    }
                }
                Incoming::Pong(_) => {}
                ending => break ending,
            }
        }
    };
    thread::scope(|scope| {
        let healthy = healthy(scope, healthy_client, ENTRIES);
        let ending = scope.spawn(read_to_close);
        let ends: Vec<String> = producers.iter_mut().map(|producer| write_bulk(producer, ENTRIES)).collect();
        healthy.join().unwrap().expect_whole(ENTRIES, &ends[0]);
        assert_eq!(ending.join().unwrap(), Incoming::Closed(4408));
    });
    let finished = checks.iter().filter(|check| check.terminal_id.is_some()).count();
    assert!(finished < STREAMS, "all had room on the way: the test is too small");
    wait_until("nobody to be left", || daemon.gauge("subscriptions_open") == 0);
}

/// A full socket accepts more only when a third of the system's send buffer is free, which takes a slow reader long.
#[test]
fn a_client_that_reads_slowly_and_steadily_is_not_closed() {
    const ENTRIES: usize = 96;
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("client.slow_timeout=4s").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let end = write_bulk(&mut producer, ENTRIES);
    let mut socket = TcpStream::connect(daemon.public).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = "Host: localhost\r\nAccept: text/event-stream\r\n\r\n";
    let request = format!("GET {} HTTP/1.1\r\n{head}", target("s1/m", "after=0"));
    socket.write_all(request.as_bytes()).unwrap();
    let mut received = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        let mut buffer = [0; 8 * KIB];
        let len = socket.read(&mut buffer).unwrap();
        assert_ne!(len, 0, "closed after {:?} and {} bytes", begun.elapsed(), received.len());
        received.extend_from_slice(&buffer[..len]);
        thread::sleep(Duration::from_millis(40));
    }
    assert!(received.len() < ENTRIES * ENTRY_BYTES / 2, "it was not slow");
    assert_eq!(daemon.counter("clients_slow_closed"), 0);
    socket.read_to_end(&mut received).unwrap();
    assert!(String::from_utf8(received).unwrap().contains(&format!("id: {end}\n")), "the end is missing");
}
