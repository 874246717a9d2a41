//! Runs of two loads. The first load is measured alone, and then again while a second load, the guest, does what the
//! scenario tests (see `Act`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::hostile::{Attack, Attacked, Hostiles};
use crate::load::{Manner, Pace, Plan, Shared};
use crate::producer::Produced;
use crate::run::{Latency, Run};
use crate::scenarios::{OVERHEAD, SILENCE, Settings, settle_in};
use crate::seen::Seen;
use crate::stage::{Load, Result, Stage, Window};

/// The guest's behaviour while the first load is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// All its clients reconnect at once and request what they missed. The measurement ends when the last one has
    /// everything written so far.
    Storm,
    /// All its clients reconnect at once, near the end of a very long stream. The measurement ends when the last one
    /// has everything written so far.
    Million,
    /// Its clients read slowly and are far behind. At the end they read at full speed and must get everything in
    /// order.
    Slow,
    /// Its clients wait for streams that do not exist yet, and get the first token of each.
    First,
    /// It is connected, and nothing is sent.
    Idle,
    /// It is connected, and nothing is sent; hostile clients attack its stream, or none in particular.
    Attack(Attack),
}

impl Act {
    /// The meaning of its measured times, if it has any.
    pub(crate) const fn times(self) -> Option<&'static str> {
        match self {
            Self::Storm | Self::Million => Some("ms until live again"),
            Self::First => Some("ms from write to read of the first token"),
            Self::Slow | Self::Idle | Self::Attack(_) => None,
        }
    }
}

/// A load that runs beside the first one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest {
    /// Its behaviour while the first load is measured.
    pub(crate) act: Act,
    /// The number of its streams; none of them belongs to the first load.
    pub(crate) streams: usize,
    /// The number of its clients.
    pub(crate) clients: usize,
    /// How fast tokens are written.
    pub(crate) pace: Pace,
    /// How many tokens each stream gets while the clients are away or slow.
    pub(crate) backlog: u64,
    /// Streams, clients and backlog of the smoke size.
    pub(crate) smoke: (usize, usize, u64),
}

impl Guest {
    fn plan(&self, beside: &Plan, smoke: bool) -> Plan {
        let full = (self.streams, self.clients, self.backlog);
        let (streams, clients, backlog) = if smoke { self.smoke } else { full };
        let manner = match self.act {
            Act::Storm => Manner::Returning,
            Act::Million => Manner::Late,
            Act::Slow => Manner::Slow,
            Act::First | Act::Idle | Act::Attack(_) => Manner::Staying,
        };
        let first_stream = beside.first_stream + beside.streams;
        let is_silence = self.act == Act::Idle && !smoke;
        let duration = if is_silence { beside.duration.max(SILENCE) } else { beside.duration };
        Plan { first_stream, streams, clients, manner, pace: self.pace, backlog, duration, ..*beside }
    }
}

/// How long both loads run without changes before the measurement begins.
const REST: Duration = Duration::from_millis(500);
/// The same in the smoke size.
const REST_SMOKE: Duration = Duration::from_millis(20);

/// Two running loads.
struct Pair<'a> {
    stage: &'a Stage,
    plan: &'a Plan,
    shared: &'a Shared,
    act: Act,
    guest_plan: &'a Plan,
    guest: &'a Shared,
    rest: Duration,
    smoke: bool,
}

/// The measurements made while the guest was connected.
struct Performed {
    window: Window,
    /// The counters before and after the measurement.
    counted: [Counted; 2],
    /// How many tokens its clients had not received by the end of the measurement.
    outstanding: u64,
    /// The result of hostile clients, if there were any.
    attacked: Option<Attacked>,
}

/// The guest's result, and the measurements made while it was connected.
struct Visit {
    window: Window,
    /// The counters before and after the measurement.
    counted: [Counted; 2],
    /// How many tokens its clients had not received by the end of the measurement.
    outstanding: u64,
    attacked: Option<Attacked>,
    seen: Seen,
    /// Growth of the server's private memory.
    bytes: u64,
}

