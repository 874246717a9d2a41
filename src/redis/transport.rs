//! The byte stream under a link: TCP, a Unix socket, or TLS over TCP; connected within a deadline,
//! non-blocking from then on.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use super::error::RedisError;
use super::target::{Endpoint, Target};
use super::tls::TlsStream;
use crate::pulse;

/// Silence after which the kernel probes whether the other side is alive.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// The time between two such probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// The number of unanswered probes after which the connection is closed.
const KEEPALIVE_RETRIES: u32 = 3;

/// A connected, non-blocking byte stream.
#[derive(Debug)]
pub(super) enum Transport {
    /// TCP or a Unix socket.
    Plain(Socket),
    /// TLS over TCP.
    Tls(Box<TlsStream>),
}

impl Transport {
    /// Connects to the target. The system's lookup of the host's name is not bounded by the deadline.
    pub(super) fn connect(target: &Target, deadline: Instant) -> Result<Self, RedisError> {
        match target.resolve()? {
            Endpoint::Unix(path) => Ok(Self::Plain(connect_unix(path, deadline)?)),
            Endpoint::Tcp { addresses, tls: None } => Ok(Self::Plain(connect_tcp(&addresses, deadline)?)),
            Endpoint::Tcp { addresses, tls: Some(tls) } => {
                let socket = connect_tcp(&addresses, deadline)?;
                let stream = TlsStream::connect(socket, &tls.config, tls.server_name.clone(), deadline)?;
                Ok(Self::Tls(Box::new(stream)))
            }
        }
    }

    /// Appends the bytes that have arrived to the buffer's spare room (or, over TLS, beyond it) and returns their
    /// number; 0 at the end of the stream.
    pub(super) fn read_into(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => {
                // SAFETY: the slice is only written to, by recv(2), so no initialised byte in it becomes
                // uninitialised.
                let spare = unsafe { buffer.chunk_mut().as_uninit_slice_mut() };
                let len = socket.recv(spare)?;
                // SAFETY: recv(2) has filled the first `len` bytes of the spare room.
                unsafe { buffer.advance_mut(len) };
                Ok(len)
            }
            Self::Tls(stream) => stream.read_into(buffer),
        }
    }

    /// Accepts some of the bytes for sending and returns their number.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.send_with_flags(bytes, libc::MSG_NOSIGNAL),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    /// Sends the accepted bytes that are not on the socket yet; `false` if it has no room now.
    pub(super) fn send_pending(&mut self) -> io::Result<bool> {
        match self {
            Self::Plain(_) => Ok(true),
            Self::Tls(stream) => stream.send_pending(),
        }
    }

    /// Whether a read returns everything that the socket has, if there is room.
    pub(super) const fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        match self {
            Self::Plain(socket) => socket.as_raw_fd(),
            Self::Tls(stream) => stream.socket.as_raw_fd(),
        }
    }
}

/// Tries every address of the host, each with its share of the remaining time.
fn connect_tcp(addresses: &[SocketAddr], deadline: Instant) -> Result<Socket, RedisError> {
    let mut error = RedisError::Io(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
    for (tried, address) in addresses.iter().enumerate() {
        let share = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let timeout = deadline.saturating_duration_since(Instant::now()) / share;
        let attempt = Socket::new(Domain::for_address(*address), Type::STREAM, None).and_then(|socket| {
            connect_within(&socket, &(*address).into(), timeout)?;
            socket.set_tcp_nodelay(true)?;
            socket.set_tcp_keepalive(
                &TcpKeepalive::new()
                    .with_time(KEEPALIVE_IDLE)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(KEEPALIVE_RETRIES),
            )?;
            Ok(socket)
        });
        match attempt {
            Ok(socket) => return Ok(socket),
            Err(failed) if failed.kind() == io::ErrorKind::TimedOut => error = RedisError::Timeout,
            Err(failed) => error = failed.into(),
        }
    }
    Err(error)
}

fn connect_unix(path: &Path, deadline: Instant) -> Result<Socket, RedisError> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let timeout = deadline.saturating_duration_since(Instant::now());
    connect_within(&socket, &SockAddr::unix(path)?, timeout)?;
    Ok(socket)
}

fn connect_within(socket: &Socket, address: &SockAddr, timeout: Duration) -> io::Result<()> {
    if timeout.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    pulse::expect_silence(timeout);
    let connected = socket.connect_timeout(address, timeout);
    pulse::beat();
    connected?;
    socket.set_nonblocking(true)
}
