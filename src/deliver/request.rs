//! Parses the head of an HTTP/1 request into a small, owned value.
//!
//! httparse checks the grammar. The additional rules prevent a request from having different meanings for two
//! readers, such as a proxy and this server: lines end with CR LF, one `Host`, one length, no transfer coding. Bodies
//! are not read here.
//!
//! A caller that gets a [`Parsed::Invalid`] responds and closes: the beginning of the next request is unknown.

use std::fmt;

use super::http_error::HttpError;

/// The longest request head, in bytes.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The most header lines of a request.
const HEADERS_MAX: usize = 64;
/// How many empty lines before a request are ignored, for clients that end a body with one.
const BLANK_LINES_MAX: usize = 2;
/// The supported WebSocket version.
const WEBSOCKET_VERSION: &str = "13";

/// The result of parsing the bytes received so far.
#[derive(Debug)]
pub enum Parsed {
    /// The head is not complete.
    Partial,
    /// The head is complete.
    Complete {
        /// The length of the head in bytes; the body or the next request follows.
        head_bytes: usize,
        /// The request.
        request: Request,
    },
    /// The request is not acceptable: respond and close.
    Invalid(HttpError),
}

/// The methods with a meaning here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`
    Head,
    /// `POST`
    Post,
    /// `OPTIONS`
    Options,
    /// Any other.
    Other,
}

/// The protocol version of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// A well-formed request to switch to WebSocket (version 13).
#[derive(Clone, PartialEq, Eq)]
pub struct WebSocketOffer {
    /// `Sec-WebSocket-Key`: 16 bytes in base64.
    pub key: String,
    /// The offered subprotocols, in the client's order.
    pub protocols: Vec<String>,
}

impl fmt::Debug for WebSocketOffer {
    /// Subprotocols may contain tokens, so they are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketOffer").finish_non_exhaustive()
    }
}

/// A request without its body.
#[allow(clippy::struct_excessive_bools, reason = "three independent facts about one request")]
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path as received, including percent-encoding; `*` for `OPTIONS *`.
    pub path: String,
    /// The text after the first `?`, as received.
    pub query: String,
    /// The protocol version.
    pub version: Version,
    /// Whether the client is ready to send another request on this connection.
    pub keep_alive: bool,
    /// The requested host: that of the target in absolute form, or else that of `Host`. Always present in HTTP/1.1.
    pub host: Option<String>,
    /// `Origin`: the site that a browser sends the request for.
    pub origin: Option<String>,
    /// `Accept`, several lines joined by commas.
    pub accept: Option<Box<str>>,
    /// `If-None-Match`, several lines joined by commas: what the client has in its cache.
    pub if_none_match: Option<Box<str>>,
    /// `Last-Event-ID`: the position at which an EventSource continues.
    pub last_event_id: Option<Box<str>>,
    /// `Authorization`.
    pub authorization: Option<Box<str>>,
    /// `Access-Control-Request-Headers`: the names of the headers that a script wants to set, joined by commas.
    pub preflight_headers: Option<Box<str>>,
    /// `Content-Length`; `None`: no body, or a chunked one.
    pub content_length: Option<u64>,
    /// Whether the body is chunked.
    pub is_chunked: bool,
    /// Whether the client waits for `100 Continue` before it sends its body.
    pub expects_continue: bool,
    /// The request to switch to WebSocket.
    pub websocket: Option<WebSocketOffer>,
}

impl Request {
    /// Whether another request may follow on the connection if the body of this one is not read.
    #[must_use]
    pub fn keeps_alive_unread(&self) -> bool {
        self.keep_alive && self.content_length.unwrap_or(0) == 0 && !self.is_chunked
    }
}

