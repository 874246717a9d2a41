//! Creates the threads and the queues between them. This is the only module that knows them all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use mio::{Poll, Waker};
use parking_lot::Mutex;

use super::capacity::{
    CANCELS_BYTES_MAX, CANCELS_MAX, COMMANDS_MAX, ENDS_BYTES_MAX, ENDS_MAX, HISTORY_BYTES_MAX,
    INBOX_BYTES_MAX, INPUT_BYTES_MAX, LETTERS_BYTES_MAX, LETTERS_MAX, LIVE_BYTES_MAX, RECEIPTS_BYTES_MAX,
    RECEIPTS_MAX, REPLAY_BYTES_MAX, REQUESTS_MAX, WATCHER_REQUESTS_MAX, answers_bytes_max,
};
use super::listeners::Listeners;
use super::{DaemonError, Fatal};
use crate::config::Config;
use crate::decode::checkpoints::Checkpoints;
use crate::decode::{DecodeContext, milestone};
use crate::deliver::acceptor::Listener;
use crate::deliver::budget::{Budget, Budgets};
use crate::deliver::event_loop::delivery::{DeliveryParts, INBOX, Inbound};
use crate::deliver::event_loop::serve::serve;
use crate::deliver::outbound::OutboundQueues;
use crate::ingest::reader::{COMMANDS, Reader, ReaderParts};
use crate::ingest::replay::{Replay, ReplayParts};
use crate::message::record::{CancelRequest, DeadLetter, EndGeneration, Receipt};
use crate::message::{
    Control, LiveBatch, Missed, RECORDER, ReaderCommand, RedisClock, ReplayBatch, ReplayRequest, ToDelivery,
    UnderWay, WATCHER, WatcherRequest,
};
use crate::model::Ledger;
use crate::observe::{Registry, admin, stats_socket};
use crate::queue::{self, Receiver, Sender, Weight};
use crate::recorder::{RECORDS, Recorder, RecorderParts};
use crate::redis::{Connector, Ending, Keys, Target};
use crate::security::host::HostPolicy;
use crate::security::policies::Policies;
use crate::security::rate::Rates;
use crate::stop::Stop;
use crate::swap::Swap;
use crate::thread::{self, Ended, Handle};
use crate::transform::worker::{DeliveryPort, Worker, WorkerParts};
use crate::watcher::{Identity, REQUESTS, Watcher, WatcherParts};

/// The stop signals of the parts, in data order.
#[derive(Clone, Debug, Default)]
pub(super) struct Stops {
    /// Readers stop reading and continue acknowledging.
    pub(super) reading: Stop,
    /// Delivery threads notify their clients, flush and close, and then end.
    pub(super) draining: Stop,
    /// Delivery, transform and replay threads end at once.
    pub(super) delivering: Stop,
    /// Readers end, after their last acknowledgements.
    pub(super) acknowledging: Stop,
    /// The watcher, recorder, admin and stats threads end.
    pub(super) rest: Stop,
    /// When readers and replay threads stop waiting for Redis, and when the watcher and the recorder do.
    pub(super) front_waits: Ending,
    pub(super) rest_waits: Ending,
}

impl Stops {
    /// Makes the signals wake the threads that wait in a poll.
    fn register_wakers(&self, queues: &Queues) {
        let Self { reading, draining, delivering, acknowledging, rest, .. } = self;
        let polls = [
            (reading, &queues.commands.polls),
            (acknowledging, &queues.commands.polls),
            (draining, &queues.inboxes.polls),
            (delivering, &queues.inboxes.polls),
            (rest, &queues.watcher_requests.polls),
            (rest, &queues.records.cancels.polls),
        ];
        for (stop, polls) in polls {
            polls.iter().for_each(|(_, waker)| stop.wakes(Arc::clone(waker)));
        }
    }

    /// Stops everything at once.
    pub(super) fn all(&self) {
        for stop in [&self.reading, &self.draining, &self.delivering, &self.acknowledging, &self.rest] {
            stop.request();
        }
    }
}

/// State that all threads share.
pub(super) struct Shared {
    /// The configuration.
    pub(super) config: Arc<Config>,
    /// The metrics.
    pub(super) registry: Arc<Registry>,
    /// The most connections that fit.
    pub(super) max_connections: usize,
    /// Where threads report their end.
    pub(super) ended: Sender<Ended>,
    /// The watcher's message that the daemon has to stop.
    pub(super) fatal: Fatal,
    /// The identity of this instance.
    pub(super) identity: Identity,
    /// The stop signals.
    pub(super) stops: Stops,
}

