//! The log under floods: a few lines say what is wrong and how often, however much comes in.

use serde_json::json;

use crate::support::daemon::Daemon;
use crate::support::patience::wait_until;
use crate::support::redis::RedisServer;
use crate::support::viewer::{KINDS, view};

/// More lines than a daemon writes about anything that keeps happening in the time of a test.
const LINES_MAX: usize = 60;

#[test]
fn entries_that_cannot_be_read_do_not_fill_the_log() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut objects = vec!["no object".to_owned(); 20_000];
    objects.push(json!({"type": "end"}).to_string());
    redis.connect().add_all("llm:stream:s:m", &objects);
    for _ in 0..2 {
        for kind in KINDS {
            let transcript = view(daemon.public, kind, "s/m", "");
            assert!(transcript.of_kind("skipped").next().is_some());
        }
    }
    wait_until("all entries to be found out", || daemon.counter("entries_undecodable") >= 20_000);
    let log = daemon.log();
    assert!(log.lines().count() <= LINES_MAX, "{} lines", log.lines().count());
}
