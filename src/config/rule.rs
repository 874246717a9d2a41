//! The kinds of settings: how a value is read, what is allowed, and how it is written as TOML.
//!
//! A key is a name and a rule; the keys themselves, with their defaults and bounds, are in `defaults`.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::setting::{Setting, Value};

/// Units of durations, largest first, in microseconds.
const SPAN_UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// Units of sizes, largest first, in bytes.
const SIZE_UNITS: [(&str, usize); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// One key of the configuration.
#[derive(Debug)]
pub(super) struct Key<R> {
    /// `section.key`
    pub(super) name: &'static str,
    pub(super) rule: R,
}

/// Why a rule does not accept a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It has the wrong type or is out of range.
    Wrong,
    /// It is a list, and these items are wrong: their positions, counted from 1, and their texts.
    Items(Vec<(usize, String)>),
    /// It is a list of too many items: their number.
    TooMany(usize),
    /// It requires something that this version does not support.
    NotYet,
}

/// How the values of a key are read and written.
pub(super) trait Rule {
    /// The type of the value in the program.
    type Out;

    /// The default value.
    fn default(&self) -> Self::Out;
    /// The value of a setting.
    fn read(&self, setting: &Setting) -> Result<Self::Out, Refusal>;
    /// The allowed values, in words.
    fn allowed(&self) -> String;
    /// A value as TOML that [`Rule::read`] reads back.
    fn show(&self, value: &Self::Out) -> String;
}

/// A duration in a range. `zero` is the meaning of 0; `None`: 0 is not allowed.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) default: Duration,
    pub(super) min: Duration,
    pub(super) max: Duration,
    pub(super) zero: Option<Duration>,
}

/// A number of bytes in a range.
#[derive(Debug)]
pub(super) struct Size {
    pub(super) default: usize,
    pub(super) min: usize,
    pub(super) max: usize,
}

/// A whole number in a range. `zero` is the meaning of 0; `None`: 0 is not allowed.
#[derive(Debug)]
pub(super) struct Count<T> {
    pub(super) default: T,
    pub(super) min: T,
    pub(super) max: T,
    pub(super) zero: Option<T>,
}

/// `true` or `false`.
#[derive(Debug)]
pub(super) struct Flag {
    pub(super) default: bool,
}

/// A text that `is_allowed` accepts.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) default: &'static str,
    pub(super) is_allowed: fn(&str) -> bool,
    pub(super) allowed: &'static str,
}

/// An IP address and a port.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) default: SocketAddr,
}

/// A path; an empty text means that there is none.
#[derive(Debug)]
pub(super) struct File {
    pub(super) default: &'static str,
}

/// A list of texts, each of which `is_allowed` accepts.
#[derive(Debug)]
pub(super) struct Texts {
    pub(super) default: &'static [&'static str],
    /// The most texts.
    pub(super) max: usize,
    pub(super) is_allowed: fn(&str) -> bool,
    pub(super) allowed: &'static str,
}

/// One of a few words; the first is the default.
#[derive(Debug)]
pub(super) struct Choice<T: 'static> {
    pub(super) words: &'static [(&'static str, T)],
}

/// A key of the contract for which this version accepts only the default.
#[derive(Debug)]
pub(super) enum NotYet {
    Word(&'static str),
    Flag(bool),
}

impl Rule for Span {
    type Out = Duration;

    fn default(&self) -> Duration {
        self.default
    }

    fn read(&self, setting: &Setting) -> Result<Duration, Refusal> {
        let span = match &setting.value {
            Value::Integer(0) => Duration::ZERO,
            Value::Text(text) => parse_span(text).ok_or(Refusal::Wrong)?,
            _ => return Err(Refusal::Wrong),
        };
        match self.zero {
            Some(zero) if span.is_zero() => Ok(zero),
            _ if (self.min..=self.max).contains(&span) => Ok(span),
            _ => Err(Refusal::Wrong),
        }
    }

    fn allowed(&self) -> String {
        let range = format!("a duration from {} to {}", show_span(self.min), show_span(self.max));
        if self.zero.is_some() { format!("{range}, or 0") } else { range }
    }

    fn show(&self, value: &Duration) -> String {
        if self.zero == Some(*value) { "0".to_owned() } else { show_span(*value) }
    }
}

impl Rule for Size {
    type Out = usize;

    fn default(&self) -> usize {
        self.default
    }

