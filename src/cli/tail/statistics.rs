//! The speed of a generation: the time to its first token, and tokens per second. Pure.
//!
//! Times are taken from the ids of the entries, which come from Redis' clock, not from the arrival of frames here:
//! reading an answer again shows the time that the model took, not the daemon. If ids do not come from a clock, no
//! times are shown. A token is an entry with text or with a piece of a tool call.

use std::fmt::Write as _;

/// Ids below this (2001-09-09) were not chosen by a clock.
const CLOCK_MS_MIN: u64 = 1_000_000_000_000;

/// Tokens and times of one generation.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Statistics {
    /// When the generation began.
    start_ms: Option<u64>,
    first: Option<Frame>,
    last_ms: u64,
    tokens: u64,
}

/// The first frame with tokens.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// When its newest entry was written.
    ms: Option<u64>,
    tokens: u64,
}

impl Statistics {
    /// Begins a generation with this entry.
    pub(crate) fn begin(&mut self, id: Option<&str>) {
        *self = Self { start_ms: id.and_then(time_ms), ..Self::default() };
    }

    /// Adds a frame with `count` tokens, up to this entry.
    pub(crate) fn add(&mut self, id: Option<&str>, count: u64) {
        let ms = id.and_then(time_ms);
        self.first.get_or_insert(Frame { ms, tokens: count });
        self.tokens = self.tokens.saturating_add(count);
        self.last_ms = ms.unwrap_or(self.last_ms);
    }

    /// The summary line of the generation, once; `None` if it had no tokens.
    pub(crate) fn take(&mut self) -> Option<String> {
        let Self { start_ms, first, last_ms, tokens } = std::mem::take(self);
        let first = first?;
        let mut text = String::new();
        if let (Some(start), Some(ms)) = (start_ms, first.ms) {
            // Of merged tokens only the time of the last one is known.
            let word = if first.tokens == 1 { "after" } else { "within" };
            write!(text, "first token {word} {}, ", show_ms(ms.saturating_sub(start))).ok();
        }
        write!(text, "{tokens} {}", if tokens == 1 { "token" } else { "tokens" }).ok();
        // Counts from the time of the first token, excluding that token; otherwise from the start.
        let since = if first.tokens == 1 { first.ms.map(|ms| (ms, 1)) } else { start_ms.map(|ms| (ms, 0)) };
        if let Some((since_ms, not_counted)) = since
            && let span_ms @ 1.. = last_ms.saturating_sub(since_ms)
        {
            let rate_tenths = (tokens - not_counted).saturating_mul(10_000) / span_ms;
            let rate = format!("{}.{}", rate_tenths / 10, rate_tenths % 10);
            write!(text, " in {}, {rate} tokens/s", show_ms(span_ms)).ok();
        }
        Some(text)
    }
}

/// The time of an entry, ms since 1970.
fn time_ms(id: &str) -> Option<u64> {
    let ms = id.split_once('-').map_or(id, |(ms, _)| ms).parse().ok()?;
    (ms >= CLOCK_MS_MIN).then_some(ms)
}

fn show_ms(ms: u64) -> String {
    if ms < 1000 { format!("{ms} ms") } else { format!("{}.{:02} s", ms / 1000, ms % 1000 / 10) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> String {
        format!("{}-0", 1_763_800_000_000 + ms)
    }

    fn text(start: Option<u64>, frames: &[(u64, u64)]) -> Option<String> {
        let mut statistics = Statistics::default();
        statistics.begin(start.map(at).as_deref());
        for &(ms, count) in frames {
            statistics.add(Some(&at(ms)), count);
        }
        statistics.take()
    }

    #[test]
    fn times_are_those_of_the_entries() {
        let live = text(Some(0), &[(350, 1), (400, 1), (1350, 99)]);
        assert_eq!(live.unwrap(), "first token after 350 ms, 101 tokens in 1.00 s, 100.0 tokens/s");
        let merged = text(Some(0), &[(2000, 50)]);
        assert_eq!(merged.unwrap(), "first token within 2.00 s, 50 tokens in 2.00 s, 25.0 tokens/s");
        let resumed = text(None, &[(0, 1), (500, 4)]);
        assert_eq!(resumed.unwrap(), "5 tokens in 500 ms, 8.0 tokens/s");
        assert_eq!(text(None, &[(500, 4)]).unwrap(), "4 tokens");
        assert_eq!(text(Some(0), &[(7, 1)]).unwrap(), "first token after 7 ms, 1 token");
        assert_eq!(text(Some(0), &[]), None);
    }

    #[test]
    fn ids_that_are_no_clock_say_nothing_of_times() {
        let mut statistics = Statistics::default();
        statistics.begin(Some("1-0"));
        for id in [Some("2-0"), Some("900-1.3"), None, Some("x")] {
            statistics.add(id, 2);
        }
        assert_eq!(statistics.take().unwrap(), "8 tokens");
        assert_eq!(statistics.take(), None, "it is said once");
    }

    proptest! {
        #[test]
        fn no_ids_and_counts_upset_it(frames in prop::collection::vec((".{0,20}|[0-9]{1,20}-[0-9]{1,4}", any::<u64>()), 0..9)) {
            let mut statistics = Statistics::default();
            for (number, (id, count)) in frames.iter().enumerate() {
                if number % 3 == 1 {
                    statistics.begin(Some(id));
                }
                statistics.add(Some(id), *count);
            }
            statistics.take();
        }
    }
}
