//! When a refused request is retried. Pure.
//!
//! Pauses are drawn from the whole of a doubling step (full jitter), so that many clients that were refused together
//! do not return together; a server's `Retry-After` is the minimum.

use std::time::Duration;

/// The longest wait that a server may ask for; beyond it the request fails at once.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);
/// The first step from which a pause is drawn.
const STEP_MIN: Duration = Duration::from_millis(500);
/// The longest step.
const STEP_MAX: Duration = Duration::from_secs(30);

/// How often one request was tried.
#[derive(Clone, Debug)]
pub(super) struct Retries {
    left: u32,
    step: Duration,
    random: u64,
}

impl Retries {
    /// At most `max` retries. Equal seeds give equal pauses.
    #[must_use]
    pub(super) const fn new(max: u32, seed: u64) -> Self {
        // A xorshift never leaves zero, so the state must not be zero.
        Self { left: max, step: STEP_MIN, random: if seed == 0 { 1 } else { seed } }
    }

    /// How long to wait before the next attempt; `None`: there is none.
    pub(super) fn next(&mut self, retry_after: Option<Duration>) -> Option<Duration> {
        let least = retry_after.unwrap_or_default();
        if self.left == 0 || least > RETRY_AFTER_MAX {
            return None;
        }
        self.left -= 1;
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let span_us = u64::try_from(self.step.as_micros()).unwrap_or(u64::MAX - 1) + 1;
        self.step = (self.step * 2).min(STEP_MAX);
        // The jitter is added to the server's wait, so that clients with the same wait return at different times.
        Some(least + Duration::from_micros(self.random % span_us))
    }
}

/// The wait that a `Retry-After` value asks for, in seconds or as an HTTP date; `now` is the time since 1970.
#[must_use]
pub(super) fn retry_after(value: &str, now: Duration) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    http_date(value).map(|at| at.saturating_sub(now))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as the time since 1970.
fn http_date(text: &str) -> Option<Duration> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, date) = text.split_once(", ")?;
    let [day, month, year, time, "GMT"] = date.split(' ').collect::<Vec<_>>()[..] else { return None };
    let month = u64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()? + 1;
    let (day, year) = (day.parse::<u64>().ok()?, year.parse::<u64>().ok()?);
    let parts: Vec<u64> = time.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [hours, minutes, seconds] = parts[..] else { return None };
    if !(1970..=9999).contains(&year)
        || !(1..=31).contains(&day)
        || hours > 23
        || minutes > 59
        || seconds > 60
    {
        return None;
    }
    // A year that begins in March has the leap day at its end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(Duration::from_secs(((days * 24 + hours) * 60 + minutes) * 60 + seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_drawn_from_a_step_that_doubles() {
        for seed in 0..200 {
            let mut retries = Retries::new(9, seed);
            for attempt in 0..9 {
                let step = (STEP_MIN * (1 << attempt)).min(STEP_MAX);
                assert!(retries.next(None).unwrap() <= step);
            }
            assert_eq!(retries.next(None), None);
        }
        let pauses = |seed| Retries::new(1, seed).next(None);
        assert_ne!(pauses(1), pauses(2));
    }

    #[test]
    fn a_server_s_retry_after_is_respected_up_to_a_limit() {
        let mut retries = Retries::new(5, 7);
        let asked = Duration::from_secs(3);
        let pause = retries.next(Some(asked)).unwrap();
        assert!(pause >= asked && pause <= asked + STEP_MIN);
        assert_eq!(retries.next(Some(RETRY_AFTER_MAX + asked)), None);
    }

    #[test]
    fn seconds_and_dates_are_read() {
        let now = Duration::from_secs(784_111_777);
        let read = |value| retry_after(value, now).map(|wait| wait.as_millis());
        assert_eq!((read("0"), read(" 7 "), read("1.5")), (Some(0), Some(7000), Some(1500)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:07 GMT"), Some(30_000));
        assert_eq!(http_date("Thu, 29 Feb 2024 00:00:00 GMT"), Some(Duration::from_secs(1_709_164_800)));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:01 GMT"), Some(Duration::from_secs(1)));
        for bad in ["", "soon", "-1", "NaN", "Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49 GMT"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
