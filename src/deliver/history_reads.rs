//! The history reads of a delivery thread: those to be sent, those under way, those to be retried, and the viewers
//! that share each.
//!
//! Viewers of one stream that want the same part of it share a read: one that was requested in the same round, or one
//! that is under way. This module does not access queues or connections: its owner sends the reads and passes the
//! results to the viewers.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::Share;
use super::sharing::JobKind;
use super::table::Table;
use crate::message::Slot;
use crate::model::StreamName;
use crate::observe::Registry;

/// How many jobs may be under way for viewers that have left.
const STALE_JOBS_MAX: usize = 1024;
/// The pause before a history read is retried while Redis is unavailable: the first one, and the longest.
const UNAVAILABLE_RETRY: Duration = Duration::from_millis(100);
const UNAVAILABLE_RETRY_MAX: Duration = Duration::from_secs(2);

/// A history read for some viewers of one stream.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) stream: StreamName,
    pub(super) hub: Slot,
    pub(super) viewers: Vec<Slot>,
    /// How many of the viewers joined before the read was last sent; 0 before it was sent. The others may know of
    /// newer entries than the read finds.
    pub(super) on_time: usize,
    pub(super) kind: JobKind,
    /// Whether one of the viewers needs the outline of the generation before its start.
    pub(super) outlined: bool,
    /// How many times in a row Redis was unavailable.
    pub(super) attempts: u32,
    /// The part of the shared budget that a JSON state takes while it is assembled.
    pub(super) share: Option<Share>,
    /// The bytes that each viewer's connection has reserved for the result; 0 before the read was sent.
    pub(super) budget_bytes: usize,
}

/// A viewer that requests a read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    pub(super) viewer: Slot,
    pub(super) hub: Slot,
    pub(super) stream: &'a StreamName,
    /// Whether it gets another format, which needs the outline of the generation before its start.
    pub(super) translated: bool,
}

impl Reader<'_> {
    /// Whether the result must include the outline of the generation up to the viewer's start.
    const fn needs_outline(&self, kind: &JobKind) -> bool {
        self.translated && matches!(kind, JobKind::Open(_) | JobKind::Around(_))
    }
}

/// The reads of all viewers of the thread.
pub(super) struct HistoryReads {
    jobs: Table<Job>,
    by_hub: HashMap<Slot, Vec<Slot>>,
    /// Jobs that were created and not sent yet, oldest first.
    fresh: Vec<Slot>,
    /// Jobs to be retried, by time.
    retries: BTreeSet<(Instant, Slot)>,
    registry: Arc<Registry>,
}

