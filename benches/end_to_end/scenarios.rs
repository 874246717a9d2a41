//! The scenarios, and one run of one of them against one server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::beside::{self, Act, Guest};
use crate::churn;
use crate::cores::Cores;
use crate::hostile::Attack;
use crate::load::{Manner, Pace, Plan, Shared, Transport};
use crate::run::{Latency, Run};
use crate::series::{SAMPLES, SAMPLES_SMOKE, Sample};
use crate::server::Server;
use crate::stage::{Load, Result, Stage, Window};

/// The maximum time for connecting, warming up and draining together, in addition to the measured time.
pub(crate) const OVERHEAD: Duration = Duration::from_secs(90);

/// The minimum time for which idle connections are measured, if the daemon is the subject: two intervals of
/// client.keepalive, so that each connection gets two keepalives.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);
/// The smoke size stores fewer tokens, by this factor.
const STORED_PER_SMOKE: u64 = 40;

/// A load with a name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    /// The name on the command line and in reports.
    pub(crate) name: &'static str,
    /// A description of its load, for titles and progress.
    pub(crate) what: &'static str,
    streams: usize,
    clients: usize,
    transport: Transport,
    pace: Pace,
    /// Streams and clients of the smoke size.
    smoke: (usize, usize),
    /// A second load that starts once the first has been measured alone.
    guest: Option<Guest>,
    /// How it differs if it takes long.
    long: Option<Long>,
    /// The servers that support the scenario.
    pub(crate) servers: &'static [Server],
}

/// The kinds of scenarios that take long. They run only if they are named, and once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Long {
    /// A load at its pace for as long as the measured time, with samples.
    Soak,
    /// Streams that come and go: see `churn`.
    Churn,
}

/// The load that guests of other scenarios run beside.
const FAN1: Scenario = Scenario {
    name: "fan1",
    what: "200 streams x 1 client, 50/s each",
    streams: 200,
    clients: 200,
    pace: Pace::PerSecond(50.0),
    smoke: (20, 20),
    ..LIVE
};

const FIRST: Guest = Guest {
    act: Act::First,
    streams: 200,
    clients: 200,
    pace: Pace::Births { announced: false },
    backlog: 0,
    smoke: (10, 10, 0),
};

/// The servers with clients that are not peers.
const SERVING: &[Server] = &[Server::Daemon, Server::Blocking, Server::Tracking];

/// Those servers and the peers.
const SERVING_AND_PEERS: &[Server] = &[
    Server::Daemon,
    Server::Blocking,
    Server::Tracking,
    Server::Node,
    Server::Fastapi,
    Server::Nchan,
    Server::Centrifugo,
    Server::CentrifugoStreams,
    Server::Nats,
];

const PLAIN: Scenario = Scenario {
    name: "",
    what: "",
    streams: 1,
    clients: 1,
    transport: Transport::WebSocket,
    pace: Pace::Quiet,
    smoke: (1, 1),
    guest: None,
    long: None,
    servers: SERVING,
};

/// The base of scenarios in which tokens are read as they arrive.
const LIVE: Scenario = Scenario { servers: SERVING_AND_PEERS, ..PLAIN };

/// fan1 beside hostile clients.
const fn attack(attack: Attack) -> Scenario {
    let guest = Guest {
        act: Act::Attack(attack),
        streams: 1,
        clients: 1,
        pace: Pace::Quiet,
        backlog: 0,
        smoke: (1, 1, 0),
    };
    Scenario { guest: Some(guest), servers: &[Server::Daemon], ..FAN1 }
}

