//! Streams as Redis stores them, and the producers that write them. The content of each entry is recorded when it is
//! written, without the decoder under test.

use std::time::Duration;

use crate::fuzzing::Numbers;
use crate::model::{Entry, EntryId, Fields, KeyFacts, Position, StreamName};

/// The time at which the simulation begins, in ms since 1970.
pub(super) const EPOCH_MS: u64 = 1_763_800_000_000;

/// A piece of the content of an entry, which clients get as one frame or as a part of a merged one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The position of a client that has received it.
    pub(super) at: Position,
    pub(super) content: Content,
}

/// The kinds of content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Text of a channel, which may be merged with the text before and after it.
    Text { channel: &'static str, text: String },
    /// A frame of its own, of this `type`.
    Whole(&'static str),
}

/// An entry that was written, and may have been removed since.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) entry: Entry,
    pub(super) pieces: Vec<Piece>,
    pub(super) at: Duration,
    /// Whether the entry ends its generation.
    pub(super) is_end: bool,
    /// Its generation, counted from 1.
    pub(super) generation: usize,
    /// The number of times that the key had been created when the entry was written: a stream that is deleted and
    /// created again begins another life.
    pub(super) life: usize,
    pub(super) is_removed: bool,
}

/// The form in which a producer writes one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Native objects, with `seq` or without.
    Native { numbered: bool },
    /// Chunks of an OpenAI-compatible server. One chunk may become two frames.
    OpenAi,
}

/// An unfinished generation.
#[derive(Clone, Copy, Debug)]
struct Writing {
    form: Form,
    seq: u64,
    has_started: bool,
}

/// A stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) name: StreamName,
    /// All entries that were ever written.
    pub(super) log: Vec<Written>,
    /// Whether its key exists.
    pub(super) exists: bool,
    /// The index in the log of the first entry of the key, even if that was trimmed.
    begin: usize,
    /// The index in the log of the oldest entry that remains.
    first: usize,
    /// The number of times that the key has been created.
    life: usize,
    generation: usize,
    writing: Option<Writing>,
    /// When the key was created and deleted, in turn.
    pub(super) key_changes: Vec<Duration>,
}

impl Stream {
    pub(super) fn new(number: usize) -> Self {
        let name = StreamName::new(&format!("s{number}"), "m").expect("it is a name");
        Self {
            name,
            log: Vec::new(),
            exists: false,
            begin: 0,
            first: 0,
            life: 0,
            generation: 0,
            writing: None,
            key_changes: Vec::new(),
        }
    }

    // ----- reading -----

    /// The facts that Redis reports about the key.
    pub(super) fn facts(&self) -> KeyFacts {
        KeyFacts {
            last_generated: self.tip(),
            first: self.remaining().first().map(|written| written.entry.id),
            length: self.remaining().len() as u64,
            added: Some((self.log.len() - self.begin) as u64),
            max_deleted: None,
        }
    }

    /// The newest id of the key.
    pub(super) fn tip(&self) -> EntryId {
        self.log.last().map_or(EntryId::ZERO, |written| written.entry.id)
    }

    /// The entries that remain.
    pub(super) fn remaining(&self) -> &[Written] {
        if self.exists { &self.log[self.first..] } else { &[] }
    }

    /// At most `most` entries from `from` to `until`, and whether these are all of them.
    pub(super) fn range(&self, from: EntryId, until: EntryId, most: usize) -> (Vec<Entry>, bool) {
        let remaining = self.remaining();
        let start = remaining.partition_point(|written| written.entry.id < from);
        let end = remaining.partition_point(|written| written.entry.id <= until).max(start);
        let kept = end.min(start + most);
        let entries = remaining[start..kept].iter().map(|written| written.entry.clone()).collect();
        (entries, kept == end)
    }

