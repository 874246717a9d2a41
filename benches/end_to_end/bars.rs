//! The bars: the daemon's targets, and whether the median of the rounds met them. They apply to the full size on an
//! otherwise idle machine, and are no test of correctness.

use std::fmt::Write;

use crate::growth::Cost;
use crate::report::{Report, median};
use crate::run::{Latency, Run};
use crate::series::{Sample, drift};
use crate::server::{Kind, Server};

/// A target for one value of one scenario.
struct Bar {
    scenario: &'static str,
    what: &'static str,
    limit: Limit,
    value: Value,
    beside: Beside,
}

type Value = fn(&Run) -> Option<f64>;

#[derive(Clone, Copy)]
enum Limit {
    Most(f64),
    Least(f64),
}

/// The runs of the same round by whose best value the daemon's is divided.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    /// The better of the two floors.
    Floor,
    Peers,
    One(Server),
    /// The daemon in another scenario.
    Scenario(&'static str),
}

impl Beside {
    /// The words that follow the value's.
    fn words(self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Floor => " / the better floor's".into(),
            Self::Peers => " / the best peer's".into(),
            Self::One(server) => format!(" / that of the {}", server.name()),
            Self::Scenario(name) => format!(" / that of {name}"),
        }
    }

    fn runs<'a>(self, report: &'a Report, scenario: &str) -> Vec<&'a Run> {
        let of = |kind| report.runs_of(scenario, kind).collect();
        match self {
            Self::Nothing => Vec::new(),
            Self::Floor => of(Kind::Floor),
            Self::Peers => of(Kind::Peer),
            Self::One(server) => report.of(scenario, server.name()),
            Self::Scenario(name) => report.runs_of(name, Kind::Daemon).collect(),
        }
    }
}

const fn most(scenario: &'static str, what: &'static str, most: f64, value: Value) -> Bar {
    Bar { scenario, what, limit: Limit::Most(most), value, beside: Beside::Nothing }
}

const fn least(scenario: &'static str, what: &'static str, least: f64, value: Value) -> Bar {
    Bar { scenario, what, limit: Limit::Least(least), value, beside: Beside::Nothing }
}

impl Bar {
    /// The same limit on the value divided by that of others.
    const fn beside(self, beside: Beside) -> Self {
        Self { beside, ..self }
    }
}

fn p50(run: &Run) -> Option<f64> {
    run.latency_ms.as_ref().map(|ms| ms.p50)
}

fn p99(run: &Run) -> Option<f64> {
    run.latency_ms.as_ref().map(|ms| ms.p99)
}

fn act(run: &Run, of: fn(&Latency) -> f64) -> Option<f64> {
    run.act_ms.as_ref().map(of)
}

const FLOOR: Beside = Beside::Floor;
const CPU: &str = "daemon's CPU per token";
const REDIS: &str = "Redis' CPU per token";
const ALONE: &str = "p99 of fan1 / its own alone";

const RESIDENT: &str = "resident memory, last quarter / second quarter";
const DESCRIPTORS: &str = "descriptors, last quarter / second quarter";
const TAIL: &str = "p99.9, last quarter / second quarter";

