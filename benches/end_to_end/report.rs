//! The summary of all runs: medians, and ratios within a round to the better floor, to the bare reader and to the best
//! peer, as a table and as JSON.

use std::fmt::Write;

use crate::cores::Cores;
use crate::growth::Growth;
use crate::origin::Origin;
use crate::run::Run;
use crate::server::{Kind, Server};

/// If a thread of the load generator uses more than this share of a core, it may have limited the result.
const GENERATOR_PERCENT_MAX: f64 = 90.0;

/// The kinds of server that the daemon is compared with, and the name of each ratio.
pub(crate) const RATIOS: [(Kind, &str); 3] = [
    (Kind::Floor, "daemon / better floor"),
    (Kind::Bare, "daemon / bare reader"),
    (Kind::Peer, "daemon / best peer"),
];

/// One column of a table.
pub(crate) struct Column {
    pub(crate) title: &'static str,
    pub(crate) decimals: usize,
    /// Whether a higher value is better.
    pub(crate) more_is_better: bool,
    pub(crate) value: fn(&Run) -> Option<f64>,
}

const COLUMNS: &[Column] = &[
    Column {
        title: "tokens/s",
        decimals: 0,
        more_is_better: true,
        value: |run| (run.delivered > 0).then_some(run.delivered_per_second),
    },
    less("p50 ms", 2, |run| run.latency_ms.as_ref().map(|ms| ms.p50)),
    less("p90", 2, |run| run.latency_ms.as_ref().map(|ms| ms.p90)),
    less("p99", 2, |run| run.latency_ms.as_ref().map(|ms| ms.p99)),
    less("p99.9", 2, |run| run.latency_ms.as_ref().map(|ms| ms.p99_9)),
    less("max", 2, |run| run.latency_ms.as_ref().map(|ms| ms.max)),
    less("server µs", 1, |run| run.server_cpu_us),
    less("redis µs", 1, |run| run.redis_cpu_us),
    less("server %", 1, |run| Some(run.server_cpu_percent)),
    less("redis %", 1, |run| Some(run.redis_cpu_percent)),
    less("p99 / alone's", 2, Run::p99_to_alone),
    less("act p50 ms", 2, |run| run.act_ms.as_ref().map(|ms| ms.p50)),
    less("act p99", 2, |run| run.act_ms.as_ref().map(|ms| ms.p99)),
    less("act max", 2, |run| run.act_ms.as_ref().map(|ms| ms.max)),
    less("history/missed", 2, |run| run.history_per_missed),
    less("behind", 0, |run| run.slow_behind),
    less("bytes/conn", 0, |run| run.idle_bytes),
];

/// A column in which a lower value is better.
pub(crate) const fn less(title: &'static str, decimals: usize, value: fn(&Run) -> Option<f64>) -> Column {
    Column { title, decimals, more_is_better: false, value }
}

/// All runs of a bench in one state of the cores.
#[derive(Debug, Default)]
pub(crate) struct Report {
    cores: Cores,
    runs: Vec<Run>,
    growth: Growth,
}

impl Report {
    /// A report without runs.
    pub(crate) fn new(cores: Cores) -> Self {
        Self { cores, ..Self::default() }
    }

    /// The state of the cores during its runs.
    pub(crate) const fn cores(&self) -> Cores {
        self.cores
    }

    /// Adds a run.
    pub(crate) fn add(&mut self, run: Run) {
        self.runs.push(run);
    }

    /// Sets the costs per token as the load grows.
    pub(crate) fn set_growth(&mut self, growth: Growth) {
        self.growth = growth;
    }

