//! The web pages that may read streams: browsers send the origin of the requesting page in `Origin`, and WebSocket
//! has no other protection against foreign pages.
//!
//! Programs send no `Origin` and are not affected. A page may always contact the host that it came from: Origin and
//! Host agree; the scheme is not compared, because a proxy may end TLS. Pages of other origins are accepted if they
//! are listed. The only wildcard is `*` alone.

/// The decision on a request by its `Origin` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginDecision<'a> {
    /// The request does not come from a page of another site: serve it, without CORS headers.
    NotCrossOrigin,
    /// Serve, with this value in `Access-Control-Allow-Origin`.
    Allowed(&'a str),
    /// Answer 403.
    Forbidden,
}

/// The configured origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPolicy {
    /// Pages of the requested host, and of these origins.
    Listed(Vec<Origin>),
    /// Every page.
    Any,
}

/// An origin in its normalized form: lower case, with the port that its scheme implies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl OriginPolicy {
    /// The policy of `listen.origins`, which are accepted in addition to the same origin; `*` among them: any.
    ///
    /// Texts that are not an origin match nothing; the configuration refuses them.
    #[must_use]
    pub fn from(origins: &[String]) -> Self {
        if origins.iter().any(|origin| origin == "*") {
            Self::Any
        } else {
            Self::Listed(origins.iter().filter_map(|origin| Origin::parse(origin)).collect())
        }
    }

    /// Judges a request by its `Origin` and `Host` headers.
    #[must_use]
    pub fn decide<'a>(&self, origin: Option<&'a str>, host: Option<&str>) -> OriginDecision<'a> {
        let Some(text) = origin else { return OriginDecision::NotCrossOrigin };
        let parsed = Origin::parse(text);
        let is_same = || parsed.as_ref().zip(host).is_some_and(|(origin, host)| origin.is_of(host));
        match self {
            Self::Any => OriginDecision::Allowed("*"),
            Self::Listed(_) if is_same() => OriginDecision::NotCrossOrigin,
            Self::Listed(listed) if parsed.as_ref().is_some_and(|origin| listed.contains(origin)) => {
                OriginDecision::Allowed(text)
            }
            Self::Listed(_) => OriginDecision::Forbidden,
        }
    }
}

/// Whether a text is allowed in `listen.origins`: `*`, or scheme, host and an optional port.
#[must_use]
pub fn is_origin(text: &str) -> bool {
    text == "*" || Origin::parse(text).is_some()
}