    fn read(&self, setting: &Setting) -> Result<usize, Refusal> {
        let size = match &setting.value {
            Value::Integer(bytes) => usize::try_from(*bytes).ok(),
            Value::Text(text) => parse_size(text),
            _ => None,
        };
        size.filter(|size| (self.min..=self.max).contains(size)).ok_or(Refusal::Wrong)
    }

    fn allowed(&self) -> String {
        format!("a size from {} to {}", show_size(self.min), show_size(self.max))
    }

    fn show(&self, value: &usize) -> String {
        show_size(*value)
    }
}

impl<T: TryFrom<i64> + PartialOrd + Copy + Display> Rule for Count<T> {
    type Out = T;

    fn default(&self) -> T {
        self.default
    }

    fn read(&self, setting: &Setting) -> Result<T, Refusal> {
        match (&setting.value, self.zero) {
            (Value::Integer(0), Some(zero)) => Ok(zero),
            (Value::Integer(number), _) => T::try_from(*number)
                .ok()
                .filter(|number| (self.min..=self.max).contains(number))
                .ok_or(Refusal::Wrong),
            _ => Err(Refusal::Wrong),
        }
    }

    fn allowed(&self) -> String {
        let range = format!("a whole number from {} to {}", self.min, self.max);
        if self.zero.is_some() { format!("{range}, or 0") } else { range }
    }

    fn show(&self, value: &T) -> String {
        if self.zero == Some(*value) { "0".to_owned() } else { value.to_string() }
    }
}

impl Rule for Flag {
    type Out = bool;

    fn default(&self) -> bool {
        self.default
    }

    fn read(&self, setting: &Setting) -> Result<bool, Refusal> {
        match setting.value {
            Value::Flag(flag) => Ok(flag),
            _ => Err(Refusal::Wrong),
        }
    }

    fn allowed(&self) -> String {
        "true or false".to_owned()
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
}

impl Rule for Text {
    type Out = String;

    fn default(&self) -> String {
        self.default.to_owned()
    }

    fn read(&self, setting: &Setting) -> Result<String, Refusal> {
        text_of(setting).filter(|text| (self.is_allowed)(text)).map(ToOwned::to_owned).ok_or(Refusal::Wrong)
    }

    fn allowed(&self) -> String {
        self.allowed.to_owned()
    }

    fn show(&self, value: &String) -> String {
        quoted(value)
    }
}

impl Rule for Address {
    type Out = SocketAddr;

    fn default(&self) -> SocketAddr {
        self.default
    }

    fn read(&self, setting: &Setting) -> Result<SocketAddr, Refusal> {
        text_of(setting).and_then(|text| text.parse().ok()).ok_or(Refusal::Wrong)
    }

    fn allowed(&self) -> String {
        "an IP address and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"".to_owned()
    }

    fn show(&self, value: &SocketAddr) -> String {
        quoted(&value.to_string())
    }
}

impl Rule for File {
    type Out = Option<PathBuf>;

    fn default(&self) -> Option<PathBuf> {
        some_path(self.default)
    }

    fn read(&self, setting: &Setting) -> Result<Option<PathBuf>, Refusal> {
        let text = text_of(setting).filter(|text| !text.contains('\0')).ok_or(Refusal::Wrong)?;
        Ok(some_path(text))
    }

    fn allowed(&self) -> String {
        "a path, or \"\" for none".to_owned()
    }

    fn show(&self, value: &Option<PathBuf>) -> String {
        quoted(&value.as_ref().map(|path| path.to_string_lossy()).unwrap_or_default())
    }
}

impl Rule for Texts {
    type Out = Vec<String>;

    fn default(&self) -> Vec<String> {
        self.default.iter().map(|&text| text.to_owned()).collect()
    }

    fn read(&self, setting: &Setting) -> Result<Vec<String>, Refusal> {
        let Value::List(items) = &setting.value else { return Err(Refusal::Wrong) };
        if items.len() > self.max {
            return Err(Refusal::TooMany(items.len()));
        }
        let (mut texts, mut wrong) = (Vec::with_capacity(items.len()), Vec::new());
        for (at, item) in items.iter().enumerate() {
            match item {
                Value::Text(text) if (self.is_allowed)(text) => texts.push(text.clone()),
                _ => wrong.push((at + 1, item.to_string())),
            }
        }
        if wrong.is_empty() { Ok(texts) } else { Err(Refusal::Items(wrong)) }
    }

    fn allowed(&self) -> String {
        if self.max == usize::MAX {
            return format!("a list of texts in brackets, each {}", self.allowed);
        }
        format!("a list of up to {} texts in brackets, each {}", self.max, self.allowed)
    }

