//! All connections of a delivery thread: which of them wait to be written to, to be heard, to be looked at at a time,
//! or to end. What a connection says and is told is for others to decide.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use mio::{Interest, Token};

use super::backlog::Backlog;
use super::budget::Budgets;
use super::connection::{Connection, Peer, Phase, WebSocket};
use super::http_error::HttpError;
use super::outbox::{Chunk, WriteOutcome};
use super::socket::Socket;
use super::table::Table;
use super::timer::Timers;
use super::viewer::Mark;
use crate::message::Slot;
use crate::observe::Registry;
use crate::security::principal::Principal;

/// Sockets that are offered something in one round: of those touched last, and of those that wait for longest.
const NEWEST_PER_ROUND: usize = 256;
const OLDEST_PER_ROUND: usize = 64;
/// Bytes waiting beyond which a connection has its turn after all others: history, or a client that is behind.
const BULK_BYTES: usize = 16 * 1024;
/// Bytes that one client is written at once.
const BULK_BYTES_PER_TURN: usize = 64 * 1024;
/// Bytes of unfinished input that a connection may hold without being charged to the budget of all connections.
const INPUT_FREE_BYTES: usize = 4 * 1024;
/// Refused connections that may wait for their first request. The descriptors that are kept free hold these and more.
const REFUSED_WAITING_MAX: usize = 64;

/// The result of offering one socket its bytes.
pub(super) struct Flushed {
    /// Bytes that the socket took.
    pub(super) written: usize,
    /// Whether some are left, so that the client may be slow.
    pub(super) is_behind: bool,
}

/// The connections, and their turns.
pub(super) struct Connections {
    table: Table<Connection>,
    sources: mio::Registry,
    timers: Timers,
    /// Connections with something to send.
    dirty: VecDeque<Slot>,
    /// Those of them that have much to send.
    bulky: VecDeque<Slot>,
    /// Connections that have something to be heard.
    backlog: Backlog,
    /// Connections to be removed at the end of the round, so that no index is reused within one batch of events.
    over: Vec<Slot>,
    /// Refused connections that wait for their first request.
    refused: usize,
    /// The budgets of all connections of the process together.
    budgets: Arc<Budgets>,
    registry: Arc<Registry>,
}

impl Connections {
    /// No connections yet; their sockets will be watched by `sources`.
    pub(super) fn new(sources: mio::Registry, budgets: Arc<Budgets>, registry: Arc<Registry>) -> Self {
        Self {
            table: Table::default(),
            sources,
            timers: Timers::new(),
            dirty: VecDeque::new(),
            bulky: VecDeque::new(),
            backlog: Backlog::default(),
            over: Vec::new(),
            refused: 0,
            budgets,
            registry,
        }
    }

    // ----- coming and going -----

    /// Takes a connection in.
    ///
    /// # Errors
    /// When its socket cannot be watched; it is dropped then.
    pub(super) fn add(&mut self, socket: Socket, principal: Principal, now: Instant) -> io::Result<Slot> {
        let slot = self.table.insert(Connection::new(socket, principal, now));
        let interest = Interest::READABLE | Interest::WRITABLE;
        let Some(connection) = self.table.get_mut(slot) else { return Ok(slot) };
        if let Err(error) = self.sources.register(&mut connection.socket, Token(slot.index), interest) {
            self.table.remove(slot);
            return Err(error);
        }
        self.registry.gauges().connections_open.inc();
        Ok(slot)
    }

