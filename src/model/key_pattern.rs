//! The pattern by which Redis keys are recognized as streams: `redis.stream_key`. Pure.

use std::fmt;

use super::{DEFAULT_MODEL, NameError, Naming, StreamName};

const SESSION: &str = "{session}";
const MODEL: &str = "{model}";
/// The longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 256;

/// The words that follow the prefix and a colon in the daemon's own keys. No stream may have such a key.
const OWN: [&str; 16] = [
    "announce",
    "analytics",
    "control",
    "dlq",
    "groups",
    "instance",
    "instances",
    "once",
    "receipts",
    "requests",
    "revoked",
    "running",
    "state",
    "viewers",
    "wake",
    "work",
];

/// The pattern of stream keys. It maps names to keys and back.
///
/// INVARIANT: no two names have the same key, and no name has one of the daemon's own keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPattern {
    /// The text that every key begins with.
    before: String,
    placeholders: Placeholders,
    /// The text that every key ends with.
    after: String,
}

/// The placeholders in their order, with the text between them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Placeholders {
    Session,
    SessionModel(String),
    ModelSession(String),
}

/// Why a text is not a valid pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A placeholder is missing or occurs twice.
    #[error("it has {{session}} once and {{model}} at most once")]
    Placeholders,
    /// It begins with a placeholder.
    #[error("it begins with literal text, by which Redis reports changed keys")]
    Beginning,
    /// Session and model are not separated.
    #[error("between {{session}} and {{model}} stands a character that no session has, such as `:`")]
    Between,
    /// Some keys would be the daemon's own.
    #[error("its keys differ from the daemon's own below redis.prefix: begin it with a word of its own")]
    Own,
    /// The pattern is too long, or has blanks or control characters.
    #[error("it has at most {PATTERN_BYTES_MAX} bytes, without blanks and control characters")]
    Text,
}

impl KeyPattern {
    /// The default pattern: `{prefix}:stream:{session}:{model}`.
    #[must_use]
    pub fn of_prefix(prefix: &str) -> Self {
        Self {
            before: format!("{prefix}:stream:"),
            placeholders: Placeholders::SessionModel(":".to_owned()),
            after: String::new(),
        }
    }

