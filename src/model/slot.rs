//! References to an item in a thread's table, for messages that return to that thread.

/// A slot of a table together with the generation of its content, so that a message about former content can be
/// distinguished from one about its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// The index in its owner's table.
    pub index: usize,
    /// Differs between successive contents of one index.
    pub generation: u64,
}

/// One history read for some viewers, owned by a delivery thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobRef {
    /// The delivery thread.
    pub delivery: usize,
    /// The job in its table.
    pub slot: Slot,
}
