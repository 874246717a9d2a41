//! The configuration of the program.
//!
//! A file, the environment and `--set` are collected as names and values (`raw`, `setting`), checked as a whole
//! against the rules (`rule`) and bounds (`defaults`) of every key (`check`), and become a [`Config`], whose values
//! are typed, in range and final. All errors are reported at once.

mod check;
mod defaults;
mod describe;
mod error;
mod load;
mod raw;
mod redis_url;
mod rule;
mod setting;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::KeyPattern;

pub use describe::describe;
pub use error::{ConfigError, ConfigErrors};
pub use load::{environment, load};
pub(crate) use load::{given, hostname};
pub(crate) use rule::parse_span;

/// The value of a timeout that is switched off: ten years. It can be added to any `Instant`.
pub const NEVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// All settings of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[service]`
    pub service: Service,
    /// `[redis]`
    pub redis: Redis,
    /// `[fields]`
    pub fields: Fields,
    /// `[listen]`
    pub listen: Listen,
    /// `[threads]`
    pub threads: Threads,
    /// `[auth]`
    pub auth: Auth,
    /// `[limits]`
    pub limits: Limits,
    /// `[client]`
    pub client: Client,
    /// `[stream]`
    pub stream: Stream,
    /// `[delivery]`
    pub delivery: Delivery,
    /// `[shutdown]`
    pub shutdown: Shutdown,
    /// `[log]`
    pub log: Log,
}

/// The names of this daemon among others on the same Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Shared by all instances of one service.
    pub name: String,
    /// Different for every daemon; by default `<hostname>-<public port>`.
    pub instance: String,
}

/// How Redis is reached, and what is stored there. Displayed without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Redis {
    /// `redis://`, `rediss://` or `unix://`, with the password in it.
    pub url: String,
    /// The prefix of every key that the daemon reads or writes, except for streams with a pattern of their own.
    pub prefix: String,
    /// Which keys are streams.
    pub stream_key: KeyPattern,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a reply may take before the connection is closed.
    pub response_timeout: Duration,
    /// The longest pause between two attempts to connect.
    pub backoff_max: Duration,
    /// PEM file with the trust anchors for `rediss://`; `None`: the public ones.
    pub ca_file: Option<PathBuf>,
    /// How many dead letters are kept.
    pub dlq_max_entries: u64,
    /// How many receipts are kept.
    pub receipts_max_entries: u64,
    /// How much of Redis' memory dead letters may take.
    pub dlq_max_bytes: usize,
    /// How much of Redis' memory receipts may take.
    pub receipts_max_bytes: usize,
}

impl Redis {
    /// The URL without its password.
    #[must_use]
    pub fn masked_url(&self) -> String {
        redis_url::masked(&self.url)
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("url", &self.masked_url())
            .field("prefix", &self.prefix)
            .field("stream_key", &self.stream_key)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("backoff_max", &self.backoff_max)
            .field("ca_file", &self.ca_file)
            .field("dlq_max_entries", &self.dlq_max_entries)
            .field("receipts_max_entries", &self.receipts_max_entries)
            .field("dlq_max_bytes", &self.dlq_max_bytes)
            .field("receipts_max_bytes", &self.receipts_max_bytes)
            .finish()
    }
}

/// The most names that a member of a flat entry can have.
pub const FIELD_NAMES_MAX: usize = 16;

/// The names of the fields of flat entries; if an entry has several, the first one in this list counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    /// The text.
    pub text: Vec<String>,
    /// The type.
    pub kind: Vec<String>,
}

/// Where the daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Clients.
    pub public: SocketAddr,
    /// Health, metrics, dashboard.
    pub admin: SocketAddr,
    /// The stats socket; `None`: there is none.
    pub stats_socket: Option<PathBuf>,
    /// Allowed origins of browsers besides the same origin; `*`: any.
    pub origins: Vec<String>,
    /// Names of this server besides `localhost`, addresses and the hosts of `origins`; `*`: any.
    pub hosts: Vec<String>,
    /// Whether `/` on the public listener serves the demo page.
    pub demo_page: bool,
}

/// How many threads of each kind run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// Readers of live streams.
    pub readers: usize,
    /// Decoders and encoders.
    pub transforms: usize,
    /// Connection loops.
    pub deliveries: usize,
    /// Readers of history.
    pub replays: usize,
}

/// Access to streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// Whether a public address other than loopback is accepted without authentication.
    pub allow_anonymous: bool,
}

/// Rates per client address; 0 is off. A burst may have twice the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections of one address.
    pub per_client: u32,
    /// New connections a second.
    pub connects_per_second: u32,
    /// Subscriptions a second.
    pub subscribes_per_second: u32,
    /// Cancel requests a second.
    pub cancels_per_second: u32,
}

/// Limits of one client. A timeout that is switched off is [`NEVER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Bytes of frames held for a client before it leaves live and is served from history.
    pub send_budget: usize,
    /// How long a client may make no progress before it is closed with 4408.
    pub slow_timeout: Duration,
    /// How long a request, a WebSocket handshake, or the rest of a message may take.
    pub handshake_timeout: Duration,
    /// Open connections of all clients; if switched off, more than any process has descriptors.
    pub max_connections: usize,
    /// The longest `wait` that a client gets.
    pub max_wait: Duration,
    /// Silence after which an SSE comment or a WebSocket ping is sent.
    pub keepalive: Duration,
    /// Streams that one multiplexed WebSocket may subscribe to.
    pub max_subscriptions: usize,
    /// The largest JSON state that is assembled, in bytes.
    pub max_state: usize,
}

/// How streams are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// A producer's silence after which viewers get the status `stalled`; zero: never.
    pub stall_after: Duration,
    /// A producer's silence after which it is given up; zero: never.
    pub abandon_after: Duration,
    /// How long a provider's final event may follow its finish reason; after that the generation is over without it.
    /// Zero: the daemon waits for it.
    pub finish_grace: Duration,
    /// How long the group of a stream without viewers is kept.
    pub linger: Duration,
    /// Whether receipts are written for acknowledgements of clients, and for generations without one.
    pub receipts: bool,
    /// How long after a generation's end a client has to acknowledge it; zero: no client has to.
    pub receipts_after: Duration,
}

/// When entries are acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// Once they are written to the sockets or handed over to history.
    Written,
    /// Never: read with NOACK.
    None,
}

/// How entries travel from Redis to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// When entries are acknowledged.
    pub ack: Ack,
    /// The longest `batch_ms` that a client gets.
    pub max_batch: Duration,
    /// The share of its time that Redis may spend on one reader's wake-ups, in percent.
    pub duty_percent: u32,
    /// The longest pause that pacing puts between two reads of a reader.
    pub max_linger: Duration,
    /// Entries of one stream taken by one live read.
    pub read_count: usize,
    /// Entries taken by one history read.
    pub replay_count: usize,
    /// Batches that a queue between two threads holds.
    pub queue_batches: usize,
}

/// How the daemon stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// How long draining may take.
    pub grace: Duration,
}

/// Level and format of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,llm_bridge::deliver=debug`.
    pub level: String,
    /// `text` or `json`.
    pub json: bool,
}
