//! Acknowledgements on their way from clients to the recorder, and the answers to them: a client is answered when its
//! acknowledgement is written. Also the time that a client gets for acknowledging the end.
//!
//! Bounded: each viewer holds one acknowledgement, and passes on one a second and one for each end of a generation. One
//! for which the recorder's queue has no room is held on; if its viewer leaves then, it is lost, which is counted.

use std::time::{Duration, Instant};

use super::ack_tracker::{Advice, Generation};
use super::connection::{ClosedSubscription, Connection, Viewers, WebSocket};
use super::delivery::Delivery;
use super::message::Refusal;
use super::viewer::{Ending, Stage, Wire};
use crate::message::record::{Acked, Asker, Receipt, Refused};
use crate::message::{Cursor, Slot, now_us};
use crate::model::control_frames;
use crate::model::{Position, StreamName};

/// How long a WebSocket of one stream stays open after the end, unless the client acknowledges it before: a client that
/// answers our close with its own cannot send anything any more.
const PARTING: Duration = Duration::from_secs(1);

/// A client's acknowledgement.
struct Said {
    id: Position,
    /// When, µs since 1970 by this host's clock.
    at_us: u64,
    generation: Generation,
    is_once: bool,
}

impl Delivery {
    /// Takes a client's acknowledgement. It is answered when it is written; where receipts are off, at once.
    pub(super) fn acknowledge(
        &mut self,
        slot: Slot,
        stream: Option<StreamName>,
        id: Position,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.registry.counters().acks_received.inc();
        let carried = self.subscribed(slot, stream.clone());
        if carried.is_err()
            && let Some(stream) = &stream
            && let Some(result) = self.acknowledge_parted(slot, stream, id, now)
        {
            return result;
        }
        let stream = carried?;
        match self.viewer_of(slot, &stream) {
            Some(viewer) => self.acknowledge_viewed(viewer, id, now),
            None => Ok(()),
        }
    }

    /// The viewer of a stream on a connection.
    fn viewer_of(&mut self, slot: Slot, stream: &StreamName) -> Option<Slot> {
        match &self.connections.websocket(slot)?.viewers {
            Viewers::One(viewer) => Some(*viewer),
            Viewers::Many(viewers) => viewers.get(stream).copied(),
        }
    }

    fn acknowledge_viewed(&mut self, slot: Slot, id: Position, now: Instant) -> Result<(), Refusal> {
        let Some(viewer) = self.streams.viewer(slot) else { return Ok(()) };
        let (connection, stream) = (viewer.connection, viewer.options.stream.clone());
        let Some(acks) = &viewer.acks else {
            self.answer_acked(connection, &stream, id);
            return Ok(());
        };
        let nothing = Cursor::default();
        let given = viewer.given().unwrap_or(&nothing);
        let (is_once, advice) = (acks.is_once(id, given), acks.judge(id, given, now));
        let (is_passed, is_new) = match advice {
            Advice::Refuse => return Err(not_given(id)),
            Advice::PassOn(generation) => {
                let said = Said { id, at_us: now_us(), generation, is_once };
                (self.pass_on(connection, stream.clone(), said, now), true)
            }
            Advice::Hold => (false, true),
            Advice::Ignore => (false, false),
        };
        let Some(acks) = self.streams.acks(slot) else { return Ok(()) };
        let is_merged = match (is_passed, is_new) {
            (true, _) => acks.pass(id, now),
            (false, true) => !acks.hold(id, now_us()),
            (false, false) => true,
        };
        let is_written = acks.await_answer(id, now);
        if is_new && !(is_passed || is_merged) {
            self.streams.note_unpassed_ack(slot);
        }
        if is_merged {
            self.registry.counters().acks_merged.inc();
        }
        if is_written {
            self.answer_acked(connection, &stream, id);
        }
        Ok(())
    }

