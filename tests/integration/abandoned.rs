//! A producer that becomes silent: viewers get the status `stalled`, and after a longer silence the generation is
//! given up once, however many viewers watch it, so that all viewers agree.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, DaemonOptions};
use crate::support::http;
use crate::support::patience::wait_until;
use crate::support::producer::{Producer, entry};
use crate::support::redis::{Redis, RedisServer};
use crate::support::transcript::{Frame, id_order, right_after};
use crate::support::viewer::{KINDS, Kind, Viewer, view};

const KEY: &str = "llm:stream:s1:m";

fn impatient(redis: &RedisServer) -> DaemonOptions {
    Daemon::options(redis).set("stream.stall_after=300ms").set("stream.abandon_after=700ms")
}

/// A daemon that reports silence early and gives up late.
fn hopeful(redis: &RedisServer) -> DaemonOptions {
    Daemon::options(redis).set("stream.stall_after=200ms").set("stream.abandon_after=1h")
}

fn object(fields: &std::collections::HashMap<String, Vec<u8>>) -> Value {
    serde_json::from_slice(&fields["data"]).unwrap()
}

/// The entries that report that the producer was given up: their ids, and how many there are.
fn lost_ids(redis: &mut Redis, key: &str) -> Vec<String> {
    let entries = redis.entries(key);
    let is_lost = |value: &Value| value["type"] == "error" && value["code"] == "producer_lost";
    entries.into_iter().filter(|(_, fields)| is_lost(&object(fields))).map(|(id, _)| id).collect()
}

#[test]
fn silence_and_its_end_are_reported() {
    let redis = RedisServer::start();
    let daemon = hopeful(&redis).start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let mut viewers = Vec::from(KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "")));
    for viewer in &mut viewers {
        viewer.read_to_status("stalled");
    }
    // A new viewer is told at once.
    for kind in KINDS {
        let mut viewer = Viewer::open(daemon.public, kind, "s1/m", "after=$");
        viewer.expect_open("stalled");
        viewers.push(viewer);
    }
    assert_eq!(http::get(daemon.public, "/v1/streams/s1/m").json()["state"], "stalled");
    producer.delta("back");
    for viewer in &mut viewers {
        viewer.read_to_status("live");
        viewer.read_to_status("stalled");
    }
    // A heartbeat shows that the producer is alive, although nothing is delivered.
    producer.write(&json!({"type": "heartbeat"}));
    for viewer in &mut viewers {
        viewer.read_to_status("live");
        viewer.read_to_status("stalled");
    }
    let end = producer.end();
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.text(), "back");
        transcript.expect_finished(&end);
    }
}

#[test]
fn all_viewers_are_told_once_that_a_producer_was_given_up() {
    let redis = RedisServer::start();
    let daemons = ["i1", "i2"].map(|id| impatient(&redis).set(&format!("service.instance={id}")).start());
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let newest = producer.delta("half of ");
    let mut viewers = Vec::new();
    for daemon in daemons.iter().chain(&daemons) {
        viewers.extend(KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "")));
    }
    let lost = right_after(&newest);
    let outline = ["start g1", "delta half of ", "error producer_lost"];
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.outline(), outline);
        assert!(transcript.frames.last().unwrap().value["message"].is_string());
        transcript.expect_finished(&lost);
    }
    for daemon in &daemons {
        for kind in KINDS {
            let late = view(daemon.public, kind, "s1/m", "");
            assert_eq!(
                (late.open()["state"].as_str(), late.outline()),
                (Some("failed"), outline.map(str::to_owned).into())
            );
            late.expect_finished(&lost);
        }
        let state = http::get(daemon.public, "/v1/streams/s1/m").json();
        assert_eq!((&state["state"], &state["error"]["code"]), (&json!("failed"), &json!("producer_lost")));
    }
    assert_eq!(lost_ids(&mut redis.connect(), KEY), [lost]);
}

#[test]
fn silence_is_reported_before_the_producer_is_given_up() {
    let redis = RedisServer::start();
    let daemon =
        Daemon::options(&redis).set("stream.stall_after=200ms").set("stream.abandon_after=2s").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let newest = producer.start("g1");
    let viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    for mut viewer in viewers {
        viewer.read_to_status("stalled");
        assert_eq!(viewer.transcript.outline(), ["start g1"]);
        viewer.read_all().expect_finished(&right_after(&newest));
    }
}

