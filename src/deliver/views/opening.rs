//! Starts viewers, lets them wait for streams that do not exist, and ends them.

use std::time::Instant;

use super::{Context, Effect, Views};
use crate::deliver::format::Format;
use crate::deliver::seam::Seam;
use crate::deliver::viewer::{Ending, Reading, Stage, Wire};
use crate::message::{Cursor, Opened, Slot, WatcherRequest, now_us};
use crate::model::control_frames;
use crate::model::{After, Position, StreamName, StreamStatus};

impl Views {
    // ----- opening -----

    /// Starts a viewer whose start position was found.
    pub(super) fn open(&mut self, slot: Slot, opened: &Opened, cx: &mut Context<'_>) {
        let Some((viewer, hub)) = self.streams.viewer_and_hub(slot) else { return };
        let (follow, wire) = (viewer.options.follow, viewer.options.wire);
        if let Some(acks) = viewer.acks.as_deref_mut() {
            acks.note_received(opened.after);
        }
        // The end is not repeated in an event stream or in the format of the AI SDK: a client that has everything is
        // answered that nothing is left.
        let mut omits_known_end = wire == Wire::Sse;
        if let Some(translator) = viewer.options.translator.as_deref_mut() {
            translator.begin(opened.after, opened.outline.as_deref());
            omits_known_end |= translator.format() == Format::AiSdk;
        }
        let status = hub.status(opened.status, opened.tip);
        let is_finished = matches!(status, StreamStatus::Ended | StreamStatus::Failed);
        let is_unwanted = is_finished && viewer.wants_only_unfinished();
        if (opened.nothing_left || is_unwanted) && !follow {
            // A gap is always sent, and after a gap the end is too.
            let omits_end = omits_known_end && opened.shown.gap.is_none();
            if is_unwanted || omits_end && (wire == Wire::WebSocket || !self.has_begun(slot, cx)) {
                return self.end(slot, Ending::NothingLeft, cx);
            }
            self.begin_events(slot, cx);
            self.send_open(slot, opened.after, status, cx);
            return self.repeat_end(slot, opened, cx);
        }
        self.begin_events(slot, cx);
        self.send_open(slot, opened.after, status, cx);
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        if let Some(translator) = &mut viewer.options.translator {
            translator.take_finished();
        }
        viewer.stage = Stage::Reading(Reading { seam: Seam::new(opened.from), anchor: Cursor::default() });
        self.send_history(slot, &opened.shown, false, cx);
    }

    /// Repeats the end of a finished stream to a viewer that already has all of it, and ends the viewer.
    fn repeat_end(&mut self, slot: Slot, opened: &Opened, cx: &mut Context<'_>) {
        self.begin_history(slot, opened.shown.gap, cx);
        if let Some(terminal) = &opened.terminal {
            self.push(slot, terminal, false, cx);
        }
        if let Some(acks) = self.streams.acks(slot) {
            acks.begin(opened.from);
        }
        self.end(slot, Ending::Ended, cx);
    }

    /// Sends `open` for a stream that cannot be read now, if the start of the viewer is known without reading.
    pub(super) fn open_unread(&mut self, slot: Slot, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        if let After::At(after) = viewer.options.after {
            self.send_open(slot, after, StreamStatus::Waiting, cx);
        }
    }

    fn send_open(&mut self, slot: Slot, after: Position, status: StreamStatus, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        if viewer.opened {
            return;
        }
        viewer.opened = true;
        let before = viewer.known_status.replace(status);
        if viewer.options.translator.is_none() {
            let json = control_frames::open(&viewer.options.stream, after, status);
            self.send_control(slot, None, &json, cx);
        }
        // A client that was sent `degraded` is sent the same frame as all others when the outage is over.
        if before == Some(StreamStatus::Degraded) && status == StreamStatus::Live {
            self.send_control(slot, None, &control_frames::status(status), cx);
        }
        self.send_held(slot, cx);
    }

    /// Sends a viewer `draining`, after its `open`. If its `open` cannot be sent without Redis, neither is sent.
    pub(in crate::deliver) fn send_draining(&mut self, slot: Slot, cx: &mut Context<'_>) {
        self.open_unread(slot, cx);
        if self.streams.viewer(slot).is_some_and(|viewer| viewer.opened) {
            self.send_status(slot, StreamStatus::Draining, cx);
        }
    }

