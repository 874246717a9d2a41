//! The tables of `benches/README.md`, as Markdown, from the runs of one bench: ratios first, then the bars, then the
//! absolute figures, each for every state of the cores that was measured.
//!
//! They replace the part of the file between two marks, so that the file's other text stays.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::bars;
use crate::origin::Origin;
use crate::plot;
use crate::report::{Column, RATIOS, Report, cell, less, median, number};
use crate::run::Run;
use crate::scenarios;
use crate::series::{Sample, quarters};
use crate::server::{Kind, Server};
use crate::stage::Result;

/// The marks around the tables.
const FIGURES: (&str, &str) = ("<!-- figures: written by the bench, see below -->\n", "<!-- /figures -->\n");
/// The marks around those of a run of long scenarios alone.
const SOAKS: (&str, &str) = ("<!-- soaks: written by the bench, see below -->\n", "<!-- /soaks -->\n");

/// The values whose ratios are published.
const RATIO_COLUMNS: &[Column] = &[
    Column { title: "tokens/s", decimals: 2, more_is_better: true, value: rate },
    less("p50", 2, |run| run.latency_ms.as_ref().map(|ms| ms.p50)),
    less("p99", 2, |run| run.latency_ms.as_ref().map(|ms| ms.p99)),
    less("p99.9", 2, |run| run.latency_ms.as_ref().map(|ms| ms.p99_9)),
    less("max", 2, |run| run.latency_ms.as_ref().map(|ms| ms.max)),
    less("act, max", 2, |run| run.act_ms.as_ref().map(|ms| ms.max)),
    less("server's CPU", 2, |run| run.server_cpu_us),
    less("Redis' CPU", 2, |run| run.redis_cpu_us),
    less("bytes a connection", 2, |run| run.idle_bytes),
];

/// The absolute values of loads with a latency.
const LIVE_COLUMNS: &[Column] = &[
    Column {
        title: "tokens/s",
        decimals: 0,
        more_is_better: true,
        value: |run| (run.delivered > 0).then_some(run.delivered_per_second),
    },
    less("p50 ms", 2, |run| run.latency_ms.as_ref().map(|ms| ms.p50)),
    less("p99", 2, |run| run.latency_ms.as_ref().map(|ms| ms.p99)),
    less("p99.9", 2, |run| run.latency_ms.as_ref().map(|ms| ms.p99_9)),
    less("max", 2, |run| run.latency_ms.as_ref().map(|ms| ms.max)),
    less("server, µs/token", 1, |run| run.server_cpu_us),
    less("Redis, µs/token", 1, |run| run.redis_cpu_us),
];

/// The values of the scenarios that test something besides, with or without a latency of their own.
const ACT_COLUMNS: &[Column] = &[
    less("act, p50 ms", 1, |run| run.act_ms.as_ref().map(|ms| ms.p50)),
    less("p99", 1, |run| run.act_ms.as_ref().map(|ms| ms.p99)),
    less("p99.9", 1, |run| run.act_ms.as_ref().map(|ms| ms.p99_9)),
    less("max", 1, |run| run.act_ms.as_ref().map(|ms| ms.max)),
    less("others' p99 / their own alone", 2, Run::p99_to_alone),
    less("reads of each missed entry", 2, |run| run.history_per_missed),
    less("hostile requests/s", 0, |run| run.hostile_per_second),
    less("bytes a connection", 0, |run| run.idle_bytes),
    less("server, % of a core", 1, |run| run.idle_bytes.map(|_| run.server_cpu_percent)),
];

/// The rate, if servers can differ in it: at a fixed one all deliver the same number unless they fall behind.
fn rate(run: &Run) -> Option<f64> {
    (run.delivered > 0 && (run.offered_per_second.is_none() || run.behind))
        .then_some(run.delivered_per_second)
}

type Part = fn(&Sample) -> Option<f64>;

