//! Just enough of Centrifugo's JSON protocol for the clients, and how entries reach its consumer of Redis Streams.
//! Pure.

use std::io;

use crate::wire;

/// How many streams in Redis the consumer reads. Each has one worker, which keeps its order but handles one entry
/// after another, and a channel always uses the same stream.
const QUEUES: usize = 16;
/// About how many entries each of them keeps: the consumer acknowledges entries and does not delete them.
const QUEUE_LEN_MAX: &str = "100000";

/// The channel of a stream of the bench.
pub(crate) fn channel(stream: usize) -> String {
    format!("llm:bench-{stream}")
}

/// The first messages of a client: it connects and subscribes from the beginning of the channel's history.
pub(crate) fn opening(stream: usize) -> String {
    format!("{{\"id\":1,\"connect\":{{\"name\":\"bench\"}}}}\n{}", subscribe(stream, 0))
}

/// The request for a channel after so many publications, which are its offset. The run's Redis is new, so there is
/// one epoch, and none has to be named.
pub(crate) fn subscribe(stream: usize, offset: u64) -> String {
    let channel = channel(stream);
    format!(
        "{{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\",\"recover\":true,\"offset\":{offset},\"epoch\":\"\"}}}}"
    )
}

/// A message of the server; a frame contains one or more, a line each.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// It is connected, which needs no reaction.
    Notice,
    /// It wants the same empty message.
    Ping,
    /// It has subscribed, and tells whether everything since the requested position follows in this message.
    Subscribed {
        /// Whether it does.
        recovered: bool,
    },
    /// A publication.
    Publication,
    /// It found that the client may have missed something: the client has to subscribe again, from its offset. Under
    /// load that happens to clients that have missed nothing.
    Insufficient,
    /// It reports an error or the end, or says something unknown.
    Trouble,
}

/// The kind of a message.
pub(crate) fn said(line: &[u8]) -> Said {
    if line == b"{}" {
        Said::Ping
    } else if line.starts_with(b"{\"push\":{\"channel\":") && contains(line, b"\"pub\":") {
        Said::Publication
    } else if contains(line, b"\"unsubscribe\":{\"code\":2500,") {
        Said::Insufficient
    } else if line.starts_with(b"{\"id\":1,\"connect\":") {
        Said::Notice
    } else if line.starts_with(b"{\"id\":2,\"subscribe\":") {
        Said::Subscribed { recovered: contains(line, b"\"recovered\":true") }
    } else {
        Said::Trouble
    }
}

/// The data of the publications in a message, each with what follows it.
pub(crate) fn publications(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    const DATA: &[u8] = b"\"data\":";
    let mut rest = line;
    std::iter::from_fn(move || {
        let at = rest.windows(DATA.len()).position(|window| window == DATA)? + DATA.len();
        rest = &rest[at..];
        let end = rest.windows(DATA.len()).position(|window| window == DATA).unwrap_or(rest.len());
        Some(&rest[..end])
    })
}

fn contains(line: &[u8], text: &[u8]) -> bool {
    line.windows(text.len()).any(|window| window == text)
}

/// The keys of the streams that the consumer reads.
pub(crate) fn queues() -> impl Iterator<Item = String> {
    (0..QUEUES).map(queue)
}

fn queue(number: usize) -> String {
    format!("llm:centrifugo:{number}")
}

/// The XADD of a stream's token for the consumer: the parts in front of the id, and between the id and the value.
pub(crate) fn xadd(stream: usize) -> io::Result<[Vec<u8>; 2]> {
    let queue = queue(stream % QUEUES);
    let mut parts = [b"*10\r\n".to_vec(), Vec::new()];
    for argument in ["XADD", &queue, "MAXLEN", "~", QUEUE_LEN_MAX] {
        wire::bulk(&mut parts[0], argument.as_bytes())?;
    }
    for argument in ["centrifugo-channels", &channel(stream), "payload"] {
        wire::bulk(&mut parts[1], argument.as_bytes())?;
    }
    Ok(parts)
}
