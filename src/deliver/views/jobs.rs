//! History reads at work: how much each may bring, and which of its viewers gets what of its result. See
//! [`history_reads`](crate::deliver::history_reads) for who shares which.

use std::sync::Arc;
use std::time::Instant;

use super::{Context, Effect, Views, WholeAnswer};
use crate::deliver::admission::RETRY_AFTER_S;
use crate::deliver::budget::{Charged, Share};
use crate::deliver::history_reads::Job;
use crate::deliver::http_error::HttpError;
use crate::deliver::sharing::{JobKind, begun_at, stretch};
use crate::deliver::viewer::{Ending, Wire};
use crate::message::{RECORDER, ReplayOutcome, ReplayStep, Slot, StateSearch, now_us};
use crate::model::{After, StreamStatus};

/// The least number of entries that one history read asks for.
const READ_COUNT_MIN: usize = 16;
/// The part of the send budget that a read leaves for what else may wait for a connection when its viewer joins: an
/// answer's head, notices, another viewer's frames.
const JOINING_PART: usize = 8;

impl Views {
    // ----- asking -----

    /// A viewer wants something read, and shares the read with others.
    pub(super) fn add_job(&mut self, slot: Slot, kind: &JobKind, cx: &mut Context<'_>) {
        let room = self.room(slot, cx);
        let Some(viewer) = self.streams.viewer(slot) else { return };
        if let Some(bytes) = self.reads.want(viewer.reader(slot), kind, room) {
            self.promise(slot, bytes, cx);
        }
    }

