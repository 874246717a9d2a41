//! The policies that a reload replaces as a whole.

use super::host::HostPolicy;
use super::origin::OriginPolicy;
use crate::config::Config;

/// The names and the origins that requests may have.
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

/// The names that requests without a token may use.
fn hosts(config: &Config) -> HostPolicy {
    if config.auth.allow_anonymous {
        return HostPolicy::Any;
    }
    HostPolicy::from(&config.listen.hosts, &config.listen.origins)
}
