//! The time after which nobody waits for Redis any more, because the process has to end.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// The time; clones share it. Until it is set, waits are not shortened.
#[derive(Clone, Debug, Default)]
pub struct Ending(Arc<OnceLock<Instant>>);

impl Ending {
    /// Sets the time. Only the first call has an effect.
    pub fn set(&self, at: Instant) {
        self.0.get_or_init(|| at);
    }

    /// A deadline, shortened if it lies beyond the ending; `None`: no deadline.
    pub(super) fn bound(&self, deadline: Option<Instant>) -> Option<Instant> {
        let ending = self.0.get().copied();
        deadline.map_or(ending, |deadline| Some(ending.map_or(deadline, |ending| ending.min(deadline))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn deadlines_are_brought_forward_and_never_put_off() {
        let (ending, now) = (Ending::default(), Instant::now());
        let [one, two, three] = [1, 2, 3].map(|n| now + Duration::from_secs(n));
        assert_eq!((ending.bound(None), ending.bound(Some(three))), (None, Some(three)));
        ending.clone().set(two);
        ending.set(three);
        let bounds = [None, Some(one), Some(three)].map(|deadline| ending.bound(deadline));
        assert_eq!(bounds, [Some(two), Some(one), Some(two)]);
    }
}
