//! Receipts: answers that clients acknowledged, and those that no client acknowledged in time; each once, however
//! many instances watched.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, DaemonOptions};
use crate::support::patience::wait_until;
use crate::support::producer::Producer;
use crate::support::redis::{Redis, RedisServer};
use crate::support::transcript::id_order;
use crate::support::viewer::{KINDS, Kind, Viewer, view};
use crate::support::websocket::WebSocketClient;

const RECEIPTS: &str = "llm:receipts:llm-bridge";

fn options(redis: &RedisServer, after: &str) -> DaemonOptions {
    let options = Daemon::options(redis).set("stream.receipts=true");
    options.set(&format!("stream.receipts_after={after}"))
}

/// The receipts without their time, as `stream id generation status by`.
fn receipts(redis: &mut Redis) -> Vec<String> {
    let line = |(_, fields): &(String, HashMap<String, Vec<u8>>)| {
        let field = |name: &str| String::from_utf8(fields[name].clone()).unwrap();
        assert_eq!(fields.len(), 6, "{fields:?}");
        assert!(field("at").parse::<u64>().is_ok_and(|at| at > 1_700_000_000_000_000), "{fields:?}");
        ["stream", "id", "generation", "status", "by"].map(field).join(" ").trim_end().to_owned()
    };
    redis.entries(RECEIPTS).iter().map(line).collect()
}

fn wait_receipt(redis: &mut Redis, receipt: &str) {
    wait_until(receipt, || receipts(redis).iter().any(|line| line == receipt));
}

fn ack(id: &str) -> Value {
    json!({"type": "ack", "id": id})
}

/// How many marks are tried, and how long each has until it is judged: longer than any `receipts_after` here.
const MARKS_MAX: usize = 4;
const MARK_PATIENCE: Duration = Duration::from_secs(25);

/// An answer that no client acknowledges: when its receipt is there, this daemon has judged everything that ended
/// before.
///
/// A daemon that reads the mark only when its time is over, on a busy machine or after an outage, takes it for an old
/// answer and never judges it: then another mark is needed.
fn wait_judged(redis: &RedisServer, daemon: &Daemon, session: &str) {
    let mut connection = redis.connect();
    for number in 0..MARKS_MAX {
        let mut mark = Producer::new(redis, &format!("{session}-{number}"), "m");
        mark.start("mark");
        let end = mark.end();
        view(daemon.public, Kind::Sse, &mark.stream, "").expect_finished(&end);
        let receipt = format!("{} {end} mark untaken", mark.stream);
        let met = Instant::now();
        while met.elapsed() < MARK_PATIENCE {
            if receipts(&mut connection).contains(&receipt) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    panic!("none of {MARKS_MAX} answers was judged");
}

fn of_stream(redis: &mut Redis, stream: &str) -> Vec<String> {
    let prefix = format!("{stream} ");
    receipts(redis).iter().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect()
}

#[test]
fn acknowledgements_are_written() {
    let redis = RedisServer::start();
    let daemon = options(&redis, "5s").start();
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g\"1\u{e9}");
    let middle = producer.delta("one");
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "follow=1");
    viewer.read_to(&middle);
    viewer.acknowledge(&middle);
    let by = "127.0.0.1";
    wait_receipt(&mut connection, &format!("s1/m {middle} g\"1\u{e9} acked {by}"));
    let end = producer.end();
    viewer.read_to(&end);
    viewer.acknowledge(&end);
    wait_receipt(&mut connection, &format!("s1/m {end} g\"1\u{e9} acked {by}"));
    wait_judged(&redis, &daemon, "s9");
    let expected = [&middle, &end].map(|id| format!("{id} g\"1\u{e9} acked {by}"));
    assert_eq!(of_stream(&mut connection, "s1/m"), expected);
    assert_eq!((daemon.counter("acks_received"), daemon.counter("receipts_acked")), (2, 2));
    assert_eq!((daemon.counter("receipts_untaken"), daemon.counter("receipts_failed")), (1, 0));
}

