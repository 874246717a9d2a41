//! Several answers in one stream: where one ends and the next begins, which entries belong to none of them, and how
//! `seq` reveals repeated and missing entries. Every viewer gets the same, early or late.

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::producer::{Producer, entry};
use crate::support::redis::RedisServer;
use crate::support::transcript::{Ending, id_order};
use crate::support::viewer::{KINDS, Kind, Viewer, view};

/// Writes these entries and checks that viewers of each kind, those that watch live and those that join afterwards,
/// all get these lines. The last entry must finish the stream.
fn check(entries: &[Value], outline: &[&str]) {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut live = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "follow=1"));
    live[0].expect_open("waiting");
    let (first, others) = entries.split_first().unwrap();
    let first_id = producer.write(first);
    for viewer in &mut live {
        viewer.read_to(&first_id);
    }
    producer.write_each(others);
    // A last entry that differs from all entries under test.
    let last = producer.write(&json!({"type": "start", "generation": "the-mark"}));
    for mut viewer in live {
        viewer.read_to(&last);
        let mut lines = viewer.transcript.outline();
        assert_eq!(lines.pop().as_deref(), Some("start the-mark"));
        assert_eq!(lines, outline, "live: {:#?}", viewer.transcript.frames);
    }
    for kind in KINDS {
        let mut viewer = Viewer::open(daemon.public, kind, "s1/m", "");
        viewer.read_to(&last);
        let mut lines = viewer.transcript.outline();
        assert_eq!(lines.pop().as_deref(), Some("start the-mark"));
        assert_eq!(lines, outline, "from history, {kind:?}: {:#?}", viewer.transcript.frames);
    }
    expect_same_after_resume(&daemon, &producer, &last, outline);
}

/// Checks that a viewer that resumes at any entry gets nothing that was dropped before, and nothing twice: the rest
/// is the end of the whole.
fn expect_same_after_resume(daemon: &Daemon, producer: &Producer, last: &str, outline: &[&str]) {
    let mut whole = outline.join("\n");
    whole.push_str("\nstart the-mark");
    for id in producer.ids.iter().filter(|id| *id != last) {
        let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", &format!("after={id}"));
        viewer.read_to(last);
        let rest = viewer.transcript.outline();
        let first_id = viewer.transcript.frames.iter().find_map(|frame| frame.id()).unwrap();
        assert!(id_order(first_id) > id_order(id), "{first_id} after {id}");
        // A merged delta may be cut anywhere.
        let rest = rest.join("\n").replacen("delta ", "", usize::from(rest[0].starts_with("delta ")));
        assert!(whole.ends_with(&rest), "after {id}: {rest}\nof: {whole}");
    }
}

fn delta(text: &str) -> Value {
    json!({"type": "delta", "text": text})
}

fn end() -> Value {
    json!({"type": "end", "finish_reason": "stop"})
}

fn start(generation: &str) -> Value {
    json!({"type": "start", "generation": generation})
}

fn numbered(seq: usize, text: &str) -> Value {
    entry("delta", seq, json!({"text": text}))
}

#[test]
fn generations_follow_one_another() {
    check(
        &[start("g1"), delta("one"), end(), start("g2"), delta("two"), end(), delta("three"), end()],
        &[
            "start g1",
            "delta one",
            "end stop",
            "start g2",
            "delta two",
            "end stop",
            "delta three",
            "end stop",
        ],
    );
}

#[test]
fn entries_after_the_end_belong_to_it() {
    check(
        &[
            delta("one"),
            end(),
            json!({"type": "heartbeat"}),
            end(),
            json!({"type": "error", "code": "late", "message": "too late"}),
            json!({"type": "delta"}),
            json!({"type": "end", "finish_reason": "length"}),
            delta("two"),
            json!({"type": "error", "code": "broken", "message": "m"}),
            end(),
            json!(["no object"]),
            json!({"type": "mine"}),
            end(),
        ],
        &["delta one", "end stop", "delta two", "error broken", "custom mine", "end stop"],
    );
}

#[test]
fn a_tool_call_begins_a_generation() {
    check(
        &[
            delta("one"),
            end(),
            json!({"type": "tool_call", "id": "c", "name": "f", "arguments": "{}"}),
            end(),
        ],
        &["delta one", "end stop", "tool_call c f \"{}\"", "end stop"],
    );
}

#[test]
fn a_start_that_repeats_its_generation_is_a_retry() {
    check(
        &[start("g1"), delta("one"), start("g1"), delta("two"), end(), start("g1"), start("g2"), end()],
        &["start g1", "delta onetwo", "end stop", "start g2", "end stop"],
    );
}

#[test]
fn a_start_begins_a_generation_even_without_an_end() {
    check(
        &[
            entry("start", 0, json!({"generation": "g1"})),
            numbered(1, "a"),
            numbered(2, "b"),
            entry("start", 0, json!({"generation": "g2"})),
            numbered(1, "c"),
            numbered(2, "d"),
            json!({"type": "start", "seq": 0}),
            numbered(1, "e"),
            json!({"type": "start", "seq": 0}),
            entry("end", 1, json!({"finish_reason": "stop"})),
        ],
        &["start g1", "delta ab", "start g2", "delta cd", "start", "delta e", "start", "end stop"],
    );
}

