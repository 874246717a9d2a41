//! `llm-bridge relay`: workers share the requests in Redis, send them to a model's server, and stream its answers.
//!
//! ```text
//!  XADD llm:requests ──XREADGROUP──▶ main ──jobs──▶ relay-i ──HTTP──▶ model's server
//!        ▲                            │ ◀──dones──┘    └──XADD──▶ llm:stream:…
//!        └────────── XACK ────────────┘
//! ```
//!
//! The main thread owns the claims: it reads, renews, acknowledges. The threads `relay-i` handle one answer at a
//! time.
//!
//! # Exactly one answer
//!
//! A request is acknowledged when its generation has a terminal entry. If a worker dies, another one takes over its
//! claims after the takeover time, and the stream shows how far the answer has progressed. If viewers have seen
//! nothing, the request is answered again under the same generation. If they have seen a part, no worker can continue
//! it, and the answer ends with `relay_lost`. If the answer has its end, only the acknowledgement is missing. A live
//! worker that could not renew its claims writes nothing until it knows that they are still its own. If it was
//! suspended right before a write, Redis discards the write if another worker has taken the stream since.
//!
//! # Bounds
//!
//! At most `concurrency` answers run at once; requests whose stream is busy wait here, at most `PARKED_PER_ANSWER`
//! times as many. Beyond that no new requests are read: they wait in Redis.

mod answer_progress;
mod claims;
mod lease;
mod order;
mod worker;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::claims::Claims;
use self::lease::Lease;
use self::order::{Order, Refused};
use self::worker::{Done, Fate, Job, Worker};
use crate::config::Config;
use crate::model::{Entry, EntryId};
use crate::produce::upstream::Upstream;
use crate::queue::{self, Receiver, Sender};
use crate::redis::{Keys, Target, TargetError};
use crate::thread::{self, Ended, Handle, Outcome};
use crate::{error_limited, warn_limited};

/// How many requests may wait for their stream, per answer that can run at once.
const PARKED_PER_ANSWER: usize = 4;
/// The most bytes of request bodies held here; beyond it no more requests are read.
const HELD_BYTES_MAX: usize = 64 << 20;
/// How long the main thread waits for new requests before it does other work.
const BLOCK: Duration = Duration::from_millis(100);
/// How often a parked request checks whether its stream is free.
const PARKED_FOR: Duration = Duration::from_millis(250);
/// How often a claim is renewed within the time for which it is valid.
const RENEWALS: u32 = 5;
/// How long threads may take after the grace to abandon their answers.
const LEAVE: Duration = Duration::from_secs(5);

/// Limits of a relay, and the server that it asks.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The most answers at once.
    pub concurrency: usize,
    /// After how much silence another worker takes over.
    pub takeover_after: Duration,
    /// How long answers may continue after the request to stop.
    pub grace: Duration,
    /// The model's server.
    pub upstream: Upstream,
}

/// Why a relay ended with a failure.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The configuration does not describe a usable Redis.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The system refused to start a thread.
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
    /// A thread panicked.
    #[error("the thread {0} failed; other workers take over its request")]
    Panicked(String),
    /// Answers were not abandoned in time.
    #[error("{0} answers did not stop in time; other workers take them over")]
    Late(usize),
}