    /// A read of exactly that, for a viewer that does not find it in a read that begins earlier.
    fn add_exact_job(&mut self, slot: Slot, kind: JobKind) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        self.reads.want_exactly(viewer.reader(slot), kind);
    }

    /// Sends the reads that were asked for since the last call.
    pub(in crate::deliver) fn send_fresh_jobs(&mut self, cx: &mut Context<'_>) {
        for job in self.reads.take_fresh() {
            self.send_job(job, None, cx);
        }
    }

    /// Whether reads were asked for that were not sent yet.
    pub(in crate::deliver) fn has_fresh_jobs(&self) -> bool {
        self.reads.has_fresh()
    }

    /// Asks for a job's next read; `step` goes on with one that is under way.
    pub(in crate::deliver) fn send_job(
        &mut self,
        slot: Slot,
        step: Option<ReplayStep>,
        cx: &mut Context<'_>,
    ) {
        if !self.is_wanted(slot) {
            self.forget_job(slot);
            return;
        }
        let Some(job) = self.reads.get(slot) else { return };
        let step = step.unwrap_or_else(|| self.first_step(job));
        let shows = !matches!(step, ReplayStep::State(_) | ReplayStep::Probe);
        let viewers = job.viewers.clone();
        // The room of the most occupied viewer, so that no viewer's budget is exceeded.
        let send_budget = self.config.client.send_budget;
        let (mut budget_bytes, mut entry_bytes) = (send_budget - send_budget / JOINING_PART, 1);
        for &viewer in &viewers {
            budget_bytes = budget_bytes.min(self.room(viewer, cx));
            entry_bytes = entry_bytes.max(self.streams.viewer(viewer).map_or(1, |viewer| viewer.entry_bytes));
        }
        if shows {
            for viewer in viewers {
                self.promise(viewer, budget_bytes, cx);
            }
            if let Some(job) = self.reads.get_mut(slot) {
                job.budget_bytes = budget_bytes;
            }
        }
        let count = match &step {
            ReplayStep::Continue { .. } => (budget_bytes / entry_bytes)
                .clamp(READ_COUNT_MIN, self.config.delivery.replay_count.max(READ_COUNT_MIN)),
            ReplayStep::Probe => 1,
            _ => self.config.delivery.replay_count,
        };
        let Some(job) = self.reads.get_mut(slot) else { return };
        job.on_time = job.viewers.len();
        let appeared_us = self.streams.hub(job.hub).and_then(|hub| hub.appeared_us(now_us()));
        let stream = (job.stream.clone(), appeared_us);
        cx.outbound.request(slot, stream, step, (count, budget_bytes));
    }

    /// The step with which a job begins.
    fn first_step(&self, job: &Job) -> ReplayStep {
        match &job.kind {
            JobKind::Open(after) => ReplayStep::Open { after: *after, early: false, outlined: job.outlined },
            JobKind::Around(from) => {
                ReplayStep::Open { after: After::At(*from), early: true, outlined: job.outlined }
            }
            JobKind::Read { from, until } => ReplayStep::Continue { from: from.clone(), until: *until },
            JobKind::State => ReplayStep::State(Box::new(StateSearch {
                max_bytes: self.config.client.max_state,
                ..StateSearch::default()
            })),
            JobKind::Probe => ReplayStep::Probe,
        }
    }

    /// Whether more reads are under way than there are viewers for.
    pub(in crate::deliver) fn has_too_many_jobs(&self) -> bool {
        self.reads.are_too_many(self.streams.viewers_len())
    }

    /// Whether any of the viewers for whom a job was made is still there.
    pub(in crate::deliver) fn is_wanted(&self, job: Slot) -> bool {
        let alive = |&viewer: &Slot| self.streams.viewer(viewer).is_some();
        self.reads.get(job).is_some_and(|job| job.viewers.iter().any(alive))
    }

    /// Nobody waits for this job any more.
    pub(in crate::deliver) fn forget_job(&mut self, job: Slot) {
        self.reads.remove(job);
    }

    /// Asks those jobs again whose pause is over.
    pub(in crate::deliver) fn retry_jobs(&mut self, cx: &mut Context<'_>) {
        while let Some(job) = self.reads.pop_retry(cx.now) {
            self.send_job(job, None, cx);
        }
    }

    /// When the next pause is over.
    pub(in crate::deliver) fn next_retry(&self) -> Option<Instant> {
        self.reads.next_retry()
    }

    // ----- room -----

    /// The bytes that history may still add to what waits for the viewer's connection.
    pub(super) fn room(&self, viewer: Slot, cx: &Context<'_>) -> usize {
        let Some(viewer) = self.streams.viewer(viewer) else { return usize::MAX };
        let waiting = cx
            .clients
            .get(viewer.connection)
            .map_or(0, |found| found.outbox.cost_bytes() + found.promised - viewer.promised);
        self.config.client.send_budget.saturating_sub(waiting)
    }

    /// The viewer's outstanding read may fill so much of its connection's budget.
    pub(super) fn promise(&mut self, slot: Slot, bytes: usize, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        let before = std::mem::replace(&mut viewer.promised, bytes);
        let slot = viewer.connection;
        let Some(connection) = cx.clients.get_mut(slot) else { return };
        connection.promised = connection.promised - before + bytes;
        // Room that is given back is room for those who wait for it.
        if bytes < before && !connection.paused.is_empty() {
            cx.clients.touch(slot);
        }
    }

    // ----- results -----

    /// Gives a read's result to all its viewers. For those that joined after it was asked, it is a stretch of the
    /// stream and no more: they ask anew whether its end is the end of all, and whether there is no stream.
    pub(in crate::deliver) fn conclude_job(
        &mut self,
        slot: Slot,
        outcome: ReplayOutcome,
        cx: &mut Context<'_>,
    ) {
        match outcome {
            ReplayOutcome::Searching(search) => {
                return self.send_job(slot, Some(ReplayStep::Search(search)), cx);
            }
            ReplayOutcome::Gathering(search) => return self.gather_on(slot, search, cx),
            ReplayOutcome::State(document) => return self.conclude_state(slot, document),
            // A short wait is not shown to viewers, unless Redis takes no dead letters.
            ReplayOutcome::Deferred if !self.registry.health().is_hindered(RECORDER) => {
                return self.reads.retry_later(slot, cx.now);
            }
            ReplayOutcome::Deferred | ReplayOutcome::Unavailable => return self.postpone_job(slot, cx),
            _ => {}
        }
        let Some(job) = self.reads.remove(slot) else { return };
        let (on_time, late) = job.viewers.split_at(job.on_time.min(job.viewers.len()));
        for &viewer in on_time {
            self.conclude_shared(viewer, &job.kind, Some(&outcome), cx);
        }
        let stretch = stretch(outcome);
        for &viewer in late {
            self.conclude_shared(viewer, &job.kind, stretch.as_ref(), cx);
        }
    }

    /// Gives a shared read's result to one of its viewers. One for which it holds nothing asks anew.
    fn conclude_shared(
        &mut self,
        viewer: Slot,
        kind: &JobKind,
        outcome: Option<&ReplayOutcome>,
        cx: &mut Context<'_>,
    ) {
        let is_range = matches!(kind, JobKind::Read { until: Some(_), .. });
        let Some(found) = self.streams.viewer(viewer) else { return };
        let after = found.options.after;
        let own = if matches!(kind, JobKind::Around(_)) { JobKind::Open(after) } else { kind.clone() };
        let begun = match (kind, after, outcome) {
            (JobKind::Around(_), After::At(after), Some(ReplayOutcome::Opened(opened))) => {
                Some(begun_at(opened, after).map(|opened| ReplayOutcome::Opened(Box::new(opened))))
            }
            _ => None,
        };
        match begun.as_ref().map_or(outcome, Option::as_ref) {
            Some(outcome) => self.conclude_for(viewer, outcome, is_range, cx),
            None => {
                self.promise(viewer, 0, cx);
                self.add_exact_job(viewer, own);
            }
        }
    }

    fn conclude_for(&mut self, viewer: Slot, outcome: &ReplayOutcome, is_range: bool, cx: &mut Context<'_>) {
        self.promise(viewer, 0, cx);
        match outcome {
            ReplayOutcome::NotAStream => self.end(viewer, Ending::NotFound, cx),
            ReplayOutcome::Missing => self.miss(viewer, cx),
            ReplayOutcome::Opened(opened) => self.open(viewer, opened, cx),
            ReplayOutcome::Shown(shown) => self.show(viewer, shown, is_range, cx),
            ReplayOutcome::StateTooLarge => {
                let message = "the state is larger than client.max_state; read the stream instead, with \
                               `Accept: text/event-stream`";
                self.answer_whole(
                    viewer,
                    WholeAnswer::Error(HttpError::new(406, "state_too_large", message)),
                );
            }
            ReplayOutcome::Exists => self.answer_whole(viewer, WholeAnswer::Exists),
            ReplayOutcome::Searching(_)
            | ReplayOutcome::Gathering(_)
            | ReplayOutcome::State(_)
            | ReplayOutcome::Deferred
            | ReplayOutcome::Unavailable => {}
        }
    }

    /// Redis cannot serve: viewers of streams are sent so and wait, single answers are 503.
    fn postpone_job(&mut self, slot: Slot, cx: &mut Context<'_>) {
        let trouble =
            self.registry.health().trouble().unwrap_or("Redis cannot serve this stream now; try again");
        let Some(job) = self.reads.get_mut(slot) else { return };
        let viewers = std::mem::take(&mut job.viewers);
        let mut staying = Vec::with_capacity(viewers.len());
        for viewer in viewers {
            let Some(found) = self.streams.viewer(viewer) else { continue };
            if matches!(found.options.wire, Wire::State | Wire::Head) {
                let error = HttpError::unavailable("redis_unreachable", trouble, 1);
                self.answer_whole(viewer, WholeAnswer::Error(error));
            } else {
                self.begin_events(viewer, cx);
                self.open_unseen(viewer, cx);
                self.send_status(viewer, StreamStatus::Degraded, cx);
                staying.push(viewer);
            }
        }
        let Some(job) = self.reads.get_mut(slot) else { return };
        job.viewers = staying;
        self.reads.retry_later(slot, cx.now);
    }

    // ----- states -----

    /// A state is put together further, if there is room for it beside those of others.
    fn gather_on(&mut self, slot: Slot, search: Box<StateSearch>, cx: &mut Context<'_>) {
        if self.charge_state(slot, search.gathered_bytes) {
            self.send_job(slot, Some(ReplayStep::State(search)), cx);
        } else {
            self.refuse_state(slot);
        }
    }

    /// A state is there: all viewers that wanted it share its bytes, which count until the last of them has taken them.
    fn conclude_state(&mut self, slot: Slot, document: Vec<u8>) {
        if !self.charge_state(slot, document.len()) {
            return self.refuse_state(slot);
        }
        let Some(mut job) = self.reads.remove(slot) else { return };
        let document = match job.share.take() {
            Some(share) => Charged::shared(document, share),
            None => document.into(),
        };
        for viewer in job.viewers {
            self.answer_whole(viewer, WholeAnswer::State(document.clone()));
        }
    }

    /// Charges a state to the budget of all; one that a connection may have waiting anyhow is not charged. `false`:
    /// there is no room.
    fn charge_state(&mut self, slot: Slot, bytes: usize) -> bool {
        if bytes <= self.config.client.send_budget {
            return true;
        }
        let Some(job) = self.reads.get_mut(slot) else { return true };
        let answers = &self.answers;
        job.share.get_or_insert_with(|| Share::of(Arc::clone(answers))).resize(bytes)
    }

    fn refuse_state(&mut self, slot: Slot) {
        let Some(job) = self.reads.remove(slot) else { return };
        let message = "other large states are being sent now; try again, or read the stream instead";
        let error = HttpError::unavailable("overloaded", message, RETRY_AFTER_S);
        for viewer in job.viewers {
            self.answer_whole(viewer, WholeAnswer::Error(error.clone()));
        }
    }

    fn answer_whole(&mut self, viewer: Slot, answer: WholeAnswer) {
        self.effects.push_back(Effect::Answered { viewer, answer });
    }
}
