//! The servers that a run can measure: the kind of each, its name in reports, and how it starts.

use std::error::Error;
use std::net::SocketAddr;

use crate::daemon::Process;
use crate::dialect::Dialect;
use crate::floor::Mode;
use crate::peers::Peer;
use crate::publisher::Feed;

/// The role of a server in the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The server under test.
    Daemon,
    /// A minimal server, which shows the lowest possible cost.
    Floor,
    /// A reader without clients, which shows the cost to Redis alone.
    Bare,
    /// An alternative to the daemon.
    Peer,
}

/// A server that takes part in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Server {
    /// The daemon
    Daemon,
    /// The floor with a blocked connection to Redis per stream
    Blocking,
    /// The floor with tracking, to which Redis says which streams have news
    Tracking,
    /// No server: a reader without clients that knows which streams have news
    Bare,
    /// The peer on Node, with ws and ioredis (needs --compare)
    Node,
    /// The peer on FastAPI, with uvicorn and redis-py (needs --compare)
    Fastapi,
    /// The peer that is nginx with nchan (needs --compare)
    Nchan,
    /// The peer that is Centrifugo, to which batches are posted (needs --compare)
    Centrifugo,
    /// The same with its consumer of Redis Streams (needs --compare)
    CentrifugoStreams,
    /// The peer that is NATS with JetStream over WebSocket (needs --compare)
    Nats,
}

impl Server {
    /// All servers.
    pub(crate) const ALL: [Self; 10] = [
        Self::Daemon,
        Self::Blocking,
        Self::Tracking,
        Self::Bare,
        Self::Node,
        Self::Fastapi,
        Self::Nchan,
        Self::Centrifugo,
        Self::CentrifugoStreams,
        Self::Nats,
    ];

    /// The name in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Blocking => "floor, blocking",
            Self::Tracking => "floor, tracking",
            Self::Bare => "bare reader",
            Self::Node => "Node, ws",
            Self::Fastapi => "FastAPI",
            Self::Nchan => "nchan",
            Self::Centrifugo => "Centrifugo",
            Self::CentrifugoStreams => "Centrifugo, streams",
            Self::Nats => "NATS",
        }
    }

    /// Its role in the comparison.
    pub(crate) const fn kind(self) -> Kind {
        match self {
            Self::Daemon => Kind::Daemon,
            Self::Blocking | Self::Tracking => Kind::Floor,
            Self::Bare => Kind::Bare,
            Self::Node
            | Self::Fastapi
            | Self::Nchan
            | Self::Centrifugo
            | Self::CentrifugoStreams
            | Self::Nats => Kind::Peer,
        }
    }

    /// The peer, if it is one.
    pub(crate) const fn peer(self) -> Option<Peer> {
        match self {
            Self::Daemon | Self::Blocking | Self::Tracking | Self::Bare => None,
            Self::Node => Some(Peer::Node),
            Self::Fastapi => Some(Peer::Fastapi),
            Self::Nchan => Some(Peer::Nchan),
            Self::Centrifugo => Some(Peer::Centrifugo),
            Self::CentrifugoStreams => Some(Peer::CentrifugoStreams),
            Self::Nats => Some(Peer::Nats),
        }
    }

    /// How tokens reach it.
    pub(crate) const fn feed(self) -> Feed {
        match self {
            Self::Nchan => Feed::Nchan,
            Self::Centrifugo => Feed::Batches,
            Self::CentrifugoStreams => Feed::Queues,
            Self::Nats => Feed::Nats,
            _ => Feed::Streams,
        }
    }

    /// The protocol of its clients.
    pub(crate) const fn dialect(self) -> Dialect {
        match self {
            Self::Centrifugo | Self::CentrifugoStreams => Dialect::Centrifugo,
            Self::Nats => Dialect::Nats,
            _ => Dialect::Daemon,
        }
    }

    /// Whether `name` is the name of a server of this kind.
    pub(crate) fn is_a(kind: Kind, name: &str) -> bool {
        Self::ALL.iter().any(|server| server.kind() == kind && server.name() == name)
    }

    /// Starts its process, if it has one, with the given Redis; `settings` are the daemon's.
    pub(crate) fn start(
        self,
        redis: SocketAddr,
        settings: &[String],
    ) -> Result<Option<Process>, Box<dyn Error + Send + Sync>> {
        let process = match self {
            Self::Daemon => Process::daemon(redis, settings)?,
            Self::Blocking => Process::floor(redis, Mode::Blocking)?,
            Self::Tracking => Process::floor(redis, Mode::Tracking)?,
            Self::Bare => return Ok(None),
            Self::Node => Peer::Node.start(redis)?,
            Self::Fastapi => Peer::Fastapi.start(redis)?,
            Self::Nchan => Peer::Nchan.start(redis)?,
            Self::Centrifugo => Peer::Centrifugo.start(redis)?,
            Self::CentrifugoStreams => Peer::CentrifugoStreams.start(redis)?,
            Self::Nats => Peer::Nats.start(redis)?,
        };
        Ok(Some(process))
    }
}
