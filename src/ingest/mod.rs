//! From Redis into the daemon: live streams by consumer group, history by range.
//!
//! A [`reader`] owns the streams that hash to it and carries only what is new; the replay threads carry
//! what is old. Neither decodes: entries go to `transform` as they lie in Redis' reply. Neither decides who
//! gets an entry, or remembers anything that Redis could tell again.

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
