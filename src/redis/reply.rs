//! Replies: the bytes of one whole reply, and typed views of them.

use bytes::Bytes;

use super::error::{RedisError, ServerError};
use super::resp::{self, Item, Scanner};
use crate::model::EntryId;

/// The most elements for which memory is reserved before they are read.
const RESERVED_ELEMENTS_MAX: usize = 1024;

/// One complete reply. It is a slice of the read buffer, and so are the strings that its views return: keeping one of
/// them keeps the whole piece of the buffer.
///
/// INVARIANT: the bytes are exactly one well-formed reply; a `Scanner` has found its end. Views still check every
/// item, so that a broken invariant is an error and not a panic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply(Bytes);

/// A reply as a tree, for paths on which copying does not matter.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// An integer.
    Int(i64),
    /// A floating point number.
    Double(f64),
    /// A boolean.
    Bool(bool),
    /// A string of any kind, or the digits of a big number.
    Bytes(Bytes),
    /// An array, a set or a push message.
    Array(Vec<Value>),
    /// A map, in the order in which it came.
    Map(Vec<(Value, Value)>),
    /// An error within a reply.
    Error(ServerError),
}

impl Reply {
    pub(super) const fn from_scanned(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Creates a reply from its bytes, for tests of code that uses replies.
    ///
    /// # Errors
    /// If the bytes are not exactly one reply.
    pub fn parse(bytes: Bytes) -> Result<Self, RedisError> {
        match Scanner::default().scan(&bytes)? {
            Some(scanned) if scanned.len == bytes.len() => Ok(Self(bytes)),
            _ => Err(RedisError::protocol("not exactly one reply")),
        }
    }

    /// The bytes of the reply.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The length of the reply in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.0.len()
    }

    /// The error, if the reply is one.
    #[must_use]
    pub fn error(&self) -> Option<ServerError> {
        match self.cursor().next() {
            Ok(Item::Error(range)) => Some(ServerError::parse(&self.0[range])),
            _ => None,
        }
    }

    /// Whether the reply is null.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self.cursor().next(), Ok(Item::Null))
    }

    /// The reply as an integer.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error reply, [`RedisError::Protocol`] for another type.
    pub fn integer(&self) -> Result<i64, RedisError> {
        match self.first()? {
            Item::Integer(value) => Ok(value),
            _ => Err(RedisError::protocol("not an integer")),
        }
    }

    /// The reply as the bytes of a string.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error reply, [`RedisError::Protocol`] for another type.
    pub fn bytes(&self) -> Result<Bytes, RedisError> {
        match self.first()? {
            Item::Bulk(range) | Item::Simple(range) | Item::Verbatim(range) => Ok(self.0.slice(range)),
            _ => Err(RedisError::protocol("not a string")),
        }
    }

    /// The reply as text.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error reply, [`RedisError::Protocol`] for another type or for text that is not
    /// UTF-8.
    pub fn text(&self) -> Result<&str, RedisError> {
        match self.first()? {
            Item::Bulk(range) | Item::Simple(range) | Item::Verbatim(range) => {
                std::str::from_utf8(&self.0[range])
                    .map_err(|_| RedisError::protocol("a text that is not UTF-8"))
            }
            _ => Err(RedisError::protocol("not a string")),
        }
    }

    /// The reply as an entry id, as XADD returns it.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error reply, [`RedisError::Protocol`] for anything else.
    pub fn id(&self) -> Result<EntryId, RedisError> {
        match self.first()? {
            Item::Bulk(range) => EntryId::from_ascii(&self.0[range]).ok_or(NOT_AN_ID),
            _ => Err(NOT_AN_ID),
        }
    }

    /// The reply as a tree, whose depth is bounded by the nesting limit of replies. An error reply is
    /// [`Value::Error`].
    ///
    /// # Errors
    /// [`RedisError::Protocol`].
    pub fn value(&self) -> Result<Value, RedisError> {
        self.cursor().value()
    }

    pub(super) const fn cursor(&self) -> Cursor<'_> {
        Cursor { bytes: &self.0, at: 0 }
    }

    /// The first item of a reply that must not be an error.
    fn first(&self) -> Result<Item, RedisError> {
        self.cursor().next_or_error()
    }
}

const NOT_AN_ID: RedisError = RedisError::protocol("not an entry id");
const CUT_SHORT: RedisError = RedisError::protocol("a reply that is cut short");

