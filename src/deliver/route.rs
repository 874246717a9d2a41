//! Routing: derives the resource of the public listener from the request alone.
//!
//! Checks come in the order path (404, 400), method (405), query (400). Whether the stream exists, and whether origin
//! and address are allowed, is checked elsewhere.

use std::borrow::Cow;
use std::time::Duration;

use super::format::Format;
use super::http_error::HttpError;
use super::request::{Method, Request};
use crate::model::{After, NameError, Naming, Position, StreamName};
use crate::web::{self, WebFile};

/// How long to wait for a stream that does not exist, by default.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(30);

const STREAM_METHODS: &str = "GET, HEAD, OPTIONS";
const MULTIPLEX_METHODS: &str = "GET, OPTIONS";
const PAGE_METHODS: &str = "GET, HEAD, OPTIONS";
const ALL_METHODS: &str = "GET, HEAD, POST, OPTIONS";

/// How streams are named, and the limits on clients' options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteLimits {
    /// The longest `wait`.
    pub max_wait: Duration,
    /// The longest `batch_ms`.
    pub max_batch: Duration,
    /// How streams are named.
    pub naming: Naming,
}

impl RouteLimits {
    /// The `wait` that a client gets, given the one that it asked for.
    #[must_use]
    pub fn wait(&self, asked: Option<Duration>) -> Duration {
        asked.unwrap_or(WAIT_DEFAULT).min(self.max_wait)
    }

    /// The merging time that a client gets, given the one that it asked for.
    #[must_use]
    pub fn batch(&self, asked: Option<Duration>) -> Duration {
        asked.unwrap_or(Duration::ZERO).min(self.max_batch)
    }
}

/// The resource of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// A stream in one of its representations.
    Stream(StreamRequest),
    /// The WebSocket for many streams, `/v1/ws`.
    Multiplex,
    /// A request to stop a stream's producer; a body may follow.
    Cancel(StreamName),
    /// The page at `/`.
    Page,
    /// A file of the browser client.
    File(&'static WebFile),
    /// OPTIONS on a resource with these methods, as a CORS preflight or not.
    Preflight {
        /// The resource's methods.
        methods: &'static str,
    },
}

/// The four representations of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Representation {
    /// Frames over WebSocket.
    WebSocket,
    /// Frames as server-sent events.
    Sse,
    /// The state so far, as JSON.
    State,
    /// Whether it exists.
    Head,
}

/// A stream with a client's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRequest {
    /// The stream.
    pub stream: StreamName,
    /// The representation.
    pub representation: Representation,
    /// The position to begin after.
    pub after: After,
    /// Whether the client gave a position.
    pub explicit_after: bool,
    /// Whether to continue with later generations.
    pub follow: bool,
    /// How long to wait for a stream that does not exist.
    pub wait: Duration,
    /// For how long frames may be merged.
    pub batch: Duration,
    /// The format, if it is not the native one.
    pub format: Option<Format>,
}

/// Determines the resource and options of `request`.
///
/// # Errors
/// The error response to send instead: 400, 404, 405, 413 or 426.
pub fn route(request: &Request, limits: &RouteLimits) -> Result<Route, HttpError> {
    match Resource::find(&request.path, request.method, limits.naming)? {
        resource if request.method == Method::Options => Ok(Route::Preflight { methods: resource.methods() }),
        resource if !resource.serves(request.method) => {
            Err(HttpError::method_not_allowed(resource.methods()))
        }
        Resource::Page => Ok(Route::Page),
        Resource::File(file) => Ok(Route::File(file)),
        Resource::Multiplex => multiplex(request),
        Resource::Cancel(stream) => Ok(Route::Cancel(stream)),
        Resource::Stream { stream, .. } => stream_request(request, limits, stream).map(Route::Stream),
        Resource::Server => Err(nothing_here()),
    }
}

/// The resource that a path names.
enum Resource {
    Page,
    File(&'static WebFile),
    Multiplex,
    /// A stream; `is_action`: POST to the same path is a different resource.
    Stream {
        stream: StreamName,
        is_action: bool,
    },
    Cancel(StreamName),
    /// `*`, which only OPTIONS supports.
    Server,
}

impl Resource {
    fn find(path: &str, method: Method, naming: Naming) -> Result<Self, HttpError> {
        match path {
            "/" => return Ok(Self::Page),
            "/v1/ws" => return Ok(Self::Multiplex),
            "*" if method == Method::Options => return Ok(Self::Server),
            _ => {}
        }
        if let Some(file) = web::file_at(path) {
            return Ok(Self::File(file));
        }
        let Some(rest) = path.strip_prefix("/v1/streams/").filter(|rest| !rest.is_empty()) else {
            return Err(nothing_here());
        };
        // `/v1/streams/s/cancel` names the model `cancel`: the action needs a whole name before it. For all methods
        // except POST, the path is that of a model whose name ends like that, if streams have models.
        let has_models = naming == Naming::SessionAndModel;
        match rest.strip_suffix("/cancel").filter(|name| name.contains('/') || !has_models) {
            Some(name) if method == Method::Post => parse_name(name, naming).map(Self::Cancel),
            Some(name) if method == Method::Options && !has_models => {
                parse_name(name, naming).map(Self::Cancel)
            }
            Some(_) => parse_name(rest, naming).map(|stream| Self::Stream { stream, is_action: true }),
            None => parse_name(rest, naming).map(|stream| Self::Stream { stream, is_action: false }),
        }
    }

