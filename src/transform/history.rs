//! Turns a history read into its outcome: search, opening, frames, or the JSON state. Pure.

use std::sync::Arc;

use super::gaps::{beginning, check};
use super::silence::{Known, Seen, age_us, silence_us};
use crate::decode::checkpoints::Checkpoint;
use crate::decode::{Assembler, DecodeContext, DropReason, Flaw, Gathering, Pushed, Seek, Sought};
use crate::message::{
    Cursor, HistoryGap, KeyFacts, Opened, ReplayBatch, ReplayOutcome, ReplayRead, ReplayStep, Search, Shown,
    StateSearch,
};
use crate::model::{After, Entry, EntryId, Held, Phase, Position, StreamName, StreamState, StreamStatus};

/// The inputs of the outcome besides the read.
#[derive(Clone, Debug)]
pub struct ReplayClock {
    /// Now, µs since 1970 by this host's clock.
    pub now_us: u64,
    /// Now, µs since 1970 by Redis' clock.
    pub redis_us: u64,
    /// After how much silence a producer counts as stalled, µs; 0: never.
    pub stall_after_us: u64,
    /// After how much silence a finishing generation is over, ms; 0: never.
    pub grace_ms: u64,
    /// The settings that decoding needs beside the entries.
    pub context: DecodeContext,
    /// See [`ReplayRequest::appeared_us`](crate::message::ReplayRequest::appeared_us).
    pub appeared_us: Option<u64>,
    /// The daemon's knowledge of the stream's newest entry besides the read.
    pub known: Option<Known>,
}

impl ReplayClock {
    /// How long `newest` has been the newest entry, µs.
    fn silence_us(&self, newest: EntryId) -> u64 {
        let known = self.known.filter(|known| known.newest == newest);
        let silence_us = silence_us(newest, self.redis_us, known.map_or(Seen::Found(0), |known| known.seen));
        // No entry is older than its stream.
        self.appeared_us.map_or(silence_us, |at| silence_us.min(self.now_us.saturating_sub(at)))
    }

    /// Whether the generation at the end of a stream whose newest entry is `newest` is over because no entry has
    /// followed.
    fn is_over(&self, state: &StreamState, newest: EntryId) -> bool {
        self.grace_ms > 0
            && state.finishing().is_some()
            && (self.is_end_sent(newest) || self.silence_us(newest) / 1000 >= self.grace_ms)
    }

    /// Whether the end after `newest` was sent to viewers although no entry contains it.
    fn is_end_sent(&self, newest: EntryId) -> bool {
        self.known.is_some_and(|known| known.newest == newest && known.is_end_sent)
    }

    fn status(&self, state: &StreamState, newest: EntryId) -> StreamStatus {
        match state.phase {
            Phase::Ended(_) => StreamStatus::Ended,
            Phase::Failed(_) | Phase::Lost(_) => StreamStatus::Failed,
            Phase::Idle | Phase::Open if self.is_over(state, newest) => StreamStatus::Ended,
            Phase::Idle | Phase::Open if self.is_stalled(newest) => StreamStatus::Stalled,
            Phase::Idle | Phase::Open => StreamStatus::Live,
        }
    }

    fn is_stalled(&self, newest: EntryId) -> bool {
        self.stall_after_us > 0 && newest != EntryId::ZERO && self.silence_us(newest) >= self.stall_after_us
    }
}

/// Receives the findings of a read that concern other threads: drops, dead letters, ends, and the progress of scans.
pub trait ReplayObserver {
    /// An entry is not delivered.
    fn dropped(&mut self, stream: &StreamName, reason: DropReason);
    /// An entry could not be decoded.
    fn undecodable(&mut self, stream: &StreamName, entry: &Entry, flaw: Flaw);
    /// The stream ends at `newest` with a generation that has no end, and the entry's id cannot be used as a clock.
    fn unfinished(&mut self, stream: &StreamName, newest: EntryId);
    /// A finishing generation is over and no entry says so: `newest` is the newest entry of the stream.
    fn over(&mut self, stream: &StreamName, newest: EntryId, state: &StreamState);
    /// A later scan can continue from here.
    fn reached(&mut self, _stream: &StreamName, _checkpoint: Checkpoint) {}
    /// A checkpoint is valid, or is not; `first` is the stream's oldest entry.
    fn tried(&mut self, _stream: &StreamName, _checkpoint: EntryId, _holds: bool, _first: Option<EntryId>) {}
    /// A long scan has come this far; `None`: it is complete.
    fn scanned(&mut self, _stream: &StreamName, _at: Option<EntryId>) {}
}

