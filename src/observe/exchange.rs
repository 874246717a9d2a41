//! Serves exchanges: one request and one answer per connection, on one thread, with limits on everything.
//!
//! It exists because health checks and `llm-bridge stats` must be answered when nothing else is. A connection that
//! sends nothing, too much or too slowly, or does not read its answer, is closed at a deadline. If too many are open,
//! one without a request is closed in favour of the new one, so that idle connections shut nobody out. The thread
//! survives a lack of descriptors.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;

use crate::stop::Stop;
use crate::{pulse, warn_limited};

/// The most open connections.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// How long the client may take to read the end of the answer and to close.
const CLOSING_TIME: Duration = Duration::from_secs(1);
/// How often deadlines are checked, and whether an accept that failed succeeds now.
const TICK: Duration = Duration::from_millis(100);

const LISTENER: Token = Token(usize::MAX);
const STOP: Token = Token(usize::MAX - 1);

/// The reaction to the bytes that a client has sent so far.
#[derive(Debug)]
pub(super) enum Reaction {
    /// Wait for more bytes.
    Wait,
    /// Send this answer.
    Answer(Vec<u8>),
    /// Close without an answer.
    Close,
}

/// A listening socket of either kind.
pub(super) trait Listener: Source {
    /// Its connections.
    type Stream: Stream;

    /// Accepts the next connection.
    fn accept_one(&self) -> io::Result<Self::Stream>;
}

/// A connected socket of either kind.
pub(super) trait Stream: Source + Read + Write {
    /// Shuts down writing, so that the client sees the end of the answer.
    fn end_writing(&self) -> io::Result<()>;
}

impl Listener for mio::net::TcpListener {
    type Stream = mio::net::TcpStream;

    fn accept_one(&self) -> io::Result<Self::Stream> {
        self.accept().map(|(stream, _)| stream)
    }
}

impl Stream for mio::net::TcpStream {
    fn end_writing(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Listener for mio::net::UnixListener {
    type Stream = mio::net::UnixStream;

    fn accept_one(&self) -> io::Result<Self::Stream> {
        self.accept().map(|(stream, _)| stream)
    }
}

impl Stream for mio::net::UnixStream {
    fn end_writing(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Serves until the stop signal. `time` is a connection's limit from its beginning to the end of the answer. `react`
/// gets all bytes that a client has sent, and whether no more can follow.
///
/// # Errors
/// If the listener fails; never because of a client.
pub(super) fn serve<L: Listener>(
    mut listener: L,
    stop: &Stop,
    time: Duration,
    react: impl Fn(&[u8], bool) -> Reaction,
) -> io::Result<()> {
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    stop.wakes(Arc::new(Waker::new(poll.registry(), STOP)?));
    let mut server = Server { poll, connections: Slab::with_capacity(CONNECTIONS_MAX), time, react };
    let mut has_accepted = true;
    let mut events = Events::with_capacity(CONNECTIONS_MAX + 1);
    while !stop.requested() {
        pulse::beat();
        let is_idle = has_accepted && server.connections.is_empty();
        let timeout = if is_idle { pulse::WAIT_MAX } else { TICK };
        if let Err(error) = server.poll.poll(&mut events, Some(timeout))
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error);
        }
        for event in events.iter().filter(|event| event.token() < STOP) {
            server.advance(event.token().0);
        }
        // After the events: a slot that becomes free must not get another connection's event.
        let now = Instant::now();
        server.connections.retain(|_, connection| connection.is_open && now < connection.deadline);
        // Not only after an event: an accept that failed is reported only once.
        has_accepted = server.accept(&listener, now);
    }
    Ok(())
}

struct Server<S, R> {
    poll: Poll,
    connections: Slab<Connection<S>>,
    time: Duration,
    react: R,
}

impl<S: Stream, R: Fn(&[u8], bool) -> Reaction> Server<S, R> {
    /// Accepts the waiting connections; returns whether none is left. Those to be closed stay in the table until the
    /// next round removes them.
    fn accept(&mut self, listener: &impl Listener<Stream = S>, now: Instant) -> bool {
        for _ in 0..CONNECTIONS_MAX {
            let stream = match listener.accept_one() {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) => {
                    warn_limited!(%error, "a connection for operators cannot be accepted");
                    return false;
                }
            };
            if self.connections.len() >= CONNECTIONS_MAX {
                self.drop_one();
            }
            let entry = self.connections.vacant_entry();
            let token = entry.key();
            let mut connection = Connection::new(stream, now + self.time);
            let interest = Interest::READABLE | Interest::WRITABLE;
            match self.poll.registry().register(&mut connection.stream, Token(token), interest) {
                Ok(()) => {
                    entry.insert(connection);
                    self.advance(token);
                }
                Err(error) => warn_limited!(%error, "a connection for operators cannot be watched"),
            }
        }
        false
    }

    /// Makes room: closes the oldest connection without a request first, then one whose answer was sent completely.
    fn drop_one(&mut self) {
        let victim = self
            .connections
            .iter()
            .min_by_key(|(_, connection)| (connection.state.rank(), connection.deadline));
        if let Some(token) = victim.map(|(token, _)| token) {
            self.connections.remove(token);
        }
    }

    fn advance(&mut self, token: usize) {
        if let Some(connection) = self.connections.get_mut(token) {
            connection.is_open = match connection.advance(&self.react) {
                Ok(()) => false,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            };
        }
    }
}

struct Connection<S> {
    stream: S,
    state: State,
    deadline: Instant,
    is_open: bool,
}

enum State {
    /// The bytes of the request so far.
    Reading(Vec<u8>),
    /// The answer, and how many bytes of it are written.
    Writing(Vec<u8>, usize),
    /// All is written. If the connection were closed before the client closes it, the client would lose the end of
    /// the answer if it sent more than was read.
    Closing,
}

impl State {
    /// The order in which connections are closed if there are too many, the lowest first.
    const fn rank(&self) -> u8 {
        match self {
            Self::Reading(_) => 0,
            Self::Closing => 1,
            Self::Writing(..) => 2,
        }
    }
}

impl<S: Stream> Connection<S> {
    fn new(stream: S, deadline: Instant) -> Self {
        Self { stream, state: State::Reading(Vec::new()), deadline, is_open: true }
    }

    /// Continues as far as the socket allows; `Ok` means that the connection has ended.
    fn advance(&mut self, react: &impl Fn(&[u8], bool) -> Reaction) -> io::Result<()> {
        let mut buffer = [0_u8; 2048];
        loop {
            match &mut self.state {
                State::Reading(received) => {
                    let count = ignore_interrupts(|| self.stream.read(&mut buffer))?;
                    received.extend_from_slice(&buffer[..count]);
                    match react(received, count == 0) {
                        Reaction::Answer(answer) => self.state = State::Writing(answer, 0),
                        Reaction::Wait if count > 0 => {}
                        Reaction::Wait | Reaction::Close => return Ok(()),
                    }
                }
                State::Writing(answer, written) if *written < answer.len() => {
                    *written += ignore_interrupts(|| self.stream.write(&answer[*written..]))?;
                }
                State::Writing(..) => {
                    self.stream.end_writing()?;
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
