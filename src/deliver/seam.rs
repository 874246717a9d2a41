//! The seam between history and live for one viewer of one stream. Pure.
//!
//! A viewer starts in history: it requests reads until one reaches the end of the stream. Meanwhile, live text of the
//! stream is at another position, ahead of the viewer or behind it. The viewer joins live text without gap or
//! repetition:
//!
//! - If live is behind the viewer, it joins at once and skips the frames that it already has.
//! - If live is ahead, a *bridge* is read: one bounded read from the viewer's position up to live's, while the live
//!   frames that arrive meanwhile are held.
//! - A live frame that begins before the viewer's position and ends after it (a merged one) is bridged in the same
//!   way.
//! - If the stream is not read live yet, the viewer requests live text that begins exactly at its own position.
//!
//! INVARIANT: the frames that [`Seam::read`] and [`Seam::live`] let through cover the stream's entries after the
//! start position, each once, in order. At most one read is outstanding per viewer.

use crate::model::{EntryId, Frame, Position};
use std::sync::Arc;

/// The properties of a frame that the seam uses.
pub trait Piece: Clone {
    /// The viewer's position before the frame.
    fn after(&self) -> Position;
    /// The viewer's position after the frame.
    fn last(&self) -> Position;
    /// The cost of holding the frame, in bytes.
    fn len_bytes(&self) -> usize;
}

impl Piece for Arc<Frame> {
    fn after(&self) -> Position {
        self.after
    }

    fn last(&self) -> Position {
        self.last
    }

    fn len_bytes(&self) -> usize {
        self.json().len()
    }
}

/// The delivery thread's state for a stream's live text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// Not requested.
    Off,
    /// Requested.
    Attaching,
    /// Everything up to this position has arrived.
    On(Position),
}

/// The viewer's next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Nothing.
    Nothing,
    /// A read of history from the viewer's position, up to an entry or to the end.
    Read {
        /// The last entry to read.
        until: Option<EntryId>,
    },
    /// Live text from the viewer's position on.
    Attach,
}

/// The handling of a live frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is delivered now.
    Deliver,
    /// It is dropped: the viewer has it, or reads it from history later.
    Ignored,
    /// It is held until the bridge is complete.
    Held,
    /// The viewer has a part of it and needs a bridge to its end.
    Bridge {
        /// The end of the bridge.
        until: EntryId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode<P> {
    /// A read to the end is outstanding.
    History,
    /// No read is outstanding until the viewer's connection has drained.
    Paused,
    /// Live text was requested and has not begun.
    Joining,
    /// A read up to `until` is outstanding; `held` is `None` once holding became too expensive.
    Bridging { until: Position, held: Option<Vec<P>>, held_bytes: usize },
    /// The viewer gets live frames.
    Live,
}

/// The state of one viewer of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seam<P> {
    position: Position,
    mode: Mode<P>,
}

impl<P: Piece> Seam<P> {
    /// A viewer at `position` with a read to the end outstanding.
    #[must_use]
    pub const fn new(position: Position) -> Self {
        Self { position, mode: Mode::History }
    }

