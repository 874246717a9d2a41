//! Raw stream entries as Redis returns them.

use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::EntryId;
use crate::visible;

/// The most bytes that the values of an entry may have: larger entries are not read.
pub const ENTRY_BYTES_MAX: usize = 8 << 20;
/// The most field names that are kept of an entry that is too large.
pub const KEPT_NAMES_MAX: usize = 1024;
/// The most bytes that are kept of such a name.
pub const KEPT_NAME_BYTES_MAX: usize = 80;

/// One entry of a stream, not decoded. Its bytes are slices of Redis' reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The entry's id.
    pub id: EntryId,
    /// Its fields in the order in which the producer wrote them.
    pub fields: Fields,
}

/// The field/value pairs of an entry, kept as they are in the reply: a sequence of RESP bulk strings
/// `$<len>\r\n<bytes>\r\n`, field and value alternating. So an entry needs no allocation of its own.
///
/// INVARIANT: the bytes are well formed; the RESP reader, the only constructor outside tests, has validated them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    resp: Bytes,
    /// The bytes of values that were dropped because the entry is larger than [`ENTRY_BYTES_MAX`].
    left_out: u64,
}

impl Fields {
    /// Fields from the bulk strings of a reply; `None` if they are not well formed.
    #[must_use]
    pub fn from_resp(bytes: Bytes) -> Option<Self> {
        let mut rest = &bytes[..];
        let mut strings = 0_usize;
        while !rest.is_empty() {
            let (_, after) = bulk(rest)?;
            rest = after;
            strings += 1;
        }
        strings.is_multiple_of(2).then_some(Self { resp: bytes, left_out: 0 })
    }

    /// A copy of the fields in memory of its own, so that keeping them does not keep the whole reply.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { resp: Bytes::copy_from_slice(&self.resp), ..self.clone() }
    }

    /// Fields from bytes that were validated before.
    ///
    /// INVARIANT: `bytes` is an even number of bulk strings `$<len>\r\n<bytes>\r\n` and nothing else.
    pub(crate) fn from_walked(bytes: Bytes) -> Self {
        debug_assert!(Self::from_resp(bytes.clone()).is_some(), "fields that were not validated");
        Self { resp: bytes, left_out: 0 }
    }

    /// The fields of an entry that is too large: only some names are kept.
    #[must_use]
    pub fn too_large(names: &[impl AsRef<[u8]>], bytes: u64) -> Self {
        let pairs: Vec<(&[u8], &[u8])> = names.iter().map(|name| (name.as_ref(), &b""[..])).collect();
        Self { left_out: bytes, ..Self::from_pairs(&pairs) }
    }

    /// Whether the entry is larger than the limit for delivery.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        // Framing only adds bytes, so the exact sum is rarely needed.
        self.left_out > 0 || (self.resp.len() > ENTRY_BYTES_MAX && self.values_bytes() > ENTRY_BYTES_MAX)
    }

    /// Fields from pairs, for tests and tools.
    #[must_use]
    pub fn from_pairs(pairs: &[(&[u8], &[u8])]) -> Self {
        let mut bytes = Vec::new();
        for part in pairs.iter().flat_map(|(field, value)| [field, value]) {
            bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            bytes.extend_from_slice(part);
            bytes.extend_from_slice(b"\r\n");
        }
        Self { resp: bytes.into(), left_out: 0 }
    }

    /// The pairs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.resp[..];
        std::iter::from_fn(move || {
            let (field, after) = bulk(rest)?;
            let (value, after) = bulk(after)?;
            rest = after;
            Some((field, value))
        })
    }

    /// The value of the first field with that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find_map(|(field, value)| (field == name.as_bytes()).then_some(value))
    }

    /// The fields as a JSON object.
    ///
    /// # Errors
    /// If a name or a value is not UTF-8: the same object with all names and values in base64.
    pub fn to_json(&self) -> Result<String, String> {
        let object = |text: &dyn Fn(&[u8]) -> Option<String>| {
            let mut json = String::from("{");
            for (n, (name, value)) in self.iter().enumerate() {
                let comma = if n == 0 { "" } else { "," };
                let (name, value) = (quoted(&text(name)?)?, quoted(&text(value)?)?);
                write!(json, "{comma}{name}:{value}").ok()?;
            }
            json.push('}');
            Some(json)
        };
        object(&|bytes| String::from_utf8(bytes.to_vec()).ok())
            .ok_or_else(|| object(&|bytes| Some(STANDARD.encode(bytes))).unwrap_or_default())
    }

    /// The bytes of the values alone.
    #[must_use]
    pub fn values_bytes(&self) -> usize {
        self.iter().map(|(_, value)| value.len()).sum()
    }

    /// A hash of the fields. Together with the entry's id it identifies an entry.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        xxh3_64_with_seed(&self.resp, self.left_out)
    }

    /// The bytes of the fields, framing included.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.resp.len()
    }
}

