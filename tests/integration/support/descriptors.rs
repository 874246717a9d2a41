//! How many descriptors this process may have open, which on most machines is 1,024 at first.

/// Raises the limit as far as is allowed, at least to so many.
pub(crate) fn allow_descriptors(count: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) and setrlimit(2) read and write nothing but the structure they are given.
    let done = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    assert!(done && limit.rlim_cur >= count, "{count} descriptors are needed, {} allowed", limit.rlim_cur);
}
