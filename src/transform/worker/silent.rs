//! Silent producers: reports them to the viewers, and ends generations that no producer ends.

use super::{Worker, micros};
use crate::config;
use crate::message::record::{EndGeneration, EndKind};
use crate::message::{HubRef, LiveRef, ToDelivery, now_us};
use crate::transform::live::{Limits, Silence};

/// How many silent streams are reported in one tick at least; of many streams, one in [`SILENT_TICKS`].
const SILENT_PER_TICK_MIN: usize = 16;
/// The number of ticks over which many streams that become silent together are reported.
const SILENT_TICKS: usize = 8;
/// The entry that ends the generation of a producer that is given up.
const PRODUCER_LOST: &str = r#"{"type":"error","code":"producer_lost","message":"the producer has been silent for too long and was given up"}"#;

impl Worker {
    pub(super) fn judge_silence(&mut self) {
        let now_us = now_us();
        let redis_us = self.parts.clock.at(now_us);
        let limits = self.silence_limits();
        let mut forsaken = Vec::new();
        for (live, found) in self.streams.iter_mut() {
            match found.judge_silence((now_us, redis_us), limits) {
                Silence::Unchanged => {}
                Silence::Stalled => self.silent.push_back(live),
                Silence::Over(newest, data) => {
                    let (stream, transform) = (found.stream.clone(), self.parts.index);
                    // If there is no room, the request is repeated.
                    let kind = EndKind::Grace;
                    let _ = self.parts.ends.try_send(EndGeneration { stream, newest, data, kind, transform });
                }
                // Only producers of streams with viewers are given up: a stream without viewers gets no end then.
                Silence::GiveUp(_) if found.is_end_watched => forsaken.push(live),
                Silence::GiveUp(newest) => {
                    let (stream, transform) = (found.stream.clone(), self.parts.index);
                    let (data, kind) = (PRODUCER_LOST.to_owned(), EndKind::ProducerLost);
                    // If there is no room, the producer is judged again later.
                    let _ = self.parts.ends.try_send(EndGeneration { stream, newest, data, kind, transform });
                }
            }
        }
        forsaken.into_iter().for_each(|live| self.end_unwatched(live));
        self.report_silent();
    }

    /// Reports some silent streams to their viewers, unless the producers are active again. Of many streams it
    /// reports a share per tick, so that these frames do not delay live text.
    fn report_silent(&mut self) {
        let share = (self.silent.len() / SILENT_TICKS).max(SILENT_PER_TICK_MIN);
        for _ in 0..share {
            let Some(live) = self.silent.pop_front() else { return };
            let Some(found) = self.streams.get(live).filter(|found| found.stalled) else { continue };
            let attached = found.attached.clone();
            self.report_stalled(live, &attached, true);
        }
    }

    pub(super) fn silence_limits(&self) -> Limits {
        let config::Stream { stall_after, abandon_after, finish_grace, .. } = self.parts.stream;
        let (stall_us, abandon_us) = (micros(stall_after), micros(abandon_after));
        Limits { stall_us, abandon_us, grace_us: micros(finish_grace) }
    }

    /// After how much silence a finishing generation is over, in ms.
    pub(super) fn grace_ms(&self) -> u64 {
        micros(self.parts.stream.finish_grace) / 1000
    }

    fn report_stalled(&mut self, live: LiveRef, attached: &[(usize, HubRef)], stalled: bool) {
        for &(delivery, hub) in attached {
            if self.send(delivery, ToDelivery::Stalled { hub, stalled }).is_err() {
                self.miss(live, (delivery, hub));
            }
        }
    }

    /// Reports that a stream's producer is active again after it was silent.
    pub(super) fn wake_up(&mut self, live: LiveRef) {
        if let Some(found) = self.streams.get(live)
            && std::mem::take(&mut found.stalled)
        {
            let attached = found.attached.clone();
            self.report_stalled(live, &attached, false);
        }
    }
}
