//! An answer can be resumed at every entry, finished or not, over WebSocket and over SSE, with exactly the rest.

use serde_json::json;

use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::producer::{Producer, token, tokens};
use crate::support::redis::RedisServer;
use crate::support::transcript::{Ending, Transcript};
use crate::support::viewer::{KINDS, Kind, Viewer, target, view};

const TOKENS: usize = 16;

/// Writes `start`, tokens and `end`; returns the ids, in order.
fn write_answer(producer: &mut Producer) -> Vec<String> {
    producer.start("g1");
    producer.tokens(0..TOKENS);
    producer.end();
    producer.ids.clone()
}

/// Checks that exactly the entries after `position` of a finished answer arrived.
fn expect_rest(transcript: &Transcript, ids: &[String], position: usize) {
    assert_eq!(transcript.open()["after"], ids[position].as_str());
    // Entry 0 is `start`, entry n is token n - 1, and the last one is `end`.
    assert_eq!(transcript.text(), tokens(position..TOKENS), "after {}", ids[position]);
    assert_eq!(transcript.entries(), ids.len() - position - 1, "after {}", ids[position]);
    assert!(transcript.frames[1..].iter().all(|frame| ids.iter().any(|id| frame.id() == Some(id))));
    transcript.expect_finished(ids.last().unwrap());
}

#[test]
fn a_finished_answer_resumes_at_every_entry() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let ids = write_answer(&mut producer);
    for kind in KINDS {
        for position in 0..ids.len() - 1 {
            let query = format!("after={}", ids[position]);
            expect_rest(&view(daemon.public, kind, "s1/m", &query), &ids, position);
        }
        for query in ["", "after=0", "after=0-0", "after=last", "after=1", "surprise=1&after=0"] {
            let all = view(daemon.public, kind, "s1/m", query);
            assert_eq!(all.text(), tokens(0..TOKENS), "{kind:?} {query}");
            assert_eq!(all.entries(), ids.len(), "{kind:?} {query}");
            all.expect_finished(ids.last().unwrap());
        }
        assert_eq!(view(daemon.public, kind, "s1/m", "").open()["after"], "0-0");
    }
}

#[test]
fn a_finished_answer_at_its_end_says_so() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let terminal = write_answer(&mut producer).last().unwrap().clone();
    // A late heartbeat: the stream's newest id is beyond its terminal entry.
    let newest = producer.write(&json!({"type": "heartbeat"}));
    for after in [terminal.as_str(), &newest, "$"] {
        let query = format!("after={after}");
        let nothing =
            http::request(daemon.public, "GET", &target("s1/m", &query), &[("Accept", "text/event-stream")]);
        assert_eq!((nothing.status, nothing.text().as_str()), (204, ""), "after={after}");

        let again = view(daemon.public, Kind::WebSocket, "s1/m", &query);
        assert_eq!(again.open()["state"], "ended", "after={after}");
        assert_eq!(again.outline(), ["end stop"], "after={after}");
        again.expect_finished(&terminal);
    }
}

#[test]
fn a_failed_answer_at_its_end_says_so() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("half of ");
    let terminal = producer.fail("upstream_timeout");
    let query = format!("after={terminal}");
    assert_eq!(view(daemon.public, Kind::Sse, "s1/m", &query).ending, Some(Ending::Status(204)));
    let again = view(daemon.public, Kind::WebSocket, "s1/m", &query);
    assert_eq!(again.open()["state"], "failed");
    assert_eq!(again.frames[1].value["code"], "upstream_timeout");
    assert_eq!(again.frames[1].value["message"], "it failed");
    again.expect_finished(&terminal);
}

#[test]
fn a_live_answer_resumes_at_every_entry() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    producer.tokens(0..TOKENS / 2);
    let written = producer.ids.clone();

    let mut viewers = Vec::new();
    for kind in KINDS {
        for (position, id) in written.iter().enumerate() {
            let mut viewer = Viewer::open(daemon.public, kind, "s1/m", &format!("after={id}"));
            viewer.expect_open("live");
            viewers.push((position, viewer));
        }
    }
    // Viewers that lack entries get them before the rest is written; the others may be live by then or not.
    for (position, viewer) in &mut viewers {
        if *position + 1 < written.len() {
            viewer.read_to(written.last().unwrap());
        }
    }
    producer.tokens(TOKENS / 2..TOKENS);
    producer.end();
    for (position, viewer) in viewers {
        expect_rest(&viewer.read_all(), &producer.ids, position);
    }
}

