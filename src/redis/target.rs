//! The address of Redis, the credentials for it, and its timeouts.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::redis::{ConnectionAddr, IntoConnectionInfo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::error::TargetError;
use super::tls;
use crate::{config, pulse};

/// How long the system may take to look up a host's name: its resolver tries several servers several times.
const LOOKUP_TIME: Duration = Duration::from_secs(60);

/// A Redis that links connect to. Cheap enough to clone for every thread.
#[derive(Clone)]
pub struct Target {
    address: Address,
    pub(super) credentials: Option<Credentials>,
    pub(super) database: u64,
    /// Whether RESP3 is not even requested.
    pub(super) only_resp2: bool,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
}

/// The address of the server.
#[derive(Clone)]
enum Address {
    /// A host's name or address, optionally with TLS.
    Tcp { host: String, port: u16, tls: Option<Tls> },
    /// A socket's path.
    Unix(PathBuf),
}

/// The server's current address.
pub(super) enum Endpoint<'a> {
    /// Any of these addresses, optionally with TLS.
    Tcp { addresses: Vec<SocketAddr>, tls: Option<&'a Tls> },
    /// A socket's path.
    Unix(&'a Path),
}

/// The settings of a TLS session.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) server_name: ServerName<'static>,
}

/// The user for authentication.
#[derive(Clone)]
pub(super) struct Credentials {
    /// `None`: the default user.
    pub(super) username: Option<String>,
    pub(super) password: String,
}

impl Target {
    /// Creates the target of a configuration; reads its file of trust anchors if it has one.
    ///
    /// The URL's query may contain `protocol=resp2`, for a proxy in front of Redis that does not support RESP3.
    ///
    /// # Errors
    /// If the URL cannot be used, or TLS cannot be set up.
    pub fn new(config: &config::Redis) -> Result<Self, TargetError> {
        // The crate that parses the URL supports TLS only with its own TLS features.
        let (url, is_tls) = match config.url.split_once("://") {
            Some(("rediss" | "valkeys", rest)) => (format!("redis://{rest}"), true),
            _ => (config.url.clone(), false),
        };
        let info = url.as_str().into_connection_info().map_err(|error| {
            TargetError::Url(error.detail().map_or_else(|| describe(&error), ToOwned::to_owned))
        })?;
        if url.contains('#') {
            return Err(TargetError::Url("the part after # is not allowed".to_owned()));
        }
        let address = match info.addr() {
            ConnectionAddr::Tcp(host, port) => {
                let tls = is_tls.then(|| Tls::new(host, config)).transpose()?;
                Address::Tcp { host: host.clone(), port: *port, tls }
            }
            ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
            _ => return Err(TargetError::Url("a kind of address that is not supported".to_owned())),
        };
        let settings = info.redis_settings();
        let credentials = match (settings.username(), settings.password()) {
            (username, Some(password)) => {
                Some(Credentials { username: username.map(ToOwned::to_owned), password: password.to_owned() })
            }
            (Some(_), None) => return Err(TargetError::Url("a user without a password".to_owned())),
            (None, None) => None,
        };
        let asks_for_protocol = url.split_once('?').is_some_and(|(_, query)| query.contains("protocol="));
        Ok(Self {
            address,
            credentials,
            database: u64::try_from(settings.db())
                .map_err(|_| TargetError::Url("a negative database number".to_owned()))?,
            only_resp2: asks_for_protocol && settings.protocol() == ::redis::ProtocolVersion::RESP2,
            connect_timeout: config.connect_timeout,
            response_timeout: config.response_timeout,
        })
    }

