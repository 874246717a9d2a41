//! Requests to cancel: watches the control stream of one stream without blocking.
//!
//! A [`CancelWatch`] has its own connection, on which an `XREAD BLOCK` is always in progress; checking for a reply
//! costs one system call, and the descriptor can be polled together with others. Requests count from the time at
//! which the watch began ([`CancelWatch::begin`]), so that a request for an earlier generation cancels nothing. If
//! the stream does not exist yet, there was no earlier generation: requests that exist already belong to the one that
//! begins now.
//!
//! While Redis is down, requests are not received, but none is lost: the watch continues after the last id that it
//! has read. Only opening a connection blocks: at most for `redis.connect_timeout` (not counting the lookup of the
//! host's name), and for the replies to its first commands.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use ::redis::{Cmd, cmd};

use crate::config;
use crate::model::{Entry, EntryId, StreamName};
use crate::redis::{
    Backoff, ENTRY_ROOM_BYTES, Keys, Link, RangeReply, RedisError, Target, TargetError, Wanted,
};
use crate::warn_limited;

use super::{PAUSE_MAX, PAUSE_MIN, now_us};

/// How long Redis holds one XREAD.
const BLOCK: Duration = Duration::from_secs(5);
/// Room for an entry's id.
const ID_ROOM_BYTES: usize = 128;
/// How many existing entries are read at most before a generation begins; further ones are read afterwards.
const EXISTING_MAX: usize = 1024;

/// A request to cancel the generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CancelRequest {
    /// The reason that the requester gave.
    pub reason: String,
    /// The requester: a subject or an address.
    pub by: String,
}

/// A source of requests to cancel.
pub trait Cancels {
    /// The request that has arrived since the last check, if any. Does not wait.
    fn requested(&mut self, now: Instant) -> Option<CancelRequest>;

    /// The descriptor that becomes readable when a request may have arrived.
    fn raw_fd(&self) -> Option<RawFd>;
}

/// A source that never has a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCancels;

impl Cancels for NoCancels {
    fn requested(&mut self, _: Instant) -> Option<CancelRequest> {
        None
    }

    fn raw_fd(&self) -> Option<RawFd> {
        None
    }
}

/// An XREAD in progress.
struct Watching {
    link: Link,
    sent_at: Instant,
    /// The part of the reply that is kept. Of an entry that is too large to be a request, only the id is kept.
    wanted: Wanted,
}

/// Watches the control stream of one stream.
pub struct CancelWatch {
    target: Target,
    key: String,
    /// The key of the stream itself.
    stream_key: String,
    response_timeout: Duration,
    /// The id of the newest known request; `None`: the next connection determines it.
    last: Option<EntryId>,
    /// A request that existed when the connection was opened.
    found: Option<CancelRequest>,
    watching: Option<Watching>,
    backoff: Backoff,
    retry_at: Option<Instant>,
}

impl CancelWatch {
    /// A watch that counts requests from its first connection on.
    ///
    /// # Errors
    /// If the configuration does not describe a usable Redis.
    pub fn new(config: &config::Redis, name: &StreamName) -> Result<Self, TargetError> {
        Ok(Self {
            target: Target::new(config)?,
            key: Keys::new(&config.prefix, "", "").control(name),
            stream_key: config.stream_key.key(name),
            response_timeout: config.response_timeout,
            last: None,
            found: None,
            watching: None,
            backoff: Backoff::new(PAUSE_MIN, PAUSE_MAX, now_us()),
            retry_at: None,
        })
    }

    /// Also counts earlier requests with an id after `id` (of an entry in any stream: ids contain Redis' time).
    #[must_use]
    pub const fn since(mut self, id: EntryId) -> Self {
        self.last = Some(id);
        self
    }

    /// Connects if possible, so that every request from now on counts.
    pub fn begin(&mut self) {
        self.keep_reading(Instant::now());
    }

