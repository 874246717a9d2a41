//! Soak and churn: clients of every kind connect and leave without a pause, streams begin, end and are deleted.
//! Clients that stay get everything in order, and in the end nothing is left: no memory, descriptors, threads, groups
//! or keys, and no errors in the log.
//!
//! `LLM_BRIDGE_SOAK` is the duration in seconds: 300 in the long form, a few otherwise.

use std::env;
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::patience::{is_long, wait_until};
use crate::support::producer::{Producer, entry, token};
use crate::support::random::Random;
use crate::support::raw::{CLOSE, Raw, masked};
use crate::support::redis::RedisServer;
use crate::support::sse::SseClient;
use crate::support::transcript::Transcript;
use crate::support::viewer::{KINDS, Viewer, target};
use crate::support::websocket::WebSocketClient;

/// How much more memory may be resident at the end than after the first fifth: what the allocator keeps differs from
/// pause to pause. A leak of one byte in a hundred of the traffic would exceed this.
const GROWTH_BYTES_MAX: u64 = 32 << 20;
/// How long to wait without clients before memory is measured.
const PAUSE: Duration = Duration::from_secs(1);
/// The number of stream names that each producer uses in turn.
const NAMES: usize = 16;
/// The number of threads that write streams, and of threads that connect and leave.
const PRODUCERS: usize = 4;
/// Some entries have a text so long that slow viewers fall back to history.
const LONG_TEXT_BYTES: usize = 8 * 1024;

/// The duration.
fn soak() -> Duration {
    let seconds = match env::var("LLM_BRIDGE_SOAK") {
        Ok(seconds) => seconds.parse().expect("LLM_BRIDGE_SOAK is a number of seconds"),
        Err(_) if is_long() => 300,
        Err(_) => 5,
    };
    Duration::from_secs(seconds)
}

/// The session of a producer's nth stream.
fn session(producer: usize, round: usize) -> String {
    format!("s{producer}x{}", round % NAMES)
}

/// The text of an entry, which contains its number.
fn text_of(number: usize, padding: usize) -> String {
    format!("{}{}", token(number), "x".repeat(padding))
}

fn texts(count: usize, padding: usize) -> String {
    (0..count).map(|number| text_of(number, padding)).collect()
}

/// The size of one stream and of its audience.
#[derive(Clone, Copy)]
struct Plan {
    entries: usize,
    padding: usize,
    viewers: usize,
}

impl Plan {
    fn draw(random: &mut Random) -> Self {
        let is_long = random.once_in(6);
        Self {
            entries: 1 + random.below(if is_long { 120 } else { 400 }),
            padding: if is_long { LONG_TEXT_BYTES } else { random.below(20) },
            viewers: 1 + random.below(5),
        }
    }

    fn delta(&self, number: usize) -> Value {
        entry("delta", number, json!({"text": text_of(number, self.padding)}))
    }
}

/// Writes one stream after another, each with its own viewers.
struct Stage<'a> {
    redis: &'a RedisServer,
    public: SocketAddr,
    is_over: &'a AtomicBool,
}

