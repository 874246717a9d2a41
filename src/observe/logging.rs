//! The log: lines of text or JSON on standard error, filtered by level and module.
//!
//! Under journald, lines have no time, because the journal adds its own; colours are for terminals only. Rotation and
//! retention of the log are not handled here.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;

use crate::config;
use crate::log_filter::{self, LogFilterError};

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is malformed.
    #[error("log.level: {0}")]
    Filter(#[from] LogFilterError),
    /// The process has a log already.
    #[error("the log was set up before")]
    AlreadySet,
}

/// Sends the log of this process to standard error from now on.
///
/// # Errors
/// If the filter is malformed, or the process has a log already.
pub fn init(config: &config::Log) -> Result<(), LogError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(log_filter::parse(&config.level)?)
        .with_writer(io::stderr)
        .with_ansi(!config.json && io::stderr().is_terminal())
        .with_thread_names(true)
        // Otherwise a closed standard error would turn every log line into a panic.
        .log_internal_errors(false);
    let done = match (config.json, is_journal()) {
        (true, true) => builder.json().flatten_event(true).without_time().try_init(),
        (true, false) => builder.json().flatten_event(true).try_init(),
        (false, true) => builder.without_time().try_init(),
        (false, false) => builder.try_init(),
    };
    done.map_err(|_| LogError::AlreadySet)
}

fn is_journal() -> bool {
    let stderr = fs::metadata("/proc/self/fd/2").map(|file| (file.dev(), file.ino())).ok();
    names_stream(std::env::var("JOURNAL_STREAM").ok().as_deref(), stderr)
}

/// Whether `JOURNAL_STREAM` (`device:inode`) names this stream: children of a service inherit the variable even if
/// their standard error is redirected.
fn names_stream(variable: Option<&str>, stderr: Option<(u64, u64)>) -> bool {
    variable
        .and_then(|variable| variable.split_once(':'))
        .and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)))
        .is_some_and(|journal| Some(journal) == stderr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_wrong_is_named_with_its_key() {
        let wrong = config::Log { level: "inof".into(), json: false };
        let message = init(&wrong).unwrap_err().to_string();
        assert!(message.starts_with("log.level: \"inof\" is not a level"), "{message}");
    }

    #[test]
    fn only_the_journal_s_own_stream_goes_without_time() {
        assert!(names_stream(Some("9:42"), Some((9, 42))));
        for (variable, stderr) in [
            (None, Some((9, 42))),
            (Some("9:42"), Some((9, 43))),
            (Some("9:42"), None),
            (Some("9"), Some((9, 42))),
        ] {
            assert!(!names_stream(variable, stderr));
        }
    }
}
