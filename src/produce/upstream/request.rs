//! The body of one request. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::Upstream;

/// Why a text is not a request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is not a JSON object.
    #[error("the request is not a JSON object: {0}")]
    NotAnObject(#[from] serde_json::Error),
    /// It is an empty object.
    #[error("the request is empty")]
    Empty,
}

/// A request's body, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub(super) body: Arc<str>,
}

impl Request {
    /// Takes the user's request unchanged, except that `stream` is set to true; `model`, if given, is added if the
    /// request has none; and a request for chat completions without `stream_options` asks for the usage, which
    /// servers otherwise do not send with a stream. For a server that does not support `stream_options`, set
    /// `"stream_options": null` in the request.
    ///
    /// # Errors
    /// If the text is not a JSON object, or is an empty one.
    pub fn new(text: &str, model: Option<&str>, upstream: &Upstream) -> Result<Self, RequestError> {
        let mut members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text)?;
        if members.is_empty() {
            return Err(RequestError::Empty);
        }
        members.insert("stream".to_owned(), serde_json::value::to_raw_value(&true)?);
        if let Some(model) = model
            && !members.contains_key("model")
        {
            members.insert("model".to_owned(), serde_json::value::to_raw_value(model)?);
        }
        if upstream.is_chat() && !members.contains_key("stream_options") {
            let usage = serde_json::json!({"include_usage": true});
            members.insert("stream_options".to_owned(), serde_json::value::to_raw_value(&usage)?);
        }
        Ok(Self { body: serde_json::to_string(&members)?.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Patience;
    use super::*;

    fn body(text: &str, path: &str) -> String {
        let upstream = Upstream::new(&format!("http://h/{path}"), Patience::default()).unwrap();
        Request::new(text, Some("m"), &upstream).unwrap().body.to_string()
    }

    #[test]
    fn it_always_streams_and_the_rest_stays_as_it_is() {
        assert_eq!(
            body(r#"{"stream":false,"model":"x","seed":1.50}"#, "v1/responses"),
            r#"{"model":"x","seed":1.50,"stream":true}"#
        );
        assert_eq!(
            body(r#"{"messages":[]}"#, "v1/chat/completions"),
            r#"{"messages":[],"model":"m","stream":true,"stream_options":{"include_usage":true}}"#
        );
        let own = r#"{"model":"x","stream":true,"stream_options":null}"#;
        assert_eq!(body(own, "v1/chat/completions"), own);
        let upstream = Upstream::new("http://h/", Patience::default()).unwrap();
        let unnamed = Request::new(r#"{"messages":[]}"#, None, &upstream).unwrap();
        assert_eq!(&*unnamed.body, r#"{"messages":[],"stream":true}"#);
        for bad in ["", "[]", "7", "{}", "{\"a\":1"] {
            assert!(Request::new(bad, Some("m"), &upstream).is_err(), "{bad}");
        }
    }
}