#[test]
fn the_end_can_be_acknowledged_before_the_connection_is_closed() {
    let redis = RedisServer::start();
    let daemon = options(&redis, "1m").start();
    let mut connection = redis.connect();
    // If the test is delayed for longer than the daemon waits, the attempt proves nothing: try again.
    for attempt in 0..20 {
        let mut producer = Producer::new(&redis, &format!("s{attempt}"), "m");
        let first = producer.start("g1");
        let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, &producer.stream, "");
        viewer.read_to(&first);
        let end = producer.end();
        viewer.read_to(&end);
        let was_sent = viewer.websocket().try_send_text(&ack(&end).to_string());
        // Another answer is not for this viewer.
        producer.start("g2");
        while viewer.next().is_some() {}
        viewer.transcript.expect_finished(&end);
        wait_until("what was said to be written", || {
            daemon.counter("receipts_acked") == daemon.counter("acks_received")
        });
        let written = of_stream(&mut connection, &producer.stream);
        // A receipt that is written was answered before the close.
        assert_eq!(viewer.acked.len(), written.len(), "{written:?}");
        if was_sent && written == [format!("{end} g1 acked 127.0.0.1")] {
            // And the connection of a client that acknowledges nothing is closed too.
            let end = producer.end();
            view(daemon.public, Kind::WebSocket, &producer.stream, "after=last").expect_finished(&end);
            return;
        }
        assert!(written.is_empty(), "{written:?}");
    }
    panic!("this machine never lets a client speak in time");
}

#[test]
fn an_unacknowledged_answer_has_one_receipt_however_many_watch() {
    let redis = RedisServer::start();
    let daemons = ["i1", "i2"].map(|id| options(&redis, "5s").set(&format!("service.instance={id}")).start());
    let mut connection = redis.connect();
    let mut producers = ["s1", "s2", "s3"].map(|session| Producer::new(&redis, session, "m"));
    let mut viewers = Vec::new();
    for producer in &mut producers {
        let first = producer.start("g1");
        for daemon in &daemons {
            for kind in KINDS {
                let mut viewer = Viewer::open(daemon.public, kind, &producer.stream, "");
                viewer.read_to(&first);
                viewers.push(viewer);
            }
        }
    }
    let mut taker = Viewer::open(daemons[0].public, Kind::WebSocket, "s3/m", "follow=1");
    taker.expect_open("live");
    // One ends, one fails, and a client of one instance acknowledges the third.
    let ends = [producers[0].end(), producers[1].fail("upstream"), producers[2].end()];
    taker.read_to(&ends[2]);
    taker.websocket().send(&ack(&ends[2]));
    for (number, viewer) in viewers.into_iter().enumerate() {
        viewer.read_all().expect_finished(&ends[number / 4]);
    }
    wait_judged(&redis, &daemons[0], "s8");
    wait_judged(&redis, &daemons[1], "s9");
    let untaken = |id: &str| vec![format!("{id} g1 untaken")];
    assert_eq!(of_stream(&mut connection, "s1/m"), untaken(&ends[0]));
    assert_eq!(of_stream(&mut connection, "s2/m"), untaken(&ends[1]));
    assert_eq!(of_stream(&mut connection, "s3/m"), [format!("{} g1 acked 127.0.0.1", ends[2])]);
}

#[test]
fn an_answer_whose_viewers_have_left_is_untaken() {
    let redis = RedisServer::start();
    // An end that is found in history is judged only while it is younger than this.
    let daemon = options(&redis, "5s").start();
    let mut connection = redis.connect();
    let mut left_before = Producer::new(&redis, "s1", "m");
    let mut left_after = Producer::new(&redis, "s2", "m");
    let mut unwatched = Producer::new(&redis, "s3", "m");
    let key = left_before.key.clone();
    let first = left_before.start("g1");
    left_after.start("g2");
    unwatched.start("g3");
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    viewer.read_to(&first);
    wait_until("the group", || connection.groups(&key).len() == 1);
    let newest = left_before.delta("it goes on");
    viewer.read_to(&newest);
    viewer.acknowledge(&newest);
    drop(viewer);
    wait_until("it to leave", || daemon.gauge("subscriptions_open") == 0);
    let ends = [left_before.end(), left_after.end(), unwatched.end()];
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s2/m", "follow=1");
    viewer.read_to(&ends[1]);
    drop(viewer);
    wait_receipt(&mut connection, &format!("s1/m {} g1 untaken", ends[0]));
    wait_receipt(&mut connection, &format!("s2/m {} g2 untaken", ends[1]));
    wait_judged(&redis, &daemon, "s9");
    assert_eq!(of_stream(&mut connection, "s1/m").len(), 2, "and the acknowledgement");
    assert!(of_stream(&mut connection, "s3/m").is_empty(), "nobody watched it");
    // A finished stream is no longer read.
    wait_until("the stream to be let go of", || daemon.gauge("streams_live") == 0);
}

