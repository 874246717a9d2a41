//! The names under which this server answers: the protection against DNS rebinding.
//!
//! A page of a foreign site can make its own name resolve to this machine. Its requests then have an `Origin` and a
//! `Host` that agree, like those of a page from this server. Only the name shows the difference: it is not one of
//! ours. If every request needs a token this cannot be abused, because the page has none.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::origin::{Origin, split_port};

/// The host names that a server accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPolicy {
    /// Every name: requests need a token, or the operator has allowed it.
    Any,
    /// `localhost`, literal addresses, and these names, in lower case.
    Listed(Vec<String>),
}

impl HostPolicy {
    /// The policy if requests need no token: `hosts` is `listen.hosts`, `origins` is `listen.origins`, whose hosts
    /// count as names of this server. `*` in `hosts` allows every name.
    ///
    /// Texts that are not a host or an origin match nothing; the configuration refuses them.
    #[must_use]
    pub fn from(hosts: &[String], origins: &[String]) -> Self {
        if hosts.iter().any(|host| host == "*") {
            return Self::Any;
        }
        let of_origins = origins.iter().filter_map(|origin| Origin::parse(origin)).map(Origin::into_host);
        Self::Listed(hosts.iter().map(|host| host.to_ascii_lowercase()).chain(of_origins).collect())
    }

    /// Checks the host of a request: that of its target in absolute form, or else its `Host` header. Port and case
    /// are ignored. A request without a host passes: HTTP/1.0 allows that, and no browser sends it.
    #[must_use]
    pub fn allows(&self, host: Option<&str>) -> bool {
        match (self, host) {
            (Self::Any, _) | (_, None) => true,
            (Self::Listed(listed), Some(host)) => split_port(host)
                .is_some_and(|(host, _)| host == "localhost" || is_address(&host) || listed.contains(&host)),
        }
    }
}

/// Whether a text is allowed in `listen.hosts`: `*`, or a host name without scheme and port.
#[must_use]
pub fn is_host(text: &str) -> bool {
    text == "*" || split_port(text).is_some_and(|(_, port)| port.is_none())
}

/// Whether a host is a literal IP address, in the form of a URL. No DNS answer can redirect it.
fn is_address(host: &str) -> bool {
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bracketed {
        Some(inside) => inside.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(hosts: &[&str], origins: &[&str]) -> HostPolicy {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        HostPolicy::from(&owned(hosts), &owned(origins))
    }

    #[test]
    fn a_server_answers_to_its_own_names_only() {
        let policy = policy(&["Chat.Example.com"], &["https://app.example:8443", "capacitor://native"]);
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1",
            "10.1.2.3:80",
            "[::1]:8080",
            "[2001:DB8::1]",
            "chat.example.com",
            "CHAT.example.com:1234",
            "app.example",
            "native:1",
        ] {
            assert!(policy.allows(Some(host)), "{host}");
        }
        for host in [
            "",
            ":80",
            "evil.example",
            "chat.example.com.evil.example",
            "xchat.example.com",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.1",
            "[::1",
            "[::g]",
            "::1",
            "localhost:x",
            "localhost:99999",
            "a b",
        ] {
            assert!(!policy.allows(Some(host)), "{host}");
        }
        assert!(policy.allows(None));
    }

    #[test]
    fn a_star_allows_every_name_and_is_no_name() {
        assert_eq!(policy(&["a", "*"], &[]), HostPolicy::Any);
        assert!(policy(&["*"], &[]).allows(Some("evil.example")));
        assert!(!policy(&[], &["*"]).allows(Some("evil.example")), "any origin is not any host");
    }

    #[test]
    fn valid_list_items_are_accepted() {
        for text in ["*", "a", "chat.example.com", "[::1]", "10.0.0.1"] {
            assert!(is_host(text), "{text}");
        }
        for text in ["", "a:80", "https://a", "*.a", "a/b", "a b", "ä"] {
            assert!(!is_host(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_header_upsets_the_decision(host in ".{0,40}") {
            prop_assert!(HostPolicy::Any.allows(Some(&host)));
            let is_own = policy(&[], &[]).allows(Some(&host));
            let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
            prop_assert!(!is_own || name.eq_ignore_ascii_case("localhost") || host.contains(['.', ':']));
        }
    }
}
