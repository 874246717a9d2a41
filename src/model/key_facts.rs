//! Facts that Redis reports about a stream's key beside its entries.

use super::EntryId;

/// Facts about a stream's key, read in one round trip with its entries and before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFacts {
    /// The highest id that the stream ever gave out.
    pub last_generated: EntryId,
    /// The oldest entry that is still there.
    pub first: Option<EntryId>,
    /// How many entries are there.
    pub length: u64,
    /// How many entries were ever added (Redis 7 and later).
    pub added: Option<u64>,
    /// The highest id that was deleted one by one (Redis 7 and later).
    pub max_deleted: Option<EntryId>,
}
