//! A reader thread: carries what is new on the streams that hash to it.
//!
//! With few streams one connection sits in a blocking XREADGROUP over all of them and the reader's wake stream; a
//! second one exists to write that wake stream when a command comes in meanwhile. With many, the connection
//! is told which streams have news, and just those are read ([`Told`]). Acknowledgements travel with the
//! next read. How often it reads is [`Pacing`]'s decision.
//!
//! INVARIANT: the group's position is not the truth, the subscription's cursor is: it is set at the seam,
//! and entries at or below it are never passed on. Whatever goes wrong with a stream or with Redis, the reader
//! does not mend it: it reports the stream as broken, forgets it, and its viewers find out from history
//! what happened and start it again at an exact id.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::pacing::{Next, Pacing};
use super::subscriptions::{Key, Subscription, Subscriptions};
use super::told::{SWEEPS_PER_ROUND, SWEPT_SILENCE, Told};
use crate::config;
use crate::event::EntryId;
use crate::event::message::{LiveBatch, LiveNews, ReaderCommand, UnderWay, now_us};
use crate::observe::Registry;
use crate::pulse;
use crate::queue::{Receiver, SendError, Sender};
use crate::redis::{Command, Connector, Keys, Pipeline, RedisError, Reply};
use crate::stop::Stop;

/// The token of the Redis connection in the reader's poll.
const LINK: Token = Token(0);
/// The token of the command queue's waker.
pub const COMMANDS: Token = Token(1);

/// The longest block while something waits for its acknowledgement, so that it goes out within a second.
const BLOCK_WITH_UNACKED: Duration = Duration::from_millis(500);
/// The longest block otherwise; bounds how late a dead connection is noticed.
const BLOCK_IDLE: Duration = Duration::from_secs(1);
/// How long one wait lasts at most, so that stopping is noticed.
pub(super) const STOP_CHECK: Duration = Duration::from_millis(100);
/// A wait of so long without news is a time in which nothing is read.
const QUIET: Duration = Duration::from_millis(20);
/// The longest pause of a reader that is told.
const TOLD_REST_MAX: Duration = Duration::from_millis(1);
/// How often connections that are not in use are looked after.
const KEEP_INTERVAL: Duration = Duration::from_millis(500);
/// Streams per command where one command per stream is sent.
pub(super) const COMMANDS_PER_TRIP_MAX: usize = 256;

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
    /// Given up when nothing more will be read.
    pub under_way: Option<UnderWay>,
    /// Set when the daemon drains: nothing new is read, acknowledgements still go out.
    pub draining: Stop,
    /// When to end.
    pub stop: Stop,
    /// Where to count.
    pub registry: Arc<Registry>,
}

