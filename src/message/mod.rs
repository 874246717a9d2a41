//! The messages about streams that threads send to each other.
//!
//! The modules on both sides of a queue know these types and not each other: `deliver` requests history
//! ([`ReplayRequest`]) and live text ([`Control`]); `ingest` passes on what it has read ([`LiveBatch`],
//! [`ReplayBatch`]); `transform` answers with frames ([`ToDelivery`]).

pub mod record;
mod watcher_request;

use std::sync::Arc;

use record::{Asker, EndKind, EndOutcome, Refused};
pub use watcher_request::WatcherRequest;

use crate::decode::checkpoints::Checkpoint;
use crate::decode::{Gathering, Seek};
use crate::model::{
    AckWatermark, After, Entry, EntryId, Frame, Held, Outline, Position, StreamName, StreamStatus,
};
pub use crate::model::{Cursor, Fnv, JobRef, KeyFacts, RedisClock, Slot, now_us, shard};

/// A stream as a delivery thread knows it, for the duration of one attachment. It distinguishes messages that belong
/// to this attachment from those of an earlier one, or from those that arrive after the thread has dropped the
/// stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HubRef {
    /// The delivery thread's table entry for the stream.
    pub slot: Slot,
    /// Counts the attachments.
    pub attach: u64,
}

/// The purpose of a history read.
#[derive(Debug)]
pub enum ReplayStep {
    /// Find the position of `after` and return what follows; `state` is known only once it has been reached.
    Open {
        /// The position after which the viewers want the stream.
        after: After,
        /// Whether the daemon chose the position, somewhere before what is wanted. If the stream begins later, its
        /// beginning is used instead.
        early: bool,
        /// Whether the outline of what comes before is needed.
        outlined: bool,
    },
    /// Continue a search that one read could not finish.
    Search(Box<Search>),
    /// Return what follows a known cursor.
    Continue {
        /// The position of the viewers.
        from: Cursor,
        /// Read no further than this entry; `None`: to the newest one.
        until: Option<EntryId>,
    },
    /// Assemble the newest generation as one JSON document.
    State(Box<StateSearch>),
    /// Find out whether the stream exists.
    Probe,
}

/// A request to the replay threads.
#[derive(Debug)]
pub struct ReplayRequest {
    /// The stream.
    pub stream: StreamName,
    /// The job that makes the request.
    pub job: JobRef,
    /// The purpose of the read.
    pub step: ReplayStep,
    /// The most entries to read.
    pub count: usize,
    /// Frames are created until they reach this many bytes.
    pub budget_bytes: usize,
    /// The time of the request, µs since 1970 by this host's clock.
    pub asked_us: u64,
    /// When the daemon saw the stream appear, by the same clock: none of its entries is older, whatever their ids
    /// suggest. `None`: it existed before, as far as is known.
    pub appeared_us: Option<u64>,
    /// The checkpoint from which the scan continues, if it is valid: its entry is the first one to be read.
    pub jump: Option<Arc<Checkpoint>>,
}

/// A search through history that may take several reads.
#[derive(Debug)]
pub struct Search {
    /// Where the next read begins.
    pub from: EntryId,
    /// The latest position of a checkpoint from which the search may continue; `None`: it may not use one.
    pub target: Option<Position>,
    /// The scan so far.
    pub seek: Seek,
    /// The gap to report to the viewers before the frames that follow.
    pub gap: Option<HistoryGap>,
    /// The frames after the wanted position that were created on the way, within the budget.
    pub shown: Option<Box<Shown>>,
}

impl Search {
    /// A search that starts at the stream's beginning.
    #[must_use]
    pub const fn new(seek: Seek, gap: Option<HistoryGap>) -> Self {
        Self { from: EntryId::ZERO, target: None, seek, gap, shown: None }
    }
}

/// The assembly of the JSON state, over several reads.
#[derive(Debug, Default)]
pub struct StateSearch {
    /// Where the next read begins.
    pub from: EntryId,
    /// The content of the document so far; `None` before the first read.
    pub gathered: Option<Box<Gathering>>,
    /// Its approximate size in bytes.
    pub gathered_bytes: usize,
    /// The most bytes that the document may have.
    pub max_bytes: usize,
}

/// The result of one history read.
#[derive(Debug)]
pub enum ReplayRead {
    /// The key exists.
    Found {
        /// The facts about the key, read just before the entries.
        facts: KeyFacts,
        /// The entries after the step's position, in order.
        entries: Vec<Entry>,
        /// Whether the read reached the end of the stream, or of the requested range.
        exhausted: bool,
    },
    /// The key does not exist.
    Missing,
    /// Redis could not be reached.
    Unavailable,
    /// The key exists and is not a stream.
    WrongType,
}

/// A history read on its way to be decoded.
#[derive(Debug)]
pub struct ReplayBatch {
    /// The request.
    pub request: ReplayRequest,
    /// The result.
    pub read: ReplayRead,
    /// When it was read, µs since 1970 by this host's clock.
    pub read_us: u64,
    /// Counts the bytes of its entries while it is held.
    pub held: Option<Held>,
}

