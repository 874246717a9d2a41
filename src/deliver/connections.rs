//! All connections of a delivery thread, and the queues of those that wait to be written to, to be read from, for a
//! deadline, or to be removed. This module does not interpret input and does not produce answers; its callers do.

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
use super::write_queue::WriteQueue;
use crate::message::Slot;
use crate::observe::Registry;
use crate::security::principal::Principal;

/// A connection with more waiting bytes than this is written to after all others: it is sent history, or its client is
/// behind.
const BULK_BYTES: usize = 16 * 1024;
/// The most bytes that are written to one client in one turn.
const BULK_BYTES_PER_TURN: usize = 64 * 1024;
/// Bytes of unprocessed input that a connection may hold without a charge to the budget shared by all connections.
const INPUT_FREE_BYTES: usize = 4 * 1024;
/// How many refused connections may wait for their first request. The file descriptors that the daemon reserves cover
/// these and more.
const REFUSED_WAITING_MAX: usize = 64;

/// The result of writing to one socket.
pub(super) struct Flushed {
    /// Bytes that the socket accepted.
    pub(super) written: usize,
    /// Whether bytes are left, so that the client may be slow.
    pub(super) is_behind: bool,
}

/// The connections, and the queues of those that have work to do.
pub(super) struct Connections {
    table: Table<Connection>,
    sources: mio::Registry,
    timers: Timers,
    /// Connections to be written to.
    dirty: WriteQueue,
    /// Connections that have many bytes to write, and are written to after the others.
    bulky: VecDeque<Slot>,
    /// Connections to be read from.
    backlog: Backlog,
    /// Connections to be removed at the end of the round, so that no index is reused within one batch of events.
    ended: Vec<Slot>,
    /// Refused connections that wait for their first request.
    refused: usize,
    /// The budgets of all connections of the process together.
    budgets: Arc<Budgets>,
    registry: Arc<Registry>,
}

impl Connections {
    /// Creates an empty set. The sockets of its connections are registered with `sources`.
    pub(super) fn new(sources: mio::Registry, budgets: Arc<Budgets>, registry: Arc<Registry>) -> Self {
        Self {
            table: Table::default(),
            sources,
            timers: Timers::new(),
            dirty: WriteQueue::default(),
            bulky: VecDeque::new(),
            backlog: Backlog::default(),
            ended: Vec::new(),
            refused: 0,
            budgets,
            registry,
        }
    }

    // ----- adding and removing -----

    /// Adds a connection and registers its socket.
    ///
    /// # Errors
    /// When its socket cannot be registered; the connection is dropped then.
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

