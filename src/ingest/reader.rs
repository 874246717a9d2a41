//! A reader thread: carries new entries of the streams that hash to it.
//!
//! With few streams, one connection blocks in a read of all of them and of the reader's wake stream; a second
//! connection writes to that wake stream when a command arrives. With many streams, Redis pushes the names of those
//! that have news (`tracking`). Either way, each read shows whether other entries were removed before those that it
//! returns (`reading`). [`Pacing`] decides how long a blocking reader pauses between two reads.
//!
//! INVARIANT: reads begin at the subscription's cursor, never at the group's position. If anything is wrong with a
//! stream or with Redis, the reader does not repair it: it reports the stream as broken and forgets it. The stream's
//! viewers learn from history what happened and start it again at an exact id.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::redis::Cmd;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::budget::Budget;
use super::pacing::Pacing;
use super::subscriptions::{Key, Place, Subscription, Subscriptions};
use super::tracking::{SWEEPS_PER_ROUND, SWEPT_SILENCE, Tracking};
use crate::config;
use crate::message::{LiveBatch, LiveNews, ReaderCommand, UnderWay, now_us};
use crate::model::EntryId;
use crate::observe::Registry;
use crate::pulse;
use crate::queue::{Receiver, SendError, Sender};
use crate::redis::{Connector, Keys, Pipeline, RedisError, Reply};
use crate::stop::Stop;
use crate::thread;

/// The token of the Redis connection in the reader's poll.
const LINK: Token = Token(0);
/// The token of the waker.
pub const COMMANDS: Token = Token(1);

/// The longest block while acknowledgements are pending, so that they are sent within a second.
const BLOCK_WITH_UNACKED: Duration = Duration::from_millis(500);
/// The longest block otherwise; bounds how late a dead connection is detected.
const BLOCK_IDLE: Duration = Duration::from_secs(1);
/// How often a reader looks after its connection while that is lost, and after its lease before it has one.
const AWAY_CHECK: Duration = Duration::from_millis(50);
/// How often a tracking reader without news looks after acknowledgements and the streams that it sweeps.
const TRACKING_CHECK: Duration = Duration::from_millis(100);
/// How often a reader that waits for room checks whether the daemon stops.
const STOP_CHECK: Duration = Duration::from_millis(100);
/// A wait of this length without news means that the streams are quiet.
const QUIET: Duration = Duration::from_millis(20);
/// The resolution of epoll's timeout.
const EPOLL_TICK: Duration = Duration::from_millis(1);
/// How often idle connections are checked.
const KEEP_INTERVAL: Duration = Duration::from_millis(500);
/// The most streams in a round trip that sends one command per stream.
pub(super) const COMMANDS_PER_TRIP_MAX: usize = 256;

/// The connections, queues and settings that a reader is built from.
pub struct ReaderParts {
    /// The index of the reader.
    pub index: usize,
    /// The connection for reading.
    pub connector: Connector,
    /// The connection that interrupts a blocking read.
    pub wake: Connector,
    /// The names of the keys.
    pub keys: Arc<Keys>,
    /// The reader's poll, in which `commands`, `draining` and `stop` wake it as [`COMMANDS`].
    pub poll: Poll,
    /// Commands to start and stop reading streams.
    pub commands: Receiver<ReaderCommand>,
    /// The transform threads that receive the entries, by shard.
    pub transforms: Vec<Sender<LiveBatch>>,
    /// The delivery settings.
    pub delivery: config::Delivery,
    /// How long the group of a stream without viewers is kept.
    pub linger: Duration,
    /// Whether this instance's id is leased: before that, no group is touched.
    pub leased: Arc<AtomicBool>,
    /// Dropped when nothing more will be read.
    pub under_way: Option<UnderWay>,
    /// Set when the daemon drains: nothing new is read, acknowledgements still go out.
    pub draining: Stop,
    /// Set when the thread is to end.
    pub stop: Stop,
    /// The metrics.
    pub registry: Arc<Registry>,
}

