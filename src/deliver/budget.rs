//! Limits the bytes that all connections of the process together may hold for one purpose, regardless of how they are
//! distributed. Pure except for the counter, which the delivery threads share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of bytes held, and the limit.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    /// An unused budget.
    #[must_use]
    pub const fn new(bytes_max: usize) -> Self {
        Self { used: AtomicUsize::new(0), bytes_max }
    }

    /// The bytes held now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Changes the bytes of a holder from `before` to `after`. A decrease is always allowed, and so is any change if
    /// there is no other holder. Returns `false` if there is no room; then nothing changes.
    #[must_use]
    pub fn change(&self, before: usize, after: usize) -> bool {
        let changed = |used: usize| {
            let others = used.saturating_sub(before);
            let fits = after <= before || others == 0 || others.saturating_add(after) <= self.bytes_max;
            fits.then(|| others.saturating_add(after))
        };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed).is_ok()
    }
}

/// The budgets shared by all connections of the process.
#[derive(Debug)]
pub struct Budgets {
    /// Answers that are sent as a whole and exceed a connection's send budget: JSON states.
    pub answers: Arc<Budget>,
    /// Incomplete requests and messages of clients.
    pub inputs: Budget,
}

/// One holder's part of a [`Budget`], which is given back on drop.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    /// A share of 0 bytes.
    #[must_use]
    pub const fn of(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Sets the holder's bytes. Returns `false` if there is no room; then nothing changes.
    #[must_use]
    pub fn resize(&mut self, bytes: usize) -> bool {
        let fits = self.budget.change(self.bytes, bytes);
        if fits {
            self.bytes = bytes;
        }
        fits
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // A decrease is always allowed.
        let _ = self.budget.change(self.bytes, 0);
    }
}

/// Bytes that are shared by reference and count against a budget until the last reference is dropped.
#[derive(Debug)]
pub struct Charged {
    bytes: Vec<u8>,
    _share: Share,
}

impl Charged {
    /// Wraps bytes, and their share of the budget, in a reference-counted buffer.
    #[must_use]
    pub fn shared(bytes: Vec<u8>, share: Share) -> bytes::Bytes {
        bytes::Bytes::from_owner(Self { bytes, _share: share })
    }
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_single_holder_may_exceed_the_budget() {
        let budget = Arc::new(Budget::new(10));
        let (mut first, mut second) = (Share::of(Arc::clone(&budget)), Share::of(Arc::clone(&budget)));
        assert!(first.resize(100) && first.resize(50));
        assert!(!second.resize(1));
        assert_eq!(budget.used(), 50);
        drop(first);
        assert!(second.resize(10) && second.resize(3));
        assert_eq!(budget.used(), 3);
    }

    #[test]
    fn shared_bytes_are_held_until_the_last_reference_is_gone() {
        let budget = Arc::new(Budget::new(10));
        let mut share = Share::of(Arc::clone(&budget));
        assert!(share.resize(3));
        let bytes = Charged::shared(b"abc".to_vec(), share);
        let other = bytes.clone();
        drop(bytes);
        assert_eq!((&other[..], budget.used()), (&b"abc"[..], 3));
        drop(other);
        assert_eq!(budget.used(), 0);
    }

    proptest! {
        #[test]
        fn held_bytes_are_the_sum_and_within_the_limit(
            steps in prop::collection::vec((0_usize..4, 0_usize..60), 0..200),
        ) {
            let budget = Arc::new(Budget::new(100));
            let mut shares: Vec<Share> = (0..4).map(|_| Share::of(Arc::clone(&budget))).collect();
            let mut held = [0; 4];
            for (holder, bytes) in steps {
                if shares[holder].resize(bytes) {
                    held[holder] = bytes;
                }
                prop_assert_eq!(budget.used(), held.iter().sum::<usize>());
                prop_assert!(budget.used() <= 100);
            }
            drop(shares);
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