/// The states that a viewer received, and the beginnings and ends of generations, in order.
fn states(viewer: &Viewer) -> Vec<String> {
    let state = |frame: &Frame| match frame.kind() {
        "open" | "status" => frame.value["state"].as_str().map(str::to_owned),
        kind if frame.is_terminal() => Some(kind.to_owned()),
        "start" => Some("start".to_owned()),
        _ => None,
    };
    viewer.transcript.frames.iter().filter_map(state).collect()
}

/// An entry that the daemon writes for a silent producer does not show that the producer is alive.
#[test]
fn an_end_that_the_daemon_writes_brings_nobody_back() {
    let redis = RedisServer::start();
    let limits = ["stream.stall_after=500ms", "stream.abandon_after=3s", "stream.finish_grace=3s"];
    // The second daemon does not write the end, it only sees it.
    let daemons = ["i1", "i2"].map(|id| {
        let options = Daemon::options(&redis).set(&format!("service.instance={id}"));
        limits.iter().fold(options, |options, limit| options.set(limit)).start()
    });
    let mut lost = Producer::new(&redis, "s1", "m");
    let mut finishing = Producer::new(&redis, "s2", "m");
    let mut viewers = Vec::new();
    for daemon in &daemons {
        for kind in KINDS {
            for (stream, end) in [("s1/m", "error"), ("s2/m", "end")] {
                viewers.push((Viewer::open(daemon.public, kind, stream, "follow=1&wait=30"), end));
            }
        }
    }
    lost.start("g1");
    finishing.start("g1");
    let chunk = br#"{"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}"#;
    finishing.write_fields("*", &[("openai", chunk)]);
    for (viewer, end) in &mut viewers {
        viewer.read_until("the end", Frame::is_terminal);
        let states = states(viewer);
        assert_eq!(states[states.len() - 2..], ["stalled", *end], "{states:?}");
    }
    // The next answer's producer is not stalled, whichever clients connected meanwhile.
    for daemon in &daemons {
        for (stream, end) in [("s1/m", "error"), ("s2/m", "end")] {
            let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, stream, "follow=1");
            viewer.read_until("the end", Frame::is_terminal);
            viewers.push((viewer, end));
        }
    }
    lost.start("g2");
    finishing.start("g2");
    for (viewer, end) in &mut viewers {
        viewer.read_until("the next start", |frame| frame.value["generation"] == "g2");
        let states = states(viewer);
        let place = states.iter().position(|state| state == end).unwrap();
        match place.checked_sub(1).map(|before| states[before].as_str()) {
            Some("stalled") => assert_eq!(states[place + 1..], ["live", "start"], "{states:?}"),
            _ => assert_eq!(states[place + 1..], ["start"], "{states:?}"),
        }
    }
}

#[test]
fn heartbeats_keep_a_generation_alive() {
    const ABANDON_MS: u64 = 1_500;
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis)
        .set("stream.stall_after=300ms")
        .set(&format!("stream.abandon_after={ABANDON_MS}ms"))
        .start();
    // If the test's producer was itself delayed for too long, the attempt proves nothing: try again.
    for attempt in 0..10 {
        let mut producer = Producer::new(&redis, &format!("s{attempt}"), "m");
        producer.start("g1");
        let viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, &producer.stream, ""));
        while id_order(producer.ids.last().unwrap()).0 < id_order(&producer.ids[0]).0 + 2 * ABANDON_MS {
            producer.write(&json!({"type": "heartbeat"}));
            thread::sleep(Duration::from_millis(50));
        }
        let end = producer.end();
        let times: Vec<u64> = producer.ids.iter().map(|id| id_order(id).0).collect();
        if times.windows(2).any(|pair| pair[1] - pair[0] >= ABANDON_MS * 2 / 3) {
            continue;
        }
        for viewer in viewers {
            let transcript = viewer.read_all();
            assert_eq!(transcript.outline(), ["start g1", "end stop"]);
            transcript.expect_finished(&end);
        }
        assert!(lost_ids(&mut redis.connect(), &producer.key).is_empty());
        return;
    }
    panic!("this machine never lets a producer write in time");
}

