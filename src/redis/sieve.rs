//! A reply with entries, read as it arrives, of which only as much is kept as there is room for.
//!
//! XRANGE limits the number of entries, but their sizes are known only when they arrive. So the reply is not
//! collected first: each piece passes through the sieve as it is read from the socket. Entries are copied until one
//! does not fit; from there on the rest of the reply is read and dropped. The kept entries have a buffer of their own
//! size, which keeps nothing else in memory.
//!
//! The reply is that to EXEC of a transaction of XRANGE and XINFO STREAM (or XLEN, whose reply is ignored), in this
//! order. The content of the first and last entries in the stream's description is dropped. Or it is the reply to a
//! command that reads entries of a single stream: XRANGE, XREVRANGE, XREAD, XREADGROUP.

use bytes::{Buf, Bytes, BytesMut};

use super::error::{RedisError, ServerError};
use super::reply::Reply;
use super::resp::{Item, Malformed, Scanner, StringHead, item, string_head};
use super::streams::{StreamInfo, whole_entries};
use crate::model::{ENTRY_BYTES_MAX, Entry, EntryId, Fields, KEPT_NAME_BYTES_MAX, KEPT_NAMES_MAX};

/// Room for an entry of the largest size, including its field names.
pub const ENTRY_ROOM_BYTES: usize = ENTRY_BYTES_MAX + (64 << 10);

/// The counted overhead of a string in addition to its bytes.
const STRING_BYTES: usize = 8;
/// The longest string of the stream's description that is kept, in bytes.
const INFO_STRING_BYTES_MAX: usize = 256;
/// The most bytes kept of that description: the groups, which come last and are not needed, may be many.
const INFO_BYTES_MAX: usize = 64 * 1024;
/// Strings above this size get a buffer of their exact size.
const EXACT_ROOM_BYTES: usize = 64 * 1024;

/// The nesting depths in the reply: EXEC's array, the array of entries, an entry, its fields.
const IN_EXEC: usize = 1;
const IN_RANGE: usize = 2;
const IN_ENTRY: usize = 3;
const IN_FIELDS: usize = 4;

/// The kept part of a range of entries, and the description of their stream at the same time.
#[derive(Debug)]
pub struct RangeReply {
    /// The entries that fit, in order.
    pub entries: Vec<Entry>,
    /// How many entries the reply had.
    pub found: usize,
    /// The number of bytes in its strings.
    pub bytes: u64,
    /// The id, size and names of the first entry if that entry does not fit.
    pub first: Option<Unfit>,
    /// The stream's description, or why there is none; `None` if it was not requested.
    pub info: Result<Option<StreamInfo>, ServerError>,
}

impl RangeReply {
    /// How many entries of the average size found fit into `bytes`; may be 0.
    #[must_use]
    pub fn fitting(&self, bytes: usize) -> usize {
        let each = self.bytes.checked_div(self.found as u64).unwrap_or(0).max(1);
        bytes / usize::try_from(each).unwrap_or(usize::MAX)
    }

    /// The entries that were kept, or the first one with only its names if it did not fit. If there are fewer than
    /// were [found](Self::found), others follow the last one.
    #[must_use]
    pub fn into_entries(self) -> Vec<Entry> {
        let first = self.first.map(Unfit::into_entry);
        self.entries.into_iter().chain(first).collect()
    }
}

/// An entry that did not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// Its id.
    pub id: EntryId,
    /// The total size of its values.
    pub bytes: u64,
    /// The beginnings of its first field names.
    pub names: Vec<Vec<u8>>,
}

impl Unfit {
    /// The entry with only its names.
    #[must_use]
    pub fn into_entry(self) -> Entry {
        Entry { id: self.id, fields: Fields::too_large(&self.names, self.bytes.max(1)) }
    }
}

/// The destination of a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goes {
    /// To the kept entries.
    Range,
    /// To the stream's description.
    Info,
    /// Nowhere.
    Nowhere,
}

/// A string that has not arrived completely.
#[derive(Clone, Copy, Debug)]
struct Partial {
    left: usize,
    goes: Goes,
    /// How many of its bytes belong to the last of the names.
    name_bytes: usize,
}

