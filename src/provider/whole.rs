//! Texts and arguments that are sent as a whole, in addition to the pieces or instead of them.
//!
//! A Responses stream sends a text in pieces, and again as a whole in up to four events; some servers send only the
//! whole. Of a whole, only what its pieces did not contain is emitted: nothing, the rest, or everything. A whole that
//! contradicts the pieces cannot be emitted as text any more; it is passed on as `custom`, once.
//!
//! A part is identified like a call: by its place, or else by its item's id, or else it is the one in progress. A
//! piece that follows the whole of a part, or a second, different whole of the same kind, begins another part in its
//! place; so does an event of another item ([`identity`](super::identity)).

use std::collections::{BTreeMap, BTreeSet};

use super::calls::{BY_FURTHER, BY_ID, BY_PLACE, Piece, item_name};
use super::draft::{Draft, meant};
use crate::json;
use crate::model::{Part, TextDigest, name_of};

/// The kinds of names that a provider gives a part of the text; those of calls are lower.
const SPOT: u8 = 16;
const ITEM: u8 = 32;
const GOING_ON: u8 = 48;
/// The place of a part whose events name neither a place nor an item.
const NOWHERE: u64 = u64::MAX;

/// The kinds of text of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Voice {
    Text,
    Refusal,
    Reasoning,
    Summary,
}

impl Voice {
    pub(super) const ALL: [Self; 4] = [Self::Text, Self::Refusal, Self::Reasoning, Self::Summary];

    /// The channel of the text.
    pub(super) const fn channel(self) -> &'static str {
        match self {
            Self::Text => "content",
            Self::Refusal => "refusal",
            Self::Reasoning | Self::Summary => "reasoning",
        }
    }

    /// The kind of its [`Part`]; 0 is a call's.
    const fn kind(self) -> u8 {
        self as u8 + 1
    }
}

/// The location of a part in the output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot<'a> {
    pub(super) place: Option<u64>,
    pub(super) item: Option<&'a str>,
    /// The place within the item.
    pub(super) sub: u64,
}

impl Spot<'_> {
    fn by_place(self, voice: Voice) -> Option<u64> {
        let nowhere = self.item.is_none().then_some(NOWHERE);
        self.place.or(nowhere).map(|place| name_of(SPOT + voice.kind(), [place, self.sub], ""))
    }

    fn by_item(self, voice: Voice) -> Option<u64> {
        self.item.map(|item| name_of(ITEM + voice.kind(), [self.sub, 0], &meant(item)))
    }
}

/// The part of a kind that is in progress.
fn going_on(voice: Voice) -> u64 {
    name_of(GOING_ON + voice.kind(), [0, 0], "")
}

/// The event that contains a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// When the part begins: pieces may follow.
    Added,
    /// At the end of the text or of the arguments.
    Text,
    /// At the end of the part of the content.
    Part,
    /// At the end of the item.
    Item,
    /// At the end of the response.
    Response,
}

impl Level {
    pub(super) const fn bit(self) -> u8 {
        match self {
            Self::Added => 0,
            Self::Text => 1,
            Self::Part => 2,
            Self::Item => 4,
            Self::Response => 8,
        }
    }
}

/// The result of comparing a whole with what was emitted of its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// All of it is emitted now.
    Emitted,
    /// It differs from what was emitted.
    Contradiction,
}

impl Claim {
    pub(super) fn is_contradiction(self) -> bool {
        self == Self::Contradiction
    }
}

/// Whether a whole call has no arguments although the part has some.
fn adds_nothing(part: &Part, piece: &Piece<'_>) -> bool {
    piece.arguments.is_empty() || piece.arguments == "{}" && part.emitted != TextDigest::NONE
}

/// The rest of an escaped text after its emitted beginning; `None` if it does not begin with that.
fn rest_of(emitted: TextDigest, whole: &str) -> Option<&str> {
    let at = json::place_after(whole, emitted.len)?;
    (TextDigest::of(&meant(&whole[..at])) == emitted).then(|| &whole[at..])
}

impl<'a> Draft<'a> {
    pub(super) fn known(&self, slot: u64) -> Part {
        self.progress().parts.get(slot).cloned().unwrap_or_default()
    }

    /// The part with one of two names: the place takes precedence over the id, unless the id's part had that place
    /// too.
    pub(super) fn find_part(&self, place: Option<u64>, id: Option<u64>) -> Option<u64> {
        let parts = &self.progress().parts;
        let by_place = place.and_then(|name| parts.find(name));
        let by_id = id.and_then(|name| parts.find(name));
        let place_of = |slot: u64| parts.get(slot).map_or(0, |part| part.named(BY_PLACE));
        match (by_place, by_id) {
            (_, Some(slot)) if place == Some(place_of(slot)) => Some(slot),
            (Some(slot), _) => Some(slot),
            (None, Some(slot)) if place.is_none() || place_of(slot) == 0 => Some(slot),
            (None, _) => None,
        }
    }