impl fmt::Debug for Request {
    /// Query, headers and subprotocols may contain tokens, so they are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// Parses the bytes that a connection has received.
#[must_use]
pub fn parse(buffer: &[u8]) -> Parsed {
    parse_grown(buffer, 0)
}

/// Like [`parse`], for a buffer whose first `seen` bytes were [`Parsed::Partial`] before. Only the rest is searched
/// for the end of the head, so a head that arrives slowly takes linear time.
#[must_use]
pub fn parse_grown(buffer: &[u8], seen: usize) -> Parsed {
    let mut skipped = 0;
    while skipped < 2 * BLANK_LINES_MAX && buffer[skipped..].starts_with(b"\r\n") {
        skipped += 2;
    }
    let head = &buffer[skipped..];
    if head.starts_with(b"\r\n") {
        return Parsed::Invalid(HttpError::bad_request("empty lines where a request was expected"));
    }
    let end = match head_end(head, seen.saturating_sub(skipped)) {
        Ok(Some(end)) if skipped + end <= HEAD_BYTES_MAX => end,
        Ok(None) if buffer.len() < HEAD_BYTES_MAX => {
            return if seen == 0 { judge_beginning(head) } else { Parsed::Partial };
        }
        Ok(_) => return Parsed::Invalid(head_too_large()),
        Err(error) => return Parsed::Invalid(error),
    };
    match parse_head(&head[..end]) {
        Ok(request) => Parsed::Complete { head_bytes: skipped + end, request },
        Err(error) => Parsed::Invalid(error),
    }
}

/// The length of the head including its final empty line, which is searched from `from` on.
fn head_end(head: &[u8], from: usize) -> Result<Option<usize>, HttpError> {
    let mut at = from.min(head.len());
    while let Some(found) = head[at..].iter().position(|&byte| byte == b'\n') {
        at += found + 1;
        if !head[..at].ends_with(b"\r\n") {
            return Err(HttpError::bad_request("a line of the request head does not end with CR LF"));
        }
        if head[..at].ends_with(b"\r\n\r\n") {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// Refuses input that cannot become a request any more, such as a TLS handshake, without waiting for its end.
fn judge_beginning(head: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    match httparse::Request::new(&mut headers).parse(head) {
        Ok(_) => Parsed::Partial,
        Err(error) => Parsed::Invalid(grammar_error(error)),
    }
}

fn parse_head(head: &[u8]) -> Result<Request, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Ok(_) => return Err(HttpError::bad_request("the request head is malformed")),
        Err(error) => return Err(grammar_error(error)),
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(HttpError::bad_request("the request line is malformed"));
    };
    let headers = Headers(parsed.headers);
    let version = if version == 0 { Version::Http10 } else { Version::Http11 };
    let Target { authority, path, query } = split_target(target)?;
    let host_header = host(&headers, version)?;
    Ok(Request {
        method: match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "OPTIONS" => Method::Options,
            _ => Method::Other,
        },
        path: path.to_owned(),
        query: query.to_owned(),
        version,
        keep_alive: !headers.has_token("connection", "close")
            && (version == Version::Http11 || headers.has_token("connection", "keep-alive")),
        host: authority.or(host_header).map(str::to_owned),
        origin: headers.single("origin")?.map(str::to_owned),
        accept: headers.joined("accept").map(Into::into),
        if_none_match: headers.joined("if-none-match").map(Into::into),
        last_event_id: headers.single("last-event-id")?.map(Into::into),
        authorization: headers.single("authorization")?.map(Into::into),
        preflight_headers: headers.names("access-control-request-headers").map(Into::into),
        content_length: content_length(&headers)?,
        is_chunked: is_chunked(&headers, method, version)?,
        expects_continue: expects_continue(&headers, version)?,
        websocket: websocket_offer(&headers, method, version)?,
    })
}

/// A request target: `/path?query`, `http://authority/path?query` or `*`.
struct Target<'a> {
    /// The host and an optional port, in absolute form.
    authority: Option<&'a str>,
    path: &'a str,
    query: &'a str,
}

fn split_target(target: &str) -> Result<Target<'_>, HttpError> {
    let (authority, local) = match target.split_once("://") {
        Some((scheme, rest))
            if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
        {
            let (authority, local) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            (Some(authority), local)
        }
        _ => (None, target),
    };
    if authority.is_some_and(|authority| authority.is_empty() || !is_authority(authority)) {
        return Err(HttpError::bad_request("the host in the request target is malformed"));
    }
    let (path, query) = local.split_once('?').unwrap_or((local, ""));
    match path {
        "" if authority.is_some() => Ok(Target { authority, path: "/", query }),
        _ if path.starts_with('/') || target == "*" => Ok(Target { authority, path, query }),
        _ => Err(HttpError::bad_request("the request target is neither a path nor an http URL")),
    }
}

fn host<'a>(headers: &Headers<'a>, version: Version) -> Result<Option<&'a str>, HttpError> {
    match headers.single("host")? {
        None if version == Version::Http11 => Err(HttpError::bad_request("the Host header is missing")),
        Some(host) if !is_authority(host) => Err(HttpError::bad_request("the Host header is malformed")),
        host => Ok(host),
    }
}

/// Whether a text can be host and port. Credentials, paths and lists cannot.
fn is_authority(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic() && !b"/@?#,\\\"<>".contains(&b))
}

/// The body's length. Refuses a transfer coding beside it, because proxies disagree about which of the two applies.
fn content_length(headers: &Headers<'_>) -> Result<Option<u64>, HttpError> {
    let length = headers.single("content-length")?;
    match (length, headers.values("transfer-encoding").next()) {
        (Some(_), Some(_)) => {
            Err(HttpError::bad_request("Content-Length and Transfer-Encoding exclude each other"))
        }
        (Some(digits), None) => Some(digits)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .map(Some)
            .ok_or_else(|| HttpError::bad_request("the Content-Length header is malformed")),
        (None, _) => Ok(None),
    }
}

