//! The live streams of one transform thread: which delivery threads get their frames, whether their producers are
//! silent, and whether finishing generations are over. No I/O.

use std::collections::HashMap;
use std::sync::Arc;

use slab::Slab;

use super::silence::{Known, Seen, silence_us};
use crate::decode::entry::native;
use crate::decode::expand::end_entry;
use crate::decode::order::PRODUCER_LOST;
use crate::decode::{Assembler, DecodeContext, Pushed};
use crate::json;
use crate::message::{Cursor, HubRef, LiveRef, Slot};
use crate::model::{AckWatermark, Entry, EntryId, Event, Frame, Phase, StreamName};

/// How soon a stream whose producer was given up is judged again, in case the end could not be written.
const GIVE_UP_AGAIN_US: u64 = 5_000_000;
/// How soon the end of a finishing generation is requested again, in case the answer was lost or an entry arrived
/// meanwhile that does not count.
const ASK_AGAIN_US: u64 = 1_000_000;

/// How long the daemon reads a stream live before it gives up the producer: the producer may have written meanwhile,
/// or the ids may lag behind the clock, and its next entry shows that.
const LISTENED_US: u64 = 2_000_000;

/// One stream.
pub(super) struct LiveStream {
    pub(super) stream: StreamName,
    pub(super) assembler: Assembler,
    /// The delivery threads, each with its own reference to the stream.
    pub(super) attached: Vec<(usize, HubRef)>,
    pub(super) watermark: Arc<AckWatermark>,
    pub(super) stalled: bool,
    /// Whether the stream is still read to see its end, although no viewer is attached.
    pub(super) is_end_watched: bool,
    /// The index of the reader that reads it.
    pub(super) reader: usize,
    generation: u64,
    /// Since when the stream is read live, µs by this host's clock.
    started_us: u64,
    newest: Seeing,
    /// The newest entry that belongs to a finishing generation. Only heartbeats may follow it.
    finishing: Seeing,
    gave_up_us: u64,
    asked_us: u64,
    /// The entry after which viewers were sent an end that is not in the stream.
    end_sent: Option<EntryId>,
}

/// After how much silence something happens, µs; 0 means never.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The producer counts as stalled.
    pub(super) stall_us: u64,
    /// The producer is given up.
    pub(super) abandon_us: u64,
    /// The finishing generation is over.
    pub(super) grace_us: u64,
}

/// An entry, and since when the daemon has known it, µs by this host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seeing {
    id: EntryId,
    since_us: u64,
    /// Whether the daemon saw the entry arrive: it was read live, or its stream appeared while the daemon waited for
    /// it. Otherwise the entry was found in history and may be much older.
    arrived: bool,
}

impl Seeing {
    const fn at(self, now_us: u64) -> Seen {
        let observed = now_us.saturating_sub(self.since_us);
        if self.arrived { Seen::Arrived(observed) } else { Seen::Found(observed) }
    }

    const fn silence_us(self, (now_us, redis_us): (u64, u64)) -> u64 {
        silence_us(self.id, redis_us, self.at(now_us))
    }
}

/// The result of a check of a silent producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// Nothing to report.
    Unchanged,
    /// The producer has just become silent.
    Stalled,
    /// The generation is over: this entry has to be written after its newest one.
    Over(EntryId, String),
    /// The producer has been silent for too long.
    GiveUp(EntryId),
}

/// When to tell the viewers of a silent stream that its producer is active again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waking {
    /// Before the frames of the new entries.
    First,
    /// Before the frames of the new entries, if there are any: the generation is over, and entries that only belong
    /// to it do not mean that the producer is active.
    WithFrames,
    /// After the frames of the new entries, if there is more than an end: the daemon has ended the generation for its
    /// producer.
    AfterEnd,
}

impl LiveStream {
    /// Takes entries in and returns their frames.
    pub(super) fn push(
        &mut self,
        entries: &[Entry],
        (read_us, now_us): (u64, u64),
        mut end_sent: impl FnMut(&StreamName, &Entry, Pushed),
    ) -> Vec<Arc<Frame>> {
        for entry in entries {
            end_sent(&self.stream, entry, self.assembler.push(entry, read_us));
        }
        if let Some(last) = entries.last() {
            self.newest = Seeing { id: last.id, since_us: now_us, arrived: true };
        }
        match self.assembler.state().finishing() {
            Some(id) if id != self.finishing.id => {
                self.finishing = Seeing { id, since_us: now_us, arrived: true };
            }
            _ => {}
        }
        self.assembler.take(now_us)
    }

    /// Whether a generation is open.
    pub(super) fn is_unfinished(&self) -> bool {
        self.assembler.state().phase == Phase::Open
    }

