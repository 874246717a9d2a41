//! JSON of the frames and bodies that concern one client and are not shared: `open`, `status`, gaps that only a
//! reader of history detects, answers to client messages, HTTP error bodies.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{EntryId, Position, StreamName, StreamStatus};

/// Why a subscription on a multiplexed connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsubscribed {
    /// The stream ended and nothing will follow.
    Ended,
    /// The client unsubscribed.
    Requested,
    /// The stream did not appear in time.
    NotFound,
    /// The token does not cover the stream.
    Forbidden,
}

impl Unsubscribed {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Requested => "requested",
            Self::NotFound => "not_found",
            Self::Forbidden => "forbidden",
        }
    }
}

/// `open`: the first frame of a stream, with the resolved value of `after`.
#[must_use]
pub fn open(stream: &StreamName, after: Position, state: StreamStatus) -> Vec<u8> {
    format!(r#"{{"type":"open","stream":"{stream}","after":"{after}","state":"{}"}}"#, state.as_str())
        .into_bytes()
}

/// `status`: the state of the stream, of Redis or of this instance.
#[must_use]
pub fn status(state: StreamStatus) -> Vec<u8> {
    format!(r#"{{"type":"status","state":"{}"}}"#, state.as_str()).into_bytes()
}

/// `gap`: entries after `after` were trimmed before they could be sent; `next` is the first entry that is left. If
/// none is left, both `next` and `id` are the stream's newest id, which becomes the client's position.
#[must_use]
pub fn gap_trimmed(
    after: Position,
    next: Option<EntryId>,
    id: Option<EntryId>,
    lost: Option<u64>,
) -> Vec<u8> {
    gap(id, after, next, lost, "trimmed")
}

/// `gap`: the stream was deleted and recreated after `after`.
#[must_use]
pub fn gap_recreated(after: Position, next: Option<EntryId>) -> Vec<u8> {
    gap(None, after, next, None, "recreated")
}

/// `gap`: Redis came back with a copy of the stream that is older than `after`. Reading continues after `id`, the
/// newest id in it, which becomes the client's position.
#[must_use]
pub fn gap_failover(after: Position, next: Option<EntryId>, id: EntryId) -> Vec<u8> {
    gap(Some(id), after, next, None, "failover")
}

fn gap(
    id: Option<EntryId>,
    after: Position,
    next: Option<EntryId>,
    lost: Option<u64>,
    reason: &str,
) -> Vec<u8> {
    let id = id.map(|id| format!(r#""id":"{id}","#)).unwrap_or_default();
    let next = next.map_or_else(|| "null".to_owned(), |next| format!(r#""{next}""#));
    let lost = lost.map_or_else(|| "null".to_owned(), |lost| lost.to_string());
    format!(r#"{{"type":"gap",{id}"after":"{after}","next":{next},"lost":{lost},"reason":"{reason}"}}"#)
        .into_bytes()
}

/// `refused`: a client's message was not accepted.
#[must_use]
pub fn refused(code: &str, message: &str) -> Vec<u8> {
    let (code, message) = (quoted(code), quoted(message));
    format!(r#"{{"type":"refused","code":{code},"message":{message}}}"#).into_bytes()
}

/// `pong`, with the nonce byte for byte.
#[must_use]
pub fn pong(nonce: Option<&RawValue>) -> Vec<u8> {
    match nonce {
        Some(nonce) => format!(r#"{{"type":"pong","nonce":{}}}"#, nonce.get()).into_bytes(),
        None => br#"{"type":"pong"}"#.to_vec(),
    }
}

/// `acked`: the client's acknowledgement is stored.
#[must_use]
pub fn acked(id: Position) -> Vec<u8> {
    format!(r#"{{"type":"acked","id":"{id}"}}"#).into_bytes()
}

/// `cancel_requested`: the request is on the control stream.
#[must_use]
pub fn cancel_requested() -> Vec<u8> {
    br#"{"type":"cancel_requested"}"#.to_vec()
}

/// `unsubscribed`: a subscription of a multiplexed connection has ended.
#[must_use]
pub fn unsubscribed(stream: &StreamName, reason: Unsubscribed) -> Vec<u8> {
    format!(r#"{{"type":"unsubscribed","stream":"{stream}","reason":"{}"}}"#, reason.as_str()).into_bytes()
}

/// The body of an HTTP error.
#[must_use]
pub fn error_body(code: &str, message: &str) -> Vec<u8> {
    format!(r#"{{"error":{{"code":{},"message":{}}}}}"#, quoted(code), quoted(message)).into_bytes()
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len() + 2);
    match text.serialize(&mut serde_json::Serializer::new(&mut bytes)) {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        // Writing a string into memory does not fail; an empty string keeps the frame well formed.
        Err(_) => "\"\"".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(json: Vec<u8>) -> String {
        let _: serde_json::Value = serde_json::from_slice(&json).unwrap();
        String::from_utf8(json).unwrap()
    }

    #[test]
    fn control_frames_are_as_in_the_contract() {
        let stream: StreamName = "s1/gpt-4o".parse().unwrap();
        let (id, after) = (EntryId::new(7, 1), Position::whole(EntryId::new(5, 0)));
        for (json, expected) in [
            (
                open(&stream, Position::ZERO, StreamStatus::Live),
                r#"{"type":"open","stream":"s1/gpt-4o","after":"0-0","state":"live"}"#,
            ),
            (status(StreamStatus::Draining), r#"{"type":"status","state":"draining"}"#),
            (
                gap_trimmed(after, Some(id), None, Some(3)),
                r#"{"type":"gap","after":"5-0","next":"7-1","lost":3,"reason":"trimmed"}"#,
            ),
            (
                gap_trimmed(after, None, None, None),
                r#"{"type":"gap","after":"5-0","next":null,"lost":null,"reason":"trimmed"}"#,
            ),
            (
                gap_recreated(after, Some(id)),
                r#"{"type":"gap","after":"5-0","next":"7-1","lost":null,"reason":"recreated"}"#,
            ),
            (
                gap_failover(after, None, EntryId::new(4, 2)),
                r#"{"type":"gap","id":"4-2","after":"5-0","next":null,"lost":null,"reason":"failover"}"#,
            ),
            (
                refused("bad\"", "line\nbreak ä"),
                r#"{"type":"refused","code":"bad\"","message":"line\nbreak ä"}"#,
            ),
            (pong(None), r#"{"type":"pong"}"#),
            (cancel_requested(), r#"{"type":"cancel_requested"}"#),
            (
                unsubscribed(&stream, Unsubscribed::NotFound),
                r#"{"type":"unsubscribed","stream":"s1/gpt-4o","reason":"not_found"}"#,
            ),
            (error_body("c", "m"), r#"{"error":{"code":"c","message":"m"}}"#),
        ] {
            assert_eq!(delivered(json), expected);
        }
        let nonce: Box<RawValue> = serde_json::from_str(r#"{"a": [1]}"#).unwrap();
        assert_eq!(delivered(pong(Some(&nonce))), r#"{"type":"pong","nonce":{"a": [1]}}"#);
    }
}
