//! Entries that were removed before they could be sent are reported, never silently skipped: trimmed, lost when the
//! stream was recreated, or lost by a Redis that came back with an older copy.

use std::thread;

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::patience::wait_until;
use crate::support::producer::{Producer, entry, token, tokens};
use crate::support::redis::{Redis, RedisServer};
use crate::support::transcript::{Frame, Transcript, id_order};
use crate::support::viewer::{KINDS, Kind, Viewer, view};

const KEY: &str = "llm:stream:s1:m";

fn trim(redis: &RedisServer, keep: usize) {
    redis.connect().run::<u64>(&["XTRIM", KEY, "MAXLEN", &keep.to_string()]);
}

fn command(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// XADD of a numbered token, keeping `max_len` entries.
fn add_capped(number: usize, max_len: usize) -> Vec<String> {
    let data = entry("delta", number, json!({"text": token(number)})).to_string();
    command(&["XADD", KEY, "MAXLEN", &max_len.to_string(), "*", "data", &data])
}

/// XADD of a token without a number.
fn add_plain(number: usize) -> Vec<String> {
    let data = json!({"type": "delta", "text": token(number)}).to_string();
    command(&["XADD", KEY, "*", "data", &data])
}

/// Waits until the server assigns ids that are higher than this one.
fn wait_past(redis: &mut Redis, id: &str) {
    wait_until("the next millisecond", || redis.now_ms() > id_order(id).0);
}

/// Checks that a gap lies between these ids, with this reason.
fn expect_gap(gap: &Value, after: &str, next: &str, reason: &str) {
    let named = (&gap["after"], &gap["next"], &gap["reason"]);
    assert_eq!(named, (&json!(after), &json!(next), &json!(reason)), "{gap}");
}

/// Checks that frames and gaps together cover the tokens `0..ids.len()` of a stream, each once and in order, and that
/// each gap counts and names exactly its tokens. Returns how many were missed.
fn expect_accounted(transcript: &Transcript, ids: &[String]) -> usize {
    let position = |id: &Value| ids.iter().position(|known| id == known.as_str());
    let (mut next, mut lost) = (0, 0);
    for frame in &transcript.frames {
        match frame.kind() {
            "delta" => {
                let count = frame.value["count"].as_u64().map_or(1, |count| usize::try_from(count).unwrap());
                assert_eq!(frame.value["text"], tokens(next..next + count), "from {next}: {}", frame.raw);
                next += count;
            }
            "gap" => {
                assert_eq!(frame.value["reason"], "trimmed", "{}", frame.raw);
                let resumes_at = position(&frame.value["next"]).unwrap_or_else(|| panic!("{}", frame.raw));
                if let Some(before) = next.checked_sub(1) {
                    assert_eq!(position(&frame.value["after"]), Some(before), "{}", frame.raw);
                }
                assert_eq!(frame.value["lost"], json!(resumes_at - next), "{}", frame.raw);
                lost += resumes_at - next;
                next = resumes_at;
            }
            "end" => assert_eq!(next, ids.len(), "what was lost is named: {}", frame.raw),
            _ => {}
        }
    }
    lost
}

#[test]
fn a_new_viewer_of_a_trimmed_stream_is_told() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.tokens(0..20);
    let end = producer.end();
    trim(&redis, 6);
    for kind in KINDS {
        let all = view(daemon.public, kind, "s1/m", "");
        assert_eq!(all.outline(), ["gap trimmed 15", &format!("delta {}", tokens(15..20)), "end stop"]);
        expect_gap(all.of_kind("gap").next().unwrap(), "0-0", &producer.ids[15], "trimmed");
        all.expect_finished(&end);
    }
}

#[test]
fn a_resume_whose_entries_were_trimmed_is_told() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.tokens(0..20);
    let end = producer.end();
    trim(&redis, 6);
    for kind in KINDS {
        for position in [0, 3, 13] {
            let after = producer.ids[position].clone();
            let rest = view(daemon.public, kind, "s1/m", &format!("after={after}"));
            assert_eq!(rest.text(), tokens(15..20), "{kind:?} after token {position}");
            let gaps: Vec<&Value> = rest.of_kind("gap").collect();
            assert_eq!(gaps.len(), 1, "{kind:?} after token {position}: {gaps:?}");
            expect_gap(gaps[0], &after, &producer.ids[15], "trimmed");
            // How many of the removed ones came after it is not always known, but never wrong.
            assert!(gaps[0]["lost"].is_null() || gaps[0]["lost"] == 14 - position, "{}", gaps[0]);
            rest.expect_finished(&end);
        }
        for position in [15, 17, 19] {
            let rest = view(daemon.public, kind, "s1/m", &format!("after={}", producer.ids[position]));
            assert_eq!(rest.of_kind("gap").count(), 0, "{kind:?}: nothing was removed after {position}");
            assert_eq!(rest.text(), tokens(position + 1..20), "{kind:?}");
            rest.expect_finished(&end);
        }
    }
}

