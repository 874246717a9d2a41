//! History reads: who shares one, how much it may bring, and what becomes of it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::event_loop::Delivery;
use super::response::HttpError;
use super::streams::Ending;
use super::viewer::{Job, JobKind, Wire};
use crate::event::message::{ReplayOutcome, ReplayStep, Slot, StateSearch};
use crate::event::{After, StreamStatus};

/// The least that one history read asks for.
const READ_COUNT_MIN: usize = 16;
/// Jobs that may be under way for viewers who have left.
const STALE_JOBS_MAX: usize = 1024;

/// How long the beginning that one viewer was given is given to others who want the same.
const RECENT_FOR: Duration = Duration::from_millis(250);
/// Bytes of frames that are kept for that, and answers: each is looked for among all.
const RECENT_BYTES_MAX: usize = 16 << 20;
const RECENT_ANSWERS_MAX: usize = 256;

/// The beginning of an answer that was read a moment ago: a crowd that was cut off comes back within such moments.
#[derive(Debug)]
struct Recent {
    read_at: Instant,
    hub: Slot,
    kind: JobKind,
    beginning: ReplayOutcome,
    bytes: usize,
}

/// Answers that were read a moment ago, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Recents {
    answers: VecDeque<Recent>,
    bytes: usize,
}

impl Recents {
    /// Keeps an answer, unless there is nothing in it whose reading would be spared.
    fn add(&mut self, recent: Recent) {
        if recent.bytes > 0 {
            self.bytes += recent.bytes;
            self.answers.push_back(recent);
        }
    }

    /// Lets go of what is too old, or too much.
    pub(super) fn forget(&mut self, now: Instant) {
        while let Some(oldest) = self.answers.front()
            && (self.bytes > RECENT_BYTES_MAX
                || self.answers.len() > RECENT_ANSWERS_MAX
                || now.duration_since(oldest.read_at) > RECENT_FOR)
        {
            self.bytes -= oldest.bytes;
            self.answers.pop_front();
        }
    }
}

/// Jobs by hub.
pub(super) type JobsOfHubs = HashMap<Slot, Vec<Slot>>;

impl Delivery {
    /// Viewers of one stream that want the same stretch of it share a read: one that this turn has asked for, or one
    /// that is under way.
    pub(super) fn add_job(&mut self, slot: Slot, kind: JobKind) {
        if self.join_job_under_way(slot, &kind) {
            return;
        }
        let Some(viewer) = self.viewers.get(slot) else { return };
        let same = |job: &Job| job.kind == kind;
        let hub = viewer.hub;
        let candidates = self.fresh_jobs.entry(hub).or_default();
        let shared = candidates.iter().find(|&&job| self.jobs.get(job).is_some_and(same)).copied();
        match shared.and_then(|job| self.jobs.get_mut(job)) {
            Some(job) => job.viewers.push(slot),
            None => {
                let stream = viewer.wish.stream.clone();
                let viewers = vec![slot];
                let job = Job { stream, hub, viewers, on_time: 1, kind, attempts: 0, budget_bytes: 0 };
                let job = self.jobs.insert(job);
                candidates.push(job);
                self.registry.gauges().replay_jobs.inc();
            }
        }
    }

    /// Joins the viewer to a read of the same stretch whose outcome is yet to come, if it has room for what that may
    /// bring. The read may be over in Redis already, so that it says nothing about the stream's end: see
    /// [`Delivery::conclude_job`]. Only a stretch with a known beginning can be shared so; what `last` and `$` mean
    /// is decided when they are asked.
    fn join_job_under_way(&mut self, slot: Slot, kind: &JobKind) -> bool {
        let is_fixed = matches!(kind, JobKind::Open(After::At(_)) | JobKind::Read { .. });
        let (Some(viewer), true) = (self.viewers.get(slot), is_fixed) else { return false };
        let Some(under_way) = self.asked_jobs.get(&viewer.hub) else { return false };
        let room = self.room(slot);
        let fits = |job: &Job| job.kind == *kind && job.attempts == 0 && job.budget_bytes <= room;
        let Some(shared) = under_way.iter().find(|&&job| self.jobs.get(job).is_some_and(fits)).copied()
        else {
            return false;
        };
        let Some(job) = self.jobs.get_mut(shared) else { return false };
        job.viewers.push(slot);
        let budget_bytes = job.budget_bytes;
        self.promise(slot, budget_bytes);
        true
    }

