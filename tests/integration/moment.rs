//! The end of an answer: the state that a new viewer gets at that time, and the end that a daemon writes if the
//! producer never does.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, DaemonOptions};
use crate::support::http;
use crate::support::patience::wait_until;
use crate::support::producer::Producer;
use crate::support::redis::{Redis, RedisServer};
use crate::support::transcript::right_after;
use crate::support::viewer::{KINDS, Kind, Viewer};

/// New viewers may join a read that was begun for others, whose answer lacks what has been written since.
#[test]
fn a_new_viewer_gets_the_current_state() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    for round in 0..10 {
        let mut producer = Producer::new(&redis, &format!("s{round}"), "m");
        let stream = producer.stream.clone();
        let mut staying = Viewer::open(daemon.public, Kind::WebSocket, &stream, "follow=1");
        for (turn, ending) in
            [Producer::end, |producer: &mut Producer| producer.fail("broken")].into_iter().enumerate()
        {
            let begun = producer.start(&format!("g{turn}"));
            let text = producer.delta("some");
            staying.read_to(&text);
            for kind in KINDS {
                let mut early =
                    Viewer::open(daemon.public, kind, &stream, &format!("follow=1&after={begun}"));
                early.read_to(&text);
                assert_eq!(early.transcript.open()["state"], "live");
            }
            let end = ending(&mut producer);
            staying.read_to(&end);
            let state =
                if staying.transcript.frames.last().unwrap().kind() == "end" { "ended" } else { "failed" };
            for kind in KINDS {
                let mut late = Viewer::open(daemon.public, kind, &stream, &format!("after={begun}"));
                late.expect_open(state);
                late.read_all().expect_finished(&end);
            }
        }
    }
}

const KEY: &str = "llm:stream:s1:m";
const FINISHING: &str = r#"{"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}"#;
const TEXT: &str = r#"{"choices":[{"index":0,"delta":{"content":"oh "}}]}"#;
const USAGE: &str = r#"{"choices":[],"usage":{"total_tokens":7}}"#;

/// The entries that end a generation: their ids and `data`.
fn ends(redis: &mut Redis) -> Vec<(String, Value)> {
    let entries = redis.entries(KEY).into_iter();
    let data =
        entries.filter_map(|(id, fields)| Some((id, serde_json::from_slice(fields.get("data")?).unwrap())));
    data.filter(|(_, data): &(String, Value)| data["type"] == "end").collect()
}

fn raw(producer: &mut Producer, id: &str, object: &str) -> String {
    producer.write_fields(id, &[("openai", object.as_bytes())])
}

#[test]
fn an_end_after_a_timeout_is_written_once_and_all_agree() {
    let redis = RedisServer::start();
    let daemons = ["i1", "i2"].map(|id| {
        Daemon::options(&redis)
            .set("stream.finish_grace=500ms")
            .set(&format!("service.instance={id}"))
            .start()
    });
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut viewers = Vec::new();
    for daemon in daemons.iter().chain(&daemons) {
        viewers.extend(KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "")));
    }
    raw(&mut producer, "*", FINISHING);
    let newest = raw(&mut producer, "*", USAGE);
    let end = right_after(&newest);
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.outline(), ["delta hi", "end stop"]);
        assert_eq!(transcript.frames.last().unwrap().value["usage"]["total_tokens"], 7);
        transcript.expect_finished(&end);
    }
    raw(&mut producer, "*", "[DONE]");
    for daemon in &daemons {
        for kind in KINDS {
            let mut late = Viewer::open(daemon.public, kind, "s1/m", "");
            late.expect_open("ended");
            late.read_all().expect_finished(&end);
        }
        assert_eq!(http::get(daemon.public, "/v1/streams/s1/m").json()["state"], "ended");
    }
    let written = json!({"type": "end", "finish_reason": "stop", "usage": {"total_tokens": 7}});
    assert_eq!(ends(&mut redis.connect()), [(end, written)]);
}

#[test]
fn ids_ahead_of_the_clock_delay_no_end() {
    let redis = RedisServer::start();
    let now_ms = redis.connect().now_ms();
    for id in
        [format!("{}-0", now_ms + 60_000), format!("{}-0", now_ms + 172_800_000), format!("{}-1", u64::MAX)]
    {
        let daemon = Daemon::start(&redis);
        let mut producer = Producer::new(&redis, "s1", "m");
        raw(&mut producer, &id, FINISHING);
        for viewer in KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "")) {
            viewer.read_all().expect_finished(&right_after(&id));
        }
        for kind in KINDS {
            let mut late = Viewer::open(daemon.public, kind, "s1/m", "");
            late.expect_open("ended");
            late.read_all().expect_finished(&right_after(&id));
        }
        redis.connect().run::<usize>(&["DEL", KEY]);
    }
}

