//! History reads: who shares one, how much it may bring, and what becomes of it.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Instant;

use super::admission::RETRY_AFTER_S;
use super::budget::{Charged, Share};
use super::delivery::Delivery;
use super::http_error::HttpError;
use super::sharing::{begun_at, stretch};
use super::streams::Ending;
use super::viewer::{Job, JobKind, Wire};
use crate::event::message::{Opened, ReplayOutcome, ReplayStep, Slot, StateSearch};
use crate::event::{After, StreamStatus};

/// The least that one history read asks for.
const READ_COUNT_MIN: usize = 16;
/// The part of the send budget that a read leaves for what else may wait for a connection when its viewer joins: an
/// answer's head, notices, another viewer's frames.
const JOINING_PART: usize = 8;
/// Jobs that may be under way for viewers who have left.
const STALE_JOBS_MAX: usize = 1024;

impl Delivery {
    /// Viewers of one stream that want the same stretch of it share a read: one that this turn has asked for, or one
    /// that is under way.
    pub(super) fn add_job(&mut self, slot: Slot, kind: JobKind) {
        if self.join_job_under_way(slot, &kind) {
            return;
        }
        let Some(viewer) = self.viewers.get(slot) else { return };
        let outlined = viewer.needs_outline(&kind);
        let fresh = self.fresh_jobs.get(&viewer.hub).into_iter().flatten();
        let shared = fresh.copied().find_map(|job| {
            let found = self.jobs.get(job)?;
            let has_it = found.kind == kind || found.kind.covers(&kind);
            (has_it || kind.covers(&found.kind) && !found.exact).then_some((job, has_it))
        });
        let Some((job, has_it)) = shared else { return self.make_job(slot, kind.widened(), false) };
        let Some(job) = self.jobs.get_mut(job) else { return };
        job.viewers.push(slot);
        job.outlined |= outlined;
        if !has_it {
            job.kind = kind.widened();
        }
    }

    /// A read of exactly that, for a viewer that does not find it in a read that begins earlier.
    fn add_exact_job(&mut self, slot: Slot, kind: JobKind) {
        let Some(viewer) = self.viewers.get(slot) else { return };
        let outlined = viewer.needs_outline(&kind);
        let fresh = self.fresh_jobs.get(&viewer.hub).into_iter().flatten();
        let same = |job: &Slot| self.jobs.get(*job).is_some_and(|job| job.exact && job.kind == kind);
        let shared = fresh.copied().find(same);
        match shared.and_then(|job| self.jobs.get_mut(job)) {
            Some(job) => {
                job.viewers.push(slot);
                job.outlined |= outlined;
            }
            None => self.make_job(slot, kind, true),
        }
    }

    fn make_job(&mut self, slot: Slot, kind: JobKind, exact: bool) {
        let Some(viewer) = self.viewers.get(slot) else { return };
        let (stream, hub, viewers) = (viewer.wish.stream.clone(), viewer.hub, vec![slot]);
        let outlined = viewer.needs_outline(&kind);
        let (on_time, attempts, share, budget_bytes) = (1, 0, None, 0);
        let job = Job { stream, hub, viewers, on_time, kind, exact, outlined, attempts, share, budget_bytes };
        let job = self.jobs.insert(job);
        self.fresh_jobs.entry(hub).or_default().push(job);
        self.registry.gauges().replay_jobs.inc();
    }

    /// Joins the viewer to a read of the same stretch whose outcome is yet to come, if it has room for what that may
    /// bring. The read may be over in Redis already, so that it says nothing about the stream's end: see
    /// [`Delivery::conclude_job`].
    fn join_job_under_way(&mut self, slot: Slot, kind: &JobKind) -> bool {
        let Some(viewer) = self.viewers.get(slot) else { return false };
        let Some(under_way) = self.asked_jobs.get(&viewer.hub) else { return false };
        let room = self.room(slot);
        let needs_outline = self.viewers.get(slot).is_some_and(|viewer| viewer.needs_outline(kind));
        let fits = |job: &Job| {
            job.kind.covers(kind)
                && job.attempts == 0
                && job.budget_bytes <= room
                && (job.outlined || !needs_outline)
        };
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
        if self.fresh_jobs.is_empty() {
            return;
        }
        let now = Instant::now();
        self.recents.forget(now);
        for (hub, jobs) in std::mem::take(&mut self.fresh_jobs) {
            for &job in &jobs {
                self.answer_from_recent(job, now);
                self.send_job(job, None);
            }
            for job in jobs.into_iter().filter(|&job| self.jobs.get(job).is_some()) {
                self.asked_jobs.entry(hub).or_default().push(job);
            }
        }
    }