/// Whether the body is chunked. Refuses any other coding, and every coding in a request without a body.
fn is_chunked(headers: &Headers<'_>, method: &str, version: Version) -> Result<bool, HttpError> {
    match headers.single("transfer-encoding")? {
        None => Ok(false),
        Some(coding)
            if coding.eq_ignore_ascii_case("chunked") && method == "POST" && version == Version::Http11 =>
        {
            Ok(true)
        }
        Some(_) => {
            Err(HttpError::new(411, "length_required", "send the body with a Content-Length, or chunked"))
        }
    }
}

fn expects_continue(headers: &Headers<'_>, version: Version) -> Result<bool, HttpError> {
    match headers.single("expect")? {
        Some(expected) if expected.eq_ignore_ascii_case("100-continue") => Ok(version == Version::Http11),
        Some(_) => {
            Err(HttpError::new(417, "bad_request", "the only expectation that can be met is 100-continue"))
        }
        None => Ok(false),
    }
}

/// The request to switch to WebSocket, if there is one. Requests for other protocols are ignored, as HTTP requires.
fn websocket_offer(
    headers: &Headers<'_>,
    method: &str,
    version: Version,
) -> Result<Option<WebSocketOffer>, HttpError> {
    if !headers.has_token("upgrade", "websocket") {
        return Ok(None);
    }
    if method != "GET" || version == Version::Http10 {
        return Err(HttpError::bad_upgrade(400, "a WebSocket begins with GET over HTTP/1.1"));
    }
    if !headers.has_token("connection", "upgrade") {
        return Err(HttpError::bad_upgrade(
            400,
            "`Upgrade: websocket` came without `Connection: Upgrade`; a proxy in between may have dropped it",
        ));
    }
    match headers.single("sec-websocket-version")? {
        Some(WEBSOCKET_VERSION) => {}
        Some(_) => return Err(HttpError::bad_upgrade(426, "only WebSocket version 13 is supported")),
        None => return Err(HttpError::bad_upgrade(400, "the Sec-WebSocket-Version header is missing")),
    }
    let key = headers
        .single("sec-websocket-key")?
        .filter(|key| is_websocket_key(key))
        .ok_or_else(|| HttpError::bad_upgrade(400, "Sec-WebSocket-Key must be 16 bytes in base64"))?;
    Ok(Some(WebSocketOffer {
        key: key.to_owned(),
        protocols: headers.tokens("sec-websocket-protocol").map(str::to_owned).collect(),
    }))
}

/// Whether a text is 16 bytes in base64.
fn is_websocket_key(key: &str) -> bool {
    key.len() == 24
        && key
            .strip_suffix("==")
            .is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/'))
}

fn grammar_error(error: httparse::Error) -> HttpError {
    match error {
        httparse::Error::TooManyHeaders => head_too_large(),
        httparse::Error::Version => {
            HttpError::new(505, "version_not_supported", "only HTTP/1.1 and HTTP/1.0 are supported")
        }
        error => HttpError::bad_request(format!("the request head is malformed: {error}")),
    }
}

fn head_too_large() -> HttpError {
    HttpError::new(
        431,
        "head_too_large",
        format!("a request head has at most {HEAD_BYTES_MAX} bytes and {HEADERS_MAX} header lines"),
    )
}

/// Header lines, looked up by lower-case name.
struct Headers<'a>(&'a [httparse::Header<'a>]);

impl<'a> Headers<'a> {
    fn values(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        let lines = self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        lines.map(|header| header.value)
    }

    /// The value of a header that may occur once, in UTF-8.
    fn single(&self, name: &'static str) -> Result<Option<&'a str>, HttpError> {
        let mut values = self.values(name);
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(HttpError::bad_request(format!("the {name} header occurs twice")));
        }
        let text = std::str::from_utf8(value)
            .map_err(|_| HttpError::bad_request(format!("the {name} header is not UTF-8")))?;
        Ok(Some(text.trim_matches([' ', '\t'])))
    }

    /// The elements of a comma-separated list, which may take several lines.
    fn tokens(&self, name: &'static str) -> impl Iterator<Item = &'a str> {
        let lines = self.values(name).filter_map(|value| std::str::from_utf8(value).ok());
        lines
            .flat_map(|line| line.split(','))
            .map(|token| token.trim_matches([' ', '\t']))
            .filter(|t| !t.is_empty())
    }

    /// The elements of a list that are valid header names, joined by commas.
    fn names(&self, name: &'static str) -> Option<String> {
        let is_name_byte = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        let names: Vec<&str> = self.tokens(name).filter(|name| name.bytes().all(is_name_byte)).collect();
        (!names.is_empty()).then(|| names.join(","))
    }

    fn has_token(&self, name: &'static str, token: &str) -> bool {
        self.tokens(name).any(|element| element.eq_ignore_ascii_case(token))
    }

    /// All elements of a list, joined by commas.
    fn joined(&self, name: &'static str) -> Option<String> {
        let tokens: Vec<&str> = self.tokens(name).collect();
        (!tokens.is_empty()).then(|| tokens.join(","))
    }
}

#[cfg(test)]
mod tests;
