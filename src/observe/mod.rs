//! Observability: activity, latencies and health of the daemon; for people, for programs and for Prometheus.
//!
//! Threads write into the [`Registry`]: counters and gauges are atomics, latencies go into a [`Recorder`] that each
//! thread owns and publishes on its tick. Two threads read it: the [`stats_socket`] and the [`admin`] listener.
//! Nothing here delays a token, and no reading changes the values that others read, except an explicit `reset`.
//!
//! No history is kept: a reader computes rates from two readings.

pub mod admin;
mod counters;
mod exchange;
#[cfg(any(test, fuzzing))]
mod fuzzing;
mod health;
mod http;
mod latency;
pub mod logging;
mod outage;
mod process;
mod prometheus;
mod rounds;
mod snapshot;
pub mod stats_socket;
#[cfg(test)]
mod testing;
mod text;

use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

pub use counters::{Counter, Counters, Gauge, Gauges, Reading};
#[cfg(any(test, fuzzing))]
pub(crate) use fuzzing::requests as fuzz_requests;
pub use health::{Health, Lease, LinkReport};
pub use latency::{Distribution, Recorder, Stage, Summary};
pub use outage::Trouble;
pub use process::Process;
pub use rounds::{Round, RoundTimer, SLOW_ROUND, SlowRounds};
pub use snapshot::{QueueReport, Snapshot};

use self::outage::{News, Outages};
use self::rounds::Rounds;
use crate::queue::GaugeReader;
use crate::{info_limited, warn_limited};

/// The version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything that can be observed of a daemon. Shared by all threads as an `Arc`.
pub struct Registry {
    instance: String,
    started: Instant,
    started_at: SystemTime,
    counters: Counters,
    gauges: Gauges,
    health: Health,
    outages: Mutex<Outages>,
    latencies: latency::Shared,
    rounds: Rounds,
    queues: Mutex<Vec<GaugeReader>>,
}

impl Registry {
    /// A registry for the instance with this name, without any values yet.
    #[must_use]
    pub fn new(instance: impl Into<String>) -> Self {
        Self {
            instance: instance.into(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            counters: Counters::default(),
            gauges: Gauges::default(),
            health: Health::default(),
            outages: Mutex::default(),
            latencies: latency::Shared::new(),
            rounds: Rounds::default(),
            queues: Mutex::new(Vec::new()),
        }
    }

    /// The counters: events since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The gauges: current values.
    #[must_use]
    pub fn gauges(&self) -> &Gauges {
        &self.gauges
    }

    /// The health of the daemon.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Records that `role` has found Redis working.
    pub fn redis_works(&self, role: &str, now: Instant) {
        self.health.redis_works(role);
        self.outages.lock().works(role, now);
    }

    /// Records that `role` has failed at Redis, and logs it unless that problem was logged before.
    pub fn redis_fails(&self, role: &str, trouble: Trouble, error: &str, now: Instant) {
        let Trouble { what, fix } = trouble;
        self.health.redis_fails(role, what, error);
        let news = self.outages.lock().fails(role, trouble, now);
        match news {
            Some(News::Wrong) => warn_limited!(connection = role, error, fix, "{what}"),
            Some(News::Lasts { since, failures }) => {
                let minutes = now.saturating_duration_since(since).as_secs() / 60;
                warn_limited!(connection = role, error, fix, minutes, failures, "{what}, still");
            }
            Some(News::Over { .. }) | None => {}
        }
    }

    /// Logs that Redis works again, once that is certain. Must be called regularly.
    pub fn look_for_recovery(&self, now: Instant) {
        let news = self.outages.lock().settle(now);
        if let Some(News::Over { lasted }) = news {
            info_limited!(after_s = seconds(lasted), "Redis works again");
        }
    }

    /// Records that a round of the calling thread's loop has ended: counted if it was slow.
    pub fn note_round(&self, round: Round) {
        self.rounds.note(round);
    }

    /// A recorder for one thread.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        self.latencies.recorder()
    }

    /// Shows a queue from now on, in place of an earlier one with its name.
    pub fn register_queue(&self, queue: GaugeReader) {
        let name = queue.read().name;
        let mut queues = self.queues.lock();
        queues.retain(|other| other.read().name != name);
        queues.push(queue);
    }

    /// Clears the latency histograms, including their maxima. Counters are never reset.
    pub fn reset(&self) {
        self.latencies.reset();
    }

    /// The current state.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let ready = self.health.is_ready();
        let gauges = self.gauges.read();
        let queues: Vec<QueueReport> = self.queues.lock().iter().map(|queue| queue.read().into()).collect();
        let gauged = gauges.iter().filter(|gauge| gauge.name.ends_with("_bytes")).map(|gauge| gauge.value);
        let queued: u64 = queues.iter().filter_map(|queue| queue.bytes).map(|bytes| bytes as u64).sum();
        let held_bytes = queued + gauged.filter_map(|value| u64::try_from(value).ok()).sum::<u64>();
        Snapshot {
            version: VERSION,
            instance: self.instance.clone(),
            uptime_s: seconds(self.started.elapsed()),
            started_at_s: self.started_at.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, seconds),
            ready: ready.is_ok(),
            not_ready: ready.err().unwrap_or_default(),
            draining: self.health.is_draining(),
            lease: self.health.lease(),
            redis: self.health.redis(),
            counters: self.counters.read(),
            gauges,
            queues,
            held_bytes,
            latency_us: self.latencies.read(),
            slow_rounds: self.rounds.read(),
            process: Process::read(),
        }
    }

    /// The current state as text for people.
    #[must_use]
    pub fn render_text(&self) -> String {
        text::render(&self.snapshot())
    }

    /// The current state as one line of JSON; [`Snapshot`] describes it.
    #[must_use]
    pub fn render_json(&self) -> String {
        self.snapshot().to_json()
    }

    /// The latency of every stage as a table of percentiles.
    #[must_use]
    pub fn render_histograms(&self) -> String {
        text::histograms(&self.latencies.read())
    }

    /// The current state in Prometheus' text format 0.0.4.
    #[must_use]
    pub fn render_prometheus(&self) -> String {
        prometheus::render(&self.snapshot())
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// Seconds with millisecond precision.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue;

    #[test]
    fn a_reset_touches_latencies_only() {
        let registry = Registry::new("host-8080");
        registry.counters().entries_read.add(3);
        registry.gauges().connections_open.set(2);
        let mut recorder = registry.recorder();
        recorder.record(Stage::EndToEnd, 1_000);
        recorder.publish();
        let count = |registry: &Registry| registry.snapshot().latency_us[Stage::EndToEnd as usize].1.count();
        assert_eq!(count(&registry), 1);
        registry.reset();
        assert_eq!(count(&registry), 0);
        assert_eq!(
            (registry.counters().entries_read.get(), registry.gauges().connections_open.get()),
            (3, 2)
        );
    }

    #[test]
    fn a_queue_is_shown_once() {
        let registry = Registry::new("host-8080");
        let (old, _old_receiver) = queue::bounded::<u8>("transform-0", 1);
        let (new, _new_receiver) = queue::bounded::<u8>("transform-0", 4);
        new.try_send(1).unwrap();
        registry.register_queue(old.gauge());
        registry.register_queue(new.gauge());
        let queues = registry.snapshot().queues;
        assert_eq!(queues.len(), 1);
        assert_eq!((queues[0].depth, queues[0].capacity), (1, 4));
    }
}
