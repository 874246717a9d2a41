//! A model's server: its address, the request to it, and the reading of its answer.
//!
//! An [`Upstream`] holds the settings that all requests share, a [`Request`] is one body, an [`Answer`] writes the
//! answer into a stream: `start`, the raw events as they arrive, heartbeats while the model thinks, and always a
//! terminal entry. A request that fails before the first token is retried; after the first token it ends with an
//! `error` entry.
//!
//! | code | the upstream |
//! | --- | --- |
//! | `upstream_unreachable` | could not be connected to, its proxy and TLS included |
//! | `upstream_refused` | answered with another status than 2xx, or still with 408, 429 or 5xx after all attempts |
//! | `upstream_timeout` | was silent for longer than allowed |
//! | `upstream_broke_off` | ended in the middle of the answer |
//! | `upstream_malformed` | sent something that is no event stream: what it was is in the message |

mod answer;
mod http;
mod request;
mod retry;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::http::{HeaderName, HeaderValue, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector as _, DefaultConnector};

pub use answer::{Answer, Outcome};
pub use request::{Request, RequestError};

use super::Form;
use super::events::ExpectedForm;

/// The version of Anthropic's API that is requested.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// The timeouts and retries of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// To accept the connection.
    pub connect: Duration,
    /// To send its first event.
    pub first: Duration,
    /// Between two pieces of its answer.
    pub silence: Duration,
    /// After a `finish_reason` without a further event: then the answer is over, as it is for readers. 0: never.
    pub finish: Duration,
    /// After this much silence a heartbeat is written into the stream.
    pub heartbeat: Duration,
    /// How often a request is retried before its first token.
    pub retries: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first: Duration::from_secs(300),
            silence: Duration::from_secs(60),
            finish: Duration::from_secs(2),
            heartbeat: Duration::from_secs(10),
            retries: 4,
        }
    }
}

/// Why an upstream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The address.
    #[error("{0:?} is not a URL of the form http://HOST[:PORT]/PATH or https://…")]
    Url(String),
    /// A header.
    #[error("a header is given as `Name: value`, in ASCII: {0:?}")]
    Header(String),
    /// The key.
    #[error("the key contains characters that a header cannot contain")]
    Key,
    /// The trust anchors.
    #[error("{path}: {reason}")]
    CaFile {
        /// The file.
        path: String,
        /// The error in it.
        reason: String,
    },
}

/// A model's server. Cheap to clone.
#[derive(Clone)]
pub struct Upstream {
    url: Uri,
    form: ExpectedForm,
    headers: Vec<(HeaderName, HeaderValue)>,
    patience: Patience,
    roots: Option<RootCerts>,
}

/// Leaves out the headers, which contain secrets.
impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("url", &self.url).field("form", &self.form).finish_non_exhaustive()
    }
}

