//! State that one thread owns, and on which another may do that thread's work while it sleeps.
//!
//! Waking a sleeping thread costs more than a few tokens' work: a system call, an interrupt to another core and a
//! cold cache. So a thread that has little to hand on takes a turn at the next stage itself, if that stage is free,
//! through its queue's [`InlineStage`](crate::queue::InlineStage); else it sends as usual.
//!
//! INVARIANT: only the owner waits for its turn. Everybody else takes it if it is free or goes another way, so
//! that turns within turns cannot block one another.

use std::fmt;
use std::sync::Arc;

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

/// The state; clones share it.
pub struct SharedStage<S>(Arc<Mutex<Option<S>>>);

impl<S> fmt::Debug for SharedStage<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedStage")
    }
}

impl<S> Clone for SharedStage<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Lasts as long as a turn.
pub type Turn<'a, S> = MappedMutexGuard<'a, S>;

impl<S> SharedStage<S> {
    /// Shares out a state.
    #[must_use]
    pub fn new(state: S) -> Self {
        Self(Arc::new(Mutex::new(Some(state))))
    }

    /// The owner's turn, waited for; `None` once it is over.
    #[must_use]
    pub fn own(&self) -> Option<Turn<'_, S>> {
        MutexGuard::try_map(self.0.lock(), Option::as_mut).ok()
    }

    /// Somebody else's turn, unless it is not free now or over.
    #[must_use]
    pub fn if_free(&self) -> Option<Turn<'_, S>> {
        MutexGuard::try_map(self.0.try_lock()?, Option::as_mut).ok()
    }

    /// Ends it: nobody has a turn any more, and the owner has its state back.
    #[must_use]
    pub fn end(&self) -> Option<S> {
        self.0.lock().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_excludes_others_and_none_comes_after_the_end() {
        let stage = SharedStage::new(1);
        let other = stage.clone();
        {
            let mut turn = stage.own().unwrap();
            *turn += 1;
            assert!(other.if_free().is_none());
        }
        assert_eq!(other.if_free().as_deref(), Some(&2));
        assert_eq!(stage.end(), Some(2));
        assert!(other.if_free().is_none() && stage.own().is_none() && stage.end().is_none());
    }
}
