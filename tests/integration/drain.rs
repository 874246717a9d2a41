//! The end of a daemon, requested or not: viewers are told to reconnect elsewhere, everything is acknowledged, and a
//! client that resumes with its last id misses nothing.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, DaemonOptions};
use crate::support::http::{self, Response};
use crate::support::patience::wait_until;
use crate::support::producer::{Producer, entry, tokens};
use crate::support::redis::{RedisServer, parsed_id};
use crate::support::transcript::{Ending, Transcript};
use crate::support::viewer::{KINDS, Kind, Viewer};

const GROUP: &str = "llm:consumer:llm-bridge:i1";
const LEASE: &str = "llm:instance:llm-bridge:i1";
const PER_SECOND: u32 = 2_000;
const TOKENS: usize = 3_000;

fn instance(redis: &RedisServer, id: &str) -> DaemonOptions {
    Daemon::options(redis).set(&format!("service.instance={id}"))
}

/// Reads to the end of the connection, which was announced before.
fn expect_drained(viewer: Viewer, kind: Kind) -> Transcript {
    let transcript = viewer.read_all();
    let last = transcript.frames.last().unwrap();
    assert_eq!((last.kind(), last.value["state"].as_str()), ("status", Some("draining")), "{}", last.raw);
    let expected = if kind == Kind::WebSocket { Ending::Closed(1001) } else { Ending::Complete };
    assert_eq!(transcript.ending, Some(expected), "{kind:?}");
    transcript
}

/// Resumes where a transcript ended; returns the whole text.
fn resume(daemon: &Daemon, kind: Kind, before: &Transcript, end: &str) -> String {
    let query = format!("after={}", before.last_id().unwrap_or("0"));
    let rest = Viewer::open(daemon.public, kind, "s1/m", &query).read_all();
    assert_eq!(rest.of_kind("gap").count(), 0, "{kind:?}");
    rest.expect_finished(end);
    before.text() + &rest.text()
}

#[test]
fn a_drained_daemon_leaves_nothing_undone() {
    let redis = RedisServer::start();
    let mut first = instance(&redis, "i1").start();
    let second = instance(&redis, "i2").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut viewers: Vec<(Kind, Viewer)> = (0..6)
        .map(|number| (KINDS[number % 2], Viewer::open(first.public, KINDS[number % 2], "s1/m", "")))
        .collect();
    let mut waiting = Viewer::open(first.public, Kind::WebSocket, "s2/m", "");
    waiting.expect_open("waiting");
    thread::scope(|scope| {
        let producer = scope.spawn(|| {
            producer.tokens_at(PER_SECOND, 0..TOKENS, |_| {});
            producer.write(&entry("end", TOKENS, serde_json::json!({"finish_reason": "stop"})))
        });
        for (_, viewer) in &mut viewers {
            viewer.read_until("a token", |frame| frame.kind() == "delta");
        }
        first.signal(libc::SIGTERM);
        let drained: Vec<(Kind, Transcript)> =
            viewers.into_iter().map(|(kind, viewer)| (kind, expect_drained(viewer, kind))).collect();
        expect_drained(waiting, Kind::WebSocket);
        first.expect_exit(0);
        assert!(redis.connect().keys(LEASE).is_empty(), "its lease is released");
        let end = producer.join().unwrap();
        for (kind, before) in drained {
            let text = resume(&second, kind, &before, &end);
            assert!(text == tokens(0..TOKENS), "{kind:?}: not everything, in order, once");
        }
    });
}

#[test]
fn entries_read_while_draining_are_written_and_acknowledged() {
    drain_while_streams_are_written(1, 5);
}

/// With many streams the reader tracks: it sends its next read before it has passed on the entries of the last one.
#[test]
fn entries_of_many_streams_read_while_draining_are_acknowledged_too() {
    drain_while_streams_are_written(24, 3);
}

fn drain_while_streams_are_written(streams: usize, rounds: usize) {
    let redis = RedisServer::start();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut producers: Vec<Producer> =
                (0..streams).map(|number| Producer::new(&redis, &format!("s{number}"), "m")).collect();
            while !is_over.load(Ordering::Relaxed) {
                for producer in &mut producers {
                    producer.delta("word ");
                }
            }
        });
        // The writer stops even if a drain fails.
        let drains = scope.spawn(|| (0..rounds).for_each(|_| drain_and_look(&redis, streams))).join();
        is_over.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        drains.unwrap();
    });
}

