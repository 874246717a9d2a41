//! Where history ends and live reading begins, nothing is lost and nothing is repeated, however many clients join,
//! whenever they do, and wherever they resume, while the producer runs at full speed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::daemon::Daemon;
use crate::support::patience::wait_until;
use crate::support::producer::{Producer, tokens};
use crate::support::random::Random;
use crate::support::redis::RedisServer;
use crate::support::viewer::{KINDS, Kind, Viewer};

const CLIENTS: usize = 50;
const PER_SECOND: u32 = 2_000;
const TOKENS: usize = 6_000;
const SEED: u64 = 20_251;

/// The state that the producer and the clients share.
#[derive(Default)]
struct Shared {
    /// The ids written so far; the one at position n is that of token n.
    written: Mutex<Vec<String>>,
    /// How many clients have received `open`.
    joined: AtomicUsize,
}

/// A client's result.
struct Outcome {
    /// The id after which it began.
    after: String,
    text: String,
    entries: usize,
}

fn choose_after(random: &mut Random, written: &Mutex<Vec<String>>) -> String {
    let ids = written.lock().unwrap();
    match random.below(8) {
        0 => "0".to_owned(),
        1 => "$".to_owned(),
        2 => "last".to_owned(),
        3 => ids.last().unwrap().clone(),
        _ => ids[random.below(ids.len())].clone(),
    }
}

/// Joins at a random time, at a random position, and reads to the end.
fn join(daemon: &Daemon, kind: Kind, random: &mut Random, shared: &Shared) -> Outcome {
    let span_ms = TOKENS * 1000 / usize::try_from(PER_SECOND).unwrap();
    thread::sleep(Duration::from_millis(u64::try_from(random.below(span_ms)).unwrap()));
    wait_until("the first entry", || !shared.written.lock().unwrap().is_empty());
    let after = choose_after(random, &shared.written);
    let mut viewer = Viewer::open(daemon.public, kind, "s1/m", &format!("after={after}"));
    viewer.expect_open("live");
    shared.joined.fetch_add(1, Ordering::Relaxed);
    viewer.read_until("end", |frame| frame.is_terminal());
    assert_eq!(viewer.next().map(|frame| frame.raw.clone()), None, "nothing follows the end");
    let transcript = viewer.transcript;
    assert!(transcript.of_kind("gap").next().is_none(), "{after}: {:?}", transcript.outline());
    let resolved = transcript.open()["after"].as_str().unwrap().to_owned();
    if after.contains('-') {
        assert_eq!(resolved, after);
    }
    Outcome { after: resolved, text: transcript.text(), entries: transcript.entries() }
}

#[test]
fn clients_that_join_at_random_times_get_everything_once() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let shared = Shared::default();
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let mut random = Random::new(SEED + u64::try_from(number).unwrap());
                let (daemon, shared) = (&daemon, &shared);
                scope.spawn(move || join(daemon, KINDS[number % 2], &mut random, shared))
            })
            .collect();
        let mut producer = Producer::new(&redis, "s1", "m");
        producer
            .tokens_at(PER_SECOND, 0..TOKENS, |ids| shared.written.lock().unwrap().extend_from_slice(ids));
        // Even the last client to join finds the stream unfinished.
        wait_until("all clients to join", || shared.joined.load(Ordering::Relaxed) == CLIENTS);
        producer.end();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let ids = shared.written.into_inner().unwrap();
    for Outcome { after, text, entries } in outcomes {
        let first = ids.iter().position(|id| *id == after).map_or(0, |position| position + 1);
        assert!(first > 0 || after == "0-0", "{after} is no id of the stream");
        assert_eq!(entries, TOKENS - first + 1, "after {after}");
        assert!(text == tokens(first..TOKENS), "after {after}: not the rest, in order, once");
    }
}
