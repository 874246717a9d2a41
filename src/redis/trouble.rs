//! Errors of Redis as messages for operators: the problem, and its fix.

use std::io::ErrorKind;

use super::{RedisError, ServerError, ServerErrorKind, rights};
use crate::observe::Trouble;

/// When something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// While a connection was opened.
    Connecting,
    /// On a connection that had worked.
    Connected,
}

const fn trouble(what: &'static str, fix: &'static str) -> Trouble {
    Trouble { what, fix }
}

impl RedisError {
    /// The error as a message: the problem and its fix.
    #[must_use]
    pub fn trouble(&self, phase: Phase) -> Trouble {
        match (self, phase) {
            (Self::Io(error), Phase::Connecting) => unreachable_by(error),
            (Self::Timeout, Phase::Connecting) => trouble(
                "Redis cannot be reached",
                "nothing answers at that address: see whether the host is up, a firewall is between, or the server is suspended",
            ),
            (Self::Closed, Phase::Connecting) => trouble(
                "Redis closes new connections at once",
                "see the log of Redis; a port for TLS needs rediss:// in redis.url",
            ),
            (Self::Io(_) | Self::Closed, Phase::Connected) => trouble(
                "a connection to Redis broke",
                "nothing, if Redis was restarted; if it happens again and again, see the log of Redis, its `timeout` and its `client-output-buffer-limit`",
            ),
            (Self::Timeout, Phase::Connected) => trouble(
                "Redis does not answer in time",
                "see whether Redis is suspended or busy with a slow command (SLOWLOG GET); redis.response_timeout sets the limit",
            ),
            (Self::TooLarge(_), _) => trouble(
                "Redis sends a reply that is too large",
                "nothing, because less is requested from now on; if it happens again and again, let producers write smaller entries",
            ),
            (Self::Protocol(_), _) => trouble(
                "the server at that address does not speak the protocol of Redis",
                "correct redis.url: it names another service, or a port for TLS without rediss://",
            ),
            (Self::Tls(_), _) => trouble(
                "TLS to Redis fails",
                "correct redis.ca_file or the host in redis.url, which the server's certificate has to name; a port without TLS needs redis://",
            ),
            (Self::Server(error), _) => refused_by(error),
        }
    }
}

fn unreachable_by(error: &std::io::Error) -> Trouble {
    let fix = match error.kind() {
        ErrorKind::ConnectionRefused => {
            "start redis-server there, or correct redis.url: nothing listens at that address"
        }
        ErrorKind::NotFound => "start redis-server, or correct redis.url: there is no such socket",
        ErrorKind::PermissionDenied => {
            "let the daemon's user open that socket (`unixsocketperm` of Redis, or its group)"
        }
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => {
            "nothing, if Redis was restarted; else see its log: it accepts connections and cuts them"
        }
        _ => "correct the host in redis.url, or the network between",
    };
    trouble("Redis cannot be reached", fix)
}

fn refused_by(error: &ServerError) -> Trouble {
    if error.kind() == ServerErrorKind::NoPerm {
        return rights::MISSING;
    }
    let what = error.kind().what();
    let fix = match error.kind() {
        ServerErrorKind::NoAuth => {
            "set user and password in redis.url, or the password in redis.password_file, as Redis has them (ACL LIST)"
        }
        ServerErrorKind::Loading => "wait: it serves once its data set is loaded",
        ServerErrorKind::MisConf => "see the log of Redis: it cannot save to disk",
        ServerErrorKind::ReadOnly => "let redis.url name the master, not a replica",
        ServerErrorKind::MasterDown => "let redis.url name the master, or start the replica's master",
        ServerErrorKind::NoReplicas => "start the replicas that `min-replicas-to-write` asks for",
        ServerErrorKind::Busy => "end the script that runs (SCRIPT KILL)",
        ServerErrorKind::MaxClients => "raise `maxclients` of Redis, or close other clients",
        ServerErrorKind::Oom => "raise `maxmemory` of Redis, or trim or expire streams",
        ServerErrorKind::ClusterDown | ServerErrorKind::TryAgain => "see CLUSTER INFO",
        ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot => {
            "let redis.url name a Redis that is not a cluster: clusters are not supported in this version"
        }
        ServerErrorKind::UnknownCommand => "use Redis 6.0 or newer, and no proxy that hides commands",
        ServerErrorKind::WrongType => {
            "delete or rename the key that something else has written, or choose another redis.prefix"
        }
        _ if error.code == "DENIED" => {
            "Redis is in protected mode: give it a password, or `bind` it to an address"
        }
        _ => "see what Redis answered; `llm-bridge check` looks at everything the daemon needs",
    };
    trouble(what, fix)
}

impl ServerErrorKind {
    /// The problem, as a message that clients may see.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::NoAuth => "Redis refuses the credentials",
            Self::NoPerm => rights::MISSING.what,
            Self::Loading => "Redis is loading its data set",
            Self::MisConf => "Redis refuses writes, because it cannot save to disk",
            Self::ReadOnly => "Redis refuses writes, because it is a read-only replica",
            Self::MasterDown => "Redis is a replica that has lost its master",
            Self::NoReplicas => "Redis refuses writes, because too few replicas are there",
            Self::Busy => "Redis is busy with a script",
            Self::MaxClients => "Redis has no room for another connection",
            Self::Oom => "Redis refuses writes, because its memory is full",
            Self::ClusterDown | Self::TryAgain => "the cluster of Redis does not serve now",
            Self::Moved | Self::Ask | Self::CrossSlot => "Redis is a cluster",
            Self::UnknownCommand => "Redis does not know a command that is needed",
            Self::WrongType => "a key in Redis has an unexpected type",
            _ => "Redis refuses a command",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn refusals_are_not_reported_as_unreachable() {
        for text in [
            "OOM x",
            "READONLY x",
            "LOADING x",
            "NOREPLICAS x",
            "NOAUTH x",
            "WRONGPASS x",
            "NOPERM x",
            "ERR x",
        ] {
            let trouble = RedisError::Server(ServerError::parse(text.as_bytes())).trouble(Phase::Connecting);
            assert!(!trouble.what.contains("reached") && !trouble.fix.is_empty(), "{text}: {trouble:?}");
        }
    }

    #[test]
    fn a_connection_breaks_only_where_there_was_one() {
        let refused = || RedisError::Io(io::Error::from(ErrorKind::ConnectionRefused));
        assert_eq!(refused().trouble(Phase::Connecting).what, "Redis cannot be reached");
        assert!(refused().trouble(Phase::Connecting).fix.contains("redis.url"));
        assert_eq!(refused().trouble(Phase::Connected).what, "a connection to Redis broke");
    }
}
