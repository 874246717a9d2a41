//! How much one read asks for, in bytes. Pure.
//!
//! Redis counts entries, not bytes, so a read is bounded by the expected size of an entry: learned per stream from
//! what was read, and a guess until then. The byte limit of a read starts small, doubles when a read comes back full,
//! and is halved when a reply was too large, cut off or late; it then stays below that level for a while. After a
//! second failure, streams of unknown entry size are assumed to have large entries. One entry is always requested,
//! however large it is.

use std::time::{Duration, Instant};

/// The initial limit of a read.
const START_BYTES: usize = 1 << 20;
/// The highest limit of a read.
const MAX_BYTES: usize = 8 << 20;
/// A reply larger than this is abandoned: the entries are much larger than expected.
pub(super) const REPLY_BYTES_MAX: usize = 32 << 20;
/// The lowest limit of a read; a single entry may be larger.
const MIN_BYTES: usize = 4 << 10;
/// The limit may rise above its ceiling again after this long without a failure.
const CEILING_RAISED: Duration = Duration::from_secs(300);
/// How long a failure is remembered, and how long streams of unknown entry size are assumed to have large entries
/// after a second failure.
const WARY: Duration = Duration::from_secs(60);
/// Assumed size of an entry before any entry of its stream was read.
const GUESS_BYTES: usize = 64 << 10;
/// The assumed size after repeated failures.
const WARY_GUESS_BYTES: usize = 1 << 20;
/// Entries above this size are large: such a stream is read and counted in ways that transfer no entry twice.
const LARGE_BYTES: usize = 16 << 10;

/// The size of a stream's entries in bytes, if it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size(Option<usize>);

impl Size {
    /// Records a read whose largest entry took `largest` bytes. A larger size applies at once, a smaller one
    /// gradually.
    pub(super) fn note(&mut self, largest: usize) {
        let before = self.0.unwrap_or(0);
        self.0 = Some(largest.max((before * 7 + largest) / 8));
    }

    /// Whether its entries are known to be small.
    pub(super) fn is_small(self) -> bool {
        self.0.is_some_and(|bytes| bytes <= LARGE_BYTES)
    }

    /// Whether its entries are known to be large.
    pub(super) fn is_large(self) -> bool {
        self.0.is_some_and(|bytes| bytes > LARGE_BYTES)
    }
}

/// The limit of one reader's reads, and the failures that lowered it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    bytes: usize,
    ceiling: usize,
    failed_at: Option<Instant>,
    wary_until: Option<Instant>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: START_BYTES, ceiling: MAX_BYTES, failed_at: None, wary_until: None }
    }
}

impl Budget {
    /// The limit of the next read, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The expected size of one entry of a stream, in bytes.
    pub(super) fn entry_bytes(&self, size: Size, now: Instant) -> usize {
        let guess = if self.is_wary(now) { WARY_GUESS_BYTES } else { GUESS_BYTES };
        size.0.unwrap_or(guess).max(1)
    }

    /// Whether reads have failed recently, perhaps because they asked for too much. A single failure proves nothing:
    /// Redis may have restarted.
    pub(super) fn is_wary(&self, now: Instant) -> bool {
        self.wary_until.is_some_and(|until| now < until)
    }

    /// Records that a read returned as much as it was allowed to.
    pub(super) fn was_full(&mut self, now: Instant) {
        if self.failed_at.is_some_and(|at| now.duration_since(at) >= CEILING_RAISED) {
            self.ceiling = (self.ceiling * 2).min(MAX_BYTES);
            self.failed_at = (self.ceiling < MAX_BYTES).then_some(now);
        }
        self.bytes = (self.bytes * 2).min(self.ceiling);
    }

    /// Records that a reply was too large, late, or cut off.
    pub(super) fn failed(&mut self, now: Instant) {
        self.bytes = (self.bytes / 2).max(MIN_BYTES);
        self.ceiling = self.bytes;
        if self.failed_at.is_some_and(|at| now.duration_since(at) < WARY) {
            self.wary_until = Some(now + WARY);
        }
        self.failed_at = Some(now);
    }
}

/// Streams that one command reads, and how many entries of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share<T> {
    pub(super) streams: Vec<T>,
    pub(super) count: usize,
    /// Whether `count` is lower than it would be without the byte limit.
    pub(super) is_bounded_by_bytes: bool,
}

