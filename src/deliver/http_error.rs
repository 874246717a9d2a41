//! The errors with which requests are refused.

use super::close_code::CloseCode;

/// The code of errors that concern the upgrade to WebSocket.
pub(super) const BAD_UPGRADE: &str = "bad_upgrade";

/// The reason for which a request is not served. Sent as `{"error":{"code","message"}}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status} {code}: {message}")]
pub struct HttpError {
    /// The HTTP status.
    pub status: u16,
    /// A short identifier for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
    /// `Allow`: the methods that would be served.
    pub allow: Option<&'static str>,
}

impl HttpError {
    /// The code of a 403 for pages of other sites.
    pub const ORIGIN_NOT_ALLOWED: &str = "origin_not_allowed";

    /// An error without further headers.
    #[must_use]
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None, allow: None }
    }

    /// 400: the request itself is malformed.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "bad_request", message)
    }

    /// 400 or 426: the upgrade to WebSocket is malformed. The answer names the supported version.
    #[must_use]
    pub fn bad_upgrade(status: u16, message: impl Into<String>) -> Self {
        Self::new(status, BAD_UPGRADE, message)
    }

    /// 404: the resource does not exist.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, "not_found", message)
    }

    /// 405: the resource does not support the method.
    #[must_use]
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let message = format!("the methods of this resource are {allow}");
        Self { allow: Some(allow), ..Self::new(405, "method_not_allowed", message) }
    }

    /// 429: a rate or a limit is exceeded; the client may try again after `retry_after` seconds.
    #[must_use]
    pub fn too_many(code: &'static str, message: impl Into<String>, retry_after: u32) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(429, code, message) }
    }

    /// 503: the request cannot be served now; the client may try again after `retry_after` seconds.
    #[must_use]
    pub fn unavailable(code: &'static str, message: impl Into<String>, retry_after: u32) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(503, code, message) }
    }

    /// 503: this instance is shutting down.
    #[must_use]
    pub fn draining() -> Self {
        let message = "this instance is going down; connect again, and another one or its successor answers";
        Self::unavailable("draining", message, 1)
    }

    /// 421: the request is for a host that this server does not serve.
    #[must_use]
    pub fn misdirected() -> Self {
        let message = "this server does not answer to that Host; if it should, name it in listen.hosts";
        Self::new(421, "misdirected", message)
    }

    /// The code that closes a WebSocket instead, if the refusal concerns the client and not the request. A browser
    /// does not show a page the HTTP answer to an upgrade.
    #[must_use]
    pub const fn close_code(&self) -> Option<CloseCode> {
        match self.status {
            401 => Some(CloseCode::Unauthorized),
            403 => Some(CloseCode::Forbidden),
            429 => Some(CloseCode::TooMany),
            _ => None,
        }
    }

    /// The error as JSON.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let body = serde_json::json!({"error": {"code": self.code, "message": self.message}});
        body.to_string().into_bytes()
    }
}
