//! A delivery thread: one mio loop that owns its connections.
//!
//! One round takes what the sockets and the inbox have, does everything that follows from it, then
//! offers each socket what waits for it once, sends the history reads that were asked for, and sleeps.
//!
//! INVARIANT: the loop never waits for a queue. What another thread has no room for is held here, at
//! most one read for each job, one attach and one detach for each stream, one wait for each name.
//! A connection is removed at the end of the round, so that an index is not reused within one
//! batch of events.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use parking_lot::Mutex;

use super::connection::Connection;
use super::jobs::JobsOfHubs;
use super::outbox::Chunk;
use super::sharing::Recents;
use super::streams::Unreported;
use super::table::Table;
use super::timer::Timers;
use super::viewer::{Hub, Job, Mark, Viewer};
use crate::config::{Config, NEVER};
use crate::event::StreamName;
use crate::event::message::{Control, Errand, Missed, ReplayRequest, Slot, ToDelivery, now_us};
use crate::event::record::{CancelRequest, Receipt};
use crate::observe::{Recorder, Registry, Stage};
use crate::queue::{Receiver, SendError, Sender};
use crate::security::host::HostPolicy;
use crate::security::origin::OriginPolicy;
use crate::security::rate::Rates;
use crate::stop::Stop;
use crate::warn_limited;

/// The token of the inbox's waker.
pub const INBOX: Token = Token(usize::MAX);
/// The token of the listener.
const LISTENER: Token = Token(usize::MAX - 1);

/// How often acknowledgements are reported and measurements published.
const TICK: Duration = Duration::from_millis(100);
/// How long the loop sleeps while another thread has no room for something.
const HELD_RETRY: Duration = Duration::from_millis(2);
/// Sockets that are offered something in one round: of those touched last, and of those that wait for longest.
const NEWEST_PER_ROUND: usize = 256;
const OLDEST_PER_ROUND: usize = 64;
/// What has more to send than this has its turn after all others: history, or a client that is behind.
const BULK_BYTES: usize = 16 * 1024;
/// Bytes of that which are written in one round.
const BULK_BYTES_PER_ROUND: usize = 128 * 1024;
/// Deadlines that are attended to in one round: a keep-alive sent to many at once must not keep live text waiting.
const TIMERS_PER_ROUND: usize = 64;
/// Connections accepted in one round.
const ACCEPTS_PER_ROUND: usize = 8;
/// How long accepting rests when the operating system gives no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A peer that acknowledges nothing for longer than the slow client's time and this is gone.
const PEER_GONE_AFTER: Duration = Duration::from_secs(30);
/// Bytes read from a socket at once.
const READ_BYTES: usize = 64 * 1024;

/// What a delivery thread works with.
pub struct DeliveryParts {
    /// Which delivery thread it is.
    pub index: usize,
    /// Its poll, in which the inbox wakes it as [`INBOX`].
    pub poll: Poll,
    /// What the inbox wakes it by.
    pub waker: Arc<mio::Waker>,
    /// What it is told.
    pub inbox: Receiver<ToDelivery>,
    /// What became of its history reads: has its turn after the inbox.
    pub history: Receiver<ToDelivery>,
    /// What its inbox had no room for.
    pub missed: Arc<Mutex<Missed>>,
    /// The public listener, for the one thread that accepts.
    pub listener: Option<TcpListener>,
    /// The inboxes of all delivery threads, to hand connections over.
    pub peers: Vec<Sender<ToDelivery>>,
    /// How many connections each delivery thread has.
    pub loads: Arc<[AtomicUsize]>,
    /// The replay threads' queue.
    pub replays: Sender<ReplayRequest>,
    /// The transform threads, by shard.
    pub transforms: Vec<Sender<Control>>,
    /// The watcher.
    pub errands: Sender<Errand>,
    /// Requests to cancel, to be written by the recorder.
    pub cancels: Sender<CancelRequest>,
    /// What clients acknowledge, to be written by the recorder.
    pub receipts: Sender<Receipt>,
    /// What clients may do how often; shared by all delivery threads.
    pub rates: Arc<Mutex<Rates>>,
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

/// A running delivery thread.
pub struct Delivery {
    pub(super) index: usize,
    sources: mio::Registry,
    pub(super) waker: Arc<mio::Waker>,
    pub(super) inbox: Receiver<ToDelivery>,
    pub(super) history: Receiver<ToDelivery>,
    pub(super) missed: Arc<Mutex<Missed>>,
    listener: Option<TcpListener>,
    peers: Vec<Sender<ToDelivery>>,
    loads: Arc<[AtomicUsize]>,
    pub(super) replays: Sender<ReplayRequest>,
    pub(super) transforms: Vec<Sender<Control>>,
    pub(super) errands: Sender<Errand>,
    pub(super) cancels: Sender<CancelRequest>,
    pub(super) receipts: Sender<Receipt>,
    pub(super) rates: Arc<Mutex<Rates>>,
    max_connections: usize,
    pub(super) hosts: HostPolicy,
    pub(super) origins: OriginPolicy,
    pub(super) config: Arc<Config>,
    pub(super) registry: Arc<Registry>,
    drain_requested: Stop,
    stop: Stop,
    recorder: Recorder,

