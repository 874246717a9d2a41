//! Hearing clients, in turns: bytes from their sockets become requests and messages, so many a round that live frames
//! are never kept waiting. See [`crate::deliver::backlog`] for whose turn it is.
//!
//! A client that does not read its answers is not heard further: what it sends stays in its socket, until what it was
//! answered is out. So neither requests without end nor messages without end grow anything here.

use std::time::Instant;

use bytes::Bytes;

use super::deadlines::COMMENT;
use super::delivery::Delivery;
use crate::deliver::backlog::Measure;
use crate::deliver::close_code::CloseCode;
use crate::deliver::connection::{Connection, Peer, Phase, ReadOutcome};
use crate::deliver::http_error::HttpError;
use crate::deliver::request::{Parsed, parse_grown};
use crate::message::Slot;

/// Bytes of one read of a request. A head is small, and little that does not belong to it is to be kept.
const HEAD_READ_BYTES: usize = 4 * 1024;
/// Bytes of one read of anything else, at most.
const READ_BYTES: usize = 16 * 1024;

/// The result of taking one request or message out of a client's input.
enum InputOutcome {
    /// A request, a message, or an end.
    One,
    /// Nothing whole; so many more bytes are wanted.
    Wants(usize),
}

impl Delivery {
    /// Hears clients for as long as the round's measure lasts. A client that is not finished then has another turn in
    /// the next round, after those whose input has come meanwhile.
    pub(super) fn read_clients(&mut self, now: Instant) {
        let mut round = Measure::ROUND;
        let mut buffer = std::mem::take(&mut self.buffer);
        while !round.is_spent()
            && let Some(slot) = self.connections.next_to_read()
        {
            let mut turn = round.take_turn();
            let is_unfinished = self.read_from(slot, &mut turn, &mut buffer, now);
            round.give_back(turn);
            if is_unfinished {
                self.connections.read_further(slot);
            }
            self.weigh_input(slot, now);
            self.watch_unfinished(slot, now);
        }
        self.buffer = buffer;
    }

    /// Hears one connection for a turn; whether it may have more to say.
    fn read_from(&mut self, slot: Slot, turn: &mut Measure, buffer: &mut [u8], now: Instant) -> bool {
        while !turn.is_spent() {
            let send_budget = self.config.client.send_budget;
            let Some(connection) = self.connections.get(slot) else { return false };
            if connection.must_wait(send_budget) {
                self.check_waiting(slot, now);
                return false;
            }
            let wanted = match self.take_one(slot, now) {
                InputOutcome::One => {
                    turn.spend_request();
                    continue;
                }
                InputOutcome::Wants(bytes) => bytes.min(turn.bytes).min(buffer.len()),
            };
            let Some(connection) = self.connections.get_mut(slot) else { return false };
            if !connection.unread || wanted == 0 {
                return false;
            }
            match connection.read(&mut buffer[..wanted]) {
                ReadOutcome::Some(len) => {
                    turn.spend_bytes(len);
                    connection.take_in(&buffer[..len]);
                }
                ReadOutcome::Blocked if connection.peer != Peer::Gone => {
                    connection.unread = false;
                    return false;
                }
                ReadOutcome::Ended => {
                    connection.unread = false;
                    self.end_of_input(slot, now);
                    return false;
                }
                ReadOutcome::Blocked | ReadOutcome::Broken => {
                    self.connections.end(slot);
                    return false;
                }
            }
        }
        true
    }

    /// Takes one request or message out of what was read.
    fn take_one(&mut self, slot: Slot, now: Instant) -> InputOutcome {
        let Some(connection) = self.connections.get_mut(slot) else { return InputOutcome::Wants(0) };
        let Connection { phase, input, .. } = connection;
        match phase {
            Phase::Head { .. } if input.is_empty() => InputOutcome::Wants(HEAD_READ_BYTES),
            Phase::Head { seen, .. } => match parse_grown(input.rest(), *seen) {
                Parsed::Partial => {
                    *seen = input.len();
                    InputOutcome::Wants(HEAD_READ_BYTES)
                }
                Parsed::Invalid(error) => {
                    self.registry.counters().http_errors.inc();
                    self.refuse_connection(slot, &error);
                    InputOutcome::One
                }
                Parsed::Complete { head_bytes, request } => {
                    *seen = 0;
                    input.advance(head_bytes);
                    self.answer(slot, &request, now);
                    InputOutcome::One
                }
            },
            Phase::Body { body, .. } => match body.take(input) {
                Ok(None) => InputOutcome::Wants(body.wants(input.len(), HEAD_READ_BYTES).min(READ_BYTES)),
                Ok(Some(body)) => {
                    self.take_body(slot, &body, now);
                    InputOutcome::One
                }
                Err(error) => {
                    self.registry.counters().http_errors.inc();
                    self.refuse_connection(slot, &error);
                    InputOutcome::One
                }
            },
            Phase::WebSocket(_) if input.is_empty() => InputOutcome::Wants(READ_BYTES),
            Phase::WebSocket(websocket) => {
                let mut rest = input.rest();
                let before = rest.len();
                let result = websocket.decoder.next(&mut rest);
                let taken = before - rest.len();
                if matches!(result, Ok(Some(_))) && !websocket.decoder.is_within_message() {
                    websocket.begun_at = None;
                }
                input.advance(taken);
                match result {
                    Ok(Some(incoming)) => self.handle_frame(slot, incoming, now),
                    Ok(None) => {}
                    Err(reason) => self.close_websocket(slot, reason.code, reason.reason, now),
                }
                InputOutcome::One
            }
            // Input means nothing here, except for its end.
            Phase::Sse { .. } | Phase::Closing { .. } => InputOutcome::Wants(READ_BYTES),
            Phase::Asked { .. } | Phase::Recording { .. } => InputOutcome::Wants(0),
        }
    }