#[test]
fn entries_trimmed_before_a_live_viewer_got_them_are_a_counted_gap() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut ids = producer.tokens(0..1);
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    for viewer in &mut viewers {
        viewer.read_to(&ids[0]);
    }
    // Nobody can have read entries that one transaction adds and removes.
    let burst: Vec<_> = (1..1000).map(|number| add_capped(number, 10)).collect();
    ids.extend(redis.connect().run_at_once::<Vec<String>>(&burst));
    producer.write(&entry("end", 1000, json!({"finish_reason": "stop"})));
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(expect_accounted(&transcript, &ids), 989, "{:?}", transcript.outline());
        assert_eq!(transcript.of_kind("gap").count(), 1, "{:?}", transcript.outline());
        transcript.expect_finished(&producer.ids[1]);
    }
}

#[test]
fn trimming_at_speed_is_accounted_for() {
    const BURSTS: usize = 40;
    const BURST: usize = 400;
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut ids = producer.tokens(0..1);
    let transcripts = thread::scope(|scope| {
        let mut viewers: Vec<_> =
            (0..6).map(|number| Viewer::open(daemon.public, KINDS[number % 2], "s1/m", "after=0")).collect();
        for viewer in &mut viewers {
            viewer.read_to(&ids[0]);
        }
        let readers: Vec<_> =
            viewers.into_iter().map(|viewer| scope.spawn(move || viewer.read_all())).collect();
        let mut connection = redis.connect();
        for burst in 0..BURSTS {
            let first = 1 + burst * BURST;
            let commands: Vec<_> =
                (first..first + BURST).map(|number| add_capped(number, BURST / 2)).collect();
            ids.extend(connection.run_at_once::<Vec<String>>(&commands));
        }
        producer.write(&entry("end", ids.len(), json!({"finish_reason": "stop"})));
        readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<_>>()
    });
    for transcript in transcripts {
        let lost = expect_accounted(&transcript, &ids);
        assert!(lost >= BURSTS * BURST / 2, "half of each burst cannot be seen, {lost} were told lost");
        transcript.expect_finished(&producer.ids[1]);
    }
}

#[test]
fn trimming_what_everybody_has_is_no_gap() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let newest = producer.tokens(0..10).pop().unwrap();
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    for viewer in &mut viewers {
        viewer.read_to(&newest);
    }
    trim(&redis, 0);
    // A client that resumes while nothing follows its id has missed nothing. (Later that cannot be known.)
    let query = format!("after={newest}");
    let mut resumed = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", &query));
    resumed.iter_mut().for_each(|viewer| viewer.expect_open("live"));
    producer.tokens(10..12);
    let end = producer.end();
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.outline(), [format!("delta {}", tokens(0..12)), "end stop".into()]);
        transcript.expect_finished(&end);
    }
    for viewer in resumed {
        let transcript = viewer.read_all();
        assert_eq!(transcript.outline(), [format!("delta {}", tokens(10..12)), "end stop".into()]);
    }
}

#[test]
fn a_new_viewer_of_an_emptied_stream_is_told_at_once() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.tokens(0..10);
    trim(&redis, 0);
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    for viewer in &mut viewers {
        let gap = viewer.read_until("the gap", |frame| frame.kind() == "gap").value;
        let named = (&gap["after"], &gap["lost"], &gap["reason"]);
        assert_eq!(named, (&json!("0-0"), &json!(10), &json!("trimmed")), "{gap}");
    }
    producer.tokens(10..12);
    let end = producer.end();
    for viewer in viewers {
        let transcript = viewer.read_all();
        let outline = ["gap trimmed 10".into(), format!("delta {}", tokens(10..12)), "end stop".into()];
        assert_eq!(transcript.outline(), outline);
        transcript.expect_finished(&end);
    }
}

