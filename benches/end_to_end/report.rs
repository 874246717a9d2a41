//! What the runs come to: medians, ratios within a round to the better floor and to the best peer, as a table
//! and as JSON.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::growth::Growth;
use crate::server::{Kind, Server};

/// A thread of the load generator above that share of a core may have limited what was measured.
const GENERATOR_PERCENT_MAX: f64 = 90.0;

/// From the producer's write to the client's read, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latency {
    /// Half of them took no longer.
    pub(crate) p50: f64,
    p90: f64,
    /// All but one in a hundred took no longer.
    pub(crate) p99: f64,
    p99_9: f64,
    max: f64,
}

impl Latency {
    /// The percentiles of a histogram of microseconds, if there is anything in it.
    pub(crate) fn of(us: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| us.value_at_quantile(quantile) as f64 / 1e3;
        (!us.is_empty()).then(|| Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: us.max() as f64 / 1e3,
        })
    }
}

/// One run of a scenario against a server.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Run {
    /// The scenario's name.
    pub(crate) scenario: &'static str,
    /// The server's name.
    pub(crate) server: &'static str,
    /// Which round, from 0.
    pub(crate) round: usize,
    /// Tokens delivered within the measured time.
    pub(crate) delivered: u64,
    /// The same, a second.
    pub(crate) delivered_per_second: f64,
    /// How many tokens a frame carried on average.
    pub(crate) tokens_per_frame: f64,
    /// Latency of the tokens written within the measured time.
    pub(crate) latency_ms: Option<Latency>,
    /// The same, whole.
    #[serde(skip)]
    pub(crate) latency_us: Option<Histogram<u64>>,
    /// Processor time of the server per delivered token.
    pub(crate) server_cpu_us: Option<f64>,
    /// Processor time of Redis per delivered token.
    pub(crate) redis_cpu_us: Option<f64>,
    /// Processor time of the server, in percent of a core.
    pub(crate) server_cpu_percent: f64,
    /// Processor time of Redis, in percent of a core.
    pub(crate) redis_cpu_percent: f64,
    /// Processor time of the producer, in percent of a core.
    pub(crate) producer_cpu_percent: f64,
    /// Processor time of the clients, in percent of a core.
    pub(crate) clients_cpu_percent: f64,
    /// How late the producer's writes were against their schedule.
    pub(crate) producer_late_ms_p99: f64,
    /// The same of a second load's clients.
    pub(crate) guest_clients_cpu_percent: f64,
    /// Latency of the same load before a second one came beside it.
    pub(crate) alone_ms: Option<Latency>,
    /// What the scenario is about, where that is not the latency of tokens: see its words.
    pub(crate) act_ms: Option<Latency>,
    /// How many reads of history there were.
    pub(crate) history_reads: Option<u64>,
    /// Entries read from history for each entry that was missed, however many clients missed it.
    pub(crate) history_per_missed: Option<f64>,
    /// How often slow clients left live for history, as the daemon counts it.
    pub(crate) slow_fell_back: Option<u64>,
    /// How many tokens a slow client was behind in the end of the measured time, on average.
    pub(crate) slow_behind: Option<f64>,
    /// The server's private memory per connection.
    pub(crate) idle_bytes: Option<f64>,
    /// Tokens that never came.
    pub(crate) lost: u64,
    /// Tokens that came twice.
    pub(crate) repeated: u64,
    /// Tokens that came after a later one.
    pub(crate) reordered: u64,
    /// Whether the server fell behind the producer: the lost tokens were still coming when the run was given
    /// up, or the producer could not keep its schedule.
    pub(crate) behind: bool,
    /// What else went wrong, in words.
    pub(crate) problems: Vec<String>,
}

impl Run {
    /// The run of a server that could not be measured.
    pub(crate) fn failed(scenario: &'static str, server: &'static str, round: usize, why: String) -> Self {
        Self { scenario, server, round, problems: vec![why], ..Self::default() }
    }

