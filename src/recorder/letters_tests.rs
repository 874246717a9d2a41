//! Tests of the writer of dead letters against a real Redis.

use super::*;
use crate::message::RedisClock;
use crate::model::{Entry, EntryId, Fields};
use crate::observe::Counters;
use crate::queue::{self, Sender, Weight};
use crate::redis::testing::RedisServer;

/// One instance: its writer and its connection.
struct Instance {
    letters: Letters,
    sender: Sender<DeadLetter>,
    link: Link,
    keys: Keys,
    counters: Counters,
    name: &'static str,
    now: Instant,
}

impl Instance {
    fn new(server: &RedisServer, name: &'static str) -> Self {
        let weight = Weight { bytes_max: 64 << 10, weigh: DeadLetter::len_bytes };
        let (sender, queue) = queue::weighed("letters", 1024, weight, None);
        let now = Instant::now();
        Self {
            letters: Letters::new(queue, (100, Cap::new("llm:dlq:s".into(), 1 << 20)), now),
            sender,
            link: server.link(),
            keys: Keys::new("llm", "s", name),
            counters: Counters::default(),
            name,
            now,
        }
    }

    fn meet(&self, ms: u64, fields: &[(&[u8], &[u8])]) -> bool {
        let entry = Entry { id: EntryId::new(ms, 1), fields: Fields::from_pairs(fields) };
        let (stream, message) = ("s/m:1".parse().unwrap(), "why".into());
        let letter = DeadLetter { stream, entry, reason: "malformed", message };
        self.sender.try_send(letter).is_ok()
    }

    fn tend(&mut self) {
        self.now += Duration::from_secs(60);
        let clock = RedisClock::default();
        let Self { letters, link, keys, counters, name, now, .. } = self;
        let context = WriteContext { keys, clock: &clock, counters, now_us: 7, now: *now, me: name };
        letters.tend(link, context).unwrap();
    }
}

fn letters(server: &RedisServer) -> Vec<Entry> {
    let range = Cmd::xrange_all("llm:dlq:s");
    server.link().call(&range).unwrap().entries().unwrap()
}

#[test]
fn an_entry_has_one_dead_letter_however_many_meet_it() {
    let server = RedisServer::start(&[]);
    let mut instances = ["i1", "i2"].map(|name| Instance::new(&server, name));
    for _ in 0..2 {
        for instance in &mut instances {
            instance.meet(5, &[(b"data", b"{\"a\":\"\xc3\xa4\""), (b"x", b"")]);
            instance.tend();
        }
    }
    let letters = letters(&server);
    assert_eq!(letters.len(), 1);
    let text = |field| String::from_utf8(letters[0].fields.get(field).unwrap().to_vec()).unwrap();
    let fields = ["stream", "id", "reason", "message", "processor", "attempts", "fields"].map(text);
    assert_eq!(
        fields,
        ["s/m:1", "5-1", "malformed", "why", "deliver", "1", r#"{"data":"{\"a\":\"ä\"","x":""}"#]
    );
    assert!(instances.iter().all(|instance| instance.letters.left() == 0));
}

#[test]
fn a_claim_that_another_instance_left_behind_is_taken_over_when_it_runs_out() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    let marker = "llm:once:s:dead:deliver:s/m:1:5-1";
    server.link().call(cmd("SET").arg(&[marker, "dead", "PX", "10000"])).unwrap();
    instance.meet(5, &[(b"data", b"{")]);
    instance.tend();
    instance.tend();
    assert_eq!((letters(&server).len(), instance.letters.left()), (0, 1), "it is looked at again");
    server.link().call(&Cmd::del(marker)).unwrap();
    instance.tend();
    assert_eq!((letters(&server).len(), instance.letters.left()), (1, 0));
}

#[test]
fn letters_are_written_once_redis_has_memory_again() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    let config = |value| server.link().call(cmd("CONFIG").arg(&["SET", "maxmemory", value])).unwrap();
    config("1");
    let mut met = 0;
    // The queue is the limit: further letters have to wait in the threads that create them.
    while instance.meet(met, &[(b"data", &[b'x'; 1000])]) {
        met += 1;
        instance.tend();
    }
    assert_eq!(instance.letters.left() as u64, met, "none is given up");
    config("0");
    while instance.letters.left() > 0 {
        instance.tend();
    }
    assert_eq!(instance.counters.dead_letters_written.get(), met);
    assert_eq!(instance.counters.dead_letters_failed.get(), 0);
}

#[test]
fn letters_are_written_once_an_operator_has_fixed_the_key() {
    let server = RedisServer::start(&[]);
    let mut instance = Instance::new(&server, "i1");
    server.link().call(&Cmd::set("llm:dlq:s", "no stream")).unwrap();
    let mut met = 0;
    while instance.meet(met, &[(b"data", &[b'x'; 1000])]) {
        met += 1;
        instance.tend();
    }
    assert_eq!(instance.letters.left() as u64, met, "none is given up, however many wait");
    assert!(met * 1000 > (64 << 10) / 2, "the bytes of the queue are the bound: {met}");
    assert!(instance.letters.trouble().is_some_and(|trouble| trouble.contains("llm:dlq:s: WRONGTYPE")));
    server.link().call(&Cmd::del("llm:dlq:s")).unwrap();
    while instance.letters.left() > 0 {
        instance.tend();
    }
    assert_eq!(instance.counters.dead_letters_written.get(), met);
    assert!(instance.letters.trouble().is_none());
}
