//! The types of a delivery thread's streams and viewers; [`super::streams`] owns the values.

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

/// The form in which a viewer gets its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// A WebSocket of its own.
    WebSocket,
    /// A WebSocket that carries many streams.
    Multiplexed,
    /// Server-sent events.
    Sse,
    /// The stream's state as one JSON document.
    State,
    /// Only the status line that tells whether the stream exists.
    Head,
}

/// The options of a viewer's request.
#[derive(Clone, Debug)]
pub(super) struct SubscribeOptions {
    pub(super) stream: StreamName,
    pub(super) after: After,
    pub(super) follow: bool,
    pub(super) wait: Duration,
    pub(super) batch: Duration,
    pub(super) wire: Wire,
    /// Translates native frames, if the viewer requested another format.
    pub(super) translator: Option<Box<Translator>>,
}

/// The stage of a viewer.
#[derive(Debug)]
pub(super) enum Stage {
    /// Its start position is being looked up.
    Opening,
    /// It waits for its stream, which does not exist.
    Waiting(Waiting),
    /// It is sent frames.
    Reading(Reading),
    /// It was sent all frames, up to `given`. Its client may acknowledge them until `until`.
    Closing { until: Instant, given: Cursor },
}

/// A viewer's wait for its stream.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) until: Instant,
    /// Whether the stream was reported to exist and is being looked up again. The wait continues if that finds no
    /// stream.
    pub(super) has_appeared: bool,
    /// The viewer's place in the stream before the stream was deleted.
    pub(super) reading: Option<Reading>,
}

/// A viewer's place in its stream.
#[derive(Debug)]
pub(super) struct Reading {
    /// The transition between history and live text.
    pub(super) seam: Seam<Arc<Frame>>,
    /// The position from which history is read: the end of what was last sent to the viewer, with the stream's state
    /// there.
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
    /// Answers that are held until `open` is sent.
    pub(super) held: Option<Box<Held>>,
    /// The stream status that was last sent to the viewer.
    pub(super) known_status: Option<StreamStatus>,
    /// The number of frames that are not completely written to the socket yet.
    pub(super) unwritten: usize,
    /// The newest entry that was written to the socket.
    pub(super) written: EntryId,
    /// Frames that are collected to be merged, for the option `batch`.
    pub(super) batch: Option<Box<Batch>>,
    /// The size of an entry in bytes, as a moving average; determines the size of the next history read.
    pub(super) entry_bytes: usize,
    /// The bytes that the outstanding history read may add to the connection's outbox.
    pub(super) promised: usize,
    /// The tracker of its acknowledgements, if receipts are on and its transport can carry acknowledgements.
    pub(super) acks: Option<Box<AckTracker>>,
    /// The viewer's index in its hub's list.
    pub(super) place: usize,
}

impl Viewer {
    /// The viewer's place in its stream: set once its start is known, until it was sent everything.
    pub(super) const fn reading(&self) -> Option<&Reading> {
        match &self.stage {
            Stage::Reading(reading) => Some(reading),
            Stage::Waiting(waiting) => waiting.reading.as_ref(),
            Stage::Opening | Stage::Closing { .. } => None,
        }
    }

    /// Mutable access: see [`Viewer::reading`].
    pub(super) const fn reading_mut(&mut self) -> Option<&mut Reading> {
        match &mut self.stage {
            Stage::Reading(reading) => Some(reading),
            Stage::Waiting(waiting) => waiting.reading.as_mut(),
            Stage::Opening | Stage::Closing { .. } => None,
        }
    }

    /// The position up to which the viewer was sent its stream; `None` before its start is known.
    pub(super) const fn given(&self) -> Option<&Cursor> {
        match &self.stage {
            Stage::Closing { given, .. } => Some(given),
            _ => match self.reading() {
                Some(reading) => Some(&reading.anchor),
                None => None,
            },
        }
    }

    /// Whether the viewer is sent live text.
    pub(super) fn is_live(&self) -> bool {
        self.reading().is_some_and(|reading| reading.seam.is_live())
    }

    /// Whether the viewer waits for its stream, and the stream has not been reported to exist.
    pub(super) const fn is_waiting(&self) -> bool {
        matches!(&self.stage, Stage::Waiting(waiting) if !waiting.has_appeared)
    }

    /// Makes the viewer wait for its stream, which does not exist (any more). Returns the end of the wait: a wait that
    /// continues keeps its end, a new one takes as long as the viewer requested. `None`: the viewer was already sent
    /// everything, and does not wait.
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

