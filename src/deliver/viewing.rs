//! The viewers of a thread's streams: coming, opening, waiting, ending; and the hub that a stream's viewers share.

use std::time::{Duration, Instant};

use super::delivery::Delivery;
use super::format::Format;
use super::seam::{Live, Seam};
use super::sharing::JobKind;
use super::viewer::{Ending, Mark, Reading, Stage, SubscribeOptions, Wire};
use crate::message::{Control, Cursor, HubRef, Opened, Slot, WatcherRequest, now_us};
use crate::model::control_frames::{self, Unsubscribed};
use crate::model::{After, Position, StreamName, StreamStatus};

/// How long a stream that no viewer needs live is still read live.
const LIVE_LINGER: Duration = Duration::from_secs(1);

impl Delivery {
    // ----- coming and going -----

    /// A viewer comes; what it wants is looked for.
    pub(super) fn add_viewer(&mut self, connection: Slot, options: SubscribeOptions) -> Slot {
        let can_acknowledge = matches!(options.wire, Wire::WebSocket | Wire::Multiplexed);
        let receipts = self.config.stream.receipts && can_acknowledge;
        let viewer = self.streams.add_viewer(connection, options, receipts);
        self.look_up(viewer);
        viewer
    }

    /// A viewer goes, whatever it was doing.
    pub(super) fn remove_viewer(&mut self, slot: Slot, now: Instant) {
        self.promise(slot, 0);
        self.take_held(slot);
        self.pass_on_last_ack(slot, now);
        let Some((slot, hub)) = self.streams.remove_viewer(slot) else { return };
        let delivery = self.outbound.delivery();
        if hub.awaited {
            self.outbound.ask_watcher(WatcherRequest::Forget { stream: hub.stream.clone(), delivery });
        }
        if hub.live != Live::Off {
            let hub_ref = HubRef { slot, attach: hub.attach };
            self.outbound.control(Control::Detach { stream: hub.stream, delivery, hub: hub_ref });
        }
    }

