//! The definition of a load, and the state that its threads share while it runs.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::daemon::thread_cpu;
use crate::token::now_us;

/// The longest time that a histogram records exactly, µs.
pub(crate) const LATENESS_US_MAX: u64 = 60_000_000;

/// How fast tokens are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// Tokens a second into each stream.
    PerSecond(f64),
    /// As with `PerSecond`, but in steps, as model servers write: they emit a token for each sequence of a batch at
    /// once.
    Steps {
        /// Tokens a second into each stream.
        per_second: f64,
        /// The length of a step: tokens due within it are written at once.
        every: Duration,
    },
    /// As fast as Redis takes them.
    Flood,
    /// No tokens except one per stream at the beginning and one at the end.
    Quiet,
    /// No tokens during the run: this many are in each stream before the clients connect.
    Stored(u64),
    /// One token per stream and nothing before it: the streams are created one after another during the measured
    /// time.
    Births {
        /// Whether the producer announces the streams too.
        announced: bool,
    },
}

/// How frames are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// One message per frame.
    WebSocket,
    /// One event per frame.
    Sse,
}

/// The behaviour of a load's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// They stay connected and read what arrives.
    Staying,
    /// They disconnect without a closing frame, and all reconnect at once with the last ids that they received.
    Returning,
    /// They all connect at once to long streams, as if they had received nearly everything in an earlier connection.
    Late,
    /// Each goes when its stream has ended.
    Passing,
    /// They read slowly from the time when they are to leave until the time when they may come back.
    Slow,
}

/// How often waiting threads check whether the run failed.
const LOOK: Duration = Duration::from_millis(20);

/// One load.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The number of its first stream: loads that run together use different streams.
    pub(crate) first_stream: usize,
    /// How many streams there are.
    pub(crate) streams: usize,
    /// How many clients; client `i` reads the `i % streams`th stream.
    pub(crate) clients: usize,
    /// How they are connected.
    pub(crate) transport: Transport,
    /// Their behaviour.
    pub(crate) manner: Manner,
    /// How fast tokens are written.
    pub(crate) pace: Pace,
    /// How many tokens each stream gets at once, before that pace, while the clients are away or slow.
    pub(crate) backlog: u64,
    /// How long the load runs before the measurement.
    pub(crate) warm_up: Duration,
    /// How long the measurement takes.
    pub(crate) duration: Duration,
    /// The length of the parts of the measured time whose latencies are kept apart, if any.
    pub(crate) sample_every: Option<Duration>,
}

impl Plan {
    /// How many tokens all clients together are due in a second, if the load has a rate.
    pub(crate) fn offered_per_second(&self) -> Option<f64> {
        match self.pace {
            Pace::PerSecond(rate) | Pace::Steps { per_second: rate, .. } => Some(rate * self.clients as f64),
            Pace::Flood | Pace::Quiet | Pace::Stored(_) | Pace::Births { .. } => None,
        }
    }
}

/// A time span; only tokens written in it count.
#[derive(Debug)]
pub(crate) struct Span {
    from_us: AtomicU64,
    to_us: AtomicU64,
}

impl Span {
    const NEVER: u64 = u64::MAX;

    const fn new() -> Self {
        Self { from_us: AtomicU64::new(Self::NEVER), to_us: AtomicU64::new(Self::NEVER) }
    }

    /// Begins the span: tokens written from now on count.
    pub(crate) fn begin(&self) {
        self.from_us.store(now_us(), Ordering::Release);
    }

    /// Ends the span: tokens written from now on do not count. Only the first call has an effect.
    pub(crate) fn end(&self) {
        let (set, read) = (Ordering::AcqRel, Ordering::Acquire);
        // Fails if the span has ended already, which has the same effect.
        self.to_us.compare_exchange(Self::NEVER, now_us(), set, read).ok();
    }

    /// When it begins and ends, µs on the bench's clock.
    pub(crate) fn us(&self) -> Range<u64> {
        self.from_us.load(Ordering::Acquire)..self.to_us.load(Ordering::Acquire)
    }

    fn has_begun(&self) -> bool {
        self.us().start != Self::NEVER
    }

    fn has_ended(&self) -> bool {
        self.us().end != Self::NEVER
    }
}

