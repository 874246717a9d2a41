//! A delivery thread: one mio loop that owns its connections.
//!
//! One round takes the input of the sockets and the inbox, does everything that follows from it, then
//! offers each socket its waiting bytes once, sends the history reads that were asked for, and sleeps.
//!
//! INVARIANT: the loop never waits for a queue. A message for which another thread has no room is held here, at
//! most one read for each job, one attach and one detach for each stream, one wait for each name.
//! A connection is removed at the end of the round, so that an index is not reused within one
//! batch of events.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use parking_lot::Mutex;

use super::accepting::host_policy;
use super::backlog::Backlog;
use super::budget::Budgets;
use super::connection::{Connection, Peer};
use super::jobs::JobsOfHubs;
use super::sharing::Recents;
use super::streams::Unreported;
use super::table::Table;
use super::timer::Timers;
use super::viewer::{Hub, Job, Mark, Viewer};
use crate::config::Config;
use crate::event::StreamName;
use crate::event::message::{Control, Errand, Missed, ReplayRequest, Slot, ToDelivery};
use crate::event::record::{CancelRequest, Receipt};
use crate::observe::{Recorder, Registry};
use crate::queue::{Receiver, Sender};
use crate::security::host::HostPolicy;
use crate::security::origin::OriginPolicy;
use crate::security::rate::Rates;
use crate::stop::Stop;

/// The token of the inbox's waker.
pub const INBOX: Token = Token(usize::MAX);
/// The token of the listener.
const LISTENER: Token = Token(usize::MAX - 1);

/// How often acknowledgements are reported and measurements published.
const TICK: Duration = Duration::from_millis(100);
/// How long the loop sleeps while another thread has no room for something.
const HELD_RETRY: Duration = Duration::from_millis(2);
/// Deadlines that are attended to in one round: a keep-alive sent to many at once must not keep live text waiting.
const TIMERS_PER_ROUND: usize = 64;
/// Bytes that are read from a socket at once, at most.
const READ_BYTES: usize = 16 * 1024;

/// The parts of a delivery thread.
pub struct DeliveryParts {
    /// Which delivery thread it is.
    pub index: usize,
    /// Its poll, in which the inbox wakes it as [`INBOX`].
    pub poll: Poll,
    /// The waker by which the inbox wakes it.
    pub waker: Arc<mio::Waker>,
    /// Messages of other threads.
    pub inbox: Receiver<ToDelivery>,
    /// Results of its history reads: taken after the inbox.
    pub history: Receiver<ToDelivery>,
    /// News for which its inbox had no room.
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
    /// Acknowledgements of clients, to be written by the recorder.
    pub receipts: Sender<Receipt>,
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

/// A running delivery thread.
pub struct Delivery {
    pub(super) index: usize,
    pub(super) sources: mio::Registry,
    pub(super) waker: Arc<mio::Waker>,
    pub(super) inbox: Receiver<ToDelivery>,
    pub(super) history: Receiver<ToDelivery>,
    pub(super) missed: Arc<Mutex<Missed>>,
    pub(super) listener: Option<TcpListener>,
    pub(super) peers: Vec<Sender<ToDelivery>>,
    pub(super) loads: Arc<[AtomicUsize]>,
    pub(super) replays: Sender<ReplayRequest>,
    pub(super) transforms: Vec<Sender<Control>>,
    pub(super) errands: Sender<Errand>,
    pub(super) cancels: Sender<CancelRequest>,
    pub(super) receipts: Sender<Receipt>,
    pub(super) rates: Arc<Mutex<Rates>>,
    pub(super) max_connections: usize,
    pub(super) hosts: HostPolicy,
    pub(super) origins: OriginPolicy,
    pub(super) config: Arc<Config>,
    pub(super) registry: Arc<Registry>,
    drain_requested: Stop,
    stop: Stop,
    pub(super) recorder: Recorder,

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
    pub(super) timers: Timers,
    /// Connections with something to send.
    pub(super) dirty: VecDeque<Slot>,
    /// Those of them that have much to send.
    pub(super) bulky: VecDeque<Slot>,
    /// Connections that have something to be heard.
    pub(super) backlog: Backlog,
    /// The budgets of all connections of the process together.
    pub(super) budgets: Arc<Budgets>,
    /// Frames that the socket at hand has taken.
    pub(super) marks: Vec<Mark>,
    /// Connections to be removed at the end of the round.
    pub(super) over: Vec<Slot>,
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
    pub(super) accept_at: Option<Instant>,
    ticked_at: Instant,
    /// When the next round is due, unless something happens before.
    pub(super) sleeps_until: Instant,
    pub(super) buffer: Vec<u8>,
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
        let DeliveryParts { budgets, config, registry, draining, stop, .. } = parts;
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
            backlog: Backlog::default(),
            budgets,
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
                        self.attend(slot, event);
                    }
                }
            }
        }
        // Live frames come first.
        self.receive(now);
        if self.drain_requested.requested() && !self.is_draining && !self.has_mail() {
            // The frames of all entries read before are in the clients' outboxes now.
            self.drain(now);
        }
        self.catch_up();
        self.flush_dirty(now);
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept(now);
        }
        self.listen(now);
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
            let states = i64::try_from(self.budgets.answers.used()).unwrap_or(i64::MAX);
            self.registry.gauges().state_bytes.set(states);
            self.recorder.publish();
        }
    }

    /// When there is something to do even if nothing happens.
    pub(super) fn next_round_at(&mut self, now: Instant) -> Instant {
        let held =
            !(self.held_requests.is_empty() && self.held_controls.is_empty() && self.held_errands.is_empty());
        let unsent = !(self.dirty.is_empty() && self.bulky.is_empty());
        let unheard = !self.backlog.is_empty();
        let left = unsent || unheard || !(self.over.is_empty() && self.fresh_jobs.is_empty());
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

    // ----- sockets -----

    /// Notes what a socket is ready for.
    fn attend(&mut self, slot: Slot, event: &Event) {
        let is_over = event.is_error() || event.is_read_closed() && event.is_write_closed();
        let peer = match (is_over, event.is_read_closed()) {
            (true, _) => Some(Peer::Gone),
            (false, true) => Some(Peer::Finishing),
            (false, false) => None,
        };
        if event.is_readable() || peer.is_some() {
            self.notice(slot, peer);
        }
        if self.connections.get(slot).is_some_and(|connection| !connection.outbox.is_empty()) {
            self.touch(slot);
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

    /// Attends to some of the deadlines that are due: the rest have their turn after the input that has come meanwhile.
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
