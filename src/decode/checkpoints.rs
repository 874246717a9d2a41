//! Checkpoints of scans of long histories, kept for a while so that the next scan need not start at the beginning.
//!
//! A resume needs the state at its position, which depends on all entries before it. A scan of a long stream leaves
//! checkpoints; the next scan continues from the last one before its position. If several jobs need the same stream
//! at the same time, only one scans new entries: the others wait for its checkpoints.
//!
//! A checkpoint is not valid for a stream that was recreated, or from which entries were deleted since. So it
//! contains the entry's id and fingerprint, which are compared with the entry when it is read again, and the stream's
//! counters, which never decrease.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::seek::Scan;
use crate::model::{Entry, EntryId, JobRef, KeyFacts, Position, StreamName};

/// The most bytes of all checkpoints.
pub const CHECKPOINT_BYTES_MAX: usize = 16 << 20;
/// The most checkpoints of one stream, in bytes and in number. Beyond that, every second one is dropped.
const STREAM_BYTES_MAX: usize = 4 << 20;
const STREAM_POINTS_MAX: usize = 1024;
/// How long the checkpoints of an unused stream are kept.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// How long other jobs wait for a scan that makes no progress.
const SCAN_PATIENCE: Duration = Duration::from_secs(1);
/// The counted size of a checkpoint besides its scan, in bytes.
const POINT_BYTES: usize = 128;

/// The state of a scan right after an entry.
pub struct Checkpoint<S = Scan> {
    /// The entry.
    at: EntryId,
    /// The fingerprint of its fields.
    print: u64,
    /// The stream's counters when the entry was read.
    facts: KeyFacts,
    /// How much was scanned up to the entry.
    cost: u64,
    bytes: usize,
    scan: S,
}

impl<S> fmt::Debug for Checkpoint<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint").field("at", &self.at).field("cost", &self.cost).finish_non_exhaustive()
    }
}

impl<S> Checkpoint<S> {
    /// A checkpoint right after `entry`, which a scan has reached at a `cost`; `bytes` is the size of the scan.
    #[must_use]
    pub fn new(entry: &Entry, facts: KeyFacts, scan: S, (cost, bytes): (u64, usize)) -> Self {
        let (at, print, bytes) = (entry.id, entry.fields.fingerprint(), bytes + POINT_BYTES);
        Self { at, print, facts, cost, bytes, scan }
    }

    /// The entry that the checkpoint follows.
    #[must_use]
    pub const fn at(&self) -> EntryId {
        self.at
    }

    /// The scan.
    #[must_use]
    pub const fn scan(&self) -> &S {
        &self.scan
    }

    /// Whether it is valid for the stream as it is now, read from the checkpoint's entry on.
    #[must_use]
    pub fn holds(&self, facts: &KeyFacts, first_read: Option<&Entry>) -> bool {
        let grows = |before: Option<u64>, now: Option<u64>| match (before, now) {
            (Some(before), Some(now)) => now >= before,
            _ => true,
        };
        let removed = |facts: &KeyFacts| facts.added.map(|added| added.saturating_sub(facts.length));
        facts.last_generated >= self.facts.last_generated
            && facts.max_deleted == self.facts.max_deleted
            && grows(self.facts.added, facts.added)
            && grows(removed(&self.facts), removed(facts))
            && first_read.is_some_and(|entry| entry.id == self.at && entry.fields.fingerprint() == self.print)
    }
}

/// How a scan continues.
#[derive(Debug)]
pub enum Way<S = Scan> {
    /// With the next read.
    Read,
    /// From this checkpoint.
    Jump(Arc<Checkpoint<S>>),
    /// Not yet: another scan of the stream is about to pass this position.
    Wait,
}

/// The scan that others wait for.
#[derive(Clone, Copy, Debug)]
struct Leader {
    job: JobRef,
    at: EntryId,
    seen: Instant,
}

/// The checkpoints of one stream, and the scan that others wait for.
#[derive(Debug)]
struct Shelf<S> {
    points: BTreeMap<EntryId, Arc<Checkpoint<S>>>,
    bytes: usize,
    /// The least distance between two checkpoints.
    spacing: u64,
    leader: Option<Leader>,
    used: Instant,
}

impl<S> Shelf<S> {
    fn new(now: Instant) -> Self {
        Self { points: BTreeMap::new(), bytes: 0, spacing: 0, leader: None, used: now }
    }

    fn add(&mut self, point: Checkpoint<S>) {
        let before = self.points.range(..=point.at).next_back();
        let after = self.points.range(point.at..).next();
        let near = |other: &Arc<Checkpoint<S>>| other.cost.abs_diff(point.cost) < self.spacing.max(1);
        if before.into_iter().chain(after).any(|(_, other)| near(other)) {
            return;
        }
        self.bytes += point.bytes;
        self.points.insert(point.at, Arc::new(point));
        if self.points.len() > STREAM_POINTS_MAX || self.bytes > STREAM_BYTES_MAX {
            self.thin_out();
        }
    }

