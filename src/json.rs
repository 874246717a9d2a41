//! JSON helpers beyond serde_json: strings that remain escaped, members that remain text.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The whitespace that JSON allows around a value.
pub(crate) const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];

/// The characters between the quotes of a JSON string, if the valid JSON value `raw` is a string.
pub(crate) fn string(raw: &str) -> Option<&str> {
    raw.strip_prefix('"')?.strip_suffix('"')
}

/// The value of a valid JSON number that is written as an unsigned whole number.
pub(crate) fn unsigned(raw: &str) -> Option<u64> {
    // `parse` alone would accept a plus sign, which JSON does not allow.
    raw.parse().ok()
}

/// The text of an escaped string; `None` if a lone surrogate makes it invalid.
pub(crate) fn unescape(escaped: &str) -> Option<Cow<'_, str>> {
    if !escaped.contains('\\') {
        return Some(Cow::Borrowed(escaped));
    }
    serde_json::from_str(&format!("\"{escaped}\"")).ok().map(Cow::Owned)
}

/// A text as the inside of a JSON string; `None` if it needs no escaping.
pub(crate) fn escape(text: &str) -> Option<Box<str>> {
    let needs_none = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
    if text.bytes().all(needs_none) {
        return None;
    }
    let quoted = serde_json::to_string(text).unwrap_or_default();
    Some(string(&quoted).unwrap_or_default().into())
}

/// Whether two escaped strings have the same meaning.
pub(crate) fn same(a: &str, b: &str) -> bool {
    a == b || ((a.contains('\\') || b.contains('\\')) && unescape(a) == unescape(b))
}

/// Whether every surrogate in valid JSON text is part of a pair. Backslashes occur only within strings, so `text` may
/// be the inside of a string as well as a whole value.
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

/// The UTF-16 unit of `\uXXXX` at the front.
fn unit(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// The named members of a text that is one JSON object, as raw values; `None` if it is not one. A member that is
/// `null` counts as absent, and of one that occurs twice the last counts.
pub(crate) fn members<'a, const N: usize>(text: &'a str, names: [&str; N]) -> Option<[Option<&'a str>; N]> {
    let mut found = [None; N];
    each_member(text, |key, value| {
        if let Some(place) = names.iter().position(|name| *name == key) {
            found[place] = (value != "null").then_some(value);
        }
    })?;
    Some(found)
}

/// The named members of a text that is one JSON object, as in [`members`], and whether it has others with content,
/// apart from the `ignored` ones.
pub(crate) fn members_and_rest<'a, const N: usize>(
    text: &'a str,
    names: [&str; N],
    ignored: &[&str],
) -> Option<([Option<&'a str>; N], bool)> {
    let (mut found, mut has_rest) = ([None; N], false);
    each_member(text, |key, value| match names.iter().position(|name| *name == key) {
        Some(place) => found[place] = (value != "null").then_some(value),
        None => has_rest |= has_value(value) && !ignored.contains(&key),
    })?;
    Some((found, has_rest))
}

/// The members with content of a text that is one JSON object, without the `known` ones: the inside of an object of
/// their own. Empty if there are none.
pub(crate) fn rest(text: &str, known: &[&[&str]]) -> Option<String> {
    let mut rest = String::new();
    each_member(text, |key, value| {
        if has_value(value) && !known.iter().any(|known| known.contains(&key)) {
            push_member(&mut rest, key, value);
        }
    })?;
    Some(rest)
}

/// Adds a member to the inside of an object.
pub(crate) fn push_member(inside: &mut String, name: &str, value: &str) {
    if !inside.is_empty() {
        inside.push(',');
    }
    inside.push_str(&serde_json::to_string(name).unwrap_or_default());
    inside.push(':');
    inside.push_str(value);
}

/// Whether a member has content: some servers always write all members that they know.
pub(crate) fn has_value(raw: &str) -> bool {
    match raw.as_bytes() {
        b"null" | b"false" | b"\"\"" => false,
        [b'[' | b'{', inside @ .., _] => {
            !inside.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
        }
        _ => true,
    }
}

/// The offset in an escaped string at which the first `len` bytes of its unescaped text end; `None` if that is beyond
/// its end, or within a character. The string has no lone surrogates.
pub(crate) fn place_after(escaped: &str, len: usize) -> Option<usize> {
    let bytes = escaped.as_bytes();
    let (mut at, mut left) = (0, len);
    while left > 0 {
        let (taken, meant) = match bytes.get(at)? {
            b'\\' => match unit(&bytes[at..]) {
                None => (2, 1),
                Some(0..=0x7f) => (6, 1),
                Some(0x80..=0x7ff) => (6, 2),
                Some(0xd800..=0xdbff) => (12, 4),
                Some(_) => (6, 3),
            },
            _ => {
                let plain = bytes[at..].iter().take(left).take_while(|byte| **byte != b'\\').count();
                (plain, plain)
            }
        };
        at += taken;
        left = left.checked_sub(meant)?;
    }
    escaped.is_char_boundary(at).then_some(at)
}

/// The text with `null` in place of every `NaN` and `Infinity`, which are not JSON but written by some libraries;
/// `None` if there are none.
pub(crate) fn without_nan(text: &str) -> Option<String> {
    const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let (mut out, mut kept, mut at) = (String::new(), 0, 0);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at += string_len(&bytes[at..]),
            b'-' | b'I' | b'N' => match WORDS.iter().find(|word| bytes[at..].starts_with(word.as_bytes())) {
                Some(word) => {
                    out.push_str(&text[kept..at]);
                    out.push_str("null");
                    at += word.len();
                    kept = at;
                }
                None => at += 1,
            },
            _ => at += 1,
        }
    }
    (kept > 0).then(|| out + &text[kept..])
}