    pub(super) connections: Table<Connection>,
    pub(super) viewers: Table<Viewer>,
    pub(super) hubs: Table<Hub>,
    pub(super) hub_by_name: HashMap<StreamName, Slot>,
    pub(super) jobs: Table<Job>,
    /// Jobs that were made in this turn.
    pub(super) fresh_jobs: JobsOfHubs,
    pub(super) recents: Recents,
    /// Jobs that are under way.
    pub(super) asked_jobs: JobsOfHubs,
    timers: Timers,
    /// Connections with something to send.
    dirty: VecDeque<Slot>,
    /// Those of them that have much to send.
    bulky: VecDeque<Slot>,
    /// Frames that the socket at hand has taken.
    marks: Vec<Mark>,
    /// Connections to be removed at the end of the round.
    over: Vec<Slot>,
    /// Jobs to be asked again, by the time.
    pub(super) retries: BTreeSet<(Instant, Slot)>,
    pub(super) unreported: Unreported,
    /// Viewers that hold an acknowledgement.
    pub(super) unpassed_acks: Vec<Slot>,
    pub(super) held_requests: VecDeque<ReplayRequest>,
    pub(super) held_controls: VecDeque<(usize, Control)>,
    pub(super) held_errands: VecDeque<Errand>,
    /// Refused connections that wait for their first request.
    pub(super) refused_waiting: usize,
    accept_at: Option<Instant>,
    ticked_at: Instant,
    /// When the next round is due, unless something happens before.
    pub(super) sleeps_until: Instant,
    buffer: Vec<u8>,
    /// Whether the clients were told that the instance goes down.
    pub(super) is_draining: bool,
}

impl Delivery {
    /// A loop without connections, and the poll that it waits in.
    ///
    /// # Errors
    /// When the operating system gives no descriptor, or refuses to watch the listener.
    pub(super) fn new(parts: DeliveryParts) -> std::io::Result<(Self, Poll)> {
        let DeliveryParts { index, poll, waker, inbox, history, missed, mut listener, peers, loads, .. } =
            parts;
        let DeliveryParts { replays, transforms, errands, cancels, receipts, rates, max_connections, .. } =
            parts;
        let DeliveryParts { config, registry, draining, stop, .. } = parts;
        let now = Instant::now();
        let sources = poll.registry().try_clone()?;
        if let Some(listener) = &mut listener {
            sources.register(listener, LISTENER, Interest::READABLE)?;
        }
        let delivery = Self {
            index,
            sources,
            waker,
            inbox,
            history,
            missed,
            listener,
            peers,
            loads,
            replays,
            transforms,
            errands,
            cancels,
            receipts,
            rates,
            max_connections,
            hosts: host_policy(&config),
            origins: OriginPolicy::from(&config.listen.origins),
            config,
            recorder: registry.recorder(),
            registry,
            drain_requested: draining,
            stop,
            connections: Table::default(),
            viewers: Table::default(),
            hubs: Table::default(),
            hub_by_name: HashMap::new(),
            jobs: Table::default(),
            fresh_jobs: HashMap::new(),
            recents: Recents::default(),
            asked_jobs: HashMap::new(),
            timers: Timers::new(),
            dirty: VecDeque::new(),
            bulky: VecDeque::new(),
            marks: Vec::new(),
            over: Vec::new(),
            retries: BTreeSet::new(),
            unreported: Unreported::default(),
            unpassed_acks: Vec::new(),
            held_requests: VecDeque::new(),
            held_controls: VecDeque::new(),
            held_errands: VecDeque::new(),
            refused_waiting: 0,
            accept_at: None,
            ticked_at: now,
            sleeps_until: now,
            buffer: vec![0; READ_BYTES],
            is_draining: false,
        };
        Ok((delivery, poll))
    }

