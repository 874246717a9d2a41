//! The clients: one epoll loop over all WebSocket connections, the same code for the daemon, the
//! floors and the peers.
//!
//! It parses only as much of WebSocket and of the frames as it needs to find the tokens, checks the position and the
//! age of every token, and answers pings. It neither masks nor verifies, because it uses the same two cores as the
//! server under test.

mod centrifugo;
mod nats;
mod returning;
mod slow;

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll};

use self::returning::Left;
use crate::dialect::Dialect;
use crate::judge::Judge;
use crate::load::{Manner, MeasuredCpu, Pace, Plan, Shared, Transport};
use crate::seen::Seen;
use crate::token::{Token, now_us};
use crate::wire;

/// Handshakes under way at once.
const HANDSHAKES_MAX: usize = 128;
/// The longest sleep of the loop, so that it notices requests of the conductor.
const LOOK: Duration = Duration::from_millis(10);
/// The same while the clients may not connect yet: the time until they have everything begins when they may.
const LOOK_AWAITED: Duration = Duration::from_millis(1);
/// Tokens that are still outstanding after this long without progress count as lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// The payload of a close frame of a client that needs nothing more: code 1000.
const NORMAL_CLOSURE: [u8; 2] = 1_000_u16.to_be_bytes();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Upgrading,
    /// It has asked for its stream in a message, and waits for the answer.
    Subscribing,
    Open,
    /// Its stream has ended, and the server has not closed the connection yet.
    Ended,
    Closed,
}

struct Client {
    socket: TcpStream,
    /// The index of the stream that it reads, in the plan.
    stream: usize,
    stage: Stage,
    judge: Judge,
    /// The id of the last entry that it received; kept only if it is needed.
    last_id: String,
    /// It has reconnected, or come to stored tokens, but has not yet received everything written before that.
    behind: bool,
    /// The beginning of a frame that is not complete yet.
    partial: Vec<u8>,
}

struct Clients<'a> {
    poll: Poll,
    server: SocketAddr,
    dialect: Dialect,
    plan: &'a Plan,
    shared: &'a Shared,
    clients: Vec<Client>,
    handshakes: usize,
    /// The clients' state at the time when they left.
    left: Option<Vec<Left>>,
    /// When slow clients last read.
    share_read_at: Option<Instant>,
    seen: Seen,
}

/// Connects all clients and reads until each has everything that its stream holds, or until nothing more arrives.
pub(crate) fn run(
    server: SocketAddr,
    dialect: Dialect,
    plan: &Plan,
    shared: &Shared,
) -> Result<Seen, Box<dyn Error + Send + Sync>> {
    let mut clients = Clients {
        poll: Poll::new()?,
        server,
        dialect,
        plan,
        shared,
        clients: Vec::with_capacity(plan.clients),
        handshakes: 0,
        left: None,
        share_read_at: None,
        seen: Seen::new()?.in_parts(plan.sample_every),
    };
    clients.read_all()?;
    clients.count_lost();
    Ok(clients.seen)
}