    /// Every run.
    pub(crate) fn all_runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().chain(self.growth.runs())
    }

    /// Whether there were runs and every one was correct. Peers are ignored, as they are not under test.
    pub(crate) fn is_correct(&self) -> bool {
        let is_fine = |run: &Run| run.is_correct() || Server::is_a(Kind::Peer, &run.server);
        self.all_runs().next().is_some() && self.all_runs().all(is_fine)
    }

    /// The cost per token as the load grows.
    pub(crate) const fn growth(&self) -> &Growth {
        &self.growth
    }

    /// The runs of a scenario against a server.
    pub(crate) fn of(&self, scenario: &str, server: &str) -> Vec<&Run> {
        self.runs.iter().filter(|run| run.scenario == scenario && run.server == server).collect()
    }

    /// The runs of a scenario against servers of the given kind.
    pub(crate) fn runs_of(&self, scenario: &str, kind: Kind) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.scenario == scenario && Server::is_a(kind, &run.server))
    }

    /// The names of the scenarios that ran.
    fn scenarios(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.runs.iter().map(|run| run.scenario.as_str()).collect();
        names.dedup();
        names
    }

    /// The median over the rounds of the daemon's value divided by the best value among the servers of that kind in
    /// the same round.
    pub(crate) fn ratio(&self, scenario: &str, column: &Column, to: Kind) -> Option<f64> {
        // The bare reader has no clients, so only the work of Redis is comparable.
        if to == Kind::Bare && !column.title.to_lowercase().starts_with("redis") {
            return None;
        }
        let ratios = self.runs_of(scenario, Kind::Daemon).filter_map(|ours| {
            let theirs = self
                .runs_of(scenario, to)
                .filter(|run| run.round == ours.round && run.problems.is_empty())
                .filter_map(column.value);
            let best = theirs.reduce(if column.more_is_better { f64::max } else { f64::min })?;
            let ratio = (column.value)(ours)? / best;
            ratio.is_finite().then_some(ratio)
        });
        median(ratios.collect())
    }

    /// The tables of all values, in Markdown.
    pub(crate) fn tables(&self) -> String {
        let tables = [self.table(), self.growth.table()];
        tables.into_iter().filter(|table| !table.is_empty()).collect::<Vec<_>>().join("\n")
    }

    fn table(&self) -> String {
        if self.runs.is_empty() {
            return String::new();
        }
        let titles: Vec<_> = COLUMNS.iter().map(|column| column.title).collect();
        let mut table = format!(
            "| scenario | server | {} | tokens/frame | lost, repeated, reordered |\n|{}\n",
            titles.join(" | "),
            " --- |".repeat(COLUMNS.len() + 4)
        );
        for scenario in self.scenarios() {
            for server in Server::ALL {
                let runs = self.of(scenario, server.name());
                if runs.is_empty() {
                    continue;
                }
                let mut cells: Vec<_> = COLUMNS.iter().map(|column| cell(&runs, column)).collect();
                cells.push(number(median(runs.iter().map(|run| run.tokens_per_frame).collect()), 1));
                cells.push(verdict(&runs));
                row(&mut table, scenario, server.name(), &cells);
            }
            for (kind, title) in RATIOS {
                let ratio = |column| number(self.ratio(scenario, column, kind), 2);
                let ratios: Vec<_> = COLUMNS.iter().map(ratio).collect();
                if ratios.iter().any(|ratio| ratio != "-") {
                    row(&mut table, scenario, title, &ratios);
                }
            }
        }
        table
    }

    /// Reasons to doubt the table.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for run in self.all_runs() {
            let busiest = run.producer_cpu_percent.max(run.clients_cpu_percent);
            if busiest > GENERATOR_PERCENT_MAX {
                warnings.push(format!(
                    "{}, {}, {}, round {}: the load generator was busy (producer {:.0} %, clients {:.0} % of a core): \
                     it may have been the limit",
                    run.scenario,
                    run.server,
                    run.cores.name(),
                    run.round + 1,
                    run.producer_cpu_percent,
                    run.clients_cpu_percent
                ));
            }
            if run.producer_late_ms_p99 > 5.0 {
                warnings.push(format!(
                    "{}, {}, {}, round {}: the producer was late by {:.1} ms (p99)",
                    run.scenario,
                    run.server,
                    run.cores.name(),
                    run.round + 1,
                    run.producer_late_ms_p99
                ));
            }
        }
        warnings
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "cores": self.cores,
            "runs": self.runs,
            "ratios_to_better_floor": self.ratios(Kind::Floor),
            "ratios_to_bare_reader": self.ratios(Kind::Bare),
            "ratios_to_best_peer": self.ratios(Kind::Peer),
            "growth": self.growth,
        })
    }

    fn ratios(&self, to: Kind) -> serde_json::Map<String, serde_json::Value> {
        let of = |scenario: &str| {
            let of = |column: &Column| (column.title.into(), self.ratio(scenario, column, to).into());
            (scenario.to_owned(), serde_json::Value::Object(COLUMNS.iter().map(of).collect()))
        };
        self.scenarios().into_iter().map(of).collect()
    }
}

/// Every run and every ratio, and where they are from.
pub(crate) fn json(reports: &[Report], origin: &Origin) -> serde_json::Result<String> {
    let reports: Vec<_> = reports.iter().map(Report::json).collect();
    serde_json::to_string(&serde_json::json!({ "origin": origin, "reports": reports }))
}

fn row(table: &mut String, scenario: &str, server: &str, cells: &[String]) {
    // Writing to a String cannot fail.
    writeln!(table, "| {scenario} | {server} | {} |", cells.join(" | ")).ok();
}

/// The median of a column.
pub(crate) fn cell(runs: &[&Run], column: &Column) -> String {
    number(median(runs.iter().filter_map(|run| (column.value)(run)).collect()), column.decimals)
}

/// Counts of lost, repeated and reordered tokens over all rounds, and notes on failed runs.
fn verdict(runs: &[&Run]) -> String {
    let sum = |value: fn(&Run) -> u64| runs.iter().map(|run| value(run)).sum::<u64>();
    let (lost, repeated) = (sum(|run| run.lost), sum(|run| run.repeated));
    let mut verdict = format!("{lost}, {repeated}, {}", sum(|run| run.reordered));
    if runs.iter().any(|run| run.behind) {
        verdict.push_str(" (falling behind)");
    }
    if runs.iter().any(|run| !run.problems.is_empty()) {
        verdict.push_str(" (problems)");
    }
    verdict
}

/// A value with that many decimals, or a dash.
pub(crate) fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().saturating_sub(1) / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}
