//! A client's socket: the byte stream under a connection, non-blocking.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::event::Source;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

#[cfg(test)]
use super::memory_socket::MemorySocket;
use crate::config::NEVER;

/// A client's socket.
#[derive(Debug)]
pub(super) enum Socket {
    /// Plain TCP.
    Plain(TcpStream),
    /// In memory, for tests.
    #[cfg(test)]
    Memory(MemorySocket),
}

/// How much longer than the slow-client timeout a peer may acknowledge no data before its connection is dropped.
const PEER_GONE_AFTER: Duration = Duration::from_secs(30);

impl Socket {
    /// Sets the socket's options. Tokens are small and must be sent at once. A vanished peer must be detected, but
    /// only after the slow-client timeout, so that a slow client is closed with the code for slow clients.
    ///
    /// # Errors
    /// When the operating system refuses an option.
    pub(super) fn prepare(&self, slow_timeout: Duration) -> io::Result<()> {
        let socket = match self {
            Self::Plain(socket) => socket,
            #[cfg(test)]
            Self::Memory(_) => return Ok(()),
        };
        socket.set_nodelay(true)?;
        let socket = socket2::SockRef::from(socket);
        socket.set_keepalive(true)?;
        if slow_timeout == NEVER {
            return Ok(());
        }
        socket.set_tcp_user_timeout(Some(slow_timeout + PEER_GONE_AFTER))
    }

    /// Returns how many written bytes the peer's system has not acknowledged yet. It falls as the client reads, long
    /// before a full socket accepts more: Linux reports it writable only when a third of its send buffer, which may
    /// hold megabytes, is free.
    ///
    /// # Errors
    /// When the operating system refuses the request.
    pub(super) fn unacknowledged_bytes(&self) -> io::Result<usize> {
        let socket = match self {
            Self::Plain(socket) => socket,
            #[cfg(test)]
            Self::Memory(socket) => return Ok(socket.unread_bytes()),
        };
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open, and TIOCOUTQ (SIOCOUTQ for sockets) writes one int.
        if unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(usize::try_from(bytes).unwrap_or(0))
    }

    /// Shuts down the sending side: the client reads the end of the stream after the bytes already sent.
    ///
    /// # Errors
    /// When the client has already closed the connection.
    pub(super) fn end_sending(&self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.shutdown(Shutdown::Write),
            #[cfg(test)]
            Self::Memory(socket) => {
                socket.end_sending();
                Ok(())
            }
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            #[cfg(test)]
            Self::Memory(socket) => socket.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            #[cfg(test)]
            Self::Memory(socket) => socket.write(bytes),
        }
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write_vectored(pieces),
            #[cfg(test)]
            Self::Memory(socket) => socket.write_vectored(pieces),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            #[cfg(test)]
            Self::Memory(socket) => socket.flush(),
        }
    }
}

impl Source for Socket {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.register(registry, token, interest),
            #[cfg(test)]
            Self::Memory(_) => Ok(()),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.reregister(registry, token, interest),
            #[cfg(test)]
            Self::Memory(_) => Ok(()),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.deregister(registry),
            #[cfg(test)]
            Self::Memory(_) => Ok(()),
        }
    }
}