/// Every scenario.
pub(crate) const ALL: &[Scenario] = &[
    Scenario { name: "lone", what: "1 stream x 1 client, 100/s", pace: Pace::PerSecond(100.0), ..LIVE },
    FAN1,
    Scenario {
        name: "fan1-2k",
        what: "200 streams x 1 client, 10/s each",
        pace: Pace::PerSecond(10.0),
        ..FAN1
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
        name: "burst",
        what: "1,000 streams x 1 client, 20/s each, 20 tokens at once every millisecond",
        streams: 1_000,
        clients: 1_000,
        pace: Pace::Steps { per_second: 20.0, every: Duration::from_millis(1) },
        smoke: (60, 60),
        ..LIVE
    },
    Scenario {
        name: "steps",
        what: "1,000 streams x 1 client, 20/s each, 500 tokens at once every 25 ms",
        streams: 1_000,
        clients: 1_000,
        pace: Pace::Steps { per_second: 20.0, every: Duration::from_millis(25) },
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
        name: "hot10k",
        what: "1 stream x 10,000 clients, 20/s",
        clients: 10_000,
        pace: Pace::PerSecond(20.0),
        smoke: (1, 80),
        ..PLAIN
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
        name: "replay",
        what: "64 streams x 20,000 stored tokens, 1 client each reads all from the beginning",
        streams: 64,
        clients: 64,
        pace: Pace::Stored(20_000),
        smoke: (8, 8),
        ..PLAIN
    },
    Scenario {
        name: "late",
        what: "64 streams x 2,000 stored tokens, 1 client each comes late; act: it has everything",
        streams: 64,
        clients: 64,
        pace: Pace::Stored(2_000),
        smoke: (8, 8),
        ..PLAIN
    },
    Scenario {
        name: "many",
        what: "10,000 streams x 1 client, 10/s each; what Redis spends beside what a bare reader costs it",
        streams: 10_000,
        clients: 10_000,
        pace: Pace::PerSecond(10.0),
        smoke: (200, 200),
        servers: &[Server::Daemon, Server::Tracking, Server::Bare],
        ..PLAIN
    },
    Scenario {
        name: "first",
        what: "beside fan1, 200 clients wait for streams of their own that do not exist; act: their first token",
        guest: Some(FIRST),
        servers: SERVING,
        ..FAN1
    },
    Scenario {
        name: "first-announced",
        what: "the same with producers that announce their streams",
        guest: Some(Guest { pace: Pace::Births { announced: true }, ..FIRST }),
        servers: SERVING,
        ..FAN1
    },
    Scenario {
        name: "storm",
        what: "beside fan1, 1,000 clients of 100 live streams return, 2,000 tokens behind; act: live again",
        guest: Some(Guest {
            act: Act::Storm,
            streams: 100,
            clients: 1_000,
            pace: Pace::PerSecond(20.0),
            backlog: 2_000,
            smoke: (10, 40, 50),
        }),
        // The floors cannot resume.
        servers: &[Server::Daemon],
        ..FAN1
    },
    Scenario {
        name: "million",
        what: "beside fan1, 200 clients return near the end of a live stream of 1,000,000 tokens; act: live again",
        guest: Some(Guest {
            act: Act::Million,
            streams: 1,
            clients: 200,
            pace: Pace::PerSecond(20.0),
            backlog: 1_000_000,
            smoke: (1, 10, 5_000),
        }),
        // The floors cannot resume.
        servers: &[Server::Daemon],
        ..FAN1
    },
    Scenario {
        name: "slow",
        what: "900 streams x 1 client, 20/s each, beside 100 clients at 1 KB/s that fall behind on 10 live streams",
        streams: 900,
        clients: 900,
        pace: Pace::PerSecond(20.0),
        smoke: (40, 40),
        guest: Some(Guest {
            act: Act::Slow,
            streams: 10,
            clients: 100,
            pace: Pace::PerSecond(20.0),
            // More than the kernel and client.send_budget buffer for a client.
            backlog: 20_000,
            smoke: (2, 8, 500),
        }),
        // The floors do not bound what they buffer for a client.
        servers: &[Server::Daemon],
        ..PLAIN
    },
    Scenario {
        name: "idle",
        what: "18,000 connections, 180 to each of 100 quiet streams",
        streams: 100,
        // A process may have 20,000 descriptors.
        clients: 18_000,
        smoke: (10, 100),
        ..LIVE
    },
    Scenario {
        name: "idle-sse",
        what: "the same over SSE",
        streams: 100,
        clients: 18_000,
        transport: Transport::Sse,
        smoke: (10, 100),
        // The floors support WebSocket only.
        servers: &[Server::Daemon],
        ..PLAIN
    },
    Scenario {
        name: "idle-fan1",
        what: "fan1 beside 18,000 idle connections to 100 quiet streams",
        guest: Some(Guest {
            act: Act::Idle,
            streams: 100,
            clients: 18_000,
            pace: Pace::Quiet,
            backlog: 0,
            smoke: (10, 100, 0),
        }),
        servers: &[Server::Daemon],
        ..FAN1
    },
    Scenario {
        name: "attack-pipelining",
        what: "fan1 beside 48 connections that pipeline HTTP requests, half of which never read an answer",
        ..attack(Attack::Pipelining)
    },
    Scenario {
        name: "attack-cancels",
        what: "fan1 beside 48 connections that send requests to cancel without end",
        ..attack(Attack::Cancels)
    },
    Scenario {
        name: "attack-messages",
        what: "fan1 beside 48 WebSockets that send acks, pings and text that is no message without end",
        ..attack(Attack::Messages)
    },
    Scenario {
        name: "idle-own",
        what: "10,000 connections, each to a quiet stream of its own",
        streams: 10_000,
        clients: 10_000,
        smoke: (100, 100),
        servers: &[Server::Daemon, Server::Tracking],
        ..PLAIN
    },
    Scenario {
        name: "soak",
        what: "1,000 streams x 1 client, 10/s each, for as long as --duration says",
        streams: 1_000,
        clients: 1_000,
        pace: Pace::PerSecond(10.0),
        smoke: (60, 60),
        long: Some(Long::Soak),
        servers: &[Server::Daemon],
        ..PLAIN
    },
    Scenario {
        name: "churn",
        what: "streams x 1 client begin, get some 25 tokens, end and go, 800 at a time",
        streams: 400,
        clients: 400,
        pace: churn::PACE,
        smoke: (10, 10),
        long: Some(Long::Churn),
        servers: &[Server::Daemon],
        ..PLAIN
    },
];

