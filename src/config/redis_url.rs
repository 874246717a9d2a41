//! The URL of Redis: validation, adding a password, and masking it.
//!
//! The forms are those of the redis crate, which parses the URL when a connection is opened; a URL that it would
//! refuse then is refused at the start, with a message for the operator. Messages never quote the URL, because it may
//! contain the password.

/// Why a URL is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UrlError {
    #[error(
        "not a URL; allowed: redis://[user:password@]host[:port][/db], rediss://…, unix:///path/to/socket"
    )]
    Form,
    #[error("the scheme is not allowed; allowed: redis://, rediss://, unix://")]
    Scheme,
    #[error("sentinel and cluster URLs are not available in this version; name one server")]
    Topology,
    #[error("there is no host in the URL; allowed: redis://[user:password@]host[:port][/db]")]
    Host,
    #[error("0.0.0.0 and [::] are addresses to listen on; name the host that Redis runs on")]
    Wildcard,
    #[error("a unix:// URL names the socket by its absolute path: unix:///run/redis/redis.sock")]
    Path,
    #[error("the database is a number from 0 up, as in redis://host:6379/0 (or unix:///path?db=0)")]
    Database,
}

/// The validated URL, with `password` in it.
pub(super) fn complete(text: &str, password: Option<&str>) -> Result<String, UrlError> {
    let scheme = text.split_once("://").ok_or(UrlError::Form)?.0;
    if scheme.contains("sentinel") || scheme.contains("cluster") {
        return Err(UrlError::Topology);
    }
    if !matches!(scheme, "redis" | "rediss" | "unix") {
        return Err(UrlError::Scheme);
    }
    let mut url = redis::parse_redis_url(text).ok_or(UrlError::Form)?;
    let is_unix = scheme == "unix";
    let database = if is_unix {
        if !url.path().starts_with('/') || url.path().len() < 2 || url.has_host() {
            return Err(UrlError::Path);
        }
        url.query_pairs().find(|(name, _)| name == "db").map(|(_, db)| db.into_owned())
    } else {
        match url.host_str() {
            None | Some("") => return Err(UrlError::Host),
            Some("0.0.0.0" | "[::]") => return Err(UrlError::Wildcard),
            Some(_) => Some(url.path().trim_start_matches('/').to_owned()),
        }
    };
    if database.is_some_and(|db| !db.is_empty() && db.parse::<u32>().is_err()) {
        return Err(UrlError::Database);
    }
    if let Some(password) = password {
        if is_unix {
            url.query_pairs_mut().append_pair("pass", password);
        } else {
            // Only a URL without a host cannot have a password, and that was refused above.
            url.set_password(Some(password)).map_err(|()| UrlError::Host)?;
        }
        return Ok(url.into());
    }
    Ok(text.to_owned())
}

/// The URL without its password.
pub(super) fn masked(text: &str) -> String {
    let Some(mut url) = redis::parse_redis_url(text) else { return "***".to_owned() };
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return "***".to_owned();
    }
    if url.query_pairs().any(|(name, _)| name == "pass") {
        let rest: Vec<(String, String)> =
            url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        let shown = rest.iter().map(|(name, value)| (name, if name == "pass" { "***" } else { value }));
        url.query_pairs_mut().clear().extend_pairs(shown);
    }
    url.into()
}

#[cfg(test)]
mod tests {
    use redis::IntoConnectionInfo;

    use super::*;

    #[test]
    fn usable_urls_stay_as_they_are() {
        for url in [
            "redis://127.0.0.1:6379/0",
            "redis://localhost",
            "redis://[::1]:6380/3",
            "rediss://user:pw@redis.example.com:6380",
            "unix:///run/redis.sock",
            "unix:///run/redis.sock?db=2&user=u&pass=p",
        ] {
            assert_eq!(complete(url, None).as_deref(), Ok(url));
        }
    }

    #[test]
    fn unusable_urls_get_different_errors() {
        for (url, error) in [
            ("127.0.0.1:6379", UrlError::Form),
            ("redis://a b", UrlError::Form),
            ("http://127.0.0.1", UrlError::Scheme),
            ("redis-sentinel://a,b/mymaster", UrlError::Topology),
            ("redis:///0", UrlError::Host),
            ("redis://0.0.0.0", UrlError::Wildcard),
            ("unix://", UrlError::Path),
            ("unix://run/redis.sock", UrlError::Path),
            ("redis://h/zero", UrlError::Database),
            ("redis://h/-1", UrlError::Database),
            ("unix:///s?db=x", UrlError::Database),
        ] {
            assert_eq!(complete(url, None), Err(error), "{url}");
        }
    }

    #[test]
    fn a_password_arrives_unchanged_and_is_not_shown() {
        let password = "p@:/?#& %ü\"";
        for url in ["redis://127.0.0.1:6379/1", "redis://user:old@h", "unix:///run/redis.sock?db=2"] {
            let complete = complete(url, Some(password)).unwrap();
            let info = complete.as_str().into_connection_info().unwrap();
            assert_eq!(info.redis_settings().password(), Some(password), "{complete}");
            let shown = masked(&complete);
            assert!(shown.contains("***") && !shown.contains("p%40"), "{shown}");
        }
    }
}