    /// Whether every token came once and in order, and nothing else was wrong.
    pub(crate) fn is_correct(&self) -> bool {
        self.lost == 0 && self.repeated == 0 && self.reordered == 0 && self.problems.is_empty()
    }

    /// The p99 beside what it was before another load came.
    pub(crate) fn p99_to_alone(&self) -> Option<f64> {
        Some(self.latency_ms?.p99 / self.alone_ms?.p99)
    }

    /// The run in a line, for who watches.
    pub(crate) fn line(&self) -> String {
        let mut line = format!(
            "{} | {} | round {}: {:.0}/s, lost {}, repeated {}, reordered {}",
            self.scenario,
            self.server,
            self.round + 1,
            self.delivered_per_second,
            self.lost,
            self.repeated,
            self.reordered
        );
        if self.behind {
            line.push_str(", falling behind");
        }
        for problem in &self.problems {
            // Writing to a String cannot fail.
            write!(line, "\n    {problem}").ok();
        }
        line
    }
}

/// One column of the table.
struct Column {
    title: &'static str,
    decimals: usize,
    /// Whether more is better.
    more_is_better: bool,
    value: fn(&Run) -> Option<f64>,
}

const COLUMNS: &[Column] = &[
    Column {
        title: "tokens/s",
        decimals: 0,
        more_is_better: true,
        value: |run| (run.delivered > 0).then_some(run.delivered_per_second),
    },
    less("p50 ms", 2, |run| run.latency_ms.map(|ms| ms.p50)),
    less("p90", 2, |run| run.latency_ms.map(|ms| ms.p90)),
    less("p99", 2, |run| run.latency_ms.map(|ms| ms.p99)),
    less("p99.9", 2, |run| run.latency_ms.map(|ms| ms.p99_9)),
    less("max", 2, |run| run.latency_ms.map(|ms| ms.max)),
    less("server µs", 1, |run| run.server_cpu_us),
    less("redis µs", 1, |run| run.redis_cpu_us),
    less("server %", 1, |run| Some(run.server_cpu_percent)),
    less("redis %", 1, |run| Some(run.redis_cpu_percent)),
    less("p99 / alone's", 2, Run::p99_to_alone),
    less("act p50 ms", 2, |run| run.act_ms.map(|ms| ms.p50)),
    less("act p99", 2, |run| run.act_ms.map(|ms| ms.p99)),
    less("history/missed", 2, |run| run.history_per_missed),
    less("behind", 0, |run| run.slow_behind),
    less("bytes/conn", 0, |run| run.idle_bytes),
];

/// To whom the daemon is compared.
const RATIOS: [(Kind, &str); 3] = [
    (Kind::Floor, "daemon / better floor"),
    (Kind::Bare, "daemon / bare reader"),
    (Kind::Peer, "daemon / best peer"),
];

const fn less(title: &'static str, decimals: usize, value: fn(&Run) -> Option<f64>) -> Column {
    Column { title, decimals, more_is_better: false, value }
}

/// All runs of a bench.
#[derive(Debug, Default)]
pub(crate) struct Report {
    runs: Vec<Run>,
    growth: Growth,
}

impl Report {
    /// Adds a run.
    pub(crate) fn add(&mut self, run: Run) {
        self.runs.push(run);
    }

    /// Takes what the cost of a token is as the load grows.
    pub(crate) fn set_growth(&mut self, growth: Growth) {
        self.growth = growth;
    }

