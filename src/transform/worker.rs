//! A transform thread: decodes, judges, merges and encodes the streams that hash to it.
//!
//! It takes from three queues, in this order: requests of delivery threads, live batches, history reads. It takes one
//! history read for each live batch, so that many simultaneous resumes do not delay live text.
//!
//! INVARIANT: the thread never waits for a delivery thread or a reader. A delivery thread whose inbox is full is
//! detached from the streams concerned and finds them in [`Missed`]. Commands for a reader whose queue is full are
//! held here, at most one start and one stop per stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dead_letters::{DeadLetters, EndWatch, HistoryObserver, Reported, count_shown, measure};
use super::history::{ReplayClock, conclude};
use super::live::{Limits, LiveStream, LiveStreams, Waking};
pub use super::parts::{DeliveryPort, WorkerParts};
use super::silence::{Remembered, Seen};
use crate::decode::Pushed;
use crate::inline_stage::SharedStage;
use crate::message::record::{EndKind, EndOutcome};
use crate::message::{
    Control, Cursor, HubRef, LiveBatch, LiveFrames, LiveNews, LiveRef, Missed, ReaderCommand, ReplayBatch,
    ReplayOutcome, ReplayStep, ToDelivery, now_us, shard,
};
use crate::model::{EntryId, StreamName};
use crate::observe::{Recorder, Stage};
use crate::queue::{InlineStage, SendError, sleep_until};
use crate::{error_limited, pulse};

mod silent;

/// How often silent producers are checked and measurements published.
const TICK: Duration = Duration::from_millis(200);
/// Live streams of the daemon per reader in use. Measured with 200 and 1,000 streams and two readers: a single reader
/// took a fifth less CPU per token, with a lower 99th percentile.
const STREAMS_PER_READER: usize = 2048;
/// Larger batches are left to the transform thread, so that the reader can continue reading.
const ENTRIES_ON_THE_WAY_MAX: usize = 64;
/// How many streams without viewers are still read to see the end of an answer; the ends of further ones are not
/// seen.
const END_WATCHES_MAX: usize = 4096;

/// A running transform thread.
pub struct Worker {
    parts: WorkerParts,
    recorder: Recorder,
    streams: LiveStreams,
    /// Commands for which a reader's queue had no room, by reader.
    held: Vec<VecDeque<ReaderCommand>>,
    reported: Reported,
    ends: EndWatch,
    /// Unfinished streams that were found in history.
    remembered: Remembered,
    /// How many streams are still read only to see the end of an answer whose viewers have left.
    end_watches: usize,
    /// Streams that have become silent and whose viewers have not been told yet.
    silent: VecDeque<LiveRef>,
    /// The number of streams that the gauge shows.
    counted: i64,
    ticked_at: Instant,
}

impl Worker {
    /// A worker without streams.
    #[must_use]
    pub fn new(parts: WorkerParts) -> Self {
        let recorder = parts.registry.recorder();
        let held = parts.readers.iter().map(|_| VecDeque::new()).collect();
        let is_judged = parts.stream.receipts && !parts.stream.receipts_after.is_zero();
        let streams = LiveStreams::new(parts.context.clone());
        let ends = EndWatch { after_us: is_judged.then(|| micros(parts.stream.receipts_after)) };
        Self {
            parts,
            recorder,
            streams,
            held,
            reported: Reported::default(),
            ends,
            remembered: Remembered::default(),
            end_watches: 0,
            silent: VecDeque::new(),
            counted: 0,
            ticked_at: Instant::now(),
        }
    }

    /// Works until the daemon stops and the queues are empty.
    pub fn run(self) {
        self.parts.control.wake_this_thread();
        self.parts.live.wake_this_thread();
        self.parts.replay.wake_this_thread();
        let live = self.parts.live.clone();
        let stage = SharedStage::new(self);
        live.offer_inline(OnTheWay(stage.clone()));
        while let Some(until) = stage.own().and_then(|mut worker| worker.work()) {
            sleep_until(until);
        }
        // No other thread works on the stage from here on: messages sent now find the queue closed.
        drop(stage.end());
    }

