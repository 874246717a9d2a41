//! What clients acknowledge, on its way to the watcher; and the moment that a client gets for acknowledging the end.
//!
//! Bounded: each viewer holds one acknowledgement, and passes one on in a second and one for each end of a generation. What
//! the watcher's queue has no room for is held on; a viewer that leaves then leaves it behind, which is counted.

use std::time::{Duration, Instant};

use super::connection::{Phase, Viewers, WebSocket};
use super::event_loop::Delivery;
use super::message::Refusal;
use super::streams::Ending;
use super::taking::{Advice, Generation, Taking};
use super::viewer::{Stage, Wire};
use crate::event::message::{Cursor, Slot, now_us};
use crate::event::record::{Acked, Receipt};
use crate::event::{Position, StreamName};

/// How long a WebSocket of one stream stays open after the end, unless the client acknowledges it before: who answers
/// a close with a close cannot say anything any more.
const PARTING: Duration = Duration::from_secs(1);

/// A stream that has left a multiplexed connection: its client may still acknowledge what it was given.
#[derive(Debug)]
pub(super) struct Parted {
    pub(super) stream: StreamName,
    pub(super) taking: Box<Taking>,
    pub(super) anchor: Cursor,
}

impl Delivery {
    /// A client says what it has. Where receipts are off, that is of no consequence.
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
        let viewer = match self.websocket(slot).map(|websocket| &websocket.viewers) {
            Some(Viewers::One(viewer)) => Some(*viewer),
            Some(Viewers::Many(viewers)) => viewers.get(&stream).copied(),
            None => None,
        };
        match viewer {
            Some(viewer) => self.acknowledge_viewed(viewer, id, now),
            None => Ok(()),
        }
    }

    fn acknowledge_viewed(&mut self, slot: Slot, id: Position, now: Instant) -> Result<(), Refusal> {
        let Some(viewer) = self.viewers.get(slot) else { return Ok(()) };
        let Some(taking) = &viewer.taking else { return Ok(()) };
        let (connection, stream) = (viewer.connection, viewer.wish.stream.clone());
        let advice = taking.judge(id, &viewer.anchor, now);
        let is_passed = match advice {
            Advice::Refuse => return Err(not_given(id)),
            Advice::PassOn(generation) => self.pass_on(connection, stream, (id, now_us()), generation),
            Advice::Hold => false,
            Advice::Ignore => {
                self.registry.counters().acks_merged.inc();
                return Ok(());
            }
        };
        let Some(taking) = self.taking(slot) else { return Ok(()) };
        let is_merged = if is_passed { taking.pass(id, now) } else { !taking.hold(id, now_us()) };
        if !(is_passed || is_merged) {
            self.unpassed_acks.push(slot);
        }
        if is_merged {
            self.registry.counters().acks_merged.inc();
        }
        if self.is_parting(slot) && !self.is_awaited(slot) {
            self.end_connection(connection, slot, Ending::Ended, now);
        }
        Ok(())
    }

    /// The client acknowledges what it was given of a stream that has left its connection; `None` where none has. Nothing
    /// is held for it: of what comes too soon only the end counts.
    fn acknowledge_parted(
        &mut self,
        slot: Slot,
        stream: &StreamName,
        id: Position,
        now: Instant,
    ) -> Option<Result<(), Refusal>> {
        let WebSocket { parted, .. } = self.websocket(slot)?;
        let parted = parted.as_ref()?;
        let place = parted.iter().position(|parted| parted.stream == *stream)?;
        let Parted { taking, anchor, .. } = &parted[place];
        let is_passed = match taking.judge(id, anchor, now) {
            Advice::Refuse => return Some(Err(not_given(id))),
            Advice::PassOn(generation) => self.pass_on(slot, stream.clone(), (id, now_us()), generation),
            Advice::Hold | Advice::Ignore => {
                self.registry.counters().acks_merged.inc();
                return Some(Ok(()));
            }
        };
        if !is_passed {
            return Some(Err(Refusal::new("overloaded", "try again")));
        }
        if let Some(parted) = self.websocket(slot)?.parted.as_mut()?.get_mut(place) {
            parted.taking.pass(id, now);
        }
        Some(Ok(()))
    }

    /// Passes an acknowledgement on; whether there was room.
    fn pass_on(
        &mut self,
        connection: Slot,
        stream: StreamName,
        (id, at_us): (Position, u64),
        generation: Generation,
    ) -> bool {
        let by = self.connections.get(connection).map(|connection| connection.address.ip().to_string());
        let by = by.unwrap_or_default();
        self.receipts.try_send(Receipt::Acked(Acked { stream, id, generation, by, at_us })).is_ok()
    }

    /// Passes on what was held for long enough.
    pub(super) fn pass_on_acks(&mut self, now: Instant) {
        for slot in std::mem::take(&mut self.unpassed_acks) {
            if !self.pass_on_held(slot, now, false) {
                self.unpassed_acks.push(slot);
            }
        }
    }

    /// A viewer leaves: what was held for it is passed on.
    pub(super) fn pass_on_last_ack(&mut self, slot: Slot) {
        if !self.pass_on_held(slot, Instant::now(), true) {
            self.registry.counters().receipts_failed.inc();
        }
    }

    /// Passes on what is held for a viewer, if it is time or has to be `at_once`; whether nothing is held any more.
    fn pass_on_held(&mut self, slot: Slot, now: Instant, at_once: bool) -> bool {
        let Some(viewer) = self.viewers.get(slot) else { return true };
        let Some(taking) = viewer.taking.as_ref().filter(|taking| taking.holds()) else { return true };
        let Some((id, at_us, generation)) = taking.due(&viewer.anchor, now, at_once) else { return false };
        let (connection, stream) = (viewer.connection, viewer.wish.stream.clone());
        let is_passed = self.pass_on(connection, stream, (id, at_us), generation);
        if is_passed && let Some(taking) = self.taking(slot) {
            taking.pass(id, now);
        }
        is_passed
    }

    pub(super) fn taking(&mut self, slot: Slot) -> Option<&mut Taking> {
        self.viewers.get_mut(slot)?.taking.as_deref_mut()
    }

    // ----- the end -----

    /// Whether the connection stays a moment longer, because its client has yet to acknowledge the end.
    pub(super) fn parts_later(&mut self, slot: Slot, now: Instant) -> bool {
        let is_single = self.viewers.get(slot).is_some_and(|viewer| viewer.wish.wire == Wire::WebSocket);
        if self.is_draining || !is_single || self.is_parting(slot) || !self.is_awaited(slot) {
            return false;
        }
        let Some(viewer) = self.viewers.get_mut(slot) else { return false };
        let (connection, until) = (viewer.connection, now + PARTING);
        viewer.stage = Stage::Parting(until);
        // What may follow is not for this viewer.
        viewer.seam = None;
        self.arm(connection, until);
        true
    }

    /// Whether the connection stays only so that the end can be acknowledged.
    pub(super) fn is_parting(&self, slot: Slot) -> bool {
        self.viewers.get(slot).is_some_and(|viewer| matches!(viewer.stage, Stage::Parting(_)))
    }

    /// Whether the client may have something to acknowledge yet.
    fn is_awaited(&self, slot: Slot) -> bool {
        let Some(viewer) = self.viewers.get(slot) else { return false };
        viewer.taking.as_ref().is_some_and(|taking| !taking.is_complete(&viewer.anchor))
    }

    /// Closes a connection whose client has had its moment, which begins when the end is on the socket.
    pub(super) fn judge_parting(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        let viewer = self.viewers.get_mut(slot)?;
        let Stage::Parting(until) = &mut viewer.stage else { return None };
        if viewer.unwritten > 0 {
            *until = now + PARTING;
        }
        let (until, connection) = (*until, viewer.connection);
        if until > now {
            return Some(until);
        }
        self.end_connection(connection, slot, Ending::Ended, now);
        None
    }

    /// A stream leaves a multiplexed connection, whose client may still acknowledge it. The oldest are forgotten beyond as
    /// many as a connection may carry.
    pub(super) fn note_parted(&mut self, slot: Slot, viewer: Slot) {
        self.pass_on_last_ack(viewer);
        let Some(viewer) = self.viewers.get_mut(viewer) else { return };
        let Some(taking) = viewer.taking.take() else { return };
        let anchor = viewer.anchor.clone();
        let gone = Parted { stream: viewer.wish.stream.clone(), taking, anchor };
        let most = self.config.client.max_subscriptions;
        let Some(websocket) = self.websocket(slot) else { return };
        let parted = websocket.parted.get_or_insert_default();
        parted.push_back(gone);
        if parted.len() > most {
            parted.pop_front();
        }
    }

    pub(super) fn websocket(&mut self, slot: Slot) -> Option<&mut WebSocket> {
        match &mut self.connections.get_mut(slot)?.phase {
            Phase::WebSocket(websocket) => Some(websocket),
            _ => None,
        }
    }
}

fn not_given(id: Position) -> Refusal {
    Refusal::new("not_sent", format!("{id} was not sent on this connection"))
}
