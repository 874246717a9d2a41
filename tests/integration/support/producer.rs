//! A producer: writes entries to one stream, numbered, at any pace, with text that shows its order.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::redis::{Redis, RedisServer};

/// The text of the n-th token: tells its place, and is not always ASCII.
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

    /// Writes a `data` object exactly as it is given.
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

    /// Begins a generation, and the count of `seq` anew.
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

    /// Writes the tokens of these numbers at a rate; `written` gets the ids of what has just been written.
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
