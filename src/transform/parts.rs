//! The parts given to a transform thread: the ends of its queues, and the state it shares with other threads.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::config;
use crate::decode::DecodeContext;
use crate::decode::checkpoints::Checkpoints;
use crate::message::record::{DeadLetter, EndGeneration, Receipt};
use crate::message::{
    Control, LiveBatch, Missed, ReaderCommand, RedisClock, ReplayBatch, ToDelivery, WatcherRequest,
};
use crate::model::Ledger;
use crate::observe::Registry;
use crate::queue::{Receiver, Sender};
use crate::stop::Stop;

/// One delivery thread as seen from here.
#[derive(Clone)]
pub struct DeliveryPort {
    /// Its inbox.
    pub inbox: Sender<ToDelivery>,
    /// Its queue for the outcomes of its history reads.
    pub history: Sender<ToDelivery>,
    /// The messages that its inbox had no room for; it fetches them here.
    pub missed: Arc<Mutex<Missed>>,
    /// Wakes it.
    pub waker: Arc<mio::Waker>,
}

/// The parts given to a transform thread.
pub struct WorkerParts {
    /// Requests of delivery threads, and answers of the recorder.
    pub control: Receiver<Control>,
    /// Live entries from the readers.
    pub live: Receiver<LiveBatch>,
    /// History reads from the replay threads.
    pub replay: Receiver<ReplayBatch>,
    /// Which transform thread it is.
    pub index: usize,
    /// How many there are.
    pub transforms: usize,
    /// The readers, by shard.
    pub readers: Vec<Sender<ReaderCommand>>,
    /// The delivery threads.
    pub deliveries: Vec<DeliveryPort>,
    /// Requests to the watcher to look for a stream.
    pub watcher_requests: Sender<WatcherRequest>,
    /// Ends of generations that nobody else writes.
    pub ends: Sender<EndGeneration>,
    /// Entries that could not be understood.
    pub letters: Sender<DeadLetter>,
    /// Generations that are over and yet to be acknowledged.
    pub receipts: Sender<Receipt>,
    /// The bytes that were read from history and are not sent yet.
    pub ledger: Arc<Ledger>,
    /// Where scans of long histories stood.
    pub checkpoints: Arc<Checkpoints>,
    /// Redis' time.
    pub clock: Arc<RedisClock>,
    /// How producers are judged.
    pub stream: config::Stream,
    /// The settings that decoding needs beside the entries.
    pub context: DecodeContext,
    /// Where to count.
    pub registry: Arc<Registry>,
    /// When to end.
    pub stop: Stop,
}