    fn show(&self, value: &Vec<String>) -> String {
        let items: Vec<String> = value.iter().map(|item| quoted(item)).collect();
        format!("[{}]", items.join(", "))
    }
}

impl<T: Copy + PartialEq> Rule for Choice<T> {
    type Out = T;

    fn default(&self) -> T {
        self.words[0].1
    }

    fn read(&self, setting: &Setting) -> Result<T, Refusal> {
        let text = text_of(setting).ok_or(Refusal::Wrong)?;
        let found = self.words.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).ok_or(Refusal::Wrong)
    }

    fn allowed(&self) -> String {
        let words: Vec<String> = self.words.iter().map(|(word, _)| quoted(word)).collect();
        words.join(" or ")
    }

    fn show(&self, value: &T) -> String {
        let word = self.words.iter().find(|(_, known)| known == value);
        quoted(word.map_or("", |(word, _)| word))
    }
}

impl Rule for NotYet {
    type Out = ();

    fn default(&self) {}

    fn read(&self, setting: &Setting) -> Result<(), Refusal> {
        let is_default = match (self, &setting.value) {
            (Self::Word(word), Value::Text(text)) => word == text,
            (Self::Flag(default), Value::Flag(flag)) => default == flag,
            _ => false,
        };
        if is_default { Ok(()) } else { Err(Refusal::NotYet) }
    }

    fn allowed(&self) -> String {
        self.show(&())
    }

    fn show(&self, (): &()) -> String {
        match self {
            Self::Word(word) => quoted(word),
            Self::Flag(flag) => flag.to_string(),
        }
    }
}

/// The text of a setting; a number typed into a shell can be a text too.
fn text_of(setting: &Setting) -> Option<&str> {
    match (&setting.value, &setting.text) {
        (Value::Text(text), _) | (_, Some(text)) => Some(text),
        _ => None,
    }
}

fn some_path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

/// A text as a TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

pub(crate) fn parse_span(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (number, unit) = split_unit(text)?;
    let (_, unit_us) = SPAN_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*unit_us).map(Duration::from_micros)
}

fn show_span(span: Duration) -> String {
    let total_us = span.as_micros();
    let unit = SPAN_UNITS.iter().find(|(_, unit_us)| {
        total_us >= u128::from(*unit_us) && total_us.is_multiple_of(u128::from(*unit_us))
    });
    match unit {
        Some((name, unit_us)) => quoted(&format!("{}{name}", total_us / u128::from(*unit_us))),
        None => "0".to_owned(),
    }
}

fn parse_size(text: &str) -> Option<usize> {
    let (number, unit) = split_unit(text)?;
    let (_, unit_bytes) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    usize::try_from(number).ok()?.checked_mul(*unit_bytes)
}

fn show_size(bytes: usize) -> String {
    match SIZE_UNITS.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => quoted(&format!("{}{name}", bytes / unit)),
        None => "0".to_owned(),
    }
}

/// `250ms` → 250 and `ms`.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spans() {
        for (text, expected) in [
            ("250ms", Some(Duration::from_millis(250))),
            ("30s", Some(Duration::from_secs(30))),
            ("5 m", Some(Duration::from_secs(300))),
            ("1h", Some(Duration::from_secs(3600))),
            ("0", Some(Duration::ZERO)),
            ("0s", Some(Duration::ZERO)),
            ("30", None),
            ("s", None),
            ("", None),
            ("-1s", None),
            ("1.5s", None),
            ("1parsec", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
        ] {
            assert_eq!(parse_span(text), expected, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("256KiB", Some(262_144)),
            ("1MiB", Some(1 << 20)),
            ("7B", Some(7)),
            ("1KB", None),
            ("KiB", None),
            ("18446744073709551615GiB", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn spans_are_shown_as_they_are_read(total_us in 0_u64..u64::MAX / 2) {
            let span = Duration::from_micros(total_us);
            prop_assert_eq!(parse_span(show_span(span).trim_matches('"')), Some(span));
        }

        #[test]
        fn sizes_are_shown_as_they_are_read(bytes in 1_usize..usize::MAX) {
            prop_assert_eq!(parse_size(show_size(bytes).trim_matches('"')), Some(bytes));
        }

        #[test]
        fn no_text_upsets_the_parsers(text in ".{0,40}") {
            parse_span(&text);
            parse_size(&text);
        }
    }
}
