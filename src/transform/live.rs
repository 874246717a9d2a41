//! The live streams of one transform thread: who gets their frames, whether their producers speak, and whether those that
//! are finishing are over. No I/O.

use std::collections::HashMap;
use std::sync::Arc;

use slab::Slab;

use super::history::silence_us;
use super::{Assembler, DecodeContext, Pushed};
use crate::event::message::{Cursor, HubRef, LiveRef, Slot};
use crate::event::{AckBoard, Entry, EntryId, Frame, Phase, StreamName};

/// A stream that was given up is judged again after so long, in case nothing came of it.
const GIVE_UP_AGAIN_US: u64 = 5_000_000;
/// Whether a finishing generation is over is asked again after so long, in case the answer got lost or something came
/// meanwhile that does not count.
const ASK_AGAIN_US: u64 = 1_000_000;

/// One stream.
pub(super) struct LiveStream {
    pub(super) stream: StreamName,
    pub(super) assembler: Assembler,
    /// The delivery threads, each with its own name for the stream.
    pub(super) attached: Vec<(usize, HubRef)>,
    pub(super) board: Arc<AckBoard>,
    pub(super) stalled: bool,
    /// Whether it is read on, for its end, although nobody is attached.
    pub(super) is_vigil: bool,
    /// Who reads it.
    pub(super) reader: usize,
    generation: u64,
    newest: EntryId,
    /// When the newest entry was seen here, µs by this host's clock: the measure where ids are no clock.
    seen_us: u64,
    gave_up_us: u64,
    asked_us: u64,
}

/// What a look at a silent producer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// Nothing to tell.
    Unchanged,
    /// It has just fallen silent.
    Stalled,
    /// Its generation is over by what is known here; whether nothing has followed this entry is to be asked.
    Over(EntryId),
    /// It has been silent too long.
    GiveUp(EntryId),
}

impl LiveStream {
    /// Takes entries in and hands out the frames they make.
    pub(super) fn push(
        &mut self,
        entries: &[Entry],
        (read_us, now_us): (u64, u64),
        mut told: impl FnMut(&StreamName, &Entry, Pushed),
    ) -> Vec<Arc<Frame>> {
        for entry in entries {
            told(&self.stream, entry, self.assembler.push(entry, read_us));
        }
        if let Some(last) = entries.last() {
            self.newest = self.newest.max(last.id);
            self.seen_us = now_us;
        }
        self.assembler.take(now_us)
    }

    /// Whether a generation is going on.
    pub(super) fn is_unfinished(&self) -> bool {
        self.assembler.state().phase == Phase::Open
    }

    /// Nothing had followed `newest` at `redis_ms`: the frame of the end, if that was it.
    pub(super) fn conclude(&mut self, newest: EntryId, (redis_ms, now_us): (u64, u64)) -> Vec<Arc<Frame>> {
        // What has been read meanwhile decides itself.
        if self.newest != newest || !self.assembler.conclude(redis_ms, now_us) {
            return Vec::new();
        }
        self.assembler.take(now_us)
    }

    /// Judges the producer's silence. Limits of 0 mean never.
    pub(super) fn judge_silence(
        &mut self,
        (now_us, redis_us): (u64, u64),
        (stall_us, abandon_us): (u64, u64),
    ) -> Silence {
        if self.assembler.state().phase.terminal().is_some() || self.newest == EntryId::ZERO {
            return Silence::Unchanged;
        }
        if self.assembler.is_over_at(redis_us / 1000)
            && silence_us(self.newest, redis_us).is_some()
            && now_us >= self.asked_us.saturating_add(ASK_AGAIN_US)
        {
            self.asked_us = now_us;
            return Silence::Over(self.newest);
        }
        let observed = now_us.saturating_sub(self.seen_us);
        let silence = silence_us(self.newest, redis_us).unwrap_or(observed);
        if abandon_us > 0
            && silence >= abandon_us
            && now_us >= self.gave_up_us.saturating_add(GIVE_UP_AGAIN_US)
        {
            self.gave_up_us = now_us;
            return Silence::GiveUp(self.newest);
        }
        if stall_us > 0 && silence >= stall_us && !self.stalled {
            self.stalled = true;
            return Silence::Stalled;
        }
        Silence::Unchanged
    }
}

/// All streams of a transform thread.
#[derive(Default)]
pub(super) struct LiveStreams {
    slots: Slab<LiveStream>,
    by_name: HashMap<StreamName, usize>,
    generation: u64,
    context: DecodeContext,
}

impl LiveStreams {
    /// No streams; `context` is what decoding their entries depends on.
    pub(super) fn new(context: DecodeContext) -> Self {
        Self { context, ..Self::default() }
    }

    pub(super) fn find(&mut self, stream: &StreamName) -> Option<(LiveRef, &mut LiveStream)> {
        let index = *self.by_name.get(stream)?;
        let live = &mut self.slots[index];
        Some((Slot { index, generation: live.generation }, live))
    }

    /// The stream that was started as `live`, unless it was ended since.
    pub(super) fn get(&mut self, live: LiveRef) -> Option<&mut LiveStream> {
        self.slots.get_mut(live.index).filter(|stream| stream.generation == live.generation)
    }

    /// Starts a stream at `from`. The moment, and the grace of finishing generations in ms.
    pub(super) fn start(
        &mut self,
        stream: StreamName,
        reader: usize,
        from: Cursor,
        (now_us, grace_ms): (u64, u64),
    ) -> LiveRef {
        self.generation += 1;
        let newest = from.position.id;
        let live = LiveStream {
            assembler: Assembler::new(stream.clone(), from.position, from.state)
                .with_context(self.context.clone())
                .with_grace(grace_ms),
            stream: stream.clone(),
            attached: Vec::new(),
            board: Arc::default(),
            stalled: false,
            is_vigil: false,
            reader,
            generation: self.generation,
            newest,
            seen_us: now_us,
            gave_up_us: 0,
            asked_us: 0,
        };
        let index = self.slots.insert(live);
        self.by_name.insert(stream, index);
        Slot { index, generation: self.generation }
    }

    pub(super) fn end(&mut self, live: LiveRef) -> Option<LiveStream> {
        self.get(live)?;
        let ended = self.slots.remove(live.index);
        self.by_name.remove(&ended.stream);
        Some(ended)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (LiveRef, &mut LiveStream)> {
        self.slots.iter_mut().map(|(index, live)| (Slot { index, generation: live.generation }, live))
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}