    // ----- waiting -----

    /// Handles a stream that does not exist, or no longer exists: the viewer waits for it, or ends.
    pub(super) fn await_stream(&mut self, slot: Slot, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        let Some(deadline) = viewer.wait(cx.now) else { return };
        let (hub, connection, wire) = (viewer.hub, viewer.connection, viewer.options.wire);
        if deadline <= cx.now || cx.clients.may_be_gone(connection) {
            return self.end(slot, Ending::NotFound, cx);
        }
        let after = match viewer.options.after {
            After::At(position) => position,
            After::Last | After::Tail => Position::ZERO,
        };
        match wire {
            Wire::Sse if !self.has_begun(slot, cx) => {}
            Wire::WebSocket | Wire::Multiplexed | Wire::Sse => {
                self.send_open(slot, after, StreamStatus::Waiting, cx);
                self.send_status(slot, StreamStatus::Waiting, cx);
            }
            Wire::State | Wire::Head => {}
        }
        cx.clients.arm(connection, deadline);
        if let Some(stream) = self.streams.begin_waiting(hub) {
            let (stream, delivery) = (stream.clone(), cx.outbound.delivery());
            cx.outbound.ask_watcher(WatcherRequest::Wait { stream, delivery });
        }
    }

    /// Continues the viewers that have waited for a stream, which now exists.
    pub(in crate::deliver) fn appeared(&mut self, stream: &StreamName, cx: &mut Context<'_>) {
        let Some(slot) = self.streams.hub_by_name(stream) else { return };
        for viewer in self.streams.end_waiting(slot, now_us()) {
            let Some(found) = self.streams.viewer_mut(viewer) else { continue };
            let Stage::Waiting(waiting) = &mut found.stage else { continue };
            if std::mem::replace(&mut waiting.has_appeared, true) {
                continue;
            }
            match &mut waiting.reading {
                Some(reading) => {
                    let ask = reading.seam.read_to_end(Position::ZERO);
                    self.follow_up(viewer, ask, cx);
                }
                None => {
                    // A stream that was waited for is sent from its beginning.
                    if !matches!(found.options.after, After::At(_)) {
                        found.options.after = After::At(Position::ZERO);
                    }
                    if let Some(translator) = &mut found.options.translator {
                        translator.take_finished();
                    }
                    self.request_start(viewer, cx);
                }
            }
        }
    }

    /// Ends the wait of a viewer whose client has finished sending and may be gone, because the stream may never
    /// exist.
    pub(in crate::deliver) fn end_wait(&mut self, slot: Slot, cx: &mut Context<'_>) {
        if self.streams.viewer(slot).is_some_and(|viewer| viewer.is_waiting()) {
            self.end(slot, Ending::NotFound, cx);
        }
    }

    /// Ends a wait whose time is over. Otherwise returns when it will be over.
    pub(super) fn check_wait(&mut self, slot: Slot, cx: &mut Context<'_>) -> Option<Instant> {
        match &self.streams.viewer(slot)?.stage {
            Stage::Waiting(waiting) if waiting.has_appeared => None,
            Stage::Waiting(waiting) if waiting.until <= cx.now => {
                self.end(slot, Ending::NotFound, cx);
                None
            }
            Stage::Waiting(waiting) => Some(waiting.until),
            Stage::Closing { .. } => self.check_closing(slot, cx),
            Stage::Opening | Stage::Reading(_) => None,
        }
    }

    // ----- ending -----

    /// Ends a viewer. If its client may still acknowledge the end, the connection stays open for a moment.
    pub(super) fn end(&mut self, slot: Slot, ending: Ending, cx: &mut Context<'_>) {
        self.flush_batch(slot, cx);
        if !self.is_closing(slot) {
            if ending == Ending::Ended {
                self.send_done(slot, cx);
            }
            if ending == Ending::Ended && self.delay_close(slot, cx) {
                return;
            }
        }
        self.effects.push_back(Effect::Ended { viewer: slot, ending });
    }
}