impl Stage<'_> {
    /// Returns the number of streams.
    fn run(&self, producer: usize, mut random: Random) -> usize {
        let mut connection = self.redis.connect();
        let mut rounds = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            let mut writer = Producer::new(self.redis, &session(producer, rounds), "m");
            let plan = Plan::draw(&mut random);
            if random.once_in(5) {
                self.delete_while_viewed(&mut writer, plan, &mut random);
            } else {
                self.live_to_the_end(&mut writer, plan, &mut random);
            }
            connection.run::<u64>(&["DEL", &writer.key]);
            rounds += 1;
        }
        rounds
    }

    /// A stream from its first entry to its end, and viewers that stay.
    fn live_to_the_end(&self, writer: &mut Producer, plan: Plan, random: &mut Random) {
        let stream = writer.stream.clone();
        thread::scope(|scope| {
            let viewers: Vec<ScopedJoinHandle<'_, String>> =
                (0..plan.viewers).map(|_| self.stay(scope, &stream, random.fork())).collect();
            let mut next = 0;
            while next < plan.entries {
                let burst = (1 + random.below(30)).min(plan.entries - next);
                writer.write_all(&(next..next + burst).map(|number| plan.delta(number)).collect::<Vec<_>>());
                next += burst;
                thread::sleep(Duration::from_millis(random.below(12) as u64));
            }
            let end = match random.once_in(4) {
                true => entry("error", next, json!({"code": "broke", "message": "it failed"})),
                false => entry("end", next, json!({"finish_reason": "stop"})),
            };
            writer.write(&end);
            let expected = texts(plan.entries, plan.padding);
            for viewer in viewers {
                let text = viewer.join().unwrap();
                assert!(text == expected, "{stream}: not everything, in order, once: {} bytes", text.len());
            }
        });
    }

    /// A viewer that joins at any time and stays to the end, possibly over several connections, possibly slowly.
    fn stay<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        stream: &str,
        mut random: Random,
    ) -> ScopedJoinHandle<'scope, String> {
        let stream = stream.to_owned();
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(random.below(150) as u64));
            let (mut text, mut query) = (String::new(), random.pick(&["", "after=last"]).to_owned());
            let pause = if random.once_in(3) { random.below(20) } else { 0 };
            for _ in 0..random.below(4) {
                let frames = 1 + random.below(20);
                let mut viewer = self.open(&stream, &query, &mut random);
                let is_over = read(&mut viewer, frames, pause);
                text.push_str(&viewer.transcript.text());
                if is_over {
                    return text;
                }
                if let Some(id) = viewer.transcript.last_id() {
                    query = format!("after={id}");
                }
                leave(viewer, &mut random);
            }
            let mut viewer = self.open(&stream, &query, &mut random);
            assert!(read(&mut viewer, usize::MAX, pause), "{stream}: {:?}", viewer.transcript.ending);
            text.push_str(&viewer.transcript.text());
            text
        })
    }

    fn open(&self, stream: &str, query: &str, random: &mut Random) -> Viewer {
        Viewer::open(self.public, random.pick(&KINDS), stream, query)
    }

    /// A stream that is deleted before its end, while viewers have a part of it.
    fn delete_while_viewed(&self, writer: &mut Producer, plan: Plan, random: &mut Random) {
        let (there, is_deleted) = (AtomicUsize::new(0), AtomicBool::new(false));
        let last = writer.write_all(&(0..plan.entries).map(|number| plan.delta(number)).collect::<Vec<_>>());
        let (last, stream) = (last.last().unwrap(), writer.stream.clone());
        let mut connection = self.redis.connect();
        thread::scope(|scope| {
            for _ in 0..plan.viewers {
                let (mut random, there, is_deleted, stream) = (random.fork(), &there, &is_deleted, &stream);
                scope.spawn(move || {
                    let mut viewer = self.open(stream, "", &mut random);
                    viewer.read_to(last);
                    let is_whole = viewer.transcript.text() == texts(plan.entries, plan.padding);
                    there.fetch_add(1, Ordering::SeqCst);
                    wait_until("the stream to be deleted", || is_deleted.load(Ordering::SeqCst));
                    leave(viewer, &mut random);
                    assert!(is_whole, "{stream}: not everything, in order, once");
                });
            }
            wait_until("all viewers", || there.load(Ordering::SeqCst) == plan.viewers);
            connection.run::<u64>(&["DEL", &writer.key]);
            is_deleted.store(true, Ordering::SeqCst);
        });
    }
}

/// Reads up to `frames` frames, slowly if asked to. Returns whether the end was reached.
fn read(viewer: &mut Viewer, frames: usize, pause_ms: usize) -> bool {
    for _ in 0..frames {
        if viewer.next().is_none() {
            let last = viewer.transcript.frames.last().expect("something came");
            assert!(last.is_terminal(), "ended with {:?} after {}", viewer.transcript.ending, last.raw);
            return true;
        }
        expect_no_gap(&viewer.transcript);
        thread::sleep(Duration::from_millis(pause_ms as u64));
    }
    viewer.transcript.frames.last().is_some_and(|frame| frame.is_terminal())
}

fn expect_no_gap(transcript: &Transcript) {
    let last = transcript.frames.last().unwrap();
    assert!(!matches!(last.kind(), "gap" | "skipped"), "{}", last.raw);
}

/// Ends a connection: in order, half of it first, or by a reset.
fn leave(viewer: Viewer, random: &mut Random) {
    let socket = viewer.socket();
    match random.below(3) {
        0 => {}
        1 => drop(socket.shutdown(Shutdown::Write)),
        _ => drop(socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))),
    }
}

/// Connects, does something, and leaves, repeatedly. Returns how often.
fn pass_by(public: SocketAddr, is_over: &AtomicBool, mut random: Random) -> usize {
    let mut visits = 0;
    while !is_over.load(Ordering::Relaxed) {
        let stream = format!("{}/m", session(random.below(PRODUCERS), random.below(NAMES)));
        visit(public, &stream, &mut random);
        visits += 1;
        thread::sleep(Duration::from_millis(random.below(20) as u64));
    }
    visits
}

