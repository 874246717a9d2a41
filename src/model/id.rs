//! Entry ids, and the resume positions that contain them.

use std::fmt;
use std::str::FromStr;

/// The id of a Redis stream entry: `ms-n`. Its order is that of Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Milliseconds since 1970 by Redis' clock, if Redis chose the id.
    pub ms: u64,
    /// Sequence number within the millisecond.
    pub n: u64,
}

impl EntryId {
    /// `0-0`: before every entry.
    pub const ZERO: Self = Self { ms: 0, n: 0 };
    /// The highest possible id.
    pub const MAX: Self = Self { ms: u64::MAX, n: u64::MAX };

    /// An id from its two numbers.
    #[must_use]
    pub const fn new(ms: u64, n: u64) -> Self {
        Self { ms, n }
    }

    /// The smallest id above this one, or `None` at the end of the id space.
    #[must_use]
    pub const fn next(self) -> Option<Self> {
        match (self.ms, self.n) {
            (u64::MAX, u64::MAX) => None,
            (ms, u64::MAX) => Some(Self { ms: ms + 1, n: 0 }),
            (ms, n) => Some(Self { ms, n: n + 1 }),
        }
    }

    /// The largest id below this one; `0-0` has none and stays.
    #[must_use]
    pub const fn before(self) -> Self {
        match (self.ms, self.n) {
            (0, 0) => self,
            (ms, 0) => Self { ms: ms - 1, n: u64::MAX },
            (ms, n) => Self { ms, n: n - 1 },
        }
    }

    /// Parses the bytes of a Redis reply, where an id is always `ms-n`.
    #[must_use]
    pub fn from_ascii(bytes: &[u8]) -> Option<Self> {
        let dash = bytes.iter().position(|&b| b == b'-')?;
        Some(Self { ms: decimal(&bytes[..dash])?, n: decimal(&bytes[dash + 1..])? })
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.n)
    }
}

/// A resume position: everything up to and including this point has been received.
///
/// If one raw entry produces several frames, all but the last have the position `ms-n.k` (k = 1, 2, …); the last has
/// `ms-n`, which covers the whole entry and so is ordered after all parts of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The entry.
    pub id: EntryId,
    /// How many frames of the entry are covered; [`Position::WHOLE`] for all of them.
    pub part: u32,
}

impl Position {
    /// The `part` of a position that covers its whole entry.
    pub const WHOLE: u32 = u32::MAX;
    /// The `part` of a position that covers its entry except for the end of the generation, which may follow under
    /// the same id without an entry of its own. Clients never see it.
    pub const BUT_END: u32 = u32::MAX - 1;
    /// Before every entry.
    pub const ZERO: Self = Self::whole(EntryId::ZERO);

    /// The position right after the whole entry `id`.
    #[must_use]
    pub const fn whole(id: EntryId) -> Self {
        Self { id, part: Self::WHOLE }
    }

    /// The position that covers an entry except for the end of the generation, which may follow later.
    #[must_use]
    pub const fn but_end(id: EntryId) -> Self {
        Self { id, part: Self::BUT_END }
    }

    /// The position after frame `n`, counted from 1, of an entry with several frames.
    #[must_use]
    pub fn part(id: EntryId, n: usize) -> Self {
        Self { id, part: u32::try_from(n).unwrap_or(Self::BUT_END).min(Self::BUT_END) }
    }

    /// Whether the entry's own frames are all covered.
    #[must_use]
    pub const fn covers_entry(self) -> bool {
        self.part >= Self::BUT_END
    }

    /// Whether the whole entry is covered.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        self.part == Self::WHOLE
    }
}

impl Default for Position {
    fn default() -> Self {
        Self::ZERO
    }
}

impl From<EntryId> for Position {
    fn from(id: EntryId) -> Self {
        Self::whole(id)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.covers_entry() { self.id.fmt(f) } else { write!(f, "{}.{}", self.id, self.part) }
    }
}

/// Text that is not an entry id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an entry id: expected `ms`, `ms-n` or `ms-n.k` in decimal numbers")]
pub struct ParseIdError;

impl FromStr for EntryId {
    type Err = ParseIdError;

    /// `ms` or `ms-n`.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let (ms, n) = text.split_once('-').unwrap_or((text, "0"));
        Ok(Self {
            ms: decimal(ms.as_bytes()).ok_or(ParseIdError)?,
            n: decimal(n.as_bytes()).ok_or(ParseIdError)?,
        })
    }
}

impl FromStr for Position {
    type Err = ParseIdError;

    /// `ms`, `ms-n` or `ms-n.k`.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let Some((id, part)) = text.split_once('.') else {
            return Ok(Self::whole(text.parse()?));
        };
        if !id.contains('-') {
            return Err(ParseIdError);
        }
        let part = decimal(part.as_bytes())
            .and_then(|part| u32::try_from(part).ok())
            .filter(|&part| part > 0 && part < Self::BUT_END)
            .ok_or(ParseIdError)?;
        Ok(Self { id: id.parse()?, part })
    }
}

/// An unsigned decimal number of 1 to 20 digits, without sign or spaces.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_parse_as_redis_writes_them() {
        assert_eq!("17".parse(), Ok(EntryId::new(17, 0)));
        assert_eq!("17-3".parse(), Ok(EntryId::new(17, 3)));
        assert_eq!("18446744073709551615-18446744073709551615".parse(), Ok(EntryId::MAX));
        for bad in ["", "-", "1-", "-1", "+1", "1-2-3", " 1", "18446744073709551616", "1.2", "x"] {
            assert_eq!(bad.parse::<EntryId>(), Err(ParseIdError), "{bad:?}");
        }
        assert_eq!(EntryId::from_ascii(b"5-6"), Some(EntryId::new(5, 6)));
        assert_eq!(EntryId::from_ascii(b"5"), None);
    }

    #[test]
    fn between_an_id_and_the_one_before_it_there_is_none() {
        for (id, before) in [((5, 6), (5, 5)), ((5, 0), (4, u64::MAX)), ((0, 1), (0, 0)), ((0, 0), (0, 0))] {
            let (id, before) = (EntryId::new(id.0, id.1), EntryId::new(before.0, before.1));
            assert_eq!(id.before(), before);
            assert!(before == id || before.next() == Some(id));
        }
    }

    #[test]
    fn positions_order_parts_before_the_whole() {
        let part: Position = "5-1.2".parse().unwrap();
        let whole: Position = "5-1".parse().unwrap();
        assert!(part < whole && whole < "5-2.1".parse().unwrap());
        assert_eq!(part.to_string(), "5-1.2");
        assert_eq!(whole.to_string(), "5-1");
        for bad in ["5.1", "5-1.0", "5-1.", "5-1.x", "5-1.4294967294", "5-1.4294967295"] {
            assert_eq!(bad.parse::<Position>(), Err(ParseIdError), "{bad:?}");
        }
    }

    #[test]
    fn next_carries_over() {
        assert_eq!(EntryId::new(1, u64::MAX).next(), Some(EntryId::new(2, 0)));
        assert_eq!(EntryId::MAX.next(), None);
    }
}
