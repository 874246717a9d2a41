//! The only module that knows Redis: addresses, connections, the wire protocol, key names.
//!
//! A [`Link`] is one connection. It blocks in `poll(2)` if its owner wants to wait there, and never if the owner
//! waits elsewhere (mio on [`Link::raw_fd`]). Commands are encoded into its output buffer: those of the hot path by a
//! [`Pipeline`], all others by the `redis` crate, which builds them. Replies are returned as whole [`Reply`]s: slices
//! of the read buffer with typed views, so that reading a stream costs no copy and no allocation per string. Off the
//! hot path a reply can also be read as a value of the `redis` crate's types ([`Link::query`]).
//!
//! ```text
//! config::Redis ─▶ Target ─▶ Link ◀─ Pipeline, ::redis::Cmd
//!                             │ transport (TCP, Unix, TLS) ─▶ resp (scanner) ─▶ Reply ─▶ streams
//! ```
//!
//! Left out: topology (one target, no Sentinel and no cluster redirects), and pooling and retries, which the links'
//! owners decide; [`Backoff`] computes their pauses.

mod backoff;
mod connector;
mod ending;
mod error;
#[cfg(any(test, fuzzing))]
mod fuzzing;
mod group;
mod keys;
mod link;
mod pipeline;
mod poll;
mod reply;
mod resp;
pub mod rights;
mod shortened;
mod sieve;
mod streams;
mod target;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod trouble;

pub use backoff::Backoff;
pub use connector::Connector;
pub use ending::Ending;
pub use error::{RedisError, ServerError, ServerErrorKind, TargetError};
#[cfg(any(test, fuzzing))]
pub(crate) use fuzzing::{resp as fuzz_resp, sieve as fuzz_sieve};
pub use group::ConsumerGroup;
pub use keys::Keys;
pub use link::{Link, Wanted};
pub use pipeline::{Arguments, Number, Pipeline};
pub use reply::{Reply, Value};
pub use shortened::SHORT_STRING_BYTES_MAX;
pub use sieve::{ENTRY_ROOM_BYTES, RangeReply};
pub use streams::{Changed, Results, StreamEntries, StreamInfo};
pub use target::Target;
pub use trouble::Phase;