fn visit(public: SocketAddr, stream: &str, random: &mut Random) {
    let target = target(stream, "");
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    match random.below(9) {
        0 => expect_state(http::get(public, &target).status),
        1 => assert_eq!(http::get(public, "/v1/streams/nobody/m").status, 404),
        2 => expect_state(http::request(public, "HEAD", &target, &[]).status),
        // Half a request, and then nothing, or worse.
        3 => drop(Raw::begin(public, &request.as_bytes()[..random.below(request.len() - 1)])),
        4 => Raw::begin(public, &request.as_bytes()[..random.below(request.len() - 1)]).reset(),
        5 => {
            let mut raw = Raw::begin(public, request.as_bytes());
            raw.finish_sending();
            let head = raw.head();
            expect_state(head[9..12].parse().unwrap());
        }
        6 => {
            let mut raw = Raw::websocket(public, &target);
            match random.below(3) {
                0 => raw.reset(),
                1 => assert!(raw.send(&masked(CLOSE, &1000_u16.to_be_bytes()))),
                _ => {}
            }
        }
        7 => {
            let client = SseClient::open(public, &target, &[]);
            if random.once_in(2) {
                drop(client.socket().shutdown(Shutdown::Write));
            }
        }
        _ => {
            let mut client = WebSocketClient::connect(public, "/v1/ws");
            client.send(&json!({"type": "subscribe", "stream": stream}));
            client.receive_json();
            if random.once_in(2) {
                client.send(&json!({"type": "unsubscribe", "stream": stream}));
            }
        }
    }
}

/// The stream exists, is being deleted, or has not begun.
fn expect_state(status: u16) {
    assert!(matches!(status, 200 | 404), "{status}");
}

/// Runs producers and clients for `time`; returns how many streams and visits there were.
fn churn(redis: &RedisServer, daemon: &Daemon, time: Duration, random: &mut Random) -> (usize, usize) {
    let is_over = AtomicBool::new(false);
    let stage = Stage { redis, public: daemon.public, is_over: &is_over };
    thread::scope(|scope| {
        let (stage, is_over) = (&stage, &is_over);
        let streams: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let random = random.fork();
                scope.spawn(move || stage.run(producer, random))
            })
            .collect();
        let visits: Vec<_> = (0..PRODUCERS)
            .map(|_| {
                let random = random.fork();
                scope.spawn(move || pass_by(stage.public, is_over, random))
            })
            .collect();
        let began = Instant::now();
        let has_failed = || streams.iter().chain(&visits).any(ScopedJoinHandle::is_finished);
        while began.elapsed() < time && !has_failed() {
            thread::sleep(Duration::from_millis(20));
        }
        is_over.store(true, Ordering::Relaxed);
        let sum = |handles: Vec<ScopedJoinHandle<'_, usize>>| -> usize {
            handles.into_iter().map(|handle| handle.join().unwrap()).sum()
        };
        (sum(streams), sum(visits))
    })
}

/// The resources in use without clients.
#[derive(Debug, PartialEq)]
struct Rest {
    descriptors: usize,
    threads: Vec<String>,
    keys: Vec<String>,
}

/// Waits until everything that was held for clients is released.
fn come_to_rest(redis: &RedisServer, daemon: &Daemon) -> Rest {
    let mut connection = redis.connect();
    for gauge in ["connections_open", "subscriptions_open", "streams_live", "streams_waited", "replay_jobs"] {
        wait_until(gauge, || daemon.gauge(gauge) == 0);
    }
    // Checkpoints of long streams are a cache, which is bounded and outlives its streams by ten minutes.
    wait_until("nothing to be held but checkpoints", || {
        let stats = daemon.stats();
        stats["held_bytes"] == stats["gauges"]["checkpoint_bytes"]
    });
    let streams = connection.keys("llm:stream:*");
    assert!(streams.is_empty(), "{streams:?}");
    let list = "llm:groups:llm-bridge:i1";
    wait_until("no groups to be listed", || connection.run::<usize>(&["SCARD", list]) == 0);
    thread::sleep(PAUSE);
    let keys = connection.keys("*");
    let threads = daemon.thread_names().into_iter().collect();
    Rest { descriptors: daemon.open_descriptors(), threads, keys }
}

#[test]
fn clients_that_come_and_go_leave_nothing_behind() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis)
        .set("service.instance=i1")
        .set("stream.linger=500ms")
        .set("client.send_budget=64KiB")
        .set("client.handshake_timeout=5s")
        .start();
    let mut random = Random::new(0x50AC);
    let time = soak();
    churn(&redis, &daemon, time / 5, &mut random);
    let (before, memory_before) = (come_to_rest(&redis, &daemon), daemon.resident_bytes());
    let (streams, visits) = churn(&redis, &daemon, time - time / 5, &mut random);
    let (after, memory_after) = (come_to_rest(&redis, &daemon), daemon.resident_bytes());
    println!(
        "{streams} streams and {visits} visits, {} connections; resident {memory_before} bytes, then {memory_after}",
        daemon.counter("connections_accepted"),
    );
    assert_eq!(after, before, "descriptors, threads and keys are as they were");
    assert!(memory_after <= memory_before + GROWTH_BYTES_MAX, "{memory_before} bytes, then {memory_after}");
    let log = daemon.log();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    assert!(streams > 4 && visits > 4, "{streams} streams, {visits} visits");
}
