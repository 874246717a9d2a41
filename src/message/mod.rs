//! The messages between threads that are about streams.
//!
//! The modules on both sides of a queue know these types and not each other: `deliver` asks for
//! history ([`ReplayRequest`]) and for live text ([`Control`]); `ingest` hands over what it has read
//! ([`LiveBatch`], [`ReplayBatch`]); `transform` answers with frames ([`ToDelivery`]).

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

/// A stream as a delivery thread knows it, for as long as one asking for its live frames lasts: what belongs
/// to an earlier asking, or comes after the thread has let go of it, is told from what belongs to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HubRef {
    /// The delivery thread's table entry for the stream.
    pub slot: Slot,
    /// Counts the askings.
    pub attach: u64,
}

/// The purpose of a history read.
#[derive(Debug)]
pub enum ReplayStep {
    /// Find where `after` points and show what follows, `state` only once it has been reached.
    Open {
        /// From where on.
        after: After,
        /// Whether nobody has named that: it was chosen to lie before what is wanted. Where the stream begins later,
        /// its beginning will do.
        early: bool,
        /// Whether the outline of what comes before is wanted.
        outlined: bool,
    },
    /// Go on with a search that one read could not finish.
    Search(Box<Search>),
    /// Show what follows a known cursor.
    Continue {
        /// Where the viewers stand.
        from: Cursor,
        /// Read no further than this entry; `None`: to the newest.
        until: Option<EntryId>,
    },
    /// Assemble the newest generation as one JSON document.
    State(Box<StateSearch>),
    /// Only whether the stream exists.
    Probe,
}

/// A request to the replay threads.
#[derive(Debug)]
pub struct ReplayRequest {
    /// The stream.
    pub stream: StreamName,
    /// The job that asks.
    pub job: JobRef,
    /// The purpose.
    pub step: ReplayStep,
    /// At most so many entries are read.
    pub count: usize,
    /// Frames are made until they reach so many bytes.
    pub budget_bytes: usize,
    /// When it was asked, µs since 1970 by this host's clock.
    pub asked_us: u64,
    /// When the stream was seen to come into being, by the same clock: none of its entries is older, whatever their ids
    /// say. `None`: it was there before, as far as is known.
    pub appeared_us: Option<u64>,
    /// Where the step's scan goes on instead, if the checkpoint holds: its entry is the first one that is read.
    pub jump: Option<Arc<Checkpoint>>,
}

/// A search through history that may take several reads.
#[derive(Debug)]
pub struct Search {
    /// Where the next read begins.
    pub from: EntryId,
    /// Up to where it may go on from a checkpoint instead; `None`: it may not.
    pub target: Option<Position>,
    /// The scan, as far as it has come.
    pub seek: Seek,
    /// The gap that the viewers have to be told of before the frames that follow.
    pub gap: Option<HistoryGap>,
    /// The frames behind the wanted position that were made on the way, as far as the budget goes.
    pub shown: Option<Box<Shown>>,
}

impl Search {
    /// A search that begins at the stream's beginning.
    #[must_use]
    pub const fn new(seek: Seek, gap: Option<HistoryGap>) -> Self {
        Self { from: EntryId::ZERO, target: None, seek, gap, shown: None }
    }
}

/// The gathering of the JSON state, over several reads.
#[derive(Debug, Default)]
pub struct StateSearch {
    /// Where the next read begins.
    pub from: EntryId,
    /// The document's content so far; `None` before the first read.
    pub gathered: Option<Box<Gathering>>,
    /// Its size in bytes, about.
    pub gathered_bytes: usize,
    /// The most bytes that the document may take.
    pub max_bytes: usize,
}

