//! How many connections the process' descriptors allow.
//!
//! The soft limit of `RLIMIT_NOFILE` is 1,024 on most systems, for programs that use select(2); this one does not, so
//! it raises the soft limit to the hard one.

use std::io;

/// Descriptors that are not for clients: links to Redis (up to a few for each of 64 readers and 64 replay threads),
/// epoll, wakers, listeners, admin and stats connections, standard streams, and connections that are accepted only to
/// be refused with 503.
pub const RESERVED: usize = 384;

/// Why no client could be served.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    /// The system call failed.
    #[error("the limit of open files cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    /// The limit does not even suffice for the daemon's own descriptors.
    #[error("the limit of open files is {limit}; at least {} are needed (LimitNOFILE=, ulimit -n)", RESERVED + 1)]
    TooLow {
        /// The limit after the attempt to raise it.
        limit: usize,
    },
}

/// Blocks of at least this size are returned to the system as soon as they are freed: replies with large entries and
/// states.
const MAPPED_BYTES_MIN: libc::c_int = 256 * 1024;

/// Makes the allocator return the memory of large entries. Otherwise glibc keeps freed blocks of up to 32 MiB each,
/// per thread.
pub fn prepare_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes a setting of the allocator, at any time and from any thread.
    let is_set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN) } == 1;
    #[cfg(not(target_env = "gnu"))]
    let is_set = true;
    if !is_set {
        tracing::debug!(bytes = MAPPED_BYTES_MIN, "the allocator keeps its own threshold for large blocks");
    }
}

/// Raises the limit of open files as far as allowed, and returns how many connections fit: at most `max_connections`,
/// fewer if descriptors are short, which is logged.
///
/// # Errors
/// If not a single connection would fit.
pub fn prepare_descriptors(max_connections: usize) -> Result<usize, LimitsError> {
    let limit = raise().map_err(LimitsError::Unreadable)?;
    let fitting = fitting(limit, max_connections).ok_or(LimitsError::TooLow { limit })?;
    if fitting < max_connections {
        tracing::warn!(
            limit,
            max_connections,
            fitting,
            "the limit of open files is too low for client.max_connections; raise LimitNOFILE= or ulimit -n"
        );
    }
    Ok(fitting)
}

/// The connections that fit in addition to the daemon's own descriptors; `None`: none.
fn fitting(limit: usize, max_connections: usize) -> Option<usize> {
    limit.checked_sub(RESERVED).filter(|room| *room > 0).map(|room| room.min(max_connections))
}

/// Raises the soft limit to the hard limit and returns the limit that is then in force.
fn raise() -> io::Result<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a valid `rlimit` that outlives the call, which writes to nothing else.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
        // SAFETY: the pointer is to a valid `rlimit` that outlives the call, which only reads it.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
            limit = raised;
        } else {
            let error = io::Error::last_os_error();
            tracing::warn!(%error, "the limit of open files could not be raised");
        }
    }
    Ok(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_beside_what_the_daemon_needs() {
        for (limit, max, expected) in [
            (1024, 100, Some(100)),
            (1024, 100_000, Some(1024 - RESERVED)),
            (RESERVED + 1, 100, Some(1)),
            (RESERVED, 100, None),
            (0, 100, None),
            (usize::MAX, 10_000_000, Some(10_000_000)),
        ] {
            assert_eq!(fitting(limit, max), expected, "{limit} {max}");
        }
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise().unwrap();
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!((words[3], words[4]), (limit.to_string().as_str(), limit.to_string().as_str()));
        assert_eq!(prepare_descriptors(1).unwrap(), 1);
    }
}
