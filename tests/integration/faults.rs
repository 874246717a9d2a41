//! Seeded schedules of faults for the whole system: producers, two instances on one Redis, and viewers of every kind,
//! of which anything may break at any time. At the end every viewer must have received everything that was confirmed
//! to a producer, once and in order, except for what a `gap` has reported.
//!
//! `LLM_BRIDGE_FAULT_SEEDS=from..to` in the environment runs these seeds in addition.

use std::env;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, DaemonOptions};
use crate::support::patience::{PATIENCE, wait_for, wait_until};
use crate::support::producer::{Item, Ledger, Orders, Survivor};
use crate::support::random::Random;
use crate::support::redis::{RedisServer, parsed_id};
use crate::support::roaming_client::{ConnectionFault, Log, RoamingClient, Together, World, witness};
use crate::support::transcript::Frame;
use crate::support::viewer::KINDS;

const STREAMS: usize = 4;
/// Viewers of each single stream.
const VIEWERS: usize = 5;
/// Viewers of all streams at once.
const VIEWERS_OF_ALL: usize = 2;
const STEPS: usize = 12;
/// How many schedules run at the same time if many were requested: each mostly waits.
const SEEDS_AT_ONCE: usize = 3;
/// Limits for an idle daemon after the faults: open descriptors, and resident memory.
const DESCRIPTORS_MAX: usize = 60;
const RESIDENT_BYTES_MAX: u64 = 200 << 20;

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillRedis,
    SuspendRedis,
    RefuseWrites,
    DestroyGroups,
    DeleteWakes,
    DeleteGroupLists,
    KillClients,
    KillDaemon(usize),
    TerminateDaemon(usize),
    BeginAnew(usize),
    CutViewers,
    RestViewers,
}

/// A fault after a delay, and optionally another one while it lasts.
#[derive(Clone, Debug)]
struct Step {
    wait_ms: usize,
    fault: Fault,
    lasts_ms: usize,
    meanwhile: Option<Fault>,
    /// The affected viewers, one bit each.
    viewers: usize,
}

fn draw_schedule(random: &mut Random) -> Vec<Step> {
    let draw = |random: &mut Random| {
        let (instance, stream) = (random.below(2), random.below(STREAMS));
        let apart = [
            Fault::KillDaemon(instance),
            Fault::TerminateDaemon(instance),
            Fault::CutViewers,
            Fault::RestViewers,
            Fault::BeginAnew(stream),
        ];
        let with_redis = [
            Fault::KillRedis,
            Fault::SuspendRedis,
            Fault::RefuseWrites,
            Fault::DestroyGroups,
            Fault::DeleteWakes,
            Fault::DeleteGroupLists,
            Fault::KillClients,
        ];
        let fault = if random.once_in(2) { random.pick(&apart) } else { random.pick(&with_redis) };
        Step {
            wait_ms: random.below(400),
            fault,
            lasts_ms: random.below(700),
            meanwhile: random.once_in(3).then(|| random.pick(&apart)),
            viewers: random.below(1 << (STREAMS * VIEWERS + VIEWERS_OF_ALL)),
        }
    };
    (0..STEPS).map(|_| draw(random)).collect()
}

/// Draws settings that determine how entries are processed.
fn draw_options(random: &mut Random, mut options: DaemonOptions, history: &mut Vec<String>) -> DaemonOptions {
    let choices: [(&str, &[&str]); 11] = [
        ("redis.response_timeout", &["300ms", "1s", "5s"]),
        ("threads.readers", &["1", "2"]),
        ("threads.transforms", &["1", "2"]),
        ("threads.deliveries", &["1", "2"]),
        ("threads.replays", &["1", "2"]),
        ("client.send_budget", &["16KiB", "256KiB"]),
        ("stream.linger", &["50ms", "1s", "10s"]),
        ("delivery.read_count", &["3", "256"]),
        ("delivery.replay_count", &["7", "100", "1000"]),
        ("delivery.queue_batches", &["2", "8", "1024"]),
        ("delivery.max_linger", &["1ms", "20ms", "200ms"]),
    ];
    for (name, values) in choices {
        let setting = format!("{name}={}", random.pick(values));
        options = options.set(&setting);
        history.push(setting);
    }
    options
}

