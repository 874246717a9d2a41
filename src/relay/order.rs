//! Parses an entry of the stream of requests. Pure.

use crate::model::{Entry, EntryId, Fields, KeyPattern, LABEL_BYTES_MAX, NameError, StreamName};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// The entry with the request.
    pub(super) id: EntryId,
    /// The stream for the answer.
    pub(super) name: StreamName,
    /// The model for the server if the body names none. If keys have no model, the stream's name does not contain it.
    pub(super) model: Option<String>,
    /// The id of the answer's generation. It is the same for every worker, which is how a worker finds what another
    /// one has begun.
    pub(super) generation: String,
    /// The request's JSON body, not validated, or why there is none.
    pub(super) body: Result<String, FieldError>,
    /// Whether another worker may have begun to answer.
    pub(super) is_taken_over: bool,
}

impl Order {
    /// The size of its body in bytes.
    pub(super) fn body_bytes(&self) -> usize {
        self.body.as_ref().map_or(0, String::len)
    }
}

/// Why a field cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FieldError {
    /// It is missing.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// It is not text.
    #[error("the field `{0}` is not UTF-8")]
    NotUtf8(&'static str),
}

/// An entry that is not a request that can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The stream that it names, if it names one.
    pub(super) stream: Option<StreamName>,
    /// The reason.
    pub(super) error: OrderError,
}

/// Why an entry is not a request that can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OrderError {
    /// A field is missing, or not text.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// Session and model are not a valid stream name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The entry was too large to be read.
    #[error("the entry is larger than 8 MiB")]
    TooLarge,
    /// The field with the generation's id is too long.
    #[error("the field `{0}` is longer than {LABEL_BYTES_MAX} bytes")]
    TooLong(&'static str),
}

impl OrderError {
    /// The reason in a dead letter.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Field(_) | Self::Name(_) | Self::TooLong(_) => "malformed",
        }
    }
}

/// Reads an entry; `streams` is the pattern of the streams' keys.
pub(super) fn read(entry: &Entry, is_taken_over: bool, streams: &KeyPattern) -> Result<Order, Refused> {
    let (name, model) = target(&entry.fields, streams).map_err(|error| Refused { stream: None, error })?;
    match generation(entry) {
        // If the stream has a name, the defect of the body can be reported in it.
        Ok(generation) => {
            let body = wanted(&entry.fields, "request").map(ToOwned::to_owned);
            Ok(Order { id: entry.id, name, model, generation, body, is_taken_over })
        }
        Err(error) => Err(Refused { stream: Some(name), error }),
    }
}

/// The stream for the answer, and the model for the server.
fn target(fields: &Fields, streams: &KeyPattern) -> Result<(StreamName, Option<String>), OrderError> {
    if fields.is_too_large() {
        return Err(OrderError::TooLarge);
    }
    let model = if streams.has_model() { Some(wanted(fields, "model")?) } else { text(fields, "model")? };
    let name = streams.stream(wanted(fields, "session")?, model)?;
    Ok((name, model.map(ToOwned::to_owned)))
}

/// The generation's id: the first non-empty of two fields, or else an id of our own.
fn generation(entry: &Entry) -> Result<String, OrderError> {
    for field in ["generation", "id"] {
        match text(&entry.fields, field)? {
            None | Some("") => {}
            Some(id) if id.len() > LABEL_BYTES_MAX => return Err(OrderError::TooLong(field)),
            Some(id) => return Ok(id.to_owned()),
        }
    }
    Ok(format!("relay-{}", entry.id))
}

fn wanted<'a>(fields: &'a Fields, name: &'static str) -> Result<&'a str, FieldError> {
    text(fields, name)?.ok_or(FieldError::Missing(name))
}

