//! Bytes that all connections of the process may hold together for one purpose, however they are spread. Pure but for
//! the counter, which the delivery threads share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How much is held, and how much may be.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    /// A budget of which nothing is used.
    #[must_use]
    pub const fn new(bytes_max: usize) -> Self {
        Self { used: AtomicUsize::new(0), bytes_max }
    }

    /// Bytes that are held now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// A holder that had `before` bytes has `after` from now on. Having fewer is always allowed, and so is anything
    /// for a holder who is alone. `false`: there is no room, and nothing was changed.
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

/// The budgets of all connections of the process together.
#[derive(Debug)]
pub struct Budgets {
    /// Whole answers that are larger than what a connection may have waiting: JSON states.
    pub answers: Arc<Budget>,
    /// Requests and messages that clients have begun to send and not finished.
    pub inputs: Budget,
}

/// One holder's part of a [`Budget`]; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    /// A holder of nothing yet.
    #[must_use]
    pub const fn of(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// The holder has so many bytes from now on; `false`: there is no room, and it has what it had.
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
        // Having fewer is always allowed.
        let _ = self.budget.change(self.bytes, 0);
    }
}

/// Bytes that are shared by reference and hold their part of a budget until the last reference is gone.
#[derive(Debug)]
pub struct Charged {
    bytes: Vec<u8>,
    _share: Share,
}

impl Charged {
    /// The bytes, to be shared.
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
    fn one_alone_may_hold_more_than_the_budget() {
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
        fn what_is_held_is_the_sum_and_within_the_bound(
            steps in prop::collection::vec((0_usize..4, 0_usize..60), 0..200),
        ) {
            let budget = Arc::new(Budget::new(100));
            let mut shares: Vec<Share> = (0..4).map(|_| Share::of(Arc::clone(&budget))).collect();
            let mut held = [0; 4];
            for (who, bytes) in steps {
                if shares[who].resize(bytes) {
                    held[who] = bytes;
                }
                prop_assert_eq!(budget.used(), held.iter().sum::<usize>());
                prop_assert!(budget.used() <= 100);
            }
            drop(shares);
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
