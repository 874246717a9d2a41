//! What crosses the seams between the modules: ids, names, raw entries, decoded events, the state
//! that a stream's reader carries, and the frames that clients receive.
//!
//! Everything here is plain data without I/O. `ingest` makes [`Entry`]s, `transform` turns them into
//! [`Event`]s and [`Frame`]s, `deliver` writes frames; none of the three knows the others.

mod after;
mod entry;
mod frame;
mod id;
mod name;
mod native;
mod state;

pub use after::After;
pub use entry::{Entry, Fields};
pub use frame::{Frame, FrameBody, StreamStatus};
pub use id::{EntryId, ParseIdError, Position};
pub use name::{NameError, StreamName};
pub use native::{Decoded, Event};
pub use state::{Phase, StreamState};