    /// How long to sleep before the next round; `None` when the daemon stops, or everything is drained.
    pub(super) fn rest(&mut self) -> Option<Duration> {
        if self.stop.requested() || self.is_drained() {
            return None;
        }
        let now = Instant::now();
        self.sleeps_until = self.next_round_at(now);
        Some(self.sleeps_until.saturating_duration_since(now))
    }

    /// Ends every connection.
    pub(super) fn shut(mut self) {
        for slot in self.connections.slots() {
            self.remove_connection(slot);
        }
        self.recorder.publish();
    }

    /// Does what the sockets and the inbox ask for.
    pub(super) fn round(&mut self, events: &Events) {
        let now = Instant::now();
        for event in events {
            match event.token() {
                INBOX => {}
                LISTENER => self.accept_at = Some(now),
                Token(index) => {
                    if let Some(slot) = self.connections.at(index) {
                        self.serve(slot, event.is_readable() || event.is_read_closed(), now);
                    }
                }
            }
        }
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept(now);
        }
        self.receive(now);
        if self.drain_requested.requested() && !self.is_draining && !self.has_mail() {
            // What was read before is with the clients' outboxes now.
            self.drain(now);
        }
        self.catch_up();
        self.retry_jobs(now);
        self.expire(now);
        self.flush_dirty(now);
        self.flush_bulky(now);
        self.send_fresh_jobs();
        self.send_held();
        self.reap();
        if now.duration_since(self.ticked_at) >= TICK {
            self.ticked_at = now;
            self.report_written(now);
            self.pass_on_acks(now);
            self.recents.forget(now);
            self.recorder.publish();
        }
    }

    /// When there is something to do even if nothing happens.
    pub(super) fn next_round_at(&mut self, now: Instant) -> Instant {
        let held =
            !(self.held_requests.is_empty() && self.held_controls.is_empty() && self.held_errands.is_empty());
        let unsent = !(self.dirty.is_empty() && self.bulky.is_empty());
        let left = unsent || !(self.over.is_empty() && self.fresh_jobs.is_empty());
        if left || self.has_mail() {
            return now;
        }
        let deadlines = [
            self.timers.next_deadline(),
            self.retries.first().map(|retry| retry.0),
            self.accept_at,
            held.then(|| now + HELD_RETRY),
        ];
        deadlines.into_iter().flatten().fold(self.ticked_at + TICK, Instant::min)
    }

    // ----- connections -----