/// Iterates over the items of a reply.
pub(super) struct Cursor<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The next item, including attributes.
    pub(super) fn raw(&mut self) -> Result<Item, RedisError> {
        let (item, end) = resp::item(self.bytes, self.at, 0)?.ok_or(CUT_SHORT)?;
        self.at = end;
        Ok(item)
    }

    /// The next item, without the attributes before it.
    pub(super) fn next(&mut self) -> Result<Item, RedisError> {
        loop {
            match self.raw()? {
                Item::Attribute(pairs) => self.skip(2 * pairs)?,
                item => return Ok(item),
            }
        }
    }

    /// The next item, or its error.
    pub(super) fn next_or_error(&mut self) -> Result<Item, RedisError> {
        match self.next()? {
            Item::Error(range) => Err(RedisError::Server(ServerError::parse(&self.bytes[range]))),
            item => Ok(item),
        }
    }

    /// Skips elements with everything that they contain.
    pub(super) fn skip(&mut self, elements: usize) -> Result<(), RedisError> {
        let mut pending = elements;
        while pending > 0 {
            let item = self.raw()?;
            let is_element = !matches!(item, Item::Attribute(_));
            pending = pending - usize::from(is_element) + item.children();
        }
        Ok(())
    }

    /// The offset of the next item.
    pub(super) const fn place(&self) -> usize {
        self.at
    }

    /// Moves to the offset of an item.
    pub(super) const fn go_to(&mut self, place: usize) {
        self.at = place;
    }

    /// The next item as the head of an array; `None` for null.
    pub(super) fn array(&mut self) -> Result<Option<usize>, RedisError> {
        match self.next_or_error()? {
            Item::Array(count) => Ok(Some(count)),
            Item::Null => Ok(None),
            _ => Err(RedisError::protocol("not an array")),
        }
    }

    /// The next item as a string.
    pub(super) fn string(&mut self) -> Result<Bytes, RedisError> {
        match self.next()? {
            Item::Bulk(range) | Item::Simple(range) | Item::Verbatim(range) => Ok(self.bytes.slice(range)),
            _ => Err(RedisError::protocol("not a string")),
        }
    }

    /// The next item as an entry id.
    pub(super) fn id(&mut self) -> Result<EntryId, RedisError> {
        match self.next()? {
            Item::Bulk(range) => EntryId::from_ascii(&self.bytes[range]).ok_or(NOT_AN_ID),
            _ => Err(NOT_AN_ID),
        }
    }

    /// Reads consecutive bulk strings, all of the form `$<len>\r\n<bytes>\r\n`, and returns them as one slice.
    pub(super) fn bulks(&mut self, count: usize) -> Result<Bytes, RedisError> {
        let start = self.at;
        for _ in 0..count {
            if !matches!(self.raw()?, Item::Bulk(_)) {
                return Err(RedisError::protocol("a field that is not a string"));
            }
        }
        Ok(self.bytes.slice(start..self.at))
    }

    /// The next element as a tree. Recursion is bounded by the nesting limit of the scanner.
    fn value(&mut self) -> Result<Value, RedisError> {
        Ok(match self.next()? {
            Item::Null => Value::Null,
            Item::Bool(value) => Value::Bool(value),
            Item::Integer(value) => Value::Int(value),
            Item::Double(range) => Value::Double(
                std::str::from_utf8(&self.bytes[range])
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .ok_or(RedisError::protocol("not a floating point number"))?,
            ),
            Item::Simple(range) | Item::BigNumber(range) | Item::Bulk(range) | Item::Verbatim(range) => {
                Value::Bytes(self.bytes.slice(range))
            }
            Item::Error(range) => Value::Error(ServerError::parse(&self.bytes[range])),
            Item::Array(count) | Item::Push(count) => {
                let mut elements = Vec::with_capacity(count.min(RESERVED_ELEMENTS_MAX));
                for _ in 0..count {
                    elements.push(self.value()?);
                }
                Value::Array(elements)
            }
            Item::Map(pairs) | Item::Attribute(pairs) => {
                let mut map = Vec::with_capacity(pairs.min(RESERVED_ELEMENTS_MAX));
                for _ in 0..pairs {
                    map.push((self.value()?, self.value()?));
                }
                Value::Map(map)
            }
        })
    }
}