/// Answers requests until `stopping` is set.
///
/// # Errors
/// If it cannot start, or cannot stop in order.
pub fn run(config: &Config, settings: Settings, stopping: &AtomicBool) -> Result<(), RelayError> {
    let target = Target::new(&config.redis)?;
    let (jobs, job_inbox) = queue::bounded("relay-jobs", settings.concurrency);
    let (dones, done_inbox) = queue::bounded("relay-done", settings.concurrency);
    let (ended, reports) = queue::bounded("relay-ended", settings.concurrency);
    let halt = Arc::new(AtomicBool::new(false));
    let (keys, consumer) = (Keys::of(&config.redis, &config.service.name, ""), consumer_name());
    let worker = Worker {
        redis: config.redis.clone(),
        target: target.clone(),
        keys: Arc::new(keys),
        consumer: consumer.clone(),
        upstream: settings.upstream.clone(),
        jobs: job_inbox,
        dones,
    };
    let over = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::with_capacity(settings.concurrency);
    for index in 0..settings.concurrency {
        let (worker, over) = (worker.clone(), Arc::clone(&over));
        let body = move || worker.run(|| over.load(Ordering::Acquire));
        threads.push(thread::spawn(format!("relay-{index}"), &ended, body)?);
    }
    let mut relay = Relay {
        claims: Claims::new(config, target, consumer, settings.takeover_after),
        settings,
        jobs,
        dones: done_inbox,
        running: Vec::new(),
        parked: VecDeque::new(),
        settled: Vec::new(),
        renewed_at: None,
        taken_over_at: None,
        halt,
    };
    relay.claims.tidy(false);
    let failed = relay.work(stopping, &reports);
    let left = relay.drain();
    over.store(true, Ordering::Release);
    relay.claims.tidy(true);
    match failed {
        Some(name) => Err(RelayError::Panicked(name)),
        None if left > 0 => Err(RelayError::Late(left)),
        None => {
            threads.into_iter().for_each(Handle::join);
            Ok(())
        }
    }
}

/// Different for every worker: a restarted worker does not take its former claims for its own.
fn consumer_name() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}-{:x}", crate::config::hostname(), std::process::id(), since.as_micros())
}

/// An answer under way.
struct Running {
    order: Order,
    lease: Lease,
}

/// The main thread.
struct Relay {
    settings: Settings,
    claims: Claims,
    jobs: Sender<Job>,
    dones: Receiver<Done>,
    running: Vec<Running>,
    /// Requests whose stream is busy, and when to check the stream next.
    parked: VecDeque<(Order, Instant)>,
    /// Requests that are finished and have to be acknowledged, or handed back.
    settled: Vec<(Order, Fate)>,
    renewed_at: Option<Instant>,
    taken_over_at: Option<Instant>,
    halt: Arc<AtomicBool>,
}

impl Relay {
    /// Works until it has to stop; returns the name of a thread that failed.
    fn work(&mut self, stopping: &AtomicBool, reports: &Receiver<Ended>) -> Option<String> {
        while !stopping.load(Ordering::Relaxed) {
            if let Some(Ended { name, outcome: Outcome::Panicked }) = reports.try_recv() {
                return Some(name);
            }
            self.keep(Duration::ZERO);
            let now = Instant::now();
            self.look_at_parked(now);
            if !self.has_room() || self.claims.is_away(now) {
                self.keep(BLOCK);
                continue;
            }
            if is_due(self.taken_over_at, now, self.settings.takeover_after / RENEWALS) {
                self.taken_over_at = Some(now);
                while self.has_room()
                    && let Some(entry) = self.claims.take_over()
                {
                    self.accept(&entry, true);
                }
            }
            if self.has_room()
                && let Some(entry) = self.claims.read(BLOCK)
            {
                self.accept(&entry, false);
            }
        }
        None
    }

    /// Whether another request may be read.
    fn has_room(&self) -> bool {
        let parked = self.parked.iter().map(|(order, _)| order);
        let held = self.running.iter().map(|running| &running.order).chain(parked);
        self.parked.len() < self.settings.concurrency * PARKED_PER_ANSWER
            && self.running.len() < self.settings.concurrency
            && held.map(Order::body_bytes).sum::<usize>() < HELD_BYTES_MAX
    }

    /// Lets running answers finish within the grace; returns how many did not.
    fn drain(&mut self) -> usize {
        while let Some((order, _)) = self.parked.pop_front() {
            self.claims.hand_back(order.id);
        }
        let end = Instant::now() + self.settings.grace;
        while !self.running.is_empty() && Instant::now() < end {
            self.keep(BLOCK);
        }
        self.halt.store(true, Ordering::Release);
        let end = Instant::now() + LEAVE;
        while (!self.running.is_empty() || !self.settled.is_empty()) && Instant::now() < end {
            self.keep(BLOCK);
        }
        self.running.len()
    }

