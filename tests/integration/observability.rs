//! The operators' view: probes, stats, metrics, the dashboard, the log. The admin listener answers under any load,
//! and its counters are correct.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use crate::support::command::{Background, llm_bridge, program, run, run_in_terminal_of};
use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::patience::{PATIENCE, wait_until};
use crate::support::producer::{Producer, tokens};
use crate::support::prometheus;
use crate::support::redis::RedisServer;
use crate::support::viewer::{KINDS, Viewer, view};

/// The parts of an entry's path.
const STAGES: [&str; 5] =
    ["produced_to_read", "read_to_encoded", "encoded_to_written", "end_to_end", "replay"];

/// Sends one line to the stats socket and reads to the end.
fn ask(socket: &Path, line: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("{line}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn micros_now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

/// Serves a stream to both kinds of viewers, live and from history; the entries contain the time.
fn serve_stream(redis: &RedisServer, daemon: &Daemon, session: &str) {
    const TOKENS: usize = 50;
    let mut producer = Producer::new(redis, session, "m");
    let first = producer.write(&json!({"type": "start", "generation": "g1", "ts": micros_now()}));
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, &producer.stream, ""));
    viewers.iter_mut().for_each(|viewer| viewer.read_to(&first));
    for number in 0..TOKENS {
        let text = tokens(number..number + 1);
        producer.write(&json!({"type": "delta", "text": text, "ts": micros_now()}));
    }
    let end = producer.write(&json!({"type": "end", "ts": micros_now()}));
    let later = KINDS.map(|kind| view(daemon.public, kind, &producer.stream, ""));
    for transcript in viewers.map(Viewer::read_all).into_iter().chain(later) {
        assert_eq!(transcript.text(), tokens(0..TOKENS));
        transcript.expect_finished(&end);
    }
}

fn latency_count(stats: &Value, stage: &str) -> u64 {
    stats["latency_us"][stage]["count"].as_u64().unwrap_or_else(|| panic!("{stage} in {stats}"))
}

#[test]
fn events_are_counted() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let grown = [
        "reads",
        "entries_read",
        "frames_encoded",
        "frames_written",
        "bytes_written",
        "replay_reads",
        "replay_entries",
        "connections_accepted",
        "http_requests",
        "websocket_opened",
        "sse_opened",
        "subscriptions",
        "acks_sent",
    ];
    for round in 1..=3 {
        let before = daemon.stats();
        serve_stream(&redis, &daemon, &format!("s{round}"));
        for counter in grown {
            let before = before["counters"][counter].as_u64().unwrap_or_else(|| panic!("no {counter}"));
            // Acknowledgements follow within a second; the others are counted before they are visible.
            wait_until(counter, || daemon.counter(counter) > before);
        }
    }
    let counters = &daemon.stats()["counters"];
    let at_least = |name: &str, least: u64| {
        let count = counters[name].as_u64().unwrap();
        assert!(count >= least, "{name}: {count} of {least}");
    };
    // In each round, fifty tokens and the end were delivered live.
    at_least("entries_read", 3 * 51);
    assert_eq!((&counters["websocket_opened"], &counters["sse_opened"]), (&json!(6), &json!(6)));
    assert_eq!(counters["subscriptions"], 12);
    for untouched in ["dead_letters_written", "clients_slow_closed", "gaps_trimmed", "redis_errors"] {
        assert_eq!(counters[untouched], 0, "{untouched}");
    }
}

#[test]
fn bytes_read_from_redis_are_counted() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    serve_stream(&redis, &daemon, "s1");
    wait_until("entries to be counted", || daemon.counter("entries_read") >= 51);
    // Each of them has some 60 bytes.
    let bytes = daemon.counter("bytes_read");
    assert!(bytes >= 51 * 60, "{bytes} bytes in 51 entries");
}

