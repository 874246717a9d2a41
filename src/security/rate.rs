//! How much one client may request: token buckets for connections, subscriptions and cancel requests, and a limit on
//! open connections.
//!
//! A bucket holds twice the rate and starts full. Memory is bounded: [`CLIENTS_MAX`] buckets of each kind, in two
//! generations, of which the older one is dropped when the younger is full; a dropped client starts again with a full
//! bucket. Nothing here reads the clock; several threads share one [`Rates`] in a mutex.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::principal::Principal;
use crate::config;

/// The most buckets of a kind, over both generations.
pub const CLIENTS_MAX: usize = 65_536;

/// Micro-tokens per request: a rate of r per second then adds r of them per microsecond.
const MICRO: u64 = 1_000_000;

/// A request came too soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests; try again in {} s", self.seconds())]
pub struct RetryAfter(pub Duration);

impl RetryAfter {
    /// The value of a `Retry-After` header: whole seconds, at least 1.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        let whole = self.0.as_secs() + u64::from(self.0.subsec_nanos() > 0);
        whole.max(1)
    }
}

/// The rates and limits of all clients.
#[derive(Debug)]
pub struct Rates {
    connects: Buckets,
    subscribes: Buckets,
    cancels: Buckets,
    /// The most open connections of one client; 0: any number.
    per_client: u32,
    /// Only clients with open connections; empty if there is no limit.
    open: HashMap<Principal, u32>,
}

impl Rates {
    /// The state before the first request.
    #[must_use]
    pub fn new(limits: &config::Limits) -> Self {
        Self {
            connects: Buckets::new(limits.connects_per_second),
            subscribes: Buckets::new(limits.subscribes_per_second),
            cancels: Buckets::new(limits.cancels_per_second),
            per_client: limits.per_client,
            open: HashMap::new(),
        }
    }

    /// Counts a new connection against its rate.
    ///
    /// # Errors
    /// If the client exceeds the rate: the time until it does not.
    pub fn connect(&mut self, client: &Principal, now: Instant) -> Result<(), RetryAfter> {
        self.connects.take(client, now)
    }

    /// Counts a subscription against its rate.
    ///
    /// # Errors
    /// If the client exceeds the rate: the time until it does not.
    pub fn subscribe(&mut self, client: &Principal, now: Instant) -> Result<(), RetryAfter> {
        self.subscribes.take(client, now)
    }

    /// Counts a cancel request against its rate.
    ///
    /// # Errors
    /// If the client exceeds the rate: the time until it does not.
    pub fn cancel(&mut self, client: &Principal, now: Instant) -> Result<(), RetryAfter> {
        self.cancels.take(client, now)
    }

    /// Counts an open connection; `false`: the client has reached its limit, and nothing was counted.
    #[must_use]
    pub fn open(&mut self, client: &Principal) -> bool {
        if self.per_client == 0 {
            return true;
        }
        let count = self.open.entry(client.counted()).or_default();
        let is_allowed = *count < self.per_client;
        *count += u32::from(is_allowed);
        is_allowed
    }

    /// Ends a connection that [`Rates::open`] counted: once for each call that returned `true`.
    pub fn close(&mut self, client: &Principal) {
        let client = client.counted();
        if let Some(count) = self.open.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&client);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    micro_tokens: u64,
    refilled_at: Instant,
}

#[derive(Debug)]
struct Buckets {
    /// Requests per second; 0: any number.
    rate: u32,
    /// INVARIANT: each generation holds at most half of [`CLIENTS_MAX`].
    young: HashMap<Principal, Bucket>,
    old: HashMap<Principal, Bucket>,
}

impl Buckets {
    fn new(rate: u32) -> Self {
        Self { rate, young: HashMap::new(), old: HashMap::new() }
    }

    fn take(&mut self, client: &Principal, now: Instant) -> Result<(), RetryAfter> {
        if self.rate == 0 {
            return Ok(());
        }
        let (rate, burst) = (u64::from(self.rate), 2 * u64::from(self.rate) * MICRO);
        let bucket = self.bucket(client.counted(), Bucket { micro_tokens: burst, refilled_at: now });
        bucket.refill(rate, burst, now);
        if let Some(rest) = bucket.micro_tokens.checked_sub(MICRO) {
            bucket.micro_tokens = rest;
            return Ok(());
        }
        Err(RetryAfter(Duration::from_micros((MICRO - bucket.micro_tokens).div_ceil(rate))))
    }

