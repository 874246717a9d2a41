//! Waiting on one socket with `poll(2)`.

use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crate::pulse;

/// The longest wait without a beat of the thread's pulse.
const SILENCE: Duration = Duration::from_millis(500);

/// The readiness of a socket to wait for, or as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ready {
    /// Reading will not block (or will fail, or find the end).
    pub(super) readable: bool,
    /// Writing will not block (or will fail).
    pub(super) writable: bool,
}

impl Ready {
    pub(super) const READABLE: Self = Self { readable: true, writable: false };
    pub(super) const WRITABLE: Self = Self { readable: false, writable: true };
    pub(super) const EITHER: Self = Self { readable: true, writable: true };
}

/// Waits until the socket is ready for any of `wanted`; `None` at the deadline. Without a deadline: as long as it
/// takes.
pub(super) fn wait(fd: RawFd, wanted: Ready, deadline: Option<Instant>) -> io::Result<Option<Ready>> {
    let mut events = 0;
    if wanted.readable {
        events |= libc::POLLIN;
    }
    if wanted.writable {
        events |= libc::POLLOUT;
    }
    loop {
        pulse::beat();
        let left = deadline.map_or(SILENCE, |deadline| deadline.saturating_duration_since(Instant::now()));
        // Rounded up, so that the deadline has passed when poll returns.
        let left = left.min(SILENCE).saturating_add(Duration::from_nanos(999_999));
        let timeout_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut poll = libc::pollfd { fd, events, revents: 0 };
        // SAFETY: the pointer is to one pollfd that outlives the call.
        let count = unsafe { libc::poll(&raw mut poll, 1, timeout_ms) };
        match count {
            1.. => {
                // Errors and hang-ups are reported when the socket is used.
                let failed = poll.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0;
                return Ok(Some(Ready {
                    readable: failed || poll.revents & libc::POLLIN != 0,
                    writable: failed || poll.revents & libc::POLLOUT != 0,
                }));
            }
            0 => {
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return Ok(None);
                }
            }
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn readiness_and_deadlines_are_reported() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let fd = ours.as_raw_fd();
        let start = Instant::now();
        let deadline = start + Duration::from_millis(5);
        assert_eq!(wait(fd, Ready::READABLE, Some(deadline)).unwrap(), None);
        assert!(Instant::now() >= deadline);
        assert_eq!(wait(fd, Ready::EITHER, None).unwrap(), Some(Ready::WRITABLE));
        theirs.write_all(b"x").unwrap();
        assert_eq!(wait(fd, Ready::READABLE, None).unwrap(), Some(Ready::READABLE));
        drop(theirs);
        assert!(wait(fd, Ready::READABLE, None).unwrap().unwrap().readable);
    }
}