/// The result of one history read.
#[derive(Debug)]
pub enum ReplayRead {
    /// The key exists.
    Found {
        /// The key as it was just before the entries were read.
        facts: KeyFacts,
        /// The entries after the step's position, in order.
        entries: Vec<Entry>,
        /// Whether the read came to the end of the stream, or of the range that was asked for.
        exhausted: bool,
    },
    /// There is no such key.
    Missing,
    /// Redis could not be asked.
    Unavailable,
    /// The key is there and is no stream.
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
    /// Its entries in the sum of what is held.
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

/// Entries that were removed before the viewers could get them, or a history that is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryGap {
    /// Entries between `after` and `next` were trimmed.
    Trimmed {
        /// The viewers' position.
        after: Position,
        /// The oldest entry that is left; `None` when nothing is.
        next: Option<EntryId>,
        /// The stream's newest id where nothing is left: what the viewers now have.
        id: Option<EntryId>,
        /// How many, where that can be known.
        lost: Option<u64>,
    },
    /// The stream was deleted and begun anew.
    Recreated {
        /// The viewers' position.
        after: Position,
        /// Its first entry.
        next: EntryId,
    },
    /// Redis came back with an older end of the stream.
    Failover {
        /// The viewers' position.
        after: Position,
        /// The newest id that is there.
        newest: EntryId,
    },
}

/// Frames from history.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The gap before the frames, if there is one.
    pub gap: Option<HistoryGap>,
    /// In order.
    pub frames: Vec<Arc<Frame>>,
    /// Where the viewers stand after them.
    pub cursor: Cursor,
    /// Whether that was the end of the stream (or of the range asked for) when it was read.
    pub exhausted: bool,
    /// How many bytes the entries took, for sizing the next read.
    pub entries_bytes: usize,
    /// How many entries there were.
    pub entries: usize,
}

/// The outcome of a [`ReplayRequest`].
#[derive(Debug)]
pub enum ReplayOutcome {
    /// There is no such key.
    Missing,
    /// The key is there and is no stream: waiting for it would not help.
    NotAStream,
    /// Redis could not be asked; to be tried again.
    Unavailable,
    /// The dead letters among what was read have no room yet; to be tried again.
    Deferred,
    /// The search goes on with another read.
    Searching(Box<Search>),
    /// The gathering goes on with another read.
    Gathering(Box<StateSearch>),
    /// `after` was found; this is the beginning of what follows.
    Opened(Box<Opened>),
    /// More of what follows.
    Shown(Box<Shown>),
    /// The JSON document.
    State(Vec<u8>),
    /// The JSON document would be larger than allowed.
    StateTooLarge,
    /// The stream exists.
    Exists,
}

/// The beginning of an answer.
#[derive(Clone, Debug)]
pub struct Opened {
    /// `after`, resolved.
    pub after: Position,
    /// How the stream stood at its newest entry.
    pub status: StreamStatus,
    /// That entry.
    pub tip: EntryId,
    /// Whether `after` is at or behind the end of a finished stream, so that nothing is left to tell but the gap, if
    /// there is one (an older end of the stream), and that end.
    pub nothing_left: bool,
    /// The newest generation's stored terminal frame, where it is finished.
    pub terminal: Option<Arc<Frame>>,
    /// The outline of the generation up to `after`, where it was wanted.
    pub outline: Option<Arc<Outline>>,
    /// Where the first frames begin; not `after` where that could not be had.
    pub from: Position,
    /// The first frames.
    pub shown: Shown,
}

/// A live stream's place in its transform thread.
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
        /// The stream there.
        hub: HubRef,
        /// Where live begins if nobody else is attached yet.
        from: Cursor,
        /// As [`ReplayRequest::appeared_us`].
        appeared_us: Option<u64>,
    },
    /// Send them no more.
    Detach {
        /// The stream.
        stream: StreamName,
        /// The delivery thread.
        delivery: usize,
        /// The stream there.
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
        /// Where its entries go.
        live: LiveRef,
        /// The transform thread.
        transform: usize,
        /// The seam.
        after: EntryId,
        /// How many entries were ever added up to the seam, where it is known.
        ordinal: Option<u64>,
        /// How far each delivery thread has written.
        watermark: Arc<AckWatermark>,
    },
    /// Read it no more.
    Stop {
        /// The stream.
        stream: StreamName,
        /// The place that was given when it was started.
        live: LiveRef,
    },
}

