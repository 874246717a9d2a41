//! The recorder thread: writes everything that Redis keeps for others, on a connection of its own.
//!
//! It writes requests to cancel (`cancels`), ends of generations that no producer writes (`ends`), dead letters
//! (`letters`), and receipts of what clients have received (`receipts`). Each kind has a queue of its own, bounded in
//! bytes, and a writer that empties it. A turn runs every writer once, in the order of importance: a request to
//! cancel waits for at most one batch of each other kind, and a flood of requests delays a dead letter by no more
//! than one batch.
//!
//! Redis may be down, out of memory or misconfigured, and a key may have another type. Then waiting clients get an
//! error; dead letters and receipts stay in their queues, whose limits push back on the threads that fill them, and
//! are written when Redis accepts them again. A writer that Redis refuses pauses on its own (`pause`): a key of the
//! wrong type stops one writer, not the others.
//!
//! INVARIANT: every transaction touches one key, so that all of it works in a cluster. If two keys have to agree, the
//! order of the writes is such that a crash in between repeats something rather than losing it (`once`).

mod answers;
mod cancels;
mod cap;
mod ends;
mod letters;
mod once;
mod pause;
mod pending;
mod receipts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use self::answers::Answers;
use self::cancels::Cancels;
use self::cap::Cap;
use self::ends::Ends;
use self::letters::Letters;
use self::receipts::Receipts;
use crate::config;
use crate::decode::Milestone;
use crate::message::record::{CancelRequest, DeadLetter, EndGeneration, Receipt, Refused};
use crate::message::{Control, RECORDER, RedisClock, ToDelivery, now_us};
use crate::model::Entry;
use crate::observe::{Counters, Registry};
use crate::pulse;
use crate::queue::{Receiver, Sender};
use crate::redis::{Connector, Keys, Phase, RedisError, Reply, ServerError, ServerErrorKind, Value};
use crate::stop::Stop;

/// The token by which the queues wake the recorder's poll.
pub const RECORDS: Token = Token(0);

/// The shortest and the longest wait while Redis is down.
const AWAY_CHECKS: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(100)];

/// The parts from which a recorder is built.
pub struct RecorderParts {
    /// The connection.
    pub link: Connector,
    /// The names of the keys.
    pub keys: Arc<Keys>,
    /// The recorder's poll, in which the queues wake it as [`RECORDS`].
    pub poll: Poll,
    /// Requests to cancel.
    pub cancels: Receiver<CancelRequest>,
    /// Generations to end.
    pub ends: Receiver<EndGeneration>,
    /// Entries that could not be processed.
    pub letters: Receiver<DeadLetter>,
    /// Acknowledgements of clients, and ends that clients have to acknowledge.
    pub receipts: Receiver<Receipt>,
    /// The delivery threads, which get the outcome of a [`CancelRequest`] or an acknowledgement.
    pub deliveries: Vec<Sender<ToDelivery>>,
    /// Detects beginnings and ends of generations.
    pub milestones: Box<dyn Fn(&Entry) -> Milestone + Send>,
    /// The transform threads, which get the outcome of an [`EndGeneration`].
    pub transforms: Vec<Sender<Control>>,
    /// The clock of Redis.
    pub clock: Arc<RedisClock>,
    /// The limits on what is kept in Redis.
    pub redis: config::Redis,
    /// When generations are judged.
    pub stream: config::Stream,
    /// The metrics.
    pub registry: Arc<Registry>,
    /// Set when the thread is to end.
    pub stop: Stop,
}

/// A running recorder.
pub struct Recorder {
    link: Connector,
    keys: Arc<Keys>,
    poll: Poll,
    clock: Arc<RedisClock>,
    registry: Arc<Registry>,
    stop: Stop,
    cancels: Cancels,
    ends: Ends,
    letters: Letters,
    receipts: Receipts,
    me: String,
}

/// The inputs that every writer gets in a turn.
#[derive(Clone, Copy)]
struct WriteContext<'a> {
    keys: &'a Keys,
    clock: &'a RedisClock,
    counters: &'a Counters,
    /// Now by this host's clock, µs since 1970.
    now_us: u64,
    now: Instant,
    /// The name of this process, which differs from that of any other process and of earlier runs of this instance.
    me: &'a str,
}

impl Recorder {
    /// A recorder that has written nothing yet.
    #[must_use]
    pub fn new(parts: RecorderParts) -> Self {
        let now = Instant::now();
        let RecorderParts { link, keys, poll, cancels, ends, letters, receipts, transforms, .. } = parts;
        let dlq_cap = Cap::new(keys.dlq(), parts.redis.dlq_max_bytes);
        let receipts_cap = Cap::new(keys.receipts(), parts.redis.receipts_max_bytes);
        let RecorderParts { deliveries, milestones, clock, redis, stream, registry, stop, .. } = parts;
        Self {
            link,
            poll,
            cancels: Cancels::new(cancels, Answers::new(deliveries.clone()), milestones),
            ends: Ends::new(ends, transforms),
            letters: Letters::new(letters, (redis.dlq_max_entries, dlq_cap), now),
            receipts: Receipts::new(
                (receipts, Answers::new(deliveries)),
                &stream,
                (redis.receipts_max_entries, receipts_cap),
                now,
            ),
            me: format!("{}:{}:{}", keys.instance(), std::process::id(), now_us()),
            keys,
            clock,
            registry,
            stop,
        }
    }

