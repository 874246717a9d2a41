//! A delivery thread that the simulation runs round by round, with sockets in memory. The clock and the opposite ends
//! of its queues belong to the simulation.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use super::Ready;
use super::delivery::{Delivery, DeliveryParts};
use crate::deliver::memory_socket::{ClientEnd, MemorySocket};
use crate::deliver::socket::Socket;
use crate::message::{LiveFrames, Slot};

/// Bytes that may be held for a connection beyond its send budget: an entry that is larger than the rest of the
/// budget, answers, control frames, and the overhead of their chunks.
const BEYOND_BUDGET_BYTES: usize = 64 * 1024;

/// The thread. Connections are named by their index in its poll.
pub(crate) struct Stepped {
    delivery: Delivery,
    poll: Poll,
    events: Events,
    loads: Arc<[AtomicUsize]>,
}

impl Stepped {
    /// The name that [`Stepped::held`] gives the messages for which other threads have no room.
    pub(crate) const MESSAGES: &str = "messages to other threads";

    /// Creates a thread without connections.
    pub(crate) fn new(parts: DeliveryParts, now: Instant) -> Self {
        let loads = Arc::clone(&parts.loads);
        let (delivery, poll) = Delivery::new(parts, now).expect("nothing is registered");
        Self { delivery, poll, events: Events::with_capacity(1), loads }
    }

    /// Connects a client, and returns the index of its connection.
    pub(crate) fn connect(&mut self, socket: MemorySocket, now: Instant) -> usize {
        self.loads[0].fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        self.delivery.admit_connection(Socket::Memory(socket), address, now);
        let newest = self.delivery.connections.slots().into_iter().max_by_key(|slot| slot.generation);
        newest.map_or(usize::MAX, |slot| slot.index)
    }

    /// Runs a round with the sockets that are ready. Returns how long the thread sleeps then if nothing happens, or
    /// `None` if it has ended.
    pub(crate) fn round<'a>(
        &mut self,
        clients: impl Iterator<Item = (usize, &'a ClientEnd)>,
        now: Instant,
    ) -> Option<Duration> {
        let ready = clients.filter_map(|(index, client)| {
            let (is_readable, peer) = client.take_readiness()?;
            Some(Ready::Socket { index, is_readable, peer })
        });
        let ready: Vec<Ready> = ready.collect();
        self.delivery.round(ready, now);
        self.check_bounds();
        self.delivery.time_to_sleep(now)
    }

    /// Delivers live frames between two rounds. Returns whether the thread accepted them, and whether it was woken.
    pub(crate) fn deliver(&mut self, news: &[LiveFrames], now: Instant) -> (bool, bool) {
        let is_accepted = self.delivery.deliver_between_rounds(news, now);
        self.poll.poll(&mut self.events, Some(Duration::ZERO)).expect("a poll that has a waker alone");
        (is_accepted, !self.events.is_empty())
    }

    /// Whether any viewer still wants the result of a history read.
    pub(crate) fn is_wanted(&self, job: Slot) -> bool {
        self.delivery.views.is_wanted(job)
    }

    /// The number of viewers.
    pub(crate) fn viewers(&self) -> usize {
        self.delivery.views.viewers_len()
    }

    /// Amounts that must be 0 when no client is left.
    pub(crate) fn held(&self) -> Vec<(&'static str, usize)> {
        let Delivery { connections, views, outbound, .. } = &self.delivery;
        let mut held = connections.held().to_vec();
        held.extend(views.held());
        held.push((Self::MESSAGES, usize::from(!outbound.is_empty())));
        held.push(("counted connections", self.loads[0].load(Ordering::Relaxed)));
        held.push(("budget of answers", self.delivery.answers.used()));
        held
    }

    /// INVARIANT: a connection holds no more than its send budget and [`BEYOND_BUDGET_BYTES`].
    fn check_bounds(&self) {
        let budget = self.delivery.config.client.send_budget;
        for slot in self.delivery.connections.slots() {
            let Some(connection) = self.delivery.connections.get(slot) else { continue };
            let cost = connection.outbox.cost_bytes() + connection.promised;
            assert!(cost <= budget + BEYOND_BUDGET_BYTES, "connection {} holds {cost} bytes", slot.index);
        }
    }
}