impl HistoryReads {
    /// Creates an empty set.
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        let (by_hub, fresh, retries) = (HashMap::new(), Vec::new(), BTreeSet::new());
        Self { jobs: Table::default(), by_hub, fresh, retries, registry }
    }

    // ----- requesting -----

    /// Adds the viewer to a read that it can share, or to a new one. If that read is under way, returns the bytes that
    /// it may bring, which are at most `room`. Redis may have answered such a read already, so its result says nothing
    /// about the stream's end.
    pub(super) fn request(&mut self, reader: Reader<'_>, kind: &JobKind, room: usize) -> Option<usize> {
        let promised = self.join_under_way(reader, kind, room);
        if promised.is_none() {
            self.join_fresh(reader, kind.widened());
        }
        promised
    }

    /// Adds the viewer to a read of exactly `kind`, because a read that begins earlier did not serve it.
    pub(super) fn request_exactly(&mut self, reader: Reader<'_>, kind: JobKind) {
        self.join_fresh(reader, kind);
    }

    fn join_under_way(&mut self, reader: Reader<'_>, kind: &JobKind, room: usize) -> Option<usize> {
        let needs_outline = reader.needs_outline(kind);
        let job = self.find(reader.hub, |job| {
            job.on_time > 0
                && job.kind.covers(kind)
                && job.attempts == 0
                && job.budget_bytes <= room
                && (job.outlined || !needs_outline)
        })?;
        job.viewers.push(reader.viewer);
        Some(job.budget_bytes)
    }

    fn join_fresh(&mut self, reader: Reader<'_>, kind: JobKind) {
        let outlined = reader.needs_outline(&kind);
        if let Some(job) = self.find(reader.hub, |job| job.on_time == 0 && job.kind.merged(&kind).is_some()) {
            job.kind = job.kind.merged(&kind).unwrap_or(kind);
            job.viewers.push(reader.viewer);
            job.outlined |= outlined;
            return;
        }
        let (stream, hub, viewers) = (reader.stream.clone(), reader.hub, vec![reader.viewer]);
        let (on_time, attempts, share, budget_bytes) = (0, 0, None, 0);
        let job = Job { stream, hub, viewers, on_time, kind, outlined, attempts, share, budget_bytes };
        let job = self.jobs.insert(job);
        self.by_hub.entry(hub).or_default().push(job);
        self.fresh.push(job);
        self.registry.gauges().replay_jobs.inc();
    }

    /// The first job of a hub for which `fits` holds.
    fn find(&mut self, hub: Slot, fits: impl Fn(&Job) -> bool) -> Option<&mut Job> {
        let jobs = self.by_hub.get(&hub)?;
        let found = jobs.iter().find(|&&job| self.jobs.get(job).is_some_and(&fits)).copied()?;
        self.jobs.get_mut(found)
    }

    // ----- sending -----

    /// Whether reads were created that were not sent yet.
    pub(super) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Takes the reads that were created and not sent yet. The caller sends each of them; from then on, other viewers
    /// may join it under way.
    pub(super) fn take_fresh(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.fresh)
    }

    /// The job with this slot, if it still exists.
    pub(super) fn get(&self, job: Slot) -> Option<&Job> {
        self.jobs.get(job)
    }

    /// Mutable access: see [`HistoryReads::get`].
    pub(super) fn get_mut(&mut self, job: Slot) -> Option<&mut Job> {
        self.jobs.get_mut(job)
    }

    /// Removes a job: its result has arrived, or no viewer wants it.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Job> {
        let job = self.jobs.remove(slot)?;
        self.registry.gauges().replay_jobs.dec();
        if let Entry::Occupied(mut jobs) = self.by_hub.entry(job.hub) {
            jobs.get_mut().retain(|&other| other != slot);
            if jobs.get().is_empty() {
                jobs.remove();
            }
        }
        Some(job)
    }

    /// Whether there are too many jobs for this number of viewers. A job whose viewers have left remains until its
    /// result arrives, so a client that keeps reconnecting has to wait for that.
    pub(super) fn exceed_limit(&self, viewers: usize) -> bool {
        self.jobs.len() > viewers + STALE_JOBS_MAX
    }

    /// Counts that must be 0 when no client is left.
    #[cfg(test)]
    pub(super) fn held(&self) -> [(&'static str, usize); 4] {
        [
            ("history reads", self.jobs.len()),
            ("streams with history reads", self.by_hub.len()),
            ("new history reads", self.fresh.len()),
            ("history reads to be retried", self.retries.len()),
        ]
    }

    // ----- retrying -----

    /// Schedules a retry of a job that failed. The pause grows with the job's attempts, and differs from job to job.
    pub(super) fn retry_later(&mut self, slot: Slot, now: Instant) {
        let Some(job) = self.jobs.get_mut(slot) else { return };
        job.attempts = job.attempts.saturating_add(1);
        let pause = UNAVAILABLE_RETRY.saturating_mul(1 << job.attempts.clamp(1, 6)) / 2;
        let spread = u32::try_from(slot.generation % 16).unwrap_or(0);
        let pause = pause.min(UNAVAILABLE_RETRY_MAX);
        self.retries.insert((now + pause - pause / 32 * spread, slot));
    }

    /// When the next job is retried.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.retries.first().map(|retry| retry.0)
    }

    /// Takes a job whose retry is due.
    pub(super) fn pop_retry(&mut self, now: Instant) -> Option<Slot> {
        let &(at, job) = self.retries.first()?;
        if at > now {
            return None;
        }
        self.retries.pop_first();
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{After, EntryId};
    use crate::observe::Registry;

    const HUB: Slot = slot(0);

    const fn slot(index: usize) -> Slot {
        Slot { index, generation: 1 }
    }

    fn reads() -> HistoryReads {
        HistoryReads::new(Arc::new(Registry::new("test")))
    }

    fn open_at(ms: u64) -> JobKind {
        JobKind::Open(After::At(EntryId::new(ms, 0).into()))
    }

    /// Requests reads for viewers of one stream, one after another. Returns the bytes that each was promised by
    /// joining a read under way.
    fn request(reads: &mut HistoryReads, wanted: &[(usize, &JobKind)], room: usize) -> Vec<Option<usize>> {
        let stream = StreamName::new("s", "m").unwrap();
        let request = |&(viewer, kind): &(usize, &JobKind)| {
            let reader = Reader { viewer: slot(viewer), hub: HUB, stream: &stream, translated: false };
            reads.request(reader, kind, room)
        };
        wanted.iter().map(request).collect()
    }

    /// Sends the new reads, each with this budget. Returns each read with its viewers.
    fn send(reads: &mut HistoryReads, budget_bytes: usize) -> Vec<(Slot, Vec<usize>)> {
        let fresh = reads.take_fresh();
        let send = |job| {
            let found = reads.get_mut(job).unwrap();
            (found.budget_bytes, found.on_time) = (budget_bytes, found.viewers.len());
            (job, found.viewers.iter().map(|viewer| viewer.index).collect())
        };
        fresh.into_iter().map(send).collect()
    }

    #[test]
    fn viewers_with_nearly_the_same_start_share_a_read() {
        let mut reads = reads();
        let (early, late, far) = (open_at(100_000), open_at(101_000), open_at(900_000));
        request(&mut reads, &[(1, &late), (2, &early), (3, &far), (4, &late)], 100);
        let mut viewers: Vec<_> = send(&mut reads, 100).into_iter().map(|(_, viewers)| viewers).collect();
        viewers.sort();
        assert_eq!(viewers, [vec![1, 2, 4], vec![3]], "the read begins at the earlier start");
        assert!(!reads.has_fresh());
    }

    #[test]
    fn a_read_under_way_is_joined_by_viewers_with_room_for_it() {
        let mut reads = reads();
        let kind = open_at(100_000);
        request(&mut reads, &[(1, &kind)], 100);
        let [(job, _)] = send(&mut reads, 60)[..] else { panic!("one read") };
        assert_eq!(request(&mut reads, &[(2, &kind)], 60), [Some(60)]);
        assert_eq!(request(&mut reads, &[(3, &kind)], 59), [None], "a read of its own");
        let found = reads.get(job).unwrap();
        assert_eq!((found.viewers.len(), found.on_time), (2, 1));
        reads.remove(job);
        assert_eq!(request(&mut reads, &[(4, &kind)], 100), [None], "it is over");
        assert_eq!(
            send(&mut reads, 60).into_iter().map(|(_, viewers)| viewers).collect::<Vec<_>>(),
            [[3, 4]]
        );
    }

    #[test]
    fn an_exact_read_is_shared_only_for_equal_positions() {
        let mut reads = reads();
        let stream = StreamName::new("s", "m").unwrap();
        for (viewer, ms) in [(1, 5_000), (2, 5_000), (3, 6_000)] {
            let reader = Reader { viewer: slot(viewer), hub: HUB, stream: &stream, translated: false };
            reads.request_exactly(reader, open_at(ms));
        }
        let sent = send(&mut reads, 10);
        let [(first, both), (_, third)] = &sent[..] else { panic!("two reads") };
        assert_eq!((&both[..], &third[..]), (&[1, 2][..], &[3][..]));
        assert_eq!(reads.get(*first).map(|job| job.kind.clone()), Some(open_at(5_000)), "not widened");
    }

    #[test]
    fn pauses_between_retries_grow_up_to_two_seconds() {
        let mut reads = reads();
        request(&mut reads, &[(1, &JobKind::State)], 10);
        let [(job, _)] = send(&mut reads, 10)[..] else { panic!("one read") };
        let now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            reads.retry_later(job, now);
            let at = reads.next_retry().unwrap();
            assert_eq!(reads.pop_retry(now), None, "not yet");
            assert_eq!(reads.pop_retry(at), Some(job));
            pauses.push(at - now);
        }
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert!(pauses[0] <= UNAVAILABLE_RETRY && pauses[7] <= UNAVAILABLE_RETRY_MAX, "{pauses:?}");
        assert!(pauses[7] >= UNAVAILABLE_RETRY_MAX / 2, "{pauses:?}");
        assert_eq!(reads.next_retry(), None);
    }
}
