//! The environment of one delivery thread: its clock, the streams, the other threads and the clients, and the random
//! choice of the next event.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use mio::{Poll, Waker};
use parking_lot::Mutex;

use super::client::{Client, Kind};
use super::judge::{Wanted, newest_generation};
use super::streams::Stream;
use super::threads::{Queues, Recorder, Replays, Transform, Watcher};
use crate::config::Config;
use crate::deliver::budget::{Budget, Budgets};
use crate::deliver::event_loop::delivery::{DeliveryParts, INBOX, Inbound};
use crate::deliver::event_loop::stepped::Stepped;
use crate::deliver::memory_socket;
use crate::deliver::outbound::OutboundQueues;
use crate::fuzzing::Numbers;
use crate::model::{After, EntryId, Position};
use crate::observe::Registry;
use crate::queue::bounded;
use crate::security::policies::Policies;
use crate::security::rate::Rates;
use crate::stop::Stop;
use crate::swap::Swap;

/// The number of streams.
const STREAMS: usize = 4;
/// Clients that are connected at the same time, at most.
const CLIENTS_MAX: usize = 10;
/// Entries that are written to one stream, at most.
const ENTRIES_MAX: usize = 120;
/// How long a client waits for a stream to exist, at most, in seconds.
const WAIT_MAX_S: usize = 4;
/// Rounds that may follow each other without any other event. More mean that the thread never sleeps.
const BUSY_ROUNDS_MAX: usize = 2_000;
/// Iterations in which all threads and clients must finish their pending work.
const ITERATIONS_MAX: usize = 2_000;
/// Requests for history that the replay threads have in progress, at most.
const READS_AT_ONCE: usize = 12;