/// Turns one read into its outcome.
pub fn conclude(batch: ReplayBatch, clock: ReplayClock, observer: &mut impl ReplayObserver) -> ReplayOutcome {
    let ReplayBatch { request, read, read_us, held } = batch;
    let (facts, entries, exhausted) = match read {
        ReplayRead::Missing => return ReplayOutcome::Missing,
        ReplayRead::WrongType => return ReplayOutcome::NotAStream,
        ReplayRead::Unavailable => return ReplayOutcome::Unavailable,
        ReplayRead::Found { facts, entries, exhausted } => (facts, entries, exhausted),
    };
    let budget_bytes = request.budget_bytes;
    let marks = matches!(request.step, ReplayStep::Open { .. } | ReplayStep::Search(_));
    let (stream, jump) = (request.stream, request.jump);
    let (grace_ms, context) = (clock.grace_ms, clock.context.clone());
    let mut found = Found { stream, facts, entries, exhausted, read_us, budget_bytes, marks, clock, held };
    match request.step {
        ReplayStep::Probe => ReplayOutcome::Exists,
        ReplayStep::Open { after, early, outlined } => {
            let after = match (after, found.facts.first) {
                (After::At(at), Some(first)) if early && at < first.into() => After::At(Position::ZERO),
                _ => after,
            };
            let seek = Seek::new(found.stream.clone(), after, beginning(&found.facts));
            let seek = seek.with_context(context).with_grace(grace_ms).with_outline(outlined);
            found.search_from(Box::new(Search::new(seek, None)), jump.as_deref(), observer)
        }
        ReplayStep::Search(search) => found.search_from(search, jump.as_deref(), observer),
        ReplayStep::Continue { from, .. } => found.go_on(from, observer),
        ReplayStep::State(search) => found.gather(*search, observer),
    }
}

/// One read and the request that it serves.
struct Found {
    stream: StreamName,
    facts: KeyFacts,
    entries: Vec<Entry>,
    exhausted: bool,
    read_us: u64,
    budget_bytes: usize,
    /// Whether to record text marks, by which frames can be divided: at the beginning of an answer, which other
    /// viewers may want from another entry on.
    marks: bool,
    clock: ReplayClock,
    held: Option<Held>,
}

impl Found {
    /// Continues a search, from the checkpoint if it was read from and is valid.
    fn search_from(
        &mut self,
        mut search: Box<Search>,
        jump: Option<&Checkpoint>,
        observer: &mut impl ReplayObserver,
    ) -> ReplayOutcome {
        if search.from == EntryId::ZERO {
            search.seek.begin(beginning(&self.facts));
        }
        if let Some(point) = jump {
            let holds = point.holds(&self.facts, self.entries.first());
            observer.tried(&self.stream, point.at(), holds, self.facts.first);
            if !holds {
                // The entries read do not continue this search's own scan: read again from where that scan stands.
                search.target = search.seek.target();
                return ReplayOutcome::Searching(search);
            }
            search.seek.adopt(point.scan());
            search.from = point.at();
        }
        self.search(search, observer)
    }

    fn search(&mut self, mut search: Box<Search>, observer: &mut impl ReplayObserver) -> ReplayOutcome {
        let mut is_unbroken = true;
        let seek = &mut search.seek;
        if search.from != EntryId::ZERO {
            let reached = Cursor { position: Position::whole(search.from), state: seek.state().clone() };
            // It cannot be known any more what was trimmed between two reads of the search.
            if let (Some(_), beyond) = check(&self.facts, reached) {
                seek.skip_to(self.facts.first, beyond.state);
                is_unbroken = false;
            }
        }
        let had_passed = seek.passed().is_some();
        self.entries.iter().for_each(|entry| seek.push(entry));
        if let Some(newest) = self.entries.last()
            && let Some(scan) = seek.checkpoint()
        {
            let weight = (scan.cost(), scan.len_bytes());
            observer.reached(&self.stream, Checkpoint::new(newest, self.facts, scan, weight));
        }
        if seek.is_long() {
            observer.scanned(&self.stream, Some(seek.position()).filter(|_| !self.exhausted));
        }
        if self.exhausted {
            self.judge_end(seek.state(), seek.position(), observer);
            if self.clock.is_end_sent(seek.position()) {
                seek.conclude();
            }
        }
        if is_unbroken && (!had_passed || search.shown.is_some()) {
            self.show_on_the_way(&mut search, observer);
        }
        if !self.exhausted {
            search.from = self.entries.last().map_or(search.from, |entry| entry.id);
            search.target = search.seek.target();
            return ReplayOutcome::Searching(search);
        }
        ReplayOutcome::Opened(Box::new(self.open(*search, observer)))
    }

