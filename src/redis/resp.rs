//! RESP2 and RESP3, parsed incrementally and without I/O.
//!
//! [`item`] reads one item at an offset; [`Scanner`] finds the end of a whole reply in bytes that arrive in pieces,
//! and keeps its position, so that a large reply costs time linear in its size however it was cut. Neither copies
//! anything.
//!
//! The parser of the `redis` crate is not used on this path, because it allocates a `Value` for each item.
//! `cargo bench --bench micro -- resp` decodes the same replies into the same entries with both. The crate's took 6 to 8
//! times as long for one entry (0.4 against 2.5 to 3.5 µs), 4 to 11 times for 64 streams of one entry each, and 6 to 10
//! times for 64 entries of one stream (two runs on two loaded cores).
//!
//! Limits: one reply [`REPLY_BYTES_MAX`], nesting [`DEPTH_MAX`], a line [`LINE_BYTES_MAX`]. Left out:
//! streamed strings and aggregates (`$?`, `*?`), which Redis does not send.

use std::ops::Range;

/// The largest reply, in bytes.
pub(super) const REPLY_BYTES_MAX: usize = 1 << 30;
/// The deepest nesting of aggregates.
pub(super) const DEPTH_MAX: usize = 16;
/// The longest simple string, error or number line, in bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Digits of the longest number, sign included.
const NUMBER_BYTES_MAX: usize = 20;
/// The size of the smallest item, `_\r\n`: every announced element takes at least this many bytes.
const ITEM_BYTES_MIN: usize = 3;

/// Bytes that are not RESP, or that exceed a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

const BAD_NUMBER: Malformed = Malformed("a malformed number");
const TOO_LARGE: Malformed = Malformed("a reply over the size limit");

/// One item: a whole scalar, or the head of an aggregate. Ranges are offsets in the buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// `_`, `$-1`, `*-1`.
    Null,
    /// `#t`, `#f`.
    Bool(bool),
    /// `:`
    Integer(i64),
    /// `,`
    Double(Range<usize>),
    /// `+`
    Simple(Range<usize>),
    /// `(`
    BigNumber(Range<usize>),
    /// `-`, `!`
    Error(Range<usize>),
    /// `$`
    Bulk(Range<usize>),
    /// `=`, without its format.
    Verbatim(Range<usize>),
    /// `*`, `~`: this many elements follow.
    Array(usize),
    /// `>`: this many elements follow.
    Push(usize),
    /// `%`: this many pairs follow.
    Map(usize),
    /// `|`: this many pairs follow, and then the item that they describe.
    Attribute(usize),
}

impl Item {
    /// How many of the following elements belong to the item.
    pub(super) const fn children(&self) -> usize {
        match self {
            Self::Array(count) | Self::Push(count) => *count,
            Self::Map(pairs) | Self::Attribute(pairs) => *pairs * 2,
            _ => 0,
        }
    }
}

/// Reads the item at `at` and returns the offset after it; `None` while it is incomplete.
///
/// `searched`: an earlier call has shown that no line from `at` on ends before this offset.
pub(super) fn item(buffer: &[u8], at: usize, searched: usize) -> Result<Option<(Item, usize)>, Malformed> {
    let Some(&kind) = buffer.get(at) else { return Ok(None) };
    let head = at + 1;
    match kind {
        b'$' | b'!' | b'=' => string(buffer, head, kind),
        b'*' | b'~' | b'>' | b'%' | b'|' => aggregate(buffer, head, kind),
        b':' => Ok(number(buffer, head)?.map(|(value, end)| (Item::Integer(value), end))),
        b'+' | b'-' | b',' | b'(' | b'#' | b'_' => {
            let Some((range, end)) = line(buffer, head, searched)? else { return Ok(None) };
            let item = match (kind, &buffer[range.clone()]) {
                (b'+', _) => Item::Simple(range),
                (b'-', _) => Item::Error(range),
                (b',', _) => Item::Double(range),
                (b'(', _) => Item::BigNumber(range),
                (b'#', b"t") => Item::Bool(true),
                (b'#', b"f") => Item::Bool(false),
                (b'_', b"") => Item::Null,
                _ => return Err(Malformed("a malformed boolean or null")),
            };
            Ok(Some((item, end)))
        }
        _ => Err(Malformed("an unknown type byte")),
    }
}

