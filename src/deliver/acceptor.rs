//! The listener of a delivery thread, if it has one, and the number of connections of every delivery thread.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};

use crate::message::ToDelivery;
use crate::observe::Registry;
use crate::queue::{SendError, Sender};
use crate::warn_limited;

/// How long accepting pauses after it failed, for example because no file descriptors are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The public listener.
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// Whether the service manager keeps it open across restarts, so that connections can wait in it for the next
    /// daemon.
    pub is_passed: bool,
}

/// The outcome of accepting one connection.
pub(super) enum Accepted {
    /// A connection for this thread, whose load includes it already.
    Here(TcpStream, SocketAddr),
    /// The connection went to another thread, or was gone before it was accepted. More may be waiting.
    Elsewhere,
    /// There is nothing to accept now.
    Nothing,
}

/// The listener, and access to the other delivery threads.
pub(super) struct Acceptor {
    delivery: usize,
    /// The listener; only the thread that accepts has one.
    listener: Option<Listener>,
    /// The inboxes of all delivery threads.
    peers: Vec<Sender<ToDelivery>>,
    /// The number of connections of each delivery thread.
    loads: Arc<[AtomicUsize]>,
    accept_at: Option<Instant>,
    registry: Arc<Registry>,
}

impl Acceptor {
    /// The acceptor of the delivery thread with this index.
    pub(super) fn new(
        delivery: usize,
        listener: Option<Listener>,
        (peers, loads): (Vec<Sender<ToDelivery>>, Arc<[AtomicUsize]>),
        registry: Arc<Registry>,
    ) -> Self {
        Self { delivery, listener, peers, loads, accept_at: None, registry }
    }

    /// Schedules accepting at `at`.
    pub(super) const fn schedule(&mut self, at: Instant) {
        self.accept_at = Some(at);
    }

    /// When to accept next.
    pub(super) const fn next(&self) -> Option<Instant> {
        self.accept_at
    }

    /// Prepares for shutdown: connections to a listener that the service manager passed are left there for the next
    /// daemon.
    pub(super) fn drain(&mut self) {
        if self.listener.as_ref().is_some_and(|listener| listener.is_passed) {
            self.listener = None;
            self.accept_at = None;
        }
    }

    /// Accepts one connection and passes it to the thread that has the fewest.
    pub(super) fn accept(&mut self, now: Instant) -> Accepted {
        self.accept_at = None;
        let Some(listener) = &self.listener else { return Accepted::Nothing };
        match listener.socket.accept() {
            Ok((socket, address)) => self.place(socket, address),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Accepted::Nothing,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Accepted::Elsewhere,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => Accepted::Elsewhere,
            Err(error) => {
                warn_limited!(%error, "connections cannot be accepted now");
                self.accept_at = Some(now + ACCEPT_PAUSE);
                Accepted::Nothing
            }
        }
    }

    fn place(&self, socket: TcpStream, address: SocketAddr) -> Accepted {
        self.registry.counters().connections_accepted.inc();
        let load = |index: &usize| self.loads[*index].load(Ordering::Relaxed);
        let least = (0..self.peers.len()).min_by_key(load).unwrap_or(self.delivery);
        self.loads[least].fetch_add(1, Ordering::Relaxed);
        if least == self.delivery {
            return Accepted::Here(socket, address);
        }
        match self.peers[least].try_send(ToDelivery::Connection(socket, address)) {
            Err(
                SendError::Full(ToDelivery::Connection(socket, address))
                | SendError::Closed(ToDelivery::Connection(socket, address)),
            ) => {
                self.loads[least].fetch_sub(1, Ordering::Relaxed);
                self.loads[self.delivery].fetch_add(1, Ordering::Relaxed);
                Accepted::Here(socket, address)
            }
            _ => Accepted::Elsewhere,
        }
    }

    /// Removes one connection from this thread's load.
    pub(super) fn uncount(&self) {
        self.loads[self.delivery].fetch_sub(1, Ordering::Relaxed);
    }

    /// The number of connections of all delivery threads.
    pub(super) fn connections_of_all(&self) -> usize {
        self.loads.iter().map(|load| load.load(Ordering::Relaxed)).sum()
    }
}
