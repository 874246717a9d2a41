//! Settings that can be replaced while threads use them.
//!
//! A [`Swap`] holds the current value; each thread reads it through a [`Reader`] of its own, which checks for a new
//! value when the thread asks it to, once per round. Within a round the value remains the same, and reading it costs
//! nothing.
//!
//! ```
//! use llm_bridge::swap::Swap;
//!
//! let limit = Swap::new(10);
//! let mut ours = limit.reader();
//! limit.replace(20);
//! assert_eq!(*ours, 10);
//! ours.refresh();
//! assert_eq!(*ours, 20);
//! ```

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// A value that can be replaced. Clones share it.
#[derive(Debug)]
pub struct Swap<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    current: Mutex<Arc<T>>,
    /// How many times the value was replaced. Written under the lock, read without it.
    version: AtomicU64,
}

/// One thread's view of a [`Swap`].
#[derive(Debug)]
pub struct Reader<T> {
    shared: Arc<Shared<T>>,
    version: u64,
    value: Arc<T>,
}

impl<T> Swap<T> {
    /// A swap with this value.
    #[must_use]
    pub fn new(value: T) -> Self {
        let (current, version) = (Mutex::new(Arc::new(value)), AtomicU64::new(0));
        Self { shared: Arc::new(Shared { current, version }) }
    }

    /// Replaces the value. Readers get the new value at their next refresh.
    pub fn replace(&self, value: T) {
        let mut current = self.shared.current.lock();
        *current = Arc::new(value);
        self.shared.version.fetch_add(1, Ordering::Release);
    }

    /// A reader with the current value.
    #[must_use]
    pub fn reader(&self) -> Reader<T> {
        let (version, value) = self.shared.read();
        Reader { shared: Arc::clone(&self.shared), version, value }
    }
}

impl<T> Clone for Swap<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Shared<T> {
    fn read(&self) -> (u64, Arc<T>) {
        let current = self.current.lock();
        (self.version.load(Ordering::Relaxed), Arc::clone(&current))
    }
}

impl<T> Reader<T> {
    /// Gets the current value. One atomic load if it was not replaced.
    pub fn refresh(&mut self) {
        if self.shared.version.load(Ordering::Acquire) != self.version {
            (self.version, self.value) = self.shared.read();
        }
    }
}

impl<T> Deref for Reader<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_what_was_exchanged_when_it_looks() {
        let swap = Swap::new("one".to_owned());
        let (mut early, other) = (swap.reader(), swap.clone());
        early.refresh();
        assert_eq!(*early, "one");
        other.replace("two".to_owned());
        assert_eq!((&**early, &**swap.reader()), ("one", "two"));
        early.refresh();
        assert_eq!(*early, "two");
    }

    #[test]
    fn readers_of_many_threads_get_the_last_value() {
        let swap = Swap::new(0_u32);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let mut reader = swap.reader();
                scope.spawn(move || {
                    let mut before = 0;
                    while *reader < 1000 {
                        reader.refresh();
                        assert!(*reader >= before, "a value never goes back");
                        before = *reader;
                    }
                });
            }
            (1..=1000).for_each(|value| swap.replace(value));
        });
    }
}
