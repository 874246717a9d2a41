//! Publishes tokens to the servers that do not read the daemon's streams in Redis: the producer hands its tokens to a
//! publisher instead of adding them to streams.

mod centrifugo;
mod http;
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
    /// They are added to the streams in Redis that Centrifugo's consumer reads.
    Queues,
    /// They are posted to Centrifugo in batches.
    Batches,
    /// They are published to NATS JetStream.
    Nats,
    /// They are posted to nchan.
    Nchan,
}

impl Feed {
    /// Whether the server takes each token itself, and so delays the producer when it falls behind.
    pub(crate) const fn is_published(self) -> bool {
        !matches!(self, Self::Streams | Self::Queues)
    }

    /// The XADD of a stream's token, if tokens are added to streams: the parts in front of the id, and between the id
    /// and the value. The daemon's stream is named `bench-{number}/m`.
    pub(crate) fn xadd(self, stream: usize) -> io::Result<[Vec<u8>; 2]> {
        if self == Self::Queues {
            return crate::centrifugo::xadd(stream);
        }
        let key = format!("llm:stream:bench-{stream}:m");
        let head = format!("*5\r\n$4\r\nXADD\r\n${}\r\n{key}\r\n", key.len());
        Ok([head.into_bytes(), b"$4\r\ndata\r\n".to_vec()])
    }

    /// A publisher, if tokens are published to the server at all.
    pub(crate) fn publisher(self, server: SocketAddr) -> Result<Option<Box<dyn Publisher>>> {
        Ok(match self {
            Self::Streams | Self::Queues => None,
            Self::Batches => Some(Box::new(centrifugo::Batches::connect(server)?)),
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
