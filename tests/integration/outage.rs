//! Redis killed, suspended, loading, full, emptied, partly broken: viewers keep their connections, are told, and get
//! everything once Redis is back; a broken stream affects no other.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, DaemonOptions};
use crate::support::http;
use crate::support::patience::{PATIENCE, wait_until};
use crate::support::producer::{Producer, entry, token, tokens};
use crate::support::redis::RedisServer;
use crate::support::sse::SseClient;
use crate::support::transcript::{Ending, Transcript};
use crate::support::viewer::{KINDS, Kind, Viewer, target, view};
use crate::support::websocket::WebSocketClient;

const GROUP: &str = "llm:consumer:llm-bridge:i1";
const TOKENS: usize = 2_000;

/// A daemon that retries Redis often, and whose streams all share one reader.
fn options(redis: &RedisServer) -> DaemonOptions {
    let options = Daemon::options(redis).set("service.instance=i1").set("redis.backoff_max=50ms");
    options.set("threads.readers=1")
}

/// A producer that repeats each entry until it is confirmed: tokens `0..TOKENS`, then `end`. It has written at most
/// half of them before Redis fails.
fn write_patiently(url: &str, key: &str, written: &AtomicUsize, is_failing: &AtomicBool) -> String {
    let client = redis::Client::open(url).unwrap();
    let mut connection = None;
    let mut add = |data: Value| {
        loop {
            let entry = redis::cmd("XADD").arg(key).arg("*").arg("data").arg(data.to_string()).clone();
            let added = connect(&client, &mut connection).and_then(|socket| entry.query::<String>(socket));
            if let Ok(id) = added {
                written.fetch_add(1, Ordering::Relaxed);
                return id;
            }
            connection = None;
            thread::sleep(Duration::from_millis(5));
        }
    };
    for number in 0..TOKENS {
        if number == TOKENS / 2 {
            wait_until("Redis to fail", || is_failing.load(Ordering::Relaxed));
        }
        add(entry("delta", number, json!({"text": token(number)})));
    }
    add(entry("end", TOKENS, json!({"finish_reason": "stop"})))
}

fn connect<'a>(
    client: &redis::Client,
    connection: &'a mut Option<redis::Connection>,
) -> redis::RedisResult<&'a mut redis::Connection> {
    if connection.is_none() {
        let fresh = client.get_connection_with_timeout(PATIENCE)?;
        fresh.set_read_timeout(Some(PATIENCE))?;
        *connection = Some(fresh);
    }
    Ok(connection.as_mut().unwrap())
}

/// Checks that a viewer got everything once, the states `degraded` and `live`, and no gap.
fn expect_survived(transcript: &Transcript, end: &str) {
    let states: Vec<&Value> = transcript.of_kind("status").map(|status| &status["state"]).collect();
    let degraded = states.iter().position(|state| *state == "degraded");
    let live = states.iter().rposition(|state| *state == "live");
    assert!(degraded.is_some() && degraded < live, "{states:?}");
    assert_eq!(transcript.of_kind("gap").count(), 0, "{:?}", transcript.of_kind("gap").next());
    assert!(transcript.text() == tokens(0..TOKENS), "not everything, in order, once");
    transcript.expect_finished(end);
}

/// Lets viewers of each kind watch a steady producer while Redis fails (`fail`) and comes back (`mend`).
fn check_outage(
    redis: &mut RedisServer,
    daemon: &mut Daemon,
    fail: impl FnOnce(&mut RedisServer),
    mend: impl FnOnce(&mut RedisServer),
) {
    let (url, written, is_failing) = (redis.url(), AtomicUsize::new(0), AtomicBool::new(false));
    let key = "llm:stream:s1:m";
    thread::scope(|scope| {
        let producer = scope.spawn(|| write_patiently(&url, key, &written, &is_failing));
        let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
        for viewer in &mut viewers {
            viewer.read_until("a token", |frame| frame.kind() == "delta");
        }
        wait_until("the middle of the stream", || written.load(Ordering::Relaxed) > TOKENS / 4);
        is_failing.store(true, Ordering::Relaxed);
        fail(redis);
        for viewer in &mut viewers {
            viewer.read_to_status("degraded");
        }
        wait_until("not ready", || http::get(daemon.admin, "/readyz").status == 503);
        mend(redis);
        daemon.wait_ready();
        let end = producer.join().unwrap();
        for viewer in viewers {
            expect_survived(&viewer.read_all(), &end);
        }
    });
}

#[test]
fn a_redis_killed_in_mid_stream_loses_and_repeats_nothing() {
    let mut redis = RedisServer::start_durable();
    let mut daemon = options(&redis).start();
    check_outage(&mut redis, &mut daemon, RedisServer::kill, RedisServer::restart);
    assert!(daemon.is_running());
}