    fn keep_reading(&mut self, now: Instant) {
        if self.watching.is_some() || self.retry_at.is_some_and(|at| at > now) {
            return;
        }
        match self.connect() {
            Ok(watching) => {
                self.watching = Some(watching);
                self.retry_at = None;
            }
            Err(error) => self.lost(&error),
        }
    }

    fn connect(&mut self) -> Result<Watching, RedisError> {
        let mut link = Link::connect(&self.target, "llm-bridge-cancel")?;
        if self.last.is_none() {
            let is_written = link.query::<bool>(&Cmd::exists(&self.stream_key))?;
            let newest = Cmd::xrevrange_count(&self.key, "+", "-", 1);
            let newest = link.call_range(&newest, ID_ROOM_BYTES)?.into_entries();
            let newest = newest.first().map(|entry| entry.id).filter(|_| is_written);
            self.last = Some(newest.unwrap_or(EntryId::ZERO));
        }
        // Read existing requests before the generation begins.
        for _ in 0..EXISTING_MAX {
            if self.found.is_some() {
                break;
            }
            let there = link.call_stream(&self.read_command(None), ENTRY_ROOM_BYTES)?;
            if there.found == 0 {
                break;
            }
            self.found = self.note(there);
        }
        let wanted = Wanted::of_stream(ENTRY_ROOM_BYTES);
        let mut watching = Watching { link, sent_at: Instant::now(), wanted };
        self.send_read(&mut watching)?;
        Ok(watching)
    }

    /// The command that reads the entry after the newest known one, with or without blocking.
    fn read_command(&self, block: Option<Duration>) -> Cmd {
        // Entries may be large, and their size is known only on arrival: so only one is requested.
        let mut command = cmd("XREAD");
        command.arg(&["COUNT", "1"]);
        if let Some(block) = block {
            command.arg("BLOCK").arg(u64::try_from(block.as_millis()).unwrap_or(u64::MAX));
        }
        command.arg("STREAMS").arg(&self.key).arg(self.last.unwrap_or(EntryId::new(0, 0))).take()
    }

    /// Processes a reply: keeps the newest id, and returns the first request in it.
    fn note(&mut self, reply: RangeReply) -> Option<CancelRequest> {
        let entries = reply.into_entries();
        self.last = entries.last().map(|entry| entry.id).or(self.last);
        entries.iter().find_map(request)
    }

    fn send_read(&self, watching: &mut Watching) -> Result<(), RedisError> {
        watching.link.push(&self.read_command(Some(BLOCK)));
        watching.sent_at = Instant::now();
        watching.link.flush()
    }

    /// Receives the reply in progress, if it has arrived, and sends the next XREAD.
    fn take(&mut self, watching: &mut Watching, now: Instant) -> Result<Option<CancelRequest>, RedisError> {
        let Some(reply) = watching.link.try_receive_entries(&mut watching.wanted)? else {
            let is_silent = now.saturating_duration_since(watching.sent_at) > BLOCK + self.response_timeout;
            return if is_silent { Err(RedisError::Timeout) } else { Ok(None) };
        };
        let request = self.note(reply);
        self.send_read(watching)?;
        self.backoff.reset();
        Ok(request)
    }

    fn lost(&mut self, error: &RedisError) {
        let pause = self.backoff.next();
        self.retry_at = Some(Instant::now() + pause);
        warn_limited!(%error, key = self.key, ?pause, "requests to cancel cannot be read; trying again");
    }
}

impl Cancels for CancelWatch {
    fn requested(&mut self, now: Instant) -> Option<CancelRequest> {
        self.keep_reading(now);
        if self.found.is_some() {
            return self.found.take();
        }
        let mut watching = self.watching.take()?;
        match self.take(&mut watching, now) {
            Ok(request) => {
                self.watching = Some(watching);
                request
            }
            Err(error) => {
                self.lost(&error);
                None
            }
        }
    }