    fn accept(&mut self, now: Instant) {
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

    fn remove_connection(&mut self, slot: Slot) {
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

    fn reap(&mut self) {
        for slot in std::mem::take(&mut self.over) {
            self.remove_connection(slot);
        }
    }

    fn serve(&mut self, slot: Slot, readable: bool, now: Instant) {
        if readable {
            let mut buffer = std::mem::take(&mut self.buffer);
            self.read_connection(slot, &mut buffer, now);
            self.buffer = buffer;
        }
        if self.connections.get(slot).is_some_and(|connection| !connection.outbox.is_empty()) {
            self.touch(slot);
        }
    }

    // ----- sending -----

    /// Adds bytes to a connection's outbox.
    pub(super) fn send(&mut self, slot: Slot, chunk: impl Into<Chunk<Mark>>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.send(chunk);
        self.touch(slot);
    }

    /// The connection is looked at before the loop sleeps.
    pub(super) fn touch(&mut self, slot: Slot) {
        if let Some(connection) = self.connections.get_mut(slot)
            && !std::mem::replace(&mut connection.dirty, true)
        {
            self.dirty.push_back(slot);
        }
    }

    /// Offers sockets what waits for them: to those that were touched last, and to some that wait for longest. What
    /// exceeds the round's measure has its turn in the next one, after what has come in meanwhile.
    pub(super) fn flush_dirty(&mut self, now: Instant) {
        for turn in 0..NEWEST_PER_ROUND + OLDEST_PER_ROUND {
            let next = if turn < NEWEST_PER_ROUND { self.dirty.pop_back() } else { self.dirty.pop_front() };
            let Some(slot) = next else { break };
            if self.connections.get(slot).is_some_and(|found| found.outbox.len_bytes() > BULK_BYTES) {
                self.bulky.push_back(slot);
            } else {
                self.flush(slot, now);
            }
        }
    }

    /// The same for those that have much to send.
    fn flush_bulky(&mut self, now: Instant) {
        let mut written = 0;
        while written < BULK_BYTES_PER_ROUND
            && let Some(slot) = self.bulky.pop_front()
        {
            written += self.flush(slot, now);
        }
    }

    /// Offers one socket what waits for it; how many bytes it took.
    fn flush(&mut self, slot: Slot, now: Instant) -> usize {
        let Some(connection) = self.connections.get_mut(slot) else { return 0 };
        connection.dirty = false;
        let before = connection.outbox.len_bytes();
        let mut marks = std::mem::take(&mut self.marks);
        let result = connection.flush(now, |mark| marks.push(mark));
        let left = connection.outbox.len_bytes();
        let written = before.saturating_sub(left);
        self.registry.counters().bytes_written.add(written as u64);
        if left != connection.gauged_bytes {
            let gauged = std::mem::replace(&mut connection.gauged_bytes, left);
            self.registry.gauges().outbox_bytes.change(gauged, left);
        }
        match result {
            Ok(()) if left > 0 => self.arm(slot, now + self.config.client.slow_timeout),
            Ok(()) => {
                if let Some(at) = connection.drained(now) {
                    self.arm(slot, at);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a client is gone");
                self.over.push(slot);
            }
        }
        let now_us = now_us();
        for mark in marks.drain(..) {
            self.measure(&mark, now_us);
            self.written(&mark);
        }
        self.marks = marks;
        self.resume_paused(slot);
        written
    }

    fn measure(&mut self, mark: &Mark, now_us: u64) {
        self.registry.counters().frames_written.inc();
        if !mark.live {
            return;
        }
        self.recorder.record(Stage::EncodedToWritten, now_us.saturating_sub(mark.frame.encoded_us));
        if let Some(ts_us) = mark.frame.ts_us {
            self.recorder.record(Stage::EndToEnd, now_us.saturating_sub(ts_us));
        }
    }

    // ----- timers -----

    /// The connection is looked at again at `at`, or before.
    pub(super) fn arm(&mut self, slot: Slot, at: Instant) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if connection.deadline.is_none_or(|deadline| at < deadline) {
            connection.deadline = Some(at);
            self.timers.arm(slot.index, slot.generation, at);
        }
    }

    /// A share of what is due: the rest has its turn after what has come in meanwhile.
    fn expire(&mut self, now: Instant) {
        for _ in 0..TIMERS_PER_ROUND {
            let Some((index, generation)) = self.timers.pop_due(now) else { return };
            let slot = Slot { index, generation };
            let Some(connection) = self.connections.get_mut(slot) else { continue };
            connection.deadline = None;
            if let Some(next) = self.judge_time(slot, now) {
                self.arm(slot, next.max(now + Duration::from_millis(1)));
            }
        }
    }

    fn has_mail(&self) -> bool {
        !(self.inbox.is_empty() && self.history.is_empty())
    }

    fn is_drained(&self) -> bool {
        self.is_draining && self.connections.is_empty()
    }
}

/// The names under which requests that show no token may ask.
fn host_policy(config: &Config) -> HostPolicy {
    if config.auth.allow_anonymous {
        return HostPolicy::Any;
    }
    HostPolicy::from(&config.listen.hosts, &config.listen.origins)
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
