//! Passes the acknowledgements of viewers to the recorder, and gives a client time to acknowledge the end of its
//! stream.
//!
//! Bounded: each viewer holds at most one acknowledgement, and passes on one per second and one for each end of a
//! generation. If the recorder's queue has no room, the acknowledgement stays held. If its viewer leaves before there
//! is room, it is lost, and counted as failed.

use std::time::{Duration, Instant};

use super::{Context, Views};
use crate::deliver::ack_tracker::{Advice, Generation};
use crate::deliver::message::Refusal;
use crate::deliver::viewer::{Ending, Stage, Wire};
use crate::message::record::{Acked, Asker, Receipt};
use crate::message::{Cursor, Slot, now_us};
use crate::model::control_frames;
use crate::model::{Position, StreamName};

/// How long a WebSocket of one stream stays open after the end of the stream, unless the client acknowledges the end
/// before. The close frame must wait, because a client that answers it with its own can send nothing more.
const CLOSING_TIME: Duration = Duration::from_secs(1);

/// A client's acknowledgement.
pub(in crate::deliver) struct ClientAck {
    pub(in crate::deliver) id: Position,
    /// When it was received, in µs since 1970 by the clock of this host.
    pub(in crate::deliver) at_us: u64,
    pub(in crate::deliver) generation: Generation,
    pub(in crate::deliver) is_once: bool,
}

impl Context<'_> {
    /// Passes an acknowledgement of a connection's client to the recorder. Returns whether the recorder's queue had
    /// room.
    pub(in crate::deliver) fn pass_on_ack(
        &self,
        connection: Slot,
        stream: StreamName,
        ack: ClientAck,
    ) -> bool {
        let by = self.clients.get(connection).map(|connection| connection.principal.to_string());
        let by = by.unwrap_or_default();
        let asker = Asker { delivery: self.outbound.delivery(), connection, about: Some(stream.clone()) };
        let ClientAck { id, at_us, generation, is_once } = ack;
        let acked = Acked { stream, id, generation, by, at_us, is_once, asker, asked_at: self.now };
        self.outbound.receipt(Receipt::Acked(acked))
    }
}

impl Views {
    /// Handles an acknowledgement of a viewer's client. It is answered when it has been written to Redis, or at once
    /// if receipts are off.
    pub(in crate::deliver) fn acknowledge(
        &mut self,
        slot: Slot,
        id: Position,
        cx: &mut Context<'_>,
    ) -> Result<(), Refusal> {
        let Some(viewer) = self.streams.viewer(slot) else { return Ok(()) };
        let (connection, stream) = (viewer.connection, viewer.options.stream.clone());
        let Some(acks) = &viewer.acks else {
            self.answer(slot, &control_frames::acked(id), cx);
            return Ok(());
        };
        let start = Cursor::default();
        let given = viewer.given().unwrap_or(&start);
        let (is_once, advice) = (acks.is_once(id, given), acks.judge(id, given, cx.now));
        let (is_passed, is_new) = match advice {
            Advice::Refuse => return Err(not_sent(id)),
            Advice::PassOn(generation) => {
                let ack = ClientAck { id, at_us: now_us(), generation, is_once };
                (cx.pass_on_ack(connection, stream, ack), true)
            }
            Advice::Hold => (false, true),
            Advice::Ignore => (false, false),
        };
        let Some(acks) = self.streams.acks(slot) else { return Ok(()) };
        let is_merged = match (is_passed, is_new) {
            (true, _) => acks.pass(id, cx.now),
            (false, true) => !acks.hold(id, now_us()),
            (false, false) => true,
        };
        let is_written = acks.await_answer(id, cx.now);
        if is_new && !(is_passed || is_merged) {
            self.streams.note_held_ack(slot);
        }
        if is_merged {
            self.registry.counters().acks_merged.inc();
        }
        if is_written {
            self.answer(slot, &control_frames::acked(id), cx);
        }
        Ok(())
    }

    /// Records whether an acknowledgement of a viewer was written. Returns the acknowledgements that are answered now;
    /// `None` if the viewer is gone or tracks none.
    pub(in crate::deliver) fn ack_answered(
        &mut self,
        slot: Slot,
        (id, is_written): (Position, bool),
        now: Instant,
    ) -> Option<Vec<Position>> {
        Some(self.streams.acks(slot)?.answered(id, is_written, now))
    }

    /// Whether the viewer's client waits for the answer to an acknowledgement.
    pub(in crate::deliver) fn owes_answers(&self, slot: Slot, now: Instant) -> bool {
        let acks = self.streams.viewer(slot).and_then(|viewer| viewer.acks.as_ref());
        acks.is_some_and(|acks| acks.awaits_answer(now))
    }

