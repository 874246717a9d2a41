//! What the queues between the threads hold at most, and why it is that much.
//!
//! A connection holds at most `client.send_budget` of frames, 32 KiB of answers to what its client says, and one answer
//! that is larger. With the defaults and one thread of each kind but two readers, the queues hold at most
//! 32 + 32 + 2 × 64 MiB; everything else in them is a few hundred bytes a message.

/// Bytes of undecoded live entries on the way to one transform thread. A reader waits at the bound, and
/// entries stay in Redis meanwhile: some tens of milliseconds of what one transform thread decodes.
pub const LIVE_BYTES_MAX: usize = 32 << 20;

/// Bytes of undecoded history on the way to one transform thread. Replay threads wait at the bound.
pub const REPLAY_BYTES_MAX: usize = 32 << 20;

/// Bytes of frames on the way to one delivery thread, live and from history each. At the bound its streams are demoted to
/// history, and history is asked for again.
pub const INBOX_BYTES_MAX: usize = 64 << 20;

/// What clients have begun to send and not finished, over all connections of the process: unfinished requests and
/// messages, each at most some 128 KiB and for `client.handshake_timeout`. What finds no room is refused with 503 or 1013.
pub const INPUT_BYTES_MAX: usize = 64 << 20;

/// Answers that are larger than `client.send_budget`, over all connections of the process: JSON states, while they are put
/// together and until their clients have taken them. What finds no room is refused with 503. At least two of the largest
/// fit, so that one client that does not read keeps nobody from asking.
#[must_use]
pub const fn answers_bytes_max(max_state: usize) -> usize {
    let several = 64 << 20;
    let two = max_state.saturating_mul(2);
    if two > several { two } else { several }
}

/// What delivery threads ask of one transform thread and transform threads of one reader. What does not
/// fit is held by who asks, at most two commands for each stream.
pub const COMMANDS_MAX: usize = 8192;

/// History reads that wait for a replay thread. What does not fit is held by the delivery threads, at most one
/// for each viewer.
pub const REQUESTS_MAX: usize = 4096;

/// Names to be waited for, and looks, that wait for the watcher. Waiting viewers are held by the delivery threads at the
/// bound; a look is asked for again.
pub const ERRANDS_MAX: usize = 8192;

/// Requests to cancel that wait for the recorder. At the bounds they are refused.
pub const CANCELS_MAX: usize = 4096;
/// Their bytes.
pub const CANCELS_BYTES_MAX: usize = 4 << 20;

/// Ends of generations that wait for the recorder. At the bounds they are asked for again.
pub const ENDS_MAX: usize = 4096;
/// Their bytes.
pub const ENDS_BYTES_MAX: usize = 4 << 20;

/// Dead letters that wait for the recorder. At the bounds the streams that make more of them wait.
pub const LETTERS_MAX: usize = 65_536;
/// Their bytes.
pub const LETTERS_BYTES_MAX: usize = 16 << 20;

/// Acknowledgements, and ends that are to be acknowledged, that wait for the recorder. At the bounds acknowledgements are
/// refused.
pub const RECEIPTS_MAX: usize = 65_536;
/// Their bytes.
pub const RECEIPTS_BYTES_MAX: usize = 16 << 20;
