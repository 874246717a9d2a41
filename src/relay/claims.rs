//! A relay's claims in Redis: reads new requests, takes over those of workers that are gone, and keeps its own.
//!
//! One consumer group distributes the requests ([`ConsumerGroup`]). In addition to its claim, a worker takes the
//! *lease* of the stream, so that two answers never mix in one stream.

use std::time::{Duration, Instant};

use ::redis::{Cmd, ExistenceCheck, SetExpiry, SetOptions, cmd};

use super::order::Order;
use crate::config;
use crate::model::{Entry, EntryId, KeyPattern, NamesShown, StreamName};
use crate::observe::Trouble;
use crate::redis::{Backoff, ConsumerGroup, Keys, Link, Phase, RedisError, Target};
use crate::warn_limited;

/// The shortest and the longest pause between two attempts to connect.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Consumers of the group that were silent for this long and have no claims are removed.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The requests as one worker sees them.
pub(super) struct Claims {
    target: Target,
    keys: Keys,
    /// The requests, with this worker as a consumer.
    group: ConsumerGroup,
    valid: Duration,
    dlq_max_entries: u64,
    link: Option<Link>,
    backoff: Backoff,
    retry_at: Option<Instant>,
}

impl Claims {
    /// The view of the worker `consumer`, whose claims are valid for `valid` without renewal.
    pub(super) fn new(config: &config::Config, target: Target, consumer: String, valid: Duration) -> Self {
        let keys = Keys::of(&config.redis, &config.service.name, "");
        Self {
            target,
            group: ConsumerGroup::new(keys.requests(), keys.relay_group(), consumer),
            keys,
            backoff: Backoff::new(PAUSE_MIN, config.redis.backoff_max, u64::from(std::process::id())),
            valid,
            dlq_max_entries: config.redis.dlq_max_entries,
            link: None,
            retry_at: None,
        }
    }

    /// The key of the stream of requests.
    pub(super) fn requests(&self) -> &str {
        self.group.stream()
    }

    /// The pattern of the streams' keys.
    pub(super) const fn streams(&self) -> &KeyPattern {
        self.keys.streams()
    }

    /// Whether the pause after a failure lasts.
    pub(super) fn is_away(&self, now: Instant) -> bool {
        self.link.is_none() && self.retry_at.is_some_and(|at| at > now)
    }

    /// Runs `ask`. `None`: Redis cannot be reached or does not reply; the next attempt comes after a pause.
    fn ask<T>(&mut self, ask: impl FnOnce(&mut Self, &mut Link) -> Result<T, RedisError>) -> Option<T> {
        if self.is_away(Instant::now()) {
            return None;
        }
        let done = match self.link.take() {
            Some(link) => Ok(link),
            None => self.connect(),
        }
        .and_then(|mut link| ask(self, &mut link).map(|done| (done, link)));
        match done {
            Ok((done, link)) => {
                self.link = Some(link);
                self.retry_at = None;
                self.backoff.reset();
                Some(done)
            }
            Err(error) => {
                let pause = self.backoff.next();
                self.retry_at = Some(Instant::now() + pause);
                let Trouble { what, fix } = error.trouble(Phase::Connected);
                warn_limited!(what, %error, fix, ?pause, "the requests cannot be processed; trying again");
                None
            }
        }
    }

    fn connect(&self) -> Result<Link, RedisError> {
        let mut link = Link::connect(&self.target, "llm-bridge-relay")?;
        self.group.ensure(&mut link)?;
        Ok(link)
    }

    /// Reads a new request; waits up to `block` for one.
    pub(super) fn read(&mut self, block: Duration) -> Option<Entry> {
        self.ask(|claims, link| claims.group.read(link, block)).flatten()
    }

    /// Takes over a request of a worker that is gone.
    pub(super) fn take_over(&mut self) -> Option<Entry> {
        self.ask(|claims, link| claims.group.take_over(link, claims.valid)).flatten()
    }

    /// Takes the lease of a stream; `None` if Redis cannot be asked now.
    pub(super) fn take_lease(&mut self, name: &StreamName) -> Option<bool> {
        let set = self.lease(name, true);
        self.ask(|_, link| link.query::<bool>(&set))
    }

