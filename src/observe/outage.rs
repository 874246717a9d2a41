//! Log lines about outages of Redis: one record for all connections of the process.
//!
//! Every thread has its own connections, and each detects an outage by itself, again at every attempt. The log names
//! each problem once, with its fix; then how long the outage has lasted, with growing intervals; and when Redis works
//! again. A short success between two failures does not end an outage.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The time without a failure after which an outage is over.
const SETTLED: Duration = Duration::from_secs(2);
/// The time until the log first reports that the outage continues; it doubles after each such line.
const REMINDER_MIN: Duration = Duration::from_secs(60);
/// The longest time between two such lines.
const REMINDER_MAX: Duration = Duration::from_secs(15 * 60);
/// The most different problems that are logged in one outage; further ones are only counted.
const LOGGED_MAX: usize = 8;

/// A problem with Redis and its fix, as messages for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The problem: a sentence without its full stop. It contains no secrets.
    pub what: &'static str,
    /// The fix for an operator.
    pub fix: &'static str,
}

/// A line to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// A problem that this outage has not logged yet.
    Wrong,
    /// No new problem, but the outage continues.
    Lasts {
        /// When the outage began.
        since: Instant,
        /// The number of failures since the last line.
        failures: u64,
    },
    /// Everything works again.
    Over {
        /// How long the outage lasted.
        lasted: Duration,
    },
}

/// The current outage, if there is one.
#[derive(Debug, Default)]
pub(super) struct Outages(Option<Outage>);

#[derive(Debug)]
struct Outage {
    since: Instant,
    /// The roles that have failed and not succeeded since.
    failing: BTreeSet<String>,
    /// Since when no role has been failing.
    well_since: Option<Instant>,
    /// The problems that were logged.
    logged: Vec<Trouble>,
    remind_at: Instant,
    pause: Duration,
    /// The number of failures since the last line.
    failures: u64,
}

impl Outages {
    /// Records that `role` has failed.
    pub(super) fn fails(&mut self, role: &str, trouble: Trouble, now: Instant) -> Option<News> {
        let outage = self.0.get_or_insert_with(|| Outage::new(now));
        if !outage.failing.contains(role) {
            outage.failing.insert(role.to_owned());
        }
        outage.well_since = None;
        outage.failures += 1;
        if !outage.logged.contains(&trouble) && outage.logged.len() < LOGGED_MAX {
            outage.logged.push(trouble);
            outage.remind_at = now + outage.pause;
            outage.failures = 0;
            return Some(News::Wrong);
        }
        if now < outage.remind_at {
            return None;
        }
        outage.pause = (outage.pause * 2).min(REMINDER_MAX);
        outage.remind_at = now + outage.pause;
        Some(News::Lasts { since: outage.since, failures: std::mem::take(&mut outage.failures) })
    }

    /// Records that `role` has succeeded.
    pub(super) fn works(&mut self, role: &str, now: Instant) {
        if let Some(outage) = &mut self.0
            && outage.failing.remove(role)
            && outage.failing.is_empty()
        {
            outage.well_since = Some(now);
        }
    }

    /// Returns the end of the outage once no role has failed for long enough.
    pub(super) fn settle(&mut self, now: Instant) -> Option<News> {
        let outage = self.0.as_ref()?;
        let well_since =
            outage.well_since.filter(|since| now.saturating_duration_since(*since) >= SETTLED)?;
        let lasted = well_since.saturating_duration_since(outage.since);
        self.0 = None;
        Some(News::Over { lasted })
    }
}

impl Outage {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            failing: BTreeSet::new(),
            well_since: None,
            logged: Vec::new(),
            remind_at: now + REMINDER_MIN,
            pause: REMINDER_MIN,
            failures: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: Trouble = Trouble { what: "Redis cannot be reached", fix: "start it" };
    const LOADING: Trouble = Trouble { what: "Redis loads its data", fix: "wait" };

    #[test]
    fn each_problem_is_logged_once_however_many_connections_have_it() {
        let (mut outages, start) = (Outages::default(), Instant::now());
        let mut logged = Vec::new();
        for tick in 0..150 {
            let now = start + Duration::from_millis(100) * tick;
            let trouble = if tick < 100 { REFUSED } else { LOADING };
            for role in ["reader-0", "reader-1", "watcher", "replay-0"] {
                logged.extend(outages.fails(role, trouble, now));
            }
        }
        assert_eq!(logged, [News::Wrong, News::Wrong]);
    }

    #[test]
    fn an_outage_that_lasts_is_logged_less_and_less_often() {
        let (mut outages, start) = (Outages::default(), Instant::now());
        let day = (0..86_400).map(|second| start + Duration::from_secs(second));
        let logged: Vec<News> = day.filter_map(|now| outages.fails("watcher", REFUSED, now)).collect();
        assert_eq!(logged[..2], [News::Wrong, News::Lasts { since: start, failures: 60 }]);
        assert!((90..110).contains(&logged.len()), "{}", logged.len());
    }

    #[test]
    fn it_is_over_when_all_work_and_not_after_a_short_success() {
        let (mut outages, start) = (Outages::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(outages.settle(at(0)), None);
        outages.fails("reader-0", REFUSED, at(0));
        outages.fails("watcher", REFUSED, at(0));
        outages.works("reader-0", at(5));
        assert_eq!(outages.settle(at(60)), None, "one still fails");
        outages.works("watcher", at(60));
        assert_eq!(
            outages.fails("watcher", REFUSED, at(61)),
            Some(News::Lasts { since: start, failures: 2 })
        );
        assert_eq!(outages.settle(at(63)), None, "it has failed since then");
        outages.works("watcher", at(70));
        outages.works("reader-0", at(71));
        assert_eq!(outages.settle(at(71)), None);
        assert_eq!(outages.settle(at(72)), Some(News::Over { lasted: Duration::from_secs(70) }));
        assert_eq!(outages.settle(at(80)), None);
        assert_eq!(outages.fails("reader-0", REFUSED, at(90)), Some(News::Wrong));
    }
}
