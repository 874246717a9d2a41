//! A stream that does not exist yet: it is waited for, costs Redis nothing, and begins with its first entry.

use std::time::Duration;

use serde_json::json;

use crate::support::daemon::Daemon;
use crate::support::documents::documented_rights;
use crate::support::http;
use crate::support::patience::wait_until;
use crate::support::producer::{Producer, tokens};
use crate::support::redis::RedisServer;
use crate::support::transcript::Ending;
use crate::support::viewer::{KINDS, Kind, Viewer, view};

#[test]
fn waiting_viewers_get_everything_from_the_beginning() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let queries = ["", "after=$", "after=last", "after=0", "follow=0&wait=60"];
    let mut viewers = Vec::new();
    for query in queries {
        for kind in KINDS {
            let mut viewer = Viewer::open(daemon.public, kind, "s1/m", query);
            if kind == Kind::WebSocket {
                viewer.expect_open("waiting");
            }
            viewers.push((kind, query, viewer));
        }
    }
    // All connections accepted before this answer are waiting.
    assert_eq!(http::get(daemon.public, "/v1/streams/s1/m").status, 404);
    assert!(redis.connect().keys("llm:stream:*").is_empty(), "waiting creates no key");
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    producer.tokens(0..20);
    let end = producer.end();
    for (kind, query, viewer) in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.text(), tokens(0..20), "{kind:?} {query}");
        assert_eq!(transcript.entries(), 22, "{kind:?} {query}");
        if kind == Kind::WebSocket {
            let delivered = &transcript.frames[1].value;
            assert_eq!(
                (delivered["type"].as_str(), delivered["state"].as_str()),
                (Some("status"), Some("live"))
            );
        }
        transcript.expect_finished(&end);
    }
}

#[test]
fn waiting_is_over_after_the_time_asked_for() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    assert_eq!(view(daemon.public, Kind::Sse, "s1/m", "wait=1").ending, Some(Ending::Status(404)));
    let transcript = view(daemon.public, Kind::WebSocket, "s1/m", "wait=1");
    assert_eq!(transcript.ending, Some(Ending::Closed(4404)));
    assert_eq!(transcript.open()["state"], "waiting");
    assert!(redis.connect().keys("llm:stream:*").is_empty());
}

#[test]
fn waiting_is_capped_by_the_configuration() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("client.max_wait=100ms").start();
    assert_eq!(view(daemon.public, Kind::Sse, "s1/m", "wait=3600").ending, Some(Ending::Status(404)));
    let closed = view(daemon.public, Kind::WebSocket, "s1/m", "wait=3600");
    assert_eq!(closed.ending, Some(Ending::Closed(4404)));
}

#[test]
fn a_deleted_stream_is_waited_for() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let before = producer.delta("before ");
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    for viewer in &mut viewers {
        viewer.read_to(&before);
    }
    redis.connect().run::<u32>(&["DEL", "llm:stream:s1:m"]);
    for viewer in &mut viewers {
        viewer.read_to_status("waiting");
    }
    assert!(redis.connect().keys("llm:stream:*").is_empty());
    producer.delta("after");
    let end = producer.end();
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.text(), "before after");
        transcript.expect_finished(&end);
    }
}

#[test]
fn a_deleted_stream_is_waited_for_no_longer_than_asked() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let id = Producer::new(&redis, "s1", "m").delta("one");
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "wait=1"));
    viewers.iter_mut().for_each(|viewer| viewer.read_to(&id));
    redis.connect().run::<u32>(&["DEL", "llm:stream:s1:m"]);
    viewers.iter_mut().for_each(|viewer| viewer.read_to_status("waiting"));
    let endings = viewers.map(|viewer| viewer.read_all().ending);
    assert_eq!(endings, [Some(Ending::Closed(4404)), Some(Ending::Complete)]);
    assert!(redis.connect().keys("llm:stream:*").is_empty());
}

/// The daemon sees the stream appear. Then the reader loses its connection and reads it anew.
#[test]
fn a_stream_that_is_read_anew_is_as_silent_as_before() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("stream.stall_after=1s").start();
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "wait=60");
    viewer.expect_open("waiting");
    Producer::new(&redis, "s1", "m").delta("one ");
    viewer.read_to_status("stalled");
    redis.connect().run::<u32>(&["CLIENT", "KILL", "TYPE", "normal"]);
    // Longer than it would take to notice the silence again.
    std::thread::sleep(Duration::from_millis(2500));
    for entry in [r#"{"type":"delta","text":"two"}"#, r#"{"type":"end"}"#] {
        redis.connect().add_entry("llm:stream:s1:m", "*", &[("data", entry.as_bytes())]);
    }
    let transcript = viewer.read_all();
    assert_eq!(transcript.text(), "one two");
    let states: Vec<_> = transcript.of_kind("status").map(|status| status["state"].clone()).collect();
    assert_eq!(states, ["live", "stalled", "live"]);
}

