//! What the load is, and what its threads tell each other while it runs.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::token::now_us;

/// The longest time that a histogram tells from longer ones, µs.
pub(crate) const LATENESS_US_MAX: u64 = 60_000_000;

/// How fast tokens are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// Tokens a second into each stream.
    PerSecond(f64),
    /// As fast as Redis takes them.
    Flood,
    /// Not at all, but for one token per stream at the beginning and one at the end.
    Quiet,
}

/// How often those who wait look whether the run failed.
const LOOK: Duration = Duration::from_millis(20);

/// One load.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// How many streams there are.
    pub(crate) streams: usize,
    /// How many clients; client `i` reads stream `i % streams`.
    pub(crate) clients: usize,
    /// How fast tokens come.
    pub(crate) pace: Pace,
    /// How long the load runs before it is measured.
    pub(crate) warm_up: Duration,
    /// How long it is measured.
    pub(crate) duration: Duration,
}

/// The state that the producer, the clients and the conductor of a run share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Clients whose connection is upgraded.
    pub(crate) connected: AtomicUsize,
    /// Clients that have received something.
    pub(crate) started: AtomicUsize,
    /// Tokens received by all clients.
    pub(crate) delivered: AtomicU64,
    /// The producer may follow its schedule.
    pub(crate) go: AtomicBool,
    /// What each stream holds in the end, once that is known.
    pub(crate) totals: OnceLock<Vec<u64>>,
    measure_from_us: AtomicU64,
    measure_to_us: AtomicU64,
    stop: AtomicBool,
    problem: Mutex<Option<String>>,
    interrupted: Arc<AtomicBool>,
    deadline: Instant,
    give_up_at: OnceLock<Instant>,
}

impl Shared {
    /// The state at the start of a run that is given up after `limit`, or once it is `interrupted`.
    pub(crate) fn new(limit: Duration, interrupted: Arc<AtomicBool>) -> Self {
        Self {
            connected: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
            delivered: AtomicU64::new(0),
            go: AtomicBool::new(false),
            totals: OnceLock::new(),
            measure_from_us: AtomicU64::new(u64::MAX),
            measure_to_us: AtomicU64::new(u64::MAX),
            stop: AtomicBool::new(false),
            problem: Mutex::new(None),
            interrupted,
            deadline: Instant::now() + limit,
            give_up_at: OnceLock::new(),
        }
    }

    /// Tokens written from now on count.
    pub(crate) fn measure(&self) {
        self.measure_from_us.store(now_us(), Ordering::Release);
    }

    /// Whether tokens count already.
    pub(crate) fn measuring(&self) -> bool {
        self.measure_from_us.load(Ordering::Acquire) != u64::MAX
    }

    /// The producer has to stop; what it writes from now on does not count.
    pub(crate) fn stop(&self) {
        self.measure_to_us.store(now_us(), Ordering::Release);
        self.stop.store(true, Ordering::Release);
    }

    /// Whether the producer has to stop.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.failed()
    }

    /// When counting tokens begins and ends, µs on the bench's clock.
    pub(crate) fn window_us(&self) -> std::ops::Range<u64> {
        self.measure_from_us.load(Ordering::Acquire)..self.measure_to_us.load(Ordering::Acquire)
    }

    /// Ends the run with a reason; the first one is kept.
    pub(crate) fn fail(&self, why: impl Into<String>) {
        self.problem.lock().get_or_insert_with(|| why.into());
    }

    /// Why the run ended early, if it did.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.interrupted.load(Ordering::Acquire) {
            self.fail("interrupted");
        }
        self.problem.lock().clone()
    }

    /// Whether the run has to end early.
    pub(crate) fn failed(&self) -> bool {
        self.interrupted.load(Ordering::Acquire) || self.problem.lock().is_some()
    }

    /// Lets time pass, less when the run fails.
    pub(crate) fn pass(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.failed() && Instant::now() < end {
            std::thread::sleep(end.saturating_duration_since(Instant::now()).min(LOOK));
        }
    }

    /// What has not come after this time does not count as delivered any more.
    pub(crate) fn give_up_after(&self, time: Duration) {
        self.give_up_at.get_or_init(|| Instant::now() + time);
    }

    /// Whether that time is over.
    pub(crate) fn is_overdue(&self) -> bool {
        self.give_up_at.get().is_some_and(|at| Instant::now() > *at)
    }

    /// Waits until `done`; false when the run failed or took too long before.
    pub(crate) fn wait_for(&self, done: impl Fn() -> bool) -> bool {
        while !done() {
            if self.failed() {
                return false;
            }
            if Instant::now() > self.deadline {
                self.fail(format!(
                    "the run took too long: {} connected, {} started",
                    self.connected.load(Ordering::Acquire),
                    self.started.load(Ordering::Acquire),
                ));
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}
