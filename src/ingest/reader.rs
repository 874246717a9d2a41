//! A reader thread: carries what is new on the streams that hash to it.
//!
//! One connection sits in a blocking XREADGROUP over all its streams and its wake stream; a second one
//! exists to write that wake stream when a command comes in meanwhile. Acknowledgements travel with the
//! next read. How often it reads is [`Pacing`]'s decision.
//!
//! INVARIANT: the group's position is not the truth, the subscription's cursor is: it is set at the seam,
//! and entries at or below it are never passed on. Whatever goes wrong with a stream or with Redis, the reader
//! does not mend it: it reports the stream as broken, forgets it, and its viewers find out from history
//! what happened and start it again at an exact id.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::pacing::{Next, Pacing};
use super::subscriptions::{Subscription, Subscriptions};
use crate::config;
use crate::event::message::{LiveBatch, LiveNews, ReaderCommand, now_us};
use crate::event::{Entry, EntryId};
use crate::observe::Registry;
use crate::queue::{Receiver, SendError, Sender};
use crate::redis::{Command, Connector, Keys, RedisError, Reply, ServerErrorKind, StreamEntries};
use crate::stop::Stop;

/// The token of the Redis connection in the reader's poll.
const LINK: Token = Token(0);
/// The token of the command queue's waker.
pub const COMMANDS: Token = Token(1);

/// The longest block while something waits for its acknowledgement, so that it goes out within a second.
const BLOCK_WITH_UNACKED: Duration = Duration::from_millis(500);
/// The longest block otherwise; bounds how late a dead connection is noticed.
const BLOCK_IDLE: Duration = Duration::from_secs(2);
/// Acknowledgements are gathered this long.
const ACK_INTERVAL: Duration = Duration::from_millis(200);
/// How long one wait lasts at most, so that stopping is noticed.
const STOP_CHECK: Duration = Duration::from_millis(100);
/// A group that could not be removed is tried again after this.
const REMOVE_RETRY: Duration = Duration::from_secs(5);
/// How often connections that are not in use are looked after.
const KEEP_INTERVAL: Duration = Duration::from_millis(500);
/// A stream for which Redis refuses a consumer group is tried again after this.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Streams per command where one command per stream is sent.
const COMMANDS_PER_TRIP_MAX: usize = 256;

/// What a reader works with.
pub struct ReaderParts {
    /// Which reader it is.
    pub index: usize,
    /// Its connection for reading.
    pub connector: Connector,
    /// Its connection for interrupting itself.
    pub wake: Connector,
    /// The names of the keys.
    pub keys: Arc<Keys>,
    /// Its poll, in which `commands` wakes it as [`COMMANDS`].
    pub poll: Poll,
    /// What it is told.
    pub commands: Receiver<ReaderCommand>,
    /// Where entries go, by shard.
    pub transforms: Vec<Sender<LiveBatch>>,
    /// How it reads.
    pub delivery: config::Delivery,
    /// How long the group of a stream without viewers stays.
    pub linger: Duration,
    /// Whether this instance's id is leased: before that, no group is touched.
    pub leased: Arc<AtomicBool>,
    /// Set when the daemon drains: nothing new is read, acknowledgements still go out.
    pub draining: Stop,
    /// When to end.
    pub stop: Stop,
    /// Where to count.
    pub registry: Arc<Registry>,
}

/// A running reader.
pub struct Reader {
    parts: ReaderParts,
    pacing: Pacing,
    subscriptions: Subscriptions,
    /// Streams for which Redis refused a group, and when they are reported as broken.
    refused: VecDeque<(Instant, Subscription)>,
    /// Entries of the wake stream to be acknowledged.
    wakes_read: Vec<EntryId>,
    /// Whether the wake stream's group is known to exist on the present connection.
    wake_ready: bool,
    acked_at: Instant,
    kept_at: Instant,
    /// The connection that is in the poll.
    registered: u64,
    events: Events,
}

impl Reader {
    /// A reader that has nothing to read yet.
    #[must_use]
    pub fn new(parts: ReaderParts) -> Self {
        let pacing = Pacing::new(parts.delivery.duty_percent, parts.delivery.max_linger);
        Self {
            parts,
            pacing,
            subscriptions: Subscriptions::default(),
            refused: VecDeque::new(),
            wakes_read: Vec::new(),
            wake_ready: false,
            acked_at: Instant::now(),
            kept_at: Instant::now(),
            registered: 0,
            events: Events::with_capacity(8),
        }
    }

