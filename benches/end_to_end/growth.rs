//! The scenario `growth`: the cost of a token as the load grows, over a grid of tokens a second and numbers of
//! streams, with one client each. The more tokens there are, the more of them share the cost of a read and of a
//! wake-up, so the cost per token should fall or stay the same.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::report::median;
use crate::run::Run;
use crate::scenarios::{Scenario, Settings};
use crate::server::Server;
use crate::stage::Result;

/// The name on the command line and in reports.
pub(crate) const NAME: &str = "growth";

const PER_SECOND: &[u32] = &[1_000, 2_000, 5_000, 10_000, 20_000];
const STREAMS: &[u32] = &[100, 1_000, 10_000];
const SMOKE_PER_SECOND: &[u32] = &[1_000];
const SMOKE_STREAMS: &[u32] = &[10, 40];

/// The servers measured. The blocking floor is left out, because it would need too many connections to Redis.
const SERVERS: [Server; 2] = [Server::Daemon, Server::Tracking];
/// How long each run is measured at most.
const DURATION_MAX: Duration = Duration::from_millis(2_500);

/// One run at one point of the grid.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    per_second: u32,
    streams: u32,
    run: Run,
}

/// All measurements.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Growth {
    cells: Vec<Cell>,
}

/// The process whose cost per token is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    /// The daemon or the floor.
    Server,
    /// Redis.
    Redis,
}

/// The cost per token of one server with a given number of streams, by tokens a second.
pub(crate) struct Line {
    /// The server measured.
    pub(crate) server: Server,
    /// The number of streams.
    pub(crate) streams: u32,
    /// Tokens a second, and µs per token.
    pub(crate) points: Vec<(u32, f64)>,
}

/// Measures the grid for those of `servers` that support it; `one` runs a scenario.
pub(crate) fn measure(
    servers: &[Server],
    rounds: usize,
    settings: &Settings,
    mut one: impl FnMut(&Scenario, Server, usize, &Settings) -> Result<Run>,
) -> Result<Growth> {
    let settings = Settings { duration: settings.duration.min(DURATION_MAX), ..settings.clone() };
    let (rates, streams) = match settings.smoke {
        true => (SMOKE_PER_SECOND, SMOKE_STREAMS),
        false => (PER_SECOND, STREAMS),
    };
    let mut growth = Growth::default();
    for round in 0..rounds {
        for &streams in streams {
            for &per_second in rates {
                let scenario = Scenario::even(NAME, streams, per_second);
                for server in SERVERS.into_iter().filter(|server| servers.contains(server)) {
                    let run = one(&scenario, server, round, &settings)?;
                    eprintln!("  {streams} streams, {per_second}/s | {}", run.line());
                    growth.cells.push(Cell { per_second, streams, run });
                }
            }
        }
    }
    Ok(growth)
}

impl Growth {
    /// Every run.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.cells.iter().map(|cell| &cell.run)
    }

    /// The medians over the rounds.
    pub(crate) fn lines(&self, cost: Cost) -> Vec<Line> {
        let mut lines = Vec::new();
        for server in SERVERS {
            for &streams in SMOKE_STREAMS.iter().chain(STREAMS) {
                let points: Vec<_> = PER_SECOND
                    .iter()
                    .filter_map(|&per_second| {
                        Some((per_second, self.cost(cost, server, (streams, per_second))?))
                    })
                    .collect();
                if !points.is_empty() {
                    lines.push(Line { server, streams, points });
                }
            }
        }
        lines
    }

    fn cost(&self, cost: Cost, server: Server, place: (u32, u32)) -> Option<f64> {
        let of = |cell: &Cell| match cost {
            Cost::Server => cell.run.server_cpu_us,
            Cost::Redis => cell.run.redis_cpu_us,
        };
        let here =
            |cell: &&Cell| (cell.streams, cell.per_second) == place && cell.run.server == server.name();
        median(self.cells.iter().filter(here).filter_map(of).collect())
    }

    /// How much more a token of the daemon costs at one rate than at a lower one with as many streams, at most.
    pub(crate) fn rise(&self, cost: Cost) -> Option<f64> {
        let lines = self.lines(cost).into_iter().filter(|line| line.server == Server::Daemon);
        let rises = lines.flat_map(|line| {
            let mut least = f64::INFINITY;
            line.points.into_iter().map(move |(_, us)| {
                let rise = us / least;
                least = least.min(us);
                rise
            })
        });
        rises.filter(|rise| *rise > 0.0).reduce(f64::max)
    }

    /// The table, in Markdown; empty if nothing was measured.
    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        for (cost, whose) in [(Cost::Server, "server"), (Cost::Redis, "Redis")] {
            for line in self.lines(cost) {
                if table.is_empty() {
                    let rates: Vec<_> = line.points.iter().map(|(rate, _)| format!("{rate}/s")).collect();
                    let rule = " --- |".repeat(3 + rates.len());
                    table = format!("| µs per token | run of | streams | {} |\n|{rule}\n", rates.join(" | "));
                }
                let costs: Vec<_> = line.points.iter().map(|(_, us)| format!("{us:.1}")).collect();
                // Writing to a String cannot fail.
                let (server, streams) = (line.server.name(), line.streams);
                writeln!(table, "| {whose} | {server} | {streams} | {} |", costs.join(" | ")).ok();
            }
        }
        table
    }
}
