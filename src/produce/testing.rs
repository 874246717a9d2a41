//! A stream in memory, for tests of what feeds a producer.

use std::cell::{Ref, RefCell};
use std::rc::Rc;

use super::{Wire, WireError, Wires};

/// Takes every entry.
#[derive(Clone, Default)]
pub(crate) struct Memory(Rc<RefCell<Vec<String>>>);

impl Memory {
    /// What was written.
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
    fn append(&mut self, entries: &[String]) -> Result<(), WireError> {
        self.0.borrow_mut().extend_from_slice(entries);
        Ok(())
    }
}
