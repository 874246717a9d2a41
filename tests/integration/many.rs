//! Many live streams: Redis pushes to the reader which of them have news, and each behaves like a single stream.

use serde_json::json;

use crate::support::daemon::{Daemon, DaemonOptions};
use crate::support::patience::wait_until;
use crate::support::producer::{Producer, entry, token, tokens};
use crate::support::redis::{Redis, RedisServer, parsed_id};
use crate::support::transcript::id_order;
use crate::support::viewer::{KINDS, Viewer};

const STREAMS: usize = 40;

/// All streams belong to one reader.
fn options(redis: &RedisServer) -> DaemonOptions {
    Daemon::options(redis).set("service.instance=i1").set("threads.readers=1")
}

/// Streams with a viewer each, all of them live.
struct Many {
    producers: Vec<Producer>,
    viewers: Vec<Viewer>,
}

impl Many {
    fn start(redis: &RedisServer, daemon: &Daemon) -> Self {
        let mut many = Self { producers: Vec::new(), viewers: Vec::new() };
        for number in 0..STREAMS {
            let mut producer = Producer::new(redis, &format!("s{number}"), "m");
            let first = producer.tokens(0..1).pop().unwrap();
            let mut viewer = Viewer::open(daemon.public, KINDS[number % 2], &producer.stream, "");
            viewer.read_to(&first);
            many.producers.push(producer);
            many.viewers.push(viewer);
        }
        let mut connection = redis.connect();
        wait_until("the reader to be told", || is_told(&mut connection));
        many
    }

    /// Writes the tokens of these numbers to every stream, and waits until they arrive.
    fn pass(&mut self, numbers: std::ops::Range<usize>) {
        let newest: Vec<String> = self
            .producers
            .iter_mut()
            .map(|producer| producer.tokens(numbers.clone()).pop().unwrap())
            .collect();
        self.viewers.iter_mut().zip(&newest).for_each(|(viewer, id)| viewer.read_to(id));
    }

    /// Ends every stream. Returns each viewer's frames as lines.
    fn finish(mut self) -> Vec<Vec<String>> {
        let ends: Vec<String> = self.producers.iter_mut().map(Producer::end).collect();
        let finished = self.viewers.into_iter().zip(ends).map(|(viewer, end)| {
            let transcript = viewer.read_all();
            transcript.expect_finished(&end);
            transcript.outline()
        });
        finished.collect()
    }
}

/// Whether Redis pushes the names of changed keys to the reader's connection.
fn is_told(redis: &mut Redis) -> bool {
    let clients: String = redis.run(&["CLIENT", "LIST"]);
    let reader = clients.lines().find(|line| line.contains(" name=reader-0 "));
    reader.and_then(|line| line.split_once(" flags=")).is_some_and(|(_, flags)| flags.starts_with('t'))
}

fn add(producer: &Producer, number: usize) -> Vec<String> {
    let data = entry("delta", number, json!({"text": token(number)})).to_string();
    ["XADD", &producer.key, "*", "data", &data].map(str::to_owned).to_vec()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn bursts_arrive_whole_and_are_acknowledged() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    let mut many = Many::start(&redis, &daemon);
    // One, several, and more than one read takes from a stream.
    many.pass(1..2);
    many.pass(2..9);
    many.pass(9..1_200);
    let keys: Vec<String> = many.producers.iter().map(|producer| producer.key.clone()).collect();
    let mut connection = redis.connect();
    for (key, producer) in keys.iter().zip(&many.producers) {
        let newest = parsed_id(producer.ids.last().unwrap());
        wait_until("the acknowledgement", || connection.positions(key) == [newest]);
    }
    for outline in many.finish() {
        assert_eq!(outline, [format!("delta {}", tokens(0..1_200)), "end stop".into()]);
    }
}

#[test]
fn a_gap_in_one_stream_does_not_affect_others() {
    let redis = RedisServer::start();
    let daemon = options(&redis).start();
    let mut many = Many::start(&redis, &daemon);
    let mut connection = redis.connect();
    let [trimmed, deleted] = [&many.producers[3], &many.producers[4]];
    // Nobody can have read entries that one transaction adds and removes.
    let mut burst: Vec<_> = (1..6).map(|number| add(trimmed, number)).collect();
    burst.push(words(&["XTRIM", &trimmed.key, "MAXLEN", "1"]));
    connection.run_at_once::<Vec<redis::Value>>(&burst);
    let newest = deleted.ids[0].clone();
    wait_until("the next millisecond", || connection.now_ms() > id_order(&newest).0);
    let anew = [words(&["DEL", &deleted.key]), add(deleted, 1)];
    connection.run_at_once::<Vec<redis::Value>>(&anew);
    many.producers[3].write(&entry("delta", 6, json!({"text": token(6)})));
    for (number, producer) in many.producers.iter_mut().enumerate() {
        if number != 3 && number != 4 {
            producer.tokens(1..7);
        }
    }
    let ends: Vec<String> = many
        .producers
        .iter_mut()
        .map(|producer| producer.write(&json!({"type": "end", "finish_reason": "stop"})))
        .collect();
    for (number, (viewer, end)) in many.viewers.into_iter().zip(&ends).enumerate() {
        let transcript = viewer.read_all();
        transcript.expect_finished(end);
        let outline = transcript.outline();
        let expected = match number {
            3 => vec![
                format!("delta {}", token(0)),
                "gap trimmed 4".into(),
                format!("delta {}", tokens(5..7)),
                "end stop".into(),
            ],
            4 => vec![
                format!("delta {}", token(0)),
                "gap recreated null".into(),
                "gap producer 1".into(),
                format!("delta {}", token(1)),
                "end stop".into(),
            ],
            _ => vec![format!("delta {}", tokens(0..7)), "end stop".into()],
        };
        assert_eq!(outline, expected, "stream {number}");
    }
}

#[test]
fn a_reader_of_few_streams_stops_tracking() {
    let redis = RedisServer::start();
    let daemon = options(&redis).set("stream.linger=10ms").start();
    let mut many = Many::start(&redis, &daemon);
    let (mut first, mut viewer) = (many.producers.remove(0), many.viewers.remove(0));
    many.finish();
    let mut connection = redis.connect();
    wait_until("the reader to block again", || !is_told(&mut connection));
    let newest = first.tokens(1..5).pop().unwrap();
    viewer.read_to(&newest);
    assert_eq!(viewer.transcript.text(), tokens(0..5));
}
