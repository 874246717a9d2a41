//! The history reads of a delivery thread: which are to be asked for, which are under way, which are asked again, and
//! which viewers share each.
//!
//! Viewers of one stream that want the same stretch of it share a read: one that the same round asks for, or one that is
//! under way. Knows neither queues nor connections: its owner sends the reads and gives viewers their results.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::Share;
use super::sharing::{JobKind, Recents};
use super::table::Table;
use crate::message::{Opened, Slot};
use crate::model::{Frame, Position, StreamName};
use crate::observe::Registry;

/// Jobs that may be under way for viewers who have left.
const STALE_JOBS_MAX: usize = 1024;
/// How long a history read waits after Redis could not be asked, for the first time and at most.
const UNAVAILABLE_RETRY: Duration = Duration::from_millis(100);
const UNAVAILABLE_RETRY_MAX: Duration = Duration::from_secs(2);

/// A history read for some viewers of one stream.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) stream: StreamName,
    pub(super) hub: Slot,
    pub(super) viewers: Vec<Slot>,
    /// How many of them wanted it before it was asked last. The others may know of newer entries than the read finds.
    pub(super) on_time: usize,
    pub(super) kind: JobKind,
    /// Whether it reads exactly what one of them wants, which a read that begins earlier did not tell.
    pub(super) exact: bool,
    /// Whether one of them needs the outline of what comes before.
    pub(super) outlined: bool,
    /// How often Redis could not be asked in a row.
    pub(super) attempts: u32,
    /// The share of the budget of all that a state takes while it is put together.
    pub(super) share: Option<Share>,
    /// Bytes that each viewer's connection has promised room for; 0 before it was asked.
    pub(super) budget_bytes: usize,
}

/// A viewer that wants something read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    pub(super) viewer: Slot,
    pub(super) hub: Slot,
    pub(super) stream: &'a StreamName,
    /// Whether it is given another format, which needs the outline of what comes before its start.
    pub(super) translated: bool,
}

impl Reader<'_> {
    /// Whether this read is to find the outline of the generation up to the viewer's start too.
    const fn needs_outline(&self, kind: &JobKind) -> bool {
        self.translated && matches!(kind, JobKind::Open(_))
    }
}

/// The reads of all viewers of the thread.
pub(super) struct HistoryReads {
    jobs: Table<Job>,
    /// Jobs that were made in this round, by hub.
    fresh: HashMap<Slot, Vec<Slot>>,
    /// Jobs that are under way, by hub.
    asked: HashMap<Slot, Vec<Slot>>,
    /// Jobs to be asked again, by the time.
    retries: BTreeSet<(Instant, Slot)>,
    recents: Recents,
    registry: Arc<Registry>,
}