/// Redis and the two instances, and the faults applied to them.
struct System<'a> {
    world: &'a World,
    orders: &'a Orders,
    faults: &'a [ConnectionFault],
    redis: RedisServer,
    daemons: Vec<Daemon>,
    /// The logs of daemons that have ended.
    logs: Vec<String>,
    history: Vec<String>,
}

impl System<'_> {
    fn perform(&mut self, step: &Step) {
        thread::sleep(Duration::from_millis(step.wait_ms as u64));
        self.history.push(format!("{step:?}"));
        let lasts = Duration::from_millis(step.lasts_ms as u64);
        let during = |system: &mut Self| {
            thread::sleep(lasts / 2);
            if let Some(fault) = step.meanwhile {
                system.strike(fault, step);
            }
            thread::sleep(lasts / 2);
        };
        match step.fault {
            Fault::KillRedis => {
                self.redis.kill();
                during(self);
                self.redis.restart();
            }
            Fault::SuspendRedis => {
                self.redis.suspend();
                during(self);
                self.redis.resume();
            }
            Fault::RefuseWrites => {
                self.run(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
                during(self);
                self.run(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
            }
            fault => {
                self.strike(fault, step);
                during(self);
            }
        }
    }

    /// Applies a fault without a duration.
    fn strike(&mut self, fault: Fault, step: &Step) {
        let faults = self.faults;
        let meant = faults.iter().enumerate().filter(|(place, _)| step.viewers >> place & 1 == 1);
        match fault {
            Fault::DestroyGroups => self.destroy_groups(),
            Fault::DeleteWakes => self.delete("llm:wake:*"),
            Fault::DeleteGroupLists => self.delete("llm:groups:*"),
            Fault::KillClients => self.run(&["CLIENT", "KILL", "TYPE", "normal"]),
            Fault::KillDaemon(instance) => self.replace(instance, Daemon::kill),
            Fault::TerminateDaemon(instance) => {
                // A daemon that waits for a suspended Redis may run out of time and exit with 1.
                let is_frozen = matches!(step.fault, Fault::SuspendRedis);
                self.replace(instance, |daemon| {
                    daemon.wait_alive();
                    daemon.signal(libc::SIGTERM);
                    let code = daemon.wait_exit().code();
                    let is_in_order = code == Some(0) || is_frozen && code == Some(1);
                    assert!(is_in_order, "{code:?}, log:\n{}", daemon.log());
                });
            }
            Fault::BeginAnew(stream) => drop(self.orders.begin_anew[stream].fetch_add(1, Ordering::Relaxed)),
            Fault::CutViewers => meant.for_each(|(_, fault)| fault.cut()),
            Fault::RestViewers => {
                meant.for_each(|(_, fault)| fault.rest(Duration::from_millis(300 + step.lasts_ms as u64)));
            }
            Fault::KillRedis | Fault::SuspendRedis | Fault::RefuseWrites => unreachable!("it lasts"),
        }
    }

    fn run(&self, command: &[&str]) {
        wait_until(command[0], || self.redis.connect().try_run::<redis::Value>(command).is_ok());
    }

    fn keys(&self, pattern: &str) -> Vec<String> {
        // A Redis that was just started may report once more that it is loading.
        wait_for(pattern, || self.redis.connect().try_run(&["KEYS", pattern]).ok())
    }

    fn delete(&self, pattern: &str) {
        self.keys(pattern).iter().for_each(|key| self.run(&["DEL", key]));
    }

    fn destroy_groups(&self) {
        let mut connection = self.redis.connect();
        for key in self.keys("llm:stream:*") {
            for group in connection.groups(&key) {
                // The stream may be gone by now, and its groups with it.
                let _ = connection.try_run::<u64>(&["XGROUP", "DESTROY", &key, &group]);
            }
        }
    }

    fn replace(&mut self, instance: usize, end: impl FnOnce(&mut Daemon)) {
        let daemon = &mut self.daemons[instance];
        self.world.end(instance, || end(daemon));
        let next = daemon.spawn_again();
        self.logs.push(std::mem::replace(daemon, next).log());
    }
}

impl System<'_> {
    /// Ends all faults.
    fn heal(&mut self) {
        self.history.push("all heals".into());
        self.daemons.iter_mut().for_each(Daemon::wait_ready);
    }

    /// Waits for the expected state once all is quiet, while every stream is still watched.
    fn expect_tidy(&self) {
        let mut connection = self.redis.connect();
        wait_until("two groups a stream, with everything acknowledged", || {
            connection.keys("llm:stream:*").iter().all(|key| {
                let newest: Vec<(String, redis::Value)> =
                    connection.run(&["XREVRANGE", key, "+", "-", "COUNT", "1"]);
                connection.positions(key) == vec![parsed_id(&newest[0].0); 2]
            })
        });
    }

    /// Stops the daemons. A consumer group that remains must be in the set by which it is removed; no log has a
    /// panic.
    fn expect_end(&mut self) {
        for daemon in &mut self.daemons {
            wait_until("its viewers' descriptors to be closed", || {
                daemon.open_descriptors() <= DESCRIPTORS_MAX
            });
            let resident = daemon.resident_bytes();
            assert!(resident <= RESIDENT_BYTES_MAX, "{resident} bytes");
            daemon.signal(libc::SIGTERM);
            daemon.expect_exit(0);
        }
        let mut connection = self.redis.connect();
        let is_list_lost = self.history.iter().any(|step| step.contains("DeleteGroupLists"));
        for key in connection.keys("llm:stream:*") {
            let stream = key["llm:stream:".len()..].replacen(':', "/", 1);
            for group in connection.groups(&key) {
                let list = group.replace("llm:consumer:", "llm:groups:");
                let is_listed = connection.run::<bool>(&["SISMEMBER", &list, &stream]);
                assert!(is_listed || is_list_lost, "nobody will remove {group} of {stream}");
            }
        }
        for log in self.daemons.iter().map(Daemon::log).chain(self.logs.iter().cloned()) {
            assert!(!log.contains("panicked"), "{log}");
        }
    }
}

