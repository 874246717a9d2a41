//! Workers that share the requests in Redis: whichever workers, servers or Redis fail, every request that names a
//! stream gets one terminal entry and is acknowledged.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use crate::support::command::{Background, llm_bridge};
use crate::support::daemon::Daemon;
use crate::support::documents::{PRODUCERS, documented_rights};
use crate::support::http;
use crate::support::patience::{wait_for, wait_until};
use crate::support::redis::RedisServer;
use crate::support::upstream::{FakeUpstream, Script, Step, chat, event, finish, head, refusal, token};
use crate::support::viewer::{Kind, Viewer};

const REQUESTS: &str = "llm:requests";
const GROUP: &str = "llm:relay:llm-bridge";
const BODY: &str = r#"{"messages":[]}"#;

/// A worker whose claims can be taken over after a second.
fn relay(redis: &RedisServer, upstream: &FakeUpstream, more: &[&str]) -> Background {
    let (setting, url) = (format!("redis.url={}", redis.url()), upstream.chat_url());
    let arguments = ["relay", "--url", &url, "--set", &setting];
    let is_given = more.contains(&"--takeover-after");
    let takeover: &[&str] = if is_given { &[] } else { &["--takeover-after", "1s"] };
    Background::start(llm_bridge(&[&arguments, takeover, more].concat()))
}

/// Requests an answer in `{session}/m`; returns the request's id.
fn ask(redis: &RedisServer, session: &str, body: &str) -> String {
    redis.connect().run(&["XADD", REQUESTS, "*", "session", session, "model", "m", "request", body])
}

fn key(session: &str) -> String {
    format!("llm:stream:{session}:m")
}

/// The entries of `{session}/m`: `start ID`, `end REASON`, `error CODE`, `heartbeat`, or a raw payload.
fn entries(redis: &RedisServer, session: &str) -> Vec<String> {
    let line = |(_, fields): (String, HashMap<String, Vec<u8>>)| {
        let (form, payload) = fields.into_iter().next().unwrap();
        let payload = String::from_utf8(payload).unwrap();
        if form != "data" {
            return payload;
        }
        let object: Value = serde_json::from_str(&payload).unwrap();
        let detail = ["code", "finish_reason", "generation"].iter().find_map(|name| object[*name].as_str());
        format!("{} {}", object["type"].as_str().unwrap(), detail.unwrap_or_default()).trim_end().to_owned()
    };
    // A server that was restarted replies LOADING for a while, or breaks off.
    let range = ["XRANGE", &key(session), "-", "+"];
    let entries: Vec<(String, HashMap<String, Vec<u8>>)> =
        wait_for("the entries", || redis.connect().try_run(&range).ok());
    entries.into_iter().map(line).collect()
}

fn terminals(redis: &RedisServer, session: &str) -> Vec<String> {
    let is_terminal =
        |entry: &String| entry == "[DONE]" || entry.starts_with("end ") || entry.starts_with("error ");
    entries(redis, session).into_iter().filter(is_terminal).collect()
}

/// The payloads of a whole chat answer.
fn whole(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| token(text)).chain([finish(), "[DONE]".into()]).collect()
}

/// Waits until this many requests were read and none of them is pending.
fn wait_settled(redis: &RedisServer, count: usize) {
    wait_until("all requests to be acknowledged", || {
        let mut client = redis.connect();
        let groups: Vec<HashMap<String, redis::Value>> =
            client.try_run(&["XINFO", "GROUPS", REQUESTS]).unwrap_or_default();
        let Some(group) = groups.first() else { return false };
        // Not `entries-read`: Redis does not always know that.
        let delivered: String = redis::from_redis_value_ref(&group["last-delivered-id"]).unwrap();
        let pending: usize = redis::from_redis_value_ref(&group["pending"]).unwrap();
        let requests = client.entries(REQUESTS);
        requests.len() == count && requests.last().is_some_and(|(id, _)| *id == delivered) && pending == 0
    });
}

/// A token, then nothing more.
fn partial() -> Script {
    vec![head(), event(&token("a")), Step::Hang]
}

