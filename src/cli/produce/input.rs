//! The input side of a feed: waits for input, splits it into lines, and limits its rate.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd as _, RawFd};
use std::time::{Duration, Instant};

use crate::produce::jsonl;

/// Evenly spaced times, at a rate per second.
#[derive(Debug)]
pub(super) struct Pace {
    step: Duration,
    next: Option<Instant>,
}

impl Pace {
    pub(super) fn new(per_second: u32) -> Self {
        Self { step: Duration::from_secs(1) / per_second, next: None }
    }

    /// How long to wait before the next token. Time lost to a slow input is not made up.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        let next =
            self.next.map_or(now, |next| next.max(now.checked_sub(self.step).unwrap_or(now))) + self.step;
        self.next = Some(next);
        next.saturating_duration_since(now)
    }
}

/// Splits bytes into numbered lines. An incomplete line is kept up to the longest allowed length.
#[derive(Debug, Default)]
pub(super) struct Lines {
    whole: VecDeque<Vec<u8>>,
    partial: Vec<u8>,
    /// The number of lines returned so far.
    pub(super) number: u64,
}

impl Lines {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.whole.push_back(std::mem::take(&mut self.partial));
            }
        }
    }

    /// The next line; at the end of the input also one without its line feed.
    pub(super) fn next(&mut self, at_end: bool) -> Option<(u64, Vec<u8>)> {
        let last = || at_end.then(|| std::mem::take(&mut self.partial)).filter(|line| !line.is_empty());
        let line = self.whole.pop_front().or_else(last)?;
        self.number += 1;
        Some((self.number, line))
    }

    pub(super) fn is_too_long(&self) -> bool {
        self.partial.len() > jsonl::LINE_BYTES_MAX
    }
}

/// Waits until there is input (or its end); false after `wait`, after a signal, or if only `other` is readable.
pub(super) fn wait_readable(
    input: &impl AsFd,
    other: Option<RawFd>,
    wait: Duration,
) -> std::io::Result<bool> {
    let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // poll(2) ignores a negative descriptor.
    let mut polls = [poll(input.as_fd().as_raw_fd()), poll(other.unwrap_or(-1))];
    // Rounded up, so that a wait of less than a millisecond does not spin.
    let wait_ms = i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: `polls` are two valid pollfds, and live for the whole call.
    let ready = unsafe { libc::poll(polls.as_mut_ptr(), 2, wait_ms) };
    if ready >= 0 {
        return Ok(polls[0].revents != 0);
    }
    let error = std::io::Error::last_os_error();
    if error.kind() == std::io::ErrorKind::Interrupted { Ok(false) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_spaces_evenly_and_makes_up_for_nothing() {
        let mut pace = Pace::new(10);
        let start = Instant::now();
        let step = Duration::from_millis(100);
        assert_eq!(pace.wait(start), step);
        assert_eq!(pace.wait(start + step), step);
        assert_eq!(pace.wait(start + step * 2 + step / 4), step - step / 4);
        assert_eq!(pace.wait(start + step * 60), Duration::ZERO);
        assert_eq!(pace.wait(start + step * 60), step);
    }
}
