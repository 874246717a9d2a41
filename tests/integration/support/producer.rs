//! Producers: one writes entries to one stream, numbered, at any rate, with text that shows its order; one continues
//! through outages, and keeps a ledger of the entries that Redis confirmed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::random::Random;
use super::redis::{Redis, RedisServer};

/// The `finish_reason` after which nothing follows.
pub(crate) const LAST: &str = "last";

/// The text of the n-th token: contains its number, and is not always ASCII.
pub(crate) fn token(number: usize) -> String {
    match number % 7 {
        3 => format!("{number}é "),
        5 => format!("{number}→\u{1F9ED}\n"),
        _ => format!("{number} "),
    }
}

/// The text of consecutive tokens.
pub(crate) fn tokens(numbers: std::ops::Range<usize>) -> String {
    numbers.map(token).collect()
}

/// One entry's `data`: an object of a type with a `seq` and further members.
pub(crate) fn entry(kind: &str, seq: usize, members: Value) -> Value {
    let mut object = json!({"type": kind, "seq": seq});
    let Value::Object(members) = members else { panic!("members are an object") };
    object.as_object_mut().unwrap().extend(members);
    object
}

/// Writes one stream.
pub(crate) struct Producer {
    redis: Redis,
    /// `{session}/{model}`.
    pub(crate) stream: String,
    /// The stream's key.
    pub(crate) key: String,
    /// The `seq` of the next entry.
    seq: usize,
    /// The ids of all entries written by this producer, in order.
    pub(crate) ids: Vec<String>,
}

impl Producer {
    /// A producer of `{session}/{model}`.
    pub(crate) fn new(server: &RedisServer, session: &str, model: &str) -> Self {
        Self {
            redis: server.connect(),
            stream: format!("{session}/{model}"),
            key: format!("llm:stream:{session}:{model}"),
            seq: 0,
            ids: Vec::new(),
        }
    }

    /// Writes fields of any bytes; `id` may be `*`.
    pub(crate) fn write_fields(&mut self, id: &str, fields: &[(&str, &[u8])]) -> String {
        let id = self.redis.add_entry(&self.key, id, fields);
        self.ids.push(id.clone());
        id
    }

    /// Writes a `data` object unchanged.
    pub(crate) fn write_text(&mut self, data: &str) -> String {
        self.write_fields("*", &[("data", data.as_bytes())])
    }

    /// Writes a `data` object, without adding a `seq`.
    pub(crate) fn write(&mut self, data: &Value) -> String {
        self.write_text(&data.to_string())
    }

    /// Writes several `data` objects one after another, without adding a `seq`.
    pub(crate) fn write_each(&mut self, objects: &[Value]) {
        for object in objects {
            self.write(object);
        }
    }

    /// Writes several `data` objects at once, without adding a `seq`.
    pub(crate) fn write_all(&mut self, objects: &[Value]) -> Vec<String> {
        let objects: Vec<String> = objects.iter().map(Value::to_string).collect();
        let ids = self.redis.add_all(&self.key, &objects);
        self.ids.extend_from_slice(&ids);
        ids
    }

    fn write_numbered(&mut self, kind: &str, members: Value) -> String {
        let object = entry(kind, self.seq, members);
        self.seq += 1;
        self.write(&object)
    }

    /// Begins a generation, and restarts `seq`.
    pub(crate) fn start(&mut self, generation: &str) -> String {
        self.seq = 0;
        self.write_numbered("start", json!({"generation": generation}))
    }

    pub(crate) fn delta(&mut self, text: &str) -> String {
        self.write_numbered("delta", json!({"text": text}))
    }

    /// Ends the generation with `finish_reason` `stop`.
    pub(crate) fn end(&mut self) -> String {
        self.write_numbered("end", json!({"finish_reason": "stop"}))
    }

    /// Ends the generation with an error.
    pub(crate) fn fail(&mut self, code: &str) -> String {
        self.write_numbered("error", json!({"code": code, "message": "it failed"}))
    }

