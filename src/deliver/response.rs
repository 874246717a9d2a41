//! HTTP responses: the bytes of every head.
//!
//! `Date` and `Server` are omitted: clients do not need them, and a head remains the same for all. Every response has
//! an explicit `Connection` header, which is correct for HTTP/1.0 and 1.1. Caches must not store a response, because
//! streams change; they may store the browser client, but have to revalidate it each time.

use bytes::Bytes;
use tungstenite::handshake::derive_accept_key;

use super::http_error::{BAD_UPGRADE, HttpError};
use super::request::{Method, Request, WebSocketOffer};
use crate::security::origin::OriginDecision;
use crate::web::WebFile;

/// The subprotocol that is selected if a client offers it.
pub const SUBPROTOCOL: &str = "llm-bridge.v1";
/// How long a browser may cache a preflight response, in seconds.
const PREFLIGHT_MAX_AGE_S: u32 = 7200;

/// The origins whose scripts may read the response (CORS).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AllowedOrigin {
    /// No origin is named: the request comes from no browser, or from the same origin.
    #[default]
    Silent,
    /// All origins may read it.
    Any,
    /// This origin may read it.
    Exactly(Box<str>),
}

impl AllowedOrigin {
    /// The response's CORS headers, from the decision about the request's `Origin`.
    ///
    /// # Errors
    /// 403 if the origin is not allowed.
    pub fn from_decision(decision: OriginDecision<'_>) -> Result<Self, HttpError> {
        match decision {
            OriginDecision::NotCrossOrigin => Ok(Self::Silent),
            OriginDecision::Allowed("*") => Ok(Self::Any),
            OriginDecision::Allowed(origin) => Ok(Self::Exactly(origin.into())),
            OriginDecision::Forbidden => {
                let message = "pages of this Origin are not allowed; to allow them, add it to listen.origins";
                Err(HttpError::new(403, HttpError::ORIGIN_NOT_ALLOWED, message))
            }
        }
    }
}

/// A whole response. The body is shared, not copied: pages and states are large.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The head, and a small body.
    pub head: Vec<u8>,
    /// The rest of the body.
    pub body: Bytes,
}

/// How responses to one request are framed. Small enough to be kept while a response is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Whether another request may follow on the connection.
    pub keep_alive: bool,
    /// Whether the body is omitted, because the request was a HEAD.
    pub head_only: bool,
    /// The CORS headers.
    pub origin: AllowedOrigin,
}

impl Reply {
    /// The framing of responses to `request`. If the request has a body, it is left unread, which ends the
    /// connection. A caller that has read the body sets `keep_alive` to the request's value.
    #[must_use]
    pub fn to(request: &Request, origin: AllowedOrigin) -> Self {
        Self { keep_alive: request.keeps_alive_unread(), head_only: request.method == Method::Head, origin }
    }

    /// The framing of the last response on a connection whose request could not be parsed.
    #[must_use]
    pub fn closing() -> Self {
        Self::default()
    }

    /// 200: events follow until the connection is closed; those in the AI SDK's format are announced by a header.
    pub fn sse(&self, out: &mut Vec<u8>, is_ui_message_stream: bool) {
        let mut head = Head::status(out, 200);
        head.field("Content-Type", "text/event-stream");
        head.field("Cache-Control", "no-cache, no-transform");
        head.field("X-Accel-Buffering", "no");
        if is_ui_message_stream {
            head.field("x-vercel-ai-ui-message-stream", "v1");
        }
        head.field("Connection", "close");
        self.cors(&mut head);
        head.end();
    }

    /// A whole JSON response.
    #[must_use]
    pub fn json(&self, status: u16, body: Bytes) -> Answer {
        let mut out = Vec::new();
        let mut head = Head::status(&mut out, status);
        self.content_fields(&mut head, "application/json", body.len());
        head.end();
        self.answer(out, body)
    }

    /// A page, which may load and run only what `policy` allows.
    #[must_use]
    pub fn page(&self, policy: &str, body: &'static str) -> Answer {
        let mut out = Vec::new();
        let mut head = Head::status(&mut out, 200);
        self.content_fields(&mut head, "text/html; charset=utf-8", body.len());
        head.field("Content-Security-Policy", policy);
        head.end();
        self.answer(out, Bytes::from_static(body.as_bytes()))
    }

