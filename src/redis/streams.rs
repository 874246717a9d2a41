//! Replies about streams: entries whose fields remain slices of the reply.

use bytes::Bytes;

use super::error::RedisError;
use super::reply::{Cursor, Reply};
use super::resp::Item;
use crate::model::{Entry, EntryId, Fields};

/// The most elements for which memory is reserved before they are read.
const RESERVED_ELEMENTS_MAX: usize = 1024;

/// The entries of one stream that a read returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamEntries {
    /// The stream's key.
    pub key: Bytes,
    /// The entries, in order.
    pub entries: Vec<Entry>,
    /// Entries of a pending list that were deleted from the stream meanwhile.
    pub deleted: Vec<EntryId>,
}

/// A stream's description, from the reply to `XINFO STREAM`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamInfo {
    /// The number of entries.
    pub length: u64,
    /// The highest id that was ever assigned.
    pub last_generated_id: EntryId,
    /// The oldest entry's id; `None` in an empty stream.
    pub first: Option<EntryId>,
    /// The newest entry; `None` in an empty stream, or if it was not requested.
    pub last: Option<Entry>,
    /// How many entries were ever added (Redis 7 and later).
    pub entries_added: Option<u64>,
    /// The highest id that was ever deleted or trimmed by id; `0-0` if none was (Redis 7 and later).
    pub max_deleted_id: Option<EntryId>,
}

/// The keys that a push of `CLIENT TRACKING` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// These keys.
    Keys(Vec<Bytes>),
    /// All keys: the database was emptied.
    Everything,
}

impl Reply {
    /// The keys that changed, if this is a push about changed keys.
    ///
    /// # Errors
    /// [`RedisError::Protocol`] for an `invalidate` of another form.
    pub fn changed(&self) -> Result<Option<Changed>, RedisError> {
        let mut cursor = self.cursor();
        let (Item::Push(2) | Item::Array(2)) = cursor.next()? else { return Ok(None) };
        if cursor.string()? != "invalidate" {
            return Ok(None);
        }
        let Some(count) = cursor.array()? else { return Ok(Some(Changed::Everything)) };
        let mut keys = Vec::with_capacity(count.min(RESERVED_ELEMENTS_MAX));
        for _ in 0..count {
            keys.push(cursor.string()?);
        }
        Ok(Some(Changed::Keys(keys)))
    }

    /// The reply to XREAD or XREADGROUP, stream by stream; null means no streams.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error reply, [`RedisError::Protocol`] for another form.
    pub fn streams(&self) -> Result<Vec<StreamEntries>, RedisError> {
        streams(&mut self.cursor())
    }

    /// The reply to EXEC, to be read result by result.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error reply, [`RedisError::Protocol`] for another form, including null, because
    /// nothing was watched.
    pub fn results(&self) -> Result<Results<'_>, RedisError> {
        let mut cursor = self.cursor();
        let left = cursor.array()?.ok_or(RedisError::protocol("a transaction that was not executed"))?;
        Ok(Results { cursor, left })
    }

    /// The reply to XRANGE or XREVRANGE.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error reply, [`RedisError::Protocol`] for another form.
    pub fn entries(&self) -> Result<Vec<Entry>, RedisError> {
        Ok(entries(&mut self.cursor())?.0)
    }

    /// The reply to `XINFO STREAM key`, with or without `FULL`; with it there is no newest entry.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error reply (`ERR no such key`), [`RedisError::Protocol`] for
    /// another form.
    pub fn stream_info(&self) -> Result<StreamInfo, RedisError> {
        stream_info(&mut self.cursor())
    }
}

/// The results of a transaction's commands, in order. A result that is an error is returned as one, and the next one
/// can still be read.
pub struct Results<'a> {
    cursor: Cursor<'a>,
    left: usize,
}