#[test]
fn a_frozen_redis_loses_and_repeats_nothing() {
    let mut redis = RedisServer::start();
    let mut daemon = options(&redis).set("redis.response_timeout=500ms").start();
    check_outage(&mut redis, &mut daemon, |redis| redis.suspend(), |redis| redis.resume());
}

#[test]
fn a_redis_that_pauses_its_clients_loses_and_repeats_nothing() {
    let mut redis = RedisServer::start();
    let mut daemon = options(&redis).set("redis.response_timeout=300ms").start();
    let pause = |redis: &mut RedisServer| redis.pause(Duration::from_secs(2));
    check_outage(&mut redis, &mut daemon, pause, |_| {});
}

#[test]
fn a_redis_that_answers_late_is_waited_for() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.tokens(0..10).pop().unwrap();
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    for viewer in &mut viewers {
        viewer.read_to(&first);
    }
    redis.freeze(Duration::from_millis(300));
    let mut late = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    producer.tokens(10..20);
    let end = producer.end();
    for viewer in viewers.iter_mut().chain(&mut late) {
        viewer.read_to(&end);
        assert_eq!(viewer.transcript.text(), tokens(0..20));
    }
}

#[test]
fn a_redis_that_loads_its_data_is_waited_for() {
    let mut redis = RedisServer::start_with(&["--rdbcompression", "no"]);
    let mut daemon = options(&redis).start();
    let mut connection = redis.connect();
    for number in 0..40 {
        connection.run::<()>(&["SET", &format!("ballast-{number}"), &"x".repeat(2_000)]);
    }
    // It shuts down in order, with everything that it has confirmed.
    let fail = |redis: &mut RedisServer| {
        let _ = redis.connect().try_run::<()>(&["SHUTDOWN", "SAVE"]);
        redis.kill();
    };
    // Loading is slow for each key, and Redis answers commands with LOADING meanwhile.
    let slow = ["--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024"];
    check_outage(&mut redis, &mut daemon, fail, |redis| redis.restart_with(&slow));
    assert!(redis.connect().errors("LOADING") > 0, "no command was sent while Redis was loading");
}

/// A client of each kind, and the frames that each has received.
struct Pair {
    websocket: WebSocketClient,
    sse: SseClient,
    frames: [Vec<Value>; 2],
}

impl Pair {
    fn open(daemon: &Daemon, stream: &str, query: &str) -> Self {
        let target = target(stream, query);
        Self {
            websocket: WebSocketClient::connect(daemon.public, &target),
            sse: SseClient::open(daemon.public, &target, &[]),
            frames: [Vec::new(), Vec::new()],
        }
    }

    /// Reads until both have received this state.
    fn read_to(&mut self, state: &str) {
        let has_arrived = |frames: &Vec<Value>| frames.last().is_some_and(|frame| frame["state"] == state);
        while !has_arrived(&self.frames[0]) {
            self.frames[0].push(self.websocket.receive_json());
        }
        while !has_arrived(&self.frames[1]) {
            let event = self.sse.event().unwrap().expect("an event");
            self.frames[1].push(serde_json::from_str(&event.data).unwrap());
        }
    }

    /// All frames that each received, and how its connection ended.
    fn read_to_end(mut self) -> [(Vec<Value>, Ending); 2] {
        let [mut first, mut second] = self.frames;
        let (rest, code) = self.websocket.receive_to_close();
        first.extend(rest);
        while let Some(event) = self.sse.event().unwrap() {
            second.push(serde_json::from_str(&event.data).unwrap());
        }
        [(first, Ending::Closed(code)), (second, Ending::Complete)]
    }
}

#[test]
fn open_comes_first_without_redis_too() {
    let mut redis = RedisServer::start();
    redis.kill();
    let daemon = options(&redis).start_alive();
    let mut viewers = Pair::open(&daemon, "s1/m", "after=0");
    viewers.read_to("degraded");
    for frames in &viewers.frames {
        assert_eq!(frames[0]["type"], "open", "{frames:?}");
    }
}

