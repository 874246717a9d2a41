//! The head of an HTTP/1 request, from bytes to an owned, small value.
//!
//! httparse checks the grammar. What is added here are the rules that keep a request from meaning two
//! things to two readers, a proxy and us: lines end with CR LF, one `Host`, one length, no transfer
//! coding. Bodies are not read here: the only one that anybody needs is the small one of a cancel.
//!
//! Whoever gets a [`Parsed::Invalid`] answers it and closes: where the next request begins is unknown.

use std::fmt;

use super::response::HttpError;

/// The longest request head, in bytes.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The most header lines of a request.
const HEADERS_MAX: usize = 64;
/// Empty lines in front of a request that are passed over, for clients that end a body with one.
const BLANK_LINES_MAX: usize = 2;
/// The WebSocket version that is spoken.
const WEBSOCKET_VERSION: &str = "13";

/// What the bytes received so far amount to.
#[derive(Debug)]
pub enum Parsed {
    /// The head is not complete.
    Partial,
    /// The head is complete.
    Complete {
        /// Bytes that the head took; the body or the next request follows.
        head_bytes: usize,
        /// The request.
        request: Request,
    },
    /// This is no acceptable request: answer and close.
    Invalid(HttpError),
}

/// The methods that mean anything here.
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

/// A well-formed offer to speak WebSocket (version 13).
#[derive(Clone, PartialEq, Eq)]
pub struct WebSocketOffer {
    /// `Sec-WebSocket-Key`: 16 bytes in base64.
    pub key: String,
    /// The offered subprotocols, in the client's order.
    pub protocols: Vec<String>,
}

impl fmt::Debug for WebSocketOffer {
    /// Subprotocols may carry tokens, so that they are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketOffer").finish_non_exhaustive()
    }
}

/// A request without its body.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path as it came, percent-encoding included; `*` for `OPTIONS *`.
    pub path: String,
    /// What follows the first `?`, as it came.
    pub query: String,
    /// The protocol version.
    pub version: Version,
    /// Whether the client is ready to send another request on this connection.
    pub keep_alive: bool,
    /// `Host`; always there in HTTP/1.1.
    pub host: Option<String>,
    /// `Origin`: a browser says which site the request comes from.
    pub origin: Option<String>,
    /// `Accept`, several lines joined by commas.
    pub accept: Option<String>,
    /// `Last-Event-ID`: where an EventSource goes on.
    pub last_event_id: Option<String>,
    /// `Authorization`.
    pub authorization: Option<String>,
    /// `Access-Control-Request-Method`: the mark of a CORS preflight.
    pub preflight_method: Option<String>,
    /// `Content-Length`; `None`: no body.
    pub content_length: Option<u64>,
    /// Whether the client waits for `100 Continue` before it sends its body.
    pub expects_continue: bool,
    /// The offer to speak WebSocket.
    pub websocket: Option<WebSocketOffer>,
}

impl Request {
    /// Whether another request may follow on the connection when the body of this one is left unread.
    #[must_use]
    pub fn keeps_alive_unread(&self) -> bool {
        self.keep_alive && self.content_length.unwrap_or(0) == 0
    }
}

impl fmt::Debug for Request {
    /// Query, headers and subprotocols may carry tokens, so that they are not shown.
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

/// As [`parse`], for a buffer whose first `seen` bytes were [`Parsed::Partial`] before. Only the rest is
/// searched for the end of the head, so that a head that trickles in costs linear time.
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

/// The length of the head with its final empty line, looking for it from `from` on.
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

/// Refuses what cannot become a request any more, such as a TLS handshake, without waiting for its end.
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
    let (path, query) = split_target(target)?;
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
        host: host(&headers, version)?,
        origin: headers.single("origin")?.map(str::to_owned),
        accept: headers.joined("accept"),
        last_event_id: headers.single("last-event-id")?.map(str::to_owned),
        authorization: headers.single("authorization")?.map(str::to_owned),
        preflight_method: headers.single("access-control-request-method")?.map(str::to_owned),
        content_length: content_length(&headers)?,
        expects_continue: expects_continue(&headers, version)?,
        websocket: websocket_offer(&headers, method, version)?,
    })
}

