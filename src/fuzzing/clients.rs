//! Targets: input of clients on the public listener.

use super::cut;
use crate::deliver::body::Body;
use crate::deliver::http_error::HttpError;
use crate::deliver::input::Input;
use crate::deliver::message::{self, REASON_BYTES_MAX};
use crate::deliver::request::{self, HEAD_BYTES_MAX, Parsed, Request};
use crate::deliver::route::{Route, RouteLimits, route};
use crate::deliver::websocket::{CloseReason, Decoder, Incoming, MESSAGE_BYTES_MAX};
use crate::model::Naming;
use crate::security::host::{HostPolicy, is_host};
use crate::security::origin::{OriginDecision, OriginPolicy, is_origin};

const NAMINGS: [Naming; 2] = [Naming::SessionAndModel, Naming::Session];
/// The longest body that is allowed here, in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// The longest message for people, in bytes.
const WORDS_BYTES_MAX: usize = 1024;

/// A request's head and body have the same meaning however they are cut.
pub(super) fn request(data: &[u8]) {
    let Some((step, bytes)) = cut(data) else { return };
    match (request::parse(bytes), grown(bytes, step)) {
        (Parsed::Partial, Parsed::Partial) => {}
        (Parsed::Invalid(error), Parsed::Invalid(_)) => expect_words(&error),
        // Before its head is complete, only the beginning of a request is checked.
        (Parsed::Invalid(_), Parsed::Partial) if !has_head(bytes) => {}
        (
            Parsed::Complete { head_bytes, request },
            Parsed::Complete { head_bytes: later, request: again },
        ) => {
            assert_eq!((head_bytes, &request), (later, &again), "in steps of {step}");
            assert!(head_bytes <= bytes.len().min(HEAD_BYTES_MAX));
            judge(&request, &bytes[head_bytes..], step);
        }
        (whole, grown) => panic!("{whole:?} at once, {grown:?} in steps of {step}"),
    }
}

/// Whether there is an empty line after some other text.
fn has_head(mut bytes: &[u8]) -> bool {
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    bytes.windows(4).any(|window| window == b"\r\n\r\n")
}

/// Parses a request as it arrives, `step` bytes at a time.
fn grown(bytes: &[u8], step: usize) -> Parsed {
    let (mut seen, mut end) = (0, 0);
    loop {
        end = (end + step).min(bytes.len());
        match request::parse_grown(&bytes[..end], seen) {
            Parsed::Partial if end < bytes.len() => seen = end,
            parsed => return parsed,
        }
    }
}

fn judge(request: &Request, rest: &[u8], step: usize) {
    for naming in NAMINGS {
        let (max_wait, max_batch) = (std::time::Duration::from_secs(60), std::time::Duration::from_secs(1));
        let limits = RouteLimits { max_wait, max_batch, naming };
        match route(request, &limits) {
            Ok(Route::Stream(asked)) => {
                assert!(asked.wait <= max_wait && asked.batch <= max_batch, "{asked:?}");
                assert_eq!(naming.read(asked.stream.as_str()), Ok(asked.stream));
            }
            Ok(_) => {}
            Err(error) => expect_words(&error),
        }
    }
    let whole = body(request, rest, rest.len());
    assert_eq!(whole, body(request, rest, step), "in steps of {step}");
    if let Some(Ok(body)) = whole {
        assert!(body.len() <= BODY_BYTES_MAX.min(rest.len()));
        if let Err(error) = message::parse_cancel_body(&body) {
            expect_words(&error);
        }
    }
}

fn body(request: &Request, bytes: &[u8], step: usize) -> Option<Result<Vec<u8>, HttpError>> {
    let mut input = Input::default();
    let mut body = match Body::of(request, BODY_BYTES_MAX) {
        Ok(body) => body,
        Err(error) => return Some(Err(error)),
    };
    let mut pieces = bytes.chunks(step.max(1));
    loop {
        if let Some(done) = body.take(&mut input).transpose() {
            return Some(done);
        }
        input.push(pieces.next()?);
    }
}

fn expect_words(error: &HttpError) {
    assert!((400..600).contains(&error.status), "{error}");
    assert!(!error.message.is_empty() && error.message.len() <= WORDS_BYTES_MAX, "{error}");
}

