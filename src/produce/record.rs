//! One entry as it is written: the field that tells its form, and its JSON.

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
    /// Set where exactly these entries were sent before and nobody knows whether they are there: the newest entry from
    /// before them that is known to be there.
    ///
    /// Native entries may be written twice, their `seq` makes it invisible. Raw ones have no place for a `seq`,
    /// so that they must be looked for behind this entry.
    pub repeats_after: Option<EntryId>,
}

impl Batch<'_> {
    /// Behind which entry the batch has to be looked for before it is written.
    #[must_use]
    pub fn look_after(&self) -> Option<EntryId> {
        self.repeats_after.filter(|_| self.records.iter().any(|record| record.form != Form::Native))
    }
}
