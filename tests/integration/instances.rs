//! Several daemons on one Redis: clients resume at any of them, each sees everything; an instance id belongs to one
//! live daemon, and the leftovers of a dead one are taken over or removed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::daemon::{Daemon, DaemonOptions};
use crate::support::http;
use crate::support::patience::{wait_for, wait_until};
use crate::support::producer::{Producer, tokens};
use crate::support::redis::{Redis, RedisServer};
use crate::support::viewer::{KINDS, Kind, Viewer};

const LEASE: &str = "llm:instance:llm-bridge:i1";
const GROUP: &str = "llm:consumer:llm-bridge:i1";
const KEY: &str = "llm:stream:s1:m";
/// The lease's value as a daemon on another host may have written it.
const FOREIGN: &str = "another-host:4711:4f1c";

fn instance(redis: &RedisServer, id: &str) -> DaemonOptions {
    Daemon::options(redis).set(&format!("service.instance={id}"))
}

fn holder(redis: &mut Redis) -> Option<String> {
    redis.run(&["GET", LEASE])
}

/// Checks that a daemon exits because of its instance id, and says so.
fn expect_refused(mut daemon: Daemon, id: &str) {
    daemon.expect_exit(78);
    let log = daemon.log();
    let names_both =
        log.lines().any(|line| line.contains(&format!("{id:?}")) && line.contains("service.instance"));
    assert!(names_both, "no line names the instance id and the key that gives it:\n{log}");
}

#[test]
fn a_client_resumes_at_another_instance() {
    let redis = RedisServer::start();
    let daemons = ["i1", "i2"].map(|id| instance(&redis, id).start());
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let mut texts = KINDS.map(|_| String::new());
    let mut afters = KINDS.map(|_| "0".to_owned());
    for round in 0..8 {
        // From one to the other and back, while the producer continues.
        let daemon = &daemons[round % 2];
        let mut viewers = Vec::new();
        for (kind, after) in KINDS.into_iter().zip(&afters) {
            viewers.push(Viewer::open(daemon.public, kind, "s1/m", &format!("after={after}")));
        }
        let newest = producer.tokens(round * 10..round * 10 + 10).pop().unwrap();
        for ((mut viewer, text), after) in viewers.into_iter().zip(&mut texts).zip(&mut afters) {
            viewer.read_to(&newest);
            text.push_str(&viewer.transcript.text());
            after.clone_from(&newest);
        }
    }
    assert_eq!(texts, [tokens(0..80), tokens(0..80)]);
}

#[test]
fn each_instance_sees_every_entry() {
    let redis = RedisServer::start();
    let daemons = ["i1", "i2", "i3"].map(|id| instance(&redis, id).start());
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.start("g1");
    let mut viewers = Vec::new();
    for daemon in &daemons {
        for kind in KINDS {
            let mut viewer = Viewer::open(daemon.public, kind, "s1/m", "");
            viewer.read_to(&first);
            viewers.push(viewer);
        }
    }
    producer.tokens_at(5_000, 0..1_000, |_| {});
    let end = producer.end();
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert!(transcript.text() == tokens(0..1_000), "not everything, in order, once");
        assert_eq!(transcript.entries(), 1_002);
        transcript.expect_finished(&end);
    }
}

#[test]
fn a_second_daemon_with_the_same_id_does_not_start() {
    let redis = RedisServer::start();
    let mut first = instance(&redis, "i1").start();
    let held = holder(&mut redis.connect());
    expect_refused(instance(&redis, "i1").spawn(), "i1");
    assert!(first.is_running());
    assert_eq!(holder(&mut redis.connect()), held, "the lease stays with the first");
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("one");
    let mut viewer = Viewer::open(first.public, Kind::WebSocket, "s1/m", "");
    viewer.read_to(&producer.end());
}