impl Results<'_> {
    /// A result that matters only if it is an error.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error, [`RedisError::Protocol`] if there is no further result.
    pub fn done(&mut self) -> Result<(), RedisError> {
        self.begin()?;
        let item = self.cursor.next_or_error()?;
        self.cursor.skip(item.children())
    }

    /// A count, such as XLEN's.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error, [`RedisError::Protocol`] for another form.
    pub fn count(&mut self) -> Result<u64, RedisError> {
        self.begin()?;
        match self.cursor.next_or_error()? {
            Item::Integer(value) => {
                u64::try_from(value).map_err(|_| RedisError::protocol("a negative count"))
            }
            _ => Err(RedisError::protocol("not an integer")),
        }
    }

    /// The entries that XREAD or XREADGROUP returned, stream by stream.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error, [`RedisError::Protocol`] for another form.
    pub fn streams(&mut self) -> Result<Vec<StreamEntries>, RedisError> {
        self.begin()?;
        streams(&mut self.cursor)
    }

    /// The reply to `XINFO STREAM`.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error, [`RedisError::Protocol`] for another form.
    pub fn stream_info(&mut self) -> Result<StreamInfo, RedisError> {
        self.begin()?;
        stream_info(&mut self.cursor)
    }

    /// How many entries the group with this name lags behind, according to `XINFO GROUPS`; `None` if Redis does not
    /// know, as before Redis 7.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error, [`RedisError::Protocol`] for another form.
    pub fn lag_of(&mut self, group: &str) -> Result<Option<u64>, RedisError> {
        self.begin()?;
        lag_of(&mut self.cursor, group)
    }

    fn begin(&mut self) -> Result<(), RedisError> {
        self.left = self.left.checked_sub(1).ok_or(RedisError::protocol("fewer results than commands"))?;
        Ok(())
    }
}

fn streams(cursor: &mut Cursor<'_>) -> Result<Vec<StreamEntries>, RedisError> {
    let (count, are_pairs) = match cursor.next_or_error()? {
        Item::Null => return Ok(Vec::new()),
        Item::Array(count) => (count, true),
        Item::Map(count) => (count, false),
        _ => return Err(RedisError::protocol("neither an array nor a map of streams")),
    };
    let mut streams = Vec::with_capacity(count.min(RESERVED_ELEMENTS_MAX));
    for _ in 0..count {
        if are_pairs && cursor.array()? != Some(2) {
            return Err(RedisError::protocol("not a pair of stream and entries"));
        }
        let key = cursor.string()?;
        let (entries, deleted) = entries(cursor)?;
        streams.push(StreamEntries { key, entries, deleted });
    }
    Ok(streams)
}

fn stream_info(cursor: &mut Cursor<'_>) -> Result<StreamInfo, RedisError> {
    let pairs = pairs(cursor)?;
    let mut info = StreamInfo::default();
    let (mut has_length, mut has_last_id, mut is_full) = (false, false, false);
    for _ in 0..pairs {
        match &cursor.string()?[..] {
            b"length" => (info.length, has_length) = (count(cursor)?, true),
            b"last-generated-id" => (info.last_generated_id, has_last_id) = (cursor.id()?, true),
            b"entries-added" => info.entries_added = Some(count(cursor)?),
            b"max-deleted-entry-id" => info.max_deleted_id = Some(cursor.id()?),
            b"first-entry" => info.first = maybe_entry(cursor)?.map(|entry| entry.id),
            // With FULL, which returns the groups after everything else.
            b"entries" => {
                info.first = entries(cursor)?.0.first().map(|entry| entry.id);
                is_full = true;
            }
            b"groups" if is_full => break,
            b"last-entry" => info.last = maybe_entry(cursor)?,
            _ => cursor.skip(1)?,
        }
    }
    if has_length && has_last_id {
        Ok(info)
    } else {
        Err(RedisError::protocol("a stream without properties"))
    }
}

fn lag_of(cursor: &mut Cursor<'_>, wanted: &str) -> Result<Option<u64>, RedisError> {
    let groups = cursor.array()?.unwrap_or(0);
    let mut found = None;
    for _ in 0..groups {
        let pairs = pairs(cursor)?;
        let (mut is_wanted, mut lag) = (false, None);
        for _ in 0..pairs {
            match &cursor.string()?[..] {
                b"name" => is_wanted = cursor.string()? == wanted.as_bytes(),
                b"lag" => {
                    lag = match cursor.next()? {
                        Item::Integer(value) => u64::try_from(value).ok(),
                        _ => None,
                    }
                }
                _ => cursor.skip(1)?,
            }
        }
        if is_wanted {
            found = lag;
        }
    }
    Ok(found)
}

/// The head of a map, which is an array in RESP2.
fn pairs(cursor: &mut Cursor<'_>) -> Result<usize, RedisError> {
    match cursor.next_or_error()? {
        Item::Map(pairs) => Ok(pairs),
        Item::Array(count) if count.is_multiple_of(2) => Ok(count / 2),
        _ => Err(RedisError::protocol("not a map of properties")),
    }
}

/// A number that cannot be negative.
fn count(cursor: &mut Cursor<'_>) -> Result<u64, RedisError> {
    match cursor.next()? {
        Item::Integer(value) => u64::try_from(value).map_err(|_| RedisError::protocol("a negative count")),
        _ => Err(RedisError::protocol("not an integer")),
    }
}