    /// Works until the queues are empty. Returns when there is work again at the latest; `None` if the daemon stops.
    fn work(&mut self) -> Option<Instant> {
        loop {
            pulse::beat();
            self.apply_controls();
            let live = self.parts.live.try_recv();
            let replay = self.parts.replay.try_recv();
            let idle = live.is_none() && replay.is_none();
            if let Some(batch) = live {
                self.pass_live(batch);
            }
            if let Some(batch) = replay {
                self.pass_history(batch);
            }
            self.tick();
            if idle {
                return (!self.parts.stop.requested()).then(|| self.ticked_at + TICK);
            }
        }
    }

    // ----- requests of delivery threads -----

    fn apply_controls(&mut self) {
        while let Some(control) = self.parts.control.try_recv() {
            self.apply(control);
        }
    }

    fn apply(&mut self, control: Control) {
        match control {
            Control::Attach { stream, delivery, hub, from, appeared_us } => {
                self.attach(stream, (delivery, hub), (from, appeared_us));
            }
            Control::Detach { stream, delivery, hub } => {
                if let Some((live, found)) = self.streams.find(&stream)
                    && found.attached.contains(&(delivery, hub))
                {
                    self.detach(live, (delivery, hub));
                }
            }
            Control::EndAnswered { stream, newest, kind: EndKind::Grace, outcome: EndOutcome::Unwritten } => {
                self.conclude(&stream, newest);
            }
            // An entry that was written is read like every other; a silent producer is judged again later.
            Control::EndAnswered { .. } => {}
        }
    }

    /// `from`: where live begins if no delivery thread is attached yet, and when the daemon saw the stream appear, if
    /// it did.
    fn attach(&mut self, stream: StreamName, who: (usize, HubRef), from: (Cursor, Option<u64>)) {
        let now_us = now_us();
        let live = match self.streams.find(&stream) {
            Some((live, _)) => live,
            None => self.start(stream, from, now_us),
        };
        let Some(found) = self.streams.get(live) else { return };
        let (delivery, hub) = who;
        found.attached.retain(|&(other, _)| other != delivery);
        found.attached.push(who);
        self.end_watches -= usize::from(std::mem::take(&mut found.is_end_watched));
        let at = found.assembler.position().id;
        found.watermark.attach(delivery, at);
        let cursor = Cursor { position: found.assembler.framed(), state: found.assembler.state().clone() };
        let message = ToDelivery::Attached {
            hub,
            cursor,
            stalled: found.stalled,
            watermark: Arc::clone(&found.watermark),
        };
        if self.send(delivery, message).is_err() {
            self.miss(live, who);
        }
    }

    fn start(
        &mut self,
        stream: StreamName,
        (from, appeared_us): (Cursor, Option<u64>),
        now_us: u64,
    ) -> LiveRef {
        let (after, ordinal) = (from.position.id, from.state.ordinal);
        let reader = self.choose_reader(&stream);
        let (redis_us, limits) = (self.parts.clock.at(now_us), self.silence_limits());
        let remembered = self.remembered.get(&stream, now_us);
        let seen = Seen::at_start(after, remembered, (now_us, redis_us), appeared_us);
        let moment = (now_us, self.grace_ms());
        let live = self.streams.start(stream.clone(), reader, (from, seen), moment);
        let Some(found) = self.streams.get(live) else { return live };
        // Nobody is attached yet: the new viewers get the current status. The next tick decides about giving up.
        found.judge_silence((now_us, redis_us), Limits { abandon_us: 0, grace_us: 0, ..limits });
        let watermark = Arc::clone(&found.watermark);
        let transform = self.parts.index;
        self.command(reader, ReaderCommand::Start { stream, live, transform, after, ordinal, watermark });
        live
    }

    /// Chooses the reader of a new live stream, by hash. More readers are used as streams become many: each costs
    /// wake-ups, and with few streams one reader has enough time for all of them.
    fn choose_reader(&self, stream: &StreamName) -> usize {
        let streams = self.streams.len() * self.parts.transforms;
        shard(stream, (1 + streams / STREAMS_PER_READER).min(self.parts.readers.len()))
    }