/// The running threads, in the order in which they end.
pub(super) struct Threads {
    /// Delivery threads.
    pub(super) deliveries: Vec<Handle>,
    /// Readers hold clones while they read, and so do their batches under way: draining waits until none is left.
    pub(super) under_way: UnderWay,
    /// Transform and replay threads.
    pub(super) middle: Vec<Handle>,
    /// Readers.
    pub(super) readers: Vec<Handle>,
    /// Watcher, recorder, admin, stats.
    pub(super) rest: Vec<Handle>,
}

/// The largest number of threads, without main.
#[must_use]
pub(super) fn count(config: &Config) -> usize {
    let threads = &config.threads;
    threads.readers + threads.replays + threads.transforms + threads.deliveries + 4
}

/// The ends of the queues to the threads of one kind.
struct Lane<T> {
    senders: Vec<Sender<T>>,
    receivers: Vec<Receiver<T>>,
    polls: Vec<(Poll, Arc<Waker>)>,
}

impl<T: Send + 'static> Lane<T> {
    fn plain(name: &str, count: usize, capacity: usize, weight: Weight<T>) -> Self {
        let (senders, receivers) =
            (0..count).map(|i| queue::weighed(format!("{name}-{i}"), capacity, weight, None)).unzip();
        Self { senders, receivers, polls: Vec::new() }
    }

    fn waking(
        name: &str,
        count: usize,
        (capacity, weight): (usize, Weight<T>),
        token: mio::Token,
    ) -> std::io::Result<Self> {
        let mut lane = Self { senders: Vec::new(), receivers: Vec::new(), polls: Vec::new() };
        for i in 0..count {
            let poll = Poll::new()?;
            let waker = Arc::new(Waker::new(poll.registry(), token)?);
            let (sender, receiver) =
                queue::weighed(format!("{name}-{i}"), capacity, weight, Some(Arc::clone(&waker)));
            lane.senders.push(sender);
            lane.receivers.push(receiver);
            lane.polls.push((poll, waker));
        }
        Ok(lane)
    }

    /// Queues that wake the same threads as another lane's.
    fn beside<'a>(
        name: &str,
        wakers: impl Iterator<Item = &'a Arc<Waker>>,
        (capacity, weight): (usize, Weight<T>),
    ) -> Self {
        let (senders, receivers) = wakers
            .enumerate()
            .map(|(i, waker)| {
                queue::weighed(format!("{name}-{i}"), capacity, weight, Some(Arc::clone(waker)))
            })
            .unzip();
        Self { senders, receivers, polls: Vec::new() }
    }

    fn gauge(self, registry: &Registry) -> Self {
        for sender in &self.senders {
            registry.register_queue(sender.gauge());
        }
        self
    }
}

/// All queues.
struct Queues {
    commands: Lane<ReaderCommand>,
    live: Lane<LiveBatch>,
    replay: Lane<ReplayBatch>,
    control: Lane<Control>,
    inboxes: Lane<ToDelivery>,
    histories: Lane<ToDelivery>,
    requests: Lane<ReplayRequest>,
    watcher_requests: Lane<WatcherRequest>,
    records: Records,
    missed: Vec<Arc<Mutex<Missed>>>,
}

/// The queues to the recorder, by what it writes.
struct Records {
    cancels: Lane<CancelRequest>,
    ends: Lane<EndGeneration>,
    letters: Lane<DeadLetter>,
    receipts: Lane<Receipt>,
}

impl Records {
    fn new(registry: &Registry) -> std::io::Result<Self> {
        let cancels = Weight { bytes_max: CANCELS_BYTES_MAX, weigh: CancelRequest::len_bytes };
        let ends = Weight { bytes_max: ENDS_BYTES_MAX, weigh: EndGeneration::len_bytes };
        let letters = Weight { bytes_max: LETTERS_BYTES_MAX, weigh: DeadLetter::len_bytes };
        let receipts = Weight { bytes_max: RECEIPTS_BYTES_MAX, weigh: Receipt::len_bytes };
        let cancels = Lane::waking("recorder-cancels", 1, (CANCELS_MAX, cancels), RECORDS)?.gauge(registry);
        let waker = || cancels.polls.iter().map(|(_, waker)| waker);
        let ends = Lane::beside("recorder-ends", waker(), (ENDS_MAX, ends)).gauge(registry);
        let letters = Lane::beside("recorder-letters", waker(), (LETTERS_MAX, letters)).gauge(registry);
        let receipts = Lane::beside("recorder-receipts", waker(), (RECEIPTS_MAX, receipts)).gauge(registry);
        Ok(Self { cancels, ends, letters, receipts })
    }
}