/// Settings of all runs.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Small sizes; only correctness counts.
    pub(crate) smoke: bool,
    /// How long each run is measured.
    pub(crate) duration: Duration,
    /// Set when the bench has to end.
    pub(crate) interrupted: Arc<AtomicBool>,
    /// Whether others use the cores.
    pub(crate) cores: Cores,
    /// How many streams pass through in `churn`.
    pub(crate) passing: usize,
    /// The daemon's `--set` options.
    pub(crate) daemon: Vec<String>,
}

impl Scenario {
    /// The meaning of its own times, if it measures something other than the latency of tokens.
    pub(crate) fn times(&self) -> Option<&'static str> {
        match self.pace {
            Pace::Stored(_) => Some("ms until it has everything"),
            _ => self.guest.and_then(|guest| guest.act.times()),
        }
    }

    /// Whether it takes long, so that it runs only if it is named, and once.
    pub(crate) const fn is_long(&self) -> bool {
        self.long.is_some()
    }

    /// A scenario with one client for each of `streams`, which get `per_second` tokens in all.
    pub(crate) fn even(name: &'static str, streams: u32, per_second: u32) -> Self {
        let size = streams as usize;
        let pace = Pace::PerSecond(f64::from(per_second) / f64::from(streams));
        Self { name, streams: size, clients: size, pace, smoke: (size, size), ..PLAIN }
    }

    /// The name, and the size where scenarios of one name differ in it.
    pub(crate) fn load(&self) -> String {
        format!("{}, {} streams, {:?}", self.name, self.streams, self.pace)
    }

    fn plan(&self, server: Server, settings: &Settings) -> Plan {
        let (streams, clients) = if settings.smoke { self.smoke } else { (self.streams, self.clients) };
        let pace = match self.pace {
            Pace::Stored(entries) if settings.smoke => Pace::Stored(entries / STORED_PER_SMOKE),
            pace => pace,
        };
        let warm_up = settings.duration.min(Duration::from_secs(1));
        let keeps_alive = self.pace == Pace::Quiet && server == Server::Daemon && !settings.smoke;
        let samples = if settings.smoke { SAMPLES_SMOKE } else { SAMPLES };
        let sample_every = (self.long == Some(Long::Soak)).then(|| settings.duration / samples);
        Plan {
            first_stream: 0,
            streams,
            clients,
            transport: self.transport,
            manner: Manner::Staying,
            pace,
            backlog: 0,
            warm_up,
            duration: if keeps_alive { settings.duration.max(SILENCE) } else { settings.duration },
            sample_every,
        }
    }

    /// Performs one run against one server, with a Redis of its own.
    pub(crate) fn run(&self, server: Server, round: usize, settings: &Settings) -> Result<Run> {
        let plan = self.plan(server, settings);
        let stage = Stage::set(server, &settings.daemon, settings.smoke)?;
        let run = match &self.guest {
            Some(guest) => beside::run(guest, &plan, &stage, settings)?,
            None if self.long == Some(Long::Churn) => churn::run(&plan, &stage, settings)?,
            None => self.alone(&plan, &stage, settings)?,
        };
        let is_steady = self.long != Some(Long::Churn);
        let offered_per_second = plan.offered_per_second().filter(|_| is_steady);
        let cores = settings.cores;
        Ok(Run {
            scenario: self.name.into(),
            server: server.name().into(),
            cores,
            round,
            offered_per_second,
            ..run
        })
    }

    fn alone(&self, plan: &Plan, stage: &Stage, settings: &Settings) -> Result<Run> {
        let shared = Shared::new(plan.streams, OVERHEAD + plan.duration, Arc::clone(&settings.interrupted));
        let mut samples = Vec::new();
        let mut run = std::thread::scope(|scope| {
            let load = Load::begin(scope, stage, plan, &shared)?;
            let window = match (plan.pace, plan.sample_every) {
                (Pace::Stored(entries), _) => replay(entries, plan, &shared, stage),
                (_, Some(every)) => soak(every, plan, &shared, stage, &mut samples),
                _ => conduct(plan, &shared, stage),
            };
            let window = window.inspect_err(|error| shared.fail(error.to_string()));
            let (seen, produced) = load.end()?;
            let window = window?;
            let connections = plan.clients as f64;
            let idle_bytes = (self.pace == Pace::Quiet)
                .then(|| window.private_bytes.saturating_sub(stage.empty_bytes) as f64 / connections);
            let is_stored = matches!(self.pace, Pace::Stored(_));
            let act_ms = is_stored.then(|| Latency::of(&seen.back_us)).flatten();
            for (sample, us) in samples.iter_mut().zip(&seen.parts_us) {
                sample.latency_ms = Latency::of(us);
            }
            Result::Ok(Run { idle_bytes, act_ms, ..window.run(&seen, &produced) })
        })?;
        run.problems.extend(shared.problem());
        run.samples = samples;
        Ok(run)
    }
}

