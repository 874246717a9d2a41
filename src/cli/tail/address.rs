//! Parses the URL for `tail`: where to connect and what to request. Pure.

use tungstenite::http::Uri;

/// Why a URL cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    /// Not a URL at all.
    #[error("`{0}` is not a URL such as http://127.0.0.1:8080/v1/streams/SESSION/MODEL")]
    NotAUrl(String),
    /// TLS is not supported.
    #[error(
        "`{0}`: only plain http:// and ws:// are supported; connect to the daemon behind the TLS proxy, or through a tunnel"
    )]
    Scheme(String),
    /// The path is not that of a stream.
    #[error("`{0}`: the path of a stream is /v1/streams/SESSION/MODEL")]
    Path(String),
    /// Only native frames are shown.
    #[error("`{0}`: only native frames can be shown; remove `format`")]
    Format(String),
}

/// One stream on one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// The server to connect to: `host:port`.
    pub(crate) authority: String,
    /// Path of the stream, percent-encoded as it was given.
    path: String,
    /// Query of the request without `after`.
    query: Vec<String>,
    /// The `after` of the URL.
    pub(crate) after: Option<String>,
}

impl Address {
    /// Parses a `ws://` or `http://` URL.
    pub(crate) fn parse(url: &str) -> Result<Self, AddressError> {
        let not_a_url = || AddressError::NotAUrl(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| not_a_url())?;
        match uri.scheme_str() {
            Some("http" | "ws") => {}
            Some("https" | "wss") => return Err(AddressError::Scheme(url.to_owned())),
            _ => return Err(not_a_url()),
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(not_a_url)?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        let path = uri.path();
        let name = path.strip_prefix("/v1/streams/").unwrap_or("");
        // The server decides whether a model is required.
        if name.is_empty() {
            return Err(AddressError::Path(url.to_owned()));
        }
        let (mut query, mut after) = (Vec::new(), None);
        for pair in uri.query().unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("after", id)) => after = Some(id.to_owned()),
                Some(("format", format)) if format != "native" => {
                    return Err(AddressError::Format(url.to_owned()));
                }
                _ => query.push(pair.to_owned()),
            }
        }
        Ok(Self { authority, path: path.to_owned(), query, after })
    }

    /// Requests future generations too.
    pub(crate) fn follow(&mut self) {
        self.query.retain(|pair| !pair.starts_with("follow="));
        self.query.push("follow=1".to_owned());
    }

    /// The URL of a request for what follows `after`.
    pub(crate) fn request(&self, after: Option<&str>) -> String {
        let after = after.map(|id| format!("after={}", id.replace('$', "%24")));
        let query: Vec<_> = self.query.iter().cloned().chain(after).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        format!("ws://{}{}{mark}{}", self.authority, self.path, query.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_become_requests() {
        let mut address =
            Address::parse("http://localhost/v1/streams/s/a%2Fb?wait=5&after=7-1&follow=0").unwrap();
        assert_eq!((address.authority.as_str(), address.after.as_deref()), ("localhost:80", Some("7-1")));
        assert_eq!(
            address.request(Some("9-0")),
            "ws://localhost:80/v1/streams/s/a%2Fb?wait=5&follow=0&after=9-0"
        );
        address.follow();
        assert_eq!(address.request(None), "ws://localhost:80/v1/streams/s/a%2Fb?wait=5&follow=1");
        let v6 = Address::parse("ws://[::1]:81/v1/streams/s/m").unwrap();
        assert_eq!(v6.request(Some("$")), "ws://[::1]:81/v1/streams/s/m?after=%24");
    }

    #[test]
    fn other_urls_are_refused_with_the_reason() {
        for bad in ["", "x", "localhost:8080/v1/streams/s/m", "ftp://h/v1/streams/s/m", "http:///v1"] {
            assert!(matches!(Address::parse(bad), Err(AddressError::NotAUrl(_))), "{bad}");
        }
        assert!(matches!(Address::parse("wss://h/v1/streams/s/m"), Err(AddressError::Scheme(_))));
        assert_eq!(Address::parse("http://h/v1/streams/s").unwrap().request(None), "ws://h:80/v1/streams/s");
        for format in ["openai", "ai-sdk", "nonsense"] {
            let url = format!("http://h/v1/streams/s/m?wait=1&format={format}&after=1");
            let refused = Address::parse(&url).unwrap_err();
            assert!(refused.to_string().ends_with("remove `format`"), "{refused}");
        }
        assert!(Address::parse("http://h/v1/streams/s/m?format=native").is_ok());
        for bad in ["http://h", "http://h/v1/streams/", "http://h/s/m"] {
            assert!(matches!(Address::parse(bad), Err(AddressError::Path(_))), "{bad}");
        }
    }
}