    fn raw_fd(&self) -> Option<RawFd> {
        self.watching.as_ref().map(|watching| watching.link.raw_fd())
    }
}

/// The request in an entry of the control stream. Entries of other types are meant for other readers.
fn request(entry: &Entry) -> Option<CancelRequest> {
    let text = |name| {
        entry.fields.get(name).map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
    };
    (text("type") == "cancel").then(|| CancelRequest { reason: text("reason"), by: text("by") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::testing::{RedisServer, config_for};

    fn cancel(server: &RedisServer, kind: &str) -> EntryId {
        let add = Cmd::xadd("llm:control:s:m", "*", &[("type", kind), ("reason", "r"), ("by", "b")]);
        server.link().call(&add).unwrap().id().unwrap()
    }

    fn wait(watch: &mut CancelWatch) -> CancelRequest {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(request) = watch.requested(Instant::now()) {
                return request;
            }
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn requests_count_from_the_beginning_on() {
        let server = RedisServer::start(&[]);
        let earlier = cancel(&server, "cancel");
        let config = config_for(&server.url());
        server.link().call(&Cmd::xadd("llm:stream:s:m", "*", &[("data", "{}")])).unwrap();
        let name = "s/m".parse().unwrap();
        let mut watch = CancelWatch::new(&config, &name).unwrap();
        watch.begin();
        assert!(watch.raw_fd().is_some());
        assert_eq!(watch.requested(Instant::now()), None);
        cancel(&server, "something else");
        cancel(&server, "cancel");
        assert_eq!(wait(&mut watch), CancelRequest { reason: "r".into(), by: "b".into() });
        assert_eq!(watch.requested(Instant::now()), None, "it is told once");
        // A watch that begins at an entry finds the requests after it.
        let mut late = CancelWatch::new(&config, &name).unwrap().since(earlier);
        assert!(late.requested(Instant::now()).is_some(), "at the first look");
    }

    #[test]
    fn a_name_that_nobody_has_written_is_stopped_before_its_first_token() {
        let server = RedisServer::start(&[]);
        cancel(&server, "cancel");
        let mut watch = CancelWatch::new(&config_for(&server.url()), &"s/m".parse().unwrap()).unwrap();
        watch.begin();
        assert_eq!(wait(&mut watch), CancelRequest { reason: "r".into(), by: "b".into() });
    }

    #[test]
    fn large_entries_of_others_are_passed_over() {
        let server = RedisServer::start(&[]);
        let name = "s/m".parse().unwrap();
        let huge = || {
            let add = Cmd::xadd("llm:control:s:m", "*", &[("type", vec![b'x'; 20 << 20])]);
            server.link().call(&add).unwrap();
        };
        huge();
        let mut watch = CancelWatch::new(&config_for(&server.url()), &name).unwrap();
        watch.begin();
        huge();
        cancel(&server, "cancel");
        assert_eq!(wait(&mut watch), CancelRequest { reason: "r".into(), by: "b".into() });
        // The same if the entries exist already; the newest one determines from where on requests count.
        let mut late = CancelWatch::new(&config_for(&server.url()), &name).unwrap();
        late.begin();
        assert!(late.requested(Instant::now()).is_some(), "at the first look");
        server.link().call(&Cmd::xadd("llm:stream:s:m", "*", &[("data", "{}")])).unwrap();
        huge();
        let mut last = CancelWatch::new(&config_for(&server.url()), &name).unwrap();
        last.begin();
        assert_eq!(last.requested(Instant::now()), None);
        cancel(&server, "cancel");
        wait(&mut last);
    }

    #[test]
    fn a_lost_connection_loses_no_request() {
        let server = RedisServer::start(&[]);
        let mut watch = CancelWatch::new(&config_for(&server.url()), &"s/m".parse().unwrap()).unwrap();
        watch.begin();
        server.link().call(cmd("CLIENT").arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])).unwrap();
        cancel(&server, "cancel");
        wait(&mut watch);
    }
}