/// A running reader.
pub struct Reader {
    pub(super) parts: ReaderParts,
    pub(super) pacing: Pacing,
    /// The pause before the next read lasts until then.
    rests_until: Instant,
    pub(super) subscriptions: Subscriptions,
    pub(super) tracking: Tracking,
    /// Streams for which Redis refused a group, and when they are reported as broken.
    pub(super) refused: VecDeque<(Instant, Subscription)>,
    /// The commands of the current round trip.
    pub(super) pipeline: Pipeline,
    /// The reader's name as a consumer of its groups.
    pub(super) consumer: String,
    /// The key of the wake stream.
    pub(super) wake_key: Key,
    /// The newest entry of the wake stream that was read on the current connection.
    pub(super) wake_cursor: EntryId,
    /// Until when the wake stream is not relied on.
    pub(super) unwakeable_until: Option<Instant>,
    /// The limit of a read, in bytes.
    pub(super) budget: Budget,
    pub(super) acked_at: Instant,
    /// How many streams had to be acknowledged at `acked_at`.
    pub(super) to_acknowledge: usize,
    /// The streams that the current round trip acknowledges, with the position of each, in the order of the commands.
    pub(super) acknowledging: Vec<(Place, EntryId)>,
    pub(super) kept_at: Option<Instant>,
    /// The generation of the connection that is registered in the poll.
    pub(super) registered: u64,
    pub(super) events: Events,
}

impl Reader {
    /// A reader that has nothing to read yet.
    #[must_use]
    pub fn new(parts: ReaderParts) -> Self {
        let pacing = Pacing::new(parts.delivery.duty_percent, parts.delivery.max_linger);
        let consumer = parts.keys.consumer(parts.index);
        let wake_key = parts.keys.wake(parts.index).into_bytes().into();
        Self {
            parts,
            pacing,
            rests_until: Instant::now(),
            subscriptions: Subscriptions::default(),
            tracking: Tracking::default(),
            refused: VecDeque::new(),
            pipeline: Pipeline::default(),
            consumer,
            wake_key,
            wake_cursor: EntryId::ZERO,
            unwakeable_until: None,
            budget: Budget::default(),
            acked_at: Instant::now(),
            to_acknowledge: 0,
            acknowledging: Vec::new(),
            kept_at: None,
            registered: 0,
            events: Events::with_capacity(8),
        }
    }

    /// Reads until the daemon stops, then sends the last acknowledgements.
    pub fn run(mut self) {
        thread::sleep_precisely();
        while !self.parts.stop.requested() {
            pulse::beat();
            match self.turn() {
                Ok(()) => {}
                // The stop ends a round trip before its replies are there. That is no fault of the streams.
                Err(_) if self.parts.stop.requested() => self.parts.connector.close(),
                Err(error) => self.lose(&error),
            }
        }
        if let Err(error) = self.acknowledge_last() {
            tracing::warn!(%error, "the last acknowledgements could not be sent");
        }
    }

    /// One round: commands, groups, then a read or a wait.
    fn turn(&mut self) -> Result<(), RedisError> {
        if self.parts.draining.requested() {
            self.parts.under_way = None;
        }
        self.retry_refused();
        let now = Instant::now();
        if self.parts.connector.link(now).is_none() {
            self.refuse_starts(now);
            return self.wait(now + AWAY_CHECK);
        }
        if !self.parts.leased.load(Ordering::Acquire) {
            self.wait(now + AWAY_CHECK)?;
            // Pushes of Redis must not pile up in the socket meanwhile.
            return self.receive_pushes();
        }
        self.apply_commands()?;
        self.remove_expired_groups()?;
        self.keep_connections();
        let is_tracking = self.is_tracking(Instant::now())?;
        if self.parts.draining.requested() || self.subscriptions.is_empty() {
            self.acknowledge_alone()?;
            return self.wait(Instant::now() + KEEP_INTERVAL);
        }
        if is_tracking {
            self.note_arrived_pushes()?;
            let now = Instant::now();
            if self.tracking.sweeps(now) {
                let since = now.checked_sub(SWEPT_SILENCE).unwrap_or(now);
                self.subscriptions.sweep(SWEEPS_PER_ROUND, since);
            }
            if !self.subscriptions.has_news() {
                return self.wait_for_pushes();
            }
        }
        self.rest()?;
        let read = if self.subscriptions.has_news() {
            self.read_news()?
        } else {
            if self.subscriptions.is_acknowledging() {
                self.acknowledge_alone()?;
            }
            self.block(self.block_max())?
        };
        // A reader that has fallen behind catches up first. A tracking reader reads only streams with news: while
        // Redis is idle, a pause would save little, and while Redis is loaded, a round trip takes longer and collects
        // more.
        let pauses = !read.is_full && !is_tracking;
        let pause =
            if pauses { self.pacing.pause(read.took, read.waited, read.entries) } else { Duration::ZERO };
        self.rests_until = Instant::now() + pause;
        self.acknowledge_after_reading()
    }

    /// Waits until Redis reports news of a stream. Acknowledgements travel with reads while there are any.
    fn wait_for_pushes(&mut self) -> Result<(), RedisError> {
        let now = Instant::now();
        self.wait(now + TRACKING_CHECK)?;
        self.receive_pushes()?;
        let is_quiet = now.elapsed() >= QUIET || self.is_acknowledgement_late();
        if is_quiet && !self.subscriptions.has_news() { self.acknowledge_alone() } else { Ok(()) }
    }