impl Queues {
    fn new(config: &Config, registry: &Registry) -> std::io::Result<Self> {
        let (threads, batches) = (&config.threads, config.delivery.queue_batches);
        let live = Weight { bytes_max: LIVE_BYTES_MAX, weigh: |batch: &LiveBatch| batch.bytes };
        let replay = Weight { bytes_max: REPLAY_BYTES_MAX, weigh: ReplayBatch::len_bytes };
        let inbox = Weight { bytes_max: INBOX_BYTES_MAX, weigh: ToDelivery::len_bytes };
        let history = Weight { bytes_max: HISTORY_BYTES_MAX, weigh: ToDelivery::len_bytes };
        let inboxes =
            Lane::waking("delivery-inbox", threads.deliveries, (batches, inbox), INBOX)?.gauge(registry);
        let wakers = inboxes.polls.iter().map(|(_, waker)| waker);
        Ok(Self {
            histories: Lane::beside("delivery-history", wakers, (batches, history)).gauge(registry),
            inboxes,
            commands: Lane::waking(
                "reader-commands",
                threads.readers,
                (COMMANDS_MAX, Weight::NONE),
                COMMANDS,
            )?
            .gauge(registry),
            live: Lane::plain("transform-live", threads.transforms, batches, live).gauge(registry),
            replay: Lane::plain("transform-replay", threads.transforms, batches, replay).gauge(registry),
            control: Lane::plain("transform-control", threads.transforms, COMMANDS_MAX, Weight::NONE)
                .gauge(registry),
            requests: Lane::plain("replay", 1, REQUESTS_MAX, Weight::NONE).gauge(registry),
            watcher_requests: Lane::waking("watcher", 1, (WATCHER_REQUESTS_MAX, Weight::NONE), REQUESTS)?
                .gauge(registry),
            records: Records::new(registry)?,
            missed: (0..threads.deliveries).map(|_| Arc::default()).collect(),
        })
    }

    fn ports(&self) -> Vec<DeliveryPort> {
        let queues = self.inboxes.senders.iter().zip(&self.histories.senders);
        let lanes = queues.zip(&self.missed).zip(&self.inboxes.polls);
        lanes
            .map(|(((inbox, history), missed), (_, waker))| DeliveryPort {
                inbox: inbox.clone(),
                history: history.clone(),
                missed: Arc::clone(missed),
                waker: Arc::clone(waker),
            })
            .collect()
    }
}

/// Everything that the start of the threads needs.
struct Builder {
    shared: Shared,
    queues: Queues,
    keys: Arc<Keys>,
    target: Arc<Target>,
    clock: Arc<RedisClock>,
    leased: Arc<AtomicBool>,
    under_way: UnderWay,
    ledger: Arc<Ledger>,
    checkpoints: Arc<Checkpoints>,
}

/// Starts all threads.
///
/// # Errors
/// If descriptors or threads are not available.
pub(super) fn start(shared: Shared, listeners: Listeners) -> Result<Threads, DaemonError> {
    let config = Arc::clone(&shared.config);
    let target = Target::new(&config.redis).map_err(|error| DaemonError::Redis(error.to_string()))?;
    let keys = Keys::of(&config.redis, &config.service.name, &config.service.instance);
    let queues = Queues::new(&config, &shared.registry)?;
    shared.stops.register_wakers(&queues);
    let mut builder = Builder {
        shared,
        queues,
        keys: Arc::new(keys),
        target: Arc::new(target),
        clock: Arc::default(),
        leased: Arc::default(),
        under_way: UnderWay::default(),
        ledger: Arc::default(),
        checkpoints: Arc::default(),
    };
    let under_way = Arc::clone(&builder.under_way);
    let Listeners { public, admin, stats } = listeners;
    let readers = builder.readers()?;
    let mut middle = builder.transforms()?;
    middle.extend(builder.replays()?);
    let deliveries = builder.deliveries(public)?;
    // The threads that report on the daemon start last, so that what they report on exists.
    let mut rest = vec![builder.watcher()?, builder.recorder()?, builder.admin(admin)?];
    rest.extend(stats.map(|stats| builder.stats(stats)).transpose()?);
    Ok(Threads { deliveries, under_way, middle, readers, rest })
}

impl Builder {
    fn spawn(&self, name: String, body: impl FnOnce() + Send + 'static) -> Result<Handle, DaemonError> {
        Ok(thread::spawn(name, &self.shared.ended, body)?)
    }

