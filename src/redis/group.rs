//! A consumer group that distributes the entries of one stream among workers.
//!
//! A consumer *claims* an entry by reading it, until it acknowledges the entry. Any consumer can take over a claim
//! whose idle time exceeds a limit (`XAUTOCLAIM`); renewing a claim resets its idle time. Entries are read one by
//! one, because their size is known only when they arrive, and Redis counts entries, not bytes. Of an entry that is
//! too large, only the id is returned ([`Fields::is_too_large`](crate::model::Fields::is_too_large)).

use std::time::Duration;

use ::redis::streams::{
    StreamAutoClaimOptions, StreamAutoClaimReply, StreamClaimOptions, StreamInfoConsumer,
    StreamInfoConsumersReply, StreamPendingCountReply,
};
use ::redis::{Cmd, cmd};

use super::error::{RedisError, ServerErrorKind};
use super::link::Link;
use super::sieve::ENTRY_ROOM_BYTES;
use crate::model::{Entry, EntryId};

/// How many parts of the claims one search checks; Redis scans ten claims per part.
const SCANS_MAX: usize = 100;
/// The most claims of one consumer that are listed: more than it can have.
const CLAIMS_MAX: u32 = 10_000;

/// A consumer group of one stream, as one of its consumers sees it.
#[derive(Debug)]
pub struct ConsumerGroup {
    stream: String,
    group: String,
    consumer: String,
    /// The id at which the search for idle claims continues.
    scanned_to: EntryId,
}

impl ConsumerGroup {
    /// The group `group` of the stream at the key `stream`, as `consumer` sees it. Sends no command.
    #[must_use]
    pub const fn new(stream: String, group: String, consumer: String) -> Self {
        Self { stream, group, consumer, scanned_to: EntryId::new(0, 0) }
    }

    /// The stream's key.
    #[must_use]
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// The consumer's name.
    #[must_use]
    pub fn consumer(&self) -> &str {
        &self.consumer
    }

    /// Creates the group at the stream's beginning, and the stream if it does not exist. An existing group is not
    /// changed.
    ///
    /// # Errors
    /// If Redis does not reply or refuses.
    pub fn ensure(&self, link: &mut Link) -> Result<(), RedisError> {
        match link.query::<()>(&Cmd::xgroup_create_mkstream(&self.stream, &self.group, "0")) {
            Err(error) if error.server_kind() != Some(ServerErrorKind::BusyGroup) => Err(error),
            _ => Ok(()),
        }
    }

    /// Claims the next entry that no consumer has read; waits up to `block` for one.
    ///
    /// # Errors
    /// If Redis does not reply or refuses.
    pub fn read(&self, link: &mut Link, block: Duration) -> Result<Option<Entry>, RedisError> {
        let mut command = cmd("XREADGROUP");
        command.arg(&["GROUP", &self.group, &self.consumer, "COUNT", "1"]);
        command.arg("BLOCK").arg(millis(block).max(1)).arg(&["STREAMS", &self.stream, ">"]);
        Ok(link.call_stream(&command, ENTRY_ROOM_BYTES)?.into_entries().pop())
    }

    /// Takes over a claim that has been idle for longer than `idle`. A search checks a part of the claims and the
    /// next one continues there, so that many recent claims do not hide an old one. A claim whose entry was deleted
    /// is acknowledged.
    ///
    /// # Errors
    /// If Redis does not reply or refuses.
    pub fn take_over(&mut self, link: &mut Link, idle: Duration) -> Result<Option<Entry>, RedisError> {
        for _ in 0..SCANS_MAX {
            let options = StreamAutoClaimOptions::default().count(1).with_justid();
            let (stream, group, consumer) = (&self.stream, &self.group, &self.consumer);
            let from = self.scanned_to;
            let claim = Cmd::xautoclaim_options(stream, group, consumer, millis(idle), from, options);
            let found: StreamAutoClaimReply = link.query(&claim)?;
            let next = entry_id(&found.next_stream_id)?;
            let claimed = found.claimed.first().map(|claimed| entry_id(&claimed.id)).transpose()?;
            self.scanned_to = next;
            if let Some(id) = claimed {
                match self.entry(link, id)? {
                    Some(entry) => return Ok(Some(entry)),
                    None => self.acknowledge(link, id)?,
                }
            }
            if next == EntryId::new(0, 0) {
                break;
            }
        }
        Ok(None)
    }

