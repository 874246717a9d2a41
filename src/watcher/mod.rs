//! The watcher thread: everything that concerns the instance as a whole.
//!
//! It holds the instance's lease (`lease`, `identity`) and cleans up after instances that are gone (`groups`). It
//! detects that a stream appears for which viewers wait, by Redis' pushes (`news`) and by polling (`waits`), and it
//! measures Redis' clock. The recorder does all other writing, so the watcher waits only for writes that belong to
//! the lease.
//!
//! It has two connections. One receives pushes and is never waited for; the other sends commands and waits for the
//! replies, which delays nothing outside this thread.
//!
//! INVARIANT: no reader touches a consumer group unless the lease is held.

mod fatal;
mod groups;
mod identity;
mod lease;
mod news;
mod waits;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::redis::{Cmd, cmd};
use mio::{Events, Poll, Token};

pub use self::fatal::Fatal;
use self::groups::Janitor;
pub use self::identity::{ClaimError, Identity};
use self::lease::{Lease, Standing};
use self::news::{News, NewsLink};
use self::waits::Waits;
use crate::message::{RedisClock, ToDelivery, WATCHER, WatcherRequest, now_us};
use crate::model::StreamName;
use crate::observe::{self, Registry};
use crate::pulse;
use crate::queue::{Receiver, SendError, Sender};
use crate::redis::rights::{self, Rights};
use crate::redis::{Connector, Keys, RedisError, ServerError, ServerErrorKind};
use crate::stop::Stop;
use crate::{error_limited, warn_limited};

/// The token by which requests wake the watcher's poll.
pub const REQUESTS: Token = Token(1);
/// The token of the connection for news.
const NEWS: Token = Token(0);

/// The role under which health reports whether the ACL allows what the daemon does.
const RIGHTS: &str = "rights";
/// How often a lost connection is looked after.
const AWAY_CHECK: Duration = Duration::from_millis(100);
/// How many requests are taken before the watcher does anything else.
const REQUESTS_PER_TURN: usize = 1024;
/// How often rights are checked while some are missing.
const RIGHTS_INTERVAL: Duration = Duration::from_secs(5);
/// How long the lease is left alone after Redis refused it.
const LEASE_REFUSED_REST: Duration = Duration::from_secs(1);
/// How often Redis is asked for its time.
const CLOCK_INTERVAL: Duration = Duration::from_secs(5);
/// How often other instances are checked.
const JANITOR_INTERVAL: Duration = Duration::from_secs(60);

/// Connections, queues and shared state of the watcher.
pub struct WatcherParts {
    /// The connection for pushes.
    pub push: Connector,
    /// The connection for commands.
    pub link: Connector,
    /// The names of the keys.
    pub keys: Arc<Keys>,
    /// The watcher's poll, in which `watcher_requests` wakes it as [`REQUESTS`].
    pub poll: Poll,
    /// The watcher's inbox.
    pub watcher_requests: Receiver<WatcherRequest>,
    /// The delivery threads that wait for names.
    pub deliveries: Vec<Sender<ToDelivery>>,
    /// Redis' clock, which the watcher sets.
    pub clock: Arc<RedisClock>,
    /// Whether the lease is held, which the watcher sets.
    pub leased: Arc<AtomicBool>,
    /// The identity of this instance.
    pub identity: Identity,
    /// The watcher's message that the daemon has to stop.
    pub fatal: Fatal,
    /// The metrics.
    pub registry: Arc<Registry>,
    /// Set when the thread is to end.
    pub stop: Stop,
}

/// A running watcher.
pub struct Watcher {
    link: Connector,
    news: NewsLink,
    keys: Arc<Keys>,
    poll: Poll,
    watcher_requests: Receiver<WatcherRequest>,
    deliveries: Vec<Sender<ToDelivery>>,
    clock: Arc<RedisClock>,
    leased: Arc<AtomicBool>,
    identity: Identity,
    fatal: Fatal,
    registry: Arc<Registry>,
    stop: Stop,

    lease: Lease,
    /// The connection on which all rights were found to be granted.
    allowed_on: u64,
    rights_at: Instant,
    /// Whether the groups of this instance's former process were removed.
    is_clean: bool,
    waits: Waits,
    /// Streams that appeared and could not be reported because an inbox was full.
    unsent: Vec<(StreamName, usize)>,
    clock_at: Instant,
    janitor: Janitor,
    janitor_at: Instant,
}

impl Watcher {
    /// A watcher that holds nothing yet.
    #[must_use]
    pub fn new(parts: WatcherParts) -> Self {
        let now = Instant::now();
        let WatcherParts {
            push,
            link,
            keys,
            poll,
            watcher_requests,
            deliveries,
            clock,
            leased,
            identity,
            ..
        } = parts;
        let WatcherParts { fatal, registry, stop, .. } = parts;
        Self {
            link,
            news: NewsLink::new(push, NEWS, now),
            lease: Lease::new(&identity, now),
            keys,
            poll,
            watcher_requests,
            deliveries,
            clock,
            leased,
            identity,
            fatal,
            registry,
            stop,
            allowed_on: 0,
            rights_at: now,
            is_clean: false,
            waits: Waits::new(now),
            unsent: Vec::new(),
            clock_at: now,
            janitor: Janitor::default(),
            janitor_at: now + JANITOR_INTERVAL,
        }
    }

