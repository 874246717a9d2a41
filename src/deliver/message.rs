//! What clients say after the upgrade, and the body of a cancel request: JSON from the network into
//! values that are checked and bounded.
//!
//! Unknown members are ignored, `null` counts as absent. Nesting costs no stack: serde_json walks what
//! is ignored or passed on raw without recursion, and refuses deep values elsewhere.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::response::HttpError;
use super::route::{duration_from_secs, parse_after};
use crate::event::{After, Position, StreamName};

/// The longest body of a cancel request, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// The longest nonce of a ping, in bytes of JSON.
pub const NONCE_BYTES_MAX: usize = 256;
/// The longest reason of a cancel request, in bytes.
pub const REASON_BYTES_MAX: usize = 4096;

/// A client's message.
#[derive(Clone, Debug)]
pub enum ClientMessage {
    /// Add a stream to a multiplexed connection.
    Subscribe {
        /// The stream.
        stream: StreamName,
        /// Where to begin; by default the whole stream.
        after: After,
        /// Whether to stay for the generations to come.
        follow: bool,
        /// How long to wait for a name that does not exist, as asked for.
        wait: Option<Duration>,
        /// Over what time frames may be merged, as asked for.
        batch: Option<Duration>,
    },
    /// Remove a stream from a multiplexed connection.
    Unsubscribe {
        /// The stream.
        stream: StreamName,
    },
    /// Ask the producer to stop.
    Cancel {
        /// The stream; always there on a multiplexed connection.
        stream: Option<StreamName>,
        /// Why.
        reason: Option<String>,
    },
    /// The client has everything up to here.
    Ack {
        /// The stream; always there on a multiplexed connection.
        stream: Option<StreamName>,
        /// Up to where.
        id: Position,
    },
    /// Asks for a pong.
    Ping {
        /// Any JSON, to be sent back.
        nonce: Option<Box<RawValue>>,
    },
}

/// Why a message is not accepted; becomes a `refused` frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// A short word for programs: `malformed`, `unknown_type`, `unsupported`, `bad_name` or `bad_option`.
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn option(name: &str, form: &str) -> Self {
        Self::new("bad_option", format!("`{name}` must be {form}"))
    }
}

/// Parses a text message. `multiplexed`: the connection is `/v1/ws`, where streams come and go and
/// every message about one names it.
///
/// # Errors
/// The [`Refusal`] to answer with.
pub fn parse(text: &str, multiplexed: bool) -> Result<ClientMessage, Refusal> {
    let raw: RawMessage<'_> = serde_json::from_str(text)
        .map_err(|error| Refusal::new("malformed", format!("not a message: {error}")))?;
    let kind: String = raw
        .kind
        .and_then(|kind| serde_json::from_str(kind.get()).ok())
        .ok_or_else(|| Refusal::new("malformed", "a message has a `type`, which is a string"))?;
    match kind.as_str() {
        "subscribe" | "unsubscribe" if !multiplexed => {
            Err(Refusal::new("unsupported", "this connection carries one stream; /v1/ws carries many"))
        }
        "subscribe" => subscribe(&raw),
        "unsubscribe" => Ok(ClientMessage::Unsubscribe { stream: raw.stream(true)?.ok_or_else(no_stream)? }),
        "cancel" => {
            Ok(ClientMessage::Cancel { stream: raw.stream(multiplexed)?, reason: reason(raw.reason)? })
        }
        "ack" => Ok(ClientMessage::Ack { stream: raw.stream(multiplexed)?, id: position(raw.id)? }),
        "ping" => Ok(ClientMessage::Ping { nonce: nonce(raw.nonce)? }),
        "auth" => Err(Refusal::new("unsupported", "this server takes no tokens")),
        _ => Err(Refusal::new("unknown_type", "the types are subscribe, unsubscribe, cancel, ack and ping")),
    }
}