    /// Whether a live reader that has passed `after` in this life of the key can continue without missing an entry.
    pub(super) fn can_follow(&self, after: EntryId, life: usize) -> bool {
        let follows = |first: &Written| {
            let removed = &self.log[self.begin..self.first];
            removed.last().is_none_or(|last| last.entry.id <= after) || first.entry.id <= after
        };
        let is_whole = match self.remaining().first() {
            Some(first) => follows(first),
            None => after >= self.tip(),
        };
        self.exists && self.life == life && is_whole
    }

    /// The life of the key to which `position` belongs.
    pub(super) fn life_at(&self, position: Position) -> usize {
        let passed = self.log.iter().rev().find(|written| written.entry.id <= position.id);
        passed.map_or(self.life, |written| written.life)
    }

    /// Whether the newest generation was finished at any time in this period, and whether it was unfinished at any
    /// time in it.
    pub(super) fn was_over(&self, from: Duration, to: Duration) -> (bool, bool) {
        let mut ends = self.log.iter().filter(|written| !written.pieces.is_empty()).peekable();
        let (mut over, mut open) = (false, ends.peek().is_none_or(|first| first.at >= from));
        while let Some(written) = ends.next() {
            let until = ends.peek().map_or(Duration::MAX, |next| next.at);
            if written.at <= to && until >= from {
                let is_over = written.is_end;
                (over, open) = (over || is_over, open || !is_over);
            }
        }
        (over, open)
    }

    /// Whether the key did not exist at any time in this period.
    pub(super) fn was_missing(&self, from: Duration, to: Duration) -> bool {
        let mut key_changes = self.key_changes.iter();
        let mut gone_since = Duration::ZERO;
        loop {
            let made_at = key_changes.next().copied().unwrap_or(Duration::MAX);
            if gone_since <= to && made_at >= from {
                return true;
            }
            match key_changes.next() {
                Some(&gone_at) => gone_since = gone_at,
                None => return false,
            }
        }
    }

    // ----- writing -----

    /// Writes the next entry, which ends its generation if `ends`.
    pub(super) fn write(&mut self, numbers: &mut Numbers, (now, ends): (Duration, bool)) {
        if !self.exists {
            self.exists = true;
            self.life += 1;
            (self.begin, self.first) = (self.log.len(), self.log.len());
            self.writing = None;
            self.key_changes.push(now);
        }
        let id = self.next_id(now);
        let mut writing = self.writing.take().unwrap_or_else(|| {
            self.generation += 1;
            let form = match numbers.below(4) {
                0 => Form::OpenAi,
                form => Form::Native { numbered: form == 1 },
            };
            Writing { form, seq: 0, has_started: false }
        });
        let (field, object, pieces) = match writing.form {
            Form::Native { numbered } => {
                let (open, content) = self.native(numbers, &mut writing, (id, ends));
                let seq = if numbered { format!(",\"seq\":{}", writing.seq) } else { String::new() };
                writing.seq += 1;
                let pieces =
                    content.map(|content| Piece { at: Position::whole(id), content }).into_iter().collect();
                ("data", format!("{open}{seq}}}"), pieces)
            }
            Form::OpenAi => {
                let (object, pieces) = openai(numbers, &writing, (id, ends));
                ("openai", object, pieces)
            }
        };
        writing.has_started = true;
        if !ends {
            self.writing = Some(writing);
        }
        let fields = Fields::from_pairs(&[(field.as_bytes(), object.as_bytes())]);
        self.log.push(Written {
            entry: Entry { id, fields },
            pieces,
            at: now,
            is_end: ends,
            generation: self.generation,
            life: self.life,
            is_removed: false,
        });
    }

    fn next_id(&self, now: Duration) -> EntryId {
        let ms = EPOCH_MS + u64::try_from(now.as_millis()).unwrap_or(0);
        let newest = self.log.last().map_or(EntryId::ZERO, |written| written.entry.id);
        if newest.ms < ms { EntryId::new(ms, 0) } else { newest.next().unwrap_or(EntryId::MAX) }
    }

