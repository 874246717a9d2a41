//! `llm-bridge stats`: shows the statistics of a running daemon, read from its stats socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::fit::{Size, fit};
use super::output::write;
use super::{CliError, Shared};

/// How long the daemon may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The pause between two reads of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Clears a terminal and moves the cursor to its corner.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Show what a running daemon says about itself
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// The daemon's stats socket; by default the configured one
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    action: Action,
    #[command(flatten)]
    shared: Shared,
}

/// The part of the statistics to show, and its format.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Form {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The latency distributions
    #[arg(long)]
    histograms: bool,
}

/// Whether to repeat the request or to reset.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Action {
    /// Every second again, until interrupted
    #[arg(long)]
    watch: bool,
    /// Reset the distributions and maxima
    #[arg(long, conflicts_with = "Form")]
    reset: bool,
}

/// Runs `stats`.
pub(crate) fn run(args: &Stats) -> Result<(), CliError> {
    let configured = args.shared.load()?.listen.stats_socket;
    let socket = args.socket.clone().or(configured).ok_or_else(|| {
        CliError::Usage("there is no stats socket in the configuration; name one with --socket".to_owned())
    })?;
    let word = match (args.action.reset, args.form.json, args.form.histograms) {
        (true, _, _) => "reset",
        (_, true, _) => "json",
        (_, _, true) => "histograms",
        _ => "text",
    };
    loop {
        let answer = ask(&socket, word)?;
        if !args.action.watch {
            return write(&answer);
        }
        // A program can read one JSON text per line; a cleared screen is only for people.
        let (before, answer) = match (args.form.json, Size::of_stdout()) {
            (true, _) => ("", answer),
            (false, Some(size)) => (CLEAR, fit(&answer, size)),
            (false, None) => (CLEAR, answer),
        };
        write(&format!("{before}{answer}"))?;
        std::thread::sleep(WATCH_EVERY);
    }
}

/// Sends one word and reads the answer to its end.
fn ask(socket: &Path, word: &str) -> Result<String, CliError> {
    let answer = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        stream.write_all(format!("{word}\n").as_bytes())?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    let mut answer = answer().map_err(|error| {
        CliError::Failed(format!(
            "{}: {error}; see whether the daemon runs, whether this is its listen.stats_socket (--socket PATH names \
             another), and whether you may open it",
            socket.display()
        ))
    })?;
    if !answer.ends_with('\n') {
        answer.push('\n');
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn one_word_is_sent_and_the_whole_answer_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stats.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut peer, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&peer).read_line(&mut line).unwrap();
                peer.write_all(format!("you said {line}and more").as_bytes()).unwrap();
            });
            assert_eq!(ask(&path, "json").unwrap(), "you said json\nand more\n");
        });
        drop(listener);
        assert!(matches!(ask(&path, "json"), Err(CliError::Failed(_))));
    }
}
