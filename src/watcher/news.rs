//! News of streams: keys that Redis reports as changed, and streams that their producers announce.
//!
//! One connection both receives the pushes of `CLIENT TRACKING … BCAST` and blocks in an XREAD of the announce
//! stream; pushes arrive without ending the block. Both are on only while viewers wait for a stream, because Redis
//! pushes the name of every stream that is written.
//!
//! INVARIANT: news is only a hint. The polls of [`super::waits`] find everything that news misses. [`News::Begun`]
//! asks for such a poll, because earlier changes were not pushed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ::redis::{Cmd, cmd};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::model::{EntryId, StreamName};
use crate::redis::{Changed, Connector, Keys, RangeReply, RedisError, Reply, ServerError, Wanted};
use crate::warn_limited;

/// How long one read of the announce stream blocks, which bounds how late the watcher turns tracking off.
const BLOCK: Duration = Duration::from_secs(1);
/// How many announcements one read takes. Redis counts them, not their bytes, and others can write them.
const ANNOUNCEMENTS_MAX: u32 = 64;
/// The most bytes of announcements that are kept; and the room for one id.
const ANNOUNCEMENTS_BYTES_MAX: usize = 256 << 10;
const ID_ROOM_BYTES: usize = 128;
/// How long the announce stream is left alone after Redis refused to read it.
const REFUSED_REST: Duration = Duration::from_secs(10);
/// How long tracking stays on after the last wait for a name.
const LINGER: Duration = Duration::from_secs(1);

/// One piece of news.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Changes are pushed from now on.
    Begun,
    /// A stream's key was written, or a producer announced it.
    Written(StreamName),
    /// So much has changed that Redis does not name the keys.
    Everything,
}

/// The command that the next reply answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    TrackingOn,
    TrackingOff,
    Newest,
    Announcements,
}

/// A reply, by its kind.
enum Received {
    Entries(Result<RangeReply, ServerError>),
    Other(Reply),
}

/// The connection for news.
pub(super) struct NewsLink {
    connector: Connector,
    token: Token,
    /// The connection that is registered in the poll.
    registered: u64,
    asked: VecDeque<Asked>,
    /// The next reply with entries, as far as it has arrived.
    wanted: Wanted,
    is_on: bool,
    /// Whether Redis pushes the names of changed keys.
    is_tracking: bool,
    /// The newest announcement that was read.
    announced: EntryId,
    answer_by: Instant,
    wanted_until: Instant,
    pushes_lost: u64,
    /// Until when the announce stream is left alone.
    rests_until: Option<Instant>,
}

impl NewsLink {
    pub(super) fn new(connector: Connector, token: Token, now: Instant) -> Self {
        Self {
            connector,
            token,
            registered: 0,
            asked: VecDeque::new(),
            wanted: Wanted::of_range(ID_ROOM_BYTES),
            is_on: false,
            is_tracking: false,
            announced: EntryId::ZERO,
            answer_by: now,
            wanted_until: now,
            pushes_lost: 0,
            rests_until: None,
        }
    }

    /// Whether there is a connection.
    pub(super) fn is_open(&self) -> bool {
        self.connector.is_open()
    }

    /// Whether Redis pushes new keys, so that polling is only the fallback.
    pub(super) fn is_tracking(&self) -> bool {
        self.is_tracking
    }

    /// Does what is due; `wanted`: a viewer waits for a name.
    pub(super) fn tend(&mut self, registry: &Registry, keys: &Keys, wanted: bool, now: Instant) -> Vec<News> {
        if wanted {
            self.wanted_until = now + LINGER;
        }
        let mut news = Vec::new();
        if let Err(error) = self.try_tend(registry, keys, now, &mut news) {
            self.connector.lost(&error, now);
        }
        if self.connector.open().is_none() {
            (self.is_on, self.is_tracking) = (false, false);
            self.asked.clear();
        }
        news
    }

    fn try_tend(
        &mut self,
        registry: &Registry,
        keys: &Keys,
        now: Instant,
        news: &mut Vec<News>,
    ) -> Result<(), RedisError> {
        let generation = self.connector.generation();
        let Some(link) = self.connector.link(now) else { return Ok(()) };
        if link.pushes_lost() > self.pushes_lost {
            self.pushes_lost = link.pushes_lost();
            news.push(News::Everything);
        }
        self.receive(keys, news)?;
        self.ask(keys, now)?;
        if self.connector.generation() != generation {
            self.pushes_lost = 0;
        }
        self.register(registry)
    }

    /// Receives replies and pushes.
    fn receive(&mut self, keys: &Keys, news: &mut Vec<News>) -> Result<(), RedisError> {
        loop {
            let Some(link) = self.connector.open() else { return Ok(()) };
            let received = match self.asked.front() {
                Some(Asked::Newest | Asked::Announcements) => {
                    match link.try_receive_entries(&mut self.wanted) {
                        Ok(found) => found.map(|found| Received::Entries(Ok(found))),
                        Err(RedisError::Server(error)) => Some(Received::Entries(Err(error))),
                        Err(error) => return Err(error),
                    }
                }
                Some(Asked::TrackingOn | Asked::TrackingOff) | None => {
                    link.try_receive()?.map(Received::Other)
                }
            };
            while let Some(push) = link.take_push() {
                changes(&push, keys, news)?;
            }
            let Some(received) = received else { return Ok(()) };
            self.connector.works();
            match received {
                Received::Other(reply) => self.take(&reply),
                Received::Entries(found) => self.take_entries(found, keys, news)?,
            }
        }
    }