    /// Writes the tokens of these numbers as deltas, in one round trip.
    pub(crate) fn tokens(&mut self, numbers: std::ops::Range<usize>) -> Vec<String> {
        let object = |(offset, number)| entry("delta", self.seq + offset, json!({"text": token(number)}));
        let objects: Vec<Value> = numbers.enumerate().map(object).collect();
        self.seq += objects.len();
        self.write_all(&objects)
    }

    /// Writes the tokens of these numbers at a rate; `written` gets the ids of the entries just written.
    pub(crate) fn tokens_at(
        &mut self,
        per_second: u32,
        numbers: std::ops::Range<usize>,
        mut written: impl FnMut(&[String]),
    ) {
        let began = Instant::now();
        let mut next = numbers.start;
        while next < numbers.end {
            let due = began.elapsed().as_micros() * u128::from(per_second) / 1_000_000;
            let due = (numbers.start + usize::try_from(due).unwrap()).min(numbers.end);
            if due > next {
                let ids = self.tokens(next..due);
                written(&ids);
                next = due;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// One entry of a producer.
pub(crate) struct Item {
    /// A label that no other item has: `generation.number`, or `last`.
    pub(crate) label: String,
    /// A delta's text.
    pub(crate) text: String,
    /// Whether viewers get it: a heartbeat is not delivered.
    pub(crate) is_shown: bool,
    /// How often it was sent without a refusal: unconfirmed copies may be in the stream as well.
    pub(crate) attempts: usize,
    /// The id that Redis finally confirmed.
    pub(crate) id: Option<String>,
    /// How often the stream had been deleted before.
    pub(crate) era: usize,
}

/// The items that a producer has written, in order.
pub(crate) struct Ledger {
    pub(crate) stream: String,
    pub(crate) items: Vec<Item>,
    pub(crate) is_trimmed: bool,
    pub(crate) is_numbered: bool,
}

/// The instructions for the producers.
pub(crate) struct Orders {
    /// How often each stream is to be recreated.
    pub(crate) begin_anew: Vec<AtomicUsize>,
    pub(crate) finish: AtomicBool,
}

impl Orders {
    pub(crate) fn new(streams: usize) -> Self {
        let begin_anew = (0..streams).map(|_| AtomicUsize::new(0)).collect();
        Self { begin_anew, finish: AtomicBool::new(false) }
    }
}

/// Writes one stream of generations, through all faults, until it has to stop. Only one kind of stream has no `seq`,
/// one is trimmed from time to time, one has large entries.
pub(crate) struct Survivor<'a> {
    is_over: &'a AtomicBool,
    orders: &'a Orders,
    url: String,
    number: usize,
    random: Random,
    connection: Option<redis::Connection>,
    ledger: Ledger,
    seq: usize,
    era: usize,
}

impl<'a> Survivor<'a> {
    pub(crate) fn new(
        is_over: &'a AtomicBool,
        orders: &'a Orders,
        url: String,
        number: usize,
        random: Random,
    ) -> Self {
        let (is_numbered, is_trimmed) = (number != 1, number == 2);
        let ledger = Ledger { stream: format!("s{number}/m"), items: Vec::new(), is_trimmed, is_numbered };
        Self { is_over, orders, url, number, random, connection: None, ledger, seq: 0, era: 0 }
    }

    pub(crate) fn run(mut self) -> Ledger {
        let mut generation = 0;
        while !self.orders.finish.load(Ordering::Relaxed) && !self.is_over.load(Ordering::SeqCst) {
            let length = self.random.below(120);
            self.generation(generation, length);
            let label = format!("{generation}.{}", length + 1);
            match self.random.below(5) {
                0 => {}
                1 => self.say(label.clone(), json!({"type": "error", "code": label, "message": ""}), true),
                _ => self.say(label.clone(), json!({"type": "end", "finish_reason": label}), true),
            }
            generation += 1;
            self.pause(30);
        }
        self.generation(generation, 5);
        self.say(LAST.into(), json!({"type": "end", "finish_reason": LAST}), true);
        self.ledger
    }

    /// Writes a generation without its end.
    fn generation(&mut self, generation: usize, length: usize) {
        self.begin_anew_if_told();
        self.seq = 0;
        let name = format!("{generation}.0");
        self.say(name.clone(), json!({"type": "start", "generation": name}), true);
        let mut burst = 0;
        for number in 1..=length {
            let label = format!("{generation}.{number}");
            if self.random.once_in(25) {
                self.say(label, json!({"type": "heartbeat"}), false);
            } else if self.random.once_in(25) && self.ledger.is_numbered {
                self.say(label.clone(), json!({"type": "mine", "label": label}), true);
            } else {
                let padding = if self.number == 3 { self.random.below(6_000) } else { self.random.below(12) };
                let text = format!("{label} {}→\u{1F9ED}\n;", "x".repeat(padding));
                self.say(label, json!({"type": "delta", "text": text}), true);
            }
            if burst == 0 && self.random.once_in(40) {
                burst = 60;
            }
            burst = usize::saturating_sub(burst, 1);
            if burst == 0 {
                self.pause(4);
            }
            if self.orders.finish.load(Ordering::Relaxed) || self.must_begin_anew() {
                break;
            }
        }
    }

    fn pause(&mut self, below_ms: usize) {
        thread::sleep(Duration::from_millis(self.random.below(below_ms) as u64));
    }

    /// Writes an entry: repeatedly until it is confirmed if retries can be recognized, otherwise once.
    fn say(&mut self, label: String, mut data: Value, is_shown: bool) {
        let kind = data["type"].as_str().unwrap();
        let is_retried = is_shown && (self.ledger.is_numbered || matches!(kind, "start" | "end" | "error"));
        let text = data["text"].as_str().unwrap_or_default().to_owned();
        if self.ledger.is_numbered && is_shown {
            data["seq"] = json!(self.seq);
            self.seq += 1;
        }
        let max_len = if self.random.once_in(12) { 20 + self.random.below(60) } else { usize::MAX };
        let max_len = if self.ledger.is_trimmed { max_len } else { usize::MAX };
        let mut item = Item { label, text, is_shown, attempts: 0, id: None, era: self.era };
        while item.id.is_none() && !self.is_over.load(Ordering::SeqCst) {
            item.attempts += 1;
            item.id = self.try_write(&data, max_len);
            if item.id.is_some() && is_retried && self.random.once_in(50) {
                // As if the reply had been lost.
                item.id = None;
                self.connection = None;
            }
            if !is_retried {
                break;
            }
            if item.id.is_none() {
                thread::sleep(Duration::from_millis(5));
            }
        }
        self.ledger.items.push(item);
    }

    fn key(&self) -> String {
        format!("llm:stream:s{}:m", self.number)
    }

    fn try_write(&mut self, data: &Value, max_len: usize) -> Option<String> {
        let mut add = redis::cmd("XADD");
        add.arg(self.key());
        if max_len < usize::MAX {
            add.arg("MAXLEN").arg("~").arg(max_len);
        }
        add.arg("*").arg("data").arg(data.to_string());
        self.ask(&add)
    }

    /// `None`: it was refused, or the result is unknown.
    fn ask<T: redis::FromRedisValue>(&mut self, command: &redis::Cmd) -> Option<T> {
        let patience = Duration::from_millis(150);
        if self.connection.is_none() {
            let client = redis::Client::open(self.url.as_str()).unwrap();
            let connection = client.get_connection_with_timeout(patience).ok()?;
            connection.set_read_timeout(Some(patience)).ok()?;
            self.connection = Some(connection);
        }
        let answer = command.query(self.connection.as_mut().unwrap());
        if answer.is_err() {
            self.connection = None;
        }
        answer.ok()
    }

    fn must_begin_anew(&self) -> bool {
        self.orders.begin_anew[self.number].load(Ordering::Relaxed) > self.era
    }

    /// Deletes the stream. Later entries have higher ids: only then can the two be distinguished.
    fn begin_anew_if_told(&mut self) {
        if !self.must_begin_anew() {
            return;
        }
        let delete = redis::cmd("DEL").arg(self.key()).to_owned();
        while self.ask::<u64>(&delete).is_none() && !self.is_over.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        self.era += 1;
        thread::sleep(Duration::from_millis(2 + self.random.below(100) as u64));
    }
}