    fn connector(&self, name: String, ending: &Ending) -> Connector {
        let registry = Arc::clone(&self.shared.registry);
        Connector::new(Arc::clone(&self.target), name, &self.shared.config.redis, registry)
            .until(ending.clone())
    }

    fn watcher(&mut self) -> Result<Handle, DaemonError> {
        let (poll, _) = self.queues.watcher_requests.polls.remove(0);
        let watcher = Watcher::new(WatcherParts {
            push: self.connector("watcher-push".into(), &self.shared.stops.rest_waits),
            link: self.connector(WATCHER.into(), &self.shared.stops.rest_waits),
            keys: Arc::clone(&self.keys),
            poll,
            watcher_requests: self.queues.watcher_requests.receivers.remove(0),
            deliveries: self.queues.inboxes.senders.clone(),
            clock: Arc::clone(&self.clock),
            leased: Arc::clone(&self.leased),
            identity: self.shared.identity.clone(),
            fatal: self.shared.fatal.clone(),
            registry: Arc::clone(&self.shared.registry),
            stop: self.shared.stops.rest.clone(),
        });
        self.spawn("watcher".into(), move || watcher.run())
    }

    fn recorder(&mut self) -> Result<Handle, DaemonError> {
        let link = self.connector(RECORDER.into(), &self.shared.stops.rest_waits);
        let records = &mut self.queues.records;
        let (poll, _) = records.cancels.polls.remove(0);
        let context = DecodeContext::new(self.shared.config.fields.clone());
        let recorder = Recorder::new(RecorderParts {
            link,
            keys: Arc::clone(&self.keys),
            poll,
            cancels: records.cancels.receivers.remove(0),
            ends: records.ends.receivers.remove(0),
            letters: records.letters.receivers.remove(0),
            receipts: records.receipts.receivers.remove(0),
            deliveries: self.queues.inboxes.senders.clone(),
            milestones: Box::new(move |entry| milestone(entry, &context)),
            transforms: self.queues.control.senders.clone(),
            clock: Arc::clone(&self.clock),
            redis: self.shared.config.redis.clone(),
            stream: self.shared.config.stream,
            registry: Arc::clone(&self.shared.registry),
            stop: self.shared.stops.rest.clone(),
        });
        self.spawn(RECORDER.into(), move || recorder.run())
    }

    fn admin(&self, listener: std::net::TcpListener) -> Result<Handle, DaemonError> {
        let (registry, stop) = (Arc::clone(&self.shared.registry), self.shared.stops.rest.clone());
        let listen = &self.shared.config.listen;
        let hosts = HostPolicy::from(&listen.hosts, &listen.origins);
        self.spawn("admin".into(), move || {
            if let Err(error) = admin::run(listener, hosts, registry, stop) {
                panic!("the admin listener failed: {error}");
            }
        })
    }

    fn stats(
        &self,
        (listener, file): (std::os::unix::net::UnixListener, Option<stats_socket::SocketFile>),
    ) -> Result<Handle, DaemonError> {
        let (registry, stop) = (Arc::clone(&self.shared.registry), self.shared.stops.rest.clone());
        self.spawn("stats".into(), move || {
            let _file = file;
            if let Err(error) = stats_socket::run(listener, registry, stop) {
                panic!("the stats socket failed: {error}");
            }
        })
    }

    fn readers(&mut self) -> Result<Vec<Handle>, DaemonError> {
        let polls = std::mem::take(&mut self.queues.commands.polls);
        let receivers = std::mem::take(&mut self.queues.commands.receivers);
        let mut handles = Vec::new();
        for (index, ((poll, _), commands)) in polls.into_iter().zip(receivers).enumerate() {
            let reader = Reader::new(ReaderParts {
                index,
                connector: self.connector(format!("reader-{index}"), &self.shared.stops.front_waits),
                wake: self.connector(format!("reader-{index}-wake"), &self.shared.stops.front_waits),
                keys: Arc::clone(&self.keys),
                poll,
                commands,
                transforms: self.queues.live.senders.clone(),
                delivery: self.shared.config.delivery,
                linger: self.shared.config.stream.linger,
                leased: Arc::clone(&self.leased),
                under_way: Some(Arc::clone(&self.under_way)),
                draining: self.shared.stops.reading.clone(),
                stop: self.shared.stops.acknowledging.clone(),
                registry: Arc::clone(&self.shared.registry),
            });
            handles.push(self.spawn(format!("reader-{index}"), move || reader.run())?);
        }
        Ok(handles)
    }