    /// Reads until the daemon stops, then sends the last acknowledgements.
    pub fn run(mut self) {
        let mut next = Next::Block;
        while !self.parts.stop.requested() {
            next = match self.turn(next) {
                Ok(next) => next,
                Err(error) => {
                    self.lose(&error);
                    Next::Block
                }
            };
        }
        if let Err(error) = self.acknowledge_last() {
            tracing::warn!(%error, "the last acknowledgements could not be sent");
        }
    }

    /// One round: commands, groups, then a read or a wait.
    fn turn(&mut self, next: Next) -> Result<Next, RedisError> {
        if self.parts.connector.link(Instant::now()).is_none() || !self.parts.leased.load(Ordering::Acquire) {
            self.wait(Instant::now() + STOP_CHECK / 2)?;
            return Ok(Next::Block);
        }
        self.retry_refused();
        self.obey_commands()?;
        self.remove_expired_groups()?;
        self.keep_connections();
        if self.parts.draining.requested() || self.subscriptions.is_empty() {
            self.acknowledge_alone()?;
            self.wait(Instant::now() + STOP_CHECK)?;
            return Ok(Next::Block);
        }
        match next {
            Next::Block => {
                let entries = self.read(Some(self.block()))?;
                Ok(if entries == 0 { Next::Block } else { self.pacing.woken() })
            }
            Next::Linger(pause) => {
                self.linger(Instant::now() + pause)?;
                let asked = Instant::now();
                let entries = self.read(None)?;
                Ok(self.pacing.polled(asked.elapsed(), entries))
            }
        }
    }

