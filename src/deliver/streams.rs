//! The viewers' way through their streams: opening, history, the seam, live, waiting, ending.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::event_loop::Delivery;
use super::response::HttpError;
use super::seam::{Ask, Live, Seam, Taken};
use super::viewer::{Anchor, Batch, Hub, Job, JobKind, Mark, Stage, Viewer, Wire, Wish};
use crate::event::message::{
    Control, Cursor, Errand, HistoryGap, HubRef, LiveFrames, Opened, ReplayOutcome, ReplayStep, Shown, Slot,
    StateSearch,
};
use crate::event::notice::{self, Unsubscribed};
use crate::event::{
    After, EntryId, Frame, Position, StreamName, StreamStatus, merge, sse_event, websocket_text, with_stream,
};

/// The least that one history read asks for.
const READ_COUNT_MIN: usize = 16;
/// What an entry is taken to need before any was seen, in bytes.
const ENTRY_BYTES_GUESS: usize = 128;
/// Jobs that may be under way for viewers who have left.
const STALE_JOBS_MAX: usize = 1024;
/// How long a stream that no viewer needs live is still read live.
const LIVE_LINGER: Duration = Duration::from_secs(1);

/// Why a viewer's stream is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Its terminal frame was sent.
    Ended,
    /// There is no such stream.
    NotFound,
}

impl Delivery {
    // ----- coming and going -----

    /// A viewer comes; what it wants is looked for.
    pub(super) fn add_viewer(&mut self, connection: Slot, wish: Wish) -> Slot {
        let hub = self.hub_of(&wish.stream);
        let place = self.hubs.get(hub).map_or(0, |hub| hub.viewers.len());
        let viewer = self.viewers.insert(Viewer {
            connection,
            hub,
            wish,
            stage: Stage::Opening,
            seam: None,
            anchor: Anchor::Start,
            opened: false,
            told: None,
            unwritten: 0,
            written: EntryId::ZERO,
            batch: None,
            entry_bytes: ENTRY_BYTES_GUESS,
            promised: 0,
            place,
        });
        if let Some(hub) = self.hubs.get_mut(hub) {
            hub.viewers.push(viewer);
        }
        self.registry.gauges().subscriptions_open.inc();
        self.registry.counters().subscriptions.inc();
        self.look_up(viewer);
        viewer
    }

    /// A viewer goes, whatever it was doing.
    pub(super) fn remove_viewer(&mut self, slot: Slot) {
        self.promise(slot, 0);
        let Some(viewer) = self.viewers.remove(slot) else { return };
        self.registry.gauges().subscriptions_open.dec();
        let Some(hub) = self.hubs.get_mut(viewer.hub) else { return };
        hub.viewers.swap_remove(viewer.place);
        self.unreported.note(viewer.hub, hub);
        if let Some(&moved) = hub.viewers.get(viewer.place)
            && let Some(moved) = self.viewers.get_mut(moved)
        {
            moved.place = viewer.place;
        }
        if self.hubs.get(viewer.hub).is_some_and(|hub| hub.viewers.is_empty()) {
            self.remove_hub(viewer.hub);
        }
    }

    fn hub_of(&mut self, stream: &StreamName) -> Slot {
        if let Some(&hub) = self.hub_by_name.get(stream) {
            return hub;
        }
        let hub = self.hubs.insert(Hub {
            stream: stream.clone(),
            viewers: Vec::new(),
            live: Live::Off,
            attach: 0,
            passed: EntryId::ZERO,
            stalled: false,
            board: None,
            unreported: false,
            awaited: false,
            idle_since: None,
        });
        self.hub_by_name.insert(stream.clone(), hub);
        hub
    }

    fn remove_hub(&mut self, slot: Slot) {
        let Some(hub) = self.hubs.remove(slot) else { return };
        self.hub_by_name.remove(&hub.stream);
        if hub.awaited {
            self.registry.gauges().streams_waited.dec();
            self.errand(Errand::Forget { stream: hub.stream.clone(), delivery: self.index });
        }
        if hub.live != Live::Off {
            let name = HubRef { slot, attach: hub.attach };
            self.control(Control::Detach { stream: hub.stream, delivery: self.index, hub: name });
        }
    }