    fn find_text(&self, voice: Voice, spot: Spot<'_>) -> Option<u64> {
        let by_item = spot.by_item(voice);
        let slot = self.find_part(spot.by_place(voice), by_item)?;
        if self.is_announced_beside(slot, spot.item) {
            return by_item.and_then(|name| self.progress().parts.find(name));
        }
        Some(slot)
    }

    /// The part in progress, if either side does not identify the part.
    fn find_going_on(&self, voice: Voice, spot: Spot<'_>) -> Option<u64> {
        let slot = self.progress().parts.find(going_on(voice))?;
        let nowhere = Spot { place: None, item: None, ..spot };
        let is_nowhere = spot.place.is_none() && spot.item.is_none();
        (is_nowhere || Some(self.known(slot).named(BY_PLACE)) == nowhere.by_place(voice)).then_some(slot)
    }

    fn begin_text(&mut self, voice: Voice, spot: Spot<'_>) -> u64 {
        let slot = self.change().parts.insert(Part { kind: voice.kind(), ..Part::default() });
        self.name_text(slot, voice, spot);
        self.name_part(slot, BY_FURTHER, going_on(voice));
        slot
    }

    fn name_text(&mut self, slot: u64, voice: Voice, spot: Spot<'_>) {
        if let Some(name) = spot.by_place(voice) {
            self.name_part(slot, BY_PLACE, name);
        }
        if let Some(name) = spot.by_item(voice) {
            self.name_part(slot, BY_ID, name);
        }
        self.note_item(slot, spot.item);
    }

    /// Emits more text of a part.
    fn emit_voice(&mut self, slot: u64, voice: Voice, text: &'a str) -> Option<()> {
        let meant = meant(text);
        let progress = self.change();
        progress.parts.change(slot, |part| part.emitted.push(&meant));
        progress.totals[voice as usize].push(&meant);
        self.emit_text(voice.channel(), 0, Some(text))
    }

    /// Emits a piece of a text.
    pub(super) fn emit_spot(&mut self, voice: Voice, spot: Spot<'_>, text: &'a str) -> Option<()> {
        if text.is_empty() {
            return Some(());
        }
        let known = self.find_text(voice, spot).or_else(|| {
            let is_nowhere = spot.place.is_none() && spot.item.is_none();
            self.find_going_on(voice, spot).filter(|_| is_nowhere)
        });
        let goes_on =
            |slot: &u64| self.known(*slot).confirmed == 0 && !self.is_piece_of_other(*slot, spot.item);
        let slot = match known.filter(goes_on) {
            Some(slot) => {
                self.note_item(slot, spot.item);
                slot
            }
            None => self.begin_text(voice, spot),
        };
        self.emit_voice(slot, voice, text)
    }

    /// Emits what was not emitted yet of a whole text.
    pub(super) fn claim(
        &mut self,
        voice: Voice,
        spot: Spot<'_>,
        whole: &'a str,
        level: Level,
    ) -> Option<Claim> {
        if whole.is_empty() {
            return Some(Claim::Emitted);
        }
        let is_open = |part: &Part| part.confirmed & level.bit() == 0;
        // A part that is complete already is meant only if the whole repeats it.
        let is_meant =
            |part: &Part| is_open(part) && (part.confirmed == 0 || rest_of(part.emitted, whole) == Some(""));
        let known = self
            .find_text(voice, spot)
            .or_else(|| self.find_going_on(voice, spot).filter(|slot| is_meant(&self.known(*slot))));
        let part = known.map(|slot| self.known(slot));
        let rest = part.as_ref().and_then(|part| rest_of(part.emitted, whole));
        let is_other = |slot: u64| {
            level == Level::Added
                || self.is_whole_of_other(slot, spot.item)
                || self.is_after_whole(slot, level)
        };
        let slot = match (known, part, rest) {
            (Some(slot), _, Some("")) => slot,
            (Some(slot), Some(part), Some(rest)) if is_open(&part) => {
                self.emit_voice(slot, voice, rest)?;
                slot
            }
            (Some(slot), Some(_), None) if !is_other(slot) => {
                self.change().parts.change(slot, |part| {
                    part.emitted = TextDigest::of(&meant(whole));
                    part.confirmed |= level.bit();
                });
                return Some(Claim::Contradiction);
            }
            // The part may be one of those that were dropped.
            _ if self.progress().parts.has_forgotten
                && known.is_none_or(|slot| self.is_whole_of_other(slot, spot.item)) =>
            {
                return Some(Claim::Contradiction);
            }
            _ => {
                let slot = self.begin_text(voice, spot);
                self.emit_voice(slot, voice, whole)?;
                slot
            }
        };
        self.name_text(slot, voice, spot);
        if self.known(slot).confirmed & level.bit() != level.bit() {
            self.change().parts.change(slot, |part| part.confirmed |= level.bit());
        }
        Some(Claim::Emitted)
    }

