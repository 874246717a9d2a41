//! The limits on everything that is held between Redis and the sockets, and their reasons.
//!
//! Every holder of entries and frames, with the default settings and one thread of each kind except for two readers:
//!
//! | holder | bound | where |
//! | --- | --- | --- |
//! | live entries on the way to a transform thread | 32 MiB | [`LIVE_BYTES_MAX`] |
//! | replies of one round trip of a replay thread | 8 MiB, whatever Redis sends | `ingest::pace::TRIP_BYTES_MAX` |
//! | history on the way to a transform thread | 16 MiB | [`REPLAY_BYTES_MAX`] |
//! | one batch that a transform thread decodes, and its frames | 2 × 8 MiB | |
//! | frames on the way to a delivery thread, live | 32 MiB | [`INBOX_BYTES_MAX`] |
//! | the same from history | 16 MiB | [`HISTORY_BYTES_MAX`] |
//! | replies and frames of large entries, anywhere | 24 MiB, 96 MiB while clients do not read | [`HISTORY_HELD_MAX`] |
//! | JSON states, while they are put together and until they are taken | 64 MiB | [`answers_bytes_max`] |
//! | unfinished input of clients | 64 MiB | [`INPUT_BYTES_MAX`] |
//! | checkpoints of scans | 16 MiB | [`CHECKPOINT_BYTES_MAX`] |
//! | dead letters, receipts, ends and cancels that wait to be written | their `…_BYTES_MAX` | below |
//! | those that the recorder holds | 1 MiB and one letter; 10 MiB of receipts while Redis refuses them | `recorder` |
//! | frames that wait for clients | `client.send_budget` each, and one frame beyond it | `deliver::outbox` |
//! | answers to what clients say | 32 KiB each, and one answer that is larger | `deliver::outbox` |
//!
//! A message that alone exceeds a queue's limit is accepted if the queue is empty, so an entry of 8 MiB always
//! passes. The gauges `history_reply_bytes`, `history_frame_bytes` and `checkpoint_bytes` show the bytes held of
//! history, and `outbox_bytes` those that wait for clients. Everything else in the queues takes a few hundred bytes
//! per message.
//!
//! [`HISTORY_HELD_MAX`]: crate::model::HISTORY_HELD_MAX
//! [`CHECKPOINT_BYTES_MAX`]: crate::decode::checkpoints::CHECKPOINT_BYTES_MAX

/// Bytes of undecoded live entries on the way to one transform thread. At the limit a reader waits, and entries stay
/// in Redis meanwhile: some tens of milliseconds of decoding by one transform thread.
pub const LIVE_BYTES_MAX: usize = 32 << 20;

/// Bytes of undecoded history on the way to one transform thread. At the limit replay threads wait.
pub const REPLAY_BYTES_MAX: usize = 16 << 20;

/// Bytes of live frames on the way to one delivery thread. At the limit its streams fall back to history.
pub const INBOX_BYTES_MAX: usize = 32 << 20;

/// Bytes of frames from history on the way to one delivery thread. Frames that do not fit are requested again.
pub const HISTORY_BYTES_MAX: usize = 16 << 20;

/// Bytes of unfinished input, over all connections of the process: requests and messages that clients have begun to
/// send, each at most some 128 KiB and for at most `client.handshake_timeout`. Input beyond the limit is refused with
/// 503 or 1013.
pub const INPUT_BYTES_MAX: usize = 64 << 20;

/// Bytes of answers larger than `client.send_budget`, over all connections of the process: JSON states, while they
/// are assembled and until their clients have received them. An answer beyond the limit is refused with 503. At least
/// two of the largest fit, so that one client that does not read does not block the others.
#[must_use]
pub const fn answers_bytes_max(max_state: usize) -> usize {
    let several = 64 << 20;
    let two = max_state.saturating_mul(2);
    if two > several { two } else { several }
}

/// Commands of delivery threads to one transform thread, and of transform threads to one reader. The sender holds
/// those that do not fit, at most two per stream.
pub const COMMANDS_MAX: usize = 8192;

/// History reads that wait for a replay thread. The delivery threads hold those that do not fit, at most one per
/// viewer.
pub const REQUESTS_MAX: usize = 4096;

/// Requests for the watcher: names to wait for, and checks. At the limit, the delivery threads hold the waiting
/// viewers, and a check is requested again.
pub const WATCHER_REQUESTS_MAX: usize = 8192;

/// Requests to cancel that wait for the recorder. At the limits they are refused.
pub const CANCELS_MAX: usize = 4096;
/// Their bytes.
pub const CANCELS_BYTES_MAX: usize = 4 << 20;

/// Ends of generations that wait for the recorder. At the limits they are requested again.
pub const ENDS_MAX: usize = 4096;
/// Their bytes.
pub const ENDS_BYTES_MAX: usize = 4 << 20;

/// Dead letters that wait for the recorder. At the limits the streams that produce more of them wait.
pub const LETTERS_MAX: usize = 65_536;
/// Their bytes.
pub const LETTERS_BYTES_MAX: usize = 16 << 20;

/// Acknowledgements, and ends that are to be acknowledged, that wait for the recorder. At the limits acknowledgements
/// are refused.
pub const RECEIPTS_MAX: usize = 65_536;
/// Their bytes.
pub const RECEIPTS_BYTES_MAX: usize = 16 << 20;
