//! The life of the process: start, ready, wait, drain in data order, join.
//!
//! `main` sleeps until a signal arrives, a thread ends, or systemd's watchdog is due. A thread that ends by itself,
//! by a panic or too early, ends the daemon in order and with a failure: it never continues in part. Draining follows
//! the data: readers stop reading, their entries pass through, delivery threads notify their clients, flush and
//! close, readers send the last acknowledgements, the watcher releases the lease. All of it happens within
//! `shutdown.grace`; a second signal ends it at once.

pub mod capacity;
pub mod limits;
mod listeners;
pub mod signals;
pub mod systemd;
mod threads;
mod vitals;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::limits::LimitsError;
use self::listeners::Listeners;
use self::signals::{Signal, Signals};
use self::systemd::{Notifier, PassedError};
use self::threads::{Shared, Stops, Threads};
use self::vitals::Vitals;
use crate::config::Config;
use crate::log_limit;
use crate::observe::Registry;
use crate::pulse::{self, Silence};
use crate::queue::{self, Receiver};
use crate::thread::{Ended, Outcome, join_finished};
use crate::watcher::{ClaimError, Fatal, Identity};
use crate::{error_limited, info_limited};

/// The longest wait of main between two checks.
const LOOK: Duration = Duration::from_millis(500);
/// How often systemd's status line is updated.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// After this time the daemon is ready even if the first attempt at Redis is not complete.
const READY_PATIENCE: Duration = Duration::from_secs(10);
/// How long readers may take to stop when draining begins, and their entries to pass through.
const PASS_THROUGH: Duration = Duration::from_secs(1);
/// The part of the grace that is reserved for acknowledgements, the lease and joining once the clients are gone: a
/// quarter of the grace within these bounds. The lower bound suffices for every thread to check several times whether
/// it has to end.
const WIND_UP: Duration = Duration::from_secs(3);
const WIND_UP_MIN: Duration = Duration::from_millis(500);

/// Why the daemon does not run, or has ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A socket cannot be used.
    #[error("{key} cannot be used: {why}")]
    Listen {
        /// The setting.
        key: &'static str,
        /// The reason, with the system's error.
        why: String,
    },
    /// A socket passed by systemd cannot be used.
    #[error(transparent)]
    Passed(#[from] PassedError),
    /// The limits of the process are too low.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The address or TLS settings of Redis cannot be used.
    #[error("{0}")]
    Redis(String),
    /// Another daemon of this host has this instance id.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Redis shows that another daemon has this instance id.
    #[error("{0}")]
    LeaseTaken(String),
    /// The operating system refuses something.
    #[error("the operating system refuses: {0}")]
    System(#[from] std::io::Error),
    /// A thread ended that must not end.
    #[error("thread {0} ended: the daemon cannot continue without it")]
    ThreadEnded(String),
    /// A second signal came while draining.
    #[error("stopped at once by a second signal")]
    Interrupted,
    /// Threads did not end in time.
    #[error("not ended within shutdown.grace: {0}")]
    Late(String),
}

impl DaemonError {
    /// The exit status: 78 if the configuration has to be changed, otherwise 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Passed(_)
            | Self::Redis(_)
            | Self::Claim(ClaimError::AlreadyRunning { .. })
            | Self::LeaseTaken(_) => 78,
            _ => 1,
        }
    }
}

/// Runs the daemon until it has to stop.
///
/// # Errors
/// If it cannot start, or ends for another reason than a signal.
pub fn run(config: Config) -> Result<(), DaemonError> {
    let signals = Signals::install()?;
    let notifier = Notifier::from_environment();
    limits::prepare_memory();
    let max_connections = limits::prepare_descriptors(config.client.max_connections)?;
    let identity = Identity::claim(&config)?;
    let listeners = Listeners::open(&config)?;
    let (public, admin) = (listeners.public.socket.local_addr()?, listeners.admin.local_addr()?);
    let registry = Arc::new(Registry::new(config.service.instance.clone()));
    let (ended_sender, ended) = queue::bounded_waking("ended", threads::count(&config) + 1, signals.waker());
    let (fatal, stops) = (Fatal::new(signals.waker()), Stops::default());
    let shared = Shared {
        config: Arc::new(config),
        registry: Arc::clone(&registry),
        max_connections,
        ended: ended_sender,
        fatal: fatal.clone(),
        identity,
        stops: stops.clone(),
    };
    let config = Arc::clone(&shared.config);
    let threads = threads::start(shared, listeners)?;
    tracing::info!(%public, %admin, instance = config.service.instance, "listening");
    let vitals = Vitals::new(notifier.watchdog_patience(), Instant::now());
    let main = Main { config, registry, signals, notifier, ended, fatal, stops, vitals };
    main.live(threads)
}

/// The main thread's state.
struct Main {
    config: Arc<Config>,
    registry: Arc<Registry>,
    signals: Signals,
    notifier: Notifier,
    ended: Receiver<Ended>,
    fatal: Fatal,
    stops: Stops,
    vitals: Vitals,
}

impl Main {
    fn live(mut self, threads: Threads) -> Result<(), DaemonError> {
        let mut reason = self.wait();
        self.notifier.stopping();
        self.registry.health().set_draining();
        if let Err(error) = &reason {
            tracing::error!(%error, "the daemon ends");
        }
        let drained = self.drain(threads);
        if reason.is_ok() {
            reason = drained;
        }
        reason
    }

