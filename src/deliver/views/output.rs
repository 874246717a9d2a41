//! Encodes and sends the bytes for viewers: frames, merged if the client asked for that, control frames, and the
//! answers to messages of the client, which wait for the `open` of the viewer.

use std::sync::Arc;
use std::time::Instant;

use super::{Context, Views};
use crate::deliver::format::Format;
use crate::deliver::held::Held;
use crate::deliver::outbox::Chunk;
use crate::deliver::viewer::{Batch, Mark, Shape, Wire};
use crate::message::{HistoryGap, Slot};
use crate::model::{
    Frame, Position, StreamStatus, control_frames, merge, sse_event, websocket_text, with_stream,
};

impl Views {
    // ----- beginning -----

    /// Sends the head of an event stream, unless it was sent before. It is called once there is something to send.
    pub(super) fn begin_events(&mut self, slot: Slot, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        let translator = viewer.options.translator.as_deref();
        let is_ui_message_stream = translator.is_some_and(|translator| translator.format() == Format::AiSdk);
        let connection = viewer.connection;
        if cx.clients.begin_events(connection, slot, is_ui_message_stream) {
            self.registry.counters().sse_opened.inc();
            cx.clients.arm(connection, cx.now + self.config.client.keepalive);
        }
    }

    /// Whether the viewer's answer has begun, so that its status can no longer change.
    pub(in crate::deliver) fn has_begun(&self, slot: Slot, cx: &Context<'_>) -> bool {
        self.streams.viewer(slot).is_some_and(|viewer| cx.clients.has_begun(viewer.connection))
    }

    // ----- frames -----

    /// Sends a live frame, or adds it to the batch that will be merged.
    pub(super) fn send_live(&mut self, slot: Slot, frame: &Arc<Frame>, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        if let Some(reading) = viewer.reading_mut() {
            reading.anchor.move_to(frame.last, &frame.state);
        }
        if viewer.options.batch.is_zero() {
            return self.push(slot, frame, true, cx);
        }
        let due = cx.now + viewer.options.batch;
        let connection = viewer.connection;
        let batch = viewer.batch.get_or_insert_with(|| Box::new(Batch { frames: Vec::new(), bytes: 0, due }));
        batch.frames.push(Arc::clone(frame));
        batch.bytes += frame.json().len();
        let due = batch.due;
        if frame.is_terminal() {
            self.flush_batch(slot, cx);
        } else {
            cx.clients.arm(connection, due);
        }
    }

    /// Merges the frames of the batch and sends them.
    pub(super) fn flush_batch(&mut self, slot: Slot, cx: &mut Context<'_>) {
        let Some(batch) = self.streams.viewer_mut(slot).and_then(|viewer| viewer.batch.take()) else {
            return;
        };
        for frame in merge(&batch.frames) {
            self.push(slot, &frame, true, cx);
        }
    }

    /// Sends the batch if it is due. Otherwise returns when it is.
    pub(super) fn check_batch(&mut self, slot: Slot, cx: &mut Context<'_>) -> Option<Instant> {
        let due = self.streams.viewer(slot)?.batch.as_ref()?.due;
        if due > cx.now {
            return Some(due);
        }
        self.flush_batch(slot, cx);
        None
    }

