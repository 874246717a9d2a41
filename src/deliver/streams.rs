//! The streams of a delivery thread and the viewers of each: who watches what, and what is to be reported of it. Knows
//! neither connections nor other threads.

use std::collections::HashMap;
use std::sync::Arc;

use super::seam::{Live, Seam};
use super::table::Table;
use super::taking::Taking;
use super::viewer::{Hub, Stage, Viewer, Wish};
use crate::event::message::{Cursor, HubRef, Slot};
use crate::event::{EntryId, Frame, Phase, StreamName};
use crate::observe::Registry;

/// Assumed size of an entry before any was seen, in bytes.
const ENTRY_BYTES_GUESS: usize = 128;

/// Streams, or hubs, and their viewers. A hub exists for as long as it has viewers.
pub(super) struct Streams {
    viewers: Table<Viewer>,
    hubs: Table<Hub>,
    hub_by_name: HashMap<StreamName, Slot>,
    /// Hubs of which something was written, or which may not be needed live any more, since the last report.
    unreported: Vec<Slot>,
    /// Viewers that hold an acknowledgement.
    unpassed_acks: Vec<Slot>,
    registry: Arc<Registry>,
}

impl Streams {
    /// No streams yet.
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        let (viewers, hubs, hub_by_name) = (Table::default(), Table::default(), HashMap::new());
        Self { viewers, hubs, hub_by_name, unreported: Vec::new(), unpassed_acks: Vec::new(), registry }
    }

    // ----- coming and going -----

    /// A viewer comes to a stream; with `receipts`, its acknowledgements are kept account of.
    pub(super) fn add_viewer(&mut self, connection: Slot, wish: Wish, receipts: bool) -> Slot {
        let hub = self.hub_of(&wish.stream);
        let place = self.hubs.get(hub).map_or(0, |hub| hub.viewers.len());
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
            taking: receipts.then(Box::<Taking>::default),
            place,
        });
        if let Some(hub) = self.hubs.get_mut(hub) {
            hub.viewers.push(viewer);
        }
        self.registry.gauges().subscriptions_open.inc();
        self.registry.counters().subscriptions.inc();
        viewer
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

    /// Takes a viewer out, and its hub with its name if it was the last one there.
    pub(super) fn remove_viewer(&mut self, slot: Slot) -> Option<(Slot, Hub)> {
        let viewer = self.viewers.remove(slot)?;
        self.registry.gauges().subscriptions_open.dec();
        let hub = self.hubs.get_mut(viewer.hub)?;
        hub.viewers.swap_remove(viewer.place);
        if let Some(&moved) = hub.viewers.get(viewer.place)
            && let Some(moved) = self.viewers.get_mut(moved)
        {
            moved.place = viewer.place;
        }
        if !hub.viewers.is_empty() {
            self.note_unreported(viewer.hub);
            return None;
        }
        let hub = self.hubs.remove(viewer.hub)?;
        self.hub_by_name.remove(&hub.stream);
        if hub.awaited {
            self.registry.gauges().streams_waited.dec();
        }
        Some((viewer.hub, hub))
    }

    // ----- finding -----

    /// The viewer that was added as `slot`, unless it is gone.
    pub(super) fn viewer(&self, slot: Slot) -> Option<&Viewer> {
        self.viewers.get(slot)
    }

    /// As [`Streams::viewer`], to be changed.
    pub(super) fn viewer_mut(&mut self, slot: Slot) -> Option<&mut Viewer> {
        self.viewers.get_mut(slot)
    }

    /// A viewer, to be changed, and its hub.
    pub(super) fn viewer_and_hub(&mut self, slot: Slot) -> Option<(&mut Viewer, &Hub)> {
        let viewer = self.viewers.get_mut(slot)?;
        let hub = self.hubs.get(viewer.hub)?;
        Some((viewer, hub))
    }

    /// How many viewers there are.
    pub(super) fn viewers_len(&self) -> usize {
        self.viewers.len()
    }

    /// A viewer's way between history and live.
    pub(super) fn seam(&mut self, viewer: Slot) -> Option<&mut Seam<Arc<Frame>>> {
        self.viewers.get_mut(viewer)?.seam.as_mut()
    }

    /// A viewer's account of acknowledgements.
    pub(super) fn taking(&mut self, viewer: Slot) -> Option<&mut Taking> {
        self.viewers.get_mut(viewer)?.taking.as_deref_mut()
    }

    /// A hub, unless it is gone.
    pub(super) fn hub(&self, slot: Slot) -> Option<&Hub> {
        self.hubs.get(slot)
    }

    /// As [`Streams::hub`], to be changed.
    pub(super) fn hub_mut(&mut self, slot: Slot) -> Option<&mut Hub> {
        self.hubs.get_mut(slot)
    }

    /// The hub that a message is about, unless the message belongs to an earlier asking for live frames.
    pub(super) fn hub_named(&mut self, name: HubRef) -> Option<&mut Hub> {
        self.hubs.get_mut(name.slot).filter(|hub| hub.attach == name.attach)
    }

    /// The hub of a stream that somebody watches or waits for.
    pub(super) fn hub_by_name(&self, stream: &StreamName) -> Option<Slot> {
        self.hub_by_name.get(stream).copied()
    }

    // ----- waiting for a stream -----

    /// The hub's stream does not exist: the name to wait for, unless it is waited for already.
    pub(super) fn begin_waiting(&mut self, hub: Slot) -> Option<&StreamName> {
        let hub = self.hubs.get_mut(hub)?;
        if std::mem::replace(&mut hub.awaited, true) {
            return None;
        }
        self.registry.gauges().streams_waited.inc();
        Some(&hub.stream)
    }

    /// The hub's stream has appeared; its viewers.
    pub(super) fn end_waiting(&mut self, hub: Slot) -> Vec<Slot> {
        let Some(hub) = self.hubs.get_mut(hub) else { return Vec::new() };
        if std::mem::replace(&mut hub.awaited, false) {
            self.registry.gauges().streams_waited.dec();
        }
        hub.viewers.clone()
    }

    // ----- reporting -----

    /// Something of a stream is to be reported.
    pub(super) fn note_unreported(&mut self, slot: Slot) {
        if let Some(hub) = self.hubs.get_mut(slot)
            && !std::mem::replace(&mut hub.unreported, true)
        {
            self.unreported.push(slot);
        }
    }

    /// The hubs of which something is to be reported; nothing is noted any more.
    pub(super) fn take_unreported(&mut self) -> Vec<Slot> {
        let unreported = std::mem::take(&mut self.unreported);
        for &slot in &unreported {
            if let Some(hub) = self.hubs.get_mut(slot) {
                hub.unreported = false;
            }
        }
        unreported
    }

    /// Up to where a hub's stream is on the sockets of its live viewers; a viewer in history holds nothing back.
    pub(super) fn written_up_to(&self, hub: &Hub) -> EntryId {
        let live = self.viewers_of(hub);
        live.filter(|viewer| viewer.seam.as_ref().is_some_and(Seam::is_live))
            .filter(|viewer| viewer.unwritten > 0 || viewer.batch.is_some())
            .map(|viewer| viewer.written)
            .min()
            .unwrap_or(hub.passed)
    }

    /// Whether one of a hub's viewers needs live text, or may need it next.
    pub(super) fn is_needed_live(&self, hub: &Hub) -> bool {
        self.viewers_of(hub).filter_map(|viewer| viewer.seam.as_ref()).any(Seam::needs_live)
    }

    fn viewers_of<'a>(&'a self, hub: &'a Hub) -> impl Iterator<Item = &'a Viewer> {
        hub.viewers.iter().filter_map(|&viewer| self.viewers.get(viewer))
    }

    /// A viewer holds an acknowledgement.
    pub(super) fn note_unpassed_ack(&mut self, viewer: Slot) {
        self.unpassed_acks.push(viewer);
    }

    /// The viewers that hold an acknowledgement; none is noted any more.
    pub(super) fn take_unpassed_acks(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.unpassed_acks)
    }
}
