//! The limit of open descriptors of this process, which is 1,024 on most machines.

/// Raises the limit as far as allowed, at least to `count`.
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