    /// Appends a frame to the outbox of the viewer's connection.
    pub(super) fn push(&mut self, slot: Slot, frame: &Arc<Frame>, live: bool, cx: &mut Context<'_>) {
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
            let translated = translator.translate(frame);
            shape = if translated.shares { Shape::Rendering(translator.form()) } else { Shape::Nothing };
            if !translated.own.is_empty() {
                cx.clients.send(connection, translated.own);
            }
        }
        cx.clients
            .send(connection, Chunk::Marked(Mark { viewer: slot, frame: Arc::clone(frame), shape, live }));
    }

    // ----- control frames -----

    /// Sends a viewer the control frame for a gap in its stream.
    pub(super) fn send_gap(&mut self, slot: Slot, gap: HistoryGap, cx: &mut Context<'_>) {
        if matches!(gap, HistoryGap::Recreated { .. }) {
            self.restart_translation(slot, cx);
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
        self.send_control(slot, id.map(Position::whole), &json, cx);
    }

    fn restart_translation(&mut self, slot: Slot, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        let Some(translator) = &mut viewer.options.translator else { return };
        let (own, connection) = (translator.restart(), viewer.connection);
        if !own.is_empty() {
            cx.clients.send(connection, own);
        }
    }

    /// Sends a viewer in another format the end mark of that format.
    pub(super) fn send_done(&mut self, slot: Slot, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        if let Some(translator) = &viewer.options.translator {
            cx.clients.send(viewer.connection, translator.done());
        }
    }

    /// Sends a viewer the state of its stream, unless it was sent that state last.
    pub(in crate::deliver) fn send_status(&mut self, slot: Slot, status: StreamStatus, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        if viewer.known_status == Some(status) {
            return;
        }
        viewer.known_status = Some(status);
        self.flush_batch(slot, cx);
        self.send_control(slot, None, &control_frames::status(status), cx);
    }

    /// Sends a viewer a control frame.
    pub(super) fn send_control(
        &mut self,
        slot: Slot,
        id: Option<Position>,
        json: &[u8],
        cx: &mut Context<'_>,
    ) {
        let Some(bytes) = self.encode_control(slot, id, json) else { return };
        let Some(viewer) = self.streams.viewer(slot) else { return };
        cx.clients.send(viewer.connection, bytes);
    }

    /// Encodes a control frame for the transport and format of the viewer.
    fn encode_control(&mut self, slot: Slot, id: Option<Position>, json: &[u8]) -> Option<Vec<u8>> {
        let viewer = self.streams.viewer_mut(slot)?;
        match (&mut viewer.options.translator, viewer.options.wire) {
            (Some(translator), _) => Some(translator.translate_control(id, json)),
            (None, Wire::WebSocket) => Some(websocket_text(json)),
            (None, Wire::Multiplexed) => Some(websocket_text(&with_stream(json, &viewer.options.stream))),
            (None, Wire::Sse) => Some(sse_event(id, json)),
            (None, Wire::State | Wire::Head) => None,
        }
    }

    // ----- answers -----

    /// Answers a message of the client about the stream of the viewer. The answer is held until the `open` of the
    /// viewer has been sent.
    pub(in crate::deliver) fn answer(&mut self, slot: Slot, json: &[u8], cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        if viewer.opened {
            return self.send_answer(slot, json, cx);
        }
        let cost = viewer.held.get_or_insert_default().push(json.to_vec());
        cx.clients.hold_bytes(viewer.connection, cost);
    }

    fn send_answer(&mut self, slot: Slot, json: &[u8], cx: &mut Context<'_>) {
        let Some(bytes) = self.encode_control(slot, None, json) else { return };
        let Some(viewer) = self.streams.viewer(slot) else { return };
        cx.clients.send_answer(viewer.connection, bytes);
    }

    /// Sends the answers that were held for a viewer, when its `open` has been sent or it leaves a connection that
    /// stays open.
    pub(super) fn send_held(&mut self, slot: Slot, cx: &mut Context<'_>) {
        let Some(held) = self.take_held(slot, cx) else { return };
        for json in held.into_answers() {
            self.send_answer(slot, &json, cx);
        }
        if let Some(viewer) = self.streams.viewer(slot) {
            cx.clients.read_further(viewer.connection);
        }
    }

    /// Takes the answers that were held for a viewer, and subtracts them from the bytes that its connection holds.
    pub(super) fn take_held(&mut self, slot: Slot, cx: &mut Context<'_>) -> Option<Held> {
        let viewer = self.streams.viewer_mut(slot)?;
        let held = *viewer.held.take()?;
        cx.clients.release_held_bytes(viewer.connection, held.cost_bytes());
        Some(held)
    }
}
