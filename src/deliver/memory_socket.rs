//! A socket in memory, for tests that run a delivery thread without real sockets. No poll watches it: the test reports
//! to the event loop when it is ready.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::sync::Arc;

use parking_lot::Mutex;

use super::connection::Peer;

/// The state of a connection, which both ends share.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "five independent facts about one socket")]
struct Shared {
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    /// Bytes that the server may have written and the client has not read, at most.
    send_buffer: usize,
    client: Peer,
    /// Whether the server has shut down its sending side.
    is_ended: bool,
    /// Whether the server has closed the socket.
    is_closed: bool,
    /// Whether a write has found no room since the client last read.
    is_blocked: bool,
    /// Whether a poll would report the socket.
    is_ready: bool,
    /// Whether there are bytes to read, or the end of the input.
    is_readable: bool,
}

/// The server's end.
#[derive(Debug)]
pub(crate) struct MemorySocket(Arc<Mutex<Shared>>);

/// The client's end.
#[derive(Debug)]
pub(crate) struct ClientEnd(Arc<Mutex<Shared>>);

/// Creates a connected pair of ends. At most `send_buffer` bytes wait for the client.
pub(crate) fn pair(send_buffer: usize) -> (MemorySocket, ClientEnd) {
    let shared = Arc::new(Mutex::new(Shared {
        to_server: VecDeque::new(),
        to_client: VecDeque::new(),
        send_buffer,
        client: Peer::Sending,
        is_ended: false,
        is_closed: false,
        is_blocked: false,
        is_ready: true,
        is_readable: false,
    }));
    (MemorySocket(Arc::clone(&shared)), ClientEnd(shared))
}

impl MemorySocket {
    pub(super) fn unread_bytes(&self) -> usize {
        self.0.lock().to_client.len()
    }

    pub(super) fn end_sending(&self) {
        self.0.lock().is_ended = true;
    }
}

impl Drop for MemorySocket {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
    }
}

impl Read for MemorySocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut shared = self.0.lock();
        match shared.client {
            Peer::Gone => Err(ErrorKind::ConnectionReset.into()),
            Peer::Sending if shared.to_server.is_empty() => Err(ErrorKind::WouldBlock.into()),
            Peer::Sending | Peer::Finishing | Peer::Finished => shared.to_server.read(buffer),
        }
    }
}

impl Write for MemorySocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut shared = self.0.lock();
        if shared.client == Peer::Gone || shared.is_ended {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let room = shared.send_buffer.saturating_sub(shared.to_client.len());
        if room == 0 {
            shared.is_blocked = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        shared.to_client.write(&bytes[..bytes.len().min(room)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut written = 0;
        for piece in pieces {
            match self.write(piece) {
                Ok(len) => written += len,
                Err(_) if written > 0 => return Ok(written),
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ClientEnd {
    /// Sends bytes.
    pub(crate) fn send(&self, bytes: &[u8]) {
        let mut shared = self.0.lock();
        shared.to_server.extend(bytes);
        shared.set_readable();
    }

    /// Ends the sending side.
    pub(crate) fn finish(&self) {
        let mut shared = self.0.lock();
        shared.client = shared.client.max(Peer::Finishing);
        shared.set_readable();
    }

    /// Resets the connection. Bytes that the client has not read are lost.
    pub(crate) fn reset(&self) {
        let mut shared = self.0.lock();
        shared.client = Peer::Gone;
        shared.to_client.clear();
        shared.set_readable();
    }

    /// Reads at most `most` bytes.
    pub(crate) fn take(&self, most: usize) -> Vec<u8> {
        let mut shared = self.0.lock();
        let len = most.min(shared.to_client.len());
        if len > 0 && std::mem::take(&mut shared.is_blocked) {
            shared.is_ready = true;
        }
        shared.to_client.drain(..len).collect()
    }

    /// The number of bytes that wait to be read.
    pub(crate) fn waiting(&self) -> usize {
        self.0.lock().to_client.len()
    }

    /// Whether the server sends nothing more, and the client has read everything.
    pub(crate) fn is_over(&self) -> bool {
        let shared = self.0.lock();
        (shared.is_ended || shared.is_closed) && shared.to_client.is_empty()
    }

    /// Whether the server has closed the socket.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.lock().is_closed
    }

    /// Whether a poll would report the server's socket.
    pub(crate) fn is_ready(&self) -> bool {
        let shared = self.0.lock();
        shared.is_ready && !shared.is_closed
    }

    /// Returns and clears what a poll would report now: whether the socket is readable, and the state of its client.
    pub(super) fn take_readiness(&self) -> Option<(bool, Option<Peer>)> {
        let mut shared = self.0.lock();
        if shared.is_closed || !std::mem::take(&mut shared.is_ready) {
            return None;
        }
        let is_readable = std::mem::take(&mut shared.is_readable);
        Some((is_readable, Some(shared.client).filter(|client| *client != Peer::Sending)))
    }
}

impl Shared {
    fn set_readable(&mut self) {
        (self.is_ready, self.is_readable) = (true, true);
    }
}
