//! Publishes tokens to the servers that do not read the daemon's streams in Redis: the producer hands its tokens to a
//! publisher instead of adding them to streams.

pub(crate) mod nats;
mod nchan;

use std::error::Error;
use std::io;
use std::net::SocketAddr;

/// Errors are reported only, so their types do not matter.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How tokens reach a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feed {
    /// They are added to the daemon's streams in Redis.
    Streams,
    /// They are published to NATS JetStream.
    Nats,
    /// They are posted to nchan.
    Nchan,
}

impl Feed {
    /// Whether the server takes each token itself, and so delays the producer when it falls behind.
    pub(crate) const fn is_published(self) -> bool {
        !matches!(self, Self::Streams)
    }

    /// A publisher, if tokens are published to the server at all.
    pub(crate) fn publisher(self, server: SocketAddr) -> Result<Option<Box<dyn Publisher>>> {
        Ok(match self {
            Self::Streams => None,
            Self::Nats => Some(Box::new(nats::Nats::connect(server)?)),
            Self::Nchan => Some(Box::new(nchan::Nchan::connect(server)?)),
        })
    }
}

/// Publishes tokens in the order of each stream, without waiting for one answer before the next token.
pub(crate) trait Publisher {
    /// Appends a stream's next token to the output.
    fn put(&mut self, stream: usize, value: &[u8]) -> io::Result<()>;

    /// How many bytes have not been written yet.
    fn unwritten(&self) -> usize;

    /// Writes those bytes.
    fn write(&mut self) -> io::Result<()>;

    /// Reads answers until at most `limit` tokens are outstanding.
    fn settle(&mut self, limit: usize) -> Result<()>;
}