/// The beginning of the buffer, read as the head of a bulk string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StringHead {
    /// More bytes are needed to decide.
    Incomplete,
    /// It is not a bulk string.
    Other,
    /// A string of `len` bytes, which begin at `start` and are followed by a line end.
    String {
        /// Its length.
        len: usize,
        /// Where it begins.
        start: usize,
    },
}

/// Checks whether a bulk string begins at the front of the buffer, and how long it is. Its bytes need not have
/// arrived yet.
pub(super) fn string_head(buffer: &[u8]) -> Result<StringHead, Malformed> {
    match buffer.first() {
        None => return Ok(StringHead::Incomplete),
        Some(b'$') => {}
        Some(_) => return Ok(StringHead::Other),
    }
    Ok(match length(buffer, 1)? {
        None => StringHead::Incomplete,
        Some((-1, _)) => StringHead::Other,
        Some((len, start)) => {
            StringHead::String { len: usize::try_from(len).map_err(|_| BAD_NUMBER)?, start }
        }
    })
}

/// A string with a length prefix: `$`, `!`, `=`.
fn string(buffer: &[u8], head: usize, kind: u8) -> Result<Option<(Item, usize)>, Malformed> {
    let Some((len, start)) = length(buffer, head)? else { return Ok(None) };
    if len == -1 && kind == b'$' {
        return Ok(Some((Item::Null, start)));
    }
    let len = usize::try_from(len).map_err(|_| BAD_NUMBER)?;
    if len > REPLY_BYTES_MAX {
        return Err(TOO_LARGE);
    }
    let end = start + len;
    if end + 2 > REPLY_BYTES_MAX {
        return Err(TOO_LARGE);
    }
    let Some(tail) = buffer.get(end..end + 2) else { return Ok(None) };
    if tail != b"\r\n" {
        return Err(Malformed("a string that is longer than announced"));
    }
    let item = match kind {
        b'$' => Item::Bulk(start..end),
        b'!' => Item::Error(start..end),
        _ if len >= 4 && buffer[start + 3] == b':' => Item::Verbatim(start + 4..end),
        _ => return Err(Malformed("a verbatim string without format")),
    };
    Ok(Some((item, end + 2)))
}

/// The head of an aggregate: `*`, `~`, `>`, `%`, `|`.
fn aggregate(buffer: &[u8], head: usize, kind: u8) -> Result<Option<(Item, usize)>, Malformed> {
    let Some((count, end)) = length(buffer, head)? else { return Ok(None) };
    if count == -1 && kind == b'*' {
        return Ok(Some((Item::Null, end)));
    }
    let count = usize::try_from(count).map_err(|_| BAD_NUMBER)?;
    if count > REPLY_BYTES_MAX / ITEM_BYTES_MIN {
        return Err(TOO_LARGE);
    }
    let item = match kind {
        b'%' => Item::Map(count),
        b'|' => Item::Attribute(count),
        b'>' => Item::Push(count),
        _ => Item::Array(count),
    };
    if end + item.children() * ITEM_BYTES_MIN > REPLY_BYTES_MAX {
        return Err(TOO_LARGE);
    }
    Ok(Some((item, end)))
}

/// The length of a string or aggregate: only digits, as later readers of the reply expect, or -1 for null.
fn length(buffer: &[u8], at: usize) -> Result<Option<(i64, usize)>, Malformed> {
    let found = number(buffer, at)?;
    match buffer.get(at) {
        Some(b'+') => Err(BAD_NUMBER),
        Some(b'-') if found.is_some_and(|(len, _)| len != -1) => Err(BAD_NUMBER),
        _ => Ok(found),
    }
}

