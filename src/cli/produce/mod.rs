//! `llm-bridge produce`: writes stdin, or the answer of a model's server, into a stream.

mod feed;
mod input;
mod progress;

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;

use self::feed::{Feed, From};
use self::progress::{Counted, Progress};
use super::output::note;
use super::stop::stop_flag;
use super::upstream::UpstreamArgs;
use super::{CliError, Shared, reachable};
use crate::model::{DEFAULT_MODEL, KeyPattern, NameError, StreamName};
use crate::observe;
use crate::produce::upstream::{Answer, Outcome, Request, Upstream};
use crate::produce::{CancelWatch, Producer, RedisWires};

/// The largest request that is read, in bytes.
const REQUEST_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How long a stopping producer tries to write its last entry.
const FAREWELL: Duration = Duration::from_secs(5);

/// Write stdin, or the answer of a model's server, into a stream
#[derive(Debug, Args)]
pub(crate) struct Produce {
    /// The session id
    #[arg(long)]
    session: String,
    /// The model id. Where redis.stream_key has no `{model}`, only for the request of --url
    #[arg(long)]
    model: Option<String>,
    /// The form of stdin: text as it comes (the default), one native object a line, or the event stream of a model's
    /// server.
    /// With --url: the form of the server's answer, `openai` or `anthropic`; by default its first event decides
    #[arg(long, value_enum)]
    from: Option<From>,
    /// Write at most so many tokens (words, lines, events) a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Ask this server instead of reading stdin, such as http://127.0.0.1:8000/v1/chat/completions
    #[arg(long, requires = "request", conflicts_with = "rate")]
    url: Option<String>,
    /// The file with the request's JSON body; `-` is stdin
    #[arg(long, value_name = "FILE", requires = "url")]
    request: Option<PathBuf>,
    /// Say nothing on stderr but what goes wrong
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    upstream: UpstreamArgs,
    #[command(flatten)]
    shared: Shared,
}

/// Runs `produce` until the input ends.
pub(crate) fn run(args: &Produce) -> Result<(), CliError> {
    let config = args.shared.load()?;
    let name = stream_name(args, &config.redis.stream_key)?;
    observe::logging::init(&config.log).map_err(|error| CliError::Failed(error.to_string()))?;
    let asked = match (&args.url, &args.request) {
        (Some(url), Some(file)) => {
            let form = args.from.map(From::form).transpose()?;
            let upstream = args.upstream.upstream(url, form, config.stream.finish_grace)?;
            let request = Request::new(&read_request(file)?, args.model.as_deref(), &upstream);
            let named = |error| CliError::Usage(format!("{}: {error}", file.display()));
            Some((request.map_err(named)?, upstream))
        }
        _ => None,
    };
    let stopping = stop_flag()?;
    let wires = RedisWires::new(&config.redis, &name).map_err(failed)?;
    let mut cancels = CancelWatch::new(&config.redis, &name).map_err(failed)?;
    cancels.begin();
    let progress = if args.quiet { Progress::silent() } else { Progress::new(note) };
    let producer = Producer::new(Counted::new(wires, progress.clone()));
    progress.print(&format!(
        "writing into the stream {name}; watch it: llm-bridge tail 'http://{}/v1/streams/{name}?after=last'",
        reachable(config.listen.public)
    ));
    let done = match asked {
        Some((request, upstream)) => ask(&upstream, &request, (producer, cancels), &stopping),
        None => feed(args, (producer, cancels), stopping),
    };
    progress.finish();
    done
}

/// The stream to write.
fn stream_name(args: &Produce, streams: &KeyPattern) -> Result<StreamName, CliError> {
    // A server may be asked for a model that keys do not contain.
    let model = args.model.as_deref().filter(|model| args.url.is_none() && *model != DEFAULT_MODEL);
    if model.is_some() && !streams.has_model() {
        let message =
            "--model: redis.stream_key has no {model}, so that sessions have one stream each: leave it out";
        return Err(CliError::Usage(message.to_owned()));
    }
    streams.stream(&args.session, args.model.as_deref()).map_err(|error| match error {
        NameError::ModelMissing => CliError::Usage(format!("--model: {error}")),
        _ => CliError::Usage(error.to_string()),
    })
}

/// Writes stdin into the stream.
fn feed(
    args: &Produce,
    (producer, cancels): (Producer<Counted<RedisWires>>, CancelWatch),
    stopping: Arc<AtomicBool>,
) -> Result<(), CliError> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let input = File::from(stdin.map_err(|error| CliError::Failed(format!("stdin: {error}")))?);
    let from = args.from.unwrap_or(From::Text);
    let feed = Feed::new(producer, from, cancels, stopping);
    feed.at_rate(args.rate).beating_every(args.upstream.heartbeat_every).run(input)
}

fn read_request(file: &Path) -> Result<String, CliError> {
    let unusable = |error: std::io::Error| CliError::Usage(format!("{}: {error}", file.display()));
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(REQUEST_BYTES_MAX).read_to_string(&mut text)
    } else {
        File::open(file).and_then(|file| file.take(REQUEST_BYTES_MAX).read_to_string(&mut text))
    };
    read.map_err(unusable).map(|_| text)
}

/// Writes the answer to one request into the stream.
fn ask(
    upstream: &Upstream,
    request: &Request,
    (mut producer, mut cancels): (Producer<Counted<RedisWires>>, CancelWatch),
    stopping: &Arc<AtomicBool>,
) -> Result<(), CliError> {
    let stop = || stopping.load(Ordering::Relaxed);
    match Answer::new(upstream, &mut producer, &mut cancels, &stop).run(request) {
        Outcome::Ended | Outcome::Cancelled => Ok(()),
        Outcome::Failed(failure) => Err(failed(failure)),
        Outcome::Unwritable(error) => Err(failed(error)),
        Outcome::Stopped { .. } => {
            let message = "the producer was interrupted";
            if producer.generation().is_open() {
                producer.push(|generation, ts| generation.error("producer_failed", message, ts));
                let until = Instant::now() + FAREWELL;
                producer.flush(|| Instant::now() >= until).map_err(failed)?;
            }
            Err(failed(message))
        }
    }
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(error.to_string())
}
