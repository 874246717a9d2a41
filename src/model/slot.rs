//! References to the content of a thread's table, for messages that come back to it.

/// A slot of a table together with the generation of its content, so that a message about former
/// content is told from one about its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// The index in its owner's table.
    pub index: usize,
    /// Differs between two contents of one index.
    pub generation: u64,
}

/// One history read for some viewers, owned by a delivery thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobRef {
    /// The delivery thread.
    pub delivery: usize,
    /// Its job.
    pub slot: Slot,
}
