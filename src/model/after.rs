//! The position from which a viewer wants a stream.

use super::Position;

/// The point after which a viewer wants a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// After this position; [`Position::ZERO`] for the whole stream.
    At(Position),
    /// From the beginning of the newest generation.
    Last,
    /// Only new entries.
    Tail,
}