/// An array of entries, with the deleted ones separate; null means none.
fn entries(cursor: &mut Cursor<'_>) -> Result<(Vec<Entry>, Vec<EntryId>), RedisError> {
    let Some(count) = cursor.array()? else { return Ok((Vec::new(), Vec::new())) };
    let mut entries = Vec::with_capacity(count.min(RESERVED_ELEMENTS_MAX));
    let mut deleted = Vec::new();
    for _ in 0..count {
        let Some(parts) = cursor.array()? else { return Err(NOT_AN_ENTRY) };
        match entry(cursor, parts)? {
            (id, Some(fields)) => entries.push(Entry { id, fields }),
            (id, None) => deleted.push(id),
        }
    }
    Ok((entries, deleted))
}

/// The entries of a range that may be cut off, and the id of the incomplete entry, if that was kept.
pub(super) fn whole_entries(
    range: &Reply,
    is_cut: bool,
) -> Result<(Vec<Entry>, Option<EntryId>), RedisError> {
    if !is_cut {
        return Ok((range.entries()?, None));
    }
    let mut cursor = range.cursor();
    let count = cursor.array()?.unwrap_or_default();
    let mut entries = Vec::with_capacity(count.min(RESERVED_ELEMENTS_MAX));
    for _ in 0..count {
        let Ok(Some(parts)) = cursor.array() else { break };
        let begin = cursor.place();
        match entry(&mut cursor, parts) {
            Ok((id, Some(fields))) => entries.push(Entry { id, fields }),
            Ok((_, None)) => {}
            Err(_) => {
                cursor.go_to(begin);
                return Ok((entries, cursor.id().ok()));
            }
        }
    }
    Ok((entries, None))
}

/// One entry, or null.
fn maybe_entry(cursor: &mut Cursor<'_>) -> Result<Option<Entry>, RedisError> {
    let Some(parts) = cursor.array()? else { return Ok(None) };
    let (id, fields) = entry(cursor, parts)?;
    Ok(fields.map(|fields| Entry { id, fields }))
}

/// The parts of one entry: id, fields, and any further ones that newer servers add, which are skipped.
fn entry(cursor: &mut Cursor<'_>, parts: usize) -> Result<(EntryId, Option<Fields>), RedisError> {
    let more = parts.checked_sub(2).ok_or(NOT_AN_ENTRY)?;
    let id = cursor.id()?;
    let fields = match cursor.array()? {
        None => None,
        Some(count) if count.is_multiple_of(2) => Some(Fields::from_walked(cursor.bulks(count)?)),
        Some(_) => return Err(RedisError::protocol("a field without value")),
    };
    cursor.skip(more)?;
    Ok((id, fields))
}

