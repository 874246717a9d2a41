//! Just enough of RESP for the floors: XREAD's replies and invalidation pushes, parsed entry by entry as they arrive,
//! so that a reply of any length is parsed only once.

/// An item that the floor parses from Redis's output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    /// The entries that follow belong to this stream.
    Stream(&'a [u8]),
    /// One entry.
    Entry {
        /// Its id.
        id: &'a [u8],
        /// The value of its first field.
        value: &'a [u8],
    },
    /// The reply was empty.
    ReplyEnd,
    /// The reply to another command.
    Done,
    /// A key with new entries.
    News(&'a [u8]),
}

/// The reader's position in a reply.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// Each stream of a reply is a pair with a header of its own (RESP2), not an entry of a map.
    pairs: bool,
    streams: usize,
    entries: usize,
    news: usize,
}

/// Redis sent something that the floor does not expect.
#[derive(Debug, thiserror::Error)]
#[error("unexpected answer of Redis: {0}")]
pub(crate) struct Unexpected(String);

impl Reader {
    /// Returns the next item at `bytes[*at..]` and advances `at`; `None` if its bytes are incomplete.
    pub(crate) fn next<'a>(
        &mut self,
        bytes: &'a [u8],
        at: &mut usize,
    ) -> Result<Option<Item<'a>>, Unexpected> {
        let mut cursor = Cursor { bytes, at: *at };
        let item = if self.news > 0 {
            cursor.bulk().map(|key| {
                self.news -= 1;
                Item::News(key)
            })
        } else if self.entries > 0 {
            self.entry(&mut cursor)
        } else if self.streams > 0 {
            self.stream(&mut cursor)
        } else {
            match self.top(&mut cursor)? {
                // A reply or a push began: its items follow.
                Top::Begun => {
                    *at = cursor.at;
                    return self.next(bytes, at);
                }
                Top::Empty => Some(Item::ReplyEnd),
                Top::Done => Some(Item::Done),
                Top::Partial => None,
            }
        };
        if item.is_some() {
            *at = cursor.at;
        }
        Ok(item)
    }

    /// Whether the last item was the last of its stream, and whether it was the last of the reply.
    pub(crate) fn ends(&self) -> (bool, bool) {
        (self.entries == 0, self.entries == 0 && self.streams == 0)
    }

    fn top(&mut self, cursor: &mut Cursor<'_>) -> Result<Top, Unexpected> {
        let Some((kind, count)) = cursor.header() else { return Ok(Top::Partial) };
        match (kind, count) {
            (b'*' | b'%', Some(streams)) => {
                (self.pairs, self.streams) = (kind == b'*', streams);
                Ok(Top::Begun)
            }
            (b'*' | b'_', None) => Ok(Top::Empty),
            (b':', Some(_)) => Ok(Top::Done),
            (b'>', Some(2)) => {
                let Some(_) = cursor.bulk() else { return Ok(Top::Partial) };
                let Some((_, keys)) = cursor.header() else { return Ok(Top::Partial) };
                self.news = keys.unwrap_or(0);
                Ok(Top::Begun)
            }
            _ => {
                let line = &cursor.bytes[..cursor.bytes.len().min(80)];
                Err(Unexpected(String::from_utf8_lossy(line).into_owned()))
            }
        }
    }

    fn stream<'a>(&mut self, cursor: &mut Cursor<'a>) -> Option<Item<'a>> {
        if self.pairs {
            cursor.header()?;
        }
        let key = cursor.bulk()?;
        let (_, entries) = cursor.header()?;
        self.streams -= 1;
        self.entries = entries.unwrap_or(0);
        Some(Item::Stream(key))
    }

    fn entry<'a>(&mut self, cursor: &mut Cursor<'a>) -> Option<Item<'a>> {
        cursor.header()?;
        let id = cursor.bulk()?;
        let (_, strings) = cursor.header()?;
        let strings = strings.unwrap_or(0);
        cursor.bulk()?;
        let value = cursor.bulk()?;
        for _ in 2..strings {
            cursor.bulk()?;
        }
        self.entries -= 1;
        Some(Item::Entry { id, value })
    }
}

enum Top {
    Begun,
    Empty,
    Done,
    Partial,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Parses a line `<kind><number>`; the number is `None` for nil.
    fn header(&mut self) -> Option<(u8, Option<usize>)> {
        let rest = &self.bytes[self.at..];
        let &kind = rest.first()?;
        let mut number = None;
        for (index, &byte) in rest.iter().enumerate().skip(1) {
            match byte {
                b'0'..=b'9' => number = Some(number.unwrap_or(0) * 10 + usize::from(byte - b'0')),
                b'\r' => {
                    rest.get(index + 1)?;
                    self.at += index + 2;
                    return Some((kind, number));
                }
                // Nil in RESP2 is `*-1`.
                _ => return self.nil_line(kind, index),
            }
        }
        None
    }

    fn nil_line(&mut self, kind: u8, from: usize) -> Option<(u8, Option<usize>)> {
        let rest = &self.bytes[self.at..];
        let end = rest[from..].iter().position(|&byte| byte == b'\n')?;
        self.at += from + end + 1;
        Some((kind, None))
    }

    fn bulk(&mut self) -> Option<&'a [u8]> {
        let from = self.at;
        let text = self.header().and_then(|(_, len)| {
            let len = len.unwrap_or(0);
            let text = self.bytes.get(self.at..self.at + len)?;
            self.bytes.get(self.at + len + 1)?;
            self.at += len + 2;
            Some(text)
        });
        if text.is_none() {
            self.at = from;
        }
        text
    }
}
