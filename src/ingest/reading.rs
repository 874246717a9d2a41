//! How a reader reads.
//!
//! What was trimmed before it could be read must be named to viewers and never be passed over. So a batch that
//! may follow such a hole is held against the stream's oldest entry (`XINFO STREAM`) before it is passed on, and
//! the stream is broken where entries between its cursor and that one are gone: history tells what was lost.
//! That is a round trip in the way of live text, so it is taken only where a hole is possible:
//!
//! - A read of streams with news asks for their lengths right before, in the same trip. Trimming takes the oldest
//!   first, so where it has taken unread entries everything left is unread and comes with the read: a stream
//!   that was longer than its batch has lost nothing. That leaves new streams, streams trimmed down to what
//!   is unread, and full batches.
//! - A read that blocks was waiting when the first entry came, and brings it before anything can be trimmed, unless
//!   a transaction did both. Checked are batches of several entries and what follows a silence.

use std::time::{Duration, Instant};

use super::groups::destroy;
use super::reader::{COMMANDS_PER_TRIP_MAX, Reader, STOP_CHECK};
use super::subscriptions::Place;
use crate::config;
use crate::event::Entry;
use crate::event::message::LiveNews;
use crate::redis::{Changed, Command, Link, RedisError, Reply, ServerErrorKind, StreamEntries};
use crate::warn_limited;

/// Entries that one trip should read or acknowledge at most: some milliseconds of Redis' time, in which nobody else
/// is served. Where more is waiting, the next trip follows at once.
pub(super) const ENTRIES_PER_TRIP: usize = 4096;
/// Entries of one stream that are asked for at least.
const COUNT_MIN: usize = 16;
/// Streams with news that are read at once, so that nobody else waits long for Redis.
const KEYS_PER_READ_MAX: usize = 256;

/// What became of a read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReadEnd {
    /// Entries that came.
    pub(super) entries: usize,
    /// Whether some stream had more than one read brings, or more streams had news.
    pub(super) is_full: bool,
    /// How long Redis took to answer.
    pub(super) took: Duration,
}

impl Reader {
    /// One read of all streams, which waits for up to `block`.
    pub(super) fn read_all(&mut self, block: Option<Duration>) -> Result<ReadEnd, RedisError> {
        self.ready_wake_stream()?;
        let places = self.subscriptions.places();
        self.begin_reading(places.len());
        let count = self.count_for(places.len());
        self.add_xreadgroup(count, &places, (block, true));
        let asked = Instant::now();
        let replies = self.converse(block)?;
        let took = asked.elapsed();
        let end = self.conclude(replies.last(), &places, count)?;
        Ok(ReadEnd { took, ..end })
    }

    /// One read of the streams with news. Their lengths, asked right before, tell which have lost nothing.
    pub(super) fn read_news(&mut self) -> Result<ReadEnd, RedisError> {
        let places = self.subscriptions.take_news(KEYS_PER_READ_MAX);
        if places.is_empty() {
            return Ok(ReadEnd::default());
        }
        self.begin_reading(places.len());
        let lengths_at = self.pipeline.len();
        for found in places.iter().filter_map(|&place| self.subscriptions.get(place)) {
            self.pipeline.command("XLEN", 1).arg(&found.key);
        }
        let count = self.count_for(places.len());
        self.add_xreadgroup(count, &places, (None, false));
        let asked = Instant::now();
        let replies = self.converse(None)?;
        let took = asked.elapsed();
        for (&place, reply) in places.iter().zip(replies.iter().skip(lengths_at)) {
            if let Some(found) = self.subscriptions.get_mut(place) {
                found.length_before = reply.integer().ok().and_then(|length| u64::try_from(length).ok());
            }
        }
        self.hear()?;
        let end = self.conclude(replies.last(), &places, count)?;
        let is_full = end.is_full || places.len() == KEYS_PER_READ_MAX;
        Ok(ReadEnd { took, is_full, ..end })
    }

    /// Passes on what a read of the streams `asked` has brought. There is no reply when the daemon stops meanwhile.
    fn conclude(
        &mut self,
        reply: Option<&Reply>,
        asked: &[Place],
        count: usize,
    ) -> Result<ReadEnd, RedisError> {
        let Some(reply) = reply else { return Ok(ReadEnd::default()) };
        let counters = self.parts.registry.counters();
        counters.reads.add(1);
        counters.bytes_read.add(reply.len_bytes() as u64);
        if let Some(error) = reply.error() {
            return match error.kind() {
                ServerErrorKind::NoGroup | ServerErrorKind::Unblocked | ServerErrorKind::WrongType => {
                    self.probe(asked).map(|()| ReadEnd::default())
                }
                _ => Err(RedisError::Server(error)),
            };
        }
        let streams = reply.streams()?;
        self.parts.connector.works();
        if streams.is_empty() {
            counters.reads_empty.add(1);
        }
        self.pass_on(streams, asked, count)
    }

