//! Where a reader of a stream stands.

use super::{Position, StreamState};

/// Where a reader of a stream stands: the position and the state that belongs to it.
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

    /// Whether the newest generation is over there. In the middle of an entry it is not: the state is the one before
    /// it.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        self.state.phase.terminal().is_some() && self.position.is_whole()
    }

    /// The position as frames are held against it: below the end that a finishing generation may come to of itself,
    /// which has the id of an entry that was passed.
    #[must_use]
    pub fn before_end(&self) -> Position {
        match self.state.finishing() {
            // In the middle of an entry that entry is the newest, and the position is below its end.
            Some(newest) if self.position.is_whole() && self.position.id >= newest => {
                Position::but_end(newest)
            }
            _ => self.position,
        }
    }
}
