//! From raw entries to the frames that clients receive: the events of entries, their order, and where a resume
//! begins.
//!
//! ```text
//! Entry ──entry──▶ Decoded ──order──▶ Verdict ──assemble──▶ Frame
//!    └────expand──────▲ (several)         └─────snapshot────▶ the state so far
//!                                        └─────seek────────▶ where a resume begins
//! ```
//!
//! Pure: no I/O, no clock; the time is an argument. Every token passes through here, and its text is never unescaped:
//! the viewer gets the characters that the producer wrote between the quotes.

pub mod assemble;
pub mod checkpoints;
pub mod entry;
pub(crate) mod expand;
mod flat;
pub mod flaw;
pub mod gathering;
mod member;
mod members;
mod milestone;
pub mod order;
pub mod seek;
pub mod snapshot;
#[cfg(test)]
pub(crate) mod test_streams;

pub use assemble::{Assembler, Pushed};
pub use entry::{DecodeContext, plain};
pub use flaw::Flaw;
pub use gathering::Gathering;
pub use milestone::{Milestone, milestone};
pub use order::{DropReason, Verdict, judge, shows_skipped};
pub use seek::{Scan, Seek, Sought};
pub use snapshot::{Snapshot, TooLarge};