/// A decimal number with its line end, and the offset after it.
fn number(buffer: &[u8], at: usize) -> Result<Option<(i64, usize)>, Malformed> {
    let (negative, digits_at) = match buffer.get(at) {
        Some(b'-') => (true, at + 1),
        Some(b'+') => (false, at + 1),
        Some(_) => (false, at),
        None => return Ok(None),
    };
    let mut value = 0_i64;
    let mut place = digits_at;
    loop {
        let Some(&byte) = buffer.get(place) else { return Ok(None) };
        if byte == b'\r' {
            break;
        }
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 || place - at >= NUMBER_BYTES_MAX {
            return Err(BAD_NUMBER);
        }
        // Counts downwards, because the lowest number has no positive counterpart.
        value =
            value.checked_mul(10).and_then(|value| value.checked_sub(i64::from(digit))).ok_or(BAD_NUMBER)?;
        place += 1;
    }
    if place == digits_at {
        return Err(BAD_NUMBER);
    }
    match buffer.get(place + 1) {
        None => Ok(None),
        Some(b'\n') => {
            let value = if negative { Some(value) } else { value.checked_neg() };
            Ok(Some((value.ok_or(BAD_NUMBER)?, place + 2)))
        }
        Some(_) => Err(BAD_NUMBER),
    }
}

/// The text up to the line end, and the offset after it.
fn line(buffer: &[u8], start: usize, searched: usize) -> Result<Option<(Range<usize>, usize)>, Malformed> {
    let from = start.max(searched).min(buffer.len());
    let Some(found) = buffer[from..].iter().position(|&b| b == b'\r') else {
        return if buffer.len().saturating_sub(start) > LINE_BYTES_MAX { Err(TOO_LARGE) } else { Ok(None) };
    };
    let end = from + found;
    if end - start > LINE_BYTES_MAX {
        return Err(TOO_LARGE);
    }
    match buffer.get(end + 1) {
        None => Ok(None),
        Some(b'\n') => Ok(Some((start..end, end + 2))),
        Some(_) => Err(Malformed("a line break within a line")),
    }
}

/// A whole reply at the beginning of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Its length in bytes.
    pub(super) len: usize,
    /// Whether it is a push message, which answers no command.
    pub(super) is_push: bool,
}

/// Finds the end of the reply at the front of a growing buffer.
///
/// INVARIANT: between two calls the existing bytes of the buffer do not change, until a call returns a reply; the
/// caller then removes its bytes from the front.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// The offset of the next item.
    at: usize,
    /// No line from `at` on ends before this offset.
    searched: usize,
    /// The number of elements still to come in every open aggregate.
    open: [usize; DEPTH_MAX],
    /// Which of the open aggregates are attributes, one bit each.
    attributes: u32,
    /// The number of open aggregates.
    depth: usize,
    is_push: bool,
}

impl Scanner {
    /// Continues where the last call stopped; `None` while the reply is incomplete. After a reply it starts over;
    /// after an error the next call returns the same error.
    pub(super) fn scan(&mut self, buffer: &[u8]) -> Result<Option<Scanned>, Malformed> {
        loop {
            let Some((item, end)) = item(buffer, self.at, self.searched)? else {
                // The last byte may be the first half of a line end.
                self.searched = buffer.len().saturating_sub(1);
                return Ok(None);
            };
            if end > REPLY_BYTES_MAX {
                return Err(TOO_LARGE);
            }
            let is_complete = self.enter(&item)?;
            self.at = end;
            if is_complete {
                let scanned = Scanned { len: end, is_push: self.is_push };
                *self = Self::default();
                return Ok(Some(scanned));
            }
        }
    }

    /// The number of aggregates around the next item.
    pub(super) const fn depth(&self) -> usize {
        self.depth
    }

    /// The number of elements still to come in the aggregate at that depth (1: the outermost), including the current
    /// one.
    pub(super) fn left(&self, depth: usize) -> usize {
        if depth == 0 || depth > self.depth { 0 } else { self.open[depth - 1] }
    }