/// The length of the string at the front, including its quotes.
fn string_len(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = bytes.get(at) {
        at += match byte {
            b'"' => return at + 1,
            b'\\' => 2,
            _ => 1,
        };
    }
    bytes.len()
}

/// Calls `meet` with the name and the raw value of every member of a text that is one JSON object; `None` if it is
/// not one.
pub(crate) fn each_member<'a>(text: &'a str, meet: impl FnMut(&str, &'a str)) -> Option<()> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer.deserialize_map(Each(meet)).ok()?;
    deserializer.end().ok()
}

/// Calls `meet` with the name and the raw value of every member of a text that is one small JSON object of strings,
/// whole numbers and words, as nearly every entry of a stream is. `None` if it is anything else, valid or not: only
/// [`each_member`] can tell, and `meet` may have been called for some members.
///
/// It exists because entries are decoded by the million: decoding a delta takes 0.5 instead of 0.9 µs with it (measured
/// with `decode/delta` of the bench `micro`).
pub(crate) fn each_simple_member<'a>(text: &'a str, mut meet: impl FnMut(&'a str, &'a str)) -> Option<()> {
    if text.len() > SIMPLE_BYTES_MAX {
        return None;
    }
    let mut scan = SimpleScan { text, at: 0 };
    scan.pass_blanks();
    scan.take(b'{')?;
    loop {
        scan.pass_blanks();
        let quoted = scan.string()?;
        let name = string(quoted).filter(|name| !name.contains('\\'))?;
        scan.pass_blanks();
        scan.take(b':')?;
        scan.pass_blanks();
        meet(name, scan.value()?);
        scan.pass_blanks();
        if scan.take(b',').is_none() {
            scan.take(b'}')?;
            scan.pass_blanks();
            return (scan.at == text.len()).then_some(());
        }
    }
}

/// Longer texts, in which the members' names take little of the time, are left to serde_json.
const SIMPLE_BYTES_MAX: usize = 1024;

/// Reads the parts of a simple object.
struct SimpleScan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> SimpleScan<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn pass_blanks(&mut self) {
        self.pass(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
    }

    fn pass(&mut self, is_passed: impl Fn(u8) -> bool) {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest.iter().position(|&byte| !is_passed(byte)).unwrap_or(rest.len());
    }