    /// The entries that this consumer claims.
    ///
    /// # Errors
    /// If Redis does not reply or refuses.
    pub fn claims(&self, link: &mut Link) -> Result<Vec<EntryId>, RedisError> {
        let (stream, group, consumer) = (&self.stream, &self.group, &self.consumer);
        let pending = Cmd::xpending_consumer_count(stream, group, "-", "+", CLAIMS_MAX, consumer);
        let pending: StreamPendingCountReply = link.query(&pending)?;
        pending.ids.iter().map(|pending| entry_id(&pending.id)).collect()
    }

    /// Renews claims, which resets their idle time.
    ///
    /// # Errors
    /// If Redis does not reply or refuses.
    pub fn renew(&self, link: &mut Link, ids: impl Iterator<Item = EntryId>) -> Result<(), RedisError> {
        link.query_all::<()>(ids.map(|id| self.claim(id, Duration::ZERO))).map(drop)
    }

    /// Allows any consumer whose limit of idle time is at most `idle` to take over a claim of ours.
    ///
    /// # Errors
    /// If Redis does not reply or refuses.
    pub fn hand_back(&self, link: &mut Link, id: EntryId, idle: Duration) -> Result<(), RedisError> {
        link.query::<()>(&self.claim(id, idle))
    }

    /// The command that claims one of our own entries again, with this idle time.
    fn claim(&self, id: EntryId, idle: Duration) -> Cmd {
        let idle = usize::try_from(idle.as_millis()).unwrap_or(usize::MAX);
        let options = StreamClaimOptions::default().idle(idle).with_justid();
        Cmd::xclaim_options(&self.stream, &self.group, &self.consumer, 0, &[id], options)
    }

    /// Acknowledges an entry for all consumers.
    ///
    /// # Errors
    /// If Redis does not reply or refuses.
    pub fn acknowledge(&self, link: &mut Link, id: EntryId) -> Result<(), RedisError> {
        link.query::<()>(&Cmd::xack(&self.stream, &self.group, &[id]))
    }

    /// An entry of the stream, if it still exists.
    ///
    /// # Errors
    /// If Redis does not reply or refuses.
    pub fn entry(&self, link: &mut Link, id: EntryId) -> Result<Option<Entry>, RedisError> {
        let range = Cmd::xrange(&self.stream, id, id);
        Ok(link.call_range(&range, ENTRY_ROOM_BYTES)?.into_entries().pop())
    }

    /// Removes the consumers that have no claims and are `gone`, judged by name and idle time. A consumer with claims
    /// is kept, because its claims would be removed with it.
    ///
    /// # Errors
    /// If Redis does not reply or refuses.
    pub fn remove_consumers(
        &self,
        link: &mut Link,
        gone: impl Fn(&str, Duration) -> bool,
    ) -> Result<(), RedisError> {
        let found: StreamInfoConsumersReply = link.query(&Cmd::xinfo_consumers(&self.stream, &self.group))?;
        for StreamInfoConsumer { name, pending, idle } in found.consumers {
            let idle = Duration::from_millis(u64::try_from(idle).unwrap_or(0));
            if pending == 0 && gone(&name, idle) {
                link.query::<()>(&Cmd::xgroup_delconsumer(&self.stream, &self.group, name))?;
            }
        }
        Ok(())
    }
}

