//! From Redis into the daemon: live streams by consumer group, history by range.
//!
//! A [`reader`] owns the streams that hash to it and carries only new entries; the replay threads carry old ones.
//! Neither decodes: entries go to `transform` as they are in Redis' reply. Neither decides which viewers get an
//! entry, and neither remembers anything that can be read from Redis again.

mod acknowledging;
pub mod budget;
mod groups;
mod pace;
pub mod pacing;
mod proof;
mod ranges;
pub mod reader;
mod reading;
pub mod replay;
mod subscriptions;
mod tracking;
mod waiting;
