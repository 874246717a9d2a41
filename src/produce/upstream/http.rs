//! One HTTP request to a model's server, on a thread of its own, so that the thread that waits for the answer can do
//! other work and can close the connection at any time.
//!
//! The thread passes on what it reads through a bounded queue: if that is full, it stops reading and the server
//! waits. Only the name lookup and the connection attempt cannot be interrupted; the connect timeout bounds both.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::http::{Response, Uri};
use ureq::unversioned::transport::{ConnectionDetails, Connector, Transport};
use ureq::{Agent, Body, Error};

use super::Upstream;
use crate::queue::{self, Receiver, SendError, Sender, Weight};
use crate::thread::{self, Ended, Handle};

/// The most pieces of a body that are read ahead.
const PIECES_MAX: usize = 256;
/// The most bytes that are read ahead.
const PIECE_BYTES_MAX: usize = 1024 * 1024;
/// The most bytes of one read.
const READ_BYTES: usize = 16 * 1024;
/// The most bytes that are read of a body that explains a refusal.
const REFUSAL_BYTES_MAX: u64 = 16 * 1024;
/// How long the thread waits for room before it checks whether the receiver still exists.
const ROOM_WAIT: Duration = Duration::from_millis(500);

/// One piece of a request's result.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// The head of an answer with a success status; its body follows.
    Head(Head),
    /// More of the body.
    Body(Vec<u8>),
    /// The orderly end of the body.
    End,
    /// An error status.
    Refused(Refusal),
    /// The answer is not HTTP, or its body does not match its head.
    Malformed(String),
    /// No connection could be opened.
    Unreachable(String),
    /// The connection broke.
    Broken(String),
}

/// The headers of an answer that describe its body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// `Content-Type`.
    pub(super) kind: Option<String>,
    /// `Content-Encoding`, unless the client has decoded it.
    pub(super) encoding: Option<String>,
}

/// An answer with an error status.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) retry_after: Option<String>,
    /// The beginning of the body.
    pub(super) body: String,
}

/// A request in progress.
pub(super) struct Call {
    agent: Agent,
    pieces: Option<Receiver<Piece>>,
    thread: CutCall,
}

/// The thread of a request that was abandoned.
pub(super) struct CutCall {
    thread: Handle,
    /// Where it reports its end; only [`CutCall::join`] uses that.
    _ended: Receiver<Ended>,
}

impl CutCall {
    /// Waits for the thread.
    pub(super) fn join(self) {
        self.thread.join();
    }
}

impl Call {
    /// Sends the request.
    pub(super) fn begin(upstream: &Upstream, body: Arc<str>) -> std::io::Result<Self> {
        let weigh = |piece: &Piece| if let Piece::Body(bytes) = piece { bytes.len() } else { 0 };
        let weight = Weight { bytes_max: PIECE_BYTES_MAX, weigh };
        let (sender, pieces) = queue::weighed("upstream", PIECES_MAX, weight, None);
        let (ended, reports) = queue::bounded("upstream-ended", 1);
        let connected = Connected::watching(&upstream.url);
        let agent = upstream.agent(connected.clone());
        let (ours, upstream) = (agent.clone(), upstream.clone());
        let thread = thread::spawn("upstream", &ended, move || {
            let last = transfer(&ours, &upstream, &body, &sender, &connected);
            send(&sender, last);
        })?;
        Ok(Self { agent, pieces: Some(pieces), thread: CutCall { thread, _ended: reports } })
    }

    /// The next piece; waits up to `wait` for it.
    pub(super) fn next(&self, wait: Duration) -> Option<Piece> {
        let pieces = self.pieces.as_ref()?;
        let lost = || Piece::Broken("the thread that read it ended".to_owned());
        match pieces.recv_timeout(wait) {
            // The last piece may have come between the two checks.
            None if self.thread.thread.is_finished() => Some(pieces.try_recv().unwrap_or_else(lost)),
            piece => piece,
        }
    }

    /// Closes the connection. The thread ends at once, or within the connect timeout if it is still looking up the
    /// name or connecting.
    pub(super) fn cut(mut self) -> CutCall {
        drop(self.pieces.take());
        self.agent.shutdown();
        self.thread
    }
}

