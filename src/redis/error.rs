//! Errors of Redis, distinguished by how a caller can react to them.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::resp::Malformed;
use crate::visible;

/// The most bytes of an error message that are kept.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Why a command or a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// The socket failed, or a connection could not be made.
    #[error("the connection to Redis failed: {0}")]
    Io(#[source] io::Error),
    /// There was no reply in time. The link cannot be used any more: its next reply would be the late one.
    #[error("Redis did not answer in time")]
    Timeout,
    /// Redis closed the connection, or the link failed before.
    #[error("the connection to Redis is closed")]
    Closed,
    /// A reply that violates the protocol or does not fit the command.
    #[error("Redis sent an unexpected reply: {0}")]
    Protocol(Cow<'static, str>),
    /// A reply exceeded its reader's limit, in bytes.
    #[error("Redis sends a reply of more than {0} bytes")]
    TooLarge(usize),
    /// Redis answered with an error.
    #[error("Redis answered: {0}")]
    Server(#[source] ServerError),
    /// The TLS session failed.
    #[error("TLS to Redis failed: {0}")]
    Tls(#[source] rustls::Error),
}

impl RedisError {
    /// Whether the link is unusable or the server cannot serve now, so that only a later attempt can help. `false`:
    /// the command itself was refused, and the link is still usable.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Io(_)
            | Self::Timeout
            | Self::Closed
            | Self::TooLarge(_)
            | Self::Protocol(_)
            | Self::Tls(_) => true,
            Self::Server(error) => error.kind().is_outage(),
        }
    }

    /// The kind of the server's error, if it is one.
    #[must_use]
    pub fn server_kind(&self) -> Option<ServerErrorKind> {
        match self {
            Self::Server(error) => Some(error.kind()),
            _ => None,
        }
    }

    pub(super) const fn protocol(what: &'static str) -> Self {
        Self::Protocol(Cow::Borrowed(what))
    }
}

impl From<io::Error> for RedisError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<rustls::Error>() {
            Ok(tls) => Self::Tls(tls),
            Err(error) => Self::Io(error),
        }
    }
}

impl From<Malformed> for RedisError {
    fn from(Malformed(what): Malformed) -> Self {
        Self::protocol(what)
    }
}

/// An error reply: `-CODE message`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ServerError {
    /// The first word, such as `NOGROUP`; `ERR` if there is none.
    pub code: String,
    /// The text after the code.
    pub message: String,
}

/// Shows one line without control characters, because it goes to logs and terminals.
impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, visible::line(&self.message))
    }
}

/// The meaning of an error reply for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServerErrorKind {
    /// The consumer group, or the key that should have it, does not exist.
    NoGroup,
    /// A blocked read ended because its key is gone.
    Unblocked,
    /// The group exists already.
    BusyGroup,
    /// Redis is reading its data set from disk.
    Loading,
    /// Redis cannot persist and refuses writes.
    MisConf,
    /// The server is a replica.
    ReadOnly,
    /// A replica without its master that must not serve stale data.
    MasterDown,
    /// Redis has too few replicas to accept writes.
    NoReplicas,
    /// A script or function is running for too long.
    Busy,
    /// Redis has no room for another connection.
    MaxClients,
    /// The ACL does not allow the command.
    NoPerm,
    /// Not authenticated, or with wrong credentials.
    NoAuth,
    /// The key holds something else.
    WrongType,
    /// The slot lives on another node.
    Moved,
    /// The slot is being moved to another node.
    Ask,
    /// The cluster cannot serve.
    ClusterDown,
    /// Keys of one command are being moved.
    TryAgain,
    /// Keys of one command are in different slots.
    CrossSlot,
    /// Redis is at its memory limit and refuses commands that need more.
    Oom,
    /// The key does not exist, and the command needs it.
    NoSuchKey,
    /// The server does not know the command.
    UnknownCommand,
    /// Anything else.
    Other,
}

impl ServerErrorKind {
    /// Whether the server cannot serve any client now.
    #[must_use]
    pub const fn is_outage(self) -> bool {
        matches!(
            self,
            Self::Loading
                | Self::MisConf
                | Self::ReadOnly
                | Self::MasterDown
                | Self::NoReplicas
                | Self::Busy
                | Self::MaxClients
                | Self::ClusterDown
        )
    }
}

