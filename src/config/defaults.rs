//! Every default and every bound, each with its reason. The meaning of a key for an operator is in
//! `conf/llm-bridge.toml`, which a test compares with this file.
//!
//! Bounds keep typing errors out (a timeout of 30 days, a thousand threads); within them the operator decides. Lower
//! bounds of durations are small, so that tests can be quick. If 0 switches a limit off, `zero` is the value that the
//! program uses instead; limits that bound memory cannot be switched off.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::rule::{Address, Choice, Count, File, Flag, Key, NotYet, Size, Span, Text, Texts};
use super::{Ack, FIELD_NAMES_MAX, Fields, NEVER};
use crate::log_filter;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The most bytes of a service's name or an instance's id: both are part of the name of an abstract socket, which has
/// at most 107.
const IDENTIFIER_BYTES_MAX: usize = 64;

const fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

const fn secs(number: u64) -> Duration {
    Duration::from_secs(number)
}

const fn hours(number: u64) -> Duration {
    Duration::from_secs(3600 * number)
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Declares keys and the list of their names, so that no key can be read that is not also known.
macro_rules! keys {
    ($($(#[$reason:meta])* $constant:ident: $rule:ty = $name:literal, $value:expr;)*) => {
        $($(#[$reason])* pub(super) const $constant: Key<$rule> = Key { name: $name, rule: $value };)*

        /// The names of all keys, in the order of the configuration file.
        pub(super) const NAMES: &[&str] = &[$($name),*];
    };
}

keys! {
    // [service]

    /// The name of the program: most sites run one service.
    SERVICE_NAME: Text = "service.name", Text {
        default: "llm-bridge", is_allowed: is_identifier, allowed: IDENTIFIER_ALLOWED,
    };
    /// Empty means `<hostname>-<public port>`, which is not known here.
    SERVICE_INSTANCE: Text = "service.instance", Text {
        default: "",
        is_allowed: |text| text.is_empty() || is_identifier(text),
        allowed: "1 to 64 of A-Z a-z 0-9 . _ -, or \"\" for <hostname>-<public port>",
    };

    // [redis]

    /// The address of a packaged Redis.
    REDIS_URL: Text = "redis.url", Text {
        default: "redis://127.0.0.1:6379/0", is_allowed: |text| !text.is_empty(), allowed: "a URL",
    };
    /// No secret file by default.
    REDIS_URL_FILE: File = "redis.url_file", File { default: "" };
    /// No secret file by default.
    REDIS_PASSWORD_FILE: File = "redis.password_file", File { default: "" };
    /// The contract's prefix of its keys. Braces would change a cluster's slots, and a colon would let one prefix be
    /// the beginning of another's keys.
    REDIS_PREFIX: Text = "redis.prefix", Text {
        default: "llm", is_allowed: is_identifier, allowed: IDENTIFIER_ALLOWED,
    };
    /// Empty means `<prefix>:stream:{session}:{model}`, which depends on the prefix.
    REDIS_STREAM_KEY: Text = "redis.stream_key", Text {
        default: "", is_allowed: |_| true, allowed: "a text with {session} in it, or \"\" for the prefix's",
    };
    /// A handshake takes milliseconds; a lost SYN is sent again after one second.
    REDIS_CONNECT_TIMEOUT: Span = "redis.connect_timeout", Span {
        default: secs(2), min: ms(50), max: secs(60), zero: None,
    };
    /// Longer than a fork or a slow command of a healthy Redis, shorter than a viewer's patience.
    REDIS_RESPONSE_TIMEOUT: Span = "redis.response_timeout", Span {
        default: secs(5), min: ms(100), max: secs(300), zero: None,
    };
    /// A Redis that is back is detected within two seconds, and one that is down costs little.
    REDIS_BACKOFF_MAX: Span = "redis.backoff_max", Span {
        default: secs(2), min: ms(50), max: secs(300), zero: None,
    };
    /// The public trust anchors fit managed services; others name their own.
    REDIS_CA_FILE: File = "redis.ca_file", File { default: "" };
    /// About 10 MB of letters of 1 KB each: enough to see what a broken producer wrote.
    REDIS_DLQ_MAX_ENTRIES: Count<u64> = "redis.dlq_max_entries", Count {
        default: 10_000, min: 1, max: 10_000_000, zero: None,
    };
    /// About 20 MB: the answers of a busy day, for a program that sends e-mails.
    REDIS_RECEIPTS_MAX_ENTRIES: Count<u64> = "redis.receipts_max_entries", Count {
        default: 100_000, min: 1, max: 100_000_000, zero: None,
    };
    /// Entries may have 8 MiB each, so their number alone bounds nothing: room for a few large ones, or for all small
    /// ones.
    REDIS_DLQ_MAX_BYTES: Size = "redis.dlq_max_bytes", Size {
        default: 64 * MIB, min: 64 * KIB, max: 1024 * 1024 * MIB,
    };
    /// Twice the size of the usual number of receipts; ids and names may be long.
    REDIS_RECEIPTS_MAX_BYTES: Size = "redis.receipts_max_bytes", Size {
        default: 64 * MIB, min: 64 * KIB, max: 1024 * 1024 * MIB,
    };

    // [fields]

    /// The names that tutorials and frameworks use, the native one first.
    FIELDS_TEXT: Texts = "fields.text", Texts { default: TEXT_NAMES, ..FIELD_NAMES };
    /// `event` is what SSE calls it.
    FIELDS_TYPE: Texts = "fields.type", Texts { default: TYPE_NAMES, ..FIELD_NAMES };

    // [listen]

    /// Loopback: reachable from other hosts only if the operator decides so.
    LISTEN_PUBLIC: Address = "listen.public", Address { default: loopback(8080) };
    /// Loopback, because metrics and health are not for clients.
    LISTEN_ADMIN: Address = "listen.admin", Address { default: loopback(9464) };
    /// In the directory that the systemd unit creates.
    LISTEN_STATS_SOCKET: File = "listen.stats_socket", File { default: "/run/llm-bridge/stats.sock" };
    /// No other site may read streams unless it is listed.
    LISTEN_ORIGINS: Texts = "listen.origins", Texts {
        default: &[],
        max: usize::MAX,
        is_allowed: crate::security::origin::is_origin,
        allowed: "\"*\" or scheme://host[:port] without a path, such as \"https://chat.example.com\"",
    };
    /// A local daemon has no other names; the operator of a proxy in front of it lists the public ones.
    LISTEN_HOSTS: Texts = "listen.hosts", Texts {
        default: &[],
        max: usize::MAX,
        is_allowed: crate::security::host::is_host,
        allowed: "\"*\" or a host name without scheme and port, such as \"chat.example.com\"",
    };
    /// A service shows no page of its own by default.
    LISTEN_DEMO_PAGE: Flag = "listen.demo_page", Flag { default: false };

    // [threads]

    /// Two, so that one stream's burst does not delay the streams of the other reader.
    THREADS_READERS: Count<usize> = "threads.readers", Count { default: 2, ..THREADS_ONE };
    /// One decodes and encodes several 100,000 entries a second.
    THREADS_TRANSFORMS: Count<usize> = "threads.transforms", THREADS_ONE;
    /// One loop serves tens of thousands of connections.
    THREADS_DELIVERIES: Count<usize> = "threads.deliveries", THREADS_ONE;
    /// History is read in large batches.
    THREADS_REPLAYS: Count<usize> = "threads.replays", THREADS_ONE;

    // [auth]

    /// The only mode of this version.
    AUTH_MODE: NotYet = "auth.mode", NotYet::Word("none");
    /// Belongs to `jwt`.
    AUTH_SECRET_FILE: NotYet = "auth.secret_file", NotYet::Word("");
    /// Belongs to `jwt`.
    AUTH_KEYS_FILE: NotYet = "auth.keys_file", NotYet::Word("");
    /// Streams are open to everybody only if the operator says so.
    AUTH_ALLOW_ANONYMOUS: Flag = "auth.allow_anonymous", Flag { default: false };
    /// Belongs to `jwt`.
    AUTH_QUERY_TOKEN: NotYet = "auth.query_token", NotYet::Flag(false);

    // [limits]

    /// Off: behind a proxy, all clients share one address.
    LIMITS_PER_CLIENT: Count<u32> = "limits.per_client", RATE;
    /// Off, for the same reason.
    LIMITS_CONNECTS_PER_SECOND: Count<u32> = "limits.connects_per_second", RATE;
    /// Off, for the same reason.
    LIMITS_SUBSCRIBES_PER_SECOND: Count<u32> = "limits.subscribes_per_second", RATE;
    /// Off, for the same reason.
    LIMITS_CANCELS_PER_SECOND: Count<u32> = "limits.cancels_per_second", RATE;

    // [client]

    /// Minutes of text of one model, or a moment on a stalled network; it bounds the memory of a client.
    CLIENT_SEND_BUDGET: Size = "client.send_budget", Size {
        default: 256 * KIB, min: 16 * KIB, max: 1024 * MIB,
    };
    /// A phone in a tunnel is back within a minute; after that it resumes by its last id.
    CLIENT_SLOW_TIMEOUT: Span = "client.slow_timeout", Span {
        default: secs(60), min: ms(100), max: hours(24), zero: Some(NEVER),
    };
    /// A request head is one packet; ten seconds allow for a bad network.
    CLIENT_HANDSHAKE_TIMEOUT: Span = "client.handshake_timeout", Span {
        default: secs(10), min: ms(100), max: secs(600), zero: Some(NEVER),
    };
    /// Below what the descriptors and the memory of a medium server allow; 0 leaves it to them.
    CLIENT_MAX_CONNECTIONS: Count<usize> = "client.max_connections", Count {
        default: 100_000, min: 1, max: CONNECTIONS_MAX, zero: Some(CONNECTIONS_MAX),
    };
    /// A proxy in between closes silent requests after about a minute.
    CLIENT_MAX_WAIT: Span = "client.max_wait", Span {
        default: secs(60), min: ms(100), max: hours(24), zero: Some(NEVER),
    };
    /// The contract's figure, well below the idle timeouts of proxies (30 s and more).
    CLIENT_KEEPALIVE: Span = "client.keepalive", Span {
        default: secs(15), min: ms(100), max: secs(600), zero: Some(NEVER),
    };
    /// A dashboard of a thousand streams is large; beyond it, open another connection.
    CLIENT_MAX_SUBSCRIPTIONS: Count<usize> = "client.max_subscriptions", Count {
        default: 1000, min: 1, max: 100_000, zero: None,
    };
    /// Far more than a model writes into one answer (a million tokens are about 4 MB).
    CLIENT_MAX_STATE: Size = "client.max_state", Size {
        default: 16 * MIB, min: 64 * KIB, max: 1024 * MIB,
    };

    // [stream]

    /// Longer than the pause of a model that thinks or calls a tool without heartbeats.
    STREAM_STALL_AFTER: Span = "stream.stall_after", Span {
        default: secs(30), min: ms(100), max: hours(24), zero: Some(Duration::ZERO),
    };
    /// Ten times `stall_after`: giving up is final.
    STREAM_ABANDON_AFTER: Span = "stream.abandon_after", Span {
        default: secs(300), min: ms(100), max: hours(7 * 24), zero: Some(Duration::ZERO),
    };
    /// Longer than the reconnection of a viewer, so that the group need not be created again.
    STREAM_LINGER: Span = "stream.linger", Span {
        default: secs(10), min: ms(1), max: hours(1), zero: Some(Duration::ZERO),
    };
    /// Longer than a provider takes from its finish reason to its last chunk, which has the token counts.
    STREAM_FINISH_GRACE: Span = "stream.finish_grace", Span {
        default: secs(2), min: ms(100), max: hours(1), zero: Some(Duration::ZERO),
    };
    /// Off: most sites do not read receipts.
    STREAM_RECEIPTS: Flag = "stream.receipts", Flag { default: false };
    /// Longer than a phone needs to reconnect; an e-mail sent after that is not too early.
    STREAM_RECEIPTS_AFTER: Span = "stream.receipts_after", Span {
        default: secs(60), min: ms(100), max: hours(7 * 24), zero: Some(Duration::ZERO),
    };

    // [delivery]

    /// The group then lags behind by what is not yet sent.
    DELIVERY_ACK: Choice<Ack> = "delivery.ack", Choice {
        words: &[("written", Ack::Written), ("none", Ack::None)],
    };
    /// With more than a second of merging, text is not live any more.
    DELIVERY_MAX_BATCH: Span = "delivery.max_batch", Span {
        default: secs(1), min: ms(1), max: secs(10), zero: None,
    };
    /// Two readers together then take at most half of Redis' only thread.
    DELIVERY_DUTY_PERCENT: Count<u32> = "delivery.duty_percent", Count {
        default: 25, min: 1, max: 100, zero: None,
    };
    /// Below what is visible in flowing text; 0 switches pacing off.
    DELIVERY_MAX_LINGER: Span = "delivery.max_linger", Span {
        default: ms(20), min: ms(1), max: secs(1), zero: Some(Duration::ZERO),
    };
    /// Five seconds of a fast stream in one read; more would only make the reply larger.
    DELIVERY_READ_COUNT: Count<usize> = "delivery.read_count", Count {
        default: 256, min: 1, max: 10_000, zero: None,
    };
    /// A tenth of a millisecond of Redis' time, and less than one of decoding: live text waits no longer than that.
    /// Larger reads are hardly cheaper.
    DELIVERY_REPLAY_COUNT: Count<usize> = "delivery.replay_count", Count {
        default: 250, min: 1, max: 10_000, zero: None,
    };
    /// Room for a burst of every stream of a reader; a full queue means falling back to history.
    DELIVERY_QUEUE_BATCHES: Count<usize> = "delivery.queue_batches", Count {
        default: 1024, min: 2, max: 65_536, zero: None,
    };

    // [shutdown]

    /// Clients get their last frames; well below systemd's default stop timeout of 90 s.
    SHUTDOWN_GRACE: Span = "shutdown.grace", Span {
        default: secs(20), min: ms(100), max: secs(600), zero: None,
    };

    // [log]

    /// Enough for an operator of a healthy daemon.
    LOG_LEVEL: Text = "log.level", Text {
        default: "info",
        is_allowed: |text| log_filter::parse(text).is_ok(),
        allowed: "error, warn, info, debug, trace, off, or a filter such as \"info,llm_bridge::deliver=debug\"",
    };
    /// People read logs first; JSON is for collectors.
    LOG_FORMAT: Choice<bool> = "log.format", Choice { words: &[("text", false), ("json", true)] };
}

/// More than any process can have descriptors (`fs.nr_open` is about a million by default).
const CONNECTIONS_MAX: usize = 10_000_000;

/// More threads than cores do not help, and few machines have more than 64 cores for this.
const THREADS_ONE: Count<usize> = Count { default: 1, min: 1, max: 64, zero: None };

/// The fields with the text of a flat entry, unless the configuration names others.
const TEXT_NAMES: &[&str] = &["text", "content", "token", "chunk", "delta"];

/// The fields with the type of a flat entry, unless the configuration names others.
const TYPE_NAMES: &[&str] = &["type", "event"];

impl Default for Fields {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Self { text: names(TEXT_NAMES), kind: names(TYPE_NAMES) }
    }
}

/// The names of fields. A name that marks another form takes precedence over flat entries, so a text under such a
/// name would never be found.
const FIELD_NAMES: Texts = Texts {
    default: &[],
    max: FIELD_NAMES_MAX,
    is_allowed: |name| (1..=128).contains(&name.len()) && !FORM_NAMES.contains(&name),
    allowed: "1 to 128 bytes long and none of data, openai, anthropic, enc and seal, which have a meaning of their own",
};

const FORM_NAMES: [&str; 5] = ["data", "openai", "anthropic", "enc", "seal"];

/// Off by default; a rate above a million per second is no limit.
const RATE: Count<u32> = Count { default: 0, min: 1, max: 1_000_000, zero: Some(0) };

const IDENTIFIER_ALLOWED: &str = "1 to 64 of A-Z a-z 0-9 . _ -";

/// Whether a text can be part of a Redis key and of a consumer group's name.
pub(super) fn is_identifier(text: &str) -> bool {
    (1..=IDENTIFIER_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
