//! A reply without its long strings, read as it arrives.
//!
//! Names are short. But a key with names may contain anything, because others can write it. So each string beyond
//! [`SHORT_STRING_BYTES_MAX`] is read and dropped, and null takes its place.

use bytes::{Buf, Bytes, BytesMut};

use super::reply::Reply;
use super::resp::{Item, Malformed, Scanner, StringHead, item, string_head};

/// The longest string that is kept, in bytes.
pub const SHORT_STRING_BYTES_MAX: usize = 1024;

/// The reply so far.
#[derive(Debug, Default)]
pub(super) struct Shortened {
    scanner: Scanner,
    kept: Vec<u8>,
    /// Bytes of a long string that are yet to be dropped.
    dropping: usize,
}

impl Shortened {
    /// Takes the bytes of the reply from the front of the buffer; `true` once the reply is complete.
    pub(super) fn push(&mut self, buffer: &mut BytesMut) -> Result<bool, Malformed> {
        loop {
            if self.dropping > 0 {
                let len = self.dropping.min(buffer.len());
                buffer.advance(len);
                self.dropping -= len;
                if self.dropping > 0 {
                    return Ok(false);
                }
                if self.scanner.enter(&Item::Null)? {
                    return Ok(true);
                }
                continue;
            }
            match string_head(buffer)? {
                StringHead::Incomplete => return Ok(false),
                StringHead::String { len, start } if len > SHORT_STRING_BYTES_MAX => {
                    self.kept.extend_from_slice(b"_\r\n");
                    buffer.advance(start);
                    self.dropping = len.saturating_add(2);
                }
                StringHead::String { .. } | StringHead::Other => {
                    let Some((item, end)) = item(buffer, 0, 0)? else { return Ok(false) };
                    self.kept.extend_from_slice(&buffer[..end]);
                    buffer.advance(end);
                    if self.scanner.enter(&item)? {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// The complete reply.
    pub(super) fn finish(self) -> Reply {
        Reply::from_scanned(Bytes::from(self.kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::Value;

    #[test]
    fn long_strings_are_dropped_however_the_reply_is_cut() {
        let (short, long) = ("s".repeat(SHORT_STRING_BYTES_MAX), "x".repeat(SHORT_STRING_BYTES_MAX + 1));
        let text = format!(
            "*2\r\n$1\r\n0\r\n*3\r\n${}\r\n{long}\r\n${}\r\n{short}\r\n${}\r\n{long}\r\n+next",
            long.len(),
            short.len(),
            long.len()
        );
        let text_of = |text: &str| Value::Bytes(Bytes::copy_from_slice(text.as_bytes()));
        let members = Value::Array(vec![Value::Null, text_of(&short), Value::Null]);
        for step in [1, 7, 1000, 9999] {
            let (mut shortened, mut buffer) = (Shortened::default(), BytesMut::new());
            let mut pieces = text.as_bytes().chunks(step);
            let mut is_complete = false;
            while !is_complete && let Some(piece) = pieces.next() {
                buffer.extend_from_slice(piece);
                is_complete = shortened.push(&mut buffer).unwrap();
            }
            assert!(is_complete);
            let value = shortened.finish().value().unwrap();
            assert_eq!(value, Value::Array(vec![text_of("0"), members.clone()]), "in pieces of {step}");
        }
    }
}
