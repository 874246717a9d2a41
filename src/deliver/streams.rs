//! The streams of a delivery thread and the viewers of each, and those of them that have something to report. This
//! module does not access connections or other threads.

use std::collections::HashMap;
use std::sync::Arc;

use super::ack_tracker::AckTracker;
use super::seam::{Live, Seam};
use super::table::Table;
use super::viewer::{Hub, Stage, SubscribeOptions, Viewer};
use crate::message::{HubRef, Slot};
use crate::model::{EntryId, Frame, Phase, StreamName};
use crate::observe::Registry;

/// The assumed size of an entry, in bytes, before any was read.
const ENTRY_BYTES_GUESS: usize = 128;

/// The viewers, and a hub for each stream that has viewers.
pub(super) struct Streams {
    viewers: Table<Viewer>,
    hubs: Table<Hub>,
    hub_by_name: HashMap<StreamName, Slot>,
    /// Hubs whose written position may have changed, or that may not need live text any more, since the last report.
    unreported: Vec<Slot>,
    /// Viewers that hold an acknowledgement to be passed on to the recorder.
    held_acks: Vec<Slot>,
    registry: Arc<Registry>,
}

impl Streams {
    /// Creates an empty set.
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        let (viewers, hubs, hub_by_name) = (Table::default(), Table::default(), HashMap::new());
        Self { viewers, hubs, hub_by_name, unreported: Vec::new(), held_acks: Vec::new(), registry }
    }

    // ----- adding and removing -----

    /// Adds a viewer to its stream. With `receipts`, its acknowledgements are tracked.
    pub(super) fn add_viewer(&mut self, connection: Slot, options: SubscribeOptions, receipts: bool) -> Slot {
        let hub = self.hub_of(&options.stream);
        let place = self.hubs.get(hub).map_or(0, |hub| hub.viewers.len());
        let viewer = self.viewers.insert(Viewer {
            connection,
            hub,
            options,
            stage: Stage::Opening,
            opened: false,
            held: None,
            known_status: None,
            unwritten: 0,
            written: EntryId::ZERO,
            batch: None,
            entry_bytes: ENTRY_BYTES_GUESS,
            promised: 0,
            acks: receipts.then(Box::<AckTracker>::default),
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
            watermark: None,
            unreported: false,
            awaited: false,
            appeared_us: None,
            idle_since: None,
        });
        self.hub_by_name.insert(stream.clone(), hub);
        hub
    }

    /// Removes a viewer. If it was the last one of its hub, removes the hub too, and returns it with its slot.
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

    // ----- lookup -----

    /// The viewer with this slot, if it still exists.
    pub(super) fn viewer(&self, slot: Slot) -> Option<&Viewer> {
        self.viewers.get(slot)
    }

    /// Mutable access: see [`Streams::viewer`].
    pub(super) fn viewer_mut(&mut self, slot: Slot) -> Option<&mut Viewer> {
        self.viewers.get_mut(slot)
    }

    /// Mutable access to a viewer, with its hub.
    pub(super) fn viewer_and_hub(&mut self, slot: Slot) -> Option<(&mut Viewer, &Hub)> {
        let viewer = self.viewers.get_mut(slot)?;
        let hub = self.hubs.get(viewer.hub)?;
        Some((viewer, hub))
    }

    /// The number of viewers.
    pub(super) fn viewers_len(&self) -> usize {
        self.viewers.len()
    }

    /// A viewer's seam between history and live text, if it is reading.
    pub(super) fn seam(&mut self, viewer: Slot) -> Option<&mut Seam<Arc<Frame>>> {
        Some(&mut self.viewers.get_mut(viewer)?.reading_mut()?.seam)
    }

    /// The tracker of a viewer's acknowledgements, if they are tracked.
    pub(super) fn acks(&mut self, viewer: Slot) -> Option<&mut AckTracker> {
        self.viewers.get_mut(viewer)?.acks.as_deref_mut()
    }

    /// The hub with this slot, if it still exists.
    pub(super) fn hub(&self, slot: Slot) -> Option<&Hub> {
        self.hubs.get(slot)
    }

    /// Mutable access: see [`Streams::hub`].
    pub(super) fn hub_mut(&mut self, slot: Slot) -> Option<&mut Hub> {
        self.hubs.get_mut(slot)
    }

    /// The hub that a message is about, unless the message belongs to an earlier request for live frames.
    pub(super) fn attached_hub(&mut self, name: HubRef) -> Option<&mut Hub> {
        self.hubs.get_mut(name.slot).filter(|hub| hub.attach == name.attach)
    }

    /// The hub of a stream, if the stream has viewers on this thread.
    pub(super) fn hub_by_name(&self, stream: &StreamName) -> Option<Slot> {
        self.hub_by_name.get(stream).copied()
    }

    /// Counts that must be 0 when no client is left.
    #[cfg(test)]
    pub(super) fn held(&self) -> [(&'static str, usize); 4] {
        [
            ("viewers", self.viewers.len()),
            ("streams", self.hubs.len() + self.hub_by_name.len()),
            ("streams to be reported", self.unreported.len()),
            ("acknowledgements to be passed on", self.held_acks.len()),
        ]
    }

    // ----- waiting for a stream -----

    /// Notes that the hub's stream does not exist. Returns the name to wait for, unless it is waited for already.
    pub(super) fn begin_waiting(&mut self, hub: Slot) -> Option<&StreamName> {
        let hub = self.hubs.get_mut(hub)?;
        if std::mem::replace(&mut hub.awaited, true) {
            return None;
        }
        self.registry.gauges().streams_waited.inc();
        Some(&hub.stream)
    }

    /// Notes that the hub's stream has appeared, at `now_us` by this host's clock. Returns the hub's viewers.
    pub(super) fn end_waiting(&mut self, hub: Slot, now_us: u64) -> Vec<Slot> {
        let Some(hub) = self.hubs.get_mut(hub) else { return Vec::new() };
        hub.appeared_us = Some(now_us);
        if std::mem::replace(&mut hub.awaited, false) {
            self.registry.gauges().streams_waited.dec();
        }
        hub.viewers.clone()
    }

    // ----- reporting -----

    /// Marks a hub to be reported.
    pub(super) fn note_unreported(&mut self, slot: Slot) {
        if let Some(hub) = self.hubs.get_mut(slot)
            && !std::mem::replace(&mut hub.unreported, true)
        {
            self.unreported.push(slot);
        }
    }

    /// Takes the hubs that are marked to be reported.
    pub(super) fn take_unreported(&mut self) -> Vec<Slot> {
        let unreported = std::mem::take(&mut self.unreported);
        for &slot in &unreported {
            if let Some(hub) = self.hubs.get_mut(slot) {
                hub.unreported = false;
            }
        }
        unreported
    }

    /// The position up to which the sockets of all live viewers of a hub have accepted the stream. Viewers that read
    /// history do not hold it back.
    pub(super) fn written_up_to(&self, hub: &Hub) -> EntryId {
        let live = self.viewers_of(hub);
        live.filter(|viewer| viewer.is_live())
            .filter(|viewer| viewer.unwritten > 0 || viewer.batch.is_some())
            .map(|viewer| viewer.written)
            .min()
            .unwrap_or(hub.passed)
    }

    /// Whether one of a hub's viewers needs live text, now or soon.
    pub(super) fn is_needed_live(&self, hub: &Hub) -> bool {
        self.viewers_of(hub).filter_map(Viewer::reading).any(|reading| reading.seam.needs_live())
    }

    fn viewers_of<'a>(&'a self, hub: &'a Hub) -> impl Iterator<Item = &'a Viewer> {
        hub.viewers.iter().filter_map(|&viewer| self.viewers.get(viewer))
    }

    /// Notes that a viewer holds an acknowledgement to be passed on.
    pub(super) fn note_held_ack(&mut self, viewer: Slot) {
        self.held_acks.push(viewer);
    }

    /// Takes the viewers that hold an acknowledgement to be passed on.
    pub(super) fn take_held_acks(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.held_acks)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::viewer::{Reading, Wire};
    use super::*;
    use crate::message::Cursor;
    use crate::model::After;

    const CONNECTION: Slot = Slot { index: 0, generation: 1 };

    fn options(session: &str) -> SubscribeOptions {
        let (follow, wait, batch, wire) = (false, Duration::ZERO, Duration::ZERO, Wire::Sse);
        let stream = StreamName::new(session, "m").unwrap();
        SubscribeOptions { stream, after: After::Last, follow, wait, batch, wire, translator: None }
    }

    /// Adds this many viewers of the stream `s`.
    fn streams_with(viewers: usize) -> (Streams, Vec<Slot>) {
        let mut streams = Streams::new(Arc::new(Registry::new("test")));
        let viewers = (0..viewers).map(|_| streams.add_viewer(CONNECTION, options("s"), false)).collect();
        (streams, viewers)
    }

    #[test]
    fn a_hub_is_removed_with_its_last_viewer_in_any_order() {
        for order in [[0, 1, 2], [1, 0, 2], [2, 0, 1], [1, 2, 0]] {
            let (mut streams, viewers) = streams_with(3);
            let name = StreamName::new("s", "m").unwrap();
            let hub = streams.hub_by_name(&name).unwrap();
            for leaving in &order[..2] {
                assert!(streams.remove_viewer(viewers[*leaving]).is_none());
            }
            assert_eq!(streams.hub(hub).map(|hub| hub.viewers.clone()), Some(vec![viewers[order[2]]]));
            let (removed, _) = streams.remove_viewer(viewers[order[2]]).unwrap();
            assert_eq!((removed, streams.hub_by_name(&name)), (hub, None));
            assert!(streams.remove_viewer(viewers[0]).is_none(), "the viewer does not exist any more");
        }
    }

    #[test]
    fn viewers_of_one_stream_share_one_wait() {
        let (mut streams, viewers) = streams_with(2);
        let hub = streams.viewer(viewers[0]).unwrap().hub;
        assert!(streams.begin_waiting(hub).is_some());
        assert!(streams.begin_waiting(hub).is_none());
        assert_eq!(streams.end_waiting(hub, 7), viewers);
        assert_eq!(streams.hub(hub).unwrap().appeared_us, Some(7));
        assert!(streams.begin_waiting(hub).is_some(), "a new wait, if the stream is deleted again");
    }

    #[test]
    fn a_wait_keeps_the_position_in_a_stream_that_reappears() {
        let (mut streams, viewers) = streams_with(1);
        let viewer = streams.viewer_mut(viewers[0]).unwrap();
        let now = std::time::Instant::now();
        assert_eq!(viewer.wait(now), Some(now));
        assert!(viewer.is_waiting() && viewer.resume_reading().is_none(), "it was never read");
        let (seam, anchor) = (Seam::new(EntryId::new(7, 0).into()), Cursor::default());
        viewer.stage = Stage::Reading(Reading { seam, anchor });
        assert_eq!(viewer.wait(now), Some(now));
        assert!(viewer.is_waiting() && viewer.reading().is_some());
        assert!(viewer.resume_reading().is_some() && !viewer.is_waiting());
        viewer.begin_closing(now);
        assert!(viewer.reading().is_none() && viewer.given().is_some());
        assert_eq!(viewer.wait(now), None, "a viewer that has everything does not wait");
    }

    #[test]
    fn a_stream_that_is_noted_twice_is_reported_once() {
        let (mut streams, viewers) = streams_with(1);
        let hub = streams.viewer(viewers[0]).unwrap().hub;
        streams.note_unreported(hub);
        streams.note_unreported(hub);
        assert_eq!(streams.take_unreported(), [hub]);
        assert!(streams.take_unreported().is_empty());
    }
}