    fn all_runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().chain(self.growth.runs())
    }

    /// Whether there were runs and every one was correct. Peers are not what is tested.
    pub(crate) fn is_correct(&self) -> bool {
        let is_fine = |run: &Run| run.is_correct() || Server::is_a(Kind::Peer, run.server);
        self.all_runs().next().is_some() && self.all_runs().all(is_fine)
    }

    /// What the cost of a token is as the load grows.
    pub(crate) const fn growth(&self) -> &Growth {
        &self.growth
    }

    /// The runs of a scenario against a server.
    pub(crate) fn of(&self, scenario: &str, server: &str) -> Vec<&Run> {
        self.runs.iter().filter(|run| run.scenario == scenario && run.server == server).collect()
    }

    /// The runs of a scenario against servers of that kind.
    pub(crate) fn runs_of(&self, scenario: &str, kind: Kind) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.scenario == scenario && Server::is_a(kind, run.server))
    }

    /// The names of the scenarios that ran.
    pub(crate) fn scenarios(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.runs.iter().map(|run| run.scenario).collect();
        names.dedup();
        names
    }

    /// The median over the rounds of the daemon's value divided by the best one of that kind of server in the
    /// same round.
    fn ratio(&self, scenario: &str, column: &Column, to: Kind) -> Option<f64> {
        let ratios = self.of(scenario, Server::Daemon.name()).into_iter().filter_map(|ours| {
            let theirs = self
                .runs
                .iter()
                .filter(|run| {
                    run.scenario == scenario
                        && run.round == ours.round
                        && Server::is_a(to, run.server)
                        && run.problems.is_empty()
                })
                .filter_map(column.value)
                // Without clients only Redis has done the same.
                .filter(|_| to != Kind::Bare || column.title.starts_with("redis"));
            let best = theirs.reduce(if column.more_is_better { f64::max } else { f64::min })?;
            let ratio = (column.value)(ours)? / best;
            ratio.is_finite().then_some(ratio)
        });
        median(ratios.collect())
    }

    /// The tables, in Markdown.
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

    /// What to know before believing the table.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for run in self.all_runs() {
            let busiest = run.producer_cpu_percent.max(run.clients_cpu_percent);
            if busiest > GENERATOR_PERCENT_MAX {
                warnings.push(format!(
                    "{}, {}, round {}: the load generator was busy (producer {:.0} %, clients {:.0} % of a core): \
                     it may have been the limit",
                    run.scenario,
                    run.server,
                    run.round + 1,
                    run.producer_cpu_percent,
                    run.clients_cpu_percent
                ));
            }
            if run.producer_late_ms_p99 > 5.0 {
                warnings.push(format!(
                    "{}, {}, round {}: the producer was late by {:.1} ms (p99)",
                    run.scenario,
                    run.server,
                    run.round + 1,
                    run.producer_late_ms_p99
                ));
            }
        }
        warnings
    }

    /// Every run and every ratio.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        let whole = serde_json::json!({
            "runs": self.runs,
            "ratios_to_better_floor": self.ratios(Kind::Floor),
            "ratios_to_bare_reader": self.ratios(Kind::Bare),
            "ratios_to_best_peer": self.ratios(Kind::Peer),
            "growth": self.growth,
        });
        serde_json::to_string_pretty(&whole)
    }

    fn ratios(&self, to: Kind) -> serde_json::Map<String, serde_json::Value> {
        let of = |scenario| {
            let of = |column: &Column| (column.title.into(), self.ratio(scenario, column, to).into());
            (scenario.to_owned(), serde_json::Value::Object(COLUMNS.iter().map(of).collect()))
        };
        self.scenarios().into_iter().map(of).collect()
    }
}

fn row(table: &mut String, scenario: &str, server: &str, cells: &[String]) {
    // Writing to a String cannot fail.
    writeln!(table, "| {scenario} | {server} | {} |", cells.join(" | ")).ok();
}

fn cell(runs: &[&Run], column: &Column) -> String {
    number(median(runs.iter().filter_map(|run| (column.value)(run)).collect()), column.decimals)
}

/// What became of the tokens of all rounds.
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

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().saturating_sub(1) / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

/// Microseconds of processor time per token.
pub(crate) fn per(cpu: Duration, tokens: u64) -> Option<f64> {
    (tokens > 0).then(|| cpu.as_secs_f64() * 1e6 / tokens as f64)
}

/// A share of a core, in percent.
pub(crate) fn percent(cpu: Duration, wall: Duration) -> f64 {
    cpu.as_secs_f64() / wall.as_secs_f64() * 100.0
}