    fn look_up(&mut self, slot: Slot) {
        let Some(viewer) = self.viewers.get(slot) else { return };
        let kind = match viewer.wish.wire {
            Wire::State => JobKind::State,
            Wire::Head => JobKind::Probe,
            _ => JobKind::Open(viewer.wish.after),
        };
        self.add_job(slot, kind);
    }

    // ----- jobs -----

    /// Viewers of one stream that want the same at the same moment share a read.
    fn add_job(&mut self, slot: Slot, kind: JobKind) {
        let Some(viewer) = self.viewers.get(slot) else { return };
        let same = |job: &Job| match (&job.kind, &kind) {
            (JobKind::Open(one), JobKind::Open(other)) => one == other,
            (JobKind::Read { from, until }, JobKind::Read { from: other_from, until: other_until }) => {
                from == other_from && until == other_until
            }
            (JobKind::State, JobKind::State) | (JobKind::Probe, JobKind::Probe) => true,
            _ => false,
        };
        let candidates = self.fresh_jobs.entry(viewer.hub).or_default();
        let shared = candidates.iter().find(|&&job| self.jobs.get(job).is_some_and(same)).copied();
        match shared.and_then(|job| self.jobs.get_mut(job)) {
            Some(job) => job.viewers.push(slot),
            None => {
                let stream = viewer.wish.stream.clone();
                let job = Job { stream, viewers: vec![slot], kind, attempts: 0 };
                let job = self.jobs.insert(job);
                candidates.push(job);
                self.registry.gauges().replay_jobs.inc();
            }
        }
    }

    /// Sends the reads that this turn has asked for.
    pub(super) fn send_fresh_jobs(&mut self) {
        for (_, jobs) in std::mem::take(&mut self.fresh_jobs) {
            for job in jobs {
                self.send_job(job, None);
            }
        }
    }

    /// Asks for a job's next read; `step` goes on with one that is under way.
    pub(super) fn send_job(&mut self, slot: Slot, step: Option<ReplayStep>) {
        if !self.is_wanted(slot) {
            return self.remove_job(slot);
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
        }
        let count = match &step {
            ReplayStep::Continue { .. } => (budget_bytes / entry_bytes)
                .clamp(READ_COUNT_MIN, self.config.delivery.replay_count.max(READ_COUNT_MIN)),
            ReplayStep::Probe => 1,
            _ => self.config.delivery.replay_count,
        };
        let Some(job) = self.jobs.get(slot) else { return };
        self.request(slot, job.stream.clone(), step, (count, budget_bytes));
    }

    /// Whether any of the viewers for whom a job was made is still there.
    pub(super) fn is_wanted(&self, slot: Slot) -> bool {
        let alive = |&viewer: &Slot| self.viewers.get(viewer).is_some();
        self.jobs.get(slot).is_some_and(|job| job.viewers.iter().any(alive))
    }

    pub(super) fn remove_job(&mut self, slot: Slot) {
        if self.jobs.remove(slot).is_some() {
            self.registry.gauges().replay_jobs.dec();
        }
    }

    /// Jobs whose viewers have left remain until their read is back: a client that keeps coming and going has
    /// to wait for that.
    pub(super) fn has_too_many_jobs(&self) -> bool {
        self.jobs.len() > self.viewers.len() + STALE_JOBS_MAX
    }

    /// The bytes that history may still add to what waits for the viewer's connection.
    fn room(&self, viewer: Slot) -> usize {
        let Some(viewer) = self.viewers.get(viewer) else { return usize::MAX };
        let waiting = self
            .connections
            .get(viewer.connection)
            .map_or(0, |found| found.outbox.cost_bytes() + found.promised - viewer.promised);
        self.config.client.send_budget.saturating_sub(waiting)
    }

