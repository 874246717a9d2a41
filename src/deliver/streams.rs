//! The viewers of a thread's streams: coming, opening, waiting, ending; and the hub that a stream's viewers share.

use std::time::{Duration, Instant};

use super::delivery::Delivery;
use super::format::Format;
use super::seam::{Live, Seam};
use super::table::Table;
use super::taking::Taking;
use super::viewer::{Hub, JobKind, Mark, Stage, Viewer, Wire, Wish};
use crate::event::message::{Control, Cursor, Errand, HubRef, Opened, Slot};
use crate::event::notice::{self, Unsubscribed};
use crate::event::{After, EntryId, Phase, Position, StreamName, StreamStatus};

/// Assumed size of an entry before any was seen, in bytes.
const ENTRY_BYTES_GUESS: usize = 128;
/// How long a stream that no viewer needs live is still read live.
const LIVE_LINGER: Duration = Duration::from_secs(1);

/// Why a viewer's stream is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Its terminal frame was sent.
    Ended,
    /// There is no such stream.
    NotFound,
    /// Nothing is left to tell, which is an answer of its own.
    NothingLeft,
}

impl Delivery {
    // ----- coming and going -----

    /// A viewer comes; what it wants is looked for.
    pub(super) fn add_viewer(&mut self, connection: Slot, wish: Wish) -> Slot {
        let hub = self.hub_of(&wish.stream);
        let place = self.hubs.get(hub).map_or(0, |hub| hub.viewers.len());
        let can_acknowledge = matches!(wish.wire, Wire::WebSocket | Wire::Multiplexed);
        let taking = (self.config.stream.receipts && can_acknowledge).then(Box::<Taking>::default);
        let viewer = self.viewers.insert(Viewer {
            connection,
            hub,
            wish,
            stage: Stage::Opening,
            seam: None,
            anchor: Cursor::default(),
            opened: false,
            held: None,
            told: None,
            unwritten: 0,
            written: EntryId::ZERO,
            batch: None,
            entry_bytes: ENTRY_BYTES_GUESS,
            promised: 0,
            taking,
            place,
        });
        if let Some(hub) = self.hubs.get_mut(hub) {
            hub.viewers.push(viewer);
        }
        self.registry.gauges().subscriptions_open.inc();
        self.registry.counters().subscriptions.inc();
        self.look_up(viewer);
        viewer
    }

    /// A viewer goes, whatever it was doing.
    pub(super) fn remove_viewer(&mut self, slot: Slot) {
        self.promise(slot, 0);
        self.take_held(slot);
        self.pass_on_last_ack(slot);
        let Some(viewer) = self.viewers.remove(slot) else { return };
        self.registry.gauges().subscriptions_open.dec();
        let Some(hub) = self.hubs.get_mut(viewer.hub) else { return };
        hub.viewers.swap_remove(viewer.place);
        self.unreported.note(viewer.hub, hub);
        if let Some(&moved) = hub.viewers.get(viewer.place)
            && let Some(moved) = self.viewers.get_mut(moved)
        {
            moved.place = viewer.place;
        }
        if self.hubs.get(viewer.hub).is_some_and(|hub| hub.viewers.is_empty()) {
            self.remove_hub(viewer.hub);
        }
    }

    fn hub_of(&mut self, stream: &StreamName) -> Slot {
        if let Some(&hub) = self.hub_by_name.get(stream) {
            return hub;
        }
        let hub = self.hubs.insert(Hub {
            stream: stream.clone(),
            viewers: Vec::new(),
            live: Live::Off,
            attach: 0,
            passed: EntryId::ZERO,
            phase: Phase::Idle,
            stalled: false,
            board: None,
            unreported: false,
            awaited: false,
            idle_since: None,
        });
        self.hub_by_name.insert(stream.clone(), hub);
        hub
    }

    fn remove_hub(&mut self, slot: Slot) {
        let Some(hub) = self.hubs.remove(slot) else { return };
        self.hub_by_name.remove(&hub.stream);
        if hub.awaited {
            self.registry.gauges().streams_waited.dec();
            self.errand(Errand::Forget { stream: hub.stream.clone(), delivery: self.index });
        }
        if hub.live != Live::Off {
            let name = HubRef { slot, attach: hub.attach };
            self.control(Control::Detach { stream: hub.stream, delivery: self.index, hub: name });
        }
    }

    fn look_up(&mut self, slot: Slot) {
        let Some(viewer) = self.viewers.get(slot) else { return };
        let kind = match viewer.wish.wire {
            Wire::State => JobKind::State,
            Wire::Head => JobKind::Probe,
            _ => JobKind::Open(viewer.wish.after),
        };
        self.add_job(slot, kind);
    }
    // ----- opening -----

