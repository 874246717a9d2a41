//! Publishes tokens to nchan, each by a POST of its own.

use std::io;
use std::net::SocketAddr;

use super::http::Connections;
use super::{Publisher, Result};

/// One connection would be slow, because nginx handles its requests one after another.
const CONNECTIONS: usize = 16;

/// Publishes tokens to nchan. Each stream always uses the same connection.
pub(super) struct Nchan {
    connections: Connections,
}

impl Nchan {
    /// Connects to the server.
    pub(super) fn connect(server: SocketAddr) -> io::Result<Self> {
        Ok(Self { connections: Connections::open(server, CONNECTIONS)? })
    }
}

impl Publisher for Nchan {
    fn put(&mut self, stream: usize, value: &[u8]) -> io::Result<()> {
        self.connections.post(stream % CONNECTIONS, &format!("/publish/bench-{stream}/m"), value, 1)
    }

    fn unwritten(&self) -> usize {
        self.connections.unwritten()
    }

    fn write(&mut self) -> io::Result<()> {
        self.connections.write()
    }

    fn settle(&mut self, limit: usize) -> Result<()> {
        self.connections.settle(limit)
    }
}
