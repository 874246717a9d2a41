//! The order of a stream's entries: generations, duplicates, gaps.
//!
//! A pure function of the state that crosses the seam between history and live, so that all readers that have read
//! the same entries come to the same verdicts, wherever they began.

use std::sync::Arc;

use crate::json;
use crate::model::{Decoded, EntryId, Event, Phase, StreamState};

/// The code of the `error` entry that the daemon writes when it gives up a silent producer.
pub const PRODUCER_LOST: &str = "producer_lost";

/// The verdict on an entry: delivered, a gap, or dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The entry is delivered.
    Deliver {
        /// How many numbers are missing right before it, according to its `seq`.
        lost: Option<u64>,
        /// Whether it is the first delivered entry of its generation.
        begins: bool,
    },
    /// The entry itself is not delivered, but its `seq` shows that numbers are missing before it.
    Gap {
        /// How many numbers.
        lost: u64,
        /// Why the entry itself is not delivered.
        reason: DropReason,
    },
    /// The entry is not delivered.
    Drop(DropReason),
}

/// Why an entry is not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// It is only a heartbeat.
    Heartbeat,
    /// It repeats an earlier entry.
    Retry,
    /// It follows the terminal entry of its generation.
    Finished,
    /// It begins a finished generation again: most likely another answer with the same id, all of which is dropped.
    BegunAgain,
    /// It only frames others, as many of a provider's events do.
    Framing,
    /// It continues a generation whose producer was given up.
    GivenUp,
}

/// Judges the next entry of a stream and updates `state`.
pub fn judge(state: &mut StreamState, id: EntryId, decoded: &Decoded<'_>) -> Verdict {
    let seq = decoded.seq;
    if let Event::Start { generation, .. } = decoded.event {
        if is_current(state, generation) {
            return match state.phase.terminal() {
                Some(_) => Verdict::Drop(DropReason::BegunAgain),
                None => count(state, seq, DropReason::Retry),
            };
        }
        state.begin(Phase::Open, generation.map(|name| Arc::new(name.to_owned())));
        return Verdict::Deliver { lost: advance(state, seq), begins: true };
    }
    if state.phase.terminal().is_some() {
        if let Some(reason) = belongs_to_finished(state, decoded) {
            return Verdict::Drop(reason);
        }
        // The progress since the last end belongs to the generation that begins here.
        let progress = state.progress.take();
        state.begin(Phase::Idle, None);
        state.progress = progress;
    }
    if matches!(decoded.event, Event::Heartbeat) {
        return count(state, seq, DropReason::Heartbeat);
    }
    if is_retry(state, seq) {
        return Verdict::Drop(DropReason::Retry);
    }
    let begins = state.phase == Phase::Idle;
    let lost = advance(state, seq);
    state.phase = match decoded.event {
        Event::End { .. } => Phase::Ended(id),
        Event::Error { code, .. } if json::same(code, PRODUCER_LOST) => Phase::Lost(id),
        Event::Error { .. } => Phase::Failed(id),
        _ => Phase::Open,
    };
    if state.phase.terminal().is_some() {
        state.progress = None;
    }
    Verdict::Deliver { lost, begins }
}

/// Whether an undecodable entry is shown as `skipped`. It is not shown after a terminal entry, because it belongs to
/// the finished generation there.
#[must_use]
pub const fn shows_skipped(state: &StreamState) -> bool {
    state.phase.terminal().is_none()
}

/// Whether a `start` names the generation that is open or has just finished.
fn is_current(state: &StreamState, generation: Option<&str>) -> bool {
    matches!((state.generation.as_deref(), generation), (Some(a), Some(b)) if json::same(a, b))
}

/// Why an entry without `start` that follows a terminal entry is dropped; `None` if it begins the next generation.
fn belongs_to_finished(state: &StreamState, decoded: &Decoded<'_>) -> Option<DropReason> {
    if !decoded.event.begins() {
        return Some(match decoded.event {
            Event::Heartbeat => DropReason::Heartbeat,
            _ => DropReason::Finished,
        });
    }
    match (decoded.seq, state.seq) {
        (None | Some(0), _) | (_, None) => None,
        (Some(seq), Some(highest)) if seq <= highest => Some(DropReason::Retry),
        _ if matches!(state.phase, Phase::Lost(_)) => Some(DropReason::GivenUp),
        _ => None,
    }
}

/// Whether the number occurred before in its generation.
fn is_retry(state: &StreamState, seq: Option<u64>) -> bool {
    matches!((seq, state.seq), (Some(seq), Some(highest)) if seq <= highest)
}

/// Counts an entry that is not delivered itself.
fn count(state: &mut StreamState, seq: Option<u64>, reason: DropReason) -> Verdict {
    if is_retry(state, seq) {
        return Verdict::Drop(reason);
    }
    match advance(state, seq) {
        Some(lost) => Verdict::Gap { lost, reason },
        None => Verdict::Drop(reason),
    }
}

/// Raises the highest number and returns how many numbers were skipped.
fn advance(state: &mut StreamState, seq: Option<u64>) -> Option<u64> {
    let seq = seq?;
    debug_assert!(!is_retry(state, Some(seq)), "only higher numbers count");
    let expected = state.seq.map_or(0, |highest| highest.saturating_add(1));
    state.seq = Some(seq);
    if std::mem::take(&mut state.blind) {
        // The entries before it were removed unread, which viewers learn from another frame.
        return None;
    }
    seq.checked_sub(expected).filter(|&lost| lost > 0)
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