/// The state that the producer, the clients and the conductor of a load share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// How many clients have an upgraded connection.
    pub(crate) connected: AtomicUsize,
    /// How many clients have received something.
    pub(crate) started: AtomicUsize,
    /// Tokens received by all clients.
    pub(crate) delivered: AtomicU64,
    /// How many clients have reconnected and received everything written before that.
    pub(crate) caught_up: AtomicUsize,
    /// Set when clients may leave or become slow, if that is their manner.
    pub(crate) leave: AtomicBool,
    /// Set when they may come back, or read at full speed.
    pub(crate) back: AtomicBool,
    /// Set when the tokens that must exist before the clients connect or reconnect have been written.
    pub(crate) stored: AtomicBool,
    /// Set when the producer may follow its schedule, and clients of stored tokens may connect.
    pub(crate) go: AtomicBool,
    /// How many tokens of each stream have been written.
    pub(crate) written: Vec<AtomicU64>,
    /// The measured time.
    pub(crate) measured: Span,
    /// The time in which the load is measured alone, before another one starts.
    pub(crate) alone: Span,
    /// How many tokens each stream holds at the end, once this is known.
    pub(crate) totals: OnceLock<Vec<u64>>,
    stop: AtomicBool,
    problem: Arc<Mutex<Option<String>>>,
    interrupted: Arc<AtomicBool>,
    deadline: Instant,
    give_up_at: OnceLock<Instant>,
}

impl Shared {
    /// The state at the start of a run that ends early after `limit`, or when `interrupted` is set.
    pub(crate) fn new(streams: usize, limit: Duration, interrupted: Arc<AtomicBool>) -> Self {
        Self {
            connected: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
            delivered: AtomicU64::new(0),
            caught_up: AtomicUsize::new(0),
            leave: AtomicBool::new(false),
            back: AtomicBool::new(false),
            stored: AtomicBool::new(false),
            go: AtomicBool::new(false),
            written: (0..streams).map(|_| AtomicU64::new(0)).collect(),
            measured: Span::new(),
            alone: Span::new(),
            totals: OnceLock::new(),
            stop: AtomicBool::new(false),
            problem: Arc::default(),
            interrupted,
            deadline: Instant::now() + limit,
            give_up_at: OnceLock::new(),
        }
    }

    /// The state of another load in the same run: if one fails, both fail.
    pub(crate) fn beside(&self, streams: usize) -> Self {
        let limit = self.deadline.saturating_duration_since(Instant::now());
        let beside = Self::new(streams, limit, Arc::clone(&self.interrupted));
        Self { problem: Arc::clone(&self.problem), ..beside }
    }

    /// Requests the producer to stop; tokens written from now on do not count.
    pub(crate) fn stop(&self) {
        self.measured.end();
        self.stop.store(true, Ordering::Release);
    }

    /// Whether the producer has to stop.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.failed()
    }

    /// Ends the run with a reason; only the first reason is kept.
    pub(crate) fn fail(&self, why: impl Into<String>) {
        self.problem.lock().get_or_insert_with(|| why.into());
    }

    /// The reason why the run ended early, if it did.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.interrupted.load(Ordering::Acquire) {
            self.fail("interrupted");
        }
        self.problem.lock().clone()
    }

    /// Whether the run has failed.
    pub(crate) fn failed(&self) -> bool {
        self.interrupted.load(Ordering::Acquire) || self.problem.lock().is_some()
    }

    /// Waits for `time`, or until the run fails.
    pub(crate) fn pass(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.failed() && Instant::now() < end {
            std::thread::sleep(end.saturating_duration_since(Instant::now()).min(LOOK));
        }
    }

    /// Sets how long clients still wait for missing tokens; later ones count as lost.
    pub(crate) fn give_up_after(&self, time: Duration) {
        self.give_up_at.get_or_init(|| Instant::now() + time);
    }

    /// Whether that time has passed.
    pub(crate) fn is_overdue(&self) -> bool {
        self.give_up_at.get().is_some_and(|at| Instant::now() > *at)
    }

    /// Waits until `done`. Returns false if the run failed or took too long first.
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

    /// Waits until `done`, or returns the reason why the run failed.
    pub(crate) fn until(&self, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        if self.wait_for(|| done(self)) { Ok(()) } else { Err(self.problem().unwrap_or_default()) }
    }
}

/// A thread's processor time within the measured time.
#[derive(Default)]
pub(crate) struct MeasuredCpu {
    from: Option<Duration>,
    used: Option<Duration>,
}

impl MeasuredCpu {
    /// Checks whether the measured time has begun or ended. The measured thread calls this often.
    pub(crate) fn look(&mut self, shared: &Shared) -> std::io::Result<()> {
        match self.from {
            None if shared.measured.has_begun() => self.from = Some(thread_cpu()?),
            Some(from) if self.used.is_none() && shared.measured.has_ended() => {
                self.used = Some(thread_cpu()?.saturating_sub(from));
            }
            _ => {}
        }
        Ok(())
    }

    /// The processor time used; zero unless the measured time has ended.
    pub(crate) fn used(&self) -> Duration {
        self.used.unwrap_or_default()
    }
}
