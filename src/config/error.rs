//! What can be wrong with a configuration, in words that name the place, the key and what is allowed.

use std::fmt;
use std::path::PathBuf;

use super::raw::Origin;

/// Everything that is wrong with a configuration; shown with one error a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub(super) Vec<ConfigError>);

/// One thing that is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    origin: Origin,
    key: String,
    problem: Problem,
}

/// What is wrong about it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("not TOML: {0}")]
    Syntax(String),
    #[error("no such key{}", hint(near.as_deref()))]
    Unknown { near: Option<String> },
    #[error("no such section{}", hint(near.as_deref()))]
    UnknownSection { near: Option<String> },
    #[error("--set takes section.key=value")]
    Argument,
    #[error("{found} is not allowed; allowed: {allowed}")]
    Value { found: String, allowed: String },
    #[error("not available in this version; leave it at {default}")]
    NotAvailable { default: String },
    #[error("the secret file {} cannot be read: {reason}", path.display())]
    Secret { path: PathBuf, reason: String },
    #[error("{0}")]
    Conflict(String),
}

fn hint(near: Option<&str>) -> String {
    near.map(|near| format!("; did you mean {near}?")).unwrap_or_default()
}

impl ConfigError {
    pub(super) fn new(origin: Origin, key: impl Into<String>, problem: Problem) -> Self {
        Self { origin, key: key.into(), problem }
    }

    /// The key that is wrong, `section.key`; empty where the whole file is.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}", self.problem)
    }
}

impl ConfigErrors {
    /// The errors: first what is not a configuration at all, layer by layer, then wrong values.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.0.iter().enumerate() {
            let separator = if number == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}