    /// Ends the wait of a viewer that had begun to read before. Returns its place in its stream, if it has one.
    pub(super) fn resume_reading(&mut self) -> Option<&mut Reading> {
        if let Stage::Waiting(Waiting { reading, .. }) = &mut self.stage {
            self.stage = Stage::Reading(reading.take()?);
        }
        self.reading_mut()
    }

    /// Notes that the viewer was sent everything. Its client may acknowledge it until `until`.
    pub(super) fn begin_closing(&mut self, until: Instant) {
        let given = self.given().cloned().unwrap_or_default();
        self.stage = Stage::Closing { until, given };
    }

    /// The viewer, whose slot is `slot`, as the reader of a history read.
    pub(super) const fn reader(&self, slot: Slot) -> Reader<'_> {
        let (hub, stream, translated) = (self.hub, &self.options.stream, self.options.translator.is_some());
        Reader { viewer: slot, hub, stream, translated }
    }

    /// Whether the viewer wants a stream only while its generation is not finished.
    pub(super) fn wants_only_unfinished(&self) -> bool {
        self.options.translator.as_ref().is_some_and(|translator| translator.only_unfinished())
    }
}

/// Frames that are collected for a client that accepts them merged.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) frames: Vec<Arc<Frame>>,
    pub(super) bytes: usize,
    pub(super) due: Instant,
}

/// A subscription that a multiplexed connection has closed. Its client may still acknowledge the frames that it was
/// sent.
#[derive(Debug)]
pub(super) struct ClosedSubscription {
    pub(super) stream: StreamName,
    pub(super) acks: Box<AckTracker>,
    /// The end of the last frame that was sent, with the stream's state there.
    pub(super) anchor: Cursor,
}

/// Why a viewer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Its terminal frame was sent.
    Ended,
    /// The stream does not exist.
    NotFound,
    /// The stream has nothing to send to the viewer; HTTP answers 204.
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

/// A stream that has viewers on this thread.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "three independent facts about one stream")]
pub(super) struct Hub {
    pub(super) stream: StreamName,
    pub(super) viewers: Vec<Slot>,
    pub(super) live: Live,
    /// The number of times that live frames were requested or given up. Messages with another number are out of date.
    pub(super) attach: u64,
    /// The newest entry that live reading has passed, for acknowledging it in Redis: entries without a frame count
    /// too.
    pub(super) passed: EntryId,
    /// The phase of the newest generation at `passed`.
    pub(super) phase: Phase,
    pub(super) stalled: bool,
    pub(super) watermark: Option<Arc<AckWatermark>>,
    /// Whether the hub is marked to be reported.
    pub(super) unreported: bool,
    /// Whether the watcher was asked to report when the stream exists.
    pub(super) awaited: bool,
    /// When the stream appeared, in µs since 1970 by this host's clock, if a viewer waited for it.
    pub(super) appeared_us: Option<u64>,
    /// Since when no viewer has needed live text.
    pub(super) idle_since: Option<Instant>,
}

impl Hub {
    /// Notes that live frames have ended or are not needed any more. Live frames that are still on their way are
    /// ignored.
    pub(super) fn leave_live(&mut self) {
        self.live = Live::Off;
        self.attach += 1;
        self.watermark = None;
        self.idle_since = None;
    }

    /// When the stream appeared, if that is known. While a viewer waits for it, the stream was not seen yet, so a read
    /// that finds it now is the first to see it: then this is `now_us`, the time by this host's clock.
    pub(super) fn appeared_us(&self, now_us: u64) -> Option<u64> {
        if self.awaited { Some(now_us) } else { self.appeared_us }
    }

    /// The stream's current status, for a viewer whose read found `status` when `tip` was the newest entry. Live text
    /// may have advanced since then, because viewers share reads.
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

/// A frame in an outbox: its bytes, and the data to record once they are written.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) viewer: Slot,
    pub(super) frame: Arc<Frame>,
    pub(super) shape: Shape,
    /// Whether the frame was received live. Only then is its age measured.
    pub(super) live: bool,
}

/// The part of a frame that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    WebSocket,
    Multiplexed,
    Sse,
    /// Its rendering in another format, which is kept with the frame.
    Rendering(u8),
    /// None: its translation is for this viewer alone, and was queued before the mark.
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
