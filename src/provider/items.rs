//! The items of a response's output, and the parts of their content.

use super::calls::Piece;
use super::draft::Draft;
use super::value::{call_id, id, text, tool_name};
use super::whole::{Level, Spot, Voice};
use crate::json;
use crate::model::{Event, TextDigest};

/// Members of an item that viewers do not need.
const ITEM_FRAMING: [&str; 4] = ["status", "role", "object", "created_at"];
const ITEM: [&str; 7] = ["type", "id", "call_id", "name", "arguments", "content", "summary"];
/// Members of a part that are read here, and those that viewers do not need.
const PART: [&str; 4] = ["type", "text", "refusal", "annotations"];
const PART_FRAMING: [&str; 2] = ["logprobs", "index"];

/// An item that is yet to be emitted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'a> {
    whole: &'a str,
    place: Option<u64>,
    kind: Option<&'a str>,
    id: Option<&'a str>,
    call: Piece<'a>,
    content: Option<&'a str>,
    summary: Option<&'a str>,
    has_rest: bool,
}

impl<'a> Item<'a> {
    /// Reads an item at this place of the output.
    pub(super) fn read(whole: &'a str, place: Option<u64>, draft: &mut Draft<'a>) -> Option<Self> {
        let ([kind, own_id, call, name, arguments, content, summary], has_rest) =
            json::members_and_rest(whole, ITEM, &ITEM_FRAMING)?;
        let kind = kind.and_then(json::string);
        let call = match kind {
            Some("function_call") => {
                let arguments = draft.arguments(arguments)?.unwrap_or_default();
                Piece { id: call_id(call)?, name: tool_name(name)?, arguments }
            }
            _ => Piece::default(),
        };
        let id = id(own_id).flatten();
        Some(Self { whole, place, kind, id, call, content, summary, has_rest })
    }

    /// Emits what was not emitted of the item yet; `event` is the event about the item.
    pub(super) fn emit(self, level: Level, event: &'a str, draft: &mut Draft<'a>) -> Option<()> {
        match self.kind {
            Some("function_call") if level == Level::Added => self.announce(draft)?,
            Some("function_call") => {
                if self.claim_call(level, draft)? {
                    draft.emit(Event::Custom { data: event })?;
                }
            }
            Some("message" | "reasoning") => {
                if let Some(id) = self.id.filter(|_| level == Level::Added) {
                    draft.announce_item(id);
                }
                for (part, voice, sub) in self.parts() {
                    emit_part(PartOf { part, voice, spot: self.spot(sub), event: None }, level, draft)?;
                }
            }
            _ => {
                draft.change().note_member(self.whole);
                return draft.emit(Event::Custom { data: event });
            }
        }
        self.emit_rest(if level == Level::Added { "added" } else { "done" }, draft)
    }