fn text<'a>(fields: &'a Fields, name: &'static str) -> Result<Option<&'a str>, FieldError> {
    let value = fields.get(name).map(std::str::from_utf8);
    value.transpose().map_err(|_| FieldError::NotUtf8(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Fields;

    fn order(fields: &[(&str, &str)]) -> Result<Order, Refused> {
        order_by(&KeyPattern::of_prefix("llm"), fields)
    }

    fn order_by(streams: &KeyPattern, fields: &[(&str, &str)]) -> Result<Order, Refused> {
        let pairs: Vec<_> = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        order_of(streams, &pairs)
    }

    fn order_of(streams: &KeyPattern, pairs: &[(&[u8], &[u8])]) -> Result<Order, Refused> {
        read(&Entry { id: EntryId::new(7, 1), fields: Fields::from_pairs(pairs) }, false, streams)
    }

    #[test]
    fn a_request_names_its_stream_and_perhaps_its_generation() {
        let plain = order(&[("session", "s"), ("model", "m:1"), ("request", "{}")]).unwrap();
        assert_eq!((plain.name.as_str(), plain.generation.as_str()), ("s/m:1", "relay-7-1"));
        assert_eq!(plain.body.as_deref(), Ok("{}"));
        let id = |generation: &str, id: &str| {
            let ids = [("session", "s"), ("model", "m"), ("id", id), ("generation", generation)];
            order(&ids).unwrap().generation
        };
        assert_eq!((id("g", "a"), id("", "a"), id("", "")), ("g".into(), "a".into(), "relay-7-1".into()));
        let longest = "x".repeat(LABEL_BYTES_MAX);
        assert_eq!(id(&longest, ""), longest);
    }

    #[test]
    fn without_a_model_in_the_key_the_request_may_name_one_for_the_server() {
        let streams = KeyPattern::parse("chat:{session}", "llm").unwrap();
        let named = order_by(&streams, &[("session", "s"), ("model", "gpt-4o")]).unwrap();
        assert_eq!((named.name.as_str(), named.model.as_deref()), ("s/default", Some("gpt-4o")));
        let plain = order_by(&streams, &[("session", "s")]).unwrap();
        assert_eq!((plain.name.as_str(), plain.model), ("s/default", None));
        let named = order(&[("session", "s"), ("model", "m")]).unwrap();
        assert_eq!(named.model.as_deref(), Some("m"));
    }

    #[test]
    fn requests_without_a_stream_are_refused() {
        let refused = |error: OrderError| Err(Refused { stream: None, error });
        assert_eq!(order(&[("model", "m")]), refused(FieldError::Missing("session").into()));
        assert_eq!(order(&[("session", "s")]), refused(FieldError::Missing("model").into()));
        assert_eq!(order(&[("session", "a b"), ("model", "m")]), refused(NameError::Session.into()));
        let streams = KeyPattern::of_prefix("llm");
        let not_utf8 = order_of(&streams, &[(b"session", b"s"), (b"model", b"\xff")]);
        assert_eq!(not_utf8, refused(FieldError::NotUtf8("model").into()));
        let nothing = Entry { id: EntryId::new(7, 1), fields: Fields::too_large(&["session"], 9 << 20) };
        assert_eq!(read(&nothing, false, &streams), refused(OrderError::TooLarge));
    }

    #[test]
    fn a_refusal_for_another_reason_has_the_name_of_the_stream() {
        let long = "x".repeat(LABEL_BYTES_MAX + 1).into_bytes();
        for (field, value, error, message) in [
            (
                "generation",
                &long[..],
                OrderError::TooLong("generation"),
                "the field `generation` is longer than 1024 bytes",
            ),
            ("id", &long[..], OrderError::TooLong("id"), "the field `id` is longer than 1024 bytes"),
            ("id", b"\xff", FieldError::NotUtf8("id").into(), "the field `id` is not UTF-8"),
        ] {
            let fields = [(&b"session"[..], &b"s"[..]), (b"model", b"m"), (field.as_bytes(), value)];
            let refused = order_of(&KeyPattern::of_prefix("llm"), &fields).unwrap_err();
            assert_eq!((refused.stream.unwrap().as_str(), refused.error), ("s/m", error));
            assert_eq!((error.to_string().as_str(), error.reason()), (message, "malformed"));
        }
    }

    #[test]
    fn an_unusable_body_is_reported_by_field_name() {
        let of = |field: &[u8], value: &[u8]| {
            let fields = [(&b"session"[..], &b"s"[..]), (b"model", b"m"), (field, value)];
            order_of(&KeyPattern::of_prefix("llm"), &fields).unwrap().body.unwrap_err().to_string()
        };
        assert_eq!(of(b"enc", b"AQ=="), "the field `request` is missing");
        assert_eq!(of(b"request", b"\xff{}"), "the field `request` is not UTF-8");
    }
}