#[test]
fn another_spelling_of_the_same_redis_makes_no_difference() {
    let redis = RedisServer::start();
    let spelled =
        |id: &str, host| instance(&redis, id).set(&format!("redis.url=redis://{host}:{}/0", redis.port()));
    let spellings = [("i1", "127.0.0.1", "localhost"), ("i11", "localhost", "127.0.0.1")];
    let running = spellings.map(|(id, first, _)| spelled(id, first).start());
    let refused = spellings.map(|(id, _, second)| spelled(id, second).spawn());
    for ((mut running, refused), (id, ..)) in running.into_iter().zip(refused).zip(spellings) {
        expect_refused(refused, id);
        assert!(running.is_running());
    }
}

#[test]
fn the_same_id_in_another_service_or_another_database_is_another() {
    let redis = RedisServer::start();
    let elsewhere = format!("redis.url=redis://127.0.0.1:{}/1", redis.port());
    let mut daemons = [
        instance(&redis, "i1").start(),
        instance(&redis, "i1").set("service.name=other").start(),
        instance(&redis, "i1").set(&elsewhere).start(),
        instance(&redis, "i1").set("redis.prefix=other").start(),
    ];
    assert!(daemons.iter_mut().all(Daemon::is_running));
}

#[test]
fn a_killed_daemon_takes_its_id_back_at_once() {
    let redis = RedisServer::start();
    let mut daemon = instance(&redis, "i1").start();
    daemon.kill();
    let mut connection = redis.connect();
    let dead = holder(&mut connection).expect("the dead one's lease is still there");
    // Its lease will not expire during this test: only a takeover makes the next one ready.
    connection.run::<u64>(&["PEXPIRE", LEASE, "3600000"]);
    let again = daemon.start_again();
    let held = holder(&mut connection).expect("a lease");
    assert_ne!(held, dead);
    let time_left: i64 = connection.run(&["PTTL", LEASE]);
    assert!((1..=5_000).contains(&time_left), "{time_left} ms");
    assert_eq!(http::get(again.admin, "/readyz").status, 200);
}

#[test]
fn an_id_held_elsewhere_is_not_taken() {
    let redis = RedisServer::start();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // From here, a daemon elsewhere looks like this: a lease that is renewed.
        scope.spawn(|| {
            let mut connection = redis.connect();
            while !is_over.load(Ordering::Relaxed) {
                connection.run::<()>(&["SET", LEASE, FOREIGN, "PX", "5000"]);
                thread::sleep(Duration::from_millis(100));
            }
        });
        wait_until("the foreign lease", || holder(&mut redis.connect()).is_some());
        let daemon = instance(&redis, "i1").spawn();
        // The other one stops even if this fails.
        let outcome = scope.spawn(|| expect_refused(daemon, "i1")).join();
        let held = holder(&mut redis.connect());
        is_over.store(true, Ordering::Relaxed);
        outcome.unwrap();
        assert_eq!(held.as_deref(), Some(FOREIGN));
    });
}

#[test]
fn a_foreign_lease_that_runs_out_is_taken() {
    let redis = RedisServer::start();
    let mut connection = redis.connect();
    connection.run::<()>(&["SET", LEASE, FOREIGN, "PX", "2000"]);
    let mut daemon = instance(&redis, "i1").spawn();
    // Readiness first, the holder second: a ready daemon holds the lease.
    daemon.wait_ready();
    let held = holder(&mut connection);
    assert!(held.is_some() && held.as_deref() != Some(FOREIGN), "{held:?}");
}

#[test]
fn a_lease_is_settled_when_redis_comes_and_not_ready_before() {
    let mut redis = RedisServer::start_durable();
    redis.connect().run::<()>(&["SET", LEASE, FOREIGN]);
    redis.kill();
    let mut daemon = instance(&redis, "i1").set("redis.backoff_max=50ms").start_alive();
    assert_eq!(http::get(daemon.admin, "/readyz").status, 503);
    redis.restart();
    wait_for("the daemon to give up", || {
        let ready = http::try_get(daemon.admin, "/readyz");
        assert!(ready.is_err() || ready.is_ok_and(|ready| ready.status == 503), "ready without its lease");
        (!daemon.is_running()).then_some(())
    });
    expect_refused(daemon, "i1");
    assert_eq!(holder(&mut redis.connect()).as_deref(), Some(FOREIGN));
}

