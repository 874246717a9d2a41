//! The viewers of a delivery thread: the position of each in its stream, and the frames that it is sent next.
//!
//! [`Views`] owns the streams, their viewers and their history reads. It uses no socket and no thread: its callers pass
//! it the events and the time, on which all its decisions depend. It reads the system's clock only for timestamps that
//! it passes on, in acknowledgements and for latencies. Bytes for clients and requests to other threads go to the
//! [`Context`] of the call. The end of a viewer becomes an [`Effect`], which the caller carries out after the call,
//! because it concerns the connection of the client as well.
//!
//! Methods are of four kinds:
//!
//! - A viewer is added or removed, or its client acknowledges frames: [`Views::add_viewer`], [`Views::remove_viewer`],
//!   [`Views::leave`], [`Views::acknowledge`].
//! - Another thread has sent a message: `live`, `attached`, `broken`, `stalled`, `complete_job`, `appeared`,
//!   `ack_answered`.
//! - A socket has accepted bytes, or time has passed: `written`, `resume_paused`, `check_deadlines`, `retry_jobs`,
//!   `tick`.
//! - After any of these: [`Views::next_effect`] until there is none, then [`Views::send_fresh_jobs`] before the loop
//!   sleeps. These two are the only ones whose order matters.

mod acks;
mod feed;
mod jobs;
mod opening;
mod output;

pub(super) use acks::{ClientAck, not_sent};

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::config::Config;
use crate::deliver::budget::Budget;
use crate::deliver::connections::Connections;
use crate::deliver::history_reads::HistoryReads;
use crate::deliver::http_error::HttpError;
use crate::deliver::outbound::Outbound;
use crate::deliver::seam::Live;
use crate::deliver::sharing::JobKind;
use crate::deliver::streams::Streams;
use crate::deliver::viewer::{ClosedSubscription, Ending, Mark, SubscribeOptions, Viewer, Wire};
use crate::message::{Control, HubRef, LiveFrames, Slot, WatcherRequest};
use crate::observe::Registry;

/// How long a stream is still read live when no viewer needs that any more.
const LIVE_LINGER: Duration = Duration::from_secs(1);

/// The context of a call: the receivers of bytes and requests, and the time.
pub(super) struct Context<'a> {
    /// The connections of the viewers, which accept their bytes.
    pub(super) clients: &'a mut Connections,
    /// Requests to other threads.
    pub(super) outbound: &'a mut Outbound,
    pub(super) now: Instant,
}

/// The end of a viewer, which the caller carries out on its connection.
#[derive(Debug)]
pub(super) enum Effect {
    /// The stream of the viewer is over.
    Ended { viewer: Slot, ending: Ending },
    /// The answer to the request of a viewer that wants a single answer.
    Answered { viewer: Slot, answer: WholeAnswer },
}

/// The answer to a request about a stream that is not answered with frames.
#[derive(Debug)]
pub(super) enum WholeAnswer {
    /// The state of the stream, as one JSON document.
    State(Bytes),
    /// The stream exists.
    Exists,
    Error(HttpError),
}

/// All viewers of a delivery thread.
pub(super) struct Views {
    streams: Streams,
    reads: HistoryReads,
    /// The memory budget of the whole process for answers that are sent as one document.
    answers: Arc<Budget>,
    config: Arc<Config>,
    registry: Arc<Registry>,
    effects: VecDeque<Effect>,
    /// Whether the instance drains. Clients get no more time to acknowledge an end then.
    is_draining: bool,
}

impl Views {
    /// Creates an empty set of viewers.
    pub(super) fn new(config: Arc<Config>, answers: Arc<Budget>, registry: &Arc<Registry>) -> Self {
        Self {
            streams: Streams::new(Arc::clone(registry)),
            reads: HistoryReads::new(Arc::clone(registry)),
            answers,
            config,
            registry: Arc::clone(registry),
            effects: VecDeque::new(),
            is_draining: false,
        }
    }

    /// Removes and returns the next effect of the preceding calls.
    pub(super) fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    // ----- adding and removing -----

    /// Adds a viewer, and requests the read that finds its start.
    pub(super) fn add_viewer(
        &mut self,
        connection: Slot,
        options: SubscribeOptions,
        cx: &mut Context<'_>,
    ) -> Slot {
        let can_acknowledge = matches!(options.wire, Wire::WebSocket | Wire::Multiplexed);
        let receipts = self.config.stream.receipts && can_acknowledge;
        let viewer = self.streams.add_viewer(connection, options, receipts);
        self.request_start(viewer, cx);
        viewer
    }

