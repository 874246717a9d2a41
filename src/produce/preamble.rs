//! The beginning of a body that should be an event stream, up to its first event. Describes the body if it is not
//! one. Pure.
//!
//! Servers and proxies may answer with something other than an event stream: an error as JSON, lines of JSON, an HTML
//! page, plain text, a compressed body. The first bytes show that, without waiting for an end that may never come; at
//! most [`SETTLE`] later the body is described with the server's own message.

use std::time::{Duration, Instant};

use serde::de::IgnoredAny;

use super::words::own_words;

/// The most bytes of a body that are kept to describe it.
const BYTES_MAX: usize = 16 * 1024;
/// How long to wait for the rest of a foreign body, so that its message is complete.
const SETTLE: Duration = Duration::from_millis(500);
/// The byte order mark that may precede everything.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The beginning of a body without an event so far.
#[derive(Debug, Default)]
pub(super) struct Preamble {
    bytes: Vec<u8>,
    is_longer: bool,
    /// When it became clear that the body is not an event stream.
    foreign_since: Option<Instant>,
}

/// The kind of content at the beginning of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Only blanks, comments and unknown fields so far.
    Open,
    /// A field of an event stream.
    Events,
    Json,
    Markup,
    Gzip,
    Binary,
    Text,
}

impl Preamble {
    /// Takes the next bytes of the body.
    pub(super) fn push(&mut self, bytes: &[u8], now: Instant) {
        let room = BYTES_MAX - self.bytes.len();
        self.is_longer |= bytes.len() > room;
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if self.foreign_since.is_none() && !matches!(kind(&self.bytes), Kind::Open | Kind::Events) {
            self.foreign_since = Some(now);
        }
    }

    /// Whether it is certain that no event stream has begun, and enough has arrived to describe the body.
    #[must_use]
    pub(super) fn is_foreign(&self, now: Instant) -> bool {
        self.foreign_since.is_some_and(|since| {
            self.is_longer || now.saturating_duration_since(since) >= SETTLE || self.is_complete()
        })
    }

    /// Whether bytes arrived that are not an event stream, complete or not.
    #[must_use]
    pub(super) const fn has_foreign(&self) -> bool {
        self.foreign_since.is_some()
    }

    /// Describes the body for an error message, with the server's own message if it has one.
    #[must_use]
    pub(super) fn describe(&self) -> String {
        let words = || own_words(&String::from_utf8_lossy(&self.bytes));
        match kind(&self.bytes) {
            Kind::Open if words().is_empty() => "nothing came".to_owned(),
            Kind::Gzip => "a gzip-compressed body came (with curl, --compressed reads it)".to_owned(),
            Kind::Binary => "a body that is not text came".to_owned(),
            Kind::Open | Kind::Events => format!("no event came, only: {}", words()),
            Kind::Markup => format!("an HTML or XML page came: {}", words()),
            Kind::Json | Kind::Text => words(),
        }
    }

    /// Whether more bytes would not improve the description.
    fn is_complete(&self) -> bool {
        match kind(&self.bytes) {
            Kind::Gzip | Kind::Binary => true,
            Kind::Json => {
                let values = serde_json::Deserializer::from_slice(trimmed(&self.bytes));
                values.into_iter::<IgnoredAny>().next().is_some_and(|value| value.is_ok())
            }
            _ => false,
        }
    }
}

/// The bytes without byte order mark and leading white space.
fn trimmed(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes).trim_ascii_start()
}

