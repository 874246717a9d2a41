//! The scenarios, and one run of one of them against one server.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::clients::{self, Seen};
use crate::daemon::Process;
use crate::load::{Pace, Plan, Shared};
use crate::producer::{self, Produced};
use crate::report::{Latency, Run, per, percent};
use crate::server::{Kind, Server};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long connecting, warming up and draining may take together, beside the measured time.
const OVERHEAD: Duration = Duration::from_secs(90);
/// How long a peer may take to deliver what has been written when the producer stops. One that falls behind
/// would take minutes.
const PEER_DRAIN: Duration = Duration::from_secs(5);
/// A server that tokens are published to slows the producer down when it falls behind: then it is late.
const PUBLISHED_LATE_MS_MAX: f64 = 100.0;

/// A load with a name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    /// The name on the command line and in reports.
    pub(crate) name: &'static str,
    /// What it stands for.
    pub(crate) what: &'static str,
    streams: usize,
    clients: usize,
    pace: Pace,
    /// Streams and clients of the smoke size.
    smoke: (usize, usize),
    /// Whether a floor that keeps a connection to Redis per stream can take part.
    blocking: bool,
    /// Whether peers take part.
    peers: bool,
}

const PLAIN: Scenario = Scenario {
    name: "",
    what: "",
    streams: 1,
    clients: 1,
    pace: Pace::Quiet,
    smoke: (1, 1),
    blocking: true,
    peers: false,
};

/// Of those in which tokens are read as they come.
const LIVE: Scenario = Scenario { peers: true, ..PLAIN };

/// Every scenario.
pub(crate) const ALL: &[Scenario] = &[
    Scenario { name: "lone", what: "1 stream x 1 client, 100/s", pace: Pace::PerSecond(100.0), ..LIVE },
    Scenario {
        name: "fan1",
        what: "200 streams x 1 client, 50/s each",
        streams: 200,
        clients: 200,
        pace: Pace::PerSecond(50.0),
        smoke: (20, 20),
        ..LIVE
    },
    Scenario {
        name: "fan1k",
        what: "1,000 streams x 1 client, 20/s each",
        streams: 1_000,
        clients: 1_000,
        pace: Pace::PerSecond(20.0),
        smoke: (60, 60),
        ..LIVE
    },
    Scenario {
        name: "hot",
        what: "1 stream x 1,000 clients, 50/s",
        clients: 1_000,
        pace: Pace::PerSecond(50.0),
        smoke: (1, 40),
        ..LIVE
    },
    Scenario {
        name: "flood",
        what: "64 streams x 1 client, as fast as it goes",
        streams: 64,
        clients: 64,
        pace: Pace::Flood,
        smoke: (8, 8),
        ..LIVE
    },
    Scenario {
        name: "idle",
        what: "10,000 connections, 100 to each of 100 quiet streams",
        streams: 100,
        clients: 10_000,
        smoke: (10, 100),
        ..LIVE
    },
    Scenario {
        name: "idle-own",
        what: "10,000 connections, each to a quiet stream of its own",
        streams: 10_000,
        clients: 10_000,
        smoke: (100, 100),
        // A connection to Redis per stream would take more descriptors than a process has.
        blocking: false,
        ..PLAIN
    },
];

/// How every run is done.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Small sizes; only correctness counts.
    pub(crate) smoke: bool,
    /// How long each run is measured.
    pub(crate) duration: Duration,
    /// Set when the bench has to end.
    pub(crate) interrupted: Arc<AtomicBool>,
    /// `--set` of the daemon.
    pub(crate) daemon: Vec<String>,
}

impl Scenario {
    /// Whether a server takes part.
    pub(crate) fn takes(&self, server: Server) -> bool {
        match server {
            Server::Blocking => self.blocking,
            _ => self.peers || server.kind() != Kind::Peer,
        }
    }

    /// One client for each of `streams`, which get `per_second` tokens in all.
    pub(crate) fn even(name: &'static str, streams: u32, per_second: u32) -> Self {
        let size = streams as usize;
        let pace = Pace::PerSecond(f64::from(per_second) / f64::from(streams));
        Self { name, streams: size, clients: size, pace, smoke: (size, size), ..PLAIN }
    }

    fn plan(&self, settings: &Settings) -> Plan {
        let (streams, clients) = if settings.smoke { self.smoke } else { (self.streams, self.clients) };
        let warm_up = settings.duration.min(Duration::from_secs(1));
        Plan { streams, clients, pace: self.pace, warm_up, duration: settings.duration }
    }