    /// The client's bucket, moved to the young generation; `full` if there was none.
    fn bucket(&mut self, client: Principal, full: Bucket) -> &mut Bucket {
        if !self.young.contains_key(&client) && self.young.len() >= CLIENTS_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        let old = &mut self.old;
        let bucket = old.remove(&client).unwrap_or(full);
        self.young.entry(client).or_insert(bucket)
    }
}

impl Bucket {
    fn refill(&mut self, rate: u64, burst: u64, now: Instant) {
        let elapsed_us = now.saturating_duration_since(self.refilled_at).as_micros();
        // After two seconds every bucket is full, so a longer time need not be multiplied.
        let Some(elapsed_us) = u64::try_from(elapsed_us).ok().filter(|us| *us < 2 * MICRO) else {
            *self = Self { micro_tokens: burst, refilled_at: now };
            return;
        };
        self.micro_tokens = burst.min(self.micro_tokens + elapsed_us * rate);
        // The fraction of a microsecond that was not counted is kept for the next time.
        self.refilled_at += Duration::from_micros(elapsed_us);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn limits(per_client: u32, rate: u32) -> config::Limits {
        config::Limits {
            per_client,
            connects_per_second: rate,
            subscribes_per_second: rate,
            cancels_per_second: rate,
        }
    }

    fn v4(bits: u32) -> Principal {
        Principal::Address(IpAddr::V4(Ipv4Addr::from_bits(bits)))
    }

    #[test]
    fn a_burst_of_twice_the_rate_and_then_the_rate() {
        let (mut rates, start) = (Rates::new(&limits(0, 5)), Instant::now());
        for _ in 0..10 {
            rates.connect(&v4(1), start).unwrap();
        }
        let refused = rates.connect(&v4(1), start).unwrap_err();
        assert_eq!((refused.0, refused.seconds()), (Duration::from_millis(200), 1));
        assert!(rates.connect(&v4(1), start + Duration::from_millis(199)).is_err());
        rates.connect(&v4(1), start + Duration::from_millis(200)).unwrap();
        rates.connect(&v4(2), start).unwrap();
        rates.subscribe(&v4(1), start).unwrap();
        rates.cancel(&v4(1), start).unwrap();
    }

    #[test]
    fn zero_is_off() {
        let (mut rates, now) = (Rates::new(&limits(0, 0)), Instant::now());
        for _ in 0..1000 {
            assert!(rates.connect(&v4(1), now).is_ok() && rates.open(&v4(1)));
        }
        assert_eq!((rates.connects.young.len(), rates.open.len()), (0, 0));
        rates.close(&v4(1));
    }

    #[test]
    fn open_connections_are_capped_and_forgotten_when_closed() {
        let mut rates = Rates::new(&limits(2, 0));
        assert!(rates.open(&v4(1)) && rates.open(&v4(1)) && !rates.open(&v4(1)) && rates.open(&v4(2)));
        rates.close(&v4(1));
        assert!(rates.open(&v4(1)) && !rates.open(&v4(1)));
        for address in [1, 1, 2] {
            rates.close(&v4(address));
        }
        assert!(rates.open.is_empty());
        rates.close(&v4(3));
    }

    #[test]
    fn memory_is_bounded_and_the_busy_are_remembered() {
        let (mut rates, now) = (Rates::new(&limits(0, 1)), Instant::now());
        for address in 0..200_000 {
            rates.connect(&v4(address), now).unwrap();
            // A client that keeps coming is not dropped, however many others come.
            let busy = rates.connect(&v4(u32::MAX), now);
            assert_eq!(busy.is_ok(), address < 2, "{address}");
            assert!(rates.connects.young.len() + rates.connects.old.len() <= CLIENTS_MAX);
        }
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_the_burst(
            rate in 1_u32..50,
            pauses_us in prop::collection::vec(0_u64..300_000, 1..200),
        ) {
            let mut rates = Rates::new(&limits(0, rate));
            let start = Instant::now();
            let (mut now, mut taken) = (start, 0_u64);
            for pause_us in pauses_us {
                now += Duration::from_micros(pause_us);
                match rates.subscribe(&v4(1), now) {
                    Ok(()) => taken += 1,
                    // A client that waits as long as it was asked to is accepted.
                    Err(RetryAfter(wait)) => {
                        now += wait;
                        prop_assert!(rates.subscribe(&v4(1), now).is_ok());
                        taken += 1;
                    }
                }
                let elapsed_us = u64::try_from((now - start).as_micros()).unwrap();
                prop_assert!(taken * MICRO <= u64::from(rate) * (elapsed_us + 2 * MICRO));
            }
        }
    }
}