    /// Detaches a delivery thread from a stream. If it was the last one, the stream ends.
    fn detach(&mut self, live: LiveRef, (delivery, hub): (usize, HubRef)) {
        let Some(found) = self.streams.get(live) else { return };
        found.attached.retain(|&who| who != (delivery, hub));
        found.watermark.detach(delivery);
        if !found.attached.is_empty() {
            return;
        }
        let is_awaited = self.ends.after_us.is_some() && found.is_unfinished();
        if is_awaited && self.end_watches < END_WATCHES_MAX {
            found.is_end_watched = true;
            self.end_watches += 1;
        } else {
            if is_awaited {
                self.parts.registry.counters().receipts_failed.inc();
            }
            self.end_unwatched(live);
        }
    }

    /// Ends a stream that no viewer watches.
    fn end_unwatched(&mut self, live: LiveRef) {
        if let Some(LiveStream { stream, reader, .. }) = self.end_stream(live) {
            self.command(reader, ReaderCommand::Stop { stream, live });
        }
    }

    fn end_stream(&mut self, live: LiveRef) -> Option<LiveStream> {
        let ended = self.streams.end(live)?;
        self.end_watches -= usize::from(ended.is_end_watched);
        if ended.is_unfinished() {
            let now_us = now_us();
            self.remembered.left(&ended.stream, ended.known(now_us), now_us);
        }
        Some(ended)
    }

    fn command(&mut self, reader: usize, command: ReaderCommand) {
        let held = &mut self.held[reader];
        if let ReaderCommand::Stop { live, .. } = &command
            && let Some(start) = held.iter().position(|held| held.starts(*live))
        {
            // The reader has not received the start command.
            held.remove(start);
            return;
        }
        held.push_back(command);
        self.send_held();
    }

    fn send_held(&mut self) {
        for (reader, held) in self.parts.readers.iter().zip(&mut self.held) {
            while let Some(command) = held.pop_front() {
                if let Err(SendError::Full(command)) = reader.try_send(command) {
                    held.push_front(command);
                    break;
                }
            }
        }
    }

    // ----- live -----

    /// The batch counts as under way until its frames are sent.
    fn pass_live(&mut self, batch: LiveBatch) {
        let _under_way = batch.under_way;
        let now_us = now_us();
        let mut parcels: Vec<Vec<LiveFrames>> = self.parts.deliveries.iter().map(|_| Vec::new()).collect();
        let mut sources: Vec<Vec<LiveRef>> = parcels.iter().map(|_| Vec::new()).collect();
        let (mut over, mut full, mut awake) = (Vec::new(), Vec::new(), Vec::new());
        for news in batch.streams {
            let (live, entries) = match news {
                LiveNews::Entries(live, entries) => (live, entries),
                LiveNews::Broken(live) => {
                    self.end_broken(live);
                    continue;
                }
            };
            let Self { parts, streams, reported, recorder, ends, .. } = self;
            let Some(found) = streams.get(live) else { continue };
            let waking = found.waking(&entries);
            let WorkerParts { registry, letters, context, .. } = parts;
            let mut observer = DeadLetters { registry, letters, reported, context, is_full: false };
            let frames =
                found.push(&entries, (batch.read_us, now_us), |stream, entry, pushed| match pushed {
                    Pushed::Dropped(reason) => observer.dropped(stream, reason),
                    Pushed::Undecodable { flaw } => observer.undecodable(stream, entry, flaw),
                    Pushed::Accepted | Pushed::Old => {}
                });
            if observer.is_full {
                full.push(live);
                continue;
            }
            measure(recorder, &parts.registry, &frames, now_us);
            ends.saw_live(&frames, parts.clock.at(now_us), (&parts.receipts, &parts.registry));
            let passed = found.assembler.position().id;
            if found.is_end_watched && frames.iter().any(|frame| frame.is_terminal()) {
                over.push(live);
            }
            match waking {
                Waking::First => self.wake_up(live),
                Waking::WithFrames if !frames.is_empty() => self.wake_up(live),
                Waking::AfterEnd if frames.len() > 1 => awake.push(live),
                Waking::WithFrames | Waking::AfterEnd => {}
            }
            let Some(found) = self.streams.get(live) else { continue };
            let Some((&(last, hub), others)) = found.attached.split_last() else { continue };
            for &(delivery, hub) in others {
                parcels[delivery].push(LiveFrames { hub, frames: frames.clone(), passed });
                sources[delivery].push(live);
            }
            parcels[last].push(LiveFrames { hub, frames, passed });
            sources[last].push(live);
        }
        for (delivery, (parcel, sources)) in parcels.into_iter().zip(sources).enumerate() {
            self.send_parcel(delivery, parcel, sources);
        }
        awake.into_iter().for_each(|live| self.wake_up(live));
        over.into_iter().for_each(|live| self.end_unwatched(live));
        full.into_iter().for_each(|live| self.end_early(live));
    }

