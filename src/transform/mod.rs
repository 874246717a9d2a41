//! The transform threads: they hold the state of live streams, turn entries into frames by [`crate::decode`], and
//! pass the frames to the delivery threads.

mod dead_letters;
pub mod gaps;
pub mod history;
mod live;
mod parts;
pub mod silence;
pub mod worker;
