//! Publishes tokens to Centrifugo by its HTTP API: the tokens that are written together are one batch, whose commands
//! Centrifugo processes in parallel.
//!
//! A batch contains at most one token of a stream, and Centrifugo handles the batches of a connection one after
//! another, so streams keep their order. Neighbouring streams share a connection, as the sequences of one model
//! server would.

use std::io::{self, Write};
use std::net::SocketAddr;

use super::http::Connections;
use super::{Publisher, Result};
use crate::centrifugo;

/// How many batches can be under way at once.
const CONNECTIONS: usize = 8;
/// How many neighbouring streams share a connection.
const NEIGHBOURS: usize = 16;

/// Publishes tokens in batches.
pub(super) struct Batches {
    connections: Connections,
    /// The open batch of each connection.
    open: Vec<Batch>,
}

/// Commands that have not become a request yet.
#[derive(Default)]
struct Batch {
    body: Vec<u8>,
    streams: Vec<usize>,
}

impl Batches {
    /// Connects to the server.
    pub(super) fn connect(server: SocketAddr) -> io::Result<Self> {
        let connections = Connections::open(server, CONNECTIONS)?;
        Ok(Self { connections, open: (0..CONNECTIONS).map(|_| Batch::default()).collect() })
    }

    /// Makes the open batch of a connection a request.
    fn close(&mut self, connection: usize) -> io::Result<()> {
        let batch = &mut self.open[connection];
        if batch.streams.is_empty() {
            return Ok(());
        }
        batch.body.extend_from_slice(b"]}");
        self.connections.post(connection, "/api/batch", &batch.body, batch.streams.len())?;
        batch.body.clear();
        batch.streams.clear();
        Ok(())
    }
}

impl Publisher for Batches {
    fn put(&mut self, stream: usize, value: &[u8]) -> io::Result<()> {
        let connection = stream / NEIGHBOURS % CONNECTIONS;
        if self.open[connection].streams.contains(&stream) {
            self.close(connection)?;
        }
        let Batch { body, streams } = &mut self.open[connection];
        let before = if streams.is_empty() { "{\"parallel\":true,\"commands\":[" } else { "," };
        write!(body, "{before}{{\"publish\":{{\"channel\":\"{}\",\"data\":", centrifugo::channel(stream))?;
        body.extend_from_slice(value);
        body.extend_from_slice(b"}}");
        streams.push(stream);
        Ok(())
    }

    fn unwritten(&self) -> usize {
        self.connections.unwritten() + self.open.iter().map(|batch| batch.body.len()).sum::<usize>()
    }

    fn write(&mut self) -> io::Result<()> {
        for connection in 0..CONNECTIONS {
            self.close(connection)?;
        }
        self.connections.write()
    }

    fn settle(&mut self, limit: usize) -> Result<()> {
        self.connections.settle(limit)
    }
}