    /// Parses a pattern. `prefix` is the prefix of the daemon's own keys.
    ///
    /// # Errors
    /// If names and keys would not map one to one, or if streams could have the daemon's own keys.
    pub fn parse(text: &str, prefix: &str) -> Result<Self, PatternError> {
        if text.len() > PATTERN_BYTES_MAX || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(PatternError::Text);
        }
        if text.matches(SESSION).count() != 1 || text.matches(MODEL).count() > 1 {
            return Err(PatternError::Placeholders);
        }
        let (left, right) = text.split_once(SESSION).ok_or(PatternError::Placeholders)?;
        let (before, placeholders, after) = match (left.split_once(MODEL), right.split_once(MODEL)) {
            (Some((before, between)), _) => (before, Placeholders::ModelSession(between.to_owned()), right),
            (None, Some((between, after))) => (left, Placeholders::SessionModel(between.to_owned()), after),
            (None, None) => (left, Placeholders::Session, right),
        };
        if before.is_empty() {
            return Err(PatternError::Beginning);
        }
        if placeholders.between().is_some_and(|between| between.chars().all(is_of_session)) {
            return Err(PatternError::Between);
        }
        if may_be_own(before, prefix) {
            return Err(PatternError::Own);
        }
        Ok(Self { before: before.to_owned(), placeholders, after: after.to_owned() })
    }

    /// The key of a stream. If keys have no model, all names of a session have the same key.
    #[must_use]
    pub fn key(&self, name: &StreamName) -> String {
        let (session, model) = (name.session(), name.model());
        let Self { before, placeholders, after } = self;
        match placeholders {
            Placeholders::Session => format!("{before}{session}{after}"),
            Placeholders::SessionModel(between) => format!("{before}{session}{between}{model}{after}"),
            Placeholders::ModelSession(between) => format!("{before}{model}{between}{session}{after}"),
        }
    }

    /// The name of the stream with this key, if the key is a stream's.
    #[must_use]
    pub fn name(&self, key: &[u8]) -> Option<StreamName> {
        let key = std::str::from_utf8(key).ok()?;
        let rest = key.strip_prefix(&*self.before)?.strip_suffix(&*self.after)?;
        let (session, model) = match &self.placeholders {
            Placeholders::Session => (rest, DEFAULT_MODEL),
            // The first character that cannot be part of a session begins the separator.
            Placeholders::SessionModel(between) => {
                let at =
                    rest.find(|c| !is_of_session(c))?.checked_sub(between.find(|c| !is_of_session(c))?)?;
                (rest.get(..at)?, rest.get(at..)?.strip_prefix(&**between)?)
            }
            // The last such character ends the separator.
            Placeholders::ModelSession(between) => {
                let end =
                    |text: &str| text.char_indices().rfind(|&(_, c)| !is_of_session(c)).map(|(at, _)| at);
                let at = end(rest)?.checked_sub(end(between)?)?;
                (rest.get(at..)?.strip_prefix(&**between)?, rest.get(..at)?)
            }
        };
        StreamName::new(session, model).ok()
    }

    /// The stream that a producer writes for this session and model. The model may be omitted if keys have none.
    ///
    /// # Errors
    /// If a name is not valid, or the model is missing.
    pub fn stream(&self, session: &str, model: Option<&str>) -> Result<StreamName, NameError> {
        let name = model.map(|model| StreamName::new(session, model)).transpose()?;
        match name {
            Some(name) if self.has_model() => Ok(name),
            None if self.has_model() => Err(NameError::ModelMissing),
            _ => StreamName::new(session, DEFAULT_MODEL),
        }
    }

    /// How clients name streams.
    #[must_use]
    pub const fn naming(&self) -> Naming {
        if self.has_model() { Naming::SessionAndModel } else { Naming::Session }
    }

    /// Whether keys have a model; otherwise the model of every stream is [`DEFAULT_MODEL`].
    #[must_use]
    pub const fn has_model(&self) -> bool {
        !matches!(self.placeholders, Placeholders::Session)
    }

    /// The literal text that every key begins with. Redis reports changes of the keys with this prefix.
    #[must_use]
    pub fn beginning(&self) -> &str {
        &self.before
    }

    /// The keys as a glob for Redis' ACL, unless they begin with `prefix` like the daemon's own.
    #[must_use]
    pub fn acl_glob(&self, prefix: &str) -> Option<String> {
        if self.before.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(':')) {
            return None;
        }
        let between = self.placeholders.between().map(|between| format!("{}*", escape_glob(between)));
        let (before, after) = (escape_glob(&self.before), escape_glob(&self.after));
        Some(format!("{before}*{}{after}", between.unwrap_or_default()))
    }
}

impl fmt::Display for KeyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, placeholders, after } = self;
        match placeholders {
            Placeholders::Session => write!(f, "{before}{SESSION}{after}"),
            Placeholders::SessionModel(between) => write!(f, "{before}{SESSION}{between}{MODEL}{after}"),
            Placeholders::ModelSession(between) => write!(f, "{before}{MODEL}{between}{SESSION}{after}"),
        }
    }
}

impl Placeholders {
    fn between(&self) -> Option<&str> {
        match self {
            Self::Session => None,
            Self::SessionModel(between) | Self::ModelSession(between) => Some(between),
        }
    }
}

/// Whether the character is allowed in a session.
const fn is_of_session(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '-')
}

/// Whether a key that begins with `before` can be one of the daemon's own, whatever follows.
fn may_be_own(before: &str, prefix: &str) -> bool {
    let own = format!("{prefix}:");
    match before.strip_prefix(&*own) {
        // The word up to the next colon is fixed, or can become any word that it begins.
        Some(rest) => match rest.split_once(':') {
            Some((word, _)) => OWN.contains(&word),
            None => OWN.iter().any(|word| word.starts_with(rest)),
        },
        None => own.starts_with(before),
    }
}

