//! The log under floods: a few lines name each problem and its count, however much arrives.

use serde_json::json;

use crate::support::daemon::{Daemon, DaemonOptions};
use crate::support::http;
use crate::support::patience::{is_long, wait_until};
use crate::support::redis::RedisServer;
use crate::support::viewer::{KINDS, view};

/// More lines than a daemon writes about a repeating problem during a test.
const LINES_MAX: usize = 60;

/// A program that gives every answer the same name would lose all but the first, without knowing why.
#[test]
fn an_answer_with_the_id_of_one_that_is_over_is_warned_of() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let answer = [
        json!({"type": "start", "seq": 0, "generation": "g1"}),
        json!({"type": "delta", "seq": 1, "text": "a"}),
        json!({"type": "end", "seq": 2}),
    ];
    let answer: Vec<String> = answer.iter().map(ToString::to_string).collect();
    let mut connection = redis.connect();
    connection.add_all("llm:stream:s:m", &answer);
    assert_eq!(view(daemon.public, KINDS[0], "s/m", "").text(), "a");
    assert!(!daemon.log().contains("begins again"));
    for _ in 0..5 {
        connection.add_all("llm:stream:s:m", &answer);
    }
    for kind in KINDS {
        assert_eq!(view(daemon.public, kind, "s/m", "").text(), "a");
    }
    wait_until("the warning", || daemon.log().contains("begins again"));
    let log = daemon.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("begins again")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("s/m"), "{warnings:?}");
}

#[test]
fn entries_that_cannot_be_read_do_not_fill_the_log() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let count = if is_long() { 200_000 } else { 20_000 };
    let mut objects = vec!["no object".to_owned(); count];
    objects.push(json!({"type": "end"}).to_string());
    redis.connect().add_all("llm:stream:s:m", &objects);
    for _ in 0..2 {
        for kind in KINDS {
            let transcript = view(daemon.public, kind, "s/m", "");
            assert!(transcript.of_kind("skipped").next().is_some());
        }
    }
    wait_until("all entries to be found out", || daemon.counter("entries_undecodable") >= count as u64);
    let log = daemon.log();
    assert!(log.lines().count() <= LINES_MAX, "{} lines", log.lines().count());
}

/// How many lines of the log are warnings or errors.
fn complaints(log: &str) -> usize {
    log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).count()
}

/// A daemon with many connections that all retry quickly.
fn impatient(redis: &RedisServer) -> DaemonOptions {
    // This many connections fit under any limit of open files, so the log has no line about it.
    let options = Daemon::options(redis).set("redis.backoff_max=50ms").set("client.max_connections=64");
    options.set("threads.readers=4").set("threads.replays=4")
}

#[test]
fn an_outage_and_its_end_are_logged_once_for_all_connections() {
    let mut redis = RedisServer::start();
    let mut daemon = impatient(&redis).start();
    redis.kill();
    wait_until("many attempts", || daemon.counter("redis_errors") > 200);
    redis.restart();
    daemon.wait_ready();
    wait_until("the end of the outage to be told", || daemon.log().contains("Redis works again"));
    let log = daemon.log();
    assert_eq!(log.matches("Redis works again").count(), 1, "{log}");
    // A connection that is cut while it is being opened is reported differently from one that is refused.
    assert!((1..=2).contains(&log.matches("Redis cannot be reached").count()), "{log}");
    assert!(log.contains("nothing listens at that address"), "the fix is named: {log}");
    assert!(complaints(&log) <= 5, "{log}");
}

#[test]
fn refused_credentials_are_no_lost_connection_and_the_fix_is_named() {
    let redis = RedisServer::start();
    let mut operator = redis.connect();
    operator.run::<()>(&["CONFIG", "SET", "requirepass", "secret"]);
    let mut daemon = impatient(&redis).start_alive();
    wait_until("many attempts", || daemon.counter("redis_errors") > 100);
    let log = daemon.log();
    assert_eq!(complaints(&log), 1, "{log}");
    for words in ["Redis refuses the credentials", "redis.password_file", "NOAUTH"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert!(!log.contains("lost") && !log.contains("broke"), "{log}");
    let not_ready = http::get(daemon.admin, "/readyz").text();
    assert!(not_ready.contains("Redis refuses the credentials"), "{not_ready}");
    operator.run::<()>(&["CONFIG", "SET", "requirepass", ""]);
    daemon.wait_ready();
}

#[test]
fn a_redis_that_refuses_writes_is_not_called_unreachable() {
    let redis = RedisServer::start();
    let mut daemon = impatient(&redis).start();
    let refusals = [
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "a read-only replica"),
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "its memory is full"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", "too few replicas"),
    ];
    for (refuse, allow, words) in refusals {
        redis.connect().run::<()>(&refuse.split(' ').collect::<Vec<_>>());
        wait_until(words, || http::get(daemon.admin, "/readyz").text().contains(words));
        redis.connect().run::<()>(&allow.split(' ').collect::<Vec<_>>());
        daemon.wait_ready();
    }
    let log = daemon.log();
    assert!(!log.contains("cannot be reached") && complaints(&log) <= 10, "{log}");
}