    /// Drops every second checkpoint; the newest one stays.
    fn thin_out(&mut self) {
        let mut keep = self.points.len().is_multiple_of(2);
        self.points.retain(|_, _| {
            keep = !keep;
            keep
        });
        self.bytes = self.points.values().map(|point| point.bytes).sum();
        let costs: Vec<u64> = self.points.values().map(|point| point.cost).collect();
        self.spacing = costs.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap_or(self.spacing);
        if self.bytes > STREAM_BYTES_MAX {
            self.points.clear();
            self.bytes = 0;
        }
    }
}

#[derive(Debug)]
struct Shelves<S> {
    by_stream: HashMap<StreamName, Shelf<S>>,
    bytes: usize,
}

/// The checkpoints of all streams, shared by the threads that read and those that scan.
#[derive(Debug)]
pub struct Checkpoints<S = Scan>(Mutex<Shelves<S>>);

impl<S> Default for Checkpoints<S> {
    fn default() -> Self {
        Self(Mutex::new(Shelves { by_stream: HashMap::new(), bytes: 0 }))
    }
}

impl<S> Checkpoints<S> {
    /// How a job's scan continues that has reached `from` and needs no entry before `target` itself.
    #[must_use]
    pub fn way(
        &self,
        stream: &StreamName,
        job: JobRef,
        (from, target): (EntryId, Position),
        now: Instant,
    ) -> Way<S> {
        let mut shelves = self.0.lock();
        let Some(shelf) = shelves.by_stream.get_mut(stream) else { return Way::Read };
        shelf.used = now;
        let best = shelf.points.range(..=target.id).rev().map(|(_, point)| point);
        let best = best.take_while(|point| point.at > from).find(|point| Position::whole(point.at) <= target);
        if let Some(leader) = shelf.leader
            && leader.job != job
            && now.saturating_duration_since(leader.seen) < SCAN_PATIENCE
            && leader.at >= best.map_or(from, |point| point.at)
            && Position::whole(leader.at) < target
        {
            return Way::Wait;
        }
        best.map_or(Way::Read, |point| Way::Jump(Arc::clone(point)))
    }

    /// Records that a job's scan of a stream has reached `at` and continues.
    pub fn scanning(&self, stream: &StreamName, job: JobRef, at: EntryId, now: Instant) {
        let mut shelves = self.0.lock();
        let shelf = shelves.by_stream.entry(stream.clone()).or_insert_with(|| Shelf::new(now));
        let is_behind = |leader: Leader| {
            leader.job == job || leader.at < at || now.saturating_duration_since(leader.seen) >= SCAN_PATIENCE
        };
        if shelf.leader.is_none_or(is_behind) {
            shelf.leader = Some(Leader { job, at, seen: now });
        }
        shelf.used = now;
    }

    /// Records that a job's scan of a stream is complete.
    pub fn finished(&self, stream: &StreamName, job: JobRef) {
        let mut shelves = self.0.lock();
        let Some(shelf) = shelves.by_stream.get_mut(stream) else { return };
        if shelf.leader.is_some_and(|leader| leader.job == job) {
            shelf.leader = None;
        }
        if shelf.points.is_empty() && shelf.leader.is_none() {
            shelves.by_stream.remove(stream);
        }
    }

    /// Stores a checkpoint if there is room.
    pub fn keep(&self, stream: &StreamName, point: Checkpoint<S>, now: Instant) {
        let mut guard = self.0.lock();
        let shelves = &mut *guard;
        let shelf = shelves.by_stream.entry(stream.clone()).or_insert_with(|| Shelf::new(now));
        let before = shelf.bytes;
        shelf.add(point);
        shelf.used = now;
        shelves.bytes = shelves.bytes - before + shelf.bytes;
        shelves.forget_old(now);
    }

    /// Drops a checkpoint that is not valid, and the others that were made before the stream changed. `first` is the
    /// stream's oldest entry.
    pub fn refute(&self, stream: &StreamName, point: EntryId, first: Option<EntryId>) {
        let mut guard = self.0.lock();
        let shelves = &mut *guard;
        let Some(shelf) = shelves.by_stream.get_mut(stream) else { return };
        let before = shelf.bytes;
        match first {
            // The checkpoint's entry was trimmed, but later ones were not.
            Some(first) if point < first => shelf.points = shelf.points.split_off(&first),
            _ => shelf.points.clear(),
        }
        shelf.bytes = shelf.points.values().map(|point| point.bytes).sum();
        shelves.bytes = shelves.bytes - before + shelf.bytes;
    }

    /// The counted size of all checkpoints, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.0.lock().bytes
    }
}

impl<S> Shelves<S> {
    /// Drops checkpoints that were not used for long, and more if there are too many.
    fn forget_old(&mut self, now: Instant) {
        while self.bytes > CHECKPOINT_BYTES_MAX
            && let Some(oldest) =
                self.by_stream.iter().min_by_key(|(_, shelf)| shelf.used).map(|(stream, _)| stream.clone())
            && let Some(shelf) = self.by_stream.remove(&oldest)
        {
            self.bytes -= shelf.bytes;
        }
        let Self { by_stream, bytes } = self;
        by_stream.retain(|_, shelf| {
            let is_kept = now.saturating_duration_since(shelf.used) < KEPT_FOR;
            *bytes -= if is_kept { 0 } else { shelf.bytes };
            is_kept
        });
    }
}

#[cfg(test)]
#[path = "checkpoints_tests.rs"]
mod tests;