    /// A file of the browser client, or 304 if the client has it: `known` is the request's `If-None-Match`.
    #[must_use]
    pub fn file(&self, file: &WebFile, known: Option<&str>) -> Answer {
        let tag = file.tag();
        let is_known = known.is_some_and(|known| has_tag(known, &tag));
        let mut out = Vec::new();
        let mut head = Head::status(&mut out, if is_known { 304 } else { 200 });
        if !is_known {
            head.field("Content-Type", file.content_type);
            head.field("Content-Length", &file.text.len().to_string());
        }
        head.field("ETag", &tag);
        head.field("Cache-Control", "no-cache");
        self.connection(&mut head);
        self.cors(&mut head);
        head.end();
        self.answer(out, if is_known { Bytes::new() } else { Bytes::from_static(file.text.as_bytes()) })
    }

    /// A response to HEAD: 200 or 404 only.
    pub fn head(&self, out: &mut Vec<u8>, status: u16) {
        let mut head = Head::status(out, status);
        head.field("Content-Type", "application/json");
        head.field("Cache-Control", "no-store");
        self.connection(&mut head);
        self.cors(&mut head);
        head.end();
    }

    /// 204: nothing more will be sent; an EventSource stops reconnecting.
    pub fn no_content(&self, out: &mut Vec<u8>) {
        let mut head = Head::status(out, 204);
        head.field("Cache-Control", "no-store");
        self.connection(&mut head);
        self.cors(&mut head);
        head.end();
    }

    /// An error with its JSON body.
    pub fn error(&self, out: &mut Vec<u8>, error: &HttpError) {
        let body = error.body();
        let mut head = Head::status(out, error.status);
        self.content_fields(&mut head, "application/json", body.len());
        if let Some(seconds) = error.retry_after {
            head.field("Retry-After", &seconds.to_string());
        }
        if let Some(methods) = error.allow {
            head.field("Allow", methods);
        }
        if error.status == 426 {
            head.field("Upgrade", "websocket");
        }
        if error.code == BAD_UPGRADE {
            head.field("Sec-WebSocket-Version", "13");
        }
        head.end();
        if !self.head_only {
            out.extend_from_slice(&body);
        }
    }

    /// 204 to OPTIONS: the methods of the resource and, for an allowed origin, what its scripts may send: `headers`
    /// are those that the preflight asks for. All are allowed, because any client that is not a browser can send them
    /// too.
    pub fn preflight(&self, out: &mut Vec<u8>, methods: &'static str, headers: Option<&str>) {
        let mut head = Head::status(out, 204);
        head.field("Allow", methods);
        if self.origin != AllowedOrigin::Silent {
            head.field("Access-Control-Allow-Methods", methods);
            if let Some(headers) = headers {
                head.field("Access-Control-Allow-Headers", headers);
            }
            head.field("Access-Control-Max-Age", &PREFLIGHT_MAX_AGE_S.to_string());
        }
        self.connection(&mut head);
        self.cors(&mut head);
        head.end();
    }

    fn content_fields(&self, head: &mut Head<'_>, content_type: &str, len: usize) {
        head.field("Content-Type", content_type);
        head.field("Content-Length", &len.to_string());
        head.field("Cache-Control", "no-store");
        self.connection(head);
        self.cors(head);
    }

    fn answer(&self, head: Vec<u8>, body: Bytes) -> Answer {
        Answer { head, body: if self.head_only { Bytes::new() } else { body } }
    }

    fn connection(&self, head: &mut Head<'_>) {
        head.field("Connection", if self.keep_alive { "keep-alive" } else { "close" });
    }

