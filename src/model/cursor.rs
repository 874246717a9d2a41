//! The position of a reader in a stream.

use super::{Position, StreamState};

/// A reader's position in a stream, and the stream's state there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The position up to which everything was received.
    pub position: Position,
    /// The stream's state there.
    pub state: StreamState,
}

impl Cursor {
    /// Moves to a position with its state.
    pub fn move_to(&mut self, position: Position, state: &StreamState) {
        self.position = position;
        self.state.assign(state);
    }

    /// Whether the newest generation has ended at this position. Within an entry it has not: the state is the one
    /// before the entry.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        self.state.phase.terminal().is_some() && self.position.is_whole()
    }

    /// The position to compare frames with. It lies before the end of a finishing generation, which may come without
    /// an entry of its own and then has the id of an entry that was passed.
    #[must_use]
    pub fn before_end(&self) -> Position {
        match self.state.finishing() {
            // Within an entry, that entry is the newest one, and the position is before its end.
            Some(newest) if self.position.is_whole() && self.position.id >= newest => {
                Position::but_end(newest)
            }
            _ => self.position,
        }
    }
}
