//! What a transform thread works with: the ends of its queues, and what it shares with others.

use std::sync::Arc;

use parking_lot::Mutex;

use super::DecodeContext;
use crate::config;
use crate::event::Ledger;
use crate::event::checkpoints::Checkpoints;
use crate::event::message::{
    Control, Errand, LiveBatch, Missed, ReaderCommand, RedisClock, ReplayBatch, ToDelivery,
};
use crate::event::record::{DeadLetter, EndGeneration, Receipt};
use crate::observe::Registry;
use crate::queue::{Receiver, Sender};
use crate::stop::Stop;

/// One delivery thread as seen from here.
#[derive(Clone)]
pub struct DeliveryPort {
    /// Its inbox.
    pub inbox: Sender<ToDelivery>,
    /// What takes the outcomes of its history reads.
    pub history: Sender<ToDelivery>,
    /// Where it finds what its inbox had no room for.
    pub missed: Arc<Mutex<Missed>>,
    /// Wakes it.
    pub waker: Arc<mio::Waker>,
}

/// What a transform thread works with.
pub struct WorkerParts {
    /// What delivery threads ask.
    pub control: Receiver<Control>,
    /// What readers have read.
    pub live: Receiver<LiveBatch>,
    /// What replay threads have read.
    pub replay: Receiver<ReplayBatch>,
    /// Which transform thread it is.
    pub index: usize,
    /// How many there are.
    pub transforms: usize,
    /// The readers, by shard.
    pub readers: Vec<Sender<ReaderCommand>>,
    /// The delivery threads.
    pub deliveries: Vec<DeliveryPort>,
    /// What the watcher is asked to look for.
    pub errands: Sender<Errand>,
    /// Ends of generations that nobody else writes.
    pub ends: Sender<EndGeneration>,
    /// Entries that could not be understood.
    pub letters: Sender<DeadLetter>,
    /// Generations that are over and yet to be acknowledged.
    pub receipts: Sender<Receipt>,
    /// What was read from history and is not sent yet.
    pub ledger: Arc<Ledger>,
    /// Where scans of long histories stood.
    pub checkpoints: Arc<Checkpoints>,
    /// Redis' time.
    pub clock: Arc<RedisClock>,
    /// How producers are judged.
    pub stream: config::Stream,
    /// What decoding depends on beside the entries.
    pub context: DecodeContext,
    /// Where to count.
    pub registry: Arc<Registry>,
    /// When to end.
    pub stop: Stop,
}
