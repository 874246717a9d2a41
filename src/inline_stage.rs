//! State that one thread owns and that another thread may work on while the owner sleeps.
//!
//! Waking a sleeping thread costs more than processing a few tokens: a system call, an interrupt to another core and
//! a cold cache. So a thread with little to hand on runs the next stage itself if that stage is free, through its
//! queue's [`InlineStage`](crate::queue::InlineStage); otherwise it sends to the queue.
//!
//! INVARIANT: only the owner waits for its turn. Every other thread takes the turn if it is free and uses the queue
//! if not, so nested turns cannot block one another.

use std::fmt;
use std::sync::Arc;

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

/// The shared state; clones share it.
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

/// Exclusive access to the state for the duration of a turn.
pub type Turn<'a, S> = MappedMutexGuard<'a, S>;

impl<S> SharedStage<S> {
    /// Makes a state shareable.
    #[must_use]
    pub fn new(state: S) -> Self {
        Self(Arc::new(Mutex::new(Some(state))))
    }

    /// Waits for the owner's turn; `None` once the stage has ended.
    #[must_use]
    pub fn own(&self) -> Option<Turn<'_, S>> {
        MutexGuard::try_map(self.0.lock(), Option::as_mut).ok()
    }

    /// Takes a turn for another thread, unless the stage is busy or has ended.
    #[must_use]
    pub fn if_free(&self) -> Option<Turn<'_, S>> {
        MutexGuard::try_map(self.0.try_lock()?, Option::as_mut).ok()
    }

    /// Ends the stage and returns the state to the owner: nobody gets a turn any more.
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
