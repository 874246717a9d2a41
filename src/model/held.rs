//! Counts the bytes read from history that are in memory: in replies that are not decoded yet, and in frames that are
//! not sent yet, in whichever thread they are.
//!
//! Each such reply and frame holds a [`Held`], which takes its bytes off the ledger when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most bytes read from history that replies and large frames may hold. Further reads wait until some were sent.
pub const HISTORY_HELD_MAX: usize = 24 << 20;

/// Entries and frames above this size are large. A merged frame of small entries never is.
pub const LARGE_BYTES: usize = 64 << 10;

/// The sums, shared by all threads that read, decode and send.
#[derive(Debug, Default)]
pub struct Ledger {
    replies: AtomicUsize,
    frames: AtomicUsize,
    large_frames: AtomicUsize,
}

impl Ledger {
    /// The bytes of entries that were read and are not decoded yet.
    #[must_use]
    pub fn replies(&self) -> usize {
        self.replies.load(Ordering::Relaxed)
    }

    /// The bytes of frames made of history that are not sent yet.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames.load(Ordering::Relaxed) + self.large_frames.load(Ordering::Relaxed)
    }

    /// The bytes that count against [`HISTORY_HELD_MAX`]: all replies, which are decoded soon, and the large frames.
    /// Small frames are bounded by the send budgets of their viewers, and delay no read.
    #[must_use]
    pub fn large(&self) -> usize {
        self.replies() + self.large_frames.load(Ordering::Relaxed)
    }

    /// Adds entries to the ledger.
    #[must_use]
    pub fn hold_reply(self: &Arc<Self>, bytes: usize) -> Held {
        Held::new(self, Kind::Reply, bytes)
    }

    /// Adds a frame to the ledger.
    #[must_use]
    pub fn hold_frame(self: &Arc<Self>, bytes: usize) -> Held {
        Held::new(self, if bytes > LARGE_BYTES { Kind::LargeFrame } else { Kind::Frame }, bytes)
    }

    const fn sum(&self, kind: Kind) -> &AtomicUsize {
        match kind {
            Kind::Reply => &self.replies,
            Kind::Frame => &self.frames,
            Kind::LargeFrame => &self.large_frames,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Reply,
    Frame,
    LargeFrame,
}

/// Bytes on the ledger, until this is dropped.
#[derive(Debug)]
pub struct Held {
    ledger: Arc<Ledger>,
    kind: Kind,
    bytes: usize,
}

impl Held {
    fn new(ledger: &Arc<Ledger>, kind: Kind, bytes: usize) -> Self {
        ledger.sum(kind).fetch_add(bytes, Ordering::Relaxed);
        Self { ledger: Arc::clone(ledger), kind, bytes }
    }

    /// The ledger that counts the bytes.
    #[must_use]
    pub const fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ledger.sum(self.kind).fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_bytes_are_summed_until_they_are_dropped() {
        let ledger = Arc::new(Ledger::default());
        let reply = ledger.hold_reply(10);
        let frame = Arc::new(ledger.hold_frame(7));
        let other = Arc::clone(&frame);
        assert_eq!((ledger.replies(), ledger.frames(), ledger.large()), (10, 7, 10));
        let large = ledger.hold_frame(LARGE_BYTES + 1);
        assert_eq!((ledger.frames(), ledger.large()), (LARGE_BYTES + 8, LARGE_BYTES + 11));
        drop(large);
        drop((reply, frame));
        assert_eq!((ledger.replies(), ledger.frames()), (0, 7));
        drop(other);
        assert_eq!(ledger.frames(), 0);
    }
}