    /// Removes a connection and returns it. The caller removes its viewers and stops counting it towards limits.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Connection> {
        let mut connection = self.table.remove(slot)?;
        self.timers.disarm(slot.index);
        if let Err(error) = self.sources.deregister(&mut connection.socket) {
            tracing::debug!(%error, "a connection's socket could not be deregistered");
        }
        self.refused -= usize::from(connection.refusal.is_some());
        let gauges = self.registry.gauges();
        gauges.connections_open.dec();
        gauges.outbox_bytes.change(connection.gauged_bytes, 0);
        gauges.input_bytes.change(connection.gauged_input, 0);
        // A decrease is always allowed.
        let _ = self.budgets.inputs.change(charged(connection.gauged_input), 0);
        Some(connection)
    }

    /// Refuses a connection: its first request is answered with `error`. Returns the error if too many refused
    /// connections wait already.
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

    /// Takes the error of a refused connection, for the caller to send.
    pub(super) fn take_refusal(&mut self, slot: Slot) -> Option<HttpError> {
        let refusal = self.table.get_mut(slot)?.refusal.take()?;
        self.refused -= 1;
        Some(*refusal)
    }

    /// Marks a connection to be removed at the end of the round.
    pub(super) fn end(&mut self, slot: Slot) {
        self.ended.push(slot);
    }

    /// Takes the connections that are marked to be removed.
    pub(super) fn take_ended(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.ended)
    }

    // ----- lookup -----

    /// The connection with this slot, if it still exists.
    pub(super) fn get(&self, slot: Slot) -> Option<&Connection> {
        self.table.get(slot)
    }

    /// Mutable access: see [`Connections::get`].
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

    /// The slot of the connection with this poll token.
    pub(super) fn at(&self, index: usize) -> Option<Slot> {
        self.table.at(index)
    }

    /// All slots.
    pub(super) fn slots(&self) -> Vec<Slot> {
        self.table.slots()
    }

    /// Whether there are no connections.
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    // ----- writing -----

    /// Adds bytes to a connection's outbox.
    pub(super) fn send(&mut self, slot: Slot, chunk: impl Into<Chunk<Mark>>) {
        let Some(connection) = self.table.get_mut(slot) else { return };
        connection.send(chunk);
        self.touch(slot);
    }

    /// Adds the bytes of an answer to a connection's outbox: see [`Connection::send_answer`].
    pub(super) fn send_answer(&mut self, slot: Slot, chunk: impl Into<Chunk<Mark>>) {
        let Some(connection) = self.table.get_mut(slot) else { return };
        connection.send_answer(chunk);
        self.touch(slot);
    }

    /// Queues a connection to be written to before the loop sleeps.
    pub(super) fn touch(&mut self, slot: Slot) {
        if let Some(connection) = self.table.get_mut(slot)
            && !std::mem::replace(&mut connection.dirty, true)
        {
            self.dirty.push(slot);
        }
    }

    /// Begins to answer the viewer's request with an event stream. Returns `false` if the answer has begun already.
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
        self.table.get(slot).is_some_and(|connection| !matches!(connection.phase, Phase::LookingUp { .. }))
    }

    /// Whether the client finished sending before its answer began, so that it may be gone.
    pub(super) fn may_be_gone(&self, slot: Slot) -> bool {
        let connection = self.table.get(slot);
        connection
            .is_some_and(|found| found.peer > Peer::Sending && matches!(found.phase, Phase::LookingUp { .. }))
    }

    /// Counts `bytes` of answers that are held until a stream's `open` is sent.
    pub(super) fn hold_bytes(&mut self, slot: Slot, bytes: usize) {
        if let Some(connection) = self.table.get_mut(slot) {
            connection.held_bytes += bytes;
        }
    }

    /// Counts `bytes` of held answers no longer.
    pub(super) fn release_held_bytes(&mut self, slot: Slot, bytes: usize) {
        if let Some(connection) = self.table.get_mut(slot) {
            connection.held_bytes -= bytes;
        }
    }

    /// How many times a round calls [`Connections::next_to_flush`].
    pub(super) const TURNS_PER_ROUND: usize = WriteQueue::TURNS_PER_ROUND;

    /// Takes the next connection to write to, in the order of [`WriteQueue`]. `Some(None)`: the connection has many
    /// bytes to write, and is written to after the others. `None`: the queue is empty.
    pub(super) fn next_to_flush(&mut self, turn: usize) -> Option<Option<Slot>> {
        let slot = self.dirty.next(turn)?;
        if self.table.get(slot).is_some_and(|found| found.outbox.len_bytes() > BULK_BYTES) {
            self.bulky.push_back(slot);
            return Some(None);
        }
        Some(Some(slot))
    }

    /// Takes the next connection that has many bytes to write.
    pub(super) fn next_bulky(&mut self) -> Option<Slot> {
        self.bulky.pop_front()
    }

    /// Writes the waiting bytes of one connection to its socket. Adds the marks of the frames that were completely
    /// written to `marks`.
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
            Ok(_) if connection.is_finished() => self.ended.push(slot),
            Ok(_) => {
                if let Some(at) = connection.drained(now) {
                    self.arm(slot, at);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a client is gone");
                self.ended.push(slot);
            }
        }
        flushed
    }

    // ----- reading -----

    /// Notes that a socket is readable, and the state of the client's side if that has changed. Queues the connection
    /// to be read.
    pub(super) fn note_readable(&mut self, slot: Slot, peer: Option<Peer>) {
        let Some(connection) = self.table.get_mut(slot) else { return };
        connection.unread = true;
        connection.peer = peer.map_or(connection.peer, |peer| peer.max(connection.peer));
        if !std::mem::replace(&mut connection.queued, true) {
            self.backlog.add_fresh(slot);
        }
    }

    /// Queues a connection to be read again, if it may have more input: its turn was too short, or it no longer has to
    /// wait.
    pub(super) fn read_further(&mut self, slot: Slot) {
        let Some(connection) = self.table.get_mut(slot) else { return };
        if connection.has_unread() && !std::mem::replace(&mut connection.queued, true) {
            self.backlog.add_unfinished(slot);
        }
    }

    /// Takes the next connection to read from.
    pub(super) fn next_to_read(&mut self) -> Option<Slot> {
        while let Some(slot) = self.backlog.take() {
            if let Some(connection) = self.table.get_mut(slot) {
                connection.queued = false;
                return Some(slot);
            }
        }
        None
    }

    /// Charges a connection's unprocessed input to the budget shared by all connections. Returns `false` if there is
    /// no room for it.
    pub(super) fn charge_input(&mut self, slot: Slot) -> bool {
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

    // ----- deadlines -----

    /// Sets the connection's deadline to `at`, unless it has an earlier one.
    pub(super) fn arm(&mut self, slot: Slot, at: Instant) {
        let Some(connection) = self.table.get_mut(slot) else { return };
        if connection.deadline.is_none_or(|deadline| at < deadline) {
            connection.deadline = Some(at);
            self.timers.arm(slot.index, slot.generation, at);
        }
    }

    /// Takes a connection whose deadline has passed. `Some(None)`: that connection was removed meanwhile.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Option<Slot>> {
        let (index, generation) = self.timers.pop_due(now)?;
        let slot = Slot { index, generation };
        let connection = self.table.get_mut(slot);
        Some(connection.map(|connection| {
            connection.deadline = None;
            slot
        }))
    }

    /// The earliest deadline.
    pub(super) fn next_deadline(&mut self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    /// Counts that must be 0 when no client is left.
    #[cfg(test)]
    pub(super) fn held(&self) -> [(&'static str, usize); 4] {
        let turns = self.dirty.len() + self.bulky.len() + self.ended.len();
        [
            ("connections", self.table.len()),
            ("turns of connections", turns + usize::from(!self.backlog.is_empty())),
            ("refused connections", self.refused),
            ("deadlines", self.timers.len()),
        ]
    }

    /// Whether a connection waits to be written to, read from or removed.
    pub(super) fn has_work(&self) -> bool {
        let is_idle = self.dirty.is_empty() && self.bulky.is_empty() && self.ended.is_empty();
        !is_idle || !self.backlog.is_empty()
    }
}

/// The bytes of unprocessed input that are charged to the shared budget.
const fn charged(bytes: usize) -> usize {
    bytes.saturating_sub(INPUT_FREE_BYTES)
}