    // ----- being told -----

    /// Whether the reader is told which streams have news on the present connection. That begins and ends here.
    pub(super) fn is_told(&mut self, now: Instant) -> Result<bool, RedisError> {
        let connection = self.parts.connector.generation();
        let is_on = self.told.is_on(connection);
        let streams = if self.parts.draining.requested() { 0 } else { self.subscriptions.len() };
        let is_wanted = self.told.is_wanted(connection, streams, now)
            && self.parts.connector.open().is_some_and(|link| link.is_resp3());
        match (is_on, is_wanted) {
            (false, true) => {
                let prefix = self.parts.keys.stream_prefix();
                let on = Command::new("CLIENT").args(["TRACKING", "ON", "BCAST", "PREFIX"]).arg(prefix);
                if let Some(error) = self.trip(&[on])?.first().and_then(Reply::error) {
                    warn_limited!(%error, "CLIENT TRACKING does not work: every read asks for all streams");
                    self.told.rest(now);
                    return Ok(false);
                }
                self.told.begin(connection);
                self.subscriptions.note_all_news();
            }
            (true, false) => {
                self.trip(&[Command::new("CLIENT").args(["TRACKING", "OFF"])])?;
                self.told.end();
            }
            _ => {}
        }
        Ok(is_wanted)
    }

    /// Takes what the connection has told by itself.
    pub(super) fn listen(&mut self) -> Result<(), RedisError> {
        let Some(link) = self.parts.connector.open() else { return Err(RedisError::Closed) };
        link.try_receive()?;
        self.hear()
    }

    /// Notes what was told and is taken off the socket already.
    pub(super) fn hear(&mut self) -> Result<(), RedisError> {
        while let Some(push) = self.parts.connector.open().and_then(Link::take_push) {
            match push.changed()? {
                Some(Changed::Keys(keys)) => {
                    for key in keys {
                        let is_own = self.subscriptions.note_news(&key);
                        self.told.count(is_own);
                    }
                }
                Some(Changed::Everything) => self.subscriptions.note_all_news(),
                None => {}
            }
        }
        Ok(())
    }

    // ----- reading -----

    /// The wake stream and its group, made when the connection is new or the group was lost.
    pub(super) fn ready_wake_stream(&mut self) -> Result<(), RedisError> {
        if self.wake_ready {
            return Ok(());
        }
        let keys = &self.parts.keys;
        let wake = keys.wake(self.parts.index);
        let create = Command::new("XGROUP").arg("CREATE").arg(&wake).arg(keys.group()).arg("$");
        let replies = self.trip(&[destroy(keys, wake.as_bytes()), create.arg("MKSTREAM")])?;
        match replies.last().and_then(Reply::error) {
            Some(error) => Err(RedisError::Server(error)),
            None => {
                self.wake_ready = true;
                Ok(())
            }
        }
    }

    /// How many entries of each stream one read asks for.
    fn count_for(&self, streams: usize) -> usize {
        let share = (ENTRIES_PER_TRIP / streams.max(1)).max(COUNT_MIN);
        share.min(self.parts.delivery.read_count)
    }

    /// Adds a read of streams to the trip, with the wake stream if `with_wake`.
    fn add_xreadgroup(
        &mut self,
        count: usize,
        asked: &[Place],
        (block, with_wake): (Option<Duration>, bool),
    ) {
        let Self { parts, pipeline, subscriptions, wake_key, .. } = self;
        let wake = with_wake.then_some(&*wake_key);
        let found = asked.iter().filter_map(|&place| subscriptions.get(place)).map(|found| &found.key);
        let keys = asked.len() + usize::from(with_wake);
        let is_unacked = parts.delivery.ack == config::Ack::None;
        let options = 2 * usize::from(block.is_some()) + usize::from(is_unacked);
        let mut command = pipeline.command("XREADGROUP", 6 + options + 2 * keys);
        command.arg("GROUP").arg(parts.keys.group()).arg(&self.consumer).arg("COUNT").number(count);
        if let Some(block) = block {
            command.arg("BLOCK").number(u64::try_from(block.as_millis()).unwrap_or(u64::MAX));
        }
        if is_unacked {
            command.arg("NOACK");
        }
        command.arg("STREAMS");
        for key in wake.into_iter().chain(found) {
            command.arg(key);
        }
        for _ in 0..keys {
            command.arg(">");
        }
    }

