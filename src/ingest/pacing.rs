//! How long a reader that blocks on its streams pauses between two reads. Pure.
//!
//! One blocking XREAD over many keys costs Redis O(keys) at every wake-up. Without pauses, a thousand live streams
//! make Redis spend most of its time parsing the same command. So a reader keeps a *duty cycle*: after a read that
//! took Redis `cost`, it pauses for `cost × (100 / duty − 1)`, then reads everything that has arrived in one
//! non-blocking read, and blocks only if there was nothing. Time in which it waited for news counts as a pause, so a
//! reader of slow streams wakes once per token. With few streams a read costs some tens of microseconds and the pause
//! is not noticeable; with many streams batches grow.
//!
//! The cost is what the reader can measure: the round-trip time of its non-blocking reads, smoothed so that one slow
//! reply does not delay the following reads.

use std::time::Duration;

/// The weight of the newest cost is 1 in this many.
const SMOOTHING: u32 = 4;

/// The state of the pacing policy.
#[derive(Clone, Copy, Debug)]
pub struct Pacing {
    duty_percent: u32,
    linger_max: Duration,
    cost: Duration,
}

impl Pacing {
    /// A policy that leaves Redis `100 − duty_percent` percent of its time, with pauses of at most `linger_max`.
    #[must_use]
    pub fn new(duty_percent: u32, linger_max: Duration) -> Self {
        Self { duty_percent: duty_percent.clamp(1, 100), linger_max, cost: Duration::ZERO }
    }

    /// How long to pause after a read that took `cost` (zero if unknown), waited for news for `waited`, and returned
    /// `entries` entries.
    #[must_use]
    pub fn pause(&mut self, cost: Duration, waited: Duration, entries: usize) -> Duration {
        if !cost.is_zero() {
            let is_first = self.cost.is_zero();
            self.cost = if is_first { cost } else { (self.cost * (SMOOTHING - 1) + cost) / SMOOTHING };
        }
        if entries == 0 {
            return Duration::ZERO;
        }
        (self.cost * (100 - self.duty_percent) / self.duty_percent)
            .min(self.linger_max)
            .saturating_sub(waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn a_reader_pauses_in_proportion_to_what_its_reads_cost() {
        let mut pacing = Pacing::new(25, Duration::from_millis(20));
        assert_eq!(pacing.pause(Duration::ZERO, Duration::ZERO, 3), Duration::ZERO, "nothing is known");
        assert_eq!(pacing.pause(100 * US, Duration::ZERO, 3), 300 * US);
        assert_eq!(pacing.pause(100 * US, Duration::ZERO, 0), Duration::ZERO);
        assert_eq!(pacing.pause(Duration::ZERO, Duration::ZERO, 1), 300 * US);
        assert_eq!(pacing.pause(Duration::ZERO, 120 * US, 1), 180 * US, "it has rested before the read");
        assert_eq!(pacing.pause(Duration::ZERO, 900 * US, 1), Duration::ZERO);
    }

    #[test]
    fn one_slow_answer_counts_for_a_part() {
        let mut pacing = Pacing::new(50, Duration::from_millis(20));
        assert_eq!(pacing.pause(100 * US, Duration::ZERO, 1), 100 * US);
        assert_eq!(pacing.pause(500 * US, Duration::ZERO, 1), 200 * US);
    }

    proptest::proptest! {
        /// Redis spends at most its share on this reader at any cost of reads, up to the longest pause.
        #[test]
        fn the_duty_cycle_holds(
            duty in 1_u32..=100,
            reads in proptest::collection::vec((1_u64..50_000, 0_u64..100_000), 50..200),
        ) {
            let max = Duration::from_secs(3600);
            let mut pacing = Pacing::new(duty, max);
            let (mut busy, mut idle) = (Duration::ZERO, Duration::ZERO);
            for (cost, waited) in reads {
                let (cost, waited) = (Duration::from_micros(cost), Duration::from_micros(waited));
                busy += cost;
                idle += waited + pacing.pause(cost, waited, 1);
            }
            // Smoothing lags behind by a few reads of the largest cost.
            let slack = Duration::from_micros(50_000 * u64::from(SMOOTHING)) * (100 - duty) / duty;
            proptest::prop_assert!(idle + slack >= busy * (100 - duty) / duty);
        }
    }
}
