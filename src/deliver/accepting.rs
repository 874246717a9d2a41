//! Connections: accepted, given to the loop that has the fewest, welcomed, and removed.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Token};

use super::connection::Connection;
use super::delivery::Delivery;
use crate::config::NEVER;
use crate::event::message::{Slot, ToDelivery};
use crate::queue::SendError;
use crate::warn_limited;

/// Connections accepted in one round.
const ACCEPTS_PER_ROUND: usize = 8;
/// How long accepting rests when the operating system gives no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A peer that acknowledges nothing for longer than the slow client's time and this is gone.
const PEER_GONE_AFTER: Duration = Duration::from_secs(30);

impl Delivery {
    pub(super) fn accept(&mut self, now: Instant) {
        self.accept_at = None;
        for _ in 0..ACCEPTS_PER_ROUND {
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((socket, address)) => self.place(socket, address, now),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    warn_limited!(%error, "connections cannot be accepted now");
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.accept_at = Some(now);
    }

    /// Gives a new connection to the loop that has the fewest.
    fn place(&mut self, socket: TcpStream, address: SocketAddr, now: Instant) {
        self.registry.counters().connections_accepted.inc();
        let load = |index: &usize| self.loads[*index].load(Ordering::Relaxed);
        let least = (0..self.peers.len()).min_by_key(load).unwrap_or(self.index);
        self.loads[least].fetch_add(1, Ordering::Relaxed);
        if least == self.index {
            return self.welcome(socket, address, now);
        }
        if let Err(
            SendError::Full(ToDelivery::Connection(socket, address))
            | SendError::Closed(ToDelivery::Connection(socket, address)),
        ) = self.peers[least].try_send(ToDelivery::Connection(socket, address))
        {
            self.loads[least].fetch_sub(1, Ordering::Relaxed);
            self.loads[self.index].fetch_add(1, Ordering::Relaxed);
            self.welcome(socket, address, now);
        }
    }

    /// Takes a connection in, which its loop's load counts already.
    pub(super) fn welcome(&mut self, socket: TcpStream, address: SocketAddr, now: Instant) {
        let refusal = self.admit(address, now);
        if let Err(error) = prepare(&socket, self.config.client.slow_timeout) {
            tracing::debug!(%address, %error, "a connection could not be prepared");
        }
        self.registry.gauges().connections_open.inc();
        let slot = self.connections.insert(Connection::new(socket, address, now));
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.sources.register(&mut connection.socket, Token(slot.index), interest) {
            warn_limited!(%address, %error, "a connection could not be watched");
            self.over.push(slot);
            return;
        }
        match refusal {
            Some(error) => {
                connection.placed = false;
                self.loads[self.index].fetch_sub(1, Ordering::Relaxed);
                self.refuse_when_asked(slot, error, now);
            }
            None => self.arm(slot, now + self.config.client.handshake_timeout),
        }
    }

    pub(super) fn connections_of_all(&self) -> usize {
        self.loads.iter().map(|load| load.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn max_connections(&self) -> usize {
        self.max_connections
    }

    pub(super) fn remove_connection(&mut self, slot: Slot) {
        let viewers = self.connections.get(slot).map(Connection::viewers).unwrap_or_default();
        for viewer in viewers {
            self.remove_viewer(viewer);
        }
        let Some(mut connection) = self.connections.remove(slot) else { return };
        self.timers.disarm(slot.index);
        if let Err(error) = self.sources.deregister(&mut connection.socket) {
            tracing::debug!(%error, "a connection was not watched");
        }
        self.registry.gauges().connections_open.dec();
        self.registry.gauges().outbox_bytes.change(connection.gauged_bytes, 0);
        self.release_input(&connection);
        self.refused_waiting -= usize::from(connection.refusal.is_some());
        if connection.placed {
            self.loads[self.index].fetch_sub(1, Ordering::Relaxed);
        }
        if connection.counted {
            self.rates.lock().close(connection.address.ip());
        }
    }

    /// The connection ends with this round.
    pub(super) fn drop_connection(&mut self, slot: Slot) {
        self.over.push(slot);
    }

    pub(super) fn reap(&mut self) {
        for slot in std::mem::take(&mut self.over) {
            self.remove_connection(slot);
        }
    }
}

/// Socket options: tokens are small and must not wait for more; a peer that has vanished is noticed, but
/// not before a slow one would be closed for its slowness.
fn prepare(socket: &TcpStream, slow_timeout: Duration) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = socket2::SockRef::from(socket);
    socket.set_keepalive(true)?;
    if slow_timeout == NEVER {
        return Ok(());
    }
    socket.set_tcp_user_timeout(Some(slow_timeout + PEER_GONE_AFTER))
}
