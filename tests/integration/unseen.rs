//! No entry that a live viewer lacks is skipped, even if another program trims the stream or uses the daemon's
//! consumer group: entries that Redis still has are sent, and the missing ones are counted exactly.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, DaemonOptions};
use crate::support::patience::wait_until;
use crate::support::producer::{Producer, entry, token, tokens};
use crate::support::redis::RedisServer;
use crate::support::viewer::{KINDS, Kind, Viewer};

const GROUP: &str = "llm:consumer:llm-bridge:i1";
const KEY: &str = "llm:stream:s1:m";
/// More streams than a reader blocks on, so that Redis pushes which of them have news.
const MANY: usize = 20;

fn options(redis: &RedisServer) -> DaemonOptions {
    Daemon::options(redis).set("service.instance=i1").set("threads.readers=1")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// XADD of a token, with a number or without.
fn add(number: usize, numbered: bool) -> Vec<String> {
    let text = json!({"text": token(number)});
    let data =
        if numbered { entry("delta", number, text) } else { json!({"type": "delta", "text": token(number)}) };
    words(&["XADD", KEY, "*", "data", &data.to_string()])
}

fn trim(keep: usize) -> Vec<String> {
    words(&["XTRIM", KEY, "MAXLEN", &keep.to_string()])
}

/// A daemon with live viewers of `s1/m`, which has three tokens.
struct Live {
    redis: RedisServer,
    daemon: Daemon,
    viewers: Vec<Viewer>,
    /// Viewers of other streams, which have one token each.
    _beside: Vec<Viewer>,
}

impl Live {
    fn start(beside: usize, numbered: bool) -> Self {
        Self::start_with(beside, numbered, "delivery.read_count=256")
    }

    fn start_with(beside: usize, numbered: bool, setting: &str) -> Self {
        let redis = RedisServer::start();
        let daemon = options(&redis).set(setting).start();
        let mut others = Vec::new();
        for number in 0..beside {
            let mut producer = Producer::new(&redis, &format!("other{number}"), "m");
            let id = producer.tokens(0..1).pop().unwrap();
            let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, &producer.stream, "");
            viewer.read_to(&id);
            others.push(viewer);
        }
        let commands: Vec<_> = (0..3).map(|number| add(number, numbered)).collect();
        let newest = redis.connect().run_at_once::<Vec<String>>(&commands).pop().unwrap();
        let mut viewers: Vec<_> =
            KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "follow=1")).into_iter().collect();
        viewers.iter_mut().for_each(|viewer| viewer.read_to(&newest));
        wait_until("the group", || redis.connect().groups(KEY) == [GROUP]);
        Self { redis, daemon, viewers, _beside: others }
    }

    /// Writes the tokens at once, with `then` in the same transaction.
    fn burst(&self, numbers: std::ops::Range<usize>, numbered: bool, then: Vec<Vec<String>>) {
        let mut commands: Vec<_> = numbers.map(|number| add(number, numbered)).collect();
        commands.extend(then);
        self.redis.connect().run_at_once::<Vec<redis::Value>>(&commands);
    }

    /// Reads until each viewer has this token. Returns the frames of each since the last call, as lines.
    fn read_token(&mut self, number: usize) -> Vec<Vec<String>> {
        self.read_until(&token(number), |frame| {
            frame["text"].as_str().is_some_and(|text| text.ends_with(&token(number)))
        })
    }

    fn read_until(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Vec<Vec<String>> {
        let read = |viewer: &mut Viewer| {
            viewer.read_until(what, |frame| is_it(&frame.value));
            let outline = viewer.transcript.outline();
            viewer.transcript.frames.truncate(1);
            outline
        };
        self.viewers.iter_mut().map(read).collect()
    }
}

#[test]
fn a_stream_trimmed_to_one_unread_entry_has_a_counted_gap() {
    for (beside, numbered) in [(0, false), (0, true), (MANY, false), (MANY, true)] {
        let mut live = Live::start(beside, numbered);
        live.forget();
        // Immediately after a read, again and again.
        let mut next = 3;
        for unseen in [299, 1, 17] {
            live.burst(next..next + 1, numbered, Vec::new());
            live.read_token(next);
            live.burst(next + 1..next + 2 + unseen, numbered, vec![trim(1)]);
            next += 1 + unseen;
            let expected = [format!("gap trimmed {unseen}"), format!("delta {}", token(next))];
            for outline in live.read_token(next) {
                assert_eq!(outline, expected, "{beside} streams beside, numbered: {numbered}");
            }
            next += 1;
        }
    }
}