/// The most field names in a message.
const NAMES_SHOWN_MAX: usize = 32;
/// The most bytes of one name in a message.
const NAME_SHOWN_BYTES_MAX: usize = 64;

/// Names chosen by others, for a line of a log or message: few, short, and without characters that a terminal or a
/// log could interpret.
#[derive(Debug, Default)]
pub(crate) struct NamesShown {
    shown: String,
    count: usize,
}

impl NamesShown {
    /// The names of an entry's fields.
    pub(crate) fn of(fields: &Fields) -> Self {
        let mut names = Self::default();
        fields.iter().for_each(|(name, _)| names.push(name));
        names
    }

    /// Adds a name.
    pub(crate) fn push(&mut self, name: &[u8]) {
        self.count += 1;
        if self.count > NAMES_SHOWN_MAX {
            return;
        }
        self.shown.push_str(if self.count == 1 { "" } else { ", " });
        if name.is_empty() {
            self.shown.push_str("\"\"");
            return;
        }
        let is_cut = name.len() > NAME_SHOWN_BYTES_MAX;
        for chunk in name[..name.len().min(NAME_SHOWN_BYTES_MAX)].utf8_chunks() {
            self.shown.push_str(&visible::line(chunk.valid()));
            // Drops a character that the cut divides.
            if !chunk.invalid().is_empty() && !is_cut {
                self.shown.push(char::REPLACEMENT_CHARACTER);
            }
        }
        if is_cut {
            self.shown.push('…');
        }
    }
}

impl fmt::Display for NamesShown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            0 => f.write_str("none"),
            1..=NAMES_SHOWN_MAX => f.write_str(&self.shown),
            count => write!(f, "{} and {} more", self.shown, count - NAMES_SHOWN_MAX),
        }
    }
}

fn quoted(text: &str) -> Option<String> {
    serde_json::to_string(text).ok()
}

/// Splits one bulk string off the front.
fn bulk(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_prefix(b"$")?;
    let line_end = rest.iter().position(|&b| b == b'\r')?;
    let len = rest[..line_end].iter().try_fold(0_usize, |len, &digit| {
        let digit = digit.wrapping_sub(b'0');
        (digit < 10).then(|| len.checked_mul(10)?.checked_add(usize::from(digit)))?
    })?;
    let body = rest.get(line_end + 2..)?;
    let value = body.get(..len)?;
    let after = body.get(len..)?.strip_prefix(b"\r\n")?;
    Some((value, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_read_back() {
        let fields = Fields::from_pairs(&[(b"x", b""), (b"data", b"{\"a\":\"\r\n\"}")]);
        assert_eq!(fields.get("data"), Some(&b"{\"a\":\"\r\n\"}"[..]));
        assert_eq!(fields.get("enc"), None);
        assert_eq!(fields.iter().count(), 2);
        assert_eq!(Fields::from_resp(fields.resp.clone()), Some(fields));
    }

    #[test]
    fn entries_above_the_limit_are_distinguished_from_those_at_it() {
        let value = vec![b'x'; ENTRY_BYTES_MAX];
        assert!(!Fields::from_pairs(&[(b"data", &value)]).is_too_large());
        assert!(Fields::from_pairs(&[(b"data", &value), (b"more", b"1")]).is_too_large());
        let named = Fields::too_large(&["data", "openai"], 9 << 20);
        assert!(named.is_too_large());
        assert_eq!(named.iter().map(|(name, _)| name).collect::<Vec<_>>(), [&b"data"[..], b"openai"]);
    }

    #[test]
    fn malformed_fields_are_refused() {
        for bad in ["$1\r\na\r\n", "$3\r\na\r\n$1\r\nb\r\n", "+a\r\n", "$x\r\n\r\n$0\r\n\r\n"] {
            assert_eq!(Fields::from_resp(Bytes::copy_from_slice(bad.as_bytes())), None, "{bad:?}");
        }
    }

    #[test]
    fn fields_that_are_not_text_are_stored_in_base64() {
        let fields = Fields::from_pairs(&[(b"data", b"\xff\x00"), (b"n", b"1")]);
        assert_eq!(fields.to_json().unwrap_err(), r#"{"ZGF0YQ==":"/wA=","bg==":"MQ=="}"#);
        assert_eq!(Fields::default().to_json().unwrap(), "{}");
    }
}
