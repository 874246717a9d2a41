//! Limits how often one place in the code may log.
//!
//! Input and outages can repeat a problem thousands of times per second. [`warn_limited!`], [`error_limited!`] and
//! [`info_limited!`] accept the same arguments as the macros of `tracing`, and keep a limit for each place where they
//! are used: a few lines at once ([`BURST`]), then one per [`INTERVAL`]. The next line of that place has in
//! `left_out` how many were left out before it; if no line follows, [`log_left_out`], which the daemon's main thread
//! calls regularly, logs that number. With `key: expression;` in front, for example the stream's name, the same key
//! is logged once per [`KEY_INTERVAL`], so that one noisy stream does not use up the lines of all others.
//!
//! Lines of level `debug` are not limited, because they are logged only on request.
//!
//! [`warn_limited!`]: crate::warn_limited
//! [`error_limited!`]: crate::error_limited
//! [`info_limited!`]: crate::info_limited

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The most lines that a place may log at once.
pub const BURST: u32 = 5;
/// After how long a place that has used up its burst may log one more line.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// How long a key that was logged is left out.
pub const KEY_INTERVAL: Duration = Duration::from_secs(60);
/// The most keys that a place remembers; the oldest is dropped first.
const KEYS_MAX: usize = 64;

/// Whether a line is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is logged, with the number of lines left out since the last one.
    Log {
        /// The number, if any.
        left_out: Option<u64>,
    },
    /// It is left out, and counted.
    LeaveOut,
}

/// The limit of one place: a token bucket, and the keys that were logged recently.
#[derive(Debug)]
pub struct Limit {
    tokens: u32,
    /// When the bucket was full or got its last token.
    refilled_at: Option<Instant>,
    /// Hashes of the keys that were logged recently, oldest first.
    recent_keys: VecDeque<(u64, Instant)>,
    left_out: u64,
}

impl Limit {
    /// An unused limit.
    #[must_use]
    pub const fn new() -> Self {
        Self { tokens: BURST, refilled_at: None, recent_keys: VecDeque::new(), left_out: 0 }
    }

    /// Decides about one line.
    pub fn decide(&mut self, key: Option<u64>, now: Instant) -> Verdict {
        self.refill(now);
        self.forget_keys(now);
        let is_recent =
            key.is_some_and(|key| self.recent_keys.iter().any(|(recent_keys, _)| *recent_keys == key));
        if is_recent || self.tokens == 0 {
            self.left_out = self.left_out.saturating_add(1);
            return Verdict::LeaveOut;
        }
        self.tokens -= 1;
        if let Some(key) = key {
            if self.recent_keys.len() == KEYS_MAX {
                self.recent_keys.pop_front();
            }
            self.recent_keys.push_back((key, now));
        }
        Verdict::Log { left_out: self.take_left_out() }
    }

    /// How many lines were left out and not reported yet, if a line may be logged now.
    pub fn take_summary(&mut self, now: Instant) -> Option<u64> {
        self.refill(now);
        if self.left_out == 0 || self.tokens == 0 {
            return None;
        }
        self.tokens -= 1;
        self.take_left_out()
    }

    fn take_left_out(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.left_out)).filter(|count| *count > 0)
    }

    fn refill(&mut self, now: Instant) {
        let Some(at) = self.refilled_at.filter(|_| self.tokens < BURST) else {
            self.refilled_at = Some(now);
            return;
        };
        let due = now.saturating_duration_since(at).as_nanos() / INTERVAL.as_nanos();
        let added = u32::try_from(due).unwrap_or(u32::MAX).min(BURST - self.tokens);
        self.tokens += added;
        self.refilled_at = Some(if self.tokens == BURST { now } else { at + INTERVAL * added });
    }

    fn forget_keys(&mut self, now: Instant) {
        while self
            .recent_keys
            .front()
            .is_some_and(|(_, at)| now.saturating_duration_since(*at) >= KEY_INTERVAL)
        {
            self.recent_keys.pop_front();
        }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self::new()
    }
}

