//! The environment of every run: the processes, a load with its two threads, and the measurements at the start and
//! the end of the measured time.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::bare;
use crate::clients;
use crate::daemon::Process;
use crate::load::{Plan, Shared};
use crate::producer::{self, Produced};
use crate::publisher::Feed;
use crate::run::{Latency, Run, per, percent};
use crate::seen::Seen;
use crate::server::{Kind, Server};

/// Errors are reported only, so their types do not matter.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long to wait after the start, so that memory allocated at the start is not counted for the connections.
const REST: Duration = Duration::from_millis(300);
/// The same for the smoke size, in which only correctness counts.
const REST_SMOKE: Duration = Duration::from_millis(10);

/// How long a peer may take to deliver everything after the producer has stopped. A peer that falls behind would take
/// minutes.
const PEER_DRAIN: Duration = Duration::from_secs(5);
/// A server to which tokens are published delays the producer when it falls behind. Above this lateness it counts as
/// behind.
const PUBLISHED_LATE_MS_MAX: f64 = 100.0;

/// The processes of a run. They end in the order of the fields: Redis ends after its readers.
pub(crate) struct Stage {
    /// The kind of server.
    who: Server,
    /// Its process; `None` if there are no clients and a thread of the bench reads Redis.
    pub(crate) server: Option<Process>,
    /// The run's own Redis.
    pub(crate) redis: Process,
    /// The server's private memory before any client connected.
    pub(crate) empty_bytes: u64,
    /// Whether the daemon acknowledges the entries that it delivers.
    acks: bool,
}

impl Stage {
    /// Starts the processes; `settings` are the daemon's.
    pub(crate) fn set(who: Server, settings: &[String], smoke: bool) -> Result<Self> {
        let redis = Process::redis()?;
        let server = who.start(redis.address, settings)?;
        std::thread::sleep(if smoke { REST_SMOKE } else { REST });
        let acks = settings.iter().all(|setting| setting != "delivery.ack=none");
        let mut stage = Self { who, server, redis, empty_bytes: 0, acks };
        stage.empty_bytes = stage.server_bytes()?;
        Ok(stage)
    }

    /// The server's private memory.
    pub(crate) fn server_bytes(&self) -> Result<u64> {
        self.server.as_ref().map_or(Ok(0), Process::private_bytes)
    }

    /// How tokens reach the server, and the address at which it would take them.
    fn feed(&self) -> (Feed, SocketAddr) {
        let taker = self.server.as_ref().unwrap_or(&self.redis);
        (self.who.feed(), taker.producers)
    }

    fn server_cpu(&self) -> Result<Duration> {
        self.server.as_ref().map_or(Ok(Duration::ZERO), Process::cpu)
    }
}

/// A running load: a thread that writes, and a thread of clients or of the bare reader instead.
pub(crate) struct Load<'scope> {
    stage: &'scope Stage,
    shared: &'scope Shared,
    readers: ScopedJoinHandle<'scope, Result<Seen>>,
    producer: ScopedJoinHandle<'scope, Result<Produced>>,
}

impl<'scope> Load<'scope> {
    /// Starts to connect the clients; `shared` controls what happens next.
    pub(crate) fn begin(
        scope: &'scope Scope<'scope, '_>,
        stage: &'scope Stage,
        plan: &'scope Plan,
        shared: &'scope Shared,
    ) -> Result<Self> {
        let readers = Builder::new().name("readers".into()).spawn_scoped(scope, || {
            match &stage.server {
                Some(server) => clients::run(server.address, stage.who.dialect(), plan, shared),
                None => bare::run(stage.redis.address, stage.acks, plan, shared),
            }
            .inspect_err(|error| shared.fail(error.to_string()))
        })?;
        let producer = Builder::new().name("producer".into()).spawn_scoped(scope, || {
            producer::run(stage.redis.address, stage.feed(), plan, shared)
                .inspect_err(|error| shared.fail(error.to_string()))
        })?;
        Ok(Self { stage, shared, readers, producer })
    }

    /// Stops writing, lets the clients read everything available, and returns the results.
    pub(crate) fn end(self) -> Result<(Seen, Produced)> {
        self.shared.stop();
        let produced = self.producer.join().map_err(|_| "the producer panicked")??;
        if self.stage.who.kind() == Kind::Peer {
            self.shared.give_up_after(PEER_DRAIN);
        }
        self.shared.totals.get_or_init(|| produced.totals.clone());
        let seen = self.readers.join().map_err(|_| "the clients panicked")??;
        Ok((seen, produced))
    }
}

/// Readings over the measured time: tokens delivered, processor time and memory.
pub(crate) struct Window {
    /// Whether tokens were published to the server.
    published: bool,
    wall: Duration,
    delivered: u64,
    server_cpu: Duration,
    redis_cpu: Duration,
    /// The server's private memory at the end.
    pub(crate) private_bytes: u64,
}

impl Window {
    /// Measures a load while `pass` runs.
    pub(crate) fn around<E: Into<Box<dyn Error + Send + Sync>>>(
        stage: &Stage,
        shared: &Shared,
        pass: impl FnOnce() -> std::result::Result<(), E>,
    ) -> Result<Self> {
        let delivered = shared.delivered.load(Ordering::Acquire);
        let (server_cpu, redis_cpu, from) = (stage.server_cpu()?, stage.redis.cpu()?, Instant::now());
        shared.measured.begin();
        pass().map_err(Into::into)?;
        Ok(Self {
            published: stage.who.feed().is_published(),
            delivered: shared.delivered.load(Ordering::Acquire) - delivered,
            server_cpu: stage.server_cpu()?.saturating_sub(server_cpu),
            redis_cpu: stage.redis.cpu()?.saturating_sub(redis_cpu),
            wall: from.elapsed(),
            private_bytes: stage.server_bytes()?,
        })
    }

    /// Processor time in percent of a core over the window.
    pub(crate) fn percent(&self, cpu: Duration) -> f64 {
        percent(cpu, self.wall)
    }

    /// How many of something there were a second over the window.
    pub(crate) fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.wall.as_secs_f64()
    }

    /// The result of a load within the window.
    pub(crate) fn run(&self, seen: &Seen, produced: &Produced) -> Run {
        let late_ms_p99 = produced.late_us.value_at_quantile(0.99) as f64 / 1e3;
        let held: u64 = produced.totals.iter().sum();
        let mut problems = seen.surprises.clone();
        if seen.received == 0 || held == 0 {
            problems.push("nothing was delivered".into());
        }
        Run {
            delivered: self.delivered,
            delivered_per_second: self.per_second(self.delivered),
            tokens_per_frame: seen.received as f64 / (seen.frames.max(1)) as f64,
            latency_ms: Latency::of(&seen.latency_us),
            server_cpu_us: per(self.server_cpu, self.delivered),
            redis_cpu_us: per(self.redis_cpu, self.delivered),
            server_cpu_percent: percent(self.server_cpu, self.wall),
            redis_cpu_percent: percent(self.redis_cpu, self.wall),
            producer_cpu_percent: percent(produced.cpu, self.wall),
            clients_cpu_percent: percent(seen.cpu, self.wall),
            producer_late_ms_p99: late_ms_p99,
            lost: seen.lost,
            repeated: seen.repeated,
            reordered: seen.reordered,
            behind: seen.behind || (self.published && late_ms_p99 > PUBLISHED_LATE_MS_MAX),
            problems,
            ..Run::default()
        }
    }
}
