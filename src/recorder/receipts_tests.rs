//! Tests of receipts against a real Redis.

use std::sync::Arc;

use super::*;
use crate::event::Entry;
use crate::event::message::RedisClock;
use crate::queue::{self, Sender};
use crate::redis::testing::RedisServer;

const AFTER: Duration = Duration::from_secs(60);

fn name() -> StreamName {
    "s/m:1".parse().unwrap()
}

/// One instance: its memory and its connection.
struct Instance {
    receipts: Receipts,
    sender: Sender<Receipt>,
    link: Link,
    keys: Keys,
    clock: RedisClock,
    counters: Counters,
    start: Instant,
}

impl Instance {
    fn new(server: &RedisServer) -> Self {
        let stream = config::Stream {
            stall_after: Duration::ZERO,
            abandon_after: Duration::ZERO,
            finish_grace: Duration::ZERO,
            linger: Duration::ZERO,
            receipts: true,
            receipts_after: AFTER,
        };
        let start = Instant::now();
        let (sender, queue) = queue::bounded("receipts", ENDED_MAX * 2);
        Self {
            receipts: Receipts::new(queue, &stream, 1000, start),
            sender,
            link: server.link(),
            keys: Keys::new("llm", "svc", "i"),
            clock: RedisClock::default(),
            counters: Counters::default(),
            start,
        }
    }

    fn ack(&mut self, id: &str, by: &str) {
        let generation = Some(Arc::new(r"g\u0031".to_owned()));
        let acked = Acked { stream: name(), id: id.parse().unwrap(), generation, by: by.into(), at_us: 5 };
        self.sender.try_send(Receipt::Acked(acked)).unwrap();
    }

    fn end(&mut self, ms: u64) {
        let (stream, id) = (name(), EntryId::new(ms, 0));
        let ended = Ended { stream, id, generation: None, at_redis_us: ms * 1000 };
        self.sender.try_send(Receipt::Ended(ended)).unwrap();
    }

    /// A turn at this time; it has been connected for long.
    fn tend(&mut self, now_ms: u64) -> Result<(), RedisError> {
        for after in [Duration::ZERO, REST] {
            self.turn(now_ms * 1000, after)?;
        }
        Ok(())
    }

    /// A turn `after` the connection was made.
    fn turn(&mut self, now_us: u64, after: Duration) -> Result<(), RedisError> {
        let Self { receipts, link, keys, clock, counters, start, .. } = self;
        let desk = Desk { keys, clock, counters, now_us, now: *start + after, me: "i" };
        receipts.tend(link, 1, desk)
    }
}

fn written(server: &RedisServer) -> Vec<String> {
    let range = Command::new("XRANGE").args(["llm:receipts:svc", "-", "+"]);
    let entries = server.link().call(&range).unwrap().entries().unwrap();
    let line = |entry: &Entry| {
        let field = |name| String::from_utf8(entry.fields.get(name).unwrap().to_vec()).unwrap();
        ["stream", "id", "generation", "status", "by", "at"].map(field).join(" ")
    };
    entries.iter().map(line).collect()
}

const AFTER_MS: u64 = 60_000;

#[test]
fn what_is_acknowledged_is_written_and_judged_no_more() {
    let server = RedisServer::start(&[]);
    let (mut one, mut other) = (Instance::new(&server), Instance::new(&server));
    for instance in [&mut one, &mut other] {
        instance.end(100);
        instance.end(200);
    }
    one.ack("50-0", "a");
    one.ack("100-0", "b");
    // In the middle of an entry it is not all of it.
    one.ack("200-0.1", "a");
    one.tend(300).unwrap();
    other.ack("70-0", "c");
    other.tend(200 + AFTER_MS).unwrap();
    one.tend(200 + AFTER_MS).unwrap();
    let acked = ["50-0 g1 acked a 5", "100-0 g1 acked b 5", "200-0.1 g1 acked a 5", "70-0 g1 acked c 5"];
    let mut expected: Vec<String> = acked.iter().map(|line| format!("s/m:1 {line}")).collect();
    expected.push(format!("s/m:1 200-0  untaken  {}", (200 + AFTER_MS) * 1000));
    assert_eq!(written(&server), expected, "a lower id takes nothing back");
    assert_eq!((one.counters.receipts_acked.get(), other.counters.receipts_untaken.get()), (3, 1));
}