    /// Looks up the server's current address. This happens for each connection, because names may change their
    /// address. The time that the system takes is not bounded.
    pub(super) fn resolve(&self) -> io::Result<Endpoint<'_>> {
        match &self.address {
            Address::Unix(path) => Ok(Endpoint::Unix(path)),
            Address::Tcp { host, port, tls } => {
                pulse::expect_silence(LOOKUP_TIME);
                let addresses = (host.as_str(), *port).to_socket_addrs();
                pulse::beat();
                Ok(Endpoint::Tcp { addresses: addresses?.collect(), tls: tls.as_ref() })
            }
        }
    }

    /// The address for messages and logs, without user and password.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.address {
            Address::Tcp { host, port, tls } => {
                let scheme = if tls.is_some() { "rediss" } else { "redis" };
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                format!("{scheme}://{open}{host}{close}:{port}/{}", self.database)
            }
            Address::Unix(path) => format!("unix://{}?db={}", path.display(), self.database),
        }
    }

    /// How long a reply may take.
    #[must_use]
    pub const fn response_timeout(&self) -> Duration {
        self.response_timeout
    }
}

/// The error in a URL, as the parsing crate describes it, without the kind of error.
fn describe(error: &::redis::RedisError) -> String {
    let text = error.to_string();
    text.split_once(" - ").map_or(text.as_str(), |(message, _)| message).to_owned()
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("address", &self.address())
            .field(
                "username",
                &self.credentials.as_ref().and_then(|credentials| credentials.username.as_ref()),
            )
            .finish_non_exhaustive()
    }
}

impl Tls {
    fn new(host: &str, config: &config::Redis) -> Result<Self, TargetError> {
        let server_name = ServerName::try_from(host.to_owned())
            .map_err(|_| TargetError::Url(format!("{host} cannot be a name in a certificate")))?;
        Ok(Self { config: tls::client_config(config.ca_file.as_deref())?, server_name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::testing::config_for;

    fn target(url: &str) -> Result<Target, TargetError> {
        Target::new(&config_for(url))
    }

    #[test]
    fn urls_become_targets() {
        for (url, address) in [
            ("redis://127.0.0.1", "redis://127.0.0.1:6379/0"),
            ("redis://u:p%40ss@example.org:7000/3", "redis://example.org:7000/3"),
            ("redis://[::1]:7000", "redis://[::1]:7000/0"),
            ("rediss://:p@example.org/1", "rediss://example.org:6379/1"),
            ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
            ("redis://h?protocol=resp2", "redis://h:6379/0"),
        ] {
            assert_eq!(target(url).unwrap().address(), address, "{url}");
        }
        let credentials = target("redis://u:p%40ss@h").unwrap().credentials.unwrap();
        assert_eq!((credentials.username.as_deref(), credentials.password.as_str()), (Some("u"), "p@ss"));
        assert_eq!(target("redis://:p@h").unwrap().credentials.unwrap().username, None);
        let unix = target("unix:///s?user=u&pass=p").unwrap().credentials.unwrap();
        assert_eq!((unix.username.as_deref(), unix.password.as_str()), (Some("u"), "p"));
        assert!(target("redis://h?protocol=resp2").unwrap().only_resp2);
        assert!(
            !target("redis://h").unwrap().only_resp2 && !target("redis://h?protocol=3").unwrap().only_resp2
        );
    }

    #[test]
    fn bad_urls_are_refused_without_their_password() {
        for url in [
            "",
            "127.0.0.1:6379",
            "http://:secret@h",
            "redis://:secret@",
            "redis://:secret@h/x",
            "redis://:secret@h/-1",
            "redis://:secret@h:99999",
            "redis://user@h",
            "redis://:secret@0.0.0.0",
            "rediss://:secret@h#insecure",
            "rediss://:secret@h_ _",
            "unix://:secret@relative",
        ] {
            let error = target(url).unwrap_err();
            assert!(matches!(error, TargetError::Url(_)), "{url}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn passwords_stay_out_of_logs() {
        let target = target("redis://someone:secret@h").unwrap();
        let text = format!("{target:?} {}", target.address());
        assert!(!text.contains("secret") && text.contains("someone"), "{text}");
    }

    #[test]
    fn trust_anchors_are_read_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let mut config = config_for("rediss://h");
        config.ca_file = Some(path.clone());
        assert!(matches!(Target::new(&config), Err(TargetError::CaFile { .. })));
        std::fs::write(&path, "no certificate").unwrap();
        let error = Target::new(&config).unwrap_err().to_string();
        assert!(error.contains("ca.pem") && error.contains("no certificate"), "{error}");
    }
}