/// The daemon's counters; all zero for a server without counters.
#[derive(Clone, Copy, Default)]
struct Counted {
    history_reads: u64,
    history_entries: u64,
    fell_back: u64,
}

impl Counted {
    fn read(stage: &Stage) -> Result<Self> {
        let counter = |name| stage.server.as_ref().map_or(Ok(0), |server| server.counter(name));
        Ok(Self {
            history_reads: counter("replay_reads")?,
            history_entries: counter("replay_entries")?,
            fell_back: counter("clients_fell_back")?,
        })
    }
}

/// A run of a load with a guest.
pub(crate) fn run(guest: &Guest, plan: &Plan, stage: &Stage, settings: &Settings) -> Result<Run> {
    let guest_plan = guest.plan(plan, settings.smoke);
    let limit = OVERHEAD + plan.duration + guest_plan.duration;
    let shared = Shared::new(plan.streams, limit, Arc::clone(&settings.interrupted));
    let guest_shared = shared.beside(guest_plan.streams);
    let rest = if settings.smoke { REST_SMOKE } else { REST };
    let pair = Pair {
        stage,
        plan,
        shared: &shared,
        act: guest.act,
        guest_plan: &guest_plan,
        guest: &guest_shared,
        rest,
        smoke: settings.smoke,
    };
    let mut run = pair.run()?;
    run.problems.extend(shared.problem());
    Ok(run)
}