    /// Sends the reads that this turn has asked for.
    pub(super) fn send_fresh_jobs(&mut self) {
        for (hub, jobs) in std::mem::take(&mut self.fresh_jobs) {
            for &job in &jobs {
                if !self.answer_from_recent(job) {
                    self.send_job(job, None);
                }
            }
            for job in jobs.into_iter().filter(|&job| self.jobs.get(job).is_some()) {
                self.asked_jobs.entry(hub).or_default().push(job);
            }
        }
    }

    /// Concludes a job with what others were given a moment ago, if all its viewers have room for that.
    fn answer_from_recent(&mut self, slot: Slot) -> bool {
        let now = Instant::now();
        self.recents.forget(now);
        let Some(job) = self.jobs.get(slot) else { return false };
        let same = |recent: &&Recent| recent.hub == job.hub && recent.kind == job.kind;
        let Some(place) = self.recents.answers.iter().position(|recent| same(&recent)) else { return false };
        let bytes = self.recents.answers[place].bytes;
        if job.viewers.iter().any(|&viewer| self.room(viewer) < bytes) {
            return false;
        }
        let Some(job) = self.remove_job(slot) else { return false };
        // Taken out for as long as it is given: what follows may change the list.
        let recents = std::mem::take(&mut self.recents);
        for viewer in job.viewers {
            self.conclude_for(viewer, &recents.answers[place].beginning, false, now);
        }
        self.recents = recents;
        true
    }

    /// Asks for a job's next read; `step` goes on with one that is under way.
    pub(super) fn send_job(&mut self, slot: Slot, step: Option<ReplayStep>) {
        if !self.is_wanted(slot) {
            self.remove_job(slot);
            return;
        }
        let Some(job) = self.jobs.get(slot) else { return };
        let step = step.unwrap_or_else(|| match &job.kind {
            JobKind::Open(after) => ReplayStep::Open { after: *after },
            JobKind::Read { from, until } => ReplayStep::Continue { from: from.clone(), until: *until },
            JobKind::State => ReplayStep::State(Box::new(StateSearch {
                max_bytes: self.config.client.max_state,
                ..StateSearch::default()
            })),
            JobKind::Probe => ReplayStep::Probe,
        });
        let shows = !matches!(step, ReplayStep::State(_) | ReplayStep::Probe);
        let viewers = job.viewers.clone();
        // What the most occupied of the viewers has room for, so that nobody's budget is passed.
        let (mut budget_bytes, mut entry_bytes) = (self.config.client.send_budget, 1);
        for &viewer in &viewers {
            budget_bytes = budget_bytes.min(self.room(viewer));
            entry_bytes = entry_bytes.max(self.viewers.get(viewer).map_or(1, |viewer| viewer.entry_bytes));
        }
        if shows {
            for viewer in viewers {
                self.promise(viewer, budget_bytes);
            }
            if let Some(job) = self.jobs.get_mut(slot) {
                job.budget_bytes = budget_bytes;
            }
        }
        let count = match &step {
            ReplayStep::Continue { .. } => (budget_bytes / entry_bytes)
                .clamp(READ_COUNT_MIN, self.config.delivery.replay_count.max(READ_COUNT_MIN)),
            ReplayStep::Probe => 1,
            _ => self.config.delivery.replay_count,
        };
        let Some(job) = self.jobs.get_mut(slot) else { return };
        job.on_time = job.viewers.len();
        let stream = job.stream.clone();
        self.request(slot, stream, step, (count, budget_bytes));
    }

    /// Whether any of the viewers for whom a job was made is still there.
    pub(super) fn is_wanted(&self, slot: Slot) -> bool {
        let alive = |&viewer: &Slot| self.viewers.get(viewer).is_some();
        self.jobs.get(slot).is_some_and(|job| job.viewers.iter().any(alive))
    }