#[test]
fn an_end_is_found_by_looking_where_nobody_watches() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let now_ms = redis.connect().now_ms();
    for (n, id) in [format!("{}-0", now_ms + 60_000), "7-0".to_owned(), format!("{}-0", now_ms - 60_000)]
        .iter()
        .enumerate()
    {
        let mut producer = Producer::new(&redis, &format!("s{n}"), "m");
        raw(&mut producer, id, FINISHING);
        let target = format!("/v1/streams/s{n}/m");
        wait_until("the end to be known", || http::get(daemon.public, &target).json()["state"] == "ended");
        wait_until("the end to be written", || {
            http::get(daemon.public, &target).json()["last_id"] == right_after(id).as_str()
        });
    }
}

/// A daemon that ends nothing, and reports no silence, during a test.
fn patient(redis: &RedisServer) -> Daemon {
    let settings = ["stream.finish_grace=30s", "stream.stall_after=30s", "stream.abandon_after=31s"];
    settings.into_iter().fold(Daemon::options(redis), DaemonOptions::set).start()
}

#[test]
fn ids_behind_the_clock_hasten_no_end() {
    let redis = RedisServer::start();
    let daemon = patient(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let behind = redis.connect().now_ms() - 3_600_000;
    let mut n = 0;
    let mut write = |object: &str| {
        n += 1;
        raw(&mut producer, &format!("{behind}-{n}"), object)
    };
    write(TEXT);
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    // From here on the daemon sees entries arrive.
    wait_until("an entry to be read live", || {
        write(TEXT);
        daemon.counter("entries_read") > 0
    });
    write(FINISHING);
    for viewer in &mut viewers {
        viewer.read_until("the text", |frame| {
            frame.value["text"].as_str().is_some_and(|text| text.ends_with("hi"))
        });
    }
    // Several checks of silent streams happen in between.
    thread::sleep(Duration::from_secs(1));
    write(USAGE);
    let end = write("[DONE]");
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.frames.last().unwrap().value["usage"]["total_tokens"], 7);
        transcript.expect_finished(&end);
    }
    assert!(ends(&mut redis.connect()).is_empty());
}

#[test]
fn a_stream_that_was_waited_for_is_no_older_than_its_appearance() {
    let redis = RedisServer::start();
    let daemon = patient(&redis);
    let behind = redis.connect().now_ms() - 3_600_000;
    for (session, first) in [("finishing", FINISHING), ("open", TEXT)] {
        let mut producer = Producer::new(&redis, session, "m");
        let stream = producer.stream.clone();
        let viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, &stream, "wait=30"));
        // The other daemon may come later: it finds a stream that is waited for.
        wait_until("the name to be waited for", || daemon.gauge("streams_waited") > 0);
        raw(&mut producer, &format!("{behind}-1"), first);
        let viewers = viewers.map(|mut viewer| {
            viewer.read_until("text", |frame| frame.kind() == "delta");
            viewer
        });
        // Several checks of silent streams happen in between.
        thread::sleep(Duration::from_secs(1));
        let state = http::get(daemon.public, &format!("/v1/streams/{stream}")).json();
        assert_eq!(state["state"], "live");
        raw(&mut producer, &format!("{behind}-2"), TEXT);
        let end = raw(&mut producer, &format!("{behind}-3"), "[DONE]");
        for viewer in viewers {
            let transcript = viewer.read_all();
            assert_eq!(transcript.of_kind("status").filter(|status| status["state"] == "stalled").count(), 0);
            assert!(transcript.text().ends_with("oh "), "{}", transcript.text());
            transcript.expect_finished(&end);
        }
    }
}

/// After the highest id there is no place for another entry, nor for a read.
#[test]
fn the_end_of_all_ids_is_the_end_of_its_answer() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("stream.finish_grace=500ms").start();
    let newest = format!("{0}-{0}", u64::MAX);
    raw(&mut Producer::new(&redis, "s1", "m"), &newest, FINISHING);
    for _ in 0..2 {
        for viewer in KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "")) {
            let transcript = viewer.read_all();
            assert_eq!(transcript.outline(), ["delta hi", "end stop"]);
            transcript.expect_finished(&newest);
        }
    }
}

#[test]
fn an_end_that_cannot_be_written_is_sent_nevertheless() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("stream.finish_grace=500ms").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    // Right after the last id of its millisecond there is no place for an end.
    let newest = format!("{}-{}", redis.connect().now_ms(), u64::MAX);
    raw(&mut producer, &newest, FINISHING);
    let mut staying = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "follow=1");
    staying.read_until("the end", |frame| frame.kind() == "end");
    for kind in KINDS {
        let mut late = Viewer::open(daemon.public, kind, "s1/m", "");
        late.expect_open("ended");
        let transcript = late.read_all();
        assert_eq!(transcript.outline(), ["delta hi", "end stop"]);
        transcript.expect_finished(&newest);
    }
    assert_eq!(http::get(daemon.public, "/v1/streams/s1/m").json()["state"], "ended");
    let next = raw(&mut producer, "*", r#"{"choices":[{"index":0,"delta":{"content":"more"}}]}"#);
    staying.read_to(&next);
    assert_eq!(staying.transcript.outline(), ["delta hi", "end stop", "delta more"]);
}
