//! A name that nobody has written yet: it is waited for, costs Redis nothing, and begins with its first
//! entry.

use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::producer::{Producer, tokens};
use crate::support::redis::RedisServer;
use crate::support::transcript::Ending;
use crate::support::viewer::{KINDS, Kind, Viewer, view};

#[test]
fn who_waits_gets_everything_from_the_beginning() {
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
    // Whoever was accepted before this was answered is waiting.
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
            let told = &transcript.frames[1].value;
            assert_eq!((told["type"].as_str(), told["state"].as_str()), (Some("status"), Some("live")));
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
