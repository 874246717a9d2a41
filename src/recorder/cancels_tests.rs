//! Tests of the writer of requests to cancel against a real Redis.

use super::*;
use crate::decode::Milestone;
use crate::message::{RedisClock, Slot};
use crate::model::Entry;
use crate::observe::Counters;
use crate::queue::{self, Sender};
use crate::redis::testing::RedisServer;

/// One instance: its writer and its connection.
struct Instance {
    cancels: Cancels,
    sender: Sender<CancelRequest>,
    inbox: Receiver<ToDelivery>,
    link: Link,
    keys: Keys,
    counters: Counters,
    name: &'static str,
    now: Instant,
}

fn by_type(entry: &Entry) -> Milestone {
    match entry.fields.get("t") {
        Some(b"text") => Milestone::Begins,
        Some(b"end") => Milestone::Ends,
        _ => Milestone::Neither,
    }
}

impl Instance {
    fn new(server: &RedisServer, name: &'static str) -> Self {
        let (sender, queue) = queue::bounded("cancels", 100_000);
        let (delivery, inbox) = queue::bounded("inbox", 100_000);
        Self {
            cancels: Cancels::new(queue, Answers::new(vec![delivery]), Box::new(by_type)),
            sender,
            inbox,
            link: server.link(),
            keys: Keys::new("llm", "s", name),
            counters: Counters::default(),
            name,
            now: Instant::now(),
        }
    }

    fn ask(&self, stream: &str) {
        let connection = Slot { index: 0, generation: 0 };
        let asker = Asker { delivery: 0, connection, about: None };
        let (stream, reason, by) = (stream.parse().unwrap(), Some("enough".into()), "10.0.0.1".into());
        self.sender.try_send(CancelRequest { stream, reason, by, asker, asked_at: self.now }).unwrap();
    }

    fn turn(&mut self) {
        let clock = RedisClock::default();
        self.now += OTHERS_PAUSE;
        let Self { cancels, link, keys, counters, name, now, .. } = self;
        let context = WriteContext { keys, clock: &clock, counters, now_us: 7, now: *now, me: name };
        cancels.tend(link, context).unwrap();
    }

    fn outcomes(&self) -> Vec<Result<(), Refused>> {
        let outcome = |message| match message {
            ToDelivery::CancelAnswered(_, outcome) => outcome,
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(|| self.inbox.try_recv()).map(outcome).collect()
    }

    fn answers(&self) -> Vec<Result<(), &'static str>> {
        self.outcomes().into_iter().map(|outcome| outcome.map_err(|refused| refused.code)).collect()
    }

    fn cancel(&mut self, stream: &str) -> Result<(), &'static str> {
        self.ask(stream);
        self.turn();
        self.answers().pop().unwrap_or(Err("no answer"))
    }
}

fn run(server: &RedisServer, words: &[&str]) -> Reply {
    server.link().call(cmd(words[0]).arg(&words[1..])).unwrap()
}

fn requests(server: &RedisServer, stream: &str) -> Vec<Entry> {
    let key = format!("llm:control:{}", stream.replace('/', ":"));
    run(server, &["XRANGE", &key, "-", "+"]).entries().unwrap()
}

#[test]
fn one_request_is_pending_for_each_generation_over_all_instances() {
    let server = RedisServer::start(&[]);
    let mut instances = ["i1", "i2"].map(|name| Instance::new(&server, name));
    let add = |kind: &str| drop(run(&server, &["XADD", "llm:stream:s:m", "*", "t", kind]));
    for generation in 1..=3 {
        add("text");
        for _ in 0..5 {
            for instance in &mut instances {
                (0..100).for_each(|_| instance.ask("s/m"));
                instance.turn();
                assert_eq!(instance.answers(), vec![Ok(()); 100]);
            }
            add("text");
        }
        assert_eq!(requests(&server, "s/m").len(), generation);
        add("end");
        add("other");
    }
    let request = requests(&server, "s/m").pop().unwrap();
    let text = |field| String::from_utf8(request.fields.get(field).unwrap().to_vec()).unwrap();
    assert_eq!(["type", "reason", "by", "at"].map(text), ["cancel", "enough", "10.0.0.1", "7"]);
    let ttl = run(&server, &["PTTL", "llm:control:s:m"]).integer().unwrap();
    assert!((60_001..=3_600_000).contains(&ttl), "{ttl}");
}

#[test]
fn a_request_between_two_generations_does_not_stand_for_the_next() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    for (kind, requests_then) in [("end", 1), ("text", 2), ("text", 2)] {
        run(&server, &["XADD", "llm:stream:s:m", "*", "t", kind]);
        for _ in 0..3 {
            assert_eq!(instance.cancel("s/m"), Ok(()));
        }
        assert_eq!(requests(&server, "s/m").len(), requests_then, "{kind}");
    }
}