/// Passes a piece on; false if the receiver is gone.
fn send(sender: &Sender<Piece>, mut piece: Piece) -> bool {
    loop {
        match sender.send_timeout(piece, ROOM_WAIT) {
            Ok(()) => return true,
            Err(SendError::Closed(_)) => return false,
            Err(SendError::Full(back)) => piece = back,
        }
    }
}

/// Does the whole exchange and returns its last piece.
fn transfer(
    agent: &Agent,
    upstream: &Upstream,
    body: &str,
    sender: &Sender<Piece>,
    connected: &Connected,
) -> Piece {
    let mut request = agent.post(upstream.url.clone());
    for (name, value) in &upstream.headers {
        request = request.header(name, value);
    }
    let response = match request.send(body) {
        Ok(response) => response,
        Err(error) => return failed(&error, connected.is_made()),
    };
    if !response.status().is_success() {
        let refusal = refusal(&response);
        return Piece::Refused(Refusal { body: beginning(response), ..refusal });
    }
    if !send(sender, Piece::Head(head(&response))) {
        return Piece::End;
    }
    let mut reader = response.into_body().into_reader();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Piece::End,
            Ok(len) => {
                if !send(sender, Piece::Body(buffer[..len].to_vec())) {
                    return Piece::End;
                }
            }
            Err(error) if is_undecodable(&error) => return Piece::Malformed(error.to_string()),
            Err(error) => return Piece::Broken(error.to_string()),
        }
    }
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

fn head(response: &Response<Body>) -> Head {
    let kind = header(response, "content-type").map(ToOwned::to_owned);
    // The client has decoded gzip and removed the header.
    let encoding = header(response, "content-encoding").map(str::trim);
    let encoding =
        encoding.filter(|encoding| !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity"));
    Head { kind, encoding: encoding.map(ToOwned::to_owned) }
}

fn refusal(response: &Response<Body>) -> Refusal {
    let in_ms = header(response, "retry-after-ms").and_then(|ms| ms.trim().parse::<f64>().ok());
    let retry_after = in_ms.map(|ms| (ms / 1000.0).to_string());
    let retry_after = retry_after.or_else(|| header(response, "retry-after").map(ToOwned::to_owned));
    Refusal { status: response.status().as_u16(), retry_after, body: String::new() }
}

/// Whether a body is not compressed as its head says. A body that ends too early counts as broken off instead.
fn is_undecodable(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(inner, Some(Error::Decompress(_, error)) if error.kind() != std::io::ErrorKind::UnexpectedEof)
}

fn beginning(response: Response<Body>) -> String {
    let mut bytes = Vec::new();
    // An error is ignored: the part of the body that was read is more useful than the fact that the connection broke.
    response.into_body().into_reader().take(REFUSAL_BYTES_MAX).read_to_end(&mut bytes).ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Why no answer arrived. Without a connection the server cannot have begun to work.
fn failed(error: &Error, is_connected: bool) -> Piece {
    let text = error.to_string();
    match error {
        _ if !is_connected => Piece::Unreachable(text),
        Error::Protocol(_) | Error::Http(_) | Error::LargeResponseHeader(..) => Piece::Malformed(text),
        _ => Piece::Broken(text),
    }
}

/// The last of the client's connectors: it records that there is a connection to the server itself, through the proxy
/// and with TLS if they are configured.
#[derive(Clone, Debug)]
pub(super) struct Connected {
    server: Uri,
    is_made: Arc<AtomicBool>,
}

impl Connected {
    /// For requests to this address.
    fn watching(server: &Uri) -> Self {
        Self { server: server.clone(), is_made: Arc::default() }
    }

    /// Whether there was a connection.
    fn is_made(&self) -> bool {
        self.is_made.load(Ordering::Relaxed)
    }
}

impl<In: Transport> Connector<In> for Connected {
    type Out = In;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<In>, Error> {
        // The same connectors open the connection to a proxy, under the proxy's address.
        if chained.is_some() && *details.uri == self.server {
            self.is_made.store(true, Ordering::Relaxed);
        }
        Ok(chained)
    }
}