impl Clients<'_> {
    fn read_all(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut events = Events::with_capacity(1_024);
        let mut input = vec![0; 256 * 1024];
        let mut progress = None;
        let mut cpu = MeasuredCpu::default();
        while !self.shared.failed() {
            self.leave_if_requested();
            self.come_late();
            self.connect_more()?;
            let look = if self.are_awaited() { LOOK_AWAITED } else { LOOK };
            match self.poll.poll(&mut events, Some(look)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            self.seen.look(self.shared);
            for event in &events {
                self.ready(event.token().0, &mut input)?;
            }
            self.read_share(&mut input)?;
            self.shared.delivered.store(self.seen.received, Ordering::Release);
            cpu.look(self.shared)?;
            self.seen.cpu = cpu.used();
            if let Some(totals) = self.shared.totals.get() {
                let (received, at) = progress.get_or_insert_with(|| (self.seen.received, Instant::now()));
                if *received != self.seen.received {
                    (*received, *at) = (self.seen.received, Instant::now());
                }
                let complete = self.complete(totals);
                self.seen.behind = !complete && self.shared.is_overdue();
                if complete || self.seen.behind || at.elapsed() > PATIENCE {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Whether every client has everything that its stream holds.
    fn complete(&self, totals: &[u64]) -> bool {
        let stays = self.plan.manner != Manner::Passing;
        let has_all = |client: &Client| {
            client.judge.lost(totals[client.stream]) == 0 && (stays || client.stage == Stage::Closed)
        };
        self.clients.len() == self.plan.clients && self.clients.iter().all(has_all)
    }

    fn count_lost(&mut self) {
        let Some(totals) = self.shared.totals.get() else { return };
        self.seen.lost = self.clients.iter().map(|client| client.judge.lost(totals[client.stream])).sum();
    }

    /// Whether the clients may not connect yet.
    fn are_awaited(&self) -> bool {
        let stores = matches!(self.plan.pace, Pace::Stored(_)) && !self.shared.go.load(Ordering::Acquire);
        stores || self.is_away()
    }

    fn connect_more(&mut self) -> io::Result<()> {
        if self.are_awaited() {
            return Ok(());
        }
        let handshakes_max = if self.left.is_some() { usize::MAX } else { HANDSHAKES_MAX };
        while self.clients.len() < self.plan.clients && self.handshakes < handshakes_max {
            let index = self.clients.len();
            let mut socket = match self.plan.manner {
                Manner::Slow => slow::connect(self.server)?,
                _ => TcpStream::connect(self.server)?,
            };
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut socket, mio::Token(index), interest)?;
            let stream = index % self.plan.streams;
            let (judge, last_id) = match self.left.as_mut().map(|left| std::mem::take(&mut left[index])) {
                None => (Judge::new((self.plan.first_stream + stream) as u64), "0-0".into()),
                Some(left) => (left.judge, left.last_id),
            };
            self.clients.push(Client {
                socket,
                stream,
                stage: Stage::Connecting,
                judge,
                last_id,
                behind: self.left.is_some() || matches!(self.plan.pace, Pace::Stored(_)),
                partial: Vec::new(),
            });
            self.handshakes += 1;
        }
        Ok(())
    }

    fn ready(&mut self, index: usize, input: &mut [u8]) -> io::Result<()> {
        let client = &mut self.clients[index];
        if client.stage == Stage::Connecting {
            client.socket.set_nodelay(true)?;
            // Frees the ports at once, for the next run.
            socket2::SockRef::from(&client.socket).set_linger(Some(Duration::ZERO))?;
            let path = self.dialect.path(self.plan.first_stream + client.stream, &client.last_id);
            let request = wire::request(self.plan.transport, &path, self.server);
            match client.socket.write(request.as_bytes()) {
                Ok(n) if n == request.len() => client.stage = Stage::Upgrading,
                Ok(_) => return Err(io::Error::other("a request was not taken whole")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.is_slow() { Ok(()) } else { self.read(index, input) }
    }

    /// Reads everything available.
    fn read(&mut self, index: usize, input: &mut [u8]) -> io::Result<()> {
        while self.read_once(index, input)? {}
        Ok(())
    }

    /// Reads up to `input.len()` bytes. Returns whether more may be available.
    fn read_once(&mut self, index: usize, input: &mut [u8]) -> io::Result<bool> {
        if self.clients[index].stage == Stage::Closed {
            return Ok(false);
        }
        match self.clients[index].socket.read(input) {
            Ok(0) => self.close(index, "the server closed a connection"),
            Ok(n) => {
                self.received(index, &input[..n]);
                self.check_caught_up(index);
                return Ok(n == input.len());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.close(index, &format!("a connection broke: {error}")),
        }
        Ok(false)
    }

    fn close(&mut self, index: usize, why: &str) {
        self.clients[index].stage = Stage::Closed;
        self.seen.surprise(why);
        self.shared.fail(why);
    }

    /// Splits the bytes of one connection into frames.
    fn received(&mut self, index: usize, bytes: &[u8]) {
        let now = now_us();
        let mut partial = std::mem::take(&mut self.clients[index].partial);
        if partial.is_empty() {
            let used = self.frames(index, bytes, now);
            partial.extend_from_slice(&bytes[used..]);
        } else {
            partial.extend_from_slice(bytes);
            let used = self.frames(index, &partial, now);
            partial.drain(..used);
        }
        if partial.is_empty() {
            // Frees the buffer, so that ten thousand idle clients hold none.
            partial = Vec::new();
        }
        self.clients[index].partial = partial;
    }

    /// Parses the complete frames at the start of `bytes`. Returns their length in bytes.
    fn frames(&mut self, index: usize, bytes: &[u8], now: u64) -> usize {
        let mut used = 0;
        if self.clients[index].stage == Stage::Upgrading {
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return 0 };
            if !bytes.starts_with(wire::granted(self.plan.transport)) {
                let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
                self.close(index, &format!("refused: {head}"));
                return bytes.len();
            }
            used = end + 4;
            self.upgraded(index);
        }
        used + match self.plan.transport {
            Transport::WebSocket => self.websocket_frames(index, &bytes[used..], now),
            Transport::Sse => self.events(index, &bytes[used..], now),
        }
    }

    /// Asks for the stream, unless the request did that.
    fn upgraded(&mut self, index: usize) {
        let number = self.plan.first_stream + self.clients[index].stream;
        match self.dialect.opening(number, index) {
            None => self.opened(index),
            Some(opening) => {
                self.clients[index].stage = Stage::Subscribing;
                self.write(index, &opening);
            }
        }
    }

    /// Counts a client that will get its stream.
    fn opened(&mut self, index: usize) {
        self.clients[index].stage = Stage::Open;
        self.handshakes -= 1;
        self.shared.connected.fetch_add(1, Ordering::AcqRel);
    }

    fn websocket_frames(&mut self, index: usize, bytes: &[u8], now: u64) -> usize {
        let mut used = 0;
        while let Some((first, from, to)) = wire::frame(&bytes[used..]) {
            let payload = &bytes[used + from..used + to];
            match (first, self.dialect) {
                (wire::TEXT, Dialect::Daemon) => self.message(index, payload, now),
                (wire::TEXT, Dialect::Centrifugo) => self.centrifugo(index, payload, now),
                (wire::BINARY, Dialect::Nats) => self.nats(index, payload, now),
                (wire::PING, _) => self.say(index, wire::PONG, payload),
                (wire::CLOSE, _) if self.clients[index].stage == Stage::Ended => {
                    self.say(index, wire::CLOSE, payload);
                    self.clients[index].stage = Stage::Closed;
                }
                // It has left already, in this read.
                (wire::CLOSE, _) if self.clients[index].stage == Stage::Closed => {}
                (wire::CLOSE, _) => {
                    let reason = payload.get(2..).unwrap_or_default();
                    self.close(index, &format!("a close frame: {}", String::from_utf8_lossy(reason)));
                }
                (other, _) => self.seen.surprise(format!("a frame that begins with {other:#x}")),
            }
            used += to;
        }
        used
    }

    fn events(&mut self, index: usize, bytes: &[u8], now: u64) -> usize {
        let mut used = 0;
        while let Some((line, len)) = wire::line(&bytes[used..]) {
            if let Some(json) = line.strip_prefix(b"data: ") {
                self.message(index, json, now);
            } else if !line.is_empty() && !line.starts_with(b"id: ") && !line.starts_with(b":") {
                self.seen.surprise(String::from_utf8_lossy(line));
            }
            used += len;
        }
        used
    }

    /// Sends a frame.
    fn say(&mut self, index: usize, first: u8, payload: &[u8]) {
        self.write(index, &wire::masked(first, payload));
    }

    fn write(&mut self, index: usize, frame: &[u8]) {
        if !matches!(self.clients[index].socket.write(frame), Ok(n) if n == frame.len()) {
            self.seen.surprise("a frame of a client could not be written");
        }
    }

    /// Lets a client whose stream has ended go: half of the clients at once, the others when the server closes.
    fn ended(&mut self, index: usize) {
        self.clients[index].stage = Stage::Ended;
        if index.is_multiple_of(2) {
            self.say(index, wire::CLOSE, &NORMAL_CLOSURE);
            self.clients[index].stage = Stage::Closed;
        }
    }

    fn message(&mut self, index: usize, json: &[u8], now: u64) {
        if wire::is_notice(json) {
            return;
        }
        if self.plan.manner == Manner::Passing && wire::is_end(json) {
            return self.ended(index);
        }
        self.keep_id(index, json);
        self.seen.frames += u64::from(wire::is_delta(json));
        if !wire::is_delta(json) || !wire::tokens(json, |token| self.token(index, token, now)) {
            self.seen.surprise(String::from_utf8_lossy(json));
        }
    }

    fn token(&mut self, index: usize, token: Token, now: u64) {
        let judge = &mut self.clients[index].judge;
        if !judge.has_begun() {
            self.shared.started.fetch_add(1, Ordering::AcqRel);
        }
        let came = judge.take(token);
        self.seen.take(came, token, now);
    }
}