#[test]
fn a_retry_is_dropped_by_its_number() {
    check(
        &[
            numbered(0, "a"),
            numbered(1, "b"),
            numbered(1, "b"),
            numbered(2, "c"),
            numbered(0, "a"),
            numbered(2, "c"),
            numbered(3, "d"),
            entry("end", 4, json!({"finish_reason": "stop"})),
            entry("end", 4, json!({"finish_reason": "stop"})),
        ],
        &["delta abcd", "end stop"],
    );
}

#[test]
fn a_retry_after_the_end_begins_nothing() {
    check(
        &[
            numbered(0, "a"),
            numbered(1, "b"),
            entry("end", 2, json!({"finish_reason": "stop"})),
            numbered(1, "b"),
            entry("start", 0, json!({"generation": "g2"})),
            numbered(1, "c"),
            entry("end", 2, json!({"finish_reason": "stop"})),
        ],
        &["delta ab", "end stop", "start g2", "delta c", "end stop"],
    );
}

#[test]
fn a_missing_number_is_reported() {
    check(
        &[
            numbered(0, "a"),
            numbered(1, "b"),
            numbered(5, "c"),
            json!({"type": "heartbeat", "seq": 6}),
            numbered(7, "d"),
            numbered(9, "e"),
            entry("end", 10, json!({"finish_reason": "stop"})),
        ],
        &["delta ab", "gap producer 3", "delta cd", "gap producer 1", "delta e", "end stop"],
    );
}

#[test]
fn a_first_number_above_zero_is_reported() {
    check(
        &[
            entry("start", 0, json!({"generation": "g1"})),
            entry("end", 1, json!({"finish_reason": "stop"})),
            entry("start", 2, json!({"generation": "g2"})),
            numbered(3, "a"),
            entry("end", 4, json!({"finish_reason": "stop"})),
        ],
        &["start g1", "end stop", "gap producer 2", "start g2", "delta a", "end stop"],
    );
}

#[test]
fn without_numbers_nothing_is_dropped() {
    check(
        &[
            delta("a"),
            delta("a"),
            numbered(0, "b"),
            delta("a"),
            delta("a"),
            numbered(1, "c"),
            delta("a"),
            end(),
        ],
        &["delta aabaaca", "end stop"],
    );
}

#[test]
fn a_gap_names_the_entries_around_it() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let before = producer.write(&numbered(0, "a"));
    let next = producer.write(&numbered(4, "b"));
    producer.write(&entry("end", 5, json!({"finish_reason": "stop"})));
    for kind in KINDS {
        let expected = json!({"type": "gap", "after": before, "next": next, "lost": 3, "reason": "producer"});
        let all = view(daemon.public, kind, "s1/m", "");
        assert_eq!(all.of_kind("gap").collect::<Vec<_>>(), [&expected], "{kind:?}");
        let rest = view(daemon.public, kind, "s1/m", &format!("after={before}"));
        assert_eq!(rest.outline(), ["gap producer 3", "delta b", "end stop"], "{kind:?}");
        let later = view(daemon.public, kind, "s1/m", &format!("after={next}"));
        assert_eq!(later.outline(), ["end stop"], "{kind:?}");
    }
}

#[test]
fn an_answer_is_over_after_an_end_that_nothing_follows() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    producer.delta("one");
    producer.end();
    producer.start("g2");
    producer.delta("two");
    let second_end = producer.end();
    for kind in KINDS {
        let all = view(daemon.public, kind, "s1/m", "");
        let outline = ["start g1", "delta one", "end stop", "start g2", "delta two", "end stop"];
        assert_eq!(all.outline(), outline, "{kind:?}");
        assert!(all.ending.is_some_and(Ending::is_orderly), "{kind:?} {:?}", all.ending);
        let last = view(daemon.public, kind, "s1/m", "after=last");
        assert_eq!(last.outline(), outline[3..], "{kind:?}");
        last.expect_finished(&second_end);
    }
}

#[test]
fn the_newest_generation_needs_no_start() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let late = [delta("one"), end(), json!({"type": "heartbeat"}), end(), delta("two"), delta(" and more")];
    producer.write_all(&late);
    for kind in KINDS {
        let mut viewer = Viewer::open(daemon.public, kind, "s1/m", "after=last");
        viewer.expect_open("live");
        viewer.read_to(&producer.ids[5]);
        assert_eq!(viewer.transcript.outline(), ["delta two and more"], "{kind:?}");
    }
}

#[test]
fn followers_stay_for_later_generations() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let first_end = producer.end();
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "follow=1"));
    for viewer in &mut viewers {
        viewer.read_to(&first_end);
    }
    producer.start("g2");
    let token_id = producer.delta("two");
    let query = format!("follow=1&after={first_end}");
    let mut late = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", &query));
    for viewer in viewers.iter_mut().chain(&mut late) {
        viewer.read_to(&token_id);
    }
    let second_end = producer.end();
    for viewer in viewers.iter_mut().chain(&mut late) {
        viewer.read_to(&second_end);
        assert_eq!(viewer.transcript.outline().last().unwrap(), "end stop");
    }
    producer.start("g3");
    let last = producer.fail("broken");
    for mut viewer in viewers.into_iter().chain(late) {
        viewer.read_to(&last);
        assert!(viewer.transcript.outline().ends_with(&["start g3".into(), "error broken".into()]));
    }
}
