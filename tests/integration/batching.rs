//! `batch_ms`: frames may be merged over a time that the client chooses. Merged text is unchanged, and only frames
//! that belong together are merged.

use serde_json::json;

use crate::support::daemon::Daemon;
use crate::support::producer::{Producer, token, tokens};
use crate::support::redis::RedisServer;
use crate::support::transcript::Transcript;
use crate::support::viewer::{KINDS, Viewer, view};

const TOKENS: usize = 100;

#[test]
fn neighbouring_deltas_become_one_frame() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("delivery.max_batch=10s").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "batch_ms=10000&after=$"));
    for viewer in &mut viewers {
        viewer.expect_open("live");
    }
    // One write and one read of the daemon each; the end of the answer is not delayed.
    for number in 0..TOKENS {
        producer.delta(&token(number));
    }
    let last = producer.ids.last().unwrap().clone();
    let end = producer.end();
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.text(), tokens(0..TOKENS));
        assert_eq!(transcript.entries(), TOKENS + 1);
        transcript.expect_finished(&end);
        let deltas: Vec<_> = transcript.of_kind("delta").collect();
        // Writing takes a small part of ten seconds, whenever in it the period begins.
        assert!(deltas.len() < TOKENS / 10, "{} frames", deltas.len());
        let newest = deltas.last().unwrap();
        assert_eq!(newest["id"], last, "the id is the last one's");
        assert_eq!(newest["seq"], TOKENS, "so is the seq");
        assert!(deltas.iter().all(|frame| frame["count"].as_u64() != Some(1)));
    }
}

#[test]
fn the_time_is_capped_by_the_configuration() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("delivery.max_batch=50ms").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "batch_ms=3600000&after=$"));
    for viewer in &mut viewers {
        viewer.expect_open("live");
    }
    // Nothing follows that could push it out.
    for number in 0..3 {
        let id = producer.delta(&token(number));
        viewers.iter_mut().for_each(|viewer| viewer.read_to(&id));
    }
    let end = producer.end();
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.text(), tokens(0..3));
        transcript.expect_finished(&end);
    }
}

/// Writes pieces of different kinds, several of each in a row; returns the expected frames.
fn write_mixture(producer: &mut Producer) -> Vec<&'static str> {
    let delta = |text: &str| json!({"type": "delta", "text": text});
    let call = |call: usize, id: &str, piece: &str| {
        let mut object = json!({"type": "tool_call", "index": 0, "call": call, "arguments": piece});
        if !id.is_empty() {
            object["id"] = json!(id);
            object["name"] = json!("search");
        }
        object
    };
    producer.write_each(&[
        json!({"type": "start", "generation": "g1"}),
        json!({"type": "delta", "text": "r1", "channel": "reasoning"}),
        json!({"type": "delta", "text": "r2", "channel": "reasoning"}),
        delta("c1"),
        delta("c2"),
        json!({"type": "delta", "text": "i1", "index": 1}),
        json!({"type": "delta", "text": "i2", "index": 1}),
        delta("c3"),
        json!({"type": "delta", "text": "o1", "channel": "other"}),
        call(0, "a", "{"),
        call(0, "", "}"),
        call(1, "b", "["),
        call(1, "", "]"),
        delta("c4"),
        json!({"type": "mine"}),
        delta("c5"),
        json!({"type": "end", "finish_reason": "stop"}),
        json!({"type": "start", "generation": "g2"}),
        delta("c6"),
        delta("c7"),
        json!({"type": "error", "code": "x", "message": "y"}),
        // Without a `start` of its own.
        delta("c8"),
        json!({"type": "end", "finish_reason": "length"}),
    ]);
    vec![
        "start g1",
        "delta[reasoning] r1r2",
        "delta c1c2",
        "delta#1 i1i2",
        "delta c3",
        "delta[other] o1",
        "delta c4",
        "custom mine",
        "delta c5",
        "end stop",
        "start g2",
        "delta c6c7",
        "error x",
        "delta c8",
        "end length",
    ]
}

fn expect_mixture(transcript: &Transcript, expected: &[&str]) {
    let mut outline = transcript.outline();
    outline.retain(|line| !line.starts_with("tool_call"));
    assert_eq!(outline, expected);
    for (call, id, arguments) in [(0, "a", "{}"), (1, "b", "[]")] {
        let frames: Vec<_> = transcript.of_kind("tool_call").filter(|frame| frame["call"] == call).collect();
        let pieces: String = frames.iter().map(|frame| frame["arguments"].as_str().unwrap()).collect();
        assert_eq!(pieces, arguments);
        assert_eq!((&frames[0]["call_id"], &frames[0]["name"]), (&json!(id), &json!("search")));
    }
    assert_eq!(transcript.entries(), 23);
}

#[test]
fn only_what_belongs_together_is_merged() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("delivery.max_batch=1s").start();
    for (session, query) in [("s1", "batch_ms=1000"), ("s2", "batch_ms=0"), ("s3", "")] {
        let mut producer = Producer::new(&redis, session, "m");
        let stream = producer.stream.clone();
        producer.write(&json!({"type": "heartbeat"}));
        let query = format!("follow=1&{query}");
        let mut live = KINDS.map(|kind| Viewer::open(daemon.public, kind, &stream, &query));
        live.iter_mut().for_each(|viewer| viewer.expect_open("live"));
        let expected = write_mixture(&mut producer);
        let end = producer.ids.last().unwrap();
        for viewer in &mut live {
            viewer.read_to(end);
            expect_mixture(&viewer.transcript, &expected);
        }
        for kind in KINDS {
            let mut viewer = Viewer::open(daemon.public, kind, &stream, &query);
            viewer.read_to(end);
            expect_mixture(&viewer.transcript, &expected);
        }
    }
}

#[test]
fn viewers_of_one_stream_may_differ() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("delivery.max_batch=10s").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let queries = ["batch_ms=10000", "batch_ms=500", "batch_ms=20", "batch_ms=0", ""];
    let open = |query: &str| KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", query));
    let mut viewers: Vec<Viewer> = queries.into_iter().flat_map(open).collect();
    viewers.iter_mut().for_each(|viewer| viewer.expect_open("live"));
    for number in 0..TOKENS {
        producer.delta(&token(number));
        // Clients that asked for no merging wait for nothing: neither for more text, nor for others.
        if number % 10 == 0 {
            viewers[6..].iter_mut().for_each(|viewer| viewer.read_to(producer.ids.last().unwrap()));
        }
    }
    let end = producer.end();
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.text(), tokens(0..TOKENS));
        assert_eq!(transcript.entries(), TOKENS + 2);
        transcript.expect_finished(&end);
    }
}

#[test]
fn a_resume_in_the_middle_of_a_merged_frame_is_exact() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    producer.tokens(0..TOKENS);
    let end = producer.end();
    for position in [0, 1, 50, TOKENS - 1] {
        for kind in KINDS {
            let query = format!("batch_ms=1000&after={}", producer.ids[position]);
            let transcript = view(daemon.public, kind, "s1/m", &query);
            assert_eq!(transcript.text(), tokens(position..TOKENS));
            transcript.expect_finished(&end);
        }
    }
}
