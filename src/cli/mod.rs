//! The command line: one file per subcommand, one typed error that becomes the exit status.
//!
//! Exit status: 0 done, 1 failed, 2 wrong usage, 78 bad configuration.

mod check;
mod demo;
mod fit;
mod output;
mod produce;
mod relay;
mod serve;
mod stats;
mod stop;
mod tail;
mod upstream;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config, ConfigErrors};
use crate::daemon::DaemonError;

/// Done, or stopped on request.
const DONE: u8 = 0;
/// Something outside went wrong.
const FAILED: u8 = 1;
/// The arguments make no sense.
const USAGE: u8 = 2;
/// The configuration is wrong (`EX_CONFIG` of sysexits.h, on which systemd does not restart).
const CONFIGURATION: u8 = 78;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The arguments make no sense.
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong.
    #[error("the configuration is wrong\n{0}")]
    Config(#[from] ConfigErrors),
    /// `check` found something that the configuration, or Redis' rights, must change.
    #[error("this configuration would not work")]
    Unfit,
    /// The daemon did not start, or did not end in order.
    #[error("{0}")]
    Daemon(#[from] DaemonError),
    /// Something outside went wrong.
    #[error("{0}")]
    Failed(String),
    /// The reader of stdout went away.
    #[error("nobody reads stdout any more")]
    NobodyReads,
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Config(_) | Self::Unfit => CONFIGURATION,
            Self::Daemon(error) => error.exit_code(),
            Self::Failed(_) => FAILED,
            Self::NobodyReads => DONE,
        }
    }
}

/// Delivers LLM tokens from Redis Streams to WebSocket and SSE clients.
#[derive(Debug, Parser)]
#[command(name = "llm-bridge", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Check(check::Check),
    Demo(demo::Demo),
    Produce(Box<produce::Produce>),
    Relay(Box<relay::Relay>),
    Tail(tail::Tail),
    Stats(stats::Stats),
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Shared {
    /// The configuration file; without it, the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key, over file and environment; may be given several times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,
}

impl Shared {
    /// Loads the configuration that the arguments name.
    pub(crate) fn load(&self) -> Result<Config, CliError> {
        Ok(config::load(self.config.as_deref(), config::environment(), &self.sets)?)
    }

    /// The keys that the arguments, the file and the environment set.
    fn given(&self) -> BTreeSet<String> {
        config::given(self.config.as_deref(), config::environment(), &self.sets)
    }
}

/// The address by which a program on this machine reaches a listener.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        address.set_ip(if address.is_ipv4() { v4 } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    address
}

/// Runs the command in `arguments` (which begin with the program's name) and returns its exit status.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(usage) => {
            // Help goes to stdout, errors to stderr; if neither can be written, the status remains.
            usage.print().ok();
            return ExitCode::from(if usage.use_stderr() { USAGE } else { DONE });
        }
    };
    let done = match &cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Check(args) => check::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Produce(args) => produce::run(args),
        Command::Relay(args) => relay::run(args),
        Command::Tail(args) => tail::run(args),
        Command::Stats(args) => stats::run(args),
    };
    match done {
        Ok(()) => ExitCode::from(DONE),
        Err(error) => {
            if !matches!(error, CliError::NobodyReads) {
                output::note(&format!("llm-bridge: {error}\n"));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_commands_are_consistent_and_all_take_the_shared_options() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for name in ["serve", "check", "demo", "produce", "relay", "tail", "stats"] {
            let command = command.find_subcommand(name).unwrap_or_else(|| panic!("{name} is missing"));
            for option in ["config", "set", "help"] {
                let has = command.get_arguments().any(|argument| argument.get_long() == Some(option));
                assert!(has, "{name} --{option}");
            }
        }
    }

    #[test]
    fn errors_become_the_statuses_of_the_contract() {
        assert_eq!(CliError::Usage(String::new()).exit_code(), 2);
        assert_eq!(CliError::Unfit.exit_code(), 78);
        assert_eq!(CliError::Failed(String::new()).exit_code(), 1);
        assert_eq!(CliError::NobodyReads.exit_code(), 0);
        let shared = Shared { config: None, sets: vec!["redis.nonsense=1".into()] };
        assert_eq!(shared.load().unwrap_err().exit_code(), 78);
        let shared = Shared { config: None, sets: vec!["listen.public=0.0.0.0:80".into()] };
        assert!(shared.given().contains("listen.public") && !shared.given().contains("listen.admin"));
        let reached = |address: &str| reachable(address.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!((reached("[::]:80"), reached("10.0.0.1:80")), ("[::1]:80".into(), "10.0.0.1:80".into()));
    }
}