    const fn methods(&self) -> &'static str {
        match self {
            Self::Page | Self::File(_) => PAGE_METHODS,
            Self::Multiplex => MULTIPLEX_METHODS,
            Self::Stream { is_action: false, .. } => STREAM_METHODS,
            Self::Stream { .. } | Self::Cancel(_) | Self::Server => ALL_METHODS,
        }
    }

    const fn serves(&self, method: Method) -> bool {
        match self {
            Self::Page | Self::File(_) | Self::Stream { .. } => matches!(method, Method::Get | Method::Head),
            Self::Multiplex => matches!(method, Method::Get),
            Self::Cancel(_) => matches!(method, Method::Post),
            Self::Server => false,
        }
    }
}

fn nothing_here() -> HttpError {
    HttpError::not_found("there is nothing at this path; streams are at /v1/streams/{session}/{model}")
}

/// Parses a name from a path. Only the model may contain an encoded slash: it never separates session and model.
fn parse_name(name: &str, naming: Naming) -> Result<StreamName, HttpError> {
    let refuse = |error: NameError| match error {
        NameError::NoModels => HttpError::not_found(error.to_string()),
        error => HttpError::new(400, "bad_name", error.to_string()),
    };
    let (session, model) = name.split_at(name.find('/').unwrap_or(name.len()));
    let session = decode_path(session)?;
    if session.contains('/') {
        return Err(refuse(NameError::Session));
    }
    let name = session + decode_path(model)?;
    naming.read(&name).map_err(refuse)
}

fn multiplex(request: &Request) -> Result<Route, HttpError> {
    if Query::read(&request.query)?.format()?.is_some() {
        let message = "this resource supports only `native`; a stream's own WebSocket has the other formats";
        return Err(HttpError::new(400, "unsupported_format", message));
    }
    if request.websocket.is_none() {
        return Err(HttpError::bad_upgrade(426, "this resource supports only WebSocket"));
    }
    Ok(Route::Multiplex)
}

fn stream_request(
    request: &Request,
    limits: &RouteLimits,
    stream: StreamName,
) -> Result<StreamRequest, HttpError> {
    let query = Query::read(&request.query)?;
    let format = query.format()?;
    let representation = if request.method == Method::Head {
        Representation::Head
    } else if request.websocket.is_some() {
        Representation::WebSocket
    } else if format.is_some() || accepts_events(request.accept.as_deref()) {
        Representation::Sse
    } else {
        Representation::State
    };
    let is_single = matches!(representation, Representation::State | Representation::Head);
    let (wait_default, after_default) = match format {
        Some(Format::AiSdk) => (Duration::ZERO, After::Last),
        _ if is_single => (Duration::ZERO, After::At(Position::ZERO)),
        _ => (WAIT_DEFAULT, After::At(Position::ZERO)),
    };
    let mut after = query.after()?;
    if representation == Representation::Sse {
        after = last_event_id(request)?.or(after);
    }
    Ok(StreamRequest {
        stream,
        representation,
        after: after.unwrap_or(after_default),
        explicit_after: after.is_some(),
        follow: query.follow()?,
        wait: limits.wait(Some(query.wait()?.unwrap_or(wait_default))),
        batch: limits.batch(query.batch()?),
        format,
    })
}

/// The position at which an EventSource continues; an empty id means none.
fn last_event_id(request: &Request) -> Result<Option<After>, HttpError> {
    match request.last_event_id.as_deref() {
        None | Some("") => Ok(None),
        Some(id) => match id.parse() {
            Ok(position) => Ok(Some(After::At(position))),
            Err(error) => Err(HttpError::bad_request(format!("Last-Event-ID: {error}"))),
        },
    }
}

/// Whether `Accept` contains `text/event-stream` itself, with a weight above 0.
fn accepts_events(accept: Option<&str>) -> bool {
    accept.is_some_and(|accept| {
        accept.split(',').any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let is_events = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("text/event-stream"));
            is_events && !parts.any(is_zero_weight)
        })
    })
}