fn kind(bytes: &[u8]) -> Kind {
    let bytes = trimmed(bytes);
    match bytes {
        [] => return Kind::Open,
        [b'{' | b'[', ..] => return Kind::Json,
        [b'<', ..] => return Kind::Markup,
        [0x1F, 0x8B, ..] => return Kind::Gzip,
        [first, ..] if first.is_ascii_control() || (0x80..0xC2).contains(first) => return Kind::Binary,
        _ => {}
    }
    // The last piece may be the beginning of a longer line.
    let mut lines: Vec<&[u8]> = bytes.split(|byte| matches!(byte, b'\n' | b'\r')).collect();
    let rest = lines.pop().unwrap_or_default();
    for line in lines {
        match line.iter().position(|&byte| byte == b':') {
            _ if line.is_empty() => {}
            // Comments, and unknown fields, which the standard ignores (such as the head that `curl -i` prints).
            Some(0) => {}
            Some(end) if is_field(&line[..end]) => return Kind::Events,
            Some(_) => {}
            None if is_field(line) => return Kind::Events,
            None if line.starts_with(b"HTTP/") => {}
            None => return Kind::Text,
        }
    }
    match rest.iter().position(|&byte| byte == b':') {
        Some(end) if is_field(&rest[..end]) => Kind::Events,
        _ => Kind::Open,
    }
}

fn is_field(name: &[u8]) -> bool {
    matches!(name, b"data" | b"event" | b"id" | b"retry")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: &[u8]) -> (Preamble, Instant) {
        let now = Instant::now();
        let mut preamble = Preamble::default();
        preamble.push(body, now);
        (preamble, now)
    }

    #[test]
    fn event_streams_are_waited_for() {
        for body in [
            "",
            "\n\r\n",
            "\u{feff}",
            ": comment\n\n: more {\n",
            "data",
            "data: {\"a\":1}",
            "event: error\n",
            "id\ndata: x",
            "retry: 3000\n",
            "x-unknown: 1\n\n: hi\n",
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n",
            "dat",
        ] {
            let (preamble, now) = read(body.as_bytes());
            assert!(!preamble.has_foreign() && !preamble.is_foreign(now + SETTLE * 9), "{body:?}");
        }
    }

    #[test]
    fn other_bodies_are_noticed_at_once_and_described_when_they_are_whole() {
        let at_once = [
            ("{\n \"error\": {\"message\": \"no key\"}\n}", "no key"),
            ("\n[{\"error\":\"x\"}]", "x"),
            ("{\"response\":\"a\"}\n{\"resp", r#"{"response":"a"} {"resp"#),
            ("\x1F", "a body that is not text came"),
        ];
        for (body, words) in at_once {
            let (preamble, now) = read(body.as_bytes());
            assert!(preamble.is_foreign(now), "{body:?}");
            assert_eq!(preamble.describe(), words);
        }
        let (gzip, now) = read(b"\x1F\x8B\x08\x00");
        assert!(gzip.is_foreign(now) && gzip.describe().contains("gzip"));
        for (body, words) in [
            ("{\"error\":", "{\"error\":"),
            ("<html><title>502</title>", "an HTML or XML page came: 502"),
            ("Unauthorized\n", "Unauthorized"),
        ] {
            let (preamble, now) = read(body.as_bytes());
            assert!(preamble.has_foreign() && !preamble.is_foreign(now), "{body:?}: the rest may come");
            assert!(preamble.is_foreign(now + SETTLE));
            assert_eq!(preamble.describe(), words);
        }
        let (endless, now) = read("<p>".repeat(BYTES_MAX).as_bytes());
        assert!(endless.is_foreign(now) && endless.describe().len() < 2500);
    }

    #[test]
    fn a_body_without_an_event_is_described() {
        assert_eq!(read(b" \n").0.describe(), "nothing came");
        assert_eq!(read(b": ping\n\n").0.describe(), "no event came, only: : ping");
        assert_eq!(read(b"Error: no such model").0.describe(), "no event came, only: Error: no such model");
        assert_eq!(read(b"data:\n\n").0.describe(), "no event came, only: data:");
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_judged_alike(bytes in prop::collection::vec(any::<u8>(), 0..60), cut in 0_usize..60) {
            let now = Instant::now();
            let (whole, _) = read(&bytes);
            let mut pieces = Preamble::default();
            let (one, other) = bytes.split_at(cut.min(bytes.len()));
            pieces.push(one, now);
            pieces.push(other, now);
            prop_assert_eq!(whole.describe(), pieces.describe());
            prop_assert!(!whole.describe().contains(crate::visible::is_control));
        }
    }
}
