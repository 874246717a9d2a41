//! A delivery thread that the simulation drives round by round: with sockets in memory, and with a clock and the other
//! threads' ends of its queues that belong to the simulation.

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

/// Bytes that may be held for a connection beyond its budget: an entry that is larger than the rest of the budget, answers
/// and control frames, and the cost of their chunks.
const BESIDE_BUDGET_BYTES: usize = 64 * 1024;

/// The thread, its connections by their number in its poll.
pub(crate) struct Stepped {
    delivery: Delivery,
    poll: Poll,
    events: Events,
    loads: Arc<[AtomicUsize]>,
}

impl Stepped {
    /// The name of the messages that wait for room in other threads' queues.
    pub(crate) const MESSAGES: &str = "messages to other threads";

    /// A thread without connections.
    pub(crate) fn new(parts: DeliveryParts, now: Instant) -> Self {
        let loads = Arc::clone(&parts.loads);
        let (delivery, poll) = Delivery::new(parts, now).expect("nothing is registered");
        Self { delivery, poll, events: Events::with_capacity(1), loads }
    }

    /// A client connects; its number.
    pub(crate) fn connect(&mut self, socket: MemorySocket, now: Instant) -> usize {
        self.loads[0].fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        self.delivery.admit_connection(Socket::Memory(socket), address, now);
        let newest = self.delivery.connections.slots().into_iter().max_by_key(|slot| slot.generation);
        newest.map_or(usize::MAX, |slot| slot.index)
    }

    /// Runs a round, with the news of the clients' sockets. Returns how long the thread sleeps then, if nothing happens;
    /// `None`: it has ended.
    pub(crate) fn round<'a>(
        &mut self,
        clients: impl Iterator<Item = (usize, &'a ClientEnd)>,
        now: Instant,
    ) -> Option<Duration> {
        let news = clients.filter_map(|(index, client)| {
            let (is_readable, peer) = client.take_news()?;
            Some(Ready::Socket { index, is_readable, peer })
        });
        let ready: Vec<Ready> = news.collect();
        self.delivery.round(ready, now);
        self.expect_bounds();
        self.delivery.rest(now)
    }

    /// Delivers live frames between two rounds. Returns whether they were taken, and whether the thread was woken.
    pub(crate) fn deliver(&mut self, news: &[LiveFrames], now: Instant) -> (bool, bool) {
        let is_taken = self.delivery.deliver_between_rounds(news, now);
        self.poll.poll(&mut self.events, Some(Duration::ZERO)).expect("a poll that has a waker alone");
        (is_taken, !self.events.is_empty())
    }

    /// Whether any viewer wants the result of a history read.
    pub(crate) fn is_wanted(&self, job: Slot) -> bool {
        self.delivery.views.is_wanted(job)
    }

    /// How many viewers there are.
    pub(crate) fn viewers(&self) -> usize {
        self.delivery.views.viewers_len()
    }

    /// Amounts that are 0 when no client is left.
    pub(crate) fn held(&self) -> Vec<(&'static str, usize)> {
        let Delivery { connections, views, outbound, .. } = &self.delivery;
        let mut held = connections.held().to_vec();
        held.extend(views.held());
        held.push((Self::MESSAGES, usize::from(!outbound.is_empty())));
        held.push(("counted connections", self.loads[0].load(Ordering::Relaxed)));
        held.push(("budget of answers", self.delivery.answers.used()));
        held
    }

    /// INVARIANT: no more is held for a client than its budget, except for the last entry and answers.
    fn expect_bounds(&self) {
        let budget = self.delivery.config.client.send_budget;
        for slot in self.delivery.connections.slots() {
            let Some(connection) = self.delivery.connections.get(slot) else { continue };
            let cost = connection.outbox.cost_bytes() + connection.promised;
            assert!(cost <= budget + BESIDE_BUDGET_BYTES, "connection {} holds {cost} bytes", slot.index);
        }
    }
}