    /// Gives those of a job's viewers what others were given a moment ago who have room for it.
    fn answer_from_recent(&mut self, slot: Slot, now: Instant) {
        let Some(job) = self.jobs.get_mut(slot) else { return };
        if !matches!(job.kind, JobKind::Open(_)) {
            return;
        }
        let hub = job.hub;
        let mut viewers = std::mem::take(&mut job.viewers);
        viewers.retain(|&viewer| match self.find_recent(hub, viewer) {
            Some(opened) => {
                self.conclude_for(viewer, &ReplayOutcome::Opened(Box::new(opened)), false, now);
                false
            }
            None => true,
        });
        if let Some(job) = self.jobs.get_mut(slot) {
            job.viewers = viewers;
        }
    }

    fn find_recent(&self, hub: Slot, viewer: Slot) -> Option<Opened> {
        let wish = &self.viewers.get(viewer)?.wish;
        let After::At(after) = wish.after else { return None };
        self.recents.find(hub, after, (self.room(viewer), wish.translator.is_some()))
    }

    /// Asks for a job's next read; `step` goes on with one that is under way.
    pub(super) fn send_job(&mut self, slot: Slot, step: Option<ReplayStep>) {
        if !self.is_wanted(slot) {
            self.remove_job(slot);
            return;
        }
        let Some(job) = self.jobs.get(slot) else { return };
        let step = step.unwrap_or_else(|| match &job.kind {
            JobKind::Open(after) => {
                ReplayStep::Open { after: *after, early: !job.exact, outlined: job.outlined }
            }
            JobKind::Read { from, until } => ReplayStep::Continue { from: from.clone(), until: *until },
            JobKind::State => ReplayStep::State(Box::new(StateSearch {
                max_bytes: self.config.client.max_state,
                ..StateSearch::default()
            })),
            JobKind::Probe => ReplayStep::Probe,
        });
        let shows = !matches!(step, ReplayStep::State(_) | ReplayStep::Probe);
        let viewers = job.viewers.clone();
        // The room of the most occupied viewer, so that no viewer's budget is exceeded.
        let send_budget = self.config.client.send_budget;
        let (mut budget_bytes, mut entry_bytes) = (send_budget - send_budget / JOINING_PART, 1);
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

    /// Gives a read's result to all its viewers. For those that joined after it was asked, it is a stretch of the
    /// stream and no more: they ask anew whether its end is the end of all, and whether there is no stream.
    pub(super) fn conclude_job(&mut self, slot: Slot, outcome: ReplayOutcome, now: Instant) {
        match outcome {
            ReplayOutcome::Searching(search) => return self.send_job(slot, Some(ReplayStep::Search(search))),
            ReplayOutcome::Gathering(search) => return self.gather_on(slot, search, now),
            ReplayOutcome::State(document) => return self.conclude_state(slot, document, now),
            ReplayOutcome::Unavailable => return self.postpone_job(slot, now),
            _ => {}
        }
        let Some(job) = self.remove_job(slot) else { return };
        let (on_time, late) = job.viewers.split_at(job.on_time.min(job.viewers.len()));
        for &viewer in on_time {
            self.conclude_shared(viewer, &job.kind, Some(&outcome), now);
        }
        let stretch = stretch(outcome);
        for &viewer in late {
            self.conclude_shared(viewer, &job.kind, stretch.as_ref(), now);
        }
        if let (Some(ReplayOutcome::Opened(opened)), JobKind::Open(After::At(_))) = (stretch, job.kind) {
            self.recents.add(job.hub, opened, now);
        }
    }

    // ----- states -----

    /// A state is put together further, if there is room for it beside those of others.
    fn gather_on(&mut self, slot: Slot, search: Box<StateSearch>, now: Instant) {
        if self.charge_state(slot, search.gathered_bytes) {
            self.send_job(slot, Some(ReplayStep::State(search)));
        } else {
            self.refuse_state(slot, now);
        }
    }

    /// A state is there: all who wanted it share its bytes, which count until the last of them has taken them.
    fn conclude_state(&mut self, slot: Slot, document: Vec<u8>, now: Instant) {
        if !self.charge_state(slot, document.len()) {
            return self.refuse_state(slot, now);
        }
        let Some(mut job) = self.remove_job(slot) else { return };
        let document = match job.share.take() {
            Some(share) => Charged::shared(document, share),
            None => document.into(),
        };
        let late = job.viewers.split_off(job.on_time.min(job.viewers.len()));
        for viewer in job.viewers {
            self.answer_state(viewer, document.clone(), now);
        }
        for viewer in late {
            self.add_exact_job(viewer, JobKind::State);
        }
    }

    /// Charges a state to the budget of all; one that a connection may have waiting anyhow is not charged. `false`:
    /// there is no room.
    fn charge_state(&mut self, slot: Slot, bytes: usize) -> bool {
        if bytes <= self.config.client.send_budget {
            return true;
        }
        let Some(job) = self.jobs.get_mut(slot) else { return true };
        let budget = &self.budgets.answers;
        job.share.get_or_insert_with(|| Share::of(Arc::clone(budget))).resize(bytes)
    }

    fn refuse_state(&mut self, slot: Slot, now: Instant) {
        let Some(job) = self.remove_job(slot) else { return };
        let message = "other large states are being sent now; try again, or read the stream instead";
        let error = HttpError::unavailable("overloaded", message, RETRY_AFTER_S);
        for viewer in job.viewers {
            self.answer_error(viewer, &error, now);
        }
    }

    /// Gives a shared read's result to one of its viewers. One for which it holds nothing asks anew.
    fn conclude_shared(
        &mut self,
        viewer: Slot,
        kind: &JobKind,
        outcome: Option<&ReplayOutcome>,
        now: Instant,
    ) {
        let is_range = matches!(kind, JobKind::Read { until: Some(_), .. });
        let Some(found) = self.viewers.get(viewer) else { return };
        let own = match kind {
            JobKind::Open(_) => JobKind::Open(found.wish.after),
            kind => kind.clone(),
        };
        match (outcome, &own) {
            // A read that begins before everything that is there begins at its beginning.
            (Some(ReplayOutcome::Opened(opened)), JobKind::Open(After::At(after)))
                if opened.after != *after =>
            {
                if let Some(opened) = begun_at(opened, *after) {
                    let outcome = ReplayOutcome::Opened(Box::new(opened));
                    return self.conclude_for(viewer, &outcome, is_range, now);
                }
            }
            (Some(outcome), _) => return self.conclude_for(viewer, outcome, is_range, now),
            (None, _) => {}
        }
        self.promise(viewer, 0);
        self.add_exact_job(viewer, own);
    }

    fn conclude_for(&mut self, viewer: Slot, outcome: &ReplayOutcome, is_range: bool, now: Instant) {
        self.promise(viewer, 0);
        match outcome {
            ReplayOutcome::NotAStream => self.end(viewer, Ending::NotFound, now),
            ReplayOutcome::Missing => self.miss(viewer, now),
            ReplayOutcome::Opened(opened) => self.open(viewer, opened, now),
            ReplayOutcome::Shown(shown) => self.show(viewer, shown, is_range, now),
            ReplayOutcome::StateTooLarge => {
                let error = HttpError::unavailable(
                    "state_too_large",
                    "the state is larger than client.max_state; read the stream instead",
                    60,
                );
                self.answer_error(viewer, &error, now);
            }
            ReplayOutcome::Exists => self.answer_head(viewer, now),
            ReplayOutcome::Searching(_)
            | ReplayOutcome::Gathering(_)
            | ReplayOutcome::State(_)
            | ReplayOutcome::Unavailable => {}
        }
    }

    /// Redis cannot serve: streams are told and wait, single answers are 503.
    fn postpone_job(&mut self, slot: Slot, now: Instant) {
        let trouble =
            self.registry.health().trouble().unwrap_or("Redis cannot serve this stream now; try again");
        let Some(job) = self.jobs.get_mut(slot) else { return };
        let viewers = std::mem::take(&mut job.viewers);
        let mut staying = Vec::with_capacity(viewers.len());
        for viewer in viewers {
            let Some(found) = self.viewers.get(viewer) else { continue };
            if matches!(found.wish.wire, Wire::State | Wire::Head) {
                let error = HttpError::unavailable("redis_unreachable", trouble, 1);
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
