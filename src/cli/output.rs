//! The one door to stdout and stderr of the commands.
//!
//! A reader that went away (`llm-bridge tail … | head`) is no failure: it ends the command quietly.

use std::io::{ErrorKind, Write};

use super::CliError;

/// Writes to stdout at once.
///
/// # Errors
/// When nobody reads any more, or the device refuses.
pub(crate) fn write(text: &str) -> Result<(), CliError> {
    write_to(&mut std::io::stdout().lock(), text)
}

/// Writes at once to what stands for stdout.
///
/// # Errors
/// As [`write`].
pub(crate) fn write_to(out: &mut dyn Write, text: &str) -> Result<(), CliError> {
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