impl Drop for System<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- what was done\n{}", self.history.join("\n"));
            for log in &self.logs {
                eprintln!("--- log of a daemon that is gone\n{log}");
            }
        }
    }
}

type Handles<'scope, T> = Vec<ScopedJoinHandle<'scope, T>>;

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    world: &'scope World,
    name: String,
    work: impl FnOnce() -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    let work = move || {
        let _together = Together(world);
        work()
    };
    thread::Builder::new().name(name).spawn_scoped(scope, work).unwrap()
}

/// All viewers, each started at a time of its own.
fn spawn_viewers<'scope>(
    scope: &'scope Scope<'scope, '_>,
    world: &'scope World,
    faults: &'scope [ConnectionFault],
    random: &mut Random,
) -> Handles<'scope, Vec<Log>> {
    let mut handles = Vec::new();
    for (number, fault) in faults.iter().enumerate() {
        let is_of_all = number >= STREAMS * VIEWERS;
        let name = format!("viewer {number}");
        let kind = KINDS[random.below(2)];
        let logs: Vec<Log> = (0..STREAMS)
            .filter(|stream| is_of_all || number % STREAMS == *stream)
            .map(|stream| Log::new(name.clone(), &format!("s{stream}/m"), random))
            .collect();
        let delay = if random.once_in(2) { 0 } else { random.below(3_000) };
        let client = RoamingClient { world, fault, random: random.fork() };
        handles.push(spawn(scope, world, name, move || {
            thread::sleep(Duration::from_millis(delay as u64));
            if is_of_all {
                return client.view_all(logs);
            }
            client.view(kind, logs)
        }));
    }
    handles
}