    pub(super) fn open(&mut self, slot: Slot, opened: &Opened, now: Instant) {
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        let (follow, wire) = (viewer.wish.follow, viewer.wish.wire);
        if let Some(taking) = viewer.taking.as_deref_mut() {
            taking.note_had(opened.after);
        }
        let mut ends_unsaid = wire == Wire::Sse;
        if let Some(translator) = viewer.wish.translator.as_deref_mut() {
            translator.begin(opened.after, opened.outline.as_deref());
            ends_unsaid |= translator.format() == Format::AiSdk;
        }
        let status =
            self.hubs.get(viewer.hub).map_or(opened.status, |hub| hub.status(opened.status, opened.tip));
        let is_finished = matches!(status, StreamStatus::Ended | StreamStatus::Failed);
        let is_unwanted = is_finished && viewer.wants_unfinished();
        if (opened.nothing_left || is_unwanted) && !follow {
            if ends_unsaid && (is_unwanted || wire == Wire::WebSocket || !self.has_begun(slot)) {
                return self.end(slot, Ending::NothingLeft, now);
            }
            self.begin_events(slot, now);
            self.say_open(slot, opened.after, status);
            if let Some(terminal) = &opened.terminal {
                self.push(slot, terminal, false);
            }
            if let Some(taking) = self.taking(slot) {
                taking.begin(opened.after);
            }
            return self.end(slot, Ending::Ended, now);
        }
        self.begin_events(slot, now);
        self.say_open(slot, opened.after, status);
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        if let Some(translator) = &mut viewer.wish.translator {
            translator.take_finished();
        }
        viewer.stage = Stage::Reading;
        viewer.seam = Some(Seam::new(opened.from));
        self.show(slot, &opened.shown, false, now);
    }

    /// A viewer of a stream that cannot be looked at now is told where it begins, where that is known without
    /// looking.
    pub(super) fn open_unseen(&mut self, slot: Slot) {
        let Some(viewer) = self.viewers.get(slot) else { return };
        if let After::At(after) = viewer.wish.after {
            self.say_open(slot, after, StreamStatus::Waiting);
        }
    }

    fn say_open(&mut self, slot: Slot, after: Position, status: StreamStatus) {
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        if viewer.opened {
            return;
        }
        viewer.opened = true;
        let was_told = viewer.told.replace(status);
        if viewer.wish.translator.is_none() {
            let json = notice::open(&viewer.wish.stream, after, status);
            self.say(slot, None, &json);
        }
        // A client that was told of an outage is told of its end by the same frame as all others.
        if was_told == Some(StreamStatus::Degraded) && status == StreamStatus::Live {
            self.say(slot, None, &notice::status(status));
        }
        self.give_held(slot);
    }

    /// There is no such stream, or not any more.
    pub(super) fn miss(&mut self, slot: Slot, now: Instant) {
        let Some(viewer) = self.viewers.get_mut(slot) else { return };
        let deadline = match viewer.stage {
            Stage::Waiting(deadline) | Stage::Returning(deadline) => deadline,
            Stage::Opening | Stage::Reading => now + viewer.wish.wait,
            Stage::Parting(_) => return,
        };
        viewer.stage = Stage::Waiting(deadline);
        if deadline <= now || self.may_be_gone(slot) {
            return self.end(slot, Ending::NotFound, now);
        }
        let Some(viewer) = self.viewers.get(slot) else { return };
        let after = match viewer.wish.after {
            After::At(position) => position,
            After::Last | After::Tail => Position::ZERO,
        };
        let (hub, connection, wire) = (viewer.hub, viewer.connection, viewer.wish.wire);
        match wire {
            Wire::WebSocket | Wire::Multiplexed => {
                self.say_open(slot, after, StreamStatus::Waiting);
                self.tell(slot, StreamStatus::Waiting);
            }
            Wire::Sse if self.has_begun(slot) => self.tell(slot, StreamStatus::Waiting),
            Wire::Sse | Wire::State | Wire::Head => {}
        }
        self.arm(connection, deadline);
        let Some(hub) = self.hubs.get_mut(hub) else { return };
        if !std::mem::replace(&mut hub.awaited, true) {
            let stream = hub.stream.clone();
            self.registry.gauges().streams_waited.inc();
            self.errand(Errand::Wait { stream, delivery: self.index });
        }
    }