/// Reads the body of a cancel request: empty, or an object that may have a `reason`.
///
/// # Errors
/// 400 when it is neither.
pub fn parse_cancel_body(body: &[u8]) -> Result<Option<String>, HttpError> {
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    let raw: RawMessage<'_> = serde_json::from_slice(body)
        .map_err(|error| HttpError::bad_request(format!("the body is empty or a JSON object: {error}")))?;
    reason(raw.reason).map_err(|refusal| HttpError::bad_request(refusal.message))
}

/// The members that mean anything, each still raw, so that a wrong kind is refused by name.
#[derive(Deserialize)]
struct RawMessage<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    after: Option<&'a RawValue>,
    #[serde(borrow)]
    follow: Option<&'a RawValue>,
    #[serde(borrow)]
    wait: Option<&'a RawValue>,
    #[serde(borrow)]
    batch_ms: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    reason: Option<&'a RawValue>,
    #[serde(borrow)]
    nonce: Option<&'a RawValue>,
}

impl RawMessage<'_> {
    fn stream(&self, required: bool) -> Result<Option<StreamName>, Refusal> {
        match self.stream {
            None if required => Err(no_stream()),
            None => Ok(None),
            Some(raw) => string(raw)
                .ok_or_else(no_stream)?
                .parse()
                .map(Some)
                .map_err(|error| Refusal::new("bad_name", format!("{error}"))),
        }
    }
}

fn no_stream() -> Refusal {
    Refusal::new("bad_name", "`stream` must be a string, the name {session}/{model}")
}

fn subscribe(raw: &RawMessage<'_>) -> Result<ClientMessage, Refusal> {
    let stream = raw.stream(true)?.ok_or_else(no_stream)?;
    let after = match raw.after {
        None => After::At(Position::ZERO),
        Some(after) => string(after).and_then(|text| parse_after(&text)).ok_or_else(|| {
            Refusal::option(
                "after",
                "an entry id (`ms`, `ms-n` or `ms-n.k`), `0`, `last` or `$`, as a string",
            )
        })?,
    };
    let follow = match raw.follow.map(RawValue::get) {
        None | Some("false" | "0") => false,
        Some("true" | "1") => true,
        Some(_) => return Err(Refusal::option("follow", "true or false")),
    };
    let wait = raw
        .wait
        .map(|wait| number(wait).and_then(duration_from_secs))
        .map(|wait| wait.ok_or_else(|| Refusal::option("wait", "a number of seconds")))
        .transpose()?;
    let batch = raw
        .batch_ms
        .map(|batch| number(batch).and_then(|ms| duration_from_secs(ms / 1e3)))
        .map(|batch| batch.ok_or_else(|| Refusal::option("batch_ms", "a number of milliseconds")))
        .transpose()?;
    Ok(ClientMessage::Subscribe { stream, after, follow, wait, batch })
}

fn position(raw: Option<&RawValue>) -> Result<Position, Refusal> {
    raw.and_then(string)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Refusal::option("id", "an entry id (`ms`, `ms-n` or `ms-n.k`), as a string"))
}

fn reason(raw: Option<&RawValue>) -> Result<Option<String>, Refusal> {
    let Some(raw) = raw else { return Ok(None) };
    match string(raw).filter(|reason| reason.len() <= REASON_BYTES_MAX) {
        Some(reason) => Ok(Some(reason)),
        None => Err(Refusal::option("reason", &format!("a string of at most {REASON_BYTES_MAX} bytes"))),
    }
}

fn nonce(raw: Option<&RawValue>) -> Result<Option<Box<RawValue>>, Refusal> {
    match raw {
        Some(raw) if raw.get().len() > NONCE_BYTES_MAX => {
            Err(Refusal::option("nonce", &format!("JSON of at most {NONCE_BYTES_MAX} bytes")))
        }
        raw => Ok(raw.map(RawValue::to_owned)),
    }
}

fn string(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

fn number(raw: &RawValue) -> Option<f64> {
    serde_json::from_str(raw.get()).ok()
}
