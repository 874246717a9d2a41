//! Parses client messages after the upgrade, and the body of a cancel request: JSON from the network into checked and
//! bounded values.
//!
//! Unknown members are ignored, `null` counts as absent. Nesting costs no stack: serde_json skips values that are
//! ignored or passed on raw without recursion, and refuses deep values elsewhere.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::http_error::HttpError;
use super::route::{duration_from_secs, parse_after};
use crate::model::{After, Naming, Position, StreamName};

/// The longest reason of a cancel request, in bytes.
pub const REASON_BYTES_MAX: usize = 1024;

/// A client's message.
#[derive(Clone, Debug)]
pub enum ClientMessage {
    /// Add a stream to a multiplexed connection.
    Subscribe {
        /// The stream.
        stream: StreamName,
        /// The position to begin after; by default the whole stream.
        after: After,
        /// Whether to continue with later generations.
        follow: bool,
        /// How long to wait for a stream that does not exist, as the client asked.
        wait: Option<Duration>,
        /// For how long frames may be merged, as the client asked.
        batch: Option<Duration>,
    },
    /// Remove a stream from a multiplexed connection.
    Unsubscribe {
        /// The stream.
        stream: StreamName,
    },
    /// Ask the producer of a stream to stop.
    Cancel {
        /// The stream; required on a multiplexed connection.
        stream: Option<StreamName>,
        /// The reason.
        reason: Option<String>,
    },
    /// Acknowledge everything up to a position.
    Ack {
        /// The stream; required on a multiplexed connection.
        stream: Option<StreamName>,
        /// The position.
        id: Position,
    },
    /// Request a pong.
    Ping {
        /// Any JSON, to be returned.
        nonce: Option<Box<RawValue>>,
    },
}

/// Why a message is not accepted; sent as a `refused` frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// A code for programs: `malformed`, `unknown_type`, `unsupported`, `bad_name` or `bad_option`.
    pub code: &'static str,
    /// A message for people.
    pub message: String,
    /// The stream of the message, on a connection with many streams.
    pub stream: Option<StreamName>,
}

impl ClientMessage {
    /// The stream that the message names.
    #[must_use]
    pub const fn stream(&self) -> Option<&StreamName> {
        match self {
            Self::Subscribe { stream, .. } | Self::Unsubscribe { stream } => Some(stream),
            Self::Cancel { stream, .. } | Self::Ack { stream, .. } => stream.as_ref(),
            Self::Ping { .. } => None,
        }
    }
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), stream: None }
    }

    /// Adds the stream of the message.
    #[must_use]
    pub fn about(self, stream: Option<StreamName>) -> Self {
        Self { stream: stream.or(self.stream), ..self }
    }

    fn option(name: &str, form: &str) -> Self {
        Self::new("bad_option", format!("`{name}` must be {form}"))
    }
}

/// Parses a text message. `multiplexed`: the connection is `/v1/ws`, where streams are added and removed and every
/// message about a stream names it, according to `naming`.
///
/// # Errors
/// The [`Refusal`] to send.
pub fn parse(text: &str, multiplexed: bool, naming: Naming) -> Result<ClientMessage, Refusal> {
    let raw = RawMessage::read(text).map_err(|error| Refusal::new("malformed", error))?;
    let stream = if multiplexed { raw.stream(false, naming).ok().flatten() } else { None };
    interpret(&raw, multiplexed, naming).map_err(|refusal| refusal.about(stream))
}

fn interpret(raw: &RawMessage<'_>, multiplexed: bool, naming: Naming) -> Result<ClientMessage, Refusal> {
    let kind: String = raw
        .kind
        .and_then(|kind| serde_json::from_str(kind.get()).ok())
        .ok_or_else(|| Refusal::new("malformed", "a message has a `type`, which is a string"))?;
    match kind.as_str() {
        "subscribe" | "unsubscribe" if !multiplexed => {
            Err(Refusal::new("unsupported", "this connection carries one stream; /v1/ws carries many"))
        }
        "subscribe" => subscribe(raw, naming),
        "unsubscribe" => {
            Ok(ClientMessage::Unsubscribe { stream: raw.stream(true, naming)?.ok_or_else(no_stream)? })
        }
        "cancel" => Ok(ClientMessage::Cancel {
            stream: raw.stream(multiplexed, naming)?,
            reason: reason(raw.reason)?,
        }),
        "ack" => Ok(ClientMessage::Ack { stream: raw.stream(multiplexed, naming)?, id: position(raw.id)? }),
        "ping" => Ok(ClientMessage::Ping { nonce: raw.nonce.map(RawValue::to_owned) }),
        "auth" => Err(Refusal::new("unsupported", "this server accepts no tokens")),
        _ => Err(Refusal::new("unknown_type", "the types are subscribe, unsubscribe, cancel, ack and ping")),
    }
}

