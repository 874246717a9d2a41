//! Whether every thread makes progress: the condition for notifying systemd's watchdog.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::pulse::Silence;

/// How long a thread may be silent if systemd's watchdog is off.
const BUDGET: Duration = Duration::from_secs(15);
/// The least time that a thread has for a round, however short the watchdog's timeout is.
const BUDGET_MIN: Duration = Duration::from_secs(1);

/// A change in a thread that has to be reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The thread gives no sign of life.
    Stuck(Silence),
    /// The thread is alive again.
    Recovered(String),
}

/// The threads that were stuck at the last check, and for how long each was silent.
#[derive(Debug)]
pub(super) struct Vitals {
    budget: Duration,
    looked_at: Instant,
    /// Silence counts from this time on: silence while `main` itself did not run does not count.
    counts_from: Instant,
    stuck: BTreeMap<String, Duration>,
}

impl Vitals {
    /// No thread is stuck. `watchdog`: the time without a notification after which systemd would kill the process. A
    /// thread has half of it for a round, so that the log names a stuck thread before the process is killed.
    pub(super) fn new(watchdog: Option<Duration>, now: Instant) -> Self {
        let budget = watchdog.map_or(BUDGET, |patience| (patience / 2).max(BUDGET_MIN));
        Self { budget, looked_at: now, counts_from: now, stuck: BTreeMap::new() }
    }

    /// Whether every thread has made progress recently.
    pub(super) fn is_well(&self) -> bool {
        self.stuck.is_empty()
    }

    /// The names of the stuck threads.
    pub(super) fn stuck(&self) -> impl Iterator<Item = &str> {
        self.stuck.keys().map(String::as_str)
    }

    /// Checks all threads.
    pub(super) fn look(&mut self, silences: Vec<Silence>, now: Instant) -> Vec<News> {
        // The process as a whole was suspended, or the machine was too busy to run it.
        if now.saturating_duration_since(self.looked_at) >= self.budget {
            self.counts_from = now;
        }
        self.looked_at = now;
        let counted = now.saturating_duration_since(self.counts_from);
        let late = silences.into_iter().filter(|silence| silence.lasts.min(counted) >= self.budget);
        let late: BTreeMap<String, Duration> = late.map(|silence| (silence.thread, silence.lasts)).collect();
        let before = std::mem::replace(&mut self.stuck, late);
        let fresh = self.stuck.iter().filter(|(thread, _)| !before.contains_key(*thread));
        let mut news: Vec<News> = fresh
            .map(|(thread, lasts)| News::Stuck(Silence { thread: thread.clone(), lasts: *lasts }))
            .collect();
        let back = before.into_keys().filter(|thread| !self.stuck.contains_key(thread));
        news.extend(back.map(News::Recovered));
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silence(thread: &str, seconds: u64) -> Silence {
        Silence { thread: thread.into(), lasts: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_silent_thread_is_reported_once_and_again_when_it_recovers() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut vitals = Vitals::new(Some(Duration::from_secs(10)), start);
        for second in 1..5 {
            assert_eq!(vitals.look(vec![silence("a", second), silence("b", 0)], at(second)), []);
            assert!(vitals.is_well());
        }
        let news = vitals.look(vec![silence("a", 5), silence("b", 0)], at(5));
        assert_eq!(news, [News::Stuck(silence("a", 5))]);
        assert_eq!(vitals.stuck().collect::<Vec<_>>(), ["a"]);
        assert_eq!(vitals.look(vec![silence("a", 6), silence("b", 1)], at(6)), []);
        assert!(!vitals.is_well());
        assert_eq!(vitals.look(vec![silence("a", 0), silence("b", 2)], at(7)), [News::Recovered("a".into())]);
        assert!(vitals.is_well());
    }

    #[test]
    fn a_thread_that_ended_is_not_stuck() {
        let start = Instant::now();
        let mut vitals = Vitals::new(Some(Duration::from_secs(2)), start);
        vitals.look(vec![silence("a", 0)], start + Duration::from_millis(900));
        vitals.look(vec![silence("a", 1)], start + Duration::from_millis(1800));
        assert!(!vitals.is_well());
        vitals.look(Vec::new(), start + Duration::from_millis(2000));
        assert!(vitals.is_well());
    }

    #[test]
    fn a_process_that_was_stopped_as_a_whole_is_given_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut vitals = Vitals::new(Some(Duration::from_secs(10)), start);
        assert_eq!(vitals.look(vec![silence("a", 60)], at(60)), []);
        assert_eq!(vitals.look(vec![silence("a", 61), silence("b", 61)], at(61)), []);
        assert_eq!(vitals.look(vec![silence("a", 0)], at(62)), []);
        assert!(vitals.is_well());
    }
}