    /// Renews the claims of `orders`, and the leases of those that have one. Returns the orders that another worker
    /// has taken over meanwhile; `None` if that is unknown.
    pub(super) fn renew<'a>(
        &mut self,
        orders: impl Iterator<Item = (&'a Order, bool)>,
    ) -> Option<Vec<EntryId>> {
        let orders: Vec<_> = orders.collect();
        if orders.is_empty() {
            return Some(Vec::new());
        }
        self.ask(|claims, link| {
            let ours = claims.group.claims(link)?;
            let mut lost: Vec<EntryId> =
                orders.iter().map(|(order, _)| order.id).filter(|id| !ours.contains(id)).collect();
            for (order, has_lease) in &orders {
                if *has_lease && !lost.contains(&order.id) && !claims.keep_lease(link, &order.name)? {
                    lost.push(order.id);
                }
            }
            let kept = orders.iter().map(|(order, _)| order.id).filter(|id| !lost.contains(id));
            claims.group.renew(link, kept)?;
            Ok(lost)
        })
    }

    /// The command that takes or renews the lease of a stream, optionally only if it is free.
    fn lease(&self, name: &StreamName, only_if_free: bool) -> Cmd {
        let mut options = SetOptions::default().with_expiration(SetExpiry::PX(millis(self.valid)));
        if only_if_free {
            options = options.conditional_set(ExistenceCheck::NX);
        }
        Cmd::set_options(self.keys.running(name), self.group.consumer(), options)
    }

    /// Acknowledges a request. Returns false if the acknowledgement has to be repeated.
    pub(super) fn acknowledge(&mut self, id: EntryId) -> bool {
        self.ask(|claims, link| claims.group.acknowledge(link, id)).is_some()
    }

    /// Allows another worker to answer the request at once.
    pub(super) fn hand_back(&mut self, id: EntryId) {
        self.ask(|claims, link| claims.group.hand_back(link, id, claims.valid * 2));
    }

    /// Frees the stream for another answer.
    pub(super) fn release(&mut self, name: &StreamName) {
        let key = self.keys.running(name);
        self.ask(|claims, link| match claims.holder(link, &key)? {
            Holder::Us => link.execute(&Cmd::del(&key)).map(drop),
            Holder::Nobody | Holder::Another => link.unwatch(),
        });
    }

    /// Renews the lease of a stream, or takes it again if it has expired; false if another worker has it.
    ///
    /// This worker may be suspended between any two commands for so long that its lease expires and another worker
    /// takes it: then the transaction is discarded, and nothing of the other's is overwritten.
    fn keep_lease(&self, link: &mut Link, name: &StreamName) -> Result<bool, RedisError> {
        let key = self.keys.running(name);
        if self.holder(link, &key)? == Holder::Another {
            link.unwatch()?;
            return Ok(false);
        }
        link.execute(&self.lease(name, false))
    }

    /// The holder of a lease. The key is watched (`WATCH`) from before the read on.
    fn holder(&self, link: &mut Link, key: &str) -> Result<Holder, RedisError> {
        Ok(match link.watch(key)? {
            None => Holder::Nobody,
            Some(holder) if holder == self.group.consumer().as_bytes() => Holder::Us,
            Some(_) => Holder::Another,
        })
    }

    /// Stores a request that nobody can answer as a dead letter, and then acknowledges it: in two transactions,
    /// because the keys are in two slots of a cluster. If the worker dies in between, the request is stored once
    /// more.
    ///
    /// The letter names the request's stream, if it has one, and contains the reason with a message.
    pub(super) fn bury(
        &mut self,
        entry: &Entry,
        stream: Option<&StreamName>,
        (reason, message): (&str, &str),
    ) -> bool {
        let stream = stream.map_or_else(|| self.requests(), StreamName::as_str);
        let message = format!("{message}; fields: {}", NamesShown::of(&entry.fields));
        let mut letter = cmd("XADD");
        letter.arg(self.keys.dlq()).arg(&["MAXLEN", "~"]).arg(self.dlq_max_entries);
        letter.arg(&["*", "stream", stream, "id"]).arg(entry.id);
        letter.arg(&["reason", reason, "message", &message, "processor", "relay", "attempts", "1"]);
        match entry.fields.to_json() {
            Ok(fields) => letter.arg("fields").arg(fields),
            Err(fields) => letter.arg("fields_b64").arg(fields),
        };
        self.ask(|_, link| link.query::<()>(&letter)).is_some() && self.acknowledge(entry.id)
    }

