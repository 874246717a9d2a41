//! The identity of this daemon on its host, and the proof that it lives.
//!
//! A process holds an abstract Unix socket that is named after its instance. The kernel lets go of the name
//! when the process dies, however it dies; so on one host, a process that can bind the name knows that
//! nobody has it. The lease in Redis carries that name: a daemon that finds the lease can ask the kernel whether its
//! holder is dead.
//!
//! Abstract names belong to a network namespace. [`Identity`] therefore says where its name counts:
//! boot and namespace. Where these cannot be read, nothing can be proved and a lease has to run out.

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
    /// It runs.
    #[error(
        "another llm-bridge of service {service:?} runs as instance {instance:?} on this host; give service.instance another value or stop that one"
    )]
    AlreadyRunning {
        /// `service.name`.
        service: String,
        /// `service.instance`.
        instance: String,
    },
    /// The operating system does not let us find out.
    #[error("the operating system refuses a socket that proves that this instance is alive: {0}")]
    System(#[from] io::Error),
}

/// This process as an instance. The name is held until the last clone is gone.
#[derive(Clone, Debug)]
pub struct Identity {
    name: String,
    place: Option<String>,
    /// Differs between two processes that have the same name one after the other.
    nonce: String,
    _proof: Arc<UnixListener>,
}

impl Identity {
    /// Takes the name of this instance on this host.
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
        // Our own name is ours alone: its holder before us is gone.
        self.place.as_deref() == Some(place) && (name == self.name || bind(name).is_ok())
    }
}

/// The name under which a daemon is alive: readable, and different wherever the lease is another one.
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

/// Where an abstract name counts: this boot of this machine, this network namespace.
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
    fn death_is_told_from_life_and_from_not_knowing() {
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
