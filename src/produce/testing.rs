//! A stream in memory, for tests of code that feeds a producer.

use std::cell::{Ref, RefCell};
use std::rc::Rc;

use super::{Batch, Wire, WireError, Wires};
use crate::model::EntryId;

/// Accepts every entry.
#[derive(Clone, Default)]
pub(crate) struct Memory(Rc<RefCell<Vec<String>>>);

impl Memory {
    /// The entries written so far.
    pub(crate) fn entries(&self) -> Ref<'_, Vec<String>> {
        self.0.borrow()
    }
}

impl Wires for Memory {
    type Wire = Self;

    fn connect(&mut self) -> Result<Self, WireError> {
        Ok(self.clone())
    }
}

impl Wire for Memory {
    fn append(&mut self, batch: &Batch<'_>) -> Result<EntryId, WireError> {
        let mut entries = self.0.borrow_mut();
        entries.extend(batch.records.iter().map(|record| record.json.clone()));
        Ok(EntryId::new(entries.len() as u64, 0))
    }
}