#[test]
fn every_stage_is_measured() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let began = Instant::now();
    serve_stream(&redis, &daemon, "s1");
    for stage in STAGES.into_iter().chain(["delivery_round"]) {
        wait_until(stage, || latency_count(&daemon.stats(), stage) > 0);
    }
    let stats = daemon.stats();
    let most = u64::try_from(began.elapsed().as_micros()).unwrap();
    for stage in STAGES {
        let latency = &stats["latency_us"][stage];
        let value =
            |name: &str| latency[name].as_u64().unwrap_or_else(|| panic!("{name} of {stage}: {latency}"));
        let percentiles = ["p50", "p90", "p99", "p999", "max"].map(value);
        assert!(percentiles.is_sorted(), "{stage}: {latency}");
        // Nothing can have taken longer than the whole; a histogram's value may be rounded up slightly.
        assert!(value("max") <= most + most / 50, "{stage}: {latency}, {most} in all");
    }
    // A producer whose clock is wrong does no harm.
    let mut producer = Producer::new(&redis, "s2", "m");
    for ts in [0, 1, micros_now() * 2, u64::MAX] {
        producer.write(&json!({"type": "delta", "text": "x", "ts": ts}));
    }
    let end = producer.write(&json!({"type": "end"}));
    for kind in KINDS {
        view(daemon.public, kind, "s2/m", "").expect_finished(&end);
    }
    prometheus::parse(&http::get(daemon.admin, "/metrics").text());
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let scrape = || {
        let response = http::get(daemon.admin, "/metrics");
        assert_eq!(response.status, 200);
        let kind = response.header("content-type").unwrap();
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        prometheus::parse(&response.text())
    };
    let before = scrape();
    serve_stream(&redis, &daemon, "s1");
    let after = scrape();
    let total = |families: &std::collections::BTreeMap<String, prometheus::Family>, name: &str| {
        families[name].samples.values().sum::<f64>()
    };
    for name in ["entries_read", "frames_written", "bytes_written", "connections_accepted"] {
        let name = format!("llm_bridge_{name}_total");
        assert_eq!(after[&name].kind, "counter");
        assert!(total(&after, &name) > total(&before, &name), "{name}");
    }
    for (name, family) in &before {
        assert!(after.contains_key(name), "{name} has gone");
        if family.kind == "counter" {
            for (series, value) in &family.samples {
                assert!(after[name].samples[series] >= *value, "{series} has shrunk");
            }
        }
    }
    // The same numbers from another source.
    let stats = daemon.stats();
    for (name, value) in stats["counters"].as_object().unwrap() {
        assert!(after.contains_key(&format!("llm_bridge_{name}_total")), "{name}: {value}");
    }
    for (name, value) in stats["gauges"].as_object().unwrap() {
        assert!(after.contains_key(&format!("llm_bridge_{name}")), "{name}: {value}");
    }
    wait_until("the histograms", || {
        let families = scrape();
        let counts = &families["llm_bridge_latency_seconds"].samples;
        STAGES
            .iter()
            .all(|stage| counts[&format!("llm_bridge_latency_seconds_count{{stage=\"{stage}\"}}")] > 0.0)
    });
}

#[test]
fn every_queue_has_a_bound_and_a_gauge() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis)
        .set("threads.readers=3")
        .set("threads.deliveries=2")
        .set("threads.transforms=2")
        .set("threads.replays=2")
        .set("delivery.queue_batches=64")
        .start();
    serve_stream(&redis, &daemon, "s1");
    let stats = daemon.stats();
    let queues = stats["queues"].as_array().unwrap();
    let names: BTreeSet<&str> = queues.iter().map(|queue| queue["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), queues.len(), "{queues:?}");
    for (thread, count) in [("reader", 3), ("deliver", 2), ("transform", 2), ("replay", 1)] {
        let own = names.iter().filter(|name| name.starts_with(thread)).count();
        assert!(own >= count, "{own} queues of {count} {thread} threads: {names:?}");
    }
    for queue in queues {
        let number = |name: &str| queue[name].as_u64().unwrap_or_else(|| panic!("{name} in {queue}"));
        assert!(number("capacity") > 0, "{queue}");
        assert!(
            number("depth") <= number("depth_max") && number("depth_max") <= number("capacity"),
            "{queue}"
        );
    }
    assert!(queues.iter().any(|queue| queue["capacity"] == 64), "{queues:?}");
    let families = prometheus::parse(&http::get(daemon.admin, "/metrics").text());
    for queue in queues {
        let labels = format!("{{queue={}}}", queue["name"]);
        assert!(
            families["llm_bridge_queue_depth"]
                .samples
                .contains_key(&format!("llm_bridge_queue_depth{labels}"))
        );
        let capacity =
            families["llm_bridge_queue_capacity"].samples[&format!("llm_bridge_queue_capacity{labels}")];
        assert_eq!(json!(capacity), json!(queue["capacity"].as_f64()), "{queue}");
    }
}

#[test]
fn gauges_follow_who_is_there() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").delta("x");
    let mut viewers: Vec<Viewer> =
        (0..6).map(|number| Viewer::open(daemon.public, KINDS[number % 2], "s1/m", "")).collect();
    viewers.iter_mut().for_each(|viewer| viewer.expect_open("live"));
    let _waiting = Viewer::open(daemon.public, KINDS[0], "s1/none", "");
    for (gauge, value) in
        [("connections_open", 7), ("subscriptions_open", 7), ("streams_live", 1), ("streams_waited", 1)]
    {
        wait_until(gauge, || daemon.gauge(gauge) == value);
    }
    viewers.truncate(2);
    wait_until("four to have left", || daemon.gauge("connections_open") == 3);
    // The connection of this request is one of them while it is answered, and may be gone when they are counted here.
    wait_until("the open descriptors to be told", || {
        let received = daemon.stats()["process"]["open_fds"].as_u64().unwrap();
        received.abs_diff(daemon.open_descriptors() as u64) <= 1
    });
}

