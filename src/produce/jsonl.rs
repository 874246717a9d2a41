//! Parses lines of native objects as far as a producer needs it. Pure.
//!
//! A line must be one JSON object with a `type`, in UTF-8 and of at most [`LINE_BYTES_MAX`], which readers can
//! decode: an object that they would skip is refused here, where its author can see the error.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::decode::Flaw;
use crate::decode::entry::native;

/// The longest line that is read, in bytes; an entry of that size is not a token any more.
pub const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The parser's message without its line number, which is always 1 and would mislead. The column remains.
fn without_line(error: &serde_json::Error) -> String {
    error.to_string().replacen("at line 1 column", "at column", 1)
}

/// Why a line is not a native object. The caller knows the line's number.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Longer than [`LINE_BYTES_MAX`].
    #[error("longer than 8 MiB")]
    TooLong,
    /// Not UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// Not JSON, or JSON that is not an object.
    #[error("not a JSON object: {}", without_line(_0))]
    NotAnObject(#[source] serde_json::Error),
    /// No `type`, or one that is not a string.
    #[error("`type` is missing or not a string")]
    NoType,
    /// A member that its native type requires is missing, or a member has the wrong type.
    #[error("{}", _0.problem())]
    Member(Flaw),
}

/// One native object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object<'a> {
    /// The object's text.
    pub json: &'a str,
    /// The meaning of its `type` for the producer.
    pub kind: Kind,
    /// Whether it has a `seq` of its own.
    pub has_seq: bool,
    /// Whether it has a `ts` of its own.
    pub has_ts: bool,
}

/// The meaning of a `type` for the life of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `start`: begins a generation.
    Start,
    /// `end` or `error`: ends a generation.
    Terminal,
    /// `heartbeat`: begins and ends nothing.
    Heartbeat,
    /// Anything else: content.
    Content,
}

#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    seq: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    ts: Option<&'a RawValue>,
}

/// A member that is present, even as `null`: adding another one with its name would duplicate it.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Parses one line; `None` for an empty one.
///
/// # Errors
/// If the line is not one JSON object with a `type`, or lacks a member that the type requires.
pub fn parse(line: &[u8]) -> Result<Option<Object<'_>>, LineError> {
    if line.len() > LINE_BYTES_MAX {
        return Err(LineError::TooLong);
    }
    let json = std::str::from_utf8(line).map_err(|_| LineError::NotUtf8)?.trim();
    if json.is_empty() {
        return Ok(None);
    }
    if !json.starts_with('{') {
        let found = serde::de::Error::custom("it does not begin with `{`");
        return Err(LineError::NotAnObject(found));
    }
    let members: Members<'_> = serde_json::from_str(json).map_err(LineError::NotAnObject)?;
    let kind = members.kind.and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    let kind = match kind.ok_or(LineError::NoType)?.as_str() {
        "start" => Kind::Start,
        "end" | "error" => Kind::Terminal,
        "heartbeat" => Kind::Heartbeat,
        _ => Kind::Content,
    };
    // An object with a type that is read by the names of flat entries may have its text in any of them.
    native(json.as_bytes()).map_err(LineError::Member)?;
    Ok(Some(Object { json, kind, has_seq: members.seq.is_some(), has_ts: members.ts.is_some() }))
}

impl Object<'_> {
    /// The object with `seq` and `ts` added if it has none; the rest remains byte for byte.
    #[must_use]
    pub fn stamped(&self, seq: Option<u64>, ts_us: u64) -> String {
        use std::fmt::Write as _;

        let body = self.json.strip_suffix('}').unwrap_or(self.json);
        let mut out = String::with_capacity(self.json.len() + 48);
        out.push_str(body.trim_end());
        if let Some(seq) = seq.filter(|_| !self.has_seq) {
            write!(out, r#","seq":{seq}"#).ok();
        }
        if !self.has_ts {
            write!(out, r#","ts":{ts_us}"#).ok();
        }
        out.push('}');
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_classified_and_stamped() {
        let cases = [
            (r#"{"type":"start","metadata":{"seq":1}}"#, Kind::Start),
            (r#" {"type":"delta","text":"a}"} "#, Kind::Content),
            (r#"{"type":"end"}"#, Kind::Terminal),
            (r#"{"type":"error","code":"x"}"#, Kind::Terminal),
            (r#"{"type":"heartbeat"}"#, Kind::Heartbeat),
            (r#"{"\u0074ype":"mine"}"#, Kind::Content),
        ];
        for (line, kind) in cases {
            let object = parse(line.as_bytes()).unwrap().unwrap();
            assert_eq!((object.kind, object.has_seq, object.has_ts), (kind, false, false), "{line}");
            let stamped: serde_json::Value = serde_json::from_str(&object.stamped(Some(7), 9)).unwrap();
            assert_eq!((&stamped["seq"], &stamped["ts"]), (&7.into(), &9.into()));
        }
        let own = parse(br#"{"type":"delta","text":"","seq":3,"ts":4}"#).unwrap().unwrap();
        assert_eq!(own.stamped(Some(7), 9), own.json);
        let null = parse(br#"{"type":"delta","text":"","seq":null,"ts":4}"#).unwrap().unwrap();
        assert_eq!(null.stamped(Some(7), 9), null.json);
    }

    #[test]
    fn lines_without_an_object_are_refused() {
        assert!(parse(b"  \r\n").unwrap().is_none());
        for bad in ["[1]", "7", "{", "{}x", r#"{"type":"delta"} {"type":"end"}"#, "\u{1}"] {
            assert!(matches!(parse(bad.as_bytes()), Err(LineError::NotAnObject(_))), "{bad}");
        }
        for bad in ["{}", r#"{"type":3}"#, r#"{"type":null}"#] {
            assert!(matches!(parse(bad.as_bytes()), Err(LineError::NoType)), "{bad}");
        }
        assert!(matches!(parse(b"{\"type\":\"\xFF\"}"), Err(LineError::NotUtf8)));
        for (bad, expected) in [
            (r#"{"type":"delta"}"#, "text is missing"),
            (r#"{"type":"delta","text":null}"#, "text is missing"),
            (r#"{"type":"delta","text":5}"#, "text is not a text (UTF-8, no lone surrogates)"),
            (r#"{"type":"delta","text":"","index":-1}"#, "index is not an unsigned number"),
            (r#"{"type":"tool_call","name":"f"}"#, "arguments is missing"),
            (r#"{"type":"error","message":"m"}"#, "code is missing"),
            (r#"{"type":"start","metadata":[]}"#, "metadata is not a JSON object"),
            (r#"{"type":"end","usage":7}"#, "usage is not a JSON object"),
            (r#"{"type":"heartbeat","seq":"0"}"#, "seq is not an unsigned number"),
        ] {
            assert_eq!(parse(bad.as_bytes()).unwrap_err().to_string(), expected, "{bad}");
        }
        assert!(matches!(parse(&vec![b' '; LINE_BYTES_MAX + 1]), Err(LineError::TooLong)));
    }
}
