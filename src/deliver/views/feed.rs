//! Sends viewers the frames that history reads return and the frames that arrive live, and joins the two at the seam
//! of each viewer.

use std::sync::Arc;

use super::{Context, Views};
use crate::deliver::seam::{Ask, Live, Seam, Taken};
use crate::deliver::sharing::JobKind;
use crate::deliver::viewer::{Ending, Reading};
use crate::message::{Control, Cursor, HistoryGap, HubRef, LiveFrames, Shown, Slot, now_us};
use crate::model::{AckWatermark, Frame, Position, StreamStatus};

impl Views {
    // ----- history -----

    /// Sends a viewer the stretch of history that was read for it.
    pub(super) fn send_history(&mut self, slot: Slot, shown: &Shown, is_range: bool, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        if viewer.resume_reading().is_none() {
            return self.flush_batch(slot, cx);
        }
        if is_range && shown.gap.is_some() && shown.frames.is_empty() {
            return self.leave_range(slot, cx);
        }
        self.begin_history(slot, shown.gap, cx);
        for frame in &shown.frames {
            self.push(slot, frame, false, cx);
        }
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        let Some(reading) = viewer.reading_mut() else { return };
        reading.anchor.clone_from(&shown.cursor);
        if let Some(seen) = shown.entries_bytes.checked_div(shown.entries) {
            viewer.entry_bytes = (viewer.entry_bytes * 3 + seen) / 4 + 1;
        }
        let over = shown.exhausted && !is_range && shown.cursor.is_terminal() && !viewer.options.follow;
        if over {
            return self.end(slot, Ending::Ended, cx);
        }
        let position = shown.frames.last().map_or_else(|| gap_end(shown), |frame| frame.last);
        let room = self.room(slot, cx) >= self.config.client.send_budget / 2;
        let Some((viewer, hub)) = self.streams.viewer_and_hub(slot) else { return };
        let live = hub.live;
        let Some(Reading { seam, .. }) = viewer.reading_mut() else { return };
        // Live reading may have ended this generation although no entry ends it. A read that stops at an entry cannot
        // find such an end, so history is read to its end instead.
        let finishing = shown.cursor.state.finishing().filter(|_| shown.exhausted);
        let may_miss_end = finishing.is_some_and(|newest| seam.bridges_to(Position::whole(newest)));
        // The held frames belong to the stream that existed before this one: drop them.
        let is_recreated = is_range && matches!(shown.gap, Some(HistoryGap::Recreated { .. }));
        let (held, ask) = if may_miss_end || is_recreated {
            (Vec::new(), seam.read_to_end(position))
        } else {
            seam.read(position, shown.exhausted, room, live)
        };
        let paused = seam.is_paused();
        for frame in &held {
            self.send_live(slot, frame, cx);
        }
        if paused {
            self.pause(slot, cx);
        }
        self.follow_up(slot, ask, cx);
        self.update_live(slot, cx);
    }

    /// Reads history to its end instead of a range whose entries are gone. Entries after the range, even those that
    /// are held, may be gone too. The next read reports everything that is missing then in a single gap.
    fn leave_range(&mut self, slot: Slot, cx: &mut Context<'_>) {
        let ask = self.streams.seam(slot).map_or(Ask::Nothing, |seam| seam.read_to_end(Position::ZERO));
        self.follow_up(slot, ask, cx);
    }

    /// Sends a viewer the control frames that precede a stretch of history: that its wait is over, and which entries
    /// are missing.
    pub(super) fn begin_history(&mut self, slot: Slot, gap: Option<HistoryGap>, cx: &mut Context<'_>) {
        self.flush_batch(slot, cx);
        let known = self.streams.viewer(slot).and_then(|viewer| viewer.known_status);
        if let Some(StreamStatus::Degraded | StreamStatus::Waiting) = known {
            self.send_status(slot, StreamStatus::Live, cx);
        }
        if let Some(gap) = gap {
            self.send_gap(slot, gap, cx);
        }
    }

    // ----- the seam -----

    /// Requests what the viewer's seam needs next: a history read, or live frames.
    pub(super) fn follow_up(&mut self, slot: Slot, ask: Ask, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        match ask {
            Ask::Nothing => {}
            Ask::Read { until } => {
                let Some(from) = viewer.given().cloned() else { return };
                self.add_job(slot, &JobKind::Read { from, until }, cx);
            }
            Ask::Attach => {
                let (hub, Some(from)) = (viewer.hub, viewer.given().cloned()) else { return };
                let Some(found) = self.streams.hub_mut(hub) else { return };
                let appeared_us = found.appeared_us(now_us());
                found.live = Live::Attaching;
                found.attach += 1;
                let (stream, hub) = (found.stream.clone(), HubRef { slot: hub, attach: found.attach });
                let delivery = cx.outbound.delivery();
                cx.outbound.control(Control::Attach { stream, delivery, hub, from, appeared_us });
            }
        }
    }

    /// Ends a live viewer whose stream is finished, or sends it `stalled` or `live` if that has changed.
    fn update_live(&mut self, slot: Slot, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        let Some(reading) = viewer.reading().filter(|reading| reading.seam.is_live()) else { return };
        let stalled = self.streams.hub(viewer.hub).is_some_and(|hub| hub.stalled);
        let is_over = reading.anchor.is_terminal();
        if is_over && !viewer.options.follow {
            return self.end(slot, Ending::Ended, cx);
        }
        // A finished generation is never stalled: nothing more is expected from its producer.
        match viewer.known_status {
            Some(StreamStatus::Degraded | StreamStatus::Waiting) => {
                let is_stalled = stalled && !is_over;
                let status = if is_stalled { StreamStatus::Stalled } else { StreamStatus::Live };
                self.send_status(slot, status, cx);
            }
            Some(StreamStatus::Live | StreamStatus::Ended | StreamStatus::Failed) if stalled && !is_over => {
                self.send_status(slot, StreamStatus::Stalled, cx);
            }
            Some(StreamStatus::Stalled) if !stalled && !is_over => {
                self.send_status(slot, StreamStatus::Live, cx);
            }
            _ => {}
        }
    }