/// Lets viewers wait for a stream, which a producer then writes, announced or not.
fn check_noticed(redis: &RedisServer, daemon: &Daemon, session: &str, is_announced: bool) {
    let mut producer = Producer::new(redis, session, "m");
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, &producer.stream, ""));
    viewers[0].expect_open("waiting");
    assert_eq!(http::get(daemon.public, &format!("/v1/streams/{session}/m")).status, 404);
    producer.start("g1");
    if is_announced {
        redis.connect().add_entry("llm:announce", "*", &[("stream", producer.key.as_bytes())]);
    }
    producer.tokens(0..5);
    viewers[0].read_to_status("live");
    let end = producer.end();
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.text(), tokens(0..5));
        transcript.expect_finished(&end);
    }
}

#[test]
fn a_new_name_is_noticed_however_the_daemon_is_connected() {
    let redis = RedisServer::start();
    for protocol in ["resp3", "resp2"] {
        let url = format!("redis.url={}?protocol={protocol}", redis.url());
        let daemon = Daemon::options(&redis).set(&url).start();
        for is_announced in [true, false] {
            check_noticed(&redis, &daemon, &format!("{protocol}-{is_announced}"), is_announced);
        }
    }
}

#[test]
fn an_announcement_of_nothing_wakes_nobody() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    viewer.expect_open("waiting");
    let mut connection = redis.connect();
    for (field, value) in [
        ("stream", "llm:stream:s1:m"),
        ("stream", "nonsense"),
        ("stream", "llm:stream:s1"),
        ("other", "llm:stream:s1:m"),
        ("stream", ""),
    ] {
        connection.add_entry("llm:announce", "*", &[(field, value.as_bytes())]);
    }
    // A stream announced after them was noticed; the one that is only announced still does not exist.
    check_noticed(&redis, &daemon, "s2", true);
    assert_eq!(http::get(daemon.public, "/v1/streams/s1/m").status, 404);
    let end = Producer::new(&redis, "s1", "m").end();
    let transcript = viewer.read_all();
    assert_eq!(transcript.outline(), ["end stop"]);
    assert_eq!(transcript.of_kind("status").count(), 1, "{:?}", transcript.frames);
    transcript.expect_finished(&end);
}

#[test]
fn the_documented_rights_are_enough() {
    let redis = RedisServer::start();
    let mut connection = redis.connect();
    let mut command = vec!["ACL", "SETUSER", "llm-bridge"];
    command.extend(documented_rights());
    connection.run::<()>(&command);
    connection.run::<()>(&["ACL", "LOG", "RESET"]);
    let url = format!("redis.url=redis://llm-bridge:PASSWORD@127.0.0.1:{}/0", redis.port());
    let mut daemon = Daemon::options(&redis)
        .set(&url)
        .set("service.instance=i1")
        .set("stream.linger=50ms")
        .set("stream.stall_after=300ms")
        .set("stream.abandon_after=700ms")
        .start();
    // Waiting, live, history, a state, a cancel, a dead letter, a producer given up, many streams.
    check_noticed(&redis, &daemon, "s1", false);
    check_noticed(&redis, &daemon, "s2", true);
    assert_eq!(http::get(daemon.public, "/v1/streams/s1/m").json()["state"], "ended");
    assert_eq!(view(daemon.public, Kind::WebSocket, "s1/m", "after=last").text(), tokens(0..5));
    let nothing = [("Content-Length", "0")];
    let cancelled = http::request(daemon.public, "POST", "/v1/streams/s1/m/cancel", &nothing);
    assert_eq!(cancelled.status, 202, "{}", cancelled.text());
    let mut producer = Producer::new(&redis, "s3", "m");
    producer.write(&json!({"type": "delta"}));
    producer.end();
    assert_eq!(view(daemon.public, Kind::Sse, "s3/m", "").outline(), ["skipped", "end stop"]);
    wait_until("the dead letter", || !connection.keys("llm:dlq:llm-bridge").is_empty());
    Producer::new(&redis, "s4", "m").delta("half");
    let given_up = view(daemon.public, Kind::Sse, "s4/m", "");
    assert_eq!(given_up.outline(), ["delta half", "error producer_lost"]);
    let mut many = Vec::new();
    for number in 0..40 {
        let mut producer = Producer::new(&redis, &format!("many{number}"), "m");
        let first = producer.delta("one");
        let mut viewer = Viewer::open(daemon.public, KINDS[number % 2], &producer.stream, "");
        viewer.read_to(&first);
        many.push((producer, viewer));
    }
    for (mut producer, mut viewer) in many {
        let id = producer.end();
        viewer.read_to(&id);
    }
    wait_until("the groups to go", || connection.groups("llm:stream:many7:m").is_empty());
    daemon.kill();
    let mut again = daemon.start_again();
    again.signal(libc::SIGTERM);
    again.expect_exit(0);
    assert!(connection.keys("llm:instance:*").is_empty(), "the lease is released");
    let denied: Vec<Vec<redis::Value>> = connection.run(&["ACL", "LOG"]);
    assert!(denied.is_empty(), "denied: {denied:?}");
}