    /// Removes a viewer at any stage.
    pub(super) fn remove_viewer(&mut self, slot: Slot, cx: &mut Context<'_>) {
        self.promise(slot, 0, cx);
        self.take_held(slot, cx);
        self.pass_on_last_ack(slot, cx);
        let Some((slot, hub)) = self.streams.remove_viewer(slot) else { return };
        let delivery = cx.outbound.delivery();
        // Nobody is left to whom anything is to be written: clients that lack something resume from history.
        if let Some(watermark) = &hub.watermark {
            watermark.written(delivery, hub.passed);
        }
        if hub.awaited {
            cx.outbound.ask_watcher(WatcherRequest::Forget { stream: hub.stream.clone(), delivery });
        }
        if hub.live != Live::Off {
            let hub_ref = HubRef { slot, attach: hub.attach };
            cx.outbound.control(Control::Detach { stream: hub.stream, delivery, hub: hub_ref });
        }
    }

    /// Removes a viewer from a connection that stays open. Answers that were held for its client are sent. The
    /// returned state lets the client still acknowledge frames that it was sent.
    pub(super) fn leave(&mut self, slot: Slot, cx: &mut Context<'_>) -> Option<ClosedSubscription> {
        self.flush_batch(slot, cx);
        self.pass_on_last_ack(slot, cx);
        self.send_held(slot, cx);
        let closed = self.streams.viewer_mut(slot).and_then(|viewer| {
            let acks = viewer.acks.take()?;
            let anchor = viewer.given().cloned().unwrap_or_default();
            Some(ClosedSubscription { stream: viewer.options.stream.clone(), acks, anchor })
        });
        self.remove_viewer(slot, cx);
        closed
    }

    fn request_start(&mut self, slot: Slot, cx: &mut Context<'_>) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        let kind = match viewer.options.wire {
            Wire::State => JobKind::State,
            Wire::Head => JobKind::Probe,
            _ => JobKind::Open(viewer.options.after),
        };
        self.add_job(slot, &kind, cx);
    }

    // ----- queries -----

    /// The viewer with this slot, if it still exists.
    pub(super) fn viewer(&self, slot: Slot) -> Option<&Viewer> {
        self.streams.viewer(slot)
    }

    /// The number of viewers to which these live frames will be sent.
    pub(super) fn audience(&self, news: &[LiveFrames]) -> usize {
        let hubs = news.iter().filter_map(|news| self.streams.hub(news.hub.slot));
        hubs.map(|hub| hub.viewers.len()).sum()
    }

    /// The number of viewers.
    #[cfg(test)]
    pub(super) fn viewers_len(&self) -> usize {
        self.streams.viewers_len()
    }

    /// Amounts that must be 0 when no client is left.
    #[cfg(test)]
    pub(super) fn held(&self) -> Vec<(&'static str, usize)> {
        let effects = [("effects", self.effects.len())];
        self.streams.held().into_iter().chain(self.reads.held()).chain(effects).collect()
    }

    // ----- time -----

    /// Handles the deadlines of a viewer that have passed. Returns when to check it again.
    pub(super) fn check_deadlines(&mut self, slot: Slot, cx: &mut Context<'_>) -> Option<Instant> {
        let times = [self.check_wait(slot, cx), self.check_batch(slot, cx)];
        times.into_iter().flatten().min()
    }

    /// Does the periodic work: reports positions and acknowledgements.
    pub(super) fn tick(&mut self, cx: &mut Context<'_>) {
        self.report_written(cx);
        self.pass_on_acks(cx);
    }

    /// Records that the instance drains.
    pub(super) fn drain(&mut self) {
        self.is_draining = true;
    }

    // ----- positions -----

    /// Records that a socket has accepted a frame.
    pub(super) fn written(&mut self, mark: &Mark) {
        let Some(viewer) = self.streams.viewer_mut(mark.viewer) else { return };
        viewer.unwritten = viewer.unwritten.saturating_sub(1);
        // An entry counts as written when its last frame is written.
        if mark.frame.last.is_whole() {
            viewer.written = mark.frame.last.id;
        }
        let hub = viewer.hub;
        self.streams.note_unreported(hub);
    }

    /// Reports the position up to which each stream was written to sockets, and detaches from streams that no viewer
    /// needs live.
    fn report_written(&mut self, cx: &mut Context<'_>) {
        for slot in self.streams.take_unreported() {
            let Some(hub) = self.streams.hub(slot) else { continue };
            if let Some(watermark) = &hub.watermark {
                watermark.written(cx.outbound.delivery(), self.streams.written_up_to(hub));
            }
            if !matches!(hub.live, Live::On(_)) {
                continue;
            }
            let is_needed = self.streams.is_needed_live(hub);
            let Some(hub) = self.streams.hub_mut(slot) else { continue };
            if is_needed {
                hub.idle_since = None;
            } else if cx.now.duration_since(*hub.idle_since.get_or_insert(cx.now)) < LIVE_LINGER {
                self.streams.note_unreported(slot);
            } else {
                let hub_ref = HubRef { slot, attach: hub.attach };
                let (stream, delivery) = (hub.stream.clone(), cx.outbound.delivery());
                hub.leave_live();
                cx.outbound.control(Control::Detach { stream, delivery, hub: hub_ref });
            }
        }
    }
}
