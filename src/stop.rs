//! The signal that makes every thread end: a flag that is cheap to check and can be waited for.
//!
//! It changes only once, from *running* to *stopping*. A thread that blocks elsewhere (in Redis, in a mio `Poll`)
//! bounds its wait and checks the flag afterwards; this module does not interrupt such waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The stop signal; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    requested: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Stop {
    /// A signal in the state *running*.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal and wakes all waiting threads. Further calls have no effect.
    pub fn request(&self) {
        // Under the lock, so that no thread can check the flag and then miss the wake-up.
        let _guard = self.shared.lock.lock();
        self.shared.requested.store(true, Ordering::Release);
        self.shared.changed.notify_all();
    }

    /// Whether the signal was given.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.shared.requested.load(Ordering::Acquire)
    }

    /// Waits for `wait` or until the signal is given; returns whether it was given.
    pub fn wait(&self, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let mut guard = self.shared.lock.lock();
        while !self.requested() {
            if self.shared.changed.wait_until(&mut guard, deadline).timed_out() {
                break;
            }
        }
        self.requested()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_ends_with_the_signal_or_with_the_time() {
        let stop = Stop::new();
        assert!(!stop.wait(Duration::from_millis(2)));
        std::thread::scope(|scope| {
            let sleepers: Vec<_> =
                (0..3).map(|_| scope.spawn(|| stop.wait(Duration::from_secs(600)))).collect();
            stop.clone().request();
            assert!(sleepers.into_iter().all(|sleeper| sleeper.join().unwrap()));
        });
        stop.request();
        assert!(stop.requested() && stop.wait(Duration::ZERO));
    }
}
