//! The findings of a transform thread that concern other threads: dead letters, and the ends of generations.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::history::ReplayObserver;
use super::silence::{Remembered, age_us};
use crate::decode::checkpoints::{Checkpoint, Checkpoints};
use crate::decode::expand::end_entry;
use crate::decode::{DecodeContext, DropReason, Flaw};
use crate::message::record::{DeadLetter, EndGeneration, EndKind, Ended, Receipt};
use crate::message::{JobRef, ReplayOutcome};
use crate::model::{Entry, EntryId, Frame, FrameBody, StreamName, StreamState};
use crate::observe::{Recorder, Registry, Stage};
use crate::queue::Sender;
use crate::warn_limited;

/// How many dead letters are remembered as reported, so that several viewers of a stream report one only once.
const REPORTED_MAX: usize = 4096;

/// Dead letters that were reported recently.
#[derive(Default)]
pub(super) struct Reported {
    known: HashSet<(StreamName, EntryId)>,
    order: VecDeque<(StreamName, EntryId)>,
}

impl Reported {
    /// Records a dead letter as reported. Returns whether it is new.
    fn insert(&mut self, stream: &StreamName, id: EntryId) -> bool {
        let key = (stream.clone(), id);
        if !self.known.insert(key.clone()) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > REPORTED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    fn forget(&mut self, stream: &StreamName, id: EntryId) {
        self.known.remove(&(stream.clone(), id));
    }
}

/// Counts entries that are not delivered, and reports dead letters.
pub(super) struct DeadLetters<'a> {
    pub(super) registry: &'a Registry,
    pub(super) letters: &'a Sender<DeadLetter>,
    pub(super) reported: &'a mut Reported,
    pub(super) context: &'a DecodeContext,
    /// Whether there was no room for a dead letter. Then the entries read must not be passed on: they are read again
    /// later.
    pub(super) is_full: bool,
}

impl DeadLetters<'_> {
    pub(super) fn dropped(&mut self, stream: &StreamName, reason: DropReason) {
        let counters = self.registry.counters();
        match reason {
            DropReason::Retry => counters.entries_dropped_retry.add(1),
            DropReason::Finished | DropReason::GivenUp => counters.entries_dropped_finished.add(1),
            DropReason::BegunAgain => {
                counters.entries_dropped_finished.add(1);
                warn_limited!(key: stream; %stream, "a generation that is over begins again, and is dropped as a repetition: a new answer needs a `generation` of its own");
            }
            DropReason::Heartbeat | DropReason::Framing => {}
        }
    }

    pub(super) fn undecodable(&mut self, stream: &StreamName, entry: &Entry, flaw: Flaw) {
        if !self.reported.insert(stream, entry.id) {
            return;
        }
        let (reason, message) = (flaw.reason(), flaw.message(&entry.fields, &self.context.names));
        // A copy, because the letter may wait for long and a slice would keep the whole reply in memory.
        let entry = Entry { id: entry.id, fields: entry.fields.detached() };
        let (id, end_sent) = (entry.id, message.clone());
        let letter = DeadLetter { stream: stream.clone(), entry, reason, message: message.into() };
        if self.letters.try_send(letter).is_ok() {
            self.registry.counters().entries_undecodable.add(1);
            warn_limited!(key: stream; %stream, %id, reason, why = end_sent, "an entry cannot be read: it is skipped");
            return;
        }
        self.is_full = true;
        self.reported.forget(stream, id);
        self.registry.counters().dead_letters_deferred.inc();
        warn_limited!(key: stream; %stream, %id, reason, "too many dead letters wait: this stream waits for them");
    }
}

/// Counts and reports the same for history reads, and requests ends for generations that no entry ends.
pub(super) struct HistoryObserver<'a> {
    pub(super) letters: DeadLetters<'a>,
    pub(super) remembered: &'a mut Remembered,
    pub(super) ends: &'a Sender<EndGeneration>,
    /// The transform thread that gets the answer.
    pub(super) transform: usize,
    /// Now, µs since 1970 by this host's clock.
    pub(super) now_us: u64,
    /// The store of scan checkpoints, and the job whose scan this is.
    pub(super) scans: (&'a Checkpoints, JobRef),
}

