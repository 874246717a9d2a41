//! `llm-bridge relay`: answers requests from Redis.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::stop::stop_flag;
use super::upstream::{UpstreamArgs, time};
use super::{CliError, Shared};
use crate::produce::Form;
use crate::{observe, relay};

/// Answer the requests that lie in Redis, together with others
#[derive(Debug, Args)]
pub(crate) struct Relay {
    /// The server that answers, such as http://127.0.0.1:8000/v1/chat/completions
    #[arg(long)]
    url: String,
    /// The form of its answers; by default their first event decides
    #[arg(long, value_enum)]
    from: Option<From>,
    /// How many requests are answered at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    /// After how long without a sign of life another worker takes a request over
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = time)]
    takeover_after: Duration,
    #[command(flatten)]
    upstream: UpstreamArgs,
    #[command(flatten)]
    shared: Shared,
}

/// The form of a server's answers.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum From {
    /// Chat completions or Responses, as OpenAI-compatible servers send them.
    Openai,
    /// Anthropic's Messages.
    Anthropic,
}

/// Runs `relay` until it is stopped.
pub(crate) fn run(args: &Relay) -> Result<(), CliError> {
    let config = args.shared.load()?;
    let form = args.from.map(|from| match from {
        From::Openai => Form::OpenAi,
        From::Anthropic => Form::Anthropic,
    });
    let upstream = args.upstream.upstream(&args.url, form, config.stream.finish_grace)?;
    observe::logging::init(&config.log).map_err(|error| CliError::Failed(error.to_string()))?;
    let settings = relay::Settings {
        concurrency: args.concurrency.into(),
        takeover_after: args.takeover_after,
        grace: config.shutdown.grace,
        upstream,
    };
    let stopping = stop_flag()?;
    relay::run(&config, settings, &stopping).map_err(|error| CliError::Failed(error.to_string()))
}