    /// The request as it was written, if it still exists. `None`: Redis cannot be asked now.
    #[allow(clippy::option_option, reason = "an entry that is gone is another answer than no answer")]
    pub(super) fn request(&mut self, id: EntryId) -> Option<Option<Entry>> {
        self.ask(|claims, link| claims.group.entry(link, id))
    }

    /// Removes consumers that are long gone, and at the end this one, so that they do not accumulate.
    pub(super) fn tidy(&mut self, is_end: bool) {
        self.ask(|claims, link| {
            claims.group.remove_consumers(link, |name, idle| {
                if name == claims.group.consumer() { is_end } else { idle > FORGOTTEN_AFTER }
            })
        });
    }
}

/// The holder of a lease, from this worker's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Nobody,
    Us,
    Another,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::order;
    use super::*;
    use crate::redis::testing::RedisServer;

    fn claims(server: &RedisServer, consumer: &str) -> Claims {
        let url = format!("redis.url={}", server.url());
        let config = config::load(None, std::iter::empty(), &[url]).unwrap();
        Claims::new(&config, server.target(), consumer.to_owned(), Duration::from_secs(600))
    }

    fn request(server: &RedisServer) {
        let add = Cmd::xadd("llm:requests", "*", &[("session", "s"), ("model", "m")]);
        server.link().call(&add).unwrap();
    }

    #[test]
    fn claims_of_the_living_hide_none_of_the_dead() {
        let server = RedisServer::start(&[]);
        let (mut one, mut other) = (claims(&server, "one"), claims(&server, "other"));
        (0..50).for_each(|_| request(&server));
        let entries: Vec<Entry> = (0..50).filter_map(|_| one.read(Duration::from_millis(1))).collect();
        assert_eq!(entries.len(), 50);
        assert_eq!(one.read(Duration::from_millis(1)), None);
        assert_eq!(other.take_over(), None);
        one.hand_back(entries[44].id);
        assert_eq!(other.take_over().as_ref(), Some(&entries[44]));
        // The former holder finds out, and keeps the others.
        let orders: Vec<Order> =
            entries.iter().map(|entry| order::read(entry, false, one.streams()).unwrap()).collect();
        let lost = one.renew(orders.iter().map(|order| (order, false)));
        assert_eq!(lost, Some(vec![entries[44].id]));
        assert!(other.acknowledge(entries[44].id));
        one.tidy(true);
        assert_eq!(other.take_over(), None, "a consumer with claims is not removed");
    }

    #[test]
    fn a_stream_is_leased_to_one() {
        let server = RedisServer::start(&[]);
        let (mut one, mut other) = (claims(&server, "one"), claims(&server, "other"));
        request(&server);
        let entry = one.read(Duration::from_millis(1)).unwrap();
        let order = order::read(&entry, false, one.streams()).unwrap();
        assert_eq!(one.take_lease(&order.name), Some(true));
        assert_eq!(other.take_lease(&order.name), Some(false));
        other.release(&order.name);
        assert_eq!(other.take_lease(&order.name), Some(false), "only its holder releases it");
        // An expired lease is taken again, unless another worker was faster.
        server.link().call(&Cmd::del("llm:running:s:m")).unwrap();
        assert_eq!(one.renew([(&order, true)].into_iter()), Some(Vec::new()));
        // A lease that another worker takes between the look and the write remains the other's.
        let (key, mut link) = (one.keys.running(&order.name), server.link());
        assert_eq!(one.holder(&mut link, &key).unwrap(), Holder::Us);
        server.link().call(&Cmd::set(key.as_str(), "other")).unwrap();
        assert!(!link.execute(&one.lease(&order.name, false)).unwrap());
        assert_eq!(one.holder(&mut link, &key).unwrap(), Holder::Another);
        server.link().call(&Cmd::set(key.as_str(), "one")).unwrap();
        one.release(&order.name);
        assert_eq!(other.take_lease(&order.name), Some(true));
        assert_eq!(one.renew([(&order, true)].into_iter()), Some(vec![order.id]));
    }
}