/// Runs the schedule of a seed, and compares.
fn check_seed(seed: u64) {
    let mut random = Random::new(seed);
    let durable = ["--appendonly", "yes", "--appendfsync", "always", "--stream-node-max-entries", "10"];
    let redis = RedisServer::start_with(&durable);
    let mut history = vec![format!("LLM_BRIDGE_FAULT_SEEDS={seed}..{}", seed + 1)];
    let daemons: Vec<Daemon> = ["i1", "i2"]
        .into_iter()
        .map(|id| {
            let options = Daemon::options(&redis).set(&format!("service.instance={id}"));
            let options = options.set("redis.backoff_max=50ms").set("shutdown.grace=5s");
            draw_options(&mut random, options, &mut history).start()
        })
        .collect();
    let world = World::new([daemons[0].public, daemons[1].public]);
    let orders = Orders::new(STREAMS);
    let faults: Vec<ConnectionFault> =
        (0..STREAMS * VIEWERS + VIEWERS_OF_ALL).map(|_| ConnectionFault::default()).collect();
    let schedule = draw_schedule(&mut random);
    let url = redis.url();
    let mut system =
        System { world: &world, orders: &orders, faults: &faults, redis, daemons, logs: Vec::new(), history };
    let (ledgers, logs) = thread::scope(|scope| {
        let producers: Handles<'_, Ledger> = (0..STREAMS)
            .map(|number| {
                let producer =
                    Survivor::new(&world.is_abandoned, &orders, url.clone(), number, random.fork());
                spawn(scope, &world, format!("producer {number}"), || producer.run())
            })
            .collect();
        let viewers = spawn_viewers(scope, &world, &faults, &mut random);
        let lived = panic::catch_unwind(AssertUnwindSafe(|| {
            let _together = Together(&world);
            schedule.iter().take_while(|_| !world.abandoned()).for_each(|step| system.perform(step));
            system.heal();
        }));
        orders.finish.store(true, Ordering::Relaxed);
        let began = Instant::now();
        let is_over = || producers.iter().all(|h| h.is_finished()) && viewers.iter().all(|h| h.is_finished());
        while !is_over() {
            if began.elapsed() > PATIENCE / 2 || world.abandoned() {
                world.is_abandoned.store(true, Ordering::SeqCst);
                faults.iter().for_each(ConnectionFault::cut);
            }
            thread::sleep(Duration::from_millis(5));
        }
        let ledgers = join(producers);
        let logs: Vec<Log> = join(viewers).into_iter().flatten().collect();
        lived.unwrap_or_else(|payload| panic::resume_unwind(payload));
        (ledgers, logs)
    });
    compare(&ledgers, &logs);
    let mut witnesses = Vec::new();
    let mut logs = Vec::new();
    for daemon in &system.daemons {
        for ledger in &ledgers {
            let log = Log::new(format!("witness of {}", ledger.stream), &ledger.stream, &mut random);
            let (viewer, log) = witness(daemon.public, KINDS[random.below(2)], log);
            witnesses.push(viewer);
            logs.push(log);
        }
    }
    compare(&ledgers, &logs);
    system.expect_tidy();
    drop(witnesses);
    system.expect_end();
}

fn join<T>(handles: Handles<'_, T>) -> Vec<T> {
    let joined: Vec<_> = handles.into_iter().map(ScopedJoinHandle::join).collect();
    joined.into_iter().map(|one| one.unwrap_or_else(|payload| panic::resume_unwind(payload))).collect()
}