/// Drains a daemon with viewers; checks that it has acknowledged everything that it has read.
fn drain_and_look(redis: &RedisServer, streams: usize) {
    let mut daemon = instance(redis, "i1").set("threads.readers=1").start();
    let mut viewers: Vec<_> = (0..streams)
        .map(|number| {
            let open =
                |kind| (kind, Viewer::open(daemon.public, kind, &format!("s{number}/m"), "after=$&follow=1"));
            KINDS.map(open)
        })
        .collect();
    for (_, viewer) in viewers.iter_mut().flatten() {
        viewer.read_until("a token", |frame| frame.kind() == "delta");
    }
    daemon.signal(libc::SIGTERM);
    let transcripts: Vec<_> = viewers
        .into_iter()
        .map(|viewers| viewers.map(|(kind, viewer)| expect_drained(viewer, kind)))
        .collect();
    daemon.expect_exit(0);
    let mut connection = redis.connect();
    for (number, transcripts) in transcripts.iter().enumerate() {
        let key = format!("llm:stream:s{number}:m");
        if connection.groups(&key).iter().any(|name| name == GROUP) {
            let had = transcripts.each_ref().map(|transcript| transcript.last_id());
            // A viewer that was still reading history may be ahead of the group.
            let had = had.iter().flatten().map(|id| parsed_id(id)).min().unwrap();
            let positions = connection.positions(&key);
            assert!(
                positions[0] >= had,
                "{key}: acknowledged {positions:?}, and all viewers have up to {had:?}"
            );
        }
    }
}

#[test]
fn many_subscriptions_are_drained_too() {
    let redis = RedisServer::start();
    let mut daemon = instance(&redis, "i1").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("one");
    let mut client = crate::support::websocket::WebSocketClient::connect(daemon.public, "/v1/ws");
    client.send(&serde_json::json!({"type": "subscribe", "stream": "s1/m"}));
    for kind in ["open", "delta"] {
        assert_eq!(client.receive_json()["type"], kind);
    }
    daemon.signal(libc::SIGINT);
    let (messages, code) = client.receive_to_close();
    assert_eq!(code, 1001);
    assert!(messages.iter().any(|message| message["state"] == "draining"), "{messages:?}");
    daemon.expect_exit(0);
}

/// A client that requests more than its connection holds, and reads nothing.
fn stuck(daemon: &Daemon, producer: &mut Producer) -> Viewer {
    for _ in 0..200 {
        producer.delta(&"x".repeat(128 * 1024));
    }
    let mut viewer = Viewer::open(daemon.public, Kind::Sse, &producer.stream.clone(), "");
    viewer.expect_open("live");
    viewer
}

fn ask(daemon: &Daemon) -> io::Result<Response> {
    http::try_get(daemon.public, "/v1/streams/s1/m")
}

#[test]
fn nobody_new_is_served_while_draining() {
    let redis = RedisServer::start();
    let mut daemon = instance(&redis, "i1").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let mut big = Producer::new(&redis, "s2", "m");
    let stuck = stuck(&daemon, &mut big);
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    viewer.expect_open("live");
    daemon.signal(libc::SIGTERM);
    viewer.read_to_status("draining");
    // Refused in order, or, shortly before the exit, not even accepted.
    if let Ok(refused) = ask(&daemon) {
        refused.expect_error(503);
        assert!(refused.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()));
    }
    if let Ok(ready) = http::try_get(daemon.admin, "/readyz") {
        assert_eq!(ready.status, 503);
    }
    assert_eq!(viewer.read_all().ending, Some(Ending::Closed(1001)));
    drop(stuck);
    daemon.expect_exit(0);
}

#[test]
fn a_second_signal_ends_at_once() {
    let redis = RedisServer::start();
    // The grace is so long that only the second signal can end the daemon during this test.
    let mut daemon = instance(&redis, "i1").set("shutdown.grace=10m").set("client.send_budget=64MiB").start();
    let mut big = Producer::new(&redis, "s1", "m");
    let _stuck = stuck(&daemon, &mut big);
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "after=$");
    viewer.expect_open("live");
    daemon.signal(libc::SIGTERM);
    viewer.read_to_status("draining");
    assert!(daemon.is_running(), "it drains for a client that has not yet got what is its own");
    daemon.signal(libc::SIGTERM);
    daemon.expect_exit(1);
}