    /// Waits for the end, which is in order (`Ok`) or not.
    fn wait(&mut self) -> Result<(), DaemonError> {
        let started = Instant::now();
        let (mut ready, mut status_at, mut left_out_at) = (false, started, started);
        let look = self.notifier.watchdog_interval().map_or(LOOK, |interval| interval.min(LOOK));
        loop {
            self.feed_watchdog();
            if !ready
                && (self.registry.health().is_first_attempt_over() || started.elapsed() >= READY_PATIENCE)
            {
                ready = true;
                self.notifier.ready(&self.status());
            }
            if ready && status_at.elapsed() >= STATUS_INTERVAL {
                status_at = Instant::now();
                self.notifier.status(&self.status());
            }
            self.registry.look_for_recovery(Instant::now());
            if left_out_at.elapsed() >= log_limit::INTERVAL {
                left_out_at = Instant::now();
                log_limit::log_left_out(left_out_at);
            }
            let wait = if ready { look } else { look.min(Duration::from_millis(20)) };
            match self.signals.next(wait) {
                Some(Signal::Terminate) => {
                    tracing::info!("stopping");
                    return Ok(());
                }
                Some(Signal::DumpStats) => tracing::info!(stats = self.registry.render_json(), "stats"),
                Some(Signal::Reload) => {
                    tracing::warn!(
                        "reloading is not available in this version: restart to change the configuration"
                    );
                }
                None => {}
            }
            if let Some(message) = self.fatal.take() {
                return Err(DaemonError::LeaseTaken(message));
            }
            if let Some(Ended { name, outcome }) = self.ended.try_recv() {
                tracing::error!(thread = name, panicked = outcome == Outcome::Panicked, "a thread ended");
                return Err(DaemonError::ThreadEnded(name));
            }
        }
    }

    /// Notifies systemd's watchdog, if every thread is making progress.
    fn feed_watchdog(&mut self) {
        let now = Instant::now();
        let news = self.vitals.look(pulse::silences(now), now);
        for news in &news {
            match news {
                vitals::News::Stuck(Silence { thread, lasts }) => error_limited!(
                    thread,
                    silent_s = lasts.as_secs(),
                    "a thread hangs: systemd's watchdog is not notified until it continues"
                ),
                vitals::News::Recovered(thread) => info_limited!(thread, "a thread that hung continues"),
            }
        }
        if !news.is_empty() {
            self.registry.health().set_stuck(self.vitals.stuck().map(str::to_owned).collect());
        }
        if self.vitals.is_well() {
            self.notifier.watchdog();
        }
    }

    fn status(&self) -> String {
        let gauges = self.registry.gauges();
        let (connections, streams) = (gauges.connections_open.get(), gauges.streams_live.get());
        match self.registry.health().is_ready() {
            Ok(()) => format!("{connections} connections, {streams} live streams"),
            Err(reasons) => format!("not ready: {}", reasons.join(", ")),
        }
    }

    /// Ends everything in data order, within `shutdown.grace`.
    fn drain(&mut self, threads: Threads) -> Result<(), DaemonError> {
        let grace = self.config.shutdown.grace;
        let end = Instant::now() + grace;
        let wind_up = (grace / 4).clamp(WIND_UP_MIN.min(grace / 2), WIND_UP);
        let is_finished = crate::thread::Handle::is_finished;
        let Threads { deliveries, under_way, middle, readers, rest } = threads;
        // A Redis that does not reply delays no thread beyond the time for its part, and threads that gave up on it
        // have time left to end even if they have to wait for a processor.
        self.stops.front_waits.set(end - wind_up * 5 / 8);
        self.stops.rest_waits.set(end - wind_up / 4);
        self.stops.reading.request();
        self.interruptible(Instant::now() + PASS_THROUGH.min(grace / 5), || {
            Arc::strong_count(&under_way) == 1
        })?;
        self.stops.draining.request();
        self.interruptible(end - wind_up, || deliveries.iter().all(is_finished))?;
        self.stops.delivering.request();
        self.stops.acknowledging.request();
        let front: Vec<_> = deliveries.into_iter().chain(middle).chain(readers).collect();
        self.interruptible(end - wind_up / 2, || front.iter().all(is_finished))?;
        self.stops.rest.request();
        self.interruptible(end, || front.iter().chain(&rest).all(is_finished))?;
        let late = join_finished(front.into_iter().chain(rest).collect());
        while let Some(Ended { name, outcome }) = self.ended.try_recv() {
            if outcome == Outcome::Panicked {
                return Err(DaemonError::ThreadEnded(name));
            }
        }
        if late.is_empty() { Ok(()) } else { Err(DaemonError::Late(late.join(", "))) }
    }

    /// Waits until `done` or `deadline`. A second signal stops everything at once.
    fn interruptible(&mut self, deadline: Instant, done: impl Fn() -> bool) -> Result<(), DaemonError> {
        while !done() && Instant::now() < deadline {
            self.feed_watchdog();
            if self.signals.next(Duration::from_millis(10)) == Some(Signal::Terminate) {
                self.stops.all();
                return Err(DaemonError::Interrupted);
            }
        }
        Ok(())
    }
}
