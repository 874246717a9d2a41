//! Which requests to cancel are pending: one for each generation, over all instances.
//!
//! A marker tells how far the stream had come when the last request was written. The request is meant for the
//! generation that was going on there; it is pending until that is seen to have ended, or, where none was going on, until one
//! begins. Producers need not heed a request from before they began, so in doubt another one is written: a request too
//! many stops nothing that should go on, one too few leaves a Stop without effect.

use crate::event::record::Milestone;
use crate::event::{Entry, EntryId};
use crate::redis::{Command, ENTRY_ROOM_BYTES, Link, RedisError};

/// The most entries of one look at what has come, and the bytes that it aims at.
const LOOK_ENTRIES_MAX: usize = 256;
const LOOK_BYTES: usize = 1 << 20;
/// How much larger a look may be than the one before.
const LOOK_GROWTH: usize = 16;
/// Looks before a request counts as no longer pending.
const LOOKS_MAX: usize = 16;

/// Tells beginnings and ends of generations.
pub(super) type Milestones = dyn Fn(&Entry) -> Milestone + Send;

/// Where a stream stood when a request was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Its newest entry; 0-0 where nobody had written anything.
    pub(super) newest: EntryId,
    /// Whether a generation is known to have been going on.
    pub(super) is_going: bool,
}

impl Mark {
    /// Where a stream stands whose newest entry this is.
    pub(super) fn at(newest: Option<&Entry>, milestones: &Milestones) -> Self {
        newest.map_or_else(Self::default, |entry| Self {
            newest: entry.id,
            is_going: milestones(entry) == Milestone::Begins,
        })
    }

    /// As it is kept in the marker.
    pub(super) fn to_text(self) -> String {
        format!("{} {}", self.newest, if self.is_going { "going" } else { "idle" })
    }

    /// Reads it back; `None`: the marker is another instance's claim.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (newest, state) = std::str::from_utf8(text).ok()?.split_once(' ')?;
        let is_going = match state {
            "going" => true,
            "idle" => false,
            _ => return None,
        };
        Some(Self { newest: newest.parse().ok()?, is_going })
    }

    /// Whether a request that was written here is still pending in the stream `key`, whose newest entry is `newest`.
    ///
    /// # Errors
    /// When Redis could not be asked.
    pub(super) fn is_pending(
        self,
        newest: EntryId,
        (link, key): (&mut Link, &str),
        milestones: &Milestones,
    ) -> Result<bool, RedisError> {
        if newest <= self.newest {
            // Below it: the stream was deleted, or its end was.
            return Ok(newest == self.newest);
        }
        let (mut after, mut count) = (self.newest, 1);
        for _ in 0..LOOKS_MAX {
            let look = Command::new("XRANGE").arg(key).arg(format!("({after}")).args(["+", "COUNT"]);
            let found = link.call_range(&look.number(count), ENTRY_ROOM_BYTES)?;
            let (is_full, fitting) = (found.found >= count, found.fitting(LOOK_BYTES));
            let is_cut = found.entries.len() < found.found;
            let entries = found.into_entries();
            let is_over = |entry: &Entry| match milestones(entry) {
                Milestone::Ends => true,
                Milestone::Begins => !self.is_going,
                Milestone::Neither => false,
            };
            if entries.iter().any(is_over) {
                return Ok(false);
            }
            let Some(last) = entries.last().filter(|_| is_full || is_cut) else { return Ok(true) };
            after = last.id;
            count = fitting.min(count * LOOK_GROWTH).clamp(1, LOOK_ENTRIES_MAX);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::testing::RedisServer;

    fn by_field(entry: &Entry) -> Milestone {
        match entry.fields.iter().next() {
            Some((b"begin", _)) => Milestone::Begins,
            Some((b"end", _)) => Milestone::Ends,
            _ => Milestone::Neither,
        }
    }

    #[test]
    fn markers_read_back() {
        for mark in [Mark::default(), Mark { newest: EntryId::new(5, 7), is_going: true }] {
            assert_eq!(Mark::parse(mark.to_text().as_bytes()), Some(mark));
        }
        for claim in ["i1:17:1763", "", "5-1", "5-1 other", "x going"] {
            assert_eq!(Mark::parse(claim.as_bytes()), None, "{claim}");
        }
    }

    #[test]
    fn a_request_is_pending_until_its_generation_has_ended() {
        let server = RedisServer::start(&[]);
        let mut link = server.link();
        let add = |id: &str, field: &str| {
            server.link().call(&Command::new("XADD").args(["k", id, field, "x"])).unwrap();
        };
        add("1-0", "begin");
        let mut pending = |at: u64, is_going: bool, newest: u64| {
            let mark = Mark { newest: EntryId::new(at, 0), is_going };
            mark.is_pending(EntryId::new(newest, 0), (&mut link, "k"), &by_field).unwrap()
        };
        assert!(pending(1, true, 1), "nothing has come");
        assert!(!pending(2, true, 1), "the stream is another one");
        for id in 2..1000 {
            add(&format!("{id}-0"), if id % 2 == 0 { "begin" } else { "heartbeat" });
        }
        assert!(pending(1, true, 999));
        assert!(!pending(1, false, 999), "a generation has begun");
        add("1000-0", "end");
        add("1001-0", "begin");
        assert!(!pending(1, true, 1001));
        assert!(pending(1001, true, 1001));
        assert!(!pending(999, true, 1001));
    }
}
