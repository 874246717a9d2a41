//! A socket in memory, for tests that drive a delivery thread without sockets. It is registered in no poll: the test
//! passes on what is ready.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::sync::Arc;

use parking_lot::Mutex;

use super::connection::Peer;

/// The state of both ends.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "five independent facts about one socket")]
struct Line {
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    /// Bytes that may wait for the client.
    send_buffer: usize,
    client: Peer,
    /// Whether the server has ended its sending side.
    is_ended: bool,
    /// Whether the server has closed the socket.
    is_closed: bool,
    /// Whether a write found no room since the client took bytes last.
    is_blocked: bool,
    /// Whether a poll would report the socket.
    has_news: bool,
    /// Whether there is something to read, or the end of it.
    is_readable: bool,
}

/// The server's end.
#[derive(Debug)]
pub(crate) struct MemorySocket(Arc<Mutex<Line>>);

/// The client's end.
#[derive(Debug)]
pub(crate) struct ClientEnd(Arc<Mutex<Line>>);

/// A connected pair of ends, with room for so many bytes on their way to the client.
pub(crate) fn pair(send_buffer: usize) -> (MemorySocket, ClientEnd) {
    let line = Arc::new(Mutex::new(Line {
        to_server: VecDeque::new(),
        to_client: VecDeque::new(),
        send_buffer,
        client: Peer::Sending,
        is_ended: false,
        is_closed: false,
        is_blocked: false,
        has_news: true,
        is_readable: false,
    }));
    (MemorySocket(Arc::clone(&line)), ClientEnd(line))
}

impl MemorySocket {
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
        let mut line = self.0.lock();
        match line.client {
            Peer::Gone => Err(ErrorKind::ConnectionReset.into()),
            Peer::Sending if line.to_server.is_empty() => Err(ErrorKind::WouldBlock.into()),
            Peer::Sending | Peer::Finishing | Peer::Finished => line.to_server.read(buffer),
        }
    }
}

impl Write for MemorySocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut line = self.0.lock();
        if line.client == Peer::Gone || line.is_ended {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let room = line.send_buffer.saturating_sub(line.to_client.len());
        if room == 0 {
            line.is_blocked = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        line.to_client.write(&bytes[..bytes.len().min(room)])
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
        let mut line = self.0.lock();
        line.to_server.extend(bytes);
        line.tell_readable();
    }

    /// Ends the sending side.
    pub(crate) fn finish(&self) {
        let mut line = self.0.lock();
        line.client = line.client.max(Peer::Finishing);
        line.tell_readable();
    }

    /// Resets the connection; bytes that were not taken are lost.
    pub(crate) fn reset(&self) {
        let mut line = self.0.lock();
        line.client = Peer::Gone;
        line.to_client.clear();
        line.tell_readable();
    }

    /// Takes at most so many bytes.
    pub(crate) fn take(&self, most: usize) -> Vec<u8> {
        let mut line = self.0.lock();
        let len = most.min(line.to_client.len());
        if len > 0 && std::mem::take(&mut line.is_blocked) {
            line.has_news = true;
        }
        line.to_client.drain(..len).collect()
    }

    /// Bytes that wait to be taken.
    pub(crate) fn waiting(&self) -> usize {
        self.0.lock().to_client.len()
    }

    /// Whether the server sends nothing more, and everything was taken.
    pub(crate) fn is_over(&self) -> bool {
        let line = self.0.lock();
        (line.is_ended || line.is_closed) && line.to_client.is_empty()
    }

    /// Whether the server has closed the socket.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.lock().is_closed
    }

    /// Whether a poll would report the server's socket.
    pub(crate) fn has_news(&self) -> bool {
        let line = self.0.lock();
        line.has_news && !line.is_closed
    }

    /// The news that a poll would report now: whether the socket is readable, and the state of its client.
    pub(super) fn take_news(&self) -> Option<(bool, Option<Peer>)> {
        let mut line = self.0.lock();
        if line.is_closed || !std::mem::take(&mut line.has_news) {
            return None;
        }
        let is_readable = std::mem::take(&mut line.is_readable);
        Some((is_readable, Some(line.client).filter(|client| *client != Peer::Sending)))
    }
}

impl Line {
    fn tell_readable(&mut self) {
        (self.has_news, self.is_readable) = (true, true);
    }
}
