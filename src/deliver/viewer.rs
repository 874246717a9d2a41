//! A delivery thread's records of its streams and their viewers. Data only; [`super::streams`] owns it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ack_tracker::AckTracker;
use super::close_code::CloseCode;
use super::format::Translator;
use super::held::Held;
use super::history_reads::Reader;
use super::seam::{Live, Seam};
use crate::message::{Cursor, Slot};
use crate::model::{AckWatermark, After, EntryId, Frame, Phase, StreamName, StreamStatus};

/// In which form a viewer gets its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// A WebSocket of its own.
    WebSocket,
    /// A share of a multiplexed WebSocket.
    Multiplexed,
    /// Server-sent events.
    Sse,
    /// One JSON document.
    State,
    /// A status line.
    Head,
}

/// A viewer's request.
#[derive(Clone, Debug)]
pub(super) struct SubscribeOptions {
    pub(super) stream: StreamName,
    pub(super) after: After,
    pub(super) follow: bool,
    pub(super) wait: Duration,
    pub(super) batch: Duration,
    pub(super) wire: Wire,
    /// Translates native frames, if it asked for another format.
    pub(super) translator: Option<Box<Translator>>,
}

/// How far a viewer has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// Its start is being looked for.
    Opening,
    /// The stream does not exist.
    Waiting(Waiting),
    /// It is given frames.
    Reading(Reading),
    /// It has all frames, up to `given`; until then its client may acknowledge them.
    Closing { until: Instant, given: Cursor },
}

/// A viewer's wait for its stream.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) until: Instant,
    /// Whether the stream has appeared, so that it is being looked for again; the wait goes on if it is gone.
    pub(super) has_appeared: bool,
    /// How far the viewer was with the stream before it went.
    pub(super) reading: Option<Reading>,
}

/// A viewer's place in its stream.
#[derive(Debug)]
pub(super) struct Reading {
    /// The way between history and live.
    pub(super) seam: Seam<Arc<Frame>>,
    /// Where history is read on from: what was given last, with its state.
    pub(super) anchor: Cursor,
}

/// One viewer of one stream.
#[derive(Debug)]
pub(super) struct Viewer {
    pub(super) connection: Slot,
    pub(super) hub: Slot,
    pub(super) options: SubscribeOptions,
    pub(super) stage: Stage,
    /// Whether `open` was sent.
    pub(super) opened: bool,
    /// Answers that come after it.
    pub(super) held: Option<Box<Held>>,
    /// The state of the stream that the viewer was told last.
    pub(super) known_status: Option<StreamStatus>,
    /// Frames on their way to the socket.
    pub(super) unwritten: usize,
    /// The newest entry on the socket.
    pub(super) written: EntryId,
    /// Frames gathered for `batch`.
    pub(super) batch: Option<Box<Batch>>,
    /// Bytes of an entry, as a moving average; sizes the next history read.
    pub(super) entry_bytes: usize,
    /// Bytes of the outbox that the outstanding history read may fill.
    pub(super) promised: usize,
    /// The state of its acknowledgements, where receipts are on and its transport can carry them.
    pub(super) acks: Option<Box<AckTracker>>,
    /// Where the viewer is in its hub's list.
    pub(super) place: usize,
}

impl Viewer {
    /// Its place in its stream, once its start was found and until all was given.
    pub(super) const fn reading(&self) -> Option<&Reading> {
        match &self.stage {
            Stage::Reading(reading) => Some(reading),
            Stage::Waiting(waiting) => waiting.reading.as_ref(),
            Stage::Opening | Stage::Closing { .. } => None,
        }
    }

    /// As [`Viewer::reading`], to be changed.
    pub(super) const fn reading_mut(&mut self) -> Option<&mut Reading> {
        match &mut self.stage {
            Stage::Reading(reading) => Some(reading),
            Stage::Waiting(waiting) => waiting.reading.as_mut(),
            Stage::Opening | Stage::Closing { .. } => None,
        }
    }

    /// Up to where it was given its stream; `None` before its start was found.
    pub(super) const fn given(&self) -> Option<&Cursor> {
        match &self.stage {
            Stage::Closing { given, .. } => Some(given),
            _ => match self.reading() {
                Some(reading) => Some(&reading.anchor),
                None => None,
            },
        }
    }

    /// Whether it is given live text as it comes.
    pub(super) fn is_live(&self) -> bool {
        self.reading().is_some_and(|reading| reading.seam.is_live())
    }

    /// Whether its stream does not exist, and has not appeared again.
    pub(super) const fn is_waiting(&self) -> bool {
        matches!(&self.stage, Stage::Waiting(waiting) if !waiting.has_appeared)
    }