/// Whether a parameter of a media range is `q=0`, in any of its spellings.
fn is_zero_weight(parameter: &str) -> bool {
    parameter.split_once('=').is_some_and(|(name, value)| {
        name.trim().eq_ignore_ascii_case("q") && value.trim().parse::<f32>().is_ok_and(|weight| weight <= 0.0)
    })
}

/// A position: `0`, an id, `last` or `$`.
pub(super) fn parse_after(text: &str) -> Option<After> {
    match text {
        "last" => Some(After::Last),
        "$" => Some(After::Tail),
        id => id.parse().ok().map(After::At),
    }
}

/// Converts a number of seconds; a number that is too large becomes the longest duration. `None` for a negative
/// number or one that is not a number.
pub(super) fn duration_from_secs(seconds: f64) -> Option<Duration> {
    if seconds.is_nan() || seconds < 0.0 {
        return None;
    }
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// The known keys, decoded; the last of several counts.
#[derive(Default)]
struct Query<'a> {
    after: Option<Cow<'a, str>>,
    follow: Option<Cow<'a, str>>,
    format: Option<Cow<'a, str>>,
    wait: Option<Cow<'a, str>>,
    batch_ms: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    fn read(query: &'a str) -> Result<Self, HttpError> {
        let mut read = Self::default();
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            // A key that cannot be decoded is unknown.
            let Some(key) = decode(key, Plus::IsSpace) else { continue };
            let slot = match &*key {
                "after" => &mut read.after,
                "follow" => &mut read.follow,
                "format" => &mut read.format,
                "wait" => &mut read.wait,
                "batch_ms" => &mut read.batch_ms,
                _ => continue,
            };
            *slot =
                Some(decode(value, Plus::IsSpace).ok_or_else(|| bad_query(&key, "valid percent-encoding"))?);
        }
        Ok(read)
    }

    fn format(&self) -> Result<Option<Format>, HttpError> {
        match self.format.as_deref() {
            None | Some("native") => Ok(None),
            Some("openai") => Ok(Some(Format::OpenAi)),
            Some("ai-sdk") => Ok(Some(Format::AiSdk)),
            Some(_) => Err(bad_query("format", "`native`, `openai` or `ai-sdk`")),
        }
    }

    fn after(&self) -> Result<Option<After>, HttpError> {
        let form = "an entry id (`ms`, `ms-n` or `ms-n.k`), `0`, `last` or `$`";
        self.after
            .as_deref()
            .map(|text| parse_after(text).ok_or_else(|| bad_query("after", form)))
            .transpose()
    }

    fn follow(&self) -> Result<bool, HttpError> {
        match self.follow.as_deref() {
            None | Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(_) => Err(bad_query("follow", "`1` or `0`")),
        }
    }

    fn wait(&self) -> Result<Option<Duration>, HttpError> {
        let form = "a number of seconds";
        let wait = self.wait.as_deref().map(|text| decimal(text).and_then(duration_from_secs));
        wait.map(|wait| wait.ok_or_else(|| bad_query("wait", form))).transpose()
    }

    fn batch(&self) -> Result<Option<Duration>, HttpError> {
        let form = "a number of milliseconds";
        let batch =
            self.batch_ms.as_deref().map(|text| decimal(text).and_then(|ms| duration_from_secs(ms / 1e3)));
        batch.map(|batch| batch.ok_or_else(|| bad_query("batch_ms", form))).transpose()
    }
}

fn bad_query(key: &str, form: &str) -> HttpError {
    HttpError::new(400, "bad_query", format!("the query's `{key}` must be {form}"))
}

/// A plain decimal number: digits with an optional fraction; no sign, no exponent.
fn decimal(text: &str) -> Option<f64> {
    text.bytes().all(|b| b.is_ascii_digit() || b == b'.').then(|| text.parse().ok())?
}

/// The meaning of a plus sign: itself in a path, a space in a query.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plus {
    IsPlus,
    IsSpace,
}

fn decode_path(path: &str) -> Result<Cow<'_, str>, HttpError> {
    decode(path, Plus::IsPlus).ok_or_else(|| HttpError::bad_request("the path is not valid percent-encoding"))
}

/// Decodes percent-encoding; `None` if it is malformed or the result is not UTF-8.
fn decode(text: &str, plus: Plus) -> Option<Cow<'_, str>> {
    let is_encoded = |b: u8| b == b'%' || (b == b'+' && plus == Plus::IsSpace);
    if !text.bytes().any(is_encoded) {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            b'+' if plus == Plus::IsSpace => b' ',
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

const fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
