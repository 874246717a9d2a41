//! `llm-bridge produce`: stdin into a stream.

mod feed;

use std::fs::File;
use std::os::fd::AsFd as _;

use clap::Args;

use self::feed::{Feed, From};
use super::stop::stop_flag;
use super::{CliError, Shared};
use crate::event::StreamName;
use crate::observe;
use crate::produce::{CancelWatch, Producer, RedisWires};

/// Write stdin into a stream
#[derive(Debug, Args)]
pub(crate) struct Produce {
    /// The session id
    #[arg(long)]
    session: String,
    /// The model id
    #[arg(long)]
    model: String,
    /// What stdin is: text as it comes, one native object a line, or the event stream of a model's server
    #[arg(long, value_enum, default_value_t = From::Text)]
    from: From,
    /// Write at most so many tokens (words, lines, events) a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    #[command(flatten)]
    shared: Shared,
}

/// Runs `produce` until the input ends.
pub(crate) fn run(args: &Produce) -> Result<(), CliError> {
    let config = args.shared.load()?;
    let name =
        StreamName::new(&args.session, &args.model).map_err(|error| CliError::Usage(error.to_string()))?;
    observe::logging::init(&config.log).map_err(|error| CliError::Failed(error.to_string()))?;
    let stopping = stop_flag()?;
    let wires = RedisWires::new(&config.redis, &name).map_err(failed)?;
    let mut cancels = CancelWatch::new(&config.redis, &name).map_err(failed)?;
    cancels.begin();
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let input = File::from(stdin.map_err(|error| CliError::Failed(format!("stdin: {error}")))?);
    Feed::new(Producer::new(wires), args.from, cancels, stopping).at_rate(args.rate).run(input)
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(error.to_string())
}
