//! The bars: the daemon's targets, and whether the median of the rounds met them. They apply to the full size on an
//! otherwise idle machine, and are no test of correctness.

use std::fmt::Write;

use crate::report::{Report, median};
use crate::run::Run;
use crate::server::{Kind, Server};

/// A target for one value of one scenario.
struct Bar {
    scenario: &'static str,
    what: &'static str,
    limit: Limit,
    value: fn(&Run) -> Option<f64>,
    /// The server whose value in the same round the daemon's is divided by, if any.
    beside: Option<Server>,
}

#[derive(Clone, Copy)]
enum Limit {
    Most(f64),
    Least(f64),
}

const fn most(scenario: &'static str, what: &'static str, most: f64, value: fn(&Run) -> Option<f64>) -> Bar {
    Bar { scenario, what, limit: Limit::Most(most), value, beside: None }
}

/// A limit on the p50, as a multiple of the tracking floor's in the same round.
const fn tracking_p50(scenario: &'static str, most: f64) -> Bar {
    let value: fn(&Run) -> Option<f64> = |run| Some(run.latency_ms.as_ref()?.p50);
    let what = "p50 beside the tracking floor's";
    Bar { scenario, what, limit: Limit::Most(most), value, beside: Some(Server::Tracking) }
}

const fn tracking_p99(scenario: &'static str, most: f64) -> Bar {
    let value: fn(&Run) -> Option<f64> = |run| Some(run.latency_ms.as_ref()?.p99);
    let what = "p99 beside the tracking floor's";
    Bar { scenario, what, limit: Limit::Most(most), value, beside: Some(Server::Tracking) }
}

const BARS: &[Bar] = &[
    tracking_p50("fan1k", 1.5),
    tracking_p99("fan1k", 2.0),
    tracking_p50("burst", 1.5),
    tracking_p99("burst", 2.0),
    tracking_p50("steps", 1.2),
    tracking_p99("steps", 1.2),
    most("first", "first token, p50 ms", 2.0, |run| Some(run.act_ms.as_ref()?.p50)),
    most("first", "first token, p99 ms", 10.0, |run| Some(run.act_ms.as_ref()?.p99)),
    most("first-announced", "first token, p50 ms", 2.0, |run| Some(run.act_ms.as_ref()?.p50)),
    most("first-announced", "first token, p99 ms", 10.0, |run| Some(run.act_ms.as_ref()?.p99)),
    Bar {
        scenario: "replay",
        what: "entries/s",
        limit: Limit::Least(1e6),
        value: |run| Some(run.delivered_per_second),
        beside: None,
    },
    Bar {
        scenario: "many",
        what: "Redis' time per token beside the bare reader's",
        limit: Limit::Most(1.4),
        value: |run| run.redis_cpu_us,
        beside: Some(Server::Bare),
    },
    most("many", "p99 ms", 50.0, |run| Some(run.latency_ms.as_ref()?.p99)),
    most("storm", "live again, p99 ms", 250.0, |run| Some(run.act_ms.as_ref()?.p99)),
    most("storm", "fan1's p99 beside its own alone", 3.0, Run::p99_to_alone),
    most("million", "live again, p99 ms", 3_000.0, |run| Some(run.act_ms.as_ref()?.p99)),
    most("million", "fan1's p99 beside its own alone", 3.0, Run::p99_to_alone),
    most("slow", "the others' p99 beside their own alone", 1.2, Run::p99_to_alone),
    most("idle", "bytes a connection", 2048.0, |run| run.idle_bytes),
    most("idle", "percent of a core", 2.0, |run| Some(run.server_cpu_percent)),
    most("idle-sse", "bytes a connection", 2048.0, |run| run.idle_bytes),
    most("idle-sse", "percent of a core", 2.0, |run| Some(run.server_cpu_percent)),
    // Two measurements of the same load differ by that much.
    most("idle-fan1", "fan1's p99 beside its own alone", 1.2, Run::p99_to_alone),
];

impl Bar {
    fn measured(&self, report: &Report) -> Option<f64> {
        let ours = report.runs_of(self.scenario, Kind::Daemon);
        let values = ours.filter_map(|run| {
            let value = (self.value)(run)?;
            let Some(server) = self.beside else { return Some(value) };
            let is_beside = |other: &&Run| other.round == run.round && other.server == server.name();
            let mut others = report.runs_of(self.scenario, server.kind()).filter(is_beside);
            Some(value / (self.value)(others.next()?)?)
        });
        median(values.collect())
    }
}

/// A line for each bar of the scenarios that ran.
pub(crate) fn lines(report: &Report) -> String {
    let mut lines = String::new();
    for bar in BARS {
        let Some(measured) = bar.measured(report) else { continue };
        let (reached, words, limit) = match bar.limit {
            Limit::Most(limit) => (measured <= limit, "at most", limit),
            Limit::Least(limit) => (measured >= limit, "at least", limit),
        };
        let verdict = if reached { "reached" } else { "MISSED" };
        let (scenario, what) = (bar.scenario, bar.what);
        // Writing to a String cannot fail.
        writeln!(lines, "{verdict}: {scenario}, {what}: {measured:.2}, {words} {limit}").ok();
    }
    lines
}
