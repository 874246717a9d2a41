//! The parts from which a transform thread is built: the ends of its queues, and the state that it shares with other threads.

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

/// One delivery thread as the transform threads see it.
#[derive(Clone)]
pub struct DeliveryPort {
    /// Its inbox.
    pub inbox: Sender<ToDelivery>,
    /// The queue for the outcomes of its history reads.
    pub history: Sender<ToDelivery>,
    /// The messages for which its inbox had no room; it fetches them here.
    pub missed: Arc<Mutex<Missed>>,
    /// Wakes the thread.
    pub waker: Arc<mio::Waker>,
}

/// The parts from which a transform thread is built.
pub struct WorkerParts {
    /// Requests of delivery threads, and answers of the recorder.
    pub control: Receiver<Control>,
    /// Live entries from the readers.
    pub live: Receiver<LiveBatch>,
    /// History reads from the replay threads.
    pub replay: Receiver<ReplayBatch>,
    /// The index of the transform thread.
    pub index: usize,
    /// How many transform threads there are.
    pub transforms: usize,
    /// The readers, by shard.
    pub readers: Vec<Sender<ReaderCommand>>,
    /// The delivery threads.
    pub deliveries: Vec<DeliveryPort>,
    /// Requests to the watcher to look for a stream.
    pub watcher_requests: Sender<WatcherRequest>,
    /// Requests to the recorder to end generations that have no end.
    pub ends: Sender<EndGeneration>,
    /// Entries that could not be decoded.
    pub letters: Sender<DeadLetter>,
    /// Generations that have ended and are yet to be acknowledged.
    pub receipts: Sender<Receipt>,
    /// Counts the bytes that were read from history and not sent yet.
    pub ledger: Arc<Ledger>,
    /// Where scans of long histories stood.
    pub checkpoints: Arc<Checkpoints>,
    /// Redis' clock.
    pub clock: Arc<RedisClock>,
    /// When producers count as silent or lost.
    pub stream: config::Stream,
    /// The settings that decoding needs beside the entries.
    pub context: DecodeContext,
    /// The metrics.
    pub registry: Arc<Registry>,
    /// Set when the thread is to end.
    pub stop: Stop,
}
