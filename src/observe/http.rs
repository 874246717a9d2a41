//! A small HTTP/1.1 server for pages that take no input: GET and HEAD, one request a connection, one
//! thread, everything bounded.
//!
//! It exists because health checks must answer when nothing else does. Connections that send nothing,
//! too much or too slowly are closed at a deadline, the oldest gives way when too many are open, and
//! running out of descriptors is survived. It knows no keep-alive, no bodies, no TLS: it is for
//! loopback and private networks.

use std::borrow::Cow;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use crate::stop::Stop;
use crate::{pulse, warn_limited};

/// Connections at a time.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// From the connection to the end of the answer.
const EXCHANGE_TIME: Duration = Duration::from_secs(5);
/// For the client to take the end of the answer and close, too.
const CLOSING_TIME: Duration = Duration::from_secs(1);
/// How often the stop signal and the deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);

const LISTENER: Token = Token(usize::MAX);

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

/// Serves until the stop signal is given. `page` makes the answer for a path, without its query.
///
/// # Errors
/// When the listener cannot be watched; never because of a client.
pub(super) fn serve(listener: TcpListener, stop: &Stop, page: impl Fn(&str) -> Answer) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut listener = mio::net::TcpListener::from_std(listener);
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut server = Server { poll, connections: Slab::with_capacity(CONNECTIONS_MAX), page };
    let mut events = Events::with_capacity(CONNECTIONS_MAX + 1);
    while !stop.requested() {
        pulse::beat();
        if let Err(error) = server.poll.poll(&mut events, Some(TICK))
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error);
        }
        for event in events.iter().filter(|event| event.token() != LISTENER) {
            server.advance(event.token().0);
        }
        // After the events: a place in the table that becomes free must not get another connection's event.
        let now = Instant::now();
        server.connections.retain(|_, connection| connection.is_open && now < connection.deadline);
        // At every tick, not only when told: an accept that failed is told only once.
        server.accept(&listener, now);
    }
    Ok(())
}

struct Server<P> {
    poll: Poll,
    connections: Slab<Connection>,
    page: P,
}

impl<P: Fn(&str) -> Answer> Server<P> {
    /// Takes the connections that wait. Those that are no longer wanted stay in the table until the
    /// next round removes them.
    fn accept(&mut self, listener: &mio::net::TcpListener, now: Instant) {
        for _ in 0..CONNECTIONS_MAX {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    warn_limited!(%error, "the admin listener cannot accept a connection");
                    return;
                }
            };
            if self.connections.len() >= CONNECTIONS_MAX {
                self.drop_oldest();
            }
            let entry = self.connections.vacant_entry();
            let token = entry.key();
            let mut connection = Connection::new(stream, now + EXCHANGE_TIME);
            let interest = Interest::READABLE | Interest::WRITABLE;
            match self.poll.registry().register(&mut connection.stream, Token(token), interest) {
                Ok(()) => {
                    entry.insert(connection);
                    self.advance(token);
                }
                Err(error) => warn_limited!(%error, "an admin connection cannot be watched"),
            }
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.connections.iter().min_by_key(|(_, connection)| connection.deadline);
        if let Some(token) = oldest.map(|(token, _)| token) {
            self.connections.remove(token);
        }
    }

    fn advance(&mut self, token: usize) {
        if let Some(connection) = self.connections.get_mut(token) {
            connection.is_open = match connection.advance(&self.page) {
                Ok(()) => false,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            };
        }
    }
}

struct Connection {
    stream: TcpStream,
    state: State,
    deadline: Instant,
    is_open: bool,
}

enum State {
    /// The head so far.
    Reading(Vec<u8>),
    /// The answer, and how much of it is written.
    Writing(Vec<u8>, usize),
    /// All is written; closing before the client has would cost it the end of the answer if it sent
    /// more than was read.
    Closing,
}

impl Connection {
    fn new(stream: TcpStream, deadline: Instant) -> Self {
        Self { stream, state: State::Reading(Vec::new()), deadline, is_open: true }
    }

    /// Goes on as far as the socket allows; `Ok` means that the connection is over.
    fn advance(&mut self, page: &impl Fn(&str) -> Answer) -> io::Result<()> {
        let mut buffer = [0_u8; 2048];
        loop {
            match &mut self.state {
                State::Reading(head) => match ignore_interrupts(|| self.stream.read(&mut buffer))? {
                    0 => return Ok(()),
                    count => {
                        head.extend_from_slice(&buffer[..count]);
                        if let Some(answer) = respond(head, page) {
                            self.state = State::Writing(answer, 0);
                        }
                    }
                },
                State::Writing(answer, written) if *written < answer.len() => {
                    *written += ignore_interrupts(|| self.stream.write(&answer[*written..]))?;
                }
                State::Writing(..) => {
                    self.stream.shutdown(Shutdown::Write)?;
                    self.deadline = self.deadline.min(Instant::now() + CLOSING_TIME);
                    self.state = State::Closing;
                }
                State::Closing => {
                    if ignore_interrupts(|| self.stream.read(&mut buffer))? == 0
                        || Instant::now() >= self.deadline
                    {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn ignore_interrupts(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// The whole answer to a head, or `None` while the head is not complete.
fn respond(head: &[u8], page: &impl Fn(&str) -> Answer) -> Option<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let answer = match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => match (request.method, request.path) {
            (Some("GET" | "HEAD"), Some(target)) => page(target.split('?').next().unwrap_or(target)),
            _ => Answer::error(405, "only GET and HEAD are answered here\n"),
        },
        Ok(httparse::Status::Partial) if head.len() < HEAD_BYTES_MAX => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            Answer::error(431, "the request's head is too large\n")
        }
        Err(_) => Answer::error(400, "this is not an HTTP/1.1 request\n"),
    };
    Some(encode(&answer, request.method == Some("HEAD")))
}

fn encode(answer: &Answer, is_head: bool) -> Vec<u8> {
    let allow = if answer.status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
    let mut bytes = format!(
        "HTTP/1.1 {} {}\r\n{allow}Content-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n\
         Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; connect-src 'self'\r\nConnection: close\r\n\r\n",
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
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "",
    }
}