    /// The viewer's outstanding read may fill so much of its connection's budget.
    fn promise(&mut self, slot: Slot, bytes: usize) {
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

    pub(super) fn conclude_job(&mut self, slot: Slot, outcome: ReplayOutcome, now: Instant) {
        match outcome {
            ReplayOutcome::Searching(search) => return self.send_job(slot, Some(ReplayStep::Search(search))),
            ReplayOutcome::Gathering(search) => return self.send_job(slot, Some(ReplayStep::State(search))),
            ReplayOutcome::Unavailable => return self.postpone_job(slot, now),
            _ => {}
        }
        let Some(job) = self.jobs.remove(slot) else { return };
        self.registry.gauges().replay_jobs.dec();
        let is_range = matches!(job.kind, JobKind::Read { until: Some(_), .. });
        for viewer in job.viewers {
            self.promise(viewer, 0);
            match &outcome {
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

    // ----- opening -----

    fn open(&mut self, slot: Slot, opened: &Opened, now: Instant) {
        let Some(viewer) = self.viewers.get(slot) else { return };
        let (follow, wire) = (viewer.wish.follow, viewer.wish.wire);
        if opened.nothing_left && !follow {
            if wire == Wire::Sse && !self.has_begun(slot) {
                return self.answer_no_content(slot, now);
            }
            self.begin_events(slot, now);
            self.say_open(slot, opened.after, opened.status);
            if let Some(terminal) = &opened.terminal {
                self.push(slot, terminal, false);
            }
            return self.end(slot, Ending::Ended, now);
        }
        self.begin_events(slot, now);
        self.say_open(slot, opened.after, opened.status);
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        viewer.stage = Stage::Reading;
        viewer.seam = Some(Seam::new(opened.from));
        self.show(slot, &opened.shown, false, now);
    }

    fn say_open(&mut self, slot: Slot, after: Position, status: StreamStatus) {
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        if viewer.opened {
            return;
        }
        viewer.opened = true;
        let was_told = viewer.told.replace(status);
        let json = notice::open(&viewer.wish.stream, after, status);
        self.say(slot, None, &json);
        // Who was told of an outage before is told of its end in the same words as everybody.
        if was_told == Some(StreamStatus::Degraded) && status == StreamStatus::Live {
            self.say(slot, None, &notice::status(status));
        }
    }

    /// There is no such stream, or not any more.
    fn miss(&mut self, slot: Slot, now: Instant) {
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        let deadline = match viewer.stage {
            Stage::Waiting(deadline) | Stage::Returning(deadline) => deadline,
            Stage::Opening | Stage::Reading => now + viewer.wish.wait,
        };
        viewer.stage = Stage::Waiting(deadline);
        if deadline <= now {
            return self.end(slot, Ending::NotFound, now);
        }
        let after = match viewer.wish.after {
            After::At(position) => position,
            After::Last | After::Tail => Position::ZERO,
        };
        let (hub, connection, wire) = (viewer.hub, viewer.connection, viewer.wish.wire);
        match wire {
            Wire::WebSocket | Wire::Multiplexed => {
                self.say_open(slot, after, StreamStatus::Waiting);
                self.tell(slot, StreamStatus::Waiting);
            }
            Wire::Sse if self.has_begun(slot) => self.tell(slot, StreamStatus::Waiting),
            Wire::Sse | Wire::State | Wire::Head => {}
        }
        self.arm(connection, deadline);
        let Some(hub) = self.hubs.get_mut(hub) else { return };
        if !std::mem::replace(&mut hub.awaited, true) {
            let stream = hub.stream.clone();
            self.registry.gauges().streams_waited.inc();
            self.errand(Errand::Wait { stream, delivery: self.index });
        }
    }

    /// A stream that was waited for is there.
    pub(super) fn appear(&mut self, stream: &StreamName) {
        let Some(&slot) = self.hub_by_name.get(stream) else { return };
        let Some(hub) = self.hubs.get_mut(slot) else { return };
        if std::mem::replace(&mut hub.awaited, false) {
            self.registry.gauges().streams_waited.dec();
        }
        for viewer in hub.viewers.clone() {
            let Some(found) = self.viewers.get_mut(viewer) else { continue };
            let Stage::Waiting(deadline) = found.stage else { continue };
            found.stage = Stage::Returning(deadline);
            match &mut found.seam {
                Some(seam) => {
                    let ask = seam.retry();
                    self.ask(viewer, ask);
                }
                None => {
                    // A name that was waited for is told from its beginning.
                    if !matches!(found.wish.after, After::At(_)) {
                        found.wish.after = After::At(Position::ZERO);
                    }
                    self.look_up(viewer);
                }
            }
        }
    }

    /// Whether a wait has run out, it is ended.
    pub(super) fn judge_wait(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        match self.viewers.get(slot)?.stage {
            Stage::Waiting(deadline) if deadline <= now => {
                self.end(slot, Ending::NotFound, now);
                None
            }
            Stage::Waiting(deadline) => Some(deadline),
            Stage::Opening | Stage::Returning(_) | Stage::Reading => None,
        }
    }

    // ----- history -----

    fn show(&mut self, slot: Slot, shown: &Shown, is_range: bool, now: Instant) {
        self.flush_batch(slot);
        if let Some(StreamStatus::Degraded | StreamStatus::Waiting) =
            self.viewers.get(slot).and_then(|viewer| viewer.told)
        {
            self.tell(slot, StreamStatus::Live);
        }
        if let Some(gap) = shown.gap {
            self.say_gap(slot, gap);
        }
        for frame in &shown.frames {
            self.push(slot, frame, false);
        }
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        viewer.stage = Stage::Reading;
        viewer.anchor = Anchor::Cursor(Box::new(shown.cursor.clone()));
        if let Some(seen) = shown.entries_bytes.checked_div(shown.entries) {
            viewer.entry_bytes = (viewer.entry_bytes * 3 + seen) / 4 + 1;
        }
        let over = shown.exhausted && !is_range && viewer.anchor.is_terminal() && !viewer.wish.follow;
        if over {
            return self.end(slot, Ending::Ended, now);
        }
        let position = shown.frames.last().map_or_else(|| gap_end(shown), |frame| frame.last);
        let room = self.room(slot) >= self.config.client.send_budget / 2;
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        let live = self.hubs.get(viewer.hub).map_or(Live::Off, |hub| hub.live);
        let Some(seam) = &mut viewer.seam else { return };
        let (held, ask) = seam.read(position, shown.exhausted, room, live);
        let paused = seam.is_paused();
        for frame in &held {
            self.give_live(slot, frame, now);
        }
        if paused {
            self.pause(slot);
        }
        self.ask(slot, ask);
        self.settle(slot, now);
    }

    fn say_gap(&mut self, slot: Slot, gap: HistoryGap) {
        let counters = self.registry.counters();
        let (id, json) = match gap {
            HistoryGap::Trimmed { after, next, id, lost } => {
                counters.gaps_trimmed.inc();
                (id, notice::gap_trimmed(after, next.or(id), lost))
            }
            HistoryGap::Recreated { after, next } => {
                counters.gaps_recreated.inc();
                (None, notice::gap_recreated(after, Some(next)))
            }
            HistoryGap::Failover { after, newest } => {
                counters.gaps_failover.inc();
                (Some(newest), notice::gap_failover(after, Some(newest), newest))
            }
        };
        self.say(slot, id.map(Position::whole), &json);
    }

    // ----- the seam -----

    fn ask(&mut self, slot: Slot, ask: Ask) {
        let Some(viewer) = self.viewers.get(slot) else { return };
        match ask {
            Ask::Nothing => {}
            Ask::Read { until } => {
                let from = viewer.anchor.cursor();
                self.add_job(slot, JobKind::Read { from, until });
            }
            Ask::Attach => {
                let (hub, from) = (viewer.hub, viewer.anchor.cursor());
                let Some(found) = self.hubs.get_mut(hub) else { return };
                found.live = Live::Attaching;
                found.attach += 1;
                let (stream, hub) = (found.stream.clone(), HubRef { slot: hub, attach: found.attach });
                self.control(Control::Attach { stream, delivery: self.index, hub, from });
            }
        }
    }

    /// What follows from where the viewer stands now.
    fn settle(&mut self, slot: Slot, now: Instant) {
        let Some(viewer) = self.viewers.get(slot) else { return };
        if !viewer.seam.as_ref().is_some_and(Seam::is_live) {
            return;
        }
        let stalled = self.hubs.get(viewer.hub).is_some_and(|hub| hub.stalled);
        if viewer.anchor.is_terminal() && !viewer.wish.follow {
            return self.end(slot, Ending::Ended, now);
        }
        match viewer.told {
            Some(StreamStatus::Degraded | StreamStatus::Waiting) => {
                self.tell(slot, if stalled { StreamStatus::Stalled } else { StreamStatus::Live });
            }
            Some(StreamStatus::Live | StreamStatus::Ended | StreamStatus::Failed) if stalled => {
                self.tell(slot, StreamStatus::Stalled)
            }
            Some(StreamStatus::Stalled) if !stalled => self.tell(slot, StreamStatus::Live),
            _ => {}
        }
    }

    pub(super) fn attached(
        &mut self,
        name: HubRef,
        cursor: &Cursor,
        (stalled, board): (bool, Arc<crate::event::message::AckBoard>),
        now: Instant,
    ) {
        let Some(hub) = self.hub(name) else { return };
        hub.live = Live::On(cursor.position);
        hub.passed = cursor.position.id;
        hub.stalled = stalled;
        hub.board = Some(board);
        hub.idle_since = None;
        let viewers = hub.viewers.clone();
        self.note_unreported(name.slot);
        for viewer in viewers {
            let ask = self.seam_of(viewer).map_or(Ask::Nothing, |seam| seam.attached(cursor.position));
            self.ask(viewer, ask);
            self.settle(viewer, now);
        }
    }

    /// Live frames of a stream have ended; the viewers go on from history.
    pub(super) fn broken(&mut self, name: HubRef) {
        let Some(hub) = self.hub(name) else { return };
        hub.live = Live::Off;
        hub.attach += 1;
        hub.board = None;
        for viewer in hub.viewers.clone() {
            self.flush_batch(viewer);
            let ask = self.seam_of(viewer).map_or(Ask::Nothing, Seam::broken);
            self.ask(viewer, ask);
        }
    }

    /// The stream that a message is about, unless the message belongs to an earlier asking for live frames.
    fn hub(&mut self, name: HubRef) -> Option<&mut Hub> {
        self.hubs.get_mut(name.slot).filter(|hub| hub.attach == name.attach)
    }

    fn note_unreported(&mut self, slot: Slot) {
        if let Some(hub) = self.hubs.get_mut(slot) {
            self.unreported.note(slot, hub);
        }
    }

    fn seam_of(&mut self, viewer: Slot) -> Option<&mut Seam<Arc<Frame>>> {
        self.viewers.get_mut(viewer)?.seam.as_mut()
    }

    // ----- live -----

    pub(super) fn live(&mut self, news: &LiveFrames, now: Instant) {
        let Some(hub) = self.hub(news.hub) else { return };
        let Live::On(position) = hub.live else { return };
        hub.live = Live::On(news.frames.last().map_or(position, |frame| frame.last.max(position)));
        hub.passed = news.cursor.position.id;
        let mut place = hub.viewers.len();
        self.note_unreported(news.hub.slot);
        // From the last to the first: a viewer that ends has its place taken by one that had its turn.
        while place > 0 {
            place -= 1;
            let viewer = self.hubs.get(news.hub.slot).and_then(|hub| hub.viewers.get(place)).copied();
            let Some(viewer) = viewer else { continue };
            for frame in news.frames.iter() {
                self.offer_live(viewer, frame, now);
            }
            self.settle(viewer, now);
        }
    }

    fn offer_live(&mut self, slot: Slot, frame: &Arc<Frame>, now: Instant) {
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        let Some(seam) = &mut viewer.seam else { return };
        let gathered = viewer.batch.as_ref().map_or(0, |batch| batch.bytes);
        let Some(connection) = self.connections.get(viewer.connection) else { return };
        let waiting = connection.outbox.cost_bytes() + gathered;
        let budget = self.config.client.send_budget;
        if seam.is_live() && waiting > 0 && waiting + frame.json().len() > budget {
            seam.fall_back();
            self.registry.counters().clients_fell_back.inc();
            self.flush_batch(slot);
            return self.pause(slot);
        }
        match seam.live(frame, budget.saturating_sub(waiting)) {
            Taken::Deliver => self.give_live(slot, frame, now),
            Taken::Bridge { until } => {
                self.flush_batch(slot);
                self.ask(slot, Ask::Read { until: Some(until) });
            }
            Taken::Held | Taken::Ignored => {}
        }
    }

    fn pause(&mut self, slot: Slot) {
        let Some(viewer) = self.viewers.get(slot) else { return };
        if let Some(connection) = self.connections.get_mut(viewer.connection) {
            connection.paused.push_back(slot);
        }
        let (hub, connection) = (viewer.hub, viewer.connection);
        self.note_unreported(hub);
        self.touch(connection);
    }

    /// A connection has drained: as many of its paused viewers go on as there is room for.
    pub(super) fn resume_paused(&mut self, connection: Slot) {
        let budget = self.config.client.send_budget;
        while let Some(found) = self.connections.get_mut(connection)
            && !found.paused.is_empty()
            && found.outbox.cost_bytes() + found.promised <= budget / 2
        {
            let Some(viewer) = found.paused.pop_front() else { return };
            let ask = self.seam_of(viewer).map_or(Ask::Nothing, Seam::resume);
            self.ask(viewer, ask);
            // What is asked now is promised now, so that the next one finds what is left.
            self.send_fresh_jobs();
        }
    }

    pub(super) fn stalled(&mut self, name: HubRef, stalled: bool, now: Instant) {
        let Some(hub) = self.hub(name) else { return };
        hub.stalled = stalled;
        for viewer in hub.viewers.clone() {
            self.settle(viewer, now);
        }
    }

    // ----- giving -----

    fn give_live(&mut self, slot: Slot, frame: &Arc<Frame>, now: Instant) {
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        viewer.anchor = Anchor::Frame(Arc::clone(frame));
        if viewer.wish.batch.is_zero() {
            return self.push(slot, frame, true);
        }
        let due = now + viewer.wish.batch;
        let connection = viewer.connection;
        let batch = viewer.batch.get_or_insert_with(|| Box::new(Batch { frames: Vec::new(), bytes: 0, due }));
        batch.frames.push(Arc::clone(frame));
        batch.bytes += frame.json().len();
        let due = batch.due;
        if frame.is_terminal() {
            self.flush_batch(slot);
        } else {
            self.arm(connection, due);
        }
    }

    /// Sends what was gathered, merged.
    pub(super) fn flush_batch(&mut self, slot: Slot) {
        let Some(batch) = self.viewers.get_mut(slot).and_then(|viewer| viewer.batch.take()) else { return };
        for frame in merge(&batch.frames) {
            self.push(slot, &frame, true);
        }
    }

    /// Sends what was gathered if its time has come; else says when.
    pub(super) fn judge_batch(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        let due = self.viewers.get(slot)?.batch.as_ref()?.due;
        if due > now {
            return Some(due);
        }
        self.flush_batch(slot);
        None
    }

    fn push(&mut self, slot: Slot, frame: &Arc<Frame>, live: bool) {
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        viewer.unwritten += 1;
        let bytes = match viewer.wish.wire {
            Wire::WebSocket => frame.websocket(),
            Wire::Multiplexed => frame.multiplexed(),
            Wire::Sse => frame.sse(),
            Wire::State | Wire::Head => return,
        };
        let connection = viewer.connection;
        self.send(connection, bytes, Some(Mark { viewer: slot, frame: Arc::clone(frame), live }));
    }

    /// Sends a viewer something that concerns it alone.
    fn say(&mut self, slot: Slot, id: Option<Position>, json: &[u8]) {
        let Some(viewer) = self.viewers.get(slot) else { return };
        let bytes: Bytes = match viewer.wish.wire {
            Wire::WebSocket => websocket_text(json),
            Wire::Multiplexed => websocket_text(&with_stream(json, &viewer.wish.stream)),
            Wire::Sse => sse_event(id, json),
            Wire::State | Wire::Head => return,
        };
        self.send(viewer.connection, bytes, None);
    }

    /// Tells a viewer how its stream stands, unless it knows.
    pub(super) fn tell(&mut self, slot: Slot, status: StreamStatus) {
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        if viewer.told == Some(status) {
            return;
        }
        viewer.told = Some(status);
        self.flush_batch(slot);
        self.say(slot, None, &notice::status(status));
    }

    /// The viewer's stream is over for it.
    fn end(&mut self, slot: Slot, ending: Ending, now: Instant) {
        self.flush_batch(slot);
        let Some(viewer) = self.viewers.get(slot) else { return };
        let (connection, wire, stream) = (viewer.connection, viewer.wish.wire, viewer.wish.stream.clone());
        if wire == Wire::Multiplexed {
            let reason = match ending {
                Ending::Ended => Unsubscribed::Ended,
                Ending::NotFound => Unsubscribed::NotFound,
            };
            return self.unsubscribe(connection, &stream, reason);
        }
        self.end_connection(connection, slot, ending, now);
    }

    // ----- acknowledging and tidying -----

    /// A frame was taken by a socket.
    pub(super) fn written(&mut self, mark: &Mark) {
        let Some(viewer) = self.viewers.get_mut(mark.viewer) else { return };
        viewer.unwritten = viewer.unwritten.saturating_sub(1);
        viewer.written = mark.frame.last.id;
        let hub = viewer.hub;
        self.note_unreported(hub);
    }

    /// Reports how far each stream is on the sockets, and lets go of live text that nobody needs.
    pub(super) fn report_written(&mut self, now: Instant) {
        for slot in self.unreported.take() {
            let Some(hub) = self.hubs.get_mut(slot) else { continue };
            hub.unreported = false;
            if let Some(board) = &hub.board {
                board.written(self.index, written_up_to(hub, &self.viewers));
            }
            if !matches!(hub.live, Live::On(_)) {
                continue;
            }
            let needed = hub.viewers.iter().filter_map(|&viewer| self.viewers.get(viewer));
            if needed.filter_map(|viewer| viewer.seam.as_ref()).any(Seam::needs_live) {
                hub.idle_since = None;
            } else if now.duration_since(*hub.idle_since.get_or_insert(now)) < LIVE_LINGER {
                self.unreported.note(slot, hub);
            } else {
                let (stream, name) = (hub.stream.clone(), HubRef { slot, attach: hub.attach });
                hub.live = Live::Off;
                hub.attach += 1;
                hub.board = None;
                hub.idle_since = None;
                self.control(Control::Detach { stream, delivery: self.index, hub: name });
            }
        }
    }

    /// A transform thread had no room for what concerned these: hubs go back to history, jobs are asked again.
    pub(super) fn catch_up(&mut self) {
        let missed = std::mem::take(&mut *self.missed.lock());
        for hub in missed.hubs {
            self.broken(hub);
        }
        for job in missed.jobs {
            self.send_job(job, None);
        }
    }
}

/// Streams of which something was written, or which may not be needed live any more, since the last report.
#[derive(Debug, Default)]
pub(super) struct Unreported(Vec<Slot>);

impl Unreported {
    /// Notes a stream, once.
    fn note(&mut self, slot: Slot, hub: &mut Hub) {
        if !std::mem::replace(&mut hub.unreported, true) {
            self.0.push(slot);
        }
    }

    fn take(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.0)
    }
}

/// Up to where a stream is on the sockets of its live viewers; a viewer that is in history holds nothing back.
fn written_up_to(hub: &Hub, viewers: &super::table::Table<Viewer>) -> EntryId {
    let live = hub.viewers.iter().filter_map(|&viewer| viewers.get(viewer));
    live.filter(|viewer| viewer.seam.as_ref().is_some_and(Seam::is_live))
        .filter(|viewer| viewer.unwritten > 0 || viewer.batch.is_some())
        .map(|viewer| viewer.written)
        .min()
        .unwrap_or(hub.passed)
}

/// Where a read without frames has brought its viewers: a gap may end at an id of its own.
fn gap_end(shown: &Shown) -> Position {
    match shown.gap {
        Some(HistoryGap::Trimmed { id: Some(id), .. }) => Position::whole(id),
        _ => Position::ZERO,
    }
}

/// Jobs that were made in this turn and may still take more viewers, by hub.
pub(super) type FreshJobs = HashMap<Slot, Vec<Slot>>;