impl ServerError {
    /// Splits the text of an error reply into code and message.
    pub(super) fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&text[..text.len().min(MESSAGE_BYTES_MAX)]);
        let (first, rest) = text.split_once(' ').unwrap_or((&text, ""));
        if !first.is_empty() && first.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()) {
            Self { code: first.to_owned(), message: rest.to_owned() }
        } else {
            Self { code: "ERR".to_owned(), message: text.into_owned() }
        }
    }

    /// The meaning of the error. For a transaction that Redis refuses as a whole (EXECABORT), what its cause means.
    #[must_use]
    pub fn kind(&self) -> ServerErrorKind {
        if self.code == "EXECABORT"
            && let Some((_, cause)) = self.message.split_once("because of: ")
        {
            return Self::parse(cause.as_bytes()).kind();
        }
        match self.code.as_str() {
            "NOGROUP" => ServerErrorKind::NoGroup,
            "UNBLOCKED" => ServerErrorKind::Unblocked,
            "BUSYGROUP" => ServerErrorKind::BusyGroup,
            "LOADING" => ServerErrorKind::Loading,
            "MISCONF" => ServerErrorKind::MisConf,
            "READONLY" => ServerErrorKind::ReadOnly,
            "MASTERDOWN" => ServerErrorKind::MasterDown,
            "NOREPLICAS" => ServerErrorKind::NoReplicas,
            "BUSY" => ServerErrorKind::Busy,
            "NOPERM" => ServerErrorKind::NoPerm,
            "NOAUTH" | "WRONGPASS" => ServerErrorKind::NoAuth,
            "WRONGTYPE" => ServerErrorKind::WrongType,
            "MOVED" => ServerErrorKind::Moved,
            "ASK" => ServerErrorKind::Ask,
            "CLUSTERDOWN" => ServerErrorKind::ClusterDown,
            "TRYAGAIN" => ServerErrorKind::TryAgain,
            "CROSSSLOT" => ServerErrorKind::CrossSlot,
            "OOM" => ServerErrorKind::Oom,
            "ERR" => self.kind_by_message(),
            _ => ServerErrorKind::Other,
        }
    }

    /// The kind of an error with the code `ERR`, which many errors share.
    fn kind_by_message(&self) -> ServerErrorKind {
        let message = self.message.as_str();
        if message.starts_with("unknown command") {
            ServerErrorKind::UnknownCommand
        } else if message.starts_with("no such key") || message.contains("requires the key to exist") {
            ServerErrorKind::NoSuchKey
        } else if message.starts_with("max number of clients reached") {
            ServerErrorKind::MaxClients
        } else {
            ServerErrorKind::Other
        }
    }
}

/// Why a configuration does not describe a usable Redis address. No message contains a password.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The URL cannot be used.
    #[error(
        "redis.url: {0}; expected redis://[user:password@]host[:port][/db], rediss://… or unix:///path[?db=N]"
    )]
    Url(String),
    /// The file of trust anchors cannot be read.
    #[error("redis.ca_file: {path}: {reason}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// The error in it.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("TLS to Redis cannot be set up: {0}")]
    Tls(#[source] rustls::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_replies_have_a_kind() {
        for (text, code, kind) in [
            ("NOGROUP No such key 'x' or consumer group", "NOGROUP", ServerErrorKind::NoGroup),
            ("ERR unknown command 'HELLO'", "ERR", ServerErrorKind::UnknownCommand),
            ("ERR no such key", "ERR", ServerErrorKind::NoSuchKey),
            (
                "ERR The XGROUP subcommand requires the key to exist. Note that",
                "ERR",
                ServerErrorKind::NoSuchKey,
            ),
            ("WRONGPASS invalid username-password pair", "WRONGPASS", ServerErrorKind::NoAuth),
            ("Some text without a code", "ERR", ServerErrorKind::Other),
            ("", "ERR", ServerErrorKind::Other),
            ("READONLY", "READONLY", ServerErrorKind::ReadOnly),
            (
                "EXECABORT Transaction discarded because of: READONLY You can't write",
                "EXECABORT",
                ServerErrorKind::ReadOnly,
            ),
            (
                "EXECABORT Transaction discarded because of previous errors.",
                "EXECABORT",
                ServerErrorKind::Other,
            ),
            ("EXECABORT because of: EXECABORT because of: x", "EXECABORT", ServerErrorKind::Other),
        ] {
            let error = ServerError::parse(text.as_bytes());
            assert_eq!((error.code.as_str(), error.kind()), (code, kind), "{text}");
        }
        assert!(ServerError::parse(&[b'x'; 10_000]).message.len() <= MESSAGE_BYTES_MAX);
    }

    #[test]
    fn outages_are_distinguished_from_refusals() {
        let server = |text: &str| RedisError::Server(ServerError::parse(text.as_bytes()));
        for outage in ["LOADING x", "MISCONF x", "READONLY x", "MASTERDOWN x", "CLUSTERDOWN x"] {
            assert!(server(outage).is_outage(), "{outage}");
        }
        for refusal in ["NOGROUP x", "NOPERM x", "ERR x", "OOM x", "UNBLOCKED x"] {
            assert!(!server(refusal).is_outage(), "{refusal}");
        }
        assert!(RedisError::Timeout.is_outage() && RedisError::Closed.is_outage());
    }
}
