//! The only place where commands write to stdout and stderr.
//!
//! Messages often quote text from outside: a provider's code, a server's message, a name. So [`note`] and [`print()`]
//! show control characters as symbols in all messages. A command whose output is data or made for a terminal writes
//! it with [`write_to`] and escapes it itself.
//!
//! A reader that closed its end (`llm-bridge tail … | head`) is not a failure: the command ends quietly.

use std::io::{ErrorKind, Write};

use super::CliError;
use crate::visible;

/// Writes lines for people to stdout, and flushes.
///
/// # Errors
/// If the reader is gone, or the device refuses.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    write_to(&mut std::io::stdout().lock(), &visible::text(text))
}

/// Writes unchanged to stdout, and flushes.
///
/// # Errors
/// As [`print()`].
pub(crate) fn write(text: &str) -> Result<(), CliError> {
    write_to(&mut std::io::stdout().lock(), text)
}

/// Writes to stdout or its substitute, and flushes.
///
/// # Errors
/// As [`print()`].
pub(crate) fn write_to(out: &mut dyn Write, text: &str) -> Result<(), CliError> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => CliError::NobodyReads,
        _ => CliError::Failed(format!("stdout: {error}")),
    })
}

/// Writes lines for people to stderr. Errors are ignored: there is no other place to report them.
pub(crate) fn note(text: &str) {
    std::io::stderr().lock().write_all(visible::text(text).as_bytes()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        assert!(matches!(write_to(&mut Broken(ErrorKind::BrokenPipe), "x"), Err(CliError::NobodyReads)));
        assert!(matches!(write_to(&mut Broken(ErrorKind::StorageFull), "x"), Err(CliError::Failed(_))));
    }
}