    /// Turns the entries that this read has after the wanted position into frames, up to the budget, so that they
    /// need not be read again. If something was trimmed there, the read that reports it sends what follows.
    fn show_on_the_way(&self, search: &mut Search, observer: &mut impl ReplayObserver) {
        match &mut search.shown {
            Some(shown) if shown.cursor.position == Position::whole(search.from) => {
                let budget_bytes = self.budget_bytes.saturating_sub(shown.entries_bytes);
                if budget_bytes > 0 {
                    let more = self.show(shown.cursor.clone(), budget_bytes, observer);
                    shown.frames.extend(more.frames);
                    shown.cursor = more.cursor;
                    shown.entries_bytes += more.entries_bytes;
                    shown.entries += more.entries;
                }
            }
            // The budget was used up before.
            Some(_) => {}
            None => {
                let passed =
                    search.seek.passed().filter(|passed| check(&self.facts, passed.clone()).0.is_none());
                search.shown = passed.map(|passed| Box::new(self.show(passed, self.budget_bytes, observer)));
            }
        }
    }

    fn open(&self, search: Search, observer: &mut impl ReplayObserver) -> Opened {
        let Search { from: read_from, gap, shown, seek, .. } = search;
        let sought = seek.finish(self.facts.last_generated);
        let status = self.clock.status(&sought.state_at_tip, sought.tip);
        let tip = Cursor {
            position: Position::whole(sought.tip.max(self.facts.last_generated)),
            state: sought.state_at_tip.clone(),
        };
        let wanted = Cursor { position: sought.from, state: sought.state_at_from };
        let checked = check(&self.facts, wanted.clone());
        let has_gap = gap.is_some() || checked.0.is_some();
        let (found_gap, start) = match checked {
            // Everything up to the newest id is gone: reading continues after it.
            (gap @ Some(HistoryGap::Failover { .. }), _) => (gap, tip),
            // The read that sends what follows the gap reports it, once, with the facts of that time.
            _ if read_from != EntryId::ZERO => (None, wanted),
            other => other,
        };
        let finished = sought.state_at_tip.phase.terminal();
        let nothing_left = finished.is_some_and(|end| sought.from >= Position::whole(end));
        let from = start.before_end();
        let outline = sought.outline.map(Arc::new);
        let mut shown = match shown {
            Some(shown) if !has_gap => {
                let exhausted = shown.cursor.position.id >= sought.tip;
                Shown { exhausted, ..*shown }
            }
            _ if read_from == EntryId::ZERO => self.show(start, self.budget_bytes, observer),
            _ => Shown {
                gap: None,
                frames: Vec::new(),
                cursor: start,
                exhausted: false,
                entries_bytes: 0,
                entries: 0,
            },
        };
        shown.gap = gap.or(found_gap);
        let Sought { from: after, tip, terminal, .. } = sought;
        Opened { after, status, tip, nothing_left, terminal, outline, from, shown }
    }

    fn go_on(&mut self, from: Cursor, observer: &mut impl ReplayObserver) -> ReplayOutcome {
        let (gap, start) = check(&self.facts, from);
        if let Some(HistoryGap::Failover { newest, .. }) = gap {
            // The state at the older end is not the viewers' state, so a search has to find it.
            let after = After::At(Position::whole(newest));
            let seek = Seek::new(self.stream.clone(), after, beginning(&self.facts));
            let seek = seek.with_context(self.clock.context.clone()).with_grace(self.clock.grace_ms);
            let target = seek.target();
            return ReplayOutcome::Searching(Box::new(Search { target, ..Search::new(seek, gap) }));
        }
        let mut shown = self.show(start, self.budget_bytes, observer);
        shown.gap = gap;
        ReplayOutcome::Shown(Box::new(shown))
    }

