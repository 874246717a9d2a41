//! The value of one key as given, and its origin.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A value in TOML's types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Flag(bool),
    List(Vec<Value>),
    /// A type of value that no key accepts.
    Other(&'static str),
}

/// The origin of a value, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Default,
    File { path: Arc<Path>, line: Option<usize> },
    Environment(String),
    Argument,
}

/// The setting of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) value: Value,
    /// The value as typed, if it came from a shell: `2024` may be meant as a text.
    pub(super) text: Option<String>,
    pub(super) origin: Origin,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::List(items) => write_list(f, items),
            Self::Other(kind) => write!(f, "a TOML {kind}"),
        }
    }
}

/// A list as in a file, shortened if it is long.
fn write_list(f: &mut fmt::Formatter<'_>, items: &[Value]) -> fmt::Result {
    const SHOWN_MAX: usize = 4;
    let mut shown: Vec<String> = items.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
    if items.len() > SHOWN_MAX {
        shown.push("…".to_owned());
    }
    write!(f, "the list [{}]", shown.join(", "))
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the defaults"),
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Argument => f.write_str("--set"),
        }
    }
}