/// Runs a load until it can be measured: connected, started and warmed up.
pub(crate) fn settle_in(plan: &Plan, shared: &Shared) -> Result<()> {
    shared.until(|shared| shared.connected.load(Ordering::Acquire) == plan.clients)?;
    shared.until(|shared| shared.started.load(Ordering::Acquire) == plan.clients)?;
    shared.go.store(true, Ordering::Release);
    shared.pass(plan.warm_up);
    Ok(())
}

/// Measures a load at its pace.
fn conduct(plan: &Plan, shared: &Shared, stage: &Stage) -> Result<Window> {
    settle_in(plan, shared)?;
    Window::around(stage, shared, || {
        shared.pass(plan.duration);
        Result::Ok(())
    })
}

/// Measures a load at its pace, and takes a sample after each part of the time.
fn soak(
    every: Duration,
    plan: &Plan,
    shared: &Shared,
    stage: &Stage,
    samples: &mut Vec<Sample>,
) -> Result<Window> {
    settle_in(plan, shared)?;
    Window::around(stage, shared, || {
        let from = Instant::now();
        while from.elapsed() + every / 2 < plan.duration && !shared.failed() {
            let due = every * u32::try_from(samples.len() + 1)?;
            shared.pass(due.saturating_sub(from.elapsed()));
            samples.push(Sample::take(stage, from.elapsed(), 0)?);
        }
        Result::Ok(())
    })
}

/// Waits until everything is stored, then measures from the time when the clients connect until they have all of it.
fn replay(entries: u64, plan: &Plan, shared: &Shared, stage: &Stage) -> Result<Window> {
    shared.until(|shared| shared.stored.load(Ordering::Acquire))?;
    let all = entries * plan.clients as u64;
    Window::around(stage, shared, || {
        shared.go.store(true, Ordering::Release);
        shared.until(|shared| shared.delivered.load(Ordering::Acquire) >= all)
    })
}