    /// Takes an acknowledgement of a stream that has left its connection; `None` where none has. Nothing is held for
    /// it: one that comes within [`INTERVAL`](super::ack_tracker::INTERVAL) is refused unless it reaches the end of a
    /// generation.
    fn acknowledge_parted(
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
            Advice::Refuse => return Some(Err(not_given(id))),
            Advice::PassOn(generation) => {
                let said = Said { id, at_us: now_us(), generation, is_once };
                if !self.pass_on(slot, stream.clone(), said, now) {
                    let message = "too many acknowledgements wait to be written; try again";
                    return Some(Err(Refusal::new("overloaded", message)));
                }
                true
            }
            Advice::Hold => {
                let message = "one acknowledgement a second is written; say it again in a second";
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
            self.answer_acked(slot, stream, id);
        }
        Some(Ok(()))
    }

    /// Passes an acknowledgement on; whether there was room.
    fn pass_on(&mut self, connection: Slot, stream: StreamName, said: Said, now: Instant) -> bool {
        let by = self.connections.get(connection).map(|connection| connection.principal.to_string());
        let by = by.unwrap_or_default();
        let asker = Asker { delivery: self.outbound.delivery(), connection, about: Some(stream.clone()) };
        let Said { id, at_us, generation, is_once } = said;
        let acked = Acked { stream, id, generation, by, at_us, is_once, asker, asked_at: now };
        self.outbound.receipt(Receipt::Acked(acked))
    }

    /// The recorder answers. The client, or its interest in the stream, may be gone.
    pub(super) fn ack_answered(
        &mut self,
        asker: Asker,
        id: Position,
        outcome: Result<(), Refused>,
        now: Instant,
    ) {
        let Asker { connection: slot, about: Some(stream), .. } = asker else { return };
        let viewer = self.viewer_of(slot, &stream);
        let told = match viewer.and_then(|viewer| self.streams.acks(viewer)) {
            Some(acks) => acks.answered(id, outcome.is_ok(), now),
            None => self.parted_answered(slot, &stream, (id, outcome.is_ok()), now),
        };
        for id in told {
            self.answer_ack((slot, &stream), id, &outcome, now);
        }
        if let Some(viewer) = viewer.filter(|viewer| self.is_parting(*viewer))
            && !self.is_awaited(viewer, now)
        {
            self.end_connection(slot, viewer, Ending::Ended, now);
        }
        self.close_if_drained(slot, now);
    }

