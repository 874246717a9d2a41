//! Clients that read slowly: little at a time, into a small receive buffer, so that the server's socket is full most
//! of the time. Before the conductor makes them slow, and after it releases them, they read like others, so that in
//! the end each has everything that its stream holds and is judged like the others.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use socket2::{Domain, Socket, Type};

use super::{Clients, Stage};
use crate::load::Manner;

/// How many bytes a slow client reads a second.
const BYTES_PER_SECOND: usize = 1024;
/// How often it reads.
const SIPS_PER_SECOND: u32 = 4;
/// Its receive buffer; the kernel makes it as small as it can.
const RECEIVE_BUFFER_BYTES: usize = 1024;

/// The largest segment, as on an Ethernet: with loopback's segments of 64 KiB the server's kernel alone would buffer
/// megabytes for each client.
const SEGMENT_BYTES: u32 = 1460;

/// Connects with a small receive buffer.
pub(super) fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.set_tcp_mss(SEGMENT_BYTES)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&server.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

impl Clients<'_> {
    /// Whether the clients read at fixed times and not whenever there is data.
    pub(super) fn is_slow(&self) -> bool {
        self.plan.manner == Manner::Slow && self.shared.leave.load(Ordering::Acquire)
    }

    /// Reads a slow client's share when it is due. Once the clients are released, reads everything available.
    pub(super) fn read_share(&mut self, input: &mut [u8]) -> io::Result<()> {
        if !self.is_slow() {
            return Ok(());
        }
        let released = self.shared.back.load(Ordering::Acquire);
        let now = Instant::now();
        if !released
            && self.share_read_at.is_some_and(|at| now < at + Duration::from_secs(1) / SIPS_PER_SECOND)
        {
            return Ok(());
        }
        self.share_read_at = Some(now);
        let read_share = BYTES_PER_SECOND / SIPS_PER_SECOND as usize;
        for index in 0..self.clients.len() {
            if self.clients[index].stage != Stage::Open {
                continue;
            }
            if released {
                self.read(index, input)?;
            } else {
                self.read_once(index, &mut input[..read_share])?;
            }
        }
        Ok(())
    }
}