    /// One run against one server, each with a Redis of its own.
    pub(crate) fn run(&self, server: Server, round: usize, settings: &Settings) -> Result<Run> {
        let plan = self.plan(settings);
        let redis = Process::redis()?;
        let process = server.start(redis.address, &settings.daemon)?;
        let shared = Shared::new(OVERHEAD + settings.duration, Arc::clone(&settings.interrupted));
        // What a process allocates once it is running is not its connections'.
        std::thread::sleep(Duration::from_millis(if settings.smoke { 10 } else { 300 }));
        let empty_bytes = process.private_bytes()?;
        std::thread::scope(|scope| {
            let clients = std::thread::Builder::new().name("clients".into()).spawn_scoped(scope, || {
                clients::run(process.address, &plan, &shared)
                    .inspect_err(|error| shared.fail(error.to_string()))
            })?;
            let producer = std::thread::Builder::new().name("producer".into()).spawn_scoped(scope, || {
                let publish_to = server.is_published_to().then_some(process.address);
                producer::run(redis.address, publish_to, &plan, &shared)
                    .inspect_err(|error| shared.fail(error.to_string()))
            })?;
            let window =
                conduct(&plan, &shared, &process, &redis).inspect_err(|error| shared.fail(error.to_string()));
            shared.stop();
            let produced = producer.join().map_err(|_| "the producer panicked")??;
            if server.kind() == Kind::Peer {
                shared.give_up_after(PEER_DRAIN);
            }
            shared.totals.get_or_init(|| produced.totals.clone());
            let seen = clients.join().map_err(|_| "the clients panicked")??;
            let problem = shared.problem();
            let window = window?;
            let idle_bytes = (self.pace == Pace::Quiet)
                .then(|| window.private_bytes.saturating_sub(empty_bytes) as f64 / plan.clients as f64);
            let mut run = result(&window, &seen, &produced);
            run.problems.extend(problem);
            run.behind |= server.is_published_to() && run.producer_late_ms_p99 > PUBLISHED_LATE_MS_MAX;
            Ok(Run { scenario: self.name, server: server.name(), round, idle_bytes, ..run })
        })
    }
}

/// What was read from the kernel around the measured time.
struct Window {
    wall: Duration,
    delivered: u64,
    server_cpu: Duration,
    redis_cpu: Duration,
    private_bytes: u64,
}

/// Leads a run through its phases: connected, started, warm, measured.
fn conduct(plan: &Plan, shared: &Shared, server: &Process, redis: &Process) -> Result<Window> {
    let began = shared.wait_for(|| shared.connected.load(Ordering::Acquire) == plan.clients)
        && shared.wait_for(|| shared.started.load(Ordering::Acquire) == plan.clients);
    if !began {
        return Err(shared.problem().unwrap_or_default().into());
    }
    shared.go.store(true, Ordering::Release);
    shared.pass(plan.warm_up);
    let delivered = shared.delivered.load(Ordering::Acquire);
    let (server_cpu, redis_cpu, from) = (server.cpu()?, redis.cpu()?, Instant::now());
    shared.measure();
    shared.pass(plan.duration);
    Ok(Window {
        delivered: shared.delivered.load(Ordering::Acquire) - delivered,
        server_cpu: server.cpu()?.saturating_sub(server_cpu),
        redis_cpu: redis.cpu()?.saturating_sub(redis_cpu),
        wall: from.elapsed(),
        private_bytes: server.private_bytes()?,
    })
}

fn result(window: &Window, seen: &Seen, produced: &Produced) -> Run {
    let held: u64 = produced.totals.iter().sum();
    let mut problems = seen.surprises.clone();
    if seen.received == 0 || held == 0 {
        problems.push("nothing was delivered".into());
    }
    Run {
        delivered: window.delivered,
        delivered_per_second: window.delivered as f64 / window.wall.as_secs_f64(),
        tokens_per_frame: seen.received as f64 / (seen.frames.max(1)) as f64,
        latency_ms: Latency::of(&seen.latency_us),
        latency_us: (!seen.latency_us.is_empty()).then(|| seen.latency_us.clone()),
        server_cpu_us: per(window.server_cpu, window.delivered),
        redis_cpu_us: per(window.redis_cpu, window.delivered),
        server_cpu_percent: percent(window.server_cpu, window.wall),
        redis_cpu_percent: percent(window.redis_cpu, window.wall),
        producer_cpu_percent: percent(produced.cpu, window.wall),
        clients_cpu_percent: percent(seen.cpu, window.wall),
        producer_late_ms_p99: produced.late_us.value_at_quantile(0.99) as f64 / 1e3,
        lost: seen.lost,
        repeated: seen.repeated,
        reordered: seen.reordered,
        behind: seen.behind,
        problems,
        ..Run::default()
    }
}