    fn cors(&self, head: &mut Head<'_>) {
        match &self.origin {
            AllowedOrigin::Silent => head.field("Vary", "Origin"),
            AllowedOrigin::Any => head.field("Access-Control-Allow-Origin", "*"),
            AllowedOrigin::Exactly(origin) => {
                head.field("Access-Control-Allow-Origin", origin);
                head.field("Vary", "Origin");
            }
        }
        if self.origin != AllowedOrigin::Silent {
            head.field("Access-Control-Expose-Headers", "Retry-After");
        }
    }
}

/// Whether `If-None-Match` contains the tag. A proxy that compresses turns it into a weak one.
fn has_tag(known: &str, tag: &str) -> bool {
    known.split(',').map(str::trim).any(|known| known == "*" || known.trim_start_matches("W/") == tag)
}

/// 101: the connection uses WebSocket from here on.
pub fn switch_to_websocket(out: &mut Vec<u8>, offer: &WebSocketOffer) {
    let mut head = Head::status(out, 101);
    head.field("Upgrade", "websocket");
    head.field("Connection", "Upgrade");
    head.field("Sec-WebSocket-Accept", &derive_accept_key(offer.key.as_bytes()));
    if offer.protocols.iter().any(|protocol| protocol == SUBPROTOCOL) {
        head.field("Sec-WebSocket-Protocol", SUBPROTOCOL);
    }
    head.end();
}

/// 100: the client may send the body that it announced.
pub fn go_on(out: &mut Vec<u8>) {
    Head::status(out, 100).end();
}

/// A head under construction.
struct Head<'a>(&'a mut Vec<u8>);

impl<'a> Head<'a> {
    fn status(out: &'a mut Vec<u8>, status: u16) -> Self {
        out.extend_from_slice(format!("HTTP/1.1 {status} {}\r\n", reason_phrase(status)).as_bytes());
        let mut head = Self(out);
        if status >= 200 {
            head.field("X-Content-Type-Options", "nosniff");
        }
        head
    }

    /// Adds a line. Values are our own, or come from a header of the request, so that none contains a line break.
    fn field(&mut self, name: &str, value: &str) {
        debug_assert!(!value.contains(['\r', '\n']), "a header value of one line");
        for part in [name, ": ", value, "\r\n"] {
            self.0.extend_from_slice(part.as_bytes());
        }
    }

    fn end(self) {
        self.0.extend_from_slice(b"\r\n");
    }
}

const fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::request::{self, Parsed};

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn text_of(answer: Answer) -> String {
        String::from_utf8([&answer.head[..], &answer.body[..]].concat()).unwrap()
    }

    fn request(head: &str) -> Request {
        match request::parse(head.as_bytes()) {
            Parsed::Complete { request, .. } => request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn errors_name_themselves_and_what_would_be_served() {
        let reply = Reply { keep_alive: true, ..Reply::default() };
        let text = written(|out| reply.error(out, &HttpError::method_not_allowed("GET, HEAD")));
        assert_eq!(
            text,
            "HTTP/1.1 405 Method Not Allowed\r\nX-Content-Type-Options: nosniff\r\nContent-Type: application/json\r\nContent-Length: 94\r\n\
             Cache-Control: no-store\r\nConnection: keep-alive\r\nVary: Origin\r\nAllow: GET, HEAD\r\n\r\n\
             {\"error\":{\"code\":\"method_not_allowed\",\"message\":\"the methods of this resource are GET, HEAD\"}}"
        );
        let busy = HttpError::unavailable("full", "a \"quoted\" word", 3);
        let text = written(|out| Reply::closing().error(out, &busy));
        assert!(
            text.contains("\r\nRetry-After: 3\r\n") && text.contains("\r\nConnection: close\r\n"),
            "{text}"
        );
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["message"], "a \"quoted\" word");
    }

    #[test]
    fn a_wrong_upgrade_gets_the_supported_version() {
        let text = written(|out| Reply::closing().error(out, &HttpError::bad_upgrade(426, "13 it is")));
        assert!(text.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{text}");
        assert!(text.contains("\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"), "{text}");
    }

    #[test]
    fn answers_to_head_have_no_body() {
        let asked = request("HEAD /v1/streams/s/m HTTP/1.1\r\nHost: h\r\n\r\n");
        let reply = Reply::to(&asked, AllowedOrigin::Silent);
        for text in [
            written(|out| reply.error(out, &HttpError::not_found("no"))),
            written(|out| reply.head(out, 200)),
            text_of(reply.page("default-src 'none'", "<p>")),
            text_of(reply.json(200, Bytes::from_static(b"{}"))),
        ] {
            assert!(text.ends_with("\r\n\r\n") && text.contains("keep-alive"), "{text}");
        }
    }

    #[test]
    fn a_file_is_sent_again_only_if_it_changed() {
        let file = crate::web::file_at("/llm-bridge.js").unwrap();
        let tag = file.tag();
        let text = text_of(Reply::default().file(file, Some("\"other\"")));
        assert!(text.starts_with("HTTP/1.1 200 OK\r\nX-Content-Type-Options: nosniff\r\nContent-Type: text/javascript; charset=utf-8\r\n"));
        assert!(text.contains(&format!("\r\nETag: {tag}\r\nCache-Control: no-cache\r\n")));
        assert!(text.ends_with(file.text));
        for known in [tag.clone(), format!("\"a\", W/{tag}"), "*".to_owned()] {
            let text = text_of(Reply::default().file(file, Some(&known)));
            assert!(
                text.starts_with("HTTP/1.1 304 Not Modified\r\n") && text.contains("\r\nETag: "),
                "{text}"
            );
            assert!(text.ends_with("\r\n\r\n") && !text.contains("\r\nContent-"), "{text}");
        }
        let head = Reply { head_only: true, ..Reply::default() };
        let text = text_of(head.file(file, None));
        let length = format!("\r\nContent-Length: {}\r\n", file.text.len());
        assert!(text.contains(&length) && text.ends_with("\r\n\r\n"), "{text}");
    }

    #[test]
    fn an_unread_body_ends_the_connection() {
        let asked = request("POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}");
        assert!(asked.keep_alive && !Reply::to(&asked, AllowedOrigin::Silent).keep_alive);
    }

    #[test]
    fn the_handshake_is_that_of_the_rfc() {
        let offer = WebSocketOffer {
            key: "dGhlIHNhbXBsZSBub25jZQ==".to_owned(),
            protocols: vec!["bearer.x".to_owned(), SUBPROTOCOL.to_owned()],
        };
        let text = written(|out| switch_to_websocket(out, &offer));
        assert!(text.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{text}");
        assert!(text.contains("\r\nSec-WebSocket-Protocol: llm-bridge.v1\r\n"), "{text}");
        let plain = WebSocketOffer { protocols: vec!["other".to_owned()], ..offer };
        assert!(!written(|out| switch_to_websocket(out, &plain)).contains("Sec-WebSocket-Protocol"));
    }

    #[test]
    fn allowed_origins_get_their_header() {
        let origin = AllowedOrigin::from_decision(OriginDecision::Allowed("https://a.example")).unwrap();
        let reply = Reply { origin, ..Reply::default() };
        let text = written(|out| reply.sse(out, false));
        assert!(
            text.contains("\r\nAccess-Control-Allow-Origin: https://a.example\r\nVary: Origin\r\n"),
            "{text}"
        );
        assert!(text.contains("\r\nContent-Type: text/event-stream\r\n"), "{text}");
        let text = written(|out| reply.preflight(out, "GET, OPTIONS", Some("x-stainless-os,traceparent")));
        assert!(text.contains("\r\nAccess-Control-Allow-Methods: GET, OPTIONS\r\n"), "{text}");
        assert!(text.contains("\r\nAccess-Control-Allow-Headers: x-stainless-os,traceparent\r\n"), "{text}");
        let text = written(|out| reply.preflight(out, "GET, OPTIONS", None));
        assert!(!text.contains("Allow-Headers"), "{text}");
        let text = written(|out| Reply::default().preflight(out, "GET, OPTIONS", Some("x")));
        assert!(text.contains("\r\nAllow: GET, OPTIONS\r\n") && !text.contains("Access-Control"), "{text}");
        assert_eq!(AllowedOrigin::from_decision(OriginDecision::Forbidden).unwrap_err().status, 403);
    }
}