fn escape_glob(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> KeyPattern {
        KeyPattern::parse(text, "llm").unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn name(text: &str) -> StreamName {
        text.parse().unwrap()
    }

    #[test]
    fn keys_follow_the_pattern() {
        for (text, stream, key) in [
            ("llm:stream:{session}:{model}", "s1/llama3:8b", "llm:stream:s1:llama3:8b"),
            ("llm:stream:{session}", "s1/default", "llm:stream:s1"),
            ("chat:{{session}}:tokens", "s1/default", "chat:{s1}:tokens"),
            ("chat:{model}:{session}", "s1/a:b", "chat:a:b:s1"),
            ("x{session}-{}/-{model}}", "a-b/m", "xa-b-{}/-m}"),
            ("x/{session}ä{model}ä", "s/m", "x/sämä"),
            ("llm:streams:{session}", "announce/default", "llm:streams:announce"),
            ("llmx:{session}", "s/default", "llmx:s"),
            ("llm-{session}", "s/default", "llm-s"),
        ] {
            let pattern = pattern(text);
            assert_eq!((pattern.key(&name(stream)).as_str(), pattern.to_string().as_str()), (key, text));
            assert_eq!(pattern.name(key.as_bytes()), Some(name(stream)), "{text}");
        }
        assert_eq!(pattern("llm:stream:{session}:{model}"), KeyPattern::of_prefix("llm"));
    }

    #[test]
    fn without_a_model_in_the_key_every_stream_has_the_default_one() {
        let (with, without) = (KeyPattern::of_prefix("llm"), pattern("chat:{session}"));
        assert_eq!(with.stream("s", Some("m")).unwrap().as_str(), "s/m");
        assert_eq!(with.stream("s", None), Err(NameError::ModelMissing));
        assert_eq!(without.stream("s", None).unwrap().as_str(), "s/default");
        assert_eq!(without.stream("s", Some("m")).unwrap().as_str(), "s/default");
        assert_eq!(without.stream("s", Some("a b")), Err(NameError::Model), "a model is one all the same");
        assert_eq!((with.naming(), without.naming()), (Naming::SessionAndModel, Naming::Session));
    }

    #[test]
    fn keys_of_other_kinds_have_no_stream_name() {
        let with_model = KeyPattern::of_prefix("llm");
        for key in [
            "llm:announce",
            "llm:control:s:m",
            "llm:stream:s",
            "llm:stream::m",
            "llm:stream:s:",
            "llm:stream:ä:m",
        ] {
            assert_eq!(with_model.name(key.as_bytes()), None, "{key}");
        }
        assert_eq!(with_model.name(b"llm:stream:s:\xff"), None);
        let without = pattern("chat:{session}:t");
        for key in ["chat:a:b:t", "chat::t", "chat:t", "chat:a:u", "chat:..:t"] {
            assert_eq!(without.name(key.as_bytes()), None, "{key}");
        }
    }

    #[test]
    fn patterns_that_would_not_do_are_refused() {
        for (text, error) in [
            ("llm:stream", PatternError::Placeholders),
            ("x:{model}", PatternError::Placeholders),
            ("x:{session}:{session}", PatternError::Placeholders),
            ("x:{session}:{model}:{model}", PatternError::Placeholders),
            ("x:{Session}:{model}", PatternError::Placeholders),
            ("{session}:{model}", PatternError::Beginning),
            ("{model}:{session}", PatternError::Beginning),
            ("x:{session}{model}", PatternError::Between),
            ("x:{session}-to-{model}", PatternError::Between),
            ("x:{model}.{session}", PatternError::Between),
            ("llm:{session}", PatternError::Own),
            ("llm:{session}:{model}", PatternError::Own),
            ("llm:control:{session}", PatternError::Own),
            ("llm:control:x:{session}", PatternError::Own),
            ("llm:s{session}:{model}", PatternError::Own),
            ("llm:announc{session}", PatternError::Own),
            ("l{session}:{model}", PatternError::Own),
            ("llm{session}", PatternError::Own),
            ("x: {session}", PatternError::Text),
            ("x:\n{session}", PatternError::Text),
        ] {
            assert_eq!(KeyPattern::parse(text, "llm"), Err(error), "{text}");
        }
        assert_eq!(
            KeyPattern::parse(&format!("{}{{session}}", "x".repeat(256)), "llm"),
            Err(PatternError::Text)
        );
        assert!(KeyPattern::parse("llm:{session}", "other").is_ok(), "other keys are others'");
    }

    #[test]
    fn rights_are_asked_for_what_lies_outside_the_prefix() {
        for (text, glob) in [
            ("llm:stream:{session}:{model}", None),
            ("llm:chat:{session}", None),
            ("chat:{session}", Some("chat:*")),
            ("chat[1]:{session}:{model}:t?", Some(r"chat\[1\]:*:*:t\?")),
            ("llm-{session}", Some("llm-*")),
        ] {
            assert_eq!(pattern(text).acl_glob("llm").as_deref(), glob, "{text}");
        }
    }

    /// A pattern's text, valid or not.
    fn any_text() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "{session}",
            "{model}",
            ":",
            "::",
            "/",
            "-",
            "x",
            "{",
            "}",
            "llm",
            "llm:",
            "control:",
            "stream:",
            "s",
            "ä",
            "a:b",
        ]);
        prop::collection::vec(piece, 1..8).prop_map(|pieces| pieces.concat())
    }

    fn any_name(with_model: bool) -> impl Strategy<Value = StreamName> {
        let session = prop_oneof![
            "[a-z.~-]{1,4}".prop_filter("dots", |text| text != "." && text != ".."),
            prop::sample::select(vec!["control", "announce", "requests", "s", "x", "lm", "tate"])
                .prop_map(str::to_owned),
        ];
        let model = prop_oneof!["[a-z:@+-]{1,5}", Just("m:x/y".to_owned()), Just("control:a:b".to_owned())];
        (session, model).prop_map(move |(session, model)| {
            StreamName::new(&session, if with_model { &model } else { DEFAULT_MODEL }).unwrap()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

        /// Every name can be recovered from its key, no two names have the same key, and no key looks like one of the
        /// daemon's own.
        #[test]
        fn names_and_keys_belong_together_one_to_one(
            text in any_text(),
            names in prop::collection::vec((any_name(true), any_name(false)), 1..12),
        ) {
            let Ok(pattern) = KeyPattern::parse(&text, "llm") else { return Ok(()) };
            prop_assert_eq!(&pattern.to_string(), &text);
            let mut keys: HashMap<String, StreamName> = HashMap::new();
            for (with_model, without) in names {
                let name = if pattern.has_model() { with_model } else { without };
                let key = pattern.key(&name);
                let plain = text.replacen("{session}", name.session(), 1).replacen("{model}", name.model(), 1);
                prop_assert_eq!(&key, &plain);
                prop_assert_eq!(pattern.name(key.as_bytes()), Some(name.clone()), "{}", key);
                prop_assert!(key.starts_with(pattern.beginning()));
                let own = key.strip_prefix("llm:").and_then(|rest| rest.split(':').next());
                prop_assert!(own.is_none_or(|word| !OWN.contains(&word)), "{} gives {}", text, key);
                let known = keys.entry(key).or_insert_with(|| name.clone());
                prop_assert_eq!(&*known, &name);
            }
        }

        /// A key that has a name is the key of that name.
        #[test]
        fn a_key_that_has_a_name_is_its(text in any_text(), key in "(llm:|x:|s)?[a-z:{}/ä-]{0,12}") {
            let Ok(pattern) = KeyPattern::parse(&text, "llm") else { return Ok(()) };
            if let Some(name) = pattern.name(key.as_bytes()) {
                prop_assert_eq!(pattern.key(&name), key);
            }
        }
    }
}