#[test]
fn a_start_without_redis_is_alive_and_becomes_ready() {
    let mut redis = RedisServer::start_durable();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.tokens(0..10);
    redis.kill();
    let mut daemon = options(&redis).start_alive();
    let not_ready = http::get(daemon.admin, "/readyz");
    assert_eq!(not_ready.status, 503);
    assert!(not_ready.json().is_object(), "it says what is not well: {}", not_ready.text());
    for method in ["GET", "HEAD"] {
        let refused = http::request(daemon.public, method, "/v1/streams/s1/m", &[]);
        assert_eq!(refused.status, 503, "{method}");
        let retry_after = refused.header("retry-after").and_then(|seconds| seconds.parse::<u32>().ok());
        assert!(retry_after.is_some(), "{method}: {:?}", refused.header("retry-after"));
        if method == "GET" {
            refused.expect_error(503);
        }
    }
    let mut viewers = [Pair::open(&daemon, "s1/m", ""), Pair::open(&daemon, "s1/none", "wait=1")];
    for pair in &mut viewers {
        pair.read_to("degraded");
    }
    redis.restart();
    daemon.wait_ready();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.write(&entry("delta", 10, json!({"text": token(10)})));
    producer.write(&entry("end", 11, json!({"finish_reason": "stop"})));
    let [existing, none] = viewers.map(Pair::read_to_end);
    for (frames, ending) in existing {
        let text: String = frames.iter().filter_map(|frame| frame["text"].as_str()).collect();
        assert_eq!(text, tokens(0..11), "{frames:?}");
        assert!(ending.is_orderly(), "{ending:?}");
    }
    assert_eq!(none.map(|(_, ending)| ending), [Ending::Closed(4404), Ending::Complete]);
    assert_eq!(http::get(daemon.public, "/v1/streams/s1/m").json()["state"], "ended");
}

#[test]
fn a_redis_emptied_in_mid_stream_goes_on() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut other = Producer::new(&redis, "s2", "m");
    let (first, other_first) = (producer.delta("one, "), other.delta("before "));
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    let mut others = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s2/m", ""));
    viewers.iter_mut().for_each(|viewer| viewer.read_to(&first));
    others.iter_mut().for_each(|viewer| viewer.read_to(&other_first));
    redis.connect().run::<()>(&["FLUSHALL"]);
    // One producer continues at once, the other when its viewers have been told.
    producer.delta("two");
    let end = producer.end();
    for viewer in &mut others {
        viewer.read_to_status("waiting");
    }
    other.delta("and after");
    let other_end = other.end();
    for (viewers, text, end) in [(viewers, "one, two", end), (others, "before and after", other_end)] {
        for viewer in viewers {
            let transcript = viewer.read_all();
            assert_eq!(transcript.text(), text);
            transcript.expect_finished(&end);
        }
    }
    wait_until("the lease to be taken again", || {
        !redis.connect().keys("llm:instance:llm-bridge:i1").is_empty()
    });
}

/// Viewers of several streams, of which one (`s2`) is broken.
struct Several {
    producers: Vec<Producer>,
    viewers: Vec<Viewer>,
}

impl Several {
    fn watch(redis: &RedisServer, daemon: &Daemon) -> Self {
        let mut producers: Vec<Producer> =
            (0..5).map(|number| Producer::new(redis, &format!("s{number}"), "m")).collect();
        let mut viewers = Vec::new();
        for (number, producer) in producers.iter_mut().enumerate() {
            let id = producer.delta("before ");
            let mut viewer = Viewer::open(daemon.public, KINDS[number % 2], &producer.stream, "");
            viewer.read_to(&id);
            viewers.push(viewer);
        }
        Self { producers, viewers }
    }

    /// Checks that these streams are delivered to their end without any effect.
    fn expect_undisturbed(&mut self, numbers: &[usize]) {
        for &number in numbers {
            let (producer, viewer) = (&mut self.producers[number], &mut self.viewers[number]);
            producer.delta("and after");
            let end = producer.end();
            viewer.read_to(&end);
            assert_eq!(viewer.transcript.outline(), ["delta before and after", "end stop"], "s{number}");
        }
    }
}

#[test]
fn a_group_destroyed_under_its_feet_disturbs_nobody() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    let mut several = Several::watch(&redis, &daemon);
    let mut connection = redis.connect();
    let has_group = |groups: Vec<String>| groups.iter().any(|name| name == GROUP);
    wait_until("the group", || has_group(connection.groups("llm:stream:s2:m")));
    assert_eq!(connection.run::<u64>(&["XGROUP", "DESTROY", "llm:stream:s2:m", GROUP]), 1);
    several.expect_undisturbed(&[0, 1, 2, 3, 4]);
}

#[test]
fn one_of_many_keys_deleted_disturbs_no_other() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    let mut several = Several::watch(&redis, &daemon);
    assert_eq!(redis.connect().run::<u64>(&["DEL", "llm:stream:s2:m"]), 1);
    several.expect_undisturbed(&[0, 1]);
    several.viewers[2].read_to_status("waiting");
    several.expect_undisturbed(&[3, 4]);
}

#[test]
fn one_of_many_keys_replaced_by_another_type_disturbs_no_other() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    let mut several = Several::watch(&redis, &daemon);
    redis.connect().run::<()>(&["SET", "llm:stream:s2:m", "no stream"]);
    several.expect_undisturbed(&[0, 1, 3, 4]);
}