    fn send_parcel(&mut self, delivery: usize, parcel: Vec<LiveFrames>, sources: Vec<LiveRef>) {
        if parcel.is_empty() {
            return;
        }
        let frames = parcel.iter().flat_map(|frames| frames.frames.iter());
        let bytes = frames.map(|frame| frame.json().len()).sum();
        let message = ToDelivery::Live { news: parcel, bytes };
        let Err(message) = self.parts.deliveries[delivery].inbox.hand_over(message) else { return };
        let Err(back) = self.send(delivery, message) else { return };
        let ToDelivery::Live { news: parcel, .. } = *back else { return };
        self.parts.registry.counters().streams_demoted.add(parcel.len() as u64);
        for (frames, live) in parcel.into_iter().zip(sources) {
            self.miss(live, (delivery, frames.hub));
        }
    }

    /// Sends the end of a generation that could not be written after its newest entry.
    fn conclude(&mut self, stream: &StreamName, newest: EntryId) {
        let now_us = now_us();
        self.remembered.end_sent(stream, newest, now_us);
        let Some((live, found)) = self.streams.find(stream) else { return };
        let frames = found.conclude(newest, now_us);
        if frames.is_empty() {
            return;
        }
        let (attached, passed) = (found.attached.clone(), found.assembler.position().id);
        measure(&mut self.recorder, &self.parts.registry, &frames, now_us);
        let (receipts, registry) = (&self.parts.receipts, &self.parts.registry);
        self.ends.saw_live(&frames, self.parts.clock.at(now_us), (receipts, registry));
        if attached.is_empty() {
            return self.end_unwatched(live);
        }
        for (delivery, hub) in attached {
            self.send_parcel(delivery, vec![LiveFrames { hub, frames: frames.clone(), passed }], vec![live]);
        }
    }

    fn end_broken(&mut self, live: LiveRef) {
        let Some(ended) = self.end_stream(live) else { return };
        if ended.is_end_watched {
            self.parts.registry.counters().receipts_failed.inc();
        }
        for (delivery, hub) in ended.attached {
            if self.send(delivery, ToDelivery::Broken { hub }).is_err() {
                self.note_missed(delivery, |missed| missed.hubs.insert(hub));
            }
        }
    }

    /// Sends a stream's viewers to history, where they wait until there is room for the stream's dead letters. The
    /// entries read are not passed on.
    fn end_early(&mut self, live: LiveRef) {
        if let Some((stream, reader)) =
            self.streams.get(live).map(|found| (found.stream.clone(), found.reader))
        {
            self.end_broken(live);
            self.command(reader, ReaderCommand::Stop { stream, live });
        }
    }

    // ----- history -----