#[test]
fn nothing_is_judged_before_its_time_nor_twice() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server);
    instance.end(100);
    instance.end(100);
    instance.tend(99 + AFTER_MS).unwrap();
    assert_eq!((written(&server).len(), instance.receipts.unjudged()), (0, 1));
    instance.tend(100 + AFTER_MS).unwrap();
    instance.end(100);
    instance.tend(100 + AFTER_MS).unwrap();
    assert_eq!((written(&server).len(), instance.receipts.unjudged()), (1, 0));
    let ttl = server.link().call(&Command::new("PTTL").arg("llm:once:svc:untaken:s/m:1:100-0"));
    assert!(ttl.unwrap().integer().unwrap() > 0);
}

#[test]
fn a_new_connection_rests_before_it_judges() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server);
    instance.end(100);
    instance.ack("7-0", "a");
    instance.turn(u64::MAX / 2, Duration::ZERO).unwrap();
    assert_eq!(written(&server).len(), 1, "the acknowledgement");
    instance.turn(u64::MAX / 2, REST).unwrap();
    assert_eq!(written(&server).len(), 2);
}

#[test]
fn a_receipt_that_is_refused_is_counted_and_may_be_written_by_another() {
    let server = RedisServer::start(&[]);
    let (mut one, mut other) = (Instance::new(&server), Instance::new(&server));
    let set = Command::new("SET").args(["llm:receipts:svc", "no stream"]);
    server.link().call(&set).unwrap();
    one.ack("7-0", "a");
    one.end(100);
    one.tend(100 + AFTER_MS).unwrap();
    assert_eq!((one.counters.receipts_failed.get(), one.receipts.unjudged()), (2, 0));
    server.link().call(&Command::new("DEL").arg("llm:receipts:svc")).unwrap();
    other.end(100);
    other.tend(100 + AFTER_MS).unwrap();
    assert_eq!(written(&server).len(), 1);
}

#[test]
fn what_is_overtaken_is_looked_at_again() {
    let server = RedisServer::start(&[]);
    let (mut link, mut rival) = (server.link(), server.link());
    let looks = std::cell::Cell::new(0);
    let mut decide = |races: u32| {
        looks.set(0);
        transact(&mut link, ["m"].into_iter(), |values| {
            looks.set(looks.get() + 1);
            if looks.get() <= races {
                let mut other = server.link();
                other.call(&Command::new("INCR").arg("m")).unwrap();
            }
            let value = values[0].as_deref().map_or(0, <[u8]>::len);
            Some(vec![Command::new("SET").args(["m", &format!("{value}!")])])
        })
        .unwrap()
    };
    assert_eq!(decide(0), Outcome::Written);
    rival.call(&Command::new("DEL").arg("m")).unwrap();
    assert_eq!(decide(2), Outcome::Written);
    assert_eq!(rival.call(&Command::new("GET").arg("m")).unwrap().text().unwrap(), "1!");
    rival.call(&Command::new("DEL").arg("m")).unwrap();
    assert_eq!(decide(1000), Outcome::Overtaken);
}

#[test]
fn what_is_held_is_bounded() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server);
    (0..=ENDED_MAX as u64).for_each(|ms| instance.end(ms));
    while instance.receipts.left() > 0 {
        instance.tend(0).unwrap();
    }
    assert_eq!((instance.receipts.unjudged(), instance.counters.receipts_failed.get()), (ENDED_MAX, 1));
    (0..1000).for_each(|_| instance.ack("7-0", "a"));
    while instance.receipts.left() > 0 {
        instance.tend(0).unwrap();
        assert!(instance.receipts.acks.len() <= ACKS_PER_TRIP);
    }
    assert!(written(&server).len() >= 1000);
}