impl Pair<'_> {
    /// Measures the first load alone, then with its guest.
    fn run(&self) -> Result<Run> {
        std::thread::scope(|scope| {
            let load = Load::begin(scope, self.stage, self.plan, self.shared)?;
            let visit = self.receive().inspect_err(|error| self.shared.fail(error.to_string()));
            let (seen, produced) = load.end()?;
            Ok(self.result(visit?, &seen, &produced))
        })
    }

    /// Measures the first load alone, then runs the guest from its start to its end.
    fn receive(&self) -> Result<Visit> {
        settle_in(self.plan, self.shared)?;
        self.shared.alone.begin();
        self.shared.pass(self.plan.duration);
        self.shared.alone.end();
        let bytes = self.stage.server_bytes()?;
        std::thread::scope(|scope| {
            let load = Load::begin(scope, self.stage, self.guest_plan, self.guest)?;
            let performed = self.perform().inspect_err(|error| self.guest.fail(error.to_string()));
            self.guest.back.store(true, Ordering::Release);
            let (seen, _) = load.end()?;
            let Performed { window, counted, outstanding, attacked } = performed?;
            let bytes = window.private_bytes.saturating_sub(bytes);
            Ok(Visit { window, counted, outstanding, attacked, seen, bytes })
        })
    }

    /// Brings the guest to the point where its act begins, and measures the act.
    fn perform(&self) -> Result<Performed> {
        let (guest, clients) = (self.guest, self.guest_plan.clients);
        if self.act != Act::Million {
            guest.until(|guest| guest.connected.load(Ordering::Acquire) == clients)?;
        }
        match self.act {
            Act::First => {}
            Act::Million => {
                guest.go.store(true, Ordering::Release);
                guest.until(|guest| guest.stored.load(Ordering::Acquire))?;
            }
            Act::Idle | Act::Attack(_) => self.guest_begins()?,
            Act::Slow => {
                guest.until(|guest| guest.started.load(Ordering::Acquire) == clients)?;
                guest.leave.store(true, Ordering::Release);
                self.guest_begins()?;
                guest.until(|guest| guest.stored.load(Ordering::Acquire))?;
            }
            Act::Storm => {
                self.guest_begins()?;
                guest.leave.store(true, Ordering::Release);
                guest.until(|guest| guest.connected.load(Ordering::Acquire) == 0)?;
                guest.until(|guest| guest.stored.load(Ordering::Acquire))?;
            }
        }
        let mut hostiles = self.hostiles()?;
        let mut attacked = None;
        guest.pass(self.rest);
        let before = Counted::read(self.stage)?;
        let window = Window::around(self.stage, self.shared, || {
            guest.measured.begin();
            attacked = self.act(hostiles.as_mut())?;
            guest.measured.end();
            self.shared.measured.end();
            Result::Ok(())
        })?;
        let counted = [before, Counted::read(self.stage)?];
        Ok(Performed { window, counted, outstanding: self.outstanding(), attacked })
    }

    /// The hostile clients, connected, if the scenario has any.
    fn hostiles(&self) -> Result<Option<Hostiles>> {
        let (Act::Attack(attack), Some(server)) = (self.act, &self.stage.server) else { return Ok(None) };
        let victim = self.guest_plan.first_stream;
        Ok(Some(Hostiles::connect(server.address, attack, victim, self.smoke)?))
    }

    /// Waits until all of the guest's clients have received something, and lets the producer follow its schedule.
    fn guest_begins(&self) -> Result<()> {
        self.guest.until(|guest| guest.started.load(Ordering::Acquire) == self.guest_plan.clients)?;
        self.guest.go.store(true, Ordering::Release);
        Ok(())
    }

    /// How many tokens of its streams the guest's clients have not received.
    fn outstanding(&self) -> u64 {
        let written: u64 = self.guest.written.iter().map(|written| written.load(Ordering::Acquire)).sum();
        let clients_per_stream = (self.guest_plan.clients / self.guest_plan.streams) as u64;
        (written * clients_per_stream).saturating_sub(self.guest.delivered.load(Ordering::Acquire))
    }

    fn act(&self, hostiles: Option<&mut Hostiles>) -> Result<Option<Attacked>> {
        let guest = self.guest;
        match self.act {
            Act::Storm | Act::Million => {
                guest.back.store(true, Ordering::Release);
                guest.until(|guest| guest.caught_up.load(Ordering::Acquire) == self.guest_plan.clients)?;
            }
            Act::First => {
                guest.go.store(true, Ordering::Release);
                guest.pass(self.guest_plan.duration);
            }
            Act::Idle | Act::Slow => guest.pass(self.guest_plan.duration),
            Act::Attack(_) => {
                let hostiles = hostiles.ok_or("there is no server to attack")?;
                return Ok(Some(hostiles.attack(self.guest_plan.duration, guest)?));
            }
        }
        Ok(None)
    }

    /// The result of both loads.
    fn result(&self, visit: Visit, seen: &Seen, produced: &Produced) -> Run {
        let mut run = visit.window.run(seen, produced);
        run.lost += visit.seen.lost;
        run.repeated += visit.seen.repeated;
        run.reordered += visit.seen.reordered;
        run.problems.extend(visit.seen.surprises);
        run.alone_ms = Latency::of(&seen.alone_us);
        run.guest_clients_cpu_percent = visit.window.percent(visit.seen.cpu);
        let [before, after] = visit.counted;
        run.history_reads = Some(after.history_reads - before.history_reads);
        match self.act {
            Act::Storm | Act::Million => {
                let missed = self.guest_plan.backlog * self.guest_plan.streams as u64;
                run.act_ms = Latency::of(&visit.seen.back_us);
                let read = after.history_entries - before.history_entries;
                run.history_per_missed = Some(read as f64 / missed as f64);
            }
            Act::Slow => {
                run.slow_fell_back = Some(after.fell_back);
                run.slow_behind = Some(visit.outstanding as f64 / self.guest_plan.clients as f64);
            }
            Act::First => run.act_ms = Latency::of(&visit.seen.latency_us),
            Act::Attack(_) => {
                let attacked = visit.attacked.unwrap_or_default();
                run.guest_clients_cpu_percent = visit.window.percent(visit.seen.cpu + attacked.cpu);
                run.hostile_per_second = Some(visit.window.per_second(attacked.taken));
            }
            Act::Idle => {
                run.idle_bytes = Some(visit.bytes as f64 / self.guest_plan.clients as f64);
            }
        }
        run
    }
}
