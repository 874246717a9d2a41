//! Why an entry cannot be decoded, for the author of its producer: the defect, the fields that the entry has, and the
//! fields that were expected. Never the fields' values.

use std::fmt::Write as _;

use super::member::{METADATA_BYTES_MAX, Member};
use crate::config;
use crate::json;
use crate::model::{ENTRY_BYTES_MAX, Fields, LABEL_BYTES_MAX, NamesShown};
use crate::provider;

/// A defect of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It has none of the known forms.
    Nothing,
    /// It is larger than [`ENTRY_BYTES_MAX`].
    TooLarge,
    /// It is encrypted, and there is no key.
    Encrypted,
    /// This field is not UTF-8.
    NotText(&'static str),
    /// A flat entry with a type of the producer's own has a field that is not UTF-8.
    FieldsNotText,
    /// The field `data` is not one JSON object.
    NotAnObject,
    /// The object in `data` has neither a `type` nor a text nor an end.
    NothingInObject,
    /// A member that its type requires is missing.
    Missing(Member),
    /// A member has the wrong type.
    Kind(Member),
    /// A member is longer than its limit.
    TooLong(Member),
    /// It is not in the provider's form.
    Provider(provider::Form, provider::Malformed),
}

impl Flaw {
    /// The value of `reason` in the `skipped` frame and the dead letter.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Nothing => "no_payload",
            Self::TooLarge => "too_large",
            _ => "malformed",
        }
    }

    /// Describes the defect and the entry's fields.
    #[must_use]
    pub fn message(self, fields: &Fields, names: &config::Fields) -> String {
        let mut message = match self {
            Self::Provider(form, malformed) => {
                provider::defect(form, fields.get(form.field()).unwrap_or_default(), malformed)
            }
            _ => self.problem(),
        };
        // Writing to a String does not fail, here and below.
        let _ = write!(message, "; fields: {}", NamesShown::of(fields));
        match self {
            Self::Nothing => {
                let _ = write!(
                    message,
                    "; looked for: data, openai, anthropic or enc; a text in {}; a type in {}; or an end in done, \
                     is_final, final, finished, finish_reason or status ([fields] in the configuration names others)",
                    listed(&names.text),
                    listed(&names.kind),
                );
            }
            Self::NothingInObject | Self::Missing(_) | Self::Kind(_) if fields.get("data").is_some() => {
                let members = members_shown(fields.get("data").unwrap_or_default());
                let _ = write!(message, "; members of data: {members}");
                if self == Self::NothingInObject {
                    let _ = write!(
                        message,
                        "; looked for: type, or a text in {} ([fields] in the configuration names others); what a provider \
                         sent belongs in the field openai or anthropic",
                        listed(&names.text)
                    );
                }
            }
            Self::NotAnObject => {
                if let Some(text) = names.text.first() {
                    let _ = write!(message, "; plain text belongs in the field {text}");
                }
            }
            Self::Provider(form, provider::Malformed::Form) => {
                let raw = fields.get(form.field()).unwrap_or_default();
                if raw.trim_ascii_start().starts_with(b"{") {
                    let (field, forms) = (form.field(), provider::known_forms(form));
                    let _ =
                        write!(message, "; members of {field}: {}; looked for: {forms}", members_shown(raw));
                }
            }
            Self::Missing(Member::Text) => {
                let _ = write!(message, "; looked for: {} ([fields] text)", listed(&names.text));
            }
            _ => {}
        }
        message
    }

    /// Describes the defect alone.
    #[must_use]
    pub fn problem(self) -> String {
        match self {
            Self::Nothing => "no field has a known form".to_owned(),
            Self::TooLarge => format!("the entry is larger than {} MiB", ENTRY_BYTES_MAX >> 20),
            Self::Encrypted => "the entry is encrypted, which this version cannot read".to_owned(),
            Self::NotText(field) => format!("{field} is not UTF-8"),
            Self::FieldsNotText => "a field is not UTF-8".to_owned(),
            Self::NotAnObject => "data is not one JSON object".to_owned(),
            Self::NothingInObject => "the object in data has neither a type nor a text".to_owned(),
            Self::Missing(member) => format!("{} is missing", member.name()),
            Self::Kind(member) => format!("{} is not {}", member.name(), wanted(member)),
            Self::TooLong(member) => {
                let bytes = if member == Member::Metadata { METADATA_BYTES_MAX } else { LABEL_BYTES_MAX };
                format!("{} is longer than {} KiB", member.name(), bytes >> 10)
            }
            Self::Provider(form, _) => format!("{} is not what such a server sends", form.field()),
        }
    }
}

