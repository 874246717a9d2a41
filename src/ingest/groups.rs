//! Which streams a reader reads: it starts and stops them by command and maintains their consumer groups.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::redis::Cmd;

use super::acknowledging::set_position;
use super::reader::{COMMANDS_PER_TRIP_MAX, Reader};
use super::subscriptions::{Key, Place, Subscription};
use crate::message::{LiveRef, ReaderCommand};
use crate::model::StreamName;
use crate::redis::{RedisError, Reply, ServerErrorKind};
use crate::warn_limited;

/// How long to wait before trying again to remove a group.
const REMOVE_RETRY: Duration = Duration::from_secs(5);
/// The number of replies to the commands that start a stream.
const REPLIES_PER_START: usize = 3;
/// How long to wait before retrying a stream for which Redis refused a consumer group.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

impl Reader {
    pub(super) fn apply_commands(&mut self) -> Result<(), RedisError> {
        loop {
            let mut starts = Vec::new();
            while starts.len() < COMMANDS_PER_TRIP_MAX
                && let Some(command) = self.parts.commands.try_recv()
            {
                match command {
                    ReaderCommand::Start { stream, live, transform, after, ordinal, watermark } => {
                        let (name, now) = (self.named(stream), Instant::now());
                        let start =
                            Subscription::new(name, (live, transform), (after, ordinal), watermark, now);
                        starts.push(start);
                    }
                    ReaderCommand::Stop { stream, live } => {
                        starts.retain(|start| !start.is(&stream, live));
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

    /// Without a connection no stream can be started. The viewers are sent back to history after a while, and history
    /// reports the outage to them.
    pub(super) fn refuse_starts(&mut self, now: Instant) {
        while let Some(command) = self.parts.commands.try_recv() {
            match command {
                ReaderCommand::Start { stream, live, transform, after, ordinal, watermark } => {
                    let name = self.named(stream);
                    let start = Subscription::new(name, (live, transform), (after, ordinal), watermark, now);
                    self.refused.push_back((now + REFUSED_PAUSE, start));
                }
                ReaderCommand::Stop { stream, live } => {
                    self.refused.retain(|(_, start)| !start.is(&stream, live));
                }
            }
        }
    }

    /// A stream with its key in Redis.
    fn named(&self, stream: StreamName) -> (StreamName, Key) {
        let key = self.parts.keys.stream(&stream).into_bytes().into();
        (stream, key)
    }

    /// Stops a stream. Its unacknowledged entries have been handed over to history, so the group is set to the
    /// cursor.
    fn stop_stream(&mut self, stream: &StreamName, live: LiveRef) -> Result<(), RedisError> {
        self.refused.retain(|(_, start)| !start.is(stream, live));
        let key = self.parts.keys.stream(stream);
        let until = Instant::now() + self.parts.linger;
        let Some(gone) = self.subscriptions.remove(key.as_bytes(), live, until) else { return Ok(()) };
        if gone.is_acknowledged() {
            return Ok(());
        }
        self.pipeline.clear();
        set_position(&mut self.pipeline, &self.parts.keys, &gone.key, gone.cursor);
        self.parts.registry.counters().acks_sent.inc();
        self.make_trip().map(drop)
    }

    /// Creates the group of each stream at its seam, with this reader as its consumer. An existing group is replaced:
    /// entries that an earlier subscription left unacknowledged were handed over to history. A stream whose key is
    /// gone is broken.
    fn start_streams(&mut self, starts: Vec<Subscription>) -> Result<(), (RedisError, Vec<Subscription>)> {
        let keys = Arc::clone(&self.parts.keys);
        let mut commands = Vec::with_capacity(starts.len() * REPLIES_PER_START + 1);
        let names: Vec<&str> = starts.iter().map(|start| start.stream.as_str()).collect();
        commands.push(Cmd::sadd(keys.groups(), names));
        for start in &starts {
            commands.push(Cmd::xgroup_destroy(&start.key, keys.group()));
            commands.push(Cmd::xgroup_create(&start.key, keys.group(), start.cursor));
            commands.push(Cmd::xgroup_createconsumer(&start.key, keys.group(), &self.consumer));
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
        // The first reply is SADD's. Of the replies for each stream, the one to CREATE shows whether the stream has
        // started.
        for (start, replies) in starts.into_iter().zip(replies[1..].chunks(REPLIES_PER_START)) {
            let Some(error) = replies[1].error() else {
                self.subscriptions.insert(start);
                continue;
            };
            tracing::debug!(stream = %start.stream, %error, "no group could be created");
            self.subscriptions.linger(start.stream.clone(), &start.key, now + self.parts.linger);
            if error.kind() == ServerErrorKind::NoSuchKey {
                broken.push(start);
            } else {
                // An immediate retry would not help: history can be read, but a group cannot be created.
                warn_limited!(key: start.stream; stream = %start.stream, %error, "Redis refuses a consumer group");
                self.refused.push_back((now + REFUSED_PAUSE, start));
            }
        }
        self.report_broken(broken);
        Ok(())
    }

    /// Retries streams for which no group could be created, beginning with history.
    pub(super) fn retry_refused(&mut self) {
        let now = Instant::now();
        let due = self.refused.iter().take_while(|(at, _)| *at <= now).count();
        let broken = self.refused.drain(..due).map(|(_, start)| start).collect();
        self.report_broken(broken);
    }

    pub(super) fn remove_expired_groups(&mut self) -> Result<(), RedisError> {
        let expired = self.subscriptions.expired(Instant::now());
        for streams in expired.chunks(COMMANDS_PER_TRIP_MAX) {
            let keys = &self.parts.keys;
            let commands: Vec<Cmd> = streams
                .iter()
                .flat_map(|stream| {
                    let destroy = Cmd::xgroup_destroy(keys.stream(stream), keys.group());
                    [destroy, Cmd::srem(keys.groups(), stream.as_str())]
                })
                .collect();
            let result = self.trip(&commands);
            if let Err(error) = result {
                for stream in streams {
                    let key = self.parts.keys.stream(stream);
                    self.subscriptions.linger(stream.clone(), key.as_bytes(), Instant::now() + REMOVE_RETRY);
                }
                return Err(error);
            }
            self.parts.registry.counters().groups_removed.add(streams.len() as u64);
        }
        Ok(())
    }

    pub(super) fn take(&mut self, place: Place) -> Option<Subscription> {
        self.subscriptions.take(place, Instant::now() + self.parts.linger)
    }
}