    /// A stream that was waited for is there.
    pub(super) fn appear(&mut self, stream: &StreamName) {
        let Some(&slot) = self.hub_by_name.get(stream) else { return };
        let Some(hub) = self.hubs.get_mut(slot) else { return };
        if std::mem::replace(&mut hub.awaited, false) {
            self.registry.gauges().streams_waited.dec();
        }
        for viewer in hub.viewers.clone() {
            let Some(found) = self.viewers.get_mut(viewer) else { continue };
            let Stage::Waiting(deadline) = found.stage else { continue };
            found.stage = Stage::Returning(deadline);
            match &mut found.seam {
                Some(seam) => {
                    let ask = seam.read_to_end(Position::ZERO);
                    self.ask(viewer, ask);
                }
                None => {
                    // A name that was waited for is told from its beginning.
                    if !matches!(found.wish.after, After::At(_)) {
                        found.wish.after = After::At(Position::ZERO);
                    }
                    if let Some(translator) = &mut found.wish.translator {
                        translator.take_finished();
                    }
                    self.look_up(viewer);
                }
            }
        }
    }

    /// Whether a wait has run out, it is ended.
    pub(super) fn judge_wait(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        match self.viewers.get(slot)?.stage {
            Stage::Waiting(deadline) if deadline <= now => {
                self.end(slot, Ending::NotFound, now);
                None
            }
            Stage::Waiting(deadline) => Some(deadline),
            Stage::Parting(_) => self.judge_parting(slot, now),
            Stage::Opening | Stage::Returning(_) | Stage::Reading => None,
        }
    }
    /// The viewer's stream is over for it.
    pub(super) fn end(&mut self, slot: Slot, ending: Ending, now: Instant) {
        self.flush_batch(slot);
        if ending == Ending::Ended && self.parts_later(slot, now) {
            return;
        }
        let Some(viewer) = self.viewers.get(slot) else { return };
        let (connection, wire, stream) = (viewer.connection, viewer.wish.wire, viewer.wish.stream.clone());
        if wire == Wire::Multiplexed {
            let reason = match ending {
                Ending::Ended | Ending::NothingLeft => Unsubscribed::Ended,
                Ending::NotFound => Unsubscribed::NotFound,
            };
            return self.unsubscribe(connection, &stream, reason);
        }
        if ending == Ending::Ended {
            self.say_done(slot);
        }
        self.end_connection(connection, slot, ending, now);
    }
    // ----- acknowledging and tidying -----

    /// A frame was taken by a socket.
    pub(super) fn written(&mut self, mark: &Mark) {
        let Some(viewer) = self.viewers.get_mut(mark.viewer) else { return };
        viewer.unwritten = viewer.unwritten.saturating_sub(1);
        // Where one frame of several was written, the entry is not.
        if mark.frame.last.is_whole() {
            viewer.written = mark.frame.last.id;
        }
        let hub = viewer.hub;
        self.note_unreported(hub);
    }

    /// Reports how far each stream is on the sockets, and lets go of live text that nobody needs.
    pub(super) fn report_written(&mut self, now: Instant) {
        for slot in self.unreported.take() {
            let Some(hub) = self.hubs.get_mut(slot) else { continue };
            hub.unreported = false;
            if let Some(board) = &hub.board {
                board.written(self.index, written_up_to(hub, &self.viewers));
            }
            if !matches!(hub.live, Live::On(_)) {
                continue;
            }
            let needed = hub.viewers.iter().filter_map(|&viewer| self.viewers.get(viewer));
            if needed.filter_map(|viewer| viewer.seam.as_ref()).any(Seam::needs_live) {
                hub.idle_since = None;
            } else if now.duration_since(*hub.idle_since.get_or_insert(now)) < LIVE_LINGER {
                self.unreported.note(slot, hub);
            } else {
                let (stream, name) = (hub.stream.clone(), HubRef { slot, attach: hub.attach });
                hub.live = Live::Off;
                hub.attach += 1;
                hub.board = None;
                hub.idle_since = None;
                self.control(Control::Detach { stream, delivery: self.index, hub: name });
            }
        }
    }

    /// A transform thread had no room for what concerned these: hubs go back to history, jobs are asked again.
    pub(super) fn catch_up(&mut self) {
        let missed = std::mem::take(&mut *self.missed.lock());
        for hub in missed.hubs {
            self.broken(hub);
        }
        for (job, step) in missed.jobs {
            self.send_job(job, step);
        }
    }
}

/// Up to where a stream is on the sockets of its live viewers; a viewer that is in history holds nothing back.
fn written_up_to(hub: &Hub, viewers: &Table<Viewer>) -> EntryId {
    let live = hub.viewers.iter().filter_map(|&viewer| viewers.get(viewer));
    live.filter(|viewer| viewer.seam.as_ref().is_some_and(Seam::is_live))
        .filter(|viewer| viewer.unwritten > 0 || viewer.batch.is_some())
        .map(|viewer| viewer.written)
        .min()
        .unwrap_or(hub.passed)
}
