//! The bounds on the state kept of a generation and on the events of one entry.

use super::tests::{Story, openai};
use super::{EVENTS_PER_ENTRY_MAX, Form, Margin};
use crate::model::PROGRESS_BYTES_MAX;

#[test]
fn kept_state_is_bounded() {
    let mut story = Story::default();
    let mut emitted = 0;
    for index in 0..5000 {
        let payload = format!(
            r#"{{"type":"content_block_start","index":{index},"content_block":{{"type":"tool_use","id":"{index}","name":"{}"}}}}"#,
            "n".repeat(index % 100)
        );
        emitted += story.emit(Form::Anthropic, &payload).matches("tool#").count();
        assert!(story.progress.len_bytes() <= PROGRESS_BYTES_MAX);
    }
    // Calls for which there was no room were emitted early, and the others are emitted at the end.
    assert!((4000..5000).contains(&emitted), "{emitted}");
    emitted += story.emit(Form::Anthropic, r#"{"type":"message_stop"}"#).matches("tool#").count();
    assert_eq!(emitted, 5000);
    let long = "x".repeat(PROGRESS_BYTES_MAX + 1);
    let finish = format!(r#"{{"choices":[{{"delta":{{}},"finish_reason":"{long}"}}]}}"#);
    openai(&[(&finish, "malformed")]);
    let finished: Vec<String> =
        (0..5000).map(|index| format!(r#"{{"index":{index},"finish_reason":"x"}}"#)).collect();
    openai(&[(&format!(r#"{{"choices":[{}]}}"#, finished.join(",")), ""), ("[DONE]", "end x -")]);
    let deltas = vec![r#"{"delta":{"content":"x"}}"#; EVENTS_PER_ENTRY_MAX + 1];
    let chunk = |count: usize| format!(r#"{{"choices":[{}]}}"#, deltas[..count].join(","));
    assert_ne!(Story::default().emit(Form::OpenAi, &chunk(EVENTS_PER_ENTRY_MAX)), "malformed");
    assert_eq!(Story::default().emit(Form::OpenAi, &chunk(EVENTS_PER_ENTRY_MAX + 1)), "malformed");
}

#[test]
fn a_margin_of_any_length_is_dropped_without_a_deep_stack() {
    let first = Margin::default();
    let mut last = &first;
    for _ in 0..1_000_000 {
        last = last.next.get_or_init(Box::default);
    }
    assert!(last.text.get().is_none());
}
