//! An entry of the requests' stream → what is asked for. Pure.

use crate::model::{Entry, EntryId, KeyPattern, NameError, StreamName};

/// The longest id of a generation.
const GENERATION_BYTES_MAX: usize = 256;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// The entry that asked.
    pub(super) id: EntryId,
    /// The stream into which the answer goes.
    pub(super) name: StreamName,
    /// The model that is asked where the body names none. The stream's name does not tell it where keys have no model.
    pub(super) model: Option<String>,
    /// The id of the generation that the answer is. It is the same for whoever answers, which is how a worker finds
    /// what another one has begun.
    pub(super) generation: String,
    /// The request's JSON body, whatever it is worth.
    pub(super) body: String,
    /// Whether another worker may have begun to answer.
    pub(super) is_taken_over: bool,
}

/// Why an entry asks for nothing that could be answered anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OrderError {
    /// A field is not there, or not text.
    #[error("the field `{0}` is missing, or not UTF-8")]
    Field(&'static str),
    /// Session and model are no stream's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Nothing of it was kept.
    #[error("the entry is larger than 8 MiB")]
    TooLarge,
    /// The id of the generation.
    #[error("`generation` is longer than {GENERATION_BYTES_MAX} bytes")]
    Generation,
}

impl OrderError {
    /// The reason in a dead letter.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Field(_) | Self::Name(_) | Self::Generation => "malformed",
        }
    }
}

/// Reads an entry; `streams` is the pattern of the streams' keys.
pub(super) fn read(entry: &Entry, is_taken_over: bool, streams: &KeyPattern) -> Result<Order, OrderError> {
    if entry.fields.is_too_large() {
        return Err(OrderError::TooLarge);
    }
    let field = |name| entry.fields.get(name).and_then(|value| std::str::from_utf8(value).ok());
    let wanted = |name| field(name).ok_or(OrderError::Field(name));
    let model = if streams.has_model() { Some(wanted("model")?) } else { field("model") };
    let name = streams.stream(wanted("session")?, model)?;
    let chosen = field("generation").or_else(|| field("id")).filter(|id| !id.is_empty());
    let generation = chosen.map_or_else(|| format!("relay-{}", entry.id), ToOwned::to_owned);
    if generation.len() > GENERATION_BYTES_MAX {
        return Err(OrderError::Generation);
    }
    // A stream that can be named can be told what is wrong with the body.
    let body = field("request").unwrap_or_default().to_owned();
    let model = model.map(ToOwned::to_owned);
    Ok(Order { id: entry.id, name, model, generation, body, is_taken_over })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Fields;

    fn order(fields: &[(&str, &str)]) -> Result<Order, OrderError> {
        order_by(&KeyPattern::of_prefix("llm"), fields)
    }

    fn order_by(streams: &KeyPattern, fields: &[(&str, &str)]) -> Result<Order, OrderError> {
        let pairs: Vec<_> = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        read(&Entry { id: EntryId::new(7, 1), fields: Fields::from_pairs(&pairs) }, false, streams)
    }

    #[test]
    fn a_request_names_its_stream_and_perhaps_its_generation() {
        let plain = order(&[("session", "s"), ("model", "m:1"), ("request", "{}")]).unwrap();
        assert_eq!((plain.name.as_str(), plain.generation.as_str()), ("s/m:1", "relay-7-1"));
        assert_eq!(plain.body, "{}");
        let named = order(&[("session", "s"), ("model", "m"), ("id", "a"), ("generation", "g")]).unwrap();
        assert_eq!((named.generation.as_str(), named.body.as_str()), ("g", ""));
        assert_eq!(order(&[("session", "s"), ("model", "m"), ("id", "a")]).unwrap().generation, "a");
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
    fn what_names_no_stream_is_refused() {
        assert_eq!(order(&[("model", "m")]), Err(OrderError::Field("session")));
        assert_eq!(order(&[("session", "s")]), Err(OrderError::Field("model")));
        assert_eq!(order(&[("session", "a b"), ("model", "m")]), Err(OrderError::Name(NameError::Session)));
        let nothing = Entry { id: EntryId::new(7, 1), fields: Fields::too_large(&["session"], 9 << 20) };
        let streams = KeyPattern::of_prefix("llm");
        assert_eq!(read(&nothing, false, &streams).map_err(OrderError::reason), Err("too_large"));
        let long = "x".repeat(GENERATION_BYTES_MAX + 1);
        assert_eq!(order(&[("session", "s"), ("model", "m"), ("id", &long)]), Err(OrderError::Generation));
    }
}