    /// Passes on the held acknowledgements that are due.
    pub(super) fn pass_on_acks(&mut self, cx: &mut Context<'_>) {
        for slot in self.streams.take_held_acks() {
            if !self.pass_on_held(slot, false, cx) {
                self.streams.note_held_ack(slot);
            }
        }
    }

    /// Passes on the held acknowledgement of a viewer that leaves. It is counted as failed if there is no room.
    pub(in crate::deliver) fn pass_on_last_ack(&mut self, slot: Slot, cx: &mut Context<'_>) {
        if !self.pass_on_held(slot, true, cx) {
            self.registry.counters().receipts_failed.inc();
        }
    }

    /// Passes on the held acknowledgement of a viewer if it is due, or in any case if `at_once`. Returns whether none
    /// is held any more.
    fn pass_on_held(&mut self, slot: Slot, at_once: bool, cx: &mut Context<'_>) -> bool {
        let Some(viewer) = self.streams.viewer(slot) else { return true };
        let Some(acks) = viewer.acks.as_ref().filter(|acks| acks.holds()) else { return true };
        let start = Cursor::default();
        let given = viewer.given().unwrap_or(&start);
        let Some((id, at_us, generation)) = acks.due(given, cx.now, at_once) else { return false };
        let is_once = acks.is_once(id, given);
        let (connection, stream) = (viewer.connection, viewer.options.stream.clone());
        let is_passed = cx.pass_on_ack(connection, stream, ClientAck { id, at_us, generation, is_once });
        if is_passed && let Some(acks) = self.streams.acks(slot) {
            acks.pass(id, cx.now);
        }
        is_passed
    }

    // ----- the end -----

    /// Keeps the connection open for a moment if its client has yet to acknowledge the end. Returns whether it does.
    pub(super) fn delay_close(&mut self, slot: Slot, cx: &mut Context<'_>) -> bool {
        let Some(viewer) = self.streams.viewer(slot) else { return false };
        let is_single = viewer.options.wire == Wire::WebSocket;
        let has_open_acks =
            if self.is_draining { self.owes_answers(slot, cx.now) } else { self.has_open_acks(slot, cx.now) };
        if !is_single || !has_open_acks {
            return false;
        }
        let Some(viewer) = self.streams.viewer_mut(slot) else { return false };
        let (connection, until) = (viewer.connection, cx.now + CLOSING_TIME);
        viewer.begin_closing(until);
        cx.clients.arm(connection, until);
        true
    }

    /// Whether the viewer's connection is open only so that the end can be acknowledged.
    pub(in crate::deliver) fn is_closing(&self, slot: Slot) -> bool {
        self.streams.viewer(slot).is_some_and(|viewer| matches!(viewer.stage, Stage::Closing { .. }))
    }

    /// Whether the client has yet to acknowledge frames that it was sent, or waits for an answer.
    fn has_open_acks(&self, slot: Slot, now: Instant) -> bool {
        let Some(viewer) = self.streams.viewer(slot) else { return false };
        let Some(acks) = &viewer.acks else { return false };
        let start = Cursor::default();
        !acks.is_complete(viewer.given().unwrap_or(&start)) || acks.awaits_answer(now)
    }

    /// Ends a viewer whose connection was open only so that the end could be acknowledged, once that is done.
    pub(in crate::deliver) fn end_closing(&mut self, slot: Slot, cx: &mut Context<'_>) {
        if self.is_closing(slot) && !self.has_open_acks(slot, cx.now) {
            self.end(slot, Ending::Ended, cx);
        }
    }

    /// Ends a viewer whose client has not acknowledged the end in time. The time begins when everything has been
    /// written to the socket. Returns when to check it again.
    pub(super) fn check_closing(&mut self, slot: Slot, cx: &mut Context<'_>) -> Option<Instant> {
        let viewer = self.streams.viewer_mut(slot)?;
        let Stage::Closing { until, .. } = &mut viewer.stage else { return None };
        // An answer for which the client waits is sent first.
        let awaits_answer = viewer.acks.as_ref().is_some_and(|acks| acks.awaits_answer(cx.now));
        if viewer.unwritten > 0 || awaits_answer {
            *until = cx.now + CLOSING_TIME;
        }
        let until = *until;
        if until > cx.now {
            return Some(until);
        }
        self.end(slot, Ending::Ended, cx);
        None
    }
}

pub(in crate::deliver) fn not_sent(id: Position) -> Refusal {
    Refusal::new("not_sent", format!("{id} is above all that was sent on this connection"))
}
