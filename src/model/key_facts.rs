//! The facts that Redis reports about a stream's key besides its entries.

use super::EntryId;

/// Facts about a stream's key, read just before its entries and in the same round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFacts {
    /// The highest id that the stream has ever assigned.
    pub last_generated: EntryId,
    /// The oldest entry that is left.
    pub first: Option<EntryId>,
    /// The number of entries.
    pub length: u64,
    /// How many entries were ever added (Redis 7 and later).
    pub added: Option<u64>,
    /// The highest id of an entry that was deleted individually (Redis 7 and later).
    pub max_deleted: Option<EntryId>,
}