    /// Ends the generation for the viewers when no end can be written after `newest`. Returns the frame.
    pub(super) fn conclude(&mut self, newest: EntryId, now_us: u64) -> Vec<Arc<Frame>> {
        // An entry that was read meanwhile decides.
        if self.newest.id != newest || !self.assembler.conclude(now_us) {
            return Vec::new();
        }
        self.end_sent = Some(newest);
        self.assembler.take(now_us)
    }

    /// When to tell the viewers of a silent stream that these entries show that its producer is active again.
    pub(super) fn waking(&self, entries: &[Entry]) -> Waking {
        let state = self.assembler.state();
        if !self.stalled {
            return Waking::First;
        }
        if state.phase.terminal().is_some() {
            return Waking::WithFrames;
        }
        let data = entries.first().and_then(|entry| entry.fields.get("data"));
        let is_ours = |data| is_given_up(data) || end_entry(state).is_some_and(|end| end.as_bytes() == data);
        if data.is_some_and(is_ours) { Waking::AfterEnd } else { Waking::First }
    }

    /// The knowledge of the newest entry at `now_us`.
    pub(super) fn known(&self, now_us: u64) -> Known {
        let Seeing { id: newest, .. } = self.newest;
        Known { newest, seen: self.newest.at(now_us), is_end_sent: self.end_sent == Some(newest) }
    }

    /// Judges the producer's silence.
    pub(super) fn judge_silence(
        &mut self,
        (now_us, redis_us): (u64, u64),
        Limits { stall_us, abandon_us, grace_us }: Limits,
    ) -> Silence {
        let newest = self.newest.id;
        if self.assembler.state().phase.terminal().is_some() || newest == EntryId::ZERO {
            return Silence::Unchanged;
        }
        let is_over = grace_us > 0 && self.finishing.silence_us((now_us, redis_us)) >= grace_us;
        if is_over
            && now_us >= self.asked_us.saturating_add(ASK_AGAIN_US)
            && let Some(end) = end_entry(self.assembler.state())
        {
            self.asked_us = now_us;
            return Silence::Over(newest, end);
        }
        let silence = self.newest.silence_us((now_us, redis_us));
        if abandon_us > 0
            && silence >= abandon_us
            && now_us.saturating_sub(self.started_us) >= abandon_us.min(LISTENED_US)
            && now_us >= self.gave_up_us.saturating_add(GIVE_UP_AGAIN_US)
        {
            self.gave_up_us = now_us;
            return Silence::GiveUp(newest);
        }
        if stall_us > 0 && silence >= stall_us && !self.stalled {
            self.stalled = true;
            return Silence::Stalled;
        }
        Silence::Unchanged
    }
}

/// Whether an object reports that a producer was given up.
fn is_given_up(data: &[u8]) -> bool {
    let decoded = native(data).ok().flatten();
    decoded.is_some_and(
        |decoded| matches!(decoded.event, Event::Error { code, .. } if json::same(code, PRODUCER_LOST)),
    )
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
    /// No streams; `context` holds the settings for decoding their entries.
    pub(super) fn new(context: DecodeContext) -> Self {
        Self { context, ..Self::default() }
    }

    pub(super) fn find(&mut self, stream: &StreamName) -> Option<(LiveRef, &mut LiveStream)> {
        let index = *self.by_name.get(stream)?;
        let live = &mut self.slots[index];
        Some((Slot { index, generation: live.generation }, live))
    }

    /// The stream that was started as `live`, unless it has ended since.
    pub(super) fn get(&mut self, live: LiveRef) -> Option<&mut LiveStream> {
        self.slots.get_mut(live.index).filter(|stream| stream.generation == live.generation)
    }

    /// Starts a stream at `from`, whose newest entry is known as `seen` tells. The last argument is the time and the
    /// grace of finishing generations in ms.
    pub(super) fn start(
        &mut self,
        stream: StreamName,
        reader: usize,
        (from, seen): (Cursor, Seen),
        (now_us, grace_ms): (u64, u64),
    ) -> LiveRef {
        self.generation += 1;
        let (observed_us, arrived) = seen.parts();
        let since_us = now_us.saturating_sub(observed_us);
        let newest = Seeing { id: from.position.id, since_us, arrived };
        let finishing = Seeing { id: from.state.finishing().unwrap_or_default(), ..newest };
        let live = LiveStream {
            assembler: Assembler::new(stream.clone(), from.position, from.state)
                .with_context(self.context.clone())
                .with_grace(grace_ms),
            stream: stream.clone(),
            attached: Vec::new(),
            watermark: Arc::default(),
            stalled: false,
            is_end_watched: false,
            reader,
            generation: self.generation,
            started_us: now_us,
            newest,
            finishing,
            gave_up_us: 0,
            asked_us: 0,
            end_sent: None,
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
