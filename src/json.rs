//! What decoding needs of JSON beyond serde_json: strings that stay escaped, members that stay text.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// What may lie around a JSON value.
pub(crate) const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];

/// The characters between the quotes of a JSON string, if the valid JSON value `raw` is a string.
pub(crate) fn string(raw: &str) -> Option<&str> {
    raw.strip_prefix('"')?.strip_suffix('"')
}

/// The value of a valid JSON number that is written as an unsigned whole number.
pub(crate) fn unsigned(raw: &str) -> Option<u64> {
    // `parse` alone would take a sign, which JSON does not have in front of positive numbers.
    raw.parse().ok()
}

/// What an escaped string means; `None` where it is no text because of a lone surrogate.
pub(crate) fn unescape(escaped: &str) -> Option<Cow<'_, str>> {
    if !escaped.contains('\\') {
        return Some(Cow::Borrowed(escaped));
    }
    serde_json::from_str(&format!("\"{escaped}\"")).ok().map(Cow::Owned)
}

/// A text as the inside of a JSON string; `None` where it is that already.
pub(crate) fn escape(text: &str) -> Option<Box<str>> {
    let needs_none = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
    if text.bytes().all(needs_none) {
        return None;
    }
    let quoted = serde_json::to_string(text).unwrap_or_default();
    Some(string(&quoted).unwrap_or_default().into())
}

/// Whether two escaped strings mean the same.
pub(crate) fn same(a: &str, b: &str) -> bool {
    a == b || ((a.contains('\\') || b.contains('\\')) && unescape(a) == unescape(b))
}

/// Whether every surrogate in valid JSON text is one of a pair. Backslashes occur only within strings, so
/// `text` may be the inside of a string as well as a whole value.
pub(crate) fn surrogates_are_paired(text: &str) -> bool {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&b| b == b'\\') {
        rest = &rest[at..];
        rest = match unit(rest) {
            Some(0xd800..=0xdbff) => match unit(&rest[6..]) {
                Some(0xdc00..=0xdfff) => &rest[12..],
                _ => return false,
            },
            Some(0xdc00..=0xdfff) => return false,
            Some(_) => &rest[6..],
            None => rest.get(2..).unwrap_or_default(),
        };
    }
    true
}

/// The UTF-16 unit that `\uXXXX` at the front stands for.
fn unit(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// The named members of a text that is one JSON object, as raw values; `None` where it is none. A member that is `null`
/// counts as absent, and of one that occurs twice the last counts.
pub(crate) fn members<'a, const N: usize>(text: &'a str, names: [&str; N]) -> Option<[Option<&'a str>; N]> {
    let mut found = [None; N];
    each_member(text, |key, value| {
        if let Some(place) = names.iter().position(|name| *name == key) {
            found[place] = (value != "null").then_some(value);
        }
    })?;
    Some(found)
}

/// Calls `meet` with the name and the raw value of every member of a text that is one JSON object; `None` where it
/// is none.
pub(crate) fn each_member<'a>(text: &'a str, meet: impl FnMut(&str, &'a str)) -> Option<()> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer.deserialize_map(Each(meet)).ok()?;
    deserializer.end().ok()
}

/// The elements of a text that is one JSON array, as raw values.
pub(crate) fn elements(text: &str) -> Option<Vec<&str>> {
    let elements: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    Some(elements.into_iter().map(RawValue::get).collect())
}

struct Each<F>(F);

impl<'de, F: FnMut(&str, &'de str)> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<&'de RawValue>()? {
            let value = map.next_value::<&'de RawValue>()?.get();
            // A name with a lone surrogate is none that anybody asks for.
            if let Some(name) = string(key.get()).and_then(unescape) {
                self.0(&name, value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lone_surrogates_are_found() {
        for good in ["", "a", r"\n\\", r"\ud83d\ude00", r"\\ud83d", r"\u00e4\uD83D\uDE00x", r"\\\ud83d\ude00"]
        {
            assert!(surrogates_are_paired(good), "{good}");
        }
        for bad in [
            r"\ud83d",
            r"\ude00",
            r"\ude00\ud83d",
            r"\ud83dx\ude00",
            r"\ud83d\n",
            r"\\\ud83d",
            r"\ud83d\\ude00",
        ] {
            assert!(!surrogates_are_paired(bad), "{bad}");
        }
    }

    #[test]
    fn escapes_do_not_matter_for_sameness() {
        assert!(same("g1", "g1") && same(r"\u00671", "g1") && same("a/b", r"a\/b"));
        assert!(!same("g1", "g2") && !same(r"\u0067", "x"));
    }

    #[test]
    fn members_are_found_however_they_are_written() {
        let text = r#" {"a": {"x":1} , "\u0062":null,"c":1,"c":"2","\ud800":0} "#;
        assert_eq!(
            members(text, ["a", "b", "c", "d"]),
            Some([Some(r#"{"x":1}"#), None, Some("\"2\""), None])
        );
        for bad in ["[]", "{", "{} x", "1", "", r#"{"a":}"#] {
            assert_eq!(members(bad, ["a"]), None, "{bad}");
        }
        assert_eq!(elements(r#"[1, {"a":[]} ,"x"]"#), Some(vec!["1", r#"{"a":[]}"#, "\"x\""]));
        assert_eq!(elements("{}"), None);
    }

    #[test]
    fn only_whole_unsigned_numbers_count() {
        assert_eq!(unsigned("0"), Some(0));
        assert_eq!(unsigned("18446744073709551615"), Some(u64::MAX));
        for bad in ["-0", "-1", "1.0", "1e3", "18446744073709551616", "\"1\"", "true", "[]"] {
            assert_eq!(unsigned(bad), None, "{bad}");
        }
    }

    proptest! {
        /// What is escaped means the same, and nothing that needs no escaping is touched.
        #[test]
        fn escaping_keeps_the_text(text in ".{0,20}") {
            let escaped = escape(&text);
            let meaning = unescape(escaped.as_deref().unwrap_or(&text));
            prop_assert_eq!(meaning.as_deref(), Some(&*text));
            prop_assert_eq!(escaped.is_some(), serde_json::to_string(&text).unwrap().len() > text.len() + 2);
        }

        /// serde_json refuses exactly the strings with lone surrogates when it unescapes.
        #[test]
        fn agrees_with_unescaping(
            pieces in prop::collection::vec(
                prop_oneof![
                    Just(r"\ud83d"), Just(r"\uDBFF"), Just(r"\ude00"), Just(r"\uDC00"), Just(r"\\"),
                    Just("u"), Just("ud83d"), Just(r"\n"), Just("ä"), Just(r"\u0041"),
                ],
                0..8,
            ),
        ) {
            let escaped = pieces.concat();
            prop_assert_eq!(
                surrogates_are_paired(&escaped),
                serde_json::from_str::<String>(&format!("\"{escaped}\"")).is_ok()
            );
        }
    }
}