    /// Connections that are not used for a while are looked after, so that the next use finds them well.
    fn keep_connections(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.kept_at) < KEEP_INTERVAL {
            return;
        }
        self.kept_at = now;
        self.parts.wake.keep(now);
        if self.subscriptions.is_empty() {
            self.parts.connector.keep(now);
        }
    }

    fn block(&self) -> Duration {
        let waiting = self.subscriptions.iter().any(|(_, subscription)| !subscription.unacked.is_empty());
        if waiting { BLOCK_WITH_UNACKED } else { BLOCK_IDLE }
    }

    /// Redis is gone, or does not do as it should: every stream goes back to history.
    fn lose(&mut self, error: &RedisError) {
        self.parts.connector.lost(error, Instant::now());
        self.wake_ready = false;
        self.wakes_read.clear();
        let mut broken = self.subscriptions.remove_all(Instant::now() + self.parts.linger);
        broken.extend(self.refused.drain(..).map(|(_, start)| start));
        self.report_broken(broken);
    }

    fn report_broken(&mut self, broken: Vec<Subscription>) {
        if broken.is_empty() {
            return;
        }
        self.parts.registry.counters().streams_broken.add(broken.len() as u64);
        let news = broken.into_iter().map(|gone| (gone.transform, LiveNews::Broken(gone.live))).collect();
        self.hand_over(news);
    }

    // ----- commands and groups -----

    fn obey_commands(&mut self) -> Result<(), RedisError> {
        loop {
            let mut starts = Vec::new();
            while starts.len() < COMMANDS_PER_TRIP_MAX
                && let Some(command) = self.parts.commands.try_recv()
            {
                match command {
                    ReaderCommand::Start { stream, live, transform, after, ordinal, board } => {
                        let now = Instant::now();
                        let start = (stream, live, transform);
                        starts.push(Subscription::new(start, (after, ordinal), board, now));
                    }
                    ReaderCommand::Stop { stream, live } => {
                        starts.retain(|start| start.live != live);
                        if let Err(error) = self.stop_stream(&stream, live) {
                            self.report_broken(starts);
                            return Err(error);
                        }
                    }
                }
            }
            if starts.is_empty() {
                return Ok(());
            }
            if let Err((error, starts)) = self.start_streams(starts) {
                self.report_broken(starts);
                return Err(error);
            }
        }
    }

    /// What a stream has unacknowledged when it is stopped has been handed to history.
    fn stop_stream(
        &mut self,
        stream: &crate::event::StreamName,
        live: crate::event::message::LiveRef,
    ) -> Result<(), RedisError> {
        self.refused.retain(|(_, start)| start.live != live);
        let key = self.parts.keys.stream(stream);
        let until = Instant::now() + self.parts.linger;
        let Some(mut gone) = self.subscriptions.remove(&key, live, until) else { return Ok(()) };
        let mut acks = Vec::new();
        loop {
            let ids = gone.unacked.take(EntryId::MAX);
            if ids.is_empty() {
                break;
            }
            self.parts.registry.counters().acks_sent.add(ids.len() as u64);
            acks.push(xack(&self.parts.keys, key.as_bytes(), &ids));
        }
        self.trip(&acks).map(drop)
    }

    /// Makes the group of each stream at its seam, anew where there is one: what a former reading left pending was
    /// handed to history. A stream whose key is gone is broken.
    fn start_streams(&mut self, starts: Vec<Subscription>) -> Result<(), (RedisError, Vec<Subscription>)> {
        let keys = Arc::clone(&self.parts.keys);
        let mut commands = Vec::with_capacity(starts.len() * 2 + 1);
        let names = starts
            .iter()
            .fold(Command::new("SADD").arg(keys.groups()), |sadd, start| sadd.arg(start.stream.as_str()));
        commands.push(names);
        for start in &starts {
            let key = keys.stream(&start.stream);
            commands.push(destroy(&keys, key.as_bytes()));
            commands.push(xgroup("CREATE", &keys, key.as_bytes(), start.cursor));
        }
        let replies = match self.trip(&commands) {
            Ok(replies) => replies,
            Err(error) => return Err((error, starts)),
        };
        let outage = replies.iter().filter_map(Reply::error).find(|error| error.kind().is_outage());
        if let Some(error) = outage {
            return Err((RedisError::Server(error), starts));
        }
        let now = Instant::now();
        let mut broken = Vec::new();
        // The first reply is SADD's; then two for each stream, of which CREATE's tells whether all is well.
        for (start, replies) in starts.into_iter().zip(replies[1..].chunks(2)) {
            let key = keys.stream(&start.stream);
            let Some(error) = replies[1].error() else {
                self.subscriptions.insert(&key, start);
                continue;
            };
            tracing::debug!(stream = %start.stream, %error, "no group could be made");
            self.subscriptions.linger(start.stream.clone(), &key, now + self.parts.linger);
            if error.kind() == ServerErrorKind::NoSuchKey {
                broken.push(start);
            } else {
                // Trying again at once would not help: history is there to be read, and a group is not to be had.
                tracing::warn!(stream = %start.stream, %error, "Redis refuses a consumer group");
                self.refused.push_back((now + REFUSED_PAUSE, start));
            }
        }
        self.report_broken(broken);
        Ok(())
    }

    /// Streams for which no group was to be had are tried again after a while, from history on.
    fn retry_refused(&mut self) {
        let now = Instant::now();
        let due = self.refused.iter().take_while(|(at, _)| *at <= now).count();
        let broken = self.refused.drain(..due).map(|(_, start)| start).collect();
        self.report_broken(broken);
    }

    fn remove_expired_groups(&mut self) -> Result<(), RedisError> {
        let expired = self.subscriptions.expired(Instant::now());
        for streams in expired.chunks(COMMANDS_PER_TRIP_MAX) {
            let keys = &self.parts.keys;
            let commands: Vec<Command> = streams
                .iter()
                .flat_map(|stream| {
                    let destroy = destroy(keys, keys.stream(stream).as_bytes());
                    [destroy, Command::new("SREM").arg(keys.groups()).arg(stream.as_str())]
                })
                .collect();
            let result = self.trip(&commands);
            if let Err(error) = result {
                for stream in streams {
                    let key = self.parts.keys.stream(stream);
                    self.subscriptions.linger(stream.clone(), &key, Instant::now() + REMOVE_RETRY);
                }
                return Err(error);
            }
            self.parts.registry.counters().groups_removed.add(streams.len() as u64);
        }
        Ok(())
    }

    /// Something is wrong with one of the keys, and Redis does not say with which: asks each, so that the
    /// others go on.
    fn probe(&mut self) -> Result<(), RedisError> {
        let cursors: Vec<(Vec<u8>, EntryId)> = self
            .subscriptions
            .iter()
            .map(|(key, subscription)| (key.to_vec(), subscription.cursor))
            .collect();
        let mut broken = Vec::new();
        for some in cursors.chunks(COMMANDS_PER_TRIP_MAX) {
            let keys = &self.parts.keys;
            let commands: Vec<_> =
                some.iter().map(|(key, cursor)| xgroup("SETID", keys, key, *cursor)).collect();
            let replies = self.trip(&commands)?;
            for ((key, _), reply) in some.iter().zip(replies) {
                if let Some(error) = reply.error() {
                    tracing::debug!(key = %String::from_utf8_lossy(key), %error, "a group is gone");
                    broken.extend(self.take(key));
                }
            }
        }
        self.wake_ready = false;
        self.report_broken(broken);
        Ok(())
    }

    fn take(&mut self, key: &[u8]) -> Option<Subscription> {
        let live = self.subscriptions.get_mut(key)?.live;
        let key = String::from_utf8_lossy(key).into_owned();
        self.subscriptions.remove(&key, live, Instant::now() + self.parts.linger)
    }

    // ----- reading -----

    /// One read of all streams; how many entries came.
    fn read(&mut self, block: Option<Duration>) -> Result<usize, RedisError> {
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
    fn ready_wake_stream(&mut self) -> Result<(), RedisError> {
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

    /// Passes news on to the transform threads. Waiting for room here is what slows reading down when
    /// decoding falls behind; entries meanwhile stay in Redis.
    fn hand_over(&mut self, news: Vec<(usize, LiveNews)>) {
        let read_us = now_us();
        let mut batches: HashMap<usize, Vec<LiveNews>> = HashMap::new();
        for (transform, news) in news {
            batches.entry(transform).or_default().push(news);
        }
        for (transform, streams) in batches {
            let mut batch = LiveBatch { bytes: len_bytes(&streams), streams, read_us };
            while !self.parts.stop.requested() {
                match self.parts.transforms[transform].send_timeout(batch, STOP_CHECK) {
                    Ok(()) | Err(SendError::Closed(_)) => break,
                    Err(SendError::Full(back)) => batch = back,
                }
            }
        }
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
    fn acknowledge_alone(&mut self) -> Result<(), RedisError> {
        let commands = self.due_acknowledgements();
        self.trip(&commands).map(drop)
    }

    fn acknowledge_last(&mut self) -> Result<(), RedisError> {
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

    // ----- waiting -----

    /// One round trip on the idle connection; error replies stay among the replies.
    fn trip(&mut self, commands: &[Command]) -> Result<Vec<Reply>, RedisError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let Some(link) = self.parts.connector.open() else { return Err(RedisError::Closed) };
        link.call_all(commands)
    }

    /// Lets time pass until `until`, or until a command comes.
    fn linger(&mut self, until: Instant) -> Result<(), RedisError> {
        let pause = until.saturating_duration_since(Instant::now());
        if pause < Duration::from_millis(1) {
            // epoll waits in whole milliseconds, rounded up: too coarse for this pause.
            std::thread::sleep(pause);
            return Ok(());
        }
        self.wait(until)
    }

    /// Sleeps until the connection has something, a command comes, or `until`.
    fn wait(&mut self, until: Instant) -> Result<(), RedisError> {
        self.register_link()?;
        let timeout = until.saturating_duration_since(Instant::now());
        match self.parts.poll.poll(&mut self.events, Some(timeout)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(RedisError::Io(error)),
        }
    }

    /// A new connection joins the poll; a former one left it when it was closed.
    fn register_link(&mut self) -> Result<(), RedisError> {
        let generation = self.parts.connector.generation();
        if generation != self.registered
            && let Some(link) = self.parts.connector.open()
        {
            let fd = link.raw_fd();
            self.parts
                .poll
                .registry()
                .register(&mut SourceFd(&fd), LINK, Interest::READABLE)
                .map_err(RedisError::Io)?;
            self.registered = generation;
        }
        Ok(())
    }
}

fn len_bytes(streams: &[LiveNews]) -> usize {
    let entries = streams.iter().flat_map(|news| match news {
        LiveNews::Entries(_, entries) => entries.as_slice(),
        LiveNews::Broken(_) => &[],
    });
    entries.map(|entry| entry.fields.len_bytes()).sum()
}

fn xack(keys: &Keys, key: &[u8], ids: &[EntryId]) -> Command {
    ids.iter().fold(Command::new("XACK").arg(key).arg(keys.group()), |command, &id| command.id(id))
}

fn destroy(keys: &Keys, key: &[u8]) -> Command {
    Command::new("XGROUP").arg("DESTROY").arg(key).arg(keys.group())
}

fn xgroup(subcommand: &str, keys: &Keys, key: &[u8], id: EntryId) -> Command {
    Command::new("XGROUP").arg(subcommand).arg(key).arg(keys.group()).id(id)
}