    /// A native object without its closing brace, and its content.
    fn native(
        &self,
        numbers: &mut Numbers,
        writing: &mut Writing,
        (id, ends): (EntryId, bool),
    ) -> (String, Option<Content>) {
        if ends {
            return match numbers.below(3) {
                0 => (r#"{"type":"error","code":"c""#.to_owned(), Some(Content::Whole("error"))),
                _ => (r#"{"type":"end","finish_reason":"stop""#.to_owned(), Some(Content::Whole("end"))),
            };
        }
        // A generation without a `start` begins with its first text.
        if !writing.has_started && numbers.below(3) > 0 {
            let open =
                format!(r#"{{"type":"start","generation":"{}.{}""#, self.name.session(), self.generation);
            return (open, Some(Content::Whole("start")));
        }
        let text = text(numbers, id);
        match numbers.below(12) {
            0 if writing.has_started => (r#"{"type":"heartbeat""#.to_owned(), None),
            1 => (r#"{"type":"own""#.to_owned(), Some(Content::Whole("custom"))),
            2 => {
                let open = format!(r#"{{"type":"delta","channel":"reasoning","text":"{text}""#);
                (open, Some(Content::Text { channel: "reasoning", text }))
            }
            _ => (
                format!(r#"{{"type":"delta","text":"{text}""#),
                Some(Content::Text { channel: "content", text }),
            ),
        }
    }

    // ----- removing -----

    /// Trims the oldest entries. A recreated stream is not trimmed, because its removed entries could not be
    /// distinguished from those of the stream before it.
    pub(super) fn trim(&mut self, count: usize) {
        if self.life > 1 || !self.exists {
            return;
        }
        let end = (self.first + count).min(self.log.len());
        self.log[self.first..end].iter_mut().for_each(|written| written.is_removed = true);
        self.first = end;
    }

    /// Deletes the key.
    pub(super) fn delete(&mut self, now: Duration) {
        if self.exists {
            self.log[self.first..].iter_mut().for_each(|written| written.is_removed = true);
            self.exists = false;
            self.key_changes.push(now);
        }
    }

    /// Whether the newest generation is unfinished.
    pub(super) const fn is_open(&self) -> bool {
        self.writing.is_some()
    }
}

/// A text that no other entry of the stream has. Some texts are long.
fn text(numbers: &mut Numbers, id: EntryId) -> String {
    let fill = match numbers.below(40) {
        0 => 3_000,
        1..4 => 400,
        _ => 0,
    };
    format!("{}.{}{} ", id.ms - EPOCH_MS, id.n, "x".repeat(fill))
}

/// A chunk of an OpenAI-compatible server, or its end mark, with the content of it.
fn openai(numbers: &mut Numbers, writing: &Writing, (id, ends): (EntryId, bool)) -> (String, Vec<Piece>) {
    if ends {
        let content = Content::Whole("end");
        if writing.has_started {
            return ("[DONE]".to_owned(), vec![Piece { at: Position::whole(id), content }]);
        }
        let object = r#"{"error":{"message":"m","code":"c"}}"#.to_owned();
        return (object, vec![Piece { at: Position::whole(id), content: Content::Whole("error") }]);
    }
    let text = text(numbers, id);
    let piece = |at, channel| Piece { at, content: Content::Text { channel, text: text.clone() } };
    let (both, pieces) = match numbers.below(3) {
        0 => {
            let (first, second) = (Position::part(id, 1), Position::whole(id));
            (
                format!(r#""reasoning_content":"{text}","content":"{text}""#),
                vec![piece(first, "reasoning"), piece(second, "content")],
            )
        }
        _ => (format!(r#""content":"{text}""#), vec![piece(Position::whole(id), "content")]),
    };
    (format!(r#"{{"choices":[{{"index":0,"delta":{{{both}}}}}]}}"#), pieces)
}