#[test]
fn a_stream_begun_anew_under_its_viewers_follows_from_its_beginning() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let before = producer.tokens(0..5).pop().unwrap();
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    for viewer in &mut viewers {
        viewer.read_to(&before);
    }
    let mut connection = redis.connect();
    wait_past(&mut connection, &before);
    let anew = [command(&["DEL", KEY]), add_plain(0), add_plain(1)];
    let (_, first, _): (u64, String, String) = connection.run_at_once(&anew);
    let end = producer.write(&json!({"type": "end", "finish_reason": "stop"}));
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.text(), tokens(0..5) + &tokens(0..2), "{:?}", transcript.outline());
        let gaps: Vec<&Value> = transcript.of_kind("gap").collect();
        assert_eq!(gaps.len(), 1, "{:?}", transcript.outline());
        expect_gap(gaps[0], &before, &first, "recreated");
        transcript.expect_finished(&end);
    }
}

#[test]
fn a_stream_begun_anew_between_two_connections_follows_from_its_beginning() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let old = producer.tokens(0..5);
    let mut connection = redis.connect();
    connection.run::<u64>(&["DEL", KEY]);
    wait_past(&mut connection, &old[4]);
    let first = connection.run::<String>(&add_plain(0).iter().map(String::as_str).collect::<Vec<_>>());
    producer.write(&json!({"type": "delta", "text": token(1)}));
    let end = producer.write(&json!({"type": "end", "finish_reason": "stop"}));
    for kind in KINDS {
        for after in [&old[1], &old[4]] {
            let rest = view(daemon.public, kind, "s1/m", &format!("after={after}"));
            let outline = ["gap recreated null".into(), format!("delta {}", tokens(0..2)), "end stop".into()];
            assert_eq!(rest.outline(), outline, "{kind:?}");
            expect_gap(rest.of_kind("gap").next().unwrap(), after, &first, "recreated");
            rest.expect_finished(&end);
        }
        let new = view(daemon.public, kind, "s1/m", "");
        assert_eq!(new.of_kind("gap").count(), 0, "{kind:?}: a new viewer misses nothing");
    }
}

#[test]
fn a_stream_begun_anew_and_trimmed_is_told_as_trimmed() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let old = producer.tokens(0..5);
    let mut connection = redis.connect();
    connection.run::<u64>(&["DEL", KEY]);
    wait_past(&mut connection, &old[4]);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.tokens(0..5);
    let end = producer.end();
    trim(&redis, 3);
    for kind in KINDS {
        let rest = view(daemon.public, kind, "s1/m", &format!("after={}", old[4]));
        assert_eq!(rest.text(), tokens(3..5), "{kind:?}");
        let gaps: Vec<&Value> = rest.of_kind("gap").collect();
        assert_eq!(gaps.len(), 1, "{kind:?}: {gaps:?}");
        expect_gap(gaps[0], &old[4], &producer.ids[3], "trimmed");
        rest.expect_finished(&end);
    }
}

#[test]
fn a_redis_that_comes_back_with_an_older_end_is_told() {
    let mut redis = RedisServer::start();
    let mut daemon = Daemon::options(&redis).set("redis.backoff_max=50ms").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let plain = |number| json!({"type": "delta", "text": token(number)});
    producer.write_each(&(0..10).map(plain).collect::<Vec<_>>());
    redis.connect().run::<String>(&["SAVE"]);
    producer.write_each(&(10..20).map(plain).collect::<Vec<_>>());
    let (kept, newest) = (producer.ids[9].clone(), producer.ids[19].clone());
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    for viewer in &mut viewers {
        viewer.read_to(&newest);
    }
    redis.kill();
    for viewer in &mut viewers {
        viewer.read_to_status("degraded");
    }
    redis.restart();
    daemon.wait_ready();
    let is_gap = |frame: &Frame| frame.kind() == "gap";
    let expect_failover = |gap: &Frame| {
        assert_eq!(gap.value["reason"], "failover", "{}", gap.raw);
        assert_eq!((gap.value["after"].as_str(), gap.id()), (Some(&*newest), Some(&*kept)), "{}", gap.raw);
    };
    for viewer in &mut viewers {
        expect_failover(&viewer.read_until("failover", is_gap));
    }
    let mut resumed = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", &format!("after={newest}")));
    for viewer in &mut resumed {
        expect_failover(&viewer.read_until("failover", is_gap));
    }
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.write_each(&(20..30).map(plain).collect::<Vec<_>>());
    let end = producer.write(&json!({"type": "end", "finish_reason": "stop"}));
    for (viewers, text) in [(viewers, tokens(0..30)), (resumed, tokens(20..30))] {
        for viewer in viewers {
            let transcript = viewer.read_all();
            assert_eq!(transcript.text(), text);
            assert_eq!(transcript.of_kind("gap").count(), 1, "{:?}", transcript.outline());
            transcript.expect_finished(&end);
        }
    }
    // The id in the gap resumes without another gap.
    let kept = view(daemon.public, Kind::WebSocket, "s1/m", &format!("after={kept}"));
    assert_eq!(kept.outline(), [format!("delta {}", tokens(20..30)), "end stop".into()]);
}

