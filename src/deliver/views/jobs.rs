//! Requests history reads and passes their results to viewers: decides how much each read may return, and which part
//! of the result each viewer is given. [`history_reads`](crate::deliver::history_reads) decides which viewers share a
//! read.

use std::sync::Arc;
use std::time::Instant;

use super::{Context, Effect, Views, WholeAnswer};
use crate::deliver::admission::RETRY_AFTER_S;
use crate::deliver::budget::{Charged, Share};
use crate::deliver::history_reads::Job;
use crate::deliver::http_error::HttpError;
use crate::deliver::sharing::{JobKind, for_late_viewers, opened_at};
use crate::deliver::viewer::{Ending, Wire};
use crate::message::{RECORDER, ReplayOutcome, ReplayStep, Slot, StateSearch, now_us};
use crate::model::{After, StreamStatus};

/// The number of entries that a history read requests, at least.
const READ_COUNT_MIN: usize = 16;
/// A read leaves one part in this many of the send budget free, for other bytes that may wait for a connection when
/// its viewer joins the read: the head of an answer, control frames, frames of another viewer.
const JOINING_PART: usize = 8;

impl Views {
    // ----- requesting -----

    /// Requests a read for a viewer, which may share it with others.
    pub(super) fn add_job(&mut self, slot: Slot, kind: &JobKind, cx: &mut Context<'_>) {
        let room = self.room(slot, cx);
        let Some(viewer) = self.streams.viewer(slot) else { return };
        if let Some(bytes) = self.reads.request(viewer.reader(slot), kind, room) {
            self.promise(slot, bytes, cx);
        }
    }

