//! The life of a producer's generations: `start`, numbering, the terminal entry. Pure.
//!
//! Every entry gets `seq` and `ts`, so that readers drop a repeated write. INVARIANT: within a generation either all
//! numbered entries have our `seq` or none does; input with its own numbers keeps them. A generation of raw events
//! has no numbers: a raw event has no place for one (with an added member it would not be what the provider sent),
//! and numbers on only the first and last entries would look like gaps.

use serde_json::{Map, Value, json};

use super::jsonl::{Kind, Object};
use super::raw::Meaning;

/// The state of the numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was written yet.
    Fresh,
    /// A generation is open.
    Open { next_seq: Option<u64> },
    /// The last generation has its terminal entry.
    Closed { next_seq: Option<u64> },
}

/// Composes the JSON of a producer's native entries.
#[derive(Debug)]
pub struct Generation {
    state: State,
    /// The prefix of the ids of all generations of this producer.
    id_base: String,
    /// The number of generations begun.
    begun: u32,
    /// The id of the next generation, if the caller has chosen one.
    next_id: Option<String>,
}

impl Generation {
    /// A producer whose generation ids begin with `id_base`, which must be unique to it.
    #[must_use]
    pub fn new(id_base: impl Into<String>) -> Self {
        Self { state: State::Fresh, id_base: id_base.into(), begun: 0, next_id: None }
    }

    /// Sets the id of the next generation that begins here.
    pub fn name_next(&mut self, id: impl Into<String>) {
        self.next_id = Some(id.into());
    }

    /// Whether a generation has begun and has no terminal entry yet.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// The number of generations begun.
    #[must_use]
    pub const fn begun(&self) -> u32 {
        self.begun
    }

    /// Whether nothing was written at all.
    #[must_use]
    pub const fn is_fresh(&self) -> bool {
        matches!(self.state, State::Fresh)
    }

    /// Begins a generation and returns its `start` entry.
    pub fn start(&mut self, ts_us: u64) -> String {
        self.begin(true, ts_us)
    }

    /// Begins a generation of raw events, which are not numbered, and returns its `start` entry.
    pub fn start_unnumbered(&mut self, ts_us: u64) -> String {
        self.begin(false, ts_us)
    }

    /// Returns the `start` entry that has to precede a raw event with this meaning, if the event begins a generation.
    pub fn raw(&mut self, meaning: Meaning, ts_us: u64) -> Option<String> {
        let begins = match self.state {
            State::Fresh => true,
            State::Open { .. } => false,
            // Other events after an end belong to the generation that has ended; the transform threads decide the
            // same way.
            State::Closed { .. } => matches!(meaning, Meaning::Opening | Meaning::Content),
        };
        let start = begins.then(|| self.begin(false, ts_us));
        if meaning == Meaning::Terminal {
            self.close();
        }
        start
    }

    /// A `delta` entry on the content channel.
    pub fn text(&mut self, text: &str, ts_us: u64) -> String {
        self.numbered(json!({"type": "delta", "text": text}), ts_us)
    }

    /// A `delta` entry on any channel.
    pub fn text_on(&mut self, channel: &str, text: &str, ts_us: u64) -> String {
        match channel {
            "content" => self.text(text, ts_us),
            _ => self.numbered(json!({"type": "delta", "channel": channel, "text": text}), ts_us),
        }
    }

    /// A `heartbeat` entry.
    pub fn heartbeat(&mut self, ts_us: u64) -> String {
        self.numbered(json!({"type": "heartbeat"}), ts_us)
    }

    /// The `end` entry.
    pub fn end(&mut self, finish_reason: &str, ts_us: u64) -> String {
        self.end_with(finish_reason, None, ts_us)
    }

    /// The `end` entry, with the provider's token counts if they are known.
    pub fn end_with(
        &mut self,
        finish_reason: &str,
        usage: Option<&Map<String, Value>>,
        ts_us: u64,
    ) -> String {
        let mut end = json!({"type": "end", "finish_reason": finish_reason});
        if let Some(usage) = usage {
            end["usage"] = usage.clone().into();
        }
        let entry = self.numbered(end, ts_us);
        self.close();
        entry
    }

    /// A terminal `error` entry.
    pub fn error(&mut self, code: &str, message: &str, ts_us: u64) -> String {
        let entry = self.numbered(json!({"type": "error", "code": code, "message": message}), ts_us);
        self.close();
        entry
    }

