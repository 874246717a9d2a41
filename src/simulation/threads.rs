//! Models of the other threads as a delivery thread sees them: replay and transform threads, the watcher, the
//! recorder. Each model works only when it is called, so its answers may be late, in any order, or failures.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::streams::Stream;
use crate::decode::{Assembler, DecodeContext, DropReason, Flaw};
use crate::fuzzing::Numbers;
use crate::message::record::{Asker, CancelRequest, Receipt, Refused};
use crate::message::{
    Control, HubRef, LiveFrames, Missed, ReplayBatch, ReplayOutcome, ReplayRead, ReplayRequest, ReplayStep,
    ToDelivery, WatcherRequest,
};
use crate::model::{AckWatermark, Entry, EntryId, Position, StreamName, StreamState};
use crate::queue::{Receiver, SendError, Sender};
use crate::transform::history::{ReplayClock, ReplayObserver, conclude};

/// The ends of the delivery thread's queues.
pub(super) struct Queues {
    pub(super) inbox: Sender<ToDelivery>,
    pub(super) history: Sender<ToDelivery>,
    /// The ends of `inbox` and `history` from which the delivery thread receives.
    pub(super) receivers: [Receiver<ToDelivery>; 2],
    pub(super) missed: Arc<Mutex<Missed>>,
    pub(super) replays: Receiver<ReplayRequest>,
    pub(super) control: Receiver<Control>,
    pub(super) watcher_requests: Receiver<WatcherRequest>,
    pub(super) cancels: Receiver<CancelRequest>,
    pub(super) receipts: Receiver<Receipt>,
}

/// Ignores what reads observe, except for undecodable entries, which must not occur.
struct IgnoreFindings;

impl ReplayObserver for IgnoreFindings {
    fn dropped(&mut self, _: &StreamName, _: DropReason) {}
    fn undecodable(&mut self, _: &StreamName, _: &Entry, flaw: Flaw) {
        panic!("an entry of the script could not be understood: {flaw:?}");
    }
    fn unfinished(&mut self, _: &StreamName, _: EntryId) {}
    fn over(&mut self, _: &StreamName, _: EntryId, _: &StreamState) {}
}

/// Models the replay threads, and that part of the transform thread which decodes their reads.
#[derive(Default)]
pub(super) struct Replays {
    /// Requests that have not been read.
    requested: Vec<ReplayRequest>,
    /// Reads that have not been decoded.
    read: Vec<ReplayBatch>,
}

impl Replays {
    /// The number of pending requests and reads.
    pub(super) fn len(&self) -> usize {
        self.requested.len() + self.read.len()
    }

    /// Takes at most `most` requests. Returns their streams and jobs.
    pub(super) fn take(&mut self, queues: &Queues, most: usize) -> Vec<(StreamName, crate::message::Slot)> {
        let requests = std::iter::from_fn(|| queues.replays.try_recv()).take(most);
        let begin = self.requested.len();
        self.requested.extend(requests);
        self.requested[begin..].iter().map(|request| (request.stream.clone(), request.job.slot)).collect()
    }

    /// Reads for one of the requests. Redis is unavailable if `is_down`.
    pub(super) fn read(&mut self, streams: &[Stream], numbers: &mut Numbers, is_down: bool) {
        if self.requested.is_empty() {
            return;
        }
        let request = self.requested.swap_remove(numbers.below(self.requested.len()));
        let read = match streams.iter().find(|stream| stream.name == request.stream) {
            _ if is_down => ReplayRead::Unavailable,
            Some(stream) if stream.exists => read_stream(stream, &request, numbers),
            _ => ReplayRead::Missing,
        };
        self.read.push(ReplayBatch { request, read, read_us: 0, held: None });
    }