#[test]
fn reported_entries_are_not_counted_again() {
    for (beside, numbered) in [(0, false), (0, true), (MANY, true)] {
        let mut live = Live::start(beside, numbered);
        live.forget();
        live.burst(3..5, numbered, vec![trim(1)]);
        live.burst(5..36, numbered, vec![trim(3)]);
        let mut lost = 0;
        for outline in live.read_token(35) {
            let gaps: Vec<u64> = outline
                .iter()
                .filter_map(|line| line.strip_prefix("gap "))
                .map(|gap| gap.strip_prefix("trimmed ").unwrap().parse().unwrap())
                .collect();
            lost = gaps.iter().sum();
            let delivered: usize =
                outline.iter().filter_map(|line| line.strip_prefix("delta ")).map(count_tokens).sum();
            assert_eq!(delivered as u64 + lost, 33, "{outline:?}");
        }
        assert!((29..=30).contains(&lost), "{lost}");
    }
}

fn count_tokens(text: &str) -> usize {
    text.split_whitespace().count()
}

#[test]
fn a_stream_trimmed_to_nothing_has_an_immediate_gap() {
    for beside in [0, MANY] {
        let mut live = Live::start(beside, false);
        live.forget();
        live.burst(3..13, false, vec![trim(0)]);
        for outline in live.read_until("the gap", |frame| frame["type"] == "gap") {
            assert_eq!(outline, ["gap trimmed 10"], "{beside} streams beside");
        }
        live.burst(13..14, false, Vec::new());
        for outline in live.read_token(13) {
            assert_eq!(outline, [format!("delta {}", token(13))]);
        }
    }
}

#[test]
fn entries_that_another_client_takes_from_the_group_are_delivered() {
    let steal = || words(&["XREADGROUP", "GROUP", GROUP, "thief", "COUNT", "100", "STREAMS", KEY, ">"]);
    let meddling: [(&str, Vec<Vec<String>>); 5] = [
        ("a second consumer", vec![steal()]),
        ("one that trims as much as it takes", vec![steal(), trim(3)]),
        ("SETID", vec![words(&["XGROUP", "SETID", KEY, GROUP, "$"])]),
        ("SETID back", vec![words(&["XGROUP", "SETID", KEY, GROUP, "0"])]),
        (
            "a group made anew",
            vec![words(&["XGROUP", "DESTROY", KEY, GROUP]), words(&["XGROUP", "CREATE", KEY, GROUP, "$"])],
        ),
    ];
    for beside in [0, MANY] {
        for (what, commands) in &meddling {
            let mut live = Live::start(beside, false);
            live.forget();
            let mut next = 3;
            for _ in 0..5 {
                live.burst(next..next + 3, false, commands.clone());
                next += 3;
                for outline in live.read_token(next - 1) {
                    let expected = [format!("delta {}", tokens(next - 3..next))];
                    assert_eq!(outline, expected, "{what}, {beside} streams beside");
                }
            }
        }
    }
}

#[test]
fn a_stream_begun_anew_with_its_group_is_told() {
    for beside in [0, MANY] {
        for read_count in [3, 256] {
            let mut live = Live::start_with(beside, false, &format!("delivery.read_count={read_count}"));
            live.forget();
            let mut connection = live.redis.connect();
            let before = connection.now_ms();
            wait_until("the next millisecond", || connection.now_ms() > before);
            // Nobody can have noticed that the key was gone, and the group exists.
            let mut commands = vec![words(&["DEL", KEY])];
            commands.extend((3..13).map(|number| add(number, false)));
            commands.push(words(&["XGROUP", "CREATE", KEY, GROUP, "0"]));
            connection.run_at_once::<Vec<redis::Value>>(&commands);
            for outline in live.read_token(12) {
                let expected = ["gap recreated null".into(), format!("delta {}", tokens(3..13))];
                assert_eq!(outline, expected, "{beside} streams beside, {read_count} at once");
            }
        }
    }
}