#[test]
fn names_that_nobody_has_written_are_kept_for_a_minute_and_are_bounded() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    for n in 0..=UNWRITTEN_MAX {
        instance.ask(&format!("s{n}/m"));
    }
    instance.ask("s0/m");
    while instance.cancels.next(instance.now).is_some() {
        instance.turn();
    }
    let answers = instance.answers();
    assert_eq!(answers.iter().filter(|answer| **answer == Err("too_many")).count(), 1);
    assert_eq!((answers.len(), instance.cancels.unwritten()), (UNWRITTEN_MAX + 2, UNWRITTEN_MAX));
    let ttl = run(&server, &["PTTL", "llm:control:s0:m"]).integer().unwrap();
    assert!((1..=60_000).contains(&ttl), "{ttl}");
    let keys = run(&server, &["DBSIZE"]).integer().unwrap();
    assert_eq!(keys, 2 * UNWRITTEN_MAX as i64, "a refused name leaves nothing behind");
    run(&server, &["XADD", "llm:stream:new:m", "*", "t", "text"]);
    assert_eq!(instance.cancel("new/m"), Ok(()), "one that is written is none of them");
    // There is room when the oldest one is forgotten, not earlier.
    let (first, _) = instance.cancels.unwritten.order[0];
    let mut wait_of = |at: Instant| {
        instance.now = at - OTHERS_PAUSE;
        instance.ask("late/m");
        instance.turn();
        let refused = instance.outcomes().pop().unwrap().unwrap_err();
        let seconds = refused.retry_after_s().unwrap();
        assert!(refused.message.ends_with(&format!("try again in {seconds} s")), "{}", refused.message);
        seconds
    };
    assert_eq!(wait_of(first - Duration::from_millis(30_001)), 31);
    assert_eq!(wait_of(first - Duration::from_millis(1)), 1);
    instance.now += UNWRITTEN_KEPT;
    assert_eq!(instance.cancel("other/m"), Ok(()));
    assert_eq!(instance.cancels.unwritten(), 1);
}

#[test]
fn requests_that_redis_refuses_are_not_written_later() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    run(&server, &["XADD", "llm:stream:s:m", "*", "t", "text"]);
    run(&server, &["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(instance.cancel("s/m"), Err("redis_refuses"));
    run(&server, &["CONFIG", "SET", "maxmemory", "0"]);
    run(&server, &["CONFIG", "SET", "min-replicas-to-write", "1"]);
    assert_eq!(instance.cancel("s/m"), Err("redis_refuses"));
    run(&server, &["CONFIG", "SET", "min-replicas-to-write", "0"]);
    run(&server, &["SET", "llm:control:s:m", "no stream"]);
    assert_eq!(instance.cancel("s/m"), Err("wrong_type"));
    run(&server, &["DEL", "llm:control:s:m"]);
    instance.turn();
    assert!(requests(&server, "s/m").is_empty());
    assert_eq!(instance.cancel("s/m"), Ok(()));
    assert_eq!(requests(&server, "s/m").len(), 1);
}

#[test]
fn requests_that_wait_for_an_instance_or_redis_are_answered_in_time() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    run(&server, &["XADD", "llm:stream:s:m", "*", "t", "text"]);
    let marker = "llm:once:s:cancel:s/m";
    run(&server, &["SET", marker, "i2:another", "PX", "10000"]);
    assert_eq!(instance.cancel("s/m"), Err("no answer"));
    run(&server, &["DEL", marker]);
    instance.turn();
    assert_eq!(instance.answers(), [Ok(())], "the other one has died: it is taken over");
    run(&server, &["SET", marker, "i2:another", "PX", "10000"]);
    assert_eq!(instance.cancel("s/m"), Err("no answer"));
    instance.now += PATIENCE;
    instance.turn();
    assert_eq!(instance.answers(), [Err("redis_timeout")]);
    instance.ask("s/m");
    instance.cancels.give_up(instance.now, "away");
    assert_eq!(instance.answers(), []);
    instance.cancels.give_up(instance.now + AWAY_PATIENCE, "away");
    assert_eq!(instance.answers(), [Err("redis_unreachable")]);
}

#[test]
fn large_entries_in_the_streams_are_of_no_consequence() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    let streams: Vec<String> = (0..12).map(|n| format!("s{n}/m")).collect();
    let huge = vec![b'x'; 9 << 20];
    let add_huge = |stream: &str| {
        let key = format!("llm:stream:{}", stream.replace('/', ":"));
        server.link().call(&Cmd::xadd(&key, "*", &[("t", &huge)])).unwrap();
    };
    for stream in &streams {
        add_huge(stream);
        instance.ask(stream);
    }
    instance.turn();
    assert_eq!(instance.answers(), vec![Ok(()); streams.len()]);
    // Entries that follow such large ones are read as well.
    run(&server, &["XADD", "llm:stream:s0:m", "*", "t", "other"]);
    (0..4).for_each(|_| add_huge("s0/m"));
    assert_eq!(instance.cancel("s0/m"), Ok(()));
    assert_eq!(requests(&server, "s0/m").len(), 1, "nothing has begun");
    run(&server, &["XADD", "llm:stream:s0:m", "*", "t", "text"]);
    assert_eq!(instance.cancel("s0/m"), Ok(()));
    assert_eq!(requests(&server, "s0/m").len(), 2);
}

#[test]
fn the_requests_of_a_stream_are_capped() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    let old = Cmd::xadd("llm:control:s:m", "*", &[("type", "other")]);
    server.link().call_all(vec![old; 10 * CONTROL_ENTRIES_MAX as usize]).unwrap();
    run(&server, &["XADD", "llm:stream:s:m", "*", "t", "text"]);
    assert_eq!(instance.cancel("s/m"), Ok(()));
    // Redis trims whole nodes, of a hundred entries by default.
    let kept = run(&server, &["XLEN", "llm:control:s:m"]).integer().unwrap();
    assert!(kept <= 2 * i64::from(CONTROL_ENTRIES_MAX), "{kept}");
    assert_eq!(requests(&server, "s/m").last().unwrap().fields.get("type"), Some(&b"cancel"[..]));
}
