//! Streams for tests: entries from JSON, and a strategy for streams of any kind.

use proptest::prelude::*;

use crate::model::{Entry, EntryId, Fields, StreamName, StreamState};

pub(crate) fn stream() -> StreamName {
    "s1/gpt-4o".parse().unwrap()
}

/// The state before the first entry of a stream that was never trimmed.
pub(crate) fn beginning() -> StreamState {
    StreamState { ordinal: Some(0), ..StreamState::default() }
}

/// The entry `id` whose `data` is `object`.
pub(crate) fn entry(id: &str, object: &str) -> Entry {
    Entry { id: id.parse().unwrap(), fields: Fields::from_pairs(&[(b"data", object.as_bytes())]) }
}

/// A stream with these objects under the ids 1-0, 2-0, …
pub(crate) fn entries<S: AsRef<str>>(objects: &[S]) -> Vec<Entry> {
    (1..)
        .zip(objects)
        .map(|(ms, object)| {
            let fields = Fields::from_pairs(&[(b"data", object.as_ref().as_bytes())]);
            Entry { id: EntryId::new(ms, 0), fields }
        })
        .collect()
}

/// A stream of up to 40 entries of all types, with numbers that rise, jump and fall, and some undecodable entries.
pub(crate) fn any_stream() -> impl Strategy<Value = Vec<Entry>> {
    let delta = (0..3_usize, 0..2_u64, "[a-c]{0,3}").prop_map(|(channel, index, text)| {
        let channel = ["content", "reasoning", "x"][channel];
        format!(r#"{{"type":"delta","text":"{text}","channel":"{channel}","index":{index}"#)
    });
    let tool = (0..2_u64, 0..2_u64, 0..4_usize, "[a-c]{0,3}").prop_map(|(index, call, named, text)| {
        let named = ["", r#","id":"i""#, r#","id":"j""#, r#","name":"n""#][named];
        format!(r#"{{"type":"tool_call","index":{index},"call":{call},"arguments":"{text}"{named}"#)
    });
    let rare = prop_oneof![
        Just(r#"{"type":"start""#),
        Just(r#"{"type":"start","generation":"g""#),
        Just(r#"{"type":"start","generation":"h","metadata":{}"#),
        Just(r#"{"type":"end","finish_reason":"stop""#),
        Just(r#"{"type":"error","code":"c","message":"m""#),
        Just(r#"{"type":"error","code":"producer_lost""#),
        Just(r#"{"type":"heartbeat""#),
        Just(r#"{"type":"own""#),
        Just(r#"{"type":5"#),
    ]
    .prop_map(str::to_owned);
    let object = (prop_oneof![4 => delta, 2 => tool, 3 => rare], prop::option::of(0..8_u64)).prop_map(
        |(open, seq)| match seq {
            Some(seq) => format!(r#"{open},"seq":{seq}}}"#),
            None => format!("{open}}}"),
        },
    );
    prop::collection::vec(object, 0..40).prop_map(|objects| entries(&objects))
}
