//! The policies that a reload exchanges as a whole.

use super::host::HostPolicy;
use super::origin::OriginPolicy;
use crate::config::Config;

/// The names and the origins under which requests may be made.
#[derive(Debug)]
pub struct Policies {
    /// The names of this server.
    pub hosts: HostPolicy,
    /// The origins of pages.
    pub origins: OriginPolicy,
}

impl From<&Config> for Policies {
    fn from(config: &Config) -> Self {
        Self { hosts: hosts(config), origins: OriginPolicy::from(&config.listen.origins) }
    }
}

/// The names under which requests that show no token may ask.
fn hosts(config: &Config) -> HostPolicy {
    if config.auth.allow_anonymous {
        return HostPolicy::Any;
    }
    HostPolicy::from(&config.listen.hosts, &config.listen.origins)
}
