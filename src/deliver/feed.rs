//! Feeding viewers: history as it is read, live frames as they come, and the seam between the two.

use std::sync::Arc;
use std::time::Instant;

use super::delivery::Delivery;
use super::outbox::Chunk;
use super::seam::{Ask, Live, Seam, Taken};
use super::sharing::JobKind;
use super::viewer::{Batch, Ending, Mark, Reading, Shape, Wire};
use crate::message::{Control, Cursor, HistoryGap, HubRef, LiveFrames, Shown, Slot, now_us};
use crate::model::{
    AckWatermark, Frame, Position, StreamStatus, control_frames, merge, sse_event, websocket_text,
    with_stream,
};

impl Delivery {
    // ----- history -----

    pub(super) fn show(&mut self, slot: Slot, shown: &Shown, is_range: bool, now: Instant) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        if viewer.read_on().is_none() {
            return self.flush_batch(slot);
        }
        self.begin_shown(slot, shown.gap);
        for frame in &shown.frames {
            self.push(slot, frame, false);
        }
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        let Some(reading) = viewer.reading_mut() else { return };
        reading.anchor.clone_from(&shown.cursor);
        if let Some(seen) = shown.entries_bytes.checked_div(shown.entries) {
            viewer.entry_bytes = (viewer.entry_bytes * 3 + seen) / 4 + 1;
        }
        let over = shown.exhausted && !is_range && shown.cursor.is_terminal() && !viewer.options.follow;
        if over {
            return self.end(slot, Ending::Ended, now);
        }
        let position = shown.frames.last().map_or_else(|| gap_end(shown), |frame| frame.last);
        let room = self.room(slot) >= self.config.client.send_budget / 2;
        let Some((viewer, hub)) = self.streams.viewer_and_hub(slot) else { return };
        let live = hub.live;
        let Some(Reading { seam, .. }) = viewer.reading_mut() else { return };
        // Live text has told an end that no entry says, and that a read up to an entry cannot tell.
        let finishing = shown.cursor.state.finishing().filter(|_| shown.exhausted);
        let misses_end = finishing.is_some_and(|newest| seam.bridges_to(Position::whole(newest)));
        // The held frames are of the stream as it was before it was created anew.
        let is_anew = is_range && matches!(shown.gap, Some(HistoryGap::Recreated { .. }));
        let (held, ask) = if misses_end || is_anew {
            (Vec::new(), seam.read_to_end(position))
        } else {
            seam.read(position, shown.exhausted, room, live)
        };
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

    /// Tells a viewer what comes before what was read for it: that its wait is over, and what is missing.
    pub(super) fn begin_shown(&mut self, slot: Slot, gap: Option<HistoryGap>) {
        self.flush_batch(slot);
        let known = self.streams.viewer(slot).and_then(|viewer| viewer.known_status);
        if let Some(StreamStatus::Degraded | StreamStatus::Waiting) = known {
            self.tell(slot, StreamStatus::Live);
        }
        if let Some(gap) = gap {
            self.say_gap(slot, gap);
        }
    }

    fn say_gap(&mut self, slot: Slot, gap: HistoryGap) {
        if matches!(gap, HistoryGap::Recreated { .. }) {
            self.restart_translation(slot);
        }
        let counters = self.registry.counters();
        let (id, json) = match gap {
            HistoryGap::Trimmed { after, next, id, lost } => {
                counters.gaps_trimmed.inc();
                (id, control_frames::gap_trimmed(after, next.or(id), id, lost))
            }
            HistoryGap::Recreated { after, next } => {
                counters.gaps_recreated.inc();
                (None, control_frames::gap_recreated(after, Some(next)))
            }
            HistoryGap::Failover { after, newest } => {
                counters.gaps_failover.inc();
                (Some(newest), control_frames::gap_failover(after, Some(newest), newest))
            }
        };
        self.say(slot, id.map(Position::whole), &json);
    }

    // ----- the seam -----

