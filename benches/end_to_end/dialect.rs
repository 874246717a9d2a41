//! The protocols of servers' clients over WebSocket: the resource that they request, and their first messages.

use crate::centrifugo;
use crate::nats;
use crate::wire;

/// The protocol between a server and its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// The daemon's own, which floors and some peers speak as well: the request names the stream, and clients say
    /// nothing.
    Daemon,
    /// The JSON protocol of Centrifugo.
    Centrifugo,
    /// The protocol of NATS in binary messages.
    Nats,
}

impl Dialect {
    /// The resource that a client requests.
    pub(crate) fn path(self, stream: usize, after: &str) -> String {
        match self {
            Self::Daemon => format!("/v1/streams/bench-{stream}/m?wait=60&after={after}"),
            Self::Centrifugo => "/connection/websocket".to_owned(),
            Self::Nats => "/".to_owned(),
        }
    }

    /// The frame by which a client, the `index`th of its load, asks for a stream from its beginning, if the request
    /// did not do that.
    pub(crate) fn opening(self, stream: usize, index: usize) -> Option<Vec<u8>> {
        match self {
            Self::Daemon => None,
            Self::Centrifugo => Some(wire::masked(wire::TEXT, centrifugo::opening(stream).as_bytes())),
            Self::Nats => {
                let opening = nats::opening(stream, &format!("{stream}-{index}"));
                Some(wire::masked(wire::BINARY, opening.as_bytes()))
            }
        }
    }
}