fn compare(ledgers: &[Ledger], logs: &[Log]) {
    let ledger = |log: &Log| ledgers.iter().find(|ledger| ledger.stream == log.stream).unwrap();
    let wrong: Vec<String> = logs.iter().filter_map(|log| ledger(log).account(log).err()).collect();
    assert!(wrong.is_empty(), "{} of {} logs are wrong:\n{}", wrong.len(), logs.len(), wrong.join("\n\n"));
}

/// A ledger of items of a trimmed stream: how often each was sent, and the id that was confirmed.
fn ledger(items: &[(usize, Option<&str>)]) -> Ledger {
    let item = |(number, &(attempts, id)): (usize, &(usize, Option<&str>))| {
        let label = format!("0.{number}");
        let text = format!("{label} ;");
        Item { label, text, is_shown: id.is_some(), attempts, id: id.map(str::to_owned), era: 0 }
    };
    let items = items.iter().enumerate().map(item).collect();
    Ledger { stream: "s/m".into(), items, is_trimmed: true, is_numbered: true }
}

/// The ledger's verdict on a viewer that received these frames.
fn judged(ledger: &Ledger, frames: &[Value]) -> Result<(), String> {
    let mut log = Log::new("viewer".into(), "s/m", &mut Random::new(1));
    log.seen = frames.iter().map(|frame| Frame::new(frame.to_string())).collect();
    ledger.account(&log)
}

fn seen(number: usize, id: &str) -> Value {
    json!({"type": "delta", "id": id, "text": format!("0.{number} ;")})
}

fn gap(after: &str, next: &str, lost: u64) -> Value {
    json!({"type": "gap", "reason": "trimmed", "after": after, "next": next, "lost": lost})
}

#[test]
fn a_gap_may_count_what_was_sent_right_behind_the_last_frame_and_never_confirmed() {
    let ledger = ledger(&[(1, Some("1-0")), (1, None), (1, Some("3-0")), (1, Some("4-0"))]);
    for (lost, is_right) in [(0, false), (1, true), (2, true), (3, false)] {
        let frames = [seen(0, "1-0"), gap("1-0", "4-0", lost), seen(3, "4-0")];
        assert_eq!(judged(&ledger, &frames).is_ok(), is_right, "{lost}");
    }
}

#[test]
fn a_retry_comes_again_only_where_its_first_copy_may_be_trimmed() {
    let ledger = ledger(&[(2, Some("2-0")), (1, Some("3-0"))]);
    let open = json!({"type": "open"});
    let again = [seen(0, "1-0"), open.clone(), seen(0, "2-0"), seen(1, "3-0")];
    assert_eq!(judged(&ledger, &again), Ok(()));
    let without_a_break = [seen(0, "1-0"), seen(0, "2-0"), seen(1, "3-0")];
    assert!(judged(&ledger, &without_a_break).is_err());
    let never_retried = [seen(0, "1-0"), seen(1, "3-0"), open, seen(1, "3-0")];
    assert!(judged(&ledger, &never_retried).is_err());
}

#[test]
fn first_schedule() {
    check_seed(1);
}

#[test]
fn second_schedule() {
    check_seed(2);
}

#[test]
fn third_schedule() {
    check_seed(3);
}

#[test]
fn fourth_schedule() {
    check_seed(4);
}

#[test]
fn schedules_that_were_asked_for() {
    let Ok(seeds) = env::var("LLM_BRIDGE_FAULT_SEEDS") else { return };
    let (from, to) = seeds.split_once("..").expect("from..to");
    let (from, to): (u64, u64) = (from.parse().unwrap(), to.parse().unwrap());
    let next = AtomicU64::new(from);
    let check_some = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= to {
                return;
            }
            let began = Instant::now();
            check_seed(seed);
            println!("seed {seed}: {:?}", began.elapsed());
        }
    };
    thread::scope(|scope| {
        (0..SEEDS_AT_ONCE).for_each(|_| drop(scope.spawn(check_some)));
    });
}