    fn pass_history(&mut self, batch: ReplayBatch) {
        let now_us = now_us();
        let (job, asked_us) = (batch.request.job, batch.request.asked_us);
        let shows = matches!(batch.request.step, ReplayStep::Open { .. } | ReplayStep::Continue { .. });
        let stream = &batch.request.stream;
        let known = self.streams.find(stream).map(|(_, live)| live.known(now_us));
        let clock = ReplayClock {
            appeared_us: batch.request.appeared_us,
            known: known.or_else(|| self.remembered.get(stream, now_us)),
            now_us,
            redis_us: self.parts.clock.at(now_us),
            stall_after_us: micros(self.parts.stream.stall_after),
            grace_ms: self.grace_ms(),
            context: self.parts.context.clone(),
        };
        let redis_us = clock.redis_us;
        let Self { parts, reported, remembered, .. } = self;
        let WorkerParts { registry, letters, context, .. } = parts;
        let letters = DeadLetters { registry, letters, reported, context, is_full: false };
        let (ends, transform) = (&parts.ends, parts.index);
        let scans = (&*parts.checkpoints, job);
        let mut observer = HistoryObserver { letters, remembered, ends, transform, now_us, scans };
        let outcome = match conclude(batch, clock, &mut observer) {
            // The delivery thread asks again later, when there is room for the dead letters.
            _ if observer.letters.is_full => ReplayOutcome::Deferred,
            outcome => outcome,
        };
        if shows && !matches!(outcome, ReplayOutcome::Unavailable | ReplayOutcome::Deferred) {
            self.recorder.record(Stage::Replay, now_us.saturating_sub(asked_us));
        }
        count_shown(&self.parts.registry, &outcome);
        self.ends.saw_history(&outcome, redis_us, (&self.parts.receipts, &self.parts.registry));
        if let Err(back) = self.send(job.delivery, ToDelivery::Replay(job, outcome)) {
            // The search keeps its findings so far: started over, it might never complete.
            let step = match *back {
                ToDelivery::Replay(_, ReplayOutcome::Searching(search)) => Some(ReplayStep::Search(search)),
                ToDelivery::Replay(_, ReplayOutcome::Gathering(search)) => Some(ReplayStep::State(search)),
                _ => None,
            };
            self.note_missed(job.delivery, |missed| missed.jobs.insert(job.slot, step).is_none());
        }
    }

    // ----- timers -----

    fn tick(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.ticked_at) < TICK {
            return;
        }
        self.ticked_at = now;
        self.send_held();
        self.judge_silence();
        self.recorder.publish();
        let count = signed(self.streams.len());
        let gauges = self.parts.registry.gauges();
        gauges.streams_live.add(count - self.counted);
        self.counted = count;
        gauges.history_reply_bytes.set(signed(self.parts.ledger.replies()));
        gauges.history_frame_bytes.set(signed(self.parts.ledger.frames()));
        gauges.checkpoint_bytes.set(signed(self.parts.checkpoints.len_bytes()));
    }

    // ----- sending -----

    /// Sends a message; returns it if there is no room for it.
    fn send(&self, delivery: usize, message: ToDelivery) -> Result<(), Box<ToDelivery>> {
        let port = &self.parts.deliveries[delivery];
        let queue = if matches!(message, ToDelivery::Replay(..)) { &port.history } else { &port.inbox };
        match queue.try_send(message) {
            // A delivery thread that has ended needs no message: the daemon stops.
            Ok(()) | Err(SendError::Closed(_)) => Ok(()),
            Err(SendError::Full(message)) => Err(Box::new(message)),
        }
    }

    /// Detaches a delivery thread that could not be sent a message about a live stream; it finds out from [`Missed`].
    fn miss(&mut self, live: LiveRef, (delivery, hub): (usize, HubRef)) {
        self.detach(live, (delivery, hub));
        self.note_missed(delivery, |missed| missed.hubs.insert(hub));
    }

    fn note_missed(&self, delivery: usize, note: impl FnOnce(&mut Missed) -> bool) {
        let port = &self.parts.deliveries[delivery];
        note(&mut port.missed.lock());
        if let Err(error) = port.waker.wake() {
            error_limited!(%error, delivery, "a delivery thread could not be woken");
        }
    }
}

/// Small live batches are processed by the reader that brings them.
#[derive(Debug)]
struct OnTheWay(SharedStage<Worker>);

impl InlineStage<LiveBatch> for OnTheWay {
    fn take(&self, batch: LiveBatch) -> Result<(), LiveBatch> {
        if batch.len() > ENTRIES_ON_THE_WAY_MAX {
            return Err(batch);
        }
        match self.0.if_free() {
            Some(mut worker) if worker.parts.live.is_empty() => {
                worker.apply_controls();
                worker.pass_live(batch);
                Ok(())
            }
            _ => Err(batch),
        }
    }
}

fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
