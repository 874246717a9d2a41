//! Stream names: `{session}/{model}`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest session or model id, in bytes.
const ID_BYTES_MAX: usize = 128;

/// A stream's name as people, tokens and logs write it: `{session}/{model}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamName {
    name: Arc<str>,
    /// The length of the session, which is the index of the first slash.
    session_len: usize,
}

/// Why a text is not a valid stream name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is no slash between session and model.
    #[error("a stream name is {{session}}/{{model}}")]
    Form,
    /// The session id is not valid.
    #[error("a session id is 1 to 128 of A-Z a-z 0-9 . _ ~ -, and neither `.` nor `..`")]
    Session,
    /// The model id is not valid.
    #[error(
        "a model id is 1 to 128 of A-Z a-z 0-9 . _ ~ : / @ + -, without an empty, `.` or `..` segment between slashes"
    )]
    Model,
    /// The model is missing, although streams have one.
    #[error("the model is missing: it may be left out only where redis.stream_key has no {{model}}")]
    ModelMissing,
    /// The name has a model, although streams have none.
    #[error(
        "streams have no model here, since redis.stream_key has none: ask for {{session}}, or {{session}}/{DEFAULT_MODEL}"
    )]
    NoModels,
}

/// How clients name streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `{session}/{model}`.
    SessionAndModel,
    /// `{session}`, because all streams have the model [`DEFAULT_MODEL`], which may be written too.
    Session,
}

/// The model of all streams if keys have none.
pub const DEFAULT_MODEL: &str = "default";

impl Naming {
    /// Parses the name of a stream.
    ///
    /// # Errors
    /// If the text is not a valid name, or has a model although streams have none.
    pub fn read(self, text: &str) -> Result<StreamName, NameError> {
        match (self, text.split_once('/')) {
            (Self::SessionAndModel, _) => text.parse(),
            (Self::Session, None) => StreamName::new(text, DEFAULT_MODEL),
            (Self::Session, Some(_)) => {
                let name: StreamName = text.parse()?;
                if name.model() == DEFAULT_MODEL { Ok(name) } else { Err(NameError::NoModels) }
            }
        }
    }
}

impl StreamName {
    /// A name from its two parts.
    ///
    /// # Errors
    /// If a part has a character, length or segment that is not allowed.
    pub fn new(session: &str, model: &str) -> Result<Self, NameError> {
        if !is_session(session) {
            return Err(NameError::Session);
        }
        if !is_model(model) {
            return Err(NameError::Model);
        }
        Ok(Self { name: format!("{session}/{model}").into(), session_len: session.len() })
    }

    /// The session id.
    #[must_use]
    pub fn session(&self) -> &str {
        &self.name[..self.session_len]
    }

    /// The model id.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.name[self.session_len + 1..]
    }

    /// The whole name, `{session}/{model}`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

impl FromStr for StreamName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (session, model) = text.split_once('/').ok_or(NameError::Form)?;
        Self::new(session, model)
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn is_session(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~-".contains(&b))
        && text != "."
        && text != ".."
}

fn is_model(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~:/@+-".contains(&b))
        && text.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_people_write() {
        for text in ["s1/gpt-4o", "s/llama3:8b", "~.x/meta-llama/Llama-3.1-8B-Instruct", "a/b@c+d"] {
            let name: StreamName = text.parse().unwrap();
            assert_eq!(name.as_str(), text);
            assert_eq!(Naming::SessionAndModel.read(text), Ok(name));
        }
    }

    #[test]
    fn without_models_the_session_is_the_name() {
        let read = |text| Naming::Session.read(text).map(|name| name.to_string());
        assert_eq!(read("s1"), Ok("s1/default".to_owned()));
        assert_eq!(read("s1/default"), Ok("s1/default".to_owned()));
        assert_eq!(read("s1/gpt-4o"), Err(NameError::NoModels));
        assert_eq!(read("s1/default/x"), Err(NameError::NoModels));
        assert_eq!(read("s1/"), Err(NameError::Model));
        assert_eq!(read("a:b"), Err(NameError::Session));
        assert_eq!(Naming::SessionAndModel.read("s1"), Err(NameError::Form));
    }

    #[test]
    fn bad_names_are_refused() {
        assert_eq!("s1".parse::<StreamName>(), Err(NameError::Form));
        let long = "x".repeat(129);
        for (session, model, error) in [
            ("", "m", NameError::Session),
            ("..", "m", NameError::Session),
            ("a:b", "m", NameError::Session),
            ("ä", "m", NameError::Session),
            (long.as_str(), "m", NameError::Session),
            ("s", "", NameError::Model),
            ("s", "a//b", NameError::Model),
            ("s", "a/../b", NameError::Model),
            ("s", "/a", NameError::Model),
            ("s", "a b", NameError::Model),
            ("s", long.as_str(), NameError::Model),
        ] {
            assert_eq!(StreamName::new(session, model), Err(error), "{session:?} {model:?}");
        }
    }
}