    /// Decodes one of the reads and sends the outcome. There is no room for dead letters if `defers`.
    pub(super) fn answer(&mut self, queues: &Queues, numbers: &mut Numbers, defers: bool) {
        if self.read.is_empty() {
            return;
        }
        let batch = self.read.swap_remove(numbers.below(self.read.len()));
        let job = batch.request.job;
        let clock = ReplayClock {
            now_us: 0,
            redis_us: 0,
            stall_after_us: 0,
            grace_ms: 0,
            context: DecodeContext::default(),
            appeared_us: None,
            known: None,
        };
        let outcome = match conclude(batch, clock, &mut IgnoreFindings) {
            _ if defers => ReplayOutcome::Deferred,
            outcome => outcome,
        };
        match queues.history.try_send(ToDelivery::Replay(job, outcome)) {
            Ok(()) => {}
            Err(SendError::Full(ToDelivery::Replay(_, outcome))) => {
                let step = match outcome {
                    ReplayOutcome::Searching(search) => Some(ReplayStep::Search(search)),
                    ReplayOutcome::Gathering(search) => Some(ReplayStep::State(search)),
                    _ => None,
                };
                queues.missed.lock().jobs.insert(job.slot, step);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The result of a read of the stream, sometimes with fewer entries than requested.
fn read_stream(stream: &Stream, request: &ReplayRequest, numbers: &mut Numbers) -> ReplayRead {
    let facts = stream.facts();
    let next_id = |position: Position| match position {
        Position::ZERO => EntryId::ZERO,
        Position { id, .. } if position.covers_entry() => id.next().unwrap_or(EntryId::MAX),
        Position { id, .. } => id,
    };
    let (from, until) = match &request.step {
        ReplayStep::Open { .. } => (EntryId::ZERO, EntryId::MAX),
        ReplayStep::Probe => (EntryId::MAX, EntryId::ZERO),
        ReplayStep::Search(search) => (next_id(Position::whole(search.from)), EntryId::MAX),
        ReplayStep::State(search) => (next_id(Position::whole(search.from)), EntryId::MAX),
        ReplayStep::Continue { from, until } => (next_id(from.position), until.unwrap_or(EntryId::MAX)),
    };
    let most = if numbers.below(4) == 0 { 1 + numbers.below(4) } else { request.count };
    let (entries, exhausted) = stream.range(from, until, most.min(request.count));
    ReplayRead::Found { facts, entries, exhausted }
}

/// A stream that is read live.
struct Live {
    hub: HubRef,
    assembler: Assembler,
    life: usize,
    is_stalled: bool,
    watermark: Arc<AckWatermark>,
}

/// Models the transform thread and its reader.
#[derive(Default)]
pub(super) struct Transform {
    live: BTreeMap<StreamName, Live>,
}

impl Transform {
    /// Carries out at most `most` commands.
    pub(super) fn apply(&mut self, queues: &Queues, streams: &[Stream], most: usize) {
        for control in std::iter::from_fn(|| queues.control.try_recv()).take(most) {
            match control {
                Control::Attach { stream, hub, from, .. } => {
                    let found = streams.iter().find(|found| found.name == stream);
                    let life = found.map_or(0, |found| found.life_at(from.position));
                    let live = self.live.entry(stream.clone()).or_insert_with(|| Live {
                        hub,
                        assembler: Assembler::new(stream.clone(), from.position, from.state),
                        life,
                        is_stalled: false,
                        watermark: Arc::default(),
                    });
                    live.hub = hub;
                    live.watermark.attach(0, live.assembler.position().id);
                    let cursor = crate::message::Cursor {
                        position: live.assembler.framed(),
                        state: live.assembler.state().clone(),
                    };
                    let watermark = Arc::clone(&live.watermark);
                    let message = ToDelivery::Attached { hub, cursor, stalled: live.is_stalled, watermark };
                    if queues.inbox.try_send(message).is_err() {
                        self.live.remove(&stream);
                        queues.missed.lock().hubs.insert(hub);
                    }
                }
                Control::Detach { stream, hub, .. } => {
                    if self.live.get(&stream).is_some_and(|live| live.hub == hub) {
                        self.live.remove(&stream);
                    }
                }
                Control::EndAnswered { .. } => {}
            }
        }
    }

    /// The streams that are read live.
    pub(super) fn streams(&self) -> Vec<StreamName> {
        self.live.keys().cloned().collect()
    }

    /// Reads at most `most` further entries of a stream, and returns their frames. Live reading breaks if entries are
    /// missing.
    pub(super) fn read(&mut self, queues: &Queues, stream: &Stream, most: usize) -> Option<LiveFrames> {
        let live = self.live.get_mut(&stream.name)?;
        let after = live.assembler.position();
        if !stream.can_follow(after.id, live.life) {
            self.break_live(queues, &stream.name);
            return None;
        }
        let from = if after.covers_entry() { after.id.next()? } else { after.id };
        let from = if after == Position::ZERO { EntryId::ZERO } else { from };
        let (entries, _) = stream.range(from, EntryId::MAX, most);
        if entries.is_empty() {
            return None;
        }
        if std::mem::take(&mut live.is_stalled) {
            self.send_about(queues, &stream.name, |hub| ToDelivery::Stalled { hub, stalled: false });
        }
        let live = self.live.get_mut(&stream.name)?;
        for entry in &entries {
            live.assembler.push(entry, 0);
        }
        let (frames, passed) = (live.assembler.take(0), live.assembler.position().id);
        Some(LiveFrames { hub: live.hub, frames, passed })
    }

    /// Sends live frames. If the inbox has no room for them, the delivery thread is detached from their streams.
    pub(super) fn send(&mut self, queues: &Queues, news: Vec<LiveFrames>) {
        let bytes = news.iter().flat_map(|news| &news.frames).map(|frame| frame.json().len()).sum();
        let Err(SendError::Full(ToDelivery::Live { news, .. })) =
            queues.inbox.try_send(ToDelivery::Live { news, bytes })
        else {
            return;
        };
        for LiveFrames { hub, .. } in news {
            self.live.retain(|_, live| live.hub != hub);
            queues.missed.lock().hubs.insert(hub);
        }
    }

    /// Breaks the live reading of the stream.
    pub(super) fn break_live(&mut self, queues: &Queues, stream: &StreamName) {
        self.send_about(queues, stream, |hub| ToDelivery::Broken { hub });
        self.live.remove(stream);
    }

    /// Stalls the producer of the stream, if its generation is unfinished.
    pub(super) fn stall(&mut self, queues: &Queues, stream: &Stream) {
        if let Some(live) = self.live.get_mut(&stream.name)
            && stream.is_open()
            && !std::mem::replace(&mut live.is_stalled, true)
        {
            self.send_about(queues, &stream.name, |hub| ToDelivery::Stalled { hub, stalled: true });
        }
    }

    fn send_about(&mut self, queues: &Queues, stream: &StreamName, message: impl Fn(HubRef) -> ToDelivery) {
        let Some(hub) = self.live.get(stream).map(|live| live.hub) else { return };
        if queues.inbox.try_send(message(hub)).is_err() {
            self.live.remove(stream);
            queues.missed.lock().hubs.insert(hub);
        }
    }
}

/// Models the watcher.
#[derive(Default)]
pub(super) struct Watcher {
    awaited: BTreeSet<StreamName>,
}

impl Watcher {
    /// Takes requests, and reports the streams that are waited for and exist.
    pub(super) fn work(&mut self, queues: &Queues, streams: &[Stream]) {
        while let Some(request) = queues.watcher_requests.try_recv() {
            match request {
                WatcherRequest::Wait { stream, .. } => drop(self.awaited.insert(stream)),
                WatcherRequest::Forget { stream, .. } => drop(self.awaited.remove(&stream)),
            }
        }
        for stream in streams.iter().filter(|stream| stream.exists) {
            if self.awaited.contains(&stream.name)
                && queues.inbox.try_send(ToDelivery::Appeared(stream.name.clone())).is_ok()
            {
                self.awaited.remove(&stream.name);
            }
        }
    }

    /// The number of streams that are waited for.
    pub(super) fn len(&self) -> usize {
        self.awaited.len()
    }
}

/// A message for the recorder to write.
enum Record {
    Cancel(Asker),
    Ack(Asker, Position),
}

/// Models the recorder.
#[derive(Default)]
pub(super) struct Recorder {
    taken: Vec<Record>,
}

impl Recorder {
    /// Takes messages, then writes one of them or fails to, and answers it.
    pub(super) fn work(&mut self, queues: &Queues, numbers: &mut Numbers) {
        self.taken.extend(
            std::iter::from_fn(|| queues.cancels.try_recv()).map(|asked| Record::Cancel(asked.asker)),
        );
        self.taken.extend(std::iter::from_fn(|| queues.receipts.try_recv()).filter_map(
            |receipt| match receipt {
                Receipt::Acked(acked) => Some(Record::Ack(acked.asker, acked.id)),
                Receipt::Ended(_) => None,
            },
        ));
        if self.taken.is_empty() {
            return;
        }
        let record = self.taken.remove(0);
        let outcome = match numbers.below(8) {
            0 => Err(Refused::new("redis_refuses", "it refuses")),
            _ => Ok(()),
        };
        let message = match record {
            Record::Cancel(asker) => ToDelivery::CancelAnswered(asker, outcome),
            Record::Ack(asker, id) => ToDelivery::AckAnswered(asker, id, outcome),
        };
        // The inbox is full: answer this message later.
        if let Err(SendError::Full(back)) = queues.inbox.try_send(message) {
            self.taken.insert(
                0,
                match back {
                    ToDelivery::CancelAnswered(asker, _) => Record::Cancel(asker),
                    ToDelivery::AckAnswered(asker, id, _) => Record::Ack(asker, id),
                    _ => return,
                },
            );
        }
    }

    /// The number of messages that have not been written.
    pub(super) fn len(&self) -> usize {
        self.taken.len()
    }
}