    /// A connection cannot be heard now. If its client is gone, nobody waits for an answer; if it has finished sending,
    /// and so may be gone, nothing that may never come is waited for: what is there now is the answer.
    fn check_waiting(&mut self, slot: Slot, now: Instant) {
        let Some(connection) = self.connections.get(slot) else { return };
        match (connection.peer, &connection.phase) {
            (Peer::Sending, _) => {}
            (Peer::Gone, _) => self.connections.end(slot),
            (_, Phase::Asked { viewer, .. }) => {
                let viewer = *viewer;
                self.with_views(now, |views, cx| views.end_wait(viewer, cx));
            }
            _ => {}
        }
    }

    /// The client sends nothing more. Its earlier requests are still answered, and an event stream goes on: it is
    /// written to at once, because the write fails if the client is gone, and not only silent.
    fn end_of_input(&mut self, slot: Slot, now: Instant) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        match std::mem::replace(&mut connection.peer, Peer::Finished) {
            Peer::Sending | Peer::Finishing => {}
            Peer::Finished => return,
            Peer::Gone => return self.connections.end(slot),
        }
        match connection.phase {
            Phase::Sse { .. } => return self.connections.send(slot, Bytes::from_static(COMMENT)),
            Phase::WebSocket(_) => self.remove_viewers_of(slot, now),
            Phase::Head { .. }
            | Phase::Body { .. }
            | Phase::Asked { .. }
            | Phase::Recording { .. }
            | Phase::Closing { .. } => {}
        }
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if connection.outbox.is_empty() {
            return self.connections.end(slot);
        }
        if !matches!(connection.phase, Phase::Closing { .. }) {
            connection.close();
        }
        self.connections.touch(slot);
    }

    // ----- what has begun -----

    /// Charges a connection's unfinished input to the budget of all. A client for which there is no room is told to
    /// come again.
    pub(super) fn weigh_input(&mut self, slot: Slot, now: Instant) {
        if self.connections.weigh_input(slot) {
            return;
        }
        let Some(connection) = self.connections.get(slot) else { return };
        let message = "too much that clients have begun to send waits for its rest; try again";
        match connection.phase {
            Phase::WebSocket(_) => self.close_websocket(slot, CloseCode::TryAgain, message, now),
            _ => {
                let error =
                    HttpError::unavailable("overloaded", message, crate::deliver::admission::RETRY_AFTER_S);
                self.refuse_connection(slot, &error);
            }
        }
    }

    /// A message that has begun has to come to its end in time.
    fn watch_unfinished(&mut self, slot: Slot, now: Instant) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let Phase::WebSocket(websocket) = &mut connection.phase else { return };
        if websocket.decoder.is_idle() || websocket.begun_at.is_some() {
            return;
        }
        websocket.begun_at = Some(now);
        self.connections.arm(slot, now + self.config.client.handshake_timeout);
    }

    /// Closes a WebSocket whose client has not come to the end of a message in time; else says when to look again.
    pub(super) fn check_unfinished(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        let connection = self.connections.get(slot)?;
        let Phase::WebSocket(websocket) = &connection.phase else { return None };
        let at = websocket.begun_at? + self.config.client.handshake_timeout;
        if at > now {
            return Some(at);
        }
        if connection.has_unread() {
            // The end may be there, and we are late.
            return Some(now + self.config.client.handshake_timeout);
        }
        self.registry.counters().handshakes_timed_out.inc();
        self.close_websocket(slot, CloseCode::Slow, "a message did not come to its end in time", now);
        None
    }
}
