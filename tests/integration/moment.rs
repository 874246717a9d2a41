//! The moment of an answer's end: its state as a newcomer is told it, and the end that a daemon writes down where the
//! producer never does.

use crate::support::daemon::Daemon;
use crate::support::producer::Producer;
use crate::support::redis::RedisServer;
use crate::support::viewer::{KINDS, Kind, Viewer};

/// Newcomers share what was read a moment ago for others, so this is tried while such a read is fresh.
#[test]
fn a_newcomer_is_told_the_state_of_the_moment() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    for round in 0..10 {
        let mut producer = Producer::new(&redis, &format!("s{round}"), "m");
        let stream = producer.stream.clone();
        let mut staying = Viewer::open(daemon.public, Kind::WebSocket, &stream, "follow=1");
        for (turn, ending) in
            [Producer::end, |producer: &mut Producer| producer.fail("broken")].into_iter().enumerate()
        {
            let begun = producer.start(&format!("g{turn}"));
            let text = producer.delta("some");
            staying.read_to(&text);
            for kind in KINDS {
                let mut early =
                    Viewer::open(daemon.public, kind, &stream, &format!("follow=1&after={begun}"));
                early.read_to(&text);
                assert_eq!(early.transcript.open()["state"], "live");
            }
            let end = ending(&mut producer);
            staying.read_to(&end);
            let state =
                if staying.transcript.frames.last().unwrap().kind() == "end" { "ended" } else { "failed" };
            for kind in KINDS {
                let mut late = Viewer::open(daemon.public, kind, &stream, &format!("after={begun}"));
                late.expect_open(state);
                late.read_all().expect_finished(&end);
            }
        }
    }
}
