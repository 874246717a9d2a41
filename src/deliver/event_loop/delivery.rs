//! The parts of a delivery thread, each of which owns its state: the connections, the viewers, the messages to other
//! threads, admission and the listener.
//!
//! The viewers write to connections and outbound messages. No other part knows about another one.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use mio::{Interest, Poll, Token};
use parking_lot::Mutex;

use crate::config::Config;
use crate::deliver::acceptor::{Acceptor, Listener};
use crate::deliver::admission::Admission;
use crate::deliver::budget::{Budget, Budgets};
use crate::deliver::connections::Connections;
use crate::deliver::outbound::{Outbound, OutboundQueues};
use crate::deliver::viewer::Mark;
use crate::deliver::views::{Context, Views};
use crate::message::{Missed, ToDelivery};
use crate::observe::{Recorder, Registry};
use crate::queue::{Receiver, Sender};
use crate::security::policies::Policies;
use crate::security::rate::Rates;
use crate::stop::Stop;
use crate::swap;

/// The token of the waker that announces messages in the inbox.
pub const INBOX: Token = Token(usize::MAX);
/// The token of the listener.
pub(super) const LISTENER: Token = Token(usize::MAX - 1);

/// The size of the buffer for one read from a socket, in bytes.
const READ_BYTES: usize = 16 * 1024;

/// The inputs and outputs of a delivery thread, and the state that it shares with the other delivery threads.
pub struct DeliveryParts {
    /// The index of this delivery thread.
    pub index: usize,
    /// The poll of this thread. Its inbox wakes it with the token [`INBOX`].
    pub poll: Poll,
    /// Messages from other threads.
    pub inbound: Inbound,
    /// The queues to other threads.
    pub outbound: OutboundQueues,
    /// The public listener; only the thread that accepts connections has it.
    pub listener: Option<Listener>,
    /// The inboxes of all delivery threads, for accepted connections that are handed over to them.
    pub peers: Vec<Sender<ToDelivery>>,
    /// The number of connections of each delivery thread.
    pub loads: Arc<[AtomicUsize]>,
    /// The host names and origins that requests may use.
    pub policies: swap::Reader<Policies>,
    /// The rate limits and connection limits of clients, shared by all delivery threads.
    pub rates: Arc<Mutex<Rates>>,
    /// The memory budgets for all connections of the process, shared by all delivery threads.
    pub budgets: Arc<Budgets>,
    /// The maximum number of connections of all clients together.
    pub max_connections: usize,
    /// The configuration.
    pub config: Arc<Config>,
    /// The counters, gauges and histograms of the process.
    pub registry: Arc<Registry>,
    /// Signals the thread to drain: to notify its clients, flush and close their connections, and end.
    pub draining: Stop,
    /// Signals the thread to end at once.
    pub stop: Stop,
}

/// Messages from other threads.
pub struct Inbound {
    /// The waker with which the inbox wakes this thread.
    pub waker: Arc<mio::Waker>,
    /// Messages from other threads.
    pub inbox: Receiver<ToDelivery>,
    /// Results of the history reads of this thread, received after the inbox.
    pub history: Receiver<ToDelivery>,
    /// Hubs and history reads about which a message did not fit into the inbox.
    pub missed: Arc<Mutex<Missed>>,
}

/// A running delivery thread.
pub struct Delivery {
    pub(super) connections: Connections,
    pub(super) views: Views,
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    pub(super) acceptor: Acceptor,
    pub(super) admission: Admission,
    /// The memory budget of the whole process for answers that are sent as one document.
    pub(super) answers: Arc<Budget>,
    pub(super) config: Arc<Config>,
    pub(super) registry: Arc<Registry>,
    pub(super) recorder: Recorder,
    pub(super) drain_requested: Stop,
    pub(super) stop: Stop,
    /// Whether this thread has begun to drain, and has notified its clients.
    pub(super) is_draining: bool,
    pub(super) ticked_at: Instant,
    /// When the next round is due if no event comes before.
    pub(super) sleeps_until: Instant,
    /// Frames that the current socket has accepted; empty between two sockets.
    pub(super) marks: Vec<Mark>,
    /// Bytes read from the current socket.
    pub(super) buffer: Vec<u8>,
}

impl Delivery {
    /// Creates a delivery thread's state without connections. Returns it with the poll that the thread waits in.
    ///
    /// # Errors
    /// When the operating system cannot duplicate the poll, or cannot register the listener with it.
    pub(super) fn new(parts: DeliveryParts, now: Instant) -> std::io::Result<(Self, Poll)> {
        let DeliveryParts { index, poll, inbound, outbound, mut listener, peers, loads, .. } = parts;
        let DeliveryParts {
            policies, rates, budgets, max_connections, config, registry, draining, stop, ..
        } = parts;
        let sources = poll.registry().try_clone()?;
        if let Some(listener) = &mut listener {
            sources.register(&mut listener.socket, LISTENER, Interest::READABLE)?;
        }
        let registry_ref = || Arc::clone(&registry);
        let delivery = Self {
            views: Views::new(Arc::clone(&config), Arc::clone(&budgets.answers), &registry),
            answers: Arc::clone(&budgets.answers),
            connections: Connections::new(sources, budgets, registry_ref()),
            inbound,
            outbound: Outbound::new(index, outbound),
            acceptor: Acceptor::new(index, listener, (peers, loads), registry_ref()),
            admission: Admission::new(policies, (rates, max_connections), registry_ref()),
            config,
            recorder: registry.recorder(),
            registry,
            drain_requested: draining,
            stop,
            is_draining: false,
            ticked_at: now,
            sleeps_until: now,
            marks: Vec::new(),
            buffer: vec![0; READ_BYTES],
        };
        Ok((delivery, poll))
    }

    /// Calls a method of the viewers, then carries out its effects on their connections.
    pub(super) fn with_views<T>(
        &mut self,
        now: Instant,
        call: impl FnOnce(&mut Views, &mut Context<'_>) -> T,
    ) -> T {
        let mut cx = Context { clients: &mut self.connections, outbound: &mut self.outbound, now };
        let result = call(&mut self.views, &mut cx);
        while let Some(effect) = self.views.next_effect() {
            self.carry_out(effect, now);
        }
        result
    }
}