#[test]
fn an_entry_deleted_in_the_middle_is_noticed_by_its_number() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.tokens(0..10);
    let end = producer.end();
    redis.connect().run::<u64>(&["XDEL", KEY, &producer.ids[5]]);
    let (before, next) = (producer.ids[4].clone(), producer.ids[6].clone());
    let gap = json!({"type": "gap", "after": before, "next": next, "lost": 1, "reason": "producer"});
    for kind in KINDS {
        for (after, first) in [("0", 0), (&*producer.ids[2], 3), (&*before, 5)] {
            let rest = view(daemon.public, kind, "s1/m", &format!("after={after}"));
            assert_eq!(rest.text(), tokens(first..5) + &tokens(6..10), "{kind:?} after={after}");
            assert_eq!(rest.of_kind("gap").collect::<Vec<_>>(), [&gap], "{kind:?} after={after}");
            rest.expect_finished(&end);
        }
    }
}

#[test]
fn the_newest_entry_deleted_is_no_older_end() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let newest = producer.tokens(0..10).pop().unwrap();
    let mut live = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    for viewer in &mut live {
        viewer.read_to(&newest);
    }
    redis.connect().run::<u64>(&["XDEL", KEY, &newest]);
    let resumed = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", &format!("after={newest}")));
    let end = producer.write(&json!({"type": "end", "finish_reason": "stop"}));
    for viewer in live.into_iter().chain(resumed) {
        let transcript = viewer.read_all();
        assert_eq!(transcript.of_kind("gap").count(), 0, "{:?}", transcript.outline());
        transcript.expect_finished(&end);
    }
}

#[test]
fn a_viewer_that_joins_during_trimming_misses_nothing_silently() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.tokens(0..100);
    // Whether the viewer gets its history before the trimming or not, nothing is skipped.
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "after=0");
    viewer.expect_open("live");
    trim(&redis, 10);
    producer.end();
    let transcript = viewer.read_all();
    expect_accounted(&transcript, &producer.ids[..100]);
    assert!(transcript.of_kind("gap").count() <= 1, "{:?}", transcript.outline());
}

#[test]
fn a_viewer_beyond_an_older_end_gets_the_end_of_a_finished_stream() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.write_fields("100-1", &[("data", br#"{"type":"delta","text":"x"}"#)]);
    producer.write_fields("100-2", &[("data", br#"{"type":"end","finish_reason":"stop"}"#)]);
    // A late heartbeat: the stream's newest id is beyond its terminal entry.
    for newest in ["100-2", "100-3"] {
        for kind in KINDS {
            let rest = view(daemon.public, kind, "s1/m", "after=500-0");
            assert_eq!(rest.outline(), ["gap failover null", "end stop"], "{kind:?}");
            let gaps: Vec<&Value> = rest.of_kind("gap").collect();
            assert_eq!(gaps.len(), 1, "{kind:?}: {gaps:?}");
            assert_eq!((&gaps[0]["reason"], &gaps[0]["id"]), (&json!("failover"), &json!(newest)));
            rest.expect_finished("100-2");
            // Another generation may follow: a client that stays for it gets what there is.
            let mut stays = Viewer::open(daemon.public, kind, "s1/m", "after=500-0&follow=1");
            assert_eq!(stays.read_until("the gap", |frame| frame.kind() == "gap").id(), Some(newest));
        }
        if newest == "100-2" {
            producer.write_fields("100-3", &[("data", br#"{"type":"heartbeat"}"#)]);
        }
    }
}