    /// Requests a read of exactly this position, for a viewer that a shared read did not serve.
    fn add_exact_job(&mut self, slot: Slot, kind: JobKind) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        self.reads.request_exactly(viewer.reader(slot), kind);
    }

    /// Sends the reads that were requested since the last call.
    pub(in crate::deliver) fn send_fresh_jobs(&mut self, cx: &mut Context<'_>) {
        for job in self.reads.take_fresh() {
            self.send_job(job, None, cx);
        }
    }

    /// Whether requested reads have not been sent yet.
    pub(in crate::deliver) fn has_fresh_jobs(&self) -> bool {
        self.reads.has_fresh()
    }

    /// Sends the next read of a job: `step`, if the job is in progress, or else its first one. Drops a job that no
    /// viewer wants.
    pub(in crate::deliver) fn send_job(
        &mut self,
        slot: Slot,
        step: Option<ReplayStep>,
        cx: &mut Context<'_>,
    ) {
        if !self.is_wanted(slot) {
            self.remove_job(slot);
            return;
        }
        let Some(job) = self.reads.get(slot) else { return };
        let step = step.unwrap_or_else(|| self.first_step(job));
        let shows = !matches!(step, ReplayStep::State(_) | ReplayStep::Probe);
        let viewers = job.viewers.clone();
        // The smallest room of all viewers, so that no connection exceeds its budget.
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

    /// The first step of a job.
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

    /// Whether too many reads are in progress for the number of viewers.
    pub(in crate::deliver) fn has_too_many_jobs(&self) -> bool {
        self.reads.exceed_limit(self.streams.viewers_len())
    }

    /// Whether any viewer of the job still exists.
    pub(in crate::deliver) fn is_wanted(&self, job: Slot) -> bool {
        let alive = |&viewer: &Slot| self.streams.viewer(viewer).is_some();
        self.reads.get(job).is_some_and(|job| job.viewers.iter().any(alive))
    }

    /// Removes a job for which no viewer waits.
    pub(in crate::deliver) fn remove_job(&mut self, job: Slot) {
        self.reads.remove(job);
    }

    /// Sends the jobs whose pause before a retry is over.
    pub(in crate::deliver) fn retry_jobs(&mut self, cx: &mut Context<'_>) {
        while let Some(job) = self.reads.pop_retry(cx.now) {
            self.send_job(job, None, cx);
        }
    }

    /// When the next retry is due.
    pub(in crate::deliver) fn next_retry(&self) -> Option<Instant> {
        self.reads.next_retry()
    }

    // ----- room -----

    /// The bytes that a history read may still add to the outbox of the viewer's connection.
    pub(super) fn room(&self, viewer: Slot, cx: &Context<'_>) -> usize {
        let Some(viewer) = self.streams.viewer(viewer) else { return usize::MAX };
        let waiting = cx
            .clients
            .get(viewer.connection)
            .map_or(0, |found| found.outbox.cost_bytes() + found.promised - viewer.promised);
        self.config.client.send_budget.saturating_sub(waiting)
    }

    /// Reserves this many bytes of its connection's budget for the outstanding read of a viewer, instead of those that
    /// were reserved before.
    pub(super) fn promise(&mut self, slot: Slot, bytes: usize, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        let before = std::mem::replace(&mut viewer.promised, bytes);
        let slot = viewer.connection;
        let Some(connection) = cx.clients.get_mut(slot) else { return };
        connection.promised = connection.promised - before + bytes;
        // Paused viewers of the connection may use the room that has become free.
        if bytes < before && !connection.paused.is_empty() {
            cx.clients.touch(slot);
        }
    }

    // ----- results -----

    /// Passes the result of a read to all its viewers. Viewers that joined after it was sent are given only the frames
    /// of the result: whether the stream ends there, or does not exist, may have changed meanwhile, so they request
    /// another read.
    pub(in crate::deliver) fn complete_job(
        &mut self,
        slot: Slot,
        outcome: ReplayOutcome,
        cx: &mut Context<'_>,
    ) {
        match outcome {
            ReplayOutcome::Searching(search) => {
                return self.send_job(slot, Some(ReplayStep::Search(search)), cx);
            }
            ReplayOutcome::Gathering(search) => return self.continue_state(slot, search, cx),
            ReplayOutcome::State(document) => return self.complete_state(slot, document),
            // Viewers are not notified of a short delay, unless Redis rejects the dead letters of the recorder.
            ReplayOutcome::Deferred if !self.registry.health().is_hindered(RECORDER) => {
                return self.reads.retry_later(slot, cx.now);
            }
            ReplayOutcome::Deferred | ReplayOutcome::Unavailable => return self.postpone_job(slot, cx),
            _ => {}
        }
        let Some(job) = self.reads.remove(slot) else { return };
        let (on_time, late) = job.viewers.split_at(job.on_time.min(job.viewers.len()));
        for &viewer in on_time {
            self.pass_shared_result(viewer, &job.kind, Some(&outcome), cx);
        }
        let late_outcome = for_late_viewers(outcome);
        for &viewer in late {
            self.pass_shared_result(viewer, &job.kind, late_outcome.as_ref(), cx);
        }
    }

    /// Passes the result of a shared read to one of its viewers. If the result does not serve that viewer, an exact
    /// read is requested.
    fn pass_shared_result(
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
                Some(opened_at(opened, after).map(|opened| ReplayOutcome::Opened(Box::new(opened))))
            }
            _ => None,
        };
        match begun.as_ref().map_or(outcome, Option::as_ref) {
            Some(outcome) => self.pass_result(viewer, outcome, is_range, cx),
            None => {
                self.promise(viewer, 0, cx);
                self.add_exact_job(viewer, own);
            }
        }
    }

    fn pass_result(&mut self, viewer: Slot, outcome: &ReplayOutcome, is_range: bool, cx: &mut Context<'_>) {
        self.promise(viewer, 0, cx);
        match outcome {
            ReplayOutcome::NotAStream => self.end(viewer, Ending::NotFound, cx),
            ReplayOutcome::Missing => self.await_stream(viewer, cx),
            ReplayOutcome::Opened(opened) => self.open(viewer, opened, cx),
            ReplayOutcome::Shown(shown) => self.send_history(viewer, shown, is_range, cx),
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

    /// Handles a read that Redis cannot serve: viewers of streams are sent `degraded` and wait for a retry; requests
    /// for a single answer are answered with 503.
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
                self.open_unread(viewer, cx);
                self.send_status(viewer, StreamStatus::Degraded, cx);
                staying.push(viewer);
            }
        }
        let Some(job) = self.reads.get_mut(slot) else { return };
        job.viewers = staying;
        self.reads.retry_later(slot, cx.now);
    }

    // ----- states -----

    /// Continues to assemble a state, if there is room for it beside the other states.
    fn continue_state(&mut self, slot: Slot, search: Box<StateSearch>, cx: &mut Context<'_>) {
        if self.charge_state(slot, search.gathered_bytes) {
            self.send_job(slot, Some(ReplayStep::State(search)), cx);
        } else {
            self.refuse_state(slot);
        }
    }

    /// Sends a complete state to all viewers that requested it. They share its bytes, which are charged to the budget
    /// until the last socket has accepted them.
    fn complete_state(&mut self, slot: Slot, document: Vec<u8>) {
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

    /// Charges a state to the budget of the whole process; `false` if there is no room. A state that fits into the
    /// send budget of a connection is not charged.
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