/// A running reader.
pub struct Reader {
    pub(super) parts: ReaderParts,
    pub(super) pacing: Pacing,
    /// While it is told: until when Redis is left to others.
    rests_until: Instant,
    pub(super) subscriptions: Subscriptions,
    pub(super) told: Told,
    /// Streams for which Redis refused a group, and when they are reported as broken.
    pub(super) refused: VecDeque<(Instant, Subscription)>,
    /// The commands of the trip at hand.
    pub(super) pipeline: Pipeline,
    /// The consumer in the group that it is.
    pub(super) consumer: String,
    /// The key of its wake stream.
    pub(super) wake_key: Key,
    /// Entries of the wake stream to be acknowledged.
    pub(super) wakes_read: Vec<EntryId>,
    /// Whether the wake stream's group is known to exist on the present connection.
    pub(super) wake_ready: bool,
    pub(super) acked_at: Instant,
    /// Streams that were to be acknowledged then.
    pub(super) to_acknowledge: usize,
    pub(super) kept_at: Option<Instant>,
    /// The connection that is in the poll.
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
            told: Told::default(),
            refused: VecDeque::new(),
            pipeline: Pipeline::default(),
            consumer,
            wake_key,
            wakes_read: Vec::new(),
            wake_ready: false,
            acked_at: Instant::now(),
            to_acknowledge: 0,
            kept_at: None,
            registered: 0,
            events: Events::with_capacity(8),
        }
    }

    /// Reads until the daemon stops, then sends the last acknowledgements.
    pub fn run(mut self) {
        let mut next = Next::Block;
        while !self.parts.stop.requested() {
            pulse::beat();
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
        if self.parts.draining.requested() {
            self.parts.under_way = None;
        }
        self.retry_refused();
        let now = Instant::now();
        if self.parts.connector.link(now).is_none() {
            self.refuse_starts(now);
            self.wait(now + STOP_CHECK / 2)?;
            return Ok(Next::Block);
        }
        if !self.parts.leased.load(Ordering::Acquire) {
            self.wait(now + STOP_CHECK / 2)?;
            // What Redis tells meanwhile must not pile up there.
            self.listen()?;
            return Ok(Next::Block);
        }
        self.obey_commands()?;
        self.remove_expired_groups()?;
        self.keep_connections();
        let is_told = self.is_told(Instant::now())?;
        if !is_told {
            // Every read asks for all streams.
            self.subscriptions.take_news(usize::MAX);
        }
        if self.parts.draining.requested() || self.subscriptions.is_empty() {
            self.acknowledge_alone()?;
            self.wait(Instant::now() + STOP_CHECK)?;
            return Ok(Next::Block);
        }
        match next {
            _ if is_told => self.turn_told().map(|()| Next::Block),
            Next::Block => {
                if self.subscriptions.is_acknowledging() {
                    self.acknowledge_alone()?;
                }
                let read = self.read_all(Some(self.block()))?;
                Ok(if read.entries == 0 { Next::Block } else { self.pacing.woken() })
            }
            Next::Linger(pause) => {
                self.linger(Instant::now() + pause)?;
                let read = self.read_all(None)?;
                let next = self.pacing.polled(read.took, read.entries);
                // Who has fallen behind catches up first.
                Ok(if read.is_full { Next::Linger(Duration::ZERO) } else { next })
            }
        }
    }

    /// One round of a reader that is told: it reads the streams with news, or waits for some.
    fn turn_told(&mut self) -> Result<(), RedisError> {
        // What was told during a round trip is taken off the socket: no event will come for it.
        self.hear()?;
        let now = Instant::now();
        if self.told.sweeps(now) {
            self.subscriptions.sweep(SWEEPS_PER_ROUND, now.checked_sub(SWEPT_SILENCE).unwrap_or(now));
        }
        if !self.subscriptions.has_news() {
            self.wait(now + STOP_CHECK)?;
            self.listen()?;
            // Acknowledgements travel with reads as long as there are any.
            let is_quiet = now.elapsed() >= QUIET || self.is_acknowledgement_late();
            return if is_quiet && !self.subscriptions.has_news() {
                self.acknowledge_alone()
            } else {
                Ok(())
            };
        }
        if now < self.rests_until {
            self.linger(self.rests_until)?;
            self.listen()?;
        }
        let read = self.read_news()?;
        let now = Instant::now();
        let next = self.pacing.polled(read.took, read.entries);
        self.rests_until = match next {
            // What it reads has news: a pause gathers what comes together, and saves Redis nothing beyond that.
            Next::Linger(pause) if !read.is_full => now + pause.min(TOLD_REST_MAX),
            _ => now,
        };
        Ok(())
    }

    /// Connections that are not used for a while are looked after, so that the next use finds them well.
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

    fn block(&self) -> Duration {
        if self.subscriptions.has_unacked() { BLOCK_WITH_UNACKED } else { BLOCK_IDLE }
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

    pub(super) fn report_broken(&mut self, broken: Vec<Subscription>) {
        if broken.is_empty() {
            return;
        }
        self.parts.registry.counters().streams_broken.add(broken.len() as u64);
        let news = broken.into_iter().map(|gone| (gone.transform, LiveNews::Broken(gone.live))).collect();
        self.hand_over(news);
    }

    /// Passes news on to the transform threads. Waiting for room here is what slows reading down when
    /// decoding falls behind; entries meanwhile stay in Redis.
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

    /// One round trip on the idle connection; error replies stay among the replies.
    pub(super) fn trip(&mut self, commands: &[Command]) -> Result<Vec<Reply>, RedisError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let Some(link) = self.parts.connector.open() else { return Err(RedisError::Closed) };
        link.call_all(commands)
    }

    /// The same with the pipeline's commands.
    pub(super) fn make_trip(&mut self) -> Result<Vec<Reply>, RedisError> {
        if self.pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let Some(link) = self.parts.connector.open() else { return Err(RedisError::Closed) };
        link.call_pipeline(&self.pipeline)
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
    pub(super) fn wait(&mut self, until: Instant) -> Result<(), RedisError> {
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
