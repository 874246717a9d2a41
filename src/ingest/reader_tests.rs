//! Tests of a whole reader on a Redis of its own.

use super::*;
use crate::message::Slot;
use crate::model::{AckWatermark, StreamName};
use crate::queue::{Weight, bounded, bounded_waking, weighed};
use crate::redis::testing::{RedisServer, config_for};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The delivery thread that writes what the reader reads.
const DELIVERY: usize = 0;

/// A reader with one stream, whose group exists.
struct Running {
    stop: Stop,
    watermark: Arc<AckWatermark>,
    batches: Receiver<LiveBatch>,
    _commands: Sender<ReaderCommand>,
    thread: thread::Handle,
}

impl Running {
    fn start(server: &RedisServer, keys: &Arc<Keys>, stream: &StreamName) -> Self {
        let (registry, stop) = (Arc::new(Registry::new("test")), Stop::new());
        let poll = Poll::new().unwrap();
        let waker = Arc::new(mio::Waker::new(poll.registry(), COMMANDS).unwrap());
        stop.wakes(Arc::clone(&waker));
        let (to_reader, commands) = bounded_waking("commands", 8, waker);
        let (transform, batches) = weighed("live", 8, Weight::NONE, None);
        let config = config_for(&server.url());
        let target = Arc::new(server.target());
        let connector = |name| Connector::new(Arc::clone(&target), name, &config, Arc::clone(&registry));
        let parts = ReaderParts {
            index: 0,
            connector: connector("reader"),
            wake: connector("reader-wake"),
            keys: Arc::clone(keys),
            poll,
            commands,
            transforms: vec![transform],
            delivery: config::Config::defaults().delivery,
            linger: PATIENCE,
            leased: Arc::new(AtomicBool::new(true)),
            under_way: None,
            draining: Stop::new(),
            stop: stop.clone(),
            registry,
        };
        let watermark = Arc::new(AckWatermark::default());
        watermark.attach(DELIVERY, EntryId::ZERO);
        let start = ReaderCommand::Start {
            stream: stream.clone(),
            live: Slot { index: 0, generation: 1 },
            transform: 0,
            after: EntryId::ZERO,
            ordinal: Some(0),
            watermark: Arc::clone(&watermark),
        };
        to_reader.try_send(start).unwrap();
        let (ended, _) = bounded("ended", 1);
        let thread = thread::spawn("reader", &ended, move || Reader::new(parts).run()).unwrap();
        Self { stop, watermark, batches, _commands: to_reader, thread }
    }

    /// The id of the next entry.
    fn next_entry(&self) -> EntryId {
        let batch = self.batches.recv_timeout(PATIENCE).expect("the reader reads");
        match &batch.streams[..] {
            [LiveNews::Entries(_, entries)] => entries.last().expect("a batch has entries").id,
            news => panic!("{news:?}"),
        }
    }
}

/// The stop comes without a drain, at several times between two acknowledgements: while a read waits for news, and
/// when acknowledgements are due.
#[test]
fn a_stop_loses_no_acknowledgement() {
    let server = RedisServer::start(&[]);
    let keys = Arc::new(Keys::new("llm", "reader", "test"));
    let mut link = server.link();
    for (round, wait_ms) in [0, 300, 550, 700, 800, 900, 1_050].into_iter().enumerate() {
        let stream: StreamName = format!("session-{round}/model").parse().unwrap();
        let key = keys.stream(&stream);
        let add = |data: &str| Cmd::xadd(&key, "*", &[("data", data)]);
        link.query::<String>(&add("first")).unwrap();
        let running = Running::start(&server, &keys, &stream);
        let mut newest = running.next_entry();
        link.query::<String>(&add("second")).unwrap();
        while newest.to_string() != last_of(&mut link, &key) {
            newest = running.next_entry();
        }
        running.watermark.written(DELIVERY, newest);
        std::thread::sleep(Duration::from_millis(wait_ms));
        running.stop.request();
        running.thread.join();
        let groups = link.query::<::redis::streams::StreamInfoGroupsReply>(&Cmd::xinfo_groups(&key)).unwrap();
        assert_eq!(groups.groups[0].last_delivered_id, newest.to_string(), "stopped after {wait_ms} ms");
    }
}

fn last_of(link: &mut crate::redis::Link, key: &str) -> String {
    let last = link.query::<::redis::streams::StreamRangeReply>(&Cmd::xrevrange_count(key, "+", "-", 1));
    last.unwrap().ids[0].id.clone()
}