/// All tables, for reports that differ in the state of the cores, and links to the plots.
fn figures(reports: &[Report], origin: &Origin, plots: &[PathBuf]) -> String {
    let mut out = format!("{}\n{}\n", origin.words(), correctness(reports));
    let states: Vec<_> = reports.iter().map(|report| report.cores().name()).collect();
    let states = states.join(" / ");
    section(&mut out, &format!("Ratios: the daemon's to others' ({states})"), &ratios(reports));
    section(&mut out, &format!("Bars ({states})"), &targets(reports));
    for report in reports {
        let name = report.cores().name();
        section(&mut out, &format!("Absolute figures, {name}"), &absolute(report, LIVE_COLUMNS));
        let acts = absolute(report, ACT_COLUMNS);
        section(&mut out, &format!("Acts and their effect on others, {name}"), &acts);
        let growth = report.growth().table();
        section(&mut out, &format!("Processor time per token as the load grows, {name}"), &growth);
        section(&mut out, &format!("Over time, by quarters of the run, {name}"), &over_time(report));
    }
    let links: Vec<_> = plots.iter().filter_map(|plot| link(plot)).collect();
    section(&mut out, "Plots", &links.join(",\n"));
    out
}

fn section(out: &mut String, title: &str, body: &str) {
    if !body.is_empty() {
        // Writing to a String cannot fail.
        write!(out, "### {title}\n\n{body}\n").ok();
    }
}

/// The faults of the daemon and the floors, which are none unless the bench failed.
fn correctness(reports: &[Report]) -> String {
    let all: Vec<_> = reports.iter().flat_map(Report::all_runs).collect();
    let ours: Vec<_> = all.into_iter().filter(|run| !Server::is_a(Kind::Peer, &run.server)).collect();
    let sum = |of: fn(&Run) -> u64| ours.iter().map(|run| of(run)).sum::<u64>();
    format!(
        "In the {} runs of the daemon, the floors and the bare reader {} tokens were lost, {} repeated and {} \
         reordered.\n",
        ours.len(),
        sum(|run| run.lost),
        sum(|run| run.repeated),
        sum(|run| run.reordered)
    )
}

/// A table's head for the columns that have a value in a row.
fn head(first: &[&str], columns: &[&Column]) -> String {
    let titles = first.iter().copied().chain(columns.iter().map(|column| column.title));
    format!(
        "| {} |\n|{}\n",
        titles.collect::<Vec<_>>().join(" | "),
        " --- |".repeat(first.len() + columns.len())
    )
}

/// Joins a value for each report; empty if none has one.
fn joined(values: Vec<Option<String>>) -> String {
    if values.iter().all(Option::is_none) {
        return String::new();
    }
    let values = values.into_iter().map(|value| value.unwrap_or_else(|| "-".into()));
    values.collect::<Vec<_>>().join(" / ")
}

fn ratios(reports: &[Report]) -> String {
    let columns: Vec<_> = RATIO_COLUMNS.iter().collect();
    let mut table = String::new();
    for scenario in scenarios::ALL {
        for (kind, to) in RATIOS {
            let of = |column: &&Column| {
                let ratio = |report: &Report| report.ratio(scenario.name, column, kind);
                joined(reports.iter().map(|report| Some(number(Some(ratio(report)?), 2))).collect())
            };
            let cells: Vec<_> = columns.iter().map(of).collect();
            if cells.iter().all(String::is_empty) {
                continue;
            }
            if table.is_empty() {
                table = head(&["scenario", "ratio"], &columns);
            }
            writeln!(table, "| {} | {to} | {} |", scenario.name, cells.join(" | ")).ok();
        }
    }
    table
}

fn targets(reports: &[Report]) -> String {
    let outcomes: Vec<_> = reports.iter().map(bars::outcomes).collect();
    let Some(first) = outcomes.first().filter(|first| !first.is_empty()) else { return String::new() };
    let mut table = head(&["scenario", "value", "bar", "measured"], &[]);
    for bar in first {
        let is_same = |other: &&bars::Outcome| (other.scenario, &other.what) == (bar.scenario, &bar.what);
        let of = |outcomes: &Vec<bars::Outcome>| {
            let outcome = outcomes.iter().find(is_same)?;
            let verdict = if outcome.reached { "reached" } else { "**missed**" };
            Some(format!("{} {verdict}", outcome.figure()))
        };
        let measured = joined(outcomes.iter().map(of).collect());
        writeln!(table, "| {} | {} | {} | {measured} |", bar.scenario, bar.what, bar.limit).ok();
    }
    table
}