/// Parses the body of a cancel request: empty, or an object with an optional `reason`.
///
/// # Errors
/// 400 if it is neither.
pub fn parse_cancel_body(body: &[u8]) -> Result<Option<String>, HttpError> {
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(body).map_err(|_| HttpError::bad_request("the body is not UTF-8"))?;
    let raw = RawMessage::read(text).map_err(HttpError::bad_request)?;
    reason(raw.reason).map_err(|refusal| HttpError::bad_request(refusal.message))
}

/// The known members, each still raw, so that one with a wrong type is refused by name.
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

impl<'a> RawMessage<'a> {
    fn read(text: &'a str) -> Result<Self, String> {
        // serde would accept an array for a struct too.
        if !text.trim_ascii_start().starts_with('{') {
            return Err("not a JSON object".to_owned());
        }
        serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))
    }

    fn stream(&self, required: bool, naming: Naming) -> Result<Option<StreamName>, Refusal> {
        match self.stream {
            None if required => Err(no_stream()),
            None => Ok(None),
            Some(raw) => naming
                .read(&string(raw).ok_or_else(no_stream)?)
                .map(Some)
                .map_err(|error| Refusal::new("bad_name", format!("{error}"))),
        }
    }
}

fn no_stream() -> Refusal {
    Refusal::new("bad_name", "`stream` must be a string, the name {session}/{model}")
}

