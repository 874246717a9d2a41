//! Tests of receipts against a real Redis.

use std::sync::Arc;

use ::redis::cmd;

use super::*;
use crate::message::record::Asker;
use crate::message::{RedisClock, Slot};
use crate::model::Entry;
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
    inbox: Receiver<ToDelivery>,
    name: &'static str,
    link: Link,
    keys: Keys,
    clock: RedisClock,
    counters: Counters,
    start: Instant,
}

impl Instance {
    fn new(server: &RedisServer, name: &'static str) -> Self {
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
        let (delivery, inbox) = queue::bounded("inbox", 10_000);
        Self {
            receipts: Receipts::new(
                (queue, Answers::new(vec![delivery])),
                &stream,
                (1000, Cap::new("llm:receipts:svc".into(), 1 << 30)),
                start,
            ),
            sender,
            inbox,
            name,
            link: server.link(),
            keys: Keys::new("llm", "svc", "i"),
            clock: RedisClock::default(),
            counters: Counters::default(),
            start,
        }
    }

    fn ack(&mut self, id: &str, by: &str) {
        self.acknowledge(id, by, false);
    }

    fn acknowledge(&mut self, id: &str, by: &str, is_once: bool) {
        let generation = Some(Arc::new(r"g\u0031".to_owned()));
        let asker = Asker { delivery: 0, connection: Slot { index: 0, generation: 0 }, about: None };
        let (id, by, asked_at) = (id.parse().unwrap(), by.to_owned(), self.start);
        let acked = Acked { stream: name(), id, generation, by, at_us: 5, is_once, asker, asked_at };
        self.sender.try_send(Receipt::Acked(acked)).unwrap();
    }

    fn answers(&self) -> Vec<Result<Position, &'static str>> {
        let answer = |message| match message {
            ToDelivery::AckAnswered(_, id, outcome) => outcome.map(|()| id).map_err(|refused| refused.code),
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(|| self.inbox.try_recv()).map(answer).collect()
    }

    fn end(&mut self, ms: u64) {
        let (stream, id) = (name(), EntryId::new(ms, 0));
        let ended = Ended { stream, id, generation: None, at_redis_us: ms * 1000 };
        self.sender.try_send(Receipt::Ended(ended)).unwrap();
    }

    /// A turn at this time, on a connection that was opened long before.
    fn tend(&mut self, now_ms: u64) -> Result<(), RedisError> {
        for after in [Duration::ZERO, REST] {
            self.turn(now_ms * 1000, after)?;
        }
        Ok(())
    }

    /// A turn `after` the connection was opened.
    fn turn(&mut self, now_us: u64, after: Duration) -> Result<(), RedisError> {
        let Self { receipts, link, keys, clock, counters, start, name, .. } = self;
        let context = WriteContext { keys, clock, counters, now_us, now: *start + after, me: name };
        receipts.tend(link, 1, context)
    }
}

fn written(server: &RedisServer) -> Vec<String> {
    let range = Cmd::xrange_all("llm:receipts:svc");
    let entries = server.link().call(&range).unwrap().entries().unwrap();
    let line = |entry: &Entry| {
        let field = |name| String::from_utf8(entry.fields.get(name).unwrap().to_vec()).unwrap();
        ["stream", "id", "generation", "status", "by", "at"].map(field).join(" ")
    };
    entries.iter().map(line).collect()
}

const AFTER_MS: u64 = 60_000;

#[test]
fn acknowledged_answers_are_written_and_not_judged() {
    let server = RedisServer::start(&[]);
    let (mut one, mut other) = (Instance::new(&server, "i1"), Instance::new(&server, "i2"));
    for instance in [&mut one, &mut other] {
        instance.end(100);
        instance.end(200);
    }
    one.ack("50-0", "a");
    one.ack("100-0", "b");
    // A position in the middle of an entry does not cover the entry.
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
    let mut instance = Instance::new(&server, "i1");
    instance.end(100);
    instance.end(100);
    instance.tend(99 + AFTER_MS).unwrap();
    assert_eq!((written(&server).len(), instance.receipts.unjudged()), (0, 1));
    instance.tend(100 + AFTER_MS).unwrap();
    instance.end(100);
    instance.tend(100 + AFTER_MS).unwrap();
    assert_eq!((written(&server).len(), instance.receipts.unjudged()), (1, 0));
    let ttl = server.link().query::<i64>(&Cmd::pttl("llm:once:svc:untaken:s/m:1:100-0"));
    assert!(ttl.unwrap() > 0);
}

#[test]
fn a_new_connection_rests_before_it_judges() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    instance.end(100);
    instance.ack("7-0", "a");
    instance.turn(u64::MAX / 2, Duration::ZERO).unwrap();
    assert_eq!(written(&server).len(), 1, "the acknowledgement");
    instance.turn(u64::MAX / 2, REST).unwrap();
    assert_eq!(written(&server).len(), 2);
}