    /// A string with its quotes.
    fn string(&mut self) -> Option<&'a str> {
        let from = self.at;
        self.take(b'"')?;
        loop {
            self.pass(|byte| byte >= b' ' && byte != b'"' && byte != b'\\');
            match self.peek()? {
                b'"' => break,
                b'\\' => self.pass_escape()?,
                _ => return None,
            }
        }
        self.at += 1;
        Some(&self.text[from..self.at])
    }

    fn pass_escape(&mut self) -> Option<()> {
        let escape = self.text.as_bytes().get(self.at + 1..)?;
        self.at += match escape.first()? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
            b'u' => escape.get(1..5)?.iter().all(u8::is_ascii_hexdigit).then_some(6)?,
            _ => return None,
        };
        Some(())
    }

    /// A string, an unsigned whole number, or a word.
    fn value(&mut self) -> Option<&'a str> {
        let from = self.at;
        match self.peek()? {
            b'"' => return self.string(),
            b'0' => self.at += 1,
            b'1'..=b'9' => self.pass(|byte| byte.is_ascii_digit()),
            _ => {
                let word =
                    ["null", "true", "false"].into_iter().find(|word| self.text[from..].starts_with(word));
                self.at += word?.len();
            }
        }
        // A fraction or an exponent that follows is no part of a simple object, which ends the scan.
        Some(&self.text[from..self.at])
    }
}