    fn look_up(&mut self, slot: Slot) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        let kind = match viewer.options.wire {
            Wire::State => JobKind::State,
            Wire::Head => JobKind::Probe,
            _ => JobKind::Open(viewer.options.after),
        };
        self.add_job(slot, &kind);
    }
    // ----- opening -----

    pub(super) fn open(&mut self, slot: Slot, opened: &Opened, now: Instant) {
        let Some((viewer, hub)) = self.streams.viewer_and_hub(slot) else { return };
        let (follow, wire) = (viewer.options.follow, viewer.options.wire);
        if let Some(acks) = viewer.acks.as_deref_mut() {
            acks.note_had(opened.after);
        }
        let mut ends_unsaid = wire == Wire::Sse;
        if let Some(translator) = viewer.options.translator.as_deref_mut() {
            translator.begin(opened.after, opened.outline.as_deref());
            ends_unsaid |= translator.format() == Format::AiSdk;
        }
        let status = hub.status(opened.status, opened.tip);
        let is_finished = matches!(status, StreamStatus::Ended | StreamStatus::Failed);
        let is_unwanted = is_finished && viewer.wants_unfinished();
        if (opened.nothing_left || is_unwanted) && !follow {
            // A gap is told in any case.
            let is_unsaid = ends_unsaid && opened.shown.gap.is_none();
            if is_unwanted || is_unsaid && (wire == Wire::WebSocket || !self.has_begun(slot)) {
                return self.end(slot, Ending::NothingLeft, now);
            }
            self.begin_events(slot, now);
            self.say_open(slot, opened.after, status);
            return self.repeat_end(slot, opened, now);
        }
        self.begin_events(slot, now);
        self.say_open(slot, opened.after, status);
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        if let Some(translator) = &mut viewer.options.translator {
            translator.take_finished();
        }
        viewer.stage = Stage::Reading(Reading { seam: Seam::new(opened.from), anchor: Cursor::default() });
        self.show(slot, &opened.shown, false, now);
    }

    /// A viewer that has everything of a finished stream is given its end again, and is done.
    fn repeat_end(&mut self, slot: Slot, opened: &Opened, now: Instant) {
        self.begin_shown(slot, opened.shown.gap);
        if let Some(terminal) = &opened.terminal {
            self.push(slot, terminal, false);
        }
        if let Some(acks) = self.streams.acks(slot) {
            acks.begin(opened.from);
        }
        self.end(slot, Ending::Ended, now);
    }

    /// A viewer of a stream that cannot be looked at now is told where it begins, where that is known without
    /// looking.
    pub(super) fn open_unseen(&mut self, slot: Slot) {
        let Some(viewer) = self.streams.viewer(slot) else { return };
        if let After::At(after) = viewer.options.after {
            self.say_open(slot, after, StreamStatus::Waiting);
        }
    }

    fn say_open(&mut self, slot: Slot, after: Position, status: StreamStatus) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        if viewer.opened {
            return;
        }
        viewer.opened = true;
        let was_told = viewer.known_status.replace(status);
        if viewer.options.translator.is_none() {
            let json = control_frames::open(&viewer.options.stream, after, status);
            self.say(slot, None, &json);
        }
        // A client that was told of an outage is told of its end by the same frame as all others.
        if was_told == Some(StreamStatus::Degraded) && status == StreamStatus::Live {
            self.say(slot, None, &control_frames::status(status));
        }
        self.give_held(slot);
    }

    /// There is no such stream, or not any more.
    pub(super) fn miss(&mut self, slot: Slot, now: Instant) {
        let Some(viewer) = self.streams.viewer_mut(slot) else { return };
        let Some(deadline) = viewer.wait(now) else { return };
        if deadline <= now || self.may_be_gone(slot) {
            return self.end(slot, Ending::NotFound, now);
        }
        let Some(viewer) = self.streams.viewer(slot) else { return };
        let after = match viewer.options.after {
            After::At(position) => position,
            After::Last | After::Tail => Position::ZERO,
        };
        let (hub, connection, wire) = (viewer.hub, viewer.connection, viewer.options.wire);
        match wire {
            Wire::WebSocket | Wire::Multiplexed => {
                self.say_open(slot, after, StreamStatus::Waiting);
                self.tell(slot, StreamStatus::Waiting);
            }
            Wire::Sse if self.has_begun(slot) => self.tell(slot, StreamStatus::Waiting),
            Wire::Sse | Wire::State | Wire::Head => {}
        }
        self.connections.arm(connection, deadline);
        if let Some(stream) = self.streams.begin_waiting(hub) {
            let (stream, delivery) = (stream.clone(), self.outbound.delivery());
            self.outbound.ask_watcher(WatcherRequest::Wait { stream, delivery });
        }
    }

    /// A stream that was waited for is there.
    pub(super) fn appear(&mut self, stream: &StreamName) {
        let Some(slot) = self.streams.hub_by_name(stream) else { return };
        for viewer in self.streams.end_waiting(slot, now_us()) {
            let Some(found) = self.streams.viewer_mut(viewer) else { continue };
            let Stage::Waiting(waiting) = &mut found.stage else { continue };
            if std::mem::replace(&mut waiting.has_appeared, true) {
                continue;
            }
            match &mut waiting.reading {
                Some(reading) => {
                    let ask = reading.seam.read_to_end(Position::ZERO);
                    self.ask(viewer, ask);
                }
                None => {
                    // A name that was waited for is told from its beginning.
                    if !matches!(found.options.after, After::At(_)) {
                        found.options.after = After::At(Position::ZERO);
                    }
                    if let Some(translator) = &mut found.options.translator {
                        translator.take_finished();
                    }
                    self.look_up(viewer);
                }
            }
        }
    }

    /// Whether a wait has run out, it is ended.
    pub(super) fn judge_wait(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        match &self.streams.viewer(slot)?.stage {
            Stage::Waiting(waiting) if waiting.has_appeared => None,
            Stage::Waiting(waiting) if waiting.until <= now => {
                self.end(slot, Ending::NotFound, now);
                None
            }
            Stage::Waiting(waiting) => Some(waiting.until),
            Stage::Parting { .. } => self.judge_parting(slot, now),
            Stage::Opening | Stage::Reading(_) => None,
        }
    }

    /// The viewer's stream is over for it.
    pub(super) fn end(&mut self, slot: Slot, ending: Ending, now: Instant) {
        self.flush_batch(slot);
        if ending == Ending::Ended && self.parts_later(slot, now) {
            return;
        }
        let Some(viewer) = self.streams.viewer(slot) else { return };
        let (connection, wire, stream) =
            (viewer.connection, viewer.options.wire, viewer.options.stream.clone());
        if wire == Wire::Multiplexed {
            let reason = match ending {
                Ending::Ended | Ending::NothingLeft => Unsubscribed::Ended,
                Ending::NotFound => Unsubscribed::NotFound,
            };
            return self.unsubscribe(connection, &stream, reason, now);
        }
        if ending == Ending::Ended {
            self.say_done(slot);
        }
        self.end_connection(connection, slot, ending, now);
    }
    // ----- acknowledging and tidying -----

    /// A frame was taken by a socket.
    pub(super) fn written(&mut self, mark: &Mark) {
        let Some(viewer) = self.streams.viewer_mut(mark.viewer) else { return };
        viewer.unwritten = viewer.unwritten.saturating_sub(1);
        // Where one frame of several was written, the entry is not.
        if mark.frame.last.is_whole() {
            viewer.written = mark.frame.last.id;
        }
        let hub = viewer.hub;
        self.streams.note_unreported(hub);
    }

    /// Reports how far each stream is on the sockets, and lets go of live text that nobody needs.
    pub(super) fn report_written(&mut self, now: Instant) {
        for slot in self.streams.take_unreported() {
            let Some(hub) = self.streams.hub(slot) else { continue };
            if let Some(watermark) = &hub.watermark {
                watermark.written(self.outbound.delivery(), self.streams.written_up_to(hub));
            }
            if !matches!(hub.live, Live::On(_)) {
                continue;
            }
            let is_needed = self.streams.is_needed_live(hub);
            let Some(hub) = self.streams.hub_mut(slot) else { continue };
            if is_needed {
                hub.idle_since = None;
            } else if now.duration_since(*hub.idle_since.get_or_insert(now)) < LIVE_LINGER {
                self.streams.note_unreported(slot);
            } else {
                let hub_ref = HubRef { slot, attach: hub.attach };
                let (stream, delivery) = (hub.stream.clone(), self.outbound.delivery());
                hub.leave_live();
                self.outbound.control(Control::Detach { stream, delivery, hub: hub_ref });
            }
        }
    }

    /// A transform thread had no room for what concerned these: hubs go back to history, jobs are asked again.
    pub(super) fn catch_up(&mut self) {
        let missed = std::mem::take(&mut *self.inbound.missed.lock());
        for hub in missed.hubs {
            self.broken(hub);
        }
        for (job, step) in missed.jobs {
            self.send_job(job, step);
        }
    }
}
