//! Options of `produce` and `relay` for the model's server.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::CliError;
use crate::config::parse_span;
use crate::produce::Form;
use crate::produce::upstream::{Patience, Upstream, UpstreamError};

/// The longest key that is read from a file, in bytes.
const KEY_BYTES_MAX: usize = 64 * 1024;

/// Options about a model's server.
#[derive(Debug, Args)]
pub(super) struct UpstreamArgs {
    /// A header of every request; may be given several times
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The file with the key of the account (Authorization: Bearer, or x-api-key for Anthropic)
    #[arg(long, value_name = "FILE", conflicts_with = "key_env")]
    key_file: Option<PathBuf>,
    /// The environment variable with the key
    #[arg(long, value_name = "NAME")]
    key_env: Option<String>,
    /// Trust these certificates (PEM) instead of the public authorities
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// How often a request is tried again, before its first token
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=100))]
    retries: u32,
    /// How long connecting may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    connect_timeout: Duration,
    /// How long the model may think before anything comes
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time)]
    first_timeout: Duration,
    /// How long the upstream may be silent in the middle of its answer
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = time)]
    silence_timeout: Duration,
    /// After how long without an entry a heartbeat is written
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    pub(super) heartbeat_every: Duration,
}

pub(super) fn time(text: &str) -> Result<Duration, String> {
    let time = parse_span(text).filter(|time| !time.is_zero());
    time.ok_or_else(|| "a time above zero, such as 250ms, 30s or 5m".to_owned())
}

impl UpstreamArgs {
    /// The server at `url`. Its answers are in this form, if one is given, and end after a finish reason and
    /// `finish_grace`.
    pub(super) fn upstream(
        &self,
        url: &str,
        form: Option<Form>,
        finish_grace: Duration,
    ) -> Result<Upstream, CliError> {
        let usage = |error: UpstreamError| CliError::Usage(error.to_string());
        let patience = Patience {
            connect: self.connect_timeout,
            first: self.first_timeout,
            silence: self.silence_timeout,
            finish: finish_grace,
            heartbeat: self.heartbeat_every,
            retries: self.retries,
        };
        let mut upstream = Upstream::new(url, patience).map_err(usage)?;
        if let Some(form) = form {
            upstream = upstream.speaking(form);
        }
        if let Some(key) = self.key()? {
            upstream = upstream.key(&key).map_err(usage)?;
        }
        // Added last, so that they take precedence.
        for header in &self.headers {
            upstream = upstream.header(header).map_err(usage)?;
        }
        match &self.ca_file {
            Some(path) => upstream.trusting(path).map_err(usage),
            None => Ok(upstream),
        }
    }

    fn key(&self) -> Result<Option<String>, CliError> {
        let key = match (&self.key_file, &self.key_env) {
            (Some(path), _) => std::fs::read_to_string(path)
                .map_err(|error| CliError::Usage(format!("--key-file {}: {error}", path.display())))?,
            (None, Some(name)) => std::env::var(name)
                .map_err(|_| CliError::Usage(format!("--key-env: {name} is not set, or is not text")))?,
            (None, None) => return Ok(None),
        };
        match key.trim() {
            "" => Err(CliError::Usage("the key is empty".to_owned())),
            key if key.len() > KEY_BYTES_MAX => {
                Err(CliError::Usage("the key is longer than 64 KiB".to_owned()))
            }
            key => Ok(Some(key.to_owned())),
        }
    }
}