/// Splits a request target (`/path?query`, `http://host/path?query` or `*`) into path and query.
fn split_target(target: &str) -> Result<(&str, &str), HttpError> {
    let local = match target.split_once("://") {
        Some((scheme, rest))
            if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
        {
            let authority_len = rest.find(['/', '?']).unwrap_or(rest.len());
            &rest[authority_len..]
        }
        _ => target,
    };
    let (path, query) = local.split_once('?').unwrap_or((local, ""));
    match path {
        "" if local.len() != target.len() => Ok(("/", query)),
        _ if path.starts_with('/') || target == "*" => Ok((path, query)),
        _ => Err(HttpError::bad_request("the request target is neither a path nor an http URL")),
    }
}

fn host(headers: &Headers<'_>, version: Version) -> Result<Option<String>, HttpError> {
    let host = headers.single("host")?;
    match host {
        None if version == Version::Http11 => Err(HttpError::bad_request("the Host header is missing")),
        Some(host) if !host.bytes().all(|b| b.is_ascii_graphic() && !b"/@?#,\\\"<>".contains(&b)) => {
            Err(HttpError::bad_request("the Host header is malformed"))
        }
        host => Ok(host.map(str::to_owned)),
    }
}

/// The body's length. A transfer coding is refused: beside a length because proxies disagree about
/// which of the two holds, alone because no request here needs one.
fn content_length(headers: &Headers<'_>) -> Result<Option<u64>, HttpError> {
    let length = headers.single("content-length")?;
    match (length, headers.values("transfer-encoding").next()) {
        (Some(_), Some(_)) => {
            Err(HttpError::bad_request("Content-Length and Transfer-Encoding exclude each other"))
        }
        (None, Some(_)) => {
            Err(HttpError::new(411, "length_required", "send the body with a Content-Length, not chunked"))
        }
        (Some(digits), None) => Some(digits)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .map(Some)
            .ok_or_else(|| HttpError::bad_request("the Content-Length header is malformed")),
        (None, None) => Ok(None),
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

/// The offer to speak WebSocket, where there is one. Offers of other protocols are ignored, as HTTP wants.
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
        Some(_) => return Err(HttpError::bad_upgrade(426, "the WebSocket version spoken here is 13")),
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
            HttpError::new(505, "version_not_supported", "HTTP/1.1 and HTTP/1.0 are spoken here")
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

    /// The value of a header that may come once, in UTF-8.
    fn single(&self, name: &'static str) -> Result<Option<&'a str>, HttpError> {
        let mut values = self.values(name);
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(HttpError::bad_request(format!("the {name} header came twice")));
        }
        let text = std::str::from_utf8(value)
            .map_err(|_| HttpError::bad_request(format!("the {name} header is not UTF-8")))?;
        Ok(Some(text.trim_matches([' ', '\t'])))
    }

    /// The elements of a comma-separated list that may go over several lines.
    fn tokens(&self, name: &'static str) -> impl Iterator<Item = &'a str> {
        let lines = self.values(name).filter_map(|value| std::str::from_utf8(value).ok());
        lines
            .flat_map(|line| line.split(','))
            .map(|token| token.trim_matches([' ', '\t']))
            .filter(|t| !t.is_empty())
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UPGRADE: &str = "GET /v1/ws?x=1 HTTP/1.1\r\nHost: h:1\r\nUpgrade: WebSocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: a, b\r\n\
        Sec-WebSocket-Protocol: c\r\n\r\n";

    fn complete(head: &str) -> Request {
        match parse(head.as_bytes()) {
            Parsed::Complete { head_bytes, request } => {
                assert_eq!(head_bytes, head.len());
                request
            }
            other => panic!("{head:?}: {other:?}"),
        }
    }

    fn refused(head: &[u8]) -> u16 {
        match parse(head) {
            Parsed::Invalid(error) => error.status,
            other => panic!("{:?}: {other:?}", String::from_utf8_lossy(head)),
        }
    }

    #[test]
    fn a_request_is_taken_apart() {
        let request = complete(
            "POST /v1/streams/s/m/cancel?a=1?b HTTP/1.1\r\nhost: H.example:80\r\nCONTENT-LENGTH: 12\r\n\
             Accept: text/event-stream\r\nAccept: */*;q=0.1\r\nOrigin: http://o\r\nLast-Event-ID: 5-1 \r\n\
             Authorization: Bearer x\r\nExpect: 100-Continue\r\n\r\n",
        );
        assert_eq!(
            (request.method, request.version, request.keep_alive),
            (Method::Post, Version::Http11, true)
        );
        assert_eq!((request.path.as_str(), request.query.as_str()), ("/v1/streams/s/m/cancel", "a=1?b"));
        assert_eq!(request.host.as_deref(), Some("H.example:80"));
        assert_eq!(request.accept.as_deref(), Some("text/event-stream,*/*;q=0.1"));
        assert_eq!(request.origin.as_deref(), Some("http://o"));
        assert_eq!(request.last_event_id.as_deref(), Some("5-1"));
        assert_eq!(request.authorization.as_deref(), Some("Bearer x"));
        assert_eq!((request.content_length, request.expects_continue), (Some(12), true));
        assert!(request.websocket.is_none() && !request.keeps_alive_unread());
        assert!(!format!("{request:?}").contains("Bearer"));
    }

    #[test]
    fn connections_persist_as_their_version_has_it() {
        for (version, connection, keep_alive) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: x, Close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ] {
            let request = complete(&format!("GET / HTTP/{version}\r\nHost: h\r\n{connection}\r\n"));
            assert_eq!(request.keep_alive, keep_alive, "{version} {connection}");
        }
        assert_eq!(complete("GET / HTTP/1.0\r\n\r\n").host, None);
    }

    #[test]
    fn targets_have_three_forms() {
        for (target, path, query) in [
            ("/a%20b?c", "/a%20b", "c"),
            ("http://h:1/a?b", "/a", "b"),
            ("HTTPS://h", "/", ""),
            ("http://h?b", "/", "b"),
            ("/a://b", "/a://b", ""),
            ("*", "*", ""),
        ] {
            let request = complete(&format!("OPTIONS {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
            assert_eq!((request.path.as_str(), request.query.as_str()), (path, query), "{target}");
        }
        for target in ["h:443", "ftp://h/", "a/b", "?x"] {
            assert_eq!(
                refused(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()),
                400,
                "{target}"
            );
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for (lines, status) in [
            ("", 400),
            ("Host: h\r\nHost: h\r\n", 400),
            ("Host: a b\r\n", 400),
            ("Host: user@h\r\n", 400),
            ("Host : h\r\n", 400),
            ("Host: h\r\nX: a\r\n b\r\n", 400),
            (" Host: h\r\n", 400),
            ("Host: h\r\nX: a\nContent-Length: 3\r\n", 400),
            ("Host: h\r\nX: a\rb\r\n", 400),
            ("Host: h\r\nX: a\0b\r\n", 400),
            ("Host: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Host: h\r\nTransfer-Encoding: chunked\r\n", 411),
            ("Host: h\r\nTransfer-Encoding: identity\r\n", 411),
            ("Host: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n", 400),
            ("Host: h\r\nContent-Length: 1, 1\r\n", 400),
            ("Host: h\r\nContent-Length: +1\r\n", 400),
            ("Host: h\r\nContent-Length: \r\n", 400),
            ("Host: h\r\nContent-Length: 99999999999999999999\r\n", 400),
            ("Host: h\r\nExpect: 200-fine\r\n", 417),
            ("Host: h\r\nLast-Event-ID: 1\r\nLast-Event-ID: 2\r\n", 400),
        ] {
            let head = format!("POST / HTTP/1.1\r\n{lines}\r\n");
            assert_eq!(refused(head.as_bytes()), status, "{head:?}");
        }
    }

    #[test]
    fn heads_are_bounded() {
        let line = |len: usize| format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(len));
        let room = HEAD_BYTES_MAX - line(0).len();
        assert_eq!(complete(&line(room)).path, "/");
        assert_eq!(refused(line(room + 1).as_bytes()), 431);
        assert!(matches!(parse(&line(room + 9).as_bytes()[..HEAD_BYTES_MAX - 1]), Parsed::Partial));
        assert_eq!(refused(&line(room + 9).as_bytes()[..HEAD_BYTES_MAX]), 431);
        let lines = |count| format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert_eq!(complete(&lines(HEADERS_MAX - 1)).path, "/");
        assert_eq!(refused(lines(HEADERS_MAX).as_bytes()), 431);
        assert_eq!(refused(&b"\r\n".repeat(BLANK_LINES_MAX + 1)), 400);
    }

    #[test]
    fn other_protocols_are_refused_at_once() {
        assert_eq!(refused(b"\x16\x03\x01\x02\x00\x01"), 400);
        assert_eq!(refused(b"GET / HTTP/1.1\nHost: h\n\n"), 400);
        assert_eq!(refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
    }

    #[test]
    fn offers_of_websocket_are_whole_or_refused() {
        let offer = complete(UPGRADE).websocket.unwrap();
        assert_eq!(offer.key, "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(offer.protocols, ["a", "b", "c"]);
        for (from, to, status) in [
            ("GET", "POST", 400),
            ("HTTP/1.1", "HTTP/1.0", 400),
            ("keep-alive, Upgrade", "keep-alive", 400),
            ("Version: 13", "Version: 8", 426),
            ("Sec-WebSocket-Version: 13\r\n", "", 400),
            ("b25jZQ==", "b25jZQ=", 400),
            ("dGhl", "d*hl", 400),
            ("Sec-WebSocket-Key", "X-Key", 400),
        ] {
            assert!(UPGRADE.contains(from));
            let Parsed::Invalid(error) = parse(UPGRADE.replace(from, to).as_bytes()) else { panic!("{to}") };
            assert_eq!((error.status, error.code), (status, "bad_upgrade"), "{to}");
        }
        assert!(complete(&UPGRADE.replace("WebSocket\r", "h2c\r")).websocket.is_none());
    }

    #[test]
    fn what_follows_a_request_stays() {
        let head = "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n";
        let bytes = format!("{head}body\n\nGET /");
        let Parsed::Complete { head_bytes, .. } = parse(bytes.as_bytes()) else { panic!() };
        assert_eq!(head_bytes, head.len());
    }

    /// Feeds bytes in pieces, as a connection does.
    fn trickle(bytes: &[u8], mut cuts: Vec<usize>) -> Parsed {
        cuts.retain(|&cut| cut < bytes.len());
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let steps = cuts.windows(2).map(|step| parse_grown(&bytes[..step[1]], step[0]));
        steps.fold(
            Parsed::Partial,
            |result, next| if matches!(result, Parsed::Partial) { next } else { result },
        )
    }

    proptest! {
        #[test]
        fn heads_may_come_in_pieces(cuts in prop::collection::vec(0..400_usize, 0..40), blank in 0..3_usize) {
            let bytes = "\r\n".repeat(blank) + UPGRADE;
            let Parsed::Complete { head_bytes, request } = trickle(bytes.as_bytes(), cuts) else {
                return Err(TestCaseError::fail("not complete"));
            };
            prop_assert_eq!((head_bytes, request), (bytes.len(), complete(UPGRADE)));
        }

        #[test]
        fn any_bytes_are_judged(bytes: Vec<u8>, cuts in prop::collection::vec(0..100_usize, 0..9)) {
            let _ = trickle(&bytes, cuts);
        }

        /// Near misses get deeper into the parser than noise does; a head that is accepted says of its
        /// end the same however it came.
        #[test]
        fn damaged_heads_are_judged(
            damage in prop::collection::vec((0..300_usize, any::<u8>()), 1..4),
            cuts in prop::collection::vec(0..300_usize, 0..9),
        ) {
            let mut bytes = UPGRADE.as_bytes().to_vec();
            for (at, byte) in damage {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            match (parse(&bytes), trickle(&bytes, cuts)) {
                (
                    Parsed::Complete { head_bytes, request },
                    Parsed::Complete { head_bytes: trickled_bytes, request: trickled },
                ) => prop_assert_eq!((head_bytes, request), (trickled_bytes, trickled)),
                (whole, trickled) => {
                    prop_assert!(!matches!(whole, Parsed::Complete { .. }), "{:?}", whole);
                    prop_assert!(!matches!(trickled, Parsed::Complete { .. }), "{:?}", trickled);
                }
            }
        }
    }
}
