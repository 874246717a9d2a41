//! A resume in a long history costs only the entries after its position: the entries before it are scanned once for
//! all clients, and checkpoints are kept.

use std::thread;

use serde_json::json;

use crate::support::daemon::Daemon;
use crate::support::patience::wait_until;
use crate::support::redis::{Redis, RedisServer};
use crate::support::viewer::{Kind, Viewer, view};

const ENTRIES: usize = 20_000;
const KEY: &str = "llm:stream:s1:m";

/// Writes a long generation under the ids 1-0, 2-0, …
fn write(redis: &mut Redis, name: &str, text: &str, last: usize) {
    let mut pipe = Vec::with_capacity(1000);
    for number in 1..=last {
        let object = match number {
            1 => json!({"type": "start", "generation": name, "seq": 0}),
            _ if number == last => json!({"type": "end", "finish_reason": name, "seq": number - 1}),
            _ => json!({"type": "delta", "text": format!("{text}{number}."), "seq": number - 1}),
        };
        pipe.push((format!("{number}-0"), object.to_string()));
        if pipe.len() == 1000 || number == last {
            redis.add_all_at(KEY, &std::mem::take(&mut pipe));
        }
    }
}

/// The text after an entry.
fn rest(text: &str, after: usize, last: usize) -> String {
    (after + 1..last).map(|number| format!("{text}{number}.")).collect()
}

/// Resumes after an entry, and checks the text. Returns how many entries the daemon read for that.
fn resume(daemon: &Daemon, (text, last): (&str, usize), after: usize) -> u64 {
    let before = daemon.counter("replay_entries");
    let transcript = view(daemon.public, Kind::WebSocket, "s1/m", &format!("after={after}-0"));
    assert_eq!(transcript.text(), rest(text, after, last), "after {after}");
    transcript.expect_finished(&format!("{last}-0"));
    daemon.counter("replay_entries") - before
}

#[test]
fn a_second_resume_reads_only_later_entries() {
    let redis = RedisServer::start();
    write(&mut redis.connect(), "g", "a", ENTRIES);
    let daemon = Daemon::start(&redis);
    let first = resume(&daemon, ("a", ENTRIES), ENTRIES - 10);
    assert!(first >= ENTRIES as u64, "{first}: nobody was there before");
    for after in [ENTRIES - 5, ENTRIES - 300, ENTRIES - 2] {
        let read = resume(&daemon, ("a", ENTRIES), after);
        assert!(read <= 3000, "{read} entries were read for a resume {} before the end", ENTRIES - after);
    }
    // In the middle: the entries after it have to be read, those before it do not.
    let read = resume(&daemon, ("a", ENTRIES), ENTRIES / 2);
    assert!(read <= (ENTRIES / 2 + 4000) as u64, "{read} entries");
    assert!(daemon.counter("checkpoints_used") >= 4);
    assert!(daemon.gauge("checkpoint_bytes") > 0);
}

#[test]
fn a_stream_begun_anew_is_not_taken_for_the_one_before() {
    let redis = RedisServer::start();
    let mut connection = redis.connect();
    write(&mut connection, "g", "a", ENTRIES);
    let daemon = Daemon::start(&redis);
    resume(&daemon, ("a", ENTRIES), ENTRIES - 10);
    // The same ids with other content; then the same ids, but fewer.
    for (text, last) in [("b", ENTRIES), ("a", ENTRIES - 1000)] {
        connection.run::<()>(&["DEL", KEY]);
        write(&mut connection, text, text, last);
        resume(&daemon, (text, last), last - 10);
        resume(&daemon, (text, last), last / 2);
    }
    // Trimmed: the rest is unchanged.
    connection.run::<()>(&["XTRIM", KEY, "MINID", "9000-0"]);
    resume(&daemon, ("a", ENTRIES - 1000), 9_500);
    resume(&daemon, ("a", ENTRIES - 1000), ENTRIES - 1500);
}

#[test]
fn of_many_viewers_that_join_at_once_one_scans() {
    const VIEWERS: usize = 30;
    let redis = RedisServer::start();
    write(&mut redis.connect(), "g", "a", ENTRIES);
    let daemon = Daemon::start(&redis);
    thread::scope(|scope| {
        for viewer in 0..VIEWERS {
            let daemon = &daemon;
            // So far apart that no read serves two of them.
            let after = ENTRIES - 11 - viewer * 7;
            scope.spawn(move || {
                let transcript = view(daemon.public, Kind::WebSocket, "s1/m", &format!("after={after}-0"));
                assert_eq!(transcript.text(), rest("a", after, ENTRIES));
            });
        }
    });
    let read = daemon.counter("replay_entries");
    assert!(read <= (2 * ENTRIES + VIEWERS * 2500) as u64, "{read} entries were read for {VIEWERS} viewers");
}

/// The viewer whose scan all others wait for leaves: another one continues.
#[test]
fn a_viewer_that_scans_for_others_may_leave() {
    let redis = RedisServer::start();
    write(&mut redis.connect(), "g", "a", ENTRIES);
    let daemon = Daemon::start(&redis);
    for round in 0..3 {
        let leaving = Viewer::open(
            daemon.public,
            Kind::WebSocket,
            "s1/m",
            &format!("after={}-0", ENTRIES - 99 - round),
        );
        wait_until("it to scan", || daemon.counter("replay_entries") > 500);
        drop(leaving);
        resume(&daemon, ("a", ENTRIES), ENTRIES - 10 - round);
    }
}