impl Value {
    /// The string, if it is one.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The text, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(self.as_bytes()?).ok()
    }

    /// The elements, if it is an array.
    #[must_use]
    pub fn as_array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(elements) => Some(elements),
            _ => None,
        }
    }

    /// The value of `name`, in a map or in the flat array of names and values that RESP2 sends instead.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        let name = Some(name.as_bytes());
        match self {
            Self::Map(pairs) => {
                pairs.iter().find_map(|(key, value)| (key.as_bytes() == name).then_some(value))
            }
            Self::Array(flat) => {
                flat.chunks_exact(2).find_map(|pair| (pair[0].as_bytes() == name).then_some(&pair[1]))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reply(text: &str) -> Reply {
        Reply::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    #[test]
    fn scalars_read_back() {
        assert_eq!(reply(":-5\r\n").integer().unwrap(), -5);
        assert_eq!(reply("+OK\r\n").text().unwrap(), "OK");
        assert_eq!(reply("=6\r\ntxt:hi\r\n").text().unwrap(), "hi");
        assert_eq!(reply("$3\r\n5-1\r\n").id().unwrap(), EntryId::new(5, 1));
        assert_eq!(reply("|1\r\n+ttl\r\n*1\r\n:3\r\n:1\r\n").integer().unwrap(), 1);
        for null in ["_\r\n", "$-1\r\n", "*-1\r\n"] {
            assert!(reply(null).is_null());
        }
        assert!(!reply("$0\r\n\r\n").is_null());
        assert!(reply("$2\r\n\u{e4}\r\n").text().is_ok());
        assert!(matches!(reply(":5\r\n").text(), Err(RedisError::Protocol(_))));
        assert!(matches!(reply("+5\r\n").integer(), Err(RedisError::Protocol(_))));
        assert!(matches!(reply("+x\r\n").id(), Err(RedisError::Protocol(_))));
    }

    #[test]
    fn errors_are_errors_in_every_view() {
        for text in ["-NOGROUP gone\r\n", "!12\r\nNOGROUP gone\r\n"] {
            let reply = reply(text);
            assert_eq!(reply.error().unwrap().code, "NOGROUP");
            assert!(matches!(reply.integer(), Err(RedisError::Server(_))));
            assert!(matches!(reply.text(), Err(RedisError::Server(_))));
            assert!(matches!(reply.id(), Err(RedisError::Server(_))));
            assert!(matches!(reply.streams(), Err(RedisError::Server(_))));
            assert!(matches!(reply.entries(), Err(RedisError::Server(_))));
            assert!(matches!(reply.stream_info(), Err(RedisError::Server(_))));
            assert!(matches!(reply.value(), Ok(Value::Error(_))));
        }
        assert_eq!(reply("+OK\r\n").error(), None);
    }

    #[test]
    fn trees_read_back() {
        let tree =
            reply("*4\r\n%1\r\n+a\r\n,1.5\r\n|1\r\n+x\r\n:0\r\n#t\r\n-ERR no\r\n*2\r\n$1\r\nk\r\n:7\r\n");
        let Value::Array(elements) = tree.value().unwrap() else { panic!("an array") };
        assert_eq!(elements[0].get("a"), Some(&Value::Double(1.5)));
        assert_eq!(elements[1], Value::Bool(true));
        assert!(matches!(&elements[2], Value::Error(error) if error.message == "no"));
        assert_eq!(elements[3].get("k"), Some(&Value::Int(7)));
        assert!(Reply::parse(Bytes::from_static(b"+a\r\n+b\r\n")).is_err());
        assert!(Reply::parse(Bytes::from_static(b"+a")).is_err());
    }

    proptest! {
        #[test]
        fn views_never_panic(text in "([-+:$*%~>|=!_#,(](-1|[0-9tf]{0,2})\r\n|\\*2\r\n\\$3\r\n1-1\r\n|[a-z]{1,3}\r\n){1,12}") {
            // As if the scanner had accepted it: the views must not rely on the scanner.
            let reply = Reply::from_scanned(Bytes::from(text));
            let _ = (reply.error(), reply.is_null(), reply.integer(), reply.id(), reply.bytes());
            let _ = (reply.streams(), reply.entries(), reply.stream_info());
            if Reply::parse(reply.0.clone()).is_ok() {
                reply.value().ok();
            }
        }
    }
}
