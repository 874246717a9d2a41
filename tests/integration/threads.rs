//! The names of the daemon's threads in `top -H` and in a core dump.

use std::collections::BTreeSet;

use crate::support::daemon::Daemon;
use crate::support::patience::wait_for;
use crate::support::redis::RedisServer;

/// The names, once there are this many: a thread that has just started has no name of its own yet.
fn names_of(daemon: &Daemon, count: usize) -> BTreeSet<String> {
    wait_for("all threads", || Some(daemon.thread_names()).filter(|names| names.len() >= count))
}

#[test]
fn every_thread_has_the_name_of_its_role() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let expected = [
        "llm-bridge",
        "reader-0",
        "reader-1",
        "replay-0",
        "transform-0",
        "deliver-0",
        "watcher",
        "recorder",
        "admin",
        "stats",
    ];
    assert_eq!(names_of(&daemon, expected.len()), expected.map(str::to_owned).into());
}

#[test]
fn threads_are_as_many_as_configured() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis)
        .set("threads.readers=3")
        .set("threads.replays=2")
        .set("threads.transforms=2")
        .set("threads.deliveries=2")
        .start();
    let names = names_of(&daemon, 13);
    for (role, count) in [("reader-", 3), ("replay-", 2), ("transform-", 2), ("deliver-", 2)] {
        assert_eq!(names.iter().filter(|name| name.starts_with(role)).count(), count, "{role}: {names:?}");
    }
}