fn subscribe(raw: &RawMessage<'_>, naming: Naming) -> Result<ClientMessage, Refusal> {
    let stream = raw.stream(true, naming)?.ok_or_else(no_stream)?;
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

fn string(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

fn number(raw: &RawValue) -> Option<f64> {
    serde_json::from_str(raw.get()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MODELS: Naming = Naming::SessionAndModel;
    use crate::model::EntryId;

    fn refused(text: &str, multiplexed: bool) -> &'static str {
        parse(text, multiplexed, MODELS).expect_err(text).code
    }

    #[test]
    fn subscriptions_carry_their_options() {
        let text = r#"{"type":"subscribe","stream":"s/a/b","after":"5-1.2","follow":true,"wait":0.5,"batch_ms":20,"x":[]}"#;
        let Ok(ClientMessage::Subscribe { stream, after, follow, wait, batch }) = parse(text, true, MODELS)
        else {
            panic!("{text}");
        };
        assert_eq!((stream.session(), stream.model()), ("s", "a/b"));
        assert_eq!(after, After::At(Position { id: EntryId::new(5, 1), part: 2 }));
        assert!(follow);
        assert_eq!((wait, batch), (Some(Duration::from_millis(500)), Some(Duration::from_millis(20))));

        let text = r#" {"type":"subscribe","stream":"s\/m","after":null,"wait":null,"follow":0}"#;
        let Ok(ClientMessage::Subscribe { stream, after, follow, wait, batch }) = parse(text, true, MODELS)
        else {
            panic!("{text}");
        };
        assert_eq!((stream.as_str(), after, follow), ("s/m", After::At(Position::ZERO), false));
        assert_eq!((wait, batch), (None, None));
        for (word, expected) in [("last", After::Last), ("$", After::Tail), ("0", After::At(Position::ZERO))]
        {
            let text = format!(r#"{{"type":"subscribe","stream":"s/m","after":"{word}"}}"#);
            assert!(
                matches!(parse(&text, true, MODELS), Ok(ClientMessage::Subscribe { after, .. }) if after == expected),
                "{text}"
            );
        }
    }

    #[test]
    fn malformed_options_are_refused_by_name() {
        for (member, value) in [
            ("after", "5"),
            ("after", "\"x\""),
            ("follow", "\"yes\""),
            ("follow", "2"),
            ("wait", "-1"),
            ("wait", "\"2\""),
            ("batch_ms", "[1]"),
            ("batch_ms", "-0.5"),
        ] {
            let text = format!(r#"{{"type":"subscribe","stream":"s/m","{member}":{value}}}"#);
            let refusal = parse(&text, true, MODELS).expect_err(&text);
            assert_eq!(refusal.code, "bad_option", "{text}");
            assert!(refusal.message.contains(member), "{text}: {refusal}");
        }
        assert_eq!(refused(r#"{"type":"ack","id":"last"}"#, false), "bad_option");
        assert_eq!(refused(r#"{"type":"ack"}"#, false), "bad_option");
        assert_eq!(refused(r#"{"type":"cancel","reason":7}"#, false), "bad_option");
        for text in [r#"{"type":"subscribe"}"#, r#"{"type":"unsubscribe","stream":1}"#] {
            assert_eq!(refused(text, true), "bad_name");
        }
        assert_eq!(refused(r#"{"type":"subscribe","stream":"s/../m"}"#, true), "bad_name");
        let huge = parse(r#"{"type":"subscribe","stream":"s/m","wait":1e300}"#, true, MODELS);
        assert!(matches!(huge, Ok(ClientMessage::Subscribe { wait: Some(Duration::MAX), .. })));
    }

    #[test]
    fn other_texts_are_malformed_messages() {
        for text in [
            "",
            "x",
            "null",
            "7",
            "{}",
            r#"["ping"]"#,
            r#"{"type":null}"#,
            r#"{"type":7}"#,
            r#"{"type":"ping"} x"#,
            r#"{"type":"ping","type":"ack"}"#,
        ] {
            assert_eq!(refused(text, true), "malformed", "{text}");
        }
        assert_eq!(refused(r#"{"type":"hello"}"#, false), "unknown_type");
        assert_eq!(refused(r#"{"type":"auth","token":"x"}"#, false), "unsupported");
        assert_eq!(refused(r#"{"type":"subscribe","stream":"s/m"}"#, false), "unsupported");
    }

    #[test]
    fn a_multiplexed_message_names_its_stream() {
        assert!(matches!(
            parse(r#"{"type":"cancel"}"#, false, MODELS),
            Ok(ClientMessage::Cancel { stream: None, .. })
        ));
        assert_eq!(refused(r#"{"type":"cancel"}"#, true), "bad_name");
        assert_eq!(refused(r#"{"type":"ack","id":"1-0"}"#, true), "bad_name");
        let text = r#"{"type":"cancel","stream":"s/m","reason":"enough"}"#;
        let Ok(ClientMessage::Cancel { stream: Some(stream), reason: Some(reason) }) =
            parse(text, true, MODELS)
        else {
            panic!("{text}");
        };
        assert_eq!((stream.as_str(), reason.as_str()), ("s/m", "enough"));
    }

    #[test]
    fn nonces_come_back_byte_for_byte() {
        let text = r#"{"type":"ping","nonce":{"a": [1, "\u00e9"]}}"#;
        let Ok(ClientMessage::Ping { nonce: Some(nonce) }) = parse(text, false, MODELS) else {
            panic!("{text}")
        };
        assert_eq!(nonce.get(), r#"{"a": [1, "\u00e9"]}"#);
        assert!(matches!(
            parse(r#"{"type":"ping"}"#, false, MODELS),
            Ok(ClientMessage::Ping { nonce: None })
        ));
        let long = format!("\"{}\"", "x".repeat(60_000));
        let text = format!(r#"{{"type":"ping","nonce":{long}}}"#);
        let Ok(ClientMessage::Ping { nonce: Some(nonce) }) = parse(&text, false, MODELS) else {
            panic!("{text}")
        };
        assert_eq!(nonce.get(), long);
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        let open = "[".repeat(30_000);
        let deep = open.clone() + &"]".repeat(30_000);
        for (text, code) in [
            (format!(r#"{{"type":{deep}}}"#), "malformed"),
            (format!(r#"{{"type":"subscribe","stream":{deep}}}"#), "bad_name"),
            (format!(r#"{{"type":"subscribe","stream":"s/m","wait":{deep}}}"#), "bad_option"),
        ] {
            assert_eq!(refused(&text, true), code);
        }
        for member in ["nonce", "other"] {
            assert!(parse(&format!(r#"{{"type":"ping","{member}":{deep}}}"#), true, MODELS).is_ok());
        }
        assert_eq!(refused(&open, true), "malformed");
        assert_eq!(refused(&"{\"a\":".repeat(10_000), true), "malformed");
    }

    #[test]
    fn cancel_bodies_are_empty_or_objects() {
        assert_eq!(parse_cancel_body(b""), Ok(None));
        assert_eq!(parse_cancel_body(b" \r\n"), Ok(None));
        assert_eq!(parse_cancel_body(b"{}"), Ok(None));
        assert_eq!(parse_cancel_body(br#"{"reason":"enough"}"#), Ok(Some("enough".to_owned())));
        let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(REASON_BYTES_MAX + 1));
        for body in [&b"reason"[..], b"[]", b"{\"reason\":1}", b"{\"reason\":\"\xff\"}", long.as_bytes()] {
            assert_eq!(parse_cancel_body(body).map_err(|error| error.status), Err(400));
        }
    }

    proptest! {
        #[test]
        fn random_text_is_refused(text in "\\PC*", multiplexed: bool) {
            prop_assert!(parse(&text, multiplexed, MODELS).is_err());
        }
    }
}
