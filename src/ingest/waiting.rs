//! How a reader learns which streams have news: Redis pushes their names, or wakes the reader from a blocking read.

use std::time::{Duration, Instant};

use ::redis::{Cmd, cmd};

use super::budget::REPLY_BYTES_MAX;
use super::reader::Reader;
use super::reading::ReadEnd;
use crate::redis::{Changed, Link, RedisError, Reply, ServerErrorKind};
use crate::{pulse, warn_limited};

/// Up to this many streams are read together with the blocking read that waits for news; of more streams, those with
/// news are read afterwards.
const READ_ALONG_MAX: usize = 16;
/// How often a reader polls that can neither track nor be woken.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long to wait before trying a wake stream again that did not work.
const UNWAKEABLE: Duration = Duration::from_secs(10);

impl Reader {
    /// Whether Redis pushes news of streams on the current connection. Turns tracking on and off.
    pub(super) fn is_tracking(&mut self, now: Instant) -> Result<bool, RedisError> {
        let connection = self.parts.connector.generation();
        let is_on = self.tracking.is_on(connection);
        let streams = if self.parts.draining.requested() { 0 } else { self.subscriptions.len() };
        let is_preferred = self.tracking.is_wanted(connection, streams, now)
            || (0 < streams && streams < READ_ALONG_MAX && !self.can_block(now) && self.tracking.may_be(now));
        let is_wanted = is_preferred && self.parts.connector.open().is_some_and(|link| link.is_resp3());
        match (is_on, is_wanted) {
            (false, true) => {
                let prefix = self.parts.keys.stream_prefix();
                let on = cmd("CLIENT").arg(&["TRACKING", "ON", "BCAST", "PREFIX"]).arg(prefix).take();
                if let Some(error) = self.trip(&[on])?.first().and_then(Reply::error) {
                    warn_limited!(%error, "CLIENT TRACKING does not work: every read asks for all streams");
                    self.tracking.rest(now);
                    return Ok(false);
                }
                self.tracking.begin(connection);
                self.subscriptions.note_all_news();
            }
            (true, false) => {
                self.trip(&[cmd("CLIENT").arg(&["TRACKING", "OFF"]).take()])?;
                self.tracking.end();
            }
            _ => {}
        }
        Ok(is_wanted)
    }

    /// Receives the pushes on the connection.
    pub(super) fn receive_pushes(&mut self) -> Result<(), RedisError> {
        let Some(link) = self.parts.connector.open() else { return Err(RedisError::Closed) };
        link.try_receive()?;
        self.note_pushes()
    }

    /// Records the pushes for which the poll reports no event: those that arrived during a round trip are off the
    /// socket already, or behind a read that filled its buffer.
    pub(super) fn note_arrived_pushes(&mut self) -> Result<(), RedisError> {
        let is_empty = self.parts.connector.open().is_none_or(|link| link.has_emptied_socket());
        if is_empty { self.note_pushes() } else { self.receive_pushes() }
    }

    /// Records the pushes that are already off the socket.
    pub(super) fn note_pushes(&mut self) -> Result<(), RedisError> {
        while let Some(push) = self.parts.connector.open().and_then(Link::take_push) {
            match push.changed()? {
                Some(Changed::Keys(keys)) => {
                    for key in keys {
                        let is_own = self.subscriptions.note_news(&key);
                        self.tracking.count(is_own);
                    }
                }
                Some(Changed::Everything) => self.subscriptions.note_all_news(),
                None => {}
            }
        }
        Ok(())
    }

    /// Whether the reader can wait in a blocking read: not if nothing could wake it, and not if large entries would
    /// be sent twice.
    fn can_block(&self, now: Instant) -> bool {
        let can_be_woken = self.unwakeable_until.is_none_or(|until| until <= now);
        can_be_woken && !self.subscriptions.has_large() && !self.budget.is_wary(now)
    }

    /// Waits for news of any stream or for a command in a blocking read. Its reply only shows that there is news:
    /// the transaction behind it, which Redis executes in the same turn, reads the streams.
    pub(super) fn block(&mut self, block: Duration) -> Result<ReadEnd, RedisError> {
        let now = Instant::now();
        if !self.can_block(now) {
            self.wait(now + LOOK_INTERVAL)?;
            self.subscriptions.note_all_news();
            return Ok(ReadEnd::default());
        }
        let places = self.subscriptions.places();
        self.begin_blocking();
        let asked_at = self.pipeline.len();
        self.add_block(block);
        let requested = (places.len() <= READ_ALONG_MAX).then(|| self.add_reads(places));
        let replies = self.converse(Some(block))?;
        self.note_acknowledged(&replies[..asked_at]);
        self.note_woken(&replies[asked_at], requested.is_none())?;
        let waited = now.elapsed();
        match requested {
            Some(requested) => {
                let found = self.take_in(&replies, requested)?;
                Ok(ReadEnd { waited, ..self.pass_on(found) })
            }
            None => Ok(ReadEnd::default()),
        }
    }

    /// Adds the blocking read. It does not use the group, so it consumes nothing from it.
    fn add_block(&mut self, block: Duration) {
        let Self { pipeline, subscriptions, wake_key, wake_cursor, .. } = self;
        let mut command = pipeline.command("XREAD", 5 + 2 * (subscriptions.len() + 1));
        command.arg("COUNT").number(1_u8);
        command.arg("BLOCK").number(u64::try_from(block.as_millis()).unwrap_or(u64::MAX));
        command.arg("STREAMS").arg(&**wake_key);
        for found in subscriptions.iter() {
            command.arg(&found.key);
        }
        command.id(*wake_cursor);
        for found in subscriptions.iter() {
            command.id(found.cursor);
        }
    }