    /// Whether a whole call that names this item differs from the call in its place.
    pub(super) fn is_call_of_other(
        &self,
        slot: u64,
        item: Option<&str>,
        piece: &Piece<'_>,
        level: Level,
    ) -> bool {
        let part = self.known(slot);
        let has_id = piece.id.is_some() && part.id != 0;
        let is_named = item.is_some_and(|item| part.named(BY_FURTHER) == item_name(item));
        if has_id
            || is_named
            || adds_nothing(&part, piece)
            || rest_of(part.emitted, piece.arguments).is_some()
        {
            return false;
        }
        self.is_whole_of_other(slot, item) || self.is_after_whole(slot, level)
    }

    /// Emits the rest of a whole call. No arguments, or an empty object, add nothing to a call that has some.
    pub(super) fn claim_call(&mut self, slot: u64, piece: Piece<'a>, level: Level) -> Option<Claim> {
        let part = self.known(slot);
        let id = piece.id.filter(|_| part.id == 0);
        let name = piece.name.filter(|_| part.name == 0);
        let rest = rest_of(part.emitted, piece.arguments);
        let claim = if adds_nothing(&part, &piece) {
            self.emit_waiting_of(slot)?;
            self.emit_piece(slot, Piece { id, name, arguments: "" })?;
            Claim::Emitted
        } else {
            self.emit_piece(slot, Piece { id, name, arguments: rest.unwrap_or_default() })?;
            if rest.is_some() { Claim::Emitted } else { Claim::Contradiction }
        };
        self.change().parts.change(slot, |part| {
            part.confirmed |= level.bit();
            if claim.is_contradiction() {
                part.emitted = TextDigest::of(&meant(piece.arguments));
            }
        });
        Some(claim)
    }

    // ----- the whole response -----

    /// The part to emit of each text of a kind in the completed response; `None` for a text that contradicts
    /// what was emitted.
    ///
    /// Usually the texts in their order equal what was emitted, or continue it, however it was divided into parts.
    pub(super) fn plan(&self, voice: Voice, wholes: &[(Spot<'_>, &'a str)]) -> Vec<Option<&'a str>> {
        let total = self.progress().totals[voice as usize];
        let (mut emitted, mut plan) = (TextDigest::NONE, Vec::with_capacity(wholes.len()));
        for (_, whole) in wholes {
            let text = meant(whole);
            // Where the emitted part of this text ends, if all texts were emitted in this order.
            let missing = total.len - emitted.len;
            let at =
                if text.len() <= missing { Some(whole.len()) } else { json::place_after(whole, missing) };
            let Some(at) = at else { return self.plan_parts(voice, wholes) };
            emitted.push(&meant(&whole[..at]));
            plan.push(Some(&whole[at..]));
        }
        if emitted == total { plan } else { self.plan_parts(voice, wholes) }
    }

    /// Compares part by part: a text that equals what was emitted of some part adds nothing, whatever its place.
    fn plan_parts(&self, voice: Voice, wholes: &[(Spot<'_>, &'a str)]) -> Vec<Option<&'a str>> {
        let parts = &self.progress().parts;
        let mut left: BTreeSet<u64> = BTreeSet::new();
        let mut by_text: BTreeMap<TextDigest, Vec<u64>> = BTreeMap::new();
        for (slot, part) in parts.iter().filter(|(_, part)| part.kind == voice.kind() && part.emitted.len > 0)
        {
            left.insert(slot);
            by_text.entry(part.emitted).or_default().push(slot);
        }
        let mut plan: Vec<Option<Option<&str>>> = vec![None; wholes.len()];
        for is_own in [true, false] {
            for (planned, (spot, whole)) in
                plan.iter_mut().zip(wholes).filter(|(planned, _)| planned.is_none())
            {
                let emitted = TextDigest::of(&meant(whole));
                let own = self.find_text(voice, *spot).filter(|slot| left.contains(slot));
                let same = match is_own {
                    true => own.filter(|slot| self.known(*slot).emitted == emitted),
                    false => by_text
                        .get(&emitted)
                        .and_then(|slots| slots.iter().find(|slot| left.contains(slot)).copied()),
                };
                if let Some(slot) = same {
                    left.remove(&slot);
                    *planned = Some(Some(""));
                }
            }
        }
        let planned = plan.into_iter().zip(wholes).map(|(planned, (spot, whole))| {
            planned.unwrap_or_else(|| {
                let own = self.find_text(voice, *spot).filter(|slot| left.contains(slot));
                let rest = own.and_then(|slot| rest_of(self.known(slot).emitted, whole));
                // It is new if the emitted parts that were not found here all belong to other items.
                let is_new = || left.iter().all(|slot| self.is_whole_of_other(*slot, spot.item));
                let missing = rest.or_else(|| (!parts.has_forgotten && is_new()).then_some(*whole));
                if let Some(slot) =
                    own.filter(|slot| rest.is_some() || !self.is_whole_of_other(*slot, spot.item))
                {
                    left.remove(&slot);
                }
                missing
            })
        });
        planned.collect()
    }

    /// Emits a text of the response as planned.
    pub(super) fn emit_planned(&mut self, voice: Voice, text: &'a str) -> Option<()> {
        self.emit_text(voice.channel(), 0, Some(text))
    }
}
