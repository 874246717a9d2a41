//! How far a former worker got with an answer, derived from the stream itself.

use ::redis::{Cmd, cmd};
use serde::Deserialize;

use super::order::Order;
use crate::model::{Entry, EntryId};
use crate::produce::raw::{Meaning, Story};
use crate::produce::{Form, jsonl};
use crate::redis::{ENTRY_ROOM_BYTES, Link, RedisError};

/// The first and the largest number of entries read at once: their size is known only when they arrive.
const PAGE_FIRST: usize = 8;
const PAGE_MAX: usize = 500;
/// The byte goal of a page's entries.
const PAGE_BYTES: usize = 1 << 20;

/// An entry that changes nothing for viewers.
const HEARTBEAT: &str = r#"{"type":"heartbeat"}"#;

/// How far an answer has progressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerProgress {
    /// Viewers have seen nothing of it: it can be started over under the same generation without anyone noticing.
    Nothing,
    /// Viewers have seen a part of it, and its end is missing.
    Partial,
    /// It has its terminal entry, or another generation has begun after it: nothing more has to be written.
    Whole,
}

/// Finds out how far the answer has progressed, for the worker that now holds the stream's lease. A write that the
/// former holder was about to make is either found here or is not executed any more: a heartbeat serves as the fence
/// that `produce::wire` requires. It is written only if no entry has followed since the look.
pub(super) fn take_over(link: &mut Link, key: &str, order: &Order) -> Result<AnswerProgress, RedisError> {
    loop {
        link.query::<()>(cmd("WATCH").arg(key))?;
        let progress = look(link, key, order)?;
        if progress == AnswerProgress::Whole {
            link.unwatch()?;
            return Ok(progress);
        }
        let fence = Cmd::xadd(key, "*", &[(Form::Native.field(), HEARTBEAT)]);
        if link.execute(&fence)? {
            return Ok(progress);
        }
    }
}

/// Reads the answer so far. No part of it can be older than the request.
fn look(link: &mut Link, key: &str, order: &Order) -> Result<AnswerProgress, RedisError> {
    let mut reading = Reading::new(&order.generation);
    let mut from = Some(EntryId::new(order.id.ms, 0));
    let mut page = PAGE_FIRST;
    while let Some(id) = from {
        let command = Cmd::xrange_count(key, id, "+", page);
        let found = link.call_range(&command, ENTRY_ROOM_BYTES)?;
        let (count, fitting) = (found.found, found.fitting(PAGE_BYTES));
        let entries = found.into_entries();
        entries.iter().for_each(|entry| reading.add(entry));
        let is_last = count < page && entries.len() == count;
        from = entries.last().filter(|_| !is_last).and_then(|entry| entry.id.next());
        page = fitting.min(page.saturating_mul(PAGE_FIRST)).clamp(1, PAGE_MAX);
    }
    Ok(reading.progress())
}

/// Follows one generation among others.
struct Reading<'a> {
    generation: &'a str,
    openai: Story,
    anthropic: Story,
    /// `None`: the generation has not begun.
    seen: Option<AnswerProgress>,
}

#[derive(Deserialize)]
struct Start<'a> {
    #[serde(borrow)]
    generation: Option<std::borrow::Cow<'a, str>>,
}

impl<'a> Reading<'a> {
    fn new(generation: &'a str) -> Self {
        let [openai, anthropic] = [Form::OpenAi, Form::Anthropic].map(Story::new);
        Self { generation, openai, anthropic, seen: None }
    }

    fn add(&mut self, entry: &Entry) {
        let text =
            |form: Form| entry.fields.get(form.field()).and_then(|text| std::str::from_utf8(text).ok());
        if let Some(native) = text(Form::Native) {
            self.add_native(native);
        } else if let Some(payload) = text(Form::OpenAi) {
            let meaning = self.openai.read(payload);
            self.add_meaning(meaning);
        } else if let Some(payload) = text(Form::Anthropic) {
            let meaning = self.anthropic.read(payload);
            self.add_meaning(meaning);
        }
    }

    fn add_native(&mut self, json: &str) {
        let Ok(Some(object)) = jsonl::parse(json.as_bytes()) else { return };
        match object.kind {
            jsonl::Kind::Start => {
                self.forget();
                let start: Option<Start<'_>> = serde_json::from_str(json).ok();
                let generation = start.and_then(|start| start.generation);
                let is_ours = generation.as_deref() == Some(self.generation);
                self.seen = match (self.seen, is_ours) {
                    (None, true) => Some(AnswerProgress::Nothing),
                    (Some(_), false) => Some(AnswerProgress::Whole),
                    (seen, _) => seen,
                };
            }
            jsonl::Kind::Terminal => {
                self.forget();
                self.add_meaning(Meaning::Terminal);
            }
            jsonl::Kind::Content => self.add_meaning(Meaning::Content),
            jsonl::Kind::Heartbeat => {}
        }
    }