    /// The stream does not exist, or not any more; until when it is waited for. A wait that goes on has its time
    /// already, a new one the viewer's. `None`: the viewer has everything that it wanted of it.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Instant> {
        let (until, reading) = match std::mem::replace(&mut self.stage, Stage::Opening) {
            Stage::Opening => (now + self.options.wait, None),
            Stage::Reading(reading) => (now + self.options.wait, Some(reading)),
            Stage::Waiting(waiting) => (waiting.until, waiting.reading),
            closing @ Stage::Closing { .. } => {
                self.stage = closing;
                return None;
            }
        };
        self.stage = Stage::Waiting(Waiting { until, has_appeared: false, reading });
        Some(until)
    }

    /// It is read on for a viewer that had begun to read.
    pub(super) fn read_on(&mut self) -> Option<&mut Reading> {
        if let Stage::Waiting(Waiting { reading, .. }) = &mut self.stage {
            self.stage = Stage::Reading(reading.take()?);
        }
        self.reading_mut()
    }

    /// It has everything; until then its client may acknowledge it.
    pub(super) fn begin_closing(&mut self, until: Instant) {
        let given = self.given().cloned().unwrap_or_default();
        self.stage = Stage::Closing { until, given };
    }

    /// The viewer, named `slot`, as one that wants something read.
    pub(super) const fn reader(&self, slot: Slot) -> Reader<'_> {
        let (hub, stream, translated) = (self.hub, &self.options.stream, self.options.translator.is_some());
        Reader { viewer: slot, hub, stream, translated }
    }

    /// Whether the viewer has no use for a finished generation.
    pub(super) fn wants_unfinished(&self) -> bool {
        self.options.translator.as_ref().is_some_and(|translator| translator.only_unfinished())
    }
}

/// Frames that are gathered for a client that accepts them merged.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) frames: Vec<Arc<Frame>>,
    pub(super) bytes: usize,
    pub(super) due: Instant,
}

/// A stream that has left a multiplexed connection: its client may still acknowledge the frames that it was sent.
#[derive(Debug)]
pub(super) struct ClosedSubscription {
    pub(super) stream: StreamName,
    pub(super) acks: Box<AckTracker>,
    /// The last frame that was sent, with the state there.
    pub(super) anchor: Cursor,
}

/// Why a viewer's stream is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Its terminal frame was sent.
    Ended,
    /// There is no such stream.
    NotFound,
    /// Nothing is left to tell, which is an answer of its own.
    NothingLeft,
}

impl Ending {
    /// The code and the reason with which a WebSocket that carries this stream alone is closed.
    pub(super) const fn close(self) -> (CloseCode, &'static str) {
        match self {
            Self::Ended => (CloseCode::Normal, "ended"),
            Self::NotFound => (CloseCode::NotFound, "there is no such stream"),
            Self::NothingLeft => (CloseCode::NotFound, "nothing is going on"),
        }
    }
}

/// A stream that somebody on this thread watches or waits for.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "three independent facts about one stream")]
pub(super) struct Hub {
    pub(super) stream: StreamName,
    pub(super) viewers: Vec<Slot>,
    pub(super) live: Live,
    /// Counts how often live frames were asked for and let go of.
    pub(super) attach: u64,
    /// Where live reading stands, for acknowledging: entries that give no frame count too.
    pub(super) passed: EntryId,
    /// Where the newest generation stands there.
    pub(super) phase: Phase,
    pub(super) stalled: bool,
    pub(super) watermark: Option<Arc<AckWatermark>>,
    /// Whether something was written since the last report.
    pub(super) unreported: bool,
    /// Whether the watcher was asked to tell when the stream exists.
    pub(super) awaited: bool,
    /// When the stream was seen to come into being, µs since 1970 by this host's clock, if somebody waited for it.
    pub(super) appeared_us: Option<u64>,
    /// Since when no viewer has needed live.
    pub(super) idle_since: Option<Instant>,
}

impl Hub {
    /// Live frames have ended, or are not wanted any more; those that are on their way are not taken.
    pub(super) fn leave_live(&mut self) {
        self.live = Live::Off;
        self.attach += 1;
        self.watermark = None;
        self.idle_since = None;
    }

    /// When the stream was seen to come into being, at `now_us` by this host's clock. One that is waited for has not been
    /// seen yet: a read that finds it is the first to know.
    pub(super) fn appeared_us(&self, now_us: u64) -> Option<u64> {
        if self.awaited { Some(now_us) } else { self.appeared_us }
    }

    /// How the stream stands now, for a viewer whose read saw it with `status` when `tip` was its newest entry: live
    /// text may have gone on since, as reads are shared among viewers.
    pub(super) fn status(&self, status: StreamStatus, tip: EntryId) -> StreamStatus {
        if !matches!(self.live, Live::On(_)) || self.passed < tip {
            return status;
        }
        match self.phase {
            Phase::Ended(_) => StreamStatus::Ended,
            Phase::Failed(_) | Phase::Lost(_) => StreamStatus::Failed,
            Phase::Idle | Phase::Open if self.passed == tip => status,
            Phase::Idle | Phase::Open if self.stalled => StreamStatus::Stalled,
            Phase::Idle | Phase::Open => StreamStatus::Live,
        }
    }
}

/// A frame on its way to a socket: its bytes, and what is reported once they are taken.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) viewer: Slot,
    pub(super) frame: Arc<Frame>,
    pub(super) shape: Shape,
    /// Whether the frame came live, so that its age says something.
    pub(super) live: bool,
}

/// Which of a frame's bytes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    WebSocket,
    Multiplexed,
    Sse,
    /// Its rendering in another format, which was kept before.
    Rendering(u8),
    /// None: everything was sent before it, for this viewer alone.
    Nothing,
}

impl AsRef<[u8]> for Mark {
    fn as_ref(&self) -> &[u8] {
        match self.shape {
            Shape::WebSocket => self.frame.websocket(),
            Shape::Multiplexed => self.frame.multiplexed(),
            Shape::Sse => self.frame.sse(),
            Shape::Rendering(form) => self.frame.rendering(form).map_or(&[], |rendering| &rendering.bytes),
            Shape::Nothing => &[],
        }
    }
}