    const fn spot(&self, sub: u64) -> Spot<'a> {
        Spot { place: self.place, item: self.id, sub }
    }

    /// The item's parts: those of the summary and those of the content, with their places. Content may be a text.
    fn parts(&self) -> Vec<(&'a str, Option<Voice>, u64)> {
        let list = |raw: Option<&'a str>| raw.filter(|raw| raw.starts_with('[')).and_then(json::elements);
        let summary = list(self.summary).unwrap_or_default();
        let content = list(self.content).unwrap_or_default();
        let summary = summary.into_iter().map(|(sub, part)| (part, Some(Voice::Summary), sub));
        let plain = self.content.filter(|content| content.starts_with('"'));
        let plain = plain.map(|content| (content, Some(Voice::Text), 0));
        summary.chain(content.into_iter().map(|(sub, part)| (part, None, sub))).chain(plain).collect()
    }

    /// Announces a call, which is emitted with the first piece of its arguments.
    fn announce(self, draft: &mut Draft<'a>) -> Option<()> {
        let mut piece = self.call;
        let slot = draft.call_of_item((self.place, self.id), &mut piece, Level::Added)?;
        let part = draft.progress().parts.get(slot)?;
        if part.id == 0 && part.name == 0 && part.emitted == TextDigest::NONE && part.waiting.is_none() {
            return draft.announce(slot, piece);
        }
        let (has_id, has_name) = (part.id != 0, part.name != 0);
        let id = piece.id.filter(|_| !has_id);
        let name = piece.name.filter(|_| !has_name);
        if id.is_none() && name.is_none() {
            return Some(());
        }
        draft.emit_piece(slot, Piece { id, name, arguments: "" })
    }

    /// Whether the complete call contradicts what was emitted of it.
    fn claim_call(self, level: Level, draft: &mut Draft<'a>) -> Option<bool> {
        let mut piece = self.call;
        let slot = draft.call_of_item((self.place, self.id), &mut piece, level)?;
        Some(draft.claim_call(slot, self.call, level)?.is_contradiction())
    }

    /// Emits the members that were not understood, once.
    fn emit_rest(self, step: &str, draft: &mut Draft<'a>) -> Option<()> {
        if !self.has_rest {
            return Some(());
        }
        let rest = json::rest(self.whole, &[&ITEM, &ITEM_FRAMING])?;
        if !draft.change().note_member(&rest) {
            return Some(());
        }
        let [kind, own_id, call] = json::members(self.whole, ["type", "id", "call_id"])?;
        let mut item = String::new();
        for (name, value) in [("type", kind), ("id", own_id), ("call_id", call)] {
            if let Some(value) = value {
                json::push_member(&mut item, name, value);
            }
        }
        draft.emit_rest(self.event(step, &format!("{{{item},{rest}}}")))
    }

    /// A Responses event about the item.
    fn event(&self, step: &str, item: &str) -> String {
        let place = self.place.map(|place| format!(r#""output_index":{place},"#)).unwrap_or_default();
        format!(r#"{{"type":"response.output_item.{step}",{place}"item":{item}}}"#)
    }
}

/// A part of an item's content.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartOf<'a> {
    pub(super) part: &'a str,
    /// The kind of text, if the part's place in the item determines it.
    pub(super) voice: Option<Voice>,
    pub(super) spot: Spot<'a>,
    /// The event about this part alone, if there is one.
    pub(super) event: Option<&'a str>,
}

impl<'a> PartOf<'a> {
    /// The kind of text and the text; `None` if the part is not a text.
    fn text(self) -> Option<(Voice, &'a str)> {
        if self.part.starts_with('"') {
            return Some((self.voice?, text(Some(self.part))??));
        }
        let [kind, plain, refusal] = json::members(self.part, ["type", "text", "refusal"])?;
        match kind.and_then(json::string)? {
            "output_text" | "text" => Some((Voice::Text, text(plain)?.unwrap_or_default())),
            "refusal" => Some((Voice::Refusal, text(refusal)?.unwrap_or_default())),
            "reasoning_text" => Some((Voice::Reasoning, text(plain)?.unwrap_or_default())),
            "summary_text" => Some((Voice::Summary, text(plain)?.unwrap_or_default())),
            _ => None,
        }
    }

    /// Passes the part on unchanged, in its own event or in an assembled one, unless that was done before.
    fn pass_on(self, draft: &mut Draft<'a>) -> Option<()> {
        let is_new = draft.change().note_member(self.part);
        match self.event {
            _ if !is_new => Some(()),
            Some(event) => draft.emit(Event::Custom { data: event }),
            None => draft.emit_rest(self.event_with(self.part)),
        }
    }

    /// Emits the annotations and additional members that were not emitted yet.
    fn emit_rest(self, draft: &mut Draft<'a>) -> Option<()> {
        if !self.part.starts_with('{') {
            return Some(());
        }
        let ([kind, _, _, annotations], has_rest) = json::members_and_rest(self.part, PART, &PART_FRAMING)?;
        let listed = annotations.filter(|list| list.starts_with('[')).and_then(json::elements);
        let mut annotations = listed.unwrap_or_default();
        annotations.retain(|(_, annotation)| !draft.progress().has_emitted(annotation));
        if annotations.is_empty() && !has_rest {
            return Some(());
        }
        let mut rest = json::rest(self.part, &[&PART, &PART_FRAMING])?;
        if !rest.is_empty() && !draft.change().note_member(&rest) {
            rest.clear();
        }
        if annotations.is_empty() && rest.is_empty() {
            return Some(());
        }
        let mut part = String::new();
        json::push_member(&mut part, "type", kind.unwrap_or("null"));
        if !annotations.is_empty() {
            let annotations: Vec<&str> = annotations.into_iter().map(|(_, annotation)| annotation).collect();
            for annotation in &annotations {
                draft.change().note_member(annotation);
            }
            json::push_member(&mut part, "annotations", &format!("[{}]", annotations.join(",")));
        }
        let comma = if rest.is_empty() { "" } else { "," };
        draft.emit_rest(self.event_with(&format!("{{{part}{comma}{rest}}}")))
    }

    /// A Responses event about a part at this place.
    fn event_with(self, part: &str) -> String {
        let Spot { place, item, sub } = self.spot;
        let place = place.map(|place| format!(r#""output_index":{place},"#)).unwrap_or_default();
        let item = item.map(|item| format!(r#""item_id":"{item}","#)).unwrap_or_default();
        format!(r#"{{"type":"response.content_part.done",{place}{item}"content_index":{sub},"part":{part}}}"#)
    }
}

/// Emits what was not emitted yet of a part of an item's content.
pub(super) fn emit_part<'a>(part: PartOf<'a>, level: Level, draft: &mut Draft<'a>) -> Option<()> {
    let Some((voice, whole)) = part.text() else { return part.pass_on(draft) };
    if draft.claim(voice, part.spot, whole, level)?.is_contradiction() {
        return part.pass_on(draft);
    }
    part.emit_rest(draft)
}

/// Emits what was not emitted yet of the output of a completed response. `text` is its text as a whole, which some
/// servers send.
pub(super) fn emit_output<'a>(
    output: Option<&'a str>,
    text_in_one: Option<&'a str>,
    draft: &mut Draft<'a>,
) -> Option<()> {
    let listed = output.filter(|output| output.starts_with('[')).and_then(json::elements).unwrap_or_default();
    let mut items = Vec::with_capacity(listed.len());
    for (place, whole) in listed {
        match Item::read(whole, Some(place), draft) {
            Some(item) => items.push(item),
            // Unreadable output must not prevent the end.
            None => draft.emit_rest(format!(
                r#"{{"type":"response.output_item.done","output_index":{place},"item":{whole}}}"#
            ))?,
        }
    }
    let mut texts: Vec<(Voice, Spot<'a>, &'a str)> = Vec::new();
    for item in items.iter().filter(|item| matches!(item.kind, Some("message" | "reasoning"))) {
        for (part, voice, sub) in item.parts() {
            let spot = item.spot(sub);
            texts.extend(
                PartOf { part, voice, spot, event: None }.text().map(|(voice, whole)| (voice, spot, whole)),
            );
        }
    }
    let plain = text_in_one.and_then(|plain| text(Some(plain)).flatten());
    if let Some(plain) = plain.filter(|_| texts.iter().all(|(voice, ..)| *voice != Voice::Text)) {
        let planned = draft.plan(Voice::Text, &[(Spot { place: None, item: None, sub: 0 }, plain)]);
        draft.emit_planned(Voice::Text, planned.first().copied().flatten().unwrap_or_default())?;
    }
    let mut plans = Voice::ALL.map(|voice| {
        let of_voice = texts.iter().filter(|(other, ..)| *other == voice);
        let wholes: Vec<_> = of_voice.map(|(_, spot, whole)| (*spot, *whole)).collect();
        draft.plan(voice, &wholes).into_iter()
    });
    for item in items {
        match item.kind {
            Some("function_call") => {
                if item.claim_call(Level::Response, draft)? {
                    draft.emit_rest(item.event("done", item.whole))?;
                }
                item.emit_rest("done", draft)?;
            }
            Some("message" | "reasoning") => {
                for (part, voice, sub) in item.parts() {
                    let part = PartOf { part, voice, spot: item.spot(sub), event: None };
                    let planned =
                        part.text().map(|(voice, _)| (voice, plans[voice as usize].next().flatten()));
                    match planned {
                        Some((voice, Some(text))) => {
                            draft.emit_planned(voice, text)?;
                            part.emit_rest(draft)?;
                        }
                        Some((_, None)) | None => part.pass_on(draft)?,
                    }
                }
                item.emit_rest("done", draft)?;
            }
            _ if draft.progress().has_emitted(item.whole) => {}
            _ => draft.emit_rest(item.event("done", item.whole))?,
        }
    }
    Some(())
}