impl Upstream {
    /// The server at `url`. It is used as Anthropic's API if the path ends in `/messages`, otherwise as an
    /// OpenAI-compatible one; the form of its answers is that of their first event.
    ///
    /// # Errors
    /// If the URL cannot be used.
    pub fn new(url: &str, patience: Patience) -> Result<Self, UpstreamError> {
        let unusable = || UpstreamError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| unusable())?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(unusable());
        }
        let is_messages = uri.path().trim_end_matches('/').ends_with("/messages");
        let form = if is_messages { Form::Anthropic } else { Form::OpenAi };
        let fixed = [
            ("content-type", "application/json"),
            ("accept", "text/event-stream"),
            // A proxy that compresses delays events until it has enough of them.
            ("accept-encoding", "identity"),
        ];
        let headers =
            fixed.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let (headers, form) = (headers.into(), ExpectedForm::FirstEvent(form));
        let mut upstream = Self { url: uri, form, headers, patience, roots: None };
        upstream.set_version();
        Ok(upstream)
    }

    /// Uses this form for requests and answers, whatever the path and the first event look like.
    #[must_use]
    pub fn speaking(mut self, form: Form) -> Self {
        self.form = ExpectedForm::Fixed(form);
        self.set_version();
        self
    }

    /// Anthropic's API requires a version header.
    fn set_version(&mut self) {
        let name = HeaderName::from_static("anthropic-version");
        self.headers.retain(|(known, _)| *known != name);
        if self.form.likely() == Form::Anthropic {
            self.headers.push((name, HeaderValue::from_static(ANTHROPIC_VERSION)));
        }
    }

    /// Adds another header, which replaces one with the same name.
    ///
    /// # Errors
    /// If it is not `Name: value`.
    pub fn header(mut self, line: &str) -> Result<Self, UpstreamError> {
        // Its value may be a secret.
        let name = line.split(':').next().unwrap_or_default();
        let unusable = || UpstreamError::Header(format!("{name}: …"));
        let (name, value) = line.split_once(':').ok_or_else(unusable)?;
        let name: HeaderName = name.trim().parse().map_err(|_| unusable())?;
        let value: HeaderValue = value.trim().parse().map_err(|_| unusable())?;
        self.set(name, value);
        Ok(self)
    }

    /// Sets the key of an account: `Authorization: Bearer`, for Anthropic `x-api-key`.
    ///
    /// # Errors
    /// If a header cannot contain it.
    pub fn key(mut self, key: &str) -> Result<Self, UpstreamError> {
        let (name, value) = match self.form.likely() {
            Form::Anthropic => (HeaderName::from_static("x-api-key"), key.trim().to_owned()),
            _ => (HeaderName::from_static("authorization"), format!("Bearer {}", key.trim())),
        };
        let mut value: HeaderValue = value.parse().map_err(|_| UpstreamError::Key)?;
        value.set_sensitive(true);
        self.set(name, value);
        Ok(self)
    }

    /// Trusts the certificates in a PEM file instead of the public authorities.
    ///
    /// # Errors
    /// If the file contains none.
    pub fn trusting(mut self, path: &Path) -> Result<Self, UpstreamError> {
        let unusable = |reason: String| UpstreamError::CaFile { path: path.display().to_string(), reason };
        let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
        let mut certificates = Vec::new();
        for item in parse_pem(&pem) {
            if let PemItem::Certificate(certificate) = item.map_err(|error| unusable(error.to_string()))? {
                certificates.push(certificate);
            }
        }
        if certificates.is_empty() {
            return Err(unusable("it contains no certificate in PEM form".to_owned()));
        }
        self.roots = Some(RootCerts::Specific(Arc::new(certificates)));
        Ok(self)
    }

    /// The form of its answers.
    #[must_use]
    pub const fn form(&self) -> ExpectedForm {
        self.form
    }

    /// Whether requests are for chat completions.
    fn is_chat(&self) -> bool {
        self.url.path().trim_end_matches('/').ends_with("/chat/completions")
    }

    fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value));
    }

    /// A client for one request, so that closing its connection affects no other request.
    fn agent(&self, connected: http::Connected) -> Agent {
        let roots = self.roots.clone().unwrap_or(RootCerts::WebPki);
        let config = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("llm-bridge/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // A key is only for the configured server.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(self.patience.connect))
            .timeout_resolve(Some(self.patience.connect))
            .build();
        Agent::with_parts(config, DefaultConnector::default().chain(connected), DefaultResolver::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_determines_the_api() {
        let upstream = |url| Upstream::new(url, Patience::default());
        let chat = upstream("http://localhost:1/v1/chat/completions").unwrap();
        assert!(chat.is_chat() && chat.form() == ExpectedForm::FirstEvent(Form::OpenAi));
        assert!(!upstream("https://api.openai.com/v1/responses").unwrap().is_chat());
        let messages = upstream("https://api.anthropic.com/v1/messages").unwrap().key(" k \n").unwrap();
        let header = |name: &str| {
            let find = messages.headers.iter().find(|(known, _)| known == name);
            find.map(|(_, value)| value.to_str().unwrap().to_owned())
        };
        assert_eq!(messages.form(), ExpectedForm::FirstEvent(Form::Anthropic));
        assert_eq!(header("x-api-key").as_deref(), Some("k"));
        assert_eq!(header("anthropic-version").as_deref(), Some(ANTHROPIC_VERSION));
        assert!(!format!("{messages:?}").contains("api-key"));
        let named = upstream("http://h/v1/proxy").unwrap().speaking(Form::Anthropic).key("k").unwrap();
        let names: Vec<&str> = named.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"anthropic-version") && names.contains(&"x-api-key"), "{names:?}");
        let named = upstream("http://h/v1/messages").unwrap().speaking(Form::OpenAi).key("k").unwrap();
        assert!(named.headers.iter().all(|(name, _)| name != "anthropic-version" && name != "x-api-key"));
        for bad in ["", "localhost:1/x", "ftp://h/x", "/v1", "http://"] {
            assert!(matches!(upstream(bad), Err(UpstreamError::Url(_))), "{bad}");
        }
    }

    #[test]
    fn a_header_replaces_one_of_its_name_and_its_value_is_not_shown() {
        let upstream = Upstream::new("http://h/messages", Patience::default()).unwrap();
        let upstream = upstream.header("Anthropic-Version: 2030-01-01").unwrap();
        let versions = upstream.headers.iter().filter(|(name, _)| name == "anthropic-version");
        assert_eq!(versions.count(), 1);
        for bad in ["none", "a b: c", "x: se\u{0}cret"] {
            let error = upstream.clone().header(bad).unwrap_err().to_string();
            assert!(error.contains("Name: value") && !error.contains("cret"), "{error}");
        }
        assert!(matches!(upstream.clone().key("a\nb"), Err(UpstreamError::Key)));
        assert!(upstream.trusting(Path::new("/nonexistent")).is_err());
    }
}