#[test]
fn the_stats_socket_answers_one_line() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    serve_stream(&redis, &daemon, "s1");
    let socket = daemon.stats_socket.as_path();
    let stats: Value = serde_json::from_str(&ask(socket, "json")).unwrap();
    let over_http = daemon.stats();
    let names = |stats: &Value| -> Vec<String> { stats.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(names(&stats), names(&over_http));
    assert_eq!(stats["counters"]["subscriptions"], 4);
    let text = ask(socket, "text");
    for name in ["entries_read", "connections_open", "transform-live-0", "end_to_end", "ready"] {
        assert!(text.contains(name), "{name} in {text}");
    }
    wait_until("the histograms", || STAGES.iter().all(|stage| latency_count(&daemon.stats(), stage) > 0));
    let histograms = ask(socket, "histograms");
    assert!(STAGES.iter().all(|stage| histograms.contains(stage)), "{histograms}");
    assert!(!ask(socket, "nonsense").is_empty());

    assert!(!ask(socket, "reset").is_empty());
    wait_until("the histograms to begin anew", || {
        STAGES.iter().all(|stage| latency_count(&daemon.stats(), stage) == 0)
    });
    assert_eq!(daemon.counter("subscriptions"), 4, "counters only grow");
    serve_stream(&redis, &daemon, "s2");
    wait_until("the histograms", || STAGES.iter().all(|stage| latency_count(&daemon.stats(), stage) > 0));
}

#[test]
fn the_stats_socket_bears_bad_company() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let socket = daemon.stats_socket.as_path();
    // More than are served at a time, and none of them sends anything.
    let silent: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(socket).unwrap()).collect();
    drop(UnixStream::connect(socket).unwrap());
    let mut long = UnixStream::connect(socket).unwrap();
    long.set_write_timeout(Some(PATIENCE)).unwrap();
    let _ = long.write_all(&vec![b'x'; 1 << 20]);
    let mut gone = UnixStream::connect(socket).unwrap();
    gone.write_all(b"text\n").unwrap();
    drop(gone);
    assert!(ask(socket, "json").contains("counters"));
    drop((silent, long));
    serve_stream(&redis, &daemon, "s1");
}

#[test]
fn the_stats_command_shows_the_socket_s_answer() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    serve_stream(&redis, &daemon, "s1");
    let socket = daemon.stats_socket.to_str().unwrap();
    let stats = |more: &[&str]| {
        let outcome = run(llm_bridge(&[&["stats", "--socket", socket], more].concat()), b"");
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        outcome.stdout
    };
    assert!(stats(&[]).contains("entries_read"));
    let parsed: Value = serde_json::from_str(&stats(&["--json"])).unwrap();
    assert_eq!(parsed["counters"]["subscriptions"], 4);
    assert!(stats(&["--histograms"]).contains("end_to_end"));
    stats(&["--reset"]);

    assert_watch_fits(socket);
    let mut watch = Background::start(llm_bridge(&["stats", "--socket", socket, "--watch"]));
    for _ in 0..2 {
        while !watch.line().expect("it goes on").contains("entries_read") {}
    }
    watch.signal(libc::SIGINT);
    watch.finish();

    let nowhere = run(llm_bridge(&["stats", "--socket", "/nonexistent/stats.sock"]), b"");
    assert_eq!(nowhere.code, Some(1), "{nowhere:?}");
    assert!(nowhere.stderr.contains("/nonexistent/stats.sock"), "{nowhere:?}");
    assert!(nowhere.stderr.contains("--socket"), "{nowhere:?}");
}

