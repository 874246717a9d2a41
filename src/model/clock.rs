//! The time by this host's clock and by Redis' clock.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Redis' clock as an offset from this host's clock. All threads read it; the watcher sets it.
#[derive(Debug, Default)]
pub struct RedisClock(AtomicI64);

impl RedisClock {
    /// Sets how far Redis' clock is ahead of this host's, in µs.
    pub fn set_offset_us(&self, offset: i64) {
        self.0.store(offset, Ordering::Relaxed);
    }

    /// Redis' time when this host's clock shows `now_us`; both µs since 1970.
    #[must_use]
    pub fn at(&self, now_us: u64) -> u64 {
        now_us.saturating_add_signed(self.0.load(Ordering::Relaxed))
    }
}

/// This host's clock, µs since 1970.
#[must_use]
pub fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