#[test]
fn requests_are_answered_up_to_the_configured_concurrency() {
    let redis = RedisServer::start();
    let gated = vec![head(), event(&token("a")), Step::Gate, event(&finish()), event("[DONE]")];
    let upstream = FakeUpstream::start([gated]);
    let worker = relay(&redis, &upstream, &["--concurrency", "2"]);
    let ids = ["s1", "s2", "s3"].map(|session| ask(&redis, session, BODY));
    wait_until("two answers to have begun", || upstream.seen().len() == 2);
    wait_until("their tokens", || ["s1", "s2"].iter().all(|session| entries(&redis, session).len() == 2));
    assert!(entries(&redis, "s3").is_empty());
    for _ in 0..3 {
        upstream.open_gate();
    }
    wait_settled(&redis, 3);
    for (session, id) in ["s1", "s2", "s3"].iter().zip(ids) {
        let expected = [vec![format!("start relay-{id}")], whole(&["a"])].concat();
        assert_eq!(entries(&redis, session), expected);
    }
    assert!(upstream.seen().iter().all(|seen| seen.body["model"] == "m" && seen.body["stream"] == true));
    // When stopped in order it leaves nothing behind.
    worker.signal(libc::SIGTERM);
    let outcome = worker.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(redis.connect().keys("llm:running:*").is_empty());
    let consumers: Vec<redis::Value> = redis.connect().run(&["XINFO", "CONSUMERS", REQUESTS, GROUP]);
    assert!(consumers.is_empty(), "{consumers:?}");
}

#[test]
fn a_worker_reads_no_more_requests_than_it_has_room_for() {
    let redis = RedisServer::start();
    let upstream = FakeUpstream::start([partial()]);
    let _worker = relay(&redis, &upstream, &["--concurrency", "2", "--takeover-after", "1h"]);
    for _ in 0..12 {
        ask(&redis, "s", BODY);
    }
    wait_until("the first answer to have begun", || upstream.seen().len() == 1);
    // One is being answered; four times two wait for its stream.
    wait_until("all that there is room for", || redis.connect().pending(REQUESTS, GROUP) == 9);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(redis.connect().pending(REQUESTS, GROUP), 9);
}

#[test]
fn answers_in_one_stream_come_one_after_another() {
    let redis = RedisServer::start();
    let slow =
        vec![head(), event(&token("a")), Step::Gate, event(&token("b")), event(&finish()), event("[DONE]")];
    let upstream = FakeUpstream::start([slow]);
    let _workers = [relay(&redis, &upstream, &[]), relay(&redis, &upstream, &[])];
    for number in 0..3 {
        let generation = format!("g{number}");
        redis.connect().run::<String>(&[
            "XADD",
            REQUESTS,
            "*",
            "session",
            "s",
            "model",
            "m",
            "request",
            BODY,
            "id",
            &generation,
        ]);
        if number == 0 {
            wait_until("the first token", || entries(&redis, "s").len() == 2);
        }
    }
    for _ in 0..3 {
        upstream.open_gate();
    }
    wait_settled(&redis, 3);
    let seen = entries(&redis, "s");
    let answers: Vec<&[String]> = seen.chunks(5).collect();
    let mut generations: Vec<&str> = answers.iter().map(|answer| answer[0].as_str()).collect();
    assert!(answers.iter().all(|answer| answer[1..] == whole(&["a", "b"])), "{seen:?}");
    generations.sort_unstable();
    assert_eq!(generations, ["start g0", "start g1", "start g2"]);
}