    /// Accounts for one item; `true` if the reply is complete with it.
    pub(super) fn enter(&mut self, item: &Item) -> Result<bool, Malformed> {
        if matches!(item, Item::Push(_)) {
            if self.depth > 0 {
                return Err(Malformed("a push message within a reply"));
            }
            self.is_push = true;
        }
        let is_attribute = matches!(item, Item::Attribute(_));
        match item.children() {
            0 => Ok(!is_attribute && self.complete_element()),
            children => {
                if self.depth == DEPTH_MAX {
                    return Err(Malformed("a reply that is nested too deeply"));
                }
                self.open[self.depth] = children;
                let bit = 1 << self.depth;
                self.attributes = if is_attribute { self.attributes | bit } else { self.attributes & !bit };
                self.depth += 1;
                Ok(false)
            }
        }
    }

    /// Accounts for a complete element, and for the aggregates that are complete with it.
    fn complete_element(&mut self) -> bool {
        while self.depth > 0 {
            let open = &mut self.open[self.depth - 1];
            *open -= 1;
            if *open > 0 {
                return false;
            }
            self.depth -= 1;
            if self.attributes & (1 << self.depth) != 0 {
                // An attribute is not an element: the element that it describes comes next.
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(bytes: &[u8]) -> Result<Option<Scanned>, Malformed> {
        Scanner::default().scan(bytes)
    }

    #[test]
    fn every_type_is_found_whole() {
        for text in [
            "+OK\r\n",
            "-ERR x\r\n",
            ":-9223372036854775808\r\n",
            ":+5\r\n",
            "$0\r\n\r\n",
            "$4\r\na\r\nb\r\n",
            "$-1\r\n",
            "*-1\r\n",
            "*0\r\n",
            "*2\r\n:1\r\n*1\r\n$1\r\na\r\n",
            "_\r\n",
            "#t\r\n",
            ",inf\r\n",
            "(123456789012345678901234567890\r\n",
            "!5\r\nERR x\r\n",
            "=7\r\ntxt:abc\r\n",
            "%1\r\n+a\r\n:1\r\n",
            "~2\r\n:1\r\n:2\r\n",
            ">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n",
            "|1\r\n+ttl\r\n:3\r\n:1\r\n",
            "*2\r\n|1\r\n+ttl\r\n:3\r\n:1\r\n|0\r\n:2\r\n",
        ] {
            let bytes = format!("{text}+next\r\n");
            let is_push = text.starts_with('>');
            assert_eq!(whole(bytes.as_bytes()), Ok(Some(Scanned { len: text.len(), is_push })), "{text:?}");
            for end in 0..text.len() {
                assert_eq!(whole(&text.as_bytes()[..end]), Ok(None), "{:?}", &text[..end]);
            }
        }
    }

    #[test]
    fn malformed_bytes_are_refused() {
        let deep = "*1\r\n".repeat(DEPTH_MAX + 1);
        let long = format!("+{}", "x".repeat(LINE_BYTES_MAX + 1));
        for text in [
            "x\r\n",
            "\r\n",
            "$-2\r\n",
            "$?\r\n",
            "$\r\n",
            "$1x\r\n",
            "$1\rx",
            "$+1\r\na\r\n",
            "$-0\r\n\r\n",
            "*+1\r\n:1\r\n",
            "$1\r\nab\r\n",
            "$1073741824\r\n",
            "*400000000\r\n",
            "%400000000\r\n",
            ":9223372036854775808\r\n",
            ":000000000000000000001\r\n",
            ":1-\r\n",
            "#x\r\n",
            "_x\r\n",
            "=3\r\nabc\r\n",
            "+a\rb\r\n",
            "*1\r\n>1\r\n:1\r\n",
            deep.as_str(),
            long.as_str(),
        ] {
            assert!(whole(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    /// However small the pieces are, the scanner never moves back before the item that it waits for.
    #[test]
    fn the_place_is_kept() {
        let reply = format!("*1000\r\n{}", "*2\r\n$3\r\nabc\r\n:12\r\n".repeat(1000));
        let mut scanner = Scanner::default();
        for end in 1..reply.len() {
            assert_eq!(scanner.scan(&reply.as_bytes()[..end]), Ok(None));
            assert!(end - scanner.at < "$3\r\nabc\r\n".len(), "{} of {end}", scanner.at);
        }
        assert!(scanner.scan(reply.as_bytes()).unwrap().is_some());
    }

    #[test]
    fn a_line_is_searched_once() {
        let mut scanner = Scanner::default();
        let text = format!("+{}\r\n", "x".repeat(1000));
        for end in 1..text.len() {
            assert_eq!(scanner.scan(&text.as_bytes()[..end]), Ok(None));
            assert_eq!(scanner.searched, end - 1);
        }
        assert!(scanner.scan(text.as_bytes()).unwrap().is_some());
    }

    /// Any reply, encoded.
    fn reply() -> impl Strategy<Value = Vec<u8>> {
        let text = proptest::collection::vec(any::<u8>(), 0..40);
        let leaf = prop_oneof![
            Just(b"_\r\n".to_vec()),
            Just(b"$-1\r\n".to_vec()),
            Just(b"*-1\r\n".to_vec()),
            any::<bool>().prop_map(|b| if b { b"#t\r\n".to_vec() } else { b"#f\r\n".to_vec() }),
            any::<i64>().prop_map(|n| format!(":{n}\r\n").into_bytes()),
            any::<f64>().prop_map(|n| format!(",{n}\r\n").into_bytes()),
            "[^\r\n]{0,20}".prop_map(|s| format!("+{s}\r\n").into_bytes()),
            "[A-Z]{1,8} [^\r\n]{0,20}".prop_map(|s| format!("-{s}\r\n").into_bytes()),
            (prop_oneof![Just("$"), Just("!"), Just("=")], text).prop_map(|(kind, mut body)| {
                if kind == "=" {
                    body.splice(0..0, *b"txt:");
                }
                [format!("{kind}{}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat()
            }),
        ];
        leaf.prop_recursive(6, 200, 8, |inner| {
            let pairs = proptest::collection::vec((inner.clone(), inner.clone()), 0..4);
            prop_oneof![
                (prop_oneof![Just("*"), Just("~")], proptest::collection::vec(inner.clone(), 0..8)).prop_map(
                    |(kind, items)| {
                        [format!("{kind}{}\r\n", items.len()).into_bytes(), items.concat()].concat()
                    }
                ),
                (prop_oneof![Just("%"), Just("|")], pairs, inner).prop_map(|(kind, pairs, about)| {
                    let mut bytes = format!("{kind}{}\r\n", pairs.len()).into_bytes();
                    for (key, value) in pairs {
                        bytes.extend(key);
                        bytes.extend(value);
                    }
                    if kind == "|" {
                        bytes.extend(about);
                    }
                    bytes
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same(
            replies in proptest::collection::vec(reply(), 1..5),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let bytes = replies.concat();
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            ends.push(bytes.len());
            ends.sort_unstable();
            let (mut scanner, mut taken, mut found) = (Scanner::default(), 0, Vec::new());
            for end in ends {
                while let Some(scanned) = scanner.scan(&bytes[taken..end]).unwrap() {
                    found.push(bytes[taken..taken + scanned.len].to_vec());
                    taken += scanned.len;
                }
            }
            prop_assert_eq!(found, replies);
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = whole(&bytes);
        }

        #[test]
        fn random_resp_like_bytes_never_panic(text in "([-+:$*%~>|=!_#,(][-0-9tf]{0,3}\r\n|[a-z\r\n]){0,40}") {
            let mut scanner = Scanner::default();
            for end in 0..=text.len() {
                if scanner.scan(&text.as_bytes()[..end]) != Ok(None) {
                    break;
                }
            }
        }
    }
}