const BARS: &[Bar] = &[
    most("lone", "p50", 1.2, p50).beside(FLOOR),
    most("lone", CPU, 1.5, |run| run.server_cpu_us).beside(FLOOR),
    most("lone", "p50", 1.0, p50).beside(Beside::Peers),
    most("fan1", "p50", 1.3, p50).beside(FLOOR),
    most("fan1", "p99", 2.0, p99).beside(FLOOR),
    most("fan1", CPU, 1.25, |run| run.server_cpu_us).beside(FLOOR),
    most("fan1", REDIS, 1.2, |run| run.redis_cpu_us).beside(FLOOR),
    most("fan1", "p50", 1.0, p50).beside(Beside::Peers),
    most("fan1", "p99", 1.0, p99).beside(Beside::Peers),
    most("fan1k", "p50", 1.3, p50).beside(FLOOR),
    most("fan1k", "p99", 2.0, p99).beside(FLOOR),
    most("fan1k", CPU, 1.25, |run| run.server_cpu_us).beside(FLOOR),
    most("fan1k", REDIS, 1.2, |run| run.redis_cpu_us).beside(FLOOR),
    most("burst", "p50", 1.2, p50).beside(FLOOR),
    most("burst", "p99", 1.3, p99).beside(FLOOR),
    most("steps", "p50", 1.2, p50).beside(FLOOR),
    most("steps", "p99", 1.3, p99).beside(FLOOR),
    most("hot", "p50", 1.0, p50).beside(FLOOR),
    most("hot", "p99", 1.0, p99).beside(FLOOR),
    most("hot", CPU, 1.0, |run| run.server_cpu_us).beside(FLOOR),
    most("hot10k", "p99, ms", 60.0, p99),
    most("hot10k", CPU, 1.0, |run| run.server_cpu_us).beside(Beside::Scenario("hot")),
    least("replay", "entries/s", 1e6, |run| Some(run.delivered_per_second)),
    most("late", "until the last one has everything", 1.5, |run| act(run, |ms| ms.max)).beside(FLOOR),
    // The measured time cuts tokens off at both ends; every token arrives later.
    least("many", "percent delivered in time", 98.0, Run::delivered_percent),
    most("many", "p99", 1.0, p99).beside(Beside::One(Server::Tracking)),
    most("many", REDIS, 1.3, |run| run.redis_cpu_us).beside(Beside::One(Server::Bare)),
    most("first", "first token, p50 ms", 2.0, |run| act(run, |ms| ms.p50)),
    most("first", "first token, p99 ms", 10.0, |run| act(run, |ms| ms.p99)),
    most("first-announced", "first token, p50 ms", 2.0, |run| act(run, |ms| ms.p50)),
    most("first-announced", "first token, p99 ms", 10.0, |run| act(run, |ms| ms.p99)),
    most("storm", "live again, p99 ms", 250.0, |run| act(run, |ms| ms.p99)),
    most("storm", ALONE, 3.0, Run::p99_to_alone),
    most("million", "live again, p99 ms", 3_000.0, |run| act(run, |ms| ms.p99)),
    most("million", ALONE, 3.0, Run::p99_to_alone),
    most("slow", "p99 of the others / their own alone", 1.2, Run::p99_to_alone),
    most("idle", "bytes a connection", 2048.0, |run| run.idle_bytes),
    most("idle", "percent of a core", 2.0, |run| Some(run.server_cpu_percent)),
    most("idle-sse", "bytes a connection", 2048.0, |run| run.idle_bytes),
    most("idle-sse", "percent of a core", 2.0, |run| Some(run.server_cpu_percent)),
    most("idle-fan1", ALONE, 1.2, Run::p99_to_alone),
    most("attack-pipelining", ALONE, 3.0, Run::p99_to_alone),
    most("attack-cancels", ALONE, 3.0, Run::p99_to_alone),
    most("attack-messages", ALONE, 3.0, Run::p99_to_alone),
    most("soak", RESIDENT, 1.05, |run| drift(run, Sample::resident)),
    most("soak", DESCRIPTORS, 1.05, |run| drift(run, Sample::open)),
    most("soak", TAIL, 1.3, |run| drift(run, Sample::p99_9)),
    most("churn", RESIDENT, 1.05, |run| drift(run, Sample::resident)),
    most("churn", DESCRIPTORS, 1.2, |run| drift(run, Sample::open)),
    most("churn", TAIL, 1.3, |run| drift(run, Sample::p99_9)),
];

/// How much more a token may cost at a higher rate than at a lower one and still count as flat.
const GROWTH_MOST: f64 = 1.1;

impl Bar {
    fn measured(&self, report: &Report) -> Option<f64> {
        let others = self.beside.runs(report, self.scenario);
        let ours = report.runs_of(self.scenario, Kind::Daemon);
        let values = ours.filter_map(|run| {
            let value = (self.value)(run)?;
            if matches!(self.beside, Beside::Nothing) {
                return Some(value);
            }
            let is_beside = |other: &&&Run| other.round == run.round && other.problems.is_empty();
            let best = others.iter().filter(is_beside).filter_map(|other| (self.value)(other));
            let ratio = value / best.reduce(f64::min)?;
            ratio.is_finite().then_some(ratio)
        });
        median(values.collect())
    }
}

/// A bar, and how far the daemon is from it.
pub(crate) struct Outcome {
    /// The scenario's name.
    pub(crate) scenario: &'static str,
    /// The value measured, in words.
    pub(crate) what: String,
    /// The limit, in words.
    pub(crate) limit: String,
    /// The median over the rounds.
    pub(crate) measured: f64,
    /// Whether it is within the limit.
    pub(crate) reached: bool,
}

impl Outcome {
    fn new(scenario: &'static str, what: String, limit: Limit, measured: f64) -> Self {
        let (reached, words, limit) = match limit {
            Limit::Most(limit) => (measured <= limit, "at most", limit),
            Limit::Least(limit) => (measured >= limit, "at least", limit),
        };
        Self { scenario, what, limit: format!("{words} {limit}"), measured, reached }
    }

    /// The measured value, with as many digits as are meaningful.
    pub(crate) fn figure(&self) -> String {
        if self.measured < 100.0 { format!("{:.2}", self.measured) } else { format!("{:.0}", self.measured) }
    }
}

/// The outcomes for the scenarios that ran.
pub(crate) fn outcomes(report: &Report) -> Vec<Outcome> {
    let outcome = |bar: &Bar| {
        let what = format!("{}{}", bar.what, bar.beside.words());
        Some(Outcome::new(bar.scenario, what, bar.limit, bar.measured(report)?))
    };
    let mut outcomes: Vec<_> = BARS.iter().filter_map(outcome).collect();
    let rise = report.growth().rise(Cost::Server);
    let what = format!("{CPU} at a higher rate / at a lower one");
    outcomes.extend(rise.map(|rise| Outcome::new("growth", what, Limit::Most(GROWTH_MOST), rise)));
    outcomes
}

/// A line for each outcome.
pub(crate) fn lines(report: &Report) -> String {
    let mut lines = String::new();
    for outcome in outcomes(report) {
        let verdict = if outcome.reached { "reached" } else { "MISSED" };
        let Outcome { scenario, what, limit, .. } = &outcome;
        // Writing to a String cannot fail.
        writeln!(lines, "{verdict}: {scenario}, {what}: {}, {limit}", outcome.figure()).ok();
    }
    lines
}