/// Checks that `--watch` writes no more than the terminal can show.
fn assert_watch_fits(socket: &str) {
    let (lines, columns) = (24, 60);
    let mut watch = program("timeout");
    watch.args(["--foreground", "--signal=INT", "5", env!("CARGO_BIN_EXE_llm-bridge")]);
    watch.args(["stats", "--socket", socket, "--watch"]);
    let (_, shown) = run_in_terminal_of(watch, (lines, columns));
    let screens: Vec<&str> = shown.split("\x1b[H\x1b[2J").filter(|screen| screen.contains("ready")).collect();
    assert!(!screens.is_empty(), "{shown}");
    for screen in screens {
        assert!(screen.lines().count() < lines.into(), "{screen}");
        assert!(screen.lines().all(|line| line.chars().count() <= columns.into()), "{screen}");
        assert!(screen.contains("entries_read") || screen.contains("more lines"), "{screen}");
    }
}

#[test]
fn a_daemon_that_may_not_have_a_stats_socket_runs_without_it() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("listen.stats_socket=/proc/nowhere/stats.sock").start();
    serve_stream(&redis, &daemon, "s1");
    let log = daemon.log();
    assert!(log.contains("/proc/nowhere/stats.sock") && log.contains("listen.stats_socket"), "{log}");
}

#[test]
fn the_admin_listener_answers_to_its_own_names_only() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("listen.hosts=[\"ops.example\"]").start();
    for (host, status) in [("localhost", 200), ("ops.example:9464", 200), ("evil.example", 421)] {
        for target in ["/", "/stats.json", "/metrics", "/healthz"] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let response = http::Exchange::raw(daemon.admin, request.as_bytes()).unwrap().whole().unwrap();
            assert_eq!(response.status, status, "{host} {target}");
            assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
            assert!(status == 200 || response.text().contains("listen.hosts"), "{}", response.text());
        }
    }
}

#[test]
fn a_signal_writes_the_stats_to_the_log() {
    let redis = RedisServer::start();
    for format in ["text", "json"] {
        let mut daemon = Daemon::options(&redis).set(&format!("log.format={format}")).start();
        for count in 1..=2 {
            daemon.signal(libc::SIGUSR1);
            wait_until("the stats", || daemon.log().matches("entries_read").count() == count);
        }
        assert!(daemon.is_running());
        if format == "json" {
            for line in daemon.log().lines() {
                serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            }
        }
    }
}

#[test]
fn probes_say_how_it_is() {
    let mut redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let ready = http::get(daemon.admin, "/readyz");
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &json!(true)));
    assert_eq!(http::get(daemon.admin, "/healthz").status, 200);
    redis.kill();
    wait_until("it to be noticed", || http::get(daemon.admin, "/readyz").status == 503);
    let not_ready = http::get(daemon.admin, "/readyz").json();
    assert_eq!(not_ready["ready"], false);
    assert!(not_ready["not_ready"].as_array().is_some_and(|what| !what.is_empty()), "{not_ready}");
    assert_eq!(http::get(daemon.admin, "/healthz").status, 200, "alive all the same");
    let families = prometheus::parse(&http::get(daemon.admin, "/metrics").text());
    assert_eq!(families["llm_bridge_ready"].samples["llm_bridge_ready"], 0.0);
    redis.restart();
    wait_until("it to be ready again", || http::get(daemon.admin, "/readyz").status == 200);
}

#[test]
fn the_dashboard_needs_nothing_from_elsewhere() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let page = http::get(daemon.admin, "/");
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")));
    let text = page.text();
    assert!(text.contains("stats.json"), "it is live");
    for elsewhere in ["src=\"http", "href=\"http", "src=\"//", "@import", "url(http"] {
        assert!(!text.contains(elsewhere), "{elsewhere}");
    }
    assert_eq!(http::get(daemon.admin, "/nothing").status, 404);
    assert_eq!(http::request(daemon.admin, "POST", "/metrics", &[("Content-Length", "0")]).status, 405);
    assert_eq!(http::request(daemon.admin, "HEAD", "/healthz", &[]).status, 200);
    // Operators' resources are not on the public listener, nor clients' resources on the other one.
    for path in ["/metrics", "/stats.json", "/readyz"] {
        assert_eq!(http::get(daemon.public, path).status, 404, "{path}");
    }
    assert_eq!(http::get(daemon.admin, "/v1/streams/s1/m").status, 404);
}