    pub(super) fn remove_job(&mut self, slot: Slot) -> Option<Job> {
        let job = self.jobs.remove(slot)?;
        self.registry.gauges().replay_jobs.dec();
        if let Entry::Occupied(mut asked) = self.asked_jobs.entry(job.hub) {
            asked.get_mut().retain(|&other| other != slot);
            if asked.get().is_empty() {
                asked.remove();
            }
        }
        Some(job)
    }

    /// Jobs whose viewers have left remain until their read is back: a client that keeps coming and going has
    /// to wait for that.
    pub(super) fn has_too_many_jobs(&self) -> bool {
        self.jobs.len() > self.viewers.len() + STALE_JOBS_MAX
    }

    /// The bytes that history may still add to what waits for the viewer's connection.
    pub(super) fn room(&self, viewer: Slot) -> usize {
        let Some(viewer) = self.viewers.get(viewer) else { return usize::MAX };
        let waiting = self
            .connections
            .get(viewer.connection)
            .map_or(0, |found| found.outbox.cost_bytes() + found.promised - viewer.promised);
        self.config.client.send_budget.saturating_sub(waiting)
    }

    /// The viewer's outstanding read may fill so much of its connection's budget.
    pub(super) fn promise(&mut self, slot: Slot, bytes: usize) {
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        let before = std::mem::replace(&mut viewer.promised, bytes);
        let slot = viewer.connection;
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.promised = connection.promised - before + bytes;
        // Room that is given back is room for those who wait for it.
        if bytes < before && !connection.paused.is_empty() {
            self.touch(slot);
        }
    }

    /// What a read has found goes to all its viewers. For those who joined after it was asked it is a stretch of the stream
    /// and no more: whether all is over at its end, or there was no stream at all, they ask anew.
    pub(super) fn conclude_job(&mut self, slot: Slot, outcome: ReplayOutcome, now: Instant) {
        match outcome {
            ReplayOutcome::Searching(search) => return self.send_job(slot, Some(ReplayStep::Search(search))),
            ReplayOutcome::Gathering(search) => return self.send_job(slot, Some(ReplayStep::State(search))),
            ReplayOutcome::Unavailable => return self.postpone_job(slot, now),
            _ => {}
        }
        let Some(job) = self.remove_job(slot) else { return };
        let is_range = matches!(job.kind, JobKind::Read { until: Some(_), .. });
        let (on_time, late) = job.viewers.split_at(job.on_time.min(job.viewers.len()));
        for &viewer in on_time {
            self.conclude_for(viewer, &outcome, is_range, now);
        }
        let bytes = match &outcome {
            ReplayOutcome::Opened(opened) => opened.shown.frames.iter().map(|frame| frame.json().len()).sum(),
            _ => 0,
        };
        let stretch = stretch(outcome);
        for &viewer in late {
            match &stretch {
                Some(stretch) => self.conclude_for(viewer, stretch, is_range, now),
                None => {
                    self.promise(viewer, 0);
                    self.add_job(viewer, job.kind.clone());
                }
            }
        }
        if let (Some(beginning), JobKind::Open(After::At(_))) = (stretch, &job.kind) {
            let (hub, kind) = (job.hub, job.kind);
            self.recents.add(Recent { read_at: now, hub, kind, beginning, bytes });
            self.recents.forget(now);
        }
    }

    fn conclude_for(&mut self, viewer: Slot, outcome: &ReplayOutcome, is_range: bool, now: Instant) {
        self.promise(viewer, 0);
        match outcome {
            ReplayOutcome::NotAStream => self.end(viewer, Ending::NotFound, now),
            ReplayOutcome::Missing => self.miss(viewer, now),
            ReplayOutcome::Opened(opened) => self.open(viewer, opened, now),
            ReplayOutcome::Shown(shown) => self.show(viewer, shown, is_range, now),
            ReplayOutcome::State(document) => self.answer_state(viewer, document, now),
            ReplayOutcome::StateTooLarge => {
                let error = HttpError::unavailable(
                    "state_too_large",
                    "the state is larger than this server assembles; read the stream instead",
                    60,
                );
                self.answer_error(viewer, &error, now);
            }
            ReplayOutcome::Exists => self.answer_head(viewer, now),
            ReplayOutcome::Searching(_) | ReplayOutcome::Gathering(_) | ReplayOutcome::Unavailable => {}
        }
    }