#[test]
fn entries_of_a_given_up_generation_are_not_delivered() {
    let redis = RedisServer::start();
    let daemon = impatient(&redis).start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let newest = producer.delta("half of ");
    let mut viewers = Vec::from(KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "follow=1")));
    for viewer in &mut viewers {
        viewer.read_to(&right_after(&newest));
    }
    // The producer was only slow, but its generation is over.
    producer.delta("the answer");
    producer.write(&json!({"type": "heartbeat", "seq": 3}));
    producer.write(&entry("delta", 4, json!({"text": ", late"})));
    producer.write(&entry("end", 5, json!({"finish_reason": "stop"})));
    producer.start("g2");
    producer.delta("anew");
    let end = producer.end();
    viewers.extend(KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "")));
    let resumed = format!("follow=1&after={}", right_after(&newest));
    let outline = ["start g1", "delta half of ", "error producer_lost", "start g2", "delta anew", "end stop"];
    for viewer in &mut viewers {
        viewer.read_to(&end);
        assert_eq!(viewer.transcript.outline(), outline);
    }
    for kind in KINDS {
        let mut viewer = Viewer::open(daemon.public, kind, "s1/m", &resumed);
        viewer.read_to(&end);
        assert_eq!(viewer.transcript.outline(), outline[3..]);
    }
}

#[test]
fn ids_that_are_no_clock_are_judged_by_observation() {
    let redis = RedisServer::start();
    let daemons = ["i1", "i2"].map(|id| impatient(&redis).set(&format!("service.instance={id}")).start());
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.write_fields("1-1", &[("data", br#"{"type":"start","generation":"g1"}"#)]);
    let mut viewers = Vec::new();
    for daemon in &daemons {
        viewers.extend(KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "")));
    }
    for viewer in &mut viewers {
        viewer.expect_open("live");
        viewer.read_to("1-1");
    }
    producer.write_fields("1-2", &[("data", br#"{"type":"delta","text":"half"}"#)]);
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.outline(), ["start g1", "delta half", "error producer_lost"]);
        transcript.expect_finished("1-3");
    }
    assert_eq!(lost_ids(&mut redis.connect(), KEY), ["1-3"]);
}

#[test]
fn only_what_is_watched_and_unfinished_is_given_up() {
    let redis = RedisServer::start();
    let daemon = impatient(&redis).start();
    let mut connection = redis.connect();
    let mut unwatched = Producer::new(&redis, "s2", "m");
    let mut finished = Producer::new(&redis, "s3", "m");
    let mut watched = Producer::new(&redis, "s1", "m");
    let unwatched_newest = unwatched.start("g1");
    let finished_end = finished.end();
    let newest = watched.start("g1");
    let mut after_the_end = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s3/m", "follow=1"));
    after_the_end.iter_mut().for_each(|viewer| viewer.read_to(&finished_end));
    view(daemon.public, Kind::WebSocket, "s1/m", "").expect_finished(&right_after(&newest));
    // Another generation later, the others have been silent for twice as long.
    let newest = watched.start("g2");
    view(daemon.public, Kind::Sse, "s1/m", "").outline();
    wait_until("the second to be given up", || {
        lost_ids(&mut connection, KEY).contains(&right_after(&newest))
    });
    assert!(lost_ids(&mut connection, &unwatched.key).is_empty(), "nobody watches it");
    assert!(lost_ids(&mut connection, &finished.key).is_empty(), "it is finished");
    // A viewer watches, and the producer has been silent for long enough.
    let transcript = view(daemon.public, Kind::WebSocket, "s2/m", "");
    assert_eq!(transcript.outline(), ["start g1", "error producer_lost"]);
    transcript.expect_finished(&right_after(&unwatched_newest));
    let next = finished.start("g2");
    for viewer in &mut after_the_end {
        viewer.read_to(&next);
        assert_eq!(viewer.transcript.outline(), ["end stop", "start g2"]);
    }
}

#[test]
fn switched_off_nobody_is_given_up() {
    let redis = RedisServer::start();
    let off = Daemon::options(&redis).set("service.instance=i1");
    let off = off.set("stream.stall_after=200ms").set("stream.abandon_after=0").start();
    let on = impatient(&redis).set("service.instance=i2").start();
    let mut patient = Producer::new(&redis, "s1", "m");
    let mut other = Producer::new(&redis, "s2", "m");
    patient.start("g1");
    let newest = other.start("g1");
    let mut viewers = KINDS.map(|kind| Viewer::open(off.public, kind, "s1/m", ""));
    viewers.iter_mut().for_each(|viewer| viewer.read_to_status("stalled"));
    view(on.public, Kind::WebSocket, "s2/m", "").expect_finished(&right_after(&newest));
    let end = patient.end();
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.outline(), ["start g1", "end stop"]);
        transcript.expect_finished(&end);
    }
}