impl ReaderCommand {
    /// Whether it starts what `wanted` names.
    #[must_use]
    pub fn starts(&self, wanted: LiveRef) -> bool {
        matches!(self, Self::Start { live, .. } if *live == wanted)
    }
}

/// A batch of live entries, from a reader to a transform thread.
#[derive(Debug)]
pub struct LiveBatch {
    /// Each stream with news.
    pub streams: Vec<LiveNews>,
    /// The size of their entries, in bytes.
    pub bytes: usize,
    /// When it was read, µs since 1970 by this host's clock.
    pub read_us: u64,
    /// Held for as long as the batch is under way, until delivery threads have its frames.
    pub under_way: Option<UnderWay>,
}

impl LiveBatch {
    /// How many entries it has.
    #[must_use]
    pub fn len(&self) -> usize {
        let entries = self.streams.iter().map(|news| match news {
            LiveNews::Entries(_, entries) => entries.len(),
            LiveNews::Broken(_) => 0,
        });
        entries.sum()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A count of what keeps live entries coming: one reference for each reader that still reads, and one for each batch
/// that is under way. A daemon that shuts down waits until only its own reference is left.
pub type UnderWay = Arc<()>;

/// News of one stream.
#[derive(Debug)]
pub enum LiveNews {
    /// New entries, in order.
    Entries(LiveRef, Vec<Entry>),
    /// The stream cannot be read on from its cursor: its key or group is gone, entries were removed, or
    /// Redis was away. Viewers find out from history what happened.
    Broken(LiveRef),
}

/// Live frames of one stream for one delivery thread.
#[derive(Debug)]
pub struct LiveFrames {
    /// The stream there.
    pub hub: HubRef,
    /// In order.
    pub frames: Vec<Arc<Frame>>,
    /// The newest entry that was read, whether it gave a frame or not.
    pub passed: EntryId,
}

/// Messages to a delivery thread.
#[derive(Debug)]
pub enum ToDelivery {
    /// Live frames of some streams.
    Live {
        /// By stream.
        news: Vec<LiveFrames>,
        /// The size of the frames, in bytes.
        bytes: usize,
    },
    /// Live frames of a stream come from here on.
    Attached {
        /// The stream there.
        hub: HubRef,
        /// Where live stands now.
        cursor: Cursor,
        /// Whether the producer is silent.
        stalled: bool,
        /// Where to say what has been written.
        watermark: Arc<AckWatermark>,
    },
    /// No more live frames come: see [`LiveNews::Broken`].
    Broken {
        /// The stream there.
        hub: HubRef,
    },
    /// The producer has fallen silent, or speaks again.
    Stalled {
        /// The stream there.
        hub: HubRef,
        /// Which of the two.
        stalled: bool,
    },
    /// The outcome of a history read.
    Replay(JobRef, ReplayOutcome),
    /// A stream that was waited for is there.
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

/// The messages that a transform thread could not deliver because a delivery thread's inbox was full. Bounded by the
/// delivery thread's own tables: each hub and each job appears at most once.
#[derive(Debug, Default)]
pub struct Missed {
    /// Hubs that are detached: their viewers go on from history.
    pub hubs: std::collections::BTreeSet<HubRef>,
    /// Jobs whose outcome was lost: they are asked again, a search from where it is.
    pub jobs: std::collections::BTreeMap<Slot, Option<ReplayStep>>,
}

/// The name of the watcher's connection, by which its health is known.
pub const WATCHER: &str = "watcher";
/// The name of the recorder's connection, by which its health is known.
pub const RECORDER: &str = "recorder";
