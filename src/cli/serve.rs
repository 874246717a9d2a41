//! `llm-bridge serve`: the daemon.

use clap::Args;

use super::{CliError, Shared};
use crate::{daemon, observe};

/// Run the daemon
#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    shared: Shared,
}

/// Runs `serve` until it is stopped.
pub(crate) fn run(args: &Serve) -> Result<(), CliError> {
    let config = args.shared.load()?;
    observe::logging::init(&config.log).map_err(|error| CliError::Failed(error.to_string()))?;
    Ok(daemon::run(config)?)
}