    /// Handles the start of a hub's live frames, the first of which follows this cursor.
    pub(in crate::deliver) fn attached(
        &mut self,
        name: HubRef,
        cursor: &Cursor,
        (stalled, watermark): (bool, Arc<AckWatermark>),
        cx: &mut Context<'_>,
    ) {
        let Some(hub) = self.streams.attached_hub(name) else { return };
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
            self.follow_up(viewer, ask, cx);
            self.update_live(viewer, cx);
        }
    }

    /// Handles the end of the live frames of a hub: its viewers continue with history.
    pub(in crate::deliver) fn broken(&mut self, name: HubRef, cx: &mut Context<'_>) {
        let Some(hub) = self.streams.attached_hub(name) else { return };
        hub.leave_live();
        let viewers = hub.viewers.clone();
        for viewer in viewers {
            self.flush_batch(viewer, cx);
            let ask = self.streams.seam(viewer).map_or(Ask::Nothing, Seam::broken);
            self.follow_up(viewer, ask, cx);
        }
    }

    // ----- live -----

    /// Passes live frames to the viewers of their hub.
    pub(in crate::deliver) fn live(&mut self, news: &LiveFrames, cx: &mut Context<'_>) {
        let Some(hub) = self.streams.attached_hub(news.hub) else { return };
        let Live::On(position) = hub.live else { return };
        hub.live = Live::On(news.frames.last().map_or(position, |frame| frame.last.max(position)));
        hub.passed = news.passed;
        if let Some(frame) = news.frames.last() {
            hub.phase = frame.state.phase;
        }
        let viewers_len = hub.viewers.len();
        self.streams.note_unreported(news.hub.slot);
        // No viewer leaves its hub during this call, because effects are carried out after it.
        for place in 0..viewers_len {
            let viewer = self.streams.hub(news.hub.slot).and_then(|hub| hub.viewers.get(place)).copied();
            let Some(viewer) = viewer else { return };
            for frame in &news.frames {
                self.offer_live(viewer, frame, cx);
            }
            self.update_live(viewer, cx);
        }
    }

    fn offer_live(&mut self, slot: Slot, frame: &Arc<Frame>, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        let batched = viewer.batch.as_ref().map_or(0, |batch| batch.bytes);
        let connection = viewer.connection;
        let Some(Reading { seam, .. }) = viewer.reading_mut() else { return };
        let Some(connection) = cx.clients.get(connection) else { return };
        let waiting = connection.outbox.cost_bytes() + batched;
        let budget = self.config.client.send_budget;
        if seam.is_live() && waiting > 0 && waiting + frame.json().len() > budget {
            seam.fall_back();
            self.registry.counters().clients_fell_back.inc();
            self.flush_batch(slot, cx);
            return self.pause(slot, cx);
        }
        match seam.live(frame, budget.saturating_sub(waiting)) {
            Taken::Deliver => self.send_live(slot, frame, cx),
            Taken::Bridge { until } => {
                self.flush_batch(slot, cx);
                self.follow_up(slot, Ask::Read { until: Some(until) }, cx);
            }
            Taken::Held | Taken::Ignored => {}
        }
    }

    /// Pauses a viewer that is too far behind. It continues when its connection has drained.
    fn pause(&mut self, slot: Slot, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        let (hub, connection) = (viewer.hub, viewer.connection);
        if let Some(connection) = cx.clients.get_mut(connection) {
            connection.paused.push_back(slot);
        }
        self.streams.note_unreported(hub);
        cx.clients.touch(connection);
    }

    /// Resumes as many paused viewers as there is room for on a connection that has drained.
    pub(in crate::deliver) fn resume_paused(&mut self, connection: Slot, cx: &mut Context<'_>) {
        let budget = self.config.client.send_budget;
        while let Some(found) = cx.clients.get_mut(connection)
            && !found.paused.is_empty()
            && found.outbox.cost_bytes() + found.promised <= budget / 2
        {
            let Some(viewer) = found.paused.pop_front() else { return };
            let ask = self.streams.seam(viewer).map_or(Ask::Nothing, Seam::resume);
            self.follow_up(viewer, ask, cx);
            // Reads are sent at once, so that the next viewer sees how much room is left.
            self.send_fresh_jobs(cx);
        }
    }

    /// Records whether the producer of a hub's stream is stalled, and notifies the viewers.
    pub(in crate::deliver) fn stalled(&mut self, name: HubRef, stalled: bool, cx: &mut Context<'_>) {
        let Some(hub) = self.streams.attached_hub(name) else { return };
        hub.stalled = stalled;
        for viewer in hub.viewers.clone() {
            let is_live = self.streams.seam(viewer).is_some_and(|seam| seam.is_live());
            let known = self.streams.viewer(viewer).and_then(|viewer| viewer.known_status);
            if !stalled && is_live && known == Some(StreamStatus::Stalled) {
                // Send `live` before the next frame of the producer, even if that frame begins another generation.
                self.send_status(viewer, StreamStatus::Live, cx);
            }
            self.update_live(viewer, cx);
        }
    }
}

/// The position of viewers after a read without frames: the id at which its gap ends, if it has one.
fn gap_end(shown: &Shown) -> Position {
    match shown.gap {
        Some(HistoryGap::Trimmed { id: Some(id), .. }) => Position::whole(id),
        _ => Position::ZERO,
    }
}