    /// Prepares a native object from elsewhere; adds a `start` of ours if the object begins a generation without one.
    pub fn object(&mut self, object: &Object<'_>, ts_us: u64) -> Vec<String> {
        let mut entries = Vec::with_capacity(2);
        let ours = !object.has_seq;
        match (self.state, object.kind) {
            (_, Kind::Start) => {
                self.begun += 1;
                self.state = State::Open { next_seq: ours.then_some(0) };
            }
            (State::Fresh, _) | (State::Closed { .. }, Kind::Content) => {
                entries.push(self.begin(ours, ts_us));
            }
            (State::Open { .. } | State::Closed { .. }, _) => {}
        }
        let seq = if ours { self.take_seq() } else { None };
        entries.push(object.stamped(seq, ts_us));
        if object.kind == Kind::Terminal {
            self.close();
        }
        entries
    }

    fn begin(&mut self, ours: bool, ts_us: u64) -> String {
        self.begun += 1;
        self.state = State::Open { next_seq: ours.then_some(0) };
        let ours = || format!("{}-{}", self.id_base, self.begun);
        let generation = self.next_id.take().unwrap_or_else(ours);
        self.numbered(json!({"type": "start", "generation": generation}), ts_us)
    }

    fn numbered(&mut self, mut object: Value, ts_us: u64) -> String {
        if let Some(seq) = self.take_seq() {
            object["seq"] = seq.into();
        }
        object["ts"] = ts_us.into();
        object.to_string()
    }

    fn take_seq(&mut self) -> Option<u64> {
        let (State::Open { next_seq } | State::Closed { next_seq }) = &mut self.state else {
            return None;
        };
        let seq = (*next_seq)?;
        *next_seq = Some(seq + 1);
        Some(seq)
    }

    fn close(&mut self) {
        if let State::Open { next_seq } = self.state {
            self.state = State::Closed { next_seq };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::jsonl;
    use super::*;

    fn seqs(entries: &[String]) -> Vec<(String, Option<u64>)> {
        let read = |text: &String| serde_json::from_str::<Value>(text).unwrap();
        let name = |value: &Value| (value["type"].as_str().unwrap().into(), value["seq"].as_u64());
        entries.iter().map(|text| name(&read(text))).collect()
    }

    fn feed(lines: &[&str]) -> (Generation, Vec<(String, Option<u64>)>) {
        let mut generation = Generation::new("g");
        let mut entries = Vec::new();
        for line in lines {
            let object = jsonl::parse(line.as_bytes()).unwrap().unwrap();
            entries.extend(generation.object(&object, 5));
        }
        let seqs = seqs(&entries);
        (generation, seqs)
    }

    fn named(list: &[(&str, Option<u64>)]) -> Vec<(String, Option<u64>)> {
        list.iter().map(|&(name, seq)| (name.to_owned(), seq)).collect()
    }

    #[test]
    fn text_is_numbered_from_start_to_end() {
        let mut generation = Generation::new("g");
        assert!(generation.is_fresh());
        let entries = [
            generation.start(1),
            generation.text("a\"\n", 2),
            generation.heartbeat(3),
            generation.end("stop", 4),
        ];
        assert!(!generation.is_open());
        let expected =
            named(&[("start", Some(0)), ("delta", Some(1)), ("heartbeat", Some(2)), ("end", Some(3))]);
        assert_eq!(seqs(&entries), expected);
        let start: Value = serde_json::from_str(&entries[0]).unwrap();
        assert_eq!((&start["generation"], &start["ts"]), (&"g-1".into(), &1.into()));
        let delta: Value = serde_json::from_str(&entries[1]).unwrap();
        assert_eq!(delta["text"], "a\"\n");
    }

    #[test]
    fn objects_get_a_start_and_numbers_where_they_have_none() {
        let delta = r#"{"type":"delta","text":"x"}"#;
        let (generation, seen) = feed(&[delta, r#"{"type":"end"}"#, r#"{"type":"heartbeat"}"#, delta]);
        assert!(generation.is_open());
        let expected = [
            ("start", Some(0)),
            ("delta", Some(1)),
            ("end", Some(2)),
            ("heartbeat", Some(3)),
            ("start", Some(0)),
            ("delta", Some(1)),
        ];
        assert_eq!(seen, named(&expected));
        let (_, seen) = feed(&[r#"{"type":"start"}"#, delta]);
        assert_eq!(seen, named(&[("start", Some(0)), ("delta", Some(1))]));
    }

    #[test]
    fn input_that_numbers_itself_keeps_its_numbers() {
        let (mut generation, seen) =
            feed(&[r#"{"type":"delta","text":"x","seq":0}"#, r#"{"type":"delta","text":"y","seq":1}"#]);
        assert_eq!(seen, named(&[("start", None), ("delta", Some(0)), ("delta", Some(1))]));
        assert_eq!(seqs(&[generation.end("stop", 1)]), named(&[("end", None)]));
    }
}