#[test]
fn refused_receipts_are_reported_at_once_and_written_later() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    let run = |words: &[&str]| drop(server.link().call(cmd(words[0]).arg(&words[1..])).unwrap());
    let troubles: [(&[&str], &[&str], &str); 2] = [
        (&["SET", "llm:receipts:svc", "no stream"], &["DEL", "llm:receipts:svc"], "wrong_type"),
        (&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"], "redis_refuses"),
    ];
    for (n, (begin, end, code)) in troubles.into_iter().enumerate() {
        run(begin);
        let id = format!("{}-0", n + 7);
        instance.acknowledge(&id, "a", true);
        instance.end(100 + n as u64);
        instance.tend(200 + AFTER_MS).unwrap();
        assert_eq!(instance.answers(), [Err(code)]);
        assert!(instance.receipts.trouble().is_some(), "{code}");
        // A client that got no positive answer acknowledges again, and gets one receipt.
        instance.start += Duration::from_secs(60);
        instance.acknowledge(&id, "a", true);
        run(end);
        instance.tend(200 + AFTER_MS).unwrap();
        assert_eq!(instance.answers(), [Ok(id.parse().unwrap())]);
        instance.tend(200 + AFTER_MS).unwrap();
        let lines = written(&server);
        assert_eq!(lines.iter().filter(|line| line.contains(" acked ")).count(), 1, "{lines:?}");
        assert_eq!((lines.len(), instance.receipts.left()), (2, 0), "{lines:?}");
        run(&["DEL", "llm:receipts:svc"]);
    }
    assert_eq!(instance.counters.receipts_failed.get(), 0);
}

#[test]
fn receipts_wait_within_a_limit_until_an_operator_has_fixed_the_key() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    let run = |words: &[&str]| drop(server.link().call(cmd(words[0]).arg(&words[1..])).unwrap());
    run(&["SET", "llm:receipts:svc", "no stream"]);
    // More than one turn takes, from clients with long names.
    let by = "x".repeat(1000);
    let count = ACKS_HELD_BYTES_MAX / 1000 + 100;
    for _ in 0..count {
        instance.ack("7-0", &by);
    }
    for _ in 0..3 {
        instance.start += Duration::from_secs(60);
        instance.tend(0).unwrap();
        instance.answers();
        assert!(instance.receipts.hand_bytes() <= ACKS_HELD_BYTES_MAX + 2000);
        assert_eq!(instance.receipts.left(), count, "none is given up, however many wait");
    }
    assert!(instance.receipts.hand_bytes() > ACKS_HELD_BYTES_MAX / 2);
    run(&["DEL", "llm:receipts:svc"]);
    instance.start += Duration::from_secs(60);
    while instance.receipts.left() > 0 {
        instance.tend(0).unwrap();
        instance.answers();
    }
    assert_eq!(instance.counters.receipts_acked.get(), count as u64);
    assert_eq!(instance.counters.receipts_failed.get(), 0);
}

#[test]
fn a_repeated_acknowledgement_of_an_end_gets_an_answer_and_no_second_receipt() {
    let server = RedisServer::start(&[]);
    let mut instances = ["i1", "i2"].map(|name| Instance::new(&server, name));
    for _ in 0..3 {
        for instance in &mut instances {
            instance.acknowledge("9-0", "a", true);
            instance.acknowledge("9-0", "a", true);
            instance.acknowledge("9-0", "b", true);
            instance.tend(0).unwrap();
            assert_eq!(instance.answers(), vec![Ok("9-0".parse().unwrap()); 3]);
        }
    }
    assert_eq!(written(&server), ["s/m:1 9-0 g1 acked a 5", "s/m:1 9-0 g1 acked b 5"]);
}

#[test]
fn waiting_clients_are_answered_in_time() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    let marker = "llm:once:svc:acked:s/m:1:9-0:a";
    server.link().call(cmd("SET").arg(&[marker, "i2", "PX", "10000"])).unwrap();
    instance.acknowledge("9-0", "a", true);
    instance.turn(0, Duration::ZERO).unwrap();
    assert_eq!(instance.answers(), [], "another instance is writing it");
    instance.turn(0, PATIENCE).unwrap();
    assert_eq!(instance.answers(), [Err("redis_timeout")]);
    instance.ack("5-0", "a");
    let Instance { receipts, counters, start, .. } = &mut instance;
    receipts.give_up(counters, *start + PATIENCE, "away");
    assert_eq!(instance.answers(), [Err("redis_unreachable")]);
    server.link().call(&Cmd::del(marker)).unwrap();
    instance.turn(0, PATIENCE * 2).unwrap();
    assert_eq!((instance.answers(), written(&server).len()), (vec![], 2), "they are written all the same");
}

#[test]
fn the_marker_is_never_lowered_however_many_raise_it() {
    let server = RedisServer::start(&[]);
    std::thread::scope(|scope| {
        for name in ["i1", "i2", "i3"] {
            let server = &server;
            scope.spawn(move || {
                let mut instance = Instance::new(server, name);
                for n in 0..100_u64 {
                    instance.ack(&format!("{}-0", if n % 3 == 0 { 1000 - n } else { 1 + n }), "a");
                    // A transaction that is overtaken is tried again.
                    while instance.turn(0, Duration::ZERO).is_err() {}
                }
            });
        }
    });
    let value: String = server.link().query(&Cmd::get("llm:once:svc:taken:s/m:1")).unwrap();
    assert_eq!(value, "1000-0");
    assert_eq!(written(&server).len(), 300);
}

#[test]
fn held_letters_are_bounded() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    (0..=ENDED_MAX as u64).for_each(|ms| instance.end(ms));
    while instance.receipts.left() > 0 {
        instance.tend(0).unwrap();
    }
    assert_eq!((instance.receipts.unjudged(), instance.counters.receipts_failed.get()), (ENDED_MAX, 1));
    (0..1000).for_each(|_| instance.ack("7-0", "a"));
    while instance.receipts.left() > 0 {
        instance.tend(0).unwrap();
        assert!(instance.receipts.acks.len() <= ACKS_PER_TURN);
        instance.answers();
    }
    assert!(written(&server).len() >= 1000);
}