impl HistoryReads {
    /// No reads yet.
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        let (fresh, asked) = (HashMap::new(), HashMap::new());
        let (jobs, retries, recents) = (Table::default(), BTreeSet::new(), Recents::default());
        Self { jobs, fresh, asked, retries, recents, registry }
    }

    // ----- wanting -----

    /// The read that the viewer shares with others, or a new one. If it is under way, the bytes that it may bring, which
    /// are no more than `room`. Such a read may be over in Redis already, so that it says nothing about the stream's
    /// end.
    pub(super) fn want(&mut self, reader: Reader<'_>, kind: &JobKind, room: usize) -> Option<usize> {
        let promised = self.join_under_way(reader, kind, room);
        if promised.is_none() {
            self.join_fresh(reader, kind);
        }
        promised
    }

    fn join_under_way(&mut self, reader: Reader<'_>, kind: &JobKind, room: usize) -> Option<usize> {
        let under_way = self.asked.get(&reader.hub)?;
        let needs_outline = reader.needs_outline(kind);
        let fits = |job: &Job| {
            job.kind.covers(kind)
                && job.attempts == 0
                && job.budget_bytes <= room
                && (job.outlined || !needs_outline)
        };
        let shared = under_way.iter().find(|&&job| self.jobs.get(job).is_some_and(fits)).copied()?;
        let job = self.jobs.get_mut(shared)?;
        job.viewers.push(reader.viewer);
        Some(job.budget_bytes)
    }

    fn join_fresh(&mut self, reader: Reader<'_>, kind: &JobKind) {
        let fresh = self.fresh.get(&reader.hub).into_iter().flatten();
        let shared = fresh.copied().find_map(|job| {
            let found = self.jobs.get(job)?;
            let has_it = found.kind == *kind || found.kind.covers(kind);
            (has_it || kind.covers(&found.kind) && !found.exact).then_some((job, has_it))
        });
        let Some((job, has_it)) = shared else { return self.make(reader, kind.widened(), false) };
        let Some(job) = self.jobs.get_mut(job) else { return };
        job.viewers.push(reader.viewer);
        job.outlined |= reader.needs_outline(kind);
        if !has_it {
            job.kind = kind.widened();
        }
    }

    /// A read of exactly that, for a viewer that does not find it in a read that begins earlier.
    pub(super) fn want_exactly(&mut self, reader: Reader<'_>, kind: JobKind) {
        let fresh = self.fresh.get(&reader.hub).into_iter().flatten();
        let same = |job: &Slot| self.jobs.get(*job).is_some_and(|job| job.exact && job.kind == kind);
        let shared = fresh.copied().find(same);
        match shared.and_then(|job| self.jobs.get_mut(job)) {
            Some(job) => {
                job.viewers.push(reader.viewer);
                job.outlined |= reader.needs_outline(&kind);
            }
            None => self.make(reader, kind, true),
        }
    }

    fn make(&mut self, reader: Reader<'_>, kind: JobKind, exact: bool) {
        let outlined = reader.needs_outline(&kind);
        let (stream, hub, viewers) = (reader.stream.clone(), reader.hub, vec![reader.viewer]);
        let (on_time, attempts, share, budget_bytes) = (1, 0, None, 0);
        let job = Job { stream, hub, viewers, on_time, kind, exact, outlined, attempts, share, budget_bytes };
        let job = self.jobs.insert(job);
        self.fresh.entry(hub).or_default().push(job);
        self.registry.gauges().replay_jobs.inc();
    }

    // ----- asking -----

    /// Whether reads were made in this round that are not asked for yet.
    pub(super) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Takes the reads that this round has made, by hub. Each is to be asked for, and [noted](Self::note_asked).
    pub(super) fn take_fresh(&mut self) -> HashMap<Slot, Vec<Slot>> {
        std::mem::take(&mut self.fresh)
    }

    /// Reads of a hub are under way, unless they are gone: others may join them.
    pub(super) fn note_asked(&mut self, hub: Slot, jobs: Vec<Slot>) {
        for job in jobs.into_iter().filter(|&job| self.jobs.get(job).is_some()) {
            self.asked.entry(hub).or_default().push(job);
        }
    }

    /// A job, unless it is gone.
    pub(super) fn get(&self, job: Slot) -> Option<&Job> {
        self.jobs.get(job)
    }

    /// As [`HistoryReads::get`], to be changed.
    pub(super) fn get_mut(&mut self, job: Slot) -> Option<&mut Job> {
        self.jobs.get_mut(job)
    }

    /// Takes a job out: its result is there, or nobody wants it.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Job> {
        let job = self.jobs.remove(slot)?;
        self.registry.gauges().replay_jobs.dec();
        if let Entry::Occupied(mut asked) = self.asked.entry(job.hub) {
            asked.get_mut().retain(|&other| other != slot);
            if asked.get().is_empty() {
                asked.remove();
            }
        }
        Some(job)
    }

    /// Whether there are too many beside so many viewers. Jobs whose viewers have left remain until their read is back:
    /// a client that keeps coming and going has to wait for that.
    pub(super) fn are_too_many(&self, viewers: usize) -> bool {
        self.jobs.len() > viewers + STALE_JOBS_MAX
    }

    // ----- asking again -----

    /// The job could not be done: it is asked again after a pause that grows with its attempts and differs from job
    /// to job.
    pub(super) fn retry_later(&mut self, slot: Slot, now: Instant) {
        let Some(job) = self.jobs.get_mut(slot) else { return };
        job.attempts = job.attempts.saturating_add(1);
        let pause = UNAVAILABLE_RETRY.saturating_mul(1 << job.attempts.clamp(1, 6)) / 2;
        let spread = u32::try_from(slot.generation % 16).unwrap_or(0);
        let pause = pause.min(UNAVAILABLE_RETRY_MAX);
        self.retries.insert((now + pause - pause / 32 * spread, slot));
    }

    /// When the next job is asked again.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.retries.first().map(|retry| retry.0)
    }

    /// A job that is to be asked again now.
    pub(super) fn pop_retry(&mut self, now: Instant) -> Option<Slot> {
        let &(at, job) = self.retries.first()?;
        if at > now {
            return None;
        }
        self.retries.pop_first();
        Some(job)
    }

    // ----- answers of a moment ago -----

    /// Keeps the beginning of an answer for viewers that come next.
    pub(super) fn keep_recent(&mut self, hub: Slot, opened: Box<Opened>, now: Instant) {
        self.recents.add(hub, opened, now);
    }

    /// The beginning of a recent answer, for a viewer that has everything up to `after` and room for so many bytes, and
    /// may need the outline.
    pub(super) fn find_recent(&self, hub: Slot, after: Position, fits: (usize, bool)) -> Option<Opened> {
        self.recents.find(hub, after, fits)
    }

    /// Adds live text to a hub's recent answers.
    pub(super) fn extend_recents(&mut self, hub: Slot, frames: &[Arc<Frame>]) {
        self.recents.extend(hub, frames);
    }

    /// Forgets a hub's recent answers, because they may not hold any more.
    pub(super) fn forget_recents_of(&mut self, hub: Slot) {
        self.recents.forget_hub(hub);
    }

    /// Forgets recent answers that are too old or too many.
    pub(super) fn forget_recents(&mut self, now: Instant) {
        self.recents.forget(now);
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

    /// Viewers of one stream that want these reads, one after another; the bytes promised to each that joined one under
    /// way.
    fn want(reads: &mut HistoryReads, wanted: &[(usize, &JobKind)], room: usize) -> Vec<Option<usize>> {
        let stream = StreamName::new("s", "m").unwrap();
        let want = |&(viewer, kind): &(usize, &JobKind)| {
            let reader = Reader { viewer: slot(viewer), hub: HUB, stream: &stream, translated: false };
            reads.want(reader, kind, room)
        };
        wanted.iter().map(want).collect()
    }

    /// Asks for the reads of a round, each with room for so many bytes; the viewers of each.
    fn ask(reads: &mut HistoryReads, budget_bytes: usize) -> Vec<(Slot, Vec<usize>)> {
        let mut asked = Vec::new();
        for (hub, jobs) in reads.take_fresh() {
            for &job in &jobs {
                let found = reads.get_mut(job).unwrap();
                found.budget_bytes = budget_bytes;
                asked.push((job, found.viewers.iter().map(|viewer| viewer.index).collect()));
            }
            reads.note_asked(hub, jobs);
        }
        asked
    }

    #[test]
    fn viewers_that_want_nearly_the_same_share_a_read() {
        let mut reads = reads();
        let (early, late, far) = (open_at(100_000), open_at(101_000), open_at(900_000));
        want(&mut reads, &[(1, &late), (2, &early), (3, &far), (4, &late)], 100);
        let mut viewers: Vec<_> = ask(&mut reads, 100).into_iter().map(|(_, viewers)| viewers).collect();
        viewers.sort();
        assert_eq!(viewers, [vec![1, 2, 4], vec![3]], "the earlier one widens the read of the later one");
        assert!(!reads.has_fresh());
    }

    #[test]
    fn a_read_under_way_is_joined_by_those_with_room_for_it() {
        let mut reads = reads();
        let kind = open_at(100_000);
        want(&mut reads, &[(1, &kind)], 100);
        let [(job, _)] = ask(&mut reads, 60)[..] else { panic!("one read") };
        assert_eq!(want(&mut reads, &[(2, &kind)], 60), [Some(60)]);
        assert_eq!(want(&mut reads, &[(3, &kind)], 59), [None], "a read of its own");
        let found = reads.get(job).unwrap();
        assert_eq!((found.viewers.len(), found.on_time), (2, 1));
        reads.remove(job);
        assert_eq!(want(&mut reads, &[(4, &kind)], 100), [None], "it is over");
        assert_eq!(ask(&mut reads, 60).into_iter().map(|(_, viewers)| viewers).collect::<Vec<_>>(), [[3, 4]]);
    }

    #[test]
    fn an_exact_read_is_shared_only_with_those_that_want_exactly_it() {
        let mut reads = reads();
        let stream = StreamName::new("s", "m").unwrap();
        for (viewer, ms) in [(1, 5_000), (2, 5_000), (3, 6_000)] {
            let reader = Reader { viewer: slot(viewer), hub: HUB, stream: &stream, translated: false };
            reads.want_exactly(reader, open_at(ms));
        }
        let asked = ask(&mut reads, 10);
        let [(first, both), (_, third)] = &asked[..] else { panic!("two reads") };
        assert_eq!((&both[..], &third[..]), (&[1, 2][..], &[3][..]));
        assert_eq!(reads.get(*first).map(|job| job.kind.clone()), Some(open_at(5_000)), "not widened");
    }

    #[test]
    fn pauses_before_a_read_is_asked_again_grow_up_to_two_seconds() {
        let mut reads = reads();
        want(&mut reads, &[(1, &JobKind::State)], 10);
        let [(job, _)] = ask(&mut reads, 10)[..] else { panic!("one read") };
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