    /// Pauses until the time that was decided after the last read.
    fn rest(&mut self) -> Result<(), RedisError> {
        if Instant::now() < self.rests_until { self.linger(self.rests_until) } else { Ok(()) }
    }

    /// Checks connections that are idle, so that they work when they are needed next.
    fn keep_connections(&mut self) {
        let now = Instant::now();
        if self.kept_at.is_some_and(|at| now.duration_since(at) < KEEP_INTERVAL) {
            return;
        }
        self.kept_at = Some(now);
        self.parts.wake.keep(now);
        if self.subscriptions.is_empty() {
            self.parts.connector.keep(now);
        }
    }

    fn block_max(&self) -> Duration {
        if self.subscriptions.has_unacked() { BLOCK_WITH_UNACKED } else { BLOCK_IDLE }
    }

    /// The connection to Redis is lost or faulty: every stream goes back to history.
    fn lose(&mut self, error: &RedisError) {
        self.parts.connector.lost(error, Instant::now());
        self.wake_cursor = EntryId::ZERO;
        let mut broken = self.subscriptions.remove_all(Instant::now() + self.parts.linger);
        broken.extend(self.refused.drain(..).map(|(_, start)| start));
        self.report_broken(broken);
    }

    pub(super) fn report_broken(&mut self, broken: Vec<Subscription>) {
        if broken.is_empty() {
            return;
        }
        self.parts.registry.counters().streams_broken.add(broken.len() as u64);
        let news = broken.into_iter().map(|gone| (gone.transform, LiveNews::Broken(gone.live))).collect();
        self.hand_over(news);
    }

    /// Passes news on to the transform threads. If decoding falls behind, this waits for room, which slows reading
    /// down; the entries stay in Redis meanwhile.
    pub(super) fn hand_over(&mut self, news: Vec<(usize, LiveNews)>) {
        let read_us = now_us();
        let mut batches: Vec<Vec<LiveNews>> = self.parts.transforms.iter().map(|_| Vec::new()).collect();
        for (transform, news) in news {
            batches[transform].push(news);
        }
        for (transform, streams) in batches.into_iter().enumerate().filter(|(_, streams)| !streams.is_empty())
        {
            let (bytes, under_way) = (len_bytes(&streams), self.parts.under_way.clone());
            let batch = LiveBatch { bytes, streams, read_us, under_way };
            let Err(mut batch) = self.parts.transforms[transform].hand_over(batch) else { continue };
            while !self.parts.stop.requested() {
                match self.parts.transforms[transform].send_timeout(batch, STOP_CHECK) {
                    Ok(()) | Err(SendError::Closed(_)) => break,
                    Err(SendError::Full(back)) => batch = back,
                }
            }
        }
    }

    // ----- waiting -----

    /// One round trip on the idle connection; error replies are among the returned replies.
    pub(super) fn trip(&mut self, commands: &[Cmd]) -> Result<Vec<Reply>, RedisError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let Some(link) = self.parts.connector.open() else { return Err(RedisError::Closed) };
        link.call_all(commands)
    }

    /// One round trip with the pipeline's commands.
    pub(super) fn make_trip(&mut self) -> Result<Vec<Reply>, RedisError> {
        if self.pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let Some(link) = self.parts.connector.open() else { return Err(RedisError::Closed) };
        link.call_pipeline(&self.pipeline)
    }

    /// Waits until `until`, or until a command arrives.
    fn linger(&mut self, until: Instant) -> Result<(), RedisError> {
        let pause = until.saturating_duration_since(Instant::now());
        // epoll waits in whole milliseconds and rounds up, so it cannot wait for the rest of the pause.
        if pause >= EPOLL_TICK {
            self.wait(until - Duration::from_nanos(u64::from(pause.subsec_nanos()) % 1_000_000))?;
            if !self.parts.commands.is_empty() {
                return Ok(());
            }
        }
        std::thread::sleep(until.saturating_duration_since(Instant::now()).min(EPOLL_TICK));
        Ok(())
    }

    /// Sleeps until the connection is readable, a command arrives, or `until`.
    pub(super) fn wait(&mut self, until: Instant) -> Result<(), RedisError> {
        self.register_link()?;
        let timeout = until.saturating_duration_since(Instant::now());
        match self.parts.poll.poll(&mut self.events, Some(timeout)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(RedisError::Io(error)),
        }
    }

    /// Registers a new connection in the poll; the former one left it when it was closed.
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

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