#[test]
fn a_key_of_another_type_is_no_stream() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    redis.connect().run::<()>(&["SET", "llm:stream:s1:m", "no stream"]);
    for method in ["GET", "HEAD"] {
        assert_eq!(http::request(daemon.public, method, "/v1/streams/s1/m", &[]).status, 404, "{method}");
    }
    assert_eq!(view(daemon.public, Kind::Sse, "s1/m", "wait=0").ending, Some(Ending::Status(404)));
    let closed = view(daemon.public, Kind::WebSocket, "s1/m", "wait=0");
    assert_eq!(closed.ending, Some(Ending::Closed(4404)));
}

/// Lets Redis refuse writes (`refuse`, until it has replied `error`) and accept them again (`accept`), with live
/// viewers and with those that connect meanwhile.
fn check_refused_writes(
    redis: &RedisServer,
    error: &str,
    refuse: impl FnOnce(&RedisServer),
    accept: impl FnOnce(&RedisServer),
) {
    let mut daemon = options(redis).start();
    let mut producer = Producer::new(redis, "s1", "m");
    let before = producer.tokens(0..10).pop().unwrap();
    let mut viewers = Vec::from(KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "")));
    for viewer in &mut viewers {
        viewer.read_to(&before);
    }
    refuse(redis);
    viewers.extend(KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", "")));
    let mut connection = redis.connect();
    wait_until("a refused write", || connection.errors(error) > 0);
    accept(redis);
    producer.tokens(10..20);
    let end = producer.end();
    for viewer in viewers {
        let transcript = viewer.read_all();
        let outline = [format!("delta {}", tokens(0..20)), "end stop".into()];
        assert_eq!(transcript.outline(), outline);
        transcript.expect_finished(&end);
    }
    daemon.wait_ready();
}

#[test]
fn a_redis_that_cannot_save_is_survived() {
    let redis = RedisServer::start();
    let mut connection = redis.connect();
    let dir: Vec<String> = connection.run(&["CONFIG", "GET", "dir"]);
    // A snapshot cannot replace a directory.
    let blocked = PathBuf::from(&dir[1]).join("dump.rdb");
    fs::create_dir(&blocked).unwrap();
    let refuse = |redis: &RedisServer| {
        let mut connection = redis.connect();
        connection.run::<()>(&["CONFIG", "SET", "save", "3600 1000000"]);
        connection.run::<()>(&["CONFIG", "SET", "stop-writes-on-bgsave-error", "yes"]);
        connection.run::<String>(&["BGSAVE"]);
        wait_until("the failed snapshot", || {
            connection.run::<String>(&["INFO", "persistence"]).contains("rdb_last_bgsave_status:err")
        });
    };
    let accept = |redis: &RedisServer| {
        fs::remove_dir(&blocked).unwrap();
        redis.connect().run::<String>(&["SAVE"]);
    };
    check_refused_writes(&redis, "MISCONF", refuse, accept);
}

#[test]
fn a_redis_without_memory_is_survived() {
    let redis = RedisServer::start();
    let set = |redis: &RedisServer, bytes: &str| {
        redis.connect().run::<()>(&["CONFIG", "SET", "maxmemory", bytes]);
    };
    check_refused_writes(&redis, "OOM", |redis| set(redis, "1"), |redis| set(redis, "0"));
}

#[test]
fn a_redis_that_is_out_of_memory_is_still_read() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    let mut early = Producer::new(&redis, "s1", "m");
    early.start("g1");
    early.delta("kept");
    let end = early.end();
    let mut late = Producer::new(&redis, "s2", "m");
    let begun = late.start("g2");
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s2/m", ""));
    viewers.iter_mut().for_each(|viewer| viewer.read_to(&begun));
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let (_, last, _): (String, String, String) = redis.connect().run_at_once(&[
        words(&["XADD", "llm:stream:s2:m", "*", "data", r#"{"type":"delta","seq":1,"text":"just in time"}"#]),
        words(&["XADD", "llm:stream:s2:m", "*", "data", r#"{"type":"end","seq":2}"#]),
        words(&["CONFIG", "SET", "maxmemory", "1"]),
    ]);
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.text(), "just in time");
        transcript.expect_finished(&last);
    }
    let state = http::get(daemon.public, "/v1/streams/s1/m").json();
    assert_eq!((&state["state"], &state["content"]), (&json!("ended"), &json!("kept")));
    for kind in KINDS {
        let transcript = view(daemon.public, kind, "s1/m", "");
        assert_eq!(
            (transcript.open()["state"].as_str(), transcript.text().as_str()),
            (Some("ended"), "kept")
        );
        transcript.expect_finished(&end);
    }
}
