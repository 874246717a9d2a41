//! The transform threads: they have the state of live streams, turn what is read into frames by [`crate::decode`], and
//! hand these to the delivery threads.

mod dead_letters;
pub mod gaps;
pub mod history;
mod live;
mod parts;
pub mod silence;
pub mod worker;
