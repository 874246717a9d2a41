//! Hostile clients: a few dozen connections that send far more than any client needs to, as long as the server takes
//! it, while others are served.
//!
//! They use the same cores as the server, so their own cost is bounded: each connection writes at most
//! [`BYTES_PER_TICK`] bytes with one call each tick. This is 400 KB/s, or thousands of requests or messages a second,
//! on each of [`CONNECTIONS`] connections; with all of them the server is offered more than it can answer. Half of the
//! connections that pipeline requests never read an answer; all others read.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::daemon::thread_cpu;
use crate::load::Shared;
use crate::stage::Result;
use crate::wire;

/// How many connections an attack has.
const CONNECTIONS: usize = 48;
/// The same in the smoke size.
const CONNECTIONS_SMOKE: usize = 6;
/// How often each connection writes and reads.
const TICK: Duration = Duration::from_millis(10);
/// The most bytes that a connection writes in a tick.
const BYTES_PER_TICK: usize = 4_096;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// The behaviour of the hostile clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attack {
    /// HTTP/1.1 requests without waiting for answers; half of the connections never read one.
    Pipelining,
    /// Requests to cancel: half of them for a stream that exists, half for streams that nobody has written.
    Cancels,
    /// WebSocket messages: acknowledgements, both kinds of ping, and text that is no message.
    Messages,
}

/// The result of an attack.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attacked {
    /// How many requests or messages the server's sockets took.
    pub(crate) taken: u64,
    /// Processor time of the hostile clients.
    pub(crate) cpu: Duration,
}

/// A hostile connection, which sends the same bytes again and again.
struct Hostile {
    socket: TcpStream,
    /// The target of the WebSocket; without one the connection stays HTTP.
    path: Option<String>,
    bytes: Vec<u8>,
    /// The requests or messages in `bytes`.
    pieces: usize,
    /// The place in `bytes` where the next write begins.
    at: usize,
    /// How many of its bytes the server's socket took.
    taken: usize,
    reads: bool,
}

impl Hostile {
    fn connect(server: SocketAddr, attack: Attack, number: usize, victim: usize) -> Result<Self> {
        let (path, pieces) = match attack {
            Attack::Pipelining => (None, vec![b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()]),
            Attack::Cancels => (None, cancels(number, victim)),
            Attack::Messages => messages(number, victim),
        };
        let round: usize = pieces.iter().map(Vec::len).sum();
        let rounds = BYTES_PER_TICK.div_ceil(round);
        Ok(Self {
            socket: open(server, path.as_deref())?,
            path,
            bytes: pieces.concat().repeat(rounds),
            pieces: pieces.len() * rounds,
            at: 0,
            taken: 0,
            reads: attack != Attack::Pipelining || number.is_multiple_of(2),
        })
    }

    /// Discards some of the answers and writes one tick's bytes. Returns whether the connection is still open.
    fn tick(&mut self, input: &mut [u8]) -> bool {
        if self.reads {
            match self.socket.read(input) {
                Ok(0) => return false,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return false,
                _ => {}
            }
        }
        let end = self.bytes.len().min(self.at + BYTES_PER_TICK);
        match self.socket.write(&self.bytes[self.at..end]) {
            Ok(count) => {
                self.at = (self.at + count) % self.bytes.len();
                self.taken += count;
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

/// Requests to cancel the stream of that number or, from every second connection, streams that nobody has written.
fn cancels(number: usize, victim: usize) -> Vec<Vec<u8>> {
    let request = |name: &str| {
        format!(
            "POST /v1/streams/{name}/m/cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15\r\n\r\n\
             {{\"reason\":\"xx\"}}"
        )
        .into_bytes()
    };
    match number.is_multiple_of(2) {
        true => vec![request(&format!("bench-{victim}"))],
        false => (0..500).map(|other| request(&format!("absent-{number}-{other}"))).collect(),
    }
}

/// A target, and messages for a WebSocket there.
fn messages(number: usize, victim: usize) -> (Option<String>, Vec<Vec<u8>>) {
    let one_stream = format!("/v1/streams/bench-{victim}/m?follow=1");
    let (path, text) = match number % 4 {
        0 => (one_stream, r#"{"type":"ack","id":"1-0"}"#),
        1 => ("/v1/ws".into(), r#"{"type":"ping","nonce":"x"}"#),
        2 => ("/v1/ws".into(), "no message at all"),
        _ => return (Some(one_stream), vec![wire::masked(wire::PING, b"x")]),
    };
    (Some(path), vec![wire::masked(wire::TEXT, text.as_bytes())])
}

/// Connects and, if there is a target, upgrades.
fn open(server: SocketAddr, path: Option<&str>) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(server)?;
    socket.set_read_timeout(Some(HANDSHAKE))?;
    // Frees the ports at once, for the next run.
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    if let Some(path) = path {
        let host = "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade";
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13";
        write!(socket, "GET {path} HTTP/1.1\r\n{host}\r\n{key}\r\n\r\n")?;
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            socket.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        if !head.starts_with(b"HTTP/1.1 101 ") {
            return Err("a hostile client was not upgraded".into());
        }
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// All hostile clients of a run.
pub(crate) struct Hostiles {
    server: SocketAddr,
    all: Vec<Hostile>,
}

impl Hostiles {
    /// Connects them; some of them attack the stream of that number.
    pub(crate) fn connect(server: SocketAddr, attack: Attack, victim: usize, smoke: bool) -> Result<Self> {
        let count = if smoke { CONNECTIONS_SMOKE } else { CONNECTIONS };
        let all = (0..count).map(|number| Hostile::connect(server, attack, number, victim));
        Ok(Self { server, all: all.collect::<Result<_>>()? })
    }

    /// Attacks for this long, or until the run fails. At most one connection a tick that the server closed, as it
    /// closes those that send text that is no message, connects again.
    pub(crate) fn attack(&mut self, time: Duration, shared: &Shared) -> Result<Attacked> {
        let (from, cpu) = (Instant::now(), thread_cpu()?);
        let mut input = vec![0; 256 * 1024];
        let mut due = from;
        while from.elapsed() < time && !shared.failed() {
            let mut closed = None;
            for (index, hostile) in self.all.iter_mut().enumerate() {
                if !hostile.tick(&mut input) {
                    closed = Some(index);
                }
            }
            if let Some(hostile) = closed.map(|index| &mut self.all[index]) {
                hostile.socket = open(self.server, hostile.path.as_deref())?;
                hostile.at = 0;
            }
            due = (due + TICK).max(Instant::now());
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let taken = self.all.iter().map(|it| (it.taken * it.pieces / it.bytes.len()) as u64).sum();
        Ok(Attacked { taken, cpu: thread_cpu()?.saturating_sub(cpu) })
    }
}
