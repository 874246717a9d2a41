//! How long tests wait: so long that no test fails on a loaded machine, and never longer than until the condition
//! holds.

use std::thread;
use std::time::{Duration, Instant};

/// The deadline of every wait. Only a failing test takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Whether tests with a long form run in it.
pub(crate) fn is_long() -> bool {
    std::env::var_os("LLM_BRIDGE_LONG").is_some_and(|value| value == "1")
}

/// Polls until there is a value, and returns it. Panics with `what` after `PATIENCE`.
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

/// Polls until the condition holds. Panics with `what` after `PATIENCE`.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}
