//! Reads from clients in turns, and decodes requests and messages from the bytes. Each round has a limit, so that live
//! frames are never delayed. [`crate::deliver::backlog`] decides whose turn it is.
//!
//! If a client does not read its answers, nothing more is read from it until they are sent: its further input stays in
//! the socket. Thus an endless flow of requests or messages cannot fill the memory.

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

/// Bytes of one read while the head of a request is expected, at most. A head is small, and a larger read would buffer
/// bytes that do not belong to it.
const HEAD_READ_BYTES: usize = 4 * 1024;
/// Bytes of one read of anything else, at most.
const READ_BYTES: usize = 16 * 1024;

/// The result of [`Delivery::process_input`].
enum InputOutcome {
    /// Something was processed: a request, a message or a part of one, or an error.
    Processed,
    /// Nothing could be processed without more bytes; at most this many should be read.
    Wants(usize),
}

impl Delivery {
    /// Reads from clients until the limits of the round are reached. A client that is not finished then gets another
    /// turn, after those with new input.
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
            self.charge_input(slot, now);
            self.watch_unfinished(slot, now);
        }
        self.buffer = buffer;
    }

    /// Reads from one connection for one turn. Returns whether it may have more input.
    fn read_from(&mut self, slot: Slot, turn: &mut Measure, buffer: &mut [u8], now: Instant) -> bool {
        while !turn.is_spent() {
            let send_budget = self.config.client.send_budget;
            let Some(connection) = self.connections.get(slot) else { return false };
            if connection.must_wait(send_budget) {
                self.check_waiting(slot, now);
                return false;
            }
            let wanted = match self.process_input(slot, now) {
                InputOutcome::Processed => {
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
                    connection.add_input(&buffer[..len]);
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

    /// Processes one request or message of the input.
    fn process_input(&mut self, slot: Slot, now: Instant) -> InputOutcome {
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
                    InputOutcome::Processed
                }
                Parsed::Complete { head_bytes, request } => {
                    *seen = 0;
                    input.advance(head_bytes);
                    self.handle_request(slot, &request, now);
                    InputOutcome::Processed
                }
            },
            Phase::Body { body, .. } => match body.take(input) {
                Ok(None) => InputOutcome::Wants(body.wants(input.len(), HEAD_READ_BYTES).min(READ_BYTES)),
                Ok(Some(body)) => {
                    self.handle_body(slot, &body, now);
                    InputOutcome::Processed
                }
                Err(error) => {
                    self.registry.counters().http_errors.inc();
                    self.refuse_connection(slot, &error);
                    InputOutcome::Processed
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
                InputOutcome::Processed
            }
            // Input is ignored here, except for its end.
            Phase::Sse { .. } | Phase::Closing { .. } => InputOutcome::Wants(READ_BYTES),
            Phase::LookingUp { .. } | Phase::Recording { .. } => InputOutcome::Wants(0),
        }
    }

    /// Checks a connection from which nothing can be read now. If its client is gone, the connection ends. If its
    /// client has finished sending, it may be gone as well: a request that waits for a stream to exist is answered
    /// now.
    fn check_waiting(&mut self, slot: Slot, now: Instant) {
        let Some(connection) = self.connections.get(slot) else { return };
        match (connection.peer, &connection.phase) {
            (Peer::Sending, _) => {}
            (Peer::Gone, _) => self.connections.end(slot),
            (_, Phase::LookingUp { viewer, .. }) => {
                let viewer = *viewer;
                self.with_views(now, |views, cx| views.end_wait(viewer, cx));
            }
            _ => {}
        }
    }

    /// Handles the end of the input. The requests before it are still answered, and an event stream continues: a
    /// comment is sent at once, because that fails if the client is gone and has not only finished sending.
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
            | Phase::LookingUp { .. }
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

    // ----- unfinished input -----

    /// Charges a connection's unfinished input to the budget of the whole process. If there is no room, the client is
    /// refused and asked to try again.
    pub(super) fn charge_input(&mut self, slot: Slot, now: Instant) {
        if self.connections.charge_input(slot) {
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

    /// Starts the timeout of a WebSocket message that is incomplete.
    fn watch_unfinished(&mut self, slot: Slot, now: Instant) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let Phase::WebSocket(websocket) = &mut connection.phase else { return };
        if websocket.decoder.is_idle() || websocket.begun_at.is_some() {
            return;
        }
        websocket.begun_at = Some(now);
        self.connections.arm(slot, now + self.config.client.handshake_timeout);
    }

    /// Closes a WebSocket whose client has not completed a message in time. Otherwise returns when to check it again.
    pub(super) fn check_unfinished(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        let connection = self.connections.get(slot)?;
        let Phase::WebSocket(websocket) = &connection.phase else { return None };
        let at = websocket.begun_at? + self.config.client.handshake_timeout;
        if at > now {
            return Some(at);
        }
        if connection.has_unread() {
            // The end may already be in the socket, unread because this thread is late.
            return Some(now + self.config.client.handshake_timeout);
        }
        self.registry.counters().handshakes_timed_out.inc();
        self.close_websocket(slot, CloseCode::Slow, "a message did not come to its end in time", now);
        None
    }
}