#[test]
fn a_thief_at_full_speed_takes_nothing_from_the_viewers() {
    for beside in [0, MANY] {
        let live = Live::start(beside, true);
        let is_over = AtomicBool::new(false);
        let mut connection = live.redis.connect();
        thread::scope(|scope| {
            let thief = scope.spawn(|| {
                let mut connection = live.redis.connect();
                let steal = ["XREADGROUP", "GROUP", GROUP, "thief", "BLOCK", "5", "STREAMS", KEY, ">"];
                while !is_over.load(Ordering::Relaxed) {
                    // The group is gone for a moment when its stream is read from history.
                    let _ = connection.try_run::<redis::Value>(&steal);
                }
            });
            for number in 3..400 {
                connection.run_at_once::<Vec<String>>(&[add(number, true)]);
            }
            is_over.store(true, Ordering::Relaxed);
            thief.join().unwrap();
        });
        let end = entry("end", 400, json!({"finish_reason": "stop"})).to_string();
        let id = connection.run::<String>(&["XADD", KEY, "*", "data", &end]);
        for mut viewer in live.viewers {
            viewer.read_to(&id);
            assert_eq!(viewer.transcript.of_kind("gap").count(), 0, "{:?}", viewer.transcript.outline());
            assert_eq!(viewer.transcript.text(), tokens(0..400));
        }
    }
}

#[test]
fn a_wake_key_of_another_type_disturbs_nobody() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    let mut connection = redis.connect();
    let mut first = Producer::new(&redis, "s0", "m");
    first.tokens(0..1);
    let viewer = Viewer::open(daemon.public, Kind::WebSocket, "s0/m", "");
    wait_until("the group", || connection.groups(&first.key) == [GROUP]);
    // Only now: a former instance's leftovers are removed at the start.
    let wake = "llm:wake:llm-bridge:i1:0";
    connection.run_at_once::<redis::Value>(&[words(&["DEL", wake]), words(&["SET", wake, "something"])]);
    let mut viewers = vec![(first, viewer)];
    for session in ["s1", "s2", "s3"] {
        let mut producer = Producer::new(&redis, session, "m");
        let id = producer.tokens(0..1).pop().unwrap();
        let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, &producer.stream, "");
        viewer.read_to(&id);
        viewers.push((producer, viewer));
    }
    for number in 1..30 {
        for (producer, viewer) in &mut viewers {
            let id = producer.tokens(number..number + 1).pop().unwrap();
            viewer.read_to(&id);
        }
    }
    assert_eq!(viewers.iter().filter(|(_, viewer)| viewer.transcript.text() == tokens(0..30)).count(), 4);
    wait_until("the key to be named", || daemon.log().contains(wake));
    let log = daemon.log();
    assert_eq!(daemon.counter("redis_errors"), 0, "no connection is given up for it:\n{log}");
    assert_eq!(daemon.counter("streams_broken"), 0, "{log}");
}

#[test]
fn a_stream_key_of_another_type_disturbs_no_other_stream() {
    for beside in [0, MANY] {
        let mut live = Live::start(beside, false);
        live.forget();
        let mut producer = Producer::new(&live.redis, "s2", "m");
        let id = producer.tokens(0..1).pop().unwrap();
        let mut other = Viewer::open(live.daemon.public, Kind::WebSocket, "s2/m", "");
        other.read_to(&id);
        let connects = live.daemon.counter("redis_connects");
        let mut connection = live.redis.connect();
        connection.run_at_once::<redis::Value>(&[words(&["DEL", KEY]), words(&["SET", KEY, "text"])]);
        for number in 1..30 {
            let id = producer.tokens(number..number + 1).pop().unwrap();
            other.read_to(&id);
        }
        assert_eq!(other.transcript.text(), tokens(0..30));
        wait_until("the key to be named", || live.daemon.log().contains(KEY));
        let now = live.daemon.counter("redis_connects");
        assert_eq!(now, connects, "no connection is given up for it:\n{}", live.daemon.log());
    }
}

impl Live {
    /// Drops what was read, except for its beginning.
    fn forget(&mut self) {
        self.viewers.iter_mut().for_each(|viewer| viewer.transcript.frames.truncate(1));
    }
}
