//! The one door to stdout and stderr of the commands.
//!
//! A reader that went away (`llm-bridge tail … | head`) is no failure: it ends the command quietly.

use std::io::{ErrorKind, Write as _};

use super::CliError;

/// Writes to stdout at once.
///
/// # Errors
/// When nobody reads any more, or the device refuses.
pub(crate) fn write(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => CliError::NobodyReads,
        _ => CliError::Failed(format!("stdout: {error}")),
    })
}

/// Writes to stderr, as far as it goes: there is no other place to complain.
pub(crate) fn note(text: &str) {
    std::io::stderr().lock().write_all(text.as_bytes()).ok();
}