    /// Drops answers in a provider's form: a native entry has ended them.
    fn forget(&mut self) {
        (self.openai, self.anthropic) = (Story::new(Form::OpenAi), Story::new(Form::Anthropic));
    }

    fn add_meaning(&mut self, meaning: Meaning) {
        self.seen = match (self.seen, meaning) {
            (Some(AnswerProgress::Nothing), Meaning::Content) => Some(AnswerProgress::Partial),
            (Some(_), Meaning::Terminal) => Some(AnswerProgress::Whole),
            (seen, _) => seen,
        };
    }

    fn progress(&self) -> AnswerProgress {
        self.seen.unwrap_or(AnswerProgress::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::super::order;
    use super::*;
    use crate::model::{Fields, KeyPattern};
    use crate::redis::testing::RedisServer;

    fn progress(entries: &[(&str, &str)]) -> AnswerProgress {
        let mut reading = Reading::new("g");
        for (form, payload) in entries {
            let fields = Fields::from_pairs(&[(form.as_bytes(), payload.as_bytes())]);
            reading.add(&Entry { id: EntryId::new(1, 0), fields });
        }
        reading.progress()
    }

    #[test]
    fn the_stream_shows_how_far_an_answer_has_progressed() {
        let start = ("data", r#"{"type":"start","generation":"g"}"#);
        let other = ("data", r#"{"type":"start","generation":"h"}"#);
        let token = ("openai", r#"{"choices":[{"delta":{"content":"a"}}]}"#);
        let frame = ("openai", r#"{"choices":[{"delta":{"role":"assistant"}}]}"#);
        let heartbeat = ("data", r#"{"type":"heartbeat"}"#);
        assert_eq!(progress(&[]), AnswerProgress::Nothing);
        assert_eq!(progress(&[other, token, ("openai", "[DONE]")]), AnswerProgress::Nothing);
        assert_eq!(progress(&[token, start, heartbeat, frame]), AnswerProgress::Nothing);
        assert_eq!(progress(&[start, start, token, heartbeat]), AnswerProgress::Partial);
        assert_eq!(progress(&[start, token, ("openai", "[DONE]")]), AnswerProgress::Whole);
        assert_eq!(progress(&[start, ("data", r#"{"type":"error","code":"c"}"#)]), AnswerProgress::Whole);
        assert_eq!(progress(&[start, token, other]), AnswerProgress::Whole);
        assert_eq!(progress(&[start, ("anthropic", r#"{"type":"message_stop"}"#)]), AnswerProgress::Whole);
        assert_eq!(progress(&[start, ("data", "nonsense"), ("x", "y")]), AnswerProgress::Nothing);
    }

    #[test]
    fn a_pending_write_of_the_former_worker_is_discarded() {
        let server = RedisServer::start(&[]);
        let (mut ours, mut former) = (server.link(), server.link());
        let request = [(&b"session"[..], &b"s"[..]), (b"model", b"m"), (b"generation", b"g")];
        let request = Entry { id: EntryId::new(1, 0), fields: Fields::from_pairs(&request) };
        let order = order::read(&request, true, &KeyPattern::of_prefix("llm")).unwrap();
        let mut take_over = || take_over(&mut ours, "k", &order).unwrap();
        let add = |json: &str| Cmd::xadd("k", "*", &[("data", json)]);
        let watch = cmd("WATCH").arg("k").take();
        // Also if the stream does not exist yet.
        for (expected, json) in [
            (AnswerProgress::Nothing, r#"{"type":"start","generation":"g"}"#),
            (AnswerProgress::Nothing, r#"{"type":"delta","text":"a"}"#),
            (AnswerProgress::Partial, r#"{"type":"end"}"#),
        ] {
            former.call(&watch).unwrap();
            assert_eq!(take_over(), expected, "{json}");
            assert!(!former.execute(&add(json)).unwrap(), "{json}");
            former.call(&add(json)).unwrap();
        }
        let len = former.query::<i64>(&Cmd::xlen("k")).unwrap();
        assert_eq!(take_over(), AnswerProgress::Whole);
        let len_now = former.query::<i64>(&Cmd::xlen("k")).unwrap();
        assert_eq!(len, len_now, "an answer that is whole gets nothing more");
    }
}
