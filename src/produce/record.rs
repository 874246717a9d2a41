//! One entry to be written: the field that names its form, and its JSON.

use crate::model::EntryId;

/// The form of an entry, which is the name of its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A native object.
    Native,
    /// A raw object of an OpenAI-compatible server, or `[DONE]`.
    OpenAi,
    /// A raw event of Anthropic's Messages.
    Anthropic,
}

impl Form {
    /// The field's name.
    #[must_use]
    pub const fn field(self) -> &'static str {
        match self {
            Self::Native => "data",
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
        }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its form.
    pub form: Form,
    /// Its payload, as it is written.
    pub json: String,
}

impl Record {
    /// A native entry.
    #[must_use]
    pub const fn native(json: String) -> Self {
        Self { form: Form::Native, json }
    }
}

/// Entries that are written together, or not at all.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The entries, in order.
    pub records: &'a [Record],
    /// Set if these entries were sent before and it is not known whether they were written: the newest confirmed
    /// entry before them.
    ///
    /// Native entries may be written twice, because `seq` hides that. Raw entries have no place for a `seq`, so they
    /// must be searched for after this entry.
    pub repeats_after: Option<EntryId>,
}

impl Batch<'_> {
    /// The entry after which the batch has to be searched for before it is written.
    #[must_use]
    pub fn look_after(&self) -> Option<EntryId> {
        self.repeats_after.filter(|_| self.records.iter().any(|record| record.form != Form::Native))
    }
}