#[test]
fn a_lease_of_another_type_takes_nothing_from_the_viewers_of_its_holder() {
    let redis = RedisServer::start();
    let daemon = instance(&redis, "i1").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.delta("one");
    let mut viewer = Viewer::open(daemon.public, Kind::Sse, "s1/m", "");
    viewer.read_to(&first);
    let mut connection = redis.connect();
    connection.run::<()>(&["DEL", LEASE]);
    connection.run::<()>(&["RPUSH", LEASE, "x"]);
    wait_until("the log to name the key", || daemon.log().contains(LEASE));
    // A lease that is not renewed expires in 5 s.
    thread::sleep(Duration::from_secs(6));
    let second = producer.delta("two");
    viewer.read_to(&second);
    let late = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    assert_eq!(http::get(daemon.admin, "/readyz").status, 200);
    connection.run::<()>(&["DEL", LEASE]);
    wait_until("the lease", || holder(&mut connection).is_some());
    let end = producer.end();
    for viewer in [viewer, late] {
        viewer.read_all().expect_finished(&end);
    }
}

#[test]
fn groups_of_the_killed_daemon_are_removed() {
    let redis = RedisServer::start();
    let mut daemon = instance(&redis, "i1").start();
    let mut connection = redis.connect();
    for session in ["s1", "s2"] {
        let mut producer = Producer::new(&redis, session, "m");
        let id = producer.delta("one");
        let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, &producer.stream, "");
        viewer.read_to(&id);
        wait_until("the group", || connection.groups(&producer.key) == [GROUP]);
    }
    // A group of another program stays.
    connection.run::<()>(&["XGROUP", "CREATE", KEY, "analytics", "0"]);
    daemon.kill();
    let _again = daemon.start_again();
    wait_until("the groups to be removed", || {
        connection.groups(KEY) == ["analytics"] && connection.groups("llm:stream:s2:m").is_empty()
    });
}

#[test]
fn the_old_pending_list_is_not_delivered_again() {
    let redis = RedisServer::start();
    let mut daemon = instance(&redis, "i1").set("threads.readers=1").start();
    let mut connection = redis.connect();
    let mut producer = Producer::new(&redis, "s1", "m");
    let seen = producer.tokens(0..10).pop().unwrap();
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "");
    viewer.read_to(&seen);
    wait_until("the group", || connection.groups(KEY) == [GROUP]);
    daemon.kill();
    // Entries as it may have read them right before it died: assigned to its consumer, on no socket, not
    // acknowledged.
    producer.tokens(10..20);
    connection.run::<redis::Value>(&[
        "XREADGROUP",
        "GROUP",
        GROUP,
        "reader-0",
        "COUNT",
        "5",
        "STREAMS",
        KEY,
        ">",
    ]);
    assert!(connection.pending(KEY, GROUP) >= 5);
    let again = daemon.start_again();
    let query = format!("after={seen}");
    let mut viewers = Vec::from(KINDS.map(|kind| Viewer::open(again.public, kind, "s1/m", &query)));
    viewers.push(Viewer::open(again.public, Kind::WebSocket, "s1/m", "after=$"));
    viewers.iter_mut().for_each(|viewer| viewer.expect_open("live"));
    producer.tokens(20..30);
    let end = producer.end();
    let only_new = viewers.pop().unwrap().read_all();
    assert_eq!(only_new.text(), tokens(20..30));
    only_new.expect_finished(&end);
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.text(), tokens(10..30));
        transcript.expect_finished(&end);
    }
    wait_until("an empty pending list", || {
        connection.groups(KEY).is_empty() || connection.pending(KEY, GROUP) == 0
    });
}
