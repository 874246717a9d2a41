//! Signals, and the one wait of the main thread.
//!
//! A signal writes a byte into a pipe, a thread that ends wakes a [`mio::Waker`]; the main thread sleeps in one
//! `Poll` on both, so that it reacts at once, without polling and without a thread for signals. Signals of the same
//! kind that arrive before one was taken count once, as in the kernel. Rust's runtime ignores SIGPIPE.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use llm_bridge::{daemon::signals::{Signal, Signals}, queue, thread};
//! # fn main() -> std::io::Result<()> {
//! let mut signals = Signals::install()?;
//! let (ended, over) = queue::bounded_waking::<thread::Ended>("ended", 32, signals.waker());
//! loop {
//!     match signals.next(Duration::from_secs(5)) {
//!         Some(Signal::Terminate) => break,
//!         Some(Signal::DumpStats | Signal::Reload) => {}
//!         None => {} // a thread ended, or time is up
//!     }
//!     while let Some(_report) = over.try_recv() {}
//! }
//! # drop(ended);
//! # Ok(())
//! # }
//! ```

use crate::error_limited;
use std::collections::VecDeque;
use std::ffi::c_int;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token, Waker};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

const SIGNALS: [c_int; 4] = [SIGTERM, SIGINT, SIGUSR1, SIGHUP];

const PIPE: Token = Token(0);
const WAKE: Token = Token(1);

/// A request of the operator or of systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: drain and stop; a second one: stop at once.
    Terminate,
    /// SIGUSR1: write the stats to the log.
    DumpStats,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// Catches the process' signals from its creation on.
#[derive(Debug)]
pub struct Signals {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    /// Taken from the pipe and not yet returned; at most one of each signal.
    arrived: VecDeque<Signal>,
}

impl Signals {
    /// Catches SIGTERM, SIGINT, SIGUSR1 and SIGHUP.
    ///
    /// # Errors
    /// If descriptors or handlers are not available.
    pub fn install() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let (mut read, write) = UnixStream::pair()?;
        poll.registry().register(&mut read, PIPE, Interest::READABLE)?;
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, SIGNALS)?;
        Ok(Self { poll, events: Events::with_capacity(2), waker, delivery, arrived: VecDeque::new() })
    }

    /// Wakes [`Signals::next`]: for the queue on which threads report their end.
    #[must_use]
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Waits up to `wait` for the next signal; `None` if there was none, because the time is over, the waker was
    /// used, or the wait ended spuriously.
    pub fn next(&mut self, wait: Duration) -> Option<Signal> {
        self.take_pending();
        if self.arrived.is_empty() {
            if let Err(error) = self.poll.poll(&mut self.events, Some(wait))
                && error.kind() != io::ErrorKind::Interrupted
            {
                error_limited!(%error, "waiting for signals failed");
            }
            self.take_pending();
        }
        self.arrived.pop_front()
    }

    fn take_pending(&mut self) {
        for number in self.delivery.pending() {
            let signal = match number {
                SIGUSR1 => Signal::DumpStats,
                SIGHUP => Signal::Reload,
                _ => Signal::Terminate,
            };
            self.arrived.push_back(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{queue, thread};

    const LONG: Duration = Duration::from_secs(60);

    fn raise(number: c_int) {
        signal_hook::low_level::raise(number).unwrap();
    }

    /// One test, because signals belong to the whole process.
    #[test]
    fn signals_and_ended_threads_end_the_wait() {
        let mut signals = Signals::install().unwrap();
        for (number, signal) in [
            (SIGTERM, Signal::Terminate),
            (SIGINT, Signal::Terminate),
            (SIGUSR1, Signal::DumpStats),
            (SIGHUP, Signal::Reload),
        ] {
            raise(number);
            assert_eq!(signals.next(LONG), Some(signal));
        }

        raise(SIGUSR1);
        raise(SIGTERM);
        let mut both = [signals.next(LONG), signals.next(LONG)].map(|signal| format!("{signal:?}"));
        both.sort();
        assert_eq!(both, ["Some(DumpStats)", "Some(Terminate)"]);

        assert_eq!(signals.next(Duration::from_millis(1)), None);

        let (ended, over) = queue::bounded_waking("ended", 2, signals.waker());
        let start = Instant::now();
        let handle = thread::spawn("short", &ended, || {}).unwrap();
        while over.is_empty() {
            assert_eq!(signals.next(LONG), None);
            assert!(start.elapsed() < LONG, "the end of a thread did not wake the main thread");
        }
        assert_eq!(over.try_recv().map(|report| report.name).as_deref(), Some("short"));
        handle.join();

        let late = std::thread::scope(|scope| {
            // A thread within the test's scope, so that the signal arrives during the wait.
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                raise(SIGHUP);
            });
            let deadline = Instant::now() + LONG;
            loop {
                let signal = signals.next(LONG);
                if signal.is_some() || Instant::now() >= deadline {
                    break signal;
                }
            }
        });
        assert_eq!(late, Some(Signal::Reload));
    }
}
