//! The state of a delivery thread: its connections, viewers, streams and history reads, and its ways to other threads.
//!
//! The modules above act on it, each on its own part of the work; [`event_loop`](super::event_loop) says in which order.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use mio::net::TcpListener;
use mio::{Interest, Poll, Token};
use parking_lot::Mutex;

use super::backlog::Backlog;
use super::budget::Budgets;
use super::connection::Connection;
use super::sharing::Recents;
use super::table::Table;
use super::timer::Timers;
use super::viewer::{Hub, Job, JobsOfHubs, Mark, Unreported, Viewer};
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
pub(super) const LISTENER: Token = Token(usize::MAX - 1);

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
    pub(super) drain_requested: Stop,
    pub(super) stop: Stop,
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
    pub(super) ticked_at: Instant,
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
}

/// The names under which requests that show no token may ask.
fn host_policy(config: &Config) -> HostPolicy {
    if config.auth.allow_anonymous {
        return HostPolicy::Any;
    }
    HostPolicy::from(&config.listen.hosts, &config.listen.origins)
}