    /// Makes the trip and waits for all replies, interrupting the block when a command comes in. None are returned
    /// when the daemon stops meanwhile.
    fn converse(&mut self, block: Option<Duration>) -> Result<Vec<Reply>, RedisError> {
        let Some(link) = self.parts.connector.open() else { return Err(RedisError::Closed) };
        link.push_all(&self.pipeline);
        link.flush()?;
        let may_sleep = !link.has_read_ahead();
        let deadline = Instant::now() + block.unwrap_or_default() + self.parts.connector.response_timeout();
        let mut woken = block.is_none();
        let mut replies = Vec::with_capacity(self.pipeline.len());
        // Looking at once would be in vain: Redis has yet to be woken.
        if may_sleep && block.is_none() {
            self.wait(Instant::now() + STOP_CHECK)?;
        }
        loop {
            let Some(link) = self.parts.connector.open() else { return Err(RedisError::Closed) };
            while let Some(reply) = link.try_receive()? {
                replies.push(reply);
                if link.outstanding() == 0 {
                    return Ok(replies);
                }
            }
            if Instant::now() >= deadline {
                return Err(RedisError::Timeout);
            }
            if !woken && (!self.parts.commands.is_empty() || self.parts.draining.requested()) {
                woken = true;
                self.interrupt();
            }
            if self.parts.stop.requested() {
                // The replies will not be waited for: the connection is of no more use.
                self.parts.connector.close();
                return Ok(Vec::new());
            }
            self.wait(deadline.min(Instant::now() + STOP_CHECK))?;
        }
    }

    /// Writes the wake stream, so that the blocked read comes back. Where that fails the block ends by itself.
    fn interrupt(&mut self) {
        let wake = self.parts.keys.wake(self.parts.index);
        let command = Command::new("XADD").arg(wake).arg("MAXLEN").arg("1").arg("*").arg("wake").arg("1");
        let now = Instant::now();
        match self.parts.wake.ask(now, |link| link.call(&command)) {
            Ok(_) => {
                self.parts.registry.counters().wakeups_sent.inc();
                self.parts.wake.works();
            }
            Err(Some(error)) => self.parts.wake.lost(&error, now),
            Err(None) => {}
        }
    }

    /// Passes on what a read of at most `count` entries for each of the streams `asked` has brought.
    fn pass_on(
        &mut self,
        streams: Vec<StreamEntries>,
        asked: &[Place],
        count: usize,
    ) -> Result<ReadEnd, RedisError> {
        let now = Instant::now();
        let mut fresh = Vec::with_capacity(streams.len());
        // Redis answers in the order in which it was asked; whoever stands between may not.
        let mut asked = asked.iter().copied();
        for StreamEntries { key, entries, .. } in streams {
            if key == *self.wake_key {
                self.wakes_read.extend(entries.iter().map(|entry| entry.id));
                continue;
            }
            let is_its =
                |&place: &Place| self.subscriptions.get(place).is_some_and(|found| *found.key == *key);
            let place = asked.by_ref().find(is_its).or_else(|| self.subscriptions.find(&key));
            fresh.extend(place.map(|place| (place, entries)));
        }
        let lost = self.find_trimmed(&fresh, count, now)?;
        let acks = self.parts.delivery.ack == config::Ack::Written;
        let (mut news, mut broken) = (Vec::with_capacity(fresh.len()), Vec::new());
        let mut end = ReadEnd::default();
        for (place, mut entries) in fresh {
            if lost.contains(&place) {
                broken.extend(self.take(place));
                continue;
            }
            if entries.len() >= count {
                end.is_full = true;
                self.subscriptions.note(place);
            }
            let Some((transform, live)) = self.subscriptions.advance(place, &mut entries, acks, now) else {
                continue;
            };
            end.entries += entries.len();
            news.push((transform, LiveNews::Entries(live, entries)));
        }
        self.parts.registry.counters().entries_read.add(end.entries as u64);
        self.hand_over(news);
        self.report_broken(broken);
        Ok(end)
    }

    /// The streams whose oldest entry shows that unread ones were trimmed.
    fn find_trimmed(
        &mut self,
        fresh: &[(Place, Vec<Entry>)],
        count: usize,
        now: Instant,
    ) -> Result<Vec<Place>, RedisError> {
        let mut suspects = Vec::new();
        for (place, entries) in fresh {
            let is_full = entries.len() >= count;
            let found = self.subscriptions.get_mut(*place);
            if found.is_some_and(|reading| reading.needs_check(entries, is_full, now)) {
                suspects.push(*place);
            }
        }
        let mut lost = Vec::new();
        for places in suspects.chunks(COMMANDS_PER_TRIP_MAX) {
            let found = places.iter().filter_map(|&place| self.subscriptions.get(place));
            let commands: Vec<_> =
                found.map(|found| Command::new("XINFO").arg("STREAM").arg(&found.key)).collect();
            for (&place, reply) in places.iter().zip(self.trip(&commands)?) {
                let Some(subscription) = self.subscriptions.get(place) else { continue };
                let gone = match reply.error() {
                    Some(_) => true,
                    None => {
                        let info = reply.stream_info()?;
                        let before_first =
                            info.entries_added.and_then(|added| added.checked_sub(info.length));
                        subscription.has_lost(info.first, before_first)
                    }
                };
                if gone {
                    lost.push(place);
                }
            }
        }
        Ok(lost)
    }
}
