//! Settings as given, before they are checked: every `section.key` with its value and origin.
//!
//! The file, the environment and `--set` become layers of one [`Raw`]; a later layer replaces an earlier one. Keys
//! are kept as names, not as the fields of a struct, so that one wrong key or type does not hide the next one: all
//! are reported at once. Unknown names are refused here; values are checked in `check`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::defaults;
use super::error::{ConfigError, Hint, Problem};
use super::setting::{Origin, Setting, Value};

/// The prefix of every environment variable that is a setting.
const ENVIRONMENT_PREFIX: &str = "LLM_BRIDGE__";

/// All settings by `section.key`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Raw {
    settings: BTreeMap<String, Setting>,
}

impl Raw {
    /// The setting of a key, if it was given.
    pub(super) fn get(&self, name: &str) -> Option<&Setting> {
        self.settings.get(name)
    }

    /// The keys that were given.
    pub(super) fn into_names(self) -> BTreeSet<String> {
        self.settings.into_keys().collect()
    }

    /// Adds the file at `path`, whose content is `text`.
    ///
    /// A file with a syntax error adds nothing, because what is parsed after an error is unreliable.
    pub(super) fn add_file(&mut self, path: &Path, text: &str, errors: &mut Vec<ConfigError>) {
        let path: Arc<Path> = path.into();
        let at = |offset: usize| Origin::File { path: Arc::clone(&path), line: Some(line_of(text, offset)) };
        let (document, faults) = DeTable::parse_recoverable(text);
        if !faults.is_empty() {
            // One mistake often causes several parser errors: the first one per line is enough.
            let mut lines = BTreeSet::new();
            for fault in &faults {
                let offset = fault.span().map_or(0, |span| span.start);
                if lines.insert(line_of(text, offset)) {
                    let problem = Problem::Syntax(fault.message().to_owned());
                    errors.push(ConfigError::new(at(offset), "", problem));
                }
            }
            return;
        }
        for (section, content) in document.get_ref() {
            let name = section.get_ref();
            let origin = at(section.span().start);
            let Some(content) = content.get_ref().as_table() else {
                errors.push(unknown(origin, name));
                continue;
            };
            if !is_section(name) {
                errors.push(ConfigError::new(
                    origin,
                    name.as_ref(),
                    Problem::UnknownSection(section_hint(name)),
                ));
                continue;
            }
            for (key, value) in content {
                let setting =
                    Setting { value: value_of(value.get_ref()), text: None, origin: at(key.span().start) };
                self.put(&format!("{name}.{}", key.get_ref()), setting, errors);
            }
        }
    }

    /// Adds an environment variable, if its name is that of a setting.
    pub(super) fn add_variable(&mut self, name: &str, text: &str, errors: &mut Vec<ConfigError>) {
        let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) else { return };
        let origin = Origin::Environment(name.to_owned());
        let key = rest.replacen("__", ".", 1).to_ascii_lowercase();
        self.put(&key, typed(text, origin), errors);
    }

    /// Adds the argument of a `--set`.
    pub(super) fn add_argument(&mut self, argument: &str, errors: &mut Vec<ConfigError>) {
        match argument.split_once('=') {
            Some((key, text)) => self.put(key.trim(), typed(text.trim(), Origin::Argument), errors),
            None => errors.push(ConfigError::new(Origin::Argument, argument, Problem::Argument)),
        }
    }

    fn put(&mut self, name: &str, setting: Setting, errors: &mut Vec<ConfigError>) {
        if defaults::NAMES.contains(&name) {
            self.settings.insert(name.to_owned(), setting);
        } else {
            errors.push(unknown(setting.origin, name));
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn value_of(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("integer of more than 64 bits"), Value::Integer),
        DeValue::Boolean(flag) => Value::Flag(*flag),
        DeValue::Array(items) => Value::List(items.iter().map(|item| value_of(item.get_ref())).collect()),
        other => Value::Other(other.type_str()),
    }
}

/// A value as typed into a shell: TOML if it parses as such, otherwise a text.
fn typed(text: &str, origin: Origin) -> Setting {
    let value = match DeValue::parse(text) {
        Ok(value) => value_of(value.get_ref()),
        Err(_) => Value::Text(text.to_owned()),
    };
    Setting { value, text: Some(text.to_owned()), origin }
}

fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}

fn sections() -> impl Iterator<Item = &'static str> {
    defaults::NAMES.iter().filter_map(|name| name.split_once('.')).map(|(section, _)| section)
}

fn unknown(origin: Origin, name: &str) -> ConfigError {
    let key = name.split_once('.').map_or(name, |(_, key)| key);
    // The right key in the wrong section, or in none, is more likely than a typing error.
    let same_key = defaults::NAMES.iter().find(|known| known.ends_with(&format!(".{key}")));
    let near = same_key.or_else(|| nearest(name, defaults::NAMES.iter()));
    let hint = match near {
        Some(known) => Hint::Near(known),
        None => name
            .split_once('.')
            .map_or_else(|| Hint::Sections(section_names()), |(section, _)| keys_hint(section)),
    };
    ConfigError::new(origin, name, Problem::Unknown(hint))
}

/// The keys of a section, or the section that may be meant.
fn keys_hint(name: &str) -> Hint {
    let Some(section) = sections().find(|section| *section == name) else { return section_hint(name) };
    let keys = defaults::NAMES.iter().filter_map(|known| known.split_once('.'));
    Hint::KeysOf { section, keys: keys.filter(|(of, _)| *of == section).map(|(_, key)| key).collect() }
}

fn section_hint(name: &str) -> Hint {
    let known = section_names();
    match nearest(name, known.iter()) {
        Some(section) => Hint::Near(section),
        None => Hint::Sections(known),
    }
}

fn section_names() -> Vec<&'static str> {
    let mut known = Vec::new();
    for section in sections() {
        if !known.contains(&section) {
            known.push(section);
        }
    }
    known
}

/// The candidate that differs from `name` in at most a third of its letters.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a &'static str>) -> Option<&'a &'static str> {
    candidates
        .map(|candidate| (distance(name, candidate), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).min(3))
        .map(|(_, candidate)| candidate)
}

/// The Levenshtein distance, in bytes. A name far longer than any key is far from all of them.
fn distance(left: &str, right: &str) -> usize {
    if left.len() > 2 * right.len() + 3 {
        return left.len() - right.len();
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in right.bytes().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (left, right, expected) in
            [("", "", 0), ("abc", "abd", 1), ("abc", "", 3), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(left, right), expected, "{left} {right}");
        }
    }

    #[test]
    fn typed_values_are_toml_or_text() {
        let value = |text| typed(text, Origin::Argument).value;
        assert_eq!(value("4"), Value::Integer(4));
        assert_eq!(value("0x10"), Value::Integer(16));
        assert_eq!(value("1_000"), Value::Integer(1000));
        assert_eq!(value("true"), Value::Flag(true));
        assert_eq!(value("\"4\""), Value::Text("4".into()));
        assert_eq!(value("60s"), Value::Text("60s".into()));
        assert_eq!(value("127.0.0.1:80"), Value::Text("127.0.0.1:80".into()));
        assert_eq!(value(""), Value::Text(String::new()));
        assert_eq!(value("[\"*\"]"), Value::List(vec![Value::Text("*".into())]));
    }
}
