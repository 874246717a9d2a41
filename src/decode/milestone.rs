//! The meaning of a single entry for the order of generations, without the entries before it.

use super::entry::DecodeContext;
use super::expand::EntryEvents;
use crate::model::{Entry, Phase, Progress, StreamState};
use crate::provider::Margin;

/// The meaning of an entry for the order of generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Milestone {
    /// It begins a generation, or belongs to an open one.
    Begins,
    /// It ends a generation.
    Ends,
    /// It does neither.
    Neither,
}

/// Whether an entry would begin or end a generation if it were the first of its stream.
#[must_use]
pub fn milestone(entry: &Entry, context: &DecodeContext) -> Milestone {
    let (progress, margin, mut state) = (Progress::default(), Margin::default(), StreamState::default());
    let Ok(mut events) = EntryEvents::new(entry, context, (&progress, &margin), &state) else {
        return Milestone::Neither;
    };
    while events.judge(&mut state).is_some() {}
    match state.phase {
        Phase::Idle => Milestone::Neither,
        Phase::Open => Milestone::Begins,
        Phase::Ended(_) | Phase::Failed(_) | Phase::Lost(_) => Milestone::Ends,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EntryId, Fields};

    #[test]
    fn beginnings_and_ends_are_distinguished_from_other_entries() {
        for (field, value, expected) in [
            ("data", r#"{"type":"delta","text":"end"}"#, Milestone::Begins),
            ("data", r#"{"type":"start"}"#, Milestone::Begins),
            ("data", r#"{"type":"end"}"#, Milestone::Ends),
            ("data", r#"{"type":"error","code":"producer_lost"}"#, Milestone::Ends),
            ("data", r#"{"type":"heartbeat"}"#, Milestone::Neither),
            ("data", "{", Milestone::Neither),
            ("openai", r#"{"choices":[{"index":0,"delta":{"content":"x"}}]}"#, Milestone::Begins),
            ("openai", "[DONE]", Milestone::Ends),
            ("openai", r#"{"error":{"message":"x"}}"#, Milestone::Ends),
            ("openai", r#"{"type":"response.completed","response":{"status":"completed"}}"#, Milestone::Ends),
            ("anthropic", r#"{"type":"message_stop"}"#, Milestone::Ends),
            ("content", "x", Milestone::Begins),
            ("content", "[DONE]", Milestone::Ends),
        ] {
            let fields = Fields::from_pairs(&[(field.as_bytes(), value.as_bytes())]);
            let entry = Entry { id: EntryId::new(1, 0), fields };
            assert_eq!(milestone(&entry, &DecodeContext::default()), expected, "{field} {value}");
        }
    }
}