/// The parts of the reply around the array of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// The head of EXEC's array, and the stream's description.
    Transaction,
    /// The stream's key, which has not arrived yet, as XREAD sends it.
    Named,
    /// Nothing.
    Bare,
}

/// The sieve. Takes a whole reply in any number of pieces.
#[derive(Debug)]
pub(super) struct Sieve {
    scanner: Scanner,
    frame: Frame,
    /// Whether a part of the reply has been taken.
    is_begun: bool,
    string: Option<Partial>,
    room: usize,
    /// The kept part of the array of entries, in its wire form.
    range: Vec<u8>,
    /// Whether something did not fit.
    is_cut: bool,
    found: usize,
    bytes: u64,
    first_bytes: u64,
    names: Vec<Vec<u8>>,
    info: Vec<u8>,
    /// The depth of the fields of the entries in the stream's description.
    info_fields: usize,
    /// The reply if it is not an array: an error.
    other: Vec<u8>,
}

impl Sieve {
    /// A sieve with `room` bytes for entries; `is_full`: the stream is described by `XINFO STREAM … FULL`.
    pub(super) fn new(room: usize, is_full: bool) -> Self {
        Self {
            info_fields: if is_full { 4 } else { 3 },
            scanner: Scanner::default(),
            frame: Frame::Transaction,
            is_begun: false,
            string: None,
            room,
            range: Vec::new(),
            is_cut: false,
            found: 0,
            bytes: 0,
            first_bytes: 0,
            names: Vec::new(),
            info: Vec::new(),
            other: Vec::new(),
        }
    }

    /// A sieve for two separate replies, to XRANGE and to the stream's description, without a transaction around
    /// them.
    pub(super) fn of_two_replies(room: usize, is_full: bool) -> Result<Self, Malformed> {
        let mut sieve = Self::new(room, is_full);
        sieve.push(&mut BytesMut::from(&b"*2\r\n"[..]))?;
        Ok(sieve)
    }

    /// A sieve for the reply to XRANGE or XREVRANGE.
    pub(super) fn of_range(room: usize) -> Result<Self, Malformed> {
        let sieve = Self::of_two_replies(room, false)?;
        Ok(Self { frame: Frame::Bare, is_begun: false, ..sieve })
    }

    /// A sieve for the reply to XREAD or XREADGROUP of one stream.
    pub(super) fn of_one_stream(room: usize) -> Result<Self, Malformed> {
        let sieve = Self::of_range(room)?;
        Ok(Self { frame: Frame::Named, ..sieve })
    }

    /// Whether a part of the reply has been taken.
    pub(super) const fn is_begun(&self) -> bool {
        self.is_begun
    }

    /// Takes the bytes of the reply from the front of the buffer; `true` once the reply is complete.
    pub(super) fn push(&mut self, buffer: &mut BytesMut) -> Result<bool, Malformed> {
        if self.frame == Frame::Named {
            match stream_head(buffer)? {
                StreamHead::Incomplete => return Ok(false),
                StreamHead::None(end) => {
                    buffer.advance(end);
                    self.range.extend_from_slice(b"*0\r\n");
                    return Ok(true);
                }
                StreamHead::Begins(end) => buffer.advance(end),
            }
            (self.frame, self.is_begun) = (Frame::Bare, true);
        }
        self.is_begun |= !buffer.is_empty();
        self.take(buffer)
    }

