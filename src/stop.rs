//! The signal that makes every thread end: a flag that is cheap to check and wakes threads that wait.
//!
//! It changes only once, from *running* to *stopping*. A thread that waits in a mio `Poll` registers its waker
//! ([`Stop::wakes`]), and one that waits for a queue waits for [`Stop::given`] too, so no thread has to look at the
//! flag again and again. A thread that waits for Redis bounds its wait and checks the flag afterwards.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use mio::Waker;
use parking_lot::Mutex;

use crate::error_limited;

/// The stop signal; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    requested: AtomicBool,
    /// Closed with the signal.
    given: Receiver<Infallible>,
    waiting: Mutex<Waiting>,
}

/// The threads that the signal wakes.
#[derive(Debug)]
struct Waiting {
    /// Keeps [`Stop::given`] open.
    open: Option<Sender<Infallible>>,
    /// Kept after the signal: a poll does not report a waker that was dropped before it looks.
    wakers: Vec<Arc<Waker>>,
}

impl Default for Shared {
    fn default() -> Self {
        let (open, given) = bounded(0);
        let waiting = Mutex::new(Waiting { open: Some(open), wakers: Vec::new() });
        Self { requested: AtomicBool::new(false), given, waiting }
    }
}

impl Stop {
    /// A signal in the state *running*.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal and wakes all waiting threads. Further calls have no effect.
    pub fn request(&self) {
        let mut waiting = self.shared.waiting.lock();
        // Under the lock, so that no thread registers a waker in between that nobody wakes.
        self.shared.requested.store(true, Ordering::Release);
        waiting.open = None;
        waiting.wakers.iter().for_each(|waker| wake(waker));
    }

    /// Whether the signal was given.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.shared.requested.load(Ordering::Acquire)
    }

    /// Makes the signal wake the poll of `waker`; at once if it was given before.
    pub fn wakes(&self, waker: Arc<Waker>) {
        let mut waiting = self.shared.waiting.lock();
        if self.requested() {
            wake(&waker);
        }
        waiting.wakers.push(waker);
    }

    /// A channel without messages that the signal closes.
    #[must_use]
    pub fn given(&self) -> &Receiver<Infallible> {
        &self.shared.given
    }
}

fn wake(waker: &Waker) {
    if let Err(error) = waker.wake() {
        error_limited!(%error, "a waiting thread could not be told to stop and notices it later");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mio::{Events, Poll, Token};

    use super::*;

    #[test]
    fn waiting_for_the_channel_ends_with_the_signal_or_with_the_time() {
        let stop = Stop::new();
        assert!(stop.given().recv_timeout(Duration::from_millis(2)).unwrap_err().is_timeout());
        std::thread::scope(|scope| {
            let waits = || stop.given().recv_timeout(Duration::from_secs(600)).unwrap_err();
            let waiting: Vec<_> = (0..3).map(|_| scope.spawn(waits)).collect();
            stop.clone().request();
            assert!(waiting.into_iter().all(|waits| waits.join().unwrap().is_disconnected()));
        });
        stop.request();
        assert!(stop.requested() && stop.given().try_recv().unwrap_err().is_disconnected());
    }

    #[test]
    fn polls_are_woken_by_the_signal_whether_it_comes_before_or_after() {
        let stop = Stop::new();
        let poll = || {
            let poll = Poll::new().unwrap();
            let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
            (poll, waker)
        };
        let ((mut early, early_waker), (mut late, late_waker)) = (poll(), poll());
        stop.wakes(early_waker);
        stop.request();
        stop.wakes(late_waker);
        let mut events = Events::with_capacity(1);
        for poll in [&mut early, &mut late] {
            poll.poll(&mut events, Some(Duration::from_secs(30))).unwrap();
            assert!(!events.is_empty());
        }
    }
}