#[test]
fn draining_ends_with_its_grace() {
    let redis = RedisServer::start();
    let mut daemon = instance(&redis, "i1").set("shutdown.grace=1s").set("client.send_budget=64MiB").start();
    let mut big = Producer::new(&redis, "s1", "m");
    let _stuck = stuck(&daemon, &mut big);
    daemon.signal(libc::SIGTERM);
    // The client still does not read, and the daemon's patience is shorter than this test's.
    daemon.expect_exit(0);
    assert!(redis.connect().keys(LEASE).is_empty());
}

#[test]
fn a_daemon_killed_in_mid_stream_is_resumed_exactly() {
    let redis = RedisServer::start();
    let mut daemon = instance(&redis, "i1").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut viewers: Vec<(Kind, Viewer)> = (0..6)
        .map(|number| (KINDS[number % 2], Viewer::open(daemon.public, KINDS[number % 2], "s1/m", "")))
        .collect();
    thread::scope(|scope| {
        let producer = scope.spawn(|| {
            producer.tokens_at(PER_SECOND, 0..TOKENS, |_| {});
            producer.write(&entry("end", TOKENS, serde_json::json!({"finish_reason": "stop"})))
        });
        for (_, viewer) in &mut viewers {
            viewer.read_until("a token", |frame| frame.kind() == "delta");
        }
        daemon.kill();
        let cut: Vec<(Kind, Transcript)> =
            viewers.into_iter().map(|(kind, viewer)| (kind, viewer.read_all())).collect();
        let again = daemon.start_again();
        let end = producer.join().unwrap();
        for (kind, before) in cut {
            assert!(!before.frames.last().unwrap().is_terminal(), "killed in mid-stream");
            let text = resume(&again, kind, &before, &end);
            assert!(text == tokens(0..TOKENS), "{kind:?}: not everything, in order, once");
        }
    });
}

#[test]
fn a_daemon_without_redis_ends_in_order() {
    let mut redis = RedisServer::start();
    let grace = Duration::from_secs(30);
    let mut daemon = instance(&redis, "i1").set("shutdown.grace=30s").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let id = producer.delta("one");
    let mut viewers = KINDS.map(|kind| (kind, Viewer::open(daemon.public, kind, "s1/m", "")));
    for (_, viewer) in &mut viewers {
        viewer.read_to(&id);
    }
    redis.kill();
    for (_, viewer) in &mut viewers {
        viewer.read_to_status("degraded");
    }
    let began = Instant::now();
    daemon.signal(libc::SIGTERM);
    for (kind, viewer) in viewers {
        expect_drained(viewer, kind);
    }
    daemon.expect_exit(0);
    assert!(began.elapsed() < grace + Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn a_daemon_that_never_met_redis_ends_in_order() {
    let mut redis = RedisServer::start();
    redis.kill();
    let mut daemon = instance(&redis, "i1").start_alive();
    daemon.signal(libc::SIGTERM);
    daemon.expect_exit(0);
}

#[test]
fn an_idle_daemon_ends_in_order_and_its_id_is_free() {
    let redis = RedisServer::start();
    let mut daemon = instance(&redis, "i1").start();
    daemon.signal(libc::SIGTERM);
    daemon.expect_exit(0);
    assert!(redis.connect().keys(LEASE).is_empty());
    // Another daemon may use the id at once.
    let other = instance(&redis, "i1").start();
    wait_until("its lease", || !redis.connect().keys(LEASE).is_empty());
    drop(other);
}

#[test]
fn a_redis_that_does_not_answer_keeps_no_daemon_from_ending_in_order() {
    let redis = RedisServer::start();
    // Redis may take longer to reply than the daemon has to shut down.
    let grace = ["shutdown.grace=4s", "redis.response_timeout=30s"];
    let mut daemon = grace.into_iter().fold(instance(&redis, "i1"), DaemonOptions::set).start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.delta("one");
    let mut viewer = Viewer::open(daemon.public, Kind::Sse, "s1/m", "follow=1");
    viewer.read_to(&first);
    redis.suspend();
    // History and a name that is waited for are requested in vain.
    let _late = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s2/m", "wait_ms=30000"));
    thread::sleep(Duration::from_secs(2));
    daemon.signal(libc::SIGTERM);
    daemon.expect_exit(0);
    redis.resume();
}