#[test]
fn one_connection_acknowledges_many_streams() {
    let redis = RedisServer::start();
    // An end that is found in history is judged only while it is younger than this.
    let daemon = options(&redis, "5s").start();
    let mut connection = redis.connect();
    let mut producers = ["s1", "s2"].map(|session| Producer::new(&redis, session, "m"));
    let mut client = WebSocketClient::connect(daemon.public, "/v1/ws");
    let mut ends = Vec::new();
    for producer in &mut producers {
        producer.start("g1");
        ends.push(producer.end());
        client.send(&json!({"type": "subscribe", "stream": producer.stream}));
        while client.receive_json()["type"] != "unsubscribed" {}
    }
    // The subscription has ended, and yet the daemon knows which entries it sent.
    for _ in 0..2 {
        client.send(&json!({"type": "ack", "stream": "s1/m", "id": ends[0]}));
        assert_eq!(client.receive_json(), json!({"type": "acked", "id": ends[0], "stream": "s1/m"}));
    }
    wait_receipt(&mut connection, &format!("s1/m {} g1 acked 127.0.0.1", ends[0]));
    for refused in [
        json!({"type": "ack", "stream": "s2/m", "id": "99999999999999-0"}),
        json!({"type": "ack", "stream": "s3/m", "id": ends[0]}),
        ack(&ends[0]),
    ] {
        client.send(&refused);
        assert_eq!(client.receive_json()["type"], "refused", "{refused}");
    }
    client.send(&json!({"type": "subscribe", "stream": "s1/m", "after": ends[0], "follow": true}));
    assert_eq!(client.receive_json()["type"], "open");
    let next = producers[0].start("g2");
    assert_eq!(client.receive_json()["id"], json!(next));
    client.send(&json!({"type": "ack", "stream": "s1/m", "id": next}));
    assert_eq!(client.receive_json(), json!({"type": "acked", "id": next, "stream": "s1/m"}));
    wait_receipt(&mut connection, &format!("s1/m {next} g2 acked 127.0.0.1"));
    wait_receipt(&mut connection, &format!("s2/m {} g1 untaken", ends[1]));
    assert_eq!(of_stream(&mut connection, "s1/m").len(), 2);
}

#[test]
fn a_returning_client_acknowledges_earlier_frames() {
    let redis = RedisServer::start();
    let daemons = ["i1", "i2"].map(|id| options(&redis, "5s").set(&format!("service.instance={id}")).start());
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.start("g1");
    let mut viewer = Viewer::open(daemons[0].public, Kind::WebSocket, "s1/m", "follow=1");
    viewer.read_to(&first);
    let end = producer.end();
    viewer.read_to(&end);
    drop(viewer);
    // To another instance, after the end.
    let mut viewer =
        Viewer::open(daemons[1].public, Kind::WebSocket, "s1/m", &format!("after={end}&follow=1"));
    viewer.expect_open("ended");
    viewer.acknowledge(&end);
    wait_judged(&redis, &daemons[0], "s8");
    wait_judged(&redis, &daemons[1], "s9");
    assert_eq!(of_stream(&mut connection, "s1/m"), [format!("{end} g1 acked 127.0.0.1")]);
}

#[test]
fn signs_of_life_and_repetitions_make_no_receipts() {
    let redis = RedisServer::start();
    let daemon = options(&redis, "5s").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let heartbeat = json!({"type": "heartbeat"});
    producer.write(&heartbeat);
    let first = producer.start("g1");
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "follow=1");
    viewer.read_to(&first);
    // Many acknowledgements within a second become one, the highest; and one for the end.
    let ids: Vec<String> = producer.tokens(0..100);
    viewer.read_to(ids.last().unwrap());
    for id in ids.iter().chain(&ids) {
        viewer.websocket().send(&ack(id));
    }
    ids.iter().for_each(|id| viewer.expect_acked(id));
    let end = producer.end();
    for _ in 0..3 {
        producer.write(&heartbeat);
    }
    viewer.read_to(&end);
    for _ in 0..5 {
        viewer.websocket().send(&ack(&end));
    }
    viewer.expect_acked(&end);
    wait_judged(&redis, &daemon, "s9");
    let written = of_stream(&mut redis.connect(), "s1/m");
    assert_eq!(written.last().unwrap(), &format!("{end} g1 acked 127.0.0.1"));
    assert!(written.len() <= 10, "{} acknowledgements were sent: {written:?}", 205);
    let merged = daemon.counter("acks_merged");
    assert_eq!(merged + daemon.counter("receipts_acked"), 205);
}