/// One place in the code that logs; the macros create one for each use.
#[derive(Debug)]
pub struct Site {
    module: &'static str,
    line: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: Limit,
    /// Whether it is in [`SITES`].
    is_listed: bool,
}

/// The places that have left out a line at least once.
static SITES: Mutex<Vec<&'static Site>> = Mutex::new(Vec::new());

impl Site {
    /// A place that has not logged yet.
    #[must_use]
    pub const fn new(module: &'static str, line: u32) -> Self {
        Self { module, line, state: Mutex::new(State { limit: Limit::new(), is_listed: false }) }
    }

    /// Decides about one line.
    pub fn decide(&'static self, key: Option<u64>) -> Verdict {
        let mut state = self.state.lock();
        let verdict = state.limit.decide(key, Instant::now());
        let is_new = verdict == Verdict::LeaveOut && !std::mem::replace(&mut state.is_listed, true);
        drop(state);
        if is_new {
            SITES.lock().push(self);
        }
        verdict
    }
}

/// Logs for each place how many of its lines were left out, unless a later line of that place has reported it.
pub fn log_left_out(now: Instant) {
    for site in SITES.lock().iter() {
        let take_summary = site.state.lock().limit.take_summary(now);
        if let Some(left_out) = take_summary {
            tracing::warn!(
                module = site.module,
                line = site.line,
                left_out,
                "similar log lines were left out"
            );
        }
    }
}

