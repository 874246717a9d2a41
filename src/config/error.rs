//! Errors of a configuration; each message names the place, the key and the allowed values.

use std::fmt;
use std::path::PathBuf;

use super::setting::Origin;

/// All errors of a configuration, displayed one per line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub(super) Vec<ConfigError>);

/// One error.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    origin: Origin,
    key: String,
    problem: Problem,
}

/// The kind of the error, with its details.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("not TOML: {0}")]
    Syntax(String),
    #[error("no such key; {0}")]
    Unknown(Hint),
    #[error("no such section; {0}")]
    UnknownSection(Hint),
    #[error("--set takes section.key=value")]
    Argument,
    #[error("{found} is not allowed; allowed: {allowed}")]
    Value { found: String, allowed: String },
    #[error("{} not allowed; allowed: {allowed}", wrong_items(items))]
    Items { items: Vec<(usize, String)>, allowed: String },
    #[error("not available in this version; leave it at {default}")]
    NotAvailable { default: String },
    #[error("the secret file {} cannot be read: {reason}", path.display())]
    Secret { path: PathBuf, reason: String },
    #[error("{0}")]
    Conflict(String),
}

/// Suggestions in place of an unknown name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Hint {
    #[error("did you mean {0}?")]
    Near(&'static str),
    #[error("[{section}] has: {}", keys.join(", "))]
    KeysOf { section: &'static str, keys: Vec<&'static str> },
    #[error("the sections are: {}", .0.join(", "))]
    Sections(Vec<&'static str>),
}

/// The wrong items of a list, each with its position and text, as the subject of a sentence.
fn wrong_items(items: &[(usize, String)]) -> String {
    const NAMED_MAX: usize = 5;
    let mut named: Vec<String> =
        items.iter().take(NAMED_MAX).map(|(place, item)| format!("item {place} ({item})")).collect();
    if items.len() > NAMED_MAX {
        named.push(format!("{} more", items.len() - NAMED_MAX));
    }
    format!("{} {}", named.join(", "), if items.len() == 1 { "is" } else { "are" })
}

impl ConfigError {
    pub(super) fn new(origin: Origin, key: impl Into<String>, problem: Problem) -> Self {
        Self { origin, key: key.into(), problem }
    }

    /// The key that is wrong, `section.key`; empty if the whole file is.
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
    /// The errors: first those of syntax and names, layer by layer, then those of values.
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
