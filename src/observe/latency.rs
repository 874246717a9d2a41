//! How long entries take, stage by stage, as HDR histograms.
//!
//! A thread owns its [`Recorder`] and records without locks; on its tick it publishes the values since the last tick,
//! by adding them to the histograms that all threads share. So a thread that is blocked delays no other: its
//! unpublished values are merely not visible yet.
//!
//! Values are microseconds from 1 µs to 60 s, clamped, with two significant digits: every value is within 1 % of the
//! recorded one, at 20 KiB per stage. A histogram is allocated when its stage is first recorded, because most threads
//! record only one or two.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

/// The least value, in microseconds.
const VALUE_US_MIN: u64 = 1;
/// The greatest value, in microseconds.
const VALUE_US_MAX: u64 = 60_000_000;

const SIGNIFICANT_DIGITS: u8 = 2;

/// A part of an entry's path, or of a thread's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Stage {
    /// From the producer's clock to the daemon's read.
    ProducedToRead,
    /// From the read to the encoded frame.
    ReadToEncoded,
    /// From the encoded frame to the write on a client's socket.
    EncodedToWritten,
    /// From the producer's clock to the write on a client's socket, for entries that were read live.
    EndToEnd,
    /// From the request for history to the frames.
    Replay,
    /// A round of a delivery thread's loop, during which all its other work waits.
    DeliveryRound,
}

impl Stage {
    /// All stages in display order; the index of a stage is its number.
    pub const ALL: [Self; 6] = [
        Self::ProducedToRead,
        Self::ReadToEncoded,
        Self::EncodedToWritten,
        Self::EndToEnd,
        Self::Replay,
        Self::DeliveryRound,
    ];

    /// The name of the stage in all outputs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProducedToRead => "produced_to_read",
            Self::ReadToEncoded => "read_to_encoded",
            Self::EncodedToWritten => "encoded_to_written",
            Self::EndToEnd => "end_to_end",
            Self::Replay => "replay",
            Self::DeliveryRound => "delivery_round",
        }
    }
}

const STAGES: usize = Stage::ALL.len();

type Histograms = [Histogram<u64>; STAGES];

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(VALUE_US_MIN, VALUE_US_MAX, SIGNIFICANT_DIGITS)
        .expect("the bounds are constants that the crate accepts: 1 <= low, 2 * low <= high, digits <= 5")
}

/// The histograms that all threads publish into; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<Published>);

#[derive(Debug)]
struct Published {
    histograms: Mutex<Histograms>,
    /// The number of resets. Changes only while the histograms are locked.
    resets: AtomicU64,
}

impl Shared {
    pub(super) fn new() -> Self {
        let histograms = Mutex::new(std::array::from_fn(|_| histogram()));
        Self(Arc::new(Published { histograms, resets: AtomicU64::new(0) }))
    }

    pub(super) fn recorder(&self) -> Recorder {
        Recorder { own: std::array::from_fn(|_| None), resets: self.resets(), shared: self.clone() }
    }

    /// Clears the histograms, and drops the values that threads have recorded and not published yet.
    pub(super) fn reset(&self) {
        let mut histograms = self.0.histograms.lock();
        histograms.iter_mut().for_each(Histogram::reset);
        self.0.resets.fetch_add(1, Ordering::Relaxed);
    }

    fn resets(&self) -> u64 {
        self.0.resets.load(Ordering::Relaxed)
    }

    /// A copy of the published distributions, so that rendering delays no thread.
    pub(super) fn read(&self) -> Vec<(Stage, Distribution)> {
        let histograms = self.0.histograms.lock().clone();
        Stage::ALL.into_iter().zip(histograms.into_iter().map(Distribution)).collect()
    }
}

/// Records the latencies of one thread.
#[derive(Debug)]
pub struct Recorder {
    own: [Option<Own>; STAGES],
    /// The number of resets before the values in `own` were recorded.
    resets: u64,
    shared: Shared,
}

#[derive(Debug)]
struct Own {
    histogram: Box<Histogram<u64>>,
    is_dirty: bool,
}

impl Recorder {
    /// Records that `stage` took `us` microseconds, clamped to 1 µs … 60 s.
    pub fn record(&mut self, stage: Stage, us: u64) {
        self.record_many(stage, us, 1);
    }

    /// Records that `stage` took `us` microseconds for each of `count` entries.
    pub fn record_many(&mut self, stage: Stage, us: u64, count: u64) {
        self.apply_resets();
        let own = self.own[stage as usize]
            .get_or_insert_with(|| Own { histogram: Box::new(histogram()), is_dirty: false });
        own.histogram.saturating_record_n(us.clamp(VALUE_US_MIN, VALUE_US_MAX), count);
        own.is_dirty |= count > 0;
    }

    /// Adds the values recorded since the last call to the shared histograms. Costs nothing if there are none, and
    /// some microseconds per stage otherwise: meant for a tick of 100 ms to 1 s.
    pub fn publish(&mut self) {
        if !self.own.iter().flatten().any(|own| own.is_dirty) {
            return;
        }
        let published = Arc::clone(&self.shared.0);
        let mut shared = published.histograms.lock();
        self.apply_resets();
        for (own, all) in self.own.iter_mut().zip(shared.iter_mut()) {
            let Some(own) = own.as_mut().filter(|own| own.is_dirty) else { continue };
            all.add(own.histogram.as_ref()).expect("both histograms have the same bounds");
            own.histogram.reset();
            own.is_dirty = false;
        }
    }

