//! A delivery loop's messages to other threads. The loop never waits for a queue: a message for which another thread
//! has no room is held here and offered again, in its order.
//!
//! Bounded: at most one read for each job, one attach and one detach for each stream, one wait for each name.

use std::collections::VecDeque;

use crate::message::record::{CancelRequest, Receipt};
use crate::message::{Control, JobRef, ReplayRequest, ReplayStep, Slot, WatcherRequest, now_us, shard};
use crate::model::StreamName;
use crate::queue::{SendError, Sender};

/// The queues of the threads that a delivery thread sends to, without its peers.
pub struct OutboundQueues {
    /// The replay threads' queue.
    pub replays: Sender<ReplayRequest>,
    /// The transform threads, by shard.
    pub transforms: Vec<Sender<Control>>,
    /// The watcher.
    pub watcher_requests: Sender<WatcherRequest>,
    /// Requests to cancel, to be written by the recorder.
    pub cancels: Sender<CancelRequest>,
    /// Acknowledgements of clients, to be written by the recorder.
    pub receipts: Sender<Receipt>,
}

/// The queues of other threads, and the messages held for them.
pub(super) struct Outbound {
    delivery: usize,
    queues: OutboundQueues,
    requests: VecDeque<ReplayRequest>,
    /// With the index of the transform thread.
    controls: VecDeque<(usize, Control)>,
    watcher_requests: VecDeque<WatcherRequest>,
}

impl Outbound {
    /// The messages of the delivery thread with this index.
    pub(super) fn new(delivery: usize, queues: OutboundQueues) -> Self {
        let (requests, controls, watcher_requests) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { delivery, queues, requests, controls, watcher_requests }
    }

    /// The index of the delivery thread, by which others answer it.
    pub(super) const fn delivery(&self) -> usize {
        self.delivery
    }

    /// Asks for a job's next history read of a stream, which may be known to have appeared, with at most `count` entries and so many bytes.
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

    /// Tells the stream's transform thread.
    pub(super) fn control(&mut self, control: Control) {
        let (Control::Attach { stream, .. }
        | Control::Detach { stream, .. }
        | Control::EndAnswered { stream, .. }) = &control;
        let transform = shard(stream, self.queues.transforms.len());
        self.controls.push_back((transform, control));
    }

    /// Asks the watcher.
    pub(super) fn ask_watcher(&mut self, request: WatcherRequest) {
        self.watcher_requests.push_back(request);
    }

    /// Hands a request to cancel to the recorder at once; whether it had room.
    pub(super) fn cancel(&self, request: CancelRequest) -> bool {
        self.queues.cancels.try_send(request).is_ok()
    }

    /// Hands a receipt to the recorder at once; whether it had room.
    pub(super) fn receipt(&self, receipt: Receipt) -> bool {
        self.queues.receipts.try_send(receipt).is_ok()
    }

    /// Sends the messages for which there is room. Returns the jobs whose reads were not sent because nobody wants them
    /// any more.
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

    /// Whether a message waits for room.
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.controls.is_empty() && self.watcher_requests.is_empty()
    }
}