/// Frames produce the same messages however they are cut, and what is held for them is bounded.
pub(super) fn websocket(data: &[u8]) {
    let Some((step, bytes)) = cut(data) else { return };
    let whole = decoded(bytes, bytes.len());
    assert_eq!(whole, decoded(bytes, step), "in steps of {step}");
    for incoming in whole.0 {
        if let Incoming::Text(text) = incoming {
            message(text.as_bytes());
        }
    }
}

fn decoded(bytes: &[u8], step: usize) -> (Vec<Incoming>, Option<CloseReason>) {
    let (mut decoder, mut all) = (Decoder::new(), Vec::new());
    for mut piece in bytes.chunks(step.max(1)) {
        loop {
            match decoder.next(&mut piece) {
                Ok(Some(incoming)) => all.push(incoming),
                Ok(None) => break,
                Err(reason) => return (all, Some(reason)),
            }
        }
        assert!(piece.is_empty(), "all is taken");
        assert!(decoder.cost_bytes() <= 2 * (MESSAGE_BYTES_MAX + bytes.len()), "{}", decoder.cost_bytes());
    }
    (all, None)
}

/// A client's message is accepted, or refused with a message.
pub(super) fn message(data: &[u8]) {
    if let Err(error) = message::parse_cancel_body(data) {
        expect_words(&error);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    for (multiplexed, naming) in [false, true].into_iter().flat_map(|one| NAMINGS.map(|naming| (one, naming)))
    {
        match message::parse(text, multiplexed, naming) {
            Ok(message) => {
                if let Some(stream) = message.stream() {
                    assert_eq!(naming.read(stream.as_str()).as_ref(), Ok(stream));
                }
                match &message {
                    message::ClientMessage::Cancel { reason: Some(reason), .. } => {
                        assert!(reason.len() <= REASON_BYTES_MAX);
                    }
                    message::ClientMessage::Ping { nonce: Some(nonce) } => {
                        assert!(text.contains(nonce.get()), "a nonce comes back as it was");
                    }
                    _ => {}
                }
                assert!(!multiplexed || message.stream().is_some() || is_ping(&message), "{message:?}");
            }
            Err(refusal) => {
                assert!(!refusal.message.is_empty() && refusal.message.len() <= WORDS_BYTES_MAX, "{refusal}");
            }
        }
    }
}

const fn is_ping(message: &message::ClientMessage) -> bool {
    matches!(message, message::ClientMessage::Ping { .. })
}

/// `Origin` and `Host` of a request, and the configured names: only listed names, our own and addresses are accepted.
pub(super) fn hosts(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let (origin, host) = (lines.next(), lines.next());
    let (origins, hosts): (Vec<String>, Vec<String>) =
        lines.map(str::to_owned).filter(|line| line != "*").partition(|line| line.contains("://"));
    let policy = HostPolicy::from(&hosts, &origins);
    if let Some(host) = host.filter(|host| policy.allows(Some(host))) {
        expect_own(host, &hosts, &origins);
    }
    assert!(hosts.iter().filter(|host| is_host(host)).all(|host| policy.allows(Some(host))), "{hosts:?}");
    let policy = OriginPolicy::from(&origins);
    for origin in origins.iter().filter(|origin| is_origin(origin)) {
        assert_eq!(policy.decide(Some(origin), None), OriginDecision::Allowed(origin));
    }
    let Some(origin) = origin else { return };
    let unlisted = OriginPolicy::from(&[]);
    assert_eq!(unlisted.decide(Some(origin), None), OriginDecision::Forbidden, "{origin}");
    if unlisted.decide(Some(origin), host) == OriginDecision::NotCrossOrigin {
        let is_own = origin
            .split_once("://")
            .zip(host)
            .is_some_and(|((_, authority), host)| without_port(authority) == without_port(host));
        assert!(is_own, "{origin} is taken for {host:?}");
    }
}

/// An accepted host is an address, our own name, or a listed name.
fn expect_own(host: &str, hosts: &[String], origins: &[String]) {
    let name = without_port(host);
    let of_origins = origins.iter().filter_map(|origin| origin.split_once("://"));
    let mut listed = hosts.iter().map(String::as_str).chain(of_origins.map(|(_, authority)| authority));
    let is_address = name.starts_with('[') || name.starts_with(|c: char| c.is_ascii_digit());
    let is_own = name == "localhost" || is_address || listed.any(|listed| without_port(listed) == name);
    assert!(is_own, "{host} is none of {hosts:?} and {origins:?}");
}

/// The name alone, in lower case.
fn without_port(authority: &str) -> String {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name =
        authority.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(authority, |(name, _)| name);
    name.to_ascii_lowercase()
}