    /// Drops the values that were recorded before the last reset.
    fn apply_resets(&mut self) {
        let resets = self.shared.resets();
        if std::mem::replace(&mut self.resets, resets) == resets {
            return;
        }
        for own in self.own.iter_mut().flatten().filter(|own| own.is_dirty) {
            own.histogram.reset();
            own.is_dirty = false;
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.publish();
    }
}

/// The latencies of a stage.
#[derive(Clone, Debug)]
pub struct Distribution(Histogram<u64>);

/// A distribution in a few numbers, in microseconds; all are 0 if nothing was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The number of values.
    pub count: u64,
    /// The median.
    pub p50: u64,
    /// 90 % took at most this.
    pub p90: u64,
    /// 99 % took at most this.
    pub p99: u64,
    /// 99.9 % took at most this.
    pub p999: u64,
    /// The maximum.
    pub max: u64,
    /// The mean.
    pub mean: f64,
}

impl Distribution {
    /// The number of recorded values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The value in µs that `percentile` percent of all values do not exceed; 0 if there are none.
    #[must_use]
    pub fn at(&self, percentile: f64) -> u64 {
        self.0.value_at_percentile(percentile)
    }

    /// How many values are at most `us`, within the histogram's precision.
    #[must_use]
    pub fn count_up_to(&self, us: u64) -> u64 {
        self.0.count_between(0, us)
    }

    /// The sum of all values in µs, within the histogram's precision.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a sum of estimates; 53 bits are more than its digits")]
    pub fn sum_us(&self) -> f64 {
        self.0.mean() * self.0.len() as f64
    }

    /// The usual summary.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.0.len(),
            p50: self.at(50.0),
            p90: self.at(90.0),
            p99: self.at(99.0),
            p999: self.at(99.9),
            max: self.0.max(),
            mean: (self.0.mean() * 10.0).round() / 10.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(shared: &Shared, stage: Stage) -> Summary {
        shared.read()[stage as usize].1.summary()
    }

    #[test]
    fn a_stage_s_place_is_its_number() {
        for (place, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(place, stage as usize);
        }
    }

    #[test]
    fn published_values_are_added_once() {
        let shared = Shared::new();
        let (mut one, mut two) = (shared.recorder(), shared.recorder());
        for us in 1..=100 {
            one.record(Stage::EndToEnd, us);
        }
        two.record_many(Stage::EndToEnd, 100, 100);
        assert_eq!(read(&shared, Stage::EndToEnd).count, 0, "nothing is seen before it is published");
        one.publish();
        one.publish();
        drop(two);
        let seen = read(&shared, Stage::EndToEnd);
        assert_eq!((seen.count, seen.p50, seen.max), (200, 100, 100));
        assert!((seen.mean - 75.2).abs() < 0.2, "{seen:?}");
        assert_eq!(read(&shared, Stage::Replay).count, 0);
        shared.reset();
        assert_eq!(read(&shared, Stage::EndToEnd), read(&shared, Stage::Replay));
        one.record(Stage::EndToEnd, 7);
        one.publish();
        assert_eq!(read(&shared, Stage::EndToEnd).count, 1);
    }

    #[test]
    fn a_reset_drops_values_that_are_not_published_yet() {
        let shared = Shared::new();
        let (mut one, mut two) = (shared.recorder(), shared.recorder());
        one.record(Stage::Replay, 5);
        two.record(Stage::Replay, 6);
        shared.reset();
        one.publish();
        assert_eq!(read(&shared, Stage::Replay).count, 0, "it was recorded before the reset");
        two.record(Stage::Replay, 7);
        two.publish();
        let seen = read(&shared, Stage::Replay);
        assert_eq!((seen.count, seen.max), (1, 7), "only what was recorded after it");
    }

    #[test]
    fn values_out_of_range_are_clamped_and_the_rest_is_within_a_percent() {
        let shared = Shared::new();
        let mut recorder = shared.recorder();
        recorder.record(Stage::Replay, 0);
        recorder.record(Stage::Replay, u64::MAX);
        recorder.record(Stage::ReadToEncoded, 123_456);
        recorder.publish();
        let clamped = shared.read().swap_remove(Stage::Replay as usize).1;
        assert_eq!(clamped.at(1.0), VALUE_US_MIN);
        assert!(clamped.summary().max.abs_diff(VALUE_US_MAX) <= VALUE_US_MAX / 100);
        assert!(read(&shared, Stage::ReadToEncoded).p50.abs_diff(123_456) <= 1_234);
    }

    #[test]
    fn counts_up_to_a_bound_grow_with_it() {
        let shared = Shared::new();
        let mut recorder = shared.recorder();
        for us in [50, 500, 5_000] {
            recorder.record(Stage::EndToEnd, us);
        }
        recorder.publish();
        let distribution = shared.read().swap_remove(Stage::EndToEnd as usize).1;
        let counts = [10, 50, 100, 1_000, 10_000, VALUE_US_MAX].map(|us| distribution.count_up_to(us));
        assert_eq!(counts, [0, 1, 1, 2, 3, 3]);
    }
}