    fn take(&mut self, buffer: &mut BytesMut) -> Result<bool, Malformed> {
        loop {
            if self.string.is_some() {
                if !self.go_on(buffer)? {
                    return Ok(false);
                }
                if self.enter(&Item::Bulk(0..0))? {
                    return Ok(true);
                }
                continue;
            }
            match string_head(buffer)? {
                StringHead::Incomplete => return Ok(false),
                StringHead::String { len, start } => {
                    self.begin(len, &buffer[..start]);
                    buffer.advance(start);
                }
                StringHead::Other => {
                    let Some((item, end)) = item(buffer, 0, 0)? else { return Ok(false) };
                    if matches!(item, Item::Push(_)) {
                        return Err(Malformed("a push message before the reply to a transaction"));
                    }
                    self.pass(&item, &buffer[..end]);
                    buffer.advance(end);
                    if self.enter(&item)? {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Accounts for one item; `true` if the reply is complete with it.
    fn enter(&mut self, item: &Item) -> Result<bool, Malformed> {
        let is_complete = self.scanner.enter(item)?;
        let is_range_over = self.scanner.depth() == IN_EXEC && self.scanner.left(IN_EXEC) == 1;
        Ok(is_complete || (self.frame == Frame::Bare && is_range_over))
    }

    /// Whether the next item belongs to the entries rather than to the stream's description.
    fn is_in_range(&self) -> bool {
        self.scanner.depth() >= IN_EXEC && self.scanner.left(IN_EXEC) == 2
    }

    /// Whether the next item belongs to the first entry.
    fn is_in_first(&self) -> bool {
        self.scanner.depth() >= IN_ENTRY && self.scanner.left(IN_RANGE) == self.found
    }

    /// Handles an item that is not a bulk string.
    fn pass(&mut self, item: &Item, bytes: &[u8]) {
        match self.scanner.depth() {
            0 if matches!(item, Item::Array(_)) => {}
            0 => self.other.extend_from_slice(bytes),
            depth if self.is_in_range() => {
                if let (IN_EXEC, Item::Array(count)) = (depth, item) {
                    self.found = *count;
                }
                self.keep_item(bytes);
            }
            depth => self.keep_info(item, bytes, depth),
        }
    }

    fn keep_item(&mut self, bytes: &[u8]) {
        if !self.is_cut {
            self.range.extend_from_slice(bytes);
        }
    }

    /// Keeps an item of the stream's description, without the fields of the entries in it.
    fn keep_info(&mut self, item: &Item, bytes: &[u8], depth: usize) {
        if !self.keeps_info(depth) {
            return;
        }
        let is_fields = depth == self.info_fields && item.children() > 0;
        self.info.extend_from_slice(if is_fields { b"*0\r\n" } else { bytes });
    }

    fn keeps_info(&self, depth: usize) -> bool {
        depth <= self.info_fields && self.info.len() <= INFO_BYTES_MAX
    }

    /// Begins a bulk string: decides where it goes.
    fn begin(&mut self, len: usize, head: &[u8]) {
        let depth = self.scanner.depth();
        let (goes, name_bytes) = match depth {
            0 => (Goes::Nowhere, 0),
            _ if self.is_in_range() => {
                self.bytes = self.bytes.saturating_add(len as u64);
                let name_bytes = self.note_field(len, depth);
                (self.place(len), name_bytes)
            }
            _ if self.keeps_info(depth) && len <= INFO_STRING_BYTES_MAX => (Goes::Info, 0),
            _ => (Goes::Nowhere, 0),
        };
        let exact = if len > EXACT_ROOM_BYTES { len + head.len() + 2 } else { 0 };
        match goes {
            Goes::Range => {
                self.range.reserve_exact(exact);
                self.range.extend_from_slice(head);
            }
            Goes::Info => self.info.extend_from_slice(head),
            Goes::Nowhere => {}
        }
        self.string = Some(Partial { left: len.saturating_add(2), goes, name_bytes });
    }

    /// Records a string of the first entry. Returns how much of it is a name to be shown.
    fn note_field(&mut self, len: usize, depth: usize) -> usize {
        if depth != IN_FIELDS || !self.is_in_first() {
            return 0;
        }
        let is_name = self.scanner.left(IN_FIELDS).is_multiple_of(2);
        if !is_name {
            self.first_bytes = self.first_bytes.saturating_add(len as u64);
        }
        if !is_name || self.names.len() >= KEPT_NAMES_MAX {
            return 0;
        }
        self.names.push(Vec::new());
        len.min(KEPT_NAME_BYTES_MAX)
    }

    /// A string among the entries is kept if there is room for it and everything before it was kept.
    fn place(&mut self, len: usize) -> Goes {
        let cost = len.saturating_add(STRING_BYTES);
        self.is_cut |= cost > self.room;
        if self.is_cut {
            return Goes::Nowhere;
        }
        self.room -= cost;
        Goes::Range
    }

    /// Takes more of a string; `true` once it is complete.
    fn go_on(&mut self, buffer: &mut BytesMut) -> Result<bool, Malformed> {
        let Some(partial) = &mut self.string else { return Ok(true) };
        let len = partial.left.min(buffer.len());
        let piece = &buffer[..len];
        match partial.goes {
            Goes::Range => self.range.extend_from_slice(piece),
            Goes::Info => self.info.extend_from_slice(piece),
            Goes::Nowhere => {}
        }
        let named = len.min(partial.name_bytes);
        partial.name_bytes -= named;
        if let Some(name) = self.names.last_mut().filter(|_| named > 0) {
            name.extend_from_slice(&piece[..named]);
        }
        let goes = partial.goes;
        partial.left -= len;
        let is_complete = partial.left == 0;
        buffer.advance(len);
        if !is_complete {
            return Ok(false);
        }
        self.string = None;
        let ends_well = match goes {
            Goes::Range => self.range.ends_with(b"\r\n"),
            Goes::Info => self.info.ends_with(b"\r\n"),
            Goes::Nowhere => true,
        };
        if ends_well { Ok(true) } else { Err(Malformed("a string that is longer than announced")) }
    }

    /// The kept part of the complete reply.
    pub(super) fn finish(mut self) -> Result<RangeReply, RedisError> {
        if !self.other.is_empty() {
            let reply = Reply::from_scanned(Bytes::from(self.other));
            return Err(match reply.error() {
                Some(error) => RedisError::Server(error),
                None => RedisError::protocol("a transaction that was not carried out"),
            });
        }
        self.range.shrink_to_fit();
        let range = Reply::from_scanned(Bytes::from(self.range));
        let info = Reply::from_scanned(Bytes::from(self.info));
        let info = match info.integer() {
            _ if self.frame != Frame::Transaction => Ok(None),
            Ok(_) => Ok(None),
            Err(RedisError::Server(error)) => Err(error),
            Err(_) => Ok(Some(info.stream_info()?)),
        };
        // If the stream is missing or the key has another type, the description is the error that reports it.
        let (entries, unfit) = match range.error() {
            Some(error) if info.is_ok() => return Err(RedisError::Server(error)),
            Some(_) => (Vec::new(), None),
            None => whole_entries(&range, self.is_cut)?,
        };
        let (bytes, names) = (self.first_bytes, self.names);
        let first = unfit.filter(|_| entries.is_empty()).map(|id| Unfit { id, bytes, names });
        Ok(RangeReply { entries, found: self.found, bytes: self.bytes, first, info })
    }
}

/// The part of an XREAD reply before its entries.
enum StreamHead {
    /// More bytes are needed to decide.
    Incomplete,
    /// There are no entries. The reply ends at this offset.
    None(usize),
    /// The entries, or an error, begin at this offset.
    Begins(usize),
}

/// Parses the head of a single stream: `*1 *2 key` or, in RESP3, `%1 key`.
fn stream_head(buffer: &[u8]) -> Result<StreamHead, Malformed> {
    let Some((outer, end)) = item(buffer, 0, 0)? else { return Ok(StreamHead::Incomplete) };
    let pair = match outer {
        Item::Null | Item::Array(0) | Item::Map(0) => return Ok(StreamHead::None(end)),
        Item::Error(_) => return Ok(StreamHead::Begins(0)),
        Item::Map(1) => Some((Item::Array(2), end)),
        Item::Array(1) => item(buffer, end, 0)?,
        _ => return Err(Malformed("neither an array nor a map of one stream")),
    };
    let key = match pair {
        None => return Ok(StreamHead::Incomplete),
        Some((Item::Array(2), end)) => item(buffer, end, 0)?,
        Some(_) => return Err(Malformed("not a pair of stream and entries")),
    };
    match key {
        None => Ok(StreamHead::Incomplete),
        Some((Item::Bulk(_), end)) => Ok(StreamHead::Begins(end)),
        Some(_) => Err(Malformed("a stream without key")),
    }
}

#[cfg(test)]
#[path = "sieve_tests.rs"]
mod tests;
