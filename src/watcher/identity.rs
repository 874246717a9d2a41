//! The identity of this daemon on its host, and the proof that it is alive.
//!
//! A process holds an abstract Unix socket that is named after its instance. The kernel releases the name when the
//! process dies, however it dies, so a process that can bind the name knows that no other process on this host has
//! it. The lease in Redis contains the name, so a daemon that finds the lease can ask the kernel whether its holder
//! is dead.
//!
//! Abstract names belong to a network namespace. [`Identity`] therefore contains the scope of its name: boot and
//! namespace. If these cannot be read, nothing can be proved and the lease has to expire.

use std::hash::Hasher;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::message::Fnv;

/// The separator of a lease's parts; no part contains it.
const SEPARATOR: char = '|';

/// Another daemon of this host has the instance id.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The other daemon runs.
    #[error(
        "another llm-bridge of service {service:?} runs as instance {instance:?} on this host; give service.instance another value or stop that one"
    )]
    AlreadyRunning {
        /// `service.name`.
        service: String,
        /// `service.instance`.
        instance: String,
    },
    /// The operating system refuses the check.
    #[error("the operating system refuses a socket that proves that this instance is alive: {0}")]
    System(#[from] io::Error),
}

/// This process as an instance. The name is held until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Identity {
    name: String,
    place: Option<String>,
    /// Differs between two processes that have the same name one after the other.
    nonce: String,
    _proof: Arc<UnixListener>,
}

impl Identity {
    /// Claims the name of this instance on this host.
    ///
    /// # Errors
    /// When another process has it.
    pub fn claim(config: &Config) -> Result<Self, ClaimError> {
        let (service, instance) = (&config.service.name, &config.service.instance);
        let name = name(config);
        let proof = bind(&name).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                ClaimError::AlreadyRunning { service: service.clone(), instance: instance.clone() }
            }
            _ => ClaimError::System(error),
        })?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let nonce = format!("{}.{since}", std::process::id());
        Ok(Self { name, place: place(), nonce, _proof: Arc::new(proof) })
    }

    /// The value of the lease in Redis while this process holds it.
    #[must_use]
    pub(super) fn lease(&self) -> String {
        [self.place.as_deref().unwrap_or_default(), &self.name, &self.nonce].join(&SEPARATOR.to_string())
    }

    /// Whether the holder of another lease is known to be dead.
    pub(super) fn is_dead(&self, lease: &str) -> bool {
        let mut parts = lease.split(SEPARATOR);
        let (Some(place), Some(name), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        // This process holds its own name, so a former holder is dead.
        self.place.as_deref() == Some(place) && (name == self.name || bind(name).is_ok())
    }
}

/// The name that a live daemon holds: readable, and different wherever the lease is a different one.
fn name(config: &Config) -> String {
    let (redis, mut hash) = (config.redis.masked_url(), Fnv::default());
    for part in [&redis, &config.redis.prefix, &config.service.name, &config.service.instance] {
        hash.write(part.as_bytes());
        hash.write_u8(0);
    }
    format!("llm-bridge/{:.40}/{:016x}", config.service.instance, hash.finish())
}

fn bind(name: &str) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// The scope of an abstract name: this boot of this machine, this network namespace.
fn place() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/net").ok()?;
    Some(format!("{}.{}", boot.trim(), namespace.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(instance: &str) -> Config {
        let set = [format!("service.instance={instance}"), "redis.prefix=identity-test".to_owned()];
        crate::config::load(None, std::iter::empty(), &set).unwrap()
    }

    #[test]
    fn an_instance_is_claimed_once_at_a_time() {
        let config = config("claimed");
        let first = Identity::claim(&config).unwrap();
        assert!(matches!(Identity::claim(&config), Err(ClaimError::AlreadyRunning { .. })));
        let former = first.lease();
        drop(first);
        let second = Identity::claim(&config).unwrap();
        assert_ne!(second.lease(), former);
        assert!(second.is_dead(&former), "its name is ours now");
    }

    #[test]
    fn dead_live_and_unknown_holders_are_distinguished() {
        let (ours, other) =
            (Identity::claim(&config("ours")).unwrap(), Identity::claim(&config("other")).unwrap());
        let lease = other.lease();
        assert!(!ours.is_dead(&lease), "it lives");
        drop(other);
        assert!(ours.is_dead(&lease));
        for unknown in ["", "elsewhere|name|1", "somebody's own lease", "a|b|c|d"] {
            assert!(!ours.is_dead(unknown), "{unknown}");
        }
    }
}