    /// Waits up to `wait` for the end of an answer, and renews what is due.
    fn keep(&mut self, wait: Duration) {
        let mut news = self.dones.recv_timeout(wait);
        while let Some(Done { id, fate }) = news {
            if let Some(at) = self.running.iter().position(|running| running.order.id == id) {
                self.settled.push((self.running.swap_remove(at).order, fate));
            }
            news = self.dones.try_recv();
        }
        let settled = std::mem::take(&mut self.settled);
        for (order, fate) in settled {
            if !self.settle(&order, fate) {
                self.settled.push((order, fate));
            }
        }
        let now = Instant::now();
        if is_due(self.renewed_at, now, self.settings.takeover_after / RENEWALS) {
            self.renew(now);
        }
    }

    /// Reports the outcome of a request to Redis; false if that failed.
    fn settle(&mut self, order: &Order, fate: Fate) -> bool {
        let is_settled = match fate {
            Fate::Answered => self.claims.acknowledge(order.id),
            Fate::Unwritable => match self.claims.request(order.id) {
                Some(Some(entry)) => {
                    let why = ("unwritable", "the stream for the answer accepts no entries");
                    self.claims.bury(&entry, Some(&order.name), why)
                }
                Some(None) => self.claims.acknowledge(order.id),
                None => false,
            },
            Fate::Left => {
                self.claims.hand_back(order.id);
                true
            }
            Fate::Lost => true,
        };
        if is_settled {
            self.claims.release(&order.name);
        }
        is_settled
    }

    fn renew(&mut self, now: Instant) {
        let running = self.running.iter().map(|running| (&running.order, true));
        let settled = self.settled.iter().map(|(order, _)| (order, true));
        let parked = self.parked.iter().map(|(order, _)| (order, false));
        let Some(lost) = self.claims.renew(running.chain(settled).chain(parked)) else { return };
        self.renewed_at = Some(now);
        for running in &self.running {
            if lost.contains(&running.order.id) {
                warn_limited!(key: running.order.name; stream = %running.order.name, request = %running.order.id, "another worker has taken over");
                running.lease.lose();
            } else {
                running.lease.renew(now, self.settings.takeover_after);
            }
        }
        self.parked.retain(|(order, _)| !lost.contains(&order.id));
        self.settled.retain(|(order, _)| !lost.contains(&order.id));
    }

    /// Accepts a request that this worker has claimed.
    fn accept(&mut self, entry: &Entry, is_taken_over: bool) {
        if self.has(entry.id) {
            return;
        }
        match order::read(entry, is_taken_over, self.claims.streams()) {
            Ok(order) => self.begin(order, Instant::now()),
            Err(Refused { stream, error }) => {
                warn_limited!(%error, request = %entry.id, requests = self.claims.requests(), "a request that cannot be answered becomes a dead letter");
                // If that fails, the request is claimed again later.
                self.claims.bury(entry, stream.as_ref(), (error.reason(), &error.to_string()));
            }
        }
    }

    fn has(&self, id: EntryId) -> bool {
        self.running.iter().any(|running| running.order.id == id)
            || self.settled.iter().any(|(order, _)| order.id == id)
            || self.parked.iter().any(|(order, _)| order.id == id)
    }

    /// Begins an answer, or parks it until its stream is free.
    fn begin(&mut self, order: Order, now: Instant) {
        let is_behind = self.parked.iter().any(|(other, _)| other.name == order.name);
        let is_free = self.running.len() < self.settings.concurrency;
        if is_behind || !is_free || self.claims.take_lease(&order.name) != Some(true) {
            self.parked.push_back((order, now + PARKED_FOR));
            return;
        }
        let lease = Lease::new(now, self.settings.takeover_after, Arc::clone(&self.halt));
        let job = Job { order: order.clone(), lease: lease.clone() };
        self.running.push(Running { order, lease });
        // The queue has room for one job per thread.
        if let Err(error) = self.jobs.try_send(job) {
            error_limited!(%error, "a request could not be handed to a thread");
        }
    }

    fn look_at_parked(&mut self, now: Instant) {
        // Requests for one stream keep their order: by then, only those before this one are parked again.
        for (order, at) in std::mem::take(&mut self.parked) {
            if at <= now {
                self.begin(order, now);
            } else {
                self.parked.push_back((order, at));
            }
        }
    }
}

fn is_due(last: Option<Instant>, now: Instant, every: Duration) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= every)
}
