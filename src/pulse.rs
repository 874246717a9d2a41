//! The pulse of the program's threads, by which a thread that hangs is detected and named.
//!
//! Every thread that [`thread::spawn`](crate::thread::spawn) starts has a pulse. [`beat`] renews it: loops call it
//! once per round, and so do the waits in [`queue`](crate::queue) and in `redis`, which are all bounded. Code that
//! calls into the system for a longer time, such as the lookup of a host's name, announces it by [`expect_silence`].
//! `main` reads [`silences`] and notifies systemd's watchdog only while no thread is silent for too long.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The longest single wait of a thread that is idle: much less than the silence for which a thread counts as stuck.
pub const WAIT_MAX: Duration = Duration::from_millis(500);

/// The time from which times are counted: atomics cannot hold an `Instant`.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
/// The pulses of all running threads.
static PULSES: Mutex<Vec<Arc<Pulse>>> = Mutex::new(Vec::new());

thread_local! {
    static OWN: RefCell<Option<Arc<Pulse>>> = const { RefCell::new(None) };
}

/// One thread's pulse.
#[derive(Debug)]
struct Pulse {
    thread: String,
    /// The last beat, or the later time until which none is expected; in ms since [`EPOCH`].
    beat_ms: AtomicU64,
}

/// How long a thread has not beaten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// The thread's name.
    pub thread: String,
    /// The duration; zero while silence is expected.
    pub lasts: Duration,
}

/// Removes a thread from the list when it ends, however it ends.
#[derive(Debug)]
pub(crate) struct Living(Arc<Pulse>);

impl Drop for Living {
    fn drop(&mut self) {
        PULSES.lock().retain(|pulse| !Arc::ptr_eq(pulse, &self.0));
    }
}

/// Gives the calling thread a pulse until the returned guard is dropped.
pub(crate) fn begin(thread: &str) -> Living {
    let pulse = Arc::new(Pulse { thread: thread.to_owned(), beat_ms: AtomicU64::new(ms_at(Instant::now())) });
    OWN.with_borrow_mut(|own| *own = Some(Arc::clone(&pulse)));
    PULSES.lock().push(Arc::clone(&pulse));
    Living(pulse)
}

/// Renews the pulse of the calling thread, if it has one.
pub fn beat() {
    set_own(Instant::now());
}

/// Announces that the calling thread may be silent for `time`. The next [`beat`] ends that.
pub fn expect_silence(time: Duration) {
    set_own(Instant::now() + time);
}

fn set_own(at: Instant) {
    OWN.with_borrow(|own| {
        if let Some(pulse) = own {
            pulse.beat_ms.store(ms_at(at), Ordering::Relaxed);
        }
    });
}

/// How long each thread has been silent.
#[must_use]
pub fn silences(now: Instant) -> Vec<Silence> {
    let now_ms = ms_at(now);
    let silence = |pulse: &Arc<Pulse>| Silence {
        thread: pulse.thread.clone(),
        lasts: Duration::from_millis(now_ms.saturating_sub(pulse.beat_ms.load(Ordering::Relaxed))),
    };
    PULSES.lock().iter().map(silence).collect()
}

fn ms_at(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*EPOCH).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue;
    use crate::thread;

    fn silence_of(name: &str, now: Instant) -> Option<Duration> {
        silences(now).into_iter().find(|silence| silence.thread == name).map(|silence| silence.lasts)
    }

    #[test]
    fn a_thread_that_hangs_is_found_and_one_that_waits_in_a_queue_is_not() {
        let (ended, over) = queue::bounded("ended", 4);
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (stop, stopped) = queue::bounded::<()>("stop", 1);
        let hanging = thread::spawn("pulse-hanging", &ended, move || {
            let _ = held.recv();
        })
        .unwrap();
        let waiting = thread::spawn("pulse-waiting", &ended, move || {
            while stopped.recv_timeout(Duration::from_millis(1)).is_none() {}
        })
        .unwrap();
        let excused = thread::spawn("pulse-excused", &ended, || {
            expect_silence(Duration::from_secs(3600));
            std::thread::sleep(Duration::from_millis(300));
        })
        .unwrap();
        let long = Duration::from_millis(200);
        while silence_of("pulse-hanging", Instant::now()).is_none_or(|lasts| lasts < long) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(silence_of("pulse-excused", Instant::now()).unwrap_or_default().is_zero());
        while silence_of("pulse-waiting", Instant::now()).is_none_or(|lasts| lasts >= long) {
            std::thread::sleep(Duration::from_millis(1));
        }
        release.send(()).unwrap();
        stop.try_send(()).unwrap();
        for handle in [hanging, waiting, excused] {
            handle.join();
        }
        assert_eq!(over.len(), 3);
        assert_eq!(silence_of("pulse-hanging", Instant::now()), None, "who has ended is not silent");
    }
}