    fn replays(&mut self) -> Result<Vec<Handle>, DaemonError> {
        let mut handles = Vec::new();
        for index in 0..self.shared.config.threads.replays {
            let replay = Replay::new(ReplayParts {
                connector: self.connector(format!("replay-{index}"), &self.shared.stops.front_waits),
                keys: Arc::clone(&self.keys),
                requests: self.queues.requests.receivers[0].clone(),
                transforms: self.queues.replay.senders.clone(),
                ledger: Arc::clone(&self.ledger),
                checkpoints: Arc::clone(&self.checkpoints),
                registry: Arc::clone(&self.shared.registry),
                stop: self.shared.stops.delivering.clone(),
            });
            handles.push(self.spawn(format!("replay-{index}"), move || replay.run())?);
        }
        Ok(handles)
    }

    fn transforms(&mut self) -> Result<Vec<Handle>, DaemonError> {
        let (lives, replays) = (&mut self.queues.live.receivers, &mut self.queues.replay.receivers);
        let lanes = std::mem::take(lives).into_iter().zip(std::mem::take(replays));
        let controls = std::mem::take(&mut self.queues.control.receivers);
        let context = DecodeContext::new(self.shared.config.fields.clone());
        let mut handles = Vec::new();
        for (index, ((live, replay), control)) in lanes.zip(controls).enumerate() {
            let worker = Worker::new(WorkerParts {
                control,
                live,
                replay,
                index,
                transforms: self.shared.config.threads.transforms,
                readers: self.queues.commands.senders.clone(),
                deliveries: self.queues.ports(),
                watcher_requests: self.queues.watcher_requests.senders[0].clone(),
                ends: self.queues.records.ends.senders[0].clone(),
                letters: self.queues.records.letters.senders[0].clone(),
                receipts: self.queues.records.receipts.senders[0].clone(),
                ledger: Arc::clone(&self.ledger),
                checkpoints: Arc::clone(&self.checkpoints),
                clock: Arc::clone(&self.clock),
                stream: self.shared.config.stream,
                context: context.clone(),
                registry: Arc::clone(&self.shared.registry),
                stop: self.shared.stops.delivering.clone(),
            });
            handles.push(self.spawn(format!("transform-{index}"), move || worker.run())?);
        }
        Ok(handles)
    }

    fn deliveries(&mut self, public: Listener) -> Result<Vec<Handle>, DaemonError> {
        let polls = std::mem::take(&mut self.queues.inboxes.polls);
        let inboxes = std::mem::take(&mut self.queues.inboxes.receivers);
        let histories = std::mem::take(&mut self.queues.histories.receivers);
        let loads: Arc<[AtomicUsize]> = polls.iter().map(|_| AtomicUsize::new(0)).collect();
        let policies = Swap::new(Policies::from(&*self.shared.config));
        let rates = Arc::new(Mutex::new(Rates::new(&self.shared.config.limits)));
        let budgets = Arc::new(Budgets {
            answers: Arc::new(Budget::new(answers_bytes_max(self.shared.config.client.max_state))),
            inputs: Budget::new(INPUT_BYTES_MAX),
        });
        let mut listener = Some(public);
        let mut handles = Vec::new();
        let lanes = polls.into_iter().zip(inboxes.into_iter().zip(histories));
        for (index, ((poll, waker), (inbox, history))) in lanes.enumerate() {
            let parts = DeliveryParts {
                index,
                poll,
                inbound: Inbound { waker, inbox, history, missed: Arc::clone(&self.queues.missed[index]) },
                outbound: OutboundQueues {
                    replays: self.queues.requests.senders[0].clone(),
                    transforms: self.queues.control.senders.clone(),
                    watcher_requests: self.queues.watcher_requests.senders[0].clone(),
                    cancels: self.queues.records.cancels.senders[0].clone(),
                    receipts: self.queues.records.receipts.senders[0].clone(),
                },
                listener: listener.take(),
                peers: self.queues.inboxes.senders.clone(),
                loads: Arc::clone(&loads),
                policies: policies.reader(),
                rates: Arc::clone(&rates),
                budgets: Arc::clone(&budgets),
                max_connections: self.shared.max_connections,
                config: Arc::clone(&self.shared.config),
                registry: Arc::clone(&self.shared.registry),
                draining: self.shared.stops.draining.clone(),
                stop: self.shared.stops.delivering.clone(),
            };
            handles.push(self.spawn(format!("deliver-{index}"), move || {
                if let Err(error) = serve(parts) {
                    panic!("a delivery loop failed: {error}");
                }
            })?);
        }
        Ok(handles)
    }
}