/// The elements of a text that is one JSON array, as raw values with their indexes. An element that is `null` counts
/// as absent, but keeps its index.
pub(crate) fn elements(text: &str) -> Option<Vec<(u64, &str)>> {
    let elements: Vec<Option<&RawValue>> = serde_json::from_str(text).ok()?;
    Some((0..).zip(elements).filter_map(|(place, element)| Some((place, element?.get()))).collect())
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
            // Nobody asks for a name with a lone surrogate.
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
        let found = elements(r#"[1, null,{"a":[]} ,"x"]"#);
        assert_eq!(found, Some(vec![(0, "1"), (2, r#"{"a":[]}"#), (3, "\"x\"")]));
        assert_eq!(elements("[ null ]"), Some(Vec::new()));
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

    #[test]
    fn the_rest_of_an_object_has_content() {
        let text = r#"{"a":1,"b":null,"c":"","d":[ ],"e":{ },"f":false,"g":true,"h\"":[0],"i":2}"#;
        let (found, has_rest) = members_and_rest(text, ["a", "b"], &["g", "h\"", "i"]).unwrap();
        assert_eq!((found, has_rest), ([Some("1"), None], false));
        assert!(members_and_rest(text, ["a"], &["g"]).unwrap().1);
        assert_eq!(rest(text, &[&["a"], &["g"]]).unwrap(), r#""h\"":[0],"i":2"#);
        assert_eq!(rest("[]", &[]), None);
    }

    #[test]
    fn invalid_numbers_are_null() {
        for (text, expected) in [
            (
                r#"{"a":NaN,"b":[-Infinity, Infinity],"c":"NaN \" NaN"}"#,
                r#"{"a":null,"b":[null, null],"c":"NaN \" NaN"}"#,
            ),
            ("NaN", "null"),
        ] {
            assert_eq!(without_nan(text).as_deref(), Some(expected));
        }
        for text in ["", "{}", r#"{"a":"NaN"}"#, r#"{"a":-1}"#, "\"Infinity", "\"\\"] {
            assert_eq!(without_nan(text), None, "{text}");
        }
    }

    /// The members of a text by a function like [`each_member`].
    fn listed(
        text: &str,
        each: impl Fn(&str, &mut dyn FnMut(&str, &str)) -> Option<()>,
    ) -> Option<Vec<String>> {
        let mut found = Vec::new();
        each(text, &mut |name, value| found.push(format!("{name} {value}")))?;
        Some(found)
    }

    #[test]
    fn simple_objects_are_recognized() {
        let simple = |text: &str| listed(text, |text, meet| each_simple_member(text, meet));
        for (text, members) in [
            (r#"{"type":"delta","text":"a\n\u00e4\"","seq":12,"ts":0}"#, 4),
            (" {\t\"a\" : \"\" ,\r\n\"b\":null , \"b\":true,\"c\":false} ", 4),
            (r#"{"😀":"ä"}"#, 1),
        ] {
            assert_eq!(simple(text).expect(text).len(), members, "{text}");
        }
        let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(SIMPLE_BYTES_MAX));
        for other in [
            "",
            "{}",
            "[]",
            r#"{"a":1.5}"#,
            r#"{"a":01}"#,
            r#"{"a":-1}"#,
            r#"{"a":{}}"#,
            r#"{"\u0061":1}"#,
            &long,
        ] {
            assert_eq!(simple(other), None, "{other}");
        }
    }

    proptest! {
        /// serde_json finds the same members in a simple object.
        #[test]
        fn simple_objects_are_valid_and_read_alike(
            pieces in prop::collection::vec(
                prop_oneof![
                    8 => prop::sample::select(vec![
                        r#""a":"b""#, r#""text":"\n\\\ud83d\ude00ä""#, r#""seq":12"#, r#""c" : null"#, r#""a":true"#,
                        r#""type":"delta""#,
                    ]),
                    1 => prop::sample::select(vec![
                        "", "1", r#""x""#, r#""a":1.5"#, r#""a":-1"#, r#""a":01"#, r#""a":1e3"#, r#""a":nul"#, r#""a":truex"#, r#""\u0061":1"#,
                        r#""\ud800":1"#, r#""a":"\x""#, r#""a":"\u12g4""#, r#""a":"\u00""#, "\"a\":\"\n\"", r#""a":{}"#, r#""a":[1]"#, r#""a":"\"#,
                        r#""a":"\""#, r#""a"1"#, r#""a":}"#, "{",
                    ]),
                ],
                0..6,
            ),
            separators in prop::collection::vec(prop::sample::select(vec![",", ",", ",", " , ", "\n,", "", ",,"]), 6),
            around in prop::sample::select(vec![("{", "}"), (" {", " } "), ("{ ", "}"), ("{", ""), ("", "}"), ("{", "}x"), ("[", "]")]),
            cut in prop::option::weighted(0.2, 0..200_usize),
        ) {
            let mut text = around.0.to_owned();
            for (at, piece) in pieces.iter().enumerate() {
                if at > 0 {
                    text += separators[at];
                }
                text += piece;
            }
            text += around.1;
            if let Some(cut) = cut {
                text = text.chars().take(cut).collect();
            }
            let simple = listed(&text, |text, meet| each_simple_member(text, meet));
            if simple.is_some() {
                prop_assert_eq!(simple, listed(&text, |text, meet| each_member(text, meet)));
            }
        }

        /// Escaped text unescapes to the original, and text that needs no escaping is left alone.
        #[test]
        fn escaping_keeps_the_text(text in ".{0,20}") {
            let escaped = escape(&text);
            let meaning = unescape(escaped.as_deref().unwrap_or(&text));
            prop_assert_eq!(meaning.as_deref(), Some(&*text));
            prop_assert_eq!(escaped.is_some(), serde_json::to_string(&text).unwrap().len() > text.len() + 2);
        }

        /// An offset in the escaped text is found at which the unescaped text has that many bytes.
        #[test]
        fn places_are_found_in_what_is_escaped(
            pieces in prop::collection::vec(
                prop_oneof![
                    Just(r"\ud83d\ude00"), Just("\u{1f600}"), Just(r"\\"), Just("u"), Just(r"\n"), Just("ä"), Just(r"\u0041"),
                    Just(r"\u00e4"), Just(r"\u20ac"), Just("€"), Just("abc"),
                ],
                0..8,
            ),
            cut in 0..9_usize,
            beyond in 1..4_usize,
        ) {
            let (escaped, front) = (pieces.concat(), pieces[..cut.min(pieces.len())].concat());
            let len = |escaped: &str| unescape(escaped).unwrap().len();
            prop_assert_eq!(place_after(&escaped, len(&front)), Some(front.len()));
            prop_assert_eq!(place_after(&escaped, len(&escaped) + beyond), None);
            for at in 0..=len(&escaped) {
                if let Some(place) = place_after(&escaped, at) {
                    prop_assert_eq!(len(&escaped[..place]), at);
                }
            }
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
