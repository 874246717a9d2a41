//! Whether a worker may still write an answer.
//!
//! A worker holds the claim of a request and the lease of its stream as long as it renews both. If renewal fails
//! (Redis is down, or the process was suspended), the worker must write nothing until it knows whether another worker
//! has taken over: the answering thread waits in [`Lease::must_stop`] until the renewing thread has found out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a thread that waits for the renewal checks it.
const LOOK: Duration = Duration::from_millis(10);

/// The right to write one answer; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    since: Instant,
    /// When the lease expires, in ms after `since`.
    valid_ms: AtomicU64,
    /// Another worker has the lease.
    is_lost: AtomicBool,
    /// All answers are to be abandoned.
    halt: Arc<AtomicBool>,
}

impl Lease {
    /// A lease from `now` on.
    pub(super) fn new(now: Instant, valid: Duration, halt: Arc<AtomicBool>) -> Self {
        let (valid_ms, is_lost) = (AtomicU64::new(0), AtomicBool::new(false));
        let lease = Self { shared: Arc::new(Shared { since: now, valid_ms, is_lost, halt }) };
        lease.renew(now, valid);
        lease
    }

    /// Extends the lease to `valid` after `now`, the time at which Redis was asked.
    pub(super) fn renew(&self, now: Instant, valid: Duration) {
        let until = (now.saturating_duration_since(self.shared.since) + valid).as_millis();
        self.shared.valid_ms.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Records that another worker has the lease.
    pub(super) fn lose(&self) {
        self.shared.is_lost.store(true, Ordering::Release);
    }

    /// Whether another worker has the lease.
    pub(super) fn is_lost(&self) -> bool {
        self.shared.is_lost.load(Ordering::Acquire)
    }

    /// Whether to abandon the answer. Waits while that is unknown.
    pub(super) fn must_stop(&self) -> bool {
        loop {
            if self.is_lost() || self.shared.halt.load(Ordering::Acquire) {
                return true;
            }
            let now_ms = self.shared.since.elapsed().as_millis();
            if now_ms < u128::from(self.shared.valid_ms.load(Ordering::Acquire)) {
                return false;
            }
            std::thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_ran_out_is_waited_for() {
        let halt = Arc::new(AtomicBool::new(false));
        let lease = Lease::new(Instant::now(), Duration::from_secs(600), Arc::clone(&halt));
        assert!(!lease.must_stop());
        lease.renew(Instant::now(), Duration::ZERO);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lease.must_stop());
            lease.renew(Instant::now(), Duration::from_secs(600));
            assert!(!waiting.join().unwrap());
        });
        lease.renew(Instant::now(), Duration::ZERO);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lease.must_stop());
            lease.lose();
            assert!(waiting.join().unwrap() && lease.is_lost());
        });
        let other = Lease::new(Instant::now(), Duration::ZERO, Arc::clone(&halt));
        halt.store(true, Ordering::Release);
        assert!(other.must_stop());
    }
}
