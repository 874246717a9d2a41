//! Handles acknowledgements of streams that a connection carries or has carried, and answers each when it has been
//! written to Redis.

use std::time::Instant;

use super::delivery::Delivery;
use crate::deliver::ack_tracker::Advice;
use crate::deliver::connection::{Connection, Viewers, WebSocket};
use crate::deliver::message::Refusal;
use crate::deliver::viewer::ClosedSubscription;
use crate::deliver::views::{ClientAck, not_sent};
use crate::message::record::{Asker, Refused};
use crate::message::{Slot, now_us};
use crate::model::control_frames;
use crate::model::{Position, StreamName};

impl Delivery {
    /// Handles an acknowledgement of a client.
    pub(super) fn acknowledge(
        &mut self,
        slot: Slot,
        stream: Option<StreamName>,
        id: Position,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.registry.counters().acks_received.inc();
        let subscribed = self.subscribed(slot, stream.clone());
        if subscribed.is_err()
            && let Some(stream) = &stream
            && let Some(result) = self.acknowledge_closed(slot, stream, id, now)
        {
            return result;
        }
        let stream = subscribed?;
        match self.viewer_of(slot, &stream) {
            Some(viewer) => self.with_views(now, |views, cx| views.acknowledge(viewer, id, cx)),
            None => Ok(()),
        }
    }

    /// The viewer of this stream on this connection, if there is one.
    fn viewer_of(&mut self, slot: Slot, stream: &StreamName) -> Option<Slot> {
        match &self.connections.websocket(slot)?.viewers {
            Viewers::One(viewer) => Some(*viewer),
            Viewers::Many(viewers) => viewers.get(stream).copied(),
        }
    }

    /// Handles an acknowledgement of a stream that was removed from its connection; `None` if no such stream is known.
    /// These acknowledgements are never held for later: one that comes within
    /// [`INTERVAL`](crate::deliver::ack_tracker::INTERVAL) of the one before is refused, unless it reaches the end of
    /// a generation.
    fn acknowledge_closed(
        &mut self,
        slot: Slot,
        stream: &StreamName,
        id: Position,
        now: Instant,
    ) -> Option<Result<(), Refusal>> {
        let WebSocket { closed, .. } = self.connections.websocket(slot)?;
        let closed = closed.as_ref()?;
        let place = closed.iter().position(|closed| closed.stream == *stream)?;
        let ClosedSubscription { acks, anchor, .. } = &closed[place];
        let is_once = acks.is_once(id, anchor);
        let is_passed = match acks.judge(id, anchor, now) {
            Advice::Refuse => return Some(Err(not_sent(id))),
            Advice::PassOn(generation) => {
                let ack = ClientAck { id, at_us: now_us(), generation, is_once };
                if !self.with_views(now, |_, cx| cx.pass_on_ack(slot, stream.clone(), ack)) {
                    let message = "too many acknowledgements wait to be written; try again";
                    return Some(Err(Refusal::new("overloaded", message)));
                }
                true
            }
            Advice::Hold => {
                let message = "one acknowledgement a second is written; send it again in a second";
                return Some(Err(Refusal::new("too_many", message)));
            }
            Advice::Ignore => {
                self.registry.counters().acks_merged.inc();
                false
            }
        };
        let acks = &mut self.connections.websocket(slot)?.closed.as_mut()?.get_mut(place)?.acks;
        if is_passed {
            acks.pass(id, now);
        }
        if acks.await_answer(id, now) {
            self.answer_acked(slot, stream, (id, now));
        }
        Some(Ok(()))
    }

    /// Passes the recorder's answer on to the client, if it is still connected.
    pub(super) fn ack_answered(
        &mut self,
        asker: Asker,
        id: Position,
        outcome: Result<(), Refused>,
        now: Instant,
    ) {
        let Asker { connection: slot, about: Some(stream), .. } = asker else { return };
        let viewer = self.viewer_of(slot, &stream);
        let written = (id, outcome.is_ok());
        let answered = match viewer.and_then(|viewer| self.views.ack_answered(viewer, written, now)) {
            Some(answered) => answered,
            None => self.closed_answered(slot, &stream, written, now),
        };
        for id in answered {
            match &outcome {
                Ok(()) => self.answer_acked(slot, &stream, (id, now)),
                Err(Refused { code, message, .. }) => {
                    let refusal = Refusal::new(code, message).about(Some(stream.clone()));
                    self.refuse_message(slot, &refusal, now);
                }
            }
        }
        if let Some(viewer) = viewer {
            self.with_views(now, |views, cx| views.end_closing(viewer, cx));
        }
        self.close_if_drained(slot, now);
    }

    /// The acknowledgements of a removed stream that are answered now. If the stream is no longer known, this is `id`
    /// alone.
    fn closed_answered(
        &mut self,
        slot: Slot,
        stream: &StreamName,
        (id, is_written): (Position, bool),
        now: Instant,
    ) -> Vec<Position> {
        let closed = self.connections.websocket(slot).and_then(|websocket| websocket.closed.as_mut());
        let found = closed.and_then(|closed| closed.iter_mut().find(|closed| closed.stream == *stream));
        found.map_or_else(|| vec![id], |closed| closed.acks.answered(id, is_written, now))
    }

    fn answer_acked(&mut self, slot: Slot, stream: &StreamName, (id, now): (Position, Instant)) {
        self.answer_message(slot, Some(stream), &control_frames::acked(id), now);
    }

    /// Whether the client still waits for an answer to a cancel request or an acknowledgement. If so, a connection
    /// that drains stays open.
    pub(super) fn owes_answers(&mut self, slot: Slot, now: Instant) -> bool {
        let Some(websocket) = self.connections.websocket(slot) else { return false };
        let closed = websocket.closed.iter().flat_map(|closed| closed.iter());
        if websocket.cancels_pending > 0 || closed.into_iter().any(|closed| closed.acks.awaits_answer(now)) {
            return true;
        }
        let viewers = self.connections.get(slot).map(Connection::viewers).unwrap_or_default();
        viewers.into_iter().any(|viewer| self.views.owes_answers(viewer, now))
    }
}
