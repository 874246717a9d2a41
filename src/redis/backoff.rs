//! Pauses between two attempts: growing, bounded, and different for every client that waits.

use std::time::Duration;

/// Doubles from `base` to `max`; every pause is drawn from the upper half of its step, so that clients that lost the
/// same server do not reconnect at the same time.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    attempts: u32,
    random: u64,
}

impl Backoff {
    /// Pauses from `base` to `max`. Equal seeds give equal pauses.
    #[must_use]
    pub const fn new(base: Duration, max: Duration, seed: u64) -> Self {
        // A xorshift never leaves zero, so the state must not be zero.
        let random = seed ^ 0x9e37_79b9_7f4a_7c15;
        Self { base, max, attempts: 0, random: if random == 0 { 1 } else { random } }
    }

    /// How long to wait before the next attempt.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator that never ends would only invite collecting it"
    )]
    pub fn next(&mut self) -> Duration {
        let step =
            self.base.saturating_mul(1_u32.checked_shl(self.attempts).unwrap_or(u32::MAX)).min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let half = step / 2;
        let span = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX - 1) + 1;
        step - Duration::from_nanos(self.random % span)
    }

    /// How many pauses were taken since the last success.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Starts over after a success.
    pub const fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(5);

    #[test]
    fn pauses_double_up_to_the_bound() {
        for seed in [0, 1, 7, u64::MAX, 0x9e37_79b9_7f4a_7c15] {
            let mut backoff = Backoff::new(BASE, MAX, seed);
            for attempt in 0..200 {
                let step = BASE.saturating_mul(1 << attempt.min(20)).min(MAX);
                let pause = backoff.next();
                assert!(pause >= step / 2 && pause <= step, "{attempt}: {pause:?} of {step:?}");
            }
            backoff.reset();
            assert!(backoff.next() <= BASE);
        }
    }

    #[test]
    fn seeds_differ() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(BASE, MAX, seed);
            std::array::from_fn::<_, 5, _>(|_| backoff.next())
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
    }

    #[test]
    fn nothing_is_a_pause_too() {
        assert_eq!(Backoff::new(Duration::ZERO, MAX, 1).next(), Duration::ZERO);
        let mut endless = Backoff::new(Duration::MAX, Duration::MAX, 1);
        assert!(endless.next() >= Duration::MAX / 2);
    }
}
