//! A connection that sends any bytes and returns any answer: for requests that no correct client would send.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::patience::PATIENCE;

/// The header of a WebSocket handshake, after the request line.
const UPGRADE: &str = "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A receive buffer that fills quickly if nobody reads.
const NARROW_BYTES: usize = 64 * 1024;

/// Opcodes of WebSocket frames, with the bit that ends the message.
pub(crate) const TEXT: u8 = 0x81;
pub(crate) const CLOSE: u8 = 0x88;
pub(crate) const PING: u8 = 0x89;
pub(crate) const PONG: u8 = 0x8A;

/// The mask of the clients' frames.
const KEY: [u8; 4] = [0x5A, 0x01, 0xFE, 0x33];

/// A frame as a client has to send it: masked. `first` is its first byte, flags and opcode.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = announced(first, payload.len() as u64);
    bytes.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// Only the head of a frame, which may announce more than ever arrives.
pub(crate) fn announced(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = header(first, 0x80, length);
    bytes.extend_from_slice(&KEY);
    bytes
}

/// A frame as only a server may send it.
pub(crate) fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, 0, payload.len() as u64);
    bytes.extend_from_slice(payload);
    bytes
}

/// The head of a frame without its key. `mask` is 0x80 or 0.
fn header(first: u8, mask: u8, length: u64) -> Vec<u8> {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..=125), _) => vec![first, mask | short],
        (_, Ok(middle)) => [&[first, mask | 126][..], &middle.to_be_bytes()].concat(),
        _ => [&[first, mask | 127][..], &length.to_be_bytes()].concat(),
    }
}

/// A TCP connection to a server whose receive buffer is small.
pub(crate) fn connect_narrow(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(NARROW_BYTES).unwrap();
    socket.connect_timeout(&address.into(), PATIENCE).unwrap();
    socket.into()
}

/// The connection.
pub(crate) struct Raw {
    socket: TcpStream,
    received: Vec<u8>,
}

impl Raw {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect_timeout(&address, PATIENCE).unwrap())
    }

    pub(crate) fn over(socket: TcpStream) -> Self {
        socket.set_nodelay(true).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { socket, received: Vec::new() }
    }

    /// Connects and sends the first bytes.
    pub(crate) fn begin(address: SocketAddr, bytes: &[u8]) -> Self {
        let mut raw = Self::connect(address);
        assert!(raw.send(bytes), "the server closed at once");
        raw
    }

    /// An open WebSocket.
    pub(crate) fn websocket(address: SocketAddr, target: &str) -> Self {
        let mut raw = Self::connect(address);
        raw.upgrade(target);
        raw
    }

    /// A WebSocket over a connection with a small receive buffer.
    pub(crate) fn websocket_narrow(address: SocketAddr, target: &str) -> Self {
        let mut raw = Self::over(connect_narrow(address));
        raw.upgrade(target);
        raw
    }

    /// A WebSocket with further headers.
    pub(crate) fn websocket_with(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Self {
        let mut raw = Self::connect(address);
        raw.upgrade_with(target, headers);
        raw
    }

    /// Requests a WebSocket and sends frames before the answer can arrive.
    pub(crate) fn upgrade_and_say(address: SocketAddr, target: &str, frames: &[u8]) -> Self {
        let mut bytes = format!("GET {target} HTTP/1.1\r\n{UPGRADE}").into_bytes();
        bytes.extend_from_slice(frames);
        let mut raw = Self::begin(address, &bytes);
        let head = raw.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        raw
    }

    /// Opens the WebSocket; the handshake must succeed.
    pub(crate) fn upgrade(&mut self, target: &str) {
        self.upgrade_with(target, &[]);
    }

    fn upgrade_with(&mut self, target: &str, headers: &[(&str, &str)]) {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        assert!(self.send(format!("GET {target} HTTP/1.1\r\n{headers}{UPGRADE}").as_bytes()));
        let head = self.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }

    /// Sends bytes. Returns false if the server has closed.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        match self.socket.write_all(bytes) {
            Ok(()) => true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the server neither reads nor closes for {PATIENCE:?}")
            }
            Err(_) => false,
        }
    }

    /// Closes the sending side.
    pub(crate) fn finish_sending(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }

    /// The head of a response, with its empty line.
    pub(crate) fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                return String::from_utf8(self.received.drain(..end + 4).collect()).unwrap();
            }
            assert!(self.receive(), "closed within a head: {:?}", String::from_utf8_lossy(&self.received));
        }
    }

    /// This many bytes of a body.
    pub(crate) fn body(&mut self, length: usize) -> Vec<u8> {
        while self.received.len() < length {
            assert!(self.receive(), "closed within a body");
        }
        self.received.drain(..length).collect()
    }

    /// The next frame that the server sends, its first byte and its payload. `None`: it has closed.
    pub(crate) fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((start, length)) = frame_extent(&self.received)
                && self.received.len() >= start + length
            {
                let frame: Vec<u8> = self.received.drain(..start + length).collect();
                return Some((frame[0], frame[start..].to_vec()));
            }
            if !self.receive() {
                return None;
            }
        }
    }

    /// The next text frame, as JSON.
    pub(crate) fn json(&mut self) -> serde_json::Value {
        loop {
            let (first, payload) = self.frame().expect("the server closed");
            if first == TEXT {
                return serde_json::from_slice(&payload).unwrap();
            }
        }
    }

    /// Reads and drops all available bytes.
    pub(crate) fn discard(&mut self) {
        self.received.clear();
        let mut buffer = [0; 64 * 1024];
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.read(&mut buffer).is_ok_and(|count| count > 0) {}
        self.socket.set_nonblocking(false).unwrap();
    }

    /// Sends as many bytes as are accepted at once. Returns their number; `None`: the server has closed.
    pub(crate) fn send_some(&mut self, bytes: &[u8]) -> Option<usize> {
        self.socket.set_nonblocking(true).unwrap();
        let result = self.socket.write(bytes);
        self.socket.set_nonblocking(false).unwrap();
        match result {
            Ok(count) => Some(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(0),
            Err(_) => None,
        }
    }

    /// Reads until the server closes; the code of its close frame, if there was one.
    pub(crate) fn close_code(&mut self) -> Option<u16> {
        let mut code = None;
        while let Some((first, payload)) = self.frame() {
            if first == CLOSE {
                code = payload.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
            }
        }
        code
    }

    /// Everything that arrives until the server closes.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.receive() {}
        std::mem::take(&mut self.received)
    }

    /// Ends the connection so that the server sees it as broken.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Waits for more bytes. Returns false if the server has closed.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; 64 * 1024];
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nothing came for {PATIENCE:?}");
            self.socket.set_read_timeout(Some(left)).unwrap();
            match self.socket.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    self.received.extend_from_slice(&buffer[..count]);
                    return true;
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return false,
            }
        }
    }
}

/// The offset and length of the first frame's payload, once its header has arrived.
fn frame_extent(bytes: &[u8]) -> Option<(usize, usize)> {
    let &[_, short, ..] = bytes else { return None };
    assert!(short < 0x80, "a server does not mask");
    match short {
        127 => Some((10, usize::try_from(u64::from_be_bytes(*bytes[2..].first_chunk()?)).unwrap())),
        126 => Some((4, usize::from(u16::from_be_bytes(*bytes[2..].first_chunk()?)))),
        short => Some((2, usize::from(short))),
    }
}