/// The hash of a key, for the macros.
#[must_use]
pub fn key_of(key: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// Logs like `tracing::warn!`, but not too often: see [`log_limit`](crate::log_limit).
#[macro_export]
macro_rules! warn_limited {
    ($($arguments:tt)+) => { $crate::log_limited!(warn WARN, $($arguments)+) };
}

/// Logs like `tracing::error!`, but not too often: see [`log_limit`](crate::log_limit).
#[macro_export]
macro_rules! error_limited {
    ($($arguments:tt)+) => { $crate::log_limited!(error ERROR, $($arguments)+) };
}

/// Logs like `tracing::info!`, but not too often: see [`log_limit`](crate::log_limit).
#[macro_export]
macro_rules! info_limited {
    ($($arguments:tt)+) => { $crate::log_limited!(info INFO, $($arguments)+) };
}

/// The common implementation of the three macros above.
#[doc(hidden)]
#[macro_export]
macro_rules! log_limited {
    (@ $log:ident $level:ident, $key:expr, $($arguments:tt)+) => {{
        static SITE: $crate::log_limit::Site = $crate::log_limit::Site::new(module_path!(), line!());
        if tracing::enabled!(tracing::Level::$level)
            && let $crate::log_limit::Verdict::Log { left_out } = SITE.decide($key)
        {
            tracing::$log!(left_out, $($arguments)+);
        }
    }};
    ($log:ident $level:ident, key: $key:expr; $($arguments:tt)+) => {
        $crate::log_limited!(@ $log $level, Some($crate::log_limit::key_of(&$key)), $($arguments)+)
    };
    ($log:ident $level:ident, $($arguments:tt)+) => {
        $crate::log_limited!(@ $log $level, None, $($arguments)+)
    };
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    /// How many of `count` lines at `now` are logged.
    fn logged(limit: &mut Limit, count: usize, now: Instant) -> usize {
        (0..count).filter(|_| limit.decide(None, now) != Verdict::LeaveOut).count()
    }

    #[test]
    fn a_flood_is_cut_to_its_burst_and_the_next_line_counts_those_left_out() {
        let (mut limit, start) = (Limit::new(), Instant::now());
        assert_eq!(logged(&mut limit, 20_000, start), BURST as usize);
        assert_eq!(limit.decide(None, start + INTERVAL / 2), Verdict::LeaveOut);
        let left_out = Some(20_001 - u64::from(BURST));
        assert_eq!(limit.decide(None, start + INTERVAL), Verdict::Log { left_out });
        assert_eq!(limit.decide(None, start + INTERVAL), Verdict::LeaveOut);
        assert_eq!(limit.decide(None, start + INTERVAL * 2), Verdict::Log { left_out: Some(1) });
    }

    #[test]
    fn a_lasting_flood_logs_one_line_an_interval() {
        let (mut limit, start) = (Limit::new(), Instant::now());
        let lines: usize = (0..100).map(|tenth| logged(&mut limit, 50, start + INTERVAL * tenth / 10)).sum();
        assert_eq!(lines, BURST as usize + 9);
    }

    #[test]
    fn a_pause_fills_the_bucket_again_and_no_higher() {
        let (mut limit, start) = (Limit::new(), Instant::now());
        assert_eq!(logged(&mut limit, 10, start), BURST as usize);
        assert_eq!(logged(&mut limit, 1_000, start + INTERVAL * 1_000), BURST as usize);
        assert_eq!(logged(&mut limit, 1, start + INTERVAL * 1_001), 1);
    }

    #[test]
    fn the_last_lines_left_out_are_reported_once() {
        let (mut limit, start) = (Limit::new(), Instant::now());
        assert_eq!(limit.take_summary(start), None);
        logged(&mut limit, 12, start);
        assert_eq!(limit.take_summary(start), None, "a summary is a line, too");
        assert_eq!(limit.take_summary(start + INTERVAL), Some(12 - u64::from(BURST)));
        assert_eq!(limit.take_summary(start + INTERVAL * 2), None);
    }

    #[test]
    fn a_noisy_key_leaves_room_for_others() {
        let (mut limit, start) = (Limit::new(), Instant::now());
        let (noisy, other) = (key_of("noisy"), key_of("other"));
        assert_ne!(limit.decide(Some(noisy), start), Verdict::LeaveOut);
        for _ in 0..1_000 {
            assert_eq!(limit.decide(Some(noisy), start), Verdict::LeaveOut);
        }
        assert_eq!(limit.decide(Some(other), start), Verdict::Log { left_out: Some(1_000) });
        assert_ne!(limit.decide(Some(noisy), start + KEY_INTERVAL), Verdict::LeaveOut);
    }

    #[test]
    fn many_keys_neither_flood_the_log_nor_the_memory() {
        let (mut limit, start) = (Limit::new(), Instant::now());
        let mut logged = 0;
        for number in 0..100_000_u32 {
            let now = start + INTERVAL * number / 1_000;
            logged += usize::from(limit.decide(Some(key_of(&number)), now) != Verdict::LeaveOut);
            assert!(limit.recent_keys.len() <= KEYS_MAX);
        }
        assert!(logged <= BURST as usize + 100, "{logged}");
    }

    #[test]
    fn time_that_goes_back_hurts_nobody() {
        let start = Instant::now() + INTERVAL * 10;
        let mut limit = Limit::new();
        logged(&mut limit, 10, start);
        assert_eq!(limit.decide(Some(1), start - INTERVAL * 5), Verdict::LeaveOut);
        assert_ne!(limit.decide(Some(1), start + INTERVAL), Verdict::LeaveOut);
    }

    /// The bytes that were logged.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_use_of_a_macro_has_a_limit_of_its_own() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            let (stream, id) = ("s/m", 7);
            for _ in 0..100 {
                warn_limited!(key: stream; %stream, id, "with a key");
                error_limited!(%stream, "without a key");
                info_limited!("formatted {}", id);
            }
            log_left_out(Instant::now() + INTERVAL);
        });
        let log = String::from_utf8(log.0.lock().clone()).unwrap();
        for (text, count) in [("with a key", 1), ("without a key", 5), ("formatted 7", 5)] {
            assert_eq!(log.matches(text).count(), count, "{log}");
        }
        for left_out in ["left_out=99", "left_out=95"] {
            assert!(log.contains(left_out), "{log}");
        }
    }
}
