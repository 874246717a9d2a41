//! The filter of the log: a level, or modules with their levels.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};

/// Why a text is not a filter.
#[derive(Debug, thiserror::Error)]
pub enum LogFilterError {
    /// The library cannot parse it.
    #[error("{level:?}: {source}")]
    Malformed {
        /// The whole filter.
        level: String,
        /// The library's reason.
        source: ParseError,
    },
    /// A part of it names neither a level nor a module with its level.
    #[error("{0:?} is not a level: error, warn, info, debug, trace, or module=level, several with commas")]
    UnknownLevel(String),
}

/// Parses a filter such as `info` or `warn,llm_bridge::deliver=debug`.
///
/// # Errors
/// [`LogFilterError`], which names the part that is wrong.
pub fn parse(level: &str) -> Result<EnvFilter, LogFilterError> {
    // The library takes any other word for the name of a module to be logged completely, even a misspelt level, and
    // accepts an empty level.
    let is_known =
        |part: &str| part.contains(['=', '[']) || (!part.is_empty() && part.parse::<LevelFilter>().is_ok());
    let parts: Vec<&str> = level.split(',').map(str::trim).collect();
    match parts.iter().find(|part| !is_known(part)) {
        Some(part) => Err(LogFilterError::UnknownLevel((*part).to_owned())),
        None => EnvFilter::try_new(parts.join(","))
            .map_err(|source| LogFilterError::Malformed { level: level.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_modules_are_accepted_and_misspelt_ones_are_not() {
        for level in ["error", "INFO", "off", "info,llm_bridge::deliver=debug", "warn, llm_bridge=trace"] {
            parse(level).unwrap();
        }
        for (level, named) in
            [("inof", "inof"), ("", "\"\""), ("info,debgu", "debgu"), ("info,llm_bridge=loud", "loud")]
        {
            let message = parse(level).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
    }
}