impl Origin {
    /// Parses an origin as browsers write it; `null`, which they send for pages without one, is not an origin.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let is_scheme_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if scheme.is_empty() || !scheme.bytes().all(is_scheme_byte) {
            return None;
        }
        let (host, port) = split_port(authority)?;
        let port = port.or_else(|| default_port(&scheme));
        Some(Self { scheme, host, port })
    }

    /// Its host, in lower case.
    pub(super) fn into_host(self) -> String {
        self.host
    }

    /// Whether a `Host` header has this origin's host and port.
    fn is_of(&self, host_header: &str) -> bool {
        // A Host without a port means the default port of the scheme that the browser used.
        split_port(host_header).is_some_and(|(host, port)| {
            host == self.host && port.or_else(|| default_port(&self.scheme)) == self.port
        })
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

/// The host in lower case, and the port if there is one; `None` if the text is neither.
pub(super) fn split_port(authority: &str) -> Option<(String, Option<u16>)> {
    let colon = match authority.rfind(']') {
        Some(end) => authority[end..].find(':').map(|at| end + at),
        None => authority.find(':'),
    };
    let (host, port) = match colon {
        Some(at) => {
            let digits = &authority[at + 1..];
            // `u16::from_str` accepts a plus sign.
            if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            (&authority[..at], Some(digits.parse().ok()?))
        }
        None => (authority, None),
    };
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    let is_host_byte = |byte: u8| {
        byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (is_bracketed && b"[]:".contains(&byte))
    };
    (!host.is_empty() && host.bytes().all(is_host_byte)).then(|| (host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::OriginDecision::{Allowed, Forbidden, NotCrossOrigin};
    use super::*;

    fn policy(origins: &[&str]) -> OriginPolicy {
        OriginPolicy::from(&origins.iter().map(|&origin| origin.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn programs_are_not_concerned() {
        for origins in [&[][..], &["*"], &["https://a"]] {
            assert_eq!(policy(origins).decide(None, Some("h")), NotCrossOrigin);
        }
    }

    #[test]
    fn without_a_list_only_the_own_host_is_let_in() {
        for (origin, host, decision) in [
            ("http://localhost:8080", Some("localhost:8080"), NotCrossOrigin),
            ("HTTP://LocalHost:8080", Some("LOCALHOST:8080"), NotCrossOrigin),
            ("https://chat.example.com", Some("chat.example.com"), NotCrossOrigin),
            ("https://chat.example.com", Some("chat.example.com:443"), NotCrossOrigin),
            ("https://chat.example.com:443", Some("chat.example.com"), NotCrossOrigin),
            ("http://[::1]:8080", Some("[::1]:8080"), NotCrossOrigin),
            ("http://[::1]", Some("[::1]"), NotCrossOrigin),
            ("http://localhost:8080", Some("localhost:8081"), Forbidden),
            ("https://chat.example.com", Some("chat.example.com:80"), Forbidden),
            ("https://chat.example.com.evil.com", Some("chat.example.com"), Forbidden),
            ("https://evil.com", Some("chat.example.com"), Forbidden),
            ("https://h", None, Forbidden),
            ("null", Some("null"), Forbidden),
            ("", Some(""), Forbidden),
            ("http://", Some(""), Forbidden),
            ("http://h/", Some("h"), Forbidden),
            ("http://u@h", Some("h"), Forbidden),
            ("http://h:+80", Some("h:80"), Forbidden),
            ("http://h:99999", Some("h:99999"), Forbidden),
        ] {
            assert_eq!(policy(&[]).decide(Some(origin), host), decision, "{origin} {host:?}");
        }
    }

    #[test]
    fn with_a_list_the_listed_and_the_own_host_are_let_in() {
        let policy = policy(&["https://Chat.example.com", "http://localhost:3000", "capacitor://localhost"]);
        for origin in [
            "https://chat.example.com",
            "https://chat.example.com:443",
            "http://localhost:3000",
            "capacitor://localhost",
        ] {
            assert_eq!(policy.decide(Some(origin), Some("api")), Allowed(origin));
        }
        for origin in ["https://api", "http://API"] {
            assert_eq!(policy.decide(Some(origin), Some("api")), NotCrossOrigin, "{origin}");
        }
        for origin in ["http://chat.example.com", "https://localhost:3000", "https://api:8080", "null", "*"] {
            assert_eq!(policy.decide(Some(origin), Some("api")), Forbidden, "{origin}");
        }
    }

    #[test]
    fn a_star_lets_in_every_page() {
        for origin in ["https://evil.com", "null"] {
            assert_eq!(policy(&["https://a", "*"]).decide(Some(origin), None), Allowed("*"));
        }
    }

    #[test]
    fn valid_list_items_are_accepted() {
        for text in ["*", "https://a", "http://[::1]:80", "chrome-extension://abcdef"] {
            assert!(is_origin(text), "{text}");
        }
        for text in ["", "a", "null", "https://*.a", "https://a/", "https://a b", "://a", "https://ä"] {
            assert!(!is_origin(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_header_upsets_the_decision(origin in ".{0,40}", host in ".{0,40}") {
            let same = policy(&[]).decide(Some(&origin), Some(&host));
            prop_assert_ne!(same, Allowed(&origin));
            prop_assert_eq!(policy(&["https://listed"]).decide(Some(&origin), Some(&host)), Forbidden);
        }
    }
}