    pub(super) fn ask(&mut self, slot: Slot, ask: Ask) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        match ask {
            Ask::Nothing => {}
            Ask::Read { until } => {
                let Some(from) = viewer.given().cloned() else { return };
                self.add_job(slot, &JobKind::Read { from, until });
            }
            Ask::Attach => {
                let (hub, Some(from)) = (viewer.hub, viewer.given().cloned()) else { return };
                let Some(found) = self.streams.hub_mut(hub) else { return };
                let appeared_us = found.appeared_us(now_us());
                found.live = Live::Attaching;
                found.attach += 1;
                let (stream, hub) = (found.stream.clone(), HubRef { slot: hub, attach: found.attach });
                self.outbound.control(Control::Attach {
                    stream,
                    delivery: self.outbound.delivery(),
                    hub,
                    from,
                    appeared_us,
                });
            }
        }
    }

    /// Ends a live viewer of a finished stream, or tells it whether the producer is stalled.
    fn settle(&mut self, slot: Slot, now: Instant) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        let Some(reading) = viewer.reading().filter(|reading| reading.seam.is_live()) else { return };
        let stalled = self.streams.hub(viewer.hub).is_some_and(|hub| hub.stalled);
        let is_over = reading.anchor.is_terminal();
        if is_over && !viewer.options.follow {
            return self.end(slot, Ending::Ended, now);
        }
        // Of a generation that is over no producer is missed, and none has come back.
        match viewer.known_status {
            Some(StreamStatus::Degraded | StreamStatus::Waiting) => {
                self.tell(slot, if stalled && !is_over { StreamStatus::Stalled } else { StreamStatus::Live });
            }
            Some(StreamStatus::Live | StreamStatus::Ended | StreamStatus::Failed) if stalled && !is_over => {
                self.tell(slot, StreamStatus::Stalled)
            }
            Some(StreamStatus::Stalled) if !stalled && !is_over => self.tell(slot, StreamStatus::Live),
            _ => {}
        }
    }

    pub(super) fn attached(
        &mut self,
        name: HubRef,
        cursor: &Cursor,
        (stalled, watermark): (bool, Arc<AckWatermark>),
        now: Instant,
    ) {
        let Some(hub) = self.streams.hub_named(name) else { return };
        hub.live = Live::On(cursor.position);
        hub.passed = cursor.position.id;
        hub.phase = cursor.state.phase;
        hub.stalled = stalled;
        hub.watermark = Some(watermark);
        hub.idle_since = None;
        let viewers = hub.viewers.clone();
        self.streams.note_unreported(name.slot);
        for viewer in viewers {
            let ask = self.streams.seam(viewer).map_or(Ask::Nothing, |seam| seam.attached(cursor.position));
            self.ask(viewer, ask);
            self.settle(viewer, now);
        }
    }

    /// Live frames of a stream have ended; the viewers go on from history.
    pub(super) fn broken(&mut self, name: HubRef) {
        let Some(hub) = self.streams.hub_named(name) else { return };
        hub.leave_live();
        let viewers = hub.viewers.clone();
        self.reads.forget_recents_of(name.slot);
        for viewer in viewers {
            self.flush_batch(viewer);
            let ask = self.streams.seam(viewer).map_or(Ask::Nothing, Seam::broken);
            self.ask(viewer, ask);
        }
    }

    // ----- live -----

    pub(super) fn live(&mut self, news: &LiveFrames, now: Instant) {
        let Some(hub) = self.streams.hub_named(news.hub) else { return };
        let Live::On(position) = hub.live else { return };
        hub.live = Live::On(news.frames.last().map_or(position, |frame| frame.last.max(position)));
        hub.passed = news.passed;
        if let Some(frame) = news.frames.last() {
            hub.phase = frame.state.phase;
        }
        self.reads.extend_recents(news.hub.slot, &news.frames);
        let Some(hub) = self.streams.hub(news.hub.slot) else { return };
        let mut place = hub.viewers.len();
        self.streams.note_unreported(news.hub.slot);
        // From the last to the first: a viewer that ends has its place taken by one that had its turn.
        while place > 0 {
            place -= 1;
            let viewer = self.streams.hub(news.hub.slot).and_then(|hub| hub.viewers.get(place)).copied();
            let Some(viewer) = viewer else { continue };
            for frame in &news.frames {
                self.offer_live(viewer, frame, now);
            }
            self.settle(viewer, now);
        }
    }

    fn offer_live(&mut self, slot: Slot, frame: &Arc<Frame>, now: Instant) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        let gathered = viewer.batch.as_ref().map_or(0, |batch| batch.bytes);
        let connection = viewer.connection;
        let Some(Reading { seam, .. }) = viewer.reading_mut() else { return };
        let Some(connection) = self.connections.get(connection) else { return };
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
        let Some(viewer) = self.streams.viewer(slot) else { return };
        if let Some(connection) = self.connections.get_mut(viewer.connection) {
            connection.paused.push_back(slot);
        }
        let (hub, connection) = (viewer.hub, viewer.connection);
        self.streams.note_unreported(hub);
        self.connections.touch(connection);
    }

    /// A connection has drained: as many of its paused viewers go on as there is room for.
    pub(super) fn resume_paused(&mut self, connection: Slot, now: Instant) {
        let budget = self.config.client.send_budget;
        while let Some(found) = self.connections.get_mut(connection)
            && !found.paused.is_empty()
            && found.outbox.cost_bytes() + found.promised <= budget / 2
        {
            let Some(viewer) = found.paused.pop_front() else { return };
            let ask = self.streams.seam(viewer).map_or(Ask::Nothing, Seam::resume);
            self.ask(viewer, ask);
            // Reads are sent at once, so that the next viewer sees how much room is left.
            self.send_fresh_jobs(now);
        }
    }

    pub(super) fn stalled(&mut self, name: HubRef, stalled: bool, now: Instant) {
        let Some(hub) = self.streams.hub_named(name) else { return };
        hub.stalled = stalled;
        for viewer in hub.viewers.clone() {
            let is_live = self.streams.seam(viewer).is_some_and(|seam| seam.is_live());
            let known = self.streams.viewer(viewer).and_then(|viewer| viewer.known_status);
            if !stalled && is_live && known == Some(StreamStatus::Stalled) {
                // Before what the producer says, also where that begins another generation.
                self.tell(viewer, StreamStatus::Live);
            }
            self.settle(viewer, now);
        }
    }

    // ----- giving -----

    fn give_live(&mut self, slot: Slot, frame: &Arc<Frame>, now: Instant) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        if let Some(reading) = viewer.reading_mut() {
            reading.anchor.move_to(frame.last, &frame.state);
        }
        if viewer.options.batch.is_zero() {
            return self.push(slot, frame, true);
        }
        let due = now + viewer.options.batch;
        let connection = viewer.connection;
        let batch = viewer.batch.get_or_insert_with(|| Box::new(Batch { frames: Vec::new(), bytes: 0, due }));
        batch.frames.push(Arc::clone(frame));
        batch.bytes += frame.json().len();
        let due = batch.due;
        if frame.is_terminal() {
            self.flush_batch(slot);
        } else {
            self.connections.arm(connection, due);
        }
    }

    /// Sends what was gathered, merged.
    pub(super) fn flush_batch(&mut self, slot: Slot) {
        let Some(batch) = self.streams.viewer_mut(slot).and_then(|viewer| viewer.batch.take()) else {
            return;
        };
        for frame in merge(&batch.frames) {
            self.push(slot, &frame, true);
        }
    }

    /// Sends what was gathered if its time has come; else says when.
    pub(super) fn judge_batch(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        let due = self.streams.viewer(slot)?.batch.as_ref()?.due;
        if due > now {
            return Some(due);
        }
        self.flush_batch(slot);
        None
    }

    pub(super) fn push(&mut self, slot: Slot, frame: &Arc<Frame>, live: bool) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        viewer.unwritten += 1;
        if frame.is_terminal()
            && let Some(acks) = &mut viewer.acks
        {
            acks.note_end(frame.last.id, &frame.state.generation);
        }
        let connection = viewer.connection;
        let mut shape = match viewer.options.wire {
            Wire::WebSocket => Shape::WebSocket,
            Wire::Multiplexed => Shape::Multiplexed,
            Wire::Sse => Shape::Sse,
            Wire::State | Wire::Head => return,
        };
        if let Some(translator) = &mut viewer.options.translator {
            let said = translator.translate(frame);
            shape = if said.shares { Shape::Rendering(translator.form()) } else { Shape::Nothing };
            if !said.own.is_empty() {
                self.connections.send(connection, said.own);
            }
        }
        self.connections
            .send(connection, Chunk::Marked(Mark { viewer: slot, frame: Arc::clone(frame), shape, live }));
    }

    fn restart_translation(&mut self, slot: Slot) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        let Some(translator) = &mut viewer.options.translator else { return };
        let (own, connection) = (translator.restart(), viewer.connection);
        if !own.is_empty() {
            self.connections.send(connection, own);
        }
    }

    /// Tells a viewer of another format that its answer is over.
    pub(super) fn say_done(&mut self, slot: Slot) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        if let Some(translator) = &viewer.options.translator {
            self.connections.send(viewer.connection, translator.done());
        }
    }

    /// Sends a viewer something that concerns it alone.
    pub(super) fn say(&mut self, slot: Slot, id: Option<Position>, json: &[u8]) {
        let Some(bytes) = self.said(slot, id, json) else { return };
        let Some(viewer) = self.streams.viewer(slot) else { return };
        let connection = viewer.connection;
        self.connections.send(connection, bytes);
    }

    /// The same as the bytes that the viewer is sent.
    pub(super) fn said(&mut self, slot: Slot, id: Option<Position>, json: &[u8]) -> Option<Vec<u8>> {
        let viewer = self.streams.viewer_mut(slot)?;
        match (&mut viewer.options.translator, viewer.options.wire) {
            (Some(translator), _) => Some(translator.translate_control(id, json)),
            (None, Wire::WebSocket) => Some(websocket_text(json)),
            (None, Wire::Multiplexed) => Some(websocket_text(&with_stream(json, &viewer.options.stream))),
            (None, Wire::Sse) => Some(sse_event(id, json)),
            (None, Wire::State | Wire::Head) => None,
        }
    }

    /// Tells a viewer how its stream stands, unless it knows.
    pub(super) fn tell(&mut self, slot: Slot, status: StreamStatus) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        if viewer.known_status == Some(status) {
            return;
        }
        viewer.known_status = Some(status);
        self.flush_batch(slot);
        self.say(slot, None, &control_frames::status(status));
    }
}

/// Where a read without frames has brought its viewers: a gap may end at an id of its own.
fn gap_end(shown: &Shown) -> Position {
    match shown.gap {
        Some(HistoryGap::Trimmed { id: Some(id), .. }) => Position::whole(id),
        _ => Position::ZERO,
    }
}