    /// The position up to which the viewer has received everything.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Whether the viewer gets live frames.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self.mode, Mode::Live)
    }

    /// Whether the viewer needs the stream's live text, now or soon.
    #[must_use]
    pub const fn needs_live(&self) -> bool {
        matches!(self.mode, Mode::Live | Mode::Joining | Mode::Bridging { .. })
    }

    /// Whether a read up to that position, or a later one, is outstanding.
    #[must_use]
    pub fn bridges_to(&self, position: Position) -> bool {
        matches!(self.mode, Mode::Bridging { until, .. } if until >= position)
    }

    /// Whether the viewer waits for [`Seam::resume`].
    #[must_use]
    pub const fn is_paused(&self) -> bool {
        matches!(self.mode, Mode::Paused)
    }

    /// Handles the result of the outstanding read: the viewer has received everything up to `position`.
    ///
    /// `exhausted`: the read reached its end. `room`: the connection can accept more history. Returns the held frames
    /// that are to be delivered now, and the next request.
    pub fn read(&mut self, position: Position, exhausted: bool, room: bool, live: Live) -> (Vec<P>, Ask) {
        self.position = self.position.max(position);
        match std::mem::replace(&mut self.mode, Mode::Paused) {
            Mode::History if exhausted => (Vec::new(), self.join(live)),
            Mode::History if room => (Vec::new(), self.read_on()),
            Mode::History => (Vec::new(), Ask::Nothing),
            // The held frames are dropped and read again, once there is room.
            Mode::Bridging { .. } if !exhausted && !room => (Vec::new(), Ask::Nothing),
            Mode::Bridging { until, held, held_bytes } if !exhausted => {
                self.mode = Mode::Bridging { until, held, held_bytes };
                (Vec::new(), Ask::Read { until: Some(until.id) })
            }
            Mode::Bridging { held: None, .. } => (Vec::new(), self.read_on()),
            Mode::Bridging { until, held: Some(held), .. } => {
                // The entry at the end may have been deleted meanwhile; nothing more will come before that position.
                self.position = self.position.max(until);
                self.mode = Mode::Live;
                (held.into_iter().filter(|piece| self.take(piece) == Taken::Deliver).collect(), Ask::Nothing)
            }
            mode => {
                debug_assert!(false, "a read came back that was not requested");
                self.mode = mode;
                (Vec::new(), Ask::Nothing)
            }
        }
    }

    /// Handles a read that brought the viewer to `position` or further, but not to where live text continues.
    pub fn read_to_end(&mut self, position: Position) -> Ask {
        self.position = self.position.max(position);
        self.read_on()
    }

    /// Handles the start of live text: everything after `at` follows.
    pub fn attached(&mut self, at: Position) -> Ask {
        if matches!(self.mode, Mode::Joining) { self.join(Live::On(at)) } else { Ask::Nothing }
    }

    /// Handles a live frame. At most `room_bytes` are held.
    pub fn live(&mut self, piece: &P, room_bytes: usize) -> Taken {
        match &mut self.mode {
            Mode::Live => self.take(piece),
            Mode::Bridging { until, held, held_bytes } => {
                if piece.last() <= *until && piece.after() < *until {
                    return Taken::Ignored;
                }
                *held_bytes += piece.len_bytes();
                if *held_bytes > room_bytes {
                    *held = None;
                }
                match held {
                    Some(held) => {
                        held.push(piece.clone());
                        Taken::Held
                    }
                    None => Taken::Ignored,
                }
            }
            Mode::History | Mode::Paused | Mode::Joining => Taken::Ignored,
        }
    }

    /// Handles the end of live text for this delivery thread.
    pub fn broken(&mut self) -> Ask {
        match &mut self.mode {
            Mode::Live | Mode::Joining => self.read_on(),
            Mode::Bridging { held, .. } => {
                *held = None;
                Ask::Nothing
            }
            Mode::History | Mode::Paused => Ask::Nothing,
        }
    }

    /// Makes a live viewer pause, because the connection cannot accept more.
    pub fn fall_back(&mut self) {
        if matches!(self.mode, Mode::Live) {
            self.mode = Mode::Paused;
        }
    }

    /// Makes a paused viewer continue from history, because the connection has drained.
    pub fn resume(&mut self) -> Ask {
        if matches!(self.mode, Mode::Paused) { self.read_on() } else { Ask::Nothing }
    }

    fn read_on(&mut self) -> Ask {
        self.mode = Mode::History;
        Ask::Read { until: None }
    }

    fn join(&mut self, live: Live) -> Ask {
        match live {
            Live::Off => {
                self.mode = Mode::Joining;
                Ask::Attach
            }
            Live::Attaching => {
                self.mode = Mode::Joining;
                Ask::Nothing
            }
            Live::On(at) if at <= self.position => {
                self.mode = Mode::Live;
                Ask::Nothing
            }
            Live::On(at) => self.bridge(at),
        }
    }

    fn bridge(&mut self, until: Position) -> Ask {
        self.mode = Mode::Bridging { until, held: Some(Vec::new()), held_bytes: 0 };
        Ask::Read { until: Some(until.id) }
    }

    fn take(&mut self, piece: &P) -> Taken {
        if piece.after() >= self.position {
            self.position = piece.last().max(self.position);
            return Taken::Deliver;
        }
        if piece.last() <= self.position {
            return Taken::Ignored;
        }
        let until = piece.last();
        self.bridge(until);
        Taken::Bridge { until: until.id }
    }
}

#[cfg(test)]
#[path = "seam_tests.rs"]
mod tests;