    /// Takes a connection out; what its client is owed and owes is its caller's.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Connection> {
        let mut connection = self.table.remove(slot)?;
        self.timers.disarm(slot.index);
        if let Err(error) = self.sources.deregister(&mut connection.socket) {
            tracing::debug!(%error, "a connection was not watched");
        }
        self.refused -= usize::from(connection.refusal.is_some());
        let gauges = self.registry.gauges();
        gauges.connections_open.dec();
        gauges.outbox_bytes.change(connection.gauged_bytes, 0);
        gauges.input_bytes.change(connection.gauged_input, 0);
        // Having fewer is always allowed.
        let _ = self.budgets.inputs.change(charged(connection.gauged_input), 0);
        Some(connection)
    }

    /// The connection is refused, and told so in answer to its first request. The error comes back if too many wait for
    /// that.
    pub(super) fn refuse_later(&mut self, slot: Slot, error: HttpError) -> Result<(), HttpError> {
        if self.refused >= REFUSED_WAITING_MAX {
            return Err(error);
        }
        if let Some(connection) = self.table.get_mut(slot) {
            connection.refusal = Some(Box::new(error));
            self.refused += 1;
        }
        Ok(())
    }

    /// Why the connection is not served, if it is not; it is told so now.
    pub(super) fn take_refusal(&mut self, slot: Slot) -> Option<HttpError> {
        let refusal = self.table.get_mut(slot)?.refusal.take()?;
        self.refused -= 1;
        Some(*refusal)
    }

    /// The connection ends with this round.
    pub(super) fn end(&mut self, slot: Slot) {
        self.over.push(slot);
    }

    /// Takes out the connections that end now.
    pub(super) fn take_over(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.over)
    }

    // ----- finding -----

    /// The connection that was added as `slot`, unless it is gone.
    pub(super) fn get(&self, slot: Slot) -> Option<&Connection> {
        self.table.get(slot)
    }

    /// As [`Connections::get`], to be changed.
    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Connection> {
        self.table.get_mut(slot)
    }

    /// The connection's WebSocket, if it is one.
    pub(super) fn websocket(&mut self, slot: Slot) -> Option<&mut WebSocket> {
        match &mut self.table.get_mut(slot)?.phase {
            Phase::WebSocket(websocket) => Some(websocket),
            _ => None,
        }
    }

    /// The name of the connection at an index of the poll.
    pub(super) fn at(&self, index: usize) -> Option<Slot> {
        self.table.at(index)
    }

    /// All names.
    pub(super) fn slots(&self) -> Vec<Slot> {
        self.table.slots()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    // ----- sending -----

    /// Adds bytes to a connection's outbox.
    pub(super) fn send(&mut self, slot: Slot, chunk: impl Into<Chunk<Mark>>) {
        let Some(connection) = self.table.get_mut(slot) else { return };
        connection.send(chunk);
        self.touch(slot);
    }

    /// Adds bytes of an answer to what the client has asked or said.
    pub(super) fn send_answer(&mut self, slot: Slot, chunk: impl Into<Chunk<Mark>>) {
        let Some(connection) = self.table.get_mut(slot) else { return };
        connection.send_answer(chunk);
        self.touch(slot);
    }

    /// The connection is looked at before the loop sleeps.
    pub(super) fn touch(&mut self, slot: Slot) {
        if let Some(connection) = self.table.get_mut(slot)
            && !std::mem::replace(&mut connection.dirty, true)
        {
            self.dirty.push_back(slot);
        }
    }

    /// The connection begins to answer its viewer's request with an event stream; `false`: it has begun already.
    pub(super) fn begin_events(&mut self, slot: Slot, viewer: Slot, is_ui_message_stream: bool) -> bool {
        let Some(connection) = self.table.get_mut(slot) else { return false };
        let has_begun_now = connection.begin_events(viewer, is_ui_message_stream);
        if has_begun_now {
            self.touch(slot);
        }
        has_begun_now
    }

    /// Whether the answer to the connection's request has begun, so that its status can no longer change.
    pub(super) fn has_begun(&self, slot: Slot) -> bool {
        self.table.get(slot).is_some_and(|connection| !matches!(connection.phase, Phase::Asked { .. }))
    }

    /// Whether the client has finished sending before its answer began, and so may be gone.
    pub(super) fn may_be_gone(&self, slot: Slot) -> bool {
        let connection = self.table.get(slot);
        connection
            .is_some_and(|found| found.peer > Peer::Sending && matches!(found.phase, Phase::Asked { .. }))
    }

    /// Answers of so many bytes are held for the connection until a stream's `open` was sent.
    pub(super) fn hold_bytes(&mut self, slot: Slot, bytes: usize) {
        if let Some(connection) = self.table.get_mut(slot) {
            connection.held_bytes += bytes;
        }
    }

    /// Answers of so many bytes are held no longer.
    pub(super) fn release_held_bytes(&mut self, slot: Slot, bytes: usize) {
        if let Some(connection) = self.table.get_mut(slot) {
            connection.held_bytes -= bytes;
        }
    }

    /// The turns of one round: how many times [`Connections::next_to_flush`] is asked.
    pub(super) const TURNS_PER_ROUND: usize = NEWEST_PER_ROUND + OLDEST_PER_ROUND;

    /// The socket that is offered its bytes in this turn of the round: first those that were touched last, then some
    /// that wait for longest. Those beyond the round's turns come in the next one, after the input that has come
    /// meanwhile. `Some(None)`: it has much to send and has its turn after all others; `None`: there is no more.
    pub(super) fn next_to_flush(&mut self, turn: usize) -> Option<Option<Slot>> {
        let next = if turn < NEWEST_PER_ROUND { self.dirty.pop_back() } else { self.dirty.pop_front() };
        let slot = next?;
        if self.table.get(slot).is_some_and(|found| found.outbox.len_bytes() > BULK_BYTES) {
            self.bulky.push_back(slot);
            return Some(None);
        }
        Some(Some(slot))
    }

    /// The next of those that have much to send.
    pub(super) fn next_bulky(&mut self) -> Option<Slot> {
        self.bulky.pop_front()
    }

    /// Offers one socket the bytes that wait for it. The frames that it has taken are added to `marks`.
    pub(super) fn flush(&mut self, slot: Slot, marks: &mut Vec<Mark>, now: Instant) -> Flushed {
        let mut flushed = Flushed { written: 0, is_behind: false };
        let Some(connection) = self.table.get_mut(slot) else { return flushed };
        connection.dirty = false;
        let before = connection.outbox.len_bytes();
        let result = connection.flush(BULK_BYTES_PER_TURN, now, |mark| marks.push(mark));
        let left = connection.outbox.len_bytes();
        flushed.written = before.saturating_sub(left);
        self.registry.counters().bytes_written.add(flushed.written as u64);
        if left != connection.gauged_bytes {
            let gauged = std::mem::replace(&mut connection.gauged_bytes, left);
            self.registry.gauges().outbox_bytes.change(gauged, left);
        }
        match result {
            Ok(outcome) if left > 0 => {
                if outcome == WriteOutcome::Paused {
                    connection.dirty = true;
                    self.bulky.push_back(slot);
                }
                flushed.is_behind = true;
            }
            Ok(_) if connection.is_finished() => self.over.push(slot),
            Ok(_) => {
                if let Some(at) = connection.drained(now) {
                    self.arm(slot, at);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a client is gone");
                self.over.push(slot);
            }
        }
        flushed
    }

    // ----- hearing -----

    /// A socket has something new, or its client is gone.
    pub(super) fn notice(&mut self, slot: Slot, peer: Option<Peer>) {
        let Some(connection) = self.table.get_mut(slot) else { return };
        connection.unread = true;
        connection.peer = peer.map_or(connection.peer, |peer| peer.max(connection.peer));
        if !std::mem::replace(&mut connection.queued, true) {
            self.backlog.add_fresh(slot);
        }
    }

    /// A connection is heard further, if it has said more, now that what it waited for is over.
    pub(super) fn read_further(&mut self, slot: Slot) {
        let Some(connection) = self.table.get_mut(slot) else { return };
        if connection.has_unread() && !std::mem::replace(&mut connection.queued, true) {
            self.backlog.add_unfinished(slot);
        }
    }

    /// The connection that is heard next.
    pub(super) fn next_to_read(&mut self) -> Option<Slot> {
        while let Some(slot) = self.backlog.take() {
            if let Some(connection) = self.table.get_mut(slot) {
                connection.queued = false;
                return Some(slot);
            }
        }
        None
    }

    /// Charges a connection's unfinished input to the budget of all; `false`: there is no room for it.
    pub(super) fn weigh_input(&mut self, slot: Slot) -> bool {
        let Some(connection) = self.table.get_mut(slot) else { return true };
        let (before, after) = (connection.gauged_input, connection.input_cost_bytes());
        if before == after {
            return true;
        }
        let fits = self.budgets.inputs.change(charged(before), charged(after));
        if fits {
            connection.gauged_input = after;
            self.registry.gauges().input_bytes.change(before, after);
        }
        fits
    }

    // ----- time -----

    /// The connection is looked at again at `at`, or before.
    pub(super) fn arm(&mut self, slot: Slot, at: Instant) {
        let Some(connection) = self.table.get_mut(slot) else { return };
        if connection.deadline.is_none_or(|deadline| at < deadline) {
            connection.deadline = Some(at);
            self.timers.arm(slot.index, slot.generation, at);
        }
    }

    /// A connection whose time has come; `Some(None)`: one that is gone.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Option<Slot>> {
        let (index, generation) = self.timers.pop_due(now)?;
        let slot = Slot { index, generation };
        let connection = self.table.get_mut(slot);
        Some(connection.map(|connection| {
            connection.deadline = None;
            slot
        }))
    }

    /// When a connection's time comes next.
    pub(super) fn next_deadline(&mut self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    /// Amounts that are 0 when no client is left.
    #[cfg(test)]
    pub(super) fn held(&self) -> [(&'static str, usize); 4] {
        let turns = self.dirty.len() + self.bulky.len() + self.over.len();
        [
            ("connections", self.table.len()),
            ("turns of connections", turns + usize::from(!self.backlog.is_empty())),
            ("refused connections", self.refused),
            ("deadlines", self.timers.len()),
        ]
    }

    /// Whether something is to be done without waiting: to write, to hear, or to end.
    pub(super) fn has_work(&self) -> bool {
        let is_idle = self.dirty.is_empty() && self.bulky.is_empty() && self.over.is_empty();
        !is_idle || !self.backlog.is_empty()
    }
}

/// Bytes of unfinished input that count.
const fn charged(bytes: usize) -> usize {
    bytes.saturating_sub(INPUT_FREE_BYTES)
}