/// Divides streams, each with the size of its entries, into commands that together bring at most `bytes`, with at
/// most `count_max` entries per stream. Returns the streams for which there is no room; the first stream always has
/// room.
pub(super) fn divide<T>(
    streams: impl IntoIterator<Item = (T, usize)>,
    bytes: usize,
    count_max: usize,
) -> (Vec<Share<T>>, Vec<T>) {
    let (mut small, mut large, mut left) = (Vec::new(), Vec::new(), Vec::new());
    let mut taken = 0_usize;
    let mut small_bytes = 0_usize;
    for (stream, entry_bytes) in streams {
        if taken > 0 && taken.saturating_add(entry_bytes) > bytes {
            left.push(stream);
            continue;
        }
        taken = taken.saturating_add(entry_bytes);
        if entry_bytes > LARGE_BYTES {
            large.push((stream, entry_bytes));
        } else {
            small_bytes += entry_bytes;
            small.push(stream);
        }
    }
    // There is room for one entry of each stream; the remainder is divided in proportion.
    let each = (bytes / taken.max(1)).clamp(1, count_max);
    let mut shares = Vec::new();
    if !small.is_empty() {
        let large_bytes = taken - small_bytes;
        let count =
            (bytes.saturating_sub(large_bytes.saturating_mul(each)) / small_bytes.max(1)).clamp(1, count_max);
        shares.push(Share { streams: small, count, is_bounded_by_bytes: count < count_max });
    }
    shares.extend(large.into_iter().map(|(stream, _)| Share {
        streams: vec![stream],
        count: each,
        is_bounded_by_bytes: each < count_max,
    }));
    (shares, left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_grows_by_full_reads_and_stays_below_what_failed() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        (0..9).for_each(|_| budget.was_full(now));
        assert_eq!(budget.bytes(), MAX_BYTES);
        budget.failed(now);
        assert_eq!((budget.bytes(), budget.is_wary(now)), (MAX_BYTES / 2, false));
        budget.was_full(now + WARY);
        assert_eq!(budget.bytes(), MAX_BYTES / 2);
        budget.was_full(now + CEILING_RAISED);
        assert_eq!(budget.bytes(), MAX_BYTES);
        (0..99).for_each(|_| budget.failed(now + CEILING_RAISED));
        assert_eq!(budget.bytes(), MIN_BYTES);
        assert!(budget.is_wary(now + CEILING_RAISED) && !budget.is_wary(now + CEILING_RAISED + WARY));
    }

    #[test]
    fn sizes_are_learnt_upwards_at_once() {
        let (budget, now) = (Budget::default(), Instant::now());
        let mut size = Size::default();
        assert_eq!(budget.entry_bytes(size, now), GUESS_BYTES);
        size.note(100);
        assert_eq!((budget.entry_bytes(size, now), size.is_large()), (100, false));
        size.note(1 << 20);
        assert_eq!((budget.entry_bytes(size, now), size.is_large()), (1 << 20, true));
        size.note(100);
        assert!(budget.entry_bytes(size, now) < 1 << 20);
        let mut wary = budget;
        (0..2).for_each(|_| wary.failed(now));
        assert_eq!(wary.entry_bytes(Size::default(), now), WARY_GUESS_BYTES);
    }

    #[test]
    fn small_streams_share_a_command_and_large_ones_have_their_own() {
        let (shares, left) = divide([(1, 100), (2, 300), (3, 400_000)], 1_000_000, 16);
        assert!(left.is_empty());
        let small = Share { streams: vec![1, 2], count: 16, is_bounded_by_bytes: false };
        let large = Share { streams: vec![3], count: 2, is_bounded_by_bytes: true };
        assert_eq!(shares, [small, large]);
    }

    #[test]
    fn one_entry_is_always_asked_for() {
        let (shares, left) = divide([(1, 8 << 20), (2, 100)], 4096, 16);
        assert_eq!((shares.len(), shares[0].count, left), (1, 1, vec![2]));
        assert_eq!(divide::<u8>([], 4096, 16), (vec![], vec![]));
    }

    proptest::proptest! {
        /// The commands never ask for more than is allowed, except for a single entry, and no stream is forgotten.
        #[test]
        fn requests_stay_within_the_bytes(
            sizes in proptest::collection::vec(1_usize..3_000_000, 1..60),
            bytes in 1_usize..10_000_000,
            count_max in 1_usize..300,
        ) {
            let (shares, left) = divide(sizes.iter().copied().enumerate(), bytes, count_max);
            let asked: usize =
                shares.iter().map(|share| share.count * share.streams.iter().map(|&n| sizes[n]).sum::<usize>()).sum();
            let streams: usize = shares.iter().map(|share| share.streams.len()).sum();
            let is_one_entry = streams == 1 && shares[0].count == 1;
            proptest::prop_assert!(asked <= bytes || is_one_entry, "{} of {}", asked, bytes);
            proptest::prop_assert!(shares.iter().all(|share| (1..=count_max).contains(&share.count)));
            proptest::prop_assert_eq!(streams + left.len(), sizes.len());
        }
    }
}