    fn take(&mut self, reply: &Reply) {
        match self.asked.pop_front() {
            Some(Asked::TrackingOn) => {
                self.is_tracking = match reply.error() {
                    None => true,
                    Some(error) => {
                        warn_limited!(%error, "CLIENT TRACKING does not work: new streams are noticed by polling");
                        false
                    }
                };
            }
            Some(Asked::TrackingOff | Asked::Newest | Asked::Announcements) | None => {}
        }
    }

    fn take_entries(
        &mut self,
        found: Result<RangeReply, ServerError>,
        keys: &Keys,
        news: &mut Vec<News>,
    ) -> Result<(), RedisError> {
        let is_newest = self.asked.pop_front() == Some(Asked::Newest);
        let entries = found.map(RangeReply::into_entries);
        match entries {
            Err(error) => self.refused(keys, error)?,
            Ok(entries) if is_newest => {
                self.announced = entries.first().map_or(EntryId::ZERO, |entry| entry.id);
            }
            Ok(entries) => {
                for entry in entries {
                    self.announced = entry.id;
                    let key = entry.fields.get("stream").unwrap_or_default();
                    news.extend(keys.stream_name(key).map(News::Written));
                }
            }
        }
        if is_newest {
            news.push(News::Begun);
        }
        Ok(())
    }

    /// Handles Redis' refusal to read the announce stream. Pushes and polling still find names.
    fn refused(&mut self, keys: &Keys, error: ServerError) -> Result<(), RedisError> {
        if error.kind().is_outage() {
            return Err(RedisError::Server(error));
        }
        let key = keys.announce();
        warn_limited!(key: key; key, %error, "announcements of new streams cannot be read: new streams are noticed without them");
        self.rests_until = Some(Instant::now() + REFUSED_REST);
        Ok(())
    }

    /// Sends the next command, one at a time.
    fn ask(&mut self, keys: &Keys, now: Instant) -> Result<(), RedisError> {
        if !self.asked.is_empty() {
            return if now >= self.answer_by { Err(RedisError::Timeout) } else { Ok(()) };
        }
        let wanted = self.wanted_until > now;
        let response_timeout = self.connector.response_timeout();
        let Some(link) = self.connector.open() else { return Ok(()) };
        match (self.is_on, wanted) {
            (false, false) => return Ok(()),
            (false, true) => {
                self.is_on = true;
                if link.is_resp3() {
                    link.push(tracking("ON").arg(&["BCAST", "PREFIX"]).arg(keys.stream_prefix()));
                    self.asked.push_back(Asked::TrackingOn);
                }
                link.push(&Cmd::xrevrange_count(keys.announce(), "+", "-", 1));
                self.wanted = Wanted::of_range(ID_ROOM_BYTES);
                self.asked.push_back(Asked::Newest);
                self.answer_by = now + response_timeout;
            }
            (true, true) if self.rests_until.is_some_and(|until| until > now) => return Ok(()),
            (true, true) => {
                self.rests_until = None;
                link.push(&read_announcements(keys, self.announced));
                self.wanted = Wanted::of_stream(ANNOUNCEMENTS_BYTES_MAX);
                self.asked.push_back(Asked::Announcements);
                self.answer_by = now + BLOCK + response_timeout;
            }
            (true, false) => {
                self.is_on = false;
                if std::mem::take(&mut self.is_tracking) {
                    link.push(&tracking("OFF"));
                    self.asked.push_back(Asked::TrackingOff);
                    self.answer_by = now + response_timeout;
                }
            }
        }
        link.flush()
    }

    /// Registers a new connection in the poll; the former one left it when it was closed.
    fn register(&mut self, registry: &Registry) -> Result<(), RedisError> {
        let generation = self.connector.generation();
        if generation != self.registered
            && let Some(link) = self.connector.open()
        {
            let fd = link.raw_fd();
            registry.register(&mut SourceFd(&fd), self.token, Interest::READABLE).map_err(RedisError::Io)?;
            self.registered = generation;
        }
        Ok(())
    }
}

fn tracking(switch: &str) -> Cmd {
    cmd("CLIENT").arg(&["TRACKING", switch]).take()
}

fn read_announcements(keys: &Keys, after: EntryId) -> Cmd {
    let block_ms = u64::try_from(BLOCK.as_millis()).unwrap_or(u64::MAX);
    let mut command = cmd("XREAD");
    command.arg("COUNT").arg(ANNOUNCEMENTS_MAX).arg("BLOCK").arg(block_ms);
    command.arg("STREAMS").arg(keys.announce()).arg(after).take()
}

/// Adds the streams that a push names: `invalidate` with a list of keys, or with null after FLUSHALL.
fn changes(push: &Reply, keys: &Keys, news: &mut Vec<News>) -> Result<(), RedisError> {
    match push.changed()? {
        Some(Changed::Keys(changed)) => {
            news.extend(changed.iter().filter_map(|key| keys.stream_name(key)).map(News::Written));
        }
        Some(Changed::Everything) => news.push(News::Everything),
        None => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn news_of(push: &str) -> Vec<News> {
        let push = Reply::parse(Bytes::copy_from_slice(push.as_bytes())).unwrap();
        let mut news = Vec::new();
        changes(&push, &Keys::new("llm", "s", "i"), &mut news).unwrap();
        news
    }

    #[test]
    fn pushes_name_streams() {
        let written = News::Written("a/m:1".parse().unwrap());
        assert_eq!(
            news_of(">2\r\n$10\r\ninvalidate\r\n*2\r\n$16\r\nllm:stream:a:m:1\r\n$12\r\nllm:stream:b\r\n"),
            [written]
        );
        assert_eq!(news_of(">2\r\n$10\r\ninvalidate\r\n_\r\n"), [News::Everything]);
        assert_eq!(news_of(">2\r\n$7\r\nmessage\r\n_\r\n"), []);
    }
}