const NOT_AN_ENTRY: RedisError = RedisError::protocol("not a pair of id and fields");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::ServerErrorKind;

    const ENTRY: &str = "*2\r\n$3\r\n5-1\r\n*2\r\n$4\r\ndata\r\n$2\r\n{}\r\n";

    fn reply(text: &str) -> Reply {
        Reply::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    fn expected() -> Entry {
        Entry { id: EntryId::new(5, 1), fields: Fields::from_pairs(&[(b"data", b"{}")]) }
    }

    #[test]
    fn reads_are_the_same_in_both_protocols() {
        let entries = format!("*3\r\n{ENTRY}*2\r\n$3\r\n6-0\r\n*-1\r\n*2\r\n$3\r\n7-0\r\n_\r\n");
        let resp2 = reply(&format!("*1\r\n*2\r\n$1\r\nk\r\n{entries}")).streams().unwrap();
        let resp3 = reply(&format!("%1\r\n$1\r\nk\r\n{entries}")).streams().unwrap();
        assert_eq!(resp2, resp3);
        assert_eq!(
            resp2,
            [StreamEntries {
                key: Bytes::from_static(b"k"),
                entries: vec![expected()],
                deleted: vec![EntryId::new(6, 0), EntryId::new(7, 0)],
            }]
        );
        for null in ["*-1\r\n", "_\r\n", "*0\r\n", "%0\r\n"] {
            assert!(reply(null).streams().unwrap().is_empty());
        }
    }

    #[test]
    fn pushes_name_changed_keys() {
        let changed = |text: &str| reply(text).changed().unwrap();
        assert_eq!(
            changed(">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n"),
            Some(Changed::Keys(vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")]))
        );
        assert_eq!(changed(">2\r\n$10\r\ninvalidate\r\n_\r\n"), Some(Changed::Everything));
        assert_eq!(changed(">2\r\n$7\r\nmessage\r\n_\r\n"), None);
        assert_eq!(changed(":1\r\n"), None);
        assert!(reply(">2\r\n$10\r\ninvalidate\r\n:1\r\n").changed().is_err());
    }

    #[test]
    fn ranges_read_back() {
        assert_eq!(reply(&format!("*1\r\n{ENTRY}")).entries().unwrap(), [expected()]);
        assert!(reply("*0\r\n").entries().unwrap().is_empty());
        let with_delivery = "*1\r\n*4\r\n$3\r\n5-1\r\n*2\r\n$4\r\ndata\r\n$2\r\n{}\r\n:9\r\n*1\r\n:1\r\n";
        assert_eq!(reply(with_delivery).entries().unwrap(), [expected()]);
    }

    #[test]
    fn information_reads_back() {
        let properties = format!(
            "+length\r\n:1\r\n$17\r\nlast-generated-id\r\n$3\r\n9-0\r\n+groups\r\n*1\r\n:1\r\n\
             +first-entry\r\n{ENTRY}+last-entry\r\n{ENTRY}"
        );
        let old = reply(&format!("*10\r\n{properties}")).stream_info().unwrap();
        assert_eq!(
            old,
            StreamInfo {
                length: 1,
                last_generated_id: EntryId::new(9, 0),
                first: Some(EntryId::new(5, 1)),
                last: Some(expected()),
                entries_added: None,
                max_deleted_id: None,
            }
        );
        let new = format!("%7\r\n{properties}+entries-added\r\n:4\r\n+max-deleted-entry-id\r\n$3\r\n2-0\r\n");
        let new = reply(&new).stream_info().unwrap();
        assert_eq!((new.entries_added, new.max_deleted_id), (Some(4), Some(EntryId::new(2, 0))));
        let empty = "%4\r\n+length\r\n:0\r\n+last-generated-id\r\n$3\r\n0-0\r\n+first-entry\r\n_\r\n+last-entry\r\n_\r\n";
        let empty = reply(empty).stream_info().unwrap();
        assert_eq!((empty.first, empty.last), (None, None));
    }

    #[test]
    fn results_are_taken_one_by_one_whether_they_are_errors_or_not() {
        let group = |name: &str, lag: &str| format!("%2\r\n+name\r\n+{name}\r\n+lag\r\n{lag}\r\n");
        let groups = format!("*3\r\n{}{}{}", group("a", ":7"), group("g", ":4"), group("n", "_"));
        let text =
            format!("*7\r\n+OK\r\n-NOGROUP none\r\n:3\r\n{groups}{groups}%1\r\n+k\r\n*1\r\n{ENTRY}*-1\r\n");
        let reply = reply(&text);
        let mut results = reply.results().unwrap();
        results.done().unwrap();
        let error = results.done().unwrap_err();
        assert!(matches!(error, RedisError::Server(error) if error.kind() == ServerErrorKind::NoGroup));
        assert_eq!(results.count().unwrap(), 3);
        assert_eq!(results.lag_of("g").unwrap(), Some(4));
        assert_eq!(results.lag_of("n").unwrap(), None);
        assert_eq!(results.streams().unwrap()[0].entries, [expected()]);
        assert!(results.streams().unwrap().is_empty());
        assert!(matches!(results.done(), Err(RedisError::Protocol(_))));
    }

    #[test]
    fn other_forms_are_protocol_errors() {
        for text in [
            "*1\r\n*1\r\n$3\r\n5-1\r\n",
            "*1\r\n*2\r\n$1\r\n5\r\n*0\r\n",
            "*1\r\n*2\r\n$3\r\n5-1\r\n*1\r\n$1\r\na\r\n",
            "*1\r\n*2\r\n$3\r\n5-1\r\n*2\r\n+a\r\n$1\r\nb\r\n",
            "*1\r\n*2\r\n$3\r\n5-1\r\n*2\r\n$1\r\na\r\n:1\r\n",
            "*1\r\n*2\r\n$3\r\n5-1\r\n*2\r\n$1\r\na\r\n$-1\r\n",
            "*1\r\n*2\r\n$3\r\n5-1\r\n*2\r\n|1\r\n+x\r\n+y\r\n$1\r\na\r\n$1\r\nb\r\n",
            "*1\r\n*-1\r\n",
            "*1\r\n+x\r\n",
            ":1\r\n",
        ] {
            let result = reply(text).entries();
            assert!(matches!(result, Err(RedisError::Protocol(_))), "{text:?}: {result:?}");
        }
        assert!(matches!(reply("*1\r\n$1\r\nk\r\n").streams(), Err(RedisError::Protocol(_))));
        assert!(matches!(reply("*2\r\n+length\r\n:-1\r\n").stream_info(), Err(RedisError::Protocol(_))));
        assert!(matches!(reply("*0\r\n").stream_info(), Err(RedisError::Protocol(_))));
    }
}
