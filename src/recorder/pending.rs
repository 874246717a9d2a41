//! Decides which requests to cancel are pending: one per generation, over all instances.
//!
//! A marker holds the stream's newest entry at the time of the last request, and the id of the request on the control
//! stream. The request applies to the generation that was open then. It is pending as long as it is on the control
//! stream and all later entries show that the generation has not ended or, if none was open, that none has begun. So
//! all later entries have to exist: a stream that was trimmed past the mark, or deleted and recreated, proves
//! nothing. In doubt, another request is written: a superfluous request stops nothing that should continue, because
//! producers may ignore requests from before their generation, while a missing request makes Stop ineffective.

use ::redis::Cmd;

use crate::decode::Milestone;
use crate::model::{Entry, EntryId};
use crate::redis::{ENTRY_ROOM_BYTES, Link, RedisError};

/// The most entries that one look at the later entries reads, and the number of bytes that it aims at.
const LOOK_ENTRIES_MAX: usize = 256;
const LOOK_BYTES: usize = 1 << 20;
/// The factor by which a look may be larger than the one before.
const LOOK_GROWTH: usize = 16;
/// How many looks are made before a request counts as no longer pending.
const LOOKS_MAX: usize = 16;

/// Detects beginnings and ends of generations.
pub(super) type Milestones = dyn Fn(&Entry) -> Milestone + Send;

/// The position of a stream when a request was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Its newest entry; 0-0 if the stream did not exist.
    pub(super) newest: EntryId,
    /// Whether a generation is known to have been open.
    pub(super) is_going: bool,
}

impl Mark {
    /// The position of a stream with this newest entry.
    pub(super) fn at(newest: Option<&Entry>, milestones: &Milestones) -> Self {
        newest.map_or_else(Self::default, |entry| Self {
            newest: entry.id,
            is_going: milestones(entry) == Milestone::Begins,
        })
    }

    /// Whether the stream `key`, whose newest entry is `newest`, has continued from here without another generation.
    fn is_gone_on(
        self,
        newest: EntryId,
        (link, key): (&mut Link, &str),
        milestones: &Milestones,
    ) -> Result<bool, RedisError> {
        if newest <= self.newest {
            // The newest entry is older than the mark: the stream was deleted, or its last entries were.
            return Ok(newest == self.newest);
        }
        if !has_entry(link, key, self.newest)? {
            return Ok(false);
        }
        let (mut after, mut count) = (self.newest, 1);
        for _ in 0..LOOKS_MAX {
            let look = Cmd::xrange_count(key, format!("({after}"), "+", count);
            let found = link.call_range(&look, ENTRY_ROOM_BYTES)?;
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

/// A request that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// The id of its entry on the control stream.
    pub(super) request: EntryId,
    /// The position of the stream.
    pub(super) mark: Mark,
}

impl Written {
    /// The value of the marker.
    pub(super) fn to_text(self) -> String {
        let Self { request, mark: Mark { newest, is_going } } = self;
        format!("{newest} {} {request}", if is_going { "going" } else { "idle" })
    }

    /// Parses the value of a marker; `None`: the marker is another instance's claim.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let newest = words.next()?.parse().ok()?;
        let is_going = match words.next()? {
            "going" => true,
            "idle" => false,
            _ => return None,
        };
        let request = words.next()?.parse().ok()?;
        Some(Self { request, mark: Mark { newest, is_going } })
    }

    /// Whether the request is still pending in the stream, whose newest entry is `newest`.
    ///
    /// # Errors
    /// If Redis does not reply.
    pub(super) fn is_pending(
        self,
        newest: EntryId,
        link: &mut Link,
        [stream, control]: [&str; 2],
        milestones: &Milestones,
    ) -> Result<bool, RedisError> {
        Ok(has_entry(link, control, self.request)?
            && self.mark.is_gone_on(newest, (link, stream), milestones)?)
    }
}

/// Room for an entry of which only the id is needed, in bytes: its fields are dropped.
const ID_ROOM_BYTES: usize = 128;

/// Whether a stream still has an entry; a key of another type has none.
fn has_entry(link: &mut Link, key: &str, id: EntryId) -> Result<bool, RedisError> {
    let look = Cmd::xrange_count(key, id, id, 1);
    match link.call_range(&look, ID_ROOM_BYTES) {
        Ok(found) => Ok(found.found > 0),
        Err(RedisError::Server(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use ::redis::cmd;

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
            let written = Written { request: EntryId::new(9, 1), mark };
            assert_eq!(Written::parse(written.to_text().as_bytes()), Some(written));
        }
        for claim in ["i1:17:1763", "", "5-1", "5-1 other", "x going", "5-1 going", "5-1 going x"] {
            assert_eq!(Written::parse(claim.as_bytes()), None, "{claim}");
        }
    }

    #[test]
    fn a_request_is_pending_until_its_generation_has_ended() {
        let server = RedisServer::start(&[]);
        let mut link = server.link();
        let add = |id: &str, field: &str| {
            server.link().call(&Cmd::xadd("k", id, &[(field, "x")])).unwrap();
        };
        add("1-0", "begin");
        let mut pending = |at: u64, is_going: bool, newest: u64| {
            let mark = Mark { newest: EntryId::new(at, 0), is_going };
            mark.is_gone_on(EntryId::new(newest, 0), (&mut link, "k"), &by_field).unwrap()
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

    #[test]
    fn no_request_is_pending_if_another_beginning_may_have_been_trimmed() {
        let server = RedisServer::start(&[]);
        let mut link = server.link();
        let run = |words: &[&str]| {
            server.link().call(cmd(words[0]).arg(&words[1..])).unwrap();
        };
        let written = Written {
            request: EntryId::new(1, 0),
            mark: Mark { newest: EntryId::new(5, 0), is_going: true },
        };
        let mut is_pending =
            || written.is_pending(EntryId::new(9, 0), &mut link, ["k", "c"], &by_field).unwrap();
        run(&["XADD", "k", "5-0", "begin", "x"]);
        run(&["XADD", "k", "9-0", "token", "x"]);
        assert!(!is_pending(), "the request is not there");
        run(&["XADD", "c", "1-0", "type", "cancel"]);
        assert!(is_pending());
        run(&["XADD", "k", "MAXLEN", "1", "9-1", "token", "x"]);
        assert!(!is_pending(), "trimmed beyond the mark");
        run(&["DEL", "k"]);
        run(&["XADD", "k", "9-0", "token", "x"]);
        assert!(!is_pending(), "begun anew");
        run(&["DEL", "c"]);
        assert!(!is_pending(), "the control stream is gone");
    }
}
