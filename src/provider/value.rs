//! Single members of a provider's payload: texts, words, ids, numbers. `None` means that the member's type makes the
//! entry malformed.

use crate::json;
use crate::model::LABEL_BYTES_MAX;

/// A string member, escaped: `Some(None)` if it is absent, `None` if it is another type or not valid text.
pub(super) fn text(raw: Option<&str>) -> Option<Option<&str>> {
    let Some(raw) = raw else { return Some(None) };
    json::string(raw).filter(|text| json::surrogates_are_paired(text)).map(Some)
}

/// A string member that counts as absent if it is empty, because some servers write it so.
pub(super) fn word(raw: Option<&str>) -> Option<Option<&str>> {
    Some(text(raw)?.filter(|text| !text.is_empty()))
}

/// An id: a word, or a number as it is written.
pub(super) fn id(raw: Option<&str>) -> Option<Option<&str>> {
    match raw {
        Some(raw) if raw.starts_with(|first: char| first == '-' || first.is_ascii_digit()) => Some(Some(raw)),
        raw => word(raw),
    }
}

/// The id of a tool call; `None` where it is longer than an id may be.
pub(super) fn call_id(raw: Option<&str>) -> Option<Option<&str>> {
    let id = id(raw)?;
    id.is_none_or(is_short).then_some(id)
}

/// The name of a tool; `None` where it is longer than a name may be.
pub(super) fn tool_name(raw: Option<&str>) -> Option<Option<&str>> {
    let name = word(raw)?;
    name.is_none_or(is_short).then_some(name)
}

/// Whether an escaped text means at most [`LABEL_BYTES_MAX`] bytes.
fn is_short(escaped: &str) -> bool {
    let meant = || json::unescape(escaped).is_some_and(|text| text.len() <= LABEL_BYTES_MAX);
    escaped.len() <= LABEL_BYTES_MAX || escaped.len() <= 6 * LABEL_BYTES_MAX && meant()
}

/// Token counts, if that is what it is.
pub(super) fn counts(raw: Option<&str>) -> Option<&str> {
    raw.filter(|raw| raw.starts_with('{') && json::surrogates_are_paired(raw))
}

/// A text as the inside of a JSON string.
pub(super) fn quoted(text: &str) -> Box<str> {
    let quoted = serde_json::to_string(text).unwrap_or_default();
    json::string(&quoted).unwrap_or_default().into()
}

/// An unsigned member, 0 where it is absent.
pub(super) fn number(raw: Option<&str>) -> Option<u64> {
    raw.map_or(Some(0), json::unsigned)
}

/// An unsigned member, `Some(None)` where it is absent.
pub(super) fn place(raw: Option<&str>) -> Option<Option<u64>> {
    raw.map_or(Some(None), |raw| json::unsigned(raw).map(Some))
}
