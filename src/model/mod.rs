//! The data that crosses module boundaries: ids, names, raw entries, decoded events, the state of a stream's reader,
//! and the frames that clients receive.
//!
//! Everything here is plain data without I/O. `ingest` creates [`Entry`]s, `transform` turns them into [`Event`]s and
//! [`Frame`]s, `deliver` writes frames; none of the three depends on the others.

mod ack_watermark;
mod after;
mod clock;
pub mod control_frames;
mod cursor;
mod encode;
mod entry;
mod frame;
mod held;
mod id;
mod key_facts;
mod key_pattern;
mod merge;
mod name;
mod native;
mod outline;
mod parts;
mod progress;
mod shard;
mod slot;
mod state;
mod trie;
mod wire;

pub use ack_watermark::AckWatermark;
pub use after::After;
pub use clock::{RedisClock, now_us};
pub use cursor::Cursor;
pub(crate) use encode::{Content, Head, ToolPiece};
pub(crate) use entry::NamesShown;
pub use entry::{ENTRY_BYTES_MAX, Entry, Fields, KEPT_NAME_BYTES_MAX, KEPT_NAMES_MAX};
pub use frame::{Frame, FrameBody, Rendering, Span, StreamStatus, TextMark};
pub use held::{HISTORY_HELD_MAX, Held, LARGE_BYTES, Ledger};
pub use id::{EntryId, ParseIdError, Position};
pub use key_facts::KeyFacts;
pub use key_pattern::{KeyPattern, PatternError};
pub(crate) use merge::piece_continues;
pub use merge::{FRAME_TEXT_BYTES_MAX, merge};
pub use name::{DEFAULT_MODEL, NameError, Naming, StreamName};
pub use native::{Decoded, Event, LABEL_BYTES_MAX};
pub use outline::{Call, OUTLINE_BYTES_MAX, Outline, Piece};
pub(crate) use parts::name_of;
pub use parts::{Choice, Ids, Part, Parts, TextDigest, Waiting};
pub use progress::{Newest, PROGRESS_BYTES_MAX, Progress};
pub(crate) use progress::{PARTS_BYTES_MAX, USAGE_BYTES_MAX};
pub use shard::{Fnv, shard};
pub use slot::{JobRef, Slot};
pub use state::{Phase, StreamState};
pub use trie::Trie;
pub use wire::{sse_event, websocket_text, with_stream};