impl ReplayBatch {
    /// The size of its entries, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        match &self.read {
            ReplayRead::Found { entries, .. } => entries.iter().map(|entry| entry.fields.len_bytes()).sum(),
            ReplayRead::Missing | ReplayRead::Unavailable | ReplayRead::WrongType => 0,
        }
    }
}

/// Entries that were removed before the viewers could get them, or a history that was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryGap {
    /// Entries between `after` and `next` were trimmed.
    Trimmed {
        /// The viewers' position.
        after: Position,
        /// The oldest entry that is left; `None` if none is.
        next: Option<EntryId>,
        /// The stream's newest id if no entry is left: the viewers' new position.
        id: Option<EntryId>,
        /// How many entries, if that is known.
        lost: Option<u64>,
    },
    /// The stream was deleted and recreated.
    Recreated {
        /// The viewers' position.
        after: Position,
        /// Its first entry.
        next: EntryId,
    },
    /// Redis came back with an older copy of the stream.
    Failover {
        /// The viewers' position.
        after: Position,
        /// The newest id in that copy.
        newest: EntryId,
    },
}

/// Frames from history.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The gap before the frames, if there is one.
    pub gap: Option<HistoryGap>,
    /// The frames, in order.
    pub frames: Vec<Arc<Frame>>,
    /// The position of the viewers after them.
    pub cursor: Cursor,
    /// Whether the end of the stream (or of the requested range) was reached when it was read.
    pub exhausted: bool,
    /// The size of the entries in bytes, from which the size of the next read follows.
    pub entries_bytes: usize,
    /// The number of entries.
    pub entries: usize,
}

/// The outcome of a [`ReplayRequest`].
#[derive(Debug)]
pub enum ReplayOutcome {
    /// The key does not exist.
    Missing,
    /// The key exists and is not a stream: waiting would not help.
    NotAStream,
    /// Redis could not be reached; try again.
    Unavailable,
    /// There is no room yet for the dead letters among the entries read; try again.
    Deferred,
    /// The search needs another read.
    Searching(Box<Search>),
    /// The assembly needs another read.
    Gathering(Box<StateSearch>),
    /// `after` was found; with the beginning of what follows.
    Opened(Box<Opened>),
    /// More of what follows.
    Shown(Box<Shown>),
    /// The JSON document.
    State(Vec<u8>),
    /// The JSON document would exceed its limit.
    StateTooLarge,
    /// The stream exists.
    Exists,
}

/// The beginning of an answer.
#[derive(Clone, Debug)]
pub struct Opened {
    /// `after`, resolved.
    pub after: Position,
    /// The status of the stream at its newest entry.
    pub status: StreamStatus,
    /// The newest entry.
    pub tip: EntryId,
    /// Whether `after` is at or after the end of a finished stream, so that nothing is left to send but the gap, if
    /// there is one (an older copy of the stream), and that end.
    pub nothing_left: bool,
    /// The stored terminal frame of the newest generation, if that is finished.
    pub terminal: Option<Arc<Frame>>,
    /// The outline of the generation up to `after`, if it was requested.
    pub outline: Option<Arc<Outline>>,
    /// Where the first frames begin; differs from `after` if entries are missing there.
    pub from: Position,
    /// The first frames.
    pub shown: Shown,
}

/// The index of a live stream in its transform thread.
pub type LiveRef = Slot;

/// Messages to a transform thread: requests of delivery threads, and answers of the recorder.
#[derive(Debug)]
pub enum Control {
    /// Send the stream's live frames to a delivery thread from now on.
    Attach {
        /// The stream.
        stream: StreamName,
        /// The delivery thread.
        delivery: usize,
        /// The delivery thread's reference to the stream.
        hub: HubRef,
        /// Where live begins if no other delivery thread is attached yet.
        from: Cursor,
        /// See [`ReplayRequest::appeared_us`].
        appeared_us: Option<u64>,
    },
    /// Send the stream's live frames no longer.
    Detach {
        /// The stream.
        stream: StreamName,
        /// The delivery thread.
        delivery: usize,
        /// The delivery thread's reference to the stream.
        hub: HubRef,
    },
    /// The answer to [`EndGeneration`](record::EndGeneration).
    EndAnswered {
        /// The stream.
        stream: StreamName,
        /// The entry after which the end was to be written.
        newest: EntryId,
        /// Why it was to be written.
        kind: EndKind,
        /// The outcome.
        outcome: EndOutcome,
    },
}

