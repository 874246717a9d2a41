//! From raw entries to the frames that clients receive.
//!
//! ```text
//! Entry ──decode──▶ Decoded ──order──▶ Verdict ──assemble──▶ Frame
//!    └─────hear───────▲ (several)         └─────snapshot────▶ the state so far
//!                                        └─────seek────────▶ where a resume begins
//! ```
//!
//! The parts are pure: no I/O, no clock; the time comes in as an argument. Every token passes here, and
//! its text is never unescaped: the characters that the producer wrote between the quotes are the
//! characters that the viewer gets.

pub mod assemble;
mod dead_letters;
pub mod decode;
mod expand;
mod flat;
pub mod flaw;
pub mod gaps;
pub mod history;
mod live;
mod member;
mod members;
mod milestone;
pub mod order;
mod parts;
pub mod seek;
pub mod silence;
pub mod snapshot;
#[cfg(test)]
mod test_streams;
pub mod worker;

pub use assemble::{Assembler, Pushed};
pub use decode::{DecodeContext, plain};
pub use flaw::Flaw;
pub use milestone::milestone;
pub use order::{DropReason, Verdict, judge, shows_skipped};
pub use seek::{Scan, Seek, Sought};
pub use snapshot::{Snapshot, TooLarge};