#[test]
fn unanswerable_requests_are_reported_in_the_stream_or_as_dead_letters() {
    let redis = RedisServer::start();
    let upstream = FakeUpstream::start([chat(&["a"])]);
    let _worker = relay(&redis, &upstream, &[]);
    ask(&redis, "s1", "not JSON");
    redis.connect().run::<String>(&["XADD", REQUESTS, "*", "session", "s2", "model", "m"]);
    let nameless: String = redis.connect().run(&["XADD", REQUESTS, "*", "session", "a b", "model", "m"]);
    let long = "g".repeat(1025);
    redis.connect().run::<String>(&["XADD", REQUESTS, "*", "session", "s4", "model", "m", "id", &long]);
    let longest = "g".repeat(1024);
    redis.connect().run::<String>(&["XADD", REQUESTS, "*", "session", "s5", "model", "m", "id", &longest]);
    wait_settled(&redis, 5);
    for session in ["s1", "s2", "s5"] {
        assert_eq!(terminals(&redis, session), ["error bad_request"]);
    }
    let error_entry = redis.connect().entries(&key("s2")).pop().unwrap().1;
    let error_entry = String::from_utf8_lossy(&error_entry["data"]).into_owned();
    assert!(error_entry.contains(r#""message":"the field `request` is missing""#), "{error_entry}");
    let letters = redis.connect().entries("llm:dlq:llm-bridge");
    assert_eq!(letters.len(), 2);
    assert_eq!(&letters[1].1["stream"][..], b"s4/m");
    assert_eq!(letters[0].1["id"], nameless.as_bytes());
    assert_eq!(
        (&letters[0].1["stream"][..], &letters[0].1["processor"][..]),
        (&b"llm:requests"[..], &b"relay"[..])
    );
    let message = String::from_utf8_lossy(&letters[0].1["message"]);
    assert!(
        message.starts_with("a session id is") && message.ends_with("; fields: session, model"),
        "{message}"
    );
    assert_eq!(upstream.seen().len(), 0);
    // A stream that accepts no entries.
    redis.connect().run::<()>(&["SET", "llm:stream:s3:m", "no stream"]);
    ask(&redis, "s3", BODY);
    wait_settled(&redis, 6);
    let letter = &redis.connect().entries("llm:dlq:llm-bridge")[2].1;
    assert_eq!((&letter["stream"][..], &letter["reason"][..]), (&b"s3/m"[..], &b"unwritable"[..]));
    assert!(!letter["message"].is_empty());
}

/// A request that is too large becomes a dead letter, and the requests after it are answered.
#[test]
fn requests_that_are_too_large_are_set_aside_and_cost_no_memory() {
    let redis = RedisServer::start();
    let upstream = FakeUpstream::start([chat(&["a"])]);
    let huge = "x".repeat(40 << 20);
    let ids: Vec<String> = (0..3).map(|_| ask(&redis, "s1", &huge)).collect();
    ask(&redis, "s2", BODY);
    let worker = relay(&redis, &upstream, &["--concurrency", "8"]);
    wait_settled(&redis, 4);
    assert_eq!(terminals(&redis, "s2"), ["[DONE]"]);
    let letters = redis.connect().entries("llm:dlq:llm-bridge");
    let of = |name: &str| -> Vec<String> {
        letters.iter().map(|(_, letter)| String::from_utf8_lossy(&letter[name]).into_owned()).collect()
    };
    assert_eq!((of("id"), of("reason")), (ids, vec!["too_large".to_owned(); 3]));
    assert!(of("message").iter().all(|message| message.contains("8 MiB")), "{:?}", of("message"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 64 << 10, "{peak} KiB");
}

#[test]
fn whatever_a_server_does_the_request_has_an_end() {
    let redis = RedisServer::start();
    let busy = refusal("429 Too Many Requests", "Retry-After: 1\r\n", "");
    let broke_off = vec![head(), event(&token("a"))];
    let scripts = [
        (refusal("400 Bad Request", "", "no"), "error upstream_refused"),
        (busy, "error upstream_refused"),
        (broke_off, "error upstream_broke_off"),
        (partial(), "error upstream_timeout"),
        (vec![Step::Hang], "error upstream_timeout"),
        (refusal("200 OK", "", "{}"), "error upstream_malformed"),
    ];
    for (number, (script, end)) in scripts.into_iter().enumerate() {
        let upstream = FakeUpstream::start([script]);
        let patience = ["--retries", "1", "--first-timeout", "300ms", "--silence-timeout", "300ms"];
        let _worker = relay(&redis, &upstream, &patience);
        ask(&redis, &format!("s{number}"), BODY);
        wait_settled(&redis, number + 1);
        assert_eq!(terminals(&redis, &format!("s{number}")), [end]);
    }
}

#[test]
fn a_cancelled_answer_ends_and_so_does_one_that_has_not_begun() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let upstream = FakeUpstream::start([partial()]);
    let _worker = relay(&redis, &upstream, &[]);
    // The second one waits for the stream.
    ask(&redis, "s", BODY);
    ask(&redis, "s", BODY);
    let mut viewer = Viewer::open(daemon.public, Kind::Sse, "s/m", "wait=60");
    viewer.read_until("the start", |frame| frame.kind() == "start");
    wait_until("the token", || entries(&redis, "s").len() == 2);
    assert_eq!(http::request(daemon.public, "POST", "/v1/streams/s/m/cancel", &[]).status, 202);
    wait_settled(&redis, 2);
    assert_eq!(terminals(&redis, "s"), ["end cancelled", "end cancelled"]);
    assert_eq!(upstream.seen().len(), 1);
    let id = redis.connect().entries(&key("s"))[2].0.clone();
    viewer.read_until("the end", |frame| frame.id() == Some(&id));
}

#[test]
fn a_worker_that_is_killed_is_replaced() {
    let redis = RedisServer::start();
    let dying = FakeUpstream::start([partial(), vec![Step::Hang], partial()]);
    let doomed = relay(&redis, &dying, &["--concurrency", "3"]);
    let sessions = ["s0", "s1", "s2", "s3", "s4", "s5"];
    sessions.iter().for_each(|session| {
        ask(&redis, session, BODY);
    });
    wait_until("three answers to have begun", || dying.seen().len() == 3);
    let with_token = || {
        let has_token = |session: &&&str| entries(&redis, session).len() == 2;
        sessions.iter().filter(has_token).count()
    };
    wait_until("two of them to have a token", || with_token() == 2);
    doomed.signal(libc::SIGKILL);
    drop(doomed);
    let upstream = FakeUpstream::start([chat(&["a", "b"])]);
    let _worker = relay(&redis, &upstream, &["--concurrency", "2"]);
    wait_settled(&redis, 6);
    let mut ends: Vec<String> = Vec::new();
    for session in sessions {
        let end = terminals(&redis, session);
        assert_eq!(end.len(), 1, "{session}: {:?}", entries(&redis, session));
        if end[0] == "[DONE]" {
            // The answer that had begun without a token has the start entries of both workers, of the same
            // generation, and between them the heartbeat of the worker that took it over.
            let mut seen = entries(&redis, session);
            seen.retain(|entry| entry != "heartbeat");
            let starts = seen.iter().filter(|entry| entry.starts_with("start ")).count();
            assert!(seen[..starts].iter().all(|start| *start == seen[0]) && starts <= 2, "{seen:?}");
            assert_eq!(seen[starts..], whole(&["a", "b"]));
        }
        ends.extend(end);
    }
    ends.sort_unstable();
    assert_eq!(ends, ["[DONE]", "[DONE]", "[DONE]", "[DONE]", "error relay_lost", "error relay_lost"]);
    assert_eq!(upstream.seen().len(), 4);
}

#[test]
fn a_worker_that_was_stopped_for_too_long_writes_nothing_more() {
    let redis = RedisServer::start();
    let slow: Script = std::iter::once(head())
        .chain((0..200).flat_map(|_| [event(&token("a")), Step::Pause(Duration::from_millis(20))]))
        .collect();
    let dying = FakeUpstream::start([slow]);
    let frozen = relay(&redis, &dying, &[]);
    ask(&redis, "s", BODY);
    wait_until("a token", || entries(&redis, "s").len() > 2);
    frozen.signal(libc::SIGSTOP);
    let upstream = FakeUpstream::start([chat(&["b"])]);
    let _worker = relay(&redis, &upstream, &[]);
    wait_settled(&redis, 1);
    assert_eq!(terminals(&redis, "s"), ["error relay_lost"]);
    let len = entries(&redis, "s").len();
    frozen.signal(libc::SIGCONT);
    // It knows as soon as it has asked Redis; then it drops its upstream.
    frozen.signal(libc::SIGTERM);
    assert_eq!(frozen.finish().code, Some(0));
    assert_eq!(entries(&redis, "s").len(), len);
}

#[test]
fn draining_ends_what_runs_and_leaves_the_rest_to_others() {
    let redis = RedisServer::start();
    let gated = vec![head(), event(&token("a")), Step::Gate, event(&finish()), event("[DONE]")];
    let upstream = FakeUpstream::start([gated]);
    let worker = relay(&redis, &upstream, &["--concurrency", "1"]);
    ask(&redis, "s1", BODY);
    wait_until("the token", || entries(&redis, "s1").len() == 2);
    ask(&redis, "s2", BODY);
    worker.signal(libc::SIGTERM);
    upstream.open_gate();
    let outcome = worker.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(terminals(&redis, "s1"), ["[DONE]"]);
    assert!(entries(&redis, "s2").is_empty());
}

#[test]
fn answers_that_exceed_the_grace_are_ended_or_handed_back() {
    let redis = RedisServer::start();
    let upstream = FakeUpstream::start([partial(), vec![Step::Hang]]);
    let worker = relay(&redis, &upstream, &["--set", "shutdown.grace=200ms", "--takeover-after", "1h"]);
    ask(&redis, "s1", BODY);
    wait_until("the token", || entries(&redis, "s1").len() == 2);
    ask(&redis, "s2", BODY);
    wait_until("the second request", || upstream.seen().len() == 2);
    // It waits for its stream.
    ask(&redis, "s2", BODY);
    wait_until("the third request", || redis.connect().pending(REQUESTS, GROUP) == 3);
    worker.signal(libc::SIGTERM);
    let outcome = worker.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(terminals(&redis, "s1"), ["error relay_stopped"]);
    assert!(terminals(&redis, "s2").is_empty());
    // Others need not wait until the claims expire.
    let next = FakeUpstream::start([chat(&["b"])]);
    let _worker = relay(&redis, &next, &["--takeover-after", "1h"]);
    wait_settled(&redis, 3);
    assert_eq!(terminals(&redis, "s2"), ["[DONE]", "[DONE]"]);
}

#[test]
fn an_outage_of_redis_loses_and_repeats_nothing() {
    let mut redis = RedisServer::start_durable();
    let texts: Vec<String> = (0..100).map(|number| format!("{number} ")).collect();
    let mut script = vec![head()];
    script.extend(texts.iter().flat_map(|text| [event(&token(text)), Step::Pause(Duration::from_millis(5))]));
    script.extend([event(&finish()), event("[DONE]")]);
    let upstream = FakeUpstream::start([script]);
    let _worker = relay(&redis, &upstream, &["--takeover-after", "1m"]);
    ask(&redis, "s", BODY);
    wait_until("some tokens", || entries(&redis, "s").len() > 10);
    redis.kill();
    std::thread::sleep(Duration::from_millis(100));
    redis.restart();
    wait_for("the end", || terminals(&redis, "s").pop());
    wait_until("the acknowledgement", || redis.connect().pending(REQUESTS, GROUP) == 0);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(entries(&redis, "s")[1..], whole(&texts));
}

#[test]
fn the_documented_rights_are_enough() {
    let redis = RedisServer::start();
    let more = PRODUCERS
        .lines()
        .find_map(|line| line.strip_prefix("It needs Redis 6.2 and, in addition to the daemon's rights"));
    let more = more.expect("the document lists the rights").split(['`', ' ']);
    let daemon = documented_rights().into_iter();
    let rights: Vec<&str> = daemon.chain(more.filter(|word| word.starts_with('+'))).collect();
    let mut connection = redis.connect();
    connection.run::<()>(&[&["ACL", "SETUSER", "llm-bridge"], &rights[..]].concat());
    connection.run::<()>(&["ACL", "LOG", "RESET"]);
    let url = format!("redis.url=redis://llm-bridge:PASSWORD@127.0.0.1:{}/0", redis.port());
    // A dead letter, an answer, one that is broken off, and a request that is left to the next worker.
    let upstream = FakeUpstream::start([chat(&["a"]), partial(), vec![Step::Hang]]);
    let worker = relay(&redis, &upstream, &["--set", &url, "--set", "shutdown.grace=200ms"]);
    connection.run::<String>(&["XADD", REQUESTS, "*", "session", "no session"]);
    wait_until("the dead letter", || connection.keys("llm:dlq:*").len() == 1);
    ask(&redis, "s1", BODY);
    wait_until("the first answer", || terminals(&redis, "s1") == ["[DONE]"]);
    ask(&redis, "s2", BODY);
    wait_until("the token", || entries(&redis, "s2").len() == 2);
    ask(&redis, "s2", BODY);
    worker.signal(libc::SIGTERM);
    assert_eq!(worker.finish().code, Some(0));
    let next = FakeUpstream::start([chat(&["b"])]);
    let _worker = relay(&redis, &next, &["--set", &url]);
    wait_settled(&redis, 4);
    assert_eq!(terminals(&redis, "s2").last().map(String::as_str), Some("[DONE]"));
    let denied: Vec<redis::Value> = connection.run(&["ACL", "LOG"]);
    assert!(denied.is_empty(), "{denied:?}");
}