/// Viewers with different last ids, and text of several kinds: a later viewer is served from the first one's read.
#[test]
fn a_crowd_that_comes_back_at_once_shares_one_read() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let piece = |n: usize| match n {
        7..10 => json!({"type": "tool_call", "id": "c", "name": "f", "arguments": token(n), "seq": n}),
        10 => json!({"type": "delta", "channel": "reasoning", "text": token(n), "seq": n}),
        12 => json!({"type": "image", "seq": n}),
        // Two numbers are missing before it.
        13.. => json!({"type": "delta", "text": token(n), "seq": n + 2}),
        _ => json!({"type": "delta", "text": token(n), "seq": n}),
    };
    let ids: Vec<String> = (0..TOKENS).map(|n| format!("{}-0", 100_000 + 10 * n)).collect();
    for (n, id) in ids.iter().enumerate() {
        producer.write_fields(id, &[("data", piece(n).to_string().as_bytes())]);
    }
    redis.suspend();
    // The viewer with the last id first: a read for it alone serves none of the others.
    let mut viewers: Vec<_> = (0..TOKENS - 1)
        .rev()
        .map(|n| (n, Viewer::open(daemon.public, Kind::WebSocket, "s1/m", &format!("after={}", ids[n]))))
        .collect();
    redis.resume();
    for (n, viewer) in &mut viewers {
        viewer.expect_open("live");
        viewer.read_to(ids.last().unwrap());
        let (n, got) = (*n, &viewer.transcript);
        assert_eq!(got.open()["after"], ids[n].as_str());
        let of_text = |n: &usize| !matches!(n, 7..10 | 10 | 12);
        assert_eq!(got.text(), (n + 1..TOKENS).filter(of_text).map(token).collect::<String>(), "after {n}");
        assert_eq!(got.text_of("reasoning"), if n < 10 { token(10) } else { String::new() });
        let arguments: String =
            got.of_kind("tool_call").filter_map(|frame| frame["arguments"].as_str()).collect();
        assert_eq!(arguments, (n.max(6) + 1..10).map(token).collect::<String>(), "after {n}");
        assert_eq!(got.of_kind("gap").count(), usize::from(n < 13), "after {n}");
        assert_eq!(got.entries(), TOKENS - 1 - n, "after {n}");
    }
    assert_eq!(daemon.counter("replay_entries"), TOKENS as u64, "one read for all");
}

#[test]
fn only_what_comes_next_is_asked_for_with_a_dollar() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    producer.tokens(0..TOKENS / 2);
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "after=$"));
    for viewer in &mut viewers {
        viewer.expect_open("live");
    }
    let position = producer.ids.len() - 1;
    producer.tokens(TOKENS / 2..TOKENS);
    producer.end();
    for viewer in viewers {
        expect_rest(&viewer.read_all(), &producer.ids, position);
    }
}

#[test]
fn an_id_may_be_milliseconds_alone_and_need_not_exist() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    for (number, id) in ["1000-0", "1000-1", "1000-7", "2000-0", "2000-1"].iter().enumerate() {
        let data = json!({"type": "delta", "text": token(number)}).to_string();
        producer.write_fields(id, &[("data", data.as_bytes())]);
    }
    producer.write_fields("3000-0", &[("data", br#"{"type":"end","finish_reason":"stop"}"#)]);
    for (after, resolved, first) in [
        ("999", "999-0", 0),
        ("1000", "1000-0", 1),
        ("1000-0", "1000-0", 1),
        ("1000-3", "1000-3", 2),
        ("1500", "1500-0", 3),
        ("2000", "2000-0", 4),
        ("2000-1", "2000-1", 5),
    ] {
        for kind in KINDS {
            let rest = view(daemon.public, kind, "s1/m", &format!("after={after}"));
            assert_eq!(rest.open()["after"], resolved, "{kind:?}");
            assert_eq!(rest.text(), tokens(first..5), "{kind:?} after={after}");
            assert_eq!(rest.entries(), 6 - first, "{kind:?} after={after}");
            rest.expect_finished("3000-0");
        }
    }
}

#[test]
fn the_last_event_id_of_a_browser_wins() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let ids = write_answer(&mut producer);
    for query in ["", "after=0", "after=last", &format!("after={}", ids[2])] {
        let rest = Viewer::reconnect_sse(daemon.public, "s1/m", query, &ids[9]).read_all();
        expect_rest(&rest, &ids, 9);
    }
    let finished = Viewer::reconnect_sse(daemon.public, "s1/m", "after=0", ids.last().unwrap()).read_all();
    assert_eq!(finished.ending, Some(Ending::Status(204)));
}

#[test]
fn resuming_over_and_over_adds_up_to_the_whole() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let ids = write_answer(&mut producer);
    for kind in KINDS {
        let (mut text, mut after) = (String::new(), "0".to_owned());
        // One frame at a time: each viewer resumes with the id of the previous frame.
        while after != *ids.last().unwrap() {
            let mut viewer = Viewer::open(daemon.public, kind, "s1/m", &format!("after={after}"));
            let frame = viewer.read_until("a frame", |frame| frame.id().is_some());
            text.push_str(frame.value["text"].as_str().unwrap_or_default());
            after = frame.id().unwrap().to_owned();
        }
        assert_eq!(text, tokens(0..TOKENS), "{kind:?}");
    }
}