#[test]
fn old_answers_are_not_judged_when_they_are_read_again() {
    let redis = RedisServer::start();
    let daemon = options(&redis, "1s").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.write_fields("5-1", &[("data", br#"{"type":"delta","text":"old"}"#)]);
    producer.write_fields("5-2", &[("data", br#"{"type":"end"}"#)]);
    for kind in KINDS {
        view(daemon.public, kind, "s1/m", "").expect_finished("5-2");
    }
    wait_judged(&redis, &daemon, "s9");
    assert!(of_stream(&mut redis.connect(), "s1/m").is_empty());
}

#[test]
fn a_daemon_that_ends_in_between_forgets_unless_somebody_comes_back() {
    let redis = RedisServer::start();
    let mut daemon = options(&redis, "15s").start();
    let mut connection = redis.connect();
    let mut ends = Vec::new();
    for session in ["s1", "s2"] {
        let mut producer = Producer::new(&redis, session, "m");
        let first = producer.start("g1");
        let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, &producer.stream, "follow=1");
        viewer.read_to(&first);
        ends.push(producer.end());
        viewer.read_to(&ends[ends.len() - 1]);
    }
    daemon.kill();
    let daemon = daemon.start_again();
    view(daemon.public, Kind::Sse, "s2/m", "after=last").expect_finished(&ends[1]);
    let ended_ms = id_order(&ends[1]).0;
    let is_in_time = connection.now_ms() < ended_ms + 14_000;
    wait_judged(&redis, &daemon, "s9");
    assert!(of_stream(&mut connection, "s1/m").is_empty());
    let untaken = of_stream(&mut connection, "s2/m");
    assert!(!is_in_time || untaken == [format!("{} g1 untaken", ends[1])], "{untaken:?}");
}

#[test]
fn acknowledgements_during_an_outage_are_written_afterwards() {
    let mut redis = RedisServer::start_durable();
    let mut daemon = options(&redis, "3s").start();
    let mut taken = Producer::new(&redis, "s1", "m");
    let mut untaken = Producer::new(&redis, "s2", "m");
    let (first, other_first) = (taken.start("g1"), untaken.start("g2"));
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "follow=1");
    let mut other = Viewer::open(daemon.public, Kind::WebSocket, "s2/m", "follow=1");
    viewer.read_to(&first);
    other.read_to(&other_first);
    let ends = [taken.end(), untaken.end()];
    viewer.read_to(&ends[0]);
    other.read_to(&ends[1]);
    redis.kill();
    viewer.websocket().send(&ack(&ends[0]));
    viewer.read_to_status("degraded");
    // The time expires meanwhile, and again before the daemon reaches Redis.
    std::thread::sleep(Duration::from_secs(3));
    redis.restart();
    daemon.wait_ready();
    let mut connection = redis.connect();
    wait_receipt(&mut connection, &format!("s1/m {} g1 acked 127.0.0.1", ends[0]));
    wait_receipt(&mut connection, &format!("s2/m {} g2 untaken", ends[1]));
    // A client that repeats its acknowledgement gets an answer, and no second receipt.
    viewer.acknowledge(&ends[0]);
    wait_judged(&redis, &daemon, "s9");
    assert_eq!(of_stream(&mut connection, "s1/m").len(), 1);
    assert_eq!(of_stream(&mut connection, "s2/m").len(), 1);
}

#[test]
fn acknowledgements_of_unsent_ids_are_refused_and_malformed_ones_count() {
    let redis = RedisServer::start();
    let daemon = options(&redis, "1m").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.start("g1");
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    viewer.read_to(&first);
    let client = viewer.websocket();
    // An acknowledgement of an id that does not exist is refused, however often.
    for _ in 0..20 {
        client.send(&ack("99999999999999-0"));
        assert_eq!(client.receive_json()["code"], "not_sent");
    }
    for id in [
        json!(5),
        json!(null),
        json!("x"),
        json!("5-"),
        json!("-1"),
        json!("1-2-3"),
        json!([]),
        json!(""),
        json!({}),
    ] {
        client.send(&json!({"type": "ack", "id": id}));
        assert_eq!(client.receive_json()["code"], "bad_option", "{id}");
    }
    client.send(&json!({"type": "ping"}));
    assert_eq!(client.receive_json()["type"], "pong");
    client.send(&json!({"type": "ack"}));
    assert_eq!(client.receive_to_close().1, 1008);
    assert!(receipts(&mut redis.connect()).is_empty());
}

#[test]
fn switched_off_acknowledgements_are_of_no_consequence() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("stream.receipts_after=100ms").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.start("g1");
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    viewer.read_to(&first);
    viewer.acknowledge(&first);
    let end = producer.end();
    viewer.read_all().expect_finished(&end);
    let untold = options(&redis, "0").set("service.instance=i2").start();
    let mut viewer = Viewer::open(untold.public, Kind::WebSocket, "s1/m", "follow=1");
    viewer.read_to(&end);
    viewer.websocket().send(&ack(&end));
    let mut connection = redis.connect();
    wait_receipt(&mut connection, &format!("s1/m {end} g1 acked 127.0.0.1"));
    assert_eq!(receipts(&mut connection).len(), 1);
    assert_eq!((daemon.counter("acks_received"), daemon.counter("receipts_acked")), (1, 0));
}

#[test]
fn the_receipts_are_capped() {
    let redis = RedisServer::start();
    let daemon = options(&redis, "1m").set("redis.receipts_max_entries=50").start();
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "follow=1");
    // Redis trims whole nodes, of a hundred entries by default.
    for number in 0..400 {
        producer.start(&format!("g{number}"));
        let end = producer.end();
        viewer.read_to(&end);
        viewer.websocket().send(&ack(&end));
    }
    wait_until("the receipts", || daemon.counter("receipts_acked") == 400);
    let kept: u64 = connection.run(&["XLEN", RECEIPTS]);
    assert!((50..250).contains(&kept), "{kept}");
}

#[test]
fn a_client_that_got_no_answer_repeats_its_acknowledgement_and_gets_one_receipt() {
    let redis = RedisServer::start();
    let daemons = ["i1", "i2"].map(|id| options(&redis, "1m").set(&format!("service.instance={id}")).start());
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let end = producer.end();
    producer.start("g2");
    for round in 0..6 {
        let daemon = &daemons[round % 2];
        let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "follow=1");
        viewer.read_to(&end);
        viewer.websocket().send(&ack(&end));
        if round % 3 == 0 {
            // It leaves without waiting for the answer.
            continue;
        }
        viewer.expect_acked(&end);
        drop(viewer);
        // And a client that reconnects acknowledges an answer that it received before.
        let mut viewer =
            Viewer::open(daemon.public, Kind::WebSocket, "s1/m", &format!("after={end}&follow=1"));
        viewer.expect_open("live");
        viewer.acknowledge(&end);
    }
    let mut connection = redis.connect();
    wait_until("the receipt", || !of_stream(&mut connection, "s1/m").is_empty());
    assert_eq!(of_stream(&mut connection, "s1/m"), [format!("{end} g1 acked 127.0.0.1")]);
}

#[test]
fn receipts_that_redis_refuses_are_reported_and_written_later() {
    let redis = RedisServer::start();
    let daemon = options(&redis, "1m").start();
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let end = producer.end();
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "follow=1");
    viewer.read_to(&end);
    connection.run::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    viewer.websocket().send(&ack(&end));
    let refused = viewer.read_until("a refusal", |frame| frame.kind() == "refused");
    assert_eq!(refused.value["code"], "redis_refuses", "{}", refused.raw);
    connection.run::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_receipt(&mut connection, &format!("s1/m {end} g1 acked 127.0.0.1"));
    viewer.acknowledge(&end);
    assert_eq!(of_stream(&mut connection, "s1/m").len(), 1);
    assert_eq!(daemon.counter("receipts_failed"), 0);
}

#[test]
fn an_instance_that_goes_down_answers_first() {
    let redis = RedisServer::start();
    let mut connection = redis.connect();
    for round in 0..5 {
        let daemon = options(&redis, "1m").start();
        let mut producer = Producer::new(&redis, &format!("s{round}"), "m");
        let first = producer.start("g1");
        let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, &producer.stream, "follow=1");
        viewer.read_to(&first);
        viewer.websocket().send(&ack(&first));
        viewer.websocket().send(&json!({"type": "cancel"}));
        daemon.signal(libc::SIGTERM);
        while viewer.next().is_some() {}
        let requests: usize = connection.run(&["XLEN", &format!("llm:control:s{round}:m")]);
        let written = of_stream(&mut connection, &producer.stream).len();
        let requested = viewer.transcript.of_kind("cancel_requested").count();
        assert_eq!((requested, viewer.acked.len()), (requests, written), "{:#?}", viewer.transcript);
    }
}
