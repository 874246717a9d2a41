//! The parts of a delivery thread, each with a state of its own: the connections, the viewers, the messages to other
//! threads, admission and the listener.
//!
//! The viewers write into connections and outbound messages; no other part knows another one.

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

/// The token of the inbox's waker.
pub const INBOX: Token = Token(usize::MAX);
/// The token of the listener.
pub(super) const LISTENER: Token = Token(usize::MAX - 1);

/// Bytes that are read from a socket at once, at most.
const READ_BYTES: usize = 16 * 1024;

/// A delivery thread's ways in and out, and its share of what all have together.
pub struct DeliveryParts {
    /// Which delivery thread it is.
    pub index: usize,
    /// Its poll, in which the inbox wakes it as [`INBOX`].
    pub poll: Poll,
    /// Its messages from other threads.
    pub inbound: Inbound,
    /// The queues of other threads.
    pub outbound: OutboundQueues,
    /// The public listener, for the one thread that accepts.
    pub listener: Option<Listener>,
    /// The inboxes of all delivery threads, to hand connections over.
    pub peers: Vec<Sender<ToDelivery>>,
    /// How many connections each delivery thread has.
    pub loads: Arc<[AtomicUsize]>,
    /// The names and origins under which requests may be made.
    pub policies: swap::Reader<Policies>,
    /// The rates and caps of clients; shared by all delivery threads.
    pub rates: Arc<Mutex<Rates>>,
    /// The budgets of all connections of the process together; shared by all delivery threads.
    pub budgets: Arc<Budgets>,
    /// How many connections all clients may have.
    pub max_connections: usize,
    /// The configuration.
    pub config: Arc<Config>,
    /// Where to count.
    pub registry: Arc<Registry>,
    /// When to tell the clients, flush, close and end.
    pub draining: Stop,
    /// When to end at once.
    pub stop: Stop,
}

/// Messages from other threads.
pub struct Inbound {
    /// The waker by which the inbox wakes its thread.
    pub waker: Arc<mio::Waker>,
    /// Messages of other threads.
    pub inbox: Receiver<ToDelivery>,
    /// Results of its history reads: taken after the inbox.
    pub history: Receiver<ToDelivery>,
    /// News for which its inbox had no room.
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
    /// The budget of all connections of the process together for whole answers.
    pub(super) answers: Arc<Budget>,
    pub(super) config: Arc<Config>,
    pub(super) registry: Arc<Registry>,
    pub(super) recorder: Recorder,
    pub(super) drain_requested: Stop,
    pub(super) stop: Stop,
    /// Whether the clients were told that the instance goes down.
    pub(super) is_draining: bool,
    pub(super) ticked_at: Instant,
    /// When the next round is due, unless something happens before.
    pub(super) sleeps_until: Instant,
    /// Frames that the socket at hand has taken; empty between two sockets.
    pub(super) marks: Vec<Mark>,
    /// Bytes read from the socket at hand.
    pub(super) buffer: Vec<u8>,
}

impl Delivery {
    /// A loop without connections, and the poll that it waits in.
    ///
    /// # Errors
    /// When the operating system gives no descriptor, or refuses to watch the listener.
    pub(super) fn new(parts: DeliveryParts, now: Instant) -> std::io::Result<(Self, Poll)> {
        let DeliveryParts { index, poll, inbound, outbound, mut listener, peers, loads, .. } = parts;
        let DeliveryParts {
            policies, rates, budgets, max_connections, config, registry, draining, stop, ..
        } = parts;
        let sources = poll.registry().try_clone()?;
        if let Some(listener) = &mut listener {
            sources.register(&mut listener.socket, LISTENER, Interest::READABLE)?;
        }
        let counts = || Arc::clone(&registry);
        let delivery = Self {
            views: Views::new(Arc::clone(&config), Arc::clone(&budgets.answers), &registry),
            answers: Arc::clone(&budgets.answers),
            connections: Connections::new(sources, budgets, counts()),
            inbound,
            outbound: Outbound::new(index, outbound),
            acceptor: Acceptor::new(index, listener, (peers, loads), counts()),
            admission: Admission::new(policies, (rates, max_connections), counts()),
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

    /// Passes something to the viewers, and carries out what follows for their connections.
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