    /// Watches until the daemon stops, then releases the lease.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(8);
        while !self.stop.requested() {
            pulse::beat();
            self.take_requests();
            self.tend_news();
            if let Err(error) = self.tend_redis() {
                self.link.lost(&error, Instant::now());
            }
            self.send_found();
            self.show_lease();
            let timeout = self.sleep_time(Instant::now());
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "the watcher cannot wait");
                return;
            }
        }
        self.end();
    }

    fn sleep_time(&self, now: Instant) -> Duration {
        let is_connected = self.link.is_open() && self.news.is_open();
        let mut until = now + if is_connected { pulse::WAIT_MAX } else { AWAY_CHECK };
        if !self.unsent.is_empty() {
            until = now + Duration::from_millis(2);
        }
        if !self.watcher_requests.is_empty() {
            until = now;
        }
        if let Some(at) = self.waits.next_look(self.news.is_tracking()) {
            until = until.min(at);
        }
        // A check that is due while Redis is down must not keep the thread awake.
        let least = if self.link.is_open() { Duration::ZERO } else { Duration::from_millis(20) };
        until.min(self.lease.next_at().max(now)).saturating_duration_since(now).max(least)
    }

    fn take_requests(&mut self) {
        for _ in 0..REQUESTS_PER_TURN {
            match self.watcher_requests.try_recv() {
                Some(WatcherRequest::Wait { stream, delivery }) => self.waits.wait(stream, delivery),
                Some(WatcherRequest::Forget { stream, delivery }) => {
                    self.waits.forget(&stream, delivery);
                    self.unsent.retain(|(name, who)| (name, *who) != (&stream, delivery));
                }
                None => return,
            }
        }
    }

    // ----- streams that are waited for -----

    fn tend_news(&mut self) {
        let now = Instant::now();
        let wanted = !self.waits.is_empty();
        for news in self.news.tend(self.poll.registry(), &self.keys, wanted, now) {
            match news {
                News::Written(stream) => {
                    self.registry.counters().tracking_pushes.inc();
                    if self.waits.is_waited(&stream) {
                        self.report_found(stream);
                    }
                }
                News::Begun | News::Everything => self.waits.sweep(now),
            }
        }
    }

    /// Polls for the names that are due.
    fn look(&mut self) -> Result<(), RedisError> {
        let now = Instant::now();
        let names = self.waits.take_due(self.news.is_tracking(), now);
        if names.is_empty() {
            return Ok(());
        }
        let exists = |name: &StreamName| Cmd::exists(self.keys.stream(name));
        let Some(link) = self.link.open() else { return Ok(()) };
        let replies = link.call_all(names.iter().map(exists))?;
        self.waits.looked(now.elapsed(), Instant::now());
        for (name, reply) in names.into_iter().zip(replies) {
            if reply.integer()? != 0 {
                self.report_found(name);
            }
        }
        Ok(())
    }

    fn report_found(&mut self, stream: StreamName) {
        for delivery in self.waits.found(&stream) {
            self.unsent.push((stream.clone(), delivery));
        }
        self.send_found();
    }

    fn send_found(&mut self) {
        let deliveries = &self.deliveries;
        self.unsent.retain(|(stream, delivery)| {
            let sent = deliveries[*delivery].try_send(ToDelivery::Appeared(stream.clone()));
            matches!(sent, Err(SendError::Full(_)))
        });
    }

    // ----- commands to Redis -----

    fn tend_redis(&mut self) -> Result<(), RedisError> {
        let now = Instant::now();
        if self.link.link(now).is_none() {
            return Ok(());
        }
        self.tend_rights(now)?;
        self.tend_lease(now)?;
        self.tend_clock(now)?;
        self.look()?;
        if now >= self.janitor_at && self.lease.is_held() {
            self.janitor_at = now + JANITOR_INTERVAL;
            if let Some(link) = self.link.open() {
                match self.janitor.look(link, &self.keys) {
                    Ok(removed) => self.registry.counters().groups_removed.add(removed as u64),
                    Err(RedisError::Server(error)) if !error.kind().is_outage() => {
                        warn_limited!(%error, "Redis refuses to list the instances: none is cleaned up");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Checks on each new connection whether the ACL allows what the daemon does; while it does not, the daemon is
    /// not ready.
    fn tend_rights(&mut self, now: Instant) -> Result<(), RedisError> {
        let generation = self.link.generation();
        let Some(link) = self.link.open() else { return Ok(()) };
        if generation == self.allowed_on || now < self.rights_at {
            return Ok(());
        }
        self.rights_at = now + RIGHTS_INTERVAL;
        match rights::try_all(link, &self.keys)? {
            Rights::Tried(missing) => {
                // `check` reports missing rights that the daemon can do without.
                let vital: Vec<String> =
                    missing.into_iter().filter(|right| right.is_vital).map(|right| right.what).collect();
                if vital.is_empty() {
                    self.allowed_on = generation;
                    self.registry.redis_works(RIGHTS, now);
                } else {
                    self.registry.redis_fails(RIGHTS, rights::MISSING, &vital.join(", "), now);
                }
            }
            // The lease needs these rights too, so it cannot be acquired either.
            Rights::Down(_) => {}
        }
        Ok(())
    }

    fn tend_lease(&mut self, now: Instant) -> Result<(), RedisError> {
        if self.lease.next_at() > now {
            return Ok(());
        }
        let asked_at = Instant::now();
        match self.settle_lease() {
            Err(RedisError::Server(error)) if error.kind() == ServerErrorKind::WrongType => {
                self.lease.refused(asked_at, now + LEASE_REFUSED_REST);
                self.refuse_lease(&self.keys.lease(), &error)?;
            }
            settled => settled?,
        }
        if self.lease.is_held() && !self.is_clean {
            match self.clean() {
                Err(RedisError::Server(error)) if error.kind() == ServerErrorKind::WrongType => {
                    self.lease.rest_until(now + LEASE_REFUSED_REST);
                    self.refuse_lease(&self.keys.groups(), &error)?;
                }
                cleaned => cleaned?,
            }
        }
        Ok(())
    }

    /// A key holds something else: only what needs the lease is affected, and the connection works.
    fn refuse_lease(&mut self, key: &str, error: &ServerError) -> Result<(), RedisError> {
        let fix = "another program wrote this key: check it with TYPE, and delete it";
        error_limited!(key: key; key, %error, fix, "Redis refuses the lease of the instance id");
        self.registry.health().redis_works_but(WATCHER, &format!("{key}: {error}"));
        self.registry.health().set_lease_trouble(&format!("{key}: {error}; {fix}"));
        match self.link.open() {
            Some(link) => link.unwatch(),
            None => Ok(()),
        }
    }

    fn settle_lease(&mut self) -> Result<(), RedisError> {
        let Some(link) = self.link.open() else { return Ok(()) };
        self.lease.settle(link, &self.keys, &self.identity)?;
        match self.lease.standing() {
            Standing::Held { .. } => {
                self.registry.counters().leases_renewed.inc();
                if self.is_clean {
                    self.lease_is_well();
                }
            }
            Standing::Taken { holder } => {
                self.fatal.report(format!(
                    "instance {:?} is leased by another live daemon ({holder}); give service.instance another value or stop that one",
                    self.keys.instance()
                ));
            }
            Standing::Unknown | Standing::Foreign { .. } => {}
        }
        self.link.works();
        Ok(())
    }

    /// Removes what the instance's former process has left.
    fn clean(&mut self) -> Result<(), RedisError> {
        let Some(link) = self.link.open() else { return Ok(()) };
        let removed = groups::clean(link, &self.keys)?;
        groups::enrol(link, &self.keys)?;
        self.registry.counters().groups_removed.add(removed as u64);
        self.is_clean = true;
        self.lease_is_well();
        Ok(())
    }

    fn lease_is_well(&self) {
        self.registry.health().redis_works_but(WATCHER, "");
        self.registry.health().set_lease_trouble("");
    }

    /// Publishes the state of the lease to the readers and to health.
    fn show_lease(&mut self) {
        self.lease.age(Instant::now());
        let is_held = self.lease.is_held() && self.is_clean;
        self.leased.store(is_held, Ordering::Release);
        self.registry.health().set_lease(match self.lease.standing() {
            Standing::Held { .. } if self.is_clean => observe::Lease::Held,
            Standing::Held { .. } | Standing::Unknown => observe::Lease::Unsettled,
            Standing::Foreign { .. } | Standing::Taken { .. } => observe::Lease::Lost,
        });
    }

    fn tend_clock(&mut self, now: Instant) -> Result<(), RedisError> {
        let Some(link) = self.link.open() else { return Ok(()) };
        if now < self.clock_at {
            return Ok(());
        }
        self.clock_at = now + CLOCK_INTERVAL;
        let asked_us = now_us();
        let (seconds, and_us): (u64, u64) = link.query(&cmd("TIME"))?;
        let answered_us = now_us();
        let ours = i64::try_from(asked_us / 2 + answered_us / 2).unwrap_or(i64::MAX);
        let theirs = i64::try_from(seconds.saturating_mul(1_000_000).saturating_add(and_us));
        self.clock.set_offset_us(theirs.unwrap_or(i64::MAX).saturating_sub(ours));
        Ok(())
    }

    /// Releases the lease.
    fn end(&mut self) {
        let result = match self.link.link(Instant::now()) {
            Some(link) => self.lease.release(link, &self.keys),
            None => Ok(()),
        };
        if let Err(error) = result {
            tracing::warn!(%error, "the lease could not be released: it expires by itself");
        }
        self.leased.store(false, Ordering::Release);
    }
}