    /// Redis cannot be reached: streams are told and wait, single answers are 503.
    fn postpone_job(&mut self, slot: Slot, now: Instant) {
        let Some(job) = self.jobs.get_mut(slot) else { return };
        let viewers = std::mem::take(&mut job.viewers);
        let mut staying = Vec::with_capacity(viewers.len());
        for viewer in viewers {
            let Some(found) = self.viewers.get(viewer) else { continue };
            if matches!(found.wish.wire, Wire::State | Wire::Head) {
                let error = HttpError::unavailable("redis_unreachable", "the store cannot be reached", 1);
                self.answer_error(viewer, &error, now);
            } else {
                self.begin_events(viewer, now);
                self.open_unseen(viewer);
                self.tell(viewer, StreamStatus::Degraded);
                staying.push(viewer);
            }
        }
        let Some(job) = self.jobs.get_mut(slot) else { return };
        job.viewers = staying;
        job.attempts = job.attempts.saturating_add(1);
        let attempts = job.attempts;
        self.retry_later(slot, attempts, now);
    }
}

/// An outcome as far as it holds for who may know of later entries. Where live goes on from it will be found: only the end of
/// a finished generation, after which another may have begun, is to be looked at again.
fn stretch(outcome: ReplayOutcome) -> Option<ReplayOutcome> {
    match outcome {
        ReplayOutcome::Opened(mut opened) if !opened.nothing_left => {
            opened.shown.exhausted &= !opened.shown.cursor.is_terminal();
            Some(ReplayOutcome::Opened(opened))
        }
        ReplayOutcome::Shown(mut shown) => {
            shown.exhausted &= !shown.cursor.is_terminal();
            Some(ReplayOutcome::Shown(shown))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::message::{Cursor, Shown};
    use crate::event::{EntryId, Phase, StreamState};

    #[test]
    fn what_is_kept_of_recent_answers_is_bounded() {
        let now = Instant::now();
        let kept = |count: usize, bytes: usize| {
            let mut recents = Recents::default();
            for index in 0..count {
                let hub = Slot { index, generation: 1 };
                let (kind, beginning) = (JobKind::Probe, ReplayOutcome::Exists);
                recents.add(Recent { read_at: now, hub, kind, beginning, bytes });
                recents.forget(now);
            }
            recents
        };
        assert_eq!(kept(3, 0).answers.len(), 0, "nothing is spared");
        assert_eq!(kept(RECENT_ANSWERS_MAX + 9, 1).answers.len(), RECENT_ANSWERS_MAX);
        let mut large = kept(9, RECENT_BYTES_MAX / 4);
        assert_eq!((large.answers.len(), large.bytes), (4, RECENT_BYTES_MAX));
        large.forget(now + RECENT_FOR * 2);
        assert_eq!((large.answers.len(), large.bytes), (0, 0));
    }

    #[test]
    fn late_viewers_hear_nothing_of_the_end() {
        for (phase, exhausted) in [(Phase::Open, true), (Phase::Ended(EntryId::new(1, 0)), false)] {
            let cursor =
                Cursor { state: StreamState { phase, ..StreamState::default() }, ..Cursor::default() };
            let (gap, frames) = (None, Vec::new());
            let shown = Shown { gap, frames, cursor, exhausted: true, entries_bytes: 0, entries: 0 };
            let Some(ReplayOutcome::Shown(late)) = stretch(ReplayOutcome::Shown(Box::new(shown))) else {
                panic!("frames are as good as before")
            };
            assert_eq!(late.exhausted, exhausted);
        }
        assert!(stretch(ReplayOutcome::Missing).is_none() && stretch(ReplayOutcome::NotAStream).is_none());
    }
}
