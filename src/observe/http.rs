//! A small HTTP/1.1 server for pages without input: GET and HEAD, one request per connection.
//!
//! It supports no keep-alive, no bodies and no TLS, because it is for loopback and private networks.
//! [`super::exchange`] limits the connections.

use std::borrow::Cow;
use std::io;
use std::net::TcpListener;
use std::time::Duration;

use super::exchange::{self, Reaction};
use crate::security::host::HostPolicy;
use crate::stop::Stop;

/// The most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// The most headers of a request.
const HEADERS_MAX: usize = 64;
/// The time limit from the connection to the end of the answer.
const EXCHANGE_TIME: Duration = Duration::from_secs(5);

/// An answer to a GET.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: Cow<'static, str>,
}

impl Answer {
    pub(super) fn error(status: u16, message: &'static str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: Cow::Borrowed(message) }
    }
}

/// Serves until the stop signal. `page` returns the answer for a path without its query, in a request for one of our
/// `hosts`.
///
/// # Errors
/// If the listener fails; never because of a client.
pub(super) fn serve(
    listener: TcpListener,
    hosts: &HostPolicy,
    stop: &Stop,
    page: impl Fn(&str) -> Answer,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = mio::net::TcpListener::from_std(listener);
    exchange::serve(listener, stop, EXCHANGE_TIME, |head, is_over| respond(head, is_over, hosts, &page))
}

/// The reaction to a request's head, which may be incomplete.
pub(super) fn respond(
    head: &[u8],
    is_over: bool,
    hosts: &HostPolicy,
    page: &impl Fn(&str) -> Answer,
) -> Reaction {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let answer = match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => answer(&request, hosts, page),
        Ok(httparse::Status::Partial) if is_over => return Reaction::Close,
        Ok(httparse::Status::Partial) if head.len() < HEAD_BYTES_MAX => return Reaction::Wait,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            Answer::error(431, "the request's head is too large\n")
        }
        Err(_) => Answer::error(400, "this is not an HTTP/1.1 request\n"),
    };
    Reaction::Answer(encode(&answer, request.method == Some("HEAD")))
}

fn answer(request: &httparse::Request<'_, '_>, hosts: &HostPolicy, page: &impl Fn(&str) -> Answer) -> Answer {
    let (absolute_host, path) = split_target(request.path.unwrap_or_default());
    let mut named = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    let header = named.next();
    if named.next().is_some() {
        return Answer::error(400, "a request has one Host header\n");
    }
    let host = match (absolute_host, header) {
        (Some(host), _) => Some(host),
        // A host that is not UTF-8 is not one of our names.
        (None, Some(header)) => Some(std::str::from_utf8(header.value).unwrap_or("")),
        (None, None) => None,
    };
    if !hosts.allows(host) {
        let message = "this server does not answer to that Host; to allow it, add it to listen.hosts\n";
        return Answer::error(421, message);
    }
    match request.method {
        Some("GET" | "HEAD") => page(path.split('?').next().unwrap_or(path)),
        _ => Answer::error(405, "only GET and HEAD are answered here\n"),
    }
}

/// The host of a target in absolute form, and the target's path.
fn split_target(target: &str) -> (Option<&str>, &str) {
    let Some(rest) = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://")) else {
        return (None, target);
    };
    match rest.find(['/', '?']) {
        Some(at) => (Some(&rest[..at]), &rest[at..]),
        None => (Some(rest), "/"),
    }
}

fn encode(answer: &Answer, is_head: bool) -> Vec<u8> {
    let allow = if answer.status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
    let mut bytes = format!(
        "HTTP/1.1 {} {}\r\n{allow}Content-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n\
         Content-Security-Policy: default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\nConnection: close\r\n\r\n",
        answer.status,
        reason(answer.status),
        answer.content_type,
        answer.body.len(),
    )
    .into_bytes();
    if !is_head {
        bytes.extend_from_slice(answer.body.as_bytes());
    }
    bytes
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "",
    }
}
