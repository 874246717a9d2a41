//! Accepts connections, hands each to the delivery thread that has the fewest, admits or refuses it, and removes it at
//! its end.

use std::net::SocketAddr;
use std::time::Instant;

use super::delivery::Delivery;
use crate::deliver::acceptor::Accepted;
use crate::deliver::admission::REFUSED_WAIT;
use crate::deliver::connection::Connection;
use crate::deliver::http_error::HttpError;
use crate::deliver::socket::Socket;
use crate::message::Slot;
use crate::security::principal::Principal;
use crate::warn_limited;

/// Connections accepted in one round, at most.
const ACCEPTS_PER_ROUND: usize = 8;

impl Delivery {
    /// Accepts the connections that wait, at most [`ACCEPTS_PER_ROUND`] in one call.
    pub(super) fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_PER_ROUND {
            match self.acceptor.accept(now) {
                Accepted::Here(socket, address) => self.admit_connection(Socket::Plain(socket), address, now),
                Accepted::Elsewhere => {}
                Accepted::Nothing => return,
            }
        }
        self.acceptor.schedule(now);
    }

    /// Adds a connection to this thread, or refuses it. The acceptor has already counted it in the load of this
    /// thread.
    pub(super) fn admit_connection(&mut self, socket: Socket, address: SocketAddr, now: Instant) {
        let principal = Principal::Address(address.ip());
        let refusal = if self.is_draining {
            Some(HttpError::draining())
        } else {
            self.admission.admit(&principal, self.acceptor.connections_of_all(), now)
        };
        if let Err(error) = socket.prepare(self.config.client.slow_timeout) {
            tracing::debug!(%address, %error, "a connection could not be prepared");
        }
        let slot = match self.connections.add(socket, principal, now) {
            Ok(slot) => slot,
            Err(error) => {
                warn_limited!(%address, %error, "a connection could not be watched");
                return self.acceptor.uncount();
            }
        };
        let timeout = self.config.client.handshake_timeout;
        let Some(error) = refusal else { return self.connections.arm(slot, now + timeout) };
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.is_admitted = false;
        }
        self.acceptor.uncount();
        match self.connections.refuse_later(slot, error) {
            Ok(()) => self.connections.arm(slot, now + REFUSED_WAIT.min(timeout)),
            Err(error) => self.refuse_connection(slot, &error),
        }
    }

    /// Removes a connection and its viewers.
    pub(super) fn remove_connection(&mut self, slot: Slot, now: Instant) {
        self.remove_viewers_of(slot, now);
        let Some(connection) = self.connections.remove(slot) else { return };
        if connection.is_admitted {
            self.acceptor.uncount();
        }
        if connection.counted {
            self.admission.uncount(&connection.principal);
        }
    }

    /// Removes a connection's viewers.
    pub(super) fn remove_viewers_of(&mut self, slot: Slot, now: Instant) {
        let viewers = self.connections.get(slot).map(Connection::viewers).unwrap_or_default();
        for viewer in viewers {
            self.with_views(now, |views, cx| views.remove_viewer(viewer, cx));
        }
    }

    /// Removes the connections that have ended in this round.
    pub(super) fn remove_ended(&mut self, now: Instant) {
        for slot in self.connections.take_ended() {
            self.remove_connection(slot, now);
        }
    }
}