/// The medians of those columns in which any server has a value.
fn absolute(report: &Report, columns: &[Column]) -> String {
    let rows: Vec<(&str, Server, Vec<&Run>)> = scenarios::ALL
        .iter()
        .flat_map(|scenario| Server::ALL.map(|server| (scenario.name, server)))
        .map(|(scenario, server)| (scenario, server, report.of(scenario, server.name())))
        .filter(|(.., runs)| columns.iter().any(|column| has_value(runs, column)))
        .collect();
    let is_used = |column: &&Column| rows.iter().any(|(.., runs)| has_value(runs, column));
    let columns: Vec<_> = columns.iter().filter(is_used).collect();
    let mut table = if rows.is_empty() { String::new() } else { head(&["scenario", "server"], &columns) };
    for (scenario, server, runs) in &rows {
        let cells: Vec<_> = columns.iter().map(|column| cell(runs, column)).collect();
        let behind = if runs.iter().any(|run| run.behind) { ", fell behind" } else { "" };
        writeln!(table, "| {scenario} | {}{behind} | {} |", server.name(), cells.join(" | ")).ok();
    }
    table
}

/// The means of what long runs sampled, in each quarter of the run.
fn over_time(report: &Report) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    let values: [(&str, Part); 6] = [
        ("resident MiB", |sample| Some(sample.resident_bytes as f64 / MIB)),
        ("private MiB", |sample| Some(sample.private_bytes as f64 / MIB)),
        ("descriptors", Sample::open),
        ("p99 ms", |sample| sample.latency_ms.as_ref().map(|ms| ms.p99)),
        ("p99.9 ms", Sample::p99_9),
        ("max ms", |sample| sample.latency_ms.as_ref().map(|ms| ms.max)),
    ];
    let mut table = String::new();
    let long = scenarios::ALL.iter().filter(|scenario| scenario.is_long());
    for run in long.flat_map(|scenario| report.of(scenario.name, Server::Daemon.name())) {
        if table.is_empty() {
            table = head(&["scenario", "mean of", "first", "second", "third", "last"], &[]);
        }
        for (what, value) in values {
            let Some(quarters) = quarters(run, value) else { continue };
            let cells = quarters.map(|quarter| format!("{quarter:.2}")).join(" | ");
            writeln!(table, "| {} | {what} | {cells} |", run.scenario).ok();
        }
    }
    table
}

fn has_value(runs: &[&Run], column: &Column) -> bool {
    median(runs.iter().filter_map(|run| (column.value)(run)).collect()).is_some()
}

/// A link to a plot, named after its file and folder.
fn link(plot: &Path) -> Option<String> {
    let (name, folder) = (plot.file_stem()?.to_str()?, plot.parent()?.file_name()?.to_str()?);
    let state = if folder == plot::HALF_TAKEN { ", half taken" } else { "" };
    Some(format!("[{name}{state}]({})", plot.display()))
}

/// A file whose tables will be replaced. It is read before the runs, so that a file without marks costs no hour.
pub(crate) struct Tables<'a> {
    path: &'a Path,
    text: String,
    marks: (&'static str, &'static str),
}

impl<'a> Tables<'a> {
    /// Reads the file and checks its marks, for a run of long scenarios alone or any other.
    pub(crate) fn read(path: &'a Path, are_long: bool) -> Result<Self> {
        let marks = if are_long { SOAKS } else { FIGURES };
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        replace(&text, marks, "").map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, text, marks })
    }

    /// Writes the file with the tables of these reports, and links to the plots.
    pub(crate) fn write(&self, reports: &[Report], origin: &Origin, plots: &[PathBuf]) -> Result<()> {
        let from_file = |plot: &PathBuf| {
            let folder = self.path.parent()?;
            plot.strip_prefix(folder).ok().map(Path::to_owned)
        };
        let plots: Vec<_> = plots.iter().filter_map(from_file).collect();
        let figures = figures(reports, origin, &plots);
        Ok(std::fs::write(self.path, replace(&self.text, self.marks, &figures)?)?)
    }
}

/// Replaces what is between the marks of `text`.
fn replace(text: &str, (begin, end): (&str, &str), figures: &str) -> Result<String> {
    let lack = || format!("the file needs the lines {:?} and {:?}, in this order", begin.trim(), end.trim());
    let (before, rest) = text.split_once(begin).ok_or_else(lack)?;
    let (_, after) = rest.split_once(end).ok_or_else(lack)?;
    Ok(format!("{before}{begin}\n{}\n\n{end}{after}", figures.trim_end()))
}