    /// Frames of the entries after `start`, up to the budget; at least those of one entry.
    fn show(&self, start: Cursor, budget_bytes: usize, observer: &mut impl ReplayObserver) -> Shown {
        let assembler = Assembler::new(self.stream.clone(), start.position, start.state);
        let ReplayClock { context, grace_ms, .. } = &self.clock;
        let assembler = assembler.with_context(context.clone()).with_grace(*grace_ms);
        let mut assembler = if self.marks { assembler.marking() } else { assembler };
        let (mut entries_bytes, mut entries, mut exhausted) = (0, 0, self.exhausted);
        for entry in &self.entries {
            if entries > 0 && entries_bytes >= budget_bytes {
                exhausted = false;
                break;
            }
            match assembler.push(entry, self.read_us) {
                Pushed::Old => continue,
                Pushed::Accepted => {}
                Pushed::Dropped(reason) => observer.dropped(&self.stream, reason),
                Pushed::Undecodable { flaw } => observer.undecodable(&self.stream, entry, flaw),
            }
            entries_bytes += entry.fields.len_bytes();
            entries += 1;
        }
        if exhausted && self.clock.is_end_sent(assembler.position().id) {
            assembler.conclude(self.read_us);
        }
        let frames = assembler.take(self.clock.now_us);
        if let Some(held) = &self.held {
            frames.iter().for_each(|frame| frame.hold(|bytes| held.ledger().hold_frame(bytes)));
        }
        let cursor = Cursor { position: assembler.position(), state: assembler.state().clone() };
        Shown { gap: None, frames, cursor, exhausted, entries_bytes, entries }
    }

    /// Reports a stream that ends without the end of its generation: the end has to be written or waited for.
    fn judge_end(&self, state: &StreamState, newest: EntryId, observer: &mut impl ReplayObserver) {
        if state.phase.terminal().is_some() || newest == EntryId::ZERO {
            return;
        }
        if self.clock.is_over(state, newest) {
            observer.over(&self.stream, newest, state);
        } else if age_us(newest, self.clock.redis_us).is_none() {
            observer.unfinished(&self.stream, newest);
        }
    }

    fn begin_gathering(&self, max_bytes: usize) -> Box<Gathering> {
        let ReplayClock { context, grace_ms, .. } = self.clock.clone();
        let beginning = beginning(&self.facts);
        Box::new(Gathering::new(self.stream.clone(), beginning, max_bytes, (context, grace_ms)))
    }

    fn gather(&mut self, search: StateSearch, observer: &mut impl ReplayObserver) -> ReplayOutcome {
        let StateSearch { from, gathered, max_bytes, .. } = search;
        let mut gathering = match gathered {
            Some(gathering) => {
                let reached = Cursor { position: Position::whole(from), state: gathering.state().clone() };
                match check(&self.facts, reached).0 {
                    None => gathering,
                    // The stream was replaced by an older copy. The position reached lies after its new end.
                    Some(HistoryGap::Failover { .. }) => {
                        let search = StateSearch { max_bytes, ..StateSearch::default() };
                        return ReplayOutcome::Gathering(Box::new(search));
                    }
                    // The gathered entries were removed. Those read now are all that is left: start over with them.
                    Some(_) => self.begin_gathering(max_bytes),
                }
            }
            None => self.begin_gathering(max_bytes),
        };
        self.entries.iter().for_each(|entry| gathering.push(entry));
        if !self.exhausted {
            let from = self.entries.last().map_or(from, |entry| entry.id);
            let gathered_bytes = gathering.len_bytes();
            let search = StateSearch { from, gathered: Some(gathering), gathered_bytes, max_bytes };
            return ReplayOutcome::Gathering(Box::new(search));
        }
        self.judge_end(gathering.state(), gathering.newest(), observer);
        let status = self.clock.status(gathering.state(), gathering.newest());
        if self.clock.is_over(gathering.state(), gathering.newest()) {
            gathering.end_finishing();
        }
        let newest = gathering.newest().max(self.facts.last_generated);
        gathering.render(status, newest).map_or(ReplayOutcome::StateTooLarge, ReplayOutcome::State)
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
