//! How long tests wait: so generously that a loaded machine fails none of them, and never longer than
//! until the condition holds.

use std::thread;
use std::time::{Duration, Instant};

/// The deadline of every wait. Only a test that fails ever takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Whether tests that have a long form run in it.
pub(crate) fn is_long() -> bool {
    std::env::var_os("LLM_BRIDGE_LONG").is_some_and(|value| value == "1")
}

/// Looks until there is something, and returns it. Panics with `what` when `PATIENCE` is over.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Looks until it is true. Panics with `what` when `PATIENCE` is over.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}