    /// Writes until the daemon stops, and then writes what is left.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(8);
        while !self.stop.requested() {
            pulse::beat();
            self.turn();
            let timeout = self.sleep_time(Instant::now());
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "the recorder cannot wait");
                return;
            }
        }
        self.end();
    }

    /// One batch of every writer.
    fn turn(&mut self) {
        let now = Instant::now();
        self.link.keep(now);
        if let Err(error) = self.write(now) {
            self.link.lost(&error, Instant::now());
        }
        if !self.link.is_open() {
            self.ends.give_up();
            let why = self.registry.health().trouble().unwrap_or("Redis cannot serve now");
            self.cancels.give_up(now, why);
            self.receipts.give_up(self.registry.counters(), now, why);
        }
    }

    fn write(&mut self, now: Instant) -> Result<(), RedisError> {
        let connection = self.link.generation();
        let Some(link) = self.link.open() else { return Ok(()) };
        let counters = self.registry.counters();
        let context = WriteContext {
            keys: &self.keys,
            clock: &self.clock,
            counters,
            now_us: now_us(),
            now,
            me: &self.me,
        };
        self.cancels.tend(link, context)?;
        self.ends.tend(link, context)?;
        self.letters.tend(link, context)?;
        self.receipts.tend(link, connection, context)?;
        self.link.works();
        self.show();
        Ok(())
    }

    /// Publishes the gauges, and the writers that Redis refuses. The connection itself works, so a refusal is no
    /// reason to send clients to another instance.
    fn show(&self) {
        let gauges = self.registry.gauges();
        gauges.cancels_unwritten.set(signed(self.cancels.unwritten()));
        gauges.letters_in_hand_bytes.set(signed(self.letters.hand_bytes()));
        gauges.receipts_in_hand_bytes.set(signed(self.receipts.hand_bytes()));
        let troubles = [self.letters.trouble(), self.receipts.trouble()];
        let troubles: Vec<String> = troubles.into_iter().flatten().collect();
        self.registry.health().redis_works_but(RECORDER, &troubles.join("; "));
    }

    fn sleep_time(&self, now: Instant) -> Duration {
        let next =
            [self.cancels.next(now), self.ends.next(now), self.letters.next(now), self.receipts.next(now)];
        // Work that waits for Redis to come back must not keep the thread awake.
        let [least, most] = if self.link.is_open() { [Duration::ZERO, pulse::WAIT_MAX] } else { AWAY_CHECKS };
        let until = next.into_iter().flatten().fold(now + most, Instant::min);
        until.saturating_duration_since(now).max(least)
    }

    /// Writes what is left at shutdown, without waiting for Redis to come back.
    fn end(&mut self) {
        loop {
            pulse::beat();
            self.turn();
            let now = Instant::now();
            let next = [
                self.cancels.next(now),
                self.ends.next(now),
                self.letters.next(now),
                self.receipts.next(now),
            ];
            if !self.link.is_open() || next.into_iter().flatten().all(|at| at > now) {
                break;
            }
        }
        let (letters, receipts) = (self.letters.left(), self.receipts.left());
        if letters + receipts > 0 {
            let counters = self.registry.counters();
            counters.dead_letters_failed.add(letters as u64);
            counters.receipts_failed.add(receipts as u64);
            tracing::warn!(letters, receipts, "dead letters and receipts are left that Redis did not accept");
        }
        if self.receipts.unjudged() > 0 {
            let count = self.receipts.unjudged();
            tracing::info!(
                count,
                "this instance stops without judging answers that were not acknowledged yet"
            );
        }
    }
}

/// Why a transaction did not do everything: it was not run, or a command in it failed.
fn refusal(replies: &[Reply]) -> Result<Option<ServerError>, RedisError> {
    if let Some(error) = replies.iter().find_map(Reply::error) {
        return Ok(Some(error));
    }
    let Some(results) = replies.last().map(Reply::value).transpose()? else { return Ok(None) };
    Ok(results.as_array().unwrap_or_default().iter().find_map(|result| match result {
        Value::Error(error) => Some(error.clone()),
        _ => None,
    }))
}

/// Why Redis refuses a write to the key, as a message for a client.
fn refused(key: &str, error: &ServerError) -> Refused {
    if error.kind() == ServerErrorKind::WrongType {
        return Refused::new("wrong_type", format!("the key {key} holds no stream: delete or rename it"));
    }
    let what = RedisError::Server(error.clone()).trouble(Phase::Connected).what;
    Refused::new("redis_refuses", what)
}

fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
