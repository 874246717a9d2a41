//! How a reader reads and acknowledges.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::groups::destroy;
use super::reader::{COMMANDS_PER_TRIP_MAX, Reader, STOP_CHECK};
use crate::config;
use crate::event::message::LiveNews;
use crate::event::{Entry, EntryId};
use crate::redis::{Command, Keys, RedisError, Reply, ServerErrorKind, StreamEntries};

/// Acknowledgements are gathered this long.
const ACK_INTERVAL: Duration = Duration::from_millis(200);

impl Reader {
    /// One read of all streams; how many entries came.
    pub(super) fn read(&mut self, block: Option<Duration>) -> Result<usize, RedisError> {
        self.ready_wake_stream()?;
        let mut commands = self.due_acknowledgements();
        commands.push(self.xreadgroup(block));
        let Some(reply) = self.converse(&commands, block)? else { return Ok(0) };
        let counters = self.parts.registry.counters();
        counters.reads.add(1);
        if let Some(error) = reply.error() {
            return match error.kind() {
                ServerErrorKind::NoGroup | ServerErrorKind::Unblocked | ServerErrorKind::WrongType => {
                    self.probe().map(|()| 0)
                }
                _ => Err(RedisError::Server(error)),
            };
        }
        let streams = reply.streams()?;
        self.parts.connector.works();
        if streams.is_empty() {
            counters.reads_empty.add(1);
        }
        self.pass_on(streams)
    }

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

    fn xreadgroup(&self, block: Option<Duration>) -> Command {
        let keys = &self.parts.keys;
        let mut command = Command::new("XREADGROUP").arg("GROUP").arg(keys.group());
        command =
            command.arg(keys.consumer(self.parts.index)).arg("COUNT").number(self.parts.delivery.read_count);
        if let Some(block) = block {
            command = command.arg("BLOCK").number(u64::try_from(block.as_millis()).unwrap_or(u64::MAX));
        }
        if self.parts.delivery.ack == config::Ack::None {
            command = command.arg("NOACK");
        }
        command = command.arg("STREAMS").arg(keys.wake(self.parts.index));
        command = self.subscriptions.keys().fold(command, Command::arg);
        (0..=self.subscriptions.len()).fold(command, |command, _| command.arg(">"))
    }

    /// Sends the commands and waits for the last reply, interrupting the block when a command comes in.
    /// `None` when the daemon stops meanwhile.
    fn converse(
        &mut self,
        commands: &[Command],
        block: Option<Duration>,
    ) -> Result<Option<Reply>, RedisError> {
        let Some(link) = self.parts.connector.open() else { return Err(RedisError::Closed) };
        for command in commands {
            link.push(command);
        }
        link.flush()?;
        let deadline = Instant::now() + block.unwrap_or_default() + self.parts.connector.response_timeout();
        let mut woken = block.is_none();
        loop {
            let Some(link) = self.parts.connector.open() else { return Err(RedisError::Closed) };
            while let Some(reply) = link.try_receive()? {
                if link.outstanding() == 0 {
                    return Ok(Some(reply));
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
                // The reply will not be waited for: the connection is of no more use.
                self.parts.connector.close();
                return Ok(None);
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

    fn pass_on(&mut self, streams: Vec<StreamEntries>) -> Result<usize, RedisError> {
        let now = Instant::now();
        let wake = self.parts.keys.wake(self.parts.index);
        let mut fresh: Vec<(Vec<u8>, Vec<Entry>)> = Vec::with_capacity(streams.len());
        for StreamEntries { key, entries, .. } in streams {
            if key == wake.as_bytes() {
                self.wakes_read.extend(entries.iter().map(|entry| entry.id));
            } else {
                fresh.push((key.to_vec(), entries));
            }
        }
        let lost = self.find_trimmed(&fresh, now)?;
        let acks = self.parts.delivery.ack == config::Ack::Written;
        let (mut news, mut broken, mut count) = (Vec::with_capacity(fresh.len()), Vec::new(), 0);
        for (key, mut entries) in fresh {
            if lost.contains(&key) {
                broken.extend(self.take(&key));
                continue;
            }
            let Some(subscription) = self.subscriptions.get_mut(&key) else { continue };
            subscription.advance(&mut entries, acks, now);
            count += entries.len();
            news.push((subscription.transform, LiveNews::Entries(subscription.live, entries)));
        }
        self.parts.registry.counters().entries_read.add(count as u64);
        self.hand_over(news);
        self.report_broken(broken);
        Ok(count)
    }

    /// The streams whose oldest entry shows that unread ones were trimmed.
    fn find_trimmed(
        &mut self,
        fresh: &[(Vec<u8>, Vec<Entry>)],
        now: Instant,
    ) -> Result<Vec<Vec<u8>>, RedisError> {
        let mut suspects = Vec::new();
        for (key, entries) in fresh {
            if self.subscriptions.get_mut(key).is_some_and(|reading| reading.needs_check(entries, now)) {
                suspects.push(key);
            }
        }
        let mut lost = Vec::new();
        for keys in suspects.chunks(COMMANDS_PER_TRIP_MAX) {
            let commands: Vec<_> =
                keys.iter().map(|key| Command::new("XINFO").arg("STREAM").arg(key)).collect();
            for (key, reply) in keys.iter().zip(self.trip(&commands)?) {
                let Some(subscription) = self.subscriptions.get_mut(key) else { continue };
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
                    lost.push(key.to_vec());
                }
            }
        }
        Ok(lost)
    }

    // ----- acknowledging -----

    fn due_acknowledgements(&mut self) -> Vec<Command> {
        let now = Instant::now();
        if now.duration_since(self.acked_at) < ACK_INTERVAL {
            return Vec::new();
        }
        self.acked_at = now;
        let keys = Arc::clone(&self.parts.keys);
        let mut commands = Vec::new();
        let mut acked = 0;
        for (key, subscription) in self.subscriptions.iter_mut() {
            loop {
                let ids = subscription.acknowledgeable();
                if ids.is_empty() {
                    break;
                }
                acked += ids.len() as u64;
                commands.push(xack(&keys, key, &ids));
            }
        }
        if !self.wakes_read.is_empty() && self.parts.delivery.ack == config::Ack::Written {
            commands.push(xack(&keys, keys.wake(self.parts.index).as_bytes(), &self.wakes_read));
        }
        self.wakes_read.clear();
        self.parts.registry.counters().acks_sent.add(acked);
        commands
    }

    /// Acknowledges without reading, while there is nothing to read.
    pub(super) fn acknowledge_alone(&mut self) -> Result<(), RedisError> {
        let commands = self.due_acknowledgements();
        self.trip(&commands).map(drop)
    }

    pub(super) fn acknowledge_last(&mut self) -> Result<(), RedisError> {
        // The connection was closed where it was waiting for news.
        if self.parts.connector.link(Instant::now()).is_none() {
            return Err(RedisError::Closed);
        }
        loop {
            self.acked_at = Instant::now().checked_sub(ACK_INTERVAL).unwrap_or(self.acked_at);
            let commands = self.due_acknowledgements();
            if commands.is_empty() {
                return Ok(());
            }
            self.trip(&commands)?;
        }
    }
}

pub(super) fn xack(keys: &Keys, key: &[u8], ids: &[EntryId]) -> Command {
    ids.iter().fold(Command::new("XACK").arg(key).arg(keys.group()), |command, &id| command.id(id))
}