/// Commands of transform threads to a reader.
#[derive(Debug)]
pub enum ReaderCommand {
    /// Read a stream from `after` on.
    Start {
        /// The stream.
        stream: StreamName,
        /// The stream's reference in the transform thread.
        live: LiveRef,
        /// The transform thread.
        transform: usize,
        /// The seam: the id after which live reading begins.
        after: EntryId,
        /// How many entries were ever added up to the seam, if that is known.
        ordinal: Option<u64>,
        /// How far each delivery thread has written.
        watermark: Arc<AckWatermark>,
    },
    /// Stop reading a stream.
    Stop {
        /// The stream.
        stream: StreamName,
        /// The reference with which it was started.
        live: LiveRef,
    },
}

impl ReaderCommand {
    /// Whether this command starts `wanted`.
    #[must_use]
    pub fn starts(&self, wanted: LiveRef) -> bool {
        matches!(self, Self::Start { live, .. } if *live == wanted)
    }
}

/// A batch of live entries, from a reader to a transform thread.
#[derive(Debug)]
pub struct LiveBatch {
    /// The news, by stream.
    pub streams: Vec<LiveNews>,
    /// The size of their entries, in bytes.
    pub bytes: usize,
    /// When it was read, µs since 1970 by this host's clock.
    pub read_us: u64,
    /// Held until delivery threads have the frames of the batch.
    pub under_way: Option<UnderWay>,
}

impl LiveBatch {
    /// The number of its entries.
    #[must_use]
    pub fn len(&self) -> usize {
        let entries = self.streams.iter().map(|news| match news {
            LiveNews::Entries(_, entries) => entries.len(),
            LiveNews::Broken(_) => 0,
        });
        entries.sum()
    }

    /// Whether it has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Counts what keeps live entries coming: one reference for each reader that still reads, and one for each batch
/// under way. A daemon that shuts down waits until only its own reference is left.
pub type UnderWay = Arc<()>;

/// News of one stream.
#[derive(Debug)]
pub enum LiveNews {
    /// New entries, in order.
    Entries(LiveRef, Vec<Entry>),
    /// The stream cannot be read from its cursor any more: its key or group is gone, entries were removed, or Redis
    /// was down. Viewers learn from history what happened.
    Broken(LiveRef),
}

/// Live frames of one stream for one delivery thread.
#[derive(Debug)]
pub struct LiveFrames {
    /// The delivery thread's reference to the stream.
    pub hub: HubRef,
    /// The frames, in order.
    pub frames: Vec<Arc<Frame>>,
    /// The newest entry that was read, whether it produced a frame or not.
    pub passed: EntryId,
}

/// Messages to a delivery thread.
#[derive(Debug)]
pub enum ToDelivery {
    /// Live frames of some streams.
    Live {
        /// The frames, by stream.
        news: Vec<LiveFrames>,
        /// The size of the frames, in bytes.
        bytes: usize,
    },
    /// The delivery thread is attached: live frames follow.
    Attached {
        /// The delivery thread's reference to the stream.
        hub: HubRef,
        /// The position of live reading now.
        cursor: Cursor,
        /// Whether the producer is silent.
        stalled: bool,
        /// Records how far the thread has written.
        watermark: Arc<AckWatermark>,
    },
    /// No more live frames follow: see [`LiveNews::Broken`].
    Broken {
        /// The delivery thread's reference to the stream.
        hub: HubRef,
    },
    /// The producer has become silent, or is active again.
    Stalled {
        /// The delivery thread's reference to the stream.
        hub: HubRef,
        /// Whether it is silent.
        stalled: bool,
    },
    /// The outcome of a history read.
    Replay(JobRef, ReplayOutcome),
    /// A stream that the thread waited for exists.
    Appeared(StreamName),
    /// The answer to a request to cancel.
    CancelAnswered(Asker, Result<(), Refused>),
    /// The answer to an acknowledgement.
    AckAnswered(Asker, Position, Result<(), Refused>),
    /// A connection that another loop accepted.
    Connection(mio::net::TcpStream, std::net::SocketAddr),
}

impl ToDelivery {
    /// The size of its frames or of its document, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let frames = match self {
            Self::Live { bytes, .. } => return *bytes,
            Self::Replay(_, ReplayOutcome::Opened(opened)) => &opened.shown.frames,
            Self::Replay(_, ReplayOutcome::Shown(shown)) => &shown.frames,
            Self::Replay(_, ReplayOutcome::State(document)) => return document.len(),
            _ => return 0,
        };
        frames.iter().map(|frame| frame.json().len()).sum()
    }
}

/// Messages that a transform thread could not send because a delivery thread's inbox was full. Bounded by the
/// delivery thread's own tables: each hub and each job appears at most once.
#[derive(Debug, Default)]
pub struct Missed {
    /// Hubs that were detached: their viewers continue from history.
    pub hubs: std::collections::BTreeSet<HubRef>,
    /// Jobs whose outcome was lost: they are requested again, a search from where it stopped.
    pub jobs: std::collections::BTreeMap<Slot, Option<ReplayStep>>,
}

/// The name under which health reports the watcher's connection.
pub const WATCHER: &str = "watcher";
/// The name under which health reports the recorder's connection.
pub const RECORDER: &str = "recorder";