/// The type that a member must have.
const fn wanted(member: Member) -> &'static str {
    match member {
        Member::Seq | Member::Ts | Member::Index | Member::Call => "an unsigned number",
        Member::Metadata | Member::Usage => "a JSON object",
        Member::Type => "a text",
        _ => "a text (UTF-8, no lone surrogates)",
    }
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [name] => name.clone(),
        [names @ .., last] => format!("{} or {last}", names.join(", ")),
    }
}

/// The names of an object's members, as far as it can be parsed.
fn members_shown(object: &[u8]) -> NamesShown {
    let mut names = NamesShown::default();
    if let Ok(text) = std::str::from_utf8(object) {
        let without_nan = json::without_nan(text);
        json::each_member(without_nan.as_deref().unwrap_or(text), |name, _| names.push(name.as_bytes()));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_fields_found_and_those_expected() {
        let fields = Fields::from_pairs(&[(b"foo", b"secret"), (b"", b"x"), (b"\x1b[31m\xff", b"y")]);
        let message = Flaw::Nothing.message(&fields, &config::Fields::default());
        assert_eq!(
            message,
            "no field has a known form; fields: foo, \"\", ␛[31m\u{fffd}; looked for: data, openai, anthropic or enc; \
             a text in text, content, token, chunk or delta; a type in type or event; or an end in done, is_final, \
             final, finished, finish_reason or status ([fields] in the configuration names others)"
        );
    }

    #[test]
    fn names_are_few_short_and_safe() {
        let long = [b'x'; 65];
        let many: Vec<(&[u8], &[u8])> = (0..40).map(|_| (&long[..], &b""[..])).collect();
        let message = Flaw::TooLarge.message(&Fields::from_pairs(&many), &config::Fields::default());
        assert_eq!(message.matches(&"x".repeat(64)).count(), 32);
        assert!(!message.contains(&"x".repeat(65)) && message.ends_with("… and 8 more"), "{message}");
        // A name that is cut within a character, and one with a character that reverses the text direction.
        let name = format!("{}ä", "y".repeat(63));
        let fields = Fields::from_pairs(&[(name.as_bytes(), b""), ("a\u{202e}b".as_bytes(), b"")]);
        let message = Flaw::TooLarge.message(&fields, &config::Fields::default());
        assert!(message.ends_with(&format!("fields: {}…, a\u{fffd}b", "y".repeat(63))), "{message}");
    }

    #[test]
    fn the_members_of_an_object_are_named_too() {
        let fields = Fields::from_pairs(&[(b"data", br#"{"txt":"secret","n\u0061me":1}"#)]);
        let message = Flaw::NothingInObject.message(&fields, &config::Fields::default());
        assert!(
            message
                .contains("fields: data; members of data: txt, name; looked for: type, or a text in text,")
        );
        assert!(!message.contains("secret"));
        let message = Flaw::NotAnObject.message(&fields, &config::Fields::default());
        assert_eq!(
            message,
            "data is not one JSON object; fields: data; plain text belongs in the field text"
        );
        let message = Flaw::Kind(Member::Seq).message(&fields, &config::Fields::default());
        assert_eq!(message, "seq is not an unsigned number; fields: data; members of data: txt, name");
    }
}