/// An id in a reply.
fn entry_id(text: &str) -> Result<EntryId, RedisError> {
    EntryId::from_ascii(text.as_bytes()).ok_or_else(|| RedisError::protocol("no entry id"))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::testing::RedisServer;

    const IDLE_MAX: Duration = Duration::from_secs(600);
    const SHORTLY: Duration = Duration::from_millis(1);

    /// A consumer of the group `g` of the stream `work`.
    fn consumer(server: &RedisServer, name: &str) -> (ConsumerGroup, Link) {
        let group = ConsumerGroup::new("work".to_owned(), "g".to_owned(), name.to_owned());
        let mut link = server.link();
        group.ensure(&mut link).unwrap();
        (group, link)
    }

    fn add(link: &mut Link, value: impl AsRef<[u8]>) {
        link.query::<()>(&Cmd::xadd("work", "*", &[("field", value.as_ref())])).unwrap();
    }

    #[test]
    fn young_claims_hide_no_old_one() {
        let server = RedisServer::start(&[]);
        let ((one, mut link), (mut other, mut others)) =
            (consumer(&server, "one"), consumer(&server, "other"));
        (0..50).for_each(|_| add(&mut link, "v"));
        let entries: Vec<Entry> = (0..50).filter_map(|_| one.read(&mut link, SHORTLY).unwrap()).collect();
        assert_eq!(entries.len(), 50);
        assert_eq!(one.read(&mut link, SHORTLY).unwrap(), None);
        assert_eq!(other.take_over(&mut others, IDLE_MAX).unwrap(), None);
        one.hand_back(&mut link, entries[44].id, IDLE_MAX * 2).unwrap();
        assert_eq!(other.take_over(&mut others, IDLE_MAX).unwrap().as_ref(), Some(&entries[44]));
        assert_eq!(other.claims(&mut others).unwrap(), [entries[44].id]);
        assert_eq!(one.claims(&mut link).unwrap().len(), 49);
        // Renewing takes no claim away from another consumer.
        one.hand_back(&mut link, entries[3].id, IDLE_MAX * 2).unwrap();
        one.renew(&mut link, [entries[3].id].into_iter()).unwrap();
        assert_eq!(other.take_over(&mut others, IDLE_MAX).unwrap(), None);
        other.acknowledge(&mut others, entries[44].id).unwrap();
        assert_eq!(other.claims(&mut others).unwrap(), []);
    }

    #[test]
    fn consumers_with_claims_are_not_removed() {
        let server = RedisServer::start(&[]);
        let ((one, mut link), (other, mut others)) = (consumer(&server, "one"), consumer(&server, "other"));
        add(&mut link, "v");
        let entry = one.read(&mut link, SHORTLY).unwrap().unwrap();
        assert_eq!(other.read(&mut others, SHORTLY).unwrap(), None);
        let names = |link: &mut Link| -> Vec<String> {
            let found: StreamInfoConsumersReply = link.query(&Cmd::xinfo_consumers("work", "g")).unwrap();
            found.consumers.into_iter().map(|consumer| consumer.name).collect()
        };
        one.remove_consumers(&mut link, |_, _| true).unwrap();
        assert_eq!(names(&mut link), ["one"]);
        one.acknowledge(&mut link, entry.id).unwrap();
        one.remove_consumers(&mut link, |name, _| name != "one").unwrap();
        assert_eq!(names(&mut link), ["one"]);
        one.remove_consumers(&mut link, |name, idle| name == "one" && idle < IDLE_MAX).unwrap();
        assert!(names(&mut link).is_empty());
    }

    #[test]
    fn an_entry_that_is_too_large_has_an_id_and_hides_no_other() {
        let server = RedisServer::start(&[]);
        let ((one, mut link), (mut other, mut others)) =
            (consumer(&server, "one"), consumer(&server, "other"));
        add(&mut link, vec![b'x'; 20 << 20]);
        add(&mut link, "v");
        let read: Vec<Entry> = (0..3).filter_map(|_| one.read(&mut link, SHORTLY).unwrap()).collect();
        let are_too_large: Vec<bool> = read.iter().map(|entry| entry.fields.is_too_large()).collect();
        assert_eq!(are_too_large, [true, false]);
        assert!(read[0].fields.len_bytes() < 1000);
        for entry in &read {
            one.hand_back(&mut link, entry.id, IDLE_MAX * 2).unwrap();
        }
        // A claim whose entry was deleted is acknowledged.
        add(&mut link, "v");
        let gone = one.read(&mut link, SHORTLY).unwrap().unwrap();
        one.hand_back(&mut link, gone.id, IDLE_MAX * 2).unwrap();
        link.query::<()>(&Cmd::xdel("work", &[gone.id])).unwrap();
        let taken: Vec<Entry> =
            (0..2).filter_map(|_| other.take_over(&mut others, IDLE_MAX).unwrap()).collect();
        assert_eq!(taken, read);
        assert_eq!(other.take_over(&mut others, IDLE_MAX).unwrap(), None);
        assert_eq!(other.claims(&mut others).unwrap().len(), 2);
    }
}