    /// Handles the reply to a blocking read.
    fn note_woken(&mut self, reply: &Reply, notes_news: bool) -> Result<(), RedisError> {
        if let Some(error) = reply.error() {
            return match error.kind() {
                // The error does not name the key. If it is a stream's, reading the streams finds it.
                ServerErrorKind::WrongType => {
                    self.subscriptions.note_all_news();
                    self.look_at_wake_key()
                }
                _ => Err(RedisError::Server(error)),
            };
        }
        for read in reply.streams()? {
            if read.key == *self.wake_key {
                self.wake_cursor = read.entries.last().map_or(self.wake_cursor, |entry| entry.id);
            } else if notes_news {
                self.subscriptions.note_news(&read.key);
            }
        }
        Ok(())
    }

    fn look_at_wake_key(&mut self) -> Result<(), RedisError> {
        let length = Cmd::xlen(&*self.wake_key);
        if let Some(error) = self.trip(&[length])?.first().and_then(Reply::error) {
            self.give_up_waking(&RedisError::Server(error));
        }
        Ok(())
    }

    /// Stops using the wake stream for a while: the reader tracks, or polls.
    fn give_up_waking(&mut self, error: &RedisError) {
        let key = self.parts.keys.wake(self.parts.index);
        warn_limited!(%error, key, "a reader cannot be woken by its stream and finds new viewers later; delete the key");
        self.unwakeable_until = Some(Instant::now() + UNWAKEABLE);
    }

    /// Makes the round trip and waits for all replies, interrupting the blocking read when a command arrives. Fails if
    /// the daemon stops meanwhile: nobody will wait for the replies, so the connection cannot be used any more.
    pub(super) fn converse(&mut self, block: Option<Duration>) -> Result<Vec<Reply>, RedisError> {
        let may_sleep = self.send_pipeline()?;
        self.await_replies(block, may_sleep)
    }

    /// Sends the pipeline's commands. Returns whether nothing can have come yet.
    pub(super) fn send_pipeline(&mut self) -> Result<bool, RedisError> {
        let Some(link) = self.parts.connector.open() else { return Err(RedisError::Closed) };
        link.push_all(&self.pipeline);
        let sent = link.flush().map(|()| !link.has_read_ahead());
        self.note_failed(&sent);
        sent
    }

    /// Waits for all replies to the pipeline's commands, which were sent.
    pub(super) fn await_replies(
        &mut self,
        block: Option<Duration>,
        may_sleep: bool,
    ) -> Result<Vec<Reply>, RedisError> {
        let replies = self.collect(block, may_sleep);
        self.note_failed(&replies);
        replies
    }

    fn note_failed<T>(&mut self, result: &Result<T, RedisError>) {
        if result.as_ref().is_err_and(|error| !matches!(error, RedisError::Server(_))) {
            self.budget.failed(Instant::now());
        }
    }

    fn collect(&mut self, block: Option<Duration>, may_sleep: bool) -> Result<Vec<Reply>, RedisError> {
        let timeout = self.parts.connector.response_timeout();
        let mut deadline = Instant::now() + block.unwrap_or_default() + timeout;
        let mut woken = block.is_none();
        let mut read_ahead = 0;
        let mut replies = Vec::with_capacity(self.pipeline.len());
        // An immediate check would find nothing: Redis has yet to wake.
        if may_sleep && (woken || self.parts.commands.is_empty()) {
            self.wait(Instant::now() + pulse::WAIT_MAX)?;
        }
        loop {
            let Some(link) = self.parts.connector.open() else { return Err(RedisError::Closed) };
            let had = replies.len();
            while let Some(reply) = link.try_receive()? {
                replies.push(reply);
                if link.outstanding() == 0 {
                    return Ok(replies);
                }
            }
            let now = Instant::now();
            if link.read_ahead_bytes() > REPLY_BYTES_MAX {
                return Err(RedisError::TooLarge(REPLY_BYTES_MAX));
            }
            // A large reply may take longer as long as it makes progress.
            if replies.len() > had || link.read_ahead_bytes() != read_ahead {
                read_ahead = link.read_ahead_bytes();
                deadline = deadline.max(now + timeout);
            }
            if now >= deadline {
                return Err(RedisError::Timeout);
            }
            if !woken && (!self.parts.commands.is_empty() || self.parts.draining.requested()) {
                woken = true;
                self.interrupt();
            }
            if self.parts.stop.requested() {
                return Err(RedisError::Closed);
            }
            self.wait(deadline.min(now + pulse::WAIT_MAX))?;
        }
    }

    /// Writes to the wake stream, so that the blocking read returns. If that fails, the block times out.
    fn interrupt(&mut self) {
        let wake = self.parts.keys.wake(self.parts.index);
        let command = cmd("XADD").arg(wake).arg(&["MAXLEN", "1", "*", "wake", "1"]).take();
        let now = Instant::now();
        match self.parts.wake.ask(now, |link| link.query::<()>(&command)) {
            Ok(()) => {
                self.parts.registry.counters().wakeups_sent.inc();
                self.parts.wake.works();
            }
            Err(Some(error)) if error.server_kind() == Some(ServerErrorKind::WrongType) => {
                self.give_up_waking(&error);
            }
            Err(Some(error)) if !error.is_outage() => {
                warn_limited!(%error, "a reader could not be woken and finds a new viewer within a second");
            }
            Err(Some(error)) => self.parts.wake.lost(&error, now),
            Err(None) => {}
        }
    }
}
