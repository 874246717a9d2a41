//! A delivery loop's messages to other threads. The loop never waits for a queue: if another thread has no room for a
//! message, the message is held here and offered again, in order.
//!
//! Bounded: at most one read for each job, one attach and one detach for each stream, and one wait for each name.

use std::collections::VecDeque;

use crate::message::record::{CancelRequest, Receipt};
use crate::message::{Control, JobRef, ReplayRequest, ReplayStep, Slot, WatcherRequest, now_us, shard};
use crate::model::StreamName;
use crate::queue::{SendError, Sender};

/// The queues of the threads that a delivery thread sends to, except for other delivery threads.
pub struct OutboundQueues {
    /// The replay threads' queue.
    pub replays: Sender<ReplayRequest>,
    /// The transform threads' queues, by shard.
    pub transforms: Vec<Sender<Control>>,
    /// The watcher's queue.
    pub watcher_requests: Sender<WatcherRequest>,
    /// Cancel requests, for the recorder to write.
    pub cancels: Sender<CancelRequest>,
    /// Acknowledgements of clients, for the recorder to write.
    pub receipts: Sender<Receipt>,
}

/// The queues of other threads, and the messages held for them.
pub(super) struct Outbound {
    delivery: usize,
    queues: OutboundQueues,
    requests: VecDeque<ReplayRequest>,
    /// Messages to transform threads, each with the thread's index.
    controls: VecDeque<(usize, Control)>,
    watcher_requests: VecDeque<WatcherRequest>,
}

impl Outbound {
    /// The outbound messages of the delivery thread with this index.
    pub(super) fn new(delivery: usize, queues: OutboundQueues) -> Self {
        let (requests, controls, watcher_requests) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { delivery, queues, requests, controls, watcher_requests }
    }

    /// The index of the delivery thread, to which other threads send their answers.
    pub(super) const fn delivery(&self) -> usize {
        self.delivery
    }

    /// Queues a job's next history read, for at most `count` entries and `budget_bytes` bytes. `appeared_us` is set if
    /// the stream is known to have appeared.
    pub(super) fn request(
        &mut self,
        job: Slot,
        (stream, appeared_us): (StreamName, Option<u64>),
        step: ReplayStep,
        (count, budget_bytes): (usize, usize),
    ) {
        let (job, asked_us) = (JobRef { delivery: self.delivery, slot: job }, now_us());
        self.requests.push_back(ReplayRequest {
            stream,
            job,
            step,
            count,
            budget_bytes,
            asked_us,
            appeared_us,
            jump: None,
        });
    }

    /// Queues a message to the stream's transform thread.
    pub(super) fn control(&mut self, control: Control) {
        let (Control::Attach { stream, .. }
        | Control::Detach { stream, .. }
        | Control::EndAnswered { stream, .. }) = &control;
        let transform = shard(stream, self.queues.transforms.len());
        self.controls.push_back((transform, control));
    }

    /// Queues a request to the watcher.
    pub(super) fn ask_watcher(&mut self, request: WatcherRequest) {
        self.watcher_requests.push_back(request);
    }

    /// Sends a cancel request to the recorder at once. Returns whether its queue had room.
    pub(super) fn cancel(&self, request: CancelRequest) -> bool {
        self.queues.cancels.try_send(request).is_ok()
    }

    /// Sends a receipt to the recorder at once. Returns whether its queue had room.
    pub(super) fn receipt(&self, receipt: Receipt) -> bool {
        self.queues.receipts.try_send(receipt).is_ok()
    }

    /// Sends the messages for which there is room. Returns the jobs whose reads were not sent because no viewer wants
    /// them any more.
    pub(super) fn send(&mut self, is_wanted: impl Fn(Slot) -> bool) -> Vec<Slot> {
        let mut unwanted = Vec::new();
        while let Some(request) = self.requests.pop_front() {
            if !is_wanted(request.job.slot) {
                unwanted.push(request.job.slot);
                continue;
            }
            if let Err(SendError::Full(request)) = self.queues.replays.try_send(request) {
                self.requests.push_front(request);
                break;
            }
        }
        while let Some((transform, control)) = self.controls.pop_front() {
            if let Err(SendError::Full(control)) = self.queues.transforms[transform].try_send(control) {
                self.controls.push_front((transform, control));
                break;
            }
        }
        while let Some(request) = self.watcher_requests.pop_front() {
            if let Err(SendError::Full(request)) = self.queues.watcher_requests.try_send(request) {
                self.watcher_requests.push_front(request);
                break;
            }
        }
        unwanted
    }

    /// Whether no message waits for room.
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.controls.is_empty() && self.watcher_requests.is_empty()
    }
}