impl ReplayObserver for HistoryObserver<'_> {
    fn dropped(&mut self, stream: &StreamName, reason: DropReason) {
        self.letters.dropped(stream, reason);
    }

    fn undecodable(&mut self, stream: &StreamName, entry: &Entry, flaw: Flaw) {
        self.letters.undecodable(stream, entry, flaw);
    }

    fn unfinished(&mut self, stream: &StreamName, newest: EntryId) {
        self.remembered.met(stream, newest, self.now_us);
    }

    fn over(&mut self, stream: &StreamName, newest: EntryId, state: &StreamState) {
        if !self.remembered.asks(stream, newest, self.now_us) {
            return;
        }
        let Some(data) = end_entry(state) else { return };
        let (stream, kind, transform) = (stream.clone(), EndKind::Grace, self.transform);
        // If there is no room, the next check asks again.
        let _ = self.ends.try_send(EndGeneration { stream, newest, data, kind, transform });
    }

    fn reached(&mut self, stream: &StreamName, checkpoint: Checkpoint) {
        self.scans.0.keep(stream, checkpoint, Instant::now());
    }

    fn tried(&mut self, stream: &StreamName, checkpoint: EntryId, holds: bool, first: Option<EntryId>) {
        if holds {
            self.letters.registry.counters().checkpoints_used.inc();
        } else {
            self.scans.0.refute(stream, checkpoint, first);
        }
    }

    fn scanned(&mut self, stream: &StreamName, at: Option<EntryId>) {
        let (checkpoints, job) = self.scans;
        match at {
            Some(at) => checkpoints.scanning(stream, job, at, Instant::now()),
            None => checkpoints.finished(stream, job),
        }
    }
}

/// Reports generations that are over to the recorder, which judges whether a client has acknowledged them.
#[derive(Clone, Copy, Debug)]
pub(super) struct EndWatch {
    /// How long after the end a client has to acknowledge it, in µs; `None`: no client has to.
    pub(super) after_us: Option<u64>,
}

impl EndWatch {
    /// Reports the ends among live frames: they end now, whatever their ids say.
    pub(super) fn saw_live(
        self,
        frames: &[Arc<Frame>],
        redis_us: u64,
        receipts: (&Sender<Receipt>, &Registry),
    ) {
        if self.after_us.is_some() {
            frames.iter().for_each(|frame| report_end(frame, redis_us, receipts));
        }
    }

    /// Reports the ends among frames from history. Skips a generation whose deadline for acknowledgement is over.
    pub(super) fn saw_history(
        self,
        outcome: &ReplayOutcome,
        redis_us: u64,
        receipts: (&Sender<Receipt>, &Registry),
    ) {
        let Some(after_us) = self.after_us else { return };
        let (frames, repeated) = match outcome {
            ReplayOutcome::Opened(opened) => (&opened.shown.frames, opened.terminal.as_ref()),
            ReplayOutcome::Shown(shown) => (&shown.frames, None),
            _ => return,
        };
        for frame in frames.iter().chain(repeated) {
            let ended_us = frame.last.id.ms.saturating_mul(1000);
            if age_us(frame.last.id, redis_us).is_some_and(|age| age < after_us) {
                report_end(frame, ended_us, receipts);
            }
        }
    }
}

fn report_end(frame: &Frame, at_redis_us: u64, (receipts, registry): (&Sender<Receipt>, &Registry)) {
    if !frame.is_terminal() {
        return;
    }
    let (stream, id, generation) = (frame.stream.clone(), frame.last.id, frame.state.generation.clone());
    if receipts.try_send(Receipt::Ended(Ended { stream, id, generation, at_redis_us })).is_err() {
        registry.counters().receipts_failed.inc();
        warn_limited!(key: frame.stream; stream = %frame.stream, %id, "too many receipts at once: this answer gets no `untaken` receipt");
    }
}

/// Counts live frames, and records how long they took to get here.
pub(super) fn measure(recorder: &mut Recorder, registry: &Registry, frames: &[Arc<Frame>], now_us: u64) {
    registry.counters().frames_encoded.add(frames.len() as u64);
    for frame in frames {
        if let Some(ts_us) = frame.ts_us {
            recorder.record(Stage::ProducedToRead, frame.read_us.saturating_sub(ts_us));
        }
        recorder.record(Stage::ReadToEncoded, now_us.saturating_sub(frame.read_us));
        if matches!(frame.body, FrameBody::Gap) {
            registry.counters().gaps_producer.add(1);
        }
    }
}

/// Counts the frames of a history read.
pub(super) fn count_shown(registry: &Registry, outcome: &ReplayOutcome) {
    let frames = match outcome {
        ReplayOutcome::Opened(opened) => opened.shown.frames.len(),
        ReplayOutcome::Shown(shown) => shown.frames.len(),
        _ => 0,
    };
    registry.counters().frames_encoded.add(frames as u64);
}
