//! Where a reader of a stream wants to begin.

use super::Position;

/// The point after which a client wants a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// After this position; [`Position::ZERO`] for the whole stream.
    At(Position),
    /// From the beginning of the newest generation.
    Last,
    /// Only what comes next.
    Tail,
}