/// The delivery thread and its environment.
pub(super) struct World {
    base: Instant,
    pub(super) now: Duration,
    numbers: Numbers,
    streams: Vec<Stream>,
    thread: Stepped,
    queues: Queues,
    replays: Replays,
    transform: Transform,
    watcher: Watcher,
    recorder: Recorder,
    clients: Vec<Client>,
    registry: Arc<Registry>,
    draining: Stop,
    /// When the thread wakes up; `None` if it has ended.
    sleeps_until: Option<Duration>,
    is_woken: bool,
    /// The time until which Redis is unavailable.
    is_down_until: Duration,
    /// The events so far, if there is a trace.
    trace: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64, is_traced: bool) -> Self {
        let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut config = Config::defaults();
        config.client.send_budget = [2 << 10, 8 << 10, 64 << 10][numbers.below(3)];
        config.delivery.replay_count = [4, 32, 512][numbers.below(3)];
        config.stream.receipts = numbers.below(2) == 0;
        let (registry, draining, base) = (Arc::new(Registry::new("simulation")), Stop::new(), Instant::now());
        let (parts, queues) = parts(&mut numbers, config, (&registry, &draining));
        Self {
            base,
            now: Duration::ZERO,
            numbers,
            streams: (0..STREAMS).map(Stream::new).collect(),
            thread: Stepped::new(parts, base),
            queues,
            replays: Replays::default(),
            transform: Transform::default(),
            watcher: Watcher::default(),
            recorder: Recorder::default(),
            clients: Vec::new(),
            registry,
            draining,
            sleeps_until: Some(Duration::ZERO),
            is_woken: false,
            is_down_until: Duration::ZERO,
            trace: is_traced.then(Vec::new),
        }
    }

    fn note(&mut self, event: impl FnOnce(&Self) -> String) {
        let Some(mut trace) = self.trace.take() else { return };
        trace.push(format!("{:>9.3?} {}", self.now, event(self)));
        self.trace = Some(trace);
    }

    /// The last events, and the last frames of each client.
    pub(super) fn last_events(&self) -> Vec<&str> {
        let mut events = last(&self.trace, 60);
        events.extend(self.clients.iter().flat_map(|client| last(&client.trace, 6)));
        events
    }

    // ----- running -----

    /// Runs one event, chosen at random.
    pub(super) fn step(&mut self) {
        match self.numbers.below(100) {
            0..22 => self.write(),
            22..40 => self.read_live(),
            40..56 => {
                let is_down = self.now < self.is_down_until;
                self.replays.read(&self.streams, &mut self.numbers, is_down);
            }
            56..70 => {
                let defers = self.numbers.below(50) == 0;
                self.replays.answer(&self.queues, &mut self.numbers, defers);
            }
            70..80 => self.read_clients(),
            80..84 => self.connect(),
            84..87 => self.send_message(),
            87..90 => self.leave(),
            90..92 => self.run_other_threads(),
            92..94 => self.disturb(),
            _ => self.transform.apply(&self.queues, &self.streams, 1 + self.numbers.below(3)),
        }
        self.now += Duration::from_micros(match self.numbers.below(120) {
            0 => 1_500_000,
            1..7 => 120_000,
            7..60 => 2_000,
            _ => 50,
        });
        // A round that is due is sometimes skipped, as if the thread were late.
        if self.is_due() && self.numbers.below(4) > 0 {
            self.round();
        }
    }

    /// Stops writing and finishes all pending work. Then each viewer must have everything.
    pub(super) fn settle(&mut self) {
        self.note(|_| "writing stops".to_owned());
        self.is_down_until = self.now;
        for index in 0..STREAMS {
            if self.streams[index].exists && self.streams[index].is_open() && self.numbers.below(3) > 0 {
                self.streams[index].write(&mut self.numbers, (self.now, true));
            }
        }
        for client in self.clients.iter_mut().filter(|client| client.read_size == 0) {
            client.leave(true);
        }
        self.pass_time(12);
        let present = self.clients.iter().filter(|client| !client.has_left);
        for viewer in present.flat_map(|client| &client.viewers) {
            viewer.check_complete(&self.streams[viewer.wanted.stream]);
        }
    }

    /// Lets all clients leave, or drains the instance. Then nothing may be held for the clients any more.
    pub(super) fn end(&mut self) {
        let drains = self.numbers.below(3) == 0;
        self.note(|_| format!("all clients leave; drains: {drains}"));
        if drains {
            self.draining.request();
            self.clients.iter_mut().for_each(|client| client.is_draining = true);
        } else {
            self.clients.iter_mut().for_each(|client| client.leave(true));
        }
        self.pass_time(6);
        // A thread that ends drops the messages for which other threads have no room.
        let must_be_empty = |what| !drains || what != Stepped::MESSAGES;
        let left = self.thread.held().into_iter().filter(|&(what, amount)| amount > 0 && must_be_empty(what));
        let left: Vec<_> = left.collect();
        assert!(left.is_empty(), "{left:?} are left");
        for gauge in self.registry.gauges().read() {
            assert_eq!(gauge.value, 0, "{}", gauge.name);
        }
        if drains {
            return assert_eq!(self.sleeps_until, None, "all clients are gone, and the thread does not end");
        }
        let others = (self.replays.len(), self.transform.streams(), self.watcher.len(), self.recorder.len());
        assert_eq!(others, (0, Vec::new(), 0, 0), "reads, live streams, names waited for, records");
        let (until, mut rounds) = (self.now + Duration::from_secs(1), 0);
        while let Some(next) = self.sleeps_until.filter(|next| *next <= until) {
            self.now = self.now.max(next);
            self.round();
            rounds += 1;
            assert!(rounds <= 11, "it wakes up with nothing to do");
        }
    }

    /// Lets time pass. All pending work is done in each second.
    fn pass_time(&mut self, seconds: u32) {
        for _ in 0..seconds {
            let mut iterations = 0;
            while self.work_all() {
                self.now += Duration::from_millis(3);
                iterations += 1;
                assert!(iterations < ITERATIONS_MAX, "there is always something left to do");
            }
            self.now += Duration::from_secs(1);
        }
    }

    /// Does the pending work of all threads and clients. Returns whether there was any.
    fn work_all(&mut self) -> bool {
        self.run_other_threads();
        self.transform.apply(&self.queues, &self.streams, usize::MAX);
        let mut is_busy = self.replays.len() + self.recorder.len() > 0;
        for _ in 0..self.replays.len() {
            self.replays.read(&self.streams, &mut self.numbers, false);
            self.replays.answer(&self.queues, &mut self.numbers, false);
        }
        for index in 0..STREAMS {
            if let Some(news) = self.transform.read(&self.queues, &self.streams[index], 1_000) {
                self.transform.send(&self.queues, vec![news]);
                is_busy = true;
            }
        }
        for client in &mut self.clients {
            while client.read(usize::MAX, &self.streams, self.now) {
                is_busy = true;
            }
            if client.is_over && !client.has_left {
                client.leave(false);
            }
        }
        self.clients.retain(|client| !client.end.is_closed());
        let mut rounds = 0;
        while self.is_due() {
            self.round();
            rounds += 1;
            assert!(rounds < BUSY_ROUNDS_MAX, "the thread never sleeps");
        }
        is_busy || rounds > 1
    }

    // ----- the thread -----

    fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// Whether the thread was woken, or the time until which it sleeps is over.
    fn is_due(&self) -> bool {
        let Some(until) = self.sleeps_until else { return false };
        let missed = self.queues.missed.lock();
        until <= self.now
            || self.is_woken
            || self.queues.receivers.iter().any(|queue| !queue.is_empty())
            || !(missed.hubs.is_empty() && missed.jobs.is_empty())
            || self.clients.iter().any(|client| client.end.is_ready())
    }

    fn round(&mut self) {
        self.is_woken = false;
        let (was_idle, before) = (self.queues.replays.is_empty(), self.viewers());
        let clients = self.clients.iter().map(|client| (client.index, &client.end));
        let sleeps = self.thread.round(clients, self.base + self.now);
        self.sleeps_until = sleeps.map(|sleeps| self.now + sleeps);
        let gone = self.viewers().1 != before.1;
        self.take_requests(was_idle && !gone);
    }

    /// The numbers of viewers added and removed so far.
    fn viewers(&self) -> (u64, u64) {
        let come = self.registry.counters().subscriptions.get();
        (come, come - self.thread.viewers() as u64)
    }

    /// Lets the replay threads take requests. `are_new` states that all of them were made in the current round, and
    /// that no viewer was removed in it.
    fn take_requests(&mut self, are_new: bool) {
        let room = READS_AT_ONCE.saturating_sub(self.replays.len());
        for (stream, job) in self.replays.take(&self.queues, room) {
            assert!(!are_new || self.thread.is_wanted(job), "{stream} is read for no viewer");
        }
    }

    // ----- producers -----

    fn write(&mut self) {
        let index = self.numbers.below(STREAMS);
        // A missing stream is created only now and then.
        if !self.streams[index].exists && self.numbers.below(4) > 0 {
            return;
        }
        for _ in 0..=self.numbers.below(5) {
            let stream = &mut self.streams[index];
            if stream.log.len() < ENTRIES_MAX {
                let ends = stream.is_open() && self.numbers.below(12) == 0;
                stream.write(&mut self.numbers, (self.now, ends));
            }
        }
        self.note(|world| format!("s{index} is at {}", world.streams[index].tip()));
    }

    /// Runs a rare event.
    fn disturb(&mut self) {
        let index = self.numbers.below(STREAMS);
        let what = self.numbers.below(12);
        self.note(|_| format!("s{index} is disturbed: {what}"));
        match what {
            0..4 => {
                let most = 1 + self.numbers.below(self.streams[index].remaining().len().max(1));
                self.streams[index].trim(most);
            }
            4 => self.streams[index].delete(self.now),
            5..8 => self.transform.break_live(&self.queues, &self.streams[index].name),
            8..11 => self.transform.stall(&self.queues, &self.streams[index]),
            _ => self.is_down_until = self.now + Duration::from_millis(500),
        }
    }

    // ----- the other threads -----

    fn run_other_threads(&mut self) {
        self.watcher.work(&self.queues, &self.streams);
        self.recorder.work(&self.queues, &mut self.numbers);
        self.take_requests(false);
    }

    /// Reads further entries of some live streams, and sends their frames through the inbox or between two rounds.
    fn read_live(&mut self) {
        let live = self.transform.streams();
        if live.is_empty() {
            return;
        }
        let mut news = Vec::new();
        for _ in 0..=self.numbers.below(2) {
            let name = &live[self.numbers.below(live.len())];
            let Some(stream) = self.streams.iter().find(|stream| stream.name == *name) else { continue };
            let most = 1 + self.numbers.below(6);
            news.extend(self.transform.read(&self.queues, stream, most));
        }
        if news.is_empty() {
            return;
        }
        self.note(|_| {
            let passed: Vec<_> =
                news.iter().map(|news| format!("{} ({})", news.passed, news.frames.len())).collect();
            format!("live text up to {passed:?}")
        });
        if self.sleeps_until.is_some() && self.numbers.below(2) == 0 {
            let was_idle = self.queues.replays.is_empty();
            let (is_taken, is_woken) = self.thread.deliver(&news, self.instant());
            self.is_woken |= is_woken;
            if is_taken {
                return self.take_requests(was_idle);
            }
        }
        self.transform.send(&self.queues, news);
    }

    // ----- clients -----

    fn wanted(&mut self, kind: Kind, index: usize) -> Wanted {
        let after = self.after(index);
        let numbers = &mut self.numbers;
        let stream = &self.streams[index];
        let batch_ms = if numbers.below(3) == 0 { 10 + numbers.below(200) } else { 0 };
        Wanted {
            stream: index,
            after: if matches!(kind, Kind::State | Kind::Head) { After::At(Position::ZERO) } else { after },
            follow: numbers.below(2) == 0,
            wait: Duration::from_secs(numbers.below(WAIT_MAX_S + 1) as u64),
            batch_ms,
            at: self.now,
            tip: if stream.exists { stream.tip() } else { EntryId::ZERO },
            generation: newest_generation(stream),
        }
    }

    /// A random start for a client: the beginning, the newest generation, the end, or a position within the stream.
    fn after(&mut self, index: usize) -> After {
        let log = &self.streams[index].log;
        match self.numbers.below(8) {
            0 => After::Tail,
            1 => After::Last,
            2..5 if !log.is_empty() => {
                let written = &log[self.numbers.below(log.len())];
                let pieces = written.pieces.len().max(1);
                let piece = written.pieces.get(self.numbers.below(pieces));
                After::At(piece.map_or_else(|| Position::whole(written.entry.id), |piece| piece.at))
            }
            _ => After::At(Position::ZERO),
        }
    }

    /// Connects a new client of a random kind.
    fn connect(&mut self) {
        if self.clients.iter().filter(|client| !client.has_left).count() >= CLIENTS_MAX {
            return;
        }
        let kind = match self.numbers.below(12) {
            0..4 => Kind::Sse,
            4..8 => Kind::WebSocket,
            8..10 => Kind::Many,
            10 => Kind::State,
            _ => Kind::Head,
        };
        let read_size = [0, 40, 700, 5_000, 100_000, 100_000, 100_000, 100_000][self.numbers.below(8)];
        let room = [300, 4_000, 100_000][self.numbers.below(3)];
        let (socket, end) = memory_socket::pair(room);
        let index = self.thread.connect(socket, self.instant());
        let mut client = Client::new(index, end, kind, read_size);
        let stream = self.numbers.below(STREAMS);
        let wanted = (kind != Kind::Many).then(|| self.wanted(kind, stream));
        self.note(|_| format!("client {index} connects: {kind:?}, read_size {read_size}, {wanted:?}"));
        client.trace = self.trace.is_some().then(Vec::new);
        client.send_request(wanted, &self.streams);
        self.clients.push(client);
    }

    /// Sends a random message of a random client.
    fn send_message(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let place = self.numbers.below(self.clients.len());
        let client = &self.clients[place];
        let kind = client.kind;
        if client.has_left || client.is_over || !matches!(kind, Kind::WebSocket | Kind::Many) {
            return;
        }
        let stream = self.numbers.below(STREAMS);
        let wanted = self.wanted(kind, stream);
        let client = &mut self.clients[place];
        let name = &self.streams[stream].name;
        let about = if kind == Kind::Many { format!(r#","stream":"{name}""#) } else { String::new() };
        let carried =
            client.viewers.iter().find(|viewer| kind == Kind::WebSocket || viewer.wanted.stream == stream);
        match self.numbers.below(8) {
            0 => client.send_message(r#"{"type":"ping","nonce":1}"#),
            1 => client.send_message(&format!(r#"{{"type":"cancel"{about}}}"#)),
            2 => {
                let had = carried.and_then(|viewer| viewer.position).unwrap_or_default();
                client.send_message(&format!(r#"{{"type":"ack","id":"{had}"{about}}}"#));
            }
            3 if kind == Kind::Many => client.send_message(&format!(r#"{{"type":"unsubscribe"{about}}}"#)),
            _ if kind == Kind::Many && carried.is_none_or(|viewer| viewer.ended.is_some()) => {
                client.subscribe(wanted, &self.streams);
            }
            _ => {}
        }
        let index = client.index;
        self.note(|_| format!("client {index} sends a message about s{stream}"));
    }

    /// Lets a random client leave.
    fn leave(&mut self) {
        if self.clients.is_empty() || self.numbers.below(2) == 0 {
            return;
        }
        let place = self.numbers.below(self.clients.len());
        let client = &mut self.clients[place];
        let way = self.numbers.below(4);
        match way {
            _ if client.has_left => return,
            0 if matches!(client.kind, Kind::WebSocket | Kind::Many) && !client.is_over => {
                client.close();
                client.has_left = true;
            }
            1 => client.leave(false),
            _ => client.leave(true),
        }
        let index = client.index;
        self.note(|_| format!("client {index} leaves: {way}"));
    }

    fn read_clients(&mut self) {
        for client in &mut self.clients {
            if client.read_size > 0 {
                client.read(client.read_size, &self.streams, self.now);
            }
            if client.is_over && !client.has_left {
                client.leave(false);
            }
        }
        self.clients.retain(|client| !client.end.is_closed() || client.end.waiting() > 0);
    }
}

/// The last `most` lines of a trace.
fn last(trace: &Option<Vec<String>>, most: usize) -> Vec<&str> {
    let trace = trace.as_deref().unwrap_or_default();
    trace[trace.len().saturating_sub(most)..].iter().map(String::as_str).collect()
}

/// Creates the parts of a delivery thread, and the opposite ends of its queues.
fn parts(
    numbers: &mut Numbers,
    config: Config,
    (registry, draining): (&Arc<Registry>, &Stop),
) -> (DeliveryParts, Queues) {
    let poll = Poll::new().expect("a poll");
    let waker = Arc::new(Waker::new(poll.registry(), INBOX).expect("a waker"));
    let missed = Arc::default();
    let room = [1, 4, 64][numbers.below(3)];
    let (inbox, inbox_out) = bounded("inbox", 4 * room);
    let (history, history_out) = bounded("history", 1 + numbers.below(8));
    let (replays_in, replays) = bounded("replays", room);
    let (control_in, control) = bounded("control", room);
    let (watcher_in, watcher_requests) = bounded("watcher", room);
    let (cancels_in, cancels) = bounded("cancels", 4);
    let (receipts_in, receipts) = bounded("receipts", 4);
    let (policies, rates) = (Swap::new(Policies::from(&config)), Rates::new(&config.limits));
    let receivers = [inbox_out.clone(), history_out.clone()];
    let parts = DeliveryParts {
        index: 0,
        poll,
        inbound: Inbound { waker, inbox: inbox_out, history: history_out, missed: Arc::clone(&missed) },
        outbound: OutboundQueues {
            replays: replays_in,
            transforms: vec![control_in],
            watcher_requests: watcher_in,
            cancels: cancels_in,
            receipts: receipts_in,
        },
        listener: None,
        peers: vec![inbox.clone()],
        loads: Arc::new([AtomicUsize::new(0)]),
        policies: policies.reader(),
        rates: Arc::new(Mutex::new(rates)),
        budgets: Arc::new(Budgets { answers: Arc::new(Budget::new(1 << 20)), inputs: Budget::new(1 << 20) }),
        max_connections: 1_000,
        config: Arc::new(config),
        registry: Arc::clone(registry),
        draining: draining.clone(),
        stop: Stop::new(),
    };
    (
        parts,
        Queues { inbox, history, receivers, missed, replays, control, watcher_requests, cancels, receipts },
    )
}