    /// The acknowledgements to be answered of a stream that has left the connection; of one that is forgotten, only
    /// `id`.
    fn parted_answered(
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

    fn answer_ack(
        &mut self,
        (slot, stream): (Slot, &StreamName),
        id: Position,
        outcome: &Result<(), Refused>,
        now: Instant,
    ) {
        match outcome {
            Ok(()) => self.answer_acked(slot, stream, id),
            Err(Refused { code, message, .. }) => {
                self.refuse_message(slot, &Refusal::new(code, message).about(Some(stream.clone())), now);
            }
        }
    }

    fn answer_acked(&mut self, slot: Slot, stream: &StreamName, id: Position) {
        self.answer_message(slot, Some(stream), &control_frames::acked(id));
    }

    /// Whether a request of the client is yet to be written, so that it is answered before its connection is closed.
    pub(super) fn owes_answers(&mut self, slot: Slot, now: Instant) -> bool {
        let Some(websocket) = self.connections.websocket(slot) else { return false };
        let closed = websocket.closed.iter().flat_map(|closed| closed.iter());
        if websocket.cancels_asked > 0 || closed.into_iter().any(|closed| closed.acks.awaits_answer(now)) {
            return true;
        }
        let viewers = self.connections.get(slot).map(Connection::viewers).unwrap_or_default();
        viewers
            .into_iter()
            .any(|viewer| self.streams.acks(viewer).is_some_and(|acks| acks.awaits_answer(now)))
    }

    /// Passes on the acknowledgements that were held for long enough.
    pub(super) fn pass_on_acks(&mut self, now: Instant) {
        for slot in self.streams.take_unpassed_acks() {
            if !self.pass_on_held(slot, now, false) {
                self.streams.note_unpassed_ack(slot);
            }
        }
    }

    /// A viewer leaves: its held acknowledgement is passed on.
    pub(super) fn pass_on_last_ack(&mut self, slot: Slot, now: Instant) {
        if !self.pass_on_held(slot, now, true) {
            self.registry.counters().receipts_failed.inc();
        }
    }

    /// Passes on a viewer's held acknowledgement, if it is due or has to go `at_once`; whether none is held any more.
    fn pass_on_held(&mut self, slot: Slot, now: Instant, at_once: bool) -> bool {
        let Some(viewer) = self.streams.viewer(slot) else { return true };
        let Some(acks) = viewer.acks.as_ref().filter(|acks| acks.holds()) else { return true };
        let nothing = Cursor::default();
        let given = viewer.given().unwrap_or(&nothing);
        let Some((id, at_us, generation)) = acks.due(given, now, at_once) else { return false };
        let is_once = acks.is_once(id, given);
        let (connection, stream) = (viewer.connection, viewer.options.stream.clone());
        let is_passed = self.pass_on(connection, stream, Said { id, at_us, generation, is_once }, now);
        if is_passed && let Some(acks) = self.streams.acks(slot) {
            acks.pass(id, now);
        }
        is_passed
    }

    // ----- the end -----

    /// Whether the connection stays a moment longer, because its client has yet to acknowledge the end.
    pub(super) fn parts_later(&mut self, slot: Slot, now: Instant) -> bool {
        let is_single =
            self.streams.viewer(slot).is_some_and(|viewer| viewer.options.wire == Wire::WebSocket);
        let is_owed = self.streams.acks(slot).is_some_and(|acks| acks.awaits_answer(now));
        let is_awaited = if self.is_draining { is_owed } else { self.is_awaited(slot, now) };
        if !is_single || self.is_parting(slot) || !is_awaited {
            return false;
        }
        let Some(viewer) = self.streams.viewer_mut(slot) else { return false };
        let (connection, until) = (viewer.connection, now + PARTING);
        viewer.part(until);
        self.connections.arm(connection, until);
        true
    }

    /// Whether the connection stays only so that the end can be acknowledged.
    pub(super) fn is_parting(&self, slot: Slot) -> bool {
        self.streams.viewer(slot).is_some_and(|viewer| matches!(viewer.stage, Stage::Parting { .. }))
    }

    /// Whether the client may have something to acknowledge yet, or is to be answered.
    fn is_awaited(&self, slot: Slot, now: Instant) -> bool {
        let Some(viewer) = self.streams.viewer(slot) else { return false };
        let Some(acks) = &viewer.acks else { return false };
        let nothing = Cursor::default();
        !acks.is_complete(viewer.given().unwrap_or(&nothing)) || acks.awaits_answer(now)
    }

    /// Closes a connection whose client has had its moment, which begins when the end is on the socket.
    pub(super) fn judge_parting(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        let viewer = self.streams.viewer_mut(slot)?;
        let Stage::Parting { until, .. } = &mut viewer.stage else { return None };
        // A client that is owed an answer gets it first.
        let is_owed = viewer.acks.as_ref().is_some_and(|acks| acks.awaits_answer(now));
        if viewer.unwritten > 0 || is_owed {
            *until = now + PARTING;
        }
        let (until, connection) = (*until, viewer.connection);
        if until > now {
            return Some(until);
        }
        self.end_connection(connection, slot, Ending::Ended, now);
        None
    }

    /// A stream leaves a multiplexed connection, whose client may still acknowledge it. The oldest are forgotten beyond
    /// as many as a connection may carry.
    pub(super) fn note_parted(&mut self, slot: Slot, viewer: Slot, now: Instant) {
        self.pass_on_last_ack(viewer, now);
        let Some(viewer) = self.streams.viewer_mut(viewer) else { return };
        let Some(acks) = viewer.acks.take() else { return };
        let anchor = viewer.given().cloned().unwrap_or_default();
        let gone = ClosedSubscription { stream: viewer.options.stream.clone(), acks, anchor };
        let most = self.config.client.max_subscriptions;
        let Some(websocket) = self.connections.websocket(slot) else { return };
        let closed = websocket.closed.get_or_insert_default();
        closed.push_back(gone);
        if closed.len() > most {
            closed.pop_front();
        }
    }
}

fn not_given(id: Position) -> Refusal {
    Refusal::new("not_sent", format!("{id} is above all that was sent on this connection"))
}
