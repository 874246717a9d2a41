//! Slow rounds of loops, by the thread and by the step that took the longest: while a round lasts, all other work of
//! the thread waits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

/// Rounds that take longer are counted, by step: a fifth of the delay that people notice in text that is being
/// written.
pub const SLOW_ROUND: Duration = Duration::from_millis(20);

/// The slow rounds of one thread in which the same step took the longest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlowRounds {
    /// The thread.
    pub thread: String,
    /// The step.
    pub step: &'static str,
    /// The number of rounds since the start.
    pub count: u64,
    /// The duration of the longest of these rounds, in ms.
    pub longest_ms: u64,
}

/// A thread's name, and a step.
type Place = (String, &'static str);
/// The number of rounds, and the duration of the longest.
type Sum = (u64, Duration);

/// All slow rounds.
#[derive(Debug, Default)]
pub(super) struct Rounds(Mutex<BTreeMap<Place, Sum>>);

impl Rounds {
    /// Counts a round of the calling thread if it was slow.
    pub(super) fn note(&self, round: Round) {
        if round.lasted < SLOW_ROUND {
            return;
        }
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        let mut found = self.0.lock();
        let (count, longest) = found.entry((thread, round.step)).or_default();
        *count += 1;
        *longest = round.lasted.max(*longest);
    }

    pub(super) fn read(&self) -> Vec<SlowRounds> {
        let report = |((thread, step), (count, longest)): (&Place, &Sum)| {
            let longest_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
            SlowRounds { thread: thread.clone(), step, count: *count, longest_ms }
        };
        self.0.lock().iter().map(report).collect()
    }
}

/// A completed round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Its duration.
    pub lasted: Duration,
    /// The step that took the longest.
    pub step: &'static str,
}

/// Times the steps of a round.
#[derive(Debug)]
pub struct RoundTimer {
    began_at: Instant,
    step_began_at: Instant,
    longest: (Duration, &'static str),
}

impl RoundTimer {
    /// Begins the round.
    #[must_use]
    pub const fn begin(now: Instant) -> Self {
        Self { began_at: now, step_began_at: now, longest: (Duration::ZERO, "nothing") }
    }

    /// Ends a step.
    pub fn step_over(&mut self, step: &'static str, now: Instant) {
        let lasted = now.saturating_duration_since(self.step_began_at);
        self.step_began_at = now;
        if lasted > self.longest.0 {
            self.longest = (lasted, step);
        }
    }

    /// Ends the round with its last step.
    #[must_use]
    pub fn end(mut self, step: &'static str, now: Instant) -> Round {
        self.step_over(step, now);
        Round { lasted: now.saturating_duration_since(self.began_at), step: self.longest.1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_rounds_are_counted_by_the_step_that_took_the_longest() {
        let (rounds, now) = (Rounds::default(), Instant::now());
        let ms = Duration::from_millis;
        for (first, second) in [(1, 2), (15, 4), (15, 5), (3, 40), (30, 10)] {
            let mut timer = RoundTimer::begin(now);
            timer.step_over("reading", now + ms(first));
            let round = timer.end("writing", now + ms(first + second));
            assert_eq!(round.lasted, ms(first + second));
            rounds.note(round);
        }
        let found: Vec<_> =
            rounds.read().into_iter().map(|slow| (slow.step, slow.count, slow.longest_ms)).collect();
        assert_eq!(found, [("reading", 2, 40), ("writing", 1, 43)]);
    }
}
